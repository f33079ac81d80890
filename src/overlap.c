/*-------------------------------------------------------------------------
 *
 * overlap.c
 *	  Stretches of time for which a business has confirmed more than it can
 *	  serve at once.
 *
 * The confirmed bookings are read once, in the order of business and start, and
 * swept: who is there at a time is kept in a heap by its end.  So memory is
 * taken by what is there at once and by the stretch that is under way, and not
 * by what was read; comparing each booking with each other one is never needed.
 *
 * A booking takes [start, end): one that ends at 11:00 and one that begins then
 * are not there at once.  Its end is its start + the greater of its own
 * duration and its slot's length; a slot whose end is at its start or before it
 * ends the next day.  Times are compared as the clock of the business shows
 * them.  Where slots have absolute times these are compared, in UTC.
 *
 * What has no business, no slot or no times is left out: nobody could say what
 * it overlaps with.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "common/int.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "utils/date.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "overlap.h"
#include "template.h"
#include "wall_clock.h"

/* where the columns of the statement below stand; 0: not bound */
typedef struct OverlapColumns
{
	int			business_id;
	int			id;
	int			slot_id;
	int			date;
	int			start_time;
	int			end_time;
	int			starts_at;
	int			ends_at;
	int			duration;
	int			capacity;
} OverlapColumns;

typedef struct Sweep
{
	OverlapFound found;
	void	   *state;
	OverlapColumns columns;
	MemoryContext context;		/* of what is kept between rows */
	MemoryContext found_context;	/* of what found() allocates */
	bool		has_business;
	Timestamp	at;				/* the sweep has come to */
	OverlapBookings there;		/* at that time: a heap, the first end on top */
	OverlapBookings begun;		/* at that time exactly */
	bool		in_stretch;
	OverlapStretch stretch;		/* under way; business and capacity always */
} Sweep;

/* $1 businesses, or NULL for all */
#define APPOINTMENTS(business) \
	"SELECT " business " AS business_id, b.{bookings.id} AS id," \
	" s.{slots.id} AS slot_id" \
	"[, s.{slots.date} AS date, s.{slots.start_time} AS start_time," \
	" s.{slots.end_time} AS end_time]" \
	"[, s.{slots.starts_at} AS starts_at, s.{slots.ends_at} AS ends_at]" \
	"[, b.{bookings.total_duration}::int8 AS duration]" \
	"[, z.{businesses.concurrent_booking_capacity}::int8 AS capacity]" \
	" FROM {bookings} b JOIN {slots} s ON s.{slots.id} = b.{bookings.slot_id}" \
	"[{?businesses.concurrent_booking_capacity} LEFT JOIN {businesses} z" \
	" ON z.{businesses.id} = " business "]" \
	" WHERE b.{bookings.status} = 'confirmed' AND " business " IS NOT NULL" \
	" AND ($1 IS NULL OR " business " = ANY ($1))" \
	" ORDER BY 1[, s.{slots.date}, s.{slots.start_time}]" \
	"[, s.{slots.starts_at}], b.{bookings.id}"

static const Template by_booking = {
	APPOINTMENTS("b.{bookings.business_id}"),
	1, {UUIDARRAYOID}, true
};

static const Template by_slot = {
	APPOINTMENTS("s.{slots.business_id}"),
	1, {UUIDARRAYOID}, true
};

/* ---------- lists of bookings ---------- */

static void
append(OverlapBookings *list, const OverlapBooking *booking,
	   MemoryContext context)
{
	if (list->count == list->capacity)
	{
		list->capacity = Max(16, list->capacity * 2);
		list->items = list->items == NULL ?
			MemoryContextAlloc(context, list->capacity * sizeof(OverlapBooking)) :
			repalloc_huge(list->items,
						  (Size) list->capacity * sizeof(OverlapBooking));
	}
	list->items[list->count++] = *booking;
}

static void
swap(OverlapBookings *list, int a, int b)
{
	OverlapBooking kept = list->items[a];

	list->items[a] = list->items[b];
	list->items[b] = kept;
}

static void
heap_push(OverlapBookings *heap, const OverlapBooking *booking,
		  MemoryContext context)
{
	int			at = heap->count;

	append(heap, booking, context);
	while (at > 0 && heap->items[at].end < heap->items[(at - 1) / 2].end)
	{
		swap(heap, at, (at - 1) / 2);
		at = (at - 1) / 2;
	}
}

static void
heap_pop(OverlapBookings *heap)
{
	int			at = 0;

	heap->items[0] = heap->items[--heap->count];
	for (;;)
	{
		int			first = at;

		for (int child = 2 * at + 1; child <= 2 * at + 2; child++)
		{
			if (child < heap->count &&
				heap->items[child].end < heap->items[first].end)
				first = child;
		}
		if (first == at)
			return;
		swap(heap, at, first);
		at = first;
	}
}

static int
compare_bookings(const void *a, const void *b)
{
	const OverlapBooking *left = a;
	const OverlapBooking *right = b;

	if (left->start != right->start)
		return left->start < right->start ? -1 : 1;
	return memcmp(&left->id, &right->id, sizeof(pg_uuid_t));
}

/* ---------- the sweep ---------- */

static void
add_to_stretch(Sweep *sweep, const OverlapBookings *bookings)
{
	for (int i = 0; i < bookings->count; i++)
		append(&sweep->stretch.bookings, &bookings->items[i], sweep->context);
	sweep->stretch.most = Max(sweep->stretch.most, sweep->there.count);
}

static void
end_stretch(Sweep *sweep)
{
	MemoryContext caller = MemoryContextSwitchTo(sweep->found_context);
	OverlapStretch *stretch = &sweep->stretch;

	stretch->end = sweep->at;
	qsort(stretch->bookings.items, stretch->bookings.count,
		  sizeof(OverlapBooking), compare_bookings);
	sweep->found(stretch, sweep->state);
	MemoryContextSwitchTo(caller);
	MemoryContextReset(sweep->found_context);
	stretch->bookings.count = 0;
	stretch->most = 0;
	sweep->in_stretch = false;
}

/* all that begins or ends at this time has: only now can it be judged */
static void
settle(Sweep *sweep)
{
	bool		overloaded = sweep->there.count > sweep->stretch.capacity;

	if (overloaded && sweep->in_stretch)
		add_to_stretch(sweep, &sweep->begun);
	else if (overloaded)
	{
		sweep->in_stretch = true;
		sweep->stretch.start = sweep->at;
		add_to_stretch(sweep, &sweep->there);
	}
	else if (sweep->in_stretch)
		end_stretch(sweep);
	sweep->begun.count = 0;
}

static void
move_to(Sweep *sweep, Timestamp time)
{
	if (time <= sweep->at)
		return;
	settle(sweep);
	sweep->at = time;
}

/* ends what ends by that time */
static void
sweep_to(Sweep *sweep, Timestamp time)
{
	while (sweep->there.count > 0 && sweep->there.items[0].end <= time)
	{
		move_to(sweep, sweep->there.items[0].end);
		heap_pop(&sweep->there);
	}
	move_to(sweep, time);
}

static void
end_business(Sweep *sweep)
{
	if (sweep->has_business)
		sweep_to(sweep, DT_NOEND);
	sweep->has_business = false;
}

static void
begin_business(Sweep *sweep, const pg_uuid_t *business, int64 capacity)
{
	if (sweep->has_business &&
		memcmp(&sweep->stretch.business_id, business, sizeof(pg_uuid_t)) == 0)
		return;
	end_business(sweep);
	sweep->has_business = true;
	sweep->stretch.business_id = *business;
	sweep->stretch.capacity = capacity;
	sweep->at = DT_NOBEGIN;
}

/* ---------- reading ---------- */

static void
find_columns(OverlapColumns *columns, TupleDesc desc)
{
	columns->business_id = SPI_fnumber(desc, "business_id");
	columns->id = SPI_fnumber(desc, "id");
	columns->slot_id = SPI_fnumber(desc, "slot_id");
	columns->date = SPI_fnumber(desc, "date");
	columns->start_time = SPI_fnumber(desc, "start_time");
	columns->end_time = SPI_fnumber(desc, "end_time");
	columns->starts_at = SPI_fnumber(desc, "starts_at");
	columns->ends_at = SPI_fnumber(desc, "ends_at");
	columns->duration = SPI_fnumber(desc, "duration");
	columns->capacity = SPI_fnumber(desc, "capacity");
}

/* false for null, or for a column that is not bound */
static bool
read_column(const StreamedRow *row, int column, Datum *value)
{
	bool		isnull;

	if (column <= 0)
		return false;
	*value = slot_getattr(row->slot, column, &isnull);
	return !isnull;
}

static bool
read_wall_clock(const StreamedRow *row, const OverlapColumns *columns,
				WallClockSpan *span)
{
	Datum		date;
	Datum		start;
	Datum		end;

	return read_column(row, columns->date, &date) &&
		read_column(row, columns->start_time, &start) &&
		read_column(row, columns->end_time, &end) &&
		wall_clock_span(DatumGetDateADT(date), DatumGetTimeADT(start),
						DatumGetTimeADT(end), span);
}

static bool
read_absolute(const StreamedRow *row, const OverlapColumns *columns,
			  WallClockSpan *span)
{
	Datum		start;
	Datum		end;

	if (!read_column(row, columns->starts_at, &start) ||
		!read_column(row, columns->ends_at, &end) ||
		TIMESTAMP_NOT_FINITE(DatumGetTimestamp(start)) ||
		TIMESTAMP_NOT_FINITE(DatumGetTimestamp(end)))
		return false;
	span->start = DatumGetTimestamp(start);
	span->length = DatumGetTimestamp(end) - span->start;
	return span->length >= 0;
}

/* false where the row has no times */
static bool
read_booking(const StreamedRow *row, const OverlapColumns *columns,
			 OverlapBooking *booking)
{
	WallClockSpan span;
	Datum		value;
	int64		duration;

	if (!(columns->date > 0 ? read_wall_clock(row, columns, &span) :
		  read_absolute(row, columns, &span)) ||
		!wall_clock_minutes(read_column(row, columns->duration, &value) ?
							DatumGetInt64(value) : 0, &duration) ||
		pg_add_s64_overflow(span.start, Max(span.length, duration),
							&booking->end) ||
		booking->end == span.start)
		return false;
	booking->start = span.start;
	if (!read_column(row, columns->id, &value))
		return false;
	booking->id = *DatumGetUUIDP(value);
	if (!read_column(row, columns->slot_id, &value))
		return false;
	booking->slot_id = *DatumGetUUIDP(value);
	return true;
}

/* a business that says nothing, or nothing that makes sense, serves one at once */
static int64
read_capacity(const StreamedRow *row, const OverlapColumns *columns)
{
	Datum		value;

	if (!read_column(row, columns->capacity, &value))
		return 1;
	return Max(DatumGetInt64(value), 1);
}

/* TemplateRow */
static void
sweep_row(const StreamedRow *row, void *state)
{
	Sweep	   *sweep = state;
	OverlapBooking booking;
	Datum		business;

	CHECK_FOR_INTERRUPTS();
	if (sweep->columns.id == 0)
		find_columns(&sweep->columns, row->desc);
	if (!read_column(row, sweep->columns.business_id, &business))
		return;
	begin_business(sweep, DatumGetUUIDP(business),
				   read_capacity(row, &sweep->columns));
	if (!read_booking(row, &sweep->columns, &booking))
		return;
	sweep_to(sweep, booking.start);
	heap_push(&sweep->there, &booking, sweep->context);
	append(&sweep->begun, &booking, sweep->context);
}

/* whether the binding tells whose a booking is */
bool
overlap_knows_business(const Binding *binding)
{
	return binding_column(binding, "bookings", "business_id") != NULL ||
		binding_column(binding, "slots", "business_id") != NULL;
}

/*
 * Calls back for each overloaded stretch of the businesses, NULL for all, in the
 * order of business and time.  What found() is given goes when it returns, and so
 * does what it allocates.  Writes and locks nothing; read_only: under the
 * snapshot of the caller's statement.
 */
void
overlap_find(Binding *binding, const UuidList *businesses, bool read_only,
			 OverlapFound found, void *state)
{
	Sweep		sweep = {0};
	bool		in_bookings = binding_column(binding, "bookings",
											 "business_id") != NULL;
	Datum		values[1] = {0};

	sweep.found = found;
	sweep.state = state;
	sweep.context = AllocSetContextCreate(CurrentMemoryContext,
										  "cusown_ops sweep",
										  ALLOCSET_DEFAULT_SIZES);
	sweep.found_context = AllocSetContextCreate(sweep.context,
												"cusown_ops stretch",
												ALLOCSET_DEFAULT_SIZES);
	if (businesses != NULL)
		values[0] = uuid_list_datum(businesses);
	template_stream(binding, in_bookings ? &by_booking : &by_slot, values,
					businesses == NULL ? "n" : NULL, read_only, sweep_row, &sweep);
	end_business(&sweep);
	MemoryContextDelete(sweep.context);
}
