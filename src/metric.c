/*-------------------------------------------------------------------------
 *
 * metric.c
 *	  What the views cusown_ops.metric_* need that SQL cannot do.
 *
 * Metrics are of the whole database: a scraper has no application chosen.  So
 * symptoms, which are of the chosen one, are asked for with each application
 * chosen in turn, for as long as that takes.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "utils/guc.h"

#include "binding.h"
#include "template.h"
#include "verb.h"
#include "worker.h"

PG_FUNCTION_INFO_V1(cusown_measure_symptoms);
PG_FUNCTION_INFO_V1(cusown_is_preloaded);

static const Template graded_symptoms = {
	"SELECT g.app_schema, g.symptom, g.runbook, g.observed, g.severity"
	" FROM cusown_ops.graded_symptoms() g",
	0, {0}
};

/* the rows of the statement that was executed last */
static void
put_rows(ReturnSetInfo *result, uint64 rows)
{
	for (uint64 row = 0; row < rows; row++)
		tuplestore_puttuple(result->setResult, SPI_tuptable->vals[row]);
	SPI_freetuptable(SPI_tuptable);
}

static void
measure_schema(ReturnSetInfo *result, const char *app_schema)
{
	int			settings = binding_choose_schema(app_schema);

	put_rows(result, template_execute(NULL, &graded_symptoms, NULL, NULL,
									  true));
	AtEOXact_GUC(true, settings);
}

/* what is attached may be read anew, and the list made anew, in between */
static void
measure_body(void *state)
{
	List	   *schemas = NIL;
	ListCell   *lc;

	foreach(lc, binding_attached())
		schemas = lappend(schemas, pstrdup(lfirst(lc)));
	foreach(lc, schemas)
		measure_schema(state, lfirst(lc));
}

/*
 * cusown_ops.measure_symptoms(OUT app_schema name, OUT symptom text,
 *		OUT runbook text, OUT observed double precision,
 *		OUT severity integer) RETURNS SETOF record
 *
 * What cusown_symptoms() says of each attached application.
 *
 * Errors: 42501 row-level security would hide rows.
 */
Datum
cusown_measure_symptoms(PG_FUNCTION_ARGS)
{
	InitMaterializedSRF(fcinfo, 0);
	verb_run(measure_body, fcinfo->resultinfo, false);
	return (Datum) 0;
}

/*
 * cusown_ops.is_preloaded() RETURNS boolean
 *
 * shared_preload_libraries itself is for superusers to see.
 */
Datum
cusown_is_preloaded(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(worker_shared != NULL);
}
