# After a crash a run is there as a whole, with as many audit rows as changes,
# or not at all.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Application;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# the audit rows of a run: bookings, slots; its life cycle rows; the worklist
my $nothing = '0|0|0|0|0';
my $everything = '40|40|27|40|8';

my $node = new_node('main', [], 'checkpoint_timeout = 1h');

sub crash
{
	$node->stop('immediate');
	$node->start;
	return;
}

make_database($node, 'app');
my $before = state_of($node, 'app', 'public');

# ---------- a run that was not committed ----------

my $session = $node->background_psql('app');
$session->query_safe('BEGIN');
is($session->query_safe('SELECT cusown_expire_bookings()'),
	'(40,27,8,f)', 'a run in an open transaction is over');
# what it has written goes to disk, and its WAL too
$node->safe_psql('app', 'CHECKPOINT');
crash();
is(expiry_counts($node, 'app'), $nothing, 'after a crash none of it is there');
is(state_of($node, 'app', 'public'), $before, 'the application is as it was');
$session->{run}->kill_kill;

# ---------- a run that was committed ----------

is($node->safe_psql('app', 'SELECT cusown_expire_bookings()'),
	'(40,27,8,f)', 'the run is repeated and committed');
crash();
is(expiry_counts($node, 'app'), $everything, 'after a crash all of it is there');
is( $node->safe_psql(
		'app',
		q{SELECT count(*) FROM bookings b JOIN slots s ON s.id = b.slot_id
		   WHERE b.cancelled_by = 'system' AND b.status = 'cancelled'}),
	'50',
	'with the bookings');
is($node->safe_psql('app', 'SELECT count(*) FROM verify_audit_chain()'),
	'0', 'in an unbroken audit chain');
is($node->safe_psql('app', 'SELECT cusown_expire_bookings()'),
	'(0,0,0,f)', 'the next run has nothing to do');

# ---------- crashes in the middle of runs ----------

# a slow application, so that there is a middle
$node->safe_psql(
	'app', q{
	INSERT INTO slots (id, business_id, date, start_time, end_time, status,
	                   reserved_until)
	SELECT md5('many ' || i)::uuid, md5('business tutor')::uuid,
	       date '2030-01-01' + i, '09:00', '09:45', 'reserved', now() - interval '1 day'
	  FROM generate_series(1, 2000) i;
	INSERT INTO bookings (id, business_id, slot_id, customer_name,
	                      customer_phone, booking_id, created_at)
	SELECT md5('many ' || i)::uuid, md5('business tutor')::uuid,
	       md5('many ' || i)::uuid, 'Customer', '+15550009999', 'many ' || i,
	       now() - interval '25 h'
	  FROM generate_series(1, 2000) i;
	CREATE SEQUENCE progress;
	CREATE FUNCTION slow_down() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
	  PERFORM nextval('progress');
	  RETURN NEW;
	END
	$$;
	CREATE TRIGGER slow_down BEFORE UPDATE ON bookings FOR EACH ROW EXECUTE FUNCTION slow_down();
});
my $committed = 0;

foreach my $round (1 .. 3)
{
	# Small runs in a loop, and one that goes on until the crash: progress is
	# a sequence, which tells how far they are before they are committed.
	my $begin = $node->safe_psql('app', 'SELECT last_value FROM progress');
	my $runner = $node->background_psql('app', on_error_stop => 0);

	$runner->{stdin} .= "SELECT cusown_expire_bookings(max_rows => 100);\n" x 3
	  . "SELECT cusown_expire_bookings();\n";
	$runner->{run}->pump_nb;
	ok( $node->poll_query_until(
			'app', "SELECT last_value >= $begin + 300 FROM progress"),
		"crash $round: runs are under way");
	crash();
	$runner->{run}->kill_kill;

	my $counts = expiry_counts($node, 'app');
	my ($bookings, $audited, $released, $life_cycle) = split /\|/, $counts;

	note "expiry counts: $counts";
	is("$audited|$life_cycle", "$bookings|$bookings",
		"crash $round: there are as many audit rows as changes");
	is($released - 27, $bookings - 40,
		"crash $round: each booking went with its slot");
	is(($bookings - 40) % 100, 0, "crash $round: no run is there by half");
	cmp_ok($bookings, '>=', $committed, "crash $round: what was there stays");
	is( $node->safe_psql(
			'app', q{SELECT count(*) FROM bookings b JOIN slots s ON s.id = b.slot_id
			          WHERE b.booking_id LIKE 'many%'
			            AND (b.status = 'cancelled') <> (s.status = 'available')}
		),
		'0',
		"crash $round: booking and slot agree");
	$committed = $bookings;
}
is( $node->safe_psql(
		'app', 'SELECT expired, more FROM cusown_expire_bookings(max_rows => 5000)'
	),
	(2040 - $committed) . '|f',
	'the next run expires the rest');
is( expiry_counts($node, 'app'), '2040|2040|2027|2040|8',
	'each booking was expired and audited once');
is($node->safe_psql('app', 'SELECT count(*) FROM verify_audit_chain()'),
	'0', 'in an unbroken audit chain');

# ---------- and nothing is broken underneath ----------

SKIP:
{
	skip 'amcheck is not installed', 1
	  if $node->safe_psql('app',
		q{SELECT count(*) FROM pg_available_extensions WHERE name = 'amcheck'})
	  eq '0';
	$node->safe_psql('app', 'CREATE EXTENSION amcheck');
	$node->command_ok(
		[ 'pg_amcheck', '--heapallindexed', '-d', 'app' ],
		'tables and indexes are sound');
}

$node->stop;
done_testing();
