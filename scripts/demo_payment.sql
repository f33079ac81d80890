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

\echo '28. And of all payments at once: the provider''s statement, loaded as it is.  Nothing'
\echo '    is written before apply.'
\echo
INSERT INTO payments (id, booking_id, provider, provider_payment_id, amount_cents, status, created_at)
SELECT md5('statement ' || v.n)::uuid, b.id, 'razorpay', 'pay_S' || v.n, v.amount, v.status::payment_status, '2020-01-02 10:00Z'
FROM (VALUES (1, 'failed', 50000), (2, 'processing', 50000), (3, 'completed', 50000), (4, 'completed', 45000)) v (n, status, amount),
LATERAL (SELECT id FROM bookings WHERE status = 'confirmed' ORDER BY id OFFSET v.n LIMIT 1) b;
\echo '   SELECT cusown_load_statement_csv(''razorpay'', ''razorpay_settlement'', :''csv'') AS s \\gset'
\echo '   SELECT * FROM cusown_reconcile(:s);'
\echo
SELECT cusown_load_statement_csv('razorpay', 'razorpay_settlement', 'entity_id,type,amount,currency,fee,tax,created_at,email
pay_S1,payment,50000,INR,1180,180,1577959200,asha@example.com
pay_S2,payment,50000,INR,1180,180,1577959200,ravi@example.com
pay_S3,payment,50000,INR,1180,180,1577959200,mina@example.com
pay_S4,payment,50000,INR,1180,180,1577959200,omar@example.com
pay_S5,payment,50000,INR,1180,180,1577959200,lata@example.com') AS s \gset
SELECT class, provider_ref, ours ->> 'status' AS ours, theirs ->> 'status' AS theirs, action FROM cusown_reconcile(:s);
\echo '   SELECT count(*) FROM cusown_reconcile(:s, apply => true);'
\echo '   SELECT * FROM cusown_reconciliation_summary(:s);'
\echo
SELECT expect('findings', count(*), 4::bigint) AS n FROM cusown_reconcile(:s, apply => true) \gset
SELECT * FROM cusown_reconciliation_summary(:s);
SELECT expect('reconciled', count(*), 3::bigint) AS n FROM payments WHERE provider_payment_id ~ '^pay_S[1-3]$' AND status = 'completed' \gset
SELECT expect('on the worklist', count(*), 2::bigint) AS n FROM cusown_ops.attention WHERE kind ~ '^reconcile_' AND closed_at IS NULL \gset
SELECT expect('summary', sum(their_amount), 250000::numeric) AS n FROM cusown_reconciliation_summary(:s) \gset

SELECT string_agg(expect('payment ' || n, p.status::text, (ARRAY['completed', 'completed', 'refunded', 'expired'])[n]), ' ') AS n
FROM generate_series(1, 4) n JOIN payments p ON p.id = md5('mismatch ' || n)::uuid \gset
SELECT expect('refunded', refund_amount_cents, 50000) AS n FROM payments WHERE id = md5('mismatch 3')::uuid \gset
SELECT expect('bookings that were touched', count(*), 0::bigint) AS n
FROM bookings b LEFT JOIN booking_before w USING (id, status) WHERE w.id IS NULL \gset
SELECT expect('slots that were touched', count(*), 0::bigint) AS n
FROM slots s LEFT JOIN slot_before w USING (id, status) WHERE w.id IS NULL \gset
\echo
