-- Shows which payments and bookings contradict each other, how severe that is and
-- what to run next; and that what is normal in the application is not among them.
\set ON_ERROR_STOP 0
\set SHOW_CONTEXT never
\getenv abs_srcdir PG_ABS_SRCDIR
\set app :abs_srcdir '/test/fixture/cusown_app.sql'
\set minimal :abs_srcdir '/test/fixture/app_minimal.sql'
SET client_min_messages = warning;
CREATE EXTENSION cusown_ops;
SELECT * FROM cusown_payment_mismatches(); -- fails
\set ECHO none
\set schema mismatch_app
\i :app
\set schema mismatch_shop
\i :minimal
\set ECHO all
SET search_path = mismatch_app, public;
SELECT count(*) > 0 AS attached FROM cusown_attach('mismatch_app');

CREATE FUNCTION p(n int) RETURNS uuid LANGUAGE sql IMMUTABLE
RETURN rpad('f' || lpad(n::text, 7, '0'), 32, '0')::uuid;
CREATE FUNCTION b(n int) RETURNS uuid LANGUAGE sql IMMUTABLE
RETURN rpad('b' || lpad(n::text, 7, '0'), 32, '0')::uuid;
INSERT INTO businesses (id, salon_name, owner_name, whatsapp_number,
  opening_time, closing_time, slot_duration, booking_link)
VALUES (b(0), 'Salon', 'Owner', '+910000000000', '09:00', '18:00', 30, 'salon');
CREATE PROCEDURE add_booking(n int, status text, required boolean DEFAULT NULL, type text DEFAULT NULL)
LANGUAGE sql AS $$
  INSERT INTO slots (id, business_id, date, start_time, end_time) VALUES (p(n), b(0), current_date + n, '10:00', '10:30');
  INSERT INTO bookings (id, business_id, slot_id, customer_name, customer_phone, booking_id, status, cancelled_at,
                        payment_required, payment_type, created_at)
  VALUES (b(n), b(0), p(n), 'Customer', '+910000000001', 'CODE' || n, status,
          CASE status WHEN 'cancelled' THEN now() END, required, type, now() - interval '3 days' + n * interval '1 s');
$$;
CREATE PROCEDURE add_payment(n int, booking int, status text, age interval DEFAULT '1 h', ref text DEFAULT NULL, provider text DEFAULT 'razorpay')
LANGUAGE sql AS $$
  INSERT INTO payments (id, booking_id, provider, provider_payment_id, amount_cents, status, created_at)
  VALUES (p(n), b(booking), provider::payment_provider, coalesce(ref, 'pay_' || n), 1000, status::payment_status, now() - age);
$$;
CREATE VIEW report AS SELECT kind, severity, left(id::text, 8) AS id, finding FROM cusown_payment_mismatches();
SELECT * FROM report;

-- Completed twice for one booking; a refund mends it, a failed attempt is none.
CALL add_booking(1, 'confirmed');
CALL add_payment(10, 1, 'completed');
CALL add_payment(11, 1, 'failed');
CALL add_payment(12, 1, 'refunded');
SELECT * FROM report;
CALL add_payment(13, 1, 'completed');
SELECT * FROM report;

-- Completed, and the booking pending for longer than its owner has to answer;
-- counted from the verification where it is known.
CALL add_booking(2, 'pending');
CALL add_payment(20, 2, 'completed', '25 h');
CALL add_booking(3, 'pending');
CALL add_payment(30, 3, 'completed', '23 h');
CALL add_booking(4, 'pending');
CALL add_payment(40, 4, 'completed', '100 h');
UPDATE payments SET verified_at = now() - interval '1 h' WHERE id = p(40);
CALL add_booking(5, 'pending');
CALL add_payment(50, 5, 'completed', '100 h');
SELECT * FROM report WHERE kind = 'paid_pending';
SET cusown_ops.paid_pending_grace = '2 d';
SELECT * FROM report WHERE kind = 'paid_pending';
SET cusown_ops.paid_pending_grace = 0;
SELECT * FROM report WHERE kind = 'paid_pending';
RESET cusown_ops.paid_pending_grace;

-- Completed, but the booking will not take place; refunded is settled.
CALL add_booking(6, 'cancelled');
CALL add_payment(60, 6, 'completed', '2 h');
CALL add_booking(7, 'rejected');
CALL add_payment(70, 7, 'completed');
CALL add_booking(8, 'cancelled');
CALL add_payment(80, 8, 'refunded');
CALL add_booking(9, 'cancelled');
CALL add_payment(90, 9, 'partially_refunded');
SELECT * FROM report WHERE kind = 'paid_cancelled';

-- Confirmed though payment is required and was not made; not in cash, not while
-- somebody is paying, and not where it was paid.
CALL add_booking(101, 'confirmed', true);
CALL add_booking(102, 'confirmed', true, 'full');
CALL add_payment(1020, 102, 'failed', '5 h');
CALL add_payment(1021, 102, 'processing', '2 h');
CALL add_booking(103, 'confirmed', true, 'deposit');
CALL add_payment(1030, 103, 'processing', '50 min');
CALL add_booking(104, 'confirmed', true, 'cash');
CALL add_booking(105, 'confirmed', false, 'full');
CALL add_booking(106, 'confirmed', true, 'full');
CALL add_payment(1060, 106, 'partially_refunded');
CALL add_booking(107, 'confirmed', true, 'full');
CALL add_payment(1070, 107, 'refunded');
CALL add_booking(108, 'pending', true, 'full');
CALL add_booking(109, 'confirmed', true, 'full');
CALL add_payment(1090, 109, 'completed');
CALL add_payment(1091, 109, 'failed');
SELECT * FROM report WHERE kind = 'unpaid';

-- Processing for longer than a day: for information.
CALL add_booking(110, 'cancelled');
CALL add_payment(1100, 110, 'processing', '23 h 59 min');
CALL add_payment(1101, 110, 'processing', '24 h 1 min');
CALL add_payment(1102, 110, 'processing', '12 d 1 h');
CALL add_payment(1103, 110, 'pending', '12 d');
SELECT * FROM report WHERE kind = 'processing';

-- One provider's reference on two payments; critical where both count. Placeholders,
-- another provider's, and a payment's own id are none.
CALL add_booking(111, 'cancelled');
CALL add_payment(1110, 111, 'completed', '2 h', 'pay_twice');
CALL add_payment(1111, 111, 'failed', '1 h', 'pay_twice');
CALL add_payment(1112, 111, 'failed', '1 h', 'pay_twice', 'stripe');
CALL add_payment(1113, 111, 'processing', '1 h', 'pending-1');
CALL add_payment(1114, 111, 'processing', '1 h', 'pending-1');
CALL add_payment(1115, 111, 'processing', '1 h', '');
CALL add_payment(1116, 111, 'processing', '1 h', '');
CALL add_payment(1117, 111, 'processing', '1 h', upper(p(1117)::text));
CALL add_payment(1118, 111, 'processing', '1 h', upper(p(1117)::text));
CALL add_payment(1108, 111, 'processing', '1 h', ' PENDING-1');
CALL add_payment(1109, 111, 'processing', '1 h', ' PENDING-1');
SELECT * FROM report WHERE kind = 'shared_ref';
CALL add_booking(112, 'confirmed');
CALL add_payment(1120, 112, 'completed', '1 h', 'pay_twice');
CALL add_payment(1121, 112, 'processing', '1 h', 'pending-1x');
CALL add_payment(1122, 112, 'processing', '2 h', 'pending-1x');
SELECT * FROM report WHERE kind = 'shared_ref';

-- More refunded than paid.
CALL add_booking(113, 'cancelled');
CALL add_payment(1130, 113, 'refunded');
UPDATE payments SET refund_amount_cents = 1000 WHERE id = p(1130);
SELECT * FROM report WHERE kind = 'over_refunded';
UPDATE payments SET refund_amount_cents = 1500 WHERE id = p(1130);
SELECT * FROM report WHERE kind = 'over_refunded';

-- All of it, the worst first: it fits a screen, and the command runs.
SELECT * FROM cusown_payment_mismatches();
SELECT count(DISTINCT m.id) = (SELECT count(DISTINCT id) FROM cusown_payment_mismatches()) AS all_have_facts
FROM cusown_payment_mismatches() m, LATERAL cusown_payment_facts(m.id) f;
SELECT command FROM cusown_payment_mismatches() WHERE kind = 'over_refunded' \gset
SELECT count(*) FROM (:command) f;
SELECT kind, max(length(kind)) <= 14 AND max(length(finding)) <= 14 AND max(length(severity)) <= 8
  AND max(length(command)) <= 74 AS fits FROM cusown_payment_mismatches() GROUP BY kind ORDER BY kind;
BEGIN READ ONLY;
SELECT count(*) > 0 AS read FROM cusown_payment_mismatches();
COMMIT;
SELECT provolatile FROM pg_proc WHERE proname = 'cusown_payment_mismatches';

-- Nobody is told that there are none who cannot see them.
CREATE ROLE regress_mismatch_blind;
SELECT count(*) > 0 AS ddl FROM cusown_grant('regress_mismatch_blind', 'monitor');
GRANT USAGE ON SCHEMA mismatch_app TO regress_mismatch_blind;
GRANT SELECT ON payments, bookings TO regress_mismatch_blind;
SET ROLE regress_mismatch_blind;
SELECT * FROM cusown_payment_mismatches(); -- fails
\echo :SQLSTATE
SET cusown_ops.paid_pending_grace = 0; -- fails
RESET ROLE;
ALTER ROLE regress_mismatch_blind BYPASSRLS;
SET ROLE regress_mismatch_blind;
SELECT count(*) > 0 AS read FROM cusown_payment_mismatches();
RESET ROLE;
DROP OWNED BY regress_mismatch_blind;
DROP ROLE regress_mismatch_blind;

-- What is not bound is left out, and said.
SET client_min_messages = notice;
SELECT count(*) > 0 AS attached FROM cusown_attach('mismatch_app', '{"payments": {"columns": {"provider_ref": null, "amount": null,
  "verified_at": null, "provider": null}}, "bookings": {"columns": {"payment_type": null}}}');
SELECT kind, count(*) FROM report GROUP BY kind ORDER BY kind;
SELECT count(*) > 0 AS attached FROM cusown_attach('mismatch_app', '{"payments": null}');
SELECT * FROM cusown_payment_mismatches(); -- fails
\echo :SQLSTATE
SELECT cusown_detach('mismatch_app');

-- With little bound, and nulls.
SELECT count(*) > 0 AS attached FROM cusown_attach('mismatch_shop', :'minimal_mapping');
SET search_path = mismatch_shop, public;
INSERT INTO reservation (ref, state, made_at) VALUES (mismatch_app.b(1), 'pending', now()), (mismatch_app.b(2), 'cancelled', now());
INSERT INTO charge (ref, reservation_ref, state, provider, provider_code, amount, made_at)
VALUES (mismatch_app.p(1), mismatch_app.b(1), 'completed', 'upi', 'a', 100, '-infinity'),
       (mismatch_app.p(2), mismatch_app.b(2), 'completed', 'upi', 'a', 100, now()),
       (mismatch_app.p(3), NULL, 'completed', NULL, 'a', NULL, NULL),
       (mismatch_app.p(4), NULL, 'completed', NULL, 'a', NULL, NULL),
       (mismatch_app.p(5), NULL, NULL, NULL, NULL, NULL, NULL);
SELECT kind, severity, left(id::text, 8) AS id, finding FROM cusown_payment_mismatches();

-- Of many that are unpaid each payments table is read some times in all, not for each
-- of them, also where its bookings have no index.
ALTER TABLE reservation ADD payment_required boolean DEFAULT true;
SELECT count(*) > 0 AS attached FROM cusown_attach('mismatch_shop', jsonb_set(:'minimal_mapping', '{bookings,columns,payment_required}', '"payment_required"'));
INSERT INTO reservation (ref, state, made_at, slot_ref) SELECT md5('b' || n)::uuid, 'confirmed', now(), NULL FROM generate_series(1, 2000) n;
INSERT INTO charge (ref, reservation_ref, state, provider, provider_code, made_at)
SELECT md5('p' || n)::uuid, md5('b' || n % 1500)::uuid, (ARRAY['failed', 'expired'])[1 + n / 1500], 'upi', 'c' || n, now() - n * interval '1 s' FROM generate_series(1, 2999) n WHERE n % 1500 > 0;
ANALYZE reservation;
ANALYZE charge;
BEGIN;
SELECT finding, count(*) FROM cusown_payment_mismatches() WHERE kind = 'unpaid' GROUP BY 1 ORDER BY 1;
SELECT pg_stat_get_xact_numscans('charge'::regclass) < 20 AS few_scans;
COMMIT;

DROP VIEW mismatch_app.report;
DROP EXTENSION cusown_ops;
SET client_min_messages = warning;
DROP SCHEMA mismatch_app, mismatch_shop CASCADE;
