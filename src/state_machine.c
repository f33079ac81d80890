/*-------------------------------------------------------------------------
 *
 * state_machine.c
 *	  Which changes of status are allowed; every verb asks here.
 *
 * The transitions that cusown_ops ships stand in the table below and cannot
 * be removed.  cusown_ops.state_transition holds what an owner adds for one
 * application; it is read only where the table below has no answer.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "cusown_ops.h"
#include "errors.h"
#include "state_machine.h"
#include "template.h"

typedef struct Transition
{
	const char *machine;
	const char *from_status;
	const char *event;
	const char *to_status;
} Transition;

static const Transition shipped[] = {
	{MACHINE_BOOKING, "pending", "confirm", "confirmed"},
	{MACHINE_BOOKING, "pending", "reject", "rejected"},
	{MACHINE_BOOKING, "pending", "cancel", "cancelled"},
	{MACHINE_BOOKING, "pending", "expire", "cancelled"},
	{MACHINE_BOOKING, "confirmed", "cancel", "cancelled"},
	{MACHINE_BOOKING, "confirmed", "undo_confirm", "pending"},
	{MACHINE_BOOKING, "rejected", "undo_reject", "pending"},

	{MACHINE_SLOT, "available", "reserve", "reserved"},
	{MACHINE_SLOT, "available", "book", "booked"},
	{MACHINE_SLOT, "reserved", "book", "booked"},
	{MACHINE_SLOT, "reserved", "release", "available"},
	{MACHINE_SLOT, "reserved", "expire", "available"},
	{MACHINE_SLOT, "booked", "release", "available"},

	{MACHINE_PAYMENT, "initiated", "process", "processing"},
	{MACHINE_PAYMENT, "pending", "process", "processing"},
	{MACHINE_PAYMENT, "initiated", "verify", "completed"},
	{MACHINE_PAYMENT, "pending", "verify", "completed"},
	{MACHINE_PAYMENT, "processing", "verify", "completed"},
	{MACHINE_PAYMENT, "initiated", "fail", "failed"},
	{MACHINE_PAYMENT, "pending", "fail", "failed"},
	{MACHINE_PAYMENT, "processing", "fail", "failed"},
	{MACHINE_PAYMENT, "initiated", "expire", "expired"},
	{MACHINE_PAYMENT, "pending", "expire", "expired"},
	{MACHINE_PAYMENT, "processing", "expire", "expired"},
	/* what verify becomes where there is evidence, see payment_evidence.c */
	{MACHINE_PAYMENT, "failed", "late_capture", "completed"},
	{MACHINE_PAYMENT, "expired", "late_capture", "completed"},
	{MACHINE_PAYMENT, "completed", "partial_refund", "partially_refunded"},
	{MACHINE_PAYMENT, "completed", "refund", "refunded"},
	{MACHINE_PAYMENT, "partially_refunded", "partial_refund", "partially_refunded"},
	{MACHINE_PAYMENT, "partially_refunded", "refund", "refunded"},
};

static const Template added_transition = {
	"SELECT 1 FROM cusown_ops.state_transition t"
	" WHERE t.app_schema = $1 AND t.machine = $2 AND t.from_status = $3"
	" AND t.event = $4 AND t.to_status = $5",
	5, {NAMEOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID},.planned_once = true
};

/* $1 app_schema, $2 machine, $3 event; of $4, where it leads; to $5 */
static const Template added_target = {
	"SELECT t.to_status FROM cusown_ops.state_transition t"
	" WHERE t.app_schema = $1 AND t.machine = $2 AND t.event = $3"
	" AND t.from_status = $4",
	4, {NAMEOID, TEXTOID, TEXTOID, TEXTOID},.planned_once = true
};

static const Template added_to = {
	"SELECT 1 FROM cusown_ops.state_transition t"
	" WHERE t.app_schema = $1 AND t.machine = $2 AND t.event = $3"
	" AND t.to_status = $4 LIMIT 1",
	4, {NAMEOID, TEXTOID, TEXTOID, TEXTOID},.planned_once = true
};

PG_FUNCTION_INFO_V1(cusown_shipped_transitions);

static bool
is_shipped(const char *machine, const char *from_status, const char *event,
		   const char *to_status)
{
	for (int i = 0; i < lengthof(shipped); i++)
	{
		if (strcmp(shipped[i].machine, machine) == 0 &&
			strcmp(shipped[i].from_status, from_status) == 0 &&
			strcmp(shipped[i].event, event) == 0 &&
			strcmp(shipped[i].to_status, to_status) == 0)
			return true;
	}
	return false;
}

static bool
is_added(const Binding *binding, const char *machine, const char *from_status,
		 const char *event, const char *to_status)
{
	Datum		values[5];
	bool		found;

	values[0] = template_name(binding->app_schema);
	values[1] = CStringGetTextDatum(machine);
	values[2] = CStringGetTextDatum(from_status);
	values[3] = CStringGetTextDatum(event);
	values[4] = CStringGetTextDatum(to_status);
	found = template_execute(NULL, &added_transition, values, NULL, true) > 0;
	SPI_freetuptable(SPI_tuptable);
	return found;
}

bool
state_machine_allows(const Binding *binding, const char *machine,
					 const char *from_status, const char *event,
					 const char *to_status)
{
	return is_shipped(machine, from_status, event, to_status) ||
		is_added(binding, machine, from_status, event, to_status);
}

static uint64
find_added(const Binding *binding, const Template *statement,
		   const char *machine, const char *event, const char *status)
{
	Datum		values[4];

	values[0] = template_name(binding->app_schema);
	values[1] = CStringGetTextDatum(machine);
	values[2] = CStringGetTextDatum(event);
	values[3] = CStringGetTextDatum(status);
	return template_execute(NULL, statement, values, NULL, false);
}

/*
 * The status that an event leads to, or NULL where it is not allowed.  One that
 * an owner lets lead to several says nothing.
 */
const char *
state_machine_target(const Binding *binding, const char *machine,
					 const char *from_status, const char *event)
{
	const char *target;
	uint64		rows;

	for (int i = 0; i < lengthof(shipped); i++)
	{
		if (strcmp(shipped[i].machine, machine) == 0 &&
			strcmp(shipped[i].from_status, from_status) == 0 &&
			strcmp(shipped[i].event, event) == 0)
			return shipped[i].to_status;
	}
	rows = find_added(binding, &added_target, machine, event, from_status);
	target = rows == 0 ? NULL : template_text(0, "to_status");
	SPI_freetuptable(SPI_tuptable);
	if (rows > 1)
		ereport(ERROR,
				(errcode(ERRCODE_CUSOWN_TRANSITION),
				 errmsg("event \"%s\" of a %s in status \"%s\" leads to more than one status",
						event, machine, from_status),
				 errhint("Leave one of them in cusown_ops.state_transition.")));
	return target;
}

/* whether the event leads to this status, from anywhere */
bool
state_machine_leads_to(const Binding *binding, const char *machine,
					   const char *event, const char *to_status)
{
	bool		found;

	for (int i = 0; i < lengthof(shipped); i++)
	{
		if (strcmp(shipped[i].machine, machine) == 0 &&
			strcmp(shipped[i].event, event) == 0 &&
			strcmp(shipped[i].to_status, to_status) == 0)
			return true;
	}
	found = find_added(binding, &added_to, machine, event, to_status) > 0;
	SPI_freetuptable(SPI_tuptable);
	return found;
}

/* columns of cusown_ops.state_transition */
#define ADDED_NATTS 5

static bool
is_column(TupleDesc desc, HeapTuple tuple, int number, const char *value)
{
	bool		isnull;
	Datum		datum = heap_getattr(tuple, number, desc, &isnull);

	return !isnull &&
		strcmp(number == 1 ? NameStr(*DatumGetName(datum)) :
			   TextDatumGetCString(datum), value) == 0;
}

/*
 * Whether an owner has added a transition by any event.  Whoever writes a
 * guarded table asks this, and has no rights on ours: so it is not SQL.
 */
static bool
is_added_by_any_event(const char *app_schema, const char *machine,
					  const char *from_status, const char *to_status)
{
	const char *const wanted[ADDED_NATTS] = {
		app_schema, machine, from_status, NULL, to_status
	};
	Oid			relid = get_relname_relid("state_transition",
										  get_namespace_oid(CUSOWN_SCHEMA, false));
	Relation	relation = table_open(relid, AccessShareLock);
	SysScanDesc scan = systable_beginscan(relation, InvalidOid, false, NULL, 0,
										  NULL);
	HeapTuple	tuple;
	bool		found = false;

	while (!found && HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		found = true;
		for (int i = 0; i < ADDED_NATTS; i++)
			found = found && (wanted[i] == NULL ||
							  is_column(RelationGetDescr(relation), tuple,
										i + 1, wanted[i]));
	}
	systable_endscan(scan);
	table_close(relation, AccessShareLock);
	return found;
}

/* whether a payment goes there by a late capture only */
bool
state_machine_takes_evidence(const char *app_schema, const char *from_status,
							 const char *to_status)
{
	return is_shipped(MACHINE_PAYMENT, from_status, "late_capture", to_status) &&
		!is_added_by_any_event(app_schema, MACHINE_PAYMENT, from_status, to_status);
}

/* whether any event leads from one status to the other */
bool
state_machine_has(const char *app_schema, const char *machine,
				  const char *from_status, const char *to_status)
{
	for (int i = 0; i < lengthof(shipped); i++)
	{
		if (strcmp(shipped[i].from_status, from_status) == 0 &&
			strcmp(shipped[i].to_status, to_status) == 0 &&
			strcmp(shipped[i].machine, machine) == 0)
			return true;
	}
	return is_added_by_any_event(app_schema, machine, from_status, to_status);
}

void
state_machine_require(const Binding *binding, const char *machine,
					  const char *from_status, const char *event,
					  const char *to_status)
{
	if (!state_machine_allows(binding, machine, from_status, event, to_status))
		ereport(ERROR,
				(errcode(ERRCODE_CUSOWN_TRANSITION),
				 errmsg("transition \"%s\" of a %s from \"%s\" to \"%s\" is not allowed",
						event, machine, from_status, to_status)));
}

/*
 * cusown_ops.shipped_transitions(OUT machine text, OUT from_status text,
 *		OUT event text, OUT to_status text) RETURNS SETOF record
 *
 * The table above.
 */
Datum
cusown_shipped_transitions(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < lengthof(shipped); i++)
	{
		Datum		values[4];
		bool		nulls[4] = {false};

		values[0] = CStringGetTextDatum(shipped[i].machine);
		values[1] = CStringGetTextDatum(shipped[i].from_status);
		values[2] = CStringGetTextDatum(shipped[i].event);
		values[3] = CStringGetTextDatum(shipped[i].to_status);
		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
	return (Datum) 0;
}
