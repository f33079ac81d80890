/*-------------------------------------------------------------------------
 *
 * row_lock.c
 *	  The row locks of a verb that waits for them.
 *
 * A human, or an application's request, waits: payments, then bookings, then
 * slots, each in the order of their ids, so that two of our verbs never wait
 * for each other.  Whoever has locked decides again in a new statement.
 *
 * The pending bookings on a slot are locked with the confirmed ones: confirming
 * one of them need not lock the slot.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"

#include "row_lock.h"
#include "template.h"

/* on the slots $1 */
#define LIVE_ON_SLOTS \
	"b.{bookings.slot_id} = ANY ($1)" \
	" AND (b.{bookings.status} = 'confirmed'" \
	" OR b.{bookings.status} = 'pending') IS TRUE"

static const Template lock_payments = {
	"SELECT p.{payments.id} AS id FROM {payments} p"
	" WHERE EXISTS (SELECT FROM {bookings} b"
	" WHERE b.{bookings.id} = p.{payments.booking_id} AND " LIVE_ON_SLOTS ")"
	" ORDER BY p.{payments.id} FOR SHARE OF p",
	1, {UUIDARRAYOID}
};

static const Template lock_bookings = {
	"SELECT b.{bookings.id} AS id FROM {bookings} b WHERE " LIVE_ON_SLOTS
	" ORDER BY b.{bookings.id} FOR UPDATE",
	1, {UUIDARRAYOID}
};

static const Template lock_slots = {
	"SELECT s.{slots.id} AS id FROM {slots} s"
	" WHERE s.{slots.id} = ANY ($1) ORDER BY s.{slots.id} FOR UPDATE",
	1, {UUIDARRAYOID}
};

/*
 * Waits for the bookings that stand on slots, and before them for their
 * payments where that is asked for; appends them to locked.  One that comes
 * meanwhile is not among them.
 */
void
row_lock_live_bookings(Binding *binding, const UuidList *slots, bool payments,
					   UuidList *locked)
{
	UuidList	paid = {0};

	if (payments && binding_relation(binding, "payments") != NULL)
		template_ids(binding, &lock_payments, slots, &paid);
	template_ids(binding, &lock_bookings, slots, locked);
}

/* likewise for slots */
void
row_lock_slots(Binding *binding, const UuidList *slots, UuidList *locked)
{
	template_ids(binding, &lock_slots, slots, locked);
}
