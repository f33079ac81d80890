/* ---------- hold: slots that stay reserved although their hold has ended ---------- */

CREATE FUNCTION @extschema@.cusown_release_expired_holds(
  max_rows integer DEFAULT 500,
  as_of timestamptz DEFAULT pg_catalog.now(),
  source text DEFAULT 'manual',
  dry_run boolean DEFAULT false,
  OUT released bigint,
  OUT booked bigint,
  OUT attention bigint,
  OUT more boolean)
RETURNS record
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'cusown_release_expired_holds';

COMMENT ON FUNCTION @extschema@.cusown_release_expired_holds(integer, timestamptz, text, boolean) IS
'Ends holds that are over: the slot becomes available, also under a pending booking, or booked where a confirmed booking stands on it; audited.
max_rows: how many slots to change at most, in this transaction.
as_of: the moment to judge by; ahead of the clock only with dry_run.
source: manual, cron, worker, lazy_heal or application. dry_run: do it all and roll it back.
Returns the slots released, those that became booked, entries written to the worklist (hold_without_end: a slot is reserved without an end, and not touched), and whether a hold that is over is left.
Errors: as cusown_expire_bookings.
Locks: slots FOR UPDATE SKIP LOCKED.
Source: runbook Cron Failure, symptom "slots stuck with expired reservations".';

