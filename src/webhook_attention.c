/*-------------------------------------------------------------------------
 *
 * webhook_attention.c
 *	  What events put on the worklist, and whether it still holds.
 *
 * duplicate_capture		a booking is paid by two payments, or one payment was
 *							paid under two references
 * webhook_mismatch			what an event says does not fit its payment
 * unmatched_webhook		no payment came for an event
 * webhook_failed			the application refuses what an event does
 *
 * Entries are about payments, which are locked where one is written, or about
 * rows of our inbox, as which only the job works.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"

#include "attention.h"
#include "compat.h"
#include "template.h"
#include "verb.h"
#include "webhook.h"

static const AttentionKind duplicate_capture = {
	"duplicate_capture", ENTITY_PAYMENT, "payment_mismatch"
};
static const AttentionKind webhook_mismatch = {
	"webhook_mismatch", ENTITY_PAYMENT, "payment_mismatch"
};
const AttentionKind unmatched_webhook = {
	"unmatched_webhook", ENTITY_WEBHOOK_EVENT, "payment_mismatch"
};
const AttentionKind webhook_failed = {
	"webhook_failed", ENTITY_WEBHOOK_EVENT, "payment_mismatch"
};

/* ---------- statements ---------- */

#define HAS_MONEY(alias) \
	"(" alias ".{payments.status} = 'completed'" \
	" OR " alias ".{payments.status} = 'partially_refunded')"

/* another payment of the booking $2 than $1 */
static const Template second_payment = {
	"SELECT o.{payments.id} AS id FROM {payments} o"
	" WHERE o.{payments.booking_id} = $2 AND o.{payments.id} <> $1"
	" AND " HAS_MONEY("o") " ORDER BY o.{payments.created_at},"
	" o.{payments.id} LIMIT 1",
	2, {UUIDOID, UUIDOID},.planned_once = true
};

static const Template payments_of_booking = {
	"SELECT p.{payments.id} AS id FROM {payments} p"
	" WHERE p.{payments.booking_id} = $1",
	1, {UUIDOID},.planned_once = true
};

/* of the payments $1 */
static const Template paid_beside_another = {
	"SELECT p.{payments.id} AS id FROM {payments} p"
	" WHERE p.{payments.id} = ANY ($1) AND " HAS_MONEY("p")
	" AND EXISTS (SELECT FROM {payments} o"
	" WHERE o.{payments.booking_id} = p.{payments.booking_id}"
	" AND o.{payments.id} <> p.{payments.id} AND " HAS_MONEY("o") ")",
	1, {UUIDARRAYOID}
};

/* $1 app_schema, $2 payments: paid under another reference, and not refunded */
static const Template paid_under_another = {
	"SELECT DISTINCT i.payment_id AS id FROM cusown_ops.webhook_inbox i"
	" WHERE i.app_schema = $1 AND i.payment_id = ANY ($2)"
	" AND i.mismatch = 'capture' AND NOT EXISTS (SELECT"
	" FROM cusown_ops.webhook_inbox r WHERE r.app_schema = $1"
	" AND r.payment_id = i.payment_id AND r.provider_ref = i.provider_ref"
	" AND r.event = ANY ('{partial_refund,refund}')"
	" AND CASE WHEN r.refunded IS NULL THEN r.event = 'refund'"
	" ELSE coalesce(r.refunded >= i.amount, true) END)",
	2, {NAMEOID, UUIDARRAYOID}
};

/* what events said of the payments $2 that did not fit */
static const Template told_otherwise = {
	"SELECT coalesce(pg_catalog.array_agg(i.payment_id), '{}') AS ids,"
	" coalesce(pg_catalog.array_agg(i.mismatch), '{}') AS mismatches,"
	" coalesce(pg_catalog.array_agg(i.amount), '{}') AS amounts,"
	" coalesce(pg_catalog.array_agg(i.refunded), '{}') AS refunds,"
	" coalesce(pg_catalog.array_agg(i.currency), '{}') AS currencies,"
	" coalesce(pg_catalog.array_agg(i.provider_ref), '{}') AS refs"
	" FROM cusown_ops.webhook_inbox i WHERE i.app_schema = $1"
	" AND i.payment_id = ANY ($2) AND i.mismatch <> 'capture'",
	2, {NAMEOID, UUIDARRAYOID}
};

/* what is not bound any more is compared no more */
static const Template still_otherwise = {
	"SELECT DISTINCT p.{payments.id} AS id FROM ROWS FROM"
	" (pg_catalog.unnest($1), pg_catalog.unnest($2), pg_catalog.unnest($3),"
	" pg_catalog.unnest($4), pg_catalog.unnest($5), pg_catalog.unnest($6))"
	" AS m (id, mismatch, amount, refunded, currency, ref)"
	" JOIN {payments} p ON p.{payments.id} = m.id WHERE false"
	" OR (m.mismatch = 'refund' AND m.refunded IS NULL"
	" AND (p.{payments.status} = 'refunded') IS NOT TRUE)"
	" OR (m.mismatch = 'status' AND (" HAS_MONEY("p")
	" OR p.{payments.status} = 'refunded') IS NOT TRUE)"
	"[ OR (m.mismatch = 'refund' AND m.refunded > p.{payments.amount}::int8)]"
	"[ OR (m.mismatch = 'amount' AND (m.amount = p.{payments.amount}::int8)"
	" IS NOT TRUE)]"
	"[ OR (m.mismatch = 'currency' AND (m.currency ="
	" pg_catalog.upper(p.{payments.currency}::text)) IS NOT TRUE)]"
	"[ OR (m.mismatch = 'reference' AND EXISTS (SELECT FROM {payments} o"
	" WHERE o.{payments.provider_ref} = m.ref"
	" AND p.{payments.provider_ref} = m.ref"
	" AND o.{payments.id} <> p.{payments.id}"
	"[{?payments.provider} AND o.{payments.provider}::text = p.{payments.provider}::text]))]",
	6, {UUIDARRAYOID, TEXTARRAYOID, INT8ARRAYOID, INT8ARRAYOID, TEXTARRAYOID, TEXTARRAYOID}
};

/* $2 events */
static const Template still_unmatched = {
	"SELECT i.id FROM cusown_ops.webhook_inbox i WHERE i.app_schema = $1"
	" AND i.id = ANY ($2) AND i.outcome = 'unmatched'",
	2, {NAMEOID, INT8ARRAYOID}
};

static const Template still_parked = {
	"SELECT i.id FROM cusown_ops.webhook_inbox i WHERE i.app_schema = $1"
	" AND i.id = ANY ($2) AND i.outcome = 'parked'",
	2, {NAMEOID, INT8ARRAYOID}
};

/* ---------- whether it still holds ---------- */

/* AttentionStillThere */
static void
still_paid_twice(Binding *binding, const AttentionKind *kind,
				 const UuidList *ids, UuidList *there)
{
	Datum		values[2];
	uint64		rows;

	if (binding_relation(binding, "payments") == NULL)
		return;
	template_ids(binding, &paid_beside_another, ids, there);
	values[0] = template_name(binding->app_schema);
	values[1] = uuid_list_datum(ids);
	rows = template_execute(NULL, &paid_under_another, values, NULL, false);
	uuid_list_append_column(there, rows, "id");
	SPI_freetuptable(SPI_tuptable);
}

/* AttentionStillThere */
static void
still_mismatched(Binding *binding, const AttentionKind *kind,
				 const UuidList *ids, UuidList *there)
{
	static const char *const columns[] = {
		"ids", "mismatches", "amounts", "refunds", "currencies", "refs"
	};
	Datum		values[lengthof(columns)];
	SPITupleTable *told;
	uint64		rows;
	bool		isnull;

	if (binding_relation(binding, "payments") == NULL)
		return;
	values[0] = template_name(binding->app_schema);
	values[1] = uuid_list_datum(ids);
	template_execute(NULL, &told_otherwise, values, NULL, false);
	told = SPI_tuptable;
	for (int i = 0; i < lengthof(columns); i++)
		values[i] = template_column(0, columns[i], &isnull);
	rows = template_execute(binding, &still_otherwise, values, NULL, false);
	uuid_list_append_column(there, rows, "id");
	SPI_freetuptable(SPI_tuptable);
	SPI_freetuptable(told);
}

static void
events_still_there(Binding *binding, const Template *statement,
				   const UuidList *ids, UuidList *there)
{
	Datum		values[2];
	uint64		rows;

	values[0] = template_name(binding->app_schema);
	values[1] = attention_numbers(ids);
	rows = template_execute(NULL, statement, values, NULL, false);
	attention_append_numbered(there, rows, "id");
	SPI_freetuptable(SPI_tuptable);
}

/* AttentionStillThere */
static void
unmatched_still_there(Binding *binding, const AttentionKind *kind,
					  const UuidList *ids, UuidList *there)
{
	events_still_there(binding, &still_unmatched, ids, there);
}

/* AttentionStillThere */
static void
failed_still_there(Binding *binding, const AttentionKind *kind,
				   const UuidList *ids, UuidList *there)
{
	events_still_there(binding, &still_parked, ids, there);
}

void
webhook_recheck(Binding *binding)
{
	attention_recheck(binding, &duplicate_capture, still_paid_twice);
	attention_recheck(binding, &webhook_mismatch, still_mismatched);
	attention_recheck(binding, &unmatched_webhook, unmatched_still_there);
	attention_recheck(binding, &webhook_failed, failed_still_there);
}

/* ---------- entries ---------- */

/* of its payment, which is locked */
void
webhook_open_mismatch(const WebhookWork *work)
{
	bool		is_capture = strcmp(work->mismatch, MISMATCH_CAPTURE) == 0;
	AttentionItem item = {work->payment};

	item.finding = work->detail;
	attention_open(work->binding,
				   is_capture ? &duplicate_capture : &webhook_mismatch,
				   &item, 1);
}

/* whether the booking of a payment that has just been made was paid for before */
void
webhook_look_for_second_payment(const WebhookWork *work,
								const pg_uuid_t *booking)
{
	AttentionItem item = {work->payment};
	Datum		values[2];
	pg_uuid_t	other;
	bool		found;

	values[0] = UUIDPGetDatum(&work->payment);
	values[1] = UUIDPGetDatum(booking);
	found = template_execute(work->binding, &second_payment, values, NULL,
							 false) > 0 && template_uuid(0, "id", &other);
	SPI_freetuptable(SPI_tuptable);
	if (!found)
		return;
	item.finding = psprintf("booking %s is paid by payment %s too",
							verb_uuid_text(booking), verb_uuid_text(&other));
	attention_open(work->binding, &duplicate_capture, &item, 1);
}

/* what is over now that this payment of the booking was refunded */
void
webhook_close_paid_again(const WebhookWork *work, const pg_uuid_t *booking)
{
	UuidList	ids = {0};
	UuidList	locked = {0};
	UuidList	there = {0};
	UuidList	gone = {0};
	Datum		values[1];
	uint64		rows;

	values[0] = UUIDPGetDatum(booking);
	rows = template_execute(work->binding, &payments_of_booking, values, NULL,
							false);
	uuid_list_append_column(&ids, rows, "id");
	SPI_freetuptable(SPI_tuptable);
	/* entries are written under the locks of their payments only */
	attention_lock(work->binding, ENTITY_PAYMENT, &ids, &locked);
	still_paid_twice(work->binding, &duplicate_capture, &locked, &there);
	uuid_list_append_missing(&gone, &locked, &there);
	if (gone.count > 0)
		attention_close(work->binding, &duplicate_capture, &gone);
}
