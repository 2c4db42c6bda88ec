// A real Chromium with the console in it. A page here notices what no page of
// the console may do: an error in its console, a request to somewhere else.
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { installed, need, patience } from "./parts.mjs";

const playwright = installed("playwright-core");
const names = ["chromium", "chromium-browser", "google-chrome"];
const executablePath = names.map((name) => spawnSync("sh", ["-c", `command -v ${name}`]).stdout.toString().trim()).find(Boolean);

/** What a browser itself says of a connection that fails: the server is killed and away in some tests. */
const networkError = /^(WebSocket connection to .* failed|Failed to load resource: )/;

let browser;
const faultsOf = new WeakMap(); // what the pages of a test should not have done

/** Starts the browser, once for all tests of the file. */
export async function openBrowser(t) {
  const there = need(t, executablePath, "chromium") && need(t, playwright, "the npm package playwright-core");
  if (!there) return false;
  browser ??= await playwright.chromium.launch({
    executablePath,
    timeout: patience,
    args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-component-update", "--no-first-run",
      "--disable-background-networking", "--disable-sync"],
  });
  return true;
}

export async function closeBrowser() { await browser?.close(); }

/** A person's browser: its pages share a storage. */
export async function openContext(t, options) {
  const context = await browser.newContext({ viewport: { width: 1440, height: 900 }, ...options });
  context.setDefaultTimeout(patience);
  t.after(() => context.close());
  return context;
}

/** To be called before the test's servers end, which the pages would complain of. */
export function assertNoFaults(t) { assert.deepEqual(faultsOf.get(t) ?? [], []); }

/** Opens the console of a server, and notes what breaks its promises. */
export async function openConsole(t, server, context, { lossy = false } = {}) {
  const page = await context.newPage();
  const faults = faultsOf.get(t) ?? [];
  faultsOf.set(t, faults);
  page.on("pageerror", (error) => faults.push(`error: ${error.message}`));
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type()) && !(lossy && networkError.test(message.text()))) faults.push(message.text());
  });
  page.on("request", (request) => {
    if (new URL(request.url()).host !== server.address) faults.push(`request to ${request.url()}`);
  });
  page.on("websocket", (socket) => {
    if (new URL(socket.url()).host !== server.address) faults.push(`connection to ${socket.url()}`);
  });
  await page.goto(server.page);
  return new Console(page);
}

/** The console as a person sees it. */
export class Console {
  constructor(page) { this.page = page; }

  /** Waits until an element has a text, or matches a pattern. */
  async sees(selector, wanted) {
    const source = wanted instanceof RegExp ? wanted.source : `^${wanted}$`;
    const matches = ([selector, source]) => new RegExp(source).test(document.querySelector(selector)?.textContent);
    await this.page.waitForFunction(matches, [selector, source]).catch(async (error) => {
      throw new Error(`${selector} is ${JSON.stringify(await this.text(selector))}, not ${wanted}`, { cause: error });
    });
  }

  text(selector) { return this.page.textContent(selector); }

  async send(text) {
    await this.page.fill("#text", text);
    await this.page.press("#text", "Enter");
  }

  press(name) { return this.page.getByRole("button", { name, exact: true }).click(); }

  /** The lines of the log in sight that have a class. */
  lines(kind, cell = "text") { return this.page.locator(`.row.${kind}:visible .${cell}`).allTextContents(); }
}
