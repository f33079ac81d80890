--
-- demo_webhook.sql
--      A payment provider's webhooks: twice, late, forged, too early.
--
\set QUIET on
\pset footer off
\pset null '-'
SET client_min_messages = warning;

\echo '29. The provider tells the application of payments by webhooks.  Its secret is'
\echo '    set once; then the route of the application hands on the bytes that came.'
\echo
\echo '   SELECT * FROM cusown_set_webhook_secret(''razorpay'', ''demo secret'');'
\echo
SELECT provider, valid_until FROM cusown_set_webhook_secret('razorpay', 'demo secret');
INSERT INTO payments (id, booking_id, provider, provider_payment_id, amount_cents, status)
SELECT md5('webhook ' || v.n)::uuid, b.id, 'razorpay', 'pending-' || v.n, 50000, 'processing'
FROM (VALUES (1, 'confirmed'), (2, 'cancelled')) v (n, booking_status),
LATERAL (SELECT id FROM bookings WHERE status = v.booking_status ORDER BY id DESC OFFSET v.n LIMIT 1) b;
CREATE TEMP TABLE booking_before AS SELECT id, status FROM bookings;
CREATE TEMP TABLE slot_before AS SELECT id, status FROM slots;

-- what the provider would send about payment n of ours, which it calls pay_Wn
CREATE FUNCTION pg_temp.body(event text, n int, refunded int DEFAULT 0) RETURNS bytea LANGUAGE sql AS $$
  SELECT convert_to(jsonb_build_object('event', event, 'payload', jsonb_build_object('payment', jsonb_build_object('entity',
    jsonb_build_object('id', 'pay_W' || n, 'amount', 50000, 'currency', 'INR', 'amount_refunded', refunded,
                       'email', 'asha@example.com', 'notes', jsonb_build_object('payment', md5('webhook ' || n)::uuid)))))::text, 'UTF8')
$$;
-- HMAC-SHA256 of a key of up to 64 bytes
CREATE FUNCTION pg_temp.sign(secret bytea, body bytea) RETURNS text LANGUAGE sql AS $$
  WITH pad AS (SELECT string_agg(set_byte('\x00', 0, get_byte(k, i) # 54), '' ORDER BY i) AS inner_pad,
                      string_agg(set_byte('\x00', 0, get_byte(k, i) # 92), '' ORDER BY i) AS outer_pad
               FROM (SELECT secret || decode(repeat('00', 64 - length(secret)), 'hex') AS k) key, generate_series(0, 63) i)
  SELECT encode(sha256(outer_pad || sha256(inner_pad || body)), 'hex') FROM pad
$$;
CREATE FUNCTION pg_temp.post(event text, n int, refunded int DEFAULT 0, secret bytea DEFAULT 'demo secret',
  OUT event text, OUT outcome text, OUT http_status int, OUT payment text, OUT detail text) LANGUAGE sql AS $$
  SELECT $1, w.outcome, w.http_status, left(w.payment_id::text, 8), w.detail
  FROM cusown_webhook('razorpay', pg_temp.body($1, n, refunded),
                      jsonb_build_object('X-Razorpay-Signature', pg_temp.sign(secret, pg_temp.body($1, n, refunded)))) w
$$;

\echo '30. A capture that comes twice, and what was before it that comes late.'
\echo
\echo '   SELECT * FROM cusown_webhook(''razorpay'', :body, :headers);'
\echo
CREATE TEMP TABLE told AS SELECT * FROM pg_temp.post('payment.captured', 1);
INSERT INTO told SELECT * FROM pg_temp.post('payment.captured', 1);
INSERT INTO told SELECT * FROM pg_temp.post('payment.authorized', 1);
INSERT INTO told SELECT * FROM pg_temp.post('payment.failed', 1);
TABLE told;
SELECT expect('outcomes', string_agg(outcome, ' '), 'applied duplicate stale stale') AS n FROM told \gset

\echo '31. One that somebody has forged: 401, and nothing of it is kept but its hash.'
\echo
TRUNCATE told;
INSERT INTO told SELECT * FROM pg_temp.post('refund.processed', 1, 50000, 'guessed');
TABLE told;
SELECT http_status, reason, body_size, left(encode(body_sha256, 'hex'), 8) || '...' AS body_sha256
FROM cusown_ops.webhook_rejected;
SELECT expect('refunded', refund_amount_cents, 0) AS n FROM payments WHERE id = md5('webhook 1')::uuid \gset

\echo '32. Money for a booking that was cancelled: it is there, so it is applied, and'
\echo '    somebody must look.'
\echo
TRUNCATE told;
INSERT INTO told SELECT * FROM pg_temp.post('payment.captured', 2);
TABLE told;
SELECT kind, left(entity_id::text, 8) AS payment, regexp_replace(finding, '-[0-9a-f-]{27}', '...') AS finding
FROM cusown_ops.attention WHERE entity_id = md5('webhook 2')::uuid;
SELECT expect('paid for nothing', count(*), 1::bigint) AS n
FROM cusown_ops.attention WHERE entity_id = md5('webhook 2')::uuid AND kind = 'paid_cancelled' \gset
\echo '    It is refunded, in two parts, of which the provider tells the second one first.'
\echo
TRUNCATE told;
INSERT INTO told SELECT * FROM pg_temp.post('refund.processed', 2, 50000);
INSERT INTO told SELECT * FROM pg_temp.post('refund.processed', 2, 20000);
TABLE told;
SELECT expect('refunded', refund_amount_cents, 50000) AS n FROM payments WHERE id = md5('webhook 2')::uuid \gset

\echo '33. One that comes before its payment: 202, and the job tries it again.'
\echo
TRUNCATE told;
INSERT INTO told SELECT * FROM pg_temp.post('payment.captured', 3);
TABLE told;
\echo '   SELECT * FROM cusown_webhook_backlog();'
\echo
SELECT provider, outcome, event_type, events, next_try > now() AS waits FROM cusown_webhook_backlog();
INSERT INTO payments (id, booking_id, provider, provider_payment_id, amount_cents, status)
SELECT md5('webhook 3')::uuid, id, 'razorpay', 'pending-3', 50000, 'processing'
FROM bookings WHERE status = 'confirmed' ORDER BY id DESC LIMIT 1;
\echo '    The payment is there now, and a minute has gone by:'
\echo
\echo '   CALL cusown_run_job(''retry_parked_webhooks'');'
\echo
UPDATE cusown_ops.webhook_inbox SET next_try = now() WHERE outcome = 'parked';
CALL cusown_run_job('retry_parked_webhooks');
SELECT provider, event_type, outcome, tries, detail FROM cusown_ops.webhook_inbox ORDER BY id;
SELECT expect('backlog', count(*), 0::bigint) AS n FROM cusown_webhook_backlog() \gset
SELECT expect('payment 3', status::text, 'completed') AS n FROM payments WHERE id = md5('webhook 3')::uuid \gset
SELECT expect('bookings that were touched', count(*), 0::bigint) AS n
FROM bookings b LEFT JOIN booking_before w USING (id, status) WHERE w.id IS NULL \gset
SELECT expect('slots that were touched', count(*), 0::bigint) AS n
FROM slots s LEFT JOIN slot_before w USING (id, status) WHERE w.id IS NULL \gset
\echo
