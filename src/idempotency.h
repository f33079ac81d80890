/*-------------------------------------------------------------------------
 *
 * idempotency.h
 *	  Requests that are carried out once, however often they are sent.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CUSOWN_IDEMPOTENCY_H
#define CUSOWN_IDEMPOTENCY_H

#include "template.h"

/* $1 app_schema, $2 the moment, $3 how many */
extern const Template prune_expired_keys;

#endif							/* CUSOWN_IDEMPOTENCY_H */
