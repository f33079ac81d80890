-- Shows the worklist: opening, back-off, recheck, closing by hand.
\getenv abs_srcdir PG_ABS_SRCDIR
\set minimal :abs_srcdir '/test/fixture/app_minimal.sql'
SET client_min_messages = warning;
CREATE EXTENSION cusown_ops;
\set schema worklist_shop
\set ECHO none
\i :minimal
\set ECHO all
SELECT count(*) > 0 AS attached FROM cusown_attach('worklist_shop', :'minimal_mapping');
SET search_path = worklist_shop, public;

-- three bookings that are paid for, and one that is not
INSERT INTO time_slot (ref, state, held_until, starts_at, ends_at)
SELECT rpad('a' || n, 32, '0')::uuid, 'reserved', now() - interval '1 day',
       now() + interval '1 day', now() + interval '25 hours'
FROM generate_series(1, 4) n;
INSERT INTO reservation (ref, state, slot_ref, customer, made_at)
SELECT rpad('b' || n, 32, '0')::uuid, 'pending', rpad('a' || n, 32, '0')::uuid,
       gen_random_uuid(), now() - interval '2 days' + n * interval '1 minute'
FROM generate_series(1, 4) n;
INSERT INTO charge (ref, reservation_ref, state, provider, provider_code, amount, currency, made_at)
SELECT rpad('c' || n, 32, '0')::uuid, rpad('b' || n, 32, '0')::uuid, 'completed',
       'razorpay', 'pay_' || n, 50000, 'INR', now() - interval '2 days'
FROM generate_series(1, 3) n;

CREATE VIEW worklist AS
SELECT kind, left(entity_id::text, 2) AS booking, times,
       CASE WHEN closed_at IS NULL THEN next_try - last_seen END AS back_off, closed_at IS NULL AS open,
       CASE WHEN closed_by IN ('recheck') THEN closed_by
            WHEN closed_by IS NOT NULL THEN 'a human' END AS closed_by, note
FROM cusown_ops.attention ORDER BY entity_id;

SELECT * FROM cusown_expire_bookings();
SELECT * FROM worklist;

-- before next_try nothing moves
SELECT * FROM cusown_expire_bookings();
SELECT * FROM worklist;

-- at next_try it is seen again, with a longer back-off each time
CREATE FUNCTION wait_for_next_try(n int) RETURNS TABLE (attention bigint)
LANGUAGE plpgsql AS $$
BEGIN
  FOR i IN 1 .. n LOOP
    UPDATE cusown_ops.attention SET next_try = now() WHERE closed_at IS NULL;
    RETURN QUERY SELECT e.attention FROM cusown_expire_bookings() e;
  END LOOP;
END $$;
SELECT * FROM wait_for_next_try(1);
SELECT * FROM worklist;
SELECT count(*) AS runs FROM wait_for_next_try(8);
SELECT * FROM worklist;

-- whatever the age that counts by now: what is open stays open
SET cusown_ops.booking_ttl = '30d';
SELECT * FROM cusown_expire_bookings();
SELECT count(*) AS still_open FROM worklist WHERE open;
RESET cusown_ops.booking_ttl;

-- refunded: the entry closes, and the booking expires, in the same run
UPDATE charge SET state = 'refunded' WHERE ref = rpad('c1', 32, '0')::uuid;
SELECT * FROM cusown_expire_bookings();
SELECT * FROM worklist;

-- confirmed: closes; back again: opens again
UPDATE reservation SET state = 'confirmed' WHERE ref = rpad('b2', 32, '0')::uuid;
SELECT * FROM cusown_expire_bookings();
SELECT * FROM worklist;
UPDATE reservation SET state = 'pending' WHERE ref = rpad('b2', 32, '0')::uuid;
SELECT * FROM cusown_expire_bookings();
SELECT * FROM worklist;

-- deleted: closes
DELETE FROM charge WHERE ref = rpad('c2', 32, '0')::uuid;
DELETE FROM reservation WHERE ref = rpad('b2', 32, '0')::uuid;
SELECT * FROM cusown_expire_bookings();
SELECT * FROM worklist;

-- by hand, with a note, once; audited
SELECT cusown_attention_resolve(id, 'customer comes on Friday') AS closed
FROM cusown_ops.attention WHERE closed_at IS NULL;
SELECT cusown_attention_resolve(id, 'again') AS closed
FROM cusown_ops.attention WHERE closed_by <> 'recheck';
SELECT * FROM worklist;
SELECT verb, object_type, left(object_ref::text, 2) AS booking,
       detail - 'attention_id' AS detail
FROM journal WHERE verb = 'data_corrected';
-- it stays closed until its next_try, and is opened again if it still holds
SELECT * FROM cusown_expire_bookings();
SELECT * FROM worklist WHERE open;
UPDATE cusown_ops.attention SET next_try = now();
SELECT * FROM cusown_expire_bookings();
SELECT * FROM worklist WHERE open;

SELECT cusown_attention_resolve(id, '') FROM cusown_ops.attention WHERE closed_at IS NULL; -- fails
SELECT cusown_attention_resolve(1, NULL); -- fails
SELECT cusown_attention_resolve(NULL, 'note'); -- fails
DO $$ -- fails, with UO002
BEGIN
  PERFORM cusown_attention_resolve(-1, 'note');
EXCEPTION WHEN OTHERS THEN
  RAISE WARNING '%: %', SQLSTATE, SQLERRM;
END $$;

DROP SCHEMA worklist_shop CASCADE;
DROP EXTENSION cusown_ops;
