-- Shows what the guard lets pass, what it refuses and what it only warns of;
-- what cannot be forged; and that it leaves nothing behind.
\set ON_ERROR_STOP 0
\set SHOW_CONTEXT never
\getenv abs_srcdir PG_ABS_SRCDIR
\set app :abs_srcdir '/test/fixture/cusown_app.sql'
\set minimal :abs_srcdir '/test/fixture/app_minimal.sql'
SET client_min_messages = warning;
CREATE EXTENSION cusown_ops;
SELECT * FROM cusown_guard(); -- fails
\set ECHO none
\set schema guard_app
\i :app
\set schema guard_shop
\i :minimal
\set ECHO all
SET search_path = guard_app, public;
SELECT count(*) > 0 AS attached FROM cusown_attach('guard_app');
-- the application's own rules out of the way, and its index
DROP TRIGGER bookings_check_transition ON bookings;
DROP INDEX idx_bookings_one_confirmed_per_slot;
CREATE FUNCTION b(n int) RETURNS uuid
LANGUAGE sql IMMUTABLE RETURN rpad('b' || lpad(n::text, 7, '0'), 32, '0')::uuid;
INSERT INTO businesses (id, salon_name, owner_name, whatsapp_number,
  opening_time, closing_time, slot_duration, booking_link)
VALUES (b(0), 'Salon', 'Owner', '+910000000000', '09:00', '18:00', 30, 'salon');
INSERT INTO slots (id, business_id, date, start_time, end_time)
SELECT b(n), b(0), current_date + n, '10:00', '10:30' FROM generate_series(1, 30) n;
CREATE PROCEDURE reset() LANGUAGE sql AS $$
  SELECT set_config('session_replication_role', 'replica', true);
  DELETE FROM bookings;
  INSERT INTO bookings (id, business_id, slot_id, customer_name, customer_phone, booking_id, status, cancelled_at)
  SELECT b(n), b(0), b(n), 'Customer', '-', 'CODE' || n,
         (ARRAY['pending', 'confirmed', 'rejected', 'cancelled'])[1 + (n - 1) % 4],
         CASE (n - 1) % 4 WHEN 3 THEN now() END
  FROM generate_series(1, 20) n;
  SELECT set_config('session_replication_role', 'origin', true);
$$;
CALL reset();
-- every change of status there is, what became of it
CREATE FUNCTION try_all() RETURNS TABLE (from_status text, to_status text, answer text)
LANGUAGE plpgsql AS $$
DECLARE
  b record;
  s text;
BEGIN
  FOR b IN SELECT id, status::text FROM bookings WHERE id IN (b(1), b(2), b(3), b(4)) ORDER BY id LOOP
    FOREACH s IN ARRAY ARRAY['pending', 'confirmed', 'rejected', 'cancelled'] LOOP
      BEGIN
        EXECUTE format('UPDATE bookings SET status = %L, cancelled_at = now() WHERE id = %L', s, b.id);
        RAISE EXCEPTION 'passed' USING ERRCODE = 'ZZ000';
      EXCEPTION WHEN OTHERS THEN
        from_status := b.status; to_status := s;
        answer := CASE SQLSTATE WHEN 'ZZ000' THEN 'passed' ELSE SQLSTATE END;
        RETURN NEXT;
      END;
    END LOOP;
  END LOOP;
END
$$;
CREATE VIEW answers AS
SELECT from_status, string_agg(to_status || ': ' || answer, ', ' ORDER BY to_status) AS answers
FROM try_all() GROUP BY 1 ORDER BY 1;

-- The modes.
SELECT * FROM cusown_guard();
TABLE answers;
SELECT * FROM cusown_guard('transitions');
TABLE answers;
SELECT * FROM cusown_guard('functions', 'guard_app');
TABLE answers;
UPDATE bookings SET status = 'confirmed' WHERE id = b(1); -- fails
\echo :SQLSTATE
UPDATE bookings SET status = 'pending' WHERE id = b(4); -- fails
\echo :SQLSTATE
SELECT * FROM cusown_guard('warn');
UPDATE bookings SET status = 'confirmed' WHERE id = b(1);
UPDATE bookings SET status = 'pending' WHERE id = b(4);
CALL reset();
SET client_min_messages = error;
TABLE answers;
SET client_min_messages = warning;
SELECT * FROM cusown_guard('strict'); -- fails
SELECT * FROM cusown_guard('warn', 'guard_shop'); -- fails
SELECT tgname, tgenabled, tgdeferrable, pg_get_triggerdef(oid) FROM pg_trigger
WHERE tgrelid = 'bookings'::regclass AND tgname LIKE 'cusown%' ORDER BY tgname;
-- a transition of the owner's own
SELECT guard FROM cusown_guard('functions');
INSERT INTO cusown_ops.state_transition VALUES ('guard_app', 'booking', 'cancelled', 'revive', 'pending');
TABLE answers;
DELETE FROM cusown_ops.state_transition;

-- INSERT: born in any status, but not confirmed; also by COPY and MERGE.
CREATE FUNCTION born(n int, s text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO bookings (id, business_id, slot_id, customer_name, customer_phone, booking_id, status, cancelled_at)
  VALUES (b(100 + n), b(0), b(n), 'Customer', '-', 'BORN' || n, s, now());
  RETURN s;
EXCEPTION WHEN OTHERS THEN
  RETURN SQLSTATE;
END
$$;
SELECT born(21, 'pending'), born(22, 'rejected'), born(23, 'cancelled'), born(24, 'confirmed');
COPY bookings (id, business_id, slot_id, customer_name, customer_phone, booking_id, status) FROM stdin; -- fails
b0000124-0000-0000-0000-000000000000	b0000000-0000-0000-0000-000000000000	b0000024-0000-0000-0000-000000000000	Customer	-	COPY1	pending
b0000125-0000-0000-0000-000000000000	b0000000-0000-0000-0000-000000000000	b0000025-0000-0000-0000-000000000000	Customer	-	COPY2	confirmed
\.
MERGE INTO bookings t USING (VALUES (b(1), 'confirmed')) v (id, status) ON t.id = v.id
WHEN MATCHED THEN UPDATE SET status = v.status; -- fails
MERGE INTO bookings t USING (VALUES (b(1), 'cancelled')) v (id, status) ON t.id = v.id
WHEN MATCHED THEN UPDATE SET status = v.status, cancelled_at = now();
-- a row that stays as it is passes
INSERT INTO bookings (id, business_id, slot_id, customer_name, customer_phone, booking_id, status)
VALUES (b(2), b(0), b(2), 'Customer', '-', 'CODE2', 'confirmed')
ON CONFLICT (id) DO UPDATE SET status = excluded.status, customer_name = 'New name';
INSERT INTO bookings (id, business_id, slot_id, customer_name, customer_phone, booking_id, status)
VALUES (b(3), b(0), b(3), 'Customer', '-', 'CODE3', 'confirmed')
ON CONFLICT (id) DO UPDATE SET status = excluded.status; -- fails
-- through a view
CREATE VIEW seen AS SELECT id, status FROM bookings;
UPDATE seen SET status = 'confirmed' WHERE id = b(5); -- fails
-- what a BEFORE trigger that comes last makes of the row
CREATE FUNCTION confirm_all() RETURNS trigger LANGUAGE plpgsql AS
'BEGIN NEW.status := ''confirmed''; RETURN NEW; END';
CREATE TRIGGER zz BEFORE UPDATE ON bookings FOR EACH ROW EXECUTE FUNCTION confirm_all();
UPDATE bookings SET customer_name = 'New name' WHERE id = b(5); -- fails
DROP TRIGGER zz ON bookings;
-- a status that is not known
ALTER TABLE bookings DROP CONSTRAINT bookings_status_check, ALTER status DROP NOT NULL;
UPDATE bookings SET status = NULL WHERE id = b(5); -- fails
UPDATE bookings SET status = 'paused' WHERE id = b(5); -- fails

-- Our functions may, and nobody in their shadow.
CALL reset();
SELECT to_status FROM cusown_confirm_booking(b(1));
SELECT to_status FROM cusown_undo_booking(b(1), b(99));
SELECT to_status FROM cusown_cancel_booking(b(2), 'owner');
-- a trigger with an EXCEPTION block that our statement fires
CREATE FUNCTION in_shadow() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  BEGIN
    PERFORM 1 / 0;
  EXCEPTION WHEN division_by_zero THEN
    NULL;
  END;
  RETURN NEW;
END
$$;
CREATE TRIGGER a BEFORE UPDATE ON bookings FOR EACH ROW EXECUTE FUNCTION in_shadow();
CREATE TRIGGER b AFTER UPDATE ON bookings FOR EACH ROW EXECUTE FUNCTION in_shadow();
SELECT to_status FROM cusown_confirm_booking(b(5));
-- one that confirms another booking, in the open, in an EXCEPTION block, and the same one
CREATE OR REPLACE FUNCTION in_shadow() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NEW.id = b(9) AND NEW.status = 'confirmed' THEN
    UPDATE bookings SET status = 'confirmed' WHERE id = b(13);
  END IF;
  RETURN NEW;
END
$$;
SELECT to_status FROM cusown_confirm_booking(b(9)); -- fails
\echo :SQLSTATE
CREATE OR REPLACE FUNCTION in_shadow() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NEW.id = b(9) AND NEW.status = 'confirmed' AND pg_trigger_depth() = 1 THEN
    BEGIN
      UPDATE bookings SET status = 'confirmed' WHERE id = b(13);
    EXCEPTION WHEN SQLSTATE 'UO007' THEN
      NULL;
    END;
    UPDATE bookings SET status = 'cancelled', cancelled_at = now() WHERE id = b(6);
  END IF;
  RETURN NEW;
END
$$;
DROP TRIGGER a ON bookings;
SELECT to_status FROM cusown_confirm_booking(b(9));
SELECT status FROM bookings WHERE id IN (b(6), b(9), b(13)) ORDER BY id;
-- the same booking, to where nobody has looked
CREATE OR REPLACE FUNCTION in_shadow() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NEW.id = b(13) AND NEW.status = 'confirmed' AND pg_trigger_depth() = 1 THEN
    UPDATE bookings SET status = 'pending' WHERE id = NEW.id;
    UPDATE bookings SET status = 'confirmed', slot_id = b(29) WHERE id = NEW.id;
  END IF;
  RETURN NEW;
END
$$;
SELECT to_status FROM cusown_confirm_booking(b(13)); -- fails
DROP TRIGGER b ON bookings;
-- a function that a CHECK calls, at the same depth
CREATE FUNCTION sly(id uuid, s text) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
  IF id = b(13) AND s = 'confirmed' THEN
    UPDATE guard_app.bookings SET status = 'confirmed' WHERE bookings.id = b(17);
  END IF;
  RETURN true;
END
$$;
ALTER TABLE bookings ADD CONSTRAINT sly CHECK (sly(id, status));
SELECT to_status FROM cusown_confirm_booking(b(13)); -- fails
ALTER TABLE bookings DROP CONSTRAINT sly;
-- the same booking again, in an EXCEPTION block
CREATE FUNCTION sly_first(id uuid, s text) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
  IF id = b(13) AND s = 'confirmed' AND current_setting('sly.again', true) IS DISTINCT FROM 'yes' THEN
    PERFORM set_config('sly.again', 'yes', true);
    BEGIN
      UPDATE guard_app.bookings SET status = 'confirmed', slot_id = b(29) WHERE bookings.id = sly_first.id;
    EXCEPTION WHEN SQLSTATE 'UO007' THEN
      RAISE WARNING 'refused';
    END;
  END IF;
  RETURN true;
END
$$;
ALTER TABLE bookings ADD CONSTRAINT sly CHECK (sly_first(id, status));
BEGIN;
SELECT to_status FROM cusown_confirm_booking(b(13));
SELECT slot_id = b(13) AS where_it_was FROM bookings WHERE id = b(13);
ROLLBACK;
ALTER TABLE bookings DROP CONSTRAINT sly;
-- one that the CHECK of a policy calls
CREATE ROLE regress_guard_rls;
GRANT USAGE ON SCHEMA guard_app TO regress_guard_rls;
GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA guard_app TO regress_guard_rls;
SELECT cusown_grant('regress_guard_rls', 'operator') \g /dev/null
CREATE FUNCTION slyer(id uuid, s text) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
  RETURN sly(id, s);
END
$$;
CREATE POLICY sly ON bookings FOR UPDATE TO regress_guard_rls USING (true) WITH CHECK (slyer(id, status));
CREATE POLICY seen ON bookings FOR SELECT TO regress_guard_rls USING (true);
CREATE POLICY seen ON slots TO regress_guard_rls USING (true);
CREATE POLICY seen ON businesses TO regress_guard_rls USING (true);
CREATE POLICY seen ON payments TO regress_guard_rls USING (true);
CREATE POLICY seen ON audit_logs TO regress_guard_rls USING (true);
CREATE UNIQUE INDEX one_confirmed ON bookings (slot_id) WHERE status = 'confirmed';
SET ROLE regress_guard_rls;
SELECT to_status FROM cusown_confirm_booking(b(13)); -- fails
RESET ROLE;
DROP INDEX one_confirmed;
DROP POLICY sly ON bookings;
-- a rule of the owner's is part of our statement: it has the permission for this booking only
CREATE RULE sly AS ON UPDATE TO slots WHERE NEW.status = 'booked'
  DO INSTEAD UPDATE bookings SET status = 'confirmed' WHERE id = b(17) AND NEW.id = b(13);
SELECT to_status FROM cusown_confirm_booking(b(13)); -- fails
DROP RULE sly ON slots;
CREATE RULE sly AS ON UPDATE TO slots
  DO INSTEAD UPDATE bookings SET status = 'confirmed' WHERE bookings.id = b(17) RETURNING old.*;
SELECT to_status FROM cusown_confirm_booking(b(13)); -- fails
DROP RULE sly ON slots;
CREATE RULE sly AS ON UPDATE TO bookings
  DO ALSO UPDATE slots SET status = 'booked' WHERE id = b(17);
SELECT to_status FROM cusown_confirm_booking(b(13)); -- fails
DROP RULE sly ON bookings;
CREATE RULE sly AS ON INSERT TO audit_logs
  DO ALSO UPDATE bookings SET status = 'confirmed' WHERE id = b(17);
SELECT to_status FROM cusown_confirm_booking(b(13)); -- fails
DROP RULE sly ON audit_logs;
-- a trigger that makes another booking of the one we confirm
CREATE FUNCTION other_id() RETURNS trigger LANGUAGE plpgsql AS
'BEGIN IF NEW.status = ''confirmed'' THEN NEW.id := guard_app.b(99); END IF; RETURN NEW; END';
CREATE TRIGGER zz BEFORE UPDATE ON bookings FOR EACH ROW EXECUTE FUNCTION other_id();
SELECT to_status FROM cusown_confirm_booking(b(13)); -- fails
DROP TRIGGER zz ON bookings;
-- later is not possible
BEGIN;
SET CONSTRAINTS ALL DEFERRED;
UPDATE bookings SET status = 'confirmed' WHERE id = b(13); -- fails
ROLLBACK;
-- a view that updates by its own trigger
CREATE FUNCTION instead() RETURNS trigger LANGUAGE plpgsql AS
'BEGIN UPDATE guard_app.bookings SET status = NEW.status WHERE id = NEW.id; RETURN NEW; END';
CREATE VIEW seen_instead AS SELECT id, status FROM bookings;
CREATE TRIGGER instead INSTEAD OF UPDATE ON seen_instead FOR EACH ROW EXECUTE FUNCTION instead();
UPDATE seen_instead SET status = 'confirmed' WHERE id = b(13); -- fails
DROP VIEW seen_instead;
-- what was refused in an EXCEPTION block was not done
DO $$
BEGIN
  UPDATE guard_app.bookings SET status = 'confirmed' WHERE id = guard_app.b(13);
EXCEPTION WHEN SQLSTATE 'UO007' THEN
  NULL;
END
$$;
SELECT status FROM bookings WHERE id = b(13);
-- after an error of ours, and after a savepoint, nothing is left of it
BEGIN;
SAVEPOINT s;
SELECT to_status FROM cusown_confirm_booking(b(4)); -- fails
ROLLBACK TO s;
UPDATE bookings SET status = 'confirmed' WHERE id = b(13); -- fails
ROLLBACK;
BEGIN;
SELECT to_status FROM cusown_confirm_booking(b(13));
UPDATE bookings SET status = 'pending' WHERE id = b(13);
UPDATE bookings SET status = 'confirmed' WHERE id = b(13); -- fails
ROLLBACK;
SELECT to_status FROM cusown_confirm_booking(b(13), dry_run => true);
UPDATE bookings SET status = 'confirmed' WHERE id = b(13); -- fails
-- no setting does it
SET cusown_ops.guard = off; -- fails
SET cusown_ops.permission = 'on'; -- fails
-- a function of the application that fails half-way
CREATE FUNCTION half_way() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM cusown_confirm_booking(b(13));
  RAISE EXCEPTION 'half-way';
EXCEPTION WHEN raise_exception THEN
  UPDATE bookings SET status = 'confirmed' WHERE id = b(17);
END
$$;
SELECT half_way(); -- fails
-- the trigger's function by hand
CREATE TRIGGER forged AFTER UPDATE ON bookings FOR EACH ROW EXECUTE FUNCTION cusown_ops.guard('booking', 'off');
UPDATE bookings SET customer_name = 'x' WHERE id = b(13); -- fails
DROP TRIGGER forged ON bookings;
CREATE TRIGGER forged AFTER UPDATE ON bookings FOR EACH ROW EXECUTE FUNCTION cusown_ops.guard('booking', 'functions', 'guard_app', 'customer_name', 'customer_phone');
UPDATE bookings SET customer_phone = 'confirmed' WHERE id = b(13); -- fails
DROP TRIGGER forged ON bookings;
SELECT cusown_ops.guard(); -- fails

-- The override: for one transaction, with a reason, audited.
SELECT cusown_override(' '); -- fails
SELECT cusown_override(NULL); -- fails
BEGIN;
SELECT cusown_override('owner confirmed by phone');
UPDATE bookings SET status = 'confirmed' WHERE id = b(13);
UPDATE bookings SET status = 'pending' WHERE id = b(4);
COMMIT;
UPDATE bookings SET status = 'confirmed' WHERE id = b(17); -- fails
SELECT action_type, entity_type, severity, metadata - 'role' AS metadata, metadata ->> 'role' = current_user AS by_me
FROM audit_logs WHERE action_type = 'data_corrected';
BEGIN;
SAVEPOINT s;
SELECT cusown_override('in a savepoint');
ROLLBACK TO s;
UPDATE bookings SET status = 'confirmed' WHERE id = b(17); -- fails
ROLLBACK;
BEGIN;
SAVEPOINT s;
SELECT cusown_override('in a savepoint');
RELEASE s;
UPDATE bookings SET status = 'confirmed' WHERE id = b(17);
ROLLBACK;
UPDATE bookings SET status = 'confirmed' WHERE id = b(17); -- fails

BEGIN;
SELECT cusown_override('before');
SAVEPOINT s;
SELECT cusown_override('in a savepoint');
ROLLBACK TO s;
UPDATE bookings SET status = 'confirmed' WHERE id = b(17);
ROLLBACK;

-- Whoever writes the table needs no rights of ours.
CREATE ROLE regress_guard_app BYPASSRLS;
GRANT USAGE ON SCHEMA guard_app TO regress_guard_app;
GRANT SELECT, UPDATE, TRIGGER ON bookings TO regress_guard_app;
GRANT SELECT ON businesses TO regress_guard_app;
SET ROLE regress_guard_app;
UPDATE bookings SET status = 'confirmed' WHERE id = b(17); -- fails
UPDATE bookings SET status = 'rejected' WHERE id = b(8); -- fails
UPDATE bookings SET status = 'rejected' WHERE id = b(17);
SELECT * FROM cusown_guard('off'); -- fails
SELECT cusown_override('please'); -- fails
ALTER TABLE bookings DISABLE TRIGGER cusown_guard; -- fails
ALTER TABLE bookings DISABLE TRIGGER USER; -- fails
DROP TRIGGER cusown_guard ON bookings; -- fails
SET session_replication_role = replica; -- fails
RESET ROLE;
-- nor may an operator guard, or unguard, what is another's
SELECT cusown_grant('regress_guard_app', 'operator') \g /dev/null
SET ROLE regress_guard_app;
SELECT * FROM cusown_guard('off'); -- fails
RESET ROLE;
-- a subscription is not stopped
SET session_replication_role = replica;
UPDATE bookings SET status = 'confirmed' WHERE id = b(18);
RESET session_replication_role;

-- Migrations are not stopped, and the guard holds after them.
DROP VIEW seen;
CALL reset();
ALTER TABLE bookings DROP CONSTRAINT undo_used_once_check, DROP CONSTRAINT bookings_cancelled_at_check;
CREATE TYPE status AS ENUM ('pending', 'confirmed', 'rejected', 'cancelled');
ALTER TABLE bookings ALTER status DROP DEFAULT;
ALTER TABLE bookings ALTER status TYPE varchar(20);
TABLE answers;
ALTER TABLE bookings ALTER status TYPE char(12);
TABLE answers;
UPDATE bookings SET status = 'rejected' WHERE id = b(1);
SELECT to_status FROM cusown_confirm_booking(b(5));
CALL reset();
ALTER TABLE bookings ALTER status TYPE status USING trim(status)::status;
TABLE answers;
ALTER TABLE bookings ALTER status TYPE text;
TABLE answers;
\set ON_ERROR_ROLLBACK on
BEGIN;
ALTER TABLE bookings DROP COLUMN status;
UPDATE bookings SET customer_name = 'x' WHERE id = b(1); -- fails
\echo :SQLSTATE
ROLLBACK;
-- renamed: nothing is written unguarded, and there are two ways out
ALTER TABLE bookings RENAME status TO state;
UPDATE bookings SET state = 'rejected' WHERE id = b(17); -- fails
\echo :SQLSTATE
SELECT to_status FROM cusown_confirm_booking(b(17)); -- fails
SELECT * FROM cusown_guard();
SELECT * FROM cusown_guard('warn'); -- fails
BEGIN;
SELECT * FROM cusown_guard('off');
UPDATE bookings SET state = 'rejected' WHERE id = b(17);
ROLLBACK;
BEGIN;
SELECT count(*) > 0 AS attached FROM cusown_attach('guard_app', '{"bookings": {"columns": {"status": "state"}}}');
SELECT * FROM cusown_guard();
UPDATE bookings SET state = 'confirmed' WHERE id = b(17); -- fails
UPDATE bookings SET state = 'rejected' WHERE id = b(17);
ROLLBACK;
-- mode warn says it once in a statement
ALTER TABLE bookings RENAME state TO status;
SELECT guard FROM cusown_guard('warn');
ALTER TABLE bookings RENAME status TO state;
UPDATE bookings SET state = 'confirmed' WHERE id IN (b(13), b(17));
ALTER TABLE bookings RENAME state TO status;
-- the id is only told
SELECT guard FROM cusown_guard('functions');
ALTER TABLE bookings RENAME id TO key;
UPDATE bookings SET status = 'pending' WHERE key = b(4); -- fails
UPDATE bookings SET status = 'pending' WHERE key = b(3);
ALTER TABLE bookings RENAME key TO id;
\set ON_ERROR_ROLLBACK off
-- attached as it was, or set as it is, a guard is not touched
CREATE VIEW guards AS SELECT oid, xmin::text AS made_by FROM pg_trigger WHERE tgname LIKE 'cusown%';
CREATE TEMP TABLE before AS TABLE guards;
SELECT guard FROM cusown_guard('functions');
SELECT count(*) > 0 AS attached FROM cusown_attach('guard_app');
SELECT count(*) FROM (TABLE guards INTERSECT ALL TABLE before) same;
-- a table that inherits has triggers of its own only
BEGIN;
CREATE TABLE heir () INHERITS (bookings);
INSERT INTO heir SELECT * FROM bookings WHERE id = b(17);
UPDATE bookings SET status = 'confirmed' WHERE id = b(17) AND tableoid = 'heir'::regclass RETURNING tableoid::regclass, status;
ROLLBACK;
-- one that its owner has disabled is off, and can be set again
ALTER TABLE bookings DISABLE TRIGGER cusown_guard;
SELECT guard FROM cusown_guard();
UPDATE bookings SET status = 'confirmed' WHERE id = b(9);
SELECT guard FROM cusown_guard('functions');
UPDATE bookings SET status = 'confirmed' WHERE id = b(17); -- fails

-- The minimal schema, partitioned, with an enum, guarded beside it.
SET search_path = guard_shop, guard_app, public;
CREATE TYPE state AS ENUM ('pending', 'confirmed', 'rejected', 'cancelled');
ALTER TABLE charge DROP CONSTRAINT charge_reservation_ref_fkey;
DROP TABLE reservation;
CREATE TABLE reservation (
  made_at timestamptz NOT NULL DEFAULT now(), slot_ref uuid, customer uuid,
  state state, ref uuid, branch int, PRIMARY KEY (ref, branch)) PARTITION BY LIST (branch);
CREATE TABLE reservation_0 (ref uuid NOT NULL, dropped int, branch int NOT NULL, state state, made_at timestamptz NOT NULL, slot_ref uuid, customer uuid);
ALTER TABLE reservation_0 DROP dropped;
ALTER TABLE reservation ATTACH PARTITION reservation_0 FOR VALUES IN (0);
CREATE TABLE reservation_1 PARTITION OF reservation FOR VALUES IN (1);
SELECT count(*) > 0 AS attached FROM cusown_attach('guard_shop', :'minimal_mapping');
SELECT * FROM cusown_guard('functions', 'guard_shop');
INSERT INTO time_slot (ref, state, starts_at, ends_at) SELECT b(n), 'available', now() + '1 h', now() + '2 h' FROM generate_series(1, 8) n;
INSERT INTO reservation (ref, state, slot_ref, branch) SELECT b(n), 'pending', b(n), n % 2 FROM generate_series(1, 8) n;
SELECT count(DISTINCT tableoid) FROM reservation;
SET cusown_ops.app_schema = guard_shop;
SELECT count(*) FROM generate_series(1, 8) n, cusown_confirm_booking(b(n)) WHERE changed;
UPDATE reservation SET state = 'rejected'; -- fails
UPDATE reservation SET state = 'pending';
UPDATE reservation SET state = 'confirmed' WHERE ref = b(1); -- fails
UPDATE reservation_0 SET state = 'confirmed'; -- fails
UPDATE reservation_1 SET state = 'confirmed'; -- fails
-- a row that goes to another partition changes from what it was
SELECT count(*) FROM generate_series(1, 4) n, cusown_confirm_booking(b(n)) WHERE changed;
UPDATE reservation SET state = 'cancelled' WHERE ref IN (b(3), b(4));
UPDATE reservation SET branch = 1 - branch;
SELECT ref, state, tableoid::regclass FROM reservation ORDER BY ref;
UPDATE reservation SET branch = 1 - branch, state = 'confirmed' WHERE ref = b(5); -- fails
UPDATE reservation SET branch = 1 - branch, state = 'confirmed' WHERE ref = b(3); -- fails
UPDATE reservation SET branch = 1 - branch, state = 'pending' WHERE ref = b(3); -- fails
UPDATE reservation SET branch = 1 - branch, state = 'rejected' WHERE ref = b(5);
UPDATE reservation SET branch = 1 - branch, state = 'pending' WHERE ref = b(1);
-- that is so within one statement, and for that row
BEGIN;
DELETE FROM reservation WHERE ref = b(2);
INSERT INTO reservation (ref, state, slot_ref, branch) VALUES (b(2), 'confirmed', b(2), 1); -- fails
ROLLBACK;
WITH gone AS (DELETE FROM reservation WHERE ref = b(2) RETURNING *)
INSERT INTO reservation (ref, state, slot_ref, branch) SELECT b(12), state, slot_ref, branch FROM gone; -- fails
WITH gone AS (DELETE FROM reservation WHERE ref = b(2) RETURNING *)
INSERT INTO reservation (ref, state, slot_ref, branch) SELECT ref, state, slot_ref, branch FROM gone;
-- nor is a row of another application's table what it had been
CREATE SCHEMA guard_other;
CREATE TABLE guard_other.slots (id uuid PRIMARY KEY, status text, starts_at timestamptz, ends_at timestamptz);
CREATE TABLE guard_other.bookings (id uuid, branch int, slot_id uuid, status text, created_at timestamptz) PARTITION BY LIST (branch);
CREATE TABLE guard_other.bookings_0 PARTITION OF guard_other.bookings FOR VALUES IN (0);
CREATE TABLE guard_other.audit_logs (action text, entity_type text, entity_id uuid, created_at timestamptz);
INSERT INTO guard_other.bookings VALUES (b(13), 0, NULL, 'confirmed');
SELECT count(*) > 0 AS attached FROM cusown_attach('guard_other');
SELECT entity, guard FROM cusown_guard('functions', 'guard_other');
WITH gone AS (DELETE FROM guard_other.bookings RETURNING *)
INSERT INTO reservation (ref, state, slot_ref, branch) SELECT id, status::state, slot_id, branch FROM gone; -- fails
SELECT cusown_detach('guard_other');
DROP SCHEMA guard_other CASCADE;
-- what a trigger of the application moves between a row's leaving and its arrival
CREATE FUNCTION move_another() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF pg_trigger_depth() = 1 THEN
    UPDATE reservation SET branch = 1 - branch WHERE ref = guard_app.b(8);
  END IF;
  RETURN NULL;
END
$$;
CREATE TRIGGER zz AFTER DELETE ON reservation FOR EACH ROW EXECUTE FUNCTION move_another();
BEGIN;
SELECT to_status FROM cusown_confirm_booking(b(6));
UPDATE reservation SET branch = 1 - branch WHERE ref = b(6);
SELECT state FROM reservation WHERE ref = b(6);
UPDATE reservation SET branch = 1 - branch, state = 'cancelled' WHERE ref = b(6);
UPDATE reservation SET branch = 1 - branch, state = 'pending' WHERE ref = b(6); -- fails
ROLLBACK;
DROP TRIGGER zz ON reservation;
-- migrations of a partitioned table
BEGIN;
ALTER TABLE reservation ALTER state TYPE text;
ALTER TABLE reservation ALTER state TYPE varchar(20);
ALTER TABLE reservation ALTER state TYPE char(20);
UPDATE reservation SET state = 'pending' WHERE ref = b(5);
UPDATE reservation SET state = 'confirmed' WHERE ref = b(5); -- fails
ROLLBACK;
BEGIN;
ALTER TABLE reservation RENAME state TO condition;
SELECT count(*) > 0 AS attached FROM cusown_attach('guard_shop', jsonb_set(:'minimal_mapping', '{bookings,columns,status}', '"condition"'));
UPDATE reservation SET condition = 'pending' WHERE ref = b(5);
UPDATE reservation SET condition = 'confirmed' WHERE ref = b(5); -- fails
ROLLBACK;
BEGIN;
ALTER TABLE reservation DROP state;
ROLLBACK;
-- in mode transitions likewise
SELECT guard FROM cusown_guard('transitions');
UPDATE reservation SET branch = 1 - branch, state = 'pending' WHERE ref = b(3); -- fails
UPDATE reservation SET branch = 1 - branch, state = 'pending' WHERE ref = b(5);
UPDATE reservation SET branch = 1 - branch, state = 'confirmed' WHERE ref = b(5);
SELECT guard FROM cusown_guard('functions');
-- an override is for one application
BEGIN;
SET LOCAL cusown_ops.app_schema = guard_app;
SELECT cusown_override('for the other one');
SAVEPOINT s;
UPDATE bookings SET status = 'confirmed' WHERE id = b(17);
UPDATE reservation SET state = 'confirmed' WHERE ref = b(6); -- fails
ROLLBACK TO s;
SET LOCAL cusown_ops.app_schema = guard_shop;
SELECT cusown_override('for this one too');
UPDATE reservation SET state = 'confirmed' WHERE ref = b(6);
UPDATE bookings SET status = 'confirmed' WHERE id = b(17);
ROLLBACK;
SELECT application, guard FROM cusown_guard() UNION ALL SELECT application, guard FROM cusown_guard(app_schema => 'guard_app');
RESET cusown_ops.app_schema;

-- Nothing is left behind: by mode off, by detaching, by dropping the extension.
CREATE VIEW left_behind AS
SELECT (SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'cusown%') AS triggers,
       (SELECT count(*) FROM pg_constraint WHERE conname LIKE 'cusown%') AS constraints;
TABLE left_behind;
SELECT cusown_detach('guard_shop');
TABLE left_behind;
SELECT guard FROM cusown_guard('off');
TABLE left_behind;
SELECT guard FROM cusown_guard('warn');
DROP EXTENSION cusown_ops;
TABLE left_behind;
\set ECHO none
SET client_min_messages = error;
DROP SCHEMA guard_app, guard_shop CASCADE;
DROP OWNED BY regress_guard_app, regress_guard_rls;
DROP ROLE regress_guard_app, regress_guard_rls;
