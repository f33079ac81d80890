-- Shows expiry: what is due and why, the dry run, the run, and what is refused.
\set ON_ERROR_STOP 0
\getenv abs_srcdir PG_ABS_SRCDIR
\set app :abs_srcdir '/test/fixture/cusown_app.sql'
SET client_min_messages = warning;
CREATE EXTENSION cusown_ops;
\set schema expiry_app
\set ECHO none
\i :app
\set ECHO all
SET search_path = expiry_app, public;
SELECT count(*) > 0 AS attached FROM cusown_attach('expiry_app');

-- a booking in the state that a case asks for; ids are the case's number
CREATE FUNCTION id_of(kind text, n int) RETURNS uuid
LANGUAGE sql IMMUTABLE
RETURN rpad(CASE kind WHEN 'slot' THEN 'a' WHEN 'payment' THEN 'c' ELSE 'b' END
            || lpad(n::text, 7, '0'), 32, '0')::uuid;
INSERT INTO businesses (id, salon_name, owner_name, whatsapp_number,
  opening_time, closing_time, slot_duration, booking_link)
VALUES (id_of('booking', 0), 'Salon', 'Owner', '+910000000000',
  '09:00', '18:00', 30, 'salon');
CREATE FUNCTION add_case(n int, age interval, slot_status text,
  hold interval DEFAULT NULL, on_slot int DEFAULT NULL,
  booking_status text DEFAULT 'pending') RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
  IF on_slot IS NULL THEN
    INSERT INTO slots (id, business_id, date, start_time, end_time, status, reserved_until)
    VALUES (id_of('slot', n), id_of('booking', 0), current_date + n, '10:00', '10:30',
            slot_status, now() + hold);
  END IF;
  INSERT INTO bookings (id, business_id, slot_id, customer_name, customer_phone,
                        booking_id, status, created_at)
  VALUES (id_of('booking', n), id_of('booking', 0), id_of('slot', coalesce(on_slot, n)),
          'Customer', '+910000000001', 'CODE' || n, booking_status, now() - age);
END $$;

SELECT add_case(1, '30 hours', 'reserved', '-29 hours');   -- plainly due
SELECT add_case(2, '29 hours', 'reserved', '5 minutes');   -- slot held by another
SELECT add_case(3, '28 hours', 'booked');                  -- booked by a reschedule
SELECT add_case(4, '27 hours', 'available');               -- hold cleaned up
SELECT add_case(5, '26 hours', 'reserved', '-25 hours');   -- paid
SELECT add_case(6, '25 hours', 'reserved', '-24 hours');   -- payment in flight
SELECT add_case(7, '24 hours 1 minute', 'reserved', '-24 hours');  -- once undone
SELECT add_case(8, '24 hours 1 second', 'booked');         -- slot confirmed for 9
SELECT add_case(9, '1 hour', NULL, NULL, 8, 'confirmed');
SELECT add_case(10, '23 hours 59 minutes', 'reserved', '-23 hours'); -- not due
SELECT create_payment(id_of('booking', 5), 50000, 'razorpay', id_of('payment', 5)) IS NOT NULL AS paid;
SELECT complete_payment(id_of('payment', 5));
SELECT create_payment(id_of('booking', 6), 50000, 'razorpay', id_of('payment', 6)) IS NOT NULL AS in_flight;
UPDATE bookings SET undo_used_at = now() WHERE id = id_of('booking', 7);

-- what is due, oldest first
SELECT left(booking_id::text, 8) AS booking, rule,
       date_trunc('minute', now() - due_since) AS overdue,
       verdict, finding
FROM cusown_due_bookings();

-- the dry run tells the same and writes nothing
SELECT * FROM cusown_expire_bookings(dry_run => true);
SELECT status, count(*) FROM bookings GROUP BY 1 ORDER BY 1;
SELECT count(*) AS worklist FROM cusown_ops.attention;

-- the run
SELECT * FROM cusown_expire_bookings();
SELECT left(b.id::text, 8) AS booking, b.status, b.cancelled_by,
       b.cancelled_at > now() - interval '1 minute' AS now, b.cancellation_reason AS reason,
       s.status AS slot, s.reserved_until IS NULL AS no_hold
FROM bookings b JOIN slots s ON s.id = b.slot_id ORDER BY b.created_at;
SELECT action_type, left(entity_id::text, 8) AS entity, old_data, new_data,
       metadata, admin_user_id, actor_role, description
FROM audit_logs WHERE metadata->>'source' = 'manual' ORDER BY action_type, entity_id;
SELECT count(*) AS breaks FROM verify_audit_chain();
SELECT left(booking_id::text, 8) AS booking, left(old_slot_id::text, 8) AS slot,
       new_slot_id, action_type, actor_type
FROM booking_lifecycle_audit WHERE action_type = 'expire' ORDER BY 1;
SELECT kind, entity, left(entity_id::text, 8) AS booking, runbook, sqlstate,
       finding, times, closed_at
FROM cusown_ops.attention ORDER BY kind;

-- again: nothing is done twice
SELECT * FROM cusown_expire_bookings();

-- max_rows: the oldest first, and whether more are behind
SELECT add_case(n, make_interval(days => 3, mins => -n), 'reserved', '-2 days') FROM generate_series(21, 25) n;
SELECT * FROM cusown_expire_bookings(max_rows => 3);
SELECT string_agg(left(id::text, 8), ' ' ORDER BY created_at) AS left_over
FROM bookings WHERE status = 'pending' AND id >= id_of('booking', 21);
SELECT * FROM cusown_expire_bookings(max_rows => 2);

-- the age is an argument, and a setting
SELECT count(*) FROM cusown_due_bookings('1 minute');
SET cusown_ops.booking_ttl = '1min';
SELECT count(*) FROM cusown_due_bookings();
RESET cusown_ops.booking_ttl;

-- a month is as long as the calendar's: due since the same day of the next one,
-- or its last
BEGIN;
UPDATE bookings SET created_at = '2024-01-31 12:00+00', status = 'pending'
WHERE id = id_of('booking', 10);
UPDATE bookings SET created_at = '2024-02-10 12:00+00', status = 'pending'
WHERE id = id_of('booking', 6);
SELECT left(booking_id::text, 8) AS booking, due_since AT TIME ZONE 'UTC' AS since
FROM cusown_due_bookings('1 month', '2024-04-15 00:00+00');
SELECT left(booking_id::text, 8) AS booking, due_since AT TIME ZONE 'UTC' AS since
FROM cusown_due_bookings('1 month 1 day 2 hours', '2024-04-15 00:00+00');
ROLLBACK;

-- looking ahead is for dry runs
SELECT expired FROM cusown_expire_bookings(as_of => now() + interval '2 hours', dry_run => true);
SELECT expired FROM cusown_expire_bookings(as_of => now() + interval '2 hours'); -- fails

-- other arguments that are refused
SELECT * FROM cusown_expire_bookings(max_rows => 0); -- fails
SELECT * FROM cusown_expire_bookings(max_rows => -1); -- fails
SELECT * FROM cusown_expire_bookings(max_rows => NULL); -- fails
SELECT * FROM cusown_expire_bookings('-1 hour'); -- fails
SELECT * FROM cusown_due_bookings('-1 hour'); -- fails
SELECT * FROM cusown_expire_bookings(source => 'me'); -- fails
SELECT * FROM cusown_expire_bookings(source => NULL); -- fails
SELECT * FROM cusown_expire_bookings(as_of => NULL); -- fails
SELECT * FROM cusown_expire_bookings(dry_run => NULL); -- fails
SELECT * FROM cusown_expire_bookings('1000000 years'); -- fails
SELECT * FROM cusown_due_bookings('1000000 years'); -- fails
SELECT * FROM cusown_due_bookings(as_of => NULL); -- fails

-- transactions in which rows cannot be read again after they were locked
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT * FROM cusown_expire_bookings(); -- fails
ROLLBACK;
BEGIN READ ONLY;
SELECT * FROM cusown_expire_bookings(); -- fails
ROLLBACK;

-- a role that row-level security blinds
CREATE ROLE regress_expiry_blind;
GRANT USAGE ON SCHEMA expiry_app TO regress_expiry_blind;
GRANT ALL ON ALL TABLES IN SCHEMA expiry_app TO regress_expiry_blind;
SELECT cusown_grant('regress_expiry_blind', 'application');
SET ROLE regress_expiry_blind;
SELECT * FROM cusown_due_bookings(); -- fails
SELECT * FROM cusown_expire_bookings(); -- fails
RESET ROLE;

-- unattended as a superuser over tables of others
ALTER TABLE bookings OWNER TO regress_expiry_blind;
SELECT * FROM cusown_expire_bookings(source => 'cron'); -- fails
SELECT expired FROM cusown_expire_bookings(source => 'manual');
ALTER TABLE bookings OWNER TO CURRENT_USER;
SELECT expired FROM cusown_expire_bookings(source => 'cron');

SELECT cusown_detach('expiry_app');

-- A CHECK that stands on a partition only, in whatever order its columns are,
-- refuses its own rows and stops nobody.
CREATE SCHEMA expiry_parts;
CREATE TABLE expiry_parts.slots (id uuid, status text, starts_at timestamptz,
                                 ends_at timestamptz);
CREATE TABLE expiry_parts.audit_logs (action text, entity_type text,
                                      entity_id uuid, created_at timestamptz);
CREATE TABLE expiry_parts.bookings (
  shard integer, id uuid, slot_id uuid, status text, created_at timestamptz,
  fixed boolean, cancelled_by text
) PARTITION BY LIST (shard);
CREATE TABLE expiry_parts.bookings_0 PARTITION OF expiry_parts.bookings
FOR VALUES IN (0);
ALTER TABLE expiry_parts.bookings_0 ADD CONSTRAINT only_0
CHECK (status <> 'cancelled' OR NOT fixed);
CREATE TABLE expiry_parts.bookings_1 (
  gone integer, fixed boolean, cancelled_by text, created_at timestamptz,
  status text, slot_id uuid, id uuid, shard integer,
  CONSTRAINT only_1 CHECK (cancelled_by <> 'system' OR NOT fixed),
  CONSTRAINT whole_1 CHECK (bookings_1::text !~ '^[(],system,')
);
ALTER TABLE expiry_parts.bookings_1 DROP gone;
ALTER TABLE expiry_parts.bookings ATTACH PARTITION expiry_parts.bookings_1
FOR VALUES IN (1);
-- a partition without one, whose rows the others' CHECKs would refuse
CREATE TABLE expiry_parts.bookings_2 PARTITION OF expiry_parts.bookings
FOR VALUES IN (2);
INSERT INTO expiry_parts.bookings (shard, id, slot_id, status, created_at, fixed)
SELECT shard, id_of('booking', shard * 10 + n), id_of('slot', shard * 10 + n),
       'pending', now() - interval '2 days' + shard * interval '1 hour'
         + n * interval '1 minute', nullif(n, 3) = 1
FROM generate_series(0, 2) shard, generate_series(1, 3) n;
INSERT INTO expiry_parts.slots
SELECT slot_id, 'booked' FROM expiry_parts.bookings;
SELECT count(*) > 0 AS attached FROM cusown_attach('expiry_parts');
SELECT left(booking_id::text, 8) AS booking, verdict, finding
FROM cusown_due_bookings();
SELECT * FROM cusown_expire_bookings();
SELECT tableoid::regclass AS partition, fixed, status, count(*)
FROM expiry_parts.bookings GROUP BY 1, 2, 3 ORDER BY tableoid::regclass::text, 2;
SELECT kind, left(entity_id::text, 8) AS booking, sqlstate, finding
FROM cusown_ops.attention WHERE app_schema = 'expiry_parts' ORDER BY booking;
-- who owns one partition can plant a trigger, too
ALTER TABLE expiry_parts.bookings_2 OWNER TO regress_expiry_blind;
SELECT * FROM cusown_expire_bookings(source => 'cron'); -- fails

DROP SCHEMA expiry_parts CASCADE;
-- a payment whose status nobody knows is no reason to cancel
CREATE SCHEMA expiry_unknown;
SET search_path = expiry_unknown, public;
CREATE TABLE slots (id uuid PRIMARY KEY, status text, reserved_until timestamptz, starts_at timestamptz, ends_at timestamptz);
CREATE TABLE audit_logs (action text, entity_type text, entity_id uuid, created_at timestamptz);
CREATE TABLE bookings (id uuid PRIMARY KEY, slot_id uuid, status text, created_at timestamptz NOT NULL DEFAULT now() - interval '2 days');
CREATE TABLE payments (id uuid PRIMARY KEY, booking_id uuid, status text, created_at timestamptz NOT NULL DEFAULT now() - interval '2 days');
SELECT count(*) > 0 AS attached FROM cusown_attach('expiry_unknown');
SET cusown_ops.app_schema = 'expiry_unknown';
INSERT INTO slots SELECT rpad('a' || n, 32, '0')::uuid, 'reserved', now() - interval '1 day' FROM generate_series(1, 4) n;
INSERT INTO bookings SELECT rpad('b' || n, 32, '0')::uuid, rpad('a' || n, 32, '0')::uuid, 'pending' FROM generate_series(1, 4) n;
INSERT INTO payments SELECT rpad('c' || n, 32, '0')::uuid, rpad('b' || n, 32, '0')::uuid,
  (ARRAY['succeeded', NULL, 'failed', 'expired'])[n] FROM generate_series(1, 4) n;
SELECT left(booking_id::text, 2) AS booking, verdict, finding FROM cusown_due_bookings() ORDER BY 1;
SELECT * FROM cusown_expire_bookings();
SELECT left(entity_id::text, 2) AS booking, kind, finding FROM cusown_ops.attention
WHERE app_schema = 'expiry_unknown' ORDER BY 1;

-- as_of may be a little ahead, but a hold that lasts until then still lives
UPDATE payments SET status = 'failed';
UPDATE slots SET reserved_until = now() + interval '40 seconds' WHERE status = 'reserved';
UPDATE cusown_ops.attention SET next_try = now();
SELECT expired, released FROM cusown_expire_bookings(as_of => now() + interval '55 seconds');
SELECT status, count(*) FROM slots GROUP BY 1 ORDER BY 1;

-- audit rows that a trigger drops: nothing is changed without them
INSERT INTO bookings VALUES (rpad('b9', 32, '0')::uuid, rpad('a1', 32, '0')::uuid, 'pending');
CREATE FUNCTION drop_row() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER drop_row BEFORE INSERT ON audit_logs FOR EACH ROW EXECUTE FUNCTION drop_row();
SELECT * FROM cusown_expire_bookings(); -- fails
SELECT count(*) AS still_pending FROM bookings WHERE status = 'pending';

-- a trigger that gives a freed slot to the next in line is none of our business
DROP TRIGGER drop_row ON audit_logs;
UPDATE slots SET status = 'booked', reserved_until = NULL WHERE id = rpad('a1', 32, '0')::uuid;
CREATE FUNCTION next_in_line() RETURNS trigger LANGUAGE plpgsql AS
'BEGIN UPDATE expiry_unknown.slots SET status = ''reserved'' WHERE id = NEW.id; RETURN NULL; END';
CREATE TRIGGER next_in_line AFTER UPDATE ON slots FOR EACH ROW
WHEN (NEW.status = 'available') EXECUTE FUNCTION next_in_line();
BEGIN;
SELECT expired, released FROM cusown_expire_bookings();
SELECT status FROM slots WHERE id = rpad('a1', 32, '0')::uuid;
ROLLBACK;

-- a session's first call may be within a parallel query
\c -
SELECT CASE WHEN current_setting('server_version_num')::int < 160000
            THEN 'force_parallel_mode' ELSE 'debug_parallel_query' END AS parallel \gset
SET :parallel = on;
SET cusown_ops.app_schema = 'expiry_unknown';
SELECT count(*) FROM cusown_due_bookings();
RESET :parallel;
RESET cusown_ops.app_schema;
SET client_min_messages = warning;
DROP SCHEMA expiry_unknown CASCADE;

-- a CHECK on an inheritance child, and one on a generated column
CREATE SCHEMA expiry_plain;
SET search_path = expiry_plain, public;
CREATE TABLE slots (id uuid, status text, starts_at timestamptz, ends_at timestamptz);
CREATE TABLE audit_logs (action text, entity_type text, entity_id uuid, created_at timestamptz);
CREATE TABLE bookings (id uuid, slot_id uuid, status text,
  created_at timestamptz NOT NULL DEFAULT now() - interval '2 days', fixed boolean,
  off boolean GENERATED ALWAYS AS (status = 'cancelled') STORED,
  CONSTRAINT stays_on CHECK (NOT off OR fixed IS NOT FALSE));
CREATE TABLE bookings_of_a_child (
  CONSTRAINT stays_in_child CHECK (status <> 'cancelled' OR fixed IS NOT TRUE)) INHERITS (bookings);
SELECT count(*) > 0 AS attached FROM cusown_attach('expiry_plain');
SET cusown_ops.app_schema = 'expiry_plain';
INSERT INTO slots SELECT md5('s' || n)::uuid, 'booked' FROM generate_series(1, 4) n;
INSERT INTO bookings VALUES (md5('1')::uuid, md5('s1')::uuid, 'pending', DEFAULT, NULL),
  (md5('2')::uuid, md5('s2')::uuid, 'pending', DEFAULT, false);
INSERT INTO bookings_of_a_child VALUES (md5('3')::uuid, md5('s3')::uuid, 'pending', DEFAULT, NULL),
  (md5('4')::uuid, md5('s4')::uuid, 'pending', DEFAULT, true);
SELECT verdict, finding FROM cusown_due_bookings() ORDER BY 1, 2;
SELECT * FROM cusown_expire_bookings();
RESET cusown_ops.app_schema;
DROP SCHEMA expiry_plain CASCADE;

-- by the end of the hold: only when asked for, only those that were there before it
SET search_path = expiry_app, public;
TRUNCATE cusown_ops.attention, cusown_ops.change;
TRUNCATE slots, bookings, payments CASCADE;
SELECT count(*) > 0 AS attached FROM cusown_attach('expiry_app');
SET cusown_ops.app_schema = 'expiry_app';
SELECT add_case(41, '3 hours', 'reserved', '-2 hours');                 -- due by it
SELECT add_case(42, '150 minutes', 'reserved', '-61 minutes');          -- due by it
SELECT add_case(43, '3 hours', 'reserved', '-59 minutes');              -- not yet
SELECT add_case(44, '1 hour', 'reserved', '-2 hours');                  -- came after that hold
SELECT add_case(45, '3 hours', 'reserved', '5 minutes');                -- it lives
SELECT add_case(46, '3 hours', 'available');                            -- has none
SELECT add_case(47, '3 hours', 'booked', '-2 hours');                   -- no longer a hold
SELECT add_case(48, '3 hours', 'reserved', '-2 hours');                 -- paid
SELECT add_case(49, '3 hours', 'reserved', '-2 hours');                 -- once undone
SELECT add_case(50, '30 hours', 'reserved', '-29 hours');               -- due by its age
SELECT add_case(51, '3 hours', 'reserved');                             -- has no end
SELECT add_case(52, '3 hours', 'reserved', '-2 hours', NULL, 'rejected');
SELECT create_payment(id_of('booking', 48), 50000, 'razorpay', id_of('payment', 48)) IS NOT NULL AS paid;
SELECT complete_payment(id_of('payment', 48));
UPDATE bookings SET undo_used_at = now() WHERE id = id_of('booking', 49);
SELECT left(booking_id::text, 8) AS booking, rule, date_trunc('minute', now() - due_since) AS overdue, verdict
FROM cusown_due_bookings(hold_grace => '1 hour');
SELECT count(*) AS without FROM cusown_due_bookings();
SELECT count(*) AS later FROM cusown_due_bookings(hold_grace => '1 hour', as_of => now() + interval '2 minutes');
SELECT * FROM cusown_expire_bookings(hold_grace => '1 hour', dry_run => true);
SELECT * FROM cusown_expire_bookings(hold_grace => '1 hour', max_rows => 2);
SELECT * FROM cusown_expire_bookings(hold_grace => '1 hour');
SELECT left(b.id::text, 8) AS booking, b.status, s.status AS slot
FROM bookings b JOIN slots s ON s.id = b.slot_id ORDER BY 1;
SELECT left(entity_id::text, 8) AS booking, metadata->>'rule' AS rule, metadata->>'age_seconds' AS age
FROM audit_logs WHERE entity_id IN (id_of('booking', 41), id_of('booking', 42), id_of('booking', 50)) ORDER BY 1;
SELECT left(entity_id::text, 8) AS booking, kind FROM cusown_ops.attention ORDER BY 1;
SELECT * FROM cusown_expire_bookings(hold_grace => '0');
SELECT * FROM cusown_expire_bookings(hold_grace => '-1 second'); -- fails
SELECT * FROM cusown_due_bookings(hold_grace => '-1 second'); -- fails
SELECT * FROM cusown_expire_bookings(hold_grace => '1001 years'); -- fails
-- where the end of a hold is not bound, it cannot be asked for
DELETE FROM cusown_ops.binding WHERE app_schema = 'expiry_app' AND relation = 'slots' AND attribute = 'reserved_until';
SELECT * FROM cusown_expire_bookings(hold_grace => '1 hour'); -- fails
SELECT * FROM cusown_due_bookings(hold_grace => '1 hour'); -- fails
SELECT expired FROM cusown_expire_bookings();

DROP SCHEMA expiry_app CASCADE;
DROP EXTENSION cusown_ops;
DROP OWNED BY regress_expiry_blind;
DROP ROLE regress_expiry_blind;
