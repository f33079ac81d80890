/*-------------------------------------------------------------------------
 *
 * missing_index.c
 *	  Which indexes an attached application lacks: what cusown_attach() warns
 *	  of, without attaching.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "funcapi.h"
#include "utils/builtins.h"

#include "attach.h"
#include "attach_index.h"
#include "verb.h"

PG_FUNCTION_INFO_V1(cusown_missing_indexes);

static bool
is_one_confirmed(const Lookup *lookup)
{
	return lookup->unique && lookup->status != NULL;
}

static void
put_missing(ReturnSetInfo *result, const Lookup *lookup, const char *ddl)
{
	Datum		values[3];
	bool		nulls[3] = {false};

	values[0] = CStringGetTextDatum(lookup->relation);
	values[1] = BoolGetDatum(is_one_confirmed(lookup));
	nulls[2] = ddl[0] == '\0';
	values[2] = nulls[2] ? (Datum) 0 : CStringGetTextDatum(ddl);
	tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
}

static void
missing_body(void *state)
{
	List	   *names = attach_index_names(binding_use(NULL));

	for (const Lookup *lookup = attach_lookups; lookup->relation != NULL;
		 lookup++)
	{
		const Resolved *table = attach_find(names, lookup->relation, "");
		char	   *columns = table == NULL ? NULL :
		attach_index_columns(lookup, names);
		char	   *ddl = columns == NULL ? NULL :
		attach_index_remedy(lookup, table, columns, names);

		if (ddl != NULL)
			put_missing(state, lookup, ddl);
	}
}

/*
 * cusown_ops.missing_indexes(OUT relation text, OUT one_confirmed boolean,
 *		OUT ddl text) RETURNS SETOF record
 *
 * ddl is null where no index can be what is needed.
 *
 * Errors: UO001 no application attached.
 */
Datum
cusown_missing_indexes(PG_FUNCTION_ARGS)
{
	InitMaterializedSRF(fcinfo, 0);
	verb_run(missing_body, fcinfo->resultinfo, false);
	return (Datum) 0;
}
