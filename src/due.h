/*-------------------------------------------------------------------------
 *
 * due.h
 *	  Which pending bookings are due to expire, and what may happen to them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CUSOWN_DUE_H
#define CUSOWN_DUE_H

#include "datatype/timestamp.h"
#include "fmgr.h"
#include "utils/uuid.h"

#include "binding.h"
#include "row_check.h"
#include "uuid_list.h"

typedef enum Verdict
{
	VERDICT_EXPIRE,
	VERDICT_PAID,
	VERDICT_IN_FLIGHT,
	VERDICT_REFUSED,
} Verdict;

typedef struct DueBooking
{
	pg_uuid_t	id;
	pg_uuid_t	slot_id;
	pg_uuid_t	business_id;
	bool		has_slot_id;
	bool		has_slot;		/* slot_id names a slot that exists */
	bool		has_business;
	bool		payment_unlocked;	/* has a payment that phase B did not lock */
	TimestampTz counts_from;	/* its age, by the rule */
	Verdict		verdict;
	const char *sqlstate;		/* of what refuses, or NULL */
	char	   *finding;		/* why the verdict is not "expire", or NULL */
} DueBooking;

typedef struct DueBookings
{
	DueBooking *items;
	int			count;
} DueBookings;

typedef enum DueKind
{
	DUE_OLDER_THAN,				/* counts from the booking's creation */
	DUE_HOLD_ENDED,				/* counts from the end of its slot's hold */
} DueKind;

/* what is due, at which moment */
typedef struct DueRule
{
	DueKind		kind;
	Interval	age;			/* older_than or hold_grace */
	TimestampTz as_of;
	TimestampTz before;			/* due is what counts from before this */
	TimestampTz created_after;	/* of hold_ended: younger bookings only */
	TimestampTz in_flight_after;	/* payments created later are in flight */
} DueRule;

typedef struct DueRules
{
	int			count;
	DueRule		items[2];
} DueRules;

/* how far reading has come, in the order of the key */
typedef struct ReadingKey
{
	TimestampTz counts_from;
	pg_uuid_t	id;
} ReadingKey;

/*
 * For statements that are given ids, which are the way to the rows then.  IS
 * TRUE keeps the planner from reading an index on status beside them, which
 * holds every pending booking.
 */
#define BOOKING_IS_PENDING "(b.{bookings.status} = 'pending') IS TRUE"

/* what expiry.c puts into a booking */
extern const ProposedChange due_cancellation;

extern Interval due_booking_ttl(void);
extern DueRule due_rule(DueKind kind, const Interval *age,
						const char *argument, TimestampTz as_of);
extern DueRules due_rules(FunctionCallInfo fcinfo, int older_than_arg,
						  int hold_grace_arg, TimestampTz as_of,
						  TimestampTz holds_as_of);
extern const char *due_rule_name(const DueRule *rule);
extern void due_require(const Binding *binding, const DueRules *rules);
extern ReadingKey due_first_key(void);
extern void due_move_key(ReadingKey *key, const DueBooking *booking);
extern DueBookings due_read_next(Binding *binding, const DueRule *rule,
								 const ReadingKey *key, int limit,
								 bool read_only);
extern DueBookings due_read_again(Binding *binding, const DueRule *rule,
								  const UuidList *bookings,
								  const UuidList *locked_payments);
extern DueBookings due_read_any_age(Binding *binding,
									const UuidList *bookings);
extern bool due_is_any_behind(Binding *binding, const DueRule *rule,
							  const ReadingKey *key);
extern void due_ask_checks(Binding *binding, DueBookings *due, bool read_only);
extern DueBookings due_with_verdict(const DueBookings *due, Verdict verdict);
extern UuidList due_ids_with_verdict(const DueBookings *due, Verdict verdict);

#endif							/* CUSOWN_DUE_H */
