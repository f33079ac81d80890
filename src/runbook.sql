/* ---------- runbook: what to do, step by step, with what is so now ---------- */

CREATE FUNCTION cusown_ops.age_text(seconds double precision)
RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
  SELECT CASE WHEN seconds OPERATOR(pg_catalog.>=) '172800'::double precision
              THEN pg_catalog.floor(seconds OPERATOR(pg_catalog./) '86400'::double precision)::text OPERATOR(pg_catalog.||) ' days'
              WHEN seconds OPERATOR(pg_catalog.>=) '7200'::double precision
              THEN pg_catalog.floor(seconds OPERATOR(pg_catalog./) '3600'::double precision)::text OPERATOR(pg_catalog.||) ' hours'
              WHEN seconds OPERATOR(pg_catalog.>=) '120'::double precision
              THEN pg_catalog.floor(seconds OPERATOR(pg_catalog./) '60'::double precision)::text OPERATOR(pg_catalog.||) ' min'
              ELSE pg_catalog.floor(greatest(seconds, '0'::double precision))::text OPERATOR(pg_catalog.||) ' s' END;
END;

COMMENT ON FUNCTION cusown_ops.age_text(double precision) IS
'Seconds as a human says them';

CREATE FUNCTION cusown_ops.runbook_symptoms(
  OUT runbook text,
  OUT symptom text,
  OUT rank integer,
  OUT finding text)
RETURNS SETOF record
LANGUAGE sql STABLE PARALLEL UNSAFE ROWS 30
SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
  SELECT s.runbook, s.symptom, pg_catalog.array_position('{warning,critical}', s.severity),
         s.symptom OPERATOR(pg_catalog.||) CASE WHEN k.unit OPERATOR(pg_catalog.~~) '0 %' THEN ''
                           WHEN k.unit OPERATOR(pg_catalog.=) 'seconds' THEN ' ' OPERATOR(pg_catalog.||) cusown_ops.age_text(s.observed)
                           ELSE ' ' OPERATOR(pg_catalog.||) s.observed::text END
  FROM @extschema@.cusown_symptoms() AS s
  JOIN cusown_ops.shipped_symptoms() AS k ON k.symptom OPERATOR(pg_catalog.=) s.symptom
  WHERE s.firing
  ORDER BY k.place;
END;

COMMENT ON FUNCTION cusown_ops.runbook_symptoms() IS
'Symptoms that fire, for cusown_runbook(); rank 2 is critical, 1 a warning';

CREATE FUNCTION cusown_ops.runbook_jobs(
  app_schema name,
  OUT job text,
  OUT late boolean,
  OUT running boolean,
  OUT succeeded text,
  OUT failed text,
  OUT cron_state text)
RETURNS SETOF record
LANGUAGE sql STABLE PARALLEL UNSAFE ROWS 10
SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
  SELECT h.job, h.late, h.running_since IS NOT NULL,
         coalesce('last succeeded ' OPERATOR(pg_catalog.||) cusown_ops.age_text(
           pg_catalog.date_part('epoch', pg_catalog.statement_timestamp() OPERATOR(pg_catalog.-) h.last_success)) OPERATOR(pg_catalog.||) ' ago', 'never succeeded'),
         CASE WHEN h.last_outcome OPERATOR(pg_catalog.=) ANY ('{failed,died}'::text[])
              THEN 'last run ' OPERATOR(pg_catalog.||) h.last_outcome OPERATOR(pg_catalog.||) coalesce(': ' OPERATOR(pg_catalog.||) (
                SELECT r.sqlstate FROM cusown_ops.job_run AS r
                WHERE r.app_schema OPERATOR(pg_catalog.=) h.app_schema AND r.job OPERATOR(pg_catalog.=) h.job
                  AND r.status OPERATOR(pg_catalog.=) 'failed' AND h.last_outcome OPERATOR(pg_catalog.=) 'failed'
                ORDER BY r.id DESC LIMIT 1), '') END,
         h.cron_state
  FROM @extschema@.cusown_cron_health() AS h
  WHERE h.app_schema OPERATOR(pg_catalog.=) $1 AND h.enabled;
END;

COMMENT ON FUNCTION cusown_ops.runbook_jobs(name) IS
'How the jobs of one application run, for cusown_runbook()';

CREATE FUNCTION cusown_ops.runbook_double_bookings(
  INOUT kind text,
  OUT slot_id uuid,
  OUT booking_ids uuid[],
  OUT starts timestamp,
  OUT command text)
RETURNS SETOF record
LANGUAGE sql STABLE PARALLEL UNSAFE ROWS 10
SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
  SELECT d.kind, d.slot_id, d.booking_ids, d.starts, d.command
  FROM @extschema@.cusown_double_bookings($1) AS d;
END;

COMMENT ON FUNCTION cusown_ops.runbook_double_bookings(text) IS
'As cusown_double_bookings(), for cusown_runbook()';

CREATE FUNCTION cusown_ops.runbook_mismatches(
  OUT kind text,
  OUT id uuid,
  OUT finding text,
  OUT command text)
RETURNS SETOF record
LANGUAGE sql STABLE PARALLEL UNSAFE ROWS 10
SET search_path = pg_catalog, pg_temp
SET client_min_messages = warning
BEGIN ATOMIC
  SELECT m.kind, m.id, m.finding, m.command
  FROM @extschema@.cusown_payment_mismatches() AS m;
END;

COMMENT ON FUNCTION cusown_ops.runbook_mismatches() IS
'As cusown_payment_mismatches(), for cusown_runbook()';

CREATE FUNCTION cusown_ops.missing_indexes(
  OUT relation text,
  OUT one_confirmed boolean,
  OUT ddl text)
RETURNS SETOF record
LANGUAGE c STABLE PARALLEL UNSAFE ROWS 10
AS 'MODULE_PATHNAME', 'cusown_missing_indexes';

COMMENT ON FUNCTION cusown_ops.missing_indexes() IS
'Indexes that our look-ups need and the application has not, as cusown_attach() warns of them, with their DDL; one_confirmed: the one that makes a second confirmed booking of a slot impossible';

CREATE FUNCTION @extschema@.cusown_runbook(
  name text DEFAULT NULL,
  ref uuid DEFAULT NULL,
  OUT step text,
  OUT title text,
  OUT state text,
  OUT finding text,
  OUT command text)
RETURNS SETOF record
LANGUAGE c STABLE PARALLEL UNSAFE ROWS 15
AS 'MODULE_PATHNAME', 'cusown_runbook';

COMMENT ON FUNCTION @extschema@.cusown_runbook(text, uuid) IS
'The runbooks, with what is so now and what to run next; writes nothing, works on a standby.
name: of a runbook; null: all of them, those first whose symptoms fire.
ref: a booking, a slot or a payment that the runbook is about.
Returns the steps of the runbook in its order. state: needed: run the command; done: nothing to do here; manual: to be done or decided by a human, or outside the database; not_applicable: the application has no such table. finding: what was found, in lines so that a row fits 160 columns. command: to be pasted into psql. Once the commands of all needed steps have been run, until none is needed, the runbook''s symptoms are quiet, but for what is manual.
Without name step is a runbook''s name, and finding its symptoms that fire.
What the role may not see is a finding that says so.
Errors: 22023 unknown runbook, the hint has the names, or ref without name; UO002 no such booking, slot or payment, or row-level security hides it.
Source: all runbooks.';

