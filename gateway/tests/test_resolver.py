"""Backends that are found by DNS: they come, stay and go with what the name resolves to."""

import os
import socket
import sys
from asyncio import create_subprocess_exec
from asyncio.subprocess import PIPE

import pytest

from roundhouse_gateway import resolver

from .client import get, post
from .conftest import Roundhouse, StartEngine, StartGateway, simple_map, until
from .engine import FakeEngine
from .test_process import SOURCE

ASK = post({"model": "tiny"})


class Names:
    """What a name resolves to, in the place of the system's resolver."""

    def __init__(self) -> None:
        self.hosts: set[str] | OSError = set()
        self.asked = 0

    async def look_up(self, host: str, port: int) -> set[str]:
        assert (host, port > 0) == ("replicas", True)
        self.asked += 1
        if isinstance(self.hosts, OSError):
            raise self.hosts
        return self.hosts


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    names = Names()
    monkeypatch.setattr(resolver, "INTERVAL", 0.01)
    monkeypatch.setattr(resolver, "look_up", names.look_up)
    return names


@pytest.fixture
async def replicas(start_engine: StartEngine) -> list[FakeEngine]:
    """Two engines on one port, as replicas behind a headless Service are."""
    first = await start_engine()
    return [first, await start_engine(host="127.0.0.2", port=first.port)]


@pytest.fixture
async def resolving(start_gateway: StartGateway, replicas: list[FakeEngine], names: Names) -> Roundhouse:
    backend = {"name": "tiny", "url": f"http://replicas:{replicas[0].port}", "resolve": True}
    return await start_gateway(simple_map(backends=[backend], health={"interval": 0.05}))


def backends(roundhouse: Roundhouse) -> list[str]:
    return [backend.name for _, of_route in roundhouse.gateway.fleet.all() for backend in of_route]


async def test_backends_come_and_go(resolving: Roundhouse, replicas: list[FakeEngine], names: Names) -> None:
    client = await resolving.connect()
    assert (await client.ask(ASK)).code == "engine_unavailable"
    names.hosts = {"127.0.0.1", "127.0.0.2"}
    await until(lambda: len(backends(resolving)) == 2)
    got = [(await client.ask(ASK)).headers["x-roundhouse-backend"] for _ in range(4)]
    assert got == ["tiny@127.0.0.1", "tiny@127.0.0.2"] * 2
    names.hosts = {"127.0.0.2"}
    await until(lambda: backends(resolving) == ["tiny@127.0.0.2"])
    assert (await client.ask(ASK)).headers["x-roundhouse-backend"] == "tiny@127.0.0.2"
    await until(lambda: replicas[1].probes > 0)
    shown = (await client.ask(get("/routes"))).json["models"][0]["engines"][0]["backends"]
    assert [backend["url"] for backend in shown] == [f"http://127.0.0.2:{replicas[1].port}"]


async def test_what_stays_keeps_its_counts(resolving: Roundhouse, names: Names) -> None:
    names.hosts = {"127.0.0.1"}
    await until(lambda: backends(resolving))
    before = resolving.backend("tiny@127.0.0.1")
    names.hosts = {"127.0.0.1", "127.0.0.2"}
    await until(lambda: len(backends(resolving)) == 2)
    assert resolving.backend("tiny@127.0.0.1") is before


async def test_no_answer_is_no_news(resolving: Roundhouse, names: Names) -> None:
    names.hosts = {"127.0.0.1"}
    await until(lambda: backends(resolving))
    names.hosts, asked = socket.gaierror(socket.EAI_AGAIN, "try again"), names.asked
    await until(lambda: names.asked > asked + 2)
    assert backends(resolving) == ["tiny@127.0.0.1"]
    names.hosts = socket.gaierror(socket.EAI_NONAME, "no such name")
    await until(lambda: not backends(resolving))


async def test_a_map_without_the_name_ends_the_looking(
    resolving: Roundhouse, replicas: list[FakeEngine], names: Names
) -> None:
    names.hosts = {"127.0.0.1"}
    await until(lambda: backends(resolving))
    resolving.write_map(simple_map(replicas[1], revision="2"))
    resolving.gateway.reload()
    assert backends(resolving) == ["one"]
    client = await resolving.connect()
    assert (await client.ask(ASK)).headers["x-roundhouse-backend"] == "one"


async def test_a_real_name() -> None:
    assert "127.0.0.1" in await resolver.look_up("localhost", 80)


async def test_until_ready(engine: FakeEngine) -> None:
    engine.health = 503
    command = [sys.executable, "-m", "roundhouse_gateway.until_ready", f"{engine.url}/health"]
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    process = await create_subprocess_exec(*command, stderr=PIPE, env=environment)
    assert process.stderr is not None
    assert b"it answers 503" in await process.stderr.readline()
    engine.health = 200
    assert await process.wait() == 0
