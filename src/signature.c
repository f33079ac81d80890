/*-------------------------------------------------------------------------
 *
 * signature.c
 *	  Whether a request comes from whoever shares a secret with us:
 *	  cusown_verify_signature(), and the secrets that we keep.
 *
 * A scheme says in which headers a signature stands, and what is signed: the
 * bytes of the body, in some schemes behind an id and the time.  Whatever is
 * wrong with headers is a false, never an error: they come from anybody.
 * What is wrong with a secret is its owner's mistake, and an error.
 *
 * How long it takes tells nothing of a signature or secret: each signature of
 * the request is compared with that of each secret, in constant time.
 *
 * A stored secret is valid from a moment on, and when another one takes its
 * place for some time longer, so that what was signed before is still accepted.
 * Valid is what the clock says, and not the caller's as_of, which would bring back
 * a secret that has ended; as_of is only what the time in the headers is compared
 * with.  Ended ones are deleted by the next call that sets one.
 *
 * verify_signature_with_stored_secret() is the only function of ours that runs
 * with its owner's rights: it reads the secrets, and nothing else.
 *
 * Locking protocol: who sets a secret locks cusown_ops.webhook_secret against
 * others who do, not against readers.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "common/hmac.h"
#include "common/int.h"
#include "common/sha2.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "binding.h"
#include "header.h"
#include "signature.h"
#include "signature_parse.h"
#include "template.h"
#include "verb.h"

/* what the headers of a request claim */
typedef struct Claim
{
	const char *id;				/* of the message; NULL: the scheme has none */
	int			id_length;
	SignatureTime time;			/* digits NULL: the scheme has none */
	SignatureList list;
} Claim;

typedef struct Scheme
{
	const char *name;
	const char *header;			/* that has the signature */
	bool		(*read) (Jsonb *headers, Claim *claim);
	bool		decodes_secret; /* that of Standard Webhooks may be base64 */
	const char *id_header;		/* that has what is signed as the id, or NULL */
} Scheme;

/* a call of cusown_set_webhook_secret() */
typedef struct SecretCall
{
	const char *provider;
	Datum		secret;
	TimestampTz valid_from;
	Interval	overlap;		/* of hours only, whatever the time zone */
	ReturnSetInfo *result;
} SecretCall;

PG_FUNCTION_INFO_V1(cusown_verify_signature);
PG_FUNCTION_INFO_V1(cusown_verify_signature_with_stored_secret);
PG_FUNCTION_INFO_V1(cusown_set_webhook_secret);

/* ---------- statements ---------- */

/* $1 app_schema, $2 provider, $3 the clock */
static const Template valid_secrets = {
	"SELECT s.secret FROM cusown_ops.webhook_secret s"
	" WHERE s.app_schema = $1 AND s.provider = $2 AND s.valid_from <= $3"
	" AND (s.valid_until IS NULL OR s.valid_until > $3)",
	3, {NAMEOID, TEXTOID, TIMESTAMPTZOID},.planned_once = true
};

/* as whoever may not read them */
static const Template ask_stored = {
	"SELECT cusown_ops.verify_signature_with_stored_secret($1, $2, $3, $4, $5,"
	" $6, $7) AS is_valid",
	7, {NAMEOID, TEXTOID, TEXTOID, BYTEAOID, JSONBOID, TIMESTAMPTZOID, INTERVALOID},
	.planned_once = true
};

static const Template lock_secrets = {
	"LOCK TABLE cusown_ops.webhook_secret IN SHARE ROW EXCLUSIVE MODE",
	0, {0}
};

/* $3 the secret, $4 valid_from: since when it has been the last one */
static const Template already_set = {
	"SELECT l.valid_from FROM (SELECT s.secret, s.valid_from, s.valid_until"
	" FROM cusown_ops.webhook_secret s"
	" WHERE s.app_schema = $1 AND s.provider = $2"
	" ORDER BY s.valid_from DESC LIMIT 1) l"
	" WHERE l.secret = $3 AND l.valid_from <= $4 AND l.valid_until IS NULL",
	4, {NAMEOID, TEXTOID, BYTEAOID, TIMESTAMPTZOID}
};

/* $5 overlap; one that is set before another begins ends with that one's */
static const Template add_secret = {
	"INSERT INTO cusown_ops.webhook_secret AS w"
	" (app_schema, provider, secret, valid_from, valid_until)"
	" VALUES ($1, $2, $3, $4, (SELECT pg_catalog.min(s.valid_from)"
	" FROM cusown_ops.webhook_secret s WHERE s.app_schema = $1"
	" AND s.provider = $2 AND s.valid_from > $4) + $5)"
	" ON CONFLICT (app_schema, provider, valid_from)"
	" DO UPDATE SET secret := EXCLUDED.secret",
	5, {NAMEOID, TEXTOID, BYTEAOID, TIMESTAMPTZOID, INTERVALOID}
};

/* $3 since when the last one has been set, $4 when all before it end */
static const Template end_earlier = {
	"UPDATE cusown_ops.webhook_secret s SET valid_until := $4"
	" WHERE s.app_schema = $1 AND s.provider = $2 AND s.valid_from < $3"
	" AND (s.valid_until IS NULL OR s.valid_until > $4)",
	4, {NAMEOID, TEXTOID, TIMESTAMPTZOID, TIMESTAMPTZOID}
};

/* $3 the clock */
static const Template forget_ended = {
	"DELETE FROM cusown_ops.webhook_secret s WHERE s.app_schema = $1"
	" AND s.provider = $2 AND s.valid_until <= $3",
	3, {NAMEOID, TEXTOID, TIMESTAMPTZOID}
};

static const Template told_secrets = {
	"SELECT s.valid_from, s.valid_until FROM cusown_ops.webhook_secret s"
	" WHERE s.app_schema = $1 AND s.provider = $2 ORDER BY s.valid_from",
	2, {NAMEOID, TEXTOID}
};

/* ---------- schemes ---------- */

#define RAZORPAY_HEADER "x-razorpay-signature"
#define STRIPE_HEADER "stripe-signature"
#define STANDARD_HEADER "webhook-signature"
#define UPI_HEADER "x-upi-signature"
#define ID_HEADER "webhook-id"

static bool
read_hex(Jsonb *headers, const char *name, Claim *claim)
{
	const char *text;
	int			length;

	claim->list.count = 1;
	return header_value(headers, name, &text, &length) &&
		signature_parse_hex(text, length, claim->list.signatures[0]);
}

static bool
read_razorpay(Jsonb *headers, Claim *claim)
{
	return read_hex(headers, RAZORPAY_HEADER, claim);
}

static bool
read_upi(Jsonb *headers, Claim *claim)
{
	return read_hex(headers, UPI_HEADER, claim);
}

static bool
read_stripe(Jsonb *headers, Claim *claim)
{
	const char *text;
	int			length;

	return header_value(headers, STRIPE_HEADER, &text, &length) &&
		signature_parse_stripe(text, length, &claim->time, &claim->list);
}

static bool
read_standard(Jsonb *headers, Claim *claim)
{
	const char *text;
	int			length;

	return header_value(headers, ID_HEADER, &claim->id, &claim->id_length) &&
		signature_parse_id(claim->id, claim->id_length) &&
		header_value(headers, "webhook-timestamp", &text, &length) &&
		signature_parse_time(text, length, &claim->time) &&
		header_value(headers, STANDARD_HEADER, &text, &length) &&
		signature_parse_standard(text, length, &claim->list);
}

static const Scheme schemes[] = {
	{"razorpay", RAZORPAY_HEADER, read_razorpay},
	{"stripe", STRIPE_HEADER, read_stripe},
	{"standard", STANDARD_HEADER, read_standard, true, ID_HEADER},
	{"upi", UPI_HEADER, read_upi},
};

static const Scheme *
scheme_named(const char *name)
{
	for (int i = 0; i < lengthof(schemes); i++)
	{
		if (strcmp(schemes[i].name, name) == 0)
			return &schemes[i];
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("unknown signature scheme \"%s\"", name),
			 errhint("Schemes are razorpay, stripe, standard and upi.")));
}

/* in which a signature stands */
const char *
signature_header(const char *scheme)
{
	return scheme_named(scheme)->header;
}

/* whether a header, in lower case, is signed as the id of the message */
bool
signature_covers(const char *scheme, const char *header)
{
	const char *signed_header = scheme_named(scheme)->id_header;

	return header != NULL && signed_header != NULL &&
		strcmp(header, signed_header) == 0;
}

/* 22023 where there is none of this name */
void
signature_check_scheme(const char *scheme)
{
	(void) scheme_named(scheme);
}

/* ---------- one request ---------- */

/* no further from as_of than tolerance, before or after */
static bool
is_timely(const SignatureTime *time, TimestampTz as_of,
		  const Interval *tolerance)
{
	int64		limit = (int64) verb_interval_ms(tolerance) * 1000;
	int64		apart;

	if (TIMESTAMP_NOT_FINITE(as_of) ||
		pg_sub_s64_overflow(as_of, time_t_to_timestamptz(time->seconds), &apart))
		return false;
	return apart >= -limit && apart <= limit;
}

/* false: nothing that could be true */
static bool
read_claim(const Scheme *scheme, Jsonb *headers, TimestampTz as_of,
		   const Interval *tolerance, Claim *claim)
{
	claim->id = NULL;
	claim->time.digits = NULL;
	return scheme->read(headers, claim) &&
		(claim->time.digits == NULL || is_timely(&claim->time, as_of, tolerance));
}

static void
add_part(pg_hmac_ctx *hmac, const void *data, size_t length)
{
	if (pg_hmac_update(hmac, data, length) < 0)
		elog(ERROR, "could not compute an HMAC: %s", pg_hmac_error(hmac));
}

/* id.time.body, of which a scheme may leave out the first ones */
static void
add_signed(pg_hmac_ctx *hmac, const Claim *claim, const bytea *body)
{
	if (claim->id != NULL)
	{
		add_part(hmac, claim->id, claim->id_length);
		add_part(hmac, ".", 1);
	}
	if (claim->time.digits != NULL)
	{
		add_part(hmac, claim->time.digits, claim->time.length);
		add_part(hmac, ".", 1);
	}
	add_part(hmac, VARDATA_ANY(body), VARSIZE_ANY_EXHDR(body));
}

static void
compute(const SignatureKey *key, const Claim *claim, const bytea *body,
		uint8 *signature)
{
	pg_hmac_ctx *hmac = pg_hmac_create(PG_SHA256);

	if (hmac == NULL)
		elog(ERROR, "out of memory");
	if (pg_hmac_init(hmac, key->bytes, key->length) < 0)
		elog(ERROR, "could not compute an HMAC: %s", pg_hmac_error(hmac));
	add_signed(hmac, claim, body);
	if (pg_hmac_final(hmac, signature, SIGNATURE_BYTES) < 0)
		elog(ERROR, "could not compute an HMAC: %s", pg_hmac_error(hmac));
	pg_hmac_free(hmac);
}

/* the key that a secret stands for; false: it is malformed */
static bool
read_secret(const Scheme *scheme, const bytea *secret, SignatureKey *key)
{
	const char *text = VARDATA_ANY(secret);
	size_t		length = VARSIZE_ANY_EXHDR(secret);

	if (scheme->decodes_secret)
		return signature_parse_secret(text, length, key);
	if (length == 0 || length > sizeof(key->bytes))
		return false;
	memcpy(key->bytes, text, length);
	key->length = length;
	return true;
}

/* a secret that is malformed has signed nothing */
static bool
is_signed(const Scheme *scheme, const bytea *secret, const Claim *claim,
		  const bytea *body)
{
	SignatureKey key;
	uint8		signature[SIGNATURE_BYTES];
	bool		found = false;

	if (!read_secret(scheme, secret, &key))
		return false;
	compute(&key, claim, body, signature);
	for (int i = 0; i < claim->list.count; i++)
		found |= timingsafe_bcmp(claim->list.signatures[i], signature,
								 SIGNATURE_BYTES) == 0;
	explicit_bzero(&key, sizeof(key));
	explicit_bzero(signature, sizeof(signature));
	return found;
}

/*
 * Whether a request bears a signature made with this secret.  Errors: 22023
 * unknown scheme.
 */
bool
signature_verify(const char *scheme, const bytea *secret, const bytea *body,
				 Jsonb *headers, TimestampTz as_of, const Interval *tolerance)
{
	const Scheme *known = scheme_named(scheme);
	Claim		claim;

	return read_claim(known, headers, as_of, tolerance, &claim) &&
		is_signed(known, secret, &claim, body);
}

/* ---------- arguments ---------- */

static char *
scheme_argument(FunctionCallInfo fcinfo, int arg)
{
	char	   *scheme;

	verb_check_not_null(fcinfo, arg, "scheme");
	scheme = text_to_cstring(PG_GETARG_TEXT_PP(arg));
	signature_check_scheme(scheme);
	return scheme;
}

static Interval *
tolerance_argument(FunctionCallInfo fcinfo, int arg)
{
	verb_check_not_null(fcinfo, arg, "tolerance");
	verb_check_interval(PG_GETARG_INTERVAL_P(arg), "tolerance");
	return PG_GETARG_INTERVAL_P(arg);
}

static bytea *
secret_argument(FunctionCallInfo fcinfo, int arg)
{
	bytea	   *secret;

	verb_check_not_null(fcinfo, arg, "secret");
	secret = PG_GETARG_BYTEA_PP(arg);
	if (VARSIZE_ANY_EXHDR(secret) == 0 ||
		VARSIZE_ANY_EXHDR(secret) > SIGNATURE_MAX_SECRET)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("secret must have from 1 to %d bytes",
						SIGNATURE_MAX_SECRET)));
	return secret;
}

static void
check_secret(const char *scheme, const bytea *secret)
{
	SignatureKey key;
	bool		is_key = read_secret(scheme_named(scheme), secret, &key);

	explicit_bzero(&key, sizeof(key));
	if (!is_key)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("secret is not in base64"),
				 errdetail("One that begins with whsec_ must be.")));
}

static bool
verify_argument_secret(FunctionCallInfo fcinfo)
{
	char	   *scheme = scheme_argument(fcinfo, 0);
	bytea	   *secret = secret_argument(fcinfo, 1);
	TimestampTz as_of;
	Interval   *tolerance;

	check_secret(scheme, secret);
	verb_check_not_null(fcinfo, 2, "body");
	verb_check_not_null(fcinfo, 3, "headers");
	as_of = verb_as_of(fcinfo, 4);
	tolerance = tolerance_argument(fcinfo, 5);
	return signature_verify(scheme, secret, PG_GETARG_BYTEA_PP(2),
							PG_GETARG_JSONB_P(3), as_of, tolerance);
}

/*
 * cusown_verify_signature(scheme text, secret bytea, body bytea,
 *		headers jsonb, as_of timestamptz DEFAULT now(),
 *		tolerance interval DEFAULT '5 minutes') RETURNS boolean
 *
 * Whether the request bears a signature made with this secret.
 *
 * Errors: 22023 unknown scheme, or secret or tolerance out of range; 22004.
 *
 * Locks: none.
 *
 * Source: runbook "Payment Mismatch", step 2.
 */
Datum
cusown_verify_signature(PG_FUNCTION_ARGS)
{
	/* it holds the secret */
	ErrorContextCallback hide = {error_context_stack, verb_hide_statement, NULL};
	bool		is_valid;

	error_context_stack = &hide;
	is_valid = verify_argument_secret(fcinfo);
	error_context_stack = hide.previous;
	PG_RETURN_BOOL(is_valid);
}

/* ---------- stored secrets: asking ---------- */

/* a call of verify_signature_with_stored_secret() */
typedef struct StoredCall
{
	Datum		app_schema;
	const char *provider;
	const Scheme *scheme;
	const bytea *body;
	Claim		claim;
	bool		is_valid;
} StoredCall;

static void
try_secrets(void *state)
{
	StoredCall *call = state;
	Datum		values[3];
	uint64		rows;
	bool		isnull;

	values[0] = call->app_schema;
	values[1] = CStringGetTextDatum(call->provider);
	values[2] = TimestampTzGetDatum(GetCurrentTimestamp());
	rows = template_execute(NULL, &valid_secrets, values, NULL, true);
	for (uint64 row = 0; row < rows; row++)
	{
		Datum		secret = template_column(row, "secret", &isnull);

		call->is_valid |= is_signed(call->scheme, DatumGetByteaPP(secret),
									&call->claim, call->body);
	}
}

static bool
verify_stored_secret(FunctionCallInfo fcinfo)
{
	StoredCall	call = {0};
	TimestampTz as_of;
	Interval   *tolerance;

	verb_check_not_null(fcinfo, 0, "app_schema");
	call.app_schema = PG_GETARG_DATUM(0);
	call.provider = verb_provider(fcinfo, 1);
	call.scheme = scheme_named(scheme_argument(fcinfo, 2));
	verb_check_not_null(fcinfo, 3, "body");
	verb_check_not_null(fcinfo, 4, "headers");
	as_of = verb_as_of(fcinfo, 5);
	tolerance = tolerance_argument(fcinfo, 6);
	call.body = PG_GETARG_BYTEA_PP(3);
	if (read_claim(call.scheme, PG_GETARG_JSONB_P(4), as_of, tolerance,
				   &call.claim))
		verb_run(try_secrets, &call, false);
	return call.is_valid;
}

/*
 * cusown_ops.verify_signature_with_stored_secret(app_schema name,
 *		provider text, scheme text, body bytea, headers jsonb,
 *		as_of timestamptz DEFAULT now(),
 *		tolerance interval DEFAULT '5 minutes') RETURNS boolean
 *
 * Whether the request bears a signature made with a secret of the provider that
 * is valid by the clock.  SECURITY DEFINER: it reads what its caller may not.
 *
 * Errors: 22023 unknown scheme, or tolerance out of range; 22004.
 *
 * Locks: none.
 *
 * Source: runbook "Payment Mismatch", step 2.
 */
Datum
cusown_verify_signature_with_stored_secret(PG_FUNCTION_ARGS)
{
	/* it holds the body, with whoever paid */
	ErrorContextCallback hide = {error_context_stack, verb_hide_statement, NULL};
	bool		is_valid;

	error_context_stack = &hide;
	is_valid = verify_stored_secret(fcinfo);
	error_context_stack = hide.previous;
	PG_RETURN_BOOL(is_valid);
}

/* the same for C; the caller is connected to SPI */
bool
signature_verify_stored(const char *app_schema, const char *provider,
						const char *scheme, const bytea *body,
						const Jsonb *headers, TimestampTz as_of,
						const Interval *tolerance)
{
	Datum		values[7];
	bool		is_valid;

	values[0] = template_name(app_schema);
	values[1] = CStringGetTextDatum(provider);
	values[2] = CStringGetTextDatum(scheme);
	values[3] = PointerGetDatum(body);
	values[4] = PointerGetDatum(headers);
	values[5] = TimestampTzGetDatum(as_of);
	values[6] = IntervalPGetDatum(tolerance);
	template_execute(NULL, &ask_stored, values, NULL, false);
	is_valid = template_bool(0, "is_valid");
	SPI_freetuptable(SPI_tuptable);
	return is_valid;
}

/* ---------- stored secrets: setting ---------- */

/* adds the secret, unless it is the last one; since when it is that */
static TimestampTz
store_secret(const SecretCall *call, Datum app_schema)
{
	Datum		values[5];
	bool		isnull;

	values[0] = app_schema;
	values[1] = CStringGetTextDatum(call->provider);
	values[2] = call->secret;
	values[3] = TimestampTzGetDatum(call->valid_from);
	values[4] = IntervalPGetDatum(&call->overlap);
	if (template_execute(NULL, &already_set, values, NULL, false) > 0)
		return DatumGetTimestampTz(template_column(0, "valid_from", &isnull));
	template_execute(NULL, &add_secret, values, NULL, false);
	return call->valid_from;
}

static void
end_others(const SecretCall *call, Datum app_schema, TimestampTz since)
{
	Datum		values[4];

	values[0] = app_schema;
	values[1] = CStringGetTextDatum(call->provider);
	values[2] = TimestampTzGetDatum(since);
	values[3] = TimestampTzGetDatum(verb_after(call->valid_from, &call->overlap));
	template_execute(NULL, &end_earlier, values, NULL, false);
	values[2] = TimestampTzGetDatum(GetCurrentTimestamp());
	template_execute(NULL, &forget_ended, values, NULL, false);
}

static void
tell_secrets(const SecretCall *call, Datum app_schema)
{
	Datum		values[3] = {app_schema, CStringGetTextDatum(call->provider)};
	Datum		columns[3];
	bool		nulls[3] = {false};
	uint64		rows = template_execute(NULL, &told_secrets, values, NULL, false);

	columns[0] = values[1];
	for (uint64 row = 0; row < rows; row++)
	{
		columns[1] = template_column(row, "valid_from", &nulls[1]);
		columns[2] = template_column(row, "valid_until", &nulls[2]);
		tuplestore_putvalues(call->result->setResult, call->result->setDesc,
							 columns, nulls);
	}
}

static void
set_body(void *state)
{
	SecretCall *call = state;
	Datum		app_schema = template_name(binding_chosen_schema());

	template_execute(NULL, &lock_secrets, NULL, NULL, false);
	end_others(call, app_schema, store_secret(call, app_schema));
	tell_secrets(call, app_schema);
}

static void
take_moments(FunctionCallInfo fcinfo, SecretCall *call)
{
	verb_check_not_null(fcinfo, 2, "valid_from");
	call->valid_from = PG_GETARG_TIMESTAMPTZ(2);
	if (TIMESTAMP_NOT_FINITE(call->valid_from))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("valid_from must be finite")));
	verb_check_not_null(fcinfo, 3, "overlap");
	verb_check_interval(PG_GETARG_INTERVAL_P(3), "overlap");
	call->overlap.time = (int64) verb_interval_ms(PG_GETARG_INTERVAL_P(3)) * 1000;
}

static void
set_secret(FunctionCallInfo fcinfo)
{
	SecretCall	call = {0};

	verb_check_transaction("cusown_set_webhook_secret");
	call.provider = verb_provider(fcinfo, 0);
	call.secret = PointerGetDatum(secret_argument(fcinfo, 1));
	take_moments(fcinfo, &call);
	InitMaterializedSRF(fcinfo, 0);
	call.result = (ReturnSetInfo *) fcinfo->resultinfo;
	verb_run(set_body, &call, false);
}

/*
 * cusown_set_webhook_secret(provider text, secret bytea,
 *		valid_from timestamptz DEFAULT now(),
 *		overlap interval DEFAULT '24 hours')
 *		RETURNS TABLE (provider text, valid_from timestamptz,
 *			valid_until timestamptz)
 *
 * Sets a provider's secret; those before it stay valid until valid_from +
 * overlap.  Returns the provider's secrets, without themselves.
 *
 * Errors: 22023 provider, secret, valid_from or overlap out of range; 22004;
 * UO001; 42501 caller is not the owner; 25006; 0A000.
 *
 * Locks: cusown_ops.webhook_secret, against others who set a secret.
 *
 * Source: runbook "Payment Mismatch", step 2.
 */
Datum
cusown_set_webhook_secret(PG_FUNCTION_ARGS)
{
	/* it holds the secret */
	ErrorContextCallback hide = {error_context_stack, verb_hide_statement, NULL};

	error_context_stack = &hide;
	set_secret(fcinfo);
	error_context_stack = hide.previous;
	return (Datum) 0;
}
