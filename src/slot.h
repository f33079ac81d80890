/*-------------------------------------------------------------------------
 *
 * slot.h
 *	  Who stands on a slot.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CUSOWN_SLOT_H
#define CUSOWN_SLOT_H

#include "binding.h"
#include "uuid_list.h"

extern void slot_in_change(Binding *binding, const UuidList *slots,
						   UuidList *in_change);

#endif							/* CUSOWN_SLOT_H */
