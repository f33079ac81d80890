# A cluster in which the extension has been at work goes by pg_upgrade through
# each older server to the one that is tested, preloaded in all of them: what it
# knew it still knows, cursors of the change feed go on, and it works on.
#
# OLDER_PG_CONFIGS names the older servers; the extension is installed in them.

use strict;
use warnings;

use File::Basename;
use FindBin;
use lib "$FindBin::RealBin/../t";

use Application;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my @pg_configs = (split(' ', $ENV{OLDER_PG_CONFIGS} // ''), $ENV{PG_CONFIG});

plan skip_all => 'OLDER_PG_CONFIGS names no older server' if @pg_configs < 2;

# ---------- servers ----------

sub bindir_of
{
	my ($pg_config) = @_;
	my $bindir = qx{'$pg_config' --bindir};

	chomp $bindir;
	return $bindir;
}

# A cluster that pg_upgrade can take or fill: 18 has checksums unless told, the
# older ones have them only if told.  The library, its worker and pg_cron are
# there from the beginning, so that pg_upgrade has to get past all of them.
sub make_cluster
{
	my ($name, $pg_config) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name,
		install_path => dirname(bindir_of($pg_config)));

	$node->init(extra => [ '--encoding=UTF8', '--locale=C', '--data-checksums' ]);
	$node->append_conf(
		'postgresql.conf', q{
autovacuum = off
timezone = 'UTC'
shared_preload_libraries = 'pg_cron,cusown_ops'
max_worker_processes = 20
cron.database_name = 'app'
cron.use_background_workers = on
cusown_ops.worker_databases = 'app'
cusown_ops.worker_naptime = '1s'
});
	return $node;
}

# How often the owner wants expiry.
sub every
{
	my ($node, $every) = @_;

	$node->safe_psql('app', "UPDATE cusown_ops.job SET every = '$every' WHERE name = 'expire_bookings'");
	return;
}

# The worker leaves everything as it is while that is looked at.  Under
# pg_upgrade none but a superuser can connect.
sub worker
{
	my ($node, $switch, $role) = @_;

	$role //= 'jobs';
	$node->append_conf('postgresql.conf', "cusown_ops.worker = $switch\ncusown_ops.worker_role = $role");
	return;
}

# What to look at where the worker does not do what it should.
sub what_runs
{
	my ($node) = @_;

	return $node->safe_psql(
		'app', q{
		SELECT * FROM cusown_worker_status();
		SELECT * FROM cusown_ops.job_run ORDER BY id DESC LIMIT 5;
		SELECT * FROM cusown_cron_health();
		SELECT pid, backend_type, state, wait_event, query FROM pg_stat_activity});
}

# What pg_upgrade itself has to say when it fails.
sub logs_of
{
	my ($node) = @_;
	my @files = glob($node->data_dir . '/pg_upgrade_output.d/*/{*.txt,log/*.log}');

	return map { "$_\n" . slurp_file($_) } @files;
}

# Both are stopped.  pg_upgrade is the newer server's; it leaves scripts behind
# where it runs.
sub upgrade
{
	my ($old, $new, $what) = @_;
	my $dir = $new->basedir;
	my ($old_bin, $new_bin) = map { $_->config_data('--bindir') } ($old, $new);

	chdir $dir or die "chdir $dir: $!";
	$new->command_ok(
		[
			"$new_bin/pg_upgrade",
			'-d', $old->data_dir, '-D', $new->data_dir,
			'-b', $old_bin, '-B', $new_bin,
			'-s', $new->host, '-p', $old->port, '-P', $new->port
		],
		"$what: pg_upgrade gets through")
	  or diag(logs_of($new));
	return -e "$dir/update_extensions.sql" ? "$dir/update_extensions.sql" : undef;
}

# ---------- what is there ----------

# Tables, and how the extension stands in the catalog.
sub all_of
{
	my ($node) = @_;
	my %catalog = (
		extension => q{
			SELECT e.extversion, e.extnamespace::regnamespace, c.config::regclass, e.extcondition[c.i]
			  FROM pg_extension e, unnest(e.extconfig) WITH ORDINALITY c (config, i)
			 WHERE e.extname = 'cusown_ops' ORDER BY 3},
		rights => q{
			SELECT c.oid::regclass::text, c.relacl FROM pg_class c
			 WHERE relnamespace = 'cusown_ops'::regnamespace AND relkind IN ('r', 'v', 'S')
			UNION ALL
			SELECT p.oid::regprocedure::text, p.proacl FROM pg_proc p
			 WHERE proname LIKE 'cusown%' OR pronamespace = 'cusown_ops'::regnamespace
			UNION ALL
			SELECT nspname, nspacl FROM pg_namespace WHERE nspname = 'cusown_ops' ORDER BY 1},
		jobs => 'SELECT * FROM cusown_jobs() ORDER BY job',
		schedule => 'SELECT jobid, schedule, command, database, username, active FROM cron.job ORDER BY 1',
		sequences => q{
			SELECT sequencename, last_value FROM pg_sequences WHERE schemaname = 'cusown_ops' ORDER BY 1});

	my %all = (
		(map { $_ => $node->safe_psql('app', $catalog{$_}) } keys %catalog),
		map { ("tables of $_" => state_of($node, 'app', $_)) } qw(cusown_ops public shop));

	# from 17 on an owner may also MAINTAIN
	$all{rights} =~ s/arwdDxtm/arwdDxt/g;
	return \%all;
}

# What belongs to the extension.
sub members_of
{
	my ($node, $database) = @_;

	return $node->safe_psql(
		$database, q{
		SELECT pg_describe_object(classid, objid, objsubid) FROM pg_depend
		 WHERE refobjid = (SELECT oid FROM pg_extension WHERE extname = 'cusown_ops')
		   AND deptype = 'e' ORDER BY 1});
}

# The changes behind a cursor, and the last one's cursor.
sub changes_since
{
	my ($node, $cursor) = @_;
	my $query = 'FROM cusown_changes_since(' . ($cursor ? "'$cursor'" : 'NULL') . ', 100000)';

	ok( $node->poll_query_until('app',
			q{SELECT (SELECT count(*) FROM cusown_ops.change) = (SELECT count(*) FROM cusown_changes_since(NULL, 100000))}),
		$node->name . ': all changes can be read');
	return (
		$node->safe_psql('app', "SELECT entity, entity_id, to_status $query"),
		$node->safe_psql('app', "SELECT cursor FROM (SELECT cursor, row_number() OVER () AS n $query) c ORDER BY n DESC LIMIT 1"));
}

# Bookings first .. last, due, each on a slot of its own.
sub add_due
{
	my ($node, $first, $last) = @_;

	$node->safe_psql(
		'app', qq{
		INSERT INTO slots (id, business_id, date, start_time, end_time, status, reserved_until)
		SELECT md5('more slot ' || n)::uuid, b.id, date '2040-01-01' + n, '09:00', '09:30', 'reserved',
		       now() - interval '1 day'
		  FROM (SELECT id FROM businesses ORDER BY id LIMIT 1) b, generate_series($first, $last) n;
		INSERT INTO bookings (id, business_id, slot_id, customer_name, customer_phone, booking_id, created_at)
		SELECT md5('more ' || n)::uuid, s.business_id, s.id, 'Customer', '-', 'MORE-' || n, now() - interval '2 days'
		  FROM generate_series($first, $last) n JOIN slots s ON s.id = md5('more slot ' || n)::uuid});
	return;
}

# ---------- the oldest server, in use ----------

my $node = make_cluster('server0', $pg_configs[0]);

worker($node, 'off');
$node->start;
$node->safe_psql('postgres', 'CREATE ROLE jobs LOGIN BYPASSRLS; CREATE ROLE keeper; CREATE ROLE watcher');
make_database($node, 'app');
attach_minimal($node, 'app');
# what a user has set, done and found
$node->safe_psql(
	'app', q{
	CREATE EXTENSION pg_cron;
	ALTER DATABASE app SET cusown_ops.app_schema = 'public';
	SET cusown_ops.app_schema = 'public';
	SELECT cusown_grant('jobs', 'operator') \gexec
	SELECT cusown_grant('keeper', 'operator'), cusown_grant('watcher', 'monitor');
	GRANT USAGE ON SCHEMA cron TO jobs;
	INSERT INTO cusown_ops.job (name, every, enabled)
	VALUES ('expire_bookings', '1 day', NULL), ('prune_history', NULL, false),
	       ('release_expired_holds', NULL, false);
	INSERT INTO cusown_ops.state_transition VALUES
	  ('public', 'booking', 'confirmed', 'expire', 'cancelled');
	SELECT count(*) FROM cusown_schedule('expire_bookings', username => 'jobs');
	SELECT cusown_expire_bookings(max_rows => 10);
	SELECT cusown_attention_resolve(min(id), 'Called the customer') FROM cusown_ops.attention;
	CALL cusown_run_job('release_expired_holds', 'manual');
});
is( $node->safe_psql('app',
		q{SELECT (SELECT count(*) > 0 FROM cusown_ops.change),
		         (SELECT count(*) > 0 FROM cusown_ops.job_run),
		         (SELECT count(*) > 0 FROM cusown_ops.attention WHERE closed_at IS NULL),
		         (SELECT count(*) > 0 FROM cusown_ops.attention WHERE closed_at IS NOT NULL),
		         (SELECT count(DISTINCT app_schema) = 2 FROM cusown_ops.binding),
		         (SELECT count(*) = 1 FROM cron.job)}),
	't|t|t|t|t|t', 'there is something of each kind to lose');

# ---------- from each server to the next ----------

foreach my $i (1 .. $#pg_configs)
{
	my $new = make_cluster("server$i", $pg_configs[$i]);
	my $what = join(' to ', map { $_->pg_version->major } ($node, $new));

	# as it stands, with somebody in the middle of the changes
	add_due($node, 100 * $i, 100 * $i + 20);
	# late, so that a worker under pg_upgrade would have something to do
	every($node, '1 second');
	my $middle = $node->safe_psql('app', 'SELECT cursor FROM cusown_changes_since(NULL, 5) OFFSET 4');
	my ($unread, $last) = changes_since($node, $middle);
	my $dry_run = $node->safe_psql('app', 'SELECT cusown_expire_bookings(max_rows => 10, dry_run => true)');
	# after the dry run, which moves sequences
	my $before = all_of($node);

	like($dry_run, qr/^\(10,/, "$what: ten more can expire");
	isnt($unread, '', "$what: there are changes that nobody has read");

	$node->stop;
	worker($_, 'on', 'postgres') foreach $node, $new;
	my $script = upgrade($node, $new, $what);
	worker($new, 'off');
	$new->start;

	# ---------- all is there ----------

	my $after = all_of($new);

	is($after->{$_}, $before->{$_}, "$what: $_: all there") foreach sort keys %$before;
	# Not before the last one: 17.12 gives the columns of tables that are made or
	# altered there, which pg_cron's script does, an option (pg_attver) that 18.6
	# does not know, and pg_upgrade fails.  For the same reason nothing that is
	# made here stays.
	if ($script && $i == $#pg_configs)
	{
		$new->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', $script, 'postgres' ],
			"$what: what pg_upgrade says about extensions is done");
	}
	$new->safe_psql('postgres', 'CREATE DATABASE fresh');
	$new->safe_psql('fresh', 'CREATE EXTENSION cusown_ops');
	is(members_of($new, 'app'), members_of($new, 'fresh'), "$what: the extension has its objects, like a fresh one");
	$new->safe_psql('postgres', 'DROP DATABASE fresh');
	is( (changes_since($new, $middle))[0], $unread, "$what: a cursor from before goes on where it was");
	is( (changes_since($new, $last))[0], '', "$what: and the last one has no more");

	# ---------- and works on ----------

	every($new, '1 day');
	is($new->safe_psql('app', 'SELECT cusown_expire_bookings(max_rows => 10)'),
		$dry_run, "$what: expiry goes on where it was");
	my ($seen) = changes_since($new, $last);

	is( (() = $seen =~ /^booking\|.*\|cancelled$/mg), 10, "$what: the cursor from before sees the ten, once each");
	is($new->safe_psql('app', 'SELECT count(*) FROM verify_audit_chain()'), '0', "$what: in one audit chain");
	is( $new->safe_psql('app', q{SELECT cusown_attention_resolve(min(id), 'Done') FROM cusown_ops.attention WHERE closed_at IS NULL}),
		't', "$what: an entry of the worklist can be closed");

	# ---------- shared memory, jobs and the worker ----------

	is($new->safe_psql('app', 'SELECT cusown_expire_if_due(1); SELECT cusown_expire_if_due(1)'),
		"1\n0", "$what: lazy heal has its turns");
	my $largest = $new->safe_psql('app', 'SELECT max(id) FROM cusown_ops.job_run');

	$new->safe_psql('app', q{CALL cusown_run_job('expire_bookings', 'manual')});
	is( $new->safe_psql('app', 'SELECT job, status, changed > 0 FROM cusown_ops.job_run WHERE id > ' . $largest),
		'expire_bookings|succeeded|t', "$what: jobs run, with numbers behind the largest");
	add_due($new, 100 * $i + 50, 100 * $i + 50);
	every($new, '1 second');
	worker($new, 'on');
	$new->reload;
	ok( $new->poll_query_until('app',
			q{SELECT count(*) > 0 FROM cusown_ops.job_run WHERE source = 'worker' AND status = 'succeeded' AND changed = 1}),
		"$what: the launcher is up, and its worker takes over what is late")
	  or diag(what_runs($new));

	# ---------- which is the older one now ----------

	worker($new, 'off');
	$new->reload;
	ok( $new->poll_query_until('app',
			'SELECT (SELECT count(*) FROM cusown_worker_status()) + (SELECT count(*) FROM cusown_ops.job_progress) = 0'),
		"$what: switched off it leaves things alone")
	  or diag(what_runs($new));
	every($new, '1 day');
	$node = $new;
}

$node->stop;
done_testing();
