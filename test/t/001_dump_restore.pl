# What a user has set up and found survives dump and restore, and an
# application that the extension leaves is as it was before it came.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Application;
use Digest::SHA qw(hmac_sha256_hex);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main', [ allows_streaming => 'logical' ]);

# A dump without the key that psql is locked with, which differs each time.
sub dump_of
{
	my ($database, @options) = @_;
	my $file = "$PostgreSQL::Test::Utils::tmp_check/dump_of_$database.sql";
	my $dump;

	$node->command_ok([ 'pg_dump', @options, '-f', $file, $database ],
		"database $database is dumped with @options");
	$dump = slurp_file($file);
	$dump =~ s/^\\(un)?restrict .*$//mg;
	return $dump;
}

# The first line in which two dumps differ.
sub difference
{
	my ($got, $wanted) = map { [ split /\n/ ] } @_;

	while (@$got && @$wanted && $got->[0] eq $wanted->[0])
	{
		shift @$got;
		shift @$wanted;
	}
	return 'none' if !@$got && !@$wanted;
	return ($got->[0] // 'end') . "\ninstead of\n" . ($wanted->[0] // 'end');
}

# ---------- create and drop leave nothing behind ----------

$node->safe_psql('postgres', 'CREATE DATABASE leaving');
$node->safe_psql('postgres', 'CREATE ROLE keeper; CREATE ROLE watcher');
$node->safe_psql('leaving',
	include('cusown_app.sql') . include('sample_week.sql'));
my $schema_before = dump_of('leaving', '-s');
my $tables_before = dump_of('leaving', '-s', '-t', 'public.*');
my $all_before = dump_of('leaving');

$node->safe_psql(
	'leaving', q{
	CREATE EXTENSION cusown_ops;
	SELECT count(*) FROM cusown_attach();
	SELECT cusown_grant('keeper', 'operator'), cusown_grant('watcher', 'monitor');
	SELECT cusown_expire_bookings(dry_run => true);
	SELECT count(*) FROM cusown_due_bookings();
	DROP EXTENSION cusown_ops;
});
is(difference(dump_of('leaving'), $all_before), 'none',
	'created, tried and dropped, it leaves schema and data byte by byte as they were'
);

$node->safe_psql(
	'leaving', q{
	CREATE EXTENSION cusown_ops;
	SELECT count(*) FROM cusown_attach();
	SELECT cusown_guard('functions');
	SELECT cusown_detach();
});
is(difference(dump_of('leaving', '-s', '-t', 'public.*'), $tables_before),
	'none', 'guarded and detached, an application has the tables that it had');
$node->safe_psql(
	'leaving', q{
	SELECT count(*) FROM cusown_attach();
	SELECT cusown_guard('functions');
	SELECT cusown_expire_bookings();
	DROP EXTENSION cusown_ops;
});
is(difference(dump_of('leaving', '-s'), $schema_before),
	'none', 'used in earnest it leaves the schema as it was');
is( $node->safe_psql(
		'leaving',
		q{SELECT count(*) FROM bookings WHERE cancelled_by = 'system'}),
	'50',
	'and what it has done stays done');
is( $node->safe_psql(
		'leaving', q{SELECT count(*) FROM pg_namespace WHERE nspname = 'cusown_ops'}
	),
	'0',
	'its own schema is gone');

# ---------- a database that is in use ----------

make_database($node, 'source');
attach_minimal($node, 'source', q{jsonb_set(%s, '{payments}', 'null')});
grow_old($node, 'source');

# a refund that has a reference
my $refund = q{SELECT changed FROM cusown_payment_transition(
	(SELECT p.id FROM payments p JOIN bookings b ON b.id = p.booking_id
	  WHERE b.status = 'confirmed' AND (p.status = 'completed' OR p.refund_reason = 'the first one')
	  ORDER BY p.refund_reason, p.id LIMIT 1),
	'partial_refund', reason => 'the first one', refund_amount => 100, refund_ref => 'r1')};

# a request that was carried out
$node->safe_psql(
	'source', q{
	SET cusown_ops.app_schema = 'public';
	SELECT cusown_idempotency_complete('booking', 'k', token, '{"id": 7}')
	  FROM cusown_idempotency_begin('booking', 'k', '{"price": 1.50}')});

# A webhook of a payment that is not there yet, as the provider sends it.
sub webhook
{
	my ($event_id) = @_;
	my $body = '{"event": "payment.captured", "payload": {"payment": {"entity": {"id": "pay_early", "amount": 100}}}}';

	$body .= " " x $event_id;
	return "SET cusown_ops.app_schema = 'public'; SELECT outcome, inbox_id FROM cusown_webhook('razorpay', '$body', "
	  . "'{\"x-razorpay-event-id\": \"$event_id\", \"x-razorpay-signature\": \"" . hmac_sha256_hex($body, '123456') . "\"}')";
}

# Some are expired, others are left for the restored database; one entry of
# the worklist is closed by hand, one is kept back.
$node->safe_psql(
	'source', qq{
	SET cusown_ops.app_schema = 'public';
	$refund});
$node->safe_psql(
	'source', q{
	SET cusown_ops.app_schema = 'public';
	SELECT cusown_expire_bookings(max_rows => 30);
	SELECT cusown_attention_resolve(min(id), 'Called the customer') FROM cusown_ops.attention;
	UPDATE cusown_ops.attention SET times = 3, next_try = now() + interval '20 min'
	 WHERE id = (SELECT max(id) FROM cusown_ops.attention);
	INSERT INTO cusown_ops.attention
	  (app_schema, kind, entity, entity_id, runbook, finding, next_try)
	VALUES ('shop', 'paid_pending', 'booking', gen_random_uuid(), 'payment_mismatch',
	        E'a finding\twith \\ and "quotes"', now());
	SELECT count(*) FROM cusown_set_webhook_secret('razorpay', 'another', '2026-01-01');
	SELECT count(*) FROM cusown_set_webhook_secret('razorpay', '123456', overlap => '100 years');
	INSERT INTO cusown_ops.state_transition VALUES
	  ('public', 'booking', 'confirmed', 'expire', 'cancelled'),
	  ('shop', 'slot', 'booked', 'block', 'reserved');
	INSERT INTO cusown_ops.webhook_provider VALUES ('public', 'cash', 'standard', '$.kind', NULL, 'webhook-id');
	INSERT INTO cusown_ops.webhook_event (app_schema, provider, event_type, event, payment_ids)
	VALUES ('public', 'cash', 'paid', 'verify', '{$.for,$.notes.*}');
	-- a name that attach did not bind, set by hand
	ALTER TABLE shop.reservation ADD COLUMN why text;
	INSERT INTO cusown_ops.binding VALUES ('shop', 'bookings', 'cancellation_reason', NULL, 'why');
	SELECT cusown_grant('keeper', 'operator'), cusown_grant('watcher', 'monitor');
	SELECT cusown_guard('functions', 'public'), cusown_guard('warn', 'shop');
	RESET cusown_ops.app_schema;
	SELECT count(*) FROM cusown_evaluate_alerts();
});

is($node->safe_psql('source', webhook(1) . ';' . webhook(2)), "parked|1\nparked|2", 'two webhooks come too early');
$node->safe_psql('source', q{SET cusown_ops.app_schema = 'public'; SELECT cusown_webhook('razorpay', 'forged', '{}')});

# what a run would do next
my $answer = $node->safe_psql('source',
	q{SET cusown_ops.app_schema = 'public'; SELECT cusown_expire_bookings(dry_run => true)}
);
# What is dumped of our own tables: all but the changes, whose order is that
# of this database's transactions, and the webhooks that were refused.
sub dumped_state
{
	my ($database) = @_;

	return join("\n",
		grep { !/^cusown_ops\.(?:change|webhook_rejected)/ } split(/\n/,
			state_of($node, $database, 'cusown_ops')));
}

my $own = dumped_state('source');
my $app = state_of($node, 'source', 'public');
my $due = $node->safe_psql('source',
	q{SET cusown_ops.app_schema = 'public'; SELECT * FROM cusown_due_bookings()}
);
my $largest =
  $node->safe_psql('source', 'SELECT max(id) FROM cusown_ops.attention');
my $rights_query = q{
	SELECT c.oid::regclass::text, c.relacl FROM pg_class c
	 WHERE relnamespace = 'cusown_ops'::regnamespace AND relkind IN ('r', 'v', 'S')
	UNION ALL
	SELECT p.oid::regprocedure::text, p.proacl FROM pg_proc p
	 WHERE proname LIKE 'cusown%' OR pronamespace = 'cusown_ops'::regnamespace
	UNION ALL
	SELECT nspname, nspacl FROM pg_namespace WHERE nspname = 'cusown_ops'
	 ORDER BY 1};
my $rights = $node->safe_psql('source', $rights_query);
# without the minimal application, one CHECK of which the server writes
# differently after each restore
my $schema = dump_of('source', '-s', '-N', 'shop');

is( $node->safe_psql('source',
		q{SELECT (SELECT count(*) > 0 FROM cusown_ops.state_transition)
			AND (SELECT count(*) = 1 FROM cusown_ops.payment_refund)
			AND (SELECT count(*) = 2 FROM cusown_ops.webhook_secret)
			AND (SELECT count(*) = 2 FROM cusown_ops.webhook_inbox)
			AND (SELECT count(*) = 2 FROM cusown_ops.webhook_body)
			AND (SELECT count(*) = 1 FROM cusown_ops.webhook_rejected)
			AND (SELECT count(DISTINCT app_schema) = 2 FROM cusown_ops.binding)
			AND (SELECT count(DISTINCT app_schema) = 2 FROM cusown_ops.attention)
			AND (SELECT count(*) = 2 FROM cusown_ops.alert WHERE symptom = 'job_late')
			AND (SELECT count(*) > 0 FROM cusown_ops.attention WHERE closed_at IS NOT NULL)}),
	't',
	'there is something of each kind to lose');
like($rights, qr/keeper/, 'rights among it');
is(scalar(split /\n/, $due), 21, 'and 21 bookings are still due');
like($answer, qr/^\(10,\d+,\d+,f\)$/, '10 of which can expire');

# ---------- restored ----------

my $file = "$PostgreSQL::Test::Utils::tmp_check/source";

$node->command_ok([ 'pg_dump', '-Fc', '-f', "$file.custom", 'source' ],
	'the database is dumped in custom format');
$node->command_ok([ 'pg_dump', '-f', "$file.sql", 'source' ],
	'the database is dumped as SQL');
$node->safe_psql('postgres', "CREATE DATABASE $_")
  foreach qw(from_custom from_sql);
$node->command_ok(
	[ 'pg_restore', '--exit-on-error', '-d', 'from_custom', "$file.custom" ],
	'the custom format is restored');
$node->command_ok(
	[
		'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-d', 'from_sql', '-f',
		"$file.sql"
	],
	'the SQL is restored');

foreach my $database (qw(from_custom from_sql))
{
	is($node->safe_psql($database, 'SELECT count(*) FROM cusown_ops.change'),
		'0', "$database: changes, which mean nothing elsewhere, are not");
	is(dumped_state($database),
		$own, "$database: binding, worklist and transitions are all there");
	is(state_of($node, $database, 'public'),
		$app, "$database: so is the application");
	is($node->safe_psql($database, $rights_query),
		$rights, "$database: so are the rights on our objects");
	is(difference(dump_of($database, '-s', '-N', 'shop'), $schema),
		'none', "$database: it dumps as the source does");

	is( $node->safe_psql($database,
			q{SET cusown_ops.app_schema = 'public'; SELECT * FROM cusown_due_bookings()}
		),
		$due,
		"$database: what is due is reported without attaching again");
	is( $node->safe_psql($database,
			q{SET cusown_ops.app_schema = 'public'; SELECT cusown_expire_bookings()}
		),
		$answer,
		"$database: expiry goes on where it was");
	is($node->safe_psql($database, 'SELECT count(*) FROM verify_audit_chain()'),
		'0', "$database: in the same audit chain");

	is($node->safe_psql($database, qq{SET cusown_ops.app_schema = 'public'; $refund}),
		'f', "$database: a refund that was told before does not count again");

	is( $node->safe_psql($database,
			q{SET cusown_ops.app_schema = 'public';
			  SELECT state, response FROM cusown_idempotency_begin('booking', 'k', '{"price": 1.5}')}),
		'replay|{"id": 7}', "$database: a request that was carried out is not carried out again");
	# Razorpay's own example
	is( $node->safe_psql($database,
			q{SELECT cusown_ops.verify_signature_with_stored_secret('public', 'razorpay', 'razorpay', '{"a":1,"b":2,"c":{"d":3}}',
			  '{"x-razorpay-signature": "2fe04e22977002e6c7cb553adab8b460cb9e2a4970d5953cb27a8472752e3bbc"}')}),
		't', "$database: a request is known by a secret that was set before");

	is($node->safe_psql($database, webhook(1) . ';' . webhook(3)), "parked|1\nparked|3",
		"$database: a webhook that came before is the same, and the next has the next number");
	is($node->safe_psql($database, 'SELECT count(*) FROM cusown_ops.webhook_rejected'),
		'0', "$database: what was refused is not there");

	# the first booking that was in flight is paid now
	is( $node->safe_psql($database,
			q{SET cusown_ops.app_schema = 'public';
			  SELECT to_status FROM cusown_payment_transition(md5('payment due_paying 1')::uuid, 'verify');
			  SELECT cusown_expire_bookings()}),
		"completed\n(0,0,1,f)",
		"$database: a new entry can be put on the worklist");
	is( $node->safe_psql($database,
			"SELECT count(*) FILTER (WHERE id > $largest) FROM cusown_ops.attention
			  WHERE entity_id = md5('booking due_paying 1')::uuid"
		),
		'1',
		"$database: with an id behind the largest one");
	is( $node->safe_psql($database,
			q{SELECT count(*) FROM cusown_evaluate_alerts();
			  SELECT app_schema, times FROM cusown_ops.alert WHERE symptom = 'job_late' ORDER BY 1}),
		"2\npublic|2\nshop|2", "$database: what fired before goes on as the same alert");
	is( $node->safe_psql($database,
			q{WITH new AS (INSERT INTO cusown_ops.alert (app_schema, symptom, runbook, severity)
			               VALUES ('public', 'a test', 'a test', 'warning') RETURNING id)
			  SELECT n.id > max(a.id) FROM new n, cusown_ops.alert a GROUP BY n.id}),
		't', "$database: and the next one has an id of its own");
	is( $node->safe_psql($database,
			q{INSERT INTO shop.time_slot (ref, state) VALUES (md5('s')::uuid, 'booked');
			  INSERT INTO shop.reservation (ref, state, slot_ref, made_at)
			  VALUES (md5('b')::uuid, 'pending', md5('s')::uuid, now() - interval '25 h');
			  SET cusown_ops.app_schema = 'shop';
			  SELECT cusown_expire_bookings();
			  SELECT state, why FROM shop.reservation}),
		"(1,1,0,f)\ncancelled|expired",
		"$database: the other application goes on with its own binding");

	# the guard
	like(
		error_of($node, $database, q{UPDATE bookings SET status = 'confirmed' WHERE status = 'pending'}),
		qr/^UO007 /, "$database: a booking is still confirmed by our functions only");
	is( $node->safe_psql($database,
			q{SELECT application, guard FROM cusown_guard(app_schema => 'public')
			  UNION ALL SELECT application, guard FROM cusown_guard(app_schema => 'shop')}),
		"public|functions\npublic|functions\nshop|warn", "$database: bookings and payments, in the mode of each application");
	is( $node->safe_psql($database,
			q{DROP EXTENSION cusown_ops;
			  SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'cusown%'}),
		'0', "$database: the extension is dropped without CASCADE and takes it along");
}

# who may read all tables has no secret in a dump
$node->safe_psql('postgres', 'CREATE ROLE reader LOGIN IN ROLE pg_read_all_data');
$node->command_fails_like(
	[ 'pg_dump', '-U', 'reader', '-f', "$file.read", 'source' ],
	qr/query would be affected by row-level security policy for table "webhook_secret"/,
	'who may read all tables must say that secrets are left out');
$node->command_ok(
	[ 'pg_dump', '-U', 'reader', '--enable-row-security', '-f', "$file.read", 'source' ],
	'and then can dump the rest');
unlike(slurp_file("$file.read"), qr/\\\\x616e6f74686572/, 'without a secret');
like(slurp_file("$file.sql"), qr/\\\\x616e6f74686572/, 'which the owner\'s dump has');

# ---------- a plain owner's guarded tables, whole and their data only ----------

$node->safe_psql('postgres',
	'CREATE ROLE holder LOGIN; CREATE DATABASE owned; CREATE DATABASE elsewhere');
foreach my $database (qw(owned elsewhere))
{
	$node->safe_psql($database,
		qq{CREATE EXTENSION cusown_ops; GRANT CREATE ON DATABASE $database TO holder});
}
$node->safe_psql('owned',
	"SET ROLE holder;\n" . include('app_minimal.sql') . q{
	RESET ROLE;
	SELECT count(*) FROM cusown_attach('shop', :'minimal_mapping');
	SELECT cusown_grant('holder', 'operator') \gexec
	INSERT INTO shop.time_slot (ref, state) SELECT md5('s' || n)::uuid, 'booked' FROM generate_series(1, 4) n;
	INSERT INTO shop.reservation (ref, state, slot_ref)
	SELECT md5('b' || n)::uuid, CASE WHEN n < 3 THEN 'confirmed' ELSE 'pending' END, md5('s' || n)::uuid
	  FROM generate_series(1, 4) n;
	SET ROLE holder;
	SELECT cusown_guard('functions');
});
my $bookings = q{SELECT ref, state FROM shop.reservation ORDER BY ref};
my $held = $node->safe_psql('owned', $bookings);
my @as_holder = ('-U', 'holder');
my @restore = ('pg_restore', '--exit-on-error');

$node->command_ok(
	[ 'pg_dump', @as_holder, '-Fc', '-n', 'shop', '-f', "$file.shop", 'owned' ],
	'a plain owner dumps the guarded tables');
$node->command_fails_like(
	[ @restore, @as_holder, '-1', '-d', 'elsewhere', "$file.shop" ],
	qr/permission denied for schema cusown_ops/,
	'who may not use the guard cannot restore it');
$node->safe_psql('elsewhere', q{SELECT cusown_grant('holder', 'operator')});
$node->command_ok(
	[ @restore, @as_holder, '-1', '-d', 'elsewhere', "$file.shop" ],
	'with the profile operator a plain owner can');
is($node->safe_psql('elsewhere', $bookings),
	$held, 'confirmed bookings come before the guard');
like(
	error_of($node, 'elsewhere', q{UPDATE shop.reservation SET state = 'confirmed' WHERE state = 'pending'}),
	qr/^UO007 /, 'which is on, whether or not the application is attached');

my @data_only = (@restore, '--data-only', '-1', '-t', 'reservation');
my $empty = q{TRUNCATE shop.reservation CASCADE};

$node->safe_psql('owned', $empty);
$node->command_fails_like(
	[ @data_only, '-d', 'owned', "$file.shop" ],
	qr/must not become confirmed by this statement/,
	'confirmed bookings are not restored past a guard');
$node->command_ok(
	[ @data_only, '--disable-triggers', '-d', 'owned', "$file.shop" ],
	'a superuser restores them with --disable-triggers');
is($node->safe_psql('owned', $bookings), $held, 'they are all there');
$node->safe_psql('owned', $empty);
$node->safe_psql('owned', q{SET ROLE holder; SELECT cusown_guard('off')});
$node->command_ok(
	[ @data_only, @as_holder, '-d', 'owned', "$file.shop" ],
	'a plain owner restores them with the guard off');
$node->safe_psql('owned', q{SET ROLE holder; SELECT cusown_guard('functions')});
is($node->safe_psql('owned', $bookings), $held, 'they are all there again');

# ---------- a subscription ----------

$node->safe_psql('owned',
	q{CREATE PUBLICATION shop FOR TABLE shop.reservation;
	  SELECT pg_create_logical_replication_slot('shop', 'pgoutput')});
my $publisher = $node->connstr('owned');
$node->safe_psql('elsewhere',
	"CREATE SUBSCRIPTION shop CONNECTION \$\$$publisher\$\$ PUBLICATION shop
	 WITH (copy_data = false, create_slot = false)");
$node->safe_psql('owned', q{SELECT cusown_confirm_booking(md5('b3')::uuid)});
$node->wait_for_catchup('shop');
is( $node->safe_psql('elsewhere',
		q{SELECT state FROM shop.reservation WHERE ref = md5('b3')::uuid}),
	'confirmed',
	'a guarded subscriber takes what its publisher let pass');
$node->safe_psql('elsewhere', 'DROP SUBSCRIPTION shop');

$node->stop;
done_testing();
