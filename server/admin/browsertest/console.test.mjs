// The console in a real browser, on the real server.
import assert from "node:assert/strict";
import { readdirSync } from "node:fs";
import { after, test } from "node:test";
import { assertNoFaults, closeBrowser, openBrowser, openConsole, openContext } from "./browser.mjs";
import { faintTexts, flawsOfLayout } from "./looks.mjs";
import { eventually, haveRedis, need, patience, startProxy, startRedis, startServer } from "./parts.mjs";

after(closeBrowser);

/** A test in a browser. */
function check(name, run) {
  test(name, { timeout: 10 * patience }, async (t) => {
    if (!(await openBrowser(t))) return;
    await run(t);
    assertNoFaults(t);
  });
}

function checkWithRedis(name, run) {
  check(name, async (t) => { if (need(t, haveRedis(), "redis-server")) await run(t, await startRedis(t)); });
}

/** Flags of a server whose heartbeats do not move lines out of sight. */
const silent = ["-heartbeat", "1h"];

check("connect, send, count", async (t) => {
  const server = await startServer(t, ...silent);
  const console = await openConsole(t, server, await openContext(t));
  await console.sees("#state", "Connected");
  await console.sees("#session", /^[0-9a-f-]{36}$/);
  await console.sees("#count", "0");
  for (const text of ["one", "two", "three"]) await console.send(text);
  await console.sees("#count", "3");
  await console.sees("#rtt", /^[\d.]+ m?s$/);
  await eventually("the replies are lines", async () => (await console.lines("reply", "number")).join() === "1,2,3");
  assert.deepEqual(await console.lines("reply"), ["one", "two", "three"]);

  await console.send(" \n ");
  await console.sees("#flaw", /white space/);
  await console.send("x".repeat(65_537));
  await console.sees("#flaw", /65537 bytes, of at most 65536/);
  await console.sees("#count", "3");

  await console.press("Disconnect");
  await console.sees("#state", "Disconnected");
  assert.equal(await console.page.evaluate(() => document.activeElement.id), "connect", "the focus goes where the next step is");
  await console.press("Resume");
  await console.sees("#state", "Connected");

  await console.send("Goodbye");
  await console.sees("#state", "Goodbye");
  await console.press("Resume");
  await console.sees("#state", "Connected");
  await console.sees("#count", "3");
  const session = await console.text("#session");
  await console.page.reload();
  await console.sees("#session", session);
  await console.sees("#count", "3");
  await console.press("New session");
  await console.sees("#count", "0");
  assert.notEqual(await console.text("#session"), session);
});

check("the browser's messages and their replies are compressed", async (t) => {
  const server = await startServer(t, ...silent, "-compress=1");
  const console = await openConsole(t, server, await openContext(t));
  const text = "0123456789".repeat(6000);
  await console.send(text);
  await console.sees("#count", "1");
  await eventually("the reply is a line", async () => (await console.lines("reply")).length === 1);
  assert.ok(text.startsWith((await console.lines("reply"))[0].replace(/…$/, ""))); // a long line is cut
  assert.ok((await server.metric("websocket_bytes_in_total")) < text.length / 2);
  assert.ok((await server.metric("websocket_compress_saved_bytes_total")) > text.length / 2);
});

check("a heartbeat is a line", async (t) => {
  const console = await openConsole(t, await startServer(t, "-heartbeat", "1s"), await openContext(t));
  await eventually("it shows", async () => (await console.lines("beat")).some((text) => text.startsWith("heartbeat ")));
});

check("a burst's time is told apart from one message's", async (t) => {
  const console = await openConsole(t, await startServer(t, ...silent), await openContext(t, { viewport: { width: 1440, height: 1600 } }));
  await console.send("alone");
  await console.sees("#rtt-of", "median of 1");
  const alone = await console.text("#rtt");
  await console.page.fill("#burst-size", "5");
  await console.press("Send burst");
  await console.sees("#burst-of", "burst of 5");
  await console.sees("#burst-time", /^[\d.]+ m?s$/);
  await eventually("its end is a line", async () => (await console.lines("good")).some((text) => /^burst of 5 in [\d.]+ m?s$/.test(text)));
  assert.deepEqual(await console.lines("reply", "round-trip"), [alone, "", "", "", "", ""]);
  await console.send("alone again");
  await console.sees("#rtt-of", "median of 2");
});

checkWithRedis("the count goes on over a killed server", async (t, redis) => {
  const server = await startServer(t, "-redis", redis);
  const proxy = await startProxy(t, server.address);
  const console = await openConsole(t, proxy, await openContext(t), { lossy: true });
  const burst = async (n) => {
    await console.page.fill("#burst-size", String(n));
    await console.press("Send burst");
  };
  await burst(200);
  await console.sees("#count", "200");

  // The server counts 300 more, and is killed before the page hears of it.
  proxy.deaf = true;
  await burst(300);
  await eventually("the server has counted them", async () => (await server.metric("websocket_messages_total")) === 500);
  await server.kill();
  proxy.deaf = false;
  await console.sees("#state", "Connection lost");
  await console.send("while it was away");
  await console.send("and another one");
  await server.start();
  await console.sees("#count", "502");
  await console.sees("#notice", "Resumed at 500. Of the unanswered messages, 300 had counted; 0 are sent again.");
  await eventually("the last replies are lines",
    async () => (await console.lines("reply")).slice(-2).join() === "while it was away,and another one");

  // And in the middle of a burst, wherever that finds it.
  await burst(3000);
  await console.sees("#count", /^[1-9],/);
  await server.kill();
  await console.sees("#state", "Connection lost");
  await server.start();
  await console.sees("#unanswered", "0");
  await eventually("the last reply is a line", async () => (await console.lines("reply")).at(-1) === "burst 3000 of 3000");
  assert.equal((await console.lines("reply", "number")).at(-1), "3,502");
});

checkWithRedis("a drained server is waited for", async (t, redis) => {
  const server = await startServer(t, "-redis", redis, "-drain-timeout", "2s");
  const console = await openConsole(t, server, await openContext(t), { lossy: true });
  await console.send("before");
  await console.sees("#count", "1");
  await server.stop("SIGTERM");
  await console.sees("#state", "Connection lost");
  await console.sees("#notice", /^Connecting again in/);
  assert.match((await console.lines("warn")).join(), /bye at 1, server_shutdown, come back in/);
  await server.start();
  await console.send("after");
  await console.sees("#count", "2");
  await console.sees("#state", "Connected");
});

check("what the server has forgotten is said", async (t) => {
  const server = await startServer(t);
  const console = await openConsole(t, server, await openContext(t), { lossy: true });
  await console.send("before");
  await console.sees("#count", "1");
  await server.kill(); // without a store
  await server.start();
  await console.sees("#notice", /is at 0 where it had answered 1/);
  await console.sees("#count", "0");

  await console.press("Disconnect");
  await server.kill();
  await server.start();
  await console.page.reload();
  await console.sees("#notice", /did not know this session any more/);
});

check("a second tab takes the session over", async (t) => {
  const server = await startServer(t);
  const context = await openContext(t);
  const first = await openConsole(t, server, context);
  await first.send("mine");
  await first.sees("#count", "1");
  const second = await openConsole(t, server, context);
  await second.sees("#session", await first.text("#session"));
  await first.sees("#state", "Taken over");
  await first.sees("#notice", /newest wins/);
  await second.send("yours");
  await second.sees("#count", "2");
  await first.press("Take it back");
  await first.sees("#count", "2");
  await second.sees("#state", "Taken over");
});

check("text from the network stays text", async (t) => {
  const server = await startServer(t, ...silent);
  const console = await openConsole(t, server, await openContext(t, { viewport: { width: 1440, height: 1600 } })); // all lines are in sight
  const hostile = [
    "<img src=x onerror=document.title='hurt'>", "</span><script>document.title='hurt'</script>", "&lt;b&gt; \" ' `",
    "\u{1f600}\u{10ffff} e\u0301\u0301\u0301", "\u202e\u05e9\u05dc\u05d5\u05dd \u2066 right to left",
    "\u0001\u0007\u001b[31m", `${"é".repeat(32_760)}<b>bold</b>`,
  ];
  for (const text of hostile) await console.send(text);
  await console.sees("#count", String(hostile.length));
  await eventually("the replies are lines", async () => (await console.lines("reply")).length === hostile.length);
  const lines = await console.lines("reply");
  hostile.forEach((text, i) => assert.equal(lines[i], text.length > 400 ? `${text.slice(0, 400)}…` : text));
  assert.equal(await console.page.locator("#log :is(img, script, b)").count(), 0);
  assert.match(await console.page.title(), /Turnstile$/);

  await console.page.locator(".row.reply").last().click();
  const whole = JSON.parse(await console.text("#detail-text"));
  assert.equal(whole.message, hostile.at(-1));
});

check("bursts of thousands leave the page quick, and the log within bounds", async (t) => {
  const server = await startServer(t, ...silent);
  const console = await openConsole(t, server, await openContext(t));
  await console.sees("#state", "Connected");
  await console.page.fill("#burst-size", "6000");
  await console.press("Send burst");
  await console.sees("#count", "6,000");
  await console.sees("#log-size", /^[\d,]+ lines$/);
  const kept = Number((await console.text("#log-size")).replace(/\D/g, ""));
  assert.ok(kept > 2_000 && kept <= 10_000, `${kept} lines are kept`);
  assert.ok(await console.page.locator(".row").count() < 100, "only what is in sight is drawn");
  await eventually("the newest is in sight", async () => (await console.lines("reply", "number")).at(-1) === "6,000");

  // By keyboard: up from the newest, which is the end of the burst, one whole, and back.
  await eventually("the burst's end is in sight", async () => (await console.lines("good")).at(-1)?.startsWith("burst of 6,000 in "));
  await console.page.focus("#log");
  for (let i = 0; i < 3; i++) await console.page.keyboard.press("ArrowUp");
  await console.page.keyboard.press("Enter");
  assert.equal(JSON.parse(await console.text("#detail-text")).count, 5_999);
  await console.page.keyboard.press("Escape");
  await console.send("one more");
  await console.sees("#count", "6,001");
  await eventually("it follows again", async () => (await console.lines("reply", "number")).at(-1) === "6,001");
});

check("the charts draw what happens", async (t) => {
  const server = await startServer(t);
  const context = await openContext(t);
  const console = await openConsole(t, server, context);
  await console.sees("#watch-state", /workers? · room for/);
  await console.sees("#health", /healthy$/);
  await console.sees("#readiness", /ready$/);
  const chart = (title) => console.page.locator(".chart", { has: console.page.getByRole("heading", { name: title, exact: true }) });
  await eventually("all have a plot", async () => (await console.page.locator(".chart canvas").count()) === 8);
  const connections = chart("Connections").locator(".legend");
  await eventually("the page's own connection shows", async () => /^1 open/.test(await connections.textContent()));
  const inks = () => chart("Messages").locator("canvas").evaluate((canvas) => {
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    let n = 0;
    for (let i = 0; i < data.length; i += 4) if (data[i + 3] > 200 && data[i + 2] > data[i] + 80) n++;
    return n;
  });
  await console.page.fill("#burst-size", "300");
  let highest = 0;
  await eventually("messages a second show", async () => {
    await console.press("Send burst");
    highest = Math.max(highest, Number.parseFloat((await chart("Messages").locator(".legend b").textContent()).replace(/,/g, "")) || 0);
    return highest > 50 && (await inks()) > 100;
  });
  await eventually("latency has percentiles", async () => {
    await console.send("measured"); // without messages there are none
    return /\d [µm]?s p50.*\d [µm]?s p99/.test(await chart("Message latency").locator(".legend").textContent());
  });
});

/** Keeps the page's charts where a test can look at them, in window.plots. */
async function keepPlots(context) {
  await context.addInitScript(() => {
    window.plots = [];
    let kept;
    Object.defineProperty(window, "uPlot", {
      configurable: true,
      get: () => kept,
      set: (uPlot) => {
        kept = new Proxy(uPlot, { construct: (make, options) => window.plots[window.plots.push(new make(...options)) - 1] });
      },
    });
  });
}

/** The page's charts: how each looks, from the values that it was given. */
function readPlots(console) {
  return console.page.evaluate(() => window.plots.filter(({ root }) => root.isConnected).map(({ root, data }) => ({
    title: root.closest(".chart").querySelector("h3").textContent,
    at: [...data[0]],
    lines: data.slice(1).map((line) => [...line]),
  })));
}

check("an outage is a gap, and figures from before it look so", async (t) => {
  const server = await startServer(t, ...silent);
  const context = await openContext(t, { viewport: { width: 1440, height: 1600 } });
  await keepPlots(context);
  const console = await openConsole(t, server, context, { lossy: true });
  const colors = (selector) => console.page.evaluate(
    (selector) => [...document.querySelectorAll(selector)].map((figure) => getComputedStyle(figure).color), selector);
  const figures = ".legend b, #count, .facts dd:not(#unanswered)";
  await console.send("before");
  await console.sees("#count", "1");
  await eventually("each chart has lines", async () => {
    const plots = await readPlots(console);
    return plots.length === 8 && plots.every(({ at }) => at.length >= 3);
  });
  const [soft] = await colors("#count-of");
  assert.ok((await colors(figures)).every((color) => color !== soft));
  assert.equal(await console.text("#count-of"), "messages counted in this session");

  const [{ at: { length: known } }] = await readPlots(console);
  await server.kill();
  await console.sees("#watch-state", /^no answer since \d\d:\d\d:\d\d: these figures are from then$/);
  await console.sees("#count-of", /as of \d\d:\d\d:\d\d$/);
  await console.sees("#health", "health: no answer");
  assert.ok((await colors(figures)).every((color) => color === soft), "figures from before have the colour of what matters less");
  assert.match(await console.page.locator(".legend").first().textContent(), /^1 open/, "the last figure stays");
  await eventually("a new attempt has failed", async () => (await console.lines("bad")).includes("could not connect"));
  assert.equal((await console.lines("bad"))[0], "connection lost");
  await eventually("the outage takes its place in the charts",
    async () => (await readPlots(console)).every(({ lines }) => lines.every((line) => line.at(-1) === null)));

  await server.start();
  await console.sees("#watch-state", /workers? · room for/);
  await console.sees("#count-of", "messages counted in this session");
  await eventually("figures look as before", async () => (await colors(figures)).every((color) => color !== soft));
  for (const { title, lines } of await readPlots(console)) {
    for (const line of lines) assert.ok(line.indexOf(null, known - 1) > 0, `${title}: ${line} has a gap behind value ${known}`);
  }
  const [connections] = await readPlots(console);
  assert.equal(connections.title, "Connections");
  assert.match(connections.lines[0].slice(known - 1).map((value) => (value === null ? " " : "x")).join(""), /^x+ +x/);
});

check("a proxy that has no server behind it is an outage too", async (t) => {
  const context = await openContext(t);
  const console = await openConsole(t, await startServer(t), context, { lossy: true });
  await console.sees("#watch-state", /workers? · room for/);
  await context.route(/\/(metrics|healthz|readyz)\/$/, (route) => route.fulfill({ status: 502, body: "Bad Gateway" }));
  await console.sees("#watch-state", /^no answer since/);
  await console.sees("#health", "health: no answer");
  await console.sees("#readiness", "readiness: no answer");
  assert.ok(await console.page.isVisible("#charts"));
  await context.unrouteAll();
  await console.sees("#watch-state", /workers? · room for/);
});

check("a script that does not load leaves a sentence", async (t) => {
  const server = await startServer(t);
  const openWithout = async (name) => {
    const context = await openContext(t);
    await context.route(`**/${name}`, (route) => route.fulfill({ status: 404, contentType: "application/json", body: "{}" }));
    return openConsole(t, server, context, { lossy: true });
  };
  const modules = readdirSync(new URL("../console/", import.meta.url)).filter((name) => name.endsWith(".js"));
  await Promise.all(modules.map(async (name) => {
    const console = await openWithout(name);
    await console.page.getByText("one of its files did not load").waitFor()
      .catch((cause) => { throw new Error(`without ${name}`, { cause }); });
    assert.equal(await console.text("#state"), "Not connected");
  }));

  const chartless = await openWithout("uplot.js");
  await chartless.page.getByText("/uplot.js did not load").waitFor();
  await chartless.sees("#state", "Connected");
  assert.equal(await chartless.page.locator("#notice:visible, #charts:visible, #again:visible").count(), 0);
});

check("at each width, light and dark, all has its place and a name, and can be read", async (t) => {
  const server = await startServer(t, ...silent);
  const console = await openConsole(t, server, await openContext(t), { lossy: true });
  const { page } = console;
  const look = async (when) => {
    for (const [width, height] of [[360, 740], [390, 844], [1280, 800], [1366, 768], [1920, 1080]]) {
      for (const colorScheme of ["light", "dark"]) {
        await page.setViewportSize({ width, height });
        await page.emulateMedia({ colorScheme });
        // The second frame begins once the page is drawn anew.
        await page.evaluate(() => new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve))));
        const name = `${width} × ${height}, ${colorScheme}, ${when}`;
        assert.deepEqual(await page.evaluate(flawsOfLayout), [], name);
        assert.deepEqual(await page.evaluate(faintTexts), [], name);
        const ground = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
        assert.match(ground, colorScheme === "dark" ? /^rgb\(19, / : /^rgb\(251, /, name);
      }
    }
  };
  await console.send("a message that is rather long, so that its line has to end somewhere within the page");
  await console.sees("#rtt-of", "median of 1");
  await page.fill("#burst-size", "1000");
  await console.press("Send burst");
  await console.sees("#burst-of", "burst of 1,000");
  await page.mouse.move(0, 0);
  await page.focus("#log");
  for (let i = 0; i < 2; i++) await page.keyboard.press("ArrowUp");
  await page.locator(".row[aria-selected=true].reply").waitFor();
  await eventually("the charts have figures", async () => (await page.locator(".chart .legend b").count()) >= 8);
  await look("connected");
  await server.kill();
  await console.sees("#state", "Connection lost");
  await console.send("while it was away");
  await console.sees("#watch-state", /^no answer/);
  await look("in an outage");
});

check("the policy holds", async (t) => {
  const server = await startServer(t);
  const context = await openContext(t);
  const page = await context.newPage(); // not openConsole: here errors are wanted
  await page.goto(server.page);
  const blocked = await page.evaluate(() => new Promise((resolve) => {
    const found = [];
    document.addEventListener("securitypolicyviolation", (event) => {
      if (found.push(event.effectiveDirective) === 3) resolve(found.sort());
    });
    const script = document.createElement("script");
    script.textContent = "window.hurt = true";
    document.body.append(script);
    document.body.append(Object.assign(document.createElement("img"), { src: "http://127.0.0.1:1/x.png" }));
    fetch("http://127.0.0.1:1/").catch(() => {});
  }));
  assert.deepEqual(blocked, ["connect-src", "img-src", "script-src-elem"]);
  assert.equal(await page.evaluate(() => window.hurt), undefined);
});
