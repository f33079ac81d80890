-- Shows no-shows: when an appointment is over, on whose clock, what is marked,
-- what is left alone, the worklist, and what is refused.
\set ON_ERROR_STOP 0
\getenv abs_srcdir PG_ABS_SRCDIR
\set app :abs_srcdir '/test/fixture/cusown_app.sql'
\set minimal :abs_srcdir '/test/fixture/app_minimal.sql'
SET client_min_messages = warning;
CREATE EXTENSION cusown_ops;
SELECT * FROM cusown_mark_no_show(); -- fails
\set ECHO none
\set schema no_show_app
\i :app
\set schema no_show_shop
\i :minimal
\set ECHO all
SET search_path = no_show_app, public;
SELECT count(*) > 0 AS attached FROM cusown_attach('no_show_app');
CREATE FUNCTION id_of(kind text, n int) RETURNS uuid
LANGUAGE sql IMMUTABLE
RETURN rpad(CASE kind WHEN 'slot' THEN 'a' WHEN 'business' THEN 'f' ELSE 'b' END
            || lpad(n::text, 7, '0'), 32, '0')::uuid;
CREATE PROCEDURE add_business(n int, zone text) LANGUAGE sql AS $$
  INSERT INTO businesses (id, salon_name, owner_name, whatsapp_number,
    opening_time, closing_time, slot_duration, booking_link, timezone)
  VALUES (id_of('business', n), 'Salon', 'Owner', '+910000000000',
    '09:00', '18:00', 30, 'salon' || n, zone);
$$;
CREATE PROCEDURE add_case(n int, business int, day date, starts time, ends time,
  duration int DEFAULT NULL, status text DEFAULT 'confirmed') LANGUAGE sql AS $$
  INSERT INTO slots (id, business_id, date, start_time, end_time, status)
  VALUES (id_of('slot', n), id_of('business', business), day, starts, ends,
          CASE status WHEN 'confirmed' THEN 'booked' ELSE 'available' END);
  INSERT INTO bookings (id, business_id, slot_id, customer_name, customer_phone, booking_id, status,
                        total_duration_minutes, cancelled_at)
  VALUES (id_of('booking', n), id_of('business', business), id_of('slot', n), 'Customer', '+910000000001',
          'CODE' || n, status, duration, CASE status WHEN 'cancelled' THEN now() END);
$$;
-- which bookings are over at a moment, and since which one exactly
CREATE FUNCTION marked_at(moment timestamptz, after interval DEFAULT '0') RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
  result text;
BEGIN
  PERFORM cusown_mark_no_show(after, as_of => moment, max_rows => 1000);
  SELECT string_agg(ltrim(substr(id::text, 2, 7), '0'), ' ' ORDER BY id) INTO result FROM bookings WHERE no_show;
  RAISE data_exception USING MESSAGE = coalesce(result, 'none');
EXCEPTION WHEN data_exception THEN
  RETURN SQLERRM;
END $$;
-- the first whole minute at which the booking is over
CREATE FUNCTION over_at(n int, around timestamptz) RETURNS timestamptz
LANGUAGE plpgsql AS $$
DECLARE
  low int := -3000;
  high int := 3000;
  middle int;
BEGIN
  WHILE high - low > 1 LOOP
    middle := (low + high) / 2;
    IF n::text = ANY (string_to_array(marked_at(around + middle * interval '1 minute'), ' ')) THEN
      high := middle;
    ELSE
      low := middle;
    END IF;
  END LOOP;
  RETURN around + high * interval '1 minute';
END $$;

SET TimeZone = 'UTC';
CALL add_business(1, 'UTC');
CALL add_business(2, 'America/New_York');
CALL add_business(3, 'Asia/Kolkata');
CALL add_business(4, 'Pacific/Kiritimati');
CALL add_business(5, NULL);
CALL add_business(6, '');
CALL add_business(7, 'Pacific/Pago_Pago');

-- the end is the slot's, or the booking's own where that is later
CALL add_case(1, 1, '2024-05-01', '10:00', '10:30');
CALL add_case(2, 1, '2024-05-01', '11:00', '11:30', 20);
CALL add_case(3, 1, '2024-05-01', '12:00', '12:30', 90);
CALL add_case(4, 1, '2024-05-01', '23:30', '00:30');
CALL add_case(5, 1, '2024-05-01', '22:00', '22:00');
CALL add_case(6, 1, '2024-05-01', '13:00', '13:30', -5);
CALL add_case(7, 5, '2024-05-01', '10:00', '10:30');
CALL add_case(8, 6, '2024-05-01', '10:00', '10:30');
-- on the clock of the business
CALL add_case(12, 2, '2024-05-01', '10:00', '10:30');
CALL add_case(13, 3, '2024-05-01', '10:00', '10:30');
CALL add_case(14, 4, '2024-05-01', '10:00', '10:30');
CALL add_case(17, 7, '2024-05-01', '10:00', '10:30');
SELECT n, over_at(n, '2024-05-01 12:00Z') FROM unnest(ARRAY[1, 2, 3, 4, 5, 6, 7, 8, 12, 13, 14, 17]) n;
SELECT marked_at('2024-05-01 10:29:59.999999Z') AS before, marked_at('2024-05-01 10:30Z') AS at;
SELECT marked_at('2024-05-01 10:59:59.999999Z', '30 minutes') AS before,
       marked_at('2024-05-01 11:00Z', '30 minutes') AS at;

-- nights in which the clock is put forward (2024-03-10) or back (2024-11-03):
-- never before the appointment can have ended
CALL add_case(21, 2, '2024-03-10', '01:30', '02:30');        -- 02:30 is not there
CALL add_case(22, 2, '2024-03-10', '01:30', '03:30');        -- the clock says it lasts one hour
CALL add_case(23, 2, '2024-03-10', '02:15', '02:45');        -- not there at all
CALL add_case(24, 2, '2024-03-09', '23:00', '23:30', 300);   -- through the gap
CALL add_case(25, 2, '2024-11-03', '00:30', '01:30');        -- 01:30 is there twice
CALL add_case(26, 2, '2024-11-03', '01:15', '01:45');        -- both are
CALL add_case(27, 2, '2024-11-02', '23:00', '23:30', 300);
SELECT n, over_at(n, '2024-03-10 12:00Z') FROM generate_series(21, 24) n
UNION ALL SELECT n, over_at(n, '2024-11-03 12:00Z') FROM generate_series(25, 27) n ORDER BY 1;

-- the session's settings do not matter
CREATE TABLE expectation AS
SELECT moment, marked_at(moment) AS marked
FROM generate_series('2024-05-01 00:00Z', '2024-05-02 12:00Z', interval '37 minutes') moment
UNION ALL SELECT moment, marked_at(moment)
FROM generate_series('2024-03-10 00:00Z', '2024-03-10 12:00Z', interval '37 minutes') moment;
CREATE FUNCTION differs() RETURNS bigint LANGUAGE sql
RETURN (SELECT count(*) FROM expectation WHERE marked <> marked_at(moment));
SELECT differs();
SET TimeZone = 'Asia/Tokyo';
SELECT differs();
SET TimeZone = 'America/St_Johns';
SET DateStyle = 'SQL, DMY';
SELECT differs();
SET IntervalStyle = 'iso_8601';
SET timezone_abbreviations = 'India';
SELECT differs();
RESET timezone_abbreviations;
RESET IntervalStyle;
RESET DateStyle;
SET TimeZone = 'UTC';

-- what is marked, and what is left alone
TRUNCATE bookings, slots, payments CASCADE;
CALL add_case(1, 1, '2024-05-01', '10:00', '10:30');
CALL add_case(2, 2, '2024-05-01', '10:00', '10:30', NULL, 'pending');
CALL add_case(3, 1, '2024-05-02', '10:00', '10:30', NULL, 'cancelled');
CALL add_case(4, 1, '2024-05-03', '10:00', '10:30', NULL, 'rejected');
CALL add_case(5, 1, '2024-05-04', '10:00', '10:30');    -- owner: came
CALL add_case(6, 1, '2024-05-05', '10:00', '10:30');    -- owner: did not come
CALL add_case(7, 1, '2024-05-06', '10:00', '10:30');
CALL add_case(8, 1, current_date + 3, '10:00', '10:30');
CALL add_case(9, 1, 'infinity', '10:00', '10:30');
CALL add_case(10, 1, '-infinity', '10:00', '10:30');
CALL add_case(11, 1, '2024-05-07', '10:00', '10:30', 2147483647);
CALL add_case(12, 1, '2024-05-08', '10:00', '10:30');
UPDATE bookings SET no_show = NULL WHERE id = id_of('booking', 12);
UPDATE bookings SET no_show = false, no_show_marked_at = '2024-05-04 11:00Z', no_show_marked_by = 'owner' WHERE id = id_of('booking', 5);
UPDATE bookings SET no_show = true, no_show_marked_at = '2024-05-05 11:00Z', no_show_marked_by = 'owner' WHERE id = id_of('booking', 6);
SELECT * FROM cusown_mark_no_show(dry_run => true);
SELECT count(*) AS audited FROM audit_logs WHERE action_type = 'booking_no_show';
SELECT * FROM cusown_mark_no_show(max_rows => 1);
SELECT * FROM cusown_mark_no_show(max_rows => 2);
SELECT * FROM cusown_mark_no_show(source => 'application');
CREATE VIEW state AS
SELECT left(b.id::text, 8) AS booking, b.status, s.status AS slot, no_show, no_show_marked_by AS by,
       no_show_marked_at > now() - interval '1 minute' AS now
FROM bookings b JOIN slots s ON s.id = b.slot_id ORDER BY b.id;
TABLE state;
SELECT left(entity_id::text, 8) AS booking, entity_type, old_data, new_data, metadata, admin_user_id, actor_role, description
FROM audit_logs WHERE action_type = 'booking_no_show' ORDER BY entity_id LIMIT 1;
SELECT count(*) AS audited FROM audit_logs WHERE action_type = 'booking_no_show';
SELECT action_type, actor_type, count(*) FROM booking_lifecycle_audit WHERE action_type = 'no_show' GROUP BY 1, 2;
SELECT verb, entity, left(entity_id::text, 8) AS booking, left(slot_id::text, 8) AS slot, from_status, to_status, source
FROM cusown_changes_since();
SELECT count(*) AS breaks FROM verify_audit_chain();

-- an unknown zone is UTC, and on the worklist
CREATE VIEW worklist AS
SELECT kind, entity, left(entity_id::text, 8) AS id, sqlstate, finding, times, closed_by IS NOT NULL AS closed
FROM cusown_ops.attention ORDER BY entity_id;
TRUNCATE bookings, slots CASCADE;
CALL add_business(11, 'Mars/Olympus');
CALL add_business(12, '../../../../../../etc/passwd');
CALL add_business(13, 'UTC''; DROP TABLE bookings; --');
CALL add_business(14, repeat('x', 1000000));
CALL add_business(15, 'Europe/Atlantis');
CALL add_business(16, 'europe/berlin');
DO $$ BEGIN FOR n IN 11 .. 16 LOOP CALL add_case(n, n, '2024-05-01', '10:00', '10:30'); END LOOP; END $$;
SELECT n, over_at(n, '2024-05-01 12:00Z') FROM generate_series(11, 16) n;
SELECT * FROM cusown_mark_no_show();
TABLE worklist;
SELECT * FROM cusown_mark_no_show();
UPDATE businesses SET timezone = 'Europe/Vienna' WHERE id = id_of('business', 11);
SELECT cusown_attention_resolve(id, 'is closed for good') FROM cusown_ops.attention WHERE entity_id = id_of('business', 12);
DELETE FROM bookings WHERE business_id = id_of('business', 13);
DELETE FROM slots WHERE business_id = id_of('business', 13);
DELETE FROM businesses WHERE id = id_of('business', 13);
SELECT * FROM cusown_mark_no_show();
TABLE worklist;
SELECT entity_type, left(entity_id::text, 8) AS entity FROM audit_logs WHERE action_type = 'data_corrected';
DELETE FROM bookings WHERE business_id >= id_of('business', 11);
DELETE FROM slots WHERE business_id >= id_of('business', 11);
DELETE FROM businesses WHERE id >= id_of('business', 11);
SELECT * FROM cusown_mark_no_show();

-- a POSIX zone is none: its sign means the opposite of what one expects
CALL add_business(21, 'UTC-5');
CALL add_business(22, 'Etc/GMT+99');
CALL add_business(23, 'EST5EDT,M3.2.0/2,M11.1.0/2');
CALL add_business(24, 'Etc/GMT+5');
CALL add_business(25, 'est5edt');
CALL add_business(26, 'GMT0');
CALL add_business(27, 'Etc/GMT+1x');
DO $$ BEGIN FOR n IN 21 .. 27 LOOP CALL add_case(n, n, '2024-05-01', '10:00', '10:30'); END LOOP; END $$;
SELECT n, over_at(n, '2024-05-01 12:00Z') FROM generate_series(21, 27) n;
SELECT * FROM cusown_mark_no_show();
SELECT kind, id FROM worklist WHERE NOT closed;
-- without time zones all are UTC, and no fault
BEGIN;
DELETE FROM cusown_ops.binding WHERE relation = 'businesses';
SELECT * FROM cusown_mark_no_show();
SELECT kind, id FROM worklist WHERE NOT closed;
ROLLBACK;
DELETE FROM bookings WHERE business_id >= id_of('business', 21);
DELETE FROM slots WHERE business_id >= id_of('business', 21);
DELETE FROM businesses WHERE id >= id_of('business', 21);

-- what no calendar holds is never over, and stops nothing
TRUNCATE cusown_ops.attention, bookings, slots CASCADE;
CALL add_case(1, 2, 'infinity', '10:00', '10:30');
CALL add_case(2, 2, '-infinity', '10:00', '10:30');
CALL add_case(3, 2, '5874897-12-31', '10:00', '10:30');
CALL add_case(4, 2, '4713-01-01 BC', '10:00', '10:30');
CALL add_case(5, 2, '2024-06-01', '10:00', '10:30', 2147483647);
CALL add_case(6, 2, '294276-12-31', '23:00', '24:00');
SELECT marked_at('2024-12-01');
SELECT marked FROM cusown_mark_no_show('0', as_of => '294276-12-31', dry_run => true);
SELECT marked FROM cusown_mark_no_show('0', as_of => 'infinity', dry_run => true);
SELECT marked FROM cusown_mark_no_show('0', as_of => '-infinity');
BEGIN;
ALTER TABLE bookings ALTER total_duration_minutes TYPE bigint;
UPDATE bookings SET total_duration_minutes = 9223372036854775807;
SELECT marked FROM cusown_mark_no_show('0', as_of => 'infinity', dry_run => true);
UPDATE bookings SET total_duration_minutes = -9223372036854775808;
SELECT marked FROM cusown_mark_no_show('0', as_of => 'infinity', dry_run => true);
ROLLBACK;

-- what a CHECK or a trigger refuses
TRUNCATE cusown_ops.attention, bookings, slots CASCADE;
CALL add_case(1, 1, '2024-05-01', '10:00', '10:30');
CALL add_case(2, 1, '2024-05-02', '10:00', '10:30');
CALL add_case(3, 1, '2024-05-03', '10:00', '10:30');
ALTER TABLE bookings ADD CONSTRAINT always_comes CHECK (booking_id <> 'CODE1' OR no_show IS NOT TRUE);
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NEW.booking_id = 'CODE2' THEN
    RAISE EXCEPTION 'customer % came', NEW.customer_name;
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER refuse BEFORE UPDATE ON bookings FOR EACH ROW EXECUTE FUNCTION refuse();
SELECT * FROM cusown_mark_no_show();
TABLE worklist;
SELECT * FROM cusown_mark_no_show();
ALTER TABLE bookings DROP CONSTRAINT always_comes;
DROP TRIGGER refuse ON bookings;
UPDATE cusown_ops.attention SET next_try = now() - interval '1 second';
SELECT * FROM cusown_mark_no_show();
SELECT * FROM cusown_mark_no_show();
TABLE worklist;

-- moved to a day to come, or to none, it is no case any more
CALL add_case(4, 1, '2024-05-04', '10:00', '10:30');
CALL add_case(5, 1, '2024-05-05', '10:00', '10:30');
ALTER TABLE bookings ADD CONSTRAINT always_comes CHECK (booking_id NOT IN ('CODE4', 'CODE5') OR no_show IS NOT TRUE) NOT VALID;
SELECT * FROM cusown_mark_no_show();
UPDATE slots SET date = current_date + 30 WHERE id = id_of('slot', 4);
UPDATE slots SET date = '5874897-12-31' WHERE id = id_of('slot', 5);
SELECT * FROM cusown_mark_no_show();
SELECT id, closed FROM worklist WHERE id >= 'b0000004';
ALTER TABLE bookings DROP CONSTRAINT always_comes;
-- also where a trigger refused it
CALL add_case(6, 1, '2024-05-06', '10:00', '10:30');
UPDATE bookings SET booking_id = 'CODE2a' WHERE id = id_of('booking', 2);
UPDATE bookings SET booking_id = 'CODE2' WHERE id = id_of('booking', 6);
CREATE TRIGGER refuse BEFORE UPDATE ON bookings FOR EACH ROW EXECUTE FUNCTION refuse();
SELECT * FROM cusown_mark_no_show();
SELECT kind, id, closed FROM worklist WHERE id = 'b0000006';
UPDATE slots SET date = current_date + 31 WHERE id = id_of('slot', 6);
SELECT * FROM cusown_mark_no_show();
SELECT kind, id, closed FROM worklist WHERE id = 'b0000006';
DROP TRIGGER refuse ON bookings;
DELETE FROM bookings WHERE id >= id_of('booking', 4);
UPDATE bookings SET booking_id = 'CODE2' WHERE booking_id = 'CODE2a';
-- a trigger that keeps a booking as it is: neither counted nor audited; one that
-- drops audit rows: refused
UPDATE bookings SET no_show = false, no_show_marked_at = NULL, no_show_marked_by = NULL;
TRUNCATE audit_logs;
CREATE FUNCTION keep_it() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER keep_it BEFORE UPDATE ON bookings FOR EACH ROW WHEN (OLD.booking_id = 'CODE2') EXECUTE FUNCTION keep_it();
SELECT marked FROM cusown_mark_no_show();
SELECT left(entity_id::text, 8) AS audited FROM audit_logs ORDER BY 1;
DROP TRIGGER keep_it ON bookings;
CREATE TRIGGER keep_it BEFORE INSERT ON audit_logs FOR EACH ROW EXECUTE FUNCTION keep_it();
SELECT marked FROM cusown_mark_no_show(); -- fails
DROP TRIGGER keep_it ON audit_logs;

-- the job: off as shipped, of use all the same
SELECT job, every, enabled FROM cusown_jobs() WHERE job = 'mark_no_show';
SELECT job, late FROM cusown_cron_health() WHERE job = 'mark_no_show';
UPDATE bookings SET no_show = false, no_show_marked_at = NULL, no_show_marked_by = NULL;
CALL add_business(11, 'Mars/Olympus');
CALL cusown_run_job('mark_no_show', batch_size => 2);
SELECT job, status, changed, attention, looked_at FROM cusown_ops.job_run;
SELECT job_name, status FROM cron_run_logs;
DELETE FROM businesses WHERE id = id_of('business', 11);
-- unattended it runs only where the owner has switched it on
CALL cusown_run_job('mark_no_show', 'cron');
INSERT INTO cusown_ops.job (name, enabled) VALUES ('mark_no_show', true);
CALL cusown_run_job('mark_no_show', 'cron');
SELECT source, status FROM cusown_ops.job_run ORDER BY id;
DELETE FROM cusown_ops.job;

-- more that a trigger refuses than one transaction has tries for: the next goes
-- on behind what is done
TRUNCATE cusown_ops.attention, cusown_ops.change, bookings, slots CASCADE;
DO $$
BEGIN
  FOR n IN 1 .. 500 LOOP
    CALL add_case(n, 1, '2024-05-01'::date + n, '10:00', '10:30');
  END LOOP;
END $$;
CREATE FUNCTION refuse_many() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NEW.id IN (SELECT no_show_app.id_of('booking', n * 25) FROM generate_series(1, 20) n) THEN
    RAISE EXCEPTION 'no';
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER refuse_many BEFORE UPDATE ON bookings FOR EACH ROW EXECUTE FUNCTION refuse_many();
SELECT marked > 0 AS some, marked < 480 AS not_all, more FROM cusown_mark_no_show();
CALL cusown_run_job('mark_no_show');
SELECT no_show, count(*) FROM bookings GROUP BY no_show ORDER BY no_show;
SELECT count(*) AS changes, count(DISTINCT entity_id) AS entities FROM cusown_ops.change;
SELECT kind, count(*) FROM cusown_ops.attention GROUP BY kind;
DROP TRIGGER refuse_many ON bookings;
TRUNCATE cusown_ops.attention, bookings, slots CASCADE;

-- what is refused
SELECT * FROM cusown_mark_no_show(NULL); -- fails
SELECT * FROM cusown_mark_no_show('-1 minute'); -- fails
SELECT * FROM cusown_mark_no_show('1001 years'); -- fails
SELECT * FROM cusown_mark_no_show(max_rows => 0); -- fails
SELECT * FROM cusown_mark_no_show(source => 'me'); -- fails
SELECT * FROM cusown_mark_no_show(as_of => now() + interval '1 hour'); -- fails
SELECT * FROM cusown_mark_no_show(as_of => 'infinity', dry_run => true);
SELECT * FROM cusown_mark_no_show('999 years');
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT * FROM cusown_mark_no_show(); -- fails
ROLLBACK;
BEGIN READ ONLY;
SELECT * FROM cusown_mark_no_show(); -- fails
ROLLBACK;
CREATE ROLE regress_no_show_blind;
GRANT USAGE ON SCHEMA no_show_app, cusown_ops TO regress_no_show_blind;
GRANT ALL ON ALL TABLES IN SCHEMA no_show_app TO regress_no_show_blind;
GRANT SELECT ON cusown_ops.binding TO regress_no_show_blind;
SET ROLE regress_no_show_blind;
SELECT * FROM cusown_mark_no_show(); -- fails
RESET ROLE;
GRANT EXECUTE ON FUNCTION cusown_mark_no_show TO regress_no_show_blind;
SET ROLE regress_no_show_blind;
SELECT * FROM cusown_mark_no_show(); -- fails
RESET ROLE;
-- the policy on businesses is enough to blind it
GRANT SELECT, INSERT, UPDATE ON cusown_ops.attention TO regress_no_show_blind;
ALTER TABLE bookings DISABLE ROW LEVEL SECURITY;
ALTER TABLE slots DISABLE ROW LEVEL SECURITY;
ALTER TABLE audit_logs DISABLE ROW LEVEL SECURITY;
SET ROLE regress_no_show_blind;
SELECT * FROM cusown_mark_no_show(); -- fails
RESET ROLE;
ALTER TABLE slots OWNER TO regress_no_show_blind;
SELECT * FROM cusown_mark_no_show(source => 'cron'); -- fails
ALTER TABLE slots OWNER TO CURRENT_USER;

-- another application: absolute times, no such columns at first
SELECT count(*) > 0 AS attached FROM cusown_attach('no_show_shop', :'minimal_mapping');
SET cusown_ops.app_schema = 'no_show_shop';
SELECT * FROM cusown_mark_no_show(); -- fails
CALL cusown_run_job('mark_no_show'); -- fails
ALTER TABLE no_show_shop.reservation ADD missed boolean, ADD minutes bigint;
SELECT count(*) > 0 AS attached FROM cusown_attach('no_show_shop', jsonb_set(jsonb_set(:'minimal_mapping',
  '{bookings,columns,no_show}', '"missed"'), '{bookings,columns,total_duration}', '"minutes"'));
INSERT INTO no_show_shop.time_slot (ref, state, starts_at, ends_at)
SELECT id_of('slot', n), 'booked', starts, starts + '30 minutes'
FROM (VALUES (1, now() - interval '62 minutes'), (2, now() - interval '58 minutes'),
             (3, now() - interval '62 minutes'), (4, now() - interval '90 minutes'), (5, NULL), (6, 'infinity')) v (n, starts);
INSERT INTO no_show_shop.reservation (ref, state, slot_ref, minutes)
SELECT id_of('booking', n), 'confirmed', id_of('slot', n), minutes
FROM (VALUES (1, NULL), (2, NULL), (3, 45), (4, 59), (5, NULL), (6, 9223372036854775807)) v (n, minutes);
SELECT * FROM cusown_mark_no_show();
SELECT left(ref::text, 8) AS booking, state, missed FROM no_show_shop.reservation ORDER BY ref;
SELECT verb, object_type, left(object_ref::text, 8) AS object FROM no_show_shop.journal ORDER BY object_ref;
-- when it was marked is enough; what ends before it begins has no end
ALTER TABLE no_show_shop.reservation ADD told timestamptz;
SELECT count(*) > 0 AS attached FROM cusown_attach('no_show_shop', jsonb_set(:'minimal_mapping',
  '{bookings,columns,no_show_marked_at}', '"told"'));
INSERT INTO no_show_shop.time_slot (ref, state, starts_at, ends_at)
VALUES (id_of('slot', 7), 'booked', '2024-05-01 10:00Z', '2024-05-01 09:00Z');
INSERT INTO no_show_shop.reservation (ref, state, slot_ref) VALUES (id_of('booking', 7), 'confirmed', id_of('slot', 7));
UPDATE no_show_shop.reservation SET told = '2024-05-01' WHERE ref = id_of('booking', 1);
SELECT * FROM cusown_mark_no_show('0');
SELECT * FROM cusown_mark_no_show('0');
SELECT left(ref::text, 8) AS booking, state, missed, told > now() - interval '1 minute' AS now FROM no_show_shop.reservation ORDER BY ref;
SELECT count(*) FROM no_show_shop.time_slot WHERE state <> 'booked';
RESET cusown_ops.app_schema;

DROP SCHEMA no_show_app, no_show_shop CASCADE;
DROP EXTENSION cusown_ops;
DROP OWNED BY regress_no_show_blind;
DROP ROLE regress_no_show_blind;
