/* ---------- attach: what stands for each canonical name ---------- */

CREATE TABLE cusown_ops.binding (
  app_schema name NOT NULL,
  relation text NOT NULL,
  attribute text NOT NULL,
  bound_schema name,
  bound_name name NOT NULL,
  bound_since timestamptz NOT NULL DEFAULT pg_catalog.now(),
  CONSTRAINT binding_pkey PRIMARY KEY (app_schema, relation, attribute),
  CONSTRAINT binding_schema_of_relation
    CHECK ((attribute OPERATOR(pg_catalog.=) '')
           OPERATOR(pg_catalog.=) (bound_schema IS NOT NULL))
);

COMMENT ON TABLE cusown_ops.binding IS
'Which table and column of an application stands for each canonical name; written by cusown_attach()';
COMMENT ON COLUMN cusown_ops.binding.app_schema IS
'schema of the attached application';
COMMENT ON COLUMN cusown_ops.binding.relation IS
'canonical name of the relation';
COMMENT ON COLUMN cusown_ops.binding.attribute IS
'canonical name of the column; empty for the relation itself';
COMMENT ON COLUMN cusown_ops.binding.bound_schema IS
'schema of the table; null for a column';
COMMENT ON COLUMN cusown_ops.binding.bound_name IS
'name of the table or column in the application';
COMMENT ON COLUMN cusown_ops.binding.bound_since IS
'when this canonical name was first bound; attaching again leaves it';

SELECT pg_catalog.pg_extension_config_dump('cusown_ops.binding', '');

CREATE FUNCTION cusown_ops.invalidate_binding()
RETURNS trigger
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'cusown_invalidate_binding';

COMMENT ON FUNCTION cusown_ops.invalidate_binding() IS
'Trigger of our configuration tables: makes every session read them anew';

CREATE TRIGGER invalidate_binding
AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON cusown_ops.binding
FOR EACH STATEMENT EXECUTE FUNCTION cusown_ops.invalidate_binding();

-- also where replication or a restore writes the rows
ALTER TABLE cusown_ops.binding ENABLE ALWAYS TRIGGER invalidate_binding;

CREATE FUNCTION @extschema@.cusown_attach(
  app_schema name DEFAULT 'public',
  mapping jsonb DEFAULT '{}',
  dry_run boolean DEFAULT false,
  OUT relation text,
  OUT attribute text,
  OUT bound_to text,
  OUT status text,
  OUT remedy text)
RETURNS SETOF record
LANGUAGE c VOLATILE PARALLEL UNSAFE ROWS 100
AS 'MODULE_PATHNAME', 'cusown_attach';

COMMENT ON FUNCTION @extschema@.cusown_attach(name, jsonb, boolean) IS
'Binds an application''s tables to our canonical names.
app_schema: schema of the application''s tables.
mapping: names that differ, {"bookings": {"relation": "reservation", "columns": {"status": "state"}}, "payments": null}; null leaves a name unbound.
dry_run: show every name, write nothing.
Returns a row per canonical name: status bound, missing, optional or warning; remedy is the DDL that mends it.
A warning''s attribute says what it is about: indexes, nulls, row-level security, CHECKs that refuse what we write, triggers that call functions which search_path hides.
A guard whose table or column is bound otherwise now is set anew; one whose table is bound no more is taken off.
Errors: UO010 mapping malformed, or needed names missing (all in the detail); 3F000 no such schema; of a guard that is set anew, those of cusown_guard().';

CREATE FUNCTION @extschema@.cusown_detach(app_schema name DEFAULT 'public')
RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'cusown_detach';

COMMENT ON FUNCTION @extschema@.cusown_detach(name) IS
'Forgets the binding of an application; its worklist is kept.
Errors: UO001 not attached.';

