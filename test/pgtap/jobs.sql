--
-- Jobs on the reference schema and, beside it, on the minimal application: what
-- each one promises, its ledger, the application's own records of it, and the
-- health that is read from the ledger.
--
-- The file is no transaction: CALL cusown_run_job() is a statement of its own.
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

SELECT plan(87);

SELECT count(*) FROM cusown_attach() \g /dev/null
SELECT count(*) FROM cusown_attach('shop', :'minimal_mapping') \g /dev/null
UPDATE cusown_ops.binding SET bound_since = now() - interval '1 month';

--
-- Helpers
--

CREATE SCHEMA t;

CREATE FUNCTION t.id(p_kind text, p_name text) RETURNS uuid
LANGUAGE sql IMMUTABLE AS $$ SELECT md5(p_kind || ' ' || p_name)::uuid $$;

-- A slot and the booking on it, in both applications alike.  held is the end of
-- the hold from now on, age the booking's, payment the status of one that is
-- as old as paid_age says.
CREATE TABLE t.scene (
  name text PRIMARY KEY, slot text, held interval, booking text, age interval,
  payment text, paid_age interval);

CREATE PROCEDURE t.play() LANGUAGE plpgsql AS $$
BEGIN
  SET LOCAL session_replication_role = replica;
  TRUNCATE businesses, slots, bookings, payments, audit_logs, payment_audit_logs, booking_lifecycle_audit,
           cron_run_logs, metrics, shop.time_slot, shop.reservation, shop.charge, shop.journal,
           cusown_ops.attention, cusown_ops.change, cusown_ops.job_run;
  SET LOCAL session_replication_role = origin;
  INSERT INTO businesses (id, salon_name, owner_name, whatsapp_number, opening_time, closing_time,
                          slot_duration, booking_link)
  VALUES (t.id('business', ''), 'Salon', 'Owner', '+15550000000', '09:00', '18:00', 30, 'salon');
  INSERT INTO slots (id, business_id, date, start_time, end_time, status, reserved_until)
  SELECT t.id('slot', name), t.id('business', ''), date '2030-01-01' + row_number() OVER ()::integer,
         '09:00', '09:30', slot, now() + held FROM t.scene;
  INSERT INTO bookings (id, business_id, slot_id, customer_name, customer_phone, booking_id, status, created_at)
  SELECT t.id('booking', name), t.id('business', ''), t.id('slot', name), 'Customer', '+15551111111', name,
         booking, now() - age FROM t.scene WHERE booking IS NOT NULL;
  INSERT INTO payments (id, booking_id, provider, provider_payment_id, amount_cents, status, created_at)
  SELECT t.id('payment', name), t.id('booking', name), 'razorpay', 'pay_' || name, 50000,
         payment::payment_status, now() - paid_age FROM t.scene WHERE payment IS NOT NULL;
  INSERT INTO shop.time_slot (ref, state, held_until) SELECT id, status, reserved_until FROM slots;
  INSERT INTO shop.reservation (ref, state, slot_ref, made_at) SELECT id, status, slot_id, created_at FROM bookings;
  INSERT INTO shop.charge (ref, reservation_ref, state, made_at)
  SELECT id, booking_id, status, created_at FROM payments;
END
$$;

CREATE VIEW t.booking AS
SELECT 'public' AS app, id, status FROM bookings UNION ALL SELECT 'shop', ref, state FROM shop.reservation;
CREATE VIEW t.slot AS
SELECT 'public' AS app, id, status, reserved_until FROM slots
UNION ALL SELECT 'shop', ref, state, held_until FROM shop.time_slot;
CREATE VIEW t.audit AS
SELECT 'public' AS app, action_type AS action, entity_type AS entity, entity_id, metadata FROM audit_logs
UNION ALL SELECT 'shop', verb, object_type, object_ref, detail FROM shop.journal;

-- each scene as it stands: booking, slot, whether its hold has an end
CREATE FUNCTION t.board(p_app text) RETURNS TABLE (name text, now_is text) LANGUAGE sql AS $$
  SELECT s.name, concat_ws(' ', b.status, l.status, CASE WHEN l.reserved_until IS NOT NULL THEN 'held' END)
    FROM t.scene s
    LEFT JOIN t.booking b ON b.app = p_app AND b.id = t.id('booking', s.name)
    JOIN t.slot l ON l.app = p_app AND l.id = t.id('slot', s.name)
   ORDER BY 1
$$;

-- what the audit rows say that was changed, and what the change feed does
CREATE FUNCTION t.audited(p_app text) RETURNS TABLE (change text) LANGUAGE sql AS $$
  SELECT concat_ws(' ', action, s.name, metadata->>'from', metadata->>'to', metadata->>'source')
    FROM t.audit a JOIN t.scene s ON a.entity_id = t.id(a.entity, s.name)
   WHERE app = p_app ORDER BY 1
$$;
CREATE FUNCTION t.told(p_app text) RETURNS TABLE (change text) LANGUAGE sql AS $$
  SELECT concat_ws(' ', verb, entity, s.name, from_status, to_status, source)
    FROM cusown_ops.change c JOIN t.scene s ON c.entity_id = t.id(c.entity, s.name)
   WHERE app_schema = p_app::name ORDER BY 1
$$;
CREATE FUNCTION t.worklist(p_app text) RETURNS TABLE (entry text) LANGUAGE sql AS $$
  SELECT concat_ws(' ', kind, s.name, times) FROM cusown_ops.attention a
    JOIN t.scene s ON a.entity_id IN (t.id('booking', s.name), t.id('slot', s.name))
   WHERE app_schema = p_app::name AND closed_at IS NULL ORDER BY 1
$$;
CREATE VIEW t.ledger AS
SELECT id, concat_ws(' ', app_schema, job, source, status, changed, released, attention, looked_at, batches,
                     sqlstate, message) COLLATE "default" AS run
  FROM cusown_ops.job_run;

-- every row, with its place and its writer
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
       AND c.relname NOT IN ('cron_run_logs', 'metrics')
     ORDER BY c.relname
  LOOP
    EXECUTE format('SELECT md5(string_agg(r::text || r.ctid || r.xmin, %L ORDER BY r.ctid)) FROM %s r', ',', v_table)
       INTO v_hash;
    v_all := v_all || v_table || coalesce(v_hash, 'empty');
  END LOOP;
  RETURN md5(v_all);
END
$$;

-- returns when a query says true; fails when it has not after a minute
CREATE PROCEDURE t.wait_until(p_query text) LANGUAGE plpgsql AS $$
DECLARE
  v_done boolean;
BEGIN
  LOOP
    EXECUTE p_query INTO v_done;
    EXIT WHEN v_done;
    IF clock_timestamp() > statement_timestamp() + interval '1 min' THEN
      RAISE EXCEPTION 'waited in vain for: %', p_query;
    END IF;
    PERFORM pg_sleep(0.01);
  END LOOP;
END
$$;

--
-- The jobs, and what an owner sets
--

CREATE VIEW t.jobs AS
SELECT job, every, enabled FROM cusown_jobs()
 WHERE job IN ('expire_bookings', 'prune_history', 'release_expired_holds');
SELECT results_eq('TABLE t.jobs',
  $$VALUES ('expire_bookings', interval '5 min', true), ('prune_history', '1 day', true),
           ('release_expired_holds', '1 min', true)$$, 'the jobs as they are shipped');
SELECT is(count(*), 0::bigint, 'each says what it does') FROM cusown_jobs() WHERE description IS NULL OR description = '';
INSERT INTO cusown_ops.job (name, every, enabled) VALUES ('expire_bookings', '2 min', NULL), ('prune_history', NULL, false);
SELECT results_eq('TABLE t.jobs',
  $$VALUES ('expire_bookings', interval '2 min', true), ('prune_history', '1 day', false),
           ('release_expired_holds', '1 min', true)$$, 'what an owner sets, each for itself');
DELETE FROM cusown_ops.job;
SELECT results_eq('SELECT every FROM t.jobs WHERE job = ''expire_bookings''', $$VALUES (interval '5 min')$$,
                  'what he takes back is as shipped');

--
-- expire_bookings
--

INSERT INTO t.scene VALUES
  ('due 1',     'reserved',  '-1 day', 'pending',   '30 h', NULL, NULL),
  ('due 2',     'reserved',  '-1 day', 'pending',   '29 h', 'processing', '2 h'),
  ('due 3',     'booked',    NULL,     'pending',   '28 h', NULL, NULL),
  ('due held',  'reserved',  '5 min',  'pending',   '27 h', NULL, NULL),
  ('paid',      'reserved',  '-1 day', 'pending',   '26 h', 'completed', '26 h'),
  ('paying',    'reserved',  '-1 day', 'pending',   '25 h', 'processing', '10 min'),
  ('young',     'reserved',  '-1 h',   'pending',   '1 h',  NULL, NULL),
  ('confirmed', 'booked',    NULL,     'confirmed', '30 h', NULL, NULL);
CALL t.play();

CREATE FUNCTION t.expired(p_app text) RETURNS SETOF text LANGUAGE plpgsql AS $$
BEGIN
  RETURN NEXT results_eq(format('SELECT * FROM t.board(%L)', p_app),
    $q$VALUES ('confirmed', 'confirmed booked'), ('due 1', 'cancelled available'), ('due 2', 'cancelled available'),
              ('due 3', 'cancelled available'), ('due held', 'cancelled reserved held'),
              ('paid', 'pending reserved held'), ('paying', 'pending reserved held'), ('young', 'pending reserved held')$q$,
    p_app || ': what is due expires and its slot is freed, but no paid or young booking and no live hold');
  RETURN NEXT results_eq(format('SELECT * FROM t.audited(%L)', p_app),
    $q$VALUES ('booking_cancelled due 1 pending cancelled cron'), ('booking_cancelled due 2 pending cancelled cron'),
              ('booking_cancelled due 3 pending cancelled cron'), ('booking_cancelled due held pending cancelled cron'),
              ('slot_released due 1 reserved available cron'), ('slot_released due 2 reserved available cron'),
              ('slot_released due 3 booked available cron')$q$,
    p_app || ': each change has one audit row');
  RETURN NEXT results_eq(format('SELECT * FROM t.told(%L)', p_app),
    $q$VALUES ('expire_bookings booking due 1 pending cancelled cron'), ('expire_bookings booking due 2 pending cancelled cron'),
              ('expire_bookings booking due 3 pending cancelled cron'), ('expire_bookings booking due held pending cancelled cron'),
              ('expire_bookings slot due 1 reserved available cron'), ('expire_bookings slot due 2 reserved available cron'),
              ('expire_bookings slot due 3 booked available cron')$q$,
    p_app || ': and is in the change feed');
  RETURN NEXT results_eq(format('SELECT * FROM t.worklist(%L)', p_app), $q$VALUES ('paid_pending paid 1')$q$,
    p_app || ': a human is told of the paid one alone');
  RETURN NEXT results_eq(format('SELECT run FROM t.ledger WHERE run LIKE %L', p_app || ' %'),
    format('VALUES (%L)', p_app || ' expire_bookings cron succeeded 4 3 1 6 3'),
    p_app || ': the run is in the ledger');
END
$$;

SELECT t.state('shop') AS shop \gset before_
SET cusown_ops.app_schema = 'public';
CALL cusown_run_job('expire_bookings', 'cron', 2);
SELECT t.expired('public');
SELECT is(t.state('shop'), :'before_shop', 'the other application is as it was');
SELECT is_empty('SELECT verify_audit_chain()', 'the audit chain is whole');
SELECT results_eq('SELECT action_type, actor_type, count(*)::integer FROM booking_lifecycle_audit GROUP BY 1, 2',
                  $$VALUES ('expire', 'system', 4)$$, 'the life cycle has its rows');
SET cusown_ops.app_schema = 'shop';
CALL cusown_run_job('expire_bookings', 'cron', 2);
SELECT t.expired('shop');

RESET cusown_ops.app_schema;
SELECT t.state('public') AS public, t.state('shop') AS shop \gset before_
CALL cusown_run_job('expire_bookings', 'worker');
SELECT is(t.state('public') || t.state('shop'), :'before_public' || :'before_shop', 'a second run changes nothing');
SELECT results_eq('SELECT run FROM t.ledger ORDER BY id DESC LIMIT 2',
  $$VALUES ('shop expire_bookings worker succeeded 0 0 0 2 1'), ('public expire_bookings worker succeeded 0 0 0 2 1')$$,
  'and visits each application, where none is chosen');

--
-- release_expired_holds
--

DELETE FROM t.scene;
INSERT INTO t.scene VALUES
  ('alone',     'reserved',  '-1 s',   NULL,        NULL,   NULL, NULL),
  ('pending',   'reserved',  '-1 h',   'pending',   '2 h',  NULL, NULL),
  ('due',       'reserved',  '-1 day', 'pending',   '30 h', NULL, NULL),
  ('paid',      'reserved',  '-1 day', 'pending',   '30 h', 'completed', '30 h'),
  ('unbooked',  'reserved',  '-1 day', 'confirmed', '30 h', NULL, NULL),
  ('live',      'reserved',  '5 min',  'pending',   '30 h', NULL, NULL),
  ('endless',   'reserved',  NULL,     NULL,        NULL,   NULL, NULL),
  ('booked',    'booked',    NULL,     'confirmed', '30 h', NULL, NULL),
  ('cancelled', 'available', NULL,     'rejected',  '30 h', NULL, NULL);
CALL t.play();

CREATE FUNCTION t.released(p_app text, p_source text) RETURNS SETOF text LANGUAGE plpgsql AS $$
BEGIN
  RETURN NEXT results_eq(format('SELECT * FROM t.board(%L)', p_app),
    $q$VALUES ('alone', 'available'), ('booked', 'confirmed booked'), ('cancelled', 'rejected available'),
              ('due', 'pending available'), ('endless', 'reserved'), ('live', 'pending reserved held'),
              ('paid', 'pending available'), ('pending', 'pending available'), ('unbooked', 'confirmed booked')$q$,
    p_app || ': a slot whose hold has ended is free, or booked under a confirmed booking; no booking changes');
  RETURN NEXT results_eq(format('SELECT * FROM t.audited(%L)', p_app),
    format($q$VALUES ('slot_booked unbooked reserved booked %1$s'), ('slot_released alone reserved available %1$s'),
              ('slot_released due reserved available %1$s'), ('slot_released paid reserved available %1$s'),
              ('slot_released pending reserved available %1$s')$q$, p_source),
    p_app || ': each change has one audit row');
  RETURN NEXT results_eq(format('SELECT * FROM t.told(%L)', p_app),
    format($q$VALUES ('release_expired_holds slot alone reserved available %1$s'), ('release_expired_holds slot due reserved available %1$s'),
              ('release_expired_holds slot paid reserved available %1$s'), ('release_expired_holds slot pending reserved available %1$s'),
              ('release_expired_holds slot unbooked reserved booked %1$s')$q$, p_source),
    p_app || ': and is in the change feed');
  RETURN NEXT results_eq(format('SELECT * FROM t.worklist(%L)', p_app), $q$VALUES ('hold_without_end endless 1')$q$,
    p_app || ': a slot that is reserved for ever is for a human');
END
$$;

SET cusown_ops.app_schema = 'public';
SELECT t.state('public') || t.state('cusown_ops') AS all \gset before_
SELECT is(cusown_release_expired_holds(dry_run => true)::text, '(4,1,1,f)', 'a dry run tells what a run would do');
SELECT is(t.state('public') || t.state('cusown_ops'), :'before_all', 'and changes nothing');
CALL cusown_run_job('release_expired_holds', 'cron', 3);
SELECT t.released('public', 'cron');
SELECT is_empty('SELECT verify_audit_chain()', 'the audit chain is whole');
SELECT results_eq('SELECT run FROM t.ledger', $$VALUES ('public release_expired_holds cron succeeded 5 4 1 5 2')$$,
                  'the run is in the ledger');
SELECT lives_ok($$SELECT confirm_booking_atomically(t.id('booking', 'pending'))$$,
                'a booking whose hold has ended can still be confirmed');
SET cusown_ops.app_schema = 'shop';
SELECT is(cusown_release_expired_holds(3, source => 'application')::text, '(2,1,1,t)',
          'by hand, as many as asked for, and told that there is more');
SELECT is(cusown_release_expired_holds(source => 'application')::text, '(2,0,0,f)', 'and the rest');
SELECT t.released('shop', 'application');
SELECT is(cusown_release_expired_holds()::text, '(0,0,0,f)', 'then there is nothing to do');
UPDATE shop.time_slot SET held_until = now() - interval '1 s' WHERE ref = t.id('slot', 'endless');
SELECT is(cusown_release_expired_holds()::text, '(1,0,0,f)', 'a slot that a human has given an end is released');
SELECT is_empty('SELECT t.worklist(''shop'')', 'and its entry closed');

--
-- prune_history
--

-- of both applications: changes and entries, old and young; an old entry that is open
RESET cusown_ops.app_schema;
DELETE FROM cusown_ops.attention;
DELETE FROM cusown_ops.change;
INSERT INTO cusown_ops.change (app_schema, at, verb, source, entity, entity_id)
SELECT a, now() - age, age::text, 'cron', 'booking', gen_random_uuid()
  FROM unnest(ARRAY['public', 'shop']) a, unnest(ARRAY[interval '8 days', '25 h', '23 h', '0']) age;
INSERT INTO cusown_ops.attention (app_schema, kind, entity, entity_id, runbook, finding, first_seen, last_seen,
                                  next_try, closed_at, closed_by)
SELECT a, k, 'booking', gen_random_uuid(), 'cron_failure', 'x', now() - age, now() - age, now() - age,
       CASE WHEN k = 'closed' THEN now() - age END, CASE WHEN k = 'closed' THEN 'me' END
  FROM unnest(ARRAY['public', 'shop']) a, unnest(ARRAY['open', 'closed']) k, unnest(ARRAY[interval '8 days', '1 day']) age;
TRUNCATE cusown_ops.job_run;
SELECT t.state('public') || t.state('shop') AS all \gset before_
CREATE VIEW t.history AS
SELECT (app_schema || ' ' || verb) COLLATE "default" AS row FROM cusown_ops.change
UNION ALL SELECT (app_schema || ' ' || kind || ' ' || extract(day FROM now() - first_seen)) COLLATE "default" FROM cusown_ops.attention;
SET cusown_ops.app_schema = 'shop';
CALL cusown_run_job('prune_history');
SELECT bag_eq('TABLE t.history',
  $$VALUES ('public 8 days'), ('public 25:00:00'), ('public 23:00:00'), ('public 00:00:00'),
           ('shop 25:00:00'), ('shop 23:00:00'), ('shop 00:00:00'),
           ('public open 8'), ('public open 1'), ('public closed 8'), ('public closed 1'),
           ('shop open 8'), ('shop open 1'), ('shop closed 1')$$,
  'what is older than a week goes, of the application that is chosen; open entries stay');
SELECT results_eq('SELECT run FROM t.ledger', $$VALUES ('shop prune_history manual succeeded 2 0 0 2 1')$$,
                  'the ledger counts what went');
RESET cusown_ops.app_schema;
SET cusown_ops.change_retention = '1470 min';
CALL cusown_run_job('prune_history', batch_size => 1);
SELECT bag_eq('TABLE t.history',
  $$VALUES ('public 23:00:00'), ('public 00:00:00'), ('shop 23:00:00'), ('shop 00:00:00'),
           ('public open 8'), ('public open 1'), ('public closed 1'), ('shop open 8'), ('shop open 1'), ('shop closed 1')$$,
  'how long is a setting, of all applications where none is chosen');
RESET cusown_ops.change_retention;
SELECT is(t.state('public') || t.state('shop'), :'before_all', 'nothing of the applications changes');

--
-- The application's own records, where it has any
--

DELETE FROM t.scene;
INSERT INTO t.scene SELECT 'due ' || n, 'reserved', '-1 day', 'pending', interval '40 h' - n * interval '1 h'
  FROM generate_series(1, 6) n;
CALL t.play();
CREATE VIEW t.records AS
SELECT concat_ws(' ', job_name, status, error_message) AS record,
       completed_at >= started_at AND duration_ms BETWEEN 0 AND 60000
       AND started_at > now() - interval '1 min' AS timed FROM cron_run_logs;
CREATE VIEW t.metrics AS
SELECT metric, CASE WHEN metric LIKE 'cron.%' THEN (to_timestamp(value) > now() - interval '1 min')::text
                    ELSE value::text END AS value, updated_at > now() - interval '1 min' AS fresh
  FROM metrics ORDER BY 1;

CALL cusown_run_job('expire_bookings', 'cron');
SELECT results_eq('TABLE t.records', $$VALUES ('expire-bookings success', true)$$,
                  'a run is in cron_run_logs of the application that has one');
SELECT results_eq('TABLE t.metrics',
  $$VALUES ('bookings.expired_by_cron', '6', true), ('cron.expire_bookings.last_run_ts', 'true', true)$$,
  'and in its metrics');
SELECT results_eq('SELECT run FROM t.ledger ORDER BY id',
  $$VALUES ('public expire_bookings cron succeeded 6 6 0 6 1'), ('shop expire_bookings cron succeeded 6 6 0 6 1')$$,
  'the one that has none has its row in the ledger as well');
CALL cusown_run_job('release_expired_holds', 'cron');
SELECT results_eq('SELECT record FROM t.records ORDER BY 1',
                  $$VALUES ('expire-bookings success'), ('release-expired-holds success')$$, 'so is each other job');
SELECT results_eq('SELECT metric, value FROM t.metrics',
  $$VALUES ('bookings.expired_by_cron', '6'), ('cron.expire_bookings.last_run_ts', 'true'),
           ('cron.release_expired_holds.last_run_ts', 'true')$$, 'a count grows only by what was expired');

--
-- A run that fails
--

CREATE FUNCTION t.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'the salon refuses' USING ERRCODE = 'XX123';
END
$$;
CREATE TRIGGER refuse BEFORE UPDATE ON bookings FOR EACH ROW WHEN (OLD.booking_id = 'due 5')
EXECUTE FUNCTION t.refuse();
CALL t.play();
\echo '# the next error is meant to be'
\set ON_ERROR_STOP 0
CALL cusown_run_job('expire_bookings', 'cron', 2);
\set ON_ERROR_STOP 1
SELECT is(:'LAST_ERROR_SQLSTATE'::text, 'XX123', 'an error is raised to the caller');
SELECT results_eq('SELECT run FROM t.ledger ORDER BY id',
  $$VALUES ('public expire_bookings cron failed 4 4 0 4 2 XX123 the salon refuses'),
           ('shop expire_bookings cron succeeded 6 6 0 6 3')$$,
  'the ledger says how it failed and what it had done; the next application is visited');
SELECT results_eq('SELECT * FROM t.board(''public'') WHERE now_is <> ''cancelled available''',
  $$VALUES ('due 5', 'pending reserved held'), ('due 6', 'pending reserved held')$$,
  'the batches before are kept, the one that failed is rolled back');
SELECT is(count(*), 8::bigint, 'with its audit rows') FROM audit_logs;
SELECT results_eq('TABLE t.records', $$VALUES ('expire-bookings failed the salon refuses', true)$$,
                  'cron_run_logs says so too');
SELECT is_empty('TABLE t.metrics', 'a failed run is not told as the last one');
SELECT results_eq($$SELECT late, last_success IS NULL, last_outcome FROM cusown_cron_health()
                     WHERE job = 'expire_bookings' ORDER BY app_schema$$,
                  $$VALUES (true, true, 'failed'), (false, false, 'succeeded')$$, 'nor counted as a success');
DROP TRIGGER refuse ON bookings;
CALL cusown_run_job('expire_bookings', 'cron');
SELECT is_empty('SELECT * FROM t.board(''public'') WHERE now_is <> ''cancelled available''', 'the next one does the rest');
SELECT is(last_outcome, 'succeeded', 'and is the last outcome') FROM cusown_cron_health()
 WHERE job = 'expire_bookings' AND app_schema = 'public';

--
-- A run beside one that is under way, and one whose session went
--

-- whoever changes this booking waits for the advisory lock 1
CREATE FUNCTION t.wait_at_gate() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_advisory_xact_lock_shared(1);
  RETURN NEW;
END
$$;
CREATE TRIGGER gate BEFORE UPDATE ON bookings FOR EACH ROW WHEN (OLD.booking_id = 'due 3')
EXECUTE FUNCTION t.wait_at_gate();
CALL t.play();
SELECT pg_advisory_lock(1);
\setenv PGDATABASE :DBNAME
\setenv PGOPTIONS '-c cusown_ops.app_schema=public'
\! psql -qX -c "CALL cusown_run_job('expire_bookings', 'worker', 2)" >/dev/null 2>&1 &
CALL t.wait_until($$SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
                     AND database = (SELECT oid FROM pg_database WHERE datname = current_database())$$);
SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
   AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) \gset

SET cusown_ops.app_schema = 'public';
SELECT results_eq('SELECT app_schema, job, source, done, batches, session LIKE ''pid ' || :pid || ',%'' FROM cusown_ops.job_progress',
                  $$VALUES ('public'::name, 'expire_bookings', 'worker', 2::bigint, 1::bigint, true)$$,
                  'a run that is under way is in job_progress, as far as it is');
SELECT results_eq($$SELECT running_since IS NOT NULL, last_outcome, late FROM cusown_cron_health()
                     WHERE job = 'expire_bookings' AND app_schema = 'public'$$,
                  $$VALUES (true, 'running', true)$$, 'and in the health, but is no success yet');
CALL cusown_run_job('expire_bookings', 'cron');
SELECT results_eq('SELECT run FROM t.ledger ORDER BY id',
  $$VALUES ('public expire_bookings worker running 2 2 0 2 1'), ('public expire_bookings cron skipped 0 0 0 0 0')$$,
  'beside it one by cron is skipped');
SELECT is_empty('TABLE t.records', 'and is in nobody''s records');
SELECT is(last_outcome, 'running', 'nor the last outcome') FROM cusown_cron_health()
 WHERE job = 'expire_bookings' AND app_schema = 'public';
\echo '# the next error is meant to be'
\set ON_ERROR_STOP 0
CALL cusown_run_job('expire_bookings');
\set ON_ERROR_STOP 1
SELECT is(:'LAST_ERROR_SQLSTATE'::text, 'UO009', 'one by hand is UO009');
SELECT is(count(*), 2::bigint, 'and has no row') FROM cusown_ops.job_run;
CALL cusown_run_job('release_expired_holds', 'cron', 2);
SELECT is(run, 'public release_expired_holds cron succeeded 2 2 0 4 2', 'another job runs, and leaves what the first one has')
  FROM t.ledger ORDER BY id DESC LIMIT 1;
SET cusown_ops.app_schema = 'shop';
CALL cusown_run_job('expire_bookings', 'cron', 2);
SELECT is(run, 'shop expire_bookings cron succeeded 6 6 0 6 3', 'so does the same one on another application')
  FROM t.ledger ORDER BY id DESC LIMIT 1;

SELECT pg_terminate_backend(:pid, 60000) \g /dev/null
SELECT is_empty('SELECT * FROM cusown_ops.job_progress', 'a run whose session went is no progress');
SELECT results_eq($$SELECT running_since IS NULL, last_outcome, late FROM cusown_cron_health()
                     WHERE job = 'expire_bookings' AND app_schema = 'public'$$,
                  $$VALUES (true, 'died', true)$$, 'it has died');
SELECT is(run, 'public expire_bookings worker running 2 2 0 2 1', 'though its row still says running')
  FROM t.ledger ORDER BY id LIMIT 1;
SELECT pg_advisory_unlock(1) \g /dev/null
SET cusown_ops.app_schema = 'public';
CALL cusown_run_job('expire_bookings');
SELECT is(run, 'public expire_bookings worker died 2 2 0 2 1', 'until the next run finds it')
  FROM t.ledger ORDER BY id LIMIT 1;
SELECT results_eq('SELECT status, count(*)::integer FROM t.booking WHERE app = ''public'' GROUP BY 1', $$VALUES ('cancelled', 6)$$,
                  'which does the rest');
SELECT is(count(*), 6::bigint, 'once') FROM audit_logs WHERE action_type = 'booking_cancelled';
DROP TRIGGER gate ON bookings;

--
-- The ledger is bounded, for each application, job and outcome
--

TRUNCATE cusown_ops.job_run;
RESET cusown_ops.app_schema;
SET cusown_ops.job_run_retention = 2;
CALL cusown_run_job('prune_history');
CALL cusown_run_job('expire_bookings', 'cron');
CALL cusown_run_job('expire_bookings', 'worker');
CALL cusown_run_job('expire_bookings', 'application');
SET cusown_ops.app_schema = 'public';
CALL cusown_run_job('expire_bookings');
RESET cusown_ops.app_schema;
ALTER TABLE slots RENAME status TO condition;
\echo '# the next three errors and warnings are meant to be'
\set ON_ERROR_STOP 0
CALL cusown_run_job('expire_bookings', 'cron');
CALL cusown_run_job('expire_bookings', 'worker');
CALL cusown_run_job('expire_bookings', 'manual');
\set ON_ERROR_STOP 1
SELECT is(:'LAST_ERROR_SQLSTATE'::text, 'UO001', 'what its binding no longer finds ends a run, too');
ALTER TABLE slots RENAME condition TO status;
SELECT bag_eq('SELECT app_schema, job, source, status FROM cusown_ops.job_run',
  $$VALUES ('public'::name, 'prune_history', 'manual', 'succeeded'), ('shop', 'prune_history', 'manual', 'succeeded'),
           ('public', 'expire_bookings', 'application', 'succeeded'), ('public', 'expire_bookings', 'manual', 'succeeded'),
           ('public', 'expire_bookings', 'worker', 'failed'), ('public', 'expire_bookings', 'manual', 'failed'),
           ('shop', 'expire_bookings', 'worker', 'succeeded'), ('shop', 'expire_bookings', 'manual', 'succeeded')$$,
  'the newest of each are kept, as many as job_run_retention says');
RESET cusown_ops.job_run_retention;

--
-- Health
--

CREATE FUNCTION t.health(p_app text, p_job text DEFAULT 'expire_bookings') RETURNS text LANGUAGE sql AS $$
  SELECT concat_ws(' ', CASE WHEN NOT enabled THEN 'disabled' END, CASE WHEN late THEN 'late' ELSE 'in time' END,
                   CASE WHEN late_since IS NOT NULL
                        THEN 'for ' || round(extract(epoch FROM now() - late_since) / 60) || ' min' END,
                   last_outcome, last_source)
    FROM cusown_cron_health() WHERE app_schema = p_app::name AND job = p_job
$$;

-- a success so long ago
CREATE PROCEDURE t.succeed(p_app name, p_ago interval, p_status text DEFAULT 'succeeded') LANGUAGE sql AS $$
  INSERT INTO cusown_ops.job_run (app_schema, job, source, started_at, finished_at, status, session)
  VALUES (p_app, 'expire_bookings', 'cron', now() - p_ago, now() - p_ago, p_status, 'pid 0')
$$;

TRUNCATE cusown_ops.job_run;
UPDATE cusown_ops.binding SET bound_since = now() - interval '9 min';
SELECT is(t.health('public'), 'in time', 'a job that never ran is in time while its application is new');
UPDATE cusown_ops.binding SET bound_since = now() - interval '14 min';
SELECT is(t.health('public'), 'late for 4 min', 'then it is late');
CALL t.succeed('public', '9 min');
SELECT is(t.health('public'), 'in time succeeded cron', 'one that ran less than twice its interval ago is in time');
SELECT is(t.health('shop'), 'late for 4 min', 'on one application; on another it is not');
CALL t.succeed('shop', '-1 h');
SELECT is(t.health('shop'), 'late for 4 min succeeded cron', 'nor by a success in the future, from a clock that was set back');
UPDATE cusown_ops.job_run SET finished_at = now() - interval '13 min';
SELECT is(t.health('public'), 'late for 3 min succeeded cron', 'late after twice the interval, since then');
CALL t.succeed('public', '1 min', 'failed');
SELECT is(t.health('public'), 'late for 3 min failed cron', 'a failed run does not help');
CALL t.succeed('public', '1 min', 'skipped');
SELECT is(t.health('public'), 'late for 3 min failed cron', 'nor does one that was skipped, which is no outcome either');
INSERT INTO cusown_ops.job (name, every) VALUES ('expire_bookings', '10 min');
SELECT is(t.health('public'), 'in time failed cron', 'a longer interval makes it in time');
UPDATE cusown_ops.job SET every = '2 min';
SELECT is(t.health('public'), 'late for 9 min failed cron', 'a shorter one later');
UPDATE cusown_ops.job SET enabled = false;
SELECT is(t.health('public'), 'disabled in time failed cron', 'what is disabled is never late');
DELETE FROM cusown_ops.job;
CALL cusown_run_job('expire_bookings');
SELECT is(t.health('public'), 'in time succeeded manual', 'a run by hand counts');
SELECT is(t.health('shop'), 'in time succeeded manual', 'on each application that it visits');
SELECT is(t.health('public', 'release_expired_holds'), 'late for 12 min', 'and for no other job');
-- days are 24 hours, whatever the clocks of the session do
SET timezone = 'Europe/Berlin';
INSERT INTO cusown_ops.job (name, every) VALUES ('expire_bookings', '1 day');
UPDATE cusown_ops.job_run SET finished_at = statement_timestamp() - interval '48 h' - interval '30 s';
SELECT is(t.health('public'), 'late for 1 min succeeded manual', 'two days are 48 hours');
RESET timezone;

SELECT finish();
