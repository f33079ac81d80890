/*-------------------------------------------------------------------------
 *
 * webhook_event.c
 *	  What events of payment providers mean, and how they are read.
 *
 * What a type of event does to a payment, and where its body says which payment
 * and how much, are rows: those that we ship stand below, an owner's in
 * cusown_ops.webhook_provider and cusown_ops.webhook_event go before them.  So a
 * provider is added without C.  Where a body says what is a jsonpath, which the
 * server evaluates; a row holds no SQL.
 *
 * Rows are read once for each provider and kept with the binding: a trigger on
 * both tables makes that stale.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <ctype.h>

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/formatting.h"
#include "utils/memutils.h"
#include "utils/numeric.h"

#include "payment.h"
#include "template.h"
#include "webhook.h"

#define MAX_ID_PATHS 2

/* the same in every body of a family of events */
typedef struct ShippedPaths
{
	const char *provider_ref;
	const char *payment_ids[MAX_ID_PATHS];
	const char *order_ref;
	const char *transaction_ref;
	const char *amount;
	const char *currency;
	const char *refunded;
} ShippedPaths;

typedef struct ShippedRule
{
	const char *type;
	const char *event;
	const ShippedPaths *paths;
} ShippedRule;

typedef struct ShippedProvider
{
	const char *name;
	const char *scheme;
	const char *event_type;
	const char *event_id;
	const char *event_id_header;
	ShippedRule rules[6];		/* ended by one without a type */
} ShippedProvider;

/* ---------- what we ship ---------- */

/* a capture knows of no refund yet; what it says of them is of the past */
static const ShippedPaths razorpay_payment = {
	"$.payload.payment.entity.id",
	{"$.payload.*.entity.notes.*", "$.payload.order.entity.receipt"},
	"$.payload.payment.entity.order_id",
	"$.payload.payment.entity.acquirer_data.upi_transaction_id",
	"$.payload.payment.entity.amount",
	"$.payload.payment.entity.currency",
	NULL
};

static const ShippedPaths razorpay_refund = {
	"$.payload.payment.entity.id",
	{"$.payload.*.entity.notes.*", NULL},
	"$.payload.payment.entity.order_id",
	"$.payload.payment.entity.acquirer_data.upi_transaction_id",
	"$.payload.payment.entity.amount",
	"$.payload.payment.entity.currency",
	"$.payload.payment.entity.amount_refunded"
};

static const ShippedPaths stripe_intent = {
	"$.data.object.id",
	{"$.data.object.metadata.*", NULL},
	NULL,
	NULL,
	"$.data.object.amount",
	"$.data.object.currency",
	NULL
};

/* a part of what was authorized may have come */
static const ShippedPaths stripe_captured = {
	"$.data.object.id",
	{"$.data.object.metadata.*", NULL},
	NULL,
	NULL,
	"$.data.object.amount_received",
	"$.data.object.currency",
	NULL
};

static const ShippedPaths stripe_charge = {
	"$.data.object.payment_intent",
	{"$.data.object.metadata.*", NULL},
	NULL,
	NULL,
	"$.data.object.amount",
	"$.data.object.currency",
	"$.data.object.amount_refunded"
};

static const ShippedPaths upi_payment = {
	"$.transaction_id",
	{"$.payment_id", "$.notes.*"},
	"$.order_id",
	"$.transaction_id",
	"$.amount",
	"$.currency",
	NULL
};

static const ShippedProvider shipped[] = {
	{"razorpay", "razorpay", "$.event", NULL, "x-razorpay-event-id", {
			{"payment.authorized", EVENT_PROCESS, &razorpay_payment},
			{"payment.captured", EVENT_VERIFY, &razorpay_payment},
			{"order.paid", EVENT_VERIFY, &razorpay_payment},
			{"payment.failed", EVENT_FAIL, &razorpay_payment},
			{"refund.processed", EVENT_PARTIAL_REFUND, &razorpay_refund},
	}},
	{"stripe", "stripe", "$.type", "$.id", NULL, {
			{"payment_intent.processing", EVENT_PROCESS, &stripe_intent},
			{"payment_intent.succeeded", EVENT_VERIFY, &stripe_captured},
			{"payment_intent.payment_failed", EVENT_FAIL, &stripe_intent},
			{"charge.refunded", EVENT_PARTIAL_REFUND, &stripe_charge},
	}},
	{"upi", "upi", "$.status", "$.event_id", NULL, {
			{"success", EVENT_VERIFY, &upi_payment},
			{"failed", EVENT_FAIL, &upi_payment},
	}},
};

PG_FUNCTION_INFO_V1(cusown_shipped_webhook_events);

/* ---------- an owner's ---------- */

/* $1 app_schema, $2 provider */
static const Template added_provider = {
	"SELECT w.scheme, w.event_type::text AS event_type,"
	" w.event_id::text AS event_id,"
	" pg_catalog.lower(w.event_id_header) AS event_id_header"
	" FROM cusown_ops.webhook_provider w"
	" WHERE w.app_schema = $1 AND w.provider = $2",
	2, {NAMEOID, TEXTOID}
};

static const Template added_events = {
	"SELECT e.event_type, e.event, e.provider_ref::text AS provider_ref,"
	" e.payment_ids::text[] AS payment_ids, e.order_ref::text AS order_ref,"
	" e.transaction_ref::text AS transaction_ref, e.amount::text AS amount,"
	" e.currency::text AS currency, e.refunded::text AS refunded"
	" FROM cusown_ops.webhook_event e"
	" WHERE e.app_schema = $1 AND e.provider = $2 ORDER BY e.event_type",
	2, {NAMEOID, TEXTOID}
};

static Datum
jsonpath_of(const char *text)
{
	return text == NULL ? (Datum) 0 :
	DirectFunctionCall1(jsonpath_in, CStringGetDatum(text));
}

static void
add_id_path(WebhookPaths *paths, const char *text)
{
	Datum	   *path = palloc(sizeof(Datum));

	*path = jsonpath_of(text);
	paths->payment_ids = lappend(paths->payment_ids, path);
}

static WebhookRule *
shipped_rule(const ShippedRule *shipped_rule)
{
	const ShippedPaths *from = shipped_rule->paths;
	WebhookRule *rule = palloc0(sizeof(WebhookRule));

	rule->type = shipped_rule->type;
	rule->event = shipped_rule->event;
	rule->paths.provider_ref = jsonpath_of(from->provider_ref);
	rule->paths.order_ref = jsonpath_of(from->order_ref);
	rule->paths.transaction_ref = jsonpath_of(from->transaction_ref);
	rule->paths.amount = jsonpath_of(from->amount);
	rule->paths.currency = jsonpath_of(from->currency);
	rule->paths.refunded = jsonpath_of(from->refunded);
	for (int i = 0; i < MAX_ID_PATHS && from->payment_ids[i] != NULL; i++)
		add_id_path(&rule->paths, from->payment_ids[i]);
	return rule;
}

static void
add_id_paths(WebhookPaths *paths, uint64 row)
{
	bool		isnull;
	Datum		array = template_column(row, "payment_ids", &isnull);
	Datum	   *texts;
	bool	   *nulls;
	int			count;

	deconstruct_array(DatumGetArrayTypeP(array), TEXTOID, -1, false,
					  TYPALIGN_INT, &texts, &nulls, &count);
	for (int i = 0; i < count; i++)
	{
		if (!nulls[i])
			add_id_path(paths, TextDatumGetCString(texts[i]));
	}
}

static WebhookRule *
added_rule(uint64 row)
{
	WebhookRule *rule = palloc0(sizeof(WebhookRule));

	rule->type = template_text(row, "event_type");
	rule->event = template_text(row, "event");
	rule->paths.provider_ref = jsonpath_of(template_text(row, "provider_ref"));
	rule->paths.order_ref = jsonpath_of(template_text(row, "order_ref"));
	rule->paths.transaction_ref = jsonpath_of(template_text(row, "transaction_ref"));
	rule->paths.amount = jsonpath_of(template_text(row, "amount"));
	rule->paths.currency = jsonpath_of(template_text(row, "currency"));
	rule->paths.refunded = jsonpath_of(template_text(row, "refunded"));
	add_id_paths(&rule->paths, row);
	return rule;
}

static const ShippedProvider *
find_shipped(const char *name)
{
	for (int i = 0; i < lengthof(shipped); i++)
	{
		if (strcmp(shipped[i].name, name) == 0)
			return &shipped[i];
	}
	return NULL;
}

static void
take_shipped(WebhookProvider *provider, const ShippedProvider *from)
{
	provider->scheme = from->scheme;
	provider->event_type = jsonpath_of(from->event_type);
	provider->event_id = jsonpath_of(from->event_id);
	provider->event_id_header = from->event_id_header;
}

/* false: an owner has not added it; of the last result, in context */
static bool
take_added(WebhookProvider *provider, uint64 rows)
{
	if (rows == 0)
		return false;
	provider->scheme = template_text(0, "scheme");
	provider->event_type = jsonpath_of(template_text(0, "event_type"));
	provider->event_id = jsonpath_of(template_text(0, "event_id"));
	provider->event_id_header = template_text(0, "event_id_header");
	return true;
}

static void
take_rules(WebhookProvider *provider, uint64 rows, const ShippedProvider *from)
{
	for (uint64 row = 0; row < rows; row++)
		provider->rules = lappend(provider->rules, added_rule(row));
	for (int i = 0; from != NULL && i < lengthof(from->rules) &&
		 from->rules[i].type != NULL; i++)
		provider->rules = lappend(provider->rules,
								  shipped_rule(&from->rules[i]));
}

/* NULL: nobody knows it */
static WebhookProvider *
load(Binding *binding, const char *name)
{
	const ShippedProvider *from = find_shipped(name);
	MemoryContext caller = CurrentMemoryContext;
	WebhookProvider *provider;
	Datum		values[2];
	uint64		rows;

	values[0] = template_name(binding->app_schema);
	values[1] = CStringGetTextDatum(name);
	rows = template_read_latest(&added_provider, values);
	/* what nobody knows leaves nothing behind */
	if (rows == 0 && from == NULL)
	{
		SPI_freetuptable(SPI_tuptable);
		return NULL;
	}
	MemoryContextSwitchTo(binding->context);
	provider = palloc0(sizeof(WebhookProvider));
	provider->name = pstrdup(name);
	if (!take_added(provider, rows))
		take_shipped(provider, from);
	MemoryContextSwitchTo(caller);
	SPI_freetuptable(SPI_tuptable);

	rows = template_read_latest(&added_events, values);
	MemoryContextSwitchTo(binding->context);
	take_rules(provider, rows, from);
	binding->webhook_providers = lappend(binding->webhook_providers, provider);
	MemoryContextSwitchTo(caller);
	SPI_freetuptable(SPI_tuptable);
	return provider;
}

/* raises 22023 where there is none */
const WebhookProvider *
webhook_provider(Binding *binding, const char *name)
{
	const WebhookProvider *provider;
	ListCell   *lc;

	foreach(lc, binding->webhook_providers)
	{
		provider = lfirst(lc);
		if (strcmp(provider->name, name) == 0)
			return provider;
	}
	provider = strlen(name) > WEBHOOK_MAX_TEXT ? NULL : load(binding, name);
	if (provider == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("unknown provider"),
				 errhint("Providers are razorpay, stripe and upi; add others to cusown_ops.webhook_provider.")));
	return provider;
}

/* ---------- reading a body ---------- */

/* what a path leads to, or NULL; errors of the path are none of the body's */
static Jsonb *
query(PGFunction function, Jsonb *body, Datum path)
{
	LOCAL_FCINFO(fcinfo, 4);
	Datum		result;

	if (path == (Datum) 0)
		return NULL;
	InitFunctionCallInfoData(*fcinfo, NULL, 4, InvalidOid, NULL, NULL);
	fcinfo->args[0].value = JsonbPGetDatum(body);
	fcinfo->args[1].value = path;
	fcinfo->args[2].value = DirectFunctionCall1(jsonb_in,
												CStringGetDatum("{}"));
	fcinfo->args[3].value = BoolGetDatum(true); /* silent */
	for (int i = 0; i < 4; i++)
		fcinfo->args[i].isnull = false;
	result = function(fcinfo);
	return fcinfo->isnull ? NULL : DatumGetJsonbP(result);
}

/* of a scalar that is text or a number; false for anything else */
static bool
read_scalar(Jsonb *body, Datum path, JsonbValue *value)
{
	Jsonb	   *found = query(jsonb_path_query_first, body, path);

	return found != NULL && JsonbExtractScalar(&found->root, value) &&
		(value->type == jbvString || value->type == jbvNumeric);
}

/* a number without the zeros behind its point: 10.50 times 100 is 1050.00 */
static const char *
scalar_text(const JsonbValue *value)
{
	if (value->type == jbvString)
		return pnstrdup(value->val.string.val, value->val.string.len);
	return DatumGetCString(DirectFunctionCall1(numeric_out,
											   DirectFunctionCall1(numeric_trim_scale,
																   NumericGetDatum(value->val.numeric))));
}

/* false: it is longer than any of its kind.  What is not there, or empty, is NULL */
static bool
read_text(Jsonb *body, Datum path, const char **text)
{
	JsonbValue	value;

	*text = NULL;
	if (!read_scalar(body, path, &value))
		return true;
	*text = scalar_text(&value);
	if (strlen(*text) > WEBHOOK_MAX_TEXT)
		return false;
	if (**text == '\0')
		*text = NULL;
	return true;
}

/* false: it is no number of minor units */
static bool
read_amount(Jsonb *body, Datum path, bool *is_there, int64 *amount)
{
	JsonbValue	value;
	const char *text;

	*is_there = read_scalar(body, path, &value);
	if (!*is_there)
		return true;
	/* 50000.0 is a whole number too */
	if (value.type == jbvNumeric)
		value.val.numeric = DatumGetNumeric(DirectFunctionCall1(numeric_trim_scale,
																NumericGetDatum(value.val.numeric)));
	text = scalar_text(&value);

	/* 18 digits are within int8 */
	if (*text == '\0' || strlen(text) > 18 ||
		text[strspn(text, "0123456789")] != '\0')
		return false;
	*amount = strtoi64(text, NULL, 10);
	return true;
}

static bool
is_uuid(const char *text)
{
	if (strlen(text) != 36)
		return false;
	for (int i = 0; i < 36; i++)
	{
		bool		is_dash = i == 8 || i == 13 || i == 18 || i == 23;

		if (is_dash ? text[i] != '-' : !isxdigit((unsigned char) text[i]))
			return false;
	}
	return true;
}

static void
add_id(WebhookEvent *event, const JsonbValue *value)
{
	const char *text;

	if (value->type != jbvString ||
		event->payment_ids.count >= WEBHOOK_MAX_IDS)
		return;
	text = scalar_text(value);

	if (is_uuid(text))
		uuid_list_append(&event->payment_ids,
						 DatumGetUUIDP(DirectFunctionCall1(uuid_in,
														   CStringGetDatum(text))));
}

/* every id that the path leads to */
static void
read_ids(Jsonb *body, Datum path, WebhookEvent *event)
{
	Jsonb	   *found = query(jsonb_path_query_array, body, path);
	JsonbIterator *at;
	JsonbValue	value;
	JsonbIteratorToken token;

	if (found == NULL)
		return;
	at = JsonbIteratorInit(&found->root);
	while ((token = JsonbIteratorNext(&at, &value, true)) != WJB_DONE)
	{
		if (token == WJB_ELEM)
			add_id(event, &value);
	}
}

static const WebhookRule *
rule_of(const WebhookProvider *provider, const char *type)
{
	ListCell   *lc;

	foreach(lc, provider->rules)
	{
		const WebhookRule *rule = lfirst(lc);

		if (strcmp(rule->type, type) == 0)
			return rule;
	}
	return NULL;
}

static bool
read_paths(const WebhookPaths *paths, Jsonb *body, WebhookEvent *event)
{
	ListCell   *lc;

	if (!read_text(body, paths->provider_ref, &event->provider_ref) ||
		!read_text(body, paths->order_ref, &event->order_ref) ||
		!read_text(body, paths->transaction_ref, &event->transaction_ref) ||
		!read_text(body, paths->currency, &event->currency) ||
		!read_amount(body, paths->amount, &event->has_amount,
					 &event->amount) ||
		!read_amount(body, paths->refunded, &event->has_refunded,
					 &event->refunded))
		return false;
	if (event->currency != NULL)
		event->currency = asc_toupper(event->currency,
									  strlen(event->currency));
	foreach(lc, paths->payment_ids)
		read_ids(body, *(Datum *) lfirst(lc), event);
	return true;
}

/*
 * What a body says, but the id of the event; false where it does not say what
 * has happened, or something in it is not what it must be.
 */
bool
webhook_read_event(const WebhookProvider *provider, Jsonb *body,
				   WebhookEvent *event)
{
	const WebhookRule *rule;

	event->provider = provider->name;
	if (!JB_ROOT_IS_OBJECT(body) ||
		!read_text(body, provider->event_type, &event->type) ||
		event->type == NULL ||
		!read_text(body, provider->event_id, &event->id))
		return false;
	rule = rule_of(provider, event->type);
	if (rule == NULL)
		return true;
	event->event = rule->event;
	return read_paths(&rule->paths, body, event);
}

/* ---------- the function ---------- */

static Datum
id_paths_datum(const ShippedPaths *paths)
{
	Datum		elements[MAX_ID_PATHS];
	int			count = 0;

	while (count < MAX_ID_PATHS && paths->payment_ids[count] != NULL)
	{
		elements[count] = jsonpath_of(paths->payment_ids[count]);
		count++;
	}
	return PointerGetDatum(construct_array(elements, count, JSONPATHOID, -1,
										   false, TYPALIGN_INT));
}

static void
put_shipped(ReturnSetInfo *result, const ShippedProvider *provider,
			const ShippedRule *rule)
{
	const ShippedPaths *paths = rule->paths;
	Datum		values[11];
	bool		nulls[11] = {false};

	values[0] = CStringGetTextDatum(provider->name);
	values[1] = CStringGetTextDatum(provider->scheme);
	values[2] = CStringGetTextDatum(rule->type);
	values[3] = CStringGetTextDatum(rule->event);
	values[4] = jsonpath_of(paths->provider_ref);
	values[5] = id_paths_datum(paths);
	values[6] = jsonpath_of(paths->order_ref);
	values[7] = jsonpath_of(paths->transaction_ref);
	values[8] = jsonpath_of(paths->amount);
	values[9] = jsonpath_of(paths->currency);
	values[10] = jsonpath_of(paths->refunded);
	for (int i = 0; i < lengthof(values); i++)
		nulls[i] = values[i] == (Datum) 0;
	tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
}

/*
 * cusown_ops.shipped_webhook_events(OUT provider text, OUT scheme text, ...)
 *		RETURNS SETOF record
 *
 * The table above.
 */
Datum
cusown_shipped_webhook_events(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < lengthof(shipped); i++)
	{
		for (int j = 0; j < lengthof(shipped[i].rules) &&
			 shipped[i].rules[j].type != NULL; j++)
			put_shipped(result, &shipped[i], &shipped[i].rules[j]);
	}
	return (Datum) 0;
}
