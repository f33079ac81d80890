# The worker: it takes over what the scheduler leaves, stands down when that is
# back, goes on after a crash and a promotion, keeps out of the way of DROP
# DATABASE, and works as the role that it was given, or only looks.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Application qw(:DEFAULT add_due);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $preload = "shared_preload_libraries = 'cusown_ops'";
my $naptime = "cusown_ops.worker_naptime = '200ms'";

# Both jobs of the application are to run every few seconds, the others not.
sub set_every
{
	my ($node, $database, $every) = @_;

	$node->safe_psql(
		$database, qq{
		INSERT INTO cusown_ops.job (name, every, enabled)
		VALUES ('expire_bookings', '$every', true), ('release_expired_holds', NULL, false),
		       ('prune_history', NULL, false), ('expire_payments', NULL, false), ('prune_idempotency', NULL, false), ('retry_parked_webhooks', NULL, false), ('take_census', NULL, false), ('evaluate_alerts', NULL, false)
		ON CONFLICT (name) DO UPDATE SET every = excluded.every, enabled = excluded.enabled});
	return;
}

sub configure
{
	my ($node, %settings) = @_;

	$node->safe_psql('postgres', "ALTER SYSTEM SET $_ = '$settings{$_}'") foreach sort keys %settings;
	$node->reload;
	return;
}

sub shows
{
	my ($node, $database, $query, $name) = @_;

	ok($node->poll_query_until($database, $query), $name);
	return;
}

sub log_holds
{
	my ($node, $pattern, $name) = @_;

	like(slurp_file($node->logfile), $pattern, $name);
	return;
}

sub count_in_log
{
	my ($node, $pattern) = @_;
	my @hits = slurp_file($node->logfile) =~ /$pattern/g;

	return scalar @hits;
}

my $by_worker = q{SELECT count(*) > 0 FROM cusown_ops.job_run WHERE source = 'worker' AND status = 'succeeded'};

# ---------- without preload, and without a role ----------

my $node = new_node('main', [ allows_streaming => 1 ],
	'wal_level = replica', 'max_wal_senders = 5', 'restart_after_crash = on', 'max_worker_processes = 20');
make_role($node);
make_database($node, 'app');
grant_role($node, 'app');
set_every($node, 'app', '2 seconds');
# a row in the ledger that is no job's
$node->safe_psql('app', q{SET cusown_ops.booking_ttl = '10000 days'; SELECT cusown_expire_if_due()});
is( error_of($node, 'app', 'SELECT * FROM cusown_worker_status()'),
	"55000 Add to postgresql.conf: shared_preload_libraries = 'cusown_ops', beside what is there, and restart.",
	'without preload the worker says what it needs');

$node->append_conf('postgresql.conf', "$preload\n$naptime\ncusown_ops.worker_databases = 'app, absent, \"Bare\"'");
$node->safe_psql('postgres', 'CREATE DATABASE "Bare"');
$node->restart;
shows($node, 'app', q{SELECT did = 'would run expire_bookings on public' FROM cusown_worker_status() WHERE database = 'app'},
	'without a role it tells what is late');
$node->wait_for_log(qr/only tells/);
$node->safe_psql('app', q{INSERT INTO cusown_ops.takeover (app_schema, job) VALUES ('public', 'prune_history')});
shows($node, 'app', q{SELECT did LIKE '%, would stand down from prune_history on public' FROM cusown_worker_status() WHERE database = 'app'},
	'and what it would end');
$node->safe_psql('app', 'TRUNCATE cusown_ops.takeover, cusown_ops.outage');
shows($node, 'app', q{SELECT last_visit > now() - interval '3 s' AND count(*) OVER () = 1 FROM cusown_worker_status() WHERE database = 'app'},
	'and goes on looking');
is(count_in_log($node, 'only tells: would run expire_bookings'), 1, 'but says so once');
is( $node->safe_psql('app', q{SELECT count(*) FROM cusown_ops.job_run WHERE source <> 'lazy_heal'; SELECT count(*) FROM cusown_ops.takeover}),
	"0\n0", 'and does nothing');

# ---------- other databases that it cannot work in ----------

shows($node, 'app', q{SELECT failures > 1 AND next_visit > last_visit + interval '1.5 s' FROM cusown_worker_status() WHERE database = 'absent'},
	'a database that is not there is visited less and less often');
shows($node, 'app', q{SELECT failures > 1 AND did = 'found no extension' FROM cusown_worker_status() WHERE database = 'Bare'},
	'so is one without the extension');
is(count_in_log($node, 'is not installed in database "Bare"'), 1, 'which is said once');
is($node->safe_psql('app', q{SELECT failures FROM cusown_worker_status() WHERE database = 'app'}),
	0, 'the others are visited as ever');

my $patience = q{SELECT min(failures) FROM cusown_worker_status() WHERE database <> 'app'};
shows($node, 'app', "SELECT ($patience) >= 4", 'their failures are counted');
$node->safe_psql('Bare', 'CREATE EXTENSION cusown_ops');
configure($node, 'cusown_ops.worker_naptime' => '201ms');
shows($node, 'app', "SELECT max(failures) < 4 FROM cusown_worker_status() WHERE database <> 'app'",
	'a reload begins anew with all, as it may have mended them');
shows($node, 'app', q{SELECT failures = 0 AND did = 'nothing was late' FROM cusown_worker_status() WHERE database = 'Bare'},
	'the one that was mended is visited as ever');

# ---------- it takes over ----------

# what is meant for others does not keep it from working: a default of the role,
# and a procedure that would be a better match of a shorter CALL
$node->safe_psql('app', q{
	ALTER ROLE jobs SET default_transaction_isolation = 'serializable';
	CREATE PROCEDURE cusown_run_job(job text, source text) LANGUAGE sql AS 'SELECT 1'});
configure($node, 'cusown_ops.worker_role' => 'jobs', 'cusown_ops.worker_databases' => 'app');
shows($node, 'app', $by_worker, 'with a role it runs what is late');
shows($node, 'app', q{SELECT string_agg(database, ' ') = 'app' FROM cusown_worker_status()},
	'databases that the settings name no more are forgotten');
is(expiry_counts($node, 'app') =~ /^(\d+)\|/ ? $1 : 0, 40, 'what was due has expired');
is( $node->safe_psql('app', q{SELECT DISTINCT source, session LIKE '%role jobs' FROM cusown_ops.job_run WHERE source <> 'lazy_heal'}),
	'worker|t', 'the ledger says who did it, as which role');
is($node->safe_psql('app', 'SELECT app_schema, job FROM cusown_ops.takeover'),
	'public|expire_bookings', 'it remembers that it covers');
is( $node->safe_psql('app',
		q{SELECT severity, entity_type, metadata->>'job', metadata->>'source' FROM audit_logs WHERE action_type = 'cron_failed'}),
	'critical|system|expire_bookings|worker', 'the audit trail says that the scheduler has failed');
log_holds($node, qr/WARNING:  job "expire_bookings" on application schema "public" of database "app" is late, the worker takes over/,
	'the log says so');
shows($node, 'app', q{SELECT count(*) > 2 FROM cusown_ops.job_run WHERE source = 'worker' AND status = 'succeeded'},
	'it goes on, at the job\'s interval');
is(count_in_log($node, 'takes over'), 1, 'and says no more');
shows($node, 'app', q{SELECT did = 'covers expire_bookings on public' FROM cusown_worker_status()},
	'in between the status says that it covers');

# ---------- it stands down ----------

$node->safe_psql('app', 'DROP PROCEDURE cusown_run_job(text, text)');
$node->safe_psql('app', q{CALL cusown_run_job('expire_bookings', 'manual')});
shows($node, 'app', q{SELECT max(id) > (SELECT id FROM cusown_ops.job_run WHERE source = 'manual') FROM cusown_ops.job_run WHERE source = 'worker'},
	'a run by hand does not make it stand down');
shows($node, 'app', q{SELECT count(*) = 0 FROM cusown_ops.job_progress}, 'nothing runs');
$node->poll_query_until('app', q{SELECT true FROM cusown_ops.takeover}) or die;
set_every($node, 'app', '1 hour');
$node->safe_psql('app', q{CALL cusown_run_job('expire_bookings', 'cron')});
shows($node, 'app', 'SELECT count(*) = 0 FROM cusown_ops.takeover', 'when the scheduler is back it does');
is($node->safe_psql('app', q{SELECT severity, metadata->>'job' FROM audit_logs WHERE action_type = 'cron_recovered'}),
	'info|expire_bookings', 'with its audit row');
log_holds($node, qr/WARNING:  job "expire_bookings" .* the worker stands down/, 'and a line in the log');
my $runs = $node->safe_psql('app', 'SELECT count(*) FROM cusown_ops.job_run');
my $visit = $node->safe_psql('app', 'SELECT last_visit FROM cusown_worker_status()');
shows($node, 'app', qq{SELECT last_visit > timestamptz '$visit' + interval '2 s' FROM cusown_worker_status()}, 'it still looks');
is($node->safe_psql('app', 'SELECT count(*) FROM cusown_ops.job_run'), $runs, 'but runs nothing');

# A success of the scheduler ends it also where it is not the newest one any more.
$node->safe_psql('app', q{
	INSERT INTO cusown_ops.takeover (app_schema, job, since) VALUES ('public', 'expire_bookings', now() - interval '1 min');
	INSERT INTO cusown_ops.outage (app_schema, job) VALUES ('public', 'expire_bookings');
	UPDATE cusown_ops.job_run SET started_at = started_at - interval '5 s', finished_at = finished_at - interval '5 s';
	CALL cusown_run_job('expire_bookings', 'manual')});
shows($node, 'app', 'SELECT count(*) = 0 FROM cusown_ops.takeover', 'whatever has run since, it does');
is($node->safe_psql('app', q{SELECT count(*) FROM audit_logs WHERE action_type = 'cron_recovered'}), 2, 'with an audit row again');

# One in the future is from a clock that was set back.
set_every($node, 'app', '2 seconds');
$node->safe_psql('app', q{
	INSERT INTO cusown_ops.job_run (app_schema, job, source, started_at, finished_at, status, session)
	SELECT 'public', 'expire_bookings', 'cron', now(), now() + interval '1 day', status, 'pid 0'
	  FROM unnest('{succeeded,failed}'::text[]) status});
shows($node, 'app', q{SELECT count(*) = 1 FROM cusown_ops.takeover}, 'a run that ended in the future keeps it from nothing');
$node->safe_psql('app', q{UPDATE cusown_ops.job SET enabled = false WHERE name = 'expire_bookings'});
shows($node, 'app', 'SELECT count(*) = 0 FROM cusown_ops.takeover', 'a job that is disabled is not covered');
log_holds($node, qr/WARNING:  job "expire_bookings" .* is disabled: the worker stands down/, 'the log says why');
is($node->safe_psql('app', q{SELECT count(*) FROM audit_logs WHERE action_type = 'cron_recovered'}), 2, 'but it has not recovered');
set_every($node, 'app', '1 hour');
$node->safe_psql('app', q{DELETE FROM cusown_ops.job_run WHERE finished_at > now()});

# ---------- off and on ----------

configure($node, 'cusown_ops.worker' => 'off');
shows($node, 'app', 'SELECT count(*) = 0 FROM cusown_worker_status()', 'switched off it visits nothing');
configure($node, 'cusown_ops.worker' => 'on');
shows($node, 'app', 'SELECT count(*) = 1 FROM cusown_worker_status() WHERE last_visit IS NOT NULL', 'switched on it does again');

# ---------- a job that fails ----------

$node->safe_psql(
	'app', q{
	TRUNCATE cusown_ops.job_run;
	CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
	$$BEGIN RAISE EXCEPTION 'the salon refuses' USING ERRCODE = 'XX123'; END$$;
	CREATE TRIGGER refuse BEFORE UPDATE ON bookings EXECUTE FUNCTION refuse();
	INSERT INTO cusown_ops.job (name, every, enabled) VALUES ('release_expired_holds', '1 hour', true)
	ON CONFLICT (name) DO UPDATE SET every = excluded.every, enabled = excluded.enabled});
# due before it is late, or the worker may find nothing to do and be content
add_due($node, 'app', 1, 5);
grow_old($node, 'app');
shows($node, 'app', q{SELECT count(*) = 2 FROM cusown_ops.job_run WHERE (job, status) IN (('expire_bookings', 'failed'), ('release_expired_holds', 'succeeded'))},
	'a job that fails does not keep the others from running');
is($node->safe_psql('app', 'SELECT count(DISTINCT t.job), max(t.since) < min(r.started_at) FROM cusown_ops.takeover t, cusown_ops.job_run r'),
	'2|t', 'both were taken over before the first was run');
shows($node, 'app', q{SELECT last_error LIKE 'expire_bookings: %the salon refuses' AND failures = 0 FROM cusown_worker_status()},
	'its error can be seen');
$visit = $node->safe_psql('app', 'SELECT last_visit FROM cusown_worker_status()');
shows($node, 'app', qq{SELECT last_visit > timestamptz '$visit' + interval '2 s' FROM cusown_worker_status()}, 'time goes by');
is($node->safe_psql('app', q{SELECT count(*) FROM cusown_ops.job_run WHERE job = 'expire_bookings'}),
	1, 'it is not tried again before its interval is over');
$node->safe_psql('app', 'DROP TRIGGER refuse ON bookings; TRUNCATE cusown_ops.job_run');
shows($node, 'app', q{SELECT count(*) = 1 FROM cusown_ops.job_run WHERE job = 'expire_bookings' AND status = 'succeeded' AND changed = 5},
	'then it does its work');

# ---------- naps that get shorter ----------

configure($node, 'cusown_ops.worker_naptime' => '1h');
shows($node, 'app', q{SELECT next_visit > now() + interval '50 min' FROM cusown_worker_status()}, 'the next visit is far away');
configure($node, 'cusown_ops.worker_naptime' => '201ms');
shows($node, 'app', q{SELECT next_visit < now() + interval '1 min' FROM cusown_worker_status()}, 'but not when naps become shorter');

# ---------- a job that cannot even be begun ----------

# The ledger knows nothing of it: what keeps the log from being filled, a line at
# each nap, is in the launcher's memory.
sub refusals
{
	my $count = () = slurp_file($node->logfile) =~ /cusown_ops worker in database "app": .* in a read-only transaction/g;

	return $count;
}

$node->safe_psql('postgres', 'ALTER ROLE jobs SET default_transaction_read_only = on');
$node->safe_psql('app', 'TRUNCATE cusown_ops.job_run');
add_due($node, 'app', 6, 9);
set_every($node, 'app', '1 second');
grow_old($node, 'app');
# nor can it stand down from a job that is disabled
$node->safe_psql('app', q{INSERT INTO cusown_ops.takeover (app_schema, job) VALUES ('public', 'release_expired_holds') ON CONFLICT DO NOTHING});
shows($node, 'app', q{SELECT last_error LIKE '%read-only transaction' FROM cusown_worker_status()}, 'its error can be seen');
my $visits = $node->safe_psql('app', 'SELECT visits FROM cusown_worker_status()');
shows($node, 'app', "SELECT visits > $visits + 20 FROM cusown_worker_status()", 'twenty naps go by');
cmp_ok(refusals(), '>', 1, 'it is tried again');
cmp_ok(refusals(), '<', 16, 'by and by more rarely, as is standing down');
shows($node, 'app', q{SELECT did LIKE '%waits to try again expire_bookings on public%' AND failures = 0 FROM cusown_worker_status()},
	'and the worker says so');
$node->safe_psql('app', q{INSERT INTO cusown_ops.binding (app_schema, relation, attribute, bound_name, bound_since)
	SELECT 'ghost_' || n, 'bookings', 'id', 'id', now() - interval '1 day' FROM generate_series(1, 20) n});
shows($node, 'app', q{SELECT failures > 0 FROM cusown_worker_status()},
	'of more than can be remembered the database is visited more rarely');
$node->safe_psql('app', q{DELETE FROM cusown_ops.binding WHERE app_schema LIKE 'ghost%'});
$node->safe_psql('postgres', 'ALTER ROLE jobs RESET default_transaction_read_only');
configure($node, 'cusown_ops.worker' => 'on');
shows($node, 'app', q{SELECT count(*) = 0 FROM cusown_due_bookings() WHERE verdict = 'expire'},
	'settings that are read again forgive it');

# ---------- a run that was cancelled, or that died ----------

# Who cancelled it meant it; and what killed its session would do so again.
my $ran = q{SELECT count(*) FROM cusown_ops.job_run WHERE job = 'expire_bookings' AND source = 'worker'};

set_every($node, 'app', '1 hour');
add_due($node, 'app', 10, 12);
# a visit that had looked before runs what was late then
$visits = $node->safe_psql('app', 'SELECT visits FROM cusown_worker_status()');
shows($node, 'app', "SELECT visits > $visits + 1 FROM cusown_worker_status()", 'the interval is known');
# no TRUNCATE, which a snapshot from before it sees as well: as an empty ledger
foreach my $status (qw(cancelled died))
{
	$node->safe_psql('app', qq{
		BEGIN;
		DELETE FROM cusown_ops.job_run;
		INSERT INTO cusown_ops.job_run (app_schema, job, source, started_at, finished_at, status, session)
		VALUES ('public', 'expire_bookings', 'cron', now(), now(), '$status', '');
		COMMIT});
	grow_old($node, 'app');
	$visits = $node->safe_psql('app', 'SELECT visits FROM cusown_worker_status()');
	shows($node, 'app', "SELECT visits > $visits + 5 FROM cusown_worker_status()", "after a run that was $status, five naps go by");
	is($node->safe_psql('app', $ran), 0, 'it is not begun again before its interval is over');
	$node->safe_psql('app', q{UPDATE cusown_ops.job_run SET finished_at = finished_at - interval '2 hours'});
	shows($node, 'app', "SELECT ($ran) > 0", 'then it is');
}
# what dies from here on is counted
$node->safe_psql('app', q{DELETE FROM cusown_ops.job_run WHERE status = 'died'});

# ---------- it does not keep a database busy ----------

# One booking a transaction: far more than three seconds of work.
make_database($node, 'drained');
$node->safe_psql('drained', 'ALTER DATABASE drained SET cusown_ops.batch_size = 1');
grant_role($node, 'drained');
set_every($node, 'drained', '1 hour');
add_due($node, 'drained', 1, 20000);
# as long as its interval, twice, is not over, nothing that never ran is late
my $nothing_late = q{SELECT visits > %d AND did = 'nothing was late' FROM cusown_worker_status() WHERE database = 'drained'};
configure($node, 'cusown_ops.worker_databases' => 'app, drained');
shows($node, 'drained', sprintf($nothing_late, 1), 'an application that was attached just now has nothing late');
$node->safe_psql('drained', q{UPDATE cusown_ops.binding SET bound_since = bound_since - interval '1 day'});
$visits = $node->safe_psql('drained', q{SELECT visits FROM cusown_worker_status() WHERE database = 'drained'});
shows($node, 'drained', sprintf($nothing_late, $visits + 1), 'nor has one whose job was set just now');
$node->safe_psql('drained', q{DELETE FROM cusown_ops.job WHERE name = 'release_expired_holds'});
shows($node, 'drained', q{SELECT count(*) = 1 FROM cusown_ops.takeover WHERE job = 'release_expired_holds'},
	'what the owner has not set is late since the application was attached');
set_every($node, 'drained', '1 hour');
grow_old($node, 'drained');
my $long = q{FROM cusown_ops.job_run WHERE job = 'expire_bookings' AND status = 'succeeded' AND more_left};
shows($node, 'drained', "SELECT count(*) >= 1 $long", 'a long job is ended after three seconds');
# the other one is due ever again, as this one is: they take turns
my $newest = $node->safe_psql('drained', 'SELECT max(id) FROM cusown_ops.job_run');
$node->safe_psql('drained', q{UPDATE cusown_ops.job SET enabled = true, every = '1 second' WHERE name = 'release_expired_holds'});
shows($node, 'drained', qq{SELECT count(*) > 1 FROM cusown_ops.job_run WHERE job = 'release_expired_holds' AND status = 'succeeded' AND id > $newest},
	'what has waited longest is first');
is( $node->safe_psql('drained', q{SELECT count(*) FROM (SELECT FROM cusown_ops.job_run GROUP BY session
		HAVING max(started_at) - min(started_at) > interval '3 s') s}),
	0, 'and none begins when the visit has lasted three seconds');
shows($node, 'drained', "SELECT count(*) >= 2 $long", 'the long one goes on at the next nap');
is($node->safe_psql('drained', "SELECT count(*) $long AND finished_at - started_at > interval '5 s'"), 0, 'none of its runs was long');
configure($node, 'cusown_ops.worker_databases' => 'app');
shows($node, 'app', q{SELECT count(*) = 0 FROM cusown_worker_status() WHERE database = 'drained'},
	'a database whose visits are longer than a nap can be taken off the list');
is($node->safe_psql('drained', q{SELECT count(*) > 0 FROM bookings WHERE status = 'pending' AND booking_id LIKE 'MORE-%'}),
	't', 'before it is drained');
configure($node, 'cusown_ops.worker_databases' => 'app, drained');
shows($node, 'drained', q{SELECT count(*) = 1 FROM cusown_ops.job_progress}, 'while it drains');
$node->safe_psql('postgres', 'CREATE DATABASE copy TEMPLATE drained');
pass('CREATE DATABASE ... TEMPLATE gets through');
shows($node, 'drained', q{SELECT count(*) = 1 FROM cusown_ops.job_progress}, 'and again');
$node->safe_psql('postgres', 'DROP DATABASE drained');
pass('so does DROP DATABASE');
configure($node, 'cusown_ops.worker_databases' => 'app');

# ---------- whoever is in the way ----------

set_every($node, 'app', '1 second');
my $locker = $node->background_psql('app');
$locker->query_safe('BEGIN; LOCK TABLE bookings');
shows($node, 'app', q{SELECT count(*) > 0 FROM cusown_ops.job_run WHERE source = 'worker' AND sqlstate = '55P03'},
	'a table that is locked is not waited for longer than a database can be');
$locker->query_safe('ROLLBACK');
# a dead run that cannot be marked yet keeps no job from being run
configure($node, 'cusown_ops.worker' => 'off');
shows($node, 'app', 'SELECT count(*) = 0 FROM cusown_worker_status()', 'meanwhile nothing is visited');
$node->safe_psql('app', q{INSERT INTO cusown_ops.job_run (app_schema, job, source, started_at, status, session)
	VALUES ('public', 'prune_history', 'manual', now() - interval '1 hour', 'running', 'pid 1, role nobody')});
$locker->query_safe(q{BEGIN; SELECT FROM cusown_ops.job_run WHERE job = 'prune_history' FOR UPDATE});
$newest = $node->safe_psql('app', 'SELECT max(id) FROM cusown_ops.job_run');
configure($node, 'cusown_ops.worker' => 'on');
shows($node, 'app', qq{SELECT count(*) > 0 FROM cusown_ops.job_run WHERE source = 'worker' AND status = 'succeeded' AND id > $newest},
	'a dead run whose row is locked keeps nothing from being run');
$locker->quit;
shows($node, 'app', q{SELECT count(*) = 1 FROM cusown_ops.job_run WHERE job = 'prune_history' AND status = 'died'}, 'and is marked later');
$node->safe_psql('app', q{DELETE FROM cusown_ops.job_run WHERE job = 'prune_history'});

# ---------- crashes ----------

$node->safe_psql('postgres', q{ALTER ROLE jobs SET lock_timeout = '10min'});
$node->safe_psql('app', q{
	CREATE FUNCTION wait_for_test() RETURNS trigger LANGUAGE plpgsql AS
	$$BEGIN PERFORM pg_advisory_xact_lock_shared(1); RETURN NULL; END$$;
	CREATE TRIGGER wait_for_test BEFORE UPDATE ON bookings EXECUTE FUNCTION wait_for_test();
	CREATE TRIGGER wait_for_test BEFORE INSERT ON audit_logs EXECUTE FUNCTION wait_for_test()});
my $holder = $node->background_psql('app');

# Two workers that take over, or stand down, at once, as the launcher of one has gone.
my $waiting = q{SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'cusown_ops worker' AND wait_event = 'advisory'};
my %change = (
	cron_failed => 'TRUNCATE cusown_ops.takeover, cusown_ops.outage',
	cron_recovered => q{INSERT INTO cusown_ops.job_run (app_schema, job, source, started_at, finished_at, status, session)
		VALUES ('public', 'expire_bookings', 'cron', now(), now(), 'succeeded', '')});
foreach my $action (sort keys %change)
{
	my $told = "SELECT count(*) FROM audit_logs WHERE action_type = '$action'";
	my $before = $node->safe_psql('app', $told);

	$holder->query_safe('SELECT pg_advisory_lock(1)');
	$node->safe_psql('app', $change{$action});
	shows($node, 'app', $waiting, "$action: one worker tells the application");
	kill 'TERM', launcher_pid($node);
	shows($node, 'app', q{SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'cusown_ops worker' AND wait_event = 'transactionid'},
		'the next launcher\'s would do so too');
	my $released = $node->safe_psql('app', 'SELECT clock_timestamp()');
	$holder->query_safe('SELECT pg_advisory_unlock(1)');
	shows($node, 'app', qq{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'cusown_ops worker' AND backend_start < '$released'},
		'both end');
	is($node->safe_psql('app', $told), $before + 1, 'one of them has told the application');
}

# What waits for as long as its role may, and no longer.
$holder->query_safe('SELECT pg_advisory_lock(1)');
$node->safe_psql('postgres', q{ALTER ROLE jobs SET statement_timeout = '300ms'});
add_due($node, 'app', 101, 400);
$node->safe_psql('app', 'TRUNCATE cusown_ops.takeover, cusown_ops.outage');
shows($node, 'app', 'SELECT count(*) = 1 FROM cusown_ops.takeover', 'who holds up the audit row does not hold up the worker');
shows($node, 'app', q{SELECT count(*) > 0 FROM cusown_ops.job_run WHERE source = 'worker' AND status = 'cancelled'},
	'a run is cancelled by its role\'s statement_timeout');
$node->safe_psql('app', 'DROP TRIGGER wait_for_test ON audit_logs');
$node->safe_psql('postgres', 'ALTER ROLE jobs RESET statement_timeout');
shows($node, 'app', $waiting,
	'in the middle of a run, which waits as long as its role may');
is($node->safe_psql('app', 'SELECT doing FROM cusown_worker_status()'),
	'running expire_bookings on public', 'the status says what it is at');
# Another launcher's worker leaves it alone; and when it ends, it says nothing of
# the visit that is no longer its own.
kill 'TERM', launcher_pid($node);
shows($node, 'app', q{SELECT did = 'runs elsewhere expire_bookings on public' FROM cusown_worker_status()},
	'a job that runs is not run again');
configure($node, 'cusown_ops.worker_naptime' => '1h');
shows($node, 'app', q{SELECT next_visit > now() + interval '50 min' AND pid IS NULL FROM cusown_worker_status()}, 'no more visits for now');
$holder->query_safe('SELECT pg_advisory_unlock(1)');
shows($node, 'app', q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'cusown_ops worker'}, 'the run ends');
is($node->safe_psql('app', 'SELECT did FROM cusown_worker_status()'),
	'runs elsewhere expire_bookings on public', 'which is no news of the last visit');
$holder->query_safe('SELECT pg_advisory_lock(1)');
add_due($node, 'app', 401, 402);
configure($node, 'cusown_ops.worker_naptime' => '200ms');
shows($node, 'app', $waiting, 'in the middle of the next one');
my $victim = $node->safe_psql('app', q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'cusown_ops worker'});
kill 'KILL', $victim;
$holder->{run}->kill_kill;
$node->poll_query_until('app', q{SELECT count(*) = 1 FROM cusown_ops.job_run WHERE status = 'died'})
  or die 'no run was found dead';
pass('a worker that was killed leaves a run that reads died');
$node->safe_psql('app', 'DROP TRIGGER wait_for_test ON bookings');
shows($node, 'app', q{SELECT count(*) = 0 FROM bookings WHERE status = 'pending' AND booking_id LIKE 'MORE-%'}, 'the next ones do the rest');
my $ended = $node->safe_psql('app', 'SELECT clock_timestamp()');
kill 'TERM', launcher_pid($node);
shows($node, 'app', qq{SELECT last_visit > timestamptz '$ended' + interval '2 s' FROM cusown_worker_status()},
	'a launcher that was ended comes back, and visits');
# a run of somebody else that has died is found as well
$node->safe_psql('app', q{INSERT INTO cusown_ops.job_run (app_schema, job, source, started_at, status, session)
	VALUES ('public', 'prune_history', 'manual', now() - interval '1 hour', 'running', 'pid 1, role nobody')});
shows($node, 'app', q{SELECT status = 'died' FROM cusown_ops.job_run WHERE job = 'prune_history'},
	'runs of others that have died are found too, of jobs that are not late');

# ---------- a standby ----------

$node->safe_psql('app', q{INSERT INTO cusown_ops.job (name, every) VALUES ('mark_no_show', NULL) ON CONFLICT DO NOTHING});
$node->backup('copy');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'copy', has_streaming => 1);
$standby->start;
$node->wait_for_catchup('standby');
is($standby->safe_psql('app', q{SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'cusown_ops%'; SELECT count(*) FROM cusown_worker_status()}),
	"0\n0", 'a standby has no worker and no visits');
configure($standby, 'cusown_ops.worker_naptime' => '5s');
configure($node, 'cusown_ops.worker' => 'off');
shows($node, 'app', 'SELECT count(*) = 0 FROM cusown_worker_status()', 'switched off on the primary');
add_due($node, 'app', 501, 505);
$node->stop;
my $promoted = $standby->safe_psql('postgres', 'SELECT clock_timestamp()');
$standby->promote;
shows($standby, 'app', q{SELECT last_visit IS NOT NULL FROM cusown_worker_status()}, 'once promoted it has');
shows($standby, 'app', q{SELECT count(*) = 0 FROM bookings WHERE status = 'pending' AND booking_id LIKE 'MORE-5%'}, 'and works there');
is( $standby->safe_psql('app', qq{SELECT min(started_at) < timestamptz '$promoted' + interval '10 s'
		FROM cusown_ops.job_run WHERE started_at > '$promoted' AND source = 'worker'}),
	't', 'within two naps');
$standby->stop;

# ---------- rights ----------

my $strict = new_node('strict', [], $preload, $naptime, "cusown_ops.worker_databases = 'app'",
	"cusown_ops.worker_role = 'postgres'");
make_role($strict);
$strict->safe_psql('postgres', 'CREATE ROLE app_owner SUPERUSER LOGIN');
make_database($strict, 'app');
# All of the application is the owner's, who has planted a trigger on each table
# that we write.  It tells whose rights it had.
$strict->safe_psql('app', q{
	CREATE ROLE owner;
	CREATE TABLE gained (who name, relation name, is_superuser boolean);
	GRANT INSERT ON gained TO PUBLIC;
	CREATE FUNCTION plant() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
	  BEGIN
	    ALTER ROLE owner SUPERUSER;
	  EXCEPTION WHEN insufficient_privilege THEN
	    NULL;
	  END;
	  INSERT INTO public.gained
	  VALUES (current_user, tg_table_name, (SELECT rolsuper FROM pg_roles WHERE rolname = session_user));
	  RETURN NULL;
	END
	$$;
	SELECT format('CREATE TRIGGER plant AFTER INSERT OR UPDATE ON %I FOR EACH STATEMENT EXECUTE FUNCTION plant()', t),
	       format('ALTER TABLE %I OWNER TO owner', t)
	  FROM unnest('{bookings,slots,payments,audit_logs,booking_lifecycle_audit,cron_run_logs,metrics}'::text[]) t \gexec
});
set_every($strict, 'app', '2 seconds');
$strict->safe_psql('app', q{UPDATE cusown_ops.job SET enabled = true, every = '2 seconds' WHERE name = 'prune_history'});
my $refused = q{SELECT did = 'could not look what is late' AND last_error LIKE '%role "%s" is a superuser, or can become one'
	AND failures > 0 FROM cusown_worker_status()};
my $nothing_gained = sub {
	is( $strict->safe_psql('app', q{
			SELECT count(*) FROM gained;
			SELECT count(*) FROM cusown_ops.job_run;
			SELECT count(*) FROM cusown_ops.takeover;
			SELECT rolsuper FROM pg_roles WHERE rolname = 'owner'}),
		"0\n0\n0\nf", 'so it has done nothing, and no trigger of the owner has run');
};
shows($strict, 'app', sprintf($refused, 'postgres'), 'a superuser is refused');
$nothing_gained->();
# nor under the owner's role, which his trigger could reset
$strict->safe_psql('app', q{SELECT cusown_grant('owner', 'operator') \gexec});
$strict->safe_psql('postgres', 'ALTER DATABASE app SET role = owner');
configure($strict, 'cusown_ops.worker_role' => 'app_owner');
shows($strict, 'app', sprintf($refused, 'app_owner'), 'a superuser under another role is refused as well');
$strict->safe_psql('postgres', 'ALTER DATABASE app RESET role');
$nothing_gained->();
# nor as a role that could become a superuser
grant_role($strict, 'app');
$strict->safe_psql('postgres', 'GRANT app_owner TO jobs');
configure($strict, 'cusown_ops.worker_role' => 'jobs');
shows($strict, 'app', sprintf($refused, 'jobs'), 'and so is a member of a superuser');
$nothing_gained->();
configure($strict, 'cusown_ops.worker_role' => 'nobody');
shows($strict, 'app', q{SELECT last_error = 'the visit ended while connecting as role "nobody", see the server''s log' FROM cusown_worker_status()},
	'of a role that cannot connect the status says so');
# one that is too long is cut, but not within a character
configure($strict, 'cusown_ops.worker_role' => "\x{c3}\x{b6}" x 150);
shows($strict, 'app', q{SELECT convert_from(convert_to(last_error, 'UTF8'), 'UTF8') LIKE '% role "' || chr(246) || '%' FROM cusown_worker_status()},
	'nor one whose name is too long to be shown');
$strict->safe_psql('postgres', 'REVOKE app_owner FROM jobs; GRANT pg_write_server_files TO jobs');
configure($strict, 'cusown_ops.worker_role' => 'jobs');
shows($strict, 'app', sprintf($refused, 'jobs'), 'nor does it work as who could write the server\'s files');
$nothing_gained->();
$strict->safe_psql('postgres', 'REVOKE pg_write_server_files FROM jobs');
configure($strict, 'cusown_ops.worker_role' => 'jobs');
shows($strict, 'app', $by_worker, 'as a role of its own it works');
shows($strict, 'app', q{SELECT string_agg(DISTINCT relation, ' ') = 'audit_logs booking_lifecycle_audit bookings cron_run_logs metrics slots' FROM gained},
	'the planted triggers run');
is($strict->safe_psql('app', q{SELECT DISTINCT who, is_superuser FROM gained; SELECT rolsuper FROM pg_roles WHERE rolname = 'owner'}),
	"jobs|f\nf", 'and a planted trigger gains nothing that this role has not');
$strict->stop;

done_testing();
