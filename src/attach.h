/*-------------------------------------------------------------------------
 *
 * attach.h
 *	  What attach finds out about an application's tables.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CUSOWN_ATTACH_H
#define CUSOWN_ATTACH_H

#include "access/attnum.h"
#include "nodes/pg_list.h"
#include "utils/jsonb.h"

/* one row of cusown_attach()'s result */
typedef struct AttachRow
{
	const char *relation;		/* canonical name */
	const char *attribute;		/* canonical name, or what a warning is about;
								 * NULL for the relation itself */
	const char *bound_to;		/* quoted name in the application, or NULL */
	const char *status;			/* bound, missing, optional or warning */
	const char *remedy;			/* DDL, or NULL */
} AttachRow;

/* a canonical name, resolved */
typedef struct Resolved
{
	const char *relation;		/* canonical names; attribute is "" for the
								 * relation itself */
	const char *attribute;
	const char *schema;			/* of the relation itself, else NULL */
	const char *name;			/* in the application */
	Oid			relid;
	AttrNumber	attnum;			/* 0 for the relation itself */
} Resolved;

/* what the caller's mapping says about one canonical name */
typedef struct Mapped
{
	const char *relation;
	const char *attribute;		/* "" for the relation itself */
	const char *schema;			/* or NULL */
	const char *name;			/* NULL: do not bind */
} Mapped;

extern bool attach_is_canonical(const char *relation, const char *attribute);
extern List *attach_read_mapping(Jsonb *mapping);
extern const Mapped *attach_find_mapped(List *mapped, const char *relation,
										const char *attribute);
extern const Resolved *attach_find(List *resolved, const char *relation,
								   const char *attribute);
extern List *attach_advice(List *resolved);

#endif							/* CUSOWN_ATTACH_H */
