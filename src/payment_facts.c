/*-------------------------------------------------------------------------
 *
 * payment_facts.c
 *	  The facts of a case: cusown_payment_facts().
 *
 * A case is a booking with all of its payments; whoever has the id of one of
 * them has all.  Each source is one statement, which gives a row per fact: the
 * columns at and what, and others that become the keys of detail.  No statement
 * reads the application's tables and ours.  A source that is not bound has no
 * facts; of a column that is not bound, or null, detail has no key.
 *
 * What detail may hold is decided in one place, is_harmless(): numbers, times
 * and ids; texts whose names are listed; of JSON, members whose names are listed
 * and that hold no others.  Whatever is not listed, names, phones, free text, may
 * be somebody's personal data, and is only there where that is asked for, by who
 * may execute cusown_ops.may_read_personal_data().
 *
 * The change feed is no source: what it holds is in the audit trails too, and no
 * index of it knows a booking.
 *
 * Nothing is locked or changed, and it works on a standby.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/tupdesc.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "executor/tuptable.h"
#include "fmgr.h"
#include "funcapi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/date.h"
#include "utils/datetime.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/numeric.h"
#include "utils/timestamp.h"
#include "utils/tuplesort.h"
#include "utils/typcache.h"

#include "compat.h"
#include "errors.h"
#include "payment_ref.h"
#include "template.h"
#include "uuid_list.h"
#include "verb.h"

/* columns of a fact while it is sorted */
enum
{
	FACT_AT, FACT_NUMBER, FACT_SOURCE, FACT_WHAT, FACT_DETAIL, FACT_COLUMNS
};

/* where facts come from */
typedef struct FactSource
{
	const char *name;			/* relation: canonical, or ours */
	bool		is_ours;
	const char *needed;			/* a column without which there is no fact, or
								 * NULL */
	Template	statement;
} FactSource;

/* one call of cusown_payment_facts() */
typedef struct Case
{
	pg_uuid_t	id;				/* of a payment or a booking */
	bool		personal;		/* personal data too */
	Binding    *binding;
	bool		has_booking;
	pg_uuid_t	booking;
	UuidList	payments;		/* all of the booking */
	bool		has_slot;
	pg_uuid_t	slot;
	TimestampTz since;			/* when the booking was made */
	UuidList	ids;			/* booking, slot and payments */
	const FactSource *source;	/* the one that is read */
	int64		number;			/* of facts so far: those of one moment keep
								 * the order in which they were read */
	Tuplesortstate *sort;
	TupleTableSlot *slot_in;
	MemoryContext fact_context; /* of one fact */
	ReturnSetInfo *result;
} Case;

static const char *const relations_read[] = {
	"payments", "bookings", "slots", "audit_logs", "payment_audit_logs",
	"booking_lifecycle_audit", "idempotency_keys", NULL
};

/* texts that are labels, codes and references, never somebody's words */
static const char *const harmless_texts[] = {
	"status", "event", "outcome", "provider", "provider_ref", "currency", "order_id",
	"transaction_id", "webhook_payload_hash", "verification_method",
	"payment_type", "cancelled_by", "no_show_marked_by", "entity",
	"actor_type", "actor_role", "severity", "from_status", "to_status",
	"resource_type", "runbook", "sqlstate", "finding", "refund_ref", NULL
};

/* likewise members of the application's JSON */
static const char *const harmless_members[] = {
	"status", "from", "to", "event", "source", "verb", "provider",
	"provider_ref", "old_provider_ref", "amount", "currency", "refund_ref",
	"refund_amount", "refunded", "booking_id", "payment_id", "slot_id", NULL
};

PG_FUNCTION_INFO_V1(cusown_payment_facts);

/* ---------- statements ---------- */

static const Template find_payment = {
	"SELECT p.{payments.booking_id} AS booking_id FROM {payments} p"
	" WHERE p.{payments.id} = $1",
	1, {UUIDOID}
};

static const Template find_booking = {
	"SELECT b.{bookings.slot_id} AS slot_id,"
	" b.{bookings.created_at} AS created_at FROM {bookings} b"
	" WHERE b.{bookings.id} = $1",
	1, {UUIDOID}
};

static const Template payments_of_booking = {
	"SELECT p.{payments.id} AS id FROM {payments} p"
	" WHERE p.{payments.booking_id} = $1",
	1, {UUIDOID}
};

static const Template may_read_personal_data = {
	"SELECT pg_catalog.has_function_privilege("
	"'cusown_ops.may_read_personal_data()', 'EXECUTE') AS may",
	0, {0}
};

/* what each statement below is given */
#define CASE_ARGS \
	6, {UUIDOID, UUIDARRAYOID, UUIDOID, TIMESTAMPTZOID, UUIDARRAYOID, NAMEOID}
#define BOOKING "$1"
#define PAYMENTS "$2"
#define SLOT "$3"
#define SINCE "$4"
#define ALL_IDS "$5"
#define APP_SCHEMA "$6"

#define NOW_STATUS(status) \
	"'created, is now '::text || coalesce(" status "::text, 'without a status')"

/*
 * Rows that are about any of the case; of a slot, what happened to it since the
 * booking was made: others have stood on it before.
 */
#define ABOUT_CASE(entity, entity_id, at) \
	entity " = ANY ('{booking,slot,payment}'::text[])" \
	" AND " entity_id " = ANY (" ALL_IDS ")" \
	" AND (" entity " <> 'slot' OR " at " >= " SINCE ")"

/*
 * In the order in which what happened at one moment makes sense.
 *
 * THE PLACE OF WEBHOOK EVENTS is behind the payments: a source {"inbox", true,
 * NULL, ...} that gives, for each event of one of the payments, when it came,
 * its type and what became of it.
 */
static const FactSource sources[] = {
	{"bookings", false, NULL, {
			"SELECT b.{bookings.created_at} AS at,"
			" " NOW_STATUS("b.{bookings.status}") " AS what,"
			" b.{bookings.id} AS id, b.{bookings.status}::text AS status,"
			" b.{bookings.slot_id} AS slot_id"
			"[, b.{bookings.business_id} AS business_id]"
			"[, b.{bookings.customer_id} AS customer_id]"
			"[, b.{bookings.customer_name}::text AS customer_name]"
			"[, b.{bookings.customer_phone}::text AS customer_phone]"
			"[, b.{bookings.payment_required} AS payment_required]"
			"[, b.{bookings.payment_type}::text AS payment_type]"
			"[, b.{bookings.no_show} AS no_show]"
			"[, b.{bookings.updated_at} AS updated_at]"
			" FROM {bookings} b WHERE b.{bookings.id} = " BOOKING,
			CASE_ARGS
	}},
	{"slots", false, NULL, {
			"SELECT [{?slots.updated_at}s.{slots.updated_at} AS at, ]"
			"'is '::text || coalesce(s.{slots.status}::text,"
			" 'without a status') AS what, s.{slots.id} AS id,"
			" s.{slots.status}::text AS status"
			"[, s.{slots.date} AS date, s.{slots.start_time} AS start_time,"
			" s.{slots.end_time} AS end_time]"
			"[, s.{slots.starts_at} AS starts_at, s.{slots.ends_at} AS ends_at]"
			"[, s.{slots.reserved_until} AS reserved_until]"
			" FROM {slots} s WHERE s.{slots.id} = " SLOT,
			CASE_ARGS
	}},
	{"payments", false, NULL, {
			"SELECT p.{payments.created_at} AS at,"
			" " NOW_STATUS("p.{payments.status}") " AS what,"
			" p.{payments.id} AS id, p.{payments.booking_id} AS booking_id,"
			" p.{payments.status}::text AS status"
			"[, p.{payments.provider}::text AS provider]"
			"[, p.{payments.provider_ref}::text AS provider_ref]"
			"[, p.{payments.amount}::int8 AS amount]"
			"[, p.{payments.currency}::text AS currency]"
			"[, p.{payments.order_id}::text AS order_id]"
			"[, p.{payments.transaction_id}::text AS transaction_id]"
			"[, p.{payments.webhook_payload_hash}::text AS webhook_payload_hash]"
			"[, p.{payments.attempt_count}::int8 AS attempt_count]"
			"[, p.{payments.failure_reason}::text AS failure_reason]"
			"[, p.{payments.expires_at} AS expires_at]"
			"[, p.{payments.updated_at} AS updated_at]"
			" FROM {payments} p WHERE p.{payments.id} = ANY (" PAYMENTS ")"
			" ORDER BY p.{payments.id}",
			CASE_ARGS
	}},
	{"payments", false, "provider_ref", {
			"SELECT o.{payments.created_at} AS at,"
			" 'another payment with this provider_ref'::text AS what,"
			" o.{payments.id} AS id, o.{payments.booking_id} AS booking_id,"
			" o.{payments.status}::text AS status"
			"[, o.{payments.provider}::text AS provider],"
			" o.{payments.provider_ref}::text AS provider_ref"
			"[, o.{payments.amount}::int8 AS amount]"
			" FROM {payments} p JOIN {payments} o"
			" ON o.{payments.provider_ref} = p.{payments.provider_ref}"
			"[ AND (o.{payments.provider} = p.{payments.provider}"
			" OR (o.{payments.provider} IS NULL"
			" AND p.{payments.provider} IS NULL))]"
			" WHERE p.{payments.id} = ANY (" PAYMENTS ")"
			" AND o.{payments.id} <> ALL (" PAYMENTS ")"
			" AND " PAYMENT_REF_IS_REAL("p") " AND " PAYMENT_REF_IS_REAL("o")
			" ORDER BY o.{payments.id}",
			CASE_ARGS
	}},
	{"audit_logs", false, NULL, {
			"SELECT a.{audit_logs.created_at} AS at,"
			" a.{audit_logs.action}::text AS what,"
			" a.{audit_logs.entity_type}::text AS entity,"
			" a.{audit_logs.entity_id} AS entity_id"
			"[, a.{audit_logs.actor_id} AS actor_id]"
			"[, a.{audit_logs.actor_role}::text AS actor_role]"
			"[, a.{audit_logs.severity}::text AS severity]"
			"[, a.{audit_logs.description}::text AS description]"
			"[, a.{audit_logs.old_data} AS old_data]"
			"[, a.{audit_logs.new_data} AS new_data]"
			"[, a.{audit_logs.metadata} AS metadata]"
			"[, a.{audit_logs.ip_address}::text AS ip_address]"
			"[, a.{audit_logs.user_agent}::text AS user_agent]"
			" FROM {audit_logs} a WHERE "
			ABOUT_CASE("a.{audit_logs.entity_type}", "a.{audit_logs.entity_id}",
					   "a.{audit_logs.created_at}"),
			CASE_ARGS
	}},
	{"payment_audit_logs", false, NULL, {
			"SELECT [{?payment_audit_logs.created_at}"
			"l.{payment_audit_logs.created_at} AS at, ]"
			"l.{payment_audit_logs.action}::text AS what,"
			" l.{payment_audit_logs.payment_id} AS payment_id"
			"[, l.{payment_audit_logs.from_status}::text AS from_status]"
			"[, l.{payment_audit_logs.to_status}::text AS to_status],"
			" l.{payment_audit_logs.actor_type}::text AS actor_type"
			"[, l.{payment_audit_logs.actor_id} AS actor_id]"
			"[, l.{payment_audit_logs.reason}::text AS reason]"
			"[, l.{payment_audit_logs.metadata} AS metadata]"
			" FROM {payment_audit_logs} l"
			" WHERE l.{payment_audit_logs.payment_id} = ANY (" PAYMENTS ")",
			CASE_ARGS
	}},
	{"booking_lifecycle_audit", false, NULL, {
			"SELECT l.{booking_lifecycle_audit.created_at} AS at,"
			" l.{booking_lifecycle_audit.action_type}::text AS what,"
			" l.{booking_lifecycle_audit.actor_type}::text AS actor_type,"
			" l.{booking_lifecycle_audit.old_slot_id} AS old_slot_id"
			"[, l.{booking_lifecycle_audit.new_slot_id} AS new_slot_id]"
			" FROM {booking_lifecycle_audit} l"
			" WHERE l.{booking_lifecycle_audit.booking_id} = " BOOKING,
			CASE_ARGS
	}},
	{"idempotency_keys", false, "result_id", {
			"SELECT [{?idempotency_keys.created_at}"
			"k.{idempotency_keys.created_at} AS at, ]"
			"'answers a request'::text AS what,"
			" k.{idempotency_keys.result_id} AS entity_id,"
			" k.{idempotency_keys.resource_type}::text AS resource_type,"
			" k.{idempotency_keys.key}::text AS key"
			"[, k.{idempotency_keys.expires_at} AS expires_at]"
			" FROM {idempotency_keys} k"
			" WHERE k.{idempotency_keys.result_id} = ANY (" ALL_IDS ")"
			" ORDER BY k.{idempotency_keys.resource_type},"
			" k.{idempotency_keys.key}",
			CASE_ARGS
	}},
	{"payment_refund", true, NULL, {
			"SELECT r.at AS at, CASE WHEN r.refund_ref = ''"
			" THEN 'refunds told, in all'::text"
			" ELSE 'refund told'::text END AS what,"
			" r.payment_id AS payment_id, r.amount AS amount,"
			" r.refund_ref AS refund_ref FROM cusown_ops.payment_refund r"
			" WHERE r.app_schema = " APP_SCHEMA
			" AND r.payment_id = ANY (" PAYMENTS ") ORDER BY r.refund_ref",
			CASE_ARGS
	}},
	{"webhook_inbox", true, NULL, {
			"SELECT i.received_at AS at, i.event_type AS what, i.id AS id,"
			" i.payment_id AS payment_id, i.provider AS provider,"
			" i.event AS event, i.outcome AS outcome, i.detail AS finding,"
			" i.provider_ref AS provider_ref, i.order_ref AS order_id,"
			" i.transaction_ref AS transaction_id, i.amount AS amount,"
			" i.currency AS currency, i.refunded AS refunded"
			" FROM cusown_ops.webhook_inbox i WHERE i.app_schema = " APP_SCHEMA
			" AND i.payment_id = ANY (" PAYMENTS ") ORDER BY i.id",
			CASE_ARGS
	}},
	{"attention", true, NULL, {
			"SELECT a.first_seen AS at, a.kind AS what, a.id AS id,"
			" a.entity AS entity, a.entity_id AS entity_id,"
			" a.finding AS finding, a.runbook AS runbook,"
			" a.sqlstate AS sqlstate, a.times AS times,"
			" a.last_seen AS last_seen, a.closed_at AS closed_at,"
			" a.closed_by AS closed_by, a.note AS note"
			" FROM cusown_ops.attention a WHERE a.app_schema = " APP_SCHEMA
			" AND " ABOUT_CASE("a.entity", "a.entity_id", "a.first_seen")
			" ORDER BY a.id",
			CASE_ARGS
	}},
	/* moments that a row remembers beside its creation */
	{"payments", false, "verified_at", {
			"SELECT p.{payments.verified_at} AS at, 'verified'::text AS what,"
			" p.{payments.id} AS id"
			"[, p.{payments.verification_method}::text AS verification_method]"
			"[, p.{payments.verified_by} AS verified_by]"
			" FROM {payments} p WHERE p.{payments.id} = ANY (" PAYMENTS ")"
			" AND p.{payments.verified_at} IS NOT NULL"
			" ORDER BY p.{payments.id}",
			CASE_ARGS
	}},
	{"payments", false, "refunded_at", {
			"SELECT p.{payments.refunded_at} AS at, 'refunded'::text AS what,"
			" p.{payments.id} AS id"
			"[, p.{payments.refund_amount}::int8 AS refund_amount]"
			"[, p.{payments.refunded_by} AS refunded_by]"
			"[, p.{payments.refund_reason}::text AS refund_reason]"
			" FROM {payments} p WHERE p.{payments.id} = ANY (" PAYMENTS ")"
			" AND p.{payments.refunded_at} IS NOT NULL"
			" ORDER BY p.{payments.id}",
			CASE_ARGS
	}},
	{"bookings", false, "cancelled_at", {
			"SELECT b.{bookings.cancelled_at} AS at, 'cancelled'::text AS what,"
			" b.{bookings.id} AS id"
			"[, b.{bookings.cancelled_by}::text AS cancelled_by]"
			"[, b.{bookings.cancellation_reason}::text AS cancellation_reason]"
			" FROM {bookings} b WHERE b.{bookings.id} = " BOOKING
			" AND b.{bookings.cancelled_at} IS NOT NULL",
			CASE_ARGS
	}},
	{"bookings", false, "no_show_marked_at", {
			"SELECT b.{bookings.no_show_marked_at} AS at,"
			" 'no-show marked'::text AS what, b.{bookings.id} AS id"
			"[, b.{bookings.no_show_marked_by}::text AS no_show_marked_by]"
			" FROM {bookings} b WHERE b.{bookings.id} = " BOOKING
			" AND b.{bookings.no_show_marked_at} IS NOT NULL",
			CASE_ARGS
	}},
	{"slots", false, "reserved_until", {
			"SELECT s.{slots.reserved_until} AS at, 'hold ends'::text AS what,"
			" s.{slots.id} AS id FROM {slots} s WHERE s.{slots.id} = " SLOT
			" AND s.{slots.reserved_until} IS NOT NULL",
			CASE_ARGS
	}},
};

/* ---------- detail ---------- */

static bool
is_listed(const char *name, const char *const *names)
{
	for (; *names != NULL; names++)
	{
		if (strcmp(name, *names) == 0)
			return true;
	}
	return false;
}

/* whether everybody who may see the case may see this column of a fact */
static bool
is_harmless(const char *name, Oid type)
{
	switch (type)
	{
		case TEXTOID:
			return is_listed(name, harmless_texts);
		case JSONBOID:
			/* of which there are only harmless members */
		case UUIDOID:
		case BOOLOID:
		case INT4OID:
		case INT8OID:
		case DATEOID:
		case TIMEOID:
		case TIMESTAMPTZOID:
			return true;
		default:
			return false;
	}
}

static void
append_key(StringInfo json, const char *key)
{
	appendStringInfoString(json, json->len > 1 ? ", " : "");
	escape_json(json, key);
	appendStringInfoString(json, ": ");
}

/* false for what is no number, text or truth value */
static bool
append_scalar(StringInfo json, const char *key, const JsonbValue *value)
{
	if (value->type != jbvString && value->type != jbvNumeric &&
		value->type != jbvBool)
		return false;
	append_key(json, key);
	if (value->type == jbvString)
		escape_json(json, pnstrdup(value->val.string.val,
								   value->val.string.len));
	else if (value->type == jbvNumeric)
		appendStringInfoString(json,
							   DatumGetCString(DirectFunctionCall1(numeric_out,
																   NumericGetDatum(value->val.numeric))));
	else
		appendStringInfoString(json, value->val.boolean ? "true" : "false");
	return true;
}

/* the application's JSON, wholly or its harmless members; false for none */
static bool
append_json(const Case *call, StringInfo json, const char *key,
			const Jsonb *value)
{
	StringInfoData members;
	bool		any = false;

	if (call->personal)
	{
		append_key(json, key);
		JsonbToCString(json, (JsonbContainer *) &value->root, VARSIZE(value));
		return true;
	}
	initStringInfo(&members);
	appendStringInfoChar(&members, '{');
	for (const char *const *name = harmless_members;
		 JB_ROOT_IS_OBJECT(value) && *name != NULL; name++)
	{
		const JsonbValue *member;

		member = getKeyJsonValueFromContainer((JsonbContainer *) &value->root,
											  *name, strlen(*name), NULL);
		if (member != NULL && append_scalar(&members, *name, member))
			any = true;
	}
	if (!any)
		return false;
	append_key(json, key);
	appendStringInfo(json, "%s}", members.data);
	return true;
}

/* as every session sees it: absolute times are in UTC */
static char *
time_text(Datum value, Oid type)
{
	char		buffer[MAXDATELEN + 1];
	int			utc = 0;

	JsonEncodeDateTime(buffer, value, type,
					   type == TIMESTAMPTZOID ? &utc : NULL);
	return pstrdup(buffer);
}

static void
append_value(const Case *call, StringInfo json, const char *key, Datum value,
			 Oid type)
{
	Oid			output;
	bool		is_varlena;

	if (type == JSONBOID)
	{
		append_json(call, json, key, DatumGetJsonbP(value));
		return;
	}
	append_key(json, key);
	getTypeOutputInfo(type, &output, &is_varlena);
	if (type == BOOLOID)
		appendStringInfoString(json, DatumGetBool(value) ? "true" : "false");
	else if (type == INT4OID || type == INT8OID)
		appendStringInfoString(json, OidOutputFunctionCall(output, value));
	else if (type == TIMESTAMPTZOID || type == DATEOID || type == TIMEOID)
		escape_json(json, time_text(value, type));
	else
		escape_json(json, OidOutputFunctionCall(output, value));
}

static bool
is_detail(const char *name)
{
	return strcmp(name, "at") != 0 && strcmp(name, "what") != 0;
}

static Datum
detail_of(const Case *call, const StreamedRow *row)
{
	StringInfoData json;

	initStringInfo(&json);
	appendStringInfoChar(&json, '{');
	for (int i = 0; i < row->desc->natts; i++)
	{
		Form_pg_attribute column = TupleDescAttr(row->desc, i);
		const char *name = NameStr(column->attname);
		bool		isnull;
		Datum		value = slot_getattr(row->slot, i + 1, &isnull);

		if (!isnull && is_detail(name) &&
			(call->personal || is_harmless(name, column->atttypid)))
			append_value(call, &json, name, value, column->atttypid);
	}
	appendStringInfoChar(&json, '}');
	return DirectFunctionCall1(jsonb_in, CStringGetDatum(json.data));
}

/* ---------- facts, sorted ---------- */

static TupleDesc
sorted_columns(void)
{
	TupleDesc	desc = CreateTemplateTupleDesc(FACT_COLUMNS);

	TupleDescInitEntry(desc, FACT_AT + 1, "at", TIMESTAMPTZOID, -1, 0);
	TupleDescInitEntry(desc, FACT_NUMBER + 1, "number", INT8OID, -1, 0);
	TupleDescInitEntry(desc, FACT_SOURCE + 1, "source", TEXTOID, -1, 0);
	TupleDescInitEntry(desc, FACT_WHAT + 1, "what", TEXTOID, -1, 0);
	TupleDescInitEntry(desc, FACT_DETAIL + 1, "detail", JSONBOID, -1, 0);
	return desc;
}

static void
begin_sort(Case *call)
{
	TupleDesc	desc = sorted_columns();
	AttrNumber	columns[] = {FACT_AT + 1, FACT_NUMBER + 1};
	Oid			operators[] = {
		lookup_type_cache(TIMESTAMPTZOID, TYPECACHE_LT_OPR)->lt_opr,
		lookup_type_cache(INT8OID, TYPECACHE_LT_OPR)->lt_opr
	};
	Oid			collations[] = {InvalidOid, InvalidOid};
	bool		nulls_first[] = {false, false};

	call->sort = tuplesort_begin_heap(desc, lengthof(columns), columns,
									  operators, collations, nulls_first,
									  work_mem, NULL, 0);
	call->slot_in = MakeSingleTupleTableSlot(desc, &TTSOpsVirtual);
}

static void
put_fact(Case *call, Datum at, bool no_time, Datum what, bool no_what,
		 Datum detail)
{
	TupleTableSlot *slot = call->slot_in;

	ExecClearTuple(slot);
	memset(slot->tts_isnull, 0, FACT_COLUMNS * sizeof(bool));
	slot->tts_values[FACT_AT] = at;
	slot->tts_isnull[FACT_AT] = no_time;
	slot->tts_values[FACT_NUMBER] = Int64GetDatum(call->number++);
	slot->tts_values[FACT_SOURCE] = CStringGetTextDatum(call->source->name);
	slot->tts_values[FACT_WHAT] = what;
	slot->tts_isnull[FACT_WHAT] = no_what;
	slot->tts_values[FACT_DETAIL] = detail;
	ExecStoreVirtualTuple(slot);
	tuplesort_puttupleslot(call->sort, slot);
	ExecClearTuple(slot);
}

/* TemplateRow */
static void
put_row(const StreamedRow *row, void *state)
{
	Case	   *call = state;
	MemoryContext caller = MemoryContextSwitchTo(call->fact_context);
	bool		no_time;
	bool		no_what;
	Datum		at = template_attribute(row, "at", &no_time);
	Datum		what = template_attribute(row, "what", &no_what);

	CHECK_FOR_INTERRUPTS();
	put_fact(call, at, no_time, what, no_what, detail_of(call, row));
	MemoryContextSwitchTo(caller);
	MemoryContextReset(call->fact_context);
}

/* what is not seen must not pass for what has not happened */
static void
put_hidden(Case *call)
{
	Datum		what = CStringGetTextDatum("row-level security may hide rows");

	put_fact(call, (Datum) 0, true, what, false,
			 DirectFunctionCall1(jsonb_in, CStringGetDatum("{}")));
}

static void
return_sorted(Case *call)
{
	TupleTableSlot *slot = MakeSingleTupleTableSlot(call->slot_in->tts_tupleDescriptor,
													&TTSOpsMinimalTuple);

	tuplesort_performsort(call->sort);
	while (tuplesort_gettupleslot(call->sort, true, false, slot, NULL))
	{
		Datum		values[4];
		bool		nulls[4];
		static const int columns[] = {
			FACT_AT, FACT_SOURCE, FACT_WHAT, FACT_DETAIL
		};

		slot_getallattrs(slot);
		for (int i = 0; i < lengthof(columns); i++)
		{
			values[i] = slot->tts_values[columns[i]];
			nulls[i] = slot->tts_isnull[columns[i]];
		}
		tuplestore_putvalues(call->result->setResult, call->result->setDesc,
							 values, nulls);
	}
	ExecDropSingleTupleTableSlot(slot);
	ExecDropSingleTupleTableSlot(call->slot_in);
	tuplesort_end(call->sort);
}

/* ---------- the case ---------- */

pg_noreturn static void
not_found(const Case *call)
{
	if (verb_is_blinded(call->binding, "payments") ||
		verb_is_blinded(call->binding, "bookings"))
		ereport(ERROR,
				(errcode(ERRCODE_CUSOWN_NOT_FOUND),
				 errmsg("no payment or booking has the id %s, or row-level security hides it",
						verb_uuid_text(&call->id))));
	ereport(ERROR,
			(errcode(ERRCODE_CUSOWN_NOT_FOUND),
			 errmsg("no payment or booking has the id %s",
					verb_uuid_text(&call->id))));
}

/* false where the id is no payment's */
static bool
look_up_payment(Case *call)
{
	Datum		values[1];
	bool		found;

	if (binding_relation(call->binding, "payments") == NULL)
		return false;
	values[0] = UUIDPGetDatum(&call->id);
	found = template_execute(call->binding, &find_payment, values, NULL,
							 true) > 0;
	if (found)
	{
		uuid_list_append(&call->payments, &call->id);
		call->has_booking = template_uuid(0, "booking_id", &call->booking);
	}
	SPI_freetuptable(SPI_tuptable);
	return found;
}

/* false where it does not exist, or cannot be seen */
static bool
look_up_booking(Case *call)
{
	Datum		values[1];
	bool		found;
	bool		isnull;
	Datum		created_at;

	values[0] = UUIDPGetDatum(&call->booking);
	found = template_execute(call->binding, &find_booking, values, NULL,
							 true) > 0;
	if (found)
	{
		call->has_slot = template_uuid(0, "slot_id", &call->slot);
		created_at = template_column(0, "created_at", &isnull);
		if (!isnull)
			call->since = DatumGetTimestampTz(created_at);
	}
	SPI_freetuptable(SPI_tuptable);
	return found;
}

/* its attempts, all of them */
static void
look_up_payments(Case *call)
{
	Datum		values[1];
	uint64		rows;

	if (binding_relation(call->binding, "payments") == NULL)
		return;
	values[0] = UUIDPGetDatum(&call->booking);
	rows = template_execute(call->binding, &payments_of_booking, values, NULL,
							true);
	call->payments.count = 0;
	uuid_list_append_column(&call->payments, rows, "id");
	SPI_freetuptable(SPI_tuptable);
	uuid_list_sort(&call->payments);
}

static void
look_up(Case *call)
{
	bool		is_payment = look_up_payment(call);

	TIMESTAMP_NOBEGIN(call->since);
	if (!is_payment)
	{
		call->booking = call->id;
		call->has_booking = true;
	}
	if (call->has_booking)
	{
		if (!look_up_booking(call) && !is_payment)
			not_found(call);
		look_up_payments(call);
		uuid_list_append(&call->ids, &call->booking);
	}
	if (call->has_slot)
		uuid_list_append(&call->ids, &call->slot);
	for (int i = 0; i < call->payments.count; i++)
		uuid_list_append(&call->ids, &call->payments.items[i]);
}

static bool
has_source(const Case *call, const FactSource *source)
{
	if (source->is_ours)
		return true;
	if (source->needed != NULL)
		return binding_column(call->binding, source->name,
							  source->needed) != NULL;
	return binding_relation(call->binding, source->name) != NULL;
}

static void
read_source(Case *call)
{
	Datum		values[6];
	char		nulls[] = "      ";

	values[0] = UUIDPGetDatum(&call->booking);
	nulls[0] = call->has_booking ? ' ' : 'n';
	values[1] = uuid_list_datum(&call->payments);
	values[2] = UUIDPGetDatum(&call->slot);
	nulls[2] = call->has_slot ? ' ' : 'n';
	values[3] = TimestampTzGetDatum(call->since);
	values[4] = uuid_list_datum(&call->ids);
	values[5] = template_name(call->binding->app_schema);
	template_stream(call->source->is_ours ? NULL : call->binding,
					&call->source->statement, values, nulls, true, put_row,
					call);
	/* said once of a relation: its other facts are of the same row */
	if (!call->source->is_ours && call->source->needed == NULL &&
		verb_is_blinded(call->binding, call->source->name))
		put_hidden(call);
}

static void
check_personal(void)
{
	bool		may;

	template_execute(NULL, &may_read_personal_data, NULL, NULL, true);
	may = template_bool(0, "may");
	SPI_freetuptable(SPI_tuptable);
	if (!may)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for personal data"),
				 errhint("Call it without with_personal_data, or as a role that cusown_grant() gave the profile operator.")));
}

static void
facts_body(void *state)
{
	Case	   *call = state;

	if (call->personal)
		check_personal();
	call->binding = binding_use(relations_read);
	look_up(call);
	call->fact_context = AllocSetContextCreate(CurrentMemoryContext,
											   "cusown_ops fact",
											   ALLOCSET_DEFAULT_SIZES);
	begin_sort(call);
	for (int i = 0; i < lengthof(sources); i++)
	{
		call->source = &sources[i];
		if (has_source(call, call->source))
			read_source(call);
	}
	return_sorted(call);
}

/*
 * cusown_payment_facts(id uuid, with_personal_data boolean DEFAULT false,
 *		OUT at timestamptz, OUT source text, OUT what text, OUT detail jsonb)
 *		RETURNS SETOF record
 *
 * What is known of a payment or a booking, in the order of time, what has no
 * time last.  Writes and locks nothing.
 *
 * Errors: UO002 neither a payment nor a booking, or row-level security hides it;
 * UO001 no application attached; 42501 personal data asked for by who may not;
 * 22004 an argument is null.
 *
 * Source: runbook "Payment Mismatch", step 1.
 */
Datum
cusown_payment_facts(PG_FUNCTION_ARGS)
{
	Case		call = {0};

	verb_check_not_null(fcinfo, 0, "id");
	verb_check_not_null(fcinfo, 1, "with_personal_data");
	call.id = *PG_GETARG_UUID_P(0);
	call.personal = PG_GETARG_BOOL(1);
	InitMaterializedSRF(fcinfo, 0);
	call.result = (ReturnSetInfo *) fcinfo->resultinfo;
	verb_run(facts_body, &call, false);
	return (Datum) 0;
}
