# Lazy heal with shared memory: one caller in an interval works, over all
# sessions, databases and applications apart; the others are back without a
# query.  What fails or is cut short does not harm the request, nor a crash
# the turns.  Without preload the ledger does the same.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Application;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $heal = 'SELECT cusown_expire_if_due()';
my $ledger = q{SELECT app_schema, source, status, changed, sqlstate FROM cusown_ops.job_run
                WHERE job = 'expire_if_due' ORDER BY id};
my $count = q{SELECT count(*) FROM cusown_ops.job_run WHERE job = 'expire_if_due'};

sub set_interval
{
	my ($node, $interval) = @_;

	$node->safe_psql('postgres', "ALTER SYSTEM SET cusown_ops.lazy_expire_interval = '$interval'");
	$node->reload;
	ok( $node->poll_query_until('postgres', "SELECT current_setting('cusown_ops.lazy_expire_interval') = '$interval'"),
		"the interval is $interval");
	return;
}

# Forgets the ledger, and makes what had expired due again.
sub begin_again
{
	my ($node, $database) = @_;

	$node->safe_psql($database, q{
		SET session_replication_role = replica;
		TRUNCATE cusown_ops.job_run;
		UPDATE bookings SET status = 'pending', cancelled_by = NULL, cancelled_at = NULL
		 WHERE id IN (SELECT entity_id FROM audit_logs WHERE metadata->>'rule' = 'older_than')});
	return;
}

# A trigger on the bookings that makes a visit fail, or wait for who holds the
# advisory lock 1.
sub set_obstacle
{
	my ($node, $body) = @_;

	$node->safe_psql('app', qq{
		CREATE OR REPLACE FUNCTION obstacle() RETURNS trigger LANGUAGE plpgsql AS \$\$
		BEGIN
		  $body;
		  RETURN NEW;
		END
		\$\$;
		CREATE OR REPLACE TRIGGER obstacle BEFORE UPDATE ON bookings FOR EACH ROW
		WHEN (NEW.status = 'cancelled') EXECUTE FUNCTION obstacle()});
	return;
}

sub run_pgbench
{
	my ($node, $database, $script, @options) = @_;
	my $file = "$PostgreSQL::Test::Utils::tmp_check/lazy.sql";
	my ($out, $err) = ('', '');

	unlink $file;
	append_to_file($file, $script);
	my $result = IPC::Run::run(
		[ 'pgbench', '-n', '-f', $file, '-d', $node->connstr($database), @options ],
		'<', \undef, '>', \$out, '2>', \$err);
	note $err if !$result;
	return $result;
}

# behind another library that has hooks of its own
my $node = new_node('main', [ allows_streaming => 1 ],
	"shared_preload_libraries = 'pg_stat_statements, cusown_ops'",
	"cusown_ops.lazy_expire_interval = '1h'",
	'restart_after_crash = on',
	'max_connections = 40');

make_database($node, 'app');
make_database($node, 'second');
is( $node->safe_psql('app', q{CREATE EXTENSION pg_stat_statements;
		SELECT count(*) > 0 FROM pg_stat_statements}), 't',
	'the library that was preloaded before ours has its shared memory');
is( $node->safe_psql('app', q{SELECT name FROM pg_shmem_allocations WHERE name = 'cusown_ops turns'}),
	'cusown_ops turns', 'and so have we');

# ---------- whose turn it is ----------

# A read-only transaction takes no turn, and one of another isolation level
# complains, once over all sessions.
is($node->safe_psql('app', "BEGIN READ ONLY; $heal; COMMIT"), '0', 'read-only: nothing');
my ($rc, $out, $err) = $node->psql('app', "BEGIN ISOLATION LEVEL REPEATABLE READ; $heal; COMMIT");
is("$rc $out", '0 0', 'REPEATABLE READ: nothing');
like($err, qr/WARNING: .*REPEATABLE READ/, 'and it says so');
($rc, $out, $err) = $node->psql('app', "BEGIN ISOLATION LEVEL REPEATABLE READ; $heal; COMMIT");
is("$rc $out $err", '0 0 ', 'but not in the next session');
is($node->safe_psql('app', $count), '0', 'neither has a row');

is($node->safe_psql('app', $heal), '40', 'the first caller expires what is due');
is($node->safe_psql('app', $ledger), 'public|lazy_heal|succeeded|40|', 'and has a row');
begin_again($node, 'app');
is($node->safe_psql('app', $heal), '0', 'the next session does not, though no ledger tells it');
is($node->safe_psql('second', $heal), '40', 'another database has its own turn');

# Nor does it look: a session that knows which application is meant, needs
# nothing that we or the application could lock.
my $session = $node->background_psql('app');
is($session->query_safe($heal), '0', 'it is not the turn of a third session');
my $other = $node->background_psql('app');
$other->query_safe(q{
	BEGIN;
	LOCK TABLE bookings, slots, payments, audit_logs, metrics, cusown_ops.binding, cusown_ops.job_run
	IN ACCESS EXCLUSIVE MODE});
is($session->query_safe("SET statement_timeout = '10s'; $heal"), '0', 'which needs no table to say so');
$other->query_safe('ROLLBACK; BEGIN; LOCK TABLE bookings, cusown_ops.job_run IN ACCESS EXCLUSIVE MODE');
is($node->safe_psql('app', "SET statement_timeout = '10s'; $heal"), '0',
	'a new session reads the binding, and nothing else');
$other->query_safe('ROLLBACK');
$other->quit;
$session->quit;

# Applications are apart; what nobody chose is complained of, once.
attach_minimal($node, 'app');
$node->safe_psql('app', q{
	INSERT INTO shop.time_slot (ref, state, held_until) VALUES (md5('s')::uuid, 'reserved', now() - interval '1 day');
	INSERT INTO shop.reservation (ref, state, slot_ref, made_at)
	VALUES (md5('b')::uuid, 'pending', md5('s')::uuid, now() - interval '25 h')});
my $choose = 'SET cusown_ops.app_schema =';
is($node->safe_psql('app', "$choose shop; $heal"), '1', 'another application has its own turn');
is($node->safe_psql('app', "$choose shop; $heal"), '0', 'of which it takes one');
is($node->safe_psql('app', "$choose public; $heal"), '0', 'it does not give the first one another');
set_interval($node, '1s');
ok( $node->poll_query_until('app', "$choose public; $heal", "SET\n40"), 'when the interval is over, it comes again');

$node->safe_psql('app', q{SELECT cusown_detach('shop')});

# ---------- under load ----------

# Of each two turns that follow one another, how long the second came after
# the first, at least.
my $gap = q{SELECT min(started_at - before) >= '1s' FROM (
              SELECT started_at, lag(started_at) OVER (ORDER BY id) AS before
                FROM cusown_ops.job_run WHERE job = 'expire_if_due') r};

begin_again($node, 'app');
run_pgbench($node, 'app', "$heal;\n", '-c', '8', '-j', '2', '-T', '5');
my $turns = $node->safe_psql('app', $count);
note "$turns turns in 5 seconds";
cmp_ok($turns, '>=', 4, 'eight sessions for five seconds: a turn each second');
cmp_ok($turns, '<=', 6, 'and no more');
is($node->safe_psql('app', $gap), 't', 'none before a second was over');
is( $node->safe_psql('app', q{SELECT sum(changed), count(*) FILTER (WHERE status <> 'succeeded') FROM cusown_ops.job_run}),
	'40|0', 'what was due is expired once, and no turn failed');

# ---------- what fails, fails softly ----------

begin_again($node, 'app');
$node->safe_psql('app', 'CREATE TABLE request (id serial, healed bigint)');
set_obstacle($node, q{RAISE EXCEPTION 'not today' USING ERRCODE = 'XX123'});
my $log_start = -s $node->logfile;
my $bench = run_pgbench($node, 'app', "INSERT INTO request (healed) SELECT cusown_expire_if_due();\n",
	'-c', '8', '-j', '2', '-T', '3');
ok($bench, 'while it fails no request does');
is($node->safe_psql('app', 'SELECT count(*) > 100, sum(healed) FROM request'), 't|0', 'what they did otherwise is there');
$turns = $node->safe_psql('app', $count);
is( $node->safe_psql('app', q{SELECT DISTINCT status, changed, sqlstate, message FROM cusown_ops.job_run}),
	'failed|0|XX123|not today', 'the ledger says what failed');
my @warnings = slurp_file($node->logfile, $log_start) =~ /WARNING:  could not expire bookings that are due: not today/g;
is(scalar(@warnings), $turns, 'there is a WARNING for each turn');
ok($turns >= 2 && $turns <= 4, 'which are few');
unlike(slurp_file($node->logfile, $log_start), qr/ERROR:/, 'and no ERROR');

# ---------- a cancel, a timeout and a shutdown are not for us ----------

my $waiting = q{SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND NOT granted};

set_interval($node, '0');
set_obstacle($node, 'PERFORM pg_advisory_xact_lock_shared(1)');
my $gate = $node->background_psql('app');
$gate->query_safe('SELECT pg_advisory_lock(1)');
begin_again($node, 'app');
is(error_of($node, 'app', "SET statement_timeout = '500ms'; $heal"), '57014 ', 'a timeout ends the request');

sub end_request
{
	my ($how, $wanted) = @_;
	my ($stdout, $stderr) = ('', '');
	my $run = IPC::Run::start(
		[ 'psql', '-XAtq', '-v', 'VERBOSITY=verbose', '-d', $node->connstr('app'), '-c', $heal ],
		'<', \undef, '>', \$stdout, '2>', \$stderr,
		IPC::Run::timer($PostgreSQL::Test::Utils::timeout_default));

	ok($node->poll_query_until('app', "SELECT EXISTS ($waiting)"), "$how: a visit is under way");
	is( $node->safe_psql('app', q{SELECT cusown_ops.job_is_alive('public', 'expire_bookings')}),
		't', "$how: it keeps the job out");
	$node->safe_psql('app', "SELECT $how(pid) FROM ($waiting) w");
	$run->finish;
	like($stderr, $wanted, "$how ends the request");
	unlike($stderr, qr/WARNING/, "$how is no failure");
	is($stdout, '', "$how: nothing is returned");
	ok($node->poll_query_until('app', q{SELECT NOT cusown_ops.job_is_alive('public', 'expire_bookings')}),
		"$how: the lock is given back");
	return;
}
end_request('pg_cancel_backend', qr/ERROR:  57014: canceling statement due to user request/);
end_request('pg_terminate_backend', qr/FATAL:  57P01: terminating connection/);
is($node->safe_psql('app', $count), '0', 'none of them has a row');
$gate->quit;
is($node->safe_psql('app', $heal), '40', 'the next request works');
is($node->safe_psql('app', q{SELECT count(*) FROM verify_audit_chain()}), '0', 'on an unbroken audit chain');
$node->safe_psql('app', 'DROP TRIGGER obstacle ON bookings');

# ---------- a standby ----------

set_interval($node, '1h');
$node->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'base', has_streaming => 1);
$standby->start;
begin_again($node, 'app');
$node->wait_for_catchup($standby, 'replay');
$log_start = -s $standby->logfile;
($rc, $out, $err) = $standby->psql('app', "$heal; $heal");
is("$rc $out $err", "0 0\n0 ", 'on a standby: nothing, without a word');
unlike(slurp_file($standby->logfile, $log_start), qr/WARNING|ERROR/, 'nor one in the log');
$standby->promote;
is($standby->safe_psql('app', $heal), '40', 'promoted it heals');
is($standby->safe_psql('app', $heal), '0', 'once in the interval');
$standby->stop;

# ---------- a table that is full ----------

# More applications than there is room for; what they are bound to is not
# there, so each turn leaves a row that says so.
$node->safe_psql('postgres', 'CREATE DATABASE many');
$node->safe_psql('many', q{
	CREATE EXTENSION cusown_ops;
	INSERT INTO cusown_ops.binding (app_schema, relation, attribute, bound_schema, bound_name)
	SELECT 'tenant_' || i, 'bookings', '', 'gone', 'gone' FROM generate_series(1, 1030) i;
	CREATE PROCEDURE visit(first int, last int) LANGUAGE plpgsql AS $$
	BEGIN
	  FOR i IN first .. last LOOP
	    PERFORM set_config('cusown_ops.app_schema', 'tenant_' || i, true);
	    PERFORM cusown_expire_if_due();
	  END LOOP;
	END
	$$});
my $visited = q{SELECT string_agg(app_schema || ' ' || n, ', ') FROM (
                  SELECT app_schema, count(*) AS n FROM cusown_ops.job_run
                   GROUP BY 1 HAVING count(*) > 1 ORDER BY 1) v};
my $quiet = 'SET client_min_messages = error; SET log_min_messages = error;';
$node->safe_psql('many', "$quiet CALL visit(1, 1000); CALL visit(1, 1000)");
is($node->safe_psql('many', "SELECT count(*) FROM cusown_ops.job_run"), '1000', 'there is room for a thousand applications');
is($node->safe_psql('many', $visited), '', 'each of which has one turn');
$node->safe_psql('many', "$quiet CALL visit(1001, 1030); CALL visit(900, 1030)");
is($node->safe_psql('many', $visited), '', 'of more, the latest are remembered');
$node->safe_psql('many', "$quiet CALL visit(1, 1)");
is($node->safe_psql('many', $visited), 'tenant_1 2', 'and those that are forgotten have their turn early');

# ---------- a crash ----------

$node->stop;
my $killed = new_node('killed', [],
	"shared_preload_libraries = 'cusown_ops'",
	"cusown_ops.lazy_expire_interval = '1h'",
	'restart_after_crash = on');
make_database($killed, 'app');
is($killed->safe_psql('app', $heal), '40', 'crash: it has healed');
begin_again($killed, 'app');
is($killed->safe_psql('app', $heal), '0', 'crash: it is not due');
$session = $killed->background_psql('app', on_error_stop => 0);
kill 'KILL', $session->query_safe('SELECT pg_backend_pid()');
$session->{run}->kill_kill;
ok($killed->poll_query_until('app', $heal, '40'), 'crash: the server is back, with no turn taken');
is($killed->safe_psql('app', $heal), '0', 'crash: and goes on to keep them');
$killed->stop;

# ---------- without preload ----------

# Sessions that see nothing of one another but the ledger; of any number that
# come at once one works.
my $bare = new_node('bare', [], "cusown_ops.lazy_expire_interval = '1h'", 'max_connections = 40');
make_database($bare, 'app');
foreach my $round (1 .. 5)
{
	begin_again($bare, 'app');
	$bench = run_pgbench($bare, 'app', "$heal;\n", '-C', '-c', '16', '-j', '2', '-t', '5');
	ok($bench, "not preloaded, round $round: no request fails");
	is($bare->safe_psql('app', $ledger), 'public|lazy_heal|succeeded|40|', "not preloaded, round $round: one of 80 sessions works");
}
$bare->stop;
done_testing();
