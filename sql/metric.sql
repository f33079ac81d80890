-- Metrics: what is the matter, of all attached applications, as views and as
-- OpenMetrics; what doc/ has for psql; what psql shows of our functions.
SET client_min_messages = warning;
\getenv abs_srcdir PG_ABS_SRCDIR
\getenv abs_builddir PG_ABS_BUILDDIR
\set fixture :abs_srcdir '/test/fixture'
\set script :abs_builddir '/results/metric.script'
\set printed :abs_builddir '/results/metric.printed'
\pset format unaligned
\pset footer off

-- ---------- metrics ----------

-- of nothing attached, only what is installed
CREATE EXTENSION cusown_ops;
SELECT cusown_metrics();

-- an application, and one with as little as can be, in a schema by another name
\set ECHO none
\set schema metric_app
\i :fixture/cusown_app.sql
\i :fixture/sample_week.sql
\set schema 'shop "x" \\'
\i :fixture/app_minimal.sql
\unset schema
\set ECHO all
SET search_path = metric_app, public;
SELECT count(*) > 0 AS attached FROM cusown_attach('metric_app');
SELECT count(*) > 0 AS attached FROM cusown_attach('shop "x" \', :'minimal_mapping');
-- nothing has run since they were attached, a month ago
UPDATE cusown_ops.binding SET bound_since = now() - interval '1 month';
SET cusown_ops.app_schema = 'metric_app';
CALL cusown_run_job('expire_bookings');
CALL cusown_run_job('release_expired_holds');
RESET cusown_ops.app_schema;
-- without one chosen the job counts in both
CALL cusown_run_job('take_census');

SELECT app_schema, symptom, runbook, severity FROM cusown_ops.metric_symptom
WHERE severity > 0 ORDER BY app_schema, symptom COLLATE "C";
SELECT app_schema, count(*), count(observed) AS measured
FROM cusown_ops.metric_symptom GROUP BY 1 ORDER BY 1;
-- as cusown_symptoms() has it, with none chosen as well as with one
SET cusown_ops.app_schema = 'metric_app';
SELECT m.symptom, m.severity, s.severity FROM cusown_ops.metric_symptom m
FULL JOIN cusown_symptoms() s USING (symptom)
WHERE m.app_schema = 'metric_app' AND (m.runbook, ('{ok,warning,critical}'::text[])[m.severity + 1])
  IS DISTINCT FROM (s.runbook, s.severity);
SELECT count(DISTINCT app_schema), current_setting('cusown_ops.app_schema') AS chosen
FROM cusown_ops.metric_symptom;
RESET cusown_ops.app_schema;

SELECT app_schema, job, enabled, every_seconds, late, failing, running,
       abs(last_run_timestamp_seconds - extract(epoch FROM now())) < 600 AS ran,
       last_success_timestamp_seconds >= last_run_timestamp_seconds AS succeeded,
       last_duration_seconds >= 0 AS took, last_changed AS changed, changed_total AS total
FROM cusown_ops.metric_job WHERE app_schema = 'metric_app' ORDER BY job COLLATE "C";
-- what all runs changed is not forgotten with them
SET cusown_ops.app_schema = 'metric_app';
SET cusown_ops.job_run_retention = 1;
UPDATE bookings SET created_at = now() - interval '3 days' WHERE id IN
  (SELECT id FROM bookings WHERE status = 'pending' AND created_at > now() - interval '23 hours' ORDER BY id LIMIT 2);
CALL cusown_run_job('expire_bookings');
CALL cusown_run_job('expire_bookings');
CALL cusown_run_job('expire_bookings');
RESET cusown_ops.job_run_retention;
-- but with the application
INSERT INTO cusown_ops.job_total VALUES ('metric_app', 'mark_no_show', 5, now() - interval '30 days'),
  ('metric_gone', 'mark_no_show', 5, now() - interval '30 days'), ('metric_gone', 'take_census', 5, now());
SELECT * FROM cusown_prune_history();
SELECT app_schema, job FROM cusown_ops.job_total WHERE changed = 5 ORDER BY 1, 2;
RESET cusown_ops.app_schema;
SELECT r.changed AS held, t.changed AS not_held, m.last_changed, m.changed_total
FROM cusown_ops.metric_job m JOIN cusown_ops.job_run r USING (app_schema, job)
LEFT JOIN cusown_ops.job_total t USING (app_schema, job)
WHERE app_schema = 'metric_app' AND job = 'expire_bookings' AND r.status = 'succeeded';
-- what fails, and succeeded before
SET cusown_ops.app_schema = 'metric_app';
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'refused'; END $$;
CREATE TRIGGER refuse BEFORE INSERT ON cusown_ops.census FOR EACH ROW EXECUTE FUNCTION refuse();
CALL cusown_run_job('take_census'); -- fails
DROP FUNCTION refuse() CASCADE;
RESET cusown_ops.app_schema;
SELECT failing, running, last_success_timestamp_seconds < last_run_timestamp_seconds AS before, last_changed
FROM cusown_ops.metric_job WHERE app_schema = 'metric_app' AND job = 'take_census';

SELECT app_schema, kind, runbook, open, oldest_age_seconds BETWEEN 0 AND 600 AS young
FROM cusown_ops.metric_worklist ORDER BY 1, 2;
SELECT cusown_attention_resolve(id, 'done') FROM cusown_ops.attention
WHERE kind = 'paid_pending' ORDER BY id LIMIT 1;
SELECT kind, open FROM cusown_ops.metric_worklist ORDER BY 1;

INSERT INTO cusown_ops.webhook_inbox (app_schema, provider, event_id, event_type, body_sha256, received_at, payment_ids, outcome, next_try)
VALUES ('metric_app', 'stripe', '1', 'x', '\x01', now() - interval '2 hours', '{}', 'parked', now()),
       ('metric_app', 'stripe', '2', 'x', '\x02', now() - interval '1 hour', '{}', 'parked', now()),
       ('metric_app', 'stripe', '3', 'x', '\x03', now() - interval '9 days', '{}', 'unmatched', 'infinity'),
       ('metric_app', 'stripe', '4', 'x', '\x04', now(), '{}', 'applied', NULL);
INSERT INTO cusown_ops.webhook_rejected (app_schema, provider, http_status, reason, body_sha256, body_size, at)
VALUES ('metric_app', 'upi', 401, 'signature', '\x01', 1, now() - interval '50 minutes'),
       ('metric_app', 'upi', 400, 'malformed', '\x02', 1, now()),
       ('metric_app', 'upi', 401, 'signature', '\x03', 1, now() - interval '70 minutes');
SELECT provider, outcome, events, round(oldest_age_seconds / 600) AS ten_minutes
FROM cusown_ops.metric_webhook WHERE app_schema = 'metric_app' ORDER BY provider, outcome;
SELECT app_schema, count(*), sum(events) FROM cusown_ops.metric_webhook GROUP BY 1 ORDER BY 1;

-- not preloaded here: no worker, and no error
SELECT * FROM cusown_ops.metric_worker;

-- A text, whatever the session is set to; nothing is left of what it set.
CREATE VIEW calm AS SELECT l FROM regexp_split_to_table(public.cusown_metrics(), '\n') l WHERE l !~ 'age_seconds|observed|_overdue';
CREATE TABLE before AS TABLE calm;
SELECT l FROM before WHERE l ~ 'job="take_census"|build|_open|binding_unresolved|every_seconds' AND l !~ 'last_.*seconds' ORDER BY l COLLATE "C";
SET extra_float_digits = -15;
SET DateStyle = 'German';
SET TimeZone = 'Asia/Kolkata';
SET IntervalStyle = 'iso_8601';
SET standard_conforming_strings = off;
SET cusown_ops.app_schema = 'nowhere';
SET search_path = pg_temp;
CREATE FUNCTION pg_temp.to_jsonb(anyelement) RETURNS jsonb LANGUAGE sql AS $$ SELECT '{}'::jsonb $$;
SET search_path = pg_temp, pg_catalog;
(TABLE metric_app.calm EXCEPT ALL TABLE metric_app.before) UNION ALL (TABLE metric_app.before EXCEPT ALL TABLE metric_app.calm);
SHOW extra_float_digits;
SHOW cusown_ops.app_schema;
RESET ALL;
SET search_path = metric_app, public;
SET client_min_messages = warning;
-- read-only will do
BEGIN READ ONLY;
SELECT cusown_metrics() ~ '\n# EOF\n$' AS whole;
ROLLBACK;
-- a label may hold anything, a value be absent
SELECT cusown_ops.metric_labels('{b,a}', jsonb_build_object('a', E'x\ny', 'b', E'\\"'));

-- Neither what is done with nor what is closed is read.
CREATE FUNCTION reads(query text) RETURNS SETOF text LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
  line text;
BEGIN
  FOR line IN EXECUTE 'EXPLAIN (COSTS OFF) ' || query LOOP
    RETURN NEXT line;
  END LOOP;
END $$;
SELECT v, bool_or(r ~ 'attention_open_idx|webhook_inbox_parked_idx|job_run_outcome_idx') AS by_index,
       bool_or(r ~ 'Seq Scan on (attention|webhook_inbox|job_run)') AS whole
FROM unnest('{worklist,webhook,job}'::text[]) v, reads('TABLE cusown_ops.metric_' || v) r GROUP BY v ORDER BY v;

-- The profile monitor is enough, but not where row-level security would blind it.
CREATE ROLE regress_metric_monitor;
GRANT SELECT ON before TO regress_metric_monitor;
SET ROLE regress_metric_monitor;
SELECT cusown_metrics(); -- fails
RESET ROLE;
\pset tuples_only on
SELECT ddl FROM cusown_grant('regress_metric_monitor', 'monitor') ddl WHERE ddl !~ 'BYPASSRLS' \gexec
\pset tuples_only off
SET ROLE regress_metric_monitor;
SELECT cusown_metrics(); -- fails
RESET ROLE;
ALTER ROLE regress_metric_monitor BYPASSRLS;
SET ROLE regress_metric_monitor;
(TABLE metric_app.before EXCEPT ALL SELECT l FROM regexp_split_to_table(cusown_metrics(), '\n') l);
RESET ROLE;

-- ---------- psql ----------

SET cusown_ops.app_schema = 'metric_app';

-- The queries of doc/cusown_ops.psqlrc all run; those that need a function which is
-- not there are left out.
\set ECHO none
\i :abs_srcdir/doc/cusown_ops.psqlrc
\set ECHO all
\x off
\pset tuples_only on
\set psqlrc `cat "$PG_ABS_SRCDIR/doc/cusown_ops.psqlrc"`
SELECT count(*) > 15 FROM regexp_matches(:'psqlrc', '^\\set (\w+) ', 'gn');
\o :script
SELECT format(E'\\o %s\n:%s\n\\o\n\\if :ERROR\n\\echo :%s :SQLSTATE\n\\endif\n', :'printed', m[1], m[1])
FROM regexp_matches(:'psqlrc', '^\\set (\w+) ''(.*)''$', 'gn') m
WHERE NOT EXISTS (SELECT FROM regexp_matches(m[2], '(cusown_\w+)\(', 'g') f
                  WHERE f[1] NOT IN (SELECT proname FROM pg_proc));
\o
\set ECHO none
\i :script
\set ECHO all

-- Every function that returns a table prints within 160 columns: as a table, or
-- column by column (\x), or where one value alone is longer, wrapped besides.  Functions
-- that are not listed are called without an argument.
SET DateStyle = 'ISO';
SET TimeZone = 'UTC';
CREATE TABLE call (name text PRIMARY KEY, call text, format text NOT NULL, why text);
\pset tuples_only off
INSERT INTO call VALUES
  ('cusown_attach', $$'metric_app'$$, 'wrapped', 'remedies are whole statements'),
  ('cusown_changes_since', NULL, 'expanded', 'two ids and a cursor of an id'),
  ('cusown_cron_health', NULL, 'expanded', '14 columns'),
  ('cusown_due_bookings', NULL, 'expanded', 'three ids'),
  ('cusown_double_bookings', NULL, 'expanded', 'four ids and a command'),
  ('cusown_payment_facts', NULL, 'wrapped', 'documents'),
  ('cusown_worker_status', NULL, 'none', 'needs preload'),
  ('cusown_schedule', NULL, 'none', 'needs pg_cron'),
  ('cusown_grant', $$'regress_metric_monitor', 'operator'$$, 'aligned', NULL),
  ('cusown_keep_booking', $$(SELECT id FROM bookings WHERE status = 'confirmed' ORDER BY id LIMIT 1)$$, 'aligned', NULL),
  ('cusown_reconcile', ':statement', 'expanded', 'two documents and ids'),
  ('cusown_reconciliation_summary', ':statement', 'aligned', NULL),
  ('cusown_set_webhook_secret', $$'stripe', '\x0102030405060708090a0b0c0d0e0f10'$$, 'aligned', NULL);
UPDATE call SET call = (SELECT quote_literal(booking_id) FROM payments WHERE status = 'completed' ORDER BY id LIMIT 1)
WHERE name = 'cusown_payment_facts';
SELECT cusown_load_statement('razorpay', 'generic',
  '[{"provider_ref": "pay_metric_1", "status": "completed", "amount": 50000, "currency": "INR", "at": "2026-01-01T00:00:00Z"}]') AS statement \gset
CREATE VIEW ours AS
SELECT p.oid, p.proname AS name, p.proretset AND p.prorettype <> 'text'::regtype AS is_table,
       p.pronargs = p.pronargdefaults AS is_callable
FROM pg_proc p
JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND e.extname = 'cusown_ops'
WHERE p.pronamespace = 'public'::regnamespace;
-- those that need an argument are all listed
SELECT name AS not_listed FROM ours WHERE is_table AND NOT is_callable AND name NOT IN (SELECT name FROM call);
\setenv PRINTED :printed
\pset tuples_only on
\o :script
SELECT format(
  E'\\pset format %s\n\\x %s\n\\o %s\nBEGIN;\nSELECT * FROM %s(%s);\n\\set failed :ERROR\nROLLBACK;\n\\o\n'
  '\\if :failed\n\\echo %s fails\n\\endif\n'
  '\\set wide `awk ''length > m { m = length } END { if (m > 160) print "%s", m }'' "$PRINTED"`\n'
  'SELECT :''wide'' AS wide WHERE :''wide'' <> '''' \\g (format=unaligned tuples_only=on)\n',
  CASE c.format WHEN 'wrapped' THEN 'wrapped' ELSE 'aligned' END,
  CASE WHEN c.format IN ('wrapped', 'expanded') THEN 'on' ELSE 'off' END,
  :'printed', o.name, replace(coalesce(c.call, ''), ':statement', :'statement'), o.name, o.name)
FROM ours o LEFT JOIN call c USING (name)
WHERE is_table AND c.format IS DISTINCT FROM 'none' ORDER BY name;
\o
\pset tuples_only off
\pset columns 160
\pset footer on
\set ECHO none
-- alerts are told in the log too
SET client_min_messages = error;
\i :script
SET client_min_messages = warning;
\set ECHO all
\x off
\pset format unaligned

-- \df+ cusown_* reads as a manual: each begins with a sentence.
SELECT oid::regprocedure, split_part(obj_description(oid, 'pg_proc'), E'\n', 1) AS first_line
FROM ours WHERE obj_description(oid, 'pg_proc') ~ '^[A-Z][^\n]{20,}\.(\n|$)' IS NOT TRUE;
-- so does \d+ of what monitoring reads
SELECT c.oid::regclass, a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
WHERE c.relnamespace = 'cusown_ops'::regnamespace AND c.relname ~ '^metric_'
AND (obj_description(c.oid, 'pg_class') IS NULL OR col_description(c.oid, a.attnum) IS NULL);

DROP EXTENSION cusown_ops CASCADE;
DROP SCHEMA metric_app, "shop ""x"" \" CASCADE;
DROP OWNED BY regress_metric_monitor;
DROP ROLE regress_metric_monitor;
