# Shows jobs under pg_cron: cusown_schedule() and cusown_unschedule(), a run at
# a real minute, and cusown_cron_health() while the scheduler lives and when it
# has died.

use strict;
use warnings;

use File::Basename;
use lib dirname(__FILE__);

use Application;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# SQLSTATE and hint of what a statement raises
sub refusal
{
	my ($node, $database, $sql) = @_;
	my ($code, $out, $err) = $node->psql($database, $sql,
		extra_params => [ '-v', 'VERBOSITY=verbose' ]);
	my ($state) = $err =~ /ERROR:\s+(\w{5}):/;
	my ($hint) = $err =~ /HINT:\s+(.*)/;

	return join(' ', grep { defined } $state, $hint);
}

#
# Without pg_cron
#
my $bare = new_node('bare', []);
make_database($bare, 'app');
grow_old($bare, 'app');
like(
	refusal($bare, 'app', 'SELECT * FROM cusown_schedule()'),
	qr/^55000 .*shared_preload_libraries = 'pg_cron', cron.database_name = 'app'/,
	'without pg_cron scheduling is refused, with the lines to add');
is( $bare->safe_psql(
		'app', 'SELECT DISTINCT late, cron_state FROM cusown_cron_health() WHERE enabled'),
	't|unknown',
	'jobs that never ran are late, and pg_cron knows nothing of them');
$bare->stop;

#
# With it
#
my $node = new_node('cron', [],
	"shared_preload_libraries = 'pg_cron'",
	"cron.database_name = 'app'",
	'cron.use_background_workers = on',
	'max_worker_processes = 20');
make_database($node, 'app');
grow_old($node, 'app');
make_database($node, 'elsewhere');

is( refusal($node, 'app', 'SELECT * FROM cusown_schedule()'),
	'55000 CREATE EXTENSION pg_cron;',
	'in pg_cron\'s database the extension must be there');
$node->safe_psql('app', 'CREATE EXTENSION pg_cron');
my $to_schedule =
  q{SELECT command FROM cusown_runbook('cron_failure') WHERE step = '2' AND state = 'needed'};
is($node->safe_psql('app', $to_schedule),
	'SELECT * FROM cusown_schedule();', 'the runbook prints what schedules late jobs');

my $scheduled = join("\n",
	"evaluate_alerts|* * * * *|app|t|CALL public.cusown_run_job('evaluate_alerts'::pg_catalog.text, 'cron'::pg_catalog.text, NULL::integer, '0'::interval)",
	"expire_bookings|*/5 * * * *|app|t|CALL public.cusown_run_job('expire_bookings'::pg_catalog.text, 'cron'::pg_catalog.text, NULL::integer, '0'::interval)",
	"expire_payments|*/5 * * * *|app|t|CALL public.cusown_run_job('expire_payments'::pg_catalog.text, 'cron'::pg_catalog.text, NULL::integer, '0'::interval)",
	"prune_history|0 3 * * *|app|t|CALL public.cusown_run_job('prune_history'::pg_catalog.text, 'cron'::pg_catalog.text, NULL::integer, '0'::interval)",
	"prune_idempotency|0 * * * *|app|t|CALL public.cusown_run_job('prune_idempotency'::pg_catalog.text, 'cron'::pg_catalog.text, NULL::integer, '0'::interval)",
	"release_expired_holds|* * * * *|app|t|CALL public.cusown_run_job('release_expired_holds'::pg_catalog.text, 'cron'::pg_catalog.text, NULL::integer, '0'::interval)",
	"retry_parked_webhooks|* * * * *|app|t|CALL public.cusown_run_job('retry_parked_webhooks'::pg_catalog.text, 'cron'::pg_catalog.text, NULL::integer, '0'::interval)",
	"take_census|0 * * * *|app|t|CALL public.cusown_run_job('take_census'::pg_catalog.text, 'cron'::pg_catalog.text, NULL::integer, '0'::interval)"
);
my $entries = () = $scheduled =~ /^\w+\|/mg;
my $schedule =
  'SELECT job_name, schedule, database, active, command FROM cusown_schedule() ORDER BY 1';
is($node->safe_psql('app', $schedule), $scheduled, 'all enabled jobs are scheduled');
is($node->safe_psql('app', $to_schedule), '', 'and not what is scheduled');
is($node->safe_psql('app', $schedule), $scheduled, 'a second time changes nothing');
my (undef, undef, $warning) = $node->psql('app', $schedule);
like($warning, qr/WARNING:  jobs will run as superuser "/, 'of a superuser it warns');
is($node->safe_psql('app', 'SELECT count(*) FROM cron.job'),
	$entries, 'there is one entry a job');

is( refusal($node, 'app', "SELECT * FROM cusown_schedule('expire_bookings', '7 minutes')"),
	'22023 The nearest that it can is every 360 seconds.',
	'an interval that cron cannot say is refused with the nearest');
is( refusal($node, 'app', "SELECT * FROM cusown_schedule('expire_bookings', '300.9 seconds')"),
	'22023 The nearest that it can is every 300 seconds.',
	'nor is one rounded to what it can');
is( refusal($node, 'app', "SELECT * FROM cusown_schedule('no_such_job')"),
	'22023 SELECT * FROM cusown_jobs() shows them.',
	'an unknown job is refused');
is( $node->safe_psql('app',
		"SELECT schedule FROM cusown_schedule('expire_bookings', '1 minute')"),
	'* * * * *',
	'one job can be given another interval');
is( $node->safe_psql('app',
		"SELECT every FROM cusown_jobs() WHERE job = 'expire_bookings'"),
	'00:01:00',
	'which is kept as what the owner has set');

# from another database: the command to run in pg_cron's
my $command = $node->safe_psql('elsewhere',
	"SELECT command FROM cusown_schedule('expire_bookings', '1 minute')");
like($command, qr/^SELECT cron\.schedule_in_database\(.*, 'elsewhere', '\w+'\);$/,
	'another database is given the command to run there');
$node->safe_psql('app', $command);
is( $node->safe_psql('app',
		"SELECT schedule, command FROM cron.job WHERE database = 'elsewhere'"),
	"* * * * *|CALL public.cusown_run_job('expire_bookings'::pg_catalog.text, 'cron'::pg_catalog.text, NULL::integer, '0'::interval)",
	'and pg_cron takes it');
like(refusal($node, 'elsewhere', 'SELECT cusown_unschedule()'),
	qr/^55000 .*cron\.unschedule.* AND database = 'elsewhere';/, 'unscheduling there says what to do');

# a superuser over tables of others
$node->safe_psql('app', 'CREATE ROLE owner_of_tables LOGIN; CREATE ROLE jobs LOGIN;
	ALTER TABLE payments OWNER TO owner_of_tables');
is( (split / /, refusal($node, 'app', 'SELECT * FROM cusown_schedule()'))[0],
	'42501',
	'a superuser must name another role where a table belongs to another');
$node->safe_psql('app', "SELECT cusown_grant('jobs', 'operator') \\gexec\n"
	  . 'GRANT USAGE ON SCHEMA cron TO jobs');
my (undef, $role, $told) = $node->psql('app', "SELECT DISTINCT role FROM cusown_schedule(username => 'jobs')");
is($role, 'jobs', 'jobs can be scheduled for a named role');
is($told, '', 'without a word');
is($node->safe_psql('app', 'SELECT DISTINCT username FROM cron.job WHERE database = \'app\''),
	'jobs', 'which takes those of the superuser out');
is($node->safe_psql('app', 'SELECT count(*) FROM cron.job WHERE database = \'elsewhere\''),
	'1', 'and nothing of another database');
is($node->safe_psql('app', 'SELECT cusown_unschedule()'),
	$entries, 'unscheduling takes out all of ours in this database');
$node->safe_psql('app',
	"SELECT cusown_schedule('expire_bookings', username => 'jobs')");

# a real minute, in both databases, one as a role with only its profile's rights
$node->poll_query_until('app',
	q{SELECT EXISTS (SELECT FROM cusown_ops.job_run
	  WHERE source = 'cron' AND status = 'succeeded')})
  or BAIL_OUT('pg_cron did not run the job within the time allowed');
is( $node->safe_psql('app',
		q{SELECT job, status, changed, session LIKE '%role jobs' FROM cusown_ops.job_run}),
	'expire_bookings|succeeded|40|t',
	'at the next minute pg_cron has run it, as that role');
is( $node->safe_psql('app',
		q{SELECT late, last_outcome, last_source, cron_state FROM cusown_cron_health()
		  WHERE job = 'expire_bookings'}),
	'f|succeeded|cron|active',
	'and the job is not late');
is($node->poll_query_until('elsewhere',
		q{SELECT EXISTS (SELECT FROM cusown_ops.job_run WHERE source = 'cron'
		  AND status = 'succeeded' AND changed = 40)}),
	1, 'the other database has had its run too');

# the scheduler dies: the last success grows old
$node->safe_psql('app',
	q{SELECT cron.unschedule(jobid) FROM cron.job;
	  UPDATE cusown_ops.job_run SET finished_at = now() - interval '3 minutes'});
is( $node->safe_psql('app',
		q{SELECT late, now() - late_since BETWEEN '59 seconds' AND '90 seconds', cron_state
		  FROM cusown_cron_health() WHERE job = 'expire_bookings'}),
	't|t|unknown',
	'after twice its interval the job is late, whatever the reason');
$node->safe_psql('app', "CALL cusown_run_job('expire_bookings')");
is( $node->safe_psql('app',
		q{SELECT late, last_source FROM cusown_cron_health() WHERE job = 'expire_bookings'}),
	'f|manual',
	'a manual run is a success like any other');
$node->safe_psql('app',
	"INSERT INTO cusown_ops.job (name, enabled) VALUES ('prune_history', false)");
is( $node->safe_psql('app',
		q{SELECT enabled, late FROM cusown_cron_health() WHERE job = 'prune_history'}),
	'f|f',
	'a job that is disabled is never late');
$node->stop;

done_testing();
