/*-------------------------------------------------------------------------
 *
 * payment_evidence.c
 *	  What must be shown before a payment that was given up counts as paid.
 *
 * A payment that is failed or expired becomes completed by the event verify only
 * as a late capture, of which somebody else has to know: a line of a statement
 * of the provider's that is about this payment, or an operator who says why and
 * names the provider's payment.
 *
 * evidence is a JSON object.  Of it we read
 *
 * statement_line_id		a number: the line
 * verification_method		manual (where it is not said), polling or webhook
 *
 * and keep all of it in the audit rows.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/numeric.h"

#include "errors.h"
#include "payment.h"
#include "reconcile.h"
#include "statement.h"
#include "template.h"
#include "verb.h"

/* what the application puts in place of a reference that it does not know yet */
#define PLACEHOLDER "pending-"

/*
 * Whether the payment $1 is the one that a line is about, as reconciliation
 * matches them: $2 provider, $3 provider_ref, $4 order_ref and $5 receipt of the
 * line; $6 what the operator says that the provider calls it.  A line that tells
 * of another payment of ours by its reference is about that one; where several
 * share it, about one that is paid.
 */
static const Template line_is_about = {
	"SELECT FROM {payments} p WHERE p.{payments.id} = $1"
	"[ AND p.{payments.provider}::text = $2]"
	" AND (p.{payments.id} = $5"
	"[ OR p.{payments.provider_ref}::text = $3 OR $6 = $3]"
	"[ OR p.{payments.order_id}::text = $4]"
	"[ OR p.{payments.transaction_id}::text = $3])"
	"[ AND NOT EXISTS (SELECT FROM {payments} o"
	" WHERE o.{payments.provider_ref} = $3 AND o.{payments.id} <> $1"
	"[ AND o.{payments.provider}::text = $2]"
	" AND ((p.{payments.provider_ref}::text = $3) IS NOT TRUE"
	" OR " RECONCILE_COMPLETED("o.{payments.status}::text") "))]",
	6, {UUIDOID, TEXTOID, TEXTOID, TEXTOID, UUIDOID, TEXTOID}
};

static const char *const methods[] = {"manual", "polling", "webhook"};

static JsonbValue *
value_of(const PaymentCall *call, const char *key)
{
	if (call->evidence == NULL)
		return NULL;
	return getKeyJsonValueFromContainer(&call->evidence->root, key, strlen(key),
										NULL);
}

static const char *
read_method(const PaymentCall *call)
{
	const JsonbValue *value = value_of(call, "verification_method");

	if (value == NULL)
		return methods[0];
	for (int i = 0; value->type == jbvString && i < lengthof(methods); i++)
	{
		if (strlen(methods[i]) == value->val.string.len &&
			memcmp(methods[i], value->val.string.val,
				   value->val.string.len) == 0)
			return methods[i];
	}
	ereport(ERROR,
			(errcode(ERRCODE_CUSOWN_MALFORMED),
			 errmsg("verification_method of the evidence must be manual, polling or webhook")));
}

/* raises UO010 where it is not what it must be */
void
payment_read_evidence(PaymentCall *call)
{
	if (call->evidence != NULL && !JB_ROOT_IS_OBJECT(call->evidence))
		ereport(ERROR,
				(errcode(ERRCODE_CUSOWN_MALFORMED),
				 errmsg("evidence must be a JSON object")));
	call->method = read_method(call);
}

/* a fraction would be rounded to another line */
static bool
is_line_number(Numeric number)
{
	char	   *text = DatumGetCString(DirectFunctionCall1(numeric_out,
														   NumericGetDatum(number)));

	/* 18 digits are within int8 */
	return strlen(text) <= 18 && text[strspn(text, "0123456789")] == '\0';
}

/* false: the evidence names none */
static bool
read_statement_line(const PaymentCall *call, int64 *line)
{
	const JsonbValue *value = value_of(call, "statement_line_id");

	if (value == NULL || value->type == jbvNull)
		return false;
	if (value->type != jbvNumeric || !is_line_number(value->val.numeric))
		ereport(ERROR,
				(errcode(ERRCODE_CUSOWN_MALFORMED),
				 errmsg("statement_line_id of the evidence must be the number of a line")));
	*line = DatumGetInt64(DirectFunctionCall1(numeric_int8,
											  NumericGetDatum(value->val.numeric)));
	return true;
}

/* how many bytes of white space text begins with, as it is pasted */
static size_t
space_at(const char *text)
{
	/* a no-break space */
	if (GetDatabaseEncoding() == PG_UTF8 && strncmp(text, "\xC2\xA0", 2) == 0)
		return 2;
	return text[0] != '\0' && strchr(" \t\n\v\f\r", text[0]) != NULL;
}

/* without the white space around it; empty where there is nothing else */
char *
payment_trim(char *text)
{
	char	   *end;
	size_t		space;

	while ((space = space_at(text)) > 0)
		text	  +=space;
	end = text;

	for (char *at = text; *at != '\0'; at += Max(space, 1))
	{
		space = space_at(at);
		if (space == 0)
			end = at + 1;
	}
	*end = '\0';
	return text;
}

static bool
is_blank(const char *text)
{
	return text == NULL || payment_trim(pstrdup(text))[0] == '\0';
}

/* the application's own words, which the provider does not know */
bool
payment_ref_is_placeholder(const char *ref, const pg_uuid_t *id)
{
	const char *number = ref + strlen(PLACEHOLDER);

	if (pg_strncasecmp(ref, PLACEHOLDER, strlen(PLACEHOLDER)) == 0 &&
		number[strspn(number, "0123456789")] == '\0')
		return true;
	return pg_strcasecmp(ref, verb_uuid_text(id)) == 0;
}

static bool
is_about(const PaymentCall *call, const StatementEvidence *line)
{
	Datum		values[6];
	char		nulls[] = "      ";
	bool		found;

	values[0] = UUIDPGetDatum(&call->id);
	values[1] = CStringGetTextDatum(line->provider);
	values[2] = CStringGetTextDatum(line->provider_ref);
	nulls[3] = line->order_ref == NULL ? 'n' : ' ';
	values[3] = line->order_ref == NULL ? (Datum) 0 :
		CStringGetTextDatum(line->order_ref);
	nulls[4] = line->has_receipt ? ' ' : 'n';
	values[4] = UUIDPGetDatum(&line->receipt);
	nulls[5] = call->provider_ref == NULL ? 'n' : ' ';
	values[5] = call->provider_ref == NULL ? (Datum) 0 :
		CStringGetTextDatum(call->provider_ref);
	found = template_execute(call->binding, &line_is_about, values, nulls,
							 false) > 0;
	SPI_freetuptable(SPI_tuptable);
	return found;
}

/* the payment gets the line's reference, so that no other is verified by it */
static void
require_statement_line(PaymentCall *call, int64 id)
{
	StatementEvidence line;
	bool		shows_money = statement_line_shows_money(call->binding, id,
														 &line);

	if (shows_money && (call->is_matched || is_about(call, &line)))
	{
		if (call->provider_ref == NULL)
			call->provider_ref = line.provider_ref;
		return;
	}
	ereport(ERROR,
			(errcode(ERRCODE_CUSOWN_TRANSITION),
			 errmsg("cannot verify payment %s, which is %s",
					verb_uuid_text(&call->id), call->status.text),
			 shows_money ?
			 errdetail("Statement line " INT64_FORMAT ", which is given as evidence, is not about this payment.",
					   id) :
			 errdetail("Statement line " INT64_FORMAT ", which is given as evidence, does not exist, or does not say that money came.",
					   id),
			 errhint("Without statement_line_id, a reason and the provider's reference are evidence too.")));
}

/* raises UO003 where nothing shows that the money came after all */
void
payment_require_evidence(PaymentCall *call)
{
	int64		line;

	if (read_statement_line(call, &line))
	{
		require_statement_line(call, line);
		return;
	}
	if (!is_blank(call->reason) && call->provider_ref != NULL &&
		!payment_ref_is_placeholder(call->provider_ref, &call->id))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_CUSOWN_TRANSITION),
			 errmsg("cannot verify payment %s, which is %s",
					verb_uuid_text(&call->id), call->status.text),
			 errdetail("A payment that was given up is verified by evidence only."),
			 errhint("Look it up at the provider, then give reason and provider_ref, which is the provider's own reference.")));
}
