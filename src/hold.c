/*-------------------------------------------------------------------------
 *
 * hold.c
 *	  Slots that stay reserved although their hold has ended.
 *
 * A hold ends at reserved_until.  Its slot becomes available then, also under
 * a pending booking, which may still be confirmed; or booked, where a
 * confirmed booking stands on it.  A slot that is reserved without an end
 * cannot be judged: it goes to the worklist and is not touched.
 *
 * Slots are read in the order of (reserved_until, id), in windows.  Candidates
 * are read without locks and locked FOR UPDATE SKIP LOCKED, with the pending
 * bookings on them (slot.c); new statements decide again and change exactly
 * those ids.  What a trigger of the application refuses is found by splitting
 * (split.c) and put on the worklist.  No row is ever waited for.
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
#include "job.h"
#include "slot.h"
#include "split.h"
#include "state_machine.h"
#include "template.h"
#include "uuid_list.h"
#include "verb.h"

/* how far reading has come */
typedef struct HoldKey
{
	TimestampTz reserved_until;
	pg_uuid_t	id;
} HoldKey;

/* a candidate, then one that was decided upon */
typedef struct EndedHold
{
	HoldKey		key;
	bool		is_taken;		/* a confirmed booking stands on its slot */
} EndedHold;

typedef struct EndedHolds
{
	EndedHold  *items;
	int			count;
} EndedHolds;

/* one call of cusown_release_expired_holds(), or one run of the job */
typedef struct Release
{
	Binding    *binding;
	const char *source;
	TimestampTz as_of;
	int64		max_rows;
	int			batch_size;		/* candidates of a window */
	HoldKey		key;
	Split		split;			/* of the transaction that is under way */
	/* results */
	int64		released;
	int64		booked;
	int64		attention;
	int64		looked_at;
	bool		more;
} Release;

static const AttentionKind hold_without_end = {
	"hold_without_end", ENTITY_SLOT, "cron_failure"
};

static const AttentionKind release_failed = {
	"release_failed", ENTITY_SLOT, "cron_failure"
};

static const AttentionKind *const kinds_without_end[] = {
	&hold_without_end, NULL
};

static const AttentionKind *const kinds_of_release[] = {
	&release_failed, NULL
};

static const char *const relations_changed[] = {
	"bookings", "slots", "audit_logs", NULL
};

PG_FUNCTION_INFO_V1(cusown_release_expired_holds);

/* $1 as_of, $2, $3 the key to read on behind, $4 how many */
static const Template next_ended = {
	"SELECT s.{slots.id} AS id, s.{slots.reserved_until} AS reserved_until"
	" FROM {slots} s WHERE s.{slots.status} = 'reserved'"
	" AND s.{slots.reserved_until} <= $1"
	" AND (s.{slots.reserved_until}, s.{slots.id}) > ($2, $3)"
	" ORDER BY s.{slots.reserved_until}, s.{slots.id} LIMIT $4",
	4, {TIMESTAMPTZOID, TIMESTAMPTZOID, UUIDOID, INT8OID}
};

/* whether each of the locked slots $1 that still has ended, by $2, is taken */
static const Template decide_again = {
	"SELECT s.{slots.id} AS id, s.{slots.reserved_until} AS reserved_until,"
	" EXISTS (SELECT FROM {bookings} o WHERE o.{bookings.slot_id} = s.{slots.id}"
	" AND o.{bookings.status} = 'confirmed') AS is_confirmed"
	" FROM {slots} s WHERE s.{slots.id} = ANY ($1)"
	" AND (s.{slots.status} = 'reserved') IS TRUE"
	" AND s.{slots.reserved_until} <= $2"
	" ORDER BY s.{slots.reserved_until}, s.{slots.id}",
	2, {UUIDARRAYOID, TIMESTAMPTZOID}
};

/* $1 slots that become available, $2 slots that become booked, $3 source */
static const Template end_holds = {
	"WITH freed AS (UPDATE {slots} s SET {slots.status} := 'available',"
	" {slots.reserved_until} := NULL[, {slots.updated_at} := pg_catalog.now()]"
	" WHERE s.{slots.id} = ANY ($1)"
	" AND (s.{slots.status} = 'reserved') IS TRUE RETURNING s.{slots.id} AS id),"
	" taken AS (UPDATE {slots} s SET {slots.status} := 'booked',"
	" {slots.reserved_until} := NULL[, {slots.updated_at} := pg_catalog.now()]"
	" WHERE s.{slots.id} = ANY ($2)"
	" AND (s.{slots.status} = 'reserved') IS TRUE RETURNING s.{slots.id} AS id),"
	" ended (id, to_status, action) AS ("
	"SELECT f.id, 'available'::text, 'slot_released'::text FROM freed f"
	" UNION ALL SELECT t.id, 'booked', 'slot_booked' FROM taken t),"
	" audit_row (" AUDIT_ROW ") AS (SELECT e.action, 'slot'::text, e.id,"
	" pg_catalog.jsonb_build_object('status', 'reserved'),"
	" pg_catalog.jsonb_build_object('status', e.to_status),"
	" pg_catalog.jsonb_build_object('actor', 'system', 'source', $3,"
	" 'rule', 'hold_ended', 'from', 'reserved', 'to', e.to_status),"
	" 'hold ended'::text FROM ended e)"
	AUDIT_INSERT,
	3, {UUIDARRAYOID, UUIDARRAYOID, TEXTOID}
};

/* of the slots $1 and $2 that are ours by now: what was changed */
static const Template count_changed = {
	"SELECT pg_catalog.count(*) AS changed FROM {slots} s"
	" WHERE s.{slots.id} = ANY ($1) AND (s.{slots.status} = 'available') IS TRUE"
	" OR s.{slots.id} = ANY ($2) AND (s.{slots.status} = 'booked') IS TRUE",
	2, {UUIDARRAYOID, UUIDARRAYOID}
};

static const Template ended_behind = {
	"SELECT EXISTS (SELECT FROM {slots} s"
	" WHERE s.{slots.status} = 'reserved' AND s.{slots.reserved_until} <= $1"
	" AND (s.{slots.reserved_until}, s.{slots.id}) > ($2, $3)) AS found",
	3, {TIMESTAMPTZOID, TIMESTAMPTZOID, UUIDOID}
};

/* $1 how many */
static const Template without_end = {
	"SELECT s.{slots.id} AS id FROM {slots} s"
	" WHERE s.{slots.status} = 'reserved'"
	" AND s.{slots.reserved_until} IS NULL ORDER BY s.{slots.id} LIMIT $1",
	1, {INT8OID}
};

static const Template still_reserved = {
	"SELECT s.{slots.id} AS id FROM {slots} s WHERE s.{slots.id} = ANY ($1)"
	" AND (s.{slots.status} = 'reserved') IS TRUE",
	1, {UUIDARRAYOID}
};

static const Template still_without_end = {
	"SELECT s.{slots.id} AS id FROM {slots} s WHERE s.{slots.id} = ANY ($1)"
	" AND (s.{slots.status} = 'reserved') IS TRUE"
	" AND s.{slots.reserved_until} IS NULL",
	1, {UUIDARRAYOID}
};

/* ---------- the worklist ---------- */

static void
still_there(Binding *binding, const AttentionKind *kind, const UuidList *ids,
			UuidList *there)
{
	template_ids(binding, kind == &release_failed ? &still_reserved :
				 &still_without_end, ids, there);
}

/* slots that are reserved for ever, until a human has looked at them */
static int64
find_without_end(Binding *binding, TimestampTz as_of)
{
	UuidList	ids = {0};
	UuidList	fresh;
	UuidList	locked = {0};
	UuidList	there = {0};
	AttentionItem *items;
	Datum		values[1];

	attention_recheck(binding, &hold_without_end, still_there);
	values[0] = Int64GetDatum(CUSOWN_MAX_BATCH_SIZE);
	uuid_list_append_column(&ids, template_execute(binding, &without_end,
												   values, NULL, false), "id");
	SPI_freetuptable(SPI_tuptable);
	fresh = attention_fresh(binding, kinds_without_end, &ids, as_of, true);
	attention_lock(binding, ENTITY_SLOT, &fresh, &locked);
	still_there(binding, &hold_without_end, &locked, &there);

	items = palloc0(Max(there.count, 1) * sizeof(AttentionItem));
	for (int i = 0; i < there.count; i++)
	{
		items[i].entity_id = there.items[i];
		items[i].finding = "the slot is reserved without an end";
	}
	return attention_open(binding, &hold_without_end, items, there.count);
}

/* ---------- a window ---------- */

static EndedHolds
read_holds(uint64 rows)
{
	EndedHolds	holds = {palloc0(Max(rows, 1) * sizeof(EndedHold)), rows};

	for (uint64 row = 0; row < rows; row++)
	{
		EndedHold  *hold = &holds.items[row];
		bool		isnull;

		template_uuid(row, "id", &hold->key.id);
		hold->key.reserved_until =
			DatumGetTimestampTz(template_column(row, "reserved_until", &isnull));
		hold->is_taken = template_bool(row, "is_confirmed");
	}
	SPI_freetuptable(SPI_tuptable);
	return holds;
}

static EndedHolds
read_candidates(Release *release)
{
	int64		room = release->max_rows - release->released - release->booked;
	Datum		values[4];

	values[0] = TimestampTzGetDatum(release->as_of);
	values[1] = TimestampTzGetDatum(release->key.reserved_until);
	values[2] = UUIDPGetDatum(&release->key.id);
	values[3] = Int64GetDatum(Min(room, release->batch_size));
	return read_holds(template_execute(release->binding, &next_ended, values,
									   NULL, false));
}

static UuidList
ids_of(const EndedHolds *holds)
{
	UuidList	ids = {0};

	for (int i = 0; i < holds->count; i++)
		uuid_list_append(&ids, &holds->items[i].key.id);
	return ids;
}

/* appends to quiet the slots that we have locked, all on them included */
static void
lock_quiet(Release *release, const UuidList *ids, UuidList *quiet)
{
	UuidList	locked = {0};
	UuidList	in_change = {0};

	attention_lock(release->binding, ENTITY_SLOT, ids, &locked);
	slot_in_change(release->binding, &locked, &in_change);
	for (int i = 0; i < locked.count; i++)
	{
		if (!uuid_list_contains(&in_change, &locked.items[i]))
			uuid_list_append(quiet, &locked.items[i]);
	}
}

static EndedHolds
decide(Release *release, const UuidList *locked)
{
	Datum		values[2];

	values[0] = uuid_list_datum(locked);
	values[1] = TimestampTzGetDatum(release->as_of);
	return read_holds(template_execute(release->binding, &decide_again, values,
									   NULL, false));
}

/* the slots of a window whose holds end, in the order of the key */
typedef struct Ending
{
	Release    *release;
	EndedHolds	holds;
	AttentionItem *refused;
	int			refused_count;
	int64		changed;		/* slots */
	int64		audited;		/* their audit rows */
	ChangeBatch recorded;
} Ending;

/* what the audit rows say was changed, in the words of the change feed */
static int
changes_made(uint64 rows, const EndedHolds *holds, Change *changes)
{
	UuidList	changed = {0};
	int			count = 0;

	uuid_list_append_column(&changed, rows, "entity_id");
	for (int i = 0; i < holds->count; i++)
	{
		const EndedHold *hold = &holds->items[i];

		if (uuid_list_contains(&changed, &hold->key.id))
			change_set(&changes[count++], "slot", &hold->key.id, &hold->key.id,
					   "reserved", hold->is_taken ? "booked" : "available");
	}
	return count;
}

static void
count_changes(Release *release, const Change *changes, int count)
{
	for (int i = 0; i < count; i++)
	{
		if (strcmp(changes[i].to_status, "booked") == 0)
			release->booked++;
		else
			release->released++;
	}
}

static int64
read_changed(Release *release, const Datum *ids)
{
	bool		isnull;
	int64		changed;

	template_execute(release->binding, &count_changed, ids, NULL, false);
	changed = DatumGetInt64(template_column(0, "changed", &isnull));
	SPI_freetuptable(SPI_tuptable);
	return changed;
}

/* SplitChange: the change and its audit rows, one statement; the change feed */
static void
end_some(void *state, int first, int count)
{
	Ending	   *ending = state;
	Release    *release = ending->release;
	EndedHolds	holds = {ending->holds.items + first, count};
	UuidList	free = {0};
	UuidList	taken = {0};
	Change	   *changes = palloc(count * sizeof(Change));
	Datum		values[3];
	uint64		rows;
	int64		changed;

	for (int i = 0; i < count; i++)
		uuid_list_append(holds.items[i].is_taken ? &taken : &free,
						 &holds.items[i].key.id);
	values[0] = uuid_list_datum(&free);
	values[1] = uuid_list_datum(&taken);
	values[2] = CStringGetTextDatum(release->source);
	rows = template_execute(release->binding, &end_holds, values, NULL, false);
	count = changes_made(rows, &holds, changes);
	SPI_freetuptable(SPI_tuptable);
	split_fire_deferred(&release->split);
	changed = read_changed(release, values);
	change_record(release->binding, "release_expired_holds", release->source,
				  changes, count, &ending->recorded);

	ending->changed += changed;
	ending->audited += rows;
	count_changes(release, changes, count);
}

/* SplitRefused */
static void
note_refused(void *state, int row, const ErrorData *error)
{
	Ending	   *ending = state;
	AttentionItem *item = &ending->refused[ending->refused_count++];

	item->entity_id = ending->holds.items[row].key.id;
	item->sqlstate = pstrdup(unpack_sql_state(error->sqlerrcode));
	item->finding = split_finding(error, "let it go");
}

/* how many of holds, in the order of the key, are done */
static int
end_all(Release *release, const EndedHolds *holds)
{
	Ending		ending = {release, *holds};
	int			done;

	ending.refused = palloc0(SPLIT_MAX_TRIES * sizeof(AttentionItem));
	done = split_rows(&release->split, release->binding, holds->count, end_some,
					  note_refused, &ending);
	audit_check(ending.changed, ending.audited);
	change_notify(release->binding, "release_expired_holds", &ending.recorded);
	release->attention += attention_open(release->binding, &release_failed,
										 ending.refused, ending.refused_count);
	return done;
}

/* the next window begins behind the last slot that is done, if any */
static void
return_to(Release *release, const Release *start, const EndedHolds *window,
		  const EndedHold *last)
{
	release->key = start->key;
	release->looked_at = start->looked_at;
	for (int i = 0; last != NULL && i < window->count; i++)
	{
		release->key = window->items[i].key;
		release->looked_at++;
		if (memcmp(&window->items[i].key.id, &last->key.id,
				   sizeof(pg_uuid_t)) == 0)
			break;
	}
}

/* false when nothing is left to look at */
static bool
release_window(Release *release)
{
	Release		start = *release;
	EndedHolds	window = read_candidates(release);
	UuidList	candidates = ids_of(&window);
	UuidList	fresh;
	UuidList	quiet = {0};
	EndedHolds	holds;
	int			done;

	if (window.count == 0)
		return false;
	release->key = window.items[window.count - 1].key;
	release->looked_at += window.count;
	fresh = attention_fresh(release->binding, kinds_of_release, &candidates,
							release->as_of, false);
	lock_quiet(release, &fresh, &quiet);
	holds = decide(release, &quiet);
	done = end_all(release, &holds);
	if (done < holds.count)
		return_to(release, &start, &window,
				  done == 0 ? NULL : &holds.items[done - 1]);
	return true;
}

/* ---------- the verb and the job ---------- */

static bool
is_ended_behind(const Release *release)
{
	Datum		values[3];

	values[0] = TimestampTzGetDatum(release->as_of);
	values[1] = TimestampTzGetDatum(release->key.reserved_until);
	values[2] = UUIDPGetDatum(&release->key.id);
	template_execute(release->binding, &ended_behind, values, NULL, false);
	return template_bool(0, "found");
}

static void
begin(Release *release, Binding *binding)
{
	release->binding = binding;
	verb_check_row_security(binding, relations_changed);
	verb_check_unattended(binding, release->source);
	binding_require(binding, "slots", "reserved_until");
	state_machine_require(binding, MACHINE_SLOT,
						  "reserved", "expire", "available");
	state_machine_require(binding, MACHINE_SLOT, "reserved", "book", "booked");
	TIMESTAMP_NOBEGIN(release->key.reserved_until);
	attention_recheck(binding, &release_failed, still_there);
}

static void
release_body(void *state)
{
	Release    *release = state;
	MemoryContext window_context;
	MemoryContext caller;
	bool		goes_on = true;

	begin(release, binding_use(relations_changed));
	window_context = AllocSetContextCreate(CurrentMemoryContext,
										   "cusown_ops release window",
										   ALLOCSET_DEFAULT_SIZES);
	while (goes_on && split_has_tries(&release->split) &&
		   release->released + release->booked < release->max_rows)
	{
		CHECK_FOR_INTERRUPTS();
		caller = MemoryContextSwitchTo(window_context);
		goes_on = release_window(release);
		MemoryContextSwitchTo(caller);
		MemoryContextReset(window_context);
	}
	release->more = goes_on && is_ended_behind(release);
	release->attention += find_without_end(release->binding, release->as_of);
}

/*
 * cusown_release_expired_holds(max_rows integer DEFAULT 500,
 *		as_of timestamptz DEFAULT now(), source text DEFAULT 'manual',
 *		dry_run boolean DEFAULT false, OUT released bigint,
 *		OUT booked bigint, OUT attention bigint, OUT more boolean)
 *
 * Ends holds that are over: the slot becomes available, or booked where a
 * confirmed booking stands on it.
 *
 * Errors: as cusown_expire_bookings(); UO001 also where reserved_until is not
 * bound.
 *
 * Locks: slots FOR UPDATE SKIP LOCKED.
 *
 * Source: runbook "Cron Failure", symptom "slots stuck with expired
 * reservations".
 */
Datum
cusown_release_expired_holds(PG_FUNCTION_ARGS)
{
	Release		release = {0};
	TupleDesc	desc;
	Datum		values[4];
	bool		nulls[4] = {false};
	bool		dry_run;

	verb_check_transaction("cusown_release_expired_holds");
	release.max_rows = verb_max_rows(fcinfo, 0);
	dry_run = verb_dry_run(fcinfo, 3);
	release.as_of = verb_as_of(fcinfo, 1);
	verb_check_as_of(release.as_of, dry_run);
	/* a hold that lasts beyond the clock still lives */
	if (!dry_run)
		release.as_of = Min(release.as_of, GetCurrentTimestamp());
	release.source = verb_source(fcinfo, 2);
	release.batch_size = split_window_size(release.max_rows);
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	verb_run(release_body, &release, dry_run);

	values[0] = Int64GetDatum(release.released);
	values[1] = Int64GetDatum(release.booked);
	values[2] = Int64GetDatum(release.attention);
	values[3] = BoolGetDatum(release.more);
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values,
											 nulls));
}

/* the last batch is for the worklist: it holds nothing else */
static bool
release_step(JobRun *run)
{
	Release    *release = run->state;
	bool		goes_on;

	if (release->source == NULL)
	{
		release->source = run->source;
		release->as_of = run->as_of;
		release->max_rows = PG_INT64_MAX;
		release->batch_size = run->batch_size;
		begin(release, run->binding);
	}
	release->binding = run->binding;
	split_begin(&release->split);
	goes_on = release_window(release);
	if (split_is_fruitless(&release->split))
		job_give_up(run, &release->split, "let it go");
	if (!goes_on)
		release->attention += find_without_end(run->binding, run->as_of);
	run->counts.changed = release->released + release->booked;
	run->counts.released = release->released;
	run->counts.attention = release->attention;
	run->counts.looked_at = release->looked_at;
	return goes_on;
}

const Job	release_expired_holds_job = {
	"release_expired_holds",
	"makes slots available whose hold has ended",
	60, true, relations_changed, sizeof(Release), release_step
};
