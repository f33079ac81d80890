/*-------------------------------------------------------------------------
 *
 * attention.c
 *	  The worklist cusown_ops.attention: what a human must look at.
 *
 * One row per application, kind and entity.  A verb opens a row for what it
 * finds and may not or cannot mend, leaves its entity alone until next_try,
 * and at each run rechecks the open rows of its kinds.  next_try moves away
 * by doubling steps from 5 minutes to 24 hours.  A row closed by hand is
 * opened again when its finding still holds at next_try; it keeps nothing back
 * that has become possible meanwhile.
 *
 * Locking protocol: whoever writes the row of a booking holds that booking's
 * row lock, so nobody else can be writing it, and a job takes that lock with
 * SKIP LOCKED.  As entities can be gone, and a human may wait for one, a job
 * never waits for a row of the worklist either: it takes those with SKIP
 * LOCKED and inserts only what it does not see.  The row lock of a business
 * would hold up every booking that refers to it, so whoever writes about the
 * businesses of an application holds an advisory lock instead, of a class that
 * SQL cannot ask for; likewise about the lines of its statements.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "storage/lock.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/timestamp.h"

#include "attention.h"
#include "audit.h"
#include "errors.h"
#include "template.h"
#include "verb.h"

/* open rows that one run rechecks, of each kind; a literal in the template */
#define RECHECK_LIMIT 500

/* job.c has 0xC0, pg_advisory_lock() and its kin use 1 and 2 */
#define ATTENTION_LOCK_CLASS 0xC1

static const char *const relations_used[] = {
	"bookings", "slots", "businesses", "payments", "audit_logs", NULL
};

PG_FUNCTION_INFO_V1(cusown_attention_resolve);

/* $5 .. $7 are parallel arrays: entity_id, sqlstate, finding */
#define FOUND \
	"ROWS FROM (pg_catalog.unnest($5), pg_catalog.unnest($6)," \
	" pg_catalog.unnest($7)) AS f (entity_id, sqlstate, finding)"

/* rows that are there already: seen again */
static const Template see_again = {
	"WITH mine AS MATERIALIZED (SELECT a.id AS id FROM cusown_ops.attention a"
	" WHERE a.app_schema = $1 AND a.kind = $2 AND a.entity = $3"
	" AND a.entity_id = ANY ($5)"
	" AND (a.closed_at IS NULL OR a.next_try <= pg_catalog.now())"
	" FOR UPDATE SKIP LOCKED)"
	" UPDATE cusown_ops.attention a SET"
	" last_seen := pg_catalog.now(), times := (a.times + 1),"
	" next_try := (pg_catalog.now() + least(interval '24 hours',"
	" interval '5 minutes' * pg_catalog.power(2, least(a.times, 9)))),"
	" checked_at := pg_catalog.now(), sqlstate := f.sqlstate,"
	" finding := f.finding, closed_at := NULL, closed_by := NULL"
	" FROM mine m, " FOUND
	" WHERE a.id = m.id AND f.entity_id = a.entity_id",
	7, {NAMEOID, TEXTOID, TEXTOID, TEXTOID, UUIDARRAYOID, TEXTARRAYOID, TEXTARRAYOID}
};

static const Template open_new = {
	"INSERT INTO cusown_ops.attention"
	" (app_schema, kind, entity, runbook, entity_id, sqlstate, finding,"
	" next_try)"
	" SELECT $1, $2, $3, $4, f.entity_id, f.sqlstate, f.finding,"
	" pg_catalog.now() + interval '5 minutes'"
	" FROM " FOUND
	" WHERE NOT EXISTS (SELECT FROM cusown_ops.attention a"
	" WHERE a.app_schema = $1 AND a.kind = $2 AND a.entity = $3"
	" AND a.entity_id = f.entity_id)"
	" ON CONFLICT DO NOTHING",
	7, {NAMEOID, TEXTOID, TEXTOID, TEXTOID, UUIDARRAYOID, TEXTARRAYOID, TEXTARRAYOID}
};

static const Template backed_off_entities = {
	"SELECT a.entity_id, a.closed_at IS NULL AS is_open"
	" FROM cusown_ops.attention a"
	" WHERE a.app_schema = $1 AND a.entity = $2 AND a.entity_id = ANY ($3)"
	" AND a.kind = ANY ($4) AND a.next_try > $5",
	5, {NAMEOID, TEXTOID, UUIDARRAYOID, TEXTARRAYOID, TIMESTAMPTZOID}
};

static const Template kept_back = {
	"SELECT a.entity_id FROM cusown_ops.attention a"
	" WHERE a.app_schema = $1 AND a.kind = $2"
	" AND a.next_try > pg_catalog.now()",
	2, {NAMEOID, TEXTOID}
};

static const Template oldest_checked = {
	"SELECT a.entity_id FROM cusown_ops.attention a"
	" WHERE a.app_schema = $1 AND a.kind = $2 AND a.closed_at IS NULL"
	" ORDER BY a.checked_at, a.id LIMIT 500",
	2, {NAMEOID, TEXTOID}
};

/* so that the next run begins with others */
static const Template mark_checked = {
	"WITH mine AS MATERIALIZED (SELECT a.id AS id FROM cusown_ops.attention a"
	" WHERE a.app_schema = $1 AND a.kind = $2 AND a.entity_id = ANY ($3)"
	" FOR UPDATE SKIP LOCKED)"
	" UPDATE cusown_ops.attention a SET checked_at := pg_catalog.now()"
	" FROM mine m WHERE a.id = m.id",
	3, {NAMEOID, TEXTOID, UUIDARRAYOID}
};

/* next_try := now: what is back is met by the next run */
static const Template close_gone = {
	"WITH mine AS MATERIALIZED (SELECT a.id AS id FROM cusown_ops.attention a"
	" WHERE a.app_schema = $1 AND a.kind = $2 AND a.entity_id = ANY ($3)"
	" AND a.closed_at IS NULL FOR UPDATE SKIP LOCKED)"
	" UPDATE cusown_ops.attention a SET closed_at := pg_catalog.now(),"
	" closed_by := 'recheck', next_try := pg_catalog.now(),"
	" checked_at := pg_catalog.now()"
	" FROM mine m WHERE a.id = m.id",
	3, {NAMEOID, TEXTOID, UUIDARRAYOID}
};

/* per entity: lock those of $1, find those of $1, wait for $1 */
static const Template lock_bookings = {
	"SELECT b.{bookings.id} AS id FROM {bookings} b"
	" WHERE b.{bookings.id} = ANY ($1) FOR UPDATE SKIP LOCKED",
	1, {UUIDARRAYOID}
};

static const Template existing_bookings = {
	"SELECT b.{bookings.id} AS id FROM {bookings} b"
	" WHERE b.{bookings.id} = ANY ($1)",
	1, {UUIDARRAYOID}
};

static const Template wait_for_booking = {
	"SELECT b.{bookings.id} AS id FROM {bookings} b"
	" WHERE b.{bookings.id} = $1 FOR UPDATE",
	1, {UUIDOID}
};

static const Template lock_slots = {
	"SELECT s.{slots.id} AS id FROM {slots} s"
	" WHERE s.{slots.id} = ANY ($1) FOR UPDATE SKIP LOCKED",
	1, {UUIDARRAYOID}
};

static const Template existing_slots = {
	"SELECT s.{slots.id} AS id FROM {slots} s"
	" WHERE s.{slots.id} = ANY ($1)",
	1, {UUIDARRAYOID}
};

static const Template wait_for_slot = {
	"SELECT s.{slots.id} AS id FROM {slots} s"
	" WHERE s.{slots.id} = $1 FOR UPDATE",
	1, {UUIDOID}
};

static const Template existing_businesses = {
	"SELECT z.{businesses.id} AS id FROM {businesses} z"
	" WHERE z.{businesses.id} = ANY ($1)",
	1, {UUIDARRAYOID}
};

static const Template lock_payments = {
	"SELECT p.{payments.id} AS id FROM {payments} p"
	" WHERE p.{payments.id} = ANY ($1) FOR UPDATE SKIP LOCKED",
	1, {UUIDARRAYOID}
};

static const Template existing_payments = {
	"SELECT p.{payments.id} AS id FROM {payments} p"
	" WHERE p.{payments.id} = ANY ($1)",
	1, {UUIDARRAYOID}
};

static const Template wait_for_payment = {
	"SELECT p.{payments.id} AS id FROM {payments} p"
	" WHERE p.{payments.id} = $1 FOR UPDATE",
	1, {UUIDOID}
};

/* a table of ours: what is gone from it, its still-there query tells */
static const Template existing_rows = {
	"SELECT u.id FROM pg_catalog.unnest($1) AS u (id)",
	1, {UUIDARRAYOID}
};

typedef struct Entity
{
	const char *name;
	const char *relation;		/* canonical name of its table; NULL: ours */
	const Template *lock;		/* NULL: by the advisory lock */
	const Template *existing;
	const Template *wait_for;	/* likewise */
} Entity;

static const Entity entities[] = {
	{ENTITY_BOOKING, "bookings", &lock_bookings, &existing_bookings, &wait_for_booking},
	{ENTITY_SLOT, "slots", &lock_slots, &existing_slots, &wait_for_slot},
	{ENTITY_BUSINESS, "businesses", NULL, &existing_businesses, NULL},
	{ENTITY_PAYMENT, "payments", &lock_payments, &existing_payments, &wait_for_payment},
	{ENTITY_STATEMENT_LINE, NULL, NULL, &existing_rows, NULL},
	{ENTITY_WEBHOOK_EVENT, NULL, NULL, &existing_rows, NULL},
};

static const Template entry_by_id = {
	"SELECT a.app_schema::text AS app_schema, a.kind, a.entity, a.entity_id"
	" FROM cusown_ops.attention a WHERE a.id = $1",
	1, {INT8OID}
};

static const Template close_by_hand = {
	"UPDATE cusown_ops.attention a SET closed_at := pg_catalog.now(),"
	" closed_by := (CURRENT_USER)::text, note := $2,"
	" next_try := (pg_catalog.now() + interval '24 hours')"
	" WHERE a.id = $1 AND a.closed_at IS NULL",
	2, {INT8OID, TEXTOID}
};

/* ---------- rows of our own as entities ---------- */

/* the last six bytes are the number */
#define NUMBER_BYTES 6

pg_uuid_t
attention_numbered(int64 number)
{
	pg_uuid_t	id = {{0}};

	for (int i = 0; i < NUMBER_BYTES; i++)
		id.data[UUID_LEN - 1 - i] = (unsigned char) (number >> (8 * i));
	return id;
}

static int64
number_of(const pg_uuid_t *id)
{
	int64		number = 0;

	for (int i = NUMBER_BYTES; i > 0; i--)
		number = (number << 8) | id->data[UUID_LEN - i];
	return number;
}

/* an int8[] */
Datum
attention_numbers(const UuidList *ids)
{
	Datum	   *numbers = palloc(ids->count * sizeof(Datum));

	for (int i = 0; i < ids->count; i++)
		numbers[i] = Int64GetDatum(number_of(&ids->items[i]));
	return PointerGetDatum(construct_array(numbers, ids->count, INT8OID,
										   sizeof(int64), FLOAT8PASSBYVAL,
										   TYPALIGN_DOUBLE));
}

/* of the last result */
void
attention_append_numbered(UuidList *list, uint64 rows, const char *column)
{
	for (uint64 row = 0; row < rows; row++)
	{
		bool		isnull;
		Datum		number = template_column(row, column, &isnull);
		pg_uuid_t	id = attention_numbered(DatumGetInt64(number));

		uuid_list_append(list, &id);
	}
}

static const Entity *
entity_named(const char *name)
{
	for (int i = 0; i < lengthof(entities); i++)
	{
		if (strcmp(entities[i].name, name) == 0)
			return &entities[i];
	}
	elog(ERROR, "unknown entity \"%s\" on the worklist", name);
}

/* appends to existing those of ids that there are; a table may be bound no more */
static void
find_existing(Binding *binding, const Entity *entity, const UuidList *ids,
			  UuidList *existing)
{
	if (entity->relation == NULL)
		template_ids(NULL, entity->existing, ids, existing);
	else if (binding_relation(binding, entity->relation) != NULL)
		template_ids(binding, entity->existing, ids, existing);
}

/* to the end of the transaction; false: somebody else has it */
static bool
lock_kind_of_entity(const Binding *binding, const Entity *entity, bool wait)
{
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId,
						 hash_bytes((const unsigned char *) binding->app_schema,
									strlen(binding->app_schema)),
						 hash_bytes((const unsigned char *) entity->name,
									strlen(entity->name)),
						 ATTENTION_LOCK_CLASS);
	return LockAcquire(&tag, ExclusiveLock, false, !wait) !=
		LOCKACQUIRE_NOT_AVAIL;
}

/* appends to locked those of ids that nobody else holds */
void
attention_lock(Binding *binding, const char *name, const UuidList *ids,
			   UuidList *locked)
{
	const Entity *entity = entity_named(name);

	if (entity->lock != NULL)
	{
		if (binding_relation(binding, entity->relation) != NULL)
			template_ids(binding, entity->lock, ids, locked);
	}
	else if (ids->count > 0 && lock_kind_of_entity(binding, entity, false))
		find_existing(binding, entity, ids, locked);
}

/* for a human; whether the entity is there */
static bool
wait_for(Binding *binding, const Entity *entity, const pg_uuid_t *id)
{
	UuidList	wanted = {0};
	UuidList	existing = {0};
	Datum		values[1];

	values[0] = UUIDPGetDatum(id);
	if (entity->wait_for != NULL)
		return binding_relation(binding, entity->relation) != NULL &&
			template_execute(binding, entity->wait_for, values, NULL,
							 false) > 0;
	lock_kind_of_entity(binding, entity, true);
	uuid_list_append(&wanted, id);
	find_existing(binding, entity, &wanted, &existing);
	return existing.count > 0;
}

static Datum
text_array(const AttentionItem *items, int count, bool findings)
{
	Datum	   *datums = palloc(count * sizeof(Datum));
	bool	   *nulls = palloc0(count * sizeof(bool));
	int			lower = 1;

	for (int i = 0; i < count; i++)
	{
		const char *value = findings ? items[i].finding : items[i].sqlstate;

		nulls[i] = value == NULL;
		datums[i] = nulls[i] ? (Datum) 0 : CStringGetTextDatum(value);
	}
	return PointerGetDatum(construct_md_array(datums, nulls, 1, &count, &lower,
											  TEXTOID, -1, false,
											  TYPALIGN_INT));
}

/*
 * Puts items on the worklist, or notes that they were seen again.  Returns
 * how many rows were written.  The caller holds the locks of the entities.
 */
uint64
attention_open(Binding *binding, const AttentionKind *kind,
			   const AttentionItem *items, int count)
{
	Datum		values[7];
	UuidList	ids = {0};
	uint64		written;

	if (count == 0)
		return 0;
	for (int i = 0; i < count; i++)
		uuid_list_append(&ids, &items[i].entity_id);
	values[0] = template_name(binding->app_schema);
	values[1] = CStringGetTextDatum(kind->name);
	values[2] = CStringGetTextDatum(kind->entity);
	values[3] = CStringGetTextDatum(kind->runbook);
	values[4] = uuid_list_datum(&ids);
	values[5] = text_array(items, count, false);
	values[6] = text_array(items, count, true);
	written = template_execute(NULL, &see_again, values, NULL, false);
	return written + template_execute(NULL, &open_new, values, NULL, false);
}

static Datum
kind_names(const AttentionKind *const *kinds)
{
	Datum		names[ATTENTION_MAX_KINDS];
	int			count = 0;

	while (kinds[count] != NULL)
	{
		Assert(count < ATTENTION_MAX_KINDS);
		names[count] = CStringGetTextDatum(kinds[count]->name);
		count++;
	}
	return PointerGetDatum(construct_array(names, count, TEXTOID, -1, false,
										   TYPALIGN_INT));
}

/*
 * Of those of ids with an entry of one of the kinds, all about one entity, whose
 * next_try is still to come, appends the open ones to backed_off, and those that
 * a human has closed to closed.
 */
void
attention_backed_off(Binding *binding, const AttentionKind *const *kinds,
					 const UuidList *ids, TimestampTz as_of,
					 UuidList *backed_off, UuidList *closed)
{
	Datum		values[5];
	uint64		rows;

	values[0] = template_name(binding->app_schema);
	values[1] = CStringGetTextDatum(kinds[0]->entity);
	values[2] = uuid_list_datum(ids);
	values[3] = kind_names(kinds);
	values[4] = TimestampTzGetDatum(as_of);
	rows = template_execute(NULL, &backed_off_entities, values, NULL, false);
	for (uint64 row = 0; row < rows; row++)
	{
		pg_uuid_t	id;

		template_uuid(row, "entity_id", &id);
		uuid_list_append(template_bool(row, "is_open") ? backed_off : closed,
						 &id);
	}
	SPI_freetuptable(SPI_tuptable);
}

/*
 * Those of ids that the worklist does not keep back.  An entry that is closed by
 * hand keeps back only where that is asked for.
 */
UuidList
attention_fresh(Binding *binding, const AttentionKind *const *kinds,
				const UuidList *ids, TimestampTz as_of, bool closed_too)
{
	UuidList	backed_off = {0};
	UuidList	closed = {0};
	UuidList	fresh = {0};

	attention_backed_off(binding, kinds, ids, as_of, &backed_off,
						 closed_too ? &backed_off : &closed);
	uuid_list_append_missing(&fresh, ids, &backed_off);
	return fresh;
}

static void
select_ids(Binding *binding, const Template *statement, const Datum *values,
		   const char *column, UuidList *ids)
{
	uint64		rows = template_execute(binding, statement, values, NULL, false);

	uuid_list_append_column(ids, rows, column);
	SPI_freetuptable(SPI_tuptable);
}

/*
 * Appends all entities that the worklist keeps back under this kind, also those
 * of entries that were closed by hand.
 */
void
attention_kept_back(Binding *binding, const AttentionKind *kind, UuidList *ids)
{
	Datum		values[2];

	values[0] = template_name(binding->app_schema);
	values[1] = CStringGetTextDatum(kind->name);
	select_ids(NULL, &kept_back, values, "entity_id", ids);
}

/*
 * Of the entities whose finding seems gone, those we may write about: locked
 * by us and still without it, or deleted.
 */
static void
surely_gone(Binding *binding, const AttentionKind *kind, const UuidList *ids,
			AttentionStillThere still_there, UuidList *gone)
{
	UuidList	locked = {0};
	UuidList	there = {0};
	UuidList	existing = {0};

	attention_lock(binding, kind->entity, ids, &locked);
	still_there(binding, kind, &locked, &there);
	uuid_list_append_missing(gone, &locked, &there);
	find_existing(binding, entity_named(kind->entity), ids, &existing);
	uuid_list_append_missing(gone, ids, &existing);
}

/* closes the entries of a kind about ids; the caller holds their locks */
void
attention_close(Binding *binding, const AttentionKind *kind,
				const UuidList *ids)
{
	Datum		values[3];

	values[0] = template_name(binding->app_schema);
	values[1] = CStringGetTextDatum(kind->name);
	values[2] = uuid_list_datum(ids);
	template_execute(NULL, &close_gone, values, NULL, false);
}

/*
 * Looks at the open rows of a kind, the longest unchecked first, and closes
 * those whose finding is gone.
 */
void
attention_recheck(Binding *binding, const AttentionKind *kind,
				  AttentionStillThere still_there)
{
	UuidList	open = {0};
	UuidList	there = {0};
	UuidList	seemingly_gone = {0};
	UuidList	gone = {0};
	Datum		values[3];

	values[0] = template_name(binding->app_schema);
	values[1] = CStringGetTextDatum(kind->name);
	select_ids(NULL, &oldest_checked, values, "entity_id", &open);
	if (open.count == 0)
		return;

	still_there(binding, kind, &open, &there);
	uuid_list_append_missing(&seemingly_gone, &open, &there);
	if (seemingly_gone.count > 0)
		surely_gone(binding, kind, &seemingly_gone, still_there, &gone);
	if (gone.count > 0)
		attention_close(binding, kind, &gone);
	if (open.count == RECHECK_LIMIT)
	{
		values[2] = uuid_list_datum(&open);
		template_execute(NULL, &mark_checked, values, NULL, false);
	}
}

typedef struct Resolution
{
	int64		id;				/* of the worklist row */
	char	   *note;
	bool		closed;
} Resolution;

static void
audit_resolution(Binding *binding, const Resolution *resolution,
				 const char *kind, const char *entity,
				 const pg_uuid_t *entity_id)
{
	StringInfoData metadata;

	initStringInfo(&metadata);
	appendStringInfo(&metadata, "{\"source\": \"manual\", \"attention_id\": "
					 INT64_FORMAT ", \"kind\": ", resolution->id);
	escape_json(&metadata, kind);
	appendStringInfoString(&metadata, ", \"note\": ");
	escape_json(&metadata, resolution->note);
	appendStringInfoChar(&metadata, '}');
	audit_write(binding, "data_corrected", entity, entity_id, metadata.data,
				"worklist entry closed by hand");
}

static void
resolve_body(void *state)
{
	Resolution *resolution = state;
	Binding    *binding;
	pg_uuid_t	entity_id;
	char	   *kind;
	char	   *entity;
	char	   *app_schema;
	Datum		values[2];

	values[0] = Int64GetDatum(resolution->id);
	if (template_execute(NULL, &entry_by_id, values, NULL, false) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_CUSOWN_NOT_FOUND),
				 errmsg("worklist entry " INT64_FORMAT " does not exist",
						resolution->id)));
	app_schema = template_text(0, "app_schema");
	kind = template_text(0, "kind");
	entity = template_text(0, "entity");
	template_uuid(0, "entity_id", &entity_id);
	binding = binding_use_schema(app_schema, relations_used);

	if (!wait_for(binding, entity_named(entity), &entity_id))
		verb_check_visible(binding, entity_named(entity)->relation, &entity_id);
	values[0] = Int64GetDatum(resolution->id);
	values[1] = CStringGetTextDatum(resolution->note);
	resolution->closed =
		template_execute(NULL, &close_by_hand, values, NULL, false) > 0;
	if (resolution->closed)
		audit_resolution(binding, resolution, kind,
						 entity_named(entity)->relation == NULL ? "system" :
						 entity, &entity_id);
}

/*
 * cusown_attention_resolve(id bigint, note text) RETURNS boolean
 *
 * Closes a worklist entry by hand, with a note, and writes an audit row
 * data_corrected.  False when it was closed already.  Should the finding
 * still hold 24 hours later, the next run opens the entry again.
 *
 * Errors: UO002 no such entry; UO001 its application is not attached; 22023
 * empty note.  Locks: waits for the entity's row, then for the entry.
 */
Datum
cusown_attention_resolve(PG_FUNCTION_ARGS)
{
	Resolution	resolution = {0};

	verb_check_transaction("cusown_attention_resolve");
	verb_check_not_null(fcinfo, 0, "id");
	verb_check_not_null(fcinfo, 1, "note");
	resolution.id = PG_GETARG_INT64(0);
	resolution.note = text_to_cstring(PG_GETARG_TEXT_PP(1));
	if (resolution.note[0] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("note must not be empty"),
				 errhint("Say what was done, for whoever reads the worklist next.")));
	verb_run(resolve_body, &resolution, false);
	PG_RETURN_BOOL(resolution.closed);
}
