/*-------------------------------------------------------------------------
 *
 * lazy.h
 *	  Expiry by the application's own requests, while no scheduler does it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CUSOWN_LAZY_H
#define CUSOWN_LAZY_H

/*
 * Its name in the ledger.  Not that of the job: a scheduler that has died must
 * not look alive because requests do its work.
 */
#define LAZY_JOB "expire_if_due"

/* the source of its rows */
#define LAZY_SOURCE "lazy_heal"

#endif							/* CUSOWN_LAZY_H */
