--
-- demo_backlog.sql
--      5,000 bookings that nobody expired for a month.
--
SET client_min_messages = warning;

INSERT INTO slots (id, business_id, date, start_time, end_time, status, reserved_until)
SELECT md5('backlog slot ' || n)::uuid, b.id, current_date + n, '03:00', '03:30', 'reserved',
       now() - interval '29 days'
FROM (SELECT id FROM businesses ORDER BY id LIMIT 1) b, generate_series(1, 5000) n;
INSERT INTO bookings (id, business_id, slot_id, customer_name, customer_phone, booking_id, created_at)
SELECT md5('backlog booking ' || n)::uuid, s.business_id, s.id, 'Customer', '-', 'BACKLOG-' || n,
       now() - interval '30 days' + n * interval '1 minute'
FROM generate_series(1, 5000) n JOIN slots s ON s.id = md5('backlog slot ' || n)::uuid;
ANALYZE bookings, slots;
