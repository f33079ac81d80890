/*-------------------------------------------------------------------------
 *
 * turn.c
 *	  What is done at most once in an interval, whoever asks.
 *
 * A turn is known by database, kind and application schema, and all that is
 * kept of it is when it was last taken: the caller brings the interval, so a
 * change of the setting counts at once.  Turns are kept in shared memory, where
 * they are those of all backends; without preload in the backend's own, where
 * the caller has to ask something that others can see as well.
 *
 * The table in shared memory does not grow.  Databases and schemas come and
 * go, and nobody tells us, so a new turn takes the place of the one that was
 * taken longest ago.  At worst that one is taken too early.
 *
 * Locking protocol: the lock of this part is held shared to read a turn and
 * exclusive to take one, which decides again.  Nothing is done under it but
 * look, read the clock and write.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "shmem.h"
#include "turn.h"

/* turns in shared memory: about 100 kB */
#define MAX_SHARED_TURNS 1024

/* without padding, since it is hashed as bytes */
typedef struct TurnKey
{
	Oid			database;
	int32		kind;			/* TurnKind */
	NameData	app_schema;		/* the rest of it zeroed */
} TurnKey;

typedef struct Turn
{
	TurnKey		key;
	TimestampTz taken_at;		/* the last time */
} Turn;

/* in shared memory, or made by this backend at the first turn that it takes */
static HTAB *turns = NULL;

/* of the table in shared memory; NULL where it is the backend's own */
static LWLock *turns_lock = NULL;

static HASHCTL
table_layout(void)
{
	HASHCTL		ctl = {0};

	ctl.keysize = sizeof(TurnKey);
	ctl.entrysize = sizeof(Turn);
	return ctl;
}

static Size
shared_size(void)
{
	return hash_estimate_size(MAX_SHARED_TURNS, sizeof(Turn));
}

static void
attach_to_shared(LWLock *lock)
{
	HASHCTL		ctl = table_layout();

	turns_lock = lock;
	turns = ShmemInitHash("cusown_ops turns", MAX_SHARED_TURNS,
						  MAX_SHARED_TURNS, &ctl, HASH_ELEM | HASH_BLOBS);
}

const SharedPart turn_shared_part = {shared_size, attach_to_shared};

bool
turn_is_shared(void)
{
	return turns_lock != NULL;
}

static void
lock_turns(LWLockMode mode)
{
	if (turns_lock != NULL)
		LWLockAcquire(turns_lock, mode);
}

static void
unlock_turns(void)
{
	if (turns_lock != NULL)
		LWLockRelease(turns_lock);
}

static TurnKey
turn_key(TurnKind kind, const char *app_schema)
{
	TurnKey		key = {0};

	key.database = MyDatabaseId;
	key.kind = kind;
	namestrcpy(&key.app_schema, app_schema);
	return key;
}

/*
 * Either way, so that a clock that was set back does not keep a turn from
 * being taken for as long.
 */
bool
turn_is_over(TimestampTz taken_at, TimestampTz now, int interval)
{
	int64		length = interval * USECS_PER_SEC;

	return now - taken_at >= length || taken_at - now >= length;
}

/* an answer of the moment: whoever wants to act on it takes the turn */
bool
turn_is_due(TurnKind kind, const char *app_schema, int interval)
{
	TurnKey		key = turn_key(kind, app_schema);
	TimestampTz taken_at = 0;
	const Turn *turn = NULL;

	if (turns == NULL)
		return true;
	lock_turns(LW_SHARED);
	turn = hash_search(turns, &key, HASH_FIND, NULL);
	if (turn != NULL)
		taken_at = turn->taken_at;
	unlock_turns();
	return turn == NULL || turn_is_over(taken_at, GetCurrentTimestamp(), interval);
}

static void
make_own_table(void)
{
	HASHCTL		ctl = table_layout();

	ctl.hcxt = TopMemoryContext;
	turns = hash_create("cusown_ops turns of this backend", 16, &ctl,
						HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

static void
forget_stalest(void)
{
	HASH_SEQ_STATUS status;
	TurnKey		stalest = {0};
	TimestampTz since = DT_NOEND;
	const Turn *turn;

	hash_seq_init(&status, turns);
	while ((turn = hash_seq_search(&status)) != NULL)
	{
		if (turn->taken_at > since)
			continue;
		since = turn->taken_at;
		stalest = turn->key;
	}
	hash_search(turns, &stalest, HASH_REMOVE, NULL);
}

/* under the exclusive lock; the turn is there afterwards */
static Turn *
find_or_make(const TurnKey *key, bool *found)
{
	Turn	   *turn = hash_search(turns, key, HASH_FIND, NULL);

	*found = turn != NULL;
	if (*found)
		return turn;
	if (turns_lock != NULL && hash_get_num_entries(turns) >= MAX_SHARED_TURNS)
		forget_stalest();
	return hash_search(turns, key, HASH_ENTER, NULL);
}

/*
 * Takes the turn, now, if its last one is longer ago than the interval in
 * seconds; of several at once one does.
 */
bool
turn_take(TurnKind kind, const char *app_schema, int interval,
		  TimestampTz *taken_at)
{
	TurnKey		key = turn_key(kind, app_schema);
	bool		found;
	bool		due;
	Turn	   *turn;

	if (turns == NULL)
		make_own_table();
	lock_turns(LW_EXCLUSIVE);
	turn = find_or_make(&key, &found);
	*taken_at = GetCurrentTimestamp();
	due = !found || turn_is_over(turn->taken_at, *taken_at, interval);
	if (due)
		turn->taken_at = *taken_at;
	unlock_turns();
	return due;
}

/* for a caller that learned elsewhere when it was */
void
turn_was_taken(TurnKind kind, const char *app_schema, TimestampTz taken_at)
{
	TurnKey		key = turn_key(kind, app_schema);
	bool		found;

	if (turns == NULL)
		make_own_table();
	lock_turns(LW_EXCLUSIVE);
	find_or_make(&key, &found)->taken_at = taken_at;
	unlock_turns();
}
