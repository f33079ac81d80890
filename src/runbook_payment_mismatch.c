/*-------------------------------------------------------------------------
 *
 * runbook_payment_mismatch.c
 *	  The runbook "Payment Mismatch".
 *
 * No booking or slot is changed from here: what to do about one that is paid and
 * not confirmed is its owner's decision, and confirming is a flow of its own.  A
 * refund is made at the provider first, and then told here.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "runbook.h"

#define KINDS "paid_twice", "over_refunded", "paid_cancelled", "shared_ref", \
	"paid_pending", "unpaid"

/* of a case, those of its booking and payments */
#define MISMATCHES \
	" FROM cusown_ops.runbook_mismatches() m WHERE m.kind <> 'processing'" \
	" AND ($2 IS NULL OR m.id = ANY ($2))"

static const RunbookStep steps[] = {
	{"1", "Gather Facts", {NULL},.look = {
		"{?payments}WITH m AS MATERIALIZED (SELECT m.kind, pg_catalog.count(*) AS payments"
		" FROM cusown_ops.runbook_mismatches() m GROUP BY m.kind),"
		" n AS MATERIALIZED (SELECT k.kind, c.observed, c.counted_at,"
		" CASE WHEN c.observed > 0 THEN coalesce((SELECT m.payments FROM m"
		" WHERE m.kind = k.kind), 0) ELSE c.observed END AS is_there"
		" FROM pg_catalog.unnest('{paid_twice,over_refunded,paid_cancelled,shared_ref,"
		"paid_pending,unpaid}'::text[]) WITH ORDINALITY AS k (kind, place)"
		" LEFT JOIN cusown_ops.census c ON c.app_schema = $1"
		" AND c.symptom = k.kind)"
		" SELECT CASE WHEN pg_catalog.bool_and(coalesce(n.is_there = n.observed, false))"
		" THEN 'done' ELSE 'needed' END AS state,"
		" CASE WHEN pg_catalog.count(n.observed) = 0 THEN 'not counted yet'"
		" ELSE coalesce(pg_catalog.string_agg(n.is_there || ' ' || n.kind, ', '"
		" ORDER BY n.kind) FILTER (WHERE n.is_there > 0), 'none') || '; counted '"
		" || cusown_ops.age_text(pg_catalog.date_part('epoch',"
		" pg_catalog.statement_timestamp() - pg_catalog.min(n.counted_at)))"
		" || ' ago' || CASE WHEN pg_catalog.bool_and(n.is_there = n.observed)"
		" THEN '' ELSE ', changed since' END END AS finding,"
		" 'CALL cusown_run_job(''take_census'');' AS command FROM n",
		RUNBOOK_LOOK_ARGS
	}},
	{"1", "Gather Facts", {KINDS},.look = {
		"SELECT 'done' AS state, m.kind || ', ' || m.finding AS finding,"
		" m.command || ';' AS command" MISMATCHES " LIMIT 10",
		RUNBOOK_LOOK_ARGS
	}},
	{"2", "Idempotency", {"webhook_waiting", "webhook_unmatched"},
	"no webhook waits; each event is applied once",.look = {
		"SELECT 'needed' AS state, i.provider || ' ' || i.event_type || ' '"
		" || i.outcome || ' for ' || cusown_ops.age_text(pg_catalog.date_part("
		"'epoch', pg_catalog.statement_timestamp() - i.received_at)) AS finding,"
		" 'SELECT cusown_webhook_replay(' || i.id || ');' AS command"
		" FROM cusown_ops.webhook_inbox i WHERE i.app_schema = $1"
		" AND i.next_try IS NOT NULL AND ($2 IS NULL OR i.payment_id = ANY ($2)"
		" OR i.payment_ids && $2) ORDER BY i.received_at, i.id LIMIT 20",
		RUNBOOK_LOOK_ARGS
	}},
	{"2", "Idempotency", {"webhook_rejected"}, NULL,
	"compare the secret; see runbook security_incident",
	"TABLE cusown_ops.webhook_rejected;",.outside = true},
	{"3", "Reconciliation", {NULL}, "load the provider's statement",.look = {
		"SELECT 'manual' AS state, s.provider || '''s statement of '"
		" || cusown_ops.age_text(pg_catalog.date_part('epoch',"
		" pg_catalog.statement_timestamp() - s.loaded_at)) || ' ago' AS finding,"
		" 'SELECT * FROM cusown_reconcile(' || s.id || ');' AS command"
		" FROM (SELECT DISTINCT ON (s.provider) s.provider, s.loaded_at, s.id"
		" FROM cusown_ops.statement s WHERE s.app_schema = $1"
		" ORDER BY s.provider, s.loaded_at DESC, s.id DESC) s UNION ALL"
		" SELECT 'manual', 'no statement of a provider is loaded',"
		" '\\df+ cusown_load_statement_csv' WHERE NOT EXISTS (SELECT"
		" FROM cusown_ops.statement s WHERE s.app_schema = $1)",
		RUNBOOK_LOOK_ARGS
	}},
	{"4", "Communication", {KINDS}, "nothing to refund; inform the customer",.look = {
		"WITH m AS MATERIALIZED (SELECT m.kind, m.id, m.command" MISMATCHES ")"
		" SELECT pg_catalog.min(r.state) AS state,"
		" pg_catalog.string_agg(r.finding, ', ' ORDER BY r.finding) AS finding,"
		" r.command FROM (SELECT 'needed'::text AS state,"
		" m.kind || ': refunded at the provider?' AS finding,"
		" 'SELECT cusown_payment_transition(''' || p.id || ''', ''refund'');' AS command"
		" FROM m JOIN LATERAL (SELECT m.id AS id WHERE m.kind = 'paid_cancelled'"
		" OR m.kind = 'paid_pending' UNION ALL (SELECT p.{payments.id} AS id"
		" FROM {payments} p WHERE m.kind = 'paid_twice'"
		" AND p.{payments.booking_id} = m.id AND p.{payments.status} = 'completed'"
		" ORDER BY p.{payments.created_at}, p.{payments.id} OFFSET 1)) p ON true"
		" UNION ALL SELECT 'manual', (pg_catalog.count(*))::text || ' ' || m.kind"
		" || ': ask the provider and the customer',"
		" 'SELECT * FROM cusown_payment_mismatches();' FROM m WHERE m.kind = ANY"
		" ('{over_refunded,shared_ref,unpaid}') GROUP BY m.kind) r"
		" GROUP BY r.command ORDER BY state DESC, r.command LIMIT 20",
		RUNBOOK_LOOK_ARGS
	}},
	{"4", "Communication", {"payment_worklist"},.look = RUNBOOK_WORKLIST("a.runbook = 'payment_mismatch'")},
	{NULL}
};

const Runbook payment_mismatch_runbook = {
	"payment_mismatch", "Payment Mismatch", steps
};
