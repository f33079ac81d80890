/*-------------------------------------------------------------------------
 *
 * shmem.c
 *	  The shared memory of the extension, there only when it is preloaded.
 *
 * One pair of hooks serves all features; each declares how much it keeps and
 * how to attach to it.  A feature works without as well, or says that it
 * cannot: whether its attach function was called tells it.  After a crash the
 * server makes shared memory anew, and so does the startup hook.
 *
 * Locking protocol: the parts are made and found under AddinShmemInitLock.
 * Each part has a lock of its own, of the tranche "cusown_ops", and writes down
 * what it protects.  No part takes the lock of another.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"

#include "shmem.h"

/* of the locks, as pg_stat_activity shows who waits for one */
#define TRANCHE "cusown_ops"

/* the order is that of the locks */
static const SharedPart *const parts[] = {
	&turn_shared_part,
	&worker_shared_part,
};

static shmem_request_hook_type prev_shmem_request_hook = NULL;
static shmem_startup_hook_type prev_shmem_startup_hook = NULL;

static void
request_shared_memory(void)
{
	Size		size = 0;

	if (prev_shmem_request_hook != NULL)
		prev_shmem_request_hook();
	for (int i = 0; i < lengthof(parts); i++)
		size = add_size(size, parts[i]->size());
	RequestAddinShmemSpace(size);
	RequestNamedLWLockTranche(TRANCHE, lengthof(parts));
}

static void
attach_shared_memory(void)
{
	LWLockPadded *locks;

	if (prev_shmem_startup_hook != NULL)
		prev_shmem_startup_hook();
	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	locks = GetNamedLWLockTranche(TRANCHE);
	for (int i = 0; i < lengthof(parts); i++)
		parts[i]->attach(&locks[i].lock);
	LWLockRelease(AddinShmemInitLock);
}

void
shmem_init(void)
{
	if (IsBinaryUpgrade || !process_shared_preload_libraries_in_progress)
		return;
	prev_shmem_request_hook = shmem_request_hook;
	shmem_request_hook = request_shared_memory;
	prev_shmem_startup_hook = shmem_startup_hook;
	shmem_startup_hook = attach_shared_memory;
}
