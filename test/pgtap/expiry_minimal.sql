--
-- Expiry on an application that has only what the runbooks name, by other
-- names: as it is, with status columns of other types, without payments and
-- without an end of holds.
--
\set QUIET 1
\pset format unaligned
\pset tuples_only true
SET client_min_messages = warning;

CREATE SCHEMA tap;
CREATE EXTENSION IF NOT EXISTS pgtap SCHEMA tap;
ALTER EXTENSION pgtap SET SCHEMA tap;
SET search_path = public, tap;

CREATE EXTENSION cusown_ops;

SELECT plan(89);

--
-- The applications: one for each type that a status may have
--

\set schema shop
\i :fixture/app_minimal.sql
\set schema shop_varchar
\i :fixture/app_minimal.sql
\set schema shop_char
\i :fixture/app_minimal.sql
\set schema shop_enum
\i :fixture/app_minimal.sql
\set schema shop_domain
\i :fixture/app_minimal.sql
\set schema shop_enum_domain
\i :fixture/app_minimal.sql
\set schema shop_unpaid
\i :fixture/app_minimal.sql
\set schema shop_unheld
\i :fixture/app_minimal.sql
\set schema shop_many
\i :fixture/app_minimal.sql
\unset schema

CREATE TYPE booking_state AS ENUM ('pending', 'confirmed', 'rejected', 'cancelled');
CREATE TYPE slot_state AS ENUM ('available', 'reserved', 'booked');
CREATE TYPE charge_state AS ENUM ('pending', 'processing', 'completed', 'failed', 'refunded',
                                  'partially_refunded', 'initiated', 'expired');
CREATE DOMAIN state_text AS text CHECK (VALUE <> '');
CREATE DOMAIN booking_state_domain AS booking_state;
CREATE DOMAIN slot_state_domain AS slot_state;
CREATE DOMAIN charge_state_domain AS charge_state;

CREATE SCHEMA t;

-- Gives the three status columns of an application another type.
CREATE FUNCTION t.retype(p_schema text, p_booking text, p_slot text DEFAULT NULL,
                         p_charge text DEFAULT NULL)
RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
  v_change text := 'ALTER TABLE %I.%I ALTER state TYPE %s USING state::text::%3$s';
BEGIN
  EXECUTE format('DROP INDEX %I.reservation_one_confirmed', p_schema);
  EXECUTE format('ALTER TABLE %I.reservation DROP CONSTRAINT reservation_state_check', p_schema);
  EXECUTE format(v_change, p_schema, 'reservation', p_booking);
  EXECUTE format(v_change, p_schema, 'time_slot', coalesce(p_slot, p_booking));
  EXECUTE format(v_change, p_schema, 'charge', coalesce(p_charge, p_booking));
END
$$;

SELECT t.retype('shop_varchar', 'varchar(20)');
SELECT t.retype('shop_char', 'char(20)');
SELECT t.retype('shop_enum', 'booking_state', 'slot_state', 'charge_state');
SELECT t.retype('shop_domain', 'state_text');
SELECT t.retype('shop_enum_domain', 'booking_state_domain', 'slot_state_domain',
                'charge_state_domain');

--
-- What happens in each of them.  A case is a booking; slot tells on which
-- slot it stands (its own where it is null), after what is to become of both.
--

CREATE TABLE t.slot_of (name text, status text, held interval);
INSERT INTO t.slot_of VALUES
  ('plain', 'reserved', '-1 day'), ('cleaned', 'available', NULL),
  ('abandoned', 'reserved', '-1 day'), ('dead', 'reserved', '-1 day'),
  ('held', 'reserved', '9 min'), ('moved', 'booked', NULL), ('taken', 'booked', NULL),
  ('shared', 'booked', NULL), ('pair', 'reserved', '-1 day'), ('pair booked', 'booked', NULL),
  ('paid', 'reserved', '-1 day'), ('part paid', 'reserved', '-1 day'),
  ('paying', 'reserved', '-1 day'), ('guest', 'reserved', '-1 day'),
  ('young', 'reserved', '-1 h'), ('endless', 'reserved', NULL);

CREATE TABLE t.case_of (
  name text, slot text, age interval, status text, verdict text, after text,
  payment text, payment_age interval);
INSERT INTO t.case_of VALUES
  ('plain',       'plain',       '25 h', 'pending',   'expire',    'cancelled available', NULL, NULL),
  ('cleaned',     'cleaned',     '26 h', 'pending',   'expire',    'cancelled available', NULL, NULL),
  ('abandoned',   'abandoned',   '27 h', 'pending',   'expire',    'cancelled available', 'processing', '61 min'),
  ('dead',        'dead',        '28 h', 'pending',   'expire',    'cancelled available', 'refunded', '5 min'),
  ('held old',    'held',        '29 h', 'pending',   'expire',    'cancelled reserved',  NULL, NULL),
  ('held new',    'held',        '1 min', 'pending',  NULL,        'pending reserved',    NULL, NULL),
  ('moved',       'moved',       '30 h', 'pending',   'expire',    'cancelled available', NULL, NULL),
  ('taken',       'taken',       '31 h', 'pending',   'expire',    'cancelled booked',    NULL, NULL),
  ('taken by',    'taken',       '30 h', 'confirmed', NULL,        'confirmed booked',    'completed', '29 h'),
  ('shared',      'shared',      '32 h', 'pending',   'expire',    'cancelled booked',    NULL, NULL),
  ('shared with', 'shared',      '5 h',  'pending',   NULL,        'pending booked',      NULL, NULL),
  ('pair 1',      'pair',        '33 h', 'pending',   'expire',    'cancelled available', NULL, NULL),
  ('pair 2',      'pair',        '34 h', 'pending',   'expire',    'cancelled available', NULL, NULL),
  ('pair b 1',    'pair booked', '35 h', 'pending',   'expire',    'cancelled available', NULL, NULL),
  ('pair b 2',    'pair booked', '36 h', 'pending',   'expire',    'cancelled available', NULL, NULL),
  ('paid',        'paid',        '37 h', 'pending',   'paid',      'pending reserved',    'completed', '36 h'),
  ('part paid',   'part paid',   '38 h', 'pending',   'paid',      'pending reserved',    'partially_refunded', '37 h'),
  ('paying',      'paying',      '39 h', 'pending',   'in_flight', 'pending reserved',    'initiated', '59 min'),
  ('guest',       'guest',       '40 h', 'pending',   'refused',   'pending reserved',    NULL, NULL),
  ('nowhere',     NULL,          '41 h', 'pending',   'refused',   'pending',             NULL, NULL),
  ('young',       'young',       '23 h', 'pending',   NULL,        'pending reserved',    NULL, NULL),
  ('endless',     'endless',     '42 h', 'pending',   'expire',    'cancelled reserved',  NULL, NULL);

CREATE FUNCTION t.fill(p_schema text) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
  v_booking text := (SELECT format_type(atttypid, atttypmod) FROM pg_attribute
                      WHERE attrelid = format('%I.reservation', p_schema)::regclass AND attname = 'state');
  v_slot text := (SELECT format_type(atttypid, atttypmod) FROM pg_attribute
                   WHERE attrelid = format('%I.time_slot', p_schema)::regclass AND attname = 'state');
  v_charge text := (SELECT format_type(atttypid, atttypmod) FROM pg_attribute
                     WHERE attrelid = format('%I.charge', p_schema)::regclass AND attname = 'state');
BEGIN
  EXECUTE format($f$
    -- what only a CHECK knows: a booking without a customer cannot be cancelled
    ALTER TABLE %1$I.reservation ADD CONSTRAINT guests_stay
      CHECK (state::text <> 'cancelled' OR customer IS NOT NULL);
    INSERT INTO %1$I.time_slot (ref, state, held_until)
    SELECT md5('slot ' || name)::uuid, status::%3$s, now() + held FROM t.slot_of;
    INSERT INTO %1$I.reservation (ref, state, slot_ref, customer, made_at)
    SELECT md5('booking ' || name)::uuid, status::%2$s, md5('slot ' || slot)::uuid,
           CASE WHEN name <> 'guest' THEN md5('customer ' || name)::uuid END, now() - age
      FROM t.case_of;
    INSERT INTO %1$I.charge (ref, reservation_ref, state, made_at)
    SELECT md5('payment ' || name)::uuid, md5('booking ' || name)::uuid, payment::%4$s,
           now() - payment_age
      FROM t.case_of WHERE payment IS NOT NULL$f$, p_schema, v_booking, v_slot, v_charge);
END
$$;

-- each booking with its status and that of its slot
CREATE FUNCTION t.board(p_schema text)
RETURNS TABLE (name text, after text)
LANGUAGE plpgsql AS $$
BEGIN
  RETURN QUERY EXECUTE format(
    $f$SELECT c.name, concat_ws(' ', trim(r.state::text), trim(s.state::text))
         FROM %1$I.reservation r JOIN t.case_of c ON r.ref = md5('booking ' || c.name)::uuid
         LEFT JOIN %1$I.time_slot s ON s.ref = r.slot_ref ORDER BY 1$f$, p_schema);
END
$$;

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

-- the answer of a call, or its error
CREATE FUNCTION t.try(p_sql text) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
  v_answer text;
BEGIN
  EXECUTE p_sql INTO v_answer;
  RETURN v_answer;
EXCEPTION WHEN OTHERS THEN
  RETURN SQLSTATE || ' ' || SQLERRM;
END
$$;

-- The whole path in one application: report, dry run, run, audit, worklist,
-- second run.  p_what says what is special, p_answer what a run answers.
CREATE FUNCTION t.walk(p_schema text, p_what text, p_answer text) RETURNS SETOF text
LANGUAGE plpgsql AS $$
DECLARE
  v_before text;
  v_own text;
BEGIN
  PERFORM set_config('cusown_ops.app_schema', p_schema, false);
  v_before := t.state(p_schema);
  v_own := t.state('cusown_ops');
  RETURN NEXT is(
    t.try('SELECT string_agg(c.name || '' '' || d.verdict, '', '' ORDER BY d.ordinality)
             FROM cusown_due_bookings() WITH ORDINALITY d
             JOIN t.case_of c ON d.booking_id = md5(''booking '' || c.name)::uuid'),
    (SELECT string_agg(name || ' ' || verdict, ', ' ORDER BY age DESC) FROM t.case_of),
    p_what || ': each due booking is reported with its verdict');
  RETURN NEXT is(t.try('SELECT cusown_expire_bookings(dry_run => true)'), p_answer,
                 p_what || ': a dry run tells what a run would do');
  RETURN NEXT is(t.state(p_schema) || t.state('cusown_ops'), v_before || v_own,
                 p_what || ': a dry run changes nothing');
  RETURN NEXT is(t.try('SELECT cusown_expire_bookings(source => ''cron'')'), p_answer,
                 p_what || ': a run expires, releases and leaves what it should');
  RETURN NEXT results_eq(format('SELECT * FROM t.board(%L)', p_schema),
                         'SELECT name, after FROM t.case_of ORDER BY 1',
                         p_what || ': each booking and its slot end as they should');
  RETURN NEXT results_eq(
    format('SELECT verb, object_type, object_ref, detail->>''from'', detail->>''to'', detail->>''source''
              FROM %I.journal ORDER BY 1, 2, 3', p_schema),
    $q$SELECT 'booking_cancelled', 'booking', md5('booking ' || name)::uuid, 'pending', 'cancelled', 'cron'
         FROM t.case_of WHERE verdict = 'expire'
       UNION ALL
       SELECT DISTINCT 'slot_released', 'slot', md5('slot ' || s.name)::uuid, s.status, 'available', 'cron'
         FROM t.slot_of s JOIN t.case_of c ON c.slot = s.name
        WHERE s.status <> 'available' AND c.after = 'cancelled available'
       ORDER BY 1, 2, 3$q$,
    p_what || ': each change has one audit row, with old and new status and source');
  RETURN NEXT results_eq(
    format('SELECT c.name, a.kind, a.sqlstate FROM cusown_ops.attention a
              JOIN t.case_of c ON a.entity_id = md5(''booking '' || c.name)::uuid
             WHERE a.app_schema = %L AND a.closed_at IS NULL ORDER BY 1', p_schema),
    $q$SELECT name, CASE verdict WHEN 'paid' THEN 'paid_pending' ELSE 'unexpirable' END,
              CASE name WHEN 'guest' THEN '23514' END
         FROM t.case_of WHERE verdict IN ('paid', 'refused') ORDER BY 1$q$,
    p_what || ': the worklist holds what a human must look at');
  v_before := t.state(p_schema);
  v_own := t.state('cusown_ops');
  RETURN NEXT is(t.try('SELECT cusown_expire_bookings()'), '(0,0,0,f)',
                 p_what || ': a second run finds nothing to do');
  RETURN NEXT is(t.state(p_schema) || t.state('cusown_ops'), v_before || v_own,
                 p_what || ': a second run writes nothing');
END
$$;

CREATE FUNCTION t.is_increasing(p_schema text, p_what text) RETURNS text
LANGUAGE plpgsql AS $$
BEGIN
  RETURN is_empty(
    format('SELECT * FROM (SELECT id, at <= lag(at) OVER (ORDER BY id) AS back
                             FROM %I.journal) j WHERE back', p_schema), p_what);
END
$$;

--
-- As it is: text, and varchar(20) for bookings
--

SELECT is_empty(
  format('SELECT relation, attribute, remedy FROM cusown_attach(''shop'', %L) WHERE status = ''missing''',
         :'minimal_mapping'), 'the minimal application can be attached');
SELECT t.fill('shop');
SELECT t.walk('shop', 'text', '(13,6,4,f)');
SELECT t.is_increasing('shop', 'the audit rows have increasing times');
SELECT results_eq($$SELECT entity_id, finding FROM cusown_ops.attention WHERE finding LIKE '%slot%'$$,
                  $$VALUES (md5('booking nowhere')::uuid, 'its slot does not exist')$$,
                  'a booking without a slot is for a human');
SELECT results_eq($$SELECT finding FROM cusown_ops.attention WHERE entity_id = md5('booking guest')::uuid$$,
                  $$VALUES ('check constraint "guests_stay" refuses to cancel it')$$,
                  'the finding on a refused one names the constraint');
SELECT results_eq($$SELECT business_id FROM cusown_due_bookings() LIMIT 1$$, 'VALUES (NULL::uuid)',
                  'an application without businesses has none in the report');

-- an entry's life needs no column that is missing here
UPDATE shop.charge SET state = 'refunded' WHERE ref = md5('payment paid')::uuid;
UPDATE shop.reservation SET customer = md5('customer guest')::uuid WHERE ref = md5('booking guest')::uuid;
SELECT is(cusown_expire_bookings()::text, '(2,2,0,f)', 'what a human has mended expires in the next run');
SELECT is(cusown_attention_resolve(id, 'Refunded at the counter'), true, 'an entry is closed by hand')
  FROM cusown_ops.attention WHERE entity_id = md5('booking part paid')::uuid;
SELECT results_eq(
  $$SELECT object_type, object_ref, detail->>'note' FROM shop.journal WHERE verb = 'data_corrected'$$,
  $$VALUES ('booking', md5('booking part paid')::uuid, 'Refunded at the counter')$$,
  'and that is audited');

--
-- Other types
--

SELECT count(*) FROM cusown_attach('shop_varchar', :'minimal_mapping') \g /dev/null
SELECT t.fill('shop_varchar');
SELECT t.walk('shop_varchar', 'varchar', '(13,6,4,f)');

SELECT count(*) FROM cusown_attach('shop_char', :'minimal_mapping') \g /dev/null
SELECT t.fill('shop_char');
SELECT t.walk('shop_char', 'char(20)', '(13,6,4,f)');

SELECT count(*) FROM cusown_attach('shop_enum', :'minimal_mapping') \g /dev/null
SELECT t.fill('shop_enum');
SELECT t.walk('shop_enum', 'enum', '(13,6,4,f)');

SELECT count(*) FROM cusown_attach('shop_domain', :'minimal_mapping') \g /dev/null
SELECT t.fill('shop_domain');
SELECT t.walk('shop_domain', 'domain over text', '(13,6,4,f)');

SELECT count(*) FROM cusown_attach('shop_enum_domain', :'minimal_mapping') \g /dev/null
SELECT t.fill('shop_enum_domain');
SELECT t.walk('shop_enum_domain', 'domain over enum', '(13,6,4,f)');

--
-- Without an end of holds: a reserved slot is freed if nobody else stands on it
--

CREATE TABLE t.as_it_is AS TABLE t.case_of;
UPDATE t.case_of SET after = 'cancelled available' WHERE name = 'endless';
SELECT set_eq(
  format($$SELECT attribute FROM cusown_attach('shop_unheld', %L::jsonb #- '{slots,columns,reserved_until}')
            WHERE relation = 'slots' AND status = 'optional'$$, :'minimal_mapping'),
  ARRAY['reserved_until', 'business_id', 'updated_at', 'date', 'start_time', 'end_time'],
  'the end of a hold need not be bound');
SELECT t.fill('shop_unheld');
SELECT t.walk('shop_unheld', 'no end of holds', '(13,7,4,f)');

--
-- Without payments: nothing can be paid or in flight
--

UPDATE t.case_of c SET after = o.after FROM t.as_it_is o WHERE o.name = c.name;
UPDATE t.case_of SET verdict = 'expire', after = 'cancelled available'
 WHERE name IN ('paid', 'part paid', 'paying');
SELECT results_eq(
  format($$SELECT relation, attribute, status FROM cusown_attach('shop_unpaid', %L::jsonb || '{"payments": null}')
            WHERE relation = 'payments'$$, :'minimal_mapping'),
  $$VALUES ('payments', NULL, 'optional')$$,
  'payments may be mapped to null');
SELECT t.fill('shop_unpaid');
SELECT t.walk('shop_unpaid', 'no payments', '(16,9,2,f)');

--
-- Many: times of audit rows go on increasing from batch to batch
--

SELECT count(*) FROM cusown_attach('shop_many', :'minimal_mapping') \g /dev/null
INSERT INTO shop_many.time_slot (ref, state, held_until)
SELECT md5('slot ' || i)::uuid, 'reserved', now() - interval '1 day' FROM generate_series(1, 10010) i;
INSERT INTO shop_many.reservation (ref, state, slot_ref, made_at)
SELECT md5('booking ' || i)::uuid, 'pending', md5('slot ' || i)::uuid, now() - interval '30 h'
  FROM generate_series(1, 10010) i;
ANALYZE;
SET cusown_ops.app_schema = 'shop_many';
BEGIN;
SELECT is(cusown_expire_bookings(max_rows => 20000)::text, '(10010,10010,0,f)',
          'ten thousand bookings of one age expire in one call');
SELECT t.is_increasing('shop_many', 'with increasing times from batch to batch');
COMMIT;
UPDATE shop_many.reservation SET state = 'pending';
UPDATE shop_many.time_slot SET state = 'booked';
TRUNCATE shop_many.journal;
SET cusown_ops.batch_size = 10000;
SELECT is(cusown_expire_bookings(max_rows => 20000)::text, '(10010,10010,0,f)',
          'likewise in batches of 10000');
SELECT t.is_increasing('shop_many', 'with increasing times also where batches are as large as can be');
RESET cusown_ops.batch_size;

--
-- Lazy heal: the same by a request, where the application counts nothing
--

UPDATE shop_many.reservation SET state = 'pending';
SELECT is(cusown_expire_if_due(), 100::bigint, 'a request expires a hundred at most');
SELECT is(count(*), 100::bigint, 'by the names of this application')
  FROM shop_many.reservation WHERE state = 'cancelled';
SELECT results_eq('SELECT app_schema, source, status, changed FROM cusown_ops.job_run',
                  $$VALUES ('shop_many'::name, 'lazy_heal', 'succeeded', 100::bigint)$$, 'and the ledger says so');

SELECT finish();
