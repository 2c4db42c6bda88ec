// exposition.js: reading metrics, and what it makes of two readings.
import assert from "node:assert/strict";
import { test } from "node:test";
import { between, buckets, parse, quantile, rate, total, valuesOf } from "../console/exposition.js";
import { startServer } from "./parts.mjs";

const page = `# HELP a_total What it is.
# TYPE a_total counter
a_total{kind="x",worker="0"} 3
a_total{kind="x",worker="1"} 4.5e1
a_total{kind="say \\"hi\\", {}\\\\\\n",worker="0"} 1
b 7
c_bucket{le="0.1"} 1
c_bucket{le="+Inf"} 4
`;

test("samples are read with their labels", () => {
  const reading = parse(page, 0);
  assert.equal(total(reading, "a_total"), 49);
  assert.equal(total(reading, "a_total", { kind: "x" }), 48);
  assert.equal(total(reading, "a_total", { kind: "x", worker: "0" }), 3);
  assert.equal(total(reading, "b"), 7);
  assert.equal(total(reading, "nothing"), null);
  assert.deepEqual(valuesOf(reading, "a_total", "kind"), ["x", "say \"hi\", {}\\\n"]);
  assert.deepEqual(buckets(reading, "c"), [{ le: 0.1, count: 1 }, { le: Infinity, count: 4 }]);
});

test("a rate is of the time between, and none over a restart", () => {
  const [before, after] = [parse("n 10\n", 2), parse("n 25\n", 5)];
  assert.equal(rate(before, after, "n"), 5);
  assert.equal(rate(after, before, "n"), null);
  assert.equal(rate(before, parse("n 3\n", 5), "n"), null);
  assert.equal(rate(before, after, "m"), null);
});

test("a quantile lies within its bucket", () => {
  const of = (...counts) => [1, 2, 4, Infinity].map((le, i) => ({ le, count: counts[i] }));
  assert.equal(quantile(of(0, 10, 10, 10), 0.5), 1.5);
  assert.equal(quantile(of(10, 10, 10, 10), 0.5), 0.5);
  assert.equal(quantile(of(2, 6, 8, 8), 0.25), 1);
  assert.equal(quantile(of(0, 0, 8, 8), 1), 4);
  assert.equal(quantile(of(0, 0, 0, 5), 0.5), 4, "beyond the last bound");
  assert.equal(quantile(of(0, 0, 0, 0), 0.5), null);
  assert.equal(quantile([], 0.5), null);
  assert.equal(quantile(null, 0.5), null);
});

test("a histogram is told between two readings, over all workers or for one", () => {
  const histogram = (...rows) => parse(rows.map(([worker, le, n]) => `h_bucket{worker="${worker}",le="${le}"} ${n}\n`).join(""), 0);
  const before = histogram([0, "1", 5], [0, "+Inf", 9], [1, "1", 1], [1, "+Inf", 1]);
  const after = histogram([0, "1", 6], [0, "+Inf", 12], [1, "1", 4], [1, "+Inf", 4]);
  assert.deepEqual(between(before, after, "h"), [{ le: 1, count: 4 }, { le: Infinity, count: 6 }]);
  assert.deepEqual(between(before, after, "h", { worker: "1" }), [{ le: 1, count: 3 }, { le: Infinity, count: 3 }]);
  assert.equal(between(after, before, "h"), null);
});

test("the server's page is read whole, and has what the charts show", async (t) => {
  const server = await startServer(t, "-workers", "3");
  const text = await (await fetch(new URL("metrics/", server.page), { cache: "no-store" })).text();
  const reading = parse(text, 0);
  const rows = text.split("\n").filter((row) => row && !row.startsWith("#"));
  assert.equal([...reading.samples.values()].flat().length, rows.length);
  assert.deepEqual(valuesOf(reading, "websocket_worker_connections", "worker"), ["0", "1", "2"]);
  for (const name of ["websocket_active_connections", "websocket_messages_total", "websocket_errors_total",
    "websocket_max_connections", "process_resident_memory_bytes", "go_memstats_heap_inuse_bytes",
    "process_cpu_seconds_user_total", "process_cpu_seconds_system_total"]) {
    assert.ok(Number.isFinite(total(reading, name)), name);
  }
  for (const name of ["websocket_message_latency_seconds", "websocket_loop_latency_seconds"]) {
    assert.equal(buckets(reading, name, { worker: "2" }).at(-1).le, Infinity, name);
  }
});
