"""The control plane: what is served by Sanic, on the same connections as inference."""

import datetime
from typing import Any

import pytest

from .client import Client, get, post
from .conftest import Roundhouse, StartEngine, StartGateway, engine_entry
from .engine import CHAT, FakeEngine


@pytest.fixture
async def both(start_gateway: StartGateway, start_engine: StartEngine) -> Roundhouse:
    """Return a gateway with a model on two engines."""
    vllm = engine_entry(await start_engine(), names="v1", owned_by="vllm", default=True)
    other = engine_entry(await start_engine(), names="s1", owned_by="SGLang")
    model = {"model": "meta/llama 3", "aliases": ["llama", "llama@main"], "engines": [vllm, other]}
    return await start_gateway({"revision": "abc", "models": [model]})


async def test_connection_mixes_both_planes(client: Client) -> None:
    for _ in range(3):
        assert (await client.ask(get("/healthz"))).json == {"status": "ok"}
        assert (await client.ask(post({"model": "tiny"}))).json == CHAT
        assert (await client.ask(get("/nope"))).code == "unknown_endpoint"


async def test_models(both: Roundhouse) -> None:
    document = (await (await both.connect()).ask(get("/v1/models"))).json
    assert document["object"] == "list"
    shown = [(m["id"], m["owned_by"], m["object"], m["ready"], m.get("root")) for m in document["data"]]
    assert shown == [
        ("meta/llama 3", "vllm", "model", True, None),
        ("meta/llama 3", "SGLang", "model", True, None),
        ("llama", "vllm", "model", True, "meta/llama 3"),
        ("llama@main", "vllm", "model", True, "meta/llama 3"),
    ]
    assert all(isinstance(model["created"], int) for model in document["data"])


@pytest.mark.parametrize(
    ("path", "name", "owned_by"),
    [
        ("meta/llama%203", "meta/llama 3", "vllm"),
        ("meta%2Fllama%203", "meta/llama 3", "vllm"),
        ("meta/llama%203@sglang", "meta/llama 3", "SGLang"),
        ("llama", "llama", "vllm"),
        ("llama@main", "llama@main", "vllm"),
        ("llama%40main@sglang?x=1", "llama@main", "SGLang"),
    ],
)
async def test_one_model(both: Roundhouse, path: str, name: str, owned_by: str) -> None:
    got = (await (await both.connect()).ask(get(f"/v1/models/{path}"))).json
    assert (got["id"], got["owned_by"]) == (name, owned_by)


@pytest.mark.parametrize(
    ("path", "code"),
    [("nope", "model_not_found"), ("llama@nope", "engine_not_found"), ("meta/llama", "model_not_found")],
)
async def test_one_model_that_is_not_there(both: Roundhouse, path: str, code: str) -> None:
    got = await (await both.connect()).ask(get(f"/v1/models/{path}", "X-Request-Id: mine"))
    assert (got.status, got.code, got.headers["x-request-id"]) == (404, code, "mine")


async def test_routes(both: Roundhouse) -> None:
    document: dict[str, Any] = (await (await both.connect()).ask(get("/routes"))).json
    assert list(document) == ["revision", "loaded_at", "last_error", "models"]
    assert document["revision"] == "abc"
    assert document["last_error"] is None
    assert datetime.datetime.fromisoformat(document["loaded_at"]).tzinfo is not None
    (model,) = document["models"]
    assert model["aliases"] == ["llama", "llama@main"]
    first, second = model["engines"]
    assert (first["owned_by"], first["default"], second["default"]) == ("vllm", True, False)
    assert first["backends"] == [
        {
            "name": "v1",
            "url": both.backend("v1").url,
            "weight": 1,
            "state": "healthy",
            "in_flight": 0,
            "last_error": None,
        }
    ]


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/routes", "/v1/models", "/v1/models/tiny"])
async def test_head_and_other_methods(client: Client, path: str) -> None:
    whole = await client.ask(get(path))
    got = await client.ask(get(path, method="HEAD"), head_only=True)
    assert (got.status, got.headers["content-length"]) == (200, str(len(whole.body)))
    got = await client.ask(post(b"", path=path))
    assert (got.status, got.code, got.headers["allow"]) == (405, "method_not_allowed", "GET, HEAD")


async def test_every_answer_has_an_id(client: Client) -> None:
    for path in ("/healthz", "/nope", "/v1/models"):
        assert len((await client.ask(get(path))).headers["x-request-id"]) == 32


@pytest.mark.parametrize("path", ["/healthz/", "//healthz", "/healthz%20", "/v1/models/", "/HEALTHZ"])
async def test_paths_match_exactly(client: Client, path: str) -> None:
    assert (await client.ask(get(path))).status == 404


async def test_bodies_of_control_requests_are_dropped(client: Client) -> None:
    got = await client.ask(get("/healthz", "Content-Length: 5") + b"hello")
    assert got.status == 200
    got = await client.ask(get("/healthz", "Transfer-Encoding: chunked") + b"5\r\nhello\r\n0\r\n\r\n")
    assert got.status == 200


async def test_large_heads_of_control_requests(client: Client) -> None:
    assert (await client.ask(get("/healthz", "X: " + "x" * 60_000))).status == 200


async def test_control_request_that_closes(client: Client) -> None:
    got = await client.ask(get("/healthz", "Connection: close"))
    assert (got.status, got.headers["connection"]) == (200, "close")
    assert await client.rest() == b""


async def test_control_request_in_http10(client: Client) -> None:
    got = await client.ask(get("/healthz").replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert got.headers["connection"] == "close"
    assert await client.rest() == b""


async def test_client_that_leaves_during_a_control_request(
    roundhouse: Roundhouse, engine: FakeEngine
) -> None:
    for _ in range(5):
        client = await roundhouse.connect()
        await client.send(get("/v1/models"))
        client.reset()
    assert (await (await roundhouse.connect()).ask(get("/healthz"))).status == 200
