/**
 * The reference client of message-counter.v2: one session, over as many
 * connections as it takes. No dependencies; browsers, and Node from 18 on.
 *
 * Each message counts exactly once. When a connection is lost, the client
 * resumes its session: the server says how far it has counted, so the first of
 * the unanswered messages are known to have counted, and the others are sent
 * again, in order. Where that cannot be known, the messages are not sent again:
 * their promises are rejected, with a TurnstileError that says why.
 *
 * It relies on being the only client that sends in its session. A client that
 * takes the session over ends that, and is noticed: see "taken_over".
 *
 * Unanswered messages live in memory: they do not outlive the page or process.
 * The session does, if there is a storage to remember it.
 */

const subprotocol = "message-counter.v2";

/** What the server takes for white space, which is not what trim() takes. */
const space = "[\\t-\\r \\u0085\\u00a0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000]*";
const blank = new RegExp(`^${space}$`);
const farewell = new RegExp(`^${space}goodbye${space}$`, "i");

const uuid = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i;

const closeTakenOver = 4001;
const closeTooBig = 1009;
/** Closes that would come again: a wrong protocol, binary, not UTF-8. */
const closesForGood = new Set([1002, 1003, 1007]);

/**
 * Why a message has no count. Known not to have counted: "blank", "goodbye",
 * "too_long", "too_many", "ended". "abandoned": newSession() came first, and whether it counted in the old one is not told. Not
 * known whether it counted: "taken_over" (another client has the session),
 * "session_lost" (the server knows less of the session than this client has
 * seen), "session_shared" (the server counted more than this client sent).
 * @typedef {"blank"|"goodbye"|"too_long"|"too_many"|"ended"|"abandoned"|"taken_over"|"session_lost"|"session_shared"} ErrorCode
 */

/** What a promise of send() or goodbye() is rejected with. */
export class TurnstileError extends Error {
  /** @param {ErrorCode} code @param {string} message */
  constructor(code, message) {
    super(message);
    this.name = "TurnstileError";
    this.code = code;
  }
}

/** An event of Turnstile; what it tells is in detail. */
export class TurnstileEvent extends Event {
  /** @param {string} type @param {any} detail */
  constructor(type, detail) {
    super(type);
    this.detail = detail;
  }
}

/**
 * @typedef {object} Options
 * @property {string|URL} [url] the endpoint, ws: or wss:; by default /ws/chat/ of the server that this module came from
 * @property {string} [sessionId] the session to resume; it goes before the stored one
 * @property {Pick<Storage, "getItem"|"setItem"|"removeItem">|null} [storage] remembers the session: localStorage, say; none by default
 * @property {string} [storageKey] its key there
 * @property {any} [WebSocket] the class to use: in Node before 22, that of the npm package ws
 * @property {number} [maxMessage] bytes of the longest message, the server's -max-message
 * @property {number} [maxUnanswered] messages that may wait for their answer
 * @property {number} [minDelay] milliseconds: the first wait before connecting again is at most so long
 * @property {number} [maxDelay] milliseconds: and none is longer
 * @property {number} [connectTimeout] milliseconds that a connection may take until the session is there
 * @property {number} [silence] milliseconds without a frame after which a connection is dead: 2.5 of the server's heartbeats
 */
const defaults = {
  /** @type {string|URL|undefined} */
  url: import.meta.url.startsWith("http") ? new URL("/ws/chat/", import.meta.url.replace(/^http/, "ws")) : undefined,
  /** @type {string|undefined} */
  sessionId: undefined,
  /** @type {Options["storage"]} */
  storage: null,
  storageKey: "turnstile.session",
  WebSocket: globalThis.WebSocket,
  maxMessage: 65536,
  maxUnanswered: 100_000,
  minDelay: 500,
  maxDelay: 15_000,
  connectTimeout: 10_000,
  silence: 75_000,
};

/**
 * A session on the server. Events, each with a detail:
 * - state {state, why, delay}: "connecting", "open", "waiting" (to connect again, in delay ms), or "closed", and why:
 *   "disconnected", "goodbye", "taken_over" or "refused"
 * - session {sessionId, count, resumed, counted, again}: connected; so many unanswered messages had counted, so many are sent again
 * - sent {text, again}
 * - frame {text, frame, roundTrip}: whatever the server sends, as text and decoded; for a reply, ms since its message was sent
 * - close {code, reason}: a connection ended; 1006 is without a word
 * - lost {sessionId, seen, count}: the server has count where it had answered seen before
 */
export class Turnstile extends EventTarget {
  #options;
  #owner = Math.random().toString(36).slice(2); // this client's name in the storage
  /** @type {string|undefined} */
  #sessionId;
  #known = false; // whether a server has told this client its session
  #count = 0;

  /**
   * In order; the first #sent of them may have been counted already.
   * @type {{text: string, sentAt: number, tries: number, resolve: (count: number) => void, reject: (error: Error) => void}[]}
   */
  #unanswered = [];
  #sent = 0;
  /**
   * The promise of goodbye(), which goes behind all messages.
   * @type {{sent: boolean, resolve: (count: number) => void, reject: (error: Error) => void}|null}
   */
  #leaving = null;

  /** @type {WebSocket|null} */
  #socket = null;
  /** @type {"closed"|"connecting"|"open"|"waiting"} */
  #state = "closed";
  #attempts = 0; // since a session was last there
  /** @type {number|undefined} */
  #retryAfter; // ms that the server asked for
  #left = false; // the goodbye was answered
  #tooBig = false; // the connection ended because a message was too big for the server
  /** @type {any} */
  #timer; // of the next attempt, or of the watch on the connection
  #heardAt = 0;

  /** @param {Options} [options] */
  constructor(options = {}) {
    super();
    this.#options = { ...defaults, ...options };
    const { sessionId, url } = this.#options;
    if (!url) throw new TypeError("no url: pass { url: \"ws://host:port/ws/chat/\" }");
    if (!this.#options.WebSocket) throw new TypeError("no WebSocket here: pass { WebSocket }, of the npm package ws for example");
    if (sessionId !== undefined && !uuid.test(sessionId)) throw new TypeError(`sessionId must be a UUID, not ${sessionId}`);
    this.#sessionId = sessionId ?? this.#stored().session_id;
  }

  /** What the last state event said. */
  get state() { return this.#state; }
  /** The session's ID, undefined before there is one. */
  get sessionId() { return this.#sessionId; }
  /** How many messages of the session have counted, as far as is known here. */
  get count() { return this.#count; }
  /** How many messages have no answer yet. */
  get unanswered() { return this.#unanswered.length; }

  /** Connects, at once if it is waiting to; from then on it connects again by itself. Takes back a session that was taken over. */
  connect() {
    if (this.#state === "closed" || this.#state === "waiting") this.#open();
  }

  /**
   * Sends a message as soon as it can.
   * @param {string} text
   * @returns {Promise<number>} its count; rejected with a TurnstileError if it has none
   */
  send(text) {
    const obstacle = this.#obstacleTo(text);
    if (obstacle) return Promise.reject(obstacle);
    return new Promise((resolve, reject) => {
      this.#unanswered.push({ text, sentAt: 0, tries: 0, resolve, reject });
      this.#flush();
    });
  }

  /**
   * Ends the connection with a goodbye, once all messages before it have gone out.
   * @returns {Promise<number>} the session's count; rejected if there is no connection and none is on its way
   */
  goodbye() {
    if (this.#state === "closed" || this.#leaving) return Promise.reject(new TurnstileError("ended", "there is no connection to leave"));
    return new Promise((resolve, reject) => {
      this.#leaving = { sent: false, resolve, reject };
      this.#flush();
    });
  }

  /** Disconnects and stays so. Unanswered messages wait for connect(). */
  disconnect() {
    this.#detach();
    this.#end("disconnected");
  }

  /** Forgets the session, gives unanswered messages up, and starts a new session. */
  newSession() {
    this.#detach();
    this.#options.storage?.removeItem(this.#options.storageKey);
    this.#sessionId = undefined;
    this.#known = false;
    this.#count = 0;
    this.#endGoodbye();
    this.#giveUp(this.#unanswered.length, "abandoned", "a new session was started before it was answered");
    this.#open();
  }

  /** @param {string} text */
  #obstacleTo(text) {
    const flaw = flawOf(text, this.#options.maxMessage);
    if (flaw) return flaw;
    const { length } = this.#unanswered;
    if (length >= this.#options.maxUnanswered) return new TurnstileError("too_many", `${length} messages wait for their answer already`);
    if (this.#leaving) return new TurnstileError("ended", "goodbye() was called before");
    return null;
  }

  /** @param {string} type @param {object} detail */
  #tell(type, detail) { this.dispatchEvent(new TurnstileEvent(type, detail)); }

  /** @param {"closed"|"connecting"|"open"|"waiting"} state @param {object} [detail] */
  #become(state, detail) {
    this.#state = state;
    this.#tell("state", { state, ...detail });
  }

  #open() {
    clearTimeout(this.#timer);
    this.#retryAfter = undefined;
    this.#left = false;
    const url = new URL(/** @type {string} */ (this.#options.url));
    if (this.#sessionId) url.searchParams.set("session_id", this.#sessionId);
    const socket = new this.#options.WebSocket(url.href, subprotocol);
    this.#socket = socket;
    socket.onopen = () => { if (socket.protocol !== subprotocol) this.#refuse(`the server does not speak ${subprotocol}`); };
    socket.onmessage = (/** @type {MessageEvent} */ event) => this.#onText(event.data);
    socket.onclose = (/** @type {CloseEvent} */ event) => this.#onClose(event.code, event.reason);
    socket.onerror = () => {}; // onclose follows
    this.#heardAt = Date.now();
    this.#watch(this.#options.connectTimeout);
    this.#become("connecting");
  }

  /** Lets go of the connection; whatever still comes from it is not heard. */
  #detach() {
    clearTimeout(this.#timer);
    const socket = this.#socket;
    if (!socket) return;
    this.#socket = null;
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.close(1000);
  }

  /** Takes the connection for dead once nothing has come for ms. @param {number} ms */
  #watch(ms) {
    const left = this.#heardAt + ms - Date.now();
    if (left <= 0) {
      this.#detach();
      this.#onClose(1006, "nothing came in time");
      return;
    }
    this.#timer = setTimeout(() => this.#watch(ms), left);
  }

  /** @param {string} text */
  #onText(text) {
    const socket = this.#socket;
    this.#heardAt = Date.now();
    const frame = decode(text);
    const isReply = "count" in frame && "message" in frame;
    const roundTrip = isReply && this.#unanswered.length > 0 ? now() - this.#unanswered[0].sentAt : undefined;
    if (isReply) this.#onReply(frame.count);
    this.#tell("frame", { text, frame, roundTrip });
    if (this.#socket !== socket) return; // a listener has decided
    if (frame.bye) this.#onBye(frame);
    if (frame.type === "session") this.#onSession(frame);
  }

  /** @param {number} count */
  #onReply(count) {
    if (this.#sent > 0) this.#answer(1, count - 1);
    this.#count = count;
  }

  /** @param {{session_id: string, count: number, resumed: boolean}} frame */
  #onSession({ session_id: sessionId, count, resumed }) {
    const seen = this.#known ? this.#count : count;
    const counted = this.#settle(seen, count);
    this.#sessionId = sessionId;
    this.#known = true;
    this.#attempts = 0;
    this.#remember();
    clearTimeout(this.#timer);
    this.#watch(this.#options.silence);
    const again = this.#unanswered.filter((entry) => entry.tries > 0).length;
    this.#state = "open";
    if (count < seen) this.#tell("lost", { sessionId, seen, count });
    this.#tell("session", { sessionId, count, resumed, counted, again });
    if (this.#state !== "open") return; // a listener has decided
    this.#become("open");
    this.#flush();
  }

  /**
   * Finds out what became of the messages that were sent and not answered: the
   * session's count was seen by this client, and is count now. Returns how many
   * of them are known to have counted.
   * @param {number} seen @param {number} count
   */
  #settle(seen, count) {
    let counted = 0;
    const gained = count - seen;
    if (gained < 0) {
      this.#giveUp(this.#sent, "session_lost",
        `the server has count ${count} where it had answered ${seen}: whether it counted is not known`);
    } else if (gained > this.#sent) {
      this.#giveUp(this.#sent, "session_shared",
        `the session counted ${gained} messages where ${this.#sent} were sent: whether this is one of them is not known`);
    } else {
      counted = this.#answer(gained, seen);
    }
    if (this.#tooBig) this.#giveUp(Math.min(this.#sent, 1), "too_long", "it is too long for the server");
    this.#tooBig = false;
    this.#sent = 0;
    this.#count = count;
    return counted;
  }

  /** Resolves the first n messages, which were counted behind seen. Returns n. @param {number} n @param {number} seen */
  #answer(n, seen) {
    this.#sent -= n;
    for (const entry of this.#unanswered.splice(0, n)) entry.resolve(++seen);
    return n;
  }

  /** Rejects the first n messages. @param {number} n @param {ErrorCode} code @param {string} message */
  #giveUp(n, code, message) {
    this.#sent = Math.max(this.#sent - n, 0);
    for (const entry of this.#unanswered.splice(0, n)) entry.reject(new TurnstileError(code, message));
  }

  /** @param {{total: number, reason?: string, retry_after_ms?: number}} frame */
  #onBye({ total, reason, retry_after_ms: retryAfter }) {
    if (reason === undefined) {
      this.#left = true;
      this.#leaving?.resolve(total);
      this.#leaving = null;
    }
    if (reason === "session_taken_over" && total > this.#count) {
      this.#answer(Math.min(total - this.#count, this.#sent), this.#count);
      this.#count = total;
    }
    this.#retryAfter = retryAfter;
  }

  /** Sends what has not been sent over this connection. */
  #flush() {
    while (this.#state === "open" && this.#sent < this.#unanswered.length) {
      const entry = this.#unanswered[this.#sent++];
      const again = entry.tries++ > 0;
      entry.sentAt = now();
      this.#socket?.send(entry.text);
      this.#tell("sent", { text: entry.text, again });
    }
    if (this.#leaving && !this.#leaving.sent && this.#state === "open") {
      this.#leaving.sent = true;
      this.#socket?.send("goodbye");
      this.#tell("sent", { text: "goodbye", again: false });
    }
  }

  /** @param {number} code @param {string} reason */
  #onClose(code, reason) {
    clearTimeout(this.#timer);
    this.#socket = null;
    this.#tooBig ||= code === closeTooBig;
    if (this.#leaving) this.#leaving.sent = false;
    this.#tell("close", { code, reason });
    if (this.#socket || this.#state === "closed") return; // a listener has decided
    if (code === closeTakenOver) this.#loseSession();
    else if (this.#left) this.#end("goodbye");
    else if (closesForGood.has(code)) this.#end("refused");
    else this.#wait();
  }

  /** @param {string} reason */
  #refuse(reason) {
    this.#detach();
    this.#onClose(1002, reason);
  }

  #loseSession() {
    this.#giveUp(this.#sent, "taken_over", "another client has taken the session over: whether this message counted is not known");
    this.#end("taken_over");
  }

  /** @param {"disconnected"|"goodbye"|"taken_over"|"refused"} why */
  #end(why) {
    this.#endGoodbye();
    this.#attempts = 0;
    this.#become("closed", { why });
  }

  #endGoodbye() {
    this.#leaving?.reject(new TurnstileError("ended", "the connection ended before the goodbye was answered"));
    this.#leaving = null;
  }

  /** Waits as long as the server asked, or at random up to a bound that doubles. */
  #wait() {
    const { minDelay, maxDelay } = this.#options;
    const delay = this.#retryAfter ?? Math.random() * Math.min(maxDelay, minDelay * 2 ** this.#attempts);
    this.#retryAfter = undefined;
    this.#attempts++;
    this.#timer = setTimeout(() => this.#retry(), delay);
    this.#become("waiting", { delay });
  }

  /** Connects again, unless another client of the same storage has the session by now. */
  #retry() {
    const { session_id: sessionId, owner } = this.#stored();
    if (this.#known && sessionId === this.#sessionId && owner !== this.#owner) this.#loseSession();
    else this.#open();
  }

  /** What the storage remembers, {} if that is nothing of use. */
  #stored() {
    const { storage, storageKey } = this.#options;
    const stored = decode(storage?.getItem(storageKey));
    return uuid.test(stored.session_id) ? stored : {};
  }

  #remember() {
    const { storage, storageKey } = this.#options;
    storage?.setItem(storageKey, JSON.stringify({ session_id: this.#sessionId, owner: this.#owner }));
  }
}

/**
 * Why a text is no message that counts: "blank", "goodbye" or "too_long"; null if it is one.
 * @param {string} text
 * @param {number} [maxMessage] bytes, in UTF-8
 */
export function flawOf(text, maxMessage = defaults.maxMessage) {
  if (typeof text !== "string") return new TypeError(`a message is a string, not ${typeof text}`);
  if (blank.test(text)) return new TurnstileError("blank", "nothing but white space does not count, and gets no answer");
  if (farewell.test(text)) return new TurnstileError("goodbye", "this word ends the connection and does not count: use goodbye()");
  if (text.length * 3 <= maxMessage) return null; // a UTF-16 unit takes three bytes at most
  const bytes = new TextEncoder().encode(text).length;
  return bytes > maxMessage ? new TurnstileError("too_long", `it has ${bytes} bytes, of at most ${maxMessage}`) : null;
}

/** The object that text is the JSON of, or an empty one. @param {any} text */
function decode(text) {
  try {
    return Object(JSON.parse(text));
  } catch {
    return {};
  }
}

function now() { return performance.now(); }
