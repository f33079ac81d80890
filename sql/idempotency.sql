-- Shows what a request with an idempotency key is told: that it proceeds, that it
-- was carried out, or that it is being; who may complete it, and when it counts
-- as new.
\set ON_ERROR_STOP 0
\set SHOW_CONTEXT never
\getenv abs_srcdir PG_ABS_SRCDIR
\set app :abs_srcdir '/test/fixture/cusown_app.sql'
\set minimal :abs_srcdir '/test/fixture/app_minimal.sql'
SET client_min_messages = warning;
CREATE EXTENSION cusown_ops;
SELECT * FROM cusown_idempotency_begin('booking', 'k1'); -- fails
\echo :LAST_ERROR_SQLSTATE
\set ECHO none
\set schema idempotency_app
\i :app
\set schema idempotency_shop
\i :minimal
\set ECHO all
SET search_path = idempotency_app, public;
SELECT count(*) > 0 AS attached FROM cusown_attach('idempotency_app');
CREATE VIEW keys AS
SELECT app_schema, scope, key, fingerprint IS NOT NULL AS fingerprint, completed_at IS NOT NULL AS completed, response,
       lease_until - begun_at AS lease, expires_at - begun_at AS ttl
FROM cusown_ops.idempotency_key;

-- The first one proceeds; until its lease ends others are told when that is.
SELECT state, response, token BETWEEN 1 AND 2^53 - 1 AS has_token, retry_after FROM cusown_idempotency_begin('booking', 'k1', '{"slot": 1}');
SELECT token FROM cusown_ops.idempotency_key \gset
SELECT state, response, token, retry_after BETWEEN '1 s' AND '60 s' AND extract(microseconds FROM retry_after) % 1000000 = 0 AS whole_seconds
FROM cusown_idempotency_begin('booking', 'k1', '{"slot": 1}');
-- who comes then finds that it has ended
SELECT clock_timestamp() + b.retry_after BETWEEN k.lease_until AND k.lease_until + interval '5 s' AS then
FROM cusown_idempotency_begin('booking', 'k1', '{"slot": 1}') b, cusown_ops.idempotency_key k;
SELECT * FROM keys;
-- Completed, it is replayed; the same again changes nothing.
SELECT cusown_idempotency_complete('booking', 'k1', :token, '{"id": 7, "price": 1.50}');
SELECT cusown_idempotency_complete('booking', 'k1', :token, '{"price": 1.5, "id": 7}');
SELECT * FROM cusown_idempotency_begin('booking', 'k1', '{"slot": 1}');
SELECT * FROM keys;
SELECT cusown_idempotency_complete('booking', 'k1', :token, '{"id": 8}'); -- fails
\echo :LAST_ERROR_SQLSTATE
SELECT cusown_idempotency_complete('booking', 'k1', :token, NULL); -- fails
SELECT cusown_idempotency_complete('booking', 'k1', :token - 1, '{"id": 7, "price": 1.50}'); -- fails
\echo :LAST_ERROR_SQLSTATE
SELECT cusown_idempotency_abandon('booking', 'k1', :token);
SELECT state FROM cusown_idempotency_begin('booking', 'k1', '{"slot": 1}');
-- a replay writes nothing, so it takes no transaction id
BEGIN;
SELECT state FROM cusown_idempotency_begin('booking', 'k1', '{"slot": 1}');
SELECT pg_current_xact_id_if_assigned();
COMMIT;

-- No response is one too.
SELECT token FROM cusown_idempotency_begin('booking', 'none') \gset
SELECT cusown_idempotency_complete('booking', 'none', :token, NULL);
SELECT cusown_idempotency_complete('booking', 'none', :token, NULL);
SELECT * FROM cusown_idempotency_begin('booking', 'none');
SELECT cusown_idempotency_complete('booking', 'none', :token, 'null'); -- fails
-- A long one comes back whole.
SELECT token FROM cusown_idempotency_begin('booking', 'long') \gset
SELECT cusown_idempotency_complete('booking', 'long', :token, (SELECT jsonb_agg(md5(n::text)) FROM generate_series(1, 20000) n));
SELECT state, md5(response::text) = md5((SELECT jsonb_agg(md5(n::text)) FROM generate_series(1, 20000) n)::text) AS whole
FROM cusown_idempotency_begin('booking', 'long');

-- Abandoned, the next one proceeds at once, with a token of its own.
SELECT token FROM cusown_idempotency_begin('booking', 'k2') \gset
SELECT cusown_idempotency_abandon('booking', 'k2', :token + 1), cusown_idempotency_abandon('payment', 'k2', :token);
SELECT cusown_idempotency_abandon('booking', 'k2', :token), cusown_idempotency_abandon('booking', 'k2', :token);
SELECT cusown_idempotency_complete('booking', 'k2', :token, NULL); -- fails
SELECT state, token <> :token AS another FROM cusown_idempotency_begin('booking', 'k2');

-- A lease that ended is taken over; the late one is refused.
SELECT token AS late FROM cusown_idempotency_begin('booking', 'k3', '[1]', lease => '0') \gset
SELECT token FROM cusown_idempotency_begin('booking', 'k3', '[1]', '1 hour', '10 min') \gset
SELECT state, response, token, retry_after BETWEEN '9 min' AND '10 min' AS ten_minutes FROM cusown_idempotency_begin('booking', 'k3', '[1]');
SELECT cusown_idempotency_complete('booking', 'k3', :late, '"late"'); -- fails
\echo :LAST_ERROR_SQLSTATE
SELECT cusown_idempotency_abandon('booking', 'k3', :late);
SELECT * FROM keys WHERE key = 'k3';
SELECT cusown_idempotency_complete('booking', 'k3', :token, '"in time"');
SELECT cusown_idempotency_complete('booking', 'k3', :late, '"in time"'); -- fails
-- nobody has taken it over: who comes behind the lease may complete
SELECT token FROM cusown_idempotency_begin('booking', 'k4', lease => '0') \gset
SELECT cusown_idempotency_complete('booking', 'k4', :token, '"slow"');
SELECT * FROM cusown_idempotency_begin('booking', 'k4');

-- Another request under the key, also while it is being carried out, and behind
-- its lease; equal is what equal jsonb is.
SELECT * FROM cusown_idempotency_begin('booking', 'k3', '[2]'); -- fails
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM cusown_idempotency_begin('booking', 'k3'); -- fails
SELECT * FROM cusown_idempotency_begin('booking', 'k4', '[1]'); -- fails
SELECT * FROM cusown_idempotency_begin('booking', 'k4', 'null'); -- fails
SELECT state FROM cusown_idempotency_begin('booking', 'k5', '[1]', lease => '0');
SELECT * FROM cusown_idempotency_begin('booking', 'k5', '[2]', lease => '0'); -- fails
CREATE TABLE requests (id serial, request jsonb);
INSERT INTO requests (request) VALUES
  ('{"a": 1, "b": [1.50, "x"]}'), ('{"b": [1.5, "x"], "a": 1.0}'), ('{"b": [15, "x"], "a": 1}'), ('{"b": ["x", 1.5], "a": 1}'),
  ('{"b": [1.5, ["x"]], "a": 1}'), ('{"a": 1, "b": [1.5], "c": "x"}'),
  ('1'), ('1.00'), ('[1]'), ('"1"'), ('10'), ('0.1'), ('-1'), ('1e4'), ('10000'), ('1e8'), ('1.0001'), ('100010000'),
  ('0'), ('-0.0'), ('""'), ('null'), ('true'), ('false'), ('[]'), ('{}'), ('[[]]'), ('[{}]'), ('[[], []]'), ('[null]'), ('["a", "b"]'), ('["ab"]'),
  ('["a]b"]'), ('{"a": "b"}'), ('{"ab": ""}'), ('{"": "ab"}'), ('[["a"], "b"]'), ('[["a", "b"]]'), ('{"a": {"b": 1}}'), ('{"a": {}, "b": 1}');
SELECT state, count(*) FROM (SELECT (cusown_idempotency_begin('equal', id::text, request, lease => '0')).state FROM requests) s GROUP BY 1;
SELECT count(*) FILTER (WHERE a.id < b.id AND a.request = b.request) AS equal,
       count(*) FILTER (WHERE (a.request = b.request) <> (j.fingerprint = k.fingerprint)) AS wrong
FROM requests a JOIN cusown_ops.idempotency_key j ON j.scope = 'equal' AND j.key = a.id::text,
     requests b JOIN cusown_ops.idempotency_key k ON k.scope = 'equal' AND k.key = b.id::text;
-- what is kept of it is the same everywhere, as it is dumped
SELECT state FROM cusown_idempotency_begin('equal', 'sample', '{"a": [1.50, "x", true, null], "b": {}}');
SELECT encode(fingerprint, 'hex') FROM cusown_ops.idempotency_key WHERE key = 'sample';
SELECT encode(sha256('\x7b 7300000001 61 5b 640000000c 0002 0000 0000 0000 0001 1388 7300000001 78 74 6e 5d 7300000001 62 7b 7d 7d'), 'hex');

-- A key whose ttl has ended counts as new, for any request, whoever held it; it
-- lives as long as its lease.
UPDATE cusown_ops.idempotency_key SET expires_at = now() WHERE key IN ('k1', 'k3', 'k5');
SELECT state, response, retry_after FROM cusown_idempotency_begin('booking', 'k1', '[9]');
SELECT state, response, retry_after FROM cusown_idempotency_begin('booking', 'k3', NULL, '1 s', '2 s');
SELECT state, response, retry_after FROM cusown_idempotency_begin('booking', 'k5', '[2]', '3 s', '0');
SELECT * FROM keys WHERE key IN ('k1', 'k3', 'k5') ORDER BY key;
SELECT cusown_idempotency_complete('booking', 'k3', :token, '"in time"'); -- fails

-- A transaction that began long ago judges by the clock.
BEGIN;
SELECT token FROM cusown_idempotency_begin('booking', 'k6', NULL, '1 hour', '1 hour') \gset
SELECT begun_at > now() AS begun, lease_until > now() + interval '1 hour' AS lease, expires_at > now() + interval '1 hour' AS ttl
FROM cusown_ops.idempotency_key WHERE key = 'k6';
UPDATE cusown_ops.idempotency_key SET lease_until = clock_timestamp() WHERE key = 'k6';
SELECT state, token <> :token AS another FROM cusown_idempotency_begin('booking', 'k6');
SELECT token FROM cusown_ops.idempotency_key WHERE key = 'k6' \gset
SELECT cusown_idempotency_complete('booking', 'k6', :token, '1');
UPDATE cusown_ops.idempotency_key SET expires_at = clock_timestamp() WHERE key = 'k6';
SELECT state FROM cusown_idempotency_begin('booking', 'k6');
-- and sees what it has done itself
SELECT state FROM cusown_idempotency_begin('booking', 'k7');
SELECT state FROM cusown_idempotency_begin('booking', 'k7');
ROLLBACK;
SELECT count(*) FROM keys WHERE key IN ('k6', 'k7');

-- Scopes, and applications, have keys of their own.
SELECT state FROM cusown_idempotency_begin('payment', 'k1');
SELECT count(*) > 0 AS attached FROM cusown_attach('idempotency_shop', :'minimal_mapping');
SELECT state FROM cusown_idempotency_begin('booking', 'k1'); -- fails
SET cusown_ops.app_schema = 'idempotency_shop';
SELECT token FROM cusown_idempotency_begin('booking', 'k1') \gset
SELECT cusown_idempotency_complete('booking', 'k1', :token, '"shop"');
SELECT * FROM cusown_idempotency_begin('booking', 'k1');
SET cusown_ops.app_schema = 'idempotency_app';
SELECT cusown_idempotency_complete('booking', 'k1', :token, '"shop"'); -- fails
SELECT app_schema, scope, key, response FROM keys WHERE key = 'k1' ORDER BY app_schema, scope;
-- the application's tables need not be as they were attached
ALTER TABLE bookings RENAME status TO condition;
SELECT state FROM cusown_idempotency_begin('booking', 'renamed');
ALTER TABLE bookings RENAME condition TO status;

-- Arguments.
SELECT state FROM cusown_idempotency_begin('', 'k'); -- fails
SELECT state FROM cusown_idempotency_begin('s', ''); -- fails
SELECT state FROM cusown_idempotency_begin(repeat('s', 129), 'k'); -- fails
SELECT state FROM cusown_idempotency_begin('s', repeat('k', 513)); -- fails
SELECT cusown_idempotency_complete('s', repeat('k', 513), 1, NULL); -- fails
SELECT cusown_idempotency_abandon('', 'k', 1); -- fails
-- characters, not bytes, and of those that nothing makes shorter
SELECT string_agg(chr(65536 + ('x' || left(md5(n::text), 4))::bit(16)::int), '' ORDER BY n) AS wide FROM generate_series(1, 640) n \gset
SELECT octet_length(:'wide');
SELECT state FROM cusown_idempotency_begin(left(:'wide', 128), right(:'wide', 512));
SELECT state FROM cusown_idempotency_begin(left(:'wide', 129), right(:'wide', 512)); -- fails
SELECT state FROM cusown_idempotency_begin(left(:'wide', 128), right(:'wide', 513)); -- fails
SELECT state FROM cusown_idempotency_begin(E'\t''"; --', E' \n');
SELECT scope, key FROM cusown_ops.idempotency_key WHERE key = E' \n';
SELECT state FROM cusown_idempotency_begin(NULL, 'k'); -- fails
SELECT state FROM cusown_idempotency_begin('s', NULL); -- fails
SELECT state FROM cusown_idempotency_begin('s', 'k', ttl => NULL); -- fails
SELECT state FROM cusown_idempotency_begin('s', 'k', lease => NULL); -- fails
SELECT state FROM cusown_idempotency_begin('s', 'k', ttl => '0'); -- fails
SELECT state FROM cusown_idempotency_begin('s', 'k', ttl => '-1 s'); -- fails
SELECT state FROM cusown_idempotency_begin('s', 'k', lease => '-1 s'); -- fails
SELECT state FROM cusown_idempotency_begin('s', 'k', ttl => '1001 years'); -- fails
SELECT state FROM cusown_idempotency_begin('s', 'k', lease => '1001 years'); -- fails
SELECT cusown_idempotency_complete('s', 'k', NULL, '1'); -- fails
SELECT cusown_idempotency_complete(NULL, 'k', 1, '1'); -- fails
SELECT cusown_idempotency_abandon('s', 'k', NULL); -- fails
SELECT count(*) FROM keys WHERE key = 'k';

-- Transactions.
BEGIN READ ONLY;
SELECT cusown_idempotency_begin('s', 'k'); -- fails
ROLLBACK;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT cusown_idempotency_begin('s', 'k'); -- fails
ROLLBACK;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT cusown_idempotency_complete('s', 'k', 1, NULL); -- fails
ROLLBACK;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT cusown_idempotency_abandon('s', 'k', 1); -- fails
ROLLBACK;

-- An application may, a monitor does not even see.
CREATE ROLE regress_idempotency_application;
CREATE ROLE regress_idempotency_monitor;
SELECT cusown_grant('regress_idempotency_application', 'application') \g /dev/null
SELECT cusown_grant('regress_idempotency_monitor', 'monitor') \g /dev/null
SET ROLE regress_idempotency_application;
SELECT token FROM cusown_idempotency_begin('booking', 'role', lease => '0') \gset
SELECT token FROM cusown_idempotency_begin('booking', 'role') \gset
SELECT cusown_idempotency_complete('booking', 'role', :token, '1');
SELECT state, response FROM cusown_idempotency_begin('booking', 'role');
SELECT token FROM cusown_idempotency_begin('booking', 'role 2') \gset
SELECT cusown_idempotency_abandon('booking', 'role 2', :token);
SET ROLE regress_idempotency_monitor;
SELECT state FROM cusown_idempotency_begin('booking', 'role'); -- fails
SELECT count(response) FROM cusown_ops.idempotency_key; -- fails
RESET ROLE;

-- The job deletes what has expired, of its own application.
TRUNCATE cusown_ops.idempotency_key;
INSERT INTO cusown_ops.idempotency_key (app_schema, scope, key, token, begun_at, lease_until, expires_at, completed_at)
SELECT a, 's', n, 1, now(), now(), now() + CASE WHEN n > 25 THEN interval '1 min' ELSE '0' END, CASE WHEN n % 2 = 0 THEN now() END
FROM generate_series(1, 30) n, unnest('{idempotency_app,idempotency_shop}'::name[]) a;
CALL cusown_run_job('prune_idempotency', batch_size => 10);
SELECT app_schema, count(*), min(key::int) FROM keys GROUP BY 1 ORDER BY 1;
SELECT app_schema, job, status, changed, looked_at, batches FROM cusown_ops.job_run;
SELECT * FROM cusown_jobs() WHERE job = 'prune_idempotency';
RESET cusown_ops.app_schema;
CALL cusown_run_job('prune_idempotency');
SELECT app_schema, count(*), min(key::int) FROM keys GROUP BY 1 ORDER BY 1;
-- of one that was detached, prune_history
SELECT cusown_detach('idempotency_shop');
UPDATE cusown_ops.idempotency_key SET expires_at = now() WHERE key::int > 27;
CALL cusown_run_job('prune_idempotency');
SELECT app_schema, count(*), max(key::int) FROM keys GROUP BY 1 ORDER BY 1;
SELECT * FROM cusown_prune_history(2);
SELECT * FROM cusown_prune_history();
SELECT app_schema, count(*), max(key::int) FROM keys GROUP BY 1 ORDER BY 1;

SELECT cusown_detach('idempotency_app');
DROP TABLE requests;
DROP SCHEMA idempotency_app, idempotency_shop CASCADE;
DROP EXTENSION cusown_ops CASCADE;
DROP OWNED BY regress_idempotency_application, regress_idempotency_monitor;
DROP ROLE regress_idempotency_application, regress_idempotency_monitor;
