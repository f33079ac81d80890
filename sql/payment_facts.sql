-- Shows the facts of a case: from the id of a payment or of a booking, in the order
-- of time, without personal data unless an operator asks, in UTC; on an application
-- that has everything and on one that has little.
\set ON_ERROR_STOP 0
\set SHOW_CONTEXT never
\getenv abs_srcdir PG_ABS_SRCDIR
\set app :abs_srcdir '/test/fixture/cusown_app.sql'
\set minimal :abs_srcdir '/test/fixture/app_minimal.sql'
SET client_min_messages = warning;
CREATE EXTENSION cusown_ops;
SELECT * FROM cusown_payment_facts('00000000-0000-0000-0000-000000000000'); -- fails
\set ECHO none
\set schema facts_app
\i :app
\set schema facts_shop
\i :minimal
\set ECHO all
SET search_path = facts_app, public;
SELECT count(*) > 0 AS attached FROM cusown_attach('facts_app');
\pset format unaligned

CREATE FUNCTION p(n int) RETURNS uuid LANGUAGE sql IMMUTABLE
RETURN rpad('f' || lpad(n::text, 7, '0'), 32, '0')::uuid;
CREATE FUNCTION b(n int) RETURNS uuid LANGUAGE sql IMMUTABLE
RETURN rpad('b' || lpad(n::text, 7, '0'), 32, '0')::uuid;
CREATE FUNCTION s(n int) RETURNS uuid LANGUAGE sql IMMUTABLE
RETURN rpad('5' || lpad(n::text, 7, '0'), 32, '0')::uuid;
INSERT INTO businesses (id, salon_name, owner_name, whatsapp_number,
  opening_time, closing_time, slot_duration, booking_link)
VALUES (b(0), 'Salon', 'Owner', '+910000000000', '09:00', '18:00', 30, 'salon');

-- A booking with two attempts, of which the second was captured, then refunded in
-- part; every text that may be somebody's holds the word SECRET.
INSERT INTO slots (id, business_id, date, start_time, end_time, status, reserved_until, updated_at)
VALUES (s(1), b(0), '2026-03-02', '10:00', '10:30', 'reserved', '2026-03-01 10:10Z', '2026-03-01 10:00:30Z'),
       (s(2), b(0), '2026-03-02', '11:00', '11:30', 'available', NULL, NULL);
INSERT INTO bookings (id, business_id, slot_id, customer_name, customer_phone, booking_id, status, created_at,
  updated_at, customer_user_id, payment_required, payment_type, cancelled_at, cancelled_by, cancellation_reason)
VALUES (b(1), b(0), s(1), 'SECRET name', 'SECRET phone', 'CODE1', 'cancelled', '2026-03-01 10:00Z',
        '2026-03-01 13:00Z', b(77), true, 'full', '2026-03-01 13:00Z', 'customer', 'SECRET reason'),
       (b(2), b(0), s(2), 'Another', '+910000000002', 'CODE2', 'pending', '2026-03-01 09:00Z',
        NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO payments (id, booking_id, provider, provider_payment_id, amount_cents, status, created_at, updated_at,
  expires_at, verified_at, verified_by, verification_method, failure_reason, attempt_count, refund_amount_cents,
  refund_reason, refunded_at, refunded_by, webhook_payload_hash)
VALUES (p(1), b(1), 'razorpay', 'pending-1', 1000, 'failed', '2026-03-01 10:01Z', '2026-03-01 10:02Z',
        '2026-03-01 10:11Z', NULL, NULL, NULL, 'SECRET failure', 1, 0, NULL, NULL, NULL, NULL),
       (p(2), b(1), 'razorpay', 'pay_2', 1000, 'partially_refunded', '2026-03-01 10:03Z', '2026-03-01 14:00Z',
        NULL, '2026-03-01 10:05Z', b(99), 'webhook', NULL, 0, 300, 'SECRET refund', '2026-03-01 14:00Z', b(98), 'hash_2'),
       -- of others: the same reference, the same placeholder, and another provider's
       (p(3), b(2), 'razorpay', 'pay_2', 1000, 'processing', '2026-03-01 09:30Z', NULL, NULL, NULL, NULL, NULL, NULL, 0, 0, NULL, NULL, NULL, NULL),
       (p(4), b(2), 'razorpay', 'pending-1', 1000, 'processing', '2026-03-01 09:31Z', NULL, NULL, NULL, NULL, NULL, NULL, 0, 0, NULL, NULL, NULL, NULL),
       (p(5), b(2), 'stripe', 'pay_2', 1000, 'processing', '2026-03-01 09:32Z', NULL, NULL, NULL, NULL, NULL, NULL, 0, 0, NULL, NULL, NULL, NULL);
INSERT INTO payment_audit_logs (payment_id, actor_type, actor_id, action, from_status, to_status, reason, metadata, created_at)
VALUES (p(1), 'system', NULL, 'failed', 'processing', 'failed', 'SECRET log', '{"event": "fail", "note": "SECRET"}', '2026-03-01 10:02Z'),
       (p(2), 'owner', b(99), 'completed', NULL, 'completed', NULL, NULL, NULL),
       (p(3), 'system', NULL, 'not of this case', NULL, 'processing', NULL, NULL, '2026-03-01 10:02Z');
INSERT INTO audit_logs (action_type, entity_type, entity_id, admin_user_id, actor_role, old_data, new_data, description,
  ip_address, user_agent, metadata, created_at)
VALUES ('booking_created', 'booking', b(1), NULL, 'customer', NULL,
        '{"status": "pending", "customer_name": "SECRET", "amount": 1000, "provider": {"name": "SECRET"}, "currency": ["SECRET"]}',
        'SECRET description', 'SECRET ip', 'SECRET agent', '["SECRET"]', '2026-03-01 10:00:00.5Z'),
       ('payment_succeeded', 'payment', p(2), b(99), 'owner', '{"status": "processing"}', '{"status": "completed"}',
        NULL, NULL, NULL, '{"source": "manual", "refunded": null}', '2026-03-01 10:05Z'),
       ('slot_reserved', 'slot', s(1), NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, '2026-03-01 10:00:00.6Z'),
       -- before the booking was made, others stood there
       ('slot_released', 'slot', s(1), NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, '2026-02-28 10:00Z'),
       ('booking_created', 'booking', b(2), NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, '2026-03-01 09:00Z');
INSERT INTO booking_lifecycle_audit (booking_id, old_slot_id, action_type, actor_type, created_at)
VALUES (b(1), s(1), 'cancel', 'customer', '2026-03-01 13:00Z'), (b(2), s(2), 'confirm', 'owner', '2026-03-01 13:00Z');
INSERT INTO idempotency_keys (key, resource_type, result_id, response_snapshot, created_at, expires_at)
VALUES ('SECRET key', 'payment', p(2), '{"name": "SECRET"}', '2026-03-01 10:03Z', '2026-03-02 10:03Z'),
       ('another', 'payment', p(3), NULL, '2026-03-01 10:03Z', '2026-03-02 10:03Z');
INSERT INTO cusown_ops.payment_refund VALUES ('facts_app', p(2), 'r1', 300, '2026-03-01 14:00Z'),
  ('facts_app', p(3), 'r1', 300, '2026-03-01 14:00Z'), ('elsewhere', p(2), 'r2', 300, '2026-03-01 14:00Z');
INSERT INTO cusown_ops.attention (app_schema, kind, entity, entity_id, runbook, finding, first_seen, last_seen, next_try, closed_at, closed_by, note)
VALUES ('facts_app', 'paid_cancelled', 'payment', p(2), 'payment_mismatch', 'booking is cancelled',
        '2026-03-01 13:30Z', '2026-03-01 13:30Z', '2026-03-02Z', '2026-03-01 14:30Z', 'SECRET role', 'SECRET note'),
       ('elsewhere', 'paid_cancelled', 'payment', p(2), 'payment_mismatch', 'of another application',
        '2026-03-01 13:30Z', '2026-03-01 13:30Z', '2026-03-02Z', NULL, NULL, NULL);
SET TimeZone = 'Asia/Kolkata';
SET DateStyle = 'German, DMY';
SELECT (at AT TIME ZONE 'UTC')::text AS at, source, what, detail FROM cusown_payment_facts(b(1));
RESET DateStyle;
-- the same from each of its payments
SELECT n, count(*) AS facts, bool_and(f = g) AS same
FROM generate_series(1, 2) n,
     LATERAL cusown_payment_facts(p(n)) WITH ORDINALITY f (at, source, what, detail, place)
  JOIN cusown_payment_facts(b(1)) WITH ORDINALITY g (at, source, what, detail, place) USING (place)
GROUP BY n ORDER BY n;
-- nothing of it is anybody's
SELECT count(*) FROM cusown_payment_facts(b(1)) f WHERE f::text ~ 'SECRET';
SELECT cusown_payment_case(p(1))::text ~ 'SECRET' AS secret;
-- unless it is asked for: each of the texts, and the application's JSON as a whole
SELECT f.source, f.what, e.key, e.value FROM cusown_payment_facts(b(1), true) f, jsonb_each(f.detail) e
WHERE e.value::text ~ 'SECRET' ORDER BY 1, 2, 3;
SELECT f.source, f.what, e.key FROM cusown_payment_facts(b(1), true) f, jsonb_each(f.detail) e
EXCEPT SELECT f.source, f.what, e.key FROM cusown_payment_facts(b(1)) f, jsonb_each(f.detail) e ORDER BY 1, 2, 3;

-- For a ticket: the same facts, in UTC wherever one is.
SELECT jsonb_object_keys(cusown_payment_case(p(2))) AS key ORDER BY 1;
SELECT c ->> 'id' = p(2)::text AS id, (c ->> 'at')::timestamptz = now() AND c ->> 'at' LIKE '%+00:00' AS at,
       jsonb_array_length(c -> 'facts') AS facts, c -> 'facts' -> 1 AS first, c -> 'facts' -> -1 AS last
FROM cusown_payment_case(p(2)) c;
SELECT (SELECT jsonb_agg(e - 'at' ORDER BY n) FROM jsonb_array_elements(cusown_payment_case(p(1)) -> 'facts') WITH ORDINALITY x (e, n))
     = (SELECT jsonb_agg(to_jsonb(f) - 'at' - 'n' ORDER BY n) FROM cusown_payment_facts(p(1)) WITH ORDINALITY f (at, source, what, detail, n)) AS same;
RESET TimeZone;

-- What our own functions do to a payment is there at once.
INSERT INTO slots (id, business_id, date, start_time, end_time) VALUES (s(6), b(0), '2026-03-03', '10:00', '10:30');
INSERT INTO bookings (id, business_id, slot_id, customer_name, customer_phone, booking_id)
VALUES (b(6), b(0), s(6), 'Customer', '+910000000006', 'CODE6');
INSERT INTO payments (id, booking_id, provider, provider_payment_id, amount_cents) VALUES (p(6), b(6), 'upi', p(6), 1000);
SELECT status FROM (SELECT to_status FROM cusown_payment_transition(p(6), 'verify', reason => 'SECRET')) t (status);
SELECT changed FROM cusown_payment_transition(p(6), 'partial_refund', reason => 'SECRET', refund_amount => 400, refund_ref => 'r6');
SELECT source, what, detail - '{id,entity_id,payment_id,booking_id,slot_id,updated_at,business_id}'::text[] AS detail
FROM cusown_payment_facts(p(6)) ORDER BY source, what, detail;

-- A payment whose booking is not there any more; what is neither; arguments.
ALTER TABLE payments DISABLE TRIGGER ALL;
UPDATE payments SET booking_id = b(404) WHERE id = p(5);
ALTER TABLE payments ENABLE TRIGGER ALL;
SELECT source, what FROM cusown_payment_facts(p(5));
SELECT count(*) FROM cusown_payment_facts(b(404)); -- fails
\echo :SQLSTATE
SELECT count(*) FROM cusown_payment_facts(s(1)); -- fails
SELECT cusown_payment_case(s(1)); -- fails
SELECT * FROM cusown_payment_facts(NULL); -- fails
\echo :SQLSTATE
SELECT * FROM cusown_payment_facts(p(1), NULL); -- fails
BEGIN READ ONLY;
SELECT count(*) > 0 AS read FROM cusown_payment_facts(p(1));
SELECT jsonb_array_length(cusown_payment_case(p(1)) -> 'facts') > 0 AS read;
COMMIT;
SELECT provolatile, proparallel, proisstrict FROM pg_proc WHERE proname ~ '^cusown_payment_(facts|case)$';

-- Rights: personal data is for operators; what row-level security hides is said.
CREATE ROLE regress_facts_monitor;
CREATE ROLE regress_facts_operator BYPASSRLS;
CREATE ROLE regress_facts_blind;
SELECT count(*) AS ddl FROM cusown_grant('regress_facts_monitor', 'monitor')
UNION ALL SELECT count(*) FROM cusown_grant('regress_facts_operator', 'operator')
UNION ALL SELECT count(*) FROM cusown_grant('regress_facts_blind', 'monitor');
GRANT USAGE ON SCHEMA facts_app TO regress_facts_monitor, regress_facts_operator, regress_facts_blind;
GRANT SELECT ON ALL TABLES IN SCHEMA facts_app TO regress_facts_operator, regress_facts_blind;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA facts_app TO regress_facts_monitor, regress_facts_operator, regress_facts_blind;
-- the DDL that cusown_grant() gives is what it takes
\pset tuples_only on
SELECT d FROM cusown_grant('regress_facts_monitor', 'monitor') d
\gexec
\pset tuples_only off
SET ROLE regress_facts_monitor;
SELECT count(*) > 10 AS facts FROM cusown_payment_facts(p(1));
SELECT jsonb_array_length(cusown_payment_case(p(1)) -> 'facts') > 10 AS facts;
SELECT count(*) FROM cusown_payment_facts(p(1), true); -- fails
\echo :SQLSTATE
SET ROLE regress_facts_operator;
SELECT bool_or(f::text ~ 'SECRET name') AS personal FROM cusown_payment_facts(p(1), true) f;
RESET ROLE;
SET ROLE regress_facts_blind;
SELECT count(*) FROM cusown_payment_facts(p(1)); -- fails
\echo :SQLSTATE
SELECT count(*) FROM cusown_payment_facts(b(1)); -- fails
RESET ROLE;
CREATE POLICY own ON payments AS RESTRICTIVE FOR SELECT TO regress_facts_blind USING (id = p(1));
CREATE POLICY own ON bookings FOR SELECT TO regress_facts_blind USING (id = b(1));
SET ROLE regress_facts_blind;
SELECT at, source, what, detail FROM cusown_payment_facts(p(1)) WHERE at IS NULL;
SELECT count(DISTINCT detail ->> 'id') AS payments FROM cusown_payment_facts(p(1)) WHERE source = 'payments';
SELECT count(*) FROM cusown_payment_facts(p(2)); -- fails
RESET ROLE;
DROP OWNED BY regress_facts_monitor, regress_facts_operator, regress_facts_blind;
DROP ROLE regress_facts_monitor, regress_facts_operator, regress_facts_blind;

-- What is not bound has no facts.
SELECT count(*) > 0 AS attached FROM cusown_attach('facts_app', '{"payments": null, "payment_audit_logs": null,
  "booking_lifecycle_audit": null, "idempotency_keys": null, "slots": {"columns": {"updated_at": null}}}');
SELECT at AT TIME ZONE 'UTC' AS at, source, what FROM cusown_payment_facts(b(1));
SELECT count(*) FROM cusown_payment_facts(p(1)); -- fails
SELECT cusown_detach('facts_app');
SET client_min_messages = error;
SELECT count(*) > 0 AS attached FROM cusown_attach('facts_shop', :'minimal_mapping');
SET client_min_messages = warning;
SET search_path = facts_shop, public;
INSERT INTO time_slot VALUES (facts_app.s(1), 'reserved', '2026-03-01 10:10Z', '2026-03-02 10:00Z', '2026-03-02 10:30Z');
INSERT INTO reservation VALUES (facts_app.b(1), 'pending', facts_app.s(1), facts_app.b(77), '2026-03-01 10:00Z');
INSERT INTO charge VALUES (facts_app.p(1), facts_app.b(1), 'processing', 'upi', 'ref1', 1000, 'INR', 'hash', NULL),
  (facts_app.p(2), NULL, NULL, NULL, 'ref2', 1000, 'INR', NULL, '2026-03-01 10:00Z'),
  (facts_app.p(3), NULL, 'processing', NULL, 'ref2', 1000, 'INR', NULL, '-infinity');
INSERT INTO journal (verb, object_type, object_ref, detail, at)
VALUES ('booked', 'booking', facts_app.b(1), '{"status": "pending", "who": "SECRET"}', '2026-03-01 10:00Z');
SELECT at AT TIME ZONE 'UTC' AS at, source, what, detail FROM cusown_payment_facts(facts_app.b(1));
SELECT at AT TIME ZONE 'UTC' AS at, source, what, detail FROM cusown_payment_facts(facts_app.p(2));
SELECT jsonb_path_query_array(cusown_payment_case(facts_app.p(2)), '$.facts[*].at');

DROP EXTENSION cusown_ops;
DROP SCHEMA facts_app, facts_shop CASCADE;
