// The console: one session, counted by the server at this address.
const $ = (id) => document.getElementById(id);
const SHOWN = 500; // lines kept in the log
const url = new URL("/ws/chat/", location.href.replace(/^http/, "ws"));

let socket = null;
let sent = []; // when each message still without an answer was sent

function line(mark, text, note = false) {
  const item = document.createElement("li");
  const time = document.createElement("time");
  time.textContent = new Date().toISOString().slice(11, 23);
  const sign = document.createElement("span");
  sign.textContent = mark;
  const body = document.createElement("span");
  body.textContent = text;
  body.className = note ? "note" : "";
  item.append(time, sign, body);
  $("log").prepend(item);
  while ($("log").childElementCount > SHOWN) $("log").lastElementChild.remove();
}

function show(state, text) {
  $("state").className = state;
  $("state").textContent = text;
  const open = state === "open";
  $("form").querySelector("[type=submit]").disabled = !open;
  $("leave").disabled = !open;
  $("resume").disabled = open || !remembered();
}

function remembered() {
  return sessionStorage.getItem("session");
}

function connect(session) {
  if (socket) { socket.onclose = null; socket.onmessage = null; socket.close(); }
  const target = new URL(url);
  if (session) target.searchParams.set("session_id", session);
  show("", "connecting…");
  sent = [];
  socket = new WebSocket(target, "message-counter.v2");
  socket.onopen = () => show("open", "connected");
  socket.onmessage = (event) => receive(event.data);
  socket.onclose = (event) => {
    const why = `closed, code ${event.code}${event.reason ? ` (${event.reason})` : ""}`;
    line("×", why, true);
    show("closed", why);
  };
}

function receive(data) {
  const now = performance.now();
  const frame = JSON.parse(data);
  line("↓", data);
  if (frame.type === "session") {
    sessionStorage.setItem("session", frame.session_id);
    $("session").textContent = frame.session_id;
  }
  if ("count" in frame) $("count").textContent = frame.count;
  if ("message" in frame) {
    const at = sent.shift();
    if (at !== undefined) $("rtt").textContent = `${(now - at).toFixed(1)} ms`;
  }
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("text").value;
  if (!socket || socket.readyState !== WebSocket.OPEN) return;
  socket.send(text);
  line("↑", text);
  const word = text.trim().toLowerCase();
  if (word !== "" && word !== "goodbye") sent.push(performance.now());
  $("text").value = "";
});
$("leave").addEventListener("click", () => socket?.close(1000));
$("resume").addEventListener("click", () => connect(remembered()));
$("fresh").addEventListener("click", () => { $("count").textContent = "0"; connect(null); });

connect(remembered());
