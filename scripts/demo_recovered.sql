--
-- demo_recovered.sql
--      pg_cron is preloaded again.
--
\set QUIET on
\pset footer off
\pset null '-'

\echo '20. The server is restarted with pg_cron.  At the next full minute that runs a'
\echo '    job again, and the worker stands down.  (Waiting for it.)'
\echo
\echo '   SELECT job, since FROM cusown_ops.takeover;'
\echo
SELECT job, since IS NOT NULL AS covered FROM cusown_ops.takeover ORDER BY job;
SELECT poll($$SELECT NOT EXISTS (SELECT FROM cusown_ops.takeover WHERE job = 'release_expired_holds')$$) AS n \gset
SELECT action_type, severity, metadata->>'job' AS job
FROM audit_logs WHERE action_type = 'cron_recovered' AND metadata->>'job' = 'release_expired_holds';
SELECT job, source, status, session FROM cusown_ops.job_run
WHERE job = 'release_expired_holds' AND status = 'succeeded' ORDER BY id DESC LIMIT 1;

SELECT expect('the job is still covered', count(*), 0::bigint) AS n
FROM cusown_ops.takeover WHERE job = 'release_expired_holds' \gset
SELECT expect('who ran it last', last_source, 'cron') AS n
FROM cusown_cron_health() WHERE job = 'release_expired_holds' \gset

