/*-------------------------------------------------------------------------
 *
 * history.c
 *	  What our own tables need not keep for ever, and the job prune_history.
 *
 * Changes older than cusown_ops.change_retention, and worklist entries and alerts
 * that were closed longer ago than that, go.  The ledger bounds itself at the end
 * of each run; but for lazy heal, where the application's role may not.
 *
 * An application that was detached has no runs any more, so each run prunes
 * for it too, once it has nothing left to do for its own; its ledger as well,
 * which refunds its payments had, and its statements, by the same age; and
 * idempotency keys that have expired.  What is open on its worklist stays, for
 * when it is attached again.
 *
 * Of webhooks the bodies go after cusown_ops.webhook_retention; that an event came
 * is never forgotten, but for an application that was detached.
 *
 * Statements of an attached application are kept for STATEMENT_DAYS: refunds come
 * months later, and their lines are evidence.  A statement goes before its lines,
 * so that nobody reconciles half of one.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "cusown_ops.h"
#include "idempotency.h"
#include "job.h"
#include "lazy.h"
#include "ledger.h"
#include "statement.h"
#include "template.h"
#include "verb.h"

PG_FUNCTION_INFO_V1(cusown_prune_history);

/*
 * $1 app_schema, $2 older than this, $3 how many.  A reader whose cursor stands
 * before the last one is told that it has missed something (change.c).
 */
static const Template prune_changes = {
	"WITH old AS MATERIALIZED (SELECT c.id AS id FROM cusown_ops.change c"
	" WHERE c.app_schema = $1 AND c.at < $2 ORDER BY c.at LIMIT $3"
	" FOR UPDATE SKIP LOCKED),"
	" gone AS (DELETE FROM cusown_ops.change c USING old o"
	" WHERE c.app_schema = $1 AND c.id = o.id"
	" RETURNING c.xid AS xid, c.id AS id),"
	" last AS (SELECT g.xid, g.id FROM gone g"
	" ORDER BY g.xid DESC, g.id DESC LIMIT 1),"
	" moved AS (UPDATE cusown_ops.change_stream s"
	" SET pruned_xid := l.xid, pruned_id := l.id FROM last l"
	" WHERE s.pruned_xid IS NULL"
	" OR (s.pruned_xid, s.pruned_id) < (l.xid, l.id))"
	" SELECT FROM gone",
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

static const Template prune_totals = {
	"DELETE FROM cusown_ops.job_total t WHERE t.app_schema = $1"
	" AND t.at < $2 AND $3 > 0",
	3, {NAMEOID, TIMESTAMPTZOID, INT8OID}
};

static const Template prune_refunds = {
	"WITH old AS MATERIALIZED (SELECT r.payment_id AS payment_id,"
	" r.refund_ref AS refund_ref FROM cusown_ops.payment_refund r"
	" WHERE r.app_schema = $1 AND r.at < $2 LIMIT $3 FOR UPDATE SKIP LOCKED)"
	" DELETE FROM cusown_ops.payment_refund r USING old o"
	" WHERE r.app_schema = $1 AND r.payment_id = o.payment_id"
	" AND r.refund_ref = o.refund_ref",
	3, {NAMEOID, TIMESTAMPTZOID, INT8OID}
};

static const Template prune_statements = {
	"WITH old AS MATERIALIZED (SELECT t.id AS id FROM cusown_ops.statement t"
	" WHERE t.app_schema = $1 AND t.loaded_at < $2 LIMIT $3"
	" FOR UPDATE SKIP LOCKED)"
	" DELETE FROM cusown_ops.statement t USING old o"
	" WHERE t.app_schema = $1 AND t.id = o.id",
	3, {NAMEOID, TIMESTAMPTZOID, INT8OID}
};

/* those of statements that are gone, by steps along the index; $2 means nothing */
static const Template prune_lines = {
	"WITH RECURSIVE step AS (SELECT (SELECT l.statement_id"
	" FROM cusown_ops.statement_line l WHERE l.app_schema = $1"
	" ORDER BY l.statement_id LIMIT 1) AS id"
	" UNION ALL SELECT (SELECT l.statement_id"
	" FROM cusown_ops.statement_line l WHERE l.app_schema = $1"
	" AND l.statement_id > s.id ORDER BY l.statement_id LIMIT 1)"
	" FROM step s WHERE s.id IS NOT NULL),"
	" old AS MATERIALIZED (SELECT l.id AS id FROM step s"
	" JOIN cusown_ops.statement_line l ON l.app_schema = $1"
	" AND l.statement_id = s.id"
	" WHERE NOT EXISTS (SELECT FROM cusown_ops.statement t"
	" WHERE t.app_schema = $1 AND t.id = s.id)"
	" LIMIT $3 FOR UPDATE OF l SKIP LOCKED)"
	" DELETE FROM cusown_ops.statement_line l USING old o"
	" WHERE l.app_schema = $1 AND l.id = o.id",
	3, {NAMEOID, TIMESTAMPTZOID, INT8OID}
};

/* the inbox remembers their hashes */
static const Template prune_bodies = {
	"WITH old AS MATERIALIZED (SELECT b.inbox_id AS inbox_id"
	" FROM cusown_ops.webhook_body b WHERE b.app_schema = $1 AND b.at < $2"
	" ORDER BY b.at LIMIT $3 FOR UPDATE SKIP LOCKED)"
	" DELETE FROM cusown_ops.webhook_body b USING old o"
	" WHERE b.app_schema = $1 AND b.inbox_id = o.inbox_id",
	3, {NAMEOID, TIMESTAMPTZOID, INT8OID}
};

static const Template prune_inbox = {
	"WITH old AS MATERIALIZED (SELECT i.id AS id FROM cusown_ops.webhook_inbox i"
	" WHERE i.app_schema = $1 AND i.received_at < $2 LIMIT $3"
	" FOR UPDATE SKIP LOCKED)"
	" DELETE FROM cusown_ops.webhook_inbox i USING old o"
	" WHERE i.app_schema = $1 AND i.id = o.id",
	3, {NAMEOID, TIMESTAMPTZOID, INT8OID}
};

/* what was refused bounds itself */
static const Template prune_rejected = {
	"WITH old AS MATERIALIZED (SELECT r.place AS place"
	" FROM cusown_ops.webhook_rejected r WHERE r.app_schema = $1"
	" AND r.at < $2 LIMIT $3 FOR UPDATE SKIP LOCKED)"
	" DELETE FROM cusown_ops.webhook_rejected r USING old o"
	" WHERE r.app_schema = $1 AND r.place = o.place",
	3, {NAMEOID, TIMESTAMPTZOID, INT8OID}
};

static const Template prune_census = {
	"DELETE FROM cusown_ops.census c WHERE c.app_schema = $1"
	" AND c.counted_at < $2 AND $3 > 0",
	3, {NAMEOID, TIMESTAMPTZOID, INT8OID}
};

static const Template prune_alerts = {
	"DELETE FROM cusown_ops.alert a WHERE a.app_schema = $1 AND a.id = ANY (ARRAY("
	"SELECT o.id FROM cusown_ops.alert o WHERE o.app_schema = $1"
	" AND o.resolved_at < $2 LIMIT $3 FOR UPDATE SKIP LOCKED))",
	3, {NAMEOID, TIMESTAMPTZOID, INT8OID}
};

/* nobody evaluates the open ones of an application that was detached */
static const Template prune_detached_alerts = {
	"DELETE FROM cusown_ops.alert a WHERE a.app_schema = $1 AND a.id = ANY (ARRAY("
	"SELECT o.id FROM cusown_ops.alert o WHERE o.app_schema = $1"
	" AND o.last_seen < $2 LIMIT $3 FOR UPDATE SKIP LOCKED))",
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
	" UNION " SCHEMAS_OF("cusown_ops.job_run")
	" UNION " SCHEMAS_OF("cusown_ops.job_total")
	" UNION " SCHEMAS_OF("cusown_ops.payment_refund")
	" UNION " SCHEMAS_OF("cusown_ops.statement")
	" UNION " SCHEMAS_OF("cusown_ops.statement_line")
	" UNION " SCHEMAS_OF("cusown_ops.census")
	" UNION " SCHEMAS_OF("cusown_ops.alert")
	" UNION " SCHEMAS_OF("cusown_ops.webhook_body")
	" UNION " SCHEMAS_OF("cusown_ops.webhook_inbox")
	" UNION " SCHEMAS_OF("cusown_ops.webhook_rejected")
	" UNION " SCHEMAS_OF("cusown_ops.idempotency_key") ") d"
	" WHERE NOT EXISTS (SELECT FROM cusown_ops.binding n"
	" WHERE n.app_schema = d.app_schema)",
	0, {0}
};

/* nothing of the application is read or changed */
static const char *const no_relations[] = {NULL};

/* how many rows the step that began with before may still delete */
static int64
room(const JobRun *run, int64 before)
{
	return run->batch_size - (run->counts.changed - before);
}

/* what is older than so many seconds */
static void
prune(JobRun *run, const Template *statement, const NameData *schema,
	  int64 age, int64 before)
{
	Datum		values[3];
	uint64		rows;

	values[0] = NameGetDatum(schema);
	values[1] = TimestampTzGetDatum(run->as_of - age * USECS_PER_SEC);
	values[2] = Int64GetDatum(room(run, before));
	rows = template_execute(NULL, statement, values, NULL, false);
	run->counts.changed += rows;
	run->counts.looked_at += rows;
}

static void
prune_schema(JobRun *run, const NameData *schema, bool detached, int64 before)
{
	int64		age = cusown_change_retention;

	prune(run, &prune_changes, schema, age, before);
	prune(run, &prune_attention, schema, age, before);
	prune(run, &prune_alerts, schema, age, before);
	prune(run, &prune_statements, schema,
		  detached ? age : STATEMENT_DAYS * (int64) SECS_PER_DAY, before);
	prune(run, &prune_lines, schema, age, before);
	prune(run, &prune_bodies, schema,
		  detached ? age : cusown_webhook_retention, before);
	if (!detached)
		return;
	prune(run, &prune_runs, schema, age, before);
	prune(run, &prune_totals, schema, age, before);
	prune(run, &prune_refunds, schema, age, before);
	prune(run, &prune_census, schema, age, before);
	prune(run, &prune_detached_alerts, schema, age, before);
	prune(run, &prune_inbox, schema, age, before);
	prune(run, &prune_rejected, schema, age, before);
	prune(run, &prune_expired_keys, schema, 0, before);
}

static void
prune_detached(JobRun *run, int64 before)
{
	uint64		rows = template_execute(NULL, &detached_schemas, NULL, NULL,
										false);
	NameData   *schemas = palloc(Max(rows, 1) * sizeof(NameData));

	for (uint64 row = 0; row < rows; row++)
	{
		bool		isnull;

		schemas[row] = *DatumGetName(template_column(row, "app_schema",
													 &isnull));
	}
	SPI_freetuptable(SPI_tuptable);
	for (uint64 i = 0; i < rows; i++)
		prune_schema(run, &schemas[i], true, before);
}

/* at most batch_size rows; false when there were fewer */
static bool
prune_step(JobRun *run)
{
	int64		before = run->counts.changed;
	NameData	schema;

	namestrcpy(&schema, run->binding->app_schema);
	ledger_bound(run->binding->app_schema, LAZY_JOB);
	prune_schema(run, &schema, false, before);
	if (room(run, before) > 0)
		prune_detached(run, before);
	return room(run, before) == 0;
}

/* one call of cusown_prune_history() */
typedef struct Pruning
{
	JobRun		run;
	int64		max_rows;
	bool		more;
} Pruning;

static void
prune_body(void *state)
{
	Pruning    *pruning = state;
	JobRun	   *run = &pruning->run;

	run->binding = binding_use(no_relations);
	pruning->more = true;
	while (pruning->more && run->counts.changed < pruning->max_rows)
	{
		CHECK_FOR_INTERRUPTS();
		run->batch_size = Min(cusown_batch_size,
							  pruning->max_rows - run->counts.changed);
		pruning->more = prune_step(run);
	}
}

/*
 * cusown_prune_history(max_rows integer DEFAULT 10000,
 *		as_of timestamptz DEFAULT now(), source text DEFAULT 'manual',
 *		dry_run boolean DEFAULT false,
 *		OUT pruned bigint, OUT more boolean)
 *
 * Deletes at most max_rows of our own rows that are older than
 * cusown_ops.change_retention: changes, worklist entries that were closed, alerts
 * that were resolved, and
 * the ledger, refunds and statements of applications that were detached; and
 * statements that are older than 400 days.
 *
 * Errors: as cusown_expire_bookings().
 *
 * Locks: the rows, FOR UPDATE SKIP LOCKED; nothing of the application.
 *
 * Source: none of the runbooks; what they write must not grow for ever.
 */
Datum
cusown_prune_history(PG_FUNCTION_ARGS)
{
	Pruning		pruning = {0};
	TupleDesc	desc;
	Datum		values[2];
	bool		nulls[2] = {false};
	bool		dry_run;

	verb_check_transaction("cusown_prune_history");
	pruning.max_rows = verb_max_rows(fcinfo, 0);
	pruning.run.as_of = verb_as_of(fcinfo, 1);
	pruning.run.source = verb_source(fcinfo, 2);
	dry_run = verb_dry_run(fcinfo, 3);
	verb_check_as_of(pruning.run.as_of, dry_run);
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	verb_run(prune_body, &pruning, dry_run);

	values[0] = Int64GetDatum(pruning.run.counts.changed);
	values[1] = BoolGetDatum(pruning.more);
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values,
											 nulls));
}

const Job	prune_history_job = {
	"prune_history",
	"deletes changes and closed worklist entries older than cusown_ops.change_retention, and old statements",
	86400, true, no_relations, 1, prune_step
};
