--
-- demo_alert.sql
--      On call at 3 a.m.: an alert, its runbook, and the end of both.
--
\set QUIET on
\pset footer off
\pset null '-'
SET client_min_messages = error;

\echo '34. On call at 3 a.m.: a migration has dropped the index that keeps a slot from'
\echo '    having two confirmed bookings.  Nobody has noticed but the database.'
\echo
CALL cusown_run_job('take_census');
SELECT format('DROP INDEX %s', indexrelid::regclass) FROM pg_index
WHERE indrelid = 'bookings'::regclass AND indisunique AND indpred IS NOT NULL \gexec
-- the worker would do it within a minute
SET cusown_ops.alert_hold = 0;
\echo '   SELECT * FROM cusown_evaluate_alerts();'
\echo '   SELECT symptom, severity, runbook FROM cusown_ops.alert WHERE resolved_at IS NULL;'
\echo
SELECT expect('alerts are evaluated', count(*), 1::bigint) AS n FROM cusown_evaluate_alerts() \gset
SELECT symptom, severity, runbook FROM cusown_ops.alert
WHERE resolved_at IS NULL AND runbook = 'double_booking' ORDER BY symptom;
SELECT expect('an alert is open', count(*), 1::bigint) AS n FROM cusown_ops.alert
WHERE resolved_at IS NULL AND symptom = 'unique_index_missing' \gset
\echo '   SELECT cusown_health() ->> ''status'';'
\echo
SELECT cusown_health() ->> 'status' AS status;
SELECT expect('status', cusown_health() ->> 'status', 'unhealthy') AS n \gset

\echo '35. The runbook, with what is so now.  What is needed has its command.'
\echo
\echo '   SELECT step, title, state, finding, command FROM cusown_runbook(''double_booking'');'
\echo
SELECT step, title, state, finding, command FROM cusown_runbook('double_booking');
\echo '    The commands of the needed steps are run as they are printed, until none is left:'
\echo
\pset tuples_only on
SELECT command FROM cusown_runbook('double_booking') WHERE state = 'needed' AND command IS NOT NULL \gexec
SELECT command FROM cusown_runbook('double_booking') WHERE state = 'needed' AND command IS NOT NULL \gexec
SELECT command FROM cusown_runbook('double_booking') WHERE state = 'needed' AND command IS NOT NULL \gexec
\pset tuples_only off
\echo '   SELECT * FROM cusown_evaluate_alerts();'
\echo
SELECT expect('alerts are evaluated', count(*), 1::bigint) AS n FROM cusown_evaluate_alerts() \gset
SELECT symptom, severity, resolved_at IS NOT NULL AS resolved FROM cusown_ops.alert WHERE runbook = 'double_booking' ORDER BY symptom;
SELECT expect('needed steps', count(*), 0::bigint) AS n FROM cusown_runbook('double_booking') WHERE state = 'needed' \gset
SELECT expect('open alerts of the index', count(*), 0::bigint) AS n FROM cusown_ops.alert
WHERE resolved_at IS NULL AND symptom = 'unique_index_missing' \gset
\echo
\echo 'Every figure above is as it should be.'
