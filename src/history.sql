/* ---------- history: what need not be kept for ever ---------- */

CREATE FUNCTION @extschema@.cusown_prune_history(
  max_rows integer DEFAULT 10000,
  as_of timestamptz DEFAULT pg_catalog.now(),
  source text DEFAULT 'manual',
  dry_run boolean DEFAULT false,
  OUT pruned bigint,
  OUT more boolean)
RETURNS record
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'cusown_prune_history';

COMMENT ON FUNCTION @extschema@.cusown_prune_history(integer, timestamptz, text, boolean) IS
'Deletes rows of our own that are older than cusown_ops.change_retention: changes, worklist entries that were closed, and of applications that were detached the ledger, their statements, what payment_refund holds, and idempotency keys that have expired; also statements older than 400 days.
max_rows: how many at most, in this transaction. as_of: the moment to judge by; ahead of the clock only with dry_run.
source: manual, cron, worker, lazy_heal or application. dry_run: do it all and roll it back.
Returns the rows deleted, and whether more may be left.
Errors: UO001 no application attached; 22023 bad argument; 25006 standby or read-only transaction; 0A000 not READ COMMITTED.
Locks: those rows, FOR UPDATE SKIP LOCKED; nothing of the application.';

