/*-------------------------------------------------------------------------
 *
 * webhook_retry.c
 *	  Events that are worked on once more: cusown_webhook_replay(), the job
 *	  retry_parked_webhooks, and cusown_webhook_backlog().
 *
 * A webhook may come before its payment has been committed, so an event without
 * one is parked, and the job tries it again: after a minute, then less and less
 * often, until cusown_ops.webhook_ttl has gone by.  Then a human must look.  What
 * a trigger of the application refuses is found by splitting (split.c) and put on
 * the worklist; it is tried again in the same way.
 *
 * Locking protocol: replay is a human's and waits.  The job locks events FOR
 * UPDATE SKIP LOCKED, then their payments, then the bookings of those, likewise;
 * a payment counts only with its booking, and what is not held is left for later.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "cusown_ops.h"
#include "errors.h"
#include "job.h"
#include "split.h"
#include "template.h"
#include "verb.h"
#include "webhook.h"

/* one run of the job */
typedef struct Retry
{
	Binding    *binding;
	bool		is_begun;
	Split		split;			/* of the transaction that is under way */
} Retry;

/* events of a step */
typedef struct DueEvents
{
	Retry	   *retry;
	WebhookDue *due;
	int			count;
	MemoryContext context;		/* outlives what was tried */
	UuidList	held;			/* payments, with their bookings */
	int64		applied;
	AttentionItem *refused;
	int			refused_count;
	AttentionItem *unmatched;
	int			unmatched_count;
} DueEvents;

/* one call of cusown_webhook_replay() */
typedef struct Replay
{
	WebhookWork work;
	bool		is_duplicate;
	MemoryContext context;		/* of the result */
} Replay;

PG_FUNCTION_INFO_V1(cusown_webhook_replay);
PG_FUNCTION_INFO_V1(cusown_webhook_backlog);

/* ---------- statements ---------- */

/* of the payments $1, which are locked */
static const Template lock_bookings = {
	"SELECT b.{bookings.id} AS id FROM {bookings} b"
	" WHERE b.{bookings.id} = ANY (ARRAY(SELECT p.{payments.booking_id}"
	" FROM {payments} p WHERE p.{payments.id} = ANY ($1)))"
	" FOR NO KEY UPDATE SKIP LOCKED",
	1, {UUIDARRAYOID}
};

/* of the payments $1 those whose booking is one of $2 */
static const Template held_whole = {
	"SELECT p.{payments.id} AS id FROM {payments} p"
	" WHERE p.{payments.id} = ANY ($1) AND (p.{payments.booking_id} IS NULL"
	" OR p.{payments.booking_id} = ANY ($2))",
	2, {UUIDARRAYOID, UUIDARRAYOID}
};

static const Template backlog = {
	"SELECT i.provider, i.outcome, i.event_type, pg_catalog.count(*) AS events,"
	" pg_catalog.min(i.received_at) AS oldest,"
	" pg_catalog.min(i.next_try) AS next_try FROM cusown_ops.webhook_inbox i"
	" WHERE i.app_schema = $1 AND i.next_try IS NOT NULL"
	" GROUP BY i.provider, i.outcome, i.event_type"
	" ORDER BY i.provider, i.outcome, i.event_type",
	1, {NAMEOID}
};

/* ---------- replay ---------- */

/* by what the owner's rows say now; what cannot be read stays as it was read */
static void
read_again(const WebhookWork *work, WebhookEvent *event)
{
	const WebhookProvider *provider = webhook_provider(work->binding,
													   event->provider);
	bytea	   *body = webhook_inbox_body(work);
	Jsonb	   *json = body == NULL ? NULL : webhook_parse_body(body);
	WebhookEvent now = {0};

	if (json == NULL || !webhook_read_event(provider, json, &now))
		return;
	now.id = event->id;
	*event = now;
	webhook_inbox_reread(work, event);
}

static void
replay_body(void *state)
{
	Replay	   *replay = state;
	WebhookWork *work = &replay->work;
	WebhookEvent event = {0};
	WebhookKept kept;

	work->binding = webhook_binding();
	if (!webhook_inbox_lock(work, &event, &kept))
		ereport(ERROR,
				(errcode(ERRCODE_CUSOWN_NOT_FOUND),
				 errmsg("webhook event " INT64_FORMAT " does not exist",
						work->inbox_id)));
	if (kept.outcome == WEBHOOK_APPLIED || kept.outcome == WEBHOOK_RECEIVED)
	{
		work->outcome = WEBHOOK_DUPLICATE;
		work->has_payment = kept.has_payment;
		work->payment = kept.payment;
		work->detail = psprintf("it was %s", webhook_outcomes[kept.outcome]);
	}
	else
	{
		read_again(work, &event);
		webhook_match(work, &event);
		webhook_apply(work, &event);
		webhook_inbox_settle(work);
	}
	work->detail = MemoryContextStrdup(replay->context, work->detail);
}

/*
 * cusown_webhook_replay(inbox_id bigint, dry_run boolean DEFAULT false,
 *		OUT outcome text, OUT http_status integer, OUT payment_id uuid,
 *		OUT detail text)
 *
 * Works once more on an event.  Errors and locks are in webhook.sql.
 *
 * Source: runbook "Payment Mismatch", step 2.
 */
Datum
cusown_webhook_replay(PG_FUNCTION_ARGS)
{
	Replay		replay = {0};
	TupleDesc	desc;
	Datum		values[4];
	bool		nulls[4] = {false};
	bool		dry_run = verb_dry_run(fcinfo, 1);

	verb_check_transaction("cusown_webhook_replay");
	verb_check_not_null(fcinfo, 0, "inbox_id");
	replay.work.inbox_id = PG_GETARG_INT64(0);
	replay.context = CurrentMemoryContext;
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	verb_run(replay_body, &replay, dry_run);

	values[0] = CStringGetTextDatum(webhook_outcomes[replay.work.outcome]);
	values[1] = Int32GetDatum(webhook_http_status(replay.work.outcome));
	values[2] = UUIDPGetDatum(&replay.work.payment);
	nulls[2] = !replay.work.has_payment;
	values[3] = CStringGetTextDatum(replay.work.detail);
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values,
											 nulls));
}

/* ---------- the job ---------- */

/* the payments of the events that can be had without waiting */
static void
hold_payments(DueEvents *events)
{
	Binding    *binding = events->retry->binding;
	UuidList	wanted = {0};
	UuidList	payments = {0};
	UuidList	bookings = {0};
	Datum		values[2];
	uint64		rows;

	for (int i = 0; i < events->count; i++)
	{
		WebhookWork *work = &events->due[i].work;

		webhook_match(work, &events->due[i].event);
		if (work->has_payment)
			uuid_list_append(&wanted, &work->payment);
	}
	attention_lock(binding, ENTITY_PAYMENT, &wanted, &payments);
	template_ids(binding, &lock_bookings, &payments, &bookings);
	values[0] = uuid_list_datum(&payments);
	values[1] = uuid_list_datum(&bookings);
	rows = template_execute(binding, &held_whole, values, NULL, false);
	uuid_list_append_column(&events->held, rows, "id");
	SPI_freetuptable(SPI_tuptable);
}

static void
park(WebhookWork *work, const char *detail)
{
	work->outcome = WEBHOOK_PARKED;
	work->detail = detail;
}

static void
work_on(DueEvents *events, WebhookDue *due)
{
	WebhookWork *work = &due->work;

	/* an event before it may have brought the payment its reference */
	if (!work->has_payment)
		webhook_match(work, &due->event);
	if (work->has_payment &&
		!uuid_list_contains(&events->held, &work->payment))
		park(work, "somebody has its payment");
	else
		webhook_apply(work, &due->event);
	if (work->outcome == WEBHOOK_PARKED && due->is_over && !work->has_payment)
		work->outcome = WEBHOOK_UNMATCHED;
	work->detail = MemoryContextStrdup(events->context, work->detail);
	webhook_inbox_settle(work);
}

/* SplitChange */
static void
work_on_some(void *state, int first, int count)
{
	DueEvents  *events = state;

	for (int i = first; i < first + count; i++)
	{
		CHECK_FOR_INTERRUPTS();
		work_on(events, &events->due[i]);
	}
	split_fire_deferred(&events->retry->split);
}

/* SplitRefused */
static void
note_refused(void *state, int row, const ErrorData *error)
{
	DueEvents  *events = state;
	WebhookWork *work = &events->due[row].work;
	AttentionItem *item = &events->refused[events->refused_count++];

	item->entity_id = attention_numbered(work->inbox_id);
	item->sqlstate = pstrdup(unpack_sql_state(error->sqlerrcode));
	item->finding = split_finding(error, "let it be applied");
	park(work, item->finding);
}

/* what a refused event had done is rolled back, that it was tried is not */
static void
settle_refused(DueEvents *events, int done)
{
	for (int i = 0; i < done; i++)
	{
		WebhookWork *work = &events->due[i].work;

		for (int j = 0; j < events->refused_count; j++)
		{
			pg_uuid_t	id = attention_numbered(work->inbox_id);

			if (memcmp(&id, &events->refused[j].entity_id, UUID_LEN) == 0)
				webhook_inbox_settle(work);
		}
	}
}

static void
count_outcomes(DueEvents *events, int done)
{
	for (int i = 0; i < done; i++)
	{
		const WebhookWork *work = &events->due[i].work;
		AttentionItem item = {attention_numbered(work->inbox_id)};

		if (work->outcome == WEBHOOK_APPLIED)
			events->applied++;
		if (work->outcome != WEBHOOK_UNMATCHED)
			continue;
		item.finding = work->detail;
		events->unmatched[events->unmatched_count++] = item;
	}
}

static int64
open_entries(DueEvents *events)
{
	Binding    *binding = events->retry->binding;

	return attention_open(binding, &unmatched_webhook, events->unmatched,
						  events->unmatched_count) +
		attention_open(binding, &webhook_failed, events->refused,
					   events->refused_count);
}

/* false when nothing is due */
static bool
retry_some(JobRun *run, Retry *retry)
{
	DueEvents	events = {retry,.context = CurrentMemoryContext};
	int			max = Min(run->batch_size, SPLIT_MAX_TRIES);
	int			done;

	events.count = webhook_inbox_due(retry->binding, run->as_of, max,
									 &events.due);
	if (events.count == 0)
		return false;
	events.refused = palloc0(events.count * sizeof(AttentionItem));
	events.unmatched = palloc0(events.count * sizeof(AttentionItem));
	hold_payments(&events);
	done = split_rows(&retry->split, retry->binding, events.count,
					  work_on_some, note_refused, &events);
	settle_refused(&events, done);
	count_outcomes(&events, done);
	run->counts.attention += open_entries(&events);
	run->counts.changed += events.applied;
	run->counts.looked_at += done;
	return true;
}

static bool
retry_step(JobRun *run)
{
	Retry	   *retry = run->state;
	bool		goes_on;

	if (binding_relation(run->binding, "payments") == NULL)
		return false;
	retry->binding = run->binding;
	if (!retry->is_begun)
	{
		verb_check_row_security(run->binding, webhook_relations);
		verb_check_unattended(run->binding, run->source);
		webhook_recheck(run->binding);
		retry->is_begun = true;
	}
	split_begin(&retry->split);
	goes_on = retry_some(run, retry);
	if (split_is_fruitless(&retry->split))
		job_give_up(run, &retry->split, "let it be applied");
	return goes_on;
}

const Job	retry_parked_webhooks_job = {
	"retry_parked_webhooks",
	"applies webhook events that came before their payments",
	60, true, webhook_relations, sizeof(Retry), retry_step
};

/* ---------- the backlog ---------- */

static void
put_backlog(ReturnSetInfo *result, uint64 rows)
{
	static const char *const columns[] = {
		"provider", "outcome", "event_type", "events", "oldest", "next_try"
	};

	for (uint64 row = 0; row < rows; row++)
	{
		Datum		values[lengthof(columns)];
		bool		nulls[lengthof(columns)];

		for (int i = 0; i < lengthof(columns); i++)
			values[i] = template_column(row, columns[i], &nulls[i]);
		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
}

static void
backlog_body(void *state)
{
	Binding    *binding = binding_use(NULL);
	Datum		values[1];

	values[0] = template_name(binding->app_schema);
	put_backlog(state, template_execute(NULL, &backlog, values, NULL, true));
}

/*
 * cusown_webhook_backlog(OUT provider text, OUT outcome text,
 *		OUT event_type text, OUT events bigint, OUT oldest timestamptz,
 *		OUT next_try timestamptz) RETURNS SETOF record
 *
 * Events that have no payment.
 *
 * Errors: UO001 no application attached.
 *
 * Locks: none.
 *
 * Source: runbook "Payment Mismatch", step 2.
 */
Datum
cusown_webhook_backlog(PG_FUNCTION_ARGS)
{
	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	verb_run(backlog_body, fcinfo->resultinfo, false);
	return (Datum) 0;
}
