/* ---------- statement: what a provider says of its payments ---------- */

CREATE TABLE cusown_ops.statement (
  app_schema name NOT NULL,
  id bigint GENERATED ALWAYS AS IDENTITY,
  provider text NOT NULL,
  format text NOT NULL,
  fingerprint bytea NOT NULL,
  line_count integer NOT NULL,
  skipped_count integer NOT NULL,
  period_from timestamptz NOT NULL,
  period_until timestamptz NOT NULL,
  loaded_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
  loaded_by name NOT NULL DEFAULT CURRENT_USER,
  CONSTRAINT statement_pkey PRIMARY KEY (app_schema, id),
  CONSTRAINT statement_once UNIQUE (app_schema, provider, fingerprint)
);

COMMENT ON TABLE cusown_ops.statement IS
'Statements of payment providers that were loaded; each counts once';
COMMENT ON COLUMN cusown_ops.statement.app_schema IS
'schema of the attached application';
COMMENT ON COLUMN cusown_ops.statement.id IS
'for cusown_reconcile(statement)';
COMMENT ON COLUMN cusown_ops.statement.provider IS
'whose statement it is, as payments.provider has it';
COMMENT ON COLUMN cusown_ops.statement.format IS
'razorpay_settlement or generic';
COMMENT ON COLUMN cusown_ops.statement.fingerprint IS
'of its lines, in whatever order they came';
COMMENT ON COLUMN cusown_ops.statement.line_count IS
'how many lines it has';
COMMENT ON COLUMN cusown_ops.statement.skipped_count IS
'rows of the report that are about no payment: transfers and adjustments';
COMMENT ON COLUMN cusown_ops.statement.period_from IS
'the beginning, in UTC, of the day of its first line';
COMMENT ON COLUMN cusown_ops.statement.period_until IS
'the end, in UTC, of the day of its last line';
COMMENT ON COLUMN cusown_ops.statement.loaded_at IS
'when it was loaded';
COMMENT ON COLUMN cusown_ops.statement.loaded_by IS
'the role that loaded it';

CREATE TABLE cusown_ops.statement_line (
  app_schema name NOT NULL,
  id bigint GENERATED ALWAYS AS IDENTITY,
  statement_id bigint NOT NULL,
  row_number integer NOT NULL,
  kind text COLLATE "C" NOT NULL,
  reference text COLLATE "C" NOT NULL,
  provider_ref text COLLATE "C" NOT NULL,
  order_ref text COLLATE "C",
  receipt uuid,
  status text COLLATE "C",
  amount bigint NOT NULL,
  currency text COLLATE "C" NOT NULL,
  refunded bigint,
  at timestamptz NOT NULL,
  fee bigint,
  tax bigint,
  settlement_utr text,
  CONSTRAINT statement_line_pkey PRIMARY KEY (app_schema, id),
  CONSTRAINT statement_line_once
    UNIQUE (app_schema, statement_id, kind, reference)
);

-- which statements tell of a payment
CREATE INDEX statement_line_provider_ref_idx
ON cusown_ops.statement_line (app_schema, provider_ref);
CREATE INDEX statement_line_order_ref_idx
ON cusown_ops.statement_line (app_schema, order_ref)
WHERE order_ref IS NOT NULL;
CREATE INDEX statement_line_receipt_idx
ON cusown_ops.statement_line (app_schema, receipt)
WHERE receipt IS NOT NULL;

COMMENT ON TABLE cusown_ops.statement_line IS
'What a statement says of one payment or refund; nothing of whoever paid';
COMMENT ON COLUMN cusown_ops.statement_line.app_schema IS
'schema of the attached application';
COMMENT ON COLUMN cusown_ops.statement_line.id IS
'the evidence statement_line_id of cusown_payment_transition()';
COMMENT ON COLUMN cusown_ops.statement_line.statement_id IS
'the statement';
COMMENT ON COLUMN cusown_ops.statement_line.row_number IS
'which row of the report it was, from 1';
COMMENT ON COLUMN cusown_ops.statement_line.kind IS
'payment or refund';
COMMENT ON COLUMN cusown_ops.statement_line.reference IS
'the provider''s reference of the payment or refund; once in a statement';
COMMENT ON COLUMN cusown_ops.statement_line.provider_ref IS
'the provider''s reference of the payment, also of the one that is refunded';
COMMENT ON COLUMN cusown_ops.statement_line.order_ref IS
'reference of the order that was paid';
COMMENT ON COLUMN cusown_ops.statement_line.receipt IS
'the application''s own id of the payment, where the provider was told it';
COMMENT ON COLUMN cusown_ops.statement_line.status IS
'of the payment at the provider: completed, failed, expired or processing; null for a refund';
COMMENT ON COLUMN cusown_ops.statement_line.amount IS
'gross, in minor units; of the payment, or of the refund';
COMMENT ON COLUMN cusown_ops.statement_line.currency IS
'ISO 4217 code, upper case';
COMMENT ON COLUMN cusown_ops.statement_line.refunded IS
'all that was refunded of the payment so far, where the statement gives that figure; minor units';
COMMENT ON COLUMN cusown_ops.statement_line.at IS
'when it was paid or refunded';
COMMENT ON COLUMN cusown_ops.statement_line.fee IS
'what the provider keeps, in minor units';
COMMENT ON COLUMN cusown_ops.statement_line.tax IS
'tax within the fee, in minor units';
COMMENT ON COLUMN cusown_ops.statement_line.settlement_utr IS
'the bank''s reference of the settlement';

SELECT pg_catalog.pg_extension_config_dump('cusown_ops.statement', '');
SELECT pg_catalog.pg_extension_config_dump('cusown_ops.statement_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('cusown_ops.statement_line', '');
SELECT pg_catalog.pg_extension_config_dump('cusown_ops.statement_line_id_seq', '');

CREATE FUNCTION @extschema@.cusown_load_statement(
  provider text,
  format text,
  statement jsonb)
RETURNS bigint
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'cusown_load_statement';

COMMENT ON FUNCTION @extschema@.cusown_load_statement(text, text, jsonb) IS
'Keeps what a payment provider''s statement says of its payments, for cusown_reconcile().
provider: whose it is, as payments.provider has it.
format: razorpay_settlement (combined settlement report: entity_id, type, amount, currency, created_at, payment_id of a refund; also fee, tax, order_id, order_receipt, settlement_utr) or generic (provider_ref, status, amount, currency, at; also order_ref, refund_amount).
statement: an array of objects, or an object with the array items. Amounts are gross, in minor units; created_at is in unix seconds, at also in ISO 8601, UTC where no zone is given; refund_amount is all that was refunded so far. Other fields are not kept.
Returns the statement''s id; of the same lines loaded again, that of the first time. No error shows or logs what is in the report; log_statement and log_min_duration_statement would.
Errors: UO010 a row is malformed, or there are none; nothing is kept; UO001 no application attached; 22023 provider or format unknown; 22004 null; 54000 more than 2000000 rows; 25006 standby or read-only transaction; 0A000 not READ COMMITTED.
Locks: none of the application; waits for whoever loads the same statement.
Source: runbook Payment Mismatch, step 3.';

CREATE FUNCTION @extschema@.cusown_load_statement_csv(
  provider text,
  format text,
  csv text)
RETURNS bigint
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'cusown_load_statement_csv';

COMMENT ON FUNCTION @extschema@.cusown_load_statement_csv(text, text, text) IS
'As cusown_load_statement(), from CSV as COPY reads it: separated by commas, the first line names the columns, in any order; others than those of the format are not kept.
csv: the file''s contents; in psql: \set csv `cat file`, then :''csv''.
Returns, errors, locks: as cusown_load_statement(). Rows are counted from 1 behind the first line.
Source: runbook Payment Mismatch, step 3.';
