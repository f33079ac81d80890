/*-------------------------------------------------------------------------
 *
 * reconcile.c
 *	  A provider's statement against the application's payments:
 *	  cusown_reconcile() and cusown_reconciliation_summary().
 *
 * What is found is told by reconcile_match.c.  Without apply that is all: it is
 * shown, and nothing is written.  With it, what the state machine allows is done
 * as cusown_payment_transition() does it, with the line of the statement as
 * evidence; everything else that a human must see goes on the worklist, and so
 * does what was refused.  So the same again finds nothing new.
 *
 * A finding is read without locks, and decided again by the machine under the
 * payment's lock: a payment that somebody moves meanwhile is waited for, and what
 * does not fit any more is refused.
 *
 * Locking protocol: payments are moved in the order of their ids, as
 * payment.c has it: the payment FOR UPDATE, then its booking FOR SHARE.  The
 * worklist is written under the locks of the payments that entries are about,
 * which are not waited for; about lines, under the advisory lock of those.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "cusown_ops.h"
#include "errors.h"
#include "payment.h"
#include "reconcile.h"
#include "split.h"
#include "template.h"
#include "uuid_list.h"
#include "verb.h"

/* how a statement shows that a payment was made */
#define METHOD "polling"

/* what becomes of a finding, beside the event of the machine */
#define ACTION_WORKLIST "worklist"
#define ACTION_LATER "later"

typedef struct Finding
{
	const char *class;
	char	   *provider_ref;	/* or NULL */
	int64		line;
	int64		entity_line;	/* by which the worklist knows it */
	int64		refunded;		/* what refunds add up to */
	char	   *currency;		/* of the line, or NULL */
	char	   *event;			/* of the machine, or NULL */
	Datum		ours;			/* jsonb */
	Datum		theirs;
	const char *sqlstate;		/* of what refused it, or NULL */
	const char *refusal;
	pg_uuid_t	payment;
	bool		has_payment;
	bool		has_line;
	bool		is_figure;		/* refunds are told by what they add up to */
	bool		has_ours;
	bool		has_theirs;
	bool		is_moved;
	bool		is_left;		/* for the next call */
} Finding;

/* one call */
typedef struct Run
{
	Reconciliation what;
	const Interval *grace;
	bool		apply;
	MemoryContext context;		/* of the findings */
	Finding    *findings;
	int			count;
	int			capacity;
	Finding   **moves;			/* those with an event, by payment */
	int			move_count;
	Split		split;
	int			first;			/* of the moves that are being tried */
	ReturnSetInfo *result;
} Run;

/* a refund that a statement tells of */
typedef struct ToldRefund
{
	int64		line;
	char	   *reference;
	int64		amount;
} ToldRefund;

static const char *const relations_read[] = {"payments", NULL};

static const char *const relations_changed[] = {
	"payments", "payment_audit_logs", "bookings", "audit_logs", NULL
};

PG_FUNCTION_INFO_V1(cusown_reconcile);
PG_FUNCTION_INFO_V1(cusown_reconciliation_summary);

/* ---------- statements ---------- */

/* $1 app_schema, $2 statement */
static const Template statement_by_id = {
	"SELECT s.provider, s.line_count, s.period_from, s.period_until"
	" FROM cusown_ops.statement s WHERE s.app_schema = $1 AND s.id = $2",
	2, {NAMEOID, INT8OID}
};

/*
 * Refunds of the payment that the provider calls $3 and we $4, which that was
 * not told of by their references; of the provider $2, in the currency $5.
 */
static const Template unknown_refunds = {
	"SELECT DISTINCT ON (o.reference) o.id, o.reference::text AS reference,"
	" o.amount FROM cusown_ops.statement_line o"
	" WHERE o.app_schema = $1 AND o.provider_ref = $3 AND o.kind = 'refund'"
	" AND o.currency = $5 AND NOT EXISTS (SELECT FROM cusown_ops.payment_refund k"
	" WHERE k.app_schema = $1 AND k.payment_id = $4"
	" AND k.refund_ref = o.reference)"
	" AND (SELECT s.provider FROM cusown_ops.statement s"
	" WHERE s.app_schema = $1 AND s.id = o.statement_id) = $2"
	" ORDER BY o.reference, o.id",
	5, {NAMEOID, TEXTOID, TEXTOID, UUIDOID, TEXTOID}
};

/* ---------- what is found ---------- */

static Finding *
new_finding(Run *run)
{
	if (run->count == run->capacity)
	{
		run->capacity = Max(64, run->capacity * 2);
		run->findings = run->findings == NULL ?
			palloc(run->capacity * sizeof(Finding)) :
			repalloc_huge(run->findings,
						  (Size) run->capacity * sizeof(Finding));
	}
	memset(&run->findings[run->count], 0, sizeof(Finding));
	return &run->findings[run->count++];
}

static char *
attribute_text(const StreamedRow *row, const char *column)
{
	bool		isnull;
	Datum		value = template_attribute(row, column, &isnull);

	return isnull ? NULL : TextDatumGetCString(value);
}

static int64
attribute_number(const StreamedRow *row, const char *column, bool *found)
{
	bool		isnull;
	Datum		value = template_attribute(row, column, &isnull);

	if (found != NULL)
		*found = !isnull;
	return isnull ? 0 : DatumGetInt64(value);
}

static Datum
attribute_json(const StreamedRow *row, const char *column, bool *found)
{
	bool		isnull;
	Datum		value = template_attribute(row, column, &isnull);

	*found = !isnull;
	return isnull ? (Datum) 0 : datumCopy(value, false, -1);
}

static void
read_finding(const StreamedRow *row, Finding *finding)
{
	bool		isnull;
	Datum		payment = template_attribute(row, "payment_id", &isnull);

	finding->has_payment = !isnull;
	if (!isnull)
		finding->payment = *DatumGetUUIDP(payment);
	finding->class = attribute_text(row, "class");
	finding->provider_ref = attribute_text(row, "provider_ref");
	finding->line = attribute_number(row, "line_id", &finding->has_line);
	finding->entity_line = attribute_number(row, "entity_line", NULL);
	finding->is_figure =
		DatumGetBool(template_attribute(row, "is_figure", &isnull)) && !isnull;
	finding->refunded = attribute_number(row, "their_total", NULL);
	finding->currency = attribute_text(row, "currency");
	finding->event = attribute_text(row, "event");
	finding->ours = attribute_json(row, "ours", &finding->has_ours);
	finding->theirs = attribute_json(row, "theirs", &finding->has_theirs);
}

static const char *
action_of(const Finding *finding)
{
	if (finding->event != NULL && finding->refusal == NULL)
		return finding->is_left ? ACTION_LATER : finding->event;
	return reconcile_kind(finding->class) == NULL ? NULL : ACTION_WORKLIST;
}

static void
put_finding(const Run *run, const Finding *finding)
{
	Datum		values[6];
	bool		nulls[6] = {false};
	const char *action = action_of(finding);

	values[0] = CStringGetTextDatum(finding->class);
	values[1] = UUIDPGetDatum(&finding->payment);
	nulls[1] = !finding->has_payment;
	nulls[2] = finding->provider_ref == NULL;
	values[2] = nulls[2] ? (Datum) 0 : CStringGetTextDatum(finding->provider_ref);
	values[3] = finding->ours;
	nulls[3] = !finding->has_ours;
	values[4] = finding->theirs;
	nulls[4] = !finding->has_theirs;
	nulls[5] = action == NULL;
	values[5] = nulls[5] ? (Datum) 0 : CStringGetTextDatum(action);
	tuplestore_putvalues(run->result->setResult, run->result->setDesc, values,
						 nulls);
}

/* TemplateRow, of a preview: nothing is kept */
static void
show_finding(const StreamedRow *row, void *state)
{
	const Run  *run = state;
	MemoryContext caller = MemoryContextSwitchTo(run->context);
	Finding		finding = {0};

	CHECK_FOR_INTERRUPTS();
	read_finding(row, &finding);
	put_finding(run, &finding);
	MemoryContextSwitchTo(caller);
	MemoryContextReset(run->context);
}

/* TemplateRow */
static void
keep_finding(const StreamedRow *row, void *state)
{
	Run		   *run = state;
	MemoryContext caller = MemoryContextSwitchTo(run->context);

	CHECK_FOR_INTERRUPTS();
	read_finding(row, new_finding(run));
	MemoryContextSwitchTo(caller);
}

/* ---------- the statement ---------- */

static TimestampTz
read_moment(const char *column)
{
	bool		isnull;

	return DatumGetTimestampTz(template_column(0, column, &isnull));
}

static void
read_statement(Reconciliation *what)
{
	Datum		values[2];
	bool		isnull;

	what->app_schema = template_name(what->binding->app_schema);
	values[0] = what->app_schema;
	values[1] = Int64GetDatum(what->statement);
	if (template_execute(NULL, &statement_by_id, values, NULL,
						 what->read_only) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_CUSOWN_NOT_FOUND),
				 errmsg("statement " INT64_FORMAT " does not exist",
						what->statement),
				 errhint("The table cusown_ops.statement holds those that were loaded.")));
	what->provider = CStringGetTextDatum(template_text(0, "provider"));
	what->lines = DatumGetInt32(template_column(0, "line_count", &isnull));
	what->period_from = read_moment("period_from");
	what->period_until = read_moment("period_until");
	SPI_freetuptable(SPI_tuptable);
}

static void
prepare(Run *run, const char *const *relations)
{
	Reconciliation *what = &run->what;

	what->binding = binding_use(relations);
	what->read_only = !run->apply;
	what->young = verb_before(GetCurrentTransactionStartTimestamp(),
							  run->grace);
	binding_require(what->binding, "payments", "id");
	verb_check_row_security(what->binding, relations);
	read_statement(what);
	reconcile_gather(what);
}

static void
find(Run *run, TemplateRow put)
{
	reconcile_match(&run->what, &reconcile_findings, put, run);
	reconcile_let_go(run->what.payments);
}

/* ---------- what the machine does ---------- */

static Jsonb *
evidence_of(const Run *run, int64 line)
{
	char	   *json = psprintf("{\"statement_id\": " INT64_FORMAT
								", \"statement_line_id\": " INT64_FORMAT
								", \"verification_method\": \"" METHOD "\"}",
								run->what.statement, line);

	return DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(json)));
}

static PaymentCall
call_for(const Run *run, const Finding *finding, int64 line)
{
	PaymentCall call = {0};

	call.binding = run->what.binding;
	call.id = finding->payment;
	call.event = finding->event;
	call.actor_type = "system";
	call.source = "manual";
	call.reason = psprintf("statement " INT64_FORMAT, run->what.statement);
	call.evidence = evidence_of(run, line);
	call.provider_ref = finding->provider_ref;
	call.is_matched = true;
	payment_read_evidence(&call);
	return call;
}

static int
read_unknown_refunds(const Run *run, const Finding *finding,
					 ToldRefund **refunds)
{
	Datum		values[5];
	uint64		rows;

	values[0] = run->what.app_schema;
	values[1] = run->what.provider;
	values[2] = CStringGetTextDatum(finding->provider_ref);
	values[3] = UUIDPGetDatum(&finding->payment);
	values[4] = CStringGetTextDatum(finding->currency);
	rows = template_execute(NULL, &unknown_refunds, values, NULL, false);
	*refunds = palloc(Max(rows, 1) * sizeof(ToldRefund));
	for (uint64 row = 0; row < rows; row++)
	{
		ToldRefund *refund = &(*refunds)[row];
		bool		isnull;

		refund->line = DatumGetInt64(template_column(row, "id", &isnull));
		refund->reference = template_text(row, "reference");
		refund->amount = DatumGetInt64(template_column(row, "amount",
													   &isnull));
	}
	SPI_freetuptable(SPI_tuptable);
	return rows;
}

static void
refund_by_lines(const Run *run, const Finding *finding)
{
	ToldRefund *refunds;
	int			count = read_unknown_refunds(run, finding, &refunds);

	for (int i = 0; i < count; i++)
	{
		PaymentCall call = call_for(run, finding, refunds[i].line);

		call.has_refund_amount = true;
		call.refund_amount = refunds[i].amount;
		call.refund_ref = refunds[i].reference;
		payment_move(&call);
	}
}

static void
move(const Run *run, const Finding *finding)
{
	PaymentCall call;

	if (strcmp(finding->event, EVENT_PARTIAL_REFUND) == 0 &&
		!finding->is_figure)
	{
		refund_by_lines(run, finding);
		return;
	}
	call = call_for(run, finding, finding->line);
	if (payment_is_refund(finding->event))
	{
		call.has_refund_amount = true;
		call.refund_amount = finding->refunded;
	}
	payment_move(&call);
}

/* SplitChange */
static void
move_some(void *state, int first, int count)
{
	Run		   *run = state;

	for (int i = 0; i < count; i++)
	{
		CHECK_FOR_INTERRUPTS();
		move(run, run->moves[run->first + first + i]);
	}
	split_fire_deferred(&run->split);
}

static bool
is_ours(const char *sqlstate)
{
	return strncmp(sqlstate, "UO", 2) == 0;
}

/* SplitRefused */
static void
note_refused(void *state, int row, const ErrorData *error)
{
	Run		   *run = state;
	Finding    *finding = run->moves[run->first + row];
	MemoryContext caller = MemoryContextSwitchTo(run->context);

	finding->sqlstate = pstrdup(unpack_sql_state(error->sqlerrcode));
	finding->refusal = is_ours(finding->sqlstate) ?
		psprintf("event %s is refused", finding->event) :
		split_finding(error, psprintf("let it %s", finding->event));
	MemoryContextSwitchTo(caller);
}

static int
compare_moves(const void *a, const void *b)
{
	return memcmp(&(*(Finding *const *) a)->payment,
				  &(*(Finding *const *) b)->payment, sizeof(pg_uuid_t));
}

/* what was refused before is left alone until its next_try */
static void
leave_backed_off(Run *run)
{
	const AttentionKind *const kinds[] = {
		reconcile_kind("status_mismatch"), reconcile_kind("refund_mismatch"),
		NULL
	};
	UuidList	ids = {0};
	UuidList	backed_off = {0};
	UuidList	closed = {0};

	for (int i = 0; i < run->count; i++)
	{
		if (run->findings[i].event != NULL)
			uuid_list_append(&ids, &run->findings[i].payment);
	}
	attention_backed_off(run->what.binding, kinds, &ids,
						 GetCurrentTransactionStartTimestamp(), &backed_off,
						 &closed);
	for (int i = 0; i < run->count; i++)
	{
		if (run->findings[i].event != NULL &&
			uuid_list_contains(&backed_off, &run->findings[i].payment))
			run->findings[i].event = NULL;
	}
}

static void
collect_moves(Run *run)
{
	run->moves = MemoryContextAllocHuge(run->context,
										Max(run->count, 1) * sizeof(Finding *));
	for (int i = 0; i < run->count; i++)
	{
		if (run->findings[i].event != NULL)
			run->moves[run->move_count++] = &run->findings[i];
	}
	qsort(run->moves, run->move_count, sizeof(Finding *), compare_moves);
}

static void
move_all(Run *run)
{
	MemoryContext window = AllocSetContextCreate(CurrentMemoryContext,
												 "cusown_ops reconcile window",
												 ALLOCSET_DEFAULT_SIZES);
	int			size;

	leave_backed_off(run);
	collect_moves(run);
	size = split_window_size(run->move_count);
	while (run->first < run->move_count && split_has_tries(&run->split))
	{
		MemoryContext caller = MemoryContextSwitchTo(window);

		run->first += split_rows(&run->split, run->what.binding,
								 Min(size, run->move_count - run->first),
								 move_some, note_refused, run);
		MemoryContextSwitchTo(caller);
		MemoryContextReset(window);
	}
	for (int i = run->first; i < run->move_count; i++)
		run->moves[i]->is_left = run->moves[i]->refusal == NULL;
	MemoryContextDelete(window);
}

/* ---------- the worklist ---------- */

static pg_uuid_t
entity_of(const AttentionKind *kind, const Finding *finding)
{
	return strcmp(kind->entity, ENTITY_PAYMENT) == 0 ? finding->payment :
		reconcile_line_entity(finding->entity_line);
}

static char *
json_text(bool is_there, Datum json)
{
	return !is_there ? "-" :
		DatumGetCString(DirectFunctionCall1(jsonb_out, json));
}

static AttentionItem
item_of(const Run *run, const AttentionKind *kind, const Finding *finding)
{
	AttentionItem item = {entity_of(kind, finding), finding->sqlstate};

	item.finding = psprintf("statement " INT64_FORMAT ", %s: ours %s, theirs %s%s%s",
							run->what.statement,
							finding->provider_ref == NULL ? "-" :
							finding->provider_ref,
							json_text(finding->has_ours, finding->ours),
							json_text(finding->has_theirs, finding->theirs),
							finding->refusal == NULL ? "" : "; ",
							finding->refusal == NULL ? "" : finding->refusal);
	return item;
}

static bool
is_for_worklist(const Finding *finding, const AttentionKind *kind)
{
	const char *action = action_of(finding);

	return action != NULL && strcmp(action, ACTION_WORKLIST) == 0 &&
		reconcile_kind(finding->class) == kind;
}

/* of these findings of a kind, those that nobody holds and that are not known */
static void
open_some(const Run *run, const AttentionKind *kind, const UuidList *ids,
		  Finding *const *findings)
{
	const AttentionKind *const kinds[] = {kind, NULL};
	Binding    *binding = run->what.binding;
	UuidList	fresh = attention_fresh(binding, kinds, ids,
										GetCurrentTransactionStartTimestamp(),
										true);
	UuidList	locked = {0};
	UuidList	opened = {0};
	AttentionItem *items = palloc(ids->count * sizeof(AttentionItem));

	attention_lock(binding, kind->entity, &fresh, &locked);
	for (int i = 0; i < ids->count; i++)
	{
		const pg_uuid_t *id = &ids->items[i];

		if (!uuid_list_contains(&locked, id) || uuid_list_contains(&opened, id))
			continue;
		items[opened.count] = item_of(run, kind, findings[i]);
		uuid_list_append(&opened, id);
	}
	attention_open(binding, kind, items, opened.count);
}

static void
open_kind(Run *run, const AttentionKind *kind, MemoryContext window)
{
	int			next = 0;

	while (next < run->count)
	{
		MemoryContext caller = MemoryContextSwitchTo(window);
		Finding   **findings = palloc(cusown_batch_size * sizeof(Finding *));
		UuidList	ids = {0};

		CHECK_FOR_INTERRUPTS();
		for (; next < run->count && ids.count < cusown_batch_size; next++)
		{
			pg_uuid_t	id;

			if (!is_for_worklist(&run->findings[next], kind))
				continue;
			id = entity_of(kind, &run->findings[next]);
			findings[ids.count] = &run->findings[next];
			uuid_list_append(&ids, &id);
		}
		if (ids.count > 0)
			open_some(run, kind, &ids, findings);
		MemoryContextSwitchTo(caller);
		MemoryContextReset(window);
	}
}

static void
open_all(Run *run)
{
	MemoryContext window = AllocSetContextCreate(CurrentMemoryContext,
												 "cusown_ops reconcile window",
												 ALLOCSET_DEFAULT_SIZES);
	const char *last = "";

	/* findings are in the order of their classes */
	for (int i = 0; i < run->count; i++)
	{
		const char *class = run->findings[i].class;

		if (strcmp(class, last) != 0 && reconcile_kind(class) != NULL)
			open_kind(run, reconcile_kind(class), window);
		last = class;
	}
	MemoryContextDelete(window);
}

/* ---------- the functions ---------- */

static void
apply(Run *run)
{
	find(run, keep_finding);
	move_all(run);
	open_all(run);
	reconcile_recheck(run->what.binding);
	for (int i = 0; i < run->count; i++)
	{
		MemoryContext caller = MemoryContextSwitchTo(run->context);

		put_finding(run, &run->findings[i]);
		MemoryContextSwitchTo(caller);
	}
}

static void
reconcile_body(void *state)
{
	Run		   *run = state;

	prepare(run, run->apply ? relations_changed : relations_read);
	run->context = AllocSetContextCreate(CurrentMemoryContext,
										 "cusown_ops findings",
										 ALLOCSET_DEFAULT_SIZES);
	if (run->apply)
		apply(run);
	else
		find(run, show_finding);
}

static void
read_arguments(FunctionCallInfo fcinfo, Run *run)
{
	verb_check_not_null(fcinfo, 0, "statement");
	verb_check_not_null(fcinfo, 1, "grace");
	run->what.statement = PG_GETARG_INT64(0);
	run->grace = PG_GETARG_INTERVAL_P(1);
	verb_check_interval(run->grace, "grace");
}

/*
 * cusown_reconcile(statement bigint, grace interval DEFAULT '2 days',
 *		apply boolean DEFAULT false, OUT class text, OUT payment_id uuid,
 *		OUT provider_ref text, OUT ours jsonb, OUT theirs jsonb,
 *		OUT action text) RETURNS SETOF record
 *
 * Where a provider's statement and the payments do not agree.  Shows it; with
 * apply mends what the state machine allows, and puts the rest on the worklist.
 * Amounts are gross, in minor units; days of 24 hours, in UTC.
 *
 * Errors: UO002 no such statement; UO001; 22023, 22004 arguments; 42501
 * row-level security would hide rows; with apply also 25006, 0A000.
 *
 * Locks: none without apply; with it, each payment that is moved, as
 * cusown_payment_transition(), in the order of their ids.
 *
 * Source: runbook "Payment Mismatch", step 3.
 */
Datum
cusown_reconcile(PG_FUNCTION_ARGS)
{
	Run			run = {0};

	read_arguments(fcinfo, &run);
	verb_check_not_null(fcinfo, 2, "apply");
	run.apply = PG_GETARG_BOOL(2);
	if (run.apply)
		verb_check_transaction("cusown_reconcile");
	InitMaterializedSRF(fcinfo, 0);
	run.result = (ReturnSetInfo *) fcinfo->resultinfo;
	verb_run(reconcile_body, &run, false);
	return (Datum) 0;
}

/* TemplateRow: the columns are those of the function */
static void
put_total(const StreamedRow *row, void *state)
{
	Run		   *run = state;

	tuplestore_puttupleslot(run->result->setResult, row->slot);
}

static void
summary_body(void *state)
{
	Run		   *run = state;

	prepare(run, relations_read);
	reconcile_match(&run->what, &reconcile_totals, put_total, run);
	reconcile_let_go(run->what.payments);
}

/*
 * cusown_reconciliation_summary(statement bigint,
 *		grace interval DEFAULT '2 days', OUT class text, OUT currency text,
 *		OUT theirs bigint, OUT their_amount numeric,
 *		OUT their_refunds numeric, OUT ours bigint, OUT our_amount numeric,
 *		OUT our_refunds numeric) RETURNS SETOF record
 *
 * How many payments of which amounts, in minor units, are in each class.  Errors
 * as cusown_reconcile().  Writes and locks nothing.
 *
 * Source: runbook "Payment Mismatch", step 3.
 */
Datum
cusown_reconciliation_summary(PG_FUNCTION_ARGS)
{
	Run			run = {0};

	read_arguments(fcinfo, &run);
	InitMaterializedSRF(fcinfo, 0);
	run.result = (ReturnSetInfo *) fcinfo->resultinfo;
	verb_run(summary_body, &run, false);
	return (Datum) 0;
}
