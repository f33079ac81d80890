/*-------------------------------------------------------------------------
 *
 * attach_mapping.c
 *	  Reads the mapping that a caller gives to cusown_attach().
 *
 * {"bookings": {"relation": "reservation", "columns": {"status": "state"}},
 *	"audit_logs": {"relation": ["history", "journal"]}, "payments": null}
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/builtins.h"
#include "utils/jsonb.h"

#include "attach.h"
#include "compat.h"
#include "errors.h"

pg_noreturn static void malformed(const char *detail);

static void
malformed(const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_CUSOWN_MALFORMED),
			 errmsg("mapping is malformed"),
			 errdetail_internal("%s", detail),
			 errhint("A mapping looks like {\"bookings\": {\"relation\": \"reservation\", \"columns\": {\"status\": \"state\"}}, \"payments\": null}.")));
}

static char *
json_string(const JsonbValue *value)
{
	if (value->val.string.len == 0)
		malformed("A name is empty.");
	return pnstrdup(value->val.string.val, value->val.string.len);
}

static void
add_mapped(List **mapped, const char *relation, const char *attribute,
		   const char *schema, const char *name)
{
	Mapped	   *one = palloc(sizeof(Mapped));

	one->relation = relation;
	one->attribute = attribute;
	one->schema = schema;
	one->name = name;
	*mapped = lappend(*mapped, one);
}

/* "table" or ["schema", "table"] */
static void
map_target(List **mapped, const char *relation, const JsonbValue *value)
{
	JsonbValue *schema;
	JsonbValue *name;

	if (value->type == jbvString)
	{
		add_mapped(mapped, relation, "", NULL, json_string(value));
		return;
	}
	if (value->type != jbvBinary ||
		!JsonContainerIsArray(value->val.binary.data) ||
		JsonContainerSize(value->val.binary.data) != 2)
		malformed(psprintf("\"relation\" of \"%s\" is neither a name nor [schema, name].",
						   relation));
	schema = getIthJsonbValueFromContainer(value->val.binary.data, 0);
	name = getIthJsonbValueFromContainer(value->val.binary.data, 1);
	if (schema->type != jbvString || name->type != jbvString)
		malformed(psprintf("\"relation\" of \"%s\" is neither a name nor [schema, name].",
						   relation));
	add_mapped(mapped, relation, "", json_string(schema), json_string(name));
}

static void
map_column(List **mapped, const char *relation, const char *attribute,
		   const JsonbValue *value)
{
	if (!attach_is_canonical(relation, attribute))
		malformed(psprintf("\"%s\" of \"%s\" is not a canonical name.",
						   attribute, relation));
	if (value->type != jbvString && value->type != jbvNull)
		malformed(psprintf("\"%s\" of \"%s\" is mapped to something that is not a name.",
						   attribute, relation));
	add_mapped(mapped, relation, attribute, NULL,
			   value->type == jbvNull ? NULL : json_string(value));
}

/* calls back for each key of a JSON object */
typedef void (*MapKey) (List **mapped, const char *relation, const char *key,
						const JsonbValue *value);

static void
for_each_key(List **mapped, const char *relation, JsonbContainer *object,
			 MapKey map_key)
{
	JsonbIterator *it = JsonbIteratorInit(object);
	JsonbValue	value;
	JsonbIteratorToken token;

	while ((token = JsonbIteratorNext(&it, &value, true)) != WJB_DONE)
	{
		char	   *key;

		if (token != WJB_KEY)
			continue;
		key = json_string(&value);
		JsonbIteratorNext(&it, &value, true);
		map_key(mapped, relation, key, &value);
	}
}

static void
map_relation_key(List **mapped, const char *relation, const char *key,
				 const JsonbValue *value)
{
	if (strcmp(key, "relation") == 0)
		map_target(mapped, relation, value);
	else if (strcmp(key, "columns") != 0)
		malformed(psprintf("\"%s\" of \"%s\" is neither \"relation\" nor \"columns\".",
						   key, relation));
	else if (value->type != jbvBinary ||
			 !JsonContainerIsObject(value->val.binary.data))
		malformed(psprintf("\"columns\" of \"%s\" is not an object.", relation));
	else
		for_each_key(mapped, relation, value->val.binary.data, map_column);
}

static void
map_relation(List **mapped, const char *unused, const char *relation,
			 const JsonbValue *value)
{
	if (!attach_is_canonical(relation, ""))
		malformed(psprintf("\"%s\" is not a canonical name.", relation));
	if (value->type == jbvNull)
		add_mapped(mapped, relation, "", NULL, NULL);
	else if (value->type != jbvBinary ||
			 !JsonContainerIsObject(value->val.binary.data))
		malformed(psprintf("\"%s\" is mapped to something that is neither an object nor null.",
						   relation));
	else
		for_each_key(mapped, relation, value->val.binary.data,
					 map_relation_key);
}

/* the mapping as a list of Mapped; UO010 where it is malformed */
List *
attach_read_mapping(Jsonb *mapping)
{
	List	   *mapped = NIL;

	if (!JB_ROOT_IS_OBJECT(mapping))
		malformed("It is not a JSON object.");
	for_each_key(&mapped, NULL, &mapping->root, map_relation);
	return mapped;
}

const Mapped *
attach_find_mapped(List *mapped, const char *relation, const char *attribute)
{
	ListCell   *lc;

	foreach(lc, mapped)
	{
		Mapped	   *one = lfirst(lc);

		if (strcmp(one->relation, relation) == 0 &&
			strcmp(one->attribute, attribute) == 0)
			return one;
	}
	return NULL;
}
