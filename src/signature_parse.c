/*-------------------------------------------------------------------------
 *
 * signature_parse.c
 *	  From the bytes of a header or a secret to what they say.
 *
 * Whatever somebody sends as a signature is taken apart here, and only here.
 * Every function takes bytes and their number, reads no byte beyond, allocates
 * nothing, and writes only to what it is given, whose size it knows.  false
 * means that the bytes are not of that form; what was written until then counts
 * for nothing.  There is one way to write a thing: base64 has its padding and no
 * stray bits, lists have no empty members, and nothing is trimmed.
 *
 * No function of the server is called, so test/fuzz/signature_fuzz.c runs this
 * file by itself.
 *
 *-------------------------------------------------------------------------
 */
#include <string.h>

#include "signature_parse.h"

/* what a secret of Standard Webhooks begins with, where it is base64 */
#define SECRET_PREFIX "whsec_"

/* digits of SIGNATURE_MAX_SECONDS */
#define MAX_TIME_DIGITS 12

/* a member of a list, within the header */
typedef struct Member
{
	const char *start;
	const char *end;
} Member;

/* ---------- characters ---------- */

static bool
is_digit(char c)
{
	return c >= '0' && c <= '9';
}

/* -1: it is none */
static int
hex_value(char c)
{
	if (is_digit(c))
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

static int
base64_value(char c)
{
	if (c >= 'A' && c <= 'Z')
		return c - 'A';
	if (c >= 'a' && c <= 'z')
		return c - 'a' + 26;
	if (is_digit(c))
		return c - '0' + 52;
	if (c == '+')
		return 62;
	if (c == '/')
		return 63;
	return -1;
}

static bool
is_word(const char *start, size_t length, const char *word)
{
	return length == strlen(word) && memcmp(start, word, length) == 0;
}

/* ---------- single values ---------- */

/* SIGNATURE_BYTES bytes, in either case */
bool
signature_parse_hex(const char *input, size_t length, uint8_t *signature)
{
	if (length != (size_t) 2 * SIGNATURE_BYTES)
		return false;
	for (size_t i = 0; i < SIGNATURE_BYTES; i++)
	{
		int			high = hex_value(input[2 * i]);
		int			low = hex_value(input[2 * i + 1]);

		if (high < 0 || low < 0)
			return false;
		signature[i] = (uint8_t) (high << 4 | low);
	}
	return true;
}

/* the last one or two of four characters may be padding, behind the last bytes */
static size_t
padding(const char *input, size_t length)
{
	if (length == 0 || input[length - 1] != '=')
		return 0;
	return input[length - 2] == '=' ? 2 : 1;
}

/*
 * Four characters, of which the last pad ones are padding, to 3 - pad bytes.
 * The bits that padding leaves over must be zero.
 */
static bool
parse_quad(const char *input, size_t pad, uint8_t *bytes)
{
	uint32_t	bits = 0;

	for (size_t i = 0; i < 4; i++)
	{
		int			value = i < 4 - pad ? base64_value(input[i]) : 0;

		if (value < 0)
			return false;
		bits = bits << 6 | (uint32_t) value;
	}
	if ((bits & ((UINT32_C(1) << (8 * pad)) - 1)) != 0)
		return false;
	for (size_t i = 0; i < 3 - pad; i++)
		bytes[i] = (uint8_t) (bits >> (16 - 8 * i));
	return true;
}

/* RFC 4648, section 4, with padding; count is how many bytes it was */
bool
signature_parse_base64(const char *input, size_t length, uint8_t *bytes,
					   size_t capacity, size_t *count)
{
	size_t		pad;

	*count = 0;
	if (length % 4 != 0)
		return false;
	pad = padding(input, length);
	if (length / 4 * 3 - pad > capacity)
		return false;
	for (size_t at = 0; at < length; at += 4)
	{
		size_t		quad_pad = at + 4 == length ? pad : 0;

		if (!parse_quad(input + at, quad_pad, bytes + *count))
			return false;
		*count += 3 - quad_pad;
	}
	return true;
}

/* seconds since 1970, in digits */
bool
signature_parse_time(const char *input, size_t length, SignatureTime *time)
{
	int64_t		seconds = 0;

	if (length == 0 || length > MAX_TIME_DIGITS)
		return false;
	for (size_t i = 0; i < length; i++)
	{
		if (!is_digit(input[i]))
			return false;
		seconds = seconds * 10 + (input[i] - '0');
	}
	if (seconds > SIGNATURE_MAX_SECONDS)
		return false;
	time->digits = input;
	time->length = length;
	time->seconds = seconds;
	return true;
}

/*
 * The id of a message: printable, and without a dot, since that is what separates
 * it from the time and the body where they are signed.  Else the signature of
 * one message could be that of another.
 */
bool
signature_parse_id(const char *input, size_t length)
{
	if (length == 0 || length > SIGNATURE_MAX_ID)
		return false;
	for (size_t i = 0; i < length; i++)
	{
		if (input[i] <= ' ' || input[i] > '~' || input[i] == '.')
			return false;
	}
	return true;
}

/* ---------- lists ---------- */

/*
 * The next member of what is left from *at on, which moves behind it and its
 * separator, and is NULL after the last one.
 */
static Member
next_member(const char **at, const char *end, char separator)
{
	Member		member = {*at, end};
	const char *found = memchr(*at, separator, (size_t) (end - *at));

	if (found != NULL)
		member.end = found;
	*at = found == NULL ? NULL : found + 1;
	return member;
}

/* cuts a member at its first separator; false: there is none */
static bool
split_member(Member member, char separator, Member *name, Member *value)
{
	const char *found = memchr(member.start, separator,
							   (size_t) (member.end - member.start));

	if (found == NULL)
		return false;
	name->start = member.start;
	name->end = found;
	value->start = found + 1;
	value->end = member.end;
	return true;
}

static size_t
length_of(Member member)
{
	return (size_t) (member.end - member.start);
}

/* where the next signature is to be written; NULL: there are too many */
static uint8_t *
next_signature(SignatureList *list)
{
	if (list->count == SIGNATURE_MAX_COUNT)
		return NULL;
	return list->signatures[list->count++];
}

static bool
add_hex(SignatureList *list, Member value)
{
	uint8_t    *signature = next_signature(list);

	return signature != NULL &&
		signature_parse_hex(value.start, length_of(value), signature);
}

static bool
add_base64(SignatureList *list, Member value)
{
	uint8_t    *signature = next_signature(list);
	size_t		count;

	return signature != NULL &&
		signature_parse_base64(value.start, length_of(value), signature,
							   SIGNATURE_BYTES, &count) &&
		count == SIGNATURE_BYTES;
}

/* one name=value of a Stripe-Signature; names that are not known are left out */
static bool
parse_stripe_member(Member member, SignatureTime *time, SignatureList *list)
{
	Member		name;
	Member		value;

	if (!split_member(member, '=', &name, &value))
		return false;
	if (is_word(name.start, length_of(name), "t"))
		return time->digits == NULL &&
			signature_parse_time(value.start, length_of(value), time);
	if (is_word(name.start, length_of(name), "v1"))
		return add_hex(list, value);
	return true;
}

/* t=SECONDS,v1=HEX[,v1=HEX...] in any order */
bool
signature_parse_stripe(const char *input, size_t length, SignatureTime *time,
					   SignatureList *list)
{
	const char *at = input;

	time->digits = NULL;
	list->count = 0;
	if (length == 0 || length > SIGNATURE_MAX_HEADER)
		return false;
	while (at != NULL)
	{
		if (!parse_stripe_member(next_member(&at, input + length, ','), time, list))
			return false;
	}
	return time->digits != NULL && list->count > 0;
}

/* v1,BASE64[ v1,BASE64...]; other versions are left out */
bool
signature_parse_standard(const char *input, size_t length, SignatureList *list)
{
	const char *at = input;

	list->count = 0;
	if (length == 0 || length > SIGNATURE_MAX_HEADER)
		return false;
	while (at != NULL)
	{
		Member		member = next_member(&at, input + length, ' ');
		Member		version;
		Member		value;

		if (!split_member(member, ',', &version, &value))
			return false;
		if (is_word(version.start, length_of(version), "v1") &&
			!add_base64(list, value))
			return false;
	}
	return list->count > 0;
}

/* ---------- secrets ---------- */

/* whsec_ and base64, or the bytes of the key themselves */
bool
signature_parse_secret(const char *input, size_t length, SignatureKey *key)
{
	size_t		prefix = strlen(SECRET_PREFIX);

	key->length = 0;
	if (length >= prefix && memcmp(input, SECRET_PREFIX, prefix) == 0)
		return signature_parse_base64(input + prefix, length - prefix, key->bytes,
									  sizeof(key->bytes), &key->length) &&
			key->length > 0;
	if (length == 0 || length > sizeof(key->bytes))
		return false;
	memcpy(key->bytes, input, length);
	key->length = length;
	return true;
}
