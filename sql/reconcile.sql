-- Shows where a provider's statement and the payments do not agree, what applying
-- does about it, that it finds nothing new then, and that the summary balances.
\set ON_ERROR_STOP 0
\set SHOW_CONTEXT never
\getenv abs_srcdir PG_ABS_SRCDIR
\set app :abs_srcdir '/test/fixture/cusown_app.sql'
\set minimal :abs_srcdir '/test/fixture/app_minimal.sql'
SET client_min_messages = warning;
CREATE EXTENSION cusown_ops;
SELECT * FROM cusown_reconcile(1); -- fails
\set ECHO none
\set schema reconcile_app
\i :app
\set schema reconcile_shop
\i :minimal
\set ECHO all
SET search_path = reconcile_app, public;
SELECT count(*) > 0 AS attached FROM cusown_attach('reconcile_app');

-- payment n, and the booking that it is for
CREATE FUNCTION p(n int) RETURNS uuid LANGUAGE sql IMMUTABLE
RETURN rpad('f' || lpad(n::text, 7, '0'), 32, '0')::uuid;
CREATE FUNCTION b(n int) RETURNS uuid LANGUAGE sql IMMUTABLE
RETURN rpad('b' || lpad(n::text, 7, '0'), 32, '0')::uuid;
INSERT INTO businesses (id, salon_name, owner_name, whatsapp_number,
  opening_time, closing_time, slot_duration, booking_link)
VALUES (b(0), 'Salon', 'Owner', '+910000000000', '09:00', '18:00', 30, 'salon');
CREATE PROCEDURE add_payment(n int, status text, ref text, amount int DEFAULT 1000, created timestamptz DEFAULT '2026-01-02 10:00Z',
                             provider text DEFAULT 'razorpay', order_id text DEFAULT NULL, transaction_id text DEFAULT NULL,
                             currency text DEFAULT 'INR', refunded int DEFAULT 0, refunded_at timestamptz DEFAULT NULL)
LANGUAGE sql AS $$
  INSERT INTO slots (id, business_id, date, start_time, end_time)
  VALUES (p(n), b(0), current_date + n, '10:00', '10:30') ON CONFLICT DO NOTHING;
  INSERT INTO bookings (id, business_id, slot_id, customer_name, customer_phone, booking_id)
  VALUES (b(n), b(0), p(n), 'Customer', '+910000000001', 'CODE' || n);
  INSERT INTO payments (id, booking_id, provider, provider_payment_id, amount_cents, status, created_at, order_id, transaction_id, currency, refund_amount_cents, refunded_at)
  VALUES (p(n), b(n), provider::payment_provider, ref, amount, status::payment_status, created, order_id, transaction_id, currency, refunded, refunded_at);
$$;
-- whatever is reconciled, it leaves these alone
CREATE FUNCTION raise_untouchable() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION '% must not change', TG_TABLE_NAME;
END
$$;
CREATE TRIGGER untouchable BEFORE UPDATE OR DELETE ON bookings FOR EACH STATEMENT EXECUTE FUNCTION raise_untouchable();
CREATE TRIGGER untouchable BEFORE UPDATE OR DELETE ON slots FOR EACH STATEMENT EXECUTE FUNCTION raise_untouchable();
CREATE FUNCTION found(statement bigint, grace interval DEFAULT '2 days', apply boolean DEFAULT false)
RETURNS TABLE (class text, payment text, provider_ref text, ours text, theirs text, action text) LANGUAGE sql AS $$
  SELECT class, ltrim(substr(payment_id::text, 2, 7), '0'), provider_ref,
         concat_ws(' ', ours ->> 'status', ours ->> 'amount', ours ->> 'currency', 'refunded ' || nullif(ours ->> 'refunded', '0')),
         concat_ws(' ', theirs ->> 'status', theirs ->> 'amount', theirs ->> 'currency', 'refunded ' || nullif(theirs ->> 'refunded', '0')), action
  FROM cusown_reconcile(statement, grace, apply) $$;
CREATE VIEW worklist AS
SELECT kind, entity, CASE entity WHEN 'payment' THEN ltrim(substr(entity_id::text, 2, 7), '0') END AS payment, sqlstate,
       regexp_replace(regexp_replace(finding, 'statement \d+', 'statement N'), '"statement_line_id": \d+', '"statement_line_id": N') AS finding,
       times, closed_by IS NOT NULL AS closed
FROM cusown_ops.attention ORDER BY kind, entity_id;
CREATE FUNCTION payment(first int, last int) RETURNS TABLE (payment int, status text, ref text, refunded int, method text, log text, evidence boolean)
LANGUAGE sql STABLE AS $$
  SELECT n, p.status::text, p.provider_payment_id, p.refund_amount_cents, p.verification_method,
         string_agg(l.from_status || ' > ' || l.to_status || ' ' || (l.metadata ->> 'event'), ', ' ORDER BY l.created_at),
         bool_and(s.provider_ref = p.provider_payment_id OR s.provider_ref IS NULL AND l.id IS NULL)
    FROM generate_series(first, last) n JOIN payments p ON p.id = p(n)
    LEFT JOIN payment_audit_logs l ON l.payment_id = p.id
    LEFT JOIN cusown_ops.statement_line s ON s.id = (l.metadata #>> '{evidence,statement_line_id}')::bigint
   GROUP BY n, p.id ORDER BY n $$;

-- The settlement of two days, with one finding of each class.
CALL add_payment(1, 'completed', 'pay_1');
CALL add_payment(2, 'failed', 'pay_2');
CALL add_payment(3, 'processing', 'pending-3', order_id => 'order_3');
CALL add_payment(4, 'expired', 'pending-4');
CALL add_payment(5, 'completed', 'pay_5', 900);
CALL add_payment(6, 'completed', 'pay_6', currency => 'USD');
CALL add_payment(7, 'completed', 'pay_7');
CALL add_payment(8, 'completed', 'pay_8');
CALL add_payment(9, 'completed', 'pay_9', created => '2026-01-05 00:00Z');
CALL add_payment(10, 'completed', 'pay_10', order_id => 'order_10');
CALL add_payment(11, 'processing', 'pay_11', created => '2026-01-03 10:00Z');
CALL add_payment(12, 'completed', 'cash_12', provider => 'cash');
CALL add_payment(13, 'refunded', 'pay_13', refunded => 1000, refunded_at => '2026-01-02 12:00Z');
CALL add_payment(14, 'partially_refunded', 'pay_14', refunded => 300, refunded_at => '2026-01-02 12:00Z');
CALL add_payment(15, 'completed', 'pay_1', created => '2026-01-02 11:00Z');
CALL add_payment(16, 'processing', 'pay_16');
CALL add_payment(17, 'partially_refunded', 'pay_17', refunded => 300, refunded_at => '2026-01-07 12:00Z');
SELECT cusown_load_statement('razorpay', 'razorpay_settlement', jsonb_agg(jsonb_build_object(
  'entity_id', coalesce(refund, ref), 'type', CASE WHEN refund IS NULL THEN 'payment' ELSE 'refund' END, 'payment_id', CASE WHEN refund IS NOT NULL THEN ref END,
  'amount', amount, 'currency', 'INR', 'order_id', order_id, 'order_receipt', receipt,
  'created_at', extract(epoch FROM timestamptz '2026-01-02 10:00Z')::int + n * 3600))) AS s
FROM (VALUES (1, 'pay_1', NULL, 1000, NULL, NULL), (2, 'pay_2', NULL, 1000, NULL, NULL), (3, 'pay_3', NULL, 1000, 'order_3', NULL),
             (4, 'pay_4', NULL, 1000, 'order_4', p(4)), (5, 'pay_5', NULL, 1000, NULL, NULL), (6, 'pay_6', NULL, 1000, NULL, NULL),
             (7, 'pay_7', NULL, 1000, NULL, NULL), (8, 'pay_7', 'rfnd_7', 400, NULL, NULL), (9, 'pay_10', NULL, 1000, 'order_10', NULL),
             (10, 'pay_10b', NULL, 1000, 'order_10', NULL), (11, 'pay_99', NULL, 1000, NULL, NULL), (12, 'pay_13', NULL, 1000, NULL, NULL),
             (13, 'pay_13', 'rfnd_13', 1000, NULL, NULL), (14, 'pay_14', NULL, 1000, NULL, NULL), (15, 'pay_16', NULL, 1000, NULL, NULL),
             (16, 'pay_16', 'rfnd_16', 600, NULL, NULL), (17, 'pay_16', 'rfnd_16b', 400, NULL, NULL), (18, 'pay_17', NULL, 1000, NULL, NULL))
     v (n, ref, refund, amount, order_id, receipt) \gset
SELECT * FROM found(:s);
-- a preview has written nothing
SELECT (SELECT count(*) FROM payment_audit_logs) AS logs, (SELECT count(*) FROM cusown_ops.attention) AS worklist;
SELECT * FROM cusown_reconciliation_summary(:s);
SELECT * FROM found(:s, apply => true);
SELECT * FROM payment(1, 17);
SELECT action_type, count(*) FROM audit_logs GROUP BY 1 ORDER BY 1;
TABLE worklist;
-- again: nothing new
CREATE TABLE before AS SELECT (SELECT count(*) FROM payment_audit_logs) AS logs, (SELECT jsonb_agg(a ORDER BY id) FROM cusown_ops.attention a) AS worklist;
SELECT * FROM found(:s, apply => true);
SELECT b.logs = (SELECT count(*) FROM payment_audit_logs) AS logs,
       b.worklist = (SELECT jsonb_agg(a ORDER BY id) FROM cusown_ops.attention a) AS worklist FROM before b;
SELECT * FROM cusown_reconciliation_summary(:s);

-- What a human has mended is closed by the next run, of whatever statement; what
-- still holds is not.
SELECT cusown_load_statement('razorpay', 'generic',
  '[{"provider_ref": "pay_8", "status": "captured", "amount": 1000, "currency": "INR", "at": "2026-01-04"}]') AS s2 \gset
UPDATE payments SET amount_cents = 1000 WHERE id = p(5);
UPDATE payments SET currency = 'inr' WHERE id = p(6);
UPDATE payments SET status = 'completed', refund_amount_cents = 0 WHERE id = p(14);
CALL add_payment(99, 'completed', 'pay_99');
SELECT * FROM found(:s2, apply => true);
SELECT kind, payment, closed FROM worklist;
-- and the capture that came twice, once it is refunded
SELECT cusown_load_statement('razorpay', 'razorpay_settlement', '[{"entity_id": "rfnd_10b", "type": "refund", "payment_id": "pay_10b",
  "amount": 1000, "currency": "INR", "created_at": 1767571200}]') AS s3 \gset
SELECT * FROM found(:s3, apply => true);
SELECT kind, payment, closed FROM worklist WHERE kind ~ 'duplicate|missing';
SELECT * FROM cusown_reconciliation_summary(:s3);
-- by hand, audited as what concerns no table of the application
SELECT cusown_attention_resolve(id, 'known to the provider') FROM cusown_ops.attention WHERE kind = 'reconcile_duplicate_capture' AND closed_at IS NOT NULL;
UPDATE cusown_ops.attention SET closed_at = NULL, closed_by = NULL WHERE kind = 'reconcile_duplicate_capture';
SELECT cusown_attention_resolve(id, 'known to the provider') FROM cusown_ops.attention WHERE kind = 'reconcile_duplicate_capture';
SELECT entity_type, metadata ->> 'kind' AS kind FROM audit_logs WHERE action_type = 'data_corrected';

-- The generic format: what the provider has not done yet, attempts, figures of
-- refunds; UPI by its transaction.
TRUNCATE cusown_ops.statement, cusown_ops.statement_line, cusown_ops.attention;
CALL add_payment(30, 'processing', 'pending-30', provider => 'upi', transaction_id => 'upi_30');
CALL add_payment(31, 'pending', 'upi_31', provider => 'upi');
CALL add_payment(32, 'completed', 'upi_32', provider => 'upi');
CALL add_payment(33, 'initiated', 'upi_33', provider => 'upi');
CALL add_payment(34, 'failed', 'upi_34', provider => 'upi');
CALL add_payment(35, 'completed', 'upi_35', provider => 'upi');
CALL add_payment(36, 'processing', 'upi_36', provider => 'upi', order_id => 'order_36');
CALL add_payment(37, 'completed', 'upi_37', provider => 'upi');
CALL add_payment(38, 'failed', 'upi_38', provider => 'upi');
CALL add_payment(39, 'completed', 'upi_39', provider => 'upi', refunded => 0);
CALL add_payment(40, 'processing', 'upi_40', provider => 'upi', order_id => 'order_40');
CALL add_payment(41, 'completed', 'upi_41', provider => 'upi', order_id => 'order_41');
SELECT cusown_load_statement_csv('upi', 'generic', $$status,provider_ref,amount,currency,at,order_ref,refund_amount
captured,upi_30,1000,INR,2026-01-02,,
failed,upi_31,1000,INR,2026-01-02,,
processing,upi_32,1000,INR,2026-01-02,,
expired,upi_33,1000,INR,2026-01-02,,
authorized,upi_34,1000,INR,2026-01-02,,
failed,upi_35,1000,INR,2026-01-02,,
failed,upi_36,1000,INR,2026-01-02,order_36,
captured,upi_36b,1000,INR,2026-01-02 00:10,order_36,
captured,upi_37,1000,INR,2026-01-02,,250
refunded,upi_38,1000,INR,2026-01-02,,
captured,upi_39,1000,INR,2026-01-02,,0
failed,upi_40,1000,INR,2026-01-02,order_40,
failed,upi_40b,1000,INR,2026-01-02,order_40,
failed,upi_41b,1000,INR,2026-01-02,order_41,
captured,upi_41,1000,INR,2026-01-02,order_41,
failed,upi_98,700,INR,2026-01-02,,
authorized,upi_97,700,INR,2026-01-02,,
$$) AS s \gset
SELECT * FROM found(:s);
SELECT * FROM cusown_reconciliation_summary(:s);
-- all of it is younger than that
SELECT * FROM found(:s, '100 years') WHERE class = 'in_flight';
SELECT count(*) > 0 AS found FROM found(:s, apply => true);
SELECT * FROM payment(30, 41);
SELECT kind, payment, finding FROM worklist;
SELECT class, payment, action FROM found(:s, apply => true);

-- What the provider has another name for: paid again, though the payment is known by
-- its own reference and by its transaction or order too, if one statement tells of
-- both; an attempt that failed is not the one that goes on. What is known by its
-- transaction is not missing.
CALL add_payment(60, 'completed', 'upi_60', provider => 'upi', transaction_id => 'utr_60');
CALL add_payment(61, 'completed', p(61)::text, provider => 'upi', order_id => 'order_61');
CALL add_payment(62, 'completed', '', provider => 'upi', order_id => 'order_62');
CALL add_payment(63, 'processing', 'upi_63', provider => 'upi', order_id => 'order_63');
CALL add_payment(64, 'completed', 'pending-64', provider => 'upi', transaction_id => 'utr_64');
CALL add_payment(65, 'processing', 'pending-65', provider => 'upi', order_id => 'order_65');
CALL add_payment(66, 'completed', 'upi_66', provider => 'upi', transaction_id => 'utr_66');
SELECT cusown_load_statement('upi', 'generic', jsonb_agg(jsonb_build_object('provider_ref', ref, 'order_ref', order_ref, 'status', status,
  'amount', 1000, 'currency', 'INR', 'at', '2026-01-02'))) AS s
FROM (VALUES ('upi_60', NULL, 'captured'), ('utr_60', NULL, 'captured'), (p(61)::text, 'order_61', 'captured'), ('upi_61b', 'order_61', 'captured'),
             ('upi_62', 'order_62', 'captured'), ('upi_63b', 'order_63', 'failed'), ('utr_64', NULL, 'captured'), ('upi_65', 'order_65', 'failed'),
             ('upi_66', NULL, 'captured')) v (ref, order_ref, status) \gset
SELECT cusown_load_statement('upi', 'generic', '[{"provider_ref": "utr_66", "status": "captured", "amount": 1000, "currency": "INR", "at": "2026-01-02"}]') AS s2 \gset
SELECT * FROM found(:s);
SELECT * FROM found(:s2);
SELECT * FROM cusown_reconciliation_summary(:s);
-- what was paid again is settled once it is refunded, by whichever statement
SELECT cusown_load_statement('upi', 'razorpay_settlement', '[
  {"entity_id": "rf_60", "type": "refund", "payment_id": "utr_60", "amount": 1000, "currency": "INR", "created_at": 1767571200},
  {"entity_id": "rf_61", "type": "refund", "payment_id": "upi_61b", "amount": 999, "currency": "INR", "created_at": 1767571200, "order_id": "order_61"}]') AS s2 \gset
SELECT * FROM found(:s2);
SELECT * FROM found(:s);

-- Another provider's lines say nothing of a payment, and what is said of another
-- capture of its order is not said of it: what was found stays open.
CALL add_payment(70, 'completed', 'str_70', 900, provider => 'stripe', order_id => 'order_70');
CALL add_payment(71, 'completed', 'upi_71', 900, provider => 'upi', order_id => 'order_70');
CALL add_payment(72, 'completed', 'upi_72', provider => 'upi', order_id => 'order_72');
CALL add_payment(84, 'completed', 'pending-84', 900, provider => 'stripe', order_id => 'order_74');
CALL add_payment(85, 'completed', 'upi_74', 900, provider => 'upi', order_id => 'order_74');
SELECT cusown_load_statement('stripe', 'generic', '[
  {"provider_ref": "str_74", "order_ref": "order_74", "status": "captured", "amount": 1000, "currency": "INR", "at": "2026-01-02"},
  {"provider_ref": "str_70", "order_ref": "order_70", "status": "captured", "amount": 1000, "currency": "INR", "at": "2026-01-02"},
  {"provider_ref": "str_72", "order_ref": "order_72", "status": "captured", "amount": 1000, "currency": "INR", "at": "2026-01-02"}]') AS s \gset
SELECT cusown_load_statement('upi', 'generic', '[
  {"provider_ref": "upi_71", "order_ref": "order_70", "status": "captured", "amount": 1000, "currency": "INR", "at": "2026-01-03"},
  {"provider_ref": "upi_71b", "order_ref": "order_70", "status": "captured", "amount": 900, "currency": "INR", "at": "2026-01-04"},
  {"provider_ref": "upi_74", "order_ref": "order_74", "status": "captured", "amount": 900, "currency": "INR", "at": "2026-01-04"},
  {"provider_ref": "upi_72", "order_ref": "order_72", "status": "captured", "amount": 1000, "currency": "INR", "at": "2026-01-04"}]') AS s2 \gset
SELECT * FROM found(:s, apply => true);
SELECT * FROM found(:s2, apply => true);
SELECT kind, payment, closed FROM worklist WHERE finding ~ '_7[0-9]';

-- Nor where two providers happen to use one reference: not that it was refunded, nor
-- that the payment is known, nor, later, that all is well. Of two captures of an order
-- the one that has the payment's reference is the payment, whichever came first.
BEGIN;
CALL add_payment(86, 'completed', '1086', provider => 'stripe');
CALL add_payment(87, 'completed', '1087', provider => 'stripe');
CALL add_payment(88, 'completed', '1088', 900, provider => 'stripe');
CALL add_payment(89, 'processing', '1089', provider => 'stripe', order_id => 'order_89');
SELECT cusown_load_statement('upi', 'generic', '[
  {"provider_ref": "1086", "status": "refunded", "amount": 1000, "currency": "INR", "at": "2026-01-05"},
  {"provider_ref": "1087", "status": "captured", "amount": 1000, "currency": "INR", "at": "2026-01-05"},
  {"provider_ref": "1088", "status": "captured", "amount": 900, "currency": "INR", "at": "2026-01-05"}]') AS s2,
  cusown_load_statement('stripe', 'generic', '[
  {"provider_ref": "1086", "status": "captured", "amount": 1000, "currency": "INR", "at": "2026-01-02"},
  {"provider_ref": "1088", "status": "captured", "amount": 1000, "currency": "INR", "at": "2026-01-02"},
  {"provider_ref": "1089b", "order_ref": "order_89", "status": "captured", "amount": 1000, "currency": "INR", "at": "2026-01-02"},
  {"provider_ref": "1089", "order_ref": "order_89", "status": "captured", "amount": 1000, "currency": "INR", "at": "2026-01-02 09:00"}]') AS s \gset
SELECT * FROM found(:s, apply => true) WHERE provider_ref ~ '^10';
SELECT kind, payment, closed FROM worklist WHERE finding ~ '108';
ROLLBACK;

-- Of payments that share a reference the completed one is what the line is about, also
-- where it is not the first.
BEGIN;
CALL add_payment(90, 'failed', 'rzp_90');
CALL add_payment(91, 'completed', 'rzp_90', created => '2026-01-02 11:00Z');
SELECT cusown_load_statement('razorpay', 'razorpay_settlement', '[{"entity_id": "rzp_90", "type": "payment", "amount": 1000, "currency": "INR", "created_at": 1767312000}]') AS s \gset
SELECT * FROM found(:s) WHERE class <> 'missing_at_provider';
-- a refund of ours that they do not tell of is on its way while it is young
UPDATE payments SET status = 'partially_refunded', refund_amount_cents = 300, refunded_at = '2026-01-02 12:00Z' WHERE id = p(91);
SELECT * FROM found(:s) WHERE provider_ref = 'rzp_90';
SELECT * FROM found(:s, '100 years') WHERE provider_ref = 'rzp_90';
ROLLBACK;

-- Refunds in another currency are not added up, and balance in their own.
CALL add_payment(73, 'completed', 'rzp_73');
CALL add_payment(74, 'completed', 'rzp_74');
SELECT cusown_load_statement('razorpay', 'razorpay_settlement', jsonb_agg(jsonb_build_object('entity_id', ref, 'type', type, 'payment_id', payment,
  'amount', amount, 'currency', currency, 'created_at', 1767571200))) AS s
FROM (VALUES ('rzp_73', 'payment', NULL, 1000, 'INR'), ('rf_73', 'refund', 'rzp_73', 600, 'USD'),
             ('rf_74', 'refund', 'rzp_74', 300, 'INR'), ('rf_74b', 'refund', 'rzp_74', 600, 'USD')) v (ref, type, payment, amount, currency) \gset
SELECT * FROM found(:s, apply => true);
SELECT * FROM cusown_reconciliation_summary(:s);
SELECT kind, payment, closed FROM worklist WHERE finding ~ '_7[34]';
SELECT cusown_load_statement('razorpay', 'razorpay_settlement', '[{"entity_id": "rf_73b", "type": "refund", "payment_id": "rzp_73", "amount": 100, "currency": "INR",
  "created_at": 1767571200}]') AS s \gset
SELECT * FROM found(:s, apply => true);
SELECT payment, status, refunded FROM payment(73, 74);

-- What one statement tells of as failed, or under way, and another as paid was paid,
-- in whatever order they are reconciled.
CALL add_payment(67, 'processing', 'upi_67', provider => 'upi');
CALL add_payment(68, 'completed', 'upi_68', provider => 'upi');
CALL add_payment(69, 'processing', 'upi_69', provider => 'upi');
SELECT cusown_load_statement('upi', 'generic', '[
  {"provider_ref": "upi_67", "status": "failed", "amount": 1000, "currency": "INR", "at": "2026-01-06"},
  {"provider_ref": "upi_68", "status": "authorized", "amount": 1000, "currency": "INR", "at": "2026-01-06"},
  {"provider_ref": "upi_69", "status": "authorized", "amount": 1000, "currency": "INR", "at": "2026-01-06"}]') AS s \gset
SELECT * FROM found(:s);
SELECT cusown_load_statement('upi', 'generic', '[
  {"provider_ref": "upi_67", "status": "captured", "amount": 1000, "currency": "INR", "at": "2026-01-07"},
  {"provider_ref": "upi_68", "status": "captured", "amount": 1000, "currency": "INR", "at": "2026-01-07"}]') AS s2 \gset
SELECT * FROM found(:s);
SELECT * FROM found(:s2);

-- What stands for no order may be that of many lines and many payments: they are not
-- multiplied.
BEGIN;
INSERT INTO payments (id, booking_id, provider, provider_payment_id, amount_cents, status, order_id, created_at)
SELECT md5('none ' || n)::uuid, b(60), 'cash', 'pending-' || n, 1000, CASE n WHEN 500 THEN 'processing' ELSE 'completed' END::payment_status, '-', '2026-01-02Z' FROM generate_series(1, 1000) n;
SELECT cusown_load_statement('cash', 'generic', jsonb_agg(jsonb_build_object('provider_ref', 'none_' || n, 'order_ref', '-', 'status', 'captured',
  'amount', 1000, 'currency', 'INR', 'at', '2026-01-02'))) AS s FROM generate_series(1, 1000) n \gset
SET LOCAL temp_file_limit = '20MB';
SELECT class, ours ->> 'provider_ref' AS ours, action, count(*) FROM cusown_reconcile(:s) WHERE class <> 'missing_at_provider' GROUP BY 1, 2, 3 ORDER BY 1;
ROLLBACK;

-- Edges: the days of a statement, in UTC wherever one is, their beginning in and their
-- end out; what is as old as grace is not in flight any more.
BEGIN;
SET LOCAL TimeZone = 'Asia/Kolkata';
SET LOCAL DateStyle = 'German, DMY';
CALL add_payment(75, 'completed', 'cash_75', provider => 'cash', created => '2026-01-01 23:59:59.999999Z');
CALL add_payment(76, 'completed', 'cash_76', provider => 'cash', created => '2026-01-02 00:00Z');
CALL add_payment(77, 'completed', 'cash_77', provider => 'cash', created => '2026-01-02 23:59:59.999999Z');
CALL add_payment(78, 'completed', 'cash_78', provider => 'cash', created => '2026-01-03 00:00Z');
CALL add_payment(79, 'completed', 'cash_79', provider => 'cash', created => '-infinity');
CALL add_payment(80, 'completed', 'cash_80', provider => 'cash', created => 'infinity');
CALL add_payment(81, 'completed', 'cash_81', provider => 'cash', created => NULL);
SELECT cusown_load_statement('cash', 'generic', '[{"provider_ref": "cash_0", "status": "captured", "amount": 1000, "currency": "INR", "at": "2026-01-02T00:00:00"}]') AS s \gset
SELECT class, payment, provider_ref FROM found(:s, '0');
SELECT class, payment, provider_ref FROM found(:s, now() - '2026-01-02 00:00Z');
SELECT class, payment, provider_ref FROM found(:s, now() - '2026-01-02 00:00Z' + interval '1 us');
ROLLBACK;

-- Refunds that were told by hand count by their references; what is told without one
-- is a figure, which holds some of them; where references are not the provider's a
-- human must see it.
CALL add_payment(82, 'completed', 'rzp_82');
CALL add_payment(83, 'completed', 'rzp_83');
CALL add_payment(92, 'completed', 'rzp_92');
SELECT changed FROM cusown_payment_transition(p(82), 'partial_refund', refund_amount => 300, refund_ref => 'rf_82', reason => 'by hand');
SELECT changed FROM cusown_payment_transition(p(83), 'partial_refund', refund_amount => 300, refund_ref => 'of ours', reason => 'by hand');
SELECT changed FROM cusown_payment_transition(p(92), 'partial_refund', refund_amount => 500, reason => 'by hand');
SELECT cusown_load_statement('razorpay', 'razorpay_settlement', jsonb_agg(jsonb_build_object('entity_id', ref, 'type', 'refund', 'payment_id', payment,
  'amount', amount, 'currency', 'INR', 'created_at', 1767571200))) AS s
FROM (VALUES ('rf_82', 'rzp_82', 300), ('rf_82b', 'rzp_82', 200), ('rf_82c', 'rzp_82', 100), ('rf_83', 'rzp_83', 300), ('rf_83b', 'rzp_83', 200), ('rf_92', 'rzp_92', 300), ('rf_92b', 'rzp_92', 300)) v (ref, payment, amount) \gset
SELECT * FROM found(:s, apply => true) WHERE class <> 'missing_at_provider';
SELECT payment, status, refunded FROM payment(82, 92) WHERE payment IN ('82', '83', '92');
SELECT refund_ref, amount FROM cusown_ops.payment_refund WHERE payment_id IN (p(82), p(83), p(92)) ORDER BY 1, 2;
-- once the human has told of it
SELECT changed FROM cusown_payment_transition(p(83), 'partial_refund', refund_amount => 200, refund_ref => 'rf_83b', reason => 'by hand');
SELECT * FROM found(:s, apply => true) WHERE class <> 'missing_at_provider';
SELECT kind, payment, closed FROM worklist WHERE payment IN ('82', '83');

-- Nobody is told that there are none who cannot see them.
CREATE ROLE regress_reconcile_blind;
SELECT count(*) > 0 AS ddl FROM cusown_grant('regress_reconcile_blind', 'operator');
GRANT USAGE ON SCHEMA reconcile_app TO regress_reconcile_blind;
GRANT SELECT, UPDATE ON payments, bookings TO regress_reconcile_blind;
GRANT SELECT, INSERT ON audit_logs, payment_audit_logs TO regress_reconcile_blind;
SET ROLE regress_reconcile_blind;
SELECT * FROM cusown_reconcile(:s); -- fails
SELECT * FROM cusown_reconcile(:s, apply => true); -- fails
SELECT * FROM cusown_reconciliation_summary(:s); -- fails
RESET ROLE;
DROP OWNED BY regress_reconcile_blind;
DROP ROLE regress_reconcile_blind;

-- What a trigger refuses is on the worklist, and keeps nothing else.
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'not this one';
END
$$;
CREATE TRIGGER refuse BEFORE UPDATE ON payments FOR EACH ROW WHEN (OLD.provider_payment_id LIKE 'stubborn%') EXECUTE FUNCTION refuse();
CREATE PROCEDURE add_stubborn(first int, last int) LANGUAGE plpgsql AS $$
BEGIN
  FOR n IN first .. last LOOP
    CALL add_payment(n, 'processing', 'stubborn_' || n, provider => 'stripe');
  END LOOP;
END
$$;
CALL add_stubborn(50, 50);
CALL add_payment(51, 'failed', 'str_51', provider => 'stripe');
SELECT cusown_load_statement('stripe', 'generic', jsonb_agg(jsonb_build_object('provider_ref', ref, 'status', 'captured',
  'amount', 1000, 'currency', 'inr', 'at', '2026-01-02'))) AS s FROM unnest('{stubborn_50,str_51}'::text[]) ref \gset
SELECT * FROM found(:s, apply => true);
SELECT payment, sqlstate, finding FROM worklist WHERE sqlstate IS NOT NULL;
SELECT * FROM payment(50, 51);
-- so many that the tries of a call do not do
CALL add_stubborn(121, 180);
CALL add_payment(190, 'processing', 'str_190', provider => 'stripe');
SELECT cusown_load_statement('stripe', 'generic', jsonb_agg(jsonb_build_object('provider_ref', provider_payment_id, 'status', 'captured',
  'amount', 1000, 'currency', 'INR', 'at', '2026-01-02'))) AS s FROM payments WHERE provider = 'stripe' \gset
SELECT class, action, count(*) FROM found(:s, apply => true) GROUP BY 1, 2 ORDER BY 1, 2;
SELECT class, action, count(*) FROM found(:s, apply => true) GROUP BY 1, 2 ORDER BY 1, 2;
SELECT class, action, count(*) FROM found(:s, apply => true) GROUP BY 1, 2 ORDER BY 1, 2;
SELECT status FROM payments WHERE id = p(190);

-- Random data: the summary balances with the statement and with the payments, to
-- the last minor unit, and with what plain SQL says; of so little memory that the
-- payments go to disk.
SET work_mem = '64kB';
TRUNCATE cusown_ops.statement, cusown_ops.statement_line, cusown_ops.attention;
DROP TRIGGER refuse ON payments;
DELETE FROM payment_audit_logs;
DELETE FROM payments;
SELECT setseed(0.25);
CREATE TABLE theirs AS
SELECT 'ref_' || n AS ref, CASE WHEN random() < 0.9 THEN 'captured' WHEN random() < 0.5 THEN 'failed' ELSE 'authorized' END AS status,
       1 + floor(random() * 1e6)::bigint AS amount, (ARRAY['INR', 'USD'])[1 + floor(random() * 1.1)::int] AS currency,
       timestamptz '2026-02-01Z' + random() * interval '7 days' AS at,
       CASE WHEN random() < 0.2 THEN 'order_' || floor(random() * 3000) END AS order_ref, random() AS luck
FROM generate_series(1, 5000) n;
CREATE TABLE refunds AS SELECT 'rf_' || ref AS refund, ref, 1 + floor(random() * amount)::bigint AS amount, currency FROM theirs WHERE status = 'captured' AND random() < 0.1;
INSERT INTO slots (id, business_id, date, start_time, end_time) VALUES (p(200), b(0), current_date + 200, '10:00', '10:30');
INSERT INTO bookings (id, business_id, slot_id, customer_name, customer_phone, booking_id) VALUES (b(200), b(0), p(200), 'Customer', '+910000000001', 'CODE200');
INSERT INTO payments (id, booking_id, provider, provider_payment_id, amount_cents, currency, status, order_id, created_at, refund_amount_cents)
SELECT md5(ref)::uuid, b(200), 'razorpay', CASE WHEN random() < 0.9 THEN ref ELSE 'pending-1' END, amount + (random() < 0.05)::int,
       CASE WHEN random() < 0.95 THEN currency ELSE 'EUR' END,
       (ARRAY['completed', 'completed', 'completed', 'completed', 'processing', 'failed', 'initiated', 'partially_refunded'])[1 + floor(random() * 8)::int]::payment_status,
       order_ref, at, 0
FROM theirs WHERE luck < 0.95;
INSERT INTO payments (id, booking_id, provider, provider_payment_id, amount_cents, status, created_at)
SELECT md5('own' || n)::uuid, b(200), 'razorpay', 'own_' || n, 1 + floor(random() * 1e6)::int, (ARRAY['completed', 'failed'])[1 + n % 2]::payment_status,
       timestamptz '2026-02-01Z' + n * interval '1 hour' FROM generate_series(1, 300) n;
SELECT cusown_load_statement('razorpay', 'generic', jsonb_agg(to_jsonb(t) - 'luck' || jsonb_build_object('provider_ref', ref, 'at', extract(epoch FROM at)::bigint))) AS s
FROM theirs t WHERE NOT EXISTS (SELECT FROM refunds r WHERE r.ref = t.ref) \gset
SELECT cusown_load_statement('razorpay', 'razorpay_settlement', (SELECT jsonb_agg(jsonb_build_object('entity_id', ref, 'type', 'payment', 'amount', amount, 'currency', currency,
  'created_at', extract(epoch FROM at)::bigint, 'order_id', order_ref)) FROM theirs t WHERE status = 'captured') ||
 (SELECT jsonb_agg(jsonb_build_object('entity_id', refund, 'type', 'refund', 'payment_id', ref, 'amount', amount, 'currency', currency, 'created_at', 1769904000)) FROM refunds)) AS s2 \gset
CREATE PROCEDURE balance(s bigint) LANGUAGE plpgsql AS $$
DECLARE
  bad record;
BEGIN
  SELECT (SELECT jsonb_agg(x ORDER BY currency) FROM (SELECT currency, sum(theirs)::int8 AS n, sum(their_amount)::int8 AS amount, sum(their_refunds)::int8 AS refunds FROM cusown_reconciliation_summary(s) WHERE theirs > 0 OR their_refunds > 0 GROUP BY currency) x) AS summary,
         (SELECT jsonb_agg(x ORDER BY currency) FROM (SELECT currency::text, count(*) FILTER (WHERE kind = 'payment') AS n, coalesce(sum(amount) FILTER (WHERE kind = 'payment'), 0)::int8 AS amount,
                 (coalesce(sum(amount) FILTER (WHERE kind = 'refund'), 0) + coalesce(sum(refunded), 0))::int8 AS refunds FROM cusown_ops.statement_line WHERE statement_id = s GROUP BY currency) x) AS lines
    INTO bad;
  IF bad.summary IS DISTINCT FROM bad.lines THEN
    RAISE WARNING 'theirs: % %', bad.summary, bad.lines;
  END IF;
  -- each class but what agrees, from the findings
  FOR bad IN
    SELECT class, sum(theirs) AS n, sum(their_amount) AS amount FROM cusown_reconciliation_summary(s) WHERE class <> 'matched' AND theirs > 0 GROUP BY 1
    EXCEPT SELECT class, count(theirs ->> 'amount'), sum((theirs ->> 'amount')::int8) FROM cusown_reconcile(s) WHERE theirs ? 'amount' GROUP BY 1 LOOP
    RAISE WARNING 'findings: %', bad;
  END LOOP;
END
$$;
CALL balance(:s);
CALL balance(:s2);
-- what plain SQL says of lines that are matched by their reference
CREATE VIEW plain AS
SELECT CASE WHEN p.id IS NULL THEN 'missing_in_app' WHEN p.currency <> t.currency THEN 'currency_mismatch' WHEN p.amount_cents <> t.amount THEN 'amount_mismatch'
            WHEN p.status NOT IN ('completed', 'partially_refunded', 'refunded') THEN 'status_mismatch' WHEN r.ref IS NOT NULL THEN 'refund_mismatch' ELSE 'matched' END AS class,
       t.currency, count(*) AS n, sum(t.amount) AS amount
FROM theirs t LEFT JOIN payments p ON p.provider_payment_id = t.ref LEFT JOIN refunds r ON r.ref = t.ref
WHERE t.status = 'captured' AND t.order_ref IS NULL GROUP BY 1, 2;
-- without orders, so that references are all there is
UPDATE payments SET order_id = NULL;
(SELECT class, currency, n, amount FROM plain)
EXCEPT SELECT class, currency, count(*), sum(amount) FROM (
  SELECT coalesce(f.class, 'matched') AS class, t.currency, t.amount FROM theirs t LEFT JOIN cusown_reconcile(:s2) f ON f.provider_ref = t.ref AND f.theirs IS NOT NULL
  WHERE t.status = 'captured' AND t.order_ref IS NULL) x GROUP BY 1, 2;
CALL balance(:s2);
SELECT class, currency, theirs, their_amount, their_refunds, ours, our_amount, our_refunds FROM cusown_reconciliation_summary(:s2);
-- ours: all payments that were matched, or are completed within the days
CREATE FUNCTION ours_balance(s bigint) RETURNS boolean LANGUAGE sql AS $$
SELECT (SELECT sum(our_amount) FROM cusown_reconciliation_summary(s)) =
       (SELECT sum(amount_cents) FROM payments p WHERE EXISTS (SELECT FROM theirs t WHERE t.ref = p.provider_payment_id AND t.status = 'captured')
          OR p.status IN ('completed', 'partially_refunded') AND NOT EXISTS (SELECT FROM theirs t WHERE t.ref = p.provider_payment_id)
             AND created_at >= '2026-02-01Z' AND created_at < (SELECT max(period_until) FROM cusown_ops.statement WHERE id = s)) $$;
SELECT ours_balance(:s2);
-- also where lines that nobody knew are told to be transactions of what is matched
UPDATE payments p SET transaction_id = t.ref
FROM (SELECT id, row_number() OVER (ORDER BY id) AS n FROM payments JOIN theirs ON ref = provider_payment_id AND theirs.status = 'captured') m
JOIN (SELECT ref, row_number() OVER (ORDER BY ref) AS n FROM theirs WHERE luck >= 0.95 AND status = 'captured') t USING (n)
WHERE p.id = m.id;
SELECT ours_balance(:s2);
CALL balance(:s2);
SELECT class, count(*) FROM cusown_reconcile(:s2) WHERE class IN ('duplicate_capture', 'missing_in_app') GROUP BY 1;
UPDATE payments SET transaction_id = NULL;
-- and whichever way the payments are read, applied until nothing is left
CREATE TEMP TABLE few AS SELECT class, payment_id, provider_ref, ours, theirs, action FROM cusown_reconcile(:s2);
UPDATE cusown_ops.statement SET line_count = 10001 WHERE id = :s2;
SELECT count(*) FROM (TABLE few EXCEPT SELECT * FROM cusown_reconcile(:s2)) x;
SELECT count(*) FROM (SELECT * FROM cusown_reconcile(:s2) EXCEPT TABLE few) x;
SELECT action, count(*) FROM cusown_reconcile(:s2, apply => true) GROUP BY 1 ORDER BY 1;
SELECT action, count(*) FROM cusown_reconcile(:s2, apply => true) GROUP BY 1 ORDER BY 1;
CALL balance(:s2);
SELECT count(*) AS over FROM payments WHERE refund_amount_cents > amount_cents;
RESET work_mem;

-- An application that has only what the runbooks name.
SELECT count(*) > 0 AS attached FROM cusown_attach('reconcile_shop', :'minimal_mapping');
SET cusown_ops.app_schema = 'reconcile_shop';
SET search_path = public;
INSERT INTO reconcile_shop.charge (ref, state, provider, provider_code, amount, currency, made_at)
SELECT md5('c' || n)::uuid, s, 'razorpay', 'pay_' || n, 100, c, '2026-01-02Z'
FROM (VALUES (1, 'completed', 'INR'), (2, 'failed', 'INR'), (3, 'strange', 'INR'), (4, NULL, 'INR'), (5, 'completed', NULL), (6, 'completed', 'INR'), (7, 'completed', 'INR')) v (n, s, c);
SELECT cusown_load_statement('razorpay', 'razorpay_settlement', jsonb_agg(jsonb_build_object('entity_id', 'pay_' || n, 'type', 'payment', 'amount', 100,
  'currency', 'INR', 'created_at', 1767312000)) || '[{"entity_id": "r6", "type": "refund", "payment_id": "pay_6", "amount": 40, "currency": "INR", "created_at": 1767312000}]') AS s
FROM generate_series(1, 6) n \gset
SELECT class, provider_ref, ours - 'provider_ref' AS ours, theirs - '{statement_line_id,at}'::text[] AS theirs, action FROM cusown_reconcile(:s);
SELECT class, provider_ref, action FROM cusown_reconcile(:s, apply => true);
SELECT provider_code, state FROM reconcile_shop.charge ORDER BY 1;
SELECT class, provider_ref, action FROM cusown_reconcile(:s, apply => true);
SELECT * FROM cusown_reconciliation_summary(:s);
-- of another application there is none
SET cusown_ops.app_schema = 'reconcile_app';
SELECT * FROM cusown_reconcile(:s); -- fails
SELECT * FROM cusown_reconciliation_summary(:s); -- fails
SELECT * FROM cusown_reconcile(NULL); -- fails
SELECT * FROM cusown_reconcile(:s2, NULL); -- fails
SELECT * FROM cusown_reconcile(:s2, '-1 s'); -- fails
SELECT * FROM cusown_reconcile(:s2, apply => NULL); -- fails
BEGIN READ ONLY;
SELECT count(*) > 0 AS found FROM cusown_reconcile(:s2);
SELECT * FROM cusown_reconcile(:s2, apply => true); -- fails
ROLLBACK;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT count(*) > 0 AS found FROM cusown_reconcile(:s2);
SELECT * FROM cusown_reconcile(:s2, apply => true); -- fails
ROLLBACK;
RESET cusown_ops.app_schema;
RESET search_path;
SET client_min_messages = warning;

DROP SCHEMA reconcile_app, reconcile_shop CASCADE;
DROP EXTENSION cusown_ops;
