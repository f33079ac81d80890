/*-------------------------------------------------------------------------
 *
 * cron_health.c
 *	  Whether the jobs run when they should.
 *
 * What has run is read from our own ledger, which every source writes; that
 * it is scheduled, from pg_cron, where that can be seen.  A scheduler that
 * died leaves no trace but the time since the last success, so that is what
 * decides.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "cron.h"
#include "cusown_ops.h"
#include "ledger.h"
#include "template.h"
#include "verb.h"

/* one call of cusown_cron_health() */
typedef struct Health
{
	ReturnSetInfo *result;
	bool		cron_is_visible;
} Health;

PG_FUNCTION_INFO_V1(cusown_cron_health);

/* days of 24 hours, whatever the session's TimeZone */
#define TWICE_EVERY \
	"pg_catalog.make_interval(0, 0, 0, 0, 0, 0," \
	" pg_catalog.date_part('epoch', j.every) * 2)"

/*
 * A row per attached application and job.  A run is late when the last success
 * is older than twice its interval.
 */
static const Template job_states = {
	"SELECT s.app_schema, j.name AS job, j.every, j.enabled,"
	" ok.finished_at AS last_success, last.started_at AS last_run,"
	" CASE WHEN last.status = 'running' AND NOT last.is_alive THEN 'died'"
	" ELSE last.status END AS last_outcome,"
	" j.enabled AND " LAST_ON_TIME " + " TWICE_EVERY
	" < pg_catalog.statement_timestamp() AS is_late,"
	" CASE WHEN j.enabled AND " LAST_ON_TIME " + " TWICE_EVERY
	" < pg_catalog.statement_timestamp()"
	" THEN " LAST_ON_TIME " + " TWICE_EVERY " END AS late_since,"
	" CASE WHEN last.status = 'running' AND last.is_alive IS NOT FALSE"
	" THEN last.started_at END AS running_since,"
	" last.source AS last_source, last.session AS last_session,"
	" last.id AS last_id"
	ATTACHED_JOBS
	" LEFT JOIN LATERAL (SELECT r.finished_at FROM cusown_ops.job_run r"
	" WHERE r.app_schema = s.app_schema AND r.job = j.name"
	" AND r.status = 'succeeded' AND " HAS_HAPPENED
	" ORDER BY r.id DESC LIMIT 1) ok ON true"
	" LEFT JOIN LATERAL (SELECT r.id, r.started_at, r.status, r.source, r.session,"
	" cusown_ops.job_is_alive(r.app_schema, r.job) AS is_alive"
	" FROM cusown_ops.job_run r WHERE r.app_schema = s.app_schema"
	" AND r.job = j.name AND r.status <> 'skipped'"
	" ORDER BY r.id DESC LIMIT 1) last ON true"
	" ORDER BY s.app_schema, j.name",
	0, {0}
};

/* the run $2 of the application $1, by now */
static const Template outcome_of_run = {
	"SELECT r.status FROM cusown_ops.job_run r"
	" WHERE r.app_schema = $1 AND r.id = $2",
	2, {NAMEOID, INT8OID}
};

/* pg_cron shows a role its own jobs only; $1 is the job's name there */
static const Template cron_job = {
	"SELECT c.jobid, c.active FROM cron.job c WHERE c.jobname = $1"
	" AND c.database = pg_catalog.current_database()::text"
	" ORDER BY c.active DESC, c.jobid LIMIT 1",
	1, {TEXTOID}
};

/* the columns that come from job_states, in the order of the result */
static const char *const state_columns[] = {
	"job", "app_schema", "every", "enabled", "is_late", "late_since",
	"last_success", "last_run", "last_outcome", "last_source", "last_session",
	"running_since"
};

#define STATE_COLUMNS lengthof(state_columns)
#define SCHEMA_COLUMN 1
#define OUTCOME_COLUMN 8

typedef struct JobState
{
	Datum		values[STATE_COLUMNS + 2];
	bool		nulls[STATE_COLUMNS + 2];
	Datum		last_id;
} JobState;

/* whether cron.job can be read at all */
bool
cron_is_visible(void)
{
	Oid			namespace = get_namespace_oid("cron", true);
	Oid			relid = OidIsValid(namespace) ?
	get_relname_relid("job", namespace) : InvalidOid;

	return OidIsValid(relid) &&
		SchemaAclCheck(namespace, GetUserId(), ACL_USAGE) == ACLCHECK_OK &&
		pg_class_aclcheck(relid, GetUserId(), ACL_SELECT) == ACLCHECK_OK;
}

static JobState *
read_states(uint64 rows)
{
	JobState   *states = palloc0(Max(rows, 1) * sizeof(JobState));

	for (uint64 row = 0; row < rows; row++)
	{
		bool		isnull;

		for (int i = 0; i < STATE_COLUMNS; i++)
			states[row].values[i] = template_column(row, state_columns[i],
													&states[row].nulls[i]);
		states[row].last_id = template_column(row, "last_id", &isnull);
	}
	return states;
}

/*
 * A run that was seen running, and whose session had gone when that was looked at,
 * has died, or it ended in between: then it has said so before it went.
 */
static void
correct_outcome(JobState *state)
{
	Datum	   *outcome = &state->values[OUTCOME_COLUMN];
	Datum		values[2];
	char	   *status;

	if (state->nulls[OUTCOME_COLUMN] ||
		strcmp(TextDatumGetCString(*outcome), "died") != 0)
		return;
	values[0] = state->values[SCHEMA_COLUMN];
	values[1] = state->last_id;
	if (template_read_latest(&outcome_of_run, values) == 0)
		return;
	status = template_text(0, "status");
	if (strcmp(status, "running") != 0)
		*outcome = CStringGetTextDatum(status);
}

/* pg_cron's job id, and active, inactive, not loaded or unknown */
static void
add_cron_job(const Health *health, JobState *state)
{
	Datum		values[1];
	bool		isnull;

	state->nulls[STATE_COLUMNS] = true;
	state->values[STATE_COLUMNS + 1] = CStringGetTextDatum("unknown");
	if (!health->cron_is_visible)
		return;
	values[0] = CStringGetTextDatum(cron_job_name(TextDatumGetCString(state->values[0])));
	if (template_execute(NULL, &cron_job, values, NULL, true) == 0)
		return;
	state->nulls[STATE_COLUMNS] = false;
	state->values[STATE_COLUMNS] = template_column(0, "jobid", &isnull);
	state->values[STATE_COLUMNS + 1] =
		CStringGetTextDatum(!cron_is_loaded() ? "not loaded" :
							template_bool(0, "active") ? "active" : "inactive");
}

static void
health_body(void *argument)
{
	Health	   *health = argument;
	uint64		rows = template_execute(NULL, &job_states, NULL, NULL, true);
	JobState   *states = read_states(rows);

	health->cron_is_visible = cron_is_visible();
	for (uint64 row = 0; row < rows; row++)
	{
		correct_outcome(&states[row]);
		add_cron_job(health, &states[row]);
		tuplestore_putvalues(health->result->setResult,
							 health->result->setDesc, states[row].values,
							 states[row].nulls);
	}
}

/*
 * cusown_cron_health(OUT job text, OUT app_schema name, OUT every interval,
 *		OUT enabled boolean, OUT late boolean, OUT late_since timestamptz,
 *		OUT last_success timestamptz, OUT last_run timestamptz,
 *		OUT last_outcome text, OUT last_source text, OUT last_session text,
 *		OUT running_since timestamptz, OUT cron_jobid bigint,
 *		OUT cron_state text) RETURNS SETOF record
 *
 * A row per attached application and job.
 *
 * Source: runbook "Cron Failure", step 1.
 */
Datum
cusown_cron_health(PG_FUNCTION_ARGS)
{
	Health		health = {0};

	InitMaterializedSRF(fcinfo, 0);
	health.result = (ReturnSetInfo *) fcinfo->resultinfo;
	verb_run(health_body, &health, false);
	return (Datum) 0;
}
