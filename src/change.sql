/* ---------- change: what our verbs changed ---------- */

-- neither is dumped: transaction ids mean nothing in another database
CREATE TABLE cusown_ops.change_stream (
  id uuid NOT NULL DEFAULT pg_catalog.gen_random_uuid(),
  pruned_xid xid8,
  pruned_id bigint,
  CONSTRAINT change_stream_pkey PRIMARY KEY (id)
);

COMMENT ON TABLE cusown_ops.change_stream IS
'One row: the identity of this database''s changes, part of every cursor';
COMMENT ON COLUMN cusown_ops.change_stream.id IS
'made with the extension, anew after a restore';
COMMENT ON COLUMN cusown_ops.change_stream.pruned_xid IS
'transaction of the last change, in the order of the cursor, that is no longer kept';
COMMENT ON COLUMN cusown_ops.change_stream.pruned_id IS 'id of that change';

INSERT INTO cusown_ops.change_stream DEFAULT VALUES;

CREATE TABLE cusown_ops.change (
  id bigint GENERATED ALWAYS AS IDENTITY,
  xid xid8 NOT NULL DEFAULT pg_catalog.pg_current_xact_id(),
  at timestamptz NOT NULL DEFAULT pg_catalog.now(),
  app_schema name NOT NULL,
  verb text NOT NULL,
  source text NOT NULL,
  entity text NOT NULL,
  entity_id uuid NOT NULL,
  slot_id uuid,
  from_status text,
  to_status text,
  CONSTRAINT change_pkey PRIMARY KEY (app_schema, id)
);

CREATE INDEX change_order_idx ON cusown_ops.change (xid, id);
CREATE INDEX change_at_idx ON cusown_ops.change (app_schema, at);

COMMENT ON TABLE cusown_ops.change IS
'What our verbs changed, for cusown_changes_since(); bounded by cusown_ops.change_retention';
COMMENT ON COLUMN cusown_ops.change.id IS 'order within a transaction';
COMMENT ON COLUMN cusown_ops.change.xid IS 'transaction that made the change';
COMMENT ON COLUMN cusown_ops.change.at IS 'start of that transaction';
COMMENT ON COLUMN cusown_ops.change.app_schema IS 'schema of the attached application';
COMMENT ON COLUMN cusown_ops.change.verb IS 'what was done, for instance expire_bookings';
COMMENT ON COLUMN cusown_ops.change.source IS 'manual, cron, worker, lazy_heal or application';
COMMENT ON COLUMN cusown_ops.change.entity IS 'booking, slot or payment';
COMMENT ON COLUMN cusown_ops.change.entity_id IS 'id of the entity';
COMMENT ON COLUMN cusown_ops.change.slot_id IS 'the slot concerned';
COMMENT ON COLUMN cusown_ops.change.from_status IS 'status before';
COMMENT ON COLUMN cusown_ops.change.to_status IS 'status after';

CREATE FUNCTION @extschema@.cusown_changes_since(
  after text DEFAULT NULL,
  max_rows integer DEFAULT 1000,
  OUT cursor text,
  OUT at timestamptz,
  OUT app_schema name,
  OUT verb text,
  OUT entity text,
  OUT entity_id uuid,
  OUT slot_id uuid,
  OUT from_status text,
  OUT to_status text,
  OUT source text)
RETURNS SETOF record
LANGUAGE c STABLE PARALLEL UNSAFE ROWS 1000
AS 'MODULE_PATHNAME', 'cusown_changes_since';

COMMENT ON FUNCTION @extschema@.cusown_changes_since(text, integer) IS
'What our verbs changed, in an order in which nothing is ever skipped.
after: the cursor of the last row seen; null begins at the oldest kept.
max_rows: how many rows at most.
A change is given once every transaction that was open when it was made has ended.
Errors: 22023 a cursor from before a dump and restore, of another database, or behind which changes are no longer kept (cusown_ops.change_retention).';

