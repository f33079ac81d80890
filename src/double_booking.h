/*-------------------------------------------------------------------------
 *
 * double_booking.h
 *	  Bookings that stand in each other's way.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CUSOWN_DOUBLE_BOOKING_H
#define CUSOWN_DOUBLE_BOOKING_H

#include "binding.h"
#include "uuid_list.h"

typedef enum DoubleKind
{
	DOUBLE_SAME_SLOT,
	DOUBLE_OVERLAP,
	DOUBLE_SLOT_STATE,
	DOUBLE_ALL,
} DoubleKind;

extern DoubleKind double_booking_kind(const char *name,
									  const DoubleKind *known, int count);
extern bool double_booking_impossible(const Binding *binding);
extern void double_booking_slots(Binding *binding, const pg_uuid_t *business,
								 bool read_only, UuidList *slots);

#endif							/* CUSOWN_DOUBLE_BOOKING_H */
