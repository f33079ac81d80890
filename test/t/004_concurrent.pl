# Expiry beside everything that an application does: two sessions expire
# whatever is pending while others create, confirm, cancel, reject, undo,
# reschedule, pay and hold.  Triggers look over the shoulder of each change
# that expiry makes; what must hold is counted at the end.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Application;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $seconds = 15;

my $node = new_node(
	'main', [],
	'log_statement = none',
	'deadlock_timeout = 20ms',
	'max_connections = 30',
	'synchronous_commit = off');

$node->safe_psql('postgres', 'CREATE DATABASE app');
$node->safe_psql('app', "\\set mended 1\n" . include('cusown_app.sql'));
$node->safe_psql(
	'app', q{
	CREATE EXTENSION cusown_ops;
	SELECT count(*) FROM cusown_attach();

	INSERT INTO businesses (id, salon_name, owner_name, whatsapp_number,
	                        opening_time, closing_time, slot_duration, booking_link)
	VALUES (md5('business')::uuid, 'Salon', 'Owner', '+15550000000', '09:00', '18:00', 30, 'salon');
	INSERT INTO slots (id, business_id, date, start_time, end_time)
	SELECT md5('slot ' || i)::uuid, md5('business')::uuid, date '2030-01-01' + i, '09:00', '09:30'
	  FROM generate_series(1, 100) i;
});

# ---------- the witnesses ----------

# A change that expiry makes is judged in its own transaction, by what is
# committed at that moment: expiry holds the locks on booking, payments and
# slot, so nothing of it can be moving.
$node->safe_psql(
	'app', q{
	CREATE SCHEMA witness;
	CREATE TABLE witness.change (kind text, id uuid, at timestamptz DEFAULT clock_timestamp());
	CREATE TABLE witness.violation (kind text, id uuid, at timestamptz DEFAULT clock_timestamp());

	CREATE FUNCTION witness.booking_expired() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
	  INSERT INTO witness.change (kind, id) VALUES ('expired', NEW.id);
	  IF OLD.status <> 'pending' THEN
	    INSERT INTO witness.violation VALUES ('was ' || OLD.status, NEW.id);
	  END IF;
	  IF EXISTS (SELECT FROM payments WHERE booking_id = NEW.id
	                AND status IN ('completed', 'partially_refunded')) THEN
	    INSERT INTO witness.violation VALUES ('paid', NEW.id);
	  END IF;
	  IF EXISTS (SELECT FROM payments WHERE booking_id = NEW.id
	                AND status IN ('initiated', 'pending', 'processing')
	                AND created_at > now() - interval '1 h') THEN
	    INSERT INTO witness.violation VALUES ('in flight', NEW.id);
	  END IF;
	  IF OLD.slot_id <> NEW.slot_id THEN
	    INSERT INTO witness.violation VALUES ('moved', NEW.id);
	  END IF;
	  RETURN NEW;
	END
	$$;
	CREATE TRIGGER witness BEFORE UPDATE ON bookings FOR EACH ROW
	  WHEN (current_setting('application_name') = 'expiry')
	  EXECUTE FUNCTION witness.booking_expired();

	CREATE FUNCTION witness.slot_released() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
	  INSERT INTO witness.change (kind, id) VALUES ('released', NEW.id);
	  IF EXISTS (SELECT FROM bookings WHERE slot_id = NEW.id AND status = 'confirmed') THEN
	    INSERT INTO witness.violation VALUES ('slot of a confirmed booking', NEW.id);
	  END IF;
	  IF OLD.status = 'reserved' AND OLD.reserved_until > now() THEN
	    INSERT INTO witness.violation VALUES ('slot with a live hold', NEW.id);
	  END IF;
	  RETURN NEW;
	END
	$$;
	CREATE TRIGGER witness BEFORE UPDATE ON slots FOR EACH ROW
	  WHEN (current_setting('application_name') = 'expiry')
	  EXECUTE FUNCTION witness.slot_released();
});

# ---------- the application ----------

# One thing that a customer, an owner or a provider does, by the application's
# own functions.  What they refuse is part of life; a deadlock is not caught,
# so that the server logs it and pgbench tries again.
$node->safe_psql(
	'app', q{
	CREATE FUNCTION witness.booking(p_status text) RETURNS uuid LANGUAGE sql AS $$
	  SELECT id FROM bookings WHERE status = p_status ORDER BY created_at DESC
	  OFFSET floor(random() * 30) LIMIT 1
	$$;
	CREATE FUNCTION witness.slot() RETURNS uuid LANGUAGE sql AS $$
	  SELECT md5('slot ' || 1 + floor(random() * 100))::uuid
	$$;

	-- The original frees the slot it leaves without looking.
	CREATE FUNCTION witness.reschedule(p_booking_id uuid, p_slot_id uuid) RETURNS void
	LANGUAGE plpgsql AS $$
	DECLARE
	  v_left uuid := (SELECT slot_id FROM bookings WHERE id = p_booking_id);
	BEGIN
	  PERFORM FROM slots WHERE id IN (v_left, p_slot_id) ORDER BY id FOR UPDATE;
	  IF NOT EXISTS (SELECT FROM bookings WHERE slot_id = v_left AND status = 'confirmed'
	                    AND id <> p_booking_id) THEN
	    PERFORM reschedule_booking(p_booking_id, p_slot_id);
	    INSERT INTO witness.change (kind, id) VALUES ('rescheduled', p_booking_id);
	  END IF;
	END
	$$;

	CREATE FUNCTION witness.act(p_what integer) RETURNS void LANGUAGE plpgsql AS $$
	DECLARE
	  v_payment uuid;
	BEGIN
	  CASE
	    WHEN p_what <= 300 THEN
	      PERFORM create_booking_atomically(md5('business')::uuid, witness.slot(),
	                                        'Customer', '+15551111111');
	    WHEN p_what <= 400 THEN
	      PERFORM confirm_booking_atomically(witness.booking('pending'));
	    WHEN p_what <= 500 THEN
	      PERFORM cancel_booking(witness.booking('confirmed'));
	    WHEN p_what <= 530 THEN
	      PERFORM cancel_booking(witness.booking('pending'));
	    WHEN p_what <= 560 THEN
	      PERFORM reject_booking(witness.booking('pending'));
	    WHEN p_what <= 580 THEN
	      PERFORM undo_booking(witness.booking('confirmed'));
	    WHEN p_what <= 680 THEN
	      PERFORM witness.reschedule(witness.booking('pending'), witness.slot());
	    WHEN p_what <= 800 THEN
	      -- older than the grace: only 'completed' keeps expiry away
	      v_payment := create_payment(witness.booking('pending'), 50000);
	      IF random() < 0.7 THEN
	        UPDATE payments SET created_at = now() - interval '2 h' WHERE id = v_payment;
	      END IF;
	    WHEN p_what <= 900 THEN
	      PERFORM complete_payment(p.id)
	         FROM payments p JOIN bookings b ON b.id = p.booking_id
	        WHERE p.status = 'processing' AND b.status = 'pending' LIMIT 1;
	    WHEN p_what <= 940 THEN
	      PERFORM confirm_booking_with_payment(p.id)
	         FROM payments p JOIN bookings b ON b.id = p.booking_id
	        WHERE p.status = 'completed' AND b.status = 'pending' LIMIT 1;
	    WHEN p_what <= 960 THEN
	      PERFORM reserve_slot(witness.slot());
	    WHEN p_what <= 961 THEN
	      PERFORM release_expired_holds();
	    WHEN p_what <= 990 THEN
	      -- ten minutes go by
	      UPDATE slots SET reserved_until = now() - interval '1 s'
	       WHERE id IN (SELECT id FROM slots WHERE status = 'reserved' AND random() < 0.5
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
});

# ---------- the load ----------

my $dir = $PostgreSQL::Test::Utils::tmp_check;

append_to_file("$dir/application.sql",
	"\\set what random(1, 1000)\nSELECT witness.act(:what);\n");
# A booking lives for some milliseconds before it is due: now and then none,
# else long enough for others to have a hand in it.  One session takes all that
# is due, the other one a few, or looks only.
my $age = "\\set age random(0, 100) * random(0, 1)\n";
append_to_file("$dir/expiry_far.sql",
	"${age}SELECT * FROM cusown_expire_bookings(:age * interval '1 ms');\n");
append_to_file(
	"$dir/expiry_near.sql",
	$age
	  . "\\set rows random(1, 5)\n"
	  . "\\set wish random(1, 5)\n"
	  . "SELECT * FROM cusown_expire_bookings(:age * interval '1 ms', :rows,"
	  . " source => 'application', dry_run => :wish = 1);\n"
	  . "SELECT count(*) FROM cusown_due_bookings(:age * interval '1 ms');\n");

sub start_pgbench
{
	my ($name, $clients, $script, @options) = @_;
	my %bench = (name => $name, out => '', err => '');

	local $ENV{PGHOST} = $node->host;
	local $ENV{PGPORT} = $node->port;
	local $ENV{PGDATABASE} = 'app';
	local $ENV{PGAPPNAME} = $name;
	$bench{run} = IPC::Run::start(
		[
			'pgbench', '-n', '-T', $seconds, '-c', $clients, '-j', $clients,
			'-f', "$dir/$script", @options
		],
		'<', \undef, '>', \$bench{out}, '2>', \$bench{err},
		IPC::Run::timeout($seconds + $PostgreSQL::Test::Utils::timeout_default));
	return \%bench;
}

my @benches = (
	start_pgbench('application', 8, 'application.sql', '--max-tries=1000'),
	start_pgbench('expiry', 1, 'expiry_far.sql', '--rate=40'),
	start_pgbench('expiry', 1, 'expiry_near.sql', '--rate=40'));

foreach my $bench (@benches)
{
	$bench->{run}->finish;
	is($bench->{run}->result(0), 0, "a pgbench of $bench->{name} ran to its end");
	note $bench->{out}, $bench->{err};
}

# ---------- what must hold ----------

sub count
{
	my ($query) = @_;

	return $node->safe_psql('app', $query);
}

note count(
	q{SELECT string_agg(n, ', ') FROM (
	    SELECT status || ' ' || count(*) FROM bookings GROUP BY status
	    UNION ALL SELECT 'payments ' || status || ' ' || count(*) FROM payments GROUP BY status
	    UNION ALL SELECT kind || ' ' || count(*) FROM witness.change GROUP BY kind
	    UNION ALL SELECT action_type || ' ' || count(*) FROM audit_logs GROUP BY action_type
	    UNION ALL SELECT kind || ' ' || count(*) FROM cusown_ops.attention GROUP BY kind) s (n)}
);

cmp_ok(count(q{SELECT count(*) FROM witness.change WHERE kind = 'expired'}),
	'>', 20, 'many bookings were expired');
cmp_ok(count(q{SELECT count(*) FROM witness.change WHERE kind = 'released'}),
	'>', 5, 'many slots were released');
cmp_ok(count(q{SELECT count(*) FROM audit_logs WHERE action_type = '} . $_ . q{'}),
	'>', 5, "the application was busy: $_")
  foreach qw(booking_confirmed payment_succeeded booking_rescheduled);
cmp_ok(count('SELECT count(*) FROM cusown_ops.attention'),
	'>', 0, 'expiry met paid bookings');

is(count('SELECT kind, count(*) FROM witness.violation GROUP BY 1'), '',
	'no paid booking was expired, no slot of a confirmed booking and no live hold released'
);

# Of dry runs the witnesses keep nothing either.
is( count(
		q{SELECT count(*) FROM (
		    (SELECT entity_id FROM audit_logs
		      WHERE action_type = 'booking_cancelled' AND metadata->>'rule' = 'older_than'
		      EXCEPT ALL SELECT id FROM witness.change WHERE kind = 'expired')
		    UNION ALL
		    (SELECT id FROM witness.change WHERE kind = 'expired'
		      EXCEPT ALL SELECT entity_id FROM audit_logs
		      WHERE action_type = 'booking_cancelled' AND metadata->>'rule' = 'older_than')) d}
	),
	'0',
	'each booking that was expired has its audit row');
is( count(
		q{SELECT count(*) FROM (
		    SELECT entity_id FROM audit_logs WHERE metadata->>'rule' = 'older_than'
		     GROUP BY 1 HAVING count(*) > 1) d}),
	'0',
	'none was expired twice');
is( count(
		q{SELECT count(*) FROM bookings b
		   FULL JOIN (SELECT entity_id FROM audit_logs
		               WHERE metadata->>'rule' = 'older_than') a
		     ON a.entity_id = b.id
		  WHERE (a.entity_id IS NOT NULL) IS DISTINCT FROM
		        (b.status = 'cancelled' AND b.cancelled_by = 'system'
		         AND b.cancellation_reason = 'expired')}
	),
	'0',
	'the expired bookings are those that are audited so');
is( count(
		q{SELECT (SELECT count(*) FROM booking_lifecycle_audit WHERE action_type = 'expire')
		       = (SELECT count(*) FROM witness.change WHERE kind = 'expired')}),
	't',
	'each one has its row in booking_lifecycle_audit');
is( count(
		q{SELECT (SELECT count(*) FROM audit_logs WHERE metadata->>'rule' = 'booking_expired')
		       = (SELECT count(*) FROM witness.change WHERE kind = 'released')}),
	't',
	'each slot that was released has its audit row');
is( count(
		q{SELECT count(*) FROM bookings b JOIN slots s ON s.id = b.slot_id
		   WHERE b.status = 'confirmed' AND s.status <> 'booked'}),
	'0',
	'every confirmed booking stands on a booked slot');
is( count(
		q{SELECT count(*) FROM cusown_ops.attention a JOIN bookings b ON b.id = a.entity_id
		   WHERE a.closed_at IS NULL AND a.kind = 'paid_pending' AND b.cancelled_by = 'system'}),
	'0',
	'no booking with an open entry was expired');

# ---------- deadlocks ----------

my $log = slurp_file($node->logfile);
my $more = qr/(?:\t|.*(?:DETAIL|HINT|CONTEXT|STATEMENT):).*\n/;
my @deadlocks = $log =~ /ERROR:  deadlock detected\n$more*/g;

note scalar(@deadlocks) . ' deadlocks of the application with itself';
is( scalar(grep { /cusown_/ } @deadlocks),
	0, 'no deadlock that our statements have part in');
unlike($log, qr/ expiry \w+:  /, 'the server has no word to say of the expiry sessions');

# ---------- peace ----------

is( count(
		q{UPDATE payments SET status = 'refunded' WHERE status = 'completed';
		  UPDATE payments SET created_at = created_at - interval '1 day';
		  UPDATE slots SET reserved_until = now() - interval '1 s' WHERE status = 'reserved';
		  UPDATE cusown_ops.attention SET next_try = now() - interval '1 s';
		  SELECT more FROM cusown_expire_bookings('0', 100000)}),
	'f',
	'one last run goes through all that is left');
is( count(q{SELECT count(*) FROM bookings WHERE status = 'pending' AND undo_used_at IS NULL}),
	'0',
	'only those that a CHECK forbids to cancel are left');
is( count(
		q{SELECT count(*) FROM slots s WHERE status = 'booked'
		     AND NOT EXISTS (SELECT FROM bookings b WHERE b.slot_id = s.id
		                        AND b.status IN ('confirmed', 'pending'))}),
	'0',
	'no slot is booked by nobody');

$node->stop;
done_testing();
