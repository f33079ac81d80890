--
-- webhook_data.sql
--      What bench/webhook works on, beside payment_data.sql: an event for each of
--      its :payments payments, signed, ten to a row; payment n is pay_n at the
--      provider.
--
UPDATE payments SET provider_payment_id = 'pay_' || ltrim(replace(id::text, '-', ''), '0');
-- what our look-ups and the application's need
SELECT remedy FROM cusown_attach() WHERE remedy ~ '^CREATE INDEX' \gexec
SELECT count(*) AS secrets FROM cusown_set_webhook_secret('razorpay', convert_to(repeat('6', 64), 'UTF8')) \g /dev/null

CREATE SCHEMA bench;
CREATE TABLE bench.inbox (body_sha256 text PRIMARY KEY, body bytea NOT NULL);
-- HMAC by hand; the secret's bytes are 0x36, so that what they are XORed with is simple
CREATE FUNCTION bench.signature(body bytea) RETURNS text LANGUAGE sql IMMUTABLE
RETURN encode(sha256(decode(repeat('6a', 64), 'hex') || sha256(decode(repeat('00', 64), 'hex') || body)), 'hex');
CREATE FUNCTION bench.body(n bigint) RETURNS bytea LANGUAGE sql STABLE
RETURN convert_to(json_build_object(
  'entity', 'event', 'account_id', 'acc_BFQ7uQEaa7j2z7', 'event', 'payment.captured', 'contains', array['payment'],
  'payload', json_build_object('payment', json_build_object('entity', json_build_object(
    'id', 'pay_' || n, 'entity', 'payment', 'amount', 50000, 'currency', 'INR', 'status', 'captured',
    'order_id', 'order_' || n, 'invoice_id', NULL, 'international', false, 'method', 'upi',
    'amount_refunded', 0, 'refund_status', NULL, 'captured', true, 'description', 'Booking', 'card_id', NULL,
    'bank', NULL, 'wallet', NULL, 'vpa', 'customer@bank', 'email', 'customer@example.org', 'contact', '+910000000001',
    'notes', json_build_object('payment_id', lpad(n::text, 32, '0')::uuid, 'salon', 'Salon'),
    'fee', 1180, 'tax', 180, 'error_code', NULL, 'error_description', NULL, 'error_source', NULL,
    'error_step', NULL, 'error_reason', NULL,
    'acquirer_data', json_build_object('rrn', '000000000000', 'upi_transaction_id', 'UPI' || n),
    'created_at', 1700000000))),
  'created_at', 1700000001)::text, 'UTF8');

CREATE TABLE bench.events AS
SELECT e.n / 10 AS n, array_agg(e.body ORDER BY e.n) AS bodies,
       array_agg(encode(sha256(e.body), 'hex') ORDER BY e.n) AS hashes,
       array_agg(bench.signature(e.body) ORDER BY e.n) AS signatures
FROM (SELECT i AS n, bench.body(i + 1) AS body FROM generate_series(0, :payments - 1) i) e
GROUP BY e.n / 10;
ALTER TABLE bench.events ADD PRIMARY KEY (n);
VACUUM FULL payments;
VACUUM ANALYZE;
