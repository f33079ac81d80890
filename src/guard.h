/*-------------------------------------------------------------------------
 *
 * guard.h
 *	  Keeps statuses from being changed otherwise than they may be.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CUSOWN_GUARD_H
#define CUSOWN_GUARD_H

#include "binding.h"
#include "template.h"
#include "uuid_list.h"

/* the arguments of a guard's trigger, in this order */
typedef enum GuardArg
{
	GUARD_MACHINE,				/* of state_machine.c */
	GUARD_MODE,
	GUARD_APP_SCHEMA,
	GUARD_ID_COLUMN,
	GUARD_STATUS_COLUMN,
	GUARD_NARGS,
} GuardArg;

/* modes in which there are triggers */
#define GUARD_OFF "off"
#define GUARD_WARN "warn"
#define GUARD_TRANSITIONS "transitions"
#define GUARD_FUNCTIONS "functions"

extern void guard_init(void);
extern uint64 guard_execute(Binding *binding, const char *relation,
							const UuidList *ids, const Template *statement,
							const Datum *values, const char *nulls);
extern void guard_remove(const char *app_schema);
extern void guard_follow(const char *app_schema);
extern int	guard_weakest(const char *app_schema);

#endif							/* CUSOWN_GUARD_H */
