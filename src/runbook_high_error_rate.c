/*-------------------------------------------------------------------------
 *
 * runbook_high_error_rate.c
 *	  The runbook "High Error Rate".
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "runbook.h"

static const RunbookStep steps[] = {
	{"1", "Identify Issue", {RUNBOOK_ANY}, "no symptom fires; review the logs in Vercel",
	NULL, "SELECT * FROM cusown_runbook();",.outside = true},
	{"2", "Quick Fixes", {NULL},.look = {
		"SELECT CASE WHEN (n.used * 10) >= (n.most * 9) THEN 'manual' ELSE 'done' END AS state,"
		" n.used || ' of ' || n.most || ' connections are taken' AS finding,"
		" 'SELECT state, count(*) FROM pg_stat_activity GROUP BY state;' AS command"
		" FROM (SELECT (pg_catalog.sum(d.numbackends))::int8 AS used,"
		" pg_catalog.current_setting('max_connections')::int8 AS most"
		" FROM pg_catalog.pg_stat_database d) n",
		RUNBOOK_LOOK_ARGS
	}},
	{"2", "Quick Fixes", {NULL}, "restart the application, verify environment variables"},
	{"3", "Investigation", {NULL}, "recent deployments, stack traces, slow queries", NULL,
	"SELECT * FROM cusown_runbook('database_performance');"},
	{"4", "Resolution", {NULL}, "fix or roll back, watch the rate of errors"},
	{"5", "Post-Mortem", {NULL}, "document the root cause, update runbooks"},
	{NULL}
};

const Runbook high_error_rate_runbook = {
	"high_error_rate", "High Error Rate", steps
};
