--
-- Several applications in one database: each verb works on the one that was
-- chosen, and their worklists are kept apart.
--
\set QUIET 1
\pset format unaligned
\pset tuples_only true
SET client_min_messages = warning;

CREATE SCHEMA tap;
CREATE EXTENSION IF NOT EXISTS pgtap SCHEMA tap;
ALTER EXTENSION pgtap SET SCHEMA tap;

\i :fixture/cusown_app.sql
\i :fixture/app_minimal.sql
\set schema 'Tenant "7"'
\i :fixture/cusown_app.sql
\unset schema
CREATE EXTENSION cusown_ops;
SET search_path = public, tap;

SELECT plan(62);

CREATE SCHEMA t;

-- SQLSTATE, message and hint of the error that a statement raises
CREATE FUNCTION t.refusal(p_sql text) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
  v_hint text;
BEGIN
  EXECUTE p_sql;
  RETURN 'no error';
EXCEPTION WHEN OTHERS THEN
  GET STACKED DIAGNOSTICS v_hint = PG_EXCEPTION_HINT;
  RETURN SQLSTATE || ': ' || SQLERRM || ' / ' || v_hint;
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
    SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE n.nspname = p_schema AND c.relkind = 'r'
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

-- The same bookings, by the same ids, in the application in the search_path.
CREATE FUNCTION t.fill() RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO businesses (id, salon_name, owner_name, whatsapp_number, opening_time,
                          closing_time, slot_duration, booking_link)
  VALUES (md5('business')::uuid, 'Salon', 'Owner', '+15550000000', '09:00', '18:00', 30, 'salon');
  INSERT INTO slots (id, business_id, date, start_time, end_time, status, reserved_until)
  SELECT md5('slot ' || n)::uuid, md5('business')::uuid, date '2030-01-01' + i::integer, '09:00',
         '09:30', 'reserved', now() - interval '1 day'
    FROM unnest(ARRAY['due', 'paid', 'later']) WITH ORDINALITY v (n, i);
  INSERT INTO bookings (id, business_id, slot_id, customer_name, customer_phone, booking_id, created_at)
  SELECT md5('booking ' || n)::uuid, md5('business')::uuid, md5('slot ' || n)::uuid, 'Customer',
         '+15551111111', n, now() - age
    FROM (VALUES ('due', interval '25 h'), ('paid', '26 h'), ('later', '20 h')) v (n, age);
  INSERT INTO payments (id, booking_id, provider, provider_payment_id, amount_cents, status, created_at)
  VALUES (md5('payment paid')::uuid, md5('booking paid')::uuid, 'stripe', 'pi_1', 50000, 'completed',
          now() - interval '25 h');
END
$$;

-- The worklist, with the application of each entry.
CREATE FUNCTION t.worklist() RETURNS text
LANGUAGE sql AS $$
  SELECT string_agg(app_schema || ' ' || kind || CASE WHEN closed_at IS NULL THEN ' open ' ELSE ' closed ' END
                    || times, ', ' ORDER BY app_schema COLLATE "C", kind)
    FROM cusown_ops.attention
$$;

SELECT t.fill();
SET search_path = "Tenant ""7""", public, tap;
SELECT t.fill();
SET search_path = public, tap;
INSERT INTO shop.time_slot (ref, state, held_until) SELECT id, status, reserved_until FROM slots;
INSERT INTO shop.reservation (ref, state, slot_ref, made_at)
SELECT id, status, slot_id, created_at FROM bookings;
INSERT INTO shop.charge (ref, reservation_ref, state, made_at)
SELECT id, booking_id, status, created_at FROM payments;

--
-- Which application a verb works on
--

SELECT is(t.refusal('SELECT ' || f),
          'UO001: no application is attached / Call cusown_attach() with the schema of the application''s tables.',
          f || ' with none attached is UO001')
  FROM unnest(ARRAY['cusown_due_bookings()', 'cusown_expire_bookings()']) f;
SET cusown_ops.app_schema = 'public';
SELECT is(t.refusal('SELECT cusown_due_bookings()'),
          'UO001: application schema "public" is not attached / Call cusown_attach(''public'').',
          'also where one is chosen');
RESET cusown_ops.app_schema;

SELECT is_empty($$SELECT * FROM cusown_attach() WHERE status = 'missing'$$,
                'the application in public can be attached');
SELECT is(count(*), 2::bigint, 'the only one that is attached needs not be chosen') FROM cusown_due_bookings();

SELECT is_empty(format($$SELECT * FROM cusown_attach('shop', %L) WHERE status = 'missing'$$, :'minimal_mapping'),
                'the minimal application can be attached beside it');
SELECT is(t.refusal('SELECT ' || f),
          'UO001: several applications are attached: "public", "shop" / Choose one with SET cusown_ops.app_schema.',
          f || ' with several attached and none chosen is UO001 and names them')
  FROM unnest(ARRAY['cusown_due_bookings()', 'cusown_expire_bookings()',
                    'cusown_expire_bookings(dry_run => true)']) f;
SELECT is_empty($$SELECT * FROM cusown_attach('Tenant "7"') WHERE status = 'missing'$$,
                'a third one, in a schema whose name needs quotes, can be attached');
SELECT results_eq(
  $$SELECT app_schema, bound_schema, count(*)::integer FROM cusown_ops.binding
     WHERE attribute = '' GROUP BY 1, 2 ORDER BY 1$$,
  $$VALUES ('Tenant "7"'::name, 'Tenant "7"'::name, 10), ('public', 'public', 10), ('shop', 'shop', 4)$$,
  'cusown_ops.binding holds the names of each');

SET cusown_ops.app_schema = 'nowhere';
SELECT matches(t.refusal('SELECT cusown_due_bookings()'), '^UO001: application schema "nowhere" is not attached',
               'an application that is not attached cannot be chosen');

--
-- Each run changes one application
--

SELECT t.state('public') AS public, t.state('shop') AS shop, t.state('Tenant "7"') AS tenant \gset before_

SET cusown_ops.app_schema = 'shop';
SELECT is(cusown_expire_bookings()::text, '(1,1,1,f)', 'a run on the minimal application');
SELECT isnt(t.state('shop'), :'before_shop', 'changes it');
SELECT is(t.state('public') || t.state('Tenant "7"'), :'before_public' || :'before_tenant', 'and no other one');
SELECT is(t.worklist(), 'shop paid_pending open 1', 'its worklist entry is its own');
SELECT t.state('shop') AS shop \gset after_

SET cusown_ops.app_schema = 'public';
SELECT results_eq('SELECT booking_id, verdict FROM cusown_due_bookings() ORDER BY 2',
                  $$VALUES (md5('booking due')::uuid, 'expire'), (md5('booking paid')::uuid, 'paid')$$,
                  'the same booking of another application is still due');
SELECT is(cusown_expire_bookings()::text, '(1,1,1,f)',
          'and expires there; a back-off in one application keeps nothing back in another');
SELECT is(t.state('shop') || t.state('Tenant "7"'), :'after_shop' || :'before_tenant', 'the others are as they were');
SELECT is(t.worklist(), 'public paid_pending open 1, shop paid_pending open 1',
          'one booking can have an entry for each application');

SET cusown_ops.app_schema = 'Tenant "7"';
SET search_path = "Tenant ""7""", public, tap;
SELECT is(cusown_expire_bookings()::text, '(1,1,1,f)', 'a run on the third one');
SELECT results_eq('SELECT status, cancelled_by FROM "Tenant ""7""".bookings WHERE booking_id = ''due''',
                  $$VALUES ('cancelled', 'system')$$, 'changes the third one');
SELECT is_empty('SELECT "Tenant ""7""".verify_audit_chain()', 'whose audit chain is whole');
SET search_path = public, tap;
SELECT is_empty('SELECT verify_audit_chain()', 'as is that of the first one');
SELECT is(count(*), 2::bigint, 'the run has written its audit rows where it belongs')
  FROM "Tenant ""7""".audit_logs;
SELECT is(count(*), 2::bigint, 'and none elsewhere') FROM public.audit_logs;
SELECT is(count(*), 2::bigint, 'nor there') FROM shop.journal;

--
-- Worklists are rechecked and closed apart
--

UPDATE shop.charge SET state = 'refunded';
SET cusown_ops.app_schema = 'public';
SELECT is(cusown_expire_bookings()::text, '(0,0,0,f)', 'a refund in one application');
SELECT is(t.worklist(), 'Tenant "7" paid_pending open 1, public paid_pending open 1, shop paid_pending open 1',
          'closes nothing in a run on another one');
SET cusown_ops.app_schema = 'shop';
SELECT is(cusown_expire_bookings()::text, '(1,1,0,f)', 'but in a run on its own');
SELECT is(t.worklist(), 'Tenant "7" paid_pending open 1, public paid_pending open 1, shop paid_pending closed 1',
          'which closes its entry and expires its booking');

SELECT id AS public FROM cusown_ops.attention WHERE app_schema = 'public' \gset entry_
SELECT id AS tenant FROM cusown_ops.attention WHERE app_schema = 'Tenant "7"' \gset entry_
SELECT is(cusown_attention_resolve(:entry_public, 'Called the customer'), true,
          'an entry is closed in its own application, whichever is chosen');
SELECT results_eq($$SELECT entity_id, metadata->>'note' FROM public.audit_logs WHERE action_type = 'data_corrected'$$,
                  $$VALUES (md5('booking paid')::uuid, 'Called the customer')$$, 'and audited there');
SELECT is(count(*), 0::bigint, 'not in the one that is chosen') FROM shop.journal WHERE verb = 'data_corrected';
RESET cusown_ops.app_schema;
SET search_path = "Tenant ""7""", public, tap;
SELECT is(cusown_attention_resolve(:entry_tenant, 'Likewise'), true, 'none needs to be chosen for that');
SET search_path = public, tap;
SELECT is(count(*), 1::bigint, 'the third one has its own audit row')
  FROM "Tenant ""7""".audit_logs WHERE action_type = 'data_corrected';
SELECT is(t.worklist(), 'Tenant "7" paid_pending closed 1, public paid_pending closed 1, shop paid_pending closed 1',
          'all three are closed');

--
-- What changes in one application is no matter to another
--

ALTER TABLE shop.reservation RENAME state TO condition;
SET cusown_ops.app_schema = 'shop';
SELECT is(t.refusal('SELECT cusown_due_bookings()'),
          'UO001: column state of relation shop.reservation, bound as bookings.status, does not exist / '
          'Call cusown_attach(''shop'') again, with a mapping where names have changed.',
          'a column that was renamed is UO001, which names it');
SELECT matches(t.refusal('SELECT cusown_expire_bookings()'), '^UO001: column state of relation shop.reservation',
               'for each verb');
SET cusown_ops.app_schema = 'public';
SELECT is(count(*), 1::bigint, 'the other application works on') FROM cusown_due_bookings();
SELECT count(*) FROM cusown_attach('shop',
  jsonb_set(:'minimal_mapping', '{bookings,columns,status}', '"condition"')) \g /dev/null
SET cusown_ops.app_schema = 'shop';
SELECT is(count(*), 0::bigint, 'attaching again mends it') FROM cusown_due_bookings();
SELECT is(count(*), 1::bigint, 'and it works by the new name') FROM cusown_due_bookings('1 h');

-- a table of the application in a schema of its own
CREATE SCHEMA billing;
ALTER TABLE shop.charge SET SCHEMA billing;
SELECT matches(t.refusal('SELECT cusown_due_bookings()'),
               '^UO001: relation shop.charge, bound as payments, does not exist',
               'a table that went elsewhere is UO001, which names it');
SELECT count(*) FROM cusown_attach('shop',
  jsonb_set(jsonb_set(:'minimal_mapping', '{bookings,columns,status}', '"condition"'),
            '{payments,relation}', '["billing", "charge"]')) \g /dev/null
INSERT INTO billing.charge (ref, reservation_ref, state, made_at)
VALUES (gen_random_uuid(), md5('booking later')::uuid, 'completed', now());
SELECT results_eq($$SELECT verdict FROM cusown_due_bookings('1 h')$$, $$VALUES ('paid')$$,
                  'a relation may be mapped to another schema');

--
-- Detach
--

SELECT count(*) AS rows FROM cusown_ops.binding WHERE app_schema <> 'public' \gset others_
RESET cusown_ops.app_schema;
SELECT cusown_detach('public');
SELECT is(count(*), :others_rows::bigint, 'one application is detached, the others are not') FROM cusown_ops.binding;
SELECT is_empty('SELECT * FROM cusown_ops.binding WHERE app_schema = ''public''', 'nothing of it is left');
SELECT matches(t.refusal('SELECT cusown_due_bookings()'),
               '^UO001: several applications are attached: "(Tenant "+7"+", "shop"|shop", "Tenant "+7"+)',
               'the error names those that are attached');
SELECT is(t.worklist(), 'Tenant "7" paid_pending closed 1, public paid_pending closed 1, shop paid_pending closed 1',
          'its worklist is kept');
SELECT matches(t.refusal(format('SELECT cusown_attention_resolve(%s, ''x'')', :entry_public)),
               '^UO001: application schema "public" is not attached',
               'an entry of an application that is not attached cannot be closed');
SELECT matches(t.refusal('SELECT cusown_detach()'), '^UO001: application schema "public" is not attached',
               'an application cannot be detached twice');
SELECT cusown_detach('Tenant "7"');
SELECT is(count(*), 0::bigint, 'the one that is left needs not be chosen') FROM cusown_due_bookings();

SELECT count(*) FROM cusown_attach() \g /dev/null
SET cusown_ops.app_schema = 'public';
UPDATE cusown_ops.attention SET next_try = now() WHERE app_schema = 'public';
SELECT is(cusown_expire_bookings()::text, '(0,0,1,f)', 'attached again it goes on with its worklist');
SELECT is(t.worklist(), 'Tenant "7" paid_pending closed 1, public paid_pending open 2, shop paid_pending closed 1',
          'where it was');

--
-- A column may be null until a constraint says so of the rows that are there
--

PREPARE may_be_null AS
SELECT remedy FROM cusown_attach('public')
 WHERE relation = 'bookings' AND attribute = 'created_at may be null';

-- 18 has constraints that hold for new rows alone
SELECT current_setting('server_version_num')::integer >= 180000 AS has_not_valid \gset
\if :has_not_valid
ALTER TABLE public.bookings ADD CONSTRAINT known NOT NULL created_at NOT VALID;
\endif
SELECT results_eq('EXECUTE may_be_null', ARRAY['ALTER TABLE public.bookings ALTER COLUMN created_at SET NOT NULL;'],
                  'where rows without it may be there, attach warns');
EXECUTE may_be_null \gexec
SELECT is_empty('EXECUTE may_be_null', 'until its remedy was run');

--
-- Nothing of ours depends on the application's tables
--

SELECT lives_ok('DROP TABLE billing.charge, shop.reservation, shop.time_slot, shop.journal',
                'the tables of an attached application can be dropped');
SELECT lives_ok('DROP SCHEMA shop', 'and so can its schema');
SET cusown_ops.app_schema = 'shop';
SELECT matches(t.refusal('SELECT cusown_due_bookings()'), '^UO001: relation shop\.', 'then its binding is UO001');
RESET cusown_ops.app_schema;
SELECT lives_ok($$SELECT cusown_detach('shop')$$, 'and can be removed');
SELECT is(count(*), 1::bigint, 'the other application is the only one now') FROM cusown_due_bookings();
SELECT lives_ok('DROP EXTENSION cusown_ops', 'the extension can be dropped while an application is attached');
SELECT is(count(*), 3::bigint, 'which leaves the application''s tables alone') FROM bookings;

SELECT finish();
