'use strict';
/*
 * database.js
 *      A database with the application's schema, the extension, and the role by
 *      which the application takes webhooks.
 *
 * The server is the one that PGHOST, PGPORT and PGUSER name; PGUSER must be a
 * superuser.  Database and role are made anew, and dropped at the end.
 */

const crypto = require('node:crypto');
const fs = require('node:fs');
const path = require('node:path');
const { setTimeout } = require('node:timers/promises');
const pg = require('pg');

const { makeId } = require('./provider.js');

const DATABASE = 'cusown_client_test';
const APPLICATION = 'cusown_client_application';
const fixture = path.join(__dirname, '..', 'fixture', 'cusown_app.sql');

/* the fixture without what only psql understands, as its head says */
function readFixture() {
  return fs.readFileSync(fixture, 'utf8').split('\n')
    .filter((line) => !line.startsWith('\\')).join('\n')
    .replaceAll(':"schema"', 'public');
}

async function withServer(work) {
  const client = new pg.Client({ database: 'postgres' });

  await client.connect();
  try {
    await work(client);
  } finally {
    await client.end();
  }
}

/* what has just ended its connections is waited for, what is left over is ended */
async function drop(client, how = '') {
  await client.query(`DROP DATABASE IF EXISTS ${DATABASE} ${how}`);
  await client.query(`DROP ROLE IF EXISTS ${APPLICATION}`);
}

/* the role, with what cusown_grant() gives it, and asks for */
async function makeRole(admin) {
  await admin.query(`CREATE ROLE ${APPLICATION} LOGIN BYPASSRLS`);
  const { rows } = await admin.query(
    `SELECT cusown_grant('${APPLICATION}', 'application') AS ddl`);

  for (const { ddl } of rows) await admin.query(ddl);
}

/* returns a pool of a superuser */
async function setUp() {
  await withServer(async (server) => {
    await drop(server, 'WITH (FORCE)');
    await server.query(`CREATE DATABASE ${DATABASE}`);
  });
  const admin = new pg.Pool({ database: DATABASE, max: 2 });

  await admin.query(readFixture());
  await admin.query('CREATE EXTENSION cusown_ops');
  await admin.query('SELECT count(*) FROM cusown_attach()');
  await makeRole(admin);
  return admin;
}

async function tearDown(admin) {
  await admin.end();
  await withServer((server) => drop(server));
}

/* what the application connects with: as many as there are deliveries at a time */
function makePool(max) {
  return new pg.Pool({ database: DATABASE, user: APPLICATION, max, lock_timeout: 20000 });
}

/* ---------- what is booked and to be paid ---------- */

/*
 * So many bookings, each on a slot of its own, by turns pending, confirmed and
 * cancelled; returns their ids.
 */
async function makeBookings(admin, count) {
  const { rows } = await admin.query(`
    WITH business AS (
      INSERT INTO businesses (salon_name, owner_name, whatsapp_number, opening_time,
                              closing_time, slot_duration, booking_link)
      VALUES ('Salon', 'Owner', '+910000000000', '09:00', '18:00', 30, gen_random_uuid())
      RETURNING id),
    slot AS (
      INSERT INTO slots (business_id, date, start_time, end_time, status, reserved_until)
      SELECT b.id, current_date + i, '10:00', '10:30',
             (ARRAY['reserved', 'booked', 'available'])[i % 3 + 1],
             CASE WHEN i % 3 = 0 THEN now() + interval '10 minutes' END
      FROM business b, generate_series(1, $1::integer) i
      RETURNING id, business_id, status)
    INSERT INTO bookings (business_id, slot_id, customer_name, customer_phone, booking_id,
                          status, cancelled_by, cancelled_at)
    SELECT s.business_id, s.id, 'Customer', '+910000000001', s.id,
           CASE s.status WHEN 'reserved' THEN 'pending' WHEN 'booked' THEN 'confirmed'
             ELSE 'cancelled' END,
           CASE s.status WHEN 'available' THEN 'customer' END,
           CASE s.status WHEN 'available' THEN now() END
    FROM slot s
    RETURNING id`, [count]);

  return rows.map(({ id }) => id);
}

/* as it will be; options take the place of what is here */
function describePayment(provider, booking, options = {}) {
  return {
    provider, booking, id: crypto.randomUUID(), amount: 50000,
    ref: makeId(provider === 'stripe' ? 'pi_' : 'pay_'), order: makeId('order_'), ...options,
  };
}

/* the application's own function; it may have an order at the provider by then */
async function makePayment(admin, payment) {
  await admin.query('SELECT create_payment($1, $2, $3, $4)',
    [payment.booking, payment.amount, payment.provider, payment.id]);
  await admin.query('UPDATE payments SET order_id = $2 WHERE id = $1',
    [payment.id, payment.byOrder ? payment.order : null]);
}

/*
 * Bookings and slots, row by row, with the transaction that has written each: an
 * update that writes what was there is one too.
 */
async function readBookings(admin) {
  const { rows } = await admin.query(`
    SELECT 'booking ' || b.id AS name, b.xmin::text AS written, to_jsonb(b) AS row FROM bookings b
    UNION ALL
    SELECT 'slot ' || s.id, s.xmin::text, to_jsonb(s) FROM slots s ORDER BY name`);

  return rows;
}

/* ---------- waiting ---------- */

async function waitUntil(what, condition) {
  const deadline = Date.now() + 10000;

  while (!await condition()) {
    if (Date.now() > deadline) throw new Error(`not in time: ${what}`);
    await setTimeout(5);
  }
}

/* ---------- who is connected ---------- */

/* ends one connection of the application, rather one that is at work */
async function killConnection(admin) {
  const { rows } = await admin.query(`
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1
    ORDER BY state = 'active' DESC, query_start DESC LIMIT 1`, [APPLICATION]);

  return rows.length;
}

/* until so many of the application's connections wait for a lock */
async function waitForWaiters(admin, count) {
  await waitUntil(`${count} wait for a lock`, async () => {
    const { rows } = await admin.query(`
      SELECT pid FROM pg_stat_activity
      WHERE usename = $1 AND state = 'active' AND wait_event_type = 'Lock'`, [APPLICATION]);

    return rows.length >= count;
  });
}

/* holds the row of a payment while work is done */
async function whileHeld(payment, work) {
  const holder = new pg.Client({ database: DATABASE });

  await holder.connect();
  try {
    await holder.query('BEGIN');
    await holder.query('SELECT FROM payments WHERE id = $1 FOR UPDATE', [payment.id]);
    await work();
  } finally {
    await holder.end();
  }
}

module.exports = {
  describePayment, killConnection, makeBookings, makePayment, makePool, readBookings, setUp,
  tearDown, waitForWaiters, waitUntil, whileHeld,
};
