# The bytes of a webhook: databases that have not each character of a body answer
# all the same, and no body is written to the server's log.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Application;
use Digest::SHA qw(hmac_sha256_hex);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main', [], 'log_statement = none', 'log_parameter_max_length_on_error = -1');

# The statement that brings a signed capture of payment N, whoever pays being $name.
sub delivery
{
	my ($number, $name) = @_;
	my $body = qq({"event": "payment.captured", "payload": {"payment": {"entity": {"id": "pay_$number", "amount": 1000, )
	  . qq("currency": "INR", "email": "asha\@example.com", "notes": {"name": "$name"}}}}});

	return "SELECT outcome, http_status FROM cusown_webhook('razorpay', '\\x" . unpack('H*', $body)
	  . "', '{\"x-razorpay-signature\": \"" . hmac_sha256_hex($body, 'secret') . "\"}')";
}

foreach my $encoding (qw(UTF8 LATIN1 SQL_ASCII))
{
	my $database = lc $encoding;
	my ($applied, $rejected) = ('applied|200', 'rejected|400');

	$node->safe_psql('postgres', "CREATE DATABASE $database ENCODING '$encoding' TEMPLATE template0");
	$node->safe_psql($database, include('cusown_app.sql') . q{
		CREATE EXTENSION cusown_ops;
		SELECT count(*) FROM cusown_attach();
		SELECT count(*) FROM cusown_set_webhook_secret('razorpay', 'secret');
		INSERT INTO businesses (id, salon_name, owner_name, whatsapp_number, opening_time, closing_time, slot_duration, booking_link)
		VALUES (md5('b')::uuid, 'Salon', 'Owner', '-', '09:00', '18:00', 30, 'salon');
		INSERT INTO slots (id, business_id, date, start_time, end_time)
		VALUES (md5('s')::uuid, md5('b')::uuid, '2040-01-01', '09:00', '09:30');
		INSERT INTO bookings (id, business_id, slot_id, customer_name, customer_phone, booking_id)
		VALUES (md5('k')::uuid, md5('b')::uuid, md5('s')::uuid, 'Customer', '-', 'CODE');
		INSERT INTO payments (booking_id, provider, provider_payment_id, amount_cents, status)
		SELECT md5('k')::uuid, 'razorpay', 'pay_' || n, 1000, 'processing' FROM generate_series(1, 9) n});
	is($node->safe_psql($database, delivery(1, 'Ravi')), $applied, "$encoding: a webhook is applied");
	is($node->safe_psql($database, delivery(2, "\xe0\xa4\xb6")), $encoding eq 'LATIN1' ? $rejected : $applied,
		"$encoding: also with characters that it has");
	is($node->safe_psql($database, delivery(3, '\u0936')), $encoding eq 'UTF8' ? $applied : $rejected,
		"$encoding: and as escapes");
	is($node->safe_psql($database, delivery(4, "\xff")), $rejected, "$encoding: what is not UTF-8 is rejected");
	is($node->safe_psql($database, delivery(2, 'Ravi')), 'ignored|200', "$encoding: without them it is")
	  if $encoding eq 'UTF8';
}

# what fails inside, and in the parser
$node->safe_psql('utf8', q{
	CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'not today'; END $$;
	CREATE TRIGGER refuse BEFORE UPDATE ON payments FOR EACH ROW EXECUTE FUNCTION refuse()});
like(($node->psql('utf8', delivery(5, 'Ravi')))[2], qr/not today/, 'what the application refuses is an error');
my $script = "$PostgreSQL::Test::Utils::tmp_check/webhook.sql";
append_to_file($script, "SELECT cusown_webhook('razorpay', convert_to(:body, 'UTF8'), (:headers)::jsonb);\n");
my $body = '{"event":"payment.captured","payload":{"payment":{"entity":{"id":"pay_5","amount":1000,"email":"asha-example-com"}}}}';
$node->command_fails_like(
	[ 'env', 'PGOPTIONS=-c log_parameter_max_length_on_error=-1', 'pgbench', '-n', '-t', '1', '-M', 'extended',
		'-D', "body=$body", '-D', 'headers={"x-razorpay-signature":"' . hmac_sha256_hex($body, 'secret') . '"}',
		'-f', $script, 'utf8' ],
	qr/not today/, 'also with parameters');
is($node->safe_psql('utf8', q{SELECT count(*) FROM cusown_ops.webhook_inbox WHERE provider_ref = 'pay_5'}),
	'0', 'and nothing is kept');
like(slurp_file($node->logfile), qr/not today/, 'the server logs what was refused');
unlike(slurp_file($node->logfile), qr/asha|61736861|PANIC:|TRAP:/, 'without the body');

$node->stop;
done_testing();
