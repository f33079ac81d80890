-- Shows double bookings being resolved: by each policy, by hand, where times
-- overlap, what cannot be cancelled, and slots that are brought back in line.
\set ON_ERROR_STOP 0
\getenv abs_srcdir PG_ABS_SRCDIR
\set app :abs_srcdir '/test/fixture/cusown_app.sql'
\set minimal :abs_srcdir '/test/fixture/app_minimal.sql'
SET client_min_messages = warning;
CREATE EXTENSION cusown_ops;
SELECT * FROM cusown_resolve_double_bookings(); -- fails
\echo :LAST_ERROR_SQLSTATE
\set ECHO none
\set schema resolve_app
\i :app
\set schema resolve_shop
\i :minimal
\set ECHO all
SET search_path = resolve_app, public;
SELECT count(*) > 0 AS attached FROM cusown_attach('resolve_app');

CREATE FUNCTION id_of(kind text, n int) RETURNS uuid
LANGUAGE sql IMMUTABLE
RETURN rpad(CASE kind WHEN 'slot' THEN 'a' WHEN 'booking' THEN 'b' WHEN 'payment' THEN 'f' ELSE 'c' END || lpad(n::text, 7, '0'), 32, '0')::uuid;
CREATE FUNCTION short(id uuid) RETURNS text LANGUAGE sql IMMUTABLE
RETURN left(id::text, 1) || ltrim(substr(id::text, 2, 7), '0');
INSERT INTO businesses (id, salon_name, owner_name, whatsapp_number, opening_time, closing_time, slot_duration, booking_link)
VALUES (id_of('business', 1), 'Salon', 'Owner', '+910000000000', '09:00', '18:00', 30, 'salon');
CREATE PROCEDURE add_slot(n int, as_is text DEFAULT 'booked', hold interval DEFAULT NULL) LANGUAGE sql AS $$
  INSERT INTO slots (id, business_id, date, start_time, end_time, status, reserved_until)
  VALUES (id_of('slot', n), id_of('business', 1), date '2024-05-01' + n, '10:00', '11:00', as_is, now() + hold);
$$;
-- made: hours after some day; confirmed: likewise, as audit rows tell
CREATE PROCEDURE add_booking(n int, slot int, made int, VARIADIC confirmed int[] DEFAULT '{}') LANGUAGE sql AS $$
  INSERT INTO bookings (id, business_id, slot_id, customer_name, customer_phone, booking_id, status, created_at)
  VALUES (id_of('booking', n), id_of('business', 1), id_of('slot', slot), 'Customer', '+910000000001', 'CODE' || n,
          'confirmed', timestamptz '2024-01-01 00:00Z' + made * interval '1 hour');
  INSERT INTO audit_logs (action_type, entity_type, entity_id, created_at)
  SELECT 'booking_confirmed', 'booking', id_of('booking', n), timestamptz '2024-01-01 00:00Z' + c * interval '1 hour'
  FROM unnest(confirmed) c;
$$;
CREATE PROCEDURE add_payment(n int, booking int, as_is payment_status) LANGUAGE sql AS $$
  INSERT INTO payments (id, booking_id, provider, provider_payment_id, amount_cents, status)
  VALUES (id_of('payment', n), id_of('booking', booking), 'razorpay', 'pay_' || n, 100, as_is);
$$;
CREATE VIEW bookings_now AS
SELECT short(b.slot_id) AS slot, s.status AS slot_status, short(b.id) AS booking, b.status, b.cancelled_by AS by,
       b.cancellation_reason AS reason, b.cancelled_at = now() AS now
FROM bookings b JOIN slots s ON s.id = b.slot_id ORDER BY s.id, b.id;
CREATE VIEW worklist AS
SELECT kind, entity, short(entity_id) AS id, runbook, sqlstate, finding, times,
       CASE closed_by WHEN 'recheck' THEN 'recheck' WHEN current_user THEN 'by hand' END AS closed
FROM cusown_ops.attention ORDER BY kind, entity_id;
CREATE FUNCTION resolved(policy text DEFAULT 'first_confirmed', slot uuid DEFAULT NULL, kind text DEFAULT 'same_slot', dry_run boolean DEFAULT false)
RETURNS TABLE (slot_ text, booking text, action text, reason text, refund_due boolean) LANGUAGE sql AS $$
  SELECT short(slot_id), short(booking_id), action, reason, refund_due
  FROM cusown_resolve_double_bookings(policy, slot, kind, dry_run)
$$;
CREATE PROCEDURE start_over() LANGUAGE plpgsql AS $$
BEGIN
  SET LOCAL session_replication_role = replica;
  DELETE FROM audit_logs;
  DELETE FROM payments;
  DELETE FROM bookings;
  DELETE FROM slots;
  DELETE FROM booking_lifecycle_audit;
  SET LOCAL session_replication_role = origin;
  TRUNCATE cusown_ops.attention, cusown_ops.change;
END $$;

-- nothing is doubled
SELECT * FROM cusown_resolve_double_bookings();
DROP INDEX idx_bookings_one_confirmed_per_slot;
SELECT * FROM cusown_resolve_double_bookings();

-- ---------- policies ----------
CREATE PROCEDURE make_doubles() LANGUAGE plpgsql AS $$
BEGIN
  CALL start_over();
  -- made first, confirmed second; the third was confirmed first, but undone and confirmed again
  CALL add_slot(1);
  CALL add_booking(1, 1, 1, 30);
  CALL add_booking(2, 1, 2, 20);
  CALL add_booking(3, 1, 3, 10, 40);
  -- nobody knows when: by when they were made
  CALL add_slot(2);
  CALL add_booking(4, 2, 5);
  CALL add_booking(5, 2, 4);
  INSERT INTO audit_logs (action_type, entity_type, entity_id, created_at)
  VALUES ('booking_confirmed', 'system', id_of('booking', 5), '2024-03-01');
  -- one of them is known, later than the other one was made
  CALL add_slot(3);
  CALL add_booking(6, 3, 1, 9);
  CALL add_booking(7, 3, 8);
  -- ties: by when they were made, then by id
  CALL add_slot(4);
  CALL add_booking(8, 4, 2, 9);
  CALL add_booking(9, 4, 1, 9);
  CALL add_slot(5);
  CALL add_booking(11, 5, 1);
  CALL add_booking(10, 5, 1);
  -- alone
  CALL add_slot(6);
  CALL add_booking(12, 6, 1);
  -- paid: the later one; not really paid; both
  CALL add_payment(1, 3, 'completed');
  CALL add_payment(2, 4, 'failed');
  CALL add_payment(3, 4, 'processing');
  CALL add_payment(4, 8, 'completed');
  CALL add_payment(5, 9, 'completed');
  CALL add_payment(6, 7, 'refunded');
END $$;
CALL make_doubles();
-- the dry run tells the same and writes nothing
SELECT * FROM resolved(dry_run => true);
SELECT count(*) FROM bookings WHERE status <> 'confirmed';
SELECT (SELECT count(*) FROM audit_logs WHERE action_type <> 'booking_confirmed') AS audited, (SELECT count(*) FROM cusown_ops.attention) AS worklist,
       (SELECT count(*) FROM cusown_ops.change) AS changes, (SELECT count(*) FROM booking_lifecycle_audit) AS lifecycle;
SELECT * FROM resolved('first_created', dry_run => true);
SELECT * FROM resolved('paid_first', dry_run => true);
CREATE TABLE payments_before AS SELECT id, to_jsonb(p) AS payment FROM payments p;

BEGIN;
SELECT * FROM resolved();
TABLE bookings_now;
COMMIT;
SELECT action_type, entity_type, short(entity_id) AS id, old_data, new_data, metadata, admin_user_id, actor_role, description
FROM audit_logs WHERE action_type <> 'booking_confirmed' ORDER BY entity_id;
SELECT short(booking_id) AS booking, short(old_slot_id) AS slot, action_type, actor_type FROM booking_lifecycle_audit ORDER BY 1;
SELECT verb, source, entity, short(entity_id) AS id, short(slot_id) AS slot, from_status, to_status FROM cusown_ops.change ORDER BY entity_id;
SELECT count(*) AS touched FROM payments p JOIN payments_before b ON b.id = p.id WHERE to_jsonb(p) <> b.payment;
TABLE worklist;
-- each slot is left with one, and again nothing is done
SELECT slot_id FROM bookings WHERE status = 'confirmed' GROUP BY 1 HAVING count(*) <> 1;
SELECT * FROM cusown_resolve_double_bookings();
SELECT count(*) FROM cusown_double_bookings('same_slot', verify => true);
SELECT times FROM worklist;
-- the refund was made: the next run closes the entry
UPDATE payments SET status = 'refunded' WHERE id = id_of('payment', 1);
SELECT * FROM cusown_resolve_double_bookings();
SELECT kind, id, closed FROM worklist;
-- what is still a case for a refund, whoever opened it
CALL make_doubles();
CALL add_slot(7);
INSERT INTO bookings (id, business_id, slot_id, customer_name, customer_phone, booking_id, status, cancelled_at)
SELECT id_of('booking', n), id_of('business', 1), id_of('slot', slot), 'Customer', '+910000000001', 'CODE' || n, status,
       CASE status WHEN 'cancelled' THEN now() END
FROM (VALUES (31, 6, 'pending'), (32, 7, 'pending'), (33, 7, 'rejected'), (34, 7, 'cancelled'), (35, 7, 'cancelled'), (36, 6, 'pending')) v (n, slot, status);
INSERT INTO payments (id, booking_id, provider, provider_payment_id, amount_cents, status)
SELECT id_of('payment', n), id_of('booking', n), 'razorpay', 'pay_' || n, 100, CASE WHEN n > 34 THEN 'failed' ELSE 'completed' END::payment_status
FROM unnest('{31,32,33,34,35,36,12}'::int[]) n;
INSERT INTO cusown_ops.attention (app_schema, kind, entity, entity_id, runbook, finding, next_try)
SELECT 'resolve_app', 'refund_due', 'booking', id_of('booking', n), 'payment_mismatch', 'x', now() FROM unnest('{31,32,33,34,35,36,12,99}'::int[]) n;
SELECT count(*) FROM resolved(slot => id_of('slot', 6));
SELECT id, closed FROM worklist;   -- pending beside a confirmed one, rejected, cancelled: these stay

-- the audit chain holds for what one run writes
CALL make_doubles();
DELETE FROM audit_logs; -- fails
SELECT action, count(*) FROM resolved() GROUP BY 1 ORDER BY 1;
WITH w AS (SELECT *, lag(row_hash) OVER (ORDER BY created_at, id) AS prev FROM audit_logs WHERE action_type = 'booking_cancelled')
SELECT count(*) AS breaks FROM w WHERE prev IS NOT NULL AND prev_hash <> prev;

-- only one slot, whatever is on the others
CALL make_doubles();
SELECT * FROM resolved('paid_first', id_of('slot', 1));
SELECT short(slot_id) AS slot FROM cusown_double_bookings('same_slot') ORDER BY 1;
SELECT * FROM resolved(slot => id_of('slot', 6));
SELECT * FROM resolved(slot => id_of('slot', 99)); -- fails
\echo :LAST_ERROR_SQLSTATE

-- ---------- what cannot be cancelled ----------
-- once undone: a CHECK refuses; the other slots, and the others on its slot, go through
CALL make_doubles();
UPDATE bookings SET undo_used_at = now() WHERE id IN (id_of('booking', 1), id_of('booking', 5), id_of('booking', 9));
SELECT * FROM resolved();
TABLE worklist;
SELECT slot, booking FROM bookings_now WHERE status = 'confirmed';
-- not a second time, until next_try
SELECT * FROM resolved();
SELECT kind, id, times, closed FROM worklist;
UPDATE cusown_ops.attention SET next_try = now() - interval '1 second';
SELECT * FROM resolved();
SELECT kind, id, times, closed FROM worklist;
-- closed by hand: it is still there, and shown, but not opened again for a day
SELECT cusown_attention_resolve(id, 'called') FROM cusown_ops.attention WHERE kind = 'unresolvable';
SELECT action, reason FROM resolved();
SELECT kind, id, closed FROM worklist;
-- mended: at once; the entry is closed by the next run
UPDATE cusown_ops.attention SET closed_at = NULL, closed_by = NULL, next_try = now() + interval '1 day';
UPDATE bookings SET undo_used_at = NULL WHERE id = id_of('booking', 1);
SELECT * FROM resolved();
SELECT * FROM resolved();
SELECT kind, id, closed FROM worklist;
CALL make_doubles();

-- a trigger refuses some: found by splitting
CREATE TABLE locked_by_owner (booking_id uuid PRIMARY KEY);
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF EXISTS (SELECT FROM resolve_app.locked_by_owner l WHERE l.booking_id = NEW.id) THEN
    RAISE EXCEPTION 'booking of % is locked', NEW.customer_name;
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER refuse BEFORE UPDATE ON bookings FOR EACH ROW EXECUTE FUNCTION refuse();
INSERT INTO locked_by_owner VALUES (id_of('booking', 1)), (id_of('booking', 6));
SELECT * FROM resolved();
TABLE worklist;
SELECT count(*) AS audited FROM audit_logs WHERE action_type = 'booking_cancelled';
SELECT count(*) AS changes FROM cusown_ops.change;
-- refused again, not counted again; mended, it goes through before next_try
DELETE FROM locked_by_owner WHERE booking_id = id_of('booking', 1);
SELECT * FROM resolved();
SELECT id, times FROM worklist WHERE kind = 'unresolvable';
-- more of them than tries: what was not reached says so, and each call gets on
CALL start_over();
DELETE FROM locked_by_owner;
DO $$
BEGIN
  FOR n IN 1 .. 120 LOOP
    CALL add_slot(n);
    CALL add_booking(n, n, 1);
    CALL add_booking(1000 + n, n, 2);
  END LOOP;
END $$;
-- what a CHECK refuses takes none
UPDATE bookings SET undo_used_at = now() WHERE id > id_of('booking', 1000);
SELECT action, reason, count(*) FROM resolved(dry_run => true) WHERE action <> 'kept' GROUP BY 1, 2 ORDER BY 1, 2;
UPDATE bookings SET undo_used_at = NULL;
INSERT INTO locked_by_owner SELECT id_of('booking', 1000 + n) FROM generate_series(1, 100) n;
SELECT action, reason, count(*) FROM resolved() WHERE action <> 'kept' GROUP BY 1, 2 ORDER BY 1, 2;
SELECT action, reason, count(*) FROM resolved() WHERE action <> 'kept' GROUP BY 1, 2 ORDER BY 1, 2;
SELECT times, count(*) FROM worklist GROUP BY 1;
SELECT action, reason, count(*) FROM resolved() WHERE action <> 'kept' GROUP BY 1, 2 ORDER BY 1, 2;
SELECT action, reason, count(*) FROM resolved() WHERE action <> 'kept' GROUP BY 1, 2 ORDER BY 1, 2;
SELECT action, reason, count(*) FROM resolved() WHERE action <> 'kept' GROUP BY 1, 2 ORDER BY 1, 2;
SELECT kind, count(*) FROM worklist GROUP BY 1;
SELECT count(*) FILTER (WHERE status = 'cancelled') AS cancelled FROM bookings;
DROP TRIGGER refuse ON bookings;
-- a trigger that keeps a booking as it is: neither counted nor audited
CALL make_doubles();
CREATE FUNCTION keep_it() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER keep_it BEFORE UPDATE ON bookings FOR EACH ROW
WHEN (OLD.id = 'b0000004-0000-0000-0000-000000000000') EXECUTE FUNCTION keep_it();
SELECT * FROM resolved(slot => id_of('slot', 2));
TABLE worklist;
SELECT count(*) AS audited FROM audit_logs WHERE entity_id = id_of('booking', 4);
DROP TRIGGER keep_it ON bookings;
-- a trigger that drops audit rows: nothing is changed without one
CREATE FUNCTION no_audit() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER no_audit BEFORE INSERT ON audit_logs FOR EACH ROW EXECUTE FUNCTION no_audit();
SELECT * FROM cusown_resolve_double_bookings(); -- fails
DROP TRIGGER no_audit ON audit_logs;
SELECT count(*) FROM bookings WHERE status <> 'confirmed';

-- ---------- by hand ----------
CALL make_doubles();
SELECT short(slot_id) AS slot, short(booking_id) AS booking, action, reason, refund_due FROM cusown_keep_booking(id_of('booking', 1), dry_run => true);
SELECT count(*) FROM bookings WHERE status <> 'confirmed';
SELECT short(slot_id) AS slot, short(booking_id) AS booking, action, reason, refund_due FROM cusown_keep_booking(id_of('booking', 1));
SELECT booking, status, reason FROM bookings_now WHERE slot = 'a1';
SELECT short(entity_id) AS id, metadata FROM audit_logs WHERE action_type = 'booking_cancelled' ORDER BY entity_id;
SELECT DISTINCT verb FROM cusown_ops.change;
SELECT id, kind FROM worklist;
-- alone, it is kept; again
SELECT action FROM cusown_keep_booking(id_of('booking', 1));
SELECT action FROM cusown_keep_booking(id_of('booking', 12));
-- one that cannot be cancelled
UPDATE bookings SET undo_used_at = now() WHERE id = id_of('booking', 5);
SELECT short(booking_id) AS booking, action, reason FROM cusown_keep_booking(id_of('booking', 4));
SELECT * FROM cusown_keep_booking(id_of('booking', 3)); -- fails
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM cusown_keep_booking(id_of('booking', 99)); -- fails
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM cusown_keep_booking(NULL); -- fails
SELECT * FROM cusown_keep_booking(id_of('booking', 4), NULL); -- fails

-- ---------- overlap ----------
CREATE PROCEDURE add_time(n int, starts timestamp, ends time, made int) LANGUAGE plpgsql AS $$
BEGIN
  CALL add_slot(n);
  UPDATE slots SET date = starts::date, start_time = starts::time, end_time = ends WHERE id = id_of('slot', n);
  CALL add_booking(n, n, made);
END $$;
CREATE PROCEDURE make_overlaps() LANGUAGE plpgsql AS $$
BEGIN
  CALL start_over();
  -- the middle one was first, both others give way
  CALL add_time(1, '2024-05-01 10:00', '11:00', 2);
  CALL add_time(2, '2024-05-01 10:30', '11:30', 1);
  CALL add_time(3, '2024-05-01 11:00', '12:00', 3);
  -- the middle one was last: it alone gives way
  CALL add_time(4, '2024-05-02 10:00', '11:00', 1);
  CALL add_time(5, '2024-05-02 10:30', '11:30', 9);
  CALL add_time(6, '2024-05-02 11:00', '12:00', 2);
  -- the second gives way to the first, so the third need not
  CALL add_time(7, '2024-05-03 10:00', '11:00', 1);
  CALL add_time(8, '2024-05-03 10:30', '11:30', 2);
  CALL add_time(9, '2024-05-03 11:15', '12:00', 3);
END $$;
CALL make_overlaps();
-- only when asked
SELECT * FROM cusown_resolve_double_bookings();
SELECT * FROM resolved(kind => 'overlap', dry_run => true);
SELECT * FROM resolved(kind => 'overlap', slot => id_of('slot', 5), policy => 'first_created');
SELECT * FROM resolved(kind => 'overlap');
SELECT count(*) FROM cusown_double_bookings('overlap');
SELECT slot, slot_status, booking, status FROM bookings_now;
SELECT action_type, short(entity_id) AS id, old_data, new_data, metadata FROM audit_logs
WHERE entity_id IN (id_of('booking', 1), id_of('slot', 1)) AND action_type <> 'booking_confirmed' ORDER BY 1;
SELECT verb, entity, short(entity_id) AS id, from_status, to_status FROM cusown_ops.change ORDER BY 2, 3;
SELECT action_type, count(*) FROM booking_lifecycle_audit GROUP BY 1;
SELECT * FROM cusown_resolve_double_bookings(kind => 'overlap');
-- two chairs
CALL make_overlaps();
UPDATE businesses SET concurrent_booking_capacity = 2;
CALL add_booking(11, 2, 11);
CALL add_booking(12, 2, 10);
SELECT * FROM resolved(kind => 'overlap');
-- one whose slot another one stands on: it stays booked
SELECT slot, slot_status, booking, status FROM bookings_now WHERE slot IN ('a2', 'a1');
SELECT count(*) FROM cusown_double_bookings('overlap');
UPDATE businesses SET concurrent_booking_capacity = 1;
-- whose slot is freed: not where a hold is live, or somebody pending was moved to it
CALL make_overlaps();
UPDATE slots SET status = 'available' WHERE id = id_of('slot', 1);
UPDATE slots SET status = 'reserved', reserved_until = now() + interval '1 hour' WHERE id = id_of('slot', 1);
UPDATE slots SET reserved_until = now() + interval '1 hour' WHERE id = id_of('slot', 8);
INSERT INTO bookings (id, business_id, slot_id, customer_name, customer_phone, booking_id)
VALUES (id_of('booking', 21), id_of('business', 1), id_of('slot', 3), 'Customer', '+910000000001', 'CODE21'),
       (id_of('booking', 22), id_of('business', 1), id_of('slot', 1), 'Customer', '+910000000001', 'CODE22');
SELECT booking, action FROM resolved(kind => 'overlap');
SELECT slot, slot_status, booking, status FROM bookings_now WHERE slot IN ('a1', 'a3', 'a5', 'a8');
-- paid_first, and one that cannot be cancelled
CALL make_overlaps();
CALL add_payment(1, 5, 'completed');
CALL add_payment(2, 8, 'completed');
UPDATE bookings SET undo_used_at = now() WHERE id = id_of('booking', 7);
SELECT * FROM resolved('paid_first', kind => 'overlap');
SELECT kind, id, finding FROM worklist;
-- it is still there while its time is taken
SELECT booking, action FROM resolved('paid_first', kind => 'overlap');
SELECT kind, id, closed FROM worklist;
UPDATE bookings SET status = 'cancelled', cancelled_at = now() WHERE id = id_of('booking', 8);
SELECT * FROM resolved();
SELECT kind, id, closed FROM worklist;

-- ---------- what is refused ----------
SELECT * FROM cusown_resolve_double_bookings('first'); -- fails
SELECT * FROM cusown_resolve_double_bookings('by_hand'); -- fails
SELECT * FROM cusown_resolve_double_bookings(NULL); -- fails
SELECT * FROM cusown_resolve_double_bookings(kind => 'slot_state'); -- fails
SELECT * FROM cusown_resolve_double_bookings(kind => NULL); -- fails
SELECT * FROM cusown_resolve_double_bookings(dry_run => NULL); -- fails
SELECT * FROM cusown_repair_slots(NULL); -- fails
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT * FROM cusown_resolve_double_bookings(); -- fails
ROLLBACK;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT * FROM cusown_keep_booking(id_of('booking', 1)); -- fails
ROLLBACK;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT * FROM cusown_repair_slots(); -- fails
ROLLBACK;
BEGIN READ ONLY;
SELECT * FROM cusown_resolve_double_bookings(); -- fails
ROLLBACK;
CREATE ROLE regress_resolve_blind;
GRANT USAGE ON SCHEMA resolve_app TO regress_resolve_blind;
GRANT ALL ON ALL TABLES IN SCHEMA resolve_app TO regress_resolve_blind;
SELECT cusown_grant('regress_resolve_blind', 'operator') \g /dev/null
SET ROLE regress_resolve_blind;
SELECT * FROM cusown_resolve_double_bookings(); -- fails
SELECT * FROM cusown_keep_booking(id_of('booking', 1)); -- fails
SELECT * FROM cusown_repair_slots(); -- fails
RESET ROLE;
-- the payments' policy alone is enough
ALTER TABLE bookings DISABLE ROW LEVEL SECURITY;
ALTER TABLE slots DISABLE ROW LEVEL SECURITY;
ALTER TABLE audit_logs DISABLE ROW LEVEL SECURITY;
ALTER TABLE businesses DISABLE ROW LEVEL SECURITY;
SET ROLE regress_resolve_blind;
SELECT * FROM cusown_resolve_double_bookings(); -- fails
SELECT * FROM cusown_repair_slots(dry_run => true) WHERE false;
RESET ROLE;

-- ---------- slots ----------
CALL start_over();
CREATE VIEW slots_now AS
SELECT short(s.id) AS slot, s.status,
       CASE WHEN s.reserved_until > now() THEN 'live' WHEN s.reserved_until IS NOT NULL THEN 'over' END AS hold,
       (SELECT string_agg(b.status, ' ' ORDER BY b.id) FROM bookings b WHERE b.slot_id = s.id) AS bookings
FROM slots s ORDER BY s.id;
CREATE PROCEDURE add_case(n int, as_is text, hold interval, VARIADIC booking text[] DEFAULT '{}') LANGUAGE plpgsql AS $$
BEGIN
  CALL add_slot(n, as_is, hold);
  FOR i IN 1 .. cardinality(booking) LOOP
    CALL add_booking(n * 10 + i, n, 1);
    UPDATE bookings SET status = booking[i], cancelled_at = CASE booking[i] WHEN 'cancelled' THEN now() END WHERE id = id_of('booking', n * 10 + i);
  END LOOP;
END $$;
CALL add_case(1, 'available', NULL, 'confirmed');                -- to be booked
CALL add_case(2, 'reserved', '1 hour', 'confirmed', 'pending');  -- likewise
CALL add_case(3, 'reserved', NULL, 'confirmed');                 -- likewise
CALL add_case(4, 'booked', NULL, 'cancelled');                   -- for nobody
CALL add_case(5, 'booked', NULL);                                -- for nobody
CALL add_case(6, 'reserved', '-1 hour', 'cancelled');            -- for nobody
CALL add_case(7, 'booked', '-1 hour');                           -- for nobody
-- nothing else
CALL add_case(11, 'booked', NULL, 'pending');
CALL add_case(12, 'booked', NULL, 'confirmed');
CALL add_case(13, 'reserved', '-1 hour', 'pending');
CALL add_case(14, 'reserved', '1 hour');
CALL add_case(15, 'reserved', NULL);
CALL add_case(16, 'available', NULL, 'pending');
CALL add_case(17, 'booked', '1 hour');
CALL add_case(18, 'available', '-1 hour');
SELECT short(slot_id) AS slot, action, from_status, to_status, finding FROM cusown_repair_slots(dry_run => true);
SELECT status, count(*) FROM slots GROUP BY 1 ORDER BY 1;
SELECT short(slot_id) AS slot, action, from_status, to_status, finding FROM cusown_repair_slots();
TABLE slots_now;
SELECT action_type, entity_type, short(entity_id) AS id, old_data, new_data, metadata, description FROM audit_logs ORDER BY entity_id;
SELECT verb, source, entity, short(entity_id) AS id, short(slot_id) AS slot, from_status, to_status FROM cusown_ops.change ORDER BY entity_id;
SELECT * FROM cusown_repair_slots();
SELECT short(slot_id) AS slot, finding FROM cusown_double_bookings('slot_state');
-- without audit rows nothing is repaired
CALL add_case(20, 'available', NULL, 'confirmed');
CREATE TRIGGER no_audit BEFORE INSERT ON audit_logs FOR EACH ROW EXECUTE FUNCTION no_audit();
SELECT * FROM cusown_repair_slots(); -- fails
DROP TRIGGER no_audit ON audit_logs;
SELECT short(slot_id) AS slot, action FROM cusown_repair_slots();
-- a trigger refuses one
CALL add_case(21, 'available', NULL, 'confirmed');
CALL add_case(22, 'booked', NULL);
CREATE FUNCTION refuse_slot() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''not this one''; END';
CREATE TRIGGER refuse BEFORE UPDATE ON slots FOR EACH ROW
WHEN (OLD.id = 'a0000021-0000-0000-0000-000000000000') EXECUTE FUNCTION refuse_slot();
SELECT short(slot_id) AS slot, action, from_status, to_status, finding FROM cusown_repair_slots();
TABLE worklist;
SELECT short(slot_id) AS slot, action FROM cusown_repair_slots();
SELECT id, times FROM worklist;
DROP TRIGGER refuse ON slots;
SELECT short(slot_id) AS slot, action FROM cusown_repair_slots();
SELECT * FROM cusown_repair_slots();
SELECT kind, id, closed FROM worklist;

-- ---------- the minimal application ----------
SELECT count(*) > 0 AS attached FROM cusown_attach('resolve_shop', :'minimal_mapping');
SET cusown_ops.app_schema = 'resolve_shop';
DROP INDEX resolve_shop.reservation_one_confirmed;
INSERT INTO resolve_shop.time_slot (ref, state, held_until, starts_at, ends_at)
SELECT id_of('slot', n), CASE n WHEN 2 THEN 'available' ELSE 'booked' END, NULL, now(), now() + interval '1 hour' FROM generate_series(1, 4) n;
INSERT INTO resolve_shop.reservation (ref, state, slot_ref, made_at)
SELECT id_of('booking', n), 'confirmed', id_of('slot', slot), now() - n * interval '1 hour'
FROM (VALUES (1, 1), (2, 1), (3, 2), (4, 3), (5, 3)) v (n, slot);
INSERT INTO resolve_shop.charge (ref, reservation_ref, state) VALUES (id_of('payment', 1), id_of('booking', 1), 'completed');
INSERT INTO resolve_shop.journal (verb, object_type, object_ref, at) VALUES ('booking_confirmed', 'booking', id_of('booking', 5), now());
SELECT * FROM resolved();
SELECT short(ref) AS booking, state FROM resolve_shop.reservation ORDER BY ref;
SELECT verb, object_type, short(object_ref) AS id, detail FROM resolve_shop.journal WHERE verb = 'booking_cancelled' ORDER BY object_ref;
SELECT kind, id FROM worklist WHERE kind = 'refund_due';
SELECT short(slot_id) AS slot, action, from_status, to_status FROM cusown_repair_slots();
SELECT short(ref) AS slot, state FROM resolve_shop.time_slot ORDER BY ref;
SELECT * FROM cusown_resolve_double_bookings(kind => 'overlap'); -- fails
\echo :LAST_ERROR_SQLSTATE
-- by hand: the later one
INSERT INTO resolve_shop.reservation (ref, state, slot_ref) VALUES (id_of('booking', 7), 'confirmed', id_of('slot', 2));
SELECT short(slot_id) AS slot, short(booking_id) AS booking, action, reason FROM cusown_keep_booking(id_of('booking', 7));
SELECT short(ref) AS booking, state FROM resolve_shop.reservation WHERE slot_ref = id_of('slot', 2) ORDER BY ref;
-- no payments: nothing can be paid
SELECT count(*) > 0 AS attached FROM cusown_attach('resolve_shop', jsonb_set(:'minimal_mapping', '{payments}', 'null'));
SELECT * FROM cusown_resolve_double_bookings('paid_first'); -- fails
\echo :LAST_ERROR_SQLSTATE
INSERT INTO resolve_shop.reservation (ref, state, slot_ref) VALUES (id_of('booking', 6), 'confirmed', id_of('slot', 3));
SELECT * FROM resolved();
RESET cusown_ops.app_schema;

DROP SCHEMA resolve_app, resolve_shop CASCADE;
DROP EXTENSION cusown_ops;
DROP OWNED BY regress_resolve_blind;
DROP ROLE regress_resolve_blind;
