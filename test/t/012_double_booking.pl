# The verbs about bookings beside each other and beside the application, with
# the unique index dropped on purpose: eight sessions create, hold, confirm,
# cancel, reject, undo, reschedule, expire and resolve by chance.
#
# When a last run has resolved what is doubled and repaired the slots, no slot
# contradicts its bookings; each change of ours has one audit row and one row of
# the change feed; and no verbs of ours deadlocked with each other.
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
make_salon($node, 'app', 1);
$node->safe_psql('app', q{SELECT cusown_grant('decides', 'operator') \gexec});
make_record($node, 'app', 'decides');

# What the application does by itself, confirming in one statement included,
# and what it asks our verbs for.  What is refused is part of life; a deadlock
# is not caught, so that the server logs it and pgbench tries again.
$node->safe_psql(
	'app', q{
	DROP INDEX idx_bookings_one_confirmed_per_slot;
	-- who undoes twice, or cancels afterwards, is not what is shown here
	ALTER TABLE bookings DROP CONSTRAINT undo_used_once_check;
	GRANT USAGE ON SCHEMA act, record TO decides;

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

	CREATE FUNCTION act.decide(p_what integer) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  CASE
	    WHEN p_what <= 40 THEN
	      PERFORM cusown_confirm_booking(act.booking('pending'));
	    WHEN p_what <= 45 THEN
	      PERFORM cusown_confirm_booking(booking_id, payment => id)
	         FROM payments WHERE id = act.payment('completed');
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
});

append_to_file("$dir/itself.sql", "\\set what random(1, 100)\nSELECT act.by_itself(:what);\n");
append_to_file("$dir/decide.sql", "\\set what random(1, 100)\nSELECT act.decide(:what);\n");

my @benches = (
	start_pgbench($node, 'app', $node->safe_psql('app', 'SELECT current_user'),
		$seconds, 3, '--max-tries=1000', '-f', "$dir/itself.sql"),
	start_pgbench($node, 'app', 'decides', $seconds, 5, '--max-tries=1000', '-f', "$dir/decide.sql"));

foreach my $bench (@benches)
{
	$bench->{run}->finish;
	is($bench->{run}->result(0), 0, "the sessions of $bench->{name} ran to their end");
	note $bench->{out}, $bench->{err};
}

# ---------- what happened ----------

sub count_of
{
	return $node->safe_psql('app', "SELECT count(*) FROM $_[0]");
}

note $node->safe_psql('app', 'SELECT entity, from_status, to_status, count(*) FROM record.ours GROUP BY 1, 2, 3 ORDER BY 4');
cmp_ok(count_of("record.ours WHERE entity = 'booking' AND (from_status, to_status) = ('$_->[0]', '$_->[1]')"),
	'>', $seconds, "our verbs were busy: $_->[0] to $_->[1]")
  foreach [qw(pending confirmed)], [qw(confirmed cancelled)], [qw(pending rejected)], [qw(confirmed pending)];
cmp_ok(count_of(q{audit_logs WHERE metadata->>'policy' IS NOT NULL}), '>', 0, 'double bookings were resolved meanwhile');

# ---------- a last run ----------

# by another role than the one whose changes are recorded
my $end = $node->safe_psql('app', q{SELECT nextval('record.number')});
$node->safe_psql('app', q{SELECT count(*) FROM cusown_resolve_double_bookings(); SELECT count(*) FROM cusown_repair_slots()});
is(count_of(q{(SELECT slot_id FROM bookings WHERE status = 'confirmed' GROUP BY slot_id HAVING count(*) > 1) d}),
	0, 'no slot has two confirmed bookings');
is(count_of(q{bookings b JOIN slots s ON s.id = b.slot_id WHERE b.status = 'confirmed' AND s.status <> 'booked'}),
	0, 'every confirmed booking stands on a booked slot');
is(count_of(q{slots s WHERE s.status = 'booked' AND NOT EXISTS
		(SELECT FROM bookings b WHERE b.slot_id = s.id AND b.status IN ('confirmed', 'pending'))}),
	0, 'no slot is booked by nobody');
is(count_of('cusown_double_bookings(verify => true)'), 0, 'and cusown_double_bookings() says so');
is(count_of(q{payments p JOIN audit_logs a ON a.entity_id = p.id AND a.metadata ? 'source'}),
	0, 'no payment was touched');

my %told = (
	'in the record' => q{SELECT entity, id, from_status, to_status FROM record.ours},
	'a change' => q{SELECT entity, entity_id, from_status, to_status FROM cusown_ops.change},
	'audited' => q{SELECT entity_type, entity_id, metadata->>'from', metadata->>'to' FROM audit_logs
	                WHERE metadata ? 'source' AND metadata ? 'to'});

$node->safe_psql('app',
	"CREATE OR REPLACE VIEW record.ours AS SELECT * FROM record.event WHERE who = 'decides' OR number > $end");
foreach my $pair ([ 'in the record', 'a change' ], [ 'a change', 'in the record' ],
	[ 'in the record', 'audited' ], [ 'audited', 'in the record' ])
{
	my ($one, $other) = @$pair;

	is($node->safe_psql('app', "SELECT * FROM (($told{$one}) EXCEPT ALL ($told{$other})) d LIMIT 5"),
		'', "each that is $one is also $other");
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
