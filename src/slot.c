/*-------------------------------------------------------------------------
 *
 * slot.c
 *	  Who stands on a slot.
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
 * Locks the pending bookings on slots that nobody else holds, and appends to
 * in_change the slots on which somebody is changing one.
 */
void
slot_in_change(Binding *binding, const UuidList *slots, UuidList *in_change)
{
	template_ids(binding, &slots_in_change, slots, in_change);
}
