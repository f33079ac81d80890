/*-------------------------------------------------------------------------
 *
 * row_check.h
 *	  Which rows could not be changed, because a CHECK would refuse them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CUSOWN_ROW_CHECK_H
#define CUSOWN_ROW_CHECK_H

#include "nodes/pg_list.h"
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

extern List *row_check_refused(Binding *binding, const ProposedChange *change,
							   const UuidList *ids, bool read_only);

#endif							/* CUSOWN_ROW_CHECK_H */
