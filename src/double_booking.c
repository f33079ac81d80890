/*-------------------------------------------------------------------------
 *
 * double_booking.c
 *	  The report of bookings that stand in each other's way.
 *
 * same_slot	more than one confirmed booking on a slot
 * overlap		confirmed bookings of a business that take more than it can
 *				serve at once (overlap.c)
 * slot_state	a confirmed booking on a slot that is not booked; a booked slot
 *				on which nothing live stands; one reserved without an end
 *
 * A pending booking on an available or booked slot is normal.
 *
 * Nothing here locks or changes anything, and it works on a standby.  All rows
 * that are read come as a stream.  Where a unique index makes the first kind
 * impossible, the catalog is the answer.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "executor/tuptable.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/date.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "attach_index.h"
#include "cusown_ops.h"
#include "double_booking.h"
#include "errors.h"
#include "overlap.h"
#include "slot.h"
#include "template.h"
#include "uuid_list.h"
#include "verb.h"
#include "wall_clock.h"

static const char *const kind_names[] = {
	[DOUBLE_SAME_SLOT] = "same_slot",
	[DOUBLE_OVERLAP] = "overlap",
	[DOUBLE_SLOT_STATE] = "slot_state",
	[DOUBLE_ALL] = "all"
};

static const DoubleKind kinds_reported[] = {
	DOUBLE_SAME_SLOT, DOUBLE_OVERLAP, DOUBLE_SLOT_STATE, DOUBLE_ALL
};

static const char *const relations_read[] = {
	"bookings", "slots", "businesses", NULL
};

/* one call of cusown_double_bookings() */
typedef struct Report
{
	Binding    *binding;
	DoubleKind	kind;			/* asked for */
	DoubleKind	current;		/* the one that is read */
	bool		verify;			/* do not trust the catalog */
	bool		has_business;
	pg_uuid_t	business;
	MemoryContext row_context;	/* of one row */
	const char *finding;		/* of the statement of slots that is read */
	bool		without_end;	/* its slots are reserved for ever */
	ReturnSetInfo *result;
} Report;

/* a row of the report */
typedef struct ReportRow
{
	bool		has_business;
	pg_uuid_t	business;
	const pg_uuid_t *slot;		/* or NULL */
	Datum		bookings;		/* uuid[] */
	bool		has_starts;
	Timestamp	starts;
	const char *finding;
	const char *command;		/* or NULL */
} ReportRow;

PG_FUNCTION_INFO_V1(cusown_double_bookings);

/* the runbook's query; $1 a business, or NULL */
#define DOUBLED_SLOTS(of_business) \
	"SELECT b.{bookings.slot_id} AS id FROM {bookings} b" \
	" WHERE b.{bookings.status} = 'confirmed'" \
	of_business \
	" GROUP BY b.{bookings.slot_id} HAVING pg_catalog.count(*) > 1"

static const Template doubled_by_booking = {
	DOUBLED_SLOTS("[ AND ($1 IS NULL OR b.{bookings.business_id} = $1)]"),
	1, {UUIDOID}, true
};

static const Template doubled_by_slot = {
	DOUBLED_SLOTS("[ AND ($1 IS NULL OR EXISTS (SELECT FROM {slots} s"
				  " WHERE s.{slots.id} = b.{bookings.slot_id}"
				  " AND s.{slots.business_id} = $1))]"),
	1, {UUIDOID}, true
};

#define STARTS \
	"[, s.{slots.date} AS date, s.{slots.start_time} AS start_time]" \
	"[, s.{slots.starts_at} AS starts_at]"

/* $1 slots, in the order of their ids */
static const Template doubled_again = {
	"SELECT d.id, d.bookings, COALESCE([{?bookings.business_id}d.business_id, ]"
	"[s.{slots.business_id}, ]NULL::uuid) AS business_id" STARTS
	" FROM (SELECT b.{bookings.slot_id} AS id,"
	" pg_catalog.array_agg(b.{bookings.id} ORDER BY b.{bookings.id}) AS bookings"
	"[, (pg_catalog.array_agg(b.{bookings.business_id}"
	" ORDER BY b.{bookings.id}))[1] AS business_id]"
	" FROM {bookings} b WHERE b.{bookings.slot_id} = ANY ($1)"
	" AND (b.{bookings.status} = 'confirmed') IS TRUE"
	" GROUP BY b.{bookings.slot_id} HAVING pg_catalog.count(*) > 1) d"
	" LEFT JOIN {slots} s ON s.{slots.id} = d.id ORDER BY d.id",
	1, {UUIDARRAYOID}
};

/*
 * Slots in a state that their bookings contradict; $1 a business, or NULL.  What
 * has no id cannot be named.
 */
#define SLOTS(condition) \
	"SELECT s.{slots.id} AS id, ARRAY(SELECT b.{bookings.id} FROM {bookings} b" \
	" WHERE b.{bookings.slot_id} = s.{slots.id}" \
	" AND (b.{bookings.status} = 'confirmed') IS TRUE" \
	" ORDER BY b.{bookings.id}) AS bookings" \
	"[, s.{slots.business_id} AS business_id]" STARTS \
	" FROM {slots} s WHERE s.{slots.id} IS NOT NULL AND " condition \
	"[ AND ($1 IS NULL OR s.{slots.business_id} = $1)]" \
	" ORDER BY s.{slots.id}"

static const Template confirmed_not_booked = {
	SLOTS(SLOT_SHOULD_BE_BOOKED),
	1, {UUIDOID}, true
};

static const Template booked_for_nobody = {
	SLOTS(SLOT_BOOKED_FOR_NOBODY),
	1, {UUIDOID}, true
};

static const Template reserved_for_ever = {
	SLOTS("s.{slots.status} = 'reserved' AND s.{slots.reserved_until} IS NULL"
		  " AND NOT " SLOT_HAS(SLOT_CONFIRMED)),
	1, {UUIDOID}, true
};

/* ---------- rows of the report ---------- */

static void
put_row(const Report *report, const ReportRow *row)
{
	Datum		values[7];
	bool		nulls[7] = {false};

	values[0] = CStringGetTextDatum(kind_names[report->current]);
	values[1] = UUIDPGetDatum(&row->business);
	nulls[1] = !row->has_business;
	values[2] = UUIDPGetDatum(row->slot);
	nulls[2] = row->slot == NULL;
	values[3] = row->bookings;
	values[4] = TimestampGetDatum(row->starts);
	nulls[4] = !row->has_starts;
	values[5] = CStringGetTextDatum(row->finding);
	nulls[6] = row->command == NULL;
	values[6] = nulls[6] ? (Datum) 0 : CStringGetTextDatum(row->command);
	tuplestore_putvalues(report->result->setResult, report->result->setDesc,
						 values, nulls);
}

static char *
resolve_command(const char *kind, const pg_uuid_t *slot)
{
	return psprintf("SELECT * FROM cusown_resolve_double_bookings(%sslot => '%s');",
					kind, verb_uuid_text(slot));
}

/* when a slot begins: on the clock of its business, else in UTC */
static bool
read_starts(Datum date, bool no_date, Datum start_time, bool no_time,
			Datum starts_at, bool no_starts_at, Timestamp *starts)
{
	WallClockSpan span;

	if (!no_date && !no_time &&
		wall_clock_span(DatumGetDateADT(date), DatumGetTimeADT(start_time), 0,
						&span))
		*starts = span.start;
	else if (!no_starts_at)
		*starts = DatumGetTimestamp(starts_at);
	else
		return false;
	return IS_VALID_TIMESTAMP(*starts) || TIMESTAMP_NOT_FINITE(*starts);
}

/* ---------- same_slot ---------- */

/* whether an index keeps a slot from ever having two confirmed bookings */
bool
double_booking_impossible(const Binding *binding)
{
	return attach_index_serving(&attach_one_confirmed,
								attach_index_names(binding), true, false) != NIL;
}

/*
 * The slots with more than one confirmed booking, in the order of their ids; of
 * one business, or of all where that is NULL.
 */
void
double_booking_slots(Binding *binding, const pg_uuid_t *business,
					 bool read_only, UuidList *slots)
{
	bool		by_slot = business != NULL &&
	binding_column(binding, "bookings", "business_id") == NULL;
	Datum		values[1];

	values[0] = UUIDPGetDatum(business);
	uuid_list_append_stream(slots, binding, by_slot ? &doubled_by_slot :
							&doubled_by_booking, values,
							business == NULL ? "n" : NULL, read_only);
	uuid_list_sort(slots);
}

static void
put_doubled_slot(const Report *report, uint64 row)
{
	ReportRow	out = {0};
	pg_uuid_t	slot;
	bool		isnull;
	bool		no_date;
	bool		no_time;
	bool		no_starts_at;
	Datum		date = template_column(row, "date", &no_date);
	Datum		start_time = template_column(row, "start_time", &no_time);
	Datum		starts_at = template_column(row, "starts_at", &no_starts_at);
	ArrayType  *bookings;

	template_uuid(row, "id", &slot);
	out.slot = &slot;
	out.has_business = template_uuid(row, "business_id", &out.business);
	out.bookings = template_column(row, "bookings", &isnull);
	bookings = DatumGetArrayTypeP(out.bookings);
	out.has_starts = read_starts(date, no_date, start_time, no_time,
								 starts_at, no_starts_at, &out.starts);
	out.finding = psprintf("%d confirmed bookings on one slot",
						   ArrayGetNItems(ARR_NDIM(bookings),
										  ARR_DIMS(bookings)));
	out.command = resolve_command("", &slot);
	put_row(report, &out);
}

static void
put_doubled_slots(const Report *report, const UuidList *slots)
{
	Datum		values[1];
	uint64		rows;

	values[0] = uuid_list_datum(slots);
	rows = template_execute(report->binding, &doubled_again, values, NULL, true);
	for (uint64 row = 0; row < rows; row++)
		put_doubled_slot(report, row);
	SPI_freetuptable(SPI_tuptable);
}

static void
report_same_slot(Report *report)
{
	UuidList	slots = {0};

	if (!report->verify && double_booking_impossible(report->binding))
		return;
	double_booking_slots(report->binding,
						 report->has_business ? &report->business : NULL,
						 true, &slots);
	for (int first = 0; first < slots.count; first += cusown_batch_size)
	{
		UuidList	some = {slots.items + first};
		MemoryContext caller;

		CHECK_FOR_INTERRUPTS();
		some.count = Min(cusown_batch_size, slots.count - first);
		caller = MemoryContextSwitchTo(report->row_context);
		put_doubled_slots(report, &some);
		MemoryContextSwitchTo(caller);
		MemoryContextReset(report->row_context);
	}
}

/* ---------- overlap ---------- */

/* OverlapFound */
static void
put_stretch(const OverlapStretch *stretch, void *state)
{
	const Report *report = state;
	ReportRow	row = {0};
	UuidList	ids = {0};

	for (int i = 0; i < stretch->bookings.count; i++)
		uuid_list_append(&ids, &stretch->bookings.items[i].id);
	row.has_business = true;
	row.business = stretch->business_id;
	row.bookings = uuid_list_datum(&ids);
	row.has_starts = true;
	row.starts = stretch->start;
	row.finding = psprintf(INT64_FORMAT " at once until %s, capacity " INT64_FORMAT,
						   stretch->most, wall_clock_text(stretch->end),
						   stretch->capacity);
	row.command = resolve_command("kind => 'overlap', ",
								  &stretch->bookings.items[0].slot_id);
	put_row(report, &row);
}

static void
report_overlap(Report *report)
{
	UuidList	one = {&report->business, 1, 1, true};

	overlap_find(report->binding, report->has_business ? &one : NULL, true,
				 put_stretch, report);
}

/* ---------- slot_state ---------- */

/* what a human may run once it is known that nobody waits for the slot */
static char *
end_hold_command(const Binding *binding, const pg_uuid_t *slot)
{
	const BoundRelation *slots = binding_relation(binding, "slots");

	return template_ddl("UPDATE %s SET %I = now() WHERE %I = '%s';",
						quote_qualified_identifier(slots->schema, slots->name),
						binding_column(binding, "slots",
									   "reserved_until")->column,
						binding_column(binding, "slots", "id")->column,
						verb_uuid_text(slot));
}

/* TemplateRow */
static void
put_slot(const StreamedRow *row, void *state)
{
	const Report *report = state;
	MemoryContext caller = MemoryContextSwitchTo(report->row_context);
	ReportRow	out = {0};
	pg_uuid_t	slot;
	Datum		business;
	bool		isnull;
	bool		no_date;
	bool		no_time;
	bool		no_starts_at;
	Datum		date = template_attribute(row, "date", &no_date);
	Datum		start_time = template_attribute(row, "start_time", &no_time);
	Datum		starts_at = template_attribute(row, "starts_at", &no_starts_at);

	CHECK_FOR_INTERRUPTS();
	slot = *DatumGetUUIDP(template_attribute(row, "id", &isnull));
	out.slot = &slot;
	business = template_attribute(row, "business_id", &isnull);
	out.has_business = !isnull;
	if (!isnull)
		out.business = *DatumGetUUIDP(business);
	out.bookings = template_attribute(row, "bookings", &isnull);
	out.has_starts = read_starts(date, no_date, start_time, no_time,
								 starts_at, no_starts_at, &out.starts);
	out.finding = report->finding;
	out.command = report->without_end ?
		end_hold_command(report->binding, &slot) :
		"SELECT * FROM cusown_repair_slots();";
	put_row(report, &out);
	MemoryContextSwitchTo(caller);
	MemoryContextReset(report->row_context);
}

static void
report_slots(Report *report, const Template *statement, const char *finding)
{
	Datum		values[1];

	values[0] = UUIDPGetDatum(&report->business);
	report->finding = finding;
	template_stream(report->binding, statement, values,
					report->has_business ? NULL : "n", true, put_slot, report);
}

static void
report_slot_state(Report *report)
{
	report_slots(report, &confirmed_not_booked,
				 "confirmed booking on a slot that is not booked");
	report_slots(report, &booked_for_nobody,
				 "booked, but nothing live stands on it");
	if (binding_column(report->binding, "slots", "reserved_until") != NULL)
	{
		report->without_end = true;
		report_slots(report, &reserved_for_ever, "reserved without an end");
	}
}

/* ---------- the function ---------- */

/* the kind of that name among those that the caller knows */
DoubleKind
double_booking_kind(const char *name, const DoubleKind *known, int count)
{
	StringInfoData names;

	initStringInfo(&names);
	for (int i = 0; i < count; i++)
	{
		if (strcmp(kind_names[known[i]], name) == 0)
			return known[i];
		appendStringInfo(&names, "%s%s",
						 i == 0 ? "" : i == count - 1 ? " and " : ", ",
						 kind_names[known[i]]);
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("unknown kind \"%s\"", name),
			 errhint("Kinds are %s.", names.data)));
}

/*
 * The relation whose business_id a kind cannot do without, or NULL.  A slot
 * that nobody has booked has no business but its own.
 */
static const char *
lacks_business_of(const Report *report, DoubleKind kind)
{
	if (kind == DOUBLE_SLOT_STATE)
		return report->has_business &&
			binding_column(report->binding, "slots", "business_id") == NULL ?
			"slots" : NULL;
	return (report->has_business || kind == DOUBLE_OVERLAP) &&
		!overlap_knows_business(report->binding) ? "bookings" : NULL;
}

/* asked for by name, a kind that cannot be told is an error */
static bool
is_wanted(Report *report, DoubleKind kind)
{
	const char *relation;

	if (report->kind != kind && report->kind != DOUBLE_ALL)
		return false;
	relation = lacks_business_of(report, kind);
	if (relation == NULL)
	{
		report->current = kind;
		return true;
	}
	if (report->kind == kind)
		binding_require(report->binding, relation, "business_id");
	ereport(NOTICE,
			(errmsg("kind \"%s\" is left out: canonical name \"%s.business_id\" is not bound in application schema \"%s\"",
					kind_names[kind], relation,
					report->binding->app_schema)));
	return false;
}

static void
report_body(void *state)
{
	Report	   *report = state;

	report->binding = binding_use(relations_read);
	verb_check_row_security(report->binding, relations_read);
	report->row_context = AllocSetContextCreate(CurrentMemoryContext,
												"cusown_ops double bookings row",
												ALLOCSET_DEFAULT_SIZES);
	if (is_wanted(report, DOUBLE_SAME_SLOT))
		report_same_slot(report);
	if (is_wanted(report, DOUBLE_OVERLAP))
		report_overlap(report);
	if (is_wanted(report, DOUBLE_SLOT_STATE))
		report_slot_state(report);
}

/*
 * cusown_double_bookings(kind text DEFAULT 'all', business uuid DEFAULT NULL,
 *		verify boolean DEFAULT false, OUT kind text, OUT business_id uuid,
 *		OUT slot_id uuid, OUT booking_ids uuid[], OUT starts timestamp,
 *		OUT finding text, OUT command text)
 *		RETURNS SETOF record
 *
 * Bookings that stand in each other's way, and slots that their bookings
 * contradict, of one business or of all.  Kind same_slot is answered from the
 * catalog where an index makes it impossible, unless verify.  Writes and locks
 * nothing.
 *
 * Errors: UO001 nothing attached, or no business_id bound where the kind asked
 * for needs it; 22023, 22004 arguments; 42501 row-level security would hide
 * rows.
 *
 * Source: runbook "Double Booking Alert", steps 1 and 2.
 */
Datum
cusown_double_bookings(PG_FUNCTION_ARGS)
{
	Report		report = {0};

	verb_check_not_null(fcinfo, 0, "kind");
	verb_check_not_null(fcinfo, 2, "verify");
	report.kind = double_booking_kind(text_to_cstring(PG_GETARG_TEXT_PP(0)),
									  kinds_reported,
									  lengthof(kinds_reported));
	report.has_business = !PG_ARGISNULL(1);
	if (report.has_business)
		report.business = *PG_GETARG_UUID_P(1);
	report.verify = PG_GETARG_BOOL(2);
	InitMaterializedSRF(fcinfo, 0);
	report.result = (ReturnSetInfo *) fcinfo->resultinfo;
	verb_run(report_body, &report, false);
	return (Datum) 0;
}
