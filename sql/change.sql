-- Shows changes: what our verbs changed, read on behind a cursor, page by page,
-- and for how long it is kept.
\set ON_ERROR_STOP 0
\getenv abs_srcdir PG_ABS_SRCDIR
\set app :abs_srcdir '/test/fixture/cusown_app.sql'
\set minimal :abs_srcdir '/test/fixture/app_minimal.sql'
SET client_min_messages = warning;
CREATE EXTENSION cusown_ops;
-- also before anything is attached
SELECT * FROM cusown_changes_since();
\set ECHO none
\set schema change_app
\i :app
\set schema change_shop
\i :minimal
\set ECHO all
SET search_path = change_app, public;
SELECT count(*) > 0 AS attached FROM cusown_attach('change_app');

CREATE FUNCTION id_of(kind text, n int) RETURNS uuid
LANGUAGE sql IMMUTABLE
RETURN rpad(CASE kind WHEN 'slot' THEN 'a' WHEN 'payment' THEN 'c' ELSE 'b' END
            || lpad(n::text, 7, '0'), 32, '0')::uuid;
INSERT INTO businesses (id, salon_name, owner_name, whatsapp_number,
  opening_time, closing_time, slot_duration, booking_link)
VALUES (id_of('booking', 0), 'Salon', 'Owner', '+910000000000',
  '09:00', '18:00', 30, 'salon');
CREATE PROCEDURE add_due(first int, last int, slot_status text DEFAULT 'reserved')
LANGUAGE sql AS $$
  INSERT INTO slots (id, business_id, date, start_time, end_time, status, reserved_until)
  SELECT id_of('slot', n), id_of('booking', 0), current_date + n, '10:00', '10:30',
         slot_status, CASE slot_status WHEN 'reserved' THEN now() - interval '2 days' END
  FROM generate_series(first, last) n;
  INSERT INTO bookings (id, business_id, slot_id, customer_name, customer_phone, booking_id, created_at)
  SELECT id_of('booking', n), id_of('booking', 0), id_of('slot', n), 'Customer',
         '+910000000001', 'CODE' || n, now() - interval '3 days' + n * interval '1 second'
  FROM generate_series(first, last) n;
$$;
-- A change is given when no transaction is open that was open when it was
-- made; that may be any in the cluster, autovacuum's for instance.
CREATE PROCEDURE settle()
LANGUAGE plpgsql AS $$
BEGIN
  FOR i IN 1 .. 6000 LOOP
    COMMIT;
    EXIT WHEN NOT EXISTS (SELECT FROM cusown_ops.change
                          WHERE xid >= pg_snapshot_xmin(pg_current_snapshot()));
    PERFORM pg_sleep(0.01);
  END LOOP;
END $$;
CREATE FUNCTION shown(c record) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
  RETURN concat_ws(' ', c.app_schema, c.verb, c.source, c.entity, left(c.entity_id::text, 8), 'slot',
                   left(c.slot_id::text, 8), c.from_status, '->', c.to_status);
END $$;

-- bookings and slots, in the words of the application
CALL add_due(1, 2);
CALL add_due(3, 3, 'booked');
CALL add_due(4, 4, 'available');
SELECT expired, released FROM cusown_expire_bookings();
UPDATE slots SET status = 'reserved', reserved_until = now() - interval '1 minute' WHERE id <= id_of('slot', 2);
INSERT INTO bookings (id, business_id, slot_id, customer_name, customer_phone, booking_id, status)
VALUES (id_of('booking', 5), id_of('booking', 0), id_of('slot', 1), 'Customer', '0', 'CODE5', 'confirmed');
SELECT released, booked FROM cusown_release_expired_holds(source => 'application');
CALL settle();
SELECT shown(c) FROM cusown_changes_since() c;
SELECT DISTINCT at > now() - interval '1 minute' AND at < now() AS at,
       cursor ~ '^[0-9a-f]{32}-[0-9]+-[0-9]+$' AS cursor
FROM cusown_changes_since();
-- a filter of one's own
SELECT left(entity_id::text, 8) AS booking FROM cusown_changes_since()
WHERE verb = 'expire_bookings' AND entity = 'booking';

-- a dry run, and one that is rolled back, leave none
CALL add_due(11, 12);
SELECT expired FROM cusown_expire_bookings(dry_run => true);
BEGIN;
SELECT expired FROM cusown_expire_bookings();
-- nor is what this transaction made given to itself
SELECT count(*) FROM cusown_changes_since() WHERE entity_id > id_of('booking', 10);
ROLLBACK;
CALL settle();
SELECT count(*) FROM cusown_changes_since();
SELECT count(*) FROM cusown_ops.change;

-- reading on: each once, page by page, until nothing is left
SELECT cursor AS here FROM cusown_changes_since() ORDER BY row_number() OVER () DESC LIMIT 1 \gset
SELECT count(*) FROM cusown_changes_since(:'here');
CALL add_due(21, 30);
CALL cusown_run_job('expire_bookings', 'cron', 5);
CALL settle();
SELECT shown(c) FROM cusown_changes_since(:'here', 3) c;
CREATE TEMP TABLE page (n int, entity_id uuid, cursor text);
DO $$
DECLARE
  v_cursor text;
  v_rows int;
BEGIN
  FOR n IN 1 .. 100 LOOP
    INSERT INTO page SELECT n, entity_id, cursor FROM cusown_changes_since(v_cursor, 7);
    GET DIAGNOSTICS v_rows = ROW_COUNT;
    EXIT WHEN v_rows = 0;
    SELECT cursor INTO STRICT v_cursor FROM page ORDER BY split_part(cursor, '-', 2)::int8 DESC,
      split_part(cursor, '-', 3)::int8 DESC LIMIT 1;
  END LOOP;
END $$;
SELECT n AS page, count(*) FROM page GROUP BY 1 ORDER BY 1;
SELECT count(*) = (SELECT count(*) FROM cusown_ops.change) AS everything,
       count(DISTINCT cursor) = count(*) AS once FROM page;
-- any row's cursor is a place to read on from
SELECT bool_and((SELECT count(*) FROM cusown_changes_since(c.cursor)) = c.behind) AS each
FROM (SELECT cursor, count(*) OVER () - row_number() OVER () AS behind FROM cusown_changes_since()) c;
-- reading twice gives the same
SELECT count(*) FROM (SELECT * FROM cusown_changes_since() EXCEPT ALL SELECT * FROM cusown_changes_since()) d;

-- cursors that are refused
SELECT * FROM cusown_changes_since(''); -- fails
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM cusown_changes_since('garbage'); -- fails
SELECT * FROM cusown_changes_since('1'); -- fails
SELECT * FROM cusown_changes_since(:'here' || ' '); -- fails
SELECT * FROM cusown_changes_since(:'here' || '-1'); -- fails
SELECT * FROM cusown_changes_since(upper(:'here') || 'X'); -- fails
-- of this stream, but no number behind it
SELECT split_part(:'here', '-', 1) AS stream \gset
CREATE FUNCTION pg_temp.refusal(after text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  detail text;
BEGIN
  RETURN count(*) FROM cusown_changes_since(after);
EXCEPTION WHEN invalid_parameter_value THEN
  GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL;
  RETURN detail;
END $$;
SELECT behind, pg_temp.refusal(:'stream' || behind) AS refusal
FROM unnest('{--1-1,-1--1,--1--1,-+1-1,-1-+1,"- 1-1","-1- 1",-1-,--1,-1,-1-1-1,-1-1x,-0x1-1,-1-9223372036854775808,
  -9223372036854775808-1,-99999999999999999999-1,-1-99999999999999999999,-1-111111111111111111111}'::text[]) behind;
-- of another database
SELECT * FROM cusown_changes_since(repeat('0', 32) || '-1-1'); -- fails
\echo :LAST_ERROR_SQLSTATE
-- of a transaction that has not begun
SELECT * FROM cusown_changes_since(split_part(:'here', '-', 1) || '-4611686018427387904-1'); -- fails
\echo :LAST_ERROR_SQLSTATE
-- and max_rows
SELECT * FROM cusown_changes_since(max_rows => 0); -- fails
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM cusown_changes_since(max_rows => -1); -- fails
SELECT * FROM cusown_changes_since(max_rows => NULL); -- fails

-- it only reads
BEGIN READ ONLY;
SELECT count(*) > 0 AS some FROM cusown_changes_since();
COMMIT;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT count(*) > 0 AS some FROM cusown_changes_since();
COMMIT;

-- several applications: one stream
SELECT count(*) > 0 AS attached FROM cusown_attach('change_shop', :'minimal_mapping');
SELECT cursor AS here FROM cusown_changes_since() ORDER BY row_number() OVER () DESC LIMIT 1 \gset
INSERT INTO change_shop.time_slot (ref, state, held_until) VALUES (id_of('slot', 1), 'reserved', now() - interval '1 day');
INSERT INTO change_shop.reservation (ref, state, slot_ref, made_at)
VALUES (id_of('booking', 1), 'pending', id_of('slot', 1), now() - interval '2 days');
CALL add_due(31, 31);
CALL cusown_run_job('expire_bookings', 'cron');
CALL settle();
SELECT shown(c) FROM cusown_changes_since(:'here') c;
SET cusown_ops.app_schema = 'change_app';

-- who may read it
CREATE ROLE regress_change_reader;
SET ROLE regress_change_reader;
SELECT count(*) FROM cusown_changes_since(); -- fails
RESET ROLE;
SELECT cusown_grant('regress_change_reader', 'monitor') \g /dev/null
SET ROLE regress_change_reader;
SELECT count(*) > 0 AS some FROM cusown_changes_since();
RESET ROLE;

-- what is kept: changes and closed worklist entries for change_retention
SHOW cusown_ops.change_retention;
SELECT cursor AS here FROM cusown_changes_since() LIMIT 1 \gset
CALL add_due(41, 44);
INSERT INTO payments (id, booking_id, provider, provider_payment_id, amount_cents, status, created_at)
SELECT id_of('payment', n), id_of('booking', n), 'razorpay', 'pay_' || n, 100, 'completed', now()
FROM generate_series(41, 44) n;
SELECT attention FROM cusown_expire_bookings();
TRUNCATE cusown_ops.job_run;
CALL cusown_run_job('prune_history');
UPDATE cusown_ops.change SET at = now() - interval '6 days 23 hours';
UPDATE cusown_ops.change SET at = now() - interval '7 days 1 hour'
WHERE entity = 'slot' AND app_schema = 'change_app';
-- closed long ago; closed just now; open, though old; closed long ago, but backed off
UPDATE cusown_ops.attention SET closed_at = now() - interval '8 days', closed_by = 'me', next_try = now() - interval '8 days'
WHERE entity_id = id_of('booking', 41);
UPDATE cusown_ops.attention SET closed_at = now() - interval '6 days', closed_by = 'me', next_try = now() - interval '6 days'
WHERE entity_id = id_of('booking', 42);
UPDATE cusown_ops.attention SET first_seen = now() - interval '1 year', last_seen = now() - interval '8 days',
  next_try = now() - interval '8 days'
WHERE entity_id = id_of('booking', 43);
UPDATE cusown_ops.attention SET closed_at = now() - interval '8 days', closed_by = 'me', next_try = now() - interval '1 day'
WHERE entity_id = id_of('booking', 44);
CALL cusown_run_job('prune_history', batch_size => 4);
SELECT app_schema, entity, count(*) FROM cusown_ops.change GROUP BY 1, 2 ORDER BY 1, 2;
SELECT left(entity_id::text, 8) AS booking FROM cusown_ops.attention ORDER BY 1;
-- the setting
SET cusown_ops.change_retention = '6d';
CALL cusown_run_job('prune_history');
SELECT app_schema, entity, count(*) FROM cusown_ops.change GROUP BY 1, 2 ORDER BY 1, 2;
SELECT left(entity_id::text, 8) AS booking FROM cusown_ops.attention ORDER BY 1;
SELECT app_schema, changed, released, attention, looked_at, batches FROM cusown_ops.job_run ORDER BY id;
RESET cusown_ops.change_retention;
\set VERBOSITY sqlstate
SET cusown_ops.change_retention = '59s'; -- fails
\set VERBOSITY default
-- a reader that was away so long that it has missed something is told so; the
-- place of the last one that is gone is still one to read on from
SELECT shown(c) FROM cusown_changes_since(:'here') c; -- fails
SELECT s.id AS stream, s.pruned_xid AS xid, s.pruned_id AS id FROM cusown_ops.change_stream s \gset
SELECT format('%s-%s-%s', replace(:'stream', '-', ''), :'xid', :id - 1) AS before,
       format('%s-%s-%s', replace(:'stream', '-', ''), :'xid', :id) AS last \gset
SELECT count(*) FROM cusown_changes_since(:'before'); -- fails
SELECT count(*) = (SELECT count(*) FROM cusown_ops.change) AS all_kept FROM cusown_changes_since(:'last');
SELECT count(*) = (SELECT count(*) FROM cusown_ops.change) AS all_kept FROM cusown_changes_since();

-- an application that was detached is pruned by the others' runs, its ledger
-- too; what is open on its worklist, and what is young, stays
INSERT INTO cusown_ops.change (at, app_schema, verb, source, entity, entity_id)
SELECT now() - n * interval '1 day', 'change_gone', 'expire_bookings', 'cron', 'booking', id_of('booking', n)
FROM generate_series(6, 12) n;
INSERT INTO cusown_ops.attention (app_schema, kind, entity, entity_id, runbook, finding, next_try, closed_at, closed_by)
SELECT schema, 'paid_pending', 'booking', id_of('booking', n), 'payment_mismatch', 'paid', now() - n * interval '1 day',
       CASE WHEN n > 1 THEN now() - n * interval '1 day' END, CASE WHEN n > 1 THEN 'me' END
FROM unnest('{change_gone,change_left}'::name[]) schema, unnest('{1,6,8}'::int[]) n;
INSERT INTO cusown_ops.job_run (app_schema, job, source, started_at, finished_at, status, session)
SELECT schema, 'expire_bookings', 'cron', now() - n * interval '1 day', CASE WHEN n < 9 THEN now() - n * interval '1 day' END,
       CASE WHEN n < 9 THEN 'succeeded' ELSE 'running' END, 'pid 0'
FROM unnest('{change_app,change_gone}'::name[]) schema, unnest('{6,8,9}'::int[]) n;
CALL cusown_run_job('prune_history', batch_size => 2);
SELECT id_of('booking', 6) = entity_id AS young, count(*) FROM cusown_ops.change WHERE app_schema = 'change_gone' GROUP BY 1;
SELECT app_schema, closed_at IS NULL AS open, round(extract(epoch FROM now() - next_try) / 86400) AS days FROM cusown_ops.attention
WHERE app_schema IN ('change_gone', 'change_left') ORDER BY 1, 2, 3;
SELECT app_schema, round(extract(epoch FROM now() - started_at) / 86400) AS days, status FROM cusown_ops.job_run
WHERE session = 'pid 0' ORDER BY 1, 2;
SELECT count(*) AS own_rows FROM cusown_ops.job_run WHERE app_schema = 'change_gone' AND session <> 'pid 0';

DROP SCHEMA change_app, change_shop CASCADE;
DROP EXTENSION cusown_ops;
DROP OWNED BY regress_change_reader;
DROP ROLE regress_change_reader;
