--
-- demo_progress.sql
--      A run that is under way in another session.
--
\set QUIET on
\pset footer off

\echo '13. A backlog of 5,000.  One session drains it, in batches of 100 that are'
\echo '    transactions of their own; another one looks at how far it is.'
\echo
\echo '   CALL cusown_run_job(''expire_bookings'', batch_size => 100, pause => ''50 ms'');'
\echo '   SELECT * FROM cusown_ops.job_progress;'
\echo
DO $$
BEGIN
  FOR i IN 1 .. 600 LOOP
    EXIT WHEN EXISTS (SELECT FROM cusown_ops.job_progress WHERE batches >= 5);
    PERFORM pg_sleep(0.05);
  END LOOP;
END
$$;
SELECT job, since, batches, done, looked_at, done_per_second FROM cusown_ops.job_progress;

SELECT expect('runs under way', count(*), 1::bigint) AS n FROM cusown_ops.job_progress \gset
