--
-- No-shows on the reference schema and on one that has only what the runbooks
-- name: who is marked and when, compared with what SQL's AT TIME ZONE says of
-- every hour of a year; what a mark leaves behind; who may call it.
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

SELECT plan(49);

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

-- the end of each appointment, by SQL: the later one of what the clock shows
-- and what has gone by
CREATE FUNCTION t.ends(p_date date, p_start time, p_end time, p_minutes integer,
                       p_zone text)
RETURNS timestamptz
LANGUAGE sql STABLE AS $$
  SELECT greatest((p_date + p_start + length) AT TIME ZONE p_zone,
                  ((p_date + p_start) AT TIME ZONE p_zone AT TIME ZONE 'UTC' + length)
                  AT TIME ZONE 'UTC')
    FROM (SELECT greatest(make_interval(mins => p_minutes),
                          CASE WHEN p_end > p_start THEN p_end - p_start
                               ELSE p_end - p_start + interval '1 day' END) AS length) l
$$;

-- what should be marked at a moment, and what would be
CREATE VIEW t.appointment AS
SELECT b.id, b.status, b.no_show, b.no_show_marked_at,
       t.ends(s.date, s.start_time, s.end_time, b.total_duration_minutes,
              coalesce(nullif(z.timezone, ''), 'UTC')) AS ended_at
  FROM bookings b JOIN slots s ON s.id = b.slot_id
  JOIN businesses z ON z.id = b.business_id;

CREATE FUNCTION t.expected(p_at timestamptz, p_after interval) RETURNS text
LANGUAGE sql STABLE AS $$
  SELECT coalesce(md5(string_agg(id::text, ',' ORDER BY id)), 'none')
    FROM t.appointment
   WHERE status = 'confirmed' AND no_show IS NOT TRUE
     AND no_show_marked_at IS NULL
     AND ended_at <= p_at - p_after
$$;

CREATE FUNCTION t.marked(p_at timestamptz, p_after interval) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
  v_marked text;
BEGIN
  PERFORM cusown_mark_no_show(p_after, 1000000, p_at);
  SELECT coalesce(md5(string_agg(id::text, ',' ORDER BY id)), 'none') INTO v_marked
    FROM bookings WHERE no_show_marked_by = 'system';
  RAISE EXCEPTION USING ERRCODE = 'ZZ999', MESSAGE = v_marked;
EXCEPTION WHEN SQLSTATE 'ZZ999' THEN
  RETURN SQLERRM;
END
$$;

--
-- The week as it is
--

SELECT isnt(t.expected(now(), '30 min'), 'none', 'some of the week did not come');
SELECT is(t.marked(now(), '30 min'), t.expected(now(), '30 min'),
          'who is marked is whose appointment is over, on the clock of the business');
SELECT is(t.marked(now(), '3 days'), t.expected(now(), '3 days'), 'likewise after three days');

CREATE TABLE t.before AS
SELECT b.id, b.status, b.slot_id, b.no_show, b.no_show_marked_at, b.no_show_marked_by,
       to_jsonb(s) AS slot
  FROM bookings b JOIN slots s ON s.id = b.slot_id;
CREATE TABLE t.audited AS SELECT id FROM audit_logs;
SELECT count(*) AS expected FROM t.appointment
 WHERE status = 'confirmed' AND no_show IS NOT TRUE AND no_show_marked_at IS NULL
   AND ended_at <= now() - interval '30 min' \gset

SELECT is((SELECT marked FROM cusown_mark_no_show(dry_run => true)), :expected::bigint,
          'the dry run says how many');
SELECT is_empty('SELECT id FROM bookings WHERE no_show_marked_by = ''system''',
                'and marks none');
SELECT is(marked::text || more, :expected || 'false', 'the run marks as many')
  FROM cusown_mark_no_show();
SELECT is_empty('SELECT s.id FROM t.before b JOIN slots s ON s.id = b.slot_id
                  WHERE to_jsonb(s) <> b.slot', 'no slot is touched');
SELECT is_empty('SELECT b.id FROM t.before o JOIN bookings b ON b.id = o.id
                  WHERE (b.status, b.slot_id) <> (o.status, o.slot_id)',
                'no status and no slot of a booking is');
SELECT is_empty('SELECT b.id FROM t.before o JOIN bookings b ON b.id = o.id
                  WHERE (o.no_show OR o.no_show_marked_at IS NOT NULL)
                    AND (b.no_show, b.no_show_marked_at, b.no_show_marked_by)
                        IS DISTINCT FROM (o.no_show, o.no_show_marked_at, o.no_show_marked_by)',
                'what the owner marked stays as it was');
SELECT is((SELECT count(*) FROM audit_logs a WHERE NOT EXISTS (SELECT FROM t.audited o WHERE o.id = a.id)),
          :expected::bigint, 'there are as many audit rows');
SELECT is_empty('SELECT b.id FROM bookings b WHERE b.no_show_marked_by = ''system''
                    AND 1 <> (SELECT count(*) FROM audit_logs a WHERE a.entity_id = b.id
                               AND a.action_type = ''booking_no_show'' AND a.admin_user_id IS NULL
                               AND a.metadata->>''source'' = ''manual'')',
                'one for each mark');
SELECT is_empty('SELECT b.id FROM bookings b WHERE b.no_show_marked_by = ''system''
                    AND 1 <> (SELECT count(*) FROM booking_lifecycle_audit l WHERE l.booking_id = b.id
                               AND l.action_type = ''no_show'' AND l.actor_type = ''system''
                               AND l.old_slot_id = b.slot_id)',
                'and one of its lifecycle');
SELECT is_empty('SELECT verify_audit_chain()', 'the chain of audit rows is unbroken');
SELECT is((SELECT count(*) FROM cusown_changes_since() WHERE verb = 'mark_no_show' AND entity = 'booking'
              AND from_status = 'confirmed' AND to_status = 'no_show'),
          :expected::bigint, 'the application can tell whom');
SELECT is((SELECT marked FROM cusown_mark_no_show()), 0::bigint, 'again: none');

--
-- A year of hours in zones that put their clocks forward and back
--

TRUNCATE bookings, slots, payments, audit_logs, booking_lifecycle_audit CASCADE;
DELETE FROM businesses;
SELECT setseed(0.42);
CREATE TABLE t.zone (n serial, name text);
INSERT INTO t.zone (name) VALUES
  ('UTC'), (''), (NULL), ('America/New_York'), ('Asia/Kolkata'), ('Pacific/Kiritimati'),
  ('Pacific/Pago_Pago'), ('Europe/Dublin'), ('Australia/Lord_Howe'), ('America/St_Johns'),
  ('Africa/Casablanca'), ('Pacific/Chatham'), ('Etc/GMT+12'), ('America/Santiago');
INSERT INTO businesses (id, salon_name, owner_name, whatsapp_number, opening_time,
                        closing_time, slot_duration, booking_link, timezone)
SELECT md5('business ' || n)::uuid, 'Salon', 'Owner', '0', '09:00', '18:00', 30, 'link' || n, name
  FROM t.zone;
-- 4,000 anywhere in the year, and each quarter of an hour of the nights in question
CREATE TABLE t.slot AS
SELECT DISTINCT ON (zone, date, start_time) row_number() OVER () AS n, *
  FROM (SELECT 1 + i % 14 AS zone, date '2024-01-01' + floor(random() * 366)::integer AS date,
               time '00:00' + floor(random() * 96) * interval '15 min' AS start_time,
               make_interval(mins => 15 * (1 + floor(random() * 20)::integer)) AS length,
               CASE WHEN random() < 0.5 THEN floor(random() * 600)::integer - 100 END AS minutes
          FROM generate_series(1, 4000) i
        UNION ALL
        SELECT z.n, d.date, time '00:00' + q * interval '15 min',
               make_interval(mins => 30 + 30 * (q % 5)), CASE WHEN q % 3 = 0 THEN 200 END
          FROM (VALUES (4, date '2024-03-10'), (4, '2024-11-03'), (8, '2024-03-31'), (8, '2024-10-27'),
                       (9, '2024-04-07'), (9, '2024-10-06'), (12, '2024-04-07'), (12, '2024-09-29')) d (zone, date)
          JOIN t.zone z ON z.n = d.zone CROSS JOIN generate_series(0, 20) q) s;
INSERT INTO slots (id, business_id, date, start_time, end_time, status)
SELECT md5('slot ' || n)::uuid, md5('business ' || zone)::uuid, date, start_time, start_time + length, 'booked'
  FROM t.slot;
INSERT INTO bookings (id, business_id, slot_id, customer_name, customer_phone, booking_id, status,
                      total_duration_minutes)
SELECT md5('booking ' || n)::uuid, md5('business ' || zone)::uuid, md5('slot ' || n)::uuid,
       'Customer', '0', 'CO-' || n, 'confirmed', minutes
  FROM t.slot;
ANALYZE slots, bookings, businesses;

CREATE TABLE t.moment (at timestamptz);
INSERT INTO t.moment VALUES
  ('2024-01-01 00:00Z'), ('2024-03-10 06:45Z'), ('2024-03-10 07:15Z'), ('2024-03-10 07:59:59.999999Z'),
  ('2024-03-10 08:00Z'), ('2024-03-31 01:15Z'), ('2024-04-06 15:10Z'), ('2024-10-05 15:50Z'),
  ('2024-11-03 05:45Z'), ('2024-11-03 06:15Z'), ('2024-11-03 06:45Z'), ('2024-11-03 07:30Z'),
  ('2024-12-31 23:00Z'), ('2025-01-03 00:00Z');
SELECT is(t.marked(at, '0'), t.expected(at, '0'), 'who is marked at ' || (at AT TIME ZONE 'UTC'))
  FROM t.moment ORDER BY at;
-- exactly when each appointment is over: at its end, and not a microsecond before
SELECT is(t.marked(ended_at, '0'), t.expected(ended_at, '0'), 'at an end')
  FROM t.appointment WHERE ended_at > '2024-11-03 06:00Z' ORDER BY ended_at, id LIMIT 1;
SELECT is(t.marked(ended_at - interval '1 microsecond', '0'), t.expected(ended_at - interval '1 microsecond', '0'),
          'right before it')
  FROM t.appointment WHERE ended_at > '2024-11-03 06:00Z' ORDER BY ended_at, id LIMIT 1;
SELECT is(t.marked('2024-11-03 06:30Z', '1 day'), t.expected('2024-11-03 06:30Z', '24 hours'),
          'a day is 24 hours');

-- whatever the session's settings
CREATE FUNCTION t.same(p_setting text, p_value text) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
  v_expected text[];
  v_marked text[];
BEGIN
  SELECT array_agg(t.expected(at, '0') ORDER BY at) INTO v_expected FROM t.moment;
  PERFORM set_config(p_setting, p_value, true);
  SELECT array_agg(t.marked(at, '0') ORDER BY at) INTO v_marked FROM t.moment;
  RETURN v_expected = v_marked;
END
$$;
SELECT ok(t.same(setting, value), 'with ' || setting || ' ' || value)
  FROM (VALUES ('TimeZone', 'America/New_York'), ('TimeZone', 'Asia/Kolkata'),
               ('TimeZone', 'Pacific/Kiritimati'), ('DateStyle', 'SQL, DMY'),
               ('timezone_abbreviations', 'India')) s (setting, value);

-- the job, by a role with the rights of an operator, in small batches
CREATE ROLE no_show_operator BYPASSRLS;
SELECT g FROM cusown_grant('no_show_operator', 'operator') g
\gexec
INSERT INTO cusown_ops.job (name, enabled) VALUES ('mark_no_show', true);
SELECT count(*) AS expected FROM t.appointment WHERE ended_at <= now() - interval '30 min' \gset
SET ROLE no_show_operator;
CALL cusown_run_job('mark_no_show', 'cron', 97);
RESET ROLE;
SELECT is(concat_ws(' ', source, status, changed, attention, looked_at),
          'cron succeeded ' || :expected || ' 0 ' || :expected, 'the job marks all')
  FROM cusown_ops.job_run ORDER BY id DESC LIMIT 1;
SELECT is((SELECT count(*) FROM bookings WHERE no_show), :expected::bigint, 'all of them');

-- the index that the README advises is the one that a run reads
UPDATE bookings SET no_show = false, no_show_marked_at = NULL, no_show_marked_by = NULL
 WHERE id IN (SELECT b.id FROM bookings b ORDER BY b.id LIMIT 10);
CREATE INDEX no_show_candidates ON bookings (id)
WHERE status = 'confirmed' AND no_show IS NOT TRUE AND no_show_marked_at IS NULL;
ANALYZE bookings;
SELECT marked FROM cusown_mark_no_show() \gset
SELECT pg_stat_force_next_flush() \g /dev/null
SELECT is(:marked, 10, 'a second run marks what is left');
SELECT cmp_ok((SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = 'no_show_candidates'),
              '>', 0::bigint, 'and reads the index for it');

--
-- An application by other names
--

SELECT count(*) AS names FROM cusown_attach('shop', :'minimal_mapping') \gset
SELECT is(t.refusal('SELECT cusown_mark_no_show()'), 'UO001 several applications are attached: "public", "shop"',
          'with two of them one has to choose');
SET cusown_ops.app_schema = 'shop';
SELECT is(t.refusal('SELECT cusown_mark_no_show()'),
          'UO001 canonical name "bookings.no_show" is not bound in application schema "shop"',
          'an application that does not know of no-shows has none');
ALTER TABLE shop.reservation ADD stayed_away boolean, ADD stayed_away_since timestamptz, ADD minutes smallint;
INSERT INTO shop.time_slot (ref, state, starts_at, ends_at)
SELECT md5('slot ' || n)::uuid, 'booked', now() - n * interval '10 min', now() - (n - 3) * interval '10 min'
  FROM generate_series(1, 12) n;
INSERT INTO shop.reservation (ref, state, slot_ref, minutes)
SELECT md5('booking ' || n)::uuid, CASE n WHEN 12 THEN 'pending' ELSE 'confirmed' END, md5('slot ' || n)::uuid,
       CASE n WHEN 8 THEN 60 WHEN 11 THEN 80 END
  FROM generate_series(1, 12) n;
CREATE FUNCTION t.stayed_away() RETURNS text
LANGUAGE sql AS $$
  SELECT string_agg(n::text || CASE WHEN stayed_away THEN 'a' ELSE '' END
                    || CASE WHEN stayed_away_since IS NOT NULL THEN 's' ELSE '' END, ' ' ORDER BY n)
    FROM generate_series(1, 12) n JOIN shop.reservation r ON r.ref = md5('booking ' || n)::uuid
   WHERE stayed_away OR stayed_away_since IS NOT NULL
$$;
SELECT count(*) AS names FROM cusown_attach('shop', jsonb_set(jsonb_set(:'minimal_mapping',
  '{bookings,columns,no_show}', '"stayed_away"'), '{bookings,columns,total_duration}', '"minutes"')) \gset
SELECT is((SELECT marked FROM cusown_mark_no_show('40 minutes')), 3::bigint, 'with such a column it has');
SELECT is(t.stayed_away(), '7a 9a 10a', 'those that are over');
SELECT count(*) AS names FROM cusown_attach('shop', jsonb_set(jsonb_set(:'minimal_mapping',
  '{bookings,columns,no_show_marked_at}', '"stayed_away_since"'), '{bookings,columns,total_duration}', '"minutes"')) \gset
SELECT is((SELECT count(*) FROM shop.journal WHERE verb = 'booking_no_show'),
          (SELECT count(*) FROM shop.reservation WHERE stayed_away), 'with a journal row each');
UPDATE shop.reservation SET stayed_away_since = now() WHERE stayed_away;
SELECT is((SELECT marked FROM cusown_mark_no_show('20 minutes')), 4::bigint,
          'and with the time of the mark alone');
SELECT is(t.stayed_away(), '5s 6s 7as 8s 9as 10as 11s', 'likewise');
SELECT is_empty('SELECT ref FROM shop.time_slot WHERE state <> ''booked''', 'every slot is as it was');

SELECT finish();
