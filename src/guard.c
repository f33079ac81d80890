/*-------------------------------------------------------------------------
 *
 * guard.c
 *	  Keeps statuses from being changed otherwise than they may be.
 *
 * A trigger on the application's table, made by guard_install.c, which asks the
 * state machine about each change of status, and in mode functions lets a
 * booking become confirmed by our functions only.  It fires AFTER each row: a
 * BEFORE trigger that comes later could still change it, and INSERT ... ON
 * CONFLICT DO UPDATE of a row that stays as it is must pass.  Whoever writes the
 * table runs it, without rights of ours: it reads its mode from its arguments, and
 * an owner's own transitions from their table as the server itself would.
 *
 * The permission of our functions is in the backend's memory, where no SQL gets
 * at it: which row, in which table, by a statement of this subtransaction at this
 * depth of triggers.  It is set around one SPI call.  An EXCEPTION block of a
 * trigger that our statement fires does not take it away, as it was not set in
 * that subtransaction; what such a trigger changes itself is changed one level
 * deeper, and has none; and what a function changes that a CHECK or a policy
 * calls, is not this row.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/partition.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "audit.h"
#include "errors.h"
#include "guard.h"
#include "state_machine.h"
#include "verb.h"

/* what one statement of ours may do */
typedef struct Permission
{
	bool		is_given;
	SubTransactionId subtransaction;
	int			trigger_depth;	/* of the statement: its triggers are deeper */
	Oid			relid;			/* as bound: of a partitioned table the root */
	pg_uuid_t	id;
} Permission;

/* what a trigger's arguments mean in its table, found once in a statement */
typedef struct Columns
{
	AttrNumber	id;
	AttrNumber	status;
	bool		status_is_text;
	FmgrInfo	status_output;	/* of another type */
} Columns;

/* a status, as far as it can be one that is known */
typedef struct StatusText
{
	char text[	NAMEDATALEN];
} StatusText;

/* a row that was changed */
typedef struct Guarded
{
	Trigger    *trigger;
	Relation	relation;
	const Columns *columns;
	TupleTableSlot *row;		/* as it is now */
	bool		is_new;
	StatusText	from_status;
	StatusText	to_status;
} Guarded;

static Permission permission = {false};

/* the subtransaction in which cusown_override() was called, or none */
static SubTransactionId override = InvalidSubTransactionId;

PG_FUNCTION_INFO_V1(cusown_guard_trigger);
PG_FUNCTION_INFO_V1(cusown_override);

/* ---------- the permission ---------- */

static int
trigger_depth(void)
{
	return DatumGetInt32(DirectFunctionCall1(pg_trigger_depth, (Datum) 0));
}

/*
 * template_execute() of a statement that may change the status of the row id of
 * a relation, given by its canonical name, as the guard lets only us do.
 */
uint64
guard_execute(Binding *binding, const char *relation, const pg_uuid_t *id,
			  const Template *statement, const Datum *values,
			  const char *nulls)
{
	Permission	outer = permission;
	volatile uint64 rows = 0;

	PG_TRY();
	{
		permission.subtransaction = GetCurrentSubTransactionId();
		permission.trigger_depth = trigger_depth();
		permission.relid = binding_relation(binding, relation)->relid;
		permission.id = *id;
		permission.is_given = true;
		rows = template_execute(binding, statement, values, nulls, false);
	}
	PG_FINALLY();
	{
		permission = outer;
	}
	PG_END_TRY();
	return rows;
}

static bool
is_or_is_part_of(Relation relation, Oid relid)
{
	return RelationGetRelid(relation) == relid ||
		(relation->rd_rel->relispartition &&
		 list_member_oid(get_partition_ancestors(RelationGetRelid(relation)),
						 relid));
}

static bool
is_permitted(const Guarded *guarded)
{
	bool		isnull;
	Datum		id;

	if (!permission.is_given ||
		permission.subtransaction != GetCurrentSubTransactionId() ||
		permission.trigger_depth + 1 != trigger_depth() ||
		!is_or_is_part_of(guarded->relation, permission.relid))
		return false;
	id = slot_getattr(guarded->row, guarded->columns->id, &isnull);
	return !isnull &&
		memcmp(DatumGetUUIDP(id), &permission.id, sizeof(pg_uuid_t)) == 0;
}

/* ---------- the trigger ---------- */

static AttrNumber
column_named(const TriggerData *data, GuardArg arg)
{
	const char *name = data->tg_trigger->tgargs[arg];
	int			number = SPI_fnumber(RelationGetDescr(data->tg_relation), name);

	if (number <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_CUSOWN_NOT_ATTACHED),
				 errmsg("column \"%s\" of table \"%s\", which cusown_ops guards, does not exist",
						name, RelationGetRelationName(data->tg_relation)),
				 errhint("Attach the application again, then run cusown_guard().")));
	return (AttrNumber) number;
}

/* the server keeps flinfo for each table of a statement */
static const Columns *
columns_of(FmgrInfo *flinfo, const TriggerData *data)
{
	Columns    *columns = flinfo->fn_extra;
	Oid			type;
	Oid			output;
	bool		is_varlena;

	if (columns != NULL)
		return columns;
	columns = MemoryContextAllocZero(flinfo->fn_mcxt, sizeof(Columns));
	columns->id = column_named(data, GUARD_ID_COLUMN);
	columns->status = column_named(data, GUARD_STATUS_COLUMN);
	type = getBaseType(TupleDescAttr(RelationGetDescr(data->tg_relation),
									 columns->status - 1)->atttypid);
	columns->status_is_text = type == TEXTOID || type == VARCHAROID;
	getTypeOutputInfo(type, &output, &is_varlena);
	fmgr_info_cxt(output, &columns->status_output, flinfo->fn_mcxt);
	flinfo->fn_extra = columns;
	return columns;
}

static void
read_status(const Columns *columns, TupleTableSlot *row, StatusText *status)
{
	bool		isnull;
	Datum		datum = slot_getattr(row, columns->status, &isnull);

	if (isnull)
		status->text[0] = '\0';
	else if (columns->status_is_text)
		text_to_cstring_buffer(DatumGetTextPP(datum), status->text,
							   sizeof(status->text));
	else
		strlcpy(status->text,
				OutputFunctionCall(unconstify(FmgrInfo *, &columns->status_output),
								   datum),
				sizeof(status->text));
}

static char *
id_of(const Guarded *guarded)
{
	bool		isnull;
	Datum		id = slot_getattr(guarded->row, guarded->columns->id, &isnull);

	return isnull ? pstrdup("without an id") :
		DatumGetCString(DirectFunctionCall1(uuid_out, id));
}

/* WARNING, where the guard is only to tell */
static int
severity(const Guarded *guarded)
{
	return strcmp(guarded->trigger->tgargs[GUARD_MODE], GUARD_WARN) == 0 ?
		WARNING : ERROR;
}

static void
refuse_transition(const Guarded *guarded)
{
	ereport(severity(guarded),
			(errcode(ERRCODE_CUSOWN_TRANSITION),
			 errmsg("%s %s must not go from status \"%s\" to \"%s\"",
					guarded->trigger->tgargs[GUARD_MACHINE], id_of(guarded),
					guarded->from_status.text, guarded->to_status.text),
			 errhint("The view cusown_ops.state_machine shows what is allowed; an owner adds to it in cusown_ops.state_transition.")));
}

static void
refuse_stranger(const Guarded *guarded)
{
	ereport(severity(guarded),
			(errcode(ERRCODE_CUSOWN_GUARDED),
			 errmsg("%s %s must not become %s by this statement",
					guarded->trigger->tgargs[GUARD_MACHINE], id_of(guarded),
					guarded->to_status.text),
			 errhint("Call cusown_confirm_booking(), which looks who else stands on the slot.")));
}

/* an INSERT is no transition: a row may be born in any status but this one */
static void
judge(const Guarded *guarded)
{
	char	  **args = guarded->trigger->tgargs;
	const char *from = guarded->from_status.text;
	const char *to = guarded->to_status.text;

	if ((!guarded->is_new && strcmp(from, to) == 0) ||
		override != InvalidSubTransactionId)
		return;
	if (!guarded->is_new &&
		!state_machine_has(args[GUARD_APP_SCHEMA], args[GUARD_MACHINE], from, to))
		refuse_transition(guarded);
	else if (strcmp(to, GUARDED_STATUS) == 0 &&
			 strcmp(args[GUARD_MODE], GUARD_TRANSITIONS) != 0 &&
			 !is_permitted(guarded))
		refuse_stranger(guarded);
}

/*
 * cusown_ops.guard() RETURNS trigger
 *
 * Arguments: see GuardArg.  Errors: UO003 the state machine has no such
 * transition; UO007 confirmed otherwise than by our functions.
 */
Datum
cusown_guard_trigger(PG_FUNCTION_ARGS)
{
	TriggerData *data = (TriggerData *) fcinfo->context;
	Guarded		guarded;

	if (!CALLED_AS_TRIGGER(fcinfo) || !TRIGGER_FIRED_AFTER(data->tg_event) ||
		!TRIGGER_FIRED_FOR_ROW(data->tg_event) ||
		TRIGGER_FIRED_BY_DELETE(data->tg_event) ||
		data->tg_trigger->tgnargs != GUARD_NARGS)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("cusown_ops.guard() is made a trigger by cusown_guard() only")));
	guarded.trigger = data->tg_trigger;
	guarded.relation = data->tg_relation;
	guarded.columns = columns_of(fcinfo->flinfo, data);
	guarded.is_new = TRIGGER_FIRED_BY_INSERT(data->tg_event);
	guarded.row = guarded.is_new ? data->tg_trigslot : data->tg_newslot;
	if (!guarded.is_new)
		read_status(guarded.columns, data->tg_trigslot, &guarded.from_status);
	read_status(guarded.columns, guarded.row, &guarded.to_status);
	judge(&guarded);
	return PointerGetDatum(NULL);
}

/* ---------- who is let pass all the same ---------- */

static void
end_override(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_ABORT || event == XACT_EVENT_COMMIT ||
		event == XACT_EVENT_PREPARE)
		override = InvalidSubTransactionId;
}

static void
move_override(SubXactEvent event, SubTransactionId mine,
			  SubTransactionId parent, void *arg)
{
	if (override == InvalidSubTransactionId || override != mine)
		return;
	if (event == SUBXACT_EVENT_ABORT_SUB)
		override = InvalidSubTransactionId;
	else if (event == SUBXACT_EVENT_COMMIT_SUB)
		override = parent;
}

void
guard_init(void)
{
	RegisterXactCallback(end_override, NULL);
	RegisterSubXactCallback(move_override, NULL);
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
}

/*
 * cusown_override(reason text) RETURNS void
 *
 * Lets pass, to the end of this transaction, what a guard would refuse, and
 * writes an audit row data_corrected with the reason.
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
	if (override == InvalidSubTransactionId)
		override = GetCurrentSubTransactionId();
	PG_RETURN_VOID();
}
