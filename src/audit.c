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
	"WITH audit_row (" AUDIT_ROW ", severity) AS ("
	"SELECT $1::text, $2::text, $3::uuid, NULL::jsonb, NULL::jsonb,"
	" $4::jsonb, $5::text, $6::text)"
	AUDIT_INSERT_WITH("[, {audit_logs.severity}]",
					  "[{?audit_logs.severity}, r.severity]"),
	6, {TEXTOID, TEXTOID, UUIDOID, JSONBOID, TEXTOID, TEXTOID}
};

/* metadata is the text of a JSON object; entity_id may be NULL */
void
audit_write_severe(Binding *binding, const char *action, const char *severity,
				   const char *entity_type, const pg_uuid_t *entity_id,
				   const char *metadata, const char *description)
{
	Datum		values[6];
	char		nulls[] = "      ";

	values[0] = CStringGetTextDatum(action);
	values[1] = CStringGetTextDatum(entity_type);
	values[2] = UUIDPGetDatum(entity_id);
	nulls[2] = entity_id == NULL ? 'n' : ' ';
	values[3] = DirectFunctionCall1(jsonb_in, CStringGetDatum(metadata));
	values[4] = CStringGetTextDatum(description);
	values[5] = CStringGetTextDatum(severity);
	template_execute(binding, &insert_one, values, nulls, false);
	SPI_freetuptable(SPI_tuptable);
}

void
audit_write(Binding *binding, const char *action, const char *entity_type,
			const pg_uuid_t *entity_id, const char *metadata,
			const char *description)
{
	audit_write_severe(binding, action, "info", entity_type, entity_id,
					   metadata, description);
}

/*
 * A trigger of the application that keeps audit rows from being written would
 * leave changes without one, and us without a count.  Fewer rows may be as we
 * left them: a trigger can change them again at once.
 */
void
audit_check(int64 changed, int64 audited)
{
	if (changed > audited)
		ereport(ERROR,
				(errcode(ERRCODE_TRIGGERED_DATA_CHANGE_VIOLATION),
				 errmsg(INT64_FORMAT " rows were changed, but " INT64_FORMAT " audit rows written",
						changed, audited),
				 errhint("Look for a trigger on the audit table that redirects or drops rows.")));
}
