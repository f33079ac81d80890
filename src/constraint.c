/*-------------------------------------------------------------------------
 *
 * constraint.c
 *	  What keeps double bookings from coming back.
 *
 * One index makes a second confirmed booking of a slot impossible, whatever
 * path leads to it.  Where it is missing, the DDL is given, to be run
 * CONCURRENTLY, which no function can do.  A small table may as well have it
 * built now: under a lock that keeps writers out, which is waited for only
 * shortly, since whoever comes behind waits with us.
 *
 * What contradicts the index would make the DDL fail and leave an invalid
 * index behind, so the DDL is not given while there is any.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_class.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "tcop/dest.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "attach_index.h"
#include "ddl.h"
#include "double_booking.h"
#include "template.h"
#include "uuid_list.h"
#include "verb.h"

/* one call of cusown_install_constraints() */
typedef struct Installation
{
	char	   *app_schema;		/* or NULL: the one that is chosen */
	bool		blocking;
	Binding    *binding;
	List	   *names;			/* of Resolved */
	const Resolved *table;		/* bookings */
	ReturnSetInfo *result;
} Installation;

static const char *const relations_read[] = {
	"bookings", NULL
};

PG_FUNCTION_INFO_V1(cusown_install_constraints);

static void
put_row(const Installation *installation, const char *status, const char *ddl,
		const char *finding)
{
	Datum		values[4];
	bool		nulls[4] = {false};

	values[0] = CStringGetTextDatum(installation->table->relation);
	values[1] = CStringGetTextDatum(status);
	nulls[2] = ddl == NULL;
	values[2] = nulls[2] ? (Datum) 0 : CStringGetTextDatum(ddl);
	values[3] = CStringGetTextDatum(finding);
	tuplestore_putvalues(installation->result->setResult,
						 installation->result->setDesc, values, nulls);
}

/* whether there is one */
static bool
report_present(const Installation *installation)
{
	List	   *indexes = attach_index_serving(&attach_one_confirmed,
											   installation->names, true, true);
	ListCell   *lc;

	foreach(lc, indexes)
		put_row(installation, "present", NULL,
				psprintf("index %s keeps a slot from having two confirmed bookings",
						 attach_index_name(lfirst_oid(lc))));
	return indexes != NIL;
}

/* what a build that failed has left behind */
static void
report_invalid(const Installation *installation)
{
	bool		partitioned = get_rel_relkind(installation->table->relid) ==
	RELKIND_PARTITIONED_TABLE;
	ListCell   *lc;

	foreach(lc, attach_index_serving(&attach_one_confirmed,
									 installation->names, false, true))
	{
		char	   *name = attach_index_name(lfirst_oid(lc));

		put_row(installation, "invalid",
				template_ddl("DROP INDEX %s%s;",
							 partitioned ? "" : "CONCURRENTLY ", name),
				psprintf("index %s is not valid: a build has failed, unless one is under way",
						 name));
	}
}

/* whether there are slots that have two already */
static bool
report_contradicted(const Installation *installation)
{
	UuidList	slots = {0};

	double_booking_slots(installation->binding, NULL, !installation->blocking,
						 &slots);
	for (int i = 0; i < slots.count; i++)
	{
		char	   *id = verb_uuid_text(&slots.items[i]);

		CHECK_FOR_INTERRUPTS();
		put_row(installation, "contradicted", NULL,
				psprintf("more than one confirmed booking on slot %s: SELECT * FROM cusown_resolve_double_bookings(slot => '%s');",
						 id, id));
	}
	return slots.count > 0;
}

static void
report_missing(const Installation *installation, bool is_contradicted)
{
	char	   *ddl = attach_index_remedy(&attach_one_confirmed,
										  installation->table,
										  attach_index_columns(&attach_one_confirmed,
															   installation->names),
										  installation->names);
	const char *finding = "no index keeps a slot from having two confirmed bookings";

	if (ddl == NULL)
		finding = "other tables inherit from it: no index of it would hold their rows";
	else if (ddl[0] == '\0')
		finding = "no unique index on the slot is possible: the table is partitioned by something else";
	else if (is_contradicted)
		finding = "no index keeps a slot from having two confirmed bookings; resolve those that have, then call it again";
	put_row(installation, "missing",
			ddl == NULL || ddl[0] == '\0' || is_contradicted ? NULL : ddl,
			finding);
}

/* ---------- building it now ---------- */

static void
check_owner(const Installation *installation)
{
	Relation	relation = table_open(installation->table->relid,
									  AccessShareLock);
	Oid			owner = relation->rd_rel->relowner;

	table_close(relation, NoLock);
	if (!has_privs_of_role(GetUserId(), owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be owner of table %s",
						quote_qualified_identifier(installation->table->schema,
												   installation->table->name))));
}

/* keeps writers out to the end of the transaction */
static void
lock_table(const Installation *installation)
{
	int			nest_level = ddl_limit_lock_wait();

	LockRelationOid(installation->table->relid, ShareLock);
	ddl_end_lock_wait(nest_level);
}

/*
 * Not where the DDL that is lacking is another one, or none would do.  It has
 * the lock already, and finds no contradiction behind it.
 */
static void
build(const Installation *installation)
{
	char	   *ddl = attach_index_remedy(&attach_one_confirmed,
										  installation->table,
										  attach_index_columns(&attach_one_confirmed,
															   installation->names),
										  installation->names);
	PlannedStmt *wrapper = makeNode(PlannedStmt);

	if (ddl == NULL || strncmp(ddl, "CREATE", strlen("CREATE")) != 0)
		return;
	wrapper->commandType = CMD_UTILITY;
	wrapper->utilityStmt = (Node *) attach_index_statement(&attach_one_confirmed,
														   installation->names);
	wrapper->stmt_location = -1;
	ProcessUtility(wrapper, ddl, false, PROCESS_UTILITY_QUERY, NULL, NULL,
				   None_Receiver, NULL);
	CommandCounterIncrement();
}

static void
install_body(void *state)
{
	Installation *installation = state;
	bool		is_contradicted;

	installation->binding = installation->app_schema == NULL ?
		binding_use(relations_read) :
		binding_use_schema(installation->app_schema, relations_read);
	verb_check_row_security(installation->binding, relations_read);
	installation->names = attach_index_names(installation->binding);
	installation->table = attach_find(installation->names, "bookings", "");
	report_invalid(installation);
	if (report_present(installation))
		return;
	if (installation->blocking)
	{
		check_owner(installation);
		lock_table(installation);
	}
	is_contradicted = report_contradicted(installation);
	if (installation->blocking && !is_contradicted)
	{
		build(installation);
		if (report_present(installation))
			return;
	}
	report_missing(installation, is_contradicted);
}

/*
 * cusown_install_constraints(app_schema name DEFAULT NULL,
 *		blocking boolean DEFAULT false, OUT relation text, OUT status text,
 *		OUT ddl text, OUT finding text)
 *		RETURNS SETOF record
 *
 * Whether an index makes a second confirmed booking of a slot impossible, what
 * contradicts it, and the DDL that is lacking, for \gexec.  blocking: builds
 * it now, where nothing contradicts it.
 *
 * Errors: UO001 not attached; 22004 argument; 42501 row-level security would
 * hide rows; with blocking also: not the owner of the table; 55P03 the lock was
 * not to be had within 2 s, or the caller's shorter lock_timeout; 25006 standby
 * or read-only transaction; 0A000 REPEATABLE READ or SERIALIZABLE.
 *
 * Locks: none; with blocking bookings in SHARE mode, to the end of the
 * transaction.
 *
 * Source: runbook "Double Booking Alert", step 4.
 */
Datum
cusown_install_constraints(PG_FUNCTION_ARGS)
{
	Installation installation = {0};

	verb_check_not_null(fcinfo, 1, "blocking");
	if (!PG_ARGISNULL(0))
		installation.app_schema = pstrdup(NameStr(*PG_GETARG_NAME(0)));
	installation.blocking = PG_GETARG_BOOL(1);
	if (installation.blocking)
		verb_check_transaction("cusown_install_constraints");
	InitMaterializedSRF(fcinfo, 0);
	installation.result = (ReturnSetInfo *) fcinfo->resultinfo;
	verb_run(install_body, &installation, false);
	return (Datum) 0;
}
