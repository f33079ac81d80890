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

typedef enum NameType
{
	TYPE_TABLE,
	TYPE_UUID,
	TYPE_STATUS,				/* text or enum; its labels are checked */
	TYPE_LABEL,					/* text or enum */
	TYPE_TEXT,
	TYPE_TIMESTAMPTZ,
	TYPE_DATE,
	TYPE_TIME,
	TYPE_INTEGER,
	TYPE_BIGINT,
	TYPE_BOOLEAN,
	TYPE_JSONB
} NameType;

typedef enum Need
{
	NEEDED,
	OPTIONAL,
	WALL_CLOCK,					/* needed, or else all of INSTANT */
	INSTANT						/* needed, or else all of WALL_CLOCK */
} Need;

typedef struct CanonicalName
{
	const char *relation;
	const char *attribute;		/* "" for the relation itself */
	NameType	type;
	Need		need;			/* of a column: within its relation */
	const char *other_name;		/* found without a mapping, or NULL */
} CanonicalName;

/* values that templates write or compare with; an enum must have them */
typedef struct UsedLabels
{
	const char *relation;
	const char *attribute;
	const char *labels[9];		/* ends with NULL */
} UsedLabels;

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

/* both end with a row whose relation is NULL */
extern const CanonicalName attach_names[];
extern const UsedLabels attach_used_labels[];
extern const char *const attach_type_names[];

extern bool attach_is_canonical(const char *relation, const char *attribute);
extern List *attach_read_mapping(Jsonb *mapping);
extern const Mapped *attach_find_mapped(List *mapped, const char *relation,
										const char *attribute);
extern const Resolved *attach_find(List *resolved, const char *relation,
								   const char *attribute);
extern char *attach_mapping_remedy(const char *app_schema,
								   const CanonicalName *canonical);
extern char *attach_column_mapping_remedy(const char *app_schema,
										  const CanonicalName *canonical);
extern char *attach_type_remedy(const CanonicalName *canonical,
								const char *table, const char *name,
								Oid type);
extern List *attach_advice(List *resolved);
extern List *attach_check_advice(List *resolved);
extern List *attach_trigger_advice(List *resolved);

#endif							/* CUSOWN_ATTACH_H */
