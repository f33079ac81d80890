/*-------------------------------------------------------------------------
 *
 * launcher.c
 *	  Starts a worker for each database that is to be visited.
 *
 * Without a database, started once the server is no standby (any more).  A
 * visit that fails makes the next ones of that database rarer, up to an hour or
 * until the settings are read again, and leaves the others alone.
 *
 * Locking protocol: see worker.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/varlena.h"
#include "utils/wait_event.h"

#include "compat.h"
#include "worker.h"

/* what the launcher keeps for itself, by the number of the visit */
typedef struct Started
{
	BackgroundWorkerHandle *handle; /* NULL: no worker is at it */
} Started;

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
static WorkerVisit *
find_visit(const char *database)
{
	for (int i = 0; i < WORKER_MAX_DATABASES; i++)
	{
		if (strcmp(NameStr(worker_shared->visits[i].database), database) == 0)
			return &worker_shared->visits[i];
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

	LWLockAcquire(worker_lock, LW_EXCLUSIVE);
	for (int i = 0; i < WORKER_MAX_DATABASES; i++)
	{
		WorkerVisit *visit = &worker_shared->visits[i];

		if (started[i].handle == NULL &&
			!is_wanted(databases, NameStr(visit->database)))
			MemSet(visit, 0, sizeof(WorkerVisit));
	}
	foreach(lc, databases)
	{
		WorkerVisit *visit = find_visit(lfirst(lc));

		if (visit == NULL)
			visit = find_visit("");
		if (visit != NULL && NameStr(visit->database)[0] == '\0')
			namestrcpy(&visit->database, lfirst(lc));
	}
	LWLockRelease(worker_lock);
}

/* whoever changes a setting may have mended what made visits fail */
static void
forgive_failures(void)
{
	LWLockAcquire(worker_lock, LW_EXCLUSIVE);
	for (int i = 0; i < WORKER_MAX_DATABASES; i++)
	{
		WorkerVisit *visit = &worker_shared->visits[i];

		if (visit->failures > 0)
			visit->next_visit = 0;
		/* naps may be shorter by now */
		visit->next_visit = Min(visit->next_visit,
								worker_next_try(GetCurrentTimestamp(), 0,
												WORKER_MAX_BACKOFF_MS));
		visit->failures = 0;
		MemSet(visit->failing, 0, sizeof(visit->failing));
	}
	LWLockRelease(worker_lock);
}

static bool
start_worker(int number, Started *started)
{
	BackgroundWorker worker = {0};
	WorkerOrder order = {worker_shared->launchers, number};

	StaticAssertStmt(sizeof(order) <= BGW_EXTRALEN, "order does not fit");
	memcpy(worker.bgw_extra, &order, sizeof(order));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS |
		BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	worker.bgw_notify_pid = MyProcPid;
	strlcpy(worker.bgw_library_name, "cusown_ops", BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, "cusown_worker_main", BGW_MAXLEN);
	strlcpy(worker.bgw_name, "cusown_ops worker", BGW_MAXLEN);
	strlcpy(worker.bgw_type, "cusown_ops worker", BGW_MAXLEN);
	return RegisterDynamicBackgroundWorker(&worker, &started->handle);
}

/* whether the worker that was started is still at it */
static bool
is_at_work(const Started *started)
{
	pid_t		pid;

	return GetBackgroundWorkerPid(started->handle, &pid) != BGWH_STOPPED;
}

/* under the lock: its worker has gone, or could not even connect */
static void
note_unfinished(WorkerVisit *visit)
{
	char		error[2 * WORKER_TEXT_LENGTH];

	snprintf(error, sizeof(error), "the visit ended while %s, see the server's log",
			 visit->doing);
	worker_note_failure(visit, error);
}

/*
 * Frees the visits whose workers have gone, before the settings are adopted: a
 * database that is no longer to be visited must not be begun again first.
 */
static void
end_visits(Started *started)
{
	for (int i = 0; i < WORKER_MAX_DATABASES; i++)
	{
		WorkerVisit *visit = &worker_shared->visits[i];

		if (started[i].handle == NULL || is_at_work(&started[i]))
			continue;
		pfree(started[i].handle);
		started[i].handle = NULL;
		LWLockAcquire(worker_lock, LW_EXCLUSIVE);
		visit->pid = 0;
		if (!visit->is_done)
			note_unfinished(visit);
		visit->doing[0] = '\0';
		LWLockRelease(worker_lock);
	}
}

/* a last visit in the future tells that the clock was set back */
static bool
is_due(const WorkerVisit *visit, TimestampTz now)
{
	return NameStr(visit->database)[0] != '\0' &&
		(visit->next_visit <= now || visit->last_visit > now);
}

/* starts the worker of a visit that is due; nobody else changes it by now */
static void
begin_visit(int number, Started *started, TimestampTz now)
{
	WorkerVisit *visit = &worker_shared->visits[number];

	LWLockAcquire(worker_lock, LW_EXCLUSIVE);
	visit->is_done = false;
	visit->visits++;
	worker_set_text(visit->doing, "a worker was started");
	visit->last_visit = now;
	visit->next_visit = TimestampTzPlusMilliseconds(now, worker_naptime);
	LWLockRelease(worker_lock);
	if (start_worker(number, started))
		return;
	if (visit->failures == 0)
		ereport(LOG,
				(errmsg("could not start a worker for database \"%s\"",
						NameStr(visit->database)),
				 errhint("More max_worker_processes may be needed.")));
	LWLockAcquire(worker_lock, LW_EXCLUSIVE);
	visit->doing[0] = '\0';
	worker_note_failure(visit, "no background worker was free");
	LWLockRelease(worker_lock);
}

static void
begin_visits(Started *started)
{
	TimestampTz now = GetCurrentTimestamp();

	for (int i = 0; i < WORKER_MAX_DATABASES; i++)
	{
		if (started[i].handle == NULL && is_due(&worker_shared->visits[i], now))
			begin_visit(i, &started[i], now);
	}
}

/*
 * Until the first visit that is due, at most a nap.  One that is under way at its
 * next has time.
 */
static long
time_to_sleep(const Started *started)
{
	TimestampTz now = GetCurrentTimestamp();
	long		ms = worker_naptime;

	for (int i = 0; i < WORKER_MAX_DATABASES; i++)
	{
		const WorkerVisit *visit = &worker_shared->visits[i];

		if (NameStr(visit->database)[0] != '\0' &&
			(started[i].handle == NULL || visit->next_visit > now))
			ms = Min(ms, TimestampDifferenceMilliseconds(now, visit->next_visit));
	}
	return Max(ms, WORKER_MIN_NAP_MS);
}

static void
forget_launcher(int code, Datum argument)
{
	LWLockAcquire(worker_lock, LW_EXCLUSIVE);
	worker_shared->launcher = 0;
	LWLockRelease(worker_lock);
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
												 WORKER_MAX_DATABASES * sizeof(Started));
	MemoryContext round = AllocSetContextCreate(TopMemoryContext,
												"cusown_ops launcher round",
												ALLOCSET_DEFAULT_SIZES);

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, SignalHandlerForShutdownRequest);
	BackgroundWorkerUnblockSignals();
	on_shmem_exit(forget_launcher, (Datum) 0);
	LWLockAcquire(worker_lock, LW_EXCLUSIVE);
	worker_shared->launcher = MyProcPid;
	worker_shared->launchers++;
	/* what a launcher before this one had started is none of ours */
	MemSet(worker_shared->visits, 0, sizeof(worker_shared->visits));
	LWLockRelease(worker_lock);

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
