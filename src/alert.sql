/* ---------- alert: symptoms that fire, told once ---------- */

CREATE TABLE cusown_ops.alert (
  app_schema name NOT NULL,
  id bigint GENERATED ALWAYS AS IDENTITY,
  symptom text NOT NULL,
  runbook text NOT NULL,
  severity text NOT NULL,
  observed double precision,
  threshold double precision,
  opened_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
  last_seen timestamptz NOT NULL DEFAULT pg_catalog.now(),
  times bigint NOT NULL DEFAULT 1,
  acknowledged_at timestamptz,
  acknowledged_by text,
  note text,
  clear_since timestamptz,
  resolved_at timestamptz,
  CONSTRAINT alert_pkey PRIMARY KEY (app_schema, id),
  CONSTRAINT alert_severity
    CHECK (severity OPERATOR(pg_catalog.=) ANY ('{warning,critical}')),
  CONSTRAINT alert_acknowledged
    CHECK ((acknowledged_at IS NULL) OPERATOR(pg_catalog.=) (acknowledged_by IS NULL)),
  CONSTRAINT alert_resolved
    CHECK (resolved_at IS NULL OR clear_since IS NOT NULL)
);

CREATE UNIQUE INDEX alert_one_open
ON cusown_ops.alert (app_schema, symptom) WHERE resolved_at IS NULL;

COMMENT ON TABLE cusown_ops.alert IS
'Symptoms that have fired, one open alert for each; resolved_at is null while it is open. See cusown_evaluate_alerts()';
COMMENT ON COLUMN cusown_ops.alert.app_schema IS
'schema of the attached application';
COMMENT ON COLUMN cusown_ops.alert.id IS
'for cusown_ack(alert, note)';
COMMENT ON COLUMN cusown_ops.alert.symptom IS
'as cusown_symptoms() shows it';
COMMENT ON COLUMN cusown_ops.alert.runbook IS
'the runbook to open';
COMMENT ON COLUMN cusown_ops.alert.severity IS
'warning or critical: the worst that it was since it was opened';
COMMENT ON COLUMN cusown_ops.alert.observed IS
'as it was seen last, in the unit of the symptom';
COMMENT ON COLUMN cusown_ops.alert.threshold IS
'that it had reached then';
COMMENT ON COLUMN cusown_ops.alert.opened_at IS
'when it was first seen';
COMMENT ON COLUMN cusown_ops.alert.last_seen IS
'when it was last seen firing';
COMMENT ON COLUMN cusown_ops.alert.times IS
'how often it was seen firing';
COMMENT ON COLUMN cusown_ops.alert.acknowledged_at IS
'when somebody took it upon him; null: nobody has, or it has become critical since';
COMMENT ON COLUMN cusown_ops.alert.acknowledged_by IS
'role that did';
COMMENT ON COLUMN cusown_ops.alert.note IS
'what was said then';
COMMENT ON COLUMN cusown_ops.alert.clear_since IS
'since when the symptom is quiet; null: it fires';
COMMENT ON COLUMN cusown_ops.alert.resolved_at IS
'when it had been quiet for cusown_ops.alert_hold; null while open';

SELECT pg_catalog.pg_extension_config_dump('cusown_ops.alert', '');
SELECT pg_catalog.pg_extension_config_dump('cusown_ops.alert_id_seq', '');

CREATE FUNCTION cusown_ops.firing_symptoms(
  OUT runbook text,
  OUT symptom text,
  OUT severity text,
  OUT observed double precision,
  OUT threshold double precision,
  OUT command text)
RETURNS SETOF record
LANGUAGE sql STABLE PARALLEL UNSAFE ROWS 10
SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
  SELECT s.runbook, s.symptom, s.severity, s.observed, s.threshold, s.command
  FROM @extschema@.cusown_symptoms() AS s WHERE s.firing;
END;

COMMENT ON FUNCTION cusown_ops.firing_symptoms() IS
'Symptoms of the attached application that fire; for cusown_evaluate_alerts()';

CREATE FUNCTION @extschema@.cusown_evaluate_alerts(
  source text DEFAULT 'manual',
  OUT app_schema name,
  OUT opened integer,
  OUT resolved integer,
  OUT firing integer)
RETURNS SETOF record
LANGUAGE c VOLATILE PARALLEL UNSAFE ROWS 2
AS 'MODULE_PATHNAME', 'cusown_evaluate_alerts';

COMMENT ON FUNCTION @extschema@.cusown_evaluate_alerts(text) IS
'Looks at cusown_symptoms(), opens an alert for each symptom that fires and has none, and resolves those whose symptom has been quiet for cusown_ops.alert_hold; on the application that cusown_ops.app_schema names, else on each one attached. The worker does so once a minute, and so does the job evaluate_alerts.
source: manual, cron, worker, lazy_heal or application.
Returns a row per application: alerts opened, alerts resolved, symptoms that fire. One that somebody evaluates at the moment is left out, with a NOTICE; of several, one that fails is left out, with a WARNING and its error in the ledger.
What is opened, becomes critical or is resolved is told once: by NOTIFY cusown_ops, and in the server''s log; of jobs that are late also by audit rows cron_failed and cron_recovered, where the worker does not.
Errors: UO001 nothing attached; 22023 unknown source; 42501 row-level security would hide rows, or source cron or worker as a superuser; 0A000 not under READ COMMITTED; 25006 standby or read-only transaction.
Locks: keeps other evaluations out to the end of the transaction; waits for no alert that somebody acknowledges at the moment.
Source: the symptoms of each runbook.';

CREATE FUNCTION @extschema@.cusown_ack(alert bigint, note text)
RETURNS boolean
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'cusown_ack';

COMMENT ON FUNCTION @extschema@.cusown_ack(bigint, text) IS
'Acknowledges an alert: somebody works on it. It stays open until its symptom is quiet; should it become critical, that is told, and asks to be acknowledged again.
alert: id in cusown_ops.alert. note: what is being done.
Returns false when it was acknowledged or resolved already.
Errors: UO002 no such alert; 22023 empty note; 22004 null; 0A000 not under READ COMMITTED; 25006 standby or read-only transaction.
Locks: the alert.
Source: the symptoms of each runbook.';

