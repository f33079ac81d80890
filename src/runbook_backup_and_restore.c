/*-------------------------------------------------------------------------
 *
 * runbook_backup_and_restore.c
 *	  The runbook "Backup and Restore".
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "runbook.h"

static const RunbookStep steps[] = {
	{"1", "Automatic Backups", {NULL},.look = {
		"SELECT CASE WHEN a.last_failed_time > coalesce(a.last_archived_time,"
		" '-infinity'::timestamptz) THEN 'manual' WHEN a.last_archived_time IS NULL"
		" THEN 'manual' ELSE 'done' END AS state, CASE WHEN a.last_failed_time >"
		" coalesce(a.last_archived_time, '-infinity'::timestamptz)"
		" THEN 'archiving WAL fails, since ' || a.last_failed_wal"
		" WHEN a.last_archived_time IS NULL"
		" THEN 'no WAL is archived here; verify the daily backups'"
		" ELSE 'WAL archived ' || cusown_ops.age_text(pg_catalog.date_part('epoch',"
		" pg_catalog.statement_timestamp() - a.last_archived_time)) || ' ago: '"
		" || a.last_archived_wal END AS finding,"
		" 'SELECT * FROM pg_stat_archiver;' AS command"
		" FROM pg_catalog.pg_stat_archiver a",
		RUNBOOK_LOOK_ARGS
	}},
	{"2", "Manual Backup", {NULL}, "Supabase Dashboard, Database, Backups"},
	{"3", "Select Backup", {NULL}, "the point in time before the fault"},
	{"4", "Restore", {NULL}, "choose the target, confirm, watch it"},
	{"5", "Verify", {RUNBOOK_ANY}, "no symptom fires; test the application", NULL,
	"SELECT * FROM cusown_runbook();",.outside = true},
	{NULL}
};

const Runbook backup_and_restore_runbook = {
	"backup_and_restore", "Backup and Restore", steps
};
