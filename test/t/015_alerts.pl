# Alerts, while the scheduler is dead: the worker evaluates them when they are due,
# tells once, and resolves them when the scheduler is back; worker and alert tell
# the application of an outage once between them.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Application;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main', [],
	"shared_preload_libraries = 'cusown_ops'",
	"cusown_ops.worker = off",
	"cusown_ops.worker_databases = 'app'",
	"cusown_ops.worker_role = 'jobs'",
	"cusown_ops.worker_naptime = '100ms'",
	"cusown_ops.alert_hold = '1s'");
make_role($node);
make_database($node, 'app');
grant_role($node, 'app');

sub shows
{
	my ($query, $name) = @_;

	ok($node->poll_query_until('app', $query), $name);
	return;
}

sub ask
{
	my ($sql) = @_;

	return $node->safe_psql('app', $sql);
}

sub configure
{
	my ($setting, $value) = @_;

	$node->safe_psql('postgres', "ALTER SYSTEM SET $setting = '$value'");
	$node->reload;
	return;
}

sub count_in_log
{
	my ($pattern) = @_;
	my @hits = slurp_file($node->logfile) =~ /$pattern/g;

	return scalar @hits;
}

# of one symptom's alerts
sub said
{
	my ($symptom, $what) = @_;

	return count_in_log(qr/(?:WARNING|LOG):  alert \d+ on application schema "public" of database "app": symptom "$symptom" is \Q$what\E/);
}

my $evaluations = q{SELECT count(*) FROM cusown_ops.job_run WHERE job = 'evaluate_alerts' AND source = 'worker' AND status = 'succeeded'};
my $visits = q{SELECT visits FROM cusown_worker_status()};
my $runs = q{SELECT count(*) FROM cusown_ops.job_run WHERE job = 'expire_bookings' AND source = 'worker' AND status = 'succeeded'};
my $told = q{SELECT action_type, count(*) FROM audit_logs WHERE action_type LIKE 'cron%' GROUP BY 1 ORDER BY 1};

# so many more of what a query counts, once something was done, if anything: the
# worker may be quicker than a count that is taken afterwards
sub more
{
	my ($count, $more, $name, $doing) = @_;
	my $before = ask($count);

	ask($doing) if defined $doing;
	shows("SELECT ($count) >= $before + $more", $name);
	return;
}

# The scheduler has run the job just now, or a day ago.
sub scheduler_ran
{
	my ($ago) = @_;

	ask(qq{
		DELETE FROM cusown_ops.job_run WHERE job = 'expire_bookings';
		INSERT INTO cusown_ops.job_run (app_schema, job, source, started_at, finished_at, status, session)
		VALUES ('public', 'expire_bookings', 'cron', now() - interval '$ago', now() - interval '$ago', 'succeeded', 'a test')});
	return;
}

ask(q{
	INSERT INTO cusown_ops.job (name, every, enabled)
	SELECT job, CASE job WHEN 'evaluate_alerts' THEN interval '500 milliseconds' END, job IN ('expire_bookings', 'evaluate_alerts')
	FROM cusown_jobs();
	CALL cusown_run_job('expire_bookings');
	SELECT cusown_set_threshold(symptom, NULL, NULL) FROM cusown_symptoms() WHERE symptom NOT LIKE 'job%'});

# ---------- it lives ----------

scheduler_ran('0');
configure('cusown_ops.worker', 'on');
shows("SELECT ($evaluations) > 1", 'the worker evaluates');
is(ask(q{SELECT count(*) FROM cusown_ops.alert}), 0, 'what is quiet has no alert');
is( ask(q{SELECT DISTINCT session LIKE '%role jobs' FROM cusown_ops.job_run WHERE job = 'evaluate_alerts'}),
	't', 'as the role that it was given');
shows(q{SELECT did = 'nothing was late' FROM cusown_worker_status()}, 'which is no news');

# ---------- it dies: the worker covers ----------

# not in the middle of a visit: what is late by its end it has not seen
configure('cusown_ops.worker', 'off');
shows('SELECT count(*) = 0 FROM cusown_worker_status()', 'no visit is under way');
scheduler_ran('1 day');
configure('cusown_ops.worker', 'on');
shows(q{SELECT count(*) = 1 FROM cusown_ops.alert WHERE symptom = 'job_covered' AND severity = 'warning' AND resolved_at IS NULL},
	'an alert is opened');
is(ask("SELECT ($runs) > 0"), 't', 'while the worker covers');
more($evaluations, 3, 'it is evaluated on and on');
is(said('job_covered', 'firing (warning)'), 1, 'and said once');
is(said('job_late', 'firing'), 0, 'a job that is covered is not late');
is(ask($told), 'cron_failed|1', 'the application is told once');
is(ask(q{SELECT cusown_ack(id, 'pg_cron is being mended') FROM cusown_ops.alert WHERE resolved_at IS NULL}), 't', 'somebody is on it');

# ---------- it is back ----------

scheduler_ran('0');
shows(q{SELECT count(*) = 0 FROM cusown_ops.alert WHERE resolved_at IS NULL}, 'the alert is resolved');
is(ask(q{SELECT resolved_at >= clear_since + interval '1 s', times > 3, note FROM cusown_ops.alert WHERE symptom = 'job_covered'}),
	't|t|pg_cron is being mended', 'once it has been quiet for long enough');
is(said('job_covered', 'quiet'), 1, 'which is said once');
is(ask($told), "cron_failed|1\ncron_recovered|1", 'and told');

# ---------- when it is due, and as often as that ----------

ask(q{UPDATE cusown_ops.job SET every = '1 hour' WHERE name = 'evaluate_alerts'});
more($visits, 2, 'whoever was evaluating has gone');
my $before = ask($evaluations);
more($visits, 3, 'the worker goes on looking');
is(ask($evaluations), $before, 'but evaluates no more often than is set');
more($evaluations, 1, 'when it is due, it does',
	q{UPDATE cusown_ops.job_run SET started_at = started_at - interval '61 minutes' WHERE job = 'evaluate_alerts'});
more($evaluations, 1, 'also when the clock was set back',
	q{UPDATE cusown_ops.job_run SET started_at = started_at + interval '1 day' WHERE job = 'evaluate_alerts'});
ask(q{
	DELETE FROM cusown_ops.job_run WHERE job = 'evaluate_alerts';
	UPDATE cusown_ops.job SET every = '500 milliseconds', enabled = false WHERE name = 'evaluate_alerts'});
more($visits, 2, 'whoever was evaluating has gone');
$before = ask($evaluations);
more($visits, 3, 'it looks');
is(ask($evaluations), $before, 'one that is disabled is not evaluated');

# ---------- an evaluation that fails ----------

ask(q{
	REVOKE SELECT ON cusown_ops.threshold FROM jobs;
	UPDATE cusown_ops.job SET enabled = true WHERE name = 'evaluate_alerts';
	UPDATE cusown_ops.job SET every = '1 second' WHERE name = 'expire_bookings'});
shows(q{SELECT last_error LIKE 'evaluate_alerts: permission denied %' FROM cusown_worker_status()}, 'an evaluation that fails is known');
more($runs, 2, 'and keeps no job from being run');
ask(q{
	GRANT SELECT ON cusown_ops.threshold TO jobs;
	UPDATE cusown_ops.job SET every = NULL WHERE name = 'expire_bookings'});
scheduler_ran('0');
shows(q{SELECT count(*) = 0 FROM cusown_ops.takeover}, 'the scheduler is back');
shows(q{SELECT count(*) = 0 FROM cusown_ops.alert WHERE resolved_at IS NULL}, 'and all is quiet');

# ---------- without the worker, and when it comes late ----------

configure('cusown_ops.worker', 'off');
shows('SELECT count(*) = 0 FROM cusown_worker_status()', 'the worker is off');
ask('SELECT cusown_override($$a test$$); TRUNCATE cusown_ops.alert; CREATE TABLE told_before AS ' . $told);
my $news = qq{SELECT n.action_type, n.count - coalesce(b.count, 0) FROM ($told) n LEFT JOIN told_before b USING (action_type) ORDER BY 1};
scheduler_ran('1 day');
ask(q{SET ROLE jobs; SELECT cusown_evaluate_alerts('cron'); SELECT cusown_evaluate_alerts('cron')});
is(ask(q{SELECT severity, times FROM cusown_ops.alert WHERE symptom = 'job_late'}), 'critical|2', 'a job that nobody runs is late');
is(said('job_late', 'firing (critical)'), 1, 'which is said once');
is(ask($news), "cron_failed|1\ncron_recovered|0", 'and told to the application');
is(ask(q{SELECT metadata->>'source' FROM audit_logs WHERE action_type = 'cron_failed' ORDER BY created_at DESC LIMIT 1}),
	'cron', 'by who found out');
configure('cusown_ops.worker', 'on');
shows(q{SELECT count(*) = 1 FROM cusown_ops.takeover}, 'then the worker takes over');
shows(q{SELECT count(*) = 1 FROM cusown_ops.alert WHERE symptom = 'job_late' AND resolved_at IS NOT NULL}, 'the job is not late any more');
is(ask($news), "cron_failed|1\ncron_recovered|0", 'of which nothing more is told');
scheduler_ran('0');
shows(q{SELECT count(*) = 0 FROM cusown_ops.alert WHERE resolved_at IS NULL}, 'the scheduler is back');
is(ask($news), "cron_failed|1\ncron_recovered|1", 'which is told once');

# ---------- somebody evaluates, and does not commit ----------

configure('cusown_ops.worker', 'off');
shows('SELECT count(*) = 0 FROM cusown_worker_status()', 'the worker is off');
scheduler_ran('1 day');
my $human = $node->background_psql('app');
$human->query_safe('SET client_min_messages = error; BEGIN; SELECT cusown_evaluate_alerts()');
configure('cusown_ops.worker', 'on');
shows("SELECT ($runs) > 0", 'the worker covers all the same');
is(ask($news), "cron_failed|1\ncron_recovered|1", 'and leaves it to him to tell of it');
$human->query_safe('COMMIT');
$human->quit;
is(ask($news), "cron_failed|2\ncron_recovered|1", 'as he does');
scheduler_ran('0');
shows(q{SELECT count(*) = 0 FROM cusown_ops.takeover}, 'the scheduler is back');
is(ask($news), "cron_failed|2\ncron_recovered|2", 'which is told');
$node->stop;

done_testing();
