/*-------------------------------------------------------------------------
 *
 * payment_expiry.c
 *	  Payments that were begun and never made.
 *
 * An initiated payment expires at expires_at.  Only its own status changes: what
 * becomes of its booking, and of the slot, is decided by their own jobs.  One
 * that is paid all the same is a late capture (payment.c).
 *
 * Payments are read in the order of (expires_at, id), in windows.  Candidates
 * are read without locks and locked FOR UPDATE SKIP LOCKED; new statements decide
 * again and change exactly those ids, so that one that is being verified
 * meanwhile neither expires nor is audited so.  What a trigger of the application
 * refuses is found by splitting (split.c) and put on the worklist.  No row is
 * ever waited for.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "attention.h"
#include "audit.h"
#include "change.h"
#include "guard.h"
#include "job.h"
#include "payment.h"
#include "split.h"
#include "state_machine.h"
#include "template.h"
#include "uuid_list.h"
#include "verb.h"

#define EXPIRY_VERB "expire_payments"

/* how far reading has come */
typedef struct PaymentKey
{
	TimestampTz expires_at;
	pg_uuid_t	id;
} PaymentKey;

/* one call of cusown_expire_payments(), or one run of the job */
typedef struct PaymentExpiry
{
	Binding    *binding;
	const char *source;
	TimestampTz as_of;
	int64		max_rows;
	int			batch_size;		/* candidates of a window */
	PaymentKey	key;
	Split		split;			/* of the transaction that is under way */
	/* results */
	int64		expired;
	int64		attention;
	int64		looked_at;
	bool		more;
} PaymentExpiry;

/* the payments of a window that expire, in the order of the key */
typedef struct Expiring
{
	PaymentExpiry *expiry;
	UuidList	payments;
	AttentionItem *refused;
	int			refused_count;
	int64		changed;		/* payments */
	int64		audited;		/* their audit rows */
	int64		told;			/* in the change feed */
	ChangeBatch recorded;
} Expiring;

static const AttentionKind payment_expiry_failed = {
	"payment_expiry_failed", ENTITY_PAYMENT, "payment_mismatch"
};

static const AttentionKind *const kinds_opened[] = {
	&payment_expiry_failed, NULL
};

static const char *const relations_changed[] = {
	"payments", "payment_audit_logs", "bookings", "audit_logs", NULL
};

PG_FUNCTION_INFO_V1(cusown_expire_payments);

/* ---------- statements ---------- */

#define IS_INITIATED "(p.{payments.status} = 'initiated') IS TRUE"

/* $1 as_of, $2, $3 the key to read on behind, $4 how many */
static const Template next_ended = {
	"SELECT p.{payments.id} AS id, p.{payments.expires_at} AS expires_at"
	" FROM {payments} p WHERE p.{payments.status} = 'initiated'"
	" AND p.{payments.expires_at} <= $1"
	" AND (p.{payments.expires_at}, p.{payments.id}) > ($2, $3)"
	" ORDER BY p.{payments.expires_at}, p.{payments.id} LIMIT $4",
	4, {TIMESTAMPTZOID, TIMESTAMPTZOID, UUIDOID, INT8OID}
};

static const Template ended_behind = {
	"SELECT EXISTS (SELECT FROM {payments} p"
	" WHERE p.{payments.status} = 'initiated'"
	" AND p.{payments.expires_at} <= $1"
	" AND (p.{payments.expires_at}, p.{payments.id}) > ($2, $3)) AS found",
	3, {TIMESTAMPTZOID, TIMESTAMPTZOID, UUIDOID}
};

/* of the locked payments $1, those that are over by $2 */
static const Template decide_again = {
	"SELECT p.{payments.id} AS id FROM {payments} p"
	" WHERE p.{payments.id} = ANY ($1) AND " IS_INITIATED
	" AND p.{payments.expires_at} <= $2"
	" ORDER BY p.{payments.expires_at}, p.{payments.id}",
	2, {UUIDARRAYOID, TIMESTAMPTZOID}
};

static const Template still_initiated = {
	"SELECT p.{payments.id} AS id FROM {payments} p"
	" WHERE p.{payments.id} = ANY ($1) AND " IS_INITIATED,
	1, {UUIDARRAYOID}
};

/* of the payments $1 */
static const Template count_expired = {
	"SELECT pg_catalog.count(*) AS changed FROM {payments} p"
	" WHERE p.{payments.id} = ANY ($1)"
	" AND (p.{payments.status} = 'expired') IS TRUE",
	1, {UUIDARRAYOID}
};

/* the payments $1, $2 source */
#define EXPIRE \
	"WITH expired AS (UPDATE {payments} p SET {payments.status} := 'expired'" \
	"[, {payments.updated_at} := pg_catalog.now()]" \
	" WHERE p.{payments.id} = ANY ($1) AND " IS_INITIATED \
	" RETURNING p.{payments.id} AS id)"

#define EXPIRY_METADATA \
	"pg_catalog.jsonb_build_object('actor', 'system', 'source', $2," \
	" 'event', 'expire', 'rule', 'expires_at'," \
	" 'from', 'initiated', 'to', 'expired')"

static const Template expire_with_log = {
	EXPIRE
	" INSERT INTO {payment_audit_logs} ({payment_audit_logs.payment_id},"
	" {payment_audit_logs.actor_type}, {payment_audit_logs.action}"
	"[, {payment_audit_logs.from_status}][, {payment_audit_logs.to_status}]"
	"[, {payment_audit_logs.metadata}][, {payment_audit_logs.created_at}])"
	" SELECT e.id, 'system', 'expired'"
	"[{?payment_audit_logs.from_status}, 'initiated']"
	"[{?payment_audit_logs.to_status}, 'expired']"
	"[{?payment_audit_logs.metadata}, " EXPIRY_METADATA "]"
	"[{?payment_audit_logs.created_at}, pg_catalog.clock_timestamp()]"
	" FROM expired e"
	" RETURNING {payment_audit_logs.payment_id} AS entity_id",
	2, {UUIDARRAYOID, TEXTOID}
};

/* the application's audit trail has no action for it */
static const Template expire_with_audit = {
	EXPIRE ", audit_row (" AUDIT_ROW ") AS ("
	"SELECT 'data_corrected'::text, 'payment'::text, e.id,"
	" pg_catalog.jsonb_build_object('status', 'initiated'),"
	" pg_catalog.jsonb_build_object('status', 'expired'),"
	" " EXPIRY_METADATA ", 'payment expired'::text FROM expired e)"
	AUDIT_INSERT,
	2, {UUIDARRAYOID, TEXTOID}
};

/* ---------- a window ---------- */

/* AttentionStillThere; what a trigger refused is known only by trying again */
static void
still_there(Binding *binding, const AttentionKind *kind, const UuidList *ids,
			UuidList *there)
{
	if (binding_relation(binding, "payments") != NULL)
		template_ids(binding, &still_initiated, ids, there);
}

/* in the order of the key */
static int
read_candidates(PaymentExpiry *expiry, PaymentKey **window)
{
	Datum		values[4];
	uint64		rows;

	values[0] = TimestampTzGetDatum(expiry->as_of);
	values[1] = TimestampTzGetDatum(expiry->key.expires_at);
	values[2] = UUIDPGetDatum(&expiry->key.id);
	values[3] = Int64GetDatum(Min(expiry->max_rows - expiry->expired,
								  expiry->batch_size));
	rows = template_execute(expiry->binding, &next_ended, values, NULL, false);
	*window = palloc0(Max(rows, 1) * sizeof(PaymentKey));
	for (uint64 row = 0; row < rows; row++)
	{
		bool		isnull;

		(*window)[row].expires_at =
			DatumGetTimestampTz(template_column(row, "expires_at", &isnull));
		template_uuid(row, "id", &(*window)[row].id);
	}
	SPI_freetuptable(SPI_tuptable);
	return (int) rows;
}

/* behind the last candidate, or behind the last one that is done */
static void
move_key(PaymentExpiry *expiry, const PaymentKey *window, int count,
		 const pg_uuid_t *last)
{
	for (int i = 0; i < count; i++)
	{
		expiry->key = window[i];
		expiry->looked_at++;
		if (last != NULL &&
			memcmp(&window[i].id, last, sizeof(pg_uuid_t)) == 0)
			break;
	}
}

/* what is locked, and still over by then */
static UuidList
lock_and_decide(PaymentExpiry *expiry, const PaymentKey *window, int count)
{
	UuidList	candidates = {0};
	UuidList	fresh;
	UuidList	locked = {0};
	UuidList	over = {0};
	Datum		values[2];
	uint64		rows;

	for (int i = 0; i < count; i++)
		uuid_list_append(&candidates, &window[i].id);
	fresh = attention_fresh(expiry->binding, kinds_opened, &candidates,
							expiry->as_of, false);
	attention_lock(expiry->binding, ENTITY_PAYMENT, &fresh, &locked);
	values[0] = uuid_list_datum(&locked);
	values[1] = TimestampTzGetDatum(expiry->as_of);
	rows = template_execute(expiry->binding, &decide_again, values, NULL, false);
	uuid_list_append_column(&over, rows, "id");
	SPI_freetuptable(SPI_tuptable);
	return over;
}

static int64
read_changed(PaymentExpiry *expiry, Datum ids)
{
	bool		isnull;
	int64		changed;

	template_execute(expiry->binding, &count_expired, &ids, NULL, false);
	changed = DatumGetInt64(template_column(0, "changed", &isnull));
	SPI_freetuptable(SPI_tuptable);
	return changed;
}

/* of what was audited, in the words of the change feed */
static int
record_changes(Expiring *expiring, uint64 rows)
{
	PaymentExpiry *expiry = expiring->expiry;
	Change	   *changes = palloc(Max(rows, 1) * sizeof(Change));
	int			count = 0;

	for (uint64 row = 0; row < rows; row++)
	{
		pg_uuid_t	id;

		if (template_uuid(row, "entity_id", &id))
			change_set(&changes[count++], "payment", &id, NULL, "initiated",
					   "expired");
	}
	SPI_freetuptable(SPI_tuptable);
	change_record(expiry->binding, EXPIRY_VERB, expiry->source, changes, count,
				  &expiring->recorded);
	return count;
}

/* SplitChange: the change and its audit rows, one statement; the change feed */
static void
expire_some(void *state, int first, int count)
{
	Expiring   *expiring = state;
	PaymentExpiry *expiry = expiring->expiry;
	UuidList	payments = {expiring->payments.items + first, count, count};
	bool		has_log = binding_relation(expiry->binding,
										   "payment_audit_logs") != NULL;
	Datum		values[2];
	uint64		rows;
	int64		changed;
	int			told;

	values[0] = uuid_list_datum(&payments);
	values[1] = CStringGetTextDatum(expiry->source);
	rows = guard_execute(expiry->binding, "payments", &payments,
						 has_log ? &expire_with_log : &expire_with_audit,
						 values, NULL);
	told = record_changes(expiring, rows);
	split_fire_deferred(&expiry->split);
	changed = read_changed(expiry, values[0]);

	expiring->changed += changed;
	expiring->audited += rows;
	expiring->told += told;
}

/* SplitRefused */
static void
note_refused(void *state, int row, const ErrorData *error)
{
	Expiring   *expiring = state;
	AttentionItem *item = &expiring->refused[expiring->refused_count++];

	item->entity_id = expiring->payments.items[row];
	item->sqlstate = pstrdup(unpack_sql_state(error->sqlerrcode));
	item->finding = split_finding(error, "let it expire");
}

/* how many of the payments, in the order of the key, are done */
static int
expire_all(PaymentExpiry *expiry, const UuidList *payments)
{
	Expiring	expiring = {expiry, *payments};
	int			done;

	expiring.refused = palloc0(SPLIT_MAX_TRIES * sizeof(AttentionItem));
	done = split_rows(&expiry->split, expiry->binding, payments->count,
					  expire_some, note_refused, &expiring);
	audit_check(expiring.changed, expiring.audited);
	expiry->expired += expiring.told;
	change_notify(expiry->binding, EXPIRY_VERB, &expiring.recorded);
	expiry->attention += attention_open(expiry->binding, &payment_expiry_failed,
										expiring.refused,
										expiring.refused_count);
	return done;
}

/* false when nothing is left to look at */
static bool
expire_window(PaymentExpiry *expiry)
{
	PaymentKey *window;
	int			count = read_candidates(expiry, &window);
	UuidList	over;
	int			done;

	if (count == 0)
		return false;
	over = lock_and_decide(expiry, window, count);
	done = expire_all(expiry, &over);
	if (done == over.count)
		move_key(expiry, window, count, NULL);
	else if (done > 0)
		move_key(expiry, window, count, &over.items[done - 1]);
	return true;
}

/* ---------- the verb and the job ---------- */

static void
begin(PaymentExpiry *expiry, Binding *binding)
{
	expiry->binding = binding;
	verb_check_row_security(binding, relations_changed);
	verb_check_unattended(binding, expiry->source);
	state_machine_require(binding, MACHINE_PAYMENT, "initiated", "expire",
						  "expired");
	TIMESTAMP_NOBEGIN(expiry->key.expires_at);
	attention_recheck(binding, &payment_expiry_failed, still_there);
	payment_recheck_cancelled(binding);
}

static bool
is_ended_behind(const PaymentExpiry *expiry)
{
	Datum		values[3];

	values[0] = TimestampTzGetDatum(expiry->as_of);
	values[1] = TimestampTzGetDatum(expiry->key.expires_at);
	values[2] = UUIDPGetDatum(&expiry->key.id);
	template_execute(expiry->binding, &ended_behind, values, NULL, false);
	return template_bool(0, "found");
}

static void
expire_body(void *state)
{
	PaymentExpiry *expiry = state;
	Binding    *binding = binding_use(relations_changed);
	MemoryContext window_context;
	MemoryContext caller;
	bool		goes_on = true;

	binding_require(binding, "payments", "expires_at");
	begin(expiry, binding);
	window_context = AllocSetContextCreate(CurrentMemoryContext,
										   "cusown_ops payment window",
										   ALLOCSET_DEFAULT_SIZES);
	while (goes_on && split_has_tries(&expiry->split) &&
		   expiry->expired < expiry->max_rows)
	{
		CHECK_FOR_INTERRUPTS();
		caller = MemoryContextSwitchTo(window_context);
		goes_on = expire_window(expiry);
		MemoryContextSwitchTo(caller);
		MemoryContextReset(window_context);
	}
	expiry->more = goes_on && is_ended_behind(expiry);
}

/*
 * cusown_expire_payments(max_rows integer DEFAULT 500,
 *		as_of timestamptz DEFAULT now(), source text DEFAULT 'manual',
 *		dry_run boolean DEFAULT false, OUT expired bigint,
 *		OUT attention bigint, OUT more boolean)
 *
 * Expires payments that are initiated and past their expires_at.
 *
 * Errors: as cusown_expire_bookings(); UO001 also where expires_at is not bound.
 *
 * Locks: payments FOR UPDATE SKIP LOCKED.
 *
 * Source: runbook "Cron Failure"; payment expiry.
 */
Datum
cusown_expire_payments(PG_FUNCTION_ARGS)
{
	PaymentExpiry expiry = {0};
	TupleDesc	desc;
	Datum		values[3];
	bool		nulls[3] = {false};
	bool		dry_run;

	verb_check_transaction("cusown_expire_payments");
	expiry.max_rows = verb_max_rows(fcinfo, 0);
	dry_run = verb_dry_run(fcinfo, 3);
	expiry.as_of = verb_as_of(fcinfo, 1);
	verb_check_as_of(expiry.as_of, dry_run);
	/* one that may be paid beyond the clock is not over */
	if (!dry_run)
		expiry.as_of = Min(expiry.as_of, GetCurrentTimestamp());
	expiry.source = verb_source(fcinfo, 2);
	expiry.batch_size = split_window_size(expiry.max_rows);
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	verb_run(expire_body, &expiry, dry_run);

	values[0] = Int64GetDatum(expiry.expired);
	values[1] = Int64GetDatum(expiry.attention);
	values[2] = BoolGetDatum(expiry.more);
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values,
											 nulls));
}

/* where payments do not end none expires, but the worklist is rechecked */
static bool
expire_step(JobRun *run)
{
	PaymentExpiry *expiry = run->state;
	bool		goes_on;

	if (expiry->source == NULL)
	{
		expiry->source = run->source;
		expiry->as_of = run->as_of;
		expiry->max_rows = PG_INT64_MAX;
		expiry->batch_size = run->batch_size;
		begin(expiry, run->binding);
	}
	if (binding_column(run->binding, "payments", "expires_at") == NULL)
		return false;
	expiry->binding = run->binding;
	split_begin(&expiry->split);
	goes_on = expire_window(expiry);
	if (split_is_fruitless(&expiry->split))
		job_give_up(run, &expiry->split, "let it expire");
	run->counts.changed = expiry->expired;
	run->counts.attention = expiry->attention;
	run->counts.looked_at = expiry->looked_at;
	return goes_on;
}

const Job	expire_payments_job = {
	"expire_payments",
	"expires payments that were begun and not made in time",
	300, true, relations_changed, sizeof(PaymentExpiry), expire_step
};
