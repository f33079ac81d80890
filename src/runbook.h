/*-------------------------------------------------------------------------
 *
 * runbook.h
 *	  A runbook: its steps, each with what is looked up for it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CUSOWN_RUNBOOK_H
#define CUSOWN_RUNBOOK_H

#include "catalog/pg_type.h"

#include "template.h"

/* symptoms of one step */
#define RUNBOOK_MAX_SYMPTOMS 8

/* in place of a symptom: any */
#define RUNBOOK_ANY "*"

/*
 * A step is about symptoms: where none of them fires, there is nothing to do.
 * Without symptoms it is always looked at; with neither symptoms nor a look it
 * is taken outside the database, and so it is where it says outside.
 *
 * What a look gives are rows of state, finding and command; none: there is
 * nothing to do.  Steps of the same number are one, of which only the first is
 * shown where there is nothing to do.
 *
 * A look's parameters: $1 app_schema; of a call about one case (else null), $2 all
 * ids that it is about, $3 its booking, $4 its slot; $5 whether our jobs in
 * pg_cron can be seen.
 */
typedef struct RunbookStep
{
	const char *number;			/* NULL: the last one was before this */
	const char *title;
	const char *symptoms[RUNBOOK_MAX_SYMPTOMS];
	const char *words;			/* finding where there is nothing to do */
	const char *advice;			/* beside the symptoms that fire, or NULL */
	const char *command;		/* or NULL; a look has its own */
	bool		outside;
	Template	look;			/* or all zero */
} RunbookStep;

typedef struct Runbook
{
	const char *name;
	const char *title;
	const RunbookStep *steps;
} Runbook;

#define RUNBOOK_LOOK_ARGS 5, {NAMEOID, UUIDARRAYOID, UUIDOID, UUIDOID, BOOLOID}

/* entries of the worklist for which condition holds, the oldest first */
#define RUNBOOK_WORKLIST(condition) \
	{"SELECT 'needed' AS state, a.kind || ' ' || pg_catalog.left(a.entity_id::text, 8)" \
	" || ': ' || a.finding AS finding," \
	" 'SELECT cusown_attention_resolve(' || a.id || ', ''by runbook'');' AS command" \
	" FROM cusown_ops.attention a WHERE a.app_schema = $1" \
	" AND a.closed_at IS NULL AND (" condition ")" \
	" AND ($2 IS NULL OR a.entity_id = ANY ($2))" \
	" ORDER BY a.first_seen, a.id LIMIT 20", \
	RUNBOOK_LOOK_ARGS}

extern const Runbook application_deployment_runbook;
extern const Runbook authentication_runbook;
extern const Runbook backup_and_restore_runbook;
extern const Runbook cron_failure_runbook;
extern const Runbook database_migration_runbook;
extern const Runbook database_performance_runbook;
extern const Runbook double_booking_runbook;
extern const Runbook emergency_contacts_runbook;
extern const Runbook high_error_rate_runbook;
extern const Runbook payment_mismatch_runbook;
extern const Runbook rate_limiting_runbook;
extern const Runbook security_incident_runbook;

#endif							/* CUSOWN_RUNBOOK_H */
