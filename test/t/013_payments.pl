# The verbs about payments beside each other: eight sessions begin, process, verify,
# fail, expire and refund payments by chance, while payments that were not made in
# time expire.
#
# Each payment's trail, replayed, gives its status; no refund exceeds its payment,
# and no reference counts twice; no booking and no slot was touched; nothing
# deadlocked.
#
# Then reports and secrets that are refused: what is in them is in no log.
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

my $seconds = $ENV{STRESS_SECONDS} || 15;
my $dir = $PostgreSQL::Test::Utils::tmp_check;
my $node = new_node('main', [], 'log_statement = none', 'deadlock_timeout = 20ms', 'synchronous_commit = off');

$node->safe_psql('postgres', 'CREATE ROLE decides LOGIN BYPASSRLS');
make_salon($node, 'app');
$node->safe_psql('app', q{SELECT cusown_grant('decides', 'operator') \gexec});

# Bookings in each status, and a trigger that lets nobody change them.  What is
# refused is part of life; anything else ends the session.
$node->safe_psql(
	'app', q{
	INSERT INTO bookings (id, business_id, slot_id, customer_name, customer_phone, booking_id, status, cancelled_at)
	SELECT md5('booking ' || i)::uuid, md5('business')::uuid, md5('slot ' || i)::uuid, 'Customer', '-', 'CODE-' || i, s,
	       CASE s WHEN 'cancelled' THEN now() END
	  FROM generate_series(1, 100) i,
	       LATERAL (SELECT (ARRAY['pending', 'confirmed', 'cancelled', 'rejected'])[1 + i % 4] AS s) b;
	CREATE FUNCTION act.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
	  RAISE EXCEPTION '% must not change', TG_TABLE_NAME;
	END
	$$;
	CREATE TRIGGER refuse BEFORE UPDATE OR DELETE ON bookings FOR EACH STATEMENT EXECUTE FUNCTION act.refuse();
	CREATE TRIGGER refuse BEFORE UPDATE OR DELETE ON slots FOR EACH STATEMENT EXECUTE FUNCTION act.refuse();

	CREATE TABLE act.outcome (id uuid, event text, ref text, outcome text);
	CREATE FUNCTION act.pay() RETURNS void LANGUAGE plpgsql AS $$
	DECLARE
	  v_id uuid := (SELECT id FROM payments ORDER BY random() LIMIT 1);
	  v_event text := (ARRAY['process', 'verify', 'verify', 'fail', 'expire', 'partial_refund', 'partial_refund',
	                         'partial_refund', 'refund'])[1 + floor(random() * 9)];
	  v_ref text := CASE WHEN v_event LIKE '%refund' AND random() < 0.6 THEN 'r' || floor(random() * 5) END;
	  v_amount bigint := CASE v_event WHEN 'partial_refund' THEN 1 + floor(random() * 4) * 150 END;
	  v_known boolean := random() < 0.3;
	  v_outcome text;
	BEGIN
	  BEGIN
	    SELECT CASE WHEN changed THEN 'changed' ELSE 'same' END INTO v_outcome
	      FROM cusown_payment_transition(v_id, v_event, refund_amount => v_amount, refund_ref => v_ref,
	             reason => CASE WHEN v_known THEN 'found' END, provider_ref => CASE WHEN v_known THEN 'pay_' || v_id END);
	  EXCEPTION WHEN SQLSTATE 'UO003' OR SQLSTATE 'UO008' THEN
	    v_outcome := SQLSTATE;
	  END;
	  INSERT INTO act.outcome VALUES (v_id, v_event, v_ref, v_outcome);
	END
	$$;
	CREATE TABLE act.begun (id uuid, status payment_status);
	CREATE FUNCTION act.begin_payment() RETURNS void LANGUAGE sql AS $$
	  WITH begun AS (INSERT INTO payments (booking_id, provider, provider_payment_id, amount_cents, status, expires_at)
	  SELECT md5('booking ' || 1 + floor(random() * 100))::uuid, 'upi', 'pending-1', 1000,
	         (ARRAY['initiated', 'initiated', 'pending', 'processing'])[1 + floor(random() * 4)]::payment_status,
	         now() + random() * interval '4 seconds' RETURNING id, status)
	  INSERT INTO act.begun TABLE begun
	$$;
	SELECT act.begin_payment() FROM generate_series(1, 300);
	GRANT USAGE ON SCHEMA act TO decides;
	GRANT INSERT ON act.outcome, act.begun TO decides;
	GRANT INSERT ON payments TO decides;
});

my $untouched = q{SELECT md5(string_agg(x, '|' ORDER BY x)) FROM (
	SELECT concat_ws(' ', b.xmin, b.ctid, b.*) FROM bookings b
	UNION ALL SELECT concat_ws(' ', s.xmin, s.ctid, s.*) FROM slots s) u (x)};
my $before = $node->safe_psql('app', $untouched);

append_to_file("$dir/pay.sql", "SELECT act.pay();\n");
append_to_file("$dir/begin.sql", "SELECT act.begin_payment();\n");
append_to_file("$dir/expire.sql", "SELECT * FROM cusown_expire_payments();\n\\sleep 50 ms\n");
my $bench = start_pgbench($node, 'app', 'decides', $seconds, 8,
	'-f', "$dir/pay.sql\@94", '-f', "$dir/begin.sql\@3", '-f', "$dir/expire.sql\@3");
$bench->{run}->finish;
is($bench->{run}->result(0), 0, 'the sessions ran to their end');
note $bench->{out}, $bench->{err};

# ---------- what happened ----------

sub empty
{
	my ($query, $name) = @_;

	is($node->safe_psql('app', "SELECT * FROM ($query) q LIMIT 5"), '', $name);
	return;
}

note $node->safe_psql('app', 'SELECT from_status, to_status, count(*) FROM payment_audit_logs GROUP BY 1, 2 ORDER BY 3');
note $node->safe_psql('app', 'SELECT outcome, count(*) FROM act.outcome GROUP BY 1 ORDER BY 1');
cmp_ok($node->safe_psql('app', "SELECT count(*) FROM payment_audit_logs WHERE to_status = '$_'"), '>', $seconds / 5, "many became $_")
  foreach qw(processing completed failed expired partially_refunded refunded);
cmp_ok($node->safe_psql('app', "SELECT count(*) FROM act.outcome WHERE outcome = '$_'"), '>', $seconds / 5, "many ended in $_")
  foreach qw(changed same UO003 UO008);
cmp_ok($node->safe_psql('app', q{SELECT count(*) FROM payment_audit_logs WHERE metadata->>'rule' = 'expires_at'}),
	'>', $seconds / 5, 'many expired by the clock');

$node->safe_psql(
	'app', q{
	CREATE VIEW act.trail AS
	SELECT b.id, b.status AS begun, l.from_status, l.to_status, l.metadata->>'event' AS event,
	       coalesce(lag(l.to_status) OVER w, b.status) AS stood, lead(l.to_status) OVER w IS NULL AS is_last
	  FROM act.begun b JOIN payment_audit_logs l ON l.payment_id = b.id WINDOW w AS (PARTITION BY b.id ORDER BY l.created_at)});
empty('SELECT * FROM act.trail WHERE stood IS DISTINCT FROM from_status', 'each step of a trail begins where the last one led, the first where the payment began');
empty(q{SELECT p.id FROM payments p LEFT JOIN act.begun b ON b.id = p.id LEFT JOIN act.trail r ON r.id = p.id AND r.is_last
         WHERE p.status IS DISTINCT FROM coalesce(r.to_status, b.status)},
	'a trail, replayed, gives the status');
empty(q{SELECT r.* FROM act.trail r LEFT JOIN cusown_ops.state_machine m ON m.machine = 'payment'
           AND (m.from_status, m.event, m.to_status) = (r.from_status::text, r.event, r.to_status::text)
         WHERE m.machine IS NULL}, 'each step is one of the state machine');
empty(q{(SELECT id, from_status::text, to_status::text FROM act.trail
         EXCEPT ALL SELECT entity_id, from_status, to_status FROM cusown_ops.change)
        UNION ALL (SELECT entity_id, from_status, to_status FROM cusown_ops.change
         EXCEPT ALL SELECT id, from_status::text, to_status::text FROM act.trail)}, 'each step is in the change feed, and nothing else is');
empty(q{(SELECT id, to_status::text FROM act.trail WHERE to_status NOT IN ('processing', 'expired')
         EXCEPT ALL SELECT entity_id, new_data->>'status' FROM audit_logs WHERE entity_type = 'payment')
        UNION ALL (SELECT entity_id, new_data->>'status' FROM audit_logs WHERE entity_type = 'payment'
         EXCEPT ALL SELECT id, to_status::text FROM act.trail WHERE to_status NOT IN ('processing', 'expired'))},
	'and in the audit trail, but for what that has no action for');

empty('SELECT id FROM payments WHERE refund_amount_cents > amount_cents', 'no refund exceeds its payment');
empty(q{SELECT id FROM payments WHERE CASE status WHEN 'refunded' THEN refund_amount_cents <> amount_cents
          WHEN 'partially_refunded' THEN refund_amount_cents NOT BETWEEN 1 AND amount_cents - 1
          ELSE refund_amount_cents <> 0 END}, 'the status says how much was refunded');
empty(q{SELECT p.id FROM payments p WHERE refund_amount_cents <>
          (SELECT coalesce(greatest(sum(amount) FILTER (WHERE refund_ref <> ''), max(amount) FILTER (WHERE refund_ref = '')), 0)
             FROM cusown_ops.payment_refund r WHERE r.payment_id = p.id)},
	'the refunds that are remembered tell it');
empty(q{SELECT id, ref FROM act.outcome WHERE outcome = 'changed' AND ref IS NOT NULL GROUP BY 1, 2 HAVING count(*) > 1},
	'no reference has counted twice');
empty(q{(SELECT entity_id FROM cusown_ops.attention WHERE kind = 'paid_cancelled' AND closed_at IS NULL
         EXCEPT SELECT p.id FROM payments p JOIN bookings b ON b.id = p.booking_id
          WHERE p.status = 'completed' AND b.status IN ('cancelled', 'rejected'))
        UNION ALL (SELECT p.id FROM payments p JOIN bookings b ON b.id = p.booking_id
          WHERE p.status = 'completed' AND b.status IN ('cancelled', 'rejected')
         EXCEPT SELECT entity_id FROM cusown_ops.attention WHERE kind = 'paid_cancelled' AND closed_at IS NULL)},
	'what is paid for nothing is on the worklist, and nothing else');
is($node->safe_psql('app', $untouched), $before, 'no booking and no slot was touched');
unlike(slurp_file($node->logfile), qr/(?:ERROR|WARNING|FATAL|PANIC):|TRAP:|terminated by signal/, 'the server has nothing to complain of');

my $reports = q{SELECT cusown_load_statement_csv('upi', 'generic', E'provider_ref,status,amount,currency,at,email\nu1,captured,12.5,INR,1,asha@example.com');
	SELECT cusown_load_statement('upi', 'generic', '[{"provider_ref": "u1", "email": "asha@example.com"}]');
	SELECT cusown_load_statement_csv('upi', 'email\nasha@example.com', 'generic');
	SELECT cusown_load_statement(NULL, 'generic', '[{"email": "asha@example.com"}]');};
is(scalar(() = ($node->psql('app', $reports, on_error_stop => 0))[2] =~ /ERROR:/g), 4, 'malformed reports are refused');
unlike(slurp_file($node->logfile), qr/asha/, 'and not written to the log');

# a secret, in a statement and as a parameter
my $secrets = q{SELECT count(*) FROM cusown_set_webhook_secret('', 'asha');
	SELECT count(*) FROM cusown_set_webhook_secret('upi', 'asha', overlap => '-1 s');
	SELECT cusown_verify_signature('paypal', 'asha', '', '{}');
	SELECT cusown_verify_signature('standard', 'whsec_asha_', '', '{}');
	SELECT cusown_ops.verify_signature_with_stored_secret('app', 'upi', 'paypal', 'asha', '{}')};
is(scalar(() = ($node->psql('app', $secrets, on_error_stop => 0))[2] =~ /ERROR:/g), 5, 'secrets are refused');
open(my $script, '>', "$dir/parameters.sql") or die;
print $script q{SELECT cusown_verify_signature('paypal', convert_to(:secret, 'UTF8'), '', '{}');
};
close($script);
$node->command_fails_like(
	[ 'env', 'PGOPTIONS=-c log_parameter_max_length_on_error=-1', 'pgbench', '-n', '-t', '1', '-M', 'extended', '-D', 'secret=asha', '-f', "$dir/parameters.sql", 'app' ],
	qr/unknown signature scheme/, 'also one that is a parameter');
unlike(slurp_file($node->logfile), qr/asha/, 'and are not written to the log');

$node->stop;
done_testing();
