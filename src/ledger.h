/*-------------------------------------------------------------------------
 *
 * ledger.h
 *	  cusown_ops.job_run: which job ran when, and how it ended.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CUSOWN_LEDGER_H
#define CUSOWN_LEDGER_H

#include "job.h"

typedef struct LedgerRun
{
	const char *job;
	const char *app_schema;
	const char *source;
	int64		id;				/* of the row, once begun */
	TimestampTz started_at;
} LedgerRun;

extern void ledger_begin(LedgerRun *run);
extern void ledger_progress(const LedgerRun *run, const JobCounts *counts);
extern void ledger_end(const LedgerRun *run, const ErrorData *error);
extern void ledger_tell_application(const LedgerRun *run,
									const JobCounts *counts,
									const ErrorData *error);
extern void ledger_skip(const LedgerRun *run);

#endif							/* CUSOWN_LEDGER_H */
