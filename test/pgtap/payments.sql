--
-- Payments on the reference schema and on one that has only what the runbooks
-- name: every event in every status, held against a table of its own; audit
-- trails that replay to the status; refunds that never exceed the amount; and
-- bookings and slots that no payment verb touches.
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
CREATE EXTENSION cusown_ops;
SET search_path = public, tap;
\i :fixture/sample_week.sql
SELECT count(*) > 0 FROM cusown_attach('public') \g /dev/null
SELECT count(*) > 0 FROM cusown_attach('shop', :'minimal_mapping') \g /dev/null

SELECT plan(295);

CREATE SCHEMA t;

-- what each event makes of each status; "same": it is there already.  With
-- evidence, what was given up can be verified.
CREATE TABLE t.expected (status text, event text, evidence boolean, outcome text);
INSERT INTO t.expected
SELECT m.status, e.event, v.evidence,
       CASE WHEN v.evidence AND m.status IN ('failed', 'expired') THEN coalesce(e.with_evidence, e.outcome) ELSE e.outcome END
FROM (VALUES
  ('initiated',          'processing', 'completed', 'UO003',     'failed', 'expired', 'partially_refunded', 'refunded'),
  ('pending',            'processing', 'completed', 'UO003',     'failed', 'expired', 'partially_refunded', 'refunded'),
  ('processing',         'same',       'completed', 'UO003',     'failed', 'expired', 'partially_refunded', 'refunded'),
  ('completed',          'UO003',      'same',      'same',      'UO003',  'UO003',   'partially_refunded', 'refunded'),
  ('failed',             'UO003',      'UO003',     'UO003',     'same',   'UO003',   'UO003',              'UO003'),
  ('expired',            'UO003',      'UO003',     'UO003',     'UO003',  'same',    'UO003',              'UO003'),
  ('partially_refunded', 'UO003',      'UO003',     'UO003',     'UO003',  'UO003',   'partially_refunded', 'refunded'),
  ('refunded',           'UO003',      'UO003',     'UO003',     'UO003',  'UO003',   'UO008',              'same'))
  m (status, process, verify, late_capture, fail, expire, partial_refund, refund),
LATERAL (VALUES ('process', m.process, NULL), ('verify', m.verify, 'completed'), ('late_capture', m.late_capture, 'completed'),
                ('fail', m.fail, NULL), ('expire', m.expire, NULL), ('partial_refund', m.partial_refund, 'partially_refunded'),
                ('refund', m.refund, 'refunded'), ('reopen', 'UO003', NULL)) e (event, outcome, with_evidence),
unnest('{false,true}'::boolean[]) v (evidence);

-- bookings and slots to the last bit, who wrote them included
CREATE FUNCTION t.untouched() RETURNS text LANGUAGE sql STABLE AS $$
  SELECT md5(string_agg(x, '|' ORDER BY x)) FROM (
    SELECT concat_ws(' ', b.xmin, b.ctid, b.*) FROM public.bookings b
    UNION ALL SELECT concat_ws(' ', s.xmin, s.ctid, s.*) FROM public.slots s
    UNION ALL SELECT concat_ws(' ', b.xmin, b.ctid, b.*) FROM shop.reservation b
    UNION ALL SELECT concat_ws(' ', s.xmin, s.ctid, s.*) FROM shop.time_slot s) u (x)
$$;
CREATE FUNCTION t.raise() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION '% must not change', TG_TABLE_NAME USING ERRCODE = 'ZZ001';
END
$$;

-- a payment of an application in this status, of a booking in that one
CREATE TABLE t.payment (app text, id uuid, was text);
CREATE FUNCTION t.add_payment(p_app text, p_status text, p_booking text DEFAULT 'pending') RETURNS uuid
LANGUAGE plpgsql AS $$
DECLARE
  v_id uuid := gen_random_uuid();
  v_refunded int := CASE p_status WHEN 'refunded' THEN 1000 WHEN 'partially_refunded' THEN 100 ELSE 0 END;
BEGIN
  INSERT INTO t.payment VALUES (p_app, v_id, p_status);
  IF p_app = 'public' THEN
    INSERT INTO public.payments (id, booking_id, provider, provider_payment_id, amount_cents, status, refund_amount_cents, expires_at)
    SELECT v_id, b.id, 'upi', v_id::text, 1000, p_status::public.payment_status, v_refunded, now() - interval '1 minute'
      FROM public.bookings b WHERE b.status = p_booking ORDER BY b.id LIMIT 1;
  ELSE
    INSERT INTO shop.charge (ref, reservation_ref, state, provider_code, amount, made_at)
    SELECT v_id, r.ref, p_status, v_id::text, 1000, now() FROM shop.reservation r WHERE r.state = p_booking;
  END IF;
  INSERT INTO cusown_ops.payment_refund (app_schema, payment_id, refund_ref, amount)
  SELECT p_app, v_id, 'before', v_refunded WHERE v_refunded > 0;
  RETURN v_id;
END
$$;
INSERT INTO shop.time_slot VALUES (md5('slot')::uuid, 'reserved', now(), now(), now());
INSERT INTO shop.reservation (ref, state, slot_ref)
SELECT md5(s)::uuid, s, md5('slot')::uuid FROM unnest('{pending,cancelled,confirmed}'::text[]) s;
\set QUIET 1
DO $$
DECLARE
  v_table text;
BEGIN
  FOREACH v_table IN ARRAY '{public.bookings,public.slots,shop.reservation,shop.time_slot}'::text[] LOOP
    EXECUTE format('CREATE TRIGGER untouchable BEFORE INSERT OR UPDATE OR DELETE ON %s
                    FOR EACH STATEMENT EXECUTE FUNCTION t.raise()', v_table);
  END LOOP;
END
$$;

CREATE FUNCTION t.status_of(p_app text, p_id uuid) RETURNS text LANGUAGE sql STABLE AS $$
  SELECT status::text FROM public.payments WHERE p_app = 'public' AND id = p_id
  UNION ALL SELECT state FROM shop.charge WHERE p_app = 'shop' AND ref = p_id
$$;

-- what an event makes of a payment: its new status, same, or the SQLSTATE
CREATE FUNCTION t.outcome(p_app text, p_id uuid, p_event text, p_evidence boolean) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
  v_row record;
BEGIN
  PERFORM set_config('cusown_ops.app_schema', p_app, true);
  SELECT * INTO v_row FROM cusown_payment_transition(
    p_id, p_event,
    reason => CASE WHEN p_evidence THEN 'found at the provider' END,
    provider_ref => CASE WHEN p_evidence THEN 'pay_1' END,
    refund_amount => CASE p_event WHEN 'partial_refund' THEN 1 END,
    refund_ref => CASE p_event WHEN 'partial_refund' THEN 'r' END);
  RETURN CASE WHEN v_row.changed THEN v_row.to_status ELSE 'same' END;
EXCEPTION WHEN OTHERS THEN
  RETURN SQLSTATE;
END
$$;

--
-- Every event in every status
--

SELECT t.untouched() AS before \gset
CREATE FUNCTION t.check_all(p_app text) RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE
  v record;
  v_id uuid;
  v_outcome text;
BEGIN
  FOR v IN SELECT * FROM t.expected ORDER BY status, event, evidence LOOP
    v_id := t.add_payment(p_app, v.status);
    v_outcome := t.outcome(p_app, v_id, v.event, v.evidence);
    RETURN NEXT is(
      v_outcome || ', stored ' || t.status_of(p_app, v_id),
      v.outcome || ', stored ' || CASE WHEN v.outcome ~ '^(same|UO)' THEN v.status ELSE v.outcome END,
      format('%s: %s of a payment that is %s%s', p_app, v.event, v.status,
             CASE WHEN v.evidence THEN ', with evidence' ELSE '' END));
  END LOOP;
END
$$;
SELECT t.check_all('public');
SELECT t.check_all('shop');
SELECT is(t.untouched(), :'before', 'no event of any payment has touched a booking or a slot');
SELECT is((SELECT count(*) FROM t.expected), 128::bigint, 'all pairs were tried, with evidence and without');

--
-- The trails
--

-- each step of a payment's own trail, and where the one before has led
CREATE VIEW t.trail AS
SELECT p.id, p.was, l.from_status::text AS from_status, l.to_status::text AS to_status, l.metadata ->> 'event' AS event,
       coalesce(lag(l.to_status::text) OVER w, p.was) AS stood,
       row_number() OVER (PARTITION BY p.id ORDER BY l.created_at DESC) AS place_from_last
  FROM t.payment p JOIN public.payment_audit_logs l ON l.payment_id = p.id
WINDOW w AS (PARTITION BY p.id ORDER BY l.created_at);
CREATE FUNCTION t.check_trails(p_what text) RETURNS SETOF text LANGUAGE plpgsql AS $$
BEGIN
  RETURN NEXT is_empty($q$ SELECT * FROM t.trail WHERE stood <> from_status $q$,
                       p_what || ': each step of a trail begins where the last one led');
  RETURN NEXT is_empty($q$ SELECT p.* FROM t.payment p LEFT JOIN t.trail r ON r.id = p.id AND r.place_from_last = 1
                            WHERE p.app = 'public' AND t.status_of('public', p.id) <> coalesce(r.to_status, p.was) $q$,
                       p_what || ': a trail, replayed, gives the status');
  RETURN NEXT is_empty($q$ SELECT r.* FROM t.trail r LEFT JOIN cusown_ops.state_machine m
                              ON m.machine = 'payment' AND (m.from_status, m.event, m.to_status) = (r.from_status, r.event, r.to_status)
                            WHERE m.machine IS NULL $q$,
                       p_what || ': each step is one of the state machine');
  RETURN NEXT is_empty($q$ SELECT c.entity_id, count(*) FROM cusown_ops.change c JOIN t.payment p ON p.id = c.entity_id AND p.app = 'public'
                            GROUP BY 1 EXCEPT SELECT id, count(*) FROM t.trail GROUP BY 1 $q$,
                       p_what || ': each is in the change feed once');
  RETURN NEXT is_empty($q$ SELECT r.id, count(*) FILTER (WHERE r.to_status NOT IN ('processing', 'expired')) FROM t.trail r GROUP BY 1
                           EXCEPT SELECT p.id, count(a.*) FROM t.payment p LEFT JOIN audit_logs a ON a.entity_id = p.id
                            AND a.action_type ~ '^payment_' GROUP BY 1 $q$,
                       p_what || ': and in the audit trail, but for what that has no action for');
END
$$;
SELECT t.check_trails('every event');
SELECT is_empty('SELECT verify_audit_chain()', 'the chain of audit rows is unbroken');
-- where payments have no trail of their own, all is in the audit trail
SELECT results_eq(
  $$SELECT verb, detail ->> 'to', count(*) FROM shop.journal GROUP BY 1, 2 ORDER BY 1, 2$$,
  $$VALUES ('data_corrected', 'expired', 6::bigint), ('data_corrected', 'processing', 4),
           ('payment_failed', 'failed', 6), ('payment_refunded', 'partially_refunded', 12), ('payment_refunded', 'refunded', 12),
           ('payment_succeeded', 'completed', 26)$$,
  'an application without payment_audit_logs has a row for each step');

--
-- At random
--

SELECT setseed(0.42) \g /dev/null
CREATE TABLE t.event (n serial, id uuid, event text, amount bigint, ref text, evidence boolean, outcome text);
CREATE TABLE t.random AS
SELECT t.add_payment('public', (ARRAY['initiated', 'pending', 'processing'])[1 + n % 3],
                     (ARRAY['pending', 'cancelled', 'confirmed'])[1 + n % 3]) AS id FROM generate_series(1, 30) n;
INSERT INTO t.event (id, event, amount, ref, evidence)
SELECT r.id, e.event,
       CASE WHEN e.event LIKE '%refund' AND (e.event <> 'refund' OR random() < 0.3) THEN 1 + (random() * 450)::int END,
       CASE WHEN e.event LIKE '%refund' AND random() < 0.6 THEN 'r' || (random() * 6)::int END,
       random() < 0.5
FROM t.random r, generate_series(1, 40) i,
     LATERAL (SELECT (ARRAY['process', 'verify', 'verify', 'fail', 'expire', 'partial_refund', 'partial_refund',
                            'partial_refund', 'partial_refund', 'refund'])[1 + (random() * 9.99)::int % 10] AS event WHERE i > 0) e
ORDER BY random();
-- the greater of what references add up to and of the greatest figure
CREATE FUNCTION t.remembered(p_app text, p_id uuid) RETURNS bigint LANGUAGE sql STABLE AS $$
  SELECT coalesce(greatest(sum(amount) FILTER (WHERE refund_ref <> ''), max(amount) FILTER (WHERE refund_ref = '')), 0)
    FROM cusown_ops.payment_refund WHERE app_schema = p_app AND payment_id = p_id
$$;
CREATE FUNCTION t.try(e t.event) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  v_changed boolean;
BEGIN
  SELECT changed INTO v_changed FROM cusown_payment_transition(e.id, e.event,
    reason => CASE WHEN e.evidence THEN 'found' END, provider_ref => CASE WHEN e.evidence THEN 'pay_2' END,
    refund_amount => e.amount, refund_ref => e.ref);
  RETURN CASE WHEN v_changed THEN 'changed' ELSE 'same' END;
EXCEPTION WHEN SQLSTATE 'UO003' OR SQLSTATE 'UO008' THEN
  RETURN SQLSTATE;
END
$$;
SET cusown_ops.app_schema = 'public';
DO $$
DECLARE
  v t.event;
BEGIN
  FOR v IN SELECT * FROM t.event ORDER BY n LOOP
    UPDATE t.event SET outcome = t.try(v) WHERE n = v.n;
  END LOOP;
END
$$;
SELECT t.check_trails('at random');
SELECT cmp_ok((SELECT count(*) FROM t.event WHERE outcome = o), '>', 20::bigint, 'at random: enough have ended in ' || o)
  FROM unnest('{changed,same,UO003,UO008}'::text[]) o;
SELECT is_empty('SELECT id FROM public.payments WHERE refund_amount_cents > amount_cents', 'at random: no refund exceeds its payment');
SELECT is_empty(
  $$SELECT id FROM public.payments p JOIN t.random USING (id)
     WHERE CASE status WHEN 'refunded' THEN refund_amount_cents <> amount_cents
                       WHEN 'partially_refunded' THEN refund_amount_cents NOT BETWEEN 1 AND amount_cents - 1
                       ELSE refund_amount_cents <> 0 END$$,
  'at random: the status says how much was refunded');
SELECT is_empty(
  $$SELECT p.id FROM public.payments p JOIN t.random USING (id)
     WHERE refund_amount_cents <> t.remembered('public', p.id)$$,
  'at random: the refunds that are remembered tell it');
SELECT is_empty(
  $$SELECT id, ref FROM t.event WHERE outcome = 'changed' AND ref IS NOT NULL GROUP BY 1, 2 HAVING count(*) > 1$$,
  'at random: no reference has counted twice');
SELECT set_eq(
  $$SELECT entity_id FROM cusown_ops.attention WHERE kind = 'paid_cancelled' AND app_schema = 'public' AND closed_at IS NULL$$,
  $$SELECT p.id FROM public.payments p JOIN t.payment USING (id) JOIN public.bookings b ON b.id = p.booking_id
     WHERE p.status = 'completed' AND b.status IN ('cancelled', 'rejected') AND t.payment.was <> 'completed'$$,
  'at random: what is paid for nothing is on the worklist, and nothing else');
SELECT is(t.untouched(), :'before', 'at random: no booking and no slot was touched');

--
-- Reconciliation
--

-- of both applications: what one event each would do to what stands there
SELECT t.add_payment(app, s) FROM unnest('{public,shop}'::text[]) app,
  unnest('{initiated,pending,processing,completed,failed,expired,partially_refunded,refunded}'::text[]) s, generate_series(1, 3) \g /dev/null
UPDATE shop.charge SET provider = 'upi', provider_code = ref, currency = 'INR';
CREATE FUNCTION t.statement(p_app text) RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
  PERFORM set_config('cusown_ops.app_schema', p_app, true);
  RETURN cusown_load_statement('upi', 'generic', jsonb_agg(jsonb_build_object(
    'provider_ref', p.id, 'status', (ARRAY['captured', 'failed', 'captured'])[1 + p.n % 3], 'amount', 1000, 'currency', 'INR', 'at', 1767312000,
    'refund_amount', (ARRAY[0, 0, 200])[1 + p.n % 3])))
    FROM (SELECT id, row_number() OVER (PARTITION BY t.status_of(p_app, id) ORDER BY id) AS n FROM t.payment WHERE app = p_app) p;
END
$$;
SELECT t.statement(app) AS id, app FROM unnest('{public,shop}'::text[]) app ORDER BY app \g /dev/null
CREATE FUNCTION t.reconcile(p_app text) RETURNS TABLE (class text, action text) LANGUAGE plpgsql AS $$
BEGIN
  PERFORM set_config('cusown_ops.app_schema', p_app, true);
  RETURN QUERY SELECT r.class, r.action
    FROM cusown_reconcile((SELECT max(id) FROM cusown_ops.statement WHERE app_schema = p_app), apply => true) r;
END
$$;
SELECT set_eq(format($$SELECT action FROM t.reconcile(%L) WHERE class <> 'missing_at_provider' AND action <> 'worklist'$$, app),
              '{verify,fail,partial_refund}'::text[],
              app || ': reconciliation has verified, failed and refunded')
  FROM unnest('{public,shop}'::text[]) app ORDER BY app;
SELECT is(t.untouched(), :'before', 'reconciliation: no booking and no slot was touched');
SET cusown_ops.app_schema = 'public';

--
-- Refunds and figures in every order
--

-- what one provider tells of a payment: three refunds by their references, of which
-- the first figure knows two, and the second all
CREATE TABLE t.told AS
SELECT row_number() OVER () AS n, ref, amount
FROM (VALUES ('r1', 100), ('r2', 200), ('r3', 300), (NULL, 300), (NULL, 600)) v (ref, amount);
CREATE FUNCTION t.tell(p_app text, p_id uuid, p_numbers bigint[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  v record;
BEGIN
  PERFORM set_config('cusown_ops.app_schema', p_app, true);
  FOR v IN SELECT t.* FROM unnest(p_numbers) WITH ORDINALITY u (n, i) JOIN t.told t USING (n) ORDER BY i LOOP
    PERFORM cusown_payment_transition(p_id, 'partial_refund', refund_amount => v.amount, refund_ref => v.ref);
  END LOOP;
END
$$;
CREATE FUNCTION t.orders(p_numbers bigint[]) RETURNS SETOF bigint[] LANGUAGE sql AS $$
  WITH RECURSIVE o AS (
    SELECT '{}'::bigint[] AS numbers
    UNION ALL SELECT o.numbers || n FROM o, unnest(p_numbers) n WHERE n <> ALL (o.numbers))
  SELECT numbers FROM o WHERE cardinality(numbers) = cardinality(p_numbers)
$$;
-- told of payments of both applications; of some references alone, and of figures alone
CREATE TABLE t.order_told AS
SELECT app, t.add_payment(app, 'processing') AS id, numbers, expected
FROM unnest('{public,shop}'::text[]) app,
     (VALUES ('{1,2,3,4,5}'::bigint[], 600), ('{1,2,4}', 300), ('{1,3,4}', 400), ('{2,4,5}', 600), ('{4,5}', 600)) s (told, expected),
     t.orders(s.told) numbers;
SELECT t.tell(app, id, numbers || numbers) FROM t.order_told \g /dev/null
SELECT is((SELECT count(*) FROM t.order_told), 280::bigint, 'every order of refunds and figures was tried');
SELECT is_empty(
  $$SELECT app, numbers, expected, t.remembered(app, id) FROM t.order_told
     WHERE t.remembered(app, id) <> expected OR t.status_of(app, id) <> 'partially_refunded'$$,
  'what is refunded is the same in every order, and told twice');
SELECT is_empty(
  $$SELECT numbers, expected, refund_amount_cents FROM t.order_told JOIN public.payments USING (id)
     WHERE refund_amount_cents <> expected$$, 'and it is the payment''s');
SET cusown_ops.app_schema = 'public';

--
-- Expiry
--

SELECT t.add_payment('public', s) FROM unnest('{initiated,pending,processing,completed,failed,refunded}'::text[]) s \g /dev/null
SELECT is((SELECT count(*) FROM public.payments WHERE status = 'initiated' AND expires_at <= now()),
          (cusown_expire_payments(1000000, dry_run => true)).expired, 'a dry run expires what is due');
CALL cusown_run_job('expire_payments', batch_size => 3);
SELECT is_empty($$SELECT id FROM public.payments WHERE status = 'initiated' AND expires_at <= now()$$, 'and the job does so');
SELECT t.check_trails('expiry');
SELECT is(t.untouched(), :'before', 'expiry: no booking and no slot was touched');
SELECT is_empty('SELECT verify_audit_chain()', 'the chain of audit rows is still unbroken');

SELECT finish();
