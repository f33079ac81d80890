/*-------------------------------------------------------------------------
 *
 * statement.h
 *	  What a provider says of its payments, row by row.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CUSOWN_STATEMENT_H
#define CUSOWN_STATEMENT_H

#include "datatype/timestamp.h"
#include "utils/uuid.h"

#include "binding.h"
#include "compat.h"

/* rows of one report */
#define STATEMENT_MAX_ROWS 2000000

/* days for which statements of an attached application are kept */
#define STATEMENT_DAYS 400

/* what we read of a report, over all formats */
typedef enum StatementField
{
	FIELD_ENTITY_ID,
	FIELD_TYPE,
	FIELD_AMOUNT,
	FIELD_CURRENCY,
	FIELD_FEE,
	FIELD_TAX,
	FIELD_ORDER_ID,
	FIELD_ORDER_RECEIPT,
	FIELD_PAYMENT_ID,
	FIELD_SETTLEMENT_UTR,
	FIELD_CREATED_AT,
	FIELD_PROVIDER_REF,
	FIELD_STATUS,
	FIELD_AT,
	FIELD_ORDER_REF,
	FIELD_REFUND_AMOUNT,
	STATEMENT_FIELDS
} StatementField;

/* a row of a report as text; NULL where it says nothing */
typedef struct StatementRow
{
	int			number;			/* from 1 */
	const char *fields[STATEMENT_FIELDS];
} StatementRow;

/* what is kept of it */
typedef struct StatementLine
{
	int			row_number;
	const char *kind;
	const char *reference;
	const char *provider_ref;
	const char *order_ref;		/* or NULL */
	bool		has_receipt;
	pg_uuid_t	receipt;
	const char *status;			/* or NULL */
	int64		amount;
	char		currency[4];
	bool		has_refunded;
	int64		refunded;
	TimestampTz at;
	bool		has_fee;
	int64		fee;
	bool		has_tax;
	int64		tax;
	const char *settlement_utr; /* or NULL */
} StatementLine;

typedef struct StatementFormat
{
	const char *name;
	const StatementField *fields;
	int			field_count;
	int			needed;			/* of the first fields, columns of CSV */
	/* false: the row is about no payment */
	bool		(*read) (const StatementRow *row, StatementLine *line);
} StatementFormat;

typedef void (*StatementPut) (const StatementRow *row, void *state);

/* a line that is given as evidence: what it may know a payment by */
typedef struct StatementEvidence
{
	const char *provider;
	const char *provider_ref;
	const char *order_ref;		/* or NULL */
	bool		has_receipt;
	pg_uuid_t	receipt;
} StatementEvidence;

/* statement_row.c */
extern const char *const statement_field_names[];
extern const StatementFormat *statement_format(const char *name);
pg_noreturn extern void statement_malformed(int row, const char *detail);

/* statement_csv.c */
extern void statement_read_csv(const StatementFormat *format, const char *csv,
							   StatementPut put, void *state);

/* statement.c */
extern bool statement_line_shows_money(Binding *binding, int64 id,
									   StatementEvidence *line);

#endif							/* CUSOWN_STATEMENT_H */
