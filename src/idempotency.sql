/* ---------- idempotency: requests that are carried out once ---------- */

CREATE TABLE cusown_ops.idempotency_key (
  app_schema name NOT NULL,
  scope text COLLATE "C" NOT NULL,
  key text COLLATE "C" NOT NULL,
  fingerprint bytea,
  token bigint NOT NULL,
  begun_at timestamptz NOT NULL,
  lease_until timestamptz NOT NULL,
  expires_at timestamptz NOT NULL,
  completed_at timestamptz,
  response jsonb,
  CONSTRAINT idempotency_key_pkey PRIMARY KEY (app_schema, scope, key)
);

CREATE INDEX idempotency_key_expires_at_idx
ON cusown_ops.idempotency_key (app_schema, expires_at);

COMMENT ON TABLE cusown_ops.idempotency_key IS
'Requests that were begun, and the responses of those that were completed, until their ttl ends';
COMMENT ON COLUMN cusown_ops.idempotency_key.app_schema IS
'schema of the attached application';
COMMENT ON COLUMN cusown_ops.idempotency_key.scope IS
'what kind of request it is, as the application has it';
COMMENT ON COLUMN cusown_ops.idempotency_key.key IS
'the key that the request came with';
COMMENT ON COLUMN cusown_ops.idempotency_key.fingerprint IS
'SHA-256 of the request, the same for equal jsonb; null where none was given';
COMMENT ON COLUMN cusown_ops.idempotency_key.token IS
'who holds the key; another one each time that it is begun';
COMMENT ON COLUMN cusown_ops.idempotency_key.begun_at IS
'when it was begun, or taken over, by the clock';
COMMENT ON COLUMN cusown_ops.idempotency_key.lease_until IS
'from when on it can be taken over, unless it was completed';
COMMENT ON COLUMN cusown_ops.idempotency_key.expires_at IS
'from when on the key counts as new';
COMMENT ON COLUMN cusown_ops.idempotency_key.completed_at IS
'when it was completed; null: it was not';
COMMENT ON COLUMN cusown_ops.idempotency_key.response IS
'what twins are given';

SELECT pg_catalog.pg_extension_config_dump('cusown_ops.idempotency_key', '');

CREATE FUNCTION @extschema@.cusown_idempotency_begin(
  scope text,
  key text,
  request jsonb DEFAULT NULL,
  ttl interval DEFAULT '24 hours',
  lease interval DEFAULT '60 seconds',
  OUT state text,
  OUT response jsonb,
  OUT token bigint,
  OUT retry_after interval)
RETURNS record
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'cusown_idempotency_begin';

COMMENT ON FUNCTION @extschema@.cusown_idempotency_begin(text, text, jsonb, interval, interval) IS
'Asks whether the request with this key is to be carried out.
scope: what kind of request, 1 to 128 characters; the same key in another scope is another key. key: 1 to 512 characters, as the client sent it.
request: what a twin must have equal, null included; only its SHA-256 is kept.
ttl: how long the key is remembered, from now on; at least as long as the lease. Then it counts as new.
lease: how long a transaction that has committed this holds the key without completing it; 0: not at all. Then the next one takes it over. Days have 24 hours.
Returns state proceed with a token: carry it out, then call cusown_idempotency_complete(), or cusown_idempotency_abandon(); replay with the response of the one that was completed; or in_progress with the whole seconds until its lease ends.
In one transaction with the work a twin waits, for lock_timeout at most; when that is rolled back, the twin proceeds.
Errors: UO005 the key was used with another request; UO006 who holds the key did not end within lock_timeout; UO001 no application attached; 22023 bad argument; 22004 scope, key, ttl or lease is null; 40P01 two transactions that begin the same keys in another order; 25006 standby or read-only transaction; 0A000 not READ COMMITTED. None shows or logs key, request or response; log_statement and log_min_duration_statement would.
Locks: none of the application; waits for transactions that have begun, completed or abandoned the same key. A replay writes nothing.';

CREATE FUNCTION @extschema@.cusown_idempotency_complete(
  scope text,
  key text,
  token bigint,
  response jsonb)
RETURNS boolean
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'cusown_idempotency_complete';

COMMENT ON FUNCTION @extschema@.cusown_idempotency_complete(text, text, bigint, jsonb) IS
'Keeps the response of a request for its twins; in the transaction that does the work.
scope, key: as it was begun. token: what cusown_idempotency_begin() gave. response: may be null.
Returns whether it was completed by this call; false: it was before, by the same token with the same response.
Errors: UO003 the key is not held by this token, as its lease had ended and another one has taken it over, or it is gone: roll back; or it was completed with another response; others as cusown_idempotency_begin().
Locks: none of the application; waits for who takes the key over.';

CREATE FUNCTION @extschema@.cusown_idempotency_abandon(
  scope text,
  key text,
  token bigint)
RETURNS boolean
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'cusown_idempotency_abandon';

COMMENT ON FUNCTION @extschema@.cusown_idempotency_abandon(text, text, bigint) IS
'Gives a key back without a response, so that the next request with it proceeds at once.
scope, key: as it was begun. token: what cusown_idempotency_begin() gave.
Returns whether it did; false, and nothing is changed: the key is not held by this token any more, or was completed.
Errors, locks: as cusown_idempotency_complete(), without UO003.';
