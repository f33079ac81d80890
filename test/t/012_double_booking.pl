# The verbs about bookings beside each other and beside the application, with
# the unique index dropped on purpose: eight sessions create, hold, confirm,
# cancel, reject, undo, reschedule, expire and resolve by chance.
#
# When a last run has resolved what is doubled and repaired the slots, no slot
# contradicts its bookings; each change of ours has one audit row and one row of
# the change feed; and no verbs of ours deadlocked with each other.
#
# Then the same on an application that has only what the runbooks name, by other
# names, for a third of the time.
#
# STRESS_SECONDS sets how long it lasts.

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
my $dir = $PostgreSQL::Test::Utils::tmp_check;
my $node = new_node(
	'main', [],
	"cusown_ops.booking_ttl = '1s'",
	'log_statement = none',
	'deadlock_timeout = 20ms',
	'synchronous_commit = off');

$node->safe_psql('postgres', 'CREATE ROLE decides LOGIN BYPASSRLS');

# ---------- the reference schema ----------

make_salon($node, 'app', 1);
make_record($node, 'app', 'decides');

# What the application does by itself, confirming in one statement included.
# What is refused is part of life; a deadlock is not caught, so that the server
# logs it and pgbench tries again.
$node->safe_psql(
	'app', q{
	DROP INDEX idx_bookings_one_confirmed_per_slot;
	-- who undoes twice, or cancels afterwards, is not what is shown here
	ALTER TABLE bookings DROP CONSTRAINT undo_used_once_check;

	CREATE SCHEMA look;
	CREATE VIEW look.bookings AS SELECT id, slot_id, status FROM bookings;
	CREATE VIEW look.slots AS SELECT id, status FROM slots;
	CREATE VIEW look.payments AS SELECT id, booking_id FROM payments;
	CREATE VIEW look.audit_logs AS SELECT entity_type, entity_id, metadata FROM audit_logs;

	CREATE FUNCTION act.by_itself(p_what integer) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  CASE
	    WHEN p_what <= 55 THEN
	      PERFORM create_booking_atomically(md5('business')::uuid, act.slot(), 'Customer', '-');
	    WHEN p_what <= 60 THEN
	      PERFORM reserve_slot(act.slot());
	    WHEN p_what <= 75 THEN
	      UPDATE bookings SET status = 'confirmed' WHERE id = act.booking('pending') AND status = 'pending';
	    WHEN p_what <= 85 THEN
	      PERFORM reschedule_booking(act.booking('confirmed'), act.slot());
	    WHEN p_what <= 90 THEN
	      PERFORM create_payment(act.booking('pending'), 50000);
	    WHEN p_what <= 95 THEN
	      PERFORM complete_payment(act.payment('processing'));
	    ELSE
	      -- ten minutes go by
	      UPDATE slots SET reserved_until = now() - interval '1 s'
	       WHERE id IN (SELECT id FROM slots WHERE status = 'reserved' FOR UPDATE SKIP LOCKED);
	  END CASE;
	EXCEPTION WHEN raise_exception OR integrity_constraint_violation THEN
	  NULL;
	END
	$$;
});

# ---------- only what the runbooks name ----------

$node->safe_psql('postgres', 'CREATE DATABASE shop');
$node->safe_psql('shop', 'ALTER DATABASE shop SET search_path = shop, public; CREATE EXTENSION cusown_ops');
attach_minimal($node, 'shop');
$node->safe_psql(
	'shop', q{
	DROP INDEX reservation_one_confirmed;
	CREATE INDEX ON reservation (slot_ref);
	CREATE INDEX ON charge (reservation_ref);
	CREATE INDEX ON journal (object_type, object_ref);
	INSERT INTO time_slot
	SELECT md5('slot ' || i)::uuid, 'available', NULL, timestamptz '2030-01-01 09:00Z' + i * interval '1 d',
	       timestamptz '2030-01-01 09:30Z' + i * interval '1 d'
	  FROM generate_series(1, 200) i;

	CREATE SCHEMA look;
	CREATE VIEW look.bookings AS SELECT ref AS id, slot_ref AS slot_id, state AS status FROM reservation;
	CREATE VIEW look.slots AS SELECT ref AS id, state AS status FROM time_slot;
	CREATE VIEW look.payments AS SELECT ref AS id, reservation_ref AS booking_id FROM charge;
	CREATE VIEW look.audit_logs AS SELECT object_type AS entity_type, object_ref AS entity_id, detail AS metadata FROM journal;

	CREATE SCHEMA record;
	CREATE SEQUENCE record.number;
	CREATE TABLE record.event (number bigint, who name, entity text, id uuid, from_status text, to_status text);
	CREATE FUNCTION record.change() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
	BEGIN
	  INSERT INTO record.event
	  VALUES (nextval('record.number'), session_user, TG_ARGV[0], NEW.ref, OLD.state, NEW.state);
	  RETURN NEW;
	END
	$$;
	CREATE TRIGGER record BEFORE UPDATE ON reservation FOR EACH ROW EXECUTE FUNCTION record.change('booking');
	CREATE TRIGGER record BEFORE UPDATE ON time_slot FOR EACH ROW EXECUTE FUNCTION record.change('slot');
	CREATE VIEW record.ours AS SELECT * FROM record.event WHERE who IN ('decides');

	CREATE SCHEMA act;
	CREATE FUNCTION act.booking(p_state text) RETURNS uuid LANGUAGE sql AS $$
	  SELECT ref FROM reservation WHERE state = p_state ORDER BY random() LIMIT 1
	$$;
	CREATE FUNCTION act.slot() RETURNS uuid LANGUAGE sql AS $$
	  SELECT md5('slot ' || 1 + floor(random() * 200))::uuid
	$$;
	CREATE FUNCTION act.payment(p_state text) RETURNS uuid LANGUAGE sql AS $$
	  SELECT c.ref FROM charge c JOIN reservation r ON r.ref = c.reservation_ref
	   WHERE c.state = p_state AND r.state = 'pending' ORDER BY random() LIMIT 1
	$$;
	-- whether the slot was to be had
	CREATE FUNCTION act.take(p_slot uuid, p_state text, p_until timestamptz) RETURNS boolean LANGUAGE plpgsql AS $$
	BEGIN
	  UPDATE time_slot SET state = p_state, held_until = p_until
	   WHERE ref = p_slot AND (state = 'available' OR state = 'reserved' AND held_until <= now());
	  RETURN FOUND;
	END
	$$;
	CREATE FUNCTION act.by_itself(p_what integer) RETURNS void LANGUAGE plpgsql AS $$
	DECLARE
	  v_slot uuid := act.slot();
	  v_booking uuid;
	  v_left uuid;
	BEGIN
	  CASE
	    WHEN p_what <= 55 THEN
	      IF act.take(v_slot, 'reserved', now() + interval '10 min') THEN
	        INSERT INTO reservation (ref, state, slot_ref) VALUES (gen_random_uuid(), 'pending', v_slot);
	      END IF;
	    WHEN p_what <= 60 THEN
	      PERFORM act.take(v_slot, 'reserved', now() + interval '10 min');
	    WHEN p_what <= 75 THEN
	      UPDATE reservation SET state = 'confirmed' WHERE ref = act.booking('pending') AND state = 'pending';
	    WHEN p_what <= 85 THEN
	      SELECT ref, slot_ref INTO v_booking, v_left FROM reservation
	       WHERE ref = act.booking('confirmed') AND state = 'confirmed' FOR UPDATE;
	      IF v_left <> v_slot AND act.take(v_slot, 'booked', NULL) THEN
	        UPDATE reservation SET slot_ref = v_slot WHERE ref = v_booking;
	        UPDATE time_slot SET state = 'available', held_until = NULL WHERE ref = v_left;
	      END IF;
	    WHEN p_what <= 90 THEN
	      INSERT INTO charge (ref, reservation_ref, state, made_at)
	      VALUES (gen_random_uuid(), act.booking('pending'), 'processing', now());
	    WHEN p_what <= 95 THEN
	      UPDATE charge SET state = 'completed' WHERE ref = act.payment('processing');
	    ELSE
	      UPDATE time_slot SET held_until = now() - interval '1 s'
	       WHERE ref IN (SELECT ref FROM time_slot WHERE state = 'reserved' FOR UPDATE SKIP LOCKED);
	  END CASE;
	END
	$$;
});

# ---------- eight sessions ----------

# what an application asks our verbs for
my $decide = q{
	GRANT USAGE ON SCHEMA act, record, look TO decides;
	GRANT SELECT ON ALL TABLES IN SCHEMA look TO decides;
	CREATE FUNCTION act.decide(p_what integer) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  CASE
	    WHEN p_what <= 40 THEN
	      PERFORM cusown_confirm_booking(act.booking('pending'));
	    WHEN p_what <= 45 THEN
	      PERFORM cusown_confirm_booking(booking_id, payment => id)
	         FROM look.payments WHERE id = act.payment('completed');
	    WHEN p_what <= 60 THEN
	      PERFORM cusown_cancel_booking(act.booking('confirmed'), 'customer', 'ill');
	    WHEN p_what <= 65 THEN
	      PERFORM cusown_cancel_booking(act.booking('pending'), 'owner', actor => md5('owner')::uuid);
	    WHEN p_what <= 75 THEN
	      PERFORM cusown_reject_booking(act.booking('pending'), md5('owner')::uuid);
	    WHEN p_what <= 85 THEN
	      PERFORM cusown_undo_booking(act.booking('confirmed'), md5('owner')::uuid);
	    WHEN p_what <= 90 THEN
	      PERFORM cusown_undo_booking(act.booking('rejected'), md5('owner')::uuid);
	    WHEN p_what <= 94 THEN
	      PERFORM cusown_expire_bookings('0', 5);
	    WHEN p_what <= 96 THEN
	      PERFORM cusown_repair_slots();
	    ELSE
	      PERFORM cusown_resolve_double_bookings(
	        (ARRAY['first_confirmed', 'first_created', 'paid_first'])[1 + p_what % 3]);
	  END CASE;
	EXCEPTION WHEN SQLSTATE 'UO002' OR SQLSTATE 'UO003' OR SQLSTATE 'UO004' OR null_value_not_allowed THEN
	  NULL;
	END
	$$;
};

append_to_file("$dir/itself.sql", "\\set what random(1, 100)\nSELECT act.by_itself(:what);\n");
append_to_file("$dir/decide.sql", "\\set what random(1, 100)\nSELECT act.decide(:what);\n");

foreach my $run ([ 'app', $seconds ], [ 'shop', int($seconds / 3) || 1 ])
{
	my ($app, $for) = @$run;
	my $count_of = sub { $node->safe_psql($app, "SELECT count(*) FROM $_[0]") };

	$node->safe_psql($app, q{SELECT cusown_grant('decides', 'operator') \gexec});
	$node->safe_psql($app, $decide);
	my @benches = (
		start_pgbench($node, $app, $node->safe_psql($app, 'SELECT current_user'),
			$for, 3, '--max-tries=1000', '-f', "$dir/itself.sql"),
		start_pgbench($node, $app, 'decides', $for, 5, '--max-tries=1000', '-f', "$dir/decide.sql"));

	foreach my $bench (@benches)
	{
		$bench->{run}->finish;
		is($bench->{run}->result(0), 0, "$app: the sessions of $bench->{name} ran to their end");
		note $bench->{out}, $bench->{err};
	}

	# ---------- what happened ----------

	note $node->safe_psql($app, 'SELECT entity, from_status, to_status, count(*) FROM record.ours GROUP BY 1, 2, 3 ORDER BY 4');
	cmp_ok($count_of->("record.ours WHERE entity = 'booking' AND (from_status, to_status) = ('$_->[0]', '$_->[1]')"),
		'>', $for, "$app: our verbs were busy: $_->[0] to $_->[1]")
	  foreach [qw(pending confirmed)], [qw(confirmed cancelled)], [qw(pending rejected)], [qw(confirmed pending)];
	cmp_ok($count_of->(q{look.audit_logs WHERE metadata->>'policy' IS NOT NULL}), '>', 0, "$app: double bookings were resolved meanwhile");

	# ---------- a last run ----------

	# by another role than the one whose changes are recorded
	my $end = $node->safe_psql($app, q{SELECT nextval('record.number')});
	$node->safe_psql($app, q{SELECT count(*) FROM cusown_resolve_double_bookings(); SELECT count(*) FROM cusown_repair_slots()});
	is($count_of->(q{(SELECT slot_id FROM look.bookings WHERE status = 'confirmed' GROUP BY slot_id HAVING count(*) > 1) d}),
		0, "$app: no slot has two confirmed bookings");
	is($count_of->(q{look.bookings b JOIN look.slots s ON s.id = b.slot_id WHERE b.status = 'confirmed' AND s.status <> 'booked'}),
		0, "$app: every confirmed booking stands on a booked slot");
	is($count_of->(q{look.slots s WHERE s.status = 'booked' AND NOT EXISTS
			(SELECT FROM look.bookings b WHERE b.slot_id = s.id AND b.status IN ('confirmed', 'pending'))}),
		0, "$app: no slot is booked by nobody");
	is($count_of->('cusown_double_bookings(verify => true)'), 0, "$app: and cusown_double_bookings() says so");
	is($count_of->(q{look.payments p JOIN look.audit_logs a ON a.entity_id = p.id AND a.metadata ? 'source'}),
		0, "$app: no payment was touched");

	my %told = (
		'in the record' => q{SELECT entity, id, from_status, to_status FROM record.ours},
		'a change' => q{SELECT entity, entity_id, from_status, to_status FROM cusown_ops.change},
		'audited' => q{SELECT entity_type, entity_id, metadata->>'from', metadata->>'to' FROM look.audit_logs
		                WHERE metadata ? 'source' AND metadata ? 'to'});

	$node->safe_psql($app,
		"CREATE OR REPLACE VIEW record.ours AS SELECT * FROM record.event WHERE who = 'decides' OR number > $end");
	foreach my $pair ([ 'in the record', 'a change' ], [ 'a change', 'in the record' ],
		[ 'in the record', 'audited' ], [ 'audited', 'in the record' ])
	{
		my ($one, $other) = @$pair;

		is($node->safe_psql($app, "SELECT * FROM (($told{$one}) EXCEPT ALL ($told{$other})) d LIMIT 5"),
			'', "$app: each that is $one is also $other");
	}
}

# ---------- who waited for whom ----------

my @messages = split /^(?=\S.* (?:LOG|WARNING|ERROR|FATAL|PANIC|NOTICE|INFO):  )/m, slurp_file($node->logfile);
my @deadlocks = grep { /ERROR:  deadlock detected\n/ } @messages;
my @among_ours = grep { my $all = () = /Process \d+: /g; my $ours = () = /Process \d+: .*act\.decide/g; $all == $ours } @deadlocks;

note scalar(@deadlocks) . ' deadlocks with the application';
is(join('', @among_ours), '', 'no deadlock between verbs of ours');
is(join('', grep { /\A.*(?:WARNING|FATAL|PANIC):/ } @messages), '', 'the server has nothing to warn of');

$node->stop;
done_testing();
