/* ---------- metric: what a monitoring system reads ---------- */

-- Names of columns are part of the names of metrics, here as well as for
-- doc/cusown_ops.queries.yaml: cusown_job_late is column late of the view
-- metric_job.  What is yes or no is 1 or 0.

CREATE FUNCTION cusown_ops.graded_symptoms(
  OUT app_schema name,
  OUT symptom text,
  OUT runbook text,
  OUT observed double precision,
  OUT severity integer)
RETURNS SETOF record
LANGUAGE sql STABLE PARALLEL UNSAFE ROWS 30
SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
  SELECT c.app_schema, s.symptom, s.runbook, s.observed,
         CASE s.severity WHEN 'critical' THEN 2 WHEN 'warning' THEN 1 ELSE 0 END
  FROM (SELECT cusown_ops.chosen_app_schema() AS app_schema) AS c
  CROSS JOIN @extschema@.cusown_symptoms() AS s;
END;

COMMENT ON FUNCTION cusown_ops.graded_symptoms() IS
'What cusown_symptoms() says of the chosen application, as numbers; for cusown_ops.measure_symptoms()';

CREATE FUNCTION cusown_ops.measure_symptoms(
  OUT app_schema name,
  OUT symptom text,
  OUT runbook text,
  OUT observed double precision,
  OUT severity integer)
RETURNS SETOF record
LANGUAGE c STABLE PARALLEL UNSAFE ROWS 30
AS 'MODULE_PATHNAME', 'cusown_measure_symptoms';

COMMENT ON FUNCTION cusown_ops.measure_symptoms() IS
'What cusown_symptoms() says of each attached application, whichever is chosen; for the view cusown_ops.metric_symptom';

CREATE FUNCTION cusown_ops.is_preloaded()
RETURNS boolean
LANGUAGE c STABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'cusown_is_preloaded';

COMMENT ON FUNCTION cusown_ops.is_preloaded() IS
'Whether this library is in shared_preload_libraries; for the view cusown_ops.metric_worker';

CREATE VIEW cusown_ops.metric_build AS
SELECT e.extversion AS version, 1 AS info
FROM pg_catalog.pg_extension AS e
WHERE e.extname OPERATOR(pg_catalog.=) 'cusown_ops'::name;

COMMENT ON VIEW cusown_ops.metric_build IS
'What is installed, for monitoring';
COMMENT ON COLUMN cusown_ops.metric_build.version IS 'version of the extension';
COMMENT ON COLUMN cusown_ops.metric_build.info IS 'always 1';

CREATE VIEW cusown_ops.metric_symptom AS
SELECT m.app_schema, m.symptom, m.runbook, m.observed, m.severity
FROM cusown_ops.measure_symptoms() AS m;

COMMENT ON VIEW cusown_ops.metric_symptom IS
'What cusown_symptoms() says of each attached application, for monitoring';
COMMENT ON COLUMN cusown_ops.metric_symptom.app_schema IS 'schema of the application';
COMMENT ON COLUMN cusown_ops.metric_symptom.symptom IS 'as cusown_symptoms() shows it';
COMMENT ON COLUMN cusown_ops.metric_symptom.runbook IS 'the runbook to open';
COMMENT ON COLUMN cusown_ops.metric_symptom.observed IS 'in its unit; null where it does not apply or was not counted yet';
COMMENT ON COLUMN cusown_ops.metric_symptom.severity IS '0 ok, 1 warning, 2 critical';

CREATE VIEW cusown_ops.metric_job AS
SELECT h.app_schema, h.job, h.enabled::integer AS enabled,
       pg_catalog.date_part('epoch', h.every) AS every_seconds,
       h.late::integer AS late,
       (h.last_outcome OPERATOR(pg_catalog.=) ANY ('{failed,died}'::text[]))::integer AS failing,
       (h.running_since IS NOT NULL)::integer AS running,
       pg_catalog.date_part('epoch', h.last_run) AS last_run_timestamp_seconds,
       pg_catalog.date_part('epoch', h.last_success) AS last_success_timestamp_seconds,
       pg_catalog.date_part('epoch', r.finished_at OPERATOR(pg_catalog.-) r.started_at)
         AS last_duration_seconds,
       r.changed AS last_changed,
       (coalesce(k.changed, 0::numeric) OPERATOR(pg_catalog.+)
         coalesce(t.changed, 0::bigint)::numeric)::bigint AS changed_total
FROM @extschema@.cusown_cron_health() AS h
LEFT JOIN LATERAL (
  SELECT o.started_at, o.finished_at, o.changed
  FROM cusown_ops.job_run AS o
  WHERE o.app_schema OPERATOR(pg_catalog.=) h.app_schema
  AND o.job OPERATOR(pg_catalog.=) h.job
  AND o.status OPERATOR(pg_catalog.=) 'succeeded'::text
  ORDER BY o.id DESC LIMIT 1) AS r ON true
LEFT JOIN (
  SELECT o.app_schema, o.job, pg_catalog.sum(o.changed) AS changed
  FROM cusown_ops.job_run AS o
  GROUP BY o.app_schema, o.job) AS k
ON k.app_schema OPERATOR(pg_catalog.=) h.app_schema AND k.job OPERATOR(pg_catalog.=) h.job
LEFT JOIN cusown_ops.job_total AS t
ON t.app_schema OPERATOR(pg_catalog.=) h.app_schema AND t.job OPERATOR(pg_catalog.=) h.job;

COMMENT ON VIEW cusown_ops.metric_job IS
'Whether each job runs on each attached application when it should, for monitoring';
COMMENT ON COLUMN cusown_ops.metric_job.app_schema IS 'schema of the application';
COMMENT ON COLUMN cusown_ops.metric_job.job IS 'name of the job';
COMMENT ON COLUMN cusown_ops.metric_job.enabled IS '1 or 0';
COMMENT ON COLUMN cusown_ops.metric_job.every_seconds IS 'how often it should run';
COMMENT ON COLUMN cusown_ops.metric_job.late IS '1: the last success is older than twice that, or there is none';
COMMENT ON COLUMN cusown_ops.metric_job.failing IS '1: the last run failed or died; null: there is none';
COMMENT ON COLUMN cusown_ops.metric_job.running IS '1: a run is under way';
COMMENT ON COLUMN cusown_ops.metric_job.last_run_timestamp_seconds IS 'when the last run began, in seconds since 1970; null: there is none';
COMMENT ON COLUMN cusown_ops.metric_job.last_success_timestamp_seconds IS 'when the last success ended, in seconds since 1970; null: there is none';
COMMENT ON COLUMN cusown_ops.metric_job.last_duration_seconds IS 'of the last success';
COMMENT ON COLUMN cusown_ops.metric_job.last_changed IS 'what the last success changed: bookings or payments expired, slots released, bookings marked, rows pruned';
COMMENT ON COLUMN cusown_ops.metric_job.changed_total IS 'what all runs changed, also those that the ledger no longer holds';

CREATE VIEW cusown_ops.metric_worklist AS
SELECT a.app_schema, a.kind, a.runbook, pg_catalog.count(*) AS open,
       pg_catalog.date_part('epoch', pg_catalog.statement_timestamp()
         OPERATOR(pg_catalog.-) pg_catalog.min(a.first_seen)) AS oldest_age_seconds
FROM cusown_ops.attention AS a
WHERE a.closed_at IS NULL
GROUP BY a.app_schema, a.kind, a.runbook;

COMMENT ON VIEW cusown_ops.metric_worklist IS
'What is open on the worklist, for monitoring';
COMMENT ON COLUMN cusown_ops.metric_worklist.app_schema IS 'schema of the application';
COMMENT ON COLUMN cusown_ops.metric_worklist.kind IS 'as cusown_ops.attention has it';
COMMENT ON COLUMN cusown_ops.metric_worklist.runbook IS 'the runbook to open';
COMMENT ON COLUMN cusown_ops.metric_worklist.open IS 'how many entries';
COMMENT ON COLUMN cusown_ops.metric_worklist.oldest_age_seconds IS 'since the oldest was first seen';

-- no look at events that are done with, which are most of them
CREATE VIEW cusown_ops.metric_webhook AS
WITH waiting AS (
  SELECT i.app_schema, i.provider, i.outcome, pg_catalog.count(*) AS events,
         pg_catalog.min(i.received_at) AS since
  FROM cusown_ops.webhook_inbox AS i
  WHERE i.next_try IS NOT NULL
  GROUP BY i.app_schema, i.provider, i.outcome),
rejected AS (
  SELECT r.app_schema, r.provider, 'rejected'::text AS outcome,
         pg_catalog.count(*) AS events, pg_catalog.min(r.at) AS since
  FROM cusown_ops.webhook_rejected AS r
  WHERE r.at OPERATOR(pg_catalog.>) (pg_catalog.statement_timestamp()
    OPERATOR(pg_catalog.-) '1 hour'::interval)
  GROUP BY r.app_schema, r.provider),
seen AS (
  SELECT w.app_schema, w.provider, w.outcome, w.events, w.since FROM waiting AS w
  UNION ALL
  SELECT r.app_schema, r.provider, r.outcome, r.events, r.since FROM rejected AS r),
-- a series that comes and goes cannot be told from a scraper that does
known AS (
  SELECT DISTINCT b.app_schema, m.provider
  FROM cusown_ops.binding AS b
  JOIN cusown_ops.webhook_machine AS m
  ON m.app_schema IS NULL OR m.app_schema OPERATOR(pg_catalog.=) b.app_schema
  WHERE b.relation OPERATOR(pg_catalog.=) 'payments'::text
  AND b.attribute OPERATOR(pg_catalog.=) ''::text)
SELECT k.app_schema, k.provider, o.outcome, coalesce(s.events, 0::bigint) AS events,
       coalesce(pg_catalog.date_part('epoch', pg_catalog.statement_timestamp()
         OPERATOR(pg_catalog.-) s.since), 0::double precision) AS oldest_age_seconds
FROM known AS k
CROSS JOIN pg_catalog.unnest('{parked,unmatched,rejected}'::text[]) AS o (outcome)
LEFT JOIN seen AS s
ON s.app_schema OPERATOR(pg_catalog.=) k.app_schema
AND s.provider OPERATOR(pg_catalog.=) k.provider
AND s.outcome OPERATOR(pg_catalog.=) o.outcome;

COMMENT ON VIEW cusown_ops.metric_webhook IS
'What is not well with the webhooks of each provider, for monitoring';
COMMENT ON COLUMN cusown_ops.metric_webhook.app_schema IS 'schema of the application';
COMMENT ON COLUMN cusown_ops.metric_webhook.provider IS 'who has sent them';
COMMENT ON COLUMN cusown_ops.metric_webhook.outcome IS 'parked or unmatched, as cusown_ops.webhook_inbox has it; rejected, in the last hour';
COMMENT ON COLUMN cusown_ops.metric_webhook.events IS 'how many';
COMMENT ON COLUMN cusown_ops.metric_webhook.oldest_age_seconds IS 'since the oldest of them came; 0: there is none';

-- without a column of the function in it the condition is asked before the
-- function is called, which raises an error where it does not hold
CREATE VIEW cusown_ops.metric_worker AS
SELECT w.database, w.visits AS visits_total, w.failures,
       pg_catalog.date_part('epoch', w.last_visit) AS last_visit_timestamp_seconds
FROM @extschema@.cusown_worker_status() AS w
WHERE cusown_ops.is_preloaded();

COMMENT ON VIEW cusown_ops.metric_worker IS
'The worker''s visits to each of its databases, for monitoring; nothing on a standby, and where the library is not preloaded';
COMMENT ON COLUMN cusown_ops.metric_worker.database IS 'that it visits';
COMMENT ON COLUMN cusown_ops.metric_worker.visits_total IS 'since the launcher came up';
COMMENT ON COLUMN cusown_ops.metric_worker.failures IS 'how many of the last visits have failed in a row';
COMMENT ON COLUMN cusown_ops.metric_worker.last_visit_timestamp_seconds IS 'when the last one began, in seconds since 1970; null: there was none';

CREATE FUNCTION cusown_ops.shipped_metrics(
  OUT place integer,
  OUT family text,
  OUT metric text,
  OUT labels text[],
  OUT type text,
  OUT unit text,
  OUT help text)
RETURNS SETOF record
LANGUAGE sql IMMUTABLE PARALLEL SAFE ROWS 20
SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
  SELECT v.place, v.family, v.metric, l.labels, v.type, v.unit, v.help
  FROM (VALUES
    (1, 'build', 'info', 'gauge', NULL, 'Always 1; what is installed is the label.'),
    (2, 'symptom', 'severity', 'gauge', NULL, 'How bad it is: 0 ok, 1 warning, 2 critical.'),
    (3, 'symptom', 'observed', 'gauge', NULL, 'What was measured, in the unit of the symptom.'),
    (4, 'job', 'enabled', 'gauge', NULL, 'Whether the job should run at all.'),
    (5, 'job', 'every_seconds', 'gauge', 'seconds', 'How often the job should run.'),
    (6, 'job', 'late', 'gauge', NULL, 'Whether the last success is older than twice that.'),
    (7, 'job', 'failing', 'gauge', NULL, 'Whether the last run failed or died.'),
    (8, 'job', 'running', 'gauge', NULL, 'Whether a run is under way.'),
    (9, 'job', 'last_run_timestamp_seconds', 'gauge', 'seconds', 'When the last run began.'),
    (10, 'job', 'last_success_timestamp_seconds', 'gauge', 'seconds', 'When the last success ended.'),
    (11, 'job', 'last_duration_seconds', 'gauge', 'seconds', 'How long the last success took.'),
    (12, 'job', 'last_changed', 'gauge', NULL, 'How many rows the last success changed.'),
    (13, 'job', 'changed_total', 'counter', NULL, 'How many rows all runs changed.'),
    (14, 'worklist', 'open', 'gauge', NULL, 'Entries of the worklist that are open.'),
    (15, 'worklist', 'oldest_age_seconds', 'gauge', 'seconds', 'Age of the oldest open entry.'),
    (16, 'webhook', 'events', 'gauge', NULL, 'Events that wait for a payment, found none, or were rejected in the last hour.'),
    (17, 'webhook', 'oldest_age_seconds', 'gauge', 'seconds', 'Age of the oldest of these events.'),
    (18, 'worker', 'visits_total', 'counter', NULL, 'Visits since the launcher came up.'),
    (19, 'worker', 'failures', 'gauge', NULL, 'Visits in a row that failed.'),
    (20, 'worker', 'last_visit_timestamp_seconds', 'gauge', 'seconds', 'When the last visit began.'))
    AS v (place, family, metric, type, unit, help)
  JOIN (VALUES
    ('build', '{version}'::text[]),
    ('symptom', '{app_schema,symptom,runbook}'),
    ('job', '{app_schema,job}'),
    ('worklist', '{app_schema,kind,runbook}'),
    ('webhook', '{app_schema,provider,outcome}'),
    ('worker', '{database}'))
    AS l (family, labels)
  ON l.family OPERATOR(pg_catalog.=) v.family;
END;

COMMENT ON FUNCTION cusown_ops.shipped_metrics() IS
'The metrics: each is a column of the view cusown_ops.metric_ with the name of its family, whose labels are other columns; see cusown_metrics()';

-- chr(92) is a backslash, which a string may have to double or not
CREATE FUNCTION cusown_ops.metric_labels(names text[], sample jsonb)
RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
  SELECT pg_catalog.string_agg(n.name OPERATOR(pg_catalog.||) '="' OPERATOR(pg_catalog.||)
    pg_catalog.replace(pg_catalog.replace(pg_catalog.replace($2 OPERATOR(pg_catalog.->>) n.name,
      pg_catalog.chr(92), pg_catalog.repeat(pg_catalog.chr(92), 2)), '"', pg_catalog.chr(92) OPERATOR(pg_catalog.||) '"'), pg_catalog.chr(10), pg_catalog.chr(92) OPERATOR(pg_catalog.||) 'n') OPERATOR(pg_catalog.||)
    '"', ',' ORDER BY n.place)
  FROM pg_catalog.unnest($1) WITH ORDINALITY AS n (name, place);
END;

COMMENT ON FUNCTION cusown_ops.metric_labels(text[], jsonb) IS
'The labels of one sample, as OpenMetrics writes them; for cusown_metrics()';

-- a number is written with all its digits, whatever the session is set to
CREATE FUNCTION @extschema@.cusown_metrics()
RETURNS text
LANGUAGE sql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
SET extra_float_digits = 1
BEGIN ATOMIC
  WITH sample AS MATERIALIZED (
    SELECT 'build' AS family, pg_catalog.to_jsonb(v) AS sample FROM cusown_ops.metric_build AS v
    UNION ALL
    SELECT 'symptom', pg_catalog.to_jsonb(v) FROM cusown_ops.metric_symptom AS v
    UNION ALL
    SELECT 'job', pg_catalog.to_jsonb(v) FROM cusown_ops.metric_job AS v
    UNION ALL
    SELECT 'worklist', pg_catalog.to_jsonb(v) FROM cusown_ops.metric_worklist AS v
    UNION ALL
    SELECT 'webhook', pg_catalog.to_jsonb(v) FROM cusown_ops.metric_webhook AS v
    UNION ALL
    SELECT 'worker', pg_catalog.to_jsonb(v) FROM cusown_ops.metric_worker AS v),
  line AS (
    SELECT m.place, 'cusown_' OPERATOR(pg_catalog.||) m.family OPERATOR(pg_catalog.||) '_' OPERATOR(pg_catalog.||) m.metric AS name, m.type, m.unit, m.help,
           cusown_ops.metric_labels(m.labels, s.sample) AS labels,
           s.sample OPERATOR(pg_catalog.->>) m.metric AS value
    FROM cusown_ops.shipped_metrics() AS m
    JOIN sample AS s ON s.family OPERATOR(pg_catalog.=) m.family),
  -- the suffix of a counter is no part of its family's name
  family AS (
    SELECT l.place, l.type, l.unit, l.help, pg_catalog.regexp_replace(l.name, '_total$', '') AS name,
           pg_catalog.string_agg(l.name OPERATOR(pg_catalog.||) '{' OPERATOR(pg_catalog.||) l.labels OPERATOR(pg_catalog.||) '} ' OPERATOR(pg_catalog.||) l.value OPERATOR(pg_catalog.||) pg_catalog.chr(10), ''
             ORDER BY l.labels COLLATE "C") AS lines
    FROM line AS l
    WHERE l.value IS NOT NULL
    GROUP BY l.place, l.name, l.type, l.unit, l.help)
  SELECT coalesce(pg_catalog.string_agg(
           '# TYPE ' OPERATOR(pg_catalog.||) f.name OPERATOR(pg_catalog.||) ' ' OPERATOR(pg_catalog.||) f.type OPERATOR(pg_catalog.||) pg_catalog.chr(10) OPERATOR(pg_catalog.||)
           coalesce('# UNIT ' OPERATOR(pg_catalog.||) f.name OPERATOR(pg_catalog.||) ' ' OPERATOR(pg_catalog.||) f.unit OPERATOR(pg_catalog.||) pg_catalog.chr(10), '') OPERATOR(pg_catalog.||)
           '# HELP ' OPERATOR(pg_catalog.||) f.name OPERATOR(pg_catalog.||) ' ' OPERATOR(pg_catalog.||) f.help OPERATOR(pg_catalog.||) pg_catalog.chr(10) OPERATOR(pg_catalog.||) f.lines, ''
           ORDER BY f.place), '') OPERATOR(pg_catalog.||) '# EOF' OPERATOR(pg_catalog.||) pg_catalog.chr(10)
  FROM family AS f;
END;

COMMENT ON FUNCTION @extschema@.cusown_metrics() IS
'What monitoring asks for, as OpenMetrics text: the views cusown_ops.metric_*, of all attached applications.
Returns one text with a line per sample and # EOF at its end; to be served with content type application/openmetrics-text; version=1.0.0. What is not known has no sample. Writes nothing, works on a standby, scans no big table.
Errors: 42501 row-level security would hide rows.
Source: the symptoms of each runbook.';
