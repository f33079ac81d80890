# The jobs beside everything that an application does: four sessions create,
# confirm, cancel, reject, undo, reschedule, pay and hold by the application's
# own functions, two drain, one heals lazily.  Once beside the application as
# it is, which frees slots without looking, and once beside a mended one.
#
# Triggers write down each change of a booking, slot or payment, with a number
# that is taken while the row is locked.  Changes that exclude each other by
# their locks are therefore numbered in the order in which they took place,
# whenever they were committed; what must hold is read from that record when
# all is over.
#
# STRESS_SECONDS sets how long each of the two runs lasts.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Application;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
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

# ---------- the record ----------

my $record = q{
	CREATE SCHEMA record;
	CREATE SEQUENCE record.number;

	-- to_slot, to_status: as it stands from then on; lives: of a slot, that its
	-- hold had not ended; of a payment, that it is within the grace
	CREATE TABLE record.event (
	  number bigint, who name, entity text, id uuid, booking_id uuid,
	  from_slot uuid, to_slot uuid, from_status text, to_status text,
	  lives boolean);

	CREATE FUNCTION record.booking() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
	BEGIN
	  INSERT INTO record.event
	  VALUES (nextval('record.number'), session_user, 'booking', NEW.id, NEW.id,
	          OLD.slot_id, NEW.slot_id, OLD.status, NEW.status);
	  RETURN NEW;
	END
	$$;
	CREATE TRIGGER record BEFORE INSERT OR UPDATE ON bookings FOR EACH ROW EXECUTE FUNCTION record.booking();

	CREATE FUNCTION record.slot() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
	BEGIN
	  INSERT INTO record.event
	  VALUES (nextval('record.number'), session_user, 'slot', NEW.id, NULL,
	          OLD.id, NEW.id, OLD.status, NEW.status,
	          OLD.status = 'reserved' AND OLD.reserved_until > now());
	  RETURN NEW;
	END
	$$;
	CREATE TRIGGER record BEFORE UPDATE ON slots FOR EACH ROW EXECUTE FUNCTION record.slot();

	CREATE FUNCTION record.payment() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
	BEGIN
	  INSERT INTO record.event
	  VALUES (nextval('record.number'), session_user, 'payment', NEW.id, NEW.booking_id,
	          NULL, NULL, OLD.status, NEW.status, NEW.created_at > now() - interval '1 h');
	  RETURN NEW;
	END
	$$;
	CREATE TRIGGER record BEFORE UPDATE ON payments FOR EACH ROW EXECUTE FUNCTION record.payment();
	-- what locks the booking of a new one is its foreign key, whose trigger
	-- comes first by its name
	CREATE TRIGGER record_new AFTER INSERT ON payments FOR EACH ROW EXECUTE FUNCTION record.payment();

	CREATE VIEW record.ours AS SELECT * FROM record.event WHERE who IN ('drain', 'lazy');
};

# Read when all is over: what we did that we must not.
my $judge = q{
	CREATE INDEX ON record.event (id, number);
	CREATE INDEX ON record.event (to_slot, number) WHERE entity = 'booking';
	CREATE INDEX ON record.event (booking_id, number) WHERE entity = 'payment';
	ANALYZE record.event;

	CREATE VIEW record.violation AS
	SELECT 'a booking that was ' || from_status || ' became ' || to_status AS what, id
	  FROM record.ours
	 WHERE entity = 'booking' AND (from_status, to_status) <> ('pending', 'cancelled')
	UNION ALL
	SELECT 'a booking was moved', id
	  FROM record.ours WHERE entity = 'booking' AND from_slot <> to_slot
	UNION ALL
	SELECT 'a booking expired with a payment that was ' || p.to_status || ', young: ' || p.lives, o.id
	  FROM record.ours o JOIN record.event p ON p.entity = 'payment' AND p.booking_id = o.id
	 WHERE o.entity = 'booking' AND p.number < o.number
	   AND (p.to_status IN ('completed', 'partially_refunded')
	        OR p.to_status IN ('initiated', 'pending', 'processing') AND p.lives)
	   AND NOT EXISTS (SELECT FROM record.event later
	                    WHERE later.id = p.id AND later.number > p.number AND later.number < o.number)
	UNION ALL
	SELECT 'the slot of a confirmed booking became ' || o.to_status, o.id
	  FROM record.ours o JOIN record.event b ON b.entity = 'booking' AND b.to_slot = o.id
	 WHERE o.entity = 'slot' AND o.to_status = 'available' AND b.number < o.number
	   AND b.to_status = 'confirmed'
	   AND NOT EXISTS (SELECT FROM record.event later
	                    WHERE later.id = b.id AND later.number > b.number AND later.number < o.number)
	UNION ALL
	SELECT 'a live hold was ended', id FROM record.ours WHERE entity = 'slot' AND lives;
};

# ---------- the application ----------

# One thing that a customer, an owner or a provider does, by the application's
# own functions.  What they refuse is part of life; a deadlock is not caught,
# so that the server logs it and pgbench tries again.
my $application = q{
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

	$node->safe_psql('postgres', "CREATE DATABASE $database");
	$node->safe_psql($database,
			($neighbour eq 'mended' ? "\\set mended 1\n" : '')
		  . include('cusown_app.sql') . q{
		CREATE EXTENSION cusown_ops;
		SELECT count(*) FROM cusown_attach();
		SELECT cusown_grant('drain', 'operator') \gexec
		SELECT cusown_grant('lazy', 'application') \gexec
		INSERT INTO businesses (id, salon_name, owner_name, whatsapp_number,
		                        opening_time, closing_time, slot_duration, booking_link)
		VALUES (md5('business')::uuid, 'Salon', 'Owner', '+15550000000', '09:00', '18:00', 30, 'salon');
		INSERT INTO slots (id, business_id, date, start_time, end_time)
		SELECT md5('slot ' || i)::uuid, md5('business')::uuid, date '2030-01-01' + i, '09:00', '09:30'
		  FROM generate_series(1, 200) i;
		CREATE INDEX ON bookings (created_at, id) WHERE status = 'pending';
	} . $record . $application . $reschedule{$neighbour});
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

sub start_pgbench
{
	my ($database, $role, $clients, @options) = @_;
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

sub run_load
{
	my ($database, $neighbour) = @_;
	my $owner = $node->safe_psql($database, 'SELECT current_user');
	my @benches = (
		start_pgbench($database, $owner, 4, '--max-tries=1000',
			'-f', "$dir/anything.sql\@95", '-f', "$dir/confirm.sql\@5"),
		start_pgbench($database, 'drain', 2, '--rate=60',
			'-f', "$dir/expire.sql\@6", '-f', "$dir/holds.sql\@1", '-f', "$dir/by_hand.sql\@3"),
		start_pgbench($database, 'lazy', 1, '--rate=50', '-f', "$dir/lazy.sql"));

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

# The record, the change feed and the audit rows: each change of ours is once
# in each of them, and nothing else is.  The record knows nothing of dry runs.
sub check_changes
{
	my ($database, $neighbour) = @_;
	my %told = (
		'in the record' => q{SELECT entity, id, from_status, to_status FROM record.ours},
		'a change' =>
		  q{SELECT entity, entity_id, from_status, to_status FROM cusown_changes_since(NULL, 10000000)},
		'audited' => q{SELECT entity_type, entity_id, metadata->>'from', metadata->>'to'
		                 FROM audit_logs WHERE metadata->>'actor' = 'system' AND metadata ? 'rule'});

	# a change is given when what was open beside it has ended
	ok( $node->poll_query_until($database,
			'SELECT count(*) = (SELECT count(*) FROM cusown_ops.change) FROM cusown_changes_since(NULL, 10000000)'),
		"$neighbour: all changes can be read");
	foreach my $pair (
		[ 'in the record', 'a change' ], [ 'a change', 'in the record' ],
		[ 'in the record', 'audited' ], [ 'audited', 'in the record' ])
	{
		my ($one, $other) = @$pair;

		is( $node->safe_psql($database, "SELECT * FROM (($told{$one}) EXCEPT ALL ($told{$other})) d LIMIT 5"),
			'', "$neighbour: each that is $one is also $other");
	}
	is( $node->safe_psql($database,
			q{SELECT id FROM record.ours WHERE entity = 'booking' GROUP BY id HAVING count(*) > 1 LIMIT 5}),
		'', "$neighbour: none expired twice");
	is( $node->safe_psql($database,
			q{(SELECT booking_id, old_slot_id FROM booking_lifecycle_audit WHERE action_type = 'expire'
			   EXCEPT ALL SELECT id, to_slot FROM record.ours WHERE entity = 'booking')
			  UNION ALL
			  (SELECT id, to_slot FROM record.ours WHERE entity = 'booking'
			   EXCEPT ALL SELECT booking_id, old_slot_id FROM booking_lifecycle_audit WHERE action_type = 'expire')
			  LIMIT 5}),
		'', "$neighbour: each that expired has its row in booking_lifecycle_audit");
	is( $node->safe_psql($database,
			q{SELECT b.id FROM bookings b FULL JOIN (SELECT id FROM record.ours WHERE entity = 'booking') o USING (id)
			   WHERE (o.id IS NOT NULL) IS DISTINCT FROM
			         (b.status = 'cancelled' AND b.cancelled_by = 'system' AND b.cancellation_reason = 'expired')
			   LIMIT 5}),
		'', "$neighbour: the expired bookings are those that we changed, and stay so");
	return;
}

sub check_faults
{
	my ($database, $neighbour) = @_;

	$node->safe_psql($database, $judge);
	is( $node->safe_psql($database, 'SELECT what, count(*), min(id::text) FROM record.violation GROUP BY 1'),
		'', "$neighbour: no booking expired that is paid or being paid, no slot of a confirmed booking and no live hold was released");
	is( $node->safe_psql($database,
			q{SELECT a.entity_id FROM cusown_ops.attention a JOIN bookings b ON b.id = a.entity_id
			   WHERE a.closed_at IS NULL AND a.kind = 'paid_pending' AND b.cancellation_reason = 'expired'}),
		'', "$neighbour: no booking with an open entry expired");
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
	check_changes($database, $neighbour);
	check_faults($database, $neighbour);
	check_end($database) if $neighbour eq 'mended';
}

# ---------- who waited for whom ----------

my $log = slurp_file($node->logfile);
my $more = qr/(?:\t|.*(?:DETAIL|HINT|CONTEXT|STATEMENT):).*\n/;
my @deadlocks = $log =~ /ERROR:  deadlock detected\n$more*/g;
my @ours = grep { / (?:drain|lazy) (?:LOG|WARNING|ERROR|FATAL|PANIC):/ } split /^/, $log;

note scalar(@deadlocks) . ' deadlocks of the application with itself';
is(join('', grep { /Process \d+: .*cusown_/ } @deadlocks), '', 'no deadlock that a statement of ours has part in');
is(join('', grep { /waiting for \w+ on (?:transaction|tuple)/ } @ours), '', 'no session of ours ever waited for a row');
is(join('', grep { !/LOG:  process \d+ (?:still waiting for|acquired) \w+ on (?!transaction|tuple)/ } @ours),
	'', 'the server has nothing else to say of them');

$node->stop;
done_testing();
