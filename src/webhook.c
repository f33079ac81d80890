/*-------------------------------------------------------------------------
 *
 * webhook.c
 *	  Takes one delivery of a webhook: cusown_webhook().
 *
 * In one transaction a delivery is verified, kept in the inbox, and applied to
 * its payment.  What is not signed, cannot be read or is too big is rejected: that
 * is an answer, not an error, and of it nothing is kept but a row in a table that
 * is bounded, so that it makes no later delivery a duplicate.  Any error means
 * that nothing happened: the caller answers 5xx, and the provider sends it again.
 *
 * A known body is found before it is read: most duplicates are the same bytes.
 * An id that nobody has signed makes one event of two bodies only where they say
 * the same: otherwise whoever sets a header could make an event disappear.
 * One that has no payment is tried again, since the provider seems to want it.
 *
 * Locking protocol: whoever brings the same event waits at the keys of the inbox;
 * the rest is in webhook_apply.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "common/sha2.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"

#include "header.h"
#include "signature.h"
#include "template.h"
#include "verb.h"
#include "webhook.h"

/* by how much a signed time may differ from as_of */
#define TOLERANCE_US (INT64CONST(300) * USECS_PER_SEC)

/* one call of cusown_webhook() */
typedef struct Delivery
{
	const char *provider_name;
	const WebhookProvider *provider;
	bytea	   *body;
	Jsonb	   *headers;
	TimestampTz as_of;
	WebhookWork work;
	MemoryContext context;		/* of the result */
	/* the result */
	int			http_status;
	bool		is_kept;		/* in the inbox */
	bool		is_id_signed;	/* the event's, by the provider */
} Delivery;

const char *const webhook_relations[] = {
	"payments", "payment_audit_logs", "bookings", "audit_logs", NULL
};

static const char *const relations_matched[] = {"payments", "bookings", NULL};

PG_FUNCTION_INFO_V1(cusown_webhook);

/* $3 http_status, $4 reason, $5 SHA-256 of the body, $6 its bytes */
static const Template reject = {
	"INSERT INTO cusown_ops.webhook_rejected AS r (app_schema, provider,"
	" http_status, reason, body_sha256, body_size)"
	" VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (app_schema, place)"
	" DO UPDATE SET provider := excluded.provider,"
	" http_status := excluded.http_status, reason := excluded.reason,"
	" body_sha256 := excluded.body_sha256, body_size := excluded.body_size,"
	" at := excluded.at",
	6, {NAMEOID, TEXTOID, INT4OID, TEXTOID, BYTEAOID, INT4OID},.planned_once = true
};

/* ---------- what is rejected ---------- */

static void
reject_delivery(Delivery *delivery, int http_status, const char *reason)
{
	WebhookWork *work = &delivery->work;
	Datum		values[6];

	values[0] = template_name(work->binding->app_schema);
	values[1] = CStringGetTextDatum(delivery->provider->name);
	values[2] = Int32GetDatum(http_status);
	values[3] = CStringGetTextDatum(reason);
	values[4] = PointerGetDatum(work->sha256);
	values[5] = Int32GetDatum(VARSIZE_ANY_EXHDR(delivery->body));
	template_execute(NULL, &reject, values, NULL, false);
	work->outcome = WEBHOOK_REJECTED;
	work->detail = reason;
	delivery->http_status = http_status;
}

static bool
is_signed(const Delivery *delivery)
{
	Interval	tolerance = {TOLERANCE_US, 0, 0};

	return signature_verify_stored(delivery->work.binding->app_schema,
								   delivery->provider->name,
								   delivery->provider->scheme, delivery->body,
								   delivery->headers, delivery->as_of,
								   &tolerance);
}

/* ---------- what is read of a delivery ---------- */

/* a header as text; false: it is longer than any of its kind.  NULL: none */
static bool
read_header(Jsonb *headers, const char *name, const char **text)
{
	const char *bytes;
	int			length;

	*text = NULL;
	if (name == NULL || !header_value(headers, name, &bytes, &length) ||
		length == 0)
		return true;
	*text = pnstrdup(bytes, length);
	return length <= WEBHOOK_MAX_TEXT;
}

/* false: the provider does not speak so */
static bool
read_delivery(Delivery *delivery, WebhookEvent *event)
{
	Jsonb	   *json = webhook_parse_body(delivery->body);

	if (json == NULL || !webhook_read_event(delivery->provider, json, event))
		return false;
	delivery->is_id_signed = event->id != NULL ||
		signature_covers(delivery->provider->scheme,
						 delivery->provider->event_id_header);
	return event->id != NULL ||
		read_header(delivery->headers, delivery->provider->event_id_header,
					&event->id);
}

static void
hash_body(Delivery *delivery)
{
	WebhookWork *work = &delivery->work;

	work->sha256 = DatumGetByteaP(DirectFunctionCall1(sha256_bytea,
													  PointerGetDatum(delivery->body)));
	work->hash = TextDatumGetCString(DirectFunctionCall2(binary_encode,
														 PointerGetDatum(work->sha256),
														 CStringGetTextDatum("hex")));
}

/* as it came, for the application's own column; an odd one is not kept */
static void
read_signature(Delivery *delivery)
{
	const char *signature;

	if (read_header(delivery->headers,
					signature_header(delivery->provider->scheme), &signature))
		delivery->work.signature = signature;
}

/* ---------- events ---------- */

static void
work_on(Delivery *delivery, const WebhookEvent *event)
{
	webhook_apply(&delivery->work, event);
	webhook_inbox_settle(&delivery->work);
}

static void
leave_duplicate(Delivery *delivery, const WebhookKept *kept)
{
	WebhookWork *work = &delivery->work;

	delivery->is_kept = true;
	work->inbox_id = kept->inbox_id;
	work->has_payment = kept->has_payment;
	work->payment = kept->payment;
	work->outcome = WEBHOOK_DUPLICATE;
	work->detail = psprintf("the first was %s", webhook_outcomes[kept->outcome]);
}

/* it has no payment yet */
static bool
waits(const WebhookKept *kept)
{
	return kept->outcome == WEBHOOK_PARKED || kept->outcome == WEBHOOK_UNMATCHED;
}

/* a known event that waits for its payment, unless somebody has just found it */
static void
try_again(Delivery *delivery)
{
	WebhookWork *work = &delivery->work;
	WebhookEvent event = {0};
	WebhookKept kept;

	if (!webhook_inbox_lock(work, &event, &kept))
		return;
	if (!waits(&kept))
	{
		leave_duplicate(delivery, &kept);
		return;
	}
	read_signature(delivery);
	webhook_match(work, &event);
	work_on(delivery, &event);
}

/* false: it is a new one */
static bool
take_duplicate(Delivery *delivery, const WebhookEvent *event)
{
	WebhookKept kept;

	if (!webhook_inbox_find(&delivery->work, event, &kept) ||
		!(kept.is_same || delivery->is_id_signed))
		return false;
	leave_duplicate(delivery, &kept);
	if (waits(&kept))
		try_again(delivery);
	return true;
}

/* false: its id is that of another event */
static bool
take_event(Delivery *delivery, const WebhookEvent *event)
{
	WebhookWork *work = &delivery->work;

	webhook_match(work, event);
	if (!webhook_inbox_add(work, event, delivery->body))
		return take_duplicate(delivery, event);
	delivery->is_kept = true;
	work_on(delivery, event);
	return true;
}

static void
take_signed(Delivery *delivery)
{
	WebhookEvent event = {.provider = delivery->provider->name};

	if (take_duplicate(delivery, &event))
		return;
	if (!read_delivery(delivery, &event))
	{
		reject_delivery(delivery, 400, "malformed");
		return;
	}
	read_signature(delivery);
	if (take_event(delivery, &event))
		return;
	event.id = NULL;
	if (!take_event(delivery, &event))
		elog(ERROR, "an event of the inbox has gone");
}

int
webhook_http_status(WebhookOutcome outcome)
{
	return outcome == WEBHOOK_PARKED || outcome == WEBHOOK_UNMATCHED ? 202 : 200;
}

Binding *
webhook_binding(void)
{
	Binding    *binding = binding_use(webhook_relations);

	binding_require(binding, "payments", "id");
	verb_check_row_security(binding, relations_matched);
	return binding;
}

static void
deliver_body(void *state)
{
	Delivery   *delivery = state;
	WebhookWork *work = &delivery->work;

	/*
	 * Commits that notify wait for each other, to the disk and back: the
	 * server keeps their messages in order.
	 */
	work->is_answered = true;
	work->binding = webhook_binding();
	delivery->provider = webhook_provider(work->binding,
										  delivery->provider_name);
	hash_body(delivery);
	if (VARSIZE_ANY_EXHDR(delivery->body) > WEBHOOK_MAX_BODY)
		reject_delivery(delivery, 413, "size");
	else if (!is_signed(delivery))
		reject_delivery(delivery, 401, "signature");
	else
		take_signed(delivery);
	if (delivery->http_status == 0)
		delivery->http_status = webhook_http_status(work->outcome);
	work->detail = MemoryContextStrdup(delivery->context, work->detail);
}

/* ---------- the function ---------- */

static Datum
result_of(FunctionCallInfo fcinfo, const Delivery *delivery)
{
	const WebhookWork *work = &delivery->work;
	TupleDesc	desc;
	Datum		values[5];
	bool		nulls[5] = {false};

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	values[0] = CStringGetTextDatum(webhook_outcomes[work->outcome]);
	values[1] = Int32GetDatum(delivery->http_status);
	values[2] = UUIDPGetDatum(&work->payment);
	nulls[2] = !work->has_payment;
	values[3] = Int64GetDatum(work->inbox_id);
	nulls[3] = !delivery->is_kept;
	values[4] = CStringGetTextDatum(work->detail);
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values,
											 nulls));
}

/*
 * cusown_webhook(provider text, body bytea, headers jsonb,
 *		as_of timestamptz DEFAULT now(), OUT outcome text,
 *		OUT http_status integer, OUT payment_id uuid, OUT inbox_id bigint,
 *		OUT detail text)
 *
 * Takes one delivery.  Errors and locks are in webhook.sql.
 *
 * Source: runbook "Payment Mismatch", step 2.
 */
Datum
cusown_webhook(PG_FUNCTION_ARGS)
{
	Delivery	delivery = {0};
	ErrorContextCallback hide = {error_context_stack, verb_hide_statement, NULL};

	error_context_stack = &hide;
	verb_check_transaction("cusown_webhook");
	verb_check_not_null(fcinfo, 1, "body");
	verb_check_not_null(fcinfo, 2, "headers");
	delivery.provider_name = verb_provider(fcinfo, 0);
	delivery.body = PG_GETARG_BYTEA_PP(1);
	delivery.headers = PG_GETARG_JSONB_P(2);
	delivery.as_of = verb_as_of(fcinfo, 3);
	delivery.context = CurrentMemoryContext;
	verb_run(deliver_body, &delivery, false);
	error_context_stack = hide.previous;
	return result_of(fcinfo, &delivery);
}
