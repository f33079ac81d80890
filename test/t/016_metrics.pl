# Metrics, as a monitoring system gets them: promtool finds nothing to say against
# cusown_metrics(), and Debian's exporter tells the same by what doc/ has for it, both
# as a role with the profile monitor.
#
# scripts/test fetches both programs; without it they are looked for on the PATH.

use strict;
use warnings;

use Cwd qw(abs_path);
use FindBin;
use lib $FindBin::RealBin;

use Application qw(:DEFAULT add_due);
use HTTP::Tiny;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my $dir = $PostgreSQL::Test::Utils::tmp_check;
my $queries = abs_path("$FindBin::RealBin/../../doc/cusown_ops.queries.yaml");

# a program of a Debian package; nothing, where it cannot be had
sub program
{
	my ($name) = @_;
	my ($path) = grep { -x } map { "$_/$name" } grep { $_ } $ENV{CUSOWN_TOOLS}, split /:/, $ENV{PATH};

	return $path;
}

my $node = new_node(
	'main', [],
	"shared_preload_libraries = 'cusown_ops'",
	"cusown_ops.worker_databases = 'app'",
	"cusown_ops.worker_naptime = '200ms'");

make_database($node, 'app');
attach_minimal($node, 'app');
$node->safe_psql('app', q{CREATE ROLE prometheus LOGIN; SELECT cusown_grant('prometheus', 'monitor') \gexec});
$node->safe_psql('app', q{CALL cusown_run_job('take_census')});
ok( $node->poll_query_until('app', 'SELECT count(*) > 0 FROM cusown_ops.metric_worker WHERE visits_total > 0'),
	'the worker has come by');

# what cusown_metrics() says
sub metrics
{
	return $node->safe_psql('app', 'SELECT cusown_metrics()', extra_params => [ '-U', 'prometheus' ]);
}

# one of its values
sub value
{
	my ($text, $series) = @_;

	return $text =~ /^\Q$series\E (.*)$/m ? $1 : 'none';
}

my $overdue = 'cusown_symptom_severity{app_schema="public",symptom="pending_overdue",runbook="cron_failure"}';
my $before = metrics();

is(value($before, $overdue), '2', 'bookings are overdue');
is(value($before, $overdue =~ s/public/shop/r), '0', 'in one of both applications');
$node->safe_psql('app', q{CALL cusown_run_job('expire_bookings')});
my $text = metrics();

is(value($text, $overdue), '0', 'until the job has run');
cmp_ok(value($text, 'cusown_worker_visits_total{database="app"}'), '>', 0, 'the worker is told of');

# ---------- promtool ----------

# runs it on a text: its exit code, and what it has to say
sub promtool
{
	my ($program, $input, @arguments) = @_;
	my $output = '';
	my $run = IPC::Run::start([ $program, @arguments ], '<', \$input, '>&', \$output,
		IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));

	$run->finish;
	return $run->result(0) . " $output";
}

# The format that promtool's linter reads is the older one, in which a counter's
# family has the suffix of its samples.
sub older
{
	my ($new) = @_;

	$new =~ s/^(# (?:TYPE|HELP) $_) /$1_total /mg foreach $new =~ /^# TYPE (\w+) counter$/mg;
	return $new;
}

# What reads OpenMetrics reads it for history, with the time of each sample.
sub import_history
{
	my ($program, $new) = @_;

	$new =~ s/^([^#].*)$/$1 1700000000/mg;
	append_to_file("$dir/history", $new);
	my $result = promtool($program, '', 'tsdb', 'create-blocks-from', 'openmetrics', "$dir/history", "$dir/blocks");
	unlink "$dir/history";
	return $result;
}

SKIP:
{
	my $promtool = program('promtool') or skip 'promtool of Debian\'s package prometheus is not here', 6;

	is(promtool($promtool, older($text), 'check', 'metrics'), '0 ', 'promtool checks the metrics');
	like(import_history($promtool, $text), qr/^0 /, 'and reads them as OpenMetrics');
	# that it would say so otherwise
	like(promtool($promtool, older($text =~ s/^# HELP cusown_job_late .*\n//mr), 'check', 'metrics'),
		qr/^3 cusown_job_late no help text/, 'it misses a help text');
	unlike(import_history($promtool, $text =~ s/^# EOF\n//mr), qr/^0 /, 'and the end');
	unlike(import_history($promtool, $text =~ s/^(# UNIT \w+ )seconds$/$1minutes/mr), qr/^0 /, 'and a wrong unit');
	unlike(import_history($promtool, $text =~ s/app_schema="/app_schema="\\"/r =~ s/="public"/="pub"lic"/r), qr/^0 /,
		'and a quotation mark that is not escaped');
}

# ---------- Debian's exporter ----------

# name, labels and value of each series, without the label that the exporter adds
sub series
{
	my ($from) = @_;
	my %series;

	foreach my $line (grep { /^cusown_/ } split /\n/, $from)
	{
		my ($name, $labels, $value) = $line =~ /^(\w+)\{(.*)\} (\S+)$/ or die "not a sample: $line";
		my @labels = sort grep { !/^server=/ } $labels =~ /(\w+="(?:[^"\\]|\\.)*")/g;

		$series{ $name . '{' . join(',', @labels) . '}' } = $value if $value ne 'NaN';
	}
	return \%series;
}

# what it answers, once it does
sub scrape
{
	my ($port) = @_;
	my $http = HTTP::Tiny->new(timeout => 10);

	foreach (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
	{
		my $answer = $http->get("http://127.0.0.1:$port/metrics");

		return $answer->{content} if $answer->{success};
		usleep(100_000);
	}
	die 'the exporter does not answer';
}

SKIP:
{
	my $exporter = program('prometheus-postgres-exporter')
	  or skip 'Debian\'s package prometheus-postgres-exporter is not here', 6;
	my $port = PostgreSQL::Test::Cluster::get_free_port();
	my $log = '';

	local $ENV{DATA_SOURCE_NAME} =
	  'user=prometheus sslmode=disable dbname=app host=' . $node->host . ' port=' . $node->port;
	my $run = IPC::Run::start(
		[
			$exporter, "--web.listen-address=127.0.0.1:$port", "--extend.query-path=$queries",
			'--disable-default-metrics', '--disable-settings-metrics',
			'--no-collector.database', '--no-collector.bgwriter'
		],
		'<', \undef, '>&', \$log);
	my $told = scrape($port);
	my $ours = series(metrics());
	my $theirs = series($told);

	like($told, qr/^pg_exporter_last_scrape_error 0$/m, 'the exporter has asked without an error') or diag $log;
	is_deeply([ sort keys %$theirs ], [ sort keys %$ours ], 'it tells of the same series');
	my @states = grep { /severity|_job_(?!last_run|running)|_open|_events|_info/ } sort keys %$ours;
	is_deeply([ map { $theirs->{$_} + 0 } @states ], [ map { $ours->{$_} + 0 } @states ], 'with the same values');
	# what the file does not name has none
	my %types = $told =~ /^# TYPE (cusown_\w+) (\w+)$/mg;
	is_deeply(\%types, { older($text) =~ /^# TYPE (\w+) (\w+)$/mg }, 'of the same types');

	# the next scrape sees what has changed since
	my $key = 'cusown_symptom_severity{app_schema="public",runbook="cron_failure",symptom="pending_overdue"}';
	is($theirs->{$key}, 0, 'nothing is overdue');
	add_due($node, 'app', 1, 1);
	is(series(scrape($port))->{$key}, 2, 'until something is');

	$run->kill_kill;
}

$node->stop;
done_testing();
