-- What the verbs do, once, for scripts/test --memory: run with discard = 0 and = 1, it
-- must print the same.  With 1, whatever an invalidation may take out of the
-- caches is taken out whenever one could come, but while things are set up.
\set ON_ERROR_STOP 0
\set VERBOSITY terse
SET client_min_messages = warning;
\i :fixture/cusown_app.sql
\i :fixture/app_minimal.sql
\i :fixture/sample_week.sql
CREATE EXTENSION cusown_ops;
-- a trigger that refuses, so that rows are split
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NEW.id = md5('booking due_abandoned 3')::uuid THEN
    RAISE EXCEPTION 'no';
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER refuse BEFORE UPDATE ON bookings FOR EACH ROW EXECUTE FUNCTION refuse();
CREATE ROLE regress_discard;
-- the run may take half an hour, in which nothing is to become due
UPDATE slots SET reserved_until = reserved_until + interval '1 day' WHERE reserved_until > now();
UPDATE slots SET date = date + 30 WHERE date BETWEEN current_date - 1 AND current_date + 1;
ALTER TABLE bookings DISABLE TRIGGER USER;
UPDATE bookings SET created_at = now() WHERE created_at > now() - interval '24 hours';
ALTER TABLE bookings ENABLE TRIGGER USER;
-- some rows of each kind are enough: the application's triggers take seconds each
SELECT count(*) > 0 AS bound FROM cusown_attach();
SELECT * FROM cusown_expire_bookings(max_rows => 35);
SELECT * FROM cusown_release_expired_holds(max_rows => 18);
SELECT * FROM cusown_mark_no_show(max_rows => 43);
TRUNCATE cusown_ops.change, cusown_ops.job_run, cusown_ops.attention;
SELECT cusown_detach();

\set ECHO queries
SET debug_discard_caches = :discard;
SELECT count(*) > 0 AS bound FROM cusown_attach();
SELECT count(*) > 0 AS bound FROM cusown_attach('shop', :'minimal_mapping');
-- two are attached
SELECT * FROM cusown_expire_bookings();
SET cusown_ops.app_schema = 'public';
SELECT count(*) > 0 AS rights FROM cusown_grant('regress_discard', 'monitor');
SELECT verdict, count(*) FROM cusown_due_bookings() GROUP BY 1 ORDER BY 1;
SELECT * FROM cusown_expire_if_due(1);
-- minutes go by, but not so many that anything is looked at again
UPDATE cusown_ops.attention SET next_try = next_try + interval '1 day';
CALL cusown_run_job('expire_bookings');
CALL cusown_run_job('release_expired_holds');
CALL cusown_run_job('mark_no_show');
SELECT b.state, cusown_idempotency_complete('s', 'k', b.token, '{"a": [1.50, null]}') FROM cusown_idempotency_begin('s', 'k', '{"b": [1.50, "x"]}') b;
SELECT state, response FROM cusown_idempotency_begin('s', 'k', '{"b": [1.5, "x"]}');
SELECT cusown_idempotency_complete('s', 'k', -1, NULL);
SELECT b.state, cusown_idempotency_abandon('s', 'k 2', b.token) FROM cusown_idempotency_begin('s', 'k 2') b;
UPDATE cusown_ops.idempotency_key SET expires_at = now();
CALL cusown_run_job('prune_idempotency');
RESET cusown_ops.app_schema;
-- on both
CALL cusown_run_job('prune_history');
SELECT count(*) FROM cusown_cron_health();
SELECT count(*) FROM cusown_jobs();
SET cusown_ops.app_schema = 'public';
SELECT entity, from_status, to_status, count(*) FROM cusown_changes_since() GROUP BY 1, 2, 3 ORDER BY 1, 2, 3;
SELECT cusown_attention_resolve(min(id), 'seen') FROM cusown_ops.attention;
SELECT cusown_attention_resolve(-1, 'none');
SELECT * FROM cusown_schedule();
SELECT cusown_detach('shop');
SELECT cusown_detach();
SELECT * FROM cusown_due_bookings();

SET debug_discard_caches = 0;
\pset format unaligned
SELECT kind, entity, finding, times, closed_at IS NULL AS open, count(*) FROM cusown_ops.attention GROUP BY 1, 2, 3, 4, 5 ORDER BY 1, 2, 3, 4, 5;
SELECT app_schema, job, source, status, changed, released, attention FROM cusown_ops.job_run ORDER BY id;
SELECT status, count(*) FROM bookings GROUP BY 1 ORDER BY 1;
SELECT status, count(*) FROM slots GROUP BY 1 ORDER BY 1;
SELECT action_type, count(*) FROM audit_logs GROUP BY 1 ORDER BY 1;
DROP EXTENSION cusown_ops;
DROP OWNED BY regress_discard;
DROP ROLE regress_discard;
