/*-------------------------------------------------------------------------
 *
 * runbook_database_performance.c
 *	  The runbook "Database Performance Issues".
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "runbook.h"

static const RunbookStep steps[] = {
	{"1", "Identify Slow Queries", {NULL}, "pg_stat_statements is not installed",.look = {
		"SELECT 'manual' AS state, 'pg_stat_statements is in schema '"
		" || n.nspname AS finding, 'SELECT calls, mean_exec_time, query"
		" FROM pg_stat_statements ORDER BY 2 DESC LIMIT 9;' AS command"
		" FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n"
		" ON n.oid = e.extnamespace WHERE e.extname = 'pg_stat_statements'",
		RUNBOOK_LOOK_ARGS
	}},
	{"2", "Optimize Queries", {NULL}, "we miss no index",.look = {
		"SELECT CASE WHEN m.ddl IS NULL THEN 'manual' ELSE 'needed' END AS state,"
		" 'no index: ' || m.relation AS finding, m.ddl AS command"
		" FROM cusown_ops.missing_indexes() m",
		RUNBOOK_LOOK_ARGS
	}},
	{"3", "Verify Indexes", {NULL},.look = {
		"SELECT 'done' AS state, (pg_catalog.count(*))::text"
		" || ' indexes of its tables were never used' AS finding,"
		" 'SELECT * FROM pg_stat_user_indexes WHERE idx_scan = 0;' AS command"
		" FROM pg_catalog.pg_stat_user_indexes s JOIN pg_catalog.pg_index x"
		" ON x.indexrelid = s.indexrelid JOIN cusown_ops.binding t"
		" ON t.bound_schema = s.schemaname AND t.bound_name = s.relname"
		" WHERE t.app_schema = $1 AND t.attribute = '' AND s.idx_scan = 0"
		" AND NOT x.indisunique",
		RUNBOOK_LOOK_ARGS
	}},
	{"4", "Monitor", {NULL}, "track queries, verify the improvement", NULL,
	"SELECT * FROM cusown_runbook('database_performance');"},
	{NULL}
};

const Runbook database_performance_runbook = {
	"database_performance", "Database Performance Issues", steps
};
