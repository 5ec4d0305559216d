"""Fixtures: fake engines and a real gateway between them and raw clients, all in the process of the tests."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from roundhouse_gateway.app import create_app
from roundhouse_gateway.gateway import Gateway
from roundhouse_gateway.server import Server, listen
from roundhouse_gateway.settings import Settings

from .client import Client
from .engine import FakeEngine, Script, chat


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run the tests on the loop that the gateway runs on."""
    return {"uvloop": uvloop.new_event_loop}


async def until(condition: Callable[[], object]) -> None:
    """Wait for something that happens without the test being told."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - nobody sets an event when a count reaches a value
            await asyncio.sleep(0.002)


class Roundhouse:
    """A running gateway."""

    def __init__(self, gateway: Gateway, server: Server, port: int, path: Path) -> None:
        self.gateway = gateway
        self.server = server
        self.port = port
        self.path = path
        self.clients: list[Client] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def connect(self) -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port, limit=200_000))
        self.clients.append(client)
        return client

    def backend(self, name: str = "one") -> Any:
        return next(b for _, of_route in self.gateway.fleet.all() for b in of_route if b.name == name)

    def is_quiet(self) -> bool:
        """Tell whether no backend has a request in flight."""
        fleet = self.gateway.fleet
        backends = [b for _, of_route in fleet.all() for b in of_route] + fleet.leaving
        return not any(b.in_flight for b in backends)

    def write_map(self, document: Any) -> None:
        """Put another map in place, at once."""
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(document))
        new.replace(self.path)


def engine_entry(*engines: FakeEngine, names: str = "one two three four", **changes: Any) -> dict[str, Any]:
    """Return one engine of a model, with the given backends; it is probed once, and then not for an hour."""
    backends = [
        {"name": name, "url": engine.url} for name, engine in zip(names.split(), engines, strict=False)
    ]
    return {
        "owned_by": "fake",
        "backends": backends,
        "health": {"path": "/health", "interval": 3600},
        "timeouts": {"connect": 5, "first_byte": 10, "idle": 10},
    } | changes


def simple_map(*engines: FakeEngine, revision: str = "1", **changes: Any) -> dict[str, Any]:
    """Return a map with one model, `tiny`."""
    return {
        "revision": revision,
        "models": [{"model": "tiny", "engines": [engine_entry(*engines, **changes)]}],
    }


StartEngine = Callable[..., Awaitable[FakeEngine]]
StartGateway = Callable[..., Awaitable[Roundhouse]]


@pytest.fixture
async def start_engine() -> AsyncIterator[StartEngine]:
    engines: list[FakeEngine] = []

    async def start(script: Script = chat, host: str = "127.0.0.1", port: int = 0) -> FakeEngine:
        engines.append(await FakeEngine(script, host, port).start())
        return engines[-1]

    yield start
    for engine in engines:
        await engine.stop()


@pytest.fixture
async def start_gateway(tmp_path: Path) -> AsyncIterator[StartGateway]:
    started: list[Roundhouse] = []

    async def start(document: Any, **settings: Any) -> Roundhouse:
        path = tmp_path / f"routes{len(started)}.yml"
        path.write_text(json.dumps(document))
        app = create_app(Settings(routes=path, **settings))
        sock = listen("127.0.0.1", 0)
        server = Server(app, sock)
        await server.start()
        started.append(Roundhouse(app.ctx.gateway, server, sock.getsockname()[1], path))
        return started[-1]

    yield start
    for roundhouse in started:
        for client in roundhouse.clients:
            client.close()
        # Whatever a test did: nothing counts as in flight once its clients are gone.
        await until(roundhouse.is_quiet)
        await roundhouse.server.stop()
        assert not roundhouse.gateway.connections


@pytest.fixture
async def engine(start_engine: StartEngine) -> FakeEngine:
    return await start_engine()


@pytest.fixture
async def roundhouse(start_gateway: StartGateway, engine: FakeEngine) -> Roundhouse:
    return await start_gateway(simple_map(engine))


@pytest.fixture
async def client(roundhouse: Roundhouse) -> Client:
    return await roundhouse.connect()
