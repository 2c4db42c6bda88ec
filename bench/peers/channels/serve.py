"""Serves asgi.py with uvicorn on uvloop and httptools.

A process for each core, as uvicorn's documentation says for production;
WEB_CONCURRENCY, which is uvicorn's own, sets another number. Each process
counts for itself, so with more than one a session resumes only if its next
connection meets the same process.
"""

import argparse
import os

import uvicorn


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("-listen", default="127.0.0.1:8000", metavar="host:port")
    host, _, port = parser.parse_args().listen.rpartition(":")
    uvicorn.run(
        "asgi:application",
        host=host,
        port=int(port),
        workers=int(os.environ.get("WEB_CONCURRENCY") or os.cpu_count()),
        backlog=4096,
        loop="uvloop",
        http="httptools",
        ws="websockets",
        ws_max_size=64 * 1024,
        ws_per_message_deflate=False,
        # By default each connection has a task that pings it every 20 seconds;
        # no other peer does that.
        ws_ping_interval=None,
        ws_ping_timeout=None,
        lifespan="off",
        access_log=False,
        log_level="warning",
    )


if __name__ == "__main__":
    main()
