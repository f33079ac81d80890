'use strict';
/*
 * webhook_route.js
 *      How an application takes webhooks: a route that calls cusown_webhook().
 *
 * The database verifies the signature, keeps the event, finds its payment and
 * moves that forward, all in one transaction.  What is left to the route:
 *
 *  - hand on the body byte by byte.  It was signed as it came: whatever parses it
 *    and writes it out again breaks the signature.
 *  - hand on the headers as they came, those that are there twice as well.
 *    headersDistinct has an array per name; headers has joined or dropped some.
 *  - answer what the function says, and 500 if it raised an error or the
 *    connection broke.  Then nothing was kept, or nobody knows: the provider sends
 *    the event again, and an event that was applied is a duplicate.  The function
 *    is a statement of its own: its answer comes when all is committed.
 *  - take no more bytes than it must.
 *
 * The role of the pool needs the profile application (cusown_grant) and, where
 * the tables have row-level security, BYPASSRLS.  It cannot read the secrets.
 */

const http = require('node:http');

// Over 1 MB cusown_webhook() answers 413 and keeps a note that it did; bodies
// over twice that never reach it.
const BODY_LIMIT = 2 * 1024 * 1024;

const TAKE = 'SELECT * FROM cusown_webhook($1, $2, $3)';

/*
 * The bytes of a body, or null if there are too many.  Those that are too many
 * are read and thrown away, or the answer would not get through; the server's
 * requestTimeout ends who never stops.
 */
function readBody(request) {
  return new Promise((resolve, reject) => {
    const chunks = [];
    let size = 0;

    request.on('data', (chunk) => {
      size += chunk.length;
      if (size <= BODY_LIMIT) chunks.push(chunk);
      else chunks.length = 0;
    });
    request.on('end', () => resolve(size <= BODY_LIMIT ? Buffer.concat(chunks) : null));
    // whoever sends it has gone: half a body is none
    request.on('error', reject);
  });
}

async function take(pool, provider, request) {
  const body = await readBody(request);

  if (body === null) return 413;
  const { rows } = await pool.query(TAKE,
    [provider, body, JSON.stringify(request.headersDistinct)]);
  return rows[0].http_status;
}

function providerOf(url, providers) {
  const name = /^\/webhooks\/([a-z0-9_-]+)$/.exec(url)?.[1];

  return providers.includes(name) ? name : null;
}

/*
 * The server, not listening yet.  pool: a pg.Pool; providers: whose webhooks are
 * taken; log: called with each error, which has neither body nor secret in it.
 */
function createServer({ pool, providers, log }) {
  // A connection that breaks while nobody uses it has nobody to tell, and would
  // end the process; the pool makes another.
  pool.on('error', log);

  return http.createServer(async (request, response) => {
    const provider = providerOf(request.url, providers);
    let status = 500;

    try {
      if (provider === null) status = 404;
      else if (request.method !== 'POST') status = 405;
      else status = await take(pool, provider, request);
    } catch (error) {
      log(error);
    }
    response.writeHead(status).end();
  });
}

module.exports = { createServer };
