/*-------------------------------------------------------------------------
 *
 * attach_remedy.c
 *	  What would mend a name that attach cannot bind.
 *
 * Text for a human to read and run, never run by us.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "parser/parse_coerce.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

#include "attach.h"
#include "template.h"

static const Oid type_oids[] = {
	InvalidOid, UUIDOID, TEXTOID, TEXTOID, TEXTOID, TIMESTAMPTZOID, DATEOID,
	TIMEOID, INT4OID, INT8OID, BOOLOID, JSONBOID
};

/* the call that would mend it: another table, or none where none is needed */
char *
attach_mapping_remedy(const char *app_schema,
					  const CanonicalName *canonical)
{
	return psprintf("SELECT * FROM cusown_attach(%s, '{\"%s\": %s}');",
					quote_literal_cstr(app_schema), canonical->relation,
					canonical->need == NEEDED ?
					"{\"relation\": \"its name\"}" : "null");
}

/* likewise for a column */
char *
attach_column_mapping_remedy(const char *app_schema,
							 const CanonicalName *canonical)
{
	return psprintf("SELECT * FROM cusown_attach(%s, '{\"%s\": {\"columns\": {\"%s\": %s}}}');",
					quote_literal_cstr(app_schema),
					canonical->relation, canonical->attribute,
					canonical->need == OPTIONAL ? "null" : "\"its name\"");
}

/*
 * DDL that gives a column the type it needs.  A timestamp without time zone is
 * taken as UTC, whatever the session's TimeZone.  Where no cast leads from one
 * type to the other, a new column is needed.
 */
char *
attach_type_remedy(const CanonicalName *canonical, const char *table,
				   const char *name, Oid type)
{
	const char *type_name = attach_type_names[canonical->type];
	Oid			cast;

	if (canonical->type == TYPE_TIMESTAMPTZ &&
		(getBaseType(type) == TIMESTAMPOID || getBaseType(type) == DATEOID))
		return template_ddl("ALTER TABLE %s ALTER COLUMN %I TYPE %s USING %I::timestamp AT TIME ZONE 'UTC';",
							table, name, type_name, name);
	if (find_coercion_pathway(type_oids[canonical->type], getBaseType(type),
							  COERCION_EXPLICIT, &cast) != COERCION_PATH_NONE)
		return template_ddl("ALTER TABLE %s ALTER COLUMN %I TYPE %s USING %I::%s;",
							table, name, type_name, name, type_name);
	name = psprintf("%s_%s", name, canonical->attribute);
	return template_ddl("ALTER TABLE %s ADD COLUMN %I %s%s; -- and map \"%s\" to it",
						table, name, type_name,
						canonical->type == TYPE_UUID &&
						strcmp(canonical->attribute, "id") == 0 ?
						" NOT NULL DEFAULT gen_random_uuid()" : "",
						canonical->attribute);
}
