/*-------------------------------------------------------------------------
 *
 * payment_mismatch.c
 *	  Payments and bookings that contradict each other:
 *	  cusown_payment_mismatches().
 *
 * Each kind is one statement over the whole table, read as a stream.  What is
 * worst comes first.  What is normal in the application is no mismatch: a booking
 * may be pending until its owner answers, cash is paid at the counter, and a
 * placeholder is no provider_ref.  Most payments that are processing are
 * checkouts that were given up; those older than a day are for information.
 *
 * Each pass reads a payments table once: by far the most payments are completed,
 * so no index would leave much of it out.
 *
 * Nothing is locked or changed, and it works on a standby.
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
#include "payment_ref.h"
#include "template.h"
#include "verb.h"

#define PROCESSING_GRACE_US USECS_PER_DAY

/* "for 47 hours" is shorter than "for 1 day and 23 hours" */
#define HOURS_SHOWN 48

/* how old something must be */
typedef enum Grace
{
	GRACE_NONE,
	GRACE_PENDING,				/* cusown_ops.paid_pending_grace */
	GRACE_IN_FLIGHT,			/* cusown_ops.processing_grace */
	GRACE_DAY
} Grace;

/*
 * $1: only what is from before.  Gives id, and either finding or since; and
 * severity where the kind has no fixed one.
 */
typedef struct Mismatch
{
	const char *kind;
	const char *severity;		/* or NULL */
	Grace		grace;
	const char *needed[2][2];	/* relation, column; it cannot be told without */
	Template	statement;
} Mismatch;

/* one call of cusown_payment_mismatches() */
typedef struct Report
{
	Binding    *binding;
	const Mismatch *mismatch;	/* the one that is read */
	TimestampTz now;
	MemoryContext row_context;	/* of one row */
	ReturnSetInfo *result;
} Report;

static const char *const relations_read[] = {"payments", "bookings", NULL};

PG_FUNCTION_INFO_V1(cusown_payment_mismatches);

/* ---------- statements ---------- */

#define MISMATCH_ARGS 1, {TIMESTAMPTZOID}, true

/* when a payment was completed, as far as it says so */
#define COMPLETED_AT \
	"coalesce([p.{payments.verified_at}, ]p.{payments.created_at})"

#define PAYMENTS_OF_BOOKING \
	" FROM {payments} p JOIN {bookings} b" \
	" ON b.{bookings.id} = p.{payments.booking_id}"

#define UNFINISHED \
	"(p.{payments.status} = 'initiated' OR p.{payments.status} = 'pending'" \
	" OR p.{payments.status} = 'processing')"

static const Mismatch mismatches[] = {
	{"paid_twice", "critical", GRACE_NONE, {{NULL}}, {
		"SELECT p.{payments.booking_id} AS id,"
		" (pg_catalog.count(*))::text || ' completed' AS finding"
		" FROM {payments} p WHERE p.{payments.status} = 'completed'"
		" AND p.{payments.booking_id} IS NOT NULL"
		" GROUP BY p.{payments.booking_id} HAVING pg_catalog.count(*) > 1"
		" ORDER BY p.{payments.booking_id}",
		MISMATCH_ARGS
	}},
	{"over_refunded", "critical", GRACE_NONE,
		{{"payments", "amount"}, {"payments", "refund_amount"}}, {
			"SELECT p.{payments.id} AS id, ((p.{payments.refund_amount}::int8)"
			" - (p.{payments.amount}::int8))::text || ' over' AS finding"
			" FROM {payments} p"
			" WHERE (p.{payments.refund_amount}::int8)"
			" > (p.{payments.amount}::int8)"
			" ORDER BY p.{payments.created_at}, p.{payments.id}",
			MISMATCH_ARGS
	}},
	{"paid_cancelled", "critical", GRACE_NONE, {{NULL}}, {
		"SELECT p.{payments.id} AS id, b.{bookings.status}::text AS finding"
		PAYMENTS_OF_BOOKING
		" WHERE p.{payments.status} = 'completed'"
		" AND (b.{bookings.status} = 'cancelled'"
		" OR b.{bookings.status} = 'rejected')"
		" ORDER BY p.{payments.created_at}, p.{payments.id}",
		MISMATCH_ARGS
	}},

	/*
	 * the references first; then whose they are, by an index where there is
	 * one: that the number is whole tells the planner that they are few
	 */
	{"shared_ref", NULL, GRACE_NONE, {{"payments", "provider_ref"}, {NULL}}, {
		"WITH shared AS MATERIALIZED (SELECT p.{payments.provider_ref} AS ref"
		"[, p.{payments.provider} AS provider] FROM {payments} p"
		" WHERE " PAYMENT_REF_IS_NAMED("p")
		" GROUP BY [p.{payments.provider}, ]p.{payments.provider_ref}"
		" HAVING pg_catalog.count(*) > 1 AND (pg_catalog.count(*) % 1) = 0)"
		" SELECT (pg_catalog.array_agg(p.{payments.id}"
		" ORDER BY p.{payments.created_at}, p.{payments.id}))[1] AS id,"
		" CASE WHEN pg_catalog.count(*) FILTER"
		" (WHERE p.{payments.status} = 'completed') > 1"
		" THEN 'critical'::text ELSE 'warning'::text END AS severity,"
		" (pg_catalog.count(*))::text || ' payments' AS finding"
		" FROM shared s JOIN {payments} p"
		" ON p.{payments.provider_ref} = s.ref"
		"[ AND (p.{payments.provider} = s.provider"
		" OR (p.{payments.provider} IS NULL AND s.provider IS NULL))]"
		" WHERE " PAYMENT_REF_IS_REAL("p")
		" GROUP BY [{?payments.provider}s.provider, ]s.ref"
		" HAVING pg_catalog.count(*) > 1 ORDER BY severity, s.ref",
		MISMATCH_ARGS
	}},
	{"paid_pending", "warning", GRACE_PENDING, {{NULL}}, {
		"SELECT p.{payments.id} AS id, " COMPLETED_AT " AS since"
		PAYMENTS_OF_BOOKING
		" WHERE p.{payments.status} = 'completed'"
		" AND b.{bookings.status} = 'pending' AND " COMPLETED_AT " < $1"
		" ORDER BY since, p.{payments.id}",
		MISMATCH_ARGS
	}},

	/*
	 * not while somebody is paying; once paid and refunded was a decision.
	 * The last payment is joined: looked up for each, it would cost a scan
	 * where booking_id has no index.
	 */
	{"unpaid", "warning", GRACE_IN_FLIGHT,
		{{"bookings", "payment_required"}, {NULL}}, {
			"SELECT u.id, coalesce(u.status, 'no payment'::text) AS finding"
			" FROM (SELECT DISTINCT ON (b.{bookings.id}) b.{bookings.id} AS id,"
			" b.{bookings.created_at} AS created_at,"
			" p.{payments.status}::text AS status FROM {bookings} b"
			" LEFT JOIN {payments} p ON p.{payments.booking_id} = b.{bookings.id}"
			" WHERE b.{bookings.status} = 'confirmed'"
			" AND b.{bookings.payment_required}"
			"[ AND (b.{bookings.payment_type}::text = 'cash') IS NOT TRUE]"
			" AND NOT EXISTS (SELECT FROM {payments} p"
			" WHERE p.{payments.booking_id} = b.{bookings.id}"
			" AND (p.{payments.status} = 'completed'"
			" OR p.{payments.status} = 'partially_refunded'"
			" OR p.{payments.status} = 'refunded'"
			" OR (" UNFINISHED " AND p.{payments.created_at} > $1)))"
			" ORDER BY b.{bookings.id}, p.{payments.created_at} DESC,"
			" p.{payments.id} DESC) u ORDER BY u.created_at, u.id",
			MISMATCH_ARGS
	}},
	{"processing", "info", GRACE_DAY, {{NULL}}, {
		"SELECT p.{payments.id} AS id, p.{payments.created_at} AS since"
		" FROM {payments} p WHERE p.{payments.status} = 'processing'"
		" AND p.{payments.created_at} < $1"
		" ORDER BY since, p.{payments.id}",
		MISMATCH_ARGS
	}},
};

/* ---------- rows of the report ---------- */

static char *
age_text(const Report *report, TimestampTz since)
{
	int64		hours;

	if (TIMESTAMP_NOT_FINITE(since))
		return "for ever";
	hours = (report->now - since) / USECS_PER_HOUR;
	if (hours >= HOURS_SHOWN)
		return psprintf("for " INT64_FORMAT " days", hours / HOURS_PER_DAY);
	return psprintf("for " INT64_FORMAT " hour%s", hours, hours == 1 ? "" : "s");
}

/* TemplateRow */
static void
put_row(const StreamedRow *row, void *state)
{
	const Report *report = state;
	MemoryContext caller = MemoryContextSwitchTo(report->row_context);
	Datum		values[5];
	bool		nulls[5] = {false};
	bool		no_severity;
	bool		no_finding;
	bool		isnull;
	Datum		severity = template_attribute(row, "severity", &no_severity);
	Datum		finding = template_attribute(row, "finding", &no_finding);
	Datum		since = template_attribute(row, "since", &isnull);

	CHECK_FOR_INTERRUPTS();
	values[0] = CStringGetTextDatum(report->mismatch->kind);
	values[1] = no_severity ?
		CStringGetTextDatum(report->mismatch->severity) : severity;
	values[2] = template_attribute(row, "id", &isnull);
	values[3] = no_finding ?
		CStringGetTextDatum(age_text(report, DatumGetTimestampTz(since))) :
		finding;
	values[4] = CStringGetTextDatum(psprintf("SELECT * FROM cusown_payment_facts('%s')",
											 verb_uuid_text(DatumGetUUIDP(values[2]))));
	tuplestore_putvalues(report->result->setResult, report->result->setDesc,
						 values, nulls);
	MemoryContextSwitchTo(caller);
	MemoryContextReset(report->row_context);
}

static TimestampTz
before(const Report *report)
{
	switch (report->mismatch->grace)
	{
		case GRACE_PENDING:
			return report->now - cusown_paid_pending_grace * USECS_PER_SEC;
		case GRACE_IN_FLIGHT:
			return report->now - cusown_processing_grace * USECS_PER_SEC;
		case GRACE_DAY:
			return report->now - PROCESSING_GRACE_US;
		case GRACE_NONE:
			break;
	}
	return report->now;
}

/* says so where it is not */
static bool
can_be_told(const Report *report)
{
	const Mismatch *mismatch = report->mismatch;

	for (int i = 0; i < lengthof(mismatch->needed); i++)
	{
		const char *relation = mismatch->needed[i][0];
		const char *column = mismatch->needed[i][1];

		if (relation == NULL ||
			binding_column(report->binding, relation, column) != NULL)
			continue;
		ereport(NOTICE,
				(errmsg("kind \"%s\" is left out: canonical name \"%s.%s\" is not bound in application schema \"%s\"",
						mismatch->kind, relation, column,
						report->binding->app_schema)));
		return false;
	}
	return true;
}

static void
report_body(void *state)
{
	Report	   *report = state;

	report->binding = binding_use(relations_read);
	verb_check_row_security(report->binding, relations_read);
	report->row_context = AllocSetContextCreate(CurrentMemoryContext,
												"cusown_ops mismatch",
												ALLOCSET_DEFAULT_SIZES);
	for (int i = 0; i < lengthof(mismatches); i++)
	{
		Datum		values[1];

		report->mismatch = &mismatches[i];
		if (!can_be_told(report))
			continue;
		values[0] = TimestampTzGetDatum(before(report));
		template_stream(report->binding, &report->mismatch->statement, values,
						NULL, true, put_row, report);
	}
}

/*
 * cusown_payment_mismatches(OUT kind text, OUT severity text, OUT id uuid,
 *		OUT finding text, OUT command text)
 *		RETURNS SETOF record
 *
 * Payments and bookings that contradict each other, the worst first.  Writes and
 * locks nothing.
 *
 * Errors: UO001 no application attached, or no payments; 42501 row-level security
 * would hide rows.
 *
 * Source: runbook "Payment Mismatch", symptoms and step 1.
 */
Datum
cusown_payment_mismatches(PG_FUNCTION_ARGS)
{
	Report		report = {0};

	report.now = GetCurrentTransactionStartTimestamp();
	InitMaterializedSRF(fcinfo, 0);
	report.result = (ReturnSetInfo *) fcinfo->resultinfo;
	verb_run(report_body, &report, false);
	return (Datum) 0;
}
