/*-------------------------------------------------------------------------
 *
 * shmem.h
 *	  The shared memory of the extension, there only when it is preloaded.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CUSOWN_SHMEM_H
#define CUSOWN_SHMEM_H

#include "storage/lwlock.h"

/* what one feature keeps there; a static const beside its code */
typedef struct SharedPart
{
	Size		(*size) (void); /* at most */
	void		(*attach) (LWLock *lock);	/* makes it, or finds it made */
} SharedPart;

extern const SharedPart turn_shared_part;
extern const SharedPart worker_shared_part;

extern void shmem_init(void);

#endif							/* CUSOWN_SHMEM_H */
