--
-- demo.sql
--      The runbook "Cron Failure (expire-bookings)", walked through on a week
--      of bookings.  Run by scripts/demo; stops at the first wrong figure.
--
\set QUIET on
\pset footer off
\pset null '-'
SET client_min_messages = warning;

-- Compares a figure that was shown with the one that the sample holds.
CREATE FUNCTION expect(what text, shown anyelement, expected anyelement)
RETURNS text LANGUAGE plpgsql AS $$
BEGIN
  IF shown IS DISTINCT FROM expected THEN
    RAISE EXCEPTION '% should be %, but is %', what, expected, shown;
  END IF;
  RETURN shown::text;
END
$$;

\ir ../test/fixture/cusown_app.sql
\ir ../test/fixture/sample_week.sql

\echo
\echo '1. The application: a week of bookings.  The cron job that expires'
\echo '   pending ones after 24 hours died two days ago.'
\echo
SELECT status, count(*) AS bookings,
       count(*) FILTER (WHERE status = 'pending'
         AND created_at < now() - interval '24 hours') AS "older than 24 h"
FROM bookings GROUP BY status ORDER BY status;

SELECT expect('bookings', count(*), 270::bigint) AS n FROM bookings \gset

\echo '2. Two commands: install, attach.  Attach finds the application''s names'
\echo '   by itself, and warns of what would hurt, with the DDL that mends it.'
\echo
\echo '   CREATE EXTENSION cusown_ops;'
\echo '   SELECT * FROM cusown_attach();'
\echo
CREATE EXTENSION cusown_ops;
CREATE TEMP TABLE attached AS SELECT * FROM cusown_attach();
SELECT status, count(*) AS names FROM attached GROUP BY status ORDER BY status;
SELECT attribute AS warning, remedy FROM attached WHERE status = 'warning';

SELECT expect('warnings', count(*), 9::bigint) AS n
FROM attached WHERE status = 'warning' \gset

\echo '3. What is due, and what may happen to it.  This writes nothing.'
\echo
\echo '   SELECT verdict, count(*), min(finding) FROM cusown_due_bookings() GROUP BY verdict;'
\echo
CREATE TEMP VIEW due AS
SELECT verdict, count(*) AS bookings, min(due_since) AS oldest_since,
       min(finding) AS for_instance
FROM cusown_due_bookings() GROUP BY verdict;
SELECT verdict, bookings, date_trunc('minute', now() - oldest_since) AS "oldest overdue",
       for_instance
FROM due ORDER BY verdict;

SELECT expect('due: expire', bookings, 40::bigint) AS n FROM due WHERE verdict = 'expire' \gset
SELECT expect('due: paid', bookings, 4::bigint) AS n FROM due WHERE verdict = 'paid' \gset
SELECT expect('due: refused', bookings, 4::bigint) AS n FROM due WHERE verdict = 'refused' \gset
SELECT expect('due: in flight', bookings, 3::bigint) AS n FROM due WHERE verdict = 'in_flight' \gset

\echo '4. The dry run: the same code, rolled back.'
\echo
\echo '   SELECT * FROM cusown_expire_bookings(dry_run => true);'
\echo
SELECT * FROM cusown_expire_bookings(dry_run => true) \gset dry_
SELECT :dry_expired AS expired, :dry_released AS released,
       :dry_attention AS attention, :'dry_more'::boolean AS more;

SELECT expect('pending after the dry run', count(*), 84::bigint) AS n
FROM bookings WHERE status = 'pending' \gset

\echo '5. The run.  Each change has its audit row in the same transaction.'
\echo
\echo '   SELECT * FROM cusown_expire_bookings();'
\echo
SELECT * FROM cusown_expire_bookings() \gset run_
SELECT :run_expired AS expired, :run_released AS released,
       :run_attention AS attention, :'run_more'::boolean AS more;

SELECT expect('expired', :run_expired, 40) AS n \gset
SELECT expect('released', :run_released, 27) AS n \gset
SELECT expect('attention', :run_attention, 8) AS n \gset
SELECT expect('more', :'run_more'::boolean, false) AS n \gset
SELECT expect('dry run and run agree',
              (:dry_expired, :dry_released, :dry_attention)::text,
              (:run_expired, :run_released, :run_attention)::text) AS n \gset
SELECT expect('audit rows', count(*), 67::bigint) AS n
FROM audit_logs WHERE metadata->>'source' = 'manual' \gset
SELECT expect('breaks in the chain of audit rows', count(*), 0::bigint) AS n
FROM verify_audit_chain() \gset
SELECT expect('confirmed bookings whose slot was freed by us', count(*), 0::bigint) AS n
FROM audit_logs a JOIN bookings b ON b.slot_id = a.entity_id AND b.status = 'confirmed'
WHERE a.metadata->>'source' = 'manual' AND a.action_type = 'slot_released' \gset

\echo '6. What is left for a human is on the worklist, with the runbook to open.'
\echo
\echo '   SELECT * FROM cusown_ops.attention WHERE closed_at IS NULL;'
\echo
SELECT id, kind, left(entity_id::text, 8) AS booking, runbook, sqlstate AS state, finding
FROM cusown_ops.attention WHERE closed_at IS NULL ORDER BY id;

SELECT expect('open entries', count(*), 8::bigint) AS n
FROM cusown_ops.attention WHERE closed_at IS NULL \gset

\echo '7. The customer of the first one was refunded.  The next run sees it,'
\echo '   closes the entry and expires the booking.'
\echo
SELECT entity_id AS refunded FROM cusown_ops.attention
WHERE kind = 'paid_pending' ORDER BY id LIMIT 1 \gset
UPDATE payments SET status = 'refunded', refunded_at = now()
WHERE booking_id = :'refunded' AND status IN ('completed', 'partially_refunded');
SELECT * FROM cusown_expire_bookings() \gset again_
SELECT :again_expired AS expired, :again_released AS released,
       :again_attention AS attention, :'again_more'::boolean AS more;

SELECT expect('expired after the refund', :again_expired, 1) AS n \gset
SELECT expect('entry closed by', closed_by, 'recheck') AS n
FROM cusown_ops.attention WHERE entity_id = :'refunded' \gset

\echo '8. The audit trail of that booking.'
\echo
SELECT date_trunc('second', created_at) AS at, action_type AS action,
       old_data->>'status' AS before, new_data->>'status' AS after,
       metadata->>'source' AS source, metadata->>'rule' AS rule
FROM audit_logs WHERE entity_id = :'refunded' ORDER BY created_at;

SELECT expect('its last audit row', max(metadata->>'source') , 'manual') AS n
FROM audit_logs WHERE entity_id = :'refunded' AND action_type = 'booking_cancelled' \gset

\echo '9. The same, unattended: a job works in batches of its own transactions,'
\echo '   and keeps a ledger.'
\echo
\echo '   CALL cusown_run_job(''release_expired_holds'', batch_size => 10);'
\echo
CALL cusown_run_job('release_expired_holds', batch_size => 10);
SELECT job, source, status, changed, released, looked_at, batches
FROM cusown_ops.job_run;

SELECT expect('slots whose hold the job ended', changed, 23::bigint) AS n FROM cusown_ops.job_run \gset
SELECT expect('batches', batches, 3::bigint) AS n FROM cusown_ops.job_run \gset

\echo '10. Is the scheduler alive?  The expiry job has never succeeded here, which counts'
\echo '    once it has had its time: as if the application had been attached an hour ago.'
\echo
UPDATE cusown_ops.binding SET bound_since = bound_since - interval '1 hour';
\echo '   SELECT * FROM cusown_cron_health();'
\echo
SELECT job, every, late, last_outcome, cron_state FROM cusown_cron_health();

SELECT expect('late jobs', count(*) FILTER (WHERE late), 4::bigint) AS n FROM cusown_cron_health() \gset

\echo '11. What the application has to tell its customers, from a cursor on.'
\echo
\echo '   SELECT * FROM cusown_changes_since();'
\echo
SELECT verb, entity, from_status, to_status, count(*)
FROM cusown_changes_since() GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4;

SELECT expect('bookings that were expired', count(*), 41::bigint) AS n
FROM cusown_changes_since() WHERE entity = 'booking' \gset

\echo '12. Until the scheduler is mended, requests of the application do its work:'
\echo '    one in 30 seconds, over all sessions, has its turn.'
\echo
\echo '   SELECT cusown_expire_if_due();'
\echo
UPDATE bookings SET created_at = created_at - interval '1 day'
WHERE id = md5('booking pending_hold_ended 1')::uuid;
SELECT cusown_expire_if_due() AS first_request \gset
SELECT cusown_expire_if_due() AS next_request \gset
SELECT :first_request AS first_request, :next_request AS next_request;

SELECT expect('expired by the first request', :first_request, 1) AS n \gset
SELECT expect('expired by the next one', :next_request, 0) AS n \gset
SELECT expect('the scheduler is still late', late, true) AS n
FROM cusown_cron_health() WHERE job = 'expire_bookings' \gset

