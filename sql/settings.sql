-- The settings: what they are by default, who may change them, to what.
SET client_min_messages = warning;
CREATE EXTENSION cusown_ops;
\pset format unaligned

-- They are known once the library is loaded, by a function of ours or by LOAD.
\c -
SET client_min_messages = warning;
LOAD 'cusown_ops';
SELECT name, setting, unit, context, vartype, source, min_val, max_val,
       boot_val, reset_val, category
FROM pg_settings WHERE name LIKE 'cusown%' ORDER BY name;
SELECT name, short_desc, extra_desc
FROM pg_settings WHERE name LIKE 'cusown%' ORDER BY name;
SHOW cusown_ops.booking_ttl;
SHOW cusown_ops.processing_grace;
\c -
SET client_min_messages = warning;
SELECT count(*) FROM cusown_ops.shipped_transitions();
SELECT count(*) FROM pg_settings WHERE name LIKE 'cusown%';

-- Times take units, from seconds up.
SET cusown_ops.booking_ttl = '36h';
SELECT setting, unit FROM pg_settings WHERE name = 'cusown_ops.booking_ttl';
SET cusown_ops.booking_ttl = 90;
SHOW cusown_ops.booking_ttl;
SET cusown_ops.processing_grace = '0.5 h';
SHOW cusown_ops.processing_grace;
SET cusown_ops.processing_grace = 0;
SHOW cusown_ops.processing_grace;
SET cusown_ops.batch_size = 1;
SET cusown_ops.batch_size = 10000;
SET cusown_ops.booking_ttl = 2147483647;
SHOW cusown_ops.booking_ttl;
-- out of range, in words that depend on the version
\set VERBOSITY sqlstate
SET cusown_ops.booking_ttl = 0; -- fails
SET cusown_ops.booking_ttl = '-1h'; -- fails
SET cusown_ops.processing_grace = -1; -- fails
\set VERBOSITY default
-- out of range, or no time
SET cusown_ops.booking_ttl = '100000d'; -- fails
SET cusown_ops.booking_ttl = '1 week'; -- fails
SET cusown_ops.booking_ttl = 'soon'; -- fails
SET cusown_ops.batch_size = 0; -- fails
SET cusown_ops.batch_size = 10001; -- fails
SET cusown_ops.batch_size = '1h'; -- fails
RESET cusown_ops.booking_ttl;
RESET cusown_ops.processing_grace;
RESET cusown_ops.batch_size;
SELECT name, setting FROM pg_settings WHERE name LIKE 'cusown%' ORDER BY name;

-- The prefix is ours: what is not a setting cannot be set.
SET cusown_ops.booking_tll = '1h'; -- fails
\echo :SQLSTATE
SELECT set_config('cusown_ops.anything', 'x', false); -- fails

-- What is policy can be set by a superuser only, the choice of an application
-- by everyone.
CREATE ROLE regress_settings_user;
SET ROLE regress_settings_user;
SET cusown_ops.booking_ttl = '1s'; -- fails
\echo :SQLSTATE
SELECT set_config('cusown_ops.booking_ttl', '1', true); -- fails
SET cusown_ops.processing_grace = 0; -- fails
SET cusown_ops.batch_size = 1; -- fails
ALTER ROLE regress_settings_user SET cusown_ops.booking_ttl = '1s'; -- fails
CREATE FUNCTION pg_temp.soon() RETURNS integer LANGUAGE sql
SET cusown_ops.booking_ttl = '1s' AS 'SELECT 1'; -- fails
SET cusown_ops.app_schema = 'shop';
SHOW cusown_ops.app_schema;
SHOW cusown_ops.booking_ttl;
RESET cusown_ops.app_schema;
RESET ROLE;
-- also not before the library is loaded, which then drops what it does not
-- know
\c -
CREATE PROCEDURE pg_temp.set(name text, value text) LANGUAGE plpgsql AS $$
BEGIN
  PERFORM set_config(name, value, false);
EXCEPTION WHEN insufficient_privilege OR invalid_name THEN
  NULL;                         -- the library was preloaded
END
$$;
SET client_min_messages = error;
SET ROLE regress_settings_user;
CALL pg_temp.set('cusown_ops.booking_ttl', '1s');
CALL pg_temp.set('cusown_ops.booking_tll', '1s');
CALL pg_temp.set('cusown_ops.app_schema', 'shop');
RESET ROLE;
LOAD 'cusown_ops';
SET client_min_messages = warning;
SHOW cusown_ops.booking_ttl;
SELECT current_setting('cusown_ops.booking_tll', true) IS NULL AS dropped;
SHOW cusown_ops.app_schema;
RESET cusown_ops.app_schema;
-- unless a superuser gave the right
GRANT SET ON PARAMETER cusown_ops.batch_size TO regress_settings_user;
SET ROLE regress_settings_user;
SET cusown_ops.batch_size = 1;
SHOW cusown_ops.batch_size;
RESET ROLE;
RESET cusown_ops.batch_size;
REVOKE SET ON PARAMETER cusown_ops.batch_size FROM regress_settings_user;

-- the worker's databases are a list of at most 128 names; nothing is written
\set VERBOSITY sqlstate
ALTER SYSTEM SET cusown_ops.worker_databases = 'a,,b'; -- fails
SELECT format('ALTER SYSTEM SET cusown_ops.worker_databases = %L', string_agg('d' || n, ',')) AS too_many
FROM generate_series(1, 129) n \gset
\set ECHO none
:too_many; -- fails
\set ECHO all
\set VERBOSITY default

-- They do what they say.
CREATE SCHEMA shop;
CREATE TABLE shop.slots (id uuid, status text, starts_at timestamptz,
                         ends_at timestamptz, reserved_until timestamptz);
CREATE TABLE shop.bookings (id uuid, slot_id uuid, status text,
                            created_at timestamptz);
CREATE TABLE shop.payments (id uuid, booking_id uuid, status text,
                            created_at timestamptz);
CREATE TABLE shop.audit_logs (action text, entity_type text, entity_id uuid,
                              created_at timestamptz);
SELECT count(*) > 0 AS attached FROM cusown_attach('shop');
INSERT INTO shop.slots
SELECT md5(h::text)::uuid, 'reserved', now(), now(), now() - h * interval '1 h'
FROM generate_series(1, 48) h;
INSERT INTO shop.bookings
SELECT md5(h::text)::uuid, md5(h::text)::uuid, 'pending',
       now() - (h - 0.5) * interval '1 h'
FROM generate_series(1, 48) h;
INSERT INTO shop.payments
SELECT md5(h::text)::uuid, md5(h::text)::uuid, 'processing',
       now() - (h - 24.5) * interval '1 h'
FROM generate_series(25, 48) h;
CREATE FUNCTION pg_temp.verdicts() RETURNS text LANGUAGE sql AS $$
  SELECT string_agg(verdict || ' ' || count, ', ' ORDER BY verdict)
  FROM (SELECT verdict, count(*) FROM cusown_due_bookings() GROUP BY 1) v
$$;
SELECT pg_temp.verdicts();
SET cusown_ops.booking_ttl = '40h';
SELECT pg_temp.verdicts();
RESET cusown_ops.booking_ttl;
SET cusown_ops.processing_grace = '6h';
SELECT pg_temp.verdicts();
SET cusown_ops.processing_grace = 0;
SELECT pg_temp.verdicts();
-- the size of a batch changes no result
SET cusown_ops.batch_size = 1;
SELECT pg_temp.verdicts();
SELECT * FROM cusown_expire_bookings(max_rows => 10);
SET cusown_ops.batch_size = 3;
SELECT * FROM cusown_expire_bookings();
RESET cusown_ops.batch_size;
RESET cusown_ops.processing_grace;
SELECT pg_temp.verdicts();

DROP EXTENSION cusown_ops;
DROP SCHEMA shop CASCADE;
DROP ROLE regress_settings_user;
