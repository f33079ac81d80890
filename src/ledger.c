/*-------------------------------------------------------------------------
 *
 * ledger.c
 *	  cusown_ops.job_run: which job ran when, and how it ended.
 *
 * The application's own cron_run_logs and metrics get their rows too, where
 * they are bound, in the transaction that ends the run, which holds nothing
 * else.  Lazy heal has no such transaction: it writes a row that has ended
 * already, and waits for nobody's metrics.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

#include "cusown_ops.h"
#include "lazy.h"
#include "ledger.h"
#include "template.h"
#include "verb.h"

PG_FUNCTION_INFO_V1(cusown_check_job_run);

static const char *const relations_told[] = {"cron_run_logs", "metrics", NULL};
static const char *const relations_counted[] = {"metrics", NULL};

/*
 * The caller holds the job's lock, so whoever left a row "running" is gone.  A row
 * that somebody has locked is left for later: it must not keep other jobs from
 * being looked after.  $1 app_schema, $2 job.
 */
static const Template mark_died = {
	"UPDATE cusown_ops.job_run r SET status := 'died',"
	" finished_at := pg_catalog.now()"
	" WHERE r.app_schema = $1 AND r.id = ANY (ARRAY(SELECT d.id"
	" FROM cusown_ops.job_run d WHERE d.app_schema = $1 AND d.job = $2"
	" AND d.status = 'running' FOR NO KEY UPDATE SKIP LOCKED))",
	2, {NAMEOID, TEXTOID}
};

static const Template insert_run = {
	"INSERT INTO cusown_ops.job_run"
	" (app_schema, job, source, started_at, finished_at, status, session)"
	" VALUES ($1, $2, $3, $4,"
	" CASE WHEN $5 = 'running' THEN NULL ELSE $4 END, $5, $6)"
	" RETURNING id",
	6, {NAMEOID, TEXTOID, TEXTOID, TIMESTAMPTZOID, TEXTOID, TEXTOID}
};

/* a run that has ended; $7 are the counts */
static const Template insert_ended_run = {
	"INSERT INTO cusown_ops.job_run"
	" (app_schema, job, source, started_at, finished_at, status,"
	" changed, released, attention, looked_at, batches, last_batch_at,"
	" sqlstate, message, session)"
	" VALUES ($1, $2, $3, $4, $5, $6, ($7)[1], ($7)[2], ($7)[3], ($7)[4],"
	" CASE WHEN $8 IS NULL THEN 1 ELSE 0 END,"
	" CASE WHEN $8 IS NULL THEN $5 END, $8, $9, $10)",
	10, {NAMEOID, TEXTOID, TEXTOID, TIMESTAMPTZOID, TIMESTAMPTZOID, TEXTOID, INT8ARRAYOID, TEXTOID, TEXTOID, TEXTOID}
};

/* of runs that have ended by themselves; each part is one step in an index */
static const Template newest_run = {
	"SELECT greatest((SELECT r.started_at FROM cusown_ops.job_run r"
	" WHERE r.app_schema = $1 AND r.job = $2 AND r.status = 'succeeded'"
	" ORDER BY r.id DESC LIMIT 1),"
	" (SELECT r.started_at FROM cusown_ops.job_run r"
	" WHERE r.app_schema = $1 AND r.job = $2 AND r.status = 'failed'"
	" ORDER BY r.id DESC LIMIT 1)) AS started_at",
	2, {NAMEOID, TEXTOID}
};

/* the last batch of most runs finds nothing left to look at: it is none */
static const Template update_progress = {
	"UPDATE cusown_ops.job_run r SET changed := $3, released := $4,"
	" attention := $5, looked_at := $6,"
	" batches := (r.batches"
	" + CASE WHEN $6 > r.looked_at THEN 1 ELSE 0 END),"
	" last_batch_at := $7"
	" WHERE r.app_schema = $1 AND r.id = $2",
	7, {NAMEOID, INT8OID, INT8OID, INT8OID, INT8OID, INT8OID, TIMESTAMPTZOID}
};

static const Template finish_run = {
	"UPDATE cusown_ops.job_run r SET status := $3, finished_at := $4,"
	" sqlstate := $5, message := $6, more_left := $7"
	" WHERE r.app_schema = $1 AND r.id = $2",
	7, {NAMEOID, INT8OID, TEXTOID, TIMESTAMPTZOID, TEXTOID, TEXTOID, BOOLOID}
};

/*
 * Keeps the newest $4 rows of this outcome, and of the others what they add to the
 * total.  Who ends a job's run holds its lock, so nobody waits for the total; what
 * requests run is no job and has none.
 */
static const Template bound_ledger = {
	"WITH gone AS (DELETE FROM cusown_ops.job_run r WHERE r.app_schema = $1"
	" AND r.job = $2 AND r.status = $3"
	" AND r.id <= (SELECT o.id FROM cusown_ops.job_run o"
	" WHERE o.app_schema = $1 AND o.job = $2 AND o.status = $3"
	" ORDER BY o.id DESC OFFSET $4 LIMIT 1) RETURNING r.changed)"
	" INSERT INTO cusown_ops.job_total AS t (app_schema, job, changed)"
	" SELECT $1, $2, pg_catalog.sum(g.changed)::int8 FROM gone g"
	" WHERE cusown_ops.is_shipped_job($2)"
	" HAVING pg_catalog.sum(g.changed)::int8 > 0::int8"
	" ON CONFLICT (app_schema, job) DO UPDATE SET"
	" changed := (t.changed + excluded.changed), at := excluded.at",
	4, {NAMEOID, TEXTOID, TEXTOID, INT8OID}
};

static const Template insert_cron_run_log = {
	"INSERT INTO {cron_run_logs} ({cron_run_logs.job_name},"
	" {cron_run_logs.started_at}, {cron_run_logs.completed_at},"
	" {cron_run_logs.status}[, {cron_run_logs.duration_ms}]"
	"[, {cron_run_logs.error_message}])"
	" VALUES ($1, $2, $3, CASE WHEN $4::text IS NULL THEN 'success'"
	" ELSE 'failed' END[{?cron_run_logs.duration_ms}, $5]"
	"[{?cron_run_logs.error_message}, $4])",
	5, {TEXTOID, TIMESTAMPTZOID, TIMESTAMPTZOID, TEXTOID, INT4OID}
};

/* $1 metric, $2 value */
static const Template set_metric = {
	"INSERT INTO {metrics} ({metrics.metric}, {metrics.value}"
	"[, {metrics.updated_at}])"
	" VALUES ($1, $2[{?metrics.updated_at}, pg_catalog.now()])"
	" ON CONFLICT ({metrics.metric}) DO UPDATE SET"
	" {metrics.value} := excluded.{metrics.value}"
	"[, {metrics.updated_at} := excluded.{metrics.updated_at}]",
	2, {TEXTOID, INT8OID}
};

static const Template add_to_metric = {
	"INSERT INTO {metrics} AS m ({metrics.metric}, {metrics.value}"
	"[, {metrics.updated_at}])"
	" VALUES ($1, $2[{?metrics.updated_at}, pg_catalog.now()])"
	" ON CONFLICT ({metrics.metric}) DO UPDATE SET"
	" {metrics.value} := (m.{metrics.value} + excluded.{metrics.value})"
	"[, {metrics.updated_at} := excluded.{metrics.updated_at}]",
	2, {TEXTOID, INT8OID}
};

/*
 * Whether the metric $1 can be added to without waiting: its row is locked
 * now, or there is none.
 */
static const Template lock_metric = {
	"WITH locked AS MATERIALIZED (SELECT m.{metrics.metric} AS metric"
	" FROM {metrics} m WHERE m.{metrics.metric} = $1"
	" FOR NO KEY UPDATE SKIP LOCKED)"
	" SELECT EXISTS (SELECT FROM locked)"
	" OR NOT EXISTS (SELECT FROM {metrics} m WHERE m.{metrics.metric} = $1)"
	" AS is_free",
	1, {TEXTOID}
};

static Datum
this_session(void)
{
	return CStringGetTextDatum(psprintf("pid %d, role %s", MyProcPid,
										GetUserNameFromId(GetUserId(),
														  false)));
}

static void
insert_row(LedgerRun *run, const char *status)
{
	Datum		values[6];
	bool		isnull;

	run->started_at = GetCurrentTimestamp();
	values[0] = template_name(run->app_schema);
	values[1] = CStringGetTextDatum(run->job);
	values[2] = CStringGetTextDatum(run->source);
	values[3] = TimestampTzGetDatum(run->started_at);
	values[4] = CStringGetTextDatum(status);
	values[5] = this_session();
	template_execute(NULL, &insert_run, values, NULL, false);
	run->id = DatumGetInt64(template_column(0, "id", &isnull));
	SPI_freetuptable(SPI_tuptable);
}

static void
keep_newest(const LedgerRun *run, const char *status)
{
	Datum		values[4];

	values[0] = template_name(run->app_schema);
	values[1] = CStringGetTextDatum(run->job);
	values[2] = CStringGetTextDatum(status);
	values[3] = Int64GetDatum(cusown_job_run_retention);
	template_execute(NULL, &bound_ledger, values, NULL, false);
}

/* the caller holds the job's lock */
void
ledger_mark_died(const char *app_schema, const char *job)
{
	LedgerRun	run = {0};
	Datum		values[2];

	run.job = job;
	run.app_schema = app_schema;
	values[0] = template_name(app_schema);
	values[1] = CStringGetTextDatum(job);
	if (template_execute(NULL, &mark_died, values, NULL, false) > 0)
		keep_newest(&run, "died");
}

void
ledger_begin(LedgerRun *run)
{
	ledger_mark_died(run->app_schema, run->job);
	insert_row(run, "running");
}

void
ledger_skip(const LedgerRun *run)
{
	LedgerRun	skipped = *run;

	insert_row(&skipped, "skipped");
	keep_newest(run, "skipped");
}

void
ledger_progress(const LedgerRun *run, const JobCounts *counts)
{
	Datum		values[7];

	values[0] = template_name(run->app_schema);
	values[1] = Int64GetDatum(run->id);
	values[2] = Int64GetDatum(counts->changed);
	values[3] = Int64GetDatum(counts->released);
	values[4] = Int64GetDatum(counts->attention);
	values[5] = Int64GetDatum(counts->looked_at);
	values[6] = TimestampTzGetDatum(GetCurrentTimestamp());
	template_execute(NULL, &update_progress, values, NULL, false);
}

static const char *
outcome(const ErrorData *error)
{
	if (error == NULL)
		return "succeeded";
	return error->sqlerrcode == ERRCODE_QUERY_CANCELED ? "cancelled" : "failed";
}

/* the application writes expire-bookings where we write expire_bookings */
static char *
application_job_name(const char *job)
{
	char	   *name = pstrdup(job);

	for (char *at = name; *at != '\0'; at++)
	{
		if (*at == '_')
			*at = '-';
	}
	return name;
}

static void
log_cron_run(Binding *binding, const LedgerRun *run, TimestampTz finished_at,
			 const ErrorData *error)
{
	Datum		values[5];
	char		nulls[6] = "     ";

	if (binding_relation(binding, "cron_run_logs") == NULL)
		return;
	values[0] = CStringGetTextDatum(application_job_name(run->job));
	values[1] = TimestampTzGetDatum(run->started_at);
	values[2] = TimestampTzGetDatum(finished_at);
	nulls[3] = error == NULL ? 'n' : ' ';
	values[3] = error == NULL ? (Datum) 0 : CStringGetTextDatum(error->message);
	values[4] = Int32GetDatum((finished_at - run->started_at) / 1000);
	template_execute(binding, &insert_cron_run_log, values, nulls, false);
}

static void
write_metric(Binding *binding, const Template *statement, const char *metric,
			 int64 value)
{
	Datum		values[2];

	values[0] = CStringGetTextDatum(metric);
	values[1] = Int64GetDatum(value);
	template_execute(binding, statement, values, NULL, false);
}

/* what the application's health check and dashboards look at */
static void
write_metrics(Binding *binding, const LedgerRun *run, TimestampTz finished_at,
			  const JobCounts *counts, const ErrorData *error)
{
	if (binding_relation(binding, "metrics") == NULL || error != NULL)
		return;
	write_metric(binding, &set_metric,
				 psprintf("cron.%s.last_run_ts", run->job),
				 timestamptz_to_time_t(finished_at));
	if (strcmp(run->job, expire_bookings_job.name) == 0 && counts->changed > 0)
		write_metric(binding, &add_to_metric, "bookings.expired_by_cron",
					 counts->changed);
}

/*
 * The application's own records of a run.  Uses a binding, so it can fail
 * where ours cannot.  A trigger may be planted on these tables as well as on
 * those that the job changes.
 */
void
ledger_tell_application(const LedgerRun *run, const JobCounts *counts,
						const ErrorData *error)
{
	Binding    *binding = binding_use_schema(run->app_schema, relations_told);
	TimestampTz finished_at = GetCurrentTimestamp();

	verb_check_unattended(binding, run->source);
	log_cron_run(binding, run, finished_at, error);
	write_metrics(binding, run, finished_at, counts, error);
}

/* error is what ended the run, or NULL */
void
ledger_end(const LedgerRun *run, const ErrorData *error)
{
	TimestampTz finished_at = GetCurrentTimestamp();
	Datum		values[7];
	char		nulls[] = "       ";

	values[0] = template_name(run->app_schema);
	values[1] = Int64GetDatum(run->id);
	values[6] = BoolGetDatum(run->more_left);
	values[2] = CStringGetTextDatum(outcome(error));
	values[3] = TimestampTzGetDatum(finished_at);
	if (error == NULL)
		nulls[4] = nulls[5] = 'n';
	else
	{
		values[4] = CStringGetTextDatum(unpack_sql_state(error->sqlerrcode));
		values[5] = CStringGetTextDatum(error->message);
	}
	template_execute(NULL, &finish_run, values, nulls, false);
	keep_newest(run, outcome(error));
}

/*
 * An application's role writes what requests do into the ledger, but may neither
 * change it nor delete from it.
 */
static bool
may(AclMode mode)
{
	Oid			relid = get_relname_relid("job_run",
										  get_namespace_oid(CUSOWN_SCHEMA,
															false));

	return pg_class_aclcheck(relid, GetUserId(), mode) == ACLCHECK_OK;
}

static char *
job_of(HeapTuple row, TupleDesc columns)
{
	return SPI_getvalue(row, columns, SPI_fnumber(columns, "job"));
}

/*
 * cusown_ops.check_job_run() RETURNS trigger
 *
 * Of a new row of the ledger: who may only add to it does so for requests.  A
 * success of a job that was none would keep the worker from covering for it.
 */
Datum
cusown_check_job_run(PG_FUNCTION_ARGS)
{
	HeapTuple	row;
	char	   *job;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function was not called by trigger manager")));
	row = ((TriggerData *) fcinfo->context)->tg_trigtuple;
	job = job_of(row, ((TriggerData *) fcinfo->context)->tg_relation->rd_att);
	if (job == NULL || strcmp(job, LAZY_JOB) == 0 ||
		may(ACL_UPDATE))
		return PointerGetDatum(row);
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("role \"%s\" may write only requests' runs (job \"%s\") into the ledger",
					GetUserNameFromId(GetUserId(), false), LAZY_JOB),
			 errhint("Runs of jobs are an operator's: cusown_grant() gives the profile.")));
}

static Datum
counts_datum(const JobCounts *counts)
{
	Datum		values[4];

	values[0] = Int64GetDatum(counts->changed);
	values[1] = Int64GetDatum(counts->released);
	values[2] = Int64GetDatum(counts->attention);
	values[3] = Int64GetDatum(counts->looked_at);
	return PointerGetDatum(construct_array(values, lengthof(values), INT8OID,
										   sizeof(int64), FLOAT8PASSBYVAL,
										   TYPALIGN_DOUBLE));
}

/*
 * The whole row of a run that was no job's, in the caller's transaction.
 * error is what ended it, or NULL.
 */
void
ledger_record(const LedgerRun *run, const JobCounts *counts,
			  const ErrorData *error)
{
	Datum		values[10];
	char		nulls[11] = "          ";

	values[0] = template_name(run->app_schema);
	values[1] = CStringGetTextDatum(run->job);
	values[2] = CStringGetTextDatum(run->source);
	values[3] = TimestampTzGetDatum(run->started_at);
	values[4] = TimestampTzGetDatum(GetCurrentTimestamp());
	values[5] = CStringGetTextDatum(outcome(error));
	values[6] = counts_datum(counts);
	if (error == NULL)
		nulls[7] = nulls[8] = 'n';
	else
	{
		values[7] = CStringGetTextDatum(unpack_sql_state(error->sqlerrcode));
		values[8] = CStringGetTextDatum(error->message);
	}
	values[9] = this_session();
	template_execute(NULL, &insert_ended_run, values, nulls, false);
	if (may(ACL_DELETE))
		keep_newest(run, outcome(error));
}

/* bounds what ledger_record() could not */
void
ledger_bound(const char *app_schema, const char *job)
{
	LedgerRun	run = {0};

	run.app_schema = app_schema;
	run.job = job;
	keep_newest(&run, "succeeded");
	keep_newest(&run, "failed");
}

/* when the newest run of ledger_record() began; false where there is none */
bool
ledger_newest(const char *app_schema, const char *job, TimestampTz *started_at)
{
	Datum		values[2];
	Datum		newest;
	bool		isnull;

	values[0] = template_name(app_schema);
	values[1] = CStringGetTextDatum(job);
	template_execute(NULL, &newest_run, values, NULL, false);
	newest = template_column(0, "started_at", &isnull);
	if (!isnull)
		*started_at = DatumGetTimestampTz(newest);
	SPI_freetuptable(SPI_tuptable);
	return !isnull;
}

static bool
is_metric_free(Binding *binding, const char *metric)
{
	Datum		values[1];

	values[0] = CStringGetTextDatum(metric);
	template_execute(binding, &lock_metric, values, NULL, false);
	return template_bool(0, "is_free");
}

/*
 * Adds to the application's count of what lazy heal expired.  The caller holds
 * bookings, and whoever holds the metric may want one of them, so nothing is
 * waited for: not for the row, and by the timeout neither for one that is
 * being inserted, nor for the table.  What is not counted is left out.
 */
void
ledger_count_lazy_heal(const char *app_schema, int64 expired)
{
	const char *metric = "bookings.expired_by_lazy_heal";
	int			settings = NewGUCNestLevel();
	Binding    *binding;

	(void) set_config_option("lock_timeout", "1ms", PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	binding = binding_use_schema(app_schema, relations_counted);
	if (binding_relation(binding, "metrics") != NULL &&
		is_metric_free(binding, metric))
		write_metric(binding, &add_to_metric, metric, expired);
	AtEOXact_GUC(true, settings);
}
