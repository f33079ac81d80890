--
-- The profiles monitor, application and operator on the reference schema: a
-- role that was given one, and the rights that cusown_grant() asks for, can do
-- what the profile is for, and nothing else.
--
\set QUIET 1
\pset format unaligned
\pset tuples_only true
SET client_min_messages = warning;

CREATE SCHEMA tap;
CREATE EXTENSION IF NOT EXISTS pgtap SCHEMA tap;
ALTER EXTENSION pgtap SET SCHEMA tap;

-- The schema grants whatever is made in it, to the application's roles and to
-- everybody, before the extension comes.
\i :fixture/cusown_app.sql
\i :fixture/app_minimal.sql
ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO PUBLIC;
ALTER DEFAULT PRIVILEGES GRANT ALL ON SEQUENCES TO PUBLIC;
ALTER DEFAULT PRIVILEGES GRANT ALL ON SCHEMAS TO PUBLIC;
CREATE EXTENSION cusown_ops;
ALTER DEFAULT PRIVILEGES REVOKE ALL ON TABLES FROM PUBLIC;
ALTER DEFAULT PRIVILEGES REVOKE ALL ON SEQUENCES FROM PUBLIC;
ALTER DEFAULT PRIVILEGES REVOKE ALL ON SCHEMAS FROM PUBLIC;
SET search_path = public, tap;
\i :fixture/sample_week.sql
SELECT count(*) AS names FROM cusown_attach() \gset

SELECT plan(442);

--
-- Roles, by names that no other run uses; one needs quotes
--

SELECT 'tap_stranger_' || pg_backend_pid() AS stranger,
       'tap_monitor_' || pg_backend_pid() AS monitor,
       'tap_application_' || pg_backend_pid() AS application,
       'Tap "Operator" ' || pg_backend_pid() AS operator \gset
CREATE ROLE :"stranger";
CREATE ROLE :"monitor";
CREATE ROLE :"application";
CREATE ROLE :"operator";

CREATE SCHEMA t;
CREATE TABLE t.role (profile text PRIMARY KEY, name text);
INSERT INTO t.role VALUES ('stranger', :'stranger'), ('monitor', :'monitor'),
                          ('application', :'application'), ('operator', :'operator');

-- The first column of a statement run as the role of a profile; an error
-- gives its SQLSTATE.
CREATE FUNCTION t.try(p_profile text, p_sql text) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
  v_answer text;
BEGIN
  PERFORM set_config('role', (SELECT name FROM t.role WHERE profile = p_profile), true);
  EXECUTE p_sql INTO v_answer;
  PERFORM set_config('role', 'none', true);
  RETURN v_answer;
EXCEPTION WHEN OTHERS THEN
  RETURN SQLSTATE;
END
$$;

-- Whether the role of a profile is allowed a statement, which is undone.
CREATE FUNCTION t.try_only(p_profile text, p_sql text) RETURNS text
LANGUAGE plpgsql AS $$
BEGIN
  PERFORM set_config('role', (SELECT name FROM t.role WHERE profile = p_profile), true);
  EXECUTE p_sql;
  RAISE EXCEPTION USING ERRCODE = 'ZZ999';
EXCEPTION
  WHEN SQLSTATE 'ZZ999' THEN
    RETURN 'allowed';
  WHEN OTHERS THEN
    RETURN SQLSTATE;
END
$$;

-- everything that a role might try
CREATE TABLE t.act (place serial, what text, sql text);
INSERT INTO t.act (what, sql) VALUES
  ('see what is due',            'SELECT count(*) FROM cusown_due_bookings()'),
  ('see the transitions',        'SELECT count(*) FROM cusown_ops.state_machine'),
  ('see the binding',            'SELECT count(*) FROM cusown_ops.binding'),
  ('see the worklist',           'SELECT count(*) FROM cusown_ops.attention'),
  ('see added transitions',      'SELECT count(*) FROM cusown_ops.state_transition'),
  ('call shipped_transitions()', 'SELECT count(*) FROM cusown_ops.shipped_transitions()'),
  ('expire',                     'SELECT cusown_expire_bookings()'),
  ('expire as a dry run',        'SELECT cusown_expire_bookings(dry_run => true)'),
  ('expire on a request',        'SELECT cusown_expire_if_due()'),
  ('close an entry',             'SELECT cusown_attention_resolve(id, ''x'') FROM cusown_ops.attention'),
  ('release holds',              'SELECT cusown_release_expired_holds()'),
  ('see what was changed',       'SELECT count(*) FROM cusown_changes_since()'),
  ('see the jobs',               'SELECT count(*) FROM cusown_jobs()'),
  ('see whether jobs run',       'SELECT count(*) FROM cusown_cron_health()'),
  ('see the ledger',             'SELECT count(*) FROM cusown_ops.job_run'),
  ('see progress',               'SELECT count(*) FROM cusown_ops.job_progress'),
  ('change a job',               'UPDATE cusown_ops.job SET enabled = enabled'),
  ('change the ledger',          'UPDATE cusown_ops.job_run SET message = message'),
  ('write a request''s run',
   'INSERT INTO cusown_ops.job_run (app_schema, job, source, started_at, status, session)
    VALUES (''public'', ''expire_if_due'', ''lazy_heal'', now(), ''succeeded'', ''x'')'),
  ('write a job''s run',
   'INSERT INTO cusown_ops.job_run (app_schema, job, source, started_at, finished_at, status, session)
    VALUES (''public'', ''expire_bookings'', ''cron'', now(), now(), ''succeeded'', ''x'')'),
  ('delete from the ledger',     'DELETE FROM cusown_ops.job_run'),
  ('attach',                     'SELECT count(*) FROM cusown_attach()'),
  ('attach as a dry run',        'SELECT count(*) FROM cusown_attach(''public'', ''{}'', true)'),
  ('detach',                     'SELECT cusown_detach()'),
  ('add a transition',
   'INSERT INTO cusown_ops.state_transition VALUES (''public'', ''slot'', ''a'', ''b'', ''c'')'),
  ('remove transitions',         'DELETE FROM cusown_ops.state_transition'),
  ('change transitions',         'UPDATE cusown_ops.state_transition SET event = event'),
  ('add to the worklist',
   'INSERT INTO cusown_ops.attention (app_schema, kind, entity, entity_id, runbook, finding, next_try)
    VALUES (''public'', ''x'', ''booking'', gen_random_uuid(), ''x'', ''x'', now())'),
  ('change the worklist',        'UPDATE cusown_ops.attention SET note = note'),
  ('empty the worklist',         'DELETE FROM cusown_ops.attention'),
  ('truncate the worklist',      'TRUNCATE cusown_ops.attention'),
  ('write a binding',            'INSERT INTO cusown_ops.binding VALUES (''x'', ''bookings'', '''', ''x'', ''x'')'),
  ('change a binding',           'UPDATE cusown_ops.binding SET bound_name = bound_name'),
  ('remove bindings',            'DELETE FROM cusown_ops.binding'),
  ('truncate the binding',       'TRUNCATE cusown_ops.binding'),
  ('use the worklist''s sequence', 'SELECT nextval(''cusown_ops.attention_id_seq'')'),
  ('make a table of its own there', 'CREATE TABLE cusown_ops.planted ()'),
  ('grant a profile',            'SELECT count(*) FROM cusown_grant(current_user::regrole, ''operator'')'),
  ('revoke rights',              'SELECT cusown_ops.revoke_default_privileges()'),
  ('drop the extension',         'DROP EXTENSION cusown_ops'),
  ('read bookings',              'SELECT count(*) FROM bookings'),
  ('cancel a booking by itself', 'UPDATE bookings SET status = ''cancelled'', cancelled_at = now() WHERE false'),
  ('make a booking',             'INSERT INTO bookings SELECT * FROM bookings WHERE false'),
  ('delete bookings',            'DELETE FROM bookings WHERE false'),
  ('delete slots',               'DELETE FROM slots WHERE false'),
  ('read audit rows',            'SELECT count(*) FROM audit_logs'),
  ('write audit rows',
   'INSERT INTO audit_logs (action_type, entity_type, created_at)
    VALUES (''data_corrected'', ''booking'', clock_timestamp())'),
  ('change audit rows',          'UPDATE audit_logs SET description = ''x'' WHERE false'),
  ('read who the businesses are', 'SELECT count(owner_name) FROM businesses'),
  ('read the businesses'' clocks', 'SELECT count(timezone) FROM businesses'),
  ('mark no-shows',              'SELECT * FROM cusown_mark_no_show()'),
  ('override a guard',           'SELECT cusown_override(''why'')'),
  ('see the guard',              'SELECT * FROM cusown_guard()'),
  ('confirm a booking',
   'SELECT * FROM cusown_confirm_booking((SELECT b.id FROM bookings b JOIN slots s ON s.id = b.slot_id WHERE b.status = ''pending'' AND b.undo_used_at IS NULL AND s.date > current_date + 1 ORDER BY b.id LIMIT 1))'),
  ('reject a booking',
   'SELECT * FROM cusown_reject_booking((SELECT b.id FROM bookings b JOIN slots s ON s.id = b.slot_id WHERE b.status = ''pending'' AND b.undo_used_at IS NULL AND s.date > current_date + 1 ORDER BY b.id LIMIT 1))'),
  ('cancel a booking',
   'SELECT * FROM cusown_cancel_booking((SELECT b.id FROM bookings b JOIN slots s ON s.id = b.slot_id WHERE b.status = ''pending'' AND b.undo_used_at IS NULL AND s.date > current_date + 1 ORDER BY b.id LIMIT 1), ''owner'')'),
  ('undo an answer',
   'SELECT * FROM cusown_undo_booking((SELECT booking_id FROM cusown_reject_booking((SELECT b.id FROM bookings b JOIN slots s ON s.id = b.slot_id WHERE b.status = ''pending'' AND b.undo_used_at IS NULL AND s.date > current_date + 1 ORDER BY b.id LIMIT 1))), gen_random_uuid())'),
  ('see double bookings',        'SELECT count(*) FROM cusown_double_bookings()'),
  ('resolve double bookings',    'SELECT count(*) FROM cusown_resolve_double_bookings(kind => ''overlap'')'),
  ('decide by hand',             'SELECT cusown_keep_booking(md5(''booking confirmed_coming 1'')::uuid, true)'),
  ('repair slots',               'SELECT count(*) FROM cusown_repair_slots()'),
  ('see what keeps double bookings away', 'SELECT count(*) FROM cusown_install_constraints()'),
  ('move a payment',
   'SELECT * FROM cusown_payment_transition((SELECT id FROM payments WHERE status = ''processing'' ORDER BY id LIMIT 1), ''partial_refund'', refund_amount => 1, refund_ref => ''x'')'),
  ('expire payments',            'SELECT * FROM cusown_expire_payments()'),
  ('load a statement',
   'SELECT cusown_load_statement_csv(''razorpay'', ''generic'', E''provider_ref,status,amount,currency,at\nx,captured,1,INR,1767312000'')'),
  ('see the statements',         'SELECT count(*) FROM cusown_ops.statement JOIN cusown_ops.statement_line USING (app_schema)'),
  ('see what does not agree',    'SELECT count(*) FROM cusown_reconcile((SELECT max(id) FROM cusown_ops.statement))'),
  ('reconcile',                  'SELECT count(*) FROM cusown_reconcile((SELECT max(id) FROM cusown_ops.statement), apply => true)'),
  ('see the summary',            'SELECT count(*) FROM cusown_reconciliation_summary((SELECT max(id) FROM cusown_ops.statement))'),
  ('forget statements',          'DELETE FROM cusown_ops.statement'),
  ('see the facts of a case',    'SELECT count(*) FROM cusown_payment_facts((SELECT id FROM payments ORDER BY id LIMIT 1))'),
  ('see personal data in them',  'SELECT count(*) FROM cusown_payment_facts((SELECT id FROM payments ORDER BY id LIMIT 1), true)'),
  ('take a case to a ticket',    'SELECT cusown_payment_case((SELECT id FROM payments ORDER BY id LIMIT 1))'),
  ('see payments at odds',       'SELECT count(*) FROM cusown_payment_mismatches()'),
  ('walk through a runbook',     'SELECT count(*) FROM cusown_runbook(''payment_mismatch'', (SELECT min(id::text)::uuid FROM payments))'),
  ('begin a request',            'SELECT state FROM cusown_idempotency_begin(''s'', ''k'', lease => ''0'')'),
  ('complete a request',
   'SELECT cusown_idempotency_complete(''s'', ''k'', token, ''1'') FROM cusown_idempotency_begin(''s'', ''k'', lease => ''0'')'),
  ('abandon a request',
   'SELECT cusown_idempotency_abandon(''s'', ''k'', token) FROM cusown_idempotency_begin(''s'', ''k'', lease => ''0'')'),
  ('see responses',              'SELECT count(response) FROM cusown_ops.idempotency_key'),
  ('see refunds',                'SELECT count(*) FROM cusown_ops.payment_refund'),
  ('forget refunds',             'DELETE FROM cusown_ops.payment_refund'),
  ('set a secret',               'SELECT count(*) FROM cusown_set_webhook_secret(''upi'', ''x'')'),
  ('see the secrets',            'SELECT count(*) FROM cusown_ops.webhook_secret'),
  ('see who has secrets',        'SELECT count(provider) FROM cusown_ops.webhook_secret'),
  ('forge a secret',             'INSERT INTO cusown_ops.webhook_secret VALUES (''public'', ''upi'', ''x'', now())'),
  ('ask for a signature',        'SELECT cusown_ops.verify_signature_with_stored_secret(''public'', ''upi'', ''upi'', ''x'', ''{}'')'),
  ('ask with a secret',          'SELECT cusown_verify_signature(''upi'', ''x'', ''x'', ''{}'')'),
  ('take a webhook',             'SELECT outcome FROM cusown_webhook(''upi'', ''x'', ''{}'')'),
  ('replay a webhook',           'SELECT cusown_webhook_replay((SELECT max(id) FROM cusown_ops.webhook_inbox), true)'),
  ('see the webhooks',           'SELECT count(*) FROM cusown_ops.webhook_inbox'),
  ('see what they bring',        'SELECT count(*) FROM cusown_ops.webhook_body'),
  ('see what waits',             'SELECT count(*) FROM cusown_webhook_backlog()'),
  ('read the metrics',           'SELECT cusown_metrics()'),
  ('see what events do',         'SELECT count(*) FROM cusown_ops.webhook_machine'),
  ('say what events do',         'DELETE FROM cusown_ops.webhook_event'),
  ('forget webhooks',            'DELETE FROM cusown_ops.webhook_inbox'),
  ('see what is the matter',     'SELECT count(*) FROM cusown_symptoms()'),
  ('ask how it is',              'SELECT cusown_health()'),
  ('see the thresholds',         'SELECT count(*) FROM cusown_ops.threshold'),
  ('set a threshold',            'SELECT cusown_set_threshold(''job_late'', 1, 2)'),
  ('forge a census',             'DELETE FROM cusown_ops.census'),
  ('forge the trail of a payment',
   'UPDATE payment_audit_logs SET reason = reason');

INSERT INTO cusown_ops.webhook_inbox (app_schema, provider, event_type, body_sha256, payment_ids, outcome)
VALUES ('public', 'upi', 'noted', '\x00', '{}', 'ignored');
SELECT cusown_load_statement_csv('razorpay', 'generic', E'provider_ref,status,amount,currency,at\npay_lost,captured,1,INR,1767312000') AS statement \gset

CREATE TABLE t.may (profile text, what text);
INSERT INTO t.may
SELECT p, w FROM unnest(ARRAY['monitor', 'application', 'operator']) p,
  unnest(ARRAY['see what is due', 'see the transitions', 'see the binding', 'see the worklist',
               'see added transitions', 'call shipped_transitions()', 'read bookings',
               'see what was changed', 'see the jobs', 'see whether jobs run', 'see the ledger',
               'see progress', 'see double bookings', 'read the businesses'' clocks', 'see refunds',
               'read audit rows', 'see the facts of a case', 'take a case to a ticket', 'see payments at odds',
               'walk through a runbook',
               'see the statements', 'see the summary', 'see the webhooks', 'see what waits', 'see what events do', 'see what is the matter', 'see the thresholds', 'ask how it is', 'read the metrics']) w
UNION ALL
SELECT p, 'see what does not agree' FROM unnest(ARRAY['monitor', 'operator']) p
UNION ALL
SELECT p, w FROM unnest(ARRAY['application', 'operator']) p,
  unnest(ARRAY['expire', 'expire as a dry run', 'expire on a request', 'write a request''s run', 'release holds', 'mark no-shows',
               'confirm a booking', 'reject a booking', 'cancel a booking', 'undo an answer',
               'add to the worklist', 'change the worklist', 'move a payment', 'expire payments',
               'begin a request', 'complete a request', 'abandon a request', 'see responses',
               'cancel a booking by itself', 'write audit rows', 'ask for a signature', 'ask with a secret', 'take a webhook']) w
UNION ALL
SELECT 'operator', w FROM unnest(ARRAY[
  'see personal data in them', 'replay a webhook', 'see what they bring', 'say what events do', 'forget webhooks', 'set a threshold', 'forge a census',
  'override a guard', 'see the guard', 'close an entry', 'attach', 'attach as a dry run', 'detach', 'add a transition',
  'change transitions', 'remove transitions', 'write a binding', 'change a binding',
  'remove bindings', 'empty the worklist', 'resolve double bookings', 'decide by hand', 'repair slots',
  'see what keeps double bookings away', 'forget refunds', 'load a statement', 'reconcile', 'forget statements', 'change a job', 'write a job''s run', 'change the ledger', 'delete from the ledger']) w;

-- an assertion for each act of a profile
CREATE FUNCTION t.check_profile(p_profile text) RETURNS SETOF text
LANGUAGE plpgsql AS $$
DECLARE
  v_act record;
BEGIN
  FOR v_act IN
    SELECT a.what, a.sql, m.what IS NOT NULL AS allowed
      FROM t.act a LEFT JOIN t.may m ON m.profile = p_profile AND m.what = a.what
     ORDER BY a.place
  LOOP
    RETURN NEXT is(t.try_only(p_profile, v_act.sql),
                   CASE WHEN v_act.allowed THEN 'allowed' ELSE '42501' END,
                   p_profile || CASE WHEN v_act.allowed THEN ' may ' ELSE ' may not ' END || v_act.what);
  END LOOP;
END
$$;

--
-- Without a profile
--

SELECT is_empty(
  $$SELECT p.oid::regprocedure, r.rolname FROM pg_proc p
      JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
      JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'cusown_ops',
           pg_roles r
     WHERE NOT r.rolsuper AND r.rolname !~ '^pg_' AND has_function_privilege(r.oid, p.oid, 'EXECUTE')$$,
  'no role may execute a function of the extension, whatever the schema''s default privileges say');
SELECT is_empty(
  $$SELECT c.oid::regclass, r.rolname FROM pg_class c, pg_roles r
     WHERE c.relnamespace = 'cusown_ops'::regnamespace AND c.relkind IN ('r', 'v', 'S')
       AND NOT r.rolsuper AND r.rolname !~ '^pg_'
       AND CASE c.relkind WHEN 'S' THEN has_sequence_privilege(r.oid, c.oid, 'USAGE, SELECT, UPDATE')
           ELSE has_table_privilege(r.oid, c.oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE, '
                                                   'REFERENCES, TRIGGER') END$$,
  'nor use a table, view or sequence of it');
SELECT is_empty(
  $$SELECT rolname FROM pg_roles WHERE NOT rolsuper AND rolname !~ '^pg_'
       AND has_schema_privilege(oid, 'cusown_ops', 'USAGE, CREATE')$$,
  'nor its schema');
SELECT t.check_profile('stranger');

--
-- Granting
--

SELECT throws_ok(format('SELECT cusown_grant(quote_ident(%L)::regrole, ''owner'')', :'operator'), '22023',
                 'unknown profile "owner"', 'an unknown profile is refused');
SELECT throws_ok($$SELECT cusown_grant('-', 'monitor')$$, '22023', NULL, 'no profile is granted to PUBLIC');

CREATE TABLE t.ddl AS
SELECT r.profile, d.ddl, d.place
  FROM t.role r, cusown_grant(quote_ident(r.name)::regrole, r.profile) WITH ORDINALITY d (ddl, place)
 WHERE r.profile <> 'stranger';

SELECT is(t.try_only(p, 'SELECT cusown_due_bookings()'), '42501',
          'without the application''s rights a ' || p || ' cannot read bookings yet')
  FROM unnest(ARRAY['monitor', 'application', 'operator']) p;
SELECT is_empty($$SELECT ddl FROM t.ddl WHERE profile = 'monitor'
                     AND ddl !~ '^(GRANT SELECT (\([a-z_, ]+\) )?ON |GRANT USAGE ON SCHEMA |ALTER ROLE .* BYPASSRLS)'$$,
                'a monitor needs to read only');
SELECT is_empty($$SELECT ddl FROM t.ddl WHERE ddl ~ '(GRANT ALL|DELETE|TRUNCATE|TRIGGER|SUPERUSER)'$$,
                'no profile needs to delete, or all rights');
SELECT is_empty($$SELECT ddl FROM t.ddl WHERE ddl ~ ' (businesses|metrics|cron_run_logs)'$$,
                'nor tables that its functions do not touch');

SELECT ddl FROM t.ddl ORDER BY profile, place \gexec
SELECT is_empty(format('SELECT cusown_grant(quote_ident(%L)::regrole, %L)', name, profile),
                'once that DDL was run a ' || profile || ' lacks nothing')
  FROM t.role WHERE profile <> 'stranger' ORDER BY profile;

--
-- What each may do
--

SELECT t.check_profile('monitor');
SELECT t.check_profile('application');
SELECT t.check_profile('operator');

--
-- Done in earnest
--

SELECT is(t.try('monitor', 'SELECT count(*) FROM cusown_due_bookings()'), '51', 'the monitor sees all that is due');
SELECT is(t.try('application', 'SELECT cusown_expire_bookings(source => ''application'')'), '(40,27,8,f)',
          'the application expires what is due');
SELECT is(count(*), 67::bigint, 'with its audit rows')
  FROM audit_logs WHERE metadata->>'source' = 'application';
SELECT is_empty('SELECT verify_audit_chain()', 'in an unbroken chain');
SELECT is(t.try('monitor', 'SELECT count(*) FROM cusown_ops.attention WHERE closed_at IS NULL'), '8',
          'the monitor sees the worklist');
SELECT is(t.try('monitor', 'SELECT count(*) FROM cusown_runbook() r, cusown_runbook(r.step) s WHERE s.finding ~ ''denied|hides'''),
          '0', 'the monitor sees all that there is to a runbook');
SELECT is(t.try('operator', 'SELECT cusown_attention_resolve(min(id), ''Done'') FROM cusown_ops.attention'), 'true',
          'the operator closes an entry');
SELECT results_eq('SELECT closed_by FROM cusown_ops.attention WHERE closed_at IS NOT NULL',
                  format('VALUES (%L)', :'operator'), 'by its own name');
SELECT is(t.try('operator', 'SELECT cusown_expire_bookings()'), '(0,0,0,f)', 'the operator runs the expiry again');
SELECT is(t.try('operator', 'SELECT count(*) FROM cusown_attach()'),
          :'names', 'the operator attaches again');
SELECT is(t.try('operator', 'SELECT count(*) FROM cusown_attach() WHERE attribute LIKE ''row-level security%'''),
          '0', 'and is not warned of row-level security, which it passes by');
SELECT is(t.try('stranger', 'SELECT cusown_expire_bookings()'), '42501',
          'a role without a profile still can do nothing');

--
-- Nobody watches a job: it must not have a superuser's rights where a table's
-- owner could plant a trigger
--

ALTER TABLE payments OWNER TO :"stranger";
SELECT throws_ok(format('SELECT cusown_expire_bookings(source => %L)', s), '42501',
                 'cannot run unattended as a superuser on tables of others',
                 'a superuser may not run unattended on tables of others, source ' || s)
  FROM unnest(ARRAY['cron', 'worker']) s;
SELECT is(t.try('application', format('SELECT cusown_expire_bookings(source => %L)', s)), '42501',
          'nor under another role, which a trigger could reset, source ' || s)
  FROM unnest(ARRAY['cron', 'worker']) s;
SELECT is(cusown_expire_bookings()::text, '(0,0,0,f)', 'a superuser who sits before it may, too');
ALTER TABLE payments OWNER TO CURRENT_USER;
SELECT is(cusown_expire_bookings(source => 'cron')::text, '(0,0,0,f)',
          'on tables of superusers nobody else could plant anything');

--
-- An application in several schemas
--

CREATE SCHEMA billing;
ALTER TABLE shop.charge SET SCHEMA billing;
SELECT count(*) FROM cusown_attach('shop',
  jsonb_set(:'minimal_mapping', '{payments,relation}', '["billing", "charge"]')) \g /dev/null
INSERT INTO shop.time_slot (ref, state) VALUES (md5('slot')::uuid, 'booked');
INSERT INTO shop.reservation (ref, state, slot_ref, made_at)
VALUES (md5('booking')::uuid, 'pending', md5('slot')::uuid, now() - interval '25 h');
SELECT ddl FROM t.role r, cusown_grant(quote_ident(r.name)::regrole, r.profile) ddl
 WHERE r.profile <> 'stranger' \gexec
SET cusown_ops.app_schema = 'shop';
SELECT is(t.try('monitor', 'SELECT count(*) FROM cusown_due_bookings()'), '1',
          'a monitor sees an application whose tables are in two schemas');
SELECT is(t.try('application', 'SELECT cusown_expire_bookings()'), '(1,1,0,f)', 'and an application expires there');
RESET cusown_ops.app_schema;

DROP OWNED BY :"stranger", :"monitor", :"application", :"operator";
DROP ROLE :"stranger", :"monitor", :"application", :"operator";

SELECT finish();
