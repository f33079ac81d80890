# A run that is cut short: what it had finished stays, what was in flight does
# not, and the ledger says how it ended.  Its ledger and changes over dump and
# restore; its memory; and a run by pg_cron.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Application;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# A database with the application, attached, and nothing in it but a salon.
# Booking n is due before booking n + 1.  A run that comes to a booking marked
# as a gate waits there for whoever holds the advisory lock 1.
sub make_empty_database
{
	my ($node, $name) = @_;

	$node->safe_psql('postgres', "CREATE DATABASE $name")
	  if $name ne 'postgres';
	$node->safe_psql(
		$name,
		include('cusown_app.sql') . q{
		CREATE EXTENSION cusown_ops;
		SELECT count(*) FROM cusown_attach();
		INSERT INTO businesses (id, salon_name, owner_name, whatsapp_number,
		                        opening_time, closing_time, slot_duration, booking_link)
		VALUES (md5('salon')::uuid, 'Salon', 'Owner', '+15550000000', '09:00', '18:00', 30, 'salon');
		CREATE FUNCTION wait_at_gate() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
		  PERFORM pg_advisory_xact_lock_shared(1);
		  RETURN NEW;
		END
		$$;
		CREATE TRIGGER gate BEFORE UPDATE ON bookings FOR EACH ROW
		WHEN (OLD.booking_id LIKE 'gate%') EXECUTE FUNCTION wait_at_gate();
		CREATE SEQUENCE booking_number;
	});
	return;
}

# Adds bookings that are due; the one of that number is the gate.
sub add_due
{
	my ($node, $database, $count, $gate) = @_;

	$gate //= 0;
	$node->safe_psql(
		$database, qq{
		CREATE TEMP TABLE n AS
		SELECT nextval('booking_number') AS n, i FROM generate_series(1, $count) i;
		INSERT INTO slots (id, business_id, date, start_time, end_time, status, reserved_until)
		SELECT md5('slot ' || n)::uuid, md5('salon')::uuid, date '2030-01-01' + n::integer, '09:00',
		       '09:30', 'reserved', now() - interval '1 day' FROM n;
		INSERT INTO bookings (id, business_id, slot_id, customer_name, customer_phone, booking_id, created_at)
		SELECT md5('booking ' || n)::uuid, md5('salon')::uuid, md5('slot ' || n)::uuid, 'Customer',
		       '+15551111111', CASE WHEN i = $gate THEN 'gate ' ELSE 'due ' END || n,
		       now() - interval '3 days' + n * interval '1 second' FROM n;
	});
	return;
}

# A session that closes the gate.
sub close_gate
{
	my ($node, $database) = @_;
	my $session = $node->background_psql($database);

	$session->query_safe('SELECT pg_advisory_lock(1)');
	return $session;
}

my $waiting = q{SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND NOT granted};

# Starts a run in batches of ten over 40 that are due, the 25th a gate, and
# returns when it waits there: two batches are over, one is in flight.
sub start_drain
{
	my ($node, $what, @before) = @_;

	add_due($node, 'app', 40, 25);
	my $run = start_psql($node, 'app', @before,
		q{CALL cusown_run_job('expire_bookings', 'cron', 10)});

	ok($node->poll_query_until('app', "SELECT EXISTS ($waiting)"),
		"$what: a run is in its third batch");
	return $run;
}

sub last_run
{
	my ($node, $database) = @_;

	return $node->safe_psql($database,
		q{SELECT status, changed, released, looked_at, batches, sqlstate, message,
		         finished_at IS NOT NULL
		    FROM cusown_ops.job_run ORDER BY id DESC LIMIT 1});
}

# Of all bookings ever made: what expired, with audit rows for booking and
# slot, changes, free slots; and bookings and slots that disagree.
sub consistent
{
	my ($node, $database, $expired, $what) = @_;

	is( $node->safe_psql(
			$database,
			q{SELECT count(*) FILTER (WHERE b.cancelled_by = 'system'),
			         (SELECT count(*) FROM audit_logs WHERE action_type = 'booking_cancelled'),
			         (SELECT count(*) FROM audit_logs WHERE action_type = 'slot_released'),
			         (SELECT count(*) FROM cusown_ops.change WHERE entity = 'booking'),
			         (SELECT count(*) FROM cusown_ops.change WHERE entity = 'slot'),
			         count(*) FILTER (WHERE (b.status = 'cancelled') <> (s.status = 'available')),
			         (SELECT count(*) FROM verify_audit_chain())
			    FROM bookings b JOIN slots s ON s.id = b.slot_id}),
		join('|', ($expired) x 5, 0, 0),
		"$what: finished batches are there, with slots, audit rows and changes, and the one in flight is not");
	return;
}

my $progress = 'SELECT job, source, done, looked_at, batches, done_per_second > 0 FROM cusown_ops.job_progress';
my $is_alive = q{SELECT cusown_ops.job_is_alive('public', 'expire_bookings')};
my $run_again = q{CALL cusown_run_job('expire_bookings', 'cron', 10)};

my $node = new_node('jobs');

make_empty_database($node, 'app');

# ---------- while it runs ----------

my $gate = close_gate($node, 'app');
my $run = start_drain($node, 'progress');

is($node->safe_psql('app', $progress),
	'expire_bookings|cron|20|20|2|t', 'its progress shows the finished batches');
is($node->safe_psql('app', $is_alive), 't', 'it is alive');
is( $node->safe_psql(
		'app', "SELECT session = 'pid ' || ($waiting) || ', role ' || current_user FROM cusown_ops.job_progress"),
	't', 'and one can tell whose it is');
is( error_of($node, 'app', q{CALL cusown_run_job('expire_bookings')}),
	'UO009 SELECT * FROM cusown_ops.job_progress shows how far it is.',
	'a second one by hand is UO009');
is($node->safe_psql('app', 'SELECT count(*) FROM cusown_ops.job_run'), '1', 'and has no row');
my ($rc, $stdout, $stderr) = $node->psql('app', $run_again);
is($rc, 0, 'a second one by cron succeeds');
like($stderr, qr/NOTICE:  .*already running on application schema "public", skipping/, 'with a NOTICE');
like(last_run($node, 'app'), qr/^skipped\|0\|0\|0\|0\|\|\|t$/, 'and a row that says skipped');

# ---------- a cancel in the middle ----------

$node->safe_psql('app', "SELECT pg_cancel_backend(pid) FROM ($waiting) w");
$run->{run}->finish;
like($run->{err}, qr/ERROR:  57014: canceling statement due to user request/, 'cancel: the caller is told');
is( $node->safe_psql(
		'app', q{SELECT status, changed, released, looked_at, batches, sqlstate, message, finished_at IS NOT NULL
		           FROM cusown_ops.job_run WHERE status <> 'skipped'}),
	'cancelled|20|20|20|2|57014|canceling statement due to user request|t',
	'cancel: the ledger says so');
is($node->safe_psql('app', "$is_alive; $progress"), 'f', 'cancel: it is over');
consistent($node, 'app', 20, 'cancel');
$gate->quit;
$node->safe_psql('app', $run_again);
is(last_run($node, 'app'), 'succeeded|20|20|20|2|||t', 'cancel: the next run does the rest');

# ---------- a statement_timeout in the middle ----------

$gate = close_gate($node, 'app');
$run = start_drain($node, 'timeout', q{SET statement_timeout = '3s'});
$run->{run}->finish;
like($run->{err}, qr/ERROR:  57014: canceling statement due to statement timeout/, 'timeout: the caller is told');
is( last_run($node, 'app'),
	'cancelled|20|20|20|2|57014|canceling statement due to statement timeout|t',
	'timeout: the ledger says so');
consistent($node, 'app', 60, 'timeout');
$gate->quit;
$node->safe_psql('app', $run_again);
is(last_run($node, 'app'), 'succeeded|20|20|20|2|||t', 'timeout: the next run does the rest');

# ---------- a cancel between two batches ----------

add_due($node, 'app', 40);
$run = start_psql($node, 'app', q{CALL cusown_run_job('expire_bookings', 'cron', 10, '1 hour')});
ok( $node->poll_query_until(
		'app', q{SELECT EXISTS (SELECT FROM pg_stat_activity WHERE query LIKE 'CALL%' AND wait_event_type = 'Extension')}),
	'pause: it waits');
is( $node->safe_psql(
		'app', q{SELECT count(*) FROM pg_stat_activity a LEFT JOIN pg_locks l ON l.pid = a.pid AND l.locktype IN ('relation', 'tuple', 'transactionid')
		         AND l.relation IN ('bookings'::regclass, 'slots'::regclass, 'payments'::regclass)
		         WHERE a.query LIKE 'CALL%' AND (a.backend_xid IS NOT NULL OR a.backend_xmin IS NOT NULL OR l.pid IS NOT NULL)}),
	'0', 'pause: with nothing held');
my ($dropped) = $node->psql('postgres',
	"SET statement_timeout = '20s';\nCREATE DATABASE bystander;\nDROP DATABASE bystander;");
is($dropped, 0, 'pause: another database can be dropped meanwhile');
$node->safe_psql('app', q{SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE 'CALL%'});
$run->{run}->finish;
my $done = $node->safe_psql('app', 'SELECT changed FROM cusown_ops.job_run ORDER BY id DESC LIMIT 1');
is( last_run($node, 'app'),
	"cancelled|$done|$done|$done|" . $done / 10 . '|57014|canceling statement due to user request|t',
	'pause: the ledger says so');
is($done, '10', 'pause: it was in the first one');
consistent($node, 'app', 80 + $done, 'pause');
$node->safe_psql('app', $run_again);
is( $node->safe_psql('app', 'SELECT status, changed FROM cusown_ops.job_run ORDER BY id DESC LIMIT 1'),
	'succeeded|' . (40 - $done), 'pause: the next run does the rest');

# ---------- a cancel of one application's run stops all ----------

attach_minimal($node, 'app');
$gate = close_gate($node, 'app');
$run = start_drain($node, 'several');
$node->safe_psql('app', "SELECT pg_cancel_backend(pid) FROM ($waiting) w");
$run->{run}->finish;
$gate->quit;
is( $node->safe_psql('app', q{SELECT count(*) FROM cusown_ops.job_run WHERE app_schema = 'shop'}),
	'0', 'several: the next application is not begun after a cancel');
$node->safe_psql('app', q{SET cusown_ops.app_schema = 'public'; } . $run_again);
is(last_run($node, 'app'), 'succeeded|20|20|20|2|||t', 'several: the next run does the rest');

# while the application's records are written: the work is done, the rest is not

my $holder = $node->background_psql('app');
$holder->query_safe("BEGIN; UPDATE metrics SET value = value");
$run = start_psql($node, 'app', q{CALL cusown_run_job('expire_bookings', 'cron')});
my $blocked = q{SELECT pid FROM pg_stat_activity WHERE query LIKE 'CALL%' AND wait_event_type = 'Lock'};
ok($node->poll_query_until('app', "SELECT EXISTS ($blocked)"), 'records: it waits for a metric');
$node->safe_psql('app', "SELECT pg_cancel_backend(pid) FROM ($blocked) b");
$run->{run}->finish;
$holder->query_safe('ROLLBACK');
$holder->quit;
like($run->{err}, qr/ERROR:  57014/, 'records: the cancel is raised');
is(last_run($node, 'app'), 'succeeded|0|0|0|0|||t', 'records: the run had succeeded');
is( $node->safe_psql('app', q{SELECT count(*) FROM cusown_ops.job_run WHERE app_schema = 'shop'}),
	'0', 'records: the next application is not begun');
$node->safe_psql('app', q{SELECT cusown_detach('shop')});

# ---------- a session that is terminated ----------

sub is_dead
{
	my ($node, $expired, $what) = @_;

	ok($node->poll_query_until('app', "SELECT NOT ($is_alive)"), "$what: it is not alive");
	is($node->safe_psql('app', $progress), '', "$what: its progress is not shown");
	is(last_run($node, 'app'), 'running|20|20|20|2|||f', "$what: its row still reads running");
	consistent($node, 'app', $expired, $what);
	$node->safe_psql('app', $run_again);
	is( $node->safe_psql(
			'app', q{SELECT status, changed, finished_at IS NOT NULL FROM cusown_ops.job_run
			          ORDER BY id DESC OFFSET 1 LIMIT 1}),
		'died|20|t', "$what: the next run says that it died");
	is(last_run($node, 'app'), 'succeeded|20|20|20|2|||t', "$what: and does the rest");
	consistent($node, 'app', $expired + 20, "$what, then the next run");
	return;
}

$gate = close_gate($node, 'app');
$run = start_drain($node, 'terminate');
$node->safe_psql('app', "SELECT pg_terminate_backend(pid) FROM ($waiting) w");
$run->{run}->finish;
like($run->{err}, qr/FATAL:  57P01: terminating connection/, 'terminate: the caller is told');
$gate->quit;
is_dead($node, 180, 'terminate');

# ---------- dump and restore ----------

$node->safe_psql('app', q{
	INSERT INTO cusown_ops.job (name, every, enabled)
	VALUES ('expire_bookings', '2 minutes', NULL), ('prune_history', NULL, false)});
# a change is given when no transaction is open that was open when it was made
ok( $node->poll_query_until(
		'app', 'SELECT count(*) = (SELECT count(*) FROM cusown_ops.change) FROM cusown_changes_since(NULL, 100000)'),
	'changes can be read');
my $cursor = $node->safe_psql('app', 'SELECT cursor FROM cusown_changes_since() LIMIT 1');
my $kept = q{SELECT md5(string_agg(j::text, ',' ORDER BY j.job)) FROM cusown_jobs() j;
             SELECT count(*), md5(string_agg(r::text, ',' ORDER BY r.id)) FROM cusown_ops.job_run r};
my $before = $node->safe_psql('app', $kept);
my $file = $node->basedir . '/app.sql';

$node->command_ok([ 'pg_dump', '-f', $file, 'app' ], 'the database is dumped');
$node->safe_psql('postgres', 'CREATE DATABASE restored');
$node->command_ok([ 'psql', '-Xq', '-v', 'ON_ERROR_STOP=1', '-f', $file, 'restored' ], 'and restored');
is($node->safe_psql('restored', $kept), $before, 'what the owner set and the ledger are as they were');
is( $node->safe_psql('restored', 'SELECT count(*) FROM cusown_ops.change; SELECT count(*) FROM cusown_changes_since()'),
	"0\n0", 'changes were not dumped');
is( error_of($node, 'restored', "SELECT * FROM cusown_changes_since('$cursor')"),
	'22023 Begin again with NULL, and expect changes that were already seen.',
	'a cursor from before is refused');
isnt($node->safe_psql('restored', 'SELECT id FROM cusown_ops.change_stream'),
	$node->safe_psql('app', 'SELECT id FROM cusown_ops.change_stream'), 'it is another stream');
add_due($node, 'restored', 1);
$node->safe_psql('restored', $run_again);
is(last_run($node, 'restored'), 'succeeded|1|1|1|1|||t', 'runs go on, with new numbers');
ok($node->poll_query_until('restored', 'SELECT count(*) = 2 FROM cusown_changes_since()'), 'and so do changes');
my $theirs = $node->safe_psql('restored', 'SELECT cursor FROM cusown_changes_since() LIMIT 1');
is(error_of($node, 'app', "SELECT * FROM cusown_changes_since('$theirs')"),
	'22023 Begin again with NULL, and expect changes that were already seen.',
	'nor does the old database take a cursor of the new one');

# ---------- memory ----------

# Measured at the same point of each batch.  Without the application's audit
# chain, whose trigger would keep a plan for an empty table for all the run.
make_empty_database($node, 'many');
add_due($node, 'many', 20_000);
$node->safe_psql(
	'many', q{
	ALTER TABLE audit_logs DISABLE TRIGGER audit_logs_chain;
	ANALYZE bookings, slots;
	CREATE TABLE memory (batch serial, bytes bigint, contexts bigint);
	CREATE FUNCTION measure() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
	  INSERT INTO memory (bytes, contexts)
	  SELECT sum(total_bytes), count(*) FROM pg_backend_memory_contexts;
	  RETURN NULL;
	END
	$$;
	CREATE TRIGGER measure AFTER INSERT ON cusown_ops.change EXECUTE FUNCTION measure();
});
$node->safe_psql('many', q{CALL cusown_run_job('expire_bookings', 'cron', 500)});
is(last_run($node, 'many'), 'succeeded|20000|20000|20000|40|||t', '20,000 in batches of 500');
my ($bytes, $contexts, $most) = split /\|/,
  $node->safe_psql(
	'many', q{SELECT z.bytes - a.bytes, z.contexts - a.contexts, (SELECT max(bytes) FROM memory)
	            FROM memory a, memory z WHERE a.batch = 5 AND z.batch = 40});
note "memory: $bytes bytes and $contexts contexts more after batch 40 than after batch 5, at most $most";
cmp_ok($bytes, '<', 65_536, 'memory does not grow from batch to batch');
cmp_ok($contexts, '<=', 2, 'nor the number of its contexts');
cmp_ok($most, '<', 64 * 1024 * 1024, 'and is less than 64 MB');
is( $node->safe_psql(
		'many', q{SELECT count(*) FROM bookings b JOIN slots s ON s.id = b.slot_id
		           WHERE b.status = 'cancelled' AND s.status = 'available'}),
	'20000', 'all of them are done');

# a verb of many windows in one transaction
$node->safe_psql(
	'many', q{
	TRUNCATE memory RESTART IDENTITY;
	UPDATE slots SET status = 'reserved', reserved_until = now() - interval '1 day';
	ANALYZE slots;
});
is( $node->safe_psql('many', 'SELECT released, more FROM cusown_release_expired_holds(max_rows => 20000)'),
	'20000|f', '20,000 holds in one call');
$bytes = $node->safe_psql(
	'many', q{SELECT z.bytes - a.bytes FROM memory a, memory z
	           WHERE a.batch = 3 AND z.batch = (SELECT max(batch) FROM memory)});
cmp_ok($bytes, '<', 1024 * 1024, 'memory does not grow from window to window');
$node->stop;

# ---------- kill -9 ----------

my $killed = new_node('killed', [], 'restart_after_crash = on');

make_empty_database($killed, 'app');
$gate = close_gate($killed, 'app');
$run = start_drain($killed, 'kill');
my $pid = $killed->safe_psql('app', $waiting);
kill 'KILL', $pid;
$run->{run}->finish;
$gate->{run}->kill_kill;
# the server starts again by itself
ok( $killed->poll_query_until(
		'postgres', "SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $pid"),
	'kill: the server is back');
is_dead($killed, 20, 'kill');
$killed->stop;

# ---------- pg_cron ----------

my $scheduler = new_node('cron');

SKIP:
{
	skip 'pg_cron is not installed', 7
	  if $scheduler->safe_psql('postgres',
		q{SELECT count(*) FROM pg_available_extensions WHERE name = 'pg_cron'}) eq '0';
	my $details = q{SELECT status, return_message FROM cron.job_run_details ORDER BY runid DESC LIMIT 1};
	my $ended = q{FROM cron.job_run_details WHERE status IN ('succeeded', 'failed')};

	make_empty_database($scheduler, 'app');
	add_due($scheduler, 'app', 30);
	$scheduler->append_conf(
		'postgresql.conf', q{
shared_preload_libraries = 'pg_cron'
cron.database_name = 'app'
cron.use_background_workers = on
max_worker_processes = 20
});
	$scheduler->restart;
	$scheduler->safe_psql(
		'app', q{
		CREATE EXTENSION pg_cron;
		SELECT cron.schedule('expire', '@reboot', $$CALL cusown_run_job('expire_bookings', 'cron')$$)});
	$scheduler->restart;
	ok($scheduler->poll_query_until('app', "SELECT count(*) = 1 $ended"), 'pg_cron runs the job when the server starts');
	is( $scheduler->safe_psql('app', q{SELECT source, status, changed, sqlstate FROM cusown_ops.job_run}),
		'cron|succeeded|30|', 'the ledger shows a run of source cron');
	like($scheduler->safe_psql('app', $details), qr/^succeeded\|/, 'pg_cron says that it succeeded');
	is( $scheduler->safe_psql('app', q{SELECT DISTINCT metadata->>'source' FROM audit_logs}),
		'cron', 'the audit rows say where they come from');

	add_due($scheduler, 'app', 1);
	$scheduler->safe_psql(
		'app', q{
		CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
		  RAISE EXCEPTION 'the salon refuses' USING ERRCODE = 'insufficient_privilege';
		END
		$$;
		CREATE TRIGGER refuse BEFORE INSERT ON booking_lifecycle_audit EXECUTE FUNCTION refuse()});
	$scheduler->restart;
	ok($scheduler->poll_query_until('app', "SELECT count(*) = 2 $ended"), 'pg_cron runs it again');
	is( last_run($scheduler, 'app'), 'failed|0|0|0|0|42501|the salon refuses|t',
		'the ledger shows how it failed');
	like($scheduler->safe_psql('app', $details),
		qr/^failed\|.*the salon refuses/, 'pg_cron shows it as failed, with the message');
}
$scheduler->stop;
done_testing();
