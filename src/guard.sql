/* ---------- guard: statuses change as they may, or not at all ---------- */

CREATE FUNCTION cusown_ops.guard()
RETURNS trigger
LANGUAGE c VOLATILE
AS 'MODULE_PATHNAME', 'cusown_guard_trigger';

COMMENT ON FUNCTION cusown_ops.guard() IS
'Trigger that cusown_guard() puts on an application''s table';

CREATE FUNCTION @extschema@.cusown_guard(
  mode text DEFAULT NULL,
  app_schema name DEFAULT NULL,
  OUT application name,
  OUT entity text,
  OUT relation text,
  OUT guard text)
RETURNS SETOF record
LANGUAGE c VOLATILE PARALLEL UNSAFE ROWS 2
AS 'MODULE_PATHNAME', 'cusown_guard';

COMMENT ON FUNCTION @extschema@.cusown_guard(text, name) IS
'Sets how the statuses of an application''s bookings and payments are guarded by triggers on their tables, and shows it.
mode: off; warn (a WARNING for what the other modes refuse); transitions (changes of status that the state machine does not have are UO003, whoever asks); a late capture of a payment takes cusown_payment_transition(), as it takes evidence, else UO007); functions (and a booking becomes confirmed through cusown_confirm_booking() only, and the status of a payment changes through our functions only, else UO007); null: only show.
app_schema: the attached application; null: the one that cusown_ops.app_schema chooses.
The application may change the type of its status column and drop it. Where the column is renamed or gone, writes of the table are UO001 (mode warn: a WARNING for each statement) until cusown_attach() is told its name, which sets the guard anew, or the guard is off.
A row that goes to another partition changes from the status that it had.
Not guarded is what session_replication_role = replica writes, as a subscription does, DELETE and TRUNCATE, and tables that inherit from these without being their partitions.
Errors: 22023 unknown mode; UO001 no application attached; 42501 a table belongs to another; 55P03 a table was in use for two seconds; 42710 a table has a trigger cusown_guard that is not this application''s.
Locks: none where the guard is as it should be; else ACCESS EXCLUSIVE on the tables (SHARE ROW EXCLUSIVE where it was not guarded), to the end of the transaction.
Source: runbook Double Booking Alert, step 4.';

CREATE FUNCTION @extschema@.cusown_override(reason text)
RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'cusown_override';

COMMENT ON FUNCTION @extschema@.cusown_override(text) IS
'Lets pass, to the end of this transaction, what the guard of the application that cusown_ops.app_schema chooses would refuse; writes an audit row data_corrected with the reason.
reason: why it must be, for whoever reads the audit trail.
Errors: 22023 empty reason; UO001 no application attached; 22004 reason is null; 25006 standby or read-only transaction; 0A000 not READ COMMITTED.
Source: runbook Double Booking Alert, step 3.';

