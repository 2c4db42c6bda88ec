"""The counter job on Django Channels, as its ASGI application.

Counts stand in the memory of one process. There is no channel layer: nothing
here is sent from one consumer to another, and without one a consumer has a
task less.
"""

import json
import uuid
from urllib.parse import parse_qs

import django
from django.conf import settings

settings.configure(ALLOWED_HOSTS=["*"])
django.setup()

from channels.generic.websocket import AsyncWebsocketConsumer  # noqa: E402
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from django.urls import path  # noqa: E402

counts = {}


class Counter(AsyncWebsocketConsumer):
    async def connect(self):
        try:
            self.session = session_of(self.scope["query_string"].decode())
        except ValueError:
            await self.close()
            return
        counts.setdefault(self.session, 0)
        await self.accept()

    async def receive(self, text_data=None, bytes_data=None):
        if text_data is None:
            await self.close(1003)
        elif text_data.strip():
            await self.send(text_data=self.reply(text_data))

    def reply(self, text):
        counts[self.session] += 1
        message = json.dumps(text, ensure_ascii=False)
        return f'{{"count":{counts[self.session]},"session_id":"{self.session}","message":{message}}}'


def session_of(query):
    """The id that the query names, or a new one; ValueError if it is no UUID."""
    ids = parse_qs(query, keep_blank_values=True).get("session_id")
    return str(uuid.UUID(ids[0]) if ids else uuid.uuid4())


application = ProtocolTypeRouter(
    {"websocket": URLRouter([path("ws/chat/", Counter.as_asgi())])}
)
