/* ---------- symptom: what is the matter, and which runbook to open ---------- */

CREATE TABLE cusown_ops.threshold (
  app_schema name NOT NULL,
  symptom text NOT NULL,
  warning double precision,
  critical double precision,
  CONSTRAINT threshold_pkey PRIMARY KEY (app_schema, symptom)
);

COMMENT ON TABLE cusown_ops.threshold IS
'Thresholds of symptoms that an owner has set for one application, in place of those that we ship; see cusown_set_threshold()';
COMMENT ON COLUMN cusown_ops.threshold.app_schema IS
'schema of the attached application';
COMMENT ON COLUMN cusown_ops.threshold.symptom IS
'as cusown_symptoms() shows it';
COMMENT ON COLUMN cusown_ops.threshold.warning IS
'from here on it is a warning; null: it never is';
COMMENT ON COLUMN cusown_ops.threshold.critical IS
'from here on it is critical; null: it never is';

SELECT pg_catalog.pg_extension_config_dump('cusown_ops.threshold', '');

CREATE FUNCTION cusown_ops.shipped_symptoms(
  OUT place integer,
  OUT runbook text,
  OUT symptom text,
  OUT warning double precision,
  OUT critical double precision,
  OUT fires_below boolean,
  OUT unit text,
  OUT command text)
RETURNS SETOF record
LANGUAGE sql IMMUTABLE PARALLEL SAFE ROWS 30
SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
  SELECT v.place, v.runbook, v.symptom, v.warning, v.critical,
         v.fires_below, v.unit, v.command
  FROM (VALUES
    (1, 'cron_failure', 'job_late', NULL::double precision, 1::double precision, false, 'jobs',
     'SELECT * FROM cusown_cron_health() WHERE late;'),
    (2, 'cron_failure', 'job_failing', 1, NULL, false, 'jobs',
     'SELECT * FROM cusown_cron_health();'),
    (3, 'cron_failure', 'job_died', 1, NULL, false, 'jobs',
     'SELECT * FROM cusown_cron_health();'),
    (4, 'cron_failure', 'pending_overdue', 900, 3600, false, 'seconds',
     'CALL cusown_run_job(''expire_bookings'');'),
    (5, 'cron_failure', 'hold_overdue', 900, 3600, false, 'seconds',
     'CALL cusown_run_job(''release_expired_holds'');'),
    (6, 'cron_failure', 'scheduler_absent', 1, NULL, false, '0 or 1',
     'SELECT * FROM cusown_schedule();'),
    (7, 'cron_failure', 'worker_absent', 1, NULL, false, '0 or 1',
     'SELECT * FROM cusown_worker_status();'),
    (8, 'cron_failure', 'cron_worklist', 1, 100, false, 'entries',
     'TABLE cusown_ops.attention;'),
    (9, 'double_booking', 'double_same_slot', NULL, 1, false, 'slots',
     'SELECT * FROM cusown_double_bookings();'),
    (10, 'double_booking', 'double_overlap', 1, NULL, false, 'stretches',
     'SELECT * FROM cusown_double_bookings();'),
    (11, 'double_booking', 'double_slot_state', 1, NULL, false, 'slots',
     'SELECT * FROM cusown_repair_slots(true);'),
    (12, 'double_booking', 'unique_index_missing', NULL, 1, false, '0 or 1',
     'SELECT * FROM cusown_install_constraints();'),
    (13, 'double_booking', 'guard_mode', NULL, NULL, true, '0 off to 3 functions',
     'SELECT * FROM cusown_guard();'),
    (14, 'double_booking', 'booking_worklist', 1, 100, false, 'entries',
     'TABLE cusown_ops.attention;'),
    (15, 'payment_mismatch', 'paid_twice', NULL, 1, false, 'bookings',
     'SELECT * FROM cusown_payment_mismatches();'),
    (16, 'payment_mismatch', 'over_refunded', NULL, 1, false, 'payments',
     'SELECT * FROM cusown_payment_mismatches();'),
    (17, 'payment_mismatch', 'paid_cancelled', NULL, 1, false, 'payments',
     'SELECT * FROM cusown_payment_mismatches();'),
    (18, 'payment_mismatch', 'shared_ref', 1, NULL, false, 'references',
     'SELECT * FROM cusown_payment_mismatches();'),
    (19, 'payment_mismatch', 'paid_pending', 1, NULL, false, 'payments',
     'SELECT * FROM cusown_payment_mismatches();'),
    (20, 'payment_mismatch', 'unpaid', 1, NULL, false, 'bookings',
     'SELECT * FROM cusown_payment_mismatches();'),
    (21, 'payment_mismatch', 'webhook_waiting', 900, 86400, false, 'seconds',
     'SELECT * FROM cusown_webhook_backlog();'),
    (22, 'payment_mismatch', 'webhook_unmatched', 1, NULL, false, 'events',
     'SELECT * FROM cusown_webhook_backlog();'),
    (23, 'payment_mismatch', 'webhook_rejected', 10, 100, false, 'in an hour',
     'TABLE cusown_ops.webhook_rejected;'),
    (24, 'payment_mismatch', 'payment_worklist', 1, 100, false, 'entries',
     'TABLE cusown_ops.attention;'),
    (25, 'cron_failure', 'worklist_age', 86400, 604800, false, 'seconds',
     'TABLE cusown_ops.attention;'),
    (26, 'database_migration', 'binding_unresolved', NULL, 1, false, '0 or 1',
     'SELECT * FROM cusown_attach(dry_run => true);'),
    (27, 'cron_failure', 'job_covered', 1, NULL, false, 'jobs',
     'SELECT * FROM cusown_cron_health();'))
    AS v (place, runbook, symptom, warning, critical, fires_below, unit, command);
END;

COMMENT ON FUNCTION cusown_ops.shipped_symptoms() IS
'Symptoms that we know of, with their thresholds where an owner has set no others; see cusown_symptoms()';

CREATE FUNCTION cusown_ops.measure_application(
  OUT symptom text,
  OUT observed double precision,
  OUT since timestamptz)
RETURNS SETOF record
LANGUAGE c STABLE PARALLEL UNSAFE ROWS 10
AS 'MODULE_PATHNAME', 'cusown_measure_application';

COMMENT ON FUNCTION cusown_ops.measure_application() IS
'What cusown_symptoms() sees in the application''s tables and in this server';

-- of the job take_census: what takes long to count
CREATE TABLE cusown_ops.census (
  app_schema name NOT NULL,
  symptom text NOT NULL,
  observed bigint NOT NULL,
  since timestamptz,
  counted_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
  CONSTRAINT census_pkey PRIMARY KEY (app_schema, symptom)
);

COMMENT ON TABLE cusown_ops.census IS
'What the job take_census has counted last: contradictions that would have to be looked for in whole tables';
COMMENT ON COLUMN cusown_ops.census.app_schema IS
'schema of the attached application';
COMMENT ON COLUMN cusown_ops.census.symptom IS
'as cusown_symptoms() shows it';
COMMENT ON COLUMN cusown_ops.census.observed IS
'how many';
COMMENT ON COLUMN cusown_ops.census.since IS
'when it was more than none for the first time; null: it is none';
COMMENT ON COLUMN cusown_ops.census.counted_at IS
'when it was counted';

SELECT pg_catalog.pg_extension_config_dump('cusown_ops.census', '');

CREATE FUNCTION cusown_ops.count_double_bookings(
  OUT symptom text,
  OUT observed bigint)
RETURNS SETOF record
LANGUAGE sql STABLE PARALLEL UNSAFE ROWS 3
SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
  SELECT 'double_' OPERATOR(pg_catalog.||) k.kind, pg_catalog.count(d.kind)
  FROM pg_catalog.unnest('{same_slot,overlap,slot_state}'::text[]) AS k (kind)
  LEFT JOIN @extschema@.cusown_double_bookings() AS d ON d.kind OPERATOR(pg_catalog.=) k.kind
  GROUP BY k.kind;
END;

COMMENT ON FUNCTION cusown_ops.count_double_bookings() IS
'How many double bookings of each kind there are; for the job take_census';

CREATE FUNCTION cusown_ops.count_payment_mismatches(
  OUT symptom text,
  OUT observed bigint)
RETURNS SETOF record
LANGUAGE sql STABLE PARALLEL UNSAFE ROWS 6
SET search_path = pg_catalog, pg_temp
SET client_min_messages = warning
BEGIN ATOMIC
  SELECT k.kind, pg_catalog.count(m.kind)
  FROM pg_catalog.unnest('{paid_twice,over_refunded,paid_cancelled,shared_ref,paid_pending,unpaid}'::text[]) AS k (kind)
  LEFT JOIN @extschema@.cusown_payment_mismatches() AS m ON m.kind OPERATOR(pg_catalog.=) k.kind
  GROUP BY k.kind;
END;

COMMENT ON FUNCTION cusown_ops.count_payment_mismatches() IS
'How many payments are at odds in each way; for the job take_census';

CREATE FUNCTION cusown_ops.measure_ours(
  app_schema name,
  OUT symptom text,
  OUT observed double precision,
  OUT since timestamptz)
RETURNS SETOF record
LANGUAGE sql STABLE PARALLEL UNSAFE ROWS 20
SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
  WITH job AS MATERIALIZED (
    -- who evaluates alerts is not late at the moment
    SELECT h.late AND NOT (h.job OPERATOR(pg_catalog.=) 'evaluate_alerts' AND h.running_since IS NOT NULL) AS late,
           h.late_since, h.last_outcome, h.last_run
    FROM @extschema@.cusown_cron_health() AS h
    WHERE h.app_schema OPERATOR(pg_catalog.=) $1 AND h.enabled),
  entry AS MATERIALIZED (
    SELECT a.runbook, pg_catalog.count(*) AS entries, pg_catalog.min(a.first_seen) AS since
    FROM cusown_ops.attention AS a
    WHERE a.app_schema OPERATOR(pg_catalog.=) $1 AND a.closed_at IS NULL
    GROUP BY a.runbook),
  waiting AS MATERIALIZED (
    SELECT i.outcome, pg_catalog.count(*) AS events, pg_catalog.min(i.received_at) AS since
    FROM cusown_ops.webhook_inbox AS i
    WHERE i.app_schema OPERATOR(pg_catalog.=) $1 AND i.next_try IS NOT NULL
    GROUP BY i.outcome)
  SELECT 'job_late'::text, (pg_catalog.count(*) FILTER (WHERE j.late))::double precision,
         pg_catalog.min(j.late_since) FILTER (WHERE j.late)
  FROM job AS j
  UNION ALL
  SELECT 'job_covered', (pg_catalog.count(*))::double precision, pg_catalog.min(t.since)
  FROM cusown_ops.takeover AS t WHERE t.app_schema OPERATOR(pg_catalog.=) $1
  UNION ALL
  SELECT k.symptom, (pg_catalog.count(j.last_outcome))::double precision, pg_catalog.min(j.last_run)
  FROM (VALUES ('job_failing', 'failed'), ('job_died', 'died')) AS k (symptom, outcome)
  LEFT JOIN job AS j ON j.last_outcome OPERATOR(pg_catalog.=) k.outcome
  GROUP BY k.symptom
  UNION ALL
  SELECT k.symptom, (coalesce(e.entries, 0))::double precision, e.since
  FROM (VALUES ('cron_worklist', 'cron_failure'), ('booking_worklist', 'double_booking'),
               ('payment_worklist', 'payment_mismatch')) AS k (symptom, runbook)
  LEFT JOIN entry AS e ON e.runbook OPERATOR(pg_catalog.=) k.runbook
  UNION ALL
  SELECT 'worklist_age', coalesce(pg_catalog.date_part('epoch', pg_catalog.statement_timestamp() OPERATOR(pg_catalog.-) pg_catalog.min(e.since)), 0),
         pg_catalog.min(e.since)
  FROM entry AS e
  UNION ALL
  SELECT 'webhook_waiting', coalesce(pg_catalog.date_part('epoch', pg_catalog.statement_timestamp() OPERATOR(pg_catalog.-) pg_catalog.min(w.since)), 0),
         pg_catalog.min(w.since)
  FROM waiting AS w WHERE w.outcome OPERATOR(pg_catalog.=) 'parked'
  UNION ALL
  SELECT 'webhook_unmatched', (coalesce(pg_catalog.sum(w.events), 0))::double precision, pg_catalog.min(w.since)
  FROM waiting AS w WHERE w.outcome OPERATOR(pg_catalog.=) 'unmatched'
  UNION ALL
  SELECT 'webhook_rejected', (pg_catalog.count(*))::double precision, pg_catalog.min(r.at)
  FROM cusown_ops.webhook_rejected AS r
  WHERE r.app_schema OPERATOR(pg_catalog.=) $1 AND r.http_status OPERATOR(pg_catalog.=) 401
  AND r.at OPERATOR(pg_catalog.>) (pg_catalog.statement_timestamp() OPERATOR(pg_catalog.-) interval '1 hour')
  UNION ALL
  SELECT c.symptom, (c.observed)::double precision, c.since
  FROM cusown_ops.census AS c WHERE c.app_schema OPERATOR(pg_catalog.=) $1;
END;

COMMENT ON FUNCTION cusown_ops.measure_ours(name) IS
'What cusown_symptoms() sees in our own tables, of one application';

CREATE FUNCTION cusown_ops.chosen_app_schema()
RETURNS name
LANGUAGE c STABLE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'cusown_chosen_app_schema';

COMMENT ON FUNCTION cusown_ops.chosen_app_schema() IS
'The application that functions work on: cusown_ops.app_schema, else the only one that is attached. Errors: UO001 there is none, or several';

CREATE FUNCTION @extschema@.cusown_symptoms(
  OUT runbook text,
  OUT symptom text,
  OUT severity text,
  OUT observed double precision,
  OUT threshold double precision,
  OUT firing boolean,
  OUT since timestamptz,
  OUT command text)
RETURNS SETOF record
LANGUAGE sql STABLE PARALLEL UNSAFE ROWS 30
SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
  WITH chosen AS MATERIALIZED (
    SELECT cusown_ops.chosen_app_schema() AS app_schema),
  measured AS MATERIALIZED (
    SELECT o.symptom, o.observed, o.since
    FROM chosen AS c CROSS JOIN LATERAL cusown_ops.measure_ours(c.app_schema) AS o
    UNION ALL
    SELECT a.symptom, a.observed, a.since
    FROM cusown_ops.measure_application() AS a),
  judged AS (
    SELECT s.place, s.runbook, s.symptom, s.command, m.since,
           pg_catalog.round(m.observed) AS observed,
           CASE WHEN t.symptom IS NULL THEN s.warning ELSE t.warning END AS warning,
           CASE WHEN t.symptom IS NULL THEN s.critical ELSE t.critical END AS critical,
           s.fires_below
    FROM chosen AS c
    CROSS JOIN cusown_ops.shipped_symptoms() AS s
    LEFT JOIN measured AS m ON m.symptom OPERATOR(pg_catalog.=) s.symptom
    LEFT JOIN cusown_ops.threshold AS t
    ON t.app_schema OPERATOR(pg_catalog.=) c.app_schema AND t.symptom OPERATOR(pg_catalog.=) s.symptom),
  ranked AS (
    SELECT j.place, j.runbook, j.symptom, j.command, j.since, j.observed, j.warning, j.critical,
           CASE WHEN CASE WHEN j.fires_below THEN j.observed OPERATOR(pg_catalog.<) j.critical
                          ELSE j.observed OPERATOR(pg_catalog.>=) j.critical END THEN 2
                WHEN CASE WHEN j.fires_below THEN j.observed OPERATOR(pg_catalog.<) j.warning
                          ELSE j.observed OPERATOR(pg_catalog.>=) j.warning END THEN 1
                ELSE 0 END AS rank
    FROM judged AS j)
  SELECT r.runbook, r.symptom, (ARRAY['ok', 'warning', 'critical'])[r.rank OPERATOR(pg_catalog.+) 1],
         r.observed,
         CASE WHEN r.rank OPERATOR(pg_catalog.=) 2 THEN r.critical ELSE coalesce(r.warning, r.critical) END,
         r.rank OPERATOR(pg_catalog.>) 0, CASE WHEN r.rank OPERATOR(pg_catalog.>) 0 THEN pg_catalog.date_trunc('second', r.since, 'UTC') END, r.command
  FROM ranked AS r
  ORDER BY r.rank DESC, r.place;
END;

COMMENT ON FUNCTION @extschema@.cusown_symptoms() IS
'What is the matter with the attached application, the worst first; writes nothing, works on a standby, scans no big table: contradictions are counted by the job take_census.
Returns a row per symptom: the runbook to open; severity ok, warning or critical; observed, in jobs, seconds, entries and so on (cusown_ops.shipped_symptoms() says which), null where it does not apply or was not counted yet; threshold: that it has reached, or would reach first; since when, where that is known; command: what to run next.
Thresholds are ours, or those that cusown_set_threshold() has set.
Errors: UO001 no application attached; 42501 row-level security would hide rows.
Source: the symptoms of each runbook.';

CREATE FUNCTION @extschema@.cusown_set_threshold(
  symptom text,
  warning double precision,
  critical double precision)
RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'cusown_set_threshold';

COMMENT ON FUNCTION @extschema@.cusown_set_threshold(text, double precision, double precision) IS
'Sets from where on a symptom of the attached application is a warning, and critical.
symptom: as cusown_symptoms() shows it. warning, critical: in its unit; null: it never is. guard_mode fires below them, everything else from them on.
To have ours again, DELETE FROM cusown_ops.threshold.
Errors: 22023 unknown symptom, or not a number; 22004 symptom is null; UO001 no application attached; 25006 standby or read-only transaction.
Source: the symptoms of each runbook.';

