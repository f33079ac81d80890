/*-------------------------------------------------------------------------
 *
 * ddl.c
 *	  DDL on the application's tables.
 *
 * Whoever waits for a strong lock makes everybody wait who comes after him: DDL
 * of ours gives up after two seconds, or sooner where the caller says so.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "executor/spi.h"
#include "storage/proc.h"
#include "utils/guc.h"

#include "ddl.h"

#define LOCK_TIMEOUT_MS 2000

/* returns what ddl_end_lock_wait() wants */
int
ddl_limit_lock_wait(void)
{
	int			nest_level = NewGUCNestLevel();

	if (LockTimeout == 0 || LockTimeout > LOCK_TIMEOUT_MS)
		(void) set_config_option("lock_timeout",
								 psprintf("%d", LOCK_TIMEOUT_MS), PGC_USERSET,
								 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0,
								 false);
	return nest_level;
}

void
ddl_end_lock_wait(int nest_level)
{
	AtEOXact_GUC(true, nest_level);
}

/* names in statement are qualified and quoted (template_ddl()) */
void
ddl_execute(const char *statement)
{
	int			nest_level = ddl_limit_lock_wait();
	int			code = SPI_execute(statement, false, 0);

	if (code < 0)
		elog(ERROR, "SPI_execute failed: %s", SPI_result_code_string(code));
	ddl_end_lock_wait(nest_level);
}
