/* ---------- no_show: confirmed bookings whose appointment is over ---------- */

CREATE FUNCTION @extschema@.cusown_mark_no_show(
  after interval DEFAULT '30 minutes',
  max_rows integer DEFAULT 500,
  as_of timestamptz DEFAULT pg_catalog.now(),
  source text DEFAULT 'manual',
  dry_run boolean DEFAULT false,
  OUT marked bigint,
  OUT attention bigint,
  OUT more boolean)
RETURNS record
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'cusown_mark_no_show';

COMMENT ON FUNCTION @extschema@.cusown_mark_no_show(interval, integer, timestamptz, text, boolean) IS
'Marks confirmed bookings as no-show whose appointment is over, unless somebody has marked them already; audited. Status and slot stay as they are.
after: how long after the appointment''s end; it ends at its start + the greater of total_duration and the slot''s length, on the clock of its business.
max_rows: how many bookings to mark at most, in this transaction.
as_of: the moment to judge by; ahead of the clock only with dry_run.
source: manual, cron, worker, lazy_heal or application. dry_run: do it all and roll it back.
Returns the bookings marked, entries written to the worklist (unmarkable, no_show_failed; unknown_time_zone: a business''s time zone is not known, its clock is taken for UTC), and whether such a booking is left.
Errors: as cusown_expire_bookings; UO001 also where neither no_show nor no_show_marked_at, or no times of slots, are bound.
Locks: bookings FOR UPDATE SKIP LOCKED, with booking_lifecycle_audit their slots FOR KEY SHARE SKIP LOCKED: it never waits for a row.
Source: runbook Cron Failure, step 3; the job mark_no_show is off as shipped.';

