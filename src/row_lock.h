/*-------------------------------------------------------------------------
 *
 * row_lock.h
 *	  The row locks of a verb that waits for them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CUSOWN_ROW_LOCK_H
#define CUSOWN_ROW_LOCK_H

#include "binding.h"
#include "uuid_list.h"

extern void row_lock_live_bookings(Binding *binding, const UuidList *slots,
								   bool payments, UuidList *locked);
extern void row_lock_slots(Binding *binding, const UuidList *slots,
						   UuidList *locked);

#endif							/* CUSOWN_ROW_LOCK_H */
