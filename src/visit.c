/*-------------------------------------------------------------------------
 *
 * visit.c
 *	  One visit of the worker to a database.
 *
 * The worker finds runs that have died, runs what takeover.c says it must, by
 * the statement that pg_cron would run, evaluates alerts, and goes.  It begins no batch after
 * VISIT_MS, and waits no longer than LOCK_WAIT for a table that somebody has locked:
 * DROP DATABASE and CREATE DATABASE ... TEMPLATE wait five seconds for whoever is
 * connected.  Without cusown_ops.worker_role it looks, as nobody who could change
 * anything, and says what it would do.
 *
 * It works for no superuser, nor for who could become one.  Who owns a table of the
 * application, one of its partitions or the database, or is granted TRIGGER, can
 * have code of his run by whoever writes there, and nobody watches.
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
#include "storage/proc.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/portal.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "cron.h"
#include "job.h"
#include "takeover.h"
#include "template.h"
#include "verb.h"
#include "worker.h"

/* a visit begins no batch after this */
#define VISIT_MS 3000

/* lock_timeout, where the role has none of its own */
#define LOCK_WAIT "1s"

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
	List	   *evaluations;	/* of alerts, that are due */
	StringInfoData did;
	bool		is_installed;
	bool		is_crowded;		/* more jobs fail than can be remembered */
	char	   *error;			/* the last one, or NULL */
} Work;

/*
 * Runs body, which may end its transactions, and keeps the error that ended it,
 * with one line in the log.  Returns whether there was none.  A statement_timeout
 * is counted as for a client's statement: triggers of the application may run.
 */
static bool
attempt(Work *work, void (*body) (Work *work, const void *argument),
		const void *argument, const char *what)
{
	volatile bool succeeded = true;

	PG_TRY();
	{
		if (StatementTimeout > 0)
			enable_timeout_after(STATEMENT_TIMEOUT, StatementTimeout);
		body(work, argument);
		disable_timeout(STATEMENT_TIMEOUT, false);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		HOLD_INTERRUPTS();
		MemoryContextSwitchTo(work->context);
		error = CopyErrorData();
		FlushErrorState();
		disable_all_timeouts(false);
		QueryCancelPending = false;
		AbortOutOfAnyTransaction();
		debug_query_string = NULL;	/* what it pointed to has gone */
		pgstat_report_activity(STATE_IDLE, NULL);
		work->error = psprintf("%s: %s", what, error->message);
		ereport(LOG,
				(errcode(error->sqlerrcode),
				 errmsg("cusown_ops worker in database \"%s\": %s",
						NameStr(work->visit->database), work->error)));
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

static void
check_role(void)
{
	if (verb_may_be_superuser())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("role \"%s\" is a superuser, or can become one",
						worker_role),
				 errhint("Set cusown_ops.worker_role to a role that has LOGIN and cusown_grant()'s profile operator.")));
}

/* what there is to do; without a role nothing is written */
static void
look(Work *work, const void *argument)
{
	MemoryContext caller;

	begin_step();
	if (worker_role[0] != '\0')
		check_role();
	work->is_installed = OidIsValid(get_extension_oid("cusown_ops", true));
	if (work->is_installed)
	{
		if (worker_role[0] != '\0')
			find_dead_runs();
		caller = MemoryContextSwitchTo(work->context);
		work->takeovers = takeover_read();
		if (worker_role[0] != '\0')
			work->evaluations = takeover_read_evaluations();
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

/* what the visit is at, for whoever looks while it is */
static void
show(Work *work, const char *doing)
{
	LWLockAcquire(worker_lock, LW_EXCLUSIVE);
	if (work->visit->pid == MyProcPid)
		worker_set_text(work->visit->doing, doing);
	LWLockRelease(worker_lock);
}

/* of a job on tables that a subscription writes */
#define PUBLISHERS "left to the publisher"

#define TRIES_LATER "waits to try again"

static bool
is_time_over(TimestampTz end)
{
	return GetCurrentTimestamp() >= end;
}

/* one that nothing was heard of for longer than any back-off is of no job */
static bool
is_free(const FailingJob *entry)
{
	return NameStr(entry->job)[0] == '\0' ||
		TimestampDifferenceExceeds(entry->next_try, GetCurrentTimestamp(),
								   2 * WORKER_MAX_BACKOFF_MS);
}

/* the entry of a job, or one that is free, or NULL */
static FailingJob *
failing_job(Work *work, const Takeover *takeover)
{
	FailingJob *free_entry = NULL;

	for (int i = 0; i < WORKER_MAX_FAILING; i++)
	{
		FailingJob *entry = &work->visit->failing[i];

		if (entry->is_over == takeover->is_over &&
			strcmp(NameStr(entry->job), takeover->job) == 0 &&
			strcmp(NameStr(entry->app_schema), takeover->app_schema) == 0)
			return entry;
		if (is_free(entry))
			free_entry = entry;
	}
	if (free_entry != NULL)
		MemSet(free_entry, 0, sizeof(FailingJob));
	return free_entry;
}

/* never for longer than its interval: the clock may have been set back */
static bool
is_backing_off(Work *work, const Takeover *takeover)
{
	TimestampTz now = GetCurrentTimestamp();
	FailingJob *entry;
	bool		backs_off;

	LWLockAcquire(worker_lock, LW_EXCLUSIVE);
	entry = failing_job(work, takeover);
	backs_off = entry != NULL && entry->next_try > now &&
		!TimestampDifferenceExceeds(now, entry->next_try, takeover->every_ms);
	LWLockRelease(worker_lock);
	return backs_off;
}

/*
 * A job that fails must neither fill the log at each nap, nor keep others back.
 * Where its run is in the ledger, it waits for its interval anyway.
 */
static void
remember(Work *work, const Takeover *takeover, bool succeeded)
{
	FailingJob *entry;

	LWLockAcquire(worker_lock, LW_EXCLUSIVE);
	entry = work->visit->pid == MyProcPid ? failing_job(work, takeover) : NULL;
	work->is_crowded |= entry == NULL && !succeeded;
	if (entry != NULL && succeeded)
		MemSet(entry, 0, sizeof(FailingJob));
	else if (entry != NULL)
	{
		namestrcpy(&entry->app_schema, takeover->app_schema);
		namestrcpy(&entry->job, takeover->job);
		entry->is_over = takeover->is_over;
		entry->next_try = worker_next_try(GetCurrentTimestamp(),
										  ++entry->failures,
										  takeover->every_ms);
	}
	LWLockRelease(worker_lock);
}

/* ---------- one job ---------- */

static void
stand_down(Work *work, const Takeover *takeover)
{
	bool		succeeded;

	if (is_backing_off(work, takeover))
	{
		note(work, TRIES_LATER, takeover);
		return;
	}
	succeeded = attempt(work, end_covering, takeover, "standing down");
	remember(work, takeover, succeeded);
	note(work, succeeded ? "stood down from" : "failed at", takeover);
}

static bool
try_job(Work *work, const Takeover *takeover)
{
	bool		succeeded;

	show(work, psprintf("running %s on %s", takeover->job, takeover->app_schema));
	succeeded = attempt(work, run_job, takeover, takeover->job);
	remember(work, takeover, succeeded);
	return succeeded;
}

static void
run(Work *work, const Takeover *takeover)
{
	note(work, try_job(work, takeover) ? "ran" : "failed at", takeover);
}

static bool
is_to_begin(Work *work, const Takeover *takeover)
{
	return !takeover->covers && takeover->waits == NULL &&
		!takeover->is_subscribed && !is_backing_off(work, takeover);
}

/*
 * Before the first of them runs: whoever looks must see all that is late.  Each may
 * wait for the application's audit trail, so the visit can be over by then.
 */
static void
begin_all(Work *work, TimestampTz end)
{
	ListCell   *lc;

	foreach(lc, work->takeovers)
	{
		Takeover   *takeover = lfirst(lc);

		if (is_time_over(end))
			break;
		if (!is_to_begin(work, takeover))
			continue;
		takeover->covers = attempt(work, begin_covering, takeover, "taking over");
		if (!takeover->covers)
			remember(work, takeover, false);
	}
}

static void
cover(Work *work, const Takeover *takeover)
{
	if (takeover->is_over)
		stand_down(work, takeover);
	else if (takeover->is_subscribed)
		note(work, PUBLISHERS, takeover);
	else if (takeover->waits != NULL)
		note(work, takeover->waits, takeover);
	else if (!takeover->covers || is_backing_off(work, takeover))
		note(work, TRIES_LATER, takeover);
	else
		run(work, takeover);
}

/*
 * Alerts, once what is late was run: what is mended by then is none.  One
 * application's are evaluated however long that took, the longest waiting first.
 * It is no news that they were.
 */
static void
evaluate_all(Work *work, TimestampTz end)
{
	ListCell   *lc;

	foreach(lc, work->evaluations)
	{
		if (foreach_current_index(lc) > 0 && is_time_over(end))
			break;
		if (!is_backing_off(work, lfirst(lc)) && !try_job(work, lfirst(lc)))
			note(work, "failed at", lfirst(lc));
	}
}

static const char *
would_do(const Takeover *takeover)
{
	if (takeover->is_over)
		return "would stand down from";
	if (takeover->is_subscribed)
		return PUBLISHERS;
	return takeover->waits != NULL ? takeover->waits : "would run";
}

static void
tell_late(Work *work)
{
	ListCell   *lc;

	foreach(lc, work->takeovers)
		note(work, would_do(lfirst(lc)), lfirst(lc));
}

static void
do_work(Work *work)
{
	TimestampTz end = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), VISIT_MS);
	ListCell   *lc;

	job_set_deadline(end);
	begin_all(work, end);
	foreach(lc, work->takeovers)
	{
		if (is_time_over(end))
			break;
		cover(work, lfirst(lc));
	}
	evaluate_all(work, end);
}

static WorkerIdleness
idleness(const Work *work, const char *did)
{
	if (!work->is_installed)
		return WORKER_NOT_INSTALLED;
	if (strstr(did, PUBLISHERS) != NULL)
		return WORKER_ON_SUBSCRIBER;
	if (worker_role[0] == '\0' && work->takeovers != NIL)
		return WORKER_WITHOUT_ROLE;
	return WORKER_IS_ABLE;
}

/* in the log once, not at every nap */
static void
log_idleness(const Work *work, WorkerIdleness why, const char *did)
{
	const char *database = NameStr(work->visit->database);

	if (work->visit->idleness == why)
		return;
	switch (why)
	{
		case WORKER_NOT_INSTALLED:
			ereport(LOG,
					(errmsg("cusown_ops worker: extension \"cusown_ops\" is not installed in database \"%s\"",
							database)));
			break;
		case WORKER_ON_SUBSCRIBER:
			ereport(LOG,
					(errmsg("cusown_ops worker in database \"%s\": a subscription writes the application's tables: %s",
							database, did)));
			break;
		case WORKER_WITHOUT_ROLE:
			ereport(WARNING,
					(errmsg("cusown_ops worker in database \"%s\" has no role and only tells: %s",
							database, did),
					 errhint("Set cusown_ops.worker_role to a role that has LOGIN and cusown_grant()'s profile operator.")));
			break;
		case WORKER_IS_ABLE:
			break;
	}
}

/* under the lock */
static void
end_visit(Work *work, const char *did, bool succeeded)
{
	WorkerVisit *visit = work->visit;

	worker_set_text(visit->did, did);
	visit->doing[0] = '\0';
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
	WorkerVisit *visit = work->visit;
	const char *did = work->did.len > 0 ? work->did.data : "nothing was late";

	if (!succeeded)
		did = "could not look what is late";
	else if (!work->is_installed)
		did = "found no extension";
	if (succeeded)
		log_idleness(work, idleness(work, did), did);
	LWLockAcquire(worker_lock, LW_EXCLUSIVE);
	if (visit->pid == MyProcPid)
	{
		if (succeeded)
			visit->idleness = idleness(work, did);
		end_visit(work, did,
				  succeeded && work->is_installed && !work->is_crowded);
	}
	LWLockRelease(worker_lock);
}

/*
 * Makes the visit ours.  False where the launcher that asked for it has gone: its
 * successor gives it to somebody else.
 */
static bool
take_order(Work *work, char *database)
{
	WorkerOrder order;
	bool		is_current;

	memcpy(&order, MyBgworkerEntry->bgw_extra, sizeof(order));
	work->visit = &worker_shared->visits[order.visit];
	LWLockAcquire(worker_lock, LW_EXCLUSIVE);
	is_current = order.launchers == worker_shared->launchers;
	if (is_current)
	{
		work->visit->pid = MyProcPid;
		strlcpy(database, NameStr(work->visit->database), NAMEDATALEN);
	}
	LWLockRelease(worker_lock);
	return is_current;
}

/*
 * What a role or database may have set for others.  A default of serializable is
 * meant for the application's transactions; jobs decide again after they locked.
 */
static void
settle(void)
{
	SetConfigOption("default_transaction_isolation", "read committed",
					PGC_USERSET, PGC_S_SESSION);
	if (LockTimeout == 0)
		SetConfigOption("lock_timeout", LOCK_WAIT, PGC_USERSET, PGC_S_SESSION);
}

static void
connect_to(Work *work, const char *database)
{
	const char *role = worker_role[0] == '\0' ? NULL : worker_role;

	show(work, role == NULL ? "connecting" :
		 psprintf("connecting as role \"%s\"", role));
	BackgroundWorkerInitializeConnection(database, role, 0);
	pgstat_report_appname("cusown_ops worker");
	show(work, "looking what is late");
	settle();
}

void
cusown_worker_main(Datum argument)
{
	Work		work = {0};
	char		database[NAMEDATALEN];
	bool		succeeded;

	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	work.context = AllocSetContextCreate(TopMemoryContext, "cusown_ops worker",
										 ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(work.context);
	initStringInfo(&work.did);
	if (!take_order(&work, database))
		proc_exit(0);
	connect_to(&work, database);
	MemoryContextSwitchTo(work.context);

	succeeded = attempt(&work, look, NULL, "looking what is late");
	if (succeeded && worker_role[0] == '\0')
		tell_late(&work);
	else if (succeeded)
		do_work(&work);
	report(&work, succeeded);
	proc_exit(0);
}
