/*-------------------------------------------------------------------------
 *
 * takeover.c
 *	  Which jobs the worker runs instead of the scheduler.
 *
 * The worker takes a job over when it is late, as cusown_cron_health() says,
 * and then runs it at the job's own interval, until the scheduler has run it
 * again or it is disabled.  The row in cusown_ops.takeover is what it remembers
 * of that from visit to visit.  Begin and end are a WARNING in the server's log and
 * an audit row of the application, cron_failed and cron_recovered; an
 * application that does not take the audit row is covered for all the same.
 * One whose bookings a subscription writes is not covered: what its publisher's
 * jobs do arrives as well.
 *
 * Locking protocol: only the worker of a database writes the table; of two at the
 * same time the second finds its row written, or gone, and tells nobody.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/memutils.h"

#include "audit.h"
#include "ledger.h"
#include "subtransaction.h"
#include "takeover.h"
#include "template.h"

static const char *const relations_told[] = {"audit_logs", NULL};

#define AGO(moment, times) \
	" " moment " + pg_catalog.make_interval(0, 0, 0, 0, 0, 0," \
	" pg_catalog.date_part('epoch', j.every) * " times ")" \
	" < pg_catalog.statement_timestamp()"

/*
 * Whether a subscription writes the bookings of application c: then its
 * publisher has the jobs.  It may name a table or its partitions.
 */
#define IS_SUBSCRIBED \
	"EXISTS (SELECT FROM pg_catalog.pg_subscription_rel r" \
	" JOIN pg_catalog.pg_subscription u ON u.oid = r.srsubid" \
	" JOIN pg_catalog.pg_class t ON t.oid =" \
	" coalesce(pg_catalog.pg_partition_root(r.srrelid)::oid, r.srrelid)" \
	" JOIN pg_catalog.pg_namespace n ON n.oid = t.relnamespace" \
	" JOIN cusown_ops.binding b ON b.bound_schema = n.nspname" \
	" AND b.bound_name = t.relname" \
	" WHERE u.subenabled AND b.app_schema = c.app_schema" \
	" AND b.relation = 'bookings')"

/*
 * Rows are of jobs that the worker covers, or that are late.  A job that has never
 * succeeded is late when the scheduler has had as long for it since it was set up.
 *
 * waits says why one is not to be run now, or is null: it is run by somebody at
 * the moment; its last run failed, died or was cancelled less than its interval
 * ago, as what killed a session may do so again, and who cancelled it meant it; or
 * it is covered and its interval is not over.  One that was left unfinished goes
 * on at once, but behind those that have waited longer.
 */
static const Template needing_worker = {
	"SELECT c.app_schema::text AS app_schema, c.job, c.every_ms,"
	" pg_catalog.to_char(pg_catalog.timezone('UTC', c.last_success),"
	" 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') AS last_success,"
	" c.covers, c.is_disabled, c.is_over, " IS_SUBSCRIBED " AS is_subscribed,"
	" CASE WHEN cusown_ops.job_is_alive(c.app_schema, c.job)"
	" THEN 'runs elsewhere' WHEN c.has_failed THEN 'waits to try again'"
	" WHEN NOT c.is_time THEN 'covers' END AS waits"
	" FROM ("
	"SELECT s.app_schema, j.name AS job, ok.finished_at AS last_success,"
	" t.since IS NOT NULL AS covers, NOT j.enabled AS is_disabled,"
	" least(pg_catalog.date_part('epoch', j.every) * 1000, 3600000)::int8"
	" AS every_ms,"
	" t.since IS NOT NULL AND (NOT j.enabled OR EXISTS (SELECT"
	" FROM cusown_ops.job_run r WHERE r.app_schema = s.app_schema"
	" AND r.job = j.name AND r.status = 'succeeded' AND r.source = 'cron'"
	" AND r.finished_at > t.since AND " HAS_HAPPENED ")) AS is_over,"
	" j.enabled AND "
	AGO("coalesce(ok.finished_at, greatest(s.since, j.since))", "2") " AS is_late,"
	" (r.status = ANY ('{failed,cancelled,died}') AND " HAS_HAPPENED
	" AND NOT" AGO("r.finished_at", "1") ") IS TRUE AS has_failed,"
	" (t.since IS NULL OR ok.finished_at IS NULL OR ok.more_left"
	" OR" AGO("ok.finished_at", "1") ") AS is_time,"
	" r.started_at AS last_run"
	ATTACHED_JOBS
	" LEFT JOIN cusown_ops.takeover t ON t.app_schema = s.app_schema"
	" AND t.job = j.name"
	" LEFT JOIN LATERAL (SELECT r.finished_at, r.more_left"
	" FROM cusown_ops.job_run r"
	" WHERE r.app_schema = s.app_schema AND r.job = j.name"
	" AND r.status = 'succeeded' AND " HAS_HAPPENED
	" ORDER BY r.id DESC LIMIT 1) ok ON true"
	" LEFT JOIN LATERAL (SELECT r.started_at, r.finished_at, r.status"
	" FROM cusown_ops.job_run r WHERE r.app_schema = s.app_schema"
	" AND r.job = j.name AND r.status <> 'skipped'"
	" ORDER BY r.id DESC LIMIT 1) r ON true) c"
	" WHERE c.covers OR c.is_late"
	" ORDER BY c.last_run NULLS FIRST, c.app_schema, c.job",
	0, {0}
};

static const Template insert_takeover = {
	"INSERT INTO cusown_ops.takeover (app_schema, job) VALUES ($1, $2)"
	" ON CONFLICT DO NOTHING",
	2, {NAMEOID, TEXTOID}
};

static const Template delete_takeover = {
	"DELETE FROM cusown_ops.takeover t"
	" WHERE t.app_schema = $1 AND t.job = $2",
	2, {NAMEOID, TEXTOID}
};

/* a list of Takeover, in the current memory */
List *
takeover_read(void)
{
	uint64		rows = template_execute(NULL, &needing_worker, NULL, NULL, true);
	List	   *takeovers = NIL;

	for (uint64 row = 0; row < rows; row++)
	{
		Takeover   *takeover = palloc(sizeof(Takeover));
		bool		isnull;

		takeover->app_schema = template_text(row, "app_schema");
		takeover->job = template_text(row, "job");
		takeover->last_success = template_text(row, "last_success");
		takeover->waits = template_text(row, "waits");
		takeover->every_ms = DatumGetInt64(template_column(row, "every_ms", &isnull));
		takeover->covers = template_bool(row, "covers");
		takeover->is_over = template_bool(row, "is_over");
		takeover->is_disabled = template_bool(row, "is_disabled");
		takeover->is_subscribed = template_bool(row, "is_subscribed");
		takeovers = lappend(takeovers, takeover);
	}
	SPI_freetuptable(SPI_tuptable);
	return takeovers;
}

/* what the application's audit trail is told */
typedef struct Notice
{
	const Takeover *takeover;
	const char *action;
	const char *severity;
	const char *description;
} Notice;

static void
write_audit(void *state)
{
	const Notice *notice = state;
	const Takeover *takeover = notice->takeover;
	Binding    *binding = binding_use_schema(takeover->app_schema,
											 relations_told);
	StringInfoData metadata;

	initStringInfo(&metadata);
	appendStringInfoString(&metadata, "{\"actor\": \"system\", \"source\": \"worker\", \"job\": ");
	escape_json(&metadata, takeover->job);
	if (takeover->last_success != NULL)
	{
		appendStringInfoString(&metadata, ", \"last_success\": ");
		escape_json(&metadata, takeover->last_success);
	}
	appendStringInfoChar(&metadata, '}');
	audit_write_severe(binding, notice->action, notice->severity, "system",
					   NULL, metadata.data, notice->description);
}

static void
tell_application(const Notice *notice)
{
	ErrorData  *error = subtransaction_try(write_audit, (void *) notice,
										   CurrentMemoryContext);

	if (error != NULL)
		ereport(WARNING,
				(errcode(error->sqlerrcode),
				 errmsg("could not write audit row \"%s\" of job \"%s\": %s",
						notice->action, notice->takeover->job, error->message)));
}

/* returns whether no other worker had done so */
static bool
change_takeover(const Template *statement, const Takeover *takeover)
{
	Datum		values[2];

	values[0] = template_name(takeover->app_schema);
	values[1] = CStringGetTextDatum(takeover->job);
	return template_execute(NULL, statement, values, NULL, false) > 0;
}

void
takeover_begin(const Takeover *takeover)
{
	Notice		notice = {takeover, "cron_failed", "critical",
	"job is late, the worker runs it"};

	if (!change_takeover(&insert_takeover, takeover))
		return;
	tell_application(&notice);
	ereport(WARNING,
			(errmsg("job \"%s\" on application schema \"%s\" of database \"%s\" is late, the worker takes over",
					takeover->job, takeover->app_schema,
					get_database_name(MyDatabaseId)),
			 takeover->last_success == NULL ?
			 errdetail("It has never succeeded.") :
			 errdetail("Its last success was at %s.", takeover->last_success),
			 errhint("SELECT * FROM cusown_cron_health() shows what pg_cron knows of it.")));
}

/* a job that was disabled has not recovered, so the application is told nothing */
void
takeover_end(const Takeover *takeover)
{
	Notice		notice = {takeover, "cron_recovered", "info",
	"the scheduler runs the job again"};

	if (!change_takeover(&delete_takeover, takeover))
		return;
	if (!takeover->is_disabled)
		tell_application(&notice);
	ereport(WARNING,
			(errmsg("job \"%s\" on application schema \"%s\" of database \"%s\" %s: the worker stands down",
					takeover->job, takeover->app_schema,
					get_database_name(MyDatabaseId),
					takeover->is_disabled ? "is disabled" : "is run by the scheduler again")));
}
