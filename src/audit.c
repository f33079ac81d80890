/*-------------------------------------------------------------------------
 *
 * audit.c
 *	  The audit row of a change, in the transaction of the change.
 *
 * A set of changes and its audit rows are one statement, which ends in
 * AUDIT_INSERT (audit.h); a single one is written by audit_write().  No other
 * code writes to the application's audit table.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"

#include "audit.h"
#include "template.h"

static const Template insert_one = {
	"WITH audit_row (" AUDIT_ROW ") AS ("
	"SELECT $1::text, $2::text, $3::uuid, NULL::jsonb, NULL::jsonb,"
	" $4::jsonb, $5::text)"
	AUDIT_INSERT,
	5, {TEXTOID, TEXTOID, UUIDOID, JSONBOID, TEXTOID}
};

/* metadata is the text of a JSON object */
void
audit_write(Binding *binding, const char *action, const char *entity_type,
			const pg_uuid_t *entity_id, const char *metadata,
			const char *description)
{
	Datum		values[5];

	values[0] = CStringGetTextDatum(action);
	values[1] = CStringGetTextDatum(entity_type);
	values[2] = UUIDPGetDatum(entity_id);
	values[3] = DirectFunctionCall1(jsonb_in, CStringGetDatum(metadata));
	values[4] = CStringGetTextDatum(description);
	template_execute(binding, &insert_one, values, NULL, false);
	SPI_freetuptable(SPI_tuptable);
}
