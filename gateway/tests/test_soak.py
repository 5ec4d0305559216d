"""A minute of everything at once: clients and engines, well-behaved and not, and engines that die.

At the end nothing is left: no request in flight, no socket, no object. And nobody was left without an answer.
"""

import asyncio
import contextlib
import ctypes
import gc
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from math import inf
from pathlib import Path

import pytest

from roundhouse_gateway.answer import Answer as RelayedAnswer
from roundhouse_gateway.exchange import Exchange
from roundhouse_gateway.relay import GatewayProtocol
from roundhouse_gateway.upstream import EngineConnection

from .client import Client, get, post
from .conftest import Roundhouse, StartEngine, StartGateway, simple_map, until
from .engine import CHAT, DONE, END, STREAM_HEAD, FakeEngine, Turn, answer, chunk, event

pytestmark = pytest.mark.slow

SECONDS, WARM = 60.0, 15.0
CLIENTS = 200
# What may have grown since the warm-up: objects, and resident bytes. There are some 40 000 clients, so that one
# object left of each would be far more. The memory is that of the clients and engines as well, which depends on
# how much was under way at once at the worst moment.
BLOCKS, GROWTH = 20_000, 20_000_000

BIG = answer(b"x" * 300_000, kind="text/plain")
ENGINE_ERRORS = {"engine_unreachable", "engine_timeout", "engine_unavailable", "engine_busy"}


async def engine_script(turn: Turn) -> None:
    match turn.json["do"]:
        case "chat":
            await turn.send(answer(CHAT))
        case "error":
            await turn.send(answer({"object": "error", "message": "no"}, 400))
        case "big":
            await turn.send(BIG)
        case "stream":
            await turn.send(STREAM_HEAD)
            for _ in range(20):
                await turn.send(chunk(event("word")))
                await asyncio.sleep(0.005)
            await turn.send(chunk(DONE) + END)
        case "flood":
            await turn.send(STREAM_HEAD)
            for _ in range(400):
                await turn.send(chunk(event("word" * 1000)))
            await turn.send(chunk(DONE) + END)
        case "silent":
            await turn.until_left()
        case "silent later":
            await turn.send(STREAM_HEAD + chunk(event("a")))
            await turn.until_left()
        case "reset":
            turn.reset()
        case "reset later":
            await turn.send(STREAM_HEAD + chunk(event("a")))
            turn.reset()
        case "nonsense":
            await turn.send(b"SSH-2.0-engine\r\n")
        case "bytewise":
            await turn.send(*(bytes([byte]) for byte in answer(CHAT)))


def ask(do: str, *headers: str) -> bytes:
    return post({"model": "tiny", "do": do}, *headers)


async def expect(client: Client, *codes: str, cut: bool = False) -> bool:
    """Read an answer, which must be whole or an error that may happen. Returns whether the connection stays.

    `cut` allows an answer that broke off visibly, as it has to if the engine dies in the middle of it.
    """
    got = await client.answer()
    if got.status >= 400:
        assert got.complete
        assert got.code in ENGINE_ERRORS | set(codes) or got.status == 400, got
        assert got.headers["x-request-id"]
    elif got.headers.get("content-type", "").startswith("text/event-stream"):
        if got.complete:
            assert got.body.endswith(DONE) or b'data: {"error"' in got.body[-400:], got
        else:
            assert not got.body.endswith(b"\n\n"), got
    else:
        assert got.complete or cut, got
    return got.complete and got.headers.get("connection") != "close"


async def several(client: Client, dice: random.Random) -> None:
    for _ in range(dice.randrange(1, 5)):
        await client.send(ask(dice.choice(["chat", "error", "stream"])))
        if not await expect(client):
            return


async def slow_or_big(client: Client, dice: random.Random) -> None:
    await client.send(ask(dice.choice(["bytewise", "big"])))
    await expect(client, cut=True)


async def bad_engine(client: Client, dice: random.Random) -> None:
    await client.send(ask(dice.choice(["silent", "silent later", "reset", "reset later", "nonsense"])))
    await expect(client)


async def control(client: Client, dice: random.Random) -> None:
    got = await client.ask(get(dice.choice(["/healthz", "/readyz", "/routes", "/v1/models"])))
    assert got.status == 200
    assert got.complete


async def pipelined(client: Client, _dice: random.Random) -> None:
    await client.send(ask("chat") + get("/healthz") + ask("stream"))
    for _ in range(3):
        if not await expect(client):
            return


async def in_pieces(client: Client, dice: random.Random) -> None:
    request = ask("chat")
    place = dice.randrange(1, len(request))
    await client.send(request[:place])
    await asyncio.sleep(0.01)
    await client.send(request[place:])
    await expect(client)


async def half_closed(client: Client, dice: random.Random) -> None:
    await client.send(ask(dice.choice(["chat", "stream"])))
    client.half_close()
    await expect(client)


async def leaves(client: Client, dice: random.Random) -> None:
    await client.send(ask(dice.choice(["silent", "stream", "flood"])))
    await asyncio.sleep(dice.random() * 0.05)
    if dice.random() < 0.5:
        client.reset()


async def leaves_half_way(client: Client, dice: random.Random) -> None:
    request = ask("chat")
    await client.send(request[: dice.randrange(len(request))])


async def reads_nothing(client: Client, _dice: random.Random) -> None:
    await client.send(ask("flood"))
    await asyncio.sleep(0.3)


async def refused(client: Client, dice: random.Random) -> None:
    request, code = dice.choice(
        [
            (ask("chat", "Transfer-Encoding: chunked"), "bad_request"),
            (ask("chat", "Content-Length: 5"), "bad_request"),
            (ask("chat", "X-Bad: a\0b"), "bad_request"),
            (ask("chat", "X-Long: " + "x" * 70_000), "headers_too_large"),
            (post({"model": "tiny", "x": "x" * 50_000}), "request_too_large"),
            (post(b"{"), "invalid_json"),
            (post({"model": "none"}), "model_not_found"),
            (post({"model": "tiny"}, path="/sleep"), "unknown_endpoint"),
        ]
    )
    await client.send(request)
    got = await client.answer()
    assert got.complete
    assert got.code == code, got


Behaviour = Callable[[Client, random.Random], Awaitable[None]]
BEHAVIOURS: list[Behaviour] = [
    several,
    several,
    several,
    slow_or_big,
    bad_engine,
    control,
    pipelined,
    in_pieces,
    half_closed,
    leaves,
    leaves_half_way,
    reads_nothing,
    refused,
]


class Soak:
    """Clients and engines that do what dice tell them to."""

    def __init__(self, roundhouse: Roundhouse, engines: list[FakeEngine]) -> None:
        self.done: Counter[str] = Counter()
        self._roundhouse = roundhouse
        self._engines = engines
        self._end = 0.0

    async def run(self, seconds: float, seed: int) -> None:
        """Go on for a while, and then until everything is quiet and all engines are back."""
        self._end = time.monotonic() + seconds
        dice = random.Random(seed)
        async with asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(self._client(random.Random(dice.random())))
            group.create_task(self._reaper(random.Random(dice.random())))
        fleet = self._roundhouse.gateway.fleet
        await until(self._roundhouse.is_quiet)
        await until(lambda: not self._roundhouse.gateway.connections)
        await until(lambda: not any(b.ejected for _, backends in fleet.all() for b in backends))
        fleet.sweep(inf)

    async def _client(self, dice: random.Random) -> None:
        while time.monotonic() < self._end:
            behave = dice.choice(BEHAVIOURS)
            client = Client(
                *await asyncio.open_connection("127.0.0.1", self._roundhouse.port, limit=2_000_000)
            )
            try:
                await behave(client, dice)
            except (ConnectionError, asyncio.IncompleteReadError) as error:
                # A client that breaks the rules may be cut off; all others have a right to an answer.
                if behave not in (leaves, leaves_half_way, reads_nothing):
                    pytest.fail(f"{behave.__name__}: {error!r}")
            except TimeoutError:
                pytest.fail(f"{behave.__name__} got no answer")
            finally:
                client.writer.transport.abort()
                with contextlib.suppress(ConnectionError):
                    await client.writer.wait_closed()
            self.done[behave.__name__] += 1

    async def _reaper(self, dice: random.Random) -> None:
        """Let engines die and come back."""
        while time.monotonic() < self._end:
            engine = dice.choice(self._engines)
            engine.turns.clear()
            await asyncio.sleep(dice.random() * 0.5)
            await engine.stop()
            await asyncio.sleep(dice.random() * 0.5)
            await engine.start()


def sockets() -> int:
    count = 0
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            count += str(fd.readlink()).startswith("socket:")
    return count


def memory() -> int:
    """Return the resident memory in bytes, less what is only kept for the next allocation."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_soak(start_gateway: StartGateway, start_engine: StartEngine) -> None:
    engines = [await start_engine(engine_script) for _ in range(3)]
    roundhouse = await start_gateway(
        simple_map(
            *engines,
            health={"path": "/health", "interval": 0.2, "timeout": 5},
            timeouts={"connect": 5, "first_byte": 1, "idle": 1},
            max_in_flight=60,
        ),
        max_body=40_000,
        keep_alive=5,
    )
    await until(lambda: all(engine.probes for engine in engines))
    open_sockets = sockets()
    soak = Soak(roundhouse, engines)
    await soak.run(WARM, seed=1)
    for engine in engines:
        engine.turns.clear()
    gc.collect()
    used, blocks = memory(), sys.getallocatedblocks()
    await soak.run(SECONDS - WARM, seed=2)
    for engine in engines:
        engine.turns.clear()
    await until(lambda: sockets() <= open_sockets)
    gc.collect()
    ours = (Exchange, RelayedAnswer, GatewayProtocol, EngineConnection)
    assert [thing for thing in gc.get_objects() if isinstance(thing, ours)] == []
    assert sys.getallocatedblocks() - blocks < BLOCKS
    assert memory() - used < GROWTH
    assert set(soak.done) == {behave.__name__ for behave in BEHAVIOURS}
    assert sum(soak.done.values()) > 1000
