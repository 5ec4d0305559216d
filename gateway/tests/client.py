"""A raw client: it sends the bytes which it is told to, and reads what comes back."""

import asyncio
import json
import socket
import struct
from typing import Any, NamedTuple


class Answer(NamedTuple):
    """One answer. `complete` is False if its connection ended before its end."""

    status: int
    headers: dict[str, str]
    body: bytes
    complete: bool

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> Any:
        return self.json["error"]["code"]


def post(body: bytes | dict[str, Any], *headers: str, path: str = "/v1/chat/completions") -> bytes:
    """Return a POST with a length."""
    if isinstance(body, dict):
        body = json.dumps(body).encode()
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: gateway",
        "Content-Type: application/json",
        *headers,
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


def get(path: str, *headers: str, method: str = "GET") -> bytes:
    """Return a request without a body."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: gateway", *headers, "", ""]).encode()


class Client:
    """One connection to the gateway. Nothing that it waits for takes longer than ten seconds."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, *pieces: bytes) -> None:
        """Send pieces one after the other."""
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            await asyncio.sleep(0)

    def half_close(self) -> None:
        self.writer.write_eof()

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def read_until(self, end: bytes) -> bytes:
        async with asyncio.timeout(10):
            return await self.reader.readuntil(end)

    async def rest(self) -> bytes:
        """Return what comes until the connection ends."""
        async with asyncio.timeout(10):
            return await self.reader.read()

    async def head(self) -> tuple[int, dict[str, str]]:
        line, *lines = (await self.read_until(b"\r\n\r\n"))[:-4].decode("latin-1").split("\r\n")
        assert line.startswith("HTTP/1.1 ")
        headers: dict[str, str] = {}
        for text in lines:
            name, _, value = text.partition(":")
            assert name.lower() not in headers, f"{name} twice"
            headers[name.lower()] = value.strip()
        return int(line.split()[1]), headers

    async def answer(self, *, head_only: bool = False) -> Answer:
        """Return the next answer."""
        status, headers = await self.head()
        body, complete = bytearray(), True
        async with asyncio.timeout(10):
            try:
                if head_only or status in (204, 304):
                    pass
                elif headers.get("transfer-encoding") == "chunked":
                    complete = False
                    while not complete:
                        size = int(await self.reader.readuntil(b"\r\n"), 16)
                        piece = await self.reader.readexactly(size + 2)
                        assert piece.endswith(b"\r\n")
                        body += piece[:-2]
                        complete = size == 0
                elif "content-length" in headers:
                    body += await self.reader.readexactly(int(headers["content-length"]))
                else:
                    body += await self.reader.read()
            except asyncio.IncompleteReadError as error:
                body += error.partial
                complete = False
            except ConnectionError:
                complete = False
        return Answer(status, headers, bytes(body), complete)

    async def ask(self, request: bytes, *, head_only: bool = False) -> Answer:
        await self.send(request)
        return await self.answer(head_only=head_only)
