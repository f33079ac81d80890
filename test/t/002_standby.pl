# On a standby what is due can be looked at, and nothing can be changed; after
# its promotion everything works.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Application;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $primary = new_node('primary', [ allows_streaming => 1 ]);

make_database($primary, 'app');
# an entry for the worklist, so that there is one to close
$primary->safe_psql('app', 'SELECT cusown_expire_bookings(max_rows => 5)');

$primary->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'base', has_streaming => 1);
$standby->start;
$primary->wait_for_catchup($standby, 'replay');

# ---------- looking ----------

my $moment = $primary->safe_psql('app', 'SELECT now()');
my $report = "SELECT * FROM cusown_due_bookings(as_of => '$moment')";
my $due = $primary->safe_psql('app', $report);

is(scalar(split /\n/, $due), 46, 'the primary reports what is due');
is($standby->safe_psql('app', $report), $due, 'the standby reports the same');
is( $standby->safe_psql(
		'app', "BEGIN ISOLATION LEVEL REPEATABLE READ; $report; COMMIT"),
	$due,
	'also under REPEATABLE READ');
is( $standby->safe_psql('app', 'SELECT * FROM cusown_ops.attention ORDER BY id'),
	$primary->safe_psql('app',
		'SELECT * FROM cusown_ops.attention ORDER BY id'),
	'the worklist can be read there');
is( $standby->safe_psql(
		'app', 'SELECT count(*) FROM cusown_ops.state_machine'),
	$primary->safe_psql(
		'app', 'SELECT count(*) FROM cusown_ops.state_machine'),
	'and the state machine');
my $doubles = 'SELECT * FROM cusown_double_bookings(verify => true)';
is($standby->safe_psql('app', $doubles), $primary->safe_psql('app', $doubles),
	'double bookings are told there');
like($standby->safe_psql('app', $doubles), qr/^slot_state\|/m, 'of which there are some');
is($standby->safe_psql('app', 'SELECT status FROM cusown_install_constraints()'),
	'present', 'and what keeps them away');

# ages, and what is of this server, are its own
my $metrics = q{SELECT l FROM regexp_split_to_table(cusown_metrics(), '\n') l WHERE l !~ 'age_seconds|observed|_absent'};
is($standby->safe_psql('app', $metrics), $primary->safe_psql('app', $metrics), 'metrics are told there');
like($standby->safe_psql('app', $metrics), qr/^cusown_symptom_severity\{.*"pending_overdue".*\} 2$/m, 'all of them');

foreach my $runbook (qw(cron_failure double_booking payment_mismatch database_performance))
{
	my $steps = "SELECT step, state, command FROM cusown_runbook('$runbook') WHERE step <> '0'";

	is($standby->safe_psql('app', $steps), $primary->safe_psql('app', $steps),
		"the runbook $runbook is the same there");
}
is( $standby->safe_psql('app', q{SELECT finding FROM cusown_runbook('cron_failure') WHERE step = '0'}),
	'a standby: run the commands on the primary', 'and says where to run what it prints');
is($primary->safe_psql('app', q{SELECT count(*) FROM cusown_runbook('cron_failure') WHERE step = '0'}),
	'0', 'which the primary does not');

# a run that is under way on the primary is no dead one
my $drain = IPC::Run::start(
	[
		'psql', '-XAtq', '-d', $primary->connstr('app'), '-c',
		q{CALL cusown_run_job('mark_no_show', batch_size => 1, pause => '1 hour')}
	],
	'<', \undef, '>', \my $out, '2>', \my $err);
ok($primary->poll_query_until('app', 'SELECT EXISTS (SELECT FROM cusown_ops.job_progress WHERE looked_at = 1)'),
	'a run on the primary pauses');
$primary->wait_for_catchup($standby, 'replay');
my $progress = 'SELECT job, looked_at FROM cusown_ops.job_progress';
is($standby->safe_psql('app', $progress), 'mark_no_show|1', 'the standby shows its progress');
is( $standby->safe_psql('app',
		q{SELECT last_outcome, running_since IS NOT NULL FROM cusown_cron_health() WHERE job = 'mark_no_show'}),
	'running|t', 'and that it runs');
$primary->safe_psql('app',
	q{SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE 'CALL%'});
$drain->finish;
$primary->wait_for_catchup($standby, 'replay');
is( $standby->safe_psql('app', "$progress; SELECT status FROM cusown_ops.job_run"),
	'cancelled', 'and how it ended');

# A session on the standby learns what was attached anew on the primary.
my $session = $standby->background_psql('app');
is($session->query_safe($report), $due, 'a session on the standby reports');
$primary->safe_psql(
	'app', q{
	ALTER TABLE bookings RENAME COLUMN status TO condition;
	SELECT count(*) FROM cusown_attach('public',
	  '{"bookings": {"columns": {"status": "condition"}}}');
});
$primary->wait_for_catchup($standby, 'replay');
is($session->query_safe($report),
	$due, 'and goes on when the primary has attached by a new name');
$session->quit;
$primary->safe_psql(
	'app', q{
	ALTER TABLE bookings RENAME COLUMN condition TO status;
	SELECT count(*) FROM cusown_attach();
});
$primary->wait_for_catchup($standby, 'replay');

# ---------- not changing ----------

my %refused = (
	'cusown_expire_bookings()' => 'an expiry run',
	'cusown_expire_bookings(dry_run => true)' => 'a dry run',
	'cusown_evaluate_alerts()' => 'evaluating alerts',
	"cusown_ack(1, 'x')" => 'acknowledging one',
	"cusown_attention_resolve((SELECT min(id) FROM cusown_ops.attention), 'x')"
	  => 'closing an entry',
	'cusown_attach()' => 'attaching',
	'cusown_detach()' => 'detaching',
	'cusown_resolve_double_bookings()' => 'resolving double bookings',
	'cusown_keep_booking((SELECT min(id::text)::uuid FROM bookings))' => 'keeping a booking',
	'cusown_repair_slots(dry_run => true)' => 'repairing slots',
	'cusown_install_constraints(blocking => true)' => 'building an index',
	"cusown_payment_transition((SELECT min(id::text)::uuid FROM payments), 'verify')" => 'verifying a payment',
	'cusown_expire_payments(dry_run => true)' => 'expiring payments',
	"cusown_idempotency_begin('s', 'k')" => 'beginning a request',
	"cusown_idempotency_complete('s', 'k', 1, NULL)" => 'completing a request',
	"cusown_idempotency_abandon('s', 'k', 1)" => 'abandoning a request',
	"cusown_grant('postgres', 'operator')" => 'granting');

foreach my $call (sort keys %refused)
{
	is( error_of($standby, 'app', "SELECT $call"),
		'25006 Call it on the primary server.',
		"$refused{$call} is refused on the standby, with a hint");
}
is(state_of($standby, 'app', 'public'),
	state_of($primary, 'app', 'public'),
	'standby and primary are alike');

# ---------- after promotion ----------

$primary->stop;
$standby->promote;
is($standby->safe_psql('app', $report), $due, 'promoted it reports the same');
is($standby->safe_psql('app', 'SELECT cusown_expire_bookings()'),
	'(35,23,6,f)', 'and expires what is left');
is(expiry_counts($standby, 'app'), '40|40|27|40|8', 'with its audit rows');
is($standby->safe_psql('app', 'SELECT count(*) FROM verify_audit_chain()'),
	'0', 'in an unbroken chain');
is( $standby->safe_psql(
		'app',
		q{SELECT cusown_attention_resolve(min(id), 'Done') FROM cusown_ops.attention}
	),
	't',
	'an entry can be closed');
is( $standby->safe_psql(
		'app', q{SELECT count(*) > 0 FROM cusown_attach(); SELECT cusown_detach()}
	),
	"t\n",
	'it can be attached and detached');

$standby->stop;
done_testing();
