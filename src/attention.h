/*-------------------------------------------------------------------------
 *
 * attention.h
 *	  The worklist: what a human must look at.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CUSOWN_ATTENTION_H
#define CUSOWN_ATTENTION_H

#include "datatype/timestamp.h"
#include "utils/uuid.h"

#include "binding.h"
#include "uuid_list.h"

/* what an entry is about */
#define ENTITY_BOOKING "booking"
#define ENTITY_SLOT "slot"
#define ENTITY_BUSINESS "business"
#define ENTITY_PAYMENT "payment"
/* rows of our own, by their numbers; see attention_numbered() */
#define ENTITY_STATEMENT_LINE "statement_line"
#define ENTITY_WEBHOOK_EVENT "webhook_event"

typedef struct AttentionKind
{
	const char *name;
	const char *entity;
	const char *runbook;		/* the runbook to open */
} AttentionKind;

/* kinds that one verb opens */
#define ATTENTION_MAX_KINDS 8

typedef struct AttentionItem
{
	pg_uuid_t	entity_id;
	const char *sqlstate;		/* NULL where no error stands behind it */
	const char *finding;
} AttentionItem;

/*
 * The still-there query of a set of kinds: appends to there those of ids whose
 * finding of this kind still holds.
 */
typedef void (*AttentionStillThere) (Binding *binding,
									 const AttentionKind *kind,
									 const UuidList *ids, UuidList *there);

extern pg_uuid_t attention_numbered(int64 number);
extern Datum attention_numbers(const UuidList *ids);
extern void attention_append_numbered(UuidList *list, uint64 rows,
									  const char *column);
extern void attention_lock(Binding *binding, const char *entity,
						   const UuidList *ids, UuidList *locked);
extern uint64 attention_open(Binding *binding, const AttentionKind *kind,
							 const AttentionItem *items, int count);
extern void attention_backed_off(Binding *binding,
								 const AttentionKind *const *kinds,
								 const UuidList *ids, TimestampTz as_of,
								 UuidList *backed_off, UuidList *closed);
extern UuidList attention_fresh(Binding *binding,
								const AttentionKind *const *kinds,
								const UuidList *ids, TimestampTz as_of,
								bool closed_too);
extern void attention_kept_back(Binding *binding, const AttentionKind *kind,
								UuidList *ids);
extern void attention_close(Binding *binding, const AttentionKind *kind,
							const UuidList *ids);
extern void attention_recheck(Binding *binding, const AttentionKind *kind,
							  AttentionStillThere still_there);

#endif							/* CUSOWN_ATTENTION_H */
