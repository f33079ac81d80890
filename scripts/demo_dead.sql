--
-- demo_dead.sql
--      The server came back without pg_cron, and nobody noticed.
--
\set QUIET on
\pset footer off
\pset null '-'
SET client_min_messages = warning;

-- Waits until a query is true, for a minute and a half at most.
CREATE FUNCTION poll(query text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  reached boolean;
BEGIN
  FOR i IN 1 .. 900 LOOP
    EXECUTE query INTO reached;
    EXIT WHEN reached;
    PERFORM pg_sleep(0.1);
  END LOOP;
END
$$;

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

SELECT expect('jobs that are late', count(*) FILTER (WHERE late), 5::bigint) AS n
FROM cusown_cron_health() WHERE last_outcome IS NOT NULL \gset

\echo '18. The extension is still preloaded, so its worker has noticed.  As it has no'
\echo '    role to work as, it only tells.'
\echo
\echo '   SELECT database, did FROM cusown_worker_status();'
\echo
SELECT poll($$SELECT did LIKE 'would run %' FROM cusown_worker_status()$$) AS n \gset
SELECT database, did FROM cusown_worker_status();

\echo '19. It is given the one that ran the jobs.  From now on it covers.'
\echo
\echo '   ALTER SYSTEM SET cusown_ops.worker_role = ''jobs'';'
\echo '   SELECT pg_reload_conf();'
\echo
ALTER SYSTEM SET cusown_ops.worker_role = 'jobs';
SELECT pg_reload_conf() AS n \gset
SELECT poll($$SELECT count(DISTINCT job) = 5 FROM cusown_ops.job_run WHERE source = 'worker' AND status = 'succeeded'$$) AS n \gset
SELECT job, late, last_outcome, last_source, last_session LIKE '%role jobs' AS as_jobs
FROM cusown_cron_health() WHERE enabled AND last_outcome IS NOT NULL;
SELECT action_type, severity, metadata->>'job' AS job, metadata->>'source' AS source
FROM audit_logs WHERE action_type = 'cron_failed' ORDER BY created_at;

SELECT expect('jobs that are late', count(*) FILTER (WHERE late), 0::bigint) AS n
FROM cusown_cron_health() WHERE last_outcome IS NOT NULL \gset
SELECT expect('alarms in the audit trail', count(*), 4::bigint) AS n
FROM audit_logs WHERE action_type = 'cron_failed' AND severity = 'critical' \gset
