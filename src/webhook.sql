/* ---------- webhook: events of payment providers, applied once ---------- */

CREATE TABLE cusown_ops.webhook_provider (
  app_schema name NOT NULL,
  provider text NOT NULL,
  scheme text NOT NULL,
  event_type jsonpath NOT NULL,
  event_id jsonpath,
  event_id_header text,
  CONSTRAINT webhook_provider_pkey PRIMARY KEY (app_schema, provider),
  CONSTRAINT webhook_provider_scheme
    CHECK (scheme OPERATOR(pg_catalog.=) ANY ('{razorpay,stripe,standard,upi}'))
);

COMMENT ON TABLE cusown_ops.webhook_provider IS
'Payment providers that an owner adds for one application, or reads otherwise than we do';
COMMENT ON COLUMN cusown_ops.webhook_provider.app_schema IS
'schema of the attached application';
COMMENT ON COLUMN cusown_ops.webhook_provider.provider IS
'as payments.provider has it';
COMMENT ON COLUMN cusown_ops.webhook_provider.scheme IS
'how it signs: razorpay, stripe, standard or upi; see cusown_verify_signature()';
COMMENT ON COLUMN cusown_ops.webhook_provider.event_type IS
'where a body says what has happened';
COMMENT ON COLUMN cusown_ops.webhook_provider.event_id IS
'where a body has the id of the event; null: nowhere';
COMMENT ON COLUMN cusown_ops.webhook_provider.event_id_header IS
'the header that has the id of the event, where the body has none; null: none';

CREATE TABLE cusown_ops.webhook_event (
  app_schema name NOT NULL,
  provider text NOT NULL,
  event_type text NOT NULL,
  event text,
  provider_ref jsonpath,
  payment_ids jsonpath[] NOT NULL DEFAULT '{}',
  order_ref jsonpath,
  transaction_ref jsonpath,
  amount jsonpath,
  currency jsonpath,
  refunded jsonpath,
  CONSTRAINT webhook_event_pkey
    PRIMARY KEY (app_schema, provider, event_type)
);

COMMENT ON TABLE cusown_ops.webhook_event IS
'What events of providers do, and where their bodies say of which payment: rows that an owner adds for one application; the view cusown_ops.webhook_machine shows ours too';
COMMENT ON COLUMN cusown_ops.webhook_event.app_schema IS
'schema of the attached application';
COMMENT ON COLUMN cusown_ops.webhook_event.provider IS
'one of ours, or of cusown_ops.webhook_provider';
COMMENT ON COLUMN cusown_ops.webhook_event.event_type IS
'in the provider''s words';
COMMENT ON COLUMN cusown_ops.webhook_event.event IS
'of the payment''s state machine, for instance verify; null: it is kept, and moves nothing';
COMMENT ON COLUMN cusown_ops.webhook_event.provider_ref IS
'where the body has the provider''s id of the payment';
COMMENT ON COLUMN cusown_ops.webhook_event.payment_ids IS
'where it may have the application''s own id of the payment: notes, metadata, receipt';
COMMENT ON COLUMN cusown_ops.webhook_event.order_ref IS
'where it has the provider''s id of the order';
COMMENT ON COLUMN cusown_ops.webhook_event.transaction_ref IS
'where it has the UPI transaction';
COMMENT ON COLUMN cusown_ops.webhook_event.amount IS
'where it has the amount of the payment, in minor units';
COMMENT ON COLUMN cusown_ops.webhook_event.currency IS
'where it has the currency';
COMMENT ON COLUMN cusown_ops.webhook_event.refunded IS
'where it has all refunds so far, in minor units; null, of the event refund: all is refunded';

-- as of the binding: every backend keeps what it has read of them
CREATE TRIGGER invalidate_binding
AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON cusown_ops.webhook_provider
FOR EACH STATEMENT EXECUTE FUNCTION cusown_ops.invalidate_binding();
ALTER TABLE cusown_ops.webhook_provider
ENABLE ALWAYS TRIGGER invalidate_binding;
CREATE TRIGGER invalidate_binding
AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON cusown_ops.webhook_event
FOR EACH STATEMENT EXECUTE FUNCTION cusown_ops.invalidate_binding();
ALTER TABLE cusown_ops.webhook_event ENABLE ALWAYS TRIGGER invalidate_binding;

SELECT pg_catalog.pg_extension_config_dump('cusown_ops.webhook_provider', '');
SELECT pg_catalog.pg_extension_config_dump('cusown_ops.webhook_event', '');

CREATE FUNCTION cusown_ops.shipped_webhook_events(
  OUT provider text,
  OUT scheme text,
  OUT event_type text,
  OUT event text,
  OUT provider_ref jsonpath,
  OUT payment_ids jsonpath[],
  OUT order_ref jsonpath,
  OUT transaction_ref jsonpath,
  OUT amount jsonpath,
  OUT currency jsonpath,
  OUT refunded jsonpath)
RETURNS SETOF record
LANGUAGE c IMMUTABLE PARALLEL SAFE ROWS 12
AS 'MODULE_PATHNAME', 'cusown_shipped_webhook_events';

COMMENT ON FUNCTION cusown_ops.shipped_webhook_events() IS
'Events of providers that the extension knows; see the view cusown_ops.webhook_machine';

CREATE VIEW cusown_ops.webhook_machine AS
SELECT NULL::name AS app_schema, s.provider, s.event_type, s.event,
       s.provider_ref, s.payment_ids, s.order_ref, s.transaction_ref,
       s.amount, s.currency, s.refunded
FROM cusown_ops.shipped_webhook_events() AS s
UNION ALL
SELECT e.app_schema, e.provider, e.event_type, e.event,
       e.provider_ref, e.payment_ids, e.order_ref, e.transaction_ref,
       e.amount, e.currency, e.refunded
FROM cusown_ops.webhook_event AS e;

COMMENT ON VIEW cusown_ops.webhook_machine IS
'What each event of a provider does; app_schema is null where it holds for all applications, and a row of an application goes before that';

CREATE TABLE cusown_ops.webhook_inbox (
  app_schema name NOT NULL,
  id bigint GENERATED ALWAYS AS IDENTITY,
  provider text NOT NULL,
  event_id text,
  event_type text NOT NULL,
  body_sha256 bytea NOT NULL,
  received_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
  event text,
  provider_ref text,
  payment_ids uuid[] NOT NULL,
  order_ref text,
  transaction_ref text,
  amount bigint,
  currency text,
  refunded bigint,
  payment_id uuid,
  outcome text NOT NULL,
  mismatch text,
  detail text,
  tries integer NOT NULL DEFAULT 0,
  next_try timestamptz,
  CONSTRAINT webhook_inbox_pkey PRIMARY KEY (app_schema, id),
  CONSTRAINT webhook_inbox_outcome CHECK (outcome OPERATOR(pg_catalog.=)
    ANY ('{received,applied,stale,ignored,mismatch,parked,unmatched}')),
  CONSTRAINT webhook_inbox_mismatch CHECK ((mismatch IS NOT NULL)
    OPERATOR(pg_catalog.=) (outcome OPERATOR(pg_catalog.=) 'mismatch')),
  CONSTRAINT webhook_inbox_next_try CHECK ((next_try IS NOT NULL)
    OPERATOR(pg_catalog.=) (outcome OPERATOR(pg_catalog.=)
    ANY ('{parked,unmatched}')))
);

-- Each event once.  The conditions hold for every look-up by the key and for no
-- other: a plan that was made while the table was empty, where all keys seem equal,
-- takes the right one, and a backend keeps its plans.
CREATE UNIQUE INDEX webhook_inbox_event
ON cusown_ops.webhook_inbox (app_schema, provider, event_id)
WHERE event_id IS NOT NULL;
CREATE UNIQUE INDEX webhook_inbox_body
ON cusown_ops.webhook_inbox (app_schema, provider, body_sha256)
WHERE body_sha256 IS NOT NULL;

-- look-ups: the facts of a case, whose a reference is, and what is due
CREATE INDEX webhook_inbox_payment_idx
ON cusown_ops.webhook_inbox (app_schema, payment_id)
WHERE payment_id IS NOT NULL;
CREATE INDEX webhook_inbox_provider_ref_idx
ON cusown_ops.webhook_inbox (app_schema, provider_ref)
WHERE provider_ref IS NOT NULL;
CREATE INDEX webhook_inbox_parked_idx
ON cusown_ops.webhook_inbox (app_schema, next_try)
WHERE next_try IS NOT NULL;

COMMENT ON TABLE cusown_ops.webhook_inbox IS
'Every webhook event that was signed and could be read, once; kept for as long as the application is attached';
COMMENT ON COLUMN cusown_ops.webhook_inbox.app_schema IS
'schema of the attached application';
COMMENT ON COLUMN cusown_ops.webhook_inbox.id IS
'for cusown_webhook_replay(inbox_id)';
COMMENT ON COLUMN cusown_ops.webhook_inbox.provider IS
'who has sent it';
COMMENT ON COLUMN cusown_ops.webhook_inbox.event_id IS
'the provider''s id of the event, where it has one; Razorpay does not sign it';
COMMENT ON COLUMN cusown_ops.webhook_inbox.event_type IS
'in the provider''s words';
COMMENT ON COLUMN cusown_ops.webhook_inbox.body_sha256 IS
'SHA-256 of the body, byte by byte';
COMMENT ON COLUMN cusown_ops.webhook_inbox.received_at IS
'when it first came';
COMMENT ON COLUMN cusown_ops.webhook_inbox.event IS
'of the payment''s state machine; null: it moves nothing';
COMMENT ON COLUMN cusown_ops.webhook_inbox.provider_ref IS
'the provider''s id of the payment';
COMMENT ON COLUMN cusown_ops.webhook_inbox.payment_ids IS
'ids in its notes, metadata and receipt, one of which may be the payment''s';
COMMENT ON COLUMN cusown_ops.webhook_inbox.order_ref IS
'the provider''s id of the order';
COMMENT ON COLUMN cusown_ops.webhook_inbox.transaction_ref IS
'the UPI transaction';
COMMENT ON COLUMN cusown_ops.webhook_inbox.amount IS
'of the payment, in minor units';
COMMENT ON COLUMN cusown_ops.webhook_inbox.currency IS
'of the amount, in upper case';
COMMENT ON COLUMN cusown_ops.webhook_inbox.refunded IS
'all refunds of the payment by then, in minor units';
COMMENT ON COLUMN cusown_ops.webhook_inbox.payment_id IS
'the payment that it is about; null while there is none';
COMMENT ON COLUMN cusown_ops.webhook_inbox.outcome IS
'applied; stale: the payment stands further; ignored: it moves nothing; mismatch: amount, currency, refund, status or capture do not fit, see the worklist; parked: no payment yet, it is tried again; unmatched: no payment in all that time; received: while it is being worked on, never seen by others';
COMMENT ON COLUMN cusown_ops.webhook_inbox.mismatch IS
'of a mismatch: amount, currency; refund, which is more than the amount, or of which nobody tells how much; status, from which no transition leads to the money that came; reference, which several payments have; capture, of a payment that was paid under another reference';
COMMENT ON COLUMN cusown_ops.webhook_inbox.detail IS
'what became of it, in words';
COMMENT ON COLUMN cusown_ops.webhook_inbox.tries IS
'how often a payment was looked for';
COMMENT ON COLUMN cusown_ops.webhook_inbox.next_try IS
'when it is tried again, of what is parked; infinity: never, of what is unmatched';

SELECT pg_catalog.pg_extension_config_dump('cusown_ops.webhook_inbox', '');
SELECT pg_catalog.pg_extension_config_dump('cusown_ops.webhook_inbox_id_seq', '');

CREATE TABLE cusown_ops.webhook_body (
  app_schema name NOT NULL,
  inbox_id bigint NOT NULL,
  at timestamptz NOT NULL DEFAULT pg_catalog.now(),
  body bytea NOT NULL,
  CONSTRAINT webhook_body_pkey PRIMARY KEY (app_schema, inbox_id)
);

CREATE INDEX webhook_body_at_idx ON cusown_ops.webhook_body (app_schema, at);

COMMENT ON TABLE cusown_ops.webhook_body IS
'Bodies of the events in cusown_ops.webhook_inbox, with whoever paid; deleted after cusown_ops.webhook_retention';
COMMENT ON COLUMN cusown_ops.webhook_body.app_schema IS
'schema of the attached application';
COMMENT ON COLUMN cusown_ops.webhook_body.inbox_id IS
'the event';
COMMENT ON COLUMN cusown_ops.webhook_body.at IS
'when it came';
COMMENT ON COLUMN cusown_ops.webhook_body.body IS
'byte by byte, as it was signed';

SELECT pg_catalog.pg_extension_config_dump('cusown_ops.webhook_body', '');

-- each place is written again in its turn, so the table does not grow
CREATE SEQUENCE cusown_ops.webhook_rejected_place
AS integer MINVALUE 1 MAXVALUE 10000 CYCLE;

CREATE TABLE cusown_ops.webhook_rejected (
  app_schema name NOT NULL,
  place integer NOT NULL
    DEFAULT pg_catalog.nextval('cusown_ops.webhook_rejected_place'),
  provider text NOT NULL,
  http_status integer NOT NULL,
  reason text NOT NULL,
  body_sha256 bytea NOT NULL,
  body_size integer NOT NULL,
  at timestamptz NOT NULL DEFAULT pg_catalog.now(),
  CONSTRAINT webhook_rejected_pkey PRIMARY KEY (app_schema, place)
);

COMMENT ON SEQUENCE cusown_ops.webhook_rejected_place IS
'places of cusown_ops.webhook_rejected, in turn';
COMMENT ON TABLE cusown_ops.webhook_rejected IS
'The last 10,000 deliveries that were refused; nothing of them but this is kept, and none makes a later one a duplicate';
COMMENT ON COLUMN cusown_ops.webhook_rejected.app_schema IS
'schema of the attached application';
COMMENT ON COLUMN cusown_ops.webhook_rejected.place IS
'from 1 to 10,000; then again from 1';
COMMENT ON COLUMN cusown_ops.webhook_rejected.provider IS
'under whose name it came';
COMMENT ON COLUMN cusown_ops.webhook_rejected.http_status IS
'400, 401 or 413';
COMMENT ON COLUMN cusown_ops.webhook_rejected.reason IS
'signature, size or malformed';
COMMENT ON COLUMN cusown_ops.webhook_rejected.body_sha256 IS
'SHA-256 of the body';
COMMENT ON COLUMN cusown_ops.webhook_rejected.body_size IS
'in bytes';
COMMENT ON COLUMN cusown_ops.webhook_rejected.at IS
'when it came';

CREATE FUNCTION @extschema@.cusown_webhook(
  provider text,
  body bytea,
  headers jsonb,
  as_of timestamptz DEFAULT pg_catalog.now(),
  OUT outcome text,
  OUT http_status integer,
  OUT payment_id uuid,
  OUT inbox_id bigint,
  OUT detail text)
RETURNS record
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'cusown_webhook';

COMMENT ON FUNCTION @extschema@.cusown_webhook(text, bytea, jsonb, timestamptz) IS
'Takes one delivery of a payment provider''s webhook: verifies its signature, keeps it in cusown_ops.webhook_inbox, finds its payment and moves that forward, all in this transaction. Bookings and slots stay as they are.
provider: razorpay, stripe, upi, or one of cusown_ops.webhook_provider.
body: the bytes as they came, before anybody has parsed them.
headers: an object of strings, names in any case; what is signed and the id of the event are looked up in it.
as_of: the moment by which a signed time is judged.
Returns outcome, and the http_status to answer: applied 200; duplicate 200; stale 200, the payment stands further; ignored 200, it moves nothing; mismatch 200, and the worklist says why; parked 202, there is no such payment yet; rejected 401 (signature), 400 (it cannot be read), 413 (over 1 MB), with nothing kept but a row in cusown_ops.webhook_rejected. inbox_id: of the event, where it is kept; of a duplicate, the first.
Any error: answer 5xx, and the provider sends it again; nothing was kept.
A payment is matched by provider_ref, else by its own id in notes, metadata or receipt, else by order_id, else by the UPI transaction, else as an earlier event about the same reference was; what was matched otherwise gets the provider_ref. Capture of a payment that was failed or expired is a late capture, with the event as evidence.
Errors: 22023 provider unknown; 22004 null; UO001 no application attached, or no payments; 42501 row-level security would hide rows; 27000 a trigger kept the payment or an audit row from being written; 25006 standby or read-only transaction; 0A000 not READ COMMITTED.
Locks: waits for whoever has the same event; then for the payment FOR UPDATE and, where it becomes completed, for its booking FOR NO KEY UPDATE.
Source: runbook Payment Mismatch, step 2.';

CREATE FUNCTION @extschema@.cusown_webhook_replay(
  inbox_id bigint,
  dry_run boolean DEFAULT false,
  OUT outcome text,
  OUT http_status integer,
  OUT payment_id uuid,
  OUT detail text)
RETURNS record
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'cusown_webhook_replay';

COMMENT ON FUNCTION @extschema@.cusown_webhook_replay(bigint, boolean) IS
'Works once more on an event of cusown_ops.webhook_inbox, as after its payment or its amount was corrected. What was applied is never applied again.
inbox_id: of the event. dry_run: do it all and roll it back.
Returns as cusown_webhook(); an event that was applied is a duplicate. While its body is kept, it is read again, by what cusown_ops.webhook_event says now.
Errors: UO002 no such event; else as cusown_webhook().
Locks: the event FOR UPDATE; then as cusown_webhook().
Source: runbook Payment Mismatch, step 2.';

CREATE FUNCTION @extschema@.cusown_webhook_backlog(
  OUT provider text,
  OUT outcome text,
  OUT event_type text,
  OUT events bigint,
  OUT oldest timestamptz,
  OUT next_try timestamptz)
RETURNS SETOF record
LANGUAGE c STABLE PARALLEL UNSAFE ROWS 10
AS 'MODULE_PATHNAME', 'cusown_webhook_backlog';

COMMENT ON FUNCTION @extschema@.cusown_webhook_backlog() IS
'Webhook events that have no payment: parked ones, which the job retry_parked_webhooks tries again, and unmatched ones, which it has given up on after cusown_ops.webhook_ttl and the worklist has. Writes nothing, works on a standby.
Returns a row per provider, outcome and event_type: how many, the oldest, and when the next is tried.
Errors: UO001 no application attached.
Source: runbook Payment Mismatch, step 2.';

