/*-------------------------------------------------------------------------
 *
 * turn.h
 *	  What is done at most once in an interval, whoever asks.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CUSOWN_TURN_H
#define CUSOWN_TURN_H

#include "datatype/timestamp.h"

typedef enum TurnKind
{
	TURN_LAZY_EXPIRE,			/* per application schema */
	TURN_LAZY_COMPLAINT,		/* of what has no application; schema "" */
} TurnKind;

extern bool turn_is_shared(void);
extern bool turn_is_over(TimestampTz taken_at, TimestampTz now, int interval);
extern bool turn_is_due(TurnKind kind, const char *app_schema, int interval);
extern bool turn_take(TurnKind kind, const char *app_schema, int interval,
					  TimestampTz *taken_at);
extern void turn_was_taken(TurnKind kind, const char *app_schema,
						   TimestampTz taken_at);

#endif							/* CUSOWN_TURN_H */
