-- Shows payments that were begun and not made in time: which ones expire, what is
-- left alone, what a trigger refuses, and the job.
\set ON_ERROR_STOP 0
\set SHOW_CONTEXT never
\getenv abs_srcdir PG_ABS_SRCDIR
\set app :abs_srcdir '/test/fixture/cusown_app.sql'
\set minimal :abs_srcdir '/test/fixture/app_minimal.sql'
SET client_min_messages = warning;
CREATE EXTENSION cusown_ops;
SELECT * FROM cusown_expire_payments(); -- fails
\set ECHO none
\set schema pay_expiry_app
\i :app
\set schema pay_expiry_shop
\i :minimal
\set ECHO all
SET search_path = pay_expiry_app, public;
SELECT count(*) > 0 AS attached FROM cusown_attach('pay_expiry_app');

CREATE FUNCTION p(n int) RETURNS uuid LANGUAGE sql IMMUTABLE
RETURN rpad('f' || lpad(n::text, 7, '0'), 32, '0')::uuid;
INSERT INTO businesses (id, salon_name, owner_name, whatsapp_number,
  opening_time, closing_time, slot_duration, booking_link)
VALUES (p(0), 'Salon', 'Owner', '+910000000000', '09:00', '18:00', 30, 'salon');
INSERT INTO slots (id, business_id, date, start_time, end_time) VALUES (p(0), p(0), current_date + 1, '10:00', '10:30');
INSERT INTO bookings (id, business_id, slot_id, customer_name, customer_phone, booking_id)
VALUES (p(0), p(0), p(0), 'Customer', '+910000000001', 'CODE');
CREATE PROCEDURE add_payment(n int, status text, expires_in interval)
LANGUAGE sql AS $$
  INSERT INTO payments (id, booking_id, provider, provider_payment_id, amount_cents, status, expires_at, updated_at)
  VALUES (p(n), p(0), 'upi', 'pending-' || n, 1000, status::payment_status, now() + expires_in, now() - interval '3 days');
$$;
CREATE VIEW payments_now AS
SELECT left(p.id::text, 8) AS payment, p.status, p.updated_at > now() - interval '1 minute' AS touched,
       (SELECT string_agg(concat_ws(' ', l.actor_type, l.action, l.from_status, l.to_status, l.metadata ->> 'source', l.metadata ->> 'rule'), ', ')
          FROM payment_audit_logs l WHERE l.payment_id = p.id) AS log,
       (SELECT count(*) FROM audit_logs a WHERE a.entity_id = p.id) AS audited,
       (SELECT string_agg(concat_ws(' ', c.verb, c.from_status, c.to_status), ', ')
          FROM cusown_ops.change c WHERE c.entity_id = p.id) AS changes
FROM payments p ORDER BY p.id;
CREATE FUNCTION raise_untouchable() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION '% must not change', TG_TABLE_NAME;
END
$$;
CREATE TRIGGER untouchable BEFORE UPDATE OR DELETE ON bookings FOR EACH STATEMENT EXECUTE FUNCTION raise_untouchable();
CREATE TRIGGER untouchable BEFORE UPDATE OR DELETE ON slots FOR EACH STATEMENT EXECUTE FUNCTION raise_untouchable();

CALL add_payment(1, 'initiated', '-50 minutes');
CALL add_payment(2, 'initiated', '-1 second');
CALL add_payment(3, 'initiated', '10 minutes');        -- can still be made
CALL add_payment(4, 'initiated', NULL);                -- for ever
CALL add_payment(5, 'pending', '-50 minutes');         -- cash, or a card: not by the clock
CALL add_payment(6, 'processing', '-50 minutes');
CALL add_payment(7, 'completed', '-50 minutes');
CALL add_payment(8, 'initiated', '-40 minutes');
SELECT * FROM cusown_expire_payments(dry_run => true);
SELECT count(*) FROM payments_now WHERE status = 'expired' OR log <> '' OR changes <> '';
-- one at a time, the oldest first
SELECT * FROM cusown_expire_payments(max_rows => 1);
SELECT left(id::text, 8) AS payment FROM payments WHERE status = 'expired';
SELECT * FROM cusown_expire_payments(source => 'application');
TABLE payments_now;
SELECT * FROM cusown_expire_payments();
-- at another moment, ahead of the clock only to look
SELECT * FROM cusown_expire_payments(as_of => now() + interval '11 minutes', dry_run => true);
SELECT * FROM cusown_expire_payments(as_of => now() + interval '11 minutes'); -- fails
\echo :SQLSTATE
CALL add_payment(9, 'initiated', '30 seconds');
SELECT * FROM cusown_expire_payments(as_of => now() + interval '50 seconds');
CALL add_payment(10, 'initiated', '-5 minutes');
SELECT * FROM cusown_expire_payments(as_of => now() - interval '10 minutes');
SELECT * FROM cusown_expire_payments(as_of => now() - interval '5 minutes');

-- What a trigger refuses does not stop the rest, and is left alone for a while.
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF OLD.amount_cents = 13 THEN
    RAISE EXCEPTION 'not this one' USING ERRCODE = 'P0013';
  END IF;
  RETURN NEW;
END
$$;
CREATE TRIGGER refuse BEFORE UPDATE ON payments FOR EACH ROW EXECUTE FUNCTION refuse();
CALL add_payment(11, 'initiated', '-9 minutes');
CALL add_payment(12, 'initiated', '-8 minutes');
CALL add_payment(13, 'initiated', '-7 minutes');
ALTER TABLE payments DISABLE TRIGGER refuse;
UPDATE payments SET amount_cents = 13 WHERE id = p(12);
ALTER TABLE payments ENABLE TRIGGER refuse;
SELECT * FROM cusown_expire_payments();
SELECT left(id::text, 8) AS payment, status FROM payments WHERE id IN (p(11), p(12), p(13)) ORDER BY id;
CREATE VIEW worklist AS
SELECT kind, entity, left(entity_id::text, 8) AS payment, runbook, sqlstate, finding, times, closed_by IS NOT NULL AS closed
FROM cusown_ops.attention;
TABLE worklist;
SELECT * FROM cusown_expire_payments();
UPDATE cusown_ops.attention SET next_try = now() WHERE closed_at IS NULL;
SELECT * FROM cusown_expire_payments();
TABLE worklist;
-- one that is gone is closed
ALTER TABLE payments DISABLE TRIGGER refuse;
UPDATE payments SET status = 'failed' WHERE id = p(12);
SELECT * FROM cusown_expire_payments();
TABLE worklist;

-- The job: in batches, with a row in the ledger.
UPDATE payments SET status = 'initiated' WHERE id IN (p(1), p(2), p(8), p(11), p(13));
SELECT job, every, enabled, description FROM cusown_jobs() WHERE job = 'expire_payments';
CALL cusown_run_job('expire_payments', batch_size => 2);
SELECT job, source, status, changed, looked_at, batches FROM cusown_ops.job_run;
SELECT late, last_outcome FROM cusown_cron_health() WHERE job = 'expire_payments';
-- where all is refused, the run fails, and what it found stays
ALTER TABLE payments ENABLE TRIGGER refuse;
INSERT INTO payments (id, booking_id, provider, provider_payment_id, amount_cents, status, expires_at)
SELECT p(n), p(0), 'upi', 'pending-' || n, 13, 'initiated', now() - interval '1 hour' FROM generate_series(21, 80) n;
CALL cusown_run_job('expire_payments'); -- fails
\echo :SQLSTATE
SELECT status, changed, attention > 0 AND attention < 60 AS on_worklist FROM cusown_ops.job_run ORDER BY id DESC LIMIT 1;
-- the next one goes on behind them
CALL add_payment(90, 'initiated', '-1 minute');
CALL cusown_run_job('expire_payments');
SELECT status, changed FROM cusown_ops.job_run ORDER BY id DESC LIMIT 1;
SELECT count(*), min(times), max(times) FROM worklist WHERE NOT closed;
-- where some got through, a call that has used up its tries says that more is left
DELETE FROM payments WHERE amount_cents = 13;
CALL add_payment(14, 'initiated', '-2 hours');
CALL add_payment(15, 'initiated', '-2 minutes');
INSERT INTO payments (id, booking_id, provider, provider_payment_id, amount_cents, status, expires_at)
SELECT p(n), p(0), 'upi', 'pending-' || n, 13, 'initiated', now() - interval '1 hour' FROM generate_series(121, 220) n;
SELECT expired, attention BETWEEN 1 AND 50 AS refused, more FROM cusown_expire_payments();
CALL cusown_run_job('expire_payments'); -- fails
CALL cusown_run_job('expire_payments');
SELECT status FROM payments WHERE id IN (p(14), p(15));
SELECT count(*), max(times) FROM worklist WHERE NOT closed AND payment ~ '^f00001[2-9]|^f00002';
DELETE FROM payments WHERE amount_cents = 13;
-- a trigger that keeps the audit row, or the payment, as it was
ALTER TABLE payments DISABLE TRIGGER refuse;
CREATE FUNCTION drop_row() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
CREATE TRIGGER drop_row BEFORE INSERT ON payment_audit_logs FOR EACH ROW EXECUTE FUNCTION drop_row();
UPDATE payments SET status = 'initiated' WHERE id = p(2);
SELECT * FROM cusown_expire_payments(); -- fails
\echo :SQLSTATE
DROP TRIGGER drop_row ON payment_audit_logs;
CREATE TRIGGER drop_row BEFORE UPDATE ON payments FOR EACH ROW EXECUTE FUNCTION drop_row();
SELECT * FROM cusown_expire_payments();
DROP TRIGGER drop_row ON payments;

-- What is refused.
SELECT * FROM cusown_expire_payments(0); -- fails
SELECT * FROM cusown_expire_payments(NULL); -- fails
\echo :SQLSTATE
SELECT * FROM cusown_expire_payments(as_of => NULL); -- fails
SELECT * FROM cusown_expire_payments(source => 'nobody'); -- fails
SELECT * FROM cusown_expire_payments(dry_run => NULL); -- fails
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT * FROM cusown_expire_payments(); -- fails
\echo :SQLSTATE
ROLLBACK;

-- An application whose payments have no end: nothing expires, and the job is
-- content with that.
SELECT count(*) > 0 AS attached FROM cusown_attach('pay_expiry_shop', :'minimal_mapping');
SET cusown_ops.app_schema = 'pay_expiry_shop';
SELECT * FROM cusown_expire_payments(); -- fails
\echo :SQLSTATE
CALL cusown_run_job('expire_payments');
SELECT app_schema, status, changed FROM cusown_ops.job_run ORDER BY id DESC LIMIT 1;
-- but it rechecks the worklist
INSERT INTO pay_expiry_shop.time_slot VALUES (p(1), 'available', NULL, now(), now());
INSERT INTO pay_expiry_shop.reservation (ref, state, slot_ref) VALUES (p(1), 'cancelled', p(1));
INSERT INTO pay_expiry_shop.charge (ref, reservation_ref, state, amount) SELECT p(n), p(1), 'pending', 10 FROM generate_series(7, 9) n;
SELECT r.to_status FROM generate_series(7, 9) n, cusown_payment_transition(p(n), 'verify') r;
UPDATE pay_expiry_shop.charge SET state = 'refunded' WHERE ref = p(7);
DELETE FROM pay_expiry_shop.charge WHERE ref = p(8);
CALL cusown_run_job('expire_payments');
SELECT left(entity_id::text, 8) AS payment, closed_by FROM cusown_ops.attention WHERE app_schema = 'pay_expiry_shop' ORDER BY entity_id;
-- also where payments are no longer bound; a human can still close what is open
SELECT count(*) > 0 AS attached FROM cusown_attach('pay_expiry_shop', :'minimal_mapping'::jsonb || '{"payments": null}');
SELECT cusown_attention_resolve(id, 'asked the owner') FROM cusown_ops.attention WHERE entity_id = p(9);
UPDATE cusown_ops.attention SET closed_at = NULL, closed_by = NULL WHERE entity_id = p(9);
CALL cusown_run_job('expire_payments');
SELECT closed_at IS NULL AS open FROM cusown_ops.attention WHERE entity_id = p(9);
SELECT * FROM cusown_payment_transition(p(9), 'verify'); -- fails
DELETE FROM pay_expiry_shop.journal;
DELETE FROM pay_expiry_shop.charge;
-- with one, but without an audit trail of payments
ALTER TABLE pay_expiry_shop.charge ADD expires_at timestamptz;
SELECT count(*) > 0 AS attached FROM cusown_attach('pay_expiry_shop', :'minimal_mapping');
INSERT INTO pay_expiry_shop.charge (ref, state, expires_at)
VALUES (p(1), 'initiated', now() - interval '1 hour'), (p(2), 'initiated', '-infinity'), (p(3), NULL, '-infinity');
CALL cusown_run_job('expire_payments');
SELECT state FROM pay_expiry_shop.charge ORDER BY ref;
SELECT verb, object_type, left(object_ref::text, 8) AS payment, detail FROM pay_expiry_shop.journal ORDER BY object_ref;
RESET cusown_ops.app_schema;

DROP SCHEMA pay_expiry_app, pay_expiry_shop CASCADE;
DROP EXTENSION cusown_ops;
