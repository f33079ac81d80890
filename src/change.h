/*-------------------------------------------------------------------------
 *
 * change.h
 *	  What our verbs changed, for the application that must tell somebody.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CUSOWN_CHANGE_H
#define CUSOWN_CHANGE_H

#include "utils/uuid.h"

#include "binding.h"

typedef struct Change
{
	const char *entity;			/* booking, slot, payment */
	pg_uuid_t	entity_id;
	bool		has_slot;
	pg_uuid_t	slot_id;
	const char *from_status;
	const char *to_status;
} Change;

/* what of a batch is recorded so far */
typedef struct ChangeBatch
{
	int64		count;
	int64		last_id;		/* the greatest */
} ChangeBatch;

extern void change_set(Change *change, const char *entity,
					   const pg_uuid_t *entity_id, const pg_uuid_t *slot_id,
					   const char *from_status, const char *to_status);
extern void change_record(const Binding *binding, const char *verb,
						  const char *source, const Change *changes,
						  int count, ChangeBatch *batch);
extern void change_notify(const Binding *binding, const char *verb,
						  const ChangeBatch *batch);

#endif							/* CUSOWN_CHANGE_H */
