"""The fixed upstream of streams: `python -m bench.engine PORT`.

It answers every POST with as many server-sent events, as far apart, as the text of the chat asks for ("100
words, 5 ms apart"; some routers drop fields, none drops the text), the first at once. Any GET gets an
empty object.
"""

from __future__ import annotations

import asyncio
import re
import sys
from typing import cast

import uvloop

_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
)
_EMPTY = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
_EVENT = (
    b'data: {"id":"chatcmpl-7b1c5c0f4e1d4c4fa2b0c7f2a9e3d111","object":"chat.completion.chunk",'
    b'"created":1,"model":"tiny","choices":[{"index":0,"delta":{"content":" word"},'
    b'"logprobs":null,"finish_reason":null}]}\n\n'
)
_CHUNK = b"%x\r\n%b\r\n" % (len(_EVENT), _EVENT)
_DONE = b"data: [DONE]\n\n"
_END = b"%x\r\n%b\r\n0\r\n\r\n" % (len(_DONE), _DONE)
_LENGTH = re.compile(rb"content-length:\s*(\d+)", re.IGNORECASE)
_ASKED = re.compile(rb"(\d+) words, (\d+) ms apart")


class Engine(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._data = b""
        self._left = 0
        self._pause = 0.0
        self._due = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """End."""
        self._transport = None

    def data_received(self, data: bytes) -> None:
        """Take a piece of a request, and answer when it is complete."""
        self._data += data
        head, end, body = self._data.partition(b"\r\n\r\n")
        if not end or self._transport is None:
            return
        if not head.startswith(b"POST"):
            self._data = body
            self._transport.write(_EMPTY)
            return
        length = _LENGTH.search(head)
        if length is not None:
            if len(body) < int(length[1]):
                return
        elif not body.endswith(b"0\r\n\r\n"):
            return
        self._data = b""
        asked = _ASKED.search(body)
        self._left = int(asked[1]) if asked else 1
        self._pause = int(asked[2]) / 1000 if asked else 0.0
        self._due = self._loop.time()
        self._transport.write(_HEAD)
        self._token()

    def _token(self) -> None:
        if self._transport is None:
            return
        self._left -= 1
        if not self._left:
            self._transport.write(_CHUNK + _END)
            return
        self._transport.write(_CHUNK)
        self._due += self._pause
        self._loop.call_at(self._due, self._token)


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Engine, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
