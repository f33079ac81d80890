# The scheduler dies, the worker covers, the scheduler comes back: with pg_cron
# itself.  Its schedule @reboot runs a job when the server starts, so nobody has
# to wait for a minute.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Application;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $every = 4;
my $naptime = 2;

my $node = new_node('main', [],
	"shared_preload_libraries = 'pg_cron,cusown_ops'",
	"cron.database_name = 'App'",
	'cron.use_background_workers = on',
	'cusown_ops.worker_role = jobs',
	"cusown_ops.worker_naptime = '${naptime}s'",
	'max_worker_processes = 20');

# Restarts the server with these libraries.
sub restart_with
{
	my ($libraries) = @_;

	$node->append_conf('postgresql.conf', "shared_preload_libraries = '$libraries'");
	$node->restart;
	return;
}

sub shows
{
	my ($query, $name) = @_;

	ok($node->poll_query_until('App', $query), $name);
	return;
}

my $runs = q{SELECT count(*) FROM cusown_ops.job_run WHERE status = 'succeeded' AND source =};
my $newest = q{SELECT source FROM cusown_ops.job_run WHERE status = 'succeeded' ORDER BY id DESC LIMIT 1};

make_database($node, 'app');
# pg_cron's setting is a name as it is, not an identifier
$node->safe_psql('postgres', 'ALTER DATABASE app RENAME TO "App"');
$node->safe_psql(
	'App', qq{
	CREATE EXTENSION pg_cron;
	CREATE ROLE jobs LOGIN BYPASSRLS;
	SELECT cusown_grant('jobs', 'operator') \\gexec
	GRANT USAGE ON SCHEMA cron TO jobs;
	INSERT INTO cusown_ops.job (name, every, enabled)
	VALUES ('expire_bookings', '1 hour', true), ('release_expired_holds', NULL, false), ('prune_history', NULL, false), ('expire_payments', NULL, false), ('prune_idempotency', NULL, false), ('retry_parked_webhooks', NULL, false), ('take_census', NULL, false), ('evaluate_alerts', NULL, false);
	SELECT cusown_schedule('expire_bookings', username => 'jobs');
	UPDATE cron.job SET schedule = '\@reboot'});

# ---------- it lives ----------

$node->restart;
shows("SELECT ($runs 'cron') = 1", 'pg_cron runs the job');
my $seen = $node->safe_psql('App', 'SELECT clock_timestamp()');
shows("SELECT database = 'App' AND last_visit > '$seen' FROM cusown_worker_status()",
	'the worker looks, into pg_cron\'s database as no other is named');
is($node->safe_psql('App', "$runs 'worker'; SELECT count(*) FROM cusown_ops.takeover"),
	"0\n0", 'and does nothing');

# ---------- it dies ----------

restart_with('cusown_ops');
$node->safe_psql('App', qq{UPDATE cusown_ops.job SET every = '$every seconds' WHERE name = 'expire_bookings'});
shows("SELECT ($runs 'worker') > 0", 'pg_cron has gone: the worker runs the job');
is($node->safe_psql('App', q{SELECT cron_state FROM cusown_cron_health() WHERE job = 'expire_bookings'}),
	'not loaded', 'the report says why');
is( $node->safe_psql(
		'App', q{SELECT severity FROM audit_logs WHERE action_type = 'cron_failed' AND metadata->>'job' = 'expire_bookings'}),
	'critical', 'the audit trail says that the scheduler has failed');
# from when it could be late: the setting may have come after that
is( $node->safe_psql('App', qq{
		SELECT t.since - greatest(ok.finished_at + interval '@{[ 2 * $every ]} s', pg_postmaster_start_time())
		       < interval '@{[ $naptime + 5 ]} s'
		  FROM cusown_ops.takeover t, (SELECT max(finished_at) AS finished_at FROM cusown_ops.job_run WHERE source = 'cron') ok}),
	't', 'within twice its interval and a nap');
shows("SELECT ($runs 'worker') >= 3", 'and goes on');
is( $node->safe_psql('App', qq{
		SELECT bool_and(gap >= interval '$every s') FROM (
		  SELECT started_at - lag(finished_at) OVER (ORDER BY id) AS gap FROM cusown_ops.job_run WHERE source = 'worker') g}),
	't', 'at the job\'s interval');
is($node->safe_psql('App', q{SELECT late, last_source FROM cusown_cron_health() WHERE job = 'expire_bookings'}),
	'f|worker', 'so the job is not late');

# ---------- it comes back ----------

$node->safe_psql('App', q{UPDATE cusown_ops.job SET every = '1 hour' WHERE name = 'expire_bookings'});
restart_with('pg_cron,cusown_ops');
shows("SELECT ($runs 'cron') = 2", 'pg_cron is back and runs the job');
shows('SELECT count(*) = 0 FROM cusown_ops.takeover', 'the worker stands down');
is( $node->safe_psql('App', q{SELECT metadata->>'job' FROM audit_logs WHERE action_type = 'cron_recovered'}),
	'expire_bookings', 'with its audit row');
$seen = $node->safe_psql('App', 'SELECT clock_timestamp()');
shows("SELECT last_visit > timestamptz '$seen' FROM cusown_worker_status()", 'it goes on looking');
is($node->safe_psql('App', $newest), 'cron', 'but runs nothing');
my $log = slurp_file($node->logfile);
is(() = $log =~ /WARNING:  job "expire_bookings" .* the worker takes over/g, 1, 'one line when it took over');
is(() = $log =~ /WARNING:  job "expire_bookings" .* the worker stands down/g, 1, 'and one when it stood down');

$node->stop;
done_testing();
