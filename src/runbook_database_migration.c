/*-------------------------------------------------------------------------
 *
 * runbook_database_migration.c
 *	  The runbook "Database Migration".
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "runbook.h"

static const RunbookStep steps[] = {
	{"1", "Backup Database", {NULL}, "take one by hand first", NULL,
	"SELECT * FROM cusown_runbook('backup_and_restore');"},
	{"2", "Test Migration", {NULL}, "on staging: no errors, what it touches works"},
	{"3", "Apply to Production", {NULL}, "in one transaction", NULL,
	"\\i migration.sql"},
	{"4", "Verify Application", {"binding_unresolved"},
	"every name is still there", NULL,
	"SELECT * FROM cusown_attach(cusown_ops.chosen_app_schema());"},
	{"4", "Verify Application", {RUNBOOK_ANY}, NULL, NULL,
	"SELECT * FROM cusown_runbook();",.outside = true},
	{"5", "Rollback", {NULL}, "if needed: restore, verify the data", NULL,
	"SELECT * FROM cusown_runbook('backup_and_restore');"},
	{NULL}
};

const Runbook database_migration_runbook = {
	"database_migration", "Database Migration", steps
};
