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
