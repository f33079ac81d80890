-- Shows the health of jobs: never run, run in time, late, failed, disabled; by
-- application.
\getenv abs_srcdir PG_ABS_SRCDIR
\set minimal :abs_srcdir '/test/fixture/app_minimal.sql'
SET client_min_messages = warning;
CREATE EXTENSION cusown_ops;

-- nothing attached: nothing to run
SELECT count(*) FROM cusown_cron_health();

\set schema health_shop
\set ECHO none
\i :minimal
\set ECHO all
SELECT count(*) > 0 AS attached FROM cusown_attach('health_shop', :'minimal_mapping');
CREATE VIEW health AS
SELECT app_schema, job, every, enabled, late, late_since IS NOT NULL AS known_since,
       last_outcome AS outcome, last_source AS source, running_since IS NOT NULL AS running, cron_state
FROM cusown_cron_health();
-- what was just set up is not late before the scheduler has had time for it
SELECT job, late FROM health WHERE late;
UPDATE cusown_ops.binding SET bound_since = now() - interval '9 minutes';
SELECT job, late, date_trunc('minute', now() - late_since) AS late_for FROM cusown_cron_health() WHERE late;
INSERT INTO cusown_ops.job (name, every) VALUES ('release_expired_holds', '4 minutes');
SELECT job, late FROM health WHERE job = 'release_expired_holds';
DELETE FROM cusown_ops.job;
UPDATE cusown_ops.binding SET bound_since = now() - interval '1 month';
SELECT * FROM health;

-- a success of any source counts
CALL cusown_run_job('expire_bookings');
CALL cusown_run_job('release_expired_holds', 'cron');
SELECT * FROM health;

-- late after twice the interval, which the owner may set; since that moment
UPDATE cusown_ops.job_run SET started_at = now() - interval '9 minutes',
  finished_at = now() - interval '9 minutes';
SELECT * FROM health WHERE job <> 'prune_history';
INSERT INTO cusown_ops.job (name, every) VALUES ('expire_bookings', '4 minutes');
SELECT job, late, date_trunc('minute', now() - late_since) AS late_for FROM cusown_cron_health()
WHERE job = 'expire_bookings';
UPDATE cusown_ops.job SET enabled = false;
SELECT * FROM health WHERE job = 'expire_bookings';

-- a run that was skipped is no success, nor is it the last outcome
UPDATE cusown_ops.job SET enabled = true;
INSERT INTO cusown_ops.job_run (app_schema, job, source, started_at, finished_at, status, session)
VALUES ('health_shop', 'expire_bookings', 'cron', now(), now(), 'skipped', 'pid 0');
SELECT job, late, known_since, outcome, source FROM health WHERE job = 'expire_bookings';

-- a failed run is no success, and a run whose session is gone has died
ALTER TABLE health_shop.time_slot RENAME TO gone;
CALL cusown_run_job('release_expired_holds'); -- fails
SELECT job, late, outcome FROM health WHERE job = 'release_expired_holds';
INSERT INTO cusown_ops.job_run (app_schema, job, source, started_at, status, session)
VALUES ('health_shop', 'prune_history', 'worker', now(), 'running', 'pid 0');
SELECT job, late, outcome, running FROM health WHERE job = 'prune_history';

DROP VIEW health;
DROP SCHEMA health_shop CASCADE;
DROP EXTENSION cusown_ops;
