/* ---------- booking: what is decided about one booking ---------- */

CREATE FUNCTION @extschema@.cusown_confirm_booking(
  booking uuid,
  actor uuid DEFAULT NULL,
  payment uuid DEFAULT NULL,
  dry_run boolean DEFAULT false,
  OUT booking_id uuid,
  OUT slot_id uuid,
  OUT from_status text,
  OUT to_status text,
  OUT slot_status text,
  OUT changed boolean)
RETURNS record
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'cusown_confirm_booking';

COMMENT ON FUNCTION @extschema@.cusown_confirm_booking(uuid, uuid, uuid, boolean) IS
'Confirms a pending booking and books its slot, with an audit row for each.
actor: who confirms, kept in the audit row; null: the system.
payment: a completed payment of this booking, kept in the audit row; null: none is asked for.
dry_run: do it all and roll it back.
Returns the booking, its slot, the status before and after, the slot''s status, and whether anything was changed: a booking that is confirmed already stays as it is.
Any pending booking may be confirmed, however old; but not beside a confirmed one, and while a hold on the slot has not ended only the newest, whose it is. Not when its appointment is over, unless cusown_ops.confirm_past.
Errors: UO004 the slot is taken; the detail says if a completed payment is there, which the next run of expire_bookings puts on the worklist as refund_due; UO003 not pending, appointment over, payment of another booking or not completed; UO002 no such booking or payment; UO001 no application attached; 22004 booking is null; 42501 row-level security may hide a confirmed booking, and no unique index makes one impossible; 25006 standby or read-only transaction; 0A000 not READ COMMITTED. 40P01 against who locks slots first: try again.
Locks: waits for the payment FOR SHARE, then for the bookings on the slot by id and the slot, FOR UPDATE.
Source: runbook Double Booking Alert, step 4.';

CREATE FUNCTION @extschema@.cusown_reject_booking(
  booking uuid,
  actor uuid DEFAULT NULL,
  reason text DEFAULT NULL,
  dry_run boolean DEFAULT false,
  OUT booking_id uuid,
  OUT slot_id uuid,
  OUT from_status text,
  OUT to_status text,
  OUT slot_status text,
  OUT changed boolean)
RETURNS record
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'cusown_reject_booking';

COMMENT ON FUNCTION @extschema@.cusown_reject_booking(uuid, uuid, text, boolean) IS
'Rejects a pending booking, with an audit row, and frees its slot where no confirmed booking stands on it and no hold of another; where row-level security may hide one, the slot stays as it is.
actor: who rejects, kept in the audit row; null: the system.
reason: kept in the audit row.
dry_run: do it all and roll it back.
Returns the booking, its slot, the status before and after, the slot''s status, and whether anything was changed: a booking that is rejected already stays as it is.
Errors: UO003 not pending; UO002 no such booking; UO001 no application attached; 22004 booking is null; 25006 standby or read-only transaction; 0A000 not READ COMMITTED. 40P01 against who locks slots first: try again.
Locks: waits for the bookings on the slot by id and the slot, FOR UPDATE.
Source: runbook Double Booking Alert, step 3.';

CREATE FUNCTION @extschema@.cusown_cancel_booking(
  booking uuid,
  cancelled_by text,
  reason text DEFAULT NULL,
  actor uuid DEFAULT NULL,
  dry_run boolean DEFAULT false,
  OUT booking_id uuid,
  OUT slot_id uuid,
  OUT from_status text,
  OUT to_status text,
  OUT slot_status text,
  OUT changed boolean)
RETURNS record
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'cusown_cancel_booking';

COMMENT ON FUNCTION @extschema@.cusown_cancel_booking(uuid, text, text, uuid, boolean) IS
'Cancels a pending or confirmed booking, with an audit row, and frees its slot where no confirmed booking stands on it and no hold of another; where row-level security may hide one, the slot stays as it is. Payments stay as they are.
cancelled_by: customer, owner or system.
reason: kept in the booking and in the audit row.
actor: who cancels, kept in the audit row.
dry_run: do it all and roll it back.
Returns the booking, its slot, the status before and after, the slot''s status, and whether anything was changed: a booking that is cancelled already stays as it is.
Errors: UO003 neither pending nor confirmed; UO002 no such booking; UO001 no application attached; 22023 cancelled_by is none of these; 22004 booking or cancelled_by is null; 23514 a CHECK of the application forbids it; 25006 standby or read-only transaction; 0A000 not READ COMMITTED. 40P01 against who locks slots first: try again.
Locks: waits for the bookings on the slot by id and the slot, FOR UPDATE.
Source: runbook Double Booking Alert, step 3.';

CREATE FUNCTION @extschema@.cusown_undo_booking(
  booking uuid,
  actor uuid,
  dry_run boolean DEFAULT false,
  OUT booking_id uuid,
  OUT slot_id uuid,
  OUT from_status text,
  OUT to_status text,
  OUT slot_status text,
  OUT changed boolean)
RETURNS record
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'cusown_undo_booking';

COMMENT ON FUNCTION @extschema@.cusown_undo_booking(uuid, uuid, boolean) IS
'Makes a booking pending again that was confirmed or rejected less than cusown_ops.undo_window ago, with an audit row; a slot that it was confirmed on is freed as by cancelling. Where undo_used_at is bound, once; the application''s own CHECK then keeps the booking from ever being cancelled.
actor: who undoes it, kept in the audit row.
dry_run: do it all and roll it back.
Returns the booking, its slot, the status before and after, the slot''s status, and whether anything was changed.
Errors: UO003 nothing to undo, decided too long ago by the audit trail, or undone once already; UO002 no such booking; UO001 no application attached; 22004 booking or actor is null; 25006 standby or read-only transaction; 0A000 not READ COMMITTED. 40P01 against who locks slots first: try again.
Locks: waits for the bookings on the slot by id and the slot, FOR UPDATE.
Source: runbook Double Booking Alert, step 3.';

