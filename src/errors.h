/*-------------------------------------------------------------------------
 *
 * errors.h
 *	  The SQLSTATEs of class UO that cusown_ops raises.
 *
 * The README lists them too; applications may match on these codes.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CUSOWN_ERRORS_H
#define CUSOWN_ERRORS_H

#include "utils/elog.h"

/* no application attached, or a binding that no longer resolves */
#define ERRCODE_CUSOWN_NOT_ATTACHED			MAKE_SQLSTATE('U', 'O', '0', '0', '1')

/* no such booking, slot, payment, statement, worklist row or alert */
#define ERRCODE_CUSOWN_NOT_FOUND			MAKE_SQLSTATE('U', 'O', '0', '0', '2')

/* the state machine does not allow this transition; or a key is not held */
#define ERRCODE_CUSOWN_TRANSITION			MAKE_SQLSTATE('U', 'O', '0', '0', '3')

/* another booking, or its hold, is on the slot */
#define ERRCODE_CUSOWN_SLOT_TAKEN			MAKE_SQLSTATE('U', 'O', '0', '0', '4')

/* an idempotency key came with another request */
#define ERRCODE_CUSOWN_KEY_REUSED			MAKE_SQLSTATE('U', 'O', '0', '0', '5')

/* a request with this idempotency key is in progress */
#define ERRCODE_CUSOWN_IN_PROGRESS			MAKE_SQLSTATE('U', 'O', '0', '0', '6')

/* a status is guarded */
#define ERRCODE_CUSOWN_GUARDED				MAKE_SQLSTATE('U', 'O', '0', '0', '7')

/* an amount or a currency that does not fit */
#define ERRCODE_CUSOWN_MISMATCH				MAKE_SQLSTATE('U', 'O', '0', '0', '8')

/* the job is already running */
#define ERRCODE_CUSOWN_JOB_RUNNING			MAKE_SQLSTATE('U', 'O', '0', '0', '9')

/* statement, payload or mapping malformed */
#define ERRCODE_CUSOWN_MALFORMED			MAKE_SQLSTATE('U', 'O', '0', '1', '0')

#endif							/* CUSOWN_ERRORS_H */
