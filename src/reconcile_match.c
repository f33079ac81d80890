/*-------------------------------------------------------------------------
 *
 * reconcile_match.c
 *	  Which line of a statement is which payment, and whether they agree.
 *
 * No statement touches the application's tables and ours.  So the payments are
 * read first, by a stream, into a tuplestore, which goes to disk where it does
 * not fit into work_mem; the second statement joins it, under the name
 * app_payment as a trigger's transition table has one, with the lines.  Of a
 * short statement only the payments that it could be about are read.
 *
 * A line is matched by provider_ref; what is left by order_ref, which is the
 * application's order or its own id of the payment; what is still left by the
 * UPI transaction.  One big hash join does the first, and lets through only what
 * does not agree; everything after it works on those few.  Of payments that
 * share a reference only one counts, a completed one first.  Of lines that are
 * about one payment a completed one counts; another completed one is a duplicate
 * capture, until it is refunded, and one that failed is an attempt, which is no
 * finding.
 *
 * The planner knows nothing of a tuplestore but what we say of its size, once
 * and for all, as plans are kept: it is said to be big, so that it is hashed and
 * never looped over.  What is asked of our own tables for single rows is in
 * scalar subqueries, which go by an index.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/queryenvironment.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "payment_ref.h"
#include "reconcile.h"

/* the name of the tuplestore; see the templates */
#define STORE_NAME "app_payment"

#define MATCH_ARGS 8

/* payments that it is said to hold */
#define STORE_ROWS 1000000

/* lines up to which only the payments that they could be about are read */
#define FEW_LINES 10000

/* ---------- the application's payments ---------- */

/* what is not bound is null, who has no provider has none's name; a currency is compared in upper case */
#define PAYMENT_COLUMNS \
	"p.{payments.id} AS id, p.{payments.status}::text AS status," \
	" COALESCE([COALESCE(p.{payments.provider}::text, ''::text), ]NULL::text)" \
	" AS provider," \
	" COALESCE([p.{payments.provider_ref}::text, ]NULL::text) AS provider_ref," \
	" COALESCE([p.{payments.order_id}::text, ]NULL::text) AS order_ref," \
	" COALESCE([p.{payments.transaction_id}::text, ]NULL::text)" \
	" AS transaction_id," \
	" COALESCE([p.{payments.amount}::int8, ]NULL::int8) AS amount," \
	" COALESCE([pg_catalog.upper(p.{payments.currency}::text" \
	" COLLATE pg_catalog.\"C\"), ]NULL::text)" \
	" AS currency," \
	" COALESCE([p.{payments.refund_amount}::int8, ]NULL::int8) AS refunded," \
	" COALESCE([p.{payments.refunded_at}, ]NULL::timestamptz) AS refunded_at," \
	" p.{payments.created_at} AS created_at"

/* $1 provider */
#define OF_PROVIDER \
	"$1 IS NOT NULL[ AND p.{payments.provider}::text = $1]"

static const Template all_payments = {
	"SELECT " PAYMENT_COLUMNS " FROM {payments} p WHERE " OF_PROVIDER,
	1, {TEXTOID}
};

/* $2 provider_refs, $3 order_refs, $4 receipts; created from $5 until $6 */
static const Template payments_of_lines = {
	"SELECT " PAYMENT_COLUMNS " FROM {payments} p WHERE " OF_PROVIDER
	" AND ((p.{payments.created_at} >= $5 AND p.{payments.created_at} < $6)"
	" OR p.{payments.id} = ANY ($4)"
	"[ OR p.{payments.provider_ref} = ANY ($2)]"
	"[ OR p.{payments.order_id} = ANY ($3)]"
	"[ OR p.{payments.transaction_id} = ANY ($2)])",
	6, {TEXTOID, TEXTARRAYOID, TEXTARRAYOID, UUIDARRAYOID, TIMESTAMPTZOID, TIMESTAMPTZOID}
};

/* $1 payments, with those that share a reference with one of them */
static const Template payments_by_id = {
	"SELECT " PAYMENT_COLUMNS " FROM {payments} p"
	" WHERE p.{payments.id} = ANY (SELECT pg_catalog.unnest($1)"
	"[ UNION ALL SELECT s.{payments.id} FROM {payments} o JOIN {payments} s"
	" ON s.{payments.provider_ref} = o.{payments.provider_ref}"
	" WHERE o.{payments.id} = ANY ($1)])",
	1, {UUIDARRAYOID}
};

/* $1 provider_refs, $2 order_refs, $3 receipts */
static const Template payments_named = {
	"SELECT " PAYMENT_COLUMNS " FROM {payments} p"
	" WHERE p.{payments.id} = ANY ($3)"
	"[ OR p.{payments.provider_ref} = ANY ($1)]"
	"[ OR p.{payments.order_id} = ANY ($2)]"
	"[ OR p.{payments.transaction_id} = ANY ($1)]",
	3, {TEXTARRAYOID, TEXTARRAYOID, UUIDARRAYOID}
};

/* what lines of the application $1 name */
#define NAMES_OF_LINES(condition) \
	"SELECT COALESCE(pg_catalog.array_agg(l.provider_ref::text), '{}')" \
	" AS provider_refs, COALESCE(pg_catalog.array_agg(l.order_ref::text)" \
	" FILTER (WHERE l.order_ref IS NOT NULL), '{}') AS order_refs," \
	" COALESCE(pg_catalog.array_agg(l.receipt)" \
	" FILTER (WHERE l.receipt IS NOT NULL), '{}') AS receipts" \
	" FROM cusown_ops.statement_line l" \
	" WHERE l.app_schema = $1 AND " condition

static const Template names_of_statement = {
	NAMES_OF_LINES("l.statement_id = $2"),
	2, {NAMEOID, INT8OID}
};

static const Template names_of_some = {
	NAMES_OF_LINES("l.id = ANY ($2)"),
	2, {NAMEOID, INT8ARRAYOID}
};

/* ---------- lines and payments ---------- */

#define IS_OPEN(status) \
	"(" status " = ANY ('{initiated,pending,processing}'::text[])) IS TRUE"

#define LINES(kind) \
	"(SELECT l.* FROM cusown_ops.statement_line l WHERE l.app_schema = $1" \
	" AND l.statement_id = $2 AND l.kind = '" kind "')"

/*
 * The arguments: $1 app_schema, $2 statement, $3 its provider, $4 what is later
 * is young, $5 amounts and $6 currencies are known, $7 $8 the period.
 */
#define ARGS \
	MATCH_ARGS, {NAMEOID, INT8OID, TEXTOID, TIMESTAMPTZOID, BOOLOID, BOOLOID, TIMESTAMPTZOID, TIMESTAMPTZOID}

/* payments at the provider, each with its refunds in this statement */
#define ITEMS \
	"WITH item AS NOT MATERIALIZED (SELECT" \
	" COALESCE(l.id, r.line_id) AS line_id, l.id IS NOT NULL AS is_payment," \
	" COALESCE(l.provider_ref, r.provider_ref) AS provider_ref," \
	" COALESCE(l.order_ref, r.order_ref) AS order_ref," \
	" COALESCE(l.receipt, r.receipt) AS receipt," \
	" COALESCE(l.status, 'completed') AS status, l.amount AS amount," \
	" COALESCE(l.currency, r.currency) AS currency," \
	" (r.currency <> r.other_currency OR l.currency <> r.currency) IS TRUE" \
	" AS is_mixed," \
	" COALESCE(l.at, r.at) AS at, l.refunded AS figure," \
	" COALESCE(l.refunded, r.total) AS refunded" \
	" FROM " LINES("payment") " l FULL JOIN (SELECT r.provider_ref," \
	" pg_catalog.min(r.id) AS line_id," \
	" (pg_catalog.sum(r.amount))::int8 AS total," \
	" pg_catalog.min(r.currency) AS currency," \
	" pg_catalog.max(r.currency) AS other_currency," \
	" pg_catalog.min(r.order_ref) AS order_ref," \
	" (pg_catalog.array_agg(r.receipt))[1] AS receipt," \
	" pg_catalog.min(r.at) AS at" \
	" FROM " LINES("refund") " r GROUP BY r.provider_ref) r" \
	" ON r.provider_ref = l.provider_ref),"

/* payments of ours; one that repeats a reference is not matched by it */
#define PAYMENTS \
	" " RECONCILE_AGAIN "," \
	" pay AS NOT MATERIALIZED (SELECT p.*," \
	" CASE WHEN NOT EXISTS (SELECT FROM again a WHERE a.id = p.id)" \
	" THEN p.provider_ref END AS match_ref FROM app_payment p),"

#define OUR_COLUMNS \
	"p.id AS payment_id, p.status AS our_status, p.provider_ref AS our_ref," \
	" p.amount AS our_amount, p.currency AS our_currency," \
	" p.refunded AS our_refunded, p.refunded_at AS refunded_at," \
	" p.created_at AS created_at, p.order_ref AS our_order," \
	" p.transaction_id AS our_transaction"

/* most do: those are let go at once */
#define AGREES \
	"(i.is_payment AND i.status = 'completed' AND p.status = 'completed'" \
	" AND (NOT $5 OR i.amount = p.amount)" \
	" AND (NOT $6 OR i.currency = p.currency)" \
	" AND COALESCE(i.refunded, 0) = 0 AND COALESCE(p.refunded, 0) = 0)" \
	" IS TRUE"

#define BY_REFERENCE \
	" joined AS NOT MATERIALIZED (SELECT i.*, " OUR_COLUMNS ", " \
	AGREES " AS agrees" \
	" FROM item i FULL JOIN pay p ON p.match_ref = i.provider_ref)," \
	" one AS MATERIALIZED (SELECT j.line_id, j.is_payment, j.provider_ref," \
	" j.order_ref, j.receipt, j.status, j.amount, j.currency, j.is_mixed, j.at," \
	" j.figure, j.refunded, j.payment_id, j.our_status, j.our_ref," \
	" j.our_amount, j.our_currency, j.our_refunded, j.refunded_at," \
	" j.created_at, j.our_order, j.our_transaction, 1 AS how FROM joined j WHERE NOT j.agrees" \
	" AND (j.line_id IS NOT NULL OR (j.created_at >= $7" \
	" AND j.created_at < $8 AND " RECONCILE_COMPLETED("j.our_status") "))),"

/* the last conditions always hold; they tell the planner that these are few */
#define IS_LEFT_OVER \
	"o.payment_id IS NULL AND (o.line_id % 1) = 0 AND (o.line_id / 1) = o.line_id"

#define NAMED_BY(column) "ANY (SELECT o." column " FROM one o WHERE " IS_LEFT_OVER ")"

#define LEFT_OVER(how, payments, condition) \
	"SELECT o.line_id, o.is_payment, o.provider_ref, o.order_ref, o.receipt," \
	" o.status, o.amount, o.currency, o.is_mixed, o.at, o.figure, o.refunded, " \
	OUR_COLUMNS ", " how " AS how FROM one o JOIN " payments " p ON " \
	condition " WHERE " IS_LEFT_OVER

/*
 * Of several the one that still waits for its money, the newest first; of an
 * order that is chosen before lines are joined: what stands for no order may be
 * that of thousands on both sides.
 */
#define BY_OTHERS \
	" named AS MATERIALIZED (SELECT p.* FROM app_payment p" \
	" WHERE p.order_ref = " NAMED_BY("order_ref") \
	" OR p.id = " NAMED_BY("receipt") \
	" OR p.transaction_id = " NAMED_BY("provider_ref") ")," \
	" by_order AS MATERIALIZED (SELECT p.* FROM (SELECT p.*," \
	" pg_catalog.row_number() OVER (PARTITION BY p.order_ref ORDER BY " \
	RECONCILE_COMPLETED("p.status") ", p.created_at DESC, p.id) AS place" \
	" FROM named p WHERE EXISTS (SELECT FROM one o" \
	" WHERE o.order_ref = p.order_ref AND " IS_LEFT_OVER ")) p" \
	" WHERE p.place < 2)," \
	" two AS (SELECT t.*, pg_catalog.row_number() OVER (PARTITION BY" \
	" t.line_id ORDER BY t.how, " RECONCILE_COMPLETED("t.our_status") "," \
	" t.created_at DESC, t.payment_id) AS n FROM (" \
	LEFT_OVER("2", "by_order", "p.order_ref = o.order_ref") " UNION ALL " \
	LEFT_OVER("2", "named", "p.id = o.receipt") " UNION ALL " \
	LEFT_OVER("3", "named", "p.transaction_id = o.provider_ref") ") t),"

/*
 * What the statements of the provider tell.  Whose a statement is is asked of
 * each line: joined, it would be looked at from the wrong end.
 */
#define TOLD(columns, condition) \
	"SELECT " columns " FROM cusown_ops.statement_line o" \
	" WHERE o.app_schema = $1 AND " condition \
	" AND (SELECT s.provider FROM cusown_ops.statement s" \
	" WHERE s.app_schema = $1 AND s.id = o.statement_id) = $3"

/*
 * One statement tells of both: of the payment, as paid, by the reference that we
 * have, and of this.  Two statements may name one payment in two ways.
 */
#define TOLD_BESIDE \
	"c.our_ref <> c.provider_ref AND (" TOLD("true", "o.provider_ref = c.our_ref" \
	" AND o.kind = 'payment' AND o.status = 'completed' AND EXISTS (SELECT" \
	" FROM cusown_ops.statement_line d WHERE d.app_schema = $1" \
	" AND d.statement_id = o.statement_id AND d.kind = 'payment'" \
	" AND d.reference = c.provider_ref)") " LIMIT 1)"

/* it has the provider's own reference, and that is another one */
#define HAS_ANOTHER_REF \
	"c.our_ref <> c.provider_ref" \
	" AND c.our_ref !~* " PAYMENT_REF_PLACEHOLDER \
	" AND " PAYMENT_REF_BARE("c.our_ref") " <> c.payment_id::text"

/*
 * What the provider has another name for: a second capture of what was paid
 * already, or an attempt that was given up before the one that we know.
 */
#define ABOUT_ANOTHER \
	"(c.how > 1 AND CASE WHEN " RECONCILE_COMPLETED("c.our_status") \
	" THEN (c.how = 2 AND " HAS_ANOTHER_REF ") OR (" TOLD_BESIDE ")" \
	" ELSE c.how = 2 AND " RECONCILE_GIVEN_UP("c.status") \
	" AND " HAS_ANOTHER_REF " END) IS TRUE"

/*
 * Each line once, and each payment once as nth = 1; further lines of a payment
 * are about something else.
 */
#define PLACED \
	" placed AS (SELECT c.*, pg_catalog.row_number() OVER (PARTITION BY" \
	" CASE WHEN NOT c.another THEN c.payment_id END" \
	" ORDER BY c.line_id IS NULL, (c.status = 'completed') IS NOT TRUE," \
	" c.how, c.at, c.line_id) AS nth" \
	" FROM (SELECT c.*, " ABOUT_ANOTHER " AS another," \
	" pg_catalog.row_number() OVER (PARTITION BY c.line_id" \
	" ORDER BY c.payment_id IS NULL) AS choice" \
	" FROM (SELECT o.*, 1::int8 AS n FROM one o" \
	" UNION ALL SELECT t.* FROM two t WHERE t.n = 1) c) c" \
	" WHERE c.line_id IS NULL OR c.choice = 1),"

#define OF_THIS_PAYMENT "o.provider_ref = p.provider_ref AND "

/* by another statement */
#define NOT_TOLD(condition) \
	"COALESCE((" TOLD("false", condition " AND o.statement_id <> $2") \
	" LIMIT 1), true)"

/* an amount in another currency adds up to nothing */
#define REFUND_LINES(condition) \
	"COALESCE((SELECT (pg_catalog.sum(d.amount))::int8 FROM (" \
	TOLD("DISTINCT ON (o.reference) o.amount, o.reference", \
		 OF_THIS_PAYMENT "o.kind = 'refund'" \
		 " AND o.currency = p.currency" condition) \
	" ORDER BY o.reference) d), 0)"

/* refunds that the payment's own were not told of, by their references */
#define UNKNOWN_REFUNDS \
	REFUND_LINES(" AND NOT EXISTS (SELECT FROM cusown_ops.payment_refund k" \
				 " WHERE k.app_schema = $1 AND k.payment_id = p.payment_id" \
				 " AND k.refund_ref = o.reference)")

/*
 * All refunds so far; a payment that another statement knows is not missing, and
 * what another one knows to be paid was so in the end: no status goes back.
 */
#define WEIGHED \
	" weighed AS MATERIALIZED (SELECT p.*," \
	" CASE WHEN p.payment_id IS NOT NULL AND p.status = 'completed' THEN" \
	" GREATEST(" REFUND_LINES("") ", COALESCE((" \
	TOLD("pg_catalog.max(o.refunded)", OF_THIS_PAYMENT "o.kind = 'payment'") \
	"), 0)) END AS their_total," \
	" p.line_id IS NOT NULL AND NOT p.is_payment AND NOT " \
	NOT_TOLD("o.kind = 'payment' AND " OF_THIS_PAYMENT "true") \
	" AS is_elsewhere," \
	" p.status <> 'completed' AND NOT " \
	NOT_TOLD("o.kind = 'payment' AND " OF_THIS_PAYMENT "o.status = 'completed'") \
	" AS is_paid_elsewhere," \
	" CASE WHEN p.our_status = 'refunded' THEN" \
	" GREATEST(COALESCE(p.our_amount, 0), COALESCE(p.our_refunded, 0))" \
	" ELSE COALESCE(p.our_refunded, " \
	RECONCILE_REFUNDS_TOLD("p.payment_id") ", 0)" \
	" END AS our_total FROM placed p" \
	" WHERE p.line_id IS NOT NULL OR (p.nth = 1 AND " \
	NOT_TOLD("o.provider_ref = p.our_ref") " AND " \
	NOT_TOLD("o.order_ref = p.our_order") " AND " \
	NOT_TOLD("o.receipt = p.payment_id") " AND " \
	NOT_TOLD("o.provider_ref = p.our_transaction") ")),"

/* currency before amount before status before refunds: one class each */
#define JUDGED \
	" judged AS MATERIALIZED (SELECT w.*, CASE" \
	" WHEN w.line_id IS NULL THEN" \
	" CASE WHEN w.created_at > $4 THEN 'in_flight'" \
	" ELSE 'missing_at_provider' END" \
	" WHEN w.payment_id IS NULL THEN" \
	" CASE WHEN " RECONCILE_GIVEN_UP("w.status") " OR w.is_elsewhere" \
	" THEN 'matched' WHEN w.status = 'processing' OR w.at > $4 THEN 'in_flight'" \
	" ELSE 'missing_in_app' END" \
	" WHEN w.another OR w.nth > 1 THEN" \
	" CASE WHEN w.is_payment AND w.status = 'completed'" \
	" AND w.their_total < w.amount THEN 'duplicate_capture'" \
	" ELSE 'matched' END" \
	" WHEN w.is_paid_elsewhere THEN 'matched'" \
	" WHEN " RECONCILE_GIVEN_UP("w.status") " THEN" \
	" CASE WHEN " RECONCILE_GIVEN_UP("w.our_status") " THEN 'matched'" \
	" ELSE 'status_mismatch' END" \
	" WHEN $6 AND (w.is_mixed OR (w.currency = w.our_currency) IS NOT TRUE)" \
	" THEN 'currency_mismatch'" \
	" WHEN $5 AND w.is_payment AND (w.amount = w.our_amount) IS NOT TRUE" \
	" THEN 'amount_mismatch'" \
	" WHEN w.status = 'processing' THEN" \
	" CASE WHEN " RECONCILE_COMPLETED("w.our_status") " AND w.created_at <= $4" \
	" THEN 'status_mismatch' ELSE 'in_flight' END" \
	" WHEN NOT (" RECONCILE_COMPLETED("w.our_status") ") THEN 'status_mismatch'" \
	" WHEN w.their_total = w.our_total THEN 'matched'" \
	" WHEN w.their_total > w.our_total THEN 'refund_mismatch'" \
	" WHEN w.refunded_at >= $8 OR (w.refunded IS NULL" \
	" AND (w.refunded_at >= $7) IS NOT TRUE) THEN 'matched'" \
	" WHEN w.refunded_at > $4 THEN 'in_flight'" \
	" ELSE 'refund_mismatch' END AS class FROM weighed w)"

#define MATCH \
	ITEMS PAYMENTS BY_REFERENCE BY_OTHERS PLACED WEIGHED JUDGED

/* those that we know by their references */
#define KNOWN_REFUNDS \
	"COALESCE((SELECT (pg_catalog.sum(k.amount))::int8" \
	" FROM cusown_ops.payment_refund k WHERE k.app_schema = $1" \
	" AND k.payment_id = p.payment_id AND k.refund_ref <> ''), 0)"

/* refunds told by a figure; or the sum is right once we know them all */
#define CAN_REFUND \
	"(p.their_total > p.our_total AND (p.figure = p.their_total" \
	" OR (" KNOWN_REFUNDS " + " UNKNOWN_REFUNDS ") = p.their_total)) IS TRUE"

/*
 * What the machine may do about it, or NULL; it decides again.  A refund of what
 * is not completed completes it.
 */
#define EVENT \
	"CASE WHEN p.class = 'status_mismatch' AND p.status = 'completed'" \
	" AND (" IS_OPEN("p.our_status") " OR " RECONCILE_GIVEN_UP("p.our_status") ")" \
	" THEN CASE WHEN " CAN_REFUND " THEN 'partial_refund' ELSE 'verify' END" \
	" WHEN p.class = 'status_mismatch' AND " IS_OPEN("p.our_status") \
	" THEN CASE WHEN p.status = 'failed' THEN 'fail' ELSE 'expire' END" \
	" WHEN p.class = 'refund_mismatch' AND " CAN_REFUND \
	" THEN 'partial_refund' END"

const Template reconcile_findings = {
	MATCH " SELECT p.class, p.payment_id, COALESCE(p.provider_ref, p.our_ref)"
	" AS provider_ref, p.line_id, p.figure = p.their_total AS is_figure,"
	" p.their_total, p.currency::text AS currency, " EVENT " AS event,"
	" CASE WHEN p.payment_id IS NOT NULL THEN pg_catalog.jsonb_strip_nulls("
	"pg_catalog.jsonb_build_object('status', p.our_status,"
	" 'provider_ref', p.our_ref, 'amount', p.our_amount,"
	" 'currency', p.our_currency, 'refunded', p.our_total)) END AS ours,"
	" CASE WHEN p.line_id IS NOT NULL THEN pg_catalog.jsonb_strip_nulls("
	"pg_catalog.jsonb_build_object('statement_line_id', p.line_id,"
	" 'status', p.status, 'amount', p.amount, 'currency', p.currency,"
	" 'refunded', COALESCE(p.their_total, p.refunded),"
	" 'at', pg_catalog.timezone('UTC', p.at))) END AS theirs,"
	/* the worklist knows a capture by the first line that told of it */
	" CASE WHEN p.class = 'missing_in_app' OR p.class = 'duplicate_capture'"
	" THEN COALESCE((" TOLD("pg_catalog.min(o.id)",
							OF_THIS_PAYMENT "o.kind = 'payment'")
	"), p.line_id) END AS entity_line"
	" FROM judged p WHERE p.class <> 'matched'"
	" ORDER BY p.class, p.line_id, p.created_at, p.payment_id",
	ARGS
};

/*
 * Each line and each payment once: theirs in the currency of the line, also a
 * refund's that is not in the currency of what it refunds; ours in that of the
 * payment.
 */
const Template reconcile_totals = {
	MATCH " SELECT u.class, u.currency::text AS currency,"
	" (pg_catalog.sum(u.theirs))::int8 AS theirs,"
	" pg_catalog.sum(u.their_amount) AS their_amount,"
	" pg_catalog.sum(u.their_refunds) AS their_refunds,"
	" (pg_catalog.sum(u.ours))::int8 AS ours,"
	" pg_catalog.sum(u.our_amount) AS our_amount,"
	" pg_catalog.sum(u.our_refunds) AS our_refunds"
	" FROM (SELECT j.class, j.currency,"
	" CASE WHEN j.is_payment THEN 1 ELSE 0 END AS theirs,"
	" COALESCE(j.amount, 0) AS their_amount,"
	" CASE WHEN j.is_mixed THEN 0 ELSE COALESCE(j.refunded, 0) END"
	" AS their_refunds,"
	" 0 AS ours, 0 AS our_amount, 0 AS our_refunds"
	" FROM judged j WHERE j.line_id IS NOT NULL"
	" UNION ALL SELECT j.class, COALESCE(j.our_currency, j.currency),"
	" 0, 0, 0, 1, COALESCE(j.our_amount, 0), j.our_total FROM judged j"
	" WHERE j.payment_id IS NOT NULL AND NOT j.another AND j.nth = 1"
	" UNION ALL SELECT j.class, r.currency, 0, 0, r.total, 0, 0, 0"
	" FROM judged j CROSS JOIN LATERAL (SELECT r.currency,"
	" pg_catalog.sum(r.amount) AS total FROM " LINES("refund") " r"
	" WHERE r.provider_ref = j.provider_ref GROUP BY r.currency) r"
	" WHERE j.is_mixed"
	" UNION ALL SELECT 'matched', j.currency, pg_catalog.count(*),"
	" pg_catalog.sum(j.amount), 0, pg_catalog.count(*),"
	" pg_catalog.sum(COALESCE(j.our_amount, 0)), 0"
	" FROM joined j WHERE j.agrees GROUP BY j.currency) u"
	" GROUP BY u.class, u.currency ORDER BY u.class, u.currency",
	ARGS
};

/* ---------- the tuplestore ---------- */

typedef struct StoreColumn
{
	const char *name;
	Oid			type;
} StoreColumn;

/* in the order of PAYMENT_COLUMNS */
static const StoreColumn store_columns[] = {
	{"id", UUIDOID}, {"status", TEXTOID}, {"provider", TEXTOID},
	{"provider_ref", TEXTOID}, {"order_ref", TEXTOID},
	{"transaction_id", TEXTOID}, {"amount", INT8OID}, {"currency", TEXTOID},
	{"refunded", INT8OID}, {"refunded_at", TIMESTAMPTZOID},
	{"created_at", TIMESTAMPTZOID}
};

/* names are compared byte by byte, as those of lines are */
static TupleDesc
store_description(void)
{
	TupleDesc	desc = CreateTemplateTupleDesc(lengthof(store_columns));

	for (int i = 0; i < lengthof(store_columns); i++)
	{
		TupleDescInitEntry(desc, i + 1, store_columns[i].name,
						   store_columns[i].type, -1, 0);
		if (store_columns[i].type == TEXTOID)
			TupleDescInitEntryCollation(desc, i + 1, C_COLLATION_OID);
	}
	return desc;
}

/* TemplateRow */
static void
keep_payment(const StreamedRow *row, void *state)
{
	CHECK_FOR_INTERRUPTS();
	tuplestore_puttupleslot(state, row->slot);
}

/* app_payment, until it is let go */
static Tuplestorestate *
gather(Binding *binding, const Template *statement, const Datum *values,
	   bool read_only)
{
	Tuplestorestate *store = tuplestore_begin_heap(false, false, work_mem);
	EphemeralNamedRelation relation = palloc0(sizeof(EphemeralNamedRelationData));
	int			code;

	template_stream(binding, statement, values, NULL, read_only, keep_payment,
					store);
	relation->md.name = STORE_NAME;
	relation->md.tupdesc = store_description();
	relation->md.enrtype = ENR_NAMED_TUPLESTORE;
	relation->md.enrtuples = STORE_ROWS;
	relation->reldata = store;
	code = SPI_register_relation(relation);
	if (code < 0)
		elog(ERROR, "SPI_register_relation failed: %s",
			 SPI_result_code_string(code));
	return store;
}

/* its file would be open still when the statement ends */
void
reconcile_let_go(Tuplestorestate *payments)
{
	if (SPI_unregister_relation(STORE_NAME) < 0)
		elog(ERROR, "SPI_unregister_relation failed");
	tuplestore_end(payments);
}

/* sets the three arrays of names, which live as long as the rows returned */
static SPITupleTable *
read_names(const Template *statement, Datum app_schema, Datum which,
		   bool read_only, Datum *names)
{
	Datum		values[2];
	bool		isnull;

	values[0] = app_schema;
	values[1] = which;
	template_execute(NULL, statement, values, NULL, read_only);
	names[0] = template_column(0, "provider_refs", &isnull);
	names[1] = template_column(0, "order_refs", &isnull);
	names[2] = template_column(0, "receipts", &isnull);
	return SPI_tuptable;
}

static void
gather_by_lines(Reconciliation *reconciliation)
{
	Datum		values[6];
	SPITupleTable *names = read_names(&names_of_statement,
									  reconciliation->app_schema,
									  Int64GetDatum(reconciliation->statement),
									  reconciliation->read_only, values + 1);

	values[0] = reconciliation->provider;
	values[4] = TimestampTzGetDatum(reconciliation->period_from);
	values[5] = TimestampTzGetDatum(reconciliation->period_until);
	reconciliation->payments = gather(reconciliation->binding,
									  &payments_of_lines, values,
									  reconciliation->read_only);
	SPI_freetuptable(names);
}

void
reconcile_gather(Reconciliation *reconciliation)
{
	if (reconciliation->lines <= FEW_LINES)
		gather_by_lines(reconciliation);
	else
		reconciliation->payments = gather(reconciliation->binding,
										  &all_payments,
										  &reconciliation->provider,
										  reconciliation->read_only);
}

Tuplestorestate *
reconcile_gather_some(Binding *binding, const UuidList *payments)
{
	Datum		values[1];

	values[0] = uuid_list_datum(payments);
	return gather(binding, &payments_by_id, values, false);
}

/* those that the lines, an int8[], are about */
Tuplestorestate *
reconcile_gather_named(Binding *binding, Datum lines)
{
	Datum		values[3];
	SPITupleTable *names;
	Tuplestorestate *payments;

	names = read_names(&names_of_some, template_name(binding->app_schema),
					   lines, false, values);
	payments = gather(binding, &payments_named, values, false);
	SPI_freetuptable(names);
	return payments;
}

static void
turn_off(const char *setting)
{
	(void) set_config_option(setting, "off", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
}

/*
 * What is said to be big would be compiled, for seconds, whatever it is, and
 * sorted rather than hashed.  Returns what AtEOXact_GUC() takes to end it; an
 * error ends it too.
 */
int
reconcile_plan_to_hash(void)
{
	int			level = NewGUCNestLevel();

	turn_off("jit");
	turn_off("enable_mergejoin");
	return level;
}

/* runs one of the statements above on what was gathered */
void
reconcile_match(const Reconciliation *reconciliation,
				const Template *statement, TemplateRow put, void *state)
{
	const Binding *binding = reconciliation->binding;
	int			level = reconcile_plan_to_hash();
	Datum		values[MATCH_ARGS];

	values[0] = reconciliation->app_schema;
	values[1] = Int64GetDatum(reconciliation->statement);
	values[2] = reconciliation->provider;
	values[3] = TimestampTzGetDatum(reconciliation->young);
	values[4] = BoolGetDatum(binding_column(binding, "payments",
											"amount") != NULL);
	values[5] = BoolGetDatum(binding_column(binding, "payments",
											"currency") != NULL);
	values[6] = TimestampTzGetDatum(reconciliation->period_from);
	values[7] = TimestampTzGetDatum(reconciliation->period_until);
	template_stream(NULL, statement, values, NULL, reconciliation->read_only,
					put, state);
	AtEOXact_GUC(true, level);
}
