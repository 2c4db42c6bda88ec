// The charts of this instance, from its /metrics/: the page itself makes rates
// and percentiles of what it reads each second.
import { between, parse, quantile, rate, total, valuesOf } from "./exposition.js";
import { timeOfDay } from "./log.js";

const $ = (id) => document.getElementById(id);
const period = 1000; // ms between readings
const shown = 300; // seconds that a chart shows at most
const begin = 60; // and at least
const patience = 5000; // ms that an answer may take

const percentiles = [["p50", 0.5], ["p99", 0.99], ["p99.9", 0.999]];
const most = 8; // workers that have a line of their own
const wholes = Array.from({ length: 24 }, (_, i) => [1, 2, 5][i % 3] * 10 ** Math.floor(i / 3)); // steps of an axis without fractions

/**
 * A chart: its lines, of two readings, by label; how values are written.
 * @type {{title: string, unit: string, write: (v: number) => string, log?: boolean, least?: number,
 *   lines: (before: object, after: object) => [string, number|null][]}[]}
 */
const plans = [
  {
    title: "Connections", unit: "open", write: whole, least: 4,
    lines: (_, after) => [["open", total(after, "websocket_active_connections")]],
  },
  {
    title: "Messages", unit: "a second", write: compact, least: 4,
    lines: (before, after) => [["counted", rate(before, after, "websocket_messages_total")]],
  },
  {
    title: "Message latency", unit: "read to written", write: seconds, log: true,
    lines: (before, after) => quantiles(before, after, "websocket_message_latency_seconds"),
  },
  {
    title: "Loop delay", unit: "99 of 100 ticks within", write: seconds, log: true,
    lines: (before, after) => byWorker(after, (worker) =>
      quantile(between(before, after, "websocket_loop_latency_seconds", { worker }), 0.99)),
  },
  {
    title: "Loops", unit: "connections of each", write: whole, least: 4,
    lines: (_, after) => byWorker(after, (worker) => total(after, "websocket_worker_connections", { worker })),
  },
  { title: "Errors", unit: "a second", write: compact, least: 1, lines: errors },
  {
    title: "Memory", unit: "of the process", write: bytes, least: 1 << 24,
    lines: (_, after) => [
      ["resident", total(after, "process_resident_memory_bytes")],
      ["Go heap", total(after, "go_memstats_heap_inuse_bytes")],
    ],
  },
  {
    title: "Processor", unit: "of one core", write: percent, least: 0.1,
    lines: (before, after) => [
      ["user", rate(before, after, "process_cpu_seconds_user_total")],
      ["system", rate(before, after, "process_cpu_seconds_system_total")],
    ],
  },
];

function quantiles(before, after, name) {
  const observed = between(before, after, name);
  return percentiles.map(([label, q]) => [label, quantile(observed, q)]);
}

function byWorker(reading, of) {
  return valuesOf(reading, "websocket_worker_connections", "worker").slice(0, most).map((worker) => [`loop ${worker}`, of(worker)]);
}

/** All errors together, and the kind that came most. */
function errors(before, after) {
  const kinds = valuesOf(after, "websocket_errors_total", "error_type")
    .map((type) => [type, rate(before, after, "websocket_errors_total", { error_type: type })]);
  const [kind, most] = kinds.reduce((a, b) => (b[1] > a[1] ? b : a), ["", 0]);
  const all = kinds.some(([, value]) => value === null) ? null : kinds.reduce((sum, [, value]) => sum + value, 0);
  return [[most > 0 ? `mostly ${kind.replaceAll("_", " ")}` : "all kinds", all]];
}

function whole(v) { return v.toLocaleString("en", { maximumFractionDigits: 0 }); }

function compact(v) {
  return v < 10_000
    ? v.toLocaleString("en", { maximumFractionDigits: v < 10 ? 1 : 0 })
    : v.toLocaleString("en", { notation: "compact", maximumSignificantDigits: 3 });
}

function seconds(v) {
  if (v < 1e-3) return `${three(v * 1e6)} µs`;
  return v < 1 ? `${three(v * 1e3)} ms` : `${three(v)} s`;
}

function bytes(v) {
  return v < 1e9 ? `${three(v / 1e6)} MB` : `${three(v / 1e9)} GB`;
}

function percent(v) { return `${(v * 100).toLocaleString("en", { maximumFractionDigits: 1 })} %`; }

function three(v) { return v.toLocaleString("en", { maximumSignificantDigits: 3 }); }

/** One card: heading, the values of now or under the pointer, the plot. */
class Chart {
  #plan;
  #data = [[]];
  #labels = [];
  #missed = 0; // columns at the end that stand for no reading
  #plot = null;
  #frame; #legend; #area;

  constructor(plan, box) {
    this.#plan = plan;
    this.#frame = element("figure", "card chart");
    const caption = element("figcaption", "chart-head");
    caption.append(element("h3", "", plan.title), element("span", "label", plan.unit));
    this.#legend = element("p", "legend", "collecting…");
    this.#area = element("div", "plot");
    this.#frame.append(caption, this.#legend, this.#area);
    box.append(this.#frame);
    new ResizeObserver(() => this.#resize()).observe(this.#area);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#build());
  }

  /** Adds what happened between two readings. */
  add(before, after) {
    const lines = this.#plan.lines(before, after);
    this.#grow(lines.length);
    this.#labels = lines.map(([label]) => label);
    this.#missed = 0;
    this.#append(after.at, lines.map(([, value]) => value));
  }

  /** Breaks the lines: nothing is known of this time. */
  interrupt(at) {
    if (this.#data[0].length === 0) return;
    this.#missed++;
    this.#append(at, []);
  }

  #append(at, values) {
    this.#data.forEach((line, i) => line.push(i === 0 ? at : values[i - 1] ?? null));
    while (this.#data[0][0] < at - shown) for (const line of this.#data) line.shift();
    if (this.#plot?.series.length !== this.#data.length) this.#build();
    else this.#plot.setData(this.#data);
    this.#read();
  }

  #grow(lines) {
    while (this.#data.length <= lines) this.#data.push(this.#data[0].map(() => null));
  }

  #build() {
    this.#plot?.destroy();
    this.#plot = null;
    if (this.#data[0].length === 0) return;
    this.#plot = new uPlot(this.#options(), this.#data, this.#area);
    this.#read();
  }

  #options() {
    const style = getComputedStyle(document.documentElement);
    const color = (name) => style.getPropertyValue(name).trim();
    const { log, least, write } = this.#plan;
    const axis = {
      stroke: color("--soft"), font: "11px system-ui, sans-serif", ticks: { show: false }, grid: { stroke: color("--grid"), width: 1 },
    };
    return {
      width: Math.max(this.#area.clientWidth, 120), height: 132, padding: [8, 6, 0, 0],
      legend: { show: false },
      cursor: { sync: { key: "console" }, y: false, drag: { x: false, y: false }, points: { size: 6 } },
      scales: {
        x: { time: false, range: () => [this.#now() - this.#span(), this.#now()] },
        y: log ? { distr: 3, range: (_, low, high) => decades(low, high) } : { range: (_, low, high) => [0, Math.max(high * 1.1, least)] },
      },
      axes: [
        { ...axis, size: 22, gap: 4, splits: () => this.#marks().map((ago) => this.#now() - ago), values: () => this.#marks().map(ago) },
        {
          ...axis, size: 52, gap: 6, space: 28,
          ...(log ? { splits: (_, __, low, high) => powers(low, high) } : {}),
          ...(write === whole ? { incrs: wholes } : {}),
          values: (_, splits) => splits.map((v) => (v === null ? "" : write(v))),
        },
      ],
      series: [{}, ...this.#data.slice(1).map((_, i) => ({
        stroke: color(`--line-${i + 1}`), width: 1.75, spanGaps: false,
        points: { show: true, size: 4, fill: color(`--line-${i + 1}`), filter: (plot, series) => lonely(plot.data[series]) },
        ...(this.#data.length === 2 ? { fill: color("--fill-1") } : {}),
      }))],
      hooks: { setCursor: [() => this.#read()] },
    };
  }

  #now() { return this.#data[0].at(-1) ?? 0; }

  /** The seconds in sight: they grow with what there is to be seen. */
  #span() { return Math.min(Math.max(this.#now() - this.#data[0][0], begin), shown); }

  /** Where the time axis is marked, in seconds before now; not at its end, where the other axis begins. */
  #marks() {
    const span = this.#span();
    const step = span > 150 ? 60 : span > 80 ? 30 : 15;
    return Array.from({ length: Math.floor((span - step / 3) / step) }, (_, i) => (i + 1) * step);
  }

  #resize() { this.#plot?.setSize({ width: this.#area.clientWidth, height: 132 }); }

  /** Writes the values of the last reading, or under the pointer. */
  #read() {
    const at = this.#plot?.cursor.idx ?? this.#data[0].length - 1 - this.#missed;
    const keys = this.#labels.map((label, i) => {
      const value = this.#data[i + 1][at];
      const key = element("span", "key");
      key.append(element("i", `swatch line-${i + 1}`), element("b", "", value == null ? "–" : this.#plan.write(value)), ` ${label}`);
      return key;
    });
    this.#legend.replaceChildren(...keys);
  }
}

function element(name, className = "", text = "") {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}

/** Where a value has none beside it, so that no line shows it. */
function lonely(values) {
  return values.flatMap((value, i) => (value !== null && (values[i - 1] ?? null) === null && (values[i + 1] ?? null) === null ? [i] : []));
}

function ago(s) { return s % 60 === 0 ? `−${s / 60} min` : `−${s} s`; }

/** Whole decades around the values, of which there may be none yet. */
function decades(low, high) {
  if (low === null || !(low > 0)) return [1e-5, 1e-2];
  return [10 ** Math.floor(Math.log10(low) + 1e-9), 10 ** Math.max(Math.ceil(Math.log10(high) - 1e-9), Math.floor(Math.log10(low)) + 2)];
}

function powers(low, high) {
  const from = Math.round(Math.log10(low));
  return Array.from({ length: Math.round(Math.log10(high)) - from + 1 }, (_, i) => 10 ** (from + i));
}

/**
 * What a path answers, as text; undefined where that is of another status than is expected.
 * An unexpected 5xx is a proxy's word that the server has not answered.
 */
async function get(path, ...statuses) {
  const response = await fetch(path, { signal: AbortSignal.timeout(patience) });
  const text = await response.text();
  const { status } = response;
  if ([200, ...statuses].includes(status)) return { status, text };
  if (status >= 500) throw new Error(`${path} answered HTTP ${status}`);
  return { status };
}

async function readVitals() {
  await Promise.all([
    showVital($("health"), "health", get("/healthz/"), (body) => {
      $("uptime").textContent = `up ${span(body.uptime)}`;
      return [body.status === "healthy", body.status];
    }),
    showVital($("readiness"), "readiness", get("/readyz/", 503),
      (body) => [body.ready, body.ready ? "ready" : body.shutting_down ? "draining" : "not ready"]),
  ]);
}

/** Shows what one of the two has said, or that it said nothing. */
async function showVital(place, name, answer, judge) {
  let [good, text] = [false, `${name}: no answer`];
  try {
    const { text: body } = await answer;
    [good, text] = body === undefined ? ["", `${name}: not shown here`] : judge(JSON.parse(body));
  } catch {
    $("uptime").textContent = "";
  }
  place.dataset.good = good;
  if (place.textContent !== text) place.textContent = text;
}

function span(s) {
  const [days, hours, minutes] = [Math.floor(s / 86400), Math.floor(s / 3600) % 24, Math.floor(s / 60) % 60];
  if (days > 0) return `${days} d ${hours} h`;
  return hours > 0 ? `${hours} h ${minutes} min` : minutes > 0 ? `${minutes} min` : `${Math.floor(s)} s`;
}

function showReading(reading) {
  const { version } = reading.samples.get("go_info")?.[0].labels ?? {};
  const workers = valuesOf(reading, "websocket_worker_connections", "worker").length;
  const room = whole(total(reading, "websocket_max_connections") ?? 0);
  const state = [`${workers} ${workers === 1 ? "worker" : "workers"}`, `room for ${room} connections`, version];
  $("watch-state").textContent = state.filter(Boolean).join(" · ");
}

/** Says since when the figures have been out of date, where they are. */
function showStale(stale, since) {
  $("watch").dataset.stale = stale;
  if (!stale) return;
  const extent = since ? `since ${timeOfDay(since)}: these figures are from then` : "yet";
  $("watch-state").textContent = `no answer ${extent}`;
}

/** Says in the place of the charts why there are none. */
function showAbsent(title, text, again) {
  $("absent").hidden = !title;
  $("charts").hidden = Boolean(title);
  $("absent-title").textContent = title;
  $("absent-text").textContent = text;
  $("again").hidden = !again;
}

class Watch {
  #charts = plans.map((plan) => new Chart(plan, $("charts")));
  #before = null; // the last reading, if nothing was missed behind it
  #drawnAt = null; // when the figures were true
  #hidden = false; // there is nothing to draw, or nothing to draw it with
  #rounds = 0;

  constructor() {
    $("again").addEventListener("click", () => { this.#hidden = false; this.#look(); });
    if (globalThis.uPlot) return;
    this.#giveUp("No charts", "/uplot.js did not load: a proxy in front of the server may hold it back. " +
      "Reload the page. Everything else on it works.");
  }

  /** Looks again and again while somebody can see it. */
  async run() {
    if (!document.hidden) {
      const vitals = this.#rounds++ % 2 === 0 ? readVitals() : undefined;
      if (!this.#hidden) await this.#look();
      await vitals;
    } else if (this.#before) {
      this.#interrupt();
    }
    setTimeout(() => this.run(), period);
  }

  async #look() {
    const answer = await get("/metrics/").catch(() => null);
    if (!answer) this.#miss();
    else if (answer.text === undefined) this.#hide(answer.status);
    else this.#take(parse(answer.text, performance.now() / 1000));
  }

  #miss() {
    this.#interrupt();
    showStale(true, this.#drawnAt);
  }

  /** Leaves a gap: a rate over a time without readings would be drawn as if it had been seen. */
  #interrupt() {
    this.#before = null;
    for (const chart of this.#charts) chart.interrupt(performance.now() / 1000);
  }

  #hide(status) {
    this.#interrupt();
    this.#giveUp("No metrics at this address", `/metrics/ answered HTTP ${status}. A proxy may keep it to itself, ` +
      "as it should in public. Everything else on this page works.", true);
  }

  #giveUp(title, text, again = false) {
    this.#hidden = true;
    $("watch-state").textContent = "";
    showAbsent(title, text, again);
  }

  #take(reading) {
    showAbsent("", "", false);
    if (this.#before) this.#draw(reading);
    this.#before = reading;
  }

  #draw(reading) {
    for (const chart of this.#charts) chart.add(this.#before, reading);
    this.#drawnAt = new Date();
    showStale(false);
    showReading(reading);
  }
}

/** Begins to draw. */
export function watch() { new Watch().run(); }
