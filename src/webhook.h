/*-------------------------------------------------------------------------
 *
 * webhook.h
 *	  An event that a payment provider tells of.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CUSOWN_WEBHOOK_H
#define CUSOWN_WEBHOOK_H

#include "datatype/timestamp.h"
#include "utils/jsonb.h"
#include "utils/uuid.h"

#include "attention.h"
#include "binding.h"
#include "uuid_list.h"

/* bytes of a body */
#define WEBHOOK_MAX_BODY 1048576

/* bytes of an id, a reference or the name of an event */
#define WEBHOOK_MAX_TEXT 255

/* ids of payments that one event may name */
#define WEBHOOK_MAX_IDS 32

/* where a body says what, as a jsonpath; 0: it does not */
typedef struct WebhookPaths
{
	Datum		provider_ref;
	Datum		order_ref;
	Datum		transaction_ref;
	Datum		amount;
	Datum		currency;
	Datum		refunded;
	List	   *payment_ids;	/* of Datum * */
} WebhookPaths;

/* what a type of event does */
typedef struct WebhookRule
{
	const char *type;
	const char *event;			/* of the machine, or NULL */
	WebhookPaths paths;
} WebhookRule;

typedef struct WebhookProvider
{
	const char *name;
	const char *scheme;			/* by which it signs */
	Datum		event_type;		/* jsonpath */
	Datum		event_id;		/* jsonpath, or 0 */
	const char *event_id_header;	/* or NULL */
	List	   *rules;			/* of WebhookRule, an owner's first */
} WebhookProvider;

/* one event, as its body or our inbox has it */
typedef struct WebhookEvent
{
	const char *provider;
	const char *id;				/* the provider's, or NULL */
	const char *type;			/* in the provider's words */
	const char *event;			/* of the machine; NULL: it moves nothing */
	const char *provider_ref;	/* or NULL */
	const char *order_ref;		/* or NULL */
	const char *transaction_ref;	/* or NULL */
	UuidList	payment_ids;	/* one of which may be the payment */
	bool		has_amount;
	int64		amount;
	const char *currency;		/* in upper case, or NULL */
	bool		has_refunded;
	int64		refunded;		/* all refunds of the payment by then */
} WebhookEvent;

/* what becomes of it; the names are those of the inbox */
typedef enum WebhookOutcome
{
	WEBHOOK_APPLIED,
	WEBHOOK_DUPLICATE,			/* never an event's own */
	WEBHOOK_STALE,
	WEBHOOK_IGNORED,
	WEBHOOK_MISMATCH,
	WEBHOOK_PARKED,
	WEBHOOK_UNMATCHED,
	WEBHOOK_REJECTED,			/* never in the inbox */
	WEBHOOK_RECEIVED			/* by this transaction, and under way */
} WebhookOutcome;

#define WEBHOOK_OUTCOMES (WEBHOOK_RECEIVED + 1)

/* what is to be done about an event that is in the inbox */
typedef struct WebhookWork
{
	Binding    *binding;
	int64		inbox_id;
	bytea	   *sha256;			/* of the body, where it is at hand */
	const char *hash;			/* the same, in hexadecimal */
	bool		is_hash_used;	/* a payment has it, as the application knew
								 * the body before us */
	const char *signature;		/* as it came, or NULL */
	bool		is_answered;	/* the application hears at once what becomes
								 * of it */
	bool		has_payment;
	pg_uuid_t	payment;
	bool		is_ambiguous;	/* its reference stands on several */
	/* the result */
	WebhookOutcome outcome;
	const char *mismatch;		/* why it is one, or NULL */
	const char *detail;
} WebhookWork;

/* how an event of the inbox stands there */
typedef struct WebhookKept
{
	int64		inbox_id;
	WebhookOutcome outcome;
	bool		has_payment;
	pg_uuid_t	payment;
	bool		is_same;		/* as the one that was looked for, by its body
								 * or by what that says */
} WebhookKept;

/* a parked event whose turn has come */
typedef struct WebhookDue
{
	WebhookWork work;
	WebhookEvent event;
	bool		is_over;		/* it has waited for long enough */
} WebhookDue;

/* why an event does not fit, as the inbox has it */
#define MISMATCH_AMOUNT "amount"
#define MISMATCH_CURRENCY "currency"
#define MISMATCH_REFUND "refund"
#define MISMATCH_STATUS "status"
#define MISMATCH_REFERENCE "reference"
#define MISMATCH_CAPTURE "capture"

/* webhook.c */
extern const char *const webhook_relations[];
extern int	webhook_http_status(WebhookOutcome outcome);
extern Binding *webhook_binding(void);

/* webhook_event.c */
extern const WebhookProvider *webhook_provider(Binding *binding,
											   const char *name);
extern bool webhook_read_event(const WebhookProvider *provider, Jsonb *body,
							   WebhookEvent *event);

/* webhook_body.c */
extern Jsonb *webhook_parse_body(bytea *body);

/* webhook_inbox.c */
extern const char *const webhook_outcomes[WEBHOOK_OUTCOMES];
extern bool webhook_inbox_find(const WebhookWork *work,
							   const WebhookEvent *event, WebhookKept *kept);
extern bool webhook_inbox_add(WebhookWork *work, const WebhookEvent *event,
							  bytea *body);
extern bool webhook_inbox_lock(WebhookWork *work, WebhookEvent *event,
							   WebhookKept *kept);
extern int	webhook_inbox_due(Binding *binding, TimestampTz as_of, int max,
							  WebhookDue **due);
extern bytea *webhook_inbox_body(const WebhookWork *work);
extern void webhook_inbox_reread(const WebhookWork *work,
								 const WebhookEvent *event);
extern void webhook_inbox_settle(const WebhookWork *work);

/* webhook_apply.c */
extern void webhook_match(WebhookWork *work, const WebhookEvent *event);
extern void webhook_apply(WebhookWork *work, const WebhookEvent *event);

/* webhook_attention.c */
extern const AttentionKind unmatched_webhook;
extern const AttentionKind webhook_failed;
extern void webhook_open_mismatch(const WebhookWork *work);
extern void webhook_look_for_second_payment(const WebhookWork *work,
											const pg_uuid_t *booking);
extern void webhook_close_paid_again(const WebhookWork *work,
									 const pg_uuid_t *booking);
extern void webhook_recheck(Binding *binding);

#endif							/* CUSOWN_WEBHOOK_H */
