"use strict";
// Draws each part's charts: latency by percentile, and what went on over time.
(() => {
  const report = JSON.parse(document.getElementById("report").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const colors = () => dark.matches
    ? { ink: "#9aa0a6", grid: "#ffffff14", lines: ["#8ab4f8", "#fcad70", "#7fd6a8"] }
    : { ink: "#6b7076", grid: "#00000012", lines: ["#2b63c6", "#c2570c", "#1a7f4b"] };
  const height = 190;
  let drawn = [];
  let waiting = [];

  // chart makes the frame; it is plotted when all frames are there.
  function chart(box, title, data, series, options) {
    const frame = document.createElement("div");
    frame.className = "chart";
    const heading = document.createElement("h3");
    heading.textContent = title;
    frame.append(heading);
    box.append(frame);
    waiting.push(() => plot(frame, data, series, options));
  }

  function plot(frame, data, series, options) {
    const { ink, grid, lines } = colors();
    // What a legend shows while the pointer is elsewhere would be empty: the last point instead.
    const resting = data[0].length - 1;
    const axis = (more) => ({ stroke: ink, grid: { stroke: grid, width: 1 }, ticks: { stroke: grid, width: 1 }, ...more });
    const chart = new uPlot({
      width: frame.clientWidth, height,
      scales: options.scales,
      series: [options.x, ...series.map((s, i) => ({ stroke: lines[i], width: 2, points: { show: data[0].length < 3 }, ...s }))],
      axes: [axis(options.xAxis), axis({ size: 64, ...options.yAxis }), ...(options.moreAxes || []).map(axis)],
      hooks: { setCursor: [(u) => { if (u.cursor.idx == null) u.setLegend({ idx: resting }); }] },
    }, data, frame);
    chart.setLegend({ idx: resting });
    drawn.push(chart);
  }

  // Percentiles are spread so that each further nine takes the same room.
  const spread = (percentile) => Math.log10(100 / (100 - Math.min(percentile, 99.9999)));
  const nines = [0, 90, 99, 99.9, 99.99, 99.999].map((percent) => [spread(percent), String(percent)]);

  function latency(box, curve) {
    const x = [], y = [];
    for (const [percentile, ms] of curve.points) {
      if (percentile < 100) {
        x.push(spread(percentile));
        y.push(ms);
      }
    }
    chart(box, `${curve.what}: milliseconds by percentile, of ${curve.count.toLocaleString("en")}`, [x, y],
      [{ label: "ms", value: (_, v) => v == null ? "" : v.toPrecision(3) }], {
        scales: { x: { time: false }, y: { range: (_, low, high) => [0, high * 1.05 || 1] } },
        x: { label: "percentile", value: (_, v) => v == null ? "" : (100 - 100 / 10 ** v).toFixed(3) },
        xAxis: {
          splits: () => nines.map(([at]) => at).filter((at) => at <= (x[x.length - 1] || 1)),
          values: (_, splits) => splits.map((at) => (nines.find(([n]) => n === at) || [0, ""])[1]),
        },
        yAxis: {},
      });
  }

  function overTime(box, title, samples, series, scale) {
    chart(box, title, [samples.map((s) => s.at), ...series.map((s) => samples.map((sample) => sample[s.of] / (s.unit || 1)))],
      series.map((s) => ({ label: s.label, value: (_, v) => v == null ? "" : v.toLocaleString("en", { maximumFractionDigits: 2 }) })), {
        scales: { x: { time: false }, y: { range: (_, low, high) => [0, high * 1.05 || 1] } },
        x: { label: "seconds", value: (_, v) => v == null ? "" : v.toFixed(1) },
        xAxis: {}, yAxis: scale || {},
      });
  }

  function draw() {
    for (const plot of drawn) plot.destroy();
    drawn = [];
    waiting = [];
    for (const box of document.querySelectorAll(".charts")) {
      box.replaceChildren();
      const part = report.parts[box.dataset.part];
      if (part.latency) latency(box, part.latency);
      const samples = part.series || [];
      if (samples.length < 2) continue;
      if (samples.some((s) => s.rate > 0)) overTime(box, "messages a second", samples, [{ of: "rate", label: "a second" }]);
      overTime(box, "connections", samples, [{ of: "connections", label: "open" }]);
      if (samples.some((s) => s.resident > 0)) {
        overTime(box, "resident memory of the server, MB", samples, [{ of: "resident", label: "MB", unit: 1e6 }]);
      }
      overTime(box, "processors in use", samples, [{ of: "server", label: "server" }, { of: "generator", label: "generator" }]);
    }
    // Before, the frames are wider than they will be.
    for (const plotNow of waiting) plotNow();
  }

  draw();
  dark.addEventListener("change", draw);
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth !== width) {
      width = innerWidth;
      draw();
    }
  });
})();
