/* ---------- double bookings: detect, resolve, prevent ---------- */

CREATE FUNCTION @extschema@.cusown_double_bookings(
  INOUT kind text DEFAULT 'all',
  business uuid DEFAULT NULL,
  verify boolean DEFAULT false,
  OUT business_id uuid,
  OUT slot_id uuid,
  OUT booking_ids uuid[],
  OUT starts timestamp,
  OUT finding text,
  OUT command text)
RETURNS SETOF record
LANGUAGE c STABLE PARALLEL UNSAFE ROWS 100
AS 'MODULE_PATHNAME', 'cusown_double_bookings';

COMMENT ON FUNCTION @extschema@.cusown_double_bookings(text, uuid, boolean) IS
'Bookings that stand in each other''s way, and slots that their bookings contradict; writes nothing, works on a standby.
kind: all; same_slot: more than one confirmed booking on a slot; overlap: confirmed bookings of a business that take more than its concurrent_booking_capacity (null or not bound: 1) at once; slot_state: a confirmed booking on a slot that is not booked, a booked slot on which nothing live stands, a slot reserved without an end.
business: only of this one; null: of all.
verify: read the bookings also where an index makes kind same_slot impossible.
Returns a row per slot, or per stretch of time, as long as it can be, in which too many are there at any time, with all bookings that are there in it; starts: when the slot or the stretch begins, on the clock of the business, or in UTC where slots have absolute times; command: what mends it.
Errors: UO001 no application attached, or no business_id bound where the kind asked for needs it (kind all leaves it out with a notice); 22023 unknown kind; 42501 row-level security would hide rows.
Source: runbook Double Booking Alert, steps 1 and 2.';

