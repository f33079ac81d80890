-- Rights: nothing to PUBLIC, nothing by default privileges; three profiles,
-- and the DDL that each still needs on the application's tables.
SET client_min_messages = warning;
\getenv abs_srcdir PG_ABS_SRCDIR
\set fixture :abs_srcdir '/test/fixture'
\pset format unaligned

-- Every object of the extension that has an ACL, and what others than its
-- owner may do with it.
CREATE FUNCTION pg_temp.acls()
RETURNS TABLE (kind text, name text, grantee name, privileges text)
LANGUAGE sql SET search_path = pg_catalog AS $$
  WITH member AS (
    SELECT CASE p.prokind WHEN 'f' THEN 'function' ELSE 'procedure' END AS kind,
           format('%s.%s', CASE WHEN n.nspname = 'cusown_ops' THEN 'cusown_ops'
                           ELSE 'public' END, p.proname) AS name,
           coalesce(p.proacl, acldefault('f', p.proowner)) AS acl,
           p.proowner AS owner, d.objid, d.classid
    FROM pg_depend d JOIN pg_proc p ON p.oid = d.objid
    JOIN pg_namespace n ON n.oid = p.pronamespace
    WHERE d.classid = 'pg_proc'::regclass AND d.deptype = 'e'
      AND d.refobjid = (SELECT oid FROM pg_extension
                        WHERE extname = 'cusown_ops')
    UNION ALL
    SELECT CASE c.relkind WHEN 'r' THEN 'table' WHEN 'v' THEN 'view'
             WHEN 'S' THEN 'sequence' ELSE c.relkind::text END,
           c.oid::regclass::text,
           coalesce(c.relacl, acldefault(CASE c.relkind WHEN 'S' THEN 's'
                                         ELSE 'r' END::"char", c.relowner)),
           c.relowner, c.oid, 'pg_class'::regclass
    FROM pg_depend d JOIN pg_class c ON c.oid = d.objid
    WHERE d.classid = 'pg_class'::regclass AND d.deptype = 'e'
      AND d.refobjid = (SELECT oid FROM pg_extension
                        WHERE extname = 'cusown_ops')
    UNION ALL
    SELECT 'schema', n.nspname,
           coalesce(n.nspacl, acldefault('n', n.nspowner)), n.nspowner, n.oid,
           'pg_namespace'::regclass
    FROM pg_depend d JOIN pg_namespace n ON n.oid = d.objid
    WHERE d.classid = 'pg_namespace'::regclass AND d.deptype = 'e'
      AND d.refobjid = (SELECT oid FROM pg_extension
                        WHERE extname = 'cusown_ops')
  )
  SELECT m.kind, m.name,
         CASE x.grantee WHEN 0 THEN 'PUBLIC' ELSE r.rolname END,
         string_agg(x.privilege_type
                    || CASE WHEN x.is_grantable THEN '*' ELSE '' END, ', '
                    ORDER BY x.privilege_type)
  FROM member m
  LEFT JOIN LATERAL (SELECT * FROM aclexplode(m.acl) a
                     WHERE a.grantee <> m.owner) x ON true
  LEFT JOIN pg_roles r ON r.oid = x.grantee
  GROUP BY 1, 2, 3, x.grantee ORDER BY 1, 2, 3
$$;

CREATE EXTENSION cusown_ops;
SELECT kind, name FROM pg_temp.acls();
SELECT * FROM pg_temp.acls() WHERE grantee IS NOT NULL;
SELECT count(*) FROM pg_attribute
WHERE attacl IS NOT NULL AND attrelid IN
  (SELECT oid FROM pg_class WHERE relnamespace = 'cusown_ops'::regnamespace);
DROP EXTENSION cusown_ops;

-- Nothing is left of what default privileges give: of a schema, or of all, to
-- a role, with or without grant option, or to PUBLIC.
CREATE ROLE regress_grant_app;
CREATE ROLE "regress_grant ""App""";
CREATE SCHEMA home;
ALTER DEFAULT PRIVILEGES GRANT ALL ON FUNCTIONS
TO regress_grant_app, "regress_grant ""App""" WITH GRANT OPTION;
ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO regress_grant_app, PUBLIC;
ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO "regress_grant ""App"""
WITH GRANT OPTION;
ALTER DEFAULT PRIVILEGES GRANT ALL ON SEQUENCES
TO regress_grant_app, "regress_grant ""App""", PUBLIC;
ALTER DEFAULT PRIVILEGES GRANT ALL ON SCHEMAS
TO regress_grant_app, "regress_grant ""App""", PUBLIC;
ALTER DEFAULT PRIVILEGES IN SCHEMA home GRANT ALL ON FUNCTIONS
TO regress_grant_app;
ALTER DEFAULT PRIVILEGES IN SCHEMA home GRANT ALL ON TABLES
TO regress_grant_app;
CREATE TABLE home.control ();
CREATE EXTENSION cusown_ops SCHEMA home;
SELECT * FROM pg_temp.acls() WHERE grantee IS NOT NULL;
-- although they were in force
SELECT has_table_privilege('regress_grant_app', 'home.control', 'DELETE');
SELECT has_function_privilege('regress_grant_app', oid, 'EXECUTE')
FROM pg_proc WHERE proname = 'cusown_expire_bookings';
DROP EXTENSION cusown_ops;
DROP SCHEMA home CASCADE;
ALTER DEFAULT PRIVILEGES REVOKE ALL ON FUNCTIONS
FROM regress_grant_app, "regress_grant ""App""";
ALTER DEFAULT PRIVILEGES REVOKE ALL ON TABLES
FROM regress_grant_app, "regress_grant ""App""", PUBLIC;
ALTER DEFAULT PRIVILEGES REVOKE ALL ON SEQUENCES
FROM regress_grant_app, "regress_grant ""App""", PUBLIC;
ALTER DEFAULT PRIVILEGES REVOKE ALL ON SCHEMAS
FROM regress_grant_app, "regress_grant ""App""", PUBLIC;
-- as in the application's database, where the extension is made in the
-- application's own schema
\set ECHO none
\set schema app
\i :fixture/cusown_app.sql
\i :fixture/sample_week.sql
\set ECHO all
CREATE EXTENSION cusown_ops SCHEMA app;
SELECT * FROM pg_temp.acls() WHERE grantee IS NOT NULL;
DROP EXTENSION cusown_ops;

-- Somebody else's function by the name of ours, there before the extension or
-- made later, is neither in the way nor taken for ours.
CREATE FUNCTION public.cusown_attach(text, text) RETURNS text
LANGUAGE sql RETURN 'planted';
CREATE FUNCTION public.cusown_due_bookings(integer) RETURNS text
LANGUAGE sql RETURN 'planted';
CREATE EXTENSION cusown_ops;
CREATE FUNCTION public.cusown_expire_bookings(text) RETURNS text
LANGUAGE sql RETURN 'planted';
CREATE FUNCTION cusown_ops.shipped_transitions(integer) RETURNS text
LANGUAGE sql RETURN 'planted';
CREATE ROLE regress_grant_overload;
SELECT * FROM cusown_grant('regress_grant_overload', 'operator');
SELECT * FROM pg_temp.acls() WHERE grantee IS NOT NULL AND kind = 'function';
SELECT oid::regprocedure, proacl FROM pg_proc WHERE prosqlbody IS NOT NULL
  AND proname IN ('cusown_attach', 'cusown_due_bookings',
                  'cusown_expire_bookings', 'shipped_transitions')
ORDER BY oid::regprocedure::text;
DROP FUNCTION public.cusown_attach(text, text),
  public.cusown_due_bookings(integer), public.cusown_expire_bookings(text),
  cusown_ops.shipped_transitions(integer);
DROP EXTENSION cusown_ops;
DROP ROLE regress_grant_overload;

-- Before anything is granted a role can do nothing.
CREATE EXTENSION cusown_ops;
SELECT count(*) > 0 AS attached FROM cusown_attach('app');
CREATE ROLE regress_grant_monitor;
CREATE ROLE "regress_grant ""Operator"" ; DROP TABLE x";
\set operator 'regress_grant "Operator" ; DROP TABLE x'
SET ROLE regress_grant_monitor;
SELECT * FROM cusown_due_bookings(); -- fails
\echo :SQLSTATE
SELECT * FROM cusown_expire_bookings(); -- fails
SELECT * FROM cusown_attach('app'); -- fails
SELECT cusown_detach('app'); -- fails
SELECT cusown_attention_resolve(1, 'done'); -- fails
SELECT cusown_grant('regress_grant_monitor', 'operator'); -- fails
\echo :SQLSTATE
SELECT * FROM cusown_ops.attention; -- fails
SELECT cusown_ops.revoke_default_privileges(); -- fails
RESET ROLE;

-- Granting returns the DDL that is lacking for the profile; run, nothing is
-- lacking any more.
SELECT * FROM cusown_grant('regress_grant_monitor', 'monitor');
SELECT * FROM cusown_grant('regress_grant_app', 'application');
SELECT * FROM cusown_grant(quote_ident(:'operator')::regrole, 'operator');
SELECT cusown_grant('regress_grant_monitor', 'monitor')
\gexec
SELECT cusown_grant('regress_grant_app', 'application')
\gexec
SELECT cusown_grant(quote_ident(:'operator')::regrole, 'operator')
\gexec
SELECT * FROM cusown_grant('regress_grant_monitor', 'monitor');
SELECT * FROM cusown_grant('regress_grant_app', 'application');
SELECT * FROM cusown_grant(quote_ident(:'operator')::regrole, 'operator');

-- What each profile may do, object by object.  An object without any is for
-- the owner alone; a new one shows up here until somebody has decided on it.
SELECT kind, name,
       max(privileges) FILTER (WHERE grantee = 'regress_grant_monitor')
         AS monitor,
       max(privileges) FILTER (WHERE grantee = 'regress_grant_app')
         AS application,
       max(privileges) FILTER (WHERE grantee = :'operator') AS operator
FROM pg_temp.acls()
GROUP BY 1, 2 ORDER BY 1, 2;
SELECT grantee FROM pg_temp.acls()
WHERE grantee NOT IN ('regress_grant_monitor', 'regress_grant_app',
                      :'operator');

-- monitor looks, and changes nothing.
SET ROLE regress_grant_monitor;
SELECT verdict, count(*) FROM cusown_due_bookings() GROUP BY 1 ORDER BY 1;
SELECT count(*) FROM cusown_ops.state_machine;
SELECT count(*) FROM cusown_ops.state_transition;
SELECT count(*) > 0 AS bound FROM cusown_ops.binding;
SELECT count(*) FROM cusown_ops.attention;
SELECT * FROM cusown_expire_bookings(); -- fails
SELECT * FROM cusown_expire_bookings(dry_run => true); -- fails
SELECT cusown_attention_resolve(1, 'done'); -- fails
SELECT * FROM cusown_attach('app', dry_run => true); -- fails
SELECT cusown_detach('app'); -- fails
SELECT cusown_grant('regress_grant_monitor', 'operator'); -- fails
DELETE FROM cusown_ops.binding; -- fails
TRUNCATE cusown_ops.binding; -- fails
UPDATE cusown_ops.attention SET note = 'x'; -- fails
INSERT INTO cusown_ops.state_transition
VALUES ('app', 'booking', 'cancelled', 'revive', 'pending'); -- fails
UPDATE app.bookings SET status = 'confirmed'; -- fails
SELECT nextval('cusown_ops.attention_id_seq'); -- fails
RESET ROLE;

-- application expires as well, with all that goes with it.
SET ROLE regress_grant_app;
SET search_path = app, public;
SELECT verdict, count(*) FROM cusown_due_bookings() GROUP BY 1 ORDER BY 1;
SELECT * FROM cusown_expire_bookings(dry_run => true);
SELECT * FROM cusown_expire_bookings(max_rows => 20, source => 'application');
SELECT kind, count(*) FROM cusown_ops.attention GROUP BY 1 ORDER BY 1;
SELECT cusown_attention_resolve(1, 'done'); -- fails
SELECT * FROM cusown_attach('app', dry_run => true); -- fails
SELECT cusown_detach('app'); -- fails
SELECT cusown_grant('regress_grant_app', 'operator'); -- fails
DELETE FROM cusown_ops.attention; -- fails
UPDATE cusown_ops.binding SET bound_name = 'x'; -- fails
INSERT INTO cusown_ops.state_transition
VALUES ('app', 'booking', 'cancelled', 'revive', 'pending'); -- fails
DELETE FROM bookings; -- fails
UPDATE audit_logs SET description = 'x'; -- fails
RESET ROLE;
RESET search_path;

-- operator does everything but give rights.
SET ROLE :"operator";
SET search_path = app, public;
SELECT verdict, count(*) FROM cusown_due_bookings() GROUP BY 1 ORDER BY 1;
SELECT expired, more FROM cusown_expire_bookings();
SELECT count(*), bool_and(cusown_attention_resolve(id, 'called the customer'))
FROM cusown_ops.attention WHERE kind = 'paid_pending';
SELECT kind, count(*), count(closed_at) AS closed,
       bool_and(closed_by = current_user) AS by_me
FROM cusown_ops.attention GROUP BY 1 ORDER BY 1;
SELECT count(*) FROM cusown_attach('app', dry_run => true)
WHERE status = 'bound';
SELECT cusown_detach('app');
SELECT count(*) FROM cusown_attach('app') WHERE status = 'bound';
INSERT INTO cusown_ops.state_transition
VALUES ('app', 'booking', 'confirmed', 'no_show', 'cancelled');
UPDATE cusown_ops.state_transition SET event = 'expire';
DELETE FROM cusown_ops.state_transition;
UPDATE cusown_ops.binding SET bound_name = bound_name;
SELECT cusown_grant('regress_grant_app', 'monitor'); -- fails
\echo :SQLSTATE
SELECT cusown_ops.revoke_default_privileges(); -- fails
TRUNCATE cusown_ops.binding; -- fails
DELETE FROM cusown_ops.attention; -- fails
DROP TABLE cusown_ops.attention; -- fails
ALTER TABLE cusown_ops.binding DISABLE TRIGGER ALL; -- fails
CREATE TABLE cusown_ops.mine (); -- fails
DROP EXTENSION cusown_ops; -- fails
RESET ROLE;
RESET search_path;

-- Right by right: what is lacking again is asked for again.
REVOKE UPDATE ON app.slots FROM regress_grant_app;
REVOKE USAGE ON SCHEMA app FROM regress_grant_app;
ALTER ROLE regress_grant_app NOBYPASSRLS;
SELECT * FROM cusown_grant('regress_grant_app', 'application');
-- what a role has by membership it does not lack; BYPASSRLS is not inherited
CREATE ROLE regress_grant_member IN ROLE regress_grant_monitor;
SELECT * FROM cusown_grant('regress_grant_member', 'monitor');
-- a superuser lacks nothing
CREATE ROLE regress_grant_super SUPERUSER;
SELECT * FROM cusown_grant('regress_grant_super', 'operator');
-- where no application is attached nothing can be lacking
SELECT cusown_detach('app');
SELECT * FROM cusown_grant('regress_grant_app', 'application');
-- of the minimal application each table is asked for by its own name
\set ECHO none
\set schema 'The "Shop"'
\i :fixture/app_minimal.sql
\set ECHO all
SELECT count(*) > 0 AS attached
FROM cusown_attach('The "Shop"', :'minimal_mapping');
SELECT * FROM cusown_grant('regress_grant_app', 'application');
SELECT cusown_grant('regress_grant_app', 'application')
\gexec
SELECT * FROM cusown_grant('regress_grant_app', 'application');
SET ROLE regress_grant_app;
SELECT * FROM cusown_expire_bookings();
RESET ROLE;
-- a schema that only tables of it are in is asked for once; with all that is
-- asked for the verb works
CREATE SCHEMA "Led'ger";
ALTER TABLE "The ""Shop""".journal SET SCHEMA "Led'ger";
ALTER TABLE "The ""Shop""".charge SET SCHEMA "Led'ger";
INSERT INTO "The ""Shop""".time_slot (ref, state, held_until)
VALUES (md5('slot')::uuid, 'reserved', now() - interval '1 day');
INSERT INTO "The ""Shop""".reservation (ref, slot_ref, state, made_at)
VALUES (md5('one')::uuid, md5('slot')::uuid, 'pending',
        now() - interval '2 days');
SELECT count(*) > 0 AS attached
FROM cusown_attach('The "Shop"', jsonb_set(jsonb_set(:'minimal_mapping',
  '{audit_logs,relation}', '["Led''ger", "journal"]'),
  '{payments,relation}', '["Led''ger", "charge"]'));
CREATE ROLE regress_grant_two;
SELECT cusown_grant('regress_grant_two', 'application')
\gexec
SELECT * FROM cusown_grant('regress_grant_two', 'application');
SET ROLE regress_grant_two;
SELECT * FROM cusown_expire_bookings();
RESET ROLE;
SELECT cusown_detach('The "Shop"');
-- a role that may call it, but does not own what it would grant on
GRANT EXECUTE ON FUNCTION cusown_grant TO regress_grant_two;
SET ROLE regress_grant_two;
SELECT * FROM cusown_grant('regress_grant_app', 'monitor'); -- fails
\echo :SQLSTATE
RESET ROLE;
-- where our functions are in a schema that the role may not use
DROP EXTENSION cusown_ops;
CREATE SCHEMA "Our Home";
CREATE EXTENSION cusown_ops SCHEMA "Our Home";
SELECT * FROM "Our Home".cusown_grant('regress_grant_app', 'monitor');
DROP EXTENSION cusown_ops;
CREATE EXTENSION cusown_ops;

-- What is no profile, or no role.
SELECT * FROM cusown_grant('regress_grant_app', 'admin'); -- fails
\echo :SQLSTATE
SELECT * FROM cusown_grant('regress_grant_app', 'Monitor'); -- fails
SELECT * FROM cusown_grant('regress_grant_app', ''); -- fails
SELECT * FROM cusown_grant('regress_grant_app',
                           'monitor''; DROP TABLE x; --'); -- fails
SELECT * FROM cusown_grant('-', 'monitor'); -- fails
\echo :SQLSTATE
SELECT * FROM cusown_grant(0, 'monitor'); -- fails
SELECT * FROM cusown_grant('regress_grant_nobody', 'monitor'); -- fails
\echo :SQLSTATE
SELECT * FROM cusown_grant(NULL, 'monitor');
SELECT * FROM cusown_grant('regress_grant_app', NULL);
SELECT * FROM pg_temp.acls() WHERE grantee IS NOT NULL;
BEGIN READ ONLY;
SELECT * FROM cusown_grant('regress_grant_app', 'monitor'); -- fails
\echo :SQLSTATE
ROLLBACK;
-- a grant that is rolled back is none
BEGIN;
SELECT * FROM cusown_grant('regress_grant_app', 'monitor');
SELECT count(*) > 0 AS granted FROM pg_temp.acls() WHERE grantee IS NOT NULL;
ROLLBACK;
SELECT count(*) > 0 AS granted FROM pg_temp.acls() WHERE grantee IS NOT NULL;

DROP EXTENSION cusown_ops;
DROP SCHEMA app, "The ""Shop""", "Led'ger", "Our Home" CASCADE;
DROP OWNED BY regress_grant_app, regress_grant_monitor, regress_grant_member,
  regress_grant_super, regress_grant_two, "regress_grant ""App""", :"operator";
DROP ROLE regress_grant_app, regress_grant_monitor, regress_grant_member,
  regress_grant_super, regress_grant_two, "regress_grant ""App""", :"operator";
