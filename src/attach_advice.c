/*-------------------------------------------------------------------------
 *
 * attach_advice.c
 *	  What attach warns of, each with the DDL that mends it.
 *
 * Nothing here forbids to attach: an index that a look-up of ours would need,
 * the unique index that makes a second confirmed booking of a slot
 * impossible, row-level security that would blind the current role, and a
 * column whose nulls would hide rows from us.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_attribute.h"
#include "catalog/pg_index.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "optimizer/optimizer.h"
#include "parser/parse_coerce.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/rls.h"
#include "utils/syscache.h"
#include "utils/typcache.h"

#include "attach.h"
#include "template.h"

#define MAX_KEY_COLUMNS 3

/* an index that a look-up of ours needs */
typedef struct Lookup
{
	const char *relation;
	const char *columns[MAX_KEY_COLUMNS];	/* attributes, in this order */
	const char *status;			/* only rows with this status, or NULL */
	bool		unique;			/* must make it impossible to have two */
} Lookup;

static const Lookup lookups[] = {
	{"bookings", {"slot_id"}, "confirmed", true},
	{"bookings", {"slot_id"}, NULL, false},
	{"bookings", {"created_at", "id"}, "pending", false},
	{"payments", {"booking_id"}, NULL, false},
	{"payments", {"provider", "provider_ref"}, NULL, false},
};

static AttachRow *
warning(const char *relation, const char *attribute, const char *remedy)
{
	AttachRow  *row = palloc0(sizeof(AttachRow));

	row->relation = relation;
	row->attribute = attribute;
	row->status = "warning";
	row->remedy = remedy;
	return row;
}

/* the expression status = 'label', as the table's planner would see it */
static Expr *
status_is(Oid relid, AttrNumber attnum, const char *label)
{
	Oid			type;
	int32		typmod;
	Oid			collation;
	Oid			base;
	Oid			input;
	Oid			ioparam;
	TypeCacheEntry *entry;
	Expr	   *column;
	Const	   *constant;

	get_atttypetypmodcoll(relid, attnum, &type, &typmod, &collation);
	column = (Expr *) makeVar(1, attnum, type, typmod, collation, 0);
	base = getBaseType(type);
	if (!type_is_enum(base) && base != TEXTOID)
	{
		column = (Expr *) makeRelabelType(column, TEXTOID, -1, collation,
										  COERCE_IMPLICIT_CAST);
		base = TEXTOID;
	}
	entry = lookup_type_cache(base, TYPECACHE_EQ_OPR);
	getTypeInputInfo(base, &input, &ioparam);
	constant = makeConst(base, -1, collation, get_typlen(base),
						 OidInputFunctionCall(input, unconstify(char *, label),
											  ioparam, -1),
						 false, get_typbyval(base));
	return make_opclause(entry->eq_opr, BOOLOID, false, column,
						 (Expr *) constant, InvalidOid,
						 type_is_enum(base) ? InvalidOid : collation);
}

/* whether the index holds every row that the look-up asks for */
static bool
covers_rows(Relation index, const Lookup *lookup, List *resolved)
{
	List	   *predicate = RelationGetIndexPredicate(index);
	const Resolved *status = attach_find(resolved, lookup->relation, "status");
	Expr	   *wanted;

	if (predicate == NIL)
		return true;
	if (lookup->status == NULL || status == NULL)
		return false;
	wanted = status_is(status->relid, status->attnum, lookup->status);
	return predicate_implied_by(predicate, list_make1(wanted), false);
}

static AttrNumber
attnum_of(List *resolved, const char *relation, const char *attribute)
{
	const Resolved *column = attach_find(resolved, relation, attribute);

	return column == NULL ? InvalidAttrNumber : column->attnum;
}

/*
 * The look-up's columns lead the index, in their order; its status may stand
 * before them.  The last column of a key that only orders may be missing.
 */
static bool
leads_with_columns(Form_pg_index index, const Lookup *lookup, List *resolved)
{
	int			at = 0;

	if (lookup->status != NULL && index->indnkeyatts > 1 &&
		index->indkey.values[0] ==
		attnum_of(resolved, lookup->relation, "status"))
		at = 1;
	for (int i = 0; i < MAX_KEY_COLUMNS && lookup->columns[i] != NULL; i++)
	{
		if (at + i >= index->indnkeyatts)
			return i > 0 && lookup->status != NULL;
		if (index->indkey.values[at + i] !=
			attnum_of(resolved, lookup->relation, lookup->columns[i]))
			return false;
	}
	return true;
}

/* unique over the look-up's column, or over it and its business */
static bool
makes_unique(Form_pg_index index, const Lookup *lookup, List *resolved)
{
	bool		has_column = false;

	if (!index->indisunique || !index->indimmediate)
		return false;
	for (int i = 0; i < index->indnkeyatts; i++)
	{
		AttrNumber	attnum = index->indkey.values[i];

		if (attnum == attnum_of(resolved, lookup->relation, lookup->columns[0]))
			has_column = true;
		else if (attnum == InvalidAttrNumber ||
				 attnum != attnum_of(resolved, lookup->relation, "business_id"))
			return false;
	}
	return has_column;
}

static bool
index_serves(Oid indexid, const Lookup *lookup, List *resolved)
{
	Relation	index = index_open(indexid, AccessShareLock);
	Form_pg_index form = index->rd_index;
	bool		serves = form->indisvalid && form->indisready &&
		(lookup->unique ? makes_unique(form, lookup, resolved) :
		 leads_with_columns(form, lookup, resolved)) &&
		covers_rows(index, lookup, resolved);

	index_close(index, AccessShareLock);
	return serves;
}

static bool
is_served(Oid relid, const Lookup *lookup, List *resolved)
{
	Relation	relation = table_open(relid, AccessShareLock);
	List	   *indexes = RelationGetIndexList(relation);
	ListCell   *lc;
	bool		served = false;

	foreach(lc, indexes)
	{
		if (index_serves(lfirst_oid(lc), lookup, resolved))
		{
			served = true;
			break;
		}
	}
	table_close(relation, AccessShareLock);
	return served;
}

/* "a, b" in the application's names, or NULL where one is not bound */
static char *
column_list(const Lookup *lookup, List *resolved)
{
	StringInfoData list;

	initStringInfo(&list);
	for (int i = 0; i < MAX_KEY_COLUMNS && lookup->columns[i] != NULL; i++)
	{
		const Resolved *column = attach_find(resolved, lookup->relation,
											 lookup->columns[i]);

		if (column == NULL)
			return NULL;
		appendStringInfo(&list, "%s%s", i > 0 ? ", " : "",
						 quote_identifier(column->name));
	}
	return list.data;
}

static char *
index_ddl(const Lookup *lookup, const Resolved *table, const char *columns,
		  List *resolved)
{
	const Resolved *status = attach_find(resolved, lookup->relation, "status");
	char	   *where = "";

	if (lookup->status != NULL && status != NULL)
		where = template_ddl(" WHERE %I = '%s'", status->name, lookup->status);
	return template_ddl("CREATE %sINDEX CONCURRENTLY ON %s (%s)%s;",
						lookup->unique ? "UNIQUE " : "",
						quote_qualified_identifier(table->schema, table->name),
						columns, where);
}

static List *
advise_index(List *rows, const Lookup *lookup, List *resolved)
{
	const Resolved *table = attach_find(resolved, lookup->relation, "");
	char	   *columns = table == NULL ? NULL : column_list(lookup, resolved);

	if (columns == NULL || is_served(table->relid, lookup, resolved))
		return rows;
	return lappend(rows,
				   warning(lookup->relation,
						   psprintf("no %sindex on (%s)%s%s",
									lookup->unique ? "unique " : "", columns,
									lookup->status == NULL ? "" : " where ",
									lookup->status == NULL ? "" :
									lookup->status),
						   index_ddl(lookup, table, columns, resolved)));
}

static List *
advise_row_security(List *rows, const Resolved *table)
{
	const char *role = GetUserNameFromId(GetUserId(), false);

	if (check_enable_rls(table->relid, InvalidOid, true) != RLS_ENABLED)
		return rows;
	return lappend(rows,
				   warning(table->relation,
						   psprintf("row-level security hides rows from role %s",
									quote_identifier(role)),
						   template_ddl("ALTER ROLE %I BYPASSRLS;", role)));
}

/* a booking without created_at has no age: it would never be due */
static List *
advise_not_null(List *rows, List *resolved, const char *relation,
				const char *attribute)
{
	const Resolved *table = attach_find(resolved, relation, "");
	const Resolved *column = attach_find(resolved, relation, attribute);
	HeapTuple	tuple;
	bool		not_null;

	if (column == NULL)
		return rows;
	tuple = SearchSysCacheAttNum(column->relid, column->attnum);
	if (!HeapTupleIsValid(tuple))
		return rows;
	not_null = ((Form_pg_attribute) GETSTRUCT(tuple))->attnotnull;
	ReleaseSysCache(tuple);
	if (not_null)
		return rows;
	return lappend(rows,
				   warning(relation, psprintf("%s may be null", attribute),
						   template_ddl("ALTER TABLE %s ALTER COLUMN %I SET NOT NULL;",
										quote_qualified_identifier(table->schema,
																   table->name),
										column->name)));
}

/* the warnings, of AttachRow */
List *
attach_advice(List *resolved)
{
	List	   *rows = NIL;
	ListCell   *lc;

	for (int i = 0; i < lengthof(lookups); i++)
		rows = advise_index(rows, &lookups[i], resolved);
	rows = advise_not_null(rows, resolved, "bookings", "created_at");
	foreach(lc, resolved)
	{
		Resolved   *one = lfirst(lc);

		if (one->attribute[0] == '\0')
			rows = advise_row_security(rows, one);
	}
	return rows;
}
