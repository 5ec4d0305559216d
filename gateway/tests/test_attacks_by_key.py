"""Attacks on keys: guessing, odd spellings, other people's models, and keys that are no longer good."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from roundhouse_gateway import reader

from . import attacks
from .attacks import nothing_leaks
from .client import Client, get, post
from .conftest import Roundhouse, StartEngine, StartGateway, engine_entry
from .engine import FakeEngine
from .keys import bearer, key, secret, write_keys

__all__ = ["nothing_leaks"]

ASK = {"model": "tiny", "messages": [{"role": "user", "content": attacks.PROMPT}]}
HIDDEN = ("hidden", "veiled", "covert")


@pytest.fixture
async def engine(start_engine: StartEngine) -> FakeEngine:
    return await start_engine(attacks.tell)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return write_keys(
        tmp_path / "keys.yml",
        key("all"),
        key("tiny", models=["tiny"]),
        key("boss", models=["tiny"], admin=True),
    )


@pytest.fixture
async def roundhouse(
    start_gateway: StartGateway, engine: FakeEngine, keys: Path, tmp_path: Path
) -> Roundhouse:
    """Return a gateway with a model that all may use, and one that only some may know of."""
    file = tmp_path / "engine.key"
    file.write_text(attacks.ENGINES_KEY)
    entry = {"key_file": str(file), "served_model": "inside"}
    models = [
        {"model": "tiny", "aliases": ["small"], "engines": [engine_entry(engine, **entry)]},
        {
            "model": "org/hidden",
            "aliases": ["veiled"],
            "engines": [engine_entry(engine, names="covert", owned_by="covert", **entry)],
        },
    ]
    return await start_gateway({"revision": "1", "models": models}, keys=keys)


@pytest.fixture
async def client(roundhouse: Roundhouse) -> Client:
    return await roundhouse.connect()


def lined(*lines: bytes) -> bytes:
    """Return a request with these lines as they are."""
    return post(ASK, "LINES").replace(b"LINES", b"\r\n".join(lines))


GOOD = secret("all").encode()


class TestGuessing:
    async def test_at_full_speed(self, client: Client, engine: FakeEngine) -> None:
        names = [f"guess{number}" if number % 100 else "all" for number in range(4000)]
        wire = [
            post(ASK, f"x-api-key: {secret(name)}" if name[-1] in "13579" else bearer(name)) for name in names
        ]
        statuses = [(await client.ask(request)).status for request in wire[:1000]]
        sending = asyncio.ensure_future(client.send(b"".join(wire[1000:])))
        statuses += [(await client.answer()).status for _ in wire[1000:]]
        await sending
        assert statuses == [200 if name == "all" else 401 for name in names]
        assert len(engine.turns) == 40
        # What the gateway keeps of all that: a bounded number of heads, none of them large, and no body.
        assert 0 < len(reader._known) <= reader._MAX_KNOWN
        assert max(map(len, reader._known)) <= reader._MAX_KNOWN_SIZE
        assert not any(request.body for request in reader._known.values())

    async def test_all_wrong_keys_look_the_same(self, roundhouse: Roundhouse, client: Client) -> None:
        """Neither the key nor what is asked for changes the answer."""
        answers = set()
        for name in ("al", "all ", "tiny0", "x" * 1000, "ALL"):
            for body in (ASK, {"model": "org/hidden"}, {"model": "nothing"}, {}, b"no JSON"):
                got = await client.ask(post(body, bearer(name)))
                answers.add((got.status, got.body, *(got.headers.keys() - {"x-request-id"})))
        assert len({row[:2] for row in answers}) == 1
        assert next(iter(answers))[0] == 401


class TestSpellings:
    @pytest.mark.parametrize(
        "lines",
        [
            (b"authorization: bearer " + GOOD,),
            (b"AUTHORIZATION:BEARER \t " + GOOD + b" ",),
            (b"Authorization: Basic YTpi", b"Authorization: Bearer " + GOOD),
            (b"Authorization: Bearer ", b"X-API-KEY: " + GOOD),
            (b"Authorization: Basic YTpi", b"x-api-key: " + GOOD),
            (b"x-api-key: ", b"x-api-key: " + GOOD),
            (b"Authorization: Bearer " + GOOD, b"x-api-key: nothing"),
        ],
    )
    async def test_good(self, client: Client, engine: FakeEngine, lines: tuple[bytes, ...]) -> None:
        for _ in range(2):
            assert (await client.ask(lined(*lines))).status == 200
            assert GOOD not in engine.turns[-1].head
            assert engine.turns[-1].headers["authorization"] == f"Bearer {attacks.ENGINES_KEY}"
            assert engine.turns[-1].head.lower().count(b"authorization:") == 1

    @pytest.mark.parametrize(
        "lines",
        [
            (b"Authorization: " + GOOD,),
            (b"Authorization: Bearer" + GOOD,),
            (b"Authorization: Bearer\t" + GOOD,),
            (b"Authorization: Bearer Bearer " + GOOD,),
            (b'Authorization: Bearer "' + GOOD + b'"',),
            (b"Authorization: Bearer " + GOOD + b",",),
            (b"Authorization: Bearer " + GOOD + b" x",),
            (b"Authorization: Bearer " + GOOD + b"\xa0",),
            (b"Authorization: Bearer " + GOOD + b"\xe2\x80\x8b",),
            (b"Authorization: Bearer " + GOOD[:-1],),
            (b"Authorization: Bearer " + GOOD.upper(),),
            (b"Authorization: Bearer " + GOOD * 1500,),
            (b"Authorization: Basic " + GOOD,),
            (b"Authorization: Token " + GOOD,),
            (b"Authorization: Bearer nothing", b"Authorization: Bearer " + GOOD),
            (b"Authorization: Bearer nothing", b"x-api-key: " + GOOD),
            (b"x-api-key: nothing", b"x-api-key: " + GOOD),
            (b"x-api-key: Bearer " + GOOD,),
            (b"x_api_key: " + GOOD, b"api-key: " + GOOD, b"X-Auth-Token: " + GOOD),
            (b"Proxy-Authorization: Bearer " + GOOD,),
            (b"Cookie: Authorization=Bearer " + GOOD,),
            (
                b"X-Forwarded-Authorization: Bearer " + GOOD,
                b"X-Real-IP: 127.0.0.1",
                b"X-Forwarded-For: 127.0.0.1",
            ),
            (b"Authorization: Bearer " + key("all")["sha256"].encode(),),
            (b"Authorization: Bearer \xff\xfe", b"X: \xe6\x97\xa5"),
            (b"Authorization: Bearer *",),
        ],
        ids=lambda lines: lines[-1].decode("latin-1")[:30],
    )
    async def test_bad(self, client: Client, engine: FakeEngine, lines: tuple[bytes, ...]) -> None:
        asked = [lined(*lines)] * 2
        for path in ("/v1/models", "/v1/models/tiny", "/routes", "/metrics"):
            asked.append(get(path, "LINES").replace(b"LINES", b"\r\n".join(lines)))
        for request in asked:
            got = await client.ask(request)
            assert (got.status, got.headers["www-authenticate"]) == (401, "Bearer")
            assert not [name for name in (*HIDDEN, "tiny") if name in str(got)]
        assert not engine.turns

    @pytest.mark.parametrize("byte", [b"\x00", b"\r", b"\n", b"\x01", b"\x7f"])
    async def test_no_http(self, client: Client, engine: FakeEngine, byte: bytes) -> None:
        got = await client.ask(lined(b"Authorization: Bearer " + GOOD + byte))
        assert (got.status, got.code) == (400, "bad_request")
        assert not engine.turns

    @pytest.mark.parametrize(
        "name", ["key", "api_key", "api-key", "x-api-key", "authorization", "access_token", "token"]
    )
    async def test_elsewhere(self, client: Client, engine: FakeEngine, name: str) -> None:
        for value in (secret("all"), f"Bearer%20{secret('all')}"):
            got = await client.ask(post(ASK, path=f"/v1/completions?{name}={value}"))
            assert got.code == "missing_api_key"
        assert (await client.ask(post(ASK | {name: secret("all")}))).code == "missing_api_key"
        got = await client.ask(post(ASK, path=f"http://all:{secret('all')}@gateway/v1/completions"))
        assert got.code == "missing_api_key"
        assert not engine.turns


class TestOthersModels:
    @pytest.mark.parametrize(
        "body",
        [
            {"model": "org/hidden"},
            {"model": "veiled"},
            {"model": "org/hidden@covert"},
            {"model": "veiled@covert"},
            {"model": "veiled@fake"},
            {"model": "veiled@nothing"},
            {"model": "org/hidden", "owned_by": "covert"},
            {"model": "veiled", "owned_by": "COVERT"},
            {"model": "veiled@covert", "owned_by": "fake"},
            {"owned_by": "covert", "model": "org/hidden", "stream": True},
            rb'{"mod\u0065l":"veiled"}',
            rb'{"\u006d\u006f\u0064\u0065\u006c":"\u0076eiled"}',
            rb'{"x":{"model":"tiny"},"model":"org\/hidden"}',
        ],
    )
    async def test_not_allowed(
        self, client: Client, engine: FakeEngine, body: dict[str, Any] | bytes
    ) -> None:
        for path in ("/v1/chat/completions", "/v1/messages", "/tokenize", "/v1/completions?model=tiny"):
            got = await client.ask(post(body, bearer("tiny"), path=path))
            assert got.status == 403
            said = got.json["error"]["message"].partition("Models: ")[2]
            assert said == "tiny, small."
        assert not engine.turns

    @pytest.mark.parametrize(
        ("body", "status"),
        [
            ({"model": "tiny", "owned_by": "covert"}, 404),
            ({"model": "tiny@covert"}, 404),
            ({"model": "tiny@org/hidden"}, 404),
            ({"model": "small", "owned_by": "veiled"}, 404),
            ({"model": "tiny@veiled@covert"}, 404),
            ({"model": "nothing"}, 404),
            ({"owned_by": "covert"}, 400),
            ({}, 400),
            (b'{"model":"tiny","model":"veiled"}', 400),
            (rb'{"model":"tiny","mod\u0065l":"veiled"}', 400),
            (b'{"model":["tiny","veiled"]}', 400),
            (b'{"model":{"tiny":"veiled"}}', 400),
        ],
    )
    async def test_no_hint(
        self, client: Client, engine: FakeEngine, body: dict[str, Any] | bytes, status: int
    ) -> None:
        """What is said besides the client's own words names nothing that it may not use."""
        got = await client.ask(post(body, bearer("tiny")))
        assert got.status == status
        sent = body.decode() if isinstance(body, bytes) else json.dumps(body)
        assert not [name for name in HIDDEN if name in str(got) and name not in sent]
        assert not engine.turns

    @pytest.mark.parametrize("model", [b"veiled", b"org/hidden", b"veiled@covert"])
    async def test_forms(self, client: Client, engine: FakeEngine, model: bytes) -> None:
        form = b'--B\r\nContent-Disposition: form-data; name="model"\r\n\r\n%b\r\n--B--\r\n' % model
        wire = post(form, bearer("tiny"), path="/v1/audio/translations")
        got = await client.ask(wire.replace(b"application/json", b"multipart/form-data; boundary=B"))
        assert (got.status, got.code) == (403, "model_not_allowed")
        assert not engine.turns

    @pytest.mark.parametrize(
        "path", ["org/hidden", "org%2Fhidden", "%6frg/hidden", "veiled", "veiled@covert", "%76eiled"]
    )
    async def test_one(self, client: Client, path: str) -> None:
        for method in ("GET", "HEAD"):
            got = await client.ask(
                get(f"/v1/models/{path}", bearer("tiny"), method=method), head_only=method == "HEAD"
            )
            assert got.status == 403
            assert "covert" not in str(got).replace(path, "").replace("veiled@covert", "")

    async def test_lists(self, client: Client) -> None:
        for path in (
            "/v1/models",
            "/v1/models?model=veiled",
            "/v1/models/tiny",
            "/v1/models/tiny?org/hidden",
        ):
            got = await client.ask(get(path, bearer("tiny")))
            assert got.status == 200
            assert not [name for name in HIDDEN if name in str(got)]

    async def test_operators(self, client: Client) -> None:
        for path in ("/routes", "/metrics", "/routes?admin=true", "http://localhost/metrics"):
            for method in ("GET", "HEAD"):
                head_only = method == "HEAD"
                for line, status in (("X: y", 401), (bearer("tiny"), 403), (bearer("boss"), 200)):
                    got = await client.ask(get(path, line, method=method), head_only=head_only)
                    assert got.status == status
                    if status != 200:
                        assert not [name for name in (*HIDDEN, "tiny") if name in got.body.decode()]
        for path in ("/healthz", "/readyz"):
            assert (await client.ask(get(path, "Authorization: Bearer nothing"))).status == 200


def put(roundhouse: Roundhouse, keys: Path, content: str) -> None:
    """Put a keys file in place, and have it read."""
    keys.write_text(content)
    roundhouse.gateway.reload()


class TestReload:
    async def test_a_known_head_does_not_outlive_its_key(
        self, roundhouse: Roundhouse, client: Client, engine: FakeEngine, keys: Path
    ) -> None:
        request = post(ASK, bearer("all"))
        for _ in range(3):
            assert (await client.ask(request)).status == 200
        assert any(GOOD in head for head in reader._known)
        write_keys(keys, key("tiny", models=["tiny"]))
        roundhouse.gateway.reload()
        assert (await client.ask(request)).code == "invalid_api_key"
        assert (await (await roundhouse.connect()).ask(request)).code == "invalid_api_key"
        assert (await client.ask(get("/v1/models", bearer("all")))).code == "invalid_api_key"
        write_keys(keys, key("all", models=["veiled"]))
        roundhouse.gateway.reload()
        assert (await client.ask(request)).code == "model_not_allowed"
        assert len(engine.turns) == 3

    async def test_open_gateways_close(self, roundhouse: Roundhouse, client: Client, keys: Path) -> None:
        bare, wrong = post(ASK), post(ASK, "Authorization: Bearer nothing")
        put(roundhouse, keys, "open")
        for _ in range(3):
            assert (await client.ask(bare)).status == 200
            assert (await client.ask(wrong)).status == 200
            assert (await client.ask(get("/routes"))).status == 200
        await client.send(bare[:-5])
        write_keys(keys, key("all"))
        roundhouse.gateway.reload()
        assert (await client.ask(bare[-5:])).code == "missing_api_key"
        assert (await client.ask(wrong)).code == "invalid_api_key"
        assert (await client.ask(get("/routes"))).code == "missing_api_key"
        for bad in ("", "opened", "- open", "[{name: x}]", "\x00"):
            put(roundhouse, keys, bad)
            assert (await client.ask(bare)).code == "missing_api_key"
            assert (await client.ask(post(ASK, bearer("all")))).status == 200
