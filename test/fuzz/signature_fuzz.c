/*-------------------------------------------------------------------------
 *
 * signature_fuzz.c
 *	  libFuzzer's target for src/signature_parse.c, all of its functions.
 *
 * Each input is given to each function, in memory of exactly its length, so that
 * AddressSanitizer sees a byte that is read beyond.  What is accepted must be what
 * it says: written anew from the result it is the input again, which also shows
 * that there is one way to write a thing.  And what is written from the input's
 * bytes must be accepted, up to the limits and not beyond.
 *
 * Build: clang -fsanitize=fuzzer,address,undefined -Isrc test/fuzz/signature_fuzz.c
 * src/signature_parse.c; scripts/test --fuzz does it.
 *
 *-------------------------------------------------------------------------
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "signature_parse.h"

/* what must not be touched behind an output */
#define GUARD 0xA5

/* room for what is written from a result or from an input */
#define TEXT_SIZE 16384

#define CHECK(condition) \
	do { \
		if (!(condition)) \
			fail(__LINE__, #condition); \
	} while (0)

/* text that is being written */
typedef struct Writer
{
	size_t		length;
	char		text[TEXT_SIZE];
} Writer;

static void
fail(int line, const char *condition)
{
	fprintf(stderr, "signature_fuzz.c:%d: not so: %s\n", line, condition);
	abort();
}

/* ---------- writing ---------- */

/* its text is left as it is: clearing it would take most of the time */
static void
begin(Writer *writer)
{
	writer->length = 0;
}

static void
put_text(Writer *writer, const char *text, size_t length)
{
	CHECK(writer->length + length <= TEXT_SIZE);
	memcpy(writer->text + writer->length, text, length);
	writer->length += length;
}

static void
put_string(Writer *writer, const char *string)
{
	put_text(writer, string, strlen(string));
}

static void
put_char(Writer *writer, char c)
{
	CHECK(writer->length < TEXT_SIZE);
	writer->text[writer->length++] = c;
}

static void
put_hex(Writer *writer, const uint8_t *bytes, size_t count)
{
	static const char digits[] = "0123456789abcdef";

	for (size_t i = 0; i < count; i++)
	{
		put_char(writer, digits[bytes[i] >> 4]);
		put_char(writer, digits[bytes[i] & 15]);
	}
}

static void
put_base64(Writer *writer, const uint8_t *bytes, size_t count)
{
	static const char digits[] =
		"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

	for (size_t i = 0; i < count; i += 3)
	{
		size_t		left = count - i;
		uint8_t		second = left > 1 ? bytes[i + 1] : 0;
		uint8_t		third = left > 2 ? bytes[i + 2] : 0;

		put_char(writer, digits[bytes[i] >> 2]);
		put_char(writer, digits[(bytes[i] & 3) << 4 | second >> 4]);
		put_char(writer, left > 1 ? digits[(second & 15) << 2 | third >> 6] : '=');
		put_char(writer, left > 2 ? digits[third & 63] : '=');
	}
}

static bool
is_lower_of(const Writer *writer, const char *text, size_t length)
{
	if (writer->length != length)
		return false;
	for (size_t i = 0; i < length; i++)
	{
		char		c = text[i];

		if (c >= 'A' && c <= 'F')
			c = (char) (c - 'A' + 'a');
		if (c != writer->text[i])
			return false;
	}
	return true;
}

static bool
is_same(const Writer *writer, const char *text, size_t length)
{
	return writer->length == length && memcmp(writer->text, text, length) == 0;
}

/* ---------- single values ---------- */

static void
try_hex(const char *text, size_t length)
{
	uint8_t		bytes[SIGNATURE_BYTES + 1];
	Writer		writer;

	bytes[SIGNATURE_BYTES] = GUARD;
	if (signature_parse_hex(text, length, bytes))
	{
		begin(&writer);
		put_hex(&writer, bytes, SIGNATURE_BYTES);
		CHECK(is_lower_of(&writer, text, length));
	}
	else
		CHECK(length != 2 * SIGNATURE_BYTES ||
			  strspn(text, "0123456789abcdefABCDEF") < length);
	CHECK(bytes[SIGNATURE_BYTES] == GUARD);
}

/* into memory of exactly that capacity */
static void
try_base64(const char *text, size_t length, size_t capacity)
{
	uint8_t    *bytes = malloc(capacity);
	size_t		count = SIZE_MAX;
	Writer		writer;

	if (signature_parse_base64(text, length, bytes, capacity, &count))
	{
		CHECK(count <= capacity);
		begin(&writer);
		put_base64(&writer, bytes, count);
		CHECK(is_same(&writer, text, length));
	}
	CHECK(count <= capacity);
	free(bytes);
}

static void
try_time(const char *text, size_t length)
{
	SignatureTime time = {0};
	char		digits[32];
	size_t		zeros = 0;

	if (!signature_parse_time(text, length, &time))
	{
		CHECK(time.digits == NULL);
		return;
	}
	CHECK(time.digits == text && time.length == length);
	CHECK(time.seconds >= 0 && time.seconds <= SIGNATURE_MAX_SECONDS);
	while (zeros + 1 < length && text[zeros] == '0')
		zeros++;
	snprintf(digits, sizeof(digits), "%lld", (long long) time.seconds);
	CHECK(strlen(digits) == length - zeros);
	CHECK(memcmp(digits, text + zeros, length - zeros) == 0);
}

static void
try_id(const char *text, size_t length)
{
	if (!signature_parse_id(text, length))
		return;
	CHECK(length > 0 && length <= SIGNATURE_MAX_ID);
	CHECK(memchr(text, '.', length) == NULL);
	CHECK(memchr(text, ' ', length) == NULL);
	CHECK(memchr(text, '\n', length) == NULL);
	CHECK(memchr(text, '\0', length) == NULL);
}

/* ---------- lists ---------- */

static void
check_same_list(const SignatureList *a, const SignatureList *b)
{
	CHECK(a->count > 0 && a->count <= SIGNATURE_MAX_COUNT);
	CHECK(a->count == b->count);
	CHECK(memcmp(a->signatures, b->signatures,
				 (size_t) a->count * SIGNATURE_BYTES) == 0);
}

/* what separates members: one more than there are members */
static size_t
count_of(const char *text, size_t length, char separator)
{
	size_t		count = 0;

	for (size_t i = 0; i < length; i++)
		count += text[i] == separator;
	return count;
}

static void
write_stripe(Writer *writer, const SignatureTime *time, const SignatureList *list)
{
	begin(writer);
	put_string(writer, "t=");
	put_text(writer, time->digits, time->length);
	for (int i = 0; i < list->count; i++)
	{
		put_string(writer, ",v1=");
		put_hex(writer, list->signatures[i], SIGNATURE_BYTES);
	}
}

static void
write_standard(Writer *writer, const SignatureList *list)
{
	begin(writer);
	for (int i = 0; i < list->count; i++)
	{
		put_string(writer, i == 0 ? "v1," : " v1,");
		put_base64(writer, list->signatures[i], SIGNATURE_BYTES);
	}
}

static void
try_stripe(const char *text, size_t length)
{
	SignatureTime time;
	SignatureTime again_time;
	SignatureList list;
	SignatureList again;
	Writer		writer;

	if (!signature_parse_stripe(text, length, &time, &list))
		return;
	CHECK(length <= SIGNATURE_MAX_HEADER);
	CHECK(time.digits >= text && time.digits + time.length <= text + length);
	CHECK((size_t) list.count <= count_of(text, length, ','));
	write_stripe(&writer, &time, &list);
	CHECK(signature_parse_stripe(writer.text, writer.length, &again_time, &again));
	CHECK(again_time.seconds == time.seconds);
	check_same_list(&list, &again);
}

static void
try_standard(const char *text, size_t length)
{
	SignatureList list;
	SignatureList again;
	Writer		writer;

	if (!signature_parse_standard(text, length, &list))
		return;
	CHECK(length <= SIGNATURE_MAX_HEADER);
	CHECK((size_t) list.count <= count_of(text, length, ' ') + 1);
	write_standard(&writer, &list);
	CHECK(signature_parse_standard(writer.text, writer.length, &again));
	check_same_list(&list, &again);
}

/* ---------- secrets ---------- */

static void
try_secret(const char *text, size_t length)
{
	struct
	{
		SignatureKey key;
		uint8_t		guard;
	}			out;
	Writer		writer;

	out.guard = GUARD;
	begin(&writer);
	if (signature_parse_secret(text, length, &out.key))
	{
		CHECK(out.key.length > 0 && out.key.length <= SIGNATURE_MAX_SECRET);
		if (length >= 6 && memcmp(text, "whsec_", 6) == 0)
		{
			put_string(&writer, "whsec_");
			put_base64(&writer, out.key.bytes, out.key.length);
		}
		else
			put_text(&writer, (const char *) out.key.bytes, out.key.length);
		CHECK(is_same(&writer, text, length));
	}
	CHECK(out.guard == GUARD);
}

/* ---------- the other way round: what is written is accepted ---------- */

/* a byte that the input decides, however short it is */
static uint8_t
byte_at(const uint8_t *data, size_t size, size_t at)
{
	return size == 0 ? 0 : (uint8_t) (data[at % size] + at / size);
}

static void
make_bytes(const uint8_t *data, size_t size, size_t at, uint8_t *bytes,
		   size_t count)
{
	for (size_t i = 0; i < count; i++)
		bytes[i] = byte_at(data, size, at + i);
}

static void
make_list(const uint8_t *data, size_t size, size_t count,
		  uint8_t (*signatures)[SIGNATURE_BYTES])
{
	for (size_t i = 0; i < count; i++)
		make_bytes(data, size, 5 * i + 3, signatures[i], SIGNATURE_BYTES);
}

/* one of its characters is anything */
static void
expect_hex(const uint8_t *data, size_t size)
{
	uint8_t		bytes[SIGNATURE_BYTES];
	uint8_t		parsed[SIGNATURE_BYTES];
	char		other = (char) byte_at(data, size, 1);
	Writer		writer;

	make_bytes(data, size, 2, bytes, SIGNATURE_BYTES);
	begin(&writer);
	put_hex(&writer, bytes, SIGNATURE_BYTES);
	CHECK(signature_parse_hex(writer.text, writer.length, parsed));
	CHECK(memcmp(parsed, bytes, SIGNATURE_BYTES) == 0);
	CHECK(!signature_parse_hex(writer.text, writer.length - 1, parsed));
	writer.text[byte_at(data, size, 0) % writer.length] = other;
	CHECK(signature_parse_hex(writer.text, writer.length, parsed) ==
		  (other != '\0' && strchr("0123456789abcdefABCDEF", other) != NULL));
}

/* into just enough memory, and into one byte less */
static void
expect_base64(const uint8_t *data, size_t size)
{
	size_t		count = byte_at(data, size, 0) % 70 + 1;
	uint8_t		bytes[70];
	uint8_t    *parsed = malloc(count);
	uint8_t    *less = malloc(count - 1);
	size_t		parsed_count;
	Writer		writer;

	make_bytes(data, size, 1, bytes, count);
	begin(&writer);
	put_base64(&writer, bytes, count);
	CHECK(signature_parse_base64(writer.text, writer.length, parsed, count,
								 &parsed_count));
	CHECK(parsed_count == count && memcmp(parsed, bytes, count) == 0);
	CHECK(!signature_parse_base64(writer.text, writer.length, less, count - 1,
								  &parsed_count));
	free(parsed);
	free(less);
}

/* often about the greatest one */
static void
expect_time(const uint8_t *data, size_t size)
{
	int64_t		seconds = 0;
	char		digits[32];
	SignatureTime time;

	for (size_t i = 0; i < 6; i++)
		seconds = seconds << 8 | byte_at(data, size, i);
	if (seconds % 2 == 0)
		seconds = SIGNATURE_MAX_SECONDS - 4 + seconds / 2 % 8;
	snprintf(digits, sizeof(digits), "%lld", (long long) seconds);
	CHECK(signature_parse_time(digits, strlen(digits), &time) ==
		  (seconds <= SIGNATURE_MAX_SECONDS));
	CHECK(seconds > SIGNATURE_MAX_SECONDS || time.seconds == seconds);
}

/* as many signatures as may be or more, as long as may be or longer */
static void
expect_stripe(const uint8_t *data, size_t size)
{
	uint8_t		signatures[SIGNATURE_MAX_COUNT + 3][SIGNATURE_BYTES];
	size_t		count = byte_at(data, size, 0) % (SIGNATURE_MAX_COUNT + 3);
	size_t		filler = (size_t) byte_at(data, size, 1) * 17;
	bool		is_twice = byte_at(data, size, 2) % 4 == 0;
	SignatureTime time;
	SignatureList list;
	Writer		writer;
	bool		is_right;

	make_list(data, size, count, signatures);
	begin(&writer);
	put_string(&writer, is_twice ? "t=1,t=2" : "t=1");
	for (size_t i = 0; i < count; i++)
	{
		put_string(&writer, ",v1=");
		put_hex(&writer, signatures[i], SIGNATURE_BYTES);
	}
	put_string(&writer, ",v0=");
	for (size_t i = 0; i < filler; i++)
		put_char(&writer, 'a');
	is_right = count > 0 && count <= SIGNATURE_MAX_COUNT && !is_twice &&
		writer.length <= SIGNATURE_MAX_HEADER;
	CHECK(signature_parse_stripe(writer.text, writer.length, &time, &list) == is_right);
	CHECK(!is_right || ((size_t) list.count == count &&
						memcmp(list.signatures, signatures, count * SIGNATURE_BYTES) == 0));
}

/* likewise, and the last one may be too short */
static void
expect_standard(const uint8_t *data, size_t size)
{
	uint8_t		signatures[SIGNATURE_MAX_COUNT + 3][SIGNATURE_BYTES];
	size_t		count = byte_at(data, size, 0) % (SIGNATURE_MAX_COUNT + 3);
	size_t		filler = (size_t) byte_at(data, size, 1) * 17;
	bool		is_short = byte_at(data, size, 2) % 4 == 0;
	SignatureList list;
	Writer		writer;
	bool		is_right;

	make_list(data, size, count, signatures);
	begin(&writer);
	put_string(&writer, "v1a,");
	for (size_t i = 0; i < filler; i++)
		put_char(&writer, 'a');
	for (size_t i = 0; i < count; i++)
	{
		put_string(&writer, " v1,");
		put_base64(&writer, signatures[i],
				   SIGNATURE_BYTES - (is_short && i + 1 == count));
	}
	is_right = count > 0 && count <= SIGNATURE_MAX_COUNT && !is_short &&
		writer.length <= SIGNATURE_MAX_HEADER;
	CHECK(signature_parse_standard(writer.text, writer.length, &list) == is_right);
	CHECK(!is_right || ((size_t) list.count == count &&
						memcmp(list.signatures, signatures, count * SIGNATURE_BYTES) == 0));
}

/* of lengths about the greatest one */
static void
expect_secret(const uint8_t *data, size_t size)
{
	uint8_t		bytes[SIGNATURE_MAX_SECRET + 4];
	size_t		count = sizeof(bytes) - byte_at(data, size, 0) % 8;
	bool		is_right = count <= SIGNATURE_MAX_SECRET;
	SignatureKey key;
	Writer		writer;

	make_bytes(data, size, 1, bytes, count);
	bytes[0] = 'x';
	CHECK(signature_parse_secret((const char *) bytes, count, &key) == is_right);
	CHECK(!is_right || (key.length == count && memcmp(key.bytes, bytes, count) == 0));
	begin(&writer);
	put_string(&writer, "whsec_");
	put_base64(&writer, bytes, count);
	CHECK(signature_parse_secret(writer.text, writer.length, &key) == is_right);
	CHECK(!is_right || (key.length == count && memcmp(key.bytes, bytes, count) == 0));
}

extern int	LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char	   *text = malloc(size + (size == 0));

	memcpy(text, data, size);
	try_hex(text, size);
	try_base64(text, size, size / 4 * 3);
	try_base64(text, size, size % 40);
	try_time(text, size);
	try_id(text, size);
	try_stripe(text, size);
	try_standard(text, size);
	try_secret(text, size);
	free(text);
	expect_hex(data, size);
	expect_base64(data, size);
	expect_time(data, size);
	/* these write thousands of bytes, which takes longer than all else */
	if (size % 8 == 0)
		expect_secret(data, size);
	else if (size % 8 == 1)
		expect_stripe(data, size);
	else if (size % 8 == 2)
		expect_standard(data, size);
	return 0;
}
