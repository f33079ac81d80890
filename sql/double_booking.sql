-- Shows double bookings: how they are told, of which kinds, and who may ask.
\set ON_ERROR_STOP 0
\getenv abs_srcdir PG_ABS_SRCDIR
\set app :abs_srcdir '/test/fixture/cusown_app.sql'
\set minimal :abs_srcdir '/test/fixture/app_minimal.sql'
SET client_min_messages = warning;
CREATE EXTENSION cusown_ops;
SELECT * FROM cusown_double_bookings(); -- fails
\echo :LAST_ERROR_SQLSTATE
\set ECHO none
\set schema double_app
\i :app
\set schema double_shop
\i :minimal
\set ECHO all
SET search_path = double_app, public;
SELECT count(*) > 0 AS attached FROM cusown_attach('double_app');

CREATE FUNCTION id_of(kind text, n int) RETURNS uuid
LANGUAGE sql IMMUTABLE
RETURN rpad(CASE kind WHEN 'slot' THEN 'a' WHEN 'booking' THEN 'b' WHEN 'payment' THEN 'f' ELSE 'c' END || lpad(n::text, 7, '0'), 32, '0')::uuid;
CREATE FUNCTION short(id uuid) RETURNS text LANGUAGE sql IMMUTABLE
RETURN left(id::text, 1) || ltrim(substr(id::text, 2, 7), '0');
CREATE FUNCTION short(ids uuid[]) RETURNS text LANGUAGE sql IMMUTABLE
RETURN (SELECT string_agg(short(i), ' ' ORDER BY o) FROM unnest(ids) WITH ORDINALITY u (i, o));
CREATE PROCEDURE add_business(n int, chairs int DEFAULT 1) LANGUAGE sql AS $$
  INSERT INTO businesses (id, salon_name, owner_name, whatsapp_number, opening_time, closing_time,
                          slot_duration, booking_link, concurrent_booking_capacity)
  VALUES (id_of('business', n), 'Salon', 'Owner', '+910000000000', '09:00', '18:00', 30, 'salon' || n, chairs);
$$;
CREATE PROCEDURE add_slot(n int, business int, starts timestamp, ends time, as_is text DEFAULT 'booked', hold interval DEFAULT NULL)
LANGUAGE sql AS $$
  INSERT INTO slots (id, business_id, date, start_time, end_time, status, reserved_until)
  VALUES (id_of('slot', n), id_of('business', business), starts::date, starts::time, ends, as_is, now() + hold);
$$;
CREATE PROCEDURE add_booking(n int, slot int, as_is text DEFAULT 'confirmed', minutes int DEFAULT NULL) LANGUAGE sql AS $$
  INSERT INTO bookings (id, business_id, slot_id, customer_name, customer_phone, booking_id, status,
                        cancelled_at, total_duration_minutes, created_at)
  SELECT id_of('booking', n), s.business_id, s.id, 'Customer', '+910000000001', 'CODE' || n, as_is,
         CASE as_is WHEN 'cancelled' THEN now() END, minutes, timestamptz '2024-01-01 00:00Z' + n * interval '1 hour'
  FROM slots s WHERE s.id = id_of('slot', slot);
$$;
-- a slot of an hour that is booked, and its booking
CREATE PROCEDURE add_hour(n int, business int, starts timestamp, minutes int DEFAULT NULL) LANGUAGE plpgsql AS $$
BEGIN
  CALL add_slot(n, business, starts, (starts + '1 hour')::time);
  CALL add_booking(n, n, minutes => minutes);
END $$;
CREATE FUNCTION doubles(kind text DEFAULT 'all', business uuid DEFAULT NULL, verify boolean DEFAULT false)
RETURNS TABLE (kind_ text, business_ text, slot text, bookings text, starts timestamp, finding text)
LANGUAGE sql STABLE AS $$
  SELECT d.kind, short(business_id), short(slot_id), short(booking_ids), starts, finding
  FROM cusown_double_bookings(kind, business, verify) d
$$;

-- nothing is there
SELECT * FROM cusown_double_bookings();
SELECT * FROM cusown_double_bookings(verify => true);

-- ---------- same_slot ----------
CALL add_business(1, 9);
CALL add_business(2, 9);
CALL add_slot(1, 1, '2024-05-01 10:00', '11:00');
CALL add_slot(2, 1, '2024-05-02 10:00', '11:00');
CALL add_slot(3, 2, '2024-05-03 10:00', '11:00');
CALL add_slot(4, 2, '2024-05-04 10:00', '11:00', 'available');
-- the index stands: a second one is impossible
CALL add_booking(1, 1);
CALL add_booking(2, 1); -- fails
DROP INDEX idx_bookings_one_confirmed_per_slot;
CALL add_booking(2, 1);
CALL add_booking(3, 2);
CALL add_booking(4, 2, 'pending');
CALL add_booking(5, 3);
CALL add_booking(6, 3, 'cancelled');
CALL add_booking(7, 3);
CALL add_booking(8, 3);
CALL add_booking(9, 4, 'pending');
CALL add_booking(10, 4, 'pending');
\x on
SELECT * FROM cusown_double_bookings('same_slot');
\x off
-- the runbook's query says the same
SELECT short(slot_id) AS slot, count(*) FROM bookings WHERE status = 'confirmed' GROUP BY slot_id HAVING count(*) > 1 ORDER BY 1;
-- of one business
SELECT slot FROM doubles('same_slot', id_of('business', 1));
SELECT slot FROM doubles('same_slot', id_of('business', 3));
-- in windows of any size
SET cusown_ops.batch_size = 1;
SELECT slot, bookings FROM doubles('same_slot');
RESET cusown_ops.batch_size;

-- the catalog answers, without a look at bookings, only where an index proves it
-- such an index can be there although rows contradict it only by force
CREATE FUNCTION force(ddl text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
  CREATE TEMP TABLE kept ON COMMIT DROP AS SELECT * FROM bookings WHERE id IN (id_of('booking', 2), id_of('booking', 7), id_of('booking', 8));
  DELETE FROM bookings WHERE id IN (SELECT id FROM kept);
  EXECUTE ddl;
  UPDATE pg_index SET indisready = false WHERE indexrelid = 'one'::regclass;
  INSERT INTO bookings SELECT * FROM kept;
  UPDATE pg_index SET indisready = true WHERE indexrelid = 'one'::regclass;
  RETURN concat_ws(', ',
    (SELECT CASE count(*) WHEN 0 THEN 'proven' ELSE count(*) || ' slots' END FROM cusown_double_bookings('same_slot')),
    (SELECT 'verified ' || count(*) FROM cusown_double_bookings('same_slot', verify => true)));
END $$;
CREATE TABLE tried (place serial, ddl text);
INSERT INTO tried (ddl) VALUES  -- the first two prove it
  ('CREATE UNIQUE INDEX one ON bookings (slot_id) WHERE status = ''confirmed'''),
  ('CREATE UNIQUE INDEX one ON bookings (slot_id) WHERE status IN (''confirmed'', ''rejected'')'),
  ('CREATE UNIQUE INDEX one ON bookings (slot_id, business_id) WHERE status = ''confirmed'''),
  ('CREATE UNIQUE INDEX one ON bookings (slot_id, id) WHERE status = ''confirmed'''),
  ('CREATE UNIQUE INDEX one ON bookings (slot_id) WHERE status = ''confirmed'' AND no_show'),
  ('CREATE UNIQUE INDEX one ON bookings (slot_id) WHERE status = ''pending'' AND false'),
  ('CREATE INDEX one ON bookings (slot_id) WHERE status = ''confirmed''');
CREATE PROCEDURE try_all() LANGUAGE plpgsql AS $$
DECLARE
  t record;
BEGIN
  FOR t IN SELECT * FROM tried ORDER BY place LOOP
    BEGIN
      RAISE SQLSTATE 'ZZ000' USING MESSAGE = force(t.ddl);
    EXCEPTION WHEN SQLSTATE 'ZZ000' THEN
      RAISE WARNING '%: %', t.ddl, SQLERRM;
    END;
  END LOOP;
END $$;
CALL try_all();
-- an invalid one proves nothing
CREATE UNIQUE INDEX CONCURRENTLY one ON bookings (slot_id) WHERE status = 'confirmed'; -- fails
SELECT slot FROM doubles('same_slot');
DROP INDEX one;

-- ---------- overlap: capacity 1 ----------
TRUNCATE bookings, slots CASCADE;
CALL add_business(3);
CALL add_hour(1, 3, '2024-05-01 10:00');
CALL add_hour(2, 3, '2024-05-01 11:00');                  -- half-open: they only touch
CALL add_hour(3, 3, '2024-05-02 10:00', 90);              -- its own duration is longer
CALL add_hour(4, 3, '2024-05-02 11:00');
CALL add_hour(5, 3, '2024-05-03 10:00', 30);              -- its slot is longer
CALL add_slot(6, 3, '2024-05-03 10:45', '11:15');
CALL add_booking(6, 6);
CALL add_hour(7, 3, '2024-05-04 23:30');                  -- ends the next day
CALL add_hour(8, 3, '2024-05-05 00:15');
CALL add_slot(9, 3, '2024-05-06 12:00', '12:00');         -- ends where it begins: a day later
CALL add_booking(9, 9);
CALL add_hour(10, 3, '2024-05-07 11:00');
CALL add_hour(11, 3, '2024-05-07 12:00');                 -- touches both
CALL add_hour(12, 3, '2024-05-08 10:00', -60);            -- makes no sense: the slot's
CALL add_hour(13, 3, '2024-05-08 11:00');
SELECT bookings, starts, finding FROM doubles('overlap');
-- each overlaps only its neighbours
CALL add_hour(21, 3, '2024-06-01 10:00');
CALL add_hour(22, 3, '2024-06-01 10:30', 90);
CALL add_hour(23, 3, '2024-06-01 11:30', 60);
CALL add_hour(24, 3, '2024-06-01 12:15');
-- two, with a time in between that one can serve
CALL add_hour(31, 3, '2024-06-02 10:00', 300);
CALL add_hour(32, 3, '2024-06-02 11:00');
CALL add_hour(33, 3, '2024-06-02 13:00');
-- one: two leave as two come, and at no time can they be served
CALL add_hour(41, 3, '2024-06-03 10:00');
CALL add_slot(42, 3, '2024-06-03 10:15', '11:00');
CALL add_booking(42, 42);
CALL add_slot(43, 3, '2024-06-03 11:00', '11:45');
CALL add_booking(43, 43);
CALL add_hour(44, 3, '2024-06-03 11:00');
SELECT bookings, starts, finding FROM doubles('overlap') WHERE starts > '2024-06-01';
-- two on one slot are there at once, too; who is pending or cancelled is not there
CALL add_booking(51, 41);
CALL add_booking(52, 42, 'pending');
CALL add_booking(53, 42, 'cancelled');
SELECT bookings, finding FROM doubles('overlap') WHERE starts > '2024-06-03';
\x on
SELECT * FROM cusown_double_bookings('overlap') WHERE starts > '2024-06-03';
\x off

-- more chairs; none is 1
TRUNCATE bookings, slots CASCADE;
CALL add_business(4, 2);
CALL add_hour(1, 4, '2024-05-01 10:00');
CALL add_hour(2, 4, '2024-05-01 10:15');
CALL add_hour(3, 4, '2024-05-01 11:00');
CALL add_hour(4, 4, '2024-05-01 11:10');
CALL add_hour(5, 4, '2024-05-01 11:20');
CALL add_hour(6, 4, '2024-05-01 11:30');
SELECT bookings, starts, finding FROM doubles('overlap');
UPDATE businesses SET concurrent_booking_capacity = 4 WHERE id = id_of('business', 4);
SELECT bookings, starts, finding FROM doubles('overlap');
ALTER TABLE businesses ALTER concurrent_booking_capacity DROP NOT NULL;
UPDATE businesses SET concurrent_booking_capacity = NULL WHERE id = id_of('business', 4);
SELECT bookings, starts, finding FROM doubles('overlap');
-- nor is one that makes no sense
ALTER TABLE businesses DROP CONSTRAINT businesses_concurrent_booking_capacity_check;
UPDATE businesses SET concurrent_booking_capacity = 0 WHERE id = id_of('business', 4);
SELECT bookings, starts, finding FROM doubles('overlap');
-- businesses do not stand in each other's way
CALL add_business(5);
CALL add_hour(7, 5, '2024-05-01 10:00');
CALL add_hour(8, 5, '2024-05-01 10:59');
SELECT business_, bookings FROM doubles('overlap');
SELECT business_, bookings FROM doubles('overlap', id_of('business', 5));
SELECT business_, bookings FROM doubles('overlap', id_of('business', 1));
-- times at the ends of the calendar are no reason to fail
CALL add_slot(9, 5, '2024-05-01 12:00', '13:00');
CALL add_booking(9, 9, minutes => 2147483647);
CALL add_slot(10, 5, 'epoch', '13:00');
UPDATE slots SET date = 'infinity' WHERE id = id_of('slot', 10);
CALL add_booking(10, 10);
CALL add_slot(11, 5, 'epoch', '13:00');
UPDATE slots SET date = '294276-12-31', start_time = '23:00', end_time = '22:00' WHERE id = id_of('slot', 11);
CALL add_booking(11, 11);
CALL add_slot(12, 5, 'epoch', '13:00');
UPDATE slots SET date = '5874897-12-31' WHERE id = id_of('slot', 12);
CALL add_booking(12, 12);
SELECT bookings, starts, finding FROM doubles('overlap', id_of('business', 5));

-- the same as an SQL query over each pair of moments says, for what chance gives
TRUNCATE bookings, slots CASCADE;
UPDATE businesses SET concurrent_booking_capacity = 2 WHERE id = id_of('business', 4);
SELECT setseed(0.4) \g /dev/null
DO $$
BEGIN
  FOR n IN 1 .. 400 LOOP
    CALL double_app.add_slot(n, 3 + n % 3, timestamp '2024-05-01' + n * interval '1 ms' + (random() * 2000)::int * interval '15 minutes',
                  (time '00:00' + (random() * 95)::int * interval '15 minutes'));
    CALL double_app.add_booking(n, n, CASE WHEN random() < 0.9 THEN 'confirmed' ELSE 'pending' END, (random() * 300)::int);
  END LOOP;
  UPDATE double_app.slots SET start_time = date_trunc('minute', start_time);
END $$;
CREATE VIEW appointment AS
SELECT b.id, b.business_id, s.date + s.start_time AS starts,
       s.date + s.start_time + greatest(make_interval(mins => b.total_duration_minutes),
         CASE WHEN s.end_time > s.start_time THEN s.end_time - s.start_time
              ELSE s.end_time - s.start_time + interval '1 day' END) AS ends,
       z.concurrent_booking_capacity AS capacity
FROM bookings b JOIN slots s ON s.id = b.slot_id JOIN businesses z ON z.id = b.business_id
WHERE b.status = 'confirmed';
CREATE VIEW expected AS
WITH moment AS (SELECT business_id, starts AS at, capacity FROM appointment UNION SELECT business_id, ends, capacity FROM appointment),
load AS (SELECT m.business_id, m.at, (SELECT count(*) FROM appointment a
                 WHERE a.business_id = m.business_id AND a.starts <= m.at AND a.ends > m.at) > m.capacity AS over
         FROM moment m),
edge AS (SELECT *, over AND NOT coalesce(lag(over) OVER w, false) AS begins FROM load WINDOW w AS (PARTITION BY business_id ORDER BY at)),
piece AS (SELECT *, count(*) FILTER (WHERE begins) OVER w AS nr, lead(at) OVER w AS next FROM edge
          WINDOW w AS (PARTITION BY business_id ORDER BY at)),
stretch AS (SELECT business_id, nr, min(at) AS starts, max(next) AS ends FROM piece WHERE over GROUP BY 1, 2)
SELECT s.business_id, s.starts, (SELECT array_agg(a.id ORDER BY a.starts, a.id) FROM appointment a
        WHERE a.business_id = s.business_id AND a.starts < s.ends AND a.ends > s.starts) AS booking_ids
FROM stretch s;
SELECT count(*) > 10 AS some, max(cardinality(booking_ids)) > 4 AS long_ones FROM expected;
SELECT count(*) FROM (
  (SELECT business_id, starts, booking_ids FROM cusown_double_bookings('overlap') EXCEPT TABLE expected)
  UNION ALL
  (TABLE expected EXCEPT SELECT business_id, starts, booking_ids FROM cusown_double_bookings('overlap'))) d;

-- ---------- slot_state ----------
TRUNCATE bookings, slots CASCADE;
CALL add_slot(1, 1, '2024-05-01 10:00', '11:00', 'available');
CALL add_booking(1, 1);                                   -- confirmed on an available one
CALL add_slot(2, 1, '2024-05-02 10:00', '11:00', 'reserved', '1 hour');
CALL add_booking(2, 2);                                   -- confirmed on a reserved one
CALL add_slot(3, 1, '2024-05-03 10:00', '11:00', 'reserved');
CALL add_booking(3, 3);                                   -- confirmed on one that is reserved for ever
CALL add_slot(4, 1, '2024-05-04 10:00', '11:00', 'booked');
CALL add_booking(4, 4, 'cancelled');                      -- booked for nobody
CALL add_slot(5, 2, '2024-05-05 10:00', '11:00', 'booked');
CALL add_slot(6, 2, '2024-05-06 10:00', '11:00', 'reserved');
CALL add_booking(6, 6, 'pending');                        -- reserved for ever
-- normal
CALL add_slot(11, 1, '2024-05-11 10:00', '11:00', 'available');
CALL add_booking(11, 11, 'pending');
CALL add_slot(12, 1, '2024-05-12 10:00', '11:00', 'booked');
CALL add_booking(12, 12, 'pending');
CALL add_slot(13, 1, '2024-05-13 10:00', '11:00', 'reserved', '1 hour');
CALL add_slot(14, 1, '2024-05-14 10:00', '11:00', 'reserved', '-1 hour');
CALL add_slot(15, 1, '2024-05-15 10:00', '11:00', 'booked');
CALL add_booking(15, 15);
CALL add_slot(16, 1, '2024-05-16 10:00', '11:00', 'available');
CALL add_slot(17, 1, '2024-05-17 10:00', '11:00', 'booked', '1 hour');
SELECT slot, bookings, starts, finding FROM doubles('slot_state');
SELECT slot FROM doubles('slot_state', id_of('business', 2));
\x on
SELECT * FROM cusown_double_bookings('slot_state') WHERE slot_id IN (id_of('slot', 1), id_of('slot', 6));
\x off
-- all kinds in one call, in their order
CALL add_booking(16, 15);
SELECT kind_, slot, bookings FROM doubles();
SELECT kind_, count(*) FROM doubles(business => id_of('business', 1)) GROUP BY 1 ORDER BY 1;

-- ---------- what is refused ----------
SELECT * FROM cusown_double_bookings('double'); -- fails
SELECT * FROM cusown_double_bookings(NULL); -- fails
SELECT * FROM cusown_double_bookings(verify => NULL); -- fails
BEGIN READ ONLY;
SELECT count(*) FROM cusown_double_bookings();
ROLLBACK;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT count(*) FROM cusown_double_bookings();
ROLLBACK;
CREATE ROLE regress_double_blind;
GRANT USAGE ON SCHEMA double_app TO regress_double_blind;
GRANT ALL ON ALL TABLES IN SCHEMA double_app TO regress_double_blind;
SET ROLE regress_double_blind;
SELECT count(*) FROM cusown_double_bookings(); -- fails
RESET ROLE;
SELECT cusown_grant('regress_double_blind', 'monitor') \g /dev/null
SET ROLE regress_double_blind;
SELECT count(*) FROM cusown_double_bookings(); -- fails
RESET ROLE;
ALTER ROLE regress_double_blind BYPASSRLS;
SET ROLE regress_double_blind;
SELECT count(*) FROM cusown_double_bookings();
RESET ROLE;

-- ---------- the minimal application: no business, absolute times ----------
SELECT count(*) > 0 AS attached FROM cusown_attach('double_shop', :'minimal_mapping');
SET cusown_ops.app_schema = 'double_shop';
DROP INDEX double_shop.reservation_one_confirmed;
INSERT INTO double_shop.time_slot (ref, state, held_until, starts_at, ends_at)
SELECT id_of('slot', n), CASE n WHEN 2 THEN 'available' WHEN 4 THEN 'reserved' ELSE 'booked' END, NULL,
       starts, starts + '1 hour'
FROM (VALUES (1, timestamptz '2024-05-01 10:00Z'), (2, '2024-05-01 10:30Z'), (3, '2024-05-02 10:00Z'), (4, NULL)) v (n, starts);
INSERT INTO double_shop.reservation (ref, state, slot_ref)
SELECT id_of('booking', n), 'confirmed', id_of('slot', slot) FROM (VALUES (1, 1), (2, 1), (3, 2)) v (n, slot);
SET client_min_messages = notice;
SELECT kind_, business_, slot, bookings, starts, finding FROM doubles();
SET client_min_messages = warning;
SELECT * FROM cusown_double_bookings('overlap'); -- fails
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM cusown_double_bookings('same_slot', id_of('business', 1)); -- fails
SELECT * FROM cusown_double_bookings('slot_state', id_of('business', 1)); -- fails
-- whose a slot is, is enough to tell what overlaps; capacity is 1 then
ALTER TABLE double_shop.time_slot ADD shop uuid;
UPDATE double_shop.time_slot SET shop = id_of('business', 1);
SELECT count(*) > 0 AS attached FROM cusown_attach('double_shop', jsonb_set(:'minimal_mapping',
  '{slots,columns,business_id}', '"shop"'));
SELECT kind_, business_, slot, bookings, starts, finding FROM doubles();
-- one that takes no time stands in nobody's way
INSERT INTO double_shop.time_slot (ref, state, starts_at, ends_at, shop)
VALUES (id_of('slot', 5), 'booked', '2024-05-01 10:40Z', '2024-05-01 10:40Z', id_of('business', 1));
INSERT INTO double_shop.reservation (ref, state, slot_ref) VALUES (id_of('booking', 5), 'confirmed', id_of('slot', 5));
SELECT kind_, slot, bookings FROM doubles('overlap');
SELECT kind_, business_, slot FROM doubles(business => id_of('business', 1));
SELECT kind_, business_, slot FROM doubles(business => id_of('business', 2));
-- no end of a hold is bound: nothing is said of it
SELECT count(*) > 0 AS attached FROM cusown_attach('double_shop', (:'minimal_mapping')::jsonb #- '{slots,columns,reserved_until}');
SELECT slot, finding FROM doubles('slot_state');
-- what has no id is left out
ALTER TABLE double_shop.time_slot DROP CONSTRAINT time_slot_pkey CASCADE, ALTER ref DROP NOT NULL;
ALTER TABLE double_shop.reservation DROP CONSTRAINT reservation_pkey CASCADE, ALTER ref DROP NOT NULL;
INSERT INTO double_shop.time_slot (state) VALUES ('booked'), ('reserved');
INSERT INTO double_shop.reservation (state) VALUES ('confirmed'), ('confirmed');
SELECT kind_, slot, bookings FROM doubles();
RESET cusown_ops.app_schema;

DROP SCHEMA double_app, double_shop CASCADE;
DROP EXTENSION cusown_ops;
DROP OWNED BY regress_double_blind;
DROP ROLE regress_double_blind;
