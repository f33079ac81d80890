-- Shows the guard on payments: which changes of status pass in which mode, that our
-- functions go on working under it, and that their permission is for what they change.
\set ON_ERROR_STOP 0
\set SHOW_CONTEXT never
\getenv abs_srcdir PG_ABS_SRCDIR
\set app :abs_srcdir '/test/fixture/cusown_app.sql'
\set minimal :abs_srcdir '/test/fixture/app_minimal.sql'
SET client_min_messages = warning;
CREATE EXTENSION cusown_ops;
\set ECHO none
\set schema guarded_app
\i :app
\set schema guarded_shop
\i :minimal
\set ECHO all
SET search_path = guarded_app, public;
SELECT count(*) > 0 AS attached FROM cusown_attach('guarded_app');
CREATE FUNCTION p(n int) RETURNS uuid LANGUAGE sql IMMUTABLE
RETURN rpad('f' || lpad(n::text, 7, '0'), 32, '0')::uuid;
INSERT INTO businesses (id, salon_name, owner_name, whatsapp_number,
  opening_time, closing_time, slot_duration, booking_link)
VALUES (p(0), 'Salon', 'Owner', '+910000000000', '09:00', '18:00', 30, 'salon');
INSERT INTO slots (id, business_id, date, start_time, end_time) VALUES (p(0), p(0), current_date + 1, '10:00', '10:30');
INSERT INTO bookings (id, business_id, slot_id, customer_name, customer_phone, booking_id)
VALUES (p(0), p(0), p(0), 'Customer', '+910000000001', 'CODE');
CREATE PROCEDURE add(n int, status text) LANGUAGE sql AS $$
  INSERT INTO payments (id, booking_id, provider, provider_payment_id, amount_cents, status, expires_at)
  VALUES (p(n), p(0), 'razorpay', 'pending-' || n, 1000, status::payment_status, now() - interval '1 hour');
$$;

-- every change of status there is, and a payment that is born in it: what becomes of it in each mode
CREATE FUNCTION try_all() RETURNS TABLE (mode text, from_status text, passed text, refused text)
LANGUAGE plpgsql AS $$
DECLARE
  f text;
  t text;
  answer text;
BEGIN
  FOREACH mode IN ARRAY '{off,warn,transitions,functions}'::text[] LOOP
    PERFORM cusown_guard(mode);
    FOREACH f IN ARRAY '{-}'::text[] || enum_range(NULL::payment_status)::text[] LOOP
      from_status := f; passed := ''; refused := '';
      FOREACH t IN ARRAY enum_range(NULL::payment_status)::text[] LOOP
        BEGIN
          IF f = '-' THEN
            CALL add(99, t);
          ELSE
            CALL add(99, f);
            UPDATE payments SET status = t::payment_status WHERE id = p(99);
          END IF;
          RAISE EXCEPTION 'passed' USING ERRCODE = 'ZZ000';
        EXCEPTION WHEN OTHERS THEN
          IF SQLSTATE = 'ZZ000' THEN
            passed := concat_ws(' ', nullif(passed, ''), t);
          ELSE
            refused := concat_ws(' ', nullif(refused, ''), t || ':' || SQLSTATE);
          END IF;
        END;
      END LOOP;
      RETURN NEXT;
    END LOOP;
  END LOOP;
END
$$;
SET client_min_messages = error;
SELECT * FROM try_all() WHERE mode IN ('off', 'warn') AND refused <> '';
SELECT from_status, passed FROM try_all() WHERE mode = 'transitions';
SELECT from_status, refused FROM try_all() WHERE mode = 'transitions' AND refused LIKE '%UO007%';
SELECT from_status, passed FROM try_all() WHERE mode = 'functions';
-- what mode transitions lets pass is what the machine has, but late captures
WITH passed AS (
  SELECT a.from_status, t AS to_status FROM try_all() a, string_to_table(a.passed, ' ') t
  WHERE a.mode = 'transitions' AND a.from_status <> '-' AND t <> a.from_status
), machine AS (
  SELECT m.from_status, m.to_status FROM cusown_ops.state_machine m
  WHERE m.machine = 'payment' AND m.event <> 'late_capture' AND m.from_status <> m.to_status
)
SELECT NOT EXISTS (TABLE passed EXCEPT TABLE machine) AND NOT EXISTS (TABLE machine EXCEPT TABLE passed) AS agree;
SET client_min_messages = warning;

-- what is told
SELECT entity, relation, guard FROM cusown_guard('functions');
CALL add(1, 'processing');
UPDATE payments SET status = 'completed' WHERE id = p(1); -- fails
SELECT guard FROM cusown_guard('transitions');
UPDATE payments SET status = 'refunded' WHERE id = p(1); -- fails
CALL add(2, 'failed');
UPDATE payments SET status = 'completed' WHERE id = p(2); -- fails
-- an owner's own way there is a way without evidence
INSERT INTO cusown_ops.state_transition VALUES ('guarded_app', 'payment', 'failed', 'correct', 'completed');
UPDATE payments SET status = 'completed' WHERE id = p(2);
DELETE FROM cusown_ops.state_transition;
SELECT guard FROM cusown_guard('warn');
UPDATE payments SET status = 'refunded' WHERE id = p(1);
UPDATE payments SET status = 'processing' WHERE id = p(1);

-- our functions
SELECT guard FROM cusown_guard('functions');
CALL add(3, 'expired');
SELECT to_status FROM cusown_payment_transition(p(1), 'verify');
SELECT to_status FROM cusown_payment_transition(p(3), 'verify', reason => 'on the dashboard', provider_ref => 'pay_3');
SELECT to_status FROM cusown_payment_transition(p(3), 'refund', refund_amount => 1000, refund_ref => 'rfnd_3');
CALL add(4, 'initiated'); CALL add(5, 'initiated'); CALL add(6, 'initiated');
SELECT expired FROM cusown_expire_payments();
SELECT status, count(*) FROM payments WHERE id IN (p(4), p(5), p(6)) GROUP BY 1;
-- in mode transitions a late capture of ours passes as well
SELECT guard FROM cusown_guard('transitions');
SELECT to_status FROM cusown_payment_transition(p(4), 'verify', reason => 'on the dashboard', provider_ref => 'pay_4');
SELECT guard FROM cusown_guard('functions');

-- Their permission is for the payments that they change: not for another one, at the
-- depth of a trigger, nor at their own depth, which a CHECK's function is called at.
CALL add(7, 'initiated'); CALL add(8, 'initiated'); CALL add(9, 'processing');
CREATE FUNCTION another() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  UPDATE payments SET status = 'completed' WHERE id = p(9) AND status <> 'completed';
  RETURN NULL;
END
$$;
CREATE TRIGGER another AFTER UPDATE ON payments FOR EACH ROW WHEN (OLD.status <> NEW.status) EXECUTE FUNCTION another();
SELECT to_status FROM cusown_payment_transition(p(7), 'verify'); -- fails
SELECT expired, attention FROM cusown_expire_payments();
SELECT kind, sqlstate, left(entity_id::text, 8) AS payment FROM cusown_ops.attention WHERE closed_at IS NULL ORDER BY 3;
DROP TRIGGER another ON payments;
CREATE FUNCTION sly(id uuid, status payment_status) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
  IF id = p(8) AND status = 'completed' THEN
    UPDATE guarded_app.payments SET status = 'completed' WHERE payments.id = p(9);
  END IF;
  RETURN true;
END
$$;
ALTER TABLE payments ADD CONSTRAINT sly CHECK (sly(id, status));
SELECT to_status FROM cusown_payment_transition(p(8), 'verify'); -- fails
ALTER TABLE payments DROP CONSTRAINT sly;
SELECT to_status FROM cusown_payment_transition(p(8), 'verify');
-- nor for the booking that has the id of the payment
CALL add(0, 'processing');
CREATE FUNCTION sly_booking(id uuid, status payment_status) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
  IF status = 'completed' THEN
    UPDATE guarded_app.bookings SET status = 'confirmed' WHERE bookings.id = sly_booking.id;
  END IF;
  RETURN true;
END
$$;
ALTER TABLE payments ADD CONSTRAINT sly CHECK (sly_booking(id, status)) NOT VALID;
SELECT to_status FROM cusown_payment_transition(p(0), 'verify'); -- fails
ALTER TABLE payments DROP CONSTRAINT sly;
-- an operator who must
BEGIN;
SELECT cusown_override('the provider says so');
UPDATE payments SET status = 'completed' WHERE id = p(9);
ROLLBACK;

-- Attached anew without its payments, they are guarded no more: nobody could change them;
-- with them they are, as the bookings.
SELECT count(*) > 0 AS attached FROM cusown_attach('guarded_app', '{"payments": null}');
SELECT entity, guard FROM cusown_guard(app_schema => 'guarded_app');
UPDATE payments SET status = 'completed' WHERE id = p(9);
SELECT count(*) > 0 AS attached FROM cusown_attach('guarded_app');
SELECT entity, guard FROM cusown_guard(app_schema => 'guarded_app');
UPDATE payments SET status = 'refunded' WHERE id = p(9); -- fails
-- Other names; and an application without payments has its bookings guarded.
SELECT count(*) > 0 AS attached FROM cusown_attach('guarded_shop', :'minimal_mapping');
SELECT entity, relation, guard FROM cusown_guard('functions', 'guarded_shop');
SELECT entity, relation, guard FROM cusown_guard('off', 'guarded_shop');
CREATE SCHEMA guarded_bare;
CREATE TABLE guarded_bare.slots (id uuid PRIMARY KEY, status text, starts_at timestamptz, ends_at timestamptz);
CREATE TABLE guarded_bare.bookings (id uuid PRIMARY KEY, slot_id uuid, status text, created_at timestamptz);
CREATE TABLE guarded_bare.audit_logs (action text, entity_type text, entity_id uuid, created_at timestamptz);
SELECT count(*) > 0 AS attached FROM cusown_attach('guarded_bare');
SELECT entity, guard FROM cusown_guard(app_schema => 'guarded_bare');
SELECT entity, guard FROM cusown_guard('functions', 'guarded_bare');
-- a schema that was renamed is another application, and its tables are guarded for the old one
ALTER SCHEMA guarded_bare RENAME TO guarded_new;
SELECT count(*) > 0 AS attached FROM cusown_attach('guarded_new');
SELECT entity, guard FROM cusown_guard('functions', 'guarded_new'); -- fails
\echo :SQLSTATE
SELECT cusown_detach('guarded_bare');
SELECT entity, relation, guard FROM cusown_guard('functions', 'guarded_new');
ALTER SCHEMA guarded_new RENAME TO guarded_bare;
-- the way out, where one table's binding no longer resolves
ALTER TABLE payments RENAME TO charges;
SELECT entity, guard FROM cusown_guard(app_schema => 'guarded_app');
SELECT entity, guard FROM cusown_guard('off', 'guarded_app');
SELECT count(*) AS triggers FROM pg_trigger WHERE tgname LIKE 'cusown%';
DROP EXTENSION cusown_ops;
\set ECHO none
SET client_min_messages = error;
DROP SCHEMA guarded_app, guarded_shop, guarded_bare CASCADE;
