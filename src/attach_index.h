/*-------------------------------------------------------------------------
 *
 * attach_index.h
 *	  Which index a look-up of ours needs, and whether there is one.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CUSOWN_ATTACH_INDEX_H
#define CUSOWN_ATTACH_INDEX_H

#include "access/attnum.h"
#include "nodes/parsenodes.h"

#include "attach.h"
#include "binding.h"

#define MAX_KEY_COLUMNS 3

/* an index that a look-up of ours needs */
typedef struct Lookup
{
	const char *relation;
	const char *columns[MAX_KEY_COLUMNS];	/* attributes, in this order */
	const char *status;			/* only rows with this status, or NULL */
	bool		unique;			/* must make it impossible to have two */
} Lookup;

/* ends with a row whose relation is NULL */
extern const Lookup attach_lookups[];

/* makes a second confirmed booking of a slot impossible */
extern const Lookup attach_one_confirmed;

extern bool attach_is_not_null(Oid relid, AttrNumber attnum);
extern char *attach_not_null_ddl(const Resolved *table,
								 const Resolved *column);
extern char *attach_index_columns(const Lookup *lookup, List *resolved);
extern char *attach_index_remedy(const Lookup *lookup, const Resolved *table,
								 const char *columns, List *resolved);
extern List *attach_index_serving(const Lookup *lookup, List *resolved,
								  bool usable, bool with_business);
extern char *attach_index_name(Oid indexid);
extern IndexStmt *attach_index_statement(const Lookup *lookup,
										 List *resolved);
extern List *attach_index_names(const Binding *binding);

#endif							/* CUSOWN_ATTACH_INDEX_H */
