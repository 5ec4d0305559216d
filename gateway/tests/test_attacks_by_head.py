"""Attacks by heads: on what the gateway and the engine take from each other's, and by size, time and number."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from .attacks import BODY, CHUNKED, IN_CHUNKS, head, keeps_out, nothing_leaks, tell
from .client import Client, get, post
from .conftest import Roundhouse, StartEngine, StartGateway, simple_map
from .engine import CHAT, FakeEngine, Turn, answer
from .keys import bearer

__all__ = ["nothing_leaks"]

ASK = post(BODY)


@pytest.fixture
async def engine(start_engine: StartEngine) -> FakeEngine:
    return await start_engine(tell)


class TestHeaders:
    async def test_what_an_engine_gets(self, client: Client, engine: FakeEngine) -> None:
        """To the byte: everything is the client's, but for what concerns the connection, the keys and the id."""
        wire = (
            b"POST http://else:1/v1/completions?q HTTP/1.1\r\nhost: else\r\nAuthorization: Bearer a\r\n"
            b"authorization: Basic b\r\nX-API-Key: c\r\nProxy-Authorization: d\r\nCookie: e=f\r\ncookie: g\r\n"
            b"X-Request-Id: mine\r\nx-request-id: other\r\nConnection: X-Hop, close\r\nconnection: te\r\n"
            b"X-Hop: 1\r\nx-hop: 2\r\nTE: trailers\r\nTrailer: X\r\nKeep-Alive: 5\r\nProxy-Connection: x\r\n"
            b"Expect: nothing\r\nX-Odd:\t a\xff:b \t\r\nX-Empty:\r\nContent-Length:\t065\r\n\r\n"
        )
        assert (await client.ask(wire + BODY)).headers["x-request-id"] == "mine"
        assert (
            engine.turns[0].head + b"\r\n\r\n"
            == (
                b"POST /v1/completions?q HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nCookie: e=f\r\ncookie: g\r\n"
                b"X-Odd: a\xff:b \t\r\nX-Empty: \r\nContent-Length: 65\r\nX-Request-Id: mine\r\n\r\n"
            )
            % engine.port
        )
        assert engine.turns[0].body == BODY

    @pytest.mark.parametrize(
        "name",
        [
            "Host",
            "Content-Length",
            "Content-Type",
            "Authorization",
            "x-api-key",
            "X-Request-Id",
            "Connection",
            "Transfer-Encoding",
        ],
    )
    async def test_connection_can_not_nominate(self, client: Client, engine: FakeEngine, name: str) -> None:
        request = post(BODY, bearer("a"), "X-Request-Id: mine", f"Connection: {name}, {name.lower()}")
        for _ in range(3):
            assert (await client.ask(request)).headers["x-request-id"] == "mine"
            assert engine.turns[-1].headers == {
                "host": f"127.0.0.1:{engine.port}",
                "content-type": "application/json",
                "content-length": str(len(BODY)),
                "x-request-id": "mine",
            }

    @pytest.mark.parametrize(
        "lines",
        [
            "X: a\rY: b",
            "X: a\nY: b",
            "X: a\r\n Y: b",
            "X: a\r\n\tY: b",
            "X\r: a",
            "X\n: a",
            "X : a",
            " X: a",
            ": a",
            "X: \x00",
            "X: a\x01",
            "X: \x0b",
            "X: \x7f",
            "X\x00: a",
            "Xÿ: a",
            "X",
            "X=a",
            "(X): a",
            "Host: gateway",
            "Host: else",
            "host: ",
            "Content-Type: application/json",
            "content-type: multipart/form-data; boundary=B",
        ],
    )
    async def test_injected(self, roundhouse: Roundhouse, engine: FakeEngine, lines: str) -> None:
        wire = post(BODY, "LINES").replace(b"LINES", lines.encode("latin-1"))
        await keeps_out(roundhouse, engine, wire, 400)
        await keeps_out(roundhouse, engine, wire.replace(b"POST", b"GET", 1).replace(b"/v1/chat", b"/x"), 400)

    @pytest.mark.parametrize("given", ["x" * 10_000, "a\xffb", "a\tb", "", "\xe2\x80\xa8"])
    async def test_ids(self, client: Client, engine: FakeEngine, given: str) -> None:
        for request in (ASK, get("/healthz"), get("/nope"), post(b"", path="/v1/completions")):
            head, rest = request.split(b"\r\n", 1)
            line = b"\r\nX-Request-Id: " + given.encode("latin-1") + b"\r\n"
            got = await client.ask(head + line + rest)
            assert re.fullmatch("[0-9a-f]{32}", got.headers["x-request-id"])

    @pytest.mark.parametrize("value", ["\xff\xfe", "\u65e5\u672c", "caf\xe9"])
    @pytest.mark.parametrize(
        "path", ["/v1/models", "/v1/models/tiny", "/routes", "/metrics", "/healthz", "/nope"]
    )
    async def test_any_bytes_in_control_requests(self, client: Client, path: str, value: str) -> None:
        for line in (value.encode(), value.encode("latin-1", "replace")):
            got = await client.ask(get(path, "X: LINE").replace(b"LINE", line))
            assert got.status == (404 if path == "/nope" else 200)


class TestEngines:
    """An engine that was taken over can lie in what it answers, and in nothing else."""

    async def test_headers_of_the_gateway(self, client: Client, engine: FakeEngine) -> None:
        lines = [
            *("X-Request-Id: e", "x-request-id: f", "X-Roundhouse-Backend: g", "x-roundhouse-backend: h"),
            *("Connection: X-Hop, x-request-id, content-length, content-type", "X-Hop: i", "Keep-Alive: j"),
            *("Proxy-Authenticate: k", "Upgrade: l"),
        ]

        async def script(turn: Turn) -> None:
            await turn.send(answer(CHAT, 200, *lines))

        engine.script = script
        for _ in range(3):
            got = await client.ask(post(BODY, "X-Request-Id: mine"))
            assert got.headers == {
                "server": "fake",
                "content-type": "application/json",
                "content-length": str(len(got.body)),
                "x-request-id": "mine",
                "x-roundhouse-backend": "one",
            }

    @pytest.mark.parametrize(
        "head",
        [
            b"X: a\rSet-Cookie: b",
            b"X: a\nSet-Cookie: b",
            b"X: a\r\n b",
            b"X: \x00",
            b"X : a",
            b"X\n: a",
            b": a",
            b"Content-Length: 2",
            b"Transfer-Encoding: chunked",
            b"Transfer-Encoding: x",
        ],
    )
    async def test_injected(self, client: Client, engine: FakeEngine, head: bytes) -> None:
        async def script(turn: Turn) -> None:
            await turn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n%b\r\n\r\n{}" % head)

        engine.script = script
        got = await client.ask(ASK)
        assert (got.status, got.code) == (502, "engine_unreachable")
        assert (await client.ask(get("/healthz"))).status == 200

    @pytest.mark.parametrize(
        "line", [b"200 OK\rX: y", b"200 OK\nX: y", b"2000 OK", b"20 OK", b"-200 OK", b"101 OK"]
    )
    async def test_status_lines(self, client: Client, engine: FakeEngine, line: bytes) -> None:
        async def script(turn: Turn) -> None:
            await turn.send(b"HTTP/1.1 %b\r\nContent-Length: 2\r\n\r\n{}" % line)
            turn.close()

        engine.script = script
        assert (await client.ask(ASK)).code == "engine_unreachable"

    async def test_a_second_answer_is_nobodys(self, client: Client, engine: FakeEngine) -> None:
        async def script(turn: Turn) -> None:
            await turn.send(answer(CHAT) + answer({"id": "not asked for"}))

        engine.script = script
        for _ in range(3):
            assert (await client.ask(ASK)).json == CHAT


SMALL = 2000


class TestSizes:
    @pytest.mark.parametrize(
        "wire", [b"GET /" + b"x" * 10**6, b"G" * 10**6, b"\x00" * 10**6, b"POST http://" + b"x" * 10**6]
    )
    async def test_request_lines(self, roundhouse: Roundhouse, engine: FakeEngine, wire: bytes) -> None:
        await keeps_out(roundhouse, engine, wire, 400, 431)

    @pytest.mark.parametrize(
        "lines",
        [
            b"X: " + b"x" * 10**6,
            b"x" * 10**6,
            b"a:\r\n" * 10**5,
            b"Cookie: a\r\n" * 10**4,
            b"X:" + b" " * 10**6,
        ],
    )
    async def test_headers(self, roundhouse: Roundhouse, engine: FakeEngine, lines: bytes) -> None:
        await keeps_out(roundhouse, engine, head(b"Host: a", lines.rstrip(b"\r\n")), 400, 431)

    @pytest.mark.parametrize("rest", [b"0\r\nX: ", b"0\r\nX", b"%x;" % len(BODY), b"%x;a=" % len(BODY)])
    async def test_what_never_ends_is_cut(self, client: Client, engine: FakeEngine, rest: bytes) -> None:
        """Trailers and extensions of chunks are no bodies, but they may not grow for ever either."""
        await client.send(CHUNKED + (IN_CHUNKS if rest.startswith(b"0") else b"") + rest)

        async def grow() -> None:
            for _ in range(100):
                await client.send(b"x" * 50_000)

        growing = asyncio.ensure_future(grow())
        assert (await client.answer()).status == 431
        await growing
        assert not engine.turns

    async def test_bodies(self, start_gateway: StartGateway, engine: FakeEngine) -> None:
        roundhouse = await start_gateway(simple_map(engine), max_body=1000)
        for length in (1001, 10**9, 2**63, 2**64 - 1):
            await keeps_out(roundhouse, engine, head(b"Host: a", b"Content-Length: %d" % length) + BODY, 413)
        for wire in (b"3e9\r\n" + b"x" * 1001, b"7fffffffffffffff\r\nx" + b"x" * 1000, b"1\r\nx\r\n" * 1001):
            await keeps_out(roundhouse, engine, CHUNKED + wire, 413)
        await keeps_out(roundhouse, engine, CHUNKED + b"f" * 17 + b"\r\n", 400)

    @pytest.mark.parametrize(
        "document",
        [
            {"model": "x" * 10**6},
            {"model": "tiny", "owned_by": "x" * 10**6},
            {"model": f"tiny@{'x' * 10**6}"},
            {"model": "tiny@fake", "owned_by": "x" * 10**6},
            {"x" * 10**6: 1},
            {"model": {"x" * 10**6: 1}},
        ],
    )
    async def test_answers_stay_small(self, client: Client, document: dict[str, Any]) -> None:
        for path in ("/v1/completions", "/v1/messages"):
            got = await client.ask(post(document, path=path))
            assert 400 <= got.status < 500
            assert len(got.body) < SMALL

    async def test_answers_to_long_paths_stay_small(self, client: Client) -> None:
        for path in ("/" + "x" * 60_000, "/v1/models/" + "x" * 60_000, "/v1/models/" + "%ff" * 20_000):
            for method in ("GET", "PUT"):
                got = await client.ask(get(path, method=method))
                assert got.status in (404, 405)
                assert len(got.body) < SMALL

    async def test_heads_of_parts(self, client: Client, engine: FakeEngine) -> None:
        for name in (
            b"x" * 10**6,
            b'form-data; name="' + b"x" * 10**6 + b'"',
            b"form-data" + b"; a=b" * 10**5,
        ):
            body = b"--B\r\nContent-Disposition: " + name + b"\r\n\r\n\r\n--B--"
            kind = post(body, path="/v1/audio/translations").replace(
                b"application/json", b"multipart/form-data; boundary=B"
            )
            got = await client.ask(kind)
            assert (got.status, got.code, len(got.body) < SMALL) == (400, "invalid_form", True)


class TestSlowAndMany:
    async def test_a_head_byte_by_byte(self, start_gateway: StartGateway, engine: FakeEngine) -> None:
        """Each byte comes in time, but the head as a whole does not."""
        roundhouse = await start_gateway(simple_map(engine), body_timeout=0.1, max_header=10**9)
        client = await roundhouse.connect()
        answered = asyncio.ensure_future(client.answer())
        await client.send(head(b"Host: a", b"X: ").rstrip())
        while not answered.done():
            await client.send(b"x")
        assert (await answered).code == "request_timeout"
        assert not engine.turns

    @pytest.mark.parametrize("part", [1, len(ASK) - len(BODY) - 2, len(ASK) - len(BODY), len(ASK) - 1])
    async def test_what_stops(self, start_gateway: StartGateway, engine: FakeEngine, part: int) -> None:
        client = await (await start_gateway(simple_map(engine), body_timeout=0.05)).connect()
        got = await client.ask(ASK + ASK[:part])
        assert got.status == 200
        assert (await client.answer()).code == "request_timeout"
        assert await client.rest() == b""
        assert len(engine.turns) == 1

    async def test_many_pipelined(self, roundhouse: Roundhouse, engine: FakeEngine) -> None:
        client = await roundhouse.connect()
        sending = asyncio.ensure_future(client.send(*[ASK + get("/nope")] * 2000))
        for _ in range(2000):
            assert (await client.answer()).status == 200
            assert (await client.answer()).status == 404
        await sending
        assert len(engine.turns) == 2000
        assert engine.connections == 1
