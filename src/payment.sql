/* ---------- payment: what happens to one payment, and which ones expire ---------- */

CREATE TABLE cusown_ops.payment_refund (
  app_schema name NOT NULL,
  payment_id uuid NOT NULL,
  refund_ref text NOT NULL,
  amount bigint NOT NULL,
  at timestamptz NOT NULL DEFAULT pg_catalog.now(),
  CONSTRAINT payment_refund_pkey
    PRIMARY KEY (app_schema, payment_id, refund_ref),
  CONSTRAINT payment_refund_amount CHECK (amount OPERATOR(pg_catalog.>=) 0)
);

COMMENT ON TABLE cusown_ops.payment_refund IS
'Refunds that cusown_payment_transition() was told of, so that each counts once';
COMMENT ON COLUMN cusown_ops.payment_refund.app_schema IS
'schema of the attached application';
COMMENT ON COLUMN cusown_ops.payment_refund.payment_id IS
'the payment that was refunded';
COMMENT ON COLUMN cusown_ops.payment_refund.refund_ref IS
'reference of the refund; empty: the greatest figure for all refunds so far';
COMMENT ON COLUMN cusown_ops.payment_refund.amount IS
'of the refund, or of all so far, in minor units; 0: of the refund it was not told';
COMMENT ON COLUMN cusown_ops.payment_refund.at IS
'when it was first told; after that, and cusown_ops.change_retention, it goes with an application that was detached';

SELECT pg_catalog.pg_extension_config_dump('cusown_ops.payment_refund', '');

CREATE FUNCTION @extschema@.cusown_payment_transition(
  payment uuid,
  event text,
  actor uuid DEFAULT NULL,
  reason text DEFAULT NULL,
  evidence jsonb DEFAULT NULL,
  provider_ref text DEFAULT NULL,
  refund_amount bigint DEFAULT NULL,
  refund_ref text DEFAULT NULL,
  dry_run boolean DEFAULT false,
  OUT payment_id uuid,
  OUT from_status text,
  OUT to_status text,
  OUT changed boolean)
RETURNS record
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'cusown_payment_transition';

COMMENT ON FUNCTION @extschema@.cusown_payment_transition(uuid, text, uuid, text, jsonb, text, bigint, text, boolean) IS
'Moves one payment as the state machine has it (cusown_ops.state_machine), with rows in payment_audit_logs and audit_logs. Its booking and slot stay as they are.
event: process, verify, fail, expire, partial_refund, refund, or one that an owner has added.
actor: who does it, kept as verified_by or refunded_by and in the audit rows; null: the system.
reason: kept in the audit rows, and as failure_reason or refund_reason.
evidence: a JSON object, kept in the audit rows; verification_method in it is manual (where it is not said), polling or webhook; statement_line_id is a line of a provider''s statement, which is about this payment.
provider_ref: the provider''s reference of the payment, without white space around it; kept in the payment, but by a refund.
refund_amount: in minor units. With refund_ref: of this refund, which adds up, each refund_ref of a payment once. Without: of all its refunds so far, as a provider tells it; the greatest counts. What is refunded is the greater of the sum and the figure, in whatever order they are told: a refund that the figure holds is remembered, and changes nothing. Null, of a refund: what is left; how much that was may be told later.
refund_ref: reference of this refund.
dry_run: do it all and roll it back.
Returns the payment, its status before and after, and whether anything was changed: the same again changes nothing.
verify of a failed or expired payment is a late capture: only with a statement_line_id that exists and is about this payment, as cusown_reconcile matches them, or with a reason and the provider''s own provider_ref. Where its booking is cancelled or rejected, verify opens paid_cancelled on the worklist: refund, or book anew. A refund of a payment that is not completed yet verifies it first; a partial_refund that leaves nothing is a refund.
Errors: UO003 no such transition, or no evidence for it; UO008 more would be refunded than paid, a refund would leave something, or refund_ref is known with another amount; UO002 no such payment; UO001 no application attached, or no payments; UO010 evidence malformed; 22023 an argument makes no sense; 22004 payment, event or the amount of a partial_refund is null; 27000 a trigger kept the payment or an audit row from being written; 25006 standby or read-only transaction; 0A000 not READ COMMITTED.
Locks: waits for the payment FOR UPDATE, then, where it becomes completed, for its booking FOR NO KEY UPDATE.
Source: runbook Payment Mismatch, step 3.';

CREATE FUNCTION @extschema@.cusown_expire_payments(
  max_rows integer DEFAULT 500,
  as_of timestamptz DEFAULT pg_catalog.now(),
  source text DEFAULT 'manual',
  dry_run boolean DEFAULT false,
  OUT expired bigint,
  OUT attention bigint,
  OUT more boolean)
RETURNS record
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'cusown_expire_payments';

COMMENT ON FUNCTION @extschema@.cusown_expire_payments(integer, timestamptz, text, boolean) IS
'Expires payments that are initiated and past their expires_at; audited in payment_audit_logs, where the application has it, else as data_corrected. Bookings and slots stay as they are.
max_rows: how many payments to change at most, in this transaction.
as_of: the moment to judge by; ahead of the clock only with dry_run.
source: manual, cron, worker, lazy_heal or application. dry_run: do it all and roll it back.
Returns the payments expired, entries written to the worklist (payment_expiry_failed: a trigger refused it), and whether one that is over is left.
Errors: as cusown_expire_bookings; UO001 also where payments.expires_at is not bound.
Locks: payments FOR UPDATE SKIP LOCKED.
Source: runbook Cron Failure; what it says of bookings holds for payments.';

