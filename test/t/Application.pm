# Application.pm - what the system tests share: servers with the application
# on them, and questions about what stands in its tables.

package Application;

use strict;
use warnings;

use Cwd qw(abs_path);
use Exporter 'import';
use File::Basename;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

our @EXPORT = qw(
  new_node include make_database attach_minimal
  state_of expiry_counts error_of
);

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
