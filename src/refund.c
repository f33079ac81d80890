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
#include "utils/builtins.h"

#include "refund.h"
#include "template.h"

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
					DatumGetCString(DirectFunctionCall1(uuid_out,
														UUIDPGetDatum(payment))));
}
