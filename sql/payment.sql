-- Shows what happens to one payment: its status and fields, the audit rows, what
-- refunds add up to, late captures, the worklist, and what is refused.
\set ON_ERROR_STOP 0
\set SHOW_CONTEXT never
\getenv abs_srcdir PG_ABS_SRCDIR
\set app :abs_srcdir '/test/fixture/cusown_app.sql'
\set minimal :abs_srcdir '/test/fixture/app_minimal.sql'
SET client_min_messages = warning;
CREATE EXTENSION cusown_ops;
SELECT * FROM cusown_payment_transition('00000000-0000-0000-0000-000000000000', 'verify'); -- fails
\set ECHO none
\set schema payment_app
\i :app
\set schema payment_shop
\i :minimal
\set ECHO all
SET search_path = payment_app, public;
SELECT count(*) > 0 AS attached FROM cusown_attach('payment_app');

-- payment n, in this status, of a booking in that one
CREATE FUNCTION p(n int) RETURNS uuid LANGUAGE sql IMMUTABLE
RETURN rpad('f' || lpad(n::text, 7, '0'), 32, '0')::uuid;
CREATE FUNCTION b(n int) RETURNS uuid LANGUAGE sql IMMUTABLE
RETURN rpad('b' || lpad(n::text, 7, '0'), 32, '0')::uuid;
INSERT INTO businesses (id, salon_name, owner_name, whatsapp_number,
  opening_time, closing_time, slot_duration, booking_link)
VALUES (b(0), 'Salon', 'Owner', '+910000000000', '09:00', '18:00', 30, 'salon');
CREATE PROCEDURE add_payment(n int, status text, booking_status text DEFAULT 'pending')
LANGUAGE sql AS $$
  INSERT INTO slots (id, business_id, date, start_time, end_time)
  VALUES (p(n), b(0), current_date + n, '10:00', '10:30');
  INSERT INTO bookings (id, business_id, slot_id, customer_name, customer_phone, booking_id, status, cancelled_at)
  VALUES (b(n), b(0), p(n), 'Customer', '+910000000001', 'CODE' || n, booking_status,
          CASE booking_status WHEN 'cancelled' THEN now() END);
  INSERT INTO payments (id, booking_id, provider, provider_payment_id, amount_cents, status)
  VALUES (p(n), b(n), 'razorpay', 'pending-' || n, 1000, status::payment_status);
$$;
CREATE FUNCTION report(n int) RETURNS TABLE (what text, status text, detail text)
LANGUAGE sql STABLE AS $$
  SELECT 'payment', p.status::text,
         concat_ws(', ', p.provider_payment_id, p.verification_method,
                   CASE WHEN p.verified_at IS NOT NULL THEN 'verified' END, left(p.verified_by::text, 8),
                   p.failure_reason, 'attempts ' || p.attempt_count, 'refunded ' || p.refund_amount_cents,
                   p.refund_reason, CASE WHEN p.refunded_at IS NOT NULL THEN 'refunded_at' END, left(p.refunded_by::text, 8))
    FROM payments p WHERE p.id = p(n)
  UNION ALL
  (SELECT 'log ' || l.action, coalesce(l.from_status::text, '-') || ' > ' || l.to_status,
          concat_ws(', ', l.actor_type, left(l.actor_id::text, 8), l.reason, l.metadata - '{from,to,source,reason,actor}'::text[])
     FROM payment_audit_logs l WHERE l.payment_id = p(n) ORDER BY l.created_at)
  UNION ALL
  (SELECT a.action_type, coalesce(a.old_data ->> 'status', '-') || ' > ' || coalesce(a.new_data ->> 'status', '-'),
          concat_ws(', ', a.actor_role, left(a.admin_user_id::text, 8), a.metadata ->> 'event', a.description)
     FROM audit_logs a WHERE a.entity_type = 'payment' AND a.entity_id = p(n) ORDER BY a.created_at, a.id)
  UNION ALL
  (SELECT 'change ' || c.verb, c.from_status || ' > ' || c.to_status, c.source
     FROM cusown_ops.change c WHERE c.entity_id = p(n) ORDER BY c.id)
$$;
CREATE VIEW worklist AS
SELECT kind, entity, left(entity_id::text, 8) AS payment, runbook, finding, times,
       closed_by IS NOT NULL AS closed, nullif(closed_by, current_user) AS closed_by
FROM cusown_ops.attention ORDER BY kind, entity_id;
-- whatever a payment verb does, it leaves these alone
CREATE FUNCTION raise_untouchable() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION '% must not change', TG_TABLE_NAME;
END
$$;
CREATE PROCEDURE touch_not(relation regclass) LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE format('CREATE TRIGGER untouchable BEFORE UPDATE OR DELETE ON %s
                  FOR EACH STATEMENT EXECUTE FUNCTION raise_untouchable()', relation);
END
$$;
CALL touch_not('bookings');
CALL touch_not('slots');

-- Begun, processed, verified.
CALL add_payment(1, 'initiated');
SELECT * FROM cusown_payment_transition(p(1), 'process', dry_run => true);
SELECT * FROM report(1);
SELECT * FROM cusown_payment_transition(p(1), 'process', provider_ref => 'pay_1');
SELECT * FROM cusown_payment_transition(p(1), 'verify', b(99), 'seen at the provider', '{"ticket": 7}');
SELECT * FROM report(1);
-- again: nothing, and it says so
SELECT * FROM cusown_payment_transition(p(1), 'verify', b(98), provider_ref => 'pay_2');
SELECT * FROM cusown_payment_transition(p(1), 'late_capture');
SELECT count(*) FROM report(1);
-- nothing moves backwards
SELECT * FROM cusown_payment_transition(p(1), 'process'); -- fails
\echo :SQLSTATE
SELECT * FROM cusown_payment_transition(p(1), 'fail'); -- fails
SELECT * FROM cusown_payment_transition(p(1), 'expire'); -- fails
SELECT * FROM cusown_payment_transition(p(1), 'verfy'); -- fails
CALL add_payment(10, 'pending');
SELECT * FROM cusown_payment_transition(p(10), 'late_capture', reason => 'x', provider_ref => 'pay_10'); -- fails
-- by the system, as polling found it
CALL add_payment(2, 'pending');
SELECT * FROM cusown_payment_transition(p(2), 'verify', evidence => '{"verification_method": "polling"}', provider_ref => 'pay_20');
SELECT * FROM report(2);

-- Failed and expired: attempts are counted; what the audit trail has no action
-- for is told to the payment's own.
CALL add_payment(3, 'processing');
SELECT * FROM cusown_payment_transition(p(3), 'fail', reason => 'card declined');
SELECT * FROM cusown_payment_transition(p(3), 'fail', reason => 'again');
SELECT * FROM report(3);
CALL add_payment(4, 'processing');
SELECT * FROM cusown_payment_transition(p(4), 'expire');
SELECT * FROM cusown_payment_transition(p(4), 'expire');
SELECT * FROM report(4);

-- Money that came after all: only where somebody knows of it.
SELECT * FROM cusown_payment_transition(p(3), 'verify'); -- fails
\echo :SQLSTATE
SELECT * FROM cusown_payment_transition(p(3), 'late_capture', reason => 'it is there'); -- fails
SELECT * FROM cusown_payment_transition(p(3), 'verify', provider_ref => 'pay_3'); -- fails
SELECT * FROM cusown_payment_transition(p(3), 'verify', reason => ' ', provider_ref => 'pay_3'); -- fails
SELECT * FROM cusown_payment_transition(p(3), 'verify', reason => 'it is there', provider_ref => E'\t'); -- fails
SELECT * FROM cusown_payment_transition(p(3), 'verify', reason => 'it is there', provider_ref => ''); -- fails
SELECT * FROM cusown_payment_transition(p(3), 'verify', reason => E'\f\u000b\u00a0\n', provider_ref => 'pay_3'); -- fails
SELECT * FROM cusown_payment_transition(p(3), 'verify', reason => 'it is there', provider_ref => 'pending-3'); -- fails
SELECT * FROM cusown_payment_transition(p(3), 'verify', reason => 'it is there', provider_ref => E' PENDING-3\u00a0'); -- fails
SELECT * FROM cusown_payment_transition(p(3), 'verify', reason => 'it is there', provider_ref => p(3) || E'\n'); -- fails
SELECT * FROM cusown_payment_transition(p(3), 'verify', reason => 'it is there', provider_ref => upper(p(3)::text)); -- fails
-- a statement line that does not exist is no evidence, whatever else is said
SELECT * FROM cusown_payment_transition(p(3), 'verify', reason => 'it is there', provider_ref => 'pay_3', evidence => '{"statement_line_id": 12}'); -- fails
\echo :SQLSTATE
SELECT count(*) FROM report(3);
SELECT * FROM cusown_payment_transition(p(3), 'verify', b(99), 'found on the dashboard', provider_ref => E'\t pay_3\u00a0 ', evidence => '{"statement_line_id": null}');
SELECT * FROM report(3);
SELECT * FROM cusown_payment_transition(p(4), 'verify', reason => 'found on the dashboard', provider_ref => 'pending-'); -- fails
SELECT * FROM cusown_payment_transition(p(4), 'late_capture', reason => 'found on the dashboard', provider_ref => 'pending-4a');
-- an owner may do without
CALL add_payment(5, 'failed');
INSERT INTO cusown_ops.state_transition VALUES ('payment_app', 'payment', 'failed', 'verify', 'completed');
SELECT * FROM cusown_payment_transition(p(5), 'verify');
-- and add others, but no other statuses, and not two of one event
INSERT INTO cusown_ops.state_transition VALUES
  ('payment_app', 'payment', 'completed', 'dispute', 'processing'), ('payment_app', 'payment', 'processing', 'lose', 'lost'),
  ('payment_app', 'payment', 'failed', 'retry', 'pending'), ('payment_app', 'payment', 'failed', 'retry', 'initiated');
SELECT * FROM cusown_payment_transition(p(5), 'dispute');
SELECT * FROM cusown_payment_transition(p(5), 'dispute');
SELECT * FROM cusown_payment_transition(p(5), 'lose'); -- fails
SELECT * FROM cusown_payment_transition(p(5), 'fail');
SELECT * FROM cusown_payment_transition(p(5), 'retry'); -- fails
DELETE FROM cusown_ops.state_transition;
SELECT * FROM cusown_payment_transition(p(5), 'verify'); -- fails

-- Refunds with a reference add up, each once.
SELECT * FROM cusown_payment_transition(p(1), 'partial_refund', b(99), 'one of two services', refund_amount => 300, refund_ref => 'r1');
SELECT * FROM cusown_payment_transition(p(1), 'partial_refund', refund_amount => 300, refund_ref => 'r1');
SELECT * FROM cusown_payment_transition(p(1), 'partial_refund', refund_amount => 200, refund_ref => 'r2');
SELECT status, refund_amount_cents, refund_reason FROM payments WHERE id = p(1);
-- references are pasted
SELECT changed FROM cusown_payment_transition(p(1), 'partial_refund', refund_amount => 300, refund_ref => E' r1\u00a0\n');
-- a figure without one is that of all so far; the greatest counts, in any order
SELECT * FROM cusown_payment_transition(p(1), 'partial_refund', refund_amount => 400);
SELECT * FROM cusown_payment_transition(p(1), 'partial_refund', refund_amount => 500);
SELECT * FROM cusown_payment_transition(p(1), 'partial_refund', refund_amount => 650);
SELECT status, refund_amount_cents FROM payments WHERE id = p(1);
-- it holds a refund that is told with its reference later, which changes nothing
SELECT * FROM cusown_payment_transition(p(1), 'partial_refund', refund_amount => 150, refund_ref => 'r2b');
SELECT status, refund_amount_cents FROM payments WHERE id = p(1);
SELECT refund_ref, amount FROM cusown_ops.payment_refund ORDER BY refund_ref;
-- never over the amount
SELECT * FROM cusown_payment_transition(p(1), 'partial_refund', refund_amount => 351, refund_ref => 'r3'); -- fails
\echo :SQLSTATE
SELECT * FROM cusown_payment_transition(p(1), 'partial_refund', refund_amount => 1001); -- fails
SELECT * FROM cusown_payment_transition(p(1), 'refund', refund_amount => 9223372036854775807, refund_ref => 'r3'); -- fails
-- a reference that is known is not another refund
SELECT * FROM cusown_payment_transition(p(1), 'partial_refund', refund_amount => 100, refund_ref => 'r1'); -- fails
\echo :SQLSTATE
-- a refund leaves nothing
SELECT * FROM cusown_payment_transition(p(1), 'refund', refund_amount => 349, refund_ref => 'r3'); -- fails
\echo :SQLSTATE
SELECT * FROM cusown_payment_transition(p(1), 'refund', refund_amount => 900); -- fails
SELECT * FROM cusown_payment_transition(p(1), 'partial_refund', refund_amount => 350, refund_ref => 'r3', dry_run => true);
SELECT * FROM cusown_payment_transition(p(1), 'partial_refund', refund_amount => 350, refund_ref => 'r3');
SELECT * FROM cusown_payment_transition(p(1), 'refund');
SELECT * FROM cusown_payment_transition(p(1), 'refund', refund_ref => 'r3');
-- the provider's earlier figure comes late
SELECT * FROM cusown_payment_transition(p(1), 'partial_refund', refund_amount => 300);
SELECT refund_ref, amount FROM cusown_ops.payment_refund ORDER BY refund_ref;
SELECT * FROM cusown_payment_transition(p(1), 'partial_refund', refund_amount => 1, refund_ref => 'r4'); -- fails
SELECT * FROM report(1);
SELECT refund_ref, amount FROM cusown_ops.payment_refund ORDER BY refund_ref;
-- references are a payment's own; without an amount it is what is left
SELECT * FROM cusown_payment_transition(p(2), 'partial_refund', refund_amount => 600, refund_ref => 'r1');
SELECT * FROM cusown_payment_transition(p(2), 'refund', b(99), refund_ref => 'r2');
SELECT * FROM report(2);
-- how much that was may be told later, and of what was before it; it is whole already
SELECT * FROM cusown_payment_transition(p(2), 'partial_refund', refund_amount => 150, refund_ref => 'r1b');
SELECT * FROM cusown_payment_transition(p(2), 'partial_refund', refund_amount => 250, refund_ref => 'r2');
SELECT * FROM cusown_payment_transition(p(2), 'refund', refund_ref => 'r2');
SELECT * FROM cusown_payment_transition(p(2), 'partial_refund', refund_amount => 251, refund_ref => 'r2'); -- fails
SELECT * FROM cusown_payment_transition(p(2), 'partial_refund', refund_amount => 1, refund_ref => 'r3'); -- fails
SELECT refund_ref, amount FROM cusown_ops.payment_refund WHERE payment_id = p(2) ORDER BY refund_ref;
SELECT status, refund_amount_cents FROM payments WHERE id = p(2);
-- the application has told the amount, but not moved the status
CALL add_payment(6, 'completed');
UPDATE payments SET refund_amount_cents = 400 WHERE id = p(6);
SELECT * FROM cusown_payment_transition(p(6), 'partial_refund', refund_amount => 400);
-- what it has told is a figure: of it is this refund, and the next one is not
SELECT changed FROM cusown_payment_transition(p(6), 'partial_refund', refund_amount => 400, refund_ref => 'r1');
SELECT changed FROM cusown_payment_transition(p(6), 'partial_refund', refund_amount => 50, refund_ref => 'r2');
SELECT status, refund_amount_cents FROM payments WHERE id = p(6);
UPDATE payments SET refund_amount_cents = 1100 WHERE id = p(6);
SELECT * FROM cusown_payment_transition(p(6), 'refund'); -- fails
-- or has said that it is refunded, but not how much
CALL add_payment(19, 'refunded');
SELECT to_status, changed FROM cusown_payment_transition(p(19), 'partial_refund', refund_amount => 400, refund_ref => 'r1');
SELECT to_status, changed FROM cusown_payment_transition(p(19), 'partial_refund', refund_amount => 600, refund_ref => 'r2');
SELECT to_status, changed FROM cusown_payment_transition(p(19), 'partial_refund', refund_amount => 1, refund_ref => 'r3'); -- fails

-- A refund of what is not completed yet says that it was.
CALL add_payment(7, 'processing');
SELECT * FROM cusown_payment_transition(p(7), 'partial_refund', refund_amount => 100, provider_ref => 'pay_7');
SELECT * FROM report(7);
CALL add_payment(8, 'initiated');
SELECT * FROM cusown_payment_transition(p(8), 'refund');
SELECT status, refund_amount_cents FROM payments WHERE id = p(8);
CALL add_payment(9, 'expired');
SELECT * FROM cusown_payment_transition(p(9), 'refund'); -- fails
\echo :SQLSTATE
SELECT * FROM cusown_payment_transition(p(9), 'refund', reason => 'came late', provider_ref => 'pay_9');
SELECT * FROM report(9);

-- Money for a booking that will not take place is there all the same.
CALL add_payment(11, 'processing', 'cancelled');
CALL add_payment(12, 'pending', 'rejected');
CALL add_payment(13, 'processing', 'confirmed');
CALL add_payment(14, 'processing', 'cancelled');
SELECT * FROM cusown_payment_transition(p(11), 'verify', dry_run => true);
TABLE worklist;
SELECT r.* FROM generate_series(11, 14) n, cusown_payment_transition(p(n), 'verify') r;
SELECT changed FROM cusown_payment_transition(p(11), 'verify');
TABLE worklist;
-- any refund decides it, and so does another booking
SELECT * FROM cusown_payment_transition(p(11), 'partial_refund', refund_amount => 900, refund_ref => 'fee kept');
UPDATE payments SET booking_id = b(13) WHERE id = p(14);
TABLE worklist;
SELECT * FROM cusown_expire_payments();
TABLE worklist;
SELECT cusown_attention_resolve(id, 'rebooked by phone') FROM cusown_ops.attention WHERE entity_id = p(12);
SELECT action_type, entity_type, metadata ->> 'kind' AS kind FROM audit_logs WHERE entity_id = p(12) ORDER BY created_at, id;

-- What is refused.
SELECT * FROM cusown_payment_transition(NULL, 'verify'); -- fails
\echo :SQLSTATE
SELECT * FROM cusown_payment_transition(p(13), NULL); -- fails
SELECT * FROM cusown_payment_transition(p(13), 'verify', dry_run => NULL); -- fails
SELECT * FROM cusown_payment_transition(p(99), 'verify'); -- fails
\echo :SQLSTATE
SELECT * FROM cusown_payment_transition(p(13), 'verify', refund_amount => 1); -- fails
\echo :SQLSTATE
SELECT * FROM cusown_payment_transition(p(13), 'verify', refund_ref => 'r1'); -- fails
SELECT * FROM cusown_payment_transition(p(13), 'partial_refund', refund_ref => 'r1'); -- fails
\echo :SQLSTATE
SELECT * FROM cusown_payment_transition(p(13), 'refund', refund_amount => 0); -- fails
SELECT * FROM cusown_payment_transition(p(13), 'refund', refund_amount => -5, refund_ref => 'r1'); -- fails
SELECT * FROM cusown_payment_transition(p(13), 'refund', refund_ref => ''); -- fails
SELECT * FROM cusown_payment_transition(p(13), 'verify', evidence => '[1]'); -- fails
\echo :SQLSTATE
SELECT * FROM cusown_payment_transition(p(13), 'verify', evidence => '"x"'); -- fails
SELECT * FROM cusown_payment_transition(p(13), 'verify', evidence => '{"verification_method": "phone"}'); -- fails
SELECT * FROM cusown_payment_transition(p(13), 'verify', evidence => '{"verification_method": 1}'); -- fails
SELECT * FROM cusown_payment_transition(p(9), 'verify', evidence => '{"statement_line_id": "12"}'); -- fails
CALL add_payment(15, 'failed');
SELECT * FROM cusown_payment_transition(p(15), 'verify', evidence => '{"statement_line_id": "12"}'); -- fails
\echo :SQLSTATE
SELECT * FROM cusown_payment_transition(p(15), 'verify', evidence => '{"statement_line_id": 1.5}'); -- fails
SELECT * FROM cusown_payment_transition(p(15), 'verify', evidence => '{"statement_line_id": 1e30}'); -- fails
\echo :SQLSTATE
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT * FROM cusown_payment_transition(p(13), 'refund'); -- fails
ROLLBACK;
BEGIN READ ONLY;
SELECT * FROM cusown_payment_transition(p(13), 'refund'); -- fails
ROLLBACK;

-- Payment and audit rows stand and fall together.
CALL add_payment(16, 'processing');
ALTER TABLE audit_logs ADD CONSTRAINT no_success CHECK (action_type <> 'payment_succeeded') NOT VALID;
\set VERBOSITY terse
SELECT * FROM cusown_payment_transition(p(16), 'verify'); -- fails
\set VERBOSITY default
ALTER TABLE audit_logs DROP CONSTRAINT no_success;
CREATE FUNCTION drop_row() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
CREATE TRIGGER drop_row BEFORE INSERT ON audit_logs FOR EACH ROW EXECUTE FUNCTION drop_row();
SELECT * FROM cusown_payment_transition(p(16), 'verify'); -- fails
\echo :SQLSTATE
DROP TRIGGER drop_row ON audit_logs;
CREATE TRIGGER drop_row BEFORE INSERT ON payment_audit_logs FOR EACH ROW EXECUTE FUNCTION drop_row();
SELECT * FROM cusown_payment_transition(p(16), 'verify'); -- fails
SELECT * FROM cusown_payment_transition(p(16), 'expire'); -- fails
DROP TRIGGER drop_row ON payment_audit_logs;
CREATE TRIGGER drop_row BEFORE UPDATE ON payments FOR EACH ROW EXECUTE FUNCTION drop_row();
SELECT * FROM cusown_payment_transition(p(16), 'verify'); -- fails
DROP TRIGGER drop_row ON payments;
CREATE FUNCTION turn_back() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.status = 'pending'; RETURN NEW; END $$;
CREATE TRIGGER turn_back BEFORE UPDATE ON payments FOR EACH ROW EXECUTE FUNCTION turn_back();
SELECT * FROM cusown_payment_transition(p(16), 'verify'); -- fails
SELECT * FROM cusown_payment_transition(p(16), 'expire'); -- fails
DROP TRIGGER turn_back ON payments;
SELECT * FROM report(16);

-- An application with nothing but what the runbooks name: refunds are added up
-- in our own table.
SET search_path = payment_shop, public;
SELECT count(*) > 0 AS attached FROM cusown_attach('payment_shop', :'minimal_mapping');
SELECT * FROM cusown_payment_transition(payment_app.p(1), 'verify'); -- fails
SET cusown_ops.app_schema = 'payment_shop';
INSERT INTO time_slot VALUES (payment_app.p(1), 'available', NULL, now(), now());
INSERT INTO reservation (ref, state, slot_ref) VALUES (payment_app.b(1), 'cancelled', payment_app.p(1));
INSERT INTO charge (ref, reservation_ref, state, provider_code, amount, made_at)
SELECT payment_app.p(n), payment_app.b(1), 'initiated', 'pending-' || n, 1000, now() FROM generate_series(1, 3) n;
INSERT INTO charge (ref, state) VALUES (payment_app.p(4), 'pending'), (payment_app.p(5), NULL), (payment_app.p(6), 'disputed'),
  (payment_app.p(7), repeat('x', 62) || U&'\00e9');
SELECT * FROM cusown_payment_transition(payment_app.p(1), 'process', payment_app.b(99), 'begun', '{}', 'ref 1');
SELECT * FROM cusown_payment_transition(payment_app.p(1), 'verify');
SELECT * FROM cusown_payment_transition(payment_app.p(1), 'partial_refund', refund_amount => 300, refund_ref => 'r1');
SELECT * FROM cusown_payment_transition(payment_app.p(1), 'partial_refund', refund_amount => 400);
SELECT * FROM cusown_payment_transition(payment_app.p(1), 'partial_refund', refund_amount => 550);
SELECT * FROM cusown_payment_transition(payment_app.p(1), 'partial_refund', refund_amount => 550);
SELECT * FROM cusown_payment_transition(payment_app.p(1), 'partial_refund', refund_amount => 701, refund_ref => 'r2'); -- fails
SELECT * FROM cusown_payment_transition(payment_app.p(1), 'partial_refund', refund_amount => 250, refund_ref => 'r2');
SELECT * FROM cusown_payment_transition(payment_app.p(1), 'refund', refund_amount => 450, refund_ref => 'r3');
SELECT refund_ref, amount FROM cusown_ops.payment_refund WHERE app_schema = 'payment_shop' ORDER BY refund_ref;
SELECT * FROM cusown_payment_transition(payment_app.p(2), 'fail');
SELECT * FROM cusown_payment_transition(payment_app.p(3), 'expire');
SELECT state, provider_code FROM charge WHERE amount > 0 ORDER BY ref;
SELECT verb, left(object_ref::text, 8) AS payment, detail FROM journal ORDER BY id;
-- without an amount nobody can say what is left; without a booking nothing is lost
SELECT * FROM cusown_payment_transition(payment_app.p(4), 'refund');
SELECT * FROM cusown_payment_transition(payment_app.p(4), 'refund', refund_ref => 'r1', refund_amount => 5);
SELECT * FROM cusown_payment_transition(payment_app.p(4), 'partial_refund', refund_amount => 5); -- fails
SELECT * FROM cusown_payment_transition(payment_app.p(5), 'verify'); -- fails
SELECT * FROM cusown_payment_transition(payment_app.p(6), 'verify'); -- fails
SELECT * FROM cusown_payment_transition(payment_app.p(7), 'verify'); -- fails
SELECT kind, left(entity_id::text, 8) AS payment, finding, closed_by FROM cusown_ops.attention WHERE app_schema = 'payment_shop';

-- Types of its own for what we write, and a booking, a slot and payments as they
-- were all along.
RESET cusown_ops.app_schema;
SELECT cusown_detach('payment_shop');
SET search_path = payment_app, public;
CREATE TYPE verification AS ENUM ('webhook', 'polling', 'manual');
CREATE TYPE who AS ENUM ('system', 'owner');
CREATE DOMAIN reached AS payment_status;
ALTER TABLE payments DROP CONSTRAINT payments_verification_method_check,
  ALTER verification_method TYPE verification USING verification_method::verification,
  ALTER status DROP DEFAULT, ALTER status TYPE reached, ALTER amount_cents TYPE bigint, ALTER refund_amount_cents TYPE bigint;
ALTER TABLE payment_audit_logs DROP CONSTRAINT payment_audit_logs_actor_type_check,
  ALTER actor_type TYPE who USING actor_type::who, ALTER to_status TYPE varchar(30), ALTER from_status TYPE text;
SELECT relation, attribute, remedy FROM cusown_attach('payment_app') WHERE status <> 'bound' AND attribute ~ 'type|method|_status';
SELECT * FROM cusown_payment_transition(p(16), 'verify', b(99));
SELECT * FROM cusown_payment_transition(p(16), 'partial_refund', refund_amount => 10);
CALL add_payment(17, 'initiated');
UPDATE payments SET expires_at = now() WHERE id = p(17);
SELECT * FROM cusown_expire_payments();
SELECT * FROM report(16);
SELECT * FROM report(17);
-- more than can be added up is not the whole of a payment
CALL add_payment(18, 'completed');
UPDATE payments SET amount_cents = 9223372036854775807 WHERE id = p(18);
SELECT to_status FROM cusown_payment_transition(p(18), 'partial_refund', refund_amount => 9000000000000000000, refund_ref => 'r1');
SELECT to_status FROM cusown_payment_transition(p(18), 'partial_refund', refund_amount => 9000000000000000000, refund_ref => 'r2'); -- fails
\echo :SQLSTATE

-- What belongs to an application that was detached goes with the job, in time.
SELECT cusown_detach('payment_app');
SELECT app_schema, count(*) FROM cusown_ops.payment_refund GROUP BY 1 ORDER BY 1;
SELECT count(*) > 0 AS attached FROM cusown_attach('payment_app');
SELECT pruned > 0 AS pruned FROM cusown_prune_history(as_of => now() + interval '30 days', dry_run => true);
UPDATE cusown_ops.payment_refund SET at = now() - interval '8 days' WHERE refund_ref = 'r1';
SELECT pruned FROM cusown_prune_history();
SELECT app_schema, refund_ref, count(*) FROM cusown_ops.payment_refund GROUP BY 1, 2 ORDER BY 1, 2;

DROP SCHEMA payment_app, payment_shop CASCADE;
DROP EXTENSION cusown_ops;
