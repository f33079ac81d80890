--
-- expiry_data.sql
--      What bench/expiry works on: :bookings bookings, :due of them due.
--
SET session_replication_role = replica;
INSERT INTO businesses (id, salon_name, owner_name, whatsapp_number,
                        opening_time, closing_time, slot_duration, booking_link)
SELECT md5('business ' || i)::uuid, 'Salon', 'Owner', '+910000000000',
       '09:00', '18:00', 30, 'salon-' || i
FROM generate_series(1, 1000) i;

-- the due ones are spread evenly
INSERT INTO slots (id, business_id, date, start_time, end_time, status, reserved_until)
SELECT md5('slot ' || i)::uuid, md5('business ' || (i % 1000 + 1))::uuid,
       date '2020-01-01' + i / 1000, '10:00', '10:30',
       CASE WHEN i % (:bookings / :due) = 0 THEN 'reserved' ELSE 'booked' END,
       CASE WHEN i % (:bookings / :due) = 0 THEN now() - interval '1 day' END
FROM generate_series(1, :bookings) i;
INSERT INTO bookings (id, business_id, slot_id, customer_name, customer_phone,
                      booking_id, status, created_at)
SELECT md5('booking ' || i)::uuid, md5('business ' || (i % 1000 + 1))::uuid,
       md5('slot ' || i)::uuid, 'Customer', '+910000000001', 'B' || i,
       CASE WHEN i % (:bookings / :due) = 0 THEN 'pending' ELSE 'confirmed' END,
       now() - interval '3 days' + i * interval '1 millisecond'
FROM generate_series(1, :bookings) i;
INSERT INTO payments (booking_id, provider, provider_payment_id, amount_cents,
                      status, created_at)
SELECT md5('booking ' || i)::uuid, 'razorpay', 'pay_' || i, 50000,
       CASE WHEN i % (:bookings / :due) = 0 THEN 'processing'
            ELSE 'completed' END::payment_status,
       now() - interval '3 days'
FROM generate_series(1, :bookings) i
WHERE i % 2 = 0 OR i % (2 * :bookings / :due) = 0;
CREATE INDEX ON bookings (created_at, id) WHERE status = 'pending';
ALTER TABLE bookings DISABLE TRIGGER USER;
ALTER TABLE slots DISABLE TRIGGER USER;
ALTER TABLE audit_logs DISABLE TRIGGER USER;
RESET session_replication_role;
VACUUM ANALYZE;

-- the loop that a careful engineer would write
CREATE PROCEDURE expire_row_by_row(batch integer)
LANGUAGE plpgsql AS $$
DECLARE
  v_booking record;
  v_done integer;
  v_old text;
BEGIN
  LOOP
    v_done := 0;
    FOR v_booking IN
      SELECT b.id, b.slot_id FROM bookings b
      WHERE b.status = 'pending' AND b.created_at < now() - interval '24 hours'
        AND NOT EXISTS (SELECT FROM payments p WHERE p.booking_id = b.id
          AND (p.status IN ('completed', 'partially_refunded')
               OR p.status IN ('initiated', 'pending', 'processing')
                  AND p.created_at > now() - interval '1 hour'))
      ORDER BY b.created_at, b.id LIMIT batch FOR UPDATE SKIP LOCKED
    LOOP
      v_done := v_done + 1;
      UPDATE bookings SET status = 'cancelled', cancelled_by = 'system',
             cancelled_at = now(), cancellation_reason = 'expired'
      WHERE id = v_booking.id;
      INSERT INTO audit_logs (action_type, entity_type, entity_id, old_data, new_data, created_at)
      VALUES ('booking_cancelled', 'booking', v_booking.id, '{"status": "pending"}',
              '{"status": "cancelled"}', clock_timestamp());
      INSERT INTO booking_lifecycle_audit (booking_id, old_slot_id, action_type, actor_type)
      VALUES (v_booking.id, v_booking.slot_id, 'expire', 'system');
      UPDATE slots SET status = 'available', reserved_until = NULL
      WHERE id = v_booking.slot_id AND status = 'reserved' AND reserved_until <= now()
        AND NOT EXISTS (SELECT FROM bookings o
                        WHERE o.slot_id = v_booking.slot_id AND o.status = 'confirmed');
      IF FOUND THEN
        INSERT INTO audit_logs (action_type, entity_type, entity_id, old_data, new_data, created_at)
        VALUES ('slot_released', 'slot', v_booking.slot_id, '{"status": "reserved"}',
                '{"status": "available"}', clock_timestamp());
      END IF;
    END LOOP;
    COMMIT;
    EXIT WHEN v_done = 0;
  END LOOP;
END
$$;

CREATE EXTENSION cusown_ops;
SELECT count(*) AS names FROM cusown_attach() \g /dev/null
