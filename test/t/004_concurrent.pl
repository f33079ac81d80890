# The jobs beside everything that an application does: four sessions create,
# confirm, cancel, reject, undo, reschedule, pay and hold by the application's
# own functions, two drain, one heals lazily.  Once beside the application as
# it is, which frees slots without looking, and once beside a mended one.
#
# What must hold is read from a record of each change when all is over.
#
# STRESS_SECONDS sets how long each of the two runs lasts.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Application;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Record;
use Test::More;

my $seconds = $ENV{STRESS_SECONDS} || 30;

# what must at least have happened for a run to say anything
my $some = $seconds;

my $node = new_node(
	'main', [],
	"shared_preload_libraries = 'cusown_ops'",
	"cusown_ops.booking_ttl = '1s'",
	'cusown_ops.batch_size = 10',
	'cusown_ops.job_run_retention = 100000',
	'cusown_ops.lazy_expire_interval = 0',
	'log_statement = none',
	'log_lock_waits = on',
	'deadlock_timeout = 20ms',
	'max_connections = 30',
	'synchronous_commit = off');

# our sessions are those of these two
$node->safe_psql('postgres',
	'CREATE ROLE drain LOGIN BYPASSRLS; CREATE ROLE lazy LOGIN BYPASSRLS');

# ---------- the application ----------

# One thing that a customer, an owner or a provider does, by the application's
# own functions.  What they refuse is part of life; a deadlock is not caught,
# so that the server logs it and pgbench tries again.
my $application = q{
	CREATE FUNCTION act.anything(p_what integer) RETURNS void LANGUAGE plpgsql AS $$
	DECLARE
	  v_payment uuid;
	BEGIN
	  CASE
	    WHEN p_what <= 350 THEN
	      PERFORM create_booking_atomically(md5('business')::uuid, act.slot(), 'Customer', '+15551111111');
	    WHEN p_what <= 390 THEN
	      PERFORM confirm_booking_atomically(act.booking('pending'));
	    WHEN p_what <= 500 THEN
	      PERFORM cancel_booking(act.booking('confirmed'));
	    WHEN p_what <= 515 THEN
	      PERFORM cancel_booking(act.booking('pending'));
	    WHEN p_what <= 530 THEN
	      PERFORM reject_booking(act.booking('pending'));
	    WHEN p_what <= 550 THEN
	      PERFORM undo_booking(act.booking('confirmed'));
	    WHEN p_what <= 640 THEN
	      PERFORM act.reschedule(act.booking('pending'), act.slot());
	    WHEN p_what <= 760 THEN
	      -- older than the grace: only 'completed' keeps expiry away
	      v_payment := create_payment(act.booking('pending'), 50000);
	      IF random() < 0.9 THEN
	        UPDATE payments SET created_at = now() - interval '2 h' WHERE id = v_payment;
	      END IF;
	    WHEN p_what <= 880 THEN
	      PERFORM complete_payment(act.payment('processing'));
	    WHEN p_what <= 920 THEN
	      PERFORM confirm_booking_with_payment(act.payment('completed'));
	    WHEN p_what <= 940 THEN
	      PERFORM reserve_slot(act.slot());
	    WHEN p_what <= 941 THEN
	      PERFORM release_expired_holds();
	    WHEN p_what <= 980 THEN
	      -- ten minutes go by
	      UPDATE slots SET reserved_until = now() - interval '1 s'
	       WHERE id IN (SELECT id FROM slots WHERE status = 'reserved' AND random() < 0.3
	                     FOR UPDATE SKIP LOCKED);
	    WHEN p_what <= 990 THEN
	      -- a day goes by
	      UPDATE bookings SET created_at = created_at - interval '1 s'
	       WHERE id IN (SELECT id FROM bookings WHERE status = 'pending' AND random() < 0.2
	                     FOR UPDATE SKIP LOCKED);
	    ELSE
	      -- an owner mends what cannot be cancelled
	      UPDATE bookings SET undo_used_at = NULL
	       WHERE id IN (SELECT id FROM bookings WHERE undo_used_at IS NOT NULL
	                     FOR UPDATE SKIP LOCKED);
	  END CASE;
	EXCEPTION WHEN raise_exception OR integrity_constraint_violation OR unique_violation
	  OR check_violation OR not_null_violation THEN
	  NULL;
	END
	$$;

	-- Who confirms need not lock the slot: a client of two requests, which
	-- confirms by the first one and books the slot by the second.
	CREATE PROCEDURE act.confirm_then_book() LANGUAGE plpgsql AS $$
	DECLARE
	  v_booking uuid := (SELECT b.id FROM bookings b WHERE b.status = 'pending' AND b.undo_used_at IS NULL
	                      ORDER BY EXISTS (SELECT FROM bookings o WHERE o.slot_id = b.slot_id
	                                          AND o.status = 'pending' AND o.id <> b.id) DESC,
	                               random() LIMIT 1);
	  v_slot uuid;
	BEGIN
	  BEGIN
	    UPDATE bookings SET status = 'confirmed' WHERE id = v_booking AND status = 'pending';
	  EXCEPTION WHEN unique_violation THEN
	    NULL;
	  END;
	  COMMIT;
	  LOOP
	    BEGIN
	      SELECT slot_id INTO v_slot FROM bookings WHERE id = v_booking AND status = 'confirmed' FOR UPDATE;
	      UPDATE slots SET status = 'booked', reserved_until = NULL WHERE id = v_slot;
	      EXIT;
	    EXCEPTION WHEN deadlock_detected THEN
	      NULL;
	    END;
	  END LOOP;
	END
	$$;
};

# Where two bookings are pending on a slot, reschedule frees it without looking
# at the other one: that is not among what the fixture mends.
my %reschedule = (
	original => q{
	CREATE FUNCTION act.reschedule(p_booking_id uuid, p_slot_id uuid) RETURNS void
	LANGUAGE sql AS 'SELECT reschedule_booking(p_booking_id, p_slot_id)';
},
	mended => q{
	CREATE FUNCTION act.reschedule(p_booking_id uuid, p_slot_id uuid) RETURNS void LANGUAGE plpgsql AS $$
	DECLARE
	  v_left uuid := (SELECT slot_id FROM bookings WHERE id = p_booking_id);
	BEGIN
	  PERFORM FROM slots WHERE id IN (v_left, p_slot_id) ORDER BY id FOR UPDATE;
	  -- also one that is being confirmed without the slot
	  PERFORM FROM bookings WHERE slot_id = v_left AND status = 'pending' ORDER BY id FOR UPDATE;
	  IF NOT EXISTS (SELECT FROM bookings WHERE slot_id = v_left AND status = 'confirmed'
	                    AND id <> p_booking_id) THEN
	    PERFORM reschedule_booking(p_booking_id, p_slot_id);
	  END IF;
	END
	$$;
});

sub make_stage
{
	my ($database, $neighbour) = @_;

	make_salon($node, $database, $neighbour eq 'mended');
	$node->safe_psql(
		$database, q{
		SELECT cusown_grant('drain', 'operator') \gexec
		SELECT cusown_grant('lazy', 'application') \gexec
	} . $application . $reschedule{$neighbour});
	make_record($node, $database, 'drain', 'lazy');
	return;
}

# ---------- the load ----------

my $dir = $PostgreSQL::Test::Utils::tmp_check;

append_to_file("$dir/anything.sql",
	"\\set what random(1, 1000)\nSELECT act.anything(:what);\n");
append_to_file("$dir/confirm.sql", "CALL act.confirm_then_book();\n");
append_to_file("$dir/expire.sql",
	"\\set rows random(2, 30)\nCALL cusown_run_job('expire_bookings', 'cron', :rows);\n"
);
append_to_file("$dir/holds.sql",
	"\\set rows random(2, 30)\nCALL cusown_run_job('release_expired_holds', 'cron', :rows);\n"
);
append_to_file("$dir/by_hand.sql",
	    "\\set rows random(1, 5)\n\\set wish random(1, 3)\n"
	  . "SELECT * FROM cusown_expire_bookings(max_rows => :rows, dry_run => :wish = 1);\n"
	  . "SELECT * FROM cusown_release_expired_holds(:rows, dry_run => :wish = 1);\n"
	  . "SELECT count(*) FROM cusown_due_bookings();\n");
append_to_file("$dir/lazy.sql", "SELECT cusown_expire_if_due();\n");

sub run_load
{
	my ($database, $neighbour) = @_;
	my $owner = $node->safe_psql($database, 'SELECT current_user');
	my @benches = (
		start_pgbench($node, $database, $owner, $seconds, 4, '--max-tries=1000',
			'-f', "$dir/anything.sql\@95", '-f', "$dir/confirm.sql\@5"),
		start_pgbench($node, $database, 'drain', $seconds, 2, '--rate=60',
			'-f', "$dir/expire.sql\@6", '-f', "$dir/holds.sql\@1", '-f', "$dir/by_hand.sql\@3"),
		start_pgbench($node, $database, 'lazy', $seconds, 1, '--rate=50', '-f', "$dir/lazy.sql"));

	foreach my $bench (@benches)
	{
		$bench->{run}->finish;
		is($bench->{run}->result(0), 0, "$neighbour: the sessions of $bench->{name} ran to their end");
		note $bench->{out};
		note grep { !/NOTICE:  job .* is already running/ } split /^/, $bench->{err};
	}
	return;
}

# ---------- what must hold ----------

sub check_activity
{
	my ($database, $neighbour) = @_;
	my $count = sub { return $node->safe_psql($database, $_[0]) };

	note $count->(
		q{SELECT string_agg(n, ', ') FROM (
		    SELECT status || ' ' || count(*) FROM bookings GROUP BY status
		    UNION ALL SELECT who || ' ' || entity || ' ' || to_status || ' ' || count(*)
		                FROM record.ours GROUP BY who, entity, to_status
		    UNION ALL SELECT job || ' ' || source || ' ' || status || ' ' || count(*)
		                FROM cusown_ops.job_run GROUP BY job, source, status
		    UNION ALL SELECT action_type || ' ' || count(*) FROM audit_logs GROUP BY action_type
		    UNION ALL SELECT kind || ' ' || count(*) FROM cusown_ops.attention GROUP BY kind) s (n)});
	cmp_ok($count->("SELECT count(*) FROM audit_logs WHERE action_type = '$_' AND NOT coalesce(metadata ? 'rule', false)"),
		'>', $some, "$neighbour: the application was busy: $_")
	  foreach qw(booking_created booking_confirmed booking_cancelled booking_rescheduled payment_succeeded);
	cmp_ok($count->("SELECT count(*) FROM record.ours WHERE who = '$_' AND entity = 'booking'"),
		'>', $some, "$neighbour: many bookings expired by the sessions of $_")
	  foreach qw(drain lazy);
	cmp_ok($count->("SELECT count(*) FROM cusown_ops.change WHERE verb = '$_' AND entity = 'slot'"),
		'>', $some, "$neighbour: many slots were released by $_")
	  foreach qw(expire_bookings release_expired_holds);
	cmp_ok($count->(q{SELECT count(*) FROM cusown_ops.attention WHERE kind = 'paid_pending'}),
		'>', 0, "$neighbour: there were paid bookings to leave alone");
	is( $count->(
			q{SELECT job, status, message FROM cusown_ops.job_run WHERE status NOT IN ('succeeded', 'skipped') LIMIT 5}),
		'', "$neighbour: no run of a job failed");
	return;
}

# What stands at the end, where nobody frees what is not his.
sub check_end
{
	my ($database) = @_;

	is( $node->safe_psql($database,
			q{SELECT b.id, s.status FROM bookings b JOIN slots s ON s.id = b.slot_id
			   WHERE b.status = 'confirmed' AND s.status <> 'booked' LIMIT 5}),
		'', 'mended: every confirmed booking stands on a booked slot');
	is( $node->safe_psql($database,
			q{UPDATE payments SET status = 'refunded' WHERE status = 'completed';
			  UPDATE payments SET created_at = created_at - interval '1 day';
			  UPDATE slots SET reserved_until = now() - interval '1 s' WHERE status = 'reserved';
			  UPDATE cusown_ops.attention SET next_try = now() - interval '1 s';
			  SELECT more FROM cusown_expire_bookings('0', 100000)}),
		'f', 'mended: one last run goes through all that is left');
	is( $node->safe_psql($database,
			q{SELECT id FROM bookings WHERE status = 'pending' AND undo_used_at IS NULL LIMIT 5}),
		'', 'mended: only bookings that a CHECK forbids to cancel are left');
	is( $node->safe_psql($database,
			q{SELECT id FROM slots s WHERE status = 'booked'
			     AND NOT EXISTS (SELECT FROM bookings b WHERE b.slot_id = s.id
			                        AND b.status IN ('confirmed', 'pending')) LIMIT 5}),
		'', 'mended: no slot is booked by nobody');
	return;
}

# ---------- both neighbours ----------

foreach my $neighbour (qw(original mended))
{
	my $database = "${neighbour}_app";

	make_stage($database, $neighbour);
	run_load($database, $neighbour);
	check_activity($database, $neighbour);
	check_changes($node, $database, $neighbour);
	index_record($node, $database);
	check_faults($node, $database, $neighbour);
	check_end($database) if $neighbour eq 'mended';
}

# ---------- who waited for whom ----------

# SKIP LOCKED waits in one case, which is PostgreSQL's own: the row's update
# ends between the look at it and the test of its lock, and another has updated
# the new version meanwhile (heap_lock_updated_tuple() knows of no wait policy).
my $by_postgres = qr/CONTEXT:  while locking updated version /;

my @messages = split /^(?=\S.* (?:LOG|WARNING|ERROR|FATAL|PANIC|NOTICE|INFO):  )/m, slurp_file($node->logfile);
my @deadlocks = grep { /ERROR:  deadlock detected\n/ } @messages;
my @ours = grep { /\A.* (?:drain|lazy) (?:LOG|WARNING|ERROR|FATAL|PANIC):/ && !/$by_postgres/ } @messages;
my $wait = qr/\A.*LOG:  process \d+ (?:still waiting for|acquired) \w+ on/;

note scalar(@deadlocks) . ' deadlocks of the application with itself';
note scalar(grep { /$wait/ && /$by_postgres/ } @messages) . ' waits for a new version of a row';
is(join('', grep { /Process \d+: .*cusown_/ && !/$by_postgres/ } @deadlocks),
	'', 'no deadlock that a statement of ours has part in');
is(join('', grep { /$wait (?:transaction|tuple)/ } @ours), '', 'no session of ours ever waited for a row');
is(join('', grep { !/$wait (?!transaction|tuple)/ } @ours), '', 'the server has nothing else to say of them');

$node->stop;
done_testing();
