/* ---------- cron health: whether the jobs run when they should ---------- */

CREATE FUNCTION @extschema@.cusown_cron_health(
  OUT job text,
  OUT app_schema name,
  OUT every interval,
  OUT enabled boolean,
  OUT late boolean,
  OUT late_since timestamptz,
  OUT last_success timestamptz,
  OUT last_run timestamptz,
  OUT last_outcome text,
  OUT last_source text,
  OUT last_session text,
  OUT running_since timestamptz,
  OUT cron_jobid bigint,
  OUT cron_state text)
RETURNS SETOF record
LANGUAGE c STABLE PARALLEL UNSAFE ROWS 10
AS 'MODULE_PATHNAME', 'cusown_cron_health';

COMMENT ON FUNCTION @extschema@.cusown_cron_health() IS
'Whether each job runs on each attached application when it should.
late: the last success is older than twice every; there is none, and the job was set up longer ago than that; late_since: when it became so.
last_outcome: running, succeeded, failed, cancelled or died; on a standby, which cannot see that a session has gone, running for died too.
cron_state: active, inactive, not loaded (the job is there, but pg_cron is not in shared_preload_libraries), or unknown where pg_cron is not there, has no such job, or hides it (it shows a role its own jobs only).
Source: runbook Cron Failure, step 1.';

