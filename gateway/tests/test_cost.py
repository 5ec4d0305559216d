"""What one request costs, counted in calls and not in time: a change that doubles the work is seen anywhere."""

import asyncio
import gc
import sys
from types import FrameType
from typing import Any

import pytest

from roundhouse_gateway import reader, upstream

from .client import Client, post
from .conftest import StartGateway, engine_entry, simple_map
from .engine import DONE, END, STREAM_HEAD, FakeEngine, Turn, chunk, event

# Calls of the gateway's own Python functions, and calls from those into C: measured, and some more for other
# versions of Python.
REQUEST = 125  # with a head that came before: measured 94
NEW_REQUEST = 290  # with a head that is new: measured 226
TOKEN = 14  # measured 10

BODY = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}


class Calls:
    """Counts calls made in the gateway's modules, while it is installed."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> "Calls":
        gc.disable()
        sys.setprofile(self._called)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        gc.enable()

    def _called(self, frame: FrameType, what: str, _arg: Any) -> None:
        if what in ("call", "c_call") and "roundhouse_gateway" in frame.f_code.co_filename:
            self.count += 1


async def counted(client: Client, request: bytes) -> int:
    """Return the calls of one request, at a moment when nothing goes on in the background."""
    counts = []
    for _ in range(10):
        with Calls() as calls:
            assert (await client.ask(request)).status == 200
        counts.append(calls.count)
    return min(counts)


async def test_request(client: Client) -> None:
    request = post(BODY)
    await client.ask(request)
    assert await counted(client, request) < REQUEST


async def test_request_with_a_new_head(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    await client.ask(post(BODY))
    monkeypatch.setattr(reader, "_MAX_KNOWN_SIZE", 0)
    monkeypatch.setattr(upstream, "_MAX_KNOWN_SIZE", 0)
    reader._known.clear()
    upstream._known_heads.clear()
    assert await counted(client, post(BODY)) < NEW_REQUEST


async def test_token(client: Client, engine: FakeEngine) -> None:
    go_on = asyncio.Event()
    tokens = 0

    async def script(turn: Turn) -> None:
        await turn.send(STREAM_HEAD)
        # Each token is read before the next is sent: pieces that come together cost less.
        for _ in range(tokens):
            await go_on.wait()
            go_on.clear()
            await turn.send(chunk(event("word")))
        await turn.send(chunk(DONE) + END)

    async def calls(number: int) -> int:
        nonlocal tokens
        tokens = number
        with Calls() as calls:
            await client.send(post(BODY))
            for _ in range(number):
                go_on.set()
                await client.read_until(b"\n\n\r\n")
            await client.read_until(END)
        return calls.count

    engine.script = script
    await calls(1)
    assert (await calls(101) - await calls(1)) / 100 < TOKEN


async def test_models_do_not_count(start_gateway: StartGateway, engine: FakeEngine) -> None:
    counts = []
    for models in (1, 1000):
        document = simple_map(engine)
        for number in range(models - 1):
            engines = [engine_entry(engine, names=f"backend-{number}")]
            document["models"].append({"model": f"model-{number}", "engines": engines})
        client = await (await start_gateway(document)).connect()
        request = post(BODY)
        await client.ask(request)
        counts.append(await counted(client, request))
    assert counts[0] == counts[1]
