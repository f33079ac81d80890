/*-------------------------------------------------------------------------
 *
 * verb.h
 *	  What every verb checks before it works, and how it is shown first.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CUSOWN_VERB_H
#define CUSOWN_VERB_H

#include "datatype/timestamp.h"
#include "fmgr.h"
#include "utils/uuid.h"

#include "binding.h"

typedef void (*VerbBody) (void *state);

extern void verb_check_transaction(const char *verb);
extern void verb_hide_statement(void *arg);
extern char *verb_uuid_text(const pg_uuid_t *id);
extern bool verb_is_blinded(const Binding *binding, const char *relation);
extern void verb_check_row_security(const Binding *binding,
									const char *const *relations);
extern void verb_check_visible(const Binding *binding, const char *relation,
							   const pg_uuid_t *id);
extern bool verb_is_unattended(const char *source);
extern bool verb_may_be_superuser(void);
extern void verb_check_unattended(const Binding *binding,
								  const char *source);
extern void verb_check_not_null(FunctionCallInfo fcinfo, int arg,
								const char *name);
extern bool verb_dry_run(FunctionCallInfo fcinfo, int arg);
extern int64 verb_max_rows(FunctionCallInfo fcinfo, int arg);
extern char *verb_source(FunctionCallInfo fcinfo, int arg);
extern TimestampTz verb_as_of(FunctionCallInfo fcinfo, int arg);
extern void verb_check_as_of(TimestampTz as_of, bool dry_run);
extern void verb_check_interval(const Interval *interval, const char *name);
extern long verb_interval_ms(const Interval *interval);
extern TimestampTz verb_before(TimestampTz as_of, const Interval *interval);
extern TimestampTz verb_after(TimestampTz moment, const Interval *interval);
extern void verb_run(VerbBody body, void *state, bool dry_run);

#endif							/* CUSOWN_VERB_H */
