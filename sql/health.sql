-- Shows what a health check is answered: by symptoms, by a job that is late whatever its
-- threshold, where nothing is attached, and where rows are hidden.
\set ON_ERROR_STOP 0
\getenv abs_srcdir PG_ABS_SRCDIR
\set app :abs_srcdir '/test/fixture/cusown_app.sql'
\set minimal :abs_srcdir '/test/fixture/app_minimal.sql'
SET client_min_messages = warning;
CREATE EXTENSION cusown_ops;
-- nothing is attached: that is an answer
SELECT cusown_health() - 'checks' AS health;
\set ECHO none
\set schema health_app
\i :app
\set schema health_shop
\i :minimal
\set ECHO all
SET search_path = health_app, public;
SELECT count(*) > 0 AS attached FROM cusown_attach('health_app');
-- nothing has run since it was attached, a month ago
UPDATE cusown_ops.binding SET bound_since = now() - interval '1 month';
-- what is always so in this test
SELECT cusown_set_threshold('scheduler_absent', NULL, NULL);
CREATE VIEW health AS
SELECT h ->> 'status' AS status, h -> 'checks' -> 'cron_expire_bookings_last_run_ts' AS last_run,
       (SELECT string_agg(r ->> 'symptom', ' ') FROM jsonb_array_elements(h -> 'reasons') r) AS reasons
FROM cusown_health() h;

SELECT * FROM health;
CREATE PROCEDURE run_all() LANGUAGE plpgsql AS $$
DECLARE j text;
BEGIN
  FOR j IN SELECT name FROM cusown_ops.shipped_jobs() LOOP
    INSERT INTO cusown_ops.job_run (app_schema, job, source, started_at, finished_at, status, session)
    VALUES (cusown_ops.chosen_app_schema(), j, 'cron', now(), to_timestamp(extract(epoch FROM now())::bigint - 1), 'succeeded', 'pid 1, role nobody');
  END LOOP;
END
$$;
CALL run_all();
SELECT status, reasons, last_run::bigint = (SELECT extract(epoch FROM max(finished_at)) FROM cusown_ops.job_run WHERE job = 'expire_bookings') AS last_run FROM health;
-- the keys of the application's own health check, and more
SELECT jsonb_object_keys(cusown_health()) ORDER BY 1;
SELECT key, jsonb_typeof(value) FROM jsonb_each(cusown_health() -> 'checks') ORDER BY 1;
SELECT (cusown_health() -> 'checks' ->> 'timestamp')::timestamptz BETWEEN now() AND clock_timestamp() AS now, cusown_health() -> 'checks' ->> 'timestamp' ~ '\+00:00$' AS utc;
SET TimeZone = 'Asia/Kolkata';
SELECT cusown_health() -> 'checks' ->> 'timestamp' ~ '\+00:00$' AS utc;
RESET TimeZone;

-- a warning, and what is critical
INSERT INTO cusown_ops.job_run (app_schema, job, source, started_at, finished_at, status, session)
VALUES ('health_app', 'expire_payments', 'cron', now(), now(), 'failed', 'pid 1, role nobody');
SELECT status, reasons FROM health;
SELECT jsonb_pretty(cusown_health() -> 'reasons');
DROP INDEX idx_bookings_one_confirmed_per_slot;
SELECT status, reasons FROM health;
-- a scheduler that has died is never healthy, whatever the thresholds
SELECT count(cusown_set_threshold(symptom, NULL, NULL)) AS never FROM cusown_symptoms() WHERE firing;
SELECT status, reasons FROM health;
UPDATE cusown_ops.job_run SET finished_at = finished_at - interval '11 minutes' WHERE job = 'expire_bookings';
SELECT status, reasons FROM health;
SELECT cusown_set_threshold('job_late', NULL, NULL);
SELECT status, reasons FROM health;
-- somebody else may have run it: the application's own figure counts as well
INSERT INTO metrics (metric, value) VALUES ('cron.expire_bookings.last_run_ts', 4000000000);
SELECT last_run FROM health;
UPDATE metrics SET value = 1;
SELECT last_run::bigint > 1 AS ours FROM health;
DELETE FROM cusown_ops.job_run;
SELECT last_run FROM health;

-- it writes nothing, and never fails
BEGIN READ ONLY;
SELECT status FROM health;
ROLLBACK;
CREATE ROLE regress_health_monitor BYPASSRLS;
CREATE ROLE regress_health_blind;
SELECT ddl FROM cusown_grant('regress_health_monitor', 'monitor') AS ddl WHERE ddl LIKE '%metrics%'
GRANT USAGE ON SCHEMA health_app TO regress_health_monitor, regress_health_blind;
GRANT SELECT ON ALL TABLES IN SCHEMA health_app TO regress_health_monitor, regress_health_blind;
SELECT count(*) > 0 AS asks FROM cusown_grant('regress_health_blind', 'monitor');
SET ROLE regress_health_monitor;
SELECT cusown_health() ->> 'status' AS status, cusown_health() -> 'checks' -> 'cron_expire_bookings_last_run_ts' AS last_run;
SET ROLE regress_health_blind;
SELECT cusown_health() - 'checks' AS health;
RESET ROLE;
-- a name that is gone is a symptom
ALTER TABLE bookings RENAME status TO state;
SELECT status, reasons FROM health;
ALTER TABLE bookings RENAME state TO status;
-- several applications, and none chosen
SELECT count(*) > 0 AS attached FROM cusown_attach('health_shop', :'minimal_mapping');
UPDATE cusown_ops.binding SET bound_since = now() - interval '1 month';
SELECT cusown_health() - 'checks' AS health;
SET cusown_ops.app_schema = 'health_shop';
SELECT cusown_set_threshold('scheduler_absent', NULL, NULL);
SELECT * FROM health;
CALL run_all();
SELECT status, reasons, last_run IS NOT NULL AS last_run FROM health;
SELECT cusown_health() -> 'app_schema' AS app_schema;
RESET cusown_ops.app_schema;

\set ECHO none
DROP SCHEMA health_app, health_shop CASCADE;
DROP EXTENSION cusown_ops;
DROP OWNED BY regress_health_monitor, regress_health_blind;
DROP ROLE regress_health_monitor, regress_health_blind;
