/* ---------- expiry: pending bookings that are older than they may get ---------- */

CREATE FUNCTION @extschema@.cusown_due_bookings(
  older_than interval DEFAULT NULL,
  as_of timestamptz DEFAULT pg_catalog.now(),
  hold_grace interval DEFAULT NULL,
  OUT booking_id uuid,
  OUT slot_id uuid,
  OUT business_id uuid,
  OUT rule text,
  OUT due_since timestamptz,
  OUT verdict text,
  OUT finding text)
RETURNS SETOF record
LANGUAGE c STABLE PARALLEL UNSAFE ROWS 1000
AS 'MODULE_PATHNAME', 'cusown_due_bookings';

COMMENT ON FUNCTION @extschema@.cusown_due_bookings(interval, timestamptz, interval) IS
'Pending bookings that are due to expire, oldest first; writes nothing, works on a standby.
older_than: age at which a booking is due; null: cusown_ops.booking_ttl.
as_of: the moment to judge by.
hold_grace: also those whose slot''s hold ended more than that ago; null: not these.
rule: older_than or hold_ended.
verdict: expire; paid (a human decides); in_flight (a payment was begun less than cusown_ops.processing_grace ago); refused (it cannot be cancelled, finding says why).
Errors: UO001 no application attached; 42501 row-level security would hide rows.
Source: runbook Cron Failure, symptoms.';

CREATE FUNCTION @extschema@.cusown_expire_bookings(
  older_than interval DEFAULT NULL,
  max_rows integer DEFAULT 500,
  as_of timestamptz DEFAULT pg_catalog.now(),
  source text DEFAULT 'manual',
  hold_grace interval DEFAULT NULL,
  dry_run boolean DEFAULT false,
  OUT expired bigint,
  OUT released bigint,
  OUT attention bigint,
  OUT more boolean)
RETURNS record
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'cusown_expire_bookings';

COMMENT ON FUNCTION @extschema@.cusown_expire_bookings(interval, integer, timestamptz, text, interval, boolean) IS
'Cancels pending bookings that are due, oldest first, and frees their slots, with an audit row for each change.
older_than: age at which a booking is due; null: cusown_ops.booking_ttl.
max_rows: how many bookings to cancel at most, in this transaction.
as_of: the moment to judge by; ahead of the clock only with dry_run.
source: manual, cron, worker, lazy_heal or application; kept in the audit rows.
hold_grace: expire also those whose slot''s hold ended more than that ago; null: not these, and no job does.
dry_run: do it all and roll it back.
Returns the bookings expired, the slots released, the entries written to the worklist cusown_ops.attention, and whether a due booking is left behind the last one looked at.
A booking that a trigger refuses to cancel goes to the worklist (expiry_failed) and does not stop the rest; a call ends after 50 tries.
Errors: UO001 no application attached; 22023 bad argument; 25006 standby or read-only transaction; 0A000 not READ COMMITTED; 42501 row-level security would hide rows, or source cron or worker as a superuser over tables of others.
Locks: payments FOR SHARE, bookings and slots FOR UPDATE, all SKIP LOCKED: it never waits for a row.
Source: runbook Cron Failure, step 3.';

