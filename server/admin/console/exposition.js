// Reads the Prometheus text format, and makes of two readings what happened
// between them. Pure: nothing here knows the page.

/**
 * @typedef {{labels: Object<string, string>, value: number}} Sample
 * @typedef {{at: number, samples: Map<string, Sample[]>}} Reading at: seconds, of any steady clock
 * @typedef {{le: number, count: number}[]} Buckets cumulative, in order of le
 */

const line = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/;
const label = /(\w+)="((?:[^"\\]|\\.)*)"/g;
const escapes = { n: "\n", "\\": "\\", "\"": "\"" };

/**
 * The samples of a page, by the metric's name.
 * @param {string} text @param {number} at
 * @returns {Reading}
 */
export function parse(text, at) {
  const samples = new Map();
  for (const row of text.split("\n")) {
    const match = line.exec(row);
    if (!match) continue; // a comment, or empty
    const [, name, labels = "", value] = match;
    if (!samples.has(name)) samples.set(name, []);
    samples.get(name).push({ labels: parseLabels(labels), value: parseValue(value) });
  }
  return { at, samples };
}

function parseLabels(text) {
  const labels = {};
  for (const [, name, value] of text.matchAll(label)) labels[name] = value.replace(/\\(.)/g, (whole, c) => escapes[c] ?? whole);
  return labels;
}

function parseValue(text) {
  return text.endsWith("Inf") ? (text.startsWith("-") ? -Infinity : Infinity) : Number(text);
}

/** The sum of a metric's samples that have the given labels; null if there is none. */
export function total(reading, name, labels = {}) {
  const samples = matching(reading, name, labels);
  return samples.length === 0 ? null : samples.reduce((sum, sample) => sum + sample.value, 0);
}

function matching(reading, name, labels) {
  const wanted = Object.entries(labels);
  return (reading.samples.get(name) ?? []).filter((sample) => wanted.every(([key, value]) => sample.labels[key] === value));
}

/** The values that a label of a metric has. */
export function valuesOf(reading, name, key) {
  return [...new Set((reading.samples.get(name) ?? []).map((sample) => sample.labels[key]))];
}

/** By how much a counter grew each second; null if it is not there, or has begun anew. */
export function rate(before, after, name, labels) {
  const [from, to] = [total(before, name, labels), total(after, name, labels)];
  if (from === null || to === null || to < from || after.at <= before.at) return null;
  return (to - from) / (after.at - before.at);
}

/**
 * A histogram's buckets, summed over the samples with the given labels.
 * @returns {Buckets}
 */
export function buckets(reading, name, labels = {}) {
  const counts = new Map();
  for (const { labels: { le }, value } of matching(reading, `${name}_bucket`, labels)) {
    const bound = parseValue(le);
    counts.set(bound, (counts.get(bound) ?? 0) + value);
  }
  return [...counts].map(([le, count]) => ({ le, count })).sort((a, b) => a.le - b.le);
}

/** What was observed between two readings; null if the histogram has begun anew. */
export function between(before, after, name, labels) {
  const old = new Map(buckets(before, name, labels).map(({ le, count }) => [le, count]));
  const grown = buckets(after, name, labels).map(({ le, count }) => ({ le, count: count - (old.get(le) ?? 0) }));
  return grown.some(({ count }) => count < 0) ? null : grown;
}

/**
 * An estimate of a quantile, evenly spread within its bucket; null without an
 * observation. Beyond the last bound nothing is known, and it is that bound.
 * @param {Buckets|null} observed @param {number} q from 0 to 1
 */
export function quantile(observed, q) {
  const all = observed?.at(-1)?.count ?? 0;
  if (all === 0) return null;
  const rank = q * all;
  const at = observed.findIndex(({ count }) => count >= rank);
  const { le, count } = observed[at];
  const { le: low, count: below } = observed[at - 1] ?? { le: 0, count: 0 };
  if (le === Infinity) return low;
  return count === below ? le : low + (le - low) * (rank - below) / (count - below);
}
