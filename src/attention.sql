/* ---------- attention: the worklist ---------- */

CREATE TABLE cusown_ops.attention (
  id bigint GENERATED ALWAYS AS IDENTITY,
  app_schema name NOT NULL,
  kind text NOT NULL,
  entity text NOT NULL,
  entity_id uuid NOT NULL,
  runbook text NOT NULL,
  sqlstate text,
  finding text NOT NULL,
  first_seen timestamptz NOT NULL DEFAULT pg_catalog.now(),
  last_seen timestamptz NOT NULL DEFAULT pg_catalog.now(),
  times integer NOT NULL DEFAULT 1,
  next_try timestamptz NOT NULL,
  closed_at timestamptz,
  closed_by text,
  note text,
  checked_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
  CONSTRAINT attention_pkey PRIMARY KEY (id),
  CONSTRAINT attention_one_per_entity
    UNIQUE (app_schema, kind, entity, entity_id),
  CONSTRAINT attention_closed
    CHECK ((closed_at IS NULL) OPERATOR(pg_catalog.=) (closed_by IS NULL))
);

-- look-ups: what is backed off, and which open rows to recheck first
CREATE INDEX attention_entity_idx
ON cusown_ops.attention (app_schema, entity, entity_id);
CREATE INDEX attention_open_idx
ON cusown_ops.attention (app_schema, kind, checked_at, id)
WHERE closed_at IS NULL;

COMMENT ON TABLE cusown_ops.attention IS
'The worklist: what a human must look at; closed_at is null while it is open';
COMMENT ON COLUMN cusown_ops.attention.id IS
'for cusown_attention_resolve(id, note)';
COMMENT ON COLUMN cusown_ops.attention.app_schema IS
'schema of the attached application';
COMMENT ON COLUMN cusown_ops.attention.kind IS
'paid_pending: a booking is due to expire but paid; unexpirable: a booking is due to expire but cannot be cancelled; expiry_failed: a trigger refused to let it be cancelled; hold_without_end: a slot is reserved without an end; release_failed: a trigger refused to let a slot go whose hold is over; unmarkable, no_show_failed: a CHECK, a trigger refused to let a booking be marked as no-show; unknown_time_zone: a business''s time zone is not known; unresolvable: a CHECK or a trigger refused to let a booking be cancelled that stands in another one''s way; refund_due: a booking that will not take place has a completed payment; repair_failed: a trigger refused to let a slot be brought back to what its bookings say; paid_cancelled: a payment was completed whose booking was cancelled or rejected; payment_expiry_failed: a trigger refused to let a payment expire; reconcile_…: a finding of that class of cusown_reconcile(), that the state machine may not mend; duplicate_capture: a booking, or a payment, was paid twice; webhook_mismatch: an event tells another amount or currency, or of a reference that several payments have; unmatched_webhook: no payment came for an event; webhook_failed: a trigger refused what a parked event does';
COMMENT ON COLUMN cusown_ops.attention.entity IS
'what entity_id names: booking, slot, payment, business, statement_line, webhook_event';
COMMENT ON COLUMN cusown_ops.attention.entity_id IS
'id of the entity; of a statement_line or webhook_event its number, the last 12 digits, in hexadecimal';
COMMENT ON COLUMN cusown_ops.attention.runbook IS
'the runbook to open';
COMMENT ON COLUMN cusown_ops.attention.sqlstate IS
'the error that the application''s database raises, where there is one';
COMMENT ON COLUMN cusown_ops.attention.finding IS
'what is the matter';
COMMENT ON COLUMN cusown_ops.attention.first_seen IS
'when it was first found';
COMMENT ON COLUMN cusown_ops.attention.last_seen IS
'when it was last found; not tried before next_try';
COMMENT ON COLUMN cusown_ops.attention.times IS
'how often it was found';
COMMENT ON COLUMN cusown_ops.attention.next_try IS
'until then the entity is left alone; moves away by doubling steps from 5 minutes to 24 hours';
COMMENT ON COLUMN cusown_ops.attention.closed_at IS
'when it was closed; null while open';
COMMENT ON COLUMN cusown_ops.attention.closed_by IS
'role that closed it by hand, or recheck when the finding was gone';
COMMENT ON COLUMN cusown_ops.attention.note IS
'what the one who closed it did';
COMMENT ON COLUMN cusown_ops.attention.checked_at IS
'when a run last asked whether the finding still holds';

SELECT pg_catalog.pg_extension_config_dump('cusown_ops.attention', '');
SELECT pg_catalog.pg_extension_config_dump('cusown_ops.attention_id_seq', '');

CREATE FUNCTION @extschema@.cusown_attention_resolve(id bigint, note text)
RETURNS boolean
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'cusown_attention_resolve';

COMMENT ON FUNCTION @extschema@.cusown_attention_resolve(bigint, text) IS
'Closes an entry of the worklist cusown_ops.attention by hand, audited as data_corrected.
id: of the entry. note: what was done.
Returns false when it was closed already. If the finding still holds 24 hours later, the entry is opened again.
Errors: UO002 no such entry; UO001 its application is not attached; 22023 empty note.
Locks: waits for the row that the entry is about.';

