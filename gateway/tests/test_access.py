"""Keys: what a keys file may say, and what a key may do."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from roundhouse_gateway import access
from roundhouse_gateway.access import KeysError

from .client import Client, get, post
from .conftest import Roundhouse, StartGateway, engine_entry, until
from .engine import FakeEngine
from .keys import bearer, key, remove, revision, secret, write_keys

SHA = "0" * 64


def two_models(engine: FakeEngine, **changes: Any) -> dict[str, Any]:
    return {
        "revision": "1",
        "models": [
            {
                "model": "tiny",
                "aliases": ["small"],
                "engines": [
                    engine_entry(engine, default=True, **changes),
                    engine_entry(engine, names="other", owned_by="Second"),
                ],
            },
            {"model": "org/big", "aliases": ["large"], "engines": [engine_entry(engine, names="big")]},
        ],
    }


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return write_keys(
        tmp_path / "keys.yml",
        key("all"),
        key("tiny", models=["tiny"]),
        key("boss", models=["large"], admin=True),
    )


@pytest.fixture
async def roundhouse(start_gateway: StartGateway, engine: FakeEngine, keys: Path) -> Roundhouse:
    return await start_gateway(two_models(engine), keys=keys)


class TestFile:
    @pytest.mark.parametrize("content", [b"open", b"open\n", b"# anyone\nopen\n"])
    def test_open(self, content: bytes) -> None:
        assert access.load(content).keys is None
        assert len(access.load(content).revision) == 12

    def test_nobody(self) -> None:
        assert access.load(b"[]").keys == ()

    def test_everything(self) -> None:
        text = f"""
        - name: alice
          sha256: {"a" * 64}
          models: [tiny, small]
          requests_per_minute: 60
          tokens_per_minute: 1000
          max_in_flight: 2
          admin: true
          origin: inventory
        - {{name: bob, sha256: "{"b" * 64}", models: all}}
        """
        alice, bob = access.load(text.encode()).keys or ()
        assert (alice.models, alice.limits.max_in_flight, alice.admin) == (["tiny", "small"], 2, True)
        assert (bob.models, bool(bob.limits), bob.admin) == ("all", False, False)

    @pytest.mark.parametrize(
        ("content", "says"),
        [
            ("", "not the shape"),
            ("closed", "not the shape"),
            ("{}", "not the shape"),
            ("[", "are no YAML"),
            ("- {name: a}", "missing required field `sha256`"),
            (f"- {{name: a, sha256: '{SHA}', modles: all}}", r"unknown field .\.\.\.."),
            (f"- {{name: '', sha256: '{SHA}'}}", "length >= 1"),
            ("- {name: a, sha256: rh-secret}", "matching regex"),
            (f"- {{name: a, sha256: '{SHA}', requests_per_minute: 0}}", ">= 1"),
            (f"[{{name: a, sha256: '{SHA}'}}, {{name: a, sha256: '{'1' * 64}'}}]", "'a' is that of 2 keys"),
            (f"[{{name: a, sha256: '{SHA}'}}, {{name: b, sha256: '{SHA}'}}]", "a, b are the same"),
        ],
    )
    def test_refused(self, content: str, says: str) -> None:
        with pytest.raises(KeysError, match=says) as caught:
            access.load(content.encode())
        assert "rh-secret" not in str(caught.value)


class TestPresented:
    @pytest.mark.parametrize(
        "header", ["Authorization: Bearer {}", "authorization: bearer   {} ", "X-API-Key: {}"]
    )
    async def test_taken(self, roundhouse: Roundhouse, engine: FakeEngine, header: str) -> None:
        client = await roundhouse.connect()
        got = await client.ask(post({"model": "tiny"}, header.format(secret("all"))))
        assert got.status == 200
        sent = engine.turns[-1].head.decode()
        assert secret("all") not in sent

    @pytest.mark.parametrize(
        ("header", "code"),
        [
            ("X: y", "missing_api_key"),
            (f"Authorization: {secret('all')}", "missing_api_key"),
            (f"Authorization: Basic {secret('all')}", "missing_api_key"),
            ("Authorization: Bearer ", "missing_api_key"),
            (f"Authorization: Bearer {secret('all')}x", "invalid_api_key"),
            (f"x-api-key: {secret('nobody')}", "invalid_api_key"),
        ],
    )
    async def test_refused(self, roundhouse: Roundhouse, engine: FakeEngine, header: str, code: str) -> None:
        client = await roundhouse.connect()
        got = await client.ask(post(b"not even JSON", header))
        assert (got.status, got.code, got.headers["www-authenticate"]) == (401, code, "Bearer")
        assert "tiny" not in got.body.decode()
        assert not engine.turns

    async def test_anthropics_shape(self, roundhouse: Roundhouse) -> None:
        got = await (await roundhouse.connect()).ask(post({"model": "tiny"}, path="/v1/messages"))
        assert (got.status, got.json["error"]["type"]) == (401, "authentication_error")


class TestModels:
    @pytest.mark.parametrize("model", ["org/big", "large", "org/big@fake", "large@fake", "large@nothing"])
    async def test_not_allowed(self, roundhouse: Roundhouse, engine: FakeEngine, model: str) -> None:
        got = await (await roundhouse.connect()).ask(post({"model": model}, bearer("tiny")))
        assert (got.status, got.code) == (403, "model_not_allowed")
        assert got.json["error"]["message"].endswith("Models: tiny, small.")
        assert not engine.turns

    @pytest.mark.parametrize("model", ["tiny", "small", "tiny@second", "small@fake"])
    async def test_allowed(self, roundhouse: Roundhouse, model: str) -> None:
        assert (await (await roundhouse.connect()).ask(post({"model": model}, bearer("tiny")))).status == 200

    async def test_allowed_by_alias(self, roundhouse: Roundhouse) -> None:
        client = await roundhouse.connect()
        assert (await client.ask(post({"model": "org/big"}, bearer("boss")))).status == 200
        assert (await client.ask(post({"model": "tiny"}, bearer("boss")))).code == "model_not_allowed"

    @pytest.mark.parametrize("body", [{}, {"model": "nothing"}])
    async def test_errors_name_what_it_may_use(self, roundhouse: Roundhouse, body: dict[str, Any]) -> None:
        got = await (await roundhouse.connect()).ask(post(body, bearer("tiny")))
        assert got.status in (400, 404)
        assert "tiny" in got.body.decode()
        assert "big" not in got.body.decode()

    async def test_list(self, roundhouse: Roundhouse) -> None:
        client = await roundhouse.connect()

        async def listed(name: str) -> list[str]:
            got = await client.ask(get("/v1/models", bearer(name)))
            return [f"{entry['id']} {entry['owned_by']}" for entry in got.json["data"]]

        assert await listed("tiny") == ["tiny fake", "tiny Second", "small fake"]
        assert len(await listed("all")) == 5
        assert (await client.ask(get("/v1/models"))).code == "missing_api_key"

    @pytest.mark.parametrize(
        ("path", "status"), [("tiny", 200), ("org/big", 403), ("org%2Fbig", 403), ("x", 404)]
    )
    async def test_one(self, roundhouse: Roundhouse, path: str, status: int) -> None:
        got = await (await roundhouse.connect()).ask(get(f"/v1/models/{path}", bearer("tiny")))
        assert got.status == status


class TestOperators:
    @pytest.mark.parametrize("path", ["/routes", "/metrics"])
    async def test_admin(self, roundhouse: Roundhouse, path: str) -> None:
        client = await roundhouse.connect()
        assert (await client.ask(get(path))).code == "missing_api_key"
        assert (await client.ask(get(path, bearer("all")))).code == "admin_required"
        assert (await client.ask(get(path, bearer("boss")))).status == 200

    @pytest.mark.parametrize("path", ["/healthz", "/readyz"])
    async def test_open(self, roundhouse: Roundhouse, path: str) -> None:
        assert (await (await roundhouse.connect()).ask(get(path))).status == 200

    async def test_ready_tells_what_is_live(self, roundhouse: Roundhouse, keys: Path) -> None:
        client = await roundhouse.connect()
        told = (await client.ask(get("/readyz"))).json
        assert told == {"status": "ready", "revision": "1", "access": revision(keys)}


class TestReload:
    async def test_revoked(self, roundhouse: Roundhouse, keys: Path) -> None:
        client = await roundhouse.connect()
        ask = post({"model": "tiny"}, bearer("all"))
        for _ in range(3):
            assert (await client.ask(ask)).status == 200
        write_keys(keys, key("tiny"))
        await until(lambda: len(roundhouse.gateway.access.keys.keys or ()) == 1)
        assert (await client.ask(ask)).code == "invalid_api_key"
        assert (await client.ask(post({"model": "org/big"}, bearer("tiny")))).status == 200

    async def test_bad_keys_are_refused(
        self, roundhouse: Roundhouse, keys: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        before = roundhouse.gateway.access.keys
        write_keys(keys, {"name": "x", "sha256": secret("all")})
        await until(lambda: roundhouse.gateway.keys_loads.last_error)
        assert roundhouse.gateway.access.keys is before
        [record] = [record for record in caplog.records if record.getMessage() == "keys refused"]
        assert secret("all") not in json.dumps(record.__dict__, default=str)

    async def test_models_that_are_not_served_are_told(
        self, roundhouse: Roundhouse, keys: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        write_keys(keys, key("a", models=["tiny", "tyni"]), key("b"))
        await until(lambda: len(roundhouse.gateway.access.keys.keys or ()) == 2)
        [record] = [each for each in caplog.records if each.getMessage().startswith("key for models")]
        assert vars(record)["fields"] == {"key": "a", "models": ["tyni"]}

    async def test_a_missing_file_keeps_the_keys(self, roundhouse: Roundhouse, keys: Path) -> None:
        remove(keys)
        await until(lambda: roundhouse.gateway.keys_loads.last_error)
        client = await roundhouse.connect()
        assert (await client.ask(post({"model": "tiny"}))).code == "missing_api_key"
        assert (await client.ask(post({"model": "tiny"}, bearer("all")))).status == 200

    async def test_open_and_back(
        self, start_gateway: StartGateway, engine: FakeEngine, tmp_path: Path
    ) -> None:
        path = tmp_path / "keys.yml"
        path.write_text("open\n")
        roundhouse = await start_gateway(two_models(engine), keys=path)
        client = await roundhouse.connect()
        assert (await client.ask(post({"model": "tiny"}))).status == 200
        write_keys(path, key("all"))
        await until(lambda: roundhouse.gateway.access.anyone is None)
        assert (await client.ask(post({"model": "tiny"}))).status == 401

    async def test_a_new_map_is_what_keys_are_for(self, roundhouse: Roundhouse, engine: FakeEngine) -> None:
        document = two_models(engine) | {"revision": "2"}
        document["models"][1]["model"] = "org/other"
        roundhouse.write_map(document)
        await until(lambda: roundhouse.gateway.fleet.table.revision == "2")
        client = await roundhouse.connect()
        assert (await client.ask(post({"model": "org/other"}, bearer("boss")))).status == 200
        assert (await client.ask(post({"model": "org/big"}, bearer("tiny")))).code == "model_not_found"


class TestEnginesOwnKey:
    async def test_it_is_sent_and_nothing_else(
        self, start_gateway: StartGateway, engine: FakeEngine, tmp_path: Path
    ) -> None:
        file = tmp_path / "engine.key"
        file.write_text("sk-of-the-engine\n")
        roundhouse = await start_gateway(two_models(engine, key_file=str(file)))
        client = await roundhouse.connect()
        await client.ask(post({"model": "tiny"}, "Authorization: Bearer mine", "x-api-key: mine"))
        assert engine.turns[-1].headers["authorization"] == "Bearer sk-of-the-engine"
        assert b"mine" not in engine.turns[-1].head
        await client.ask(post({"model": "tiny@second"}))
        assert "authorization" not in engine.turns[-1].headers

    @pytest.mark.parametrize(
        ("content", "says"), [(None, "can't be read"), ("", "one line"), ("a\nb", "one line")]
    )
    async def test_a_bad_one_refuses_the_map(
        self, start_gateway: StartGateway, engine: FakeEngine, tmp_path: Path, content: str | None, says: str
    ) -> None:
        roundhouse = await start_gateway(two_models(engine))
        file = tmp_path / "engine.key"
        if content is not None:
            file.write_text(content)
        roundhouse.write_map(two_models(engine, key_file=str(file)) | {"revision": "2"})
        await until(lambda: roundhouse.gateway.map_loads.last_error)
        assert says in str(roundhouse.gateway.map_loads.last_error)
        assert roundhouse.gateway.fleet.table.revision == "1"


async def test_in_flight_while_revoked(roundhouse: Roundhouse, engine: FakeEngine, keys: Path) -> None:
    """A request that was let in is answered."""
    go_on = asyncio.Event()

    async def script(turn: Any) -> None:
        await go_on.wait()
        await turn.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")

    engine.script = script
    client: Client = await roundhouse.connect()
    await client.send(post({"model": "tiny"}, bearer("all")))
    await until(lambda: engine.turns)
    write_keys(keys)
    await until(lambda: roundhouse.gateway.access.keys.keys == ())
    go_on.set()
    assert (await client.answer()).status == 200


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_stranger_sends_no_large_body(roundhouse: Roundhouse, *, chunked: bool) -> None:
    """The answer comes long before the end of what was announced, and the rest is not kept."""
    client: Client = await roundhouse.connect()
    framing = "Transfer-Encoding: chunked" if chunked else "Content-Length: 30000000"
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: gateway\r\n{framing}\r\n\r\n"
    piece = b"x" * 70_000
    await client.send(head.encode(), b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
    got = await client.answer()
    assert (got.status, got.code, got.headers["connection"]) == (401, "missing_api_key", "close")


async def test_who_has_a_key_does(roundhouse: Roundhouse) -> None:
    client: Client = await roundhouse.connect()
    body = json.dumps({"model": "tiny", "x": "y" * 200_000}).encode()
    assert (await client.ask(post(body, bearer("tiny")))).status == 200
