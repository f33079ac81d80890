/*-------------------------------------------------------------------------
 *
 * worker.c
 *	  The worker that covers for a scheduler that has died.
 *
 * A launcher without a database, started once the server is no standby (any
 * more), wakes every cusown_ops.worker_naptime and starts a short-lived worker
 * for each database of cusown_ops.worker_databases.  That one connects as
 * cusown_ops.worker_role, finds runs that have died, runs what takeover.c says
 * it must, by the statement that pg_cron would run, and goes.  It begins no
 * batch after VISIT_MS: DROP DATABASE and CREATE DATABASE ... TEMPLATE wait five
 * seconds for whoever is connected.
 *
 * A visit that fails makes the next ones of that database rarer, up to an hour
 * or until the settings are read again, and leaves the others alone.  Without worker_role a worker looks, as nobody
 * who could change anything, and says what it would do.
 *
 * Locking protocol: the launcher alone makes and removes visits in shared
 * memory, a worker alone writes the one that it was given, as long as its pid
 * stands there: a launcher that came after a crash of the last one forgets the
 * workers of that.  Both write under the lock of this part, and whoever else
 * reads them does so under it.  Nothing else is done under it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "commands/extension.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/portal.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/varlena.h"
#include "utils/wait_event.h"

#include "compat.h"
#include "cron.h"
#include "cusown_ops.h"
#include "job.h"
#include "shmem.h"
#include "takeover.h"
#include "template.h"
#include "worker.h"

/* databases that can be visited */
#define MAX_DATABASES 128

/* a visit begins no batch after this */
#define VISIT_MS 3000

/* the shortest time between two visits */
#define MIN_NAP_MS 10

/* a database that fails is visited at least this often */
#define MAX_BACKOFF_MS (3600 * 1000L)

#define TEXT_LENGTH 256

/* what is known of one database */
typedef struct Visit
{
	NameData	database;		/* empty: this entry is free */
	TimestampTz last_visit;		/* when it began, 0: none yet */
	TimestampTz next_visit;
	TimestampTz last_error_at;	/* 0: none yet */
	int64		visits;			/* begun since the launcher came up */
	int			failures;		/* the last so many visits failed */
	pid_t		pid;			/* worker that is at it, or 0 */
	bool		is_done;		/* the visit came to its end */
	char		did[TEXT_LENGTH];
	char		last_error[TEXT_LENGTH];
} Visit;

typedef struct WorkerShared
{
	pid_t		launcher;		/* 0: none runs */
	Visit		visits[MAX_DATABASES];
} WorkerShared;

/* what the launcher keeps for itself, by the number of the visit */
typedef struct Started
{
	BackgroundWorkerHandle *handle; /* NULL: no worker is at it */
} Started;

/* cusown_ops.worker: whether the worker covers for the scheduler. */
static bool worker_enabled = true;

/*
 * cusown_ops.worker_databases: databases that the worker visits, separated by
 * commas.  Empty means pg_cron's database, where that is set.
 */
static char *worker_databases = NULL;

/*
 * cusown_ops.worker_role: role with LOGIN that the worker works as.  Empty means
 * that it only tells what is late.
 */
static char *worker_role = NULL;

/* cusown_ops.worker_naptime: milliseconds between two visits of a database. */
static int	worker_naptime = 10000;

/* in shared memory, NULL without preload */
static WorkerShared *shared = NULL;
static LWLock *shared_lock = NULL;

PGDLLEXPORT void cusown_worker_launcher_main(Datum argument);
PGDLLEXPORT void cusown_worker_main(Datum argument);

PG_FUNCTION_INFO_V1(cusown_worker_status);

/* CASE: the ledger also has rows of what is no job, which cannot be asked about */
static const Template dead_runs = {
	"SELECT DISTINCT r.app_schema::text AS app_schema, r.job"
	" FROM cusown_ops.job_run r WHERE CASE WHEN r.status = 'running'"
	" THEN NOT cusown_ops.job_is_alive(r.app_schema, r.job) END",
	0, {0}
};

/* ---------- settings and shared memory ---------- */

static bool
check_databases(char **value, void **extra, GucSource source)
{
	char	   *copy = pstrdup(*value);
	List	   *names;
	bool		is_list = SplitIdentifierString(copy, ',', &names);
	bool		has_room = is_list && list_length(names) <= MAX_DATABASES;

	if (!is_list)
		GUC_check_errdetail("List syntax is invalid.");
	else if (!has_room)
		GUC_check_errdetail("It names more than %d databases.", MAX_DATABASES);
	if (is_list)
		list_free(names);
	pfree(copy);
	return has_room;
}

void
worker_define_settings(void)
{
	DefineCustomBoolVariable("cusown_ops.worker",
							 "Whether the worker covers for a scheduler that has died.",
							 NULL, &worker_enabled, true,
							 PGC_SIGHUP, 0, NULL, NULL, NULL);

	DefineCustomStringVariable("cusown_ops.worker_databases",
							   "Databases that the worker visits.",
							   "Empty means pg_cron's database.",
							   &worker_databases, "",
							   PGC_SIGHUP, GUC_LIST_INPUT, check_databases,
							   NULL, NULL);

	DefineCustomStringVariable("cusown_ops.worker_role",
							   "Role with LOGIN that the worker works as.",
							   "Empty means that it only tells what is late.",
							   &worker_role, "",
							   PGC_SIGHUP, 0, NULL, NULL, NULL);

	DefineCustomIntVariable("cusown_ops.worker_naptime",
							"Time between two visits of the worker.",
							NULL, &worker_naptime, 10000, MIN_NAP_MS, 3600 * 1000,
							PGC_SIGHUP, GUC_UNIT_MS, NULL, NULL, NULL);
}

static Size
shared_size(void)
{
	return sizeof(WorkerShared);
}

static void
attach_to_shared(LWLock *lock)
{
	bool		found;

	shared = ShmemInitStruct("cusown_ops worker", sizeof(WorkerShared), &found);
	shared_lock = lock;
	if (!found)
		MemSet(shared, 0, sizeof(WorkerShared));
}

const SharedPart worker_shared_part = {shared_size, attach_to_shared};

void
worker_init(void)
{
	BackgroundWorker launcher = {0};

	if (IsBinaryUpgrade || !process_shared_preload_libraries_in_progress)
		return;
	launcher.bgw_flags = BGWORKER_SHMEM_ACCESS;
	launcher.bgw_start_time = BgWorkerStart_RecoveryFinished;
	launcher.bgw_restart_time = 1;
	strlcpy(launcher.bgw_library_name, "cusown_ops", BGW_MAXLEN);
	strlcpy(launcher.bgw_function_name, "cusown_worker_launcher_main",
			BGW_MAXLEN);
	strlcpy(launcher.bgw_name, "cusown_ops launcher", BGW_MAXLEN);
	strlcpy(launcher.bgw_type, "cusown_ops launcher", BGW_MAXLEN);
	RegisterBackgroundWorker(&launcher);
}

static void
set_text(char *text, const char *value)
{
	strlcpy(text, value, TEXT_LENGTH);
}

/* ---------- the launcher ---------- */

/* the databases that are to be visited, in the current memory */
static List *
databases_wanted(void)
{
	const char *cron = GetConfigOption("cron.database_name", true, false);
	List	   *databases;

	if (!worker_enabled)
		return NIL;
	if (worker_databases[0] == '\0')
		return cron == NULL || cron[0] == '\0' ? NIL : list_make1(pstrdup(cron));
	if (!SplitIdentifierString(pstrdup(worker_databases), ',', &databases))
		return NIL;
	return databases;
}

static bool
is_wanted(List *databases, const char *name)
{
	ListCell   *lc;

	foreach(lc, databases)
	{
		if (strcmp(lfirst(lc), name) == 0)
			return true;
	}
	return false;
}

/* under the lock */
static Visit *
find_visit(const char *database)
{
	for (int i = 0; i < MAX_DATABASES; i++)
	{
		if (strcmp(NameStr(shared->visits[i].database), database) == 0)
			return &shared->visits[i];
	}
	return NULL;
}

/*
 * Makes the visits those of the settings.  One that is under way stays, and may
 * take the place of a new one until it has ended.
 */
static void
adopt_settings(List *databases, const Started *started)
{
	ListCell   *lc;

	LWLockAcquire(shared_lock, LW_EXCLUSIVE);
	for (int i = 0; i < MAX_DATABASES; i++)
	{
		Visit	   *visit = &shared->visits[i];

		if (started[i].handle == NULL &&
			!is_wanted(databases, NameStr(visit->database)))
			MemSet(visit, 0, sizeof(Visit));
	}
	foreach(lc, databases)
	{
		Visit	   *visit = find_visit(lfirst(lc));

		if (visit == NULL)
			visit = find_visit("");
		if (visit != NULL && NameStr(visit->database)[0] == '\0')
			namestrcpy(&visit->database, lfirst(lc));
	}
	LWLockRelease(shared_lock);
}

/* whoever changes a setting may have mended what made visits fail */
static void
forgive_failures(void)
{
	LWLockAcquire(shared_lock, LW_EXCLUSIVE);
	for (int i = 0; i < MAX_DATABASES; i++)
	{
		Visit	   *visit = &shared->visits[i];

		if (visit->failures > 0)
			visit->next_visit = 0;
		visit->failures = 0;
	}
	LWLockRelease(shared_lock);
}

/* after a visit that failed: twice as long as before */
static long
backoff_ms(int failures)
{
	int64		ms = (int64) worker_naptime << Min(failures, 16);

	return (long) Min(ms, MAX_BACKOFF_MS);
}

static bool
start_worker(int number, Started *started)
{
	BackgroundWorker worker = {0};

	worker.bgw_flags = BGWORKER_SHMEM_ACCESS |
		BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	worker.bgw_main_arg = Int32GetDatum(number);
	worker.bgw_notify_pid = MyProcPid;
	strlcpy(worker.bgw_library_name, "cusown_ops", BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, "cusown_worker_main", BGW_MAXLEN);
	strlcpy(worker.bgw_name, "cusown_ops worker", BGW_MAXLEN);
	strlcpy(worker.bgw_type, "cusown_ops worker", BGW_MAXLEN);
	return RegisterDynamicBackgroundWorker(&worker, &started->handle);
}

/* of visit, under the lock: it has not come to its end */
static void
note_failure(Visit *visit, const char *error)
{
	visit->failures++;
	visit->last_error_at = GetCurrentTimestamp();
	set_text(visit->last_error, error);
	visit->next_visit =
		TimestampTzPlusMilliseconds(visit->last_error_at,
									backoff_ms(visit->failures));
}

/* whether the worker that was started is still at it */
static bool
is_at_work(const Started *started)
{
	pid_t		pid;

	return GetBackgroundWorkerPid(started->handle, &pid) != BGWH_STOPPED;
}

/*
 * Frees the visits whose workers have gone, before the settings are adopted: a
 * database that is no longer to be visited must not be begun again first.
 */
static void
end_visits(Started *started)
{
	for (int i = 0; i < MAX_DATABASES; i++)
	{
		Visit	   *visit = &shared->visits[i];

		if (started[i].handle == NULL || is_at_work(&started[i]))
			continue;
		pfree(started[i].handle);
		started[i].handle = NULL;
		LWLockAcquire(shared_lock, LW_EXCLUSIVE);
		visit->pid = 0;
		if (!visit->is_done)
			note_failure(visit, "the visit did not come to its end, see the server's log");
		LWLockRelease(shared_lock);
	}
}

static bool
is_due(const Visit *visit, TimestampTz now)
{
	return NameStr(visit->database)[0] != '\0' && visit->next_visit <= now;
}

/* starts the worker of a visit that is due; nobody else changes it by now */
static void
begin_visit(int number, Started *started, TimestampTz now)
{
	Visit	   *visit = &shared->visits[number];

	LWLockAcquire(shared_lock, LW_EXCLUSIVE);
	visit->is_done = false;
	visit->visits++;
	visit->last_visit = now;
	visit->next_visit = TimestampTzPlusMilliseconds(now, worker_naptime);
	LWLockRelease(shared_lock);
	if (start_worker(number, started))
		return;
	if (visit->failures == 0)
		ereport(LOG,
				(errmsg("could not start a worker for database \"%s\"",
						NameStr(visit->database)),
				 errhint("More max_worker_processes may be needed.")));
	LWLockAcquire(shared_lock, LW_EXCLUSIVE);
	note_failure(visit, "no background worker was free");
	LWLockRelease(shared_lock);
}

static void
begin_visits(Started *started)
{
	TimestampTz now = GetCurrentTimestamp();

	for (int i = 0; i < MAX_DATABASES; i++)
	{
		if (started[i].handle == NULL && is_due(&shared->visits[i], now))
			begin_visit(i, &started[i], now);
	}
}

/* until the first visit that is due, at most a nap; those under way have time */
static long
time_to_sleep(const Started *started)
{
	TimestampTz now = GetCurrentTimestamp();
	long		ms = worker_naptime;

	for (int i = 0; i < MAX_DATABASES; i++)
	{
		const Visit *visit = &shared->visits[i];

		if (started[i].handle == NULL && NameStr(visit->database)[0] != '\0')
			ms = Min(ms, TimestampDifferenceMilliseconds(now, visit->next_visit));
	}
	return Max(ms, MIN_NAP_MS);
}

static void
forget_launcher(int code, Datum argument)
{
	LWLockAcquire(shared_lock, LW_EXCLUSIVE);
	shared->launcher = 0;
	LWLockRelease(shared_lock);
}

static void
nap(const Started *started)
{
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
					 time_to_sleep(started), PG_WAIT_EXTENSION);
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
	if (!ConfigReloadPending)
		return;
	ConfigReloadPending = false;
	ProcessConfigFile(PGC_SIGHUP);
	forgive_failures();
}

void
cusown_worker_launcher_main(Datum argument)
{
	Started    *started = MemoryContextAllocZero(TopMemoryContext,
												 MAX_DATABASES * sizeof(Started));
	MemoryContext round = AllocSetContextCreate(TopMemoryContext,
												"cusown_ops launcher round",
												ALLOCSET_DEFAULT_SIZES);

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, SignalHandlerForShutdownRequest);
	BackgroundWorkerUnblockSignals();
	on_shmem_exit(forget_launcher, (Datum) 0);
	LWLockAcquire(shared_lock, LW_EXCLUSIVE);
	shared->launcher = MyProcPid;
	/* what a launcher before this one had started is none of ours */
	MemSet(shared->visits, 0, sizeof(shared->visits));
	LWLockRelease(shared_lock);

	while (!ShutdownRequestPending)
	{
		end_visits(started);
		MemoryContextSwitchTo(round);
		adopt_settings(databases_wanted(), started);
		MemoryContextSwitchTo(TopMemoryContext);
		MemoryContextReset(round);
		begin_visits(started);
		nap(started);
	}
	/* not 0: whoever ended it, the server is to start it again */
	proc_exit(1);
}

/* ---------- a visit ---------- */

/* what a worker keeps of its visit */
typedef struct Work
{
	Visit	   *visit;
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

static void
cover(Work *work, const Takeover *takeover)
{
	if (takeover->is_over)
	{
		if (attempt(work, end_covering, takeover, "standing down"))
			note(work, "stood down from", takeover);
		return;
	}
	if (takeover->is_subscribed)
	{
		note(work, PUBLISHERS, takeover);
		return;
	}
	if (!takeover->covers &&
		!attempt(work, begin_covering, takeover, "taking over"))
		return;
	note(work, attempt(work, run_job, takeover, takeover->job) ? "ran" : "failed at",
		 takeover);
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
		cover(work, lfirst(lc));
	}
}

/* in the log once, not at every nap */
static void
log_idleness(const Work *work, const char *did)
{
	if (strcmp(work->visit->did, did) == 0)
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
	Visit	   *visit = work->visit;

	set_text(visit->did, did);
	visit->is_done = true;
	visit->pid = 0;
	if (succeeded)
		visit->failures = 0;
	else
		note_failure(visit, work->error != NULL ? work->error : did);
	if (succeeded && work->error != NULL)
	{
		visit->last_error_at = GetCurrentTimestamp();
		set_text(visit->last_error, work->error);
	}
}

/* what the visit has come to, for cusown_worker_status() */
static void
report(Work *work, bool succeeded)
{
	const Visit *visit = work->visit;
	const char *did = work->did.len > 0 ? work->did.data : "nothing was late";

	if (!succeeded)
		did = "could not look what is late";
	else if (!work->is_installed)
		did = "found no extension";
	log_idleness(work, did);
	LWLockAcquire(shared_lock, LW_EXCLUSIVE);
	if (visit->pid == MyProcPid)
		end_visit(work, did, succeeded && work->is_installed);
	LWLockRelease(shared_lock);
}

static void
connect_to(Visit *visit)
{
	char		database[NAMEDATALEN];

	LWLockAcquire(shared_lock, LW_EXCLUSIVE);
	visit->pid = MyProcPid;
	strlcpy(database, NameStr(visit->database), NAMEDATALEN);
	LWLockRelease(shared_lock);
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
	work.visit = &shared->visits[DatumGetInt32(argument)];
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

/* ---------- what can be seen of it ---------- */

static Datum
timestamp_or_null(TimestampTz moment, bool *isnull)
{
	*isnull = moment == 0;
	return TimestampTzGetDatum(moment);
}

static Datum
text_or_null(const char *string, bool *isnull)
{
	*isnull = string[0] == '\0';
	return CStringGetTextDatum(string);
}

static void
put_visit(ReturnSetInfo *result, const Visit *visit)
{
	Datum		values[9];
	bool		nulls[9] = {false};

	values[0] = NameGetDatum(&visit->database);
	values[1] = timestamp_or_null(visit->last_visit, &nulls[1]);
	values[2] = text_or_null(visit->did, &nulls[2]);
	values[3] = timestamp_or_null(visit->next_visit, &nulls[3]);
	values[4] = Int64GetDatum(visit->visits);
	values[5] = Int32GetDatum(visit->failures);
	values[6] = text_or_null(visit->last_error, &nulls[6]);
	values[7] = timestamp_or_null(visit->last_error_at, &nulls[7]);
	values[8] = Int32GetDatum(visit->pid);
	nulls[8] = visit->pid == 0;
	tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
}

/*
 * cusown_worker_status(OUT database name, OUT last_visit timestamptz,
 *		OUT did text, OUT next_visit timestamptz, OUT visits bigint,
 *		OUT failures integer, OUT last_error text,
 *		OUT last_error_at timestamptz, OUT pid integer)
 *		RETURNS SETOF record
 *
 * The worker's visits to each of its databases.  No rows while no launcher runs.
 *
 * Errors: 55000 the library is not preloaded.
 *
 * Source: runbook "Cron Failure", step 4.
 */
Datum
cusown_worker_status(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	WorkerShared *copy;

	if (shared == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the worker needs cusown_ops to be preloaded"),
				 errhint("Add to postgresql.conf: shared_preload_libraries = 'cusown_ops', beside what is there, and restart.")));
	InitMaterializedSRF(fcinfo, 0);
	copy = palloc(sizeof(WorkerShared));
	LWLockAcquire(shared_lock, LW_SHARED);
	memcpy(copy, shared, sizeof(WorkerShared));
	LWLockRelease(shared_lock);
	for (int i = 0; copy->launcher != 0 && i < MAX_DATABASES; i++)
	{
		if (NameStr(copy->visits[i].database)[0] != '\0')
			put_visit(result, &copy->visits[i]);
	}
	return (Datum) 0;
}
