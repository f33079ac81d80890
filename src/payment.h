/*-------------------------------------------------------------------------
 *
 * payment.h
 *	  What happens to one payment.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CUSOWN_PAYMENT_H
#define CUSOWN_PAYMENT_H

#include "utils/jsonb.h"
#include "utils/uuid.h"

#include "binding.h"

/* events that are more than their name */
#define EVENT_PROCESS "process"
#define EVENT_VERIFY "verify"
#define EVENT_FAIL "fail"
#define EVENT_LATE_CAPTURE "late_capture"
#define EVENT_PARTIAL_REFUND "partial_refund"
#define EVENT_REFUND "refund"

/* a status of the application, copied: it outlives the statement */
typedef struct PaymentStatus
{
	char text[	NAMEDATALEN];
} PaymentStatus;

/* one call of cusown_payment_transition() */
typedef struct PaymentCall
{
	pg_uuid_t	id;
	const char *event;			/* a partial refund may turn out to be whole */
	const pg_uuid_t *actor;		/* NULL: the system */
	const char *actor_type;		/* owner or system */
	const char *reason;			/* or NULL */
	Jsonb	   *evidence;		/* an object, or NULL */
	const char *provider_ref;	/* or NULL */
	bool		has_refund_amount;
	int64		refund_amount;	/* with refund_ref of that refund, else of all
								 * so far */
	const char *refund_ref;		/* or NULL */
	bool		is_matched;		/* reconciliation has found the statement line
								 * that evidence names to be this payment's */
	const char *method;			/* of verification */
	const char *source;			/* manual or webhook */
	bool		is_known;		/* to whoever must hear of it: no NOTIFY */
	/* of a webhook event, which is evidence by itself */
	int64		inbox_id;		/* 0: it is none */
	const char *webhook_hash;	/* of its body, or NULL */
	const char *webhook_signature;	/* or NULL */
	Binding    *binding;
	/* what was found under the lock */
	PaymentStatus status;		/* moves on with each step */
	bool		has_booking;
	pg_uuid_t	booking_id;
	char	   *old_provider_ref;	/* or NULL */
	bool		has_amount;		/* of the payment */
	int64		amount;
	char	   *currency;		/* or NULL */
	int64		refunded;		/* before this refund, as the payment says */
	int64		figure;			/* the greatest that we were told */
	/* what is made of a refund */
	int64		told;			/* what references add up to, with this one */
	bool		has_total;
	int64		total;			/* refunded with this refund */
	/* the result */
	PaymentStatus from_status;
	bool		changed;
} PaymentCall;

/* what becomes of an event */
typedef enum PaymentResult
{
	PAYMENT_MOVED,
	PAYMENT_STAYED,				/* it stands there already */
	PAYMENT_REFUSED				/* the machine does not lead there */
} PaymentResult;

/* payment.c */
extern void payment_lock(PaymentCall *call);
extern PaymentResult payment_take(PaymentCall *call);
extern void payment_move(PaymentCall *call);
extern void payment_keep_reference(PaymentCall *call);
extern void payment_recheck_cancelled(Binding *binding);

/* payment_evidence.c */
extern char *payment_trim(char *text);
extern void payment_read_evidence(PaymentCall *call);
extern void payment_require_evidence(PaymentCall *call);
extern bool payment_ref_is_placeholder(const char *ref, const pg_uuid_t *id);

/* payment_refund.c */
extern bool payment_is_refund(const char *event);
extern bool payment_weigh_refund(PaymentCall *call);
extern void payment_remember_refund(const PaymentCall *call);

#endif							/* CUSOWN_PAYMENT_H */
