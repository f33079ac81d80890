/*-------------------------------------------------------------------------
 *
 * statement_csv.c
 *	  The rows of a report in CSV, as the server's own COPY reads them.
 *
 * COPY wants a relation whose columns it fills; ours is only asked for its
 * raw fields, so any will do.  The first line names the columns; those that the
 * format does not know are passed over.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "catalog/namespace.h"
#include "commands/copy.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/parsenodes.h"
#include "parser/parse_node.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "compat.h"
#include "cusown_ops.h"
#include "errors.h"
#include "statement.h"

/* columns of a report */
#define MAX_COLUMNS 256

#define NO_FIELD (-1)

#define BYTE_ORDER_MARK "\xef\xbb\xbf"

/* what is left to read; COPY's callback has no argument for it */
static const char *unread = NULL;
static size_t unread_length = 0;

/* where reading stands */
typedef struct CsvReader
{
	const StatementFormat *format;
	CopyFromState copy;
	int			columns[MAX_COLUMNS];	/* a StatementField, or NO_FIELD */
	int			column_count;	/* 0 before the first line */
	int			row;
	MemoryContext row_context;
	StatementPut put;
	void	   *state;
} CsvReader;

/* copy_data_source_cb */
static int
read_some(void *buffer, int least, int most)
{
	int			length = (int) Min((size_t) most, unread_length);

	memcpy(buffer, unread, length);
	unread += length;
	unread_length -= length;
	return length;
}

pg_noreturn static void
bad_header(const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_CUSOWN_MALFORMED),
			 errmsg("first line of the statement is malformed"),
			 errdetail_internal("%s", detail)));
}

/* without the spaces around it; NULL where nothing is left */
static char *
trim(char *text)
{
	char	   *end;

	if (text == NULL)
		return NULL;
	text	  +=strspn(text, " \t");
	end = text +strlen(text);

	while (end > text &&(end[-1] == ' ' || end[-1] == '\t'))
		end--;
	*end = '\0';
	return *text == '\0' ? NULL : text;
}

static int
field_named(const StatementFormat *format, const char *name)
{
	for (int i = 0; name != NULL && i < format->field_count; i++)
	{
		if (pg_strcasecmp(statement_field_names[format->fields[i]], name) == 0)
			return format->fields[i];
	}
	return NO_FIELD;
}

static bool
has_column(const CsvReader *reader, int field)
{
	for (int i = 0; i < reader->column_count; i++)
	{
		if (reader->columns[i] == field)
			return true;
	}
	return false;
}

static void
read_header(CsvReader *reader, char **fields, int count)
{
	const StatementFormat *format = reader->format;

	if (count > MAX_COLUMNS)
		bad_header("It has more than 256 columns.");
	for (int i = 0; i < count; i++)
	{
		int			field = field_named(format, trim(fields[i]));

		if (field != NO_FIELD && has_column(reader, field))
			bad_header(psprintf("Column \"%s\" is there twice.",
								statement_field_names[field]));
		reader->columns[reader->column_count++] = field;
	}
	for (int i = 0; i < format->needed; i++)
	{
		if (!has_column(reader, format->fields[i]))
			bad_header(psprintf("Column \"%s\" is missing.",
								statement_field_names[format->fields[i]]));
	}
}

static void
read_row(CsvReader *reader, char **fields, int count)
{
	StatementRow row = {0};

	/* an empty line */
	if (count == 1 && trim(fields[0]) == NULL)
		return;
	row.number = ++reader->row;
	if (count != reader->column_count)
		statement_malformed(row.number,
							psprintf("It has %d columns, and the first line %d.",
									 count, reader->column_count));
	for (int i = 0; i < count; i++)
	{
		if (reader->columns[i] != NO_FIELD)
			row.fields[reader->columns[i]] = trim(fields[i]);
	}
	reader->put(&row, reader->state);
}

static bool
next_fields(CsvReader *reader, char ***fields, int *count)
{
	MemoryContext caller = CurrentMemoryContext;
	bool		found = false;

	PG_TRY();
	{
		found = NextCopyFromRawFields(reader->copy, fields, count);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(caller);
		error = CopyErrorData();
		if (error->sqlerrcode != ERRCODE_BAD_COPY_FILE_FORMAT)
			PG_RE_THROW();
		FlushErrorState();
		if (reader->column_count == 0)
			bad_header(psprintf("COPY says: %s.", error->message));
		statement_malformed(reader->row + 1,
							psprintf("COPY says: %s.", error->message));
	}
	PG_END_TRY();
	return found;
}

static void
read_all(CsvReader *reader)
{
	char	  **fields;
	int			count;

	while (next_fields(reader, &fields, &count))
	{
		MemoryContext caller = MemoryContextSwitchTo(reader->row_context);

		CHECK_FOR_INTERRUPTS();
		if (reader->column_count == 0)
			read_header(reader, fields, count);
		else
			read_row(reader, fields, count);
		MemoryContextSwitchTo(caller);
		MemoryContextReset(reader->row_context);
	}
	if (reader->column_count == 0)
		bad_header("There is none.");
}

/* before 18 COPY took such a line for the end, and passed over what follows */
static void
check_no_end_marker(const char *csv)
{
	for (const char *at = strstr(csv, "\\."); at != NULL;
		 at = strstr(at + 2, "\\."))
	{
		if ((at == csv || at[-1] == '\n' || at[-1] == '\r') &&
			(at[2] == '\0' || at[2] == '\n' || at[2] == '\r'))
			ereport(ERROR,
					(errcode(ERRCODE_CUSOWN_MALFORMED),
					 errmsg("statement has a line that is COPY's mark of the end")));
	}
}

/* the text is in the server's encoding, whatever the client's is */
static List *
copy_options(void)
{
	return list_make2(makeDefElem("format", (Node *) makeString("csv"), -1),
					  makeDefElem("encoding",
								  (Node *) makeString(pstrdup(GetDatabaseEncodingName())),
								  -1));
}

void
statement_read_csv(const StatementFormat *format, const char *csv,
				   StatementPut put, void *state)
{
	Oid			relid = get_relname_relid("statement_line",
										  get_namespace_oid(CUSOWN_SCHEMA, false));
	Relation	relation = table_open(relid, AccessShareLock);
	ParseState *parse = make_parsestate(NULL);
	CsvReader	reader = {0};

	check_no_end_marker(csv);
	if (strncmp(csv, BYTE_ORDER_MARK, strlen(BYTE_ORDER_MARK)) == 0)
		csv += strlen(BYTE_ORDER_MARK);
	unread = csv;
	unread_length = strlen(csv);
	reader.format = format;
	reader.put = put;
	reader.state = state;
	reader.row_context = AllocSetContextCreate(CurrentMemoryContext,
											   "cusown_ops statement row",
											   ALLOCSET_DEFAULT_SIZES);
	reader.copy = BeginCopyFrom(parse, relation, NULL, NULL, false, read_some,
								NIL, copy_options());
	read_all(&reader);
	EndCopyFrom(reader.copy);
	free_parsestate(parse);
	MemoryContextDelete(reader.row_context);
	table_close(relation, AccessShareLock);
}
