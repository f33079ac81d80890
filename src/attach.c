/*-------------------------------------------------------------------------
 *
 * attach.c
 *	  Binds canonical names to an application's tables and columns.
 *
 * cusown_attach() looks each canonical name (attach_names.c) up in the
 * application's schema, by the caller's mapping, by the canonical name itself,
 * or by the other name that the application of app-schema is known to use;
 * checks kind and type; and writes what it found to cusown_ops.binding.  What is wrong is collected and
 * reported whole: one error, or the rows of a dry run.
 *
 * The binding is names, not object ids, so that it survives dump and restore,
 * and no dependency ties the application's migrations.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/namespace.h"
#include "catalog/pg_attribute.h"
#include "catalog/pg_class.h"
#include "catalog/pg_enum.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

#include "attach.h"
#include "cusown_ops.h"
#include "errors.h"
#include "guard.h"
#include "template.h"
#include "verb.h"

/* one call of cusown_attach() */
typedef struct Attach
{
	const char *app_schema;
	Jsonb	   *mapping;
	bool		dry_run;
	List	   *mapped;			/* of Mapped */
	List	   *resolved;		/* of Resolved */
	List	   *rows;			/* of AttachRow */
	StringInfoData problems;	/* one line each */
	ReturnSetInfo *result;
} Attach;

PG_FUNCTION_INFO_V1(cusown_attach);
PG_FUNCTION_INFO_V1(cusown_detach);

/* $2 .. $5 are parallel arrays */
static const Template keep_names = {
	"INSERT INTO cusown_ops.binding"
	" (app_schema, relation, attribute, bound_schema, bound_name)"
	" SELECT $1, u.relation, u.attribute, u.bound_schema, u.bound_name"
	" FROM ROWS FROM (pg_catalog.unnest($2), pg_catalog.unnest($3),"
	" pg_catalog.unnest($4), pg_catalog.unnest($5))"
	" AS u (relation, attribute, bound_schema, bound_name)"
	" ON CONFLICT (app_schema, relation, attribute) DO UPDATE SET"
	" bound_schema := excluded.bound_schema,"
	" bound_name := excluded.bound_name",
	5, {NAMEOID, TEXTARRAYOID, TEXTARRAYOID, NAMEARRAYOID, NAMEARRAYOID}
};

static const Template drop_other_names = {
	"DELETE FROM cusown_ops.binding n WHERE n.app_schema = $1"
	" AND NOT EXISTS (SELECT"
	" FROM ROWS FROM (pg_catalog.unnest($2), pg_catalog.unnest($3))"
	" AS u (relation, attribute)"
	" WHERE u.relation = n.relation AND u.attribute = n.attribute)",
	3, {NAMEOID, TEXTARRAYOID, TEXTARRAYOID}
};

static const Template drop_names = {
	"DELETE FROM cusown_ops.binding n WHERE n.app_schema = $1",
	1, {NAMEOID}
};

/* who attaches it again is told anew */
static const Template drop_takeovers = {
	"DELETE FROM cusown_ops.takeover t WHERE t.app_schema = $1",
	1, {NAMEOID}
};

/* ---------- looking names up ---------- */

const Resolved *
attach_find(List *resolved, const char *relation, const char *attribute)
{
	ListCell   *lc;

	foreach(lc, resolved)
	{
		Resolved   *one = lfirst(lc);

		if (strcmp(one->relation, relation) == 0 &&
			strcmp(one->attribute, attribute) == 0)
			return one;
	}
	return NULL;
}

static AttachRow *
add_row(Attach *attach, const CanonicalName *canonical, const char *status)
{
	AttachRow  *row = palloc0(sizeof(AttachRow));

	row->relation = canonical->relation;
	row->attribute = canonical->attribute[0] == '\0' ?
		NULL : canonical->attribute;
	row->status = status;
	attach->rows = lappend(attach->rows, row);
	return row;
}

static AttachRow *
find_row(const Attach *attach, const CanonicalName *canonical)
{
	ListCell   *lc;

	foreach(lc, attach->rows)
	{
		AttachRow  *row = lfirst(lc);

		if (strcmp(row->relation, canonical->relation) == 0 &&
			strcmp(row->attribute == NULL ? "" : row->attribute,
				   canonical->attribute) == 0)
			return row;
	}
	return NULL;
}

/* something that forbids to attach, with what would mend it */
static void
add_problem(Attach *attach, const CanonicalName *canonical, const char *finding,
			const char *remedy)
{
	AttachRow  *row = find_row(attach, canonical);

	if (row == NULL)
		row = add_row(attach, canonical, "missing");
	row->status = "missing";
	row->remedy = row->remedy == NULL ? remedy :
		psprintf("%s %s", row->remedy, remedy);
	if (attach->problems.len > 0)
		appendStringInfoChar(&attach->problems, '\n');
	appendStringInfo(&attach->problems, "%s%s%s: %s; %s", canonical->relation,
					 row->attribute == NULL ? "" : ".", canonical->attribute,
					 finding, remedy);
}

static void
add_resolved(Attach *attach, const CanonicalName *canonical,
			 const char *schema, const char *name, Oid relid,
			 AttrNumber attnum)
{
	Resolved   *resolved = palloc0(sizeof(Resolved));
	AttachRow  *row = add_row(attach, canonical, "bound");

	row->bound_to = schema == NULL ? quote_identifier(name) :
		quote_qualified_identifier(schema, name);
	resolved->relation = canonical->relation;
	resolved->attribute = canonical->attribute;
	resolved->schema = schema;
	resolved->name = name;
	resolved->relid = relid;
	resolved->attnum = attnum;
	attach->resolved = lappend(attach->resolved, resolved);
}

/* whether the table, or the column, stands for another name already */
static bool
is_bound_already(const Attach *attach, Oid relid, AttrNumber attnum)
{
	ListCell   *lc;

	foreach(lc, attach->resolved)
	{
		Resolved   *resolved = lfirst(lc);

		if (resolved->relid == relid && resolved->attnum == attnum)
			return true;
	}
	return false;
}

static bool
has_mapped_columns(const Attach *attach, const char *relation)
{
	ListCell   *lc;

	foreach(lc, attach->mapped)
	{
		Mapped	   *mapped = lfirst(lc);

		if (strcmp(mapped->relation, relation) == 0 &&
			mapped->attribute[0] != '\0')
			return true;
	}
	return false;
}

static void
resolve_table(Attach *attach, const CanonicalName *canonical)
{
	const Mapped *mapped = attach_find_mapped(attach->mapped, canonical->relation,
											  "");
	const char *schema = attach->app_schema;
	const char *name = canonical->relation;
	char	   *full_name;
	Oid			relid;
	char		relkind;

	if (mapped != NULL && mapped->schema != NULL)
		schema = mapped->schema;
	if (mapped != NULL)
		name = mapped->name;
	if (name == NULL)
	{
		if (canonical->need == NEEDED)
			add_problem(attach, canonical, "is mapped to null, but needed",
						attach_mapping_remedy(attach->app_schema, canonical));
		else
			add_row(attach, canonical, "optional");
		return;
	}

	full_name = quote_qualified_identifier(schema, name);
	relid = get_relname_relid(name, get_namespace_oid(schema, true));
	relkind = OidIsValid(relid) ? get_rel_relkind(relid) : '\0';
	if (!OidIsValid(relid) && mapped == NULL && canonical->need == OPTIONAL &&
		!has_mapped_columns(attach, canonical->relation))
		add_row(attach, canonical, "optional");
	else if (!OidIsValid(relid))
		add_problem(attach, canonical,
					psprintf("%s does not exist", full_name),
					attach_mapping_remedy(attach->app_schema, canonical));
	else if (relkind != RELKIND_RELATION && relkind != RELKIND_PARTITIONED_TABLE)
		add_problem(attach, canonical,
					psprintf("%s is not a table", full_name),
					attach_mapping_remedy(attach->app_schema, canonical));
	else if (is_bound_already(attach, relid, 0))
		add_problem(attach, canonical,
					psprintf("%s is bound to another name already", full_name),
					attach_mapping_remedy(attach->app_schema, canonical));
	else
		add_resolved(attach, canonical, schema, name, relid, 0);
}

static bool
is_string_type(Oid type)
{
	char		category;
	bool		preferred;

	get_type_category_preferred(type, &category, &preferred);
	return category == TYPCATEGORY_STRING;
}

static bool
type_fits(NameType wanted, Oid type)
{
	Oid			base = getBaseType(type);

	switch (wanted)
	{
		case TYPE_TABLE:
			return false;
		case TYPE_UUID:
			return base == UUIDOID;
		case TYPE_STATUS:
		case TYPE_LABEL:
			return type_is_enum(base) || is_string_type(base);
		case TYPE_TEXT:
			return is_string_type(base);
		case TYPE_TIMESTAMPTZ:
			return base == TIMESTAMPTZOID;
		case TYPE_DATE:
			return base == DATEOID;
		case TYPE_TIME:
			return base == TIMEOID;
		case TYPE_INTEGER:
			return base == INT2OID || base == INT4OID || base == INT8OID;
		case TYPE_BIGINT:
			return base == INT4OID || base == INT8OID;
		case TYPE_BOOLEAN:
			return base == BOOLOID;
		case TYPE_JSONB:
			return base == JSONBOID;
	}
	pg_unreachable();
}

static void
check_labels(Attach *attach, const CanonicalName *canonical,
			 const UsedLabels *used, Oid enumtype)
{
	for (const char *const *label = used->labels; *label != NULL; label++)
	{
		if (SearchSysCacheExists2(ENUMTYPOIDNAME, ObjectIdGetDatum(enumtype),
								  CStringGetDatum(*label)))
			continue;
		add_problem(attach, canonical,
					psprintf("type %s has no label '%s'",
							 format_type_be_qualified(enumtype), *label),
					template_ddl("ALTER TYPE %s ADD VALUE '%s';",
								 format_type_be_qualified(enumtype), *label));
	}
}

/* raises what the domain raises where it refuses a value that we write */
static void
check_domain(const UsedLabels *used, Oid domain)
{
	Oid			input;
	Oid			ioparam;

	getTypeInputInfo(domain, &input, &ioparam);
	for (const char *const *label = used->labels; *label != NULL; label++)
		(void) OidInputFunctionCall(input, unconstify(char *, *label), ioparam,
									-1);
}

static void
check_values(Attach *attach, const CanonicalName *canonical, Oid type)
{
	Oid			base = getBaseType(type);

	for (const UsedLabels *used = attach_used_labels; used->relation != NULL;
		 used++)
	{
		if (strcmp(used->relation, canonical->relation) != 0 ||
			strcmp(used->attribute, canonical->attribute) != 0)
			continue;
		if (type_is_enum(base))
			check_labels(attach, canonical, used, base);
		else if (base != type)
			check_domain(used, type);
	}
}

static void
column_is_missing(Attach *attach, const CanonicalName *canonical,
				  const char *table, const char *name, bool was_mapped)
{
	if (canonical->need != NEEDED && !was_mapped)
	{
		add_row(attach, canonical, "optional");
		return;
	}
	add_problem(attach, canonical,
				psprintf("column %s of %s does not exist",
						 quote_identifier(name), table),
				template_ddl("ALTER TABLE %s ADD COLUMN %I %s;", table, name,
							 attach_type_names[canonical->type]));
}

/* a column that is not needed is left alone, with a warning */
static void
column_has_other_type(Attach *attach, const CanonicalName *canonical,
					  const char *table, const char *name, Oid type,
					  bool was_mapped)
{
	char	   *remedy = attach_type_remedy(canonical, table, name, type);

	if (canonical->need != NEEDED && !was_mapped)
		add_row(attach, canonical, "warning")->remedy = remedy;
	else
		add_problem(attach, canonical,
					psprintf("column %s of %s is of type %s, not %s",
							 quote_identifier(name), table,
							 format_type_be(type), attach_type_names[canonical->type]),
					remedy);
}

static void
bind_column(Attach *attach, const CanonicalName *canonical,
			const Resolved *table, const char *name, HeapTuple tuple,
			bool was_mapped)
{
	Form_pg_attribute attribute = (Form_pg_attribute) GETSTRUCT(tuple);
	Oid			type = attribute->atttypid;
	const char *table_name = quote_qualified_identifier(table->schema,
														table->name);

	if (!type_fits(canonical->type, type))
	{
		column_has_other_type(attach, canonical, table_name, name, type,
							  was_mapped);
		return;
	}
	if (is_bound_already(attach, table->relid, attribute->attnum))
	{
		add_problem(attach, canonical,
					psprintf("column %s of %s is bound to another name already",
							 quote_identifier(name), table_name),
					attach_column_mapping_remedy(attach->app_schema,
												 canonical));
		return;
	}
	add_resolved(attach, canonical, NULL, name, table->relid,
				 attribute->attnum);
	check_values(attach, canonical, type);
}

/* a name that the mapping leaves unbound on purpose */
static void
column_is_null(Attach *attach, const CanonicalName *canonical)
{
	if (canonical->need == NEEDED)
		add_problem(attach, canonical, "is mapped to null, but needed",
					attach_column_mapping_remedy(attach->app_schema,
												 canonical));
	else
		add_row(attach, canonical, "optional");
}

static void
resolve_column(Attach *attach, const CanonicalName *canonical)
{
	const Resolved *table = attach_find(attach->resolved, canonical->relation,
										"");
	const Mapped *mapped = attach_find_mapped(attach->mapped, canonical->relation,
											  canonical->attribute);
	const char *name = mapped == NULL ? canonical->attribute : mapped->name;
	const char *table_name;
	HeapTuple	tuple;

	if (table == NULL)
		return;
	table_name = quote_qualified_identifier(table->schema, table->name);
	if (mapped != NULL && name == NULL)
	{
		column_is_null(attach, canonical);
		return;
	}
	tuple = SearchSysCacheAttName(table->relid, name);
	if (!HeapTupleIsValid(tuple) && mapped == NULL &&
		canonical->other_name != NULL)
	{
		name = canonical->other_name;
		tuple = SearchSysCacheAttName(table->relid, name);
	}
	if (!HeapTupleIsValid(tuple))
	{
		column_is_missing(attach, canonical, table_name, name, mapped != NULL);
		return;
	}
	bind_column(attach, canonical, table, name, tuple, mapped != NULL);
	ReleaseSysCache(tuple);
}

/* how many names of a group of slot times are bound, or not */
static int
count_group(const Attach *attach, Need group, bool bound)
{
	int			count = 0;

	for (const CanonicalName *name = attach_names; name->relation != NULL;
		 name++)
	{
		if (name->need == group &&
			bound == (attach_find(attach->resolved, name->relation,
								  name->attribute) != NULL))
			count++;
	}
	return count;
}

/* a name of slot times that is lacking, whatever its row said so far */
static void
ask_for_time(Attach *attach, const CanonicalName *canonical,
			 const char *table)
{
	const Mapped *mapped = attach_find_mapped(attach->mapped,
											  canonical->relation,
											  canonical->attribute);
	AttachRow  *row = find_row(attach, canonical);
	const char *type_remedy = row == NULL ? NULL : row->remedy;

	if (row != NULL && strcmp(row->status, "missing") == 0)
		return;
	if (mapped != NULL && mapped->name == NULL)
		add_problem(attach, canonical, "is mapped to null, but needed",
					attach_column_mapping_remedy(attach->app_schema,
												 canonical));
	else if (type_remedy != NULL)
	{
		row->remedy = NULL;
		add_problem(attach, canonical, "is of another type", type_remedy);
	}
	else
		column_is_missing(attach, canonical, table, canonical->attribute, true);
}

/* one way to tell a slot's times must be whole: the one that is nearer */
static void
check_slot_times(Attach *attach)
{
	const Resolved *slots = attach_find(attach->resolved, "slots", "");
	Need		nearer;

	if (slots == NULL || count_group(attach, WALL_CLOCK, false) == 0 ||
		count_group(attach, INSTANT, false) == 0)
		return;
	nearer = count_group(attach, WALL_CLOCK, true) >
		count_group(attach, INSTANT, true) ? WALL_CLOCK : INSTANT;
	for (const CanonicalName *canonical = attach_names;
		 canonical->relation != NULL; canonical++)
	{
		if (canonical->need == nearer &&
			attach_find(attach->resolved, canonical->relation,
						canonical->attribute) == NULL)
			ask_for_time(attach, canonical,
						 quote_qualified_identifier(slots->schema,
													slots->name));
	}
}

static void
resolve_all(Attach *attach)
{
	for (const CanonicalName *name = attach_names; name->relation != NULL;
		 name++)
	{
		if (name->type == TYPE_TABLE)
			resolve_table(attach, name);
		else
			resolve_column(attach, name);
	}
	check_slot_times(attach);
}

/* ---------- keeping and showing the result ---------- */

static Datum
name_array(Datum *datums, bool *nulls, int count, Oid type)
{
	int			lower = 1;
	bool		is_name = type == NAMEOID;

	return PointerGetDatum(construct_md_array(datums, nulls, 1, &count, &lower,
											  type, is_name ? NAMEDATALEN : -1,
											  false, is_name ?
											  TYPALIGN_CHAR : TYPALIGN_INT));
}

static void
write_binding(const Attach *attach)
{
	int			count = list_length(attach->resolved);
	Datum	   *relations = palloc(count * sizeof(Datum));
	Datum	   *attributes = palloc(count * sizeof(Datum));
	Datum	   *schemas = palloc(count * sizeof(Datum));
	Datum	   *names = palloc(count * sizeof(Datum));
	bool	   *no_schema = palloc(count * sizeof(bool));
	Datum		values[5];

	for (int i = 0; i < count; i++)
	{
		Resolved   *resolved = list_nth(attach->resolved, i);

		relations[i] = CStringGetTextDatum(resolved->relation);
		attributes[i] = CStringGetTextDatum(resolved->attribute);
		no_schema[i] = resolved->schema == NULL;
		schemas[i] = no_schema[i] ? (Datum) 0 : template_name(resolved->schema);
		names[i] = template_name(resolved->name);
	}
	values[0] = template_name(attach->app_schema);
	values[1] = name_array(relations, NULL, count, TEXTOID);
	values[2] = name_array(attributes, NULL, count, TEXTOID);
	values[3] = name_array(schemas, no_schema, count, NAMEOID);
	values[4] = name_array(names, NULL, count, NAMEOID);
	template_execute(NULL, &keep_names, values, NULL, false);
	template_execute(NULL, &drop_other_names, values, NULL, false);
}

static void
put_rows(const Attach *attach)
{
	ListCell   *lc;

	foreach(lc, attach->rows)
	{
		AttachRow  *row = lfirst(lc);
		const char *columns[5] = {row->relation, row->attribute,
		row->bound_to, row->status, row->remedy};
		Datum		values[5];
		bool		nulls[5];

		for (int i = 0; i < 5; i++)
		{
			nulls[i] = columns[i] == NULL;
			values[i] = nulls[i] ? (Datum) 0 : CStringGetTextDatum(columns[i]);
		}
		tuplestore_putvalues(attach->result->setResult,
							 attach->result->setDesc, values, nulls);
	}
}

static void
attach_body(void *state)
{
	Attach	   *attach = state;

	initStringInfo(&attach->problems);
	attach->mapped = attach_read_mapping(attach->mapping);
	if (!attach->dry_run)
		binding_lock_for_change();
	if (!OidIsValid(get_namespace_oid(attach->app_schema, true)))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_SCHEMA),
				 errmsg("schema \"%s\" does not exist", attach->app_schema)));
	resolve_all(attach);
	if (attach->problems.len > 0 && !attach->dry_run)
		ereport(ERROR,
				(errcode(ERRCODE_CUSOWN_MALFORMED),
				 errmsg("application schema \"%s\" cannot be attached",
						attach->app_schema),
				 errdetail_internal("%s", attach->problems.data),
				 errhint("Run the DDL, or name what stands for it in the mapping; cusown_attach(%s, mapping, true) shows every name.",
						 quote_literal_cstr(attach->app_schema))));
	attach->rows = list_concat(attach->rows, attach_advice(attach->resolved));
	if (!attach->dry_run)
	{
		write_binding(attach);
		guard_follow(attach->app_schema);
	}
	put_rows(attach);
}

/*
 * cusown_attach(app_schema name DEFAULT 'public', mapping jsonb DEFAULT '{}',
 *		dry_run boolean DEFAULT false, OUT relation text, OUT attribute text,
 *		OUT bound_to text, OUT status text, OUT remedy text)
 *		RETURNS SETOF record
 *
 * Binds the application's tables to our canonical names and keeps the binding
 * in cusown_ops.binding.  A guard follows where its table or column is bound
 * otherwise now.  A dry run shows every name and writes nothing.
 *
 * Errors: UO010 unknown key in the mapping, or needed names that are missing
 * or of another type, all of them in the detail; 3F000 no such schema; of a
 * guard that must follow, those of cusown_guard().
 *
 * Locks: cusown_ops.binding, SHARE ROW EXCLUSIVE; readers are not kept out.  A
 * guard that must follow: the bookings table, ACCESS EXCLUSIVE.
 */
Datum
cusown_attach(PG_FUNCTION_ARGS)
{
	Attach		attach = {0};

	verb_check_not_null(fcinfo, 0, "app_schema");
	verb_check_not_null(fcinfo, 1, "mapping");
	attach.app_schema = NameStr(*PG_GETARG_NAME(0));
	attach.mapping = PG_GETARG_JSONB_P(1);
	attach.dry_run = verb_dry_run(fcinfo, 2);
	if (!attach.dry_run)
		verb_check_transaction("cusown_attach");
	InitMaterializedSRF(fcinfo, 0);
	attach.result = (ReturnSetInfo *) fcinfo->resultinfo;
	verb_run(attach_body, &attach, false);
	return (Datum) 0;
}

static void
detach_body(void *state)
{
	const char *app_schema = state;
	Datum		values[1];

	binding_lock_for_change();
	guard_remove(app_schema);
	values[0] = template_name(app_schema);
	if (template_execute(NULL, &drop_names, values, NULL, false) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_CUSOWN_NOT_ATTACHED),
				 errmsg("application schema \"%s\" is not attached",
						app_schema)));
	template_execute(NULL, &drop_takeovers, values, NULL, false);
}

/*
 * cusown_detach(app_schema name DEFAULT 'public') RETURNS void
 *
 * Forgets the binding.  The worklist of the application is kept, for when it
 * is attached again.
 *
 * Errors: UO001 not attached.  Locks: cusown_ops.binding, SHARE ROW EXCLUSIVE.
 */
Datum
cusown_detach(PG_FUNCTION_ARGS)
{
	verb_check_transaction("cusown_detach");
	verb_check_not_null(fcinfo, 0, "app_schema");
	verb_run(detach_body, NameStr(*PG_GETARG_NAME(0)), false);
	PG_RETURN_VOID();
}
