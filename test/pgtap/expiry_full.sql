--
-- Expiry on the reference schema of the application: what is due, what a run
-- changes and what it leaves alone, and the life of a worklist entry.
--
-- The file is no transaction as a whole: each call is one, as it is for a DBA,
-- so that now() moves on between them.
--
\set QUIET 1
\pset format unaligned
\pset tuples_only true
SET client_min_messages = warning;

CREATE SCHEMA tap;
CREATE EXTENSION IF NOT EXISTS pgtap SCHEMA tap;
ALTER EXTENSION pgtap SET SCHEMA tap;

\i :fixture/cusown_app.sql
CREATE EXTENSION cusown_ops;
SET search_path = public, tap;
\i :fixture/sample_week.sql
SELECT count(*) AS names FROM cusown_attach() \gset

SELECT plan(221);

--
-- Helpers
--

CREATE SCHEMA t;

-- the cases of the sample that are due, and what becomes of them
CREATE TABLE t.due_case (
  grp text, count integer, verdict text, slot_freed boolean,
  booking_after text, slot_after text);
INSERT INTO t.due_case VALUES
  ('due_plain',                 11, 'expire',    true,  'cancelled', 'available'),
  ('due_hold_cleaned',           6, 'expire',    false, 'cancelled', 'available'),
  ('due_abandoned',              7, 'expire',    true,  'cancelled', 'available'),
  ('due_dead_payment',           4, 'expire',    true,  'cancelled', 'available'),
  ('due_slot_held_again',        1, 'expire',    false, 'cancelled', 'reserved'),
  ('due_slot_held_alone',        1, 'expire',    false, 'cancelled', 'reserved'),
  ('due_rescheduled',            2, 'expire',    true,  'cancelled', 'available'),
  ('due_slot_confirmed',         1, 'expire',    false, 'cancelled', 'booked'),
  ('due_slot_freed_wrongly',     1, 'expire',    false, 'cancelled', 'reserved'),
  ('due_slot_rescheduled_onto',  1, 'expire',    false, 'cancelled', 'booked'),
  ('due_slot_shared',            1, 'expire',    true,  'cancelled', 'available'),
  ('due_pair',                   2, 'expire',    true,  'cancelled', 'available'),
  ('due_pair_booked',            2, 'expire',    true,  'cancelled', 'available'),
  ('due_paid',                   4, 'paid',      false, 'pending',   'reserved'),
  ('due_undone',                 4, 'refused',   false, 'pending',   'available'),
  ('due_paying',                 3, 'in_flight', false, 'pending',   'reserved');

CREATE VIEW t.due AS
SELECT c.grp, n, c.verdict, c.slot_freed,
       md5('booking ' || c.grp || ' ' || n)::uuid AS id
  FROM t.due_case c, generate_series(1, c.count) n;

-- Every row of every table of a schema, with its place and its writer: an
-- UPDATE that changes nothing is seen too.
CREATE FUNCTION t.state(p_schema text) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
  v_table text;
  v_hash text;
  v_all text := '';
BEGIN
  FOR v_table IN
    SELECT c.oid::regclass::text FROM pg_class c
     WHERE c.relnamespace = p_schema::regnamespace AND c.relkind = 'r'
     ORDER BY c.relname
  LOOP
    EXECUTE format('SELECT md5(string_agg(r::text || r.ctid || r.xmin, %L'
                   ' ORDER BY r.ctid)) FROM %s r', ',', v_table)
       INTO v_hash;
    v_all := v_all || v_table || coalesce(v_hash, 'empty');
  END LOOP;
  RETURN md5(v_all);
END
$$;

-- What a run leaves behind, without the times and ids that differ anyway.
CREATE FUNCTION t.outcome() RETURNS text
LANGUAGE sql AS $$
  SELECT md5(string_agg(line, E'\n' ORDER BY line))
    FROM (SELECT concat_ws(' ', id, slot_id, status, cancelled_by,
                           cancellation_reason) FROM bookings
          UNION ALL
          SELECT concat_ws(' ', id, status, reserved_until) FROM slots
          UNION ALL
          SELECT concat_ws(' ', action_type, entity_type, entity_id, old_data,
                           new_data, actor_role, metadata) FROM audit_logs
          UNION ALL
          SELECT concat_ws(' ', booking_id, old_slot_id, action_type,
                           actor_type) FROM booking_lifecycle_audit
          UNION ALL
          SELECT concat_ws(' ', kind, entity_id, sqlstate, finding, times)
            FROM cusown_ops.attention) l (line)
$$;

CREATE FUNCTION t.id(p_kind text, p_name text) RETURNS uuid
LANGUAGE sql IMMUTABLE AS $$ SELECT md5(p_kind || ' ' || p_name)::uuid $$;

CREATE TABLE t.known (id uuid PRIMARY KEY, name text);
CREATE SEQUENCE t.day;

CREATE FUNCTION t.slot(p_name text, p_status text DEFAULT 'reserved',
                       p_reserved_until timestamptz DEFAULT now() - interval '1 day')
RETURNS void
LANGUAGE sql AS $$
  INSERT INTO slots (id, business_id, date, start_time, end_time, status,
                     reserved_until)
  VALUES (t.id('slot', p_name), t.id('business', 'tutor'),
          date '2030-01-01' + nextval('t.day')::integer, '09:00', '09:45',
          p_status, CASE WHEN p_status = 'reserved' THEN p_reserved_until END)
  ON CONFLICT (id) DO NOTHING
$$;

-- On a slot whose hold is over, unless that slot is there already.
CREATE FUNCTION t.booking(p_name text, p_age interval DEFAULT '25 h',
                          p_slot text DEFAULT NULL,
                          p_status text DEFAULT 'pending',
                          p_undone boolean DEFAULT false)
RETURNS void
LANGUAGE sql AS $$
  SELECT t.slot(coalesce(p_slot, p_name));
  INSERT INTO t.known VALUES (t.id('booking', p_name), p_name)
  ON CONFLICT DO NOTHING;
  INSERT INTO bookings (id, business_id, slot_id, customer_name,
                        customer_phone, booking_id, status, created_at,
                        undo_used_at)
  VALUES (t.id('booking', p_name), t.id('business', 'tutor'),
          t.id('slot', coalesce(p_slot, p_name)), 'Customer', '+15550009999',
          'CO-' || p_name, p_status, now() - p_age,
          CASE WHEN p_undone THEN now() - interval '1 day' END)
$$;

CREATE FUNCTION t.payment(p_booking text, p_status text,
                          p_age interval DEFAULT '24 h',
                          p_name text DEFAULT NULL)
RETURNS void
LANGUAGE sql AS $$
  INSERT INTO payments (id, booking_id, provider, provider_payment_id,
                        amount_cents, status, created_at)
  VALUES (t.id('payment', coalesce(p_name, p_booking)),
          t.id('booking', p_booking), 'razorpay', 'pending-1', 50000,
          p_status::payment_status, now() - p_age)
$$;

CREATE FUNCTION t.pay(p_booking text, p_status text) RETURNS void
LANGUAGE sql AS $$
  UPDATE payments SET status = p_status::payment_status
   WHERE id = t.id('payment', p_booking)
$$;

-- All but the businesses.
CREATE FUNCTION t.clear() RETURNS void
LANGUAGE sql AS $$
  TRUNCATE slots, bookings, payments, payment_audit_logs, audit_logs,
    booking_lifecycle_audit, cusown_ops.attention, t.known
$$;

-- What became of the bookings that t.booking() made: name: booking/slot, ...
CREATE FUNCTION t.board() RETURNS text
LANGUAGE sql AS $$
  SELECT string_agg(k.name || ': ' || b.status || '/' || s.status, ', '
                    ORDER BY k.name)
    FROM t.known k
    JOIN bookings b ON b.id = k.id
    JOIN slots s ON s.id = b.slot_id
$$;

-- The verdicts on them, in the order of the report.
CREATE FUNCTION t.verdicts(p_as_of timestamptz DEFAULT now()) RETURNS text
LANGUAGE sql AS $$
  SELECT string_agg(k.name || ': ' || d.verdict, ', ' ORDER BY d.ordinality)
    FROM cusown_due_bookings(as_of => p_as_of) WITH ORDINALITY d
    JOIN t.known k ON k.id = d.booking_id
$$;

-- The worklist on them: name: kind open|closed times.
CREATE FUNCTION t.worklist() RETURNS text
LANGUAGE sql AS $$
  SELECT string_agg(k.name || ': ' || a.kind
                    || CASE WHEN a.closed_at IS NULL THEN ' open '
                            ELSE ' closed ' END || a.times, ', '
                    ORDER BY k.name, a.kind)
    FROM cusown_ops.attention a JOIN t.known k ON k.id = a.entity_id
$$;

-- Lets the back-off of every entry be over.
CREATE FUNCTION t.back_off_over() RETURNS void
LANGUAGE sql AS $$
  UPDATE cusown_ops.attention SET next_try = now() - interval '1 second'
$$;

-- SQLSTATE and hint of the error that a statement raises.
CREATE FUNCTION t.refusal(p_sql text) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
  v_hint text;
BEGIN
  EXECUTE p_sql;
  RETURN 'no error';
EXCEPTION WHEN OTHERS THEN
  GET STACKED DIAGNOSTICS v_hint = PG_EXCEPTION_HINT;
  RETURN SQLSTATE || ' ' || v_hint;
END
$$;

-- The first column of a query run as another role.
CREATE FUNCTION t.as_role(p_role text, p_sql text) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
  v_answer text;
BEGIN
  PERFORM set_config('role', p_role, true);
  EXECUTE p_sql INTO v_answer;
  PERFORM set_config('role', 'none', true);
  RETURN v_answer;
END
$$;

--
-- The sample week: what is due
--

CREATE TABLE t.before_bookings AS TABLE bookings;
CREATE TABLE t.before_slots AS TABLE slots;
CREATE TABLE t.before_payments AS TABLE payments;
SELECT is_empty('SELECT verify_audit_chain()',
                'the sample''s own audit chain is whole');
SELECT t.state('public') AS app_before, t.state('cusown_ops') AS own_before \gset

SELECT results_eq(
  'SELECT v.grp, d.verdict, count(*)::integer
     FROM cusown_due_bookings() d LEFT JOIN t.due v ON v.id = d.booking_id
    GROUP BY 1, 2 ORDER BY 1',
  'SELECT grp, verdict, count FROM t.due_case ORDER BY 1',
  'each due booking of the sample, and no other, is reported with its verdict');
SELECT results_eq(
  'SELECT d.booking_id FROM cusown_due_bookings() WITH ORDINALITY d ORDER BY d.ordinality',
  'SELECT b.id FROM bookings b JOIN t.due v USING (id) ORDER BY b.created_at, b.id',
  'due bookings are reported oldest first');
SELECT results_eq(
  'SELECT booking_id, slot_id, business_id, rule, due_since
     FROM cusown_due_bookings() ORDER BY booking_id',
  $$SELECT b.id, b.slot_id, b.business_id, 'older_than', b.created_at + interval '24 h'
      FROM bookings b JOIN t.due v USING (id) ORDER BY b.id$$,
  'a due booking is reported with its slot, its business, the rule and since when');
SELECT is_empty(
  $$SELECT * FROM cusown_due_bookings() WHERE verdict = 'expire' AND finding IS NOT NULL$$,
  'nothing speaks against a booking that is to expire');
SELECT results_eq(
  $$SELECT d.booking_id, d.finding FROM cusown_due_bookings() d
     WHERE d.verdict IN ('paid', 'in_flight') ORDER BY 1$$,
  $$SELECT p.booking_id, 'payment ' || p.id || ' is ' || p.status
      FROM payments p JOIN t.due v ON v.id = p.booking_id
     WHERE v.verdict IN ('paid', 'in_flight') AND p.status <> 'failed' ORDER BY 1$$,
  'the finding on a paid booking, or one in flight, names the payment and its status');
SELECT results_eq(
  $$SELECT DISTINCT finding FROM cusown_due_bookings() WHERE verdict = 'refused'$$,
  $$VALUES ('check constraint "undo_used_once_check" refuses to cancel it')$$,
  'the finding on a refused booking names the constraint');
SELECT is(t.state('public'), :'app_before', 'the report writes nothing to the application''s tables');
SELECT is(t.state('cusown_ops'), :'own_before', 'the report writes nothing to the extension''s tables');
SELECT volatility_is('public', 'cusown_due_bookings', ARRAY['interval', 'timestamp with time zone', 'interval'], 'stable',
                     'cusown_due_bookings() is STABLE');
BEGIN READ ONLY;
SELECT is(count(*), 51::bigint, 'the report works in a read-only transaction')
  FROM cusown_due_bookings();
COMMIT;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT is(count(*), 51::bigint, 'the report works under SERIALIZABLE')
  FROM cusown_due_bookings();
COMMIT;

--
-- The sample week: dry run, and runs with other batch sizes, rolled back
--

SELECT is(cusown_expire_bookings(dry_run => true)::text, '(40,27,8,f)',
          'a dry run tells what a run would do');
SELECT is(t.state('public'), :'app_before', 'a dry run changes nothing in the application''s tables');
SELECT is(t.state('cusown_ops'), :'own_before', 'a dry run changes nothing in the extension''s tables');

BEGIN;
SELECT cusown_expire_bookings()::text AS answer \gset undone_
ROLLBACK;
SELECT is(:'undone_answer'::text, '(40,27,8,f)', 'a run in a transaction that is rolled back works');
SELECT is(t.state('public') || t.state('cusown_ops'), :'app_before' || :'own_before',
          'a run is part of its caller''s transaction');

BEGIN;
SET LOCAL cusown_ops.batch_size = 7;
SELECT cusown_expire_bookings()::text AS answer \gset seven_
SELECT t.outcome() AS outcome, count(*) AS breaks FROM verify_audit_chain() \gset seven_
ROLLBACK;
BEGIN;
SET LOCAL cusown_ops.batch_size = 1;
SELECT cusown_expire_bookings()::text AS answer \gset one_
SELECT t.outcome() AS outcome, count(*) AS breaks FROM verify_audit_chain() \gset one_
ROLLBACK;

--
-- The sample week: the run
--

SELECT count(*) AS rows FROM audit_logs \gset audit_
BEGIN;
SELECT now() AS at \gset run_
SELECT cusown_expire_bookings()::text AS answer \gset run_
COMMIT;
SELECT is(:'run_answer'::text, '(40,27,8,f)',
          'a run expires 40, releases 27, puts 8 on the worklist and leaves no more behind');
SELECT is(:'seven_answer'::text, '(40,27,8,f)', 'a run in batches of 7 gives the same figures');
SELECT is(:'one_answer'::text, '(40,27,8,f)', 'a run in batches of one gives the same figures');
SELECT is(:'seven_outcome'::text, t.outcome(), 'a run in batches of 7 leaves the same rows');
SELECT is(:'one_outcome'::text, t.outcome(), 'a run in batches of one leaves the same rows');
SELECT is(:seven_breaks::integer, 0, 'a run in batches of 7 does not break the audit chain');
SELECT is(:one_breaks::integer, 0, 'a run in batches of one does not break the audit chain');

SELECT results_eq(
  'SELECT v.grp, b.status, s.status, count(*)::integer
     FROM t.due v JOIN bookings b USING (id) JOIN slots s ON s.id = b.slot_id
    GROUP BY 1, 2, 3 ORDER BY 1',
  'SELECT grp, booking_after, slot_after, count FROM t.due_case ORDER BY 1',
  'each case ends with its booking and its slot as it should');
SELECT results_eq(
  $$SELECT DISTINCT b.cancelled_by, b.cancellation_reason, b.cancelled_at
      FROM bookings b JOIN t.due v USING (id) WHERE v.verdict = 'expire'$$,
  format($$VALUES ('system', 'expired', %L::timestamptz)$$, :'run_at'),
  'an expired booking is cancelled by the system, as expired, now');
SELECT is_empty(
  $$SELECT s.id FROM slots s JOIN t.before_slots o USING (id)
     WHERE o.status <> 'available' AND s.status = 'available'
       AND s.reserved_until IS NOT NULL$$,
  'a released slot has no hold');
SELECT results_eq(
  $$SELECT b::text FROM bookings b
     WHERE b.id NOT IN (SELECT id FROM t.due WHERE verdict = 'expire') ORDER BY b.id$$,
  $$SELECT b::text FROM t.before_bookings b
     WHERE b.id NOT IN (SELECT id FROM t.due WHERE verdict = 'expire') ORDER BY b.id$$,
  'no other booking is touched: paid, in flight, unexpirable, younger, decided');
SELECT results_eq(
  $$SELECT s::text FROM slots s
     WHERE s.id NOT IN (SELECT b.slot_id FROM t.before_bookings b JOIN t.due v USING (id)
                         WHERE v.slot_freed) ORDER BY s.id$$,
  $$SELECT s::text FROM t.before_slots s
     WHERE s.id NOT IN (SELECT b.slot_id FROM t.before_bookings b JOIN t.due v USING (id)
                         WHERE v.slot_freed) ORDER BY s.id$$,
  'no other slot is touched: holds that ended are not this verb''s business');
SELECT results_eq('SELECT p::text FROM payments p ORDER BY p.id',
                  'SELECT p::text FROM t.before_payments p ORDER BY p.id',
                  'no payment is touched');

--
-- The sample week: what was written about it
--

CREATE VIEW t.run_audit AS
SELECT a.* FROM audit_logs a WHERE a.metadata ? 'rule';

SELECT is(count(*)::integer, :audit_rows + 67, 'nobody but the run has written audit rows')
  FROM audit_logs;
SELECT results_eq(
  $$SELECT entity_id, old_data->>'status', new_data->>'status', metadata->>'rule',
           metadata->>'source'
      FROM t.run_audit WHERE action_type = 'booking_cancelled' AND entity_type = 'booking'
     ORDER BY 1$$,
  $$SELECT id, 'pending', 'cancelled', 'older_than', 'manual'
      FROM t.due WHERE verdict = 'expire' ORDER BY 1$$,
  'each expired booking has one audit row, with old and new state, rule and source');
SELECT results_eq(
  $$SELECT entity_id, old_data->>'status', new_data->>'status', metadata->>'source'
      FROM t.run_audit WHERE action_type = 'slot_released' AND entity_type = 'slot'
     ORDER BY 1$$,
  $$SELECT s.id, s.status, 'available', 'manual' FROM t.before_slots s
     WHERE s.id IN (SELECT b.slot_id FROM t.before_bookings b JOIN t.due v USING (id)
                     WHERE v.slot_freed) ORDER BY 1$$,
  'each released slot has one audit row, with the status that it had');
SELECT results_eq(
  $$SELECT DISTINCT admin_user_id, actor_role, status, severity FROM t.run_audit$$,
  $$VALUES (NULL::uuid, 'system', 'success', 'info')$$,
  'the audit rows name the system as the actor');
SELECT is(count(DISTINCT created_at), 67::bigint, 'no two audit rows of the run share a time')
  FROM t.run_audit;
SELECT ok(min(a.created_at) > :'run_at', 'the audit rows carry the time of the clock')
  FROM t.run_audit a;
SELECT is_empty('SELECT verify_audit_chain()', 'the audit chain is whole after the run');
SELECT results_eq(
  $$SELECT booking_id, old_slot_id, new_slot_id, actor_type, created_at
      FROM booking_lifecycle_audit WHERE action_type = 'expire' ORDER BY 1$$,
  format($$SELECT b.id, b.slot_id, NULL::uuid, 'system', %L::timestamptz
      FROM t.before_bookings b JOIN t.due v USING (id) WHERE v.verdict = 'expire' ORDER BY 1$$,
    :'run_at'),
  'each expired booking has one row in booking_lifecycle_audit');
SELECT results_eq(
  $$SELECT v.grp, a.app_schema = 'public', a.kind, a.entity, a.runbook, a.sqlstate, a.times,
           a.first_seen, a.last_seen, a.next_try, a.closed_at, count(*)::integer
      FROM cusown_ops.attention a LEFT JOIN t.due v ON v.id = a.entity_id
     GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 ORDER BY 1$$,
  format($$SELECT v.*, 1, r.at, r.at, r.at + interval '5 min', NULL::timestamptz, 4
      FROM (VALUES ('due_paid', true, 'paid_pending', 'booking', 'payment_mismatch', NULL),
                   ('due_undone', true, 'unexpirable', 'booking', 'cron_failure', '23514')) v,
           (SELECT %L::timestamptz AS at) r$$, :'run_at'),
  'the worklist holds the paid and the unexpirable ones, open, to be tried again in 5 minutes');
SELECT results_eq(
  $$SELECT a.entity_id, a.finding FROM cusown_ops.attention a ORDER BY 1$$,
  $$SELECT d.booking_id, d.finding FROM cusown_due_bookings() d
     WHERE d.verdict IN ('paid', 'refused') ORDER BY 1$$,
  'the worklist and the report find the same');

--
-- The sample week: a second run
--

SELECT t.state('public') AS app_after, t.state('cusown_ops') AS own_after \gset
SELECT is(cusown_expire_bookings()::text, '(0,0,0,f)', 'a second run finds nothing to do');
SELECT is(t.state('public'), :'app_after', 'a second run writes nothing to the application''s tables');
SELECT is(t.state('cusown_ops'), :'own_after',
          'a second run within the back-off writes nothing to the worklist');
SELECT t.back_off_over();
SELECT is(cusown_expire_bookings()::text, '(0,0,8,f)', 'when the back-off is over they are seen again');
SELECT is(t.state('public'), :'app_after',
          'seeing them again writes nothing to the application''s tables');

--
-- How far a run goes
--

SELECT t.clear();
SELECT t.booking('paid ' || i, interval '30 h' + i * interval '1 s'),
       t.payment('paid ' || i, 'completed') FROM generate_series(1, 2000) i \g /dev/null
SELECT t.booking('due ' || i, interval '25 h' + i * interval '1 s') FROM generate_series(1, 10) i \g /dev/null
ANALYZE;
SELECT is(cusown_expire_bookings(max_rows => 10)::text, '(10,10,2000,f)',
          'one call reads past 2000 paid bookings to the 10 that can expire');
SELECT is(count(*), 2000::bigint, 'all 2000 paid ones are on the worklist')
  FROM cusown_ops.attention WHERE kind = 'paid_pending' AND closed_at IS NULL;
SELECT t.booking('late ' || i) FROM generate_series(1, 3) i \g /dev/null
SELECT is(cusown_expire_bookings(max_rows => 3)::text, '(3,3,0,f)',
          'bookings that are backed off do not use up max_rows');

SELECT t.clear();
SELECT t.booking('b' || i, interval '25 h' + i * interval '1 s', p_undone => i % 25 = 0)
  FROM generate_series(1, 500) i \g /dev/null
ANALYZE;
SELECT is(cusown_expire_bookings()::text, '(480,480,20,f)',
          '20 bookings that a CHECK refuses stop none of the other 480');
SELECT results_eq(
  'SELECT status, undo_used_at IS NULL, count(*)::integer FROM bookings GROUP BY 1, 2 ORDER BY 1',
  $$VALUES ('cancelled', true, 480), ('pending', false, 20)$$,
  'exactly those 20 are still pending');
SELECT is_empty('SELECT verify_audit_chain()', 'the audit chain is whole after 960 rows');

SELECT t.clear();
SELECT t.booking('b' || i, interval '25 h' + i * interval '1 s', p_undone => i >= 8)
  FROM generate_series(1, 10) i \g /dev/null
SELECT is(cusown_expire_bookings(max_rows => 7)::text, '(7,7,3,f)',
          'refused bookings do not use up max_rows');

SELECT t.clear();
SELECT t.booking('old'), t.booking('same 1', '24 h 30 min'), t.booking('same 2', '24 h 30 min'),
       t.booking('same 3', '24 h 30 min'), t.booking('young', '24 h 10 min') \g /dev/null
-- ids and ages disagree: the oldest has the greatest id
UPDATE bookings b SET id = v.id::uuid, created_at = now() - v.age
  FROM (VALUES ('old', 'ffffffff-0000-0000-0000-000000000000', interval '40 h'),
               ('same 1', '00000000-0000-0000-0000-000000000001', interval '30 h'),
               ('same 2', '7f000000-0000-0000-0000-000000000000', interval '30 h'),
               ('same 3', '80000000-0000-0000-0000-000000000000', interval '30 h'),
               ('young', '00000000-0000-0000-0000-000000000000', interval '25 h')) v (name, id, age)
 WHERE b.booking_id = 'CO-' || v.name;
CREATE FUNCTION t.expired() RETURNS text LANGUAGE sql AS $$
  SELECT string_agg(substr(booking_id, 4), ', ' ORDER BY created_at, id)
    FROM bookings WHERE status = 'cancelled'
$$;
SELECT results_eq(
  $$SELECT substr(b.booking_id, 4) FROM cusown_due_bookings() WITH ORDINALITY d
      JOIN bookings b ON b.id = d.booking_id ORDER BY d.ordinality$$,
  $$VALUES ('old'), ('same 1'), ('same 2'), ('same 3'), ('young')$$,
  'the report is in the order of age, then id');
SELECT is(cusown_expire_bookings(max_rows => 1)::text, '(1,1,0,t)',
          'with max_rows smaller than what is due there is more');
SELECT is(t.expired(), 'old', 'the oldest is the first to expire');
SELECT is(cusown_expire_bookings(max_rows => 2)::text, '(2,2,0,t)', 'of three of one age two expire');
SELECT is(t.expired(), 'old, same 1, same 2', 'bookings of one age expire in the order of their ids');
SELECT is(cusown_expire_bookings(max_rows => 2)::text, '(2,2,0,f)',
          'with max_rows just what is due there is no more');

SELECT t.clear();
SELECT t.booking('a paid', '40 h'), t.payment('a paid', 'completed'),
       t.booking('b undone', '39 h', p_undone => true),
       t.booking('c', '30 h'), t.booking('d', '29 h'),
       t.booking('young', '23 h') \g /dev/null
SELECT is(cusown_expire_bookings(max_rows => 2)::text, '(2,2,2,f)',
          'there is no more where what is left lies before the last one looked at');
SELECT t.booking('e', '28 h'), t.booking('f', '27 h') \g /dev/null
SELECT is(cusown_expire_bookings(max_rows => 1)::text, '(1,1,0,t)',
          'there is more where a due booking lies behind the last one looked at');
SELECT is(cusown_expire_bookings(max_rows => 1)::text, '(1,1,0,f)',
          'a booking that is too young is not more');

--
-- What is due
--

SELECT t.clear();
SELECT now() AS moment \gset
SELECT t.booking('at'), t.booking('before'), t.booking('after') \g /dev/null
UPDATE bookings SET created_at = :'moment'::timestamptz - interval '24 h'
       + CASE booking_id WHEN 'CO-at' THEN interval '0'
                         WHEN 'CO-before' THEN interval '-1 microsecond'
                         ELSE interval '1 microsecond' END;
SELECT is(t.verdicts(:'moment'), 'before: expire', 'due is what is older than older_than, to the microsecond');
SELECT is(cusown_expire_bookings(as_of => :'moment')::text, '(1,1,0,f)', 'a run judges alike');
SELECT is(t.board(), 'after: pending/reserved, at: pending/reserved, before: cancelled/available',
          'a booking of just that age is not expired');
SELECT is(cusown_expire_bookings('23 h 59 min', as_of => :'moment')::text, '(2,2,0,f)',
          'an age that is given counts instead of the setting');
SELECT is(metadata->>'age_seconds', '86340', 'and stands in the audit row')
  FROM audit_logs WHERE action_type = 'booking_cancelled' ORDER BY created_at DESC LIMIT 1;

SELECT t.clear();
SELECT t.booking('hour', '61 min'), t.booking('half', '31 min'), t.booking('new', '0') \g /dev/null
SET cusown_ops.booking_ttl = '1 h';
SELECT is(t.verdicts(), 'hour: expire', 'cusown_ops.booking_ttl is the age where none is given');
SELECT is(cusown_expire_bookings('30 min', dry_run => true)::text, '(2,2,0,f)',
          'a given age goes before the setting');
SELECT is(cusown_expire_bookings()::text, '(1,1,0,f)', 'a run goes by the setting');
RESET cusown_ops.booking_ttl;
SELECT is(cusown_expire_bookings('0')::text, '(2,2,0,f)', 'with age 0 each pending booking is due');

SELECT t.clear();
SELECT t.slot('ended', 'reserved', now() - interval '20 h'), t.booking('ended', '23 h'),
       t.slot('cleaned', 'available'), t.booking('cleaned', '23 h') \g /dev/null
SELECT is(cusown_expire_bookings()::text, '(0,0,0,f)', 'a hold that ended is no reason to expire');
SELECT is(t.board(), 'cleaned: pending/available, ended: pending/reserved', 'and its slot is left as it is');

SELECT t.clear();
SELECT t.booking('ageless') \g /dev/null
UPDATE bookings SET created_at = NULL;
SELECT is_empty($$SELECT * FROM cusown_due_bookings('0')$$, 'a booking without created_at is never due');
SELECT is(cusown_expire_bookings('0')::text, '(0,0,0,f)', 'and never expires');

SELECT t.clear();
SELECT t.booking(s, '30 h', p_status => s) FROM unnest(ARRAY['confirmed', 'rejected']) s \g /dev/null
SELECT is(cusown_expire_bookings()::text, '(0,0,0,f)', 'only pending bookings are due');

SELECT t.clear();
SELECT t.booking('b', '25 h') \g /dev/null
SELECT is(t.verdicts(now() - interval '2 h'), NULL, 'as of two hours ago it was not due');
SELECT is(cusown_expire_bookings(as_of => now() - interval '2 h')::text, '(0,0,0,f)',
          'a run as of two hours ago leaves it');
SELECT is(cusown_expire_bookings(as_of => now() - interval '30 min')::text, '(1,1,0,f)',
          'a run as of half an hour ago takes it');
SELECT ok(cancelled_at > now() - interval '10 min', 'what is stored is the present time, not as_of')
  FROM bookings;

SELECT t.clear();
SELECT t.booking('soon', '23 h 59 min 30 s'), t.booking('later', '20 h') \g /dev/null
SELECT is(t.verdicts(now() + interval '10 days'), 'soon: expire, later: expire', 'the report may look ahead');
SELECT is(cusown_expire_bookings(as_of => now() + interval '10 days', dry_run => true)::text, '(2,2,0,f)',
          'a dry run may look ahead');
SELECT is(cusown_expire_bookings(as_of => now() + interval '61 s', dry_run => true)::text, '(1,1,0,f)',
          'a dry run may look 61 seconds ahead');
SELECT is(t.refusal($$SELECT cusown_expire_bookings(as_of => now() + interval '61 s')$$),
          '22023 Only a dry run may look ahead.', 'a run as of 61 seconds ahead is refused');
SELECT is(t.refusal($$SELECT cusown_expire_bookings(as_of => 'infinity')$$),
          '22023 Only a dry run may look ahead.', 'a run as of the end of time is refused');
SELECT is(cusown_expire_bookings(as_of => now() + interval '59 s')::text, '(1,1,0,f)',
          'a run as of 59 seconds ahead takes what is due then');

-- 2024-03-10 had 23 hours in New York
SELECT t.clear();
SELECT t.slot('s', 'available'), t.booking('within', p_slot => 's'), t.booking('beyond', p_slot => 's') \g /dev/null
UPDATE bookings SET created_at = CASE booking_id WHEN 'CO-within' THEN '2024-03-09 20:30:00+00'
                                      ELSE '2024-03-09 19:59:59+00' END::timestamptz;
SET TimeZone = 'America/New_York';
SET DateStyle = 'German, DMY';
SET IntervalStyle = 'sql_standard';
SELECT is(cusown_expire_bookings('1 day', as_of => '2024-03-10T20:00:00+00')::text, '(1,0,0,f)',
          'a day has 24 hours, whatever the session''s TimeZone');
RESET TimeZone;
RESET DateStyle;
RESET IntervalStyle;
SELECT is(t.board(), 'beyond: cancelled/available, within: pending/available', 'and it is the older one that expires');

--
-- Slots
--

SELECT t.clear();
SELECT t.slot('moved', 'booked'), t.booking('moved') \g /dev/null
SELECT is(cusown_expire_bookings()::text, '(1,1,0,f)', 'a rescheduled pending booking expires');
SELECT is(t.board(), 'moved: cancelled/available', 'its slot, booked by nobody else, is freed');
SELECT is(old_data->>'status', 'booked', 'and the audit row says that it was booked')
  FROM audit_logs WHERE action_type = 'slot_released';

SELECT t.clear();
SELECT t.slot('s', 'booked'), t.booking('due', p_slot => 's'),
       t.booking('confirmed', '30 h', 's', 'confirmed') \g /dev/null
SELECT is(cusown_expire_bookings()::text, '(1,0,0,f)', 'a slot with a confirmed booking is not freed');
SELECT is(t.board(), 'confirmed: confirmed/booked, due: cancelled/booked', 'it stays booked');

SELECT t.clear();
SELECT t.slot('s', 'reserved'), t.booking('due', p_slot => 's'),
       t.booking('confirmed', '30 h', 's', 'confirmed') \g /dev/null
SELECT is(cusown_expire_bookings()::text, '(1,0,0,f)',
          'nor where such a slot is only reserved, with a hold that ended');

SELECT t.clear();
SELECT t.slot('s', 'reserved', now() + interval '9 min'), t.booking('due', p_slot => 's'),
       t.booking('newer', '1 min', 's') \g /dev/null
SELECT reserved_until AS until FROM slots \gset hold_
SELECT is(cusown_expire_bookings()::text, '(1,0,0,f)', 'a newer customer''s live hold survives');
SELECT is(t.board() || ' ' || (SELECT reserved_until FROM slots),
          'due: cancelled/reserved, newer: pending/reserved ' || :'hold_until', 'with its end');

SELECT t.clear();
SELECT t.slot('s', 'reserved', now() + interval '9 min'), t.booking('due', p_slot => 's') \g /dev/null
SELECT is(cusown_expire_bookings()::text, '(1,0,0,f)',
          'a live hold survives also where its customer has no booking yet');

SELECT t.clear();
SELECT now() AS moment \gset
SELECT t.slot('at', 'reserved', :'moment'), t.booking('at', '26 h'),
       t.slot('after', 'reserved', :'moment'::timestamptz + interval '1 microsecond'),
       t.booking('after', '26 h') \g /dev/null
SELECT is(cusown_expire_bookings(as_of => :'moment')::text, '(2,1,0,f)', 'a hold is over at its end');
SELECT is(t.board(), 'after: cancelled/reserved, at: cancelled/available', 'and live a microsecond before');

SELECT t.clear();
SELECT t.slot('s', 'reserved'), t.booking('due', p_slot => 's'), t.booking('newer', '8 h', 's') \g /dev/null
SELECT is(cusown_expire_bookings()::text, '(1,1,0,f)',
          'a slot whose hold is over is freed although another pending booking stands on it');

SELECT t.clear();
SELECT t.slot('s', 'booked'), t.booking('due', p_slot => 's'), t.booking('newer', '8 h', 's') \g /dev/null
SELECT is(cusown_expire_bookings()::text, '(1,0,0,f)',
          'a booked slot is not freed while another pending booking stands on it');
SELECT is(t.board(), 'due: cancelled/booked, newer: pending/booked', 'the newer one keeps its slot');

SELECT t.clear();
SELECT t.slot('s', 'booked'), t.booking('a', '27 h', 's'), t.booking('b', '26 h', 's'),
       t.payment('b', 'completed') \g /dev/null
SELECT is(cusown_expire_bookings()::text, '(1,0,1,f)',
          'nor while the other one is due but paid');
SELECT is(t.board(), 'a: cancelled/booked, b: pending/booked', 'the paid one keeps its slot');

SELECT t.clear();
SELECT t.slot('s', 'booked'), t.booking('a', '27 h', 's'), t.booking('b', '26 h', 's') \g /dev/null
SELECT is(cusown_expire_bookings(max_rows => 1)::text, '(1,0,0,t)',
          'nor while the other one is due but left to the next run');
SELECT is(cusown_expire_bookings(max_rows => 1)::text, '(1,1,0,f)', 'which frees it');

SELECT t.clear();
SELECT t.slot('s', 'reserved', NULL), t.booking('due', p_slot => 's') \g /dev/null
SELECT is(cusown_expire_bookings()::text, '(1,0,0,f)', 'a booking on a reserved slot without an end expires');
SELECT is(t.board(), 'due: cancelled/reserved', 'and the slot is left alone: nobody knows whether its hold is over');

SELECT t.clear();
SELECT t.slot('s', 'reserved'), t.booking('old', p_slot => 's', p_status => 'rejected'),
       t.booking('due', p_slot => 's') \g /dev/null
SELECT is(cusown_expire_bookings()::text, '(1,1,0,f)', 'a rejected booking holds no slot');

--
-- Payments
--

SELECT t.clear();
SELECT t.booking(s, '26 h' + row_number() OVER (ORDER BY s) * interval '1 s'), t.payment(s, s)
  FROM unnest(enum_range(NULL::payment_status)::text[]) s \g /dev/null
SELECT results_eq(
  'SELECT k.name, d.verdict FROM cusown_due_bookings() d JOIN t.known k ON k.id = d.booking_id ORDER BY 1',
  $$VALUES ('completed', 'paid'), ('expired', 'expire'), ('failed', 'expire'),
           ('initiated', 'expire'), ('partially_refunded', 'paid'), ('pending', 'expire'),
           ('processing', 'expire'), ('refunded', 'expire')$$,
  'paid are completed and partially refunded; what was begun long ago is abandoned, the rest counts as none');
SELECT is(cusown_expire_bookings()::text, '(6,6,2,f)', 'a run acts upon it');
SELECT is(t.worklist(), 'completed: paid_pending open 1, partially_refunded: paid_pending open 1',
          'the paid ones are on the worklist');

SELECT t.clear();
SELECT t.booking(s || ' ' || a), t.payment(s || ' ' || a, s, a * interval '1 min')
  FROM unnest(ARRAY['initiated', 'pending', 'processing']) s, unnest(ARRAY[59, 61]) a \g /dev/null
SELECT results_eq(
  'SELECT k.name, d.verdict FROM cusown_due_bookings() d JOIN t.known k ON k.id = d.booking_id ORDER BY 1',
  $$VALUES ('initiated 59', 'in_flight'), ('initiated 61', 'expire'), ('pending 59', 'in_flight'),
           ('pending 61', 'expire'), ('processing 59', 'in_flight'), ('processing 61', 'expire')$$,
  'a payment is in flight for an hour after it was made');
SET cusown_ops.processing_grace = '2 h';
SELECT is(cusown_expire_bookings(dry_run => true)::text, '(0,0,0,f)', 'cusown_ops.processing_grace may be longer');
SET cusown_ops.processing_grace = 0;
SELECT is(cusown_expire_bookings(dry_run => true)::text, '(6,6,0,f)', 'or nothing');
RESET cusown_ops.processing_grace;
SELECT is(cusown_expire_bookings(as_of => now() - interval '5 min')::text, '(0,0,0,f)',
          'its age, too, is judged as of as_of');
SELECT is(cusown_expire_bookings()::text, '(3,3,0,f)', 'those older than that expire');
SELECT is(t.worklist(), NULL, 'those in flight make no noise');

SELECT t.clear();
SELECT t.booking('a'), t.payment('a', 'failed', '20 h', 'a1'), t.payment('a', 'refunded', '19 h', 'a2'),
       t.booking('b'), t.payment('b', 'failed', '20 h', 'b1'), t.payment('b', 'processing', '5 min', 'b2'),
       t.booking('c'), t.payment('c', 'completed', '20 h', 'c1'), t.payment('c', 'processing', '5 min', 'c2'),
       t.booking('d'), t.payment('d', 'failed', '20 h', 'd1'), t.payment('d', 'completed', '19 h', 'd2') \g /dev/null
SELECT is(cusown_expire_bookings()::text, '(1,1,2,f)', 'of several payments each one counts');
SELECT is(t.board(), 'a: cancelled/available, b: pending/reserved, c: pending/reserved, d: pending/reserved',
          'only the booking all of whose payments are over expires');
SELECT is(t.worklist(), 'c: paid_pending open 1, d: paid_pending open 1',
          'a paid one is paid, whatever else is in flight');

--
-- What the application's database refuses
--

SELECT t.clear();
ALTER TABLE bookings ADD CONSTRAINT "no ""system"" for guests"
  CHECK (cancelled_by <> 'system' OR customer_user_id IS NOT NULL) NOT VALID;
SELECT t.booking('guest', '27 h'), t.booking('member', '26 h') \g /dev/null
UPDATE bookings SET customer_user_id = gen_random_uuid() WHERE booking_id = 'CO-member';
SELECT is(cusown_expire_bookings()::text, '(1,1,1,f)',
          'a CHECK that was added after attaching, even as NOT VALID, is asked');
SELECT is(finding, 'check constraint "no "system" for guests" refuses to cancel it', 'and named')
  FROM cusown_ops.attention;
ALTER TABLE bookings DROP CONSTRAINT "no ""system"" for guests";
SELECT is(cusown_expire_bookings()::text, '(1,1,0,f)',
          'once it is dropped the entry is closed and the booking expires');

SELECT t.clear();
CREATE FUNCTION refuse_vip() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NEW.customer_name = 'VIP' THEN
    RAISE EXCEPTION 'not this one' USING ERRCODE = 'ZZ001', HINT = 'ask the owner';
  END IF;
  RETURN NEW;
END
$$;
CREATE TRIGGER refuse_vip BEFORE UPDATE ON bookings FOR EACH ROW EXECUTE FUNCTION refuse_vip();
SELECT t.booking('b' || i, interval '26 h' + i * interval '1 s') FROM generate_series(1, 20) i \g /dev/null
SELECT t.booking('paid', '40 h'), t.payment('paid', 'completed') \g /dev/null
ALTER TABLE bookings DISABLE TRIGGER USER;
UPDATE bookings SET customer_name = 'VIP' WHERE booking_id = 'CO-b3';
ALTER TABLE bookings ENABLE TRIGGER USER;
SET cusown_ops.batch_size = 5;
SELECT t.state('public') || t.state('cusown_ops') AS state \gset vip_
SELECT is(cusown_expire_bookings(dry_run => true)::text, '(19,19,2,f)',
          'a booking that a trigger refuses does not stop the rest');
SELECT is(t.state('public') || t.state('cusown_ops'), :'vip_state', 'nor in a dry run, which leaves nothing');
SELECT is(cusown_expire_bookings()::text, '(19,19,2,f)', 'as the dry run has said');
SELECT results_eq(
  $$SELECT sqlstate, finding FROM cusown_ops.attention WHERE kind = 'expiry_failed'$$,
  $$VALUES ('ZZ001', 'PL/pgSQL function refuse_vip() line 4 at RAISE refuses to cancel it')$$,
  'it is on the worklist, without what the error says');
RESET cusown_ops.batch_size;
SELECT is(cusown_expire_bookings()::text, '(0,0,0,f)', 'and left alone');
DROP TRIGGER refuse_vip ON bookings;
UPDATE cusown_ops.attention SET next_try = now() WHERE kind = 'expiry_failed';
SELECT is(cusown_expire_bookings()::text, '(1,1,0,f)', 'until next_try: without the trigger it expires');
SELECT is(cusown_expire_bookings()::text, '(0,0,0,f)', 'and leaves the worklist');
SELECT is_empty($$SELECT * FROM cusown_ops.attention WHERE kind = 'expiry_failed' AND closed_at IS NULL$$,
  'with the next run');

CREATE FUNCTION keep_vip() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RETURN CASE WHEN NEW.customer_name <> 'VIP' THEN NEW END;
END
$$;
CREATE TRIGGER keep_vip BEFORE UPDATE ON bookings FOR EACH ROW EXECUTE FUNCTION keep_vip();
SELECT t.clear();
SELECT t.booking('kept'), t.booking('other') \g /dev/null
ALTER TABLE bookings DISABLE TRIGGER USER;
UPDATE bookings SET customer_name = 'VIP' WHERE booking_id = 'CO-kept';
ALTER TABLE bookings ENABLE TRIGGER USER;
SELECT is(cusown_expire_bookings()::text, '(1,1,0,f)', 'a booking that a trigger silently keeps is not counted');
SELECT is(t.board(), 'kept: pending/reserved, other: cancelled/available', 'its slot is not freed');
SELECT is_empty(
  $$SELECT * FROM audit_logs WHERE entity_id IN (t.id('booking', 'kept'), t.id('slot', 'kept'))$$,
  'it has no audit row');
SELECT is_empty($$SELECT * FROM booking_lifecycle_audit WHERE booking_id = t.id('booking', 'kept')$$,
                'nor one in booking_lifecycle_audit');

SELECT t.clear();
SELECT t.slot('s', 'booked'), t.booking('kept', p_slot => 's'), t.booking('other', p_slot => 's') \g /dev/null
ALTER TABLE bookings DISABLE TRIGGER USER;
UPDATE bookings SET customer_name = 'VIP' WHERE booking_id = 'CO-kept';
ALTER TABLE bookings ENABLE TRIGGER USER;
SELECT cusown_expire_bookings() \g /dev/null
SELECT is(t.board(), 'kept: pending/booked, other: cancelled/booked',
          'a booked slot is not freed while a booking that a trigger has kept stands on it');
DROP TRIGGER keep_vip ON bookings;

-- a trigger of the application may call us while a statement of ours runs
CREATE FUNCTION heal_again() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM cusown_expire_bookings(max_rows => 1, source => 'lazy_heal');
  PERFORM cusown_attach();
  RETURN NULL;
END
$$;
CREATE TRIGGER heal_again AFTER UPDATE ON bookings FOR EACH ROW EXECUTE FUNCTION heal_again();
SELECT t.clear();
SELECT t.booking('b' || i, interval '26 h' + i * interval '1 s') FROM generate_series(1, 9) i \g /dev/null
SET cusown_ops.batch_size = 2;
SELECT lives_ok('SELECT cusown_expire_bookings()', 'a trigger may expire and attach while a run is under way');
SELECT results_eq(
  $$SELECT action_type, count(*)::integer, count(DISTINCT entity_id)::integer FROM audit_logs GROUP BY 1 ORDER BY 1$$,
  $$VALUES ('booking_cancelled', 9, 9), ('slot_released', 9, 9)$$,
  'each booking is expired once, and each slot released once');
RESET cusown_ops.batch_size;
DROP TRIGGER heal_again ON bookings;

--
-- The life of a worklist entry
--

SELECT t.clear();
SELECT t.booking('b'), t.payment('b', 'completed') \g /dev/null
SELECT is(cusown_expire_bookings()::text, '(0,0,1,f)', 'a paid booking is put on the worklist');
SELECT id, t.state('cusown_ops') AS state FROM cusown_ops.attention \gset entry_
SELECT is(cusown_expire_bookings()::text, '(0,0,0,f)', 'until next_try it is left alone');
SELECT is(t.state('cusown_ops'), :'entry_state', 'last_seen and times do not move before next_try');
CREATE TABLE t.step (times integer, minutes integer);
DO $$
BEGIN
  INSERT INTO t.step SELECT times, extract(epoch FROM next_try - last_seen) / 60
    FROM cusown_ops.attention;
  FOR i IN 2..12 LOOP
    PERFORM t.back_off_over();
    PERFORM cusown_expire_bookings();
    INSERT INTO t.step SELECT times, extract(epoch FROM next_try - now()) / 60
      FROM cusown_ops.attention WHERE last_seen = now();
  END LOOP;
END
$$;
SELECT results_eq(
  'SELECT times, minutes FROM t.step ORDER BY 1',
  'VALUES (1, 5), (2, 10), (3, 20), (4, 40), (5, 80), (6, 160), (7, 320), (8, 640), (9, 1280),
          (10, 1440), (11, 1440), (12, 1440)',
  'each time it is found again next_try moves away, from 5 minutes by doubling to 24 hours');
SELECT results_eq('SELECT id, first_seen < last_seen, closed_at IS NULL FROM cusown_ops.attention',
                  format('VALUES (%s::bigint, true, true)', :entry_id),
                  'it is one entry all along, with its first_seen');
SELECT t.pay('b', 'refunded');
SELECT is(cusown_expire_bookings()::text, '(1,1,0,f)',
          'once the payment is refunded the booking expires in the same run, back-off or not');
SELECT results_eq('SELECT closed_by, closed_at IS NOT NULL, times, note FROM cusown_ops.attention',
                  $$VALUES ('recheck', true, 12, NULL)$$, 'which has closed the entry');

SELECT t.clear();
SELECT t.booking('b'), t.payment('b', 'completed', '5 min') \g /dev/null
SELECT cusown_expire_bookings() \g /dev/null
SELECT t.pay('b', 'processing');
SELECT is(cusown_expire_bookings()::text, '(0,0,0,f)', 'a payment that went back to processing is in flight');
SELECT is(t.worklist(), 'b: paid_pending closed 1', 'and the entry is closed');
SELECT t.pay('b', 'completed');
SELECT is(cusown_expire_bookings()::text, '(0,0,1,f)', 'when it is completed again');
SELECT is(t.worklist(), 'b: paid_pending open 2', 'the entry is opened again');

SELECT t.clear();
SELECT t.booking('both', p_undone => true), t.payment('both', 'completed') \g /dev/null
SELECT cusown_expire_bookings() \g /dev/null
SELECT is(t.worklist(), 'both: paid_pending open 1', 'a booking that is paid and cannot be cancelled is paid first');
SELECT t.pay('both', 'refunded');
SELECT is(cusown_expire_bookings()::text, '(0,0,1,f)', 'when the money is returned');
SELECT is(t.worklist(), 'both: paid_pending closed 1, both: unexpirable open 1', 'it turns out to be unexpirable');
UPDATE bookings SET undo_used_at = NULL;
SELECT is(cusown_expire_bookings()::text, '(1,1,0,f)', 'and expires when that is mended');
SELECT is(t.worklist(), 'both: paid_pending closed 1, both: unexpirable closed 1', 'with both entries closed');

SELECT t.clear();
SELECT t.booking('confirmed', '26 h'), t.payment('confirmed', 'completed'),
       t.booking('deleted', '27 h', p_undone => true) \g /dev/null
SELECT cusown_expire_bookings() \g /dev/null
SELECT confirm_booking_atomically(t.id('booking', 'confirmed')) \g /dev/null
DELETE FROM bookings WHERE id = t.id('booking', 'deleted');
SELECT is(cusown_expire_bookings(dry_run => true)::text, '(0,0,0,f)', 'a dry run rechecks too');
SELECT is(t.worklist(), 'confirmed: paid_pending open 1, deleted: unexpirable open 1', 'but closes nothing');
SELECT is(cusown_expire_bookings()::text, '(0,0,0,f)', 'a run rechecks what has been decided otherwise');
SELECT is(t.worklist(), 'confirmed: paid_pending closed 1, deleted: unexpirable closed 1',
          'and closes the entries of a confirmed and of a deleted booking');

--
-- Closing an entry by hand
--

SELECT t.clear();
SELECT t.booking('b'), t.payment('b', 'completed') \g /dev/null
SELECT cusown_expire_bookings() \g /dev/null
SELECT id FROM cusown_ops.attention \gset entry_
SELECT is(cusown_attention_resolve(:entry_id, 'Owner will call'), true, 'an open entry is closed by hand');
SELECT results_eq(
  'SELECT closed_by, note, closed_at = last_seen, next_try - closed_at FROM cusown_ops.attention',
  $$VALUES ('postgres', 'Owner will call', false, interval '24 h')$$,
  'it tells who did it, with which note; it will be looked at again in a day');
SELECT results_eq(
  $$SELECT entity_type, entity_id, metadata->>'note', metadata->>'source' FROM audit_logs
     WHERE action_type = 'data_corrected'$$,
  $$VALUES ('booking', t.id('booking', 'b'), 'Owner will call', 'manual')$$,
  'that is audited as data_corrected');
SELECT is(cusown_attention_resolve(:entry_id, 'Again'), false, 'an entry that is closed already says so');
SELECT results_eq('SELECT note FROM cusown_ops.attention', $$VALUES ('Owner will call')$$,
                  'and keeps its note');
SELECT is(count(*), 1::bigint, 'nothing more is audited')
  FROM audit_logs WHERE action_type = 'data_corrected';
SELECT is(cusown_expire_bookings()::text, '(0,0,0,f)', 'until next_try it stays closed');
SELECT is(t.worklist(), 'b: paid_pending closed 1', 'also if the finding still holds');
SELECT t.back_off_over();
SELECT is(cusown_expire_bookings()::text, '(0,0,1,f)', 'then a finding that still holds');
SELECT is(t.worklist(), 'b: paid_pending open 2', 'opens the entry again');
SELECT is_empty('SELECT verify_audit_chain()', 'the audit chain is whole');
SELECT throws_ok('SELECT cusown_attention_resolve(-1, ''x'')', 'UO002', NULL, 'an entry that is not there is UO002');
SELECT throws_ok(format('SELECT cusown_attention_resolve(%s, '''')', :entry_id), '22023', NULL,
                 'an empty note is refused');
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT matches(t.refusal(format('SELECT cusown_attention_resolve(%s, ''x'')', :entry_id)),
               '^0A000 .*READ COMMITTED', 'an entry cannot be closed under SERIALIZABLE');
COMMIT;
BEGIN READ ONLY;
SELECT matches(t.refusal(format('SELECT cusown_attention_resolve(%s, ''x'')', :entry_id)),
               '^25006 .*READ WRITE', 'nor in a read-only transaction');
COMMIT;
SELECT is(t.worklist(), 'b: paid_pending open 2', 'and is as open as it was');

SELECT t.clear();
SELECT t.booking('b'), t.payment('b', 'completed') \g /dev/null
SELECT cusown_expire_bookings() \g /dev/null
SELECT cusown_attention_resolve(id, 'Refund under way') FROM cusown_ops.attention \g /dev/null
SELECT t.pay('b', 'refunded');
SELECT is(cusown_expire_bookings()::text, '(1,1,0,f)',
          'an entry that was closed by hand keeps nothing back once its finding is gone');

SELECT t.clear();
SELECT t.booking('b'), t.payment('b', 'completed') \g /dev/null
SELECT cusown_expire_bookings() \g /dev/null
SELECT t.pay('b', 'refunded');
SELECT is(cusown_expire_bookings(as_of => now() - interval '1 min')::text, '(1,1,0,f)',
          'nor does one that the run itself has closed, also as of a minute ago');

--
-- A long worklist
--

SELECT t.clear();
SELECT t.booking('b' || i, interval '26 h' + i * interval '1 s'), t.payment('b' || i, 'completed')
  FROM generate_series(1, 600) i \g /dev/null
ANALYZE;
SELECT is(cusown_expire_bookings()::text, '(0,0,600,f)', 'there are 600 open entries');
CREATE TABLE t.first_check AS SELECT id, row_number() OVER (ORDER BY id) AS place FROM cusown_ops.attention;
BEGIN;
SELECT now() AS at, cusown_expire_bookings() AS answer \gset check_
COMMIT;
SELECT results_eq(
  format('SELECT min(f.place)::integer, max(f.place)::integer, count(*)::integer
            FROM cusown_ops.attention a JOIN t.first_check f USING (id)
           WHERE a.checked_at = %L', :'check_at'),
  'VALUES (1, 500, 500)', 'a run rechecks 500 of them, those whose turn it is');
BEGIN;
SELECT now() AS at, cusown_expire_bookings() AS answer \gset check_
COMMIT;
SELECT results_eq(
  format('SELECT count(*) FILTER (WHERE f.place > 500)::integer, count(*)::integer
            FROM cusown_ops.attention a JOIN t.first_check f USING (id)
           WHERE a.checked_at = %L', :'check_at'),
  'VALUES (100, 500)', 'the next run begins with the other 100');
UPDATE payments SET status = 'refunded';
SELECT is(cusown_expire_bookings(max_rows => 1000)::text, '(500,500,0,f)',
          'when all are refunded one run closes and expires 500');
SELECT is(cusown_expire_bookings(max_rows => 1000)::text, '(100,100,0,f)', 'and the next one the rest');
SELECT is(count(*), 0::bigint, 'no entry is left open') FROM cusown_ops.attention WHERE closed_at IS NULL;

--
-- Arguments
--

SELECT t.clear();
SELECT t.booking('b') \g /dev/null
SELECT is(t.refusal('SELECT cusown_expire_bookings(' || a || ')'), s, 'cusown_expire_bookings(' || a || ') is refused')
  FROM (VALUES ('max_rows => 0', '22023 '),
               ('max_rows => -1', '22023 '),
               ('max_rows => NULL', '22004 '),
               ('older_than => ''-1 second''', '22023 '),
               ('older_than => ''1 month -31 days''', '22023 '),
               ('as_of => NULL', '22004 '),
               ('source => NULL', '22004 '),
               ('source => ''Manual''', '22023 Sources are manual, cron, worker, lazy_heal and application.'),
               ('source => ''''', '22023 Sources are manual, cron, worker, lazy_heal and application.')) v (a, s);
SELECT is(t.refusal('SELECT cusown_due_bookings(' || a || ')'), s, 'cusown_due_bookings(' || a || ') is refused')
  FROM (VALUES ('older_than => ''-1 second''', '22023 '),
               ('as_of => NULL', '22004 ')) v (a, s);
SELECT is(t.board(), 'b: pending/reserved', 'a refused call changes nothing');
SELECT is(cusown_expire_bookings(max_rows => 2147483647)::text, '(1,1,0,f)', 'max_rows may be as great as it gets');

SELECT t.clear();
SELECT t.booking(s) FROM unnest(ARRAY['manual', 'cron', 'worker', 'lazy_heal', 'application']) s \g /dev/null
UPDATE bookings SET created_at = created_at - ordinality * interval '1 min'
  FROM unnest(ARRAY['manual', 'cron', 'worker', 'lazy_heal', 'application']) WITH ORDINALITY s (name, ordinality)
 WHERE booking_id = 'CO-' || s.name;
SELECT is(cusown_expire_bookings(max_rows => 1, source => s)::text,
          CASE s WHEN 'manual' THEN '(1,1,0,f)' ELSE '(1,1,0,t)' END,
          'source ' || s || ' is known')
  FROM unnest(ARRAY['application', 'lazy_heal', 'worker', 'cron', 'manual']) s;
SELECT results_eq(
  $$SELECT k.name, a.metadata->>'source' FROM audit_logs a JOIN t.known k ON k.id = a.entity_id ORDER BY 1$$,
  'SELECT name, name FROM t.known ORDER BY 1', 'and stands in the audit row');

--
-- Where it must not run
--

SELECT t.clear();
SELECT t.booking('b') \g /dev/null
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT matches(t.refusal('SELECT cusown_expire_bookings()'), '^0A000 .*READ COMMITTED',
               'REPEATABLE READ is refused, with a hint');
COMMIT;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT matches(t.refusal('SELECT cusown_expire_bookings()'), '^0A000 .*READ COMMITTED',
               'SERIALIZABLE is refused, with a hint');
COMMIT;
BEGIN READ ONLY;
SELECT matches(t.refusal('SELECT cusown_expire_bookings()'), '^25006 .*READ WRITE',
               'a read-only transaction is refused, with a hint');
SELECT matches(t.refusal('SELECT cusown_expire_bookings(dry_run => true)'), '^25006 .*READ WRITE',
               'also for a dry run, which locks');
COMMIT;

SELECT 'tap_blind_' || pg_backend_pid() AS blind \gset
CREATE ROLE :"blind";
SELECT ddl FROM cusown_grant(:'blind', 'operator') ddl WHERE ddl NOT LIKE 'ALTER ROLE%' \gexec
SELECT is(t.as_role(:'blind', 'SELECT count(*) FROM bookings'), '0',
          'a role that row-level security blinds sees no booking');
SELECT matches(t.refusal(format('SELECT t.as_role(%L, ''SELECT cusown_expire_bookings()'')', :'blind')),
               '^42501 .*BYPASSRLS', 'it may not believe that there is nothing to expire');
SELECT matches(t.refusal(format('SELECT t.as_role(%L, ''SELECT cusown_due_bookings()'')', :'blind')),
               '^42501 .*BYPASSRLS', 'nor that nothing is due');
ALTER TABLE bookings DISABLE ROW LEVEL SECURITY;
ALTER TABLE slots DISABLE ROW LEVEL SECURITY;
ALTER TABLE audit_logs DISABLE ROW LEVEL SECURITY;
ALTER TABLE businesses DISABLE ROW LEVEL SECURITY;
SELECT matches(t.refusal(format('SELECT t.as_role(%L, ''SELECT cusown_expire_bookings()'')', :'blind')),
               '^42501 .*BYPASSRLS', 'to be blind for payments is enough');
ALTER TABLE payments DISABLE ROW LEVEL SECURITY;
SELECT is(t.as_role(:'blind', 'SELECT cusown_expire_bookings(dry_run => true)'), '(1,1,0,f)',
          'without row-level security the same role may run it');
ALTER TABLE bookings ENABLE ROW LEVEL SECURITY;
ALTER TABLE payments ENABLE ROW LEVEL SECURITY;
SET row_security = off;
SELECT matches(t.refusal(format('SELECT t.as_role(%L, ''SELECT cusown_expire_bookings()'')', :'blind')),
               '^42501 .*BYPASSRLS', 'row_security = off does not open its eyes');
RESET row_security;
ALTER ROLE :"blind" BYPASSRLS;
SELECT is(t.as_role(:'blind', 'SELECT cusown_expire_bookings()'), '(1,1,0,f)', 'BYPASSRLS does');

SELECT throws_ok(format($$SELECT t.as_role(%L, 'SELECT set_config(''cusown_ops.%s'', ''1'', true)')$$, :'blind', s),
                 '42501', NULL, 'cusown_ops.' || s || ' is for superusers to set')
  FROM unnest(ARRAY['booking_ttl', 'processing_grace', 'batch_size']) s;
DROP OWNED BY :"blind";
DROP ROLE :"blind";

--
-- Lazy heal: the same by a request, once in an interval
--

SELECT t.clear();
TRUNCATE metrics, cusown_ops.job_run;
SELECT t.booking('due'), t.booking('paid'), t.booking('undone', p_undone => true), t.booking('young', '1 h');
SELECT t.payment('paid', 'completed');
SELECT is(cusown_expire_if_due(), 1::bigint, 'a request expires what may expire');
SELECT is(t.board(), 'due: cancelled/available, paid: pending/reserved, undone: pending/reserved, young: pending/reserved',
          'and nothing else');
SELECT is(t.worklist(), 'paid: paid_pending open 1, undone: unexpirable open 1', 'the rest is on the worklist');
SELECT results_eq('SELECT metric, value FROM metrics', $$VALUES ('bookings.expired_by_lazy_heal', 1::bigint)$$,
                  'the application''s metric counts it');
SELECT is_empty('SELECT verify_audit_chain()', 'in an unbroken audit chain');
SELECT t.booking('later');
SELECT is(cusown_expire_if_due(), 0::bigint, 'the next request has no turn');

SELECT finish();
