/*-------------------------------------------------------------------------
 *
 * guard.c
 *	  Keeps statuses from being changed otherwise than they may be.
 *
 * A trigger on the application's table, made by guard_install.c, which asks the
 * state machine about each change of status, and in mode functions lets a booking
 * become confirmed, and a payment change, by our functions only.  It fires AFTER
 * each row: a
 * BEFORE trigger that comes later could still change it, and INSERT ... ON
 * CONFLICT DO UPDATE of a row that stays as it is must pass.  Whoever writes the
 * table runs it, without rights of ours: it reads its mode from its arguments, and
 * an owner's own transitions from their table as the server itself would.
 *
 * It knows its columns by their names, so that nothing depends on them: the
 * application may change and drop them as it likes.  A row whose status has not
 * changed costs two datums and their comparison.
 *
 * An UPDATE that moves a row to another partition is a DELETE and an INSERT to
 * triggers.  In a partitioned table DELETE is looked at too: what a row had been
 * by which the same command takes the place of is what it changes from.
 *
 * The permission of our functions is in the backend's memory, where no SQL gets
 * at it: which row, in which table, by a statement of this subtransaction at this
 * depth of triggers.  It is set around one SPI call.  An EXCEPTION block of a
 * trigger that our statement fires does not take it away, as it was not set in
 * that subtransaction; what such a trigger changes itself is changed one level
 * deeper, and has none.  What runs at the same depth, as a function that a CHECK
 * or a policy calls, or what a rule of the table's owner makes of our statement,
 * can confirm with it what the permission names and nothing else: the row that
 * we are about to confirm.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/partition.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/fmgrprotos.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "audit.h"
#include "errors.h"
#include "guard.h"
#include "state_machine.h"
#include "uuid_list.h"
#include "verb.h"

/* what one statement of ours may do */
typedef struct Permission
{
	bool		is_given;
	SubTransactionId subtransaction;
	int			trigger_depth;	/* of the statement: its triggers are deeper */
	Oid			relid;			/* as bound: of a partitioned table the root */
	UuidList   *ids;
} Permission;

/* what a trigger's arguments mean in its table, found once in a statement */
typedef struct Columns
{
	AttrNumber	id;				/* InvalidAttrNumber: there is none */
	AttrNumber	status;			/* likewise */
	bool		by_value;		/* of the status */
	int16		length;
	Oid			type;			/* that of a domain is what it is over */
	FmgrInfo	output;
} Columns;

/* a row that was changed */
typedef struct Guarded
{
	const TriggerData *data;
	char	  **args;			/* see GuardArg */
	const Columns *columns;
	TupleTableSlot *row;		/* as it is now */
	bool		is_new;
	const char *from_status;	/* where it is not */
	const char *to_status;
} Guarded;

/* a row of a partitioned table that was deleted, or left for elsewhere */
typedef struct Departure
{
	struct Departure *next;
	int			trigger_depth;	/* of the guard that saw it */
	CommandId	command;		/* InvalidCommandId: there is none */
	Oid			root;
	pg_uuid_t	id;
	char		status[NAMEDATALEN];
} Departure;

/* a call of cusown_override() */
typedef struct Override
{
	struct Override *next;
	NameData	app_schema;
	SubTransactionId subtransaction;	/* invalid once that is rolled back */
} Override;

static Permission permission = {false};

/*
 * Of this transaction, in its memory.  Of departures the last one at each depth of
 * triggers: rows that move arrive before the next one leaves, but what a trigger
 * of the application moves meanwhile goes in between, one level deeper.
 */
static Departure *departures = NULL;
static Override *overrides = NULL;

PG_FUNCTION_INFO_V1(cusown_guard_trigger);
PG_FUNCTION_INFO_V1(cusown_override);

/* ---------- the permission ---------- */

static int
trigger_depth(void)
{
	return DatumGetInt32(DirectFunctionCall1(pg_trigger_depth, (Datum) 0));
}

/*
 * template_execute() of a statement that may change the status of the rows ids of
 * a relation, given by its canonical name, as the guard lets only us do.
 */
uint64
guard_execute(Binding *binding, const char *relation, const UuidList *ids,
			  const Template *statement, const Datum *values,
			  const char *nulls)
{
	Permission	outer = permission;
	UuidList	copy = uuid_list_copy(ids); /* looking sorts it */
	Permission	given = {
		.subtransaction = GetCurrentSubTransactionId(),
		.trigger_depth = trigger_depth(),
		.relid = binding_relation(binding, relation)->relid,
		.ids = &copy,
		.is_given = true,
	};
	volatile uint64 rows = 0;

	PG_TRY();
	{
		permission = given;
		rows = template_execute(binding, statement, values, nulls, false);
	}
	PG_FINALLY();
	{
		permission = outer;
	}
	PG_END_TRY();
	return rows;
}

static Oid
root_of(Relation relation)
{
	return relation->rd_rel->relispartition ?
		llast_oid(get_partition_ancestors(RelationGetRelid(relation))) :
		RelationGetRelid(relation);
}

static bool
is_or_is_part_of(Relation relation, Oid relid)
{
	return RelationGetRelid(relation) == relid ||
		(relation->rd_rel->relispartition &&
		 list_member_oid(get_partition_ancestors(RelationGetRelid(relation)),
						 relid));
}

/* false where a row has none that could be known */
static bool
read_id(const Columns *columns, TupleTableSlot *row, pg_uuid_t *id)
{
	bool		isnull = true;
	Datum		datum = columns->id == InvalidAttrNumber ? (Datum) 0 :
	slot_getattr(row, columns->id, &isnull);

	if (!isnull)
		*id = *DatumGetUUIDP(datum);
	return !isnull;
}

static bool
is_one_of(const Guarded *guarded, UuidList *ids)
{
	pg_uuid_t	mine;

	return read_id(guarded->columns, guarded->row, &mine) &&
		uuid_list_contains(ids, &mine);
}

static bool
is_permitted(const Guarded *guarded)
{
	return permission.is_given &&
		permission.subtransaction == GetCurrentSubTransactionId() &&
		permission.trigger_depth + 1 == trigger_depth() &&
		is_or_is_part_of(guarded->data->tg_relation, permission.relid) &&
		is_one_of(guarded, permission.ids);
}

static bool
is_overridden(const char *app_schema)
{
	for (const Override *one = overrides; one != NULL; one = one->next)
	{
		if (one->subtransaction != InvalidSubTransactionId &&
			strcmp(NameStr(one->app_schema), app_schema) == 0)
			return true;
	}
	return false;
}

/* ---------- the columns ---------- */

/* WARNING, where the guard is only to tell */
static int
severity(char **args)
{
	return strcmp(args[GUARD_MODE], GUARD_WARN) == 0 ? WARNING : ERROR;
}

static AttrNumber
column_named(TupleDesc desc, const char *name)
{
	int			number = SPI_fnumber(desc, name);

	return number > 0 ? (AttrNumber) number : InvalidAttrNumber;
}

/* nobody can say any more what changes there */
static void
status_is_gone(const TriggerData *data)
{
	char	  **args = data->tg_trigger->tgargs;
	char	   *app_schema = quote_literal_cstr(args[GUARD_APP_SCHEMA]);

	ereport(severity(args),
			(errcode(ERRCODE_CUSOWN_NOT_ATTACHED),
			 errmsg("column \"%s\" of table \"%s\", which cusown_ops guards, does not exist",
					args[GUARD_STATUS_COLUMN],
					RelationGetRelationName(data->tg_relation)),
			 errhint("The table's owner calls cusown_attach(%s) with a mapping that names the column, or cusown_guard('off', %s).",
					 app_schema, app_schema)));
}

static void
find_status(Columns *columns, TupleDesc desc, MemoryContext context)
{
	Form_pg_attribute attribute = TupleDescAttr(desc, columns->status - 1);
	Oid			output;
	bool		is_varlena;

	columns->by_value = attribute->attbyval;
	columns->length = attribute->attlen;
	columns->type = getBaseType(attribute->atttypid);
	getTypeOutputInfo(columns->type, &output, &is_varlena);
	fmgr_info_cxt(output, &columns->output, context);
}

/*
 * The server keeps flinfo for each table of a statement, and lets nobody change
 * that table meanwhile.
 */
static const Columns *
columns_of(FmgrInfo *flinfo, const TriggerData *data)
{
	TupleDesc	desc = RelationGetDescr(data->tg_relation);
	char	  **args = data->tg_trigger->tgargs;
	Columns    *columns = MemoryContextAllocZero(flinfo->fn_mcxt,
												 sizeof(Columns));

	columns->id = column_named(desc, args[GUARD_ID_COLUMN]);
	if (columns->id != InvalidAttrNumber &&
		getBaseType(TupleDescAttr(desc, columns->id - 1)->atttypid) != UUIDOID)
		columns->id = InvalidAttrNumber;
	columns->status = column_named(desc, args[GUARD_STATUS_COLUMN]);
	if (columns->status == InvalidAttrNumber)
		status_is_gone(data);
	else
		find_status(columns, desc, flinfo->fn_mcxt);
	flinfo->fn_extra = columns;
	return columns;
}

/* null is as good as empty: neither is a status */
static const char *
read_status(const Columns *columns, TupleTableSlot *row)
{
	bool		isnull;
	Datum		datum = slot_getattr(row, columns->status, &isnull);
	char	   *status;

	if (isnull)
		return "";
	if (columns->type == TEXTOID || columns->type == VARCHAROID)
		return TextDatumGetCString(datum);
	status = OutputFunctionCall(unconstify(FmgrInfo *, &columns->output), datum);
	/* blanks at the end mean nothing there */
	if (columns->type == BPCHAROID)
		status[bpchartruelen(status, strlen(status))] = '\0';
	return status;
}

/* as stored: what is equal otherwise only costs a closer look */
static bool
status_stays(const TriggerData *data, const Columns *columns)
{
	bool		was_null;
	bool		is_null;
	Datum		was = slot_getattr(data->tg_trigslot, columns->status, &was_null);
	Datum		is = slot_getattr(data->tg_newslot, columns->status, &is_null);

	if (was_null || is_null)
		return was_null == is_null;
	return datumIsEqual(was, is, columns->by_value, columns->length);
}

/* ---------- rows that move ---------- */

/* NULL: none was seen at this depth */
static Departure *
last_departure(void)
{
	Departure  *one = departures;

	while (one != NULL && one->trigger_depth != trigger_depth())
		one = one->next;
	return one;
}

static Departure *
add_departure(void)
{
	Departure  *one = MemoryContextAllocZero(TopTransactionContext,
											 sizeof(Departure));

	one->trigger_depth = trigger_depth();
	one->next = departures;
	departures = one;
	return one;
}

static void
note_departure(const TriggerData *data, const Columns *columns)
{
	Departure  *departure = last_departure();

	if (departure == NULL)
		departure = add_departure();
	departure->command = InvalidCommandId;
	if (!read_id(columns, data->tg_trigslot, &departure->id))
		return;
	strlcpy(departure->status, read_status(columns, data->tg_trigslot),
			sizeof(departure->status));
	departure->root = root_of(data->tg_relation);
	departure->command = HeapTupleHeaderGetCmax(data->tg_trigtuple->t_data);
}

/* of the row that was deleted by the command that inserts this one; or NULL */
static const Departure *
departure_of(const Guarded *guarded)
{
	Departure  *departure = last_departure();
	UuidList	gone;

	if (departure == NULL || departure->command == InvalidCommandId ||
		departure->command !=
		HeapTupleHeaderGetCmin(guarded->data->tg_trigtuple->t_data) ||
		departure->root != root_of(guarded->data->tg_relation))
		return NULL;
	gone = (UuidList)
	{
		&departure->id, 1
	};
	return is_one_of(guarded, &gone) ? departure : NULL;
}

/* ---------- the trigger ---------- */

static char *
id_of(const Guarded *guarded)
{
	pg_uuid_t	id;

	return read_id(guarded->columns, guarded->row, &id) ?
		DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(&id))) :
		pstrdup("without an id");
}

static bool
is_of(const Guarded *guarded, const char *machine)
{
	return strcmp(guarded->args[GUARD_MACHINE], machine) == 0;
}

static void
refuse_transition(const Guarded *guarded)
{
	ereport(severity(guarded->args),
			(errcode(ERRCODE_CUSOWN_TRANSITION),
			 errmsg("%s %s must not go from status \"%s\" to \"%s\"",
					guarded->args[GUARD_MACHINE], id_of(guarded),
					guarded->from_status, guarded->to_status),
			 errhint("The view cusown_ops.state_machine shows what is allowed; an owner adds to it in cusown_ops.state_transition.")));
}

static void
refuse_stranger(const Guarded *guarded)
{
	ereport(severity(guarded->args),
			(errcode(ERRCODE_CUSOWN_GUARDED),
			 errmsg("%s %s must not become %s by this statement",
					guarded->args[GUARD_MACHINE], id_of(guarded),
					guarded->to_status),
			 is_of(guarded, MACHINE_PAYMENT) ?
			 errhint("Call cusown_payment_transition(), which writes the audit trail, and takes evidence for what was given up.") :
			 errhint("Call cusown_confirm_booking(), which looks who else stands on the slot.")));
}

/*
 * Whether only our functions may do this.  What they know more of: who else stands
 * on the slot of a booking; and of a payment, that money which comes late takes
 * evidence, whoever asks.
 */
static bool
is_reserved(const Guarded *guarded)
{
	char	  **args = guarded->args;
	bool		is_payment = is_of(guarded, MACHINE_PAYMENT);

	if (is_payment && guarded->is_new)
		return false;
	if (strcmp(args[GUARD_MODE], GUARD_TRANSITIONS) == 0)
		return is_payment &&
			state_machine_takes_evidence(args[GUARD_APP_SCHEMA],
										 guarded->from_status,
										 guarded->to_status);
	return is_payment || strcmp(guarded->to_status, "confirmed") == 0;
}

/* an INSERT is no transition: a row may be born in any status, but see above */
static void
judge(const Guarded *guarded)
{
	char	  **args = guarded->args;
	const char *from = guarded->from_status;
	const char *to = guarded->to_status;

	if ((!guarded->is_new && strcmp(from, to) == 0) ||
		is_overridden(args[GUARD_APP_SCHEMA]))
		return;
	if (!guarded->is_new &&
		!state_machine_has(args[GUARD_APP_SCHEMA], args[GUARD_MACHINE], from, to))
		refuse_transition(guarded);
	else if (is_reserved(guarded) && !is_permitted(guarded))
		refuse_stranger(guarded);
}

static void
look_closer(const TriggerData *data, const Columns *columns)
{
	Guarded		guarded;
	const Departure *departure;

	guarded.data = data;
	guarded.args = data->tg_trigger->tgargs;
	guarded.columns = columns;
	guarded.is_new = TRIGGER_FIRED_BY_INSERT(data->tg_event);
	guarded.row = guarded.is_new ? data->tg_trigslot : data->tg_newslot;
	guarded.to_status = read_status(columns, guarded.row);
	if (!guarded.is_new)
		guarded.from_status = read_status(columns, data->tg_trigslot);
	else if ((departure = departure_of(&guarded)) != NULL)
	{
		guarded.from_status = departure->status;
		guarded.is_new = false;
	}
	judge(&guarded);
}

/*
 * cusown_ops.guard() RETURNS trigger
 *
 * Arguments: see GuardArg.  Errors: UO003 the state machine has no such
 * transition; UO007 what is reserved to our functions; UO001 the column does
 * not exist.
 */
Datum
cusown_guard_trigger(PG_FUNCTION_ARGS)
{
	TriggerData *data = (TriggerData *) fcinfo->context;
	const Columns *columns;

	if (!CALLED_AS_TRIGGER(fcinfo) || !TRIGGER_FIRED_AFTER(data->tg_event) ||
		!TRIGGER_FIRED_FOR_ROW(data->tg_event) ||
		data->tg_trigger->tgnargs != GUARD_NARGS)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("cusown_ops.guard() is made a trigger by cusown_guard() only")));
	columns = fcinfo->flinfo->fn_extra;
	if (columns == NULL)
		columns = columns_of(fcinfo->flinfo, data);
	if (columns->status == InvalidAttrNumber)
		return PointerGetDatum(NULL);
	if (TRIGGER_FIRED_BY_DELETE(data->tg_event))
		note_departure(data, columns);
	else if (!TRIGGER_FIRED_BY_UPDATE(data->tg_event) ||
			 !status_stays(data, columns))
		look_closer(data, columns);
	return PointerGetDatum(NULL);
}

/* ---------- who is let pass all the same ---------- */

static void
add_override(const char *app_schema)
{
	Override   *one = MemoryContextAllocZero(TopTransactionContext,
											 sizeof(Override));

	namestrcpy(&one->app_schema, app_schema);
	one->subtransaction = GetCurrentSubTransactionId();
	one->next = overrides;
	overrides = one;
}

static void
end_transaction(XactEvent event, void *arg)
{
	if (event != XACT_EVENT_ABORT && event != XACT_EVENT_COMMIT &&
		event != XACT_EVENT_PREPARE)
		return;
	overrides = NULL;
	departures = NULL;
}

static void
end_subtransaction(SubXactEvent event, SubTransactionId mine,
				   SubTransactionId parent, void *arg)
{
	if (event != SUBXACT_EVENT_ABORT_SUB && event != SUBXACT_EVENT_COMMIT_SUB)
		return;
	for (Override *one = overrides; one != NULL; one = one->next)
	{
		if (one->subtransaction == mine)
			one->subtransaction = event == SUBXACT_EVENT_ABORT_SUB ?
				InvalidSubTransactionId : parent;
	}
}

void
guard_init(void)
{
	RegisterXactCallback(end_transaction, NULL);
	RegisterSubXactCallback(end_subtransaction, NULL);
}

static const char *const relations_audited[] = {"audit_logs", NULL};

static void
override_body(void *state)
{
	Binding    *binding = binding_use(relations_audited);
	StringInfoData metadata;

	initStringInfo(&metadata);
	appendStringInfoString(&metadata, "{\"source\": \"manual\", \"override\": \"guard\", \"role\": ");
	escape_json(&metadata, GetUserNameFromId(GetUserId(), false));
	appendStringInfoString(&metadata, ", \"reason\": ");
	escape_json(&metadata, state);
	appendStringInfoChar(&metadata, '}');
	audit_write_severe(binding, "data_corrected", "warning", "system", NULL,
					   metadata.data, "guard overridden for one transaction");
	add_override(binding->app_schema);
}

/*
 * cusown_override(reason text) RETURNS void
 *
 * Lets pass, to the end of this transaction, what a guard of this application
 * would refuse, and writes an audit row data_corrected with the reason.
 *
 * Errors: 22023 empty reason; UO001; 22004; 25006; 0A000.
 */
Datum
cusown_override(PG_FUNCTION_ARGS)
{
	char	   *reason;

	verb_check_transaction("cusown_override");
	verb_check_not_null(fcinfo, 0, "reason");
	reason = text_to_cstring(PG_GETARG_TEXT_PP(0));
	if (strspn(reason, " \t\n") == strlen(reason))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("reason must not be empty")));
	verb_run(override_body, reason, false);
	PG_RETURN_VOID();
}
