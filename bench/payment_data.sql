--
-- payment_data.sql
--      What bench/payment works on: :payments payments that are processing, each of a
--      booking of its own; slot, booking and payment n have the same id.
--
SET session_replication_role = replica;
INSERT INTO businesses (id, salon_name, owner_name, whatsapp_number,
                        opening_time, closing_time, slot_duration, booking_link)
VALUES (lpad('0', 32, '0')::uuid, 'Salon', 'Owner', '+910000000000', '09:00', '18:00', 30, 'salon');
INSERT INTO slots (id, business_id, date, start_time, end_time, status)
SELECT lpad(i::text, 32, '0')::uuid, lpad('0', 32, '0')::uuid, current_date + i, '10:00', '10:30', 'booked'
FROM generate_series(1, :payments) i;
INSERT INTO bookings (id, business_id, slot_id, customer_name, customer_phone, booking_id, status)
SELECT id, business_id, id, 'Customer', '+910000000001', 'B' || id, 'confirmed' FROM slots;
INSERT INTO payments (id, booking_id, provider, provider_payment_id, amount_cents, status)
SELECT id, id, 'razorpay', id, 50000, 'processing' FROM bookings;
CREATE INDEX ON payments (provider, provider_payment_id);
ALTER TABLE audit_logs DISABLE TRIGGER USER;
RESET session_replication_role;
CREATE EXTENSION cusown_ops;
SELECT count(*) AS names FROM cusown_attach() \g /dev/null
VACUUM ANALYZE;
