/*-------------------------------------------------------------------------
 *
 * reconcile.h
 *	  A provider's statement against the application's payments.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CUSOWN_RECONCILE_H
#define CUSOWN_RECONCILE_H

#include "datatype/timestamp.h"
#include "utils/tuplestore.h"
#include "utils/uuid.h"

#include "attention.h"
#include "template.h"

/* what is compared with what */
typedef struct Reconciliation
{
	Binding    *binding;
	int64		statement;
	bool		read_only;
	TimestampTz young;			/* what is later may still be under way */
	/* of the statement */
	Datum		app_schema;		/* name */
	Datum		provider;		/* text */
	int			lines;
	TimestampTz period_from;
	TimestampTz period_until;
	Tuplestorestate *payments;	/* those that it could be about */
} Reconciliation;

/* in templates: what a status, which may be null, says */
#define RECONCILE_COMPLETED(status) \
	"(" status " = ANY ('{completed,partially_refunded,refunded}'::text[]))" \
	" IS TRUE"

#define RECONCILE_GIVEN_UP(status) \
	"(" status " = ANY ('{failed,expired}'::text[])) IS TRUE"

/* in templates: refunds of a payment that our verbs were told of, see payment_refund.c */
#define RECONCILE_REFUNDS_TOLD(payment) \
	"(SELECT GREATEST((pg_catalog.sum(k.amount)" \
	" FILTER (WHERE k.refund_ref <> ''))::int8," \
	" pg_catalog.max(k.amount) FILTER (WHERE k.refund_ref = ''))" \
	" FROM cusown_ops.payment_refund k WHERE k.app_schema = $1" \
	" AND k.payment_id = " payment ")"

/*
 * Of the payments gathered, those that share a reference with one before them.
 * Numbers are sorted faster than names are counted; two names may share one, but
 * hardly ever do, and where none is found twice the payments are not read again.
 */
#define RECONCILE_AGAIN \
	"again AS MATERIALIZED (SELECT a.id FROM (SELECT p.id AS id," \
	" pg_catalog.row_number() OVER (PARTITION BY p.provider_ref ORDER BY " \
	RECONCILE_COMPLETED("p.status") " DESC, p.created_at, p.id) AS n" \
	" FROM (SELECT d.hash FROM (SELECT" \
	" pg_catalog.hashtextextended(d.provider_ref, 0) AS hash" \
	" FROM app_payment d WHERE d.provider_ref IS NOT NULL ORDER BY 1) d" \
	" GROUP BY d.hash HAVING pg_catalog.count(*) > 1) d JOIN app_payment p" \
	" ON pg_catalog.hashtextextended(p.provider_ref, 0) = d.hash) a" \
	" WHERE a.n > 1)"

/* reconcile_match.c */
extern const Template reconcile_findings;
extern const Template reconcile_totals;
extern void reconcile_gather(Reconciliation *reconciliation);
extern Tuplestorestate *reconcile_gather_some(Binding *binding, const UuidList *payments);
extern Tuplestorestate *reconcile_gather_named(Binding *binding, Datum lines);
extern void reconcile_let_go(Tuplestorestate *payments);
extern void reconcile_match(const Reconciliation *reconciliation,
							const Template *statement, TemplateRow put,
							void *state);
extern int	reconcile_plan_to_hash(void);

/* reconcile_attention.c */
extern const AttentionKind *reconcile_kind(const char *class);
extern pg_uuid_t reconcile_line_entity(int64 line);
extern void reconcile_recheck(Binding *binding);

#endif							/* CUSOWN_RECONCILE_H */
