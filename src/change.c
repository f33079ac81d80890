/*-------------------------------------------------------------------------
 *
 * change.c
 *	  What our verbs changed, for the application that must tell somebody.
 *
 * Whoever expires a booking instead of the application owes it a way to know
 * which.  Each verb writes a row of cusown_ops.change per change, in its own
 * transaction; cusown_changes_since() reads on behind a cursor.
 *
 * Ids are given out in another order than transactions commit, so reading
 * behind the greatest id would skip what commits late.  Rows are therefore
 * ordered by (transaction id, id), and only those below the oldest transaction
 * that still runs are given: nothing can appear before them any more.
 *
 * Transaction ids mean nothing in another database.  The cursor carries the
 * id of the stream, a row that is made with the extension and not dumped, so
 * that a cursor from before a dump and restore is refused.  The same row keeps
 * how far changes were pruned (history.c).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "commands/async.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/json.h"

#include "change.h"
#include "cusown_ops.h"
#include "template.h"
#include "uuid_list.h"
#include "verb.h"

/* "<stream>-<transaction id>-<change id>", stream as 32 hexadecimal digits */
#define CURSOR_FORMAT "%.32s-" UINT64_FORMAT "-" INT64_FORMAT

/* where reading has come */
typedef struct Cursor
{
	uint64		xid;
	int64		id;
} Cursor;

PG_FUNCTION_INFO_V1(cusown_changes_since);

/* $4 .. $8 are parallel arrays */
static const Template insert_changes = {
	"INSERT INTO cusown_ops.change (app_schema, verb, source, entity,"
	" entity_id, slot_id, from_status, to_status)"
	" SELECT $1, $2, $3, c.entity, c.entity_id, c.slot_id, c.from_status,"
	" c.to_status FROM ROWS FROM (pg_catalog.unnest($4),"
	" pg_catalog.unnest($5), pg_catalog.unnest($6), pg_catalog.unnest($7),"
	" pg_catalog.unnest($8))"
	" AS c (entity, entity_id, slot_id, from_status, to_status)"
	" RETURNING id",
	8, {NAMEOID, TEXTOID, TEXTOID, TEXTARRAYOID, UUIDARRAYOID, UUIDARRAYOID, TEXTARRAYOID, TEXTARRAYOID},
	.planned_once = true
};

static const Template stream_id = {
	"SELECT pg_catalog.replace(s.id::text, '-', '') AS id,"
	" pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::text::int8"
	" AS next_xid, s.pruned_xid::text::int8 AS pruned_xid, s.pruned_id"
	" FROM cusown_ops.change_stream s",
	0, {0}
};

/* $1, $2 the cursor, $3 how many */
static const Template changes_behind = {
	"SELECT c.xid::text::int8 AS xid, c.id, c.at,"
	" c.app_schema, c.verb, c.entity, c.entity_id, c.slot_id,"
	" c.from_status, c.to_status, c.source"
	" FROM cusown_ops.change c"
	" WHERE (c.xid, c.id) > ($1::text::xid8, $2)"
	" AND c.xid < pg_catalog.pg_snapshot_xmin("
	"pg_catalog.pg_current_snapshot())"
	" ORDER BY c.xid, c.id LIMIT $3",
	3, {TEXTOID, INT8OID, INT8OID}
};

static Datum
text_array(const Change *changes, int count, size_t field)
{
	Datum	   *datums = palloc(count * sizeof(Datum));

	for (int i = 0; i < count; i++)
		datums[i] = CStringGetTextDatum(*(const char *const *)
										((const char *) &changes[i] + field));
	return PointerGetDatum(construct_array(datums, count, TEXTOID, -1, false,
										   TYPALIGN_INT));
}

/*
 * One NOTIFY for a batch, once it is recorded.  The server drops a notification
 * that another of the same transaction equals; the last change's id makes each
 * its own.
 */
void
change_notify(const Binding *binding, const char *verb,
			  const ChangeBatch *batch)
{
	StringInfoData payload;

	if (batch->count == 0 || !cusown_notify)
		return;
	initStringInfo(&payload);
	appendStringInfoString(&payload, "{\"app_schema\": ");
	escape_json(&payload, binding->app_schema);
	appendStringInfo(&payload, ", \"verb\": \"%s\", \"changes\": " INT64_FORMAT
					 ", \"last_id\": " INT64_FORMAT "}",
					 verb, batch->count, batch->last_id);
	Async_Notify(CUSOWN_SCHEMA, payload.data);
}

/* the greatest id among the new rows */
static int64
insert_and_get_last(const Datum *values)
{
	uint64		rows = template_execute(NULL, &insert_changes, values, NULL,
										false);
	int64		last = 0;

	for (uint64 row = 0; row < rows; row++)
	{
		bool		isnull;
		int64		id = DatumGetInt64(template_column(row, "id", &isnull));

		last = Max(last, id);
	}
	SPI_freetuptable(SPI_tuptable);
	return last;
}

static Datum
slot_array(const Change *changes, int count)
{
	Datum	   *slots = palloc(count * sizeof(Datum));
	bool	   *nulls = palloc(count * sizeof(bool));
	int			lower = 1;

	for (int i = 0; i < count; i++)
	{
		slots[i] = UUIDPGetDatum(&changes[i].slot_id);
		nulls[i] = !changes[i].has_slot;
	}
	return PointerGetDatum(construct_md_array(slots, nulls, 1, &count, &lower,
											  UUIDOID, UUID_LEN, false,
											  TYPALIGN_CHAR));
}

/* slot_id NULL: no slot is concerned */
void
change_set(Change *change, const char *entity, const pg_uuid_t *entity_id,
		   const pg_uuid_t *slot_id, const char *from_status,
		   const char *to_status)
{
	change->entity = entity;
	change->entity_id = *entity_id;
	change->has_slot = slot_id != NULL;
	if (slot_id != NULL)
		change->slot_id = *slot_id;
	change->from_status = from_status;
	change->to_status = to_status;
}

/*
 * Writes a row per change and adds them to the batch, whose parts may be
 * recorded one by one.  The caller holds the locks of the entities.
 */
void
change_record(const Binding *binding, const char *verb, const char *source,
			  const Change *changes, int count, ChangeBatch *batch)
{
	UuidList	entities = {0};
	Datum		values[8];
	int64		last_id;

	if (count == 0)
		return;
	for (int i = 0; i < count; i++)
		uuid_list_append(&entities, &changes[i].entity_id);
	values[0] = template_name(binding->app_schema);
	values[1] = CStringGetTextDatum(verb);
	values[2] = CStringGetTextDatum(source);
	values[3] = text_array(changes, count, offsetof(Change, entity));
	values[4] = uuid_list_datum(&entities);
	values[5] = slot_array(changes, count);
	values[6] = text_array(changes, count, offsetof(Change, from_status));
	values[7] = text_array(changes, count, offsetof(Change, to_status));
	last_id = insert_and_get_last(values);
	batch->last_id = Max(batch->last_id, last_id);
	batch->count += count;
}

/* one call of cusown_changes_since() */
typedef struct Feed
{
	char	   *after;			/* the caller's cursor, or NULL */
	int64		max_rows;
	char	   *stream;			/* id of our stream */
	ReturnSetInfo *result;
} Feed;

static void
bad_cursor(const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("cursor is not one of this database's changes"),
			 errdetail_internal("%s", detail),
			 errhint("Begin again with NULL, and expect changes that were already seen.")));
}

/* digits and nothing else, as long as they fit */
static bool
parse_number(const char *digits, uint64 *number)
{
	errno = 0;
	*number = strtou64(digits, NULL, 10);
	return errno == 0 && *number <= PG_INT64_MAX;
}

/* in the form of CURSOR_FORMAT: no sign, no space, nothing behind it */
static bool
split_cursor(const char *text, char *stream, Cursor *cursor)
{
	char		xid[21];
	char		id[21];
	uint64		number;
	int			length = 0;

	if (sscanf(text, "%32[0-9a-f]-%20[0-9]-%20[0-9]%n", stream, xid, id,
			   &length) != 3 ||
		text[length] != '\0' || !parse_number(xid, &cursor->xid) ||
		!parse_number(id, &number))
		return false;
	cursor->id = (int64) number;
	return true;
}

static Cursor
parse_cursor(Feed *feed, uint64 next_xid)
{
	Cursor		cursor = {0};
	char		stream[33];

	if (feed->after == NULL)
		return cursor;
	if (!split_cursor(feed->after, stream, &cursor))
		bad_cursor("It is not a cursor that cusown_changes_since() has given.");
	if (strcmp(stream, feed->stream) != 0)
		bad_cursor("It was given before the database was dumped and restored, or by another database.");
	if (cursor.xid >= next_xid)
		bad_cursor("It was given later than this database has come, as after a point-in-time recovery.");
	return cursor;
}

/* a reader that was away too long is told so, not given what is left */
static void
check_kept(const Cursor *cursor)
{
	bool		isnull;
	uint64		pruned_xid = DatumGetInt64(template_column(0, "pruned_xid", &isnull));
	int64		pruned_id;

	if (isnull)
		return;
	pruned_id = DatumGetInt64(template_column(0, "pruned_id", &isnull));
	if (cursor->xid > pruned_xid ||
		(cursor->xid == pruned_xid && cursor->id >= pruned_id))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("changes behind this cursor are no longer kept"),
			 errdetail("They were older than cusown_ops.change_retention."),
			 errhint("Begin again with NULL at the oldest kept; what is missing stands in the application's audit trail.")));
}

static Cursor
start_of(Feed *feed)
{
	bool		isnull;
	uint64		next_xid;
	Datum		id;
	Cursor		cursor;

	template_execute(NULL, &stream_id, NULL, NULL, true);
	id = template_column(0, "id", &isnull);
	feed->stream = TextDatumGetCString(id);
	next_xid = (uint64) DatumGetInt64(template_column(0, "next_xid", &isnull));
	cursor = parse_cursor(feed, next_xid);
	if (feed->after != NULL)
		check_kept(&cursor);
	return cursor;
}

static void
put_change(const Feed *feed, uint64 row)
{
	static const char *const columns[] = {
		"at", "app_schema", "verb", "entity", "entity_id", "slot_id",
		"from_status", "to_status", "source"
	};
	Datum		values[lengthof(columns) + 1];
	bool		nulls[lengthof(columns) + 1] = {false};
	bool		isnull;
	int64		xid = DatumGetInt64(template_column(row, "xid", &isnull));
	int64		id = DatumGetInt64(template_column(row, "id", &isnull));

	values[0] = CStringGetTextDatum(psprintf(CURSOR_FORMAT, feed->stream,
											 (uint64) xid, id));
	for (int i = 0; i < lengthof(columns); i++)
		values[i + 1] = template_column(row, columns[i], &nulls[i + 1]);
	tuplestore_putvalues(feed->result->setResult, feed->result->setDesc,
						 values, nulls);
}

static void
feed_body(void *state)
{
	Feed	   *feed = state;
	Cursor		cursor = start_of(feed);
	Datum		values[3];
	uint64		rows;

	values[0] = CStringGetTextDatum(psprintf(UINT64_FORMAT, cursor.xid));
	values[1] = Int64GetDatum(cursor.id);
	values[2] = Int64GetDatum(feed->max_rows);
	rows = template_execute(NULL, &changes_behind, values, NULL, true);
	for (uint64 row = 0; row < rows; row++)
		put_change(feed, row);
}

/*
 * cusown_changes_since(after text DEFAULT NULL, max_rows integer DEFAULT 1000,
 *		OUT cursor text, OUT at timestamptz, OUT app_schema name,
 *		OUT verb text, OUT entity text, OUT entity_id uuid, OUT slot_id uuid,
 *		OUT from_status text, OUT to_status text, OUT source text)
 *		RETURNS SETOF record
 *
 * Changes that our verbs made, behind the cursor after, in an order in which
 * none is ever skipped.  A change is given once every transaction that was
 * open when it was made has ended.
 *
 * Errors: 22023 cursor of another database, from before a restore, or behind
 * which changes are no longer kept; max_rows not greater than zero.
 */
Datum
cusown_changes_since(PG_FUNCTION_ARGS)
{
	Feed		feed = {0};

	if (!PG_ARGISNULL(0))
		feed.after = text_to_cstring(PG_GETARG_TEXT_PP(0));
	feed.max_rows = verb_max_rows(fcinfo, 1);
	InitMaterializedSRF(fcinfo, 0);
	feed.result = (ReturnSetInfo *) fcinfo->resultinfo;
	verb_run(feed_body, &feed, false);
	return (Datum) 0;
}
