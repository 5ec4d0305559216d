"""Heads that came before are not read again, and that must not show."""

import asyncio
import json

import pytest

from roundhouse_gateway import reader, upstream

from .client import Client, post
from .conftest import Roundhouse, until
from .engine import CHAT, FakeEngine, Turn, answer

ASK = post({"model": "tiny"})


@pytest.fixture(autouse=True)
def nothing_known() -> None:
    reader._known.clear()
    upstream._known_heads.clear()


def padded(document: object, size: int) -> bytes:
    return json.dumps(document).encode().ljust(size)


async def test_each_request_is_its_own(client: Client, engine: FakeEngine) -> None:
    async def script(turn: Turn) -> None:
        await turn.send(answer(padded(CHAT, 300 + turn.json["n"])))

    engine.script = script
    bodies = [{"model": "tiny", "n": 10**number} for number in range(5)]
    answers = [await client.ask(post(body)) for body in bodies]
    assert len(reader._known) == len(upstream._known_heads) == 1
    assert all(got.status == 200 and got.json == CHAT and got.complete for got in answers)
    assert [turn.json for turn in engine.turns] == bodies
    ids = [got.headers["x-request-id"] for got in answers]
    assert len(set(ids)) == 5
    assert [turn.headers["x-request-id"] for turn in engine.turns] == ids


async def test_id_of_the_client(client: Client, engine: FakeEngine) -> None:
    request = post(
        {"model": "tiny"}, "X-Request-Id: mine", "Connection: x-hop", "X-Hop: 1", "Authorization: b"
    )
    for _ in range(3):
        assert (await client.ask(request)).headers["x-request-id"] == "mine"
    assert len(reader._known) == 1
    assert len({turn.head for turn in engine.turns}) == 1
    assert not {"x-hop", "authorization"} & engine.turns[-1].headers.keys()


@pytest.mark.parametrize("pieces", [1, 2])
async def test_error_behind_a_known_head(client: Client, engine: FakeEngine, pieces: int) -> None:
    error = {"error": {"message": "no", "type": "t", "param": None, "code": 404}}

    async def script(turn: Turn) -> None:
        body = padded(CHAT if len(engine.turns) < 3 else error, 300)
        data = answer(body)
        await turn.send(*([data] if pieces == 1 else [data[:-100], data[-100:]]))

    engine.script = script
    assert [(await client.ask(ASK)).status for _ in range(4)] == [200, 200, 404, 404]


async def test_body_that_comes_later(client: Client, engine: FakeEngine) -> None:
    assert (await client.ask(ASK)).status == 200
    head, _, body = ASK.partition(b"\r\n\r\n")
    await client.send(head + b"\r\n\r\n" + body[:3])
    await asyncio.sleep(0)
    await client.send(body[3:] + ASK + ASK)
    for _ in range(3):
        assert (await client.answer()).json == CHAT
    assert len(engine.turns) == 4


async def test_bad_body_behind_a_known_head(client: Client) -> None:
    assert (await client.ask(ASK)).status == 200
    bad = ASK[:-1] + b"]"
    assert (await client.ask(bad)).code == "invalid_json"
    assert (await client.ask(ASK)).status == 200


async def test_smaller_limits_hold(client: Client, roundhouse: Roundhouse) -> None:
    assert (await client.ask(ASK)).status == 200
    small = reader.RequestReader(max_header=65_536, max_body=5)
    small.feed(ASK)
    assert small.waiting[0].error is not None
    short = reader.RequestReader(max_header=30, max_body=1000)
    short.feed(ASK)
    assert short.waiting[0].error is not None


async def test_what_is_known_is_bounded(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_MAX_KNOWN", 3)
    for number in range(10):
        assert (await client.ask(post({"model": "tiny"}, f"X-Number: {number}"))).status == 200
        assert len(reader._known) <= 3
    await client.ask(post({"model": "tiny"}, "X-Long: " + "x" * 5000))
    assert all(len(head) < 4096 for head in reader._known)


async def test_two_answers_at_once(client: Client, engine: FakeEngine) -> None:
    async def script(turn: Turn) -> None:
        await turn.send(answer(CHAT) * (2 if len(engine.turns) == 2 else 1))

    engine.script = script
    for _ in range(4):
        assert (await client.ask(ASK)).json == CHAT
    # The connection on which more came than was asked for is not used again.
    await until(lambda: engine.connections == 2)
