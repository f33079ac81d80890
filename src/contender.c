/*-------------------------------------------------------------------------
 *
 * contender.c
 *	  Which of the bookings that stand in each other's way gives way.
 *
 * Contenders are put in the order of a policy.  On a slot the first one is
 * kept, and all others give way to it.  Where a business has confirmed more
 * than it can serve at once, they are taken in that order, and one gives way
 * when at some time as many as there may be are kept already: so nobody gives
 * way without need, and the latest do.
 *
 * Nothing here locks or changes anything.  locked are the bookings that the
 * caller has locked, in statements before: another one came meanwhile, and is
 * left for the next call, as is all on its slot.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "contender.h"
#include "overlap.h"

/* $1 bookings; those that are confirmed */
#define CONTENDERS(ordered) \
	"SELECT b.{bookings.id} AS id, b.{bookings.slot_id} AS slot_id" \
	"[{?payments}, p.payment AS payment] FROM {bookings} b" \
	" LEFT JOIN (SELECT a.{audit_logs.entity_id} AS booking_id," \
	" pg_catalog.max(a.{audit_logs.created_at}) AS confirmed_at" \
	" FROM {audit_logs} a WHERE a.{audit_logs.entity_id} = ANY ($1)" \
	" AND a.{audit_logs.entity_type} = 'booking'" \
	" AND a.{audit_logs.action} = 'booking_confirmed'" \
	" GROUP BY a.{audit_logs.entity_id}) a ON a.booking_id = b.{bookings.id}" \
	"[ LEFT JOIN (SELECT p.{payments.booking_id} AS booking_id," \
	" (pg_catalog.array_agg(p.{payments.id} ORDER BY p.{payments.id}))[1]" \
	" AS payment FROM {payments} p WHERE p.{payments.booking_id} = ANY ($1)" \
	" AND p.{payments.status} = 'completed'" \
	" GROUP BY p.{payments.booking_id}) p ON p.booking_id = b.{bookings.id}]" \
	" WHERE b.{bookings.id} = ANY ($1)" \
	" AND (b.{bookings.status} = 'confirmed') IS TRUE" \
	" ORDER BY " ordered "b.{bookings.created_at}, b.{bookings.id}"

/* the last confirmation that the audit trail knows of */
#define FIRST_CONFIRMED "COALESCE(a.confirmed_at, b.{bookings.created_at}), "

#define REASON(name) "double booking: " name

#define POLICY(name, needs_payments, ordered) \
	{ \
		name, needs_payments, REASON(name), \
		{CONTENDERS(ordered), 1, {UUIDARRAYOID}}, \
		{ \
			"bookings", \
			{ \
				"SELECT b.tableoid, b.* FROM {bookings} b" \
				" WHERE b.{bookings.id} = ANY ($1)", \
				1, {UUIDARRAYOID} \
			}, \
			5, \
			{ \
				{"status", "cancelled"}, \
				{"cancelled_by", "system"}, \
				{"cancelled_at", NULL}, \
				{"cancellation_reason", REASON(name)}, \
				{"updated_at", NULL} \
			} \
		} \
	}

static const Policy policies[] = {
	POLICY("first_confirmed", false, FIRST_CONFIRMED),
	POLICY("first_created", false, ""),
	POLICY("paid_first", true, "(p.payment IS NULL), " FIRST_CONFIRMED)
};

const Policy contender_by_hand = POLICY("by_hand", false, FIRST_CONFIRMED);

static const Template confirmed_on_slots = {
	"SELECT b.{bookings.id} AS id FROM {bookings} b"
	" WHERE b.{bookings.slot_id} = ANY ($1)"
	" AND (b.{bookings.status} = 'confirmed') IS TRUE",
	1, {UUIDARRAYOID}
};

const Policy *
contender_policy(const char *name)
{
	for (int i = 0; i < lengthof(policies); i++)
	{
		if (strcmp(policies[i].name, name) == 0)
			return &policies[i];
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("unknown policy \"%s\"", name),
			 errhint("Policies are first_confirmed, first_created and paid_first.")));
}

/* ---------- reading ---------- */

static int
compare_ids(const void *a, const void *b)
{
	return memcmp(&(*(Contender *const *) a)->id,
				  &(*(Contender *const *) b)->id, sizeof(pg_uuid_t));
}

static void
index_by_id(Contenders *contenders)
{
	contenders->by_id = palloc(Max(contenders->count, 1) * sizeof(Contender *));
	for (int i = 0; i < contenders->count; i++)
		contenders->by_id[i] = &contenders->items[i];
	qsort(contenders->by_id, contenders->count, sizeof(Contender *),
		  compare_ids);
}

/* NULL where there is none of that id */
Contender *
contender_find(const Contenders *contenders, const pg_uuid_t *id)
{
	Contender	wanted;
	Contender  *key = &wanted;
	Contender **found;

	wanted.id = *id;
	found = bsearch(&key, contenders->by_id, contenders->count,
					sizeof(Contender *), compare_ids);
	return found == NULL ? NULL : *found;
}

UuidList
contender_ids(const Contenders *contenders)
{
	UuidList	ids = {0};

	for (int i = 0; i < contenders->count; i++)
		uuid_list_append(&ids, &contenders->items[i].id);
	return ids;
}

/* those of ids that are confirmed, in the order of the policy */
static Contenders
read_contenders(Binding *binding, const Policy *policy, const UuidList *ids)
{
	Contenders	contenders = {0};
	Datum		values[1];
	uint64		rows;

	values[0] = uuid_list_datum(ids);
	rows = template_execute(binding, &policy->contenders, values, NULL, false);
	contenders.items = MemoryContextAllocExtended(CurrentMemoryContext,
												  Max(rows, 1) * sizeof(Contender),
												  MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	contenders.count = (int) rows;
	for (uint64 row = 0; row < rows; row++)
	{
		Contender  *contender = &contenders.items[row];

		contender->rank = (int) row;
		template_uuid(row, "id", &contender->id);
		template_uuid(row, "slot_id", &contender->slot_id);
		contender->is_paid = template_uuid(row, "payment", &contender->payment);
	}
	SPI_freetuptable(SPI_tuptable);
	return contenders;
}

static void
leave_for_next_call(Contender *contender)
{
	contender->fate = FATE_ATTENTION;
	contender->reason = "changed meanwhile: call it again";
}

/* ---------- on a slot ---------- */

static int
compare_on_slot(const void *a, const void *b)
{
	const Contender *left = a;
	const Contender *right = b;
	int			order = memcmp(&left->slot_id, &right->slot_id,
							   sizeof(pg_uuid_t));

	return order != 0 ? order : left->rank - right->rank;
}

static bool
is_same_slot(const Contender *a, const Contender *b)
{
	return memcmp(&a->slot_id, &b->slot_id, sizeof(pg_uuid_t)) == 0;
}

/* of count contenders on a slot the one at index kept stays */
static void
decide_slot(Contender *contenders, int count, int kept)
{
	for (int i = 0; i < count; i++)
	{
		contenders[i].fate = i == kept ? FATE_KEPT : FATE_GIVES_WAY;
		contenders[i].kept = contenders[kept].id;
	}
}

static bool
are_all_locked(const Contender *contenders, int count, UuidList *locked)
{
	for (int i = 0; i < count; i++)
	{
		if (!uuid_list_contains(locked, &contenders[i].id))
			return false;
	}
	return true;
}

/* how many from the first one on stand on its slot */
static int
count_on_slot(const Contenders *contenders, int first)
{
	int			end = first + 1;

	while (end < contenders->count &&
		   is_same_slot(&contenders->items[first], &contenders->items[end]))
		end++;
	return end - first;
}

/* leaves out those that have their slot for themselves */
static void
keep_doubled(Contenders *contenders)
{
	int			kept = 0;
	int			count;

	for (int first = 0; first < contenders->count; first += count)
	{
		count = count_on_slot(contenders, first);
		for (int i = 0; count > 1 && i < count; i++)
			contenders->items[kept++] = contenders->items[first + i];
	}
	contenders->count = kept;
}

/*
 * The confirmed bookings on slots, and which of them give way; not those that
 * have their slot for themselves, unless alone_too.
 */
Contenders
contender_of_slots(Binding *binding, const Policy *policy,
				   const UuidList *slots, bool alone_too, UuidList *locked)
{
	UuidList	ids = {0};
	Contenders	contenders;
	int			count;

	template_ids(binding, &confirmed_on_slots, slots, &ids);
	contenders = read_contenders(binding, policy, &ids);
	qsort(contenders.items, contenders.count, sizeof(Contender),
		  compare_on_slot);
	if (!alone_too)
		keep_doubled(&contenders);
	for (int first = 0; first < contenders.count; first += count)
	{
		Contender  *on_slot = &contenders.items[first];

		count = count_on_slot(&contenders, first);
		if (are_all_locked(on_slot, count, locked))
			decide_slot(on_slot, count, 0);
		else
		{
			for (int i = 0; i < count; i++)
				leave_for_next_call(&on_slot[i]);
		}
	}
	index_by_id(&contenders);
	return contenders;
}

/*
 * Keeps this one instead of the policy's choice; all stand on one slot.  False
 * where it is not among them.
 */
bool
contender_keep(Contenders *contenders, const pg_uuid_t *id)
{
	const Contender *kept = contender_find(contenders, id);

	if (kept == NULL)
		return false;
	if (kept->fate != FATE_ATTENTION)
		decide_slot(contenders->items, contenders->count,
					(int) (kept - contenders->items));
	return true;
}

/* ---------- of a business ---------- */

/* what the sweep found */
typedef struct OverlapList
{
	Contenders	found;
	int			allocated;
	const pg_uuid_t *slot;		/* only stretches with one on it, or NULL */
	MemoryContext context;
} OverlapList;

static bool
is_slot_in(const OverlapStretch *stretch, const pg_uuid_t *slot)
{
	for (int i = 0; i < stretch->bookings.count; i++)
	{
		if (memcmp(&stretch->bookings.items[i].slot_id, slot,
				   sizeof(pg_uuid_t)) == 0)
			return true;
	}
	return false;
}

static void
append(OverlapList *list, const OverlapStretch *stretch,
	   const OverlapBooking *booking)
{
	Contenders *found = &list->found;
	Contender  *contender;

	if (found->count == list->allocated)
	{
		list->allocated = Max(64, list->allocated * 2);
		found->items = found->items == NULL ?
			MemoryContextAlloc(list->context,
							   list->allocated * sizeof(Contender)) :
			repalloc_huge(found->items,
						  (Size) list->allocated * sizeof(Contender));
	}
	contender = &found->items[found->count++];
	memset(contender, 0, sizeof(Contender));
	contender->id = booking->id;
	contender->slot_id = booking->slot_id;
	contender->business_id = stretch->business_id;
	contender->capacity = stretch->capacity;
	contender->start = booking->start;
	contender->end = booking->end;
}

/* OverlapFound */
static void
add_stretch(const OverlapStretch *stretch, void *state)
{
	OverlapList *list = state;

	if (list->slot != NULL && !is_slot_in(stretch, list->slot))
		return;
	for (int i = 0; i < stretch->bookings.count; i++)
		append(list, stretch, &stretch->bookings.items[i]);
}

static int
compare_by_id(const void *a, const void *b)
{
	return memcmp(&((const Contender *) a)->id, &((const Contender *) b)->id,
				  sizeof(pg_uuid_t));
}

/* one booking may be in several stretches */
static void
keep_each_once(Contenders *contenders)
{
	int			kept = 0;

	qsort(contenders->items, contenders->count, sizeof(Contender),
		  compare_by_id);
	for (int i = 0; i < contenders->count; i++)
	{
		if (kept == 0 || compare_by_id(&contenders->items[kept - 1],
									   &contenders->items[i]) != 0)
			contenders->items[kept++] = contenders->items[i];
	}
	contenders->count = kept;
}

static int
compare_in_business(const void *a, const void *b)
{
	const Contender *left = a;
	const Contender *right = b;
	int			order = memcmp(&left->business_id, &right->business_id,
							   sizeof(pg_uuid_t));

	return order != 0 ? order : left->rank - right->rank;
}

static int
compare_shown(const void *a, const void *b)
{
	const Contender *left = a;
	const Contender *right = b;
	int			order = memcmp(&left->business_id, &right->business_id,
							   sizeof(pg_uuid_t));

	if (order != 0)
		return order;
	if (left->start != right->start)
		return left->start < right->start ? -1 : 1;
	return left->rank - right->rank;
}

/*
 * The time of a business, cut where a contender begins or ends: who is kept
 * in each piece.
 */
typedef struct Pieces
{
	Timestamp  *cuts;			/* sorted, each once; piece i begins at cut i */
	int			count;
	int64	   *kept;			/* how many */
	const Contender **first;	/* the first of them */
} Pieces;

static int
compare_timestamps(const void *a, const void *b)
{
	Timestamp	left = *(const Timestamp *) a;
	Timestamp	right = *(const Timestamp *) b;

	return left < right ? -1 : left > right ? 1 : 0;
}

static Pieces
cut_pieces(const Contender *contenders, int count)
{
	Pieces		pieces = {0};
	int			all = 0;
	int			distinct = 0;

	pieces.cuts = MemoryContextAllocHuge(CurrentMemoryContext,
										 (Size) count * 2 * sizeof(Timestamp));
	for (int i = 0; i < count; i++)
	{
		pieces.cuts[all++] = contenders[i].start;
		pieces.cuts[all++] = contenders[i].end;
	}
	qsort(pieces.cuts, all, sizeof(Timestamp), compare_timestamps);
	for (int i = 0; i < all; i++)
	{
		if (distinct == 0 || pieces.cuts[distinct - 1] != pieces.cuts[i])
			pieces.cuts[distinct++] = pieces.cuts[i];
	}
	pieces.count = distinct;
	pieces.kept = palloc0(distinct * sizeof(int64));
	pieces.first = palloc0(distinct * sizeof(Contender *));
	return pieces;
}

static int
piece_at(const Pieces *pieces, Timestamp time)
{
	Timestamp  *cut = bsearch(&time, pieces->cuts, pieces->count,
							  sizeof(Timestamp), compare_timestamps);

	return (int) (cut - pieces->cuts);
}

/* keeps it, unless at some time there are as many as there may be */
static void
decide_overlap(Pieces *pieces, Contender *contender)
{
	int			first = piece_at(pieces, contender->start);
	int			end = piece_at(pieces, contender->end);

	for (int i = first; i < end; i++)
	{
		if (pieces->kept[i] >= contender->capacity)
		{
			contender->fate = FATE_GIVES_WAY;
			contender->kept = pieces->first[i]->id;
			return;
		}
	}
	contender->fate = FATE_KEPT;
	for (int i = first; i < end; i++)
	{
		if (pieces->kept[i]++ == 0)
			pieces->first[i] = contender;
	}
}

static void
decide_business(Contender *contenders, int count, UuidList *locked)
{
	Pieces		pieces = cut_pieces(contenders, count);

	for (int i = 0; i < count; i++)
	{
		CHECK_FOR_INTERRUPTS();
		decide_overlap(&pieces, &contenders[i]);
		if (contenders[i].fate == FATE_GIVES_WAY &&
			!uuid_list_contains(locked, &contenders[i].id))
			leave_for_next_call(&contenders[i]);
	}
}

/* takes the order and the payments from what was read by the policy */
static void
rank(Contenders *contenders, const Contenders *read)
{
	int			kept = 0;

	for (int i = 0; i < contenders->count; i++)
	{
		Contender  *contender = &contenders->items[i];
		const Contender *ranked = contender_find(read, &contender->id);

		if (ranked == NULL)
			continue;			/* not confirmed any more */
		contender->rank = ranked->rank;
		contender->is_paid = ranked->is_paid;
		contender->payment = ranked->payment;
		contenders->items[kept++] = *contender;
	}
	contenders->count = kept;
}

/*
 * The confirmed bookings in stretches of time in which a business has confirmed
 * too many, and which of them give way.  businesses NULL: all.  slot: only in
 * stretches with a booking on it; NULL: in all.
 */
Contenders
contender_of_overlaps(Binding *binding, const Policy *policy,
					  const UuidList *businesses, const pg_uuid_t *slot,
					  UuidList *locked)
{
	OverlapList list = {0};
	Contenders	read;
	UuidList	ids;
	int			end;

	list.slot = slot;
	list.context = CurrentMemoryContext;
	overlap_find(binding, businesses, false, add_stretch, &list);
	keep_each_once(&list.found);
	ids = contender_ids(&list.found);
	read = read_contenders(binding, policy, &ids);
	index_by_id(&read);
	rank(&list.found, &read);
	qsort(list.found.items, list.found.count, sizeof(Contender),
		  compare_in_business);
	for (int first = 0; first < list.found.count; first = end)
	{
		end = first + 1;
		while (end < list.found.count &&
			   memcmp(&list.found.items[first].business_id,
					  &list.found.items[end].business_id,
					  sizeof(pg_uuid_t)) == 0)
			end++;
		decide_business(&list.found.items[first], end - first, locked);
	}
	qsort(list.found.items, list.found.count, sizeof(Contender),
		  compare_shown);
	index_by_id(&list.found);
	return list.found;
}
