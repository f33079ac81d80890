-- Shows each runbook with what is so now and the command to run next, on both
-- applications; what cannot be seen, is not there or is not known is told.
\set ON_ERROR_STOP 0
\set SHOW_CONTEXT never
\getenv abs_srcdir PG_ABS_SRCDIR
\set app :abs_srcdir '/test/fixture/cusown_app.sql'
\set minimal :abs_srcdir '/test/fixture/app_minimal.sql'
SET client_min_messages = warning;
CREATE EXTENSION cusown_ops;
\set ECHO none
\set schema runbook_app
\i :app
\set schema runbook_shop
\i :minimal
\set ECHO all

-- ages and names that differ from run to run, in one line
CREATE FUNCTION steps(name text DEFAULT NULL, ref uuid DEFAULT NULL)
RETURNS TABLE (step text, title text, state text, finding text, command text)
LANGUAGE sql AS $$
  SELECT r.step, r.title, r.state,
         regexp_replace(regexp_replace(translate(r.finding, E'\n', ' '),
           '\d+ (s|min|hours|days)\M', 'AGE', 'g'),
           '\d+ (of \d+ connections|indexes)', 'N \1', 'g'), r.command
  FROM cusown_runbook($1, $2) r
$$;

-- Without an application there are the texts.
SELECT step, state, finding FROM steps();
SELECT * FROM steps('double_booking');
SELECT * FROM steps('emergency_contacts');

-- What is asked for must be there.
SELECT * FROM cusown_runbook('nothing'); -- fails
\echo :SQLSTATE
SELECT * FROM cusown_runbook(ref => gen_random_uuid()); -- fails
\echo :SQLSTATE

SET search_path = runbook_app, public;
SELECT count(*) > 0 AS attached FROM cusown_attach('runbook_app');
-- nothing has run since it was attached, a month ago
UPDATE cusown_ops.binding SET bound_since = now() - interval '1 month';
SELECT * FROM cusown_runbook('cron_failure', '00000000-0000-0000-0000-000000000000'); -- fails
\echo :SQLSTATE

-- Nothing has run yet.
SELECT * FROM steps();
SELECT * FROM steps('cron_failure');
SELECT * FROM steps('double_booking');
SELECT * FROM steps('payment_mismatch');
SELECT * FROM steps('database_migration');
SELECT * FROM steps('application_deployment');
SELECT step, title, state, regexp_replace(finding, '^\d+ of \d+', 'N of N') AS finding, command
FROM steps('high_error_rate');
SELECT * FROM steps('database_performance');
SELECT * FROM steps('authentication');
SELECT * FROM steps('rate_limiting');
SELECT * FROM steps('security_incident');
SELECT * FROM steps('backup_and_restore');

-- Two confirmed bookings on a slot, a slot that its booking contradicts, a hold
-- without an end; a pending booking that is due, and one that cannot expire.
CREATE FUNCTION p(n int) RETURNS uuid LANGUAGE sql IMMUTABLE
RETURN rpad('f' || lpad(n::text, 7, '0'), 32, '0')::uuid;
CREATE FUNCTION b(n int) RETURNS uuid LANGUAGE sql IMMUTABLE
RETURN rpad('b' || lpad(n::text, 7, '0'), 32, '0')::uuid;
CREATE FUNCTION s(n int) RETURNS uuid LANGUAGE sql IMMUTABLE
RETURN rpad('5' || lpad(n::text, 7, '0'), 32, '0')::uuid;
INSERT INTO businesses (id, salon_name, owner_name, whatsapp_number,
  opening_time, closing_time, slot_duration, booking_link, concurrent_booking_capacity)
VALUES (b(0), 'Salon', 'Owner', '+910000000000', '09:00', '18:00', 30, 'salon', 9);
CREATE PROCEDURE add_slot(n int, status text, until interval DEFAULT NULL) LANGUAGE sql AS $$
  INSERT INTO slots (id, business_id, date, start_time, end_time, status, reserved_until)
  VALUES (s(n), b(0), current_date + n, '10:00', '10:30', status, now() + until);
$$;
CREATE PROCEDURE add_booking(n int, slot int, status text, undone timestamptz DEFAULT NULL) LANGUAGE sql AS $$
  INSERT INTO bookings (id, business_id, slot_id, customer_name, customer_phone, booking_id, status, cancelled_at,
                        created_at, undo_used_at)
  VALUES (b(n), b(0), s(slot), 'Customer', '+910000000001', 'CODE' || n, status,
          CASE status WHEN 'cancelled' THEN now() END, now() - interval '5 days' + n * interval '1 s', undone);
$$;
CREATE PROCEDURE add_payment(n int, booking int, status text) LANGUAGE sql AS $$
  INSERT INTO payments (id, booking_id, provider, provider_payment_id, amount_cents, status, created_at)
  VALUES (p(n), b(booking), 'razorpay', 'pay_' || n, 1000, status::payment_status,
          now() - interval '3 days' + n * interval '1 s');
$$;
DROP INDEX idx_bookings_one_confirmed_per_slot;
CALL add_slot(1, 'booked');
CALL add_booking(1, 1, 'confirmed');
CALL add_booking(2, 1, 'confirmed');
CALL add_slot(3, 'available');
CALL add_booking(3, 3, 'confirmed');
CALL add_slot(4, 'reserved');
CALL add_slot(5, 'reserved', '-4 days');
CALL add_booking(5, 5, 'pending');
CALL add_slot(6, 'available');
CALL add_booking(6, 6, 'pending', now());
-- a booking that is paid twice, and one that was cancelled
CALL add_slot(7, 'booked');
CALL add_booking(7, 7, 'confirmed');
CALL add_payment(71, 7, 'completed');
CALL add_payment(72, 7, 'completed');
CALL add_slot(8, 'available');
CALL add_booking(8, 8, 'cancelled');
CALL add_payment(81, 8, 'completed');
UPDATE payments SET refund_amount_cents = 1500, status = 'refunded' WHERE id = p(81);
CALL add_payment(82, 8, 'completed');

SELECT * FROM steps('cron_failure') WHERE finding ~ 'overdue';
SELECT * FROM steps('double_booking') WHERE step = '4' AND finding ~ 'index'; -- it would fail
CALL cusown_run_job('take_census');
SELECT * FROM steps() WHERE state = 'needed';
SELECT * FROM steps('double_booking');
SELECT * FROM steps('payment_mismatch');
CALL cusown_run_job('expire_bookings');
SELECT step, title, state, finding, regexp_replace(command, '\d+', 'N') AS command
FROM steps('cron_failure') WHERE step = '5';

-- A job that failed, and one whose last run was long ago.
UPDATE cusown_ops.job_run SET status = 'failed', sqlstate = '23514' WHERE job = 'expire_bookings';
UPDATE cusown_ops.job_run SET finished_at = finished_at - interval '3 days' WHERE job = 'take_census';
SELECT * FROM cusown_runbook('cron_failure') WHERE step IN ('1', '3') AND command ~ 'expire_bookings|census|health';

-- A finding of several lines, and one of more than 160 bytes without a space.
UPDATE cusown_ops.attention SET finding = E'one\ntwo ' || repeat('a', 170) WHERE kind = 'unexpirable';
SELECT finding FROM cusown_runbook('cron_failure') WHERE command ~ 'resolve';

-- One case: by its booking, its slot, its payment.
SELECT * FROM steps('double_booking', b(2)) WHERE step IN ('0', '2', '3');
SELECT * FROM steps('double_booking', s(1)) WHERE step IN ('0', '2', '3');
SELECT * FROM steps('double_booking', s(3)) WHERE step IN ('0', '2', '3');
SELECT * FROM steps('double_booking', s(8)) WHERE step IN ('0', '2', '3');
SELECT * FROM steps('payment_mismatch', p(71)) WHERE step IN ('0', '4') OR command ~ 'facts';
SELECT * FROM steps('payment_mismatch', b(8)) WHERE step IN ('0', '4') OR command ~ 'facts';
SELECT count(*) FROM steps('cron_failure', b(6)) WHERE command ~ 'resolve';
SELECT count(*) FROM steps('cron_failure', b(5)) WHERE command ~ 'resolve';

-- What was counted is not so any more.
UPDATE bookings SET status = 'cancelled', cancelled_at = now() WHERE id = b(2);
SELECT * FROM steps('double_booking') WHERE step IN ('1', '3');
UPDATE payments SET status = 'refunded' WHERE id = p(72);
SELECT * FROM steps('payment_mismatch') WHERE state = 'needed';

-- Webhooks: one that waits, a wave of wrong signatures, which is a security incident too.
INSERT INTO cusown_ops.webhook_inbox (app_schema, provider, event_id, event_type, body_sha256, received_at,
  payment_ids, outcome, next_try)
VALUES ('runbook_app', 'razorpay', 'event', 'payment.captured', '\x00', now() - interval '2 days', ARRAY[p(71)], 'parked', now());
SELECT step, title, state, finding, regexp_replace(command, '\d+', 'N') AS command
FROM steps('payment_mismatch') WHERE step = '2';
SELECT count(*) FROM steps('payment_mismatch', p(71)) WHERE command ~ 'replay';
SELECT count(*) FROM steps('payment_mismatch', b(8)) WHERE command ~ 'replay';
INSERT INTO cusown_ops.webhook_rejected (app_schema, provider, http_status, reason, body_sha256, body_size)
SELECT 'runbook_app', 'razorpay', 401, 'signature', '\x00', 2 FROM generate_series(1, 12);
SELECT * FROM steps('payment_mismatch') WHERE step = '2' AND state = 'manual';
SELECT * FROM steps('security_incident') WHERE step = '2';
SELECT step, state FROM steps() WHERE step = 'security_incident';

-- The provider's statement, a guard that is below the wanted mode.
INSERT INTO cusown_ops.statement (app_schema, provider, format, fingerprint, line_count, skipped_count,
  period_from, period_until, loaded_at)
OVERRIDING SYSTEM VALUE
SELECT 'runbook_app', 'razorpay', 'razorpay', '\x00', 0, 0, now(), now(), now() - interval '3 days';
SELECT step, title, state, finding, regexp_replace(command, '\d+', 'N') AS command
FROM steps('payment_mismatch') WHERE step = '3';
SELECT count(*) FROM cusown_guard('warn');
SELECT cusown_set_threshold('guard_mode', NULL, 3);
SELECT * FROM steps('double_booking') WHERE step = '4';
SELECT cusown_set_threshold('guard_mode', 2, NULL);
SELECT * FROM steps('double_booking') WHERE finding ~ 'guard';

-- A row fits 160 columns, of each runbook and of a case.
CREATE FUNCTION width(text) RETURNS int LANGUAGE sql
RETURN (SELECT max(length(l)) FROM regexp_split_to_table($1, E'\n') l);
CREATE FUNCTION screen(name text, ref uuid DEFAULT NULL) RETURNS int LANGUAGE sql
RETURN (SELECT greatest(max(width(step)), 4) + greatest(max(width(title)), 5) + greatest(max(width(state)), 5)
  + greatest(max(width(finding)), 7) + greatest(max(width(command)), 7) + 14 FROM cusown_runbook($1, $2));
SELECT screen(NULL) <= 160 AS fits;
SELECT step, screen(step) <= 160 AS fits, screen(step, b(8)) <= 160 AS case_fits, screen(step, s(4)) <= 160 AS slot_fits
FROM cusown_runbook() ORDER BY step;

-- Nothing is written.
BEGIN READ ONLY;
SELECT step, (SELECT count(*) > 0 FROM cusown_runbook(r.step)) AS steps FROM cusown_runbook() r ORDER BY step;
SELECT count(*) > 0 AS steps FROM cusown_runbook('payment_mismatch', p(71));
COMMIT;
SELECT provolatile FROM pg_proc WHERE proname = 'cusown_runbook';

-- A monitor sees it; whom row-level security blinds is told so.
CREATE ROLE regress_runbook_monitor;
SELECT count(*) > 0 AS ddl FROM cusown_grant('regress_runbook_monitor', 'monitor');
GRANT USAGE ON SCHEMA runbook_app TO regress_runbook_monitor;
GRANT SELECT ON ALL TABLES IN SCHEMA runbook_app TO regress_runbook_monitor;
SET ROLE regress_runbook_monitor;
SELECT step, state, finding FROM steps();
SELECT * FROM steps('cron_failure');
SELECT * FROM steps('payment_mismatch');
SELECT * FROM cusown_runbook('payment_mismatch', p(71)); -- fails
\echo :SQLSTATE
RESET ROLE;
ALTER ROLE regress_runbook_monitor BYPASSRLS;
SET ROLE regress_runbook_monitor;
SELECT step, state FROM steps() WHERE state <> 'manual';
SELECT count(*) > 0 AS found FROM steps('payment_mismatch', p(71)) WHERE command ~ 'facts';
SELECT count(*) FROM steps('double_booking') WHERE finding ~ 'denied|hides';
RESET ROLE;
REVOKE SELECT ON payments FROM regress_runbook_monitor;
SET ROLE regress_runbook_monitor;
SELECT step, state, finding FROM steps('payment_mismatch');
RESET ROLE;
DROP OWNED BY regress_runbook_monitor;
DROP ROLE regress_runbook_monitor;

-- A migration took a name away: that is told, and no other runbook says quiet.
ALTER TABLE bookings RENAME COLUMN slot_id TO place;
SELECT step, state, finding FROM steps() WHERE finding ~ 'bookings.slot_id' OR finding ~ 'quiet';
SELECT * FROM steps('database_migration') WHERE step = '4' AND state = 'needed';
SELECT step, state, finding FROM steps('double_booking');
ALTER TABLE bookings RENAME COLUMN place TO slot_id;

-- The application that has only what the runbooks name, beside the other one.
SELECT count(*) > 0 AS attached FROM cusown_attach('runbook_shop', :'minimal_mapping');
UPDATE cusown_ops.binding SET bound_since = now() - interval '1 month';
SELECT DISTINCT finding FROM steps('double_booking') WHERE step < '4';
SET cusown_ops.app_schema = runbook_shop;
SELECT step, state, finding FROM steps() WHERE state <> 'manual';
DROP INDEX runbook_shop.reservation_one_confirmed;
INSERT INTO runbook_shop.time_slot (ref, state) VALUES (s(1), 'booked'), (s(2), 'reserved');
INSERT INTO runbook_shop.reservation (ref, state, slot_ref, made_at)
VALUES (b(1), 'confirmed', s(1), now()), (b(2), 'confirmed', s(1), now());
INSERT INTO runbook_shop.charge (ref, reservation_ref, state, made_at)
VALUES (p(1), b(1), 'completed', now()), (p(2), b(1), 'completed', now() + interval '1 s');
CALL cusown_run_job('take_census');
SELECT * FROM steps('double_booking');
SELECT * FROM steps('double_booking', p(1)) WHERE step IN ('0', '3');
SELECT * FROM steps('payment_mismatch');
SELECT count(*) > 0 AS attached FROM cusown_attach('runbook_shop', :'minimal_mapping'::jsonb || '{"payments": null}');
UPDATE cusown_ops.binding SET bound_since = now() - interval '1 month';
SELECT * FROM steps('payment_mismatch') WHERE step = '1';
SELECT * FROM steps('double_booking', s(1)) WHERE step = '0';
RESET cusown_ops.app_schema;

-- What keeps its names to itself: another schema, a path that has none of ours.
SET search_path = pg_catalog;
SELECT count(*) > 5 AS steps FROM public.cusown_runbook();

RESET search_path;
SET client_min_messages = warning;
DROP FUNCTION steps(text, uuid);
DROP SCHEMA runbook_app, runbook_shop CASCADE;
DROP EXTENSION cusown_ops;
