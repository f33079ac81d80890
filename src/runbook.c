/*-------------------------------------------------------------------------
 *
 * runbook.c
 *	  What to do, step by step, with what is so now: cusown_runbook().
 *
 * A runbook is a file, runbook_NAME.c, that holds its steps; here is the list of
 * them, and what they have in common.  Symptoms are read once.  A step is looked
 * into, which may take a look at whole tables, only where one of its symptoms
 * fires, or for one case.  Each look is a subtransaction: what the role may not
 * see, and what the application does not have, is a finding of that step.
 *
 * Findings are wrapped so that a row fits a screen; commands are not, since they
 * are to be pasted.
 *
 * Nothing is locked or changed, and it works on a standby.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "utils/array.h"
#include "utils/builtins.h"

#include "cron.h"
#include "errors.h"
#include "runbook.h"
#include "subtransaction.h"
#include "template.h"
#include "verb.h"

/* columns of a screen, and what psql draws between five of them */
#define SCREEN_WIDTH 160
#define RULES_WIDTH 14

#define MIN_FINDING_WIDTH 12

#define STATE_DONE "done"
#define STATE_NEEDED "needed"
#define STATE_MANUAL "manual"
#define STATE_NOT_APPLICABLE "not_applicable"

/* those about the database first */
static const Runbook *const runbooks[] = {
	&cron_failure_runbook,
	&double_booking_runbook,
	&payment_mismatch_runbook,
	&database_migration_runbook,
	&application_deployment_runbook,
	&high_error_rate_runbook,
	&database_performance_runbook,
	&authentication_runbook,
	&rate_limiting_runbook,
	&security_incident_runbook,
	&backup_and_restore_runbook,
	&emergency_contacts_runbook,
};

/* that fires */
typedef struct Symptom
{
	char	   *runbook;
	char	   *name;
	char	   *finding;
	int			rank;			/* 2 critical, 1 warning */
} Symptom;

typedef struct RunbookRow
{
	const char *number;
	const char *title;
	const char *state;
	const char *finding;		/* or NULL */
	const char *command;		/* or NULL */
} RunbookRow;

/* one call of cusown_runbook() */
typedef struct RunbookCall
{
	const Runbook *runbook;		/* NULL: all of them */
	bool		has_ref;
	pg_uuid_t	ref;
	ReturnSetInfo *result;
	MemoryContext context;		/* outlives what is tried */
	char	   *app_schema;		/* NULL: there is none */
	Binding    *binding;		/* NULL: it does not resolve */
	char	   *unresolved;		/* and why */
	List	   *symptoms;		/* of Symptom */
	char	   *blinded;		/* why symptoms cannot be seen, or NULL */
	Datum		values[5];		/* of looks */
	char		nulls[6];
	const RunbookStep *step;	/* that is looked at */
	List	   *rows;			/* of RunbookRow */
} RunbookCall;

PG_FUNCTION_INFO_V1(cusown_runbook);

static const Template firing_symptoms = {
	"SELECT s.runbook, s.symptom, s.rank, s.finding"
	" FROM cusown_ops.runbook_symptoms() s",
	0, {0}
};

/* what $1 is, and what it is about */
static const Template case_of_ref = {
	"WITH found AS MATERIALIZED (SELECT 0 AS place, b.{bookings.id} AS booking,"
	" b.{bookings.slot_id} AS slot FROM {bookings} b WHERE b.{bookings.id} = $1"
	"[ UNION ALL SELECT 1, p.{payments.booking_id}, b.{bookings.slot_id}"
	" FROM {payments} p LEFT JOIN {bookings} b"
	" ON b.{bookings.id} = p.{payments.booking_id} WHERE p.{payments.id} = $1]"
	" UNION ALL SELECT 2, NULL, s.{slots.id} FROM {slots} s"
	" WHERE s.{slots.id} = $1 ORDER BY place LIMIT 1),"
	" booking AS MATERIALIZED (SELECT b.{bookings.id} AS id,"
	" b.{bookings.status}::text AS status FROM found f JOIN {bookings} b"
	" ON b.{bookings.id} = f.booking UNION SELECT b.{bookings.id},"
	" b.{bookings.status}::text FROM found f JOIN {bookings} b ON f.booking IS NULL"
	" AND b.{bookings.slot_id} = f.slot)"
	"[, payment AS MATERIALIZED (SELECT p.{payments.id} AS id,"
	" p.{payments.status}::text AS status FROM booking k JOIN {payments} p"
	" ON p.{payments.booking_id} = k.id UNION SELECT p.{payments.id},"
	" p.{payments.status}::text FROM {payments} p WHERE p.{payments.id} = $1)]"
	" SELECT f.booking, f.slot, f.place = 2 AS is_slot, ARRAY(SELECT $1 UNION SELECT f.slot"
	" WHERE f.slot IS NOT NULL UNION SELECT k.id FROM booking k"
	"[ UNION SELECT p.id FROM payment p WHERE {?payments} true]) AS ids,"
	" pg_catalog.concat_ws('; ', coalesce('slot ' || (SELECT"
	" s.{slots.status}::text FROM {slots} s WHERE s.{slots.id} = f.slot),"
	" 'no slot'), coalesce('booking ' || (SELECT pg_catalog.string_agg("
	"k.status, ', ' ORDER BY k.status) FROM booking k), 'no booking')"
	"[, {?payments}coalesce('payment ' || (SELECT pg_catalog.string_agg("
	"p.status, ', ' ORDER BY p.status) FROM payment p), 'no payment')])"
	" AS finding FROM found f",
	1, {UUIDOID}
};

/* ---------- rows ---------- */

static char *
keep(const RunbookCall *call, const char *text)
{
	return text == NULL ? NULL : MemoryContextStrdup(call->context, text);
}

/* the row of the same command, which would be run twice */
static RunbookRow *
same_command(const RunbookCall *call, const char *state, const char *command)
{
	ListCell   *lc;

	foreach(lc, call->rows)
	{
		RunbookRow *row = lfirst(lc);

		if (strcmp(state, STATE_NEEDED) == 0 && strcmp(row->state, state) == 0 &&
			command != NULL && row->command != NULL &&
			strcmp(row->command, command) == 0)
			return row;
	}
	return NULL;
}

static void
add_row(RunbookCall *call, const RunbookStep *step, const char *state,
		const char *finding, const char *command)
{
	MemoryContext caller = MemoryContextSwitchTo(call->context);
	RunbookRow *row = same_command(call, state, command);

	if (row != NULL)
		row->finding = psprintf("%s, %s", row->finding, finding);
	else
	{
		row = palloc0(sizeof(RunbookRow));
		row->number = step->number;
		row->title = step->title;
		row->state = pstrdup(state);
		row->finding = keep(call, finding);
		row->command = keep(call, command);
		call->rows = lappend(call->rows, row);
	}
	MemoryContextSwitchTo(caller);
}

static int
width_of(const char *text)
{
	return text == NULL ? 0 : pg_mbstrlen(text);
}

/* what the other columns leave to the findings */
static int
finding_width(const RunbookCall *call)
{
	int			number = strlen("step");
	int			title = strlen("title");
	int			state = strlen("state");
	int			command = strlen("command");
	ListCell   *lc;

	foreach(lc, call->rows)
	{
		const RunbookRow *row = lfirst(lc);

		number = Max(number, width_of(row->number));
		title = Max(title, width_of(row->title));
		state = Max(state, width_of(row->state));
		command = Max(command, width_of(row->command));
	}
	return Max(SCREEN_WIDTH - RULES_WIDTH - number - title - state - command,
			   MIN_FINDING_WIDTH);
}

/* bytes of text that fit a line, up to its last space if there is one */
static int
line_length(const char *text, int width)
{
	int			length = pg_mbcharcliplen(text, strlen(text), width);

	if (text[length] == '\0')
		return length;
	for (int end = length; end > 0; end--)
	{
		if (text[end] == ' ')
			return end;
	}
	return length;
}

/* an error's message may have lines of its own */
static char *
in_one_line(const char *text)
{
	char	   *line = pstrdup(text);

	for (char *at = line; *at != '\0'; at++)
	{
		if (*at == '\n')
			*at = ' ';
	}
	return line;
}

static char *
wrap(const char *finding, int width)
{
	StringInfoData lines;
	const char *at = in_one_line(finding);

	initStringInfo(&lines);
	while (*at != '\0')
	{
		int			length = line_length(at, width);

		if (lines.len > 0)
			appendStringInfoChar(&lines, '\n');
		appendBinaryStringInfo(&lines, at, length);
		at += length;
		at += strspn(at, " ");
	}
	return lines.data;
}

static void
put_rows(const RunbookCall *call)
{
	int			width = finding_width(call);
	ListCell   *lc;

	foreach(lc, call->rows)
	{
		const RunbookRow *row = lfirst(lc);
		Datum		values[5] = {0};
		bool		nulls[5] = {false};

		values[0] = CStringGetTextDatum(row->number);
		values[1] = CStringGetTextDatum(row->title);
		values[2] = CStringGetTextDatum(row->state);
		nulls[3] = row->finding == NULL;
		if (!nulls[3])
			values[3] = CStringGetTextDatum(wrap(row->finding, width));
		nulls[4] = row->command == NULL;
		if (!nulls[4])
			values[4] = CStringGetTextDatum(row->command);
		tuplestore_putvalues(call->result->setResult, call->result->setDesc,
							 values, nulls);
	}
}

/* ---------- what there is to know ---------- */

/* whether an error is one that a finding tells of; others are raised again */
static char *
message_of(const RunbookCall *call, ErrorData *error)
{
	if (error == NULL)
		return NULL;
	if (error->sqlerrcode != ERRCODE_CUSOWN_NOT_ATTACHED &&
		error->sqlerrcode != ERRCODE_INSUFFICIENT_PRIVILEGE)
		ReThrowError(error);
	return keep(call, error->message);
}

/* SubtransactionBody */
static void
choose(void *state)
{
	RunbookCall *call = state;

	call->app_schema = keep(call, binding_chosen_schema());
}

/* SubtransactionBody */
static void
resolve(void *state)
{
	RunbookCall *call = state;

	(void) binding_use_schema(call->app_schema, NULL);
}

static void
use_application(RunbookCall *call)
{
	call->unresolved = message_of(call, subtransaction_try(choose, call,
														   call->context));
	if (call->unresolved != NULL)
		return;
	call->unresolved = message_of(call, subtransaction_try(resolve, call,
														   call->context));
	if (call->unresolved == NULL)
		call->binding = binding_use_schema(call->app_schema, NULL);
}

/* SubtransactionBody */
static void
read_symptoms(void *state)
{
	RunbookCall *call = state;
	uint64		rows = template_execute(NULL, &firing_symptoms, NULL, NULL, true);
	MemoryContext caller = MemoryContextSwitchTo(call->context);

	for (uint64 i = 0; i < rows; i++)
	{
		Symptom    *symptom = palloc0(sizeof(Symptom));
		bool		isnull;

		symptom->runbook = template_text(i, "runbook");
		symptom->name = template_text(i, "symptom");
		symptom->finding = template_text(i, "finding");
		symptom->rank = DatumGetInt32(template_column(i, "rank", &isnull));
		if (strcmp(symptom->name, "binding_unresolved") == 0 &&
			call->unresolved != NULL)
			symptom->finding = call->unresolved;
		call->symptoms = lappend(call->symptoms, symptom);
	}
	MemoryContextSwitchTo(caller);
}

static void
use_symptoms(RunbookCall *call)
{
	if (call->app_schema == NULL)
		call->blinded = call->unresolved;
	else
		call->blinded = message_of(call, subtransaction_try(read_symptoms, call,
															call->context));
}

/* the case that ref is about, as parameters of looks and as a row */
static void
use_ref(RunbookCall *call)
{
	static const RunbookStep step = {"0", "The Case"};
	Datum		values[1] = {UUIDPGetDatum(&call->ref)};
	char	   *ref = verb_uuid_text(&call->ref);
	bool		isnull;

	if (call->binding == NULL)
	{
		call->has_ref = false;
		return;
	}
	if (template_execute(call->binding, &case_of_ref, values, NULL, true) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_CUSOWN_NOT_FOUND),
				 errmsg("no booking, slot or payment %s exists, or row-level security hides it",
						ref)));
	for (int i = 1; i < 4; i++)
	{
		static const char *const columns[] = {"ids", "booking", "slot"};
		Datum		value = template_column(0, columns[i - 1], &isnull);

		if (!isnull)
			value = i == 1 ? PointerGetDatum(DatumGetArrayTypePCopy(value)) :
				UUIDPGetDatum(memcpy(palloc(UUID_LEN), DatumGetUUIDP(value),
									 UUID_LEN));
		template_set_value(call->values, call->nulls, i + 1, !isnull, value);
	}
	add_row(call, &step, STATE_DONE, template_text(0, "finding"),
			template_bool(0, "is_slot") ? NULL :
			psprintf("SELECT * FROM cusown_payment_facts('%s');", ref));
}

static void
set_parameters(RunbookCall *call)
{
	strcpy(call->nulls, " nnn ");
	call->values[0] = template_name(call->app_schema == NULL ? "" :
									call->app_schema);
	call->values[4] = BoolGetDatum(cron_is_loaded() && cron_is_visible());
}

/* ---------- steps ---------- */

static bool
is_about(const RunbookStep *step, const Symptom *symptom)
{
	for (int i = 0; step->symptoms[i] != NULL; i++)
	{
		if (strcmp(step->symptoms[i], RUNBOOK_ANY) == 0 ||
			strcmp(step->symptoms[i], symptom->name) == 0)
			return true;
	}
	return false;
}

/* the step's symptoms that fire, with what to do about them, or NULL */
static char *
firing(const RunbookCall *call, const RunbookStep *step)
{
	StringInfoData text;
	ListCell   *lc;

	initStringInfo(&text);
	foreach(lc, call->symptoms)
	{
		const Symptom *symptom = lfirst(lc);

		if (is_about(step, symptom))
			appendStringInfo(&text, "%s%s", text.len > 0 ? ", " : "",
							 symptom->finding);
	}
	if (text.len == 0)
		return NULL;
	if (step->advice != NULL)
		appendStringInfo(&text, ": %s", step->advice);
	return text.data;
}

static bool
is_first_of_number(const RunbookCall *call, const RunbookStep *step)
{
	return step == call->runbook->steps ||
		strcmp(step[-1].number, step->number) != 0;
}

/* why what does not fire may well be the matter, or NULL */
static const char *
unseen(const RunbookCall *call)
{
	return call->blinded != NULL ? call->blinded : call->unresolved;
}

/* nothing to do: said once for steps of the same number */
static void
add_quiet(RunbookCall *call, const RunbookStep *step)
{
	if (is_first_of_number(call, step))
		add_row(call, step, STATE_DONE, step->words,
				step->look.text == NULL ? step->command : NULL);
}

/* SubtransactionBody */
static void
look(void *state)
{
	RunbookCall *call = state;
	const RunbookStep *step = call->step;
	bool		names = strchr(step->look.text, '{') != NULL;
	uint64		rows = template_execute(names ? call->binding : NULL,
										&step->look, call->values, call->nulls,
										true);

	for (uint64 i = 0; i < rows; i++)
		add_row(call, step, template_text(i, "state"),
				template_text(i, "finding"), template_text(i, "command"));
	if (rows == 0)
		add_quiet(call, step);
	SPI_freetuptable(SPI_tuptable);
}

static void
add_look(RunbookCall *call, const RunbookStep *step)
{
	ErrorData  *error;
	char	   *message;

	if (call->binding == NULL)
	{
		add_row(call, step, STATE_MANUAL, call->unresolved, NULL);
		return;
	}
	call->step = step;
	error = subtransaction_try(look, call, call->context);
	message = message_of(call, error);
	if (message != NULL && is_first_of_number(call, step))
		add_row(call, step,
				error->sqlerrcode == ERRCODE_CUSOWN_NOT_ATTACHED ?
				STATE_NOT_APPLICABLE : STATE_MANUAL, message, NULL);
}

static void
add_step(RunbookCall *call, const RunbookStep *step)
{
	bool		has_symptoms = step->symptoms[0] != NULL;
	bool		has_look = step->look.text !=NULL;
	char	   *finding = firing(call, step);

	if (has_symptoms && finding == NULL && unseen(call) != NULL)
	{
		if (is_first_of_number(call, step))
			add_row(call, step, STATE_MANUAL, unseen(call), step->command);
	}
	else if (has_look && (!has_symptoms || finding != NULL || call->has_ref))
		add_look(call, step);
	else if (!has_symptoms)
		add_row(call, step, STATE_MANUAL, step->words, step->command);
	else if (finding == NULL)
		add_quiet(call, step);
	else
		add_row(call, step, step->outside ? STATE_MANUAL : STATE_NEEDED,
				finding, step->command);
}

/* what is printed would be refused here */
static void
warn_of_standby(RunbookCall *call)
{
	static const RunbookStep step = {"0", "This Server"};

	if (RecoveryInProgress())
		add_row(call, &step, STATE_MANUAL,
				"a standby: run the commands on the primary", NULL);
}

static void
show_steps(RunbookCall *call)
{
	warn_of_standby(call);
	if (call->has_ref)
		use_ref(call);
	for (const RunbookStep *step = call->runbook->steps; step->number != NULL;
		 step++)
		add_step(call, step);
}

/* ---------- all runbooks ---------- */

/* whether the database can tell that this runbook is to be opened */
static bool
has_symptoms(const Runbook *runbook)
{
	for (const RunbookStep *step = runbook->steps; step->number != NULL; step++)
	{
		if (step->symptoms[0] != NULL &&
			strcmp(step->symptoms[0], RUNBOOK_ANY) != 0)
			return true;
	}
	return false;
}

static bool
opens(const Symptom *symptom, const Runbook *runbook)
{
	if (strcmp(symptom->runbook, runbook->name) == 0)
		return true;
	for (const RunbookStep *step = runbook->steps; step->number != NULL; step++)
	{
		for (int i = 0; step->symptoms[i] != NULL; i++)
		{
			if (strcmp(step->symptoms[i], symptom->name) == 0)
				return true;
		}
	}
	return false;
}

/* 0: none of its symptoms fires */
static int
rank_of(const RunbookCall *call, const Runbook *runbook)
{
	int			rank = 0;
	ListCell   *lc;

	foreach(lc, call->symptoms)
	{
		const Symptom *symptom = lfirst(lc);

		if (opens(symptom, runbook))
			rank = Max(rank, symptom->rank);
	}
	return rank;
}

static char *
symptoms_of(const RunbookCall *call, const Runbook *runbook)
{
	StringInfoData text;
	ListCell   *lc;

	initStringInfo(&text);
	foreach(lc, call->symptoms)
	{
		const Symptom *symptom = lfirst(lc);

		if (opens(symptom, runbook))
			appendStringInfo(&text, "%s%s", text.len > 0 ? ", " : "",
							 symptom->finding);
	}
	return text.data;
}

static void
show_runbook(RunbookCall *call, const Runbook *runbook, int rank)
{
	RunbookStep line = {runbook->name, runbook->title};
	char	   *command = psprintf("SELECT * FROM cusown_runbook('%s');",
								   runbook->name);

	if (!has_symptoms(runbook))
		add_row(call, &line, STATE_MANUAL, "not seen from the database", command);
	else if (rank > 0)
		add_row(call, &line, STATE_NEEDED, symptoms_of(call, runbook), command);
	else if (unseen(call) != NULL)
		add_row(call, &line, STATE_MANUAL, unseen(call), command);
	else
		add_row(call, &line, STATE_DONE, "quiet", command);
}

static void
show_all(RunbookCall *call)
{
	for (int rank = 2; rank >= 0; rank--)
	{
		for (int i = 0; i < lengthof(runbooks); i++)
		{
			if (rank_of(call, runbooks[i]) == rank)
				show_runbook(call, runbooks[i], rank);
		}
	}
}

static void
runbook_body(void *state)
{
	RunbookCall *call = state;

	call->context = CurrentMemoryContext;
	use_application(call);
	use_symptoms(call);
	set_parameters(call);
	if (call->runbook == NULL)
		show_all(call);
	else
		show_steps(call);
	put_rows(call);
}

/* ---------- the function ---------- */

static char *
all_names(void)
{
	StringInfoData names;

	initStringInfo(&names);
	for (int i = 0; i < lengthof(runbooks); i++)
		appendStringInfo(&names, "%s%s", i > 0 ? ", " : "", runbooks[i]->name);
	return names.data;
}

static const Runbook *
runbook_named(const char *name)
{
	for (int i = 0; i < lengthof(runbooks); i++)
	{
		if (strcmp(runbooks[i]->name, name) == 0)
			return runbooks[i];
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("unknown runbook \"%s\"", name),
			 errhint("Runbooks are %s.", all_names())));
}

/*
 * cusown_runbook(name text DEFAULT NULL, ref uuid DEFAULT NULL, OUT step text,
 *		OUT title text, OUT state text, OUT finding text, OUT command text)
 *		RETURNS SETOF record
 *
 * The steps of a runbook, with what is so now and the command to run next;
 * without name all runbooks, those first whose symptoms fire.  ref is a booking, a
 * slot or a payment that it is about.
 *
 * Errors: 22023 unknown runbook, or ref without name; UO002 no such booking, slot
 * or payment.
 *
 * Source: all runbooks.
 */
Datum
cusown_runbook(PG_FUNCTION_ARGS)
{
	RunbookCall call = {0};

	if (!PG_ARGISNULL(0))
		call.runbook = runbook_named(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	call.has_ref = !PG_ARGISNULL(1);
	if (call.has_ref && call.runbook == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("ref needs the name of a runbook"),
				 errhint("Runbooks are %s.", all_names())));
	if (call.has_ref)
		call.ref = *PG_GETARG_UUID_P(1);
	InitMaterializedSRF(fcinfo, 0);
	call.result = (ReturnSetInfo *) fcinfo->resultinfo;
	verb_run(runbook_body, &call, false);
	return (Datum) 0;
}
