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
 * Where no worker takes over, the alert tells the application (alert.c).  Who does
 * so first writes the outage down in cusown_ops.outage, so that each is told once.
 * One whose bookings a subscription writes is not covered: what its publisher's
 * jobs do arrives as well.
 *
 * Locking protocol: only the worker of a database writes the table, and outages
 * whoever tells of them; of two at the same time the second finds its row written,
 * or gone, and tells nobody.
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
 * Rows are of jobs that the worker covers, or that are late.
 *
 * waits says why one is not to be run now, or is null: it is run by somebody at
 * the moment; its last run failed, died or was cancelled less than its interval
 * ago, as what killed a session may do so again, and who cancelled it meant it; or
 * it is covered and its interval is not over.  One that was left unfinished goes
 * on at once, but behind those that have waited longer.
 *
 * Alerts the worker evaluates in any case (evaluations_due).
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
	AGO(LAST_ON_TIME, "2") " AS is_late,"
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
	" WHERE (c.covers OR c.is_late) AND c.job <> 'evaluate_alerts'"
	" ORDER BY c.last_run NULLS FIRST, c.app_schema, c.job",
	0, {0}
};

/*
 * Applications whose alerts were evaluated last longer ago than is the job's
 * interval, or never; a run in the future is from a clock that was set back.
 */
static const Template evaluations_due = {
	"SELECT c.app_schema::text AS app_schema, c.job, c.every_ms FROM ("
	"SELECT s.app_schema, j.name AS job, r.started_at AS last_run,"
	" least(pg_catalog.date_part('epoch', j.every) * 1000, 3600000)::int8"
	" AS every_ms,"
	" (r.started_at > pg_catalog.statement_timestamp()"
	" OR" AGO("r.started_at", "1") ") IS NOT FALSE AS is_due"
	ATTACHED_JOBS
	" LEFT JOIN LATERAL (SELECT r.started_at FROM cusown_ops.job_run r"
	" WHERE r.app_schema = s.app_schema AND r.job = j.name"
	" AND r.status <> 'skipped' ORDER BY r.id DESC LIMIT 1) r ON true"
	" WHERE j.name = 'evaluate_alerts' AND j.enabled"
	" AND NOT cusown_ops.job_is_alive(s.app_schema, j.name)) c"
	" WHERE c.is_due AND NOT " IS_SUBSCRIBED
	" ORDER BY c.last_run NULLS FIRST, c.app_schema",
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

static const Template insert_outage = {
	"INSERT INTO cusown_ops.outage (app_schema, job) VALUES ($1, $2)"
	" ON CONFLICT DO NOTHING",
	2, {NAMEOID, TEXTOID}
};

static const Template delete_outage = {
	"DELETE FROM cusown_ops.outage o"
	" WHERE o.app_schema = $1 AND o.job = $2",
	2, {NAMEOID, TEXTOID}
};

/* those that the worker covers end when it stands down */
static const Template uncovered_outages = {
	"SELECT j.name AS job, NOT j.enabled AS is_disabled"
	ATTACHED_JOBS
	" JOIN cusown_ops.outage o ON o.app_schema = s.app_schema"
	" AND o.job = j.name"
	" WHERE s.app_schema = $1 AND NOT EXISTS (SELECT"
	" FROM cusown_ops.takeover t WHERE t.app_schema = o.app_schema"
	" AND t.job = o.job) ORDER BY j.name",
	1, {NAMEOID}
};

/*
 * The applications whose alerts the worker evaluates now: a list of Takeover, of
 * which nothing but the application, the job and its interval is set.
 */
List *
takeover_read_evaluations(void)
{
	uint64		rows = template_execute(NULL, &evaluations_due, NULL, NULL, true);
	List	   *evaluations = NIL;

	for (uint64 row = 0; row < rows; row++)
	{
		Takeover   *evaluation = palloc0(sizeof(Takeover));
		bool		isnull;

		evaluation->app_schema = template_text(row, "app_schema");
		evaluation->job = template_text(row, "job");
		evaluation->every_ms = DatumGetInt64(template_column(row, "every_ms",
															 &isnull));
		evaluations = lappend(evaluations, evaluation);
	}
	SPI_freetuptable(SPI_tuptable);
	return evaluations;
}

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
	const char *source;
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
	appendStringInfo(&metadata, "{\"actor\": \"system\", \"source\": \"%s\", \"job\": ",
					 notice->source);
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

/* returns whether nobody else had done so */
static bool
change_row(const Template *statement, const Takeover *takeover)
{
	Datum		values[2];

	values[0] = template_name(takeover->app_schema);
	values[1] = CStringGetTextDatum(takeover->job);
	return template_execute(NULL, statement, values, NULL, false) > 0;
}

/* one change of cusown_ops.outage */
typedef struct OutageChange
{
	const Template *statement;
	const Takeover *takeover;
	bool		is_ours;		/* nobody else had done so */
} OutageChange;

static void
change_body(void *state)
{
	OutageChange *change = state;

	change->is_ours = change_row(change->statement, change->takeover);
}

/*
 * Somebody may have told of it in a transaction that is still open.  Who waits for
 * that as long as he may leaves it to him, and goes on.
 */
static bool
change_outage(const Template *statement, const Takeover *takeover)
{
	OutageChange change = {statement, takeover};
	ErrorData  *error = subtransaction_try(change_body, &change,
										   CurrentMemoryContext);

	if (error != NULL)
		ereport(WARNING,
				(errcode(error->sqlerrcode),
				 errmsg("could not write the outage of job \"%s\" down: %s",
						takeover->job, error->message)));
	return error == NULL && change.is_ours;
}

/* tells the application of an outage that it was not told of */
void
takeover_tell_failed(const Takeover *takeover, const char *source,
					 const char *description)
{
	Notice		notice = {takeover, source, "cron_failed", "critical",
	description};

	if (change_outage(&insert_outage, takeover))
		tell_application(&notice);
}

/* a job that was disabled has not recovered, so the application is told nothing */
void
takeover_tell_recovered(const Takeover *takeover, const char *source,
						const char *description)
{
	Notice		notice = {takeover, source, "cron_recovered", "info",
	description};

	if (change_outage(&delete_outage, takeover) && !takeover->is_disabled)
		tell_application(&notice);
}

/* of an application none of whose jobs is late any more */
void
takeover_end_outages(const char *app_schema, const char *source)
{
	Datum		values[1];
	uint64		rows;
	Takeover   *takeovers;

	values[0] = template_name(app_schema);
	rows = template_execute(NULL, &uncovered_outages, values, NULL, false);
	takeovers = palloc0(Max(rows, 1) * sizeof(Takeover));
	for (uint64 row = 0; row < rows; row++)
	{
		takeovers[row].app_schema = pstrdup(app_schema);
		takeovers[row].job = template_text(row, "job");
		takeovers[row].is_disabled = template_bool(row, "is_disabled");
	}
	SPI_freetuptable(SPI_tuptable);
	for (uint64 row = 0; row < rows; row++)
		takeover_tell_recovered(&takeovers[row], source, "the job runs again");
}

void
takeover_begin(const Takeover *takeover)
{
	if (!change_row(&insert_takeover, takeover))
		return;
	takeover_tell_failed(takeover, "worker", "job is late, the worker runs it");
	ereport(WARNING,
			(errmsg("job \"%s\" on application schema \"%s\" of database \"%s\" is late, the worker takes over",
					takeover->job, takeover->app_schema,
					get_database_name(MyDatabaseId)),
			 takeover->last_success == NULL ?
			 errdetail("It has never succeeded.") :
			 errdetail("Its last success was at %s.", takeover->last_success),
			 errhint("SELECT * FROM cusown_cron_health() shows what pg_cron knows of it.")));
}

void
takeover_end(const Takeover *takeover)
{
	if (!change_row(&delete_takeover, takeover))
		return;
	takeover_tell_recovered(takeover, "worker",
							"the scheduler runs the job again");
	ereport(WARNING,
			(errmsg("job \"%s\" on application schema \"%s\" of database \"%s\" %s: the worker stands down",
					takeover->job, takeover->app_schema,
					get_database_name(MyDatabaseId),
					takeover->is_disabled ? "is disabled" : "is run by the scheduler again")));
}
