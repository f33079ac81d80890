/*-------------------------------------------------------------------------
 *
 * expiry.h
 *	  Expires pending bookings that are older than they may get.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CUSOWN_EXPIRY_H
#define CUSOWN_EXPIRY_H

#include "job.h"

extern void expiry_run(Binding *binding, const char *source, int64 max_rows,
					   bool own_transaction, JobCounts *counts);

#endif							/* CUSOWN_EXPIRY_H */
