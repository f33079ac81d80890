/*-------------------------------------------------------------------------
 *
 * refund.h
 *	  Money that came for a booking which will not take place.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CUSOWN_REFUND_H
#define CUSOWN_REFUND_H

#include "attention.h"

/* whoever finds or makes such a booking opens it */
extern const AttentionKind refund_due;

extern void refund_still_there(Binding *binding, const AttentionKind *kind,
							   const UuidList *ids, UuidList *there);
extern int64 refund_find(Binding *binding);
extern char *refund_finding(const pg_uuid_t *payment);

#endif							/* CUSOWN_REFUND_H */
