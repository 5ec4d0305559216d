"""What clients send, well and badly, and what the gateway makes of it."""

import asyncio
import json
from typing import Any

import pytest

from .client import Client, get, post
from .conftest import Roundhouse, StartGateway, simple_map, until
from .engine import CHAT, FakeEngine, Turn, answer

BODY = b'{"model": "tiny"}'
ASK = post(BODY)


def raw(*lines: str, body: bytes = b"", path: str = "/v1/chat/completions", host: bool = True) -> bytes:
    """Return a request with these headers and no others."""
    first = [f"POST {path} HTTP/1.1"] + ["Host: gateway"] * host
    return "\r\n".join([*first, *lines, "", ""]).encode("latin-1") + body


async def refused(client: Client, request: bytes, status: int, code: str) -> None:
    """Check that a request is refused and the connection closed."""
    got = await client.ask(request)
    assert (got.status, got.code, got.headers["connection"]) == (status, code, "close")
    assert got.headers["x-request-id"]
    assert await client.rest() == b""


# What is sent on


async def test_request_as_the_engine_sees_it(client: Client, engine: FakeEngine) -> None:
    body = b'{ "owned_by": "FAKE",\n"model" : "tiny" , "messages": [ ], "seed": 1e2, "seed": 2 }'
    got = await client.ask(
        post(
            body,
            "Authorization: Bearer key-of-the-gateway",
            "X-Api-Key: key-of-the-gateway",
            "X-Request-Id: mine-1",
            "traceparent: 00-1-1-01",
            "Connection: keep-alive, X-Hop",
            "X-Hop: 1",
            "TE: trailers",
            "Accept: text/plain",
            path="/v1/chat/completions?a=%2F&b",
        )
    )
    assert (got.status, got.headers["x-request-id"]) == (200, "mine-1")
    turn = engine.turns[0]
    assert turn.line == "POST /v1/chat/completions?a=%2F&b HTTP/1.1"
    assert turn.body == b'{ \n"model" : "tiny" , "messages": [ ], "seed": 1e2, "seed": 2 }'
    assert turn.headers == {
        "host": f"127.0.0.1:{engine.port}",
        "content-type": "application/json",
        "traceparent": "00-1-1-01",
        "accept": "text/plain",
        "content-length": str(len(turn.body)),
        "x-request-id": "mine-1",
    }


@pytest.mark.parametrize("given", ["", "x" * 129, "caf\xe9", "a\tb"])
async def test_request_ids_that_cannot_be_used(client: Client, engine: FakeEngine, given: str) -> None:
    got = await client.ask(raw(f"X-Request-Id: {given}", f"Content-Length: {len(BODY)}", body=BODY))
    assert got.status == 200
    assert len(got.headers["x-request-id"]) == 32
    assert engine.turns[0].headers["x-request-id"] == got.headers["x-request-id"]


async def test_the_clients_request_id_wins(client: Client, engine: FakeEngine) -> None:
    async def script(turn: Turn) -> None:
        await turn.send(answer(CHAT, 200, "x-request-id: of-the-engine", "x-roundhouse-backend: other"))

    engine.script = script
    got = await client.ask(post(BODY, "X-Request-Id: mine"))
    assert (got.headers["x-request-id"], got.headers["x-roundhouse-backend"]) == ("mine", "one")


async def test_alias_suffix_and_served_name(start_gateway: StartGateway, engine: FakeEngine) -> None:
    document = simple_map(engine, served_model='inside "x"')
    document["models"][0]["aliases"] = ["small"]
    client = await (await start_gateway(document)).connect()
    for model in ("tiny", "small", "tiny@fake", "small@FAKE"):
        assert (await client.ask(post({"model": model, "n": 1}))).status == 200
        assert engine.turns[-1].body == b'{"model": "inside \\"x\\"", "n": 1}'


@pytest.mark.parametrize("path", ["/v1/embeddings", "/tokenize", "/v1/messages/count_tokens", "/v1/score"])
async def test_other_endpoints(client: Client, engine: FakeEngine, path: str) -> None:
    assert (await client.ask(post(BODY, path=path))).status == 200
    assert engine.turns[0].line == f"POST {path} HTTP/1.1"


async def test_form(start_gateway: StartGateway, engine: FakeEngine) -> None:
    client = await (await start_gateway(simple_map(engine, served_model="whisper"))).connect()
    file = bytes(range(256)) * 1000

    def form(model: bytes, engine: bytes) -> bytes:
        return (
            b'--B\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n'
            b"Content-Type: audio/wav\r\n\r\n" + file + b"\r\n" + engine + b"--B\r\n"
            b'Content-Disposition: form-data; name="model"\r\n\r\n' + model + b"\r\n--B--\r\n"
        )

    owned_by = b'--B\r\nContent-Disposition: form-data; name="owned_by"\r\n\r\nfake\r\n'
    request = form(b"tiny", owned_by)
    got = await client.ask(
        raw(
            "Content-Type: multipart/form-data; boundary=B",
            f"Content-Length: {len(request)}",
            body=request,
            path="/v1/audio/transcriptions",
        )
    )
    assert got.status == 200
    assert engine.turns[0].body == form(b"whisper", b"")


@pytest.mark.parametrize("size", [1, 3, 1000])
async def test_chunked_upload(client: Client, engine: FakeEngine, size: int) -> None:
    wire = raw(
        "Transfer-Encoding: chunked", body=b'5\r\n{"mod\r\nc;x=y\r\nel": "tiny"}\r\n0\r\nX: trailer\r\n\r\n'
    )
    await client.send(*(wire[i : i + size] for i in range(0, len(wire), size)))
    assert (await client.answer()).status == 200
    assert engine.turns[0].body == BODY
    assert "transfer-encoding" not in engine.turns[0].headers


async def test_expect_100_continue(client: Client, engine: FakeEngine) -> None:
    head, body = ASK.split(b"\r\n\r\n")
    await client.send(head + b"\r\nExpect: 100-continue\r\n\r\n")
    assert await client.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert (await client.ask(body)).status == 200
    assert "expect" not in engine.turns[0].headers


async def test_expect_100_continue_is_not_answered_out_of_turn(client: Client, engine: FakeEngine) -> None:
    go_on = asyncio.Event()

    async def script(turn: Turn) -> None:
        await go_on.wait()
        await turn.send(answer(CHAT))

    engine.script = script
    head, body = ASK.split(b"\r\n\r\n")
    await client.send(ASK + head + b"\r\nExpect: 100-continue\r\n\r\n")
    await until(lambda: engine.turns)
    go_on.set()
    assert (await client.answer()).json == CHAT
    assert await client.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert (await client.ask(body)).json == CHAT


@pytest.mark.parametrize("size", [1, 2, 5, 50, 10_000])
async def test_pipelining(client: Client, engine: FakeEngine, size: int) -> None:
    async def script(turn: Turn) -> None:
        await turn.send(answer({"n": turn.json["n"]}))

    engine.script = script
    wire = b""
    for number in range(10):
        wire += post({"model": "tiny", "n": number}) + get("/healthz") + post({"model": "nope"})
    await client.send(*(wire[i : i + size] for i in range(0, len(wire), size)))
    for number in range(10):
        assert (await client.answer()).json == {"n": number}
        assert (await client.answer()).json == {"status": "ok"}
        assert (await client.answer()).code == "model_not_found"


async def test_a_thousand_pipelined_requests(client: Client) -> None:
    await client.send((get("/healthz") + post({"model": "nope"})) * 500)
    for _ in range(500):
        assert (await client.answer()).status == 200
        assert (await client.answer()).status == 404


async def test_offer_of_another_protocol_is_ignored(client: Client) -> None:
    upgrade = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMA")
    await client.send(get("/healthz", *upgrade) + post(BODY, *upgrade) + get("/healthz"))
    for expected in ({"status": "ok"}, CHAT, {"status": "ok"}):
        assert (await client.answer()).json == expected


async def test_absolute_form(client: Client, engine: FakeEngine) -> None:
    assert (await client.ask(post(BODY, path="http://gateway/v1/completions?x"))).status == 200
    assert engine.turns[0].line == "POST /v1/completions?x HTTP/1.1"


# Refusals that leave the connection open


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        (b"", 400, "invalid_json", None),
        (b"[]", 400, "invalid_json", None),
        (b'{"model": "tiny"', 400, "invalid_json", None),
        (b'{"model": "tiny", "x": NaN}', 400, "invalid_json", None),
        (b'\xef\xbb\xbf{"model": "tiny"}', 400, "invalid_json", None),
        ('{"model": "tiny"}'.encode("utf-16"), 400, "invalid_json", None),
        (b'{"model": "tiny", "x": "\xff"}', 400, "invalid_json", None),
        (b'{"model": "tiny", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400, "invalid_json", None),
        (b"{}", 400, "missing_model", "model"),
        (b'{"model": ""}', 400, "invalid_value", "model"),
        (b'{"model": null}', 400, "invalid_value", "model"),
        (b'{"model": "tiny", "owned_by": 5}', 400, "invalid_value", "owned_by"),
        (b'{"model": "tiny", "model": "tiny"}', 400, "duplicate_key", "model"),
        (b'{"model": "tiny", "str\\u0065am": 1, "stream": 0}', 400, "duplicate_key", "stream"),
        (b'{"model": "nope"}', 404, "model_not_found", "model"),
        (b'{"model": "Tiny"}', 404, "model_not_found", "model"),
        (b'{"model": "tiny", "owned_by": "nope"}', 404, "engine_not_found", "owned_by"),
        (b'{"model": "tiny@nope"}', 404, "engine_not_found", "owned_by"),
        (b'{"model": "tiny@fake", "owned_by": "other"}', 400, "engine_conflict", "owned_by"),
    ],
)
async def test_bodies_that_are_refused(
    client: Client, engine: FakeEngine, body: bytes, status: int, code: str, param: str | None
) -> None:
    got = await client.ask(post(body))
    assert (got.status, got.code, got.json["error"]["param"]) == (status, code, param)
    assert got.headers["content-type"] == "application/json"
    assert "x-roundhouse-backend" not in got.headers
    assert (await client.ask(ASK)).status == 200
    assert len(engine.turns) == 1


async def test_null_engine_is_no_engine(client: Client, engine: FakeEngine) -> None:
    assert (await client.ask(post(b'{"model": "tiny", "owned_by": null}'))).status == 200
    assert engine.turns[0].body == b'{"model": "tiny"}'


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions/",
        "/v1//chat/completions",
        "/v1/chat%2Fcompletions",
        "/V1/chat/completions",
        "/chat/completions",
        "/v1/load_lora_adapter",
        "/flush_cache",
        "/health",
        "/v1/chat/../chat/completions",
        "/v1/chat/completions#x",
        "*",
        "/",
    ],
)
async def test_paths_that_nobody_may_reach(client: Client, engine: FakeEngine, path: str) -> None:
    got = await client.ask(post(BODY, path=path))
    assert (got.status, got.code) == (404, "unknown_endpoint")
    assert (await client.ask(get("/healthz"))).status == 200
    assert not engine.turns


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS", "HEAD"])
async def test_other_methods(client: Client, method: str) -> None:
    got = await client.ask(get("/v1/completions", method=method), head_only=method == "HEAD")
    assert (got.status, got.headers["allow"]) == (405, "POST")
    got = await client.ask(get("/healthz"))
    assert got.status == 200


# Refusals that close the connection


@pytest.mark.parametrize(
    "request_",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01",
        b"GET /healthz\r\n\r\n",
        b"GET /healthz HTTP/2.0\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"BREW /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT host:80 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /healthz HTTP/1.1\nHost: x\n\n",
        raw("Content-Length: 0", host=False),
        raw("Host: again", "Content-Length: 0"),
        raw("Content-Length: 17", "Content-Length: 17", body=BODY),
        raw("Content-Length: 17, 17", body=BODY),
        raw("Content-Length: +17", body=BODY),
        raw("Content-Length: -1", body=BODY),
        raw("Content-Length: 17", "Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
        raw("Transfer-Encoding: chunked", "Content-Length: 17", body=b"0\r\n\r\n"),
        raw("Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"),
        raw("Transfer-Encoding: xchunked", body=b"0\r\n\r\n"),
        raw("Transfer-Encoding: chunked", "Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
        raw("Transfer-Encoding : chunked", body=b"0\r\n\r\n"),
        raw("Transfer-Encoding: chunked", body=b"zz\r\n"),
        raw("Transfer-Encoding: chunked", body=b"-1\r\n"),
        raw("Transfer-Encoding: chunked", body=b"3\r\nabcd\r\n"),
        raw("Transfer-Encoding: chunked", body=b"ffffffffffffffffff\r\n"),
        raw("Transfer-Encoding: chunked", body=b"3\nabc\n0\n\n"),
        raw("X: a\x00b", "Content-Length: 0"),
        raw("X: a\rb", "Content-Length: 0"),
        raw("X: a\nContent-Length: 5", "Content-Length: 0"),
        raw("X: a", " folded", "Content-Length: 0"),
        raw("X(: a", "Content-Length: 0"),
        raw("Transfer-Encoding: chunked", body=b"0\r\n\r\n").replace(b"HTTP/1.1", b"HTTP/1.0"),
    ],
)
async def test_bad_http(client: Client, engine: FakeEngine, request_: bytes) -> None:
    await refused(client, request_ + ASK, 400, "bad_request")
    assert not engine.turns


async def test_answers_before_bad_http_are_given(client: Client) -> None:
    await client.send(get("/healthz") + ASK + b"nonsense\r\n\r\n")
    assert (await client.answer()).status == 200
    assert (await client.answer()).json == CHAT
    assert (await client.answer()).code == "bad_request"
    assert await client.rest() == b""


async def test_large_body_is_refused_and_the_client_can_read_why(
    start_gateway: StartGateway, engine: FakeEngine
) -> None:
    client = await (await start_gateway(simple_map(engine), max_body=1000)).connect()
    size = 100_000_000
    await client.send(raw(f"Content-Length: {size}"))
    piece = b"x" * 1_000_000

    async def upload() -> None:
        for _ in range(size // len(piece)):
            await client.send(piece)

    sending = asyncio.ensure_future(upload())
    got = await client.answer()
    assert (got.status, got.code) == (413, "request_too_large")
    async with asyncio.timeout(20):
        await sending


async def test_large_chunked_body_is_refused(start_gateway: StartGateway, engine: FakeEngine) -> None:
    client = await (await start_gateway(simple_map(engine), max_body=1000)).connect()
    wire = raw("Transfer-Encoding: chunked", body=b"1f4\r\n" + b"x" * 500 + b"\r\n")
    await client.send(wire, *[b"1f4\r\n" + b"x" * 500 + b"\r\n"] * 2)
    got = await client.answer()
    assert (got.status, got.code) == (413, "request_too_large")


async def test_body_of_the_largest_size(start_gateway: StartGateway, engine: FakeEngine) -> None:
    client = await (await start_gateway(simple_map(engine), max_body=len(BODY))).connect()
    assert (await client.ask(ASK)).status == 200


@pytest.mark.parametrize("pieces", [1, 1000])
async def test_large_headers_are_refused(client: Client, pieces: int) -> None:
    wire = raw("X: " + "x" * 1_000_000, f"Content-Length: {len(BODY)}", body=BODY)
    size = len(wire) // pieces
    sending = asyncio.ensure_future(client.send(*(wire[i : i + size] for i in range(0, len(wire), size))))
    got = await client.answer()
    assert (got.status, got.code) == (431, "headers_too_large")
    await sending


async def test_many_headers_are_refused(client: Client) -> None:
    got = await client.ask(raw(*(f"X-{number}: {number}" for number in range(10_000)), "Content-Length: 0"))
    assert (got.status, got.code) == (431, "headers_too_large")


async def test_large_trailers_are_refused(client: Client) -> None:
    got = await client.ask(
        raw("Transfer-Encoding: chunked", body=b"0\r\n" + b"X: " + b"x" * 70_000 + b"\r\n\r\n")
    )
    assert (got.status, got.code) == (431, "headers_too_large")


async def test_large_body_and_then_the_start_of_a_request(
    start_gateway: StartGateway, engine: FakeEngine
) -> None:
    client = await (await start_gateway(simple_map(engine), max_header=2000)).connect()
    first = post({"model": "tiny", "x": "x" * 5000})
    await client.send(first + ASK[:40])
    assert (await client.answer()).status == 200
    assert (await client.ask(ASK[40:])).status == 200


@pytest.mark.parametrize("part", [10, len(ASK) - 5])
async def test_slow_request(start_gateway: StartGateway, engine: FakeEngine, part: int) -> None:
    client = await (await start_gateway(simple_map(engine), body_timeout=0.05)).connect()
    await refused(client, ASK[:part], 408, "request_timeout")


async def test_slow_body_that_goes_on(start_gateway: StartGateway, engine: FakeEngine) -> None:
    client = await (await start_gateway(simple_map(engine), body_timeout=0.5)).connect()
    head, body = ASK.split(b"\r\n\r\n")
    await client.send(head + b"\r\n\r\n")
    for byte in body:
        await client.send(bytes([byte]))
        await asyncio.sleep(0.05)
    assert (await client.answer()).status == 200


async def test_idle_connection_is_closed(start_gateway: StartGateway, engine: FakeEngine) -> None:
    client = await (await start_gateway(simple_map(engine), keep_alive=0.05)).connect()
    assert (await client.ask(ASK)).status == 200
    assert await client.rest() == b""
    client = await (await start_gateway(simple_map(engine), keep_alive=0.05)).connect()
    assert await client.rest() == b""


async def test_connection_close(client: Client, engine: FakeEngine) -> None:
    got = await client.ask(post(BODY, "Connection: close") + ASK)
    assert (got.json, got.headers["connection"]) == (CHAT, "close")
    assert await client.rest() == b""
    assert len(engine.turns) == 1


async def test_half_request_and_gone(roundhouse: Roundhouse) -> None:
    client = await roundhouse.connect()
    await client.send(ASK[:-3])
    client.half_close()
    assert await client.rest() == b""


async def test_twenty_megabytes(roundhouse: Roundhouse, engine: FakeEngine) -> None:
    document: dict[str, Any] = {"messages": "x" * 20_000_000, "model": "tiny", "owned_by": "fake"}
    client = await roundhouse.connect()
    assert (await client.ask(post(document))).status == 200
    del document["owned_by"]
    assert engine.turns[0].body == json.dumps(document).encode()
