--
-- demo_schedule.sql
--      The backlog is gone; pg_cron gets the jobs, and has its minute.
--
\set QUIET on
\pset footer off
\pset null '-'
SET client_min_messages = warning;

\echo '14. It is done.'
\echo
\echo '   SELECT * FROM cusown_ops.job_run;'
\echo
SELECT job, source, status, changed, released, looked_at, batches,
       date_trunc('milliseconds', finished_at - started_at) AS took
FROM cusown_ops.job_run WHERE job = 'expire_bookings';

SELECT expect('expired of the backlog', changed, 5000::bigint) AS n
FROM cusown_ops.job_run WHERE job = 'expire_bookings' \gset

\echo '15. Mended: pg_cron is to run the jobs from now on, as a role of their own.'
\echo
\echo '   CREATE EXTENSION pg_cron;'
\echo '   CREATE ROLE jobs LOGIN BYPASSRLS;'
\echo '   SELECT cusown_grant(''jobs'', ''operator'') \\gexec'
\echo '   SELECT * FROM cusown_schedule(username => ''jobs'');'
\echo
CREATE EXTENSION pg_cron;
CALL cusown_run_job('expire_payments');
CALL cusown_run_job('retry_parked_webhooks');
CALL cusown_run_job('prune_idempotency');
CALL cusown_run_job('take_census');
CREATE ROLE jobs LOGIN BYPASSRLS;
SELECT ddl FROM cusown_grant('jobs', 'operator') AS ddl \gexec
GRANT USAGE ON SCHEMA cron TO jobs;
SELECT job_name, schedule, role, active FROM cusown_schedule(username => 'jobs');

SELECT expect('jobs in pg_cron', count(*), 8::bigint) AS n FROM cron.job \gset

\echo '16. At the next full minute pg_cron runs what is due then.  (Waiting for it.)'
\echo
DO $$
BEGIN
  FOR i IN 1 .. 700 LOOP
    -- all of this minute: a run that the restart cut off would be one that died
    EXIT WHEN EXISTS (SELECT FROM cusown_ops.job_run WHERE source = 'cron' AND status = 'succeeded'
                         AND job = 'release_expired_holds')
      AND NOT EXISTS (SELECT FROM cusown_ops.job_run WHERE status = 'running')
      AND extract(second FROM clock_timestamp()) BETWEEN 2 AND 50;
    PERFORM pg_sleep(0.1);
  END LOOP;
END
$$;
SELECT job, source, status, changed, session FROM cusown_ops.job_run
WHERE job = 'release_expired_holds' AND source = 'cron' ORDER BY id LIMIT 1;
SELECT job, every, late, last_outcome, cron_state FROM cusown_cron_health() WHERE enabled AND last_outcome IS NOT NULL;

SELECT expect('release_expired_holds is late', late, false) AS n
FROM cusown_cron_health() WHERE job = 'release_expired_holds' \gset
SELECT expect('expire_bookings is late', late, false) AS n
FROM cusown_cron_health() WHERE job = 'expire_bookings' \gset
