/*-------------------------------------------------------------------------
 *
 * resolve.c
 *	  Resolves double bookings: one is kept, the others are cancelled.
 *
 * Set-based and in one transaction; contender.c says who gives way:
 *
 * A  the doubled slots, or the stretches of time that hold too many bookings,
 *	  are found without locks;
 * B  the payments of the bookings on those slots, the bookings, and the slots
 *	  are locked, each by id.  This is a human's verb: it waits (row_lock.c);
 * C  in new statements, each with a new snapshot, who gives way is decided
 *	  again, and exactly those are cancelled (give_way.c).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"

#include "contender.h"
#include "double_booking.h"
#include "errors.h"
#include "give_way.h"
#include "overlap.h"
#include "row_lock.h"
#include "state_machine.h"
#include "template.h"
#include "uuid_list.h"
#include "verb.h"

static const char *const fate_names[] = {
	[FATE_KEPT] = "kept",
	[FATE_GIVES_WAY] = "attention",
	[FATE_CANCELLED] = "cancelled",
	[FATE_ATTENTION] = "attention"
};

static const DoubleKind kinds_resolved[] = {
	DOUBLE_SAME_SLOT, DOUBLE_OVERLAP
};

/* one call of cusown_resolve_double_bookings() or cusown_keep_booking() */
typedef struct Resolve
{
	const char *verb;
	const Policy *policy;
	DoubleKind	kind;
	bool		has_slot;		/* only this one */
	pg_uuid_t	slot;
	pg_uuid_t	booking;		/* the one to keep, by hand */
	Binding    *binding;
	UuidList	slots;			/* found in A */
	UuidList	businesses;		/* likewise, of kind overlap */
	UuidList	locked;			/* bookings */
	Contenders	contenders;
	ReturnSetInfo *result;
} Resolve;

static const char *const relations_changed[] = {
	"bookings", "slots", "payments", "audit_logs", "booking_lifecycle_audit",
	"businesses", NULL
};

PG_FUNCTION_INFO_V1(cusown_resolve_double_bookings);
PG_FUNCTION_INFO_V1(cusown_keep_booking);

static const Template booking_by_id = {
	"SELECT b.{bookings.slot_id} AS slot_id, b.{bookings.status}::text AS status"
	" FROM {bookings} b WHERE b.{bookings.id} = $1",
	1, {UUIDOID}
};

/* whose a slot is: of itself, or of those who stand on it */
static const Template businesses_of_slot = {
	"SELECT DISTINCT COALESCE([b.{bookings.business_id}, ]"
	"[s.{slots.business_id}, ]NULL::uuid) AS id FROM {slots} s"
	" LEFT JOIN {bookings} b ON b.{bookings.slot_id} = s.{slots.id}"
	" AND (b.{bookings.status} = 'confirmed') IS TRUE"
	" WHERE s.{slots.id} = $1",
	1, {UUIDOID}
};

/* ---------- A and B ---------- */

/* where the slots of stretches are put */
typedef struct Members
{
	Resolve    *resolve;
	MemoryContext context;
} Members;

/* OverlapFound */
static void
add_members(const OverlapStretch *stretch, void *state)
{
	Members    *members = state;
	Resolve    *resolve = members->resolve;
	MemoryContext caller = MemoryContextSwitchTo(members->context);
	bool		is_wanted = !resolve->has_slot;

	for (int i = 0; i < stretch->bookings.count && !is_wanted; i++)
		is_wanted = memcmp(&stretch->bookings.items[i].slot_id,
						   &resolve->slot, sizeof(pg_uuid_t)) == 0;
	for (int i = 0; i < stretch->bookings.count && is_wanted; i++)
		uuid_list_append(&resolve->slots, &stretch->bookings.items[i].slot_id);
	if (is_wanted)
		uuid_list_append(&resolve->businesses, &stretch->business_id);
	MemoryContextSwitchTo(caller);
}

static void
no_such_slot(Resolve *resolve)
{
	verb_check_visible(resolve->binding, "slots", &resolve->slot);
	ereport(ERROR,
			(errcode(ERRCODE_CUSOWN_NOT_FOUND),
			 errmsg("slot %s does not exist",
					verb_uuid_text(&resolve->slot))));
}

/* whose the slot is; raises where there is no such slot */
static void
find_businesses(Resolve *resolve, UuidList *businesses)
{
	Datum		values[1];
	uint64		rows;

	values[0] = UUIDPGetDatum(&resolve->slot);
	rows = template_execute(resolve->binding, &businesses_of_slot, values, NULL,
							false);
	if (rows == 0)
		no_such_slot(resolve);
	uuid_list_append_column(businesses, rows, "id");
	SPI_freetuptable(SPI_tuptable);
}

static void
find_slots(Resolve *resolve)
{
	UuidList	of_slot = {0};
	Members		members = {resolve, CurrentMemoryContext};

	if (resolve->has_slot)
		find_businesses(resolve, &of_slot);
	if (resolve->kind == DOUBLE_OVERLAP)
		overlap_find(resolve->binding, resolve->has_slot ? &of_slot : NULL,
					 false, add_members, &members);
	else if (resolve->has_slot)
		uuid_list_append(&resolve->slots, &resolve->slot);
	else if (!double_booking_impossible(resolve->binding))
		double_booking_slots(resolve->binding, NULL, false, &resolve->slots);
}

static void
lock_all(Resolve *resolve)
{
	UuidList	slots = {0};

	row_lock_live_bookings(resolve->binding, &resolve->slots, true,
						   &resolve->locked);
	row_lock_slots(resolve->binding, &resolve->slots, &slots);
}

/* ---------- the verbs ---------- */

static void
put_row(const Resolve *resolve, const Contender *contender)
{
	Datum		values[5];
	bool		nulls[5] = {false};

	values[0] = UUIDPGetDatum(&contender->slot_id);
	values[1] = UUIDPGetDatum(&contender->id);
	values[2] = CStringGetTextDatum(fate_names[contender->fate]);
	values[3] = CStringGetTextDatum(contender->reason == NULL ?
									resolve->policy->name : contender->reason);
	values[4] = BoolGetDatum(give_way_is_refund_due(contender));
	tuplestore_putvalues(resolve->result->setResult, resolve->result->setDesc,
						 values, nulls);
}

static void
begin(Resolve *resolve)
{
	verb_check_row_security(resolve->binding, relations_changed);
	state_machine_require(resolve->binding, MACHINE_BOOKING, "confirmed",
						  "cancel", "cancelled");
	state_machine_require(resolve->binding, MACHINE_SLOT, "booked", "release",
						  "available");
	if (resolve->policy->needs_payments)
		binding_require(resolve->binding, "payments", "status");
	if (resolve->kind == DOUBLE_OVERLAP &&
		!overlap_knows_business(resolve->binding))
		binding_require(resolve->binding, "bookings", "business_id");
}

static void
finish(Resolve *resolve)
{
	give_way(resolve->binding, resolve->verb, resolve->policy, resolve->kind,
			 &resolve->contenders);
	for (int i = 0; i < resolve->contenders.count; i++)
		put_row(resolve, &resolve->contenders.items[i]);
}

static void
resolve_body(void *state)
{
	Resolve    *resolve = state;

	resolve->binding = binding_use(relations_changed);
	begin(resolve);
	find_slots(resolve);
	lock_all(resolve);
	give_way_recheck(resolve->binding);
	if (resolve->kind == DOUBLE_OVERLAP)
		resolve->contenders =
			contender_of_overlaps(resolve->binding, resolve->policy,
								  &resolve->businesses,
								  resolve->has_slot ? &resolve->slot : NULL,
								  &resolve->locked);
	else
		resolve->contenders =
			contender_of_slots(resolve->binding, resolve->policy,
							   &resolve->slots, false, &resolve->locked);
	finish(resolve);
}

/*
 * cusown_resolve_double_bookings(policy text DEFAULT 'first_confirmed',
 *		slot uuid DEFAULT NULL, kind text DEFAULT 'same_slot',
 *		dry_run boolean DEFAULT false, OUT slot_id uuid, OUT booking_id uuid,
 *		OUT action text, OUT reason text, OUT refund_due boolean)
 *		RETURNS SETOF record
 *
 * Keeps one confirmed booking of a slot and cancels the others; of kind overlap,
 * cancels the latest where a business has confirmed more than it can serve at
 * once.  Only for one slot, or, where that is NULL, for all.
 *
 * Errors: UO001 nothing attached, or what kind or policy need is not bound;
 * UO002 no such slot; 22023, 22004 arguments; 25006 standby or read-only
 * transaction; 0A000 REPEATABLE READ or SERIALIZABLE; 42501 row-level security
 * would hide rows; 40P01 against who locks slots first: try again.
 *
 * Locks: waits for payments FOR SHARE, bookings and slots FOR UPDATE, by id.
 *
 * Source: runbook "Double Booking Alert", step 3.
 */
Datum
cusown_resolve_double_bookings(PG_FUNCTION_ARGS)
{
	Resolve		resolve = {.verb = "resolve_double_bookings"};
	bool		dry_run;

	verb_check_transaction("cusown_resolve_double_bookings");
	verb_check_not_null(fcinfo, 0, "policy");
	verb_check_not_null(fcinfo, 2, "kind");
	dry_run = verb_dry_run(fcinfo, 3);
	resolve.policy = contender_policy(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	resolve.kind = double_booking_kind(text_to_cstring(PG_GETARG_TEXT_PP(2)),
									   kinds_resolved, lengthof(kinds_resolved));
	resolve.has_slot = !PG_ARGISNULL(1);
	if (resolve.has_slot)
		resolve.slot = *PG_GETARG_UUID_P(1);
	InitMaterializedSRF(fcinfo, 0);
	resolve.result = (ReturnSetInfo *) fcinfo->resultinfo;
	verb_run(resolve_body, &resolve, dry_run);
	return (Datum) 0;
}

static void
no_such_booking(const Resolve *resolve)
{
	verb_check_visible(resolve->binding, "bookings", &resolve->booking);
	ereport(ERROR,
			(errcode(ERRCODE_CUSOWN_NOT_FOUND),
			 errmsg("booking %s does not exist", verb_uuid_text(&resolve->booking))));
}

/* its slot, if any; raises where it is not confirmed */
static bool
read_kept_booking(const Resolve *resolve, pg_uuid_t *slot)
{
	Datum		values[1];
	char	   *status;
	bool		has_slot;

	values[0] = UUIDPGetDatum(&resolve->booking);
	if (template_execute(resolve->binding, &booking_by_id, values, NULL,
						 false) == 0)
		no_such_booking(resolve);
	status = template_text(0, "status");
	has_slot = template_uuid(0, "slot_id", slot);
	SPI_freetuptable(SPI_tuptable);
	if (status == NULL || strcmp(status, "confirmed") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_CUSOWN_TRANSITION),
				 errmsg("booking %s is %s, not confirmed",
						verb_uuid_text(&resolve->booking),
						status == NULL ? "without a status" : status),
				 errhint("Keep one of the confirmed bookings that cusown_double_bookings() shows.")));
	return has_slot;
}

static void
was_moved(const Resolve *resolve)
{
	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg("booking %s was moved to another slot meanwhile",
					verb_uuid_text(&resolve->booking)),
			 errhint("Call it again.")));
}

/*
 * One booking is named: where a policy hides it, there is none.  But it is about
 * all others on its slot: those that a policy hides would stay confirmed, and
 * nobody be told.
 */
static void
keep_body(void *state)
{
	Resolve    *resolve = state;
	pg_uuid_t	slot;

	resolve->binding = binding_use(relations_changed);
	if (read_kept_booking(resolve, &resolve->slot))
		uuid_list_append(&resolve->slots, &resolve->slot);
	begin(resolve);
	lock_all(resolve);
	give_way_recheck(resolve->binding);
	if (!read_kept_booking(resolve, &slot))
		return;
	resolve->contenders = contender_of_slots(resolve->binding, resolve->policy,
											 &resolve->slots, true,
											 &resolve->locked);
	if (!contender_keep(&resolve->contenders, &resolve->booking))
		was_moved(resolve);
	finish(resolve);
}

/*
 * cusown_keep_booking(booking uuid, dry_run boolean DEFAULT false,
 *		OUT slot_id uuid, OUT booking_id uuid, OUT action text,
 *		OUT reason text, OUT refund_due boolean)
 *		RETURNS SETOF record
 *
 * The decision by hand: keeps this confirmed booking, and cancels the other
 * confirmed ones on its slot.
 *
 * Errors: UO002 no such booking, or row-level security hides it; UO003 it is not
 * confirmed; 40001 it was moved to another slot meanwhile; else those of
 * cusown_resolve_double_bookings().
 *
 * Locks: as cusown_resolve_double_bookings().
 *
 * Source: runbook "Double Booking Alert", step 3.
 */
Datum
cusown_keep_booking(PG_FUNCTION_ARGS)
{
	Resolve		resolve = {.verb = "keep_booking"};
	bool		dry_run;

	verb_check_transaction("cusown_keep_booking");
	verb_check_not_null(fcinfo, 0, "booking");
	dry_run = verb_dry_run(fcinfo, 1);
	resolve.policy = &contender_by_hand;
	resolve.kind = DOUBLE_SAME_SLOT;
	resolve.booking = *PG_GETARG_UUID_P(0);
	InitMaterializedSRF(fcinfo, 0);
	resolve.result = (ReturnSetInfo *) fcinfo->resultinfo;
	verb_run(keep_body, &resolve, dry_run);
	return (Datum) 0;
}
