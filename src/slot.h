/*-------------------------------------------------------------------------
 *
 * slot.h
 *	  Who stands on a slot, and when it becomes available.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CUSOWN_SLOT_H
#define CUSOWN_SLOT_H

#include "datatype/timestamp.h"
#include "utils/uuid.h"

#include "binding.h"
#include "uuid_list.h"

/* conditions on a slot s: who stands on it */
#define SLOT_HAS(statuses) \
	"EXISTS (SELECT FROM {bookings} o" \
	" WHERE o.{bookings.slot_id} = s.{slots.id} AND (" statuses "))"

#define SLOT_CONFIRMED "o.{bookings.status} = 'confirmed'"

#define SLOT_LIVE SLOT_CONFIRMED " OR o.{bookings.status} = 'pending'"

/* what its bookings contradict; a booked slot may be held, too */
#define SLOT_SHOULD_BE_BOOKED \
	"s.{slots.status} <> 'booked' AND " SLOT_HAS(SLOT_CONFIRMED)

#define SLOT_BOOKED_FOR_NOBODY \
	"s.{slots.status} = 'booked'" \
	"[ AND (s.{slots.reserved_until} > pg_catalog.now()) IS NOT TRUE]" \
	" AND NOT " SLOT_HAS(SLOT_LIVE)

/* a slot that becomes available */
typedef struct SlotToFree
{
	pg_uuid_t	id;
	char	   *status;			/* that it has now */
	int64		standing;		/* bookings on it that are cancelled */
} SlotToFree;

typedef struct SlotsToFree
{
	SlotToFree *items;
	int			count;
} SlotsToFree;

/*
 * A part of a statement that changes bookings, in a CTE gone (id, slot_id): the
 * slots that become available, by the parallel arrays of slot_arrays().  One
 * stays where a BEFORE trigger keeps a booking that stands on it.
 */
#define SLOTS_FREED_BY(gone, ids, statuses, standing) \
	" freed AS (UPDATE {slots} s SET {slots.status} := 'available'" \
	"[, {slots.reserved_until} := NULL][, {slots.updated_at} := pg_catalog.now()]" \
	" FROM ROWS FROM (pg_catalog.unnest(" ids "), pg_catalog.unnest(" statuses ")," \
	" pg_catalog.unnest(" standing ")) AS f (id, old_status, standing)" \
	" JOIN (SELECT e.slot_id, pg_catalog.count(*) AS gone FROM " gone " e" \
	" GROUP BY e.slot_id) e ON e.slot_id = f.id AND e.gone = f.standing" \
	" WHERE s.{slots.id} = f.id AND s.{slots.status} <> 'available'" \
	" RETURNING s.{slots.id} AS id, f.old_status),"

extern void slot_in_change(Binding *binding, const UuidList *slots,
						   UuidList *in_change);
extern SlotsToFree slot_find_to_free(Binding *binding,
									 const UuidList *bookings,
									 UuidList *occupied,
									 TimestampTz holds_as_of);
extern void slot_arrays(const SlotsToFree *slots, Datum *ids,
						Datum *statuses, Datum *standing);
extern int64 slot_count_changed(Binding *binding, const Datum *ids);

#endif							/* CUSOWN_SLOT_H */
