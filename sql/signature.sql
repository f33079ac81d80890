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
