/*-------------------------------------------------------------------------
 *
 * ddl.h
 *	  DDL on the application's tables.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CUSOWN_DDL_H
#define CUSOWN_DDL_H

extern void ddl_execute(const char *statement);

#endif							/* CUSOWN_DDL_H */
