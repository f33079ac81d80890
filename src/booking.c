/*-------------------------------------------------------------------------
 *
 * booking.c
 *	  What an owner or a customer decides about one booking.
 *
 * Confirming, rejecting, cancelling and undoing go through the same steps.  The
 * booking, all that stand on its slot, and the slot are locked; then, in new
 * statements, it is decided; and booking, slot and their audit rows are
 * changed by one statement.
 *
 * A slot does not know who holds it: a hold that has not ended is that of the
 * newest pending booking on it.  Whoever leaves a slot frees it only where no
 * confirmed booking stands on it, and no such hold of another.
 *
 * Locking protocol: interactive verbs wait.  The payment is locked FOR SHARE,
 * the bookings FOR UPDATE in the order of their ids, then the slot.  Who
 * confirms by hand need not lock the slot, so the bookings on it are what keeps
 * two verbs, and a verb and a job, apart.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "appointment.h"
#include "audit.h"
#include "change.h"
#include "compat.h"
#include "cusown_ops.h"
#include "due.h"
#include "errors.h"
#include "guard.h"
#include "state_machine.h"
#include "template.h"
#include "uuid_list.h"
#include "verb.h"

#define BOOKING_SOURCE "manual"

/* a status of the application, copied: it outlives the statement */
typedef struct Status
{
	char text[	NAMEDATALEN];
} Status;

/* what a verb does to a booking */
typedef struct Decision
{
	const char *event;			/* of the state machine */
	const char *to_status;
	const char *action;			/* of the audit row */
	const char *slot_status;	/* what the slot may become, or NULL */
	const Template *change;
} Decision;

/* one call */
typedef struct Call Call;

struct Call
{
	const char *verb;			/* the function's name without its prefix */
	pg_uuid_t	id;
	const pg_uuid_t *actor;		/* NULL: the system */
	const pg_uuid_t *payment;	/* NULL: none is given */
	const char *actor_type;		/* customer, owner or system */
	const char *reason;			/* or NULL */
	void		(*decide) (Call *call);
	Decision	decision;
	Binding    *binding;
	/* what was found under the locks */
	Status		from_status;
	bool		has_slot_id;
	pg_uuid_t	slot_id;
	bool		has_slot;
	Status		slot_was;
	bool		is_undone;		/* its one undo was used */
	bool		is_paid;		/* a completed payment is there */
	bool		has_confirmed;
	pg_uuid_t	confirmed;		/* another one that is confirmed on the slot */
	bool		has_holder;
	pg_uuid_t	holder;			/* whose hold on the slot has not ended */
	/* what was made of it */
	bool		changes_slot;
	bool		changed;
	Status		to_status;
	Status		slot_status;
};

static const char *const relations_used[] = {
	"bookings", "slots", "payments", "businesses", "audit_logs",
	"booking_lifecycle_audit", NULL
};

PG_FUNCTION_INFO_V1(cusown_confirm_booking);
PG_FUNCTION_INFO_V1(cusown_reject_booking);
PG_FUNCTION_INFO_V1(cusown_cancel_booking);
PG_FUNCTION_INFO_V1(cusown_undo_booking);

pg_noreturn static void booking_not_found(const Call *call);
pg_noreturn static void slot_taken(const Call *call, const char *by);
pg_noreturn static void not_allowed(const Call *call, const char *detail,
									const char *hint);

/* ---------- statements ---------- */

static const Template slot_of_booking = {
	"SELECT b.{bookings.slot_id} AS slot_id FROM {bookings} b"
	" WHERE b.{bookings.id} = $1",
	1, {UUIDOID}
};

static const Template lock_payment = {
	"SELECT p.{payments.booking_id} AS booking_id,"
	" p.{payments.status}::text AS status"
	" FROM {payments} p WHERE p.{payments.id} = $1 FOR SHARE",
	1, {UUIDOID}
};

/* $2 its slot */
static const Template lock_bookings = {
	"SELECT b.{bookings.id} AS id FROM {bookings} b"
	" WHERE b.{bookings.id} = $1 OR (b.{bookings.slot_id} = $2"
	" AND (b.{bookings.status} = 'pending'"
	" OR b.{bookings.status} = 'confirmed'))"
	" ORDER BY b.{bookings.id} FOR UPDATE",
	2, {UUIDOID, UUIDOID}
};

static const Template lock_slot = {
	"SELECT s.{slots.id} AS id FROM {slots} s WHERE s.{slots.id} = $1"
	" FOR UPDATE",
	1, {UUIDOID}
};

/* a hold without an end is taken for one that has not ended */
static const Template read_booking = {
	"SELECT b.{bookings.status}::text AS status,"
	" b.{bookings.slot_id} AS slot_id, s.{slots.id} AS found_slot_id,"
	" s.{slots.status}::text AS slot_status"
	"[, b.{bookings.undo_used_at} IS NOT NULL AS is_undone]"
	"[, EXISTS (SELECT FROM {payments} p"
	" WHERE p.{payments.booking_id} = b.{bookings.id}"
	" AND p.{payments.status} = 'completed') AS is_paid],"
	" (SELECT o.{bookings.id} FROM {bookings} o"
	" WHERE o.{bookings.slot_id} = b.{bookings.slot_id}"
	" AND o.{bookings.status} = 'confirmed'"
	" AND o.{bookings.id} <> b.{bookings.id} LIMIT 1) AS confirmed_id,"
	" (SELECT o.{bookings.id} FROM {bookings} o"
	" WHERE o.{bookings.slot_id} = b.{bookings.slot_id}"
	" AND o.{bookings.status} = 'pending'"
	" AND s.{slots.status} = 'reserved'"
	"[ AND (s.{slots.reserved_until} <= pg_catalog.now()) IS NOT TRUE]"
	" ORDER BY o.{bookings.created_at} DESC NULLS LAST,"
	" o.{bookings.id} DESC LIMIT 1) AS holder_id"
	" FROM {bookings} b LEFT JOIN {slots} s"
	" ON s.{slots.id} = b.{bookings.slot_id}"
	" WHERE b.{bookings.id} = $1",
	1, {UUIDOID}
};

static const Template read_appointment = {
	"SELECT b.{bookings.id} AS id" APPOINTMENT_COLUMNS APPOINTMENT_TABLES
	" WHERE b.{bookings.id} = $1",
	1, {UUIDOID}
};

/*
 * The slot of the booking $1, which leaves the status $2, if it becomes free.
 * Of a slot that is booked without a confirmed booking, as after a reschedule,
 * any pending booking may be the one that it is booked for.
 */
static const Template slot_to_free = {
	"SELECT s.{slots.id} AS id FROM {slots} s"
	" JOIN {bookings} b ON b.{bookings.slot_id} = s.{slots.id}"
	" WHERE b.{bookings.id} = $1"
	" AND NOT EXISTS (SELECT FROM {bookings} o"
	" WHERE o.{bookings.slot_id} = s.{slots.id}"
	" AND o.{bookings.status} = 'confirmed'"
	" AND o.{bookings.id} <> b.{bookings.id})"
	" AND (s.{slots.status} = 'booked' AND ($2 = 'confirmed'"
	" OR NOT EXISTS (SELECT FROM {bookings} o"
	" WHERE o.{bookings.slot_id} = s.{slots.id}"
	" AND o.{bookings.status} = 'pending'"
	" AND o.{bookings.id} <> b.{bookings.id}))"
	" OR s.{slots.status} = 'reserved' AND ("
	"[{?slots.reserved_until}s.{slots.reserved_until} <= pg_catalog.now() OR]"
	" ($2 = 'pending' AND $3)))",
	3, {UUIDOID, TEXTOID, BOOLOID}
};

/* $2 its action */
static const Template decided_at = {
	"SELECT a.{audit_logs.created_at} AS at FROM {audit_logs} a"
	" WHERE a.{audit_logs.entity_type} = 'booking'"
	" AND a.{audit_logs.entity_id} = $1 AND a.{audit_logs.action} = $2"
	" ORDER BY a.{audit_logs.created_at} DESC NULLS LAST LIMIT 1",
	2, {UUIDOID, TEXTOID}
};

static const Template read_result = {
	"SELECT b.{bookings.status}::text AS status,"
	" s.{slots.status}::text AS slot_status"
	" FROM {bookings} b LEFT JOIN {slots} s"
	" ON s.{slots.id} = b.{bookings.slot_id}"
	" WHERE b.{bookings.id} = $1",
	1, {UUIDOID}
};

/*
 * The change: $1 booking, $2 the status that it has, $3 whether its slot
 * changes too, $4 the status of that, $5 actor, $6 what the actor is, $7 action,
 * $8 reason, $9 payment.
 */
#define CHANGE_BOOKING(status, columns) \
	"WITH changed AS (UPDATE {bookings} b SET" \
	" {bookings.status} := '" status "'" columns \
	"[, {bookings.updated_at} := pg_catalog.now()]" \
	" WHERE b.{bookings.id} = $1 AND b.{bookings.status}::text = $2" \
	" RETURNING b.{bookings.id} AS id, b.{bookings.slot_id} AS slot_id),"

#define CHANGE_SLOT(status) \
	" slot AS (UPDATE {slots} s SET {slots.status} := '" status "'" \
	"[, {slots.reserved_until} := NULL]" \
	"[, {slots.updated_at} := pg_catalog.now()]" \
	" FROM changed c WHERE $3 AND s.{slots.id} = c.slot_id" \
	" RETURNING s.{slots.id} AS id),"

#define WRITE_LIFECYCLE(action, column, value) \
	"[ lifecycle AS (INSERT INTO {booking_lifecycle_audit}" \
	" ({booking_lifecycle_audit.booking_id}," \
	" {booking_lifecycle_audit.old_slot_id}," \
	" {booking_lifecycle_audit.action_type}," \
	" {booking_lifecycle_audit.actor_type}," \
	" {booking_lifecycle_audit.created_at}" column ")" \
	" SELECT c.id, c.slot_id, '" action "', $6, pg_catalog.now()" value \
	" FROM changed c),]"

#define AUDIT_CHANGE(status, data, slot_action, slot_status) \
	" audit_row (" AUDIT_ROW ", actor) AS (" \
	"SELECT $7, 'booking'::text, c.id," \
	" pg_catalog.jsonb_build_object('status', $2)," \
	" pg_catalog.jsonb_build_object('status', '" status "'" data ")," \
	" pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object(" \
	"'actor', $6, 'source', '" BOOKING_SOURCE "', 'reason', $8," \
	" 'payment_id', $9, 'from', $2, 'to', '" status "'))," \
	" 'booking " status "'::text, $5 FROM changed c" \
	" UNION ALL SELECT '" slot_action "', 'slot', s.id," \
	" pg_catalog.jsonb_build_object('status', $4)," \
	" pg_catalog.jsonb_build_object('status', '" slot_status "')," \
	" pg_catalog.jsonb_build_object('actor', $6," \
	" 'source', '" BOOKING_SOURCE "', 'rule', $7," \
	" 'from', $4, 'to', '" slot_status "')," \
	" 'slot " slot_status "', $5 FROM slot s)" \
	AUDIT_INSERT_AS("$6", "[, {audit_logs.actor_id}]", \
					"[{?audit_logs.actor_id}, r.actor]")

#define CHANGE_ARGS \
	9, {UUIDOID, TEXTOID, BOOLOID, TEXTOID, UUIDOID, TEXTOID, TEXTOID, TEXTOID, UUIDOID}

static const Template confirm = {
	CHANGE_BOOKING("confirmed", "")
	CHANGE_SLOT("booked")
	WRITE_LIFECYCLE("confirm", "[, {booking_lifecycle_audit.new_slot_id}]",
					"[{?booking_lifecycle_audit.new_slot_id}, c.slot_id]")
	AUDIT_CHANGE("confirmed", "", "slot_booked", "booked"),
	CHANGE_ARGS
};

static const Template reject = {
	CHANGE_BOOKING("rejected", "")
	CHANGE_SLOT("available")
	WRITE_LIFECYCLE("reject", "", "")
	AUDIT_CHANGE("rejected", "", "slot_released", "available"),
	CHANGE_ARGS
};

/* the application's CHECKs allow no action of its lifecycle audit for it */
static const Template undo = {
	CHANGE_BOOKING("pending", "[, {bookings.undo_used_at} := pg_catalog.now()]")
	CHANGE_SLOT("available")
	AUDIT_CHANGE("pending", "", "slot_released", "available"),
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

/* ---------- what is refused ---------- */

static char *
uuid_text(const pg_uuid_t *id)
{
	return DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(id)));
}

static void
booking_not_found(const Call *call)
{
	verb_check_visible(call->binding, "bookings", &call->id);
	ereport(ERROR,
			(errcode(ERRCODE_CUSOWN_NOT_FOUND),
			 errmsg("booking %s does not exist", uuid_text(&call->id))));
}

static void
slot_taken(const Call *call, const char *by)
{
	ereport(ERROR,
			(errcode(ERRCODE_CUSOWN_SLOT_TAKEN),
			 errmsg("slot %s is taken", uuid_text(&call->slot_id)),
			 errdetail("%s%s", by, !call->is_paid ? "" :
					   " A completed payment of this booking is there."),
			 call->is_paid ?
			 errhint("Refund the payment or move the booking; the next run of expire_bookings puts it on the worklist as refund_due.") :
			 errhint("Move the booking to another slot, or reject it.")));
}

static void
not_allowed(const Call *call, const char *detail, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_CUSOWN_TRANSITION),
			 errmsg("cannot %.*s booking %s, which is %s",
					(int) strcspn(call->verb, "_"), call->verb,
					uuid_text(&call->id), call->from_status.text),
			 errdetail("%s", detail),
			 hint != NULL ? errhint("%s", hint) : 0));
}

/* ---------- locks ---------- */

static uint64
execute_with_id(Call *call, const Template *statement, const pg_uuid_t *id)
{
	Datum		values[1];

	values[0] = UUIDPGetDatum(id);
	return template_execute(call->binding, statement, values, NULL, false);
}

static void
use_payment(Call *call)
{
	pg_uuid_t	booking;
	char	   *status;

	if (call->payment == NULL)
		return;
	binding_require(call->binding, "payments", "id");
	if (execute_with_id(call, &lock_payment, call->payment) == 0)
	{
		verb_check_visible(call->binding, "payments", call->payment);
		ereport(ERROR,
				(errcode(ERRCODE_CUSOWN_NOT_FOUND),
				 errmsg("payment %s does not exist",
						uuid_text(call->payment))));
	}
	if (!template_uuid(0, "booking_id", &booking) ||
		memcmp(&booking, &call->id, sizeof(pg_uuid_t)) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_CUSOWN_TRANSITION),
				 errmsg("payment %s is not one of booking %s",
						uuid_text(call->payment), uuid_text(&call->id))));
	status = template_text(0, "status");
	if (status == NULL || strcmp(status, "completed") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_CUSOWN_TRANSITION),
				 errmsg("payment %s is not completed, but %s",
						uuid_text(call->payment),
						status == NULL ? "without a status" : status)));
	SPI_freetuptable(SPI_tuptable);
}

/* of the booking, or raises UO002 */
static bool
find_slot_id(Call *call, pg_uuid_t *slot_id)
{
	bool		has_slot_id;

	if (execute_with_id(call, &slot_of_booking, &call->id) == 0)
		booking_not_found(call);
	has_slot_id = template_uuid(0, "slot_id", slot_id);
	SPI_freetuptable(SPI_tuptable);
	return has_slot_id;
}

static bool
is_at(const Call *call, bool has_slot_id, const pg_uuid_t *slot_id)
{
	return has_slot_id == call->has_slot_id &&
		(!has_slot_id ||
		 memcmp(slot_id, &call->slot_id, sizeof(pg_uuid_t)) == 0);
}

/*
 * A booking that was moved while we waited for it is ours by then, and is moved
 * no more: the second round is the last one.
 */
static void
lock_booking(Call *call)
{
	pg_uuid_t	slot_id = {0};
	bool		has_slot_id = find_slot_id(call, &slot_id);
	Datum		values[2];
	char		nulls[] = "  ";

	do
	{
		call->has_slot_id = has_slot_id;
		call->slot_id = slot_id;
		values[0] = UUIDPGetDatum(&call->id);
		values[1] = UUIDPGetDatum(&call->slot_id);
		nulls[1] = has_slot_id ? ' ' : 'n';
		template_execute(call->binding, &lock_bookings, values, nulls, false);
		SPI_freetuptable(SPI_tuptable);
		has_slot_id = find_slot_id(call, &slot_id);
	} while (!is_at(call, has_slot_id, &slot_id));

	if (!has_slot_id)
		return;
	if (execute_with_id(call, &lock_slot, &slot_id) == 0)
		verb_check_visible(call->binding, "slots", &slot_id);
	SPI_freetuptable(SPI_tuptable);
}

/* ---------- what stands there ---------- */

static void
copy_status(Status *status, uint64 row, const char *column)
{
	char	   *text = template_text(row, column);

	strlcpy(status->text, text == NULL ? "" : text, sizeof(status->text));
}

/* in a new statement: what was decided by whoever we waited for is seen */
static void
read_under_locks(Call *call)
{
	Binding    *binding = call->binding;
	pg_uuid_t	found;

	if (execute_with_id(call, &read_booking, &call->id) == 0)
		booking_not_found(call);
	copy_status(&call->from_status, 0, "status");
	copy_status(&call->slot_was, 0, "slot_status");
	call->has_slot = template_uuid(0, "found_slot_id", &found);
	call->has_confirmed = template_uuid(0, "confirmed_id", &call->confirmed);
	call->has_holder = template_uuid(0, "holder_id", &call->holder);
	call->is_undone = binding_column(binding, "bookings", "undo_used_at") != NULL &&
		template_bool(0, "is_undone");
	call->is_paid = binding_relation(binding, "payments") != NULL &&
		template_bool(0, "is_paid");
	SPI_freetuptable(SPI_tuptable);
}

static bool
is_holder(const Call *call)
{
	return call->has_holder &&
		memcmp(&call->holder, &call->id, sizeof(pg_uuid_t)) == 0;
}

static bool
is_over(Call *call)
{
	TimestampTz end;
	bool		over;

	over = execute_with_id(call, &read_appointment, &call->id) > 0 &&
		appointment_end(call->binding, 0, &end) &&
		end <= GetCurrentTimestamp();
	SPI_freetuptable(SPI_tuptable);
	return over;
}

/* ---------- decisions ---------- */

static void
decide_to_confirm(Call *call)
{
	if (!call->has_slot)
		not_allowed(call, "Its slot does not exist.", NULL);
	if (call->has_confirmed)
		slot_taken(call, psprintf("Booking %s is confirmed on it.",
								  uuid_text(&call->confirmed)));
	if (call->has_holder && !is_holder(call))
		slot_taken(call, psprintf("Booking %s holds it.",
								  uuid_text(&call->holder)));
	if (!cusown_confirm_past && is_over(call))
		not_allowed(call, "Its appointment is over.",
					"A superuser may allow it by cusown_ops.confirm_past.");
	call->changes_slot = strcmp(call->slot_was.text, "booked") != 0;
}

/* also of a confirmed booking whose confirmation is undone */
static void
decide_to_leave(Call *call)
{
	Datum		values[3];

	if (!call->has_slot ||
		(strcmp(call->from_status.text, "pending") != 0 &&
		 strcmp(call->from_status.text, "confirmed") != 0))
		return;
	values[0] = UUIDPGetDatum(&call->id);
	values[1] = CStringGetTextDatum(call->from_status.text);
	values[2] = BoolGetDatum(is_holder(call));
	call->changes_slot = template_execute(call->binding, &slot_to_free,
										  values, NULL, false) > 0;
	SPI_freetuptable(SPI_tuptable);
}

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
	bool		is_confirmed = strcmp(call->from_status.text, "confirmed") == 0;
	TimestampTz at = 0;

	if (call->is_undone)
		not_allowed(call, "It was undone once already.", NULL);
	if (!read_decided_at(call, is_confirmed ? "booking_confirmed" :
						 "booking_rejected", &at))
		not_allowed(call, "The audit trail does not say when that was decided.",
					NULL);
	if (at < GetCurrentTimestamp() - cusown_undo_window * USECS_PER_SEC)
		not_allowed(call, "That was decided longer ago than cusown_ops.undo_window.",
					"Cancel it instead.");
	if (is_confirmed)
		decide_to_leave(call);
}

/* what undoing means depends on what there is to undo */
static Decision
undo_of(const Call *call)
{
	Decision	decision = {"undo", "pending", NULL, "available", &undo};

	if (strcmp(call->from_status.text, "confirmed") == 0)
	{
		decision.event = "undo_confirm";
		decision.action = "booking_undo_accept";
	}
	else if (strcmp(call->from_status.text, "rejected") == 0)
	{
		decision.event = "undo_reject";
		decision.action = "booking_undo_reject";
	}
	return decision;
}

static void
ask_state_machine(Call *call)
{
	const Decision *decision = &call->decision;

	if (decision->action == NULL ||
		!state_machine_allows(call->binding, MACHINE_BOOKING,
							  call->from_status.text, decision->event,
							  decision->to_status))
		not_allowed(call, psprintf("There is no transition \"%s\" from status \"%s\".",
								   decision->event, call->from_status.text),
					NULL);
}

/* ---------- the change ---------- */

static uint64
change_rows(Call *call)
{
	Datum		values[9];
	char		nulls[] = "         ";

	values[0] = UUIDPGetDatum(&call->id);
	values[1] = CStringGetTextDatum(call->from_status.text);
	values[2] = BoolGetDatum(call->changes_slot);
	values[3] = CStringGetTextDatum(call->slot_was.text);
	values[4] = UUIDPGetDatum(call->actor);
	nulls[4] = call->actor == NULL ? 'n' : ' ';
	values[5] = CStringGetTextDatum(call->actor_type);
	values[6] = CStringGetTextDatum(call->decision.action);
	nulls[7] = call->reason == NULL ? 'n' : ' ';
	values[7] = call->reason == NULL ? (Datum) 0 :
		CStringGetTextDatum(call->reason);
	values[8] = UUIDPGetDatum(call->payment);
	nulls[8] = call->payment == NULL ? 'n' : ' ';
	return guard_execute(call->binding, "bookings", &call->id,
						 call->decision.change, values, nulls);
}

/* the unique index says what we could not see: it is being confirmed elsewhere */
static bool
is_second_on_slot(const Call *call, const ErrorData *error)
{
	const BoundRelation *bookings = binding_relation(call->binding, "bookings");

	return call->decision.change == &confirm &&
		error->sqlerrcode == ERRCODE_UNIQUE_VIOLATION &&
		error->table_name != NULL && error->schema_name != NULL &&
		strcmp(error->table_name, bookings->name) == 0 &&
		strcmp(error->schema_name, bookings->schema) == 0;
}

/* what a constraint refused is told without the row, which names a customer */
static void
refuse(const Call *call, ErrorData *error)
{
	if (is_second_on_slot(call, error))
		slot_taken(call, "Another booking on it was confirmed at the same time.");
	if (ERRCODE_TO_CATEGORY(error->sqlerrcode) ==
		ERRCODE_INTEGRITY_CONSTRAINT_VIOLATION)
		error->detail = psprintf("Booking %s would become %s.",
								 uuid_text(&call->id),
								 call->decision.to_status);
	ReThrowError(error);
}

static uint64
change_or_refuse(Call *call)
{
	MemoryContext context = CurrentMemoryContext;
	volatile uint64 audited = 0;

	PG_TRY();
	{
		audited = change_rows(call);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		refuse(call, error);
	}
	PG_END_TRY();
	return audited;
}

/* a trigger of the application can undo or redirect what we did */
static void
check_result(const Call *call, uint64 audited)
{
	if (strcmp(call->to_status.text, call->decision.to_status) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_TRIGGERED_DATA_CHANGE_VIOLATION),
				 errmsg("booking %s was left in status \"%s\"",
						uuid_text(&call->id), call->to_status.text),
				 errhint("Look for a trigger on the bookings table that keeps rows from being changed.")));
	audit_check(1 + (call->changes_slot &&
					 strcmp(call->slot_status.text,
							call->decision.slot_status) == 0), audited);
}

static void
record_changes(Call *call)
{
	Change		changes[2];
	int			count = 0;
	ChangeBatch recorded = {0};

	change_set(&changes[count++], "booking", &call->id,
			   call->has_slot_id ? &call->slot_id : NULL,
			   call->from_status.text, call->to_status.text);
	if (call->changes_slot)
		change_set(&changes[count++], "slot", &call->slot_id, &call->slot_id,
				   call->slot_was.text, call->slot_status.text);
	change_record(call->binding, call->verb, BOOKING_SOURCE, changes, count,
				  &recorded);
	change_notify(call->binding, call->verb, &recorded);
}

static void
read_outcome(Call *call)
{
	if (execute_with_id(call, &read_result, &call->id) == 0)
		booking_not_found(call);
	copy_status(&call->to_status, 0, "status");
	copy_status(&call->slot_status, 0, "slot_status");
	SPI_freetuptable(SPI_tuptable);
}

static void
change_booking(Call *call)
{
	uint64		audited;

	ask_state_machine(call);
	call->decide(call);
	if (call->changes_slot)
		state_machine_require(call->binding, MACHINE_SLOT, call->slot_was.text,
							  call->decision.change == &confirm ? "book" : "release",
							  call->decision.slot_status);
	audited = change_or_refuse(call);
	SPI_freetuptable(SPI_tuptable);
	read_outcome(call);
	check_result(call, audited);
	record_changes(call);
	call->changed = true;
}

static void
booking_body(void *state)
{
	Call	   *call = state;

	call->binding = binding_use(relations_used);
	use_payment(call);
	lock_booking(call);
	read_under_locks(call);
	if (call->decide == decide_to_undo)
		call->decision = undo_of(call);
	/* asked again, it is done already */
	if (call->decide != decide_to_undo &&
		strcmp(call->from_status.text, call->decision.to_status) == 0)
		read_outcome(call);
	else
		change_booking(call);
}

/* ---------- the functions ---------- */

static Datum
run_call(FunctionCallInfo fcinfo, Call *call, int dry_run_arg)
{
	TupleDesc	desc;
	Datum		values[6];
	bool		nulls[6] = {false};
	bool		dry_run = verb_dry_run(fcinfo, dry_run_arg);

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	verb_run(booking_body, call, dry_run);

	values[0] = UUIDPGetDatum(&call->id);
	values[1] = UUIDPGetDatum(&call->slot_id);
	nulls[1] = !call->has_slot_id;
	values[2] = CStringGetTextDatum(call->from_status.text);
	values[3] = CStringGetTextDatum(call->to_status.text);
	values[4] = CStringGetTextDatum(call->slot_status.text);
	nulls[4] = !call->has_slot;
	values[5] = BoolGetDatum(call->changed);
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values,
											 nulls));
}

static void
begin_call(FunctionCallInfo fcinfo, Call *call, const char *function)
{
	verb_check_transaction(function);
	verb_check_not_null(fcinfo, 0, "booking");
	call->verb = function + strlen("cusown_");
	call->id = *PG_GETARG_UUID_P(0);
}

/* who decides about somebody's booking, unless it says otherwise, is its owner */
static void
take_actor(FunctionCallInfo fcinfo, int arg, Call *call)
{
	call->actor = PG_ARGISNULL(arg) ? NULL : PG_GETARG_UUID_P(arg);
	call->actor_type = call->actor == NULL ? "system" : "owner";
}

static char *
text_or_null(FunctionCallInfo fcinfo, int arg)
{
	return PG_ARGISNULL(arg) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(arg));
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
 * completed; UO002 no such booking or payment; UO001; 22004; 25006; 0A000.
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

	begin_call(fcinfo, &call, "cusown_confirm_booking");
	take_actor(fcinfo, 1, &call);
	call.payment = PG_ARGISNULL(2) ? NULL : PG_GETARG_UUID_P(2);
	call.decide = decide_to_confirm;
	call.decision = (Decision)
	{
		"confirm", "confirmed", "booking_confirmed", "booked", &confirm
	};
	return run_call(fcinfo, &call, 3);
}

/*
 * cusown_reject_booking(booking uuid, actor uuid DEFAULT NULL,
 *		reason text DEFAULT NULL, dry_run boolean DEFAULT false, OUT as above)
 *
 * Rejects a pending booking, and frees its slot unless another stands on it.
 *
 * Errors: UO003 not pending; UO002; UO001; 22004; 25006; 0A000.  Locks: as
 * above, without a payment.
 */
Datum
cusown_reject_booking(PG_FUNCTION_ARGS)
{
	Call		call = {0};

	begin_call(fcinfo, &call, "cusown_reject_booking");
	take_actor(fcinfo, 1, &call);
	call.reason = text_or_null(fcinfo, 2);
	call.decide = decide_to_leave;
	call.decision = (Decision)
	{
		"reject", "rejected", "booking_rejected", "available", &reject
	};
	return run_call(fcinfo, &call, 3);
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
 *		dry_run boolean DEFAULT false, OUT as above)
 *
 * Cancels a pending or confirmed booking, and frees its slot unless another
 * stands on it.  Payments stay as they are.
 *
 * Errors: UO003 neither pending nor confirmed; UO002; UO001; 22023; 22004;
 * 25006; 0A000; 23514 where a CHECK of the application forbids it.  Locks: as
 * above, without a payment.
 */
Datum
cusown_cancel_booking(PG_FUNCTION_ARGS)
{
	Call		call = {0};
	const Canceller *canceller;

	begin_call(fcinfo, &call, "cusown_cancel_booking");
	verb_check_not_null(fcinfo, 1, "cancelled_by");
	canceller = canceller_named(text_to_cstring(PG_GETARG_TEXT_PP(1)));
	call.reason = text_or_null(fcinfo, 2);
	take_actor(fcinfo, 3, &call);
	call.actor_type = canceller->name;
	call.decide = decide_to_leave;
	call.decision = (Decision)
	{
		"cancel", "cancelled", "booking_cancelled", "available",
			canceller->change
	};
	return run_call(fcinfo, &call, 4);
}

/*
 * cusown_undo_booking(booking uuid, actor uuid,
 *		dry_run boolean DEFAULT false, OUT as above)
 *
 * Makes a booking pending again that was confirmed or rejected less than
 * cusown_ops.undo_window ago, by the audit trail; once.
 *
 * Errors: UO003 nothing to undo, too late, or undone once already; UO002; UO001;
 * 22004; 25006; 0A000.  Locks: as above, without a payment.
 */
Datum
cusown_undo_booking(PG_FUNCTION_ARGS)
{
	Call		call = {0};

	begin_call(fcinfo, &call, "cusown_undo_booking");
	verb_check_not_null(fcinfo, 1, "actor");
	take_actor(fcinfo, 1, &call);
	call.decide = decide_to_undo;
	return run_call(fcinfo, &call, 2);
}
