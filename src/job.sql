/* ---------- job: the frame of unattended work, and its ledger ---------- */

CREATE FUNCTION cusown_ops.is_shipped_job(name text)
RETURNS boolean
LANGUAGE c IMMUTABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'cusown_is_shipped_job';

COMMENT ON FUNCTION cusown_ops.is_shipped_job(text) IS
'Whether a job of this name is shipped; for the constraint of cusown_ops.job';

CREATE TABLE cusown_ops.job (
  name text NOT NULL,
  every interval,
  enabled boolean,
  set_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
  CONSTRAINT job_pkey PRIMARY KEY (name),
  CONSTRAINT job_is_shipped CHECK (cusown_ops.is_shipped_job(name)),
  -- as arguments are bounded: twice of it must be addable to any moment
  CONSTRAINT job_every CHECK (every OPERATOR(pg_catalog.>) '0'::interval
    AND every OPERATOR(pg_catalog.<=) '1000 years'::interval)
);

COMMENT ON TABLE cusown_ops.job IS
'What the owner has set for a job; null is as shipped, see cusown_jobs()';
COMMENT ON COLUMN cusown_ops.job.name IS 'name of a shipped job';
COMMENT ON COLUMN cusown_ops.job.every IS 'how often it should run; late after twice as long';
COMMENT ON COLUMN cusown_ops.job.enabled IS 'whether it should run at all; if not, sources cron and worker skip it';

COMMENT ON COLUMN cusown_ops.job.set_at IS 'when this row was made; from then on the worker waits for a first success';

SELECT pg_catalog.pg_extension_config_dump('cusown_ops.job', '');

CREATE FUNCTION cusown_ops.shipped_jobs(
  OUT name text,
  OUT description text,
  OUT every interval,
  OUT enabled boolean)
RETURNS SETOF record
LANGUAGE c IMMUTABLE PARALLEL SAFE ROWS 6
AS 'MODULE_PATHNAME', 'cusown_shipped_jobs';

COMMENT ON FUNCTION cusown_ops.shipped_jobs() IS
'Jobs as they are shipped; see cusown_jobs()';

CREATE FUNCTION @extschema@.cusown_jobs(
  OUT job text,
  OUT every interval,
  OUT enabled boolean,
  OUT description text)
RETURNS SETOF record
LANGUAGE sql STABLE PARALLEL SAFE ROWS 6
SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
  SELECT s.name, coalesce(j.every, s.every), coalesce(j.enabled, s.enabled),
         s.description
  FROM cusown_ops.shipped_jobs() AS s
  LEFT JOIN cusown_ops.job AS j ON j.name OPERATOR(pg_catalog.=) s.name
  ORDER BY s.name;
END;

COMMENT ON FUNCTION @extschema@.cusown_jobs() IS
'The jobs: what is shipped, with what the owner has set in cusown_ops.job.
Run one with CALL cusown_run_job(name).';

CREATE TABLE cusown_ops.job_run (
  id bigint GENERATED ALWAYS AS IDENTITY,
  app_schema name NOT NULL,
  job text NOT NULL,
  source text NOT NULL,
  started_at timestamptz NOT NULL,
  finished_at timestamptz,
  status text NOT NULL,
  changed bigint NOT NULL DEFAULT 0,
  released bigint NOT NULL DEFAULT 0,
  attention bigint NOT NULL DEFAULT 0,
  looked_at bigint NOT NULL DEFAULT 0,
  batches bigint NOT NULL DEFAULT 0,
  last_batch_at timestamptz,
  sqlstate text,
  message text,
  session text NOT NULL,
  more_left boolean NOT NULL DEFAULT false,
  CONSTRAINT job_run_pkey PRIMARY KEY (app_schema, id),
  CONSTRAINT job_run_status CHECK (status OPERATOR(pg_catalog.=) ANY
    ('{running,succeeded,failed,cancelled,skipped,died}'))
);

CREATE INDEX job_run_outcome_idx
ON cusown_ops.job_run (app_schema, job, status, id);

COMMENT ON TABLE cusown_ops.job_run IS
'The ledger: which job ran when, and how it ended; bounded by cusown_ops.job_run_retention';
COMMENT ON COLUMN cusown_ops.job_run.id IS 'order of the runs';
COMMENT ON COLUMN cusown_ops.job_run.app_schema IS 'schema of the application that it worked on';
COMMENT ON COLUMN cusown_ops.job_run.job IS 'name of the job, or expire_if_due, which requests run';
COMMENT ON COLUMN cusown_ops.job_run.source IS 'manual, cron, worker, lazy_heal or application';
COMMENT ON COLUMN cusown_ops.job_run.started_at IS 'when it began';
COMMENT ON COLUMN cusown_ops.job_run.finished_at IS 'when it ended; of a run that died, when that was found';
COMMENT ON COLUMN cusown_ops.job_run.status IS 'running, succeeded, failed, cancelled, skipped (another run was under way, or the job is disabled) or died (its session went)';
COMMENT ON COLUMN cusown_ops.job_run.changed IS 'bookings or payments expired, slots released, bookings marked or rows pruned';
COMMENT ON COLUMN cusown_ops.job_run.released IS 'slots released on the way';
COMMENT ON COLUMN cusown_ops.job_run.attention IS 'entries written to the worklist';
COMMENT ON COLUMN cusown_ops.job_run.looked_at IS 'candidates looked at';
COMMENT ON COLUMN cusown_ops.job_run.batches IS 'batches committed that looked at something';
COMMENT ON COLUMN cusown_ops.job_run.last_batch_at IS 'when the last batch was committed';
COMMENT ON COLUMN cusown_ops.job_run.sqlstate IS 'of the error that ended it';
COMMENT ON COLUMN cusown_ops.job_run.message IS 'of the error that ended it';
COMMENT ON COLUMN cusown_ops.job_run.session IS 'process and role that ran it';
COMMENT ON COLUMN cusown_ops.job_run.more_left IS 'whether the worker ended it, as its time was over, before its work was done; it goes on at its next visit';

SELECT pg_catalog.pg_extension_config_dump('cusown_ops.job_run', '');
SELECT pg_catalog.pg_extension_config_dump('cusown_ops.job_run_id_seq', '');

CREATE TABLE cusown_ops.job_total (
  app_schema name NOT NULL,
  job text NOT NULL,
  changed bigint NOT NULL,
  at timestamptz NOT NULL DEFAULT pg_catalog.now(),
  CONSTRAINT job_total_pkey PRIMARY KEY (app_schema, job)
);

COMMENT ON TABLE cusown_ops.job_total IS
'What each job has changed in runs that the ledger no longer holds; for the view cusown_ops.metric_job';
COMMENT ON COLUMN cusown_ops.job_total.app_schema IS 'schema of the application';
COMMENT ON COLUMN cusown_ops.job_total.job IS 'name of the job';
COMMENT ON COLUMN cusown_ops.job_total.changed IS 'as in cusown_ops.job_run';
COMMENT ON COLUMN cusown_ops.job_total.at IS 'when the last of them left the ledger';

SELECT pg_catalog.pg_extension_config_dump('cusown_ops.job_total', '');

CREATE FUNCTION cusown_ops.check_job_run()
RETURNS trigger
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'cusown_check_job_run';

COMMENT ON FUNCTION cusown_ops.check_job_run() IS
'Trigger of the ledger: who may only add to it adds requests'' runs (job expire_if_due), never a job''s';

CREATE TRIGGER check_job_run
BEFORE INSERT ON cusown_ops.job_run
FOR EACH ROW EXECUTE FUNCTION cusown_ops.check_job_run();

CREATE FUNCTION cusown_ops.job_is_alive(app_schema name, job text)
RETURNS boolean
LANGUAGE c STABLE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'cusown_job_is_alive';

COMMENT ON FUNCTION cusown_ops.job_is_alive(name, text) IS
'Whether a session runs this job on this application now; null on a standby, which cannot know';

CREATE VIEW cusown_ops.job_progress AS
SELECT r.app_schema, r.job, r.source, r.started_at AS since, r.batches,
       r.changed AS done, r.looked_at,
       pg_catalog.round(r.changed OPERATOR(pg_catalog./) NULLIF(EXTRACT(epoch FROM
         r.last_batch_at OPERATOR(pg_catalog.-) r.started_at), 0), 1) AS done_per_second,
       r.last_batch_at, r.session
FROM cusown_ops.job_run AS r
-- CASE: the ledger also has rows of what is no job, which cannot be asked about
WHERE CASE WHEN r.status OPERATOR(pg_catalog.=) 'running' AND cusown_ops.is_shipped_job(r.job)
        THEN cusown_ops.job_is_alive(r.app_schema, r.job) IS NOT FALSE END;

COMMENT ON VIEW cusown_ops.job_progress IS
'Runs that are under way, and how far they are; on a standby also those whose session has gone';
COMMENT ON COLUMN cusown_ops.job_progress.app_schema IS 'schema of the application';
COMMENT ON COLUMN cusown_ops.job_progress.job IS 'name of the job';
COMMENT ON COLUMN cusown_ops.job_progress.source IS 'who started it: manual, cron, worker, lazy_heal or application';
COMMENT ON COLUMN cusown_ops.job_progress.since IS 'when it began';
COMMENT ON COLUMN cusown_ops.job_progress.batches IS 'batches committed that looked at something';
COMMENT ON COLUMN cusown_ops.job_progress.done IS 'bookings or payments expired, slots released, bookings marked or rows pruned so far';
COMMENT ON COLUMN cusown_ops.job_progress.looked_at IS 'candidates looked at so far';
COMMENT ON COLUMN cusown_ops.job_progress.done_per_second IS 'how many were done in a second, from its begin to its last batch';
COMMENT ON COLUMN cusown_ops.job_progress.last_batch_at IS 'when the last batch was committed';
COMMENT ON COLUMN cusown_ops.job_progress.session IS 'process and role that run it';

CREATE PROCEDURE @extschema@.cusown_run_job(
  job text,
  source text DEFAULT 'manual',
  batch_size integer DEFAULT NULL,
  pause interval DEFAULT '0')
LANGUAGE c
AS 'MODULE_PATHNAME', 'cusown_run_job';

COMMENT ON PROCEDURE @extschema@.cusown_run_job(text, text, integer, interval) IS
'Runs a job to its end, in batches that are each a transaction; on the application that cusown_ops.app_schema names, else on each one attached.
job: a name of cusown_jobs(). source: manual, cron, worker, lazy_heal or application.
batch_size: candidates of a batch; null: cusown_ops.batch_size. pause: between batches.
A job that is disabled is skipped with a NOTICE by sources cron and worker; others run it.
Errors: UO009 already running (source manual; others skip with a NOTICE); 25001 inside a transaction block; whatever ended a batch, once it stands in cusown_ops.job_run.
Source: runbook Cron Failure, step 3.';

