-- Shows what is decided about one booking: what becomes of it and of its slot,
-- the audit rows, and what is refused.
\set ON_ERROR_STOP 0
\set SHOW_CONTEXT never
\getenv abs_srcdir PG_ABS_SRCDIR
\set app :abs_srcdir '/test/fixture/cusown_app.sql'
\set minimal :abs_srcdir '/test/fixture/app_minimal.sql'
SET client_min_messages = warning;
CREATE EXTENSION cusown_ops;
SELECT * FROM cusown_confirm_booking('00000000-0000-0000-0000-000000000000'); -- fails
\set ECHO none
\set schema booking_app
\i :app
\set schema booking_shop
\i :minimal
\set ECHO all
SET search_path = booking_app, public;
SELECT count(*) > 0 AS attached FROM cusown_attach('booking_app');

-- case n: a slot in this state, tomorrow, with bookings of these statuses, the
-- last one the newest
CREATE FUNCTION id_of(kind text, n int) RETURNS uuid
LANGUAGE sql IMMUTABLE
RETURN rpad(left(kind, 1) || lpad(n::text, 7, '0'), 32, '0')::uuid;
CREATE FUNCTION b(n int) RETURNS uuid LANGUAGE sql IMMUTABLE
RETURN booking_app.id_of('b', n);
INSERT INTO businesses (id, salon_name, owner_name, whatsapp_number,
  opening_time, closing_time, slot_duration, booking_link)
VALUES (b(0), 'Salon', 'Owner', '+910000000000', '09:00', '18:00', 30, 'salon');
CREATE PROCEDURE add_case(n int, slot_status text, hold interval, VARIADIC booking text[] DEFAULT '{}')
LANGUAGE sql AS $$
  INSERT INTO slots (id, business_id, date, start_time, end_time, status, reserved_until)
  VALUES (id_of('a', n), b(0), current_date + 1 + n, '10:00', '10:30', slot_status, now() + hold);
  INSERT INTO bookings (id, business_id, slot_id, customer_name, customer_phone,
                        booking_id, status, cancelled_at, created_at)
  SELECT b(n * 10 + i::int), b(0), id_of('a', n), 'Customer', '+910000000001', 'CODE' || n || '-' || i, s,
         CASE s WHEN 'cancelled' THEN now() END, now() - interval '3 hours' + i * interval '1 minute'
  FROM unnest(booking) WITH ORDINALITY AS b (s, i);
$$;
-- what happened to a case, and what stands there now
CREATE FUNCTION report(n int) RETURNS TABLE (what text, status text, detail text)
LANGUAGE sql STABLE AS $$
  SELECT 'slot', s.status, CASE WHEN s.reserved_until IS NULL THEN 'no hold' ELSE 'hold' END
    FROM slots s WHERE s.id = id_of('a', n)
  UNION ALL
  (SELECT 'booking ' || left(b.id::text, 8), b.status,
          concat_ws(', ', b.cancelled_by, b.cancellation_reason,
                    CASE WHEN b.undo_used_at IS NOT NULL THEN 'undone' END)
     FROM bookings b WHERE b.slot_id = id_of('a', n) ORDER BY b.id)
  UNION ALL
  (SELECT a.action_type, coalesce(a.old_data ->> 'status', '-') || ' > ' || coalesce(a.new_data ->> 'status', '-'),
          concat_ws(', ', a.actor_role, a.admin_user_id, a.metadata - '{from,to}'::text[], a.description)
     FROM audit_logs a JOIN bookings b ON b.slot_id = id_of('a', n) AND a.entity_id IN (b.id, b.slot_id)
    WHERE b.id = (SELECT min(m.id::text)::uuid FROM bookings m WHERE m.slot_id = id_of('a', n))
       OR a.entity_type = 'booking'
    ORDER BY a.created_at, a.id)
  UNION ALL
  (SELECT 'lifecycle ' || l.action_type, l.actor_type, CASE WHEN l.new_slot_id IS NULL THEN '' ELSE 'new slot' END
     FROM booking_lifecycle_audit l JOIN bookings b ON b.id = l.booking_id
    WHERE b.slot_id = id_of('a', n) ORDER BY l.created_at)
  UNION ALL
  (SELECT 'change ' || c.entity, c.from_status || ' > ' || c.to_status, c.verb
     FROM cusown_ops.change c WHERE c.slot_id = id_of('a', n) ORDER BY c.id)
$$;

-- Confirming: the slot is booked, both have their audit rows.
CALL add_case(1, 'reserved', '5 min', 'pending');
SELECT * FROM cusown_confirm_booking(b(11), dry_run => true);
SELECT * FROM report(1);
SELECT * FROM cusown_confirm_booking(b(11));
SELECT * FROM report(1);
-- again: nothing
SELECT * FROM cusown_confirm_booking(b(11), b(99));
SELECT count(*) FROM report(1);
-- whether or not a trigger says when a row was changed
BEGIN;
ALTER TABLE bookings DISABLE TRIGGER bookings_set_updated_at;
UPDATE bookings SET updated_at = NULL WHERE id = b(11);
UPDATE slots SET updated_at = NULL WHERE id = id_of('a', 1);
SELECT changed FROM cusown_cancel_booking(b(11), 'owner');
SELECT b.updated_at = now() AS booking, s.updated_at = now() AS slot
FROM bookings b JOIN slots s ON s.id = b.slot_id WHERE b.id = b(11);
ROLLBACK;
-- long after the hold ended: on a slot that is free, whichever booking
CALL add_case(2, 'available', NULL, 'pending', 'pending');
SELECT * FROM cusown_confirm_booking(b(21), b(99));
SELECT * FROM report(2);
-- the other one can have it no more
SELECT * FROM cusown_confirm_booking(b(22)); -- fails
\echo :SQLSTATE
-- a hold that has ended holds nothing
CALL add_case(3, 'reserved', '-1 s', 'pending', 'pending');
SELECT * FROM cusown_confirm_booking(b(31));
-- one that has not is the newest one's
CALL add_case(4, 'reserved', '1 min', 'pending', 'pending', 'rejected');
INSERT INTO payments (id, booking_id, provider, provider_payment_id, amount_cents, status)
VALUES (b(905), b(41), 'razorpay', 'pay_5', 50000, 'processing');
SELECT * FROM cusown_confirm_booking(b(41)); -- fails
\echo :SQLSTATE
SELECT * FROM cusown_confirm_booking(b(42));
-- and so is one without an end
CALL add_case(5, 'reserved', NULL, 'pending', 'pending');
SELECT * FROM cusown_confirm_booking(b(51)); -- fails
SELECT * FROM cusown_confirm_booking(b(52));
-- of those that are equally new, or whose age nobody knows, the last by id
CALL add_case(24, 'reserved', '1 min', 'pending', 'pending', 'pending');
UPDATE bookings SET created_at = NULL WHERE id = b(243);
SELECT * FROM cusown_confirm_booking(b(243)); -- fails
UPDATE bookings SET created_at = now() WHERE id IN (b(241), b(242));
SELECT * FROM cusown_confirm_booking(b(241)); -- fails
SELECT changed FROM cusown_confirm_booking(b(242), dry_run => true);
-- a slot that a reschedule has booked for a pending booking
CALL add_case(6, 'booked', NULL, 'pending');
SELECT * FROM cusown_confirm_booking(b(61));
SELECT * FROM report(6);
-- what is not pending
CALL add_case(7, 'available', NULL, 'rejected', 'cancelled');
SELECT * FROM cusown_confirm_booking(b(71)); -- fails
\echo :SQLSTATE
SELECT * FROM cusown_confirm_booking(b(72)); -- fails
-- unless the owner allows it
INSERT INTO cusown_ops.state_transition VALUES ('booking_app', 'booking', 'rejected', 'confirm', 'confirmed');
DROP TRIGGER bookings_check_transition ON bookings;
SELECT * FROM cusown_confirm_booking(b(71));
DELETE FROM cusown_ops.state_transition;
SELECT * FROM cusown_confirm_booking(b(98)); -- fails
\echo :SQLSTATE
SELECT * FROM cusown_confirm_booking(NULL); -- fails
\echo :SQLSTATE

-- An appointment that is over, on the clock of its business.
CALL add_case(8, 'available', NULL, 'pending');
UPDATE businesses SET timezone = 'Asia/Kolkata';
UPDATE slots SET (date, start_time, end_time) =
  (SELECT t::date, (t - interval '20 min')::time, (t - interval '1 min')::time
     FROM (VALUES (now() AT TIME ZONE 'Asia/Kolkata')) v (t)) WHERE id = id_of('a', 8);
SET TimeZone = 'America/Los_Angeles';
SELECT from_status, to_status, changed FROM cusown_confirm_booking(b(81)); -- fails
\echo :SQLSTATE
-- whose it is, its slot knows too
SELECT count(*) > 0 AS attached FROM cusown_attach('booking_app', '{"bookings": {"columns": {"business_id": null}}}');
SELECT from_status, to_status, changed FROM cusown_confirm_booking(b(81)); -- fails
SELECT count(*) > 0 AS attached FROM cusown_attach('booking_app');
SET cusown_ops.confirm_past = on;
SELECT from_status, to_status, changed FROM cusown_confirm_booking(b(81), dry_run => true);
RESET cusown_ops.confirm_past;
-- one that goes on is not
UPDATE bookings SET total_duration_minutes = 60 WHERE id = b(81);
SELECT from_status, to_status, changed FROM cusown_confirm_booking(b(81));
RESET TimeZone;

-- With a payment: it must be completed, and this booking's.
CALL add_case(9, 'available', NULL, 'pending', 'pending', 'cancelled');
INSERT INTO payments (id, booking_id, provider, provider_payment_id, amount_cents, status)
VALUES (b(901), b(91), 'razorpay', 'pay_1', 50000, 'processing'),
       (b(902), b(92), 'razorpay', 'pay_2', 50000, 'completed'),
       (b(904), b(93), 'razorpay', 'pay_4', 50000, 'completed');
SELECT * FROM cusown_confirm_booking(b(91), payment => b(901)); -- fails
\echo :SQLSTATE
SELECT * FROM cusown_confirm_booking(b(91), payment => b(902)); -- fails
\echo :SQLSTATE
SELECT * FROM cusown_confirm_booking(b(91), payment => b(903)); -- fails
\echo :SQLSTATE
SELECT * FROM cusown_confirm_booking(b(92), payment => b(902), dry_run => true);
-- where the slot is gone, the payment stays as it is
SELECT changed FROM cusown_confirm_booking(b(91));
SELECT * FROM cusown_confirm_booking(b(92), payment => b(902)); -- fails
\echo :SQLSTATE
SELECT status, updated_at = created_at AS untouched FROM payments WHERE id = b(902);
SELECT * FROM report(9);

-- Whoever was refused could write nothing: each run of expire_bookings finds it,
-- however young, once, and until the money is paid back or the booking confirmed.
CREATE VIEW refunds AS
SELECT left(entity_id::text, 8) AS booking, left(finding, 16) AS finding, right(finding, 12) AS is, times, closed_by
FROM cusown_ops.attention WHERE kind = 'refund_due';
SELECT attention FROM cusown_expire_bookings(dry_run => true);
TABLE refunds;
SET client_min_messages = error;
CALL cusown_run_job('expire_bookings');
SET client_min_messages = warning;
TABLE refunds;
SELECT attention FROM cusown_expire_bookings();
TABLE refunds;
UPDATE cusown_ops.attention SET next_try = now() - interval '1 s';
SELECT attention FROM cusown_expire_bookings();
TABLE refunds;
UPDATE payments SET status = 'refunded' WHERE id = b(902);
SELECT attention FROM cusown_expire_bookings();
TABLE refunds;
UPDATE payments SET status = 'completed' WHERE id = b(902);
-- a request looks for none
SELECT cusown_expire_if_due();
TABLE refunds;

-- Rejecting and cancelling free the slot.
CALL add_case(10, 'reserved', '5 min', 'pending');
SELECT * FROM cusown_reject_booking(b(101), b(99), 'closed that day', true);
SELECT * FROM cusown_reject_booking(b(101), b(99), 'closed that day');
SELECT * FROM cusown_reject_booking(b(101));
SELECT * FROM report(10);
CALL add_case(11, 'booked', NULL, 'confirmed');
SELECT * FROM cusown_cancel_booking(b(111), 'customer', 'ill', dry_run => true);
SELECT * FROM cusown_cancel_booking(b(111), 'customer', 'ill');
SELECT * FROM cusown_cancel_booking(b(111), 'owner');
SELECT * FROM report(11);
SELECT * FROM cusown_cancel_booking(b(111), 'nobody'); -- fails
\echo :SQLSTATE
SELECT * FROM cusown_cancel_booking(b(111), NULL); -- fails
SELECT * FROM cusown_reject_booking(b(111)); -- fails
SELECT from_status, to_status, slot_status FROM cusown_cancel_booking(b(41), 'system');
SELECT from_status, to_status, slot_status FROM cusown_cancel_booking(b(52), 'owner', actor => b(99));
SELECT * FROM report(5);
-- but not where another one stands on it: confirmed,
SELECT from_status, to_status, slot_status FROM cusown_reject_booking(b(22));
-- with a hold that has not ended,
CALL add_case(12, 'reserved', '5 min', 'pending', 'pending');
SELECT from_status, to_status, slot_status FROM cusown_reject_booking(b(121));
SELECT from_status, to_status, slot_status FROM cusown_reject_booking(b(122));
-- of somebody who has no booking yet, after a confirmed one,
CALL add_case(13, 'reserved', '5 min', 'confirmed');
SELECT from_status, to_status, slot_status FROM cusown_cancel_booking(b(131), 'owner');
-- or on a slot that may be booked for it
CALL add_case(14, 'booked', NULL, 'pending', 'pending');
SELECT from_status, to_status, slot_status FROM cusown_reject_booking(b(141));
SELECT from_status, to_status, slot_status FROM cusown_reject_booking(b(142));
-- a hold that has ended keeps nothing back, nor do pending ones a booked slot
CALL add_case(15, 'reserved', '-5 min', 'pending', 'pending');
SELECT from_status, to_status, slot_status FROM cusown_reject_booking(b(151));
CALL add_case(16, 'booked', NULL, 'confirmed', 'pending');
SELECT from_status, to_status, slot_status FROM cusown_cancel_booking(b(161), 'owner');
-- but a hold on it that has not ended, which is the newest pending one's
CALL add_case(20, 'booked', '5 min', 'confirmed', 'pending');
SELECT from_status, to_status, slot_status FROM cusown_cancel_booking(b(201), 'owner');
CALL add_case(21, 'booked', '5 min', 'confirmed', 'cancelled');
SELECT from_status, to_status, slot_status FROM cusown_cancel_booking(b(211), 'owner');
-- what a CHECK of the application forbids
UPDATE bookings SET undo_used_at = now() WHERE id = b(162);
SELECT * FROM cusown_cancel_booking(b(162), 'owner'); -- fails
\echo :SQLSTATE

-- Undoing: by the audit trail, within the window, once.
CALL add_case(17, 'available', NULL, 'pending', 'pending');
SELECT * FROM cusown_undo_booking(b(171), b(99)); -- fails
\echo :SQLSTATE
SELECT changed FROM cusown_confirm_booking(b(171));
SELECT * FROM cusown_undo_booking(b(171), NULL); -- fails
SELECT * FROM cusown_undo_booking(b(171), b(99), true);
SET cusown_ops.undo_window = 0;
SELECT * FROM cusown_undo_booking(b(171), b(99)); -- fails
\echo :SQLSTATE
RESET cusown_ops.undo_window;
SELECT * FROM cusown_undo_booking(b(171), b(99));
SELECT * FROM report(17);
SELECT changed FROM cusown_confirm_booking(b(171));
SELECT * FROM cusown_undo_booking(b(171), b(99)); -- fails
\echo :SQLSTATE
SELECT changed FROM cusown_reject_booking(b(172));
SELECT * FROM cusown_undo_booking(b(172), b(99));
SELECT * FROM report(17);
-- the slot stays where another is confirmed on it
DROP INDEX idx_bookings_one_confirmed_per_slot;
CALL add_case(18, 'booked', NULL, 'pending', 'confirmed');
UPDATE bookings SET status = 'confirmed' WHERE id = b(181);
SELECT log_audit_event('booking_confirmed', 'booking', b(181)) \g /dev/null
SELECT from_status, to_status, slot_status FROM cusown_undo_booking(b(181), b(99));
-- without an audit row nobody knows when
SELECT * FROM cusown_undo_booking(b(182), b(99)); -- fails
SELECT log_audit_event('booking_confirmed', 'system', b(182)) \g /dev/null
SELECT * FROM cusown_undo_booking(b(182), b(99)); -- fails
-- the latest row counts
ALTER TABLE audit_logs DISABLE TRIGGER audit_logs_append_only;
UPDATE audit_logs SET created_at = now() - interval '6 min'
 WHERE entity_id = b(181) AND action_type = 'booking_confirmed';
UPDATE bookings SET status = 'confirmed', undo_used_at = NULL WHERE id = b(181);
SELECT * FROM cusown_undo_booking(b(181), b(99), true); -- fails
SELECT log_audit_event('booking_confirmed', 'booking', b(181)) \g /dev/null
SELECT changed FROM cusown_undo_booking(b(181), b(99), true);

-- A trigger of the application that drops the change is an error.
CALL add_case(19, 'available', NULL, 'pending');
CREATE FUNCTION drop_change() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER drops BEFORE UPDATE ON bookings FOR EACH ROW EXECUTE FUNCTION drop_change();
SELECT * FROM cusown_confirm_booking(b(191)); -- fails
\echo :SQLSTATE
DROP TRIGGER drops ON bookings;
CREATE TRIGGER drops BEFORE INSERT ON audit_logs FOR EACH ROW EXECUTE FUNCTION drop_change();
SELECT * FROM cusown_confirm_booking(b(191)); -- fails
\echo :SQLSTATE
DROP TRIGGER drops ON audit_logs;
SELECT count(*) FROM report(19);
-- One that leaves the slot as it was is not, but nothing is told of the slot.
CREATE TRIGGER drops BEFORE UPDATE ON slots FOR EACH ROW EXECUTE FUNCTION drop_change();
SELECT from_status, to_status, slot_status, changed FROM cusown_confirm_booking(b(191));
DROP TRIGGER drops ON slots;
SELECT * FROM report(19);

-- A unique index refuses: that of the slot says that it is taken, another one not.
CALL add_case(22, 'available', NULL, 'pending');
UPDATE bookings SET status = 'cancelled', cancelled_at = now() WHERE id = b(182);
CREATE UNIQUE INDEX one ON bookings (slot_id) WHERE status = 'confirmed';
CREATE FUNCTION insert_again() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO booking_app.bookings SELECT (jsonb_populate_record(NEW, jsonb_build_object('id', gen_random_uuid()) || TG_ARGV[0]::jsonb)).*;
  RETURN NULL;
END $$;
CREATE TRIGGER again AFTER UPDATE ON bookings FOR EACH ROW EXECUTE FUNCTION insert_again('{"booking_id": "AGAIN"}');
SELECT * FROM cusown_confirm_booking(b(221)); -- fails
\echo :SQLSTATE
-- also while it is being built
UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'one'::regclass;
SELECT * FROM cusown_confirm_booking(b(221)); -- fails
UPDATE pg_index SET indisvalid = true WHERE indexrelid = 'one'::regclass;
DROP TRIGGER again ON bookings;
CREATE TRIGGER again AFTER UPDATE ON bookings FOR EACH ROW EXECUTE FUNCTION insert_again('{"status": "pending"}');
SELECT * FROM cusown_confirm_booking(b(221)); -- fails
\echo :SQLSTATE
DROP TRIGGER again ON bookings;
-- so does that of a partition
CREATE TABLE parted (LIKE bookings INCLUDING DEFAULTS) PARTITION BY HASH (business_id);
CREATE TABLE "parted 1" PARTITION OF parted FOR VALUES WITH (MODULUS 1, REMAINDER 0);
ALTER TABLE parted ADD PRIMARY KEY (id, business_id);
CREATE UNIQUE INDEX ON parted (slot_id, business_id) WHERE status = 'confirmed';
INSERT INTO parted SELECT * FROM bookings WHERE id = b(221);
SELECT count(*) > 0 AS attached FROM cusown_attach('booking_app', '{"bookings": {"relation": "parted"}}');
CREATE FUNCTION insert_parted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO booking_app.parted SELECT (jsonb_populate_record(NEW, jsonb_build_object('id', gen_random_uuid()))).*;
  RETURN NULL;
END $$;
CREATE TRIGGER again AFTER UPDATE ON parted FOR EACH ROW EXECUTE FUNCTION insert_parted();
SELECT * FROM cusown_confirm_booking(b(221)); -- fails
\echo :SQLSTATE
DROP TRIGGER again ON parted;
SELECT from_status, to_status, slot_status, changed FROM cusown_confirm_booking(b(221));

-- Under row-level security a row that is hidden, or that may not be changed, is none.
SELECT count(*) > 0 AS attached FROM cusown_attach('booking_app');
CALL add_case(23, 'available', NULL, 'pending', 'pending', 'pending');
CALL add_case(25, 'booked', '5 min', 'confirmed', 'pending');
CALL add_case(26, 'reserved', '-5 min', 'confirmed', 'pending');
CALL add_case(27, 'reserved', '-5 min', 'pending');
CALL add_case(28, 'booked', NULL, 'confirmed');
CALL add_case(29, 'available', NULL, 'pending');
CALL add_case(30, 'booked', NULL, 'confirmed');
CREATE ROLE regress_booking_blind;
GRANT USAGE ON SCHEMA booking_app TO regress_booking_blind;
GRANT ALL ON ALL TABLES IN SCHEMA booking_app TO regress_booking_blind;
SELECT cusown_grant('regress_booking_blind', 'operator') \g /dev/null
CREATE POLICY sees ON bookings FOR SELECT TO regress_booking_blind USING (id <> ALL ('{b0000231-0000-0000-0000-000000000000,b0000252-0000-0000-0000-000000000000}'));
CREATE POLICY changes ON bookings FOR UPDATE TO regress_booking_blind USING (id <> booking_app.b(232));
CREATE POLICY not_all ON slots AS RESTRICTIVE TO regress_booking_blind USING (id <> booking_app.id_of('a', 19));
CREATE POLICY does ON payments TO regress_booking_blind USING (true);
CREATE POLICY does ON audit_logs TO regress_booking_blind USING (true);
SET ROLE regress_booking_blind;
SELECT * FROM cusown_confirm_booking(b(231)); -- fails
\echo :SQLSTATE
SELECT * FROM cusown_confirm_booking(b(232)); -- fails
\echo :SQLSTATE
SELECT from_status, to_status, slot_status, changed FROM cusown_confirm_booking(b(233));
SELECT * FROM cusown_cancel_booking(b(191), 'owner'); -- fails
\echo :SQLSTATE
-- nor is it known who else is on the slot: a pending one leaves it as it is, a
-- confirmed one knows by the index that no other is confirmed
SELECT from_status, to_status, slot_status FROM cusown_cancel_booking(b(233), 'owner');
SELECT from_status, to_status, slot_status FROM cusown_cancel_booking(b(251), 'owner');
SELECT from_status, to_status, slot_status FROM cusown_cancel_booking(b(261), 'owner');
SELECT from_status, to_status, slot_status FROM cusown_reject_booking(b(271));
RESET ROLE;
DROP INDEX one;
SET ROLE regress_booking_blind;
SELECT from_status, to_status, slot_status FROM cusown_cancel_booking(b(281), 'owner');
SELECT * FROM cusown_confirm_booking(b(291)); -- fails
\echo :SQLSTATE
SELECT * FROM cusown_keep_booking(b(231)); -- fails
\echo :SQLSTATE
SELECT * FROM cusown_keep_booking(b(301)); -- fails
\echo :SQLSTATE
RESET ROLE;

-- The same on the minimal schema.
SET cusown_ops.app_schema = 'booking_shop';
SET search_path = booking_shop, booking_app, public;
SELECT count(*) > 0 AS attached FROM cusown_attach('booking_shop', :'minimal_mapping');
INSERT INTO time_slot (ref, state, held_until, starts_at, ends_at)
SELECT id_of('a', n), 'reserved', now() + interval '5 min', now() + interval '1 h', now() + interval '2 h'
FROM generate_series(1, 4) n;
INSERT INTO reservation (ref, state, slot_ref, made_at)
SELECT b(n), 'pending', id_of('a', n / 10), now() - interval '1 h' + n * interval '1 s'
FROM unnest('{11,12,21,31,41}'::int[]) n;
INSERT INTO charge (ref, reservation_ref, state, made_at) VALUES (b(901), b(12), 'completed', now());
SELECT * FROM cusown_confirm_booking(b(11)); -- fails
SELECT * FROM cusown_confirm_booking(b(12), b(99), b(901));
SELECT * FROM cusown_confirm_booking(b(11)); -- fails
-- paid for, but the slot is gone: the next run finds it
INSERT INTO charge (ref, reservation_ref, state, made_at) VALUES (b(903), b(11), 'completed', now());
SELECT * FROM cusown_confirm_booking(b(11), payment => b(903)); -- fails
SELECT * FROM cusown_expire_bookings();
SELECT left(entity_id::text, 8) AS booking, finding FROM cusown_ops.attention WHERE app_schema = 'booking_shop' AND kind = 'refund_due';
SELECT * FROM cusown_cancel_booking(b(12), 'owner', 'ill');
SELECT * FROM cusown_confirm_booking(b(11));
SELECT * FROM cusown_undo_booking(b(11), b(99));
SELECT * FROM cusown_reject_booking(b(21), b(99));
SELECT * FROM cusown_undo_booking(b(21), b(99));
UPDATE time_slot SET starts_at = now() - interval '2 h', ends_at = now() - interval '1 s' WHERE ref = id_of('a', 3);
SELECT * FROM cusown_confirm_booking(b(31)); -- fails
-- statuses that are null are none
INSERT INTO charge (ref, reservation_ref) VALUES (b(902), b(21));
SELECT * FROM cusown_confirm_booking(b(21), payment => b(902)); -- fails
\echo :SQLSTATE
UPDATE reservation SET state = NULL WHERE ref = b(31);
SELECT * FROM cusown_cancel_booking(b(31), 'owner'); -- fails
-- a slot whose status nobody knows is left alone
UPDATE time_slot SET state = 'closed' WHERE ref = id_of('a', 2);
SELECT * FROM cusown_confirm_booking(b(21)); -- fails
\echo :SQLSTATE
-- a booking without a slot
UPDATE reservation SET slot_ref = NULL WHERE ref = b(41);
SELECT * FROM cusown_confirm_booking(b(41)); -- fails
SELECT * FROM cusown_cancel_booking(b(41), 'customer');
SELECT verb, object_type, left(object_ref::text, 8) AS object, detail - 'actor' AS detail FROM journal ORDER BY id;
SELECT verb, entity, left(entity_id::text, 8) AS id, left(slot_id::text, 8) AS slot, from_status, to_status
FROM cusown_ops.change c WHERE app_schema = 'booking_shop' ORDER BY c.id;

-- Only where rows can be read again after they were locked.
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT * FROM cusown_reject_booking(b(11)); -- fails
ROLLBACK;
BEGIN READ ONLY;
SELECT * FROM cusown_cancel_booking(b(11), 'owner'); -- fails
ROLLBACK;
\set ECHO none
DROP SCHEMA booking_app, booking_shop CASCADE;
DROP EXTENSION cusown_ops;
DROP OWNED BY regress_booking_blind;
DROP ROLE regress_booking_blind;
