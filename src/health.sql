/* ---------- health: what an application's health check answers ---------- */

CREATE FUNCTION cusown_ops.health_reasons(
  OUT reasons jsonb,
  OUT worst text)
RETURNS record
LANGUAGE sql STABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
  -- a job that is late counts whatever its thresholds say
  SELECT coalesce(pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object(
           'symptom', s.symptom, 'severity', s.severity, 'observed', s.observed,
           'runbook', s.runbook,
           'command', 'SELECT * FROM cusown_runbook(' OPERATOR(pg_catalog.||) pg_catalog.quote_literal(s.runbook) OPERATOR(pg_catalog.||) ');')
           ORDER BY s.n), '[]'),
         (pg_catalog.array_agg(s.severity ORDER BY s.n))[1]
  FROM (SELECT f.symptom, f.observed, f.runbook, f.n,
               CASE WHEN f.firing THEN f.severity ELSE 'warning' END AS severity
        FROM @extschema@.cusown_symptoms() WITH ORDINALITY
             AS f (runbook, symptom, severity, observed, threshold, firing, since, command, n)
        WHERE f.firing OR (f.symptom OPERATOR(pg_catalog.=) 'job_late' AND f.observed OPERATOR(pg_catalog.>) 0)) AS s;
END;

COMMENT ON FUNCTION cusown_ops.health_reasons() IS
'What keeps the application from being healthy; for cusown_health()';

CREATE FUNCTION @extschema@.cusown_health()
RETURNS jsonb
LANGUAGE c STABLE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'cusown_health';

COMMENT ON FUNCTION @extschema@.cusown_health() IS
'How the attached application is, for its health check; writes nothing, works on a standby, and never fails: what it may not see, or that nothing is attached, is a reason.
Returns status (healthy; degraded, a symptom is a warning; unhealthy, one is critical, or it could not be looked at), checks (database, timestamp, cron_expire_bookings_last_run_ts in unix seconds, of the last success, standby), app_schema and reasons (symptom, severity, observed, the runbook to open and the command that opens it). A job that is late is never healthy, whatever its threshold.
Source: runbook Cron Failure, step 1; High Error Rate, step 1.';

