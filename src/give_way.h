/*-------------------------------------------------------------------------
 *
 * give_way.h
 *	  Cancels the bookings that give way to others.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CUSOWN_GIVE_WAY_H
#define CUSOWN_GIVE_WAY_H

#include "contender.h"
#include "double_booking.h"

extern void give_way_recheck(Binding *binding);
extern bool give_way_is_refund_due(const Contender *contender);
extern void give_way(Binding *binding, const char *verb,
					 const Policy *policy, DoubleKind kind,
					 Contenders *contenders);

#endif							/* CUSOWN_GIVE_WAY_H */
