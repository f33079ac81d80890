/*-------------------------------------------------------------------------
 *
 * undo.c
 *	  Takes a confirmation or a rejection back, soon after it.
 *
 * When it was decided is known from the audit trail alone.  The steps, the locks,
 * and what becomes of the slot are those of booking.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "booking.h"
#include "cusown_ops.h"
#include "verb.h"

PG_FUNCTION_INFO_V1(cusown_undo_booking);

/* $2 its action */
static const Template decided_at = {
	"SELECT a.{audit_logs.created_at} AS at FROM {audit_logs} a"
	" WHERE a.{audit_logs.entity_type} = 'booking'"
	" AND a.{audit_logs.entity_id} = $1 AND a.{audit_logs.action} = $2"
	" ORDER BY a.{audit_logs.created_at} DESC NULLS LAST LIMIT 1",
	2, {UUIDOID, TEXTOID}
};

/* the application's CHECKs allow no action of its lifecycle audit for it */
static const Template undo = {
	CHANGE_BOOKING("pending", "[, {bookings.undo_used_at} := pg_catalog.now()]")
	CHANGE_SLOT("available")
	AUDIT_CHANGE("pending", "", "slot_released", "available"),
	CHANGE_ARGS
};

/* when the audit trail says that it was decided; false: it does not */
static bool
read_decided_at(Call *call, const char *action, TimestampTz *at)
{
	Datum		values[2];
	bool		isnull = true;

	values[0] = UUIDPGetDatum(&call->id);
	values[1] = CStringGetTextDatum(action);
	if (template_execute(call->binding, &decided_at, values, NULL, false) > 0)
		*at = DatumGetTimestampTz(template_column(0, "at", &isnull));
	SPI_freetuptable(SPI_tuptable);
	return !isnull;
}

static void
decide_to_undo(Call *call)
{
	bool		is_confirmed = strcmp(call->from_status.label, "confirmed") == 0;
	TimestampTz at = 0;

	if (call->is_undone)
		booking_not_allowed(call, "It was undone once already.", NULL);
	if (!read_decided_at(call, is_confirmed ? "booking_confirmed" :
						 "booking_rejected", &at))
		booking_not_allowed(call, "The audit trail does not say when that was decided.",
							NULL);
	if (at < GetCurrentTimestamp() - cusown_undo_window * USECS_PER_SEC)
		booking_not_allowed(call, "That was decided longer ago than cusown_ops.undo_window.",
							"Cancel it instead.");
	booking_decide_to_leave(call);
}

/* what undoing means depends on what there is to undo */
static void
choose(Call *call)
{
	Decision   *decision = &call->decision;

	if (strcmp(call->from_status.label, "confirmed") == 0)
	{
		decision->event = "undo_confirm";
		decision->action = "booking_undo_accept";
	}
	else if (strcmp(call->from_status.label, "rejected") == 0)
	{
		decision->event = "undo_reject";
		decision->action = "booking_undo_reject";
	}
}

/*
 * cusown_undo_booking(booking uuid, actor uuid,
 *		dry_run boolean DEFAULT false, OUT as cusown_confirm_booking())
 *
 * Makes a booking pending again that was confirmed or rejected less than
 * cusown_ops.undo_window ago, by the audit trail; once.
 *
 * Errors: UO003 nothing to undo, too late, or undone once already; UO002; UO001;
 * 22004; 25006; 0A000.
 *
 * Locks: as cusown_confirm_booking(), without a payment.
 *
 * Source: runbook "Double Booking Alert", step 3.
 */
Datum
cusown_undo_booking(PG_FUNCTION_ARGS)
{
	Call		call = {0};

	booking_begin(fcinfo, &call, "cusown_undo_booking");
	verb_check_not_null(fcinfo, 1, "actor");
	booking_take_actor(fcinfo, 1, &call);
	call.choose = choose;
	call.decide = decide_to_undo;
	call.decision = (Decision)
	{
		"undo", "pending", NULL, "release", "available", &undo
	};
	return booking_run(fcinfo, &call, 2);
}
