-- Shows rows that a trigger refuses: found by splitting, put on the worklist,
-- left alone until next_try, and never in the way of the others.
\set ON_ERROR_STOP 0
\getenv abs_srcdir PG_ABS_SRCDIR
\set app :abs_srcdir '/test/fixture/cusown_app.sql'
SET client_min_messages = warning;
CREATE EXTENSION cusown_ops;
\set schema split_app
\set ECHO none
\i :app
\set ECHO all
SET search_path = split_app, public;
SELECT count(*) > 0 AS attached FROM cusown_attach('split_app');
CREATE FUNCTION id_of(kind text, n int) RETURNS uuid
LANGUAGE sql IMMUTABLE
RETURN rpad(CASE kind WHEN 'slot' THEN 'a' ELSE 'b' END || lpad(n::text, 7, '0'), 32, '0')::uuid;
INSERT INTO businesses (id, salon_name, owner_name, whatsapp_number,
  opening_time, closing_time, slot_duration, booking_link)
VALUES (id_of('booking', 0), 'Salon', 'Owner', '+910000000000',
  '09:00', '18:00', 30, 'salon');
-- due bookings first .. last, the lower the older, each on a slot of its own
CREATE PROCEDURE add_due(first int, last int) LANGUAGE sql AS $$
  INSERT INTO slots (id, business_id, date, start_time, end_time, status, reserved_until)
  SELECT id_of('slot', n), id_of('booking', 0), current_date + n, '10:00', '10:30', 'reserved',
         now() - interval '1 day' + n * interval '1 second'
  FROM generate_series(first, last) n;
  INSERT INTO bookings (id, business_id, slot_id, customer_name, customer_phone, booking_id, created_at)
  SELECT id_of('booking', n), id_of('booking', 0), id_of('slot', n), 'Mary Smith', '+910000000001',
         'CODE' || n, now() - interval '2 days' + n * interval '1 second'
  FROM generate_series(first, last) n;
$$;
CREATE PROCEDURE start_over() LANGUAGE sql AS $$
  TRUNCATE cusown_ops.attention, cusown_ops.job_run, cusown_ops.change;
  TRUNCATE bookings, slots, payments, booking_lifecycle_audit CASCADE;
$$;
CREATE VIEW state AS
SELECT status, count(*) FROM bookings GROUP BY status ORDER BY status;
CREATE VIEW worklist AS
SELECT kind, entity, sqlstate, finding, count(*), min(left(entity_id::text, 8)), max(times) AS times,
       bool_and(closed_at IS NULL) AS open
FROM cusown_ops.attention GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4;
CREATE VIEW ledger AS
SELECT job, status, changed, released, attention, looked_at, sqlstate, message
FROM cusown_ops.job_run ORDER BY id;
-- counts statements that begin, which no rollback undoes
CREATE SEQUENCE tries;
CREATE FUNCTION count_try() RETURNS trigger LANGUAGE plpgsql AS
'BEGIN PERFORM nextval(''split_app.tries''); RETURN NULL; END';
CREATE TRIGGER count_try BEFORE UPDATE ON bookings EXECUTE FUNCTION count_try();

-- 20 among 500, spread: what the message says stays out of the worklist
CREATE TABLE locked_by_owner (booking_id uuid PRIMARY KEY, code text DEFAULT 'P0001');
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  code text := (SELECT code FROM split_app.locked_by_owner WHERE booking_id = NEW.id);
BEGIN
  IF code IS NOT NULL THEN
    RAISE EXCEPTION 'booking of % is locked', NEW.customer_name USING ERRCODE = code;
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER refuse BEFORE UPDATE ON bookings FOR EACH ROW EXECUTE FUNCTION refuse();
CALL add_due(1, 500);
INSERT INTO locked_by_owner SELECT id_of('booking', n * 25) FROM generate_series(1, 20) n;
CREATE TABLE call (n int, expired bigint, released bigint, attention bigint, more boolean, tries bigint);
CREATE PROCEDURE call_until_done() LANGUAGE plpgsql AS $$
DECLARE
  before bigint;
BEGIN
  FOR n IN 1 .. 20 LOOP
    before := nextval('tries');
    INSERT INTO call SELECT n, *, nextval('tries') - before - 1 FROM cusown_expire_bookings();
    EXIT WHEN NOT (SELECT more FROM call ORDER BY call.n DESC LIMIT 1);
  END LOOP;
END $$;
CALL call_until_done();
SELECT count(*) AS calls, sum(expired) AS expired, sum(released) AS released, sum(attention) AS attention,
       max(tries) AS most_tries, min(expired) > 0 AS each_got_on
FROM call;
TABLE state;
TABLE worklist;
SELECT count(*) AS audited FROM audit_logs WHERE action_type = 'booking_cancelled';
SELECT count(*) AS changes, count(DISTINCT entity_id) AS entities FROM cusown_ops.change;
SELECT count(*) AS freed_under_refused FROM slots s JOIN bookings b ON b.slot_id = s.id
WHERE b.status = 'pending' AND s.status <> 'reserved';
-- they are left alone until next_try
SELECT nextval('tries') AS before \gset
SELECT * FROM cusown_expire_bookings();
SELECT nextval('tries') - :before - 1 AS tries;
-- then tried again; those that the trigger now lets by expire, and leave the worklist
DELETE FROM locked_by_owner WHERE booking_id <= id_of('booking', 250);
UPDATE cusown_ops.attention SET next_try = now() - interval '1 second';
SELECT * FROM cusown_expire_bookings();
SELECT * FROM cusown_expire_bookings();
TABLE worklist;
TABLE state;
-- one closed by hand is tried at once
DELETE FROM locked_by_owner WHERE booking_id = id_of('booking', 275);
SELECT cusown_attention_resolve(id, 'unlocked') FROM cusown_ops.attention WHERE entity_id = id_of('booking', 275);
SELECT * FROM cusown_expire_bookings();

-- the job does all in one run, behind refused ones too
CALL start_over();
CALL add_due(1, 500);
DELETE FROM locked_by_owner;
INSERT INTO locked_by_owner SELECT id_of('booking', n * 25) FROM generate_series(1, 20) n;
CALL cusown_run_job('expire_bookings');
TABLE ledger;
TABLE state;

-- refused ones in a row, at the front: each call gets at least one good one through
CALL start_over();
CALL add_due(1, 500);
DELETE FROM locked_by_owner;
INSERT INTO locked_by_owner SELECT id_of('booking', n) FROM generate_series(1, 100) n;
TRUNCATE call;
CALL call_until_done();
SELECT count(*) AS calls, sum(expired) AS expired, sum(attention) AS attention,
       max(tries) AS most_tries, min(expired) > 0 AS each_got_on
FROM call;
TABLE state;
-- for the job that is one run
CALL start_over();
CALL add_due(1, 500);
CALL cusown_run_job('expire_bookings');
TABLE ledger;
TABLE state;

-- when the tries bring nothing through, the run has failed, but keeps what it found
CALL start_over();
CALL add_due(1, 60);
DELETE FROM locked_by_owner;
INSERT INTO locked_by_owner SELECT id_of('booking', n) FROM generate_series(1, 60) n;
CALL cusown_run_job('expire_bookings'); -- fails
\echo :LAST_ERROR_SQLSTATE
TABLE ledger;
SELECT count(*) AS worklist FROM cusown_ops.attention;
CALL cusown_run_job('expire_bookings');
TABLE ledger;
TABLE state;

-- a trigger that cannot run at all is an error, one that cannot for some rows a finding
CALL start_over();
CALL add_due(1, 3);
DELETE FROM locked_by_owner;
INSERT INTO locked_by_owner SELECT id_of('booking', n), '42883' FROM generate_series(1, 3) n;
SELECT * FROM cusown_expire_bookings(); -- fails
\echo :LAST_ERROR_SQLSTATE
SELECT count(*) AS worklist FROM cusown_ops.attention;
DELETE FROM locked_by_owner WHERE booking_id = id_of('booking', 3);
SELECT * FROM cusown_expire_bookings();
TABLE worklist;

-- what says nothing about a row is raised
\set VERBOSITY terse
-- as what the audit table refuses, which is mended there
CALL start_over();
CALL add_due(1, 4);
DELETE FROM locked_by_owner;
ALTER TABLE audit_logs ADD CONSTRAINT no_slots CHECK (action_type <> 'slot_released') NOT VALID;
SELECT * FROM cusown_expire_bookings(); -- fails
SELECT count(*) AS worklist FROM cusown_ops.attention;
ALTER TABLE audit_logs DROP CONSTRAINT no_slots;
CALL start_over();
CALL add_due(1, 4);
DELETE FROM locked_by_owner;
INSERT INTO locked_by_owner VALUES (id_of('booking', 3), '57014');
SELECT * FROM cusown_expire_bookings(); -- fails
UPDATE locked_by_owner SET code = '40P01';
SELECT * FROM cusown_expire_bookings(); -- fails
UPDATE locked_by_owner SET code = '53100';
SELECT * FROM cusown_expire_bookings(); -- fails
UPDATE locked_by_owner SET code = 'XX001';
SELECT * FROM cusown_expire_bookings(); -- fails
\set VERBOSITY default
SELECT count(*) AS worklist FROM cusown_ops.attention;
TABLE state;
-- any other code is a judgment
UPDATE locked_by_owner SET code = '55P03';
SELECT * FROM cusown_expire_bookings();
TABLE worklist;
-- but for a lock_timeout, which may be about a table, and come at each try
DELETE FROM cusown_ops.attention;
CALL add_due(5, 6);
SET lock_timeout = '1min';
\set VERBOSITY terse
SELECT * FROM cusown_expire_bookings(); -- fails
\set VERBOSITY default
RESET lock_timeout;
SELECT count(*) AS worklist FROM cusown_ops.attention;

-- a constraint is named
CALL start_over();
CALL add_due(1, 4);
DELETE FROM locked_by_owner;
CREATE TABLE note (booking_id uuid, n int CONSTRAINT note_is_short CHECK (n < 3));
CREATE FUNCTION take_note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO split_app.note VALUES (NEW.id, substring(NEW.booking_id, 5)::int);
  RETURN NULL;
END $$;
CREATE TRIGGER take_note AFTER UPDATE ON bookings FOR EACH ROW EXECUTE FUNCTION take_note();
SELECT * FROM cusown_expire_bookings();
TABLE worklist;
DROP TRIGGER take_note ON bookings;

-- a deferred trigger: the job fires it in time, a call leaves it to the caller's commit
CALL start_over();
CALL add_due(1, 4);
CREATE CONSTRAINT TRIGGER take_note AFTER UPDATE ON bookings DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION take_note();
SELECT * FROM cusown_expire_bookings(); -- fails
SELECT count(*) AS worklist FROM cusown_ops.attention;
CALL cusown_run_job('expire_bookings');
TABLE ledger;
TABLE worklist;
TABLE state;
DROP TRIGGER take_note ON bookings;

-- a function in a CHECK that raises for one row: found by trying
CALL start_over();
CALL add_due(1, 4);
CREATE FUNCTION is_fine(code text, status text) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
  IF code = 'CODE2' AND status = 'cancelled' THEN
    RAISE division_by_zero;
  END IF;
  RETURN true;
END $$;
ALTER TABLE bookings ADD CONSTRAINT fine CHECK (is_fine(booking_id, status));
SELECT verdict, count(*) FROM cusown_due_bookings() GROUP BY 1;
SELECT * FROM cusown_expire_bookings();
TABLE worklist;
ALTER TABLE bookings DROP CONSTRAINT fine;

-- slots whose hold is over: the same
CALL start_over();
CALL add_due(1, 100);
CREATE FUNCTION refuse_slot() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NEW.status = 'available' AND NEW.id IN (SELECT split_app.id_of('slot', n * 30) FROM generate_series(1, 3) n) THEN
    RAISE EXCEPTION 'no';
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER refuse_slot BEFORE UPDATE ON slots FOR EACH ROW EXECUTE FUNCTION refuse_slot();
SELECT * FROM cusown_release_expired_holds();
TABLE worklist;
SELECT * FROM cusown_release_expired_holds();
DROP TRIGGER refuse_slot ON slots;
UPDATE cusown_ops.attention SET next_try = now() - interval '1 second';
CALL cusown_run_job('release_expired_holds');
CALL cusown_run_job('release_expired_holds');
TABLE ledger;
TABLE worklist;
-- more than one transaction has tries for: the next goes on behind what is done
CALL start_over();
CALL add_due(1, 500);
CREATE FUNCTION refuse_many() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NEW.id IN (SELECT split_app.id_of('slot', n * 25) FROM generate_series(1, 20) n) THEN
    RAISE EXCEPTION 'no';
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER refuse_many BEFORE UPDATE ON slots FOR EACH ROW EXECUTE FUNCTION refuse_many();
SELECT released > 0 AS some, released < 480 AS not_all, more FROM cusown_release_expired_holds();
CALL cusown_run_job('release_expired_holds');
SELECT status, count(*) FROM slots GROUP BY status ORDER BY status;
SELECT count(*) AS changes, count(DISTINCT entity_id) AS entities FROM cusown_ops.change;
TABLE worklist;
DROP TRIGGER refuse_many ON slots;
-- and the expiry of their bookings, whose slot is refused with them
CALL start_over();
CALL add_due(1, 100);
CREATE TRIGGER refuse_slot BEFORE UPDATE ON slots FOR EACH ROW EXECUTE FUNCTION refuse_slot();
SELECT * FROM cusown_expire_bookings();
TABLE worklist;
SELECT b.status, s.status, count(*) FROM bookings b JOIN slots s ON s.id = b.slot_id GROUP BY 1, 2 ORDER BY 1, 2;
-- the dry run says the same and leaves nothing
CALL start_over();
CALL add_due(1, 100);
SELECT * FROM cusown_expire_bookings(dry_run => true);
SELECT count(*) AS worklist FROM cusown_ops.attention;
TABLE state;
-- a call of many windows needs few subtransactions: all of it in one
DROP TRIGGER refuse_slot ON slots;
SET cusown_ops.batch_size = 1;
SELECT * FROM cusown_expire_bookings(max_rows => 100);
RESET cusown_ops.batch_size;

DROP SCHEMA split_app CASCADE;
DROP EXTENSION cusown_ops;
