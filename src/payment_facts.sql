/* ---------- payment facts: what is known of a case ---------- */

-- who may execute it may see personal data in the facts of a case
CREATE FUNCTION cusown_ops.may_read_personal_data()
RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS 'SELECT true';

COMMENT ON FUNCTION cusown_ops.may_read_personal_data() IS
'Who may execute it may call cusown_payment_facts() with_personal_data; the profile operator may';

CREATE FUNCTION @extschema@.cusown_payment_facts(
  id uuid,
  with_personal_data boolean DEFAULT false,
  OUT at timestamptz,
  OUT source text,
  OUT what text,
  OUT detail jsonb)
RETURNS SETOF record
LANGUAGE c STABLE PARALLEL UNSAFE ROWS 30
AS 'MODULE_PATHNAME', 'cusown_payment_facts';

COMMENT ON FUNCTION @extschema@.cusown_payment_facts(uuid, boolean) IS
'What is known of a payment or a booking: the booking, all of its payments, its slot since it was booked, both audit trails, idempotency keys, refunds, webhook events and the worklist. Writes nothing, works on a standby.
id: of the payment or of the booking.
with_personal_data: also names, phones, addresses, free text, idempotency keys, and the JSON of the audit trails as a whole; for who may execute cusown_ops.may_read_personal_data().
Returns facts in the order of time, those without a time last. source: canonical name of the table; detail: canonical names of its columns that are not null, absolute times in UTC, amounts in minor units. Where row-level security may hide rows of a table, a fact says so.
Errors: UO002 no such payment or booking, or row-level security hides it; UO001 no application attached; 42501 personal data denied; 22004 an argument is null.
Source: runbook Payment Mismatch, step 1.';

-- times in detail are in UTC by themselves
CREATE FUNCTION @extschema@.cusown_payment_case(id uuid)
RETURNS jsonb
LANGUAGE sql STABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
SET TimeZone = 'UTC'
BEGIN ATOMIC
  SELECT pg_catalog.jsonb_build_object('id', $1, 'at', pg_catalog.now(), 'facts',
           pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object(
             'at', f.at, 'source', f.source, 'what', f.what, 'detail', f.detail)
             ORDER BY f.n))
  FROM @extschema@.cusown_payment_facts($1)
       WITH ORDINALITY AS f (at, source, what, detail, n);
END;

COMMENT ON FUNCTION @extschema@.cusown_payment_case(uuid) IS
'The facts of a payment or a booking as one JSON object, for a ticket: id, at (when it was asked), facts (as cusown_payment_facts() has them). Never with personal data; all times in UTC.
id: of the payment or of the booking.
Errors: as cusown_payment_facts().
Source: runbook Payment Mismatch, step 1.';

