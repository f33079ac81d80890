/*-------------------------------------------------------------------------
 *
 * guard_install.c
 *	  Puts guards (guard.c) on an application's tables, and takes them off.
 *
 * A guard is two constraint triggers, one for INSERT and one for UPDATE, whose
 * WHEN conditions leave all rows alone of which it is plain that they may pass:
 * the server then does not even remember them for the statement's end, which
 * is most of what a trigger costs.  Its mode is one of
 * their arguments: it costs nothing to read, goes where the table goes, through
 * pg_dump too, and nothing else has to know it.  They depend on the extension, so
 * that DROP EXTENSION takes them along.
 *
 * They are not ENABLE ALWAYS: a subscriber must not stop because of what its
 * publisher let pass.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "utils/builtins.h"


#include "ddl.h"
#include "guard.h"
#include "state_machine.h"
#include "template.h"
#include "verb.h"

#define INSERT_TRIGGER "cusown_guard_insert"
#define UPDATE_TRIGGER "cusown_guard_update"

/* a table that can be guarded */
typedef struct GuardedTable
{
	const char *relation;		/* canonical name */
	const char *machine;
} GuardedTable;

static const GuardedTable guarded_tables[] = {
	{"bookings", MACHINE_BOOKING},
};

/* the names of what is there, with room for the next entity */
static const char *const relations_guarded[] = {"bookings", NULL};

static const char *const modes[] = {
	GUARD_OFF, GUARD_WARN, GUARD_TRANSITIONS, GUARD_FUNCTIONS
};

/* one call of cusown_guard() */
typedef struct GuardCall
{
	const char *mode;			/* NULL: only show */
	const char *app_schema;		/* NULL: the one that is chosen */
	ReturnSetInfo *result;
} GuardCall;

PG_FUNCTION_INFO_V1(cusown_guard);

/* every trigger of ours, but for those of partitions */
static const Template guard_triggers = {
	"SELECT t.tgname::text AS name, n.nspname::text AS schema,"
	" c.relname::text AS relation, t.tgargs AS args"
	" FROM pg_catalog.pg_trigger t"
	" JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid"
	" JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
	" JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid"
	" JOIN pg_catalog.pg_namespace f ON f.oid = p.pronamespace"
	" WHERE f.nspname = 'cusown_ops' AND p.proname = 'guard'"
	" AND t.tgparentid = 0::oid AND NOT t.tgisinternal"
	" ORDER BY n.nspname, c.relname, t.tgname",
	0, {0}
};

/* a trigger of ours */
typedef struct GuardTrigger
{
	char	   *name;
	char	   *table;			/* qualified, quoted */
	const char *args[GUARD_NARGS];
} GuardTrigger;

/* false: somebody made it by hand, with other arguments */
static bool
read_args(GuardTrigger *trigger, bytea *args)
{
	const char *at = VARDATA_ANY(args);
	const char *end = at + VARSIZE_ANY_EXHDR(args);

	for (int i = 0; i < GUARD_NARGS; i++)
	{
		if (at >= end)
			return false;
		trigger->args[i] = pnstrdup(at, strnlen(at, end - at));
		at += strlen(trigger->args[i]) + 1;
	}
	return true;
}

/* of GuardTrigger: those of one application, also what we have just made */
static List *
find_triggers(const char *app_schema)
{
	uint64		rows = template_execute(NULL, &guard_triggers, NULL, NULL, false);
	List	   *triggers = NIL;

	for (uint64 row = 0; row < rows; row++)
	{
		GuardTrigger *trigger = palloc0(sizeof(GuardTrigger));
		bool		isnull;
		bytea	   *args = DatumGetByteaPP(template_column(row, "args", &isnull));

		trigger->name = template_text(row, "name");
		trigger->table =
			quote_qualified_identifier(template_text(row, "schema"),
									   template_text(row, "relation"));
		if (read_args(trigger, args) &&
			strcmp(trigger->args[GUARD_APP_SCHEMA], app_schema) == 0)
			triggers = lappend(triggers, trigger);
	}
	SPI_freetuptable(SPI_tuptable);
	return triggers;
}

/* ---------- putting them on, taking them off ---------- */

/* takes an application's guards off, wherever they are */
void
guard_remove(const char *app_schema)
{
	ListCell   *lc;

	foreach(lc, find_triggers(app_schema))
	{
		GuardTrigger *trigger = lfirst(lc);

		ddl_execute(template_ddl("DROP TRIGGER %I ON %s", trigger->name,
								 trigger->table));
	}
}

static void
make_trigger(const char *name, const char *event, const char *condition,
			 const char *table, const char *args)
{
	ddl_execute(template_ddl("CREATE CONSTRAINT TRIGGER %I AFTER %s ON %s"
							 " NOT DEFERRABLE FOR EACH ROW %s"
							 " EXECUTE FUNCTION cusown_ops.guard(%s)",
							 name, event, table, condition, args));
	ddl_execute(template_ddl("ALTER TRIGGER %I ON %s DEPENDS ON EXTENSION cusown_ops",
							 name, table));
}

/* that a status is one of ours, which is a literal of the column's own type */
static char *
status_is(const char *row, const char *column, const char *status)
{
	return template_ddl("%s.%I OPERATOR(pg_catalog.=) %s", row, column,
						quote_literal_cstr(status));
}

/* in every mode of what confirms, our functions alone know more */
static bool
is_for_trigger(const char *mode, const char *to_status)
{
	return strcmp(mode, GUARD_TRANSITIONS) != 0 &&
		strcmp(to_status, GUARDED_STATUS) == 0;
}

/*
 * An update is looked at unless its status stays, or changes as we ship it.  Null
 * is looked at.  What an owner has added is for the trigger: it may be taken back.
 */
static char *
update_condition(const GuardedTable *guarded, const char *mode,
				 const char *column)
{
	StringInfoData condition;
	const char *from;
	const char *to;

	initStringInfo(&condition);
	appendStringInfoString(&condition,
						   template_ddl("WHEN ((OLD.%I OPERATOR(pg_catalog.=) NEW.%I",
										column, column));
	for (int at = 0; state_machine_next(guarded->machine, &at, &from, &to);)
	{
		char	   *change = psprintf(" OR (%s AND %s)",
									  status_is("OLD", column, from),
									  status_is("NEW", column, to));

		/* two events may lead the same way */
		if (!is_for_trigger(mode, to) &&
			strstr(condition.data, change) == NULL)
			appendStringInfoString(&condition, change);
	}
	appendStringInfoString(&condition, ") IS NOT TRUE)");
	return condition.data;
}

/* a row may be born in any status but that one */
static char *
insert_condition(const char *column)
{
	return psprintf("WHEN (%s)", status_is("NEW", column, GUARDED_STATUS));
}

static void
guard_table(const Binding *binding, const GuardedTable *guarded,
			const char *mode)
{
	const BoundRelation *relation = binding_relation(binding,
													 guarded->relation);
	const char *id = binding_column(binding, guarded->relation, "id")->column;
	const char *status = binding_column(binding, guarded->relation,
										"status")->column;
	const char *table = quote_qualified_identifier(relation->schema,
												   relation->name);
	char	   *args = psprintf("%s, %s, %s, %s, %s",
								quote_literal_cstr(guarded->machine),
								quote_literal_cstr(mode),
								quote_literal_cstr(binding->app_schema),
								quote_literal_cstr(id),
								quote_literal_cstr(status));

	make_trigger(INSERT_TRIGGER, "INSERT", insert_condition(status), table,
				 args);
	make_trigger(UPDATE_TRIGGER, "UPDATE",
				 update_condition(guarded, mode, status), table, args);
}

static void
set_mode(const Binding *binding, const char *mode)
{
	guard_remove(binding->app_schema);
	for (int i = 0; i < lengthof(guarded_tables); i++)
	{
		if (strcmp(mode, GUARD_OFF) != 0)
			guard_table(binding, &guarded_tables[i], mode);
	}
}

/* ---------- the function ---------- */

static void
put_mode(GuardCall *call, const Binding *binding, const GuardedTable *guarded,
		 List *triggers)
{
	const BoundRelation *relation = binding_relation(binding,
													 guarded->relation);
	char	   *table = quote_qualified_identifier(relation->schema,
												   relation->name);
	const char *mode = GUARD_OFF;
	Datum		values[4];
	bool		nulls[4] = {false};
	NameData	app_schema;
	ListCell   *lc;

	foreach(lc, triggers)
	{
		GuardTrigger *trigger = lfirst(lc);

		if (strcmp(trigger->args[GUARD_MACHINE], guarded->machine) != 0)
			continue;
		mode = trigger->args[GUARD_MODE];
		table = trigger->table;
	}
	namestrcpy(&app_schema, binding->app_schema);
	values[0] = NameGetDatum(&app_schema);
	values[1] = CStringGetTextDatum(guarded->machine);
	values[2] = CStringGetTextDatum(table);
	values[3] = CStringGetTextDatum(mode);
	tuplestore_putvalues(call->result->setResult, call->result->setDesc,
						 values, nulls);
}

static void
guard_body(void *state)
{
	GuardCall  *call = state;
	Binding    *binding = call->app_schema == NULL ?
	binding_use(relations_guarded) :
	binding_use_schema(call->app_schema, relations_guarded);
	List	   *triggers;

	if (call->mode != NULL)
		set_mode(binding, call->mode);
	triggers = find_triggers(binding->app_schema);
	for (int i = 0; i < lengthof(guarded_tables); i++)
		put_mode(call, binding, &guarded_tables[i], triggers);
}

static const char *
mode_named(const char *name)
{
	for (int i = 0; i < lengthof(modes); i++)
	{
		if (strcmp(modes[i], name) == 0)
			return modes[i];
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("unknown mode \"%s\"", name),
			 errhint("Modes are off, warn, transitions and functions.")));
}

/*
 * cusown_guard(mode text DEFAULT NULL, app_schema name DEFAULT NULL,
 *		OUT app_schema name, OUT entity text, OUT relation text,
 *		OUT mode text) RETURNS SETOF record
 *
 * Sets how the statuses of an application's bookings are guarded, and shows it;
 * mode NULL only shows.
 *
 * Errors: 22023 unknown mode; UO001; 42501 the table belongs to another; 55P03
 * the table is in use for longer than two seconds.
 *
 * Locks: ACCESS EXCLUSIVE on the table, to the end of the transaction.
 *
 * Source: runbook "Double Booking Alert", step 4.
 */
Datum
cusown_guard(PG_FUNCTION_ARGS)
{
	GuardCall	call = {0};

	if (!PG_ARGISNULL(0))
	{
		verb_check_transaction("cusown_guard");
		call.mode = mode_named(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	}
	call.app_schema = PG_ARGISNULL(1) ? NULL : NameStr(*PG_GETARG_NAME(1));
	InitMaterializedSRF(fcinfo, 0);
	call.result = (ReturnSetInfo *) fcinfo->resultinfo;
	verb_run(guard_body, &call, false);
	return (Datum) 0;
}
