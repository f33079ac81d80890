/*-------------------------------------------------------------------------
 *
 * webhook_inbox.c
 *	  The inbox: every event that was signed, once.
 *
 * Two keys tell that an event is known: the provider's id of it and the SHA-256
 * of its body.  Razorpay does not sign its id, so that a body could come again
 * under another one.  Whoever brings the same event at the same time waits at
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
#include "common/sha2.h"
#include "executor/spi.h"
#include "utils/array.h"
#include "utils/builtins.h"

#include "template.h"
#include "webhook.h"

const char *const webhook_outcomes[WEBHOOK_OUTCOMES] = {
	"applied", "duplicate", "stale", "ignored", "mismatch", "parked",
	"unmatched", "rejected"
};

/* ---------- statements ---------- */

#define KEPT_COLUMNS "i.id, i.outcome, i.payment_id"

/* of the application $1 and the provider $2, $3 SHA-256 of the body, $4 id */
static const Template find_event = {
	"SELECT k.id, k.outcome, k.payment_id FROM (SELECT " KEPT_COLUMNS
	" FROM cusown_ops.webhook_inbox i WHERE i.app_schema = $1"
	" AND i.provider = $2 AND i.body_sha256 = $3"
	" UNION ALL SELECT " KEPT_COLUMNS
	" FROM cusown_ops.webhook_inbox i WHERE i.app_schema = $1"
	" AND i.provider = $2 AND i.event_id = $4) k LIMIT 1",
	4, {NAMEOID, TEXTOID, BYTEAOID, TEXTOID},.planned_once = true
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

static const Template lock_event = {
	"SELECT " KEPT_COLUMNS ", i.provider, i.event_id, i.event_type, i.event,"
	" i.provider_ref, i.payment_ids, i.order_ref, i.transaction_ref, i.amount,"
	" i.currency, i.refunded,"
	" pg_catalog.encode(i.body_sha256, 'hex') AS hash"
	" FROM cusown_ops.webhook_inbox i"
	" WHERE i.app_schema = $1 AND i.id = $2 FOR UPDATE",
	2, {NAMEOID, INT8OID},.planned_once = true
};

/*
 * $3 outcome, $4 mismatch, $5 detail, $6 payment, $7 what it does now.  What is
 * parked is tried again after a minute, then after twice as long each time, at
 * last once an hour.
 */
static const Template settle_event = {
	"UPDATE cusown_ops.webhook_inbox i SET outcome := $3, mismatch := $4,"
	" detail := $5, payment_id := $6, event := $7, tries := CASE"
	" WHEN i.outcome = 'received' THEN 1 ELSE (i.tries + 1) END,"
	" next_try := CASE WHEN $3 = 'parked' THEN (pg_catalog.now()"
	" + least(interval '1 hour', interval '1 minute'"
	" * pg_catalog.power(2, least(i.tries - 1, 9)))) END"
	" WHERE i.app_schema = $1 AND i.id = $2",
	7, {NAMEOID, INT8OID, TEXTOID, TEXTOID, TEXTOID, UUIDOID, TEXTOID},.planned_once = true
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
read_number(const char *column, bool *is_there)
{
	bool		isnull;
	Datum		value = template_column(0, column, &isnull);

	*is_there = !isnull;
	return isnull ? 0 : DatumGetInt64(value);
}

/* of the last result, if there is a row */
static bool
read_kept(uint64 rows, WebhookKept *kept)
{
	bool		is_there;

	if (rows == 0)
		return false;
	kept->inbox_id = read_number("id", &is_there);
	kept->outcome = outcome_named(template_text(0, "outcome"));
	kept->has_payment = template_uuid(0, "payment_id", &kept->payment);
	return true;
}

/* whether the event is known, by its body or by its id */
bool
webhook_inbox_find(const WebhookWork *work, const char *provider,
				   const char *event_id, WebhookKept *kept)
{
	Datum		values[4];
	char		nulls[] = "    ";
	bool		found;

	values[0] = template_name(work->binding->app_schema);
	values[1] = CStringGetTextDatum(provider);
	values[2] = PointerGetDatum(work->sha256);
	template_set_text(values, nulls, 4, event_id);
	found = read_kept(template_execute(NULL, &find_event, values, nulls, false),
					  kept);
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
		work->inbox_id = read_number("id", &added);
	SPI_freetuptable(SPI_tuptable);
	return added;
}

static void
read_ids(WebhookEvent *event)
{
	bool		isnull;
	Datum		array = template_column(0, "payment_ids", &isnull);
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
read_event(WebhookEvent *event)
{
	event->provider = template_text(0, "provider");
	event->id = template_text(0, "event_id");
	event->type = template_text(0, "event_type");
	event->event = template_text(0, "event");
	event->provider_ref = template_text(0, "provider_ref");
	event->order_ref = template_text(0, "order_ref");
	event->transaction_ref = template_text(0, "transaction_ref");
	event->amount = read_number("amount", &event->has_amount);
	event->currency = template_text(0, "currency");
	event->refunded = read_number("refunded", &event->has_refunded);
	read_ids(event);
}

/* waits for whoever works on it; false: there is none */
bool
webhook_inbox_lock(WebhookWork *work, WebhookEvent *event, WebhookKept *kept)
{
	Datum		values[2];
	bool		found;

	values[0] = template_name(work->binding->app_schema);
	values[1] = Int64GetDatum(work->inbox_id);
	found = read_kept(template_execute(NULL, &lock_event, values, NULL, false),
					  kept);
	if (found)
	{
		read_event(event);
		work->hash = template_text(0, "hash");
	}
	SPI_freetuptable(SPI_tuptable);
	return found;
}

/* keeps what became of it */
void
webhook_inbox_settle(const WebhookWork *work, const WebhookEvent *event)
{
	Datum		values[7];
	char		nulls[] = "       ";

	values[0] = template_name(work->binding->app_schema);
	values[1] = Int64GetDatum(work->inbox_id);
	template_set_text(values, nulls, 3, webhook_outcomes[work->outcome]);
	template_set_text(values, nulls, 4,
					  work->outcome == WEBHOOK_MISMATCH ? work->mismatch : NULL);
	template_set_text(values, nulls, 5, work->detail);
	template_set_value(values, nulls, 6, work->has_payment,
					   UUIDPGetDatum(&work->payment));
	template_set_text(values, nulls, 7, event->event);
	template_execute(NULL, &settle_event, values, nulls, false);
}
