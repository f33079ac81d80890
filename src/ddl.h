/*-------------------------------------------------------------------------
 *
 * ddl.h
 *	  DDL on the application's tables.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CUSOWN_DDL_H
#define CUSOWN_DDL_H

extern int	ddl_limit_lock_wait(void);
extern void ddl_end_lock_wait(int nest_level);
extern void ddl_execute(const char *statement);

#endif							/* CUSOWN_DDL_H */
