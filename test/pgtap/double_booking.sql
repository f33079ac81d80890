--
-- Runbook "Double Booking Alert" on the reference schema and on one that has
-- only what the runbooks name: what is told, compared with queries that count
-- moment by moment; what a resolution leaves behind; and what keeps it away.
--
\set QUIET 1
\pset format unaligned
\pset tuples_only true
SET client_min_messages = warning;

CREATE SCHEMA tap;
CREATE EXTENSION IF NOT EXISTS pgtap SCHEMA tap;
ALTER EXTENSION pgtap SET SCHEMA tap;

\i :fixture/cusown_app.sql
\i :fixture/app_minimal.sql
CREATE EXTENSION cusown_ops;
SET search_path = public, tap;
\i :fixture/sample_week.sql
SELECT count(*) AS names FROM cusown_attach('public') \gset

SELECT plan(60);

CREATE SCHEMA t;

-- SQLSTATE and message of what a statement raises
CREATE FUNCTION t.refusal(p_sql text) RETURNS text
LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE p_sql;
  RETURN 'no error';
EXCEPTION WHEN OTHERS THEN
  RETURN SQLSTATE || ' ' || SQLERRM;
END
$$;

-- the runbook's query
CREATE VIEW t.doubled AS
SELECT slot_id, count(*) FROM bookings WHERE status = 'confirmed' GROUP BY slot_id HAVING count(*) > 1;

CREATE VIEW t.appointment AS
SELECT b.id, b.business_id, b.slot_id, s.date + s.start_time AS starts,
       s.date + s.start_time + greatest(make_interval(mins => b.total_duration_minutes),
         CASE WHEN s.end_time > s.start_time THEN s.end_time - s.start_time
              ELSE s.end_time - s.start_time + interval '1 day' END) AS ends,
       z.concurrent_booking_capacity AS capacity
  FROM bookings b JOIN slots s ON s.id = b.slot_id JOIN businesses z ON z.id = b.business_id
 WHERE b.status = 'confirmed';

-- moments at which a business has confirmed too many
CREATE VIEW t.overloaded AS
SELECT DISTINCT m.business_id, m.starts AS at
  FROM t.appointment m
 WHERE (SELECT count(*) FROM t.appointment a
         WHERE a.business_id = m.business_id AND a.starts <= m.starts AND a.ends > m.starts) > m.capacity;

CREATE VIEW t.contradicted AS
SELECT s.id FROM slots s
 WHERE s.status <> 'booked' AND EXISTS (SELECT FROM bookings b WHERE b.slot_id = s.id AND b.status = 'confirmed')
UNION ALL
SELECT s.id FROM slots s
 WHERE s.status = 'booked' AND NOT coalesce(s.reserved_until > now(), false)
   AND NOT EXISTS (SELECT FROM bookings b WHERE b.slot_id = s.id AND b.status IN ('pending', 'confirmed'));

-- every change of a booking or slot since, and its audit rows
CREATE TABLE t.bookings_before AS SELECT id, status, slot_id FROM bookings;
CREATE TABLE t.slots_before AS SELECT id, status FROM slots;
CREATE TABLE t.payments_before AS SELECT id, to_jsonb(p) AS payment FROM payments p;
CREATE TABLE t.audited_before AS SELECT id FROM audit_logs;
CREATE PROCEDURE t.remember() LANGUAGE sql AS $$
  TRUNCATE t.bookings_before, t.slots_before, t.payments_before, t.audited_before, cusown_ops.change;
  INSERT INTO t.bookings_before SELECT id, status, slot_id FROM bookings;
  INSERT INTO t.slots_before SELECT id, status FROM slots;
  INSERT INTO t.payments_before SELECT id, to_jsonb(p) FROM payments p;
  INSERT INTO t.audited_before SELECT id FROM audit_logs;
$$;
CREATE VIEW t.unaudited AS
SELECT b.id, b.status FROM bookings b JOIN t.bookings_before o ON o.id = b.id
 WHERE b.status <> o.status
   AND (SELECT count(*) FROM audit_logs a WHERE a.entity_id = b.id AND a.entity_type = 'booking'
           AND a.old_data->>'status' = o.status AND a.new_data->>'status' = b.status
           AND a.id NOT IN (SELECT id FROM t.audited_before)) <> 1
UNION ALL
SELECT s.id, s.status FROM slots s JOIN t.slots_before o ON o.id = s.id
 WHERE s.status <> o.status
   AND (SELECT count(*) FROM audit_logs a WHERE a.entity_id = s.id AND a.entity_type = 'slot'
           AND a.old_data->>'status' = o.status AND a.new_data->>'status' = s.status
           AND a.id NOT IN (SELECT id FROM t.audited_before)) <> 1
UNION ALL
SELECT a.entity_id, a.action_type FROM audit_logs a
 WHERE a.id NOT IN (SELECT id FROM t.audited_before)
   AND NOT EXISTS (SELECT FROM bookings b JOIN t.bookings_before o ON o.id = b.id
                    WHERE b.id = a.entity_id AND b.status <> o.status)
   AND NOT EXISTS (SELECT FROM slots s JOIN t.slots_before o ON o.id = s.id
                    WHERE s.id = a.entity_id AND s.status <> o.status);
CREATE VIEW t.unfed AS
(SELECT b.id, o.status AS from_status, b.status FROM bookings b JOIN t.bookings_before o ON o.id = b.id WHERE b.status <> o.status
 UNION ALL
 SELECT s.id, o.status, s.status FROM slots s JOIN t.slots_before o ON o.id = s.id WHERE s.status <> o.status)
EXCEPT ALL SELECT entity_id, from_status, to_status FROM cusown_ops.change;

--
-- The week as it is
--

SELECT is(count(*), 0::bigint, 'no slot is doubled: the index stands') FROM cusown_double_bookings('same_slot');
SELECT is(count(*), 0::bigint, 'nor when the bookings are read') FROM cusown_double_bookings('same_slot', verify => true);
SELECT is(string_agg(status, ' '), 'present', 'and it is said to be there') FROM cusown_install_constraints();
SELECT set_eq('SELECT slot_id FROM cusown_double_bookings(''slot_state'') WHERE finding <> ''reserved without an end''',
              'SELECT id FROM t.contradicted', 'slots that their bookings contradict are told');
SELECT set_has('SELECT slot_id FROM cusown_double_bookings(''slot_state'')',
               'SELECT id FROM slots WHERE id IN (SELECT slot_id FROM bookings b WHERE b.id IN
                  (md5(''booking confirmed_slot_open 1'')::uuid, md5(''booking confirmed_slot_open 2'')::uuid))',
               'the two available ones under a confirmed booking among them');
SELECT set_eq($$SELECT DISTINCT o.business_id, o.at FROM t.overloaded o
                 WHERE EXISTS (SELECT FROM cusown_double_bookings('overlap') d
                                WHERE d.business_id = o.business_id AND d.starts <= o.at)$$,
              'TABLE t.overloaded', 'each overloaded moment is behind the begin of a stretch');

--
-- Doubled: without the index, every third confirmed booking moves to another's slot
--

DROP INDEX idx_bookings_one_confirmed_per_slot;
ALTER TABLE bookings DISABLE TRIGGER USER;
WITH c AS (SELECT b.id, b.slot_id, b.business_id, row_number() OVER (PARTITION BY b.business_id ORDER BY b.id) AS n
             FROM bookings b WHERE b.status = 'confirmed')
UPDATE bookings b SET slot_id = o.slot_id FROM c JOIN c o ON o.business_id = c.business_id AND o.n = c.n - 1
 WHERE b.id = c.id AND c.n % 3 = 0;
ALTER TABLE bookings ENABLE TRIGGER USER;

SELECT cmp_ok((SELECT count(*) FROM t.doubled), '>', 20::bigint, 'slots are doubled');
SELECT set_eq('SELECT slot_id, cardinality(booking_ids)::bigint FROM cusown_double_bookings(''same_slot'')',
              'TABLE t.doubled', 'what is told is what the runbook''s query finds');
SELECT is_empty($$SELECT d.slot_id FROM cusown_double_bookings('same_slot') d
                   WHERE d.booking_ids <> ARRAY(SELECT b.id FROM bookings b WHERE b.slot_id = d.slot_id AND b.status = 'confirmed' ORDER BY b.id)$$,
                'with the bookings of each');
SELECT is_empty($$SELECT d.slot_id FROM cusown_double_bookings('same_slot') d JOIN slots s ON s.id = d.slot_id
                   WHERE d.starts <> s.date + s.start_time OR d.business_id <> s.business_id$$,
                'whose it is and when it begins');
SELECT set_eq(format('SELECT slot_id FROM cusown_double_bookings(''same_slot'', %L)', md5('business salon')::uuid),
              format('SELECT d.slot_id FROM t.doubled d JOIN slots s ON s.id = d.slot_id WHERE s.business_id = %L', md5('business salon')::uuid),
              'of one business alone');
SELECT is(count(*) FILTER (WHERE status = 'contradicted')::text || ' ' || count(*) FILTER (WHERE ddl IS NOT NULL),
          (SELECT count(*) FROM t.doubled) || ' 0', 'each stands in the way of the index, whose DDL is kept back')
  FROM cusown_install_constraints();
SELECT is(t.refusal('CREATE UNIQUE INDEX ON bookings (slot_id) WHERE status = ''confirmed'''),
          '23505 could not create unique index "bookings_slot_id_idx"', 'which would fail');

-- every overloaded stretch: where it begins, and who is there
SELECT is_empty($$SELECT d.business_id, d.starts FROM cusown_double_bookings('overlap') d
                   WHERE NOT EXISTS (SELECT FROM t.overloaded o WHERE o.business_id = d.business_id AND o.at = d.starts)$$,
                'a stretch begins at an overloaded moment');
SELECT is_empty($$SELECT o.business_id, o.at FROM t.overloaded o
                   WHERE NOT EXISTS (SELECT FROM cusown_double_bookings('overlap') d
                                      WHERE d.business_id = o.business_id
                                        AND d.booking_ids @> ARRAY(SELECT a.id FROM t.appointment a
                                              WHERE a.business_id = o.business_id AND a.starts <= o.at AND a.ends > o.at))$$,
                'whoever is there at an overloaded moment is in one stretch');
SELECT cmp_ok(count(*), '>', 5::bigint, 'and there are some') FROM cusown_double_bookings('overlap');

--
-- Resolving
--

CALL t.remember();
UPDATE bookings SET undo_used_at = NULL WHERE status = 'confirmed';
CALL t.remember();
-- who is to be kept, by SQL
CREATE VIEW t.rank AS
SELECT b.id, b.slot_id,
       row_number() OVER (PARTITION BY b.slot_id ORDER BY coalesce(
         (SELECT max(a.created_at) FROM audit_logs a WHERE a.entity_type = 'booking' AND a.entity_id = b.id
             AND a.action_type = 'booking_confirmed'), b.created_at), b.created_at, b.id) AS first_confirmed,
       row_number() OVER (PARTITION BY b.slot_id ORDER BY b.created_at, b.id) AS first_created,
       row_number() OVER (PARTITION BY b.slot_id ORDER BY NOT EXISTS (SELECT FROM payments p
         WHERE p.booking_id = b.id AND p.status = 'completed'), coalesce(
         (SELECT max(a.created_at) FROM audit_logs a WHERE a.entity_type = 'booking' AND a.entity_id = b.id
             AND a.action_type = 'booking_confirmed'), b.created_at), b.created_at, b.id) AS paid_first
  FROM bookings b WHERE b.status = 'confirmed' AND b.slot_id IN (SELECT slot_id FROM t.doubled);
CREATE TABLE t.ranked AS TABLE t.rank;
SELECT set_eq(format('SELECT slot_id, booking_id, action FROM cusown_resolve_double_bookings(%L, dry_run => true)', p),
              format('SELECT slot_id, id, CASE %I WHEN 1 THEN ''kept'' ELSE ''cancelled'' END FROM t.ranked', p),
              'a dry run by ' || p || ' keeps who comes first by it')
  FROM unnest(ARRAY['first_confirmed', 'first_created', 'paid_first']) p;
SELECT isnt(md5(string_agg(first_confirmed::text, '' ORDER BY id)), md5(string_agg(paid_first::text, '' ORDER BY id)),
            'which makes a difference') FROM t.ranked;
SELECT is_empty('SELECT b.id FROM bookings b JOIN t.bookings_before o ON o.id = b.id WHERE b.status <> o.status',
                'and writes nothing');
CREATE TABLE t.resolved AS SELECT * FROM cusown_resolve_double_bookings();
SELECT set_eq('SELECT slot_id, booking_id, action FROM t.resolved',
              'SELECT slot_id, id, CASE first_confirmed WHEN 1 THEN ''kept'' ELSE ''cancelled'' END FROM t.ranked',
              'the run does what the dry run said');
SELECT is_empty('TABLE t.doubled', 'no slot is doubled any more');
SELECT set_eq('SELECT id FROM bookings WHERE status = ''cancelled'' EXCEPT SELECT id FROM t.bookings_before WHERE status = ''cancelled''',
              'SELECT booking_id FROM t.resolved WHERE action = ''cancelled''', 'exactly those are cancelled');
SELECT is_empty('SELECT b.id FROM bookings b JOIN t.resolved r ON r.booking_id = b.id AND r.action = ''cancelled''
                  WHERE b.cancelled_by <> ''system'' OR b.cancelled_at IS NULL
                     OR b.cancellation_reason <> ''double booking: first_confirmed''', 'by system, for that reason');
SELECT is_empty('SELECT s.id FROM slots s JOIN t.slots_before o ON o.id = s.id WHERE s.status <> o.status', 'no slot is touched');
SELECT is_empty('SELECT p.id FROM payments p JOIN t.payments_before o ON o.id = p.id WHERE to_jsonb(p) <> o.payment', 'and no payment');
SELECT is_empty('TABLE t.unaudited', 'every change has its audit row, and there is no other one');
SELECT is_empty('TABLE t.unfed', 'and is in the change feed');
SELECT is_empty($$SELECT a.entity_id FROM audit_logs a JOIN t.resolved r ON r.booking_id = a.entity_id AND r.action = 'cancelled'
                   JOIN t.resolved k ON k.slot_id = r.slot_id AND k.action = 'kept'
                  WHERE a.action_type = 'booking_cancelled' AND a.id NOT IN (SELECT id FROM t.audited_before)
                    AND (a.metadata->>'policy', a.metadata->>'kept_booking') <> ('first_confirmed', k.booking_id::text)$$,
                'which names the policy and the booking that was kept');
SELECT is_empty('SELECT verify_audit_chain()', 'the chain of audit rows is unbroken');
SELECT set_eq('SELECT booking_id FROM booking_lifecycle_audit WHERE action_type = ''cancel'' AND actor_type = ''system''',
              'SELECT booking_id FROM t.resolved WHERE action = ''cancelled''', 'the application''s lifecycle audit tells of each');
SELECT set_eq('SELECT booking_id FROM t.resolved WHERE refund_due',
              $$SELECT r.booking_id FROM t.resolved r WHERE r.action = 'cancelled'
                  AND EXISTS (SELECT FROM payments p WHERE p.booking_id = r.booking_id AND p.status = 'completed')$$,
              'a refund is due where money came for a cancelled one');
SELECT cmp_ok(count(*), '>', 3::bigint, 'which are some') FROM t.resolved WHERE refund_due;
SELECT set_eq('SELECT entity_id FROM cusown_ops.attention WHERE kind = ''refund_due'' AND runbook = ''payment_mismatch'' AND closed_at IS NULL',
              'SELECT booking_id FROM t.resolved WHERE refund_due', 'and these are on the worklist');
SELECT is_empty('SELECT * FROM cusown_resolve_double_bookings()', 'again there is nothing to do');

--
-- What overlaps
--

UPDATE bookings SET total_duration_minutes = 240 WHERE status = 'confirmed';
CALL t.remember();
SELECT is_empty($$SELECT r.booking_id FROM cusown_resolve_double_bookings(kind => 'overlap', dry_run => true) r WHERE r.action = 'attention'$$,
                'all that overlap can be resolved');
CREATE TABLE t.resolved_overlaps AS SELECT * FROM cusown_resolve_double_bookings(kind => 'overlap');
SELECT cmp_ok(count(*), '>', 5::bigint, 'the latest give way') FROM t.resolved_overlaps WHERE action = 'cancelled';
SELECT is_empty('TABLE t.overloaded', 'until the capacity holds');
SELECT is_empty($$SELECT r.booking_id FROM t.resolved_overlaps r JOIN bookings b ON b.id = r.booking_id JOIN slots s ON s.id = b.slot_id
                   WHERE r.action = 'cancelled'
                     AND (SELECT count(*) FROM t.appointment a WHERE a.business_id = b.business_id
                             AND a.starts < s.date + s.start_time + greatest(make_interval(mins => b.total_duration_minutes),
                                   CASE WHEN s.end_time > s.start_time THEN s.end_time - s.start_time
                                        ELSE s.end_time - s.start_time + interval '1 day' END)
                             AND a.ends > s.date + s.start_time)
                         < (SELECT z.concurrent_booking_capacity FROM businesses z WHERE z.id = b.business_id)$$,
                'and nobody gave way without need');
SELECT is_empty('TABLE t.unaudited', 'every change has its audit row, slots included');
SELECT is_empty('TABLE t.unfed', 'and is in the change feed');
SELECT is_empty($$SELECT s.id FROM slots s JOIN t.slots_before o ON o.id = s.id
                   WHERE s.status <> o.status AND (s.status <> 'available'
                      OR EXISTS (SELECT FROM bookings b WHERE b.slot_id = s.id AND b.status = 'confirmed'))$$,
                'a slot becomes available where no confirmed booking stands');
SELECT is_empty($$SELECT s.id FROM slots s JOIN bookings b ON b.slot_id = s.id
                    JOIN t.resolved_overlaps r ON r.booking_id = b.id AND r.action = 'cancelled'
                   WHERE s.status = 'booked' AND NOT EXISTS (SELECT FROM bookings o
                     WHERE o.slot_id = s.id AND o.status IN ('pending', 'confirmed'))$$, 'and none stays booked for nobody');

--
-- By hand, and slots
--

CALL t.remember();
SELECT cmp_ok(count(*), '>', 1::bigint, 'slots are contradicted by their bookings') FROM t.contradicted;
CREATE TABLE t.contradicted_before AS TABLE t.contradicted;
CREATE TABLE t.ended_before AS
SELECT s.id FROM slots s WHERE s.status = 'reserved' AND s.reserved_until <= now()
   AND NOT EXISTS (SELECT FROM bookings b WHERE b.slot_id = s.id AND b.status IN ('pending', 'confirmed'));
SELECT set_eq('SELECT slot_id FROM cusown_repair_slots() WHERE action = ''repaired''',
              'SELECT id FROM t.contradicted_before UNION SELECT id FROM t.ended_before', 'those are repaired, and holds that ended for nobody');
SELECT is_empty('TABLE t.contradicted', 'and are right now');
SELECT set_eq('SELECT s.id FROM slots s JOIN t.slots_before o ON o.id = s.id WHERE s.status <> o.status',
              'SELECT id FROM t.contradicted_before UNION SELECT id FROM t.ended_before', 'nothing else is touched');
SELECT is_empty('TABLE t.unaudited', 'each with its audit row');
SELECT is_empty('SELECT verify_audit_chain()', 'in an unbroken chain');

UPDATE bookings SET slot_id = o.slot_id, undo_used_at = now()
  FROM (SELECT slot_id FROM bookings WHERE id = md5('booking confirmed_over_due 1')::uuid) o
 WHERE id = md5('booking confirmed_no_show 1')::uuid;
SELECT is(string_agg(action, ' ' ORDER BY action), 'attention kept', 'one that was once undone cannot be cancelled')
  FROM cusown_keep_booking((SELECT booking_id FROM (VALUES (md5('booking confirmed_over_due 1')::uuid)) v (booking_id)));
SELECT is(kind || ' ' || runbook || ' ' || sqlstate, 'unresolvable double_booking 23514', 'and is on the worklist')
  FROM cusown_ops.attention WHERE entity_id = md5('booking confirmed_no_show 1')::uuid AND kind = 'unresolvable';
SELECT is(string_agg(action, ' ' ORDER BY action), 'cancelled kept', 'the decision the other way round goes through')
  FROM cusown_keep_booking(md5('booking confirmed_no_show 1')::uuid);

--
-- Prevented
--

SELECT ddl FROM cusown_install_constraints() \gexec
SELECT is(string_agg(status, ' '), 'present', 'once its DDL is run the index is there') FROM cusown_install_constraints();
SELECT is(left(t.refusal($$INSERT INTO bookings (business_id, slot_id, customer_name, customer_phone, booking_id, status)
  SELECT business_id, slot_id, 'x', 'x', 'x', status FROM bookings WHERE status = 'confirmed' LIMIT 1$$), 5),
  '23505', 'and a second confirmed booking is impossible');

--
-- The minimal schema
--

SELECT count(*) FROM cusown_attach('shop', :'minimal_mapping') \g /dev/null
SET cusown_ops.app_schema = 'shop';
DROP INDEX shop.reservation_one_confirmed;
INSERT INTO shop.time_slot (ref, state, starts_at, ends_at)
SELECT md5('slot ' || n)::uuid, CASE n % 4 WHEN 0 THEN 'available' ELSE 'booked' END, now(), now() + interval '1 hour' FROM generate_series(1, 40) n;
INSERT INTO shop.reservation (ref, state, slot_ref, made_at)
SELECT md5('booking ' || n)::uuid, 'confirmed', md5('slot ' || (n % 30 + 1))::uuid, now() - n * interval '1 minute' FROM generate_series(1, 100) n;
INSERT INTO shop.charge (ref, reservation_ref, state) SELECT md5('payment ' || n)::uuid, md5('booking ' || n)::uuid, 'completed' FROM generate_series(1, 100, 7) n;
SELECT is(count(*), 30::bigint, 'doubled ones are told by other names') FROM cusown_double_bookings('same_slot');
SELECT is(count(*) FILTER (WHERE action = 'cancelled'), 70::bigint, 'and resolved') FROM cusown_resolve_double_bookings();
SELECT is(count(*), 70::bigint, 'with an audit row each') FROM shop.journal WHERE verb = 'booking_cancelled' AND detail->>'policy' = 'first_confirmed';
SELECT cmp_ok(count(*), '>', 10::bigint, 'slots are repaired') FROM cusown_repair_slots();
SELECT is_empty('SELECT * FROM cusown_double_bookings(''slot_state'')', 'until none is contradicted');

SELECT finish();
