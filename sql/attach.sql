-- Attach binds an application's tables to the canonical names: what it finds,
-- what it warns of, what it refuses, and that its DDL mends both.
SET client_min_messages = warning;
\getenv abs_srcdir PG_ABS_SRCDIR
\set fixture :abs_srcdir '/test/fixture'
CREATE EXTENSION cusown_ops;

-- The reference schema is attached without a mapping; a dry run shows every
-- canonical name in our order, then the warnings, and writes nothing.
\set schema app
\set ECHO none
\i :fixture/cusown_app.sql
\set ECHO all
\pset format unaligned
SELECT * FROM cusown_attach('app', dry_run => true);
SELECT count(*) FROM cusown_ops.binding;

-- Attaching for real returns the same rows, and keeps what is bound.
CREATE TEMP TABLE shown AS
SELECT * FROM cusown_attach('app', dry_run => true) WITH ORDINALITY;
CREATE TEMP TABLE done AS
SELECT * FROM cusown_attach('app') WITH ORDINALITY;
SELECT count(*) AS different
FROM shown s FULL JOIN done d USING (ordinality)
WHERE s IS DISTINCT FROM d;
SELECT relation, attribute, bound_schema, bound_name
FROM cusown_ops.binding
WHERE app_schema = 'app'
ORDER BY relation, attribute;
SELECT count(*) AS different
FROM (SELECT relation, attribute, bound_to FROM done WHERE status = 'bound'
      EXCEPT
      SELECT relation, nullif(attribute, ''),
             concat_ws('.', quote_ident(bound_schema), quote_ident(bound_name))
      FROM cusown_ops.binding WHERE app_schema = 'app') d;

-- Each warning is mended by its DDL.
SELECT remedy FROM cusown_attach('app') WHERE status = 'warning'
\gexec
SELECT * FROM cusown_attach('app') WHERE status = 'warning';

-- The minimal schema is attached with its mapping; nothing there is called as
-- we call it.
\set schema shop
\set ECHO none
\i :fixture/app_minimal.sql
\set ECHO all
SELECT * FROM cusown_attach('shop', :'minimal_mapping', true);
SELECT count(*) AS bound
FROM cusown_attach('shop', :'minimal_mapping') WHERE status = 'bound';
SELECT remedy FROM cusown_attach('shop', :'minimal_mapping')
WHERE status = 'warning'
\gexec
SELECT * FROM cusown_attach('shop', :'minimal_mapping')
WHERE status = 'warning';
SELECT app_schema, count(*) FROM cusown_ops.binding GROUP BY 1 ORDER BY 1;

-- The index that makes a second confirmed booking of a slot impossible.  What
-- does not do that is no such index; each time the warning and its DDL.
CREATE VIEW pg_temp.unique_index AS
SELECT attribute, remedy FROM cusown_attach('app')
WHERE status = 'warning' AND attribute LIKE '%unique%';
DROP INDEX app.idx_bookings_one_confirmed_per_slot;
SELECT * FROM pg_temp.unique_index;
-- of another predicate
CREATE UNIQUE INDEX other ON app.bookings (slot_id) WHERE status = 'pending';
SELECT attribute FROM pg_temp.unique_index;
DROP INDEX app.other;
-- of fewer rows
CREATE UNIQUE INDEX other ON app.bookings (slot_id)
WHERE status = 'confirmed' AND NOT no_show;
SELECT attribute FROM pg_temp.unique_index;
DROP INDEX app.other;
-- of further columns
CREATE UNIQUE INDEX other ON app.bookings (slot_id, customer_user_id)
WHERE status = 'confirmed';
SELECT attribute FROM pg_temp.unique_index;
DROP INDEX app.other;
-- not unique
CREATE INDEX other ON app.bookings (slot_id) WHERE status = 'confirmed';
SELECT attribute FROM pg_temp.unique_index;
DROP INDEX app.other;
-- an expression
CREATE UNIQUE INDEX other ON app.bookings ((slot_id::text))
WHERE status = 'confirmed';
SELECT attribute FROM pg_temp.unique_index;
DROP INDEX app.other;
-- checked at commit only
ALTER TABLE app.bookings ADD CONSTRAINT other UNIQUE (slot_id) DEFERRABLE;
SELECT attribute FROM pg_temp.unique_index;
ALTER TABLE app.bookings DROP CONSTRAINT other;
-- invalid: two confirmed bookings were there when it was made
INSERT INTO app.businesses
  (id, salon_name, owner_name, whatsapp_number, opening_time, closing_time,
   slot_duration, booking_link)
VALUES (md5('business')::uuid, 'Salon', 'Owner', '+15550100001', '09:00',
        '18:00', 30, 'salon');
INSERT INTO app.slots (id, business_id, date, start_time, end_time, status)
VALUES (md5('slot')::uuid, md5('business')::uuid, '2026-01-05', '09:00',
        '09:30', 'booked');
INSERT INTO app.bookings (id, business_id, slot_id, customer_name,
                          customer_phone, booking_id, status, created_at)
SELECT md5('booking ' || n)::uuid, md5('business')::uuid, md5('slot')::uuid,
       'Customer', '+15550100002', 'CO-' || n, 'confirmed', '2026-01-01'
FROM generate_series(1, 2) n;
CREATE UNIQUE INDEX CONCURRENTLY other ON app.bookings (slot_id)
WHERE status = 'confirmed'; -- fails
SELECT indisvalid FROM pg_index WHERE indexrelid = 'app.other'::regclass;
SELECT attribute FROM pg_temp.unique_index;
DELETE FROM app.bookings WHERE id = md5('booking 2')::uuid;
SELECT attribute FROM pg_temp.unique_index;
REINDEX INDEX CONCURRENTLY app.other;
SELECT attribute FROM pg_temp.unique_index;
DROP INDEX app.other;
-- what does: of more rows, of all rows, and over slot and business
CREATE UNIQUE INDEX other ON app.bookings (slot_id)
WHERE status IN ('confirmed', 'pending');
SELECT attribute FROM pg_temp.unique_index;
DROP INDEX app.other;
CREATE UNIQUE INDEX other ON app.bookings (slot_id);
SELECT attribute FROM pg_temp.unique_index;
DROP INDEX app.other;
CREATE UNIQUE INDEX other ON app.bookings (business_id, slot_id)
WHERE status = 'confirmed';
SELECT attribute FROM pg_temp.unique_index;
-- unless the business may be null, as nulls are all different
ALTER TABLE app.bookings ALTER business_id DROP NOT NULL;
SELECT remedy FROM pg_temp.unique_index
\gexec
SELECT attribute FROM pg_temp.unique_index;
DROP INDEX app.other;
-- and the DDL of the warning
SELECT remedy FROM pg_temp.unique_index
\gexec
SELECT attribute FROM pg_temp.unique_index;

-- An index behind a look-up serves where it holds all its rows and begins
-- with its columns.
CREATE VIEW pg_temp.plain_index AS
SELECT attribute FROM cusown_attach('app')
WHERE status = 'warning' AND attribute LIKE 'no index%';
DROP INDEX app.idx_payments_booking_id;
CREATE INDEX other ON app.payments (status, booking_id);
SELECT * FROM pg_temp.plain_index;
CREATE INDEX other2 ON app.payments (booking_id) WHERE status <> 'expired';
SELECT * FROM pg_temp.plain_index;
CREATE INDEX other3 ON app.payments (booking_id, status);
SELECT * FROM pg_temp.plain_index;
-- what is looked up is never null
DROP INDEX app.payments_order_id_idx, app.payments_transaction_id_idx;
CREATE INDEX other4 ON app.payments (order_id) WHERE transaction_id IS NOT NULL;
CREATE INDEX other5 ON app.payments (transaction_id) WHERE transaction_id IS NULL;
SELECT * FROM pg_temp.plain_index;
CREATE INDEX other6 ON app.payments (order_id) WHERE order_id IS NOT NULL;
SELECT * FROM pg_temp.plain_index;

-- Everything that is wrong is one error, each with its DDL, and nothing is
-- written; a dry run shows the same.
CREATE SCHEMA broken;
CREATE TYPE broken."Booking state" AS ENUM ('pending', 'cancelled');
CREATE TABLE broken.bookings (
  slot_id text,
  status broken."Booking state"
);
CREATE TABLE broken.slots (
  id uuid,
  status integer,
  date date,
  start_time time
);
CREATE TABLE broken.audit_logs (
  entity_type text,
  entity_id uuid,
  created_at timestamptz,
  action integer
);
CREATE TABLE broken.metrics (value bigint);
INSERT INTO broken.slots VALUES (md5('slot')::uuid, 1);
INSERT INTO broken.bookings VALUES (md5('slot')::uuid, 'pending');
SELECT * FROM cusown_attach('broken'); -- fails
\echo :SQLSTATE
SELECT count(*) FROM cusown_ops.binding WHERE app_schema = 'broken';
SELECT * FROM cusown_attach('broken', dry_run => true)
WHERE status = 'missing';
SELECT count(*) FROM cusown_ops.binding WHERE app_schema = 'broken';
-- the DDL mends it all
SELECT remedy FROM cusown_attach('broken', dry_run => true)
WHERE status = 'missing'
\gexec
SELECT relation, attribute, bound_to, status
FROM cusown_attach('broken')
WHERE status IN ('bound', 'missing');

-- Needed tables that are not there, or are no tables, are named in one error.
CREATE SCHEMA empty;
SELECT * FROM cusown_attach('empty'); -- fails
\echo :SQLSTATE
CREATE VIEW empty.bookings AS SELECT * FROM app.bookings;
CREATE MATERIALIZED VIEW empty.slots AS SELECT * FROM app.slots;
CREATE SEQUENCE empty.audit_logs;
CREATE VIEW empty.payments AS SELECT * FROM app.payments;
SELECT * FROM cusown_attach('empty'); -- fails
DROP VIEW empty.bookings, empty.payments;
DROP MATERIALIZED VIEW empty.slots;
DROP SEQUENCE empty.audit_logs;
-- a schema that does not exist
SELECT * FROM cusown_attach('nowhere'); -- fails
\echo :SQLSTATE
SELECT * FROM cusown_attach('nowhere', dry_run => true); -- fails

-- Ids are uuid, times are timestamp with time zone.
CREATE TABLE empty.bookings (
  id bigint,
  slot_id text,
  status text,
  created_at timestamp,
  updated_at date
);
CREATE TABLE empty.slots (
  id integer,
  status text,
  starts_at timestamp,
  ends_at timestamptz
);
CREATE TABLE empty.audit_logs (
  action text,
  entity_type text,
  entity_id varchar(36),
  created_at time
);
SELECT relation, attribute, status
FROM cusown_attach('empty', dry_run => true)
WHERE status = 'missing';
\set VERBOSITY terse
SELECT * FROM cusown_attach('empty'); -- fails
\set VERBOSITY default
\echo :SQLSTATE
-- the DDL runs: a column that cannot become what is needed gets another beside
-- it, which the mapping names; a timestamp is taken as UTC, whatever TimeZone is
INSERT INTO empty.bookings VALUES (1, md5('slot'), 'pending', '2026-01-05 10:00');
INSERT INTO empty.slots VALUES (1, 'available', '2026-07-05 10:00');
INSERT INTO empty.audit_logs VALUES ('a', 'slot', md5('slot'), '10:00');
SET TimeZone = 'Asia/Kolkata';
SELECT remedy FROM cusown_attach('empty', dry_run => true)
WHERE status = 'missing'
\gexec
RESET TimeZone;
SELECT created_at AT TIME ZONE 'UTC' AS created_at, id, id_id IS NOT NULL AS id_id
FROM empty.bookings;
SELECT starts_at AT TIME ZONE 'UTC' AS starts_at FROM empty.slots;
SELECT relation, attribute, bound_to
FROM cusown_attach('empty', '{"bookings": {"columns": {"id": "id_id"}},
  "slots": {"columns": {"id": "id_id"}},
  "audit_logs": {"columns": {"created_at": "created_at_created_at"}}}', true)
WHERE status = 'bound' AND attribute IN ('id', 'created_at', 'entity_id');

-- A slot's times are those of the business's wall clock, or absolute, or
-- both, but none of them in part.
DROP TABLE empty.bookings, empty.slots, empty.audit_logs;
CREATE TABLE empty.bookings (id uuid, slot_id uuid, status text,
                             created_at timestamptz);
CREATE TABLE empty.audit_logs (action text, entity_type text, entity_id uuid,
                               created_at timestamptz);
CREATE TABLE empty.slots (id uuid, status text, date date, start_time time,
                          end_time time);
CREATE VIEW pg_temp.slot_times AS
SELECT attribute, bound_to, status
FROM cusown_attach('empty', dry_run => true)
WHERE relation = 'slots'
  AND attribute IN ('date', 'start_time', 'end_time', 'starts_at', 'ends_at');
SELECT * FROM pg_temp.slot_times;
ALTER TABLE empty.slots ADD starts_at timestamptz, ADD ends_at timestamptz;
SELECT * FROM pg_temp.slot_times;
ALTER TABLE empty.slots DROP date;
SELECT * FROM pg_temp.slot_times;
CREATE VIEW pg_temp.no_slot_times AS
SELECT count(*) > 0 AS refused
FROM cusown_attach('empty', dry_run => true)
WHERE relation = 'slots' AND status = 'missing';
SELECT * FROM pg_temp.no_slot_times;
ALTER TABLE empty.slots DROP ends_at;
SELECT * FROM pg_temp.no_slot_times;
ALTER TABLE empty.slots ADD ends_at timestamp;
SELECT * FROM pg_temp.no_slot_times;
ALTER TABLE empty.slots DROP starts_at, DROP ends_at;
SELECT * FROM pg_temp.no_slot_times;
SELECT remedy FROM cusown_attach('empty', dry_run => true)
WHERE status = 'missing'
\gexec
SELECT count(*) AS bound
FROM cusown_attach('empty') WHERE status = 'bound';
-- partly there, the way that is nearer is asked for, and its DDL is enough
CREATE FUNCTION pg_temp.completed(columns text) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
  ddl text;
BEGIN
  DROP TABLE empty.slots;
  EXECUTE format('CREATE TABLE empty.slots (id uuid, status text%s)', columns);
  SELECT string_agg(remedy, ' ') INTO ddl
  FROM cusown_attach('empty', dry_run => true) WHERE status = 'missing';
  EXECUTE ddl;
  RETURN ddl || (SELECT ' => ' || string_agg(attribute, ', ')
                 FROM cusown_attach('empty')
                 WHERE status = 'bound' AND attribute ~ '^(date|start|end)');
END
$$;
SELECT pg_temp.completed(columns)
FROM unnest(ARRAY['', ', date date', ', starts_at timestamptz',
  ', ends_at timestamptz, end_time time',
  ', ends_at timestamptz, end_time time, date date',
  ', start_time time, end_time time']) AS columns;

-- A mapping that says anything but names of ours is malformed.
CREATE FUNCTION pg_temp.refusal(mapping text) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
  message text;
  detail text;
BEGIN
  PERFORM cusown_attach('app', mapping::jsonb);
  RETURN 'attached';
EXCEPTION WHEN OTHERS THEN
  GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL;
  RETURN SQLSTATE || ' ' || message || ': ' || detail;
END
$$;
SELECT * FROM cusown_attach('app', '[]'); -- fails
\echo :SQLSTATE
SELECT mapping, pg_temp.refusal(mapping)
FROM unnest(ARRAY[
  '1', '"bookings"', 'true', 'null', '[{"bookings": {}}]',
  '{"booking": null}', '{"": {}}', '{"Bookings": {}}',
  '{"bookings": 1}', '{"bookings": "reservation"}', '{"bookings": true}',
  '{"bookings": ["app", "bookings"]}',
  '{"bookings": {"table": "reservation"}}',
  '{"bookings": {"relation": "bookings", "column": {}}}',
  '{"bookings": {"relation": 1}}', '{"bookings": {"relation": null}}',
  '{"bookings": {"relation": {"name": "bookings"}}}',
  '{"bookings": {"relation": ["", "bookings"]}}',
  '{"bookings": {"relation": ["app", ""]}}',
  '{"bookings": {"columns": {"status": ""}}}', '{"bookings": {"": {}}}',
  '{"bookings": {"relation": []}}', '{"bookings": {"relation": ["app"]}}',
  '{"bookings": {"relation": ["app", null]}}',
  '{"bookings": {"relation": [1, "bookings"]}}',
  '{"bookings": {"relation": ["db", "app", "bookings"]}}',
  '{"bookings": {"relation": [["app"], "bookings"]}}',
  '{"bookings": {"columns": null}}', '{"bookings": {"columns": ["id"]}}',
  '{"bookings": {"columns": {"state": "status"}}}',
  '{"bookings": {"columns": {"": "status"}}}',
  '{"bookings": {"columns": {"amount": "total_price_cents"}}}',
  '{"bookings": {"columns": {"status": 1}}}',
  '{"bookings": {"columns": {"status": ["state"]}}}',
  '{"bookings": {"columns": {"status": {"pending": "open"}}}}']) AS mapping;
-- huge ones and deep ones too
SELECT left(pg_temp.refusal('{"bookings": ' || repeat('[', 5000)
                            || repeat(']', 5000) || '}'), 80);
SELECT left(pg_temp.refusal(repeat('{"bookings": ', 5000) || '1'
                            || repeat('}', 5000)), 80);
SELECT left(pg_temp.refusal('{"' || repeat('x', 1000000) || '": null}'), 40);
SELECT left(pg_temp.refusal('{"bookings": {"relation": "'
                            || repeat('x', 1000000) || '"}}'), 80);
-- what it names must be there; a longer name is not cut to one that is
SELECT mapping, pg_temp.refusal(mapping)
FROM unnest(ARRAY[
  '{"payments": {"relation": "payment"}}',
  '{"payments": {"relation": ["nowhere", "payments"]}}',
  '{"payments": {"relation": ""}}',
  '{"payments": {"columns": {"order_id": "orders"}}}',
  '{"bookings": {"relation": "idx_bookings_status"}}']) AS mapping;
CREATE TABLE app.b23456789012345678901234567890123456789012345678901234567890123
  ();
SELECT left(pg_temp.refusal('{"metrics": {"relation": "b2345678901234567890'
  '12345678901234567890123456789012345678901234567"}}'), 140);
-- what is not needed can be left out, what is needed cannot
SELECT pg_temp.refusal('{"bookings": null, "slots": null, "payments": null}');
SELECT pg_temp.refusal('{"bookings": {"columns": {"id": null, "status": null}}}');
SELECT relation, attribute, status
FROM cusown_attach('app', '{"payments": null, "businesses": null,
  "bookings": {"columns": {"business_id": null, "cancelled_by": null}}}')
WHERE relation IN ('payments', 'businesses', 'bookings')
  AND status = 'optional';
-- two names cannot stand for one column, nor two relations for one table
SELECT mapping, split_part(pg_temp.refusal(mapping), ';', 1) AS refusal
FROM unnest(ARRAY[
  '{"bookings": {"columns": {"cancelled_at": "created_at"}}}',
  '{"bookings": {"columns": {"id": "slot_id"}}}',
  '{"payments": {"relation": "bookings"}}',
  '{"metrics": {"relation": ["app", "slots"]}}']) AS mapping;
SELECT count(*) FROM cusown_ops.binding
WHERE app_schema = 'app' AND relation IN ('payments', 'metrics')
  AND bound_name IN ('bookings', 'slots');
-- an empty one, or one of what is found anyway, changes nothing
SELECT count(*) AS bound
FROM cusown_attach('app', '{"bookings": {}, "slots": {"columns": {}},
  "payments": {"relation": ["app", "payments"],
               "columns": {"provider_ref": "provider_payment_id"}}}')
WHERE status = 'bound';
-- null is no schema, no mapping and no answer
SELECT * FROM cusown_attach(NULL);
SELECT * FROM cusown_attach('app', NULL);

-- Attaching again replaces what was bound: names that are no longer bound go.
SELECT count(*) FROM cusown_ops.binding WHERE app_schema = 'app';
SELECT count(*) FROM cusown_attach('app', '{"payments": null}')
WHERE status = 'bound';
SELECT count(*) AS all, count(*) FILTER (WHERE relation = 'payments') AS payments
FROM cusown_ops.binding WHERE app_schema = 'app';
-- one that fails leaves what was there
SELECT left(pg_temp.refusal('{"metrics": {"relation": "metric"}}'), 50);
SELECT count(*) FROM cusown_ops.binding WHERE app_schema = 'app';
-- the others are left alone
SELECT app_schema, count(*) FROM cusown_ops.binding GROUP BY 1 ORDER BY 1;

-- A table may stand in another schema than the application's.
CREATE SCHEMA ledger;
ALTER TABLE empty.audit_logs SET SCHEMA ledger;
ALTER TABLE ledger.audit_logs RENAME TO journal;
SELECT relation, bound_to, status
FROM cusown_attach('empty',
                   '{"audit_logs": {"relation": ["ledger", "journal"]}}')
WHERE relation IN ('audit_logs', 'slots') AND attribute IS NULL;

-- Other names that are known are found without a mapping; a column of our own
-- name comes first, and so does a mapping.
CREATE TABLE empty.payments (
  id uuid, booking_id uuid, status text, created_at timestamptz,
  provider_payment_id text, amount_cents integer, transaction_id text
);
ALTER TABLE empty.bookings ADD customer_user_id uuid, ADD guest uuid;
ALTER TABLE ledger.journal RENAME action TO action_type;
ALTER TABLE ledger.journal ADD admin_user_id uuid;
CREATE FUNCTION pg_temp.found(mapping jsonb)
RETURNS TABLE (relation text, attribute text, bound_to text)
LANGUAGE sql AS $$
  SELECT relation, attribute, bound_to
  FROM cusown_attach('empty', mapping
    || '{"audit_logs": {"relation": ["ledger", "journal"]}}', true)
  WHERE attribute IN ('provider_ref', 'amount', 'transaction_id', 'action',
                      'actor_id', 'customer_id')
$$;
SELECT * FROM pg_temp.found('{}');
ALTER TABLE empty.bookings ADD customer_id uuid;
SELECT * FROM pg_temp.found('{}') WHERE attribute = 'customer_id';
SELECT * FROM pg_temp.found('{"bookings": {"columns": {"customer_id": "guest"}}}')
WHERE attribute = 'customer_id';
SELECT * FROM pg_temp.found('{"bookings": {"columns": {"customer_id": null}}}')
WHERE attribute = 'customer_id';

-- What is to be called quotes the names in it.
CREATE SCHEMA "o'app";
SELECT * FROM cusown_attach('o''app', '{"metrics": null}'); -- fails
DROP SCHEMA "o'app";

-- Detaching forgets one application; what is not attached cannot be detached.
SELECT cusown_detach('empty');
SELECT DISTINCT app_schema FROM cusown_ops.binding ORDER BY 1;
SELECT cusown_detach('empty'); -- fails
\echo :SQLSTATE
SELECT cusown_detach(); -- fails
\echo :SQLSTATE
SELECT cusown_detach('nowhere'); -- fails
-- also one whose schema is gone
DROP SCHEMA broken CASCADE;
SELECT cusown_detach('broken');
SELECT DISTINCT app_schema FROM cusown_ops.binding ORDER BY 1;

-- Without a schema it is public.
CREATE TABLE public.bookings (LIKE empty.bookings);
CREATE TABLE public.slots (LIKE empty.slots);
CREATE TABLE public.audit_logs (LIKE ledger.journal);
SELECT relation, bound_to FROM cusown_attach()
WHERE status = 'bound' AND attribute IS NULL;
SELECT cusown_detach();
DROP TABLE public.bookings, public.slots, public.audit_logs;

-- Row-level security that hides rows from whoever attaches is warned of, and
-- the DDL mends it.
CREATE ROLE regress_attach_operator;
SELECT cusown_grant('regress_attach_operator', 'operator')
\gexec
ALTER ROLE regress_attach_operator NOBYPASSRLS;
SET ROLE regress_attach_operator;
SELECT relation, attribute, remedy FROM cusown_attach('app')
WHERE status = 'warning' AND attribute ~ 'security';
RESET ROLE;
SELECT DISTINCT remedy FROM cusown_attach('app', dry_run => true)
WHERE status = 'warning';
ALTER ROLE regress_attach_operator BYPASSRLS;
SET ROLE regress_attach_operator;
SELECT relation, attribute, remedy FROM cusown_attach('app')
WHERE status = 'warning' AND attribute ~ 'security';
RESET ROLE;

-- A dry run also works where nothing may be written; attaching does not.
BEGIN READ ONLY;
SELECT count(*) FROM cusown_attach('app', dry_run => true)
WHERE status = 'bound';
SAVEPOINT before;
SELECT * FROM cusown_attach('app'); -- fails
\echo :SQLSTATE
ROLLBACK TO before;
SELECT cusown_detach('app'); -- fails
\echo :SQLSTATE
ROLLBACK;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT * FROM cusown_attach('app'); -- fails
\echo :SQLSTATE
ROLLBACK;
-- what a rolled back transaction attached is not attached
BEGIN;
SELECT cusown_detach('app');
SELECT count(*)
FROM cusown_attach('empty',
                   '{"audit_logs": {"relation": ["ledger", "journal"]}}')
WHERE status = 'bound';
ROLLBACK;
SELECT DISTINCT app_schema FROM cusown_ops.binding ORDER BY 1;

-- A status may be of any string type, or an enum: due bookings are found and
-- expired alike.
CREATE PROCEDURE pg_temp.make_app(schema name, type text)
LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE format('CREATE SCHEMA %I', schema);
  PERFORM set_config('search_path', quote_ident(schema), true);
  CREATE TYPE label AS ENUM
    ('pending', 'confirmed', 'rejected', 'cancelled', 'available', 'reserved',
     'booked', 'initiated', 'processing', 'completed', 'failed', 'refunded',
     'partially_refunded', 'expired', 'customer', 'owner', 'system');
  CREATE DOMAIN word AS text CHECK (length(VALUE) < 20);
  CREATE DOMAIN short AS varchar(20);
  CREATE DOMAIN tag AS label;
  EXECUTE format('CREATE TABLE slots (id uuid, status %1$s, starts_at timestamptz,
                    ends_at timestamptz, reserved_until timestamptz);
                  CREATE TABLE bookings (id uuid, slot_id uuid, status %1$s,
                    created_at timestamptz, cancelled_by %1$s,
                    fixed boolean DEFAULT false,
                    CONSTRAINT fixed_check CHECK
                      (status::text <> ''cancelled'' OR NOT fixed));
                  CREATE TABLE payments (id uuid, booking_id uuid,
                    status %1$s, created_at timestamptz)', type);
  CREATE TABLE audit_logs (action text, entity_type text, entity_id uuid,
                           created_at timestamptz, old_data jsonb);
  INSERT INTO slots
  SELECT md5(n)::uuid, 'reserved', now(), now(), now() - interval '1 hour'
  FROM unnest('{plain,paid,paying,failed,fixed}'::text[]) n;
  INSERT INTO bookings
  SELECT md5(n)::uuid, md5(n)::uuid, 'pending', now() - interval '2 days',
         NULL, n = 'fixed'
  FROM unnest('{plain,paid,paying,failed,fixed}'::text[]) n;
  INSERT INTO payments VALUES
    (md5('paid')::uuid, md5('paid')::uuid, 'completed',
     now() - interval '2 days'),
    (md5('paying')::uuid, md5('paying')::uuid, 'processing', now()),
    (md5('failed')::uuid, md5('failed')::uuid, 'failed', now());
END
$$;
CREATE FUNCTION pg_temp.expired(schema name) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
  result text;
BEGIN
  PERFORM public.cusown_attach(schema);
  PERFORM set_config('cusown_ops.app_schema', schema, true);
  SELECT string_agg(verdict || ' ' || count, ', ' ORDER BY verdict) INTO result
  FROM (SELECT verdict, count(*) FROM public.cusown_due_bookings()
        GROUP BY 1) v;
  SELECT result || '; ' || e::text INTO result
  FROM public.cusown_expire_bookings() e;
  PERFORM set_config('search_path', quote_ident(schema), true);
  RETURN result || '; '
    || (SELECT string_agg(v, ', ' ORDER BY v)
        FROM (SELECT concat_ws(' ', b.status::text, s.status::text,
                               b.cancelled_by::text, count(*)) AS v
              FROM bookings b JOIN slots s ON s.id = b.slot_id
              GROUP BY b.status, s.status, b.cancelled_by) t)
    || '; ' || (SELECT count(*) FROM audit_logs);
END
$$;
CALL pg_temp.make_app('as_text', 'text');
CALL pg_temp.make_app('as_varchar', 'varchar(20)');
CALL pg_temp.make_app('as_char', 'char(20)');
CALL pg_temp.make_app('as_name', 'name');
CALL pg_temp.make_app('as_word', 'word');
CALL pg_temp.make_app('as_short', 'short');
CALL pg_temp.make_app('as_enum', 'label');
CALL pg_temp.make_app('as_tag', 'tag');
CREATE VIEW pg_temp.alike AS
SELECT n FROM unnest('{as_text,as_varchar,as_char,as_name,as_word,as_short,
                       as_enum,as_tag}'::name[]) n;
-- the indexes that are advised are recognized, and the verbs work beside them
SELECT remedy FROM pg_temp.alike, cusown_attach(n) WHERE status = 'warning'
\gexec
SELECT n, relation, attribute
FROM pg_temp.alike, cusown_attach(n) WHERE status = 'warning';
SELECT n, pg_temp.expired(n) FROM pg_temp.alike;
-- an enum that has no label for what we write is refused; the DDL mends it
CREATE TYPE as_enum.who AS ENUM ('customer');
ALTER TABLE as_enum.bookings ALTER cancelled_by TYPE as_enum.who USING NULL;
SELECT * FROM cusown_attach('as_enum'); -- fails
\echo :SQLSTATE
SELECT remedy FROM cusown_attach('as_enum', dry_run => true)
WHERE status = 'missing'
\gexec
UPDATE as_enum.bookings SET status = 'pending' WHERE status = 'cancelled';
SELECT pg_temp.expired('as_enum');

-- A partitioned table is attached like a plain one; there the unique index has
-- to have the partition key, business_id.
CREATE SCHEMA parts;
CREATE TABLE parts.slots (LIKE as_text.slots);
CREATE TABLE parts.audit_logs (LIKE as_text.audit_logs);
CREATE TABLE parts.bookings (
  business_id uuid, id uuid, slot_id uuid, status text NOT NULL,
  created_at timestamptz NOT NULL, fixed boolean DEFAULT false,
  CONSTRAINT fixed_check CHECK (status <> 'cancelled' OR NOT fixed)
) PARTITION BY HASH (business_id);
CREATE TABLE parts.bookings_0 PARTITION OF parts.bookings
FOR VALUES WITH (MODULUS 2, REMAINDER 0);
-- its columns stand in another order
CREATE TABLE parts.bookings_1 (
  gone integer, fixed boolean DEFAULT false, created_at timestamptz NOT NULL,
  status text NOT NULL, slot_id uuid, id uuid, business_id uuid,
  CONSTRAINT fixed_check CHECK (status <> 'cancelled' OR NOT fixed)
);
ALTER TABLE parts.bookings_1 DROP gone;
ALTER TABLE parts.bookings ATTACH PARTITION parts.bookings_1
FOR VALUES WITH (MODULUS 2, REMAINDER 1);
SELECT relation, bound_to, status FROM cusown_attach('parts')
WHERE attribute IS NULL AND status = 'bound';
-- its indexes cannot be built concurrently, and the unique one serves only
-- where the business is known
SELECT remedy FROM cusown_attach('parts') WHERE status = 'warning'
\gexec
SELECT remedy FROM cusown_attach('parts') WHERE status = 'warning'
\gexec
SELECT relation, attribute FROM cusown_attach('parts') WHERE status = 'warning';
INSERT INTO parts.slots
SELECT md5('slot ' || n)::uuid, 'reserved', now(), now(),
       now() - interval '1 hour'
FROM generate_series(1, 20) n;
INSERT INTO parts.bookings
SELECT md5('business ' || n)::uuid, md5('booking ' || n)::uuid,
       md5('slot ' || n)::uuid, 'pending', now() - interval '2 days', n > 15
FROM generate_series(1, 20) n;
SELECT count(DISTINCT tableoid) AS partitions FROM parts.bookings;
SET cusown_ops.app_schema = 'parts';
SELECT verdict, count(*) FROM cusown_due_bookings() GROUP BY 1 ORDER BY 1;
SELECT * FROM cusown_expire_bookings();
SELECT b.status, s.status AS slot, b.fixed, count(*)
FROM parts.bookings b JOIN parts.slots s ON s.id = b.slot_id
GROUP BY 1, 2, 3 ORDER BY 1, 2, 3;
SELECT cusown_detach('parts');
-- a single partition is a table as well
SELECT relation, bound_to
FROM cusown_attach('parts', '{"bookings": {"relation": "bookings_1"}}')
WHERE attribute IS NULL AND status = 'bound';
SELECT verdict, count(*) > 0 AS some
FROM cusown_due_bookings() GROUP BY 1 ORDER BY 1;
RESET cusown_ops.app_schema;

-- Names may need quotes, hold what our templates and SQL give a meaning to,
-- and be as long as they can be.
\set app 'The "App" {schema} [x] $1 :y %s 0123456789 0123456789 012345678'
\set bookings 'Bookings "b" {id} [1] -- 0123456789 0123456789 0123456789 01234'
CREATE SCHEMA :"app";
SET search_path = :"app";
CREATE TABLE "Slots; DROP TABLE x" (
  "ID" uuid PRIMARY KEY, "the ""Status""" text, "Starts" timestamptz,
  "Ends" timestamptz, "held {until}" timestamptz
);
CREATE TABLE :"bookings" (
  "SELECT" uuid PRIMARY KEY, "Slot]" uuid, "st'ate" varchar,
  "c::r" timestamptz, "can''celled" timestamptz, "by [" text, "why := $1" text,
  x23456789012345678901234567890123456789012345678901234567890123 timestamptz,
  CONSTRAINT "Can't be" CHECK ("st'ate" <> 'cancelled' OR "by [" <> 'no')
);
CREATE TABLE "pay%sments" (
  id uuid, "Booking" uuid, "Status" text, "when" timestamptz
);
CREATE TABLE "user" (
  "group" text, type text, "e ${$1}" uuid, "{}" jsonb, "Created At" timestamptz
);
SELECT octet_length(:'app') AS app, octet_length(:'bookings') AS bookings;
SELECT jsonb_build_object(
  'bookings', jsonb_build_object('relation', :'bookings', 'columns',
    '{"id": "SELECT", "slot_id": "Slot]", "status": "st''ate",
      "created_at": "c::r", "cancelled_at": "can''''celled",
      "cancelled_by": "by [", "cancellation_reason": "why := $1",
      "updated_at": "x23456789012345678901234567890123456789012345678901234567890123"}'::jsonb))
  || '{"slots": {"relation": "Slots; DROP TABLE x", "columns":
        {"id": "ID", "status": "the \"Status\"", "starts_at": "Starts",
         "ends_at": "Ends", "reserved_until": "held {until}"}},
       "payments": {"relation": "pay%sments", "columns":
        {"booking_id": "Booking", "status": "Status", "created_at": "when"}},
       "audit_logs": {"relation": "user", "columns":
        {"action": "group", "entity_type": "type", "entity_id": "e ${$1}",
         "metadata": "{}", "created_at": "Created At"}}}'::jsonb AS mapping
\gset
SELECT relation, attribute, bound_to
FROM public.cusown_attach(:'app', :'mapping') WHERE status = 'bound';
SELECT remedy FROM public.cusown_attach(:'app', :'mapping')
WHERE status = 'warning'
\gexec
SELECT attribute, remedy FROM public.cusown_attach(:'app', :'mapping')
WHERE status = 'warning';
INSERT INTO "Slots; DROP TABLE x"
SELECT md5(n)::uuid, 'reserved', now(), now(), now() - interval '1 hour'
FROM unnest('{plain,paid}'::text[]) n;
INSERT INTO :"bookings" ("SELECT", "Slot]", "st'ate", "c::r")
SELECT md5(n)::uuid, md5(n)::uuid, 'pending', now() - interval '2 days'
FROM unnest('{plain,paid}'::text[]) n;
INSERT INTO "pay%sments"
SELECT md5(n)::uuid, md5(n)::uuid, 'completed', now() FROM (VALUES ('paid')) v (n);
SET cusown_ops.app_schema = :'app';
SELECT verdict FROM public.cusown_due_bookings() ORDER BY 1;
SELECT * FROM public.cusown_expire_bookings();
SELECT "st'ate", "by [", "why := $1", "the ""Status"""
FROM :"bookings" JOIN "Slots; DROP TABLE x" ON "ID" = "Slot]"
ORDER BY 1;
SELECT "group", type, "{}" FROM "user" ORDER BY 1;
SELECT app_schema, kind FROM cusown_ops.attention
WHERE app_schema = :'app'::name;
SELECT public.cusown_detach(:'app');
-- SQL is not run
SELECT * FROM public.cusown_attach('app''; DROP TABLE bookings; --'); -- fails
\echo :SQLSTATE
SELECT public.cusown_detach('app"; DROP TABLE bookings; --'); -- fails
\echo :SQLSTATE
SELECT * FROM public.cusown_attach('app',
  '{"payments": {"relation": "payments; DROP TABLE app.metrics; --"},
    "metrics": {"columns":
      {"value": "value\"; DROP TABLE app.metrics; --"}}}'); -- fails
SELECT count(*) FROM app.metrics;
RESET search_path;

-- Nothing of ours depends on the application's tables: they can be dropped
-- while they are attached.
DROP SCHEMA :"app", shop CASCADE;
SELECT count(*) FROM cusown_ops.binding WHERE app_schema = 'shop';

DROP OWNED BY regress_attach_operator;
DROP ROLE regress_attach_operator;
DROP EXTENSION cusown_ops CASCADE;
DROP SCHEMA app, empty, ledger, parts, as_text, as_varchar, as_char,
  as_name, as_word, as_short, as_enum, as_tag CASCADE;

-- Columns mapped on a table that is not there, an index that is not valid, and
-- an enum of payments that lacks a status we use are all noticed.
CREATE EXTENSION cusown_ops;
CREATE SCHEMA later;
CREATE TABLE later.slots (id uuid PRIMARY KEY, status text, starts_at timestamptz, ends_at timestamptz);
CREATE TABLE later.audit_logs (action text, entity_type text, entity_id uuid, created_at timestamptz);
CREATE TABLE later.bookings (id uuid PRIMARY KEY, slot_id uuid, status text, created_at timestamptz NOT NULL);
\set VERBOSITY default
SELECT * FROM cusown_attach('later', '{"payments": {"columns": {"status": "state"}}}'); -- fails
INSERT INTO later.bookings SELECT md5(n::text)::uuid, md5('slot')::uuid, 'confirmed', now() FROM generate_series(1, 2) n;
\set VERBOSITY terse
CREATE UNIQUE INDEX CONCURRENTLY one_confirmed ON later.bookings (slot_id) WHERE status = 'confirmed'; -- fails, and stays behind
\set VERBOSITY default
SELECT attribute, remedy FROM cusown_attach('later') WHERE status = 'warning' AND attribute LIKE 'no unique%';
CREATE TYPE later.payment_state AS ENUM ('initiated', 'pending', 'processing', 'completed', 'failed', 'refunded', 'expired');
CREATE TABLE later.payments (id uuid PRIMARY KEY, booking_id uuid, status later.payment_state, created_at timestamptz NOT NULL);
SELECT * FROM cusown_attach('later'); -- fails
DROP SCHEMA later CASCADE;
DROP EXTENSION cusown_ops;

-- What CHECKs of the application would refuse of what we write is found by
-- asking them; the DDL lets it in and keeps the rest of what they say.
CREATE EXTENSION cusown_ops;
CREATE SCHEMA strict;
SET search_path = strict, public;
CREATE TABLE slots (id uuid PRIMARY KEY, status text, starts_at timestamptz, ends_at timestamptz,
                    reserved_until timestamptz);
CREATE TABLE bookings (id uuid PRIMARY KEY, slot_id uuid, status text, created_at timestamptz NOT NULL,
                       cancelled_at timestamptz, undone timestamptz, code int, note text,
                       fixed boolean NOT NULL DEFAULT false, made text NOT NULL DEFAULT 'x');
CREATE INDEX ON bookings (slot_id);
CREATE INDEX ON bookings (created_at, id) WHERE status = 'pending';
CREATE UNIQUE INDEX ON bookings (slot_id) WHERE status = 'confirmed';
CREATE TABLE audit_logs (
  id uuid DEFAULT gen_random_uuid(), number bigint GENERATED ALWAYS AS IDENTITY,
  action text, entity_type text, entity_id uuid, created_at timestamptz,
  old_data jsonb, new_data jsonb, severity text DEFAULT lower('INFO'), area text
);
CREATE INDEX ON audit_logs (entity_type, entity_id);
CREATE VIEW pg_temp.found AS
SELECT relation, attribute, remedy FROM cusown_attach('strict') WHERE status = 'warning';
SELECT * FROM pg_temp.found;
-- the audit table
ALTER TABLE audit_logs
  ADD CONSTRAINT known_action CHECK (action IN ('booking_cancelled', 'slot_released', 'other')),
  ADD CONSTRAINT "Known ""entity""" CHECK (entity_type = 'booking' OR entity_type = 'user') NO INHERIT,
  ADD CONSTRAINT pair CHECK (action <> 'data_corrected' OR entity_type <> 'slot') NOT VALID;
SELECT * FROM pg_temp.found;
SELECT remedy FROM pg_temp.found
\gexec
SELECT * FROM pg_temp.found;
SELECT conname, convalidated, connoinherit FROM pg_constraint
WHERE conrelid = 'audit_logs'::regclass AND contype = 'c' ORDER BY 1;
INSERT INTO audit_logs (action, entity_type) VALUES ('data_corrected', 'slot');
\set VERBOSITY terse
INSERT INTO audit_logs (action, entity_type) VALUES ('no such action', 'slot'); -- fails
\set VERBOSITY default
ALTER TABLE audit_logs DROP CONSTRAINT known_action, DROP CONSTRAINT "Known ""entity""", DROP CONSTRAINT pair;
TRUNCATE audit_logs;
-- together with other columns: as our rows would be, with their defaults
ALTER TABLE audit_logs
  ADD CONSTRAINT grave CHECK (action <> 'slot_booked' OR severity = 'warning'),
  ADD CONSTRAINT slight CHECK (action <> 'slot_booked' OR severity = 'info'),
  ADD CONSTRAINT area CHECK (action <> 'slot_booked' OR area IS NOT NULL),
  ADD CONSTRAINT area_value CHECK (action <> 'slot_booked' OR area = 'x'),
  ADD CONSTRAINT data CHECK (action = 'data_corrected' OR new_data IS NOT NULL),
  ADD CONSTRAINT no_data CHECK (action <> 'data_corrected' OR old_data IS NOT NULL);
SELECT * FROM pg_temp.found;
ALTER TABLE audit_logs DROP CONSTRAINT grave, DROP CONSTRAINT slight, DROP CONSTRAINT area,
  DROP CONSTRAINT area_value, DROP CONSTRAINT data, DROP CONSTRAINT no_data;
-- who has done it: system, owner or customer
ALTER TABLE audit_logs ADD actor_role text,
  ADD CONSTRAINT roles CHECK (actor_role IN ('system', 'admin')),
  ADD CONSTRAINT role_of_action CHECK (action <> 'booking_cancelled' OR actor_role <> 'customer'),
  ADD CONSTRAINT no_cancelling CHECK (action <> 'booking_cancelled' AND actor_role IS NOT NULL);
SELECT * FROM pg_temp.found;
SELECT remedy FROM pg_temp.found WHERE attribute LIKE '%roles%'
\gexec
SELECT * FROM pg_temp.found;
ALTER TABLE audit_logs DROP actor_role CASCADE;
-- what is not known until a row is written, or not ours, is not asked
ALTER TABLE audit_logs
  ADD CONSTRAINT random CHECK (action <> 'slot_booked' OR id IS NOT NULL),
  ADD CONSTRAINT next_number CHECK (action <> 'slot_booked' OR number IS NOT NULL),
  ADD CONSTRAINT whole CHECK (action <> 'slot_booked' OR audit_logs IS NULL),
  ADD CONSTRAINT not_ours CHECK (severity = 'fatal');
SELECT * FROM pg_temp.found;
ALTER TABLE audit_logs DROP CONSTRAINT random, DROP CONSTRAINT next_number, DROP CONSTRAINT whole,
  DROP CONSTRAINT not_ours;
-- inherited: it cannot be dropped here
CREATE TABLE parent (action text CONSTRAINT inherited CHECK (action <> 'slot_booked'));
ALTER TABLE audit_logs ADD CONSTRAINT inherited CHECK (action <> 'slot_booked');
ALTER TABLE audit_logs INHERIT parent;
SELECT * FROM pg_temp.found;
ALTER TABLE audit_logs NO INHERIT parent;
ALTER TABLE audit_logs DROP CONSTRAINT inherited;
-- one that raises an error hides none of the others, and stops nothing
CREATE FUNCTION moody(value text) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS
$$ BEGIN RAISE EXCEPTION 'not today'; END $$;
ALTER TABLE audit_logs ADD CONSTRAINT a_moody CHECK (moody(action)),
  ADD CONSTRAINT b_plain CHECK (action <> 'slot_booked');
SELECT * FROM pg_temp.found;
-- but a cancel is one
CREATE OR REPLACE FUNCTION moody(value text) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS
$$ BEGIN RAISE EXCEPTION 'as if cancelled' USING ERRCODE = 'query_canceled'; END $$;
\set VERBOSITY terse
SELECT * FROM pg_temp.found; -- fails
\set VERBOSITY default
ALTER TABLE audit_logs DROP CONSTRAINT a_moody, DROP CONSTRAINT b_plain;
-- a CHECK runs as the table's owner, and cannot become anybody else
CREATE FUNCTION who(value text) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS
$$ BEGIN RAISE EXCEPTION '%', current_user; END $$;
CREATE ROLE regress_attach_owner;
GRANT USAGE, CREATE ON SCHEMA strict TO regress_attach_owner;
ALTER TABLE audit_logs ADD CONSTRAINT who CHECK (who(action));
ALTER TABLE audit_logs OWNER TO regress_attach_owner;
SELECT attribute FROM pg_temp.found;
SELECT current_user = session_user AS myself_again;
ALTER TABLE audit_logs OWNER TO CURRENT_USER;
ALTER TABLE audit_logs DROP CONSTRAINT who;
DROP OWNED BY regress_attach_owner;
DROP ROLE regress_attach_owner;
-- the DDL holds under any path: what stands in the CHECK is named in full
CREATE FUNCTION known(value text) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$ SELECT value = 'x' $$;
ALTER TABLE audit_logs ADD CONSTRAINT by_function CHECK (known(action));
SELECT split_part(remedy, ' NOT VALID', 1) AS remedy FROM pg_temp.found;
ALTER TABLE audit_logs DROP CONSTRAINT by_function;
-- a domain's CHECK, and a column that is too short
CREATE DOMAIN kind AS text CONSTRAINT kind_check CHECK (VALUE <> 'slot');
ALTER TABLE audit_logs ALTER action TYPE varchar(13), ALTER entity_type TYPE kind USING 'booking';
SELECT * FROM pg_temp.found;
ALTER TABLE audit_logs ALTER action TYPE varchar(17), ALTER entity_type TYPE text;
SELECT * FROM pg_temp.found;

-- A CHECK on bookings that forbids to cancel some of them for ever, whatever
-- it is called and whatever its column is called.
ALTER TABLE bookings ADD CONSTRAINT once CHECK (NOT (status = 'cancelled' AND undone IS NOT NULL));
SELECT * FROM pg_temp.found;
INSERT INTO slots VALUES (md5('slot')::uuid, 'reserved', now(), now(), now() - interval '1 hour');
INSERT INTO bookings (id, slot_id, status, created_at, undone)
VALUES (md5('undone')::uuid, md5('slot')::uuid, 'pending', now() - interval '2 days', now());
SET cusown_ops.app_schema = 'strict';
SELECT verdict, finding FROM cusown_due_bookings();
SELECT remedy FROM pg_temp.found
\gexec
SELECT * FROM pg_temp.found;
SELECT verdict, finding FROM cusown_due_bookings();
SELECT expired, released, attention FROM cusown_expire_bookings();
DELETE FROM bookings;
ALTER TABLE bookings DROP CONSTRAINT once;
-- which columns make the difference
CREATE FUNCTION pg_temp.of_check(condition text) RETURNS SETOF text LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE format('ALTER TABLE strict.bookings ADD CONSTRAINT c CHECK (%s)', condition);
  RETURN QUERY SELECT coalesce(attribute || CASE WHEN remedy ~ '^--' THEN ' -- by hand' ELSE '' END, 'none')
    FROM (VALUES (1)) one LEFT JOIN cusown_attach('strict') ON status = 'warning';
  ALTER TABLE strict.bookings DROP CONSTRAINT c;
END $$;
SELECT condition, pg_temp.of_check(condition) AS finding
FROM unnest(ARRAY[
  'status <> ''cancelled''',
  'status IN (''pending'', ''confirmed'', ''rejected'', ''cancelled'')',
  'status <> ''cancelled'' OR cancelled_at IS NOT NULL',
  'status <> ''cancelled'' OR cancelled_at IS NULL',
  'status <> ''cancelled'' OR code IS NOT NULL',
  'status <> ''cancelled'' OR undone IS NULL OR code IS NOT NULL',
  'status <> ''cancelled'' OR undone IS NULL OR note IS NULL',
  'status <> ''cancelled'' OR undone IS NULL AND cancelled_at IS NOT NULL',
  'status <> ''cancelled'' OR undone IS NULL AND code > 0',
  -- not of cancelling
  'status <> ''confirmed'' OR undone IS NULL',
  'undone IS NULL',
  'status = ''confirmed''',
  -- never null; by value; not known
  'status <> ''cancelled'' OR made IS NOT NULL',
  'status <> ''cancelled'' OR made IS NULL',
  'status <> ''cancelled'' OR NOT fixed',
  'status <> ''cancelled'' OR code > 100',
  'status <> ''cancelled'' OR note <> ''vip''',
  'status <> ''cancelled'' OR bookings IS NOT NULL']) AS condition;

-- A trigger on what we write whose function calls what it cannot find.
CREATE SCHEMA "Ext lib";
CREATE FUNCTION "Ext lib".digest(text, text) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT md5($1) $$;
CREATE FUNCTION "Ext lib"."Hash it"(text) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT md5($1) $$;
CREATE FUNCTION "Ext lib"."in"(integer) RETURNS integer LANGUAGE sql IMMUTABLE AS $$ SELECT $1 $$;
CREATE FUNCTION chain() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  NEW.area := Digest /* of */ (NEW.action, 'sha256');
  RETURN NEW;
END $$;
CREATE TRIGGER "Chain it" BEFORE INSERT ON audit_logs FOR EACH ROW EXECUTE FUNCTION chain();
SELECT * FROM pg_temp.found;
INSERT INTO bookings (id, slot_id, status, created_at)
VALUES (md5('chained')::uuid, md5('slot')::uuid, 'pending', now() - interval '2 days');
\set VERBOSITY terse
SELECT expired FROM cusown_expire_bookings(); -- fails
\set VERBOSITY default
-- under a path that has it there is nothing to mend
SET search_path = strict, public, "Ext lib";
SELECT * FROM pg_temp.found;
SET search_path = strict, public;
SELECT remedy FROM pg_temp.found
\gexec
SELECT proconfig FROM pg_proc WHERE proname = 'chain';
SELECT * FROM pg_temp.found;
SELECT expired FROM cusown_expire_bookings();
SELECT area = md5(action) AS chained FROM audit_logs WHERE entity_id = md5('chained')::uuid;
DROP TRIGGER "Chain it" ON audit_logs;
-- what a body calls, by itself or by what it calls
CREATE FUNCTION digests() RETURNS text LANGUAGE plpgsql AS $$ BEGIN RETURN digest('a', 'b'); END $$;
CREATE FUNCTION digests_in_sql() RETURNS text LANGUAGE sql AS $$ SELECT digests() $$;
CREATE FUNCTION digests_in_its_path() RETURNS text LANGUAGE plpgsql SET search_path = "Ext lib"
AS $$ BEGIN RETURN digest('a', 'b'); END $$;
CREATE VIEW hmac AS SELECT 1 AS a;
CREATE FUNCTION pg_temp.of_body(body text) RETURNS SETOF text LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE format('CREATE FUNCTION strict.body() RETURNS trigger LANGUAGE plpgsql AS %L',
                 'BEGIN ' || body || E'\nRETURN NULL; END');
  CREATE TRIGGER body AFTER UPDATE ON strict.slots FOR EACH ROW EXECUTE FUNCTION strict.body();
  RETURN QUERY SELECT coalesce(regexp_replace(attribute, '^.* calls ', '') || ': ' || remedy, 'none')
    FROM (VALUES (1)) one LEFT JOIN cusown_attach('strict') ON status = 'warning';
  DROP FUNCTION strict.body() CASCADE;
END $$;
SET client_min_messages = error;
SET check_function_bodies = off;
SELECT body, pg_temp.of_body(body) AS finding
FROM unnest(ARRAY[
  'PERFORM digest(''a'', ''b'');',
  'PERFORM "digest"(''a'', ''b''), "Hash it"(''x'');',
  'PERFORM digests();',
  'PERFORM digests_in_sql();',
  'PERFORM digests_in_its_path();',
  'PERFORM "Ext lib".digest(''a'', ''b''), "Ext lib"  .  digest(''a'', ''b'');',
  'PERFORM md5(''a''), now(), coalesce(NULL, (1));',
  'PERFORM 1 IN (1);',
  '-- digest(''a'')',
  '/* digest(1) /* nested */ digest(2) */',
  'PERFORM ''digest(1) '''' digest(2)'', E''\'' digest(3)'';',
  'PERFORM $x$ digest(1) $y$ digest(2) $x$;',
  'PERFORM ''a'', digest(1);',
  'PERFORM $$a$$, digest(1);',
  'PERFORM E''\\'', digest(1);',
  'PERFORM "a""b", digest(1);',
  'NEW.digest := 1; digest := (2);',
  'INSERT INTO hmac (a) VALUES (1);',
  'PERFORM gen_random_bytes(8), crypt(''a'', gen_salt(''bf''));',
  'PERFORM no_such_function_anywhere(1);',
  'PERFORM ''not ended digest(1);',
  'PERFORM "not ended digest(1);',
  'PERFORM $x$ not ended digest(1);']) AS body;
RESET check_function_bodies;
SET client_min_messages = warning;
-- only triggers that fire for what we do
CREATE FUNCTION calls() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM digest('a', 'b'); RETURN NULL; END $$;
CREATE TRIGGER one AFTER INSERT OR DELETE ON slots FOR EACH ROW EXECUTE FUNCTION calls();
CREATE TRIGGER two AFTER TRUNCATE ON slots FOR EACH STATEMENT EXECUTE FUNCTION calls();
CREATE TRIGGER three AFTER UPDATE OR DELETE ON audit_logs FOR EACH ROW EXECUTE FUNCTION calls();
SELECT attribute FROM pg_temp.found;
CREATE TRIGGER four AFTER UPDATE ON slots FOR EACH STATEMENT EXECUTE FUNCTION calls();
CREATE TRIGGER five AFTER UPDATE ON slots FOR EACH ROW EXECUTE FUNCTION calls();
SELECT attribute FROM pg_temp.found;
ALTER TABLE slots DISABLE TRIGGER USER;
SELECT attribute FROM pg_temp.found;
ALTER TABLE slots ENABLE REPLICA TRIGGER four;
SELECT attribute FROM pg_temp.found;
ALTER TABLE slots ENABLE ALWAYS TRIGGER four;
SELECT attribute FROM pg_temp.found;
RESET cusown_ops.app_schema;
RESET search_path;
DROP EXTENSION cusown_ops CASCADE;
DROP SCHEMA strict, "Ext lib" CASCADE;
