"""What engines answer, well and badly, and what the client gets of it."""

import asyncio
import gzip
import json

import pytest

from .client import Client, get, post
from .conftest import Roundhouse, StartGateway, engine_entry, simple_map, until
from .engine import CHAT, DONE, END, STREAM_HEAD, FakeEngine, Gate, Turn, answer, chunk, event

ASK = post({"model": "tiny", "messages": []})
STREAM = post({"model": "tiny", "stream": True})


async def test_answer_passes_byte_for_byte(client: Client, engine: FakeEngine) -> None:
    body = b'{ "id" : "\\u00e9" ,"id":1.50, "choices":[ ] }\n'

    async def script(turn: Turn) -> None:
        await turn.send(
            answer(body, 201, "x-engine: 7", "connection: x-hop", "x-hop: 1", "keep-alive: timeout=5")
        )

    engine.script = script
    got = await client.ask(ASK)
    assert (got.status, got.body) == (201, body)
    assert got.headers["x-engine"] == "7"
    assert got.headers["x-roundhouse-backend"] == "one"
    assert not {"x-hop", "keep-alive", "connection"} & got.headers.keys()


async def test_connection_to_the_engine_is_reused(client: Client, engine: FakeEngine) -> None:
    for _ in range(5):
        assert (await client.ask(ASK)).json == CHAT
    assert engine.connections == 1


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
async def test_any_cutting_of_an_answer(client: Client, engine: FakeEngine, size: int) -> None:
    events = [event(text) for text in ("a", "b" * 300, "é")] + [DONE]
    wire = STREAM_HEAD + b"".join(map(chunk, events)) + END

    async def script(turn: Turn) -> None:
        await turn.send(*(wire[i : i + size] for i in range(0, len(wire), size)))

    engine.script = script
    for _ in range(2):
        got = await client.ask(STREAM)
        assert got.complete
        assert got.body == b"".join(events)


async def test_chunk_that_looks_like_another(client: Client, engine: FakeEngine) -> None:
    # Cut within the size of its second chunk, the rest of this stream starts with what looks like a whole chunk.
    inner = b"x" * 16 + b"\r\n" + b"y" * 254
    first, second, third = chunk(event("a")) + b"1", b"10\r\n" + inner[:18], inner[18:] + b"\r\n" + END
    assert first + second + third == chunk(event("a")) + chunk(inner) + END

    async def script(turn: Turn) -> None:
        await turn.send(STREAM_HEAD, first)
        await asyncio.sleep(0.02)
        await turn.send(second)
        await asyncio.sleep(0.02)
        await turn.send(third)

    engine.script = script
    got = await client.ask(STREAM)
    assert (got.body, got.complete) == (event("a") + inner, True)


async def test_stream_passes_unbuffered(client: Client, engine: FakeEngine) -> None:
    received = asyncio.Event()

    async def script(turn: Turn) -> None:
        await turn.send(STREAM_HEAD)
        await received.wait()
        for text in ("one", "two"):
            received.clear()
            await turn.send(chunk(event(text)))
            await received.wait()
        await turn.send(chunk(DONE) + END)

    engine.script = script
    await client.send(STREAM)
    status, headers = await client.head()
    assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    received.set()
    for text in (b"one", b"two"):
        assert text in await client.read_until(b"\n\n\r\n")
        received.set()
    assert (await client.read_until(END)).startswith(b"e\r\ndata: [DONE]")


async def test_trailers_and_extensions_of_chunks_are_dropped(client: Client, engine: FakeEngine) -> None:
    async def script(turn: Turn) -> None:
        await turn.send(STREAM_HEAD + b"4;a=b\r\nabcd\r\n0\r\nX-Trailer: 1\r\n\r\n")

    engine.script = script
    await client.send(STREAM)
    await client.head()
    assert await client.read_until(END) == b"4\r\nabcd\r\n0\r\n\r\n"
    assert (await client.ask(STREAM)).body == b"abcd"


async def test_informational_answers_are_skipped(client: Client, engine: FakeEngine) -> None:
    async def script(turn: Turn) -> None:
        await turn.send(
            b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n", answer(CHAT)
        )

    engine.script = script
    for _ in range(2):
        got = await client.ask(ASK)
        assert (got.status, got.json) == (200, CHAT)
        assert "link" not in got.headers


@pytest.mark.parametrize("status", [204, 304])
async def test_answer_without_a_body(client: Client, engine: FakeEngine, status: int) -> None:
    async def script(turn: Turn) -> None:
        await turn.send(f"HTTP/1.1 {status} X\r\netag: 1\r\n\r\n".encode())

    engine.script = script
    for _ in range(2):
        got = await client.ask(ASK)
        assert (got.status, got.headers["etag"]) == (status, "1")
        assert "transfer-encoding" not in got.headers
    assert engine.connections == 1


async def test_answer_that_ends_with_the_connection(client: Client, engine: FakeEngine) -> None:
    async def script(turn: Turn) -> None:
        await turn.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\n", b"to the ", b"end")
        turn.close()

    engine.script = script
    for _ in range(2):
        got = await client.ask(ASK)
        assert (got.body, got.complete) == (b"to the end", True)
    assert engine.connections == 2


async def test_engine_that_closes_after_its_answer(client: Client, engine: FakeEngine) -> None:
    async def script(turn: Turn) -> None:
        await turn.send(answer(CHAT, 200, "connection: close"))
        turn.close()

    engine.script = script
    for _ in range(3):
        got = await client.ask(ASK)
        assert (got.json, got.headers.get("connection")) == (CHAT, None)
    assert engine.connections == 3


async def test_gzip_passes_untouched(client: Client, engine: FakeEngine) -> None:
    packed = gzip.compress(b'{"error": "x"}')

    async def script(turn: Turn) -> None:
        await turn.send(answer(packed, 500, "content-encoding: gzip"))

    engine.script = script
    got = await client.ask(ASK)
    assert (got.status, got.body, got.headers["content-encoding"]) == (500, packed, "gzip")


async def test_large_headers_of_an_engine(client: Client, engine: FakeEngine) -> None:
    value = "v" * 64_000

    async def script(turn: Turn) -> None:
        await turn.send(answer(CHAT, 200, f"x-large: {value}"))

    engine.script = script
    await client.send(ASK)
    _, headers = await client.head()
    assert headers["x-large"] == value


# Errors of engines


@pytest.mark.parametrize(
    ("status", "kind", "body", "expected"),
    [
        (
            400,
            "application/json",
            b'{"object":"error","message":"too long","type":"BadRequestError","param":null,"code":400}',
            {"message": "too long", "type": "BadRequestError", "param": None, "code": 400},
        ),
        (
            422,
            "application/json",
            b'{"detail":[{"loc":["body","messages"],"msg":"Field required"}]}',
            {
                "message": "body.messages: Field required",
                "type": "invalid_request_error",
                "param": None,
                "code": None,
            },
        ),
        (
            500,
            "text/plain",
            b"Internal Server Error",
            {"message": "Internal Server Error", "type": "api_error", "param": None, "code": None},
        ),
        (
            404,
            "text/plain",
            b"",
            {
                "message": "The engine answered 404 and did not say why.",
                "type": "not_found_error",
                "param": None,
                "code": None,
            },
        ),
    ],
)
async def test_errors_get_one_shape(
    client: Client, engine: FakeEngine, status: int, kind: str, body: bytes, expected: object
) -> None:
    async def script(turn: Turn) -> None:
        await turn.send(answer(body, status, kind=kind))

    engine.script = script
    for _ in range(2):
        got = await client.ask(ASK)
        assert (got.status, got.json) == (status, {"error": expected})
        assert got.headers["content-type"] == "application/json"


async def test_good_error_passes_byte_for_byte(client: Client, engine: FakeEngine) -> None:
    body = b'{ "error":{"message":"no","type":"T","param":null,"code":400}}'

    async def script(turn: Turn) -> None:
        await turn.send(b"HTTP/1.1 400 Bad\r\ntransfer-encoding: chunked\r\n\r\n", chunk(body) + END)

    engine.script = script
    assert (await client.ask(ASK)).body == body


async def test_large_error_passes_as_it_is(client: Client, engine: FakeEngine) -> None:
    body = b"x" * 70_000

    async def script(turn: Turn) -> None:
        await turn.send(b"HTTP/1.1 500 Bad\r\ntransfer-encoding: chunked\r\n\r\n", chunk(body) + END)

    engine.script = script
    got = await client.ask(ASK)
    assert (got.status, got.body, got.complete) == (500, body, True)


@pytest.mark.parametrize("size", [1, 1000])
async def test_error_that_calls_itself_a_success(client: Client, engine: FakeEngine, size: int) -> None:
    wire = answer(
        {"error": {"message": "no embeddings", "type": "BadRequestError", "param": None, "code": 400}}
    )

    async def script(turn: Turn) -> None:
        await turn.send(*(wire[i : i + size] for i in range(0, len(wire), size)))

    engine.script = script
    got = await client.ask(ASK)
    assert (got.status, got.json["error"]["message"]) == (400, "no embeddings")


async def test_success_that_mentions_an_error(client: Client, engine: FakeEngine) -> None:
    body = b'{"error":null,"choices":[]}'

    async def script(turn: Turn) -> None:
        await turn.send(answer(body))

    engine.script = script
    got = await client.ask(ASK)
    assert (got.status, got.body) == (200, body)


async def test_errors_have_anthropics_shape_on_its_endpoint(client: Client, engine: FakeEngine) -> None:
    async def script(turn: Turn) -> None:
        await turn.send(answer(b"no", 400, kind="text/plain"))

    engine.script = script
    got = await client.ask(post({"model": "tiny"}, "X-Request-Id: r1", path="/v1/messages"))
    assert got.json == {
        "type": "error",
        "error": {"type": "invalid_request_error", "message": "no"},
        "request_id": "r1",
    }
    got = await client.ask(post({"model": "nope"}, path="/v1/messages"))
    assert got.status == 404
    assert got.json["error"]["type"] == "not_found_error"


# Engines that break


async def test_engine_that_answers_nonsense(client: Client, engine: FakeEngine) -> None:
    async def script(turn: Turn) -> None:
        await turn.send(b"SSH-2.0-OpenSSH\r\n")

    engine.script = script
    got = await client.ask(ASK)
    assert (got.status, got.code) == (502, "engine_unreachable")


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: a\nb\r\n\r\n",
    ],
)
async def test_heads_that_cannot_be_passed_on(client: Client, engine: FakeEngine, head: bytes) -> None:
    async def script(turn: Turn) -> None:
        await turn.send(head + b"hello")

    engine.script = script
    got = await client.ask(ASK)
    assert (got.status, got.code) == (502, "engine_unreachable")


async def test_bytes_after_the_answer_end_the_connection(client: Client, engine: FakeEngine) -> None:
    async def script(turn: Turn) -> None:
        await turn.send(answer(CHAT) + b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nbad")

    engine.script = script
    for _ in range(3):
        assert (await client.ask(ASK)).json == CHAT
    assert engine.connections == 3


async def test_new_connection_that_ends_without_an_answer(client: Client, engine: FakeEngine) -> None:
    async def script(turn: Turn) -> None:
        turn.close()

    engine.script = script
    got = await client.ask(ASK)
    assert (got.status, got.code) == (502, "engine_unreachable")
    assert len(engine.turns) == 1


async def test_engine_that_resets(client: Client, engine: FakeEngine) -> None:
    async def script(turn: Turn) -> None:
        turn.reset()

    engine.script = script
    assert (await client.ask(ASK)).status == 502


async def test_reused_connection_that_ends_is_retried_once(client: Client, engine: FakeEngine) -> None:
    assert (await client.ask(ASK)).status == 200
    turns = iter(range(10))

    async def script(turn: Turn) -> None:
        if next(turns) == 0:
            turn.close()
        else:
            await turn.send(answer(CHAT))

    engine.script = script
    assert (await client.ask(ASK)).json == CHAT
    assert engine.connections == 2
    assert len(engine.turns) == 3
    assert engine.turns[1].body == engine.turns[2].body


async def test_answer_cut_before_its_length(client: Client, engine: FakeEngine) -> None:
    async def script(turn: Turn) -> None:
        await turn.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 100\r\n\r\npart")
        turn.close()

    engine.script = script
    got = await client.ask(ASK)
    assert (got.body, got.complete) == (b"part", False)


async def test_json_cut_before_anything_was_passed_on(client: Client, engine: FakeEngine) -> None:
    async def script(turn: Turn) -> None:
        await turn.send(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{")
        turn.close()

    engine.script = script
    assert (await client.ask(ASK)).status == 502


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("joined", [False, True])
async def test_stream_that_breaks_between_events(
    client: Client, engine: FakeEngine, *, reset: bool, joined: bool
) -> None:
    got_it = asyncio.Event()

    async def script(turn: Turn) -> None:
        await turn.send(*([STREAM_HEAD + chunk(event("a"))] if joined else [STREAM_HEAD, chunk(event("a"))]))
        await got_it.wait()
        turn.reset() if reset else turn.close()

    engine.script = script
    await client.send(STREAM)
    await client.head()
    first = await client.read_until(b"\n\n\r\n")
    got_it.set()
    rest = await client.read_until(END)
    assert b"engine_lost" in rest
    assert b"[DONE]" not in first + rest
    assert json.loads(rest.split(b"data: ")[1].split(b"\n\n")[0])["error"]["type"] == "api_error"
    assert (await client.ask(get("/healthz"))).status == 200


async def test_stream_that_breaks_before_its_first_event(client: Client, engine: FakeEngine) -> None:
    async def script(turn: Turn) -> None:
        await turn.send(STREAM_HEAD)
        turn.close()

    engine.script = script
    got = await client.ask(STREAM)
    assert got.complete
    assert b"engine_lost" in got.body


@pytest.mark.parametrize("tail", [chunk(event("a")[:-1]), b"40\r\ndata: half"])
async def test_stream_that_breaks_within_an_event_is_cut(
    client: Client, engine: FakeEngine, tail: bytes
) -> None:
    async def script(turn: Turn) -> None:
        await turn.send(STREAM_HEAD + chunk(event("a")), tail)
        turn.close()

    engine.script = script
    got = await client.ask(STREAM)
    assert not got.complete
    assert b"engine_lost" not in got.body


async def test_stream_that_breaks_after_its_end(client: Client, engine: FakeEngine) -> None:
    async def script(turn: Turn) -> None:
        await turn.send(STREAM_HEAD + chunk(event("a")) + chunk(DONE))
        turn.close()

    engine.script = script
    got = await client.ask(STREAM)
    assert got.complete
    assert got.body == event("a") + DONE


async def test_broken_stream_of_anthropics(client: Client, engine: FakeEngine) -> None:
    async def script(turn: Turn) -> None:
        await turn.send(STREAM_HEAD)
        turn.close()

    engine.script = script
    got = await client.ask(post({"model": "tiny", "stream": True}, path="/v1/messages"))
    assert got.body.startswith(b'event: error\ndata: {"type":"error"')


# Engines that are silent


async def silent(turn: Turn) -> None:
    await turn.until_left()


async def test_engine_that_never_answers(start_gateway: StartGateway, engine: FakeEngine) -> None:
    engine.script = silent
    roundhouse = await start_gateway(simple_map(engine, timeouts={"first_byte": 0.05}))
    got = await (await roundhouse.connect()).ask(ASK)
    assert (got.status, got.code) == (504, "engine_timeout")
    await engine.turns[0].left.wait()
    assert roundhouse.backend().failures == 1


async def test_engine_that_falls_silent(start_gateway: StartGateway, engine: FakeEngine) -> None:
    async def script(turn: Turn) -> None:
        await turn.send(STREAM_HEAD + chunk(event("a")))
        await turn.until_left()

    engine.script = script
    roundhouse = await start_gateway(simple_map(engine, timeouts={"idle": 0.05}))
    got = await (await roundhouse.connect()).ask(STREAM)
    assert got.complete
    assert b"engine_timeout" in got.body
    await engine.turns[0].left.wait()


async def test_engine_that_falls_silent_after_its_head(
    start_gateway: StartGateway, engine: FakeEngine
) -> None:
    async def script(turn: Turn) -> None:
        await turn.send(answer(CHAT)[:-20])
        await turn.until_left()

    engine.script = script
    roundhouse = await start_gateway(simple_map(engine, timeouts={"idle": 0.05}))
    client = await roundhouse.connect()
    got = await client.ask(ASK)
    assert not got.complete


async def test_engine_that_never_takes_the_request(start_gateway: StartGateway) -> None:
    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()
        await stopped.wait()
        writer.transport.abort()

    stopped = asyncio.Event()
    server = await asyncio.start_server(deaf, "127.0.0.1", 0)
    fake = FakeEngine()
    fake.port = server.sockets[0].getsockname()[1]
    document = {"revision": "1", "models": [{"model": "tiny", "engines": [engine_entry(fake)]}]}
    document["models"][0]["engines"][0]["timeouts"] = {"first_byte": 0.2}
    roundhouse = await start_gateway(document)
    got = await (await roundhouse.connect()).ask(post(b'{"model":"tiny","x":"' + b"x" * 20_000_000 + b'"}'))
    assert (got.status, got.code) == (504, "engine_timeout")
    stopped.set()
    server.close()


async def test_engine_that_answers_before_it_has_the_request(start_gateway: StartGateway) -> None:
    connections = 0

    async def hasty(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        line = await reader.readuntil(b"\r\n")
        connections += line.startswith(b"POST")
        writer.write(answer(CHAT))
        await stopped.wait()
        writer.transport.abort()

    stopped = asyncio.Event()
    server = await asyncio.start_server(hasty, "127.0.0.1", 0)
    fake = FakeEngine()
    fake.port = server.sockets[0].getsockname()[1]
    roundhouse = await start_gateway(simple_map(fake))
    client = await roundhouse.connect()
    # The second request would be stuck behind the rest of the first.
    assert (await client.ask(post(b'{"model":"tiny","x":"' + b"x" * 20_000_000 + b'"}'))).json == CHAT
    assert (await client.ask(ASK)).json == CHAT
    assert connections == 2
    stopped.set()
    server.close()


# Clients that leave, or are slow


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("streaming", [False, True])
async def test_client_that_leaves(
    roundhouse: Roundhouse, engine: FakeEngine, how: str, *, streaming: bool
) -> None:
    async def script(turn: Turn) -> None:
        if streaming:
            await turn.send(STREAM_HEAD + chunk(event("a")))
        waiting = asyncio.ensure_future(turn.until_left())
        while streaming and not waiting.done():
            await turn.send(chunk(event("b")))
            await asyncio.sleep(0.005)
        await waiting

    engine.script = script
    client = await roundhouse.connect()
    await client.send(STREAM)
    await until(lambda: engine.turns)
    if streaming:
        await client.read_until(b"\n\n")
    getattr(client, how)()
    async with asyncio.timeout(5):
        await engine.turns[0].left.wait()
    await until(lambda: roundhouse.backend().in_flight == 0)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_half_closed_client_is_answered(
    roundhouse: Roundhouse, engine: FakeEngine, version: str
) -> None:
    gate = engine.script = Gate()
    client = await roundhouse.connect()
    await client.send(ASK.replace(b"HTTP/1.1", b"HTTP/" + version.encode()))
    client.half_close()
    # Something of the status line comes early; it must not come twice.
    assert await client.reader.readexactly(6) == b"HTTP/1"
    gate.open.set()
    rest = await client.rest()
    assert rest.startswith(b".1 200 ")
    assert rest.endswith(json.dumps(CHAT, separators=(",", ":")).encode())


async def test_client_that_does_not_read(roundhouse: Roundhouse, engine: FakeEngine) -> None:
    piece = chunk(b"x" * 60_000)
    sent = 0

    async def script(turn: Turn) -> None:
        nonlocal sent
        await turn.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(1000):
            await turn.send(piece)
            sent += 1
        await turn.send(END)

    engine.script = script
    client = await roundhouse.connect()
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    await client.send(ASK)
    before = -1
    while before != sent:
        before = sent
        await asyncio.sleep(0.1)
    # What is under way are the buffers of the kernel and of two transports, not the 60 MB of the answer.
    assert 0 < sent < 500
    client.writer.transport.resume_reading()  # type: ignore[attr-defined]
    got = await client.answer()
    assert got.complete
    assert len(got.body) == 60_000_000


async def test_client_that_never_reads_is_cut(start_gateway: StartGateway, engine: FakeEngine) -> None:
    async def script(turn: Turn) -> None:
        await turn.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 60000000\r\n\r\n")
        waiting = asyncio.ensure_future(turn.until_left())
        turn._writer.write(b"x" * 60_000_000)
        await waiting

    engine.script = script
    roundhouse = await start_gateway(simple_map(engine, timeouts={"idle": 0.2}))
    client = await roundhouse.connect()
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    await client.send(ASK)
    await until(lambda: engine.turns)
    async with asyncio.timeout(5):
        await engine.turns[0].left.wait()
    await until(lambda: not roundhouse.gateway.connections)


# HTTP/1.0


async def test_http10_gets_no_chunks(roundhouse: Roundhouse, engine: FakeEngine) -> None:
    async def script(turn: Turn) -> None:
        await turn.send(STREAM_HEAD + chunk(event("a")) + chunk(DONE) + END)

    engine.script = script
    client = await roundhouse.connect()
    await client.send(STREAM.replace(b"HTTP/1.1", b"HTTP/1.0"))
    _, headers = await client.head()
    assert headers["connection"] == "close"
    assert "transfer-encoding" not in headers
    assert await client.rest() == event("a") + DONE


async def test_http10_keeps_alive_if_asked_to(roundhouse: Roundhouse) -> None:
    client = await roundhouse.connect()
    request = post({"model": "tiny"}, "Connection: keep-alive").replace(b"HTTP/1.1", b"HTTP/1.0")
    for _ in range(2):
        got = await client.ask(request)
        assert (got.json, got.headers["connection"]) == (CHAT, "keep-alive")


async def test_http10_sees_a_broken_answer_as_a_reset(roundhouse: Roundhouse, engine: FakeEngine) -> None:
    async def script(turn: Turn) -> None:
        await turn.send(STREAM_HEAD + chunk(b"data: ha"))
        turn.close()

    engine.script = script
    client = await roundhouse.connect()
    await client.send(STREAM.replace(b"HTTP/1.1", b"HTTP/1.0"))
    with pytest.raises(ConnectionResetError):
        await client.rest()
