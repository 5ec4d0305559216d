"""The log of requests: one line for each, with what it has to tell and nothing else."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from roundhouse_gateway import request_log
from roundhouse_gateway.request_log import RequestLog

from .client import get, post
from .conftest import Roundhouse, StartGateway, simple_map, until
from .engine import STREAM_HEAD, FakeEngine, Turn, chunk, event
from .keys import bearer, key, secret, write_keys

Lines = Callable[[], list[dict[str, Any]]]

ASK = {"model": "tiny", "messages": [{"role": "user", "content": "my secret question"}]}


@pytest.fixture
async def roundhouse(start_gateway: StartGateway, engine: FakeEngine, tmp_path: Path) -> Roundhouse:
    keys = write_keys(
        tmp_path / "keys.yml", key("alice", requests_per_minute=1000), key("bob", requests_per_minute=1)
    )
    return await start_gateway(simple_map(engine), keys=keys)


@pytest.fixture
def lines(roundhouse: Roundhouse) -> Lines:
    out = io.StringIO()
    roundhouse.gateway.request_log = RequestLog("json", 1.0, out)

    def read() -> list[dict[str, Any]]:
        roundhouse.gateway.request_log.flush()
        text = out.getvalue()
        assert "secret" not in text
        assert secret("alice") not in text
        return [json.loads(line) for line in text.splitlines()]

    return read


async def test_a_complete_one(roundhouse: Roundhouse, lines: Lines) -> None:
    client = await roundhouse.connect()
    got = await client.ask(
        post(ASK, bearer("alice"), "X-Request-Id: mine-1", path="/v1/chat/completions?x=secret")
    )
    [line] = lines()
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line.pop("ms") >= line.pop("first_byte_ms") >= 0
    assert line == {
        "level": "info",
        "event": "request",
        "request_id": "mine-1",
        "path": "/v1/chat/completions",
        "key": "alice",
        "model": "tiny",
        "engine": "fake",
        "backend": "one",
        "status": 200,
        "code": "",
        "bytes": len(got.body),
        "tokens_in": 5,
        "tokens_out": 2,
        "end": "complete",
    }


async def test_how_they_end(roundhouse: Roundhouse, lines: Lines, engine: FakeEngine) -> None:
    client = await roundhouse.connect()
    await client.ask(post(ASK))
    await client.ask(post({"model": "secret"}, bearer("alice")))
    for _ in range(2):
        await client.ask(post(ASK, bearer("bob")))

    async def dies(turn: Turn) -> None:
        await turn.send(STREAM_HEAD, chunk(event("secret")))
        turn.close()

    engine.script = dies
    await client.ask(post(ASK, bearer("alice")))

    async def waits(turn: Turn) -> None:
        await turn.until_left()

    engine.script = waits
    await client.send(post(ASK, bearer("alice")))
    await until(lambda: len(engine.turns) == 3)
    client.reset()
    await until(roundhouse.is_quiet)
    client = await roundhouse.connect()
    await client.send(b"secret\r\n\r\n")
    await client.rest()
    assert [
        (line["key"], line["status"], line["code"], line["end"], line["tokens_in"]) for line in lines()
    ] == [
        ("", 401, "missing_api_key", "refused", None),
        ("alice", 404, "model_not_found", "refused", None),
        ("bob", 200, "", "complete", 5),
        ("bob", 429, "rate_limited", "refused", None),
        ("alice", 200, "engine_lost", "engine lost", None),
        ("alice", 499, "client_left", "client left", None),
        ("", 400, "bad_request", "refused", None),
    ]


async def test_only_requests_for_engines(roundhouse: Roundhouse, lines: Lines) -> None:
    client = await roundhouse.connect()
    for path in ("/healthz", "/readyz", "/v1/models"):
        await client.ask(get(path, bearer("alice")))
    assert lines() == []


async def test_text(roundhouse: Roundhouse) -> None:
    out = io.StringIO()
    log = roundhouse.gateway.request_log = RequestLog("text", 1.0, out)
    client = await roundhouse.connect()
    await client.ask(post(ASK, bearer("alice"), 'X-Request-Id: a"b c'))
    await client.ask(post(ASK, "X-Request-Id: 2"))
    log.flush()
    first, second = (line.partition(" ")[2] for line in out.getvalue().splitlines())
    assert re.fullmatch(
        r'INFO request id="a\\"b c" path=/v1/chat/completions key=alice model=tiny engine=fake backend=one status=200'
        r' bytes=\d+ first_byte_ms=\d+ ms=\d+ tokens_in=5 tokens_out=2 end="complete"',
        first,
    )
    assert re.fullmatch(
        r'INFO request id=2 path=/v1/chat/completions status=401 code=missing_api_key bytes=0 ms=0 end="refused"',
        second,
    )


@pytest.mark.parametrize(("sample", "logged"), [(0.0, 0), (0.25, 2), (0.5, 5), (1.0, 10)])
async def test_a_sample_and_all_that_went_wrong(roundhouse: Roundhouse, sample: float, logged: int) -> None:
    out = io.StringIO()
    log = roundhouse.gateway.request_log = RequestLog("json", sample, out)
    client = await roundhouse.connect()
    for _ in range(10):
        await client.ask(post(ASK, bearer("alice")))
    await client.ask(post(ASK))
    log.flush()
    statuses = [json.loads(line)["status"] for line in out.getvalue().splitlines()]
    assert (statuses.count(200), statuses.count(401)) == (logged, 1)


async def test_no_room_for_a_line_hurts_nobody(
    roundhouse: Roundhouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, f"No space left on device for {len(text)} characters")

    monkeypatch.setattr(request_log, "_MOST", 0)
    roundhouse.gateway.request_log = RequestLog("text", 1.0, Full())
    client = await roundhouse.connect()
    for _ in range(3):
        assert (await client.ask(post(ASK, bearer("alice")))).status == 200
    assert (await client.ask(post(ASK))).status == 401
    assert roundhouse.is_quiet()


async def test_lines_are_written_by_and_by(roundhouse: Roundhouse) -> None:
    out = io.StringIO()
    roundhouse.gateway.request_log = RequestLog("text", 1.0, out)
    client = await roundhouse.connect()
    await client.ask(post(ASK, bearer("alice")))
    await until(out.getvalue)
