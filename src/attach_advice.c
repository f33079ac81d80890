/*-------------------------------------------------------------------------
 *
 * attach_advice.c
 *	  What attach warns of, each with the DDL that mends it.
 *
 * Nothing here forbids to attach: an index that a look-up of ours would need,
 * the unique index that makes a second confirmed booking of a slot
 * impossible, row-level security that would blind the current role, and a
 * column whose nulls would hide rows from us.  Indexes, CHECKs and triggers have
 * files of their own, attach_index.c, attach_check.c and attach_trigger.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/rls.h"

#include "attach.h"
#include "attach_index.h"
#include "template.h"

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

static const Resolved *
table_of(List *resolved, const char *relation)
{
	return attach_find(resolved, relation, "");
}

static List *
advise_index(List *rows, const Lookup *lookup, List *resolved)
{
	const Resolved *table = table_of(resolved, lookup->relation);
	char	   *columns = table == NULL ? NULL : attach_index_columns(lookup, resolved);
	char	   *remedy = columns == NULL ? NULL :
	attach_index_remedy(lookup, table, columns, resolved);

	if (remedy == NULL)
		return rows;
	return lappend(rows,
				   warning(lookup->relation,
						   psprintf("no %sindex on (%s)%s%s",
									lookup->unique ? "unique " : "", columns,
									lookup->status == NULL ? "" : " where ",
									lookup->status == NULL ? "" :
									lookup->status),
						   remedy[0] == '\0' ? NULL : remedy));
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

/*
 * A booking without created_at has no age: it would never be due.  A payment
 * without one would never be in flight.
 */
static List *
advise_not_null(List *rows, List *resolved, const char *relation,
				const char *attribute)
{
	const Resolved *column = attach_find(resolved, relation, attribute);

	if (column == NULL || attach_is_not_null(column->relid, column->attnum))
		return rows;
	return lappend(rows,
				   warning(relation, psprintf("%s may be null", attribute),
						   attach_not_null_ddl(table_of(resolved, relation), column)));
}

/* the warnings, of AttachRow */
List *
attach_advice(List *resolved)
{
	List	   *rows = NIL;
	ListCell   *lc;

	for (const Lookup *lookup = attach_lookups; lookup->relation != NULL;
		 lookup++)
		rows = advise_index(rows, lookup, resolved);
	rows = advise_not_null(rows, resolved, "bookings", "created_at");
	rows = advise_not_null(rows, resolved, "payments", "created_at");
	foreach(lc, resolved)
	{
		Resolved   *one = lfirst(lc);

		if (one->attribute[0] == '\0')
			rows = advise_row_security(rows, one);
	}
	rows = list_concat(rows, attach_check_advice(resolved));
	return list_concat(rows, attach_trigger_advice(resolved));
}
