# Application.pm - what the system tests share: servers with the application
# on them, and questions about what stands in its tables.

package Application;

use strict;
use warnings;

use Cwd qw(abs_path);
use Exporter 'import';
use File::Basename;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

our @EXPORT = qw(
  new_node include make_database attach_minimal grow_old make_salon
  make_role grant_role start_psql start_pgbench launcher_pid
  state_of expiry_counts error_of
);
our @EXPORT_OK = qw(add_due);

my $fixture = abs_path($ENV{CUSOWN_FIXTURE} || dirname(__FILE__) . '/../fixture');

# Starts a server; the settings are lines of postgresql.conf.
sub new_node
{
	my ($name, $init, @settings) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);

	$node->init(extra => [ '--encoding=UTF8', '--locale=C' ], @$init);
	$node->append_conf('postgresql.conf',
		join("\n", 'autovacuum = off', "timezone = 'UTC'", @settings, ''));
	$node->start;
	return $node;
}

# psql's line that reads one of the fixture's files
sub include
{
	my ($file) = @_;

	return "\\i '$fixture/$file'\n";
}

# A database with the reference schema, the sample week and the extension,
# attached.
sub make_database
{
	my ($node, $name) = @_;

	$node->safe_psql('postgres', "CREATE DATABASE $name");
	$node->safe_psql($name,
			include('cusown_app.sql')
		  . include('sample_week.sql')
		  . 'CREATE EXTENSION cusown_ops; SELECT count(*) FROM cusown_attach()'
	);
	return;
}

# Beside it the minimal application.  $change is an expression on the mapping.
sub attach_minimal
{
	my ($node, $name, $change) = @_;

	$change ||= '%s';
	$node->safe_psql($name,
			include('app_minimal.sql')
		  . "SELECT count(*) FROM cusown_attach('shop', "
		  . sprintf($change, ":'minimal_mapping'")
		  . ')');
	return;
}

# What has never succeeded was set up long enough ago to be late.
sub grow_old
{
	my ($node, $database) = @_;

	$node->safe_psql(
		$database, q{
		UPDATE cusown_ops.binding SET bound_since = bound_since - interval '3 days';
		UPDATE cusown_ops.job SET set_at = set_at - interval '3 days'});
	return;
}

# A database with the reference schema, attached, and in it a salon with 200
# slots.  Functions in schema act pick a booking, slot or payment by chance.
sub make_salon
{
	my ($node, $name, $mended) = @_;

	$node->safe_psql('postgres', "CREATE DATABASE $name");
	$node->safe_psql($name,
			($mended ? "\\set mended 1\n" : '')
		  . include('cusown_app.sql') . q{
		CREATE EXTENSION cusown_ops;
		SELECT count(*) FROM cusown_attach();
		INSERT INTO businesses (id, salon_name, owner_name, whatsapp_number,
		                        opening_time, closing_time, slot_duration, booking_link)
		VALUES (md5('business')::uuid, 'Salon', 'Owner', '+15550000000', '09:00', '18:00', 30, 'salon');
		INSERT INTO slots (id, business_id, date, start_time, end_time)
		SELECT md5('slot ' || i)::uuid, md5('business')::uuid, date '2030-01-01' + i, '09:00', '09:30'
		  FROM generate_series(1, 200) i;
		CREATE INDEX ON bookings (created_at, id) WHERE status = 'pending';

		CREATE SCHEMA act;
		CREATE FUNCTION act.booking(p_status text) RETURNS uuid LANGUAGE sql AS $$
		  SELECT id FROM bookings WHERE status = p_status ORDER BY random() LIMIT 1
		$$;
		CREATE FUNCTION act.slot() RETURNS uuid LANGUAGE sql AS $$
		  SELECT md5('slot ' || 1 + floor(random() * 200))::uuid
		$$;
		CREATE FUNCTION act.payment(p_status payment_status) RETURNS uuid LANGUAGE sql AS $$
		  SELECT p.id FROM payments p JOIN bookings b ON b.id = p.booking_id
		   WHERE p.status = p_status AND b.status = 'pending' ORDER BY random() LIMIT 1
		$$;
	});
	return;
}

# The role that the worker works as, with the rights that cusown_grant() asks for.
sub make_role
{
	my ($node) = @_;

	$node->safe_psql('postgres', 'CREATE ROLE jobs LOGIN BYPASSRLS');
	return;
}

sub grant_role
{
	my ($node, $database) = @_;

	$node->safe_psql($database, q{SELECT cusown_grant('jobs', 'operator') \gexec});
	return;
}

# Bookings first .. last, due, each on a slot of its own, beside the sample's.
sub add_due
{
	my ($node, $database, $first, $last) = @_;

	$node->safe_psql(
		$database, qq{
		INSERT INTO slots (id, business_id, date, start_time, end_time, status, reserved_until)
		SELECT md5('more slot ' || n)::uuid, b.id, date '2040-01-01' + n, '09:00', '09:30', 'reserved',
		       now() - interval '1 day'
		  FROM (SELECT id FROM businesses ORDER BY id LIMIT 1) b, generate_series($first, $last) n;
		INSERT INTO bookings (id, business_id, slot_id, customer_name, customer_phone, booking_id, created_at)
		SELECT md5('more ' || n)::uuid, s.business_id, s.id, 'Customer', '-', 'MORE-' || n, now() - interval '2 days'
		  FROM generate_series($first, $last) n JOIN slots s ON s.id = md5('more slot ' || n)::uuid});
	return;
}

# Starts a session that runs statements; its output is in out and err.
sub start_psql
{
	my ($node, $database, @statements) = @_;
	my $self = { out => '', err => '' };

	$self->{run} = IPC::Run::start(
		[
			'psql', '-XAtq', '-v', 'VERBOSITY=verbose',
			'-d', $node->connstr($database),
			map { ('-c', $_) } @statements
		],
		'<', \undef, '>', \$self->{out}, '2>', \$self->{err},
		IPC::Run::timer($PostgreSQL::Test::Utils::timeout_default));
	return $self;
}

# Starts clients that log in as a role; what pgbench prints is in out and err.
sub start_pgbench
{
	my ($node, $database, $role, $seconds, $clients, @options) = @_;
	my %bench = (name => $role, out => '', err => '');

	local $ENV{PGHOST} = $node->host;
	local $ENV{PGPORT} = $node->port;
	local $ENV{PGDATABASE} = $database;
	local $ENV{PGUSER} = $role;
	local $ENV{PGAPPNAME} = $role;
	$bench{run} = IPC::Run::start(
		[ 'pgbench', '-n', '-T', $seconds, '-c', $clients, '-j', $clients, @options ],
		'<', \undef, '>', \$bench{out}, '2>', \$bench{err},
		IPC::Run::timeout($seconds + $PostgreSQL::Test::Utils::timeout_default));
	return \%bench;
}

# What a file of /proc holds; nothing, where the process has gone.
sub read_proc
{
	my ($file) = @_;

	open(my $handle, '<', $file) or return '';
	return join('', <$handle>);
}

# The worker's launcher has no database: pg_stat_activity does not show it.
sub launcher_pid
{
	my ($node) = @_;
	my ($process) = grep {
		read_proc("$_/cmdline") =~ /cusown_ops launcher/
		  && read_proc("$_/stat") =~ /\) \S $node->{_pid} /
	} glob '/proc/[0-9]*';

	return $process && basename($process);
}

# A hash over every row of every table of a schema.
sub state_of
{
	my ($node, $database, $schema) = @_;
	my $tables = $node->safe_psql($database,
			"SELECT c.oid::regclass FROM pg_class c"
		  . " WHERE relnamespace = '$schema'::regnamespace AND relkind = 'r'"
		  . ' ORDER BY relname');

	return $node->safe_psql(
		$database,
		join(
			';',
			map {
				"SELECT '$_', count(*), md5(string_agg(r::text, ',' ORDER BY r::text)) FROM $_ r"
			} split /\n/,
			$tables));
}

# What the runs so far have changed, on the reference schema: bookings,
# released slots' audit rows, audit rows, rows of the life cycle, worklist.
sub expiry_counts
{
	my ($node, $database) = @_;

	return $node->safe_psql($database,
		q{SELECT (SELECT count(*) FROM bookings b WHERE cancelled_by = 'system'
		             AND EXISTS (SELECT FROM audit_logs a WHERE a.entity_id = b.id
		                            AND a.metadata->>'rule' = 'older_than')),
		         (SELECT count(*) FROM audit_logs WHERE metadata->>'rule' = 'older_than'),
		         (SELECT count(*) FROM audit_logs WHERE metadata->>'rule' = 'booking_expired'),
		         (SELECT count(*) FROM booking_lifecycle_audit WHERE action_type = 'expire'),
		         (SELECT count(*) FROM cusown_ops.attention)});
}

# SQLSTATE and hint of the error that a statement raises.
sub error_of
{
	my ($node, $database, $sql) = @_;
	my ($rc, $stdout, $stderr) =
	  $node->psql($database, "\\set VERBOSITY verbose\n$sql");
	my ($sqlstate) = $stderr =~ /ERROR:  (\w{5}):/;
	my ($hint) = $stderr =~ /^HINT:  (.*)$/m;

	return 'no error' if $rc == 0;
	return ($sqlstate // $stderr) . ' ' . ($hint // '');
}

1;
