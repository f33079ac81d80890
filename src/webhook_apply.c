/*-------------------------------------------------------------------------
 *
 * webhook_apply.c
 *	  What an event in the inbox does to its payment.
 *
 * The payment is found without a lock; then it is locked, and everything is
 * decided by what stands there now.  Events come late, twice and in any order:
 * one that leads back is stale, and one that says what we know is ignored; the
 * state machine (payment.c) decides which, and moves what is left.  Refunds are
 * told as the sum of all so far, so that the greatest counts, in whatever order
 * they come.
 *
 * A payment has one reference at the provider, but a customer may try again under
 * another.  What the provider says of another reference than the payment's own is
 * taken where it says that money came for a payment that has none yet; money that
 * came twice is the worklist's, and so is what a booking was paid by two payments.
 * Nothing that another reference did ever takes a payment back.
 *
 * Locking protocol: as cusown_payment_transition(): the payment FOR UPDATE, then,
 * where it becomes completed, its booking, so that of two captures for one
 * booking the second sees the first.  The job locks both before, and does not
 * wait (webhook_retry.c).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/array.h"
#include "utils/builtins.h"

#include "attention.h"
#include "errors.h"
#include "payment.h"
#include "payment_ref.h"
#include "template.h"
#include "verb.h"
#include "webhook.h"

/* ---------- which payment ---------- */

#define CANDIDATE(how) \
	"SELECT p.{payments.id} AS id, " how " AS how," \
	" p.{payments.created_at} AS created_at, (p.{payments.status} = 'completed'" \
	" OR p.{payments.status} = 'partially_refunded'" \
	" OR p.{payments.status} = 'refunded') AS is_paid" \
	"[, coalesce(" PAYMENT_REF_IS_REAL("p") ", false) AS is_referred]" \
	" FROM {payments} p WHERE "

#define OF_PROVIDER "[ AND p.{payments.provider}::text = $1]"

/*
 * Of the provider $1: $2 its reference, $3 ids that the application gave it, $4
 * order, $5 UPI transaction; $6 the hash of the body, $7 whether it is about a
 * refund.  Of those that are known in the same way one that was named, else one
 * that has no reference of its own, which would be another one, else one that is not
 * paid yet, or for a refund is, else the newest: a customer tries again.
 */
static const Template find_payment = {
	"SELECT c.id, c.is_named, c.how = 1 AND c.alike > 1 AS is_ambiguous"
	"[, EXISTS (SELECT FROM {payments} h"
	" WHERE h.{payments.webhook_payload_hash} = $6) AS is_hash_used]"
	" FROM (SELECT c.*, c.id = ANY ($3) AS is_named,"
	" pg_catalog.count(*) OVER (PARTITION BY c.how) AS alike"
	" FROM (" CANDIDATE("2") "p.{payments.id} = ANY ($3)" OF_PROVIDER
	"[ UNION ALL " CANDIDATE("1") "p.{payments.provider_ref} = $2" OF_PROVIDER "]"
	"[ UNION ALL " CANDIDATE("3") "p.{payments.order_id} = $4" OF_PROVIDER "]"
	"[ UNION ALL " CANDIDATE("4") "p.{payments.transaction_id} = $5" OF_PROVIDER "]"
	") c) c ORDER BY c.how, c.is_named DESC"
	"[{?payments.provider_ref}, c.is_referred], coalesce(c.is_paid = $7, false)"
	" DESC, c.created_at DESC, c.id LIMIT 1",
	7, {TEXTOID, TEXTOID, UUIDARRAYOID, TEXTOID, TEXTOID, TEXTOID, BOOLOID},.planned_once = true
};

/* of the application $1, an earlier event of the provider $2 about its reference $3 */
static const Template find_told_payment = {
	"SELECT i.payment_id AS id FROM cusown_ops.webhook_inbox i"
	" WHERE i.app_schema = $1 AND i.provider = $2 AND i.provider_ref = $3"
	" AND i.payment_id IS NOT NULL ORDER BY i.id LIMIT 1",
	3, {NAMEOID, TEXTOID, TEXTOID},.planned_once = true
};

/* $2 the hash of the body */
static const Template payment_is_there = {
	"SELECT p.{payments.id} AS id[, EXISTS (SELECT FROM {payments} h"
	" WHERE h.{payments.webhook_payload_hash} = $2) AS is_hash_used]"
	" FROM {payments} p WHERE p.{payments.id} = $1",
	2, {UUIDOID, TEXTOID},.planned_once = true
};

/*
 * A reference that is not the payment's own, of which an event before has said
 * whose it is: not all events of a provider carry the notes.
 */
static bool
was_told(WebhookWork *work, const WebhookEvent *event)
{
	Datum		values[3];
	bool		found;

	if (event->provider_ref == NULL)
		return false;
	values[0] = template_name(work->binding->app_schema);
	values[1] = CStringGetTextDatum(event->provider);
	values[2] = CStringGetTextDatum(event->provider_ref);
	found = template_execute(NULL, &find_told_payment, values, NULL,
							 false) > 0 &&
		template_uuid(0, "id", &work->payment);
	SPI_freetuptable(SPI_tuptable);
	if (!found)
		return false;
	values[0] = UUIDPGetDatum(&work->payment);
	values[1] = CStringGetTextDatum(work->hash);
	found = template_execute(work->binding, &payment_is_there, values, NULL,
							 false) > 0;
	work->is_hash_used = found && template_bool(0, "is_hash_used");
	SPI_freetuptable(SPI_tuptable);
	return found;
}

/* without a lock: what matters of the payment is read again */
void
webhook_match(WebhookWork *work, const WebhookEvent *event)
{
	Datum		values[7];
	char		nulls[] = "       ";

	template_set_text(values, nulls, 1, event->provider);
	template_set_text(values, nulls, 2, event->provider_ref);
	values[2] = uuid_list_datum(&event->payment_ids);
	template_set_text(values, nulls, 4, event->order_ref);
	template_set_text(values, nulls, 5, event->transaction_ref);
	template_set_text(values, nulls, 6, work->hash);
	values[6] = BoolGetDatum(event->event != NULL &&
							 payment_is_refund(event->event));
	work->has_payment = template_execute(work->binding, &find_payment, values,
										 nulls, false) > 0 &&
		template_uuid(0, "id", &work->payment);
	work->is_ambiguous = work->has_payment &&
		template_bool(0, "is_ambiguous") && !template_bool(0, "is_named");
	work->is_hash_used = work->has_payment && template_bool(0, "is_hash_used");
	SPI_freetuptable(SPI_tuptable);
	if (!work->has_payment)
		work->has_payment = was_told(work, event);
}

/* ---------- what does not fit ---------- */

static void
mismatch(WebhookWork *work, const char *why, const char *detail)
{
	work->outcome = WEBHOOK_MISMATCH;
	work->mismatch = why;
	work->detail = detail;
	webhook_open_mismatch(work);
}

/* says that money came, by either name */
static bool
is_capture(const WebhookEvent *event)
{
	return strcmp(event->event, EVENT_VERIFY) == 0 ||
		strcmp(event->event, EVENT_LATE_CAPTURE) == 0;
}

static bool
differs_in_amount(WebhookWork *work, const WebhookEvent *event,
				  const PaymentCall *call)
{
	if (!call->has_amount || (!event->has_amount && !is_capture(event)))
		return false;
	if (!event->has_amount)
		mismatch(work, MISMATCH_AMOUNT, psprintf("%s tells no amount",
												 event->type));
	else if (event->amount != call->amount)
		mismatch(work, MISMATCH_AMOUNT,
				 psprintf("%s tells " INT64_FORMAT " instead of " INT64_FORMAT,
						  event->type, event->amount, call->amount));
	return work->outcome == WEBHOOK_MISMATCH;
}

static bool
differs_in_currency(WebhookWork *work, const WebhookEvent *event,
					const PaymentCall *call)
{
	if (call->currency == NULL || event->currency == NULL ||
		pg_strcasecmp(call->currency, event->currency) == 0)
		return false;
	mismatch(work, MISMATCH_CURRENCY, psprintf("%s tells another currency",
											   event->type));
	return true;
}

/* a part that nobody tells is not the whole, and more than all there cannot be */
static bool
differs_in_refund(WebhookWork *work, const WebhookEvent *event,
				  const PaymentCall *call)
{
	if (!payment_is_refund(event->event))
		return false;
	if (!event->has_refunded && strcmp(event->event, EVENT_PARTIAL_REFUND) == 0 &&
		strcmp(call->status.text, "refunded") != 0)
		mismatch(work, MISMATCH_REFUND,
				 psprintf("%s does not tell how much is refunded", event->type));
	else if (event->has_refunded && call->has_amount &&
			 event->refunded > call->amount)
		mismatch(work, MISMATCH_REFUND,
				 psprintf("%s tells refunds of " INT64_FORMAT " of " INT64_FORMAT,
						  event->type, event->refunded, call->amount));
	return work->outcome == WEBHOOK_MISMATCH;
}

/* ---------- order of events ---------- */

/* how far a payment has come, and how far an event leads */
typedef struct Rank
{
	const char *name;
	int			rank;
} Rank;

static const Rank ranks[] = {
	{"initiated", 0}, {"pending", 0}, {"processing", 1}, {"failed", 2},
	{"expired", 2}, {"completed", 3}, {"partially_refunded", 4},
	{"refunded", 5},
	{EVENT_PROCESS, 1}, {EVENT_FAIL, 2}, {EVENT_VERIFY, 3},
	{EVENT_LATE_CAPTURE, 3}, {EVENT_PARTIAL_REFUND, 4}, {EVENT_REFUND, 5}
};

/* what an owner has added is nowhere */
static int
rank_of(const char *name)
{
	for (int i = 0; i < lengthof(ranks); i++)
	{
		if (strcmp(ranks[i].name, name) == 0)
			return ranks[i].rank;
	}
	return -1;
}

static void
leave(WebhookWork *work, WebhookOutcome outcome, const char *detail)
{
	work->outcome = outcome;
	work->detail = detail;
}

static bool
has_own_reference(const PaymentCall *call)
{
	const char *ref = call->old_provider_ref;

	return ref != NULL && *ref != '\0' &&
		!payment_ref_is_placeholder(ref, &call->id);
}

/* how far a payment is when its money has come */
static bool
is_paid(const PaymentStatus *status)
{
	return rank_of(status->text) >= rank_of("completed");
}

static bool
tells_of_money(const WebhookEvent *event)
{
	return rank_of(event->event) >= rank_of(EVENT_VERIFY);
}

/*
 * A payment that was matched otherwise is known by its reference from now on; but
 * not one that is paid by what some other attempt did.
 */
static void
keep_reference(const WebhookEvent *event, PaymentCall *call)
{
	if (event->provider_ref != NULL && !has_own_reference(call) &&
		(tells_of_money(event) || !is_paid(&call->status)))
		payment_keep_reference(call);
}

/* there may be money that no transition brings to the payment */
static bool
is_money_lost(const WebhookEvent *event, const PaymentCall *call,
			  PaymentResult result)
{
	return result == PAYMENT_REFUSED && tells_of_money(event) &&
		!is_paid(&call->status);
}

static void
leave_as_it_stands(WebhookWork *work, const WebhookEvent *event,
				   PaymentCall *call, PaymentResult result)
{
	bool		is_late = rank_of(event->event) >= 0 &&
	rank_of(event->event) < rank_of(call->status.text);
	bool		is_less = call->has_refund_amount &&
	call->refund_amount < call->total;
	const char *detail = psprintf("%s: the payment is %s", event->type,
								  *call->status.text == '\0' ?
								  "without a status" : call->status.text);

	keep_reference(event, call);
	if (is_money_lost(event, call, result))
		mismatch(work, MISMATCH_STATUS, detail);
	else
		leave(work, is_late || is_less ? WEBHOOK_STALE : WEBHOOK_IGNORED,
			  detail);
}

/* ---------- another reference than the payment's own ---------- */

static bool
is_about_another_reference(const WebhookEvent *event, const PaymentCall *call)
{
	return event->provider_ref != NULL && has_own_reference(call) &&
		strcmp(event->provider_ref, call->old_provider_ref) != 0;
}

/*
 * A customer tried again.  False: money came for a payment that has none yet, by
 * whatever reference.
 */
static bool
leave_other_reference(WebhookWork *work, const WebhookEvent *event,
					  const PaymentCall *call)
{
	if (!is_about_another_reference(event, call))
		return false;
	if (tells_of_money(event) && !is_paid(&call->status))
		return false;
	if (is_capture(event))
		mismatch(work, MISMATCH_CAPTURE,
				 psprintf("%s of another reference, but the payment is %s",
						  event->type, call->status.text));
	else
		leave(work, WEBHOOK_IGNORED,
			  psprintf("%s of another reference", event->type));
	/* money that came twice may have gone back */
	if (payment_is_refund(event->event) && call->has_booking)
		webhook_close_paid_again(work, &call->booking_id);
	return true;
}

/* ---------- the payment moves ---------- */

static PaymentCall
call_for(const WebhookWork *work, const WebhookEvent *event)
{
	PaymentCall call = {0};

	call.binding = work->binding;
	call.id = work->payment;
	call.event = event->event;
	call.actor_type = "system";
	call.source = "webhook";
	call.method = "webhook";
	call.is_known = work->is_answered;
	call.reason = event->type;
	call.inbox_id = work->inbox_id;
	call.webhook_hash = work->is_hash_used ? NULL : work->hash;
	call.webhook_signature = work->signature;
	call.provider_ref = event->provider_ref;
	call.has_refund_amount = payment_is_refund(event->event) &&
		event->has_refunded;
	call.refund_amount = event->refunded;
	return call;
}

/* what a move may make true or untrue of the booking's payments */
static void
look_at_booking(const WebhookWork *work, const PaymentCall *call)
{
	if (!call->has_booking)
		return;
	if (payment_is_refund(call->event))
		webhook_close_paid_again(work, &call->booking_id);
	if (!is_paid(&call->from_status) && is_paid(&call->status) &&
		strcmp(call->status.text, "refunded") != 0)
		webhook_look_for_second_payment(work, &call->booking_id);
}

static void
move(WebhookWork *work, const WebhookEvent *event, PaymentCall *call)
{
	PaymentResult result = payment_take(call);

	if (result != PAYMENT_MOVED)
	{
		leave_as_it_stands(work, event, call, result);
		return;
	}
	/* a first step that verifies has set it */
	if (payment_is_refund(call->event) && is_paid(&call->from_status))
		keep_reference(event, call);
	leave(work, WEBHOOK_APPLIED,
		  psprintf("%s: %s to %s", event->type, call->from_status.text,
				   call->status.text));
	look_at_booking(work, call);
}

/*
 * Refunds so far are less than, or just, what we know.  What the application has
 * put into a payment that it leaves completed is not there yet.
 */
static bool
leave_known_refund(WebhookWork *work, const WebhookEvent *event,
				   const PaymentCall *call)
{
	if (!call->has_refund_amount || call->refund_amount > call->refunded)
		return false;
	if (rank_of(call->status.text) < rank_of(EVENT_PARTIAL_REFUND) &&
		call->refund_amount > 0 &&
		!(call->has_amount && call->refunded > call->amount))
		return false;
	leave(work, call->refund_amount < call->refunded ? WEBHOOK_STALE :
		  WEBHOOK_IGNORED,
		  psprintf("%s tells refunds of " INT64_FORMAT ", known are " INT64_FORMAT,
				   event->type, call->refund_amount, call->refunded));
	return true;
}

/* the payment is known; it is locked, and what stands there decides */
static void
apply_to_payment(WebhookWork *work, const WebhookEvent *event)
{
	PaymentCall call = call_for(work, event);

	payment_lock(&call);
	/* whether a sum is all of it, the amount says */
	if (call.has_refund_amount && call.has_amount)
		call.event = EVENT_PARTIAL_REFUND;
	if (work->is_ambiguous)
		mismatch(work, MISMATCH_REFERENCE,
				 psprintf("%s is about a reference that several payments have",
						  event->type));
	else if (!differs_in_amount(work, event, &call) &&
			 !differs_in_currency(work, event, &call) &&
			 !differs_in_refund(work, event, &call) &&
			 !leave_other_reference(work, event, &call) &&
			 !leave_known_refund(work, event, &call))
		move(work, event, &call);
}

/* what an event that is in the inbox does; its payment was looked for */
void
webhook_apply(WebhookWork *work, const WebhookEvent *event)
{
	if (event->event == NULL)
		leave(work, WEBHOOK_IGNORED, psprintf("%s moves nothing", event->type));
	else if (!work->has_payment)
		leave(work, WEBHOOK_PARKED, psprintf("%s: there is no such payment",
											 event->type));
	else
		apply_to_payment(work, event);
}
