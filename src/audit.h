/*-------------------------------------------------------------------------
 *
 * audit.h
 *	  The audit row of a change.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CUSOWN_AUDIT_H
#define CUSOWN_AUDIT_H

#include "utils/uuid.h"

#include "binding.h"

/*
 * What our verbs write to an application's audit table today; attach asks its
 * CHECKs about each.  Who writes another adds it here.
 */
typedef struct AuditedAction
{
	const char *action;
	const char *entity_type;
	bool		has_data;		/* old_data and new_data are set */
} AuditedAction;

#define AUDITED_ACTIONS \
	{"booking_confirmed", "booking", true}, \
	{"booking_rejected", "booking", true}, \
	{"booking_cancelled", "booking", true}, \
	{"booking_undo_accept", "booking", true}, \
	{"booking_undo_reject", "booking", true}, \
	{"slot_released", "slot", true}, \
	{"slot_booked", "slot", true}, \
	{"booking_no_show", "booking", true}, \
	{"data_corrected", "booking", false}, \
	{"data_corrected", "slot", false}, \
	{"data_corrected", "business", false}, \
	{"payment_succeeded", "payment", true}, \
	{"payment_failed", "payment", true}, \
	{"payment_refunded", "payment", true}, \
	{"data_corrected", "payment", false}, \
	{"data_corrected", "system", false}, \
	{"cron_failed", "system", false}, \
	{"cron_recovered", "system", false}

/* and who has done it */
#define AUDITED_ROLES "system", "owner", "customer"

/*
 * The end of a statement that changes and audits at once.  Before it stands
 * WITH ..., audit_row (AUDIT_ROW) AS (SELECT ...).  Each row gets
 * the time of its own insertion: an application may chain its audit rows in
 * the order of created_at.  The statement returns what was
 * changed, entity_type and entity_id.
 */
#define AUDIT_ROW \
	"action, entity_type, entity_id, old_data, new_data, metadata, description"

#define AUDIT_INSERT AUDIT_INSERT_WITH("", "")

#define AUDIT_INSERT_WITH(columns, values) \
	AUDIT_INSERT_AS("'system'", columns, values)

/* role is SQL: what the actor is */
#define AUDIT_INSERT_AS(role, columns, values) \
	" INSERT INTO {audit_logs} ({audit_logs.action}," \
	" {audit_logs.entity_type}, {audit_logs.entity_id}," \
	" {audit_logs.created_at}[, {audit_logs.actor_role}]" \
	"[, {audit_logs.old_data}][, {audit_logs.new_data}]" \
	"[, {audit_logs.metadata}][, {audit_logs.description}]" \
	columns ")" \
	" SELECT r.action, r.entity_type, r.entity_id," \
	" pg_catalog.clock_timestamp()" \
	"[{?audit_logs.actor_role}, " role "]" \
	"[{?audit_logs.old_data}, r.old_data]" \
	"[{?audit_logs.new_data}, r.new_data]" \
	"[{?audit_logs.metadata}, r.metadata]" \
	"[{?audit_logs.description}, r.description]" \
	values \
	" FROM audit_row r" \
	" RETURNING {audit_logs.entity_type}::text AS entity_type," \
	" {audit_logs.entity_id} AS entity_id"

extern void audit_check(int64 changed, int64 audited);
extern void audit_write_severe(Binding *binding, const char *action,
							   const char *severity, const char *entity_type,
							   const pg_uuid_t *entity_id,
							   const char *metadata, const char *description);
extern void audit_write(Binding *binding, const char *action,
						const char *entity_type, const pg_uuid_t *entity_id,
						const char *metadata, const char *description);

#endif							/* CUSOWN_AUDIT_H */
