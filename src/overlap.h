/*-------------------------------------------------------------------------
 *
 * overlap.h
 *	  Stretches of time for which a business has confirmed more than it can
 *	  serve at once.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CUSOWN_OVERLAP_H
#define CUSOWN_OVERLAP_H

#include "datatype/timestamp.h"
#include "utils/uuid.h"

#include "binding.h"
#include "uuid_list.h"

/* [start, end) on the clock of the business, or in UTC: see overlap.c */
typedef struct OverlapBooking
{
	pg_uuid_t	id;
	pg_uuid_t	slot_id;
	Timestamp	start;
	Timestamp	end;
} OverlapBooking;

typedef struct OverlapBookings
{
	OverlapBooking *items;
	int			count;
	int			capacity;		/* of the array */
} OverlapBookings;

/* a stretch, as long as it can be, in which too many are there at any time */
typedef struct OverlapStretch
{
	pg_uuid_t	business_id;
	int64		capacity;		/* how many may be there at once */
	int64		most;			/* how many are */
	Timestamp	start;
	Timestamp	end;
	OverlapBookings bookings;	/* all that are there in it, by (start, id) */
} OverlapStretch;

typedef void (*OverlapFound) (const OverlapStretch *stretch, void *state);

extern bool overlap_knows_business(const Binding *binding);
extern void overlap_find(Binding *binding, const UuidList *businesses,
						 bool read_only, OverlapFound found, void *state);

#endif							/* CUSOWN_OVERLAP_H */
