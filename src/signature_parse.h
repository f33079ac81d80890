/*-------------------------------------------------------------------------
 *
 * signature_parse.h
 *	  From the bytes of a header or a secret to what they say.
 *
 * Needs no header of the server, so that it can be fuzzed by itself.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CUSOWN_SIGNATURE_PARSE_H
#define CUSOWN_SIGNATURE_PARSE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* of an HMAC-SHA256 */
#define SIGNATURE_BYTES 32

/* signatures that one header may hold; a provider sends one or two */
#define SIGNATURE_MAX_COUNT 16

/* bytes of a header's value, of a message's id, of a secret */
#define SIGNATURE_MAX_HEADER 4096
#define SIGNATURE_MAX_ID 255
#define SIGNATURE_MAX_SECRET 1024

/* the last second of the year 9999 */
#define SIGNATURE_MAX_SECONDS INT64_C(253402300799)

typedef struct SignatureList
{
	int			count;
	uint8_t		signatures[SIGNATURE_MAX_COUNT][SIGNATURE_BYTES];
} SignatureList;

/* a moment as it was written, which is what is signed */
typedef struct SignatureTime
{
	const char *digits;			/* within the header */
	size_t		length;
	int64_t		seconds;		/* since 1970 */
} SignatureTime;

/* the key of an HMAC */
typedef struct SignatureKey
{
	size_t		length;
	uint8_t		bytes[SIGNATURE_MAX_SECRET];
} SignatureKey;

extern bool signature_parse_hex(const char *input, size_t length,
								uint8_t *signature);
extern bool signature_parse_base64(const char *input, size_t length,
								   uint8_t *bytes, size_t capacity,
								   size_t *count);
extern bool signature_parse_time(const char *input, size_t length,
								 SignatureTime *time);
extern bool signature_parse_id(const char *input, size_t length);
extern bool signature_parse_stripe(const char *input, size_t length,
								   SignatureTime *time, SignatureList *list);
extern bool signature_parse_standard(const char *input, size_t length,
									 SignatureList *list);
extern bool signature_parse_secret(const char *input, size_t length,
								   SignatureKey *key);

#endif							/* CUSOWN_SIGNATURE_PARSE_H */
