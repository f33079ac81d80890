/*-------------------------------------------------------------------------
 *
 * signature.h
 *	  Whether a request comes from whoever shares a secret with us.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CUSOWN_SIGNATURE_H
#define CUSOWN_SIGNATURE_H

#include "datatype/timestamp.h"
#include "utils/jsonb.h"

extern const char *signature_header(const char *scheme);
extern bool signature_covers(const char *scheme, const char *header);
extern void signature_check_scheme(const char *scheme);
extern bool signature_verify(const char *scheme, const bytea *secret,
							 const bytea *body, Jsonb *headers,
							 TimestampTz as_of, const Interval *tolerance);
extern bool signature_verify_stored(const char *app_schema,
									const char *provider, const char *scheme,
									const bytea *body, const Jsonb *headers,
									TimestampTz as_of,
									const Interval *tolerance);

#endif							/* CUSOWN_SIGNATURE_H */
