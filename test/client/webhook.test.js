'use strict';
/*
 * webhook.test.js
 *      cusown_webhook() behind an application's route, as providers use it.
 *
 * First what each delivery is answered, then a storm: the events of some dozens
 * of payments, eight at a time, in any order, many of them more than once, some
 * before their payment is there, while connections are ended on both sides and the
 * job tries again what is parked; each is sent again until it is answered by 2xx.
 * Then every payment must be where its events lead, by one set of effects.
 *
 * CLIENT_SEED repeats a storm's order, as far as that is up to us.
 */

const assert = require('node:assert/strict');
const crypto = require('node:crypto');
const { after, before, describe, it } = require('node:test');

const {
  describePayment, killConnection, makeBookings, makePayment, makePool, readBookings, setUp,
  tearDown, waitForWaiters, waitUntil, whileHeld,
} = require('./database.js');
const { makeEvent, makeId, post, rawEvent, sign } = require('./provider.js');
const {
  PAYMENTS, makeDeliveries, makeRandom, sendAll, tellStories,
} = require('./storm.js');
const { createServer } = require('./webhook_route.js');

const AT_A_TIME = 8;
const SECRETS = { razorpay: 'rzp_secret_0001', stripe: 'whsec_stripe_0001' };
const MEGABYTE = 1024 * 1024;

let admin;
let pool;
let server;
let port;
const errors = [];

before(async () => {
  admin = await setUp();
  for (const [provider, secret] of Object.entries(SECRETS)) await setSecret(provider, secret);
  pool = makePool(AT_A_TIME);
  server = createServer({
    pool, providers: Object.keys(SECRETS), log: (error) => errors.push(error),
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  port = server.address().port;
});

after(async () => {
  await new Promise((resolve) => {
    server.close(resolve);
    server.closeAllConnections();
  });
  await pool.end();
  await tearDown(admin);
});

/* ---------- helpers ---------- */

async function setSecret(provider, secret) {
  await admin.query("SELECT FROM cusown_set_webhook_secret($1, $2, overlap => '0')",
    [provider, Buffer.from(secret)]);
}

async function newPayment(provider, options = {}) {
  const [booking] = await makeBookings(admin, 1);
  const payment = describePayment(provider, booking, options);

  await makePayment(admin, payment);
  return payment;
}

const deliver = (event, options) =>
  post(port, event, sign(event, SECRETS[event.provider]), options);

async function read(text, values) {
  return (await admin.query(text, values)).rows;
}

const hashOf = (event) => crypto.createHash('sha256').update(event.body).digest('hex');

/* outcomes of an event, one for each time that it is in the inbox */
async function inbox(event) {
  const rows = await read(`
    SELECT outcome FROM cusown_ops.webhook_inbox
    WHERE provider = $1 AND body_sha256 = decode($2, 'hex')`, [event.provider, hashOf(event)]);

  return rows.map(({ outcome }) => outcome);
}

async function rejected(event) {
  const rows = await read(`
    SELECT DISTINCT http_status, reason FROM cusown_ops.webhook_rejected
    WHERE body_sha256 = decode($1, 'hex')`, [hashOf(event)]);

  return rows.map(({ http_status: status, reason }) => `${status} ${reason}`);
}

async function statusOf(payment) {
  return (await read('SELECT status FROM payments WHERE id = $1', [payment.id]))[0].status;
}

/* how often a payment has become completed */
async function completions(payment) {
  return (await read(`
    SELECT FROM payment_audit_logs WHERE payment_id = $1 AND to_status = 'completed'`,
  [payment.id])).length;
}

/* so that all have begun before the first is done; they move the payment once */
async function deliverAtOnce(payment, events) {
  let answers;

  await whileHeld(payment, async () => {
    answers = events.map((event) => deliver(event));
    await waitForWaiters(admin, events.length);
  });
  assert.deepEqual(await Promise.all(answers), events.map(() => 200));
  assert.equal(await completions(payment), 1);
}

async function assertRejected(event, headers, answer, why) {
  assert.equal(await post(port, event, headers), answer);
  assert.deepEqual(await inbox(event), []);
  assert.deepEqual(await rejected(event), [`${answer} ${why}`]);
}

/* ---------- deliveries ---------- */

for (const provider of Object.keys(SECRETS)) {
  const secret = SECRETS[provider];

  describe(`${provider} delivers`, () => {
    it('what is new, known, late and of no interest', async () => {
      const payment = await newPayment(provider);
      const captured = makeEvent(payment, 'capture');

      assert.equal(await deliver(captured), 200);
      assert.equal(await deliver(captured), 200);
      assert.deepEqual(await inbox(captured), ['applied']);
      for (const [what, outcome] of Object.entries(
        { process: 'stale', fail: 'stale', noise: 'ignored' })) {
        const event = makeEvent(payment, what);

        assert.equal(await deliver(event), 200);
        assert.deepEqual(await inbox(event), [outcome]);
      }
      assert.equal(await statusOf(payment), 'completed');
      assert.equal(await completions(payment), 1);
    });

    it('what others have signed', async () => {
      const payment = await newPayment(provider);
      const genuine = makeEvent(payment, 'capture');
      const tampered = makeEvent(payment, 'capture', { amount: 1 });

      await assertRejected(genuine, sign(genuine, `${secret}x`), 401, 'signature');
      await assertRejected(genuine, {}, 401, 'signature');
      await assertRejected(tampered, sign(genuine, secret), 401, 'signature');
      // it is refused, and makes the genuine one no duplicate
      assert.equal(await deliver(genuine), 200);
      assert.deepEqual(await inbox(genuine), ['applied']);
    });

    it('a signature twice', async () => {
      const payment = await newPayment(provider);
      const event = makeEvent(payment, 'capture');
      const headers = Object.fromEntries(
        Object.entries(sign(event, secret)).map(([name, value]) => [name, [value, value]]));

      await assertRejected(event, headers, 401, 'signature');
      assert.equal(await statusOf(payment), 'processing');
    });

    it('what cannot be read', async () => {
      for (const body of [
        '', 'captured', '[]', '{"event": 7', Buffer.from([0x7b, 0xff, 0x7d]),
        '{"event": "payment.captured", "type": "x", "id": "\\u0000"}',
        '['.repeat(200000),
      ]) {
        const event = rawEvent(provider, body);

        await assertRejected(event, sign(event, secret), 400, 'malformed');
      }
    });

    it('what is too big', async () => {
      const fits = rawEvent(provider, `{"event": "x", "type": "x"${' '.repeat(MEGABYTE - 27)}}`);
      const big = rawEvent(provider, `${fits.body} `);
      const huge = rawEvent(provider, ' '.repeat(3 * MEGABYTE));

      assert.equal(fits.body.length, MEGABYTE);
      assert.equal(await deliver(fits), 200);
      assert.deepEqual(await inbox(fits), ['ignored']);
      await assertRejected(big, sign(big, secret), 413, 'size');
      assert.equal(await deliver(huge), 413);
      assert.deepEqual(await rejected(huge), []);
    });

    it('while we have a wrong secret', async () => {
      const payment = await newPayment(provider);
      const event = makeEvent(payment, 'capture');

      await setSecret(provider, 'wrong');
      try {
        await assertRejected(event, sign(event, secret), 401, 'signature');
      } finally {
        await setSecret(provider, secret);
      }
      assert.equal(await deliver(event), 200);
      assert.deepEqual(await inbox(event), ['applied']);
      assert.equal(await statusOf(payment), 'completed');
    });

    it('before the payment is there', async () => {
      const [booking] = await makeBookings(admin, 1);
      const payment = describePayment(provider, booking);
      const event = makeEvent(payment, 'capture');

      assert.equal(await deliver(event), 202);
      assert.deepEqual(await inbox(event), ['parked']);
      await makePayment(admin, payment);
      assert.equal(await deliver(event), 200);
      assert.deepEqual(await inbox(event), ['applied']);
      assert.equal(await statusOf(payment), 'completed');
    });

    it('one event many times at once', async () => {
      const payment = await newPayment(provider);
      const event = makeEvent(payment, 'capture');

      await deliverAtOnce(payment, Array(AT_A_TIME).fill(event));
      assert.deepEqual(await inbox(event), ['applied']);
    });

    it('while the connection to the database is ended', async () => {
      const payment = await newPayment(provider);
      const event = makeEvent(payment, 'capture');

      await whileHeld(payment, async () => {
        const answer = deliver(event);

        await waitForWaiters(admin, 1);
        assert.equal(await killConnection(admin), 1);
        assert.equal(await answer, 500);
        assert.deepEqual(await inbox(event), []);
      });
      assert.equal(errors.at(-1).code, '57P01');
      assert.equal(await statusOf(payment), 'processing');
      assert.equal(await deliver(event), 200);
      assert.deepEqual(await inbox(event), ['applied']);
      assert.equal(await completions(payment), 1);
    });

    it('and does not hear the answer', async () => {
      const payment = await newPayment(provider);
      const event = makeEvent(payment, 'capture');
      let again;

      await whileHeld(payment, async () => {
        await assert.rejects(deliver(event, { hangUp: 'answer' }));
        await waitForWaiters(admin, 1);
        again = deliver(event);
        await waitForWaiters(admin, 2);
      });
      assert.equal(await again, 200);
      assert.deepEqual(await inbox(event), ['applied']);
      assert.equal(await completions(payment), 1);
    });

    it('and hangs up within the body', async () => {
      const payment = await newPayment(provider);
      const event = makeEvent(payment, 'capture');

      errors.length = 0;
      await assert.rejects(deliver(event, { hangUp: 'body' }));
      await waitUntil('the route knows', () => errors.length > 0);
      assert.equal(errors[0].code, 'ECONNRESET');
      assert.equal(await deliver(event), 200);
      assert.deepEqual(await inbox(event), ['applied']);
    });
  });
}

it('nothing but deliveries is taken', async () => {
  const payment = await newPayment('razorpay');
  const event = makeEvent(payment, 'capture');
  const headers = sign(event, SECRETS.razorpay);

  assert.equal(await post(port, event, headers, { path: '/webhooks/paypal' }), 404);
  assert.equal(await post(port, event, headers, { path: '/' }), 404);
  assert.equal((await fetch(`http://127.0.0.1:${port}/webhooks/razorpay`)).status, 405);
  assert.deepEqual(await inbox(event), []);
});

it('an old Stripe delivery is not taken again', async () => {
  const payment = await newPayment('stripe');
  const event = makeEvent(payment, 'capture');
  const at = Date.now() / 1000 - 10 * 60;

  await assertRejected(event, sign(event, SECRETS.stripe, { at }), 401, 'signature');
});

it('a Razorpay body is known under other event ids', async () => {
  const payment = await newPayment('razorpay');
  const event = makeEvent(payment, 'capture');

  await deliverAtOnce(payment,
    Array.from({ length: AT_A_TIME }, () => ({ ...event, id: makeId('event_') })));
  assert.equal(await deliver(event), 200);
  assert.deepEqual(await inbox(event), ['applied']);
});

it('a Stripe event is known in other bytes', async () => {
  const payment = await newPayment('stripe');
  const event = makeEvent(payment, 'capture');
  const others = Array.from({ length: AT_A_TIME },
    (_, i) => ({ ...event, body: Buffer.from(`${event.body}${' '.repeat(i + 1)}`) }));

  await deliverAtOnce(payment, others);
  assert.equal(await deliver(event), 200);
  assert.deepEqual(await inbox(event), []);
  assert.deepEqual((await Promise.all(others.map(inbox))).flat(), ['applied']);
});

/* ---------- the storm ---------- */

/* the job, as if its time had come for all that is parked; it may be running */
async function retryParked() {
  await read("UPDATE cusown_ops.webhook_inbox SET next_try = now() WHERE outcome = 'parked'");
  await read("CALL cusown_run_job('retry_parked_webhooks')").catch((error) => {
    if (error.code !== 'UO009') throw error;
  });
}

const SEED = Number(process.env.CLIENT_SEED ?? Date.now() % 1000000);

describe(`after a storm, CLIENT_SEED=${SEED},`, () => {
  let first;                  // number of its first event
  let payments;
  let deliveries;
  let bookings;
  let seen;
  let killed = 0;

  before(async () => {
    const random = makeRandom(SEED);

    [{ first }] = await read(
      'SELECT coalesce(max(id), 0) + 1 AS first FROM cusown_ops.webhook_inbox');
    payments = tellStories(await makeBookings(admin, PAYMENTS), random);
    const late = payments.filter(({ isLate }) => isLate);

    for (const payment of payments.filter(({ isLate }) => !isLate)) {
      await makePayment(admin, payment);
    }
    bookings = await readBookings(admin);
    deliveries = makeDeliveries(payments, SECRETS, random);
    errors.length = 0;
    seen = await sendAll(deliveries, {
      port, atATime: AT_A_TIME, random, each: async (number) => {
        if (number % 10 === 0) killed += await killConnection(admin);
        if (number % 25 === 0) await retryParked();
        if (number > deliveries.length / 3 && late.length > 0) {
          await makePayment(admin, late.pop());
        }
      },
    });
    // what was not heard of may still be worked on
    await waitUntil('the route is done',
      () => pool.waitingCount === 0 && pool.idleCount === pool.totalCount);
    await retryParked();
  });

  const timesPaid = ({ status }) => (['processing', 'failed'].includes(status) ? 0 : 1);
  const allEvents = () => payments.flatMap(({ events }) => events);

  it('there was one', (t) => {
    t.diagnostic(`${allEvents().length} events of ${payments.length} payments, `
      + `${deliveries.length} deliveries, sent ${seen.sent} times, ${killed} connections ended, `
      + `answers: ${JSON.stringify(seen.answered)}`);
    assert.ok(killed > 10);
    assert.ok(seen.answered['no answer'] > 10);
    assert.ok(seen.answered[202] > 0);
  });

  it('nothing went wrong but connections', () => {
    const known = ['57P01', 'ECONNRESET', 'EPIPE', 'Connection terminated unexpectedly'];
    const others = errors.map(({ code, message }) => code ?? message)
      .filter((what) => !known.includes(what));

    assert.deepEqual(others, []);
  });

  it('the inbox has each event once, and all were worked on', async () => {
    const rows = await read(`
      SELECT provider || ' ' || encode(body_sha256, 'hex') AS event, outcome
      FROM cusown_ops.webhook_inbox WHERE id >= $1`, [first]);

    assert.deepEqual(rows.map(({ event }) => event).sort(),
      allEvents().map((event) => `${event.provider} ${hashOf(event)}`).sort());
    assert.deepEqual(rows.map(({ outcome }) => outcome)
      .filter((outcome) => ['received', 'parked', 'unmatched'].includes(outcome)), []);
  });

  it('the inbox has the bodies as they were sent', async () => {
    const rows = await read(`
      SELECT FROM cusown_ops.webhook_inbox i
      JOIN cusown_ops.webhook_body b ON b.app_schema = i.app_schema AND b.inbox_id = i.id
      WHERE i.id >= $1 AND sha256(b.body) = i.body_sha256`, [first]);

    assert.equal(rows.length, allEvents().length);
  });

  it('each payment is where its events lead', async () => {
    const rows = await read(`
      SELECT id, status, refund_amount_cents AS refunded, provider_payment_id AS ref
      FROM payments`);
    const found = new Map(rows.map((row) => [row.id, row]));

    for (const payment of payments) {
      const { id, story } = payment;
      // of two captures whichever came first
      const ref = payment.name === 'paid twice'
        ? payment.events.map(({ told }) => told.ref).find((one) => one === found.get(id).ref)
        : payment.ref;

      assert.deepEqual(found.get(id),
        { id, status: story.status, refunded: story.refunded ?? 0, ref }, payment.name);
    }
  });

  it('each payment was moved as its audit trail has it, and paid at most once', async () => {
    const rows = await read(`
      SELECT payment_id, from_status, to_status FROM payment_audit_logs ORDER BY created_at`);

    for (const { id, name, story } of payments) {
      const trail = rows.filter((row) => row.payment_id === id);
      let status = null;

      for (const row of trail) {
        assert.equal(row.from_status, status, name);
        status = row.to_status;
      }
      assert.equal(status, story.status, name);
      assert.equal(trail.filter((row) => row.to_status === 'completed').length,
        timesPaid(story), name);
    }
  });

  it('each event was applied at most once, and what was not has moved nothing', async () => {
    const rows = await read(`
      SELECT i.id, i.outcome = 'applied' AS applied, l.payment_id = i.payment_id AS same,
             l.to_status AS status
      FROM cusown_ops.webhook_inbox i
      LEFT JOIN payment_audit_logs l
        ON (l.metadata #>> '{evidence,webhook_inbox_id}')::bigint = i.id
      WHERE i.id >= $1`, [first]);
    const steps = new Set();

    for (const { id, applied, same, status } of rows) {
      assert.equal(status !== null, applied);
      assert.equal(same, applied ? true : null);
      assert.ok(!steps.has(`${id} ${status}`), `event ${id} has led to ${status} twice`);
      steps.add(`${id} ${status}`);
    }
    assert.ok(rows.length > 0);
  });

  it('the application\'s audit trail has each payment once', async () => {
    const rows = await read(`
      SELECT entity_id, count(*)::integer AS times FROM audit_logs
      WHERE action_type = 'payment_succeeded' GROUP BY entity_id`);
    const times = new Map(rows.map((row) => [row.entity_id, row.times]));

    for (const { id, name, story } of payments) {
      assert.equal(times.get(id) ?? 0, timesPaid(story), name);
    }
  });

  it('the worklist has what does not fit, and nothing else', async () => {
    const rows = await read(`
      SELECT kind || ' ' || entity_id AS entry FROM cusown_ops.attention
      WHERE entity_id = ANY ($1) AND closed_at IS NULL AND kind <> 'paid_cancelled'`,
    [payments.map(({ id }) => id)]);
    const mismatches = await read(`
      SELECT payment_id, count(*)::integer AS times FROM cusown_ops.webhook_inbox
      WHERE id >= $1 AND outcome = 'mismatch' GROUP BY payment_id`, [first]);
    const odd = payments.filter(({ story }) => story.kind);

    assert.deepEqual(rows.map(({ entry }) => entry).sort(),
      odd.map(({ id, story }) => `${story.kind} ${id}`).sort());
    assert.deepEqual(mismatches.map((row) => [row.payment_id, row.times]).sort(),
      odd.map(({ id, story }) => [id, story.mismatches]).sort());
  });

  it('the worklist has what was paid for bookings that were cancelled', async () => {
    const rows = await read(`
      SELECT entity_id AS id FROM cusown_ops.attention
      WHERE kind = 'paid_cancelled' AND closed_at IS NULL AND entity_id = ANY ($1)`,
    [payments.map(({ id }) => id)]);
    const cancelled = await read(`
      SELECT p.id FROM payments p JOIN bookings b ON b.id = p.booking_id
      WHERE b.status = 'cancelled' AND p.status = 'completed' AND p.id = ANY ($1)`,
    [payments.map(({ id }) => id)]);

    assert.ok(cancelled.length > 0);
    assert.deepEqual(rows.map(({ id }) => id).sort(), cancelled.map(({ id }) => id).sort());
  });

  it('what is forged was refused', async () => {
    const forged = deliveries.filter(({ isForged }) => isForged).map(({ event }) => event);

    assert.ok(forged.length > 0);
    for (const event of forged) {
      assert.deepEqual(await inbox(event), []);
      assert.deepEqual(await rejected(event), ['401 signature']);
    }
  });

  it('bookings and slots are as they were', async () => {
    assert.deepEqual(await readBookings(admin), bookings);
  });
});
