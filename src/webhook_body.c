/*-------------------------------------------------------------------------
 *
 * webhook_body.c
 *	  The body of a delivery as JSON, or the knowledge that it is none.
 *
 * Whoever knows the secret has signed it, which does not make it readable:
 * invalid UTF-8, \u0000, numbers out of range and nesting that is too deep are
 * errors of the server's parser.  They are the body's, not ours: it is parsed in
 * a subtransaction, and what of the parser's errors says that the data is bad is
 * an answer.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"

#include "subtransaction.h"
#include "webhook.h"

typedef struct Parsing
{
	bytea	   *body;
	MemoryContext context;		/* that outlives the subtransaction */
	Jsonb	   *json;
} Parsing;

/* a copy that ends, in the server's encoding */
static char *
text_of(bytea *body)
{
	const char *bytes = VARDATA_ANY(body);
	int			length = VARSIZE_ANY_EXHDR(body);
	char	   *text = pg_any_to_server(bytes, length, PG_UTF8);

	return text == bytes ? pnstrdup(bytes, length) : text;
}

/* SubtransactionBody */
static void
parse(void *state)
{
	Parsing    *parsing = state;
	char	   *text = text_of(parsing->body);
	MemoryContext own = MemoryContextSwitchTo(parsing->context);

	parsing->json = DatumGetJsonbP(DirectFunctionCall1(jsonb_in,
													   CStringGetDatum(text)));
	MemoryContextSwitchTo(own);
}

/*
 * Not that the server has no memory, or that somebody has cancelled us.  An escape
 * that SQL_ASCII has no character for is not supported.
 */
static bool
is_about_data(const ErrorData *error)
{
	return ERRCODE_TO_CATEGORY(error->sqlerrcode) == ERRCODE_DATA_EXCEPTION ||
		ERRCODE_TO_CATEGORY(error->sqlerrcode) == ERRCODE_PROGRAM_LIMIT_EXCEEDED ||
		error->sqlerrcode == ERRCODE_FEATURE_NOT_SUPPORTED;
}

/* NULL: it is no JSON that we can read */
Jsonb *
webhook_parse_body(bytea *body)
{
	Parsing		parsing = {body, CurrentMemoryContext, NULL};
	ErrorData  *error = subtransaction_try(parse, &parsing,
										   CurrentMemoryContext);

	if (error != NULL && !is_about_data(error))
		ReThrowError(error);
	return error != NULL ? NULL : parsing.json;
}
