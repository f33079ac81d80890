-- Shows alerts: opened, seen, acknowledged, become critical, quiet, resolved; what
-- is told of them; and that each outage is told to the application once.
\getenv abs_srcdir PG_ABS_SRCDIR
\set app :abs_srcdir '/test/fixture/cusown_app.sql'
\set minimal :abs_srcdir '/test/fixture/app_minimal.sql'
-- the log names the database
\set home :DBNAME
CREATE DATABASE regress_alert;
\c regress_alert
SET client_min_messages = warning;
\set SHOW_CONTEXT never
CREATE EXTENSION cusown_ops;
SELECT * FROM cusown_evaluate_alerts(); -- fails
\set schema alert_shop
\set ECHO none
\i :minimal
\set ECHO all
SELECT count(*) > 0 AS attached FROM cusown_attach('alert_shop', :'minimal_mapping');
-- nothing has run since it was attached, a month ago
UPDATE cusown_ops.binding SET bound_since = now() - interval '1 month';

-- only the jobs that are set here are to run
INSERT INTO cusown_ops.job (name, enabled)
SELECT job, false FROM cusown_jobs() WHERE job NOT IN ('expire_bookings', 'evaluate_alerts');
CREATE VIEW alerts AS
SELECT app_schema, symptom, runbook, severity, observed, threshold, times,
       clear_since IS NOT NULL AS quiet, resolved_at IS NOT NULL AS resolved,
       acknowledged_by = current_user AS acknowledged, note
FROM cusown_ops.alert ORDER BY id;
-- so many worklist entries as of the runbook Cron Failure
CREATE PROCEDURE worklist(app name, entries int)
LANGUAGE sql AS $$
  DELETE FROM cusown_ops.attention WHERE app_schema = app;
  INSERT INTO cusown_ops.attention (app_schema, kind, entity, entity_id, runbook, finding, next_try)
  SELECT app, 'unexpirable', 'booking', md5(n::text)::uuid, 'cron_failure', 'a test', now()
  FROM generate_series(1, entries) n;
$$;
-- a success of the job, so long ago
CREATE PROCEDURE ran(app name, ago interval)
LANGUAGE sql AS $$
  INSERT INTO cusown_ops.job_run (app_schema, job, source, started_at, finished_at, status, session)
  VALUES (app, 'expire_bookings', 'cron', now() - ago, now() - ago, 'succeeded', 'a test');
$$;
-- as if it had been quiet for so long
CREATE PROCEDURE quiet_for(ago interval)
LANGUAGE sql AS $$
  UPDATE cusown_ops.alert SET clear_since = now() - ago WHERE resolved_at IS NULL AND clear_since IS NOT NULL;
$$;
CALL ran('alert_shop', '0');
SELECT count(cusown_set_threshold(s, NULL, NULL)) FROM unnest('{scheduler_absent,worker_absent}'::text[]) s;
SELECT cusown_set_threshold('cron_worklist', 2, 4);
SHOW cusown_ops.alert_hold;

-- quiet; who evaluates is not late, though he has never done so before
SELECT late FROM cusown_cron_health() WHERE job = 'evaluate_alerts';
SELECT * FROM cusown_evaluate_alerts();
TABLE alerts;
CALL worklist('alert_shop', 1);
SELECT * FROM cusown_evaluate_alerts();

-- fires: opened, and told once
CALL worklist('alert_shop', 2);
SELECT * FROM cusown_evaluate_alerts();
TABLE alerts;
CALL worklist('alert_shop', 3);
SELECT * FROM cusown_evaluate_alerts();
TABLE alerts;

-- acknowledged, once
SELECT cusown_ack(1, 'on it');
SELECT cusown_ack(1, 'me too');
SELECT * FROM cusown_evaluate_alerts();
TABLE alerts;

-- critical: told again, whoever is on it; and it is told no more
CALL worklist('alert_shop', 5);
SELECT * FROM cusown_evaluate_alerts();
TABLE alerts;
SELECT * FROM cusown_evaluate_alerts();
SELECT cusown_ack(1, 'at last');
-- it stays what it was at its worst
CALL worklist('alert_shop', 2);
SELECT * FROM cusown_evaluate_alerts();
CALL worklist('alert_shop', 4);
SELECT * FROM cusown_evaluate_alerts();
TABLE alerts;

-- quiet, but not for long enough; and it fires again as the same alert
CALL worklist('alert_shop', 0);
SELECT * FROM cusown_evaluate_alerts();
TABLE alerts;
CALL quiet_for('4 minutes');
SELECT * FROM cusown_evaluate_alerts();
SELECT clear_since < now() - interval '4 minutes' AS since_then FROM cusown_ops.alert;
CALL worklist('alert_shop', 2);
SELECT * FROM cusown_evaluate_alerts();
TABLE alerts;
CALL worklist('alert_shop', 0);
SELECT * FROM cusown_evaluate_alerts();
-- a clock that was set back does not keep it open for ever
CALL quiet_for('-1 day');
SELECT * FROM cusown_evaluate_alerts();
SELECT clear_since <= now() AS has_begun FROM cusown_ops.alert;
CALL quiet_for('6 minutes');
SELECT * FROM cusown_evaluate_alerts();
TABLE alerts;
SELECT cusown_ack(1, 'too late');

-- then it is another one
CALL worklist('alert_shop', 4);
SELECT * FROM cusown_evaluate_alerts();
SELECT id, severity, acknowledged_at IS NULL AS fresh FROM cusown_ops.alert WHERE resolved_at IS NULL;
CALL worklist('alert_shop', 0);
SET cusown_ops.alert_hold = 0;
SELECT * FROM cusown_evaluate_alerts();
TABLE alerts;

-- the job does the same, and each evaluation is in the ledger
CALL worklist('alert_shop', 2);
CALL cusown_run_job('evaluate_alerts', batch_size => 1);
CALL worklist('alert_shop', 0);
SELECT * FROM cusown_evaluate_alerts('application');
SELECT source, status, changed, looked_at FROM cusown_ops.job_run
WHERE job = 'evaluate_alerts' ORDER BY id DESC LIMIT 2;
SELECT late FROM cusown_cron_health() WHERE job = 'evaluate_alerts';

-- jobs that are late: the application is told once of each outage
CREATE VIEW told AS
SELECT verb, object_type, detail FROM alert_shop.journal WHERE verb LIKE 'cron%' ORDER BY at;
DELETE FROM cusown_ops.job_run WHERE job = 'expire_bookings';
CALL ran('alert_shop', '1 hour');
SELECT * FROM cusown_evaluate_alerts('worker');
SELECT * FROM cusown_evaluate_alerts();
SELECT verb, object_type, detail - 'last_success' AS detail, detail ? 'last_success' AS last_success FROM told;
SELECT app_schema, job FROM cusown_ops.outage;
-- the worker takes over: it is covered, and the outage goes on
INSERT INTO cusown_ops.takeover (app_schema, job) VALUES ('alert_shop', 'expire_bookings');
CALL ran('alert_shop', '0');
SELECT * FROM cusown_evaluate_alerts();
SELECT symptom, severity, observed, firing FROM cusown_symptoms() WHERE symptom = 'job_covered';
SELECT count(*) FROM told;
-- and stands down without having told of its end, which the next alert does
DELETE FROM cusown_ops.takeover;
CALL ran('alert_shop', '0');
UPDATE cusown_ops.job_run SET finished_at = now() - interval '1 hour' WHERE job = 'expire_bookings';
SELECT * FROM cusown_evaluate_alerts();
SELECT count(*) FROM told;
CALL ran('alert_shop', '0');
SELECT * FROM cusown_evaluate_alerts();
SELECT verb, detail - 'last_success' AS detail FROM told;
TABLE cusown_ops.outage;
-- what the worker covers, it has told of
UPDATE cusown_ops.job_run SET finished_at = now() - interval '1 hour' WHERE job = 'expire_bookings';
INSERT INTO cusown_ops.takeover (app_schema, job) VALUES ('alert_shop', 'expire_bookings');
SELECT * FROM cusown_evaluate_alerts();
SELECT count(*) FROM told;
DELETE FROM cusown_ops.takeover;
SELECT * FROM cusown_evaluate_alerts();
SELECT count(*) FROM told;
-- a job that is disabled has not recovered
UPDATE cusown_ops.job SET enabled = false WHERE name = 'expire_bookings';
INSERT INTO cusown_ops.job (name, enabled) VALUES ('expire_bookings', false);
SELECT * FROM cusown_evaluate_alerts();
SELECT count(*) FROM told;
TABLE cusown_ops.outage;
-- a trail that takes no such row keeps nobody from being told otherwise
UPDATE cusown_ops.job SET enabled = true WHERE name = 'expire_bookings';
ALTER TABLE alert_shop.journal ADD CONSTRAINT no_cron CHECK (verb NOT LIKE 'cron%') NOT VALID;
SELECT * FROM cusown_evaluate_alerts();
ALTER TABLE alert_shop.journal DROP CONSTRAINT no_cron;
TRUNCATE cusown_ops.outage;
CALL ran('alert_shop', '0');
SELECT * FROM cusown_evaluate_alerts();

-- two applications: each has its own; of one that fails the others hear nothing
\set schema alert_app
\set ECHO none
\i :app
\set ECHO all
SELECT count(*) > 0 AS attached FROM cusown_attach('alert_app');
UPDATE cusown_ops.binding SET bound_since = now() - interval '1 month';
CALL ran('alert_app', '0');
SET cusown_ops.app_schema = 'alert_app';
SELECT count(cusown_set_threshold(s, NULL, NULL)) FROM unnest('{scheduler_absent,worker_absent}'::text[]) s;
RESET cusown_ops.app_schema;
CALL worklist('alert_app', 1);
CALL worklist('alert_shop', 2);
SELECT * FROM cusown_evaluate_alerts() ORDER BY app_schema;
SELECT app_schema, symptom, observed, threshold FROM alerts WHERE NOT resolved ORDER BY app_schema;
CALL worklist('alert_app', 0);
SET cusown_ops.app_schema = 'alert_shop';
SELECT * FROM cusown_evaluate_alerts();
SET cusown_ops.app_schema = 'alert_app';
SELECT * FROM cusown_evaluate_alerts();
SET cusown_ops.app_schema = 'nowhere';
SELECT * FROM cusown_evaluate_alerts(); -- fails
RESET cusown_ops.app_schema;
-- job and census serve both
CALL worklist('alert_app', 1);
CALL cusown_run_job('evaluate_alerts');
CALL cusown_run_job('take_census');
SELECT app_schema, count(*) FROM cusown_ops.census GROUP BY 1 ORDER BY 1;
CALL worklist('alert_app', 0);
CALL worklist('alert_shop', 0);
SELECT * FROM cusown_evaluate_alerts() ORDER BY app_schema;
SHOW cusown_ops.app_schema;
-- a name that is gone is a symptom, and critical
ALTER TABLE alert_app.slots RENAME COLUMN reserved_until TO held_until;
SELECT * FROM cusown_evaluate_alerts('cron') ORDER BY app_schema;
CALL cusown_run_job('evaluate_alerts');
SELECT symptom, severity, times FROM alerts WHERE app_schema = 'alert_app' AND NOT resolved;
ALTER TABLE alert_app.slots RENAME COLUMN held_until TO reserved_until;
SELECT * FROM cusown_evaluate_alerts() ORDER BY app_schema;
-- one that cannot be looked at does not keep the others back
CREATE ROLE alert_role;
SET client_min_messages = error;
SELECT ddl FROM cusown_grant('alert_role', 'operator') AS ddl WHERE ddl NOT LIKE '%BYPASSRLS%' \gexec
RESET client_min_messages;
SET ROLE alert_role;
SELECT * FROM cusown_evaluate_alerts();
SELECT app_schema, status, sqlstate FROM cusown_ops.job_run
WHERE job = 'evaluate_alerts' ORDER BY id DESC LIMIT 2;
SET cusown_ops.app_schema = 'alert_app';
SELECT * FROM cusown_evaluate_alerts(); -- fails
RESET cusown_ops.app_schema;
RESET ROLE;
-- nor as a superuser over tables of others, when nobody watches
SET client_min_messages = warning;
ALTER TABLE alert_shop.journal OWNER TO alert_role;
SET cusown_ops.app_schema = 'alert_shop';
SELECT * FROM cusown_evaluate_alerts('cron'); -- fails
SELECT * FROM cusown_evaluate_alerts();
CALL cusown_run_job('evaluate_alerts', 'cron'); -- fails
RESET cusown_ops.app_schema;
ALTER TABLE alert_shop.journal OWNER TO current_user;

-- rights: who looks sees, who operates evaluates and acknowledges
CREATE ROLE alert_monitor;
SELECT count(*) > 0 AS granted FROM cusown_grant('alert_monitor', 'monitor');
SET ROLE alert_monitor;
SELECT count(*) > 0 AS seen FROM cusown_ops.alert;
SELECT * FROM cusown_evaluate_alerts(); -- fails
SELECT cusown_ack(1, 'mine'); -- fails
RESET ROLE;
CALL worklist('alert_shop', 2);
SET cusown_ops.app_schema = 'alert_shop';
SELECT * FROM cusown_evaluate_alerts();
SELECT max(id) AS newest FROM cusown_ops.alert \gset
SET ROLE alert_role;
SELECT cusown_ack(:newest, 'mine');
RESET ROLE;
SELECT acknowledged_by, note FROM cusown_ops.alert WHERE id = :newest;

-- mistakes
SELECT cusown_ack(-1, 'note'); -- fails
SELECT cusown_ack(NULL, 'note'); -- fails
SELECT cusown_ack(1, NULL); -- fails
SELECT cusown_ack(1, ''); -- fails
SELECT * FROM cusown_evaluate_alerts('nobody'); -- fails
SELECT * FROM cusown_evaluate_alerts(NULL); -- fails
BEGIN READ ONLY;
SELECT * FROM cusown_evaluate_alerts(); -- fails
ROLLBACK;
BEGIN READ ONLY;
SELECT cusown_ack(1, 'note'); -- fails
ROLLBACK;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT * FROM cusown_evaluate_alerts(); -- fails
ROLLBACK;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT cusown_ack(1, 'note'); -- fails
ROLLBACK;
DO $$ -- fails, with UO002
BEGIN
  PERFORM cusown_ack(-1, 'note');
EXCEPTION WHEN OTHERS THEN
  RAISE WARNING '%', SQLSTATE;
END $$;
SET ROLE alert_role;
SET cusown_ops.alert_hold = '1 min'; -- fails
RESET ROLE;

-- kept as long as changes are
CALL worklist('alert_shop', 0);
SELECT * FROM cusown_evaluate_alerts();
INSERT INTO cusown_ops.alert (app_schema, symptom, runbook, severity, opened_at, last_seen, clear_since, resolved_at)
SELECT 'alert_shop', s, 'cron_failure', 'warning', now() - interval '9 days', now() - interval '8 days', now() - interval '8 days',
       CASE s WHEN 'old' THEN now() - interval '8 days' WHEN 'young' THEN now() - interval '6 days' END
FROM unnest('{old,young,open}'::text[]) s;
SELECT pruned FROM cusown_prune_history();
SELECT symptom FROM cusown_ops.alert WHERE symptom IN ('old', 'young', 'open') ORDER BY symptom;
RESET cusown_ops.app_schema;
SELECT count(*) FROM cusown_detach('alert_shop');
SELECT pruned > 0 AS pruned FROM cusown_prune_history();
SELECT symptom FROM cusown_ops.alert WHERE symptom IN ('old', 'young', 'open') ORDER BY symptom;

SET client_min_messages = error;
DROP OWNED BY alert_role, alert_monitor;
\c :home
DROP DATABASE regress_alert;
DROP ROLE alert_role, alert_monitor;
