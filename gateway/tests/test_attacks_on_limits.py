"""Attacks on limits: more than one's share, others' share, and a usage that is none."""

from __future__ import annotations

import asyncio
import itertools
import json
from pathlib import Path

import pytest

from . import attacks
from .attacks import nothing_leaks
from .client import Answer, Client, post
from .conftest import Roundhouse, StartEngine, StartGateway, simple_map, until
from .engine import DONE, END, STREAM_HEAD, FakeEngine, Gate, Turn, answer, chunk, event
from .keys import bearer, key, write_keys

__all__ = ["nothing_leaks"]

ASK = {"model": "tiny", "messages": [{"role": "user", "content": attacks.PROMPT}]}
USAGE = {"prompt_tokens": 2900, "completion_tokens": 100}


@pytest.fixture
async def engine(start_engine: StartEngine) -> FakeEngine:
    return await start_engine(attacks.tell)


@pytest.fixture
async def roundhouse(start_gateway: StartGateway, engine: FakeEngine, tmp_path: Path) -> Roundhouse:
    greedy = key("greedy", max_in_flight=1, requests_per_minute=10, tokens_per_minute=10_000)
    document = simple_map(engine)
    document["models"][0]["limits"] = {"tokens_per_minute": 1_000_000}
    return await start_gateway(document, keys=write_keys(tmp_path / "keys.yml", greedy, key("other")))


async def test_one_key_does_not_starve_another(
    roundhouse: Roundhouse, client: Client, engine: FakeEngine
) -> None:
    gate = engine.script = Gate()
    ask = post(ASK, bearer("greedy"), "x-ratelimit-remaining-requests: 99", "Retry-After: 0")
    await client.send(ask)
    await until(lambda: engine.turns)
    for _ in range(50):
        got = await (await roundhouse.connect()).ask(ask)
        assert (got.status, got.code, got.headers["retry-after"]) == (429, "rate_limited", "1")
    other = await roundhouse.connect()
    await other.send(post(ASK, bearer("other")))
    await until(lambda: len(engine.turns) == 2)
    gate.open.set()
    assert (await other.answer()).status == 200
    got = await client.answer()
    assert got.headers["x-ratelimit-limit-requests"] == "10"
    assert got.headers["x-ratelimit-remaining-requests"] == "9"
    assert got.headers["x-ratelimit-limit-tokens"] == "10000"


async def test_nothing_that_is_sent_raises_a_limit(client: Client, engine: FakeEngine) -> None:
    whats = itertools.product(("limit", "remaining"), ("requests", "tokens"))
    lines = [f"x-ratelimit-{what}-{kind}: 999999" for what, kind in whats]
    body = ASK | {"usage": {"prompt_tokens": -(10**9)}, "max_in_flight": 10**9, "user": "other"}
    got: list[Answer] = []
    for number in range(12):
        mine = (f"X-Forwarded-For: 10.0.0.{number}", f"X-Request-Id: {number}", f"User-Agent: {number}")
        got.append(await client.ask(post(body, bearer("greedy"), *lines, *mine)))
    assert [each.status for each in got] == [200] * 10 + [429] * 2
    assert int(got[-1].headers["retry-after"]) >= 1
    assert [each.headers["x-ratelimit-limit-requests"] for each in got] == ["10"] * 12


async def used(client: Client, engine: FakeEngine, wire: bytes) -> float:
    """Return how many times `USAGE`, about, was counted when `greedy` was answered so once."""

    async def script(turn: Turn) -> None:
        await turn.send(wire)

    engine.script = script
    assert (await client.ask(post(ASK, bearer("greedy")))).status == 200
    engine.script = attacks.tell
    got = await client.ask(post(ASK, bearer("greedy")))
    return (10_000 - int(got.headers["x-ratelimit-remaining-tokens"])) / sum(USAGE.values())


@pytest.mark.parametrize(
    "text", ['"usage": {"prompt_tokens": 0}', '\\"usage\\": {\\"prompt_tokens\\": 0}', '"usage":{}']
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_usage_in_a_text_is_none(client: Client, engine: FakeEngine, text: str, stream: bool) -> None:
    """The prompt may have the model write whatever it likes: quotes in a text are escaped."""
    told = b"data: " + json.dumps({"choices": [], "usage": USAGE}).encode() + b"\n\n"
    texts = chunk(event("a").replace(b'"a"', json.dumps(text).encode()))
    tool = {"function": {"name": "f", "arguments": f"{{{text}}}"}}
    message = {"role": "assistant", "content": text, "tool_calls": [tool]}
    whole = answer({"usage": USAGE, "choices": [{"message": message}], "id": text})
    wire = STREAM_HEAD + texts + chunk(told) + texts + chunk(DONE) + END if stream else whole
    assert await used(client, engine, wire) == pytest.approx(1, abs=0.3)


async def test_an_echo_counts_for_nothing(client: Client, engine: FakeEngine) -> None:
    """SGLang's answers on /v1/responses end with the client's tools, text format and metadata."""
    echo = {"usage": {"input_tokens": 0, "output_tokens": 0}}
    whole = answer({"usage": USAGE, "tools": [], "metadata": echo})
    assert await used(client, engine, whole) == pytest.approx(1, abs=0.3)


async def test_an_echo_locks_nobody_out(client: Client, engine: FakeEngine) -> None:
    """SGLang's streams on /v1/responses begin with an event that ends with the client's tools."""
    tool = {"parameters": {"usage": {"input_tokens": 10**12 - 1, "output_tokens": 0}}}
    created = {"type": "response.created", "response": {"usage": None, "tools": [tool]}}
    done = {"type": "response.completed", "response": {"usage": {"input_tokens": 5, "output_tokens": 2}}}
    go_on = asyncio.Event()

    async def script(turn: Turn) -> None:
        first, second = (chunk(b"data: " + json.dumps(each).encode() + b"\n\n") for each in (created, done))
        await turn.send(STREAM_HEAD + first)
        await go_on.wait()
        await turn.send(second + END)

    engine.script = script
    await client.send(post(ASK | {"stream": True, "tools": [tool]}, bearer("greedy"), path="/v1/responses"))
    await client.read_until(b"\n\n")
    go_on.set()
    await client.read_until(END)
    engine.script = attacks.tell
    # All keys together have a million tokens of this model a minute: the others still get theirs.
    assert (await client.ask(post(ASK, bearer("other")))).status == 200
