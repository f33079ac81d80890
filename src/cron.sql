/* ---------- cron: our jobs in pg_cron ---------- */

CREATE FUNCTION @extschema@.cusown_schedule(
  job text DEFAULT NULL,
  every interval DEFAULT NULL,
  username name DEFAULT NULL,
  OUT jobid bigint,
  OUT job_name text,
  OUT schedule text,
  OUT database text,
  OUT role text,
  OUT active boolean,
  OUT command text)
RETURNS SETOF record
LANGUAGE c VOLATILE PARALLEL UNSAFE ROWS 5
AS 'MODULE_PATHNAME', 'cusown_schedule';

COMMENT ON FUNCTION @extschema@.cusown_schedule(text, interval, name) IS
'Puts a job, or all that are enabled, into pg_cron, and returns what pg_cron has now; calling again changes what is there.
job: a name of cusown_jobs(); null: all that are enabled.
every: how often; kept in cusown_ops.job; null: as cusown_jobs() says.
username: the role that runs it; null: the current one. Best a role of its own: a superuser is refused where a bound table or a partition of one belongs to another, and warned of. What another role has of the job is taken out, where cron.job shows it.
In a database other than pg_cron''s, command is what to run there.
Errors: 55000 pg_cron is not there, with the lines to add; 22023 an interval that pg_cron cannot express, with the nearest.
Source: runbook Cron Failure, step 5.';

CREATE FUNCTION @extschema@.cusown_unschedule(job text DEFAULT NULL)
RETURNS bigint
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'cusown_unschedule';

COMMENT ON FUNCTION @extschema@.cusown_unschedule(text) IS
'Takes a job, or all of ours, out of pg_cron; returns how many were there.
Errors: 55000 pg_cron is not in this database.';

