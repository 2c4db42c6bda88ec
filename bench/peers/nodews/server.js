// The counter job on npm's ws: no compression, no set of clients, and the
// bufferutil addon where it installs ("Opt-in for performance" in its README).
//
// A process for each core, as Node's documentation of `cluster` says;
// WEB_CONCURRENCY sets another number. Each process counts for itself, so with
// more than one a session resumes only if its next connection meets the same
// process.
'use strict';

const cluster = require('node:cluster');
const crypto = require('node:crypto');
const os = require('node:os');
const { WebSocketServer } = require('ws');

const uuid = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;
const counts = new Map();

const processes = Number(process.env.WEB_CONCURRENCY) || os.availableParallelism();
// The processes accept by themselves: a primary that hands connections out
// doubles the CPU of an upgrade.
cluster.schedulingPolicy = cluster.SCHED_NONE;
if (cluster.isPrimary && processes > 1) {
  for (let i = 0; i < processes; i++) cluster.fork();
} else {
  serve();
}

function serve() {
  const [host, port] = address();
  const server = new WebSocketServer({
    host,
    port,
    path: '/ws/chat/',
    backlog: 4096,
    clientTracking: false,
    maxPayload: 64 * 1024,
    perMessageDeflate: false,
  });
  server.on('connection', onConnection);
}

function address() {
  const at = process.argv.indexOf('-listen');
  const listen = at < 0 ? '127.0.0.1:8000' : process.argv[at + 1];
  const colon = listen.lastIndexOf(':');
  return [listen.slice(0, colon), Number(listen.slice(colon + 1))];
}

function onConnection(socket, request) {
  const id = sessionOf(request.url);
  if (!id) return socket.close(1008, 'invalid session_id');
  if (!counts.has(id)) counts.set(id, 0);
  socket.on('error', () => {}); // ws closes the connection by itself.
  socket.on('message', (data, binary) => {
    if (binary) return socket.close(1003);
    const text = data.toString();
    if (text.trim() === '') return;
    const count = counts.get(id) + 1;
    counts.set(id, count);
    socket.send(`{"count":${count},"session_id":"${id}","message":${JSON.stringify(text)}}`);
  });
}

// sessionOf returns the id that the request names, a new one if it names none,
// and undefined if what it names is not a UUID.
function sessionOf(url) {
  const at = url.indexOf('?');
  const query = new URLSearchParams(at < 0 ? '' : url.slice(at));
  if (!query.has('session_id')) return crypto.randomUUID();
  const id = query.get('session_id').toLowerCase();
  return uuid.test(id) ? id : undefined;
}
