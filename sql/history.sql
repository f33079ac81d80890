-- Shows what need not be kept for ever, deleted by hand: how many, shown first,
-- by whom; the job prune_history is shown with the changes.
\set ON_ERROR_STOP 0
\getenv abs_srcdir PG_ABS_SRCDIR
\set app :abs_srcdir '/test/fixture/cusown_app.sql'
SET client_min_messages = warning;
CREATE EXTENSION cusown_ops;
SELECT * FROM cusown_prune_history(); -- fails
\echo :LAST_ERROR_SQLSTATE
\set schema history_app
\set ECHO none
\i :app
\set ECHO all
SET search_path = history_app, public;
SELECT count(*) > 0 AS attached FROM cusown_attach('history_app');
-- 30 old changes, 3 young ones; 5 entries closed long ago, one open, one closed today
INSERT INTO cusown_ops.change (at, app_schema, verb, source, entity, entity_id)
SELECT now() - CASE WHEN n <= 30 THEN interval '8 days' ELSE interval '6 days' END, 'history_app',
       'expire_bookings', 'cron', 'booking', gen_random_uuid()
FROM generate_series(1, 33) n;
INSERT INTO cusown_ops.attention (app_schema, kind, entity, entity_id, runbook, finding, next_try, closed_at, closed_by)
SELECT 'history_app', 'paid_pending', 'booking', gen_random_uuid(), 'payment_mismatch', 'paid', now() - interval '8 days',
       CASE WHEN n <= 5 THEN now() - interval '8 days' WHEN n = 6 THEN now() END, CASE WHEN n <= 6 THEN 'me' END
FROM generate_series(1, 7) n;
-- the ledger of an application that was detached
INSERT INTO cusown_ops.job_run (app_schema, job, source, started_at, finished_at, status, session)
SELECT schema, 'expire_bookings', 'cron', now() - interval '8 days', now() - interval '8 days', 'succeeded', 'pid 0'
FROM unnest('{history_app,history_gone}'::name[]) schema, generate_series(1, 4);
CREATE VIEW kept AS
SELECT (SELECT count(*) FROM cusown_ops.change) AS changes, (SELECT count(*) FROM cusown_ops.attention) AS entries,
       (SELECT count(*) FROM cusown_ops.job_run) AS runs;

SELECT * FROM cusown_prune_history(dry_run => true);
TABLE kept;
SELECT * FROM cusown_changes_since(repeat('0', 32) || '-1-1'); -- fails
-- at most so many, whatever the batch
SET cusown_ops.batch_size = 4;
SELECT * FROM cusown_prune_history(10);
TABLE kept;
SELECT * FROM cusown_prune_history(21);
TABLE kept;
SELECT * FROM cusown_prune_history();
TABLE kept;
RESET cusown_ops.batch_size;
-- looking ahead
SELECT * FROM cusown_prune_history(as_of => now() + interval '2 days'); -- fails
SELECT * FROM cusown_prune_history(as_of => now() + interval '2 days', dry_run => true);
SELECT * FROM cusown_prune_history(as_of => now() - interval '30 days');
TABLE kept;

-- arguments and transactions
SELECT * FROM cusown_prune_history(0); -- fails
SELECT * FROM cusown_prune_history(NULL); -- fails
SELECT * FROM cusown_prune_history(source => 'nobody'); -- fails
BEGIN READ ONLY;
SELECT * FROM cusown_prune_history(); -- fails
ROLLBACK;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT * FROM cusown_prune_history(); -- fails
ROLLBACK;

-- an operator may, an application not
CREATE ROLE regress_history_operator BYPASSRLS;
CREATE ROLE regress_history_application BYPASSRLS;
SELECT cusown_grant('regress_history_operator', 'operator') \g /dev/null
SELECT cusown_grant('regress_history_application', 'application') \g /dev/null
UPDATE cusown_ops.change SET at = now() - interval '8 days';
SET ROLE regress_history_application;
SELECT * FROM cusown_prune_history(); -- fails
SET ROLE regress_history_operator;
SELECT * FROM cusown_prune_history(source => 'cron');
RESET ROLE;
TABLE kept;

SELECT cusown_detach('history_app');
DROP SCHEMA history_app CASCADE;
DROP EXTENSION cusown_ops;
DROP OWNED BY regress_history_operator, regress_history_application;
DROP ROLE regress_history_operator, regress_history_application;
