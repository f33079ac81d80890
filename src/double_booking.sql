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

CREATE FUNCTION @extschema@.cusown_resolve_double_bookings(
  policy text DEFAULT 'first_confirmed',
  slot uuid DEFAULT NULL,
  kind text DEFAULT 'same_slot',
  dry_run boolean DEFAULT false,
  OUT slot_id uuid,
  OUT booking_id uuid,
  OUT action text,
  OUT reason text,
  OUT refund_due boolean)
RETURNS SETOF record
LANGUAGE c VOLATILE PARALLEL UNSAFE ROWS 100
AS 'MODULE_PATHNAME', 'cusown_resolve_double_bookings';

COMMENT ON FUNCTION @extschema@.cusown_resolve_double_bookings(text, uuid, text, boolean) IS
'Keeps one confirmed booking of a slot and cancels the others, with an audit row for each.
policy: first_confirmed: by the last audit row booking_confirmed, else by created_at; first_created: by created_at; paid_first: one with a completed payment, then as first_confirmed. Ties go by created_at, then by id.
slot: only on this one; null: on all.
kind: same_slot; overlap: where a business has confirmed more than it can serve at once, the latest by the policy give way until it can; their slots become available unless somebody else stands on them.
dry_run: do it all and roll it back.
Returns a row per booking: action kept, cancelled or attention (reason says why); refund_due: it is cancelled and has a completed payment, which is never changed.
A booking that a CHECK or a trigger refuses to cancel goes to the worklist cusown_ops.attention (unresolvable) and does not stop the rest; a cancelled one with a completed payment goes there too (refund_due).
Errors: UO001 no application attached, or what kind or policy need is not bound; UO002 no such slot; 22023 unknown policy or kind; 25006 standby or read-only transaction; 0A000 not READ COMMITTED; 42501 row-level security would hide rows; 40P01 deadlock with who locks slots first: try again.
Locks: waits for payments FOR SHARE, then bookings, then slots FOR UPDATE, each by id.
Source: runbook Double Booking Alert, step 3.';

CREATE FUNCTION @extschema@.cusown_keep_booking(
  booking uuid,
  dry_run boolean DEFAULT false,
  OUT slot_id uuid,
  OUT booking_id uuid,
  OUT action text,
  OUT reason text,
  OUT refund_due boolean)
RETURNS SETOF record
LANGUAGE c VOLATILE PARALLEL UNSAFE ROWS 10
AS 'MODULE_PATHNAME', 'cusown_keep_booking';

COMMENT ON FUNCTION @extschema@.cusown_keep_booking(uuid, boolean) IS
'Keeps this confirmed booking and cancels the other confirmed ones on its slot: the decision by hand.
booking: id of the one to keep. dry_run: do it all and roll it back.
Returns a row per booking, as cusown_resolve_double_bookings() does.
Errors: UO002 no such booking, or row-level security hides it; UO003 it is not confirmed; 40001 it was moved to another slot meanwhile; else as cusown_resolve_double_bookings().
Locks: waits for payments FOR SHARE, then bookings, then the slot FOR UPDATE.
Source: runbook Double Booking Alert, step 3.';

CREATE FUNCTION @extschema@.cusown_repair_slots(
  dry_run boolean DEFAULT false,
  OUT slot_id uuid,
  OUT action text,
  OUT from_status text,
  OUT to_status text,
  OUT finding text)
RETURNS SETOF record
LANGUAGE c VOLATILE PARALLEL UNSAFE ROWS 100
AS 'MODULE_PATHNAME', 'cusown_repair_slots';

COMMENT ON FUNCTION @extschema@.cusown_repair_slots(boolean) IS
'Brings slots back to what their bookings say, with an audit row for each: booked where a confirmed booking stands; available where nothing live stands on a slot that is booked, or reserved by a hold that has ended. Nothing else is touched.
dry_run: do it all and roll it back.
Returns a row per slot that was wrong: action repaired or attention (finding says why).
A slot that a trigger refuses to change goes to the worklist cusown_ops.attention (repair_failed) and does not stop the rest.
Errors: UO001 no application attached; 25006 standby or read-only transaction; 0A000 not READ COMMITTED; 42501 row-level security would hide rows; 40P01 deadlock with who locks slots first: try again.
Locks: waits for bookings, then slots FOR UPDATE, each by id.
Source: runbook Double Booking Alert, step 3.';

CREATE FUNCTION @extschema@.cusown_install_constraints(
  app_schema name DEFAULT NULL,
  blocking boolean DEFAULT false,
  OUT relation text,
  OUT status text,
  OUT ddl text,
  OUT finding text)
RETURNS SETOF record
LANGUAGE c VOLATILE PARALLEL UNSAFE ROWS 10
AS 'MODULE_PATHNAME', 'cusown_install_constraints';

COMMENT ON FUNCTION @extschema@.cusown_install_constraints(name, boolean) IS
'Whether an index makes a second confirmed booking of a slot impossible, what contradicts it, and the DDL that is lacking.
To run it: SELECT ddl FROM cusown_install_constraints() \gexec
app_schema: schema of the attached application; null: cusown_ops.app_schema, or the only one attached.
blocking: build it now, which keeps writers out of the table until the end of the transaction.
Returns rows with status present; missing; contradicted: a slot that has two already (finding says how to resolve it; while there is one, no DDL is given that would fail); invalid: what a failed build has left behind, with the DDL that drops it.
Errors: UO001 not attached; 42501 row-level security would hide rows; with blocking also: not the owner of the table; 55P03 the lock was not to be had within 2 s, or the caller''s shorter lock_timeout; 25006 standby or read-only transaction; 0A000 not READ COMMITTED.
Source: runbook Double Booking Alert, step 4.';

