/*-------------------------------------------------------------------------
 *
 * appointment.c
 *	  When the appointment of a booking is over.
 *
 * An appointment ends at its start + the greater of the booking's own duration
 * and the slot's length.  Where slots have dates and times of day these are
 * read on the clock of the business (wall_clock.c); a time zone that is not
 * known counts as UTC.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/int.h"
#include "utils/date.h"
#include "utils/timestamp.h"

#include "appointment.h"
#include "template.h"
#include "wall_clock.h"

static bool
read_timestamp(uint64 row, const char *column, int64 *value)
{
	bool		isnull;
	Datum		datum = template_column(row, column, &isnull);

	*value = isnull ? 0 : DatumGetTimestamp(datum);
	return !isnull && !TIMESTAMP_NOT_FINITE(*value);
}

/*
 * What the booking itself says, in microseconds; 0 where it says nothing.  False
 * where that is beyond all time.
 */
static bool
read_own_duration(uint64 row, int64 *duration)
{
	bool		isnull;
	Datum		minutes = template_column(row, "duration", &isnull);

	return wall_clock_minutes(isnull ? 0 : DatumGetInt64(minutes), duration);
}

static bool
read_wall_clock(uint64 row, WallClockSpan *span)
{
	bool		no_date;
	bool		no_start;
	bool		no_end;
	DateADT		date = DatumGetDateADT(template_column(row, "date", &no_date));
	TimeADT		start = DatumGetTimeADT(template_column(row, "start_time",
														&no_start));
	TimeADT		end = DatumGetTimeADT(template_column(row, "end_time", &no_end));

	return !no_date && !no_start && !no_end &&
		wall_clock_span(date, start, end, span);
}

/* a slot with times of day, on the clock of its business */
static bool
read_wall_clock_end(uint64 row, TimestampTz *end)
{
	char	   *name = template_text(row, "zone");
	pg_tz	   *zone = wall_clock_zone(name);
	WallClockSpan span;
	int64		duration;

	if (!read_wall_clock(row, &span) || !read_own_duration(row, &duration))
		return false;
	span.length = Max(span.length, duration);
	return wall_clock_end(&span, zone == NULL ? wall_clock_zone(NULL) : zone,
						  end);
}

/* a slot with absolute times; one that ends before it begins has no end */
static bool
read_absolute_end(uint64 row, TimestampTz *end)
{
	TimestampTz start;
	TimestampTz slot_end;
	TimestampTz own_end;
	int64		duration;

	if (!read_timestamp(row, "starts_at", &start) ||
		!read_timestamp(row, "ends_at", &slot_end) || slot_end < start ||
		!read_own_duration(row, &duration) ||
		pg_add_s64_overflow(start, duration, &own_end))
		return false;
	*end = Max(slot_end, own_end);
	return true;
}

/*
 * Of a row with APPOINTMENT_COLUMNS.  False where it has no end, or one beyond
 * all time.
 */
bool
appointment_end(const Binding *binding, uint64 row, TimestampTz *end)
{
	if (binding_column(binding, "slots", "date") != NULL)
		return read_wall_clock_end(row, end);
	return read_absolute_end(row, end);
}
