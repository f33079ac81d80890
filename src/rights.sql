/* ---------- rights: nothing to PUBLIC, nothing by default ---------- */

SELECT cusown_ops.revoke_default_privileges();
