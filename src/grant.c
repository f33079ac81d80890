/*-------------------------------------------------------------------------
 *
 * grant.c
 *	  Who may call what: three profiles, and nothing by default.
 *
 * monitor		looks: STABLE functions, views, our tables
 * application	what an application's code calls on its requests
 * operator		everything but setting up rights
 *
 * Functions of ours run with the caller's rights, so a profile also needs
 * rights on the application's tables.  Those are not ours to give:
 * cusown_grant() returns them as DDL.
 *
 * GRANT and REVOKE are built as parse trees, not as text, so that no name has
 * to be quoted into a statement.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_class.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/parsenodes.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rls.h"
#include "utils/syscache.h"

#include "binding.h"
#include "compat.h"
#include "cusown_ops.h"
#include "template.h"
#include "verb.h"

#define MONITOR 1
#define APPLICATION 2
#define OPERATOR 4

typedef struct Profile
{
	const char *name;
	int			bit;
} Profile;

static const Profile profiles[] = {
	{"monitor", MONITOR},
	{"application", APPLICATION},
	{"operator", OPERATOR},
};

/* functions of ours, by name: none is overloaded */
typedef struct FunctionRight
{
	const char *name;
	int			profiles;
} FunctionRight;

static const FunctionRight function_rights[] = {
	{"cusown_due_bookings", MONITOR | APPLICATION | OPERATOR},
	{"cusown_double_bookings", MONITOR | APPLICATION | OPERATOR},
	{"cusown_payment_facts", MONITOR | APPLICATION | OPERATOR},
	{"cusown_payment_case", MONITOR | APPLICATION | OPERATOR},
	{"cusown_payment_mismatches", MONITOR | APPLICATION | OPERATOR},
	{"may_read_personal_data", OPERATOR},
	{"shipped_transitions", MONITOR | APPLICATION | OPERATOR},
	{"cusown_changes_since", MONITOR | APPLICATION | OPERATOR},
	{"cusown_health", MONITOR | APPLICATION | OPERATOR},
	{"health_reasons", MONITOR | APPLICATION | OPERATOR},
	{"cusown_symptoms", MONITOR | APPLICATION | OPERATOR},
	{"shipped_symptoms", MONITOR | APPLICATION | OPERATOR},
	{"measure_application", MONITOR | APPLICATION | OPERATOR},
	{"measure_ours", MONITOR | APPLICATION | OPERATOR},
	{"chosen_app_schema", MONITOR | APPLICATION | OPERATOR},
	{"count_double_bookings", MONITOR | APPLICATION | OPERATOR},
	{"count_payment_mismatches", MONITOR | APPLICATION | OPERATOR},
	{"cusown_runbook", MONITOR | APPLICATION | OPERATOR},
	{"age_text", MONITOR | APPLICATION | OPERATOR},
	{"runbook_symptoms", MONITOR | APPLICATION | OPERATOR},
	{"runbook_jobs", MONITOR | APPLICATION | OPERATOR},
	{"runbook_double_bookings", MONITOR | APPLICATION | OPERATOR},
	{"runbook_mismatches", MONITOR | APPLICATION | OPERATOR},
	{"missing_indexes", MONITOR | APPLICATION | OPERATOR},
	{"cusown_set_threshold", OPERATOR},
	{"cusown_metrics", MONITOR | APPLICATION | OPERATOR},
	{"graded_symptoms", MONITOR | APPLICATION | OPERATOR},
	{"measure_symptoms", MONITOR | APPLICATION | OPERATOR},
	{"is_preloaded", MONITOR | APPLICATION | OPERATOR},
	{"shipped_metrics", MONITOR | APPLICATION | OPERATOR},
	{"metric_labels", MONITOR | APPLICATION | OPERATOR},
	{"firing_symptoms", MONITOR | APPLICATION | OPERATOR},
	{"cusown_evaluate_alerts", OPERATOR},
	{"cusown_ack", OPERATOR},
	{"cusown_jobs", MONITOR | APPLICATION | OPERATOR},
	{"shipped_jobs", MONITOR | APPLICATION | OPERATOR},
	{"is_shipped_job", MONITOR | APPLICATION | OPERATOR},
	{"job_is_alive", MONITOR | APPLICATION | OPERATOR},
	{"cusown_expire_bookings", APPLICATION | OPERATOR},
	{"cusown_mark_no_show", APPLICATION | OPERATOR},
	{"cusown_confirm_booking", APPLICATION | OPERATOR},
	{"cusown_reject_booking", APPLICATION | OPERATOR},
	{"cusown_cancel_booking", APPLICATION | OPERATOR},
	{"cusown_undo_booking", APPLICATION | OPERATOR},
	{"cusown_expire_if_due", APPLICATION | OPERATOR},
	{"cusown_payment_transition", APPLICATION | OPERATOR},
	{"cusown_expire_payments", APPLICATION | OPERATOR},
	{"cusown_release_expired_holds", APPLICATION | OPERATOR},
	{"cusown_webhook", APPLICATION | OPERATOR},
	{"cusown_webhook_replay", OPERATOR},
	{"cusown_webhook_backlog", MONITOR | APPLICATION | OPERATOR},
	{"shipped_webhook_events", MONITOR | APPLICATION | OPERATOR},
	{"cusown_idempotency_begin", APPLICATION | OPERATOR},
	{"cusown_idempotency_complete", APPLICATION | OPERATOR},
	{"cusown_idempotency_abandon", APPLICATION | OPERATOR},
	{"cusown_resolve_double_bookings", OPERATOR},
	{"cusown_keep_booking", OPERATOR},
	{"cusown_repair_slots", OPERATOR},
	{"cusown_install_constraints", OPERATOR},
	{"cusown_reconciliation_summary", MONITOR | APPLICATION | OPERATOR},
	/* who may not write only sees */
	{"cusown_reconcile", MONITOR | OPERATOR},
	{"cusown_load_statement", OPERATOR},
	{"cusown_load_statement_csv", OPERATOR},
	{"cusown_verify_signature", APPLICATION | OPERATOR},
	{"verify_signature_with_stored_secret", APPLICATION | OPERATOR},
	{"cusown_prune_history", OPERATOR},
	{"cusown_run_job", OPERATOR},
	{"cusown_cron_health", MONITOR | APPLICATION | OPERATOR},
	{"cusown_worker_status", MONITOR | APPLICATION | OPERATOR},
	{"cusown_schedule", OPERATOR},
	{"cusown_unschedule", OPERATOR},
	{"cusown_attention_resolve", OPERATOR},
	{"cusown_guard", OPERATOR},
	{"guard", OPERATOR},
	{"cusown_override", OPERATOR},
	{"cusown_attach", OPERATOR},
	{"cusown_detach", OPERATOR},
};

/* rights on our tables and views */
typedef struct TableRight
{
	const char *name;
	const char *privilege;
	int			profiles;
} TableRight;

static const TableRight table_rights[] = {
	{"binding", "select", MONITOR | APPLICATION | OPERATOR},
	{"binding", "insert", OPERATOR},
	{"binding", "update", OPERATOR},
	{"binding", "delete", OPERATOR},
	{"attention", "select", MONITOR | APPLICATION | OPERATOR},
	{"attention", "insert", APPLICATION | OPERATOR},
	{"attention", "update", APPLICATION | OPERATOR},
	{"attention", "delete", OPERATOR},
	{"change", "select", MONITOR | APPLICATION | OPERATOR},
	{"change", "insert", APPLICATION | OPERATOR},
	/* FOR UPDATE asks for it */
	{"change", "update", OPERATOR},
	{"change", "delete", OPERATOR},
	{"change_stream", "select", MONITOR | APPLICATION | OPERATOR},
	{"change_stream", "update", OPERATOR},
	{"job", "select", MONITOR | APPLICATION | OPERATOR},
	{"job", "insert", OPERATOR},
	{"job", "update", OPERATOR},
	{"job", "delete", OPERATOR},
	{"job_run", "select", MONITOR | APPLICATION | OPERATOR},
	{"job_run", "insert", APPLICATION | OPERATOR},
	{"job_run", "update", OPERATOR},
	{"job_run", "delete", OPERATOR},
	{"job_total", "select", MONITOR | APPLICATION | OPERATOR},
	{"job_total", "insert", OPERATOR},
	{"job_total", "update", OPERATOR},
	{"job_total", "delete", OPERATOR},
	{"threshold", "select", MONITOR | APPLICATION | OPERATOR},
	{"threshold", "insert", OPERATOR},
	{"threshold", "update", OPERATOR},
	{"threshold", "delete", OPERATOR},
	{"census", "select", MONITOR | APPLICATION | OPERATOR},
	{"census", "insert", OPERATOR},
	{"census", "update", OPERATOR},
	{"census", "delete", OPERATOR},
	{"metric_build", "select", MONITOR | APPLICATION | OPERATOR},
	{"metric_symptom", "select", MONITOR | APPLICATION | OPERATOR},
	{"metric_job", "select", MONITOR | APPLICATION | OPERATOR},
	{"metric_worklist", "select", MONITOR | APPLICATION | OPERATOR},
	{"metric_webhook", "select", MONITOR | APPLICATION | OPERATOR},
	{"metric_worker", "select", MONITOR | APPLICATION | OPERATOR},
	{"takeover", "select", MONITOR | APPLICATION | OPERATOR},
	{"takeover", "insert", OPERATOR},
	{"takeover", "delete", OPERATOR},
	{"outage", "select", MONITOR | APPLICATION | OPERATOR},
	{"outage", "insert", OPERATOR},
	{"outage", "delete", OPERATOR},
	{"alert", "select", MONITOR | APPLICATION | OPERATOR},
	{"alert", "insert", OPERATOR},
	{"alert", "update", OPERATOR},
	{"alert", "delete", OPERATOR},
	{"job_progress", "select", MONITOR | APPLICATION | OPERATOR},
	{"state_transition", "select", MONITOR | APPLICATION | OPERATOR},
	{"state_transition", "insert", OPERATOR},
	{"state_transition", "update", OPERATOR},
	{"state_transition", "delete", OPERATOR},
	{"state_machine", "select", MONITOR | APPLICATION | OPERATOR},
	{"payment_refund", "select", MONITOR | APPLICATION | OPERATOR},
	{"payment_refund", "insert", APPLICATION | OPERATOR},
	{"payment_refund", "update", APPLICATION | OPERATOR},
	{"payment_refund", "delete", OPERATOR},
	{"webhook_provider", "select", MONITOR | APPLICATION | OPERATOR},
	{"webhook_provider", "insert", OPERATOR},
	{"webhook_provider", "update", OPERATOR},
	{"webhook_provider", "delete", OPERATOR},
	{"webhook_event", "select", MONITOR | APPLICATION | OPERATOR},
	{"webhook_event", "insert", OPERATOR},
	{"webhook_event", "update", OPERATOR},
	{"webhook_event", "delete", OPERATOR},
	{"webhook_machine", "select", MONITOR | APPLICATION | OPERATOR},
	{"webhook_inbox", "select", MONITOR | APPLICATION | OPERATOR},
	{"webhook_inbox", "insert", APPLICATION | OPERATOR},
	{"webhook_inbox", "update", APPLICATION | OPERATOR},
	{"webhook_inbox", "delete", OPERATOR},
	/* whoever paid is in there */
	{"webhook_body", "select", OPERATOR},
	{"webhook_body", "insert", APPLICATION | OPERATOR},
	/* FOR UPDATE asks for it */
	{"webhook_body", "update", OPERATOR},
	{"webhook_body", "delete", OPERATOR},
	{"webhook_rejected", "select", MONITOR | APPLICATION | OPERATOR},
	{"webhook_rejected", "insert", APPLICATION | OPERATOR},
	{"webhook_rejected", "update", APPLICATION | OPERATOR},
	{"webhook_rejected", "delete", OPERATOR},
	{"webhook_rejected_place", "usage", APPLICATION | OPERATOR},
	{"statement", "select", MONITOR | APPLICATION | OPERATOR},
	{"statement", "insert", OPERATOR},
	/* FOR UPDATE asks for it */
	{"statement", "update", OPERATOR},
	{"statement", "delete", OPERATOR},
	{"statement_line", "select", MONITOR | APPLICATION | OPERATOR},
	{"statement_line", "insert", OPERATOR},
	{"statement_line", "update", OPERATOR},
	{"statement_line", "delete", OPERATOR},
	/* responses are for who asked: no monitor reads them */
	{"idempotency_key", "select", APPLICATION | OPERATOR},
	{"idempotency_key", "insert", APPLICATION | OPERATOR},
	{"idempotency_key", "update", APPLICATION | OPERATOR},
	{"idempotency_key", "delete", APPLICATION | OPERATOR},
};

/* rights on the application's tables that functions of a profile use */
typedef struct ApplicationRight
{
	const char *relation;
	AclMode		mode;
	const char *privilege;
	int			profiles;
	bool		bound_columns;	/* on those only, as others hold what is none
								 * of our business */
} ApplicationRight;

static const ApplicationRight application_rights[] = {
	{"bookings", ACL_SELECT, "SELECT", MONITOR | APPLICATION | OPERATOR},
	{"bookings", ACL_UPDATE, "UPDATE", APPLICATION | OPERATOR},
	{"slots", ACL_SELECT, "SELECT", MONITOR | APPLICATION | OPERATOR},
	{"slots", ACL_UPDATE, "UPDATE", APPLICATION | OPERATOR},
	{"businesses", ACL_SELECT, "SELECT", MONITOR | APPLICATION | OPERATOR, true},
	{"payments", ACL_SELECT, "SELECT", MONITOR | APPLICATION | OPERATOR},
	/* FOR SHARE asks for it */
	{"payments", ACL_UPDATE, "UPDATE", APPLICATION | OPERATOR},
	{"payment_audit_logs", ACL_SELECT, "SELECT", APPLICATION | OPERATOR},
	{"payment_audit_logs", ACL_SELECT, "SELECT", MONITOR, true},
	{"payment_audit_logs", ACL_INSERT, "INSERT", APPLICATION | OPERATOR},
	/* RETURNING asks for it */
	{"audit_logs", ACL_SELECT, "SELECT", APPLICATION | OPERATOR},
	{"audit_logs", ACL_SELECT, "SELECT", MONITOR, true},
	{"audit_logs", ACL_INSERT, "INSERT", APPLICATION | OPERATOR},
	{"booking_lifecycle_audit", ACL_SELECT, "SELECT", MONITOR | APPLICATION | OPERATOR, true},
	{"idempotency_keys", ACL_SELECT, "SELECT", MONITOR | APPLICATION | OPERATOR, true},
	{"booking_lifecycle_audit", ACL_INSERT, "INSERT", APPLICATION | OPERATOR},
	{"cron_run_logs", ACL_INSERT, "INSERT", OPERATOR},
	{"metrics", ACL_SELECT, "SELECT", MONITOR | APPLICATION | OPERATOR},
	{"metrics", ACL_INSERT, "INSERT", APPLICATION | OPERATOR},
	{"metrics", ACL_UPDATE, "UPDATE", APPLICATION | OPERATOR},
};

/* one call of cusown_grant() */
typedef struct Grant
{
	Oid			role;
	char	   *role_name;
	int			profile;
	ReturnSetInfo *result;
} Grant;

PG_FUNCTION_INFO_V1(cusown_grant);
PG_FUNCTION_INFO_V1(cusown_revoke_default_privileges);

/* every object of this extension that has an ACL, and who is in it */
static const Template member_acls = {
	"SELECT o.kind, o.oid, o.schema::text AS schema, o.name::text AS name,"
	" x.grantee"
	" FROM pg_catalog.pg_extension e"
	" JOIN pg_catalog.pg_depend d ON d.refclassid ="
	" 'pg_catalog.pg_extension'::regclass AND d.refobjid = e.oid"
	" AND d.deptype = 'e'"
	" JOIN (SELECT 'pg_catalog.pg_proc'::regclass::oid AS class, p.oid AS oid,"
	" 'f'::text AS kind, n.nspname AS schema, p.proname AS name,"
	" coalesce(p.proacl, pg_catalog.acldefault('f', p.proowner)) AS acl,"
	" p.proowner AS owner"
	" FROM pg_catalog.pg_proc p"
	" JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace"
	" UNION ALL SELECT 'pg_catalog.pg_class'::regclass::oid, c.oid,"
	" CASE WHEN c.relkind = 'S' THEN 's' ELSE 'r' END, n.nspname, c.relname,"
	" c.relacl, c.relowner"
	" FROM pg_catalog.pg_class c"
	" JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
	" WHERE c.relkind = ANY ('{r,p,v,m,S}')"
	" UNION ALL SELECT 'pg_catalog.pg_namespace'::regclass::oid, n.oid, 'n',"
	" NULL, n.nspname, n.nspacl, n.nspowner FROM pg_catalog.pg_namespace n) o"
	" ON o.class = d.classid AND o.oid = d.objid"
	" CROSS JOIN LATERAL pg_catalog.aclexplode(o.acl) x"
	" WHERE e.extname = 'cusown_ops' AND x.grantee <> o.owner",
	0, {0}
};

/* the extension's function $1 */
static const Template member_function = {
	"SELECT p.oid FROM pg_catalog.pg_proc p"
	" JOIN pg_catalog.pg_depend d ON d.classid ="
	" 'pg_catalog.pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'"
	" AND d.refclassid = 'pg_catalog.pg_extension'::regclass"
	" JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid"
	" WHERE e.extname = 'cusown_ops' AND p.proname = $1::name",
	1, {TEXTOID}
};

static const Template extension_schema = {
	"SELECT n.nspname::text AS schema FROM pg_catalog.pg_extension e"
	" JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace"
	" WHERE e.extname = 'cusown_ops'",
	0, {0}
};

/* by its argument types: somebody may have overloaded the name */
static Node *
function_object(Oid function)
{
	ObjectWithArgs *object = makeNode(ObjectWithArgs);
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	Form_pg_proc form;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for function %u", function);
	form = (Form_pg_proc) GETSTRUCT(tuple);
	object->objname = list_make2(makeString(get_namespace_name(form->pronamespace)),
								 makeString(pstrdup(NameStr(form->proname))));
	for (int i = 0; i < form->pronargs; i++)
		object->objargs = lappend(object->objargs,
								  makeTypeNameFromOid(form->proargtypes.values[i],
													  -1));
	ReleaseSysCache(tuple);
	return (Node *) object;
}

static Node *
table_object(const char *schema, const char *name)
{
	return (Node *) makeRangeVar(pstrdup(schema), pstrdup(name), -1);
}

static RoleSpec *
role_spec(Oid role)
{
	RoleSpec   *spec = makeNode(RoleSpec);

	spec->roletype = OidIsValid(role) ? ROLESPEC_CSTRING : ROLESPEC_PUBLIC;
	if (OidIsValid(role))
		spec->rolename = GetUserNameFromId(role, false);
	spec->location = -1;
	return spec;
}

/* privilege NULL means all */
static void
grant_or_revoke(bool is_grant, ObjectType type, Node *object,
				const char *privilege, Oid role)
{
	GrantStmt  *statement = makeNode(GrantStmt);

	statement->is_grant = is_grant;
	statement->targtype = ACL_TARGET_OBJECT;
	statement->objtype = type;
	statement->objects = list_make1(object);
	statement->grantees = list_make1(role_spec(role));
	statement->behavior = is_grant ? DROP_RESTRICT : DROP_CASCADE;
	if (privilege != NULL)
	{
		AccessPriv *access = makeNode(AccessPriv);

		access->priv_name = pstrdup(privilege);
		statement->privileges = list_make1(access);
	}
	ExecuteGrantStmt(statement);
	/* the next one may be about the same catalog row */
	CommandCounterIncrement();
}

/* a row of member_acls */
static void
revoke_all(uint64 row)
{
	bool		isnull;
	Oid			oid = DatumGetObjectId(template_column(row, "oid", &isnull));
	Oid			grantee = DatumGetObjectId(template_column(row, "grantee",
														   &isnull));
	char	   *kind = template_text(row, "kind");
	char	   *schema = template_text(row, "schema");
	char	   *name = template_text(row, "name");

	if (strcmp(kind, "f") == 0)
		grant_or_revoke(false, OBJECT_ROUTINE, function_object(oid), NULL,
						grantee);
	else if (strcmp(kind, "r") == 0)
		grant_or_revoke(false, OBJECT_TABLE, table_object(schema, name),
						NULL, grantee);
	else if (strcmp(kind, "s") == 0)
		grant_or_revoke(false, OBJECT_SEQUENCE, table_object(schema, name),
						NULL, grantee);
	else
		grant_or_revoke(false, OBJECT_SCHEMA, (Node *) makeString(name), NULL,
						grantee);
}

static void
revoke_body(void *state)
{
	uint64		rows = template_execute(NULL, &member_acls, NULL, NULL, false);

	for (uint64 row = 0; row < rows; row++)
		revoke_all(row);
}

/*
 * cusown_ops.revoke_default_privileges() RETURNS void
 *
 * Takes away what PUBLIC has by default and what ALTER DEFAULT PRIVILEGES of
 * the schema has given on objects of this extension.  Called at the end of
 * the install script.
 */
Datum
cusown_revoke_default_privileges(PG_FUNCTION_ARGS)
{
	verb_run(revoke_body, NULL, false);
	PG_RETURN_VOID();
}

static int
profile_named(const char *name)
{
	for (int i = 0; i < lengthof(profiles); i++)
	{
		if (strcmp(profiles[i].name, name) == 0)
			return profiles[i].bit;
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("unknown profile \"%s\"", name),
			 errhint("Profiles are monitor, application and operator.")));
}

static void
put_ddl(const Grant *grant, char *ddl)
{
	Datum		values[1] = {CStringGetTextDatum(ddl)};
	bool		nulls[1] = {false};

	tuplestore_putvalues(grant->result->setResult, grant->result->setDesc,
						 values, nulls);
}

static Oid
our_function(const char *name)
{
	Datum		values[1];
	bool		isnull;

	values[0] = CStringGetTextDatum(name);
	if (template_execute(NULL, &member_function, values, NULL, false) != 1)
		elog(ERROR, "the extension has no function \"%s\"", name);
	return DatumGetObjectId(template_column(0, "oid", &isnull));
}

static void
grant_functions(const Grant *grant)
{
	for (int i = 0; i < lengthof(function_rights); i++)
	{
		const FunctionRight *right = &function_rights[i];

		if ((right->profiles & grant->profile) != 0)
			grant_or_revoke(true, OBJECT_ROUTINE,
							function_object(our_function(right->name)),
							"execute", grant->role);
	}
}

static void
grant_tables(const Grant *grant)
{
	for (int i = 0; i < lengthof(table_rights); i++)
	{
		const TableRight *right = &table_rights[i];

		if ((right->profiles & grant->profile) != 0)
			grant_or_revoke(true, OBJECT_TABLE,
							table_object(CUSOWN_SCHEMA, right->name),
							right->privilege, grant->role);
	}
}

static void
ask_for_schema(const Grant *grant, const char *schema)
{
	Oid			namespace = get_namespace_oid(schema, true);

	if (OidIsValid(namespace) &&
		SchemaAclCheck(namespace, grant->role, ACL_USAGE) == ACLCHECK_OK)
		return;
	put_ddl(grant, template_ddl("GRANT USAGE ON SCHEMA %I TO %I;", schema,
								grant->role_name));
}

static bool
is_wanted(const Grant *grant, const ApplicationRight *right,
		  const BoundRelation *table)
{
	return (right->profiles & grant->profile) != 0 && table != NULL;
}

static bool
has_right(const Grant *grant, const ApplicationRight *right,
		  const BoundRelation *table)
{
	ListCell   *lc;

	if (pg_class_aclcheck(table->relid, grant->role, right->mode) == ACLCHECK_OK)
		return true;
	if (!right->bound_columns)
		return false;
	foreach(lc, table->columns)
	{
		const BoundColumn *column = lfirst(lc);

		if (pg_attribute_aclcheck(table->relid, column->attnum, grant->role,
								  right->mode) != ACLCHECK_OK)
			return false;
	}
	return true;
}

/* "SELECT", or "SELECT (id, timezone)" */
static char *
privilege_on(const ApplicationRight *right, const BoundRelation *table)
{
	StringInfoData privilege;
	ListCell   *lc;

	initStringInfo(&privilege);
	appendStringInfoString(&privilege, right->privilege);
	foreach(lc, right->bound_columns ? table->columns : NIL)
	{
		const BoundColumn *column = lfirst(lc);

		appendStringInfoString(&privilege,
							   lc == list_head(table->columns) ? " (" : ", ");
		appendStringInfoString(&privilege, quote_identifier(column->column));
	}
	if (right->bound_columns)
		appendStringInfoChar(&privilege, ')');
	return privilege.data;
}

static void
ask_for_tables(const Grant *grant, const Binding *binding)
{
	for (int i = 0; i < lengthof(application_rights); i++)
	{
		const ApplicationRight *right = &application_rights[i];
		const BoundRelation *table = binding_relation(binding, right->relation);

		if (!is_wanted(grant, right, table) || has_right(grant, right, table))
			continue;
		put_ddl(grant, template_ddl("GRANT %s ON %s TO %I;",
									privilege_on(right, table),
									quote_qualified_identifier(table->schema,
															   table->name),
									grant->role_name));
	}
}

/* tables may be bound in several schemas, which are asked for once each */
static void
ask_for_schemas(const Grant *grant, const Binding *binding)
{
	List	   *asked = NIL;

	for (int i = 0; i < lengthof(application_rights); i++)
	{
		const ApplicationRight *right = &application_rights[i];
		const BoundRelation *table = binding_relation(binding, right->relation);
		Oid			schema;

		if (!is_wanted(grant, right, table))
			continue;
		schema = get_rel_namespace(table->relid);
		if (list_member_oid(asked, schema))
			continue;
		asked = lappend_oid(asked, schema);
		ask_for_schema(grant, table->schema);
	}
}

static void
ask_for_bypassrls(const Grant *grant, const Binding *binding)
{
	for (int i = 0; i < lengthof(application_rights); i++)
	{
		const ApplicationRight *right = &application_rights[i];
		const BoundRelation *table = binding_relation(binding, right->relation);

		if (!is_wanted(grant, right, table) ||
			check_enable_rls(table->relid, grant->role, true) != RLS_ENABLED)
			continue;
		put_ddl(grant, template_ddl("ALTER ROLE %I BYPASSRLS;",
									grant->role_name));
		return;
	}
}

static void
ask_for_application_rights(const Grant *grant, const Binding *binding)
{
	ask_for_schemas(grant, binding);
	ask_for_tables(grant, binding);
	ask_for_bypassrls(grant, binding);
}

/* GRANT by somebody else would only warn, and grant nothing */
static void
check_owner(void)
{
	HeapTuple	tuple = SearchSysCache1(NAMESPACENAME,
										CStringGetDatum(CUSOWN_SCHEMA));
	Oid			owner;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for schema \"%s\"", CUSOWN_SCHEMA);
	owner = ((Form_pg_namespace) GETSTRUCT(tuple))->nspowner;
	ReleaseSysCache(tuple);
	if (!has_privs_of_role(GetUserId(), owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be owner of extension cusown_ops")));
}

static char *
public_schema(void)
{
	template_execute(NULL, &extension_schema, NULL, NULL, false);
	return template_text(0, "schema");
}

static void
grant_body(void *state)
{
	Grant	   *grant = state;
	char	   *schema = public_schema();
	ListCell   *lc;

	check_owner();
	grant_functions(grant);
	grant_tables(grant);
	grant_or_revoke(true, OBJECT_SCHEMA,
					(Node *) makeString(pstrdup(CUSOWN_SCHEMA)), "usage",
					grant->role);
	ask_for_schema(grant, schema);
	foreach(lc, binding_attached())
		ask_for_application_rights(grant, binding_use_schema(lfirst(lc), NULL));
}

/*
 * cusown_grant(role regrole, profile text) RETURNS SETOF text
 *
 * Grants a profile (monitor, application or operator) on objects of ours, and
 * returns as DDL the rights on the attached applications' tables that the
 * role still lacks for it.
 *
 * Errors: 22023 unknown profile or no role; 42501 caller does not own the
 * extension's objects.
 */
Datum
cusown_grant(PG_FUNCTION_ARGS)
{
	Grant		grant = {0};

	verb_check_transaction("cusown_grant");
	verb_check_not_null(fcinfo, 0, "role");
	verb_check_not_null(fcinfo, 1, "profile");
	grant.role = PG_GETARG_OID(0);
	if (!OidIsValid(grant.role))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("profiles are granted to roles, never to PUBLIC")));
	grant.role_name = GetUserNameFromId(grant.role, false);
	grant.profile = profile_named(text_to_cstring(PG_GETARG_TEXT_PP(1)));
	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	grant.result = (ReturnSetInfo *) fcinfo->resultinfo;
	verb_run(grant_body, &grant, false);
	return (Datum) 0;
}
