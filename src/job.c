/*-------------------------------------------------------------------------
 *
 * job.c
 *	  The frame that a job runs in: cusown_run_job().
 *
 * A run is begun (ledger row "running", committed), stepped batch by batch,
 * each in a subtransaction inside a transaction of its own that is committed,
 * and ended (ledger row, committed).  An error rolls back the batch in which
 * it arose; the ones before stay.  It is kept in the ledger and raised again
 * when all is written, so that the caller, pg_cron for instance, sees it too.
 *
 * Locking protocol: a run holds a session-level lock of class advisory, whose
 * field4 no SQL function can ask for, on (job, application schema).  It makes
 * two runs of one job impossible, and it tells the living from the dead: a row
 * "running" whose lock nobody holds has died.  The lock is never waited for.
 * It is of the server's own lock method, as VACUUM's session locks are, since
 * a trigger of the application may call pg_advisory_unlock_all().
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "storage/latch.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "cusown_ops.h"
#include "errors.h"
#include "job.h"
#include "ledger.h"
#include "subtransaction.h"
#include "template.h"
#include "verb.h"

/* pg_advisory_lock() and its kin use 1 and 2 */
#define JOB_LOCK_CLASS 0xC0

static const Job *const jobs[] = {
	&expire_bookings_job,
	&release_expired_holds_job,
	&mark_no_show_job,
	&prune_history_job,
	&expire_payments_job,
	&retry_parked_webhooks_job,
	&prune_idempotency_job,
	&take_census_job,
	&evaluate_alerts_job,
};

/* one call of cusown_run_job() */
typedef struct JobCall
{
	const Job  *job;
	char	   *source;
	int			batch_size;
	long		pause_ms;
	MemoryContext context;		/* lives as long as the call */
	ErrorData  *run_error;		/* of the run that is ending */
	ErrorData  *first_error;	/* of all runs, raised at the end */
	char	   *busy;			/* schema on which it was running already */
	bool		disabled;		/* and nobody asked for this run */
	bool		cancelled;
} JobCall;

/* when a run must end between two batches; 0: when it is done */
static TimestampTz deadline = 0;

PG_FUNCTION_INFO_V1(cusown_run_job);
PG_FUNCTION_INFO_V1(cusown_shipped_jobs);
PG_FUNCTION_INFO_V1(cusown_is_shipped_job);
PG_FUNCTION_INFO_V1(cusown_job_is_alive);

/* $1, $2 are the fields of the lock tag */
static const Template lock_holder = {
	"SELECT EXISTS (SELECT FROM pg_catalog.pg_locks l"
	" WHERE l.locktype = 'advisory' AND l.granted"
	" AND l.database = $1 AND l.classid = $2 AND l.objid = $3"
	" AND l.objsubid = 192) AS found",
	3, {OIDOID, OIDOID, OIDOID}
};

/* $1 job */
static const Template owner_disabled = {
	"SELECT NOT o.enabled AS disabled FROM cusown_ops.job o"
	" WHERE o.name = $1 AND o.enabled IS NOT NULL",
	1, {TEXTOID}
};

static const Job *
find_job(const char *name)
{
	for (int i = 0; i < lengthof(jobs); i++)
	{
		if (strcmp(jobs[i]->name, name) == 0)
			return jobs[i];
	}
	return NULL;
}

/* raises 22023 where there is none */
const Job  *
job_named(const char *name)
{
	const Job  *job = find_job(name);

	if (job != NULL)
		return job;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("unknown job \"%s\"", name),
			 errhint("SELECT * FROM cusown_jobs() shows them.")));
}

/* ---------- one run at a time ---------- */

static uint32
hash_name(const char *name)
{
	return hash_bytes((const unsigned char *) name, strlen(name));
}

static LOCKTAG
job_lock(const Job *job, const char *app_schema)
{
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, hash_name(job->name),
						 hash_name(app_schema), JOB_LOCK_CLASS);
	/* those of users go with pg_advisory_unlock_all(), whatever their class */
	tag.locktag_lockmethodid = DEFAULT_LOCKMETHOD;
	return tag;
}

static bool
lock_job(const LOCKTAG *tag)
{
	return LockAcquire(tag, ExclusiveLock, true, true) !=
		LOCKACQUIRE_NOT_AVAIL;
}

/*
 * Keeps runs of the job out to the end of the transaction.  False while there
 * is one, also where this session runs it and a trigger has led here; and
 * where this transaction has done so already.
 */
bool
job_keep_out(const Job *job, const char *app_schema)
{
	LOCKTAG		tag = job_lock(job, app_schema);

	switch (LockAcquire(&tag, ExclusiveLock, false, true))
	{
		case LOCKACQUIRE_OK:
			return true;
		case LOCKACQUIRE_NOT_AVAIL:
			return false;
		default:
			LockRelease(&tag, ExclusiveLock, false);
			return false;
	}
}

/*
 * cusown_ops.job_is_alive(app_schema name, job text) RETURNS boolean
 *
 * Whether a session runs the job on that application now.  Null on a standby,
 * which does not see the primary's locks.
 */
Datum
cusown_job_is_alive(PG_FUNCTION_ARGS)
{
	LOCKTAG		tag = job_lock(job_named(text_to_cstring(PG_GETARG_TEXT_PP(1))),
							   NameStr(*PG_GETARG_NAME(0)));
	Datum		values[3];
	bool		isnull;
	bool		found;

	if (RecoveryInProgress())
		PG_RETURN_NULL();
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	values[0] = ObjectIdGetDatum(tag.locktag_field1);
	values[1] = ObjectIdGetDatum(tag.locktag_field2);
	values[2] = ObjectIdGetDatum(tag.locktag_field3);
	template_execute(NULL, &lock_holder, values, NULL, true);
	found = DatumGetBool(template_column(0, "found", &isnull));
	SPI_finish();
	PG_RETURN_BOOL(found);
}

/* ---------- a batch ---------- */

typedef struct Attempt
{
	JobCall    *call;
	LedgerRun  *ledger;
	JobRun	   *run;
	bool		goes_on;
} Attempt;

static void
do_step(void *state)
{
	Attempt    *attempt = state;
	const Job  *job = attempt->call->job;
	int			settings;

	/* here, so that a cancel between two batches ends the run like one within */
	CHECK_FOR_INTERRUPTS();
	/* for what it calls by SQL */
	settings = binding_choose_schema(attempt->ledger->app_schema);
	if (job->relations != NULL)
		attempt->run->binding = binding_use_schema(attempt->ledger->app_schema,
												   job->relations);
	attempt->goes_on = job->step(attempt->run);
	AtEOXact_GUC(true, settings);
	ledger_progress(attempt->ledger, &attempt->run->counts);
}

static void
tell_application(void *state)
{
	Attempt    *attempt = state;
	Split		own = {.own_transaction = true};

	ledger_tell_application(attempt->ledger, &attempt->run->counts,
							attempt->call->run_error);
	split_fire_deferred(&own);
}

static bool
run_batch(JobCall *call, LedgerRun *ledger, JobRun *run, ErrorData **error)
{
	JobCounts	before = run->counts;
	Attempt		attempt = {call, ledger, run, false};

	*error = subtransaction_try(do_step, &attempt, call->context);
	if (*error != NULL)
		run->counts = before;
	return *error == NULL && attempt.goes_on;
}

/*
 * For a step whose tries were all refused: the run ends as failed, but what the
 * batch put on the worklist stays, so that the next run goes on behind it.
 */
void
job_give_up(JobRun *run, const Split *split, const char *what)
{
	run->given_up_code = split->last_refusal->sqlerrcode;
	run->given_up = MemoryContextStrdup(run->context,
										psprintf("all of " INT64_FORMAT " rows were refused: %s",
												 split->refused,
												 split_finding(split->last_refusal, what)));
}

/* for the worker: no batch is begun after this */
void
job_set_deadline(TimestampTz moment)
{
	deadline = moment;
}

static bool
is_time_over(void)
{
	return deadline != 0 && GetCurrentTimestamp() >= deadline;
}

/* finds runs of the job whose session has gone */
void
job_mark_died(const Job *job, const char *app_schema)
{
	if (job_keep_out(job, app_schema))
		ledger_mark_died(app_schema, job->name);
}

static void
raise_given_up(void *state)
{
	const JobRun *run = state;

	ereport(ERROR,
			(errcode(run->given_up_code),
			 errmsg_internal("%s", run->given_up),
			 errhint("The rows are on the worklist cusown_ops.attention.")));
}

/*
 * Between batches nothing is held.  A latch may be set for any reason, so this
 * waits to a deadline.  All interrupts are served, not only those that end it:
 * DROP DATABASE waits until every backend has answered.
 */
static void
pause_between(void *state)
{
	const JobCall *call = state;
	TimestampTz end = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
												  call->pause_ms);

	for (;;)
	{
		long		left;

		CHECK_FOR_INTERRUPTS();
		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), end);
		if (left <= 0)
			break;
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 Min(left, 60000), PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
	}
}

/* ---------- a run ---------- */

static bool
was_cancelled(const ErrorData *error)
{
	return error != NULL && error->sqlerrcode == ERRCODE_QUERY_CANCELED;
}

/* steps the run to its end and returns the error that ended it, or NULL */
static ErrorData *
step_all(JobCall *call, LedgerRun *ledger, JobRun *run)
{
	ErrorData  *error = NULL;

	while (run_batch(call, ledger, run, &error))
	{
		SPI_commit();
		if (run->given_up != NULL)
			return subtransaction_try(raise_given_up, run, call->context);
		ledger->more_left = is_time_over();
		if (ledger->more_left)
			return NULL;
		if (call->pause_ms > 0)
			error = subtransaction_try(pause_between, call, call->context);
		if (error != NULL)
			break;
	}
	SPI_commit();
	return error;
}

/*
 * A binding that does not resolve keeps the run and these records from their
 * work alike; what will be raised at the end need not be said before.
 */
static bool
will_be_raised(const JobCall *call, const ErrorData *error,
			   const ErrorData *untold)
{
	return error != NULL && call->first_error == NULL &&
		error->sqlerrcode == untold->sqlerrcode &&
		strcmp(error->message, untold->message) == 0;
}

/*
 * The ledger first: whatever the application's own records do, it is kept.  A
 * cancel while they are written, as while somebody holds a metric, leaves the
 * run as it ended, but stops the call as any cancel does.
 */
static void
end_run(JobCall *call, LedgerRun *ledger, JobRun *run, ErrorData *error)
{
	Attempt		attempt = {call, ledger, run, false};
	ErrorData  *untold;

	ledger_end(ledger, error);
	SPI_commit();
	call->run_error = error;
	untold = subtransaction_try(tell_application, &attempt, call->context);
	SPI_commit();
	if (was_cancelled(untold))
	{
		call->cancelled = true;
		if (call->first_error == NULL && error == NULL)
			call->first_error = untold;
		return;
	}
	if (untold != NULL && !will_be_raised(call, error, untold))
		ereport(WARNING,
				(errcode(untold->sqlerrcode),
				 errmsg("could not write to the application's own records of job \"%s\": %s",
						call->job->name, untold->message)));
}

static void
run_locked(JobCall *call, LedgerRun *ledger)
{
	JobRun		run = {0};
	ErrorData  *error;

	ledger_begin(ledger);
	SPI_commit();
	run.app_schema = ledger->app_schema;
	run.source = call->source;
	run.batch_size = call->batch_size;
	run.as_of = GetCurrentTimestamp();
	run.context = call->context;
	run.state = MemoryContextAllocZero(call->context,
									   Max(call->job->state_size, 1));
	error = step_all(call, ledger, &run);
	end_run(call, ledger, &run, error);
	if (call->first_error == NULL)
		call->first_error = error;
	call->cancelled |= was_cancelled(error);
}

/*
 * A cron job that finds the last run under way has nothing to complain of; a
 * human does, once the other applications were visited.
 */
static void
skip_run(JobCall *call, const LedgerRun *ledger)
{
	if (strcmp(call->source, "manual") == 0)
	{
		if (call->busy == NULL)
			call->busy = MemoryContextStrdup(call->context, ledger->app_schema);
		return;
	}
	ereport(NOTICE,
			(errmsg("job \"%s\" is already running on application schema \"%s\", skipping",
					call->job->name, ledger->app_schema)));
	ledger_skip(ledger);
	SPI_commit();
}

/*
 * Whoever disabled a job need not find every schedule of it.  A human who
 * runs it wants it now.
 */
static void
skip_disabled(JobCall *call, const LedgerRun *ledger)
{
	ereport(NOTICE,
			(errmsg("job \"%s\" is disabled, skipping application schema \"%s\"",
					call->job->name, ledger->app_schema)));
	ledger_skip(ledger);
	SPI_commit();
}

static void
run_on_schema(JobCall *call, const char *app_schema)
{
	LOCKTAG		tag = job_lock(call->job, app_schema);
	LedgerRun	ledger = {0};

	ledger.job = call->job->name;
	ledger.app_schema = app_schema;
	ledger.source = call->source;
	if (call->disabled)
	{
		skip_disabled(call, &ledger);
		return;
	}
	if (!lock_job(&tag))
	{
		skip_run(call, &ledger);
		return;
	}
	PG_TRY();
	{
		run_locked(call, &ledger);
	}
	PG_FINALLY();
	{
		LockRelease(&tag, ExclusiveLock, true);
	}
	PG_END_TRY();
}

/* the chosen application, or each one that is attached */
List *
job_schemas(MemoryContext context)
{
	MemoryContext caller;
	List	   *schemas = NIL;
	ListCell   *lc;

	if (cusown_app_schema[0] != '\0')
		(void) binding_use(NULL);	/* raises UO001 */
	if (cusown_app_schema[0] != '\0')
		return list_make1(MemoryContextStrdup(context, cusown_app_schema));
	if (binding_attached() == NIL)
		(void) binding_use(NULL);	/* raises UO001 */
	caller = MemoryContextSwitchTo(context);
	foreach(lc, binding_attached())
		schemas = lappend(schemas, pstrdup(lfirst(lc)));
	MemoryContextSwitchTo(caller);
	return schemas;
}

static bool
is_disabled(const Job *job)
{
	Datum		values[1];
	bool		disabled = !job->enabled;

	values[0] = CStringGetTextDatum(job->name);
	if (template_execute(NULL, &owner_disabled, values, NULL, false) > 0)
		disabled = template_bool(0, "disabled");
	SPI_freetuptable(SPI_tuptable);
	return disabled;
}

static void
check_nonatomic(FunctionCallInfo fcinfo)
{
	if (fcinfo->context != NULL && IsA(fcinfo->context, CallContext) &&
		!castNode(CallContext, fcinfo->context)->atomic)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
			 errmsg("cusown_run_job() cannot run inside a transaction block"),
			 errhint("CALL it on its own, outside BEGIN and functions: each batch is a transaction.")));
}

static void
read_arguments(JobCall *call, FunctionCallInfo fcinfo)
{
	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("job must not be null")));
	call->job = job_named(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	call->source = verb_source(fcinfo, 1);
	call->batch_size = PG_ARGISNULL(2) ? cusown_batch_size : PG_GETARG_INT32(2);
	if (call->batch_size < 1 || call->batch_size > CUSOWN_MAX_BATCH_SIZE)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("batch_size must be between 1 and %d",
						CUSOWN_MAX_BATCH_SIZE)));
	if (!PG_ARGISNULL(3))
	{
		verb_check_interval(PG_GETARG_INTERVAL_P(3), "pause");
		call->pause_ms = verb_interval_ms(PG_GETARG_INTERVAL_P(3));
	}
}

/*
 * cusown_run_job(job text, source text DEFAULT 'manual',
 *		batch_size integer DEFAULT NULL, pause interval DEFAULT '0')
 *
 * Procedure.  Runs a job to its end, in batches of batch_size that are each a
 * transaction, pausing in between; on the application that
 * cusown_ops.app_schema names, else on each one that is attached.
 *
 * Where the job is disabled, sources cron and worker skip it.
 *
 * Errors: UO009 it is already running (source manual); UO001 nothing
 * attached; 25001 inside a transaction block; 22023 arguments; and whatever
 * ended a batch, once all is written to cusown_ops.job_run.
 *
 * Source: runbook "Cron Failure", step 3.
 */
Datum
cusown_run_job(PG_FUNCTION_ARGS)
{
	JobCall		call = {0};
	List	   *schemas;
	ListCell   *lc;

	check_nonatomic(fcinfo);
	verb_check_transaction("cusown_run_job");
	if (SPI_connect_ext(SPI_OPT_NONATOMIC) != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect_ext failed");
	call.context = AllocSetContextCreate(CurrentMemoryContext,
										 "cusown_ops job",
										 ALLOCSET_DEFAULT_SIZES);
	read_arguments(&call, fcinfo);
	call.disabled = verb_is_unattended(call.source) && is_disabled(call.job);
	schemas = job_schemas(call.context);
	foreach(lc, schemas)
	{
		run_on_schema(&call, lfirst(lc));
		if (call.cancelled)
			break;
	}
	if (call.first_error != NULL)
		ReThrowError(call.first_error);
	if (call.busy != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_CUSOWN_JOB_RUNNING),
				 errmsg("job \"%s\" is already running on application schema \"%s\"",
						call.job->name, call.busy),
				 errhint("SELECT * FROM cusown_ops.job_progress shows how far it is.")));
	SPI_finish();
	PG_RETURN_VOID();
}

/*
 * cusown_ops.shipped_jobs(OUT name text, OUT description text,
 *		OUT every interval, OUT enabled boolean) RETURNS SETOF record
 */
Datum
cusown_shipped_jobs(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < lengthof(jobs); i++)
	{
		Interval	every = {0};
		Datum		values[4];
		bool		nulls[4] = {false};

		every.time = jobs[i]->every * USECS_PER_SEC;
		values[0] = CStringGetTextDatum(jobs[i]->name);
		values[1] = CStringGetTextDatum(jobs[i]->description);
		values[2] = IntervalPGetDatum(&every);
		values[3] = BoolGetDatum(jobs[i]->enabled);
		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/*
 * cusown_ops.is_shipped_job(name text) RETURNS boolean
 *
 * Null for null.
 */
Datum
cusown_is_shipped_job(PG_FUNCTION_ARGS)
{
	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	PG_RETURN_BOOL(find_job(text_to_cstring(PG_GETARG_TEXT_PP(0))) != NULL);
}
