/*-------------------------------------------------------------------------
 *
 * split.c
 *	  Changes rows of which a trigger refuses some.
 *
 * What a CHECK would refuse is known before (row_check.c).  What a trigger, or
 * a constraint of another kind, refuses is known only by trying: the rows are
 * changed in a subtransaction; when that fails, its halves are, the first one
 * first, down to the single row that cannot be changed.  So at any moment all
 * rows before some row are done, changed or refused, and none behind it is:
 * when the tries are used up the caller goes on from there in its next
 * transaction.  Where they go into refused rows alone, the last ones are kept
 * for rows further on: whoever is refused may come in a row, and one good row
 * tells that the others are worth the next transaction.
 *
 * An error that is no judgment of a row, such as a cancel, a deadlock, a
 * lock_timeout or a full disk, is raised.  So is one of a trigger that can
 * change no row at all, and what the audit table refuses: that is mended there.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "executor/spi.h"
#include "storage/proc.h"
#include "utils/elog.h"

#include "cusown_ops.h"
#include "split.h"
#include "subtransaction.h"

/* tries kept for rows further on while nothing got through */
#define PROBES 8

typedef struct Try
{
	const Binding *binding;
	SplitChange change;
	SplitRefused refused;
	void	   *state;
	int			first;
	int			count;
} Try;

/* the tries of a transaction that is ours: nothing tried yet */
void
split_begin(Split *split)
{
	memset(split, 0, sizeof(*split));
	split->own_transaction = true;
}

/* of a call in one transaction: most tries are left for rows that are refused */
int
split_window_size(int64 max_rows)
{
	int64		twentieth = max_rows / 20;

	return Max(cusown_batch_size, Min(twentieth, CUSOWN_MAX_BATCH_SIZE));
}

bool
split_has_tries(const Split *split)
{
	return split->tries < SPLIT_MAX_TRIES;
}

/* all tries went into rows that were refused: the rest may be no better */
bool
split_is_fruitless(const Split *split)
{
	return !split_has_tries(split) && split->passed == 0;
}

/*
 * Whether the error says something about a row.  Under the caller's lock_timeout
 * a lock that is not available may be that of a table, for which each try would
 * wait as long; else it is one that a trigger did not want to wait for.
 */
bool
split_is_refusal(const ErrorData *error)
{
	if (error->sqlerrcode == ERRCODE_LOCK_NOT_AVAILABLE && LockTimeout > 0)
		return false;
	switch (ERRCODE_TO_CATEGORY(error->sqlerrcode))
	{
		case ERRCODE_TRANSACTION_ROLLBACK:
		case ERRCODE_INSUFFICIENT_RESOURCES:
		case ERRCODE_OPERATOR_INTERVENTION:
		case ERRCODE_SYSTEM_ERROR:
		case ERRCODE_INTERNAL_ERROR:
			return false;
		default:
			return true;
	}
}

/*
 * For the change function, behind its changes: at commit the error of a
 * deferred trigger would be one of the whole transaction.
 */
void
split_fire_deferred(const Split *split)
{
	MemoryContext caller = CurrentMemoryContext;

	if (!split->own_transaction)
		return;
	if (SPI_execute("SET CONSTRAINTS ALL IMMEDIATE", false, 0) < 0)
		elog(ERROR, "SET CONSTRAINTS failed");
	MemoryContextSwitchTo(caller);	/* SPI left it in its own */
}

static void
change_rows(void *state)
{
	const Try  *this = state;

	this->change(this->state, this->first, this->count);
}

/*
 * A trigger that cannot run at all, since it names what is not there or may not
 * do what it does, under this search_path and role.  It judges a row only when
 * others get by it.
 */
static bool
is_program_error(const ErrorData *error)
{
	return ERRCODE_TO_CATEGORY(error->sqlerrcode) ==
		ERRCODE_SYNTAX_ERROR_OR_ACCESS_RULE_VIOLATION;
}

/* whether the error is one of a constraint of the audit table */
static bool
is_about_audit(const Binding *binding, const ErrorData *error)
{
	const BoundRelation *audit_logs = binding_relation(binding, "audit_logs");

	return audit_logs != NULL && error->table_name != NULL &&
		strcmp(error->table_name, audit_logs->name) == 0 &&
		strcmp(error->schema_name, audit_logs->schema) == 0;
}

/* whether the rows are changed now */
static bool
try_rows(Split *split, Try *this)
{
	ErrorData  *error;

	split->tries++;
	error = subtransaction_try(change_rows, this, CurrentMemoryContext);
	if (error == NULL)
	{
		split->passed += this->count;
		return true;
	}
	if (!split_is_refusal(error) || is_about_audit(this->binding, error))
		ReThrowError(error);
	if (this->count == 1)
	{
		split->refused++;
		split->last_refusal = error;
		this->refused(this->state, this->first, error);
	}
	return false;
}

/* for the rows at the front */
static bool
has_tries_in_order(const Split *split)
{
	return split->tries < SPLIT_MAX_TRIES - (split->passed == 0 ? PROBES : 0);
}

/*
 * Returns how many of the first rows are done, fewer than count when the tries
 * are used up.  holds_refused: one of the rows is known to be refused, so that
 * more than one need not be tried together.
 */
static int
split_range(Split *split, Try this, bool holds_refused)
{
	Try			half = this;
	int64		refused_before = split->refused;
	int			done;

	if (this.count == 1 || !holds_refused)
	{
		if (!has_tries_in_order(split))
			return 0;
		if (try_rows(split, &this) || this.count == 1)
			return this.count;
	}
	half.count = this.count / 2;
	done = split_range(split, half, false);
	if (done < half.count)
		return done;
	half.first = this.first + half.count;
	half.count = this.count - half.count;
	return done + split_range(split, half, split->refused == refused_before);
}

/* single rows, spread over those of all behind the first done, until one passes */
static void
probe(Split *split, Try all, int done)
{
	Try			row = all;
	int			last = all.count - 1;

	row.count = 1;
	for (int i = 1; i <= PROBES && split->passed == 0; i++)
	{
		int			next = done + (int) ((int64) (last - done) * i / PROBES);

		if (i > 1 && next == row.first)
			continue;
		row.first = next;
		(void) try_rows(split, &row);
	}
}

/*
 * Changes count rows of state, but for those that a trigger refuses.  Returns
 * how many of the first rows are done: all, unless the tries are used up.
 */
int
split_rows(Split *split, const Binding *binding, int count, SplitChange change,
		   SplitRefused refused, void *state)
{
	Try			all = {binding, change, refused, state, 0, count};
	int64		refused_before = split->refused;
	int			done = count == 0 ? 0 : split_range(split, all, false);

	if (done < count && split->passed == 0)
		probe(split, all, done);
	/* of an earlier call the last refusal's memory may be gone */
	if (split->passed == 0 && split->refused > refused_before &&
		is_program_error(split->last_refusal))
		ReThrowError(split->last_refusal);
	return done;
}

/*
 * What the worklist says of a refused row.  The error's own message may hold
 * anything that the application put there, so it is left out.
 */
char *
split_finding(const ErrorData *error, const char *what)
{
	static const char function[] = "PL/pgSQL function ";
	const char *context = error->context;

	if (error->constraint_name != NULL)
		return psprintf("constraint \"%s\" refuses to %s",
						error->constraint_name, what);
	if (context != NULL && strncmp(context, function, strlen(function)) == 0)
		return psprintf("%.*s refuses to %s",
						(int) strcspn(context, "\n"), context, what);
	return psprintf("a trigger or constraint refuses to %s", what);
}
