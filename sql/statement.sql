-- Shows how a provider's statement is loaded: what is kept of it, what is refused,
-- and that the same report adds nothing.
\set ON_ERROR_STOP 0
\set SHOW_CONTEXT never
\getenv abs_srcdir PG_ABS_SRCDIR
\set app :abs_srcdir '/test/fixture/cusown_app.sql'
\set minimal :abs_srcdir '/test/fixture/app_minimal.sql'
SET client_min_messages = warning;
CREATE EXTENSION cusown_ops;
SELECT cusown_load_statement('razorpay', 'generic', '[]'); -- fails
\set ECHO none
\set schema statement_app
\i :app
\set schema statement_shop
\i :minimal
\set ECHO all
SET search_path = statement_app, public;
SELECT count(*) > 0 AS attached FROM cusown_attach('statement_app');
CREATE VIEW statements AS
SELECT dense_rank() OVER (ORDER BY id) AS n, app_schema, provider, format, line_count, skipped_count,
       period_from AT TIME ZONE 'UTC' AS period_from, period_until AT TIME ZONE 'UTC' AS period_until
FROM cusown_ops.statement;
CREATE VIEW lines AS
SELECT dense_rank() OVER (ORDER BY statement_id) AS n, row_number AS row, kind, reference, provider_ref, order_ref,
       left(receipt::text, 8) AS receipt, status, amount, currency, refunded, at AT TIME ZONE 'UTC' AS at, fee, tax, settlement_utr
FROM cusown_ops.statement_line;

-- The combined settlement report, as the provider's interface gives it.
SELECT $${"entity": "collection", "count": 4, "items": [
  {"entity_id": "pay_1", "type": "payment", "debit": 0, "credit": 97640, "amount": 100000, "currency": "INR", "fee": 2360, "tax": 360,
   "on_hold": false, "settled": true, "created_at": 1767225599, "settled_at": 1767400000, "settlement_id": "setl_1", "notes": {"phone": "+919876543210"},
   "payment_id": null, "settlement_utr": "UTR1", "order_id": "order_1", "order_receipt": "0f9c1d7e-0000-4000-8000-000000000001", "method": "card",
   "card_network": "Visa", "card_type": "credit", "email": "asha@example.com", "contact": "+919876543210", "description": "Asha Rao"},
  {"entity_id": "rfnd_1", "type": "refund", "amount": 40000, "currency": "inr", "fee": 0, "tax": 0, "created_at": 1767225600,
   "payment_id": "pay_1", "settlement_utr": "UTR1", "order_id": "order_1", "order_receipt": "an order of ours"},
  {"entity_id": "adj_1", "type": "adjustment", "amount": -500, "currency": "INR", "created_at": 1767225600},
  {"entity_id": "pay_2", "type": "payment", "amount": "50000", "currency": "INR", "created_at": "1767312000"}]}$$ AS report \gset
SELECT cusown_load_statement('razorpay', 'razorpay_settlement', :'report') AS id \gset
TABLE statements;
SELECT * FROM lines ORDER BY n, row;
-- nothing of whoever paid is kept, neither in these tables nor anywhere of ours
SELECT count(*) AS personal FROM cusown_ops.statement s FULL JOIN cusown_ops.statement_line l ON l.statement_id = s.id
WHERE to_jsonb(s)::text || to_jsonb(l)::text ~* 'asha|98765|example|visa|credit|setl|our';
SELECT string_agg(attname, ', ' ORDER BY attnum) AS columns FROM pg_attribute
WHERE attrelid = 'cusown_ops.statement_line'::regclass AND attnum > 0;

-- Again, in another order and as CSV, it is the same; of another provider, or in
-- another application, it is not.
SELECT cusown_load_statement('razorpay', 'razorpay_settlement', :'report') = :id AS same;
SELECT $$entity_id,type,amount,currency,fee,tax,order_id,payment_id,settlement_utr,created_at,order_receipt,email
"pay_2",payment,50000,INR,,,,,,1767312000,,"a,""b"""

rfnd_1,refund,40000,INR,0,0,order_1,pay_1,UTR1,1767225600,"an order
of ours",
 pay_1 ,payment,100000,inr,2360,360,order_1,,UTR1,1767225599,0F9C1D7E-0000-4000-8000-000000000001,
$$ AS csv \gset
SELECT cusown_load_statement_csv('razorpay', 'razorpay_settlement', :'csv') = :id AS same;
SELECT cusown_load_statement_csv('stripe', 'razorpay_settlement', E'\ufeff' || :'csv') = :id AS same;
SELECT cusown_load_statement_csv('stripe', 'razorpay_settlement', replace(:'csv', E'\n', E'\r\n')) = :id AS same;
SELECT cusown_load_statement_csv('razorpay', 'razorpay_settlement', replace(:'csv', '50000', '50001')) = :id AS same;
SELECT count(*) > 0 AS attached FROM cusown_attach('statement_shop', :'minimal_mapping');
SET cusown_ops.app_schema = 'statement_shop';
SELECT cusown_load_statement('razorpay', 'razorpay_settlement', :'report') = :id AS same;
SET cusown_ops.app_schema = 'statement_app';
TABLE statements;
SELECT count(*) FROM lines;
DELETE FROM cusown_ops.statement;
DELETE FROM cusown_ops.statement_line;

-- The generic format: words for a status, moments with and without a zone, and
-- nothing depends on the session.
CREATE PROCEDURE load_moments() LANGUAGE sql AS $$
  DELETE FROM cusown_ops.statement;
  DELETE FROM cusown_ops.statement_line;
  SELECT cusown_load_statement('upi', 'generic', '[
    {"provider_ref": "u1", "status": "captured", "amount": 100, "currency": "INR", "at": "2026-01-02", "order_ref": "o1"},
    {"provider_ref": "u2", "status": "SUCCEEDED", "amount": 1e3, "currency": "usd", "at": "2026-01-02 03:04", "refund_amount": 0},
    {"provider_ref": "u3", "status": "failed", "amount": 100, "currency": "INR", "at": "2026-01-02T03:04:05.678Z"},
    {"provider_ref": "u4", "status": "expired", "amount": 100, "currency": "INR", "at": "2026-01-02T03:04:05+05:30"},
    {"provider_ref": "u5", "status": "authorized", "amount": 100, "currency": "INR", "at": "2026-01-02T03:04:05-0100"},
    {"provider_ref": "u6", "status": "refunded", "amount": 100, "currency": "INR", "at": 1767312000},
    {"provider_ref": "u7", "status": "partially_refunded", "amount": 100, "currency": "INR", "at": "1767312000", "refund_amount": 30},
    {"provider_ref": "u8", "status": "completed", "amount": 1000000000000, "currency": "INR", "at": "2024-02-29", "refund_amount": "", "order_ref": "0f9c1d7e-0000-4000-8000-000000000001"}]');
$$;
CALL load_moments();
SELECT row, provider_ref, order_ref, receipt, status, amount, currency, refunded, at FROM lines ORDER BY row;
CREATE TABLE as_it_was AS SELECT row, provider_ref, at FROM lines;
SET TimeZone = 'Asia/Kolkata';
SET DateStyle = 'German, DMY';
CALL load_moments();
SELECT count(*) AS otherwise FROM lines l FULL JOIN as_it_was w USING (row, provider_ref, at) WHERE w.row IS NULL OR l.row IS NULL;
RESET TimeZone;
RESET DateStyle;
DELETE FROM cusown_ops.statement;
DELETE FROM cusown_ops.statement_line;

-- What is malformed is refused by its number, without what stands there.
\set VERBOSITY default
CREATE PROCEDURE try(what text, statement jsonb, format text DEFAULT 'generic') LANGUAGE plpgsql AS $$
DECLARE
  detail text;
BEGIN
  PERFORM cusown_load_statement('razorpay', format, statement);
  RAISE WARNING '%: loaded', what;
EXCEPTION WHEN OTHERS THEN
  GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL;
  RAISE WARNING '%: % % %', what, SQLSTATE, SQLERRM, detail;
END
$$;
DO $$
DECLARE
  good jsonb := '{"provider_ref": "p", "status": "captured", "amount": 100, "currency": "INR", "at": 1767312000}';
  line jsonb := '{"entity_id": "pay_1", "type": "payment", "amount": 100, "currency": "INR", "created_at": 1767312000}';
  bad record;
BEGIN
  FOR bad IN SELECT * FROM jsonb_each('{"provider_ref": null, "status": "lost", "amount": "12.50", "currency": "RUPEE", "at": "yesterday"}') LOOP
    CALL try(bad.key, jsonb_build_array(good, good || jsonb_build_object('provider_ref', 'q') || jsonb_build_object(bad.key, bad.value)));
  END LOOP;
  FOR bad IN SELECT 'amount' AS key, v AS value FROM unnest(ARRAY['0', '-1', '"NaN"', '1e300', '"1e2"', '1.5', '100.00', '"0x10"', '" "', 'true', '{}', '[1]', '1000000000001', '"99999999999999999999999999"', '"1_000"']) v
             UNION ALL SELECT 'at', v FROM unnest(ARRAY['"2026-02-30"', '"2026-13-01"', '"2026-01-02T24:00"', '"2026-01-02T10:00:60"', '"2026-01-02 10:00 IST"', '"infinity"', '-1', '253402300800', '"2026-01-02x"', '"20260102T1000"', '"2026-01-02T10:00+5"']) v
             UNION ALL SELECT 'currency', v FROM unnest(ARRAY['"IN"', '"1NR"', '"₹"']) v
             UNION ALL SELECT 'provider_ref', v FROM unnest(ARRAY['""', to_json(repeat('x', 256))::text, '"a\nb"', '"a\u007fb"']) v
             UNION ALL SELECT 'order_ref', v FROM unnest(ARRAY[to_json(repeat('x', 256))::text, '"a\u0001"']) v
             UNION ALL SELECT 'refund_amount', v FROM unnest(ARRAY['101', '-1', '"all"']) v LOOP
    CALL try(bad.key || ' ' || left(bad.value, 20), jsonb_build_array(good || jsonb_build_object(bad.key, bad.value::jsonb)));
  END LOOP;
  CALL try('partly', jsonb_build_array(good || '{"status": "partially_refunded"}'));
  CALL try('failed and refunded', jsonb_build_array(good || '{"status": "failed", "refund_amount": 1}'));
  CALL try('twice', jsonb_build_array(good, good || '{"provider_ref": "q"}', good || '{"amount": 7}'));
  CALL try('twice alike', jsonb_build_array(good, good));
  CALL try('null', jsonb_build_array(good, NULL));
  CALL try('array', jsonb_build_array(good, jsonb_build_array(good)));
  CALL try('empty', '[]');
  CALL try('no items', '{"items": []}');
  CALL try('object', '{"rows": []}');
  CALL try('items', '{"items": {"a": 1}}');
  CALL try('scalar', '12');
  CALL try('text', '"provider_ref"');
  CALL try('type', jsonb_build_array(line || '{"type": "dispute"}'), 'razorpay_settlement');
  CALL try('refund of nothing', jsonb_build_array(line || '{"type": "refund"}'), 'razorpay_settlement');
  CALL try('fee', jsonb_build_array(line || '{"fee": -1}'), 'razorpay_settlement');
  CALL try('moment', jsonb_build_array(line || '{"created_at": "2026-01-02"}'), 'razorpay_settlement');
  CALL try('only adjustments', jsonb_build_array(line || '{"type": "adjustment"}'), 'razorpay_settlement');
  CALL try('format', '[]', 'excel');
  SELECT jsonb_agg(0) INTO good FROM generate_series(1, 2000001);
  CALL try('too many', good);
END
$$;
-- a payment and a refund may have one name
SELECT cusown_load_statement('razorpay', 'razorpay_settlement', '[
  {"entity_id": "x", "type": "payment", "amount": 100, "currency": "INR", "created_at": 1767312000},
  {"entity_id": "x", "type": "refund", "amount": 100, "currency": "INR", "created_at": 1767312000, "payment_id": "x"}]') > 0 AS loaded;
-- the repeated row may be thousands of rows away
CREATE FUNCTION rows_up_to(n int) RETURNS jsonb LANGUAGE sql RETURN (
  SELECT jsonb_agg(jsonb_build_object('provider_ref', 'far_' || i, 'status', 'captured', 'amount', i, 'currency', 'INR', 'at', 1767312000 + i))
  FROM generate_series(1, n) i);
SELECT cusown_load_statement('razorpay', 'generic', rows_up_to(12000) || jsonb_set(rows_up_to(1), '{0,amount}', '9')); -- fails
SELECT cusown_load_statement('razorpay', 'generic', rows_up_to(12000)) > 0 AS loaded;
SELECT line_count, (SELECT count(*) FROM cusown_ops.statement_line l WHERE l.statement_id = s.id) AS lines,
       (SELECT sum(amount) FROM cusown_ops.statement_line l WHERE l.statement_id = s.id) AS amount
FROM cusown_ops.statement s WHERE format = 'generic';

-- CSV: columns in any order, quotes, line ends, and what is refused.
CREATE PROCEDURE try_csv(what text, csv text) LANGUAGE plpgsql AS $$
DECLARE
  detail text;
BEGIN
  PERFORM cusown_load_statement_csv('upi', 'generic', csv);
  RAISE WARNING '%: loaded', what;
EXCEPTION WHEN OTHERS THEN
  GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL;
  RAISE WARNING '%: % % %', what, SQLSTATE, SQLERRM, detail;
END
$$;
CALL try_csv('empty', '');
CALL try_csv('an empty line', E'\n');
CALL try_csv('only names', 'provider_ref,status,amount,currency,at');
CALL try_csv('only names, and a line end', E'provider_ref,status,amount,currency,at\n\n');
CALL try_csv('a column is missing', E'provider_ref,status,amount,at\np,captured,100,1767312000');
CALL try_csv('a column twice', E'at,provider_ref,status,AT,amount,currency\n1,p,captured,1,100,INR');
CALL try_csv('columns', array_to_string(array_fill('x'::text, ARRAY[257]), ','));
CALL try_csv('too few', E'provider_ref,status,amount,currency,at\np,captured,100,INR,1767312000\nq,captured');
CALL try_csv('too many', E'provider_ref,status,amount,currency,at\np,captured,100,INR,1767312000,');
CALL try_csv('quotes', E'provider_ref,status,amount,currency,at\np,captured,100,INR,1767312000\n"q,captured,100,INR,1767312000');
CALL try_csv('a quoted name', E'"provider_ref,status,amount,currency,at\n');
CALL try_csv('line ends', E'provider_ref,status,amount,currency,at\r\np,captured,100,INR,1767312000\nq,captured,100,INR,1767312000');
CALL try_csv('end', E'provider_ref,status,amount,currency,at\np,captured,100,INR,1767312000\n\\.\nq,captured,100,INR,1767312000');
CALL try_csv('amount', E'provider_ref,status,amount,currency,at\n\np,captured,"1,000",INR,1767312000');
CALL try_csv('a line in a reference', E'provider_ref,status,amount,currency,at\n"p\nq",captured,1000,INR,1767312000');
CALL try_csv('in any order', E' At ,amount, Currency,x,"PROVIDER_REF",status,customer\n2026-01-05T10:00Z,"100",INR,,"say ""hi"", \\.",captured,"Asha\nRao"');
SELECT row, provider_ref, amount, currency, at FROM lines WHERE provider_ref ~ 'hi';
-- read in the server's encoding, whatever the client's
SET client_encoding = 'LATIN1';
CALL try_csv('encoding', E'provider_ref,status,amount,currency,at\n\u0440\u0443\u0431,captured,100,INR,1767312000');
RESET client_encoding;
SELECT provider_ref FROM lines WHERE provider_ref ~ '^\u0440';

-- Arguments.
SELECT cusown_load_statement(NULL, 'generic', '[]'); -- fails
SELECT cusown_load_statement('upi', NULL, '[]'); -- fails
SELECT cusown_load_statement('upi', 'generic', NULL); -- fails
SELECT cusown_load_statement_csv('upi', 'generic', NULL); -- fails
SELECT cusown_load_statement('', 'generic', '[]'); -- fails
SELECT cusown_load_statement(repeat('x', 64), 'generic', '[]'); -- fails
BEGIN READ ONLY;
SELECT cusown_load_statement('upi', 'generic', '[]'); -- fails
ROLLBACK;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT cusown_load_statement('upi', 'generic', '[]'); -- fails
ROLLBACK;

-- A line of a statement is evidence for a late capture, of the same application.
INSERT INTO businesses (id, salon_name, owner_name, whatsapp_number, opening_time, closing_time, slot_duration, booking_link)
VALUES (md5('z')::uuid, 'Salon', 'Owner', '+910000000000', '09:00', '18:00', 30, 'salon');
INSERT INTO slots (id, business_id, date, start_time, end_time) VALUES (md5('s')::uuid, md5('z')::uuid, '2026-01-02', '10:00', '10:30');
INSERT INTO bookings (id, business_id, slot_id, customer_name, customer_phone, booking_id)
VALUES (md5('b')::uuid, md5('z')::uuid, md5('s')::uuid, 'Customer', '+910000000001', 'CODE');
INSERT INTO payments (id, booking_id, provider, provider_payment_id, amount_cents, status)
VALUES (md5('p')::uuid, md5('b')::uuid, 'razorpay', 'x', 100, 'failed');
SELECT id AS line FROM cusown_ops.statement_line WHERE provider_ref = 'x' AND kind = 'payment' \gset
SET cusown_ops.app_schema = 'statement_shop';
SELECT cusown_load_statement('razorpay', 'razorpay_settlement', :'report') > 0 AS loaded;
SELECT max(id) AS foreign_line FROM cusown_ops.statement_line WHERE app_schema = 'statement_shop' \gset
SET cusown_ops.app_schema = 'statement_app';
\set VERBOSITY terse
SELECT * FROM cusown_payment_transition(md5('p')::uuid, 'verify', evidence => jsonb_build_object('statement_line_id', :foreign_line)); -- fails
SELECT * FROM cusown_payment_transition(md5('p')::uuid, 'verify', evidence => jsonb_build_object('statement_line_id', :line + 1000000)); -- fails
-- nor is one that says that no money came; but a refund says that some did
SELECT cusown_load_statement('razorpay', 'generic', '[{"provider_ref": "gone", "status": "failed", "amount": 100, "currency": "INR", "at": 1767312000}]') > 0 AS loaded;
SELECT id AS line_of_failure FROM cusown_ops.statement_line WHERE app_schema = 'statement_app' AND provider_ref = 'gone' \gset
SELECT * FROM cusown_payment_transition(md5('p')::uuid, 'verify', evidence => jsonb_build_object('statement_line_id', :line_of_failure)); -- fails
SELECT id AS line_of_refund FROM cusown_ops.statement_line WHERE app_schema = 'statement_app' AND kind = 'refund' ORDER BY id LIMIT 1 \gset
SELECT to_status FROM cusown_payment_transition(md5('p')::uuid, 'verify', evidence => jsonb_build_object('statement_line_id', :line_of_refund), dry_run => true);
SELECT from_status, to_status, changed FROM cusown_payment_transition(md5('p')::uuid, 'verify', evidence => jsonb_build_object('statement_line_id', :line));
SELECT (metadata #>> '{evidence,statement_line_id}')::bigint = :line AS told FROM payment_audit_logs;
-- of the payment that it is about, as reconciliation matches them
SELECT cusown_load_statement('upi', 'generic', jsonb_build_array(
  jsonb_build_object('provider_ref', 'U1', 'order_ref', 'order_u', 'status', 'captured', 'amount', 100, 'currency', 'INR', 'at', 1767312000),
  jsonb_build_object('provider_ref', 'U2', 'order_ref', md5('by receipt')::uuid, 'status', 'captured', 'amount', 100, 'currency', 'INR', 'at', 1767312000))) AS s \gset
SELECT max(id) FILTER (WHERE provider_ref = 'U1') AS u1, max(id) FILTER (WHERE provider_ref = 'U2') AS u2 FROM cusown_ops.statement_line WHERE statement_id = :s AND app_schema = 'statement_app' \gset
INSERT INTO payments (id, booking_id, provider, provider_payment_id, order_id, transaction_id, amount_cents, status)
SELECT md5(who)::uuid, md5('b')::uuid, provider::payment_provider, ref, order_id, transaction_id, 100, 'expired'
FROM (VALUES ('another', 'upi', 'U3', NULL, NULL), ('by order', 'upi', 'pending-1', 'order_u', NULL), ('by transaction', 'upi', 'pending-2', NULL, 'U1'),
             ('by receipt', 'upi', md5('by receipt'), NULL, NULL), ('by name', 'upi', 'U1', NULL, NULL), ('elsewhere', 'razorpay', 'U1', NULL, NULL)) v (who, provider, ref, order_id, transaction_id);
CREATE FUNCTION outcome(who text, line bigint, ref text DEFAULT NULL) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  v_detail text;
BEGIN
  RETURN (cusown_payment_transition(md5(who)::uuid, 'verify', evidence => jsonb_build_object('statement_line_id', line), provider_ref => ref, dry_run => true)).to_status;
EXCEPTION WHEN SQLSTATE 'UO003' THEN
  GET STACKED DIAGNOSTICS v_detail = PG_EXCEPTION_DETAIL;
  RETURN replace(v_detail, line::text, 'N');
END
$$;
SELECT who, outcome(who, :u1) AS u1, outcome(who, :u2) AS u2
FROM unnest('{another,by order,by transaction,by receipt,by name,elsewhere}'::text[]) who;
-- once no other payment has its reference; the operator may say that it is this one's
DELETE FROM payments WHERE id = md5('by name')::uuid;
SELECT who, outcome(who, :u1) AS u1, outcome(who, :u1, 'U1') AS named FROM unnest('{another,by order,by transaction,by receipt}'::text[]) who;
-- and where two have it, the one that is paid has it
INSERT INTO payments (id, booking_id, provider, provider_payment_id, amount_cents, status)
VALUES (md5('by name')::uuid, md5('b')::uuid, 'upi', 'U1', 100, 'failed'), (md5('twin')::uuid, md5('b')::uuid, 'upi', 'U1', 100, 'failed');
SELECT outcome('by name', :u1);
UPDATE payments SET status = 'refunded' WHERE id = md5('twin')::uuid;
SELECT outcome('by name', :u1);
-- so no line verifies two payments: the one that it does gets its reference
DELETE FROM payments WHERE id <> md5('p')::uuid;
INSERT INTO payments (id, booking_id, provider, provider_payment_id, order_id, amount_cents, status)
SELECT md5(who)::uuid, md5('b')::uuid, 'upi', 'pending-' || n, 'order_u', 100, 'failed'
FROM unnest('{one,other}'::text[]) WITH ORDINALITY v (who, n);
SELECT to_status FROM cusown_payment_transition(md5('one')::uuid, 'verify', evidence => jsonb_build_object('statement_line_id', :u1));
SELECT provider_payment_id, status FROM payments WHERE order_id = 'order_u' ORDER BY 1;
SELECT outcome('other', :u1), outcome('other', :u1, 'U1');
-- an application that has only references
SET cusown_ops.app_schema = 'statement_shop';
INSERT INTO statement_shop.charge (ref, state, provider, provider_code)
VALUES (md5('by name')::uuid, 'failed', 'razorpay', 'pay_1'), (md5('another')::uuid, 'failed', 'razorpay', 'y');
SELECT id AS line FROM cusown_ops.statement_line WHERE app_schema = 'statement_shop' AND provider_ref = 'pay_1' AND kind = 'payment' \gset
SELECT who, outcome(who, :line) FROM unnest('{another,by name}'::text[]) who;
DELETE FROM statement_shop.charge;
SET cusown_ops.app_schema = 'statement_app';
DELETE FROM payments WHERE id <> md5('p')::uuid;
DROP FUNCTION outcome;

-- What was kept for long goes: header first, so that nobody reconciles half of a
-- statement; of an application that was detached, sooner.
UPDATE cusown_ops.statement SET loaded_at = now() - interval '399 days' WHERE format = 'generic' AND app_schema = 'statement_app';
UPDATE cusown_ops.statement SET loaded_at = now() - interval '401 days' WHERE format = 'razorpay_settlement' AND app_schema = 'statement_app';
UPDATE cusown_ops.statement SET loaded_at = now() - interval '8 days' WHERE app_schema = 'statement_shop';
SELECT * FROM cusown_prune_history();
SELECT app_schema, format, count(*) FROM cusown_ops.statement GROUP BY 1, 2 ORDER BY 1, 2;
SELECT app_schema, count(*) FROM cusown_ops.statement_line GROUP BY 1 ORDER BY 1;
SELECT cusown_detach('statement_shop');
SELECT * FROM cusown_prune_history();
SELECT app_schema, count(*) FROM cusown_ops.statement_line GROUP BY 1 ORDER BY 1;
UPDATE cusown_ops.statement SET loaded_at = now() - interval '401 days';
SELECT * FROM cusown_prune_history(1000);
SELECT * FROM cusown_prune_history(100000);
SELECT count(*) FROM cusown_ops.statement_line;
RESET cusown_ops.app_schema;
RESET search_path;
SET client_min_messages = warning;

DROP SCHEMA statement_app, statement_shop CASCADE;
DROP EXTENSION cusown_ops;
