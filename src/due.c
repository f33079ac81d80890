/*-------------------------------------------------------------------------
 *
 * due.c
 *	  Which pending bookings are due to expire, and what may happen to them.
 *
 * A pending booking is due when it is older than older_than.  What may happen
 * to it is its verdict:
 *
 * expire		no payment stands in the way: it can be cancelled
 * paid			a payment is completed or partially refunded: a human decides
 * in_flight	a payment was begun less than processing_grace ago: wait
 * refused		a CHECK of the application forbids to cancel it, a payment has
 *				a status that we do not know, or its slot does not exist: a
 *				human decides
 *
 * Bookings are read oldest first, by the key (created_at, id), reading on
 * behind the last one looked at.  Nothing here locks or changes anything;
 * expiry.c asks for verdicts again once it has locked.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "cusown_ops.h"
#include "due.h"
#include "row_check.h"
#include "template.h"
#include "uuid_list.h"
#include "verb.h"

static const char *const verdict_names[] = {
	"expire", "paid", "in_flight", "refused"
};

static const char *const relations_read[] = {
	"bookings", "slots", "payments", NULL
};

PG_FUNCTION_INFO_V1(cusown_due_bookings);

/*
 * Verdicts.  $1 created_before, $2 in_flight_after, $3 payments that we have
 * locked; the candidates come from $4 on.
 */
#define VERDICTS(candidates) \
	"WITH candidate AS MATERIALIZED (" candidates ")" \
	" SELECT c.id, c.slot_id, c.created_at," \
	" s.{slots.id} IS NOT NULL AS has_slot" \
	"[{?bookings.business_id}, c.business_id]" \
	"[{?payments}, p.paid_id, p.paid_status, p.in_flight_id," \
	" p.in_flight_status, p.unknown_id, p.unknown_status, p.is_unlocked]" \
	" FROM candidate c" \
	" LEFT JOIN {slots} s ON s.{slots.id} = c.slot_id" \
	"[ LEFT JOIN (SELECT p.{payments.booking_id} AS booking_id," \
	" (pg_catalog.array_agg(p.{payments.id} ORDER BY p.{payments.id})" \
	" FILTER (WHERE " PAID "))[1] AS paid_id," \
	" (pg_catalog.array_agg(p.{payments.status}::text" \
	" ORDER BY p.{payments.id})" \
	" FILTER (WHERE " PAID "))[1] AS paid_status," \
	" (pg_catalog.array_agg(p.{payments.id} ORDER BY p.{payments.id})" \
	" FILTER (WHERE " IN_FLIGHT "))[1] AS in_flight_id," \
	" (pg_catalog.array_agg(p.{payments.status}::text" \
	" ORDER BY p.{payments.id})" \
	" FILTER (WHERE " IN_FLIGHT "))[1] AS in_flight_status," \
	" (pg_catalog.array_agg(p.{payments.id} ORDER BY p.{payments.id})" \
	" FILTER (WHERE " UNKNOWN "))[1] AS unknown_id," \
	" (pg_catalog.array_agg(p.{payments.status}::text" \
	" ORDER BY p.{payments.id})" \
	" FILTER (WHERE " UNKNOWN "))[1] AS unknown_status," \
	" pg_catalog.bool_or(p.{payments.id} <> ALL ($3)) AS is_unlocked" \
	" FROM candidate c" \
	" JOIN {payments} p ON p.{payments.booking_id} = c.id" \
	" GROUP BY p.{payments.booking_id}) p ON p.booking_id = c.id]" \
	" ORDER BY c.created_at, c.id"

#define PAID \
	"p.{payments.status} = 'completed'" \
	" OR p.{payments.status} = 'partially_refunded'"

#define UNFINISHED \
	"p.{payments.status} = 'initiated' OR p.{payments.status} = 'pending'" \
	" OR p.{payments.status} = 'processing'"

#define IN_FLIGHT "p.{payments.created_at} > $2 AND (" UNFINISHED ")"

/* another status could mean money: it does not count as none */
#define UNKNOWN \
	"(" PAID " OR " UNFINISHED " OR p.{payments.status} = 'failed'" \
	" OR p.{payments.status} = 'refunded'" \
	" OR p.{payments.status} = 'expired') IS NOT TRUE"

#define CANDIDATE \
	"SELECT b.{bookings.id} AS id, b.{bookings.slot_id} AS slot_id," \
	" b.{bookings.created_at} AS created_at" \
	"[, b.{bookings.business_id} AS business_id]" \
	" FROM {bookings} b WHERE b.{bookings.created_at} < $1"

/* $4, $5 the key to read on behind, $6 how many */
static const Template next_candidates = {
	VERDICTS(CANDIDATE " AND b.{bookings.status} = 'pending'"
			 " AND (b.{bookings.created_at}, b.{bookings.id}) > ($4, $5)"
			 " ORDER BY b.{bookings.created_at}, b.{bookings.id} LIMIT $6"),
	6, {TIMESTAMPTZOID, TIMESTAMPTZOID, UUIDARRAYOID, TIMESTAMPTZOID, UUIDOID, INT8OID}
};

/* $4 the bookings to ask about */
static const Template verdicts_of = {
	VERDICTS(CANDIDATE " AND b.{bookings.id} = ANY ($4) AND " BOOKING_IS_PENDING),
	4, {TIMESTAMPTZOID, TIMESTAMPTZOID, UUIDARRAYOID, UUIDARRAYOID}
};

static const Template due_behind = {
	"SELECT EXISTS (SELECT FROM {bookings} b"
	" WHERE b.{bookings.status} = 'pending'"
	" AND b.{bookings.created_at} < $1"
	" AND (b.{bookings.created_at}, b.{bookings.id}) > ($2, $3)) AS found",
	3, {TIMESTAMPTZOID, TIMESTAMPTZOID, UUIDOID}
};

/* what expiry.c puts into a booking */
static const ProposedChange cancellation = {
	"bookings",
	{
		"SELECT b.tableoid, b.* FROM {bookings} b WHERE b.{bookings.id} = ANY ($1)",
		1, {UUIDARRAYOID}
	},
	5,
	{
		{"status", "cancelled"},
		{"cancelled_by", "system"},
		{"cancelled_at", NULL},
		{"cancellation_reason", "expired"},
		{"updated_at", NULL}
	}
};

Interval
due_booking_ttl(void)
{
	Interval	ttl = {0};

	ttl.time = cusown_booking_ttl * USECS_PER_SEC;
	return ttl;
}

DueRule
due_rule(const Interval *older_than, TimestampTz as_of)
{
	DueRule		rule;
	Interval	grace = {0};

	verb_check_interval(older_than, "older_than");
	grace.time = cusown_processing_grace * USECS_PER_SEC;
	rule.older_than = *older_than;
	rule.as_of = as_of;
	rule.created_before = verb_before(as_of, older_than);
	rule.in_flight_after = verb_before(as_of, &grace);
	if (rule.created_before > as_of)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("older_than must not be negative")));
	return rule;
}

/* "payment … is completed", or NULL where the columns are null */
static char *
payment_finding(uint64 row, const char *id_column, const char *status_column)
{
	bool		isnull;
	Datum		id = template_column(row, id_column, &isnull);
	char	   *status;

	if (isnull)
		return NULL;
	status = template_text(row, status_column);
	return psprintf("payment %s is %s",
					DatumGetCString(DirectFunctionCall1(uuid_out, id)),
					status == NULL ? "without a status" : status);
}

static void
read_verdict(uint64 row, DueBooking *booking)
{
	booking->verdict = VERDICT_PAID;
	booking->finding = payment_finding(row, "paid_id", "paid_status");
	if (booking->finding != NULL)
		return;
	booking->verdict = VERDICT_REFUSED;
	booking->finding = payment_finding(row, "unknown_id", "unknown_status");
	if (booking->finding != NULL)
	{
		booking->finding = psprintf("%s, which is not known", booking->finding);
		return;
	}
	booking->verdict = VERDICT_IN_FLIGHT;
	booking->finding = payment_finding(row, "in_flight_id", "in_flight_status");
	if (booking->finding != NULL)
		return;
	booking->verdict = booking->has_slot ? VERDICT_EXPIRE : VERDICT_REFUSED;
	if (!booking->has_slot)
		booking->finding = "its slot does not exist";
}

static DueBookings
read_due_bookings(uint64 rows)
{
	DueBookings due = {0};

	due.items = palloc0(Max(rows, 1) * sizeof(DueBooking));
	due.count = (int) rows;
	for (uint64 row = 0; row < rows; row++)
	{
		DueBooking *booking = &due.items[row];
		bool		isnull;

		template_uuid(row, "id", &booking->id);
		booking->has_slot_id = template_uuid(row, "slot_id", &booking->slot_id);
		booking->has_business = template_uuid(row, "business_id",
											&booking->business_id);
		booking->has_slot = template_bool(row, "has_slot");
		booking->payment_unlocked = template_bool(row, "is_unlocked");
		booking->created_at =
			DatumGetTimestampTz(template_column(row, "created_at", &isnull));
		read_verdict(row, booking);
	}
	SPI_freetuptable(SPI_tuptable);
	return due;
}

UuidList
due_ids_with_verdict(const DueBookings *due, Verdict verdict)
{
	UuidList	ids = {0};

	for (int i = 0; i < due->count; i++)
	{
		if (due->items[i].verdict == verdict)
			uuid_list_append(&ids, &due->items[i].id);
	}
	return ids;
}

/* rows come in any order */
static int
compare_refused(const void *a, const void *b)
{
	return memcmp(&(*(RefusedRow *const *) a)->id,
				  &(*(RefusedRow *const *) b)->id, sizeof(pg_uuid_t));
}

static void
refuse(DueBooking *booking, const char *constraint)
{
	booking->verdict = VERDICT_REFUSED;
	booking->sqlstate = "23514";
	booking->finding = psprintf("check constraint \"%s\" refuses to cancel it",
								constraint);
}

/* turns the verdict of bookings that a CHECK would refuse */
void
due_ask_checks(Binding *binding, DueBookings *due, bool read_only)
{
	UuidList	ids = due_ids_with_verdict(due, VERDICT_EXPIRE);
	List	   *list = row_check_refused(binding, &cancellation, &ids, read_only);
	int			count = list_length(list);
	RefusedRow **refused = palloc(Max(count, 1) * sizeof(RefusedRow *));

	for (int i = 0; i < count; i++)
		refused[i] = list_nth(list, i);
	qsort(refused, count, sizeof(RefusedRow *), compare_refused);
	for (int i = 0; i < due->count; i++)
	{
		RefusedRow	wanted = {due->items[i].id, NULL};
		RefusedRow *key = &wanted;
		RefusedRow **found = bsearch(&key, refused, count,
									 sizeof(RefusedRow *), compare_refused);

		if (found != NULL)
			refuse(&due->items[i], (*found)->constraint);
	}
}

DueBookings
due_read_next(Binding *binding, const DueRule *rule, const ReadingKey *key,
			  int limit, bool read_only)
{
	UuidList	none = {0};
	Datum		values[6];

	values[0] = TimestampTzGetDatum(rule->created_before);
	values[1] = TimestampTzGetDatum(rule->in_flight_after);
	values[2] = uuid_list_datum(&none);
	values[3] = TimestampTzGetDatum(key->created_at);
	values[4] = UUIDPGetDatum(&key->id);
	values[5] = Int64GetDatum(limit);
	return read_due_bookings(template_execute(binding, &next_candidates,
											  values, NULL, read_only));
}

DueBookings
due_read_again(Binding *binding, const DueRule *rule, const UuidList *bookings,
			   const UuidList *locked_payments)
{
	Datum		values[4];

	values[0] = TimestampTzGetDatum(rule->created_before);
	values[1] = TimestampTzGetDatum(rule->in_flight_after);
	values[2] = uuid_list_datum(locked_payments);
	values[3] = uuid_list_datum(bookings);
	return read_due_bookings(template_execute(binding, &verdicts_of,
											  values, NULL, false));
}

void
due_move_key(ReadingKey *key, const DueBooking *booking)
{
	key->created_at = booking->created_at;
	key->id = booking->id;
}

ReadingKey
due_first_key(void)
{
	ReadingKey	key = {0};

	TIMESTAMP_NOBEGIN(key.created_at);
	return key;
}

/* verdicts whatever the age, with every unfinished payment as abandoned */
DueBookings
due_read_any_age(Binding *binding, const UuidList *bookings)
{
	DueRule		any_age = {0};
	UuidList	none = {0};
	DueBookings due;

	TIMESTAMP_NOEND(any_age.created_before);
	TIMESTAMP_NOEND(any_age.in_flight_after);
	due = due_read_again(binding, &any_age, bookings, &none);
	due_ask_checks(binding, &due, false);
	return due;
}

bool
due_is_any_behind(Binding *binding, const DueRule *rule, const ReadingKey *key)
{
	Datum		values[3];

	values[0] = TimestampTzGetDatum(rule->created_before);
	values[1] = TimestampTzGetDatum(key->created_at);
	values[2] = UUIDPGetDatum(&key->id);
	template_execute(binding, &due_behind, values, NULL, false);
	return template_bool(0, "found");
}

/* one call of cusown_due_bookings() */
typedef struct Report
{
	DueRule		rule;
	ReturnSetInfo *result;
} Report;

static TimestampTz
due_since(const DueRule *rule, const DueBooking *booking)
{
	/* months added can be more days than months taken away */
	return Min(verb_after(booking->created_at, &rule->older_than), rule->as_of);
}

static void
put_row(const Report *report, const DueBooking *booking)
{
	Datum		values[7];
	bool		nulls[7] = {false};

	values[0] = UUIDPGetDatum(&booking->id);
	values[1] = UUIDPGetDatum(&booking->slot_id);
	nulls[1] = !booking->has_slot_id;
	values[2] = UUIDPGetDatum(&booking->business_id);
	nulls[2] = !booking->has_business;
	values[3] = CStringGetTextDatum("older_than");
	values[4] = TimestampTzGetDatum(due_since(&report->rule, booking));
	values[5] = CStringGetTextDatum(verdict_names[booking->verdict]);
	nulls[6] = booking->finding == NULL;
	values[6] = nulls[6] ? (Datum) 0 : CStringGetTextDatum(booking->finding);
	tuplestore_putvalues(report->result->setResult, report->result->setDesc,
						 values, nulls);
}

static bool
report_window(Binding *binding, const Report *report, ReadingKey *key)
{
	DueBookings due = due_read_next(binding, &report->rule, key,
									  cusown_batch_size, true);

	if (due.count == 0)
		return false;
	due_ask_checks(binding, &due, true);
	for (int i = 0; i < due.count; i++)
		put_row(report, &due.items[i]);
	due_move_key(key, &due.items[due.count - 1]);
	return true;
}

static void
report_body(void *state)
{
	Report	   *report = state;
	Binding    *binding = binding_use(relations_read);
	ReadingKey	key = due_first_key();
	MemoryContext window_context;
	MemoryContext caller;
	bool		goes_on = true;

	verb_check_row_security(binding, relations_read);
	window_context = AllocSetContextCreate(CurrentMemoryContext,
										   "cusown_ops due bookings window",
										   ALLOCSET_DEFAULT_SIZES);
	while (goes_on)
	{
		CHECK_FOR_INTERRUPTS();
		caller = MemoryContextSwitchTo(window_context);
		goes_on = report_window(binding, report, &key);
		MemoryContextSwitchTo(caller);
		MemoryContextReset(window_context);
	}
}

/*
 * cusown_due_bookings(older_than interval DEFAULT NULL,
 *		as_of timestamptz DEFAULT now(), OUT booking_id uuid,
 *		OUT slot_id uuid, OUT business_id uuid, OUT rule text,
 *		OUT due_since timestamptz, OUT verdict text, OUT finding text)
 *		RETURNS SETOF record
 *
 * Pending bookings older than older_than (NULL: booking_ttl), oldest first,
 * and what an expiry run would do with each.  Writes and locks nothing.
 *
 * Errors: UO001 nothing attached; 22023, 22004 arguments; 42501 row-level
 * security would hide rows.
 *
 * Source: runbook "Cron Failure", symptoms.
 */
Datum
cusown_due_bookings(PG_FUNCTION_ARGS)
{
	Report		report;
	Interval	older_than = due_booking_ttl();

	if (!PG_ARGISNULL(0))
		older_than = *PG_GETARG_INTERVAL_P(0);
	report.rule = due_rule(&older_than, verb_as_of(fcinfo, 1));
	InitMaterializedSRF(fcinfo, 0);
	report.result = (ReturnSetInfo *) fcinfo->resultinfo;
	verb_run(report_body, &report, false);
	return (Datum) 0;
}
