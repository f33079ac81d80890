/* ---------- grant: who may call what ---------- */

CREATE FUNCTION @extschema@.cusown_grant(role regrole, profile text)
RETURNS SETOF text
LANGUAGE c VOLATILE PARALLEL UNSAFE ROWS 10
AS 'MODULE_PATHNAME', 'cusown_grant';

COMMENT ON FUNCTION @extschema@.cusown_grant(regrole, text) IS
'Grants a role one of the profiles monitor (looks), application (what an application calls) or operator (all but setting up rights), on objects of this extension.
Returns as DDL the rights on the attached applications'' tables that the role still lacks for it.
Errors: 22023 unknown profile; 42501 the caller does not own this extension''s objects.';

CREATE FUNCTION cusown_ops.revoke_default_privileges()
RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'cusown_revoke_default_privileges';

COMMENT ON FUNCTION cusown_ops.revoke_default_privileges() IS
'Takes away what PUBLIC and ALTER DEFAULT PRIVILEGES have been given on objects of this extension; part of the install script';

