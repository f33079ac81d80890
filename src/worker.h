/*-------------------------------------------------------------------------
 *
 * worker.h
 *	  The worker that covers for a scheduler that has died.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CUSOWN_WORKER_H
#define CUSOWN_WORKER_H

extern void worker_define_settings(void);
extern void worker_init(void);

#endif							/* CUSOWN_WORKER_H */
