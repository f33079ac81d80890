/*-------------------------------------------------------------------------
 *
 * webhook_inbox.c
 *	  The inbox: every event that was signed, once.
 *
 * Two keys tell that an event is known: the provider's id of it and the SHA-256
 * of its body.  Razorpay does not sign its id, so that a body could come again
 * under another one, and another body under this one.  Whoever brings the same event at the same time waits at
 * these keys until the first has committed, and finds it, or has rolled back, and
 * takes its place.
 *
 * The body is kept beside, where fewer may read it and it need not stay for
 * ever.  What matters of it is in the inbox's columns, so that a parked event
 * is worked on without it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "cusown_ops.h"
#include "template.h"
#include "webhook.h"

const char *const webhook_outcomes[WEBHOOK_OUTCOMES] = {
	"applied", "duplicate", "stale", "ignored", "mismatch", "parked",
	"unmatched", "rejected", "received"
};

/* ---------- statements ---------- */

#define KEPT_COLUMNS "i.id, i.outcome, i.payment_id"

/* of the application $1 and the provider $2, $3 SHA-256 of the body */
static const Template find_body = {
	"SELECT " KEPT_COLUMNS ", true AS is_same FROM cusown_ops.webhook_inbox i"
	" WHERE i.app_schema = $1 AND i.provider = $2 AND i.body_sha256 = $3",
	3, {NAMEOID, TEXTOID, BYTEAOID},.planned_once = true
};

#define SAYS(column, arg) \
	" AND coalesce(i." column " = " arg "," \
	" i." column " IS NULL AND " arg " IS NULL)"

/*
 * likewise, or by $4 its id; $5 and on what it says.  Of one that no rule reads
 * nobody knows whether it says the same.
 */
static const Template find_event = {
	"SELECT k.id, k.outcome, k.payment_id, k.is_same"
	" FROM (SELECT " KEPT_COLUMNS ", true AS is_same"
	" FROM cusown_ops.webhook_inbox i WHERE i.app_schema = $1"
	" AND i.provider = $2 AND i.body_sha256 = $3"
	" UNION ALL SELECT " KEPT_COLUMNS ", (i.event_type = $5"
	" AND i.event IS NOT NULL AND i.payment_ids = $8"
	SAYS("provider_ref", "$6") SAYS("refunded", "$7") SAYS("order_ref", "$9")
	SAYS("transaction_ref", "$10") SAYS("amount", "$11")
	SAYS("currency", "$12") ")"
	" FROM cusown_ops.webhook_inbox i WHERE i.app_schema = $1"
	" AND i.provider = $2 AND i.event_id = $4) k LIMIT 1",
	12, {NAMEOID, TEXTOID, BYTEAOID, TEXTOID, TEXTOID, TEXTOID, INT8OID, UUIDARRAYOID, TEXTOID, TEXTOID, INT8OID, TEXTOID},.planned_once = true
};

/* $1 app_schema, then the columns in their order, $15 the body */
static const Template add_event = {
	"WITH added AS (INSERT INTO cusown_ops.webhook_inbox (app_schema, provider,"
	" event_id, event_type, body_sha256, event, provider_ref, payment_ids,"
	" order_ref, transaction_ref, amount, currency, refunded, payment_id,"
	" outcome) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13,"
	" $14, 'received') ON CONFLICT DO NOTHING RETURNING id),"
	" kept AS (INSERT INTO cusown_ops.webhook_body (app_schema, inbox_id, body)"
	" SELECT $1, a.id, $15 FROM added a) SELECT a.id FROM added a",
	15, {NAMEOID, TEXTOID, TEXTOID, TEXTOID, BYTEAOID, TEXTOID, TEXTOID, UUIDARRAYOID, TEXTOID, TEXTOID, INT8OID, TEXTOID, INT8OID, UUIDOID, BYTEAOID},.planned_once = true
};

#define EVENT_COLUMNS \
	"i.provider, i.event_id, i.event_type, i.event, i.provider_ref," \
	" i.payment_ids, i.order_ref, i.transaction_ref, i.amount, i.currency," \
	" i.refunded, pg_catalog.encode(i.body_sha256, 'hex') AS hash"

static const Template lock_event = {
	"SELECT " KEPT_COLUMNS ", " EVENT_COLUMNS
	" FROM cusown_ops.webhook_inbox i"
	" WHERE i.app_schema = $1 AND i.id = $2 FOR UPDATE",
	2, {NAMEOID, INT8OID},.planned_once = true
};

/* $2 by when, $3 how many; what came before $4 is over */
static const Template due_events = {
	"SELECT i.id, " EVENT_COLUMNS ", i.received_at < $4 AS is_over"
	" FROM cusown_ops.webhook_inbox i WHERE i.app_schema = $1"
	" AND i.next_try IS NOT NULL AND i.next_try <= $2"
	" ORDER BY i.next_try, i.id LIMIT $3 FOR UPDATE SKIP LOCKED",
	4, {NAMEOID, TIMESTAMPTZOID, INT8OID, TIMESTAMPTZOID}
};

/* $3 and on what the body of the event $2 says now */
static const Template reread_event = {
	"UPDATE cusown_ops.webhook_inbox i SET event_type := $3, event := $4,"
	" provider_ref := $5, payment_ids := $6, order_ref := $7,"
	" transaction_ref := $8, amount := $9, currency := $10, refunded := $11"
	" WHERE i.app_schema = $1 AND i.id = $2",
	11, {NAMEOID, INT8OID, TEXTOID, TEXTOID, TEXTOID, UUIDARRAYOID, TEXTOID, TEXTOID, INT8OID, TEXTOID, INT8OID}
};

static const Template read_body = {
	"SELECT b.body FROM cusown_ops.webhook_body b"
	" WHERE b.app_schema = $1 AND b.inbox_id = $2",
	2, {NAMEOID, INT8OID}
};

/*
 * $3 outcome, $4 mismatch, $5 detail, $6 payment.  What is parked is tried again
 * after a minute, then after twice as long each time, at last once an hour; what
 * is unmatched, never.
 */
static const Template settle_event = {
	"UPDATE cusown_ops.webhook_inbox i SET outcome := $3, mismatch := $4,"
	" detail := $5, payment_id := $6, tries := (i.tries + 1),"
	" next_try := CASE WHEN $3 = 'parked' THEN (pg_catalog.now()"
	" + least(interval '1 hour', interval '1 minute'"
	" * pg_catalog.power(2, least(i.tries, 9))))"
	" WHEN $3 = 'unmatched' THEN 'infinity'::timestamptz END"
	" WHERE i.app_schema = $1 AND i.id = $2",
	6, {NAMEOID, INT8OID, TEXTOID, TEXTOID, TEXTOID, UUIDOID},.planned_once = true
};

/* ---------- how an event stands there ---------- */

static WebhookOutcome
outcome_named(const char *name)
{
	for (int i = 0; i < WEBHOOK_OUTCOMES; i++)
	{
		if (strcmp(webhook_outcomes[i], name) == 0)
			return i;
	}
	elog(ERROR, "unknown outcome \"%s\" in the inbox", name);
}

static int64
read_number(uint64 row, const char *column, bool *is_there)
{
	bool		isnull;
	Datum		value = template_column(row, column, &isnull);

	*is_there = !isnull;
	return isnull ? 0 : DatumGetInt64(value);
}

static void
read_kept(uint64 row, WebhookKept *kept)
{
	bool		is_there;

	kept->inbox_id = read_number(row, "id", &is_there);
	kept->outcome = outcome_named(template_text(row, "outcome"));
	kept->has_payment = template_uuid(row, "payment_id", &kept->payment);
}

/* whether the event is known, by its body or by its id */
bool
webhook_inbox_find(const WebhookWork *work, const WebhookEvent *event,
				   WebhookKept *kept)
{
	Datum		values[12];
	char		nulls[] = "            ";
	bool		found;

	values[0] = template_name(work->binding->app_schema);
	values[1] = CStringGetTextDatum(event->provider);
	values[2] = PointerGetDatum(work->sha256);
	template_set_text(values, nulls, 4, event->id);
	template_set_text(values, nulls, 5, event->type);
	template_set_text(values, nulls, 6, event->provider_ref);
	template_set_value(values, nulls, 7, event->has_refunded,
					   Int64GetDatum(event->refunded));
	values[7] = uuid_list_datum(&event->payment_ids);
	template_set_text(values, nulls, 9, event->order_ref);
	template_set_text(values, nulls, 10, event->transaction_ref);
	template_set_value(values, nulls, 11, event->has_amount,
					   Int64GetDatum(event->amount));
	template_set_text(values, nulls, 12, event->currency);
	found = template_execute(NULL, event->id == NULL ? &find_body : &find_event,
							 values, nulls, false) > 0;
	if (found)
	{
		read_kept(0, kept);
		kept->is_same = template_bool(0, "is_same");
	}
	SPI_freetuptable(SPI_tuptable);
	return found;
}

/* false: somebody has brought it meanwhile, and committed */
bool
webhook_inbox_add(WebhookWork *work, const WebhookEvent *event, bytea *body)
{
	Datum		values[15];
	char		nulls[] = "               ";
	bool		added;

	values[0] = template_name(work->binding->app_schema);
	template_set_text(values, nulls, 2, event->provider);
	template_set_text(values, nulls, 3, event->id);
	template_set_text(values, nulls, 4, event->type);
	values[4] = PointerGetDatum(work->sha256);
	template_set_text(values, nulls, 6, event->event);
	template_set_text(values, nulls, 7, event->provider_ref);
	values[7] = uuid_list_datum(&event->payment_ids);
	template_set_text(values, nulls, 9, event->order_ref);
	template_set_text(values, nulls, 10, event->transaction_ref);
	template_set_value(values, nulls, 11, event->has_amount,
					   Int64GetDatum(event->amount));
	template_set_text(values, nulls, 12, event->currency);
	template_set_value(values, nulls, 13, event->has_refunded,
					   Int64GetDatum(event->refunded));
	template_set_value(values, nulls, 14, work->has_payment,
					   UUIDPGetDatum(&work->payment));
	values[14] = PointerGetDatum(body);
	added = template_execute(NULL, &add_event, values, nulls, false) > 0;
	if (added)
		work->inbox_id = read_number(0, "id", &added);
	SPI_freetuptable(SPI_tuptable);
	return added;
}

static void
read_ids(uint64 row, WebhookEvent *event)
{
	bool		isnull;
	Datum		array = template_column(row, "payment_ids", &isnull);
	Datum	   *ids;
	bool	   *nulls;
	int			count;

	deconstruct_array(DatumGetArrayTypeP(array), UUIDOID, UUID_LEN, false,
					  TYPALIGN_CHAR, &ids, &nulls, &count);
	for (int i = 0; i < count; i++)
	{
		if (!nulls[i])
			uuid_list_append(&event->payment_ids, DatumGetUUIDP(ids[i]));
	}
}

static void
read_event(uint64 row, WebhookEvent *event)
{
	event->provider = template_text(row, "provider");
	event->id = template_text(row, "event_id");
	event->type = template_text(row, "event_type");
	event->event = template_text(row, "event");
	event->provider_ref = template_text(row, "provider_ref");
	event->order_ref = template_text(row, "order_ref");
	event->transaction_ref = template_text(row, "transaction_ref");
	event->amount = read_number(row, "amount", &event->has_amount);
	event->currency = template_text(row, "currency");
	event->refunded = read_number(row, "refunded", &event->has_refunded);
	read_ids(row, event);
}

/* waits for whoever works on it; false: there is none */
bool
webhook_inbox_lock(WebhookWork *work, WebhookEvent *event, WebhookKept *kept)
{
	Datum		values[2];
	bool		found;

	values[0] = template_name(work->binding->app_schema);
	values[1] = Int64GetDatum(work->inbox_id);
	found = template_execute(NULL, &lock_event, values, NULL, false) > 0;
	if (found)
	{
		read_kept(0, kept);
		read_event(0, event);
		work->hash = template_text(0, "hash");
	}
	SPI_freetuptable(SPI_tuptable);
	return found;
}

/* parked events that are due, locked; those that somebody has are left out */
int
webhook_inbox_due(Binding *binding, TimestampTz as_of, int max,
				  WebhookDue **due)
{
	Datum		values[4];
	uint64		rows;

	values[0] = template_name(binding->app_schema);
	values[1] = TimestampTzGetDatum(as_of);
	values[2] = Int64GetDatum(max);
	values[3] = TimestampTzGetDatum(as_of -
									cusown_webhook_ttl * USECS_PER_SEC);
	rows = template_execute(NULL, &due_events, values, NULL, false);
	*due = palloc0(Max(rows, 1) * sizeof(WebhookDue));
	for (uint64 row = 0; row < rows; row++)
	{
		WebhookDue *one = &(*due)[row];
		bool		is_there;

		one->work.binding = binding;
		one->work.inbox_id = read_number(row, "id", &is_there);
		one->work.hash = template_text(row, "hash");
		one->is_over = template_bool(row, "is_over");
		read_event(row, &one->event);
	}
	SPI_freetuptable(SPI_tuptable);
	return (int) rows;
}

/* a copy, or NULL where it is kept no more */
bytea *
webhook_inbox_body(const WebhookWork *work)
{
	Datum		values[2];
	bytea	   *body = NULL;
	bool		isnull;

	values[0] = template_name(work->binding->app_schema);
	values[1] = Int64GetDatum(work->inbox_id);
	if (template_execute(NULL, &read_body, values, NULL, false) > 0)
		body = DatumGetByteaPCopy(template_column(0, "body", &isnull));
	SPI_freetuptable(SPI_tuptable);
	return body;
}

/* keeps what the event says, read again */
void
webhook_inbox_reread(const WebhookWork *work, const WebhookEvent *event)
{
	Datum		values[11];
	char		nulls[] = "           ";

	values[0] = template_name(work->binding->app_schema);
	values[1] = Int64GetDatum(work->inbox_id);
	template_set_text(values, nulls, 3, event->type);
	template_set_text(values, nulls, 4, event->event);
	template_set_text(values, nulls, 5, event->provider_ref);
	values[5] = uuid_list_datum(&event->payment_ids);
	template_set_text(values, nulls, 7, event->order_ref);
	template_set_text(values, nulls, 8, event->transaction_ref);
	template_set_value(values, nulls, 9, event->has_amount,
					   Int64GetDatum(event->amount));
	template_set_text(values, nulls, 10, event->currency);
	template_set_value(values, nulls, 11, event->has_refunded,
					   Int64GetDatum(event->refunded));
	template_execute(NULL, &reread_event, values, nulls, false);
}

/* keeps what became of it */
void
webhook_inbox_settle(const WebhookWork *work)
{
	Datum		values[6];
	char		nulls[] = "      ";

	values[0] = template_name(work->binding->app_schema);
	values[1] = Int64GetDatum(work->inbox_id);
	template_set_text(values, nulls, 3, webhook_outcomes[work->outcome]);
	template_set_text(values, nulls, 4,
					  work->outcome == WEBHOOK_MISMATCH ? work->mismatch : NULL);
	template_set_text(values, nulls, 5, work->detail);
	template_set_value(values, nulls, 6, work->has_payment,
					   UUIDPGetDatum(&work->payment));
	template_execute(NULL, &settle_event, values, nulls, false);
}
