/* ---------- reconcile: a provider's statement against the payments ---------- */

CREATE FUNCTION @extschema@.cusown_reconcile(
  statement bigint,
  grace interval DEFAULT '2 days',
  apply boolean DEFAULT false,
  OUT class text,
  OUT payment_id uuid,
  OUT provider_ref text,
  OUT ours jsonb,
  OUT theirs jsonb,
  OUT action text)
RETURNS SETOF record
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'cusown_reconcile';

COMMENT ON FUNCTION @extschema@.cusown_reconcile(bigint, interval, boolean) IS
'Where a statement that was loaded and the payments of its provider do not agree. Bookings and slots stay as they are.
statement: its id, as cusown_load_statement() gives it.
grace: what only one side knows, and is younger than this, is in_flight.
apply: do what the state machine allows, with the line as evidence, and put the rest on the worklist; false: only show it, which writes nothing.
Returns a row per finding. class: missing_in_app; missing_at_provider, of payments created within the statement''s days, in UTC, that no statement of the provider knows; currency_mismatch; amount_mismatch; status_mismatch; refund_mismatch; duplicate_capture, an order that was paid twice, until that is refunded; in_flight. ours, theirs: status, gross amount and refunds in minor units, currency. action: what is done about it, verify, fail, expire or partial_refund; worklist; later, where 50 refusals have used up this call; null where nothing is.
A line is matched by provider_ref, else by order_ref, which is the application''s order or its id of the payment, else by the UPI transaction. What is not bound is not compared. The same again finds nothing new.
Errors: UO002 no such statement; UO001 no application attached, or no payments; 22023 bad grace; 22004 null; 42501 row-level security would hide rows; with apply also 25006 standby or read-only transaction, 0A000 not READ COMMITTED.
Locks: none without apply; with it, waits for each payment that is moved, and its booking, as cusown_payment_transition(), in the order of their ids.
Source: runbook Payment Mismatch, step 3.';

CREATE FUNCTION @extschema@.cusown_reconciliation_summary(
  statement bigint,
  grace interval DEFAULT '2 days',
  OUT class text,
  OUT currency text,
  OUT theirs bigint,
  OUT their_amount numeric,
  OUT their_refunds numeric,
  OUT ours bigint,
  OUT our_amount numeric,
  OUT our_refunds numeric)
RETURNS SETOF record
LANGUAGE c STABLE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'cusown_reconciliation_summary';

COMMENT ON FUNCTION @extschema@.cusown_reconciliation_summary(bigint, interval) IS
'How many payments, of which gross amounts and refunds in minor units, are in each class of cusown_reconcile(), and how many are matched.
statement, grace: as for cusown_reconcile().
Returns a row per class and currency: theirs in the currency of the statement''s line, ours in that of the payment. Each payment of the statement is in exactly one row, so that theirs add up to the statement; each of ours once too, but what a duplicate_capture paid again is not counted again. An attempt that failed, and was not paid for, counts as matched, and so does what was paid again and refunded. A refund counts in its own currency.
Errors: UO002 no such statement; UO001 no application attached, or no payments; 22023 bad grace; 22004 null; 42501 row-level security would hide rows.
Source: runbook Payment Mismatch, step 3.';
