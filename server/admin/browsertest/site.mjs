// The console of a site that runs already, in a real browser, as its public sees
// it: through a proxy that keeps /metrics/ to itself. The tests of deploy/ run it:
//   TURNSTILE_SITE=http://127.0.0.1:8080 node --test server/admin/browsertest/site.mjs
import assert from "node:assert/strict";
import { after, test } from "node:test";
import { assertNoFaults, closeBrowser, openBrowser, openConsole, openContext } from "./browser.mjs";
import { patience } from "./parts.mjs";

const site = new URL(process.env.TURNSTILE_SITE);

after(closeBrowser);

test(`the console of ${site}`, { timeout: 4 * patience }, async (t) => {
  if (!(await openBrowser(t))) return;
  const context = await openContext(t, { ignoreHTTPSErrors: true }); // a certificate of the tests' own
  const console = await openConsole(t, { address: site.host, page: site.href }, context, { lossy: true });
  await console.sees("#state", "Connected");
  const text = "through the proxy ".repeat(10).trim(); // long enough that compression makes its reply shorter
  await console.send(text);
  await console.sees("#count", "1");
  await console.sees("#rtt", /^[\d.]+ m?s$/);
  assert.deepEqual(await console.lines("reply"), [text]);
  await console.press("Send burst");
  await console.sees("#count", "1,001");
  await console.sees("#unanswered", "0");

  await console.sees("#absent-text", /\/metrics\/ answered HTTP 404/);
  assert.ok(await console.page.isHidden("#charts"));
  await console.sees("#health", "healthy");
  await console.sees("#readiness", "ready");

  const session = await console.text("#session");
  await console.page.reload();
  await console.sees("#count", "1,001");
  assert.equal(await console.text("#session"), session);
  assertNoFaults(t);
});
