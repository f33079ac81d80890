/*-------------------------------------------------------------------------
 *
 * uuid_list.h
 *	  A growing list of ids, handed to statements as uuid[].
 *
 *-------------------------------------------------------------------------
 */
#ifndef CUSOWN_UUID_LIST_H
#define CUSOWN_UUID_LIST_H

#include "utils/uuid.h"

typedef struct UuidList
{
	pg_uuid_t  *items;
	int			count;
	int			capacity;
	bool		sorted;
} UuidList;

struct Binding;
struct Template;

extern void uuid_list_append(UuidList *list, const pg_uuid_t *id);
extern void uuid_list_append_column(UuidList *list, uint64 rows,
									const char *column);
extern void uuid_list_append_stream(UuidList *list, struct Binding *binding,
									const struct Template *statement,
									const Datum *values, const char *nulls,
									bool read_only);
extern void uuid_list_append_missing(UuidList *list, const UuidList *ids,
									 UuidList *there);
extern UuidList uuid_list_copy(const UuidList *list);
extern void uuid_list_sort(UuidList *list);
extern int	uuid_list_count(UuidList *list, const pg_uuid_t *id);
extern bool uuid_list_contains(UuidList *list, const pg_uuid_t *id);
extern Datum uuid_list_datum(const UuidList *list);

#endif							/* CUSOWN_UUID_LIST_H */
