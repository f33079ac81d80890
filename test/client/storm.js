'use strict';
/*
 * storm.js
 *      The events of some dozens of payments, sent as badly as providers do.
 *
 * What is random is so by a seed; what is answered when is not.
 */

const assert = require('node:assert/strict');

const { describePayment } = require('./database.js');
const { makeEvent, makeId, post, sign } = require('./provider.js');

/*
 * What may happen to a payment, as [what, options], where its events lead in
 * whatever order they come, and what is refunded then; mismatches, kind: how many
 * of them do not fit, and what the worklist calls that.
 */
const STORIES = {
  abandoned: { events: [['process']], status: 'processing' },
  failed: { events: [['process'], ['fail']], status: 'failed' },
  paid: { events: [['process'], ['capture'], ['noise']], status: 'completed' },
  'paid late': { events: [['fail'], ['capture']], status: 'completed' },
  'paid at the second try': {
    events: [['fail', { ref: 'other' }], ['process'], ['capture']], status: 'completed',
  },
  'paid twice': {
    events: [['capture'], ['capture', { ref: 'other' }]], status: 'completed',
    mismatches: 1, kind: 'duplicate_capture',
  },
  'paid too little': {
    events: [['process'], ['capture', { amount: 100 }]], status: 'processing',
    mismatches: 1, kind: 'webhook_mismatch',
  },
  'partly refunded': {
    events: [['process'], ['capture'], ['refund', { refunded: 20000 }]],
    status: 'partially_refunded', refunded: 20000,
  },
  refunded: {
    events: [['process'], ['capture'], ['fail'], ['refund', { refunded: 20000 }],
      ['refund', { refunded: 35000 }], ['refund', { refunded: 50000 }]],
    status: 'refunded', refunded: 50000,
  },
  'refunded too much': {
    events: [['capture'], ['refund', { refunded: 50001 }]], status: 'completed',
    mismatches: 1, kind: 'webhook_mismatch',
  },
};
const COPIES = 4;           // of each story and provider
const PAYMENTS = Object.keys(STORIES).length * COPIES * 2;

/* numbers from 0 to below 1 that a seed makes (mulberry32) */
function makeRandom(seed) {
  let state = seed;

  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);

    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
}

function shuffle(list, random) {
  for (let i = list.length - 1; i > 0; i -= 1) {
    const j = Math.floor(random() * (i + 1));

    [list[i], list[j]] = [list[j], list[i]];
  }
  return list;
}

/*
 * A payment for each booking, with its events; one in five (isLate) is to be made in
 * the middle of the storm, after its first events.
 */
function tellStories(bookings, random) {
  const payments = [];

  for (const [name, story] of Object.entries(STORIES)) {
    for (let copy = 0; copy < 2 * COPIES; copy += 1) {
      const provider = copy % 2 ? 'stripe' : 'razorpay';
      const payment = describePayment(provider, bookings[payments.length], {
        name, story, byOrder: provider === 'razorpay' && copy % 4 === 0,
      });
      const others = { other: makeId(provider === 'stripe' ? 'pi_' : 'pay_') };
      const told = [...story.events];

      // where an order is made, it is paid when its payment is
      if (provider === 'razorpay' && name === 'paid') told.push(['order']);
      payment.events = told.map(([what, options = {}]) =>
        makeEvent(payment, what, { ...options, ref: others[options.ref] ?? payment.ref }));
      payment.isLate = random() < 0.2;
      payments.push(payment);
    }
  }
  return payments;
}

/*
 * Each event once to three times, some of them one right after the other, a third
 * of them hung up on; and forged ones.
 */
function makeDeliveries(payments, secrets, random) {
  const groups = [];

  for (const event of payments.flatMap(({ events }) => events)) {
    const times = 1 + Math.floor(random() * 3);
    const deliveries = [];

    for (let time = 0; time < times; time += 1) {
      // what is sent again may come under another id, where that is not signed
      const id = event.provider === 'razorpay' && random() < 0.2 ? makeId('event_') : event.id;

      deliveries.push({
        event: { ...event, id },
        secret: secrets[event.provider],
        hangUp: [undefined, undefined, undefined, undefined, 'answer', 'body'][
          Math.floor(random() * 6)],
        isForged: false,
      });
    }
    if (random() < 0.5) groups.push(deliveries);
    else groups.push(...deliveries.map((delivery) => [delivery]));
    if (random() < 0.2) {
      const forged = makeEvent(event.payment, 'refund', { refunded: event.payment.amount });

      groups.push([{ event: forged, secret: 'forged', isForged: true }]);
    }
  }
  return shuffle(groups, random).flat();
}

/*
 * Sends all, atATime at a time; what is not answered by 2xx goes to a random place
 * of what is left, as the provider does it later.  each(n): called before the
 * n-th is sent.  Returns how often something was sent, and what was answered how
 * often.
 */
async function sendAll(deliveries, { port, atATime, random, each }) {
  const queue = [...deliveries];
  const seen = { sent: 0, answered: {} };

  async function sendOne(delivery) {
    const { event, secret, hangUp } = delivery;
    const answer = await post(port, event, sign(event, secret), { hangUp })
      .catch(() => 'no answer');

    seen.answered[answer] = (seen.answered[answer] ?? 0) + 1;
    if (delivery.isForged ? answer === 401 : answer === 200 || answer === 202) return;
    assert.ok(answer === 500 || answer === 'no answer', `answer ${answer} to ${event.what}`);
    // it hangs up only once
    queue.splice(Math.floor(random() * (queue.length + 1)), 0,
      { ...delivery, hangUp: undefined });
  }

  async function work() {
    while (queue.length > 0) {
      seen.sent += 1;
      assert.ok(seen.sent < 5 * deliveries.length, 'the provider has given up');
      const delivery = queue.shift();

      await each(seen.sent);
      await sendOne(delivery);
    }
  }

  await Promise.all(Array.from({ length: atATime }, work));
  return seen;
}

module.exports = { PAYMENTS, makeDeliveries, makeRandom, sendAll, tellStories };
