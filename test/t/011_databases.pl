# The worker and databases that come and go: a dump restored into a new one, one
# hundred made and dropped, and two servers with logical replication between
# their applications.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Application;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my @worker = (
	"shared_preload_libraries = 'cusown_ops'",
	"cusown_ops.worker_naptime = '200ms'",
	'cusown_ops.worker_role = jobs',
	'max_worker_processes = 20');

sub shows
{
	my ($node, $database, $query, $name) = @_;

	ok($node->poll_query_until($database, $query), $name);
	return;
}

sub set_databases
{
	my ($node, @names) = @_;

	$node->safe_psql('postgres', "ALTER SYSTEM SET cusown_ops.worker_databases = " . join(', ', @names));
	$node->reload;
	return;
}

# The worker's role, and only expiry, every second, for it to do.
sub prepare_work
{
	my ($node, $database) = @_;

	$node->safe_psql($database, q{
		SELECT cusown_grant('jobs', 'operator') \gexec
		INSERT INTO cusown_ops.job (name, every, enabled)
		VALUES ('expire_bookings', '1 second', true), ('release_expired_holds', NULL, false), ('prune_history', NULL, false), ('expire_payments', NULL, false), ('prune_idempotency', NULL, false), ('retry_parked_webhooks', NULL, false), ('take_census', NULL, false), ('evaluate_alerts', NULL, false)});
	return;
}

my $expired = q{SELECT count(*) FROM bookings WHERE cancelled_by = 'system' AND cancellation_reason = 'expired'};
my $by_worker = q{SELECT count(*) FROM cusown_ops.job_run WHERE source = 'worker' AND status = 'succeeded'};

my $node = new_node('main', [ allows_streaming => 'logical' ], @worker, 'wal_level = logical');
$node->safe_psql('postgres', 'CREATE ROLE jobs LOGIN BYPASSRLS');
make_database($node, 'app');
prepare_work($node, 'app');

# ---------- dump and restore into a new database ----------

$node->safe_psql('app', q{INSERT INTO cusown_ops.job_run (app_schema, job, source, started_at, status, session)
	VALUES ('public', 'prune_history', 'manual', now() - interval '1 hour', 'running', 'pid 1, role nobody')});
my $dump = "$PostgreSQL::Test::Utils::tmp_check/app.dump";
$node->command_ok([ 'pg_dump', '-Fc', '-f', $dump, 'app' ], 'the database is dumped');
set_databases($node, 'app', 'restored');
shows($node, 'app', "SELECT ($by_worker) > 1", 'the worker covers for a scheduler that is not there');
$node->safe_psql('postgres', 'CREATE DATABASE restored');
$node->command_ok([ 'pg_restore', '-d', 'restored', $dump ], 'restored into a new one beside it');
is($node->safe_psql('restored', 'SELECT count(*) FROM cusown_ops.takeover'), 0, 'what the worker covers is not restored');
# the new database has been missing until now, and the worker has lost patience
set_databases($node, 'app', 'restored', 'postgres');
shows($node, 'restored', "SELECT ($by_worker) > 1", 'the worker covers there too');
is($node->safe_psql('restored', $expired), $node->safe_psql('app', $expired), 'and does the same work');
is($node->safe_psql('restored', q{SELECT status FROM cusown_ops.job_run WHERE job = 'prune_history'}),
	'died', 'a run that was under way in the dump reads died');

# ---------- a hundred databases ----------

$node->safe_psql('postgres', 'DROP DATABASE restored');
$node->safe_psql('postgres', 'CREATE DATABASE bare');
$node->safe_psql('bare', 'CREATE EXTENSION cusown_ops');
grant_role($node, 'bare');
my @names = map { "copy_$_" } 1 .. 100;
set_databases($node, 'app', @names);
my $visited = q{SELECT count(*) = 1 FROM cusown_worker_status() WHERE database = '%s' AND did = 'nothing was late' AND failures = 0};
my $known = 0;
foreach my $n (0 .. $#names)
{
	$node->safe_psql('postgres', "CREATE DATABASE $names[$n] TEMPLATE bare");
	# it has been missing until now, so the worker would come much later
	if ($n % 20 == 0)
	{
		$node->reload;
		$known += $node->poll_query_until('app', sprintf($visited, $names[$n]));
	}
	$node->safe_psql('postgres', "DROP DATABASE $names[$n]");
}
pass('a hundred databases were made and dropped while the worker was looking for them');
is($known, 5, 'and came to those that stayed long enough');
is($node->safe_psql('postgres', q{SELECT count(*) FROM pg_database WHERE datname LIKE 'copy%'}), 0, 'none is left');
shows($node, 'app', q{SELECT last_visit > now() AND failures = 0 FROM cusown_worker_status() WHERE database = 'app'}
	  =~ s/now\(\)/'@{[ $node->safe_psql('app', 'SELECT now()') ]}'/r, 'the worker goes on elsewhere');
set_databases($node, 'app');
shows($node, 'app', 'SELECT count(*) = 1 FROM cusown_worker_status()', 'and forgets them');

# ---------- logical replication ----------

my $subscriber = new_node('subscriber', [], @worker);
$subscriber->safe_psql('postgres', 'CREATE ROLE jobs LOGIN BYPASSRLS');
$subscriber->safe_psql('postgres', 'CREATE DATABASE app');
$subscriber->safe_psql('app',
	include('cusown_app.sql') . 'CREATE EXTENSION cusown_ops; SELECT count(*) FROM cusown_attach()');
prepare_work($subscriber, 'app');
$node->safe_psql('app', 'CREATE PUBLICATION app FOR TABLES IN SCHEMA public');
$subscriber->safe_psql('app',
	sprintf('CREATE SUBSCRIPTION app CONNECTION $$%s$$ PUBLICATION app', $node->connstr('app')));
set_databases($subscriber, 'app');
shows($subscriber, 'app', q{SELECT count(*) = 0 FROM pg_subscription_rel WHERE srsubstate NOT IN ('r', 's')},
	'the application is copied to a subscriber that has us too');
shows($subscriber, 'app', q{SELECT did = 'left to the publisher expire_bookings on public' FROM cusown_worker_status()},
	'whose worker leaves the work to the publisher\'s');

$node->safe_psql('app', q{
	INSERT INTO slots (id, business_id, date, start_time, end_time, status, reserved_until)
	SELECT md5('more slot ' || n)::uuid, b.id, date '2040-01-01' + n, '09:00', '09:30', 'reserved', now() - interval '1 day'
	  FROM (SELECT id FROM businesses ORDER BY id LIMIT 1) b, generate_series(1, 50) n;
	INSERT INTO bookings (id, business_id, slot_id, customer_name, customer_phone, booking_id, created_at)
	SELECT md5('more ' || n)::uuid, s.business_id, s.id, 'Customer', '-', 'MORE-' || n, now() - interval '2 days'
	  FROM generate_series(1, 50) n JOIN slots s ON s.id = md5('more slot ' || n)::uuid});
shows($node, 'app', q{SELECT count(*) = 0 FROM bookings WHERE status = 'pending' AND booking_id LIKE 'MORE-%'},
	'the publisher\'s worker expires what is due');
$node->wait_for_catchup('app');
is($subscriber->safe_psql('app', $expired), $node->safe_psql('app', $expired), 'the subscriber has it');
my $sum = q{SELECT md5(string_agg(b::text, '|' ORDER BY id)) FROM %s b};
foreach my $table (qw(bookings slots payments audit_logs booking_lifecycle_audit))
{
	is( $subscriber->safe_psql('app', sprintf($sum, $table)), $node->safe_psql('app', sprintf($sum, $table)),
		"$table are the same on both");
}
is($subscriber->safe_psql('app', 'SELECT count(*) FROM cusown_ops.job_run; SELECT count(*) FROM cusown_ops.change'),
	"0\n0", 'where nothing was done by itself');
unlike(slurp_file($subscriber->logfile), qr/ERROR:/, 'and nothing went wrong');

# the switch-over
$subscriber->safe_psql('app', 'ALTER SUBSCRIPTION app DISABLE');
shows($subscriber, 'app', "SELECT ($by_worker) > 0", 'without its subscription the worker works there');

# A publisher that has partitions names each of them.
$subscriber->safe_psql('app', q{
	SET allow_system_table_mods = on;
	CREATE TABLE whole (id uuid) PARTITION BY HASH (id);
	CREATE TABLE part PARTITION OF whole FOR VALUES WITH (MODULUS 1, REMAINDER 0);
	UPDATE pg_subscription_rel SET srrelid = 'part'::regclass WHERE srrelid = 'bookings'::regclass;
	UPDATE cusown_ops.binding SET bound_name = 'whole' WHERE relation = 'bookings';
	ALTER SUBSCRIPTION app ENABLE});
shows($subscriber, 'app', q{SELECT did = 'left to the publisher expire_bookings on public' FROM cusown_worker_status()},
	'nor where the subscription writes a partition of its bookings');

$subscriber->stop;
$node->stop;
done_testing();
