/*-------------------------------------------------------------------------
 *
 * no_show.c
 *	  Confirmed bookings whose appointment is over, and nobody said how it went.
 *
 * An appointment ends at its start + the greater of the booking's own duration
 * and the slot's length.  Where slots have dates and times of day these are
 * read on the clock of the business (wall_clock.c); a time zone that is not
 * known counts as UTC and goes to the worklist.
 *
 * Bookings are read in the order of their ids, in windows, by a coarse
 * condition in SQL, and judged here.  Those that are over are locked FOR UPDATE
 * SKIP LOCKED, read and judged again in a new statement, and exactly those are
 * marked.  Their slots are not changed.  But a row of the application's lifecycle
 * audit refers to them, and its foreign key would wait for whoever holds one:
 * where there is that table, they are locked FOR KEY SHARE SKIP LOCKED.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "common/int.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/date.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "attention.h"
#include "audit.h"
#include "change.h"
#include "cusown_ops.h"
#include "job.h"
#include "row_check.h"
#include "split.h"
#include "template.h"
#include "uuid_list.h"
#include "verb.h"
#include "wall_clock.h"

/* no clock is further ahead of UTC, counted generously */
#define FURTHEST_AHEAD_DAYS 2

/* a confirmed booking that is not marked */
typedef struct Appointment
{
	pg_uuid_t	id;
	pg_uuid_t	slot_id;
	bool		is_over;
	char	   *refused_by;		/* CHECK that forbids to mark it, or NULL */
} Appointment;

typedef struct Appointments
{
	Appointment *items;
	int			count;
} Appointments;

/* one call of cusown_mark_no_show(), or one run of the job */
typedef struct NoShow
{
	Binding    *binding;
	const char *source;
	TimestampTz over_before;	/* appointments that ended by then are marked */
	TimestampTz as_of;
	int64		after_seconds;
	int64		max_rows;
	int			batch_size;		/* candidates of a window */
	bool		has_key;
	pg_uuid_t	key;			/* the last booking looked at */
	Split		split;			/* of the transaction that is under way */
	/* results */
	int64		marked;
	int64		attention;
	int64		looked_at;
	bool		more;
} NoShow;

static const AttentionKind unmarkable = {
	"unmarkable", ENTITY_BOOKING, "cron_failure"
};

static const AttentionKind no_show_failed = {
	"no_show_failed", ENTITY_BOOKING, "cron_failure"
};

static const AttentionKind unknown_time_zone = {
	"unknown_time_zone", ENTITY_BUSINESS, "cron_failure"
};

static const AttentionKind *const kinds_of_bookings[] = {
	&unmarkable, &no_show_failed, NULL
};

static const AttentionKind *const kinds_of_businesses[] = {
	&unknown_time_zone, NULL
};

static const char *const relations_used[] = {
	"bookings", "slots", "businesses", "audit_logs", "booking_lifecycle_audit",
	NULL
};

PG_FUNCTION_INFO_V1(cusown_mark_no_show);

/* one of the two columns is bound */
#define BOOKING_IS_UNMARKED \
	"true[ AND b.{bookings.no_show} IS NOT TRUE]" \
	"[ AND b.{bookings.no_show_marked_at} IS NULL]"

/* as much of it as is longer than any name that is known */
#define ZONE "pg_catalog.left(z.{businesses.timezone}, 256)"

#define APPOINTMENT \
	"SELECT b.{bookings.id} AS id, b.{bookings.slot_id} AS slot_id" \
	"[, s.{slots.date} AS date, s.{slots.start_time} AS start_time," \
	" s.{slots.end_time} AS end_time]" \
	"[, s.{slots.starts_at} AS starts_at, s.{slots.ends_at} AS ends_at]" \
	"[, b.{bookings.total_duration}::int8 AS duration]" \
	"[, " ZONE " AS zone]" \
	" FROM {bookings} b" \
	" JOIN {slots} s ON s.{slots.id} = b.{bookings.slot_id}" \
	"[{?businesses.timezone} LEFT JOIN {businesses} z" \
	" ON z.{businesses.id} = COALESCE([b.{bookings.business_id}, ]" \
	"[s.{slots.business_id}, ]NULL::uuid)]" \
	" WHERE " BOOKING_IS_UNMARKED

/* for statements that are given ids: see BOOKING_IS_PENDING */
#define BOOKING_IS_CONFIRMED "(b.{bookings.status} = 'confirmed') IS TRUE"

/*
 * $1 the last date, $2 the last moment that can be over, $3 the booking to read
 * on behind, $4 how many
 */
static const Template next_appointments = {
	APPOINTMENT " AND b.{bookings.status} = 'confirmed'"
	"[ AND s.{slots.date} <= $1][ AND s.{slots.starts_at} <= $2]"
	" AND ($3 IS NULL OR b.{bookings.id} > $3)"
	" ORDER BY b.{bookings.id} LIMIT $4",
	4, {DATEOID, TIMESTAMPTZOID, UUIDOID, INT8OID}
};

static const Template appointments_again = {
	APPOINTMENT " AND b.{bookings.id} = ANY ($1) AND " BOOKING_IS_CONFIRMED
	" ORDER BY b.{bookings.id}",
	1, {UUIDARRAYOID}
};

/* a pair counts only whole */
static const Template lock_bookings = {
	"SELECT b.{bookings.id} AS id FROM {bookings} b"
	" JOIN {slots} s ON s.{slots.id} = b.{bookings.slot_id}"
	" WHERE b.{bookings.id} = ANY ($1) AND " BOOKING_IS_CONFIRMED
	" FOR UPDATE OF b SKIP LOCKED"
	"[{?booking_lifecycle_audit} FOR KEY SHARE OF s SKIP LOCKED]",
	1, {UUIDARRAYOID}
};

/* $1 bookings, $2 source, $3 after in seconds */
static const Template mark = {
	"WITH marked AS (UPDATE {bookings} b SET "
	"[{bookings.no_show} := true]"
	"[{?bookings.no_show}{?bookings.no_show_marked_at}, ]"
	"[{bookings.no_show_marked_at} := pg_catalog.now()]"
	"[, {bookings.no_show_marked_by} := 'system']"
	"[, {bookings.updated_at} := pg_catalog.now()]"
	" WHERE b.{bookings.id} = ANY ($1) AND " BOOKING_IS_CONFIRMED
	" AND " BOOKING_IS_UNMARKED
	" RETURNING b.{bookings.id} AS id, b.{bookings.slot_id} AS slot_id),"
	"[ lifecycle AS (INSERT INTO {booking_lifecycle_audit}"
	" ({booking_lifecycle_audit.booking_id},"
	" {booking_lifecycle_audit.old_slot_id},"
	" {booking_lifecycle_audit.action_type},"
	" {booking_lifecycle_audit.actor_type},"
	" {booking_lifecycle_audit.created_at})"
	" SELECT m.id, m.slot_id, 'no_show', 'system', pg_catalog.now()"
	" FROM marked m),]"
	" audit_row (" AUDIT_ROW ") AS ("
	"SELECT 'booking_no_show'::text, 'booking'::text, m.id,"
	" pg_catalog.jsonb_build_object('status', 'confirmed', 'no_show', false),"
	" pg_catalog.jsonb_build_object('status', 'confirmed', 'no_show', true),"
	" pg_catalog.jsonb_build_object('actor', 'system', 'source', $2,"
	" 'rule', 'appointment_over', 'after_seconds', $3,"
	" 'from', 'confirmed', 'to', 'no_show'),"
	" 'customer did not come'::text FROM marked m)"
	AUDIT_INSERT,
	3, {UUIDARRAYOID, TEXTOID, INT8OID}
};

/* of the bookings $1 that are ours by now, and were not marked: what is */
static const Template count_changed = {
	"SELECT pg_catalog.count(*) AS changed FROM {bookings} b"
	" WHERE b.{bookings.id} = ANY ($1) AND NOT (" BOOKING_IS_UNMARKED ")",
	1, {UUIDARRAYOID}
};

static const Template zones_in_use = {
	"SELECT DISTINCT " ZONE " AS zone FROM {businesses} z",
	0, {0}
};

/* $1 zones, $2 how many */
static const Template businesses_in_zones = {
	"SELECT z.{businesses.id} AS id FROM {businesses} z"
	" WHERE " ZONE " = ANY ($1)"
	" ORDER BY z.{businesses.id} LIMIT $2",
	2, {TEXTARRAYOID, INT8OID}
};

static const Template zones_of = {
	"SELECT z.{businesses.id} AS id, " ZONE " AS zone"
	" FROM {businesses} z WHERE z.{businesses.id} = ANY ($1)",
	1, {UUIDARRAYOID}
};

/* what is put into a booking */
static const ProposedChange marking = {
	"bookings",
	{
		"SELECT b.tableoid, b.* FROM {bookings} b WHERE b.{bookings.id} = ANY ($1)",
		1, {UUIDARRAYOID}
	},
	4,
	{
		{"no_show", "true"},
		{"no_show_marked_at", NULL},
		{"no_show_marked_by", "system"},
		{"updated_at", NULL}
	}
};

/* ---------- when an appointment is over ---------- */

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

static Appointments
read_appointments(const NoShow *no_show, uint64 rows)
{
	bool		has_dates = binding_column(no_show->binding, "slots", "date") != NULL;
	Appointments appointments = {palloc0(Max(rows, 1) * sizeof(Appointment)), rows};

	for (uint64 row = 0; row < rows; row++)
	{
		Appointment *appointment = &appointments.items[row];
		TimestampTz end;
		bool		has_end;

		template_uuid(row, "id", &appointment->id);
		template_uuid(row, "slot_id", &appointment->slot_id);
		has_end = has_dates ? read_wall_clock_end(row, &end) :
			read_absolute_end(row, &end);
		appointment->is_over = has_end && end <= no_show->over_before;
	}
	SPI_freetuptable(SPI_tuptable);
	return appointments;
}

/* the latest date on any clock at that moment, in days of PostgreSQL */
static DateADT
latest_date(TimestampTz moment)
{
	int64		days = moment / USECS_PER_DAY + FURTHEST_AHEAD_DAYS;

	return (DateADT) Min(Max(days, DATETIME_MIN_JULIAN - POSTGRES_EPOCH_JDATE),
						 DATE_END_JULIAN - POSTGRES_EPOCH_JDATE - 1);
}

static Appointments
read_next(const NoShow *no_show, int limit)
{
	Datum		values[4];
	char		nulls[] = "    ";

	values[0] = DateADTGetDatum(latest_date(no_show->over_before));
	values[1] = TimestampTzGetDatum(no_show->over_before);
	values[2] = UUIDPGetDatum(&no_show->key);
	nulls[2] = no_show->has_key ? ' ' : 'n';
	values[3] = Int64GetDatum(limit);
	return read_appointments(no_show,
							 template_execute(no_show->binding,
											  &next_appointments, values,
											  nulls, false));
}

static Appointments
read_again(const NoShow *no_show, const UuidList *ids)
{
	Datum		values[1];

	values[0] = uuid_list_datum(ids);
	return read_appointments(no_show,
							 template_execute(no_show->binding,
											  &appointments_again, values,
											  NULL, false));
}

/* of those that are over */
static UuidList
ids_over(const Appointments *appointments)
{
	UuidList	ids = {0};

	for (int i = 0; i < appointments->count; i++)
	{
		if (appointments->items[i].is_over)
			uuid_list_append(&ids, &appointments->items[i].id);
	}
	return ids;
}

static void
ask_checks(Binding *binding, Appointments *appointments)
{
	UuidList	ids = ids_over(appointments);
	ListCell   *lc;

	foreach(lc, row_check_refused(binding, &marking, &ids, false))
	{
		RefusedRow *refused = lfirst(lc);

		for (int i = 0; i < appointments->count; i++)
		{
			if (memcmp(&appointments->items[i].id, &refused->id,
					   sizeof(pg_uuid_t)) == 0)
				appointments->items[i].refused_by = refused->constraint;
		}
	}
}

/* ---------- the worklist ---------- */

/*
 * Of bookings whose appointment is over, however long ago: one that was moved is
 * no case any more.  What a trigger refused is known only by trying again.
 */
static void
still_there(Binding *binding, const AttentionKind *kind, const UuidList *ids,
			UuidList *there)
{
	NoShow		by_now = {.binding = binding};
	Appointments unmarked;

	by_now.over_before = GetCurrentTransactionStartTimestamp();
	unmarked = read_again(&by_now, ids);

	if (kind == &unmarkable)
		ask_checks(binding, &unmarked);
	for (int i = 0; i < unmarked.count; i++)
	{
		if (unmarked.items[i].is_over &&
			(kind != &unmarkable || unmarked.items[i].refused_by != NULL))
			uuid_list_append(there, &unmarked.items[i].id);
	}
}

static void
still_unknown(Binding *binding, const AttentionKind *kind, const UuidList *ids,
			  UuidList *there)
{
	Datum		values[1];
	uint64		rows;

	if (binding_column(binding, "businesses", "timezone") == NULL)
		return;
	values[0] = uuid_list_datum(ids);
	rows = template_execute(binding, &zones_of, values, NULL, false);
	for (uint64 row = 0; row < rows; row++)
	{
		pg_uuid_t	id;

		template_uuid(row, "id", &id);
		if (wall_clock_zone(template_text(row, "zone")) == NULL)
			uuid_list_append(there, &id);
	}
	SPI_freetuptable(SPI_tuptable);
}

static Datum
unknown_zones(Binding *binding, int *count)
{
	uint64		rows = template_execute(binding, &zones_in_use, NULL, NULL, false);
	Datum	   *zones = palloc(Max(rows, 1) * sizeof(Datum));

	*count = 0;
	for (uint64 row = 0; row < rows; row++)
	{
		char	   *zone = template_text(row, "zone");

		if (wall_clock_zone(zone) == NULL)
			zones[(*count)++] = CStringGetTextDatum(zone);
	}
	SPI_freetuptable(SPI_tuptable);
	return PointerGetDatum(construct_array(zones, *count, TEXTOID, -1, false,
										   TYPALIGN_INT));
}

static void
find_unknown_zones(Binding *binding, UuidList *ids)
{
	Datum		values[2];
	int			count;

	values[0] = unknown_zones(binding, &count);
	values[1] = Int64GetDatum(CUSOWN_MAX_BATCH_SIZE);
	if (count == 0)
		return;
	uuid_list_append_column(ids, template_execute(binding, &businesses_in_zones,
												  values, NULL, false), "id");
	SPI_freetuptable(SPI_tuptable);
}

/* at the end of a run: these are findings about no row that is locked */
static int64
report_unknown_zones(Binding *binding, TimestampTz as_of)
{
	UuidList	ids = {0};
	UuidList	fresh;
	UuidList	locked = {0};
	AttentionItem *items;

	attention_recheck(binding, &unknown_time_zone, still_unknown);
	if (binding_column(binding, "businesses", "timezone") == NULL)
		return 0;
	find_unknown_zones(binding, &ids);
	fresh = attention_fresh(binding, kinds_of_businesses, &ids, as_of, true);
	attention_lock(binding, ENTITY_BUSINESS, &fresh, &locked);
	items = palloc0(Max(locked.count, 1) * sizeof(AttentionItem));
	for (int i = 0; i < locked.count; i++)
	{
		items[i].entity_id = locked.items[i];
		items[i].finding = "its time zone is not known; its clock is taken for UTC";
	}
	return attention_open(binding, &unknown_time_zone, items, locked.count);
}

static void
report_unmarkable(NoShow *no_show, const Appointments *appointments)
{
	AttentionItem *items = palloc0(Max(appointments->count, 1) *
								   sizeof(AttentionItem));
	int			count = 0;

	for (int i = 0; i < appointments->count; i++)
	{
		const Appointment *appointment = &appointments->items[i];

		if (appointment->refused_by == NULL)
			continue;
		items[count].entity_id = appointment->id;
		items[count].sqlstate = "23514";
		items[count].finding = psprintf("check constraint \"%s\" refuses to mark it",
										appointment->refused_by);
		count++;
	}
	no_show->attention += attention_open(no_show->binding, &unmarkable, items,
										 count);
}

/* ---------- a window ---------- */

/* the bookings of a window that are marked, in the order of the key */
typedef struct Marking
{
	NoShow	   *no_show;
	Appointments appointments;
	AttentionItem *refused;
	int			refused_count;
	int64		changed;		/* bookings */
	int64		audited;		/* their audit rows */
	ChangeBatch recorded;
} Marking;

static int64
read_changed(NoShow *no_show, const Datum *ids)
{
	bool		isnull;
	int64		changed;

	template_execute(no_show->binding, &count_changed, ids, NULL, false);
	changed = DatumGetInt64(template_column(0, "changed", &isnull));
	SPI_freetuptable(SPI_tuptable);
	return changed;
}

/* what the audit rows say was changed, in the words of the change feed */
static int
changes_made(uint64 rows, const Appointments *appointments, Change *changes)
{
	UuidList	changed = {0};
	int			count = 0;

	uuid_list_append_column(&changed, rows, "entity_id");
	for (int i = 0; i < appointments->count; i++)
	{
		const Appointment *appointment = &appointments->items[i];

		if (uuid_list_contains(&changed, &appointment->id))
			change_set(&changes[count++], "booking", &appointment->id,
					   &appointment->slot_id, "confirmed", "no_show");
	}
	return count;
}

/* SplitChange: the change and its audit rows, one statement; the change feed */
static void
mark_some(void *state, int first, int count)
{
	Marking    *marked = state;
	NoShow	   *no_show = marked->no_show;
	Appointments appointments = {marked->appointments.items + first, count};
	UuidList	ids = ids_over(&appointments);
	Change	   *changes = palloc(count * sizeof(Change));
	Datum		values[3];
	uint64		rows;
	int64		changed;

	values[0] = uuid_list_datum(&ids);
	values[1] = CStringGetTextDatum(no_show->source);
	values[2] = Int64GetDatum(no_show->after_seconds);
	rows = template_execute(no_show->binding, &mark, values, NULL, false);
	count = changes_made(rows, &appointments, changes);
	SPI_freetuptable(SPI_tuptable);
	split_fire_deferred(&no_show->split);
	changed = read_changed(no_show, values);
	change_record(no_show->binding, "mark_no_show", no_show->source, changes,
				  count, &marked->recorded);

	marked->changed += changed;
	marked->audited += rows;
	no_show->marked += count;
}

/* SplitRefused */
static void
note_refused(void *state, int row, const ErrorData *error)
{
	Marking    *marked = state;
	AttentionItem *item = &marked->refused[marked->refused_count++];

	item->entity_id = marked->appointments.items[row].id;
	item->sqlstate = pstrdup(unpack_sql_state(error->sqlerrcode));
	item->finding = split_finding(error, "mark it");
}

/* how many of appointments, in the order of the key, are done */
static int
mark_all(NoShow *no_show, const Appointments *appointments)
{
	Marking		marked = {no_show, *appointments};
	int			done;

	marked.refused = palloc0(SPLIT_MAX_TRIES * sizeof(AttentionItem));
	done = split_rows(&no_show->split, no_show->binding, appointments->count,
					  mark_some, note_refused, &marked);
	audit_check(marked.changed, marked.audited);
	change_notify(no_show->binding, "mark_no_show", &marked.recorded);
	no_show->attention += attention_open(no_show->binding, &no_show_failed,
										 marked.refused, marked.refused_count);
	return done;
}

/* those that are over and that no CHECK forbids to mark */
static Appointments
to_mark(const Appointments *appointments)
{
	Appointments some = {palloc(Max(appointments->count, 1) * sizeof(Appointment)), 0};

	for (int i = 0; i < appointments->count; i++)
	{
		const Appointment *appointment = &appointments->items[i];

		if (appointment->is_over && appointment->refused_by == NULL)
			some.items[some.count++] = *appointment;
	}
	return some;
}

/*
 * As many of window as may still be marked; moves the key behind the last one
 * looked at.
 */
static UuidList
choose(NoShow *no_show, const Appointments *window)
{
	UuidList	over = ids_over(window);
	UuidList	fresh = attention_fresh(no_show->binding, kinds_of_bookings, &over,
										no_show->as_of, false);
	UuidList	chosen = {0};
	int64		room = no_show->max_rows - no_show->marked;

	for (int i = 0; i < window->count && chosen.count < room; i++)
	{
		no_show->key = window->items[i].id;
		no_show->has_key = true;
		no_show->looked_at++;
		if (uuid_list_contains(&fresh, &window->items[i].id))
			uuid_list_append(&chosen, &window->items[i].id);
	}
	return chosen;
}

/* the next window begins behind the last booking that is done, if any */
static void
return_to(NoShow *no_show, const NoShow *start, const Appointments *window,
		  const Appointment *last)
{
	no_show->has_key = start->has_key;
	no_show->key = start->key;
	no_show->looked_at = start->looked_at;
	for (int i = 0; last != NULL && i < window->count; i++)
	{
		no_show->key = window->items[i].id;
		no_show->has_key = true;
		no_show->looked_at++;
		if (memcmp(&window->items[i].id, &last->id, sizeof(pg_uuid_t)) == 0)
			break;
	}
}

/* false when nothing is left to look at */
static bool
mark_window(NoShow *no_show)
{
	NoShow		start = *no_show;
	Appointments window = read_next(no_show, no_show->batch_size);
	Appointments decided;
	Appointments marked;
	UuidList	chosen;
	UuidList	locked = {0};
	int			done;

	if (window.count == 0)
		return false;
	chosen = choose(no_show, &window);
	if (chosen.count == 0)
		return true;
	template_ids(no_show->binding, &lock_bookings, &chosen, &locked);
	decided = read_again(no_show, &locked);
	ask_checks(no_show->binding, &decided);
	marked = to_mark(&decided);
	done = mark_all(no_show, &marked);
	report_unmarkable(no_show, &decided);
	if (done < marked.count)
		return_to(no_show, &start, &window,
				  done == 0 ? NULL : &marked.items[done - 1]);
	return true;
}

/* whether a booking that is over is left behind the last one looked at */
static bool
is_any_behind(NoShow *no_show)
{
	for (;;)
	{
		Appointments window = read_next(no_show, no_show->batch_size);

		CHECK_FOR_INTERRUPTS();
		if (window.count == 0)
			return false;
		if (ids_over(&window).count > 0)
			return true;
		no_show->key = window.items[window.count - 1].id;
		no_show->has_key = true;
	}
}

/* ---------- the verb and the job ---------- */

static void
begin(NoShow *no_show, Binding *binding)
{
	no_show->binding = binding;
	verb_check_row_security(binding, relations_used);
	verb_check_unattended(binding, no_show->source);
	if (binding_column(binding, "bookings", "no_show_marked_at") == NULL)
		binding_require(binding, "bookings", "no_show");
	if (binding_column(binding, "slots", "starts_at") == NULL)
		binding_require(binding, "slots", "date");
	attention_recheck(binding, &unmarkable, still_there);
	attention_recheck(binding, &no_show_failed, still_there);
}

static void
mark_body(void *state)
{
	NoShow	   *no_show = state;
	MemoryContext window_context;
	MemoryContext caller;
	bool		goes_on = true;

	begin(no_show, binding_use(relations_used));
	window_context = AllocSetContextCreate(CurrentMemoryContext,
										   "cusown_ops no-show window",
										   ALLOCSET_DEFAULT_SIZES);
	while (goes_on && split_has_tries(&no_show->split) &&
		   no_show->marked < no_show->max_rows)
	{
		CHECK_FOR_INTERRUPTS();
		caller = MemoryContextSwitchTo(window_context);
		goes_on = mark_window(no_show);
		MemoryContextSwitchTo(caller);
		MemoryContextReset(window_context);
	}
	no_show->more = goes_on && is_any_behind(no_show);
	no_show->attention += report_unknown_zones(no_show->binding, no_show->as_of);
}

static void
set_moment(NoShow *no_show, TimestampTz as_of, const Interval *after)
{
	no_show->as_of = as_of;
	no_show->over_before = verb_before(as_of, after);
	no_show->after_seconds = (as_of - no_show->over_before) / USECS_PER_SEC;
}

/*
 * cusown_mark_no_show(after interval DEFAULT '30 minutes',
 *		max_rows integer DEFAULT 500, as_of timestamptz DEFAULT now(),
 *		source text DEFAULT 'manual', dry_run boolean DEFAULT false,
 *		OUT marked bigint, OUT attention bigint, OUT more boolean)
 *
 * Marks confirmed bookings as no-show whose appointment ended at least after
 * ago, unless somebody has marked them already.
 *
 * Errors: as cusown_expire_bookings(); UO001 also where neither no_show nor
 * no_show_marked_at, or no times of slots, are bound; 22004 after is null.
 *
 * Locks: bookings FOR UPDATE SKIP LOCKED; with booking_lifecycle_audit their
 * slots FOR KEY SHARE SKIP LOCKED.
 *
 * Source: runbook "Cron Failure", step 3, for the job mark_no_show.
 */
Datum
cusown_mark_no_show(PG_FUNCTION_ARGS)
{
	NoShow		no_show = {0};
	TimestampTz as_of;
	TupleDesc	desc;
	Datum		values[3];
	bool		nulls[3] = {false};
	bool		dry_run;

	verb_check_transaction("cusown_mark_no_show");
	verb_check_not_null(fcinfo, 0, "after");
	verb_check_interval(PG_GETARG_INTERVAL_P(0), "after");
	no_show.max_rows = verb_max_rows(fcinfo, 1);
	no_show.source = verb_source(fcinfo, 3);
	dry_run = verb_dry_run(fcinfo, 4);
	as_of = verb_as_of(fcinfo, 2);
	verb_check_as_of(as_of, dry_run);
	if (!dry_run)
		as_of = Min(as_of, GetCurrentTimestamp());
	set_moment(&no_show, as_of, PG_GETARG_INTERVAL_P(0));
	no_show.batch_size = split_window_size(no_show.max_rows);
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	verb_run(mark_body, &no_show, dry_run);

	values[0] = Int64GetDatum(no_show.marked);
	values[1] = Int64GetDatum(no_show.attention);
	values[2] = BoolGetDatum(no_show.more);
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values,
											 nulls));
}

static void
begin_run(NoShow *no_show, const JobRun *run)
{
	Interval	after = {0};

	after.time = 30 * USECS_PER_MINUTE;
	set_moment(no_show, run->as_of, &after);
	no_show->source = run->source;
	no_show->max_rows = PG_INT64_MAX;
	no_show->batch_size = run->batch_size;
	begin(no_show, run->binding);
}

/* the last batch is for the time zones: it holds nothing else */
static bool
mark_step(JobRun *run)
{
	NoShow	   *no_show = run->state;
	bool		goes_on;

	if (no_show->source == NULL)
		begin_run(no_show, run);
	no_show->binding = run->binding;
	split_begin(&no_show->split);
	goes_on = mark_window(no_show);
	if (split_is_fruitless(&no_show->split))
		job_give_up(run, &no_show->split, "mark it");
	if (!goes_on)
		no_show->attention += report_unknown_zones(run->binding, run->as_of);
	run->counts.changed = no_show->marked;
	run->counts.attention = no_show->attention;
	run->counts.looked_at = no_show->looked_at;
	return goes_on;
}

const Job	mark_no_show_job = {
	"mark_no_show",
	"marks confirmed bookings as no-show 30 minutes after their appointment",
	900, false, relations_used, sizeof(NoShow), mark_step
};
