-- Shows the index that keeps double bookings from coming back: whether it is
-- there, what contradicts it, the DDL for \gexec, and building it at once.
\set ON_ERROR_STOP 0
\getenv abs_srcdir PG_ABS_SRCDIR
\set app :abs_srcdir '/test/fixture/cusown_app.sql'
\set minimal :abs_srcdir '/test/fixture/app_minimal.sql'
SET client_min_messages = warning;
\pset format unaligned
CREATE EXTENSION cusown_ops;
SELECT * FROM cusown_install_constraints(); -- fails
\echo :LAST_ERROR_SQLSTATE
\set ECHO none
\set schema constraint_app
\i :app
\set schema constraint_shop
\i :minimal
\set ECHO all
SET search_path = constraint_app, public;
SELECT count(*) > 0 AS attached FROM cusown_attach('constraint_app');
CREATE FUNCTION id_of(kind text, n int) RETURNS uuid
LANGUAGE sql IMMUTABLE
RETURN rpad(CASE kind WHEN 'slot' THEN 'a' WHEN 'booking' THEN 'b' ELSE 'c' END || lpad(n::text, 7, '0'), 32, '0')::uuid;
INSERT INTO businesses (id, salon_name, owner_name, whatsapp_number, opening_time, closing_time, slot_duration, booking_link)
VALUES (id_of('business', 1), 'Salon', 'Owner', '+910000000000', '09:00', '18:00', 30, 'salon');
INSERT INTO slots (id, business_id, date, start_time, end_time, status)
SELECT id_of('slot', n), id_of('business', 1), date '2024-05-01' + n, '10:00', '11:00', 'booked' FROM generate_series(1, 3) n;
CREATE PROCEDURE add_booking(n int, slot int) LANGUAGE sql AS $$
  INSERT INTO bookings (id, business_id, slot_id, customer_name, customer_phone, booking_id, status)
  VALUES (id_of('booking', n), id_of('business', 1), id_of('slot', slot), 'Customer', '+910000000001', 'CODE' || n, 'confirmed');
$$;

-- there
SELECT * FROM cusown_install_constraints();
SELECT * FROM cusown_install_constraints(blocking => true);
-- missing: the DDL, for \gexec
DROP INDEX idx_bookings_one_confirmed_per_slot;
CALL add_booking(1, 1);
CALL add_booking(3, 2);
SELECT * FROM cusown_install_constraints();
SELECT ddl FROM cusown_install_constraints()
\gexec
SELECT * FROM cusown_install_constraints();
CALL add_booking(2, 1); -- fails
SELECT ddl FROM cusown_install_constraints()
\gexec
-- contradicted: no DDL that would fail; what mends it
DROP INDEX bookings_slot_id_idx;
CALL add_booking(2, 1);
CALL add_booking(4, 2);
SELECT * FROM cusown_install_constraints();
SELECT * FROM cusown_install_constraints(blocking => true);
-- a build that fails leaves an invalid index behind
CREATE UNIQUE INDEX CONCURRENTLY ON bookings (slot_id) WHERE status = 'confirmed'; -- fails
CREATE INDEX CONCURRENTLY another ON bookings ((1 / CASE status WHEN 'confirmed' THEN 0 ELSE 1 END)); -- fails
SELECT * FROM cusown_install_constraints();
SELECT short.action, count(*) FROM cusown_resolve_double_bookings() short GROUP BY 1 ORDER BY 1;
SELECT * FROM cusown_install_constraints();
SELECT ddl FROM cusown_install_constraints()
\gexec
SELECT * FROM cusown_install_constraints();
DROP INDEX another;

-- now: in one transaction, and gone with it
DROP INDEX bookings_slot_id_idx;
BEGIN;
SELECT * FROM cusown_install_constraints(blocking => true);
SELECT mode FROM pg_locks WHERE relation = 'bookings'::regclass AND mode = 'ShareLock' AND pid = pg_backend_pid();
ROLLBACK;
SELECT status FROM cusown_install_constraints();
SELECT * FROM cusown_install_constraints(blocking => true);
SELECT indexdef FROM pg_indexes WHERE tablename = 'bookings' AND indexname = 'bookings_slot_id_idx';
SHOW lock_timeout;
SELECT status FROM cusown_install_constraints(blocking => true);
-- looking needs no more than a read-only transaction, whatever its isolation
BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY;
SELECT status FROM cusown_install_constraints();
SELECT status FROM cusown_install_constraints(blocking => true); -- fails
ROLLBACK;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT status FROM cusown_install_constraints(blocking => true); -- fails
ROLLBACK;
SELECT * FROM cusown_install_constraints(blocking => NULL); -- fails
-- where it is not the only one, one is enough; who has two has a row for each
CREATE UNIQUE INDEX wider ON bookings (slot_id) WHERE status IN ('confirmed', 'rejected');
SELECT status, finding FROM cusown_install_constraints();
DROP INDEX bookings_slot_id_idx, wider;

-- whose rows others hide, or whose table it is not
CREATE ROLE regress_constraint_operator;
GRANT USAGE ON SCHEMA constraint_app TO regress_constraint_operator;
GRANT SELECT ON ALL TABLES IN SCHEMA constraint_app TO regress_constraint_operator;
SET ROLE regress_constraint_operator;
SELECT * FROM cusown_install_constraints(); -- fails
RESET ROLE;
SELECT cusown_grant('regress_constraint_operator', 'operator') \g /dev/null
SET ROLE regress_constraint_operator;
SELECT * FROM cusown_install_constraints(); -- fails
RESET ROLE;
ALTER ROLE regress_constraint_operator BYPASSRLS;
SET ROLE regress_constraint_operator;
SELECT * FROM cusown_install_constraints();
BEGIN;
SELECT * FROM cusown_install_constraints(blocking => true); -- fails
ROLLBACK;
RESET ROLE;

-- another application, by name; a status that is varchar
SELECT count(*) > 0 AS attached FROM cusown_attach('constraint_shop', :'minimal_mapping');
SELECT * FROM cusown_install_constraints(); -- fails
SELECT relation, status FROM cusown_install_constraints('constraint_shop');
DROP INDEX constraint_shop.reservation_one_confirmed;
SELECT * FROM cusown_install_constraints('constraint_shop');
SELECT * FROM cusown_install_constraints('constraint_shop', blocking => true);
SELECT indexdef FROM pg_indexes WHERE schemaname = 'constraint_shop' AND indexname ~ 'slot_ref';
SET cusown_ops.app_schema = 'constraint_shop';
SELECT status FROM cusown_install_constraints();
SELECT status FROM cusown_install_constraints('constraint_app');
RESET cusown_ops.app_schema;
SELECT * FROM cusown_install_constraints('nowhere'); -- fails
\echo :LAST_ERROR_SQLSTATE
-- a table that others inherit from: no index of it holds their rows
CREATE TABLE constraint_shop.old_reservation () INHERITS (constraint_shop.reservation);
SELECT * FROM cusown_install_constraints('constraint_shop');
INSERT INTO constraint_shop.time_slot (ref, state) VALUES (id_of('slot', 1), 'booked');
INSERT INTO constraint_shop.reservation (ref, state, slot_ref) VALUES (id_of('booking', 1), 'confirmed', id_of('slot', 1));
INSERT INTO constraint_shop.old_reservation (ref, state, slot_ref) VALUES (id_of('booking', 2), 'confirmed', id_of('slot', 1));
SET cusown_ops.app_schema = 'constraint_shop';
SELECT cardinality(booking_ids) FROM cusown_double_bookings('same_slot');
SELECT status, ddl FROM cusown_install_constraints(blocking => true);
RESET cusown_ops.app_schema;

-- an enum, in a schema that is not on the path, and names that need quotes
CREATE SCHEMA "constraint Enum";
CREATE TYPE "constraint Enum"."Status" AS ENUM ('pending', 'confirmed', 'rejected', 'cancelled', 'available', 'reserved', 'booked');
CREATE DOMAIN "constraint Enum".state AS "constraint Enum"."Status";
CREATE TABLE "constraint Enum".slots (id uuid PRIMARY KEY, status "constraint Enum"."Status", starts_at timestamptz, ends_at timestamptz);
CREATE TABLE "constraint Enum"."Bookings" (id uuid PRIMARY KEY, "Slot" uuid, status "constraint Enum"."Status", created_at timestamptz);
CREATE TABLE "constraint Enum".audit_logs (action text, entity_type text, entity_id uuid, created_at timestamptz);
SELECT count(*) > 0 AS attached FROM cusown_attach('constraint Enum',
  '{"bookings": {"relation": "Bookings", "columns": {"slot_id": "Slot"}}}');
SELECT ddl FROM cusown_install_constraints('constraint Enum');
SELECT ddl FROM cusown_install_constraints('constraint Enum')
\gexec
SELECT status FROM cusown_install_constraints('constraint Enum');
DROP INDEX "constraint Enum"."Bookings_Slot_idx";
SELECT status, finding FROM cusown_install_constraints('constraint Enum', true);
DROP INDEX "constraint Enum"."Bookings_Slot_idx";
ALTER TABLE "constraint Enum"."Bookings" ALTER status TYPE "constraint Enum".state;
SELECT ddl FROM cusown_install_constraints('constraint Enum');
SELECT status FROM cusown_install_constraints('constraint Enum', true);

-- partitioned: by the business, which must be known then; by anything else
CREATE SCHEMA constraint_parts;
CREATE TABLE constraint_parts.slots (id uuid PRIMARY KEY, status text, starts_at timestamptz, ends_at timestamptz);
CREATE TABLE constraint_parts.bookings (id uuid, slot_id uuid, business_id uuid, status text, created_at timestamptz) PARTITION BY HASH (business_id);
CREATE TABLE constraint_parts.bookings_0 PARTITION OF constraint_parts.bookings FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE constraint_parts.bookings_1 PARTITION OF constraint_parts.bookings FOR VALUES WITH (MODULUS 2, REMAINDER 1);
CREATE TABLE constraint_parts.audit_logs (action text, entity_type text, entity_id uuid, created_at timestamptz);
SELECT count(*) > 0 AS attached FROM cusown_attach('constraint_parts');
SELECT status, ddl FROM cusown_install_constraints('constraint_parts');
SELECT status, ddl FROM cusown_install_constraints('constraint_parts', true);
SELECT ddl FROM cusown_install_constraints('constraint_parts')
\gexec
SELECT status, finding FROM cusown_install_constraints('constraint_parts');
CREATE UNIQUE INDEX half ON ONLY constraint_parts.bookings (slot_id, business_id) WHERE status = 'confirmed';
SELECT ddl FROM cusown_install_constraints('constraint_parts') WHERE status = 'invalid'
\gexec
SELECT status FROM cusown_install_constraints('constraint_parts');
DROP TABLE constraint_parts.bookings;
CREATE TABLE constraint_parts.bookings (id uuid, slot_id uuid, status text, created_at timestamptz) PARTITION BY RANGE (created_at);
SELECT count(*) > 0 AS attached FROM cusown_attach('constraint_parts');
SELECT * FROM cusown_install_constraints('constraint_parts');
SELECT * FROM cusown_install_constraints('constraint_parts', true);

DROP SCHEMA constraint_app, constraint_shop, constraint_parts, "constraint Enum" CASCADE;
DROP EXTENSION cusown_ops;
DROP OWNED BY regress_constraint_operator;
DROP ROLE regress_constraint_operator;
