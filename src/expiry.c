/*-------------------------------------------------------------------------
 *
 * expiry.c
 *	  Expires pending bookings that are older than they may get.
 *
 * What is due, and with which verdict, is read by due.c, in windows of
 * batch_size.  Each window goes
 * through the locking protocol that keeps a job out of every deadlock, since
 * it never waits for a row, and out of every race, since it decides again
 * after it has locked:
 *
 * A  candidates and a first verdict are read without locks;
 * B  their payments are locked FOR SHARE SKIP LOCKED; a booking with one that
 *	  was not locked is dropped, since someone is changing it;
 * C  booking and slot are locked together, FOR UPDATE SKIP LOCKED; a pair
 *	  counts only whole.  So are the other pending bookings on the slot: where
 *	  one cannot be locked, as somebody may be confirming it, the pair is
 *	  dropped.  For a human's case the booking alone is locked;
 * D  in new statements, each with a new snapshot, the verdict is asked again,
 *	  the CHECKs are asked, and exactly those ids are changed.  A payment that
 *	  appeared since B drops its booking.  Whoever adds a payment under a
 *	  foreign key waits for C.
 *
 * What a trigger of the application refuses all the same is found by splitting
 * the window (split.c), is put on the worklist, and does not stop the rest.
 *
 * A condition on another table inside the changing UPDATE would not be
 * rechecked after a wait; that is why deciding and changing are two
 * statements.
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
#include "cusown_ops.h"
#include "due.h"
#include "expiry.h"
#include "job.h"
#include "lazy.h"
#include "refund.h"
#include "slot.h"
#include "split.h"
#include "state_machine.h"
#include "template.h"
#include "uuid_list.h"
#include "verb.h"

/* one call of cusown_expire_bookings(), or one run of the job */
typedef struct Expiry
{
	DueRules	rules;
	const DueRule *rule;		/* the one that is applied */
	Split		split;			/* of the transaction that is under way */
	TimestampTz holds_as_of;	/* a hold is over by then; never ahead of the
								 * clock, but in a dry run */
	int64		max_rows;
	int			batch_size;		/* candidates of a window */
	const char *source;
	Binding    *binding;
	ReadingKey	key;
	/* results */
	int64		expired;
	int64		released;
	int64		attention;
	int64		looked_at;
	bool		more;
} Expiry;

/* what phases B and C have locked in one window */
typedef struct Locked
{
	UuidList	payments;
	UuidList	pairs;			/* bookings locked together with their slot */
	UuidList	bookings;		/* bookings locked, pairs included */
} Locked;

static const AttentionKind paid_pending = {
	"paid_pending", ENTITY_BOOKING, "payment_mismatch"
};

static const AttentionKind unexpirable = {
	"unexpirable", ENTITY_BOOKING, "cron_failure"
};

static const AttentionKind expiry_failed = {
	"expiry_failed", ENTITY_BOOKING, "cron_failure"
};

static const AttentionKind *const kinds_opened[] = {
	&paid_pending, &unexpirable, &expiry_failed, NULL
};

static const char *const relations_changed[] = {
	"bookings", "slots", "payments", "audit_logs", "booking_lifecycle_audit",
	NULL
};

PG_FUNCTION_INFO_V1(cusown_expire_bookings);

/* B */
static const Template lock_payments = {
	"WITH locked AS MATERIALIZED (SELECT p.{payments.id} AS id"
	" FROM {payments} p WHERE p.{payments.booking_id} = ANY ($1)"
	" FOR SHARE SKIP LOCKED)"
	" SELECT p.{payments.booking_id} AS booking_id, l.id AS locked_id"
	" FROM {payments} p LEFT JOIN locked l ON l.id = p.{payments.id}"
	" WHERE p.{payments.booking_id} = ANY ($1)",
	1, {UUIDARRAYOID}
};

/* C */
static const Template lock_pairs = {
	"SELECT b.{bookings.id} AS id FROM {bookings} b"
	" JOIN {slots} s ON s.{slots.id} = b.{bookings.slot_id}"
	" WHERE b.{bookings.id} = ANY ($1) AND " BOOKING_IS_PENDING
	" FOR UPDATE OF b, s SKIP LOCKED",
	1, {UUIDARRAYOID}
};

static const Template lock_bookings = {
	"SELECT b.{bookings.id} AS id FROM {bookings} b"
	" WHERE b.{bookings.id} = ANY ($1) AND " BOOKING_IS_PENDING
	" FOR UPDATE SKIP LOCKED",
	1, {UUIDARRAYOID}
};

/*
 * D: $1 bookings, $2 and $3 the slots to free and their statuses, $4 source,
 * $5 the age in seconds that the rule $7 asks for, $6 how many of the bookings
 * stand on each slot: it stays where a BEFORE trigger keeps one of them.
 */
static const Template expire_and_free = {
	"WITH expired AS (UPDATE {bookings} b SET"
	" {bookings.status} := 'cancelled'"
	"[, {bookings.cancelled_by} := 'system']"
	"[, {bookings.cancelled_at} := pg_catalog.now()]"
	"[, {bookings.cancellation_reason} := 'expired']"
	"[, {bookings.updated_at} := pg_catalog.now()]"
	" WHERE b.{bookings.id} = ANY ($1) AND " BOOKING_IS_PENDING
	" RETURNING b.{bookings.id} AS id, b.{bookings.slot_id} AS slot_id),"
	SLOTS_FREED_BY("expired", "$2", "$3", "$6")
	"[ lifecycle AS (INSERT INTO {booking_lifecycle_audit}"
	" ({booking_lifecycle_audit.booking_id},"
	" {booking_lifecycle_audit.old_slot_id},"
	" {booking_lifecycle_audit.action_type},"
	" {booking_lifecycle_audit.actor_type},"
	" {booking_lifecycle_audit.created_at})"
	" SELECT e.id, e.slot_id, 'expire', 'system', pg_catalog.now()"
	" FROM expired e),]"
	" audit_row (" AUDIT_ROW ") AS ("
	"SELECT 'booking_cancelled'::text, 'booking'::text, e.id,"
	" pg_catalog.jsonb_build_object('status', 'pending'),"
	" pg_catalog.jsonb_build_object('status', 'cancelled',"
	" 'cancelled_by', 'system', 'cancellation_reason', 'expired'),"
	" pg_catalog.jsonb_build_object('actor', 'system', 'source', $4,"
	" 'rule', $7, 'age_seconds', $5,"
	" 'from', 'pending', 'to', 'cancelled'),"
	" 'pending booking expired'::text FROM expired e"
	" UNION ALL SELECT 'slot_released', 'slot', f.id,"
	" pg_catalog.jsonb_build_object('status', f.old_status),"
	" pg_catalog.jsonb_build_object('status', 'available'),"
	" pg_catalog.jsonb_build_object('actor', 'system', 'source', $4,"
	" 'rule', 'booking_expired',"
	" 'from', f.old_status, 'to', 'available'),"
	" 'slot released by expiry' FROM freed f)"
	AUDIT_INSERT,
	7, {UUIDARRAYOID, UUIDARRAYOID, TEXTARRAYOID, TEXTOID, INT8OID, INT8ARRAYOID, TEXTOID}
};

/* ---------- the worklist ---------- */

/*
 * Still there is a pending booking that is paid, or that cannot be cancelled,
 * whatever its age by now.
 */
static void
still_there(Binding *binding, const AttentionKind *kind, const UuidList *ids,
			UuidList *there)
{
	DueBookings pending = due_read_any_age(binding, ids);
	Verdict		wanted = kind == &paid_pending ? VERDICT_PAID : VERDICT_REFUSED;

	for (int i = 0; i < pending.count; i++)
	{
		if (pending.items[i].verdict == wanted)
			uuid_list_append(there, &pending.items[i].id);
	}
}

/*
 * What a trigger refused is known only by trying again, at next_try; until then
 * it is still there while the booking is pending.
 */
static void
still_pending(Binding *binding, const AttentionKind *kind, const UuidList *ids,
			  UuidList *there)
{
	DueBookings pending = due_read_any_age(binding, ids);

	for (int i = 0; i < pending.count; i++)
		uuid_list_append(there, &pending.items[i].id);
}

static void
put_on_worklist(Expiry *expiry, const AttentionKind *kind,
				const DueBookings *due, Verdict verdict)
{
	AttentionItem *items = palloc(Max(due->count, 1) * sizeof(AttentionItem));
	int			count = 0;

	for (int i = 0; i < due->count; i++)
	{
		const DueBooking *booking = &due->items[i];

		if (booking->verdict != verdict)
			continue;
		items[count].entity_id = booking->id;
		items[count].sqlstate = booking->sqlstate;
		items[count].finding = booking->finding;
		count++;
	}
	expiry->attention += attention_open(expiry->binding, kind, items, count);
}

/* ---------- the phases of a window ---------- */

/*
 * What is left of a window for the locks: without bookings that the worklist
 * keeps back (of one closed by
 * hand, only what would open it again), without those in flight, and at most as many as may still be
 * expired.  Moves the key behind the last one looked at.
 */
static DueBookings
choose(Expiry *expiry, const DueBookings *window)
{
	DueBookings chosen = {0};
	UuidList	all = {0};
	UuidList	backed_off = {0};
	UuidList	closed = {0};
	int64		room = expiry->max_rows - expiry->expired;

	for (int i = 0; i < window->count; i++)
		uuid_list_append(&all, &window->items[i].id);
	attention_backed_off(expiry->binding, kinds_opened, &all, expiry->rule->as_of,
						 &backed_off, &closed);

	chosen.items = palloc(Max(window->count, 1) * sizeof(DueBooking));
	for (int i = 0; i < window->count && room > 0; i++)
	{
		const DueBooking *booking = &window->items[i];

		due_move_key(&expiry->key, booking);
		expiry->looked_at++;
		if (booking->verdict == VERDICT_IN_FLIGHT ||
			uuid_list_contains(&backed_off, &booking->id) ||
			(booking->verdict != VERDICT_EXPIRE &&
			 uuid_list_contains(&closed, &booking->id)))
			continue;
		if (booking->verdict == VERDICT_EXPIRE)
			room--;
		chosen.items[chosen.count++] = *booking;
	}
	return chosen;
}

/* B: appends what was locked; bookings with a payment that was not go */
static void
share_lock_payments(Binding *binding, DueBookings *due, Locked *locked)
{
	UuidList	ids = {0};
	UuidList	in_change = {0};
	Datum		values[1];
	uint64		rows;
	int			kept = 0;

	if (binding_relation(binding, "payments") == NULL)
		return;
	for (int i = 0; i < due->count; i++)
		uuid_list_append(&ids, &due->items[i].id);
	values[0] = uuid_list_datum(&ids);
	rows = template_execute(binding, &lock_payments, values, NULL, false);
	for (uint64 row = 0; row < rows; row++)
	{
		pg_uuid_t	id;

		if (template_uuid(row, "locked_id", &id))
			uuid_list_append(&locked->payments, &id);
		else if (template_uuid(row, "booking_id", &id))
			uuid_list_append(&in_change, &id);
	}
	SPI_freetuptable(SPI_tuptable);

	for (int i = 0; i < due->count; i++)
	{
		if (!uuid_list_contains(&in_change, &due->items[i].id))
			due->items[kept++] = due->items[i];
	}
	due->count = kept;
}

/* bookings locked with a slot that nobody is changing otherwise */
static void
keep_quiet_pairs(Binding *binding, const DueBookings *due, UuidList *paired,
				 UuidList *pairs)
{
	UuidList	slots = {0};
	UuidList	in_change = {0};

	for (int i = 0; i < due->count; i++)
	{
		if (uuid_list_contains(paired, &due->items[i].id))
			uuid_list_append(&slots, &due->items[i].slot_id);
	}
	slot_in_change(binding, &slots, &in_change);
	for (int i = 0; i < due->count; i++)
	{
		if (uuid_list_contains(paired, &due->items[i].id) &&
			!uuid_list_contains(&in_change, &due->items[i].slot_id))
			uuid_list_append(pairs, &due->items[i].id);
	}
}

/* C */
static void
lock_chosen(Binding *binding, const DueBookings *due, Locked *locked)
{
	UuidList	to_expire = due_ids_with_verdict(due, VERDICT_EXPIRE);
	UuidList	for_humans = {0};
	UuidList	paired = {0};

	for (int i = 0; i < due->count; i++)
	{
		if (due->items[i].verdict != VERDICT_EXPIRE)
			uuid_list_append(&for_humans, &due->items[i].id);
	}
	template_ids(binding, &lock_pairs, &to_expire, &paired);
	keep_quiet_pairs(binding, due, &paired, &locked->pairs);
	for (int i = 0; i < locked->pairs.count; i++)
		uuid_list_append(&locked->bookings, &locked->pairs.items[i]);
	template_ids(binding, &lock_bookings, &for_humans, &locked->bookings);
}

/*
 * D: the verdict under our locks.  What was not locked as it would have to be
 * is left for the next run.
 */
static DueBookings
decide(Expiry *expiry, Locked *locked)
{
	DueBookings due;
	int			kept = 0;

	due = due_read_again(expiry->binding, expiry->rule, &locked->bookings,
						 &locked->payments);
	for (int i = 0; i < due.count; i++)
	{
		DueBooking *booking = &due.items[i];

		if (booking->payment_unlocked ||
			booking->verdict == VERDICT_IN_FLIGHT ||
			(booking->verdict == VERDICT_EXPIRE &&
			 !uuid_list_contains(&locked->pairs, &booking->id)))
			continue;
		due.items[kept++] = *booking;
	}
	due.count = kept;
	due_ask_checks(expiry->binding, &due, false);
	return due;
}

static UuidList
slots_of(const DueBookings *due)
{
	UuidList	ids = {0};

	for (int i = 0; i < due->count; i++)
		uuid_list_append(&ids, &due->items[i].slot_id);
	return ids;
}

/*
 * What the audit rows say was changed, which is what BEFORE triggers let
 * pass, in the words of the change feed.
 */
static int
changes_made(uint64 rows, const DueBookings *due, const SlotsToFree *slots,
			 Change *changes)
{
	UuidList	changed = {0};
	int			count = 0;

	uuid_list_append_column(&changed, rows, "entity_id");
	for (int i = 0; i < due->count; i++)
	{
		const DueBooking *booking = &due->items[i];

		if (uuid_list_contains(&changed, &booking->id))
			change_set(&changes[count++], "booking", &booking->id,
					   &booking->slot_id, "pending", "cancelled");
	}
	for (int i = 0; i < slots->count; i++)
	{
		const SlotToFree *slot = &slots->items[i];

		if (uuid_list_contains(&changed, &slot->id))
			change_set(&changes[count++], "slot", &slot->id, &slot->id,
					   slot->status, "available");
	}
	return count;
}

static void
count_changes(Expiry *expiry, const Change *changes, int count)
{
	for (int i = 0; i < count; i++)
	{
		if (strcmp(changes[i].entity, "booking") == 0)
			expiry->expired++;
		else
			expiry->released++;
	}
}

/* the bookings of a window that expire, in the order of the key */
typedef struct Expiring
{
	Expiry	   *expiry;
	DueBookings due;
	AttentionItem *refused;
	int			refused_count;
	int64		changed;		/* rows of bookings and slots */
	int64		audited;		/* their audit rows */
	ChangeBatch recorded;
} Expiring;

/* SplitChange: the change and its audit rows, one statement; the change feed */
static void
expire_some(void *state, int first, int count)
{
	Expiring   *expiring = state;
	Expiry	   *expiry = expiring->expiry;
	DueBookings due = {expiring->due.items + first, count};
	UuidList	bookings = due_ids_with_verdict(&due, VERDICT_EXPIRE);
	int64		age = expiry->rule->as_of - expiry->rule->before;
	UuidList	occupied = slots_of(&due);
	SlotsToFree slots = slot_find_to_free(expiry->binding, &bookings, &occupied,
										  expiry->holds_as_of);
	Change	   *changes = palloc((count + slots.count) * sizeof(Change));
	int64		changed;
	uint64		audited;
	Datum		values[7];

	values[0] = uuid_list_datum(&bookings);
	slot_arrays(&slots, &values[1], &values[2], &values[5]);
	values[3] = CStringGetTextDatum(expiry->source);
	values[4] = Int64GetDatum(age / USECS_PER_SEC);
	values[6] = CStringGetTextDatum(due_rule_name(expiry->rule));
	audited = template_execute(expiry->binding, &expire_and_free, values, NULL,
							   false);
	count = changes_made(audited, &due, &slots, changes);
	SPI_freetuptable(SPI_tuptable);
	split_fire_deferred(&expiry->split);
	changed = slot_count_changed(expiry->binding, values);
	change_record(expiry->binding, "expire_bookings", expiry->source, changes,
				  count, &expiring->recorded);

	expiring->changed += changed;
	expiring->audited += audited;
	count_changes(expiry, changes, count);
}

/* SplitRefused */
static void
note_refused(void *state, int row, const ErrorData *error)
{
	Expiring   *expiring = state;
	AttentionItem *item = &expiring->refused[expiring->refused_count++];

	item->entity_id = expiring->due.items[row].id;
	item->sqlstate = pstrdup(unpack_sql_state(error->sqlerrcode));
	item->finding = split_finding(error, "cancel it");
}

/*
 * D.  Returns how many of due, in the order of the key, are done; not all when
 * the tries did not suffice.
 */
static int
expire(Expiry *expiry, const DueBookings *due)
{
	Expiring	expiring = {expiry, *due};
	int			done;

	expiring.refused = palloc0(SPLIT_MAX_TRIES * sizeof(AttentionItem));
	done = split_rows(&expiry->split, expiry->binding, due->count, expire_some,
					  note_refused, &expiring);
	audit_check(expiring.changed, expiring.audited);
	change_notify(expiry->binding, "expire_bookings", &expiring.recorded);
	expiry->attention += attention_open(expiry->binding, &expiry_failed,
										expiring.refused,
										expiring.refused_count);
	return done;
}

/* how far reading has come, in key and count */
typedef struct Position
{
	ReadingKey	key;
	int64		looked_at;
} Position;

/* the next window begins behind the last booking that is done, if any */
static void
return_to(Expiry *expiry, const Position *start, const DueBookings *window,
		  const DueBooking *last)
{
	expiry->key = start->key;
	expiry->looked_at = start->looked_at;
	for (int i = 0; last != NULL && i < window->count; i++)
	{
		due_move_key(&expiry->key, &window->items[i]);
		expiry->looked_at++;
		if (memcmp(&window->items[i].id, &last->id, sizeof(pg_uuid_t)) == 0)
			break;
	}
}

/* what is locked; moves the key back where not all could be tried */
static void
decide_and_change(Expiry *expiry, Locked *locked, const Position *start,
				  const DueBookings *window)
{
	DueBookings due = decide(expiry, locked);
	DueBookings expiring = due_with_verdict(&due, VERDICT_EXPIRE);
	int			done = expire(expiry, &expiring);

	put_on_worklist(expiry, &paid_pending, &due, VERDICT_PAID);
	put_on_worklist(expiry, &unexpirable, &due, VERDICT_REFUSED);
	if (done < expiring.count)
		return_to(expiry, start, window,
				  done == 0 ? NULL : &expiring.items[done - 1]);
}

/* one window; false when nothing is left to look at */
static bool
expire_window(Expiry *expiry)
{
	Position	start = {expiry->key, expiry->looked_at};
	DueBookings window;
	DueBookings due;
	Locked		locked = {0};

	window = due_read_next(expiry->binding, expiry->rule, &expiry->key,
						   expiry->batch_size, false);
	if (window.count == 0)
		return false;
	due = choose(expiry, &window);
	share_lock_payments(expiry->binding, &due, &locked);
	lock_chosen(expiry->binding, &due, &locked);
	if (locked.bookings.count > 0)
		decide_and_change(expiry, &locked, &start, &window);
	return true;
}

/* ---------- the verbs ---------- */

static void
ask_state_machine(const Binding *binding)
{
	state_machine_require(binding, MACHINE_BOOKING,
						  "pending", "expire", "cancelled");
	state_machine_require(binding, MACHINE_SLOT,
						  "reserved", "expire", "available");
	state_machine_require(binding, MACHINE_SLOT,
						  "booked", "release", "available");
}

/* before the first window */
static void
begin(Expiry *expiry, Binding *binding)
{
	expiry->binding = binding;
	verb_check_row_security(binding, relations_changed);
	verb_check_unattended(binding, expiry->source);
	ask_state_machine(binding);
	attention_recheck(binding, &paid_pending, still_there);
	attention_recheck(binding, &unexpirable, still_there);
	attention_recheck(binding, &expiry_failed, still_pending);
	/* a request is no run of the job */
	if (strcmp(expiry->source, LAZY_SOURCE) != 0)
		expiry->attention += refund_find(binding);
}

/* as far as max_rows and the tries allow */
static void
apply_rule(Expiry *expiry, const DueRule *rule)
{
	MemoryContext window_context;
	MemoryContext caller;
	bool		goes_on = true;

	expiry->rule = rule;
	expiry->key = due_first_key();
	window_context = AllocSetContextCreate(CurrentMemoryContext,
										   "cusown_ops expiry window",
										   ALLOCSET_DEFAULT_SIZES);
	while (goes_on && expiry->expired < expiry->max_rows &&
		   split_has_tries(&expiry->split))
	{
		CHECK_FOR_INTERRUPTS();
		caller = MemoryContextSwitchTo(window_context);
		goes_on = expire_window(expiry);
		MemoryContextSwitchTo(caller);
		MemoryContextReset(window_context);
	}
	if (goes_on && due_is_any_behind(expiry->binding, rule, &expiry->key))
		expiry->more = true;
}

static void
expire_body(void *state)
{
	Expiry	   *expiry = state;

	begin(expiry, binding_use(relations_changed));
	due_require(expiry->binding, &expiry->rules);
	for (int i = 0; i < expiry->rules.count; i++)
		apply_rule(expiry, &expiry->rules.items[i]);
}

/*
 * cusown_expire_bookings(older_than interval DEFAULT NULL,
 *		max_rows integer DEFAULT 500, as_of timestamptz DEFAULT now(),
 *		source text DEFAULT 'manual', hold_grace interval DEFAULT NULL,
 *		dry_run boolean DEFAULT false, OUT expired bigint,
 *		OUT released bigint, OUT attention bigint, OUT more boolean)
 *
 * Cancels pending bookings older than older_than (NULL: booking_ttl), then
 * those whose slot's hold ended more than hold_grace ago (NULL: none), and
 * frees their slots; at most max_rows bookings, in the caller's transaction.
 * Where triggers refuse many of them it ends after 50 tries, with more = true.
 *
 * Errors: UO001 nothing attached, or reserved_until not bound and hold_grace
 * given; 22023, 22004 arguments; 25006 standby or
 * read-only transaction; 0A000 REPEATABLE READ or SERIALIZABLE; 42501
 * row-level security would hide rows, or source cron or worker as a superuser
 * over tables of others.
 *
 * Locks: payments FOR SHARE, bookings and slots FOR UPDATE, all SKIP LOCKED.
 *
 * Source: runbook "Cron Failure", step 3, manual run.
 */
Datum
cusown_expire_bookings(PG_FUNCTION_ARGS)
{
	Expiry		expiry = {0};
	TimestampTz as_of;
	TupleDesc	desc;
	Datum		values[4];
	bool		nulls[4] = {false};
	bool		dry_run;

	verb_check_transaction("cusown_expire_bookings");
	expiry.max_rows = verb_max_rows(fcinfo, 1);
	expiry.source = verb_source(fcinfo, 3);
	dry_run = verb_dry_run(fcinfo, 5);
	as_of = verb_as_of(fcinfo, 2);
	verb_check_as_of(as_of, dry_run);
	expiry.holds_as_of = dry_run ? as_of : Min(as_of, GetCurrentTimestamp());
	expiry.rules = due_rules(fcinfo, 0, 4, as_of, expiry.holds_as_of);
	expiry.batch_size = split_window_size(expiry.max_rows);

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	verb_run(expire_body, &expiry, dry_run);

	values[0] = Int64GetDatum(expiry.expired);
	values[1] = Int64GetDatum(expiry.released);
	values[2] = Int64GetDatum(expiry.attention);
	values[3] = BoolGetDatum(expiry.more);
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values,
											 nulls));
}

static void
begin_run(Expiry *expiry, const JobRun *run)
{
	Interval	ttl = due_booking_ttl();

	expiry->rules.count = 1;
	expiry->rules.items[0] = due_rule(DUE_OLDER_THAN, &ttl, "booking_ttl",
									  run->as_of);
	expiry->rule = &expiry->rules.items[0];
	expiry->holds_as_of = run->as_of;
	expiry->source = run->source;
	expiry->batch_size = run->batch_size;
	expiry->max_rows = PG_INT64_MAX;
	expiry->key = due_first_key();
	begin(expiry, run->binding);
}

/*
 * For who runs it in a frame of its own: expires what is due now, at most
 * max_rows bookings.  binding was taken with the relations of
 * expire_bookings_job.  own_transaction: deferred triggers are ours to fire.
 */
void
expiry_run(Binding *binding, const char *source, int64 max_rows,
		   bool own_transaction, JobCounts *counts)
{
	Expiry		expiry = {0};
	JobRun		run = {0};

	run.binding = binding;
	run.source = source;
	run.as_of = GetCurrentTimestamp();
	run.batch_size = cusown_batch_size;
	begin_run(&expiry, &run);
	expiry.max_rows = max_rows;
	expiry.split.own_transaction = own_transaction;
	apply_rule(&expiry, &expiry.rules.items[0]);
	counts->changed = expiry.expired;
	counts->released = expiry.released;
	counts->attention = expiry.attention;
	counts->looked_at = expiry.looked_at;
}

/* a batch of the job: one window, the key carried from batch to batch */
static bool
expire_step(JobRun *run)
{
	Expiry	   *expiry = run->state;
	bool		goes_on;

	if (expiry->source == NULL)
		begin_run(expiry, run);
	expiry->binding = run->binding;
	split_begin(&expiry->split);
	goes_on = expire_window(expiry);
	if (split_is_fruitless(&expiry->split))
		job_give_up(run, &expiry->split, "cancel it");
	run->counts.changed = expiry->expired;
	run->counts.released = expiry->released;
	run->counts.attention = expiry->attention;
	run->counts.looked_at = expiry->looked_at;
	return goes_on;
}

const Job	expire_bookings_job = {
	"expire_bookings",
	"cancels pending bookings that are older than cusown_ops.booking_ttl",
	300, true, relations_changed, sizeof(Expiry), expire_step
};
