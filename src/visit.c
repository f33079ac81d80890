/*-------------------------------------------------------------------------
 *
 * visit.c
 *	  One visit of the worker to a database.
 *
 * The worker finds runs that have died, runs what takeover.c says it must, by
 * the statement that pg_cron would run, and goes.  It begins no batch after
 * VISIT_MS: DROP DATABASE and CREATE DATABASE ... TEMPLATE wait five seconds for
 * whoever is connected.  Without cusown_ops.worker_role it looks, as nobody who
 * could change anything, and says what it would do.
 *
 * Locking protocol: see worker.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "commands/extension.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/portal.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "cron.h"
#include "job.h"
#include "takeover.h"
#include "template.h"
#include "worker.h"

/* a visit begins no batch after this */
#define VISIT_MS 3000

/* CASE: the ledger also has rows of what is no job, which cannot be asked about */
static const Template dead_runs = {
	"SELECT DISTINCT r.app_schema::text AS app_schema, r.job"
	" FROM cusown_ops.job_run r WHERE CASE WHEN r.status = 'running'"
	" AND cusown_ops.is_shipped_job(r.job)"
	" THEN NOT cusown_ops.job_is_alive(r.app_schema, r.job) END",
	0, {0}
};

/* what a worker keeps of its visit */
typedef struct Work
{
	WorkerVisit *visit;
	MemoryContext context;		/* lives as long as the worker */
	List	   *takeovers;
	StringInfoData did;
	bool		is_installed;
	char	   *error;			/* the last one, or NULL */
} Work;

/*
 * Runs body, which may end its transactions, and keeps the error that ended it,
 * with one line in the log.  Returns whether there was none.
 */
static bool
attempt(Work *work, void (*body) (Work *work, const void *argument),
		const void *argument, const char *what)
{
	volatile bool succeeded = true;

	PG_TRY();
	{
		body(work, argument);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		HOLD_INTERRUPTS();
		MemoryContextSwitchTo(work->context);
		error = CopyErrorData();
		FlushErrorState();
		AbortOutOfAnyTransaction();
		debug_query_string = NULL;	/* what it pointed to has gone */
		pgstat_report_activity(STATE_IDLE, NULL);
		work->error = psprintf("%s: %s", what, error->message);
		ereport(LOG,
				(errcode(error->sqlerrcode),
				 errmsg("cusown_ops worker: %s", work->error)));
		succeeded = false;
		RESUME_INTERRUPTS();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(work->context);
	return succeeded;
}

static void
begin_step(void)
{
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	PushActiveSnapshot(GetTransactionSnapshot());
}

static void
end_step(void)
{
	SPI_finish();
	PopActiveSnapshot();
	CommitTransactionCommand();
	pgstat_report_stat(true);
}

static void
find_dead_runs(void)
{
	uint64		rows = template_execute(NULL, &dead_runs, NULL, NULL, false);
	char	  **schemas = palloc(Max(rows, 1) * sizeof(char *));
	char	  **jobs = palloc(Max(rows, 1) * sizeof(char *));

	for (uint64 row = 0; row < rows; row++)
	{
		schemas[row] = template_text(row, "app_schema");
		jobs[row] = template_text(row, "job");
	}
	for (uint64 row = 0; row < rows; row++)
		job_mark_died(job_named(jobs[row]), schemas[row]);
}

/* what there is to do; without a role nothing is written */
static void
look(Work *work, const void *argument)
{
	MemoryContext caller;

	begin_step();
	work->is_installed = OidIsValid(get_extension_oid("cusown_ops", true));
	if (work->is_installed)
	{
		if (worker_role[0] != '\0')
			find_dead_runs();
		caller = MemoryContextSwitchTo(work->context);
		work->takeovers = takeover_read();
		MemoryContextSwitchTo(caller);
	}
	end_step();
}

static void
begin_covering(Work *work, const void *argument)
{
	begin_step();
	takeover_begin(argument);
	end_step();
}

static void
end_covering(Work *work, const void *argument)
{
	begin_step();
	takeover_end(argument);
	end_step();
}

static List *
plan_statement(const char *sql)
{
	RawStmt    *parsed = linitial_node(RawStmt, pg_parse_query(sql));
	List	   *queries = pg_analyze_and_rewrite_fixedparams(parsed, sql, NULL, 0,
															 NULL);

	return pg_plan_queries(queries, sql, CURSOR_OPT_PARALLEL_OK, NULL);
}

/*
 * Runs a statement as a client's would be, through a portal: it commits in
 * between, which SPI's would have to do without a snapshot of its own.
 */
static void
run_statement(const char *sql)
{
	DestReceiver *receiver = CreateDestReceiver(DestNone);
	List	   *plans;
	Portal		portal;

	debug_query_string = sql;
	pgstat_report_activity(STATE_RUNNING, sql);
	PushActiveSnapshot(GetTransactionSnapshot());
	plans = plan_statement(sql);
	PopActiveSnapshot();
	portal = CreatePortal("", true, true);
	portal->visible = false;
	PortalDefineQuery(portal, NULL, sql, CMDTAG_CALL, plans, NULL);
	PortalStart(portal, NULL, 0, InvalidSnapshot);
	(void) PortalRunAll(portal, receiver);
	PortalDrop(portal, false);
	pgstat_report_activity(STATE_IDLE, NULL);
	debug_query_string = NULL;
}

static void
run_job(Work *work, const void *argument)
{
	const Takeover *takeover = argument;
	MemoryContext caller;
	char	   *sql;

	begin_step();
	caller = MemoryContextSwitchTo(work->context);
	sql = cron_call(takeover->job, "worker");
	MemoryContextSwitchTo(caller);
	end_step();

	SetConfigOption("cusown_ops.app_schema", takeover->app_schema, PGC_USERSET,
					PGC_S_SESSION);
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	MemoryContextSwitchTo(work->context);	/* outlives the commits in between */
	run_statement(sql);
	CommitTransactionCommand();
	pgstat_report_stat(true);
}

static void
note(Work *work, const char *what, const Takeover *takeover)
{
	appendStringInfo(&work->did, "%s%s %s on %s",
					 work->did.len == 0 ? "" : ", ", what, takeover->job,
					 takeover->app_schema);
}

/* of a job on tables that a subscription writes */
#define PUBLISHERS "left to the publisher"

static bool
is_time_over(TimestampTz end)
{
	return GetCurrentTimestamp() >= end;
}

/* the entry of a job, or one that is free, or NULL */
static FailingJob *
failing_job(Work *work, const Takeover *takeover)
{
	FailingJob *free_entry = NULL;

	for (int i = 0; i < WORKER_MAX_FAILING; i++)
	{
		FailingJob *entry = &work->visit->failing[i];

		if (NameStr(entry->job)[0] == '\0')
			free_entry = entry;
		else if (strcmp(NameStr(entry->job), takeover->job) == 0 &&
				 strcmp(NameStr(entry->app_schema), takeover->app_schema) == 0)
			return entry;
	}
	return free_entry;
}

static bool
is_backing_off(Work *work, const Takeover *takeover)
{
	FailingJob *entry;
	bool		backs_off;

	LWLockAcquire(worker_lock, LW_SHARED);
	entry = failing_job(work, takeover);
	backs_off = entry != NULL && entry->next_try > GetCurrentTimestamp();
	LWLockRelease(worker_lock);
	return backs_off;
}

/* a job that fails must neither fill the log at each nap, nor keep others back */
static void
remember(Work *work, const Takeover *takeover, bool succeeded)
{
	FailingJob *entry;

	LWLockAcquire(worker_lock, LW_EXCLUSIVE);
	entry = work->visit->pid == MyProcPid ? failing_job(work, takeover) : NULL;
	if (entry != NULL && succeeded)
		MemSet(entry, 0, sizeof(FailingJob));
	else if (entry != NULL)
	{
		namestrcpy(&entry->app_schema, takeover->app_schema);
		namestrcpy(&entry->job, takeover->job);
		entry->next_try = worker_next_try(GetCurrentTimestamp(),
										  ++entry->failures);
	}
	LWLockRelease(worker_lock);
}

/* whether nothing failed */
static bool
cover(Work *work, const Takeover *takeover)
{
	bool		succeeded;

	if (takeover->is_over)
	{
		succeeded = attempt(work, end_covering, takeover, "standing down");
		if (succeeded)
			note(work, "stood down from", takeover);
		return succeeded;
	}
	if (!takeover->covers &&
		!attempt(work, begin_covering, takeover, "taking over"))
	{
		note(work, "could not take over", takeover);
		return false;
	}
	succeeded = attempt(work, run_job, takeover, takeover->job);
	note(work, succeeded ? "ran" : "failed at", takeover);
	return succeeded;
}

static void
cover_in_turn(Work *work, const Takeover *takeover)
{
	if (takeover->is_subscribed && !takeover->is_over)
		note(work, PUBLISHERS, takeover);
	else if (is_backing_off(work, takeover))
		note(work, "waits to try again", takeover);
	else
		remember(work, takeover, cover(work, takeover));
}

static void
tell_late(Work *work)
{
	ListCell   *lc;

	foreach(lc, work->takeovers)
	{
		const Takeover *takeover = lfirst(lc);

		note(work, takeover->is_subscribed ? PUBLISHERS : "would run", takeover);
	}
}

static void
do_work(Work *work)
{
	TimestampTz end = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), VISIT_MS);
	ListCell   *lc;

	job_set_deadline(end);
	foreach(lc, work->takeovers)
	{
		if (is_time_over(end))
			break;
		cover_in_turn(work, lfirst(lc));
	}
}

/* in the log once, not at every nap */
static void
log_idleness(const Work *work, const char *did)
{
	char		kept[WORKER_TEXT_LENGTH];

	worker_set_text(kept, did);
	if (strcmp(work->visit->did, kept) == 0)
		return;
	if (!work->is_installed)
		ereport(LOG,
				(errmsg("cusown_ops worker: extension \"cusown_ops\" is not installed in database \"%s\"",
						NameStr(work->visit->database))));
	else if (strstr(did, PUBLISHERS) != NULL)
		ereport(LOG,
				(errmsg("cusown_ops worker: a subscription writes the application's tables: %s",
						did)));
	else if (worker_role[0] == '\0' && work->takeovers != NIL)
		ereport(WARNING,
				(errmsg("cusown_ops worker has no role and only tells: %s", did),
				 errhint("Set cusown_ops.worker_role to a role that has LOGIN and cusown_grant()'s profile operator.")));
}

/* under the lock */
static void
end_visit(Work *work, const char *did, bool succeeded)
{
	WorkerVisit *visit = work->visit;

	worker_set_text(visit->did, did);
	visit->is_done = true;
	visit->pid = 0;
	if (succeeded)
		visit->failures = 0;
	else
		worker_note_failure(visit, work->error != NULL ? work->error : did);
	if (succeeded && work->error != NULL)
	{
		visit->last_error_at = GetCurrentTimestamp();
		worker_set_text(visit->last_error, work->error);
	}
}

/* what the visit has come to, for cusown_worker_status() */
static void
report(Work *work, bool succeeded)
{
	const WorkerVisit *visit = work->visit;
	const char *did = work->did.len > 0 ? work->did.data : "nothing was late";

	if (!succeeded)
		did = "could not look what is late";
	else if (!work->is_installed)
		did = "found no extension";
	log_idleness(work, did);
	LWLockAcquire(worker_lock, LW_EXCLUSIVE);
	if (visit->pid == MyProcPid)
		end_visit(work, did, succeeded && work->is_installed);
	LWLockRelease(worker_lock);
}

static void
connect_to(WorkerVisit *visit)
{
	char		database[NAMEDATALEN];

	LWLockAcquire(worker_lock, LW_EXCLUSIVE);
	visit->pid = MyProcPid;
	strlcpy(database, NameStr(visit->database), NAMEDATALEN);
	LWLockRelease(worker_lock);
	BackgroundWorkerInitializeConnection(database,
										 worker_role[0] == '\0' ? NULL : worker_role,
										 0);
	pgstat_report_appname("cusown_ops worker");
}

void
cusown_worker_main(Datum argument)
{
	Work		work = {0};
	bool		succeeded;

	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	work.visit = &worker_shared->visits[DatumGetInt32(argument)];
	work.context = AllocSetContextCreate(TopMemoryContext, "cusown_ops worker",
										 ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(work.context);
	initStringInfo(&work.did);
	connect_to(work.visit);
	MemoryContextSwitchTo(work.context);

	succeeded = attempt(&work, look, NULL, "looking what is late");
	if (succeeded && worker_role[0] == '\0')
		tell_late(&work);
	else if (succeeded)
		do_work(&work);
	report(&work, succeeded);
	proc_exit(0);
}
