"""Stopping: what is under way finishes, or is cut in a way that shows."""

import asyncio

from .client import get, post
from .conftest import StartGateway, simple_map, until
from .engine import DONE, END, STREAM_HEAD, FakeEngine, Turn, chunk, event

ASK = post({"model": "tiny", "stream": True})


async def test_requests_in_flight_finish(start_gateway: StartGateway, engine: FakeEngine) -> None:
    go_on = asyncio.Event()

    async def script(turn: Turn) -> None:
        await turn.send(STREAM_HEAD + chunk(event("a")))
        await go_on.wait()
        await turn.send(chunk(DONE) + END)

    engine.script = script
    roundhouse = await start_gateway(simple_map(engine))
    idle = await roundhouse.connect()
    assert (await idle.ask(get("/healthz"))).status == 200
    client = await roundhouse.connect()
    await client.send(ASK)
    await client.head()
    draining = asyncio.ensure_future(roundhouse.server.drain())
    assert await idle.rest() == b""
    go_on.set()
    assert (await client.read_until(END)).endswith(END)
    assert await client.rest() == b""
    assert await draining is True


async def test_listener_stays_open_for_a_while(start_gateway: StartGateway, engine: FakeEngine) -> None:
    roundhouse = await start_gateway(simple_map(engine), drain_delay=60)
    client = await roundhouse.connect()
    draining = asyncio.ensure_future(roundhouse.server.drain())
    await until(lambda: roundhouse.gateway.draining)
    got = await client.ask(get("/readyz"))
    assert (got.status, got.json["status"], got.headers["connection"]) == (503, "draining", "close")
    assert await client.rest() == b""
    client = await roundhouse.connect()
    got = await client.ask(ASK)
    assert (got.status, got.headers["connection"]) == (200, "close")
    assert await client.rest() == b""
    roundhouse.server.hurry()
    assert await draining is True


async def test_what_does_not_finish_is_cut(start_gateway: StartGateway, engine: FakeEngine) -> None:
    async def script(turn: Turn) -> None:
        match turn.json["n"]:
            case 1:
                await turn.send(STREAM_HEAD + chunk(event("a")))
            case 2:
                await turn.send(STREAM_HEAD + chunk(b"data: half"))
        await turn.until_left()

    engine.script = script
    roundhouse = await start_gateway(simple_map(engine), drain_timeout=0.1)
    clients = [await roundhouse.connect() for _ in range(4)]
    for number, client in enumerate(clients[:3]):
        await client.send(post({"model": "tiny", "n": number}))
    await clients[3].send(ASK[:20])
    await until(lambda: len(engine.turns) == 3)
    for client in clients[1:3]:
        await client.read_until(b"data: ")
    assert await roundhouse.server.drain() is False
    got = await clients[0].answer()
    assert (got.status, got.code, got.headers["connection"]) == (503, "draining", "close")
    rest = await clients[1].rest()
    assert b'"code":"draining"' in rest
    assert rest.endswith(END)
    assert await clients[2].rest() == b"half\r\n"
    assert await clients[3].rest() == b""
    for turn in engine.turns:
        await turn.left.wait()
