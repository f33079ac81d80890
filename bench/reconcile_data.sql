--
-- reconcile_data.sql
--      What bench/reconcile works on: :payments payments, and as many lines of a
--      statement, of which one in a hundred does not agree; attached and loaded.
--
SET session_replication_role = replica;
INSERT INTO payments (id, booking_id, provider, provider_payment_id, amount_cents,
                      status, created_at)
SELECT md5('payment ' || i)::uuid, md5('booking ' || i)::uuid, 'razorpay',
       'pay_' || md5(i::text), 50000 + CASE WHEN i % 400 = 100 THEN 1 ELSE 0 END,
       CASE WHEN i % 400 = 200 THEN 'processing' ELSE 'completed' END::payment_status,
       timestamptz '2026-01-01Z' + i * interval '1 second'
FROM generate_series(1, :payments) i WHERE i % 400 <> 300;
RESET session_replication_role;
ANALYZE payments;

SELECT count(*) > 0 AS attached FROM cusown_attach() \gset
SELECT cusown_load_statement_csv('razorpay', 'razorpay_settlement',
  'entity_id,type,amount,currency,created_at' || string_agg(
    E'\npay_' || md5(i::text) || ',payment,50000,INR,' || 1767225600 + i, ''))
FROM generate_series(1, :payments) i WHERE i % 400 <> 0;
VACUUM ANALYZE cusown_ops.statement_line;
