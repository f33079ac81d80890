# Requests with idempotency keys, sent by eight sessions at once under few keys, in
# one transaction with their work or in two, while connections are killed, keys
# expire, leases end and the job prunes.
#
# The work of a key is done once in each ttl; each replay is of work that was done;
# whoever is killed holds its key for its lease at most.
#
# Then calls that are refused: what is in them is in no log.
#
# STRESS_SECONDS sets how long it lasts.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Application;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $seconds = $ENV{STRESS_SECONDS} || 8;
my $rounds = 4;
my $kills = 6;
my $dir = $PostgreSQL::Test::Utils::tmp_check;
my $node = new_node('main', [], 'log_statement = none', 'log_min_error_statement = error', 'synchronous_commit = off');

$node->safe_psql('postgres', 'CREATE ROLE requests LOGIN; CREATE ROLE prunes LOGIN BYPASSRLS');
make_salon($node, 'app');

# What an application does with a key, both ways.  done is its work.
$node->safe_psql(
	'app', q{
	SELECT cusown_grant('requests', 'application'), cusown_grant('prunes', 'operator') \gexec
	CREATE TABLE act.done (scope text, key text, token bigint, begun_at timestamptz);
	CREATE TABLE act.told (scope text, key text, what text, token bigint);

	CREATE FUNCTION act.work(p_scope text, p_key text, p_token bigint) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  INSERT INTO act.done SELECT scope, key, token, begun_at FROM cusown_ops.idempotency_key
	   WHERE (app_schema, scope, key, token) = ('public', p_scope, p_key, p_token);
	  PERFORM pg_sleep(random() * 0.004);
	  IF random() < 0.1 THEN
	    RAISE EXCEPTION 'the work has failed';
	  END IF;
	  PERFORM cusown_idempotency_complete(p_scope, p_key, p_token, jsonb_build_object('token', p_token));
	END
	$$;

	-- a savepoint here is a transaction for its twins, as is what is committed
	CREATE FUNCTION act.in_one(p_key text) RETURNS void LANGUAGE plpgsql AS $$
	DECLARE
	  b record;
	BEGIN
	  BEGIN
	    PERFORM set_config('lock_timeout', CASE WHEN random() < 0.5 THEN '1ms' ELSE '0' END, true);
	    b := cusown_idempotency_begin('one', p_key, to_jsonb(p_key), ttl => '100 ms', lease => '20 ms');
	    PERFORM set_config('lock_timeout', '0', true);
	    IF b.state = 'proceed' AND random() < 0.1 THEN
	      PERFORM cusown_idempotency_abandon('one', p_key, b.token);
	      b.state := 'abandoned';
	    ELSIF b.state = 'proceed' THEN
	      PERFORM act.work('one', p_key, b.token);
	    END IF;
	  EXCEPTION WHEN SQLSTATE 'UO006' OR raise_exception THEN
	    b := ROW(SQLSTATE, NULL::jsonb, NULL::bigint, NULL::interval);
	    INSERT INTO act.told VALUES ('one', p_key, SQLSTATE);
	    RETURN;
	  END;
	  INSERT INTO act.told VALUES ('one', p_key, b.state, coalesce(b.token, (b.response->>'token')::bigint));
	END
	$$;

	CREATE PROCEDURE act.in_two(p_key text) LANGUAGE plpgsql AS $$
	DECLARE
	  b record;
	BEGIN
	  b := cusown_idempotency_begin('two', p_key, to_jsonb(p_key), ttl => '100 ms', lease => '3 ms');
	  COMMIT;
	  IF b.state = 'proceed' THEN
	    BEGIN
	      PERFORM act.work('two', p_key, b.token);
	    EXCEPTION WHEN SQLSTATE 'UO003' THEN
	      b.state := 'late';
	    WHEN raise_exception THEN
	      b.state := CASE WHEN cusown_idempotency_abandon('two', p_key, b.token) THEN 'abandoned' ELSE 'late' END;
	    END;
	  END IF;
	  INSERT INTO act.told VALUES ('two', p_key, b.state, coalesce(b.token, (b.response->>'token')::bigint));
	END
	$$;
	GRANT USAGE ON SCHEMA act TO requests;
	GRANT INSERT ON act.done, act.told TO requests;
});

append_to_file("$dir/one.sql", "\\set k random(1, 4)\nSELECT act.in_one(:k::text);\n");
append_to_file("$dir/two.sql", "\\set k random(1, 4)\nCALL act.in_two(:k::text);\n");
append_to_file("$dir/prune.sql", "CALL cusown_run_job('prune_idempotency', batch_size => 1);\n\\sleep 20 ms\n");

# kills one session that is at work, if any, once more work was done
sub kill_one
{
	my $done = $node->safe_psql('app', 'SELECT count(*) FROM act.done');

	$node->poll_query_until(
		'app', qq{
		SELECT count(*) > $done + 5 OR NOT EXISTS (SELECT FROM pg_stat_activity WHERE usename = 'requests')
		  FROM act.done}) or die 'no work is done';
	return $node->safe_psql(
		'app', q{
		SELECT count(pg_terminate_backend(pid)) FROM (SELECT pid FROM pg_stat_activity
		 WHERE usename = 'requests' AND state = 'active' ORDER BY random() LIMIT 1) a});
}

# pgbench takes whole seconds
my $each = int($seconds / $rounds) || 1;
my $killed = 0;

foreach my $round (1 .. $rounds)
{
	my $prune = start_pgbench($node, 'app', 'prunes', $each, 1, '-f', "$dir/prune.sql");
	my $bench = start_pgbench($node, 'app', 'requests', $each, 8,
		'-f', "$dir/one.sql", '-f', "$dir/two.sql");

	$killed += kill_one() foreach 1 .. $kills;
	$_->{run}->finish foreach ($bench, $prune);
	is($prune->{run}->result(0), 0, 'the job is not in the way');
	note $bench->{out}, $bench->{err};
}
cmp_ok($killed, '>', $rounds, 'connections were killed');

# ---------- what happened ----------

sub empty
{
	my ($query, $name) = @_;

	is($node->safe_psql('app', "SELECT * FROM ($query) q LIMIT 5"), '', $name);
	return;
}

note $node->safe_psql('app', 'SELECT scope, what, count(*) FROM act.told GROUP BY 1, 2 ORDER BY 1, 2');
cmp_ok($node->safe_psql('app', "SELECT count(*) FROM act.told WHERE scope || what = '$_'"), '>', 5, "many: $_")
  foreach qw(oneproceed onereplay oneabandoned oneUO006 oneP0001 twoproceed tworeplay twoin_progress twolate twoabandoned);
cmp_ok($node->safe_psql('app', q{SELECT sum(changed) FROM cusown_ops.job_run WHERE job = 'prune_idempotency'}),
	'>', 5, 'many were pruned');

empty(q{SELECT * FROM (SELECT *, lag(begun_at) OVER (PARTITION BY scope, key ORDER BY begun_at) AS before FROM act.done) d
         WHERE begun_at < before + interval '100 ms'}, 'no work was done twice in its ttl');
empty('SELECT token FROM act.done GROUP BY 1 HAVING count(*) > 1', 'nor by one token');
empty(q{SELECT scope, key, token FROM act.told WHERE what IN ('proceed', 'replay')
        EXCEPT SELECT scope, key, token FROM act.done}, 'each replay is of work that was done');
empty(q{SELECT scope, key, token FROM act.told WHERE what IN ('late', 'abandoned')
        INTERSECT SELECT scope, key, token FROM act.done}, 'who is late has done nothing');
empty(q{SELECT scope, key FROM cusown_ops.idempotency_key k WHERE completed_at IS NOT NULL
           AND (response <> jsonb_build_object('token', token)
                OR NOT EXISTS (SELECT FROM act.done d WHERE (d.scope, d.key, d.token) = (k.scope, k.key, k.token)))},
	'each key that was completed has the response of its work');
ok( $node->poll_query_until('app', q{
		SELECT bool_and(state <> 'in_progress') FROM unnest('{one,two}'::text[]) s, generate_series(1, 4) k,
		       LATERAL cusown_idempotency_begin(s, k::text, to_jsonb(k::text), ttl => '100 ms', lease => '0')}),
	'no key is stuck');
unlike(slurp_file($node->logfile), qr/(?:ERROR|WARNING|PANIC):|TRAP:|terminated by signal/, 'the server has nothing to complain of');

# ---------- what is not told ----------

my $holder = $node->background_psql('app');
$holder->query_safe(q{BEGIN; SELECT cusown_idempotency_begin('held', 'asha-key')});
my $refused = q{SET lock_timeout = '10ms';
	SELECT cusown_idempotency_begin('held', 'asha-key');
	SELECT token FROM cusown_idempotency_begin('mine', 'asha-key', '{"name": "asha"}') \gset
	SELECT cusown_idempotency_begin('mine', 'asha-key', '{"name": "asha", "more": 1}');
	SELECT cusown_idempotency_complete('mine', 'asha-key', 1, '{"name": "asha"}');
	SELECT cusown_idempotency_complete('mine', 'asha-key', :token, '{"name": "asha"}');
	SELECT cusown_idempotency_complete('mine', 'asha-key', :token, '{"name": "asha", "more": 1}');
	SELECT cusown_idempotency_complete('mine', repeat('asha', 200), :token, '{"name": "asha"}');
	SELECT cusown_idempotency_begin('mine', 'asha-key', '{"name": "asha"}', ttl => '0');
	SELECT cusown_idempotency_abandon('mine', 'asha-key', NULL);
	BEGIN READ ONLY;
	SELECT cusown_idempotency_begin('mine', 'asha-key');
	ROLLBACK;};
my ($rc, $out, $err) = $node->psql('app', $refused, on_error_stop => 0);
is(scalar(() = $err =~ /ERROR:/g), 8, 'calls are refused') or diag $err;
unlike($err, qr/asha/, 'without telling what is in them');
unlike(slurp_file($node->logfile), qr/asha/, 'nor writing it to the log');
$holder->quit;

$node->stop;
done_testing();
