-- Shows whose signature a request bears: the schemes by their published vectors, what
-- is done with headers that are none, and the secrets that are kept, which nobody sees.
\set ON_ERROR_STOP 0
\set SHOW_CONTEXT never
\getenv abs_srcdir PG_ABS_SRCDIR
\set app :abs_srcdir '/test/fixture/cusown_app.sql'
\set minimal :abs_srcdir '/test/fixture/app_minimal.sql'
SET client_min_messages = warning;
CREATE EXTENSION cusown_ops;

-- Published vectors.  Of RFC 4231, HMAC-SHA256, those that are not truncated.
SELECT n, cusown_verify_signature('razorpay', decode(key, 'hex'), decode(data, 'hex'), jsonb_build_object('X-Razorpay-Signature', hmac)) AS razorpay,
       cusown_verify_signature('upi', decode(key, 'hex'), decode(data, 'hex'), jsonb_build_object('x-upi-signature', upper(hmac))) AS upi,
       cusown_verify_signature('upi', decode(key, 'hex'), decode(data, 'hex') || '\x00', jsonb_build_object('x-upi-signature', hmac)) AS longer
FROM (VALUES
  (1, repeat('0b', 20), '4869205468657265', 'b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7'),
  (2, '4a656665', '7768617420646f2079612077616e7420666f72206e6f7468696e673f', '5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843'),
  (3, repeat('aa', 20), repeat('dd', 50), '773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe'),
  (4, '0102030405060708090a0b0c0d0e0f10111213141516171819', repeat('cd', 50), '82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b'),
  (6, repeat('aa', 131), '54657374205573696e67204c6172676572205468616e20426c6f636b2d53697a65204b6579202d2048617368204b6579204669727374', '60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54'),
  (7, repeat('aa', 131), '5468697320697320612074657374207573696e672061206c6172676572207468616e20626c6f636b2d73697a65206b657920616e642061206c6172676572207468616e20626c6f636b2d73697a6520646174612e20546865206b6579206e6565647320746f20626520686173686564206265666f7265206265696e6720757365642062792074686520484d414320616c676f726974686d2e', '9b09ffa71b942fcb27635fbcd5b0e944bfdc63644f0713938a7f51535c3a35e2')
) v (n, key, data, hmac);
-- Razorpay's, from the tests of its library for Node
SELECT cusown_verify_signature('razorpay', '123456', '{"a":1,"b":2,"c":{"d":3}}',
  '{"x-razorpay-signature": "2fe04e22977002e6c7cb553adab8b460cb9e2a4970d5953cb27a8472752e3bbc"}');
SELECT cusown_verify_signature('razorpay', '123456', '{"a":1,"b":2,"c":{"d":3}}', '{"x-razorpay-signature": "sdfafds"}');
-- Stripe's, from the tests of its library for .NET
\set stripe_body '{\n  "id": "evt_123",\n  "object": "event",\n  "account": "acct_123",\n  "api_version": "2017-05-25",\n  "created": 1533204620,\n  "data": {\n    "object": {\n      "id": "cus_123",\n      "object": "customer",\n      "created": 123456789,\n      "email": "test@stripe.com",\n      "livemode": false,\n      "metadata": {}\n    }\n  },\n  "livemode": false,\n  "pending_webhooks": 1,\n  "request": {\n    "id": "req_123",\n    "idempotency_key": "idempotency-key-123"\n  },\n  "type": "customer.created"\n}\n'
SELECT cusown_verify_signature('stripe', 'webhook_secret', convert_to(:'stripe_body', 'UTF8'),
  '{"Stripe-Signature": "t=1533204620,v1=2220f87ef101a04665f11cdf770523143f875572008577fa0f20882ddb9cc3c7,v0=63f3a72374a733066c4be69ed7f8e5ac85c22c9f0a6a612ab9a025a9e4ee7eef"}',
  to_timestamp(1533204720));
-- that of Standard Webhooks' own libraries
\set whsec whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw
\set standard_body '{"test": 2432232314}'
\set standard_headers '{"webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek", "webhook-timestamp": "1614265330", "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="}'
SELECT cusown_verify_signature('standard', :'whsec', :'standard_body', :'standard_headers', to_timestamp(1614265330)) AS encoded,
       cusown_verify_signature('standard', decode('MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw', 'base64'), :'standard_body', :'standard_headers', to_timestamp(1614265330)) AS raw,
       cusown_verify_signature('standard', 'MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw', :'standard_body', :'standard_headers', to_timestamp(1614265330)) AS text;

-- What follows is signed here: HMAC from its definition, over the server's sha256().
CREATE SCHEMA signature_test;
SET search_path = signature_test, public;
CREATE FUNCTION hmac(key bytea, data bytea) RETURNS bytea LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
  inner_pad bytea := decode(repeat('36', 64), 'hex');
  outer_pad bytea := decode(repeat('5c', 64), 'hex');
BEGIN
  IF length(key) > 64 THEN
    key := sha256(key);
  END IF;
  FOR i IN 0 .. length(key) - 1 LOOP
    inner_pad := set_byte(inner_pad, i, get_byte(key, i) # 54);
    outer_pad := set_byte(outer_pad, i, get_byte(key, i) # 92);
  END LOOP;
  RETURN sha256(outer_pad || sha256(inner_pad || data));
END
$$;
SELECT encode(hmac('Jefe', 'what do ya want for nothing?'), 'hex') = '5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843' AS right;
-- headers of a request signed by a scheme
CREATE FUNCTION sign(scheme text, secret bytea, body bytea, seconds bigint DEFAULT 1700000000) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE scheme
    WHEN 'razorpay' THEN jsonb_build_object('x-razorpay-signature', encode(hmac(secret, body), 'hex'))
    WHEN 'upi' THEN jsonb_build_object('x-upi-signature', encode(hmac(secret, body), 'hex'))
    WHEN 'stripe' THEN jsonb_build_object('stripe-signature', format('t=%s,v1=%s', seconds, encode(hmac(secret, format('%s.', seconds)::bytea || body), 'hex')))
    WHEN 'standard' THEN jsonb_build_object('webhook-id', 'msg_1', 'webhook-timestamp', seconds::text,
      'webhook-signature', 'v1,' || encode(hmac(secret, format('msg_1.%s.', seconds)::bytea || body), 'base64'))
  END
$$;
CREATE FUNCTION is_valid(scheme text, headers jsonb, as_of double precision DEFAULT 1700000000, body bytea DEFAULT 'body', secret bytea DEFAULT 'key', tolerance interval DEFAULT '5 minutes')
RETURNS boolean LANGUAGE sql AS $$
  SELECT public.cusown_verify_signature(scheme, secret, body, headers, to_timestamp(as_of), tolerance)
$$;

-- Any byte is signed, also none; another body, secret, scheme or time is not.
SELECT s AS scheme,
       is_valid(s, sign(s, 'key', 'body')) AS right,
       is_valid(s, sign(s, 'key', ''), body => '') AS empty,
       is_valid(s, sign(s, '\x00ff', '\x00ff0a00'), body => '\x00ff0a00', secret => '\x00ff') AS bytes,
       is_valid(s, sign(s, 'key', 'body'), body => 'Body') AS body,
       is_valid(s, sign(s, 'key', 'body'), secret => 'keys') AS secret,
       (SELECT count(*) FROM unnest('{razorpay,stripe,standard,upi}'::text[]) o WHERE is_valid(o, sign(s, 'key', 'body'))) AS schemes,
       is_valid(s, sign(s, 'key', 'body') || replace(replace(sign(s, 'key', 'other')::text, '1700000000', '1700000001'), 'v1=', 'v0=')::jsonb) AS time
FROM unnest('{razorpay,stripe,standard,upi}'::text[]) s;
SELECT s AS scheme, cusown_verify_signature(s, 'key', 'body', sign(s, 'key', 'body', extract(epoch FROM now())::bigint)) AS now
FROM unnest('{razorpay,stripe,standard,upi}'::text[]) s;

-- The time may be as far as the tolerance, before and after, whatever the session.
CREATE FUNCTION times(scheme text) RETURNS TABLE (at double precision, valid boolean) LANGUAGE sql AS $$
  SELECT at, is_valid(scheme, sign(scheme, 'key', 'body'), 1700000000 + at)
  FROM unnest('{0,0.5,300,300.000001,301,-300,-300.000001,-301,1e9,-1e9}'::float8[]) at
$$;
SELECT at, s.valid AS stripe, t.valid AS standard, r.valid AS razorpay FROM times('stripe') s JOIN times('standard') t USING (at) JOIN times('razorpay') r USING (at);
SET TimeZone = 'America/New_York';
SELECT t AS tolerance, is_valid('stripe', sign('stripe', 'key', 'body', 1699164000), 1699164000 + d, tolerance => t) AS valid
FROM (VALUES (interval '1 day', 86400), ('1 day', 86401), ('24 hours', 86400), ('24 hours', 86401), ('0', 0), ('0', 1), ('1 month', 2592000), ('1 month', 2592001), ('1000 years', -946684800)) v (t, d);
RESET TimeZone;
SELECT a AS as_of, cusown_verify_signature(s, 'key', 'body', sign(s, 'key', 'body'), a) AS valid, s AS scheme
FROM unnest('{infinity,-infinity,294276-12-31,4713-01-01 BC}'::timestamptz[]) a CROSS JOIN unnest('{stripe,standard,upi}'::text[]) s;
SELECT is_valid('stripe', sign('stripe', 'key', 'body', t), t) AS stripe, is_valid('standard', sign('standard', 'key', 'body', t), t) AS standard, t
FROM unnest('{0,1,253402300799,253402300800,-1}'::bigint[]) t;

-- Names in any case, a string or an array of one; whatever else a header is, it is
-- not valid, and no error.
CREATE TABLE shape (what text, edit text);
INSERT INTO shape VALUES
  ('as it is', '{"<n>": "<v>"}'), ('upper case', '{"<N>": "<v>"}'), ('array', '{"<n>": ["<v>"]}'), ('others beside it', '{"<n>": "<v>", "host": ["a", "b"], "n\u0117": 1, "": null}'),
  ('twice', '{"<n>": "<v>", "<N>": "<v>"}'), ('twice, one is null', '{"<n>": "<v>", "<N>": null}'), ('array of two', '{"<n>": ["<v>", "<v>"]}'), ('array of none', '{"<n>": []}'),
  ('array in array', '{"<n>": [["<v>"]]}'), ('object', '{"<n>": {"<n>": "<v>"}}'), ('null', '{"<n>": null}'), ('array of null', '{"<n>": [null]}'), ('number', '{"<n>": 1}'), ('true', '{"<n>": true}'),
  ('empty', '{"<n>": ""}'), ('missing', '{}'), ('deeper', '{"headers": {"<n>": "<v>"}}'), ('name with space', '{"<n> ": "<v>"}'), ('shorter name', '{"<s>": "<v>"}'),
  ('value with space', '{"<n>": " <v>"}'), ('value with line', '{"<n>": "<v>\n"}'), ('value with tab', '{"<n>": "<v>\t"}'), ('value twice', '{"<n>": "<v><v>"}'), ('wide digits', '{"<n>": "\uff11<v>"}'),
  ('array of objects', '[{"<n>": "<v>"}]'), ('text', '"<v>"'), ('JSON null', 'null'), ('number alone', '1');
CREATE FUNCTION edited(edit text, signed jsonb, n text) RETURNS jsonb LANGUAGE sql AS $$
  SELECT CASE WHEN e LIKE '{%' THEN signed - n || e::jsonb ELSE e::jsonb END
  FROM replace(replace(replace(replace(edit, '<N>', upper(n)), '<s>', left(n, -1)), '<n>', n), '<v>', signed ->> n) e
$$;
SELECT what, string_agg(is_valid(s, edited(edit, sign(s, 'key', 'body'), n))::text, ' ' ORDER BY s, n) AS "razorpay, standard: id, signature, time; stripe, upi"
FROM shape CROSS JOIN unnest('{razorpay,stripe,standard,upi}'::text[]) s CROSS JOIN LATERAL jsonb_object_keys(sign(s, 'key', 'body')) n
GROUP BY what ORDER BY 2 DESC, what COLLATE "C";

-- Hex is 64 digits.
SELECT what, is_valid('upi', jsonb_build_object('x-upi-signature', v)) AS valid
FROM (SELECT encode(hmac('key', 'body'), 'hex') AS h) x,
     LATERAL (VALUES ('right', h), ('upper case', upper(h)), ('one less', left(h, 63)), ('one more', h || '0'), ('prefix', 'sha256=' || h), ('last is another', left(h, 63) || translate(right(h, 1), '0123456789abcdef', '123456789abcdef0')),
                     ('first is another', translate(left(h, 1), '0123456789abcdef', '123456789abcdef0') || right(h, 63)), ('no digit', left(h, 63) || 'g'), ('base64', encode(hmac('key', 'body'), 'base64')), ('twice', h || h)) v (what, v);

-- A Stripe-Signature in all its forms.
SELECT what, is_valid('stripe', jsonb_build_object('Stripe-Signature', replace(replace(replace(v, 'T', 't=1700000000'), 'R', 'v1=' || r), 'W', 'v1=' || repeat('0', 64)))) AS valid
FROM (SELECT encode(hmac('key', '1700000000.body'), 'hex') AS r) x,
     (VALUES ('right', 'T,R'), ('other order', 'R,T'), ('several, first', 'T,R,W,W'), ('several, last', 'T,W,W,R'), ('several, none', 'T,W,W'), ('others between', 'v0=x,T,v2=,R,x=y=z'),
             ('16', 'T' || repeat(',W', 15) || ',R'), ('17', 'T,R' || repeat(',W', 16)), ('no time', 'R'), ('no signature', 'T'), ('time twice', 'T,T,R'), ('time missing', 't=,R'),
             ('time signed', 't=+1700000000,R'), ('time in hex', 't=0x6553f100,R'), ('time and more', 't=1700000000.0,R'), ('time with zero', 't=01700000000,R'), ('time too long', 't=0000001700000000,R'),
             ('a bad one beside it', 'T,R,v1=00'), ('empty member', 'T,,R'), ('ends in comma', 'T,R,'), ('begins with comma', ',T,R'), ('no sign', 'T,R,x'), ('space', 'T, R'), ('semicolons', 'T;R'), ('upper case', 't=1700000000,V1=' || repeat('0', 64)),
             ('only v0', 'T,v0=' || repeat('0', 64)), ('4096 bytes', 'T,R,x=' || repeat('y', 4096 - 83)), ('4097 bytes', 'T,R,x=' || repeat('y', 4097 - 83)), ('a megabyte', 'T,R,x=' || repeat('y', 1000000))) v (what, v);
-- what is signed is the time as it stands there
SELECT is_valid('stripe', jsonb_build_object('stripe-signature', 't=01700000000,v1=' || encode(hmac('key', '01700000000.body'), 'hex'))) AS valid;

-- Standard Webhooks: several signatures, other versions, ids without a dot.
SELECT what, is_valid('standard', sign('standard', 'key', 'body') || jsonb_build_object('webhook-signature', replace(replace(v, 'R', 'v1,' || r), 'W', 'v1,' || encode(sha256('x'), 'base64')))) AS valid
FROM (SELECT encode(hmac('key', 'msg_1.1700000000.body'), 'base64') AS r) x,
     LATERAL (VALUES ('right', 'R'), ('several, first', 'R W W'), ('several, last', 'W W R'), ('several, none', 'W W'), ('other versions', 'v1a,x R v2,=='), ('only others', 'v1a,x v2,'), ('16', repeat('W ', 15) || 'R'), ('17', 'R' || repeat(' W', 16)),
             ('a bad one beside it', 'R v1,AAAA'), ('one too short', 'R v1,' || left(r, 40)), ('no comma', 'R x'), ('two spaces', 'R  W'), ('space before', ' R'), ('space behind', 'R '), ('commas between', 'R,W'), ('padding missing', 'v1,' || rtrim(r, '=')), ('padding twice', 'R='),
             ('stray bits', 'v1,' || left(r, 42) || translate(substr(r, 43, 1), 'AEIMQUYcgkosw048', 'BFJNRVZdhlptx159') || '='), ('line in it', E'R v1,\n' || left(r, 43)), ('hex', 'v1,' || encode(decode(r, 'base64'), 'hex')),
             ('upper case', 'V1,' || r), ('4096 bytes', 'R x,' || repeat('y', 4096 - 50)), ('4097 bytes', 'R x,' || repeat('y', 4097 - 50))) v (what, v);
SELECT is_valid('standard', sign('standard', 'key', body), body => body) AS usual_alphabet,
       is_valid('standard', translate(sign('standard', 'key', body)::text, '+/', '-_')::jsonb || '{"webhook-id": "msg_1"}', body => body) AS of_urls
FROM (SELECT 'body ' || i AS b FROM generate_series(1, 100) i WHERE sign('standard', 'key', ('body ' || i)::bytea)->>'webhook-signature' ~ '[+].*/' LIMIT 1) x, LATERAL convert_to(b, 'UTF8') body;
SELECT to_json(left(id, 12)) AS id, length(id), is_valid('standard', sign('standard', 'key', 'body') || jsonb_build_object('webhook-id', id, 'webhook-signature', 'v1,' || encode(hmac('key', convert_to(id || '.1700000000.body', 'UTF8')), 'base64'))) AS valid
FROM unnest(ARRAY['msg_2', '!~', repeat('i', 255), repeat('i', 256), '', 'a.b', '.', 'a b', E'a\n', E'a\x7f', U&'a\00e9']) id;
-- else a message could be taken for one with another id, time and body
SELECT is_valid('standard', jsonb_build_object('webhook-id', 'msg_1.1700000000', 'webhook-timestamp', '1800000000', 'webhook-signature', sign('standard', 'key', '1800000000.body') ->> 'webhook-signature'), 1800000000) AS valid;

-- 10,000 requests with a byte too many, too few or another one somewhere in their headers, body,
-- time or form: none is an error or null, and true only where the same is said.
CREATE TABLE mangled AS
WITH signed AS MATERIALIZED (
  SELECT s AS scheme, o, sign(s, 'key', 'body') AS signed FROM unnest('{razorpay,stripe,standard,upi}'::text[]) WITH ORDINALITY u (s, o))
SELECT i, scheme, ('x' || left(md5('at ' || i), 7))::bit(28)::int AS a, ('x' || left(md5('what ' || i), 7))::bit(28)::int AS w, signed
FROM generate_series(1, 10000) i JOIN signed ON o = 1 + i % 4;
CREATE FUNCTION mangle(signed jsonb, a int, w int) RETURNS jsonb LANGUAGE sql AS $$
  SELECT CASE w % 12
      WHEN 0 THEN rest || jsonb_build_object(n, overlay(v placing '' from at for 1 + w / 12 % 5))
      WHEN 1 THEN rest || jsonb_build_object(n, overlay(v placing chr(c) from at for 1))
      WHEN 2 THEN rest || jsonb_build_object(n, overlay(v placing chr(c) from at for 0))
      WHEN 3 THEN rest || jsonb_build_object(n, v || left(v, w / 12 % 80))
      WHEN 4 THEN rest || jsonb_build_object(overlay(n placing chr(c) from 1 + at % length(n) for 1), v)
      WHEN 5 THEN rest || jsonb_build_object(overlay(n placing upper(substr(n, 1 + at % length(n), 1)) from 1 + at % length(n) for 1), v)
      WHEN 6 THEN signed || jsonb_build_object(overlay(n placing upper(substr(n, 1 + at % length(n), 1)) from 1 + at % length(n) for 1), w)
      WHEN 7 THEN rest || jsonb_build_object(n, jsonb_build_array(v, chr(c)) - w / 12 % 3)
      WHEN 8 THEN rest || jsonb_build_object(n, (ARRAY['null', 'true', '-1e300', '{}', '[]', '[{}]', '""', '"\\u00e9"', '[[""]]'])[1 + w / 12 % 9]::jsonb)
      WHEN 9 THEN rest || jsonb_build_object(n, repeat(v, w / 12 % 100))
      WHEN 10 THEN jsonb_build_array(signed) -> (w / 12 % 2)
      ELSE rest || jsonb_build_object(n, reverse(v)) END
  FROM jsonb_object_keys(signed) WITH ORDINALITY k (n, o), LATERAL (SELECT signed ->> n, signed - n) x (v, rest),
       LATERAL (SELECT 1 + a % length(v), 1 + a % (CASE WHEN a % 2 = 0 THEN 127 ELSE 40000 END)) y (at, c)
  WHERE o = 1 + a % (SELECT count(*) FROM jsonb_object_keys(signed))
$$;
-- what a request says, however it is written
CREATE FUNCTION meaning(headers jsonb, is_hex boolean) RETURNS jsonb LANGUAGE sql AS $$
  SELECT jsonb_object_agg(lower(name), CASE WHEN is_hex THEN lower(v) ELSE v END)
  FROM jsonb_each(headers) e (name, value), LATERAL (SELECT coalesce(CASE WHEN jsonb_typeof(value) = 'array' THEN value ->> 0 END, value #>> '{}') AS v) x
$$;
CREATE TABLE answered AS
SELECT x.*, is_valid(scheme, mangled) AS valid FROM (SELECT *, coalesce(mangle(signed, a, w), '[]') AS mangled FROM mangled OFFSET 0) x;
SELECT count(*) AS requests, count(*) FILTER (WHERE valid IS NULL) AS neither, count(*) FILTER (WHERE valid) AS valid FROM answered;
SELECT count(*) AS forged FROM answered WHERE valid AND meaning(mangled, scheme <> 'standard') <> meaning(signed, scheme <> 'standard');
SELECT w % 12 AS way, count(*) AS requests, count(*) FILTER (WHERE valid) AS valid FROM answered GROUP BY 1 ORDER BY 1;
-- the same of bodies and secrets
SELECT count(*) AS requests, count(*) FILTER (WHERE is_valid(scheme, signed, body => b) IS NULL) AS neither, count(*) FILTER (WHERE is_valid(scheme, signed, body => b)) AS bodies, count(*) FILTER (WHERE is_valid(scheme, signed, secret => k)) AS secrets
FROM (SELECT *, set_byte('body', a % 4, w % 256) AS b, set_byte('key', a % 3, w % 256) AS k FROM mangled WHERE i % 4 = 0) x WHERE b <> 'body' AND k <> 'key';

-- Mistakes of the caller are errors.
CREATE FUNCTION try(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  r text;
BEGIN
  EXECUTE statement INTO r;
  RETURN coalesce(r, 'null');
EXCEPTION WHEN OTHERS THEN
  GET STACKED DIAGNOSTICS r = PG_EXCEPTION_DETAIL;
  RETURN SQLSTATE || ': ' || SQLERRM || coalesce(' / ' || nullif(r, ''), '');
END
$$;
SELECT a AS arguments, try(format('SELECT public.cusown_verify_signature(%s)', a)) AS answer
FROM unnest(ARRAY[$$NULL, 'key', 'body', '{}'$$, $$'upi', NULL, 'body', '{}'$$, $$'upi', 'key', NULL, '{}'$$, $$'upi', 'key', 'body', NULL$$, $$'upi', 'key', 'body', '{}', NULL$$, $$'upi', 'key', 'body', '{}', now(), NULL$$,
  $$'paypal', 'key', 'body', '{}'$$, $$'UPI', 'key', 'body', '{}'$$, $$'', 'key', 'body', '{}'$$, $$'upi', '', 'body', '{}'$$, $$'upi', convert_to(repeat('k', 1024), 'UTF8'), 'body', '{}'$$, $$'upi', convert_to(repeat('k', 1025), 'UTF8'), 'body', '{}'$$,
  $$'upi', 'key', 'body', '{}', now(), '-1 s'$$, $$'upi', 'key', 'body', '{}', now(), '1001 years'$$, $$'standard', 'whsec_', 'body', '{}'$$, $$'standard', 'whsec_a', 'body', '{}'$$, $$'standard', 'whsec_AAA', 'body', '{}'$$, $$'standard', 'whsec_AAAA', 'body', '{}'$$, $$'stripe', 'whsec_a', 'body', '{}'$$]) a;

-- Secrets that are kept.
SELECT try($$SELECT count(*) FROM cusown_set_webhook_secret('stripe', 'key')$$);
\set ECHO none
\set schema signature_app
\i :app
\set schema signature_shop
\i :minimal
\set ECHO all
SELECT count(*) > 0 AS attached FROM cusown_attach('signature_app');
CREATE FUNCTION is_stored(provider text, key text, app name DEFAULT 'signature_app', scheme text DEFAULT 'upi') RETURNS boolean LANGUAGE sql AS $$
  SELECT cusown_ops.verify_signature_with_stored_secret(app, provider, scheme, 'body', sign(scheme, key::bytea, 'body', extract(epoch FROM now())::bigint))
$$;
-- what is valid, with moments told from now
CREATE FUNCTION secrets() RETURNS TABLE (app name, provider text, secret text, valid_from interval, valid_until interval) LANGUAGE sql AS $$
  SELECT app_schema, provider, encode(secret, 'escape'), justify_hours(valid_from - now()), justify_hours(valid_until - now()) FROM cusown_ops.webhook_secret ORDER BY 1, 2, valid_from
$$;
SELECT is_stored('stripe', 'one') AS before_any;
BEGIN;
SELECT provider, valid_from - now() AS valid_from, valid_until FROM cusown_set_webhook_secret('stripe', 'one', now() - interval '960 hours');
SELECT is_stored('stripe', 'one') AS one, is_stored('stripe', 'two') AS two, is_stored('razorpay', 'one') AS other_provider, is_stored('stripe', 'one', 'signature_shop') AS other_application, is_stored('stripe', 'one', scheme => 'stripe') AS other_scheme;
-- another takes its place; both are valid for a day
SELECT provider, valid_from - now() AS valid_from, valid_until - now() AS valid_until FROM cusown_set_webhook_secret('stripe', 'two');
SELECT is_stored('stripe', 'one') AS one, is_stored('stripe', 'two') AS two, is_stored('stripe', 'six') AS six;
-- again, it changes nothing, also not how long the one before it is valid
SELECT count(*) FROM cusown_set_webhook_secret('stripe', 'two', now() + interval '1 hour');
SELECT count(*) FROM cusown_set_webhook_secret('stripe', 'two', overlap => '30 days');
SELECT * FROM secrets();
-- but it may end at once
SELECT count(*) FROM cusown_set_webhook_secret('stripe', 'two', overlap => '0');
SELECT * FROM secrets();
SELECT is_stored('stripe', 'one') AS one, is_stored('stripe', 'two') AS two;
-- one that is valid later, one before it, and one in its place
SELECT count(*) FROM cusown_set_webhook_secret('stripe', 'four', now() + interval '240 hours', '2 days');
SELECT count(*) FROM cusown_set_webhook_secret('stripe', 'three', now() + interval '120 hours', '1 day');
SELECT * FROM secrets();
SELECT count(*) FROM cusown_set_webhook_secret('stripe', 'FOUR', now() + interval '240 hours', '2 days');
SELECT * FROM secrets();
SELECT is_stored('stripe', 'two') AS two, is_stored('stripe', 'three') AS three, is_stored('stripe', 'FOUR') AS four;
-- the first one again is new
SELECT count(*) FROM cusown_set_webhook_secret('stripe', 'one', now() + interval '480 hours');
SELECT secret, valid_from, valid_until FROM secrets();
ROLLBACK;
-- of each application and provider
SELECT count(*) FROM cusown_set_webhook_secret('stripe', 'one');
SELECT count(*) FROM cusown_set_webhook_secret('razorpay', 'other');
SELECT count(*) > 0 AS attached FROM cusown_attach('signature_shop', :'minimal_mapping');
SELECT try($$SELECT count(*) FROM cusown_set_webhook_secret('stripe', 'shop')$$);
SET cusown_ops.app_schema = 'signature_shop';
SELECT count(*) FROM cusown_set_webhook_secret('stripe', 'shop', overlap => '0');
SELECT app, provider, secret, valid_until FROM secrets();
SELECT is_stored('stripe', 'one') AS one, is_stored('stripe', 'shop') AS shop, is_stored('stripe', 'shop', 'signature_shop') AS in_shop;
RESET cusown_ops.app_schema;

-- One that has ended, or has not begun, is not valid, whatever as_of is.
INSERT INTO cusown_ops.webhook_secret VALUES ('signature_app', 'upi', 'ended', '2020-01-01', now() - interval '1 s'), ('signature_app', 'upi', 'coming', now() + interval '1 hour', NULL), ('signature_app', 'upi', 'whsec_a', '2020-01-02', NULL);
SELECT k AS secret, s AS scheme, bool_or(cusown_ops.verify_signature_with_stored_secret('signature_app', 'upi', s, 'body', sign(s, k::bytea, 'body', extract(epoch FROM now() + d)::bigint), now() + d)) AS valid
FROM unnest('{ended,coming,whsec_a}'::text[]) k CROSS JOIN unnest('{stripe,standard,upi}'::text[]) s CROSS JOIN unnest('{0,-1 d,-1000 d,2 h,1000 d}'::interval[]) d GROUP BY k, s ORDER BY k, s;
-- the time in the headers is that of as_of
SELECT d AS after, cusown_ops.verify_signature_with_stored_secret('signature_app', 'stripe', 'stripe', 'body', sign('stripe', 'one', 'body', 1700000000), to_timestamp(1700000000) + d, '2 min') AS valid FROM unnest('{0,2 min,3 min,-2 min,-3 min}'::interval[]) d;
SELECT cusown_ops.verify_signature_with_stored_secret('signature_app', 'stripe', 'stripe', 'body', sign('stripe', 'one', 'body', 1700000000)) AS too_old;
-- a clock, and not the beginning of the transaction
BEGIN;
UPDATE cusown_ops.webhook_secret SET valid_until = clock_timestamp() WHERE secret = 'one';
SELECT is_stored('stripe', 'one') AS ended_since;
ROLLBACK;
SELECT a AS arguments, try(format('SELECT cusown_ops.verify_signature_with_stored_secret(%s)', a)) AS answer
FROM unnest(ARRAY[$$NULL, 'stripe', 'upi', 'body', '{}'$$, $$'signature_app', NULL, 'upi', 'body', '{}'$$, $$'signature_app', 'stripe', NULL, 'body', '{}'$$, $$'signature_app', 'stripe', 'upi', NULL, '{}'$$, $$'signature_app', 'stripe', 'upi', 'body', NULL$$,
  $$'signature_app', 'stripe', 'upi', 'body', '{}', NULL$$, $$'signature_app', 'stripe', 'upi', 'body', '{}', now(), NULL$$, $$'signature_app', 'stripe', 'paypal', 'body', '{}'$$, $$'signature_app', '', 'upi', 'body', '{}'$$, $$'signature_app', 'stripe', 'upi', 'body', '{}', now(), '-1 s'$$,
  $$'nowhere', 'stripe', 'upi', 'body', '{}'$$]) a;
SET cusown_ops.app_schema = 'signature_app';
SELECT a AS arguments, try(format('SELECT count(*) FROM cusown_set_webhook_secret(%s)', a)) AS answer
FROM unnest(ARRAY[$$NULL, 'hidden'$$, $$'stripe', NULL$$, $$'stripe', 'hidden', NULL$$, $$'stripe', 'hidden', now(), NULL$$, $$'', 'hidden'$$, $$repeat('s', 63), 'hidden'$$, $$repeat('s', 64), 'hidden'$$, $$'stripe', ''$$, $$'stripe', convert_to(repeat('k', 1025), 'UTF8')$$,
  $$'stripe', 'hidden', 'infinity'$$, $$'stripe', 'hidden', '-infinity'$$, $$'stripe', 'hidden', now(), '-1 s'$$, $$'stripe', 'hidden', now(), '1001 years'$$, $$'stripe', 'hidden', '294276-12-31', '1000 years'$$]) a;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT try($$SELECT count(*) FROM cusown_set_webhook_secret('stripe', 'hidden')$$);
COMMIT;
BEGIN READ ONLY;
SELECT try($$SELECT count(*) FROM cusown_set_webhook_secret('stripe', 'hidden')$$), is_stored('stripe', 'one') AS one;
COMMIT;
SELECT count(*) FROM cusown_ops.webhook_secret WHERE secret = 'hidden';

-- Nobody but the owner sets or sees a secret; application and operator may ask.
CREATE ROLE regress_signature_monitor;
CREATE ROLE regress_signature_application;
CREATE ROLE regress_signature_operator;
CREATE ROLE regress_signature_reader IN ROLE pg_read_all_data;
CREATE ROLE regress_signature_stranger;
SELECT count(g) > 0 AS lacks FROM unnest('{monitor,application,operator}'::text[]) p, cusown_grant(('regress_signature_' || p)::regrole, p) g;
GRANT USAGE ON SCHEMA signature_test, public, cusown_ops TO PUBLIC;
CREATE PROCEDURE as_all(what text) LANGUAGE plpgsql AS $$
DECLARE
  r text;
BEGIN
  FOREACH r IN ARRAY '{monitor,application,operator,reader,stranger}'::text[] LOOP
    PERFORM set_config('role', 'regress_signature_' || r, true);
    RAISE WARNING '%: %', r, try(what);
    PERFORM set_config('role', 'none', true);
  END LOOP;
END
$$;
CALL as_all($$SELECT is_stored('stripe', 'one')$$);
CALL as_all($$SELECT is_valid('upi', sign('upi', 'key', 'body'))$$);
CALL as_all($$SELECT count(*) FROM cusown_set_webhook_secret('stripe', 'hidden')$$);
CALL as_all('SELECT count(*) FROM cusown_ops.webhook_secret');
CALL as_all('SELECT provider FROM cusown_ops.webhook_secret LIMIT 1');
CALL as_all('UPDATE cusown_ops.webhook_secret SET valid_until = NULL');
CALL as_all($$INSERT INTO cusown_ops.webhook_secret VALUES ('signature_app', 'x', 'x', now())$$);
-- who was only given the function has no secret either
GRANT EXECUTE ON FUNCTION cusown_set_webhook_secret TO regress_signature_stranger;
CALL as_all($$SELECT count(*) FROM cusown_set_webhook_secret('stripe', 'hidden')$$);
SELECT proname, prosecdef, proconfig, provolatile, proparallel FROM pg_proc WHERE proname LIKE '%signature%' AND probin IS NOT NULL OR proname = 'cusown_set_webhook_secret' ORDER BY 1;

DROP OWNED BY regress_signature_monitor, regress_signature_application, regress_signature_operator, regress_signature_stranger;
DROP ROLE regress_signature_monitor, regress_signature_application, regress_signature_operator, regress_signature_reader, regress_signature_stranger;
REVOKE USAGE ON SCHEMA signature_test, cusown_ops FROM PUBLIC;
DROP EXTENSION cusown_ops;
DROP SCHEMA signature_test, signature_app, signature_shop CASCADE;
