"""Plays the scenario of TestClients (interop_test.go) with the Python package
websockets and prints what it saw, as one line of JSON. Usage: client.py
ADDRESS, which is host:port or unix:/path."""

import asyncio
import json
import sys
import uuid

from websockets.exceptions import ConnectionClosed
from websockets.legacy.client import WebSocketClientProtocol, connect, unix_connect

PATIENCE = 10  # seconds that every wait may take

HOSTILE = (
    '\ufeff "quotes" \\ back/slash \0\x01\b\f\n\r\t\x1f\x7f\x85 \u2028\u2029 \U0001f600\U0010ffff '
    "\u202e\u05e9\u05dc\u05d5\u05dd <img onerror=alert(1)> \\u0041 %s "
)
LONG = '0123456789ab"\u00e9\n' * 4000
IN_FRAGMENTS = "in \U0001f600 fragments"
SECOND_VERSION = "message-counter.v2"

address = sys.argv[1]
unix_path = address.removeprefix("unix:") if address.startswith("unix:") else None
host = "localhost" if unix_path else address


class Refused(Exception):
    """The server's HTTP answer to a request that it did not upgrade."""

    def __init__(self, status, body):
        super().__init__(f"HTTP {status}: {body!r}")
        self.status, self.body = status, body


class Protocol(WebSocketClientProtocol):
    async def read_http_response(self):
        status, headers = await super().read_http_response()
        if status != 101:
            raise Refused(status, await self.reader.readexactly(int(headers["Content-Length"])))
        return status, headers


async def in_time(what, awaitable):
    try:
        return await asyncio.wait_for(awaitable, PATIENCE)
    except asyncio.TimeoutError:
        raise AssertionError(f"no {what} came in time") from None


class Client:
    def __init__(self, ws):
        self.ws = ws

    @classmethod
    async def connect(cls, query="", **options):
        uri = f"ws://{host}/ws/chat/{query}"
        options["create_protocol"] = Protocol
        connecting = unix_connect(unix_path, uri, **options) if unix_path else connect(uri, **options)
        return cls(await in_time("upgrade", connecting))

    async def send(self, message):
        await in_time("room to send", self.ws.send(message))

    async def frame(self):
        return json.loads(await in_time("frame", self.ws.recv()))

    async def reply(self, text):
        reply = await self.frame()
        if reply.get("message") != text:
            raise AssertionError(f"{text!r} was read back as {reply!r}")
        return reply

    async def ping(self, payload):
        """The library matches the pong's payload with the ping's."""
        await in_time("pong", await in_time("room to send", self.ws.ping(payload)))
        return {"pong": True}

    async def end(self):
        try:
            message = await in_time("close", self.ws.recv())
        except ConnectionClosed as closed:
            if closed.rcvd is None:
                raise AssertionError("the connection ended without a close frame") from None
            await in_time("end of the connection", self.ws.wait_closed())
            return {"close": closed.rcvd.code, "reason": closed.rcvd.reason}
        raise AssertionError(f"instead of a close came {message!r}")

    async def closed(self):
        end = await self.end()
        return {"close": end["close"]}

    async def close(self, code):
        await in_time("answer to close", self.ws.close(code))
        return await self.closed()


async def opened(see, query="", **options):
    client = await Client.connect(query, **options)
    see({"open": client.ws.subprotocol or ""})
    return client


async def refusal(query="", **options):
    try:
        await Client.connect(query, **options)
    except Refused as refused:
        return refused
    raise AssertionError("the request was not refused")


async def first_version(see):
    client = await opened(see, origin=f"http://{host}")
    for text in ["hello", "", "   ", HOSTILE, LONG]:
        await client.send(text)
    for text in ["hello", HOSTILE, LONG]:
        reply = await client.reply(text)
        see(reply)
    await in_time("room to send", client.ws.pong("unasked"))

    async def fragments():
        yield IN_FRAGMENTS[:4]
        see(await client.ping("between fragments"))
        yield IN_FRAGMENTS[4:]

    await client.send(fragments())
    see(await client.reply(IN_FRAGMENTS))
    see(await client.ping(b""))
    await client.send(" GoodBye ")
    see(await client.frame())
    see(await client.end())
    return reply["session_id"]


async def resume(see, session):
    client = await opened(see, f"?session_id={session.upper()}")
    await client.send("again")
    see(await client.reply("again"))
    see(await client.close(1000))


async def second_version(see):
    session = str(uuid.uuid4())
    see({"asked": session})
    for text in ["one", "two"]:
        client = await opened(see, f"?session_id={session}", subprotocols=["another.v1", SECOND_VERSION])
        see(await client.frame())
        await client.send(text)
        see(await client.reply(text))
        see(await client.close(1000))


async def takeover(see):
    first = await opened(see)
    await first.send("mine")
    reply = await first.reply("mine")
    see(reply)
    second = await opened(see, f"?session_id={reply['session_id']}")
    see(await first.frame())
    see(await first.closed())
    await second.send("yours")
    see(await second.reply("yours"))
    see(await second.close(1000))


async def binary(see):
    client = await opened(see)
    await client.send(b"bytes")
    see(await client.closed())


async def too_big(see):
    client = await opened(see)
    await client.send("x" * (64 * 1024 + 1))
    see(await client.closed())


async def bad_session(see):
    refused = await refusal("?session_id=nonsense")
    see({"status": refused.status, "body": json.loads(refused.body)})


async def foreign_origin(see):
    refused = await refusal(origin="http://elsewhere.example")
    see({"status": refused.status})


async def client_closes(see):
    client = await opened(see)
    see(await client.close(3456))


async def main():
    transcript = []

    async def play(scene, actor, *args):
        saw = []
        transcript.append({"scene": scene, "saw": saw})
        try:
            return await actor(saw.append, *args)
        except Exception as error:
            sys.exit(f"client.py: {scene}: {type(error).__name__}: {str(error)[:300]}")

    session = await play("first version", first_version)
    await play("resume", resume, session)
    await play("second version", second_version)
    await play("takeover", takeover)
    await play("binary", binary)
    await play("too big", too_big)
    await play("bad session", bad_session)
    await play("foreign origin", foreign_origin)
    await play("client closes", client_closes)
    print(json.dumps(transcript))


asyncio.run(main())
