/*-------------------------------------------------------------------------
 *
 * statement.c
 *	  Loads a provider's statement: cusown_load_statement() and its CSV sister.
 *
 * A report is read twice.  The first time tells whether every row is as it
 * should be, which days it spans, and its fingerprint: the sum of the hashes of
 * its lines, so that their order does not matter.  Where a statement of the
 * provider has that fingerprint, it is the same, and nothing is added.  The
 * second time its lines are stored, some thousands in a statement.  So nothing
 * of a report is held in memory but the report itself, and a malformed row leaves
 * nothing behind.
 *
 * Only what cusown_reconcile() needs is kept: nothing of whoever paid.
 *
 * Locking protocol: nothing of the application is touched.  Who loads the same
 * report at the same time waits at the unique key of cusown_ops.statement.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "common/cryptohash.h"
#include "common/sha2.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "errors.h"
#include "statement.h"
#include "template.h"
#include "verb.h"

/* lines that one statement stores */
#define BATCH_LINES 5000

#define FINGERPRINT_WORDS (PG_SHA256_DIGEST_LENGTH / sizeof(uint64))

/* bytes of a provider's name */
#define MAX_PROVIDER 63

/* columns of a line in store_lines, from its $3 on */
typedef enum LineColumn
{
	LINE_ROW_NUMBER,
	LINE_KIND,
	LINE_REFERENCE,
	LINE_PROVIDER_REF,
	LINE_ORDER_REF,
	LINE_RECEIPT,
	LINE_STATUS,
	LINE_AMOUNT,
	LINE_CURRENCY,
	LINE_REFUNDED,
	LINE_AT,
	LINE_FEE,
	LINE_TAX,
	LINE_SETTLEMENT_UTR,
	LINE_COLUMNS
} LineColumn;

static const Oid line_types[LINE_COLUMNS] = {
	INT4OID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, UUIDOID, TEXTOID, INT8OID,
	TEXTOID, INT8OID, TIMESTAMPTZOID, INT8OID, INT8OID, TEXTOID
};

/* lines on their way, column by column */
typedef struct LineBatch
{
	int			count;
	Datum		values[LINE_COLUMNS][BATCH_LINES];
	bool		nulls[LINE_COLUMNS][BATCH_LINES];
} LineBatch;

/* one call */
typedef struct Loading
{
	const char *provider;
	const StatementFormat *format;
	const Jsonb *json;			/* either this */
	const char *csv;			/* or that */
	NameData	app_schema;
	/* the first time */
	pg_cryptohash_ctx *hash;
	uint64		fingerprint[FINGERPRINT_WORDS];
	int			lines;
	int			skipped;
	TimestampTz first;
	TimestampTz last;
	/* the second time */
	bool		storing;
	int64		id;
	LineBatch  *batch;
	MemoryContext batch_context;
} Loading;

static const char *const no_relations[] = {NULL};

PG_FUNCTION_INFO_V1(cusown_load_statement);
PG_FUNCTION_INFO_V1(cusown_load_statement_csv);

/* ---------- statements ---------- */

/* $1 app_schema, $2 provider, $3 format, $4 fingerprint, ... */
static const Template add_statement = {
	"INSERT INTO cusown_ops.statement (app_schema, provider, format,"
	" fingerprint, line_count, skipped_count, period_from, period_until)"
	" VALUES ($1, $2, $3, $4, $5, $6, $7, $8)"
	" ON CONFLICT (app_schema, provider, fingerprint) DO NOTHING"
	" RETURNING id",
	8, {NAMEOID, TEXTOID, TEXTOID, BYTEAOID, INT4OID, INT4OID, TIMESTAMPTZOID, TIMESTAMPTZOID}
};

static const Template known_statement = {
	"SELECT s.id FROM cusown_ops.statement s WHERE s.app_schema = $1"
	" AND s.provider = $2 AND s.fingerprint = $3",
	3, {NAMEOID, TEXTOID, BYTEAOID}
};

#define LINE_ARGS \
	16, {NAMEOID, INT8OID, INT4ARRAYOID, TEXTARRAYOID, TEXTARRAYOID, TEXTARRAYOID, TEXTARRAYOID, UUIDARRAYOID, TEXTARRAYOID, INT8ARRAYOID, TEXTARRAYOID, INT8ARRAYOID, TIMESTAMPTZARRAYOID, INT8ARRAYOID, INT8ARRAYOID, TEXTARRAYOID}

static const Template store_lines = {
	"INSERT INTO cusown_ops.statement_line (app_schema, statement_id,"
	" row_number, kind, reference, provider_ref, order_ref, receipt, status,"
	" amount, currency, refunded, at, fee, tax, settlement_utr)"
	" SELECT $1, $2, u.* FROM ROWS FROM (pg_catalog.unnest($3),"
	" pg_catalog.unnest($4), pg_catalog.unnest($5), pg_catalog.unnest($6),"
	" pg_catalog.unnest($7), pg_catalog.unnest($8), pg_catalog.unnest($9),"
	" pg_catalog.unnest($10), pg_catalog.unnest($11), pg_catalog.unnest($12),"
	" pg_catalog.unnest($13), pg_catalog.unnest($14), pg_catalog.unnest($15),"
	" pg_catalog.unnest($16)) AS u"
	" ON CONFLICT (app_schema, statement_id, kind, reference) DO NOTHING",
	LINE_ARGS
};

/* the first of these rows that tells again of what another one told */
static const Template repeated_row = {
	"SELECT pg_catalog.min(u.row_number) AS row_number"
	" FROM ROWS FROM (pg_catalog.unnest($3), pg_catalog.unnest($4),"
	" pg_catalog.unnest($5)) AS u (row_number, kind, reference)"
	" JOIN cusown_ops.statement_line l ON l.app_schema = $1"
	" AND l.statement_id = $2 AND l.kind = u.kind"
	" AND l.reference = u.reference WHERE l.row_number <> u.row_number",
	5, {NAMEOID, INT8OID, INT4ARRAYOID, TEXTARRAYOID, TEXTARRAYOID}
};

/* a refund says as well that there was something to refund */
static const Template line_of_money = {
	"SELECT FROM cusown_ops.statement_line l"
	" WHERE l.app_schema = $1 AND l.id = $2"
	" AND (l.kind = 'refund' OR l.status = 'completed' OR l.refunded > 0)",
	2, {NAMEOID, INT8OID}
};

/* ---------- the first time: what it is ---------- */

static void
hash_part(Loading *loading, const void *data, size_t length)
{
	if (pg_cryptohash_update(loading->hash, data, length) < 0)
		elog(ERROR, "could not hash a line: %s",
			 pg_cryptohash_error(loading->hash));
}

/* with its end, so that no two lines read the same */
static void
hash_text(Loading *loading, const char *text)
{
	uint8		is_null = text == NULL;

	hash_part(loading, &is_null, 1);
	if (text !=NULL)
		hash_part(loading, text, strlen(text) + 1);
}

static void
hash_number(Loading *loading, bool is_there, int64 number)
{
	hash_text(loading, is_there ? psprintf(INT64_FORMAT, number) : NULL);
}

static void
add_to_fingerprint(Loading *loading, const StatementLine *line)
{
	uint64		words[FINGERPRINT_WORDS];

	if (pg_cryptohash_init(loading->hash) < 0)
		elog(ERROR, "could not begin to hash a line");
	hash_text(loading, line->kind);
	hash_text(loading, line->reference);
	hash_text(loading, line->provider_ref);
	hash_text(loading, line->order_ref);
	hash_part(loading, &line->receipt, sizeof(pg_uuid_t));
	hash_text(loading, line->status);
	hash_number(loading, true, line->amount);
	hash_text(loading, line->currency);
	hash_number(loading, line->has_refunded, line->refunded);
	hash_number(loading, true, line->at);
	hash_number(loading, line->has_fee, line->fee);
	hash_number(loading, line->has_tax, line->tax);
	hash_text(loading, line->settlement_utr);
	if (pg_cryptohash_final(loading->hash, (uint8 *) words, sizeof(words)) < 0)
		elog(ERROR, "could not hash a line");
	for (int i = 0; i < FINGERPRINT_WORDS; i++)
		loading->fingerprint[i] += words[i];
}

static void
take_note(Loading *loading, const StatementLine *line)
{
	add_to_fingerprint(loading, line);
	if (loading->lines == 0 || line->at < loading->first)
		loading->first = line->at;
	if (loading->lines == 0 || line->at > loading->last)
		loading->last = line->at;
	loading->lines++;
}

/* ---------- the second time: its lines ---------- */

static Datum
text_or_null(const char *text)
{
	return text == NULL ? (Datum) 0 : CStringGetTextDatum(text);
}

static void
batch_text(LineBatch *batch, LineColumn column, const char *text)
{
	batch->values[column][batch->count] = text_or_null(text);
	batch->nulls[column][batch->count] = text == NULL;
}

static void
batch_value(LineBatch *batch, LineColumn column, bool is_there, Datum value)
{
	batch->values[column][batch->count] = value;
	batch->nulls[column][batch->count] = !is_there;
}

static void
batch_line(LineBatch *batch, const StatementLine *line)
{
	pg_uuid_t  *receipt = palloc(sizeof(pg_uuid_t));

	*receipt = line->receipt;
	batch_value(batch, LINE_ROW_NUMBER, true, Int32GetDatum(line->row_number));
	batch_text(batch, LINE_KIND, line->kind);
	batch_text(batch, LINE_REFERENCE, line->reference);
	batch_text(batch, LINE_PROVIDER_REF, line->provider_ref);
	batch_text(batch, LINE_ORDER_REF, line->order_ref);
	batch_value(batch, LINE_RECEIPT, line->has_receipt, UUIDPGetDatum(receipt));
	batch_text(batch, LINE_STATUS, line->status);
	batch_value(batch, LINE_AMOUNT, true, Int64GetDatum(line->amount));
	batch_text(batch, LINE_CURRENCY, line->currency);
	batch_value(batch, LINE_REFUNDED, line->has_refunded,
				Int64GetDatum(line->refunded));
	batch_value(batch, LINE_AT, true, TimestampTzGetDatum(line->at));
	batch_value(batch, LINE_FEE, line->has_fee, Int64GetDatum(line->fee));
	batch_value(batch, LINE_TAX, line->has_tax, Int64GetDatum(line->tax));
	batch_text(batch, LINE_SETTLEMENT_UTR, line->settlement_utr);
	batch->count++;
}

static Datum
column_array(LineBatch *batch, LineColumn column)
{
	Oid			type = line_types[column];
	int16		length = type == TEXTOID ? -1 : type == UUIDOID ? UUID_LEN :
	type == INT4OID ? 4 : 8;
	char		align = type == UUIDOID ? TYPALIGN_CHAR :
	length == 8 ? TYPALIGN_DOUBLE : TYPALIGN_INT;
	int			lower = 1;

	return PointerGetDatum(construct_md_array(batch->values[column],
											  batch->nulls[column], 1,
											  &batch->count, &lower, type,
											  length, length == 4 ||
											  (length == 8 && FLOAT8PASSBYVAL),
											  align));
}

static void
refuse_repeated(const Datum *values)
{
	bool		isnull;
	int			row;

	template_execute(NULL, &repeated_row, values, NULL, false);
	row = DatumGetInt32(template_column(0, "row_number", &isnull));
	statement_malformed(row, "A row before it tells of the same payment or refund.");
}

static void
store_batch(Loading *loading)
{
	Datum		values[2 + LINE_COLUMNS];
	LineBatch  *batch = loading->batch;
	MemoryContext caller = MemoryContextSwitchTo(loading->batch_context);

	values[0] = NameGetDatum(&loading->app_schema);
	values[1] = Int64GetDatum(loading->id);
	for (int i = 0; i < LINE_COLUMNS; i++)
		values[2 + i] = column_array(batch, i);
	if (template_execute(NULL, &store_lines, values, NULL, false) != batch->count)
		refuse_repeated(values);
	batch->count = 0;
	MemoryContextSwitchTo(caller);
	MemoryContextReset(loading->batch_context);
}

static void
store_line(Loading *loading, const StatementLine *line)
{
	MemoryContext caller = MemoryContextSwitchTo(loading->batch_context);

	batch_line(loading->batch, line);
	MemoryContextSwitchTo(caller);
	if (loading->batch->count == BATCH_LINES)
		store_batch(loading);
}

/* ---------- rows ---------- */

static void
check_row_count(int64 rows)
{
	if (rows > STATEMENT_MAX_ROWS)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("statement has more than %d rows", STATEMENT_MAX_ROWS),
				 errhint("Load it in parts, by days.")));
}

/* StatementPut */
static void
put_row(const StatementRow *row, void *state)
{
	Loading    *loading = state;
	StatementLine line = {0};

	check_row_count(row->number);
	if (!loading->format->read(row, &line))
	{
		loading->skipped++;
		return;
	}
	line.row_number = row->number;
	if (loading->storing)
		store_line(loading, &line);
	else
		take_note(loading, &line);
}

/* without the spaces around it; NULL where nothing is left */
static const char *
string_field(const JsonbValue *value)
{
	const char *start = value->val.string.val;
	const char *end = start + value->val.string.len;

	while (start < end && *start == ' ')
		start++;
	while (end > start && end[-1] == ' ')
		end--;
	return start == end ? NULL : pnstrdup(start, end - start);
}

static const char *
json_field(int row, StatementField field, const JsonbValue *value)
{
	if (value == NULL || value->type == jbvNull)
		return NULL;
	if (value->type == jbvString)
		return string_field(value);
	if (value->type == jbvNumeric)
		return DatumGetCString(DirectFunctionCall1(numeric_out,
												   NumericGetDatum(value->val.numeric)));
	statement_malformed(row, psprintf("Field \"%s\" is neither text nor a number.",
									  statement_field_names[field]));
}

static void
read_object(Loading *loading, int number, JsonbContainer *object)
{
	const StatementFormat *format = loading->format;
	StatementRow row = {number};

	for (int i = 0; i < format->field_count; i++)
	{
		StatementField field = format->fields[i];
		const char *name = statement_field_names[field];

		row.fields[field] =
			json_field(number, field,
					   getKeyJsonValueFromContainer(object, name, strlen(name),
													NULL));
	}
	put_row(&row, loading);
}

pg_noreturn static void
not_an_array(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_CUSOWN_MALFORMED),
			 errmsg("statement must be a JSON array, or an object with the array items")));
}

/* the report, or what a provider's interface has wrapped it in */
static JsonbContainer *
rows_of(const Jsonb *json)
{
	JsonbContainer *root = (JsonbContainer *) &json->root;
	JsonbValue *items;

	if (JsonContainerIsArray(root) && !JsonContainerIsScalar(root))
		return root;
	items = !JsonContainerIsObject(root) ? NULL :
		getKeyJsonValueFromContainer(root, "items", 5, NULL);
	if (items == NULL || items->type != jbvBinary ||
		!JsonContainerIsArray(items->val.binary.data))
		not_an_array();
	return items->val.binary.data;
}

static void
read_json(Loading *loading)
{
	JsonbContainer *rows = rows_of(loading->json);
	JsonbIterator *iterator = JsonbIteratorInit(rows);
	MemoryContext row_context = AllocSetContextCreate(CurrentMemoryContext,
													  "cusown_ops statement row",
													  ALLOCSET_DEFAULT_SIZES);
	JsonbValue	value;
	JsonbIteratorToken token;
	int			number = 0;

	check_row_count(JsonContainerSize(rows));
	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		MemoryContext caller = MemoryContextSwitchTo(row_context);

		CHECK_FOR_INTERRUPTS();
		if (token == WJB_ELEM)
		{
			number++;
			if (value.type != jbvBinary ||
				!JsonContainerIsObject(value.val.binary.data))
				statement_malformed(number, "It is not an object.");
			read_object(loading, number, value.val.binary.data);
		}
		MemoryContextSwitchTo(caller);
		MemoryContextReset(row_context);
	}
	MemoryContextDelete(row_context);
}

static void
read_report(Loading *loading)
{
	if (loading->json != NULL)
		read_json(loading);
	else
		statement_read_csv(loading->format, loading->csv, put_row, loading);
}

/* ---------- the verb ---------- */

static TimestampTz
day_of(TimestampTz at)
{
	int64		days = at / USECS_PER_DAY;

	if (at % USECS_PER_DAY < 0)
		days--;
	return days * USECS_PER_DAY;
}

static Datum
fingerprint_datum(const Loading *loading)
{
	bytea	   *fingerprint = palloc(VARHDRSZ + sizeof(loading->fingerprint));

	SET_VARSIZE(fingerprint, VARHDRSZ + sizeof(loading->fingerprint));
	memcpy(VARDATA(fingerprint), loading->fingerprint,
		   sizeof(loading->fingerprint));
	return PointerGetDatum(fingerprint);
}

/* false: it is known; its id is found either way */
static bool
store_statement(Loading *loading)
{
	Datum		values[8];
	Datum		known[3];
	bool		isnull;
	bool		is_new;

	values[0] = NameGetDatum(&loading->app_schema);
	values[1] = CStringGetTextDatum(loading->provider);
	values[2] = CStringGetTextDatum(loading->format->name);
	values[3] = fingerprint_datum(loading);
	values[4] = Int32GetDatum(loading->lines);
	values[5] = Int32GetDatum(loading->skipped);
	values[6] = TimestampTzGetDatum(day_of(loading->first));
	values[7] = TimestampTzGetDatum(day_of(loading->last) + USECS_PER_DAY);
	is_new = template_execute(NULL, &add_statement, values, NULL, false) > 0;
	if (!is_new)
	{
		known[0] = values[0];
		known[1] = values[1];
		known[2] = values[3];
		if (template_execute(NULL, &known_statement, known, NULL, false) == 0)
			elog(ERROR, "a statement that was there is gone");
	}
	loading->id = DatumGetInt64(template_column(0, "id", &isnull));
	SPI_freetuptable(SPI_tuptable);
	return is_new;
}

static void
store_all_lines(Loading *loading)
{
	loading->storing = true;
	loading->batch = palloc(sizeof(LineBatch));
	loading->batch->count = 0;
	loading->batch_context = AllocSetContextCreate(CurrentMemoryContext,
												   "cusown_ops statement lines",
												   ALLOCSET_DEFAULT_SIZES);
	read_report(loading);
	if (loading->batch->count > 0)
		store_batch(loading);
}

static void
load_body(void *state)
{
	Loading    *loading = state;

	namestrcpy(&loading->app_schema, binding_use(no_relations)->app_schema);
	loading->hash = pg_cryptohash_create(PG_SHA256);
	if (loading->hash == NULL)
		elog(ERROR, "out of memory");
	read_report(loading);
	pg_cryptohash_free(loading->hash);
	if (loading->lines == 0)
		ereport(ERROR,
				(errcode(ERRCODE_CUSOWN_MALFORMED),
				 errmsg("statement has no row about a payment")));
	if (store_statement(loading))
		store_all_lines(loading);
}

static void
check_provider(const char *provider)
{
	if (provider[0] == '\0' || strlen(provider) > MAX_PROVIDER)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("provider must have from 1 to %d bytes", MAX_PROVIDER)));
}

static void
check_arguments(FunctionCallInfo fcinfo, const char *verb, const char *third)
{
	verb_check_transaction(verb);
	verb_check_not_null(fcinfo, 0, "provider");
	verb_check_not_null(fcinfo, 1, "format");
	verb_check_not_null(fcinfo, 2, third);
}

typedef void (*TakeReport) (FunctionCallInfo fcinfo, Loading *loading);

static int64
load(FunctionCallInfo fcinfo, const char *verb, const char *third,
	 TakeReport take_report)
{
	Loading		loading = {0};
	ErrorContextCallback hide = {error_context_stack, verb_hide_statement, NULL};

	/* the caller's statement holds the report, with whoever paid */
	error_context_stack = &hide;
	check_arguments(fcinfo, verb, third);
	loading.provider = text_to_cstring(PG_GETARG_TEXT_PP(0));
	check_provider(loading.provider);
	loading.format = statement_format(text_to_cstring(PG_GETARG_TEXT_PP(1)));
	take_report(fcinfo, &loading);
	verb_run(load_body, &loading, false);
	error_context_stack = hide.previous;
	return loading.id;
}

static void
take_json(FunctionCallInfo fcinfo, Loading *loading)
{
	loading->json = PG_GETARG_JSONB_P(2);
}

static void
take_csv(FunctionCallInfo fcinfo, Loading *loading)
{
	loading->csv = text_to_cstring(PG_GETARG_TEXT_PP(2));
}

/*
 * cusown_load_statement(provider text, format text, statement jsonb)
 *		RETURNS bigint
 *
 * Keeps the lines of a statement, and returns its id; that of the first time
 * where it was loaded before.  Amounts in minor units.
 *
 * Errors: UO010 malformed; UO001; 22023; 22004; 54000 too many rows; 25006;
 * 0A000.
 *
 * Locks: none of the application's.
 *
 * Source: runbook "Payment Mismatch", step 3.
 */
Datum
cusown_load_statement(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64(load(fcinfo, "cusown_load_statement", "statement",
						 take_json));
}

/*
 * cusown_load_statement_csv(provider text, format text, csv text)
 *		RETURNS bigint
 *
 * Likewise, of CSV with a line of names before it.
 */
Datum
cusown_load_statement_csv(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64(load(fcinfo, "cusown_load_statement_csv", "csv",
						 take_csv));
}

/* whether a statement of the application has this line, and it tells of money */
bool
statement_line_shows_money(Binding *binding, int64 id)
{
	Datum		values[2];
	NameData	app_schema;
	bool		found;

	namestrcpy(&app_schema, binding->app_schema);
	values[0] = NameGetDatum(&app_schema);
	values[1] = Int64GetDatum(id);
	found = template_execute(NULL, &line_of_money, values, NULL, false) > 0;
	SPI_freetuptable(SPI_tuptable);
	return found;
}
