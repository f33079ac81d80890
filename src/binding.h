/*-------------------------------------------------------------------------
 *
 * binding.h
 *	  Which table and column of an application stands for a canonical name.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CUSOWN_BINDING_H
#define CUSOWN_BINDING_H

#include "access/attnum.h"
#include "nodes/pg_list.h"
#include "utils/hsearch.h"

typedef struct BoundColumn
{
	char	   *attribute;		/* canonical name */
	char	   *column;			/* name in the application's table */
	AttrNumber	attnum;
	Oid			type;			/* declared type, a domain as such */
	bool		read_as_text;	/* templates cast it where they read it */
} BoundColumn;

typedef struct BoundRelation
{
	char	   *relation;		/* canonical name */
	char	   *schema;
	char	   *name;
	Oid			relid;
	List	   *columns;		/* of BoundColumn */
} BoundRelation;

typedef struct Binding
{
	char	   *app_schema;
	List	   *relations;		/* of BoundRelation */
	HTAB	   *plans;			/* plans of template.c, by template */
	List	   *webhook_providers;	/* of webhook_event.c */
	bool		stale;			/* something it was read from has changed */
	int			users;			/* calls that hold it; a trigger may re-enter
								 * us */
	MemoryContext context;		/* all of the above */
} Binding;

extern void binding_init(void);
extern void binding_lock_for_change(void);
extern Binding *binding_use(const char *const *relations);
extern Binding *binding_use_schema(const char *app_schema,
								   const char *const *relations);
extern List *binding_attached(void);
extern void binding_check_attached(const char *app_schema);
extern const char *binding_chosen_schema(void);
extern bool binding_chosen(const char **app_schema);
extern int	binding_choose(const char *app_schema);
extern const BoundRelation *binding_relation(const Binding *binding,
											 const char *relation);
extern const BoundColumn *binding_column(const Binding *binding,
										 const char *relation,
										 const char *attribute);

extern void binding_require(const Binding *binding, const char *relation,
							const char *attribute);

#endif							/* CUSOWN_BINDING_H */
