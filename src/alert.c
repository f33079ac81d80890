/*-------------------------------------------------------------------------
 *
 * alert.c
 *	  Alerts: symptoms that fire, told once, until they are quiet.
 *
 * An evaluation compares what cusown_symptoms() sees with the open alerts of
 * cusown_ops.alert, of which there is one per symptom at most.  What fires and has
 * none gets one; what has been quiet for cusown_ops.alert_hold is resolved, and
 * fires before that as the same alert.  Its severity is the worst that it was:
 * one that moves about a threshold does not tell of it each time.
 *
 * Opened, critical and resolved are told: by NOTIFY, as changes are, and in the
 * server's log.  That jobs are late the application is told by its audit trail,
 * unless the worker has done so (takeover.c).
 *
 * The job evaluate_alerts does this from pg_cron.  The worker runs the same job
 * once it is due, whatever pg_cron does (visit.c).  cusown_evaluate_alerts() is the
 * same within the caller's transaction.
 *
 * Locking protocol: whoever evaluates holds the job's lock of that application,
 * so nobody else opens or resolves its alerts.  An alert that is being
 * acknowledged is left for the next time.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "commands/async.h"
#include "commands/dbcommands.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/json.h"

#include "cusown_ops.h"
#include "errors.h"
#include "job.h"
#include "ledger.h"
#include "subtransaction.h"
#include "takeover.h"
#include "template.h"
#include "verb.h"

/* what has happened to an alert */
typedef struct AlertEvent
{
	int64		id;
	char	   *event;			/* opened, critical or resolved */
	char	   *symptom;
	char	   *runbook;
	char	   *severity;
	char	   *observed;		/* as JSON, as threshold */
	char	   *threshold;
	char	   *command;		/* what to run next, or NULL */
} AlertEvent;

/* one evaluation of one application */
typedef struct Evaluation
{
	const char *app_schema;
	const char *source;
	int			firing;			/* symptoms */
	int			opened;			/* alerts */
	int			resolved;
	bool		is_late;		/* jobs are */
	bool		has_recovered;	/* none is any more */
} Evaluation;

PG_FUNCTION_INFO_V1(cusown_evaluate_alerts);
PG_FUNCTION_INFO_V1(cusown_ack);

#define IS_QUIET_LONG_ENOUGH \
	"least(a.clear_since, pg_catalog.now()) <=" \
	" (pg_catalog.now() - pg_catalog.make_interval(0, 0, 0, 0, 0, 0, $2))"

/*
 * $1 app_schema, $2 seconds of quiet.  One that becomes critical is no longer what
 * was acknowledged.  A time of quiet that lies ahead is from a clock that was set
 * back.
 */
static const Template evaluate_symptoms = {
	"WITH seen AS MATERIALIZED (SELECT s.runbook AS runbook,"
	" s.symptom AS symptom, s.severity AS severity, s.observed AS observed,"
	" s.threshold AS threshold, s.command AS command"
	" FROM cusown_ops.firing_symptoms() s),"
	" old AS MATERIALIZED (SELECT a.id AS id, a.symptom AS symptom,"
	" a.severity AS severity FROM cusown_ops.alert a"
	" WHERE a.app_schema = $1 AND a.resolved_at IS NULL"
	" FOR NO KEY UPDATE SKIP LOCKED),"
	" opened AS (INSERT INTO cusown_ops.alert AS a (app_schema, symptom,"
	" runbook, severity, observed, threshold)"
	" SELECT $1, s.symptom, s.runbook, s.severity, s.observed, s.threshold"
	" FROM seen s WHERE NOT EXISTS (SELECT FROM cusown_ops.alert o"
	" WHERE o.app_schema = $1 AND o.symptom = s.symptom"
	" AND o.resolved_at IS NULL)"
	" RETURNING a.id, a.symptom),"
	" again AS (UPDATE cusown_ops.alert a SET last_seen := pg_catalog.now(),"
	" times := (a.times + 1), clear_since := NULL, observed := s.observed,"
	" threshold := s.threshold,"
	" severity := CASE WHEN s.severity = 'critical' THEN s.severity"
	" ELSE a.severity END,"
	" acknowledged_at := CASE WHEN s.severity = 'warning'"
	" OR o.severity = 'critical' THEN a.acknowledged_at END,"
	" acknowledged_by := CASE WHEN s.severity = 'warning'"
	" OR o.severity = 'critical' THEN a.acknowledged_by END"
	" FROM old o JOIN seen s ON s.symptom = o.symptom"
	" WHERE a.app_schema = $1 AND a.id = o.id"
	" RETURNING a.id, a.symptom,"
	" s.severity = 'critical' AND o.severity = 'warning' AS has_risen),"
	" quiet AS (UPDATE cusown_ops.alert a"
	" SET clear_since := least(a.clear_since, pg_catalog.now()),"
	" resolved_at := CASE WHEN " IS_QUIET_LONG_ENOUGH
	" THEN pg_catalog.now() END"
	" FROM old o WHERE a.app_schema = $1 AND a.id = o.id"
	" AND NOT EXISTS (SELECT FROM seen s WHERE s.symptom = o.symptom)"
	" RETURNING a.id, a.symptom, a.runbook, a.severity, a.observed,"
	" a.threshold, a.resolved_at IS NOT NULL AS is_resolved),"
	" event AS (SELECT t.event, t.id, s.symptom, s.runbook, s.severity,"
	" s.observed, s.threshold, s.command"
	" FROM (SELECT 'opened' AS event, o.id, o.symptom FROM opened o"
	" UNION ALL SELECT 'critical', r.id, r.symptom FROM again r"
	" WHERE r.has_risen) t JOIN seen s ON s.symptom = t.symptom"
	" UNION ALL SELECT 'resolved', q.id, q.symptom, q.runbook, q.severity,"
	" q.observed, q.threshold, NULL FROM quiet q WHERE q.is_resolved)"
	" SELECT f.firing::int4 AS firing, f.is_late, e.event, e.id, e.symptom,"
	" e.runbook, e.severity, e.command,"
	" pg_catalog.to_jsonb(e.observed::numeric)::text AS observed,"
	" pg_catalog.to_jsonb(e.threshold::numeric)::text AS threshold"
	" FROM (SELECT pg_catalog.count(*) AS firing,"
	" pg_catalog.bool_or(s.symptom = 'job_late') IS TRUE AS is_late"
	" FROM seen s) f LEFT JOIN event e ON true ORDER BY e.id",
	2, {NAMEOID, FLOAT8OID}
};

/* $1 id, $2 note */
static const Template acknowledge = {
	"UPDATE cusown_ops.alert a SET acknowledged_at := pg_catalog.now(),"
	" acknowledged_by := current_user, note := $2"
	" WHERE a.id = $1 AND a.acknowledged_at IS NULL"
	" AND a.resolved_at IS NULL",
	2, {INT8OID, TEXTOID}
};

/* $1 id */
static const Template alert_by_id = {
	"SELECT FROM cusown_ops.alert a WHERE a.id = $1",
	1, {INT8OID}
};

/* ---------- telling ---------- */

static void
notify(const Evaluation *evaluation, const AlertEvent *event)
{
	StringInfoData payload;

	initStringInfo(&payload);
	appendStringInfoString(&payload, "{\"app_schema\": ");
	escape_json(&payload, evaluation->app_schema);
	appendStringInfo(&payload, ", \"alert\": " INT64_FORMAT ", \"event\": \"%s\""
					 ", \"symptom\": \"%s\", \"runbook\": \"%s\", \"severity\": \"%s\""
					 ", \"observed\": %s, \"threshold\": %s}",
					 event->id, event->event, event->symptom, event->runbook,
					 event->severity, event->observed, event->threshold);
	Async_Notify(CUSOWN_SCHEMA, payload.data);
}

static void
log_event(const Evaluation *evaluation, const AlertEvent *event)
{
	bool		is_resolved = strcmp(event->event, "resolved") == 0;

	ereport(is_resolved ? LOG : WARNING,
			(errmsg("alert " INT64_FORMAT " on application schema \"%s\" of database \"%s\": symptom \"%s\" is %s",
					event->id, evaluation->app_schema,
					get_database_name(MyDatabaseId), event->symptom,
					is_resolved ? "quiet" : psprintf("firing (%s)", event->severity)),
			 errdetail("Observed %s, threshold %s, runbook \"%s\".",
					   event->observed, event->threshold, event->runbook),
			 event->command == NULL ? 0 : errhint("%s", event->command)));
}

/* the worker tells of what it takes over, and leaves a publisher's jobs to it */
static void
tell_outages(const Evaluation *evaluation)
{
	ListCell   *lc;

	foreach(lc, takeover_read())
	{
		const Takeover *takeover = lfirst(lc);

		if (strcmp(takeover->app_schema, evaluation->app_schema) == 0 &&
			!takeover->covers && !takeover->is_subscribed)
			takeover_tell_failed(takeover, evaluation->source, "job is late");
	}
}

static void
tell(Evaluation *evaluation, const AlertEvent *events, int count)
{
	if (evaluation->is_late)
		tell_outages(evaluation);
	if (evaluation->has_recovered)
		takeover_end_outages(evaluation->app_schema, evaluation->source);
	for (int i = 0; i < count; i++)
	{
		notify(evaluation, &events[i]);
		log_event(evaluation, &events[i]);
	}
}

/* ---------- an evaluation ---------- */

static AlertEvent
read_event(uint64 row)
{
	AlertEvent	event;
	bool		isnull;

	event.id = DatumGetInt64(template_column(row, "id", &isnull));
	event.event = template_text(row, "event");
	event.symptom = template_text(row, "symptom");
	event.runbook = template_text(row, "runbook");
	event.severity = template_text(row, "severity");
	event.observed = template_text(row, "observed");
	event.threshold = template_text(row, "threshold");
	event.command = template_text(row, "command");
	return event;
}

static void
count_event(Evaluation *evaluation, const AlertEvent *event)
{
	evaluation->opened += strcmp(event->event, "opened") == 0;
	if (strcmp(event->event, "resolved") != 0)
		return;
	evaluation->resolved++;
	evaluation->has_recovered |= strcmp(event->symptom, "job_late") == 0;
}

/* without an event there is one row, that says what fires */
static AlertEvent *
read_events(Evaluation *evaluation, uint64 rows, int *count)
{
	AlertEvent *events = palloc(rows * sizeof(AlertEvent));
	bool		isnull;

	evaluation->firing = DatumGetInt32(template_column(0, "firing", &isnull));
	evaluation->is_late = template_bool(0, "is_late");
	*count = template_text(0, "event") == NULL ? 0 : rows;
	for (int row = 0; row < *count; row++)
	{
		events[row] = read_event(row);
		count_event(evaluation, &events[row]);
	}
	SPI_freetuptable(SPI_tuptable);
	return events;
}

/* SubtransactionBody */
static void
check_unattended(void *state)
{
	Evaluation *evaluation = state;

	verb_check_unattended(binding_use_schema(evaluation->app_schema, NULL),
						  evaluation->source);
}

/*
 * CHECKs and triggers of the application may run.  Where its binding does not
 * resolve, which is a symptom, none does.
 */
static void
refuse_superuser(Evaluation *evaluation)
{
	ErrorData  *error;

	if (!verb_is_unattended(evaluation->source))
		return;
	error = subtransaction_try(check_unattended, evaluation,
							   CurrentMemoryContext);
	if (error != NULL && error->sqlerrcode != ERRCODE_CUSOWN_NOT_ATTACHED)
		ReThrowError(error);
}

/* of the application that is chosen; the caller holds the job's lock */
static void
evaluate(Evaluation *evaluation)
{
	Datum		values[2];
	AlertEvent *events;
	int			count;

	refuse_superuser(evaluation);
	values[0] = template_name(evaluation->app_schema);
	values[1] = Float8GetDatum(cusown_alert_hold);
	events = read_events(evaluation,
						 template_execute(NULL, &evaluate_symptoms, values,
										  NULL, false), &count);
	tell(evaluation, events, count);
}

static JobCounts
counts_of(const Evaluation *evaluation)
{
	JobCounts	counts = {0};

	counts.changed = evaluation->opened + evaluation->resolved;
	counts.looked_at = evaluation->firing;
	return counts;
}

static bool
evaluate_step(JobRun *run)
{
	Evaluation	evaluation = {run->app_schema, run->source};

	evaluate(&evaluation);
	run->counts = counts_of(&evaluation);
	return false;
}

const Job	evaluate_alerts_job = {
	"evaluate_alerts",
	"opens alerts for symptoms that fire, resolves those that are quiet",
	60, true, NULL, 1, evaluate_step
};

/* ---------- the functions ---------- */

/* one call of cusown_evaluate_alerts() */
typedef struct EvaluateCall
{
	ReturnSetInfo *result;
	char	   *source;
} EvaluateCall;

/* SubtransactionBody */
static void
evaluate_chosen(void *state)
{
	Evaluation *evaluation = state;
	int			settings = binding_choose_schema(evaluation->app_schema);

	evaluate(evaluation);
	AtEOXact_GUC(true, settings);
}

static void
put(const EvaluateCall *call, const Evaluation *evaluation)
{
	Datum		values[4];
	bool		nulls[4] = {false};

	values[0] = template_name(evaluation->app_schema);
	values[1] = Int32GetDatum(evaluation->opened);
	values[2] = Int32GetDatum(evaluation->resolved);
	values[3] = Int32GetDatum(evaluation->firing);
	tuplestore_putvalues(call->result->setResult, call->result->setDesc,
						 values, nulls);
}

/* one application's error does not keep the others' alerts from being told */
static void
check_error(const Evaluation *evaluation, ErrorData *error, bool is_only)
{
	if (is_only || error->sqlerrcode == ERRCODE_QUERY_CANCELED)
		ReThrowError(error);
	ereport(WARNING,
			(errcode(error->sqlerrcode),
			 errmsg("could not evaluate alerts of application schema \"%s\": %s",
					evaluation->app_schema, error->message)));
}

static void
evaluate_locked(const EvaluateCall *call, const char *app_schema, bool is_only)
{
	Evaluation	evaluation = {app_schema, call->source};
	LedgerRun	ledger = {evaluate_alerts_job.name, app_schema, call->source};
	JobCounts	counts;
	ErrorData  *error;

	ledger_begin(&ledger);
	error = subtransaction_try(evaluate_chosen, &evaluation,
							   CurrentMemoryContext);
	if (error != NULL)
		check_error(&evaluation, error, is_only);
	else
	{
		counts = counts_of(&evaluation);
		ledger_progress(&ledger, &counts);
		put(call, &evaluation);
	}
	ledger_end(&ledger, error);
}

static void
evaluate_body(void *state)
{
	EvaluateCall *call = state;
	List	   *schemas = job_schemas(CurrentMemoryContext);
	ListCell   *lc;

	foreach(lc, schemas)
	{
		if (job_keep_out(&evaluate_alerts_job, lfirst(lc)))
			evaluate_locked(call, lfirst(lc), list_length(schemas) == 1);
		else
			ereport(NOTICE,
					(errmsg("alerts of application schema \"%s\" are being evaluated already, skipping",
							(char *) lfirst(lc))));
	}
}

/*
 * cusown_evaluate_alerts(source text DEFAULT 'manual', OUT app_schema name,
 *		OUT opened integer, OUT resolved integer, OUT firing integer)
 *		RETURNS SETOF record
 *
 * Errors: UO001 nothing attached; 22023 unknown source; 42501 row-level security
 * would hide rows, or unattended as a superuser.  Locks: the job evaluate_alerts,
 * to the end of the transaction.
 *
 * Source: the symptoms of each runbook.
 */
Datum
cusown_evaluate_alerts(PG_FUNCTION_ARGS)
{
	EvaluateCall call = {0};

	verb_check_transaction("cusown_evaluate_alerts");
	call.source = verb_source(fcinfo, 0);
	InitMaterializedSRF(fcinfo, 0);
	call.result = (ReturnSetInfo *) fcinfo->resultinfo;
	verb_run(evaluate_body, &call, false);
	return (Datum) 0;
}

/* one call of cusown_ack() */
typedef struct Acknowledgement
{
	int64		id;
	char	   *note;
	bool		is_new;
} Acknowledgement;

static void
ack_body(void *state)
{
	Acknowledgement *ack = state;
	Datum		values[2];

	values[0] = Int64GetDatum(ack->id);
	values[1] = CStringGetTextDatum(ack->note);
	ack->is_new = template_execute(NULL, &acknowledge, values, NULL, false) > 0;
	if (!ack->is_new &&
		template_execute(NULL, &alert_by_id, values, NULL, false) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_CUSOWN_NOT_FOUND),
				 errmsg("alert " INT64_FORMAT " does not exist", ack->id),
				 errhint("TABLE cusown_ops.alert shows them.")));
}

/*
 * cusown_ack(alert bigint, note text) RETURNS boolean
 *
 * Acknowledges an alert.  False when it was acknowledged or resolved already.
 *
 * Errors: UO002 no such alert; 22023 empty note; 22004.  Locks: waits for the
 * alert.
 */
Datum
cusown_ack(PG_FUNCTION_ARGS)
{
	Acknowledgement ack = {0};

	verb_check_transaction("cusown_ack");
	verb_check_not_null(fcinfo, 0, "alert");
	verb_check_not_null(fcinfo, 1, "note");
	ack.id = PG_GETARG_INT64(0);
	ack.note = text_to_cstring(PG_GETARG_TEXT_PP(1));
	if (ack.note[0] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("note must not be empty"),
				 errhint("Say what is being done, for whoever reads the alert next.")));
	verb_run(ack_body, &ack, false);
	PG_RETURN_BOOL(ack.is_new);
}
