/*-------------------------------------------------------------------------
 *
 * compat.h
 *	  Differences between the supported PostgreSQL versions, all of them.
 *
 * No other file tests PG_VERSION_NUM.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CUSOWN_COMPAT_H
#define CUSOWN_COMPAT_H

#include "access/tupdesc.h"
#include "nodes/nodeFuncs.h"
#include "tcop/pquery.h"
#include "utils/acl.h"

#if PG_VERSION_NUM < 150000
#error "cusown_ops needs PostgreSQL 15 or later"
#endif

/* 18 has CHECK constraints that are declared but never evaluated */
#if PG_VERSION_NUM >= 180000
#define ConstrCheckIsEnforced(check) ((check)->ccenforced)
#else
#define ConstrCheckIsEnforced(check) true
#endif

/* 18 has NOT NULL constraints that do not hold for the rows that were there */
#if PG_VERSION_NUM >= 180000
#include "catalog/pg_constraint.h"
static inline bool
NotNullIsValidated(Form_pg_attribute attribute)
{
	HeapTuple	constraint;
	bool		is_valid;

	if (!attribute->attnotnull)
		return false;
	constraint = findNotNullConstraintAttnum(attribute->attrelid,
											 attribute->attnum);
	is_valid = !HeapTupleIsValid(constraint) ||
		((Form_pg_constraint) GETSTRUCT(constraint))->convalidated;
	if (HeapTupleIsValid(constraint))
		heap_freetuple(constraint);
	return is_valid;
}
#else
#define NotNullIsValidated(attribute) ((attribute)->attnotnull)
#endif

/* 16 made one function of the ACL checks of all kinds of objects */
#if PG_VERSION_NUM >= 160000
#include "catalog/pg_namespace.h"
#define SchemaAclCheck(schema, role, mode) \
	object_aclcheck(NamespaceRelationId, schema, role, mode)
#else
#define SchemaAclCheck(schema, role, mode) \
	pg_namespace_aclcheck(schema, role, mode)
#endif

/* 15 declares walkers without arguments, which C23 takes for none at all */
#if PG_VERSION_NUM >= 160000
#define WalkExpression(node, walker, context) \
	expression_tree_walker(node, walker, context)
#else
#define WalkExpression(node, walker, context) \
	expression_tree_walker(node, (void *) (walker), context)
#endif

/* before 18 the mark of a function that does not return stood behind it */
#if PG_VERSION_NUM < 180000
#define pg_noreturn pg_attribute_noreturn()
#endif

/* 18 knows by itself whether a portal is run once */
#if PG_VERSION_NUM >= 180000
#define PortalRunAll(portal, receiver) \
	PortalRun(portal, FETCH_ALL, true, receiver, receiver, NULL)
#else
#define PortalRunAll(portal, receiver) \
	PortalRun(portal, FETCH_ALL, true, true, receiver, receiver, NULL)
#endif

#endif							/* CUSOWN_COMPAT_H */
