/*-------------------------------------------------------------------------
 *
 * job.h
 *	  The frame that a job runs in.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CUSOWN_JOB_H
#define CUSOWN_JOB_H

#include "datatype/timestamp.h"

#include "binding.h"
#include "split.h"

/* what a run has done so far, as the ledger and job_progress show it */
typedef struct JobCounts
{
	int64		changed;		/* bookings expired, slots released, ... */
	int64		released;		/* slots released on the way */
	int64		attention;		/* worklist entries written */
	int64		looked_at;		/* candidates read */
} JobCounts;

/* one run of one job on one application */
typedef struct JobRun
{
	const char *app_schema;
	Binding    *binding;		/* for the step that is under way; NULL where
								 * the job has no relations */
	const char *source;
	int			batch_size;
	TimestampTz as_of;			/* start of the run */
	JobCounts	counts;
	MemoryContext context;		/* lives as long as the run */
	void	   *state;			/* the job's own, zeroed, kept over steps */
	char	   *given_up;		/* why it ends before its work does, or NULL */
	int			given_up_code;	/* SQLSTATE of that */
} JobRun;

typedef struct Job
{
	const char *name;
	const char *description;
	int			every;			/* seconds between runs, where the owner set
								 * none */
	bool		enabled;		/* where the owner did not say */
	const char *const *relations;	/* what it reads and changes; NULL: it
									 * works also where the binding does not
									 * resolve */
	Size		state_size;
	bool		(*step) (JobRun *run);	/* one batch; false when nothing is
										 * left */
} Job;

/* each beside the verb that it runs */
extern const Job expire_bookings_job;
extern const Job release_expired_holds_job;
extern const Job mark_no_show_job;
extern const Job prune_history_job;
extern const Job expire_payments_job;
extern const Job retry_parked_webhooks_job;
extern const Job prune_idempotency_job;
extern const Job take_census_job;
extern const Job evaluate_alerts_job;

extern const Job *job_named(const char *name);
extern List *job_schemas(MemoryContext context);
extern void job_give_up(JobRun *run, const Split *split, const char *what);
extern void job_set_deadline(TimestampTz moment);
extern void job_mark_died(const Job *job, const char *app_schema);
extern bool job_keep_out(const Job *job, const char *app_schema);

#endif							/* CUSOWN_JOB_H */
