/*-------------------------------------------------------------------------
 *
 * binding.c
 *	  Reads cusown_ops.binding: what stands for each canonical name.
 *
 * cusown_attach() writes the binding as rows; a backend reads them once per
 * application schema, resolves every name against the catalogs and keeps the
 * result until something it was read from changes:
 *
 * - our own table, or another one of which something is kept here: its statement
 *   trigger cusown_ops.invalidate_binding sends a relcache invalidation;
 * - a bound relation: DDL on it sends one by itself;
 * - a schema: DDL on it invalidates the namespace cache.
 *
 * The callbacks only mark bindings as stale, since they may run at any point
 * where locks are taken.  A verb takes the binding after it has locked the
 * tables that it uses, ACCESS SHARE as any query does, so that the names hold
 * to the end of its transaction.  A stale binding is read anew at the next use and
 * freed when its last user has gone: an application's trigger may call us
 * while a statement of ours is under way with the old one.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/namespace.h"
#include "catalog/pg_attribute.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "binding.h"
#include "compat.h"
#include "cusown_ops.h"
#include "errors.h"
#include "template.h"

/* in CacheMemoryContext; stale ones stay until nobody uses them */
static List *bindings = NIL;

/* attached schemas, of char *; valid only while attached_known */
static List *attached = NIL;
static bool attached_known = false;

/* counts invalidations, so that one that arrives while we read is noticed */
static uint64 invalidations = 0;

/* where our table was when we last read it */
static Oid	binding_relid = InvalidOid;

PG_FUNCTION_INFO_V1(cusown_invalidate_binding);

static const Template attached_schemas = {
	"SELECT DISTINCT n.app_schema::text FROM cusown_ops.binding n"
	" ORDER BY 1",
	0, {0}
};

static const Template bound_names = {
	"SELECT n.relation, n.attribute, n.bound_schema::text, n.bound_name::text"
	" FROM cusown_ops.binding n WHERE n.app_schema = $1"
	" ORDER BY n.relation, n.attribute",
	1, {NAMEOID}
};

static void
mark_all_stale(void)
{
	ListCell   *lc;

	foreach(lc, bindings)
		((Binding *) lfirst(lc))->stale = true;
	attached_known = false;
}

static bool
binding_names(const Binding *binding, Oid relid)
{
	ListCell   *lc;

	foreach(lc, binding->relations)
	{
		if (((BoundRelation *) lfirst(lc))->relid == relid)
			return true;
	}
	return false;
}

static void
relation_changed(Datum arg, Oid relid)
{
	ListCell   *lc;

	invalidations++;
	if (!OidIsValid(relid) || relid == binding_relid)
	{
		mark_all_stale();
		return;
	}
	foreach(lc, bindings)
	{
		Binding    *binding = lfirst(lc);

		if (binding_names(binding, relid))
			binding->stale = true;
	}
}

static void
namespace_changed(Datum arg, int cacheid, uint32 hashvalue)
{
	invalidations++;
	mark_all_stale();
}

void
binding_init(void)
{
	CacheRegisterRelcacheCallback(relation_changed, (Datum) 0);
	CacheRegisterSyscacheCallback(NAMESPACEOID, namespace_changed, (Datum) 0);
}

static Oid
binding_table(void)
{
	return get_relname_relid("binding",
							 get_namespace_oid(CUSOWN_SCHEMA, false));
}

/*
 * cusown_ops.invalidate_binding() RETURNS trigger
 *
 * AFTER statement trigger of our configuration tables, whose rows are kept with
 * the binding: makes every backend read it anew.
 */
Datum
cusown_invalidate_binding(PG_FUNCTION_ARGS)
{
	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function was not called by trigger manager")));

	CacheInvalidateRelcacheByRelid(binding_table());
	return PointerGetDatum(NULL);
}

/*
 * Attach and detach run one after the other: each writes a set of rows that
 * must be whole.  Readers are not kept out.
 */
void
binding_lock_for_change(void)
{
	LockRelationOid(binding_table(), ShareRowExclusiveLock);
}

pg_noreturn static void unresolved(const char *app_schema, const char *what);

static void
unresolved(const char *app_schema, const char *what)
{
	ereport(ERROR,
			(errcode(ERRCODE_CUSOWN_NOT_ATTACHED),
			 errmsg("%s does not exist", what),
			 errdetail("The binding of application schema \"%s\" names it.",
					   app_schema),
			 errhint("Call cusown_attach(%s) again, with a mapping where names have changed.",
					 quote_literal_cstr(app_schema))));
}

pg_noreturn static void not_attached(const char *app_schema);

static void
not_attached(const char *app_schema)
{
	ereport(ERROR,
			(errcode(ERRCODE_CUSOWN_NOT_ATTACHED),
			 errmsg("application schema \"%s\" is not attached", app_schema),
			 errhint("Call cusown_attach(%s).",
					 quote_literal_cstr(app_schema))));
}

static BoundRelation *
resolve_relation(const char *app_schema, const char *relation,
				 const char *schema, const char *name)
{
	BoundRelation *bound = palloc0(sizeof(BoundRelation));
	Oid			namespace = get_namespace_oid(schema, true);

	bound->relation = pstrdup(relation);
	bound->schema = pstrdup(schema);
	bound->name = pstrdup(name);
	if (OidIsValid(namespace))
		bound->relid = get_relname_relid(name, namespace);
	if (!OidIsValid(bound->relid))
		unresolved(app_schema, psprintf("relation %s, bound as %s,",
										quote_qualified_identifier(schema, name),
										relation));
	return bound;
}

/*
 * String types other than text have operators of their own, or none, and no
 * operator takes a domain over an enum.
 */
static bool
is_read_as_text(Oid type)
{
	char		category;
	bool		preferred;

	if (type_is_enum(getBaseType(type)))
		return !type_is_enum(type);
	get_type_category_preferred(type, &category, &preferred);
	return category == TYPCATEGORY_STRING && type != TEXTOID;
}

static BoundColumn *
resolve_column(const char *app_schema, const BoundRelation *relation,
			   const char *attribute, const char *name)
{
	BoundColumn *bound = palloc0(sizeof(BoundColumn));
	HeapTuple	tuple = SearchSysCacheAttName(relation->relid, name);

	if (!HeapTupleIsValid(tuple))
		unresolved(app_schema,
				   psprintf("column %s of relation %s, bound as %s.%s,",
							quote_identifier(name),
							quote_qualified_identifier(relation->schema,
													   relation->name),
							relation->relation, attribute));
	bound->attribute = pstrdup(attribute);
	bound->column = pstrdup(name);
	bound->attnum = ((Form_pg_attribute) GETSTRUCT(tuple))->attnum;
	bound->type = ((Form_pg_attribute) GETSTRUCT(tuple))->atttypid;
	bound->read_as_text = is_read_as_text(bound->type);
	ReleaseSysCache(tuple);
	return bound;
}

/* rows come in the order (relation, attribute): the relation itself first */
static List *
resolve_names(const char *app_schema, uint64 rows)
{
	List	   *relations = NIL;

	for (uint64 row = 0; row < rows; row++)
	{
		char	   *relation = template_text(row, "relation");
		char	   *attribute = template_text(row, "attribute");
		char	   *schema = template_text(row, "bound_schema");
		char	   *name = template_text(row, "bound_name");
		BoundRelation *last = relations == NIL ? NULL : llast(relations);

		if (schema != NULL)
			relations = lappend(relations,
								resolve_relation(app_schema, relation,
												 schema, name));
		else if (last != NULL && strcmp(last->relation, relation) == 0)
			last->columns = lappend(last->columns,
									resolve_column(app_schema, last,
												   attribute, name));
		else
			unresolved(app_schema,
					   psprintf("relation for canonical name \"%s\"", relation));
	}
	return relations;
}

static Binding *
load_binding(const char *app_schema)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "cusown_ops binding",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext caller;
	Binding    *binding;
	HASHCTL		ctl = {0};
	NameData	schema;
	Datum		values[1];
	uint64		rows;
	uint64		seen = invalidations;

	namestrcpy(&schema, app_schema);
	values[0] = NameGetDatum(&schema);
	rows = template_read_latest(&bound_names, values);
	binding_relid = binding_table();
	/* a longer name must not stand for its beginning: locks are taken on it */
	if (rows == 0 || strlen(app_schema) >= NAMEDATALEN)
		not_attached(app_schema);

	caller = MemoryContextSwitchTo(context);
	binding = palloc0(sizeof(Binding));
	binding->context = context;
	binding->app_schema = pstrdup(app_schema);
	binding->relations = resolve_names(app_schema, rows);
	ctl.keysize = sizeof(Template *);
	ctl.entrysize = sizeof(Template *) + sizeof(SPIPlanPtr);
	ctl.hcxt = context;
	binding->plans = hash_create("cusown_ops plans of a binding", 32, &ctl,
								 HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	MemoryContextSwitchTo(CacheMemoryContext);
	bindings = lappend(bindings, binding);
	MemoryContextSwitchTo(caller);
	MemoryContextSetParent(context, CacheMemoryContext);

	binding->stale = seen != invalidations;
	return binding;
}

static void
free_binding(Binding *binding)
{
	HASH_SEQ_STATUS status;
	void	   *entry;

	hash_seq_init(&status, binding->plans);
	while ((entry = hash_seq_search(&status)) != NULL)
		SPI_freeplan(*(SPIPlanPtr *) ((char *) entry + sizeof(Template *)));
	MemoryContextDelete(binding->context);
}

static Binding *
find_binding(const char *app_schema)
{
	Binding    *found = NULL;
	ListCell   *lc;

	foreach(lc, bindings)
	{
		Binding    *binding = lfirst(lc);

		if (binding->stale && binding->users == 0)
		{
			bindings = foreach_delete_current(bindings, lc);
			free_binding(binding);
		}
		else if (!binding->stale &&
				 strcmp(binding->app_schema, app_schema) == 0)
			found = binding;
	}
	return found;
}

static void
release_binding(void *arg)
{
	((Binding *) arg)->users--;
}

/*
 * No DDL can be under way on a table that we have locked, and taking the lock
 * lets us see the invalidations of what was.  False where all are in locked
 * already.
 */
static bool
lock_relations(const Binding *binding, const char *const *relations,
			   List **locked)
{
	int			before = list_length(*locked);

	for (; relations != NULL && *relations != NULL; relations++)
	{
		const BoundRelation *relation = binding_relation(binding, *relations);

		if (relation == NULL || list_member_oid(*locked, relation->relid))
			continue;
		LockRelationOid(relation->relid, AccessShareLock);
		*locked = lappend_oid(*locked, relation->relid);
	}
	return list_length(*locked) > before;
}

/*
 * What was read while its relations were locked holds, even if something that
 * happens all the time has marked it as stale: it is not read for ever.
 */
static Binding *
current_binding(const char *app_schema, const char *const *relations)
{
	List	   *locked = NIL;
	int			times_locked = 0;	/* how often it was found locked */

	for (;;)
	{
		Binding    *binding;

		CHECK_FOR_INTERRUPTS();
		AcceptInvalidationMessages();
		binding = find_binding(app_schema);
		if (binding == NULL)
			binding = load_binding(app_schema);
		if (!lock_relations(binding, relations, &locked))
			times_locked++;
		if (!binding->stale || times_locked == 2)
			return binding;
	}
}

/*
 * The binding of an application schema.  relations are the canonical names of
 * what the caller reads and changes, ended by NULL, or NULL for none: their
 * names hold to the end of the transaction.  The binding is held until the
 * current memory context goes, by return or by error: call this after
 * SPI_connect.
 */
Binding *
binding_use_schema(const char *app_schema, const char *const *relations)
{
	MemoryContextCallback *callback = palloc(sizeof(MemoryContextCallback));
	Binding    *binding = current_binding(app_schema, relations);

	callback->func = release_binding;
	callback->arg = binding;
	binding->users++;
	MemoryContextRegisterResetCallback(CurrentMemoryContext, callback);
	return binding;
}

static void
read_attached(void)
{
	MemoryContext caller;
	uint64		seen = invalidations;
	uint64		rows = template_read_latest(&attached_schemas, NULL);

	list_free_deep(attached);
	attached = NIL;
	caller = MemoryContextSwitchTo(CacheMemoryContext);
	for (uint64 row = 0; row < rows; row++)
		attached = lappend(attached, template_text(row, "app_schema"));
	MemoryContextSwitchTo(caller);
	binding_relid = binding_table();
	attached_known = seen == invalidations;
}

static char *
attached_as_list(void)
{
	StringInfoData names;
	ListCell   *lc;

	initStringInfo(&names);
	foreach(lc, attached)
		appendStringInfo(&names, "%s\"%s\"", names.len > 0 ? ", " : "",
						 (char *) lfirst(lc));
	return names.data;
}

/* the schemas of the attached applications, of char * */
List *
binding_attached(void)
{
	AcceptInvalidationMessages();
	if (!attached_known)
		read_attached();
	return attached;
}

static bool
is_attached(const char *app_schema)
{
	ListCell   *lc;

	foreach(lc, attached)
	{
		if (strcmp(lfirst(lc), app_schema) == 0)
			return true;
	}
	return false;
}

/* raises UO001 */
void
binding_check_attached(const char *app_schema)
{
	(void) binding_attached();
	if (!is_attached(app_schema))
		not_attached(app_schema);
}

/*
 * The schema whose binding binding_use() would give, without a query; NULL
 * where it would raise that none is attached, or not this one, or several.
 * False where this backend would have to read our table first.
 */
bool
binding_chosen(const char **app_schema)
{
	*app_schema = NULL;
	AcceptInvalidationMessages();
	if (!attached_known)
		return false;
	if (cusown_app_schema != NULL && cusown_app_schema[0] != '\0')
	{
		if (is_attached(cusown_app_schema))
			*app_schema = cusown_app_schema;
	}
	else if (list_length(attached) == 1)
		*app_schema = linitial(attached);
	return true;
}

/*
 * The schema that the caller has chosen: cusown_ops.app_schema, or the only one
 * that is attached.  UO001 where that is not attached.  Its names need not
 * resolve.
 */
const char *
binding_chosen_schema(void)
{
	if (cusown_app_schema != NULL && cusown_app_schema[0] != '\0')
	{
		binding_check_attached(cusown_app_schema);
		return cusown_app_schema;
	}
	if (binding_attached() == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_CUSOWN_NOT_ATTACHED),
				 errmsg("no application is attached"),
				 errhint("Call cusown_attach() with the schema of the application's tables.")));
	if (list_length(attached) > 1)
		ereport(ERROR,
				(errcode(ERRCODE_CUSOWN_NOT_ATTACHED),
				 errmsg("several applications are attached: %s",
						attached_as_list()),
				 errhint("Choose one with SET cusown_ops.app_schema.")));
	return linitial(attached);
}

/*
 * Chooses an application for what is called from here, until
 * AtEOXact_GUC(true, ...) of what this returns, or an error.
 */
int
binding_choose(const char *app_schema)
{
	int			settings = NewGUCNestLevel();

	(void) set_config_option("cusown_ops.app_schema", app_schema, PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	return settings;
}

/* the binding of that schema */
Binding *
binding_use(const char *const *relations)
{
	return binding_use_schema(binding_chosen_schema(), relations);
}

const BoundRelation *
binding_relation(const Binding *binding, const char *relation)
{
	ListCell   *lc;

	foreach(lc, binding->relations)
	{
		BoundRelation *bound = lfirst(lc);

		if (strcmp(bound->relation, relation) == 0)
			return bound;
	}
	return NULL;
}

const BoundColumn *
binding_column(const Binding *binding, const char *relation,
			   const char *attribute)
{
	const BoundRelation *bound = binding_relation(binding, relation);
	ListCell   *lc;

	if (bound == NULL)
		return NULL;
	foreach(lc, bound->columns)
	{
		BoundColumn *column = lfirst(lc);

		if (strcmp(column->attribute, attribute) == 0)
			return column;
	}
	return NULL;
}

/* raises UO001 where a verb cannot do without a column that is not bound */
void
binding_require(const Binding *binding, const char *relation,
				const char *attribute)
{
	if (binding_column(binding, relation, attribute) != NULL)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_CUSOWN_NOT_ATTACHED),
			 errmsg("canonical name \"%s.%s\" is not bound in application schema \"%s\"",
					relation, attribute, binding->app_schema),
			 errhint("Call cusown_attach(%s) with a mapping that binds it.",
					 quote_literal_cstr(binding->app_schema))));
}
