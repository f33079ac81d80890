/*-------------------------------------------------------------------------
 *
 * reconcile_attention.c
 *	  What reconciliation puts on the worklist, and whether it still holds.
 *
 * One kind for each class of findings that a human must see: about the payment,
 * or, where that is not known or has enough of its own, about the line.  A line
 * has a number; the worklist knows it by an id that is made of that.
 *
 * Every run that applies rechecks the open entries of all kinds, those of other
 * statements too: against the newest line that tells of the payment, whichever
 * statement that is in.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"

#include "reconcile.h"

static const AttentionKind status_mismatch = {
	"reconcile_status_mismatch", ENTITY_PAYMENT, "payment_mismatch"
};
static const AttentionKind amount_mismatch = {
	"reconcile_amount_mismatch", ENTITY_PAYMENT, "payment_mismatch"
};
static const AttentionKind currency_mismatch = {
	"reconcile_currency_mismatch", ENTITY_PAYMENT, "payment_mismatch"
};
static const AttentionKind refund_mismatch = {
	"reconcile_refund_mismatch", ENTITY_PAYMENT, "payment_mismatch"
};
static const AttentionKind missing_at_provider = {
	"reconcile_missing_at_provider", ENTITY_PAYMENT, "payment_mismatch"
};
static const AttentionKind missing_in_app = {
	"reconcile_missing_in_app", ENTITY_STATEMENT_LINE, "payment_mismatch"
};
static const AttentionKind duplicate_capture = {
	"reconcile_duplicate_capture", ENTITY_STATEMENT_LINE, "payment_mismatch"
};

static const AttentionKind *const kinds[] = {
	&status_mismatch, &amount_mismatch, &currency_mismatch, &refund_mismatch,
	&missing_at_provider, &missing_in_app, &duplicate_capture
};

#define KIND_PREFIX "reconcile_"

/* ---------- statements ---------- */

/* a provider tells of its own payments only; where that is bound */
#define OF_PROVIDER(line, provider) \
	"(" provider " IS NULL OR (SELECT s.provider FROM cusown_ops.statement s" \
	" WHERE s.app_schema = $1 AND s.id = " line ".statement_id) = " provider ")"

/* lines about p; how they are known */
#define LINE_ABOUT(how, condition) \
	"SELECT l.status, l.amount, l.currency, l.provider_ref, l.at, l.id," \
	" " how " AS how FROM cusown_ops.statement_line l WHERE l.app_schema = $1" \
	" AND l.kind = 'payment' AND " condition " AND " \
	OF_PROVIDER("l", "p.provider")

/* what all statements of the provider tell of the refunds of l, each once */
#define TOLD_REFUNDS(provider) \
	"GREATEST(COALESCE((SELECT (pg_catalog.sum(d.amount))::int8" \
	" FROM (SELECT DISTINCT ON (r.reference) r.reference, r.amount" \
	" FROM cusown_ops.statement_line r WHERE r.app_schema = $1" \
	" AND r.provider_ref = l.provider_ref AND r.kind = 'refund'" \
	" AND (l.currency IS NULL OR r.currency = l.currency)" \
	" AND " OF_PROVIDER("r", provider) \
	" ORDER BY r.reference) d), 0)," \
	" COALESCE((SELECT pg_catalog.max(r.refunded)" \
	" FROM cusown_ops.statement_line r WHERE r.app_schema = $1" \
	" AND r.provider_ref = l.provider_ref AND r.kind = 'payment'" \
	" AND " OF_PROVIDER("r", provider) "), 0))"

#define OUR_REFUNDS \
	"CASE WHEN p.status = 'refunded' THEN" \
	" GREATEST(COALESCE(p.amount, 0), COALESCE(p.refunded, 0))" \
	" ELSE COALESCE(p.refunded, " RECONCILE_REFUNDS_TOLD("p.id") ", 0) END"

/*
 * Of the payments $3, which are gathered; $1 app_schema, $2 kind.  The line that
 * counts is chosen as by reconcile_match.c, the newest of those that are alike.
 */
static const Template still_mismatched = {
	"WITH " RECONCILE_AGAIN
	" SELECT p.id FROM app_payment p LEFT JOIN LATERAL (SELECT n.* FROM ("
	LINE_ABOUT("1", "l.provider_ref = p.provider_ref") " UNION ALL "
	LINE_ABOUT("2", "l.order_ref = p.order_ref") " UNION ALL "
	LINE_ABOUT("2", "l.receipt = p.id") " UNION ALL "
	LINE_ABOUT("3", "l.provider_ref = p.transaction_id") ") n"
	" ORDER BY n.status <> 'completed', n.how, n.at DESC, n.id DESC LIMIT 1) l"
	" ON true WHERE p.id = ANY ($3) AND CASE"
	" WHEN $2 = 'reconcile_missing_at_provider' THEN (l.id IS NULL"
	" OR EXISTS (SELECT FROM again a WHERE a.id = p.id)) AND " RECONCILE_COMPLETED("p.status")
	" WHEN l.id IS NULL AND NOT EXISTS (SELECT"
	" FROM cusown_ops.statement_line r WHERE r.app_schema = $1"
	" AND r.provider_ref = p.provider_ref) THEN false"
	" WHEN $2 = 'reconcile_amount_mismatch' THEN"
	" (l.amount = p.amount) IS NOT TRUE"
	" WHEN $2 = 'reconcile_currency_mismatch' THEN"
	" (l.currency = p.currency) IS NOT TRUE OR EXISTS (SELECT"
	" FROM cusown_ops.statement_line r WHERE r.app_schema = $1"
	" AND r.provider_ref = COALESCE(l.provider_ref, p.provider_ref)"
	" AND r.kind = 'refund' AND r.currency <> p.currency"
	" AND " OF_PROVIDER("r", "p.provider") ")"
	" WHEN $2 = 'reconcile_refund_mismatch' THEN COALESCE((SELECT"
	" " TOLD_REFUNDS("p.provider") " FROM (SELECT"
	" COALESCE(l.provider_ref, p.provider_ref) AS provider_ref,"
	" COALESCE(p.currency, l.currency) AS currency) l), 0) <> " OUR_REFUNDS
	" WHEN l.status = 'completed' THEN NOT (" RECONCILE_COMPLETED("p.status") ")"
	" WHEN l.status = 'processing' THEN " RECONCILE_COMPLETED("p.status")
	" ELSE NOT (" RECONCILE_GIVEN_UP("p.status") ") END",
	3, {NAMEOID, TEXTOID, UUIDARRAYOID}
};

#define KNOWN(condition) \
	"EXISTS (SELECT FROM app_payment p WHERE " condition \
	" AND (p.provider IS NULL OR p.provider = l.provider))"

/* of the lines $2 those that no payment gathered is known for; $3 kind */
static const Template still_unknown = {
	"SELECT l.id FROM (SELECT l.*, (SELECT s.provider FROM cusown_ops.statement s"
	" WHERE s.app_schema = $1 AND s.id = l.statement_id) AS provider"
	" FROM cusown_ops.statement_line l WHERE l.app_schema = $1"
	" AND l.id = ANY ($2)) l WHERE NOT " KNOWN("p.provider_ref = l.provider_ref")
	" AND CASE WHEN $3 = 'reconcile_missing_in_app' THEN"
	" NOT " KNOWN("p.order_ref = l.order_ref")
	" AND NOT " KNOWN("p.id = l.receipt")
	" AND NOT " KNOWN("p.transaction_id = l.provider_ref")
	" ELSE " TOLD_REFUNDS("l.provider") " < l.amount END",
	3, {NAMEOID, INT8ARRAYOID, TEXTOID}
};

/* ---------- lines as entities ---------- */

/* the last six bytes are the number */
#define LINE_BYTES 6

pg_uuid_t
reconcile_line_entity(int64 line)
{
	pg_uuid_t	id = {{0}};

	for (int i = 0; i < LINE_BYTES; i++)
		id.data[UUID_LEN - 1 - i] = (unsigned char) (line >> (8 * i));
	return id;
}

static int64
line_of(const pg_uuid_t *id)
{
	int64		line = 0;

	for (int i = LINE_BYTES; i > 0; i--)
		line = (line << 8) | id->data[UUID_LEN - i];
	return line;
}

static Datum
lines_of(const UuidList *ids)
{
	Datum	   *lines = palloc(ids->count * sizeof(Datum));

	for (int i = 0; i < ids->count; i++)
		lines[i] = Int64GetDatum(line_of(&ids->items[i]));
	return PointerGetDatum(construct_array(lines, ids->count, INT8OID,
										   sizeof(int64), FLOAT8PASSBYVAL,
										   TYPALIGN_DOUBLE));
}

/* ---------- whether it still holds ---------- */

static void
payments_still_there(Binding *binding, const AttentionKind *kind,
					 const UuidList *ids, UuidList *there)
{
	Datum		values[3];
	Tuplestorestate *payments;
	uint64		rows;

	values[0] = template_name(binding->app_schema);
	values[1] = CStringGetTextDatum(kind->name);
	values[2] = uuid_list_datum(ids);
	payments = reconcile_gather_some(binding, ids);
	rows = template_execute(NULL, &still_mismatched, values, NULL, false);
	uuid_list_append_column(there, rows, "id");
	SPI_freetuptable(SPI_tuptable);
	reconcile_let_go(payments);
}

static void
lines_still_there(Binding *binding, const AttentionKind *kind,
				  const UuidList *ids, UuidList *there)
{
	Datum		values[3];
	Tuplestorestate *payments;
	uint64		rows;

	values[0] = template_name(binding->app_schema);
	values[1] = lines_of(ids);
	values[2] = CStringGetTextDatum(kind->name);
	payments = reconcile_gather_named(binding, values[1]);
	rows = template_execute(NULL, &still_unknown, values, NULL, false);
	for (uint64 row = 0; row < rows; row++)
	{
		bool		isnull;
		pg_uuid_t	id = reconcile_line_entity(DatumGetInt64(template_column(row, "id", &isnull)));

		uuid_list_append(there, &id);
	}
	SPI_freetuptable(SPI_tuptable);
	reconcile_let_go(payments);
}

/* AttentionStillThere */
static void
still_there(Binding *binding, const AttentionKind *kind, const UuidList *ids,
			UuidList *there)
{
	if (ids->count == 0 || binding_relation(binding, "payments") == NULL)
		return;
	if (strcmp(kind->entity, ENTITY_PAYMENT) == 0)
		payments_still_there(binding, kind, ids, there);
	else
		lines_still_there(binding, kind, ids, there);
}

void
reconcile_recheck(Binding *binding)
{
	int			level = reconcile_plan_to_hash();

	for (int i = 0; i < lengthof(kinds); i++)
		attention_recheck(binding, kinds[i], still_there);
	AtEOXact_GUC(true, level);
}

/* NULL: a human need not see it */
const AttentionKind *
reconcile_kind(const char *class)
{
	for (int i = 0; i < lengthof(kinds); i++)
	{
		if (strcmp(kinds[i]->name + strlen(KIND_PREFIX), class) == 0)
			return kinds[i];
	}
	return NULL;
}
