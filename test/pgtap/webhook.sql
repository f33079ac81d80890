--
-- Webhooks on the reference schema and on one that has only what the runbooks
-- name: events of a booking's payments in every order, each of them twice, end in
-- one state; what comes before its payment ends there too; and whatever bytes come
-- with a good signature, or with a bad one, the answer is an outcome.
--
\set QUIET 1
\pset format unaligned
\pset tuples_only true
SET client_min_messages = warning;

CREATE SCHEMA tap;
CREATE EXTENSION IF NOT EXISTS pgtap SCHEMA tap;
ALTER EXTENSION pgtap SET SCHEMA tap;

\i :fixture/cusown_app.sql
\i :fixture/app_minimal.sql
CREATE EXTENSION cusown_ops;
SET search_path = public, tap;
SELECT count(*) > 0 FROM cusown_attach('public') \g /dev/null
SELECT count(*) > 0 FROM cusown_attach('shop', :'minimal_mapping') \g /dev/null

SELECT plan(93);

CREATE SCHEMA t;

-- Every secret here is one zero byte, so that HMAC's two pads need no arithmetic.
CREATE FUNCTION t.hmac(body bytea) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
  SELECT sha256(decode(repeat('5c', 64), 'hex') || sha256(decode(repeat('36', 64), 'hex') || body))
$$;
-- the headers that a body goes with
CREATE FUNCTION t.headers(p_provider text, p_body bytea, p_n int) RETURNS jsonb LANGUAGE sql STABLE AS $$
  SELECT CASE p_provider
    WHEN 'razorpay' THEN jsonb_build_object('x-razorpay-signature', encode(t.hmac(p_body), 'hex'), 'x-razorpay-event-id', 'e' || p_n)
    WHEN 'upi' THEN jsonb_build_object('x-upi-signature', encode(t.hmac(p_body), 'hex'))
    WHEN 'stripe' THEN jsonb_build_object('stripe-signature', format('t=%s,v1=%s', s.at, encode(t.hmac(convert_to(s.at || '.', 'UTF8') || p_body), 'hex')))
    ELSE jsonb_build_object('webhook-id', 'm' || p_n, 'webhook-timestamp', s.at, 'webhook-signature',
           'v1,' || encode(t.hmac(convert_to(format('m%s.%s.', p_n, s.at), 'UTF8') || p_body), 'base64')) END
  FROM (SELECT extract(epoch FROM now())::bigint::text AS at) s
$$;
SELECT is(cusown_verify_signature('upi', '\x00', 'body', jsonb_build_object('x-upi-signature', encode(t.hmac('body'), 'hex'))),
          true, 'the signatures of this test are good');

CREATE FUNCTION t.use(p_app text) RETURNS void LANGUAGE sql AS
$$ SELECT set_config('cusown_ops.app_schema', p_app, false) $$;
INSERT INTO cusown_ops.webhook_provider (app_schema, provider, scheme, event_type, event_id)
SELECT a, 'hooks', 'standard', '$.type', '$.id' FROM unnest('{public,shop}'::name[]) a;
INSERT INTO cusown_ops.webhook_event (app_schema, provider, event_type, event, provider_ref, payment_ids, amount, currency)
SELECT a, 'hooks', 'paid', 'verify', '$.ref', '{$.payment}', '$.amount', '$.currency' FROM unnest('{public,shop}'::name[]) a;
DO $$
DECLARE
  v_app text;
BEGIN
  FOREACH v_app IN ARRAY '{public,shop}'::text[] LOOP
    PERFORM t.use(v_app);
    PERFORM cusown_set_webhook_secret(p, '\x00') FROM unnest('{razorpay,stripe,upi}'::text[]) p;
    PERFORM cusown_set_webhook_secret('hooks', 'whsec_AA==');
  END LOOP;
END
$$;

--
-- The cast: a booking with two payments, as often as there is need, and a third one
-- that has the first one's reference at another provider
--

INSERT INTO businesses (id, salon_name, owner_name, whatsapp_number, opening_time, closing_time, slot_duration, booking_link)
VALUES (md5('salon')::uuid, 'Salon', 'Owner', '0', '09:00', '18:00', 60, 'salon');
INSERT INTO slots (id, business_id, date, start_time, end_time)
VALUES (md5('slot')::uuid, md5('salon')::uuid, '2030-01-01', '10:00', '11:00');
INSERT INTO shop.time_slot VALUES (md5('slot')::uuid, 'reserved', now(), now(), now());
-- as cusown_attach() advises
CREATE INDEX ON payments (provider_payment_id);
CREATE INDEX ON payments (order_id);
CREATE INDEX ON payments (transaction_id);
CREATE INDEX ON shop.charge (provider_code);
CREATE INDEX ON shop.charge (reservation_ref);
CREATE INDEX ON shop.charge (hook_hash);
CREATE INDEX ON shop.journal (object_ref);

CREATE FUNCTION t.id(p_app text, p_case text, p_which text) RETURNS uuid LANGUAGE sql IMMUTABLE AS
$$ SELECT md5(concat_ws(' ', p_app, p_case, p_which))::uuid $$;
CREATE TABLE t.payment (app text, name text, which text, id uuid PRIMARY KEY);
CREATE FUNCTION t.add_bookings(p_app text, p_names text[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF p_app = 'public' THEN
    INSERT INTO public.bookings (id, business_id, slot_id, customer_name, customer_phone, booking_id)
    SELECT t.id('public', n, 'booking'), md5('salon')::uuid, md5('slot')::uuid, n, '0', n FROM unnest(p_names) n;
  ELSE
    INSERT INTO shop.reservation (ref, state, slot_ref) SELECT t.id('shop', n, 'booking'), 'pending', md5('slot')::uuid FROM unnest(p_names) n;
  END IF;
END
$$;
CREATE FUNCTION t.add_payments(p_app text, p_names text[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO t.payment SELECT p_app, n, w, t.id(p_app, n, w) FROM unnest(p_names) n, unnest('{a,b,c}'::text[]) w;
  IF p_app = 'public' THEN
    INSERT INTO public.payments (id, booking_id, provider, provider_payment_id, amount_cents, status)
    SELECT p.id, t.id('public', p.name, 'booking'), CASE p.which WHEN 'c' THEN 'cash' ELSE 'razorpay' END::payment_provider,
           CASE p.which WHEN 'c' THEN 'pay_' || p.name || 'a' ELSE p.id::text END, 1000, 'processing'
      FROM t.payment p WHERE p.app = 'public' AND p.name = ANY (p_names);
    ANALYZE public.payments;
  ELSE
    INSERT INTO shop.charge (ref, reservation_ref, state, provider, provider_code, amount, currency, made_at)
    SELECT p.id, t.id('shop', p.name, 'booking'), 'processing', CASE p.which WHEN 'c' THEN 'cash' ELSE 'razorpay' END,
           CASE p.which WHEN 'c' THEN 'pay_' || p.name || 'a' END, 1000, 'INR', now()
      FROM t.payment p WHERE p.app = 'shop' AND p.name = ANY (p_names);
    ANALYZE shop.charge;
  END IF;
END
$$;

--
-- Events in every order
--

-- of the first payment; and of the second, which pays for the same booking
CREATE TABLE t.event (letter text, event_type text, which text, refunded int);
INSERT INTO t.event VALUES
  ('A', 'payment.authorized', 'a', NULL), ('C', 'payment.captured', 'a', NULL), ('F', 'payment.failed', 'a', NULL),
  ('P', 'refund.processed', 'a', 400), ('R', 'refund.processed', 'a', 1000), ('S', 'payment.captured', 'b', NULL);
CREATE TABLE t.ordering AS
WITH RECURSIVE o (name) AS (
  SELECT '' UNION ALL SELECT o.name || e.letter FROM o, t.event e WHERE o.name !~ e.letter)
SELECT name FROM o WHERE length(name) = 6;
SELECT is((SELECT count(*) FROM t.ordering), 720::bigint, 'every order of six events');

CREATE FUNCTION t.body(p_app text, p_name text, e t.event) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
  SELECT convert_to(jsonb_build_object('event', e.event_type, 'payload', jsonb_build_object('payment', jsonb_build_object('entity',
           jsonb_build_object('id', 'pay_' || p_name || e.which, 'amount', 1000, 'currency', 'INR', 'amount_refunded', coalesce(e.refunded, 0),
             'notes', jsonb_build_object('payment_id', t.id(p_app, p_name, e.which))))))::text, 'UTF8')
$$;

-- Each event comes twice: in its turn, and after that somewhere, under the same id
-- of the event or under another.
CREATE FUNCTION t.deliver(p_app text, p_names text[]) RETURNS TABLE (name text, letter text, is_again boolean, outcome text)
LANGUAGE plpgsql AS $$
DECLARE
  v record;
BEGIN
  PERFORM t.use(p_app);
  FOR v IN
    SELECT n AS name, e.letter, e AS event, again, t.body(p_app, n, e) AS body,
           concat_ws('-', n, e.letter, CASE WHEN again AND (x.h & 1) = 1 THEN 'other' END) AS event_id,
           CASE WHEN again THEN position(e.letter in n) + (x.h >> 1) % (7 - position(e.letter in n)) + 0.5
                ELSE position(e.letter in n) END AS place
      FROM unnest(p_names) n, t.event e, unnest('{f,t}'::boolean[]) again,
           LATERAL (SELECT hashtext(n || e.letter) & 65535 AS h) x
     ORDER BY n, place, e.letter
  LOOP
    name := v.name;
    letter := v.letter;
    is_again := v.again;
    SELECT w.outcome INTO outcome
      FROM cusown_webhook('razorpay', v.body, jsonb_build_object('X-Razorpay-Event-Id', v.event_id,
                            'X-Razorpay-Signature', encode(t.hmac(v.body), 'hex'))) w;
    RETURN NEXT;
  END LOOP;
END
$$;

-- all that the events have made: status, what was refunded, whether it has the
-- provider's reference, and a webhook's hash, how often it got where, and what is open
CREATE VIEW t.state AS
SELECT p.app, p.name, p.which, concat_ws(', ', coalesce(f.status::text, s.state), coalesce(f.refund_amount_cents, s.refunded) || ' refunded',
         coalesce(f.provider_payment_id, s.provider_code) = 'pay_' || p.name || translate(p.which, 'c', 'a'),
         coalesce(f.webhook_payload_hash, s.hook_hash) IS NOT NULL, coalesce(f.completed, s.completed) || ' x completed', coalesce(f.whole, s.whole) || ' x refunded',
         coalesce((SELECT string_agg(a.kind, ', ' ORDER BY a.kind) FROM cusown_ops.attention a
                    WHERE a.app_schema = p.app AND a.entity_id = p.id AND a.closed_at IS NULL), 'no worklist')) AS state
FROM t.payment p
LEFT JOIN LATERAL (
  SELECT f.*, (SELECT count(*) FROM public.payment_audit_logs l WHERE l.payment_id = p.id AND l.to_status = 'completed') AS completed,
         (SELECT count(*) FROM public.payment_audit_logs l WHERE l.payment_id = p.id AND l.to_status = 'refunded') AS whole
    FROM public.payments f WHERE f.id = p.id) f ON p.app = 'public'
LEFT JOIN LATERAL (
  SELECT s.*, (SELECT coalesce(sum(r.amount), 0) FROM cusown_ops.payment_refund r WHERE r.app_schema = 'shop' AND r.payment_id = p.id) AS refunded,
         (SELECT count(*) FROM shop.journal j WHERE j.object_ref = p.id AND j.detail ->> 'to' = 'completed') AS completed,
         (SELECT count(*) FROM shop.journal j WHERE j.object_ref = p.id AND j.detail ->> 'to' = 'refunded') AS whole
    FROM shop.charge s WHERE s.ref = p.id) s ON p.app = 'shop';
CREATE FUNCTION t.check_states(p_app text, p_names text[], p_what text) RETURNS SETOF text LANGUAGE sql AS $$
  SELECT set_eq(
    format('SELECT which, state, count(*) FROM t.state WHERE app = %L AND name = ANY (%L) GROUP BY 1, 2', p_app, p_names),
    format($q$VALUES ('a', 'refunded, 1000 refunded, t, t, 1 x completed, 1 x refunded, no worklist', %1$s::bigint),
                     ('b', 'completed, 0 refunded, t, t, 1 x completed, 0 x refunded, no worklist', %1$s),
                     ('c', 'processing, 0 refunded, t, f, 0 x completed, 0 x refunded, no worklist', %1$s)$q$, cardinality(p_names)),
    format('%s: %s', p_app, p_what))
$$;

SELECT array_agg(name) AS names FROM t.ordering \gset
CREATE TABLE t.delivered (app text, name text, letter text, is_again boolean, outcome text);
CREATE FUNCTION t.check_orders(p_app text, p_names text[]) RETURNS SETOF text LANGUAGE plpgsql AS $$
BEGIN
  PERFORM t.add_bookings(p_app, p_names);
  PERFORM t.add_payments(p_app, p_names);
  INSERT INTO t.delivered SELECT p_app, d.* FROM t.deliver(p_app, p_names) d;
  RETURN QUERY SELECT t.check_states(p_app, p_names, 'whatever the order, the events end in one state, with one set of effects');
  RETURN NEXT is_empty(format('SELECT * FROM t.delivered WHERE app = %L AND is_again <> (outcome = %L)', p_app, 'duplicate'),
                       p_app || ': what came again was a duplicate, under whatever id, and nothing else was');
  RETURN NEXT is((SELECT count(*) FROM cusown_ops.webhook_inbox i WHERE i.app_schema = p_app), 6 * 720::bigint,
                 p_app || ': each event is in the inbox once');
END
$$;
SELECT t.check_orders('public', :'names');
SELECT t.check_orders('shop', :'names');
-- what each event does where it stands in the order
SELECT set_eq(
  $$SELECT d.letter, d.outcome, bool_and(CASE d.letter
             WHEN 'A' THEN d.name !~ '[CFPR].*A' WHEN 'C' THEN d.name !~ '[PR].*C' WHEN 'F' THEN d.name !~ '[CPR].*F'
             WHEN 'P' THEN d.name !~ 'R.*P' ELSE true END) AS is_due
      FROM t.delivered d WHERE NOT d.is_again GROUP BY d.letter, d.outcome$$,
  $$VALUES ('A', 'ignored', true), ('A', 'stale', false), ('C', 'applied', true), ('C', 'stale', false), ('F', 'applied', true),
           ('F', 'stale', false), ('P', 'applied', true), ('P', 'stale', false), ('R', 'applied', true), ('S', 'applied', true)$$,
  'each event is applied where it leads on, and stale where it leads back');
SELECT is_empty(
  $$SELECT name FROM cusown_ops.attention a JOIN t.payment p ON p.id = a.entity_id
     WHERE kind = 'duplicate_capture' GROUP BY app, name HAVING count(*) > 1$$,
  'a booking that was paid twice was on the worklist once');
SELECT results_eq(
  $$SELECT app, count(*) FROM cusown_ops.attention a JOIN t.payment p ON p.id = a.entity_id
     WHERE kind = 'duplicate_capture' AND p.name ~ '(S.*[CP].*R|[CP].*S.*R)' GROUP BY app ORDER BY app$$,
  $$VALUES ('public', (SELECT count(*) FROM t.ordering WHERE name ~ '(S.*[CP].*R|[CP].*S.*R)')),
           ('shop', (SELECT count(*) FROM t.ordering WHERE name ~ '(S.*[CP].*R|[CP].*S.*R)'))$$,
  'and each was, until one of its payments was refunded');
SELECT is_empty($$SELECT id FROM public.bookings WHERE status <> 'pending' UNION ALL SELECT ref FROM shop.reservation WHERE state <> 'pending'$$,
                'no booking has moved');
SELECT is_empty('SELECT verify_audit_chain()', 'the chain of audit rows is unbroken');

--
-- Before their payments
--

SELECT setseed(0.42) \g /dev/null
SELECT array_agg(name || '-early' ORDER BY name) AS early FROM (SELECT name, row_number() OVER (ORDER BY name) AS n FROM t.ordering) o WHERE n % 12 = 0 \gset
CREATE FUNCTION t.come_early(p_app text, p_names text[]) RETURNS SETOF text LANGUAGE plpgsql AS $$
BEGIN
  PERFORM t.add_bookings(p_app, p_names);
  RETURN NEXT set_eq(format('SELECT outcome, is_again FROM t.deliver(%L, %L)', p_app, p_names), $q$VALUES ('parked', false), ('parked', true)$q$,
                     p_app || ': what comes before its payment is parked, and so is what comes again');
  PERFORM t.add_payments(p_app, p_names);
  -- the job takes them in an order of its own
  UPDATE cusown_ops.webhook_inbox SET next_try = now() - random() * interval '1 hour' WHERE app_schema = p_app AND outcome = 'parked';
END
$$;
SELECT t.come_early('public', :'early');
CALL cusown_run_job('retry_parked_webhooks');
SELECT t.check_states('public', :'early', 'the job brings them to the same state');
SELECT t.come_early('shop', :'early');
CALL cusown_run_job('retry_parked_webhooks');
SELECT t.check_states('shop', :'early', 'the job brings them to the same state');
SELECT is_empty('SELECT * FROM cusown_webhook_backlog()', 'nothing is left');

--
-- What fits and what does not
--

CREATE FUNCTION t.body_of(p_app text, p_name text, p_type text, p_entity jsonb, p_named text) RETURNS bytea LANGUAGE sql AS $$
  SELECT convert_to(jsonb_build_object('event', p_type, 'payload', jsonb_build_object('payment', jsonb_build_object('entity',
           '{"amount": 1000, "currency": "INR"}' || p_entity || jsonb_build_object('notes',
             CASE WHEN p_named IS NULL THEN '[]' ELSE jsonb_build_object('payment_id', t.id(p_app, p_name, p_named)) END))))::text, 'UTF8')
$$;
-- one event of a payment of the case p_name: what becomes of it, and of which payment
CREATE FUNCTION t.send(p_app text, p_name text, p_type text, p_entity jsonb, p_named text DEFAULT NULL, p_event_id text DEFAULT NULL) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
  v_body bytea := t.body_of(p_app, p_name, p_type, p_entity, p_named);
  v record;
BEGIN
  PERFORM t.use(p_app);
  SELECT * INTO v FROM cusown_webhook('razorpay', v_body, jsonb_strip_nulls(
    jsonb_build_object('x-razorpay-signature', encode(t.hmac(v_body), 'hex'), 'x-razorpay-event-id', p_event_id)));
  RETURN concat_ws(', ', v.outcome, v.http_status, (SELECT i.mismatch FROM cusown_ops.webhook_inbox i WHERE i.app_schema = p_app AND i.id = v.inbox_id),
                   (SELECT p.which FROM t.payment p WHERE p.id = v.payment_id));
END
$$;
CREATE FUNCTION t.set_reference(p_app text, p_name text, p_which text, p_ref text, p_status text DEFAULT 'processing') RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  UPDATE public.payments SET provider_payment_id = p_ref, status = p_status::payment_status WHERE p_app = 'public' AND id = t.id(p_app, p_name, p_which);
  UPDATE shop.charge SET provider_code = p_ref, state = p_status WHERE p_app = 'shop' AND ref = t.id(p_app, p_name, p_which);
END
$$;
SELECT t.add_bookings(a, ARRAY['amount', 'refund', 'currency', 'shared', 'retry', 'same', 'long', 'empty']),
       t.add_payments(a, ARRAY['amount', 'refund', 'currency', 'shared', 'retry', 'same', 'long', 'empty']) FROM unnest('{public,shop}'::text[]) a \g /dev/null
CREATE FUNCTION t.check_rules(a text) RETURNS SETOF text LANGUAGE plpgsql AS $$
BEGIN
  RETURN NEXT is(t.send(a, 'amount', 'payment.captured', '{"id": "pay_1", "amount": 999}', 'a'), 'mismatch, 200, amount, a', a || ': another amount');
  RETURN NEXT is(t.send(a, 'amount', 'payment.captured', '{"id": "pay_1", "amount": null}', 'a'), 'mismatch, 200, amount, a', a || ': a capture without an amount');
  RETURN NEXT is(t.send(a, 'amount', 'payment.captured', '{"id": "pay_1", "amount": 1000000000000000000}', 'a'), 'rejected, 400', a || ': an amount of 19 digits');
  RETURN NEXT is((SELECT state FROM t.state WHERE app = a AND name = 'amount' AND which = 'a') ~ '^processing, .* webhook_mismatch$', true, a || ': both move nothing, and are on the worklist');
  RETURN NEXT is(t.send(a, 'amount', 'payment.captured', '{"id": "pay_1"}', 'a'), 'applied, 200, a', a || ': the right amount');
  RETURN NEXT is(t.send(a, 'refund', 'refund.processed', '{"id": "pay_2", "amount_refunded": 1001}', 'a'), 'mismatch, 200, refund, a', a || ': refunds of more than the amount');
  RETURN NEXT is(t.send(a, 'currency', 'payment.captured', '{"id": "pay_3", "currency": "USD"}', 'a'), 'mismatch, 200, currency, a', a || ': another currency');
  RETURN NEXT is(t.send(a, 'currency', 'payment.captured', '{"id": "pay_3", "currency": "inr"}', 'a'), 'applied, 200, a', a || ': the same one in small letters');
  RETURN NEXT is(t.send(a, 'empty', 'payment.captured', '{"id": ""}', 'a') || (SELECT concat_ws(', ', (SELECT f.provider_payment_id <> '' FROM public.payments f WHERE f.id = p.id), (SELECT s.provider_code IS NULL FROM shop.charge s WHERE s.ref = p.id))
    FROM t.payment p WHERE p.app = a AND p.name = 'empty' AND p.which = 'a'), 'applied, 200, at', a || ': an empty reference is none');
  PERFORM t.set_reference(a, 'shared', 'a', 'pay_4'), t.set_reference(a, 'shared', 'b', 'pay_4', 'completed');
  RETURN NEXT is(left(t.send(a, 'shared', 'payment.captured', '{"id": "pay_4"}'), 24), 'mismatch, 200, reference', a || ': a reference that two payments have');
  RETURN NEXT is(t.send(a, 'shared', 'refund.processed', '{"id": "pay_4", "amount_refunded": 1}', 'b'), 'applied, 200, b', a || ': one of which is named');
  RETURN NEXT is(t.send(a, 'shared', 'payment.captured', '{"id": "pay_4"}', 'a'), 'applied, 200, a', a || ': or the other');
  PERFORM t.set_reference(a, 'retry', 'a', 'pay_5', 'failed');
  RETURN NEXT is(t.send(a, 'retry', 'payment.authorized', '{"id": "pay_6"}', 'a'), 'ignored, 200, a', a || ': another attempt at a payment that has failed');
  RETURN NEXT is(t.send(a, 'retry', 'payment.captured', '{"id": "pay_6"}', 'a'), 'applied, 200, a', a || ': which is paid so');
  RETURN NEXT is(t.send(a, 'retry', 'payment.failed', '{"id": "pay_5"}', 'a'), 'ignored, 200, a', a || ': and that the first one failed takes nothing back');
  RETURN NEXT is(t.send(a, 'long', 'payment.authorized', jsonb_build_object('id', repeat('a', 255)), 'a', repeat('e', 255)), 'ignored, 200, a', a || ': ids of 255 bytes');
  RETURN NEXT is(t.send(a, 'long', 'payment.captured', jsonb_build_object('id', repeat('a', 256)), 'a'), 'rejected, 400', a || ': a longer one of the payment');
  RETURN NEXT is(t.send(a, 'long', 'payment.captured', jsonb_build_object('id', 'pay_7'), 'a', repeat('e', 256)), 'rejected, 400', a || ': a longer one of the event');
  RETURN NEXT is(t.send(a, 'long', 'payment.captured', jsonb_build_object('id', 'pay_7'), 'a', 'e'), 'applied, 200, a', a || ': which makes none a duplicate');
  PERFORM t.set_reference(a, 'same', 'a', 'pay_8');
  RETURN NEXT is(t.send(a, 'same', 'payment.captured', '{"id": "pay_8"}', NULL, 'same'), 'applied, 200, a', a || ': the same event of the other application is another one');
END
$$;
SELECT t.check_rules('public');
SELECT t.check_rules('shop');
-- what only the reference schema has
SELECT t.add_bookings('public', '{order,hash}'), t.add_payments('public', '{order,hash}') \g /dev/null
UPDATE payments SET order_id = 'order_1', status = CASE p.which WHEN 'a' THEN 'completed' ELSE 'failed' END::payment_status, created_at = now() - CASE p.which WHEN 'a' THEN 1 ELSE 2 END * interval '1 hour'
  FROM t.payment p WHERE p.app = 'public' AND p.id = payments.id AND p.name = 'order';
SELECT is(t.send('public', 'order', 'payment.captured', '{"id": "pay_9", "order_id": "order_1"}'), 'applied, 200, b', 'of the payments of an order the one that is not paid yet');
UPDATE payments SET webhook_payload_hash = encode(sha256(t.body_of('public', 'hash', 'payment.captured', '{"id": "pay_10"}', 'a')), 'hex')
 WHERE id = t.id('public', 'hash', 'b');
SELECT is(t.send('public', 'hash', 'payment.captured', '{"id": "pay_10"}', 'a'), 'applied, 200, a', 'a body that the application knew before');

--
-- Given up on, corrected, refused
--

SELECT t.use('public') \g /dev/null
SELECT t.add_bookings('public', '{late,poison}') \g /dev/null
CREATE VIEW t.waiting AS
SELECT i.event_id, i.outcome, i.tries, round(extract(epoch FROM i.next_try - now()) / 60) AS minutes,
       (SELECT string_agg(concat_ws(' ', a.kind, a.sqlstate, CASE WHEN a.closed_at IS NULL THEN 'open' ELSE 'closed' END), ', ' ORDER BY a.kind)
          FROM cusown_ops.attention a WHERE a.app_schema = 'public' AND a.entity = 'webhook_event' AND right(a.entity_id::text, 12) = lpad(to_hex(i.id), 12, '0')) AS worklist
  FROM cusown_ops.webhook_inbox i WHERE i.app_schema = 'public' AND i.event_id IN ('late', 'poison', 'added');
CREATE PROCEDURE t.make_due() LANGUAGE sql AS $$ UPDATE cusown_ops.webhook_inbox SET next_try = now() WHERE outcome = 'parked' $$;
CREATE FUNCTION t.replay(p_event_id text, p_dry_run boolean DEFAULT false) RETURNS text LANGUAGE sql AS $$
  SELECT concat_ws(', ', r.outcome, r.http_status) FROM cusown_ops.webhook_inbox i, cusown_webhook_replay(i.id, p_dry_run) r WHERE i.app_schema = 'public' AND i.event_id = p_event_id
$$;

SELECT is(t.send('public', 'late', 'payment.captured', '{"id": "pay_latea"}', 'a', 'late'), 'parked, 202', 'an event without a payment');
CREATE TABLE t.wait (n serial, tries int, minutes int);
INSERT INTO t.wait (tries, minutes) SELECT tries, minutes FROM t.waiting;
SELECT 'CALL t.make_due()', 'CALL cusown_run_job(''retry_parked_webhooks'')', 'INSERT INTO t.wait (tries, minutes) SELECT tries, minutes FROM t.waiting' FROM generate_series(1, 8) \gexec
SELECT results_eq('SELECT tries, minutes FROM t.wait ORDER BY n', 'VALUES (1, 1), (2, 2), (3, 4), (4, 8), (5, 16), (6, 32), (7, 60), (8, 60), (9, 60)',
                  'is tried after a minute, then after twice as long each time, at last once an hour');
UPDATE cusown_ops.webhook_inbox SET received_at = now() - interval '2 days 23 hours' WHERE event_id = 'late';
CALL t.make_due();
CALL cusown_run_job('retry_parked_webhooks');
SELECT results_eq('SELECT outcome, tries, worklist FROM t.waiting', $$VALUES ('parked', 10, NULL)$$, 'for three days');
UPDATE cusown_ops.webhook_inbox SET received_at = now() - interval '3 days 1 hour' WHERE event_id = 'late';
CALL t.make_due();
CALL cusown_run_job('retry_parked_webhooks');
CALL cusown_run_job('retry_parked_webhooks');
SELECT results_eq('SELECT outcome, tries, worklist FROM t.waiting', $$VALUES ('unmatched', 11, 'unmatched_webhook open')$$, 'and is a human''s then, and tried no more');
SELECT results_eq('SELECT provider, outcome, events, next_try FROM cusown_webhook_backlog()', $$VALUES ('razorpay', 'unmatched', 1::bigint, 'infinity'::timestamptz)$$, 'who finds it in the backlog');
SELECT t.add_payments('public', '{late}') \g /dev/null
SELECT is(t.replay('late', true), 'applied, 200', 'a replay that is only shown');
SELECT results_eq('SELECT outcome, tries FROM t.waiting', $$VALUES ('unmatched', 11)$$, 'does nothing');
SELECT is(t.replay('late'), 'applied, 200', 'a replay applies it');
SELECT is(t.replay('late'), 'duplicate, 200', 'once');
CALL cusown_run_job('retry_parked_webhooks');
SELECT results_eq('SELECT outcome, tries, worklist FROM t.waiting', $$VALUES ('applied', 12, 'unmatched_webhook closed')$$, 'and it is on the worklist no more');
SELECT is_empty($$SELECT * FROM t.state WHERE name = 'late' AND which = 'a' AND state <> 'completed, 0 refunded, t, t, 1 x completed, 0 x refunded, no worklist'$$, 'with one set of effects');

-- an owner's event
CREATE FUNCTION t.send_added() RETURNS text LANGUAGE sql AS $$
  SELECT w.outcome FROM (SELECT convert_to(format('{"id": "added", "type": "settled", "which": "%s"}', t.id('public', 'late', 'b')), 'UTF8') AS body) b,
         cusown_webhook('hooks', b.body, t.headers('hooks', b.body, 1)) w
$$;
SELECT is(t.send_added(), 'ignored', 'an event that nobody has told us of moves nothing');
UPDATE payments SET provider = 'cash', status = 'pending' WHERE id = t.id('public', 'late', 'b');
INSERT INTO cusown_ops.webhook_event (app_schema, provider, event_type, event, payment_ids) VALUES ('public', 'hooks', 'settled', 'process', '{$.which}');
SELECT is(t.replay('added'), 'parked, 202', 'when its meaning is known it is read again; the payment is another provider''s');
DELETE FROM cusown_ops.webhook_inbox WHERE event_id = 'added';

-- what the application refuses
SELECT is(t.send('public', 'poison', 'payment.captured', jsonb_build_object('id', 'pay_poison' || w), w, w), 'parked, 202', 'two events without payments') FROM unnest('{a,b}'::text[]) w;
UPDATE cusown_ops.webhook_inbox SET event_id = 'poison' WHERE event_id = 'a';
SELECT t.add_payments('public', '{poison}') \g /dev/null
CREATE FUNCTION t.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NEW.id = t.id('public', 'poison', 'a') THEN
    RAISE EXCEPTION 'refused' USING ERRCODE = 'ZZ002';
  END IF;
  RETURN NEW;
END
$$;
CREATE TRIGGER refuse BEFORE UPDATE ON payments FOR EACH ROW EXECUTE FUNCTION t.refuse();
CALL t.make_due();
CALL cusown_run_job('retry_parked_webhooks');
SELECT is((SELECT string_agg(concat_ws(' ', which, f.status), ', ' ORDER BY which) FROM t.payment p JOIN payments f USING (id) WHERE p.name = 'poison' AND p.which <> 'c'), 'a processing, b completed', 'one that is refused keeps no other back');
SELECT results_eq($$SELECT outcome, worklist FROM t.waiting WHERE event_id = 'poison'$$, $$VALUES ('parked', 'webhook_failed ZZ002 open')$$, 'and is on the worklist');
DROP TRIGGER refuse ON payments;
CALL t.make_due();
CALL cusown_run_job('retry_parked_webhooks');
CALL cusown_run_job('retry_parked_webhooks');
SELECT results_eq($$SELECT outcome, worklist FROM t.waiting WHERE event_id = 'poison'$$, $$VALUES ('applied', 'webhook_failed ZZ002 closed')$$, 'until it is applied');
SELECT is_empty(
  $$SELECT i.id FROM cusown_ops.webhook_inbox i LEFT JOIN cusown_ops.webhook_body b ON (b.app_schema, b.inbox_id) = (i.app_schema, i.id)
     WHERE sha256(b.body) IS DISTINCT FROM i.body_sha256$$, 'the bytes of every event are kept');

--
-- Whatever bytes
--

SELECT t.add_bookings(a, '{razorpay,stripe,upi,hooks}'), t.add_payments(a, '{razorpay,stripe,upi,hooks}') FROM unnest('{public,shop}'::text[]) a \g /dev/null
UPDATE payments f SET provider = p.name::payment_provider FROM t.payment p WHERE p.app = 'public' AND p.id = f.id AND p.which <> 'c' AND p.name IN ('stripe', 'upi');
UPDATE shop.charge f SET provider = p.name FROM t.payment p WHERE p.app = 'shop' AND p.id = f.ref AND p.which <> 'c' AND p.name IN ('stripe', 'upi', 'hooks');

-- bodies that each provider sends; :n is a number that no other body has
CREATE TABLE t.sample (provider text, body text);
INSERT INTO t.sample VALUES
  ('razorpay', '{"event": "payment.captured", "n": :n, "payload": {"payment": {"entity": {"id": "pay_x:n", "amount": 1000, "currency": "INR", "order_id": "order_:n", "notes": {"payment_id": ":id", "other": ["a", 1]}, "acquirer_data": {"upi_transaction_id": "t:n"}}}, "order": {"entity": {"receipt": ":id"}}}}'),
  ('razorpay', '{"event": "refund.processed", "n": :n, "payload": {"payment": {"entity": {"id": "pay_x:n", "amount": 1000, "currency": "INR", "amount_refunded": 100, "notes": []}}, "refund": {"entity": {"notes": {"payment_id": ":id"}}}}}'),
  ('stripe', '{"id": "evt_:n", "type": "payment_intent.succeeded", "data": {"object": {"id": "pi_x:n", "amount_received": 1000, "currency": "inr", "metadata": {"payment_id": ":id"}}}}'),
  ('stripe', '{"id": "evt_:n", "type": "charge.refunded", "data": {"object": {"payment_intent": "pi_x:n", "amount": 1000, "amount_refunded": 1000, "currency": "inr", "metadata": {}}}}'),
  ('upi', '{"event_id": "u:n", "status": "success", "transaction_id": "T:n", "order_id": "o:n", "payment_id": ":id", "amount": 1000, "currency": "INR", "notes": {"id": ":id"}}'),
  ('hooks', '{"id": "h:n", "type": "paid", "ref": "r:n", "payment": ":id", "amount": 1000, "currency": "INR"}');

CREATE FUNCTION t.pick(VARIADIC p_from text[]) RETURNS text LANGUAGE sql VOLATILE AS
$$ SELECT p_from[1 + floor(random() * cardinality(p_from))] $$;
CREATE FUNCTION t.below(p_n int) RETURNS int LANGUAGE sql VOLATILE AS $$ SELECT floor(random() * p_n)::int $$;

-- a value in the place of one that the sample has
CREATE FUNCTION t.replace_value(p_body text, p_value text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  v_values text[] := ARRAY(SELECT m[1] FROM regexp_matches(p_body, ': ("[^"]*"|[0-9]+)', 'g') m);
  v_old text := v_values[1 + t.below(cardinality(v_values))];
BEGIN
  RETURN replace(p_body, ': ' || v_old, ': ' || p_value);
END
$$;
CREATE FUNCTION t.nest(p_open text, p_close text, p_inner text, p_depth int) RETURNS text LANGUAGE sql AS
$$ SELECT repeat(p_open, p_depth) || p_inner || repeat(p_close, p_depth) $$;

CREATE FUNCTION t.mangle_body(p_kind text, p_body text) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  v bytea := convert_to(p_body, 'UTF8');
  v_at int;
BEGIN
  CASE p_kind
    WHEN 'truncated' THEN
      RETURN substr(v, 1, t.below(length(v)));
    WHEN 'flipped' THEN
      FOR i IN 0 .. t.below(5) LOOP
        v := set_byte(v, t.below(length(v)), t.below(256));
      END LOOP;
      RETURN v;
    WHEN 'zero' THEN
      RETURN convert_to(t.replace_value(p_body, t.pick('"\u0000"', '"a\u0000b"', '"\ud800"', '"\udc00\ud800"', '"\ufffe"', '"\u00"')), 'UTF8');
    WHEN 'not UTF-8' THEN
      v_at := t.below(length(v));
      RETURN substr(v, 1, v_at) || decode(t.pick('00', 'ff', 'c0af', 'eda080', 'f4908080', 'c3', 'e282', 'f0808080', 'fe'), 'hex') || substr(v, v_at + 1);
    WHEN 'deep' THEN
      RETURN convert_to(CASE t.below(6)
        WHEN 0 THEN repeat(t.pick('[', '{"a":', '[{"a":'), t.below(100000))
        WHEN 1 THEN t.nest('[', ']', '1', t.below(100000))
        WHEN 2 THEN t.nest('{"event":', '}', '"payment.captured"', t.below(30000))
        ELSE t.replace_value(p_body, t.nest('[', ']', '1', t.below(CASE t.below(2) WHEN 0 THEN 200 ELSE 20000 END))) END, 'UTF8');
    WHEN 'numbers' THEN
      RETURN convert_to(t.replace_value(p_body, t.pick('1e999999', '1e400', '-1e400', '1e-400', '1e131071', '1e131072', '-1', '-0', '0', '1000.0', '1000.5',
        '1e3', repeat('9', 30), repeat('9', 19), '9223372036854775807', '9223372036854775808', '999999999999999999', '0.' || repeat('0', 300) || '1',
        repeat('1', 2000), '01', '+1', 'NaN', 'Infinity', '1000', '"1000"', '" 1000"', '"1e3"', '"0x3e8"', '""')), 'UTF8');
    WHEN 'types' THEN
      RETURN convert_to(t.replace_value(t.replace_value(p_body, t.pick('null', 'true', '{}', '[]', '[1, "a"]', '{"a": 1}', '""', '7', '"a"', '[[[]]]', '[":id"]')),
                                        t.pick('null', 'false', '{}', '[]', '1.5', '"payment.captured"', '"refund.processed"')), 'UTF8');
    WHEN 'whole' THEN
      RETURN convert_to(t.pick('', ' ', E'\n', 'null', 'true', '1', '1e400', '""', '"a"', '[]', '{}', '[{}]', '[' || p_body || ']', p_body || p_body,
        p_body || ',', E'\uFEFF' || p_body, '{"event": ' || p_body || '}', '{"event": null}', 'event=payment.captured', '<a/>', '{}{}', '{"": ""}'), 'UTF8');
    WHEN 'keys' THEN
      RETURN convert_to(regexp_replace(p_body, '^\{', '{"event": ' || t.pick('7', '"payment.failed"', '{}', 'null', '"payment.captured"') || ', "type": '
        || t.pick('1', '"paid"', '[]') || ', "payload": ' || t.pick('1', '{}', '[]') || ', "data": [], "id": ' || t.pick('1', '[]', '"a"') || ', "": 1, '), 'UTF8');
    WHEN 'long' THEN
      RETURN convert_to(t.replace_value(p_body, '"' || repeat(t.pick('a', '9', 'é', '\"', '\u00e9', E'\U0001F600'),
        CASE t.below(20) WHEN 0 THEN 200000 ELSE (ARRAY[254, 255, 256, 257, 1000, 3000, 10000])[1 + t.below(7)] END) || '"'), 'UTF8');
    WHEN 'many' THEN
      RETURN convert_to(t.replace_value(p_body, '{' || (SELECT string_agg(format('"k%s": "%s"', i, CASE WHEN random() < 0.9 THEN gen_random_uuid()::text ELSE repeat('-', 36) END), ', ')
        FROM generate_series(1, 1 + t.below(100)) i) || '}'), 'UTF8');
    WHEN 'size' THEN
      RETURN v || convert_to(repeat(' ', 1048576 - length(v) - 1 + t.below(3)), 'UTF8');
    ELSE
      RETURN v;
  END CASE;
END
$$;

CREATE FUNCTION t.mangle_headers(p_kind text, p_headers jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
  v_name text := (SELECT k FROM jsonb_object_keys(p_headers) k ORDER BY random() LIMIT 1);
  v_value text := p_headers ->> v_name;
BEGIN
  CASE p_kind
    WHEN 'array' THEN
      RETURN p_headers || jsonb_build_object(v_name, CASE t.below(5) WHEN 0 THEN '[]'::jsonb WHEN 1 THEN jsonb_build_array(v_value)
        WHEN 2 THEN jsonb_build_array(v_value, v_value) WHEN 3 THEN jsonb_build_array(jsonb_build_array(v_value)) ELSE jsonb_build_array(NULL, v_value) END);
    WHEN 'twin' THEN
      RETURN p_headers || jsonb_build_object(CASE t.below(3) WHEN 0 THEN upper(v_name) WHEN 1 THEN initcap(v_name) ELSE v_name || ' ' END,
        CASE WHEN random() < 0.5 THEN v_value ELSE 'other' END);
    WHEN 'no string' THEN
      RETURN p_headers || jsonb_build_object(v_name, t.pick('null', 'true', '1', '1e400', '{}', '{"a": 1}')::jsonb);
    WHEN 'long' THEN
      RETURN p_headers || jsonb_build_object(v_name, repeat(t.pick(v_value || ',', 'a', '0', 'v1,', ' ', 'é'), (ARRAY[1, 16, 255, 256, 4096, 100000])[1 + t.below(6)]));
    WHEN 'cut' THEN
      RETURN p_headers || jsonb_build_object(v_name, CASE t.below(4) WHEN 0 THEN left(v_value, t.below(length(v_value))) WHEN 1 THEN right(v_value, t.below(length(v_value)))
        WHEN 2 THEN overlay(v_value placing t.pick('=', ',', '.', ' ', 'é', '0', 'g', '-', E'\n', '=,v1=') from 1 + t.below(length(v_value)) for t.below(3)) ELSE '' END);
    WHEN 'time' THEN
      RETURN replace(p_headers::text, extract(epoch FROM now())::bigint::text, t.pick('0', '-1', '99999999999999999999', '253402300800', '9223372036854775808', '1e9', '', ' 1', '0x7'))::jsonb;
    WHEN 'missing' THEN
      RETURN p_headers - v_name;
    WHEN 'whole' THEN
      RETURN t.pick('null', '1', '"a"', '[]', '{}', '[{}]', '[' || p_headers::text || ']', '{"": ""}', to_json(p_headers::text)::text)::jsonb;
    ELSE
      RETURN (SELECT jsonb_object_agg(upper(k), v) FROM jsonb_each(p_headers) e (k, v));
  END CASE;
END
$$;

CREATE TABLE t.mangled (n int, app text, provider text, what text, kind text, outcome text, http_status int, inbox_id bigint, error text, size int,
                        has_grown boolean, is_kept boolean, was_rejected boolean);
CREATE FUNCTION t.send_mangled(p_count int) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  v t.mangled;
  v_sample t.sample;
  v_body bytea;
  v_headers jsonb;
  v_before bigint;
  v_rejected int;
  v_place int;
  v_is_used boolean;
BEGIN
  FOR i IN 1 .. p_count LOOP
    v := NULL;
    v.n := i;
    v.app := t.pick('public', 'shop');
    PERFORM t.use(v.app);
    SELECT s.provider, replace(replace(s.body, ':n', i::text), ':id', t.id(v.app, s.provider, t.pick('a', 'b'))::text) INTO v_sample FROM t.sample s ORDER BY random() LIMIT 1;
    v.provider := v_sample.provider;
    v.what := t.pick('body', 'body', 'body', 'headers');
    IF v.what = 'body' THEN
      v.kind := t.pick('truncated', 'flipped', 'zero', 'not UTF-8', 'numbers', 'types', 'whole', 'keys', 'long', 'many', CASE t.below(4) WHEN 0 THEN 'deep' ELSE 'numbers' END,
                       CASE t.below(20) WHEN 0 THEN 'size' ELSE 'as it is' END);
      v_body := t.mangle_body(v.kind, v_sample.body);
      v_headers := t.headers(v.provider, v_body, i);
    ELSE
      v.kind := t.pick('array', 'twin', 'no string', 'long', 'cut', 'time', 'missing', 'whole', 'upper case');
      v_body := convert_to(v_sample.body, 'UTF8');
      v_headers := t.mangle_headers(v.kind, t.headers(v.provider, v_body, i));
    END IF;
    v.size := length(v_body);
    v_before := (SELECT last_value FROM cusown_ops.webhook_inbox_id_seq);
    SELECT q.last_value, q.is_called INTO v_rejected, v_is_used FROM cusown_ops.webhook_rejected_place q;
    BEGIN
      SELECT w.outcome, w.http_status, w.inbox_id INTO v.outcome, v.http_status, v.inbox_id FROM cusown_webhook(v.provider, v_body, v_headers) w;
    EXCEPTION WHEN OTHERS THEN
      v.error := concat_ws(' ', SQLSTATE, SQLERRM);
    END;
    -- what is parked may be so since another body came with its id
    v.is_kept := EXISTS (SELECT FROM cusown_ops.webhook_inbox x WHERE x.app_schema = v.app AND x.id = v.inbox_id AND x.provider = v.provider
                            AND (x.outcome = v.outcome OR v.outcome = 'duplicate') AND (x.body_sha256 = sha256(v_body) OR v.outcome IN ('duplicate', 'parked')));
    v.has_grown := (SELECT last_value FROM cusown_ops.webhook_inbox_id_seq) > v_before;
    v_place := (SELECT last_value FROM cusown_ops.webhook_rejected_place);
    v.was_rejected := (v_place <> v_rejected OR NOT v_is_used) AND
      EXISTS (SELECT FROM cusown_ops.webhook_rejected r WHERE r.app_schema = v.app AND r.place = v_place AND r.provider = v.provider
                 AND r.http_status = v.http_status AND r.body_sha256 = sha256(v_body) AND r.body_size = length(v_body));
    INSERT INTO t.mangled SELECT v.*;
  END LOOP;
END
$$;
SELECT setseed(0.42) \g /dev/null
SELECT t.send_mangled(10000) \g /dev/null
SELECT is((SELECT count(*) FROM t.mangled), 10000::bigint, 'ten thousand mangled deliveries');
SELECT is_empty('SELECT what, kind, error, min(n), count(*) FROM t.mangled WHERE error IS NOT NULL GROUP BY 1, 2, 3', 'none of them is an error');
SELECT is_empty(
  $$SELECT * FROM t.mangled WHERE (outcome, http_status) NOT IN (VALUES ('applied', 200), ('duplicate', 200), ('stale', 200), ('ignored', 200), ('mismatch', 200),
           ('parked', 202), ('rejected', 400), ('rejected', 401), ('rejected', 413))$$, 'each has an outcome, with its status');
SELECT is_empty($$SELECT * FROM t.mangled WHERE outcome = 'rejected' AND (inbox_id IS NOT NULL OR has_grown)$$, 'nothing of a rejected one is in the inbox');
SELECT is_empty($$SELECT * FROM t.mangled WHERE (outcome = 'rejected') <> was_rejected$$, 'and it, only it, is among the rejected ones');
SELECT is_empty($$SELECT * FROM t.mangled WHERE outcome <> 'rejected' AND NOT is_kept$$, 'what was taken is in the inbox');
SELECT is_empty($$SELECT * FROM t.mangled WHERE (size > 1048576) <> (coalesce(http_status, 0) = 413)$$, 'more than a megabyte is too much, and a megabyte is not');
SELECT is_empty($$SELECT * FROM t.mangled WHERE what = 'body' AND http_status = 401$$, 'what is signed well is never taken for forged');
SELECT is_empty($$SELECT * FROM t.mangled WHERE what = 'headers' AND http_status = 400 AND kind NOT IN ('long')$$, 'and no header makes a body unreadable, unless it is too long');
SELECT is_empty(
  $$SELECT m.kind FROM (VALUES ('not UTF-8'), ('truncated')) k (kind) JOIN t.mangled m USING (kind)
     WHERE m.outcome NOT IN ('rejected')$$, 'what is cut off or is no UTF-8 is rejected');
SELECT results_eq(
  $$SELECT kind FROM t.mangled WHERE what = 'body' GROUP BY kind HAVING bool_or(outcome <> 'rejected') ORDER BY kind$$,
  ARRAY['as it is', 'deep', 'flipped', 'keys', 'long', 'many', 'numbers', 'size', 'types', 'zero'], 'of each kind that leaves something to read some was taken');
SELECT is_empty(
  $$SELECT * FROM t.state WHERE name IN ('razorpay', 'stripe', 'upi', 'hooks')
     AND state !~ '^(processing, .* 0 x completed|(completed|partially_refunded|refunded), .* 1 x completed)'$$, 'no payment was completed twice');
SELECT cmp_ok((SELECT count(*) FROM t.state WHERE name IN ('razorpay', 'stripe', 'upi', 'hooks') AND state ~ '1 x completed'), '>', 10::bigint, 'most were, once');
SELECT is_empty('SELECT verify_audit_chain()', 'the chain of audit rows is still unbroken');

SELECT finish();
