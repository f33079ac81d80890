/*-------------------------------------------------------------------------
 *
 * verb.c
 *	  What every verb checks before it works, and how it is shown first.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/rls.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "errors.h"
#include "template.h"
#include "verb.h"

/* a caller's clock may be ahead of ours by this much */
#define CLOCK_TOLERANCE_US (60 * USECS_PER_SEC)

static const char *const sources[] = {
	"manual", "cron", "worker", "lazy_heal", "application"
};

/*
 * A verb that locks needs a new snapshot for each of its statements: it
 * decides again after it has locked.
 */
void
verb_check_transaction(const char *verb)
{
	if (RecoveryInProgress())
		ereport(ERROR,
				(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
				 errmsg("cannot execute %s() on a standby", verb),
				 errhint("Call it on the primary server.")));
	if (XactReadOnly)
		ereport(ERROR,
				(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
				 errmsg("cannot execute %s() in a read-only transaction", verb),
				 errhint("Call it in a READ WRITE transaction.")));
	if (IsolationUsesXactSnapshot())
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot execute %s() under isolation level REPEATABLE READ or SERIALIZABLE",
						verb),
				 errhint("Call it under READ COMMITTED, where rows are read again after they were locked.")));
}

/*
 * On error_context_stack: keeps the caller's statement, whose arguments are
 * nobody's business, out of the log.
 */
void
verb_hide_statement(void *arg)
{
	errhidestmt(true);
}

/* for messages */
char *
verb_uuid_text(const pg_uuid_t *id)
{
	return DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(id)));
}

/* whether row-level security may hide rows of a relation from this role */
bool
verb_is_blinded(const Binding *binding, const char *relation)
{
	const BoundRelation *bound = binding_relation(binding, relation);

	return bound != NULL &&
		check_enable_rls(bound->relid, InvalidOid, true) == RLS_ENABLED;
}

/*
 * A set-wide verb that row-level security blinds would report "nothing to do"
 * and be believed.  relations are the canonical names of what it reads and
 * writes, ended by NULL.
 */
void
verb_check_row_security(const Binding *binding, const char *const *relations)
{
	for (; *relations != NULL; relations++)
	{
		const BoundRelation *relation = binding_relation(binding, *relations);

		if (!verb_is_blinded(binding, *relations))
			continue;
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("row-level security hides rows of %s from role \"%s\"",
						quote_qualified_identifier(relation->schema,
												   relation->name),
						GetUserNameFromId(GetUserId(), false)),
				 errhint("Run it as a role that has BYPASSRLS, with row_security on.")));
	}
}

/*
 * A row that a verb on one named entity did not find: gone for all, or hidden
 * from this role by row-level security, which must not pass for gone.
 */
void
verb_check_visible(const Binding *binding, const char *relation,
				   const pg_uuid_t *id)
{
	const BoundRelation *bound = binding_relation(binding, relation);

	if (!verb_is_blinded(binding, relation))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_CUSOWN_NOT_FOUND),
			 errmsg("row %s of %s does not exist, or row-level security hides it",
					verb_uuid_text(id),
					quote_qualified_identifier(bound->schema, bound->name))));
}

/* whether nobody watches what a source of this name starts */
bool
verb_is_unattended(const char *source)
{
	return strcmp(source, "cron") == 0 || strcmp(source, "worker") == 0;
}

/*
 * $1 a role: whether it may become a superuser, as also who can change the server's
 * files or run its programs
 */
static const Template member_of_superusers = {
	"SELECT EXISTS (SELECT FROM pg_catalog.pg_roles r WHERE (r.rolsuper"
	" OR r.rolname = ANY ('{pg_execute_server_program,pg_write_server_files}'))"
	" AND pg_catalog.pg_has_role($1::oid, r.oid, 'MEMBER')) AS is_member",
	1, {OIDOID}
};

/*
 * Whether what this session runs has a superuser's rights, or could take them:
 * a trigger may reset or set the role.
 */
bool
verb_may_be_superuser(void)
{
	Datum		values[1];
	bool		is_member;

	if (superuser() || superuser_arg(GetSessionUserId()) ||
		superuser_arg(GetAuthenticatedUserId()))
		return true;
	values[0] = ObjectIdGetDatum(GetSessionUserId());
	template_execute(NULL, &member_of_superusers, values, NULL, false);
	is_member = template_bool(0, "is_member");
	SPI_freetuptable(SPI_tuptable);
	return is_member;
}

static Oid
relation_owner(Oid relid)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
	Oid			owner;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for relation %u", relid);
	owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
	ReleaseSysCache(tuple);
	return owner;
}

/* the first of a table, its partitions and its children that is no superuser's */
static Oid
relation_of_others(Oid relid)
{
	List	   *all = find_all_inheritors(relid, NoLock, NULL);
	ListCell   *lc;

	foreach(lc, all)
	{
		if (SearchSysCacheExists1(RELOID, ObjectIdGetDatum(lfirst_oid(lc))) &&
			!superuser_arg(relation_owner(lfirst_oid(lc))))
			return lfirst_oid(lc);
	}
	return InvalidOid;
}

/*
 * Whoever owns a table can plant a trigger on it, which runs with the rights
 * of whoever writes.  Nobody watches a job, so it must not be a superuser's.
 */
void
verb_check_unattended(const Binding *binding, const char *source)
{
	ListCell   *lc;

	if (!verb_is_unattended(source) || !verb_may_be_superuser())
		return;
	foreach(lc, binding->relations)
	{
		Oid			relid = relation_of_others(((BoundRelation *) lfirst(lc))->relid);

		if (!OidIsValid(relid))
			continue;
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("cannot run unattended as a superuser on tables of others"),
				 errdetail("Table %s belongs to role \"%s\".",
						   quote_qualified_identifier(get_namespace_name(get_rel_namespace(relid)),
													  get_rel_name(relid)),
						   GetUserNameFromId(relation_owner(relid), false)),
				 errhint("Let it run as a role that cusown_grant() gave the profile operator, logged in as that role, which is not a member of a superuser.")));
	}
}

static void
check_source(const char *source)
{
	for (int i = 0; i < lengthof(sources); i++)
	{
		if (strcmp(source, sources[i]) == 0)
			return;
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("unknown source \"%s\"", source),
			 errhint("Sources are manual, cron, worker, lazy_heal and application.")));
}

/*
 * Our functions are not STRICT: a NULL where none makes sense is a caller's
 * mistake, and must not look like "nothing to do".
 */
void
verb_check_not_null(FunctionCallInfo fcinfo, int arg, const char *name)
{
	if (PG_ARGISNULL(arg))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not be null", name)));
}

TimestampTz
verb_as_of(FunctionCallInfo fcinfo, int arg)
{
	verb_check_not_null(fcinfo, arg, "as_of");
	return PG_GETARG_TIMESTAMPTZ(arg);
}

bool
verb_dry_run(FunctionCallInfo fcinfo, int arg)
{
	verb_check_not_null(fcinfo, arg, "dry_run");
	return PG_GETARG_BOOL(arg);
}

int64
verb_max_rows(FunctionCallInfo fcinfo, int arg)
{
	verb_check_not_null(fcinfo, arg, "max_rows");
	if (PG_GETARG_INT32(arg) <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_rows must be greater than zero")));
	return PG_GETARG_INT32(arg);
}

char *
verb_source(FunctionCallInfo fcinfo, int arg)
{
	char	   *source;

	verb_check_not_null(fcinfo, arg, "source");
	source = text_to_cstring(PG_GETARG_TEXT_PP(arg));
	check_source(source);
	return source;
}

/* cancelled is final: a clock that runs ahead must not cancel anything */
void
verb_check_as_of(TimestampTz as_of, bool dry_run)
{
	if (!dry_run && as_of > GetCurrentTimestamp() + CLOCK_TOLERANCE_US)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("as_of is more than a minute ahead of the clock"),
				 errhint("Only a dry run may look ahead.")));
}

/* more than any clock holds, and far from overflow */
#define MAX_INTERVAL_MONTHS (1000 * MONTHS_PER_YEAR)

void
verb_check_interval(const Interval *interval, const char *name)
{
	Interval	zero = {0};
	Interval	limit = {0};

	if (DatumGetBool(DirectFunctionCall2(interval_lt,
										 IntervalPGetDatum(interval),
										 IntervalPGetDatum(&zero))))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must not be negative", name)));
	limit.month = MAX_INTERVAL_MONTHS;
	if (DatumGetBool(DirectFunctionCall2(interval_gt,
										 IntervalPGetDatum(interval),
										 IntervalPGetDatum(&limit))))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must not be more than 1000 years", name)));
}

/* days of 24 hours, months of 30 days */
long
verb_interval_ms(const Interval *interval)
{
	int64		days = interval->month * INT64CONST(30) + interval->day;

	return (long) ((days * USECS_PER_DAY + interval->time) / 1000);
}

/*
 * as_of - interval with days of 24 hours.  The operator on timestamptz would
 * use the session's TimeZone.
 */
TimestampTz
verb_before(TimestampTz as_of, const Interval *interval)
{
	return DatumGetTimestamp(DirectFunctionCall2(timestamp_mi_interval,
												 TimestampGetDatum(as_of),
												 IntervalPGetDatum(interval)));
}

/* likewise moment + interval */
TimestampTz
verb_after(TimestampTz moment, const Interval *interval)
{
	return DatumGetTimestamp(DirectFunctionCall2(timestamp_pl_interval,
												 TimestampGetDatum(moment),
												 IntervalPGetDatum(interval)));
}

static void
run_connected(VerbBody body, void *state)
{
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	body(state);
	if (SPI_finish() != SPI_OK_FINISH)
		elog(ERROR, "SPI_finish failed");
}

/* the same code, in a subtransaction that is always rolled back */
static void
run_and_roll_back(VerbBody body, void *state)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		run_connected(body, state);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
		ReThrowError(error);
	}
	PG_END_TRY();
	RollbackAndReleaseCurrentSubTransaction();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
}

/*
 * Runs a verb's body connected to SPI.  What the body keeps for its caller
 * is in state, and copied there as values: its memory goes.
 */
void
verb_run(VerbBody body, void *state, bool dry_run)
{
	if (dry_run)
		run_and_roll_back(body, state);
	else
		run_connected(body, state);
}
