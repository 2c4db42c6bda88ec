// The real parts that the tests run: Turnstile, redis-server, and a proxy that
// cuts connections. Each ends with the test that started it.
import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { connect, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const root = new URL("../../../", import.meta.url);
const binary = process.env.TURNSTILE_SERVER ?? fileURLToPath(new URL("bin/server", root));

/**
 * A loopback address of this process's own: nobody else is given its ports, also not those that nobody listens on for a
 * while, and none is the source port of somebody's connection to 127.0.0.1.
 */
export const host = `127.79.${process.pid >> 8 & 255}.${process.pid & 255}`;

/** Milliseconds that bound every wait; nothing waits for so long that works. */
export const patience = 60_000;

/** A package that scripts/test-deps.sh has installed, or undefined. */
export function installed(name) {
  try {
    return createRequire(new URL(".cache/clients/", root))(name);
  } catch (error) {
    if (error.code !== "MODULE_NOT_FOUND") throw error;
  }
}

/** Whether a part is there. Where it is not the test is skipped, or fails if CI=true. */
export function need(t, part, what) {
  if (part) return true;
  const text = `missing: ${what}: run make deps`;
  if (process.env.CI === "true") throw new Error(text);
  t.skip(text);
  return false;
}

/** Waits until condition() is true, looking again and again. */
export async function eventually(what, condition) {
  for (const deadline = Date.now() + patience; !(await condition());) {
    assert.ok(Date.now() < deadline, `it did not come true: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

/** Starts a server; its flags may be added to. */
export async function startServer(t, ...flags) {
  const server = new Server(`${host}:${await freePort()}`, flags);
  t.after(() => server.kill());
  await server.start();
  return server;
}

class Server {
  #flags;
  #child;
  #exited;
  address;

  constructor(address, flags) { this.address = address; this.#flags = flags; }

  get url() { return `ws://${this.address}/ws/chat/`; }
  get page() { return `http://${this.address}/`; }

  /** Starts it, for the first time or again. */
  async start() {
    const flags = ["-listen", this.address, "-log-format", "json", ...this.#flags];
    const child = spawn(binary, flags, { stdio: ["ignore", "pipe", "inherit"] });
    this.#child = child;
    this.#exited = new Promise((resolve) => child.once("close", resolve));
    const lines = createInterface({ input: child.stdout });
    const started = new Promise((resolve, reject) => {
      child.once("error", reject);
      child.once("exit", (code) => reject(new Error(`the server ended with ${code}`)));
      lines.on("line", (line) => {
        if (JSON.parse(line).event === "server_started") resolve();
      });
    });
    await started;
  }

  /** One value of its /metrics/; name includes the labels. */
  async metric(name) {
    const text = await (await fetch(new URL("metrics/", this.page), { cache: "no-store" })).text();
    const line = text.split("\n").find((line) => line.startsWith(`${name} `));
    return Number(line.slice(name.length));
  }

  /** Ends it with a signal, and waits for that. */
  async stop(signal) {
    this.#child?.kill(signal);
    await this.#exited;
  }

  kill() { return this.stop("SIGKILL"); }
}

export function haveRedis() { return spawnSync("redis-server", ["--version"]).status === 0; }

/** Starts a redis-server on a unix socket in a folder of its own; returns the value of -redis. */
export async function startRedis(t) {
  const dir = newFolder();
  const socket = join(dir, "redis.sock");
  startChild(t, "redis-server", ["--port", "0", "--unixsocket", socket, "--dir", dir, "--save", ""]);
  await eventually("redis-server listens", () => answers({ path: socket }));
  return `unix://${socket}`;
}

/** A folder that goes when all that was started in it has ended. */
function newFolder() {
  const dir = mkdtempSync(join(tmpdir(), "console"));
  process.once("exit", () => rmSync(dir, { recursive: true, force: true }));
  return dir;
}

function startChild(t, command, args) {
  const child = spawn(command, args, { stdio: ["ignore", "ignore", "inherit"] });
  const exited = new Promise((resolve) => child.once("close", resolve));
  t.after(async () => {
    child.kill("SIGKILL");
    await exited;
  });
}

/** Whether somebody listens there. */
function answers(where) {
  return new Promise((resolve) => {
    const probe = connect(where, () => { probe.destroy(); resolve(true); });
    probe.on("error", () => resolve(false));
  });
}

const ports = new Set(); // what freePort has given out

/** A port of host that nobody listens on, and which it gives to nobody else. */
async function freePort() {
  const probe = createServer();
  await new Promise((resolve) => probe.listen(0, host, resolve));
  const { port } = probe.address();
  await new Promise((resolve) => probe.close(resolve));
  if (ports.has(port)) return freePort();
  ports.add(port);
  return port;
}

/** Starts a proxy to target that can cut its connections and keep answers back. */
export async function startProxy(t, target) {
  const proxy = new Proxy(target);
  t.after(() => proxy.close());
  await proxy.listen();
  return proxy;
}

class Proxy {
  #target;
  #pairs = new Set();
  #server = createServer((client) => this.#join(client));
  /** While true, what the server sends is lost; to be set back when the connections have been cut. */
  deaf = false;
  /** While true, who comes is sent away at once. */
  away = false;
  accepted = 0;

  constructor(target) { this.#target = target; }

  get address() { return `${host}:${this.#server.address().port}`; }
  get url() { return `ws://${this.address}/ws/chat/`; }
  get page() { return `http://${this.address}/`; }

  async listen() {
    const port = await freePort();
    return new Promise((resolve) => this.#server.listen(port, host, resolve));
  }

  #join(client) {
    if (this.away) {
      client.destroy();
      return;
    }
    const [targetHost, port] = this.#target.split(":");
    const server = connect(Number(port), targetHost);
    const pair = [client, server];
    this.accepted++;
    this.#pairs.add(pair);
    client.on("data", (chunk) => server.write(chunk));
    server.on("data", (chunk) => { if (!this.deaf) client.write(chunk); });
    for (const side of pair) {
      side.on("error", () => {});
      side.on("close", () => {
        this.#pairs.delete(pair);
        for (const socket of pair) socket.destroy();
      });
    }
  }

  /** Cuts all connections, without a close frame. */
  cut() {
    for (const pair of this.#pairs) for (const socket of pair) socket.destroy();
  }

  close() {
    this.cut();
    return new Promise((resolve) => this.#server.close(resolve));
  }
}
