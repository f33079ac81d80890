# Record.pm - what was done to bookings, slots and payments, and by whom, when
# many did it at once.
#
# Triggers write down each change with a number that is taken while the row is
# locked.  Changes that exclude each other by their locks are therefore numbered
# in the order in which they took place, whenever they were committed; what must
# hold is read from that record when all is over.  Ours are the changes by the
# sessions of the roles that are given when it is made.

package Record;

use strict;
use warnings;

use Exporter 'import';
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

our @EXPORT = qw(make_record index_record check_changes check_faults);

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
};

# what we did that we must not
my $violations = q{
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

# On a database with the reference schema.
sub make_record
{
	my ($node, $database, @roles) = @_;
	my $ours = join ', ', map { "'$_'" } @roles;

	$node->safe_psql($database,
		$record
		  . "CREATE VIEW record.ours AS SELECT * FROM record.event WHERE who IN ($ours);"
		  . $violations);
	return;
}

# The checks need it; what is recorded is written faster without.
sub index_record
{
	my ($node, $database) = @_;

	$node->safe_psql(
		$database, q{
		CREATE INDEX ON record.event (id, number);
		CREATE INDEX ON record.event (to_slot, number) WHERE entity = 'booking';
		CREATE INDEX ON record.event (booking_id, number) WHERE entity = 'payment';
		ANALYZE record.event});
	return;
}

# The record, the change feed and the audit rows: each change of ours is once
# in each of them, and nothing else is.  The record knows nothing of dry runs.
sub check_changes
{
	my ($node, $database, $what) = @_;
	my %told = (
		'in the record' => q{SELECT entity, id, from_status, to_status FROM record.ours},
		'a change' =>
		  q{SELECT entity, entity_id, from_status, to_status FROM cusown_changes_since(NULL, 10000000)},
		'audited' => q{SELECT entity_type, entity_id, metadata->>'from', metadata->>'to'
		                 FROM audit_logs WHERE metadata->>'actor' = 'system' AND metadata ? 'rule'});

	# a change is given when what was open beside it has ended
	ok( $node->poll_query_until($database,
			'SELECT count(*) = (SELECT count(*) FROM cusown_ops.change) FROM cusown_changes_since(NULL, 10000000)'),
		"$what: all changes can be read");
	foreach my $pair (
		[ 'in the record', 'a change' ], [ 'a change', 'in the record' ],
		[ 'in the record', 'audited' ], [ 'audited', 'in the record' ])
	{
		my ($one, $other) = @$pair;

		is( $node->safe_psql($database, "SELECT * FROM (($told{$one}) EXCEPT ALL ($told{$other})) d LIMIT 5"),
			'', "$what: each that is $one is also $other");
	}
	is( $node->safe_psql($database,
			q{SELECT id FROM record.ours WHERE entity = 'booking' GROUP BY id HAVING count(*) > 1 LIMIT 5}),
		'', "$what: none expired twice");
	is( $node->safe_psql($database,
			q{(SELECT booking_id, old_slot_id FROM booking_lifecycle_audit WHERE action_type = 'expire'
			   EXCEPT ALL SELECT id, to_slot FROM record.ours WHERE entity = 'booking')
			  UNION ALL
			  (SELECT id, to_slot FROM record.ours WHERE entity = 'booking'
			   EXCEPT ALL SELECT booking_id, old_slot_id FROM booking_lifecycle_audit WHERE action_type = 'expire')
			  LIMIT 5}),
		'', "$what: each that expired has its row in booking_lifecycle_audit");
	is( $node->safe_psql($database,
			q{SELECT b.id FROM bookings b FULL JOIN (SELECT id FROM record.ours WHERE entity = 'booking') o USING (id)
			   WHERE (o.id IS NOT NULL) IS DISTINCT FROM
			         (b.status = 'cancelled' AND b.cancelled_by = 'system' AND b.cancellation_reason = 'expired')
			   LIMIT 5}),
		'', "$what: the expired bookings are those that we changed, and stay so");
	return;
}

sub check_faults
{
	my ($node, $database, $what) = @_;

	is( $node->safe_psql($database, 'SELECT what, count(*), min(id::text) FROM record.violation GROUP BY 1'),
		'', "$what: no booking expired that is paid or being paid, no slot of a confirmed booking and no live hold was released");
	is( $node->safe_psql($database,
			q{SELECT a.entity_id FROM cusown_ops.attention a JOIN bookings b ON b.id = a.entity_id
			   WHERE a.closed_at IS NULL AND a.kind = 'paid_pending' AND b.cancellation_reason = 'expired'}),
		'', "$what: no booking with an open entry expired");
	return;
}

1;
