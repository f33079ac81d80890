/*-------------------------------------------------------------------------
 *
 * cancel.c
 *	  Rejects and cancels bookings.
 *
 * The steps, the locks, and what becomes of the slot are those of booking.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "utils/builtins.h"

#include "booking.h"
#include "verb.h"

PG_FUNCTION_INFO_V1(cusown_reject_booking);
PG_FUNCTION_INFO_V1(cusown_cancel_booking);

static const Template reject = {
	CHANGE_BOOKING("rejected", "")
	CHANGE_SLOT("available")
	WRITE_LIFECYCLE("reject", "", "")
	AUDIT_CHANGE("rejected", "", "slot_released", "available"),
	CHANGE_ARGS
};

/* who cancels is a literal, as the column may be of a type of its own */
#define CANCEL_BY(who) { \
	CHANGE_BOOKING("cancelled", \
				   "[, {bookings.cancelled_by} := '" who "']" \
				   "[, {bookings.cancelled_at} := pg_catalog.now()]" \
				   "[, {bookings.cancellation_reason} := $8]") \
	CHANGE_SLOT("available") \
	WRITE_LIFECYCLE("cancel", "", "") \
	AUDIT_CHANGE("cancelled", ", 'cancelled_by', $6", "slot_released", \
				 "available"), \
	CHANGE_ARGS \
}

static const Template cancel_by_customer = CANCEL_BY("customer");
static const Template cancel_by_owner = CANCEL_BY("owner");
static const Template cancel_by_system = CANCEL_BY("system");

typedef struct Canceller
{
	const char *name;
	const Template *change;
} Canceller;

static const Canceller cancellers[] = {
	{"customer", &cancel_by_customer},
	{"owner", &cancel_by_owner},
	{"system", &cancel_by_system},
};

/*
 * cusown_reject_booking(booking uuid, actor uuid DEFAULT NULL,
 *		reason text DEFAULT NULL, dry_run boolean DEFAULT false, OUT as cusown_confirm_booking())
 *
 * Rejects a pending booking, and frees its slot unless another stands on it.
 *
 * Errors: UO003 not pending; UO002; UO001; 22004; 25006; 0A000.
 *
 * Locks: as cusown_confirm_booking(), without a payment.
 *
 * Source: runbook "Double Booking Alert", step 3.
 */
Datum
cusown_reject_booking(PG_FUNCTION_ARGS)
{
	Call		call = {0};

	booking_begin(fcinfo, &call, "cusown_reject_booking");
	booking_take_actor(fcinfo, 1, &call);
	call.reason = booking_text_or_null(fcinfo, 2);
	call.decide = booking_decide_to_leave;
	call.decision = (Decision)
	{
		"reject", "rejected", "booking_rejected", "release", "available", &reject
	};
	return booking_run(fcinfo, &call, 3);
}

static const Canceller *
canceller_named(const char *name)
{
	for (int i = 0; i < lengthof(cancellers); i++)
	{
		if (strcmp(cancellers[i].name, name) == 0)
			return &cancellers[i];
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("cancelled_by must be customer, owner or system")));
}

/*
 * cusown_cancel_booking(booking uuid, cancelled_by text,
 *		reason text DEFAULT NULL, actor uuid DEFAULT NULL,
 *		dry_run boolean DEFAULT false, OUT as cusown_confirm_booking())
 *
 * Cancels a pending or confirmed booking, and frees its slot unless another
 * stands on it.  Payments stay as they are.
 *
 * Errors: UO003 neither pending nor confirmed; UO002; UO001; 22023; 22004;
 * 25006; 0A000; 23514 where a CHECK of the application forbids it.
 *
 * Locks: as cusown_confirm_booking(), without a payment.
 *
 * Source: runbook "Double Booking Alert", step 3.
 */
Datum
cusown_cancel_booking(PG_FUNCTION_ARGS)
{
	Call		call = {0};
	const Canceller *canceller;

	booking_begin(fcinfo, &call, "cusown_cancel_booking");
	verb_check_not_null(fcinfo, 1, "cancelled_by");
	canceller = canceller_named(text_to_cstring(PG_GETARG_TEXT_PP(1)));
	call.reason = booking_text_or_null(fcinfo, 2);
	booking_take_actor(fcinfo, 3, &call);
	call.actor_type = canceller->name;
	call.decide = booking_decide_to_leave;
	call.decision = (Decision)
	{
		"cancel", "cancelled", "booking_cancelled", "release", "available",
			canceller->change
	};
	return booking_run(fcinfo, &call, 4);
}
