"""The routing map: what is refused, and which route is picked."""

import json
from typing import Any

import pytest

from roundhouse_gateway import routing
from roundhouse_gateway.errors import GatewayError
from roundhouse_gateway.routing import MapError

MAP = """
revision: "3f9a1c2b"
models:
  - model: meta/llama
    aliases: [llama, llama@main]
    engines:
      - owned_by: vllm
        default: true
        served_model: inside
        backends:
          - {name: a, url: "http://a:8000", weight: 1}
          - {name: b, url: "http://[::1]:8000/", weight: 0}
        health: {path: /health, interval: 5, timeout: 0.5}
        timeouts: {connect: 5, first_byte: 600, idle: 120}
        max_in_flight: 256
      - owned_by: SGLang
        backends: [{name: c, url: "http://c"}]
  - model: phi@2
    engines:
      - owned_by: vllm
        backends: [{name: d, url: "http://d:1"}]
"""


def engine(owned_by: str = "vllm", name: str = "a", url: str = "http://a:1", **more: Any) -> dict[str, Any]:
    return {"owned_by": owned_by, "backends": [{"name": name, "url": url}], **more}


def problems(document: Any) -> list[str]:
    with pytest.raises(MapError) as caught:
        routing.load(json.dumps(document).encode() if not isinstance(document, bytes) else document)
    return caught.value.problems


@pytest.mark.parametrize(
    ("model", "owned_by", "expected"),
    [
        ("meta/llama", None, ("meta/llama", "vllm")),
        ("meta/llama", "VLLM", ("meta/llama", "vllm")),
        ("llama", "sglang", ("meta/llama", "SGLang")),
        ("llama@sglang", None, ("meta/llama", "SGLang")),
        ("llama@SGLANG", "sglang", ("meta/llama", "SGLang")),
        ("llama@main", None, ("meta/llama", "vllm")),
        ("llama@main@sglang", None, ("meta/llama", "SGLang")),
        ("phi@2", None, ("phi@2", "vllm")),
        ("phi@2@vllm", None, ("phi@2", "vllm")),
    ],
)
def test_pick(model: str, owned_by: str | None, expected: tuple[str, str]) -> None:
    route = routing.load(MAP.encode()).pick(model, owned_by)
    assert (route.model, route.owned_by) == expected


@pytest.mark.parametrize(
    ("model", "owned_by", "code", "words"),
    [
        (None, None, "missing_model", "meta/llama, llama, llama@main, phi@2"),
        ("Meta/llama", None, "model_not_found", "meta/llama"),
        ("phi", None, "model_not_found", "phi@2"),
        ("x@vllm", None, "model_not_found", "'x@vllm'"),
        ("llama@", None, "engine_not_found", "vllm, SGLang"),
        ("llama", "tgi", "engine_not_found", "vllm, SGLang"),
        ("llama@vllm", "sglang", "engine_conflict", "'sglang'"),
        ("llama@sglang@vllm", None, "model_not_found", "llama@sglang@vllm"),
    ],
)
def test_pick_refuses(model: str | None, owned_by: str | None, code: str, words: str) -> None:
    with pytest.raises(GatewayError) as caught:
        routing.load(MAP.encode()).pick(model, owned_by)
    assert caught.value.code == code
    assert words in caught.value.message


def test_defaults() -> None:
    table = routing.load(MAP.encode())
    assert table.revision == "3f9a1c2b"
    route = table.pick("phi@2", None)
    assert route.default
    assert route.served_model == "phi@2"
    assert (route.health.path, route.health.interval, route.health.timeout) == ("/health", 5, 5)
    assert (route.timeouts.connect, route.timeouts.first_byte, route.timeouts.idle) == (5, 600, 120)
    assert route.max_in_flight == 256
    assert route.backends[0].weight == 1
    assert table.pick("llama", None).served_model == "inside"


def test_a_map_without_models() -> None:
    with pytest.raises(GatewayError) as caught:
        routing.load(b'{revision: "1", models: []}').pick("x", None)
    assert "none at the moment" in caught.value.message


def test_long_lists_are_shortened() -> None:
    models = [{"model": f"m{i}", "engines": [engine(name=f"b{i}")]} for i in range(1000)]
    table = routing.load(json.dumps({"revision": "1", "models": models}).encode())
    with pytest.raises(GatewayError, match="m19 and 980 more"):
        table.pick("x", None)


def test_all_problems_are_reported_at_once() -> None:
    document = {
        "revision": "1",
        "models": [
            {"model": "a", "aliases": ["b", "x", "x"], "engines": [engine(), engine("VLLM", "b2")]},
            {"model": "a", "engines": []},
            {
                "model": "b",
                "engines": [
                    engine("one", "u1", "https://x", default=True),
                    engine("two", "u2", "http://x/path", default=True),
                    engine("three", "u3", "http://x:99999"),
                    {"owned_by": "four", "backends": []},
                    engine("five", "a", "x:80"),
                    engine("six", "u6", "http://user@x"),
                    engine("seven", "u7", "http://x y"),
                ],
            },
        ],
    }
    found = problems(document)
    for words in (
        "model 'a' is listed twice",
        "alias 'x' is given twice",
        "alias 'b' is also the name of a model",
        "'a' has several engines and no default",
        "'a' has the engine 'vllm' twice",
        "'a' has no engines",
        "'b' has 2 default engines (one, two)",
        "'u1' has the url 'https://x'",
        "'u2' has the url",
        "'u3' has the url",
        "'a' has the url 'x:80'",
        "'u6' has the url",
        "'u7' has the url",
        "engine 'four' of 'b' has no backends",
        "backend name 'a' is used twice",
    ):
        assert any(words in problem for problem in found), words
    assert len(found) == 15


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (b"", "shape"),
        (b"revision: [", "no YAML"),
        (b"\xff", "no YAML"),
        (b"revision: 12345678\nmodels: []", "Put quotes around it"),
        ({"revision": "1"}, "models"),
        ({"revision": "1", "models": [], "more": 1}, "more"),
        ({"revision": "", "models": []}, "revision"),
        ({"revision": "1", "models": [{"model": "a", "engines": [engine(wait=1)]}]}, "wait"),
        (
            {"revision": "1", "models": [{"model": "a", "engines": [engine(max_in_flight=0)]}]},
            "max_in_flight",
        ),
        ({"revision": "1", "models": [{"model": "a", "engines": [engine(timeouts={"idle": 0})]}]}, "idle"),
        ({"revision": "1", "models": [{"model": "a", "engines": [engine(health={"path": "x"})]}]}, "path"),
        ({"revision": "1", "models": [{"model": 5, "engines": [engine()]}]}, "$.models[0].model"),
    ],
)
def test_shapes_that_are_refused(document: Any, words: str) -> None:
    (problem,) = problems(document)
    assert words in problem
