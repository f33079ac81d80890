/*-------------------------------------------------------------------------
 *
 * statement_row.c
 *	  What a row of a provider's report says.
 *
 * razorpay_settlement	the combined settlement report: payments, which were
 *						captured or they would not be in it, and refunds, each
 *						by itself; transfers and adjustments are of no payment
 * generic				one row for each payment, with all that was refunded
 *
 * Everything is text here, and comes from outside: what is not exactly as it
 * should be is refused by the number of its row and the name of its field.  Its
 * value is not told, as nobody knows what stands in there.  No result depends on
 * a setting of the session.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "errors.h"
#include "statement.h"

/* bytes of a reference */
#define MAX_REFERENCE 255

/* 9999-12-31 23:59:59 in unix seconds */
#define MAX_UNIX_SECONDS INT64CONST(253402300799)

#define UNIX_EPOCH_DAYS (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE)

const char *const statement_field_names[STATEMENT_FIELDS] = {
	[FIELD_ENTITY_ID] = "entity_id",
	[FIELD_TYPE] = "type",
	[FIELD_AMOUNT] = "amount",
	[FIELD_CURRENCY] = "currency",
	[FIELD_FEE] = "fee",
	[FIELD_TAX] = "tax",
	[FIELD_ORDER_ID] = "order_id",
	[FIELD_ORDER_RECEIPT] = "order_receipt",
	[FIELD_PAYMENT_ID] = "payment_id",
	[FIELD_SETTLEMENT_UTR] = "settlement_utr",
	[FIELD_CREATED_AT] = "created_at",
	[FIELD_PROVIDER_REF] = "provider_ref",
	[FIELD_STATUS] = "status",
	[FIELD_AT] = "at",
	[FIELD_ORDER_REF] = "order_ref",
	[FIELD_REFUND_AMOUNT] = "refund_amount"
};

/* ---------- what is refused ---------- */

void
statement_malformed(int row, const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_CUSOWN_MALFORMED),
			 errmsg("row %d of the statement is malformed", row),
			 errdetail_internal("%s", detail)));
}

pg_noreturn static void
bad_field(const StatementRow *row, StatementField field, const char *what)
{
	statement_malformed(row->number,
						psprintf("Field \"%s\" %s.",
								 statement_field_names[field], what));
}

/* ---------- fields ---------- */

static const char *
needed(const StatementRow *row, StatementField field)
{
	if (row->fields[field] == NULL)
		bad_field(row, field, "is missing");
	return row->fields[field];
}

/* a reference, or NULL */
static const char *
read_reference(const StatementRow *row, StatementField field)
{
	const char *text = row->fields[field];

	if (text == NULL)
		return NULL;
	if (strlen(text) > MAX_REFERENCE)
		bad_field(row, field, "is longer than 255 bytes");
	for (const char *at = text; *at != '\0'; at++)
	{
		if ((unsigned char) *at < ' ' || *at == 0x7f)
			bad_field(row, field, "holds a control character");
	}
	return text;
}

static const char *
needed_reference(const StatementRow *row, StatementField field)
{
	needed(row, field);
	return read_reference(row, field);
}

static bool
is_digits(const char *text)
{
	return text[0] != '\0' && text[strspn(text, "0123456789")] == '\0';
}

/* digits only; false where there is nothing */
static bool
read_number(const StatementRow *row, StatementField field, int64 limit,
			int64 *number)
{
	const char *text = row->fields[field];

	if (text == NULL)
		return false;
	if (!is_digits(text))
		bad_field(row, field, "must be a whole number, not negative");
	*number = 0;
	for (; *text !='\0'; text ++)
	{
		int			digit = *text -'0';

		if (*number > (limit - digit) / 10)
			bad_field(row, field, "is out of range");
		*number = *number * 10 + digit;
	}
	return true;
}

/* sums of so many stay far from overflow */
#define MAX_AMOUNT INT64CONST(1000000000000)

static int64
needed_amount(const StatementRow *row, StatementField field)
{
	int64		amount;

	needed(row, field);
	read_number(row, field, MAX_AMOUNT, &amount);
	if (amount == 0)
		bad_field(row, field, "must be greater than zero");
	return amount;
}

static void
read_currency(const StatementRow *row, StatementLine *line)
{
	const char *text = needed(row, FIELD_CURRENCY);

	if (strlen(text) != 3)
		bad_field(row, FIELD_CURRENCY, "must be a code of three letters");
	for (int i = 0; i < 3; i++)
	{
		line->currency[i] = pg_ascii_toupper((unsigned char) text[i]);
		if (line->currency[i] < 'A' || line->currency[i] > 'Z')
			bad_field(row, FIELD_CURRENCY, "must be a code of three letters");
	}
	line->currency[3] = '\0';
}

/* an id of the application's, which it gave to the provider */
static void
read_receipt(const StatementRow *row, StatementField field,
			 StatementLine *line)
{
	const char *text = row->fields[field];

	if (text == NULL || strlen(text) != 36)
		return;
	for (int i = 0; i < 36; i++)
	{
		bool		is_dash = i == 8 || i == 13 || i == 18 || i == 23;

		if (is_dash ? text[i] != '-' : !isxdigit((unsigned char) text[i]))
			return;
	}
	line->has_receipt = true;
	line->receipt = *DatumGetUUIDP(DirectFunctionCall1(uuid_in,
													   CStringGetDatum(text)));
}

/* ---------- moments ---------- */

static TimestampTz
needed_unix_seconds(const StatementRow *row, StatementField field)
{
	int64		seconds;

	needed(row, field);
	read_number(row, field, MAX_UNIX_SECONDS, &seconds);
	return (seconds - UNIX_EPOCH_DAYS * (int64) SECS_PER_DAY) * USECS_PER_SEC;
}

/* so many digits, within a range; advances *at */
static bool
read_digits(const char **at, int digits, int low, int high, int *number)
{
	*number = 0;
	for (int i = 0; i < digits; i++, (*at)++)
	{
		if (**at < '0' || **at > '9')
			return false;
		*number = *number * 10 + (**at - '0');
	}
	return *number >= low && *number <= high;
}

static bool
read_char(const char **at, const char *chars)
{
	if (**at == '\0' || strchr(chars, **at) == NULL)
		return false;
	(*at)++;
	return true;
}

static bool
read_date(const char **at, int64 *days)
{
	int			year;
	int			month;
	int			day;
	int			y;
	int			m;
	int			d;

	if (!read_digits(at, 4, 1970, 9999, &year) || !read_char(at, "-") ||
		!read_digits(at, 2, 1, 12, &month) || !read_char(at, "-") ||
		!read_digits(at, 2, 1, 31, &day))
		return false;
	j2date(date2j(year, month, day), &y, &m, &d);
	*days = date2j(year, month, day) - POSTGRES_EPOCH_JDATE;
	return d == day;
}

/* fractions of a second are left out */
static bool
read_time(const char **at, int64 *seconds)
{
	int			hour;
	int			minute;
	int			second = 0;

	if (!read_digits(at, 2, 0, 23, &hour) || !read_char(at, ":") ||
		!read_digits(at, 2, 0, 59, &minute))
		return false;
	if (read_char(at, ":"))
	{
		if (!read_digits(at, 2, 0, 59, &second))
			return false;
		if (read_char(at, "."))
			*at += strspn(*at, "0123456789");
	}
	*seconds = (hour * 60 + minute) * 60 + second;
	return true;
}

/* Z, or an offset from UTC */
static bool
read_zone(const char **at, int64 *seconds)
{
	bool		is_east = **at == '+';
	int			hours;
	int			minutes = 0;

	*seconds = 0;
	if (**at == '\0' || read_char(at, "Z"))
		return true;
	if (!read_char(at, "+-") || !read_digits(at, 2, 0, 15, &hours))
		return false;
	if (**at != '\0')
	{
		read_char(at, ":");
		if (!read_digits(at, 2, 0, 59, &minutes))
			return false;
	}
	*seconds = INT64CONST(60) * (hours * 60 + minutes) * (is_east ? 1 : -1);
	return true;
}

/* unix seconds, or ISO 8601 */
static TimestampTz
needed_moment(const StatementRow *row, StatementField field)
{
	const char *at = needed(row, field);
	int64		date;
	int64		seconds = 0;
	int64		offset = 0;
	bool		is_valid;

	if (is_digits(at))
		return needed_unix_seconds(row, field);
	is_valid = read_date(&at, &date);
	if (is_valid && *at != '\0')
		is_valid = read_char(&at, "T ") && read_time(&at, &seconds) &&
			read_zone(&at, &offset) && *at == '\0';
	if (!is_valid)
		bad_field(row, field, "must be unix seconds or a moment in ISO 8601");
	return (date * SECS_PER_DAY + seconds - offset) * USECS_PER_SEC;
}

/* ---------- formats ---------- */

static bool
read_razorpay(const StatementRow *row, StatementLine *line)
{
	const char *type = needed(row, FIELD_TYPE);

	if (strcmp(type, "transfer") == 0 || strcmp(type, "adjustment") == 0)
		return false;
	if (strcmp(type, "payment") != 0 && strcmp(type, "refund") != 0)
		bad_field(row, FIELD_TYPE,
				  "must be payment, refund, transfer or adjustment");
	line->kind = type;
	line->reference = needed_reference(row, FIELD_ENTITY_ID);
	line->amount = needed_amount(row, FIELD_AMOUNT);
	line->at = needed_unix_seconds(row, FIELD_CREATED_AT);
	line->order_ref = read_reference(row, FIELD_ORDER_ID);
	line->settlement_utr = read_reference(row, FIELD_SETTLEMENT_UTR);
	line->has_fee = read_number(row, FIELD_FEE, MAX_AMOUNT, &line->fee);
	line->has_tax = read_number(row, FIELD_TAX, MAX_AMOUNT, &line->tax);
	read_currency(row, line);
	read_receipt(row, FIELD_ORDER_RECEIPT, line);
	if (strcmp(type, "payment") == 0)
	{
		line->provider_ref = line->reference;
		line->status = "completed";
	}
	else
		line->provider_ref = needed_reference(row, FIELD_PAYMENT_ID);
	return true;
}

/* words of providers, and what they mean of a payment */
static const char *const status_words[][2] = {
	{"completed", "completed"}, {"captured", "completed"},
	{"succeeded", "completed"}, {"refunded", "completed"},
	{"partially_refunded", "completed"},
	{"failed", "failed"}, {"expired", "expired"},
	{"created", "processing"}, {"initiated", "processing"},
	{"pending", "processing"}, {"authorized", "processing"},
	{"processing", "processing"},
};

static const char *
read_status(const StatementRow *row)
{
	const char *word = needed(row, FIELD_STATUS);

	for (int i = 0; i < lengthof(status_words); i++)
	{
		if (pg_strcasecmp(status_words[i][0], word) == 0)
			return status_words[i][1];
	}
	bad_field(row, FIELD_STATUS, "is no status that we know");
}

static void
read_refunded(const StatementRow *row, StatementLine *line)
{
	const char *word = row->fields[FIELD_STATUS];
	bool		is_whole = pg_strcasecmp(word, "refunded") == 0;
	bool		is_part = pg_strcasecmp(word, "partially_refunded") == 0;

	line->has_refunded = read_number(row, FIELD_REFUND_AMOUNT, MAX_AMOUNT,
									 &line->refunded);
	if (!line->has_refunded && is_part)
		bad_field(row, FIELD_REFUND_AMOUNT, "is missing");
	if (!line->has_refunded && is_whole)
	{
		line->has_refunded = true;
		line->refunded = line->amount;
	}
	if (line->refunded > line->amount)
		bad_field(row, FIELD_REFUND_AMOUNT, "is more than the amount");
	if (line->refunded > 0 && strcmp(line->status, "completed") != 0)
		bad_field(row, FIELD_REFUND_AMOUNT,
				  "is of a payment that was not completed");
}

static bool
read_generic(const StatementRow *row, StatementLine *line)
{
	line->kind = "payment";
	line->reference = needed_reference(row, FIELD_PROVIDER_REF);
	line->provider_ref = line->reference;
	line->status = read_status(row);
	line->amount = needed_amount(row, FIELD_AMOUNT);
	read_currency(row, line);
	line->at = needed_moment(row, FIELD_AT);
	line->order_ref = read_reference(row, FIELD_ORDER_REF);
	read_receipt(row, FIELD_ORDER_REF, line);
	read_refunded(row, line);
	return true;
}

static const StatementField razorpay_fields[] = {
	FIELD_ENTITY_ID, FIELD_TYPE, FIELD_AMOUNT, FIELD_CURRENCY,
	FIELD_CREATED_AT,
	FIELD_PAYMENT_ID, FIELD_ORDER_ID, FIELD_ORDER_RECEIPT, FIELD_FEE,
	FIELD_TAX, FIELD_SETTLEMENT_UTR
};

static const StatementField generic_fields[] = {
	FIELD_PROVIDER_REF, FIELD_STATUS, FIELD_AMOUNT, FIELD_CURRENCY, FIELD_AT,
	FIELD_ORDER_REF, FIELD_REFUND_AMOUNT
};

static const StatementFormat formats[] = {
	{"razorpay_settlement", razorpay_fields, lengthof(razorpay_fields), 5, read_razorpay},
	{"generic", generic_fields, lengthof(generic_fields), 5, read_generic},
};

/* what is unknown is not told: it may be the report, in the wrong place */
const StatementFormat *
statement_format(const char *name)
{
	for (int i = 0; i < lengthof(formats); i++)
	{
		if (strcmp(formats[i].name, name) == 0)
			return &formats[i];
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("unknown format"),
			 errhint("Formats are razorpay_settlement and generic.")));
}
