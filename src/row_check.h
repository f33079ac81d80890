/*-------------------------------------------------------------------------
 *
 * row_check.h
 *	  Which rows could not be changed, because a CHECK would refuse them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CUSOWN_ROW_CHECK_H
#define CUSOWN_ROW_CHECK_H

#include "nodes/execnodes.h"
#include "utils/rel.h"
#include "utils/uuid.h"

#include "binding.h"
#include "template.h"
#include "uuid_list.h"

/* what a change would put into a column */
typedef struct ProposedValue
{
	const char *attribute;		/* canonical name; left out where not bound */
	const char *value;			/* as the type's input takes it; NULL: now() */
} ProposedValue;

typedef struct ProposedChange
{
	const char *relation;		/* canonical name */
	Template	rows;			/* tableoid and alias.* of the ids $1 */
	int			nvalues;
	ProposedValue values[6];
} ProposedChange;

typedef struct RefusedRow
{
	pg_uuid_t	id;
	char	   *constraint;
} RefusedRow;

/* a CHECK, ready to be asked about a row of the table that was begun with */
typedef struct Check
{
	char	   *name;
	Node	   *tree;			/* its expression */
	ExprState  *expression;
} Check;

/* a table, and the row of it that its CHECKs are asked about */
typedef struct CheckedTable
{
	Relation	relation;
	EState	   *estate;
	ExprContext *econtext;
	TupleTableSlot *slot;
} CheckedTable;

extern void row_check_begin(CheckedTable *table, Relation relation);
extern void row_check_end(CheckedTable *table);
extern Check *row_check_prepare(const CheckedTable *table, Relation leaf,
								int number);
extern Datum row_check_datum(Form_pg_attribute attribute, const char *value);
extern void row_check_as_owner(Relation relation, void (*body) (void *state),
							   void *state);
extern List *row_check_refused(Binding *binding, const ProposedChange *change,
							   const UuidList *ids, bool read_only);

#endif							/* CUSOWN_ROW_CHECK_H */
