/* ---------- worker: covers for a scheduler that has died ---------- */

CREATE TABLE cusown_ops.takeover (
  app_schema name NOT NULL,
  job text NOT NULL,
  since timestamptz NOT NULL DEFAULT pg_catalog.now(),
  CONSTRAINT takeover_pkey PRIMARY KEY (app_schema, job)
);

COMMENT ON TABLE cusown_ops.takeover IS
'Jobs that the worker runs, as the scheduler does not; gone once it does again';
COMMENT ON COLUMN cusown_ops.takeover.app_schema IS 'schema of the application';
COMMENT ON COLUMN cusown_ops.takeover.job IS 'name of the job';
COMMENT ON COLUMN cusown_ops.takeover.since IS 'when the worker took it over';

CREATE TABLE cusown_ops.outage (
  app_schema name NOT NULL,
  job text NOT NULL,
  since timestamptz NOT NULL DEFAULT pg_catalog.now(),
  CONSTRAINT outage_pkey PRIMARY KEY (app_schema, job)
);

COMMENT ON TABLE cusown_ops.outage IS
'Jobs whose failure the application''s audit trail was told of (cron_failed), but not yet that it is over (cron_recovered)';
COMMENT ON COLUMN cusown_ops.outage.app_schema IS 'schema of the application';
COMMENT ON COLUMN cusown_ops.outage.job IS 'name of the job';
COMMENT ON COLUMN cusown_ops.outage.since IS 'when it was told';

-- beside the audit trail that was told
SELECT pg_catalog.pg_extension_config_dump('cusown_ops.outage', '');

CREATE FUNCTION @extschema@.cusown_worker_status(
  OUT database name,
  OUT last_visit timestamptz,
  OUT did text,
  OUT next_visit timestamptz,
  OUT visits bigint,
  OUT failures integer,
  OUT last_error text,
  OUT last_error_at timestamptz,
  OUT pid integer,
  OUT doing text)
RETURNS SETOF record
LANGUAGE c VOLATILE PARALLEL UNSAFE ROWS 5
AS 'MODULE_PATHNAME', 'cusown_worker_status';

COMMENT ON FUNCTION @extschema@.cusown_worker_status() IS
'The worker''s visits to each database of cusown_ops.worker_databases: the last one and what it did, the next one, how many there were since the launcher came up and how many in a row have failed, the last error, and the process that is at it now, with what it does.
Nothing on a standby, which has no launcher, and with cusown_ops.worker off.
Errors: 55000 the library is not preloaded.
Source: runbook Cron Failure, step 4.';

