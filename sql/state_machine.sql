-- The state machines: the transitions that are shipped, and those that an
-- owner adds for one application.
SET client_min_messages = warning;
CREATE EXTENSION cusown_ops;
\pset format unaligned

-- Shipped are those of booking, slot and payment; they hold everywhere.
SELECT machine, from_status, event, to_status
FROM cusown_ops.state_machine WHERE app_schema IS NULL
ORDER BY 1, 2, 3, 4;
SELECT count(*) FROM cusown_ops.state_machine;
SELECT count(*) FROM cusown_ops.state_transition;
SELECT machine, count(*), count(DISTINCT (from_status, event, to_status))
FROM cusown_ops.shipped_transitions() GROUP BY 1 ORDER BY 1;
-- From these no transition leads on.
SELECT to_status FROM cusown_ops.state_machine
EXCEPT
SELECT from_status FROM cusown_ops.state_machine
ORDER BY 1;

-- They cannot be changed or removed.
\set VERBOSITY terse
DELETE FROM cusown_ops.state_machine WHERE event = 'expire'; -- fails
UPDATE cusown_ops.state_machine SET to_status = 'pending'; -- fails
INSERT INTO cusown_ops.state_machine
VALUES (NULL, 'booking', 'cancelled', 'revive', 'pending'); -- fails
\set VERBOSITY default
DELETE FROM cusown_ops.state_transition;
SELECT count(*) FROM cusown_ops.state_machine;

-- An owner adds some for one application, each once, also for one that is not
-- attached yet.
INSERT INTO cusown_ops.state_transition VALUES
  ('shop', 'booking', 'confirmed', 'no_show', 'cancelled'),
  ('shop', 'payment', 'failed', 'verify', 'completed'),
  ('stall', 'payment', 'failed', 'verify', 'completed'),
  ('stall', 'slot', 'available', 'book', 'booked'),
  ('stall', 'slot', 'available', 'reserve', 'reserved');
SELECT * FROM cusown_ops.state_machine WHERE app_schema IS NOT NULL
ORDER BY 1, 2, 3, 4, 5;
SELECT count(*) FROM cusown_ops.state_machine;
INSERT INTO cusown_ops.state_transition
VALUES ('shop', 'payment', 'failed', 'verify', 'completed'); -- fails
\echo :SQLSTATE
-- of the three machines only, and whole
INSERT INTO cusown_ops.state_transition
VALUES ('shop', 'refund', 'asked', 'pay', 'paid'); -- fails
\echo :SQLSTATE
INSERT INTO cusown_ops.state_transition
VALUES ('shop', 'Booking', 'pending', 'cancel', 'cancelled'); -- fails
INSERT INTO cusown_ops.state_transition
VALUES ('shop', '', 'pending', 'cancel', 'cancelled'); -- fails
INSERT INTO cusown_ops.state_transition
VALUES (NULL, 'booking', 'cancelled', 'revive', 'pending'); -- fails
INSERT INTO cusown_ops.state_transition
VALUES ('shop', 'booking', NULL, 'revive', 'pending'); -- fails
INSERT INTO cusown_ops.state_transition
VALUES ('shop', 'booking', 'cancelled', 'revive', NULL); -- fails
SELECT count(*) FROM cusown_ops.state_machine;

-- Expiry asks the machines: what is shipped is allowed without any addition,
-- and with others.
CREATE SCHEMA shop;
CREATE TABLE shop.slots (id uuid, status text, starts_at timestamptz,
                         ends_at timestamptz, reserved_until timestamptz);
CREATE TABLE shop.bookings (id uuid, slot_id uuid, status text,
                            created_at timestamptz);
CREATE TABLE shop.audit_logs (action text, entity_type text, entity_id uuid,
                              created_at timestamptz);
SELECT count(*) > 0 AS attached FROM cusown_attach('shop');
INSERT INTO shop.slots
VALUES (md5('1')::uuid, 'reserved', now(), now(), now() - interval '1 day');
INSERT INTO shop.bookings
VALUES (md5('1')::uuid, md5('1')::uuid, 'pending', now() - interval '2 days');
SELECT expired, released FROM cusown_expire_bookings();

DROP EXTENSION cusown_ops;
DROP SCHEMA shop CASCADE;
