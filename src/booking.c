/*-------------------------------------------------------------------------
 *
 * booking.c
 *	  What the verbs that decide about one booking have in common.
 *
 * Confirming (confirm.c), rejecting and cancelling (cancel.c), and undoing
 * (undo.c) go through the same steps.  The
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

#include "attach_index.h"
#include "booking.h"
#include "change.h"
#include "errors.h"
#include "guard.h"
#include "state_machine.h"
#include "template.h"
#include "uuid_list.h"
#include "verb.h"

static const char *const relations_used[] = {
	"bookings", "slots", "payments", "businesses", "audit_logs",
	"booking_lifecycle_audit", NULL
};

pg_noreturn static void booking_not_found(const Call *call);

/* ---------- statements ---------- */

static const Template slot_of_booking = {
	"SELECT b.{bookings.slot_id} AS slot_id FROM {bookings} b"
	" WHERE b.{bookings.id} = $1",
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

/*
 * The slot of the booking $1, which leaves the status $2, if it becomes free; $3
 * says that the booking holds it, $4 that no pending one is hidden.
 * Of a slot that is booked without a confirmed booking, as after a reschedule,
 * any pending booking may be the one that it is booked for; of one that is held,
 * too, the one that holds it.
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
	"[ AND (s.{slots.reserved_until} > pg_catalog.now()) IS NOT TRUE]"
	" OR $4 AND NOT EXISTS (SELECT FROM {bookings} o"
	" WHERE o.{bookings.slot_id} = s.{slots.id}"
	" AND o.{bookings.status} = 'pending'"
	" AND o.{bookings.id} <> b.{bookings.id}))"
	" OR s.{slots.status} = 'reserved' AND ("
	"[{?slots.reserved_until}s.{slots.reserved_until} <= pg_catalog.now() OR] $3))",
	4, {UUIDOID, TEXTOID, BOOLOID, BOOLOID}
};

static const Template read_result = {
	"SELECT b.{bookings.status}::text AS status,"
	" s.{slots.status}::text AS slot_status"
	" FROM {bookings} b LEFT JOIN {slots} s"
	" ON s.{slots.id} = b.{bookings.slot_id}"
	" WHERE b.{bookings.id} = $1",
	1, {UUIDOID}
};

/* ---------- what is refused ---------- */

static void
booking_not_found(const Call *call)
{
	verb_check_visible(call->binding, "bookings", &call->id);
	ereport(ERROR,
			(errcode(ERRCODE_CUSOWN_NOT_FOUND),
			 errmsg("booking %s does not exist", verb_uuid_text(&call->id))));
}

void
booking_not_allowed(const Call *call, const char *detail, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_CUSOWN_TRANSITION),
			 errmsg("cannot %.*s booking %s, which is %s",
					(int) strcspn(call->verb, "_"), call->verb,
					verb_uuid_text(&call->id),
					call->from_status.label[0] == '\0' ? "without a status" :
					call->from_status.label),
			 errdetail("%s", detail),
			 hint != NULL ? errhint("%s", hint) : 0));
}

/* ---------- locks ---------- */

uint64
booking_execute(Call *call, const Template *statement, const pg_uuid_t *id)
{
	Datum		values[1];

	values[0] = UUIDPGetDatum(id);
	return template_execute(call->binding, statement, values, NULL, false);
}

/* of the booking, or raises UO002 */
static bool
find_slot_id(Call *call, pg_uuid_t *slot_id)
{
	bool		has_slot_id;

	if (booking_execute(call, &slot_of_booking, &call->id) == 0)
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
	bool		is_ours;

	do
	{
		UuidList	locked = {0};
		uint64		rows;

		call->has_slot_id = has_slot_id;
		call->slot_id = slot_id;
		values[0] = UUIDPGetDatum(&call->id);
		values[1] = UUIDPGetDatum(&call->slot_id);
		nulls[1] = has_slot_id ? ' ' : 'n';
		rows = template_execute(call->binding, &lock_bookings, values, nulls,
								false);
		uuid_list_append_column(&locked, rows, "id");
		SPI_freetuptable(SPI_tuptable);
		is_ours = uuid_list_contains(&locked, &call->id);
		has_slot_id = find_slot_id(call, &slot_id);
	} while (!is_at(call, has_slot_id, &slot_id));

	/* a policy may show a row that it does not let anybody change */
	if (!is_ours)
		booking_not_found(call);
	if (!has_slot_id)
		return;
	if (booking_execute(call, &lock_slot, &slot_id) == 0)
		verb_check_visible(call->binding, "slots", &slot_id);
	SPI_freetuptable(SPI_tuptable);
}

/* ---------- what stands there ---------- */

static void
copy_status(Status *status, uint64 row, const char *column)
{
	char	   *text = template_text(row, column);

	strlcpy(status->label, text == NULL ? "" : text, sizeof(status->label));
}

/* in a new statement: what was decided by whoever we waited for is seen */
static void
read_under_locks(Call *call)
{
	Binding    *binding = call->binding;
	pg_uuid_t	found;

	if (booking_execute(call, &read_booking, &call->id) == 0)
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

bool
booking_is_holder(const Call *call)
{
	return call->has_holder &&
		memcmp(&call->holder, &call->id, sizeof(pg_uuid_t)) == 0;
}

/* ---------- decisions ---------- */

/*
 * Whether it is known who else is confirmed on the slot: where row-level security
 * may hide him, only an index that lets him be nobody tells.
 */
bool
booking_knows_confirmed(const Call *call)
{
	return !verb_is_blinded(call->binding, "bookings") ||
		attach_index_serving(&attach_one_confirmed,
							 attach_index_names(call->binding), true, true) != NIL;
}

/*
 * Also of a confirmed booking whose confirmation is undone.  A slot stays as it is
 * where row-level security may hide who stands on it; beside a confirmed booking
 * the index lets nobody else be confirmed.
 */
void
booking_decide_to_leave(Call *call)
{
	bool		is_blinded = verb_is_blinded(call->binding, "bookings");
	bool		is_confirmed = strcmp(call->from_status.label, "confirmed") == 0;
	Datum		values[4];

	if (!call->has_slot ||
		(!is_confirmed && strcmp(call->from_status.label, "pending") != 0) ||
		(is_blinded && !(is_confirmed && booking_knows_confirmed(call))))
		return;
	values[0] = UUIDPGetDatum(&call->id);
	values[1] = CStringGetTextDatum(call->from_status.label);
	values[2] = BoolGetDatum(booking_is_holder(call));
	values[3] = BoolGetDatum(!is_blinded);
	call->changes_slot = template_execute(call->binding, &slot_to_free,
										  values, NULL, false) > 0;
	SPI_freetuptable(SPI_tuptable);
}

static void
ask_state_machine(Call *call)
{
	const Decision *decision = &call->decision;

	if (decision->action == NULL ||
		!state_machine_allows(call->binding, MACHINE_BOOKING,
							  call->from_status.label, decision->event,
							  decision->to_status))
		booking_not_allowed(call, psprintf("There is no transition \"%s\" from status \"%s\".",
										   decision->event, call->from_status.label),
							NULL);
}

/* ---------- the change ---------- */

static uint64
change_rows(Call *call)
{
	UuidList	ids = {&call->id, 1, 1, true};
	Datum		values[9];
	char		nulls[] = "         ";

	values[0] = UUIDPGetDatum(&call->id);
	values[1] = CStringGetTextDatum(call->from_status.label);
	values[2] = BoolGetDatum(call->changes_slot);
	values[3] = CStringGetTextDatum(call->slot_was.label);
	values[4] = UUIDPGetDatum(call->actor);
	nulls[4] = call->actor == NULL ? 'n' : ' ';
	values[5] = CStringGetTextDatum(call->actor_type);
	values[6] = CStringGetTextDatum(call->decision.action);
	nulls[7] = call->reason == NULL ? 'n' : ' ';
	values[7] = call->reason == NULL ? (Datum) 0 :
		CStringGetTextDatum(call->reason);
	values[8] = UUIDPGetDatum(call->payment);
	nulls[8] = call->payment == NULL ? 'n' : ' ';
	return guard_execute(call->binding, "bookings", &ids,
						 call->decision.change, values, nulls);
}

/* what a constraint refused is told without the row, which names a customer */
static void
refuse(const Call *call, ErrorData *error)
{
	if (call->refused != NULL)
		call->refused(call, error);
	if (ERRCODE_TO_CATEGORY(error->sqlerrcode) ==
		ERRCODE_INTEGRITY_CONSTRAINT_VIOLATION)
		error->detail = psprintf("Booking %s would become %s.",
								 verb_uuid_text(&call->id),
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
	if (strcmp(call->to_status.label, call->decision.to_status) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_TRIGGERED_DATA_CHANGE_VIOLATION),
				 errmsg("booking %s was left in status \"%s\"",
						verb_uuid_text(&call->id), call->to_status.label),
				 errhint("Look for a trigger on the bookings table that keeps rows from being changed.")));
	audit_check(1 + (call->changes_slot &&
					 strcmp(call->slot_status.label,
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
			   call->from_status.label, call->to_status.label);
	if (call->changes_slot &&
		strcmp(call->slot_was.label, call->slot_status.label) != 0)
		change_set(&changes[count++], "slot", &call->slot_id, &call->slot_id,
				   call->slot_was.label, call->slot_status.label);
	change_record(call->binding, call->verb, BOOKING_SOURCE, changes, count,
				  &recorded);
	change_notify(call->binding, call->verb, &recorded);
}

static void
read_outcome(Call *call)
{
	if (booking_execute(call, &read_result, &call->id) == 0)
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
		state_machine_require(call->binding, MACHINE_SLOT, call->slot_was.label,
							  call->decision.slot_event,
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
	if (call->prepare != NULL)
		call->prepare(call);
	lock_booking(call);
	read_under_locks(call);
	if (call->choose != NULL)
		call->choose(call);
	/* asked again, it is done already */
	if (call->choose == NULL &&
		strcmp(call->from_status.label, call->decision.to_status) == 0)
		read_outcome(call);
	else
		change_booking(call);
}

/* ---------- the functions ---------- */

Datum
booking_run(FunctionCallInfo fcinfo, Call *call, int dry_run_arg)
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
	values[2] = CStringGetTextDatum(call->from_status.label);
	values[3] = CStringGetTextDatum(call->to_status.label);
	values[4] = CStringGetTextDatum(call->slot_status.label);
	nulls[4] = !call->has_slot;
	values[5] = BoolGetDatum(call->changed);
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values,
											 nulls));
}

void
booking_begin(FunctionCallInfo fcinfo, Call *call, const char *function)
{
	verb_check_transaction(function);
	verb_check_not_null(fcinfo, 0, "booking");
	call->verb = function + strlen("cusown_");
	call->id = *PG_GETARG_UUID_P(0);
}

/* who decides about somebody's booking, unless it says otherwise, is its owner */
void
booking_take_actor(FunctionCallInfo fcinfo, int arg, Call *call)
{
	call->actor = PG_ARGISNULL(arg) ? NULL : PG_GETARG_UUID_P(arg);
	call->actor_type = call->actor == NULL ? "system" : "owner";
}

char *
booking_text_or_null(FunctionCallInfo fcinfo, int arg)
{
	return PG_ARGISNULL(arg) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(arg));
}
