/*-------------------------------------------------------------------------
 *
 * payment_evidence.c
 *	  What must be shown before a payment that was given up counts as paid.
 *
 * A payment that is failed or expired becomes completed by the event verify only
 * as a late capture, of which somebody else has to know: a line of a statement
 * of the provider's, or an operator who says why and names the provider's
 * payment.
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

#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/numeric.h"

#include "errors.h"
#include "payment.h"
#include "statement.h"
#include "verb.h"

/* what the application puts in place of a reference that it does not know yet */
#define PLACEHOLDER "pending-"

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

static bool
is_blank(const char *text)
{
	return text == NULL || text[strspn(text, " \t\r\n")] == '\0';
}

/* the application's own words, which the provider does not know */
bool
payment_ref_is_placeholder(const char *ref, const pg_uuid_t *id)
{
	const char *number = ref + strlen(PLACEHOLDER);

	if (strncmp(ref, PLACEHOLDER, strlen(PLACEHOLDER)) == 0 &&
		number[strspn(number, "0123456789")] == '\0')
		return true;
	return pg_strcasecmp(ref, verb_uuid_text(id)) == 0;
}

/* raises UO003 where nothing shows that the money came after all */
void
payment_require_evidence(const PaymentCall *call)
{
	int64		line;

	if (read_statement_line(call, &line))
	{
		if (statement_line_shows_money(call->binding, line))
			return;
		ereport(ERROR,
				(errcode(ERRCODE_CUSOWN_TRANSITION),
				 errmsg("cannot verify payment %s, which is %s",
						verb_uuid_text(&call->id), call->status.text),
				 errdetail("Statement line " INT64_FORMAT ", which is given as evidence, does not exist, or does not say that money came.",
						   line),
				 errhint("Without statement_line_id, a reason and the provider's reference are evidence too.")));
	}
	if (!is_blank(call->reason) && !is_blank(call->provider_ref) &&
		!payment_ref_is_placeholder(call->provider_ref, &call->id))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_CUSOWN_TRANSITION),
			 errmsg("cannot verify payment %s, which is %s",
					verb_uuid_text(&call->id), call->status.text),
			 errdetail("A payment that was given up is verified by evidence only."),
			 errhint("Look it up at the provider, then give reason and provider_ref, which is the provider's own reference.")));
}
