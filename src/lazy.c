/*-------------------------------------------------------------------------
 *
 * lazy.c
 *	  Expiry by the application's own requests, while no scheduler does it.
 *
 * The application calls cusown_expire_if_due() on each request.  Nearly always
 * it is not the caller's turn, and what that costs is what matters: which
 * application is meant comes from what binding.c keeps, and whether its turn
 * has come from shared memory (turn.c).  Without preload a backend looks at
 * the ledger, and remembers what it saw there.
 *
 * The work is a guest in somebody's request.  Whatever goes wrong with it is
 * rolled back, put into the ledger and told as a WARNING, at most once in the
 * interval; only what is meant to end the statement, a cancel or a shutdown,
 * does.
 *
 * Locking protocol: the turn is taken first.  Then the lock of the job
 * expire_bookings is tried, to the end of the transaction, so that the two
 * never work side by side; who does not get it leaves.  Bookings, slots and
 * payments are locked as expiry.c writes, which waits for no row; after them
 * the metric, which is not waited for either.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "fmgr.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "binding.h"
#include "cusown_ops.h"
#include "expiry.h"
#include "job.h"
#include "lazy.h"
#include "ledger.h"
#include "subtransaction.h"
#include "turn.h"
#include "verb.h"

/* a request must not keep more slots from others */
#define MAX_ROWS 100

/* one call that may have work to do */
typedef struct Visit
{
	int64		max_rows;
	MemoryContext context;		/* lives as long as the call */
	bool		own_transaction;	/* the call is a transaction of its own */
	LedgerRun	run;
	bool		is_ours;		/* the turn is, and the job does not run */
	const ErrorData *error;		/* what ended it */
	JobCounts	counts;
} Visit;

PG_FUNCTION_INFO_V1(cusown_expire_if_due);

/* ---------- whose turn it is ---------- */

/* without a query; what has no application is only to be complained of */
static bool
may_be_due(const char *app_schema)
{
	if (app_schema == NULL || IsolationUsesXactSnapshot())
		return turn_is_due(TURN_LAZY_COMPLAINT, "",
						   cusown_lazy_expire_interval);
	return turn_is_due(TURN_LAZY_EXPIRE, app_schema,
					   cusown_lazy_expire_interval);
}

/* raises UO001 */
static const char *
chosen_application(void)
{
	const char *app_schema;

	(void) binding_attached();
	if (binding_chosen(&app_schema) && app_schema != NULL)
		return app_schema;
	return binding_use(NULL)->app_schema;
}

/* what the ledger knows, this backend need not ask for again */
static bool
is_due_by_ledger(const Visit *visit)
{
	const char *app_schema = visit->run.app_schema;
	TimestampTz newest;

	if (!ledger_newest(app_schema, LAZY_JOB, &newest) ||
		turn_is_over(newest, visit->run.started_at,
					 cusown_lazy_expire_interval))
		return true;
	turn_was_taken(TURN_LAZY_EXPIRE, app_schema, newest);
	return false;
}

/*
 * Without preload the ledger is asked twice: whoever was at work while we
 * asked first has given back the lock, and can be seen, when we have it.
 */
static void
begin_visit(void *state)
{
	Visit	   *visit = state;

	verb_check_transaction("cusown_expire_if_due");
	visit->run.app_schema = MemoryContextStrdup(visit->context,
												chosen_application());
	if (!turn_take(TURN_LAZY_EXPIRE, visit->run.app_schema,
				   cusown_lazy_expire_interval, &visit->run.started_at))
		return;
	if (!turn_is_shared() && !is_due_by_ledger(visit))
		return;
	if (!job_keep_out(&expire_bookings_job, visit->run.app_schema))
		return;
	visit->is_ours = turn_is_shared() || is_due_by_ledger(visit);
}

/* ---------- the work, and what is written about it ---------- */

static void
expire_due(void *state)
{
	Visit	   *visit = state;
	Binding    *binding = binding_use_schema(visit->run.app_schema,
											 expire_bookings_job.relations);

	expiry_run(binding, visit->run.source, visit->max_rows,
			   visit->own_transaction, &visit->counts);
	ledger_record(&visit->run, &visit->counts, NULL);
}

static void
record_failure(void *state)
{
	Visit	   *visit = state;

	ledger_record(&visit->run, &visit->counts, visit->error);
}

static void
count_for_application(void *state)
{
	Visit	   *visit = state;

	ledger_count_lazy_heal(visit->run.app_schema, visit->counts.changed);
}

/* what is meant to end the caller's statement, ends it */
static void
pass_through(ErrorData *error)
{
	if (error->sqlerrcode == ERRCODE_QUERY_CANCELED ||
		error->sqlerrcode == ERRCODE_ADMIN_SHUTDOWN ||
		error->sqlerrcode == ERRCODE_CRASH_SHUTDOWN)
		ReThrowError(error);
}

/* false where body failed; the error is kept in the visit */
static bool
try_softly(SubtransactionBody body, Visit *visit)
{
	ErrorData  *error = subtransaction_try(body, visit, visit->context);

	if (error != NULL)
		pass_through(error);
	visit->error = error;
	return error == NULL;
}

static void
warn(const char *what, const ErrorData *error)
{
	ereport(WARNING,
			(errcode(error->sqlerrcode),
			 errmsg("%s: %s", what, error->message),
			 error->hint != NULL ? errhint("%s", error->hint) : 0));
}

static void
warn_in_turn(const ErrorData *error)
{
	TimestampTz now;

	if (turn_take(TURN_LAZY_COMPLAINT, "", cusown_lazy_expire_interval, &now))
		warn("could not expire bookings that are due", error);
}

static void
fail(Visit *visit)
{
	const ErrorData *error = visit->error;

	MemSet(&visit->counts, 0, sizeof(JobCounts));
	(void) try_softly(record_failure, visit);
	warn("could not expire bookings that are due", error);
}

static void
visit_body(void *state)
{
	Visit	   *visit = state;

	if (!try_softly(begin_visit, visit))
	{
		warn_in_turn(visit->error);
		return;
	}
	if (!visit->is_ours)
		return;
	if (!try_softly(expire_due, visit))
	{
		fail(visit);
		return;
	}
	if (visit->counts.changed > 0 &&
		!try_softly(count_for_application, visit) &&
		visit->error->sqlerrcode != ERRCODE_LOCK_NOT_AVAILABLE)
		warn("could not count the bookings expired in the application's metrics",
			 visit->error);
}

/* ---------- the verb ---------- */

static int64
max_rows_of_request(FunctionCallInfo fcinfo, int arg)
{
	int64		max_rows = verb_max_rows(fcinfo, arg);

	if (max_rows > MAX_ROWS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_rows must not be greater than %d", MAX_ROWS),
				 errdetail("While a request holds a slot, the application answers others that it does not exist."),
				 errhint("CALL cusown_run_job('expire_bookings') expires any number.")));
	return max_rows;
}

/*
 * cusown_expire_if_due(max_rows integer DEFAULT 100) RETURNS bigint
 *
 * Expires at most max_rows bookings that are due, if nobody has done so in the
 * last cusown_ops.lazy_expire_interval; returns how many.  For application
 * code to call first on each request, in a transaction of its own.
 *
 * Returns 0 without a word where it is not the caller's turn, while the job
 * expire_bookings runs, in a read-only transaction and on a standby.  Fails
 * softly: a ledger row and a WARNING.
 *
 * Errors: 22023, 22004 argument; a cancel and a shutdown are passed through.
 *
 * Locks: those of cusown_expire_bookings(); the job's, to the end of the
 * transaction.
 *
 * Source: runbook "Cron Failure", step 4, lazy heal.
 */
Datum
cusown_expire_if_due(PG_FUNCTION_ARGS)
{
	Visit		visit = {0};
	const char *app_schema;

	visit.max_rows = max_rows_of_request(fcinfo, 0);
	if (XactReadOnly || RecoveryInProgress())
		PG_RETURN_INT64(0);
	if (binding_chosen(&app_schema) && !may_be_due(app_schema))
		PG_RETURN_INT64(0);
	visit.context = CurrentMemoryContext;
	visit.run.job = LAZY_JOB;
	visit.run.source = LAZY_SOURCE;
	/* what a deferred trigger refuses at commit would fail the request */
	visit.own_transaction = !IsTransactionBlock();
	verb_run(visit_body, &visit, false);
	PG_RETURN_INT64(visit.counts.changed);
}
