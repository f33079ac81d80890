/*-------------------------------------------------------------------------
 *
 * payment.c
 *	  What happens to one payment: cusown_payment_transition().
 *
 * The payment is locked, the state machine is asked where the event leads, and
 * the payment and its audit rows are changed by one statement.  Its booking and
 * slot stay as they are, whatever happens: confirming is another verb's.
 *
 * A refund of a payment that is not completed yet says that it was: two steps,
 * each with audit rows of its own.  What was failed or expired becomes completed
 * only with evidence (payment_evidence.c); what refunds add up to is told by
 * payment_refund.c.
 *
 * The application's audit table allows no action for a payment that expires or
 * is being processed: that is told to payment_audit_logs alone, and where there
 * is none, as data_corrected.
 *
 * Locking protocol: interactive verbs wait.  The payment is locked FOR UPDATE;
 * then, when it becomes completed, its booking FOR NO KEY UPDATE: whoever is
 * cancelling that, or paying for it by another payment, is waited for, so that
 * neither money for nothing nor money that came twice is overlooked.  A worklist
 * row is written under the payment's lock.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/timestamp.h"

#include "attention.h"
#include "audit.h"
#include "change.h"
#include "compat.h"
#include "errors.h"
#include "guard.h"
#include "payment.h"
#include "state_machine.h"
#include "template.h"
#include "uuid_list.h"
#include "verb.h"

#define PAYMENT_VERB "payment_transition"

/* a verified refund takes two */
#define MAX_STEPS 2

/* one change of status */
typedef struct Step
{
	const char *event;
	PaymentStatus from;
	PaymentStatus to;
} Step;

static const AttentionKind paid_cancelled = {
	"paid_cancelled", ENTITY_PAYMENT, "payment_mismatch"
};

static const char *const relations_used[] = {
	"payments", "payment_audit_logs", "bookings", "audit_logs", NULL
};

PG_FUNCTION_INFO_V1(cusown_payment_transition);

pg_noreturn static void not_allowed(const PaymentCall *call);

/* ---------- statements ---------- */

static const Template lock_payment = {
	"SELECT p.{payments.status}::text AS status,"
	" p.{payments.booking_id} AS booking_id"
	"[, p.{payments.provider_ref}::text AS provider_ref]"
	"[, p.{payments.amount}::int8 AS amount]"
	"[, p.{payments.currency}::text AS currency]"
	"[, p.{payments.refund_amount}::int8 AS refunded]"
	" FROM {payments} p WHERE p.{payments.id} = $1 FOR UPDATE",
	1, {UUIDOID},.planned_once = true
};

static const Template lock_booking = {
	"SELECT b.{bookings.status}::text AS status FROM {bookings} b"
	" WHERE b.{bookings.id} = $1 FOR NO KEY UPDATE",
	1, {UUIDOID},.planned_once = true
};

static const Template still_paid_for_nothing = {
	"SELECT p.{payments.id} AS id FROM {payments} p"
	" JOIN {bookings} b ON b.{bookings.id} = p.{payments.booking_id}"
	" WHERE p.{payments.id} = ANY ($1) AND p.{payments.status} = 'completed'"
	" AND (b.{bookings.status} = 'cancelled'"
	" OR b.{bookings.status} = 'rejected')",
	1, {UUIDARRAYOID}
};

/*
 * A step: $1 payment, $2 the status that it has, $3 the one that it gets, $4
 * actor, $5 reason, $6 provider_ref, $7 metadata, $8 action of the audit row, $9
 * what the actor is, $10 how it was verified, or what is refunded, $11 hash of a
 * webhook's body and $12 its signature.  A trigger that turns the status elsewhere
 * leaves it without audit rows, and us with an error.
 */
#define CHANGE_PAYMENT(columns) \
	"WITH changed AS (UPDATE {payments} p SET" \
	" {payments.status} := CAST ($3 AS {^payments.status})" columns \
	"[, {payments.updated_at} := pg_catalog.now()]" \
	"[, {payments.webhook_payload_hash} :=" \
	" coalesce($11, p.{payments.webhook_payload_hash})]" \
	"[, {payments.webhook_signature} :=" \
	" coalesce($12, p.{payments.webhook_signature})]" \
	"[, {payments.webhook_received_at} := CASE WHEN $11 IS NOT NULL" \
	" THEN pg_catalog.now() ELSE p.{payments.webhook_received_at} END]" \
	" WHERE p.{payments.id} = $1 AND p.{payments.status}::text = $2" \
	" RETURNING p.{payments.id} AS id, p.{payments.status}::text AS status)"

#define WITH_PROVIDER_REF \
	"[, {payments.provider_ref} := coalesce($6, p.{payments.provider_ref})]"

#define WRITE_LOG \
	" INSERT INTO {payment_audit_logs} ({payment_audit_logs.payment_id}," \
	" {payment_audit_logs.actor_type}, {payment_audit_logs.action}" \
	"[, {payment_audit_logs.actor_id}][, {payment_audit_logs.from_status}]" \
	"[, {payment_audit_logs.to_status}][, {payment_audit_logs.reason}]" \
	"[, {payment_audit_logs.metadata}][, {payment_audit_logs.created_at}])" \
	" SELECT c.id, CAST ($9 AS {^payment_audit_logs.actor_type}), $3" \
	"[{?payment_audit_logs.actor_id}, $4]" \
	"[, CAST ($2 AS {^payment_audit_logs.from_status})]" \
	"[, CAST ($3 AS {^payment_audit_logs.to_status})]" \
	"[{?payment_audit_logs.reason}, $5]" \
	"[{?payment_audit_logs.metadata}, $7]" \
	"[{?payment_audit_logs.created_at}, pg_catalog.clock_timestamp()]" \
	" FROM changed c WHERE c.status = $3" \
	" RETURNING {payment_audit_logs.payment_id} AS id"

#define WRITE_LOG_AND_AUDIT \
	"[, logged AS (" WRITE_LOG ")]," \
	" audit_row (" AUDIT_ROW ", actor) AS (SELECT $8, 'payment'::text, c.id," \
	" pg_catalog.jsonb_build_object('status', $2)," \
	" pg_catalog.jsonb_build_object('status', $3), $7," \
	" 'payment '::text || $3, $4 FROM changed c" \
	"[{?payment_audit_logs} JOIN logged l ON l.id = c.id]" \
	" WHERE c.status = $3)" \
	AUDIT_INSERT_AS("$9", "[, {audit_logs.actor_id}]", \
					"[{?audit_logs.actor_id}, r.actor]")

#define STEP_ARGS(last) \
	12, {UUIDOID, TEXTOID, TEXTOID, UUIDOID, TEXTOID, TEXTOID, JSONBOID, TEXTOID, TEXTOID, last, TEXTOID, TEXTOID}, .planned_once = true

static const Template complete = {
	CHANGE_PAYMENT("[, {payments.verified_at} := pg_catalog.now()]"
				   "[, {payments.verified_by} := $4]"
				   "[, {payments.verification_method} :="
				   " CAST ($10 AS {^payments.verification_method})]"
				   WITH_PROVIDER_REF)
	WRITE_LOG_AND_AUDIT,
	STEP_ARGS(TEXTOID)
};

static const Template fail = {
	CHANGE_PAYMENT("[, {payments.failure_reason} := $5]"
				   "[, {payments.attempt_count} :="
				   " (coalesce(p.{payments.attempt_count}, 0) + 1)]"
				   WITH_PROVIDER_REF)
	WRITE_LOG_AND_AUDIT,
	STEP_ARGS(TEXTOID)
};

static const Template refund = {
	CHANGE_PAYMENT("[, {payments.refund_amount} :="
				   " coalesce($10, p.{payments.refund_amount})]"
				   "[, {payments.refund_reason} :="
				   " coalesce($5, p.{payments.refund_reason})]"
				   "[, {payments.refunded_at} := pg_catalog.now()]"
				   "[, {payments.refunded_by} := $4]")
	WRITE_LOG_AND_AUDIT,
	STEP_ARGS(INT8OID)
};

static const Template move = {
	CHANGE_PAYMENT(WITH_PROVIDER_REF) WRITE_LOG,
	STEP_ARGS(TEXTOID)
};

static const Template move_and_audit = {
	CHANGE_PAYMENT(WITH_PROVIDER_REF) WRITE_LOG_AND_AUDIT,
	STEP_ARGS(TEXTOID)
};

/* the status stays; $2 is bound, or there would be nothing to keep */
static const Template keep_reference = {
	"UPDATE {payments} p SET {payments.provider_ref} := $2"
	"[, {payments.updated_at} := pg_catalog.now()]"
	" WHERE p.{payments.id} = $1",
	2, {UUIDOID, TEXTOID},.planned_once = true
};

/* how a status is reached */
typedef struct Way
{
	const char *status;
	const char *action;			/* of the audit row */
	const Template *change;
} Way;

static const Way ways[] = {
	{"completed", "payment_succeeded", &complete},
	{"failed", "payment_failed", &fail},
	{"partially_refunded", "payment_refunded", &refund},
	{"refunded", "payment_refunded", &refund},
	{"initiated", NULL, &move},
	{"pending", NULL, &move},
	{"processing", NULL, &move},
	{"expired", NULL, &move},
};

static const Way move_without_log = {NULL, "data_corrected", &move_and_audit};

static bool
is_status(const PaymentStatus *status, const char *name)
{
	return strcmp(status->text, name) == 0;
}

/* of a longer one, which no machine knows, whole characters */
static void
set_status(PaymentStatus *status, const char *name)
{
	int			length = 0;

	if (name != NULL)
		length = pg_mbcliplen(name, strlen(name), sizeof(status->text) - 1);
	memcpy(status->text, name == NULL ? "" : name, length);
	status->text[length] = '\0';
}

/* ---------- what is refused ---------- */

static void
not_allowed(const PaymentCall *call)
{
	ereport(ERROR,
			(errcode(ERRCODE_CUSOWN_TRANSITION),
			 errmsg("event \"%s\" is not allowed for payment %s, which is %s",
					call->event, verb_uuid_text(&call->id),
					is_status(&call->status, "") ? "without a status" :
					call->status.text),
			 errhint("The view cusown_ops.state_machine shows what is allowed.")));
}

static const Way *
way_to(const PaymentCall *call, const char *event, const char *status)
{
	for (int i = 0; i < lengthof(ways); i++)
	{
		if (strcmp(ways[i].status, status) != 0)
			continue;
		if (ways[i].action == NULL &&
			binding_relation(call->binding, "payment_audit_logs") == NULL)
			return &move_without_log;
		return &ways[i];
	}
	ereport(ERROR,
			(errcode(ERRCODE_CUSOWN_TRANSITION),
			 errmsg("event \"%s\" leads to status \"%s\", which payments do not have",
					event, status),
			 errhint("Correct it in cusown_ops.state_transition.")));
}

/* ---------- what stands there ---------- */

static int64
read_amount(const char *column, bool *found)
{
	bool		isnull;
	Datum		value = template_column(0, column, &isnull);

	*found = !isnull;
	return isnull ? 0 : DatumGetInt64(value);
}

/* waits for the payment; a row that we have waited for is read as it is now */
void
payment_lock(PaymentCall *call)
{
	Datum		values[1];
	bool		found;

	values[0] = UUIDPGetDatum(&call->id);
	if (template_execute(call->binding, &lock_payment, values, NULL, false) == 0)
	{
		verb_check_visible(call->binding, "payments", &call->id);
		ereport(ERROR,
				(errcode(ERRCODE_CUSOWN_NOT_FOUND),
				 errmsg("payment %s does not exist", verb_uuid_text(&call->id))));
	}
	set_status(&call->status, template_text(0, "status"));
	call->from_status = call->status;
	call->has_booking = template_uuid(0, "booking_id", &call->booking_id);
	call->old_provider_ref = template_text(0, "provider_ref");
	call->amount = read_amount("amount", &call->has_amount);
	call->currency = template_text(0, "currency");
	call->refunded = read_amount("refunded", &found);
	SPI_freetuptable(SPI_tuptable);
}

/* ---------- the worklist ---------- */

/* AttentionStillThere */
static void
still_there(Binding *binding, const AttentionKind *kind, const UuidList *ids,
			UuidList *there)
{
	if (binding_relation(binding, "payments") != NULL)
		template_ids(binding, &still_paid_for_nothing, ids, there);
}

void
payment_recheck_cancelled(Binding *binding)
{
	attention_recheck(binding, &paid_cancelled, still_there);
}

/* the status of a booking that will not take place, or NULL; locks it */
static char *
lock_lost_booking(PaymentCall *call)
{
	Datum		values[1];
	char	   *status = NULL;

	if (!call->has_booking)
		return NULL;
	values[0] = UUIDPGetDatum(&call->booking_id);
	if (template_execute(call->binding, &lock_booking, values, NULL, false) > 0)
		status = template_text(0, "status");
	SPI_freetuptable(SPI_tuptable);
	if (status != NULL && strcmp(status, "cancelled") != 0 &&
		strcmp(status, "rejected") != 0)
		return NULL;
	return status;
}

static void
open_paid_cancelled(PaymentCall *call, const char *booking_status)
{
	AttentionItem item = {call->id};

	item.finding = psprintf("booking %s is %s",
							verb_uuid_text(&call->booking_id), booking_status);
	attention_open(call->binding, &paid_cancelled, &item, 1);
}

/*
 * Of this payment only: whoever calls us may not see the others.  Those are
 * rechecked by cusown_expire_payments() and its job.
 */
static void
close_paid_cancelled(PaymentCall *call)
{
	UuidList	ids = {0};

	uuid_list_append(&ids, &call->id);
	attention_close(call->binding, &paid_cancelled, &ids);
}

/* ---------- a step ---------- */

static void
append_pair(StringInfo json, const char *key, const char *value)
{
	if (value == NULL)
		return;
	appendStringInfo(json, ", \"%s\": ", key);
	escape_json(json, value);
}

/* the numbers of a refund, with what has been refunded by then */
static void
append_refund(StringInfo json, const PaymentCall *call)
{
	append_pair(json, "refund_ref", call->refund_ref);
	if (call->has_refund_amount)
		appendStringInfo(json, ", \"refund_amount\": " INT64_FORMAT,
						 call->refund_amount);
	if (call->has_total)
		appendStringInfo(json, ", \"refunded\": " INT64_FORMAT, call->total);
}

static void
append_evidence(StringInfo json, const PaymentCall *call)
{
	if (call->inbox_id != 0)
		appendStringInfo(json, ", \"evidence\": {\"webhook_inbox_id\": " INT64_FORMAT "}",
						 call->inbox_id);
	else if (call->evidence != NULL)
		appendStringInfo(json, ", \"evidence\": %s",
						 JsonbToCString(NULL, &call->evidence->root,
										VARSIZE(call->evidence)));
}

static Datum
metadata_of(const PaymentCall *call, const Step *step)
{
	StringInfoData json;

	initStringInfo(&json);
	appendStringInfo(&json, "{\"source\": \"%s\"", call->source);
	append_pair(&json, "actor", call->actor_type);
	append_pair(&json, "event", step->event);
	append_pair(&json, "from", step->from.text);
	append_pair(&json, "to", step->to.text);
	append_pair(&json, "reason", call->reason);
	append_pair(&json, "provider_ref", call->provider_ref);
	if (payment_is_refund(step->event))
		append_refund(&json, call);
	else if (call->provider_ref != NULL)
		append_pair(&json, "old_provider_ref", call->old_provider_ref);
	append_evidence(&json, call);
	appendStringInfoChar(&json, '}');
	return DirectFunctionCall1(jsonb_in, CStringGetDatum(json.data));
}

/* payment, payment_audit_logs and audit_logs, or an error */
static void
change_rows(PaymentCall *call, const Step *step, const Way *way)
{
	Datum		values[12];
	char		nulls[] = "            ";
	UuidList	ids = {&call->id, 1, 1, true};

	values[0] = UUIDPGetDatum(&call->id);
	template_set_text(values, nulls, 2, step->from.text);
	template_set_text(values, nulls, 3, step->to.text);
	template_set_value(values, nulls, 4, call->actor != NULL,
					   UUIDPGetDatum(call->actor));
	template_set_text(values, nulls, 5, call->reason);
	template_set_text(values, nulls, 6, call->provider_ref);
	values[6] = metadata_of(call, step);
	template_set_text(values, nulls, 8, way->action);
	template_set_text(values, nulls, 9, call->actor_type);
	if (way->change == &refund)
		template_set_value(values, nulls, 10, call->has_total,
						   Int64GetDatum(call->total));
	else
		template_set_text(values, nulls, 10, call->method);
	template_set_text(values, nulls, 11, call->webhook_hash);
	template_set_text(values, nulls, 12, call->webhook_signature);
	if (guard_execute(call->binding, "payments", &ids, way->change, values,
					  nulls) != 1)
		ereport(ERROR,
				(errcode(ERRCODE_TRIGGERED_DATA_CHANGE_VIOLATION),
				 errmsg("payment %s could not be changed to status \"%s\" with its audit rows",
						verb_uuid_text(&call->id), step->to.text),
				 errhint("Look for a trigger on the payments or audit tables that redirects or drops rows.")));
	SPI_freetuptable(SPI_tuptable);
}

static void
record_step(PaymentCall *call, const Step *step, ChangeBatch *recorded)
{
	Change		change;

	change_set(&change, "payment", &call->id, NULL, step->from.text,
			   step->to.text);
	change_record(call->binding, PAYMENT_VERB, call->source, &change, 1,
				  recorded);
}

static Step
step_of(const char *event, const PaymentStatus *from, const char *to)
{
	Step		step = {event, *from};

	set_status(&step.to, to);
	return step;
}

static void
take_step(PaymentCall *call, const Step *step, ChangeBatch *recorded)
{
	change_rows(call, step, way_to(call, step->event, step->to.text));
	record_step(call, step, recorded);
	call->status = step->to;
	call->changed = true;
}

/* ---------- decisions ---------- */

/* NULL: the event is not allowed */
static const char *
target_of(const PaymentCall *call, const PaymentStatus *from,
		  const char *event)
{
	return state_machine_target(call->binding, MACHINE_PAYMENT, from->text,
								event);
}

/* by verify, or by what that becomes of what had been given up; false: neither */
static bool
decide_to_verify(const PaymentCall *call, const char *event, Step *step)
{
	const char *target = target_of(call, &call->status, event);

	if (target == NULL && strcmp(event, EVENT_VERIFY) == 0)
	{
		event = EVENT_LATE_CAPTURE;
		target = target_of(call, &call->status, event);
	}
	if (target == NULL)
		return false;
	*step = step_of(event, &call->status, target);
	return true;
}

static bool
is_verification(const char *event)
{
	return strcmp(event, EVENT_VERIFY) == 0 ||
		strcmp(event, EVENT_LATE_CAPTURE) == 0;
}

/* whether the payment stands already where the event leads */
static bool
is_there(const PaymentCall *call)
{
	const char *target = target_of(call, &call->status, call->event);

	if (target == NULL)
		return state_machine_leads_to(call->binding, MACHINE_PAYMENT,
									  call->event, call->status.text);
	return is_status(&call->status, target) &&
		(!payment_is_refund(call->event) || call->total == call->refunded);
}

/* the steps of a payment that does not stand there; 0: it is not allowed */
static int
decide(const PaymentCall *call, Step *steps)
{
	PaymentStatus from = call->status;
	const char *target = target_of(call, &from, call->event);
	int			count = 0;

	if (is_verification(call->event))
		return decide_to_verify(call, call->event, &steps[0]) ? 1 : 0;
	if (target == NULL && payment_is_refund(call->event) &&
		!is_status(&from, "refunded") &&
		decide_to_verify(call, EVENT_VERIFY, &steps[0]))
	{
		from = steps[count++].to;
		target = target_of(call, &from, call->event);
	}
	if (target == NULL)
		return 0;
	steps[count++] = step_of(call->event, &from, target);
	return count;
}

/* a verification is always the first step */
static void
check_evidence(PaymentCall *call, const Step *steps)
{
	if (call->inbox_id == 0 && strcmp(steps[0].event, EVENT_LATE_CAPTURE) == 0)
		payment_require_evidence(call);
}

/* takes the steps, under the lock of a booking for which money comes */
static void
take_steps(PaymentCall *call, const Step *steps, int count)
{
	bool		was_completed = is_status(&call->status, "completed");
	bool		comes = is_status(&steps[0].to, "completed");
	bool		stays = is_status(&steps[count - 1].to, "completed");
	char	   *lost = comes ? lock_lost_booking(call) : NULL;
	ChangeBatch recorded = {0};

	for (int i = 0; i < count; i++)
		take_step(call, &steps[i], &recorded);
	if (!call->is_known)
		change_notify(call->binding, PAYMENT_VERB, &recorded);
	if (lost != NULL && stays)
		open_paid_cancelled(call, lost);
	else if (was_completed)
		close_paid_cancelled(call);
}

static PaymentResult
go_there(PaymentCall *call)
{
	Step		steps[MAX_STEPS];
	int			count;

	if (is_there(call))
		return PAYMENT_STAYED;
	count = decide(call, steps);
	if (count == 0)
		return PAYMENT_REFUSED;
	check_evidence(call, steps);
	take_steps(call, steps, count);
	return PAYMENT_MOVED;
}

/* moves a payment that the caller has locked */
PaymentResult
payment_take(PaymentCall *call)
{
	PaymentResult result;

	if (!payment_is_refund(call->event))
		return go_there(call);
	if (!payment_weigh_refund(call))
		return PAYMENT_STAYED;
	result = go_there(call);
	if (result != PAYMENT_REFUSED)
		payment_remember_refund(call);
	return result;
}

/* waits for the payment, and moves it; the caller is connected to SPI */
void
payment_move(PaymentCall *call)
{
	payment_lock(call);
	if (payment_take(call) == PAYMENT_REFUSED)
		not_allowed(call);
}

/* of a payment that the caller has locked: the provider's, in place of none */
void
payment_keep_reference(PaymentCall *call)
{
	Datum		values[2];
	StringInfoData metadata;

	if (binding_column(call->binding, "payments", "provider_ref") == NULL)
		return;
	values[0] = UUIDPGetDatum(&call->id);
	values[1] = CStringGetTextDatum(call->provider_ref);
	if (template_execute(call->binding, &keep_reference, values, NULL,
						 false) != 1)
		ereport(ERROR,
				(errcode(ERRCODE_TRIGGERED_DATA_CHANGE_VIOLATION),
				 errmsg("payment %s could not be given its reference",
						verb_uuid_text(&call->id)),
				 errhint("Look for a trigger on the payments table that redirects or drops rows.")));
	SPI_freetuptable(SPI_tuptable);
	initStringInfo(&metadata);
	appendStringInfo(&metadata, "{\"source\": \"%s\"", call->source);
	append_pair(&metadata, "provider_ref", call->provider_ref);
	append_pair(&metadata, "old_provider_ref", call->old_provider_ref);
	append_evidence(&metadata, call);
	appendStringInfoChar(&metadata, '}');
	audit_write(call->binding, "data_corrected", "payment", &call->id,
				metadata.data, "payment reference");
}

static void
transition_body(void *state)
{
	PaymentCall *call = state;

	call->binding = binding_use(relations_used);
	binding_require(call->binding, "payments", "id");
	payment_move(call);
}

/* ---------- the function ---------- */

static char *
text_or_null(FunctionCallInfo fcinfo, int arg)
{
	return PG_ARGISNULL(arg) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(arg));
}

/* a reference is pasted: with white space around it, it would be another one */
static char *
reference_or_null(FunctionCallInfo fcinfo, int arg, const char *name)
{
	char	   *reference = text_or_null(fcinfo, arg);

	if (reference == NULL)
		return NULL;
	reference = payment_trim(reference);
	if (reference[0] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must not be empty", name)));
	return reference;
}

static void
read_refund(FunctionCallInfo fcinfo, PaymentCall *call)
{
	call->has_refund_amount = !PG_ARGISNULL(6);
	call->refund_amount = call->has_refund_amount ? PG_GETARG_INT64(6) : 0;
	call->refund_ref = reference_or_null(fcinfo, 7, "refund_ref");
	if (!payment_is_refund(call->event) &&
		(call->has_refund_amount || call->refund_ref != NULL))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("refund_amount and refund_ref belong to a refund")));
	if (call->has_refund_amount && call->refund_amount <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("refund_amount must be greater than zero")));
	if (strcmp(call->event, EVENT_PARTIAL_REFUND) == 0)
		verb_check_not_null(fcinfo, 6, "refund_amount");
}

/*
 * cusown_payment_transition(payment uuid, event text,
 *		actor uuid DEFAULT NULL, reason text DEFAULT NULL,
 *		evidence jsonb DEFAULT NULL, provider_ref text DEFAULT NULL,
 *		refund_amount bigint DEFAULT NULL, refund_ref text DEFAULT NULL,
 *		dry_run boolean DEFAULT false, OUT payment_id uuid,
 *		OUT from_status text, OUT to_status text, OUT changed boolean)
 *
 * Moves one payment as the state machine has it.  refund_amount is in minor
 * units: with refund_ref that of this refund, which adds up; without, that of
 * all refunds so far, of which the greatest counts.
 *
 * Errors: UO003 no such transition, or no evidence; UO008 more refunded than
 * paid, or a refund told otherwise before; UO002; UO001; UO010 evidence; 22023;
 * 22004; 25006; 0A000.
 *
 * Locks: waits for the payment FOR UPDATE, and for its booking FOR NO KEY UPDATE
 * where the payment becomes completed.
 *
 * Source: runbook "Payment Mismatch", step 3.
 */
Datum
cusown_payment_transition(PG_FUNCTION_ARGS)
{
	PaymentCall call = {0};
	TupleDesc	desc;
	Datum		values[4];
	bool		nulls[4] = {false};
	bool		dry_run = verb_dry_run(fcinfo, 8);

	verb_check_transaction("cusown_payment_transition");
	verb_check_not_null(fcinfo, 0, "payment");
	verb_check_not_null(fcinfo, 1, "event");
	call.id = *PG_GETARG_UUID_P(0);
	call.event = text_to_cstring(PG_GETARG_TEXT_PP(1));
	call.actor = PG_ARGISNULL(2) ? NULL : PG_GETARG_UUID_P(2);
	call.actor_type = call.actor == NULL ? "system" : "owner";
	call.source = "manual";
	call.reason = text_or_null(fcinfo, 3);
	call.evidence = PG_ARGISNULL(4) ? NULL : PG_GETARG_JSONB_P(4);
	call.provider_ref = reference_or_null(fcinfo, 5, "provider_ref");
	read_refund(fcinfo, &call);
	payment_read_evidence(&call);
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	verb_run(transition_body, &call, dry_run);

	values[0] = UUIDPGetDatum(&call.id);
	values[1] = CStringGetTextDatum(call.from_status.text);
	values[2] = CStringGetTextDatum(call.status.text);
	values[3] = BoolGetDatum(call.changed);
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values,
											 nulls));
}
