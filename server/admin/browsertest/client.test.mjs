// turnstile.js under Node, against the real server.
import assert from "node:assert/strict";
import { createServer } from "node:http";
import { test } from "node:test";
import { Turnstile, TurnstileError } from "../console/turnstile.js";
import { eventually, haveRedis, host, installed, need, patience, startProxy, startRedis, startServer } from "./parts.mjs";

const ws = installed("ws");

/** A client that comes back quickly, with what it told in events. */
function newClient(t, url, options) {
  const client = new Turnstile({ url, WebSocket: ws.WebSocket, minDelay: 20, maxDelay: 100, ...options });
  const events = [];
  for (const type of ["state", "session", "close", "lost"]) {
    client.addEventListener(type, ({ detail }) => events.push({ type, ...detail }));
  }
  t.after(() => client.disconnect());
  return Object.assign(client, { events, told: (type) => events.filter((event) => event.type === type) });
}

/** A test that needs nothing but the server and ws. */
function check(name, run) {
  test(name, { timeout: 4 * patience }, async (t) => { if (need(t, ws, "the npm package ws")) await run(t); });
}

/** What became of promises: a count, or the code of the error. */
async function outcomes(promises) {
  return (await Promise.allSettled(promises)).map(({ value, reason }) => value ?? reason.code);
}

/** Waits until a connection has ended. What state the client has then may pass at once: it comes back by itself. */
const aClose = (client, nth = 1) => eventually("the cut is noticed", () => client.told("close").length >= nth);

const upTo = (n) => Array.from({ length: n }, (_, i) => i + 1);

function newStorage() {
  const kept = new Map();
  return {
    getItem: (key) => kept.get(key) ?? null,
    setItem: (key, value) => { kept.set(key, value); },
    removeItem: (key) => { kept.delete(key); },
  };
}

/** Has n messages counted whose answers the client does not get. */
async function countUnheard(client, server, proxy, n) {
  const before = await server.metric("websocket_messages_total");
  proxy.deaf = true;
  const sent = upTo(n).map((i) => client.send(`unheard ${i}`));
  await eventually("the server has counted", async () => (await server.metric("websocket_messages_total")) === before + n);
  return sent;
}

check("messages get their counts, in order, whatever is in them", async (t) => {
  const server = await startServer(t);
  const client = newClient(t, server.url);
  const frames = [];
  client.addEventListener("frame", ({ detail }) => frames.push(detail));
  const texts = ["one", "<img src=x onerror=alert(1)>", "\u{1f600} \u202e\u05e9\u05dc\u05d5\u05dd \0", "\ud800", "é".repeat(32_768)];
  const promises = texts.map((text) => client.send(text)); // before there is a connection
  client.connect();
  assert.deepEqual(await Promise.all(promises), upTo(5));
  const replies = frames.filter(({ frame }) => frame.message);
  assert.deepEqual(replies.map(({ frame }) => frame.message), texts.with?.(3, "\ufffd") ?? [...texts.slice(0, 3), "\ufffd", texts[4]]);
  assert.ok(replies.every(({ roundTrip }) => roundTrip > 0));
  assert.equal(client.count, 5);
  assert.equal(client.unanswered, 0);
  assert.deepEqual(client.told("session"),
    [{ type: "session", sessionId: client.sessionId, count: 0, resumed: false, counted: 0, again: 0 }]);
});

check("what the server does not count is not sent", async (t) => {
  const server = await startServer(t);
  const client = newClient(t, server.url);
  client.connect();
  const blanks = ["", " ", "\u0085\u00a0\u1680", "\t\n\v\f\r", "\u2000\u200a\u2028\u2029\u202f\u205f\u3000"];
  const counted = ["\ufeff", "\u200b", "\u180e", "\0"]; // trim() takes the first for white space
  const texts = [...blanks, ...counted, " GoodBye\n", "x".repeat(65_537), "é".repeat(32_769)];
  assert.deepEqual(await outcomes(texts.map((text) => client.send(text))),
    [...blanks.map(() => "blank"), 1, 2, 3, 4, "goodbye", "too_long", "too_long"]);
  await assert.rejects(client.send(7), TypeError);

  // The server is of the same mind: each of these, alone, gets no answer.
  const raw = new ws.WebSocket(`${server.url}?session_id=${client.sessionId}`);
  await new Promise((resolve) => raw.once("open", resolve));
  for (const text of blanks.flatMap((blank) => [...blank, blank])) raw.send(text);
  raw.send("not blank");
  const [reply] = await new Promise((resolve) => raw.once("message", (...args) => resolve(args)));
  assert.equal(JSON.parse(reply).count, 5);
  raw.close();
});

check("a message that was counted unheard is not sent again", async (t) => {
  const server = await startServer(t);
  const proxy = await startProxy(t, server.address);
  const client = newClient(t, proxy.url);
  client.connect();
  assert.equal(await client.send("heard"), 1);
  const unheard = await countUnheard(client, server, proxy, 4);
  proxy.deaf = false;
  proxy.cut();
  await aClose(client);
  const later = client.send("later");
  assert.deepEqual(await Promise.all([...unheard, later]), [2, 3, 4, 5, 6]);
  assert.deepEqual(client.told("session").map(({ resumed, count, counted, again }) => ({ resumed, count, counted, again })),
    [{ resumed: false, count: 0, counted: 0, again: 0 }, { resumed: true, count: 5, counted: 4, again: 0 }]);
});

check("under cuts at any moment each message counts once", async (t) => {
  // One worker answers the requests in the order in which they came. With two, one that was cut off may be answered after
  // the next one, and take the session back.
  const server = await startServer(t, "-workers", "1");
  const proxy = await startProxy(t, server.address);
  const client = newClient(t, proxy.url, { minDelay: 2, maxDelay: 5 });
  client.connect();
  const promises = [];
  let cutting = true;
  const onAnswer = (count) => {
    if (!cutting) return;
    if (count % 17 === 0) proxy.cut(); // among the answers
    proxy.deaf ||= count % 3 === 0; // or after some of them got lost
  };
  const settled = (of) => client.told("session").some((session) => session[of] > 0);
  while (proxy.accepted < 40 || !settled("counted") || !settled("again")) {
    const accepted = proxy.accepted;
    for (let i = 0; i < 25; i++) {
      const promise = client.send(`message ${promises.length}`);
      promise.then(onAnswer);
      promises.push(promise);
    }
    await eventually("a cut, or every answer", () => {
      if (proxy.deaf) proxy.cut();
      proxy.deaf = false;
      return proxy.accepted > accepted || client.unanswered === 0;
    });
  }
  cutting = false;
  proxy.deaf = false;
  proxy.cut(); // whose answers got lost in the meantime
  assert.deepEqual(await Promise.all(promises), upTo(promises.length));
  assert.equal(await server.metric("websocket_messages_total"), promises.length);
});

test("with Redis, the count goes on over a killed server", { timeout: 4 * patience }, async (t) => {
  if (!need(t, ws, "the npm package ws") || !need(t, haveRedis(), "redis-server")) return;
  const server = await startServer(t, "-redis", await startRedis(t));
  const client = newClient(t, server.url);
  client.connect();
  await client.send("before");
  const burst = upTo(500).map((i) => client.send(`under way ${i}`));
  await burst[100];
  await server.kill();
  burst.push(client.send("while it was away"));
  await aClose(client, 3); // it has tried again
  await server.start();
  assert.deepEqual(await Promise.all(burst), upTo(501).map((n) => n + 1));
  assert.deepEqual(client.told("lost"), []);
});

check("a session that is gone is said to be, and nothing is counted twice", async (t) => {
  const server = await startServer(t);
  const proxy = await startProxy(t, server.address);
  const client = newClient(t, proxy.url);
  client.connect();
  assert.equal(await client.send("heard"), 1);
  const unheard = outcomes(await countUnheard(client, server, proxy, 3));
  await server.kill();
  proxy.deaf = false;
  await aClose(client);
  const never = client.send("never sent before");
  await server.start();
  assert.deepEqual(await unheard, ["session_lost", "session_lost", "session_lost"]);
  assert.equal(await never, 1);
  assert.deepEqual(client.told("lost"), [{ type: "lost", sessionId: client.sessionId, seen: 1, count: 0 }]);
  assert.equal(client.told("session").at(-1).resumed, false);
});

check("a drain is waited out as long as the server asks", async (t) => {
  const server = await startServer(t, "-drain-timeout", "700ms");
  const client = newClient(t, server.url, { minDelay: 60_000, maxDelay: 60_000 });
  client.connect();
  await client.send("before");
  await server.stop("SIGTERM");
  const waits = () => client.told("state").find(({ state }) => state === "waiting");
  await eventually("it waits", waits);
  assert.equal(client.told("close")[0].code, 1001);
  const { delay } = waits();
  assert.ok(delay >= 0 && delay < 700, `${delay} ms is not of the drain's length`);
});

check("a taken session is not taken back unasked", async (t) => {
  const server = await startServer(t);
  const first = newClient(t, server.url);
  first.connect();
  assert.equal(await first.send("mine"), 1);
  const second = newClient(t, server.url, { sessionId: first.sessionId });
  second.connect();
  assert.equal(await second.send("yours"), 2);
  await eventually("the first one knows", () => first.state === "closed");
  assert.deepEqual(first.told("state").at(-1), { type: "state", state: "closed", why: "taken_over" });
  assert.equal(first.told("close")[0].code, 4001);
  const waits = first.send("for the session to be back");
  first.connect();
  assert.equal(await waits, 3);
  await eventually("the second one knows", () => second.state === "closed");
});

check("a session taken over during a cut is noticed in the storage", async (t) => {
  const server = await startServer(t);
  const proxy = await startProxy(t, server.address);
  const storage = newStorage();
  const first = newClient(t, proxy.url, { storage });
  first.connect();
  await first.send("mine");
  const unheard = outcomes(await countUnheard(first, server, proxy, 2));
  proxy.away = true;
  proxy.cut();
  const second = newClient(t, server.url, { storage });
  assert.equal(second.sessionId, first.sessionId);
  second.connect();
  assert.equal(await second.send("yours"), 4);
  assert.deepEqual(await unheard, ["taken_over", "taken_over"]);
  assert.equal(first.told("state").at(-1).why, "taken_over");
});

check("counts of another client's messages are not taken for one's own", async (t) => {
  const server = await startServer(t);
  const proxy = await startProxy(t, server.address);
  const first = newClient(t, proxy.url);
  first.connect();
  await first.send("mine");
  const unheard = await countUnheard(first, server, proxy, 1);
  proxy.away = true;
  proxy.cut();
  proxy.deaf = false;
  const second = newClient(t, server.url, { sessionId: first.sessionId });
  second.connect();
  assert.equal(await second.send("yours"), 3);
  proxy.away = false;
  assert.deepEqual(await outcomes(unheard), ["session_shared"]);
  assert.equal(await first.send("mine again"), 4);
});

check("a message too long for the server goes alone", async (t) => {
  const server = await startServer(t, "-max-message", "100");
  const client = newClient(t, server.url);
  client.connect();
  const texts = ["a", "x".repeat(101), "b", "y".repeat(101), "c"];
  assert.deepEqual(await outcomes(texts.map((text) => client.send(text))), [1, "too_long", 2, "too_long", 3]);
  assert.deepEqual(client.told("close").map(({ code }) => code), [1009, 1009]);
});

check("what is too fast for the server comes in the end", async (t) => {
  const server = await startServer(t, "-message-rate", "50");
  const client = newClient(t, server.url);
  client.connect();
  assert.deepEqual(await Promise.all(upTo(120).map((i) => client.send(`message ${i}`))), upTo(120));
  assert.ok(client.told("close").some(({ code }) => code === 1008));
});

check("goodbye is the last word, and the session can go on", async (t) => {
  const server = await startServer(t);
  const client = newClient(t, server.url);
  client.connect();
  const sent = [client.send("one"), client.send("two")];
  const total = client.goodbye();
  assert.deepEqual(await outcomes([...sent, total, client.send("behind it"), client.goodbye()]), [1, 2, 2, "ended", "ended"]);
  await eventually("it is over", () => client.state === "closed");
  assert.equal(client.told("state").at(-1).why, "goodbye");
  client.connect();
  assert.equal(await client.send("three"), 3);
});

check("a goodbye that got lost is said again", async (t) => {
  const server = await startServer(t);
  const proxy = await startProxy(t, server.address);
  const client = newClient(t, proxy.url);
  client.connect();
  await client.send("one");
  proxy.deaf = true;
  const total = client.goodbye();
  await eventually("the server has heard it", async () => (await server.metric('websocket_closes_total{reason="goodbye"}')) === 1);
  proxy.deaf = false;
  proxy.cut();
  assert.equal(await total, 1);
});

check("disconnect keeps what is unanswered, a new session gives it up", async (t) => {
  const server = await startServer(t);
  const client = newClient(t, server.url);
  client.connect();
  await client.send("one");
  client.disconnect();
  assert.equal(client.told("state").at(-1).why, "disconnected");
  const kept = client.send("two");
  client.connect();
  assert.equal(await kept, 2);
  const first = client.sessionId;
  client.disconnect();
  const lost = client.send("three");
  client.newSession();
  assert.deepEqual(await outcomes([lost, client.send("one")]), ["abandoned", 1]);
  assert.notEqual(client.sessionId, first);
});

check("a listener may decide otherwise", async (t) => {
  const server = await startServer(t);
  const client = newClient(t, server.url);
  for (const type of ["session", "frame"]) {
    client.addEventListener(type, () => client.disconnect(), { once: true });
    client.connect();
    await eventually(`it is left at the ${type} event`, () => client.state === "closed");
    assert.deepEqual(client.told("state").map(({ state }) => state).slice(-2), ["connecting", "closed"]);
  }
  const sent = client.send("kept");
  client.connect();
  assert.equal(await sent, 1);
});

check("a connection from which nothing comes is given up", async (t) => {
  const server = await startServer(t, "-heartbeat", "100ms");
  const proxy = await startProxy(t, server.address);
  const client = newClient(t, proxy.url, { silence: 300 });
  client.connect();
  await client.send("one");
  const closes = client.told("close").length; // a slow machine may have been taken for silent already
  proxy.deaf = true;
  const unheard = client.send("two");
  await aClose(client, closes + 1);
  proxy.deaf = false;
  assert.equal(await unheard, 2);
});

check("a server that speaks another protocol is left alone", async (t) => {
  const http = createServer();
  const old = new ws.WebSocketServer({ server: http, handleProtocols: () => false });
  await new Promise((resolve) => http.listen(0, host, resolve));
  t.after(() => { old.close(); http.close(); });
  // The npm package refuses such an answer by itself; browsers do not.
  class Lenient extends ws.WebSocket { constructor(url) { super(url); } }
  const client = newClient(t, `ws://${host}:${http.address().port}/`, { WebSocket: Lenient });
  client.connect();
  await eventually("it gives up", () => client.state === "closed");
  assert.equal(client.told("state").at(-1).why, "refused");
});

test("options that cannot work are named", () => {
  assert.throws(() => new Turnstile({ WebSocket: class {} }), /url/);
  assert.throws(() => new Turnstile({ url: "ws://x/", WebSocket: null }), /npm package ws/);
  assert.throws(() => new Turnstile({ url: "ws://x/", WebSocket: class {}, sessionId: "nonsense" }), /UUID, not nonsense/);
  assert.ok(new TurnstileError("blank", "") instanceof Error);
});
