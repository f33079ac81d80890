--
-- double_data.sql
--      What bench/double works on: :bookings confirmed bookings, each on a slot
--      of its own, but for :doubled slots that have two.
--
SET session_replication_role = replica;
INSERT INTO businesses (id, salon_name, owner_name, whatsapp_number,
                        opening_time, closing_time, slot_duration, booking_link)
SELECT md5('business ' || i)::uuid, 'Salon', 'Owner', '+910000000000',
       '09:00', '18:00', 30, 'salon-' || i
FROM generate_series(1, 1000) i;

-- eight slots a day and business
INSERT INTO slots (id, business_id, date, start_time, end_time, status)
SELECT md5('slot ' || i)::uuid, md5('business ' || (i % 1000 + 1))::uuid,
       date '2010-01-01' + i / 8000, time '09:00' + i / 1000 % 8 * interval '1 hour',
       time '10:00' + i / 1000 % 8 * interval '1 hour', 'booked'
FROM generate_series(1, :bookings - :doubled) i;

DROP INDEX idx_bookings_one_confirmed_per_slot;
INSERT INTO bookings (id, business_id, slot_id, customer_name, customer_phone,
                      booking_id, status, created_at)
SELECT md5('booking ' || i)::uuid, md5('business ' || (i % 1000 + 1))::uuid,
       md5('slot ' || i)::uuid, 'Customer', '+910000000001', 'B' || i,
       'confirmed', now() - interval '300 days' + i * interval '1 second'
FROM generate_series(1, :bookings - :doubled) i;
-- the doubled ones are spread evenly; every tenth of them is paid for
INSERT INTO bookings (id, business_id, slot_id, customer_name, customer_phone,
                      booking_id, status, created_at)
SELECT md5('double ' || i)::uuid, b.business_id, b.slot_id, 'Customer',
       '+910000000001', 'D' || i, 'confirmed', b.created_at + interval '1 hour'
FROM generate_series(1, :doubled) i
JOIN bookings b ON b.id = md5('booking ' || i * ((:bookings - :doubled) / :doubled))::uuid;
INSERT INTO payments (booking_id, provider, provider_payment_id, amount_cents,
                      status, created_at)
SELECT md5('double ' || i)::uuid, 'razorpay', 'pay_' || i, 50000, 'completed',
       now() - interval '3 days'
FROM generate_series(1, :doubled, 10) i;
INSERT INTO audit_logs (action_type, entity_type, entity_id, created_at)
SELECT 'booking_confirmed', 'booking', b.id, b.created_at + interval '10 minutes'
FROM bookings b WHERE b.booking_id LIKE 'D%'
   OR b.slot_id IN (SELECT d.slot_id FROM bookings d WHERE d.booking_id LIKE 'D%');
ALTER TABLE bookings DISABLE TRIGGER USER;
ALTER TABLE slots DISABLE TRIGGER USER;
ALTER TABLE audit_logs DISABLE TRIGGER USER;
RESET session_replication_role;
VACUUM ANALYZE;

-- the loop that a careful engineer would write
CREATE FUNCTION resolve_slot_by_slot() RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
  v_slot record;
  v_booking record;
  v_kept uuid;
  v_done bigint := 0;
BEGIN
  FOR v_slot IN
    SELECT slot_id FROM bookings WHERE status = 'confirmed'
    GROUP BY slot_id HAVING count(*) > 1
  LOOP
    v_kept := NULL;
    PERFORM FROM payments p JOIN bookings b ON b.id = p.booking_id
      WHERE b.slot_id = v_slot.slot_id AND b.status = 'confirmed' ORDER BY p.id FOR SHARE OF p;
    PERFORM FROM bookings b WHERE b.slot_id = v_slot.slot_id AND b.status IN ('pending', 'confirmed')
      ORDER BY b.id FOR UPDATE;
    PERFORM FROM slots s WHERE s.id = v_slot.slot_id FOR UPDATE;
    FOR v_booking IN
      SELECT b.id, EXISTS (SELECT FROM payments p WHERE p.booking_id = b.id AND p.status = 'completed') AS paid
      FROM bookings b WHERE b.slot_id = v_slot.slot_id AND b.status = 'confirmed'
      ORDER BY coalesce((SELECT max(a.created_at) FROM audit_logs a
                         WHERE a.entity_type = 'booking' AND a.entity_id = b.id
                           AND a.action_type = 'booking_confirmed'), b.created_at), b.created_at, b.id
    LOOP
      IF v_kept IS NULL THEN
        v_kept := v_booking.id;
        CONTINUE;
      END IF;
      UPDATE bookings SET status = 'cancelled', cancelled_by = 'system', cancelled_at = now(),
             cancellation_reason = 'double booking: first_confirmed', updated_at = now()
      WHERE id = v_booking.id;
      INSERT INTO audit_logs (action_type, entity_type, entity_id, old_data, new_data, metadata, created_at)
      VALUES ('booking_cancelled', 'booking', v_booking.id, '{"status": "confirmed"}', '{"status": "cancelled"}',
              jsonb_build_object('policy', 'first_confirmed', 'kept_booking', v_kept), clock_timestamp());
      INSERT INTO booking_lifecycle_audit (booking_id, old_slot_id, action_type, actor_type)
      VALUES (v_booking.id, v_slot.slot_id, 'cancel', 'system');
      IF v_booking.paid THEN
        INSERT INTO refund_due (booking_id) VALUES (v_booking.id);
      END IF;
      v_done := v_done + 1;
    END LOOP;
  END LOOP;
  RETURN v_done;
END
$$;
CREATE TABLE refund_due (booking_id uuid PRIMARY KEY);

CREATE EXTENSION cusown_ops;
SELECT count(*) AS names FROM cusown_attach() \g /dev/null
