/*-------------------------------------------------------------------------
 *
 * subtransaction.h
 *	  Work that may fail without taking the transaction with it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CUSOWN_SUBTRANSACTION_H
#define CUSOWN_SUBTRANSACTION_H

typedef void (*SubtransactionBody) (void *state);

extern ErrorData *subtransaction_try(SubtransactionBody body, void *state,
									 MemoryContext error_context);

#endif							/* CUSOWN_SUBTRANSACTION_H */
