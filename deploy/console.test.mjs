// The console in a real browser, through nginx, on the stack at TURNSTILE_SITE:
// compose_test.go runs it.
import { after, test } from "node:test";
import { closeBrowser, openBrowser, openConsole, openContext } from "../server/admin/browsertest/browser.mjs";

after(closeBrowser);

test("the console counts", async (t) => {
  if (!await openBrowser(t)) return;
  const address = process.env.TURNSTILE_SITE;
  const console = await openConsole(t, { address, page: `http://${address}/` }, await openContext(t));
  await console.sees("#state", "Connected");
  for (const text of ["one", "two", "three"]) await console.send(text);
  await console.sees("#count", "3");
});
