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

/* one constraint, ready to be evaluated on a row of the bound table */
typedef struct Check
{
	char	   *name;
	ExprState  *expression;
} Check;

/* the constraints of a table that holds rows: the bound one or one below it */
typedef struct LeafChecks
{
	Oid			relid;
	List	   *checks;			/* of Check */
} LeafChecks;

/*
 * The constraints of a table that holds rows, their expressions in the column
 * numbers of the bound table.
 */
static List *
prepare_checks(Relation root, Relation leaf, EState *estate)
{
	TupleConstr *constraints = RelationGetDescr(leaf)->constr;
	List	   *checks = NIL;

	for (int i = 0; constraints != NULL && i < constraints->num_check; i++)
	{
		ConstrCheck *constraint = &constraints->check[i];
		List	   *expression;
		Check	   *check;

		if (!ConstrCheckIsEnforced(constraint))
			continue;
		expression = list_make1(stringToNode(constraint->ccbin));
		if (leaf != root)
			expression = map_partition_varattnos(expression, 1, root, leaf);
		check = palloc(sizeof(Check));
		check->name = pstrdup(constraint->ccname);
		check->expression = ExecPrepareExpr(linitial(expression), estate);
		checks = lappend(checks, check);
	}
	return checks;
}

/* the constraints of the table that a row is in, prepared when first met */
static List *
checks_of(Oid relid, Relation root, EState *estate, List **leaves)
{
	LeafChecks *found;
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
	found->checks = prepare_checks(root, leaf, estate);
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

static Datum
proposed_datum(Form_pg_attribute attribute, const char *value)
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
			proposed_datum(TupleDescAttr(slot->tts_tupleDescriptor, index),
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

static List *
check_rows(const Binding *binding, const ProposedChange *change,
		   Relation relation, uint64 rows)
{
	EState	   *estate = CreateExecutorState();
	List	   *leaves = NIL;
	List	   *generated = prepare_generated(relation, estate);
	ExprContext *econtext = GetPerTupleExprContext(estate);
	TupleTableSlot *slot = MakeSingleTupleTableSlot(RelationGetDescr(relation),
													&TTSOpsVirtual);
	List	   *refused = NIL;

	for (uint64 i = 0; i < rows; i++)
	{
		const char *constraint;
		bool		isnull;
		Oid			leaf = DatumGetObjectId(template_column(i, "tableoid",
															&isnull));

		ResetPerTupleExprContext(estate);
		slot->tts_tableOid = leaf;
		fill_slot(slot, SPI_tuptable->vals[i], SPI_tuptable->tupdesc);
		lay_over(slot, binding, change);
		econtext->ecxt_scantuple = slot;
		generate(slot, generated, econtext);
		constraint = first_refusing(checks_of(leaf, relation, estate, &leaves),
									econtext);
		if (constraint != NULL)
		{
			RefusedRow *row = palloc(sizeof(RefusedRow));

			row->id = row_id(binding, change->relation, slot);
			row->constraint = pstrdup(constraint);
			refused = lappend(refused, row);
		}
	}
	ExecDropSingleTupleTableSlot(slot);
	FreeExecutorState(estate);
	return refused;
}

/*
 * As the table's owner, who could have any code run here: who only looks must
 * not lend it rights.  An error restores the user by itself.
 */
static List *
check_as_owner(const Binding *binding, const ProposedChange *change,
			   Relation relation, uint64 rows)
{
	Oid			user;
	int			context;
	List	   *refused;

	GetUserIdAndSecContext(&user, &context);
	SetUserIdAndSecContext(relation->rd_rel->relowner,
						   context | SECURITY_RESTRICTED_OPERATION);
	refused = check_rows(binding, change, relation, rows);
	SetUserIdAndSecContext(user, context);
	return refused;
}

/*
 * The rows among ids that a CHECK would refuse to change so, a list of
 * RefusedRow in the current memory context.
 */
List *
row_check_refused(Binding *binding, const ProposedChange *change,
				  const UuidList *ids, bool read_only)
{
	Relation	relation;
	Datum		values[1];
	uint64		rows;
	List	   *refused;

	if (ids->count == 0)
		return NIL;
	relation = table_open(binding_relation(binding, change->relation)->relid,
						  AccessShareLock);
	values[0] = uuid_list_datum(ids);
	rows = template_execute(binding, &change->rows, values, NULL, read_only);
	refused = check_as_owner(binding, change, relation, rows);
	SPI_freetuptable(SPI_tuptable);
	table_close(relation, NoLock);
	return refused;
}
