# Kill rounds: eight clients book, confirm, cancel, pay and hold by the
# application's own functions while the worker expires and releases behind them.
# In each round one process is killed: the worker in the middle of a run, the
# launcher, a session in the middle of a run by hand, the checkpointer in the
# middle of a checkpoint; or the server is stopped at once.  When it is up again,
# nothing that a client was told is lost, nothing was done twice, each run that
# died says so, and the worker is back.
#
#	prove test/t/009_kill_rounds.pl :: --rounds 100
#
# Each client numbers what it does and writes it to a ledger in the same
# transaction; pgbench logs what it was told.  What a client was told must be
# found, and beside it at most the one thing that it had not yet heard of.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Application qw(:DEFAULT add_due);
use Getopt::Long;
use List::Util qw(max);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Record;
use Test::More;
use Time::HiRes qw(time usleep);

my $rounds = $ENV{KILL_ROUNDS} || 25;
GetOptions('rounds=i' => \$rounds) or die "usage: 009_kill_rounds.pl [--rounds N]\n";

my $clients = 8;
my $naptime = 1;

# two naps, and what a loaded machine needs to start a process
my $soon = 2 * $naptime + 1;

my $dir = $PostgreSQL::Test::Utils::tmp_check;
my %total = (acknowledged => 0, found => 0);
my %slowest = (back => 0, found => 0);

my $node = new_node(
	'main', [],
	"shared_preload_libraries = 'cusown_ops'",
	"cusown_ops.worker_databases = 'app'",
	"cusown_ops.worker_naptime = '${naptime}s'",
	"cusown_ops.booking_ttl = '1s'",
	'cusown_ops.batch_size = 5',
	'cusown_ops.job_run_retention = 100000',
	'restart_after_crash = on',
	'checkpoint_timeout = 30s',
	'log_statement = none',
	'wal_level = replica',
	'max_connections = 30');
my $owner = $node->safe_psql('postgres', 'SELECT current_user');

# ---------- the clients ----------

# One thing that a customer, an owner or a provider does: the action that the
# application audits, and on what.  What it refuses is part of life; a deadlock
# is not caught, so that pgbench tries again.
my $application = q{
	CREATE TABLE act.ledger (
	  round integer, client integer, number integer, action text NOT NULL, entity_id uuid,
	  at timestamptz DEFAULT clock_timestamp(), PRIMARY KEY (round, client, number));

	CREATE FUNCTION act.anything(p_what integer, OUT action text, OUT entity_id uuid) LANGUAGE plpgsql AS $$
	BEGIN
	  CASE
	    WHEN p_what <= 400 THEN
	      action := 'booking_created';
	      entity_id := create_booking_atomically(md5('business')::uuid, act.slot(), 'Customer', '+15551111111');
	    WHEN p_what <= 460 THEN
	      action := 'booking_confirmed';
	      entity_id := act.booking('pending');
	      PERFORM confirm_booking_atomically(entity_id);
	    WHEN p_what <= 610 THEN
	      action := 'booking_cancelled';
	      entity_id := act.booking('confirmed');
	      PERFORM cancel_booking(entity_id);
	    WHEN p_what <= 640 THEN
	      action := 'booking_cancelled';
	      entity_id := act.booking('pending');
	      PERFORM cancel_booking(entity_id);
	    WHEN p_what <= 740 THEN
	      -- older than the grace: only 'completed' keeps expiry away
	      action := 'payment_created';
	      entity_id := create_payment(act.booking('pending'), 50000);
	      IF random() < 0.9 THEN
	        UPDATE payments SET created_at = now() - interval '2 h' WHERE id = entity_id;
	      END IF;
	    WHEN p_what <= 840 THEN
	      action := 'payment_succeeded';
	      entity_id := act.payment('processing');
	      PERFORM complete_payment(entity_id);
	    WHEN p_what <= 940 THEN
	      entity_id := act.payment('completed');
	      IF confirm_booking_with_payment(entity_id) THEN
	        action := 'booking_confirmed';
	        entity_id := (SELECT p.booking_id FROM payments p WHERE p.id = entity_id);
	      ELSE
	        action := 'payment_failed';
	      END IF;
	    WHEN p_what <= 960 THEN
	      action := 'slot_reserved';
	      entity_id := act.slot();
	      PERFORM reserve_slot(entity_id);
	    ELSE
	      -- ten minutes go by
	      UPDATE slots SET reserved_until = now() - interval '1 s'
	       WHERE id IN (SELECT id FROM slots WHERE status = 'reserved' AND random() < 0.3
	                     FOR UPDATE SKIP LOCKED);
	      action := 'time';
	  END CASE;
	EXCEPTION WHEN raise_exception OR integrity_constraint_violation OR unique_violation
	  OR check_violation OR not_null_violation THEN
	  action := 'refused';
	  entity_id := NULL;
	END
	$$;
};

append_to_file("$dir/client.sql", q{\set what random(1, 1000)
INSERT INTO act.ledger SELECT :round, :client_id, :number, a.* FROM act.anything(:what) a;
\set number :number + 1
});

sub start_clients
{
	my ($round) = @_;

	return start_pgbench($node, 'app', $owner, 3600, $clients,
		'--max-tries=1000', '-f', "$dir/client.sql",
		'-D', "round=$round", '-D', 'number=1',
		'-l', "--log-prefix=$dir/told.$round");
}

# How many answers each client has got.
sub answers
{
	my ($round) = @_;
	my @answers = (0) x $clients;

	foreach my $file (glob "$dir/told.$round.*")
	{
		# client, number, time or "failed", ...
		/^(\d+) \d+ \d+ / && $answers[$1]++ foreach split /^/, slurp_file($file);
	}
	return @answers;
}

# ---------- waiting ----------

# What a query gives; nothing, while the server is down.  psql may then be gone
# before it has read the query, which makes the call die.
sub ask
{
	my ($query) = @_;
	my ($rc, $stdout) = eval { $node->psql('app', $query) };

	return defined $rc && $rc == 0 ? $stdout : '';
}

# Calls a function until it gives something.
sub wait_for
{
	my ($what, $attempt) = @_;
	my $end = time + $PostgreSQL::Test::Utils::timeout_default;

	while (time < $end)
	{
		my $result = $attempt->();

		return $result if $result;
		usleep(20_000);
	}
	die "timed out waiting for $what";
}

# Until every client has done something, and the worker too.
sub wait_for_load
{
	my ($round) = @_;

	wait_for(
		'the load',
		sub {
			ask(qq{SELECT true WHERE
			         (SELECT count(*) = $clients AND min(n) >= 100 FROM
			           (SELECT count(*) AS n FROM act.ledger WHERE round = $round GROUP BY client) c)
			         AND EXISTS (SELECT FROM cusown_ops.job_run WHERE source = 'worker' AND changed > 0
			                        AND started_at > (SELECT min(at) FROM act.ledger WHERE round = $round))});
		});
	return;
}

# The process that is in the middle of a run, if there is one.
sub in_a_run
{
	my ($source, $condition) = @_;

	return ask(
		qq{SELECT substring(session FROM '\\d+') FROM cusown_ops.job_progress
		    WHERE job = 'expire_bookings' AND source = '$source' AND batches BETWEEN 1 AND 50 AND $condition});
}

# ---------- what is killed ----------

my $due = 0;

# For 60 batches of a run that begins after the time that this gives: one that
# is under way has read on behind them.
sub add_work
{
	add_due($node, 'app', $due + 1, $due + 300);
	$due += 300;
	return $node->safe_psql('app', 'SELECT clock_timestamp()');
}

# A session that runs a statement, and the process to kill, once $attempt gives
# one.  A session that has ended before is started again.
sub start_until
{
	my ($what, $attempt, @statements) = @_;
	my $session;
	my $pid = wait_for(
		$what,
		sub {
			if ($session && $session->{run}->pumpable)
			{
				$session->{run}->pump_nb;
				return $attempt->();
			}
			$session->{run}->finish if $session;
			$session = start_psql($node, 'app', @statements);
			return;
		});

	return ($pid, $session);
}

# Each gives the process to kill, and the session that was started for it.
my %victim = (
	'worker' => sub {
		my ($round) = @_;
		my $batches = 7 * $round % 20;
		my $added = add_work();

		return wait_for('a run of the worker', sub { in_a_run('worker', "since > '$added' AND batches > $batches") });
	},
	'launcher' => sub { return launcher_pid($node); },
	# the worker has come by; where it was first the run is refused
	'run by hand' => sub {
		add_work();
		return start_until(
			'a run by hand',
			sub { in_a_run('manual', '(SELECT last_visit > since FROM cusown_worker_status())') },
			'SET SESSION AUTHORIZATION jobs',
			q{CALL cusown_run_job('expire_bookings', 'manual', 5, '50 ms')});
	},
	# a checkpoint that takes its time, as for a backup
	'checkpointer' => sub {
		return start_until(
			'a checkpoint',
			sub {
				ask(q{SELECT pid FROM pg_stat_activity
				       WHERE backend_type = 'checkpointer' AND wait_event = 'CheckpointWriteDelay'});
			},
			q{SELECT pg_backup_start('kill')});
	});
my $stop = 'immediate stop';
my @kinds = ('worker', 'launcher', 'run by hand', 'checkpointer', $stop);

# Gives the session that was started for it.
sub kill_one
{
	my ($round, $kind) = @_;
	my ($pid, $session);

	do
	{
		($pid, $session) = $victim{$kind}->($round);
	} until kill 'KILL', $pid;
	return $session;
}

# Returns when the server accepts connections again; gives the time of the crash.
sub crash
{
	my ($round, $kind, $bench) = @_;
	my @sessions = ($bench);

	if ($kind eq $stop)
	{
		$node->stop('immediate');
	}
	else
	{
		push @sessions, kill_one($round, $kind) // ();
	}
	my $crashed = time;
	$_->{run}->finish foreach @sessions;
	$node->start if $kind eq $stop;
	wait_for('the server', sub { ask('SELECT true') });
	return $crashed;
}

# ---------- what must hold ----------

my $died = q{SELECT count(*) FROM cusown_ops.job_run WHERE status = 'died'};

# The worker has come back, and has found the runs that died.
sub check_return
{
	my ($what, $crashed, $died_before) = @_;
	my $up = time;

	wait_for('the worker',
		sub { ask(q{SELECT true FROM cusown_worker_status() WHERE coalesce(pid::text, did) <> ''}) });
	my %after = (back => time - $up);
	wait_for('the dead',
		sub {
			ask(q{SELECT true WHERE NOT EXISTS (SELECT FROM cusown_ops.job_run r WHERE status = 'running'
			         AND NOT EXISTS (SELECT FROM pg_stat_activity a WHERE r.session LIKE 'pid ' || a.pid || ',%'))});
		});
	$after{found} = time - $up;

	$slowest{$_} = max($slowest{$_}, $after{$_}) foreach keys %after;
	cmp_ok($after{back}, '<', $soon, "$what: the worker is back within two naps");
	cmp_ok($after{found}, '<', $soon, "$what: no run of a session that has gone reads running any more");
	is(ask("$died AND finished_at < to_timestamp($crashed)"), $died_before, "$what: no run that lived was taken for dead");
	cmp_ok(ask($died), '>', $died_before, "$what: the run that was killed reads died")
	  if $what =~ /worker|hand/;
	return;
}

# acknowledged <= found <= acknowledged + in flight, for each client
sub check_answers
{
	my ($round, $what) = @_;
	my @told = answers($round);
	my @found = (0) x $clients;
	my @last = (0) x $clients;

	foreach (split /\n/, $node->safe_psql('app',
			"SELECT client, count(*), max(number) FROM act.ledger WHERE round = $round GROUP BY client"))
	{
		my ($client, $count, $number) = split /\|/;

		($found[$client], $last[$client]) = ($count, $number);
	}
	is( join(' ', grep { $found[$_] < $told[$_] || $found[$_] > $told[$_] + 1 || $found[$_] != $last[$_] } 0 .. $clients - 1),
		'', "$what: each client finds all that it was told, and at most one thing more")
	  or diag "told: @told; found: @found; last: @last";
	$total{acknowledged} += $_ foreach @told;
	$total{found} += $_ foreach @found;
	return;
}

# All that the clients ever did is there, as often as they did it.
sub check_state
{
	my ($what) = @_;
	my $done = q{SELECT action, entity_id FROM act.ledger WHERE action NOT IN ('refused', 'time')};
	my $audited = q{SELECT action_type, entity_id FROM audit_logs
	                 WHERE (metadata ? 'rule') IS NOT TRUE AND entity_type <> 'system'};
	my $last = q{SELECT DISTINCT ON (id) id, to_status AS status FROM record.event WHERE entity = '%s' ORDER BY id, number DESC};

	is($node->safe_psql('app', "SELECT * FROM (($done) EXCEPT ALL ($audited)) d LIMIT 5"),
		'', "$what: all that was done is audited");
	is($node->safe_psql('app', "SELECT * FROM (($audited) EXCEPT ALL ($done)) d LIMIT 5"),
		'', "$what: all that is audited was done");
	foreach my $entity (qw(booking slot payment))
	{
		is( $node->safe_psql('app',
				"SELECT e.id FROM (" . sprintf($last, $entity)
				  . ") e LEFT JOIN ${entity}s t USING (id) WHERE t.status::text IS DISTINCT FROM e.status LIMIT 5"),
			'', "$what: each $entity stands as it was last changed");
	}
	return;
}

# The ledger of the jobs, died or not, counts each change once.
sub check_runs
{
	my ($what) = @_;

	is( $node->safe_psql(
			'app', q{
			SELECT * FROM (SELECT job, sum(changed), sum(released) FROM cusown_ops.job_run
			                WHERE job <> 'evaluate_alerts'
			                GROUP BY job HAVING sum(changed) + sum(released) > 0) r (job, changed, released)
			  FULL JOIN (SELECT verb, count(*) FILTER (WHERE verb = 'release_expired_holds' OR entity = 'booking'),
			                    count(*) FILTER (WHERE entity = 'slot' AND to_status = 'available')
			               FROM cusown_ops.change GROUP BY verb) c (job, changed, released) USING (job)
			 WHERE (r.changed, r.released) IS DISTINCT FROM (c.changed, c.released)}),
		'', "$what: the runs have counted what they changed");
	is($node->safe_psql('app', q{SELECT job, status, message FROM cusown_ops.job_run WHERE status IN ('failed', 'cancelled') LIMIT 5}),
		'', "$what: no run failed");
	is( $node->safe_psql(
			'app', q{
			SELECT * FROM (SELECT job FROM cusown_ops.takeover) t (job)
			  FULL JOIN (SELECT metadata->>'job', count(*), min(action_type) FROM audit_logs
			              WHERE entity_type = 'system' GROUP BY 1) a (job, times, action) USING (job)
			 WHERE (a.times, a.action) IS DISTINCT FROM (1, 'cron_failed')}),
		'', "$what: the worker took each job over once, and covers it");
	return;
}

sub check_server
{
	my $log = slurp_file($node->logfile);

	unlike($log, qr/PANIC:|TRAP:/, 'the server never panicked');
	unlike($log, qr/terminated by signal (?!9:)/, 'and no process ended by a signal that was not ours');
	SKIP:
	{
		skip 'amcheck is not installed', 1
		  if ask(q{SELECT name FROM pg_available_extensions WHERE name = 'amcheck'}) eq '';
		$node->safe_psql('app', 'CREATE EXTENSION amcheck');
		$node->command_ok([ 'pg_amcheck', '--heapallindexed', '-d', 'app' ], 'tables and indexes are sound');
	}
	return;
}

# ---------- the rounds ----------

sub run_round
{
	my ($round, $kind) = @_;
	my $what = "round $round, $kind";
	my $died_before = ask($died);
	my $bench = start_clients($round);

	wait_for_load($round);
	my $crashed = crash($round, $kind, $bench);

	unlike($bench->{err}, qr/ERROR:/, "$what: the clients met no error but this");
	check_return($what, $crashed, $died_before);
	# what the checks read has grown
	$node->safe_psql('app', 'VACUUM ANALYZE') if $round % 5 == 1;
	check_answers($round, $what);
	check_state($what);
	check_runs($what);
	check_changes($node, 'app', $what);
	check_faults($node, 'app', $what);
	return;
}

make_role($node);
make_salon($node, 'app');
grant_role($node, 'app');
make_record($node, 'app', 'jobs');
index_record($node, 'app');
$node->safe_psql('app', $application . q{
	INSERT INTO cusown_ops.job (name, every, enabled)
	VALUES ('expire_bookings', '1 second', true), ('release_expired_holds', '1 second', true),
	       ('prune_history', NULL, false), ('retry_parked_webhooks', NULL, false), ('take_census', NULL, false)});
$node->append_conf('postgresql.conf', "cusown_ops.worker_role = 'jobs'");
$node->reload;
run_round($_, $kinds[ ($_ - 1) % @kinds ]) foreach 1 .. $rounds;
check_server();
diag sprintf(
	'%d rounds: %d actions acknowledged, %d found; %d bookings expired; %d runs died, found after %.1f s at most; the worker was back after %.1f s at most',
	$rounds, @total{qw(acknowledged found)},
	ask(q{SELECT count(*) FROM record.ours WHERE entity = 'booking'}),
	ask($died), @slowest{qw(found back)});
$node->stop;
done_testing();
