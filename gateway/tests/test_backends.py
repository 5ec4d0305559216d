"""Which backend gets a request, what happens when it does not answer, and the way out and back in."""

import asyncio
import json
import socket
from typing import Any

import pytest

from roundhouse_gateway import routing
from roundhouse_gateway.counters import Counters, Slab
from roundhouse_gateway.fleet import Fleet
from roundhouse_gateway.health import Prober, Target

from .client import get, post
from .conftest import Roundhouse, StartEngine, StartGateway, simple_map, until
from .engine import CHAT, FakeEngine, Gate, Turn, answer

ASK = post({"model": "tiny"})


def closed_port() -> FakeEngine:
    """Return an engine that does not run."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        engine = FakeEngine()
        engine.port = sock.getsockname()[1]
    return engine


def weights(document: Any, *values: int) -> Any:
    for backend, weight in zip(document["models"][0]["engines"][0]["backends"], values, strict=True):
        backend["weight"] = weight
    return document


async def ask_many(roundhouse: Roundhouse, number: int) -> list[asyncio.Task[Any]]:
    """Send requests one after the other, each on a connection of its own, and wait for none."""
    tasks = []
    for _ in range(number):
        client = await roundhouse.connect()
        before = sum(backend.in_flight for _, of in roundhouse.gateway.fleet.all() for backend in of)
        tasks.append(asyncio.ensure_future(client.ask(ASK)))

        def is_sent(before: int = before) -> bool:
            return sum(b.in_flight for _, of in roundhouse.gateway.fleet.all() for b in of) > before

        await until(is_sent)
    return tasks


async def test_fewest_in_flight(start_gateway: StartGateway, start_engine: StartEngine) -> None:
    gate = Gate()
    engines = [await start_engine(gate) for _ in range(3)]
    roundhouse = await start_gateway(simple_map(*engines))
    tasks = await ask_many(roundhouse, 9)
    await until(lambda: [len(engine.turns) for engine in engines] == [3, 3, 3])
    gate.open.set()
    assert {task.status for task in await asyncio.gather(*tasks)} == {200}


async def test_weights(start_gateway: StartGateway, start_engine: StartEngine) -> None:
    gate = Gate()
    engines = [await start_engine(gate) for _ in range(3)]
    roundhouse = await start_gateway(weights(simple_map(*engines), 3, 1, 0))
    tasks = await ask_many(roundhouse, 8)
    await until(lambda: [len(engine.turns) for engine in engines] == [6, 2, 0])
    gate.open.set()
    await asyncio.gather(*tasks)


async def test_equals_take_turns(start_gateway: StartGateway, start_engine: StartEngine) -> None:
    engines = [await start_engine() for _ in range(2)]
    client = await (await start_gateway(simple_map(*engines))).connect()
    names = [(await client.ask(ASK)).headers["x-roundhouse-backend"] for _ in range(4)]
    assert names == ["one", "two", "one", "two"]


async def test_full_backends(start_gateway: StartGateway, start_engine: StartEngine) -> None:
    gate = Gate()
    engine = await start_engine(gate)
    roundhouse = await start_gateway(simple_map(engine, max_in_flight=2))
    tasks = await ask_many(roundhouse, 2)
    client = await roundhouse.connect()
    got = await client.ask(ASK)
    assert (got.status, got.code, got.headers["retry-after"]) == (429, "engine_busy", "1")
    gate.open.set()
    await asyncio.gather(*tasks)
    assert (await client.ask(ASK)).status == 200


async def test_refused_connection_goes_to_another(start_gateway: StartGateway, engine: FakeEngine) -> None:
    roundhouse = await start_gateway(simple_map(closed_port(), closed_port(), engine))
    client = await roundhouse.connect()
    for _ in range(4):
        got = await client.ask(ASK)
        assert (got.status, got.headers["x-roundhouse-backend"]) == (200, "three")


async def test_nobody_listens(start_gateway: StartGateway) -> None:
    roundhouse = await start_gateway(simple_map(closed_port(), health={"interval": 7.5}))
    client = await roundhouse.connect()
    got = await client.ask(ASK)
    assert (got.status, got.code) == (502, "engine_unreachable")
    assert "'one'" in got.json["error"]["message"]
    # The probe is a failure too, so it takes two or three requests.
    await until(lambda: roundhouse.backend().failures > 0)
    for _ in range(3):
        got = await client.ask(ASK)
    assert (got.status, got.code, got.headers["retry-after"]) == (503, "engine_unavailable", "8")
    shown = (await client.ask(get("/routes"))).json["models"][0]["engines"][0]["backends"][0]
    assert shown["state"] == "ejected"
    assert "one" in shown["name"]
    assert shown["last_error"]
    assert [model["ready"] for model in (await client.ask(get("/v1/models"))).json["data"]] == [False]
    assert (await client.ask(get("/readyz"))).status == 200


async def test_all_weights_zero(start_gateway: StartGateway, engine: FakeEngine) -> None:
    roundhouse = await start_gateway(weights(simple_map(engine), 0))
    got = await (await roundhouse.connect()).ask(ASK)
    assert (got.status, got.code) == (503, "engine_unavailable")


async def test_connecting_takes_too_long(start_gateway: StartGateway, engine: FakeEngine) -> None:
    # A listener whose queue is full does not answer those who want to connect.
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(deaf.getsockname())
        silent = FakeEngine()
        silent.port = deaf.getsockname()[1]
        roundhouse = await start_gateway(
            simple_map(silent, timeouts={"connect": 0.1}, health={"path": "/h", "timeout": 9, "interval": 9})
        )
        client = await roundhouse.connect()
        got = await client.ask(ASK)
        assert (got.status, got.code) == (504, "engine_timeout")
        both = simple_map(silent, engine, revision="2", timeouts={"connect": 0.1})
        roundhouse.write_map(both)
        roundhouse.gateway.reload()
        for _ in range(2):
            assert (await client.ask(ASK)).headers["x-roundhouse-backend"] == "two"
        for filler in fillers:
            filler.close()


async def test_client_that_leaves_while_connecting(start_gateway: StartGateway) -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(deaf.getsockname())
        silent = FakeEngine()
        silent.port = deaf.getsockname()[1]
        roundhouse = await start_gateway(simple_map(silent, timeouts={"connect": 60}))
        client = await roundhouse.connect()
        await client.send(ASK)
        await until(lambda: roundhouse.backend().in_flight == 1)
        client.reset()
        await until(lambda: roundhouse.backend().in_flight == 0)
        for filler in fillers:
            filler.close()


async def test_three_failures_in_a_row(start_gateway: StartGateway, engine: FakeEngine) -> None:
    roundhouse = await start_gateway(simple_map(engine))
    await until(lambda: engine.probes == 1)
    client = await roundhouse.connect()

    async def broken(turn: Turn) -> None:
        turn.close()

    async def good(turn: Turn) -> None:
        await turn.send(answer(b"", 500))

    for script, expected in [(broken, 502), (broken, 502), (good, 500), (broken, 502), (broken, 502)]:
        engine.script = script
        assert (await client.ask(ASK)).status == expected
    assert not roundhouse.backend().ejected
    engine.script = broken
    assert (await client.ask(ASK)).status in (502, 200)
    assert (await client.ask(ASK)).status in (502, 503)
    assert roundhouse.backend().ejected


async def test_probes_eject_and_bring_back(start_gateway: StartGateway, engine: FakeEngine) -> None:
    engine.health = 503
    roundhouse = await start_gateway(simple_map(engine, health={"path": "/up", "interval": 0.01}))
    await until(lambda: roundhouse.backend().ejected)
    assert engine.probes >= 3
    assert "answered 503" in str(roundhouse.backend().last_error)
    client = await roundhouse.connect()
    assert (await client.ask(ASK)).status == 503
    engine.health = 204
    await until(lambda: not roundhouse.backend().ejected)
    assert (await client.ask(ASK)).status == 200


async def test_probes_have_a_time_out(start_gateway: StartGateway) -> None:
    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(deaf, "127.0.0.1", 0)
    silent = FakeEngine()
    silent.port = server.sockets[0].getsockname()[1]
    roundhouse = await start_gateway(simple_map(silent, health={"interval": 0.01, "timeout": 0.02}))
    await until(lambda: roundhouse.backend().ejected)
    assert "within 0.02 s" in str(roundhouse.backend().last_error)
    server.close()


async def test_engine_that_restarts(start_gateway: StartGateway, engine: FakeEngine) -> None:
    roundhouse = await start_gateway(simple_map(engine, health={"interval": 0.01}))
    client = await roundhouse.connect()
    assert (await client.ask(ASK)).status == 200
    await engine.stop()
    await until(lambda: roundhouse.backend().ejected)
    assert not roundhouse.backend().idle
    await engine.start()
    await until(lambda: not roundhouse.backend().ejected)
    assert (await client.ask(ASK)).status == 200


async def test_replica_that_restarts(start_gateway: StartGateway, start_engine: StartEngine) -> None:
    """A killed replica costs what was in flight on it; until it is up again, nothing is asked of it."""

    async def loading(turn: Turn) -> None:
        await turn.send(answer({"error": {"code": 503, "message": "Loading model"}}, 503))

    gate = Gate()
    killed, other = await start_engine(gate), await start_engine()
    roundhouse = await start_gateway(simple_map(killed, other, health={"interval": 0.05}))
    clients = [await roundhouse.connect() for _ in range(2)]
    in_flight = asyncio.ensure_future(clients[0].ask(ASK))
    await until(lambda: killed.turns)
    await killed.stop()
    assert (await in_flight).status == 502
    killed.health, killed.script = 503, loading
    await killed.start()
    for _ in range(6):
        got = await clients[1].ask(ASK)
        assert (got.status, got.headers["x-roundhouse-backend"]) == (200, "two")
    gate.open.set()
    killed.health, killed.script = 200, gate
    await until(lambda: not roundhouse.backend("one").suspect)
    names = [(await clients[1].ask(ASK)).headers["x-roundhouse-backend"] for _ in range(2)]
    assert sorted(names) == ["one", "two"]


async def test_a_probe_from_before_a_failure_heals_nothing(engine: FakeEngine) -> None:
    class SlowProber(Prober):
        """Has a good answer for every probe, each when it is told to."""

        def __init__(self) -> None:
            super().__init__()
            self.begun = 0
            self.go_on = asyncio.Semaphore(0)

        async def _probe(self, target: Target) -> str | None:
            self.begun += 1
            await self.go_on.acquire()
            return None

    fleet = Fleet(Counters([Slab()]))
    fleet.apply(routing.load(json.dumps(simple_map(engine, health={"interval": 0.001})).encode()))
    [(_, [backend])] = fleet.all()
    prober = SlowProber()
    prober.watch(fleet)
    await until(lambda: prober.begun == 1)
    backend.failed("reset the connection")
    prober.go_on.release()
    await until(lambda: prober.begun == 2)
    assert backend.suspect
    prober.go_on.release()
    await until(lambda: prober.begun == 3)
    assert not backend.suspect
    await prober.stop()


async def test_replica_that_died_while_idle(start_gateway: StartGateway, start_engine: StartEngine) -> None:
    engines = [await start_engine() for _ in range(2)]
    roundhouse = await start_gateway(simple_map(*engines))
    client = await roundhouse.connect()
    for _ in range(2):
        assert (await client.ask(ASK)).status == 200
    await engines[0].stop()
    await until(lambda: roundhouse.backend("one").suspect)
    await engines[0].start()
    names = {(await client.ask(ASK)).headers["x-roundhouse-backend"] for _ in range(4)}
    assert names == {"two"}


async def test_idle_connections_expire(
    start_gateway: StartGateway, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roundhouse_gateway.gateway.IDLE_EXPIRY", 0.0)
    monkeypatch.setattr("roundhouse_gateway.gateway._LOOK_INTERVAL", 0.01)
    roundhouse = await start_gateway(simple_map(engine))
    assert (await (await roundhouse.connect()).ask(ASK)).status == 200
    await until(lambda: not roundhouse.backend().idle)


async def test_last_in_first_out(start_gateway: StartGateway, start_engine: StartEngine) -> None:
    gate = Gate()
    engine = await start_engine(gate)
    roundhouse = await start_gateway(simple_map(engine))
    tasks = await ask_many(roundhouse, 3)
    gate.open.set()
    await asyncio.gather(*tasks)
    assert len(roundhouse.backend().idle) == 3
    last = roundhouse.backend().idle[-1]
    client = await roundhouse.connect()
    for _ in range(3):
        assert (await client.ask(ASK)).status == 200
        assert roundhouse.backend().idle[-1] is last
    assert engine.connections == 3


async def test_unasked_bytes_on_an_idle_connection(start_gateway: StartGateway, engine: FakeEngine) -> None:
    roundhouse = await start_gateway(simple_map(engine))
    client = await roundhouse.connect()
    assert (await client.ask(ASK)).status == 200
    await engine.turns[0].send(answer(b"{}"))
    await until(lambda: not roundhouse.backend().idle)
    assert (await client.ask(ASK)).json == CHAT
