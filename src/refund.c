/*-------------------------------------------------------------------------
 *
 * refund.c
 *	  Money that came for a booking which will not take place.
 *
 * A completed payment of a booking that is cancelled or rejected, or that is
 * pending while another one is confirmed on its slot.  Who pays it back, and
 * how, is for a human: no verb changes a payment for it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"

#include "refund.h"
#include "template.h"
#include "verb.h"

/* how many one run finds */
#define FIND_LIMIT 500

const AttentionKind refund_due = {
	"refund_due", ENTITY_BOOKING, "payment_mismatch"
};

static const Template still_due = {
	"SELECT b.{bookings.id} AS id FROM {bookings} b"
	" WHERE b.{bookings.id} = ANY ($1)"
	" AND EXISTS (SELECT FROM {payments} p"
	" WHERE p.{payments.booking_id} = b.{bookings.id}"
	" AND p.{payments.status} = 'completed')"
	" AND (b.{bookings.status} = 'cancelled'"
	" OR b.{bookings.status} = 'rejected'"
	" OR b.{bookings.status} = 'pending' AND EXISTS (SELECT FROM {bookings} o"
	" WHERE o.{bookings.slot_id} = b.{bookings.slot_id}"
	" AND o.{bookings.status} = 'confirmed'))",
	1, {UUIDARRAYOID}
};

#define TAKEN_FROM_UNDER \
	"(b.{bookings.status} = 'pending')" \
	" AND EXISTS (SELECT FROM {payments} p" \
	" WHERE p.{payments.booking_id} = b.{bookings.id}" \
	" AND p.{payments.status} = 'completed')" \
	" AND EXISTS (SELECT FROM {bookings} o" \
	" WHERE o.{bookings.slot_id} = b.{bookings.slot_id}" \
	" AND o.{bookings.status} = 'confirmed')"

/* at most $2, without the bookings $1 */
static const Template taken_from_under = {
	"SELECT b.{bookings.id} AS id FROM {bookings} b WHERE " TAKEN_FROM_UNDER
	" AND b.{bookings.id} <> ALL ($1)"
	" ORDER BY b.{bookings.id} LIMIT $2",
	2, {UUIDARRAYOID, INT8OID}
};

/* of the bookings $1, which are locked */
static const Template still_taken = {
	"SELECT b.{bookings.id} AS id,"
	" (SELECT p.{payments.id} FROM {payments} p"
	" WHERE p.{payments.booking_id} = b.{bookings.id}"
	" AND p.{payments.status} = 'completed'"
	" ORDER BY p.{payments.id} LIMIT 1) AS payment_id"
	" FROM {bookings} b WHERE b.{bookings.id} = ANY ($1)"
	" AND " TAKEN_FROM_UNDER,
	1, {UUIDARRAYOID}
};

/* AttentionStillThere */
void
refund_still_there(Binding *binding, const AttentionKind *kind,
				   const UuidList *ids, UuidList *there)
{
	if (binding_relation(binding, "payments") != NULL)
		template_ids(binding, &still_due, ids, there);
}

/* what the worklist says of it */
char *
refund_finding(const pg_uuid_t *payment)
{
	return psprintf("payment %s is completed",
					verb_uuid_text(payment));
}

/*
 * Puts the pending bookings on the worklist that are paid, while another one is
 * confirmed on their slot: whoever was refused to confirm one could write
 * nothing.  However old they are; of those that the worklist keeps back, nothing.
 * Returns how many rows were written.  Locks: the bookings FOR UPDATE SKIP LOCKED.
 */
int64
refund_find(Binding *binding)
{
	UuidList	kept_back = {0};
	UuidList	ids = {0};
	UuidList	locked = {0};
	Datum		values[2];
	uint64		rows;
	AttentionItem *items;

	if (binding_relation(binding, "payments") == NULL)
		return 0;
	attention_recheck(binding, &refund_due, refund_still_there);
	attention_kept_back(binding, &refund_due, &kept_back);
	values[0] = uuid_list_datum(&kept_back);
	values[1] = Int64GetDatum(FIND_LIMIT);
	rows = template_execute(binding, &taken_from_under, values, NULL, false);
	uuid_list_append_column(&ids, rows, "id");
	SPI_freetuptable(SPI_tuptable);
	attention_lock(binding, ENTITY_BOOKING, &ids, &locked);

	values[0] = uuid_list_datum(&locked);
	rows = template_execute(binding, &still_taken, values, NULL, false);
	items = palloc0(Max(rows, 1) * sizeof(AttentionItem));
	for (uint64 row = 0; row < rows; row++)
	{
		pg_uuid_t	payment;

		template_uuid(row, "id", &items[row].entity_id);
		template_uuid(row, "payment_id", &payment);
		items[row].finding = refund_finding(&payment);
	}
	SPI_freetuptable(SPI_tuptable);
	return attention_open(binding, &refund_due, items, rows);
}
