/*-------------------------------------------------------------------------
 *
 * repair.c
 *	  Brings slots back to what their bookings say.
 *
 * A slot becomes booked where a confirmed booking stands on it, and available
 * where nothing live stands on it although it is booked, or reserved by a hold
 * that has ended.  Nothing else is touched: not a live hold, not a slot that is
 * reserved without an end, not a booked slot with a pending booking, and no
 * booking at all.
 *
 * Candidates are found without locks.  The bookings that stand on them are
 * locked, then the slots, each by id; this is a human's verb: it waits
 * (row_lock.c).  New statements decide again and change exactly those ids.  What
 * a trigger refuses is found by splitting (split.c) and put on the worklist.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "attention.h"
#include "audit.h"
#include "change.h"
#include "row_lock.h"
#include "slot.h"
#include "split.h"
#include "state_machine.h"
#include "template.h"
#include "uuid_list.h"
#include "verb.h"

/* a slot that its bookings contradict */
typedef struct WrongSlot
{
	pg_uuid_t	id;
	char	   *status;			/* that it has */
	bool		is_taken;		/* it should be booked, else available */
	bool		repaired;
	const char *sqlstate;		/* of what refuses, or NULL */
	const char *finding;		/* why it is not repaired, or NULL */
} WrongSlot;

/* one call of cusown_repair_slots() */
typedef struct Repair
{
	Binding    *binding;
	WrongSlot  *slots;			/* in the order of their ids */
	int			slot_count;
	WrongSlot **items;			/* those that are tried, in that order */
	int			count;
	Split		split;
	int64		changed;		/* slots */
	int64		audited;		/* their audit rows */
	ChangeBatch recorded;
	ReturnSetInfo *result;
} Repair;

static const AttentionKind repair_failed = {
	"repair_failed", ENTITY_SLOT, "double_booking"
};

static const AttentionKind *const kinds_opened[] = {
	&repair_failed, NULL
};

static const char *const relations_changed[] = {
	"bookings", "slots", "audit_logs", NULL
};

PG_FUNCTION_INFO_V1(cusown_repair_slots);

/* with a condition on s, for a statement that is given ids */
#define WRONG_SLOTS(condition) \
	"SELECT s.{slots.id} AS id, s.{slots.status}::text AS status," \
	" true AS is_taken FROM {slots} s WHERE " SLOT_SHOULD_BE_BOOKED condition \
	" UNION ALL SELECT s.{slots.id}, s.{slots.status}::text, false" \
	" FROM {slots} s WHERE " SLOT_BOOKED_FOR_NOBODY condition \
	"[ UNION ALL SELECT s.{slots.id}, s.{slots.status}::text, false" \
	" FROM {slots} s WHERE s.{slots.status} = 'reserved'" \
	" AND s.{slots.reserved_until} <= pg_catalog.now()" \
	" AND NOT " SLOT_HAS(SLOT_LIVE) condition "]"

static const Template wrong_slots = {
	WRONG_SLOTS(""),
	0, {0}, true
};

static const Template wrong_again = {
	WRONG_SLOTS(" AND s.{slots.id} = ANY ($1)") " ORDER BY 1",
	1, {UUIDARRAYOID}
};

/* $1, $2 slots that become available and their statuses, $3, $4 booked */
static const Template repair_slots = {
	"WITH freed AS (UPDATE {slots} s SET {slots.status} := 'available'"
	"[, {slots.reserved_until} := NULL][, {slots.updated_at} := pg_catalog.now()]"
	" FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2))"
	" AS w (id, old_status)"
	" WHERE s.{slots.id} = w.id AND s.{slots.status} <> 'available'"
	" RETURNING s.{slots.id} AS id, w.old_status),"
	" taken AS (UPDATE {slots} s SET {slots.status} := 'booked'"
	"[, {slots.reserved_until} := NULL][, {slots.updated_at} := pg_catalog.now()]"
	" FROM ROWS FROM (pg_catalog.unnest($3), pg_catalog.unnest($4))"
	" AS w (id, old_status)"
	" WHERE s.{slots.id} = w.id AND s.{slots.status} <> 'booked'"
	" RETURNING s.{slots.id} AS id, w.old_status),"
	" repaired (id, old_status, new_status, action) AS ("
	"SELECT f.id, f.old_status, 'available'::text, 'slot_released'::text"
	" FROM freed f"
	" UNION ALL SELECT t.id, t.old_status, 'booked', 'slot_booked'"
	" FROM taken t),"
	" audit_row (" AUDIT_ROW ") AS (SELECT r.action, 'slot'::text, r.id,"
	" pg_catalog.jsonb_build_object('status', r.old_status),"
	" pg_catalog.jsonb_build_object('status', r.new_status),"
	" pg_catalog.jsonb_build_object('actor', 'system', 'source', 'manual',"
	" 'rule', 'repair', 'from', r.old_status, 'to', r.new_status),"
	" 'slot brought back to what its bookings say'::text FROM repaired r)"
	AUDIT_INSERT,
	4, {UUIDARRAYOID, TEXTARRAYOID, UUIDARRAYOID, TEXTARRAYOID}
};

/* of the slots $1 and $2 that are ours by now: what was changed */
static const Template count_changed = {
	"SELECT pg_catalog.count(*) AS changed FROM {slots} s"
	" WHERE s.{slots.id} = ANY ($1) AND (s.{slots.status} = 'available') IS TRUE"
	" OR s.{slots.id} = ANY ($2) AND (s.{slots.status} = 'booked') IS TRUE",
	2, {UUIDARRAYOID, UUIDARRAYOID}
};

/* AttentionStillThere */
static void
still_wrong(Binding *binding, const AttentionKind *kind, const UuidList *ids,
			UuidList *there)
{
	template_ids(binding, &wrong_again, ids, there);
}

static const char *
new_status(const WrongSlot *slot)
{
	return slot->is_taken ? "booked" : "available";
}

/* waits for what stands on the slots, and for them */
static void
lock_candidates(Repair *repair, UuidList *locked)
{
	UuidList	candidates = {0};
	UuidList	bookings = {0};

	uuid_list_append_stream(&candidates, repair->binding, &wrong_slots, NULL,
							NULL, false);
	row_lock_live_bookings(repair->binding, &candidates, false, &bookings);
	row_lock_slots(repair->binding, &candidates, locked);
}

static void
decide(Repair *repair, const UuidList *locked)
{
	Datum		values[1];
	uint64		rows;

	values[0] = uuid_list_datum(locked);
	rows = template_execute(repair->binding, &wrong_again, values, NULL, false);
	repair->slots = palloc0(Max(rows, 1) * sizeof(WrongSlot));
	repair->items = palloc(Max(rows, 1) * sizeof(WrongSlot *));
	repair->slot_count = (int) rows;
	for (uint64 row = 0; row < rows; row++)
	{
		WrongSlot  *slot = &repair->slots[row];

		template_uuid(row, "id", &slot->id);
		slot->status = template_text(row, "status");
		slot->is_taken = template_bool(row, "is_taken");
	}
	SPI_freetuptable(SPI_tuptable);
}

/* the parallel arrays $1 and $2, or $3 and $4 */
static void
slot_lists(const Repair *repair, int first, int count, bool are_taken,
		   Datum *ids, Datum *statuses)
{
	UuidList	list = {0};
	Datum	   *texts = palloc(Max(count, 1) * sizeof(Datum));

	for (int i = first; i < first + count; i++)
	{
		if (repair->items[i]->is_taken != are_taken)
			continue;
		texts[list.count] = CStringGetTextDatum(repair->items[i]->status);
		uuid_list_append(&list, &repair->items[i]->id);
	}
	*ids = uuid_list_datum(&list);
	*statuses = PointerGetDatum(construct_array(texts, list.count, TEXTOID, -1,
												false, TYPALIGN_INT));
}

static int64
read_changed(Repair *repair, const Datum *values)
{
	Datum		ids[2] = {values[0], values[2]};
	bool		isnull;
	int64		changed;

	template_execute(repair->binding, &count_changed, ids, NULL, false);
	changed = DatumGetInt64(template_column(0, "changed", &isnull));
	SPI_freetuptable(SPI_tuptable);
	return changed;
}

/* SplitChange: the change and its audit rows, one statement; the change feed */
static void
repair_some(void *state, int first, int count)
{
	Repair	   *repair = state;
	UuidList	audited = {0};
	Change	   *changes = palloc(count * sizeof(Change));
	Datum		values[4];
	uint64		rows;
	int64		changed;
	int			made = 0;

	slot_lists(repair, first, count, false, &values[0], &values[1]);
	slot_lists(repair, first, count, true, &values[2], &values[3]);
	rows = template_execute(repair->binding, &repair_slots, values, NULL, false);
	uuid_list_append_column(&audited, rows, "entity_id");
	SPI_freetuptable(SPI_tuptable);
	split_fire_deferred(&repair->split);
	changed = read_changed(repair, values);
	for (int i = first; i < first + count; i++)
	{
		const WrongSlot *slot = repair->items[i];

		if (uuid_list_contains(&audited, &slot->id))
			change_set(&changes[made++], "slot", &slot->id, &slot->id,
					   slot->status, new_status(slot));
	}
	change_record(repair->binding, "repair_slots", "manual", changes, made,
				  &repair->recorded);

	repair->changed += changed;
	repair->audited += rows;
	for (int i = first; i < first + count; i++)
	{
		WrongSlot  *slot = repair->items[i];

		slot->repaired = uuid_list_contains(&audited, &slot->id);
		if (!slot->repaired)
			slot->finding = "a trigger leaves it as it is";
	}
}

/* SplitRefused */
static void
note_refused(void *state, int row, const ErrorData *error)
{
	Repair	   *repair = state;
	WrongSlot  *slot = repair->items[row];

	slot->sqlstate = pstrdup(unpack_sql_state(error->sqlerrcode));
	slot->finding = split_finding(error, "change it");
}

/* those that are fresh, or those that were refused lately, while tries are left */
static void
try_slots(Repair *repair, UuidList *fresh, bool are_fresh)
{
	repair->count = 0;
	for (int i = 0; i < repair->slot_count; i++)
	{
		if (uuid_list_contains(fresh, &repair->slots[i].id) == are_fresh)
			repair->items[repair->count++] = &repair->slots[i];
	}
	if (repair->count > 0 && split_has_tries(&repair->split))
		split_rows(&repair->split, repair->binding, repair->count, repair_some,
				   note_refused, repair);
}

static void
put_on_worklist(Repair *repair, UuidList *fresh)
{
	AttentionItem *items = palloc0(Max(repair->slot_count, 1) *
								   sizeof(AttentionItem));
	int			count = 0;

	for (int i = 0; i < repair->slot_count; i++)
	{
		const WrongSlot *slot = &repair->slots[i];

		if (slot->finding == NULL || !uuid_list_contains(fresh, &slot->id))
			continue;
		items[count].entity_id = slot->id;
		items[count].sqlstate = slot->sqlstate;
		items[count].finding = slot->finding;
		count++;
	}
	attention_open(repair->binding, &repair_failed, items, count);
}

/* what was not reached says so */
static const char *
finding_of(const WrongSlot *slot)
{
	if (slot->repaired)
		return slot->is_taken ? "a confirmed booking stands on it" :
			"nothing live stands on it";
	return slot->finding != NULL ? slot->finding :
		"too many are refused: call it again";
}

static void
put_row(const Repair *repair, const WrongSlot *slot)
{
	Datum		values[5];
	bool		nulls[5] = {false};

	values[0] = UUIDPGetDatum(&slot->id);
	values[1] = CStringGetTextDatum(slot->repaired ? "repaired" : "attention");
	values[2] = CStringGetTextDatum(slot->status);
	values[3] = CStringGetTextDatum(new_status(slot));
	values[4] = CStringGetTextDatum(finding_of(slot));
	tuplestore_putvalues(repair->result->setResult, repair->result->setDesc,
						 values, nulls);
}

static void
begin(Repair *repair)
{
	repair->binding = binding_use(relations_changed);
	verb_check_row_security(repair->binding, relations_changed);
	state_machine_require(repair->binding, MACHINE_SLOT,
						  "available", "book", "booked");
	state_machine_require(repair->binding, MACHINE_SLOT,
						  "reserved", "book", "booked");
	state_machine_require(repair->binding, MACHINE_SLOT,
						  "reserved", "expire", "available");
	state_machine_require(repair->binding, MACHINE_SLOT,
						  "booked", "release", "available");
}

static void
repair_body(void *state)
{
	Repair	   *repair = state;
	UuidList	locked = {0};
	UuidList	wrong = {0};
	UuidList	fresh;

	begin(repair);
	lock_candidates(repair, &locked);
	attention_recheck(repair->binding, &repair_failed, still_wrong);
	decide(repair, &locked);
	for (int i = 0; i < repair->slot_count; i++)
		uuid_list_append(&wrong, &repair->slots[i].id);
	fresh = attention_fresh(repair->binding, kinds_opened, &wrong,
							GetCurrentTransactionStartTimestamp(), false);
	try_slots(repair, &fresh, true);
	try_slots(repair, &fresh, false);
	audit_check(repair->changed, repair->audited);
	change_notify(repair->binding, "repair_slots", &repair->recorded);
	put_on_worklist(repair, &fresh);
	for (int i = 0; i < repair->slot_count; i++)
		put_row(repair, &repair->slots[i]);
}

/*
 * cusown_repair_slots(dry_run boolean DEFAULT false, OUT slot_id uuid,
 *		OUT action text, OUT from_status text, OUT to_status text,
 *		OUT finding text)
 *		RETURNS SETOF record
 *
 * Books slots on which a confirmed booking stands, and frees booked ones, and
 * ones whose hold has ended, on which nothing live stands.
 *
 * Errors: UO001 nothing attached; 22004 argument; 25006 standby or read-only
 * transaction; 0A000 REPEATABLE READ or SERIALIZABLE; 42501 row-level security
 * would hide rows; 40P01 against who locks slots first: try again.
 *
 * Locks: waits for bookings and slots FOR UPDATE, by id.
 *
 * Source: runbook "Double Booking Alert", step 3, "release slot if needed".
 */
Datum
cusown_repair_slots(PG_FUNCTION_ARGS)
{
	Repair		repair = {0};
	bool		dry_run;

	verb_check_transaction("cusown_repair_slots");
	dry_run = verb_dry_run(fcinfo, 0);
	InitMaterializedSRF(fcinfo, 0);
	repair.result = (ReturnSetInfo *) fcinfo->resultinfo;
	verb_run(repair_body, &repair, dry_run);
	return (Datum) 0;
}
