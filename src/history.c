/*-------------------------------------------------------------------------
 *
 * history.c
 *	  The job prune_history: what our own tables need not keep for ever.
 *
 * Changes older than cusown_ops.change_retention, and worklist entries that
 * were closed longer ago than that, go.  The ledger bounds itself at the end
 * of each run; but for lazy heal, where the application's role may not.
 *
 * An application that was detached has no runs any more, so each run prunes
 * for it too, once it has nothing left to do for its own; its ledger as well,
 * by the same age.  What is open on its worklist stays, for when it is
 * attached again.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "cusown_ops.h"
#include "job.h"
#include "lazy.h"
#include "ledger.h"
#include "template.h"

/* $1 app_schema, $2 older than this, $3 how many */
static const Template prune_changes = {
	"WITH old AS MATERIALIZED (SELECT c.id AS id FROM cusown_ops.change c"
	" WHERE c.app_schema = $1 AND c.at < $2 ORDER BY c.at LIMIT $3"
	" FOR UPDATE SKIP LOCKED)"
	" DELETE FROM cusown_ops.change c USING old o"
	" WHERE c.app_schema = $1 AND c.id = o.id",
	3, {NAMEOID, TIMESTAMPTZOID, INT8OID}
};

static const Template prune_attention = {
	"WITH old AS MATERIALIZED (SELECT a.id AS id FROM cusown_ops.attention a"
	" WHERE a.app_schema = $1 AND a.closed_at < $2 AND a.next_try < $2"
	" LIMIT $3 FOR UPDATE SKIP LOCKED)"
	" DELETE FROM cusown_ops.attention a USING old o WHERE a.id = o.id",
	3, {NAMEOID, TIMESTAMPTZOID, INT8OID}
};

static const Template prune_runs = {
	"WITH old AS MATERIALIZED (SELECT r.id AS id FROM cusown_ops.job_run r"
	" WHERE r.app_schema = $1"
	" AND coalesce(r.finished_at, r.last_batch_at, r.started_at) < $2"
	" ORDER BY r.id LIMIT $3 FOR UPDATE SKIP LOCKED)"
	" DELETE FROM cusown_ops.job_run r USING old o"
	" WHERE r.app_schema = $1 AND r.id = o.id",
	3, {NAMEOID, TIMESTAMPTZOID, INT8OID}
};

/* each of its schemas once, by steps along an index that begins with it */
#define SCHEMAS_OF(table) \
	"(WITH RECURSIVE step AS ((SELECT t.app_schema FROM " table " t" \
	" ORDER BY t.app_schema LIMIT 1)" \
	" UNION ALL SELECT (SELECT t.app_schema FROM " table " t" \
	" WHERE t.app_schema > s.app_schema ORDER BY t.app_schema LIMIT 1)" \
	" FROM step s WHERE s.app_schema IS NOT NULL)" \
	" SELECT s.app_schema FROM step s WHERE s.app_schema IS NOT NULL)"

/* schemas that have rows of ours, but no binding */
static const Template detached_schemas = {
	"SELECT d.app_schema FROM (" SCHEMAS_OF("cusown_ops.change")
	" UNION " SCHEMAS_OF("cusown_ops.attention")
	" UNION " SCHEMAS_OF("cusown_ops.job_run") ") d"
	" WHERE NOT EXISTS (SELECT FROM cusown_ops.binding n"
	" WHERE n.app_schema = d.app_schema)",
	0, {0}
};

/* nothing of the application is read or changed */
static const char *const no_relations[] = {NULL};

/* one batch from one table; whether it may have more */
static bool
prune(JobRun *run, const Template *statement, const Datum *values)
{
	uint64		rows = template_execute(NULL, statement, values, NULL, false);

	run->counts.changed += rows;
	run->counts.looked_at += rows;
	return rows == run->batch_size;
}

static bool
prune_schema(JobRun *run, const NameData *schema, bool detached)
{
	Datum		values[3];
	bool		more;

	values[0] = NameGetDatum(schema);
	values[1] = TimestampTzGetDatum(run->as_of -
									cusown_change_retention * USECS_PER_SEC);
	values[2] = Int64GetDatum(run->batch_size);
	more = prune(run, &prune_changes, values);
	more |= prune(run, &prune_attention, values);
	if (detached)
		more |= prune(run, &prune_runs, values);
	return more;
}

static bool
prune_detached(JobRun *run)
{
	uint64		rows = template_execute(NULL, &detached_schemas, NULL, NULL,
										false);
	NameData   *schemas = palloc(Max(rows, 1) * sizeof(NameData));
	bool		more = false;

	for (uint64 row = 0; row < rows; row++)
	{
		bool		isnull;

		schemas[row] = *DatumGetName(template_column(row, "app_schema",
													 &isnull));
	}
	SPI_freetuptable(SPI_tuptable);
	for (uint64 i = 0; i < rows; i++)
		more |= prune_schema(run, &schemas[i], true);
	return more;
}

static bool
prune_step(JobRun *run)
{
	NameData	schema;

	namestrcpy(&schema, run->binding->app_schema);
	ledger_bound(run->binding->app_schema, LAZY_JOB);
	return prune_schema(run, &schema, false) || prune_detached(run);
}

const Job	prune_history_job = {
	"prune_history",
	"deletes changes and closed worklist entries older than cusown_ops.change_retention",
	86400, true, no_relations, 1, prune_step
};
