/*-------------------------------------------------------------------------
 *
 * uuid_list.c
 *	  A growing list of ids, handed to statements as uuid[].
 *
 * A zeroed UuidList is empty.  Items live in the memory context that is
 * current at the first append.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "utils/array.h"

#include "template.h"
#include "uuid_list.h"

/* where ids are put as they come */
typedef struct IdStream
{
	UuidList   *list;
	MemoryContext context;
} IdStream;

static int
compare_uuids(const void *a, const void *b)
{
	return memcmp(a, b, sizeof(pg_uuid_t));
}

void
uuid_list_append(UuidList *list, const pg_uuid_t *id)
{
	if (list->count == list->capacity)
	{
		list->capacity = Max(64, list->capacity * 2);
		list->items = list->items == NULL ?
			palloc(list->capacity * sizeof(pg_uuid_t)) :
			repalloc_huge(list->items,
						  (Size) list->capacity * sizeof(pg_uuid_t));
	}
	list->items[list->count++] = *id;
	list->sorted = false;
}

/* a uuid column of the last statement's rows; nulls are left out */
void
uuid_list_append_column(UuidList *list, uint64 rows, const char *column)
{
	for (uint64 row = 0; row < rows; row++)
	{
		bool		isnull;
		Datum		value = template_column(row, column, &isnull);

		if (!isnull)
			uuid_list_append(list, DatumGetUUIDP(value));
	}
}

/* TemplateRow */
static void
append_row(const StreamedRow *row, void *state)
{
	IdStream   *stream = state;
	MemoryContext caller = MemoryContextSwitchTo(stream->context);
	bool		isnull;
	Datum		id = template_attribute(row, "id", &isnull);

	if (!isnull)
		uuid_list_append(stream->list, DatumGetUUIDP(id));
	MemoryContextSwitchTo(caller);
}

/* the column id of the rows that a statement gives; nulls are left out */
void
uuid_list_append_stream(UuidList *list, struct Binding *binding,
						const struct Template *statement, const Datum *values,
						const char *nulls, bool read_only)
{
	IdStream	stream = {list, CurrentMemoryContext};

	template_stream(binding, statement, values, nulls, read_only, append_row,
					&stream);
}

/* those of ids that are not there */
void
uuid_list_append_missing(UuidList *list, const UuidList *ids, UuidList *there)
{
	for (int i = 0; i < ids->count; i++)
	{
		if (!uuid_list_contains(there, &ids->items[i]))
			uuid_list_append(list, &ids->items[i]);
	}
}

UuidList
uuid_list_copy(const UuidList *list)
{
	UuidList	copy = *list;

	copy.capacity = list->count;
	copy.items = palloc(Max(list->count, 1) * sizeof(pg_uuid_t));
	memcpy(copy.items, list->items, list->count * sizeof(pg_uuid_t));
	return copy;
}

void
uuid_list_sort(UuidList *list)
{
	if (list->sorted || list->count == 0)
		return;
	qsort(list->items, list->count, sizeof(pg_uuid_t), compare_uuids);
	list->sorted = true;
}

/* how often the id is in the list, which is sorted on the way */
int
uuid_list_count(UuidList *list, const pg_uuid_t *id)
{
	pg_uuid_t  *found;
	pg_uuid_t  *end = list->items + list->count;
	pg_uuid_t  *at;

	if (list->count == 0)
		return 0;
	uuid_list_sort(list);
	found = bsearch(id, list->items, list->count, sizeof(pg_uuid_t),
					compare_uuids);
	if (found == NULL)
		return 0;
	while (found > list->items && compare_uuids(found - 1, id) == 0)
		found--;
	for (at = found; at < end && compare_uuids(at, id) == 0; at++)
		 /* count them */ ;
	return (int) (at - found);
}

bool
uuid_list_contains(UuidList *list, const pg_uuid_t *id)
{
	return uuid_list_count(list, id) > 0;
}

Datum
uuid_list_datum(const UuidList *list)
{
	Datum	   *datums = palloc(Max(list->count, 1) * sizeof(Datum));

	for (int i = 0; i < list->count; i++)
		datums[i] = UUIDPGetDatum(&list->items[i]);
	return PointerGetDatum(construct_array(datums, list->count, UUIDOID,
										   UUID_LEN, false, TYPALIGN_CHAR));
}
