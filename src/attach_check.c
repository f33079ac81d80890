/*-------------------------------------------------------------------------
 *
 * attach_check.c
 *	  Which CHECKs of an application would refuse what our verbs write.
 *
 * The expressions that the server keeps for the constraints are evaluated on
 * rows that are made up here, as row_check.c does with rows that there are:
 *
 * - audit rows, one for each action that our verbs write, beside the defaults
 *	 of the columns that they leave alone;
 * - a pending booking, before and after it is cancelled.  A column that a
 *	 CHECK only asks for being null is tried both ways, since no value of it
 *	 could make a difference; any other one is null, which in SQL's logic is
 *	 "not known": it makes no CHECK fail by itself.
 *
 * So what is found is refused indeed, but what depends on values, as that a
 * booking of a certain price is never cancelled, is left to
 * cusown_due_bookings(), which asks about the rows that there are.
 *
 * A CHECK may run any code of the application's.  It is asked as the table's
 * owner and in a subtransaction: one that raises an error is a warning too.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_constraint.h"
#include "executor/executor.h"
#include "lib/stringinfo.h"
#include "optimizer/optimizer.h"
#include "rewrite/rewriteHandler.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/ruleutils.h"
#include "utils/syscache.h"

#include "attach.h"
#include "audit.h"
#include "compat.h"
#include "due.h"
#include "row_check.h"
#include "subtransaction.h"
#include "template.h"

/* columns whose being null is tried both ways; 64 rows at most */
#define MAX_COLUMNS_TRIED 6

/* for a human who must write the constraint anew */
#define NO_SAFE_DDL \
	"-- by hand: the constraint also depends on other columns, or is inherited"

static const AuditedAction audited_actions[] = {AUDITED_ACTIONS};
static const char *const audited_roles[] = {AUDITED_ROLES};

/* each of these roles can have done it */
static const AuditedAction done_by_all = {"booking_cancelled", "booking", true};

/* one constraint of one table, and what is found about it */
typedef struct Question
{
	const Resolved *table;
	List	   *resolved;
	int			number;			/* of the constraint */
	const AuditedAction *action;	/* whose values are tried, or NULL */
	Relation	relation;
	CheckedTable checked;
	MemoryContext context;		/* of what is found */
	List	   *rows;			/* of AttachRow */
	void		(*ask) (struct Question *question, const Check *check);
} Question;

static AttrNumber
column_of(const Question *question, const char *attribute)
{
	const Resolved *column = attach_find(question->resolved,
										 question->table->relation, attribute);

	return column == NULL ? InvalidAttrNumber : column->attnum;
}

/* ---------- the expression of a CHECK ---------- */

static bool
refers_to(const Bitmapset *columns, AttrNumber attnum)
{
	return attnum != InvalidAttrNumber &&
		bms_is_member(attnum - FirstLowInvalidHeapAttributeNumber, columns);
}

/* which columns; the whole row counts as a column that is never known */
static Bitmapset *
columns_of(const Check *check)
{
	Bitmapset  *columns = NULL;

	pull_varattnos(check->tree, 1, &columns);
	return columns;
}

static bool
looks_at_value(Node *node, void *attnum)
{
	if (node == NULL)
		return false;
	if (IsA(node, NullTest) && !((NullTest *) node)->argisrow &&
		IsA(((NullTest *) node)->arg, Var))
		return false;
	if (IsA(node, Var))
		return ((Var *) node)->varattno == *(AttrNumber *) attnum;
	return WalkExpression(node, looks_at_value, attnum);
}

/* with every name qualified, so that it holds under any search_path */
static char *
text_of(Relation relation, const Check *check)
{
	List	   *context = deparse_context_for(RelationGetRelationName(relation),
											  RelationGetRelid(relation));
	int			nest_level = NewGUCNestLevel();
	char	   *expression;

	(void) set_config_option("search_path", "pg_catalog, pg_temp",
							 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE,
							 true, 0, false);
	expression = deparse_expression(check->tree, context, false, false);
	AtEOXact_GUC(false, nest_level);
	return expression;
}

/* the constraint, where it can be dropped from this table */
static bool
find_constraint(Relation relation, const Check *check,
				FormData_pg_constraint *form)
{
	Oid			oid = get_relation_constraint_oid(RelationGetRelid(relation),
												  check->name, true);
	HeapTuple	tuple = SearchSysCache1(CONSTROID, ObjectIdGetDatum(oid));

	if (!HeapTupleIsValid(tuple))
		return false;
	*form = *(Form_pg_constraint) GETSTRUCT(tuple);
	ReleaseSysCache(tuple);
	return form->conislocal && form->coninhcount == 0;
}

/*
 * The constraint anew, so that it also allows what the condition says: a
 * weaker one, which no row that there is can break.
 */
static char *
widening_ddl(const Question *question, const Check *check,
			 const char *condition)
{
	FormData_pg_constraint form;
	char	   *table = quote_qualified_identifier(question->table->schema,
												   question->table->name);
	char	   *validate;

	if (!find_constraint(question->relation, check, &form))
		return NO_SAFE_DDL;
	validate = template_ddl(" ALTER TABLE %s VALIDATE CONSTRAINT %I;", table,
							check->name);
	return template_ddl("ALTER TABLE %s DROP CONSTRAINT %I, ADD CONSTRAINT %I CHECK (%s OR %s)%s NOT VALID;%s",
						table, check->name, check->name,
						text_of(question->relation, check), condition,
						form.connoinherit ? " NO INHERIT" : "",
						form.convalidated ? validate : "");
}

static void
add_finding(Question *question, const char *finding, const char *remedy)
{
	MemoryContext caller = MemoryContextSwitchTo(question->context);
	AttachRow  *row = palloc0(sizeof(AttachRow));

	row->relation = question->table->relation;
	row->attribute = pstrdup(finding);
	row->status = "warning";
	row->remedy = remedy == NULL ? NULL : pstrdup(remedy);
	question->rows = lappend(question->rows, row);
	MemoryContextSwitchTo(caller);
}

/* ---------- the row that is made up ---------- */

static void
put(Question *question, AttrNumber attnum, Datum value, bool isnull)
{
	question->checked.slot->tts_values[attnum - 1] = value;
	question->checked.slot->tts_isnull[attnum - 1] = isnull;
}

/* text is as the type's input takes it; NULL is now() */
static void
put_text(Question *question, const char *attribute, const char *text)
{
	AttrNumber	attnum = column_of(question, attribute);
	TupleDesc	desc = RelationGetDescr(question->relation);

	if (attnum == InvalidAttrNumber)
		return;
	put(question, attnum,
		row_check_datum(TupleDescAttr(desc, attnum - 1), text), false);
}

static void
put_nulls(Question *question)
{
	for (int i = 0; i < RelationGetDescr(question->relation)->natts; i++)
		put(question, i + 1, (Datum) 0, true);
}

static bool
accepts(Question *question, const Check *check)
{
	return ExecCheck(check->expression, question->checked.econtext);
}

/* ---------- audit rows ---------- */

/*
 * What a column gets where we leave it alone; false where that is not known,
 * as its default is a sequence's next value, say.
 */
static bool
put_default(Question *question, AttrNumber attnum)
{
	Form_pg_attribute attribute =
	TupleDescAttr(RelationGetDescr(question->relation), attnum - 1);
	Node	   *expression;
	Datum		value;
	bool		isnull;

	if (attribute->attgenerated != '\0' || attribute->attidentity != '\0')
		return false;
	expression = build_column_default(question->relation, attnum);
	if (expression == NULL)
		return true;
	if (contain_volatile_functions(expression))
		return false;
	value = ExecEvalExpr(ExecPrepareExpr((Expr *) expression,
										 question->checked.estate),
						 question->checked.econtext, &isnull);
	put(question, attnum, value, isnull);
	return true;
}

static bool
put_defaults(Question *question, const Bitmapset *columns)
{
	int			member = -1;

	while ((member = bms_next_member(columns, member)) >= 0)
	{
		AttrNumber	attnum = member + FirstLowInvalidHeapAttributeNumber;

		if (attnum <= 0)
			return false;
		if (attnum != column_of(question, "entity_id") &&
			attnum != column_of(question, "created_at") &&
			!put_default(question, attnum))
			return false;
	}
	return true;
}

/* as AUDIT_INSERT writes it */
static void
put_audit_row(Question *question, const AuditedAction *action)
{
	put_text(question, "action", action->action);
	put_text(question, "entity_type", action->entity_type);
	put_text(question, "entity_id", "00000000-0000-0000-0000-000000000000");
	put_text(question, "created_at", NULL);
	put_text(question, "actor_role", "system");
	put_text(question, "metadata", "{}");
	put_text(question, "description", "description");
	for (int i = 0; i < 2; i++)
	{
		const char *data = i == 0 ? "old_data" : "new_data";

		if (action->has_data)
			put_text(question, data, "{}");
		else if (column_of(question, data) != InvalidAttrNumber)
			put(question, column_of(question, data), (Datum) 0, true);
	}
}

/* what must be allowed besides: these pairs, in the constraint's columns */
static char *
pairs_condition(const Question *question, List *refused, bool has_action,
				bool has_entity)
{
	const Resolved *action = attach_find(question->resolved, "audit_logs",
										 "action");
	const Resolved *entity = attach_find(question->resolved, "audit_logs",
										 "entity_type");
	StringInfoData text;
	ListCell   *lc;

	initStringInfo(&text);
	foreach(lc, refused)
	{
		const AuditedAction *pair = lfirst(lc);

		if (text.len > 0)
			appendStringInfoString(&text, " OR ");
		if (has_action)
			appendStringInfoString(&text,
								   template_ddl("%I = '%s'", action->name,
												pair->action));
		if (has_action && has_entity)
			appendStringInfoString(&text, " AND ");
		if (has_entity)
			appendStringInfoString(&text,
								   template_ddl("%I = '%s'", entity->name,
												pair->entity_type));
	}
	return text.data;
}

/* each once, where a constraint knows only the one or the other */
static bool
is_listed(List *refused, const AuditedAction *pair, bool has_action,
		  bool has_entity)
{
	ListCell   *lc;

	foreach(lc, refused)
	{
		const AuditedAction *listed = lfirst(lc);

		if ((!has_action || strcmp(listed->action, pair->action) == 0) &&
			(!has_entity ||
			 strcmp(listed->entity_type, pair->entity_type) == 0))
			return true;
	}
	return false;
}

static char *
pairs_finding(const Check *check, List *refused, bool has_action,
			  bool has_entity)
{
	StringInfoData text;
	ListCell   *lc;

	initStringInfo(&text);
	appendStringInfo(&text, "check constraint \"%s\" refuses", check->name);
	foreach(lc, refused)
	{
		const AuditedAction *pair = lfirst(lc);

		appendStringInfo(&text, "%s%s%s%s%s",
						 lc == list_head(refused) ? " " : ", ",
						 has_action ? "action " : "",
						 has_action ? pair->action : "",
						 has_action && has_entity ? " of " : "",
						 has_entity ?
						 psprintf("entity type %s", pair->entity_type) : "");
	}
	return text.data;
}

/* an application without payments has none to audit */
static bool
is_written(const Question *question, const AuditedAction *action)
{
	return strcmp(action->entity_type, "payment") != 0 ||
		attach_find(question->resolved, "payments", "") != NULL;
}

static void
ask_audit_check(Question *question, const Check *check)
{
	Bitmapset  *columns = columns_of(check);
	bool		has_action = refers_to(columns, column_of(question, "action"));
	bool		has_entity = refers_to(columns,
									   column_of(question, "entity_type"));
	List	   *refused = NIL;

	if ((!has_action && !has_entity) || !put_defaults(question, columns))
		return;
	for (int i = 0; i < lengthof(audited_actions); i++)
	{
		const AuditedAction *pair = &audited_actions[i];

		if (!is_written(question, pair))
			continue;
		put_audit_row(question, pair);
		if (!accepts(question, check) &&
			!is_listed(refused, pair, has_action, has_entity))
			refused = lappend(refused, unconstify(AuditedAction *, pair));
	}
	if (refused != NIL)
		add_finding(question,
					pairs_finding(check, refused, has_action, has_entity),
					bms_num_members(columns) > has_action + has_entity ?
					NO_SAFE_DDL :
					widening_ddl(question, check,
								 pairs_condition(question, refused, has_action,
												 has_entity)));
}

/*
 * A CHECK of who has done it.  One that refuses all for what they did is met by
 * ask_audit_check().
 */
static void
ask_role_check(Question *question, const Check *check)
{
	const Resolved *role = attach_find(question->resolved, "audit_logs",
									   "actor_role");
	Bitmapset  *columns = columns_of(check);
	StringInfoData refused;
	StringInfoData condition;
	int			count = 0;

	if (role == NULL || !refers_to(columns, role->attnum) ||
		!put_defaults(question, columns))
		return;
	initStringInfo(&refused);
	initStringInfo(&condition);
	for (int i = 0; i < lengthof(audited_roles); i++)
	{
		put_audit_row(question, &done_by_all);
		put_text(question, "actor_role", audited_roles[i]);
		if (accepts(question, check))
			continue;
		count++;
		appendStringInfo(&refused, "%s%s", refused.len > 0 ? ", " : "",
						 audited_roles[i]);
		appendStringInfo(&condition, "%s%s", condition.len > 0 ? " OR " : "",
						 template_ddl("%I = '%s'", role->name,
									  audited_roles[i]));
	}
	if (count == 0 ||
		(count == lengthof(audited_roles) && bms_num_members(columns) > 1))
		return;
	add_finding(question,
				psprintf("check constraint \"%s\" refuses actor role %s",
						 check->name, refused.data),
				bms_num_members(columns) > 1 ? NO_SAFE_DDL :
				widening_ddl(question, check, condition.data));
}

/* ---------- the cancellation of a booking ---------- */

/* what a CHECK on bookings asks of the columns that we do not change */
typedef struct Columns
{
	AttrNumber	tried[MAX_COLUMNS_TRIED];	/* only for being null */
	int			count;
	bool		others;			/* there are others than these and status */
} Columns;

static bool
is_changed(const Question *question, AttrNumber attnum)
{
	for (int i = 0; i < due_cancellation.nvalues; i++)
	{
		const char *attribute = due_cancellation.values[i].attribute;

		if (column_of(question, attribute) == attnum)
			return true;
	}
	return false;
}

/* false where the CHECK looks at something that cannot be made up */
static bool
sort_columns(const Question *question, const Check *check,
			 const Bitmapset *columns, Columns *sorted)
{
	TupleDesc	desc = RelationGetDescr(question->relation);
	int			member = -1;

	while ((member = bms_next_member(columns, member)) >= 0)
	{
		AttrNumber	attnum = member + FirstLowInvalidHeapAttributeNumber;

		if (attnum <= 0 ||
			TupleDescAttr(desc, attnum - 1)->attgenerated != '\0')
			return false;
		if (attnum == column_of(question, "status"))
			continue;
		if (is_changed(question, attnum) ||
			looks_at_value(check->tree, &attnum) ||
			sorted->count == MAX_COLUMNS_TRIED)
			sorted->others = true;
		else
			sorted->tried[sorted->count++] = attnum;
	}
	return true;
}

/* the columns of the mask are set; no one looks at what they hold */
static void
put_booking(Question *question, const Columns *columns, uint32 mask,
			bool cancelled)
{
	put_nulls(question);
	for (int i = 0; i < columns->count; i++)
		put(question, columns->tried[i], (Datum) 0, (mask & (1 << i)) == 0);
	put_text(question, "status", "pending");
	for (int i = 0; cancelled && i < due_cancellation.nvalues; i++)
		put_text(question, due_cancellation.values[i].attribute,
				 due_cancellation.values[i].value);
}

/* whether such a booking can be, but not be cancelled */
static bool
cannot_be_cancelled(Question *question, const Check *check,
					const Columns *columns, uint32 mask)
{
	TupleDesc	desc = RelationGetDescr(question->relation);

	for (int i = 0; i < columns->count; i++)
	{
		if ((mask & (1 << i)) == 0 &&
			TupleDescAttr(desc, columns->tried[i] - 1)->attnotnull)
			return false;
	}
	put_booking(question, columns, mask, false);
	if (!accepts(question, check))
		return false;
	put_booking(question, columns, mask, true);
	return !accepts(question, check);
}

/* which columns make the difference, set or null */
static char *
cancellation_finding(Question *question, const Check *check,
					 const Columns *columns, uint32 mask)
{
	TupleDesc	desc = RelationGetDescr(question->relation);
	StringInfoData text;
	int			named = 0;

	initStringInfo(&text);
	appendStringInfo(&text, "check constraint \"%s\" refuses to cancel",
					 check->name);
	for (int i = 0; i < columns->count; i++)
	{
		Form_pg_attribute attribute = TupleDescAttr(desc,
													columns->tried[i] - 1);

		if (cannot_be_cancelled(question, check, columns, mask ^ (1 << i)))
			continue;
		appendStringInfo(&text, "%s%s is %s",
						 named++ == 0 ? " a booking whose " : " and ",
						 quote_identifier(NameStr(attribute->attname)),
						 (mask & (1 << i)) != 0 ? "set" : "null");
	}
	if (named == 0)
		appendStringInfoString(&text, " any booking");
	return text.data;
}

static void
ask_booking_check(Question *question, const Check *check)
{
	const Resolved *status = attach_find(question->resolved, "bookings",
										 "status");
	Bitmapset  *set = columns_of(check);
	Columns		columns = {0};

	if (!refers_to(set, status->attnum) ||
		!sort_columns(question, check, set, &columns))
		return;
	for (uint32 mask = 0; mask < (1 << columns.count); mask++)
	{
		if (!cannot_be_cancelled(question, check, &columns, mask))
			continue;
		add_finding(question,
					cancellation_finding(question, check, &columns, mask),
					columns.others ? NO_SAFE_DDL :
					widening_ddl(question, check,
								 template_ddl("%I = 'cancelled'",
											  status->name)));
		return;
	}
}

/* ---------- asking ---------- */

static void
ask_made_up_row(void *state)
{
	Question   *question = state;
	Check	   *check;

	row_check_begin(&question->checked, question->relation);
	check = row_check_prepare(&question->checked, question->relation,
							  question->number);
	if (check != NULL)
		question->ask(question, check);
	row_check_end(&question->checked);
}

static void
ask_one(void *state)
{
	Question   *question = state;

	question->relation = table_open(question->table->relid, AccessShareLock);
	row_check_as_owner(question->relation, ask_made_up_row, question);
	table_close(question->relation, NoLock);
}

/* of char *, in the order of their numbers */
static List *
check_names(Oid relid)
{
	Relation	relation = table_open(relid, AccessShareLock);
	TupleConstr *constraints = RelationGetDescr(relation)->constr;
	List	   *names = NIL;

	for (int i = 0; constraints != NULL && i < constraints->num_check; i++)
		names = lappend(names, pstrdup(constraints->check[i].ccname));
	table_close(relation, NoLock);
	return names;
}

/* what went wrong, or NULL; a cancel is the caller's, no answer of a CHECK */
static const char *
try_to_ask(void (*body) (void *state), Question *question)
{
	ErrorData  *error = subtransaction_try(body, question, question->context);

	if (error != NULL && error->sqlerrcode == ERRCODE_QUERY_CANCELED)
		ReThrowError(error);
	return error == NULL ? NULL : error->message;
}

/* every CHECK of the table, each for itself */
static void
ask_table(Question *question,
		  void (*ask) (Question *question, const Check *check))
{
	List	   *names = check_names(question->table->relid);

	question->ask = ask;
	for (int i = 0; i < list_length(names); i++)
	{
		const char *error;

		question->number = i;
		error = try_to_ask(ask_one, question);
		if (error != NULL)
			add_finding(question,
						psprintf("check constraint \"%s\" raises an error: %s",
								 (char *) list_nth(names, i), error),
						NULL);
	}
}

/* ---------- columns that cannot hold our values ---------- */

static void
put_values(void *state)
{
	Question   *question = state;

	question->relation = table_open(question->table->relid, AccessShareLock);
	row_check_begin(&question->checked, question->relation);
	put_text(question, "action", question->action->action);
	put_text(question, "entity_type", question->action->entity_type);
	row_check_end(&question->checked);
	table_close(question->relation, NoLock);
}

/* a domain's CHECK, or a column that is too short; false if any is refused */
static bool
ask_types(Question *question)
{
	bool		fits = true;

	for (int i = 0; i < lengthof(audited_actions); i++)
	{
		const char *error;

		if (!is_written(question, &audited_actions[i]))
			continue;
		question->action = &audited_actions[i];
		error = try_to_ask(put_values, question);
		if (error == NULL)
			continue;
		fits = false;
		add_finding(question,
					psprintf("cannot hold action %s of entity type %s: %s",
							 audited_actions[i].action,
							 audited_actions[i].entity_type, error),
					NULL);
	}
	return fits;
}

/* the warnings, of AttachRow */
List *
attach_check_advice(List *resolved)
{
	Question	question = {0};

	question.resolved = resolved;
	question.context = CurrentMemoryContext;
	question.table = attach_find(resolved, "bookings", "");
	if (question.table != NULL && attach_find(resolved, "bookings", "status"))
		ask_table(&question, ask_booking_check);
	question.table = attach_find(resolved, "audit_logs", "");
	if (question.table != NULL && ask_types(&question))
	{
		ask_table(&question, ask_audit_check);
		ask_table(&question, ask_role_check);
	}
	return question.rows;
}
