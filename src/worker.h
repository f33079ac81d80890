/*-------------------------------------------------------------------------
 *
 * worker.h
 *	  The worker that covers for a scheduler that has died.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CUSOWN_WORKER_H
#define CUSOWN_WORKER_H

#include "datatype/timestamp.h"
#include "storage/lwlock.h"

/* databases that can be visited */
#define WORKER_MAX_DATABASES 128

/* the shortest time between two visits */
#define WORKER_MIN_NAP_MS 10

/* what fails is tried again at least this often */
#define WORKER_MAX_BACKOFF_MS (3600 * 1000L)

#define WORKER_TEXT_LENGTH 256

/* jobs of one database that fail, as far as they are remembered */
#define WORKER_MAX_FAILING 16

/* a job that failed last time, which the ledger may not know of */
typedef struct FailingJob
{
	NameData	app_schema;
	NameData	job;			/* empty: this entry is free */
	bool		is_over;		/* standing down from it is what failed */
	int			failures;		/* in a row */
	TimestampTz next_try;
} FailingJob;

/* why nothing can be done in a database, as the log was told */
typedef enum WorkerIdleness
{
	WORKER_IS_ABLE,
	WORKER_NOT_INSTALLED,
	WORKER_ON_SUBSCRIBER,
	WORKER_WITHOUT_ROLE,
} WorkerIdleness;

/* what is known of one database */
typedef struct WorkerVisit
{
	NameData	database;		/* empty: this entry is free */
	TimestampTz last_visit;		/* when it began, 0: none yet */
	TimestampTz next_visit;
	TimestampTz last_error_at;	/* 0: none yet */
	int64		visits;			/* begun since the launcher came up */
	int			failures;		/* the last so many visits failed */
	pid_t		pid;			/* worker that is at it, or 0 */
	bool		is_done;		/* the visit came to its end */
	WorkerIdleness idleness;	/* what the log was told last */
	FailingJob	failing[WORKER_MAX_FAILING];
	char		did[WORKER_TEXT_LENGTH];	/* in the last visit that ended */
	char		doing[WORKER_TEXT_LENGTH];	/* empty: no visit is under way */
	char		last_error[WORKER_TEXT_LENGTH];
} WorkerVisit;

/* what a worker is given, in bgw_extra */
typedef struct WorkerOrder
{
	int64		launchers;		/* of the launcher that gave it */
	int			visit;
} WorkerOrder;

typedef struct WorkerShared
{
	pid_t		launcher;		/* 0: none runs */
	int64		launchers;		/* so many have run, with this one */
	WorkerVisit visits[WORKER_MAX_DATABASES];
} WorkerShared;

extern bool worker_enabled;
extern char *worker_databases;
extern char *worker_role;
extern int	worker_naptime;

extern WorkerShared *worker_shared; /* NULL without preload */
extern LWLock *worker_lock;

extern void worker_define_settings(void);
extern void worker_init(void);
extern void worker_set_text(char *text, const char *value);
extern TimestampTz worker_next_try(TimestampTz now, int failures,
								   int64 limit_ms);
extern void worker_note_failure(WorkerVisit *visit, const char *error);

extern PGDLLEXPORT void cusown_worker_launcher_main(Datum argument);
extern PGDLLEXPORT void cusown_worker_main(Datum argument);

#endif							/* CUSOWN_WORKER_H */
