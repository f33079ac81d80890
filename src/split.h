/*-------------------------------------------------------------------------
 *
 * split.h
 *	  Changes rows of which a trigger refuses some.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CUSOWN_SPLIT_H
#define CUSOWN_SPLIT_H

#include "binding.h"

/* subtransactions that one transaction may begin: the server caches 64 */
#define SPLIT_MAX_TRIES 50

/* what one transaction has tried so far */
typedef struct Split
{
	int			tries;
	bool		own_transaction;	/* deferred triggers are ours to fire */
	int64		passed;			/* rows changed */
	int64		refused;		/* rows that cannot be */
	ErrorData  *last_refusal;	/* in the memory of split_rows()'s caller */
} Split;

/*
 * Changes rows first .. first + count - 1 of state, and counts them when nothing
 * can fail any more.
 */
typedef void (*SplitChange) (void *state, int first, int count);

/* row of state cannot be changed */
typedef void (*SplitRefused) (void *state, int row, const ErrorData *error);

extern void split_begin(Split *split);
extern int	split_window_size(int64 max_rows);
extern bool split_has_tries(const Split *split);
extern bool split_is_fruitless(const Split *split);
extern void split_fire_deferred(const Split *split);
extern int	split_rows(Split *split, const Binding *binding, int count,
					   SplitChange change, SplitRefused refused, void *state);
extern bool split_is_refusal(const ErrorData *error);
extern char *split_finding(const ErrorData *error, const char *what);

#endif							/* CUSOWN_SPLIT_H */
