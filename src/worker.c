/*-------------------------------------------------------------------------
 *
 * worker.c
 *	  The worker that covers for a scheduler that has died.
 *
 * A launcher (launcher.c) starts a short-lived worker for each database of
 * cusown_ops.worker_databases every cusown_ops.worker_naptime.  That one
 * (visit.c) connects as cusown_ops.worker_role, finds runs that have died, runs
 * what takeover.c says it must, and goes.  Here are the settings, what both
 * know of each other, and what can be seen of it.
 *
 * Locking protocol: the launcher alone makes and removes visits in shared
 * memory, a worker alone writes the one that it was given, as long as its pid
 * stands there: a launcher that came after a crash of the last one forgets the
 * workers of that, and one of those that comes to its visit only then finds that
 * its launcher was another.  Both write under the lock of this part, and whoever
 * else reads them does so under it.  Nothing else is done under it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "storage/shmem.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/timestamp.h"
#include "utils/varlena.h"

#include "shmem.h"
#include "worker.h"

/* cusown_ops.worker: whether the worker covers for the scheduler. */
bool		worker_enabled = true;

/*
 * cusown_ops.worker_databases: databases that the worker visits, separated by
 * commas.  Empty means pg_cron's database, where that is set.
 */
char	   *worker_databases = NULL;

/*
 * cusown_ops.worker_role: role with LOGIN that the worker works as.  Empty means
 * that it only tells what is late.
 */
char	   *worker_role = NULL;

/* cusown_ops.worker_naptime: milliseconds between two visits of a database. */
int			worker_naptime = 10000;

WorkerShared *worker_shared = NULL;
LWLock	   *worker_lock = NULL;

PG_FUNCTION_INFO_V1(cusown_worker_status);

/* ---------- settings and shared memory ---------- */

static bool
check_databases(char **value, void **extra, GucSource source)
{
	char	   *copy = pstrdup(*value);
	List	   *names;
	bool		is_list = SplitIdentifierString(copy, ',', &names);
	bool		has_room = is_list && list_length(names) <= WORKER_MAX_DATABASES;

	if (!is_list)
		GUC_check_errdetail("List syntax is invalid.");
	else if (!has_room)
		GUC_check_errdetail("It names more than %d databases.", WORKER_MAX_DATABASES);
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
							NULL, &worker_naptime, 10000, WORKER_MIN_NAP_MS, 3600 * 1000,
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

	worker_shared = ShmemInitStruct("cusown_ops worker", sizeof(WorkerShared), &found);
	worker_lock = lock;
	if (!found)
		MemSet(worker_shared, 0, sizeof(WorkerShared));
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

void
worker_set_text(char *text, const char *value)
{
	int			length = pg_mbcliplen(value, strlen(value),
									  WORKER_TEXT_LENGTH - 1);

	memcpy(text, value, length);
	text[		length] = '\0';
}

/* after the last so many have failed: twice as long as before, up to a limit */
TimestampTz
worker_next_try(TimestampTz now, int failures, int64 limit_ms)
{
	int64		ms = (int64) worker_naptime << Min(failures, 16);

	return TimestampTzPlusMilliseconds(now, Min(ms, limit_ms));
}

/* of visit, under the lock: it has not come to its end */
void
worker_note_failure(WorkerVisit *visit, const char *error)
{
	visit->failures++;
	visit->last_error_at = GetCurrentTimestamp();
	worker_set_text(visit->last_error, error);
	visit->next_visit = worker_next_try(visit->last_error_at, visit->failures,
										WORKER_MAX_BACKOFF_MS);
}

/* ---------- what can be seen of it ---------- */

static Datum
timestamp_or_null(TimestampTz moment, bool *isnull)
{
	*isnull = moment == 0;
	return TimestampTzGetDatum(moment);
}

/*
 * Whoever wrote it may have worked in another encoding, or in none, as the launcher
 * does: where it is not valid here, what is not ASCII is lost.
 */
static Datum
text_or_null(const char *string, bool *isnull)
{
	char	   *copy = pstrdup(string);
	int			valid = pg_encoding_verifymbstr(GetDatabaseEncoding(), copy,
												strlen(copy));

	for (char *at = copy + valid; *at != '\0'; at++)
	{
		if (IS_HIGHBIT_SET(*at))
			*at = '?';
	}
	*isnull = string[0] == '\0';
	return CStringGetTextDatum(copy);
}

static void
put_visit(ReturnSetInfo *result, const WorkerVisit *visit)
{
	Datum		values[10];
	bool		nulls[10] = {false};

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
	values[9] = text_or_null(visit->doing, &nulls[9]);
	tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
}

/*
 * cusown_worker_status(OUT database name, OUT last_visit timestamptz,
 *		OUT did text, OUT next_visit timestamptz, OUT visits bigint,
 *		OUT failures integer, OUT last_error text,
 *		OUT last_error_at timestamptz, OUT pid integer, OUT doing text)
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

	if (worker_shared == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the worker needs cusown_ops to be preloaded"),
				 errhint("Add to postgresql.conf: shared_preload_libraries = 'cusown_ops', beside what is there, and restart.")));
	InitMaterializedSRF(fcinfo, 0);
	copy = palloc(sizeof(WorkerShared));
	LWLockAcquire(worker_lock, LW_SHARED);
	memcpy(copy, worker_shared, sizeof(WorkerShared));
	LWLockRelease(worker_lock);
	for (int i = 0; copy->launcher != 0 && i < WORKER_MAX_DATABASES; i++)
	{
		if (NameStr(copy->visits[i].database)[0] != '\0')
			put_visit(result, &copy->visits[i]);
	}
	return (Datum) 0;
}
