-- The binding: which application a verb works on, and that a session notices
-- at once when the binding or what it names has changed.
SET client_min_messages = warning;
\getenv abs_srcdir PG_ABS_SRCDIR
\set fixture :abs_srcdir '/test/fixture'
CREATE EXTENSION cusown_ops;
\pset format unaligned

-- Nothing is attached.
SELECT * FROM cusown_due_bookings(); -- fails
\echo :SQLSTATE
SELECT * FROM cusown_expire_bookings(); -- fails
\echo :SQLSTATE
SET cusown_ops.app_schema = 'shop';
SELECT * FROM cusown_due_bookings(); -- fails
\echo :SQLSTATE
RESET cusown_ops.app_schema;

-- The only application that is attached needs no choice.
\set ECHO none
\set schema shop
\i :fixture/app_minimal.sql
\set schema stall
\i :fixture/app_minimal.sql
\set ECHO all
CREATE PROCEDURE pg_temp.add(schema name, names text[], age interval)
LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE format('INSERT INTO %I.time_slot (ref, state, held_until)
                    SELECT md5(n)::uuid, ''reserved'', now() - $2
                    FROM unnest($1) n', schema) USING names, age;
  EXECUTE format('INSERT INTO %I.reservation (ref, slot_ref, state, made_at)
                    SELECT md5(n)::uuid, md5(n)::uuid, ''pending'', now() - $2
                    FROM unnest($1) n', schema) USING names, age;
END
$$;
CALL pg_temp.add('shop', '{one}', '2 days');
CALL pg_temp.add('stall', '{1,2}', '2 days');
SELECT count(*) > 0 AS attached FROM cusown_attach('shop', :'minimal_mapping');
SELECT count(*) FROM cusown_due_bookings();

-- Of several one has to be chosen.
SELECT count(*) > 0 AS attached FROM cusown_attach('stall', :'minimal_mapping');
SELECT * FROM cusown_due_bookings(); -- fails
\echo :SQLSTATE
SELECT * FROM cusown_expire_bookings(); -- fails
\echo :SQLSTATE
SET cusown_ops.app_schema = 'shop';
SELECT count(*) FROM cusown_due_bookings();
SET cusown_ops.app_schema = 'stall';
SELECT count(*) FROM cusown_due_bookings();
-- within one transaction, and back with it
BEGIN;
SET LOCAL cusown_ops.app_schema = 'shop';
SELECT count(*) FROM cusown_due_bookings();
SET LOCAL cusown_ops.app_schema = 'stall';
SELECT expired, released FROM cusown_expire_bookings();
SET LOCAL cusown_ops.app_schema = 'shop';
SELECT expired, released FROM cusown_expire_bookings();
ROLLBACK;
SELECT count(*) FROM cusown_due_bookings();
-- one that is not attached, or not there
SET cusown_ops.app_schema = 'Shop';
SELECT * FROM cusown_due_bookings(); -- fails
\echo :SQLSTATE
SET cusown_ops.app_schema = 'shop; DROP SCHEMA stall CASCADE';
SELECT * FROM cusown_due_bookings(); -- fails
\echo :SQLSTATE
-- each hint can be run as it is
SET cusown_ops.app_schema = 'o''shop';
SELECT * FROM cusown_due_bookings(); -- fails
BEGIN;
INSERT INTO cusown_ops.binding
VALUES ('o''shop', 'bookings', '', 'o''shop', 'reservation');
SELECT * FROM cusown_due_bookings(); -- fails
ROLLBACK;
BEGIN;
INSERT INTO cusown_ops.binding
SELECT 'o''shop', relation, attribute, bound_schema, bound_name
FROM cusown_ops.binding WHERE app_schema = 'shop'
  AND (relation, attribute) <> ('slots', 'id');
SELECT * FROM cusown_due_bookings(); -- fails
ROLLBACK;
-- one that is longer than a name does not stand for its beginning
BEGIN;
INSERT INTO cusown_ops.binding
SELECT repeat('s', 63)::name, relation, attribute, bound_schema, bound_name
FROM cusown_ops.binding WHERE app_schema = 'shop';
SELECT set_config('cusown_ops.app_schema', repeat('s', 63), true) IS NOT NULL AS as_long;
SELECT count(*) FROM cusown_due_bookings();
SELECT set_config('cusown_ops.app_schema', repeat('s', 64), true) IS NOT NULL AS longer;
SELECT * FROM cusown_due_bookings(); -- fails
\echo :SQLSTATE
ROLLBACK;
-- empty is no choice
SET cusown_ops.app_schema = '';
SELECT * FROM cusown_due_bookings(); -- fails
RESET cusown_ops.app_schema;
-- detaching the other makes it the only one again
SELECT cusown_detach('stall');
SELECT count(*) FROM cusown_due_bookings();

-- A column that was renamed is named; attaching again mends it.
ALTER TABLE shop.reservation RENAME made_at TO born_at;
SELECT * FROM cusown_due_bookings(); -- fails
\echo :SQLSTATE
SELECT * FROM cusown_expire_bookings(); -- fails
SELECT count(*) > 0 AS attached
FROM cusown_attach('shop',
  replace(:'minimal_mapping', '"created_at": "made_at"}}, "slots"',
          '"created_at": "born_at"}}, "slots"')::jsonb);
SELECT count(*) FROM cusown_due_bookings();
ALTER TABLE shop.reservation RENAME born_at TO made_at;
SELECT * FROM cusown_due_bookings(); -- fails
SELECT count(*) > 0 AS attached FROM cusown_attach('shop', :'minimal_mapping');
SELECT count(*) FROM cusown_due_bookings();
-- of an optional table too, and one that was dropped
ALTER TABLE shop.charge RENAME hook_hash TO hash;
SELECT * FROM cusown_due_bookings(); -- fails
ALTER TABLE shop.charge RENAME hash TO hook_hash;
SELECT count(*) FROM cusown_due_bookings();
ALTER TABLE shop.charge DROP currency;
SELECT * FROM cusown_due_bookings(); -- fails
ALTER TABLE shop.charge ADD currency text;
SELECT count(*) FROM cusown_due_bookings();

-- So is a table, and a schema.
ALTER TABLE shop.time_slot RENAME TO slot;
SELECT * FROM cusown_due_bookings(); -- fails
\echo :SQLSTATE
ALTER TABLE shop.slot RENAME TO time_slot;
SELECT count(*) FROM cusown_due_bookings();
ALTER SCHEMA shop RENAME TO store;
SELECT * FROM cusown_due_bookings(); -- fails
\echo :SQLSTATE
SELECT count(*) > 0 AS attached FROM cusown_attach('store', :'minimal_mapping');
SET cusown_ops.app_schema = 'store';
SELECT count(*) FROM cusown_due_bookings();
RESET cusown_ops.app_schema;
SELECT cusown_detach('shop');
ALTER SCHEMA store RENAME TO shop;
SELECT * FROM cusown_due_bookings(); -- fails
SELECT count(*) > 0 AS attached FROM cusown_attach('shop', :'minimal_mapping');
SELECT cusown_detach('store');
-- another table of the name takes its place
ALTER TABLE shop.charge RENAME TO old_charge;
CREATE TABLE shop.charge (LIKE shop.old_charge);
INSERT INTO shop.charge (ref, reservation_ref, state, made_at)
SELECT md5('one')::uuid, md5('one')::uuid, 'completed', now();
SELECT verdict FROM cusown_due_bookings();
DROP TABLE shop.charge;
SELECT * FROM cusown_due_bookings(); -- fails
ALTER TABLE shop.old_charge RENAME TO charge;
SELECT verdict FROM cusown_due_bookings();
-- a table that moves to another schema
ALTER TABLE shop.journal SET SCHEMA public;
SELECT * FROM cusown_due_bookings(); -- fails
ALTER TABLE public.journal SET SCHEMA shop;
SELECT verdict FROM cusown_due_bookings();

-- What is done in a transaction is seen in it, and gone when it is rolled
-- back: DDL, ...
BEGIN;
ALTER TABLE shop.reservation RENAME made_at TO born_at;
SAVEPOINT before;
SELECT * FROM cusown_due_bookings(); -- fails
ROLLBACK TO before;
UPDATE cusown_ops.binding SET bound_name = 'born_at'
WHERE relation = 'bookings' AND attribute = 'created_at';
SELECT verdict FROM cusown_due_bookings();
ROLLBACK;
SELECT verdict FROM cusown_due_bookings();
-- ... attaching, also within a savepoint, ...
BEGIN;
SELECT verdict FROM cusown_due_bookings();
SAVEPOINT before;
SELECT cusown_detach('shop');
SELECT count(*) > 0 AS attached FROM cusown_attach('stall', :'minimal_mapping');
SELECT verdict FROM cusown_due_bookings();
ROLLBACK TO before;
SELECT verdict FROM cusown_due_bookings();
RELEASE before;
SELECT verdict FROM cusown_due_bookings();
COMMIT;
-- ... and what is written to the binding by hand: each statement is seen at
-- once.
CREATE TABLE shop.charge2 (LIKE shop.charge);
INSERT INTO shop.charge2 (ref, reservation_ref, state, made_at)
SELECT md5('one')::uuid, md5('one')::uuid, 'completed', now();
BEGIN;
UPDATE cusown_ops.binding SET bound_name = 'charge2'
WHERE relation = 'payments' AND attribute = '';
SELECT verdict FROM cusown_due_bookings();
ROLLBACK;
SELECT verdict FROM cusown_due_bookings();
UPDATE cusown_ops.binding SET bound_name = 'charge2'
WHERE relation = 'payments' AND attribute = '';
SELECT verdict FROM cusown_due_bookings();
DELETE FROM cusown_ops.binding WHERE relation = 'payments';
SELECT verdict FROM cusown_due_bookings();
INSERT INTO cusown_ops.binding VALUES
  ('shop', 'payments', '', 'shop', 'charge2'),
  ('shop', 'payments', 'id', NULL, 'ref'),
  ('shop', 'payments', 'booking_id', NULL, 'reservation_ref'),
  ('shop', 'payments', 'status', NULL, 'state'),
  ('shop', 'payments', 'created_at', NULL, 'made_at');
SELECT verdict FROM cusown_due_bookings();
BEGIN;
TRUNCATE cusown_ops.binding;
SELECT * FROM cusown_due_bookings(); -- fails
ROLLBACK;
SELECT verdict FROM cusown_due_bookings();
-- also where ordinary triggers do not fire, as when replication writes it
BEGIN;
SET LOCAL session_replication_role = replica;
DELETE FROM cusown_ops.binding;
SELECT * FROM cusown_due_bookings(); -- fails
ROLLBACK;
SELECT verdict FROM cusown_due_bookings();
-- what is lacking is told by its own name, not by that of an optional one
BEGIN;
DELETE FROM cusown_ops.binding
WHERE relation = 'payments' OR (relation = 'slots' AND attribute = 'id');
SELECT * FROM cusown_due_bookings(); -- fails
\echo :SQLSTATE
ROLLBACK;
TRUNCATE cusown_ops.binding;
SELECT * FROM cusown_due_bookings(); -- fails
\echo :SQLSTATE
SELECT cusown_detach('shop'); -- fails
COPY cusown_ops.binding (app_schema, relation, attribute, bound_schema, bound_name) FROM stdin;
shop	bookings		shop	reservation
shop	bookings	id	\N	ref
\.
\set VERBOSITY sqlstate
SELECT * FROM cusown_due_bookings(); -- fails
\set VERBOSITY default
-- a column without its relation, and what no binding can be
INSERT INTO cusown_ops.binding VALUES ('shop', 'slots', 'id', NULL, 'ref');
SELECT * FROM cusown_due_bookings(); -- fails
\echo :SQLSTATE
\set VERBOSITY terse
INSERT INTO cusown_ops.binding VALUES
  ('shop', 'audit_logs', '', NULL, 'a'); -- fails
INSERT INTO cusown_ops.binding VALUES
  ('shop', 'audit_logs', 'action', 'shop', 'a'); -- fails
\set VERBOSITY default
SELECT count(*) > 0 AS attached FROM cusown_attach('shop', :'minimal_mapping');
SELECT verdict FROM cusown_due_bookings();

-- A kept plan serves after ANALYZE and changes of the table's shape; the
-- CHECKs are those of the table as it is now, and asked on the right columns.
CALL pg_temp.add('shop', '{1,2,3,4}', '3 days');
CREATE FUNCTION pg_temp.due() RETURNS text LANGUAGE sql AS $$
  SELECT string_agg(concat_ws(' ', verdict, finding, count), ', '
                    ORDER BY verdict, finding)
  FROM (SELECT verdict, finding, count(*) FROM cusown_due_bookings()
        GROUP BY 1, 2) d
$$;
SELECT pg_temp.due();
ANALYZE shop.reservation, shop.time_slot, shop.charge;
SELECT pg_temp.due();
CREATE INDEX ON shop.reservation (made_at, ref) WHERE state = 'pending';
SELECT pg_temp.due();
ALTER TABLE shop.reservation ADD locked boolean NOT NULL DEFAULT false;
UPDATE shop.reservation SET locked = true WHERE ref = md5('1')::uuid;
SELECT pg_temp.due();
ALTER TABLE shop.reservation ADD CONSTRAINT locked_check
CHECK (NOT locked OR state = 'pending');
SELECT pg_temp.due();
-- dropped columns before and between
ALTER TABLE shop.reservation DROP customer;
SELECT count(*) > 0 AS attached
FROM cusown_attach('shop', :'minimal_mapping'::jsonb
                           #- '{bookings,columns,customer_id}');
ALTER TABLE shop.reservation ADD a integer DEFAULT 1, ADD b text, ADD c text,
  ADD d integer DEFAULT 4;
ALTER TABLE shop.reservation DROP b;
UPDATE shop.reservation SET c = 'c' WHERE ref = md5('2')::uuid;
ALTER TABLE shop.reservation ADD CONSTRAINT c_check
CHECK (d = 4 AND a = 1 AND (c IS NULL OR state <> 'cancelled'));
SELECT pg_temp.due();
-- one that holds for new rows only holds for a changed one as well
ALTER TABLE shop.reservation ADD CONSTRAINT ref_check
CHECK (ref <> md5('3')::uuid OR state <> 'cancelled') NOT VALID;
SELECT pg_temp.due();
-- one that reads the row as a whole, and one that is null
ALTER TABLE shop.reservation DROP CONSTRAINT c_check;
UPDATE shop.reservation SET d = 5 WHERE ref = md5('4')::uuid;
ALTER TABLE shop.reservation ADD CONSTRAINT row_check
CHECK (row_to_json(reservation)::text !~ 'cancelled.*"d":5'),
ADD CONSTRAINT null_check CHECK (c <> state);
SELECT pg_temp.due();
-- a type that changes
ALTER TABLE shop.reservation DROP CONSTRAINT row_check,
  DROP CONSTRAINT null_check, ALTER state TYPE text;
SELECT pg_temp.due();
CREATE TYPE shop.state AS ENUM ('pending', 'confirmed', 'rejected',
                                'cancelled');
DROP INDEX shop.reservation_one_confirmed, shop.reservation_made_at_ref_idx;
ALTER TABLE shop.reservation DROP CONSTRAINT reservation_state_check,
  DROP CONSTRAINT locked_check, DROP CONSTRAINT ref_check,
  ALTER state TYPE shop.state USING state::shop.state;
SELECT pg_temp.due();
BEGIN;
SELECT expired, released, attention, more FROM cusown_expire_bookings();
SELECT pg_temp.due();
ROLLBACK;

-- An application's trigger may call us, and even attach again, while a
-- statement of ours is under way.
CREATE FUNCTION shop.re_enter() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM cusown_attach('shop', current_setting('test.mapping')::jsonb);
  PERFORM FROM cusown_due_bookings();
  UPDATE cusown_ops.binding SET bound_name = bound_name;
  PERFORM FROM cusown_due_bookings();
  RETURN NEW;
END
$$;
SELECT set_config('test.mapping',
  (:'minimal_mapping'::jsonb #- '{bookings,columns,customer_id}')::text,
  false) IS NOT NULL AS kept;
CREATE TRIGGER re_enter BEFORE UPDATE ON shop.reservation
FOR EACH ROW EXECUTE FUNCTION shop.re_enter();
CREATE TRIGGER re_enter AFTER UPDATE ON shop.time_slot
FOR EACH ROW EXECUTE FUNCTION shop.re_enter();
CREATE TRIGGER re_enter AFTER INSERT ON shop.journal
FOR EACH ROW EXECUTE FUNCTION shop.re_enter();
SELECT expired, released, attention, more
FROM cusown_expire_bookings(max_rows => 3);
SELECT expired, released, attention, more FROM cusown_expire_bookings();
SELECT pg_temp.due();
SELECT r.state, s.state AS slot, count(*)
FROM shop.reservation r JOIN shop.time_slot s ON s.ref = r.slot_ref
GROUP BY 1, 2 ORDER BY 1, 2;

-- An error inside a verb leaves nothing behind that the next one trips over.
CREATE FUNCTION shop.fail() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'not now' USING ERRCODE = 'internal_error';
END
$$;
DROP TRIGGER re_enter ON shop.reservation;
CREATE TRIGGER fail BEFORE UPDATE ON shop.reservation
FOR EACH ROW EXECUTE FUNCTION shop.fail();
CALL pg_temp.add('shop', '{six}', '4 days');
DO $$
BEGIN
  FOR i IN 1 .. 3 LOOP
    BEGIN
      PERFORM cusown_expire_bookings();
    EXCEPTION WHEN internal_error THEN
      PERFORM cusown_attach('shop', current_setting('test.mapping')::jsonb);
    END;
  END LOOP;
END
$$;
ALTER TABLE shop.reservation DISABLE TRIGGER fail;
SELECT expired, released, attention, more FROM cusown_expire_bookings();

DROP EXTENSION cusown_ops;
DROP SCHEMA shop, stall CASCADE;
