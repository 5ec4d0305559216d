"""A change of the routing map, while requests run."""

import asyncio
import json
from typing import Any

import pytest

from .client import Answer, get, post
from .conftest import Roundhouse, StartEngine, StartGateway, simple_map, until
from .engine import DONE, END, STREAM_HEAD, FakeEngine, Turn, chat, chunk, event

ASK = post({"model": "tiny"})


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("roundhouse_gateway.gateway._LOOK_INTERVAL", 0.02)


async def shown(roundhouse: Roundhouse) -> Any:
    return (await (await roundhouse.connect()).ask(get("/routes"))).json


async def test_another_file_in_its_place(roundhouse: Roundhouse, engine: FakeEngine) -> None:
    document = simple_map(engine, revision="2")
    document["models"][0]["model"] = "other"
    roundhouse.write_map(document)
    await until(lambda: roundhouse.gateway.fleet.table.revision == "2")
    client = await roundhouse.connect()
    assert (await client.ask(ASK)).status == 404
    assert (await client.ask(post({"model": "other"}))).status == 200


async def test_symbolic_link_that_moves(roundhouse: Roundhouse, engine: FakeEngine) -> None:
    # That is how Kubernetes changes a ConfigMap.
    new = roundhouse.path.with_name("elsewhere.yml")
    new.write_text(json.dumps(simple_map(engine, revision="2")))
    link = roundhouse.path.with_name("link")
    link.symlink_to(new)
    link.replace(roundhouse.path)
    await until(lambda: roundhouse.gateway.fleet.table.revision == "2")


async def test_write_in_place(roundhouse: Roundhouse, engine: FakeEngine) -> None:
    roundhouse.path.write_text(json.dumps(simple_map(engine, revision="2")))
    await until(lambda: roundhouse.gateway.fleet.table.revision == "2")


async def test_half_written_file_is_not_loaded(
    start_gateway: StartGateway, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roundhouse_gateway.gateway._LOOK_INTERVAL", 3600)
    roundhouse = await start_gateway(simple_map(engine))
    for document in ({"revision": "2", "models": []}, simple_map(engine, revision="2")):
        roundhouse.path.write_text(json.dumps(document))
        roundhouse.gateway._look()
        assert roundhouse.gateway.fleet.table.revision == "1"
    roundhouse.gateway._look()
    assert roundhouse.gateway.fleet.table.revision == "2"
    assert len(roundhouse.gateway.fleet.table.models) == 1


async def test_bad_map_is_refused(
    roundhouse: Roundhouse, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    roundhouse.write_map({"revision": "2", "models": "none"})
    await until(lambda: roundhouse.gateway.map_loads.last_error)
    document = await shown(roundhouse)
    assert document["revision"] == "1"
    assert "$.models" in document["last_error"]
    client = await roundhouse.connect()
    assert (await client.ask(ASK)).status == 200
    roundhouse.path.unlink()
    await until(lambda: "can't be read" in str(roundhouse.gateway.map_loads.last_error))
    assert (await client.ask(ASK)).status == 200
    # One line for each, however often the file is looked at.
    assert [record.getMessage() for record in caplog.records].count("map refused") == 2
    roundhouse.write_map(simple_map(engine, revision="3"))
    await until(lambda: roundhouse.gateway.fleet.table.revision == "3")
    assert (await shown(roundhouse))["last_error"] is None


async def test_same_map_again_after_a_bad_one(roundhouse: Roundhouse, engine: FakeEngine) -> None:
    roundhouse.write_map({})
    await until(lambda: roundhouse.gateway.map_loads.last_error)
    roundhouse.write_map(simple_map(engine))
    await until(lambda: roundhouse.gateway.map_loads.last_error is None)


async def test_backends_that_stay_keep_counts_and_connections(
    roundhouse: Roundhouse, engine: FakeEngine
) -> None:
    client = await roundhouse.connect()
    assert (await client.ask(ASK)).status == 200
    backend = roundhouse.backend()
    roundhouse.write_map(simple_map(engine, revision="2", max_in_flight=1, timeouts={"idle": 7}))
    await until(lambda: roundhouse.gateway.fleet.table.revision == "2")
    assert roundhouse.backend() is backend
    assert (backend.max_in_flight, backend.timeouts.idle) == (1, 7)
    assert (await client.ask(ASK)).status == 200
    assert engine.connections == 1


async def test_removed_backend_drains(
    roundhouse: Roundhouse, engine: FakeEngine, start_engine: StartEngine
) -> None:
    go_on = asyncio.Event()

    async def script(turn: Turn) -> None:
        await turn.send(STREAM_HEAD + chunk(event("a")))
        await go_on.wait()
        await turn.send(chunk(DONE) + END)

    engine.script = script
    client = await roundhouse.connect()
    await client.send(ASK)
    await client.head()
    old = roundhouse.backend()
    new = await start_engine()
    roundhouse.write_map(simple_map(new, names="new", revision="2"))
    await until(lambda: roundhouse.gateway.fleet.table.revision == "2")
    backends = (await shown(roundhouse))["models"][0]["engines"][0]["backends"]
    assert [(b["name"], b["state"], b["in_flight"]) for b in backends] == [
        ("new", "healthy", 0),
        ("one", "draining", 1),
    ]
    got = await (await roundhouse.connect()).ask(ASK)
    assert got.headers["x-roundhouse-backend"] == "new"
    roundhouse.write_map({"revision": "3", "models": []})
    await until(lambda: roundhouse.gateway.fleet.table.revision == "3")
    assert [m["model"] for m in (await shown(roundhouse))["models"]] == ["tiny"]
    go_on.set()
    assert (await client.read_until(END)).endswith(END)
    await until(lambda: not roundhouse.gateway.fleet.leaving)
    assert (await shown(roundhouse))["models"] == []
    assert not old.idle


async def test_removed_backend_that_comes_back(roundhouse: Roundhouse, engine: FakeEngine) -> None:
    go_on = asyncio.Event()

    async def script(turn: Turn) -> None:
        await go_on.wait()
        await turn.send(STREAM_HEAD + END)

    engine.script = script
    client = await roundhouse.connect()
    await client.send(ASK)
    await until(lambda: engine.turns)
    old = roundhouse.backend()
    for revision, document in (("2", {"models": []}), ("3", simple_map(engine))):
        roundhouse.write_map(document | {"revision": revision})
        await until(lambda wanted=revision: roundhouse.gateway.fleet.table.revision == wanted)
    assert roundhouse.backend() is old
    assert (old.state, old.in_flight) == ("healthy", 1)
    go_on.set()
    assert (await client.answer()).status == 200


async def test_many_reloads_under_load(start_gateway: StartGateway, start_engine: StartEngine) -> None:
    stop = asyncio.Event()

    async def script(turn: Turn) -> None:
        if "stream" not in turn.json:
            await chat(turn)
            return
        await turn.send(STREAM_HEAD)
        while not stop.is_set():
            await turn.send(chunk(event("a")))
            await asyncio.sleep(0.01)
        await turn.send(chunk(DONE) + END)

    engines = [await start_engine(script) for _ in range(4)]
    roundhouse = await start_gateway(simple_map(*engines[:2]))

    async def stream() -> Answer:
        return await (await roundhouse.connect()).ask(post({"model": "tiny", "stream": True}))

    tasks = [asyncio.ensure_future(stream()) for _ in range(64)]
    await until(lambda: sum(len(engine.turns) for engine in engines) == 64)
    client = await roundhouse.connect()
    for number in range(100):
        some = engines[number % 4 :]
        roundhouse.write_map(
            simple_map(*some, names=" ".join(f"b{e.port}" for e in some), revision=f"r{number}")
        )
        roundhouse.gateway.reload()
        got = await client.ask(ASK)
        assert got.status == 200
        assert got.headers["x-roundhouse-backend"] in {f"b{e.port}" for e in some}
    assert not any(task.done() for task in tasks)
    stop.set()
    answers = await asyncio.gather(*tasks)
    assert all(got.complete and got.body.endswith(DONE) for got in answers)
    await until(lambda: not any(backend.in_flight for backend in roundhouse.gateway.fleet.leaving))
    roundhouse.gateway.fleet.sweep(0)
    assert not roundhouse.gateway.fleet.leaving
