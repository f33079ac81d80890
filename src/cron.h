/*-------------------------------------------------------------------------
 *
 * cron.h
 *	  Our jobs in pg_cron.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CUSOWN_CRON_H
#define CUSOWN_CRON_H

extern char *cron_job_name(const char *job);
extern char *cron_call(const char *job, const char *source);
extern bool cron_is_loaded(void);
extern bool cron_is_visible(void);

#endif							/* CUSOWN_CRON_H */
