'use strict';
/*
 * provider.js
 *      Payment providers as they are seen from here: bodies, shaped and signed as
 *      Razorpay and Stripe do, and how they are sent.
 *
 * An event is { provider, id, body }, body a Buffer, and of a payment also what has
 * happened to it (what) and what is told of that (told).
 */

const crypto = require('node:crypto');
const http = require('node:http');

const hmac = (secret, ...parts) => {
  const sum = crypto.createHmac('sha256', secret);

  parts.forEach((part) => sum.update(part));
  return sum.digest('hex');
};

let serial = 0;

// an id that looks like a provider's, never given before
function makeId(prefix) {
  serial += 1;
  return prefix + crypto.createHash('sha256').update(`${prefix}${serial}`)
    .digest('base64url').replace(/[-_]/g, 'x').slice(0, 14);
}

/* ---------- bodies ---------- */

const RAZORPAY_TYPES = {
  process: 'payment.authorized', capture: 'payment.captured', order: 'order.paid',
  fail: 'payment.failed', refund: 'refund.processed', noise: 'payment.downtime.started',
};
const RAZORPAY_STATUS = {
  process: 'authorized', capture: 'captured', order: 'captured', fail: 'failed', refund: 'captured',
};

/*
 * payment: { id, amount, ref, order, byOrder }; what: a key of the types above.
 * Notes that nobody has written are an empty array there, not an object.
 */
function razorpayBody(payment, what, { ref, amount, refunded }) {
  const payload = {
    payment: {
      entity: {
        id: ref, entity: 'payment', amount, currency: 'INR',
        status: RAZORPAY_STATUS[what], order_id: payment.order, method: 'card',
        captured: what !== 'process' && what !== 'fail', description: 'Haircut/beard, ₹ 500',
        amount_refunded: refunded ?? 0, contact: '+919900000000',
        notes: payment.byOrder ? [] : { payment_id: payment.id, source: 'web' },
        acquirer_data: { auth_code: null }, created_at: 1700000000,
      },
    },
  };

  if (what === 'order') {
    payload.order = {
      entity: {
        id: payment.order, entity: 'order', amount, amount_paid: amount, amount_due: 0,
        currency: 'INR', receipt: payment.byOrder ? null : payment.id, status: 'paid', notes: [],
      },
    };
  } else if (what === 'refund') {
    payload.refund = {
      entity: {
        id: makeId('rfnd_'), entity: 'refund', amount: refunded, currency: 'INR',
        payment_id: ref, notes: [], status: 'processed',
      },
    };
  }
  return {
    entity: 'event', account_id: 'acc_Test0000000001', event: RAZORPAY_TYPES[what],
    contains: Object.keys(payload), payload, created_at: 1700000000 + serial,
  };
}

const STRIPE_TYPES = {
  process: 'payment_intent.processing', capture: 'payment_intent.succeeded',
  fail: 'payment_intent.payment_failed', refund: 'charge.refunded', noise: 'payment_intent.created',
};

function stripeBody(payment, what, { ref, amount, refunded }) {
  const object = what === 'refund'
    ? { id: makeId('ch_'), object: 'charge', amount, amount_captured: amount,
        amount_refunded: refunded, currency: 'inr', payment_intent: ref, metadata: {},
        paid: true, refunded: refunded === amount }
    : { id: ref, object: 'payment_intent', amount,
        amount_received: what === 'capture' ? amount : 0, currency: 'inr',
        description: 'Haircut/beard, ₹ 500',
        metadata: { payment_id: payment.id, source: 'web' } };

  return {
    id: makeId('evt_'), object: 'event', api_version: '2024-06-20',
    created: 1700000000 + serial, data: { object }, livemode: false,
    pending_webhooks: 1, request: { id: null, idempotency_key: null }, type: STRIPE_TYPES[what],
  };
}

/*
 * As each of them writes JSON, which nobody else would write again to the byte:
 * Stripe on many lines, Razorpay with escapes that are not needed.
 */
function write(provider, body) {
  if (provider === 'stripe') return JSON.stringify(body, null, 2);
  return JSON.stringify(body).replaceAll('/', '\\/').replaceAll('₹', '\\u20b9');
}

/* what happened to a payment; ref and amount are the payment's where not given */
function makeEvent(payment, what, options = {}) {
  const { provider } = payment;
  const told = { ref: payment.ref, amount: payment.amount, ...options };
  const body = provider === 'stripe' ? stripeBody(payment, what, told)
    : razorpayBody(payment, what, told);

  return {
    provider, payment, what, told,
    id: body.id ?? makeId('event_'),
    body: Buffer.from(write(provider, body)),
  };
}

/* bytes that no provider would send, of the event that they would be */
function rawEvent(provider, body) {
  return { provider, id: makeId('evt_'), body: Buffer.from(body) };
}

/* ---------- signatures ---------- */

/* the headers of an event; Stripe signs each delivery anew */
function sign(event, secret, { at = Date.now() / 1000, id = event.id } = {}) {
  const time = Math.floor(at);

  if (event.provider === 'stripe') {
    return { 'Stripe-Signature': `t=${time},v1=${hmac(secret, `${time}.`, event.body)}` };
  }
  // the id is not signed
  return { 'X-Razorpay-Signature': hmac(secret, event.body), 'x-razorpay-event-id': id };
}

/* ---------- delivery ---------- */

/*
 * Posts an event and returns the status of the answer.  hangUp: 'body' goes in
 * the middle of the body, 'answer' when all is sent; then, as wherever the
 * connection breaks, it raises an error.
 */
function post(port, event, headers, { hangUp, path = `/webhooks/${event.provider}` } = {}) {
  return new Promise((resolve, reject) => {
    const request = http.request({
      port, path, method: 'POST', agent: false,
      headers: {
        'content-type': 'application/json', 'content-length': event.body.length, ...headers,
      },
    }, (response) => {
      response.resume();
      response.on('end', () => resolve(response.statusCode));
      response.on('error', reject);
    });

    request.on('error', reject);
    if (hangUp === 'body') {
      request.write(event.body.subarray(0, event.body.length / 2), () => request.destroy());
    } else if (hangUp === 'answer') {
      request.end(event.body, () => request.destroy());
    } else {
      request.end(event.body);
    }
  });
}

module.exports = { makeEvent, makeId, post, rawEvent, sign };
