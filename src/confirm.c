/*-------------------------------------------------------------------------
 *
 * confirm.c
 *	  The one way to confirm a booking.
 *
 * Any pending booking may be confirmed, however old; but not beside a confirmed
 * one, and while a hold on the slot has not ended only by whom it is held.  What
 * two sessions cannot see of each other, the unique index decides.
 *
 * The steps and the locks are those of booking.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "appointment.h"
#include "attach_index.h"
#include "booking.h"
#include "cusown_ops.h"
#include "errors.h"
#include "verb.h"

PG_FUNCTION_INFO_V1(cusown_confirm_booking);

pg_noreturn static void slot_taken(const Call *call, const char *by,
								   const char *hint);

static const Template lock_payment = {
	"SELECT p.{payments.booking_id} AS booking_id,"
	" p.{payments.status}::text AS status"
	" FROM {payments} p WHERE p.{payments.id} = $1 FOR SHARE",
	1, {UUIDOID}
};

static const Template read_appointment = {
	"SELECT b.{bookings.id} AS id" APPOINTMENT_COLUMNS APPOINTMENT_TABLES
	" WHERE b.{bookings.id} = $1",
	1, {UUIDOID}
};

static const Template confirm = {
	CHANGE_BOOKING("confirmed", "")
	CHANGE_SLOT("booked")
	WRITE_LIFECYCLE("confirm", "[, {booking_lifecycle_audit.new_slot_id}]",
					"[{?booking_lifecycle_audit.new_slot_id}, c.slot_id]")
	AUDIT_CHANGE("confirmed", "", "slot_booked", "booked"),
	CHANGE_ARGS
};

static void
slot_taken(const Call *call, const char *by, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_CUSOWN_SLOT_TAKEN),
			 errmsg("slot %s is taken", verb_uuid_text(&call->slot_id)),
			 errdetail("%s%s", by, !call->is_paid ? "" :
					   " A completed payment of this booking is there."),
			 errhint("%s", hint)));
}

static void
slot_confirmed(const Call *call, const char *by)
{
	slot_taken(call, by, call->is_paid ?
			   "Refund the payment or move the booking; the next run of expire_bookings puts it on the worklist as refund_due." :
			   "Move the booking to another slot, or reject it.");
}

static void
use_payment(Call *call)
{
	pg_uuid_t	booking;
	char	   *status;

	if (call->payment == NULL)
		return;
	binding_require(call->binding, "payments", "id");
	if (booking_execute(call, &lock_payment, call->payment) == 0)
	{
		verb_check_visible(call->binding, "payments", call->payment);
		ereport(ERROR,
				(errcode(ERRCODE_CUSOWN_NOT_FOUND),
				 errmsg("payment %s does not exist",
						verb_uuid_text(call->payment))));
	}
	if (!template_uuid(0, "booking_id", &booking) ||
		memcmp(&booking, &call->id, sizeof(pg_uuid_t)) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_CUSOWN_TRANSITION),
				 errmsg("payment %s is not one of booking %s",
						verb_uuid_text(call->payment), verb_uuid_text(&call->id))));
	status = template_text(0, "status");
	if (status == NULL || strcmp(status, "completed") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_CUSOWN_TRANSITION),
				 errmsg("payment %s is not completed, but %s",
						verb_uuid_text(call->payment),
						status == NULL ? "without a status" : status)));
	SPI_freetuptable(SPI_tuptable);
}

static bool
is_over(Call *call)
{
	TimestampTz end;
	bool		over;

	over = booking_execute(call, &read_appointment, &call->id) > 0 &&
		appointment_end(call->binding, 0, &end) &&
		end <= GetCurrentTimestamp();
	SPI_freetuptable(SPI_tuptable);
	return over;
}

/*
 * The indexes that keep a slot from having two, and those of partitions; also
 * one that is still being built.  Before the change: after an error the catalog
 * cannot be read.
 */
static void
find_indexes(Call *call)
{
	List	   *names = attach_index_names(call->binding);
	List	   *indexes = attach_index_serving(&attach_one_confirmed, names,
											   true, true);
	ListCell   *lc;
	ListCell   *part;

	indexes = list_concat(indexes,
						  attach_index_serving(&attach_one_confirmed, names,
											   false, true));
	foreach(lc, indexes)
	{
		foreach(part, find_all_inheritors(lfirst_oid(lc), AccessShareLock, NULL))
			call->one_confirmed = lappend(call->one_confirmed,
										  attach_index_name(lfirst_oid(part)));
	}
}

static void
decide_to_confirm(Call *call)
{
	if (!call->has_slot)
		booking_not_allowed(call, "Its slot does not exist.", NULL);
	if (call->has_confirmed)
		slot_confirmed(call, psprintf("Booking %s is confirmed on it.",
									  verb_uuid_text(&call->confirmed)));
	if (!booking_knows_confirmed(call))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("row-level security may hide a confirmed booking on slot %s",
						verb_uuid_text(&call->slot_id)),
				 errhint("Build the index that cusown_install_constraints() gives, or call it as a role that has BYPASSRLS.")));
	if (call->has_holder && !booking_is_holder(call))
		slot_taken(call, psprintf("Booking %s holds it.",
								  verb_uuid_text(&call->holder)),
				   "Move the booking to another slot, or wait until the hold has ended.");
	if (!cusown_confirm_past && is_over(call))
		booking_not_allowed(call, "Its appointment is over.",
							"A superuser may allow it by cusown_ops.confirm_past.");
	call->changes_slot = strcmp(call->slot_was.label, "booked") != 0;
	find_indexes(call);
}

/*
 * Whether an index that keeps a slot from having two has refused it: what we
 * could not see is being confirmed elsewhere.  Other indexes may be unique, too.
 */
static bool
is_second_on_slot(const Call *call, const ErrorData *error)
{
	const char *name;
	ListCell   *lc;

	if (error->sqlerrcode != ERRCODE_UNIQUE_VIOLATION ||
		error->schema_name == NULL || error->constraint_name == NULL)
		return false;
	name = quote_qualified_identifier(error->schema_name,
									  error->constraint_name);
	foreach(lc, call->one_confirmed)
	{
		if (strcmp(lfirst(lc), name) == 0)
			return true;
	}
	return false;
}

/* raises what it is, where it is that */
static void
refused(const Call *call, const ErrorData *error)
{
	if (is_second_on_slot(call, error))
		slot_confirmed(call,
					   "Another booking on it was confirmed at the same time.");
}

/*
 * cusown_confirm_booking(booking uuid, actor uuid DEFAULT NULL,
 *		payment uuid DEFAULT NULL, dry_run boolean DEFAULT false,
 *		OUT booking_id uuid, OUT slot_id uuid, OUT from_status text,
 *		OUT to_status text, OUT slot_status text, OUT changed boolean)
 *
 * Confirms a pending booking and books its slot.  Of a booking that is confirmed
 * already: changed = false.
 *
 * Errors: UO004 the slot is taken by a confirmed booking, or held by another;
 * UO003 not pending, the appointment over, or a payment that is another's or not
 * completed; UO002 no such booking or payment; UO001; 22004; 25006; 0A000; 42501
 * row-level security may hide a confirmed booking, and no index does without it.
 *
 * Locks: waits for the payment (FOR SHARE), the bookings on the slot and the
 * slot (FOR UPDATE).
 *
 * Source: runbook "Double Booking Alert", step 4.
 */
Datum
cusown_confirm_booking(PG_FUNCTION_ARGS)
{
	Call		call = {0};

	booking_begin(fcinfo, &call, "cusown_confirm_booking");
	booking_take_actor(fcinfo, 1, &call);
	call.payment = PG_ARGISNULL(2) ? NULL : PG_GETARG_UUID_P(2);
	call.prepare = use_payment;
	call.decide = decide_to_confirm;
	call.refused = refused;
	call.decision = (Decision)
	{
		"confirm", "confirmed", "booking_confirmed", "book", "booked", &confirm
	};
	return booking_run(fcinfo, &call, 3);
}
