/*-------------------------------------------------------------------------
 *
 * header.h
 *	  A request's headers, as whoever received it hands them on.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CUSOWN_HEADER_H
#define CUSOWN_HEADER_H

#include "utils/jsonb.h"

extern bool header_value(Jsonb *headers, const char *name, const char **bytes,
						 int *length);

#endif							/* CUSOWN_HEADER_H */
