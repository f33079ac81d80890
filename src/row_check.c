/*-------------------------------------------------------------------------
 *
 * row_check.c
 *	  Which rows could not be changed, because a CHECK would refuse them.
 *
 * One UPDATE of 500 rows fails whole where one row breaks a constraint.  So
 * the constraints are asked first: the rows are read in one statement, the
 * proposed values are laid over them, and the expressions that the server
 * keeps for the table's CHECK constraints are evaluated on the result, just
 * as an UPDATE would.  Going through SQL text instead would look the
 * expressions' operators and functions up again, under the caller's
 * search_path.
 *
 * What a BEFORE trigger would make of a row is not known here.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "catalog/partition.h"
#include "catalog/pg_class.h"
#include "executor/executor.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "rewrite/rewriteHandler.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "row_check.h"
#include "split.h"
#include "subtransaction.h"

/* the constraints of a table that holds rows: the bound one or one below it */
typedef struct LeafChecks
{
	Oid			relid;
	List	   *checks;			/* of Check */
} LeafChecks;

/* an empty row; the caller fills its slot */
void
row_check_begin(CheckedTable *table, Relation relation)
{
	table->relation = relation;
	table->estate = CreateExecutorState();
	table->econtext = GetPerTupleExprContext(table->estate);
	table->slot = MakeSingleTupleTableSlot(RelationGetDescr(relation),
										   &TTSOpsVirtual);
	table->econtext->ecxt_scantuple = table->slot;
	ExecStoreAllNullTuple(table->slot);
}

void
row_check_end(CheckedTable *table)
{
	ExecDropSingleTupleTableSlot(table->slot);
	FreeExecutorState(table->estate);
}

/*
 * A constraint of a table that holds rows, its expression in the column
 * numbers of the table that was begun with; NULL where it is not enforced.
 */
Check *
row_check_prepare(const CheckedTable *table, Relation leaf, int number)
{
	const ConstrCheck *constraint =
	&RelationGetDescr(leaf)->constr->check[number];
	List	   *expression;
	Check	   *check;

	if (!ConstrCheckIsEnforced(constraint))
		return NULL;
	expression = list_make1(stringToNode(constraint->ccbin));
	if (leaf != table->relation)
		expression = map_partition_varattnos(expression, 1, table->relation,
											 leaf);
	check = palloc(sizeof(Check));
	check->name = pstrdup(constraint->ccname);
	check->tree = linitial(expression);
	check->expression = ExecPrepareExpr((Expr *) check->tree, table->estate);
	return check;
}

static List *
prepare_checks(const CheckedTable *table, Relation leaf)
{
	TupleConstr *constraints = RelationGetDescr(leaf)->constr;
	List	   *checks = NIL;

	for (int i = 0; constraints != NULL && i < constraints->num_check; i++)
	{
		Check	   *check = row_check_prepare(table, leaf, i);

		if (check != NULL)
			checks = lappend(checks, check);
	}
	return checks;
}

/* the constraints of the table that a row is in, prepared when first met */
static List *
checks_of(Oid relid, const CheckedTable *table, List **leaves)
{
	LeafChecks *found;
	Relation	root = table->relation;
	Relation	leaf = root;
	ListCell   *lc;

	if (!root->rd_rel->relhassubclass)
		relid = RelationGetRelid(root);
	foreach(lc, *leaves)
	{
		found = lfirst(lc);
		if (found->relid == relid)
			return found->checks;
	}
	found = palloc(sizeof(LeafChecks));
	found->relid = relid;
	if (relid != RelationGetRelid(root))
		leaf = table_open(relid, AccessShareLock);
	found->checks = prepare_checks(table, leaf);
	if (leaf != root)
		table_close(leaf, NoLock);
	*leaves = lappend(*leaves, found);
	return found->checks;
}

/*
 * Behind tableoid the columns of alias.* stand in the table's order, without
 * dropped ones.
 */
static void
fill_slot(TupleTableSlot *slot, HeapTuple row, TupleDesc rowdesc)
{
	TupleDesc	desc = slot->tts_tupleDescriptor;
	int			column = 1;

	ExecClearTuple(slot);
	for (int i = 0; i < desc->natts; i++)
	{
		slot->tts_isnull[i] = true;
		slot->tts_values[i] = (Datum) 0;
		if (!TupleDescAttr(desc, i)->attisdropped)
			slot->tts_values[i] = SPI_getbinval(row, rowdesc, ++column,
												&slot->tts_isnull[i]);
	}
	ExecStoreVirtualTuple(slot);
}

/* a generated column, whose value follows from the proposed ones */
typedef struct Generated
{
	int			index;
	ExprState  *expression;
} Generated;

static List *
prepare_generated(Relation relation, EState *estate)
{
	TupleDesc	desc = RelationGetDescr(relation);
	List	   *columns = NIL;

	for (int i = 0; i < desc->natts; i++)
	{
		Generated  *column;

		if (TupleDescAttr(desc, i)->attgenerated == '\0')
			continue;
		column = palloc(sizeof(Generated));
		column->index = i;
		column->expression =
			ExecPrepareExpr((Expr *) build_column_default(relation, i + 1),
							estate);
		columns = lappend(columns, column);
	}
	return columns;
}

static void
generate(TupleTableSlot *slot, List *columns, ExprContext *econtext)
{
	ListCell   *lc;

	foreach(lc, columns)
	{
		Generated  *column = lfirst(lc);

		slot->tts_values[column->index] =
			ExecEvalExpr(column->expression, econtext,
						 &slot->tts_isnull[column->index]);
	}
}

/* value as the type's input takes it; NULL is now() */
Datum
row_check_datum(Form_pg_attribute attribute, const char *value)
{
	Oid			input;
	Oid			ioparam;

	if (value == NULL)
		return TimestampTzGetDatum(GetCurrentTransactionStartTimestamp());
	getTypeInputInfo(attribute->atttypid, &input, &ioparam);
	return OidInputFunctionCall(input, unconstify(char *, value), ioparam,
								attribute->atttypmod);
}

static void
lay_over(TupleTableSlot *slot, const Binding *binding,
		 const ProposedChange *change)
{
	for (int i = 0; i < change->nvalues; i++)
	{
		const ProposedValue *proposed = &change->values[i];
		const BoundColumn *column = binding_column(binding, change->relation,
												   proposed->attribute);
		int			index;

		if (column == NULL)
			continue;
		index = column->attnum - 1;
		slot->tts_values[index] =
			row_check_datum(TupleDescAttr(slot->tts_tupleDescriptor, index),
							proposed->value);
		slot->tts_isnull[index] = false;
	}
}

static const char *
first_refusing(List *checks, ExprContext *econtext)
{
	ListCell   *lc;

	foreach(lc, checks)
	{
		Check	   *check = lfirst(lc);

		if (!ExecCheck(check->expression, econtext))
			return check->name;
	}
	return NULL;
}

static pg_uuid_t
row_id(const Binding *binding, const char *relation, TupleTableSlot *slot)
{
	const BoundColumn *id = binding_column(binding, relation, "id");

	return *DatumGetUUIDP(slot->tts_values[id->attnum - 1]);
}

/* the rows of one statement that are asked about */
typedef struct RowsToCheck
{
	const Binding *binding;
	const ProposedChange *change;
	Relation	relation;
	uint64		rows;
	MemoryContext context;		/* of the result */
	List	   *refused;		/* of RefusedRow */
} RowsToCheck;

/* the row as the change would leave it */
static void
propose_row(CheckedTable *table, const RowsToCheck *asked, uint64 row,
			List *generated)
{
	ResetPerTupleExprContext(table->estate);
	fill_slot(table->slot, SPI_tuptable->vals[row], SPI_tuptable->tupdesc);
	lay_over(table->slot, asked->binding, asked->change);
	generate(table->slot, generated, table->econtext);
}

static void
add_refused(RowsToCheck *asked, TupleTableSlot *slot, const char *constraint)
{
	MemoryContext caller = MemoryContextSwitchTo(asked->context);
	RefusedRow *row = palloc(sizeof(RefusedRow));

	row->id = row_id(asked->binding, asked->change->relation, slot);
	row->constraint = pstrdup(constraint);
	asked->refused = lappend(asked->refused, row);
	MemoryContextSwitchTo(caller);
}

static void
check_rows(void *state)
{
	RowsToCheck *asked = state;
	CheckedTable table;
	List	   *leaves = NIL;
	List	   *generated;

	row_check_begin(&table, asked->relation);
	generated = prepare_generated(asked->relation, table.estate);
	for (uint64 i = 0; i < asked->rows; i++)
	{
		const char *constraint;
		bool		isnull;
		Oid			leaf = DatumGetObjectId(template_column(i, "tableoid",
															&isnull));

		table.slot->tts_tableOid = leaf;
		propose_row(&table, asked, i, generated);
		constraint = first_refusing(checks_of(leaf, &table, &leaves),
									table.econtext);
		if (constraint != NULL)
			add_refused(asked, table.slot, constraint);
	}
	row_check_end(&table);
}

/*
 * As the table's owner, who could have any code run here: who only looks must
 * not lend it rights.  An error restores the user by itself.
 */
void
row_check_as_owner(Relation relation, void (*body) (void *state), void *state)
{
	Oid			user;
	int			context;

	GetUserIdAndSecContext(&user, &context);
	SetUserIdAndSecContext(relation->rd_rel->relowner,
						   context | SECURITY_RESTRICTED_OPERATION);
	body(state);
	SetUserIdAndSecContext(user, context);
}

static void
check_rows_as_owner(void *state)
{
	RowsToCheck *asked = state;

	row_check_as_owner(asked->relation, check_rows, asked);
}

/*
 * The rows among ids that a CHECK would refuse to change so, a list of
 * RefusedRow in the current memory context.  None when a function in a CHECK
 * raises instead of answering: which row that is for, only changing them tells.
 */
List *
row_check_refused(Binding *binding, const ProposedChange *change,
				  const UuidList *ids, bool read_only)
{
	RowsToCheck asked = {binding, change, NULL, 0, CurrentMemoryContext, NIL};
	Datum		values[1];
	ErrorData  *error;

	if (ids->count == 0)
		return NIL;
	asked.relation = table_open(binding_relation(binding, change->relation)->relid,
								AccessShareLock);
	values[0] = uuid_list_datum(ids);
	asked.rows = template_execute(binding, &change->rows, values, NULL,
								  read_only);
	error = subtransaction_try(check_rows_as_owner, &asked,
							   CurrentMemoryContext);
	if (error != NULL && !split_is_refusal(error))
		ReThrowError(error);
	SPI_freetuptable(SPI_tuptable);
	table_close(asked.relation, NoLock);
	return error == NULL ? asked.refused : NIL;
}
