/*-------------------------------------------------------------------------
 *
 * wall_clock.h
 *	  When it is what o'clock at a business.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CUSOWN_WALL_CLOCK_H
#define CUSOWN_WALL_CLOCK_H

#include "datatype/timestamp.h"
#include "pgtime.h"
#include "utils/date.h"

/* a stretch of time on the clock of a business */
typedef struct WallClockSpan
{
	Timestamp	start;
	int64		length;			/* microseconds, not negative */
} WallClockSpan;

extern pg_tz *wall_clock_zone(const char *name);
extern bool wall_clock_minutes(int64 minutes, int64 *length);
extern bool wall_clock_span(DateADT date, TimeADT start, TimeADT end,
							WallClockSpan *span);
extern char *wall_clock_text(Timestamp wall);
extern bool wall_clock_instant(Timestamp wall, pg_tz *zone,
							   TimestampTz *instant);
extern bool wall_clock_end(const WallClockSpan *span, pg_tz *zone,
						   TimestampTz *end);

#endif							/* CUSOWN_WALL_CLOCK_H */
