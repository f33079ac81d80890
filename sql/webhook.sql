-- Shows what becomes of a webhook: what is rejected, which payment it is about, what
-- moves and what does not, duplicates, the worklist, events that come too early.
\set ON_ERROR_STOP 0
\set SHOW_CONTEXT never
\getenv abs_srcdir PG_ABS_SRCDIR
\set app :abs_srcdir '/test/fixture/cusown_app.sql'
\set minimal :abs_srcdir '/test/fixture/app_minimal.sql'
SET client_min_messages = warning;
CREATE EXTENSION cusown_ops;
SELECT * FROM cusown_webhook('razorpay', '{}', '{}'); -- fails
SELECT * FROM cusown_webhook_backlog(); -- fails
\set ECHO none
\set schema webhook_app
\i :app
\set schema webhook_shop
\i :minimal
\set ECHO all
SET search_path = webhook_app, public;
SELECT count(*) > 0 AS attached FROM cusown_attach('webhook_app');

-- payment n of 1000 INR, in this status, of booking n or another one
CREATE FUNCTION p(n int) RETURNS uuid LANGUAGE sql IMMUTABLE
RETURN rpad('f' || lpad(n::text, 7, '0'), 32, '0')::uuid;
CREATE FUNCTION b(n int) RETURNS uuid LANGUAGE sql IMMUTABLE
RETURN rpad('b' || lpad(n::text, 7, '0'), 32, '0')::uuid;
INSERT INTO businesses (id, salon_name, owner_name, whatsapp_number,
  opening_time, closing_time, slot_duration, booking_link)
VALUES (b(0), 'Salon', 'Owner', '+910000000000', '09:00', '18:00', 30, 'salon');
CREATE PROCEDURE add_payment(n int, status text DEFAULT 'processing', provider text DEFAULT 'razorpay',
  ref text DEFAULT NULL, booking int DEFAULT NULL, booking_status text DEFAULT 'pending')
LANGUAGE sql AS $$
  INSERT INTO slots (id, business_id, date, start_time, end_time)
  VALUES (p(n), b(0), current_date + n, '10:00', '10:30');
  INSERT INTO bookings (id, business_id, slot_id, customer_name, customer_phone, booking_id, status, cancelled_at)
  SELECT b(n), b(0), p(n), 'Customer', '+910000000001', 'CODE' || n, booking_status,
         CASE booking_status WHEN 'cancelled' THEN now() END
  WHERE booking IS NULL;
  INSERT INTO payments (id, booking_id, provider, provider_payment_id, amount_cents, status)
  VALUES (p(n), b(coalesce(booking, n)), provider::payment_provider, coalesce(ref, 'pending-' || n), 1000, status::payment_status);
$$;

-- independent of the extension: RFC 2104
CREATE FUNCTION hmac(key bytea, data bytea) RETURNS bytea LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
  inner_pad bytea := decode(repeat('36', 64), 'hex');
  outer_pad bytea := decode(repeat('5c', 64), 'hex');
BEGIN
  FOR i IN 0 .. length(key) - 1 LOOP
    inner_pad := set_byte(inner_pad, i, get_byte(key, i) # 54);
    outer_pad := set_byte(outer_pad, i, get_byte(key, i) # 92);
  END LOOP;
  RETURN sha256(outer_pad || sha256(inner_pad || data));
END
$$;
-- as the provider signs and sends it
CREATE FUNCTION deliver(provider text, body bytea, event_id text DEFAULT NULL, secret text DEFAULT 'secret')
RETURNS TABLE (outcome text, http int, payment text, event bigint, detail text) LANGUAGE sql AS $$
  SELECT w.outcome, w.http_status, right(left(w.payment_id::text, 8), 3), w.inbox_id, w.detail
  FROM cusown_webhook(provider, body, CASE provider
    WHEN 'razorpay' THEN jsonb_strip_nulls(jsonb_build_object('X-Razorpay-Signature', encode(hmac(secret::bytea, body), 'hex'),
                                           'X-Razorpay-Event-Id', event_id))
    WHEN 'upi' THEN jsonb_build_object('x-upi-signature', encode(hmac(secret::bytea, body), 'hex'))
    WHEN 'stripe' THEN jsonb_build_object('stripe-signature', 't=' || extract(epoch FROM date_trunc('second', now()))::bigint || ',v1='
      || encode(hmac(secret::bytea, convert_to(extract(epoch FROM date_trunc('second', now()))::bigint || '.', 'UTF8') || body), 'hex'))
    ELSE jsonb_build_object('webhook-id', event_id, 'webhook-timestamp', extract(epoch FROM date_trunc('second', now()))::bigint::text,
      'webhook-signature', 'v1,' || encode(hmac(secret::bytea, convert_to(event_id || '.' || extract(epoch FROM date_trunc('second', now()))::bigint || '.', 'UTF8') || body), 'base64'))
  END) w
$$;
-- an event of Razorpay's about payment pay_REF, with payment n in its notes
CREATE FUNCTION razorpay(type text, ref text, n int DEFAULT NULL, refunded bigint DEFAULT 0,
  amount jsonb DEFAULT '1000', currency text DEFAULT 'INR', order_id text DEFAULT NULL, vpa text DEFAULT NULL, receipt uuid DEFAULT NULL)
RETURNS bytea LANGUAGE sql AS $$
  SELECT convert_to(jsonb_strip_nulls(jsonb_build_object('entity', 'event', 'event', type, 'payload', jsonb_build_object(
    'payment', jsonb_build_object('entity', jsonb_build_object('id', ref, 'amount', amount, 'currency', currency, 'amount_refunded', refunded,
      'order_id', order_id, 'email', 'customer@example.org', 'contact', '+910000000001',
      'notes', CASE WHEN n IS NULL THEN '[]'::jsonb ELSE jsonb_build_object('payment', p(n), 'shop', 'salon') END,
      'acquirer_data', jsonb_build_object('upi_transaction_id', vpa))),
    'order', CASE WHEN receipt IS NOT NULL THEN jsonb_build_object('entity', jsonb_build_object('receipt', receipt)) END)))::text, 'UTF8')
$$;
CREATE FUNCTION rp(type text, ref text, n int DEFAULT NULL, refunded bigint DEFAULT 0,
  amount jsonb DEFAULT '1000', currency text DEFAULT 'INR', order_id text DEFAULT NULL, vpa text DEFAULT NULL, receipt uuid DEFAULT NULL,
  OUT outcome text, OUT http int, OUT payment text, OUT detail text)
LANGUAGE sql AS $$
  SELECT d.outcome, d.http, d.payment, d.detail
  FROM deliver('razorpay', razorpay(type, ref, n, refunded, amount, currency, order_id, vpa, receipt)) d
$$;
CREATE FUNCTION state(n int) RETURNS TABLE (status text, ref text, refunded int, log text, booking text, slot text) LANGUAGE sql STABLE AS $$
  SELECT p.status, p.provider_payment_id, p.refund_amount_cents,
         (SELECT string_agg(l.to_status::text, ' ' ORDER BY l.created_at) FROM payment_audit_logs l WHERE l.payment_id = p.id),
         b.status, s.status
  FROM payments p JOIN bookings b ON b.id = p.booking_id JOIN slots s ON s.id = b.slot_id WHERE p.id = p(n)
$$;
CREATE VIEW worklist AS
SELECT kind, entity, CASE entity WHEN 'payment' THEN right(left(entity_id::text, 8), 3) ELSE ltrim(right(entity_id::text, 12), '0') END AS id,
       finding, closed_by IS NOT NULL AS closed
FROM cusown_ops.attention WHERE app_schema = 'webhook_app' ORDER BY attention.id;
CREATE VIEW inbox AS
SELECT id, provider, event_type, event, provider_ref, amount, currency, refunded, right(left(payment_id::text, 8), 3) AS payment, outcome, mismatch
FROM cusown_ops.webhook_inbox WHERE app_schema = 'webhook_app' ORDER BY id;

-- ---------- arguments ----------
SELECT * FROM cusown_webhook(NULL, '{}', '{}'); -- fails
SELECT * FROM cusown_webhook('razorpay', NULL, '{}'); -- fails
SELECT * FROM cusown_webhook('razorpay', '{}', NULL); -- fails
SELECT * FROM cusown_webhook('razorpay', '{}', '{}', NULL); -- fails
SELECT * FROM cusown_webhook('nobody', '{}', '{}'); -- fails
SELECT * FROM cusown_webhook(repeat('x', 1000), '{}', '{}'); -- fails
-- what nobody knows leaves nothing behind in a session
CREATE FUNCTION of_binding() RETURNS bigint LANGUAGE sql AS $$ SELECT sum(total_bytes)::bigint FROM pg_backend_memory_contexts WHERE name LIKE 'cusown_ops%' $$;
SELECT of_binding() AS before \gset
DO $$
BEGIN
  FOR i IN 1 .. 2000 LOOP
    BEGIN
      PERFORM cusown_webhook('nobody ' || i, '{}', '{}');
    EXCEPTION WHEN invalid_parameter_value THEN NULL;
    END;
  END LOOP;
END
$$;
SELECT of_binding() - :before AS grown;
SELECT * FROM cusown_webhook_replay(NULL); -- fails
SELECT * FROM cusown_webhook_replay(1, NULL); -- fails
SELECT * FROM cusown_webhook_replay(1); -- fails
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT * FROM cusown_webhook('razorpay', '{}', '{}'); -- fails
ROLLBACK;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT * FROM cusown_webhook_replay(1); -- fails
ROLLBACK;
BEGIN READ ONLY;
SELECT * FROM cusown_webhook('razorpay', '{}', '{}'); -- fails
SELECT * FROM cusown_webhook_backlog();
ROLLBACK;

-- ---------- rejected ----------
CALL add_payment(1);
SELECT * FROM rp('payment.captured', 'pay_1', 1);
SELECT count(*) FROM cusown_set_webhook_secret('razorpay', 'mistyped');
SELECT * FROM rp('payment.captured', 'pay_1', 1);
SELECT count(*) FROM cusown_set_webhook_secret('razorpay', 'secret');
SELECT count(*) FROM cusown_set_webhook_secret('stripe', 'secret');
SELECT count(*) FROM cusown_set_webhook_secret('upi', 'secret');
-- the same bytes: what was rejected makes no duplicate
SELECT * FROM rp('payment.captured', 'pay_1', 1);
SELECT * FROM state(1);
SELECT * FROM deliver('razorpay', '\x');
SELECT * FROM deliver('razorpay', '{');
SELECT * FROM deliver('razorpay', '[]');
SELECT * FROM deliver('razorpay', '{"event": "a\\u0000"}');
SELECT * FROM deliver('razorpay', '\x7b226576656e74223a2022ff227d');
SELECT * FROM deliver('razorpay', '\x7b226576656e74223a202200227d');
SELECT * FROM deliver('razorpay', convert_to('{"event": ' || repeat('[', 100000), 'UTF8'));
SELECT * FROM deliver('razorpay', '{"event": 1e999999}');
SELECT * FROM deliver('razorpay', '{"type": "payment.captured"}');
SELECT * FROM deliver('razorpay', convert_to(jsonb_build_object('event', repeat('x', 256))::text, 'UTF8'));
SELECT * FROM rp('payment.captured', repeat('x', 256), 1);
SELECT * FROM rp('payment.captured', 'pay_1', 1, amount => '10.5');
SELECT * FROM rp('payment.captured', 'pay_1', 1, amount => '-1');
SELECT * FROM rp('payment.captured', 'pay_1', 1, amount => '9223372036854775808');
SELECT * FROM deliver('razorpay', '{"event": "x"}', repeat('x', 256));
SELECT * FROM deliver('razorpay', convert_to('{"event": "' || repeat('x', 1024 * 1024) || '"}', 'UTF8'));
SELECT outcome, http FROM deliver('razorpay', convert_to(rpad('{"event": "x"}', 1024 * 1024), 'UTF8'));
SELECT place, provider, http_status, reason, body_size, length(body_sha256) AS hash FROM cusown_ops.webhook_rejected ORDER BY place;
-- it does not grow
SELECT setval('cusown_ops.webhook_rejected_place', 10000) > 0 AS at_its_end;
SELECT http FROM deliver('razorpay', '\x00');
SELECT count(*), max(at) = max(at) FILTER (WHERE place = 1) AS first_again FROM cusown_ops.webhook_rejected;
-- of them nothing else is kept
SELECT * FROM inbox;
SELECT count(*) FROM cusown_ops.webhook_body;

-- ---------- duplicates ----------
SELECT * FROM rp('payment.captured', 'pay_1', 1);
-- under an id it is the same event, whatever its bytes; the id may be another one, as Razorpay does not sign it
SELECT * FROM deliver('razorpay', razorpay('payment.captured', 'pay_1', 1), 'event_1');
CALL add_payment(2);
SELECT * FROM deliver('razorpay', razorpay('payment.captured', 'pay_2', 2), 'event_2');
SELECT * FROM deliver('razorpay', razorpay('payment.captured', 'pay_2', 2), 'event_3');
SELECT * FROM deliver('razorpay', convert_from(razorpay('payment.captured', 'pay_2', 2), 'UTF8')::json::text::bytea || ' ', 'event_2');
-- nobody has signed that id: what says something else does not disappear behind it
CALL add_payment(9);
SELECT * FROM deliver('razorpay', razorpay('payment.captured', 'pay_9', 9), 'event_2');
SELECT * FROM deliver('razorpay', razorpay('refund.processed', 'pay_9', 9, 400), 'event_4');
SELECT * FROM deliver('razorpay', razorpay('refund.processed', 'pay_9', 9, 500), 'event_4');
SELECT * FROM deliver('razorpay', razorpay('refund.processed', 'pay_9', 9, 500), 'event_4');
SELECT event_id, event_type, refunded FROM cusown_ops.webhook_inbox WHERE provider_ref = 'pay_9' ORDER BY id;
SELECT * FROM state(9);
-- nor one about another payment, of another amount, or that no rule reads
CALL add_payment(82);
CALL add_payment(83);
SELECT * FROM deliver('razorpay', razorpay('payment.captured', NULL, 82), 'event_5');
SELECT * FROM deliver('razorpay', razorpay('payment.captured', NULL, 83), 'event_5');
SELECT right(left(id::text, 8), 3) AS payment, status FROM payments WHERE id IN (p(82), p(83)) ORDER BY id;
CALL add_payment(84);
SELECT * FROM deliver('razorpay', razorpay('payment.captured', 'pay_84', 84, amount => '999'), 'event_6');
SELECT * FROM deliver('razorpay', razorpay('payment.captured', 'pay_84', 84), 'event_6');
SELECT * FROM state(84);
SELECT outcome, detail FROM deliver('razorpay', '{"event": "gift", "to": "one"}', 'event_7');
SELECT outcome, detail FROM deliver('razorpay', '{"event": "gift", "to": "another"}', 'event_7');
SELECT outcome, detail FROM deliver('razorpay', '{"event": "gift", "to": "another"}', 'event_7');
-- that of another provider is another event
SELECT * FROM deliver('upi', razorpay('payment.captured', 'pay_2', 2));
SELECT * FROM state(2);

-- ---------- forward only ----------
CALL add_payment(3, 'initiated');
SELECT * FROM rp('payment.authorized', 'pay_3', 3);
SELECT * FROM rp('payment.captured', 'pay_3', 3);
SELECT * FROM rp('payment.authorized', 'pay_3', 3, 1);
SELECT * FROM rp('payment.failed', 'pay_3', 3);
SELECT * FROM rp('order.paid', 'pay_3', 3);
SELECT * FROM rp('payment.downtime.started', 'pay_3', 3);
SELECT * FROM rp('refund.processed', 'pay_3', 3, 400);
SELECT * FROM rp('refund.processed', 'pay_3', 3, 400, vpa => 'again');
SELECT * FROM rp('refund.processed', 'pay_3', 3, 300);
SELECT * FROM rp('payment.captured', 'pay_3', 3, 400);
SELECT * FROM rp('refund.processed', 'pay_3', 3, 1000);
SELECT * FROM rp('refund.processed', 'pay_3', 3, 700);
SELECT * FROM rp('refund.processed', 'pay_3', 3, 1000, vpa => 'again');
SELECT * FROM state(3);
-- the other way round: a refund says that it was paid
CALL add_payment(4, 'initiated');
SELECT * FROM rp('refund.processed', 'pay_4', 4, 1000);
SELECT * FROM rp('refund.processed', 'pay_4', 4, 400);
SELECT * FROM rp('payment.captured', 'pay_4', 4);
SELECT * FROM rp('payment.authorized', 'pay_4', 4);
SELECT * FROM state(4);
-- what the application has put into its column alone is told all the same
CALL add_payment(8, 'completed');
UPDATE payments SET refund_amount_cents = 400 WHERE id = p(8);
SELECT * FROM rp('refund.processed', 'pay_8', 8, 0);
SELECT * FROM rp('refund.processed', 'pay_8', 8, 300);
SELECT * FROM state(8);
-- late captures
CALL add_payment(5, 'processing');
SELECT * FROM rp('payment.failed', 'pay_5', 5);
SELECT * FROM rp('payment.authorized', 'pay_5', 5);
SELECT * FROM rp('payment.captured', 'pay_5', 5);
CALL add_payment(6, 'expired');
SELECT * FROM rp('payment.failed', 'pay_6', 6);
SELECT * FROM rp('payment.captured', 'pay_6', 6);
SELECT * FROM state(5) UNION ALL SELECT * FROM state(6);
-- what is kept of it
SELECT webhook_received_at = verified_at AS received, webhook_payload_hash = encode(sha256(razorpay('payment.captured', 'pay_6', 6)), 'hex') AS hash,
       webhook_signature = encode(hmac('secret', razorpay('payment.captured', 'pay_6', 6)), 'hex') AS signature, verification_method, verified_by, failure_reason
FROM payments WHERE id = p(6);
SELECT l.metadata - 'evidence' AS metadata, l.reason, i.event_type, i.payment_id = l.payment_id AS this_payment
FROM payment_audit_logs l LEFT JOIN cusown_ops.webhook_inbox i ON i.app_schema = 'webhook_app' AND i.id = (l.metadata -> 'evidence' ->> 'webhook_inbox_id')::bigint
WHERE l.payment_id = p(6);
SELECT action_type, actor_role, old_data, new_data FROM audit_logs WHERE entity_id = p(6);
SELECT verb, source, from_status, to_status FROM cusown_ops.change WHERE entity_id = p(6);
-- a hash that the application has used itself stays where it is
CALL add_payment(7);
UPDATE payments SET webhook_payload_hash = encode(sha256(razorpay('payment.captured', 'pay_7', 7)), 'hex') WHERE id = p(6);
SELECT * FROM rp('payment.captured', 'pay_7', 7);
SELECT status, webhook_payload_hash FROM payments WHERE id = p(7);
-- also of a payment that is known by the event before it
CALL add_payment(93, 'failed', ref => 'pay_93');
CALL add_payment(94);
SELECT * FROM rp('payment.failed', 'pay_93b', 93);
UPDATE payments SET webhook_payload_hash = encode(sha256(razorpay('payment.captured', 'pay_93b')), 'hex') WHERE id = p(94);
SELECT * FROM rp('payment.captured', 'pay_93b');

-- ---------- which payment ----------
-- by its reference, rather than by anything else
CALL add_payment(11, ref => 'pay_11');
CALL add_payment(12);
UPDATE payments SET order_id = 'order_12', transaction_id = 'upi_12' WHERE id = p(12);
SELECT * FROM rp('payment.captured', 'pay_11', 12, order_id => 'order_12', vpa => 'upi_12');
-- by notes, rather than by the order
CALL add_payment(13);
SELECT * FROM rp('payment.captured', 'pay_13', 13, order_id => 'order_12');
-- by the receipt of the order
CALL add_payment(14);
SELECT * FROM rp('order.paid', 'pay_14', receipt => p(14), order_id => 'order_12');
-- by the order, rather than by the UPI transaction
CALL add_payment(15);
UPDATE payments SET transaction_id = 'upi_15' WHERE id = p(15);
SELECT * FROM rp('payment.authorized', 'pay_12', order_id => 'order_12', vpa => 'upi_15');
SELECT * FROM rp('payment.captured', 'pay_15', vpa => 'upi_15');
SELECT right(left(id::text, 8), 3) AS payment, status, provider_payment_id FROM payments WHERE id BETWEEN p(11) AND p(15) ORDER BY id;
-- the reference of one that nothing moved is kept all the same, and audited
SELECT action_type, metadata - 'evidence' AS metadata FROM audit_logs WHERE entity_id = p(12);
-- of another provider it is another payment
CALL add_payment(16, provider => 'stripe', ref => 'pay_16');
SELECT * FROM rp('payment.captured', 'pay_16', 16, order_id => 'order_16');
-- of an order that was tried several times, the newest that is not paid
CALL add_payment(17, 'failed', ref => 'pay_17');
CALL add_payment(18, booking => 17);
CALL add_payment(19, 'completed', ref => 'pay_19');
UPDATE payments SET order_id = 'order_17', created_at = now() + (CASE id WHEN p(17) THEN 1 WHEN p(18) THEN 2 ELSE 3 END) * interval '1 s' WHERE id IN (p(17), p(18), p(19));
SELECT * FROM rp('payment.captured', 'pay_18', order_id => 'order_17');
-- one that has another reference is another one
CALL add_payment(85);
CALL add_payment(86, ref => 'pay_86', booking => 85);
UPDATE payments SET order_id = 'order_85', created_at = now() + (CASE id WHEN p(85) THEN 1 ELSE 2 END) * interval '1 s' WHERE id IN (p(85), p(86));
SELECT * FROM rp('payment.captured', 'pay_85', order_id => 'order_85');
SELECT right(left(id::text, 8), 3) AS payment, status, provider_payment_id FROM payments WHERE id IN (p(85), p(86)) ORDER BY id;
-- and a refund is of what was paid
CALL add_payment(87, 'completed');
CALL add_payment(88, booking => 87);
UPDATE payments SET order_id = 'order_87', created_at = now() + (CASE id WHEN p(87) THEN 1 ELSE 2 END) * interval '1 s' WHERE id IN (p(87), p(88));
SELECT * FROM rp('refund.processed', 'pay_87', NULL, 1000, order_id => 'order_87');
SELECT right(left(id::text, 8), 3) AS payment, status, provider_payment_id FROM payments WHERE id IN (p(87), p(88)) ORDER BY id;
-- a reference that several have says nothing, but together with notes
CALL add_payment(20, ref => 'pay_20');
CALL add_payment(21, ref => 'pay_20');
SELECT * FROM rp('payment.captured', 'pay_20');
SELECT * FROM rp('payment.captured', 'pay_20', 21);
SELECT right(left(id::text, 8), 3) AS payment, status FROM payments WHERE id IN (p(20), p(21)) ORDER BY id;
-- which is over once no other payment of this provider has it
CALL add_payment(89, ref => 'pay_89');
CALL add_payment(90, ref => 'pay_89');
CALL add_payment(91, provider => 'cash', ref => 'pay_89');
SELECT * FROM rp('payment.captured', 'pay_89');
SELECT id, closed FROM worklist WHERE id IN ('089', '090');
CALL cusown_run_job('retry_parked_webhooks');
SELECT id, closed FROM worklist WHERE id IN ('089', '090');
UPDATE payments SET provider_payment_id = 'pay_90' WHERE id = p(90);
CALL cusown_run_job('retry_parked_webhooks');
SELECT id, closed FROM worklist WHERE id IN ('089', '090');

-- a refund of one that was verified by hand brings it, an attempt that failed does not
CALL add_payment(22, 'completed');
SELECT * FROM rp('payment.failed', 'pay_22', 22);
SELECT * FROM rp('payment.authorized', 'pay_22', 22);
SELECT right(left(id::text, 8), 3) AS payment, status, provider_payment_id FROM payments WHERE id = p(22);
SELECT * FROM rp('refund.processed', 'pay_22b', 22, 400);
SELECT right(left(id::text, 8), 3) AS payment, status, provider_payment_id FROM payments WHERE id = p(22);

-- ---------- what does not fit ----------
CALL add_payment(31);
SELECT * FROM rp('payment.captured', 'pay_31', 31, amount => '999');
SELECT * FROM rp('payment.captured', 'pay_31', 31, amount => 'null');
SELECT * FROM rp('payment.captured', 'pay_31', 31, currency => 'USD');
SELECT * FROM rp('payment.captured', 'pay_31', 31, currency => 'inr');
SELECT * FROM rp('refund.processed', 'pay_31', 31, 1001);
SELECT * FROM state(31);
SELECT * FROM inbox WHERE outcome = 'mismatch';
SELECT * FROM worklist;
-- a refund of which nobody tells how much is not one of all
CALL add_payment(33, 'completed', ref => 'pay_33');
SELECT * FROM deliver('razorpay', '{"event": "refund.processed", "payload": {"payment": {"entity": {"id": "pay_33", "amount": 1000, "currency": "INR"}}, "refund": {"entity": {"id": "rfnd_33", "amount": 100}}}}');
SELECT * FROM state(33);
CALL cusown_run_job('retry_parked_webhooks');
SELECT kind, closed FROM worklist WHERE id = '033';
SELECT * FROM rp('refund.processed', 'pay_33', 33, 1000);
CALL cusown_run_job('retry_parked_webhooks');
SELECT kind, closed FROM worklist WHERE id = '033';
-- what is mended is replayed, and leaves the worklist
CALL add_payment(32);
SELECT * FROM rp('payment.captured', 'pay_32', 32, amount => '900');
SELECT max(id) AS event FROM cusown_ops.webhook_inbox \gset
SELECT outcome, http_status, detail FROM cusown_webhook_replay(:event);
UPDATE payments SET amount_cents = 900 WHERE id = p(32);
SELECT outcome, http_status, detail FROM cusown_webhook_replay(:event, true);
SELECT * FROM state(32);
SELECT outcome, http_status, detail FROM cusown_webhook_replay(:event);
SELECT outcome, http_status, detail FROM cusown_webhook_replay(:event);
SELECT * FROM state(32);
CALL cusown_run_job('retry_parked_webhooks');
SELECT id, kind, closed FROM worklist WHERE kind = 'webhook_mismatch';

-- ---------- paid twice ----------
-- one booking, two payments
CALL add_payment(41, ref => 'pay_41');
CALL add_payment(42, booking => 41, ref => 'pay_42');
SELECT * FROM rp('payment.captured', 'pay_41');
SELECT * FROM rp('payment.captured', 'pay_42');
SELECT * FROM worklist WHERE kind = 'duplicate_capture';
SELECT * FROM rp('refund.processed', 'pay_41', NULL, 400);
SELECT * FROM worklist WHERE kind = 'duplicate_capture';
SELECT * FROM rp('refund.processed', 'pay_41', NULL, 1000);
SELECT * FROM worklist WHERE kind = 'duplicate_capture';
-- as well where a refund is what comes first
CALL add_payment(46, ref => 'pay_46');
CALL add_payment(47, booking => 46, ref => 'pay_47');
SELECT * FROM rp('payment.captured', 'pay_46');
SELECT * FROM rp('refund.processed', 'pay_47', NULL, 400);
SELECT * FROM worklist WHERE id IN ('046', '047');
SELECT * FROM rp('refund.processed', 'pay_47', NULL, 1000);
SELECT * FROM worklist WHERE id IN ('046', '047');
-- one payment, tried again under another reference: what that did takes nothing back
CALL add_payment(43, ref => 'pay_43');
SELECT * FROM rp('payment.authorized', 'pay_43b', 43);
SELECT * FROM rp('payment.failed', 'pay_43b', 43);
SELECT * FROM rp('payment.captured', 'pay_43', 43);
SELECT * FROM rp('payment.failed', 'pay_43b', 43, order_id => 'again');
SELECT * FROM rp('payment.captured', 'pay_43b', 43);
SELECT * FROM state(43);
SELECT * FROM worklist WHERE kind = 'duplicate_capture' AND NOT closed;
SELECT * FROM rp('refund.processed', 'pay_43b', 43, 500);
CALL cusown_run_job('retry_parked_webhooks');
SELECT * FROM worklist WHERE kind = 'duplicate_capture' AND NOT closed;
-- a refund of which nobody tells how much may be one of a part
SELECT * FROM deliver('razorpay', convert_to('{"event": "refund.processed", "payload": {"payment": {"entity": {"id": "pay_43b", "amount": 1000, "currency": "INR"}}}}', 'UTF8'));
CALL cusown_run_job('retry_parked_webhooks');
SELECT * FROM worklist WHERE kind = 'duplicate_capture' AND NOT closed;
SELECT * FROM rp('refund.processed', 'pay_43b', 43, 1000);
CALL cusown_run_job('retry_parked_webhooks');
SELECT * FROM worklist WHERE kind = 'duplicate_capture' AND NOT closed;
SELECT * FROM state(43);
-- a refund without notes is known by the event before it, and closes at once
CALL add_payment(49, 'processing', 'stripe');
CREATE FUNCTION stripe(event_id text, type text, ref text, n int DEFAULT NULL, refunded int DEFAULT 0) RETURNS bytea LANGUAGE sql AS $$
  SELECT convert_to(jsonb_build_object('id', event_id, 'type', type, 'data', jsonb_build_object('object', jsonb_build_object(
    'id', ref, 'payment_intent', ref, 'amount', 1000.0, 'amount_received', 1000, 'amount_refunded', refunded, 'currency', 'inr',
    'metadata', CASE WHEN n IS NULL THEN '{}' ELSE jsonb_build_object('payment', p(n)) END)))::text, 'UTF8')
$$;
SELECT outcome, payment, detail FROM deliver('stripe', stripe('evt_46a', 'payment_intent.succeeded', 'pi_46', 49));
SELECT outcome, payment, detail FROM deliver('stripe', stripe('evt_46b', 'payment_intent.succeeded', 'pi_46b', 49));
SELECT * FROM worklist WHERE kind = 'duplicate_capture' AND NOT closed;
SELECT outcome, payment, detail FROM deliver('stripe', stripe('evt_46c', 'charge.refunded', 'pi_46b', NULL, 400));
SELECT count(*) FROM worklist WHERE kind = 'duplicate_capture' AND NOT closed;
SELECT outcome, payment, detail FROM deliver('stripe', stripe('evt_46d', 'charge.refunded', 'pi_46b', NULL, 1000));
SELECT count(*) FROM worklist WHERE kind = 'duplicate_capture' AND NOT closed;
SELECT outcome, payment, detail FROM deliver('stripe', stripe('evt_46e', 'charge.refunded', 'pi_47', NULL, 1000));
SELECT * FROM state(49);
-- two that come too early, of which the second is known by what the first brings
SELECT outcome, payment FROM deliver('stripe', stripe('evt_92a', 'payment_intent.succeeded', 'pi_92', 92));
SELECT outcome, payment FROM deliver('stripe', stripe('evt_92b', 'charge.refunded', 'pi_92', NULL, 1000));
CALL add_payment(92, provider => 'stripe');
UPDATE cusown_ops.webhook_inbox SET next_try = now(), received_at = now() - interval '4 days' WHERE provider_ref = 'pi_92';
CALL cusown_run_job('retry_parked_webhooks');
SELECT event_type, outcome, payment FROM inbox WHERE provider_ref = 'pi_92';
SELECT * FROM state(92);
-- money for one that was given up, by whatever reference
CALL add_payment(44, 'failed', ref => 'pay_44');
SELECT * FROM rp('payment.captured', 'pay_44b', 44);
SELECT * FROM state(44);
-- for nothing
CALL add_payment(45, booking_status => 'cancelled');
SELECT * FROM rp('payment.captured', 'pay_45', 45);
SELECT * FROM worklist WHERE id = '045';
SELECT * FROM state(45);

-- ---------- too early ----------
SELECT * FROM rp('payment.captured', 'pay_51', 51);
SELECT * FROM rp('payment.failed', 'pay_51', 51);
SELECT * FROM rp('payment.captured', 'pay_51', 51);
SELECT provider, outcome, event_type, events, next_try > now() AS waits FROM cusown_webhook_backlog();
CALL add_payment(51);
-- the provider sends it again: that is a try
SELECT * FROM rp('payment.captured', 'pay_51', 51);
SELECT * FROM rp('payment.captured', 'pay_51', 51);
SELECT webhook_signature IS NOT NULL AS signature FROM payments WHERE id = p(51);
-- the other one waits for its turn
CALL cusown_run_job('retry_parked_webhooks');
SELECT event_type, outcome, tries FROM cusown_ops.webhook_inbox WHERE provider_ref = 'pay_51' ORDER BY id;
CREATE PROCEDURE make_due() LANGUAGE sql AS $$ UPDATE cusown_ops.webhook_inbox SET next_try = now() WHERE outcome = 'parked' $$;
CALL make_due();
CALL cusown_run_job('retry_parked_webhooks');
SELECT event_type, outcome, tries FROM cusown_ops.webhook_inbox WHERE provider_ref = 'pay_51' ORDER BY id;
SELECT * FROM state(51);
-- less and less often, and then a human must look
SELECT * FROM rp('payment.captured', 'pay_52', 52);
UPDATE cusown_ops.webhook_inbox SET tries = 4 WHERE provider_ref = 'pay_52';
CALL make_due();
CALL cusown_run_job('retry_parked_webhooks');
SELECT outcome, tries, (SELECT next_try - interval '16 minutes' BETWEEN started_at AND last_batch_at FROM cusown_ops.job_run ORDER BY id DESC LIMIT 1) AS sixteen_minutes
FROM cusown_ops.webhook_inbox WHERE provider_ref = 'pay_52';
UPDATE cusown_ops.webhook_inbox SET tries = 40 WHERE provider_ref = 'pay_52';
CALL make_due();
CALL cusown_run_job('retry_parked_webhooks');
SELECT outcome, tries, (SELECT next_try - interval '1 hour' BETWEEN started_at AND last_batch_at FROM cusown_ops.job_run ORDER BY id DESC LIMIT 1) AS an_hour
FROM cusown_ops.webhook_inbox WHERE provider_ref = 'pay_52';
UPDATE cusown_ops.webhook_inbox SET received_at = now() - interval '73 hours' WHERE provider_ref = 'pay_52';
CALL make_due();
CALL cusown_run_job('retry_parked_webhooks');
SELECT outcome, tries, next_try FROM cusown_ops.webhook_inbox WHERE provider_ref = 'pay_52';
SELECT entity, finding, closed FROM worklist WHERE kind = 'unmatched_webhook';
SELECT provider, outcome, event_type, events, next_try FROM cusown_webhook_backlog() WHERE outcome = 'unmatched';
SELECT * FROM rp('payment.captured', 'pay_52', 52);
CALL add_payment(52);
SELECT max(id) AS event FROM cusown_ops.webhook_inbox WHERE provider_ref = 'pay_52' \gset
SELECT outcome, http_status, detail FROM cusown_webhook_replay(:event);
CALL cusown_run_job('retry_parked_webhooks');
SELECT entity, finding, closed FROM worklist WHERE kind = 'unmatched_webhook';
SELECT * FROM cusown_webhook_backlog() WHERE outcome = 'unmatched';
-- one that the application refuses does not stop the others
SELECT n, (rp('payment.captured', 'pay_' || n, n)).outcome FROM generate_series(53, 56) n;
CALL add_payment(53);
CALL add_payment(54);
CALL add_payment(55);
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no, customer +91'; END $$;
CREATE TRIGGER refuse BEFORE UPDATE ON payments FOR EACH ROW WHEN (NEW.id = 'f0000054-0000-0000-0000-000000000000' AND NEW.status = 'completed') EXECUTE FUNCTION refuse();
CALL make_due();
CALL cusown_run_job('retry_parked_webhooks');
SELECT provider_ref, outcome, tries, detail FROM cusown_ops.webhook_inbox WHERE provider_ref BETWEEN 'pay_53' AND 'pay_56' ORDER BY id;
SELECT entity, finding, closed FROM worklist WHERE kind = 'webhook_failed';
SELECT changed, attention, looked_at, batches, status FROM cusown_ops.job_run WHERE job = 'retry_parked_webhooks' ORDER BY id DESC LIMIT 1;
-- one that brings the event once more, while it is under way
CREATE FUNCTION again() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  r record := rp('payment.captured', 'pay_58', 58);
BEGIN
  RAISE WARNING 'again: %', r;
  RETURN NULL;
END
$$;
CALL add_payment(58);
CREATE TRIGGER again AFTER UPDATE ON payments FOR EACH ROW WHEN (NEW.id = 'f0000058-0000-0000-0000-000000000000') EXECUTE FUNCTION again();
SELECT * FROM rp('payment.captured', 'pay_58', 58);
DROP TRIGGER again ON payments;
-- an error is the caller's: nothing is kept, and the provider sends it again
CALL add_payment(57);
CREATE TRIGGER refuse_57 BEFORE UPDATE ON payments FOR EACH ROW WHEN (NEW.id = 'f0000057-0000-0000-0000-000000000000') EXECUTE FUNCTION refuse();
SELECT * FROM rp('payment.captured', 'pay_57', 57); -- fails
SELECT count(*) FROM cusown_ops.webhook_inbox WHERE provider_ref = 'pay_57';
DROP TRIGGER refuse ON payments;
DROP TRIGGER refuse_57 ON payments;
SELECT * FROM rp('payment.captured', 'pay_57', 57);
CALL make_due();
CALL cusown_run_job('retry_parked_webhooks');
SELECT entity, closed FROM worklist WHERE kind = 'webhook_failed';
SELECT * FROM state(54);

-- ---------- other providers ----------
CALL add_payment(61, 'initiated', 'stripe');
SELECT * FROM deliver('stripe', convert_to(jsonb_build_object('id', 'evt_1', 'type', 'payment_intent.processing', 'data', jsonb_build_object('object',
  jsonb_build_object('id', 'pi_61', 'amount', 1000, 'amount_received', 0, 'currency', 'inr', 'metadata', jsonb_build_object('payment_id', p(61)))))::text, 'UTF8'));
SELECT * FROM deliver('stripe', convert_to(jsonb_build_object('id', 'evt_2', 'type', 'payment_intent.succeeded', 'data', jsonb_build_object('object',
  jsonb_build_object('id', 'pi_61', 'amount', 1000, 'amount_received', 1000, 'currency', 'inr')))::text, 'UTF8'));
SELECT * FROM deliver('stripe', convert_to(jsonb_build_object('id', 'evt_2', 'type', 'payment_intent.succeeded')::text, 'UTF8'));
SELECT * FROM deliver('stripe', convert_to(jsonb_build_object('id', 'evt_3', 'type', 'payment_intent.payment_failed', 'data', jsonb_build_object('object',
  jsonb_build_object('id', 'pi_61', 'amount', 1000, 'currency', 'inr')))::text, 'UTF8'));
SELECT * FROM deliver('stripe', convert_to(jsonb_build_object('id', 'evt_4', 'type', 'charge.refunded', 'data', jsonb_build_object('object',
  jsonb_build_object('id', 'ch_61', 'payment_intent', 'pi_61', 'amount', 1000, 'amount_refunded', 1000, 'currency', 'inr')))::text, 'UTF8'));
SELECT * FROM state(61);
-- a part of what was asked for is not what was asked for
CALL add_payment(62, 'initiated', 'stripe', 'pi_62');
SELECT * FROM deliver('stripe', convert_to(jsonb_build_object('id', 'evt_5', 'type', 'payment_intent.succeeded', 'data', jsonb_build_object('object',
  jsonb_build_object('id', 'pi_62', 'amount', 1000, 'amount_received', 600, 'currency', 'inr')))::text, 'UTF8'));
CALL add_payment(63, 'initiated', 'upi');
UPDATE payments SET transaction_id = 'txn_63' WHERE id = p(63);
SELECT * FROM deliver('upi', '{"status": "failed", "transaction_id": "txn_63", "amount": 1000}');
SELECT * FROM deliver('upi', '{"status": "success", "transaction_id": "txn_63", "amount": 1000, "currency": "INR"}');
SELECT * FROM state(63);
-- one that an owner adds, and an event that an owner reads otherwise
INSERT INTO cusown_ops.webhook_provider VALUES ('webhook_app', 'cash', 'standard', '$.kind', NULL, 'Webhook-Id');
INSERT INTO cusown_ops.webhook_event (app_schema, provider, event_type, event, provider_ref, payment_ids, amount)
VALUES ('webhook_app', 'cash', 'paid', 'verify', '$.ref', '{$.for[*]}', '$.rupees * 100'),
       ('webhook_app', 'cash', 'noted', NULL, '$.ref', '{}', NULL),
       ('webhook_app', 'cash', 'returned', 'refund', '$.ref', '{}', NULL),
       ('webhook_app', 'razorpay', 'payment.downtime.started', 'fail', '$.payload.payment.entity.id', '{}', NULL);
INSERT INTO cusown_ops.webhook_provider VALUES ('webhook_app', 'odd', 'unknown', '$', NULL, NULL); -- fails
INSERT INTO cusown_ops.webhook_provider VALUES ('webhook_app', 'odd', 'standard', '$..', NULL, NULL); -- fails
SELECT count(*) FROM cusown_set_webhook_secret('cash', 'secret');
CALL add_payment(64, 'initiated', 'cash');
SELECT * FROM deliver('cash', convert_to(jsonb_build_object('kind', 'paid', 'ref', 'till-1', 'rupees', 10, 'for', jsonb_build_array('nobody', p(64)))::text, 'UTF8'), 'till_1');
SELECT * FROM deliver('cash', '{"kind": "noted", "ref": "till-1"}', 'till_2');
SELECT * FROM deliver('cash', '{"kind": "paid"}', 'till_1');
SELECT * FROM deliver('cash', '{"kind": "returned", "ref": "till-1"}', 'till_3');
SELECT * FROM state(64);
-- what is told of refunds without the amount, or as the whole, does not fail for ever
INSERT INTO cusown_ops.webhook_event (app_schema, provider, event_type, event, provider_ref, refunded)
VALUES ('webhook_app', 'cash', 'returned so far', 'refund', '$.ref', '$.back');
CALL add_payment(66, 'completed', 'cash', 'till-66');
SELECT * FROM deliver('cash', '{"kind": "returned so far", "ref": "till-66", "back": 1001}', 'till_66');
SELECT * FROM deliver('cash', '{"kind": "returned so far", "ref": "till-66", "back": 400}', 'till_67');
SELECT * FROM deliver('cash', '{"kind": "returned so far", "ref": "till-66", "back": 1000}', 'till_68');
SELECT * FROM state(66);
CALL add_payment(67, 'initiated', 'cash', 'till-67');
UPDATE payments SET amount_cents = 1050 WHERE id = p(67);
SELECT * FROM deliver('cash', '{"kind": "paid", "ref": "till-67", "rupees": 10.50}', 'till_69');
SELECT * FROM deliver('cash', '{"kind": "paid", "ref": "till-67", "rupees": 10.505}', 'till_70');
-- a late capture is one, by whatever name
INSERT INTO cusown_ops.webhook_event (app_schema, provider, event_type, event, provider_ref, payment_ids, amount)
VALUES ('webhook_app', 'cash', 'found', 'late_capture', '$.ref', '{$.for}', '$.rupees * 100');
CALL add_payment(68, 'expired', 'cash', 'till-68');
SELECT * FROM deliver('cash', '{"kind": "found", "ref": "till-68"}', 'till_71');
SELECT * FROM deliver('cash', '{"kind": "found", "ref": "till-68", "rupees": 10}', 'till_72');
SELECT * FROM deliver('cash', convert_to(jsonb_build_object('kind', 'found', 'ref', 'till-69', 'rupees', 10, 'for', p(68))::text, 'UTF8'), 'till_73');
SELECT * FROM state(68);
CALL add_payment(65, ref => 'pay_65');
SELECT * FROM rp('payment.downtime.started', 'pay_65');
DELETE FROM cusown_ops.webhook_event WHERE provider = 'razorpay';
SELECT * FROM rp('payment.downtime.started', 'pay_65', 65);
UPDATE cusown_ops.webhook_event SET event = 'no such event' WHERE event_type = 'paid';
SELECT * FROM deliver('cash', convert_to(jsonb_build_object('kind', 'paid', 'ref', 'till-1', 'rupees', 10)::text, 'UTF8'), 'till_4');
SELECT app_schema, provider, event_type, event FROM cusown_ops.webhook_machine ORDER BY provider, event_type;

-- ---------- bodies and their time ----------
SELECT count(*) = (SELECT count(*) FROM inbox) AS each FROM cusown_ops.webhook_body;
SELECT convert_from(body, 'UTF8') FROM cusown_ops.webhook_body WHERE convert_from(body, 'UTF8') LIKE '%noted%';
SET cusown_ops.webhook_retention = '1d';
UPDATE cusown_ops.webhook_body SET at = now() - interval '25 hours' WHERE inbox_id % 2 = 0;
SELECT pruned = (SELECT count(*) FROM inbox WHERE id % 2 = 0) AS half FROM cusown_prune_history();
SELECT count(*) = (SELECT count(*) FROM inbox WHERE id % 2 = 1) AS other_half FROM cusown_ops.webhook_body;
RESET cusown_ops.webhook_retention;
-- what is known stays known
SELECT outcome, count(*) FROM (SELECT (deliver('razorpay', razorpay('payment.captured', 'pay_' || n, n))).* FROM generate_series(1, 7) n) d GROUP BY 1;
-- without its body an event is worked on all the same
SELECT * FROM rp('payment.captured', 'pay_71', 71);
SELECT max(id) AS event FROM cusown_ops.webhook_inbox \gset
DELETE FROM cusown_ops.webhook_body WHERE inbox_id = :event;
CALL add_payment(71);
SELECT outcome, http_status, detail FROM cusown_webhook_replay(:event);
-- and with it by what the owner's rows say now
SELECT * FROM deliver('razorpay', '{"event": "gift.given", "to": "pay_72", "much": 1000}');
SELECT max(id) AS event FROM cusown_ops.webhook_inbox \gset
INSERT INTO cusown_ops.webhook_event (app_schema, provider, event_type, event, provider_ref, amount)
VALUES ('webhook_app', 'razorpay', 'gift.given', 'verify', '$.to', '$.much');
CALL add_payment(72, ref => 'pay_72');
SELECT outcome, http_status, detail FROM cusown_webhook_replay(:event);
SELECT event_type, event, provider_ref, amount, outcome FROM cusown_ops.webhook_inbox WHERE id = :event;

-- ---------- who may ----------
CREATE ROLE regress_webhook_app BYPASSRLS;
CREATE ROLE regress_webhook_blind;
SELECT count(*) > 0 AS asks FROM cusown_grant('regress_webhook_app', 'application');
SELECT count(*) > 0 AS asks FROM cusown_grant('regress_webhook_blind', 'application');
GRANT USAGE ON SCHEMA webhook_app, public TO regress_webhook_app, regress_webhook_blind;
GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA webhook_app TO regress_webhook_app, regress_webhook_blind;
CALL add_payment(81);
SET ROLE regress_webhook_app;
SELECT * FROM rp('payment.captured', 'pay_81', 81);
SELECT http FROM deliver('razorpay', '\x00', secret => 'wrong');
SELECT * FROM cusown_ops.webhook_body; -- fails
SELECT * FROM cusown_webhook_replay(1); -- fails
SET ROLE regress_webhook_blind;
SELECT * FROM rp('payment.captured', 'pay_81', 81, order_id => 'again'); -- fails
RESET ROLE;
-- no booking and no slot was ever changed
SELECT count(*) FROM bookings WHERE status <> CASE id WHEN b(45) THEN 'cancelled' ELSE 'pending' END;
SELECT count(*) FROM slots WHERE status <> 'available';

-- ---------- the facts of a case ----------
SELECT what, detail ->> 'outcome' AS outcome, detail ->> 'refunded' AS refunded FROM cusown_payment_facts(p(3)) WHERE source = 'webhook_inbox';
SELECT detail - 'id' AS detail FROM cusown_payment_facts(p(3)) WHERE source = 'webhook_inbox' LIMIT 1;

-- ---------- other names, fewer columns ----------
SELECT count(*) > 0 AS attached FROM cusown_attach('webhook_shop', :'minimal_mapping');
SET cusown_ops.app_schema = 'webhook_shop';
INSERT INTO webhook_shop.charge (ref, state, provider, provider_code, amount, currency, made_at)
VALUES (p(1), 'initiated', 'razorpay', 'pay_1', 1000, 'INR', now()), (p(2), 'pending', 'razorpay', NULL, 1000, 'INR', now());
-- a secret is one application's
SELECT * FROM rp('payment.captured', 'pay_1', 1);
SELECT count(*) FROM cusown_set_webhook_secret('razorpay', 'secret');
SELECT * FROM rp('payment.captured', 'pay_1', 1);
SELECT * FROM rp('payment.captured', 'pay_1', 1);
SELECT * FROM rp('payment.authorized', 'pay_1', 1);
SELECT * FROM rp('refund.processed', 'pay_1', 1, 400);
SELECT * FROM rp('refund.processed', 'pay_1', 1, 300);
SELECT * FROM rp('refund.processed', 'pay_1', 1, 1000);
SELECT * FROM rp('payment.captured', 'pay_2', 2, amount => '10');
SELECT * FROM rp('payment.captured', 'pay_2', 2, currency => 'USD');
SELECT * FROM rp('payment.authorized', 'pay_2', 2);
SELECT * FROM rp('payment.captured', 'pay_2', 2);
SELECT * FROM rp('payment.captured', 'pay_3', 3);
-- money for one in a status that the machine does not know is for a human
INSERT INTO webhook_shop.charge (ref, state, provider, provider_code, amount, currency, made_at)
VALUES (p(4), 'on hold', 'razorpay', 'pay_4', 1000, 'INR', now()), (p(5), NULL, 'razorpay', 'pay_5', 1000, 'INR', now());
SELECT * FROM rp('payment.failed', 'pay_4');
SELECT * FROM rp('payment.captured', 'pay_4');
SELECT * FROM rp('refund.processed', 'pay_5', NULL, 400);
SELECT * FROM rp('payment.captured', 'pay_5');
INSERT INTO cusown_ops.state_transition VALUES ('webhook_shop', 'payment', 'on hold', 'verify', 'completed');
SELECT outcome, http_status, detail FROM cusown_webhook_replay((SELECT id FROM cusown_ops.webhook_inbox WHERE app_schema = 'webhook_shop' AND provider_ref = 'pay_4' AND outcome = 'mismatch'));
CALL cusown_run_job('retry_parked_webhooks');
SELECT right(left(entity_id::text, 8), 3) AS payment, finding, closed_by IS NOT NULL AS closed FROM cusown_ops.attention WHERE app_schema = 'webhook_shop' AND entity_id IN (p(4), p(5));
DELETE FROM cusown_ops.attention WHERE app_schema = 'webhook_shop' AND entity_id IN (p(4), p(5));
DELETE FROM cusown_ops.state_transition WHERE app_schema = 'webhook_shop';
DELETE FROM webhook_shop.charge WHERE ref IN (p(4), p(5));
SELECT right(left(ref::text, 8), 3) AS ref, state, provider_code, hook_hash IS NOT NULL AS hash FROM webhook_shop.charge ORDER BY 1;
SELECT verb, detail ->> 'source' AS source, detail ->> 'event' AS event FROM webhook_shop.journal ORDER BY id;
SELECT kind, right(left(entity_id::text, 8), 3) AS payment, finding FROM cusown_ops.attention WHERE app_schema = 'webhook_shop';
SELECT provider, outcome, event_type, events FROM cusown_webhook_backlog();
INSERT INTO webhook_shop.charge (ref, state, provider, made_at) VALUES (p(3), 'initiated', 'razorpay', now());
UPDATE cusown_ops.webhook_inbox SET next_try = now() WHERE app_schema = 'webhook_shop' AND outcome = 'parked';
CALL cusown_run_job('retry_parked_webhooks');
SELECT state, provider_code FROM webhook_shop.charge WHERE ref = p(3);
-- an application that was detached is forgotten
SELECT count(*) > 0 AS detached FROM cusown_detach('webhook_shop');
RESET cusown_ops.app_schema;
UPDATE cusown_ops.webhook_inbox SET received_at = now() - interval '8 days' WHERE app_schema = 'webhook_shop';
UPDATE cusown_ops.webhook_body SET at = now() - interval '8 days' WHERE app_schema = 'webhook_shop';
UPDATE cusown_ops.webhook_rejected SET at = now() - interval '8 days' WHERE app_schema = 'webhook_shop';
SELECT more FROM cusown_prune_history();
SELECT (SELECT count(*) FROM cusown_ops.webhook_inbox WHERE app_schema = 'webhook_shop') AS events,
       (SELECT count(*) FROM cusown_ops.webhook_body WHERE app_schema = 'webhook_shop') AS bodies,
       (SELECT count(*) FROM cusown_ops.webhook_rejected WHERE app_schema = 'webhook_shop') AS rejected;
-- no payments: there is nothing to apply to
SELECT count(*) > 0 AS attached FROM cusown_attach('webhook_shop', jsonb_set(:'minimal_mapping', '{payments}', 'null'));
SET cusown_ops.app_schema = 'webhook_shop';
SELECT * FROM rp('payment.captured', 'pay_1', 1); -- fails
CALL cusown_run_job('retry_parked_webhooks');
RESET cusown_ops.app_schema;
SELECT count(*) > 0 AS detached FROM cusown_detach('webhook_shop');

\set ECHO none
SET client_min_messages = warning;
DROP SCHEMA webhook_app, webhook_shop CASCADE;
DROP EXTENSION cusown_ops;
REVOKE ALL ON SCHEMA public FROM regress_webhook_app, regress_webhook_blind;
DROP ROLE regress_webhook_app;
DROP ROLE regress_webhook_blind;
