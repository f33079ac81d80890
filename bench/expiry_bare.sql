-- a batch of the candidate "bare" of bench/expiry
WITH due AS MATERIALIZED (
  SELECT b.id, b.slot_id FROM bookings b
  WHERE b.status = 'pending' AND b.created_at < now() - interval '24 hours'
    AND NOT EXISTS (SELECT FROM payments p WHERE p.booking_id = b.id
      AND (p.status IN ('completed', 'partially_refunded')
           OR p.status IN ('initiated', 'pending', 'processing')
              AND p.created_at > now() - interval '1 hour'))
  ORDER BY b.created_at, b.id LIMIT 500 FOR UPDATE SKIP LOCKED
), expired AS (
  UPDATE bookings b SET status = 'cancelled', cancelled_by = 'system',
         cancelled_at = now(), cancellation_reason = 'expired'
  FROM due d WHERE b.id = d.id RETURNING b.id, b.slot_id
), freed AS (
  UPDATE slots s SET status = 'available', reserved_until = NULL
  FROM expired e WHERE s.id = e.slot_id AND s.status = 'reserved'
    AND s.reserved_until <= now()
    AND NOT EXISTS (SELECT FROM bookings o WHERE o.slot_id = s.id AND o.status = 'confirmed')
  RETURNING s.id
), lifecycle AS (
  INSERT INTO booking_lifecycle_audit (booking_id, old_slot_id, action_type, actor_type)
  SELECT e.id, e.slot_id, 'expire', 'system' FROM expired e
)
INSERT INTO audit_logs (action_type, entity_type, entity_id, old_data, new_data, created_at)
SELECT 'booking_cancelled', 'booking', e.id, '{"status": "pending"}'::jsonb,
       '{"status": "cancelled"}'::jsonb, clock_timestamp() FROM expired e
UNION ALL
SELECT 'slot_released', 'slot', f.id, '{"status": "reserved"}',
       '{"status": "available"}', clock_timestamp() FROM freed f;
