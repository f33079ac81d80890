--
-- backlog_clients.sql
--      What the clients of bench/backlog call: the application's functions,
--      with its triggers, and a note of what they refuse.
--
ALTER TABLE bookings ENABLE TRIGGER USER;
ALTER TABLE slots ENABLE TRIGGER USER;
ALTER TABLE audit_logs ENABLE TRIGGER USER;

CREATE SCHEMA bench;
CREATE TABLE bench.now (phase text);
INSERT INTO bench.now VALUES ('warm');
CREATE UNLOGGED TABLE bench.refusal (phase text, answer text, at timestamptz);

CREATE FUNCTION bench.refused(p_answer text) RETURNS void
LANGUAGE sql AS $$
  INSERT INTO bench.refusal SELECT phase, p_answer, clock_timestamp() FROM bench.now
$$;

-- the booking's id, or 'none'
CREATE FUNCTION bench.create_booking(p_slot integer) RETURNS text
LANGUAGE plpgsql AS $$
BEGIN
  RETURN create_booking_atomically(md5('business ' || (p_slot % 1000 + 1))::uuid,
                                   md5('slot ' || p_slot)::uuid, 'Customer', '+910000000002');
EXCEPTION WHEN raise_exception THEN
  PERFORM bench.refused(SQLERRM);
  RETURN 'none';
END
$$;

CREATE FUNCTION bench.confirm_booking(p_booking text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
  IF p_booking <> 'none' THEN
    PERFORM confirm_booking_atomically(p_booking::uuid);
  END IF;
EXCEPTION WHEN raise_exception OR unique_violation THEN
  PERFORM bench.refused(SQLERRM);
END
$$;
