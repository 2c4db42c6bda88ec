// The console: one session, counted by the server that this page came from.
import { Log, timeOfDay } from "./log.js";
import { flawOf, Turnstile } from "./turnstile.js";
import { watch } from "./watch.js";

const $ = (id) => document.getElementById(id);
const client = new Turnstile({ storage: storage() });
const log = new Log({ view: $("log"), newest: $("newest"), onOpen: showWhole, onDraw: showSize });
const number = new Intl.NumberFormat("en");

/** The browser may forbid it, and then a reload starts a new session. */
function storage() {
  try {
    return localStorage;
  } catch {
    return null;
  }
}

// What the page shows besides what the client knows.
let why; // it is closed
let retryAt = 0; // when it connects again, by performance.now()
let notice = { tone: "", text: "" };
let asked; // the session that was asked for
let met = false; // this connection has had its session
let known = false; // and so has the page, so that there is a count
let countedAt = null; // when the count was true, if that is over
let unknown = 0; // messages that will never have an answer
let lastBurst = null; // {size, took}: ms from its first message to its last reply
const outstanding = new Set(); // {inBurst} for each message, in the order of their replies
const roundTrips = []; // of the last replies to messages sent alone, in ms

/* The client's events. */

client.addEventListener("state", ({ detail }) => {
  why = detail.why;
  retryAt = performance.now() + (detail.delay ?? 0);
  if (detail.state === "connecting") asked = client.sessionId;
  if (detail.state === "closed") notice = endings[why];
  if (detail.state !== "open") {
    met = false;
    countedAt ??= new Date();
  }
  paint();
});

const endings = {
  disconnected: { tone: "", text: "The session keeps its count. What you send meanwhile waits for it." },
  goodbye: { tone: "", text: "The server has said goodbye. The session keeps its count." },
  taken_over: { tone: "warn", text: "Another tab or client has resumed this session, and the newest wins. It is not taken back unasked." },
  refused: { tone: "bad", text: "The server ended the connection for a reason that would come again: see the frames." },
};

client.addEventListener("session", ({ detail: { sessionId, count, resumed, counted, again } }) => {
  if (counted + again > 0) {
    const text = `Resumed at ${number.format(count)}. Of the unanswered messages, ${number.format(counted)} had counted; ` +
      `${number.format(again)} ${again === 1 ? "is" : "are"} sent again.`;
    notice = { tone: "good", text };
  } else if (!resumed && asked && notice.tone !== "bad") {
    notice = { tone: "warn", text: "The server did not know this session any more: it starts at 0." };
  } else if (notice.tone !== "bad") {
    notice = { tone: "", text: "" };
  }
  if (!resumed) forgetTimes();
  asked = sessionId;
  met = known = true;
  countedAt = null;
  paint();
});

client.addEventListener("lost", ({ detail: { seen, count } }) => {
  const text = `The server is at ${number.format(count)} where it had answered ${number.format(seen)}: it has lost a part of this session.`;
  notice = { tone: "bad", text };
});

client.addEventListener("sent", ({ detail: { text, again } }) => {
  log.add({ at: new Date(), kind: "sent", mark: again ? "↻" : "↑", what: again ? "sent again" : "sent", text });
});

client.addEventListener("frame", ({ detail: { text, frame, roundTrip } }) => {
  const alone = roundTrip !== undefined && !isOfBurst();
  log.add({ at: new Date(), whole: text, ...lineOf(frame, text, alone ? roundTrip : undefined) });
  if (alone) {
    roundTrips.push(roundTrip);
    if (roundTrips.length > 1000) roundTrips.shift();
  }
  paint();
});

/** Whether the next reply is to a message of a burst: it waits for those before it, so its time says little of one message. */
function isOfBurst() {
  const [first] = outstanding;
  return first?.inBurst ?? false;
}

function forgetTimes() {
  roundTrips.length = 0;
  lastBurst = null;
}

client.addEventListener("close", ({ detail: { code, reason } }) => {
  const text = [ending(code), reason, meanings[code]].filter(Boolean).join(": ");
  log.add({ at: new Date(), kind: code === 1000 ? "warn" : "bad", mark: "×", what: "close", text });
});

/** 1006 is the browser's word for no close frame: the connection broke, or never was. */
function ending(code) {
  if (code !== 1006) return `closed with ${code}`;
  return met ? "connection lost" : "could not connect";
}

const meanings = {
  1008: "too many messages a second",
  1009: "a message was too long for the server",
  1013: "the store of the sessions is out of reach",
};

/** How a frame looks as a line. */
function lineOf(frame, text, roundTrip) {
  if ("message" in frame) {
    const count = number.format(frame.count);
    return { kind: "reply", mark: "↓", what: "reply", count, text: frame.message, roundTrip: duration(roundTrip) };
  }
  if (frame.type === "heartbeat") return { kind: "beat", mark: "♥\ufe0e", what: "heartbeat", text: `heartbeat ${frame.ts.slice(11)}` };
  if (frame.type === "session") {
    const text = `${frame.resumed ? "resumed" : "new"} session at ${number.format(frame.count)}`;
    return { kind: "good", mark: "●", what: "session", text };
  }
  if (frame.bye) {
    const wait = frame.retry_after_ms === undefined ? "" : `, come back in ${duration(frame.retry_after_ms)}`;
    const reason = frame.reason ? `, ${frame.reason}` : "";
    return { kind: "warn", mark: "○", what: "bye", text: `bye at ${number.format(frame.total)}${reason}${wait}` };
  }
  return { kind: "warn", mark: "!", what: "frame", text: frame.error ?? text };
}

/** Milliseconds as people read them. */
function duration(ms) {
  if (ms === undefined) return "";
  if (ms < 10) return `${ms.toFixed(1)} ms`;
  return ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
}

/* What the person does. */

/** Sends a message; the promise is rejected where it has no count, which is shown. */
function send(text, inBurst = false) {
  const message = { inBurst };
  outstanding.add(message);
  const counted = client.send(text).finally(() => outstanding.delete(message));
  counted.catch(showUncounted);
  return counted;
}

function showUncounted(error) {
  if (error.code === "abandoned") return;
  unknown++;
  const many = `${number.format(unknown)} ${unknown === 1 ? "message has" : "messages have"}`;
  notice = { tone: "bad", text: `${many} no count. The last one: ${error.message}.` };
  paint();
}

async function sendBurst(size) {
  const began = performance.now();
  const messages = Array.from({ length: size }, (_, i) => send(`burst ${i + 1} of ${size}`, true));
  try {
    await Promise.all(messages);
  } catch {
    return; // what has no count was shown
  }
  lastBurst = { size, took: performance.now() - began };
  const text = `burst of ${number.format(size)} in ${duration(lastBurst.took)}`;
  log.add({ at: new Date(), kind: "good", mark: "✓\ufe0e", what: "burst", text });
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("text").value;
  const flaw = flawOf(text);
  if (flaw && flaw.code !== "goodbye") {
    $("flaw").textContent = flaw.message;
    return;
  }
  if (flaw) sayGoodbye();
  else send(text);
  $("text").value = "";
  log.follow();
  paint();
});

$("text").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("form").requestSubmit();
});
$("text").addEventListener("input", () => { $("flaw").textContent = ""; });

$("burst").addEventListener("submit", (event) => {
  event.preventDefault();
  sendBurst($("burst-size").valueAsNumber);
  log.follow();
  paint();
});

function sayGoodbye() { client.goodbye().catch(() => {}); } // how it ends, the state tells

$("connect").addEventListener("click", () => { client.connect(); $("text").focus(); });
$("disconnect").addEventListener("click", () => client.disconnect());
$("goodbye").addEventListener("click", sayGoodbye);
$("fresh").addEventListener("click", () => {
  unknown = 0;
  known = false;
  notice = { tone: "", text: "" };
  client.newSession();
  $("text").focus();
});
$("clear").addEventListener("click", () => log.clear());
$("copy").addEventListener("click", async () => {
  await navigator.clipboard.writeText(client.sessionId);
  $("copy").textContent = "Copied";
  setTimeout(() => { $("copy").textContent = "Copy"; }, 1500);
});
addEventListener("online", () => { if (client.state === "waiting") client.connect(); });

function showWhole(entry) {
  $("detail-title").textContent = `${entry.what}, ${entry.at.toISOString()}`;
  $("detail-text").textContent = entry.whole ?? entry.text;
  $("detail").showModal();
}

function showSize(size) {
  $("log-empty").hidden = size > 2; // what a connection by itself brings
  $("log-size").textContent = `${number.format(size)} ${size === 1 ? "line" : "lines"}`;
}

/* The picture: once for each frame of the screen, however much has come. */

let scheduled = false;

function paint() {
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(() => {
    scheduled = false;
    paintNow();
  });
}

function paintNow() {
  const { state, count, sessionId, unanswered } = client;
  const text = known ? number.format(count) : "–";
  const stale = known && countedAt !== null;
  $("session-card").dataset.state = why === "taken_over" ? why : state;
  $("session-card").dataset.stale = stale;
  say($("count-of"), `messages counted in this session${stale ? ` as of ${timeOfDay(countedAt)}` : ""}`);
  $("count").textContent = text;
  $("count").style.setProperty("--digits", Math.max(text.length, 4));
  $("session").textContent = sessionId ?? "–";
  $("copy").disabled = !sessionId;
  $("unanswered").textContent = number.format(unanswered);
  turn(count);
  say($("state"), headline(state));
  paintNotice(state, unanswered);
  paintActions(state, sessionId);
}

function headline(state) {
  if (state === "open") return "Connected";
  if (state === "connecting") return "Connecting…";
  if (state === "waiting") return known ? "Connection lost" : "Could not connect";
  return { goodbye: "Goodbye", taken_over: "Taken over", refused: "Refused" }[why] ?? "Disconnected";
}

function paintNotice(state, unanswered) {
  let { tone, text } = notice;
  if (state === "waiting") {
    const left = Math.max(retryAt - performance.now(), 0) / 1000;
    const kept = unanswered === 0
      ? ""
      : ` ${number.format(unanswered)} unanswered ${unanswered === 1 ? "message waits" : "messages wait"}: ` +
        `what has not counted is sent again.`;
    [tone, text] = ["warn", `Connecting again in ${left.toFixed(1)} s.${kept}`];
  }
  $("notice").hidden = !text;
  $("notice").dataset.tone = tone;
  $("notice").ariaLive = state === "waiting" ? "off" : "polite"; // nobody wants the seconds read out
  say($("notice"), text);
}

function paintActions(state, sessionId) {
  const off = state === "closed" || state === "waiting";
  const held = document.activeElement;
  $("connect").hidden = !off;
  say($("connect"), state === "waiting" ? "Connect now" : why === "taken_over" ? "Take it back" : sessionId ? "Resume" : "Connect");
  $("disconnect").hidden = state === "closed";
  say($("disconnect"), state === "waiting" ? "Stop trying" : "Disconnect");
  $("goodbye").hidden = state !== "open";
  if (held.hidden) (off ? $("connect") : $("disconnect")).focus(); // who is on a button that goes stays among them
}

/** Sets a text where it changes, so that it is not read out again. */
function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

let turned = 0;
let angle = 0;

/** A third of a turn for each message, and no more than one turn at a time. */
function turn(count) {
  if (count === turned) return;
  angle += 120 * Math.min(Math.max(count - turned, 0), 3);
  turned = count;
  $("arms").style.transform = `rotate(${angle}deg)`;
}

/** What is costly, or would be too much to listen to. */
function paintSlowly() {
  const sorted = [...roundTrips].sort((a, b) => a - b);
  say($("rtt"), duration(roundTrips.at(-1)) || "–");
  say($("rtt-of"), sorted.length === 0 ? "median" : `median of ${number.format(sorted.length)}`);
  say($("rtt-median"), duration(sorted[Math.floor(sorted.length / 2)]) || "–");
  say($("rtt-high"), duration(sorted[Math.ceil(sorted.length * 0.99) - 1]) || "–");
  say($("burst-of"), lastBurst ? `burst of ${number.format(lastBurst.size)}` : "burst");
  say($("burst-time"), duration(lastBurst?.took) || "–");
  const title = client.sessionId ? `${number.format(client.count)} · Turnstile` : "Turnstile";
  if (document.title !== title) document.title = title;
}

let announced = 0;

function announce() {
  if (client.count === announced) return;
  announced = client.count;
  $("said").textContent = `${number.format(announced)} counted, ${number.format(client.unanswered)} unanswered`;
}

$("copy").hidden = !navigator.clipboard;
setInterval(() => { if (client.state === "waiting") paint(); }, 100); // the seconds left
setInterval(paintSlowly, 250);
setInterval(announce, 3000);
client.connect();
watch();
