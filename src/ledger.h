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
	bool		more_left;		/* it ended before its work did */
} LedgerRun;

/*
 * A row s, j per attached application and job, with what the owner has set and
 * since when.
 */
#define ATTACHED_JOBS \
	" FROM (SELECT b.app_schema, pg_catalog.min(b.bound_since) AS since" \
	" FROM cusown_ops.binding b GROUP BY b.app_schema) s" \
	" CROSS JOIN (SELECT p.name, coalesce(o.every, p.every) AS every," \
	" coalesce(o.enabled, p.enabled) AS enabled, o.set_at AS since" \
	" FROM cusown_ops.shipped_jobs() p" \
	" LEFT JOIN cusown_ops.job o ON o.name = p.name) j"

/*
 * From when the time for a job j with the last success ok is counted.  One that has
 * never succeeded is not late before the scheduler has had as long for it since it
 * was set up.
 */
#define LAST_ON_TIME "coalesce(ok.finished_at, greatest(s.since, j.since))"

/*
 * Of a run r: a success in the future is from a clock that was set back, and says
 * nothing.  Not the statement's time, as what ended since then may be seen.
 */
#define HAS_HAPPENED "r.finished_at <= pg_catalog.clock_timestamp()"

extern void ledger_mark_died(const char *app_schema, const char *job);
extern void ledger_begin(LedgerRun *run);
extern void ledger_progress(const LedgerRun *run, const JobCounts *counts);
extern void ledger_end(const LedgerRun *run, const ErrorData *error);
extern void ledger_tell_application(const LedgerRun *run,
									const JobCounts *counts,
									const ErrorData *error);
extern void ledger_skip(const LedgerRun *run);
extern void ledger_record(const LedgerRun *run, const JobCounts *counts,
						  const ErrorData *error);
extern void ledger_bound(const char *app_schema, const char *job);
extern bool ledger_newest(const char *app_schema, const char *job,
						  TimestampTz *started_at);
extern void ledger_count_lazy_heal(const char *app_schema, int64 expired);

#endif							/* CUSOWN_LEDGER_H */
