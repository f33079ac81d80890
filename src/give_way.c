/*-------------------------------------------------------------------------
 *
 * give_way.c
 *	  Cancels the bookings that give way to others.
 *
 * On a doubled slot the one that is kept keeps it booked.  Where bookings give
 * way because their times overlap, their slots become available, unless
 * somebody else stands on them (slot.c).  Payments are never changed: one that
 * is completed makes its cancelled booking a case for a refund (refund.c).
 *
 * What a CHECK or a trigger of the application refuses to cancel goes to the
 * worklist, and the others go through.  Triggers are found by splitting
 * (split.c): what was refused lately is tried last, so that it never keeps the
 * others from their turn.
 *
 * The caller has locked payments, bookings and slots.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "attention.h"
#include "audit.h"
#include "change.h"
#include "give_way.h"
#include "overlap.h"
#include "refund.h"
#include "row_check.h"
#include "slot.h"
#include "split.h"
#include "template.h"
#include "uuid_list.h"

/* contenders that give way, in the order in which they are tried */
typedef struct GivingWay
{
	Binding    *binding;
	const char *verb;
	const Policy *policy;
	DoubleKind	kind;
	Contenders *contenders;		/* all, those that are kept too */
	Split		split;
	Contender **items;
	int			count;
	int64		changed;		/* rows of bookings and slots */
	int64		audited;		/* their audit rows */
	ChangeBatch recorded;
} GivingWay;

static const AttentionKind unresolvable = {
	"unresolvable", ENTITY_BOOKING, "double_booking"
};

static const AttentionKind *const kinds_opened[] = {
	&unresolvable, NULL
};

/*
 * $1 bookings, $2 for which each gives way, $3 policy, $4 what is put into
 * them, $5 .. $7 the slots that become available: SLOTS_FREED_BY; $8 the kind
 */
static const Template cancel_and_free = {
	"WITH cancelled AS (UPDATE {bookings} b SET"
	" {bookings.status} := 'cancelled'"
	"[, {bookings.cancelled_by} := 'system']"
	"[, {bookings.cancelled_at} := pg_catalog.now()]"
	"[, {bookings.cancellation_reason} := $4]"
	"[, {bookings.updated_at} := pg_catalog.now()]"
	" FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2))"
	" AS g (id, kept) WHERE b.{bookings.id} = g.id"
	" AND b.{bookings.id} = ANY ($1) AND (b.{bookings.status} = 'confirmed') IS TRUE"
	" RETURNING b.{bookings.id} AS id, b.{bookings.slot_id} AS slot_id,"
	" g.kept AS kept),"
	SLOTS_FREED_BY("cancelled", "$5", "$6", "$7")
	"[ lifecycle AS (INSERT INTO {booking_lifecycle_audit}"
	" ({booking_lifecycle_audit.booking_id},"
	" {booking_lifecycle_audit.old_slot_id},"
	" {booking_lifecycle_audit.action_type},"
	" {booking_lifecycle_audit.actor_type},"
	" {booking_lifecycle_audit.created_at})"
	" SELECT c.id, c.slot_id, 'cancel', 'system', pg_catalog.now()"
	" FROM cancelled c),]"
	" audit_row (" AUDIT_ROW ") AS ("
	"SELECT 'booking_cancelled'::text, 'booking'::text, c.id,"
	" pg_catalog.jsonb_build_object('status', 'confirmed'),"
	" pg_catalog.jsonb_build_object('status', 'cancelled',"
	" 'cancelled_by', 'system', 'cancellation_reason', $4),"
	" pg_catalog.jsonb_build_object('actor', 'system', 'source', 'manual',"
	" 'rule', 'double_booking', 'kind', $8, 'policy', $3,"
	" 'kept_booking', c.kept, 'from', 'confirmed', 'to', 'cancelled'),"
	" 'double booking resolved'::text FROM cancelled c"
	" UNION ALL SELECT 'slot_released', 'slot', f.id,"
	" pg_catalog.jsonb_build_object('status', f.old_status),"
	" pg_catalog.jsonb_build_object('status', 'available'),"
	" pg_catalog.jsonb_build_object('actor', 'system', 'source', 'manual',"
	" 'rule', 'double_booking', 'kind', $8, 'policy', $3,"
	" 'from', f.old_status, 'to', 'available'),"
	" 'slot released by a resolved double booking' FROM freed f)"
	AUDIT_INSERT,
	8, {UUIDARRAYOID, UUIDARRAYOID, TEXTOID, TEXTOID, UUIDARRAYOID, TEXTARRAYOID, INT8ARRAYOID, TEXTOID}
};

/* confirmed bookings among $1 that do not have their slot for themselves */
static const Template still_doubled = {
	"SELECT b.{bookings.id} AS id FROM {bookings} b"
	" WHERE b.{bookings.id} = ANY ($1)"
	" AND (b.{bookings.status} = 'confirmed') IS TRUE"
	" AND EXISTS (SELECT FROM {bookings} o"
	" WHERE o.{bookings.slot_id} = b.{bookings.slot_id}"
	" AND (o.{bookings.status} = 'confirmed') IS TRUE"
	" AND o.{bookings.id} <> b.{bookings.id})",
	1, {UUIDARRAYOID}
};

static const Template businesses_of_bookings = {
	"SELECT DISTINCT COALESCE([b.{bookings.business_id}, ]"
	"[s.{slots.business_id}, ]NULL::uuid) AS id FROM {bookings} b"
	" LEFT JOIN {slots} s ON s.{slots.id} = b.{bookings.slot_id}"
	" WHERE b.{bookings.id} = ANY ($1)"
	" AND (b.{bookings.status} = 'confirmed') IS TRUE",
	1, {UUIDARRAYOID}
};

/* ---------- the worklist ---------- */

/* bookings that are in some stretch, among those asked about */
typedef struct InStretch
{
	UuidList   *asked;
	UuidList   *there;
	MemoryContext context;
} InStretch;

/* OverlapFound */
static void
add_asked(const OverlapStretch *stretch, void *state)
{
	InStretch  *in = state;
	MemoryContext caller = MemoryContextSwitchTo(in->context);

	for (int i = 0; i < stretch->bookings.count; i++)
	{
		if (uuid_list_contains(in->asked, &stretch->bookings.items[i].id))
			uuid_list_append(in->there, &stretch->bookings.items[i].id);
	}
	MemoryContextSwitchTo(caller);
}

/*
 * A booking is still unresolved while it stands in somebody's way: on its slot,
 * or else, which costs a look at all bookings of its business, by its time.
 */
static void
still_in_the_way(Binding *binding, const AttentionKind *kind,
				 const UuidList *ids, UuidList *there)
{
	UuidList	doubled = {0};
	UuidList	others = {0};
	UuidList	businesses = {0};
	InStretch	in = {&others, there, CurrentMemoryContext};

	template_ids(binding, &still_doubled, ids, &doubled);
	for (int i = 0; i < ids->count; i++)
	{
		if (uuid_list_contains(&doubled, &ids->items[i]))
			uuid_list_append(there, &ids->items[i]);
		else
			uuid_list_append(&others, &ids->items[i]);
	}
	if (!overlap_knows_business(binding))
		return;
	template_ids(binding, &businesses_of_bookings, &others, &businesses);
	if (businesses.count > 0)
		overlap_find(binding, &businesses, false, add_asked, &in);
}

/* opens an entry for each contender that cannot be cancelled; not too often */
static void
put_on_worklist(GivingWay *giving, UuidList *fresh)
{
	AttentionItem *items = palloc0(Max(giving->contenders->count, 1) *
								   sizeof(AttentionItem));
	int			count = 0;

	for (int i = 0; i < giving->contenders->count; i++)
	{
		const Contender *contender = &giving->contenders->items[i];

		if (!contender->to_worklist ||
			!uuid_list_contains(fresh, &contender->id))
			continue;
		items[count].entity_id = contender->id;
		items[count].sqlstate = contender->sqlstate;
		items[count].finding = contender->reason;
		count++;
	}
	attention_open(giving->binding, &unresolvable, items, count);
}

bool
give_way_is_refund_due(const Contender *contender)
{
	return contender->fate == FATE_CANCELLED && contender->is_paid;
}

static void
put_refunds_on_worklist(GivingWay *giving)
{
	AttentionItem *items = palloc0(Max(giving->contenders->count, 1) *
								   sizeof(AttentionItem));
	int			count = 0;

	for (int i = 0; i < giving->contenders->count; i++)
	{
		const Contender *contender = &giving->contenders->items[i];

		if (!give_way_is_refund_due(contender))
			continue;
		items[count].entity_id = contender->id;
		items[count].finding = refund_finding(&contender->payment);
		count++;
	}
	attention_open(giving->binding, &refund_due, items, count);
}

/* for who waits for nobody any more: rechecking locks bookings */
void
give_way_recheck(Binding *binding)
{
	attention_recheck(binding, &unresolvable, still_in_the_way);
	attention_recheck(binding, &refund_due, refund_still_there);
}

/* ---------- cancelling ---------- */

static void
ask_checks(GivingWay *giving)
{
	UuidList	ids = {0};
	ListCell   *lc;

	for (int i = 0; i < giving->contenders->count; i++)
	{
		if (giving->contenders->items[i].fate == FATE_GIVES_WAY)
			uuid_list_append(&ids, &giving->contenders->items[i].id);
	}
	foreach(lc, row_check_refused(giving->binding,
								  &giving->policy->cancellation, &ids, false))
	{
		RefusedRow *refused = lfirst(lc);
		Contender  *contender = contender_find(giving->contenders,
											   &refused->id);

		contender->fate = FATE_ATTENTION;
		contender->to_worklist = true;
		contender->sqlstate = "23514";
		contender->reason = psprintf("constraint \"%s\" refuses to cancel it",
									 refused->constraint);
	}
}

/* the parallel arrays $1 and $2, and the slot of each */
static void
booking_lists(const GivingWay *giving, int first, int count, UuidList *ids,
			  UuidList *kept, UuidList *slots)
{
	for (int i = first; i < first + count; i++)
	{
		uuid_list_append(ids, &giving->items[i]->id);
		uuid_list_append(kept, &giving->items[i]->kept);
		uuid_list_append(slots, &giving->items[i]->slot_id);
	}
}

/* on a doubled slot the one that is kept keeps it booked */
static SlotsToFree
slots_to_free(const GivingWay *giving, const UuidList *ids, UuidList *slots)
{
	SlotsToFree none = {0};

	if (giving->kind != DOUBLE_OVERLAP)
		return none;
	return slot_find_to_free(giving->binding, ids, slots,
							 GetCurrentTransactionStartTimestamp());
}

/*
 * What the audit rows say was changed, which is what BEFORE triggers let
 * pass, in the words of the change feed.
 */
static int
changes_made(const GivingWay *giving, UuidList *changed, int first, int count,
			 const SlotsToFree *slots, Change *changes)
{
	int			made = 0;

	for (int i = first; i < first + count; i++)
	{
		const Contender *contender = giving->items[i];

		if (!uuid_list_contains(changed, &contender->id))
			continue;
		change_set(&changes[made++], "booking", &contender->id,
				   &contender->slot_id, "confirmed", "cancelled");
	}
	for (int i = 0; i < slots->count; i++)
	{
		const SlotToFree *slot = &slots->items[i];

		if (uuid_list_contains(changed, &slot->id))
			change_set(&changes[made++], "slot", &slot->id, &slot->id,
					   slot->status, "available");
	}
	return made;
}

/* SplitChange: the change and its audit rows, one statement; the change feed */
static void
cancel_some(void *state, int first, int count)
{
	GivingWay  *giving = state;
	UuidList	ids = {0};
	UuidList	kept = {0};
	UuidList	standing = {0};
	SlotsToFree slots;
	Change	   *changes;
	Datum		values[8];
	Datum		changed_ids[2];
	UuidList	audited = {0};
	uint64		rows;
	int64		changed;
	int			made;

	booking_lists(giving, first, count, &ids, &kept, &standing);
	slots = slots_to_free(giving, &ids, &standing);
	changes = palloc((count + slots.count) * sizeof(Change));
	values[0] = uuid_list_datum(&ids);
	values[1] = uuid_list_datum(&kept);
	values[2] = CStringGetTextDatum(giving->policy->name);
	values[3] = CStringGetTextDatum(giving->policy->reason);
	slot_arrays(&slots, &values[4], &values[5], &values[6]);
	values[7] = CStringGetTextDatum(giving->kind == DOUBLE_OVERLAP ?
									"overlap" : "same_slot");
	rows = template_execute(giving->binding, &cancel_and_free, values, NULL,
							false);
	uuid_list_append_column(&audited, rows, "entity_id");
	SPI_freetuptable(SPI_tuptable);
	split_fire_deferred(&giving->split);
	changed_ids[0] = values[0];
	changed_ids[1] = values[4];
	changed = slot_count_changed(giving->binding, changed_ids);
	made = changes_made(giving, &audited, first, count, &slots, changes);
	change_record(giving->binding, giving->verb, "manual", changes, made,
				  &giving->recorded);

	giving->changed += changed;
	giving->audited += rows;
	for (int i = first; i < first + count; i++)
	{
		giving->items[i]->is_tried = true;
		if (uuid_list_contains(&audited, &giving->items[i]->id))
			giving->items[i]->fate = FATE_CANCELLED;
	}
}

/* SplitRefused */
static void
note_refused(void *state, int row, const ErrorData *error)
{
	GivingWay  *giving = state;
	Contender  *contender = giving->items[row];

	contender->fate = FATE_ATTENTION;
	contender->to_worklist = true;
	contender->sqlstate = pstrdup(unpack_sql_state(error->sqlerrcode));
	contender->reason = split_finding(error, "cancel it");
}

/* tries those that are fresh, or those that are not, while tries are left */
static void
cancel(GivingWay *giving, UuidList *fresh, bool are_fresh)
{
	giving->count = 0;
	for (int i = 0; i < giving->contenders->count; i++)
	{
		Contender  *contender = &giving->contenders->items[i];

		if (contender->fate == FATE_GIVES_WAY &&
			uuid_list_contains(fresh, &contender->id) == are_fresh)
			giving->items[giving->count++] = contender;
	}
	if (giving->count > 0 && split_has_tries(&giving->split))
		split_rows(&giving->split, giving->binding, giving->count,
				   cancel_some, note_refused, giving);
}

/* what still gives way was not reached, or a trigger left it as it was */
static void
explain_rest(GivingWay *giving)
{
	for (int i = 0; i < giving->contenders->count; i++)
	{
		Contender  *contender = &giving->contenders->items[i];

		if (contender->fate != FATE_GIVES_WAY)
			continue;
		contender->fate = FATE_ATTENTION;
		contender->to_worklist = contender->is_tried;
		contender->reason = contender->is_tried ?
			"a trigger leaves it confirmed" :
			"too many are refused: call it again";
	}
}

/*
 * Cancels the contenders that give way, tells each its fate, and writes the
 * worklist.  verb: as the change feed names it.
 */
void
give_way(Binding *binding, const char *verb, const Policy *policy,
		 DoubleKind kind, Contenders *contenders)
{
	GivingWay	giving = {binding, verb, policy, kind, contenders};
	UuidList	all = contender_ids(contenders);
	UuidList	fresh;

	giving.items = palloc(Max(all.count, 1) * sizeof(Contender *));
	ask_checks(&giving);
	fresh = attention_fresh(binding, kinds_opened, &all,
							GetCurrentTransactionStartTimestamp(), false);
	cancel(&giving, &fresh, true);
	cancel(&giving, &fresh, false);
	audit_check(giving.changed, giving.audited);
	change_notify(binding, verb, &giving.recorded);
	explain_rest(&giving);
	put_on_worklist(&giving, &fresh);
	put_refunds_on_worklist(&giving);
}
