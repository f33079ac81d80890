/*-------------------------------------------------------------------------
 *
 * attach_trigger.c
 *	  Which triggers of an application call functions that they cannot find.
 *
 * A trigger on a table that we write runs under our caller's search_path,
 * unless its function has one of its own.  The application's role may have a
 * schema in its path that the role of a job has not: digest() of pgcrypto in
 * the schema extensions, for instance.  Then every change of ours fails.
 *
 * PL/pgSQL keeps no tree of what a function calls, so its body is read: each
 * word that is followed by a parenthesis, names no schema, is no key word and
 * is no function, table or view of the current search_path, is a finding if
 * another schema has a function of that name, or if it is one of pgcrypto's
 * and pgcrypto is not installed.  Functions that are called are read in turn.
 *
 * What is not found: tables and types that are not in the path, operators,
 * arguments that fit no function of that name, SQL in strings (EXECUTE), and
 * whatever stands in other languages, or behind a search_path of its own.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "access/transam.h"
#include "catalog/namespace.h"
#include "catalog/pg_language.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "commands/proclang.h"
#include "commands/trigger.h"
#include "common/keywords.h"
#include "lib/stringinfo.h"
#include "parser/scansup.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/catcache.h"
#include "utils/lsyscache.h"
#include "utils/regproc.h"
#include "utils/rel.h"
#include "utils/reltrigger.h"
#include "utils/syscache.h"

#include "attach.h"
#include "template.h"

/* functions that are read behind one trigger */
#define MAX_FUNCTIONS_READ 100

/* what we do to each table; its triggers for that are asked */
typedef struct Written
{
	const char *relation;
	int16		events;			/* TRIGGER_TYPE_INSERT, ... */
} Written;

static const Written tables_written[] = {
	{"bookings", TRIGGER_TYPE_UPDATE},
	{"slots", TRIGGER_TYPE_UPDATE},
	{"payments", TRIGGER_TYPE_UPDATE},
	{"audit_logs", TRIGGER_TYPE_INSERT},
	{"booking_lifecycle_audit", TRIGGER_TYPE_INSERT},
	{"cron_run_logs", TRIGGER_TYPE_INSERT},
	{"metrics", TRIGGER_TYPE_INSERT | TRIGGER_TYPE_UPDATE},
};

/* called without a schema by applications that forget CREATE EXTENSION */
static const char *const pgcrypto_functions[] = {
	"digest", "hmac", "crypt", "gen_salt", "gen_random_bytes"
};

/* one trigger's function, and what it and those that it calls lack */
typedef struct Reading
{
	Oid			home;			/* the table's schema */
	List	   *functions;		/* read so far, of Oid */
	List	   *hidden;			/* names that another schema has, of char * */
	List	   *schemas;		/* these schemas, of Oid, each once */
	List	   *absent;			/* names that no schema has, of char * */
} Reading;

static void read_function(Reading *reading, Oid function);

/* ---------- the words of a body ---------- */

typedef enum Token
{
	TOKEN_END,
	TOKEN_WORD,
	TOKEN_STRING,
	TOKEN_OTHER
} Token;

typedef struct Scanner
{
	const char *at;
	char	   *word;			/* of a TOKEN_WORD, as the server folds it */
	bool		quoted;
	char		other;			/* of a TOKEN_OTHER */
} Scanner;

static bool
begins_word(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' ||
		IS_HIGHBIT_SET(c);
}

static bool
continues_word(char c)
{
	return begins_word(c) || (c >= '0' && c <= '9') || c == '$';
}

/* block comments are nested */
static const char *
behind_comment(const char *at)
{
	int			depth = 0;

	if (at[0] == '-')
		return at + strcspn(at, "\n");
	do
	{
		if (at[0] == '/' && at[1] == '*')
		{
			depth++;
			at += 2;
		}
		else if (at[0] == '*' && at[1] == '/')
		{
			depth--;
			at += 2;
		}
		else if (at[0] != '\0')
			at++;
	} while (depth > 0 && *at != '\0');
	return at;
}

static const char *
behind_space(const char *at)
{
	for (;;)
	{
		if (scanner_isspace(*at))
			at++;
		else if ((at[0] == '-' && at[1] == '-') ||
				 (at[0] == '/' && at[1] == '*'))
			at = behind_comment(at);
		else
			return at;
	}
}

/* behind the quote that ends what begins at one; it doubled is one within */
static const char *
behind_quotes(const char *at, bool has_escapes)
{
	char		quote = *at++;

	while (*at != '\0')
	{
		if ((has_escapes && at[0] == '\\' && at[1] != '\0') ||
			(at[0] == quote && at[1] == quote))
			at += 2;
		else if (*at++ == quote)
			break;
	}
	return at;
}

/* behind $tag$ ... $tag$, or NULL where at begins none */
static const char *
behind_dollar_quotes(const char *at)
{
	const char *end = at + 1;
	char	   *tag;

	if (begins_word(*end))
	{
		while (continues_word(*end) && *end != '$')
			end++;
	}
	if (*end != '$')
		return NULL;
	tag = pnstrdup(at, end + 1 - at);
	at = strstr(end + 1, tag);
	return at == NULL ? end + strlen(end) : at + strlen(tag);
}

static Token
scan_word(Scanner *scanner)
{
	const char *begin = scanner->at;

	while (continues_word(*scanner->at))
		scanner->at++;
	scanner->quoted = false;
	if (*scanner->at == '\'')
	{
		/* E'...', N'...', B'...' */
		scanner->at = behind_quotes(scanner->at,
									scanner->at - begin == 1 &&
									(*begin == 'e' || *begin == 'E'));
		return TOKEN_STRING;
	}
	scanner->word = downcase_truncate_identifier(begin, scanner->at - begin,
												 false);
	return TOKEN_WORD;
}

static Token
scan_quoted_word(Scanner *scanner)
{
	StringInfoData word;
	const char *end = behind_quotes(scanner->at, false);

	initStringInfo(&word);
	for (const char *at = scanner->at + 1; at < end - 1; at++)
	{
		appendStringInfoChar(&word, *at);
		if (*at == '"')
			at++;
	}
	scanner->at = end;
	truncate_identifier(word.data, word.len, false);
	scanner->word = word.data;
	scanner->quoted = true;
	return TOKEN_WORD;
}

static Token
next_token(Scanner *scanner)
{
	const char *behind;

	scanner->at = behind_space(scanner->at);
	if (*scanner->at == '\0')
		return TOKEN_END;
	if (*scanner->at == '"')
		return scan_quoted_word(scanner);
	if (begins_word(*scanner->at))
		return scan_word(scanner);
	behind = *scanner->at == '\'' ? behind_quotes(scanner->at, false) :
		*scanner->at == '$' ? behind_dollar_quotes(scanner->at) : NULL;
	if (behind != NULL)
	{
		scanner->at = behind;
		return TOKEN_STRING;
	}
	scanner->other = *scanner->at++;
	return TOKEN_OTHER;
}

/* the names that a body seems to call without a schema, of char * */
static List *
names_called(const char *body)
{
	Scanner		scanner = {body};
	bool		behind_dot = false;
	List	   *names = NIL;
	Token		token;

	while ((token = next_token(&scanner)) != TOKEN_END)
	{
		if (token == TOKEN_WORD && !behind_dot &&
			*behind_space(scanner.at) == '(' &&
			(scanner.quoted ||
			 ScanKeywordLookup(scanner.word, &ScanKeywords) < 0))
			names = lappend(names, scanner.word);
		behind_dot = token == TOKEN_OTHER && scanner.other == '.';
	}
	return names;
}

/* ---------- what a name stands for ---------- */

static List *
add_name(List *names, char *name)
{
	ListCell   *lc;

	foreach(lc, names)
	{
		if (strcmp(lfirst(lc), name) == 0)
			return names;
	}
	return lappend(names, name);
}

/*
 * Functions of a name that the path does not have, of Oid: those in the
 * table's schema, or else all.
 */
static List *
functions_elsewhere(Oid home, const char *name)
{
	CatCList   *list = SearchSysCacheList1(PROCNAMEARGSNSP,
										   CStringGetDatum(name));
	List	   *at_home = NIL;
	List	   *functions = NIL;

	for (int i = 0; i < list->n_members; i++)
	{
		Form_pg_proc form = (Form_pg_proc) GETSTRUCT(&list->members[i]->tuple);

		if (form->pronamespace == home)
			at_home = lappend_oid(at_home, form->oid);
		else if (!isAnyTempNamespace(form->pronamespace))
			functions = lappend_oid(functions, form->oid);
	}
	ReleaseSysCacheList(list);
	return at_home != NIL ? at_home : functions;
}

static bool
is_of_pgcrypto(const char *name)
{
	for (int i = 0; i < lengthof(pgcrypto_functions); i++)
	{
		if (strcmp(name, pgcrypto_functions[i]) == 0)
			return !OidIsValid(get_extension_oid("pgcrypto", true));
	}
	return false;
}

static void
read_hidden(Reading *reading, char *name)
{
	List	   *functions = functions_elsewhere(reading->home, name);
	ListCell   *lc;

	if (functions == NIL && is_of_pgcrypto(name))
		reading->absent = add_name(reading->absent, name);
	if (functions == NIL)
		return;
	reading->hidden = add_name(reading->hidden, name);
	foreach(lc, functions)
	{
		reading->schemas =
			list_append_unique_oid(reading->schemas,
								   get_func_namespace(lfirst_oid(lc)));
		read_function(reading, lfirst_oid(lc));
	}
}

static void
read_name(Reading *reading, char *name)
{
	FuncCandidateList found = FuncnameGetCandidates(list_make1(makeString(name)),
													-1, NIL, false, false,
													false, true);

	if (found == NULL && !OidIsValid(RelnameGetRelid(name)))
		read_hidden(reading, name);
	for (; found != NULL; found = found->next)
		read_function(reading, found->oid);
}

static bool
has_own_search_path(HeapTuple function)
{
	bool		isnull;
	Datum		config = SysCacheGetAttr(PROCOID, function,
										 Anum_pg_proc_proconfig, &isnull);
	Datum	   *settings;
	int			count;

	if (isnull)
		return false;
	deconstruct_array(DatumGetArrayTypeP(config), TEXTOID, -1, false,
					  TYPALIGN_INT, &settings, NULL, &count);
	for (int i = 0; i < count; i++)
	{
		if (strncmp(TextDatumGetCString(settings[i]), "search_path=", 12) == 0)
			return true;
	}
	return false;
}

/* the text of a function that is looked up under the caller's path, or NULL */
static char *
body_of(Oid function)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	char	   *body = NULL;
	Oid			language;
	bool		isnull;

	if (!HeapTupleIsValid(tuple))
		return NULL;
	language = ((Form_pg_proc) GETSTRUCT(tuple))->prolang;
	(void) SysCacheGetAttr(PROCOID, tuple, Anum_pg_proc_prosqlbody, &isnull);
	if (isnull && !has_own_search_path(tuple) &&
		(language == SQLlanguageId ||
		 language == get_language_oid("plpgsql", true)))
		body = TextDatumGetCString(SysCacheGetAttr(PROCOID, tuple,
												   Anum_pg_proc_prosrc,
												   &isnull));
	ReleaseSysCache(tuple);
	return body;
}

/* the server's own functions call nothing that could be hidden */
static void
read_function(Reading *reading, Oid function)
{
	char	   *body;
	ListCell   *lc;

	if (function < FirstNormalObjectId ||
		list_member_oid(reading->functions, function) ||
		list_length(reading->functions) == MAX_FUNCTIONS_READ)
		return;
	reading->functions = lappend_oid(reading->functions, function);
	body = body_of(function);
	if (body == NULL)
		return;
	foreach(lc, names_called(body))
		read_name(reading, lfirst(lc));
}

/* ---------- the warnings ---------- */

static char *
as_list(List *names)
{
	StringInfoData text;
	ListCell   *lc;

	initStringInfo(&text);
	foreach(lc, names)
		appendStringInfo(&text, "%s%s()", text.len > 0 ? ", " : "",
						 quote_identifier(lfirst(lc)));
	return text.data;
}

/*
 * The table's schema, the function's, the current path, then what is lacking;
 * temporary objects last, so that none stands for another.
 */
static char *
search_path_ddl(const Reading *reading, Oid function)
{
	List	   *path = list_make2_oid(reading->home,
									  get_func_namespace(function));
	StringInfoData text;
	ListCell   *lc;
	List	   *schemas = NIL;

	path = list_concat(path, fetch_search_path(false));
	path = list_concat(path, reading->schemas);
	initStringInfo(&text);
	foreach(lc, path)
	{
		if (isAnyTempNamespace(lfirst_oid(lc)) ||
			list_member_oid(schemas, lfirst_oid(lc)))
			continue;
		schemas = lappend_oid(schemas, lfirst_oid(lc));
		appendStringInfo(&text, "%s, ",
						 quote_identifier(get_namespace_name(lfirst_oid(lc))));
	}
	return template_ddl("ALTER FUNCTION %s SET search_path = %spg_temp;",
						format_procedure_qualified(function), text.data);
}

static List *
advise(List *rows, const Resolved *table, const char *trigger, Oid function,
	   const char *finding, const char *remedy)
{
	AttachRow  *row = palloc0(sizeof(AttachRow));

	row->relation = table->relation;
	row->attribute = psprintf("function %s of trigger %s calls %s",
							  format_procedure_qualified(function),
							  quote_identifier(trigger), finding);
	row->status = "warning";
	row->remedy = remedy;
	return lappend(rows, row);
}

static List *
advise_trigger(List *rows, const Resolved *table, const Trigger *trigger)
{
	Reading		reading = {get_rel_namespace(table->relid)};

	read_function(&reading, trigger->tgfoid);
	if (reading.hidden != NIL)
		rows = advise(rows, table, trigger->tgname, trigger->tgfoid,
					  psprintf("%s, which search_path hides",
							   as_list(reading.hidden)),
					  search_path_ddl(&reading, trigger->tgfoid));
	if (reading.absent != NIL)
		rows = advise(rows, table, trigger->tgname, trigger->tgfoid,
					  psprintf("%s, which no schema has",
							   as_list(reading.absent)),
					  "CREATE EXTENSION pgcrypto;");
	return rows;
}

static bool
fires(const Trigger *trigger, int16 events)
{
	return !trigger->tgisinternal && (trigger->tgtype & events) != 0 &&
		(trigger->tgenabled == TRIGGER_FIRES_ON_ORIGIN ||
		 trigger->tgenabled == TRIGGER_FIRES_ALWAYS);
}

/* one warning for each function of the table's triggers */
static List *
advise_table(List *rows, const Resolved *table, int16 events)
{
	Relation	relation = table_open(table->relid, AccessShareLock);

	/* a copy, as reading the catalogs may have the relation built anew */
	TriggerDesc *triggers = CopyTriggerDesc(relation->trigdesc);
	List	   *seen = NIL;

	for (int i = 0; triggers != NULL && i < triggers->numtriggers; i++)
	{
		const Trigger *trigger = &triggers->triggers[i];

		if (!fires(trigger, events) ||
			list_member_oid(seen, trigger->tgfoid))
			continue;
		seen = lappend_oid(seen, trigger->tgfoid);
		rows = advise_trigger(rows, table, trigger);
	}
	table_close(relation, NoLock);
	return rows;
}

/* the warnings, of AttachRow */
List *
attach_trigger_advice(List *resolved)
{
	List	   *rows = NIL;

	for (int i = 0; i < lengthof(tables_written); i++)
	{
		const Resolved *table = attach_find(resolved,
											tables_written[i].relation, "");

		if (table != NULL)
			rows = advise_table(rows, table, tables_written[i].events);
	}
	return rows;
}
