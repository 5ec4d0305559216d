"""Attacks by HTTP: on paths that nobody may reach, and on the framing of requests."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from .attacks import BODY, CHUNKED, IN_CHUNKS, head, keeps_out, nothing_leaks, tell, whole
from .client import Client, get, post
from .conftest import Roundhouse, StartEngine
from .engine import FakeEngine
from .keys import bearer

__all__ = ["nothing_leaks"]

ALLOWED = "/v1/chat/completions"

# What the engines have for their operators.
ADMINS = [
    "/sleep",
    "/wake_up",
    "/is_sleeping",
    "/flush_cache",
    "/reset_prefix_cache",
    "/shutdown",
    "/abort_request",
    "/load_lora_adapter",
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    "/lora-adapters",
    "/models/unload",
    "/update_weights",
    "/update_weights_from_disk",
    "/collective_rpc",
    "/start_profile",
    "/slots",
    "/props",
    "/metrics",
    "/server_info",
    "/get_model_info",
    "/health",
    "/docs",
    "/openapi.json",
    "/v1",
]
METHODS = [
    "GET",
    "HEAD",
    "POST",
    "PUT",
    "DELETE",
    "PATCH",
    "TRACE",
    "OPTIONS",
    "CONNECT",
    "PURGE",
    "PROPFIND",
    "MKCOL",
    "COPY",
    "MOVE",
    "LOCK",
    "LINK",
    "REPORT",
    "SEARCH",
    "M-SEARCH",
    "SOURCE",
    "NOTIFY",
    "SUBSCRIBE",
    "QUERY",
    "BREW",
    "post",
    "pOST",
    "POSTT",
]


@pytest.fixture
async def engine(start_engine: StartEngine) -> FakeEngine:
    return await start_engine(tell)


def encoded(path: str) -> str:
    return "".join(f"%{ord(char):02x}" for char in path)


def spellings(path: str) -> Iterator[str]:
    """Yield targets that somebody may take for `path`."""
    slashes, dots = encoded("/"), encoded("..")
    yield from (path, path.upper(), path.title(), f"{path}/", f"{path}//", f"/{path}", f"//engine{path}")
    yield from (f"/.{path}", f"/..{path}", f"/v1/..{path}", f"/v1/.{path}", f"/v1{path}", f"/v1//{path}")
    yield from (f"{path};{ALLOWED}", f"{ALLOWED};{path}", f"{path};x=1", f"{ALLOWED};/..{path}")
    yield from (path.replace("/", "\\"), f"\\{path}", f"/v1\\..{path}", f"{ALLOWED}\\..\\..{path}")
    for once in (encoded(path[1:]), encoded(encoded(path[1:])), slashes + encoded(path[1:])):
        yield from (f"/{once}", f"{ALLOWED}/../../../{once}", f"/v1/{dots}/{once}")
    for up in ("..", dots, encoded(dots), "..;", ".%2e", "%2e.", "%c0%ae%c0%ae", "..%00", "..%0d"):
        yield from (f"{ALLOWED}/{up}/{up}/{up}{path}", f"{ALLOWED}%2f{up}%2f{up}%2f{up}{path}")
    for end in ("%00", "%0a", "%0d%0aX:%20y", "%20", "%3f", "%23", ".", "..", "~", "*", "?"):
        yield from (f"{path}{end}", f"{path}{end}{ALLOWED}", f"{ALLOWED}{end}{path}" if end != "?" else path)
    for query in (f"?{ALLOWED}", f"?x={ALLOWED}", f"?://x{ALLOWED}", f"#{ALLOWED}", f"?x#{ALLOWED}"):
        yield from (f"{path}{query}", f"http://engine{path}{query}", f"http://engine{query}")
    for other in (
        f"{path}/..{ALLOWED}",
        f"{path}/{dots}{ALLOWED}",
        f"//{ALLOWED}",
        ALLOWED.upper(),
        f"{ALLOWED}/.",
    ):
        yield from (other, f"http://engine{other}")
    yield from (
        f"/{encoded(ALLOWED[1:])}",
        ALLOWED.replace("completions", encoded("completions")),
        f"{ALLOWED}/",
    )
    yield from (f"http://engine:8000{path}", f"HTTP://a@engine{path}", f"http://{path}", f"file://{path}")
    yield from (f"http://engine{ALLOWED}/..{path}", f"engine:8000{path}", "engine:8000", "*", f"*{path}")


class TestPaths:
    @pytest.mark.parametrize("path", ADMINS)
    async def test_no_spelling_reaches_an_engine(
        self, roundhouse: Roundhouse, engine: FakeEngine, path: str
    ) -> None:
        own = (200,) if path == "/metrics" else ()
        for target in dict.fromkeys(spellings(path)):
            await keeps_out(roundhouse, engine, post(BODY, path=target), 400, 404, 405)
            await keeps_out(roundhouse, engine, get(target), 400, 404, *own)

    @pytest.mark.parametrize("byte", [*range(0x21), 0x7F, 0x80, 0xA0, 0xFF])
    async def test_bytes_that_no_target_has(
        self, roundhouse: Roundhouse, engine: FakeEngine, byte: int
    ) -> None:
        for target in (b"/sleep%b", b"%b/sleep", b"/v1/chat%b/completions", b"/v1/chat/completions%bx"):
            wire = post(BODY, path="TARGET").replace(b"TARGET", target % bytes([byte]))
            await keeps_out(roundhouse, engine, wire, 400, 404)

    @pytest.mark.parametrize("method", METHODS)
    async def test_no_method_reaches_an_engine(
        self, roundhouse: Roundhouse, engine: FakeEngine, method: str
    ) -> None:
        for path in ("/sleep", "/v1/load_lora_adapter", "/../sleep", "http://engine/sleep", "engine:80", "*"):
            await keeps_out(roundhouse, engine, get(path, method=method), 400, 404)
        if method != "POST":
            for path in (ALLOWED, "/tokenize"):
                await keeps_out(roundhouse, engine, get(path, method=method), 400, 405)
            await keeps_out(roundhouse, engine, post(BODY).replace(b"POST", method.encode(), 1), 400, 405)

    @pytest.mark.parametrize(
        "header",
        [
            "X-HTTP-Method-Override: GET",
            "X-Method-Override: DELETE",
            "X-Original-URL: /sleep",
            "X-Rewrite-URL: /sleep",
            "X-Forwarded-Path: /sleep",
            "X-Forwarded-Prefix: /sleep",
            "Forwarded: for=127.0.0.1;host=engine;path=/sleep",
            "Upgrade: /sleep",
        ],
    )
    async def test_headers_are_no_paths(
        self, roundhouse: Roundhouse, engine: FakeEngine, header: str
    ) -> None:
        await keeps_out(roundhouse, engine, post(BODY, header, path="/sleep"), 404)
        await keeps_out(roundhouse, engine, get(ALLOWED, header), 405)
        assert (await (await roundhouse.connect()).ask(get("/healthz", header))).json == {"status": "ok"}
        await whole(roundhouse, post(BODY, header))
        assert engine.turns[0].line == f"POST {ALLOWED} HTTP/1.1"

    async def test_the_query_stays_a_query(self, client: Client, engine: FakeEngine) -> None:
        query = "?/../../sleep&x=%0d%0aX:y&://h/sleep#/sleep;\\sleep?{}|\"'"
        assert (await client.ask(post(BODY, path=ALLOWED + query))).status == 200
        assert engine.turns[0].line == f"POST {ALLOWED}{query} HTTP/1.1"


class TestFraming:
    @pytest.mark.parametrize(
        "value",
        [
            b"",
            b" ",
            b"+%d",
            b"-%d",
            b"0x%x",
            b"%d.0",
            b"%de0",
            b"%d_0",
            b"%d %d",
            b"%d,%d",
            b"%d;",
            b'"%d"',
            b"%d\x00",
            b"9" * 30,
            b"-1",
            b"\xef\xbc\x91",
            b"%d\r\n ",
            b"%d\rX: y",
            b"%d\nX: y",
        ],
    )
    async def test_lengths(self, roundhouse: Roundhouse, engine: FakeEngine, value: bytes) -> None:
        length = value % ((len(BODY),) * value.count(b"%")) if b"%" in value else value
        await keeps_out(
            roundhouse, engine, head(b"Host: a", b"Content-Length: " + length) + BODY + post(BODY), 400
        )

    @pytest.mark.parametrize("first", [0, len(BODY)])
    @pytest.mark.parametrize("name", [b"Content-Length", b"content-length", b"CONTENT-LENGTH"])
    async def test_two_lengths(
        self, roundhouse: Roundhouse, engine: FakeEngine, name: bytes, first: int
    ) -> None:
        lines = (b"Content-Length: %d" % first, b"%b: %d" % (name, len(BODY)))
        for known in (False, True):
            if known:
                await whole(roundhouse, head(b"Host: a", lines[1]) + BODY)
                engine.turns.clear()
                engine.connections = 0
            await keeps_out(roundhouse, engine, head(b"Host: a", *lines) + BODY, 400)
            await keeps_out(roundhouse, engine, head(b"Host: a", *reversed(lines)) + BODY, 400)

    @pytest.mark.parametrize(
        "coding",
        [
            b"chunked, identity",
            b"identity",
            b"gzip",
            b"\x0bchunked",
            b"chunked\x00",
            b"chunked,",
            b"chunked;q=1",
            b'"chunked"',
            b"chu\tnked",
            b"chunked\r\nContent-Length: 5",
            b"chunked\r\ntransfer-encoding: x",
            b"\r\n chunked",
        ],
    )
    async def test_codings(self, roundhouse: Roundhouse, engine: FakeEngine, coding: bytes) -> None:
        wire = head(b"Host: a", b"Transfer-Encoding: " + coding) + IN_CHUNKS + b"0\r\n\r\n"
        await keeps_out(roundhouse, engine, wire + post(BODY), 400)

    @pytest.mark.parametrize(
        "size", [b"-%x", b"+%x", b"0x%x", b" %x", b"%x ", b"%xg", b"%x\x00", b"", b"%x\n;", b"%x;a\nb"]
    )
    async def test_sizes_of_chunks(self, roundhouse: Roundhouse, engine: FakeEngine, size: bytes) -> None:
        first = size % len(BODY) if size else size
        await keeps_out(
            roundhouse, engine, CHUNKED + first + b"\r\n" + BODY + b"\r\n0\r\n\r\n" + post(BODY), 400
        )

    async def test_what_chunks_may_have(self, client: Client, engine: FakeEngine) -> None:
        size = b"000%X" % len(BODY)
        for extension in (b";a", b";a=b;c", b';a="b;c"', b";POST=sleep"):
            wire = CHUNKED + size + extension + b"\r\n" + BODY + b"\r\n0" + extension + b"\r\n\r\n"
            assert (await client.ask(wire)).status == 200
            assert engine.turns[-1].body == BODY
            assert engine.turns[-1].headers["content-length"] == str(len(BODY))

    async def test_trailers_are_dropped(self, client: Client, engine: FakeEngine) -> None:
        trailers = (
            f"{bearer('a')}\r\nx-api-key: b\r\nHost: c\r\nmodel: d\r\nX-Request-Id: e\r\nContent-Type: f\r\n"
        )
        wire = CHUNKED + IN_CHUNKS + b"0\r\n" + trailers.encode() + b"\r\n"
        assert len((await client.ask(wire)).headers["x-request-id"]) == 32
        turn = engine.turns[0]
        assert turn.headers.keys() == {"host", "content-length", "x-request-id"}
        assert (turn.headers["host"], turn.body) == (f"127.0.0.1:{engine.port}", BODY)

    async def test_nothing_hides_in_a_body(self, client: Client, engine: FakeEngine) -> None:
        inner = post(BODY, path="/sleep") + post(BODY, "X: smuggled")
        body = json.dumps({"model": "tiny", "x": inner.decode()}).encode()
        for wire in (post(body), CHUNKED + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)):
            assert (await client.ask(wire + get("/healthz"))).json["id"]
            assert (await client.answer()).json == {"status": "ok"}
            assert engine.turns[-1].body == body
        assert len(engine.turns) == 2
