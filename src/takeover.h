/*-------------------------------------------------------------------------
 *
 * takeover.h
 *	  Which jobs the worker runs instead of the scheduler.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CUSOWN_TAKEOVER_H
#define CUSOWN_TAKEOVER_H

#include "nodes/pg_list.h"

/* a job of an application that needs the worker, one way or the other */
typedef struct Takeover
{
	char	   *app_schema;
	char	   *job;
	char	   *last_success;	/* as text, or NULL */
	char	   *waits;			/* why it is not to be run now, or NULL */
	int64		every_ms;		/* its interval, at most an hour */
	bool		covers;			/* the worker runs it already */
	bool		is_over;		/* the scheduler is back, or it is disabled */
	bool		is_disabled;
	bool		is_subscribed;	/* it is the publisher's to run */
} Takeover;

extern List *takeover_read(void);
extern List *takeover_read_evaluations(void);
extern void takeover_tell_failed(const Takeover *takeover, const char *source,
								 const char *description);
extern void takeover_tell_recovered(const Takeover *takeover,
									const char *source,
									const char *description);
extern void takeover_end_outages(const char *app_schema, const char *source);
extern void takeover_begin(const Takeover *takeover);
extern void takeover_end(const Takeover *takeover);

#endif							/* CUSOWN_TAKEOVER_H */
