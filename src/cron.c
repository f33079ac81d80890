/*-------------------------------------------------------------------------
 *
 * cron.c
 *	  Puts our jobs into pg_cron, and takes them out.
 *
 * pg_cron runs in one database of the cluster.  There, cusown_schedule() calls
 * cron.schedule() and so on; elsewhere it returns the command to run there.
 * What it schedules is exactly one CALL, since pg_cron lets nothing else
 * control its transactions.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "commands/extension.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/timestamp.h"

#include "cron.h"
#include "cusown_ops.h"
#include "job.h"
#include "template.h"
#include "verb.h"

/* one call of cusown_schedule() or cusown_unschedule() */
typedef struct Schedule
{
	char	   *job;			/* or NULL for all */
	Interval   *every;			/* or NULL for each job's own */
	char	   *username;		/* or NULL for the current role */
	bool		here;			/* this is pg_cron's database */
	bool		knows_seconds;	/* pg_cron 1.5 and later */
	ReturnSetInfo *result;
	int64		unscheduled;
} Schedule;

PG_FUNCTION_INFO_V1(cusown_schedule);
PG_FUNCTION_INFO_V1(cusown_unschedule);

/* $1 job, or null for all; $2 whether disabled ones count as well */
static const Template wanted_jobs = {
	"SELECT s.name AS job, coalesce(j.every, s.every) AS every"
	" FROM cusown_ops.shipped_jobs() s"
	" LEFT JOIN cusown_ops.job j ON j.name = s.name"
	" WHERE s.name = $1"
	" OR ($1 IS NULL AND ($2 OR coalesce(j.enabled, s.enabled)))"
	" ORDER BY s.name",
	2, {TEXTOID, BOOLOID}
};

static const Template keep_every = {
	"INSERT INTO cusown_ops.job (name, every) VALUES ($1, $2)"
	" ON CONFLICT (name) DO UPDATE SET every := excluded.every",
	2, {TEXTOID, INTERVALOID}
};

/* the schema that the CALL names */
static const Template extension_schema = {
	"SELECT pg_catalog.quote_ident(n.nspname) AS schema"
	" FROM pg_catalog.pg_extension e"
	" JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace"
	" WHERE e.extname = 'cusown_ops'",
	0, {0}
};

/* extension versions look like 1.4-1 */
static const Template cron_version = {
	"SELECT v.n[1]::int4 > 1 OR v.n[2]::int4 >= 5 AS knows_seconds"
	" FROM (SELECT pg_catalog.regexp_match(e.extversion,"
	" '^([0-9]+)[.]([0-9]+)') AS n FROM pg_catalog.pg_extension e"
	" WHERE e.extname = 'pg_cron') v",
	0, {0}
};

/* $1 name, $2 schedule, $3 command, $4 database, $5 role or null */
static const Template schedule_job = {
	"SELECT CASE WHEN $5 IS NULL"
	" THEN cron.schedule($1, $2, $3)"
	" ELSE cron.schedule_in_database($1, $2, $3, $4, $5) END AS jobid",
	5, {TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID}
};

/* $1 name, $2 the role that is to run it: what others have of it, as far as seen */
static const Template unschedule_others = {
	"SELECT cron.unschedule(c.jobid) FROM cron.job c WHERE c.jobname = $1"
	" AND c.database = pg_catalog.current_database()::text"
	" AND c.username <> $2",
	2, {TEXTOID, TEXTOID}
};

/* $1 name */
static const Template unschedule_job = {
	"SELECT cron.unschedule(c.jobid) FROM cron.job c WHERE c.jobname = $1"
	" AND c.database = pg_catalog.current_database()::text",
	1, {TEXTOID}
};

/* $1 job id */
static const Template scheduled_job = {
	"SELECT c.jobid, c.schedule, c.database, c.username, c.active, c.command"
	" FROM cron.job c WHERE c.jobid = $1",
	1, {INT8OID}
};

/*
 * What one of our jobs is called in pg_cron, whose names are unique per role,
 * whatever the database.
 */
char *
cron_job_name(const char *job)
{
	return psprintf("cusown_ops %s in %s", job, get_database_name(MyDatabaseId));
}

/* ---------- intervals as schedules ---------- */

typedef struct CronInterval
{
	int64		seconds;
	const char *schedule;
} CronInterval;

/* what the five fields of cron can say evenly */
static const CronInterval cron_intervals[] = {
	{60, "* * * * *"},
	{120, "*/2 * * * *"}, {180, "*/3 * * * *"}, {240, "*/4 * * * *"},
	{300, "*/5 * * * *"}, {360, "*/6 * * * *"}, {600, "*/10 * * * *"},
	{720, "*/12 * * * *"}, {900, "*/15 * * * *"}, {1200, "*/20 * * * *"},
	{1800, "*/30 * * * *"},
	{3600, "0 * * * *"},
	{7200, "0 */2 * * *"}, {10800, "0 */3 * * *"}, {14400, "0 */4 * * *"},
	{21600, "0 */6 * * *"}, {28800, "0 */8 * * *"}, {43200, "0 */12 * * *"},
	{86400, "0 3 * * *"}, {604800, "0 3 * * 0"},
};

static const CronInterval *
nearest_interval(int64 seconds)
{
	const CronInterval *nearest = &cron_intervals[0];

	for (int i = 1; i < lengthof(cron_intervals); i++)
	{
		if (llabs(cron_intervals[i].seconds - seconds) <
			llabs(nearest->seconds - seconds))
			nearest = &cron_intervals[i];
	}
	return nearest;
}

static char *
schedule_for(const Schedule *schedule, const char *job, const Interval *every)
{
	int64		ms = verb_interval_ms(every);
	int64		seconds = ms / 1000;
	const CronInterval *nearest = nearest_interval(seconds);

	if (ms % 1000 == 0)
	{
		if (schedule->knows_seconds && seconds >= 1 && seconds <= 59)
			return psprintf(INT64_FORMAT " seconds", seconds);
		if (nearest->seconds == seconds)
			return pstrdup(nearest->schedule);
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("pg_cron cannot run job \"%s\" every %g seconds",
					job, ms / 1000.0),
			 errhint("The nearest that it can is every " INT64_FORMAT " seconds.",
					 nearest->seconds)));
}

/* ---------- where pg_cron is ---------- */

#define DATABASE_NAME "cron.database_name"

/*
 * Whether the library is there: without it what postgresql.conf sets is only
 * the placeholder of a setting.
 */
bool
cron_is_loaded(void)
{
	return GetConfigOption(DATABASE_NAME, true, false) != NULL &&
		(GetConfigOptionFlags(DATABASE_NAME, true) & GUC_CUSTOM_PLACEHOLDER) == 0;
}

static void
find_cron(Schedule *schedule)
{
	const char *database = GetConfigOption(DATABASE_NAME, true, false);

	if (!cron_is_loaded())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("pg_cron is not loaded"),
				 errhint("Add to postgresql.conf and restart: shared_preload_libraries = 'pg_cron', cron.database_name = '%s'.",
						 get_database_name(MyDatabaseId))));
	schedule->here = strcmp(database, get_database_name(MyDatabaseId)) == 0;
	if (!schedule->here)
		return;
	if (!OidIsValid(get_extension_oid("pg_cron", true)))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("extension pg_cron is not installed in this database"),
				 errhint("CREATE EXTENSION pg_cron;")));
	template_execute(NULL, &cron_version, NULL, NULL, false);
	schedule->knows_seconds = template_bool(0, "knows_seconds");
}

static Oid
role_oid(const Schedule *schedule)
{
	return schedule->username == NULL ? GetUserId() :
		get_role_oid(schedule->username, false);
}

/* a job must not run as a superuser on tables of others */
static void
check_username(const Schedule *schedule)
{
	ListCell   *lc;

	if (!superuser_arg(role_oid(schedule)))
		return;
	foreach(lc, binding_attached())
		verb_check_unattended(binding_use_schema(lfirst(lc), NULL), "cron");
}

/* once they are scheduled; the role is there */
static void
warn_of_superuser(const Schedule *schedule)
{
	Oid			role = role_oid(schedule);

	if (!superuser_arg(role))
		return;
	ereport(WARNING,
			(errmsg("jobs will run as superuser \"%s\"",
					GetUserNameFromId(role, false)),
			 errdetail("Whoever is granted TRIGGER on a table of the application, or owns a function that its triggers call, can gain its rights."),
			 errhint("Let a role run them that has LOGIN and cusown_grant()'s profile operator: cusown_schedule(username => ...).")));
}

/* ---------- scheduling ---------- */

/*
 * The statement that runs a shipped job unattended; within SPI.  With all of its
 * arguments in their types: an overload that somebody has made in the same schema
 * is no better match then.
 */
char *
cron_call(const char *job, const char *source)
{
	template_execute(NULL, &extension_schema, NULL, NULL, false);
	return psprintf("CALL %s.cusown_run_job('%s'::pg_catalog.text, '%s'::pg_catalog.text, NULL::integer, '0'::interval)",
					template_text(0, "schema"), job, source);
}

static const char *
role_to_run(const Schedule *schedule)
{
	return schedule->username != NULL ? schedule->username :
		GetUserNameFromId(GetUserId(), false);
}

/*
 * Names are unique per role in pg_cron: a job that is given to another role
 * would run twice, and keep itself out.
 */
static void
take_from_others(const Schedule *schedule, const char *job)
{
	Datum		values[2];

	values[0] = CStringGetTextDatum(cron_job_name(job));
	values[1] = CStringGetTextDatum(role_to_run(schedule));
	template_execute(NULL, &unschedule_others, values, NULL, false);
}

/* the command for pg_cron's own database, as a row */
static void
put_command(const Schedule *schedule, const char *job, const char *cron,
			const char *call)
{
	char	   *command =
	psprintf("SELECT cron.schedule_in_database(%s, %s, %s, %s, %s);",
			 quote_literal_cstr(cron_job_name(job)), quote_literal_cstr(cron),
			 quote_literal_cstr(call),
			 quote_literal_cstr(get_database_name(MyDatabaseId)),
			 quote_literal_cstr(role_to_run(schedule)));
	Datum		values[7] = {0};
	bool		nulls[7] = {true, false, false, false, false, true, false};

	values[1] = CStringGetTextDatum(job);
	values[2] = CStringGetTextDatum(cron);
	values[3] = CStringGetTextDatum(get_database_name(MyDatabaseId));
	values[4] = CStringGetTextDatum(role_to_run(schedule));
	values[6] = CStringGetTextDatum(command);
	tuplestore_putvalues(schedule->result->setResult,
						 schedule->result->setDesc, values, nulls);
}

/* what pg_cron has now */
static void
put_scheduled(const Schedule *schedule, const char *job, int64 jobid)
{
	static const char *const columns[] = {
		"jobid", NULL, "schedule", "database", "username", "active", "command"
	};
	Datum		values[lengthof(columns)];
	bool		nulls[lengthof(columns)] = {false};

	values[0] = Int64GetDatum(jobid);
	template_execute(NULL, &scheduled_job, values, NULL, false);
	for (int i = 0; i < lengthof(columns); i++)
	{
		if (columns[i] != NULL)
			values[i] = template_column(0, columns[i], &nulls[i]);
	}
	values[1] = CStringGetTextDatum(job);
	tuplestore_putvalues(schedule->result->setResult,
						 schedule->result->setDesc, values, nulls);
}

static void
schedule_here(const Schedule *schedule, const char *job, const char *cron,
			  const char *call)
{
	Datum		values[5];
	char		nulls[6] = "     ";
	bool		isnull;

	values[0] = CStringGetTextDatum(cron_job_name(job));
	values[1] = CStringGetTextDatum(cron);
	values[2] = CStringGetTextDatum(call);
	values[3] = CStringGetTextDatum(get_database_name(MyDatabaseId));
	if (schedule->username == NULL)
		nulls[4] = 'n';
	else
		values[4] = CStringGetTextDatum(schedule->username);
	take_from_others(schedule, job);
	template_execute(NULL, &schedule_job, values, nulls, false);
	put_scheduled(schedule, job,
				  DatumGetInt64(template_column(0, "jobid", &isnull)));
}

static void
schedule_one(const Schedule *schedule, const char *job, const Interval *every)
{
	char	   *cron = schedule_for(schedule, job, every);
	char	   *call = cron_call(job, "cron");
	Datum		values[2];

	if (schedule->every != NULL)
	{
		values[0] = CStringGetTextDatum(job);
		values[1] = IntervalPGetDatum(every);
		template_execute(NULL, &keep_every, values, NULL, false);
	}
	if (schedule->here)
		schedule_here(schedule, job, cron, call);
	else
		put_command(schedule, job, cron, call);
}

typedef struct WantedJob
{
	char	   *name;
	Interval	every;
} WantedJob;

/* the job that was named, or all */
static List *
wanted(const Schedule *schedule, bool also_disabled)
{
	Datum		values[2];
	char		nulls[3] = "  ";
	uint64		rows;
	List	   *list = NIL;

	if (schedule->job == NULL)
		nulls[0] = 'n';
	else
		values[0] = CStringGetTextDatum(job_named(schedule->job)->name);
	values[1] = BoolGetDatum(also_disabled);
	rows = template_execute(NULL, &wanted_jobs, values, nulls, false);
	for (uint64 row = 0; row < rows; row++)
	{
		WantedJob  *job = palloc(sizeof(WantedJob));
		bool		isnull;

		job->name = template_text(row, "job");
		job->every = *DatumGetIntervalP(template_column(row, "every", &isnull));
		list = lappend(list, job);
	}
	return list;
}

static void
schedule_body(void *state)
{
	Schedule   *schedule = state;
	ListCell   *lc;

	find_cron(schedule);
	check_username(schedule);
	foreach(lc, wanted(schedule, false))
	{
		WantedJob  *job = lfirst(lc);

		schedule_one(schedule, job->name,
					 schedule->every != NULL ? schedule->every : &job->every);
	}
	warn_of_superuser(schedule);
}

/*
 * cusown_schedule(job text DEFAULT NULL, every interval DEFAULT NULL,
 *		username name DEFAULT NULL, OUT jobid bigint, OUT job_name text,
 *		OUT schedule text, OUT database text, OUT role text,
 *		OUT active boolean, OUT command text) RETURNS SETOF record
 *
 * Puts a job, or all that are enabled, into pg_cron, and returns what pg_cron
 * has now; called again it changes what is there.
 *
 * Errors: 55000 pg_cron is not there; 22023 an interval that it cannot say;
 * 42501 a superuser over tables of others.
 *
 * Source: runbook "Cron Failure", step 5.
 */
Datum
cusown_schedule(PG_FUNCTION_ARGS)
{
	Schedule	schedule = {0};

	verb_check_transaction("cusown_schedule");
	if (!PG_ARGISNULL(0))
		schedule.job = text_to_cstring(PG_GETARG_TEXT_PP(0));
	if (!PG_ARGISNULL(1))
	{
		schedule.every = PG_GETARG_INTERVAL_P(1);
		verb_check_interval(schedule.every, "every");
	}
	if (!PG_ARGISNULL(2))
		schedule.username = NameStr(*PG_GETARG_NAME(2));
	InitMaterializedSRF(fcinfo, 0);
	schedule.result = (ReturnSetInfo *) fcinfo->resultinfo;
	verb_run(schedule_body, &schedule, false);
	return (Datum) 0;
}

static void
unschedule_body(void *state)
{
	Schedule   *schedule = state;
	ListCell   *lc;

	find_cron(schedule);
	if (!schedule->here)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("pg_cron runs in another database"),
				 errhint("There, SELECT cron.unschedule(jobid) FROM cron.job WHERE jobname LIKE 'cusown_ops %%' AND database = %s;",
						 quote_literal_cstr(get_database_name(MyDatabaseId)))));
	foreach(lc, wanted(schedule, true))
	{
		WantedJob  *job = lfirst(lc);
		Datum		values[1];

		values[0] = CStringGetTextDatum(cron_job_name(job->name));
		schedule->unscheduled += template_execute(NULL, &unschedule_job, values,
												  NULL, false);
	}
}

/*
 * cusown_unschedule(job text DEFAULT NULL) RETURNS bigint
 *
 * Takes a job, or all of ours, out of pg_cron; returns how many were
 * there.
 *
 * Errors: 55000 pg_cron is not in this database.
 */
Datum
cusown_unschedule(PG_FUNCTION_ARGS)
{
	Schedule	schedule = {0};

	verb_check_transaction("cusown_unschedule");
	if (!PG_ARGISNULL(0))
		schedule.job = text_to_cstring(PG_GETARG_TEXT_PP(0));
	verb_run(unschedule_body, &schedule, false);
	PG_RETURN_INT64(schedule.unscheduled);
}
