"""Limits: the arithmetic, and what clients get to see of it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roundhouse_gateway import limits
from roundhouse_gateway.errors import GatewayError
from roundhouse_gateway.limits import Bucket, Limits, Meter

from .client import Client, get, post
from .conftest import Roundhouse, StartGateway, simple_map, until
from .engine import DONE, END, STREAM_HEAD, FakeEngine, Gate, Turn, chunk, event
from .keys import bearer, key, write_keys

ASK = {"model": "tiny", "messages": [{"role": "user", "content": "x" * 400}]}


class TestBucket:
    def test_a_minutes_worth_at_once_and_then_evenly(self) -> None:
        bucket = Bucket(60, 0.0)
        bucket.take(60)
        assert bucket.level(0.0) == 0
        assert bucket.wait(0.0, 1) == 1.0
        assert bucket.wait(0.5, 1) == 0.5
        assert bucket.level(30.0) == 30
        assert bucket.level(1000.0) == 60

    def test_below_zero(self) -> None:
        bucket = Bucket(60, 0.0)
        bucket.take(90)
        assert bucket.wait(0.0, 1) == 31.0

    def test_another_limit_keeps_what_was_used(self) -> None:
        bucket = Bucket(60, 0.0)
        bucket.take(50)
        bucket.change(100, 0.0)
        assert bucket.level(0.0) == 50
        bucket.change(20, 0.0)
        assert bucket.level(0.0) == -30

    @given(
        limit=st.integers(1, 1000),
        steps=st.lists(st.tuples(st.floats(0, 30), st.integers(0, 50)), max_size=50),
    )
    def test_never_more_than_its_limit_in_any_time(self, limit: int, steps: list[tuple[float, int]]) -> None:
        bucket, now, taken = Bucket(limit, 0.0), 0.0, 0
        for pause, wanted in steps:
            now += pause
            for _ in range(wanted):
                if not bucket.wait(now, 1.0):
                    bucket.take(1.0)
                    taken += 1
        assert taken <= limit + now * limit / 60 + 1e-6


class TestMeter:
    def test_nothing_is_counted_of_what_is_refused(self) -> None:
        mine = Meter("the key 'a'", Limits(requests_per_minute=2), 0.0)
        full = Meter("the model 'm'", Limits(max_in_flight=1), 0.0)
        limits.admit((mine, full), 0.0)
        with pytest.raises(GatewayError, match="The limit of the model 'm' is reached: 1 requests in flight"):
            limits.admit((mine, full), 0.0)
        full.leave(0)
        limits.admit((mine, full), 0.0)
        full.leave(0)
        with pytest.raises(GatewayError, match="the key 'a' is reached: 2 requests per minute") as caught:
            limits.admit((mine, full), 0.0)
        assert caught.value.retry_after == 30
        assert (mine.in_flight, full.in_flight) == (2, 0)

    def test_headers_are_of_the_tightest(self) -> None:
        wide = Meter("", Limits(requests_per_minute=100, tokens_per_minute=10), 0.0)
        tight = Meter("", Limits(requests_per_minute=10), 0.0)
        assert limits.admit((wide, tight), 0.0).decode().split("\r\n") == [
            "x-ratelimit-limit-requests: 10",
            "x-ratelimit-remaining-requests: 9",
            "x-ratelimit-reset-requests: 6s",
            "x-ratelimit-limit-tokens: 10",
            "x-ratelimit-remaining-tokens: 10",
            "x-ratelimit-reset-tokens: 0ms",
            "",
        ]

    @pytest.mark.parametrize(
        ("seconds", "text"),
        [(0, "0ms"), (0.0101, "11ms"), (1, "1s"), (1.55, "1.55s"), (360, "6m0s"), (61.9, "1m1s")],
    )
    def test_durations(self, seconds: float, text: str) -> None:
        assert limits.duration(seconds) == text


Start = Any


@pytest.fixture
def start(start_gateway: StartGateway, engine: FakeEngine, tmp_path: Path) -> Start:
    async def run(*keys: dict[str, Any], **of_model: int) -> Roundhouse:
        document = simple_map(engine)
        document["models"][0]["limits"] = of_model
        return await start_gateway(document, keys=write_keys(tmp_path / "keys.yml", *keys))

    return run


async def test_requests_per_minute(start: Start) -> None:
    client = await (await start(key("a", requests_per_minute=2), key("b"))).connect()
    first, second, third = [await client.ask(post(ASK, bearer("a"))) for _ in range(3)]
    assert [got.status for got in (first, second, third)] == [200, 200, 429]
    assert [got.headers["x-ratelimit-remaining-requests"] for got in (first, second, third)] == [
        "1",
        "0",
        "0",
    ]
    assert (third.code, third.json["error"]["type"]) == ("rate_limited", "rate_limit_error")
    assert 1 <= int(third.headers["retry-after"]) <= 30
    # Others are not touched, and get no such headers.
    other = await client.ask(post(ASK, bearer("b")))
    assert other.status == 200
    assert not any(name.startswith("x-ratelimit") for name in other.headers)
    # To look what there is costs nothing.
    assert (await client.ask(get("/v1/models", bearer("a")))).status == 200


async def test_tokens_per_minute(start: Start) -> None:
    client = await (await start(key("a", tokens_per_minute=10))).connect()
    got = [await client.ask(post(ASK, bearer("a"))) for _ in range(3)]
    # Seven tokens each, as the engine tells: after the second there are none left.
    assert [each.status for each in got] == [200, 200, 429]
    assert [each.headers["x-ratelimit-remaining-tokens"] for each in got] == ["10", "3", "0"]
    assert "10 tokens per minute" in got[2].json["error"]["message"]


@pytest.mark.parametrize(("tells", "left"), [(True, 993), (False, 1000 - 2 - 120)])
async def test_tokens_of_a_stream(start: Start, engine: FakeEngine, tells: bool, left: int) -> None:
    """Without a usage, pieces are counted, and the request by its size."""
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7}}\n\n'

    async def script(turn: Turn) -> None:
        await turn.send(STREAM_HEAD, chunk(event("one")))
        await turn.send(chunk(usage) if tells else b"", chunk(DONE) + END)

    engine.script = script
    roundhouse = await start(key("a", tokens_per_minute=1000))
    client = await roundhouse.connect()
    assert (await client.ask(post(ASK | {"stream": True}, bearer("a")))).complete
    remaining = int((await client.ask(post(ASK, bearer("a")))).headers["x-ratelimit-remaining-tokens"])
    assert remaining == pytest.approx(left, abs=5)


@pytest.mark.parametrize("stream", [False, True])
async def test_who_leaves_early_has_used_something(start: Start, engine: FakeEngine, *, stream: bool) -> None:
    """Else a client could take an answer but for its last event, and pay nothing."""
    told = b'data: {"type":"message_start","message":{"usage":{"input_tokens":3,"output_tokens":1}}}\n\n'

    async def script(turn: Turn) -> None:
        if stream:
            await turn.send(STREAM_HEAD, chunk(told), chunk(event("word") * 300))
        await turn.until_left()

    engine.script = script
    roundhouse = await start(key("a", tokens_per_minute=1000))
    client = await roundhouse.connect()
    await client.send(post(ASK | {"stream": stream}, bearer("a")))
    await until(lambda: engine.turns)
    if stream:
        await client.read_until(event("word") * 300)
    client.reset()
    await until(roundhouse.is_quiet)
    meter = roundhouse.gateway.access._of_keys["a"]
    left = meter.headers(asyncio.get_running_loop().time())["tokens"][1]
    assert left == pytest.approx(1000 - 120 - (301 if stream else 0), abs=10)


async def test_in_flight(start: Start, engine: FakeEngine) -> None:
    roundhouse = await start(key("greedy", max_in_flight=2), key("modest"))
    gate = engine.script = Gate()
    clients: list[Client] = [await roundhouse.connect() for _ in range(4)]
    for client in clients[:2]:
        await client.send(post(ASK, bearer("greedy")))
    await until(lambda: len(engine.turns) == 2)
    refused = await clients[2].ask(post(ASK, bearer("greedy")))
    assert (refused.status, refused.code, refused.headers["retry-after"]) == (429, "rate_limited", "1")
    await clients[3].send(post(ASK, bearer("modest")))
    await until(lambda: len(engine.turns) == 3)
    gate.open.set()
    assert [(await client.answer()).status for client in (*clients[:2], clients[3])] == [200, 200, 200]
    assert (await clients[2].ask(post(ASK, bearer("greedy")))).status == 200


@pytest.mark.parametrize("how", ["client leaves", "engine dies", "nobody is there"])
async def test_what_went_wrong_is_no_longer_in_flight(start: Start, engine: FakeEngine, how: str) -> None:
    roundhouse = await start(key("a", max_in_flight=1))
    client = await roundhouse.connect()
    if how == "client leaves":
        engine.script = Gate()
        await client.send(post(ASK, bearer("a")))
        await until(lambda: engine.turns)
        client.reset()
    elif how == "engine dies":

        async def script(turn: Turn) -> None:
            turn.reset()

        engine.script = script
        assert (await client.ask(post(ASK, bearer("a")))).status == 502
    else:
        roundhouse.backend().ejected = True
        assert (await client.ask(post(ASK, bearer("a")))).status == 503
    await until(lambda: roundhouse.gateway.access._of_keys["a"].in_flight == 0)


async def test_all_keys_together(start: Start) -> None:
    client = await (await start(key("a"), key("b"), requests_per_minute=2)).connect()
    got = [await client.ask(post(ASK, bearer(name))) for name in "aba"]
    assert [each.status for each in got] == [200, 200, 429]
    assert "the model 'tiny' (all keys together)" in got[2].json["error"]["message"]


async def test_counts_outlive_a_reload(start: Start, tmp_path: Path) -> None:
    roundhouse = await start(key("a", requests_per_minute=2))
    client = await roundhouse.connect()
    for _ in range(2):
        assert (await client.ask(post(ASK, bearer("a")))).status == 200
    write_keys(tmp_path / "keys.yml", key("a", requests_per_minute=2), key("b"))
    await until(lambda: len(roundhouse.gateway.access.keys.keys or ()) == 2)
    assert (await client.ask(post(ASK, bearer("a")))).status == 429
