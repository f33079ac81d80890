--
-- demo_dead.sql
--      The server came back without pg_cron, and nobody noticed.
--
\set QUIET on
\pset footer off
\pset null '-'

\echo '17. The scheduler dies: the server was restarted, and pg_cron is missing in'
\echo '    shared_preload_libraries.  Its table of jobs looks as ever.  A quarter of'
\echo '    an hour later:'
\echo
\echo '   SELECT * FROM cusown_cron_health();'
\echo
UPDATE cusown_ops.job_run SET started_at = started_at - interval '15 minutes',
  finished_at = finished_at - interval '15 minutes', last_batch_at = last_batch_at - interval '15 minutes';
SELECT job, every, late, date_trunc('second', now() - late_since) AS "late for", last_outcome, cron_state
FROM cusown_cron_health() WHERE enabled AND last_outcome IS NOT NULL;

SELECT expect('jobs that are late', count(*) FILTER (WHERE late), 2::bigint) AS n
FROM cusown_cron_health() WHERE last_outcome IS NOT NULL \gset

\echo '18. By hand, as the runbook says; and the job is no longer late.'
\echo
\echo '   CALL cusown_run_job(''expire_bookings'');'
\echo
CALL cusown_run_job('expire_bookings');
SELECT job, late, last_outcome, last_source FROM cusown_cron_health() WHERE job = 'expire_bookings';

SELECT expect('expire_bookings is late', late, false) AS n
FROM cusown_cron_health() WHERE job = 'expire_bookings' \gset

\echo 'Every figure above is as it should be.'
