/*-------------------------------------------------------------------------
 *
 * due.c
 *	  Which pending bookings are due to expire, and what may happen to them.
 *
 * A pending booking is due when it is older than older_than; by a rule of its
 * own, which a caller must ask for, also when its slot's hold ended more than
 * hold_grace ago.  What may happen to it is its verdict:
 *
 * expire		no payment stands in the way: it can be cancelled
 * paid			a payment is completed or partially refunded: a human decides
 * in_flight	a payment was begun less than processing_grace ago: wait
 * refused		a CHECK of the application forbids to cancel it, a payment has
 *				a status that we do not know, or its slot does not exist: a
 *				human decides
 *
 * Bookings are read oldest first, by the key (moment from which the rule counts,
 * id), reading on behind the last one looked at.  Each rule has statements of
 * its own: an OR over two tables would read both wholly.  Nothing here locks or
 * changes anything; expiry.c asks for verdicts again once it has locked.
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
 * Verdicts.  $1 rule.before, $2 in_flight_after, $3 payments that we have
 * locked, $4 rule.created_after; the candidates come from $5 on.
 */
#define VERDICTS(candidates) \
	"WITH candidate AS MATERIALIZED (" candidates ")" \
	" SELECT c.id, c.slot_id, c.counts_from," \
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
	" ORDER BY c.counts_from, c.id"

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

/* what a rule reads, and behind which key it reads on */
#define CANDIDATE(counts_from) \
	"SELECT b.{bookings.id} AS id, b.{bookings.slot_id} AS slot_id," \
	" " counts_from " AS counts_from" \
	"[, b.{bookings.business_id} AS business_id]"

#define OLDER_THAN \
	" FROM {bookings} b WHERE b.{bookings.created_at} < $1"

#define OLDER_THAN_BEHIND(at, id) \
	" AND b.{bookings.status} = 'pending'" \
	" AND (b.{bookings.created_at}, b.{bookings.id}) > (" at ", " id ")"

/*
 * A hold is of the bookings that were there before it ended.  What is due by
 * its age already is not due by this rule too.
 */
#define HOLD_ENDED \
	" FROM {slots} h JOIN {bookings} b ON b.{bookings.slot_id} = h.{slots.id}" \
	" AND b.{bookings.created_at} <= h.{slots.reserved_until}" \
	" AND b.{bookings.created_at} >= $4" \
	" WHERE (h.{slots.status} = 'reserved')" \
	" AND h.{slots.reserved_until} < $1"

#define HOLD_ENDED_BEHIND(at, id) \
	" AND b.{bookings.status} = 'pending' AND h.{slots.reserved_until} >= " at \
	" AND (h.{slots.reserved_until}, b.{bookings.id}) > (" at ", " id ")"

/* the statements of a rule */
typedef struct Reading
{
	const char *rule;
	Template	next;			/* $5, $6 read on behind, $7 how many */
	Template	again;			/* $5 the bookings to ask about */
	Template	behind;			/* $2, $3 the key */
} Reading;

static const Reading readings[] = {
	[DUE_OLDER_THAN] = {
		"older_than",
		{
			VERDICTS(CANDIDATE("b.{bookings.created_at}") OLDER_THAN
					 OLDER_THAN_BEHIND("$5", "$6")
					 " ORDER BY b.{bookings.created_at}, b.{bookings.id} LIMIT $7"),
			7, {TIMESTAMPTZOID, TIMESTAMPTZOID, UUIDARRAYOID, TIMESTAMPTZOID, TIMESTAMPTZOID, UUIDOID, INT8OID}
		},
		{
			VERDICTS(CANDIDATE("b.{bookings.created_at}") OLDER_THAN
					 " AND b.{bookings.id} = ANY ($5) AND " BOOKING_IS_PENDING),
			5, {TIMESTAMPTZOID, TIMESTAMPTZOID, UUIDARRAYOID, TIMESTAMPTZOID, UUIDARRAYOID}
		},
		{
			"SELECT EXISTS (SELECT" OLDER_THAN OLDER_THAN_BEHIND("$2", "$3") ") AS found",
			4, {TIMESTAMPTZOID, TIMESTAMPTZOID, UUIDOID, TIMESTAMPTZOID}
		}
	},
	[DUE_HOLD_ENDED] = {
		"hold_ended",
		{
			VERDICTS(CANDIDATE("h.{slots.reserved_until}") HOLD_ENDED
					 HOLD_ENDED_BEHIND("$5", "$6")
					 " ORDER BY h.{slots.reserved_until}, b.{bookings.id} LIMIT $7"),
			7, {TIMESTAMPTZOID, TIMESTAMPTZOID, UUIDARRAYOID, TIMESTAMPTZOID, TIMESTAMPTZOID, UUIDOID, INT8OID}
		},
		{
			VERDICTS(CANDIDATE("h.{slots.reserved_until}") HOLD_ENDED
					 " AND b.{bookings.id} = ANY ($5) AND " BOOKING_IS_PENDING),
			5, {TIMESTAMPTZOID, TIMESTAMPTZOID, UUIDARRAYOID, TIMESTAMPTZOID, UUIDARRAYOID}
		},
		{
			"SELECT EXISTS (SELECT" HOLD_ENDED HOLD_ENDED_BEHIND("$2", "$3") ") AS found",
			4, {TIMESTAMPTZOID, TIMESTAMPTZOID, UUIDOID, TIMESTAMPTZOID}
		}
	}
};

const ProposedChange due_cancellation = {
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

const char *
due_rule_name(const DueRule *rule)
{
	return readings[rule->kind].rule;
}

DueRule
due_rule(DueKind kind, const Interval *age, const char *argument,
		 TimestampTz as_of)
{
	DueRule		rule;
	Interval	grace = {0};

	verb_check_interval(age, argument);
	grace.time = cusown_processing_grace * USECS_PER_SEC;
	rule.kind = kind;
	rule.age = *age;
	rule.as_of = as_of;
	rule.before = verb_before(as_of, age);
	rule.in_flight_after = verb_before(as_of, &grace);
	TIMESTAMP_NOBEGIN(rule.created_after);
	if (rule.before > as_of)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must not be negative", argument)));
	return rule;
}

/*
 * The rules that a caller asks for: arguments older_than (NULL: booking_ttl)
 * and hold_grace (NULL: not this rule), judged at as_of and holds_as_of.
 */
DueRules
due_rules(FunctionCallInfo fcinfo, int older_than_arg, int hold_grace_arg,
		  TimestampTz as_of, TimestampTz holds_as_of)
{
	Interval	older_than = due_booking_ttl();
	DueRules	rules = {1};
	DueRule    *hold_ended = &rules.items[1];

	if (!PG_ARGISNULL(older_than_arg))
		older_than = *PG_GETARG_INTERVAL_P(older_than_arg);
	rules.items[0] = due_rule(DUE_OLDER_THAN, &older_than, "older_than", as_of);
	if (PG_ARGISNULL(hold_grace_arg))
		return rules;
	*hold_ended = due_rule(DUE_HOLD_ENDED, PG_GETARG_INTERVAL_P(hold_grace_arg),
						   "hold_grace", holds_as_of);
	hold_ended->created_after = rules.items[0].before;
	rules.count = 2;
	return rules;
}

void
due_require(const Binding *binding, const DueRules *rules)
{
	for (int i = 0; i < rules->count; i++)
	{
		if (rules->items[i].kind == DUE_HOLD_ENDED)
			binding_require(binding, "slots", "reserved_until");
	}
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
		booking->counts_from =
			DatumGetTimestampTz(template_column(row, "counts_from", &isnull));
		read_verdict(row, booking);
	}
	SPI_freetuptable(SPI_tuptable);
	return due;
}

DueBookings
due_with_verdict(const DueBookings *due, Verdict verdict)
{
	DueBookings with = {palloc(Max(due->count, 1) * sizeof(DueBooking)), 0};

	for (int i = 0; i < due->count; i++)
	{
		if (due->items[i].verdict == verdict)
			with.items[with.count++] = due->items[i];
	}
	return with;
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
	List	   *list = row_check_refused(binding, &due_cancellation, &ids, read_only);
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
	Datum		values[7];

	values[0] = TimestampTzGetDatum(rule->before);
	values[1] = TimestampTzGetDatum(rule->in_flight_after);
	values[2] = uuid_list_datum(&none);
	values[3] = TimestampTzGetDatum(rule->created_after);
	values[4] = TimestampTzGetDatum(key->counts_from);
	values[5] = UUIDPGetDatum(&key->id);
	values[6] = Int64GetDatum(limit);
	return read_due_bookings(template_execute(binding,
											  &readings[rule->kind].next,
											  values, NULL, read_only));
}

DueBookings
due_read_again(Binding *binding, const DueRule *rule, const UuidList *bookings,
			   const UuidList *locked_payments)
{
	Datum		values[5];

	values[0] = TimestampTzGetDatum(rule->before);
	values[1] = TimestampTzGetDatum(rule->in_flight_after);
	values[2] = uuid_list_datum(locked_payments);
	values[3] = TimestampTzGetDatum(rule->created_after);
	values[4] = uuid_list_datum(bookings);
	return read_due_bookings(template_execute(binding,
											  &readings[rule->kind].again,
											  values, NULL, false));
}

void
due_move_key(ReadingKey *key, const DueBooking *booking)
{
	key->counts_from = booking->counts_from;
	key->id = booking->id;
}

ReadingKey
due_first_key(void)
{
	ReadingKey	key = {0};

	TIMESTAMP_NOBEGIN(key.counts_from);
	return key;
}

/* verdicts whatever the age, with every unfinished payment as abandoned */
DueBookings
due_read_any_age(Binding *binding, const UuidList *bookings)
{
	DueRule		any_age = {DUE_OLDER_THAN};
	UuidList	none = {0};
	DueBookings due;

	TIMESTAMP_NOEND(any_age.before);
	TIMESTAMP_NOEND(any_age.in_flight_after);
	due = due_read_again(binding, &any_age, bookings, &none);
	due_ask_checks(binding, &due, false);
	return due;
}

bool
due_is_any_behind(Binding *binding, const DueRule *rule, const ReadingKey *key)
{
	Datum		values[4];

	values[0] = TimestampTzGetDatum(rule->before);
	values[1] = TimestampTzGetDatum(key->counts_from);
	values[2] = UUIDPGetDatum(&key->id);
	values[3] = TimestampTzGetDatum(rule->created_after);
	template_execute(binding, &readings[rule->kind].behind, values, NULL,
					 false);
	return template_bool(0, "found");
}

/* one call of cusown_due_bookings() */
typedef struct Report
{
	DueRules	rules;
	ReturnSetInfo *result;
} Report;

static TimestampTz
due_since(const DueRule *rule, const DueBooking *booking)
{
	/* months added can be more days than months taken away */
	return Min(verb_after(booking->counts_from, &rule->age), rule->as_of);
}

static void
put_row(const Report *report, const DueRule *rule, const DueBooking *booking)
{
	Datum		values[7];
	bool		nulls[7] = {false};

	values[0] = UUIDPGetDatum(&booking->id);
	values[1] = UUIDPGetDatum(&booking->slot_id);
	nulls[1] = !booking->has_slot_id;
	values[2] = UUIDPGetDatum(&booking->business_id);
	nulls[2] = !booking->has_business;
	values[3] = CStringGetTextDatum(due_rule_name(rule));
	values[4] = TimestampTzGetDatum(due_since(rule, booking));
	values[5] = CStringGetTextDatum(verdict_names[booking->verdict]);
	nulls[6] = booking->finding == NULL;
	values[6] = nulls[6] ? (Datum) 0 : CStringGetTextDatum(booking->finding);
	tuplestore_putvalues(report->result->setResult, report->result->setDesc,
						 values, nulls);
}

static bool
report_window(Binding *binding, const Report *report, const DueRule *rule,
			  ReadingKey *key)
{
	DueBookings due = due_read_next(binding, rule, key, cusown_batch_size,
									true);

	if (due.count == 0)
		return false;
	due_ask_checks(binding, &due, true);
	for (int i = 0; i < due.count; i++)
		put_row(report, rule, &due.items[i]);
	due_move_key(key, &due.items[due.count - 1]);
	return true;
}

static void
report_rule(Binding *binding, const Report *report, const DueRule *rule)
{
	ReadingKey	key = due_first_key();
	MemoryContext window_context;
	MemoryContext caller;
	bool		goes_on = true;

	window_context = AllocSetContextCreate(CurrentMemoryContext,
										   "cusown_ops due bookings window",
										   ALLOCSET_DEFAULT_SIZES);
	while (goes_on)
	{
		CHECK_FOR_INTERRUPTS();
		caller = MemoryContextSwitchTo(window_context);
		goes_on = report_window(binding, report, rule, &key);
		MemoryContextSwitchTo(caller);
		MemoryContextReset(window_context);
	}
	MemoryContextDelete(window_context);
}

static void
report_body(void *state)
{
	Report	   *report = state;
	Binding    *binding = binding_use(relations_read);

	verb_check_row_security(binding, relations_read);
	due_require(binding, &report->rules);
	for (int i = 0; i < report->rules.count; i++)
		report_rule(binding, report, &report->rules.items[i]);
}

/*
 * cusown_due_bookings(older_than interval DEFAULT NULL,
 *		as_of timestamptz DEFAULT now(), hold_grace interval DEFAULT NULL,
 *		OUT booking_id uuid, OUT slot_id uuid, OUT business_id uuid,
 *		OUT rule text, OUT due_since timestamptz, OUT verdict text,
 *		OUT finding text)
 *		RETURNS SETOF record
 *
 * Pending bookings older than older_than (NULL: booking_ttl), then those whose
 * slot's hold ended more than hold_grace ago (NULL: none), each oldest first,
 * and what an expiry run would do with each.  Writes and locks nothing.
 *
 * Errors: UO001 nothing attached, or reserved_until not bound and hold_grace
 * given; 22023, 22004 arguments; 42501 row-level security would hide rows.
 *
 * Source: runbook "Cron Failure", symptoms.
 */
Datum
cusown_due_bookings(PG_FUNCTION_ARGS)
{
	Report		report;
	TimestampTz as_of = verb_as_of(fcinfo, 1);

	report.rules = due_rules(fcinfo, 0, 2, as_of, as_of);
	InitMaterializedSRF(fcinfo, 0);
	report.result = (ReturnSetInfo *) fcinfo->resultinfo;
	verb_run(report_body, &report, false);
	return (Datum) 0;
}
