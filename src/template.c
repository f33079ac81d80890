/*-------------------------------------------------------------------------
 *
 * template.c
 *	  From a statement in canonical names to a kept plan, and its execution.
 *
 * This is the only place where a name becomes part of a statement's text.
 * A feature writes its statements as templates, static const beside the code
 * that binds their parameters:
 *
 *	UPDATE {slots} s SET {slots.status} := 'available'
 *	[, {slots.reserved_until} := NULL] WHERE s.{slots.id} = $1
 *
 * {slots}			the bound table, qualified and quoted
 * {slots.status}	the bound column, quoted.  Where it is read, that is behind
 *					an alias and a dot, a string type other than text and a
 *					domain over an enum are cast to text, so that one set of
 *					operators serves
 * {?slots.status}	nothing; only says that the part needs this name
 * {^slots.status}	the column's type, for CAST (... AS ...) of a parameter that is
 *					written to it
 * [ ... ]			falls away where a name in it is not bound; may be nested.
 *					[] and [1] are SQL
 * =, <, || ...		become OPERATOR(pg_catalog.=) and so on: plans are kept
 *					under the caller's search_path, which the application's
 *					triggers need, and which could hold operators made for the
 *					application's types.  OPERATOR() has one precedence for
 *					all: arithmetic within a comparison needs parentheses
 * :=				the assignment of SET, becomes =
 * ::uuid			becomes ::pg_catalog.uuid
 *
 * What a template must do by itself: name every function with its schema, read
 * a column only behind an alias, and avoid what looks operators up by the
 * path (IN, BETWEEN, IS DISTINCT FROM, NULLIF, USING, simple CASE).  Values
 * are parameters; statuses are literals, so that partial indexes serve.
 *
 * Plans are kept per binding, those on our own tables once per backend.  They
 * are planned anew for each execution: a statement here handles hundreds of
 * rows, and a generic plan would not know how many ids an array holds.  One that
 * is about a row by its key says planned_once, and is: planning would take most
 * of its time.  What a
 * report reads comes as a stream, which is kept nowhere.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "executor/spi.h"
#include "lib/stringinfo.h"
#include "nodes/params.h"
#include "tcop/dest.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "binding.h"
#include "errors.h"
#include "template.h"
#include "uuid_list.h"

/* the longest canonical name in braces */
#define MAX_NAME_LENGTH 127

typedef struct PlanEntry
{
	const Template *statement;	/* hash key */
	SPIPlanPtr	plan;
} PlanEntry;

/* where an expansion stands */
typedef struct Expansion
{
	const Binding *binding;
	const char *at;				/* next character of the template */
	StringInfo	out;
	bool		all_bound;		/* every name of this part so far is bound */
	const char *unbound;		/* the last one that is not */
} Expansion;

/* plans of statements on our own tables, for the life of the backend */
static HTAB *own_plans = NULL;

static void expand_part(Expansion *x, char end);

static bool
is_operator_char(char c)
{
	return c != '\0' && strchr("+-*/<>=~!@#%^&|?", c) != NULL;
}

static bool
is_word_char(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_';
}

/* 'literal', copied with its quotes */
static void
expand_literal(Expansion *x)
{
	const char *end = strchr(x->at + 1, '\'');

	if (end == NULL)
		elog(ERROR, "unterminated literal in template");
	appendBinaryStringInfo(x->out, x->at, end + 1 - x->at);
	x->at = end + 1;
}

static void
append_relation(Expansion *x, const char *relation)
{
	const BoundRelation *bound = binding_relation(x->binding, relation);

	if (bound == NULL)
	{
		x->all_bound = false;
		x->unbound = pstrdup(relation);
		return;
	}
	appendStringInfoString(x->out,
						   quote_qualified_identifier(bound->schema,
													  bound->name));
}

static void
append_column(Expansion *x, const char *relation, const char *attribute)
{
	const BoundColumn *bound = binding_column(x->binding, relation, attribute);
	bool		is_read;

	if (bound == NULL)
	{
		x->all_bound = false;
		x->unbound = binding_relation(x->binding, relation) == NULL ?
			pstrdup(relation) : psprintf("%s.%s", relation, attribute);
		return;
	}
	is_read = x->out->len > 0 && x->out->data[x->out->len - 1] == '.';
	appendStringInfoString(x->out, quote_identifier(bound->column));
	if (is_read && bound->read_as_text)
		appendStringInfoString(x->out, "::pg_catalog.text");
}

static void
append_type(Expansion *x, const char *relation, const char *attribute)
{
	int			length = x->out->len;
	const BoundColumn *bound;

	append_column(x, relation, attribute);
	x->out->len = length;
	x->out->data[length] = '\0';
	bound = binding_column(x->binding, relation, attribute);
	if (bound != NULL)
		appendStringInfoString(x->out, format_type_be_qualified(bound->type));
}

/* {relation}, {relation.attribute}, {?either} or {^relation.attribute} */
static void
expand_name(Expansion *x)
{
	char		name[MAX_NAME_LENGTH + 1];
	const char *end = strchr(x->at, '}');
	int			length = x->out->len;
	bool		only_asked = x->at[1] == '?';
	bool		is_type = x->at[1] == '^';
	char	   *dot;

	if (only_asked || is_type)
		x->at++;
	if (x->binding == NULL || end == NULL || end - x->at > MAX_NAME_LENGTH)
		elog(ERROR, "misplaced brace in template");
	memcpy(name, x->at + 1, end - x->at - 1);
	name[end - x->at - 1] = '\0';
	x->at = end + 1;

	dot = strchr(name, '.');
	if (dot == NULL)
		append_relation(x, name);
	else
	{
		*dot = '\0';
		if (is_type)
			append_type(x, name, dot + 1);
		else
			append_column(x, name, dot + 1);
	}
	if (only_asked)
	{
		x->out->len = length;
		x->out->data[length] = '\0';
	}
}

/* [ part ]: kept whole or dropped whole; [] and [1] are copied */
static void
expand_bracket(Expansion *x)
{
	bool		outer_bound = x->all_bound;
	const char *outer_unbound = x->unbound;
	int			outer_length = x->out->len;

	if (x->at[1] == ']' || (x->at[1] >= '0' && x->at[1] <= '9'))
	{
		const char *end = strchr(x->at, ']');

		appendBinaryStringInfo(x->out, x->at, end + 1 - x->at);
		x->at = end + 1;
		return;
	}
	x->at++;
	x->all_bound = true;
	expand_part(x, ']');
	if (!x->all_bound)
	{
		x->out->len = outer_length;
		x->out->data[outer_length] = '\0';
	}
	x->all_bound = outer_bound;
	x->unbound = outer_unbound;
}

static void
expand_operator(Expansion *x)
{
	const char *start = x->at;
	char		before = x->out->len > 0 ? x->out->data[x->out->len - 1] : ' ';

	while (is_operator_char(*x->at))
		x->at++;
	/* count(*) and b.* */
	if (x->at - start == 1 && *start == '*' && (before == '(' || before == '.'))
		appendStringInfoChar(x->out, '*');
	else
		appendStringInfo(x->out, "OPERATOR(pg_catalog.%.*s)",
						 (int) (x->at - start), start);
}

static void
expand_colon(Expansion *x)
{
	if (x->at[1] == '=')
		appendStringInfoChar(x->out, '=');
	else if (x->at[1] == ':')
		appendStringInfoString(x->out, "::pg_catalog.");
	else
		elog(ERROR, "misplaced colon in template");
	x->at += 2;
}

/* copy a word whole, so that $1 and names are never taken apart */
static void
expand_other(Expansion *x)
{
	do
		appendStringInfoChar(x->out, *x->at++);
	while (is_word_char(x->at[-1]) && is_word_char(*x->at));
}

static void
expand_part(Expansion *x, char end)
{
	while (*x->at != end)
	{
		if (*x->at == '\0')
			elog(ERROR, "unterminated bracket in template");
		else if (*x->at == '\'')
			expand_literal(x);
		else if (*x->at == '{')
			expand_name(x);
		else if (*x->at == '[')
			expand_bracket(x);
		else if (*x->at == ':')
			expand_colon(x);
		else if (is_operator_char(*x->at))
			expand_operator(x);
		else
			expand_other(x);
	}
	if (end != '\0')
		x->at++;
}

static char *
expand(const Binding *binding, const Template *statement)
{
	StringInfoData text;
	Expansion	x = {0};

	initStringInfo(&text);
	x.binding = binding;
	x.at = statement->text;
	x.out = &text;
	x.all_bound = true;
	expand_part(&x, '\0');
	if (!x.all_bound)
		ereport(ERROR,
				(errcode(ERRCODE_CUSOWN_NOT_ATTACHED),
				 errmsg("canonical name \"%s\" is not bound in application schema \"%s\"",
						x.unbound, binding->app_schema),
				 errhint("Call cusown_attach(%s) with a mapping that binds it.",
						 quote_literal_cstr(binding->app_schema))));
	return text.data;
}

static SPIPlanPtr
prepare(const Binding *binding, const Template *statement)
{
	SPIPlanPtr	plan = SPI_prepare_cursor(expand(binding, statement),
										  statement->nargs,
										  (Oid *) statement->argtypes,
										  (statement->planned_once ?
										   CURSOR_OPT_GENERIC_PLAN :
										   CURSOR_OPT_CUSTOM_PLAN) |
										  (statement->reads_much ?
										   CURSOR_OPT_PARALLEL_OK : 0));

	if (plan == NULL)
		elog(ERROR, "SPI_prepare_cursor failed: %s",
			 SPI_result_code_string(SPI_result));
	if (SPI_keepplan(plan) != 0)
		elog(ERROR, "SPI_keepplan failed");
	return plan;
}

static HTAB *
plans_of(Binding *binding)
{
	HASHCTL		ctl = {0};

	if (binding != NULL)
		return binding->plans;
	if (own_plans == NULL)
	{
		ctl.keysize = sizeof(Template *);
		ctl.entrysize = sizeof(PlanEntry);
		ctl.hcxt = CacheMemoryContext;
		own_plans = hash_create("cusown_ops plans on own tables", 32, &ctl,
								HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	return own_plans;
}

static SPIPlanPtr
plan_for(Binding *binding, const Template *statement)
{
	HTAB	   *plans = plans_of(binding);
	PlanEntry  *entry = hash_search(plans, &statement, HASH_FIND, NULL);

	if (entry == NULL)
	{
		SPIPlanPtr	plan = prepare(binding, statement);

		entry = hash_search(plans, &statement, HASH_ENTER, NULL);
		entry->plan = plan;
	}
	return entry->plan;
}

/*
 * Runs a statement and returns how many rows it gave or changed; the rows are
 * in SPI_tuptable.  binding is NULL for a statement on our own tables.  nulls
 * as SPI wants them, or NULL.  The caller is connected to SPI.
 *
 * SPI leaves its own memory context behind as the current one; a caller that
 * works in one that is reset between batches gets it back.
 */
uint64
template_execute(Binding *binding, const Template *statement,
				 const Datum *values, const char *nulls, bool read_only)
{
	MemoryContext caller = CurrentMemoryContext;
	int			code = SPI_execute_plan(plan_for(binding, statement),
										unconstify(Datum *, values), nulls,
										read_only, 0);

	MemoryContextSwitchTo(caller);
	if (code < 0)
		elog(ERROR, "SPI_execute_plan failed: %s",
			 SPI_result_code_string(code));
	return SPI_processed;
}

/* hands each row on as it comes */
typedef struct RowReceiver
{
	DestReceiver pub;
	StreamedRow row;
	TemplateRow put;
	void	   *state;
} RowReceiver;

static bool
receive_row(TupleTableSlot *slot, DestReceiver *self)
{
	RowReceiver *receiver = (RowReceiver *) self;

	receiver->row.slot = slot;
	receiver->put(&receiver->row, receiver->state);
	return true;
}

static void
receiver_startup(DestReceiver *self, int operation, TupleDesc desc)
{
	((RowReceiver *) self)->row.desc = desc;
}

static void
receiver_shutdown(DestReceiver *self)
{
}

static ParamListInfo
parameters(const Template *statement, const Datum *values, const char *nulls)
{
	ParamListInfo params = makeParamList(statement->nargs);

	for (int i = 0; i < statement->nargs; i++)
	{
		params->params[i].value = values[i];
		params->params[i].isnull = nulls != NULL && nulls[i] == 'n';
		params->params[i].pflags = PARAM_FLAG_CONST;
		params->params[i].ptype = statement->argtypes[i];
	}
	return params;
}

/*
 * Runs a statement that only reads, and calls back for each of its rows, which
 * are kept nowhere.  put runs in the executor's memory, while the statement is
 * under way: what it keeps it copies to a place of its own.
 */
void
template_stream(Binding *binding, const Template *statement,
				const Datum *values, const char *nulls, bool read_only,
				TemplateRow put, void *state)
{
	MemoryContext caller = CurrentMemoryContext;
	SPIExecuteOptions options = {0};
	RowReceiver receiver = {
		{receive_row, receiver_startup, receiver_shutdown, receiver_shutdown, DestNone},
		{NULL, NULL}, put, state
	};
	int			code;

	options.params = parameters(statement, values, nulls);
	options.read_only = read_only;
	options.dest = &receiver.pub;
	code = SPI_execute_plan_extended(plan_for(binding, statement), &options);
	MemoryContextSwitchTo(caller);
	if (code < 0)
		elog(ERROR, "SPI_execute_plan_extended failed: %s",
			 SPI_result_code_string(code));
}

/* as template_column(), of a row that is streamed */
Datum
template_attribute(const StreamedRow *row, const char *column, bool *isnull)
{
	int			number = SPI_fnumber(row->desc, column);

	*isnull = true;
	if (number <= 0)
		return (Datum) 0;
	return slot_getattr(row->slot, number, isnull);
}

/*
 * Reads our own tables with the latest snapshot, also for STABLE functions: what is
 * kept for later statements must not be older than the invalidation that made us
 * read it, nor what is told than a lock that was looked at.
 */
uint64
template_read_latest(const Template *statement, const Datum *values)
{
	uint64		rows;

	PushActiveSnapshot(GetLatestSnapshot());
	rows = template_execute(NULL, statement, values, NULL, true);
	PopActiveSnapshot();
	return rows;
}

/* a parameter of type name */
Datum
template_name(const char *name)
{
	Name		value = palloc0(sizeof(NameData));

	namestrcpy(value, name);
	return NameGetDatum(value);
}

/* parameter $number, which is null where it is not there */
void
template_set_value(Datum *values, char *nulls, int number, bool is_there,
				   Datum value)
{
	nulls[number - 1] = is_there ? ' ' : 'n';
	values[number - 1] = is_there ? value : (Datum) 0;
}

void
template_set_text(Datum *values, char *nulls, int number, const char *text)
{
	template_set_value(values, nulls, number, text !=NULL,
					   text == NULL ? (Datum) 0 : CStringGetTextDatum(text));
}

/*
 * A column of a row of the last result; NULL where the statement has no such
 * column, as when its optional part fell away.
 */
Datum
template_column(uint64 row, const char *column, bool *isnull)
{
	int			number = SPI_fnumber(SPI_tuptable->tupdesc, column);

	*isnull = true;
	if (number <= 0)
		return (Datum) 0;
	return SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc,
						 number, isnull);
}

/* the column id of the rows that a statement gives for ids, its only argument */
void
template_ids(Binding *binding, const Template *statement, const UuidList *ids,
			 UuidList *found)
{
	Datum		values[1];
	uint64		rows;

	if (ids->count == 0)
		return;
	values[0] = uuid_list_datum(ids);
	rows = template_execute(binding, statement, values, NULL, false);
	uuid_list_append_column(found, rows, "id");
	SPI_freetuptable(SPI_tuptable);
}

/* likewise, as a C string; NULL for null */
char *
template_text(uint64 row, const char *column)
{
	bool		isnull;
	Datum		value = template_column(row, column, &isnull);

	return isnull ? NULL : TextDatumGetCString(value);
}

/* likewise; false for null, and *id is left alone */
bool
template_uuid(uint64 row, const char *column, pg_uuid_t *id)
{
	bool		isnull;
	Datum		value = template_column(row, column, &isnull);

	if (!isnull)
		*id = *DatumGetUUIDP(value);
	return !isnull;
}

/* likewise; false for null */
bool
template_bool(uint64 row, const char *column)
{
	bool		isnull;
	Datum		value = template_column(row, column, &isnull);

	return !isnull && DatumGetBool(value);
}

/*
 * Text of DDL for a human to read and run, never run by us: %I is an
 * identifier, quoted where needed; %s is text as it is.
 */
char *
template_ddl(const char *pattern,...)
{
	StringInfoData ddl;
	va_list		args;

	initStringInfo(&ddl);
	va_start(args, pattern);
	for (const char *at = pattern; *at != '\0'; at++)
	{
		if (at[0] != '%')
			appendStringInfoChar(&ddl, *at);
		else if (*++at == 'I')
			appendStringInfoString(&ddl, quote_identifier(va_arg(args, char *)));
		else
			appendStringInfoString(&ddl, va_arg(args, char *));
	}
	va_end(args);
	return ddl.data;
}
