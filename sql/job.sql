-- Shows jobs: what is shipped and what the owner set, a run and its ledger,
-- several applications, the application's own records, and what is refused.
\set ON_ERROR_STOP 0
\set SHOW_CONTEXT never
\getenv abs_srcdir PG_ABS_SRCDIR
\set app :abs_srcdir '/test/fixture/cusown_app.sql'
\set minimal :abs_srcdir '/test/fixture/app_minimal.sql'
SET client_min_messages = warning;
CREATE EXTENSION cusown_ops;
CALL cusown_run_job('expire_bookings'); -- fails
\set ECHO none
\set schema job_app
\i :app
\set schema job_second
\i :minimal
\set schema job_shop
\i :minimal
\set ECHO all
SET search_path = job_app, public;
SELECT count(*) > 0 AS attached FROM cusown_attach('job_app');

-- bookings that are due, each on its own slot; the lowest number is the oldest
CREATE FUNCTION id_of(kind text, n int) RETURNS uuid
LANGUAGE sql IMMUTABLE
RETURN rpad(CASE kind WHEN 'slot' THEN 'a' WHEN 'payment' THEN 'c' ELSE 'b' END
            || lpad(n::text, 7, '0'), 32, '0')::uuid;
CREATE PROCEDURE add_due(first int, last int)
LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO businesses (id, salon_name, owner_name, whatsapp_number,
    opening_time, closing_time, slot_duration, booking_link)
  VALUES (id_of('booking', 0), 'Salon', 'Owner', '+910000000000',
    '09:00', '18:00', 30, 'salon') ON CONFLICT DO NOTHING;
  INSERT INTO slots (id, business_id, date, start_time, end_time, status, reserved_until)
  SELECT id_of('slot', n), id_of('booking', 0), current_date + n, '10:00', '10:30',
         'reserved', now() - interval '2 days'
  FROM generate_series(first, last) n;
  INSERT INTO bookings (id, business_id, slot_id, customer_name, customer_phone,
                        booking_id, created_at)
  SELECT id_of('booking', n), id_of('booking', 0), id_of('slot', n), 'Customer',
         '+910000000001', 'CODE' || n, now() - interval '3 days' + n * interval '1 second'
  FROM generate_series(first, last) n;
END $$;
-- the same in one of the minimal applications
CREATE PROCEDURE add_due_in(app text, first int, last int)
LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE format('INSERT INTO %I.time_slot (ref, state, held_until)'
                 ' SELECT id_of(''slot'', n), ''reserved'', now() - interval ''1 day'''
                 ' FROM generate_series($1, $2) n', app) USING first, last;
  EXECUTE format('INSERT INTO %I.reservation (ref, state, slot_ref, made_at)'
                 ' SELECT id_of(''booking'', n), ''pending'', id_of(''slot'', n), now() - interval ''2 days'''
                 ' FROM generate_series($1, $2) n', app) USING first, last;
END $$;
-- the ledger since it was last emptied
CREATE VIEW ledger AS
SELECT app_schema, job, source, status, changed, released, attention, looked_at,
       batches, sqlstate, message
FROM cusown_ops.job_run ORDER BY id;

-- what is shipped
SELECT * FROM cusown_jobs();

-- what the owner sets, each for itself; null is as shipped
INSERT INTO cusown_ops.job (name, every, enabled)
VALUES ('expire_bookings', '1 minute', NULL), ('prune_history', NULL, false);
SELECT job, every, enabled FROM cusown_jobs();
\set VERBOSITY terse
INSERT INTO cusown_ops.job (name, every) VALUES ('release_expired_holds', '0'); -- fails
INSERT INTO cusown_ops.job (name, every) VALUES ('release_expired_holds', '-1 minute'); -- fails
INSERT INTO cusown_ops.job (name) VALUES ('expire_bookings'); -- fails
INSERT INTO cusown_ops.job (name) VALUES ('expire-bookings'); -- fails
INSERT INTO cusown_ops.job (name) VALUES (''); -- fails
UPDATE cusown_ops.job SET name = 'nightly' WHERE name = 'prune_history'; -- fails
\set VERBOSITY default
SELECT cusown_ops.is_shipped_job(NULL);
-- nor one whose double no clock holds, which the health report would stumble over
\set VERBOSITY terse
UPDATE cusown_ops.job SET every = '200000 years' WHERE name = 'prune_history'; -- fails
\set VERBOSITY default
DELETE FROM cusown_ops.job;
SELECT job, every, enabled FROM cusown_jobs();

-- a run to the end, in batches: three windows; one that finds nothing more does
-- not count
CALL add_due(1, 20);
CALL cusown_run_job('expire_bookings', batch_size => 7);
TABLE ledger;
SELECT started_at <= last_batch_at AND last_batch_at <= finished_at AS in_order,
       finished_at > now() - interval '1 minute' AND finished_at <= clock_timestamp() AS now,
       session = format('pid %s, role %s', pg_backend_pid(), current_user) AS session
FROM cusown_ops.job_run;
SELECT status, cancelled_by, count(*) FROM bookings GROUP BY 1, 2;
SELECT action_type, metadata->>'source' AS source, count(*) FROM audit_logs GROUP BY 1, 2 ORDER BY 1;
SELECT count(*) AS breaks FROM verify_audit_chain();

-- a run stays one, whatever a trigger does to its session's advisory locks
CREATE TABLE alive (is_alive boolean);
CREATE FUNCTION unlock_all() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_advisory_unlock_all();
  INSERT INTO alive VALUES (cusown_ops.job_is_alive('job_app', 'expire_bookings'));
  RETURN NULL;
END $$;
CREATE TRIGGER unlock_all AFTER UPDATE ON bookings EXECUTE FUNCTION unlock_all();
CALL add_due(501, 502);
CALL cusown_run_job('expire_bookings');
SELECT DISTINCT is_alive FROM alive;
SELECT cusown_ops.job_is_alive('job_app', 'expire_bookings');
DROP FUNCTION unlock_all CASCADE;
DELETE FROM cusown_ops.job_run WHERE id = (SELECT max(id) FROM cusown_ops.job_run);

-- while nothing runs
TABLE cusown_ops.job_progress;
SELECT cusown_ops.job_is_alive('job_app', 'expire_bookings');
SELECT cusown_ops.job_is_alive('job_app', 'nightly'); -- fails

-- each booking is looked at once a run, also those that must stay, which are
-- the oldest here
TRUNCATE cusown_ops.job_run;
CALL add_due(21, 50);
INSERT INTO payments (id, booking_id, provider, provider_payment_id, amount_cents, status, created_at)
SELECT id_of('payment', n), id_of('booking', n), 'razorpay', 'pay_' || n, 100,
       CASE WHEN n > 30 THEN 'processing' ELSE 'completed' END::payment_status, now()
FROM generate_series(21, 33) n;
CALL cusown_run_job('expire_bookings', batch_size => 7);
TABLE ledger;
SELECT status, count(*) FROM bookings WHERE id > id_of('booking', 20) GROUP BY 1 ORDER BY 1;
SELECT kind, count(*), max(times) AS times FROM cusown_ops.attention GROUP BY 1;
-- again: what is backed off is looked at and left alone
CALL cusown_run_job('expire_bookings', batch_size => 7);
SELECT changed, attention, looked_at, batches FROM cusown_ops.job_run ORDER BY id DESC LIMIT 1;
-- batch by batch, with pauses; as many as fit is the setting's or the argument's
CALL cusown_run_job('expire_bookings', batch_size => 1, pause => '1 millisecond');
SET cusown_ops.batch_size = 5;
CALL cusown_run_job('expire_bookings', pause => NULL);
RESET cusown_ops.batch_size;
CALL cusown_run_job('expire_bookings');
SELECT looked_at, batches FROM cusown_ops.job_run ORDER BY id DESC LIMIT 3;

-- the other jobs
TRUNCATE cusown_ops.job_run;
UPDATE slots SET status = 'reserved', reserved_until = now() - interval '1 minute'
WHERE id <= id_of('slot', 10);
UPDATE slots SET status = 'reserved', reserved_until = NULL WHERE id = id_of('slot', 11);
INSERT INTO bookings (business_id, slot_id, customer_name, customer_phone, booking_id, status)
VALUES (id_of('booking', 0), id_of('slot', 1), 'Customer', '0', 'TAKEN', 'confirmed');
CALL cusown_run_job('release_expired_holds', 'cron', 4);
UPDATE cusown_ops.change SET at = now() - interval '8 days';
UPDATE cusown_ops.attention SET closed_at = now() - interval '8 days', closed_by = 'me',
  next_try = now() - interval '8 days' WHERE entity_id <= id_of('booking', 22);
CALL cusown_run_job('prune_history', 'worker');
TABLE ledger;
SELECT count(*) FROM cusown_ops.change;
SELECT kind, count(*) FROM cusown_ops.attention GROUP BY 1 ORDER BY 1;

-- what is refused; no row for any of it
TRUNCATE cusown_ops.job_run;
BEGIN;
CALL cusown_run_job('expire_bookings'); -- fails
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
CALL cusown_run_job('expire_bookings') \; SELECT 1; -- fails
\echo :LAST_ERROR_SQLSTATE
CREATE FUNCTION calls_a_job() RETURNS void LANGUAGE plpgsql
AS 'BEGIN CALL cusown_run_job(''expire_bookings''); END';
SELECT calls_a_job(); -- fails
\echo :LAST_ERROR_SQLSTATE
DO $$ BEGIN
  CALL cusown_run_job('expire_bookings');
EXCEPTION WHEN division_by_zero THEN NULL;
END $$; -- fails
\echo :LAST_ERROR_SQLSTATE
CALL cusown_run_job('nightly'); -- fails
\echo :LAST_ERROR_SQLSTATE
CALL cusown_run_job('expire-bookings'); -- fails
CALL cusown_run_job('Expire_Bookings'); -- fails
CALL cusown_run_job(''); -- fails
CALL cusown_run_job(NULL); -- fails
\echo :LAST_ERROR_SQLSTATE
CALL cusown_run_job('expire_bookings', 'me'); -- fails
\echo :LAST_ERROR_SQLSTATE
CALL cusown_run_job('expire_bookings', NULL); -- fails
CALL cusown_run_job('expire_bookings', batch_size => 0); -- fails
\echo :LAST_ERROR_SQLSTATE
CALL cusown_run_job('expire_bookings', batch_size => -1); -- fails
CALL cusown_run_job('expire_bookings', batch_size => 10001); -- fails
CALL cusown_run_job('expire_bookings', pause => '-1 second'); -- fails
\echo :LAST_ERROR_SQLSTATE
CALL cusown_run_job('expire_bookings', pause => '1001 years'); -- fails
SET default_transaction_isolation = 'repeatable read';
CALL cusown_run_job('expire_bookings'); -- fails
\echo :LAST_ERROR_SQLSTATE
RESET default_transaction_isolation;
SET default_transaction_read_only = on;
CALL cusown_run_job('expire_bookings'); -- fails
\echo :LAST_ERROR_SQLSTATE
RESET default_transaction_read_only;
TABLE ledger;
TABLE cusown_ops.job_progress;

-- an error ends the run: its batch is rolled back, the ones before are kept
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'no change of %', NEW.booking_id USING ERRCODE = 'XX123';
END $$;
CALL add_due(61, 80);
CREATE TRIGGER refuse BEFORE UPDATE ON bookings FOR EACH ROW
WHEN (OLD.booking_id = 'CODE74') EXECUTE FUNCTION refuse();
UPDATE payments SET status = 'completed';
UPDATE cusown_ops.attention SET next_try = now() + interval '1 day';
TRUNCATE cron_run_logs, metrics;
-- 11 that are paid stay in front: the third batch is 64 .. 73, the fourth 74 ..
CALL cusown_run_job('expire_bookings', batch_size => 10); -- fails
\echo :LAST_ERROR_SQLSTATE
TABLE ledger;
SELECT string_agg(booking_id, ' ' ORDER BY id) AS left_over
FROM bookings WHERE status = 'pending' AND id > id_of('booking', 60);
SELECT count(*) AS changes FROM cusown_ops.change WHERE entity = 'booking';
SELECT job_name, status, completed_at >= started_at AS in_order, duration_ms >= 0 AS duration, error_message
FROM cron_run_logs;
TABLE metrics;
SELECT cusown_ops.job_is_alive('job_app', 'expire_bookings');

-- several applications: a row each; the error of one does not stop the next,
-- and is raised when all are done
SELECT count(*) > 0 AS attached FROM cusown_attach('job_second', :'minimal_mapping');
SELECT count(*) > 0 AS attached FROM cusown_attach('job_shop', :'minimal_mapping');
CALL add_due_in('job_second', 1, 3);
CALL add_due_in('job_shop', 1, 2);
TRUNCATE cusown_ops.job_run, cron_run_logs;
CALL cusown_run_job('expire_bookings', 'cron'); -- fails
\echo :LAST_ERROR_SQLSTATE
TABLE ledger;
-- one of them
DROP TRIGGER refuse ON bookings;
CALL add_due_in('job_second', 4, 5);
TRUNCATE cusown_ops.job_run;
SET cusown_ops.app_schema = 'job_second';
CALL cusown_run_job('expire_bookings');
RESET cusown_ops.app_schema;
TABLE ledger;
-- one whose binding no longer resolves
ALTER TABLE job_second.time_slot RENAME state TO status;
TRUNCATE cusown_ops.job_run;
CALL cusown_run_job('expire_bookings'); -- fails
\echo :LAST_ERROR_SQLSTATE
TABLE ledger;
-- of two, the one that is not raised is a warning
ALTER TABLE job_shop.time_slot RENAME state TO status;
CALL cusown_run_job('expire_bookings'); -- fails
ALTER TABLE job_shop.time_slot RENAME status TO state;
ALTER TABLE job_second.time_slot RENAME status TO state;
SELECT cusown_detach('job_second');
SELECT cusown_detach('job_shop');

-- the application's own records, where it has any: the last run of each job,
-- and how many bookings expired, only when some did
TRUNCATE cusown_ops.job_run, cron_run_logs, metrics;
CALL cusown_run_job('expire_bookings', 'cron');
SELECT job_name, status, completed_at >= started_at AS in_order, error_message FROM cron_run_logs;
SELECT metric, to_timestamp(value) > now() - interval '1 minute' AS now, updated_at > now() - interval '1 minute' AS updated
FROM metrics ORDER BY 1;
CALL add_due(81, 83);
CALL cusown_run_job('expire_bookings', 'cron');
CALL add_due(84, 85);
CALL cusown_run_job('expire_bookings', 'cron');
CALL cusown_run_job('release_expired_holds', 'cron');
SELECT metric, CASE WHEN metric LIKE 'bookings%' THEN value END AS value FROM metrics ORDER BY 1;
SELECT job_name, status, count(*) FROM cron_run_logs GROUP BY 1, 2 ORDER BY 1;
-- if they refuse their rows, the run is still what it was
TRUNCATE cusown_ops.job_run, cron_run_logs, metrics;
ALTER TABLE cron_run_logs ADD CONSTRAINT no_such_job CHECK (job_name <> 'expire-bookings');
CALL add_due(86, 87);
CALL cusown_run_job('expire_bookings');
TABLE ledger;
SELECT count(*) AS logs, (SELECT count(*) FROM metrics) AS metrics FROM cron_run_logs;
ALTER TABLE cron_run_logs DROP CONSTRAINT no_such_job;
-- also by a deferred trigger, which must not end the call
CREATE FUNCTION refuse_late() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'no metrics today';
END $$;
CREATE CONSTRAINT TRIGGER refuse_late AFTER INSERT OR UPDATE ON metrics DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION refuse_late();
CALL cusown_run_job('expire_bookings');
SELECT status FROM ledger;
DROP TRIGGER refuse_late ON metrics;
-- where they are not bound, none
DELETE FROM cusown_ops.binding WHERE relation IN ('cron_run_logs', 'metrics');
CALL cusown_run_job('expire_bookings');
SELECT count(*) AS logs, (SELECT count(*) FROM metrics) AS metrics FROM cron_run_logs;
SELECT status FROM ledger;
SELECT count(*) > 0 AS attached FROM cusown_attach('job_app');

-- a job that its owner disabled is skipped where nobody asked for it
TRUNCATE cusown_ops.job_run;
CALL add_due(101, 102);
INSERT INTO cusown_ops.job (name, enabled) VALUES ('expire_bookings', false), ('release_expired_holds', NULL);
SET client_min_messages = notice;
CALL cusown_run_job('expire_bookings', 'cron');
CALL cusown_run_job('expire_bookings', 'worker');
CALL cusown_run_job('release_expired_holds', 'cron');
CALL cusown_run_job('expire_bookings', 'lazy_heal', 1);
CALL add_due(103, 103);
CALL cusown_run_job('expire_bookings');
SET client_min_messages = warning;
SELECT job, source, status, changed, sqlstate FROM ledger;
SELECT finished_at IS NOT NULL AS finished FROM cusown_ops.job_run WHERE status = 'skipped';
UPDATE cusown_ops.job SET enabled = true;
CALL add_due(104, 104);
CALL cusown_run_job('expire_bookings', 'cron');
SELECT source, status, changed FROM ledger WHERE job = 'expire_bookings' AND source = 'cron';
DELETE FROM cusown_ops.job;

-- the ledger keeps the newest runs of each job and outcome
TRUNCATE cusown_ops.job_run;
SET cusown_ops.job_run_retention = 2;
SET statement_timeout = '1min';
CALL cusown_run_job('expire_bookings', 'lazy_heal');
CALL cusown_run_job('expire_bookings', 'application');
CALL cusown_run_job('release_expired_holds');
CALL add_due(88, 88);
CREATE TRIGGER refuse BEFORE UPDATE ON bookings FOR EACH ROW
WHEN (OLD.booking_id = 'CODE88') EXECUTE FUNCTION refuse();
CALL cusown_run_job('expire_bookings', 'lazy_heal'); -- fails
CALL cusown_run_job('expire_bookings', 'application'); -- fails
CALL cusown_run_job('expire_bookings', 'cron'); -- fails
DROP TRIGGER refuse ON bookings;
CALL cusown_run_job('expire_bookings', 'worker');
SELECT job, source, status FROM ledger;
SET cusown_ops.job_run_retention = 0; -- fails
RESET cusown_ops.job_run_retention;
RESET statement_timeout;

-- a row whose run is gone: it is no progress, and the next run says that it died
TRUNCATE cusown_ops.job_run;
INSERT INTO cusown_ops.job_run (app_schema, job, source, started_at, status, session)
VALUES ('job_app', 'expire_bookings', 'cron', now() - interval '1 hour', 'running', 'pid 0, role gone'),
       ('job_app', 'prune_history', 'cron', now() - interval '1 hour', 'running', 'pid 0, role gone');
TABLE cusown_ops.job_progress;
CALL cusown_run_job('expire_bookings');
SELECT job, source, status, finished_at > now() - interval '1 minute' AS finished FROM cusown_ops.job_run ORDER BY id;

-- who may: an operator, and nobody less
CREATE ROLE regress_job_operator BYPASSRLS;
CREATE ROLE regress_job_application BYPASSRLS;
CREATE ROLE regress_job_monitor BYPASSRLS;
SELECT cusown_grant('regress_job_operator', 'operator') \g /dev/null
SELECT cusown_grant('regress_job_application', 'application') \g /dev/null
SELECT cusown_grant('regress_job_monitor', 'monitor') \g /dev/null
-- with the DDL that it returns
SELECT g FROM cusown_grant('regress_job_operator', 'operator') g \gexec
TRUNCATE cusown_ops.job_run;
CALL add_due(89, 89);
SET ROLE regress_job_operator;
INSERT INTO cusown_ops.job (name, every) VALUES ('expire_bookings', '5 minutes');
CALL cusown_run_job('expire_bookings', 'cron');
CALL cusown_run_job('release_expired_holds', 'cron');
CALL cusown_run_job('prune_history', 'cron');
SELECT job, status, changed, message FROM cusown_ops.job_run ORDER BY id;
SELECT DISTINCT session = format('pid %s, role regress_job_operator', pg_backend_pid()) AS session FROM cusown_ops.job_run;
INSERT INTO cusown_ops.job (name, enabled) VALUES ('prune_history', false);
RESET ROLE;
SET ROLE regress_job_application;
CALL cusown_run_job('expire_bookings'); -- fails
SELECT count(*) FROM cusown_jobs() WHERE NOT enabled;
SELECT count(*) FROM cusown_ops.job_progress;
UPDATE cusown_ops.job SET enabled = true; -- fails
DELETE FROM cusown_ops.job_run; -- fails
RESET ROLE;
SET ROLE regress_job_monitor;
CALL cusown_run_job('expire_bookings'); -- fails
SELECT count(*) FROM cusown_ops.job_progress;
SELECT count(*) FROM cusown_ops.job_run;
RESET ROLE;
-- unattended, a superuser does not touch the tables of others
ALTER TABLE bookings OWNER TO regress_job_operator;
TRUNCATE cusown_ops.job_run;
SELECT count(*) AS logged FROM cron_run_logs \gset
CALL cusown_run_job('expire_bookings', 'cron'); -- fails
\echo :LAST_ERROR_SQLSTATE
-- nor does it tell the application of a job that needs none of them
DELETE FROM cusown_ops.job WHERE name = 'prune_history';
CALL cusown_run_job('prune_history', 'cron');
SELECT count(*) - :logged AS logged FROM cron_run_logs;
CALL cusown_run_job('expire_bookings');
SELECT count(*) - :logged AS logged FROM cron_run_logs;
TABLE ledger;

SELECT cusown_detach('job_app');
DROP SCHEMA job_app, job_second, job_shop CASCADE;
DROP EXTENSION cusown_ops;
DROP OWNED BY regress_job_operator, regress_job_application, regress_job_monitor;
DROP ROLE regress_job_operator, regress_job_application, regress_job_monitor;
