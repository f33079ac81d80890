-- Shows each symptom: it fires, is mended, and is quiet again; thresholds; who may see
-- them; what an application lacks.
\set ON_ERROR_STOP 0
\set SHOW_CONTEXT never
\getenv abs_srcdir PG_ABS_SRCDIR
\set app :abs_srcdir '/test/fixture/cusown_app.sql'
\set minimal :abs_srcdir '/test/fixture/app_minimal.sql'
SET client_min_messages = warning;
CREATE EXTENSION cusown_ops;
SELECT * FROM cusown_symptoms(); -- fails
SELECT cusown_set_threshold('job_late', 1, 2); -- fails
\set ECHO none
\set schema symptom_app
\i :app
\set schema symptom_shop
\i :minimal
\set ECHO all
SET search_path = symptom_app, public;
SELECT count(*) > 0 AS attached FROM cusown_attach('symptom_app');
-- nothing has run since it was attached, a month ago
UPDATE cusown_ops.binding SET bound_since = now() - interval '1 month';

CREATE FUNCTION id(n int) RETURNS uuid LANGUAGE sql IMMUTABLE
RETURN rpad('a' || lpad(n::text, 7, '0'), 32, '0')::uuid;
INSERT INTO businesses (id, salon_name, owner_name, whatsapp_number,
  opening_time, closing_time, slot_duration, booking_link)
VALUES (id(0), 'Salon', 'Owner', '+910000000000', '09:00', '18:00', 30, 'salon');
-- booking n on slot n, with a payment where a status is given
CREATE PROCEDURE add_booking(n int, status text, slot_status text DEFAULT 'available', payment text DEFAULT NULL, age interval DEFAULT '0')
LANGUAGE sql AS $$
  INSERT INTO slots (id, business_id, date, start_time, end_time, status, reserved_until)
  VALUES (id(n), id(0), current_date + n, '10:00', '10:30', slot_status, CASE slot_status WHEN 'reserved' THEN now() - age END);
  INSERT INTO bookings (id, business_id, slot_id, customer_name, customer_phone, booking_id, status, created_at, cancelled_at)
  VALUES (id(n), id(0), id(n), 'Customer', '+910000000001', 'CODE' || n, status, now() - age, CASE status WHEN 'cancelled' THEN now() END);
  INSERT INTO payments (id, booking_id, provider, provider_payment_id, amount_cents, status, created_at)
  SELECT id(n), id(n), 'razorpay', 'pay_' || n, 1000, payment::payment_status, now() - age WHERE payment IS NOT NULL;
$$;
CREATE PROCEDURE forget() LANGUAGE sql AS $$
  DELETE FROM payments; DELETE FROM bookings; DELETE FROM slots;
$$;
-- what fires, but for what is always so in this test
CREATE VIEW firing AS
SELECT symptom, severity, observed, threshold, since IS NOT NULL AS since FROM cusown_symptoms()
WHERE firing AND symptom NOT IN ('scheduler_absent', 'job_late');

-- ---------- all of them ----------
SELECT runbook, symptom, severity, observed IS NULL AS unknown, threshold, firing, command FROM cusown_symptoms() ORDER BY runbook, symptom;
-- in the order in which to look at them
SELECT array_agg(DISTINCT severity) FROM (SELECT severity, row_number() OVER () AS n FROM cusown_symptoms()) s WHERE n <= 1;
SELECT count(*) FILTER (WHERE length(command) > 48) AS too_long FROM cusown_symptoms();
-- each has a runbook that says what it is counted in
SELECT s.symptom FROM cusown_symptoms() s FULL JOIN cusown_ops.shipped_symptoms() k USING (symptom) WHERE s.symptom IS NULL OR k.unit IS NULL;

-- ---------- jobs ----------
-- this one has a test of its own
INSERT INTO cusown_ops.job (name, enabled) VALUES ('evaluate_alerts', false);
SELECT observed, severity FROM cusown_symptoms() WHERE symptom = 'job_late';
CALL cusown_run_job('expire_bookings');
CALL cusown_run_job('release_expired_holds');
CALL cusown_run_job('expire_payments');
CALL cusown_run_job('prune_history');
CALL cusown_run_job('retry_parked_webhooks');
CALL cusown_run_job('prune_idempotency');
CALL cusown_run_job('take_census');
SELECT observed, severity FROM cusown_symptoms() WHERE symptom = 'job_late';
UPDATE cusown_ops.job_run SET finished_at = now() - interval '11 minutes' WHERE job = 'expire_bookings';
SELECT observed, severity, since = date_trunc('second', (SELECT late_since FROM cusown_cron_health() WHERE late), 'UTC') AS since
FROM cusown_symptoms() WHERE symptom = 'job_late';
-- one that the owner has disabled is none
INSERT INTO cusown_ops.job (name, enabled) VALUES ('expire_bookings', false);
SELECT observed, severity FROM cusown_symptoms() WHERE symptom = 'job_late';
DELETE FROM cusown_ops.job WHERE name = 'expire_bookings';
CALL cusown_run_job('expire_bookings');
SELECT observed, severity FROM cusown_symptoms() WHERE symptom = 'job_late';
INSERT INTO cusown_ops.job_run (app_schema, job, source, started_at, finished_at, status, session)
VALUES ('symptom_app', 'expire_payments', 'cron', now(), now(), 'failed', 'pid 1, role nobody'),
       ('symptom_app', 'prune_history', 'cron', now(), NULL, 'running', 'pid 1, role nobody');
SELECT * FROM firing;
CALL cusown_run_job('expire_payments');
CALL cusown_run_job('prune_history');
SELECT * FROM firing;

-- ---------- what does not expire ----------
CALL add_booking(1, 'pending', age => '24 hours 10 minutes');
SELECT * FROM firing;
CALL forget();
CALL add_booking(1, 'pending', age => '24 hours 20 minutes');
CALL add_booking(2, 'pending', 'reserved', age => '20 minutes');
SELECT symptom, severity, round(observed / 60) AS minutes, threshold FROM firing;
UPDATE bookings SET created_at = created_at - interval '1 hour';
UPDATE slots SET reserved_until = reserved_until - interval '1 hour';
SELECT symptom, severity, round(observed / 60) AS minutes, threshold FROM firing;
-- one that is paid waits for a human, and one that cannot be cancelled
CALL add_booking(3, 'pending', payment => 'completed', age => '3 days');
CALL add_booking(4, 'pending', age => '4 days');
UPDATE bookings SET undo_used_at = now() WHERE id = id(4);
SELECT symptom, round(observed / 60) AS minutes FROM firing;
CALL cusown_run_job('expire_bookings');
CALL cusown_run_job('release_expired_holds');
SELECT symptom, severity, observed, since FROM firing;
UPDATE cusown_ops.attention SET first_seen = first_seen - interval '2 days';
SELECT symptom, severity, observed > 86400 AS days, since FROM firing WHERE symptom = 'worklist_age';
CALL forget();
CALL cusown_run_job('expire_bookings');
SELECT * FROM firing;

-- ---------- double bookings ----------
SELECT * FROM cusown_guard('functions');
SELECT observed FROM cusown_symptoms() WHERE symptom = 'guard_mode';
SELECT cusown_set_threshold('guard_mode', 3, 1);
SELECT * FROM firing;
SELECT count(*) FROM cusown_guard('transitions');
SELECT * FROM firing;
SELECT count(*) FROM cusown_guard('off');
SELECT * FROM firing;
SELECT cusown_set_threshold('guard_mode', NULL, NULL);
DROP INDEX idx_bookings_one_confirmed_per_slot;
SELECT * FROM firing;
CALL add_booking(1, 'confirmed', 'booked');
INSERT INTO bookings (id, business_id, slot_id, customer_name, customer_phone, booking_id, status)
VALUES (id(2), id(0), id(1), 'Customer', '+910000000001', 'CODE2', 'confirmed');
CALL add_booking(3, 'confirmed', 'available');
-- they are counted by the job
SELECT * FROM firing;
CALL cusown_run_job('take_census');
SELECT * FROM firing;
SELECT count(*) > 0 AS resolved FROM cusown_resolve_double_bookings();
SELECT count(*) > 0 AS repaired FROM cusown_repair_slots();
CREATE UNIQUE INDEX idx_bookings_one_confirmed_per_slot ON bookings (slot_id) WHERE status = 'confirmed';
CALL cusown_run_job('take_census');
SELECT * FROM firing;
UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'idx_bookings_one_confirmed_per_slot'::regclass;
SELECT symptom, observed FROM firing;
UPDATE pg_index SET indisvalid = true WHERE indexrelid = 'idx_bookings_one_confirmed_per_slot'::regclass;
CALL forget();

-- ---------- payments ----------
CALL add_booking(1, 'cancelled', payment => 'completed');
CALL add_booking(2, 'pending', payment => 'completed', age => '2 days');
CALL add_booking(3, 'confirmed', 'booked', payment => 'refunded');
UPDATE payments SET refund_amount_cents = 1001 WHERE id = id(3);
CALL add_booking(4, 'confirmed', 'booked');
UPDATE bookings SET payment_required = true WHERE id = id(4);
INSERT INTO payments (id, booking_id, provider, provider_payment_id, amount_cents, status)
VALUES (id(5), id(2), 'razorpay', 'pay_2', 1000, 'completed');
CALL cusown_run_job('take_census');
SELECT * FROM firing;
-- since the first time that it was counted
UPDATE cusown_ops.census SET since = since - interval '1 day';
CALL cusown_run_job('take_census');
SELECT count(*) AS old FROM cusown_ops.census WHERE since < now() - interval '23 hours';
CALL forget();
CALL cusown_run_job('take_census');
SELECT * FROM firing;
SELECT count(*) AS since FROM cusown_ops.census WHERE since IS NOT NULL;

-- ---------- webhooks and the worklist ----------
INSERT INTO cusown_ops.webhook_inbox (app_schema, provider, event_type, body_sha256, payment_ids, outcome, received_at, next_try)
VALUES ('symptom_app', 'upi', 'success', '\x01', '{}', 'parked', now() - interval '20 minutes', now()),
       ('symptom_app', 'upi', 'success', '\x02', '{}', 'unmatched', now() - interval '4 days', 'infinity'),
       ('another', 'upi', 'success', '\x02', '{}', 'unmatched', now() - interval '4 days', 'infinity');
INSERT INTO cusown_ops.webhook_rejected (app_schema, provider, http_status, reason, body_sha256, body_size, at)
SELECT 'symptom_app', 'upi', 401, 'signature', '\x', 0, now() - CASE WHEN n > 10 THEN interval '2 hours' ELSE '0' END FROM generate_series(1, 20) n;
INSERT INTO cusown_ops.webhook_rejected (app_schema, provider, http_status, reason, body_sha256, body_size)
SELECT 'symptom_app', 'upi', 400, 'malformed', '\x', 0 FROM generate_series(1, 200) n;
INSERT INTO cusown_ops.attention (app_schema, kind, entity, entity_id, runbook, finding, next_try)
SELECT 'symptom_app', 'paid_cancelled', 'payment', id(n), 'payment_mismatch', 'booking is cancelled', now() FROM generate_series(1, 2) n;
INSERT INTO cusown_ops.attention (app_schema, kind, entity, entity_id, runbook, finding, next_try)
VALUES ('symptom_app', 'unresolvable', 'booking', id(1), 'double_booking', 'no', now());
SELECT symptom, severity, CASE symptom WHEN 'webhook_waiting' THEN 1200 ELSE observed END AS observed, threshold, since FROM firing;
UPDATE cusown_ops.webhook_inbox SET outcome = 'ignored', next_try = NULL;
UPDATE cusown_ops.attention SET closed_at = now(), closed_by = 'somebody' WHERE closed_at IS NULL;
DELETE FROM cusown_ops.webhook_rejected;
SELECT * FROM firing;

-- ---------- thresholds ----------
SELECT cusown_set_threshold(NULL, 1, 2); -- fails
SELECT cusown_set_threshold('nothing', 1, 2); -- fails
SELECT cusown_set_threshold('job_late', 'NaN', 2); -- fails
SELECT cusown_set_threshold('job_late', 1, 'NaN'); -- fails
SELECT cusown_set_threshold('cron_worklist', 0, NULL);
SELECT * FROM firing;
SELECT cusown_set_threshold('cron_worklist', 5, 0);
SELECT * FROM firing;
SELECT cusown_set_threshold('cron_worklist', NULL, 'infinity');
SELECT * FROM firing;
SELECT symptom, warning, critical FROM cusown_ops.threshold ORDER BY symptom;
BEGIN READ ONLY;
SELECT count(*) FROM firing;
SELECT cusown_set_threshold('job_late', 1, 2); -- fails
ROLLBACK;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT count(*) FROM firing;
ROLLBACK;

-- ---------- names that are gone ----------
ALTER TABLE bookings RENAME status TO state;
SELECT * FROM firing;
SELECT observed FROM cusown_symptoms() WHERE symptom IN ('pending_overdue', 'unique_index_missing');
ALTER TABLE bookings RENAME state TO status;
SELECT * FROM firing;

-- ---------- who may ----------
CREATE ROLE regress_symptom_monitor BYPASSRLS;
CREATE ROLE regress_symptom_blind;
SELECT ddl FROM cusown_grant('regress_symptom_monitor', 'monitor') AS ddl \gexec
ALTER ROLE regress_symptom_monitor BYPASSRLS;
SELECT ddl FROM cusown_grant('regress_symptom_blind', 'monitor') AS ddl WHERE ddl NOT LIKE 'ALTER ROLE%' \gexec
GRANT SELECT ON firing TO regress_symptom_monitor;
SET ROLE regress_symptom_monitor;
SELECT count(*) FROM cusown_symptoms();
SELECT cusown_set_threshold('job_late', 1, 2); -- fails
SET ROLE regress_symptom_blind;
SELECT count(*) FROM cusown_symptoms(); -- fails
RESET ROLE;
-- whatever the caller's settings
SET search_path = symptom_shop;
SET TimeZone = 'Asia/Kolkata';
SET DateStyle = 'German';
SELECT count(*) FROM public.cusown_symptoms();
RESET TimeZone;
RESET DateStyle;
SET search_path = symptom_app, public;

-- ---------- other names, fewer columns ----------
SELECT count(*) > 0 AS attached FROM cusown_attach('symptom_shop', :'minimal_mapping');
UPDATE cusown_ops.binding SET bound_since = now() - interval '1 month';
SELECT count(*) FROM cusown_symptoms(); -- fails
SET cusown_ops.app_schema = 'symptom_shop';
INSERT INTO symptom_shop.time_slot VALUES (id(1), 'reserved', now() - interval '20 minutes');
INSERT INTO symptom_shop.reservation VALUES (id(1), 'pending', id(1), NULL, now() - interval '25 hours 1 minute');
INSERT INTO symptom_shop.charge (ref, reservation_ref, state, made_at) VALUES (id(1), NULL, 'completed', now());
CALL cusown_run_job('take_census');
SELECT symptom, severity, round(observed / 60) AS minutes FROM firing;
SELECT symptom FROM cusown_symptoms() WHERE observed IS NULL ORDER BY symptom;
SELECT count(*) > 0 AS attached FROM cusown_attach('symptom_shop', jsonb_set(:'minimal_mapping', '{payments}', 'null'));
UPDATE cusown_ops.binding SET bound_since = now() - interval '1 month';
CALL cusown_run_job('take_census');
SELECT symptom, severity, round(observed / 60) AS minutes FROM firing;
CALL cusown_run_job('expire_bookings');
CALL cusown_run_job('release_expired_holds');
SELECT symptom, severity, round(observed / 60) AS minutes FROM firing;
-- of an application that was detached nothing is counted
SELECT count(*) > 0 AS detached FROM cusown_detach('symptom_shop');
RESET cusown_ops.app_schema;
UPDATE cusown_ops.census SET counted_at = now() - interval '8 days';
SELECT more FROM cusown_prune_history();
SELECT DISTINCT app_schema FROM cusown_ops.census;

\set ECHO none
DROP SCHEMA symptom_app, symptom_shop CASCADE;
DROP EXTENSION cusown_ops;
DROP OWNED BY regress_symptom_monitor, regress_symptom_blind;
DROP ROLE regress_symptom_monitor, regress_symptom_blind;
