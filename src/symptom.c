/*-------------------------------------------------------------------------
 *
 * symptom.c
 *	  What is the matter: what cusown_symptoms() sees in the application, and
 *	  its thresholds.
 *
 * A symptom is a name, a runbook and thresholds (cusown_ops.shipped_symptoms()),
 * and something that measures it: what is in our own tables, one SQL function;
 * what is in the application's, or in this server, the functions here.  Each asks
 * for one row by an index, or looks into the catalogs, so that it costs the same
 * however big the tables are.  What takes a look at whole tables is counted by a
 * job (census.c).
 *
 * Nothing here fails because a name of the binding no longer resolves: that is a
 * symptom.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/lwlock.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "attach.h"
#include "attach_index.h"
#include "cron.h"
#include "cusown_ops.h"
#include "due.h"
#include "errors.h"
#include "guard.h"
#include "subtransaction.h"
#include "template.h"
#include "verb.h"
#include "worker.h"

/*
 * Pending bookings that are looked at for one that may expire: most often the
 * oldest is one.
 */
#define FIRST_DUE 5
#define MAX_DUE 1000

/* one call of cusown_ops.measure_application() */
typedef struct Measuring
{
	ReturnSetInfo *result;
	const char *app_schema;
	Binding    *binding;		/* NULL where it does not resolve */
	TimestampTz now;
} Measuring;

static const char *const relations_read[] = {
	"bookings", "slots", "payments", NULL
};

PG_FUNCTION_INFO_V1(cusown_chosen_app_schema);
PG_FUNCTION_INFO_V1(cusown_measure_application);
PG_FUNCTION_INFO_V1(cusown_set_threshold);

/* $1 now */
static const Template oldest_hold = {
	"SELECT s.{slots.reserved_until} AS at FROM {slots} s"
	" WHERE s.{slots.status} = 'reserved' AND s.{slots.reserved_until} <= $1"
	" ORDER BY s.{slots.reserved_until} LIMIT 1",
	1, {TIMESTAMPTZOID}
};

/* $1 app_schema, $2 symptom */
static const Template set_threshold = {
	"INSERT INTO cusown_ops.threshold AS t (app_schema, symptom, warning,"
	" critical) SELECT $1, s.symptom, $3, $4"
	" FROM cusown_ops.shipped_symptoms() s WHERE s.symptom = $2"
	" ON CONFLICT (app_schema, symptom) DO UPDATE"
	" SET warning := excluded.warning, critical := excluded.critical",
	4, {NAMEOID, TEXTOID, FLOAT8OID, FLOAT8OID}
};

/* ---------- what is measured ---------- */

/* since 0: it is not known */
static void
put(const Measuring *measuring, const char *symptom, double observed,
	TimestampTz since)
{
	Datum		values[3];
	bool		nulls[3] = {false};

	values[0] = CStringGetTextDatum(symptom);
	values[1] = Float8GetDatum(observed);
	values[2] = TimestampTzGetDatum(since);
	nulls[2] = since == 0;
	tuplestore_putvalues(measuring->result->setResult,
						 measuring->result->setDesc, values, nulls);
}

static void
put_overdue(const Measuring *measuring, const char *symptom, TimestampTz since)
{
	double		seconds = since == 0 ? 0 :
	(double) (measuring->now - since) / USECS_PER_SEC;

	put(measuring, symptom, seconds, since);
}

/*
 * Since when the oldest booking is due that nothing keeps from expiring; 0: none
 * is.  The others wait for a human and are on the worklist.
 */
static TimestampTz
find_overdue(const Measuring *measuring)
{
	Interval	ttl = due_booking_ttl();
	DueRule		rule = due_rule(DUE_OLDER_THAN, &ttl, "booking_ttl",
								measuring->now);
	ReadingKey	key = due_first_key();

	for (int looked_at = 0; looked_at < MAX_DUE;)
	{
		int			limit = looked_at == 0 ? FIRST_DUE : cusown_batch_size;
		DueBookings due = due_read_next(measuring->binding, &rule, &key, limit,
										true);

		if (due.count == 0)
			return 0;
		due_ask_checks(measuring->binding, &due, true);
		for (int i = 0; i < due.count; i++)
		{
			if (due.items[i].verdict == VERDICT_EXPIRE)
				return verb_after(due.items[i].counts_from, &ttl);
		}
		due_move_key(&key, &due.items[due.count - 1]);
		looked_at += due.count;
	}
	return 0;
}

static TimestampTz
find_ended_hold(const Measuring *measuring)
{
	Datum		values[1];
	TimestampTz since = 0;
	bool		isnull;

	values[0] = TimestampTzGetDatum(measuring->now);
	if (template_execute(measuring->binding, &oldest_hold, values, NULL,
						 true) > 0)
		since = DatumGetTimestampTz(template_column(0, "at", &isnull));
	SPI_freetuptable(SPI_tuptable);
	return since;
}

static void
measure_tables(const Measuring *measuring)
{
	verb_check_row_security(measuring->binding, relations_read);
	put_overdue(measuring, "pending_overdue", find_overdue(measuring));
	put_overdue(measuring, "hold_overdue", find_ended_hold(measuring));
}

static void
measure_safeguards(const Measuring *measuring)
{
	List	   *names = attach_index_names(measuring->binding);
	bool		is_there = attach_index_serving(&attach_one_confirmed, names,
												true, true) != NIL;
	int			mode = guard_weakest(measuring->app_schema);

	put(measuring, "unique_index_missing", is_there ? 0 : 1, 0);
	if (mode >= 0)
		put(measuring, "guard_mode", mode, 0);
}

/*
 * The launcher is there and has come to this database, or does so next.  A
 * standby has none.
 */
static bool
is_visited(void)
{
	char	   *database = get_database_name(MyDatabaseId);
	bool		is_there = false;

	LWLockAcquire(worker_lock, LW_SHARED);
	for (int i = 0; worker_shared->launcher != 0 && i < WORKER_MAX_DATABASES; i++)
		is_there = is_there ||
			strcmp(NameStr(worker_shared->visits[i].database), database) == 0;
	LWLockRelease(worker_lock);
	return is_there;
}

static void
measure_server(const Measuring *measuring)
{
	if (worker_shared != NULL && worker_enabled && !RecoveryInProgress())
		put(measuring, "worker_absent", is_visited() ? 0 : 1, 0);
	put(measuring, "scheduler_absent", cron_is_loaded() ? 0 : 1, 0);
}

/* ---------- the functions ---------- */

/* SubtransactionBody */
static void
resolve(void *state)
{
	Measuring  *measuring = state;

	(void) binding_use_schema(measuring->app_schema, relations_read);
}

/* the error that says that a name is gone is the only one that is a finding */
static bool
is_resolved(Measuring *measuring)
{
	ErrorData  *error = subtransaction_try(resolve, measuring,
										   CurrentMemoryContext);

	if (error != NULL && error->sqlerrcode != ERRCODE_CUSOWN_NOT_ATTACHED)
		ReThrowError(error);
	return error == NULL;
}

static void
measure_body(void *state)
{
	Measuring  *measuring = state;
	bool		resolved;

	measuring->app_schema = pstrdup(binding_chosen_schema());
	resolved = is_resolved(measuring);
	put(measuring, "binding_unresolved", resolved ? 0 : 1, 0);
	measure_server(measuring);
	if (!resolved)
		return;
	measuring->binding = binding_use_schema(measuring->app_schema,
											relations_read);
	measure_tables(measuring);
	measure_safeguards(measuring);
}

/*
 * cusown_ops.measure_application(OUT symptom text,
 *		OUT observed double precision, OUT since timestamptz)
 *		RETURNS SETOF record
 *
 * Errors: UO001 no application attached; 42501 row-level security would hide
 * rows.
 */
Datum
cusown_measure_application(PG_FUNCTION_ARGS)
{
	Measuring	measuring = {0};

	InitMaterializedSRF(fcinfo, 0);
	measuring.result = (ReturnSetInfo *) fcinfo->resultinfo;
	measuring.now = GetCurrentStatementStartTimestamp();
	verb_run(measure_body, &measuring, false);
	return (Datum) 0;
}

static void
choose_body(void *state)
{
	namestrcpy(state, binding_chosen_schema());
}

/*
 * cusown_ops.chosen_app_schema() RETURNS name
 */
Datum
cusown_chosen_app_schema(PG_FUNCTION_ARGS)
{
	Name		app_schema = palloc0(sizeof(NameData));

	verb_run(choose_body, app_schema, false);
	PG_RETURN_NAME(app_schema);
}

/* one call of cusown_set_threshold() */
typedef struct ThresholdCall
{
	Datum		values[4];
	char		nulls[5];
} ThresholdCall;

static void
set_body(void *state)
{
	ThresholdCall *call = state;

	call->values[0] = template_name(binding_chosen_schema());
	if (template_execute(NULL, &set_threshold, call->values, call->nulls,
						 false) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("unknown symptom"),
				 errhint("SELECT * FROM cusown_symptoms() shows them.")));
}

static void
read_threshold(FunctionCallInfo fcinfo, int arg, ThresholdCall *call)
{
	bool		is_there = !PG_ARGISNULL(arg);

	if (is_there && isnan(PG_GETARG_FLOAT8(arg)))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a threshold must be a number, or null")));
	template_set_value(call->values, call->nulls, arg + 2, is_there,
					   is_there ? PG_GETARG_DATUM(arg) : (Datum) 0);
}

/*
 * cusown_set_threshold(symptom text, warning double precision,
 *		critical double precision) RETURNS void
 *
 * Errors: 22023 unknown symptom, or not a number; 22004; UO001; 25006.
 */
Datum
cusown_set_threshold(PG_FUNCTION_ARGS)
{
	ThresholdCall call = {.nulls = "    "};

	verb_check_transaction("cusown_set_threshold");
	verb_check_not_null(fcinfo, 0, "symptom");
	call.values[1] = PG_GETARG_DATUM(0);
	read_threshold(fcinfo, 1, &call);
	read_threshold(fcinfo, 2, &call);
	verb_run(set_body, &call, false);
	PG_RETURN_VOID();
}
