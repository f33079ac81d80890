--
-- The runbooks "Cron Failure", "Double Booking Alert" and "Payment Mismatch", each
-- walked from firing to quiet by the commands that cusown_runbook() prints, and by
-- nothing else; on the reference schema with its week of bookings, and on the
-- minimal one.
--
-- The file is no transaction: what is printed is run by \gexec, CALL and CREATE
-- INDEX CONCURRENTLY among it.
--
\set QUIET 1
\pset format unaligned
\pset tuples_only true
\set VERBOSITY terse
\set SHOW_CONTEXT never
SET client_min_messages = warning;

CREATE SCHEMA tap;
CREATE EXTENSION IF NOT EXISTS pgtap SCHEMA tap;
ALTER EXTENSION pgtap SET SCHEMA tap;

\i :fixture/cusown_app.sql
\i :fixture/app_minimal.sql
CREATE EXTENSION cusown_ops;
SET search_path = public, tap;
\i :fixture/sample_week.sql

SELECT plan(61);

SELECT count(*) FROM cusown_attach() \g /dev/null
UPDATE cusown_ops.binding SET bound_since = now() - interval '1 month';

CREATE SCHEMA t;

CREATE FUNCTION t.id(p_kind text, p_n integer) RETURNS uuid
LANGUAGE sql IMMUTABLE AS $$ SELECT md5(p_kind || ' runbook ' || p_n)::uuid $$;

-- symptoms of a runbook that fire
CREATE FUNCTION t.firing(p_runbook text) RETURNS text LANGUAGE sql AS $$
  SELECT coalesce(string_agg(symptom, ' ' ORDER BY symptom), 'quiet') FROM cusown_symptoms()
   WHERE firing AND runbook = p_runbook
$$;
CREATE FUNCTION t.needed(p_runbook text, p_ref uuid DEFAULT NULL) RETURNS bigint LANGUAGE sql AS $$
  SELECT count(*) FROM cusown_runbook(p_runbook, p_ref) WHERE state = 'needed'
$$;
CREATE FUNCTION t.state_of(p_runbook text) RETURNS text LANGUAGE sql AS $$
  SELECT state FROM cusown_runbook() WHERE step = p_runbook
$$;

\set ref NULL

-- Where another scheduler runs the jobs, its absence is none.
SELECT cusown_set_threshold('scheduler_absent', NULL, NULL) \g /dev/null

--
-- Cron failure: two days without the job
--

\set runbook cron_failure
SELECT is(t.firing('cron_failure'), 'hold_overdue job_late pending_overdue', 'cron failure: bookings and holds are overdue');
SELECT is((SELECT step FROM cusown_runbook() LIMIT 1), 'cron_failure', 'and its runbook is the first');
SELECT is(t.state_of('cron_failure'), 'needed', 'and needed');
SELECT matches(finding, 'job_late 8,\s+pending_overdue\s+\d+\s+days,\s+hold_overdue', 'by the symptoms that fire')
  FROM cusown_runbook() WHERE step = 'cron_failure';
SELECT is((SELECT count(*) FROM cusown_ops.job_run), 0::bigint, 'which wrote nothing');
-- one job has failed, one has died
INSERT INTO cusown_ops.job_run (app_schema, job, source, started_at, finished_at, status, sqlstate, session)
SELECT 'public', 'expire_bookings', 'cron', now(), now(), 'failed', '23514', 'gone';
INSERT INTO cusown_ops.job_run (app_schema, job, source, started_at, status, session)
SELECT 'public', 'expire_payments', 'cron', now(), 'running', 'gone';
SELECT is(t.firing('cron_failure'), 'hold_overdue job_died job_failing job_late pending_overdue', 'a job has failed, one has died');
SELECT matches(finding, 'last run failed:\s+23514', 'which the runbook says')
  FROM cusown_runbook('cron_failure') WHERE command ~ 'expire_bookings';
SELECT matches(finding, 'last run died', 'of both') FROM cusown_runbook('cron_failure') WHERE command ~ 'expire_payments';

\i :fixture/walk_runbook.sql
SELECT is(t.firing('cron_failure'), 'quiet', 'walked, it is quiet');
SELECT is(t.needed('cron_failure'), 0::bigint, 'and nothing is needed');
SELECT is(t.state_of('cron_failure'), 'done', 'as the list of runbooks says');
SELECT is(count(*), 0::bigint, 'no booking is left that is due and may expire')
  FROM cusown_due_bookings() WHERE verdict = 'expire';
SELECT is(count(*), 4::bigint, 'the paid ones are as they were') FROM bookings
 WHERE status = 'pending' AND id IN (SELECT md5('booking due_paid ' || n)::uuid FROM generate_series(1, 4) n);
SELECT is(count(*), 0::bigint, 'no hold has ended') FROM slots WHERE status = 'reserved' AND reserved_until < now();
SELECT is(count(DISTINCT job), 8::bigint, 'each job has run') FROM cusown_ops.job_run
 WHERE status = 'succeeded' AND source = 'manual';
SELECT is(count(*), 4::bigint, 'what cannot expire was closed on the worklist, by hand') FROM cusown_ops.attention
 WHERE kind = 'unexpirable' AND closed_by = session_user AND note = 'by runbook';
SELECT isnt(t.firing('payment_mismatch'), 'quiet', 'another runbook fires on');
-- entries of other runbooks that nobody looks at
UPDATE cusown_ops.attention SET first_seen = now() - interval '3 days' WHERE runbook = 'payment_mismatch';
SELECT is(t.firing('cron_failure'), 'worklist_age', 'entries wait for too long');
\i :fixture/walk_runbook.sql
SELECT is(t.firing('cron_failure'), 'quiet', 'walked, they do not');

--
-- Double booking: three businesses that have confirmed too many, slots that their
-- bookings contradict, two confirmed bookings on a slot, a hold without an end
--

\set runbook double_booking
DROP INDEX idx_bookings_one_confirmed_per_slot;
INSERT INTO slots (id, business_id, date, start_time, end_time, status)
SELECT t.id('slot', n), md5('business gym')::uuid, current_date + 20 + n, '10:00', '10:45',
       CASE n WHEN 3 THEN 'reserved' ELSE 'booked' END FROM generate_series(1, 3) n;
INSERT INTO bookings (id, business_id, slot_id, customer_name, customer_phone, booking_id, status, created_at)
SELECT t.id('booking', n), md5('business gym')::uuid, t.id('slot', (n + 1) / 2), 'Customer', '+15551111111',
       'CODE' || n, 'confirmed', now() - n * interval '1 h' FROM generate_series(1, 4) n;
INSERT INTO cusown_ops.attention (app_schema, kind, entity, entity_id, runbook, finding, next_try)
VALUES ('public', 'repair_failed', 'slot', t.id('slot', 1), 'double_booking', 'a trigger refuses to change it', now());
CALL cusown_run_job('take_census');
SELECT is(t.firing('double_booking'),
          'booking_worklist double_overlap double_same_slot double_slot_state unique_index_missing', 'double booking fires');
SELECT is(t.state_of('double_booking'), 'needed', 'its runbook is needed');
SELECT ok(bool_and(state = 'manual'), 'no index is built while it would fail')
  FROM cusown_runbook('double_booking') WHERE step = '4';
-- one case by hand: not the one that is kept by the policy
SELECT is(string_agg(command, ' '), format('SELECT * FROM cusown_keep_booking(''%s'');', t.id('booking', 1)),
          'of a case the one booking is kept')
  FROM cusown_runbook('double_booking', t.id('booking', 1)) WHERE step = '3' AND finding = 'same_slot';
SELECT is(string_agg(command, ' '), format('SELECT cusown_resolve_double_bookings(slot => ''%s'');', t.id('slot', 2)),
          'of a slot it is that one')
  FROM cusown_runbook('double_booking', t.id('slot', 2)) WHERE step = '3';
SELECT command FROM cusown_runbook('double_booking', t.id('booking', 1)) WHERE step = '3' AND finding = 'same_slot'
\o /dev/null
\gexec
\o
SELECT is(string_agg(status, ' ' ORDER BY booking_id), 'confirmed cancelled confirmed confirmed', 'it stays, the other one goes')
  FROM bookings WHERE booking_id IN ('CODE1', 'CODE2', 'CODE3', 'CODE4');
SELECT is(t.needed('double_booking', t.id('slot', 1)), 2::bigint, 'of its slot, what is counted and what is on the worklist is left');
\i :fixture/walk_runbook.sql
SELECT is(t.firing('double_booking'), 'quiet', 'walked, it is quiet');
SELECT is(t.needed('double_booking'), 0::bigint, 'and nothing is needed');
SELECT is(t.state_of('double_booking'), 'done', 'as the list of runbooks says');
SELECT is(string_agg(status, ' ' ORDER BY booking_id), 'confirmed cancelled cancelled confirmed', 'the policy kept the first of the others')
  FROM bookings WHERE booking_id IN ('CODE1', 'CODE2', 'CODE3', 'CODE4');
SELECT is(count(*), 0::bigint, 'no double booking of any kind is there') FROM cusown_double_bookings(verify => true);
SELECT is(string_agg(status, ' '), 'present', 'a unique index keeps them away') FROM cusown_install_constraints();
SELECT ok(reserved_until <= now(), 'the hold without an end has ended') FROM slots WHERE id = t.id('slot', 3);
SELECT is(count(*), 1::bigint, 'the cancelled booking has its audit row') FROM audit_logs
 WHERE entity_id = t.id('booking', 3) AND action_type = 'booking_cancelled';

--
-- Payment mismatch: paid twice, paid and cancelled, paid and not answered, a
-- webhook that came before its payment
--

\set runbook payment_mismatch
-- those are paid at the counter
UPDATE bookings SET payment_type = 'cash' WHERE id IN (SELECT id FROM cusown_payment_mismatches() WHERE kind = 'unpaid');
INSERT INTO payments (id, booking_id, provider, provider_payment_id, amount_cents, status, created_at, verified_at)
SELECT t.id('payment', n), t.id('booking', 1), 'razorpay', 'pay_' || n, 50000,
       CASE n WHEN 3 THEN 'processing' ELSE 'completed' END::payment_status,
       now() - n * interval '1 h', now() - n * interval '1 h' FROM generate_series(1, 3) n;
INSERT INTO cusown_ops.webhook_inbox (app_schema, provider, event_id, event_type, body_sha256, received_at, event,
  provider_ref, payment_ids, amount, currency, outcome, next_try)
VALUES ('public', 'razorpay', 'event', 'payment.failed', sha256('body'), now() - interval '5 h', 'fail', 'pay_3',
  '{}', 50000, 'INR', 'parked', now());
UPDATE cusown_ops.attention SET closed_at = NULL, closed_by = NULL, note = NULL WHERE kind = 'paid_pending';
CALL cusown_run_job('take_census');
SELECT is(t.firing('payment_mismatch'), 'paid_cancelled paid_pending paid_twice payment_worklist webhook_waiting',
          'payment mismatch fires');
SELECT is(t.state_of('payment_mismatch'), 'needed', 'its runbook is needed');
SELECT is(count(*), 1::bigint, 'of a payment that was paid twice one is to be refunded')
  FROM cusown_runbook('payment_mismatch', t.id('payment', 1)) WHERE command ~ 'refund';
CREATE TABLE t.booking_before AS SELECT id, status, slot_id FROM bookings;
CREATE TABLE t.slot_before AS SELECT id, status FROM slots;
\i :fixture/walk_runbook.sql
SELECT is(t.firing('payment_mismatch'), 'quiet', 'walked, it is quiet');
SELECT is(t.needed('payment_mismatch'), 0::bigint, 'and nothing is needed');
SELECT is(t.state_of('payment_mismatch'), 'done', 'as the list of runbooks says');
SELECT is(string_agg(status::text, ' ' ORDER BY created_at), 'failed completed refunded', 'the first payment stands')
  FROM payments WHERE booking_id = t.id('booking', 1);
SELECT is(outcome, 'applied', 'the webhook is applied') FROM cusown_ops.webhook_inbox;
SELECT is(count(*), 0::bigint, 'no payment contradicts its booking') FROM cusown_payment_mismatches() WHERE severity <> 'info';
SELECT is_empty('SELECT id, status, slot_id FROM bookings EXCEPT TABLE t.booking_before', 'no booking was changed');
SELECT is_empty('SELECT id, status FROM slots EXCEPT TABLE t.slot_before', 'and no slot');
SELECT is(count(*), 1::bigint, 'the refund has its audit row') FROM audit_logs
 WHERE entity_id = t.id('payment', 1) AND action_type = 'payment_refunded';

--
-- The database is slow
--

SELECT is(state, 'done', 'there is no pg_stat_statements') FROM cusown_runbook('database_performance') WHERE step = '1';
CREATE EXTENSION pg_stat_statements SCHEMA t;
SELECT matches(finding, '^pg_stat_statements\s+is\s+in\s+schema\s+t$', 'it is found')
  FROM cusown_runbook('database_performance') WHERE step = '1';
SELECT isnt(t.needed('database_performance'), 0::bigint, 'indexes are missing');
\set runbook database_performance
\i :fixture/walk_runbook.sql
SELECT is(t.needed('database_performance'), 0::bigint, 'walked, none is');
SELECT is(count(*), 0::bigint, 'as attaching says')
  FROM cusown_attach(dry_run => true) WHERE attribute ~ '^no (unique )?index';

--
-- All three on the minimal application
--

SELECT count(*) FROM cusown_attach('shop', :'minimal_mapping') \g /dev/null
UPDATE cusown_ops.binding SET bound_since = now() - interval '1 month';
SET cusown_ops.app_schema = 'shop';
SELECT cusown_set_threshold('scheduler_absent', NULL, NULL) \g /dev/null
DROP INDEX shop.reservation_one_confirmed;
INSERT INTO shop.time_slot (ref, state, held_until) VALUES
  (t.id('slot', 1), 'booked', NULL), (t.id('slot', 2), 'reserved', NULL), (t.id('slot', 3), 'reserved', now() - interval '2 h'),
  (t.id('slot', 4), 'available', NULL);
INSERT INTO shop.reservation (ref, state, slot_ref, made_at) VALUES
  (t.id('booking', 1), 'confirmed', t.id('slot', 1), now() - interval '2 h'),
  (t.id('booking', 2), 'confirmed', t.id('slot', 1), now() - interval '1 h'),
  (t.id('booking', 3), 'pending', t.id('slot', 3), now() - interval '3 days'),
  (t.id('booking', 4), 'cancelled', t.id('slot', 4), now());
INSERT INTO shop.charge (ref, reservation_ref, state, made_at) VALUES
  (t.id('payment', 1), t.id('booking', 1), 'completed', now() - interval '2 h'),
  (t.id('payment', 2), t.id('booking', 1), 'completed', now() - interval '1 h'),
  (t.id('payment', 4), t.id('booking', 4), 'completed', now());
SELECT is(t.firing('cron_failure'), 'hold_overdue job_late pending_overdue', 'minimal: cron failure fires');
\set runbook cron_failure
\i :fixture/walk_runbook.sql
SELECT is(t.firing('cron_failure'), 'quiet', 'minimal: walked, it is quiet');
SELECT is(state, 'cancelled', 'minimal: the booking expired') FROM shop.reservation WHERE ref = t.id('booking', 3);
SELECT is(t.firing('double_booking'), 'double_same_slot double_slot_state unique_index_missing', 'minimal: double booking fires');
\set runbook double_booking
\i :fixture/walk_runbook.sql
SELECT is(t.firing('double_booking'), 'quiet', 'minimal: walked, it is quiet');
SELECT is(string_agg(state, ' ' ORDER BY made_at), 'confirmed cancelled', 'minimal: one booking is left on the slot')
  FROM shop.reservation WHERE slot_ref = t.id('slot', 1);
SELECT is(string_agg(status, ' '), 'present', 'minimal: a unique index is there') FROM cusown_install_constraints();
SELECT is(t.firing('payment_mismatch'), 'paid_cancelled paid_twice', 'minimal: payment mismatch fires');
\set runbook payment_mismatch
\i :fixture/walk_runbook.sql
SELECT is(t.firing('payment_mismatch'), 'quiet', 'minimal: walked, it is quiet');
SELECT is(string_agg(state, ' ' ORDER BY made_at), 'completed refunded refunded', 'minimal: one payment is left') FROM shop.charge;
RESET cusown_ops.app_schema;

SELECT * FROM finish();
