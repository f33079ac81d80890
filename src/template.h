/*-------------------------------------------------------------------------
 *
 * template.h
 *	  Statements written in canonical names; see template.c for the language.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CUSOWN_TEMPLATE_H
#define CUSOWN_TEMPLATE_H

#include "executor/spi.h"
#include "utils/uuid.h"

#include "binding.h"
#include "uuid_list.h"

#define TEMPLATE_MAX_ARGS 16

typedef struct Template
{
	const char *text;
	int			nargs;
	Oid			argtypes[TEMPLATE_MAX_ARGS];
	bool		reads_much;		/* parallel workers may help */
	bool		planned_once;	/* the plan is good for whatever values: rows
								 * are found by a key, or written */
} Template;

/* a row of a statement that may give more than fits into memory */
typedef struct StreamedRow
{
	TupleTableSlot *slot;
	TupleDesc	desc;			/* names; the slot's may be missing */
} StreamedRow;

typedef void (*TemplateRow) (const StreamedRow *row, void *state);

extern uint64 template_execute(Binding *binding, const Template *statement,
							   const Datum *values, const char *nulls,
							   bool read_only);
extern void template_stream(Binding *binding, const Template *statement,
							const Datum *values, const char *nulls,
							bool read_only, TemplateRow put, void *state);
extern Datum template_attribute(const StreamedRow *row, const char *column,
								bool *isnull);
extern Datum template_column(uint64 row, const char *column, bool *isnull);
extern void template_ids(Binding *binding, const Template *statement,
						 const UuidList *ids, UuidList *found);
extern uint64 template_read_latest(const Template *statement,
								   const Datum *values);
extern Datum template_name(const char *name);
extern void template_set_text(Datum *values, char *nulls, int number,
							  const char *text);
extern void template_set_value(Datum *values, char *nulls, int number,
							   bool is_there, Datum value);
extern char *template_text(uint64 row, const char *column);
extern bool template_uuid(uint64 row, const char *column, pg_uuid_t *id);
extern bool template_bool(uint64 row, const char *column);
extern char *template_ddl(const char *pattern,...);

#endif							/* CUSOWN_TEMPLATE_H */
