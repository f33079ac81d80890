/*-------------------------------------------------------------------------
 *
 * census.c
 *	  Counts what takes a look at whole tables: the job take_census.
 *
 * Double bookings and payments at odds are found by reading all bookings and
 * payments, which nobody wants each time somebody looks for symptoms.  The job
 * counts them, one kind of reports in a step, and keeps the figures.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/guc.h"

#include "job.h"
#include "template.h"
#include "verb.h"

/* one run of the job */
typedef struct Census
{
	int			next;			/* report */
} Census;

static const char *const relations_read[] = {
	"bookings", "slots", "payments", "businesses", NULL
};

/* $1 app_schema */
#define COUNT(report) \
	"INSERT INTO cusown_ops.census AS c (app_schema, symptom, observed, since)" \
	" SELECT $1, n.symptom, n.observed, CASE WHEN n.observed > 0" \
	" THEN pg_catalog.now() END FROM cusown_ops." report "() n" \
	" ON CONFLICT (app_schema, symptom) DO UPDATE SET" \
	" observed := excluded.observed, since := CASE WHEN excluded.observed > 0" \
	" THEN coalesce(c.since, excluded.since) END," \
	" counted_at := excluded.counted_at"

/* what a report reads */
typedef struct Report
{
	const char *relation;
	Template	count;
} Report;

static const Report reports[] = {
	{"bookings", {COUNT("count_double_bookings"), 1, {NAMEOID}}},
	{"payments", {COUNT("count_payment_mismatches"), 1, {NAMEOID}}},
};

static bool
census_step(JobRun *run)
{
	Census	   *census = run->state;
	const Report *report = &reports[census->next++];
	Datum		values[1];
	int			settings;

	verb_check_row_security(run->binding, relations_read);
	values[0] = template_name(run->binding->app_schema);
	/* reports are of the chosen application, a run may be of any */
	settings = binding_choose_schema(run->binding->app_schema);
	if (binding_relation(run->binding, report->relation) != NULL)
		run->counts.changed += template_execute(NULL, &report->count, values,
												NULL, false);
	AtEOXact_GUC(true, settings);
	return census->next < lengthof(reports);
}

const Job	take_census_job = {
	"take_census",
	"counts double bookings and payments at odds, for cusown_symptoms()",
	3600, true, relations_read, sizeof(Census), census_step
};
