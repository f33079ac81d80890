-- Shows scheduling where pg_cron is not loaded, and arguments that are refused;
-- what it does with pg_cron is shown by test/t/006_cron.pl.
\getenv abs_srcdir PG_ABS_SRCDIR
\set minimal :abs_srcdir '/test/fixture/app_minimal.sql'
SET client_min_messages = warning;
CREATE EXTENSION cusown_ops;
\set schema cron_shop
\set ECHO none
\i :minimal
\set ECHO all
SELECT count(*) > 0 AS attached FROM cusown_attach('cron_shop', :'minimal_mapping');

CREATE FUNCTION refusal(statement text) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
  hint text;
BEGIN
  EXECUTE statement;
  RETURN 'allowed';
EXCEPTION WHEN OTHERS THEN
  GET STACKED DIAGNOSTICS hint = PG_EXCEPTION_HINT;
  RETURN concat_ws(' ', SQLSTATE, SQLERRM,
                   replace(hint, quote_literal(current_database()), 'this database'));
END $$;
SELECT refusal('SELECT * FROM cusown_schedule()'); -- fails
SELECT refusal('SELECT * FROM cusown_schedule(''expire_bookings'', ''-1 minute'')'); -- fails
SELECT refusal('SELECT cusown_unschedule()'); -- fails
BEGIN READ ONLY;
SELECT refusal('SELECT * FROM cusown_schedule()'); -- fails
ROLLBACK;

DROP SCHEMA cron_shop CASCADE;
DROP FUNCTION refusal;
DROP EXTENSION cusown_ops;
