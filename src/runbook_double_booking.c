/*-------------------------------------------------------------------------
 *
 * runbook_double_booking.c
 *	  The runbook "Double Booking Alert".
 *
 * The job take_census counts; what it has found is looked at now, kind by kind, as
 * a look at all bookings takes long.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "runbook.h"

/* kinds that the census has found, or that a case may be of */
#define KINDS \
	" FROM (SELECT k.kind FROM pg_catalog.unnest('{same_slot,overlap,slot_state}'::text[])" \
	" AS k (kind) LEFT JOIN cusown_ops.census c ON c.app_schema = $1" \
	" AND c.symptom = ('double_' || k.kind)" \
	" WHERE c.observed > 0 OR ($2 IS NOT NULL AND k.kind <> 'overlap')) k" \
	" CROSS JOIN LATERAL cusown_ops.runbook_double_bookings(k.kind) d" \
	" WHERE ($2 IS NULL OR d.slot_id = $4 OR d.booking_ids && $2)"

#define COUNTED "double_same_slot", "double_overlap", "double_slot_state"

static const RunbookStep steps[] = {
	{"1", "Confirm Violation", {NULL},.look = {
		"WITH n AS MATERIALIZED (SELECT k.kind, c.observed, c.counted_at,"
		" CASE WHEN c.observed > 0 THEN (SELECT pg_catalog.count(*)"
		" FROM cusown_ops.runbook_double_bookings(k.kind)) ELSE c.observed END AS is_there"
		" FROM pg_catalog.unnest('{same_slot,overlap,slot_state}'::text[]) AS k (kind)"
		" LEFT JOIN cusown_ops.census c ON c.app_schema = $1"
		" AND c.symptom = ('double_' || k.kind))"
		" SELECT CASE WHEN pg_catalog.bool_and(coalesce(n.is_there = n.observed, false))"
		" THEN 'done' ELSE 'needed' END AS state,"
		" coalesce(pg_catalog.string_agg(n.is_there || ' ' || n.kind, ', '"
		" ORDER BY n.kind DESC) || '; counted ' || cusown_ops.age_text("
		"pg_catalog.date_part('epoch', pg_catalog.statement_timestamp()"
		" - pg_catalog.min(n.counted_at))) || ' ago' || CASE WHEN"
		" pg_catalog.bool_and(n.is_there = n.observed) THEN '' ELSE"
		" ', changed since' END, 'not counted yet') AS finding,"
		" 'CALL cusown_run_job(''take_census'');' AS command FROM n",
		RUNBOOK_LOOK_ARGS
	}},
	{"2", "Identify Conflicts", {COUNTED}, "there are none",.look = {
		"SELECT 'done' AS state, d.kind || coalesce(' on slot '"
		" || pg_catalog.left(d.slot_id::text, 8), '')"
		" || coalesce(': bookings ' || (SELECT pg_catalog.string_agg("
		"pg_catalog.left(b.id::text, 8), ' ') FROM (SELECT b.id"
		" FROM pg_catalog.unnest(d.booking_ids) AS b (id) LIMIT 4) b), '')"
		" AS finding,"
		" 'SELECT * FROM cusown_double_bookings(''' || d.kind || ''');' AS command"
		KINDS " ORDER BY d.kind DESC, d.starts, d.slot_id LIMIT 10",
		RUNBOOK_LOOK_ARGS
	}},
	{"3", "Resolution", {COUNTED}, "nothing to resolve",.look = {
		"SELECT 'needed' AS state, r.kind || CASE WHEN $2 IS NULL"
		" THEN ': ' || (pg_catalog.count(*))::text ELSE '' END AS finding, r.command"
		" FROM (SELECT d.kind, CASE WHEN d.kind = 'overlap'"
		" THEN 'SELECT * FROM cusown_resolve_double_bookings(kind => ''overlap'');'"
		" WHEN d.kind = 'slot_state' THEN d.command"
		" WHEN $2 IS NULL THEN 'SELECT * FROM cusown_resolve_double_bookings();'"
		" WHEN $3 IS NULL OR NOT $3 = ANY (d.booking_ids)"
		" THEN 'SELECT cusown_resolve_double_bookings(slot => ''' || $4 || ''');'"
		" ELSE 'SELECT * FROM cusown_keep_booking(''' || $3 || ''');' END AS command"
		KINDS ") r GROUP BY r.kind, r.command ORDER BY r.kind = 'same_slot' DESC,"
		" r.kind, r.command LIMIT 10",
		RUNBOOK_LOOK_ARGS
	}},
	{"3", "Resolution", {"booking_worklist"},.look = RUNBOOK_WORKLIST("a.runbook = 'double_booking'")},
	{"4", "Prevention", {"unique_index_missing"}, "a unique index is there",.look = {
		"SELECT CASE WHEN c.observed = 0 THEN 'needed' ELSE 'manual' END AS state,"
		" CASE WHEN c.observed = 0 THEN 'no unique index'"
		" ELSE 'no unique index: count and resolve first' END AS finding,"
		" CASE WHEN c.observed = 0 THEN m.ddl END AS command"
		" FROM cusown_ops.missing_indexes() m LEFT JOIN cusown_ops.census c"
		" ON c.app_schema = $1 AND c.symptom = 'double_same_slot'"
		" WHERE m.one_confirmed",
		RUNBOOK_LOOK_ARGS
	}},
	{"4", "Prevention", {"guard_mode"},.look = {
		"SELECT 'needed' AS state, 'the guard is below mode ' || w.mode AS finding,"
		" 'SELECT * FROM cusown_guard(''' || w.mode || ''');' AS command"
		" FROM (SELECT CASE WHEN greatest(t.warning, t.critical) > 2 THEN 'functions'"
		" WHEN greatest(t.warning, t.critical) > 1 THEN 'transitions' ELSE 'warn' END"
		" AS mode FROM cusown_ops.threshold t WHERE t.app_schema = $1"
		" AND t.symptom = 'guard_mode') w",
		RUNBOOK_LOOK_ARGS
	}},
	{"4", "Prevention", {NULL}, "look at what was changed in the confirmation's code"},
	{NULL}
};

const Runbook double_booking_runbook = {
	"double_booking", "Double Booking Alert", steps
};
