--
-- demo_double.sql
--      Somebody dropped the unique index, and two customers have one slot.
--
\set QUIET on
\pset footer off
\pset null '-'
SET client_min_messages = warning;

-- two slots with three and two confirmed bookings, one of them paid
\echo '21. Runbook "Double Booking Alert".  A migration dropped the unique index, and'
\echo '    the application has confirmed more than one booking of two slots.'
\echo
DROP INDEX idx_bookings_one_confirmed_per_slot;
CREATE TEMP TABLE victim AS
SELECT b.id, b.slot_id, b.business_id, row_number() OVER (ORDER BY b.id) AS n
FROM bookings b JOIN slots s ON s.id = b.slot_id
WHERE b.status = 'confirmed' AND s.date > current_date + 1
  AND NOT EXISTS (SELECT FROM payments p WHERE p.booking_id = b.id) ORDER BY b.id LIMIT 3;
INSERT INTO bookings (id, business_id, slot_id, customer_name, customer_phone, booking_id, status, created_at)
SELECT md5('double ' || v.n || ' ' || i)::uuid, v.business_id, v.slot_id, 'Customer', '-', 'DOUBLE-' || v.n || i,
       'confirmed', now() - interval '1 hour' * i
FROM victim v, generate_series(1, 2) i WHERE v.n + i <= 3;
INSERT INTO payments (booking_id, provider, provider_payment_id, amount_cents, status)
VALUES (md5('double 1 1')::uuid, 'razorpay', 'pay_double', 50000, 'completed');
-- and one slot that somebody freed under its booking
UPDATE slots SET status = 'available' WHERE id = (SELECT slot_id FROM victim WHERE n = 3);

\echo '   SELECT * FROM cusown_double_bookings();'
\echo
SELECT kind, left(slot_id::text, 8) AS slot, cardinality(booking_ids) AS bookings, finding,
       regexp_replace(command, '([0-9a-f]{8})-[0-9a-f-]{27}', '\1...') AS command
FROM cusown_double_bookings() WHERE kind <> 'overlap' AND slot_id IN (SELECT slot_id FROM victim);

SELECT expect('slots with more than one', count(*), 2::bigint) AS n FROM cusown_double_bookings('same_slot') \gset

\echo '22. What would become of them?'
\echo
\echo '   SELECT * FROM cusown_resolve_double_bookings(dry_run => true);'
\echo
SELECT left(slot_id::text, 8) AS slot, left(booking_id::text, 8) AS booking, action, reason, refund_due
FROM cusown_resolve_double_bookings(dry_run => true);

\echo '    The paid one has to go?  By another policy it stays:'
\echo
\echo '   SELECT * FROM cusown_resolve_double_bookings(''paid_first'');'
\echo
SELECT left(slot_id::text, 8) AS slot, left(booking_id::text, 8) AS booking, action, reason, refund_due
FROM cusown_resolve_double_bookings('paid_first');
\echo '   SELECT * FROM cusown_repair_slots();'
\echo
SELECT left(slot_id::text, 8) AS slot, action, from_status, to_status, finding FROM cusown_repair_slots()
WHERE slot_id IN (SELECT slot_id FROM victim);

SELECT expect('doubled slots left', count(*), 0::bigint) AS n FROM cusown_double_bookings('same_slot') \gset
SELECT expect('contradicted slots left', count(*), 0::bigint) AS n
FROM cusown_double_bookings('slot_state') WHERE finding NOT LIKE '%without an end%' \gset

\echo '23. So that it cannot happen again: the index, and nobody confirms but by'
\echo '    cusown_confirm_booking().'
\echo
\echo '   SELECT ddl FROM cusown_install_constraints() \\gexec'
\echo '   SELECT * FROM cusown_guard(''functions'');'
\echo
SELECT relation, status, ddl FROM cusown_install_constraints();
SELECT ddl FROM cusown_install_constraints() WHERE ddl IS NOT NULL \gexec
SELECT * FROM cusown_guard('functions');

SELECT expect('what is missing', count(*), 0::bigint) AS n FROM cusown_install_constraints() WHERE status <> 'present' \gset

\echo '    Whoever confirms by himself is told:'
\echo
\echo '   UPDATE bookings SET status = ''confirmed'' WHERE status = ''pending'';'
\echo
\set ON_ERROR_STOP off
\set VERBOSITY terse
UPDATE bookings SET status = 'confirmed' WHERE id =
  (SELECT id FROM bookings WHERE status = 'pending' AND undo_used_at IS NULL ORDER BY id LIMIT 1);
\set ON_ERROR_STOP on
SELECT expect('SQLSTATE', :'SQLSTATE'::text, 'UO007') AS n \gset
