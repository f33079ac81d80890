/*-------------------------------------------------------------------------
 *
 * guard_install.c
 *	  Puts guards (guard.c) on an application's tables, and takes them off.
 *
 * A guard is one constraint trigger, without a WHEN condition and without a list
 * of columns: the server would not let the application change the type of a column
 * that is named there, or drop it.  Its mode is one of its arguments: it costs
 * nothing to read, goes where the table goes, through pg_dump too, and nothing else
 * has to know it.  Another mode is another trigger; what is as it should be is
 * left alone, without a lock.  It depends on the extension, so that DROP EXTENSION
 * takes it along.
 *
 * It is not ENABLE ALWAYS: a subscriber must not stop because of what its
 * publisher let pass.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_class.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

#include "ddl.h"
#include "guard.h"
#include "state_machine.h"
#include "template.h"
#include "verb.h"

#define GUARD_TRIGGER "cusown_guard"

/* a table that can be guarded */
typedef struct GuardedTable
{
	const char *relation;		/* canonical name */
	const char *machine;
} GuardedTable;

static const GuardedTable guarded_tables[] = {
	{"bookings", MACHINE_BOOKING},
	{"payments", MACHINE_PAYMENT},
};

static const char *const relations_guarded[] = {"bookings", "payments", NULL};

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
	" c.relname::text AS relation, t.tgargs AS args,"
	" t.tgenabled = ANY ('{O,A}') AS is_enabled"
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
	bool		is_enabled;		/* not switched off by its owner */
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
		trigger->is_enabled = template_bool(row, "is_enabled");
		if (read_args(trigger, args) &&
			strcmp(trigger->args[GUARD_APP_SCHEMA], app_schema) == 0)
			triggers = lappend(triggers, trigger);
	}
	SPI_freetuptable(SPI_tuptable);
	return triggers;
}

/* ---------- putting them on, taking them off ---------- */

static void
drop_trigger(GuardTrigger *trigger)
{
	ddl_execute(template_ddl("DROP TRIGGER %I ON %s", trigger->name,
							 trigger->table));
	trigger->is_enabled = false;
}

static void
drop_triggers(List *triggers)
{
	ListCell   *lc;

	foreach(lc, triggers)
		drop_trigger(lfirst(lc));
}

static void
drop_triggers_of(List *triggers, const char *machine)
{
	ListCell   *lc;

	foreach(lc, triggers)
	{
		GuardTrigger *trigger = lfirst(lc);

		if (strcmp(trigger->args[GUARD_MACHINE], machine) == 0)
			drop_trigger(trigger);
	}
}

/* takes an application's guards off, wherever they are */
void
guard_remove(const char *app_schema)
{
	drop_triggers(find_triggers(app_schema));
}

/* what there should be */
static void
want_trigger(const Binding *binding, const GuardedTable *guarded,
			 const char *mode, GuardTrigger *wanted)
{
	const BoundRelation *relation = binding_relation(binding,
													 guarded->relation);

	wanted->name = GUARD_TRIGGER;
	wanted->table = quote_qualified_identifier(relation->schema,
											   relation->name);
	wanted->args[GUARD_MACHINE] = guarded->machine;
	wanted->args[GUARD_MODE] = mode;
	wanted->args[GUARD_APP_SCHEMA] = binding->app_schema;
	wanted->args[GUARD_ID_COLUMN] =
		binding_column(binding, guarded->relation, "id")->column;
	wanted->args[GUARD_STATUS_COLUMN] =
		binding_column(binding, guarded->relation, "status")->column;
	wanted->is_enabled = true;
}

static bool
is_same(const GuardTrigger *one, const GuardTrigger *other)
{
	bool		same = one->is_enabled == other->is_enabled &&
	strcmp(one->name, other->name) == 0 &&
	strcmp(one->table, other->table) == 0;

	for (int i = 0; i < GUARD_NARGS; i++)
		same = same && strcmp(one->args[i], other->args[i]) == 0;
	return same;
}

/* rows of a partitioned table can move, which is a DELETE and an INSERT */
static const char *
events(Oid relid)
{
	return get_rel_relkind(relid) == RELKIND_PARTITIONED_TABLE ?
		"INSERT OR DELETE OR UPDATE" : "INSERT OR UPDATE";
}

/* as where the schema was renamed and attached again by its new name */
static void
check_name_free(const GuardTrigger *wanted, Oid relid)
{
	if (OidIsValid(get_trigger_oid(relid, wanted->name, true)))
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("trigger \"%s\" of table %s is not that of application \"%s\"",
						wanted->name, wanted->table,
						wanted->args[GUARD_APP_SCHEMA]),
				 errhint("If it is that of another application on the same table, call cusown_detach() for that one; else rename the trigger.")));
}

static void
make_trigger(const GuardTrigger *wanted, Oid relid)
{
	StringInfoData args;

	check_name_free(wanted, relid);
	initStringInfo(&args);
	for (int i = 0; i < GUARD_NARGS; i++)
		appendStringInfo(&args, "%s%s", i > 0 ? ", " : "",
						 quote_literal_cstr(wanted->args[i]));
	ddl_execute(template_ddl("CREATE CONSTRAINT TRIGGER %I AFTER %s ON %s"
							 " NOT DEFERRABLE FOR EACH ROW"
							 " EXECUTE FUNCTION cusown_ops.guard(%s)",
							 wanted->name, events(relid), wanted->table,
							 args.data));
	ddl_execute(template_ddl("ALTER TRIGGER %I ON %s DEPENDS ON EXTENSION cusown_ops",
							 wanted->name, wanted->table));
}

static void
guard_table(const Binding *binding, const GuardedTable *guarded,
			const char *mode, List *triggers)
{
	GuardTrigger wanted;
	bool		is_there = false;
	ListCell   *lc;

	want_trigger(binding, guarded, mode, &wanted);
	foreach(lc, triggers)
	{
		GuardTrigger *trigger = lfirst(lc);

		if (strcmp(trigger->args[GUARD_MACHINE], guarded->machine) != 0)
			continue;
		if (!is_there && is_same(trigger, &wanted))
			is_there = true;
		else
			drop_trigger(trigger);
	}
	if (!is_there)
		make_trigger(&wanted,
					 binding_relation(binding, guarded->relation)->relid);
}

/* payments need not be bound, nor their ids */
static bool
can_be_guarded(const Binding *binding, const GuardedTable *guarded)
{
	return binding_relation(binding, guarded->relation) != NULL &&
		binding_column(binding, guarded->relation, "id") != NULL &&
		binding_column(binding, guarded->relation, "status") != NULL;
}

/* what is not bound any more our functions cannot change: nobody could */
static void
guard_tables(const char *app_schema, const char *mode, List *triggers)
{
	Binding    *binding = binding_use_schema(app_schema, relations_guarded);

	for (int i = 0; i < lengthof(guarded_tables); i++)
	{
		if (can_be_guarded(binding, &guarded_tables[i]))
			guard_table(binding, &guarded_tables[i], mode, triggers);
		else
			drop_triggers_of(triggers, guarded_tables[i].machine);
	}
}

/* an application that is guarded is attached anew: guards what is bound now */
void
guard_follow(const char *app_schema)
{
	List	   *triggers = find_triggers(app_schema);
	GuardTrigger *first = triggers == NIL ? NULL : linitial(triggers);

	if (first != NULL && first->is_enabled)
		guard_tables(app_schema, first->args[GUARD_MODE], triggers);
}

/* ---------- the function ---------- */

/* a table that is not guarded, by its name as bound; NULL where it cannot be */
static char *
bound_table(const char *app_schema, const GuardedTable *guarded)
{
	Binding    *binding = binding_use_schema(app_schema, relations_guarded);
	const BoundRelation *relation = binding_relation(binding,
													 guarded->relation);

	if (!can_be_guarded(binding, guarded))
		return NULL;
	return quote_qualified_identifier(relation->schema, relation->name);
}

/* where there are guards, only those are shown: the binding need not resolve */
static void
put_mode(GuardCall *call, const GuardedTable *guarded, List *triggers)
{
	const char *mode = GUARD_OFF;
	char	   *table = NULL;
	Datum		values[4];
	bool		nulls[4] = {false};
	NameData	app_schema;
	ListCell   *lc;

	foreach(lc, triggers)
	{
		GuardTrigger *trigger = lfirst(lc);

		if (strcmp(trigger->args[GUARD_MACHINE], guarded->machine) != 0)
			continue;
		table = trigger->table;
		if (trigger->is_enabled)
			mode = trigger->args[GUARD_MODE];
	}
	if (triggers == NIL)
		table = bound_table(call->app_schema, guarded);
	if (table == NULL)
		return;
	namestrcpy(&app_schema, call->app_schema);
	values[0] = NameGetDatum(&app_schema);
	values[1] = CStringGetTextDatum(guarded->machine);
	values[2] = CStringGetTextDatum(table);
	values[3] = CStringGetTextDatum(mode);
	tuplestore_putvalues(call->result->setResult, call->result->setDesc,
						 values, nulls);
}

static int
rank_of_mode(const char *mode)
{
	int			rank = 0;

	while (rank < lengthof(modes) - 1 && strcmp(modes[rank], mode) != 0)
		rank++;
	return rank;
}

/* the mode of the table that is guarded least, 0 for off; -1: none could be */
int
guard_weakest(const char *app_schema)
{
	Binding    *binding = binding_use_schema(app_schema, relations_guarded);
	List	   *triggers = find_triggers(app_schema);
	int			weakest = -1;

	for (int i = 0; i < lengthof(guarded_tables); i++)
	{
		int			mode = 0;
		ListCell   *lc;

		if (!can_be_guarded(binding, &guarded_tables[i]))
			continue;
		foreach(lc, triggers)
		{
			GuardTrigger *trigger = lfirst(lc);

			if (trigger->is_enabled &&
				strcmp(trigger->args[GUARD_MACHINE],
					   guarded_tables[i].machine) == 0)
				mode = rank_of_mode(trigger->args[GUARD_MODE]);
		}
		weakest = weakest < 0 ? mode : Min(weakest, mode);
	}
	return weakest;
}

/*
 * Taking guards off, and showing those that are there, must be possible also
 * where the binding no longer resolves: this is the way out.
 */
static void
guard_body(void *state)
{
	GuardCall  *call = state;
	List	   *triggers;

	if (call->app_schema == NULL)
		call->app_schema = pstrdup(binding_chosen_schema());
	binding_check_attached(call->app_schema);
	triggers = find_triggers(call->app_schema);
	if (call->mode != NULL && strcmp(call->mode, GUARD_OFF) == 0)
		drop_triggers(triggers);
	else if (call->mode != NULL)
	{
		guard_tables(call->app_schema, call->mode, triggers);
		triggers = find_triggers(call->app_schema);
	}
	for (int i = 0; i < lengthof(guarded_tables); i++)
		put_mode(call, &guarded_tables[i], triggers);
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
 * the table is in use for longer than two seconds; 42710 it has a trigger of that
 * name which is not this application's guard.
 *
 * Locks, where something changes: SHARE ROW EXCLUSIVE on the table where it was
 * not guarded, else ACCESS EXCLUSIVE; to the end of the transaction.
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
