/*-------------------------------------------------------------------------
 *
 * health.c
 *	  What an application's health check answers: cusown_health().
 *
 * It has the keys of the application's own /api/health, so that it can take
 * their place.  A health check that fails tells nobody what is wrong: whatever
 * keeps us from looking is a reason to be unhealthy, with its SQLSTATE.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/fmgrprotos.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "binding.h"
#include "split.h"
#include "subtransaction.h"
#include "template.h"
#include "verb.h"

/* one call */
typedef struct Health
{
	MemoryContext context;		/* of what is found */
	char	   *app_schema;		/* NULL: none could be chosen */
	char	   *reasons;		/* JSON */
	const char *status;
	bool		has_last_run;
	int64		last_run;		/* unix seconds */
} Health;

static const char *const relations_read[] = {"metrics", NULL};

PG_FUNCTION_INFO_V1(cusown_health);

/* $1 app_schema; by whatever source */
static const Template last_success = {
	"SELECT (pg_catalog.date_part('epoch', pg_catalog.max(r.finished_at)))::int8"
	" AS at FROM cusown_ops.job_run r WHERE r.app_schema = $1"
	" AND r.job = 'expire_bookings' AND r.status = 'succeeded'",
	1, {NAMEOID}
};

/* what the application's own cron, or lazy heal, has written */
static const Template metric = {
	"SELECT m.{metrics.value}::int8 AS at FROM {metrics} m"
	" WHERE m.{metrics.metric} = 'cron.expire_bookings.last_run_ts'",
	0, {0}
};

static const Template found_reasons = {
	"SELECT r.reasons::text AS reasons, r.worst"
	" FROM cusown_ops.health_reasons() r",
	0, {0}
};

/* ---------- what is found ---------- */

/* the later one counts */
static void
take_last_run(Health *health, uint64 rows)
{
	bool		isnull = true;
	Datum		at = rows == 0 ? (Datum) 0 : template_column(0, "at", &isnull);

	if (!isnull && (!health->has_last_run ||
					DatumGetInt64(at) > health->last_run))
	{
		health->has_last_run = true;
		health->last_run = DatumGetInt64(at);
	}
	SPI_freetuptable(SPI_tuptable);
}

static void
find_last_run(Health *health)
{
	Binding    *binding = binding_use(relations_read);
	Datum		values[1];

	values[0] = template_name(binding->app_schema);
	take_last_run(health, template_execute(NULL, &last_success, values, NULL,
										   true));
	if (binding_relation(binding, "metrics") != NULL)
		take_last_run(health, template_execute(binding, &metric, NULL, NULL,
											   true));
}

static const char *
status_of(const char *worst)
{
	if (worst == NULL)
		return "healthy";
	return strcmp(worst, "critical") == 0 ? "unhealthy" : "degraded";
}

/* SubtransactionBody */
static void
choose(void *state)
{
	Health	   *health = state;

	health->app_schema = MemoryContextStrdup(health->context,
											 binding_chosen_schema());
}

/* SubtransactionBody */
static void
look_at_last_run(void *state)
{
	find_last_run(state);
}

/* SubtransactionBody */
static void
look_at_symptoms(void *state)
{
	Health	   *health = state;

	template_execute(NULL, &found_reasons, NULL, NULL, true);
	health->status = status_of(template_text(0, "worst"));
	health->reasons = MemoryContextStrdup(health->context,
										  template_text(0, "reasons"));
}

/* a cancel is a cancel; anything else is a reason, without the error's own words */
static void
note_error(Health *health, const ErrorData *error)
{
	if (ERRCODE_TO_CATEGORY(error->sqlerrcode) == ERRCODE_OPERATOR_INTERVENTION)
		ReThrowError(unconstify(ErrorData *, error));
	health->status = "unhealthy";
	health->reasons = psprintf("[{\"sqlstate\": \"%s\", \"severity\": \"critical\","
							   " \"command\": \"SELECT * FROM cusown_symptoms();\"}]",
							   unpack_sql_state(error->sqlerrcode));
}

/* false: it is noted why not */
static bool
look(Health *health, SubtransactionBody body)
{
	ErrorData  *error = subtransaction_try(body, health, health->context);

	if (error != NULL)
		note_error(health, error);
	return error == NULL;
}

static void
health_body(void *state)
{
	Health	   *health = state;

	if (!look(health, choose))
		return;
	/* where that cannot be read, symptoms tell why */
	(void) look(health, look_at_last_run);
	(void) look(health, look_at_symptoms);
}

/* ---------- the answer ---------- */

static char *
time_text(TimestampTz at)
{
	char		buffer[MAXDATELEN + 1];
	int			utc = 0;

	JsonEncodeDateTime(buffer, TimestampTzGetDatum(at), TIMESTAMPTZOID, &utc);
	return pstrdup(buffer);
}

static void
append_checks(StringInfo json, const Health *health)
{
	appendStringInfo(json, "\"checks\": {\"database\": true, \"timestamp\": \"%s\","
					 " \"standby\": %s, \"cron_expire_bookings_last_run_ts\": ",
					 time_text(GetCurrentStatementStartTimestamp()),
					 RecoveryInProgress() ? "true" : "false");
	if (health->has_last_run)
		appendStringInfo(json, INT64_FORMAT, health->last_run);
	else
		appendStringInfoString(json, "null");
	appendStringInfoChar(json, '}');
}

static char *
answer(const Health *health)
{
	StringInfoData json;

	initStringInfo(&json);
	appendStringInfo(&json, "{\"status\": \"%s\", ", health->status);
	append_checks(&json, health);
	appendStringInfoString(&json, ", \"app_schema\": ");
	if (health->app_schema == NULL)
		appendStringInfoString(&json, "null");
	else
		escape_json(&json, health->app_schema);
	appendStringInfo(&json, ", \"reasons\": %s}", health->reasons);
	return json.data;
}

/*
 * cusown_health() RETURNS jsonb
 *
 * How the attached application is.
 *
 * Errors: none but a cancel.
 *
 * Locks: none.
 *
 * Source: runbook "Cron Failure", step 1.
 */
Datum
cusown_health(PG_FUNCTION_ARGS)
{
	Health		health = {CurrentMemoryContext};

	verb_run(health_body, &health, false);
	return DirectFunctionCall1(jsonb_in, CStringGetDatum(answer(&health)));
}
