/*-------------------------------------------------------------------------
 *
 * idempotency.c
 *	  Requests that are carried out once, however often they are sent.
 *
 * A request comes with a key.  Whoever begins first proceeds and completes with
 * a response; twins get that response.  Of the request only a fingerprint is
 * kept, which tells whether a twin is one.
 *
 * Who proceeds holds the key by a token, for a lease.  The lease matters where
 * begin was committed before the work: a twin is told how long to wait, and one
 * that comes behind the lease takes the key over with a token of its own, by
 * which the late one is refused.  Tokens are drawn at random, so that none comes
 * again after its row was pruned, dumped and restored, or lost in a failover.
 *
 * Locking protocol: the unique index.  Inserting waits for whoever has inserted,
 * changed or deleted the same key and not ended yet.  What is there then is read
 * without a lock, so that replays write nothing and wait for each other never;
 * taking over is one conditional UPDATE, which by the token takes only what was
 * read.  Where that was overtaken all begins anew.  No lock of the application's
 * is taken.
 *
 * Leases are judged by the clock, not by now(): a transaction's beginning may be
 * long ago, as this waits for others.
 *
 * Keys, requests and responses may hold anything, so no message shows them.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "libpq/pqformat.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"

#include "binding.h"
#include "compat.h"
#include "errors.h"
#include "idempotency.h"
#include "job.h"
#include "template.h"
#include "verb.h"

/* characters; both and the schema's name fit into an index entry */
#define MAX_SCOPE 128
#define MAX_KEY 512

/* a token is exact where numbers are doubles, as in JavaScript */
#define TOKEN_BITS 53

/* a statement that took longer may have waited for somebody */
#define WAIT_MS 5

/* which key */
typedef struct KeyName
{
	NameData	app_schema;
	text	   *scope;
	text	   *key;
} KeyName;

/* one call of cusown_idempotency_begin() */
typedef struct KeyBeginning
{
	KeyName		name;
	bytea	   *fingerprint;	/* NULL: no request */
	Interval   *ttl;
	Interval   *lease;
	MemoryContext context;		/* outlives the body */
	const char *state;			/* what is returned, once that is known */
	int64		token;
	Jsonb	   *response;		/* NULL for null */
	TimestampTz wait;			/* microseconds */
} KeyBeginning;

/* a key that is there, as it was read */
typedef struct KeyRow
{
	int64		token;
	bool		same_request;
	bool		completed;
	TimestampTz lease_until;
	TimestampTz expires_at;
} KeyRow;

/* one call of cusown_idempotency_complete() or _abandon() */
typedef struct KeyEnding
{
	KeyName		name;
	int64		token;
	Jsonb	   *response;
	bool		changed;
} KeyEnding;

/* what is done with a key, once it is known whose it is */
typedef struct KeyWork
{
	VerbBody	body;
	KeyName    *name;
	void	   *state;
} KeyWork;

PG_FUNCTION_INFO_V1(cusown_idempotency_begin);
PG_FUNCTION_INFO_V1(cusown_idempotency_complete);
PG_FUNCTION_INFO_V1(cusown_idempotency_abandon);

static const char *const no_relations[] = {NULL};

/* $1 app_schema, $2 scope, $3 key */
#define THIS_KEY "k.app_schema = $1 AND k.scope = $2 AND k.key = $3"

/* $4 fingerprint, $5 token, $6 the moment, $7 lease_until, $8 expires_at */
static const Template insert_key = {
	"INSERT INTO cusown_ops.idempotency_key (app_schema, scope, key,"
	" fingerprint, token, begun_at, lease_until, expires_at)"
	" VALUES ($1, $2, $3, $4, $5, $6, $7, $8)"
	" ON CONFLICT (app_schema, scope, key) DO NOTHING",
	8, {NAMEOID, TEXTOID, TEXTOID, BYTEAOID, INT8OID, TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID},
	false, true
};

/* $4 fingerprint */
static const Template read_key = {
	"SELECT k.token,"
	" coalesce(k.fingerprint = $4, k.fingerprint IS NULL AND $4 IS NULL)"
	" AS same_request, k.completed_at IS NOT NULL AS completed, k.response,"
	" k.lease_until, k.expires_at"
	" FROM cusown_ops.idempotency_key k WHERE " THIS_KEY,
	4, {NAMEOID, TEXTOID, TEXTOID, BYTEAOID},
	false, true
};

/* as insert_key, $9 the token of before: what was completed meanwhile stays */
static const Template take_key = {
	"UPDATE cusown_ops.idempotency_key k SET fingerprint := $4, token := $5,"
	" begun_at := $6, lease_until := $7, expires_at := $8,"
	" completed_at := NULL, response := NULL WHERE " THIS_KEY
	" AND k.token = $9 AND (k.completed_at IS NULL OR k.expires_at <= $6)",
	9, {NAMEOID, TEXTOID, TEXTOID, BYTEAOID, INT8OID, TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID, INT8OID},
	false, true
};

/* $4 token, $5 response, $6 the moment */
static const Template complete_key = {
	"UPDATE cusown_ops.idempotency_key k SET response := $5,"
	" completed_at := $6 WHERE " THIS_KEY
	" AND k.token = $4 AND k.completed_at IS NULL",
	6, {NAMEOID, TEXTOID, TEXTOID, INT8OID, JSONBOID, TIMESTAMPTZOID},
	false, true
};

/* $4 token, $5 response */
static const Template completed_key = {
	"SELECT coalesce(k.response = $5, k.response IS NULL AND $5 IS NULL)"
	" AS same_response FROM cusown_ops.idempotency_key k WHERE " THIS_KEY
	" AND k.token = $4 AND k.completed_at IS NOT NULL",
	5, {NAMEOID, TEXTOID, TEXTOID, INT8OID, JSONBOID},
	false, true
};

/* $4 token */
static const Template abandon_key = {
	"DELETE FROM cusown_ops.idempotency_key k WHERE " THIS_KEY
	" AND k.token = $4 AND k.completed_at IS NULL",
	4, {NAMEOID, TEXTOID, TEXTOID, INT8OID},
	false, true
};

const Template prune_expired_keys = {
	"WITH old AS MATERIALIZED (SELECT k.scope AS scope, k.key AS key"
	" FROM cusown_ops.idempotency_key k"
	" WHERE k.app_schema = $1 AND k.expires_at <= $2"
	" ORDER BY k.expires_at LIMIT $3 FOR UPDATE SKIP LOCKED)"
	" DELETE FROM cusown_ops.idempotency_key k USING old o"
	" WHERE k.app_schema = $1 AND k.scope = o.scope AND k.key = o.key"
	" AND k.expires_at <= $2",
	3, {NAMEOID, TIMESTAMPTZOID, INT8OID}
};

/* ---------- the fingerprint of a request ---------- */

static void
put_bytes(StringInfo out, char mark, const char *bytes, int length)
{
	pq_sendbyte(out, mark);
	pq_sendint32(out, length);
	pq_sendbytes(out, bytes, length);
}

/*
 * Equal numbers differ in nothing but how many digits they display: the fourth
 * of the four int16 before the digits.
 */
static void
put_number(StringInfo out, Numeric number)
{
	bytea	   *sent = DatumGetByteaPP(DirectFunctionCall1(numeric_send,
														   NumericGetDatum(number)));
	char	   *bytes = VARDATA_ANY(sent);

	memset(bytes + 3 * sizeof(int16), 0, sizeof(int16));
	put_bytes(out, 'd', bytes, VARSIZE_ANY_EXHDR(sent));
	pfree(sent);
}

static void
put_scalar(StringInfo out, const JsonbValue *value)
{
	switch (value->type)
	{
		case jbvNull:
			pq_sendbyte(out, 'n');
			break;
		case jbvString:
			put_bytes(out, 's', value->val.string.val, value->val.string.len);
			break;
		case jbvNumeric:
			put_number(out, value->val.numeric);
			break;
		case jbvBool:
			pq_sendbyte(out, value->val.boolean ? 't' : 'f');
			break;
		default:
			elog(ERROR, "unexpected type of jsonb value: %d", value->type);
	}
}

static void
put_token(StringInfo out, JsonbIteratorToken token, const JsonbValue *value)
{
	switch (token)
	{
		case WJB_BEGIN_ARRAY:
			/* what is no array or object is kept as an array of one */
			pq_sendbyte(out, value->val.array.rawScalar ? '=' : '[');
			break;
		case WJB_END_ARRAY:
			pq_sendbyte(out, ']');
			break;
		case WJB_BEGIN_OBJECT:
			pq_sendbyte(out, '{');
			break;
		case WJB_END_OBJECT:
			pq_sendbyte(out, '}');
			break;
		default:
			put_scalar(out, value);
	}
}

/*
 * SHA-256 over what makes a jsonb value: equal ones have the same, others do
 * not.  The same on every machine and version, as it is dumped.
 */
static bytea *
fingerprint_of(Jsonb *request)
{
	StringInfoData out;
	JsonbIterator *iterator = JsonbIteratorInit(&request->root);
	JsonbIteratorToken token;
	JsonbValue	value;
	bytea	   *fingerprint;

	pq_begintypsend(&out);
	while ((token = JsonbIteratorNext(&iterator, &value, false)) != WJB_DONE)
	{
		CHECK_FOR_INTERRUPTS();
		put_token(&out, token, &value);
	}
	fingerprint = DatumGetByteaP(DirectFunctionCall1(sha256_bytea,
													 PointerGetDatum(pq_endtypsend(&out))));
	return fingerprint;
}

/* ---------- a key ---------- */

static text *
read_name(FunctionCallInfo fcinfo, int arg, const char *what, int most)
{
	text	   *name;
	int			characters;

	verb_check_not_null(fcinfo, arg, what);
	name = PG_GETARG_TEXT_PP(arg);
	characters = pg_mbstrlen_with_len(VARDATA_ANY(name),
									  VARSIZE_ANY_EXHDR(name));
	if (characters < 1 || characters > most)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must have from 1 to %d characters", what, most)));
	return name;
}

static void
read_key_name(FunctionCallInfo fcinfo, KeyName *name)
{
	name->scope = read_name(fcinfo, 0, "scope", MAX_SCOPE);
	name->key = read_name(fcinfo, 1, "key", MAX_KEY);
}

static void
put_key_name(const KeyName *name, Datum *values)
{
	values[0] = NameGetDatum(&name->app_schema);
	values[1] = PointerGetDatum(name->scope);
	values[2] = PointerGetDatum(name->key);
}

pg_noreturn static void
in_progress(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_CUSOWN_IN_PROGRESS),
			 errmsg("a request with this idempotency key is in progress"),
			 errdetail("The transaction that holds the key did not end within lock_timeout."),
			 errhint("Send the request again, later.")));
}

static void
work_on_key(void *state)
{
	KeyWork    *work = state;

	namestrcpy(&work->name->app_schema, binding_chosen_schema());
	work->body(work->state);
}

/* nothing but a key is waited for there, so who waits in vain hears UO006 */
static void
run_on_key(VerbBody body, KeyName *name, void *state)
{
	MemoryContext context = CurrentMemoryContext;
	KeyWork		work = {body, name, state};

	PG_TRY();
	{
		verb_run(work_on_key, &work, false);
	}
	PG_CATCH();
	{
		if (geterrcode() != ERRCODE_LOCK_NOT_AVAILABLE)
			PG_RE_THROW();
		MemoryContextSwitchTo(context);
		FlushErrorState();
		in_progress();
	}
	PG_END_TRY();
}

/* ---------- begin ---------- */

static int64
random_token(void)
{
	uint64		token;

	do
	{
		if (!pg_strong_random(&token, sizeof(token)))
			ereport(ERROR,
					(errcode(ERRCODE_INTERNAL_ERROR),
					 errmsg("could not generate a random token")));
		token >>= 64 - TOKEN_BITS;
	} while (token == 0);
	return token;
}

/* what insert_key and take_key write; a key lives at least as long as its lease */
static void
put_key(const KeyBeginning *beginning, TimestampTz moment, Datum *values,
		char *nulls)
{
	TimestampTz lease_until = verb_after(moment, beginning->lease);
	TimestampTz expires_at = verb_after(moment, beginning->ttl);

	put_key_name(&beginning->name, values);
	values[3] = PointerGetDatum(beginning->fingerprint);
	values[4] = Int64GetDatum(beginning->token);
	values[5] = TimestampTzGetDatum(moment);
	values[6] = TimestampTzGetDatum(lease_until);
	values[7] = TimestampTzGetDatum(Max(expires_at, lease_until));
	nulls[3] = beginning->fingerprint == NULL ? 'n' : ' ';
}

/* false: somebody else has it now, or has completed it */
static bool
take(KeyBeginning *beginning, int64 token_before, TimestampTz moment)
{
	Datum		values[9];
	char		nulls[] = "         ";

	put_key(beginning, moment, values, nulls);
	values[8] = Int64GetDatum(token_before);
	return template_execute(NULL, &take_key, values, nulls, false) > 0;
}

/* false: it is there */
static bool
insert(KeyBeginning *beginning, TimestampTz moment)
{
	Datum		values[8];
	char		nulls[] = "        ";

	put_key(beginning, moment, values, nulls);
	return template_execute(NULL, &insert_key, values, nulls, false) > 0;
}

/*
 * Who had to wait for somebody who then came to nothing has its lease from now
 * on, not from when it began to wait.
 */
static bool
proceed(KeyBeginning *beginning, TimestampTz moment)
{
	TimestampTz now = GetCurrentTimestamp();

	if (TimestampDifferenceExceeds(moment, now, WAIT_MS))
		(void) take(beginning, beginning->token, now);
	beginning->state = "proceed";
	return true;
}

static TimestampTz
moment_column(const char *column)
{
	bool		isnull;

	return DatumGetTimestampTz(template_column(0, column, &isnull));
}

/* what a twin is given must outlive the body */
static void
keep_response(KeyBeginning *beginning)
{
	bool		isnull;
	Datum		value = template_column(0, "response", &isnull);
	MemoryContext caller = MemoryContextSwitchTo(beginning->context);

	beginning->response = isnull ? NULL : DatumGetJsonbPCopy(value);
	MemoryContextSwitchTo(caller);
}

/* false: it is gone again; the response is kept where it is for this request */
static bool
read_row(KeyBeginning *beginning, KeyRow *row)
{
	Datum		values[4];
	char		nulls[] = "    ";
	bool		isnull;

	put_key_name(&beginning->name, values);
	values[3] = PointerGetDatum(beginning->fingerprint);
	nulls[3] = beginning->fingerprint == NULL ? 'n' : ' ';
	if (template_execute(NULL, &read_key, values, nulls, false) == 0)
		return false;
	row->token = DatumGetInt64(template_column(0, "token", &isnull));
	row->same_request = template_bool(0, "same_request");
	row->completed = template_bool(0, "completed");
	row->lease_until = moment_column("lease_until");
	row->expires_at = moment_column("expires_at");
	if (row->completed && row->same_request)
		keep_response(beginning);
	SPI_freetuptable(SPI_tuptable);
	return true;
}

/* "replay" or "in_progress", or NULL where the key is to be had */
static const char *
state_of(const KeyRow *row, TimestampTz moment)
{
	if (row->expires_at <= moment)
		return NULL;
	if (!row->same_request)
		ereport(ERROR,
				(errcode(ERRCODE_CUSOWN_KEY_REUSED),
				 errmsg("idempotency key was used with another request"),
				 errhint("A new request needs a key of its own.")));
	if (row->completed)
		return "replay";
	return row->lease_until > moment ? "in_progress" : NULL;
}

/* false: somebody was faster, and all is different now */
static bool
try_to_begin(KeyBeginning *beginning)
{
	TimestampTz moment = GetCurrentTimestamp();
	KeyRow		row;

	if (insert(beginning, moment))
		return proceed(beginning, moment);
	if (!read_row(beginning, &row))
		return false;
	moment = GetCurrentTimestamp();
	beginning->state = state_of(&row, moment);
	beginning->wait = row.lease_until - moment;
	if (beginning->state != NULL)
		return true;
	return take(beginning, row.token, moment) &&
		proceed(beginning, moment);
}

static void
begin_body(void *state)
{
	while (!try_to_begin(state))
		CHECK_FOR_INTERRUPTS();
}

static Interval *
read_interval(FunctionCallInfo fcinfo, int arg, const char *name)
{
	verb_check_not_null(fcinfo, arg, name);
	verb_check_interval(PG_GETARG_INTERVAL_P(arg), name);
	return PG_GETARG_INTERVAL_P(arg);
}

static void
read_beginning(FunctionCallInfo fcinfo, KeyBeginning *beginning)
{
	read_key_name(fcinfo, &beginning->name);
	if (!PG_ARGISNULL(2))
		beginning->fingerprint = fingerprint_of(PG_GETARG_JSONB_P(2));
	beginning->ttl = read_interval(fcinfo, 3, "ttl");
	beginning->lease = read_interval(fcinfo, 4, "lease");
	if (verb_interval_ms(beginning->ttl) <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("ttl must be greater than zero")));
	beginning->context = CurrentMemoryContext;
	beginning->token = random_token();
}

/* up to the next second: who comes then finds the lease over */
static Datum
whole_seconds(TimestampTz wait)
{
	Interval   *seconds = palloc0(sizeof(Interval));

	seconds->time = (wait + USECS_PER_SEC - 1) / USECS_PER_SEC * USECS_PER_SEC;
	return IntervalPGetDatum(seconds);
}

static Datum
beginning_row(FunctionCallInfo fcinfo, const KeyBeginning *beginning)
{
	TupleDesc	desc;
	Datum		values[4] = {0};
	bool		nulls[4] = {false, true, true, true};

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	values[0] = CStringGetTextDatum(beginning->state);
	if (strcmp(beginning->state, "proceed") == 0)
	{
		values[2] = Int64GetDatum(beginning->token);
		nulls[2] = false;
	}
	else if (strcmp(beginning->state, "in_progress") == 0)
	{
		values[3] = whole_seconds(beginning->wait);
		nulls[3] = false;
	}
	else
	{
		values[1] = PointerGetDatum(beginning->response);
		nulls[1] = beginning->response == NULL;
	}
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values,
											 nulls));
}

/*
 * cusown_idempotency_begin(scope text, key text, request jsonb DEFAULT NULL,
 *		ttl interval DEFAULT '24 hours', lease interval DEFAULT '60 seconds',
 *		OUT state text, OUT response jsonb, OUT token bigint,
 *		OUT retry_after interval)
 *
 * Whether the request with this key is to be carried out (proceed, by token),
 * was (replay, with its response), or is being (in_progress).
 *
 * Errors: UO005 the key came with another request; UO006 lock_timeout was
 * reached while its transaction was under way; UO001; 22023; 22004; 25006;
 * 0A000.
 *
 * Locks: waits for transactions that have begun, completed or abandoned the same
 * key.
 */
Datum
cusown_idempotency_begin(PG_FUNCTION_ARGS)
{
	KeyBeginning beginning = {0};
	ErrorContextCallback hide = {error_context_stack, verb_hide_statement, NULL};
	Datum		row;

	error_context_stack = &hide;
	verb_check_transaction("cusown_idempotency_begin");
	read_beginning(fcinfo, &beginning);
	run_on_key(begin_body, &beginning.name, &beginning);
	row = beginning_row(fcinfo, &beginning);
	error_context_stack = hide.previous;
	return row;
}

/* ---------- complete and abandon ---------- */

static void
read_ending(FunctionCallInfo fcinfo, KeyEnding *ending)
{
	read_key_name(fcinfo, &ending->name);
	verb_check_not_null(fcinfo, 2, "token");
	ending->token = PG_GETARG_INT64(2);
}

pg_noreturn static void
not_held(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_CUSOWN_TRANSITION),
			 errmsg("idempotency key is not held by this token"),
			 errdetail("It was taken over when its lease had ended, or is gone."),
			 errhint("Roll back what was done for it.")));
}

/* the same again is no mistake */
static void
check_completed(const Datum *values, const char *nulls)
{
	bool		same;

	if (template_execute(NULL, &completed_key, values, nulls, false) == 0)
		not_held();
	same = template_bool(0, "same_response");
	SPI_freetuptable(SPI_tuptable);
	if (!same)
		ereport(ERROR,
				(errcode(ERRCODE_CUSOWN_TRANSITION),
				 errmsg("idempotency key was completed with another response")));
}

static void
complete_body(void *state)
{
	KeyEnding  *ending = state;
	Datum		values[6];
	char		nulls[] = "      ";

	put_key_name(&ending->name, values);
	values[3] = Int64GetDatum(ending->token);
	values[4] = PointerGetDatum(ending->response);
	values[5] = TimestampTzGetDatum(GetCurrentTimestamp());
	nulls[4] = ending->response == NULL ? 'n' : ' ';
	ending->changed = template_execute(NULL, &complete_key, values, nulls,
									   false) > 0;
	if (!ending->changed)
		check_completed(values, nulls);
}

/*
 * cusown_idempotency_complete(scope text, key text, token bigint,
 *		response jsonb) RETURNS boolean
 *
 * Keeps the response for twins.  False: it was kept already.
 *
 * Errors: UO003 the key is not held by this token, or has another response; UO006
 * as begin; UO001; 22023; 22004; 25006; 0A000.
 *
 * Locks: the key's row; waits for whoever takes it over.
 */
Datum
cusown_idempotency_complete(PG_FUNCTION_ARGS)
{
	KeyEnding	ending = {0};
	ErrorContextCallback hide = {error_context_stack, verb_hide_statement, NULL};

	error_context_stack = &hide;
	verb_check_transaction("cusown_idempotency_complete");
	read_ending(fcinfo, &ending);
	if (!PG_ARGISNULL(3))
		ending.response = PG_GETARG_JSONB_P(3);
	run_on_key(complete_body, &ending.name, &ending);
	error_context_stack = hide.previous;
	PG_RETURN_BOOL(ending.changed);
}

static void
abandon_body(void *state)
{
	KeyEnding  *ending = state;
	Datum		values[4];

	put_key_name(&ending->name, values);
	values[3] = Int64GetDatum(ending->token);
	ending->changed = template_execute(NULL, &abandon_key, values, NULL,
									   false) > 0;
}

/*
 * cusown_idempotency_abandon(scope text, key text, token bigint)
 *		RETURNS boolean
 *
 * Gives the key back, so that the next one proceeds at once.  False: it is not
 * held by this token (any more), or was completed; nothing is changed.
 *
 * Errors and locks: as cusown_idempotency_complete(), but for UO003.
 */
Datum
cusown_idempotency_abandon(PG_FUNCTION_ARGS)
{
	KeyEnding	ending = {0};
	ErrorContextCallback hide = {error_context_stack, verb_hide_statement, NULL};

	error_context_stack = &hide;
	verb_check_transaction("cusown_idempotency_abandon");
	read_ending(fcinfo, &ending);
	run_on_key(abandon_body, &ending.name, &ending);
	error_context_stack = hide.previous;
	PG_RETURN_BOOL(ending.changed);
}

/* ---------- the job ---------- */

/* at most batch_size rows; false when there were fewer */
static bool
prune_step(JobRun *run)
{
	Datum		values[3];
	uint64		rows;

	values[0] = template_name(run->binding->app_schema);
	values[1] = TimestampTzGetDatum(run->as_of);
	values[2] = Int64GetDatum(run->batch_size);
	rows = template_execute(NULL, &prune_expired_keys, values, NULL, false);
	run->counts.changed += rows;
	run->counts.looked_at += rows;
	return rows == run->batch_size;
}

const Job	prune_idempotency_job = {
	"prune_idempotency",
	"deletes idempotency keys whose ttl has ended",
	3600, true, no_relations, 1, prune_step
};
