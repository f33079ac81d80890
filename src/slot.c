/*-------------------------------------------------------------------------
 *
 * slot.c
 *	  Who stands on a slot, and when it becomes available.
 *
 * A slot is not safe to free because its own row is locked: confirming a
 * pending booking on it need not lock the slot.  So whoever frees slots locks
 * the pending bookings on them too, and leaves alone those where one cannot
 * be locked.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "due.h"
#include "slot.h"
#include "template.h"

static const Template slots_in_change = {
	"WITH locked AS MATERIALIZED (SELECT b.{bookings.id} AS id"
	" FROM {bookings} b WHERE b.{bookings.slot_id} = ANY ($1)"
	" AND " BOOKING_IS_PENDING " FOR UPDATE SKIP LOCKED)"
	" SELECT b.{bookings.slot_id} AS id FROM {bookings} b"
	" LEFT JOIN locked l ON l.id = b.{bookings.id}"
	" WHERE b.{bookings.slot_id} = ANY ($1) AND " BOOKING_IS_PENDING
	" AND l.id IS NULL",
	1, {UUIDARRAYOID}
};

/*
 * The slots that become available when the bookings $1 are cancelled.  $2 are
 * their slots, $3 is when a hold must be over.  No other confirmed booking
 * stands on such a slot, and either its hold has ended, or nobody else stands
 * on it.
 */
static const Template slots_to_free = {
	"SELECT s.{slots.id} AS id, s.{slots.status}::text AS status"
	" FROM {slots} s WHERE s.{slots.id} = ANY ($2)"
	" AND (s.{slots.status} = 'booked'"
	"[ AND (s.{slots.reserved_until} <= $3) IS NOT FALSE]"
	" OR s.{slots.status} = 'reserved'[ AND s.{slots.reserved_until} <= $3])"
	" AND NOT EXISTS (SELECT FROM {bookings} o"
	" WHERE o.{bookings.slot_id} = s.{slots.id}"
	" AND o.{bookings.status} = 'confirmed' AND o.{bookings.id} <> ALL ($1))"
	" AND ([{?slots.reserved_until}s.{slots.status} = 'reserved' OR]"
	" NOT EXISTS (SELECT FROM {bookings} o"
	" WHERE o.{bookings.slot_id} = s.{slots.id}"
	" AND o.{bookings.status} = 'pending'"
	" AND o.{bookings.id} <> ALL ($1)))",
	3, {UUIDARRAYOID, UUIDARRAYOID, TIMESTAMPTZOID}
};

/* of the bookings $1 and slots $2 that are ours by now: what was changed */
static const Template count_changed = {
	"SELECT (SELECT pg_catalog.count(*) FROM {bookings} b"
	" WHERE b.{bookings.id} = ANY ($1)"
	" AND (b.{bookings.status} = 'cancelled') IS TRUE)"
	" + (SELECT pg_catalog.count(*) FROM {slots} s"
	" WHERE s.{slots.id} = ANY ($2)"
	" AND (s.{slots.status} = 'available') IS TRUE) AS changed",
	2, {UUIDARRAYOID, UUIDARRAYOID}
};

/*
 * Locks the pending bookings on slots that nobody else holds, and appends to
 * in_change the slots on which somebody is changing one.
 */
void
slot_in_change(Binding *binding, const UuidList *slots, UuidList *in_change)
{
	template_ids(binding, &slots_in_change, slots, in_change);
}

/*
 * The slots that become available when bookings are cancelled, which stand on
 * those in occupied, each named as often as one of them does.
 */
SlotsToFree
slot_find_to_free(Binding *binding, const UuidList *bookings,
				  UuidList *occupied, TimestampTz holds_as_of)
{
	SlotsToFree slots;
	Datum		values[3];
	uint64		rows;

	values[0] = uuid_list_datum(bookings);
	values[1] = uuid_list_datum(occupied);
	values[2] = TimestampTzGetDatum(holds_as_of);
	rows = template_execute(binding, &slots_to_free, values, NULL, false);
	slots.count = (int) rows;
	slots.items = palloc(Max(rows, 1) * sizeof(SlotToFree));
	for (uint64 row = 0; row < rows; row++)
	{
		SlotToFree *slot = &slots.items[row];
		bool		isnull;

		template_uuid(row, "id", &slot->id);
		slot->status = TextDatumGetCString(template_column(row, "status",
														   &isnull));
		slot->standing = uuid_list_count(occupied, &slot->id);
	}
	SPI_freetuptable(SPI_tuptable);
	return slots;
}

/* the parallel arrays of SLOTS_FREED_BY */
void
slot_arrays(const SlotsToFree *slots, Datum *ids, Datum *statuses,
			Datum *standing)
{
	UuidList	list = {0};
	Datum	   *texts = palloc(Max(slots->count, 1) * sizeof(Datum));
	Datum	   *counts = palloc(Max(slots->count, 1) * sizeof(Datum));

	for (int i = 0; i < slots->count; i++)
	{
		uuid_list_append(&list, &slots->items[i].id);
		texts[i] = CStringGetTextDatum(slots->items[i].status);
		counts[i] = Int64GetDatum(slots->items[i].standing);
	}
	*ids = uuid_list_datum(&list);
	*statuses = PointerGetDatum(construct_array(texts, slots->count, TEXTOID,
												-1, false, TYPALIGN_INT));
	*standing = PointerGetDatum(construct_array(counts, slots->count, INT8OID,
												sizeof(int64), FLOAT8PASSBYVAL,
												TYPALIGN_DOUBLE));
}

/* of the bookings and slots ids, which are ours by now: what was changed */
int64
slot_count_changed(Binding *binding, const Datum *ids)
{
	bool		isnull;
	int64		changed;

	template_execute(binding, &count_changed, ids, NULL, false);
	changed = DatumGetInt64(template_column(0, "changed", &isnull));
	SPI_freetuptable(SPI_tuptable);
	return changed;
}
