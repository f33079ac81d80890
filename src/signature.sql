/* ---------- signature: who a request comes from ---------- */

CREATE TABLE cusown_ops.webhook_secret (
  app_schema name NOT NULL,
  provider text COLLATE "C" NOT NULL,
  secret bytea NOT NULL,
  valid_from timestamptz NOT NULL,
  valid_until timestamptz,
  CONSTRAINT webhook_secret_pkey PRIMARY KEY (app_schema, provider, valid_from),
  CONSTRAINT webhook_secret_length_check
    CHECK (pg_catalog.octet_length(secret) BETWEEN 1 AND 1024),
  CONSTRAINT webhook_secret_valid_check CHECK (valid_until >= valid_from)
);

-- not even those who may read all tables
ALTER TABLE cusown_ops.webhook_secret ENABLE ROW LEVEL SECURITY;

COMMENT ON TABLE cusown_ops.webhook_secret IS
'Secrets that payment providers sign with; for cusown_set_webhook_secret(). Its owner alone may read it';
COMMENT ON COLUMN cusown_ops.webhook_secret.app_schema IS
'schema of the attached application';
COMMENT ON COLUMN cusown_ops.webhook_secret.provider IS
'whose secret it is, as payments.provider has it';
COMMENT ON COLUMN cusown_ops.webhook_secret.secret IS
'as the provider shows it, in bytes';
COMMENT ON COLUMN cusown_ops.webhook_secret.valid_from IS
'from when on it is accepted';
COMMENT ON COLUMN cusown_ops.webhook_secret.valid_until IS
'until when it is accepted; null for the last one';

SELECT pg_catalog.pg_extension_config_dump('cusown_ops.webhook_secret', '');

CREATE FUNCTION @extschema@.cusown_verify_signature(
  scheme text,
  secret bytea,
  body bytea,
  headers jsonb,
  as_of timestamptz DEFAULT pg_catalog.now(),
  tolerance interval DEFAULT '5 minutes')
RETURNS boolean
LANGUAGE c IMMUTABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'cusown_verify_signature';

COMMENT ON FUNCTION @extschema@.cusown_verify_signature(text, bytea, bytea, jsonb, timestamptz, interval) IS
'Whether a request bears a signature (HMAC-SHA256) made with this secret.
scheme: razorpay (x-razorpay-signature, hex), stripe (stripe-signature, t=SECONDS,v1=HEX, over time and body), standard (Standard Webhooks: webhook-id, webhook-timestamp, webhook-signature, over all of them) or upi (x-upi-signature, hex).
secret: as the provider shows it, in bytes, 1 to 1024; for scheme standard one that begins with whsec_ is in base64.
body: its bytes as they were received. headers: an object of strings or of arrays of one string; names in any case.
as_of, tolerance: how far the time in the headers may be from as_of, before or after; schemes razorpay and upi have no time.
Headers that are missing, there twice, malformed or too long (4096 bytes) are false, never an error.
Errors: 22023 unknown scheme, secret of another length or not in base64, tolerance negative or too long; 22004 null.
Locks: none.
Source: runbook Payment Mismatch, step 2.';

CREATE FUNCTION cusown_ops.verify_signature_with_stored_secret(
  app_schema name,
  provider text,
  scheme text,
  body bytea,
  headers jsonb,
  as_of timestamptz DEFAULT pg_catalog.now(),
  tolerance interval DEFAULT '5 minutes')
RETURNS boolean
LANGUAGE c VOLATILE PARALLEL UNSAFE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'cusown_verify_signature_with_stored_secret';

COMMENT ON FUNCTION cusown_ops.verify_signature_with_stored_secret(name, text, text, bytea, jsonb, timestamptz, interval) IS
'As cusown_verify_signature(), with the secrets of a provider that cusown_set_webhook_secret() has set and that are valid by the clock, whatever as_of is; each of them is tried.
It runs with its owner''s rights, to read the secrets; it reads nothing else.
Without such a secret it is false; a secret that is not in base64 although it begins with whsec_ has signed nothing by scheme standard.
Errors: 22023 unknown scheme, provider or tolerance out of range; 22004 null.
Locks: none.
Source: runbook Payment Mismatch, step 2.';

CREATE FUNCTION @extschema@.cusown_set_webhook_secret(
  provider text,
  secret bytea,
  valid_from timestamptz DEFAULT pg_catalog.now(),
  overlap interval DEFAULT '24 hours')
RETURNS TABLE (
  provider text,
  valid_from timestamptz,
  valid_until timestamptz)
LANGUAGE c VOLATILE PARALLEL UNSAFE ROWS 2
AS 'MODULE_PATHNAME', 'cusown_set_webhook_secret';

COMMENT ON FUNCTION @extschema@.cusown_set_webhook_secret(text, bytea, timestamptz, interval) IS
'Sets the secret that a payment provider signs with; for the owner of this extension only.
provider: whose it is, as payments.provider has it. secret: as the provider shows it, in bytes, 1 to 1024.
valid_from: from when on it is accepted. overlap: how long those before it are accepted from then on; days are 24 hours.
The secret that is the last one already is not added again; those before it end as overlap says, if they do not end earlier: with overlap 0 at once. Another secret with the same valid_from takes its place. One that begins before another that is set ends when that one has begun, and overlap. Those that have ended are deleted.
Returns the provider''s secrets, without themselves: provider, valid_from, valid_until (null for the last one).
No error shows or logs the secret; log_statement and log_min_duration_statement would: pass it as a parameter (\bind in psql 16), or SET log_statement = none before.
Errors: 22023 provider or secret too short or too long, valid_from infinite, overlap negative or too long; 22004 null; UO001 no application attached; 42501 not the owner; 25006 standby or read-only transaction; 0A000 not READ COMMITTED.
Locks: waits for whoever sets a secret; who verifies signatures does not wait.
Source: runbook Payment Mismatch, step 2.';

