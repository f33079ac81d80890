/*-------------------------------------------------------------------------
 *
 * wall_clock.c
 *	  When it is what o'clock at a business.
 *
 * An application keeps a slot's date and time as the clock on the wall of its
 * business shows them.  What that is in absolute time depends on the business's
 * time zone alone: not on the session's TimeZone, nor, as SQL's AT TIME ZONE
 * does, on its timezone_abbreviations; and a zone that is not known is an
 * answer, not an error.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/int.h"
#include "miscadmin.h"
#include "utils/date.h"
#include "utils/datetime.h"
#include "utils/timestamp.h"

#include "wall_clock.h"

/* zones are at most this far ahead of UTC or behind it */
#define MAX_ZONE_HOURS 14

/* those that the files of the time zones have, beside Etc/GMT+5 and the like */
static const char *const names_with_digits[] = {
	"EST5EDT", "CST6CDT", "MST7MDT", "PST8PDT", "GMT0", "GMT+0", "GMT-0"
};

/*
 * Not a POSIX zone, which the server makes up from any text like UTC+5, and
 * whose sign means the opposite of what one expects.  It cannot do without a
 * digit.
 */
static bool
is_name(const char *zone)
{
	static const char etc[] = "Etc/GMT";

	if (strpbrk(zone, "0123456789") == NULL)
		return true;
	if (pg_strncasecmp(zone, etc, strlen(etc)) == 0)
	{
		const char *hours = zone + strlen(etc);

		return strlen(hours) <= 3 &&
			strspn(hours, "+-0123456789") == strlen(hours) &&
			abs(atoi(hours)) <= MAX_ZONE_HOURS;
	}
	for (int i = 0; i < lengthof(names_with_digits); i++)
	{
		if (pg_strcasecmp(zone, names_with_digits[i]) == 0)
			return true;
	}
	return false;
}

/* UTC where no zone is given, NULL where it is not known */
pg_tz *
wall_clock_zone(const char *name)
{
	pg_tz	   *zone;

	if (name == NULL || name[0] == '\0')
		name = "UTC";
	zone = is_name(name) ? pg_tzset(name) : NULL;
	/* one with leap seconds would be off by them */
	return zone != NULL && pg_tz_acceptable(zone) ? zone : NULL;
}

/* what a booking asks for, in microseconds; false when beyond all time */
bool
wall_clock_minutes(int64 minutes, int64 *length)
{
	*length = 0;
	return minutes < 0 ||
		!pg_mul_s64_overflow(minutes, USECS_PER_MINUTE, length);
}

/*
 * A slot that begins on a date, from start to end; one that ends at its start or
 * before it ends the next day.  SQL's sum of date and time of day may raise;
 * here it is false when beyond all time.
 */
bool
wall_clock_span(DateADT date, TimeADT start, TimeADT end, WallClockSpan *span)
{
	if (DATE_NOT_FINITE(date) ||
		pg_mul_s64_overflow(date, USECS_PER_DAY, &span->start) ||
		pg_add_s64_overflow(span->start, start, &span->start))
		return false;
	span->length = end - start;
	if (span->length <= 0)
		span->length += USECS_PER_DAY;
	return true;
}

/* for a human; ISO, whatever the session's DateStyle */
char *
wall_clock_text(Timestamp wall)
{
	struct pg_tm tm;
	fsec_t		fsec;
	char		shown[MAXDATELEN + 1];

	if (TIMESTAMP_NOT_FINITE(wall) ||
		timestamp2tm(wall, NULL, &tm, &fsec, NULL, NULL) != 0)
		return pstrdup("an unknown time");
	EncodeDateTime(&tm, fsec, false, 0, NULL, USE_ISO_DATES, shown);
	return pstrdup(shown);
}

/*
 * The moment at which the clock shows wall, the later one when it does so twice,
 * as in autumn; false when that is beyond all time.
 */
bool
wall_clock_instant(Timestamp wall, pg_tz *zone, TimestampTz *instant)
{
	struct pg_tm tm;
	fsec_t		fsec;
	int			offset;

	if (!IS_VALID_TIMESTAMP(wall) ||
		timestamp2tm(wall, NULL, &tm, &fsec, NULL, NULL) != 0)
		return false;
	offset = DetermineTimeZoneOffset(&tm, zone);
	return tm2timestamp(&tm, fsec, &offset, instant) == 0;
}

/*
 * When span is over, by whichever reading is later: when the clock shows its
 * end, or when its length has passed since its start.  They differ in a night
 * in which the clock is put forward or back.  False when beyond all time.
 */
bool
wall_clock_end(const WallClockSpan *span, pg_tz *zone, TimestampTz *end)
{
	Timestamp	wall_end;
	TimestampTz start;
	TimestampTz shown;
	TimestampTz elapsed;

	if (pg_add_s64_overflow(span->start, span->length, &wall_end) ||
		!wall_clock_instant(span->start, zone, &start) ||
		!wall_clock_instant(wall_end, zone, &shown) ||
		pg_add_s64_overflow(start, span->length, &elapsed))
		return false;
	*end = Max(shown, elapsed);
	return true;
}
