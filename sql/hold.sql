-- Shows holds that are over: what becomes of their slots, what is left alone,
-- the worklist of slots that are reserved without an end, and what is refused.
\set ON_ERROR_STOP 0
\getenv abs_srcdir PG_ABS_SRCDIR
\set app :abs_srcdir '/test/fixture/cusown_app.sql'
\set minimal :abs_srcdir '/test/fixture/app_minimal.sql'
SET client_min_messages = warning;
CREATE EXTENSION cusown_ops;
SELECT * FROM cusown_release_expired_holds(); -- fails
\set ECHO none
\set schema hold_app
\i :app
\set schema hold_shop
\i :minimal
\set ECHO all
SET search_path = hold_app, public;
SELECT count(*) > 0 AS attached FROM cusown_attach('hold_app');

-- a slot in the state that a case asks for, with bookings of these statuses
CREATE FUNCTION id_of(kind text, n int) RETURNS uuid
LANGUAGE sql IMMUTABLE
RETURN rpad(CASE kind WHEN 'slot' THEN 'a' ELSE 'b' END || lpad(n::text, 7, '0'), 32, '0')::uuid;
INSERT INTO businesses (id, salon_name, owner_name, whatsapp_number,
  opening_time, closing_time, slot_duration, booking_link)
VALUES (id_of('booking', 0), 'Salon', 'Owner', '+910000000000',
  '09:00', '18:00', 30, 'salon');
CREATE PROCEDURE add_case(n int, slot_status text, hold interval, VARIADIC booking text[] DEFAULT '{}')
LANGUAGE sql AS $$
  INSERT INTO slots (id, business_id, date, start_time, end_time, status, reserved_until, updated_at)
  VALUES (id_of('slot', n), id_of('booking', 0), current_date + n, '10:00', '10:30',
          slot_status, now() + hold, now() - interval '3 days');
  INSERT INTO bookings (id, business_id, slot_id, customer_name, customer_phone,
                        booking_id, status, cancelled_at)
  SELECT id_of('booking', n * 10 + i::int), id_of('booking', 0), id_of('slot', n),
         'Customer', '+910000000001', 'CODE' || n || '-' || i, s,
         CASE s WHEN 'cancelled' THEN now() END
  FROM unnest(booking) WITH ORDINALITY AS b (s, i);
$$;
CREATE VIEW slots_now AS
SELECT left(s.id::text, 8) AS slot, s.status,
       CASE WHEN s.reserved_until > now() THEN 'live' WHEN s.reserved_until IS NOT NULL THEN 'over' END AS hold,
       s.updated_at > now() - interval '1 minute' AS touched,
       (SELECT string_agg(b.status, ' ' ORDER BY b.id) FROM bookings b WHERE b.slot_id = s.id) AS bookings
FROM slots s ORDER BY s.id;
CREATE VIEW worklist AS
SELECT kind, entity, left(entity_id::text, 8) AS slot, runbook, sqlstate, finding, times,
       date_trunc('second', next_try - last_seen) AS backed_off, closed_by IS NOT NULL AS closed,
       nullif(closed_by, current_user) AS closed_by, note
FROM cusown_ops.attention ORDER BY entity_id;

CALL add_case(1, 'reserved', '-50 minutes');                          -- nobody on it
CALL add_case(2, 'reserved', '-40 minutes', 'pending');               -- may still be confirmed
CALL add_case(3, 'reserved', '-30 minutes', 'confirmed');             -- was never booked
CALL add_case(4, 'reserved', '-20 minutes', 'pending', 'confirmed', 'pending');
CALL add_case(5, 'reserved', '-10 minutes', 'cancelled', 'rejected');
CALL add_case(6, 'reserved', '10 minutes');                           -- live
CALL add_case(7, 'reserved', '10 minutes', 'confirmed');              -- live
CALL add_case(8, 'reserved', NULL);                                   -- for ever
CALL add_case(9, 'reserved', NULL, 'confirmed');                      -- for ever
CALL add_case(10, 'booked', '-10 minutes', 'confirmed');              -- no longer a hold
CALL add_case(11, 'available', '-10 minutes');                        -- no longer a hold
CALL add_case(12, 'reserved', '0');                                   -- over
CALL add_case(13, 'reserved', '0');                                   -- never over
UPDATE slots SET reserved_until = '-infinity' WHERE id = id_of('slot', 12);
UPDATE slots SET reserved_until = 'infinity' WHERE id = id_of('slot', 13);
UPDATE slots SET updated_at = now() - interval '3 days';

-- the dry run tells the same and writes nothing
SELECT * FROM cusown_release_expired_holds(dry_run => true);
SELECT status, bool_or(touched) AS touched, count(*) FROM slots_now GROUP BY 1 ORDER BY 1;
SELECT count(*) AS audited, (SELECT count(*) FROM cusown_ops.attention) AS worklist,
       (SELECT count(*) FROM cusown_ops.change) AS changes
FROM audit_logs;

-- the run
SELECT * FROM cusown_release_expired_holds();
TABLE slots_now;
SELECT action_type, entity_type, left(entity_id::text, 8) AS slot, old_data, new_data,
       metadata, admin_user_id, actor_role, description
FROM audit_logs ORDER BY entity_id;
SELECT count(*) AS breaks FROM verify_audit_chain();
SELECT verb, source, entity, left(entity_id::text, 8) AS id, left(slot_id::text, 8) AS slot, from_status, to_status
FROM cusown_ops.change ORDER BY entity_id;
TABLE worklist;

-- again: nothing is done twice, and what is on the worklist is left alone
SELECT * FROM cusown_release_expired_holds();
TABLE worklist;
-- until next_try
UPDATE cusown_ops.attention SET next_try = now() - interval '1 second';
SELECT * FROM cusown_release_expired_holds();
SELECT * FROM cusown_release_expired_holds();
SELECT slot, times, backed_off FROM worklist;
-- not touched by any of it
SELECT slot, status, hold, touched FROM slots_now WHERE slot IN ('a0000008', 'a0000009');

-- mended: one got an end, which is over; the other one is closed by hand
UPDATE slots SET reserved_until = now() - interval '1 minute' WHERE id = id_of('slot', 8);
SELECT cusown_attention_resolve(id, 'asked the salon') FROM cusown_ops.attention
WHERE entity_id = id_of('slot', 9);
SELECT * FROM cusown_release_expired_holds();
SELECT slot, times, closed, closed_by, note FROM worklist;
SELECT action_type, left(entity_id::text, 8) AS slot, metadata - 'attention_id' AS metadata
FROM audit_logs WHERE action_type = 'data_corrected';
-- by hand means for a day
SELECT attention FROM cusown_release_expired_holds();
UPDATE cusown_ops.attention SET next_try = now() - interval '1 second';
SELECT attention FROM cusown_release_expired_holds();
SELECT slot, times, closed FROM worklist;
-- gone with its slot
DELETE FROM slots WHERE id = id_of('slot', 9);
SELECT attention FROM cusown_release_expired_holds();
SELECT slot, times, closed, closed_by FROM worklist;

-- max_rows: what ended first goes first, in windows of any size
DO $$ BEGIN
  FOR n IN 21 .. 27 LOOP
    CALL add_case(n, 'reserved', make_interval(mins => n - 60),
                  VARIADIC CASE WHEN n % 2 = 0 THEN '{confirmed}'::text[] ELSE '{}' END);
  END LOOP;
END $$;
SELECT * FROM cusown_release_expired_holds(max_rows => 3);
SELECT string_agg(slot, ' ') AS left_over FROM slots_now WHERE status = 'reserved' AND hold = 'over';
SET cusown_ops.batch_size = 1;
SELECT * FROM cusown_release_expired_holds(max_rows => 2);
SELECT * FROM cusown_release_expired_holds(max_rows => 2);
RESET cusown_ops.batch_size;
SELECT slot, status, bookings FROM slots_now WHERE slot BETWEEN 'a0000021' AND 'a0000027';

-- as_of: to the microsecond; ahead is for dry runs
BEGIN;
UPDATE slots SET reserved_until = '2024-01-31 12:00+00' WHERE id = id_of('slot', 6);
SELECT released FROM cusown_release_expired_holds(as_of => '2024-01-31 11:59:59.999999+00');
SELECT released FROM cusown_release_expired_holds(as_of => '2024-01-31 12:00:00+00');
ROLLBACK;
SELECT released, booked FROM cusown_release_expired_holds(as_of => now() + interval '1 hour', dry_run => true);
SELECT released, booked FROM cusown_release_expired_holds(as_of => now() + interval '1 hour'); -- fails
SELECT released, booked FROM cusown_release_expired_holds(as_of => now() - interval '1 year');

-- other arguments that are refused
SELECT * FROM cusown_release_expired_holds(max_rows => 0); -- fails
SELECT * FROM cusown_release_expired_holds(max_rows => NULL); -- fails
SELECT * FROM cusown_release_expired_holds(source => 'me'); -- fails
SELECT * FROM cusown_release_expired_holds(source => NULL); -- fails
SELECT * FROM cusown_release_expired_holds(as_of => NULL); -- fails
SELECT * FROM cusown_release_expired_holds(dry_run => NULL); -- fails
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT * FROM cusown_release_expired_holds(); -- fails
ROLLBACK;
BEGIN READ ONLY;
SELECT * FROM cusown_release_expired_holds(); -- fails
ROLLBACK;

-- a role that row-level security blinds; one that sees all; an unattended superuser
CREATE ROLE regress_hold_app;
GRANT USAGE ON SCHEMA hold_app TO regress_hold_app;
GRANT ALL ON ALL TABLES IN SCHEMA hold_app TO regress_hold_app;
SELECT cusown_grant('regress_hold_app', 'application') \g /dev/null
SET ROLE regress_hold_app;
SELECT * FROM cusown_release_expired_holds(); -- fails
RESET ROLE;
ALTER ROLE regress_hold_app BYPASSRLS;
CALL add_case(31, 'reserved', '-1 minute');
SET ROLE regress_hold_app;
SELECT * FROM cusown_release_expired_holds(source => 'application');
RESET ROLE;
ALTER TABLE slots OWNER TO regress_hold_app;
SELECT * FROM cusown_release_expired_holds(source => 'cron'); -- fails
ALTER TABLE slots OWNER TO CURRENT_USER;

-- a trigger that keeps a slot as it is: neither counted nor audited
CALL add_case(32, 'reserved', '-1 minute');
CREATE FUNCTION keep_it() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER keep_it BEFORE UPDATE ON slots FOR EACH ROW
WHEN (OLD.id = 'a0000032-0000-0000-0000-000000000000') EXECUTE FUNCTION keep_it();
SELECT * FROM cusown_release_expired_holds();
SELECT slot, status, hold FROM slots_now WHERE slot = 'a0000032';
SELECT count(*) AS audited, (SELECT count(*) FROM cusown_ops.change WHERE entity_id = id_of('slot', 32)) AS changes
FROM audit_logs WHERE entity_id = id_of('slot', 32);
SELECT count(*) AS breaks FROM verify_audit_chain();

-- the minimal application, by its own names
SELECT count(*) > 0 AS attached FROM cusown_attach('hold_shop', :'minimal_mapping');
SET cusown_ops.app_schema = 'hold_shop';
INSERT INTO hold_shop.time_slot (ref, state, held_until) VALUES
  (id_of('slot', 1), 'reserved', now() - interval '2 minutes'),
  (id_of('slot', 2), 'reserved', now() - interval '1 minute'),
  (id_of('slot', 3), 'reserved', now() + interval '1 minute'),
  (id_of('slot', 4), 'reserved', NULL),
  (id_of('slot', 5), NULL, now() - interval '1 minute');
INSERT INTO hold_shop.reservation (ref, state, slot_ref) VALUES (id_of('booking', 2), 'confirmed', id_of('slot', 2));
SELECT * FROM cusown_release_expired_holds();
SELECT left(ref::text, 8) AS slot, state, held_until IS NOT NULL AS hold FROM hold_shop.time_slot ORDER BY 1;
SELECT verb, object_type, left(object_ref::text, 8) AS slot, detail FROM hold_shop.journal ORDER BY object_ref;
SELECT kind, slot FROM worklist WHERE slot = 'a0000004';
-- without a column for the end of a hold nothing can be judged
SELECT count(*) > 0 AS attached FROM cusown_attach('hold_shop', (:'minimal_mapping')::jsonb #- '{slots,columns,reserved_until}');
SELECT * FROM cusown_release_expired_holds(); -- fails
\echo :LAST_ERROR_SQLSTATE
CALL cusown_run_job('release_expired_holds'); -- fails
\echo :LAST_ERROR_SQLSTATE
RESET cusown_ops.app_schema;

DROP SCHEMA hold_app, hold_shop CASCADE;
DROP EXTENSION cusown_ops;
DROP OWNED BY regress_hold_app;
DROP ROLE regress_hold_app;
