"""The client of streams: `python -m bench.streams PORT STREAMS REPEATS TOKENS PAUSE`.

Keeps STREAMS connections open, each with REPEATS streams one after the other, of TOKENS tokens PAUSE
milliseconds apart, and prints what it saw as JSON. Times are in microseconds.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from typing import cast

import uvloop

from bench.load import KEY

_REQUEST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
    b"Authorization: Bearer " + KEY.encode() + b"\r\n"
    b"Content-Length: %d\r\n\r\n%b"
)
_BODY = b'{"model":"tiny","stream":true,"messages":[{"role":"user","content":"Say %d words, %d ms apart."}]}'
# Connections start one after the other over that many seconds: nobody's clients all come at once.
_SPREAD = 0.5
# Seconds for a client to end, on top of what the streams take.
_GRACE = 60.0


class Sight:
    """What all connections have seen."""

    def __init__(self) -> None:
        self.first: list[float] = []
        self.gaps: list[float] = []
        self.broken = 0

    def summary(self) -> dict[str, float]:
        """Return the numbers that count."""
        return {
            "streams": len(self.first),
            "broken": self.broken,
            "ttft_p50": _percentile(self.first, 50),
            "ttft_p99": _percentile(self.first, 99),
            "gap_p50": _percentile(self.gaps, 50),
            "gap_p99": _percentile(self.gaps, 99),
        }


class Stream(asyncio.Protocol):
    """One connection."""

    def __init__(self, sight: Sight, request: bytes, repeats: int) -> None:
        self._sight = sight
        self._request = request
        self._left = repeats
        self._asked = 0.0
        self._last = 0.0
        self._transport: asyncio.Transport | None = None
        self._done = False
        self.over = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        self._transport = cast("asyncio.Transport", transport)
        self._ask()

    def data_received(self, data: bytes) -> None:
        """Note when a piece came; what is in it does not matter, except for the end."""
        now = time.perf_counter()
        if self._last:
            self._sight.gaps.append(now - self._last)
        elif data.startswith(b"HTTP/1.1 ") and data[9:12] != b"200":
            self._end()
            return
        elif b"data: " not in data:
            # The head came in a packet of its own, before the first token.
            return
        else:
            self._sight.first.append(now - self._asked)
        self._last = now
        if b"[DONE]" in data:
            self._done = True
        if self._done and data.endswith(b"0\r\n\r\n"):
            self._left -= 1
            if self._left:
                self._ask()
            else:
                self._end()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Note how it ended."""
        self._sight.broken += self._left
        if not self.over.done():
            self.over.set_result(None)

    def _end(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _ask(self) -> None:
        self._done = False
        self._last = 0.0
        self._asked = time.perf_counter()
        if self._transport is not None:
            self._transport.write(self._request)


async def _run(port: int, streams: int, repeats: int, tokens: int, pause: int) -> Sight:
    sight = Sight()
    body = _BODY % (tokens, pause)
    request = _REQUEST % (len(body), body)
    loop = asyncio.get_running_loop()
    connections: list[Stream] = []
    start = loop.time()
    async with asyncio.timeout(repeats * tokens * pause / 1000 + _GRACE):
        for number in range(streams):
            await asyncio.sleep(start + number * _SPREAD / streams - loop.time())
            _, connection = await loop.create_connection(
                lambda: Stream(sight, request, repeats), "127.0.0.1", port
            )
            connections.append(connection)
        await asyncio.gather(*(connection.over for connection in connections))
    return sight


def _percentile(values: Sequence[float], percent: int) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) * percent // 100, len(ordered) - 1)] * 1e6 if ordered else 0.0


if __name__ == "__main__":
    arguments = [int(text) for text in sys.argv[1:6]]
    sys.stdout.write(json.dumps(uvloop.run(_run(*arguments)).summary()))
