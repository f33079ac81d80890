/*-------------------------------------------------------------------------
 *
 * runbook_cron_failure.c
 *	  The runbook "Cron Failure (expire-bookings)".
 *
 * Each job that is late, has failed or has died is run once by hand; what it leaves
 * is on the worklist.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "runbook.h"

static const RunbookStep steps[] = {
	{"1", "Verify Cron Not Running", {NULL}, "no jobs",.look = {
		"SELECT 'done' AS state, (pg_catalog.count(*) FILTER (WHERE j.late))::text"
		" || ' of ' || (pg_catalog.count(*))::text || ' jobs late; expire_bookings '"
		" || (pg_catalog.min(j.succeeded) FILTER (WHERE j.job = 'expire_bookings'))"
		" AS finding, 'SELECT * FROM cusown_cron_health();' AS command"
		" FROM cusown_ops.runbook_jobs($1) j HAVING pg_catalog.count(*) > 0",
		RUNBOOK_LOOK_ARGS
	}},
	{"2", "Check Vercel Cron", {"scheduler_absent"},
	"pg_cron is loaded, or not missed", "look at Vercel Cron; or add pg_cron and restart",
	"SHOW shared_preload_libraries;",.outside = true},
	{"2", "Check Vercel Cron", {"job_late"},.look = {
		"SELECT 'needed' AS state, (pg_catalog.count(*))::text"
		" || ' late jobs are not active in pg_cron' AS finding,"
		" 'SELECT * FROM cusown_schedule();' AS command"
		" FROM cusown_ops.runbook_jobs($1) j"
		" WHERE $5 AND j.late AND j.cron_state <> 'active'"
		" HAVING pg_catalog.count(*) > 0",
		RUNBOOK_LOOK_ARGS
	}},
	{"3", "Manual Run (One-Off)", {"job_late", "job_failing", "job_died"},
	"each job has run",.look = {
		"SELECT CASE WHEN j.running THEN 'done' ELSE 'needed' END AS state,"
		" pg_catalog.concat_ws(', ', CASE WHEN j.running THEN 'running now'"
		" WHEN j.late THEN 'late' END, j.succeeded, j.failed) AS finding,"
		" 'CALL cusown_run_job(''' || j.job || ''');' AS command"
		" FROM cusown_ops.runbook_jobs($1) j"
		" WHERE j.late OR j.failed IS NOT NULL"
		" ORDER BY j.job = 'expire_bookings' DESC, j.job",
		RUNBOOK_LOOK_ARGS
	}},
	{"3", "Manual Run (One-Off)", {"pending_overdue"}, NULL, NULL,
	"CALL cusown_run_job('expire_bookings');"},
	{"3", "Manual Run (One-Off)", {"hold_overdue"}, NULL, NULL,
	"CALL cusown_run_job('release_expired_holds');"},
	{"4", "Lazy Heal", {NULL},.look = {
		"SELECT 'done' AS state, 'no action: ' || coalesce('requests expired bookings '"
		" || cusown_ops.age_text(pg_catalog.date_part('epoch',"
		" pg_catalog.statement_timestamp() - pg_catalog.max(r.finished_at)))"
		" || ' ago', 'the application''s requests do not expire bookings')"
		" AS finding, 'SELECT cusown_expire_if_due();' AS command"
		" FROM cusown_ops.job_run r WHERE r.app_schema = $1"
		" AND r.job = 'expire_if_due' AND r.status = 'succeeded'",
		RUNBOOK_LOOK_ARGS
	}},
	{"4", "Lazy Heal", {"worker_absent"}, NULL, "it does not visit this database",
	"SHOW cusown_ops.worker_databases;",.outside = true},
	{"5", "Fix Root Cause", {"cron_worklist"}, "nothing is on the worklist",.look = RUNBOOK_WORKLIST("a.runbook = 'cron_failure'")},
	{"5", "Fix Root Cause", {"worklist_age"},.look = RUNBOOK_WORKLIST("a.runbook <> 'cron_failure'")},
	{"5", "Fix Root Cause", {NULL}, "mend the scheduler's settings, write a post-mortem"},
	{NULL}
};

const Runbook cron_failure_runbook = {
	"cron_failure", "Cron Failure (expire-bookings)", steps
};
