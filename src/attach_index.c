/*-------------------------------------------------------------------------
 *
 * attach_index.c
 *	  Which index a look-up of ours needs, and whether there is one.
 *
 * attach warns of an index that is missing.  cusown_install_constraints()
 * builds the one that makes a second confirmed booking of a slot impossible,
 * and cusown_double_bookings() answers from the catalog where it stands.
 *
 * All work on names as attach resolves them; attach_index_names() gives those
 * of a binding.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/index.h"
#include "catalog/pg_attribute.h"
#include "catalog/pg_class.h"
#include "catalog/pg_index.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "nodes/makefuncs.h"
#include "optimizer/optimizer.h"
#include "parser/parse_collate.h"
#include "parser/parse_expr.h"
#include "parser/parse_relation.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/partcache.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "attach.h"
#include "attach_index.h"
#include "compat.h"
#include "template.h"

const Lookup attach_lookups[] = {
	{"bookings", {"id"}, NULL, true},
	{"slots", {"id"}, NULL, true},
	{"payments", {"id"}, NULL, true},
	{"bookings", {"slot_id"}, "confirmed", true},
	{"bookings", {"slot_id"}, NULL, false},
	{"bookings", {"created_at", "id"}, "pending", false},
	{"payments", {"booking_id"}, NULL, false},
	{"payments", {"provider_ref"}, NULL, false},
	{"payments", {"order_id"}, NULL, false},
	{"payments", {"transaction_id"}, NULL, false},
	{"payments", {"webhook_payload_hash"}, NULL, false},
	{"payments", {"expires_at", "id"}, "initiated", false},
	{"audit_logs", {"entity_type", "entity_id"}, NULL, false},
	{"payment_audit_logs", {"payment_id"}, NULL, false},
	{"booking_lifecycle_audit", {"booking_id"}, NULL, false},
	{"idempotency_keys", {"result_id"}, NULL, false},
	{NULL}
};

const Lookup attach_one_confirmed = {
	"bookings", {"slot_id"}, "confirmed", true
};

static char *
full_name(const Resolved *table)
{
	return quote_qualified_identifier(table->schema, table->name);
}

/*
 * The type that a status must be cast to in an index's condition, so that our
 * templates, which read it so, can use the index; InvalidOid for none.
 */
static Oid
condition_type(Oid type)
{
	char		category;
	bool		preferred;

	if (type_is_enum(type) || type == TEXTOID)
		return InvalidOid;
	if (type_is_enum(getBaseType(type)))
		return getBaseType(type);
	get_type_category_preferred(type, &category, &preferred);
	return category == TYPCATEGORY_STRING ? TEXTOID : InvalidOid;
}

/* status = 'label', or NULL where the status is not bound; for DDL */
static char *
status_condition(const Lookup *lookup, List *resolved)
{
	const Resolved *status = attach_find(resolved, lookup->relation, "status");
	Oid			cast;

	if (lookup->status == NULL || status == NULL)
		return NULL;
	cast = condition_type(get_atttype(status->relid, status->attnum));
	return template_ddl("%I%s%s = '%s'", status->name,
						OidIsValid(cast) ? "::" : "",
						!OidIsValid(cast) ? "" : cast == TEXTOID ? "text" :
						format_type_be_qualified(cast),
						lookup->status);
}

/*
 * The same as a parse tree, cast to the given type, if any; = is not looked
 * up by the search_path.
 */
static Node *
raw_status_condition(const Lookup *lookup, const Resolved *status, Oid cast)
{
	ColumnRef  *column = makeNode(ColumnRef);
	A_Const    *label = makeNode(A_Const);
	Node	   *left = (Node *) column;

	column->fields = list_make1(makeString(pstrdup(status->name)));
	column->location = -1;
	label->val.sval.type = T_String;
	label->val.sval.sval = pstrdup(lookup->status);
	label->location = -1;
	if (OidIsValid(cast))
	{
		TypeCast   *node = makeNode(TypeCast);

		node->arg = left;
		node->typeName = makeTypeNameFromOid(cast, -1);
		node->location = -1;
		left = (Node *) node;
	}
	return (Node *) makeA_Expr(AEXPR_OP,
							   list_make2(makeString("pg_catalog"),
										  makeString("=")),
							   left, (Node *) label, -1);
}

/* the expression as the planner would see it in a query on the table */
static Node *
planned_status_condition(const Lookup *lookup, const Resolved *status,
						 Oid cast)
{
	Relation	relation = table_open(status->relid, AccessShareLock);
	ParseState *pstate = make_parsestate(NULL);
	ParseNamespaceItem *item;
	Node	   *condition;

	item = addRangeTableEntryForRelation(pstate, relation, AccessShareLock,
										 NULL, false, true);
	addNSItemToQuery(pstate, item, false, true, true);
	condition = transformExpr(pstate,
							  raw_status_condition(lookup, status, cast),
							  EXPR_KIND_INDEX_PREDICATE);
	assign_expr_collations(pstate, condition);
	free_parsestate(pstate);
	table_close(relation, AccessShareLock);
	return eval_const_expressions(NULL, condition);
}

static bool
is_implied(List *predicate, const Lookup *lookup, const Resolved *status,
		   Oid cast)
{
	Node	   *condition = planned_status_condition(lookup, status, cast);

	return predicate_implied_by(predicate, list_make1(condition), false);
}

/* who looks for a value finds it in an index that leaves out nulls */
static bool
leaves_out_nulls(List *predicate, const Lookup *lookup, List *resolved)
{
	const Resolved *column = attach_find(resolved, lookup->relation,
										 lookup->columns[0]);
	NullTest   *test = makeNode(NullTest);
	Oid			type;
	int32		typmod;
	Oid			collation;

	if (column == NULL)
		return false;
	get_atttypetypmodcoll(column->relid, column->attnum, &type, &typmod,
						  &collation);
	test->arg = (Expr *) makeVar(1, column->attnum, type, typmod, collation, 0);
	test->nulltesttype = IS_NOT_NULL;
	test->location = -1;
	return predicate_implied_by(predicate, list_make1(test), false);
}

/*
 * Whether the index holds every row that the look-up asks for.  For being
 * unique, a condition that our templates could not use will do as well.
 */
static bool
covers_rows(Relation index, const Lookup *lookup, List *resolved)
{
	List	   *predicate = RelationGetIndexPredicate(index);
	const Resolved *status = attach_find(resolved, lookup->relation, "status");
	Oid			type;
	Oid			cast;

	if (predicate == NIL)
		return true;
	if (lookup->status == NULL || status == NULL)
		return lookup->status == NULL &&
			leaves_out_nulls(predicate, lookup, resolved);
	type = get_atttype(status->relid, status->attnum);
	cast = condition_type(type);
	return is_implied(predicate, lookup, status, cast) ||
		(lookup->unique && !type_is_enum(getBaseType(type)) &&
		 is_implied(predicate, lookup, status, InvalidOid));
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

bool
attach_is_not_null(Oid relid, AttrNumber attnum)
{
	HeapTuple	tuple = SearchSysCacheAttNum(relid, attnum);
	bool		not_null;

	if (!HeapTupleIsValid(tuple))
		return false;
	not_null = NotNullIsValidated((Form_pg_attribute) GETSTRUCT(tuple));
	ReleaseSysCache(tuple);
	return not_null;
}

/*
 * Unique over the look-up's column, or over it and its business, which must
 * be known then.
 */
static bool
makes_unique(Form_pg_index index, const Lookup *lookup, List *resolved,
			 bool business_known)
{
	AttrNumber	column = attnum_of(resolved, lookup->relation,
								   lookup->columns[0]);
	AttrNumber	business = attnum_of(resolved, lookup->relation,
									 "business_id");
	bool		has_column = false;

	if (!index->indisunique || !index->indimmediate)
		return false;
	for (int i = 0; i < index->indnkeyatts; i++)
	{
		AttrNumber	attnum = index->indkey.values[i];

		if (attnum == column)
			has_column = true;
		else if (attnum == InvalidAttrNumber || attnum != business ||
				 !business_known)
			return false;
	}
	return has_column;
}

static bool
is_usable(Form_pg_index index)
{
	return index->indisvalid && index->indisready;
}

/* whether the index serves the look-up, once it is usable */
static bool
index_serves(Oid indexid, const Lookup *lookup, List *resolved,
			 bool business_known, bool usable)
{
	Relation	index = index_open(indexid, AccessShareLock);
	Form_pg_index form = index->rd_index;
	bool		serves;

	serves = is_usable(form) == usable &&
		(lookup->unique ? makes_unique(form, lookup, resolved, business_known) :
		 leads_with_columns(form, lookup, resolved)) &&
		covers_rows(index, lookup, resolved);
	index_close(index, AccessShareLock);
	return serves;
}

/* the indexes that serve, or that would if they were usable */
static List *
serving_indexes(Oid relid, const Lookup *lookup, List *resolved,
				bool business_known, bool usable)
{
	Relation	relation = table_open(relid, AccessShareLock);
	List	   *serving = NIL;
	ListCell   *lc;

	foreach(lc, RelationGetIndexList(relation))
	{
		if (index_serves(lfirst_oid(lc), lookup, resolved, business_known,
						 usable))
			serving = lappend_oid(serving, lfirst_oid(lc));
	}
	table_close(relation, AccessShareLock);
	return serving;
}

static bool
is_served(Oid relid, const Lookup *lookup, List *resolved, bool business_known)
{
	return serving_indexes(relid, lookup, resolved, business_known, true) != NIL;
}

static bool
is_business_known(const Lookup *lookup, List *resolved)
{
	const Resolved *business = attach_find(resolved, lookup->relation,
										   "business_id");

	return business != NULL &&
		attach_is_not_null(business->relid, business->attnum);
}

/*
 * The indexes that serve a look-up, or that would if they were usable; with
 * with_business also one that holds the business beside the column, as if that
 * followed from it.  None where other tables inherit from this one, whose rows
 * no index of it holds.
 */
List *
attach_index_serving(const Lookup *lookup, List *resolved, bool usable,
					 bool with_business)
{
	const Resolved *table = attach_find(resolved, lookup->relation, "");

	if (get_rel_relkind(table->relid) != RELKIND_PARTITIONED_TABLE &&
		has_subclass(table->relid))
		return NIL;
	return serving_indexes(table->relid, lookup, resolved, with_business &&
						   is_business_known(lookup, resolved), usable);
}

char *
attach_index_name(Oid indexid)
{
	return quote_qualified_identifier(get_namespace_name(get_rel_namespace(indexid)),
									  get_rel_name(indexid));
}

/* "a, b" in the application's names, or NULL where one is not bound */
char *
attach_index_columns(const Lookup *lookup, List *resolved)
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

/* a unique index needs every column of the partition key */
static bool
can_be_unique(const Resolved *table, const Lookup *lookup, List *resolved)
{
	Relation	relation = table_open(table->relid, AccessShareLock);
	PartitionKey key = RelationGetPartitionKey(relation);
	bool		can_be = true;

	for (int i = 0; i < key->partnatts; i++)
	{
		AttrNumber	attnum = key->partattrs[i];

		if (attnum == InvalidAttrNumber ||
			(attnum != attnum_of(resolved, lookup->relation, "business_id") &&
			 attnum != attnum_of(resolved, lookup->relation,
								 lookup->columns[0])))
			can_be = false;
	}
	table_close(relation, AccessShareLock);
	return can_be;
}

/*
 * Indexes of a partitioned table cannot be built concurrently, and a unique
 * one needs the partition key, which is the business.
 */
static char *
index_ddl(const Lookup *lookup, const Resolved *table, const char *columns,
		  List *resolved)
{
	const Resolved *business = attach_find(resolved, lookup->relation,
										   "business_id");
	bool		partitioned = get_rel_relkind(table->relid) ==
	RELKIND_PARTITIONED_TABLE;
	char	   *condition = status_condition(lookup, resolved);

	if (lookup->unique && partitioned && !can_be_unique(table, lookup, resolved))
		return "";
	if (lookup->unique && partitioned && business != NULL)
		columns = psprintf("%s, %s", columns, quote_identifier(business->name));
	return template_ddl("CREATE %sINDEX %sON %s (%s)%s%s;",
						lookup->unique ? "UNIQUE " : "",
						partitioned ? "" : "CONCURRENTLY ",
						full_name(table), columns,
						condition == NULL ? "" : " WHERE ",
						condition == NULL ? "" : condition);
}

char *
attach_not_null_ddl(const Resolved *table, const Resolved *column)
{
	return template_ddl("ALTER TABLE %s ALTER COLUMN %I SET NOT NULL;",
						full_name(table), column->name);
}

/* the DDL that is lacking, or NULL */
char *
attach_index_remedy(const Lookup *lookup, const Resolved *table,
					const char *columns, List *resolved)
{
	const Resolved *business = attach_find(resolved, lookup->relation,
										   "business_id");

	if (is_served(table->relid, lookup, resolved,
				  is_business_known(lookup, resolved)))
		return NULL;
	if (business != NULL && is_served(table->relid, lookup, resolved, true))
		return attach_not_null_ddl(table, business);
	return index_ddl(lookup, table, columns, resolved);
}

static IndexElem *
index_column(const Resolved *column)
{
	IndexElem  *element = makeNode(IndexElem);

	element->name = pstrdup(column->name);
	element->ordering = SORTBY_DEFAULT;
	element->nulls_ordering = SORTBY_NULLS_DEFAULT;
	return element;
}

/*
 * The statement that attach_index_remedy() gives as text, as a parse tree; not
 * concurrently.  Nothing in it is looked up by the search_path.
 */
IndexStmt *
attach_index_statement(const Lookup *lookup, List *resolved)
{
	IndexStmt  *statement = makeNode(IndexStmt);
	const Resolved *table = attach_find(resolved, lookup->relation, "");
	const Resolved *status = attach_find(resolved, lookup->relation, "status");
	const Resolved *business = attach_find(resolved, lookup->relation,
										   "business_id");

	statement->relation = makeRangeVar(pstrdup(table->schema),
									   pstrdup(table->name), -1);
	statement->accessMethod = pstrdup(DEFAULT_INDEX_TYPE);
	statement->unique = lookup->unique;
	for (int i = 0; i < MAX_KEY_COLUMNS && lookup->columns[i] != NULL; i++)
		statement->indexParams =
			lappend(statement->indexParams,
					index_column(attach_find(resolved, lookup->relation,
											 lookup->columns[i])));
	if (lookup->unique && business != NULL &&
		get_rel_relkind(table->relid) == RELKIND_PARTITIONED_TABLE)
		statement->indexParams = lappend(statement->indexParams,
										 index_column(business));
	if (lookup->status != NULL && status != NULL)
		statement->whereClause =
			raw_status_condition(lookup, status,
								 condition_type(get_atttype(status->relid,
															status->attnum)));
	return statement;
}

/* a canonical name of a binding, resolved */
static Resolved *
resolved_name(const BoundRelation *relation, const BoundColumn *column)
{
	Resolved   *name = palloc0(sizeof(Resolved));

	name->relation = relation->relation;
	name->attribute = column == NULL ? "" : column->attribute;
	name->schema = column == NULL ? relation->schema : NULL;
	name->name = column == NULL ? relation->name : column->column;
	name->relid = relation->relid;
	name->attnum = column == NULL ? InvalidAttrNumber : column->attnum;
	return name;
}

/* the names of a binding, of Resolved; they live no longer than it does */
List *
attach_index_names(const Binding *binding)
{
	List	   *names = NIL;
	ListCell   *lc;
	ListCell   *column;

	foreach(lc, binding->relations)
	{
		const BoundRelation *relation = lfirst(lc);

		names = lappend(names, resolved_name(relation, NULL));
		foreach(column, relation->columns)
			names = lappend(names, resolved_name(relation, lfirst(column)));
	}
	return names;
}
