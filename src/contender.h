/*-------------------------------------------------------------------------
 *
 * contender.h
 *	  Which of the bookings that stand in each other's way gives way.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CUSOWN_CONTENDER_H
#define CUSOWN_CONTENDER_H

#include "utils/uuid.h"

#include "binding.h"
#include "row_check.h"
#include "template.h"
#include "uuid_list.h"

/* who comes first */
typedef struct Policy
{
	const char *name;
	bool		needs_payments;
	const char *reason;			/* what is put into who gives way */
	Template	contenders;		/* of bookings $1, in this order */
	ProposedChange cancellation;	/* of who gives way */
} Policy;

typedef enum Fate
{
	FATE_KEPT,
	FATE_GIVES_WAY,				/* is to be cancelled */
	FATE_CANCELLED,
	FATE_ATTENTION,				/* cannot be, or not now: reason says why */
} Fate;

typedef struct Contender
{
	pg_uuid_t	id;
	pg_uuid_t	slot_id;
	int			rank;			/* by the policy, the first is 0 */
	bool		is_paid;
	pg_uuid_t	payment;		/* a completed one, where it is paid */
	Fate		fate;
	bool		is_tried;		/* cancelled, as far as triggers let it be */
	pg_uuid_t	kept;			/* for which it gives way */
	const char *sqlstate;		/* of what refuses to cancel it, or NULL */
	const char *reason;			/* or NULL: the policy */
	bool		to_worklist;	/* reason is a finding */
	/* of kind overlap */
	pg_uuid_t	business_id;
	int64		capacity;
	Timestamp	start;
	Timestamp	end;
} Contender;

typedef struct Contenders
{
	Contender  *items;			/* in the order in which they are shown */
	int			count;
	Contender **by_id;
} Contenders;

/* the decision by hand */
extern const Policy contender_by_hand;

extern const Policy *contender_policy(const char *name);
extern Contenders contender_of_slots(Binding *binding, const Policy *policy,
									 const UuidList *slots, bool alone_too,
									 UuidList *locked);
extern Contenders contender_of_overlaps(Binding *binding,
										const Policy *policy,
										const UuidList *businesses,
										const pg_uuid_t *slot,
										UuidList *locked);
extern bool contender_keep(Contenders *contenders, const pg_uuid_t *id);
extern Contender *contender_find(const Contenders *contenders,
								 const pg_uuid_t *id);
extern UuidList contender_ids(const Contenders *contenders);

#endif							/* CUSOWN_CONTENDER_H */
