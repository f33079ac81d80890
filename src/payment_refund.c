/*-------------------------------------------------------------------------
 *
 * payment_refund.c
 *	  What the refunds of a payment add up to.
 *
 * Refunds with a reference add up, each once.  An amount without one is the
 * provider's figure for all refunds so far, of which the greatest counts.  What
 * is refunded is the greater of the two, in whatever order they come: a figure
 * holds refunds that are told with their references before or after it, and none
 * of them counts twice.  One that it holds not yet counts with the next figure, or
 * when all references are known.  Never more than was paid.  A refund of what is
 * left says that all is refunded, which is a figure, and not how much it is itself:
 * its reference is kept with 0, until its amount is told.
 *
 * The total is the payment's own, where the application has a column for it; what
 * the application itself has put there is a figure.  The references are in
 * cusown_ops.payment_refund: the application has no place for them that keeps one
 * from being there twice.  A row there with an empty reference holds the greatest
 * figure, so that our rows tell the total where the application has no column.
 *
 * Whoever is here holds the payment's lock, so nobody else writes its rows.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "common/int.h"
#include "utils/builtins.h"

#include "compat.h"
#include "errors.h"
#include "payment.h"
#include "template.h"
#include "verb.h"

/* of the greatest figure */
#define NO_REFERENCE ""

/* of the payment $2 of the application $1, $3 reference */
static const Template read_refunds = {
	"SELECT COALESCE((pg_catalog.sum(r.amount)"
	" FILTER (WHERE r.refund_ref <> ''))::int8, 0) AS told,"
	" COALESCE(pg_catalog.max(r.amount)"
	" FILTER (WHERE r.refund_ref = ''), 0) AS figure,"
	" pg_catalog.max(r.amount) FILTER (WHERE r.refund_ref = $3) AS known"
	" FROM cusown_ops.payment_refund r"
	" WHERE r.app_schema = $1 AND r.payment_id = $2",
	3, {NAMEOID, UUIDOID, TEXTOID}
};

static const Template add_refund = {
	"INSERT INTO cusown_ops.payment_refund AS r"
	" (app_schema, payment_id, refund_ref, amount) VALUES ($1, $2, $3, $4)"
	" ON CONFLICT (app_schema, payment_id, refund_ref)"
	" DO UPDATE SET amount := GREATEST(r.amount, excluded.amount)",
	4, {NAMEOID, UUIDOID, TEXTOID, INT8OID}
};

bool
payment_is_refund(const char *event)
{
	return strcmp(event, EVENT_REFUND) == 0 ||
		strcmp(event, EVENT_PARTIAL_REFUND) == 0;
}

/*
 * What our own table says; false where the reference is not known, or its amount
 * was not told before.
 */
static bool
read_known(PaymentCall *call, int64 *known)
{
	Datum		values[3];
	char		nulls[] = "   ";
	bool		isnull;

	values[0] = template_name(call->binding->app_schema);
	values[1] = UUIDPGetDatum(&call->id);
	nulls[2] = call->refund_ref == NULL ? 'n' : ' ';
	values[2] = call->refund_ref == NULL ? (Datum) 0 :
		CStringGetTextDatum(call->refund_ref);
	template_execute(NULL, &read_refunds, values, nulls, false);
	call->told = DatumGetInt64(template_column(0, "told", &isnull));
	call->figure = DatumGetInt64(template_column(0, "figure", &isnull));
	if (binding_column(call->binding, "payments", "refund_amount") == NULL)
		call->refunded = Max(call->told, call->figure);
	*known = DatumGetInt64(template_column(0, "known", &isnull));
	SPI_freetuptable(SPI_tuptable);
	return !isnull && (*known > 0 || !call->has_refund_amount);
}

pg_noreturn static void
too_much(const PaymentCall *call)
{
	ereport(ERROR,
			(errcode(ERRCODE_CUSOWN_MISMATCH),
			 errmsg("payment %s cannot be refunded by more than its amount",
					verb_uuid_text(&call->id)),
			 errdetail("Of " INT64_FORMAT " are refunded " INT64_FORMAT ", and would be " INT64_FORMAT ".",
					   call->amount, call->refunded, call->total)));
}

/* what is refunded as far as we know, before this refund */
static int64
known_total(const PaymentCall *call)
{
	int64		total = Max(call->refunded, Max(call->told, call->figure));

	if (call->has_amount && strcmp(call->status.text, "refunded") == 0)
		total = Max(total, call->amount);
	return total;
}

static void
add_up(PaymentCall *call)
{
	int64		known = known_total(call);

	call->has_total = true;
	call->total = known;
	if (!call->has_refund_amount)
	{
		/* the rest, as far as we know how much that is */
		call->has_total = call->has_amount;
		call->total = call->has_amount ? Max(call->amount, known) :
			call->refunded;
	}
	else if (call->refund_ref == NULL)
		call->total = Max(known, call->refund_amount);
	if (call->refund_ref == NULL)
		return;
	if (pg_add_s64_overflow(call->told, call->refund_amount, &call->told))
		ereport(ERROR,
				(errcode(ERRCODE_CUSOWN_MISMATCH),
				 errmsg("the refunds of payment %s add up to more than a payment can be",
						verb_uuid_text(&call->id))));
	call->total = Max(call->total, call->told);
}

/* a refund is whole when nothing is left, whatever it is called */
static void
check_total(PaymentCall *call)
{
	if (!call->has_amount)
		return;
	if (call->total > call->amount)
		too_much(call);
	if (call->total == call->amount)
		call->event = EVENT_REFUND;
	else if (strcmp(call->event, EVENT_REFUND) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_CUSOWN_MISMATCH),
				 errmsg("payment %s would not be refunded wholly",
						verb_uuid_text(&call->id)),
				 errdetail("Of " INT64_FORMAT " would be refunded " INT64_FORMAT ".",
						   call->amount, call->total),
				 errhint("The event of a refund that leaves something is partial_refund.")));
}

/*
 * What a refund makes of the payment: its total, and whether it is whole.  False
 * where its reference says that it was told before; raises UO008 where it does
 * not fit.
 */
bool
payment_weigh_refund(PaymentCall *call)
{
	int64		known;

	if (read_known(call, &known))
	{
		if (call->has_refund_amount && call->refund_amount != known)
			ereport(ERROR,
					(errcode(ERRCODE_CUSOWN_MISMATCH),
					 errmsg("refund \"%s\" of payment %s is known with another amount",
							call->refund_ref, verb_uuid_text(&call->id)),
					 errdetail("It is known with " INT64_FORMAT ", and told now with " INT64_FORMAT ".",
							   known, call->refund_amount)));
		return false;
	}
	add_up(call);
	check_total(call);
	return true;
}

static void
remember(const PaymentCall *call, const char *reference, int64 amount)
{
	Datum		values[4];

	values[0] = template_name(call->binding->app_schema);
	values[1] = UUIDPGetDatum(&call->id);
	values[2] = CStringGetTextDatum(reference);
	values[3] = Int64GetDatum(amount);
	template_execute(NULL, &add_refund, values, NULL, false);
}

/* behind the change; also where a figure has held the refund already */
void
payment_remember_refund(const PaymentCall *call)
{
	if (call->refund_ref != NULL)
		remember(call, call->refund_ref, call->refund_amount);
	if (Max(call->told, call->figure) < call->total)
		remember(call, NO_REFERENCE, call->total);
}
