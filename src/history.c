/*-------------------------------------------------------------------------
 *
 * history.c
 *	  The job prune_history: what our own tables need not keep for ever.
 *
 * Changes older than cusown_ops.change_retention, and worklist entries that
 * were closed longer ago than that, go.  The ledger bounds itself at the end
 * of each run.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "cusown_ops.h"
#include "job.h"
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

/* nothing of the application is read or changed */
static const char *const no_relations[] = {NULL};

static bool
prune_step(JobRun *run)
{
	Name		schema = palloc0(sizeof(NameData));
	Datum		values[3];
	uint64		changes;
	uint64		entries;

	namestrcpy(schema, run->binding->app_schema);
	values[0] = NameGetDatum(schema);
	values[1] = TimestampTzGetDatum(run->as_of -
									cusown_change_retention * USECS_PER_SEC);
	values[2] = Int64GetDatum(run->batch_size);
	changes = template_execute(NULL, &prune_changes, values, NULL, false);
	entries = template_execute(NULL, &prune_attention, values, NULL, false);
	run->counts.changed += changes + entries;
	run->counts.looked_at += changes + entries;
	return changes == run->batch_size || entries == run->batch_size;
}

const Job	prune_history_job = {
	"prune_history",
	"deletes changes and closed worklist entries older than cusown_ops.change_retention",
	86400, true, no_relations, 1, prune_step
};
