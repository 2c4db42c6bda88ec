// What README.md has for Node and for pages, as it stands there, but for the
// server's address.
import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { fileURLToPath } from "node:url";
import { closeBrowser, openBrowser, openContext } from "./browser.mjs";
import { eventually, host, installed, need, patience, startServer } from "./parts.mjs";

after(closeBrowser);

const root = new URL("../../../", import.meta.url);
const packages = fileURLToPath(new URL(".cache/clients/node_modules", root));

/** The fenced blocks of a document that name this file: see server/doctest. */
function samples(document) {
  const text = readFileSync(new URL(document, root), "utf8");
  return [...text.matchAll(/^<!-- run: documents\.test\.mjs -->\n```[a-z]*\n([^]*?)^```$/gm)].map(([, block]) => block);
}

const blocks = samples("README.md");
const [dialogue, inPage, download, inNode] = blocks;

const check = (name, run) => test(name, { timeout: 4 * patience }, run);
const haveNpm = (t, name) => need(t, installed(`${name}/package.json`), `the npm package ${name}`);

/** A folder in which the npm packages are installed that the samples name. */
function newProject(t) {
  const folder = mkdtempSync(join(tmpdir(), "readme"));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  symlinkSync(packages, join(folder, "node_modules"));
  return folder;
}

/** Starts a command line; what it has written so far is in output, and its exit code in code, once it has one. */
function start(t, line, cwd) {
  const child = spawn("bash", ["-c", `exec ${line}`], { cwd, stdio: ["pipe", "pipe", "pipe"] });
  const state = { output: "", code: undefined, type: (text) => child.stdin.write(`${text}\n`) };
  for (const stream of [child.stdout, child.stderr]) stream.on("data", (data) => { state.output += data; });
  child.on("close", (code) => { state.code = code; });
  t.after(() => child.kill("SIGKILL"));
  return state;
}

async function run(t, line, cwd) {
  const command = start(t, line, cwd);
  await eventually(`${line} ends`, () => command.code !== undefined);
  assert.equal(command.code, 0, command.output);
  return command.output;
}

test("each sample has its test", () => assert.equal(blocks.length, 4));

check("the dialogue with wscat", async (t) => {
  if (!haveNpm(t, "wscat") || !need(t, spawnSync("npx", ["--version"]).status === 0, "npm, with npx")) return;
  const server = await startServer(t);
  const [command, ...lines] = dialogue.trim().split("\n");
  const line = command.replace(/^\$ /, "").replace("localhost:8000", server.address);
  const terminal = start(t, `script -qefc '${line}' /dev/null`, newProject(t)); // script(1): without a terminal wscat says less
  await eventually("wscat is connected", () => terminal.output.includes("Connected"));
  const plain = (text) => text.replaceAll(/\x1b\[[\d;]*[A-Za-z]/g, "").replaceAll(/[0-9a-f-]{36}/g, "ID");
  let seen = 0; // of the output
  for (const line of lines.map(plain)) {
    if (line.startsWith("> ")) {
      terminal.type(line.slice(2));
      continue;
    }
    await eventually(`wscat shows ${line}`, () => plain(terminal.output).includes(line, seen));
    seen = plain(terminal.output).indexOf(line, seen) + line.length;
  }
});

check("turnstile.js under Node", async (t) => {
  if (!haveNpm(t, "ws")) return;
  const server = await startServer(t);
  const project = newProject(t);
  await run(t, download.trim().replace("localhost:8000", server.address), project);
  writeFileSync(join(project, "sample.mjs"), inNode.replace("localhost:8000", server.address));
  assert.equal(await run(t, "node sample.mjs", project), "counted as 1\n");
});

check("turnstile.js in a page of another origin", async (t) => {
  if (!(await openBrowser(t))) return;
  let module;
  const other = createServer((incoming, answer) => {
    const script = incoming.url === "/example.js";
    answer.setHeader("Content-Type", script ? "text/javascript" : "text/html");
    answer.end(script ? module : "<link rel=icon href=data:,><script type=module src=example.js></script>");
  });
  await new Promise((resolve) => other.listen(0, host, resolve));
  t.after(() => { other.closeAllConnections(); other.close(); });
  const origin = `${host}:${other.address().port}`;
  const server = await startServer(t, "-origins", origin);
  module = inPage.replaceAll("localhost:8000", server.address);
  const page = await (await openContext(t)).newPage();
  const said = [];
  page.on("console", (message) => said.push(message.text()));
  await page.goto(`http://${origin}/`);
  await eventually("it has counted", () => said.includes("counted as 1"));
  assert.deepEqual(said, ["connecting", "open", "counted as 1"]);
});
