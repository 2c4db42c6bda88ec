// Plays the scenario of TestClients (interop_test.go) with the npm package ws
// and prints what it saw, as one line of JSON. Usage: client.mjs ADDRESS, which
// is host:port or unix:/path.
import { randomUUID } from 'node:crypto';
import { createRequire } from 'node:module';

const WebSocket = createRequire(new URL('../../../.cache/clients/', import.meta.url))('ws');

const patience = 10_000; // milliseconds that every wait may take
const address = process.argv[2];
const [base, host] = address.startsWith('unix:')
  ? [`ws+unix:${address.slice('unix:'.length)}:`, 'localhost']
  : [`ws://${address}`, address];

const hostile = '\ufeff "quotes" \\ back/slash \0\x01\b\f\n\r\t\x1f\x7f\x85 \u2028\u2029 \u{1f600}\u{10ffff} '
  + '\u202e\u05e9\u05dc\u05d5\u05dd <img onerror=alert(1)> \\u0041 %s ';
const long = '0123456789ab"\u00e9\n'.repeat(4000);
const inFragments = 'in \u{1f600} fragments';
const secondVersion = 'message-counter.v2';

// A Client queues what happens to its connection, in order.
class Client {
  #happened = [];
  #wake = () => {};

  constructor(query = '', protocols = [], options = {}) {
    this.ws = new WebSocket(`${base}/ws/chat/${query}`, protocols, options);
    this.ws.on('open', () => this.#put('open', this.ws.protocol));
    this.ws.on('message', (data, isBinary) => this.#put(isBinary ? 'binary' : 'text', data.toString()));
    this.ws.on('pong', (payload) => this.#put('pong', payload.toString()));
    this.ws.on('close', (code, reason) => this.#put('close', { close: code, reason: reason.toString() }));
    this.ws.on('error', (error) => this.#put('error', error.message));
    this.ws.on('unexpected-response', async (_, response) => {
      const body = (await response.toArray()).join('');
      this.#put('refusal', { status: response.statusCode, body });
    });
  }

  #put(kind, value) {
    this.#happened.push([kind, value]);
    this.#wake();
  }

  // next waits for what happens next, which has to be of the given kind.
  async next(kind) {
    if (this.#happened.length === 0) {
      await new Promise((resolve, reject) => {
        const timer = setTimeout(() => reject(new Error(`no ${kind} came in time`)), patience);
        this.#wake = () => { clearTimeout(timer); resolve(); };
      });
    }
    const [came, value] = this.#happened.shift();
    if (came !== kind) {
      throw new Error(`instead of ${kind} came ${came}: ${JSON.stringify(value).slice(0, 300)}`);
    }
    return value;
  }

  async frame() { return JSON.parse(await this.next('text')); }

  async reply(text) {
    const reply = await this.frame();
    if (reply.message !== text) {
      throw new Error(`${JSON.stringify(text)} was read back as ${JSON.stringify(reply)}`);
    }
    return reply;
  }

  async ping(payload) {
    this.ws.ping(payload);
    const pong = await this.next('pong');
    if (pong !== payload) throw new Error(`ping ${payload} was answered by pong ${pong}`);
    return { pong: true };
  }

  async closed() {
    const { close } = await this.next('close');
    return { close };
  }

  close(code) {
    this.ws.close(code);
    return this.closed();
  }
}

async function open(see, ...how) {
  const client = new Client(...how);
  see({ open: await client.next('open') });
  return client;
}

async function refusal(...how) {
  const client = new Client(...how);
  return client.next('refusal');
}

let session; // of the first scene

const scenes = {
  async 'first version'(see) {
    const client = await open(see, '', [], { origin: `http://${host}` });
    for (const text of ['hello', '', '   ', hostile, long]) client.ws.send(text);
    for (const text of ['hello', hostile, long]) {
      const reply = await client.reply(text);
      session = reply.session_id;
      see(reply);
    }
    client.ws.pong('unasked');
    const bytes = Buffer.from(inFragments); // cut within a character
    client.ws.send(bytes.subarray(0, 5), { binary: false, fin: false });
    see(await client.ping('between fragments'));
    client.ws.send(bytes.subarray(5), { binary: false, fin: true });
    see(await client.reply(inFragments));
    see(await client.ping(''));
    client.ws.send(' GoodBye ');
    see(await client.frame());
    see(await client.next('close'));
  },

  async 'resume'(see) {
    const client = await open(see, `?session_id=${session.toUpperCase()}`);
    client.ws.send('again');
    see(await client.reply('again'));
    see(await client.close(1000));
  },

  async 'second version'(see) {
    const id = randomUUID();
    see({ asked: id });
    for (const text of ['one', 'two']) {
      const client = await open(see, `?session_id=${id}`, ['another.v1', secondVersion]);
      see(await client.frame());
      client.ws.send(text);
      see(await client.reply(text));
      see(await client.close(1000));
    }
  },

  async 'takeover'(see) {
    const first = await open(see);
    first.ws.send('mine');
    const reply = await first.reply('mine');
    see(reply);
    const second = await open(see, `?session_id=${reply.session_id}`);
    see(await first.frame());
    see(await first.closed());
    second.ws.send('yours');
    see(await second.reply('yours'));
    see(await second.close(1000));
  },

  async 'binary'(see) {
    const client = await open(see);
    client.ws.send(Buffer.from('bytes'));
    see(await client.closed());
  },

  async 'too big'(see) {
    const client = await open(see);
    client.ws.send('x'.repeat(64 * 1024 + 1));
    see(await client.closed());
  },

  async 'bad session'(see) {
    const { status, body } = await refusal('?session_id=nonsense');
    see({ status, body: JSON.parse(body) });
  },

  async 'foreign origin'(see) {
    const { status } = await refusal('', [], { origin: 'http://elsewhere.example' });
    see({ status });
  },

  async 'client closes'(see) {
    const client = await open(see);
    see(await client.close(3456));
  },
};

const transcript = [];
for (const [scene, play] of Object.entries(scenes)) {
  const saw = [];
  transcript.push({ scene, saw });
  try {
    await play((event) => saw.push(event));
  } catch (error) {
    console.error(`client.mjs: ${scene}: ${error.message}`);
    process.exit(1);
  }
}
// A proxy keeps the connection of a refusal for a minute or more, and that keeps the process.
process.stdout.write(`${JSON.stringify(transcript)}\n`, () => process.exit(0));
