/*-------------------------------------------------------------------------
 *
 * booking.h
 *	  What the verbs that decide about one booking have in common.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CUSOWN_BOOKING_H
#define CUSOWN_BOOKING_H

#include "fmgr.h"
#include "nodes/pg_list.h"
#include "utils/elog.h"
#include "utils/uuid.h"

#include "audit.h"
#include "binding.h"
#include "compat.h"
#include "template.h"

#define BOOKING_SOURCE "manual"

/* a status of the application, copied: it outlives the statement */
typedef struct Status
{
	char		label[NAMEDATALEN];
} Status;

/* what a verb does to a booking */
typedef struct Decision
{
	const char *event;			/* of the state machine */
	const char *to_status;
	const char *action;			/* of the audit row */
	const char *slot_event;
	const char *slot_status;	/* what the slot may become */
	const Template *change;
} Decision;

/* one call */
typedef struct Call Call;

struct Call
{
	const char *verb;			/* the function's name without its prefix */
	pg_uuid_t	id;
	const pg_uuid_t *actor;		/* NULL: the system */
	const pg_uuid_t *payment;	/* NULL: none is given */
	const char *actor_type;		/* customer, owner or system */
	const char *reason;			/* or NULL */
	Decision	decision;
	/* steps of a verb, in this order; only decide() is needed */
	void		(*prepare) (Call *call);	/* before the locks */
	void		(*choose) (Call *call); /* decision depends on the status;
										 * there is no asking again */
	void		(*decide) (Call *call); /* raises, or sets changes_slot */
	void		(*refused) (const Call *call, const ErrorData *error);
	Binding    *binding;
	/* what was found under the locks */
	Status		from_status;
	bool		has_slot_id;
	pg_uuid_t	slot_id;
	bool		has_slot;
	Status		slot_was;
	bool		is_undone;		/* its one undo was used */
	bool		is_paid;		/* a completed payment is there */
	bool		has_confirmed;
	pg_uuid_t	confirmed;		/* another one that is confirmed on the slot */
	bool		has_holder;
	pg_uuid_t	holder;			/* whose hold on the slot has not ended */
	List	   *one_confirmed;	/* the indexes of confirm.c, by name */
	/* what was made of it */
	bool		changes_slot;
	bool		changed;
	Status		to_status;
	Status		slot_status;
};

/*
 * The change: $1 booking, $2 the status that it has, $3 whether its slot
 * changes too, $4 the status of that, $5 actor, $6 what the actor is, $7 action,
 * $8 reason, $9 payment.
 */
#define CHANGE_BOOKING(status, columns) \
	"WITH changed AS (UPDATE {bookings} b SET" \
	" {bookings.status} := '" status "'" columns \
	"[, {bookings.updated_at} := pg_catalog.now()]" \
	" WHERE b.{bookings.id} = $1 AND b.{bookings.status}::text = $2" \
	" RETURNING b.{bookings.id} AS id, b.{bookings.slot_id} AS slot_id),"

#define CHANGE_SLOT(status) \
	" slot AS (UPDATE {slots} s SET {slots.status} := '" status "'" \
	"[, {slots.reserved_until} := NULL]" \
	"[, {slots.updated_at} := pg_catalog.now()]" \
	" FROM changed c WHERE $3 AND s.{slots.id} = c.slot_id" \
	" RETURNING s.{slots.id} AS id),"

#define WRITE_LIFECYCLE(action, column, value) \
	"[ lifecycle AS (INSERT INTO {booking_lifecycle_audit}" \
	" ({booking_lifecycle_audit.booking_id}," \
	" {booking_lifecycle_audit.old_slot_id}," \
	" {booking_lifecycle_audit.action_type}," \
	" {booking_lifecycle_audit.actor_type}," \
	" {booking_lifecycle_audit.created_at}" column ")" \
	" SELECT c.id, c.slot_id, '" action "', $6, pg_catalog.now()" value \
	" FROM changed c),]"

#define AUDIT_CHANGE(status, data, slot_action, slot_status) \
	" audit_row (" AUDIT_ROW ", actor) AS (" \
	"SELECT $7, 'booking'::text, c.id," \
	" pg_catalog.jsonb_build_object('status', $2)," \
	" pg_catalog.jsonb_build_object('status', '" status "'" data ")," \
	" pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object(" \
	"'actor', $6, 'source', '" BOOKING_SOURCE "', 'reason', $8," \
	" 'payment_id', $9, 'from', $2, 'to', '" status "'))," \
	" 'booking " status "'::text, $5 FROM changed c" \
	" UNION ALL SELECT '" slot_action "', 'slot', s.id," \
	" pg_catalog.jsonb_build_object('status', $4)," \
	" pg_catalog.jsonb_build_object('status', '" slot_status "')," \
	" pg_catalog.jsonb_build_object('actor', $6," \
	" 'source', '" BOOKING_SOURCE "', 'rule', $7," \
	" 'from', $4, 'to', '" slot_status "')," \
	" 'slot " slot_status "', $5 FROM slot s)" \
	AUDIT_INSERT_AS("$6", "[, {audit_logs.actor_id}]", \
					"[{?audit_logs.actor_id}, r.actor]")

#define CHANGE_ARGS \
	9, {UUIDOID, TEXTOID, BOOLOID, TEXTOID, UUIDOID, TEXTOID, TEXTOID, TEXTOID, UUIDOID}

extern void booking_begin(FunctionCallInfo fcinfo, Call *call,
						  const char *function);
extern void booking_take_actor(FunctionCallInfo fcinfo, int arg, Call *call);
extern char *booking_text_or_null(FunctionCallInfo fcinfo, int arg);
extern Datum booking_run(FunctionCallInfo fcinfo, Call *call,
						 int dry_run_arg);
extern uint64 booking_execute(Call *call, const Template *statement,
							  const pg_uuid_t *id);
extern bool booking_is_holder(const Call *call);
extern bool booking_knows_confirmed(const Call *call);
extern void booking_decide_to_leave(Call *call);
pg_noreturn extern void booking_not_allowed(const Call *call,
											const char *detail,
											const char *hint);

#endif							/* CUSOWN_BOOKING_H */
