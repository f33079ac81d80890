-- Shows lazy heal: whose turn it is by the ledger, what it expires and writes,
-- what it leaves alone, how it fails, and what is refused.  Not preloaded, so
-- each session has to look once itself.
\set ON_ERROR_STOP 0
\set SHOW_CONTEXT never
\getenv abs_srcdir PG_ABS_SRCDIR
\set app :abs_srcdir '/test/fixture/cusown_app.sql'
\set minimal :abs_srcdir '/test/fixture/app_minimal.sql'
SET client_min_messages = warning;
CREATE EXTENSION cusown_ops;

-- no application: a WARNING with the SQLSTATE and the hint, once, and no error
SELECT cusown_expire_if_due();
SELECT cusown_expire_if_due();
-- for the next session it is the first time
\c -
SELECT cusown_expire_if_due();
SELECT count(*) FROM cusown_ops.job_run;

\set ECHO none
\set schema lazy_app
\i :app
\set schema lazy_shop
\i :minimal
\set ECHO all
SET client_min_messages = warning;
ALTER DATABASE :DBNAME SET search_path = lazy_app, public;
SET search_path = lazy_app, public;
SELECT count(*) > 0 AS attached FROM cusown_attach('lazy_app');
-- nothing has run since it was attached, a month ago
UPDATE cusown_ops.binding SET bound_since = now() - interval '1 month';

-- bookings that are due, each on its own slot; the lowest number is the oldest
CREATE FUNCTION id_of(kind text, n int) RETURNS uuid
LANGUAGE sql IMMUTABLE
RETURN md5(kind || n)::uuid;
CREATE PROCEDURE add_due(first int, last int)
LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO businesses (id, salon_name, owner_name, whatsapp_number,
    opening_time, closing_time, slot_duration, booking_link)
  VALUES (id_of('business', 0), 'Salon', 'Owner', '+910000000000',
    '09:00', '18:00', 30, 'salon') ON CONFLICT DO NOTHING;
  INSERT INTO slots (id, business_id, date, start_time, end_time, status, reserved_until)
  SELECT id_of('slot', n), id_of('business', 0), current_date + n, '10:00', '10:30',
         'reserved', now() - interval '2 days'
  FROM generate_series(first, last) n;
  INSERT INTO bookings (id, business_id, slot_id, customer_name, customer_phone,
                        booking_id, created_at)
  SELECT id_of('booking', n), id_of('business', 0), id_of('slot', n), 'Customer',
         '+910000000001', 'CODE' || n, now() - interval '30 days' + n * interval '1 second'
  FROM generate_series(first, last) n;
END $$;
CREATE VIEW ledger AS
SELECT app_schema, job, source, status, changed, released, attention, looked_at,
       batches, sqlstate, message
FROM cusown_ops.job_run ORDER BY id;
CREATE VIEW pending AS SELECT count(*) AS pending FROM bookings WHERE status = 'pending';

-- the first caller works; the next ones, of this session or another, do not
CALL add_due(1, 5);
SELECT cusown_expire_if_due();
CALL add_due(6, 10);
SELECT cusown_expire_if_due();
\c -
SELECT cusown_expire_if_due();
TABLE ledger;
TABLE pending;
-- its row is a whole one
SELECT started_at <= last_batch_at AND last_batch_at = finished_at AS in_order,
       finished_at > now() - interval '1 minute' AND finished_at <= clock_timestamp() AS now,
       session ~ ('^pid \d+, role ' || current_user || '$') AS session
FROM cusown_ops.job_run;
SELECT action_type, metadata->>'source' AS source, count(*) FROM audit_logs
GROUP BY 1, 2 ORDER BY 1;
SELECT verb, source, entity, count(*) FROM cusown_changes_since() GROUP BY 1, 2, 3 ORDER BY 3;
-- the interval is 30 seconds by default, from the start of the last turn
UPDATE cusown_ops.job_run SET started_at = now() - interval '20 seconds';
\c -
SELECT cusown_expire_if_due();
UPDATE cusown_ops.job_run SET started_at = now() - interval '30 seconds';
\c -
SELECT cusown_expire_if_due();
-- or what a superuser sets, which counts at once
CALL add_due(11, 15);
SELECT cusown_expire_if_due();
SET cusown_ops.lazy_expire_interval = 0;
SELECT cusown_expire_if_due();
SELECT cusown_expire_if_due();
SET cusown_ops.lazy_expire_interval = '20d';
SELECT cusown_expire_if_due();
UPDATE cusown_ops.job_run SET started_at = now() - interval '21 days';
\c -
SET cusown_ops.lazy_expire_interval = '60d';
SELECT cusown_expire_if_due();
\c -
SET cusown_ops.lazy_expire_interval = '20d';
SELECT cusown_expire_if_due();
SELECT status, changed, batches FROM ledger;
-- a clock that was set back does not stop it for long
CALL add_due(16, 16);
UPDATE cusown_ops.job_run SET started_at = now() + interval '1 hour';
\c -
SELECT cusown_expire_if_due();
-- a turn that was rolled back is none
CALL add_due(17, 18);
SET cusown_ops.lazy_expire_interval = 0;
BEGIN;
SELECT cusown_expire_if_due();
-- once in a transaction
SELECT cusown_expire_if_due();
ROLLBACK;
TABLE pending;
TRUNCATE cusown_ops.job_run;
BEGIN;
SAVEPOINT before;
SELECT cusown_expire_if_due();
ROLLBACK TO before;
SELECT cusown_expire_if_due();
COMMIT;
TABLE ledger;

-- at most so many, the oldest first; the paid one in front stays
CALL add_due(20, 140);
INSERT INTO payments (id, booking_id, provider, provider_payment_id, amount_cents, status, created_at)
VALUES (id_of('payment', 20), id_of('booking', 20), 'razorpay', 'pay_20', 100, 'completed', now());
SELECT cusown_expire_if_due(1);
SELECT booking_id FROM bookings WHERE status = 'cancelled' AND id IN (id_of('booking', 20), id_of('booking', 21));
SET cusown_ops.batch_size = 7;
SELECT cusown_expire_if_due();
RESET cusown_ops.batch_size;
TABLE pending;
SELECT cusown_expire_if_due(100);
SELECT kind, entity_id = id_of('booking', 20) AS the_paid_one FROM cusown_ops.attention;
SELECT count(*) AS breaks FROM verify_audit_chain();

-- what is refused is a mistake of the code that calls, and no row
TRUNCATE cusown_ops.job_run;
SELECT cusown_expire_if_due(101); -- fails
\echo :LAST_ERROR_SQLSTATE
SELECT cusown_expire_if_due(0); -- fails
\echo :LAST_ERROR_SQLSTATE
SELECT cusown_expire_if_due(-1); -- fails
SELECT cusown_expire_if_due(NULL); -- fails
\echo :LAST_ERROR_SQLSTATE

-- in a read-only transaction nothing, without a word
BEGIN READ ONLY;
SELECT cusown_expire_if_due();
COMMIT;
-- with another snapshot than its own it cannot work, and says so; it takes
-- nobody's turn
CALL add_due(201, 201);
SET cusown_ops.lazy_expire_interval = '1h';
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT cusown_expire_if_due();
SELECT cusown_expire_if_due();
SELECT 1 AS the_request_goes_on;
COMMIT;
\c -
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT cusown_expire_if_due();
COMMIT;
TABLE ledger;
SELECT cusown_expire_if_due();
TABLE ledger;

-- what the application refuses: a WARNING and a row, and the request goes on;
-- not again before the next turn
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'no change of %', NEW.booking_id
  USING ERRCODE = TG_ARGV[0], HINT = 'Ask the salon.', DETAIL = 'A secret.';
END $$;
CALL add_due(202, 203);
CREATE TRIGGER refuse BEFORE UPDATE ON bookings FOR EACH ROW
WHEN (OLD.booking_id = 'CODE203') EXECUTE FUNCTION refuse('XX123');
TRUNCATE cusown_ops.job_run;
\c -
BEGIN;
INSERT INTO metrics (metric, value) VALUES ('requests', 1);
SELECT cusown_expire_if_due();
SELECT cusown_expire_if_due();
COMMIT;
SELECT value FROM metrics WHERE metric = 'requests';
TABLE ledger;
TABLE pending;
-- another session sees that it was tried
\c -
SELECT cusown_expire_if_due();
SELECT count(*) FROM cusown_ops.job_run;
-- the WARNING carries the SQLSTATE
SET cusown_ops.lazy_expire_interval = 0;
\set VERBOSITY sqlstate
SELECT cusown_expire_if_due();
\set VERBOSITY default
-- and is all that is left where the ledger refuses its row as well, which
-- takes back what was done
TRUNCATE cusown_ops.job_run;
ALTER TABLE cusown_ops.job_run ADD CONSTRAINT full_up CHECK (false);
SELECT cusown_expire_if_due();
DROP TRIGGER refuse ON bookings;
SELECT cusown_expire_if_due();
TABLE pending;
ALTER TABLE cusown_ops.job_run DROP CONSTRAINT full_up;
-- a cancel and a shutdown are not for us
CREATE TRIGGER refuse BEFORE UPDATE ON bookings FOR EACH ROW
WHEN (OLD.booking_id = 'CODE203') EXECUTE FUNCTION refuse('57014');
SELECT cusown_expire_if_due(); -- fails
\echo :LAST_ERROR_SQLSTATE
DROP TRIGGER refuse ON bookings;
CREATE TRIGGER refuse BEFORE UPDATE ON bookings FOR EACH ROW
WHEN (OLD.booking_id = 'CODE203') EXECUTE FUNCTION refuse('57P01');
SELECT cusown_expire_if_due(); -- fails
\echo :LAST_ERROR_SQLSTATE
DROP TRIGGER refuse ON bookings;
CREATE TRIGGER refuse BEFORE UPDATE ON bookings FOR EACH ROW
WHEN (OLD.booking_id = 'CODE203') EXECUTE FUNCTION refuse('57P02');
SELECT cusown_expire_if_due(); -- fails
\echo :LAST_ERROR_SQLSTATE
DROP TRIGGER refuse ON bookings;
-- a binding that no longer resolves
ALTER TABLE bookings RENAME COLUMN status TO condition;
SELECT cusown_expire_if_due();
ALTER TABLE bookings RENAME COLUMN condition TO status;
TABLE ledger;
SELECT cusown_expire_if_due();

-- a trigger of the application that calls it from within, and within a job
CREATE FUNCTION as_on_each_request() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO metrics (metric, value) VALUES ('from within', cusown_expire_if_due() + 1)
  ON CONFLICT (metric) DO UPDATE SET value = metrics.value + excluded.value;
  RETURN NEW;
END $$;
CREATE TRIGGER request BEFORE UPDATE ON bookings FOR EACH ROW EXECUTE FUNCTION as_on_each_request();
CALL add_due(204, 206);
SELECT cusown_expire_if_due(2);
CALL cusown_run_job('expire_bookings');
SELECT value FROM metrics WHERE metric = 'from within';
DROP TRIGGER request ON bookings;
TABLE pending;

-- the application's count, only when something expired; its run of the job has
-- another
TRUNCATE metrics;
SELECT cusown_expire_if_due();
SELECT count(*) FROM metrics;
CALL add_due(207, 211);
SELECT cusown_expire_if_due(3);
SELECT metric, value, updated_at > now() - interval '1 minute' AS now FROM metrics;
SELECT cusown_expire_if_due();
SELECT metric, value FROM metrics;
-- if it refuses that, what expired has expired
CALL add_due(212, 212);
ALTER TABLE metrics ADD CONSTRAINT at_most_five CHECK (value <= 5);
TRUNCATE cusown_ops.job_run;
SELECT cusown_expire_if_due();
TABLE ledger;
SHOW lock_timeout;
ALTER TABLE metrics DROP CONSTRAINT at_most_five;
DELETE FROM cusown_ops.binding WHERE relation = 'metrics';
CALL add_due(213, 213);
SELECT cusown_expire_if_due();
SELECT metric, value FROM metrics;
SHOW lock_timeout;

-- a deferred trigger does not fail the request: it fires before the commit
CREATE FUNCTION refuse_late() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NEW.booking_id = 'CODE301' THEN
    RAISE EXCEPTION 'no';
  END IF;
  RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER refuse_late AFTER UPDATE ON bookings DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION refuse_late();
CALL add_due(301, 303);
SELECT cusown_expire_if_due();
SELECT sqlstate, entity_id = id_of('booking', 301) AS is_it FROM cusown_ops.attention WHERE kind = 'expiry_failed';
DROP TRIGGER refuse_late ON bookings;
DELETE FROM bookings WHERE id = id_of('booking', 301);
DELETE FROM cusown_ops.attention WHERE kind = 'expiry_failed';

-- it does not make a dead scheduler look alive
TRUNCATE cusown_ops.job_run;
SELECT cusown_expire_if_due();
SELECT job, late, last_success IS NULL AS never, last_run IS NULL AS never_run
FROM cusown_cron_health() WHERE job = 'expire_bookings';
SELECT count(*) FROM cusown_ops.job_progress;

-- several applications: one must be chosen, and each has its turns
SELECT count(*) > 0 AS attached FROM cusown_attach('lazy_shop', :'minimal_mapping');
UPDATE cusown_ops.binding SET bound_since = now() - interval '1 month';
INSERT INTO lazy_shop.time_slot (ref, state, held_until)
SELECT id_of('slot', n), 'reserved', now() - interval '1 day' FROM generate_series(1, 3) n;
INSERT INTO lazy_shop.reservation (ref, state, slot_ref, made_at)
SELECT id_of('booking', n), 'pending', id_of('slot', n), now() - interval '2 days'
FROM generate_series(1, 3) n;
TRUNCATE cusown_ops.job_run;
SET cusown_ops.lazy_expire_interval = '1h';
\c -
CALL add_due(214, 214);
SELECT cusown_expire_if_due();
SELECT cusown_expire_if_due();
SET cusown_ops.app_schema = 'lazy_shop';
SELECT cusown_expire_if_due();
SET cusown_ops.app_schema = 'lazy_app';
SELECT cusown_expire_if_due();
SELECT cusown_expire_if_due();
SET cusown_ops.app_schema = 'lazy_shop';
SELECT cusown_expire_if_due();
\c -
SET cusown_ops.app_schema = 'lazy_gone';
SELECT cusown_expire_if_due();
RESET cusown_ops.app_schema;
TABLE ledger;
-- an application that is left is not healed any more
SET cusown_ops.lazy_expire_interval = 0;
SELECT cusown_detach('lazy_shop');
SET cusown_ops.app_schema = 'lazy_shop';
SELECT cusown_expire_if_due();
RESET cusown_ops.app_schema;
SELECT cusown_expire_if_due();

-- the ledger keeps the newest of each outcome
SELECT count(*) > 0 AS attached FROM cusown_attach('lazy_app');
UPDATE cusown_ops.binding SET bound_since = now() - interval '1 month';
TRUNCATE cusown_ops.job_run;
SET cusown_ops.job_run_retention = 2;
SELECT cusown_expire_if_due();
SELECT cusown_expire_if_due();
SELECT cusown_expire_if_due();
ALTER TABLE payments RENAME TO paid;
SET client_min_messages = error;
SELECT cusown_expire_if_due();
SELECT cusown_expire_if_due();
SELECT cusown_expire_if_due();
SET client_min_messages = warning;
ALTER TABLE paid RENAME TO payments;
SELECT id - min(id) OVER () AS nth, status FROM cusown_ops.job_run ORDER BY id;

-- who may: an application and an operator, with what cusown_grant() asks for
SET client_min_messages = warning;
CREATE ROLE regress_lazy_monitor BYPASSRLS;
CREATE ROLE regress_lazy_application BYPASSRLS;
CREATE ROLE regress_lazy_blind;
CREATE ROLE regress_lazy_operator BYPASSRLS;
SELECT cusown_grant('regress_lazy_monitor', 'monitor') \g /dev/null
SELECT g FROM cusown_grant('regress_lazy_application', 'application') g \gexec
SELECT g FROM cusown_grant('regress_lazy_operator', 'operator') g \gexec
GRANT regress_lazy_application TO regress_lazy_blind;
CALL add_due(215, 216);
TRUNCATE cusown_ops.job_run;
SET ROLE regress_lazy_monitor;
SELECT cusown_expire_if_due(); -- fails
\echo :LAST_ERROR_SQLSTATE
-- one that would not see all rows does nothing, softly
SET ROLE regress_lazy_blind;
SELECT cusown_expire_if_due();
SET ROLE regress_lazy_application;
SELECT cusown_expire_if_due(1);
SELECT cusown_expire_if_due(1);
SELECT cusown_expire_if_due(1);
-- it may not delete from the ledger, nor change it
DELETE FROM cusown_ops.job_run; -- fails
UPDATE cusown_ops.job_run SET status = 'succeeded'; -- fails
SET ROLE regress_lazy_operator;
SELECT count(*) FROM cusown_ops.job_run;
-- which an operator's turn bounds, or the job that prunes
SELECT cusown_expire_if_due();
SELECT status, count(*) FROM cusown_ops.job_run GROUP BY 1 ORDER BY 1;
SET ROLE regress_lazy_application;
SELECT cusown_expire_if_due();
SELECT cusown_expire_if_due();
SELECT status, count(*) FROM cusown_ops.job_run GROUP BY 1 ORDER BY 1;
SET ROLE regress_lazy_operator;
CALL cusown_run_job('prune_history');
SELECT job, status, count(*) FROM cusown_ops.job_run GROUP BY 1, 2 ORDER BY 1, 2;
RESET ROLE;
SELECT metric, value FROM metrics WHERE metric LIKE 'bookings%';
RESET cusown_ops.job_run_retention;

-- an extension that was dropped and made again
DROP VIEW ledger;
DROP EXTENSION cusown_ops;
CREATE EXTENSION cusown_ops;
SELECT cusown_expire_if_due();
SELECT count(*) > 0 AS attached FROM cusown_attach('lazy_app');
UPDATE cusown_ops.binding SET bound_since = now() - interval '1 month';
CALL add_due(218, 218);
SELECT cusown_expire_if_due();

DROP EXTENSION cusown_ops;
DROP OWNED BY regress_lazy_monitor, regress_lazy_application, regress_lazy_blind,
  regress_lazy_operator;
DROP ROLE regress_lazy_monitor, regress_lazy_application, regress_lazy_blind,
  regress_lazy_operator;
ALTER DATABASE :DBNAME RESET search_path;
SET client_min_messages = warning;
DROP SCHEMA lazy_app, lazy_shop CASCADE;
