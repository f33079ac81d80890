-- Shows the worker where the library is not preloaded: it says what it needs, and
-- nothing else misses it; the rest is shown by test/t/008_worker.pl.
\set ON_ERROR_STOP 0
SET client_min_messages = warning;
CREATE EXTENSION cusown_ops;
SELECT * FROM cusown_worker_status(); -- fails
\echo :LAST_ERROR_SQLSTATE
SELECT count(*) FROM cusown_ops.takeover;
-- a job of an application is covered once
INSERT INTO cusown_ops.takeover (app_schema, job) VALUES ('worker_app', 'expire_bookings');
\set VERBOSITY terse
INSERT INTO cusown_ops.takeover (app_schema, job) VALUES ('worker_app', 'expire_bookings'); -- fails
INSERT INTO cusown_ops.takeover (app_schema) VALUES ('worker_app'); -- fails
\set VERBOSITY default
SELECT app_schema, job FROM cusown_ops.takeover WHERE since > now() - interval '1 minute';
-- each profile may look, who runs jobs may cover
CREATE ROLE regress_worker_monitor;
CREATE ROLE regress_worker_operator;
SELECT cusown_grant('regress_worker_monitor', 'monitor') \g /dev/null
SELECT cusown_grant('regress_worker_operator', 'operator') \g /dev/null
SET ROLE regress_worker_monitor;
SELECT job FROM cusown_ops.takeover;
DELETE FROM cusown_ops.takeover; -- fails
SELECT * FROM cusown_worker_status(); -- fails
SET ROLE regress_worker_operator;
DELETE FROM cusown_ops.takeover;
SELECT count(*) FROM cusown_ops.takeover;
RESET ROLE;
DROP EXTENSION cusown_ops;
DROP ROLE regress_worker_monitor, regress_worker_operator;
