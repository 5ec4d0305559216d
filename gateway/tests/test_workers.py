"""Several workers on one port, as real processes."""

import asyncio
import contextlib
import json
import os
import re
import signal
from pathlib import Path

import pytest

from .client import Client, get, post
from .conftest import simple_map, until
from .engine import DONE, END, STREAM_HEAD, FakeEngine, Turn, chunk, event
from .keys import bearer, key, write_keys
from .test_process import Process, Start, routes, start, write

__all__ = ["routes", "start"]

ASK = post({"model": "tiny", "stream": True})


def workers_of(process: Process) -> set[int]:
    return set(map(int, process.in_proc(f"task/{process.process.pid}/children").split()))


async def until_started(process: Process, count: int) -> None:
    """Wait until that many workers have started, in all."""
    await process.until_logged("(?s)" + "gateway started.*" * count)


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


async def stream_on_each(process: Process, engine: FakeEngine) -> list[Client]:
    """Return clients with a stream each; every worker has at least one of them."""
    clients: list[Client] = []

    def sockets(pid: int) -> int:
        links = [str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir() if fd.is_symlink()]
        return sum(link.startswith("socket:") for link in links)

    at_rest = {pid: sockets(pid) for pid in workers_of(process)}
    while not clients or any(sockets(pid) <= at_rest[pid] for pid in at_rest):
        clients.append(await process.connect())
        await clients[-1].send(ASK)
        await clients[-1].read_until(b"\n\n\r\n")
        assert len(clients) < 500
    return clients


@pytest.fixture
def go_on(engine: FakeEngine) -> asyncio.Event:
    """Let streams wait, after the first token, for an event."""
    go_on = asyncio.Event()

    async def script(turn: Turn) -> None:
        await turn.send(STREAM_HEAD + chunk(event("a")))
        await go_on.wait()
        await turn.send(chunk(DONE) + END)

    engine.script = script
    return go_on


@pytest.mark.parametrize(("finishes", "code"), [(True, 0), (False, 1)])
@pytest.mark.parametrize("to_group", [True, False])
async def test_drain(
    start: Start,
    routes: Path,
    engine: FakeEngine,
    go_on: asyncio.Event,
    *,
    finishes: bool,
    code: int,
    to_group: bool,
) -> None:
    process = await start(ROUTES=routes, PORT=0, WORKERS=2, DRAIN_TIMEOUT=20 if finishes else 0.1)
    await until_started(process, 2)
    clients = await stream_on_each(process, engine)
    for pid in [process.process.pid, *workers_of(process)] if to_group else [process.process.pid]:
        os.kill(pid, signal.SIGTERM)
    await process.until_logged(r"(?s)(drain started.*){2}")
    if finishes:
        go_on.set()
    for client in clients:
        rest = await client.rest()
        assert (DONE in rest) == finishes
        assert (b"draining" in rest) != finishes
    assert await process.ended() == code
    with pytest.raises(ConnectionRefusedError):
        await process.connect()


async def test_hangup_reaches_all(start: Start, routes: Path, engine: FakeEngine) -> None:
    process = await start(ROUTES=routes, PORT=0, WORKERS=3)
    await until_started(process, 3)
    write(routes, json.dumps(simple_map(engine, revision="2")))
    process.process.send_signal(signal.SIGHUP)
    await process.until_logged(r"(?s)(map loaded revision=2.*){3}")
    for _ in range(8):
        got = await (await process.connect()).ask(get("/routes"))
        assert got.json["revision"] == "2"


async def test_worker_that_died_is_replaced(
    start: Start, routes: Path, engine: FakeEngine, go_on: asyncio.Event
) -> None:
    process = await start(ROUTES=routes, PORT=0, WORKERS=2)
    await until_started(process, 2)
    go_on.set()
    victim = workers_of(process).pop()
    os.kill(victim, signal.SIGKILL)
    await process.until_logged(f"worker died pid={victim}")
    assert (await (await process.connect()).ask(ASK)).status == 200
    await until_started(process, 3)
    assert victim not in workers_of(process)
    assert len(workers_of(process)) == 2
    for _ in range(8):
        assert (await (await process.connect()).ask(ASK)).status == 200
    process.process.send_signal(signal.SIGTERM)
    assert await process.ended() == 0


async def test_each_worker_knows_of_an_engine_that_is_down(
    start: Start, routes: Path, engine: FakeEngine
) -> None:
    document = simple_map(engine, health={"path": "/health", "interval": 0.05})
    write(routes, json.dumps(document))
    process = await start(ROUTES=routes, PORT=0, WORKERS=2)
    await until_started(process, 2)
    engine.health = 503
    await process.until_logged(r"(?s)(backend ejected.*){2}")
    for _ in range(8):
        assert (await (await process.connect()).ask(ASK)).status == 503
    engine.health = 200
    await process.until_logged(r"(?s)(backend returned.*){2}")
    for _ in range(8):
        assert (await (await process.connect()).ask(ASK)).status == 200


async def test_workers_end_with_their_parent(start: Start, routes: Path, engine: FakeEngine) -> None:
    process = await start(ROUTES=routes, PORT=0, WORKERS=2)
    await until_started(process, 2)
    workers = workers_of(process)
    process.process.kill()
    try:
        await until(lambda: all(is_gone(pid) for pid in workers))
    finally:
        for pid in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


async def test_second_signal_hurries(
    start: Start, routes: Path, engine: FakeEngine, go_on: asyncio.Event
) -> None:
    process = await start(ROUTES=routes, PORT=0, WORKERS=2, DRAIN_TIMEOUT=1000)
    await until_started(process, 2)
    await stream_on_each(process, engine)
    process.process.send_signal(signal.SIGTERM)
    await process.until_logged(r"(?s)(drain started.*){2}")
    process.process.send_signal(signal.SIGTERM)
    assert await process.ended() == 1


async def test_metrics_add_up(start: Start, routes: Path) -> None:
    """Whichever worker is asked tells of all, and no count ever goes back, also when a worker has died."""
    process = await start(ROUTES=routes, PORT=0, WORKERS=2)
    await until_started(process, 2)
    last = 0.0

    async def counted() -> float:
        nonlocal last
        text = (await (await process.connect()).ask(get("/metrics", "Connection: close"))).body.decode()
        found = re.search(r'^roundhouse_requests_total\{.*status="200".*\} (\S+)$', text, re.MULTILINE)
        now = float(found[1]) if found else 0.0
        assert now >= last
        last = now
        return now

    async def until_counted(wanted: int) -> None:
        async with asyncio.timeout(10):
            while await counted() < wanted:  # noqa: ASYNC110 - workers publish on their own
                await asyncio.sleep(0.01)

    for _ in range(30):
        assert (
            await (await process.connect()).ask(post({"model": "tiny"}, "Connection: close"))
        ).status == 200
    await until_counted(30)
    os.kill(min(workers_of(process)), signal.SIGKILL)
    await until_started(process, 3)
    for _ in range(10):
        assert (
            await (await process.connect()).ask(post({"model": "tiny"}, "Connection: close"))
        ).status == 200
    await until_counted(40)
    assert last == 40


async def test_keys_are_those_of_all(start: Start, routes: Path, tmp_path: Path) -> None:
    keys = write_keys(tmp_path / "keys.yml", key("a"), key("b"))
    process = await start(ROUTES=routes, PORT=0, WORKERS=2, KEYS=keys)
    await until_started(process, 2)
    write_keys(keys, key("b"))
    await process.until_logged("(?s)" + "keys loaded.*" * 3)  # by the parent, and by each worker
    for _ in range(10):
        client = await process.connect()
        assert (await client.ask(post({"model": "tiny"}, bearer("a")))).status == 401
        assert (await client.ask(post({"model": "tiny"}, bearer("b")))).status == 200


@pytest.mark.parametrize(("host", "is_said"), [("127.0.0.1", False), ("0.0.0.0", True)])
async def test_open_is_said(start: Start, routes: Path, host: str, *, is_said: bool) -> None:
    process = await start(ROUTES=routes, PORT=0, HOST=host)
    await process.until_logged("gateway started")
    process.process.send_signal(signal.SIGTERM)
    await process.ended()
    assert ("gateway open" in process.log) == is_said
