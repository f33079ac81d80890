/* ---------- lazy heal: expiry by the application's own requests ---------- */

CREATE FUNCTION @extschema@.cusown_expire_if_due(
  max_rows integer DEFAULT 100)
RETURNS bigint
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'cusown_expire_if_due';

COMMENT ON FUNCTION @extschema@.cusown_expire_if_due(integer) IS
'Expires bookings that are due, for application code to call first on each request, in a transaction of its own. Once in cusown_ops.lazy_expire_interval one caller works, the others return 0 at once: without a query where cusown_ops is preloaded, else by a look at the ledger once in the interval and session.
max_rows: how many bookings to cancel at most, 1 to 100.
Returns the bookings expired; 0 where it was not this caller''s turn, while the job expire_bookings runs, in a read-only transaction and on a standby.
Each turn has a row in cusown_ops.job_run, job expire_if_due. What fails is rolled back, stands there and is a WARNING with its SQLSTATE; the caller''s transaction goes on.
Errors: 22023, 22004 argument; a cancel and a shutdown end it as they end any statement.
Locks: as cusown_expire_bookings(), and no run of the job expire_bookings begins before the caller''s transaction has ended.
Source: runbook Cron Failure, step 4.';

