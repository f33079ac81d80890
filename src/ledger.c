/*-------------------------------------------------------------------------
 *
 * ledger.c
 *	  cusown_ops.job_run: which job ran when, and how it ended.
 *
 * The application's own cron_run_logs and metrics get their rows too, where
 * they are bound, in the transaction that ends the run, which holds nothing
 * else.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "cusown_ops.h"
#include "ledger.h"
#include "template.h"

static const char *const relations_told[] = {"cron_run_logs", "metrics", NULL};

/*
 * The caller holds the job's lock, so whoever left a row "running" is gone.
 * $1 app_schema, $2 job.
 */
static const Template mark_died = {
	"UPDATE cusown_ops.job_run r SET status := 'died',"
	" finished_at := pg_catalog.now()"
	" WHERE r.app_schema = $1 AND r.job = $2 AND r.status = 'running'",
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

static const Template update_progress = {
	"UPDATE cusown_ops.job_run r SET changed := $3, released := $4,"
	" attention := $5, looked_at := $6, batches := (r.batches + 1),"
	" last_batch_at := $7"
	" WHERE r.app_schema = $1 AND r.id = $2",
	7, {NAMEOID, INT8OID, INT8OID, INT8OID, INT8OID, INT8OID, TIMESTAMPTZOID}
};

static const Template finish_run = {
	"UPDATE cusown_ops.job_run r SET status := $3, finished_at := $4,"
	" sqlstate := $5, message := $6"
	" WHERE r.app_schema = $1 AND r.id = $2",
	6, {NAMEOID, INT8OID, TEXTOID, TIMESTAMPTZOID, TEXTOID, TEXTOID}
};

/* keeps the newest $4 rows of this outcome */
static const Template bound_ledger = {
	"DELETE FROM cusown_ops.job_run r WHERE r.app_schema = $1"
	" AND r.job = $2 AND r.status = $3"
	" AND r.id <= (SELECT o.id FROM cusown_ops.job_run o"
	" WHERE o.app_schema = $1 AND o.job = $2 AND o.status = $3"
	" ORDER BY o.id DESC OFFSET $4 LIMIT 1)",
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

static Datum
name_datum(const char *name)
{
	Name		datum = palloc0(sizeof(NameData));

	namestrcpy(datum, name);
	return NameGetDatum(datum);
}

static void
insert_row(LedgerRun *run, const char *status)
{
	Datum		values[6];
	bool		isnull;

	run->started_at = GetCurrentTimestamp();
	values[0] = name_datum(run->app_schema);
	values[1] = CStringGetTextDatum(run->job);
	values[2] = CStringGetTextDatum(run->source);
	values[3] = TimestampTzGetDatum(run->started_at);
	values[4] = CStringGetTextDatum(status);
	values[5] = CStringGetTextDatum(psprintf("pid %d, role %s", MyProcPid,
											 GetUserNameFromId(GetUserId(),
															   false)));
	template_execute(NULL, &insert_run, values, NULL, false);
	run->id = DatumGetInt64(template_column(0, "id", &isnull));
	SPI_freetuptable(SPI_tuptable);
}

static void
keep_newest(const LedgerRun *run, const char *status)
{
	Datum		values[4];

	values[0] = name_datum(run->app_schema);
	values[1] = CStringGetTextDatum(run->job);
	values[2] = CStringGetTextDatum(status);
	values[3] = Int64GetDatum(cusown_job_run_retention);
	template_execute(NULL, &bound_ledger, values, NULL, false);
}

void
ledger_begin(LedgerRun *run)
{
	Datum		values[2];

	values[0] = name_datum(run->app_schema);
	values[1] = CStringGetTextDatum(run->job);
	if (template_execute(NULL, &mark_died, values, NULL, false) > 0)
		keep_newest(run, "died");
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

	values[0] = name_datum(run->app_schema);
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
 * where ours cannot.
 */
void
ledger_tell_application(const LedgerRun *run, const JobCounts *counts,
						const ErrorData *error)
{
	Binding    *binding = binding_use_schema(run->app_schema, relations_told);
	TimestampTz finished_at = GetCurrentTimestamp();

	log_cron_run(binding, run, finished_at, error);
	write_metrics(binding, run, finished_at, counts, error);
}

/* error is what ended the run, or NULL */
void
ledger_end(const LedgerRun *run, const ErrorData *error)
{
	TimestampTz finished_at = GetCurrentTimestamp();
	Datum		values[6];
	char		nulls[7] = "      ";

	values[0] = name_datum(run->app_schema);
	values[1] = Int64GetDatum(run->id);
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
