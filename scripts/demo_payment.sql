--
-- demo_payment.sql
--      The provider and the application disagree about payments.
--
\set QUIET on
\pset footer off
\pset null '-'
SET client_min_messages = warning;

-- a checkout that nobody finished, two payments whose webhook was lost, of which
-- the application gave up one, and one of a booking that was cancelled
\echo '24. Runbook "Payment Mismatch".  Webhooks were lost, and four customers call.'
\echo
INSERT INTO payments (id, booking_id, provider, provider_payment_id, amount_cents, status, failure_reason, expires_at, created_at)
SELECT md5('mismatch ' || v.n)::uuid, b.id, v.provider::payment_provider, 'pending-' || v.n, 50000, v.status::payment_status,
       v.reason, CASE v.provider WHEN 'upi' THEN now() - interval '20 minutes' END, now() - interval '30 minutes'
FROM (VALUES (1, 'processing', 'razorpay', NULL, 'confirmed'), (2, 'failed', 'razorpay', 'no answer in time', 'confirmed'),
             (3, 'processing', 'razorpay', NULL, 'cancelled'), (4, 'initiated', 'upi', NULL, 'confirmed'))
     v (n, status, provider, reason, booking_status),
LATERAL (SELECT id FROM bookings WHERE status = v.booking_status ORDER BY id OFFSET v.n LIMIT 1) b;
CREATE TEMP VIEW mismatch AS
SELECT left(p.id::text, 8) AS payment, p.status, p.provider_payment_id, p.refund_amount_cents AS refunded, b.status AS booking
FROM generate_series(1, 4) n JOIN payments p ON p.id = md5('mismatch ' || n)::uuid
JOIN bookings b ON b.id = p.booking_id ORDER BY n;
TABLE mismatch;
CREATE TEMP TABLE booking_before AS SELECT id, status FROM bookings;
CREATE TEMP TABLE slot_before AS SELECT id, status FROM slots;

\echo '    What is at odds, and what is known of one that a ticket names, a booking or a payment?'
\echo
\echo '   SELECT * FROM cusown_payment_mismatches() WHERE severity <> ''info'';'
\echo
SELECT * FROM cusown_payment_mismatches() WHERE severity <> 'info';
\echo '   SELECT * FROM cusown_payment_facts(''4e8d3c3b-...'');'
\echo
SELECT to_char(at, 'DD HH24:MI') AS at, source, what, regexp_replace(left(detail::text, 70), '.$', '...') AS detail
FROM cusown_payment_facts(md5('mismatch 3')::uuid);
SELECT expect('facts without a time, or with personal data', count(*), 0::bigint) AS n
FROM cusown_payment_facts(md5('mismatch 3')::uuid) WHERE at IS NULL OR detail ?| '{customer_name,customer_phone}' \gset

\echo '    At the provider the first one is captured.'
\echo
\echo '   SELECT * FROM cusown_payment_transition(''108dad49-...'', ''verify'', reason => ''captured on the dashboard'', provider_ref => ''pay_N1'');'
\echo
SELECT left(payment_id::text, 8) AS payment, from_status, to_status, changed FROM cusown_payment_transition(
  md5('mismatch 1')::uuid, 'verify', reason => 'captured on the dashboard', provider_ref => 'pay_N1');
\echo '    Asked again, nothing changes, and it says so.'
\echo
SELECT left(payment_id::text, 8) AS payment, from_status, to_status, changed FROM cusown_payment_transition(
  md5('mismatch 1')::uuid, 'verify');

\echo '25. What was given up takes evidence.'
\echo
\set ON_ERROR_STOP off
SELECT * FROM cusown_payment_transition(md5('mismatch 2')::uuid, 'verify');
\set ON_ERROR_STOP on
SELECT expect('SQLSTATE', :'SQLSTATE'::text, 'UO003') AS n \gset
\echo
SELECT left(payment_id::text, 8) AS payment, from_status, to_status, changed FROM cusown_payment_transition(
  md5('mismatch 2')::uuid, 'verify', reason => 'captured after the timeout', provider_ref => 'pay_N2');
SELECT l.from_status, l.to_status, l.metadata ->> 'event' AS event, l.reason FROM payment_audit_logs l
WHERE payment_id = md5('mismatch 2')::uuid;

\echo '26. Money for a booking that was cancelled is there all the same: it is refunded,'
\echo '    in two parts, and one of them is told twice.'
\echo
\echo '   SELECT * FROM cusown_payment_transition(''4e8d3c3b-...'', ''verify'', reason => ''captured'', provider_ref => ''pay_N3'');'
\echo '   SELECT kind, finding FROM cusown_ops.attention WHERE closed_at IS NULL;'
\echo
SELECT expect('verified', changed, true) AS n FROM cusown_payment_transition(
  md5('mismatch 3')::uuid, 'verify', reason => 'captured', provider_ref => 'pay_N3') \gset
SELECT kind, left(entity_id::text, 8) AS payment, regexp_replace(finding, '-[0-9a-f-]{27}', '...') AS finding
FROM cusown_ops.attention WHERE kind = 'paid_cancelled' AND closed_at IS NULL;
SELECT r.from_status, r.to_status, r.changed FROM (VALUES (30000, 'rfnd_1'), (30000, 'rfnd_1'), (20000, 'rfnd_2')) v (amount, ref),
LATERAL cusown_payment_transition(md5('mismatch 3')::uuid, 'partial_refund', reason => 'cancelled',
                                  refund_amount => v.amount, refund_ref => v.ref) r;
SELECT expect('paid for nothing', count(*), 0::bigint) AS n
FROM cusown_ops.attention WHERE kind = 'paid_cancelled' AND closed_at IS NULL \gset

\echo '27. And what nobody finished expires.  Of bookings and slots nothing has changed.'
\echo
\echo '   SELECT * FROM cusown_expire_payments();'
\echo
SELECT * FROM cusown_expire_payments();
TABLE mismatch;

SELECT string_agg(expect('payment ' || n, p.status::text, (ARRAY['completed', 'completed', 'refunded', 'expired'])[n]), ' ') AS n
FROM generate_series(1, 4) n JOIN payments p ON p.id = md5('mismatch ' || n)::uuid \gset
SELECT expect('refunded', refund_amount_cents, 50000) AS n FROM payments WHERE id = md5('mismatch 3')::uuid \gset
SELECT expect('bookings that were touched', count(*), 0::bigint) AS n
FROM bookings b LEFT JOIN booking_before w USING (id, status) WHERE w.id IS NULL \gset
SELECT expect('slots that were touched', count(*), 0::bigint) AS n
FROM slots s LEFT JOIN slot_before w USING (id, status) WHERE w.id IS NULL \gset
\echo
\echo 'Every figure above is as it should be.'
