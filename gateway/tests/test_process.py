"""The process: how it starts, says no, reloads and stops."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from .client import Client, get, post
from .conftest import simple_map, until
from .engine import DONE, END, STREAM_HEAD, FakeEngine, Turn, chunk, event

SOURCE = Path(__file__).parents[1] / "src"


class Process:
    """A gateway process and its log."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.log = ""
        self.clients: list[Client] = []

    async def until_logged(self, pattern: str) -> re.Match[str]:
        assert self.process.stderr is not None
        async with asyncio.timeout(20):
            while not (match := re.search(pattern, self.log)):
                line = (await self.process.stderr.readline()).decode()
                assert line, f"ended: {self.log}"
                self.log += line
        return match

    async def ended(self) -> int:
        assert self.process.stderr is not None
        async with asyncio.timeout(20):
            self.log += (await self.process.stderr.read()).decode()
            return await self.process.wait()

    async def connect(self) -> Client:
        match = await self.until_logged(r"gateway started.*port\W+(\d+)")
        self.clients.append(Client(*await asyncio.open_connection("127.0.0.1", int(match[1]))))
        return self.clients[-1]

    def in_proc(self, name: str) -> str:
        """Return a file which the kernel has for the process."""
        return Path(f"/proc/{self.process.pid}/{name}").read_text()


def write(path: Path, text: str) -> None:
    path.write_text(text)


Start = Callable[..., Awaitable[Process]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    processes: list[Process] = []

    async def run(**environment: object) -> Process:
        base = {key: value for key, value in os.environ.items() if not key.startswith("ROUNDHOUSE_")}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "roundhouse_gateway",
            env=base
            | {"PYTHONPATH": str(SOURCE)}
            | {f"ROUNDHOUSE_{k}": str(v) for k, v in environment.items()},
            stderr=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        processes.append(Process(process))
        return processes[-1]

    yield run
    for process in processes:
        for client in process.clients:
            client.close()
        with contextlib.suppress(ProcessLookupError):
            process.process.kill()
        await process.process.communicate()


@pytest.fixture
def routes(tmp_path: Path, engine: FakeEngine) -> Path:
    path = tmp_path / "routes.yml"
    path.write_text(json.dumps(simple_map(engine)))
    return path


async def test_start_serve_stop(start: Start, routes: Path, engine: FakeEngine) -> None:
    process = await start(ROUTES=routes, PORT=0)
    client = await process.connect()
    assert (await client.ask(post({"model": "tiny"}))).status == 200
    assert process.in_proc(f"task/{process.process.pid}/children") == ""
    process.process.send_signal(signal.SIGTERM)
    assert await process.ended() == 0
    events = re.findall(r"^\S+Z [A-Z]+ (\w+ \w+)", process.log, re.MULTILINE)
    assert events == [
        "map loaded",
        "gateway started",
        "drain started",
        "drain ended",
        "request id",
        "gateway stopped",
    ]


async def test_memory_at_rest(start: Start, routes: Path) -> None:
    process = await start(ROUTES=routes, PORT=0)
    client = await process.connect()
    assert (await client.ask(get("/routes"))).status == 200
    match = re.search(r"VmRSS:\s+(\d+) kB", process.in_proc("status"))
    assert match
    assert int(match[1]) < 60 * 1024


async def test_json_log(start: Start, routes: Path) -> None:
    process = await start(ROUTES=routes, PORT=0, LOG="json")
    await process.connect()
    lines = [json.loads(line) for line in process.log.splitlines()]
    assert [line["event"] for line in lines] == ["map loaded", "gateway started"]
    assert lines[1]["revision"] == "1"


async def test_hangup_reloads(start: Start, routes: Path, engine: FakeEngine) -> None:
    process = await start(ROUTES=routes, PORT=0)
    client = await process.connect()
    write(routes, "{")
    process.process.send_signal(signal.SIGHUP)
    await process.until_logged("ERROR map refused")
    assert (await client.ask(post({"model": "tiny"}))).status == 200
    write(routes, json.dumps(simple_map(engine, revision="2")))
    process.process.send_signal(signal.SIGHUP)
    await process.until_logged("map loaded revision=2")


@pytest.mark.parametrize(("finishes", "code"), [(True, 0), (False, 1)])
async def test_exit_code_of_a_drain(
    start: Start, routes: Path, engine: FakeEngine, *, finishes: bool, code: int
) -> None:
    go_on = asyncio.Event()

    async def script(turn: Turn) -> None:
        await turn.send(STREAM_HEAD + chunk(event("a")))
        await go_on.wait()
        await turn.send(chunk(DONE) + END)

    engine.script = script
    process = await start(ROUTES=routes, PORT=0, DRAIN_TIMEOUT=20 if finishes else 0.1)
    client = await process.connect()
    await client.send(post({"model": "tiny"}))
    await client.read_until(b"\n\n\r\n")
    process.process.send_signal(signal.SIGTERM)
    await process.until_logged("drain started")
    if finishes:
        go_on.set()
    rest = await client.rest()
    assert (DONE in rest) == finishes
    assert (b"draining" in rest) != finishes
    assert await process.ended() == code


async def test_second_signal_hurries(start: Start, routes: Path, engine: FakeEngine) -> None:
    async def script(turn: Turn) -> None:
        await turn.until_left()

    engine.script = script
    process = await start(ROUTES=routes, PORT=0, DRAIN_TIMEOUT=1000)
    client = await process.connect()
    await client.send(post({"model": "tiny"}))
    await until(lambda: engine.turns)
    process.process.send_signal(signal.SIGINT)
    await process.until_logged("drain started")
    process.process.send_signal(signal.SIGINT)
    assert await process.ended() == 1


async def test_bad_settings(start: Start) -> None:
    process = await start(PORT="http", LOG="xml", KEYS="")
    assert await process.ended() == 2
    lines = process.log.splitlines()
    assert len(lines) == 4
    assert all(line.startswith("roundhouse-gateway: ROUNDHOUSE_") for line in lines)


async def test_bad_map(start: Start, tmp_path: Path) -> None:
    process = await start(ROUTES=tmp_path / "missing.yml", PORT=0)
    assert await process.ended() == 2
    assert "No such file" in process.log
    write(tmp_path / "bad.yml", "revision: 1")
    process = await start(ROUTES=tmp_path / "bad.yml", PORT=0)
    assert await process.ended() == 2
    assert "Traceback" not in process.log
    assert "bad.yml can't be used" in process.log


async def test_port_taken(start: Start, routes: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = await start(ROUTES=routes, PORT=port)
        assert await process.ended() == 1
    assert f"Can't listen on 127.0.0.1 port {port}: Address already in use" in process.log
    assert "Traceback" not in process.log
