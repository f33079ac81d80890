-- Whatever stands in the caller's search_path, in the schema of the extension
-- or in a text argument, and however the session is set up: the verbs do what
-- they do anywhere else.
SET client_min_messages = warning;
\getenv abs_srcdir PG_ABS_SRCDIR
\set fixture :abs_srcdir '/test/fixture'
\pset format unaligned
CREATE ROLE regress_hostile_operator;

-- Small applications, alike but for the type of their statuses.  Each is there
-- twice: what happens to the one under a clean path has to happen to the other
-- under a hostile one.
CREATE PROCEDURE pg_temp.make_app(schema name, type text)
LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE format('CREATE SCHEMA %I', schema);
  PERFORM set_config('search_path', quote_ident(schema), true);
  CREATE TYPE payment_status AS ENUM
    ('pending', 'confirmed', 'rejected', 'cancelled', 'available', 'reserved',
     'booked', 'initiated', 'processing', 'completed', 'failed', 'refunded',
     'partially_refunded', 'expired', 'system');
  EXECUTE replace(replace($ddl$
    CREATE TABLE slots (
      id uuid PRIMARY KEY, status {type} NOT NULL, business_id uuid,
      date date, start_time time, end_time time, reserved_until timestamptz
    );
    CREATE TABLE businesses (id uuid PRIMARY KEY, timezone varchar(40),
      concurrent_booking_capacity smallint);
    INSERT INTO businesses VALUES (md5('near')::uuid, 'Asia/Kolkata'),
      (md5('far')::uuid, 'Mars/Olympus');
    CREATE TABLE bookings (
      id uuid PRIMARY KEY, business_id uuid, slot_id uuid REFERENCES slots,
      status {type} NOT NULL, created_at timestamptz NOT NULL,
      cancelled_by varchar(10), cancelled_at timestamptz,
      fixed boolean NOT NULL, total_duration smallint, no_show boolean,
      no_show_marked_at timestamptz, no_show_marked_by {type},
      CONSTRAINT fixed_check CHECK (status <> 'cancelled' OR NOT fixed)
    );
    CREATE UNIQUE INDEX ON bookings (slot_id) WHERE status = 'confirmed';
    CREATE TABLE payments (
      id uuid PRIMARY KEY, booking_id uuid REFERENCES bookings,
      status {type} NOT NULL, created_at timestamptz,
      amount smallint, refund_amount integer, attempt_count smallint,
      provider_ref varchar(20), verification_method varchar(10),
      verified_at timestamptz, verified_by uuid, failure_reason varchar(20),
      expires_at timestamptz, updated_at timestamptz
    );
    CREATE TABLE payment_audit_logs (
      payment_id uuid, actor_type varchar(10), actor_id uuid, action varchar(20),
      from_status {type}, to_status {type}, reason varchar(20), metadata jsonb,
      created_at timestamptz
    );
    CREATE TABLE audit_logs (
      action text, entity_type varchar(20), entity_id uuid,
      created_at timestamptz, old_data jsonb, new_data jsonb, metadata jsonb
    );
    CREATE TABLE booking_lifecycle_audit (
      booking_id uuid, old_slot_id uuid, action_type text,
      actor_type varchar(10), created_at timestamptz
    );
    INSERT INTO slots (id, status, reserved_until)
    SELECT md5(n)::uuid,
           CASE n WHEN 'moved' THEN 'booked' ELSE 'reserved' END::{type},
           now() + CASE n WHEN 'held' THEN interval '1 hour'
                          ELSE interval '-1 hour' END
    FROM unnest('{plain,moved,held,paid,paying,failed,fixed}'::text[]) n;
    INSERT INTO bookings (id, slot_id, status, created_at, fixed)
    SELECT md5(n)::uuid, md5(n)::uuid, 'pending',
           now() - interval '2 days' - i * interval '1 second', n = 'fixed'
    FROM unnest('{plain,moved,held,paid,paying,failed,fixed}'::text[])
           WITH ORDINALITY u (n, i);
    INSERT INTO slots (id, status, business_id, date, start_time, end_time)
    SELECT md5(n)::uuid, 'booked', md5(n)::uuid, '2024-05-01', '10:00', '11:00'
    FROM unnest('{near,far}'::text[]) n;
    INSERT INTO bookings (id, business_id, slot_id, status, created_at, fixed)
    SELECT md5(n)::uuid, md5(n)::uuid, md5(n)::uuid, 'confirmed', now(), false
    FROM unnest('{near,far}'::text[]) n;
    -- another booking of the same slot, one of the same time, and a slot that
    -- is booked for nobody
    INSERT INTO slots (id, status, business_id, date, start_time, end_time)
    VALUES (md5('late')::uuid, 'booked', md5('near')::uuid, '2024-05-01',
            '10:30', '11:30'),
           (md5('empty')::uuid, 'booked', md5('far')::uuid, '2024-05-01',
            '12:00', '13:00');
    INSERT INTO bookings (id, business_id, slot_id, status, created_at, fixed)
    VALUES (md5('near2')::uuid, md5('near')::uuid, md5('near')::uuid,
            'pending', now() + interval '1 second', false),
           (md5('late')::uuid, md5('near')::uuid, md5('late')::uuid,
            'confirmed', now() + interval '2 seconds', false);
    INSERT INTO payments VALUES
      (md5('paid')::uuid, md5('paid')::uuid, 'completed',
       now() - interval '2 days'),
      (md5('paying')::uuid, md5('paying')::uuid, 'processing', now()),
      (md5('failed')::uuid, md5('failed')::uuid, 'failed', now());
    -- a trigger that notes the path that it sees
    CREATE TABLE seen (path text);
    CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $f$
    BEGIN
      INSERT INTO {schema}.seen
      VALUES (pg_catalog.current_setting('search_path'));
      RETURN NULL;
    END
    $f$;
    CREATE TRIGGER see AFTER UPDATE ON bookings
    FOR EACH ROW EXECUTE FUNCTION see();
  $ddl$, '{type}', type), '{schema}', schema);
END
$$;
CALL pg_temp.make_app('calm_text', 'text');
CALL pg_temp.make_app('calm_varchar', 'varchar(20)');
CALL pg_temp.make_app('calm_enum', 'payment_status');
CALL pg_temp.make_app('wild_text', 'text');
CALL pg_temp.make_app('wild_varchar', 'varchar(20)');
CALL pg_temp.make_app('wild_enum', 'payment_status');

-- A schema that holds functions, operators, types and tables by every name
-- that one could think of calling without a schema.  All raise an error.
CREATE SCHEMA hostile;
CREATE PROCEDURE pg_temp.make_hostile(types regtype[]) LANGUAGE plpgsql AS $$
DECLARE
  type regtype;
  other regtype;
  operator text;
  name text;
BEGIN
  FOREACH type IN ARRAY types LOOP
    FOREACH other IN ARRAY types LOOP
      CONTINUE WHEN type <> other
        AND NOT ARRAY[type, other] && '{text,interval,uuid[],date}';
      name := format('trap_%s_%s', array_position(types, type),
                     array_position(types, other));
      EXECUTE format($f$CREATE FUNCTION hostile.%1$I (a %2$s, b %3$s)
        RETURNS boolean LANGUAGE plpgsql AS $t$
        BEGIN
          RAISE EXCEPTION 'operator was taken from the path';
        END $t$ $f$, name, type, other);
      FOREACH operator IN ARRAY '{=,<>,<,>,<=,>=,||,+,-,*,->>,!~}'::text[]
      LOOP
        EXECUTE format('CREATE OPERATOR hostile.%s
                          (FUNCTION = hostile.%I, LEFTARG = %s, RIGHTARG = %s)',
                       operator, name, type, other);
      END LOOP;
    END LOOP;
  END LOOP;
END
$$;
CALL pg_temp.make_hostile('{uuid,text,varchar,name,timestamptz,interval,jsonb,
  boolean,smallint,integer,bigint,double precision,uuid[],text[],name[],date,time,
  wild_enum.payment_status,bytea}');
DO $$
DECLARE
  signature text;
BEGIN
  FOREACH signature IN ARRAY ARRAY[
    'now()', 'clock_timestamp()', 'count()', 'row_number()', 'current_user()',
    'unnest(anyarray)', 'array_agg(anyelement)', 'bool_or(boolean)',
    'jsonb_build_object(text, text)', 'jsonb_build_object(VARIADIC text[])',
    'jsonb_build_object(VARIADIC anyarray)', 'left(text, integer)',
    'power(double precision, double precision)', 'power(integer, integer)',
    'least(integer, integer)', 'max(timestamptz)', 'min(date)',
    'coalesce(jsonb, jsonb)', 'lower(text)',
    'quote_ident(text)', 'format(text, VARIADIC text[])', 'md5(text)',
    'uuid(text)', 'text(uuid)', 'text(name)', 'timestamptz(text)',
    'jsonb(text)', 'text(wild_enum.payment_status)', 'aclexplode(aclitem[])',
    'acldefault("char", oid)', 'current_setting(text)',
    'has_table_privilege(regclass, text)', 'row_security_active(regclass)',
    'uuid_eq(uuid, uuid)', 'texteq(text, text)', 'enum_eq(anyenum, anyenum)',
    'timestamptz_lt(timestamptz, timestamptz)',
    'jsonb_agg(jsonb)', 'has_function_privilege(text, text)', 'may_read_personal_data()']
  LOOP
    EXECUTE format($f$CREATE FUNCTION hostile.%s%s RETURNS text
      LANGUAGE plpgsql AS $t$
      BEGIN
        RAISE EXCEPTION 'function was taken from the path';
      END $t$ $f$, quote_ident(split_part(signature, '(', 1)),
      '(' || split_part(signature, '(', 2));
  END LOOP;
END
$$;
CREATE TYPE hostile.uuid AS (trap integer);
CREATE TYPE hostile.text AS (trap integer);
CREATE TYPE hostile.timestamptz AS (trap integer);
CREATE TYPE hostile.jsonb AS (trap integer);
CREATE TYPE hostile.name AS (trap integer);
CREATE TYPE hostile.int8 AS (trap integer);
CREATE TYPE hostile.date AS (trap integer);
CREATE TYPE hostile.regclass AS (trap integer);
CREATE TYPE hostile.oid AS (trap integer);
CREATE TABLE hostile.bookings (trap integer);
CREATE TABLE hostile.slots (trap integer);
CREATE TABLE hostile.payments (trap integer);
CREATE TABLE hostile.businesses (trap integer);
CREATE TABLE hostile.audit_logs (trap integer);
CREATE TABLE hostile.payment_audit_logs (trap integer);
CREATE TABLE hostile.payment_refund (trap integer);
CREATE TABLE hostile.statement (trap integer);
CREATE TABLE hostile.statement_line (trap integer);
CREATE TABLE hostile.webhook_secret (trap integer);
CREATE TABLE hostile.app_payment (trap integer);
CREATE TABLE hostile.booking_lifecycle_audit (trap integer);
CREATE TABLE hostile.idempotency_keys (trap integer);
CREATE TABLE hostile.idempotency_key (trap integer);
CREATE TABLE hostile.binding (trap integer);
CREATE TABLE hostile.attention (trap integer);
CREATE TABLE hostile.state_transition (trap integer);
CREATE TABLE hostile.pg_class (trap integer);
CREATE TABLE hostile.pg_proc (trap integer);
CREATE TABLE hostile.pg_namespace (trap integer);
CREATE TABLE hostile.pg_extension (trap integer);
CREATE TABLE hostile.pg_depend (trap integer);
-- tables and types of pg_temp come before all others
CREATE TEMP TABLE binding (trap integer);
CREATE TEMP TABLE attention (trap integer);
CREATE TEMP TABLE candidate (trap integer);
CREATE TEMP TABLE pg_extension (trap integer);
-- The traps work.
\set VERBOSITY terse
SET search_path = hostile, pg_catalog, public;
SELECT now(); -- fails
SELECT 1 = 1; -- fails
SELECT 'a'::pg_catalog.text || 'b'::pg_catalog.text; -- fails
SELECT 'x'::uuid; -- fails
SELECT status = 'pending' FROM wild_enum.bookings LIMIT 1; -- fails
SELECT status = status FROM wild_varchar.bookings LIMIT 1; -- fails
SELECT extname FROM pg_extension; -- fails
\set VERBOSITY default

-- CREATE EXTENSION under such a path, also with the traps in its own schema.
CREATE EXTENSION cusown_ops;
SELECT extnamespace::regnamespace FROM pg_catalog.pg_extension
WHERE extname OPERATOR(pg_catalog.=) 'cusown_ops';
SELECT * FROM hostile.cusown_due_bookings(); -- fails
SELECT pg_catalog.count(*) FROM cusown_ops.state_machine;
DROP EXTENSION cusown_ops;
RESET search_path;

-- What was planted there under one of its names makes it fail, and is neither
-- taken over nor replaced.
\set VERBOSITY terse
CREATE SCHEMA planted;
CREATE FUNCTION planted.cusown_attach(
  app_schema name DEFAULT 'public', mapping jsonb DEFAULT '{}',
  dry_run boolean DEFAULT false, OUT relation text, OUT attribute text,
  OUT bound_to text, OUT status text, OUT remedy text)
RETURNS SETOF record
LANGUAGE sql AS $$SELECT 'planted', 'a', 'b', 'c', 'd'$$;
CREATE EXTENSION cusown_ops SCHEMA planted; -- fails
\echo :SQLSTATE
SELECT relation FROM planted.cusown_attach('calm_text');
SELECT count(*) FROM pg_catalog.pg_extension WHERE extname = 'cusown_ops';
DROP FUNCTION planted.cusown_attach;
CREATE FUNCTION planted.cusown_expire_bookings(
  interval, integer, timestamptz, text, interval, boolean)
RETURNS integer LANGUAGE sql AS 'SELECT 1';
CREATE EXTENSION cusown_ops SCHEMA planted; -- fails
DROP FUNCTION planted.cusown_expire_bookings;
CREATE PROCEDURE planted.cusown_detach(name) LANGUAGE sql AS 'SELECT 1';
CREATE EXTENSION cusown_ops SCHEMA planted; -- fails
DROP PROCEDURE planted.cusown_detach;
CREATE SCHEMA cusown_ops;
CREATE EXTENSION cusown_ops SCHEMA planted; -- fails
DROP SCHEMA cusown_ops;
\set VERBOSITY default
-- types, tables and operators there do not matter
CREATE TYPE planted.text AS (trap integer);
CREATE TYPE planted.name AS (trap integer);
CREATE TABLE planted.binding (trap integer);
CREATE TABLE planted.attention (trap integer);
CREATE OPERATOR planted.= (FUNCTION = hostile.trap_2_2, LEFTARG = text,
                           RIGHTARG = text);
CREATE OPERATOR planted.= (FUNCTION = hostile.trap_8_8, LEFTARG = boolean,
                           RIGHTARG = boolean);
CREATE EXTENSION cusown_ops SCHEMA planted;
SELECT count(*) FROM planted.cusown_attach('calm_text') WHERE status = 'bound';
SELECT verdict FROM planted.cusown_due_bookings('2 days') LIMIT 1;
DROP EXTENSION cusown_ops;
DROP SCHEMA planted CASCADE;

-- Every verb, in each kind of application under both kinds of path.
CREATE EXTENSION cusown_ops;
CREATE FUNCTION pg_temp.calls(app name, path text) RETURNS SETOF text
LANGUAGE sql AS $$
  SELECT replace(replace(call, '{app}', app), '{path}', path)
  FROM unnest(ARRAY[
    'SET search_path = {path}',
    'SET cusown_ops.app_schema = {app}',
    'SELECT pg_catalog.count(*) FROM public.cusown_attach(''{app}'', dry_run => true)',
    'SELECT attribute FROM public.cusown_attach(''{app}'', ''{"payments": {"columns": {"provider": null}}}'') WHERE status OPERATOR(pg_catalog.=) ''warning''',
    'UPDATE cusown_ops.binding SET bound_since = ''2026-01-01''',
    'SELECT verdict, finding FROM public.cusown_due_bookings()',
    'SELECT verdict FROM public.cusown_due_bookings(''47 h'', pg_catalog.now()) LIMIT 1',
    'SELECT * FROM public.cusown_expire_bookings(dry_run => true)',
    'SELECT verdict FROM public.cusown_due_bookings(''900 d'', hold_grace => ''1 min'')',
    'SELECT * FROM public.cusown_expire_bookings(''900 d'', hold_grace => ''1 min'', dry_run => true)',
    'SELECT * FROM public.cusown_release_expired_holds(dry_run => true)',
    'SELECT entity, guard FROM public.cusown_guard(''functions'')',
    'UPDATE {app}.bookings SET status = ''confirmed'' WHERE status::pg_catalog.text OPERATOR(pg_catalog.=) ''pending''',
    'SELECT from_status, to_status, slot_status, changed FROM public.cusown_confirm_booking(pg_catalog.md5(''held'')::pg_catalog.uuid)',
    'SELECT from_status, to_status, slot_status, changed FROM public.cusown_undo_booking(pg_catalog.md5(''held'')::pg_catalog.uuid, pg_catalog.md5(''held'')::pg_catalog.uuid)',
    'SELECT from_status, to_status, slot_status, changed FROM public.cusown_reject_booking(pg_catalog.md5(''held'')::pg_catalog.uuid, reason => ''closed'')',
    'SELECT from_status, to_status, slot_status, changed FROM public.cusown_undo_booking(pg_catalog.md5(''held'')::pg_catalog.uuid, pg_catalog.md5(''held'')::pg_catalog.uuid)',
    'SELECT from_status, to_status, slot_status, changed FROM public.cusown_cancel_booking(pg_catalog.md5(''held'')::pg_catalog.uuid, ''customer'', dry_run => true)',
    'SELECT * FROM public.cusown_mark_no_show(max_rows => 1)',
    'SELECT * FROM public.cusown_mark_no_show()',
    'SELECT * FROM public.cusown_mark_no_show()',
    'SELECT * FROM public.cusown_expire_bookings(max_rows => 1)',
    'SELECT * FROM public.cusown_expire_bookings(source => ''application'')',
    'SELECT * FROM public.cusown_expire_bookings()',
    'SELECT entity, guard FROM public.cusown_guard(''off'')',
    'UPDATE {app}.payments SET status = ''failed''',
    'SELECT entity, guard FROM public.cusown_guard(''functions'')',
    'SELECT * FROM public.cusown_expire_bookings()',
    'DROP INDEX {app}.bookings_slot_id_idx',
    'UPDATE {app}.bookings SET status = ''confirmed'' WHERE id OPERATOR(pg_catalog.=) pg_catalog.md5(''near2'')::pg_catalog.uuid',
    'SELECT kind, slot_id, booking_ids, starts, finding FROM public.cusown_double_bookings()',
    'CALL public.cusown_run_job(''take_census'')',
    'SELECT step, state FROM public.cusown_runbook()',
    'SELECT step, state, command FROM public.cusown_runbook(''double_booking'')',
    'SELECT step, state, command FROM public.cusown_runbook(''double_booking'', pg_catalog.md5(''near'')::pg_catalog.uuid)',
    'SELECT pg_catalog.count(*) FROM public.cusown_double_bookings(business => pg_catalog.md5(''near'')::pg_catalog.uuid, verify => true)',
    'SELECT * FROM public.cusown_resolve_double_bookings(dry_run => true)',
    'SELECT * FROM public.cusown_resolve_double_bookings(''first_created'', pg_catalog.md5(''near'')::pg_catalog.uuid, dry_run => true)',
    'SELECT * FROM public.cusown_resolve_double_bookings(''paid_first'')',
    'SELECT * FROM public.cusown_resolve_double_bookings(kind => ''overlap'')',
    'SELECT * FROM public.cusown_resolve_double_bookings()',
    'SELECT * FROM public.cusown_keep_booking(pg_catalog.md5(''near'')::pg_catalog.uuid)',
    'SELECT * FROM public.cusown_repair_slots()',
    'SELECT * FROM public.cusown_repair_slots()',
    'SELECT * FROM public.cusown_install_constraints()',
    'SELECT * FROM public.cusown_install_constraints(blocking => true)',
    'SELECT kind, closed_by, public.cusown_attention_resolve(id, ''called'') FROM cusown_ops.attention WHERE app_schema OPERATOR(pg_catalog.=) ''{app}'' ORDER BY id USING OPERATOR(pg_catalog.<)',
    'CALL public.cusown_run_job(''expire_bookings'')',
    'CALL public.cusown_run_job(''release_expired_holds'')',
    'CALL public.cusown_run_job(''prune_history'')',
    'SELECT job, status, changed FROM cusown_ops.job_run WHERE app_schema OPERATOR(pg_catalog.=) ''{app}'' ORDER BY id USING OPERATOR(pg_catalog.<)',
    'SELECT public.cusown_expire_if_due()',
    'SELECT job, late, last_outcome FROM public.cusown_cron_health() WHERE app_schema OPERATOR(pg_catalog.=) ''{app}''',
    'SELECT pg_catalog.count(*) OPERATOR(pg_catalog.>) 0 AS any FROM public.cusown_changes_since()',
    'SELECT pruned OPERATOR(pg_catalog.>) 0 AS any, more FROM public.cusown_prune_history(as_of => pg_catalog.now() OPERATOR(pg_catalog.+) ''8 days'', dry_run => true)',
    'INSERT INTO {app}.payments (id, booking_id, status, amount, expires_at) SELECT pg_catalog.md5(n)::pg_catalog.uuid, pg_catalog.md5(''held'')::pg_catalog.uuid, ''initiated'', 1000, pg_catalog.now() FROM pg_catalog.unnest(''{one,two,three}''::pg_catalog.text[]) n',
    'SELECT from_status, to_status, changed FROM public.cusown_payment_transition(pg_catalog.md5(''one'')::pg_catalog.uuid, ''process'', provider_ref => ''pay'')',
    'SELECT from_status, to_status, changed FROM public.cusown_payment_transition(pg_catalog.md5(''one'')::pg_catalog.uuid, ''verify'', pg_catalog.md5(''one'')::pg_catalog.uuid)',
    'SELECT from_status, to_status, changed FROM public.cusown_payment_transition(pg_catalog.md5(''one'')::pg_catalog.uuid, ''verify'')',
    'SELECT from_status, to_status, changed FROM public.cusown_payment_transition(pg_catalog.md5(''one'')::pg_catalog.uuid, ''partial_refund'', refund_amount => 300, refund_ref => ''r1'')',
    'SELECT from_status, to_status, changed FROM public.cusown_payment_transition(pg_catalog.md5(''one'')::pg_catalog.uuid, ''partial_refund'', refund_amount => 400)',
    'SELECT from_status, to_status, changed FROM public.cusown_payment_transition(pg_catalog.md5(''one'')::pg_catalog.uuid, ''refund'')',
    'SELECT from_status, to_status, changed FROM public.cusown_payment_transition(pg_catalog.md5(''two'')::pg_catalog.uuid, ''fail'', reason => ''declined'')',
    'SELECT from_status, to_status, changed FROM public.cusown_payment_transition(pg_catalog.md5(''two'')::pg_catalog.uuid, ''verify'', reason => ''came'', provider_ref => ''pay'')',
    'INSERT INTO cusown_ops.state_transition VALUES (''{app}'', ''payment'', ''completed'', ''reopen'', ''processing'')',
    'SELECT from_status, to_status, changed FROM public.cusown_payment_transition(pg_catalog.md5(''two'')::pg_catalog.uuid, ''reopen'')',
    'SELECT from_status, to_status, changed FROM public.cusown_payment_transition(pg_catalog.md5(''two'')::pg_catalog.uuid, ''reopen'')',
    'SELECT public.cusown_load_statement_csv(''razorpay'', ''generic'', E''provider_ref,status,amount,currency,at,refund_amount\npay,captured,1000,INR,1767312000,\nlost,captured,70,INR,1767312000,50'') OPERATOR(pg_catalog.>) 0 AS loaded',
    'SELECT public.cusown_load_statement(''razorpay'', ''razorpay_settlement'', ''[{"entity_id": "pay", "type": "payment", "amount": 1000, "currency": "INR", "created_at": 1767312000}, {"entity_id": "r9", "type": "refund", "payment_id": "pay", "amount": 300, "currency": "INR", "created_at": 1767312000}]'') OPERATOR(pg_catalog.>) 0 AS loaded',
    'SELECT r.class, r.provider_ref, r.action FROM cusown_ops.statement s CROSS JOIN LATERAL public.cusown_reconcile(s.id) r WHERE s.app_schema OPERATOR(pg_catalog.=) ''{app}'' ORDER BY s.id USING OPERATOR(pg_catalog.<), r.class USING OPERATOR(pg_catalog.<)',
    'SELECT r.class, r.provider_ref, r.action FROM cusown_ops.statement s CROSS JOIN LATERAL public.cusown_reconcile(s.id, apply => true) r WHERE s.app_schema OPERATOR(pg_catalog.=) ''{app}'' ORDER BY s.id USING OPERATOR(pg_catalog.<), r.class USING OPERATOR(pg_catalog.<)',
    'SELECT r.class, r.currency, r.theirs, r.ours FROM cusown_ops.statement s CROSS JOIN LATERAL public.cusown_reconciliation_summary(s.id) r WHERE s.app_schema OPERATOR(pg_catalog.=) ''{app}'' ORDER BY s.id USING OPERATOR(pg_catalog.<), r.class USING OPERATOR(pg_catalog.<)',
    'INSERT INTO {app}.payments (id, booking_id, status, amount, provider_ref) VALUES (pg_catalog.md5(''shown'')::pg_catalog.uuid, pg_catalog.md5(''held'')::pg_catalog.uuid, ''failed'', 70, ''lost'')',
    'SELECT from_status, to_status, changed FROM public.cusown_payment_transition(pg_catalog.md5(''shown'')::pg_catalog.uuid, ''verify'', evidence => (SELECT pg_catalog.jsonb_build_object(''statement_line_id'', pg_catalog.max(l.id)) FROM cusown_ops.statement_line l WHERE l.app_schema OPERATOR(pg_catalog.=) ''{app}'' AND l.provider_ref OPERATOR(pg_catalog.=) ''lost''), dry_run => true)',
    'DELETE FROM {app}.payments WHERE id OPERATOR(pg_catalog.=) pg_catalog.md5(''shown'')::pg_catalog.uuid',
    'SELECT * FROM public.cusown_expire_payments(dry_run => true)',
    'CALL public.cusown_run_job(''expire_payments'')',
    'SELECT * FROM public.cusown_expire_payments()',
    'SELECT source, what FROM public.cusown_payment_facts(pg_catalog.md5(''one'')::pg_catalog.uuid, true) ORDER BY source USING OPERATOR(pg_catalog.<), what USING OPERATOR(pg_catalog.<)',
    'SELECT pg_catalog.jsonb_array_length(public.cusown_payment_case(pg_catalog.md5(''held'')::pg_catalog.uuid) OPERATOR(pg_catalog.->) ''facts'')',
    'SELECT kind, severity, finding FROM public.cusown_payment_mismatches()',
    'CALL public.cusown_run_job(''take_census'')',
    'SELECT step, state, command FROM public.cusown_runbook(''payment_mismatch'')',
    'SELECT step, state, command FROM public.cusown_runbook(''payment_mismatch'', pg_catalog.md5(''one'')::pg_catalog.uuid)',
    'SELECT step, state, command FROM public.cusown_runbook(''cron_failure'')',
    'SELECT step, state, command FROM public.cusown_runbook(''database_performance'')',
    'SELECT step, state, command FROM public.cusown_runbook(''high_error_rate'')',
    'SELECT step, state, command FROM public.cusown_runbook(''backup_and_restore'')',
    'SELECT b.state, public.cusown_idempotency_complete(''s'', ''k'', b.token, ''{"a": 1}'') FROM public.cusown_idempotency_begin(''s'', ''k'', ''[1]'') b',
    'SELECT state, response FROM public.cusown_idempotency_begin(''s'', ''k'', ''[1]'')',
    'SELECT public.cusown_idempotency_complete(k.scope, k.key, k.token, k.response) FROM cusown_ops.idempotency_key k WHERE k.app_schema OPERATOR(pg_catalog.=) ''{app}''',
    'SELECT state FROM public.cusown_idempotency_begin(''s'', ''k 2'', lease => ''0'')',
    'SELECT b.state, public.cusown_idempotency_abandon(''s'', ''k 2'', b.token) FROM public.cusown_idempotency_begin(''s'', ''k 2'', lease => ''0'') b',
    'UPDATE cusown_ops.idempotency_key SET expires_at = pg_catalog.now() WHERE app_schema OPERATOR(pg_catalog.=) ''{app}''',
    'CALL public.cusown_run_job(''prune_idempotency'')',
    'SELECT pg_catalog.count(*) FROM cusown_ops.idempotency_key WHERE app_schema OPERATOR(pg_catalog.=) ''{app}''',
    'SELECT provider, valid_until FROM public.cusown_set_webhook_secret(''razorpay'', ''another'', ''2026-01-01'')',
    'SELECT provider, valid_until FROM public.cusown_set_webhook_secret(''razorpay'', ''123456'', overlap => ''0'')',
    'SELECT cusown_ops.verify_signature_with_stored_secret(''{app}'', ''razorpay'', ''razorpay'', ''{"a":1,"b":2,"c":{"d":3}}'', ''{"x-razorpay-signature": "2fe04e22977002e6c7cb553adab8b460cb9e2a4970d5953cb27a8472752e3bbc"}'')',
    'SELECT outcome, http_status, detail FROM public.cusown_webhook(''razorpay'', ''{"a":1,"b":2,"c":{"d":3}}'', ''{"x-razorpay-signature": "2fe04e22977002e6c7cb553adab8b460cb9e2a4970d5953cb27a8472752e3bbc"}'')',
    'INSERT INTO cusown_ops.webhook_event VALUES (''{app}'', ''razorpay'', ''3'', ''verify'', ''$.b'', ''{$.a}'', ''$.o'', ''$.t'', ''$.b * 500'', ''$.y'', ''$.z'')',
    'INSERT INTO cusown_ops.webhook_provider VALUES (''{app}'', ''razorpay'', ''razorpay'', ''$.c.d'', ''$.a'')',
    'SELECT outcome, http_status, detail FROM public.cusown_webhook(''razorpay'', ''{"a":1,"b":2,"c":{"d":3}}'', ''{"x-razorpay-signature": "2fe04e22977002e6c7cb553adab8b460cb9e2a4970d5953cb27a8472752e3bbc"}'')',
    'SELECT outcome, http_status, detail FROM public.cusown_webhook(''razorpay'', ''{"a":1,"b":2,"c":{"d":3}}'', ''{"x-razorpay-signature": "2fe04e22977002e6c7cb553adab8b460cb9e2a4970d5953cb27a8472752e3bbc"}'')',
    'SELECT provider, outcome, event_type, events FROM public.cusown_webhook_backlog()',
    'UPDATE cusown_ops.webhook_inbox SET next_try = pg_catalog.now() WHERE app_schema OPERATOR(pg_catalog.=) ''{app}''',
    'UPDATE {app}.payments SET provider_ref = ''2'' WHERE id OPERATOR(pg_catalog.=) pg_catalog.md5(''three'')::pg_catalog.uuid',
    'CALL public.cusown_run_job(''retry_parked_webhooks'')',
    'SELECT outcome, tries, detail FROM cusown_ops.webhook_inbox WHERE app_schema OPERATOR(pg_catalog.=) ''{app}''',
    'SELECT r.outcome, r.detail FROM cusown_ops.webhook_inbox i, LATERAL public.cusown_webhook_replay(i.id) r WHERE i.app_schema OPERATOR(pg_catalog.=) ''{app}''',
    'CALL public.cusown_run_job(''take_census'')',
    'SELECT public.cusown_set_threshold(''job_late'', NULL, NULL)',
    'SELECT runbook, symptom, severity, firing FROM public.cusown_symptoms() WHERE symptom OPERATOR(pg_catalog.<>) ''scheduler_absent''',
    'SELECT public.cusown_health() OPERATOR(pg_catalog.->>) ''status''',
    'SET client_min_messages = error',
    'SELECT opened OPERATOR(pg_catalog.>) 0 AS any, resolved FROM public.cusown_evaluate_alerts()',
    'SELECT pg_catalog.bool_and(public.cusown_ack(id, ''mine'')) FROM cusown_ops.alert WHERE app_schema OPERATOR(pg_catalog.=) ''{app}''',
    'CALL public.cusown_run_job(''take_census'')',
    'CALL public.cusown_run_job(''evaluate_alerts'')',
    'SET client_min_messages = warning',
    'SELECT symptom, severity, observed, times FROM cusown_ops.alert WHERE app_schema OPERATOR(pg_catalog.=) ''{app}'' AND runbook OPERATOR(pg_catalog.<>) ''cron_failure'' ORDER BY id USING OPERATOR(pg_catalog.<)',
    'SELECT public.cusown_grant(''regress_hostile_operator'', ''operator'')',
    'SELECT public.cusown_detach(''{app}'')',
    'SELECT * FROM public.cusown_due_bookings()',
    'RESET search_path']) AS call
$$;
SELECT pg_temp.calls('calm_text', 'public')
\gexec
SELECT pg_temp.calls('wild_text', 'hostile, pg_catalog, public')
\gexec
SELECT pg_temp.calls('calm_varchar', 'public')
\gexec
SELECT pg_temp.calls('wild_varchar', 'hostile, pg_catalog, public')
\gexec
SELECT pg_temp.calls('calm_enum', 'public')
\gexec
SELECT pg_temp.calls('wild_enum', 'hostile, pg_catalog, public')
\gexec
RESET cusown_ops.app_schema;
-- and they left the same behind
CREATE FUNCTION pg_temp.left_behind(app name) RETURNS SETOF text
LANGUAGE plpgsql AS $$
BEGIN
  PERFORM set_config('search_path', quote_ident(app), true);
  RETURN QUERY EXECUTE $q$
    SELECT concat_ws('|', 'booking', id, status, cancelled_by,
                     cancelled_at IS NOT NULL) FROM bookings
    UNION ALL
    SELECT concat_ws('|', 'slot', id, status, reserved_until IS NOT NULL)
    FROM slots
    UNION ALL
    SELECT concat_ws('|', 'audit', action, entity_type, entity_id, old_data,
                     new_data, metadata - 'attention_id' #- '{evidence,webhook_inbox_id}') FROM audit_logs
    UNION ALL
    SELECT concat_ws('|', 'lifecycle', booking_id, old_slot_id, action_type,
                     actor_type) FROM booking_lifecycle_audit
    UNION ALL
    SELECT concat_ws('|', 'attention', kind, entity,
                     CASE WHEN entity NOT IN ('statement_line', 'webhook_event') THEN entity_id END, sqlstate,
                     regexp_replace(finding, '(statement|statement_line_id":) \d+', '', 'g'), times, closed_at IS NOT NULL,
                     closed_by IN (current_user, 'recheck'), note)
    FROM cusown_ops.attention WHERE app_schema = current_schema()
    UNION ALL
    SELECT concat_ws('|', 'payment', id, status, refund_amount, attempt_count,
                     provider_ref, verification_method, failure_reason)
    FROM payments
    UNION ALL
    SELECT concat_ws('|', 'log', payment_id, actor_type, action, from_status,
                     to_status, reason, metadata #- '{evidence,webhook_inbox_id}')
    FROM payment_audit_logs
    UNION ALL
    SELECT concat_ws('|', 'refund', payment_id, refund_ref, amount)
    FROM cusown_ops.payment_refund WHERE app_schema = current_schema()
  $q$;
END
$$;
CREATE TEMP TABLE left_behind AS
SELECT app, line
FROM unnest('{calm_text,wild_text,calm_varchar,wild_varchar,calm_enum,wild_enum}'
            ::name[]) AS app,
     pg_temp.left_behind(app) AS line;
SELECT app, count(*) FROM left_behind GROUP BY 1 ORDER BY 1;
SELECT line, string_agg(app, ', ' ORDER BY app) AS not_everywhere
FROM left_behind GROUP BY 1 HAVING count(*) <> 6 ORDER BY 1;
-- but the application's triggers ran under the caller's path
SELECT 'calm_text' AS app, path, count(*) FROM calm_text.seen GROUP BY 2
UNION ALL
SELECT 'wild_text', path, count(*) FROM wild_text.seen GROUP BY 2
UNION ALL
SELECT 'wild_enum', path, count(*) FROM wild_enum.seen GROUP BY 2;

-- The reference schema, whose triggers need their path: operators that others
-- made for its types, further down, are not taken either.
\set ECHO none
\set schema app
\i :fixture/cusown_app.sql
\i :fixture/sample_week.sql
\set ECHO all
CREATE SCHEMA rival;
CREATE FUNCTION rival.never(app.payment_status, app.payment_status)
RETURNS boolean LANGUAGE sql AS 'SELECT false';
CREATE FUNCTION rival.never(app.payment_status, text)
RETURNS boolean LANGUAGE sql AS 'SELECT false';
CREATE FUNCTION rival.never(varchar, varchar)
RETURNS boolean LANGUAGE sql AS 'SELECT false';
CREATE OPERATOR rival.= (FUNCTION = rival.never,
  LEFTARG = app.payment_status, RIGHTARG = app.payment_status);
CREATE OPERATOR rival.= (FUNCTION = rival.never,
  LEFTARG = app.payment_status, RIGHTARG = text);
CREATE OPERATOR rival.= (FUNCTION = rival.never,
  LEFTARG = varchar, RIGHTARG = varchar);
SET search_path = app, public, rival;
SELECT count(*) FROM payments WHERE status = 'completed';
SELECT count(*) > 0 AS attached FROM cusown_attach('app');
SET cusown_ops.app_schema = app;
SELECT verdict, count(*) FROM cusown_due_bookings() GROUP BY 1 ORDER BY 1;
SELECT * FROM cusown_expire_bookings();
SELECT count(*) FROM bookings
WHERE cancellation_reason = 'expired' AND updated_at = cancelled_at
  AND cancelled_at = (SELECT max(cancelled_at) FROM bookings);
SELECT count(*) AS broken FROM verify_audit_chain();
-- without their path it is the triggers that fail, not we
SET search_path = '';
UPDATE app.bookings SET created_at = created_at - interval '2 days'
WHERE id = pg_catalog.md5('booking pending_hold_ended 1')::uuid;
SELECT verdict, pg_catalog.count(*) FROM public.cusown_due_bookings()
GROUP BY 1 ORDER BY 1;
\set VERBOSITY terse
SELECT * FROM public.cusown_expire_bookings(); -- fails
\set VERBOSITY default
\echo :SQLSTATE
SET search_path = app, public;
SELECT * FROM cusown_expire_bookings();

-- Text arguments are text.
SELECT * FROM cusown_expire_bookings(
  source => 'manual''; DROP TABLE app.metrics; --'); -- fails
\echo :SQLSTATE
SELECT * FROM cusown_expire_bookings(source => repeat('manual', 2)); -- fails
SELECT * FROM cusown_expire_bookings(source => ''); -- fails
SELECT * FROM cusown_expire_bookings(source => NULL); -- fails
\echo :SQLSTATE
CREATE TEMP TABLE note (id bigint, note text);
INSERT INTO note
SELECT (SELECT id FROM cusown_ops.attention
        WHERE app_schema = 'app' AND closed_at IS NULL
        ORDER BY id OFFSET i - 1 LIMIT 1), n
FROM unnest(ARRAY[
  'done''); DROP TABLE app.metrics; --', '"}, "source": "cron", {"',
  E'two\nlines, a \\ and a \t', '$1 {slots} [x] := %s %n \u0000',
  repeat('long ', 100000)]) WITH ORDINALITY u (n, i);
SELECT count(*) FROM note WHERE cusown_attention_resolve(id, note);
SELECT count(*) AS kept
FROM note n JOIN cusown_ops.attention a USING (id, note)
JOIN audit_logs l ON l.entity_id = a.entity_id
WHERE l.action_type = 'data_corrected' AND l.metadata ->> 'note' = n.note
  AND l.metadata ->> 'source' = 'manual';
SELECT cusown_attention_resolve(id, '') FROM note LIMIT 1; -- fails
\echo :SQLSTATE
SELECT cusown_attention_resolve(id, NULL) FROM note LIMIT 1;
SELECT count(*) > 0 AS there FROM metrics;
RESET search_path;
RESET cusown_ops.app_schema;
SELECT cusown_detach('app');

-- Neither the session's time zone nor how it writes and reads times changes a
-- result.  A day is 24 hours, also where the clocks are changed.
CREATE SCHEMA clock;
CREATE TABLE clock.slots (id uuid, status text, starts_at timestamptz,
                          ends_at timestamptz, reserved_until timestamptz);
CREATE TABLE clock.bookings (id uuid, slot_id uuid, status text,
                             created_at timestamptz);
CREATE TABLE clock.payments (id uuid, booking_id uuid, status text,
                             created_at timestamptz);
CREATE TABLE clock.audit_logs (action text, entity_type text, entity_id uuid,
                               created_at timestamptz, metadata jsonb);
INSERT INTO clock.bookings
SELECT md5(t)::uuid, md5(t)::uuid, 'pending', t::timestamptz
FROM unnest('{2024-02-29 11:59:59+00,2024-03-30 11:59:59+00,
  2024-03-30 12:00:01+00,2024-03-30 12:30:00+00,2024-10-26 11:30:00+00,
  2024-10-26 11:59:59+00,2024-10-26 12:00:01+00}'::text[]) t;
INSERT INTO clock.slots
SELECT id, 'reserved', now(), now(), created_at + interval '10 minutes'
FROM clock.bookings;
INSERT INTO clock.payments
VALUES (md5('a')::uuid, md5('2024-03-30 11:59:59+00')::uuid, 'processing',
        '2024-03-31 11:00:01+00'),
       (md5('b')::uuid, md5('2024-02-29 11:59:59+00')::uuid, 'processing',
        '2024-03-31 10:59:59+00');
SELECT count(*) > 0 AS attached FROM cusown_attach('clock');
CREATE FUNCTION pg_temp.due(older_than interval, as_of timestamptz)
RETURNS text LANGUAGE sql AS $$
  SELECT string_agg(extract(epoch FROM due_since)::bigint || ' ' || verdict,
                    ', ' ORDER BY due_since)
  FROM cusown_due_bookings(older_than, as_of)
$$;
CREATE FUNCTION pg_temp.due_in(zone text) RETURNS TABLE (
  spring text, autumn text, month text) LANGUAGE plpgsql AS $$
BEGIN
  PERFORM set_config('TimeZone', zone, true);
  RETURN QUERY SELECT
    pg_temp.due('1 day', '2024-03-31 12:00:00+00'),
    pg_temp.due('1 day', '2024-10-27 12:00:00+00'),
    (SELECT count(*)::text
     FROM cusown_due_bookings('1 month', '2024-03-31 12:00:00+00'));
END
$$;
\x on
SELECT DISTINCT d.*
FROM unnest('{UTC,Europe/Berlin,America/New_York,Asia/Kathmandu,Pacific/Apia,
  Australia/Lord_Howe,Etc/GMT+12}'::text[]) zone, pg_temp.due_in(zone) d;
\x off
-- the setting's default is 24 hours
SELECT DISTINCT d.spring
FROM unnest('{UTC,Europe/Berlin,America/New_York}'::text[]) zone,
     LATERAL (SELECT set_config('TimeZone', zone, true) IS NOT NULL AS set) s,
     LATERAL (SELECT pg_temp.due(NULL, '2024-03-31 12:00:00+00') AS spring
              WHERE s.set) d;
-- and of what is written, under whatever the session has set
CREATE FUNCTION pg_temp.written(settings jsonb) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
  result text;
BEGIN
  BEGIN
    PERFORM set_config(key, value, true) FROM jsonb_each_text(settings);
    SELECT string_agg(verdict, ', ') INTO result
    FROM public.cusown_due_bookings('1 day', '2024-03-31 12:00:00+00');
    SELECT concat_ws(E'\n', result, e) INTO result
    FROM public.cusown_expire_bookings(
           '1 day', as_of => '2024-03-31 12:00:00+00') e;
    SELECT result || E'\n'
      || string_agg(concat_ws(' ', action, entity_type, entity_id, metadata),
                    E'\n' ORDER BY created_at)
    INTO result FROM clock.audit_logs;
    SELECT result || E'\n' || string_agg(line, ', ' ORDER BY line) INTO result
    FROM (SELECT concat_ws(' ', b.status, s.status, count(*)) AS line
          FROM clock.bookings b JOIN clock.slots s ON s.id = b.slot_id
          GROUP BY b.status, s.status) l;
    RAISE SQLSTATE 'ZZ000';
  EXCEPTION WHEN SQLSTATE 'ZZ000' THEN
    RETURN result;              -- and all is as it was
  END;
END
$$;
SELECT pg_temp.written('{}') AS by_default
\gset
\echo :by_default
SET jit = off;                  -- plans that are forced seem to be dear
SELECT settings
FROM unnest(ARRAY[
  '{"TimeZone": "Asia/Kathmandu", "DateStyle": "German"}',
  '{"TimeZone": "Europe/Berlin", "DateStyle": "SQL, DMY"}',
  '{"TimeZone": "America/New_York", "IntervalStyle": "sql_standard"}',
  '{"TimeZone": "Pacific/Apia", "IntervalStyle": "iso_8601"}',
  '{"DateStyle": "Postgres, YMD", "IntervalStyle": "postgres_verbose"}',
  '{"standard_conforming_strings": "off", "backslash_quote": "off"}',
  '{"quote_all_identifiers": "on", "transform_null_equals": "on"}',
  '{"array_nulls": "off", "bytea_output": "escape"}',
  '{"extra_float_digits": "-15", "search_path": ""}',
  '{"plan_cache_mode": "force_generic_plan", "work_mem": "64kB"}',
  '{"enable_seqscan": "off", "enable_hashjoin": "off", "geqo_threshold": "2"}',
  '{"enable_nestloop": "off", "enable_mergejoin": "off", "enable_sort": "off"}',
  '{"row_security": "off", "constraint_exclusion": "on"}']::jsonb[]) settings
WHERE pg_temp.written(settings) <> :'by_default';
RESET jit;

DROP EXTENSION cusown_ops;
DROP OWNED BY regress_hostile_operator;
DROP ROLE regress_hostile_operator;
DROP SCHEMA hostile, rival, app, clock, calm_text, wild_text, calm_varchar,
  wild_varchar, calm_enum, wild_enum CASCADE;
