"""A fake engine: a raw server on a real socket, whose every byte a test decides."""

import asyncio
import json
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any, Self

CHAT = {
    "id": "chatcmpl-0",
    "object": "chat.completion",
    "created": 1,
    "model": "tiny",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "Four."}, "finish_reason": "stop"},
    ],
    "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
}


def answer(
    body: bytes | dict[str, Any], status: int = 200, *headers: str, kind: str = "application/json"
) -> bytes:
    """Return an answer with a length, as uvicorn writes it."""
    if isinstance(body, dict):
        body = json.dumps(body, separators=(",", ":")).encode()
    lines = [
        f"HTTP/1.1 {status} Reason",
        *([] if any(header.lower().startswith("server:") for header in headers) else ["server: fake"]),
        f"content-type: {kind}",
        f"content-length: {len(body)}",
    ]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body


STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)
END = b"0\r\n\r\n"
DONE = b"data: [DONE]\n\n"


def chunk(data: bytes) -> bytes:
    """Return one chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(text: str) -> bytes:
    """Return a server-sent event with one token in it."""
    delta = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    document = {
        "id": "c",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "tiny",
        "choices": [delta],
    }
    return b"data: " + json.dumps(document).encode() + b"\n\n"


class Turn:
    """One request that reached the engine, and the means to answer it, well or badly."""

    def __init__(
        self, head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.head = head
        self.line, *lines = head.decode("latin-1").split("\r\n")
        self.headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            self.headers[name.lower()] = value.strip()
        self.body = body
        self.left = asyncio.Event()
        self._reader = reader
        self._writer = writer

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    async def send(self, *pieces: bytes) -> None:
        """Send pieces, each in a packet of its own as far as the kernel lets us."""
        for piece in pieces:
            if self._writer.is_closing():
                raise ConnectionResetError
            self._writer.write(piece)
            await self._writer.drain()
            await asyncio.sleep(0)

    def close(self) -> None:
        self._writer.close()

    def reset(self) -> None:
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    async def until_left(self) -> None:
        """Wait until the gateway has closed the connection."""
        async with asyncio.timeout(10):
            try:
                while await self._reader.read(65536):
                    pass
            except ConnectionError:
                pass
        self.left.set()


Script = Callable[[Turn], Awaitable[None]]


async def chat(turn: Turn) -> None:
    await turn.send(answer(CHAT))


class Gate:
    """A script that holds requests until it is opened."""

    def __init__(self) -> None:
        self.open = asyncio.Event()

    async def __call__(self, turn: Turn) -> None:
        await self.open.wait()
        await turn.send(answer(CHAT))


class FakeEngine:
    """Listens on a port of its own. `script` answers each request; probes get `health`, a status."""

    def __init__(self, script: Script = chat, host: str = "127.0.0.1", port: int = 0) -> None:
        self.script = script
        self.host = host
        self.health = 200
        self.turns: list[Turn] = []
        self.connections = 0
        self.probes = 0
        self.open: set[asyncio.StreamWriter] = set()
        self.port = port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    async def start(self) -> Self:
        self._server = await asyncio.start_server(self._serve, self.host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        """Stop listening, and close all connections."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self.open):
            writer.transport.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.open.add(writer)
        counted = False
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n"))[:-4]
                if head.startswith(b"GET "):
                    self.probes += 1
                    writer.write(answer(b"", self.health))
                    continue
                if not counted:
                    counted = True
                    self.connections += 1
                length = next(
                    int(line.partition(b":")[2])
                    for line in head.lower().split(b"\r\n")
                    if line.startswith(b"content-length:")
                )
                turn = Turn(head, await reader.readexactly(length), reader, writer)
                self.turns.append(turn)
                await self.script(turn)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self.open.discard(writer)
            self._tasks.discard(task)
            writer.close()
