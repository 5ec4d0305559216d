"""Each engine in its own shape, behind the gateway: to an OpenAI client they look the same where they mean the same."""

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from .client import Client, get, post
from .conftest import Roundhouse, StartGateway, simple_map
from .engine import CHAT, DONE, END, FakeEngine, Script, Turn, chunk
from .shapes import ALL, LLAMACPP, SGLANG, VLLM_12, VLLM_32, Shape

MESSAGES: Any = [{"role": "user", "content": "2+2?"}]
BODY = {"model": "tiny", "messages": MESSAGES}
every_shape = pytest.mark.parametrize("shape", ALL, ids=lambda shape: shape.name)


@pytest.fixture
async def impatient(start_gateway: StartGateway, engine: FakeEngine) -> Roundhouse:
    """A gateway that waits a fifth of a second for an engine that has fallen silent."""
    return await start_gateway(simple_map(engine, timeouts={"connect": 5, "first_byte": 10, "idle": 0.2}))


@pytest.fixture
async def sdk(impatient: Roundhouse) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{impatient.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def answering(shape: Shape, body: dict[str, Any], status: int = 200) -> Script:
    async def script(turn: Turn) -> None:
        await turn.send(shape.whole(body, status))

    return script


@every_shape
async def test_answers_pass_byte_for_byte(shape: Shape, client: Client, engine: FakeEngine) -> None:
    logprobs = {"content": [{"token": "Four", "bytes": [70], "logprob": -0.25, "top_logprobs": []}]}
    call = {"id": "c", "type": "function", "function": {"name": "model", "arguments": '{"owned_by": "x"}'}}
    for body in (shape.chat(), shape.chat(logprobs=logprobs), shape.chat(tool_calls=[call])):
        engine.script = answering(shape, body)
        got = await client.ask(post(BODY))
        assert shape.whole(body).endswith(got.body)
        assert got.body
        assert got.headers.get("server") == ("llama.cpp" if shape is LLAMACPP else "uvicorn")


@every_shape
async def test_answers_read_the_same(shape: Shape, sdk: openai.AsyncOpenAI, engine: FakeEngine) -> None:
    engine.script = answering(shape, shape.chat())
    whole = await sdk.chat.completions.create(model="tiny", messages=MESSAGES)
    assert whole.usage is not None
    seen = whole.choices[0].message.content, whole.choices[0].finish_reason, whole.usage.total_tokens
    assert seen == ("Four.", "stop", 7)

    async def streaming(turn: Turn) -> None:
        await turn.send(*shape.stream())

    engine.script = streaming
    text, reasons, usage = "", [], None
    async for part in await sdk.chat.completions.create(
        model="tiny", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    ):
        text += "".join(choice.delta.content or "" for choice in part.choices)
        reasons += [choice.finish_reason for choice in part.choices if choice.finish_reason]
        usage = part.usage or usage
    assert usage is not None
    assert (text, reasons, usage.total_tokens) == ("Four.", ["stop"], 7)


@every_shape
async def test_streams_pass_chunk_for_chunk(shape: Shape, client: Client, engine: FakeEngine) -> None:
    async def streaming(turn: Turn) -> None:
        await turn.send(*shape.stream())

    engine.script = streaming
    await client.send(post(BODY | {"stream": True}))
    await client.head()
    assert await client.read_until(END) == b"".join(shape.stream()[1:])


@every_shape
async def test_unknown_names_never_reach_an_engine(shape: Shape, client: Client, engine: FakeEngine) -> None:
    # SGLang and llama.cpp would answer, and call themselves whatever they were called.
    engine.script = answering(shape, shape.chat())
    assert (await client.ask(post(BODY | {"model": "nope"}))).code == "model_not_found"
    assert (await client.ask(post({"messages": MESSAGES}))).code == "missing_model"
    assert (await client.ask(get("/v1/models/nope"))).code == "model_not_found"
    assert not engine.turns


@every_shape
async def test_errors_have_one_shape(shape: Shape, client: Client, engine: FakeEngine) -> None:
    for (status, body), path in (
        (shape.too_long, "/v1/chat/completions"),
        (shape.no_embeddings, "/v1/embeddings"),
        (shape.busy or shape.too_long, "/v1/chat/completions"),
    ):
        engine.script = answering(shape, body, status)
        got = await client.ask(post(BODY, path=path))
        assert got.status == (status if status >= 400 else 400)
        error = got.json["error"]
        assert set(error) >= {"message", "type", "param", "code"}
        assert error["message"]
        assert error["message"].endswith(".") or "embeddings" in path or error["message"] == "Not Found"
        assert "/opt/" not in got.body.decode()
        assert "POST /v1" not in error["message"]


@every_shape
async def test_errors_raise_the_same(shape: Shape, sdk: openai.AsyncOpenAI, engine: FakeEngine) -> None:
    status, body = shape.too_long
    engine.script = answering(shape, body, status)
    with pytest.raises(openai.BadRequestError, match=r"too long|longer than"):
        await sdk.chat.completions.create(model="tiny", messages=MESSAGES)
    if shape.busy:
        status, body = shape.busy
        engine.script = answering(shape, body, status)
        with pytest.raises(openai.InternalServerError) as busy:
            await sdk.chat.completions.create(model="tiny", messages=MESSAGES)
        assert busy.value.status_code == 503


async def test_vllm_with_a_key_of_its_own(sdk: openai.AsyncOpenAI, engine: FakeEngine) -> None:
    engine.script = answering(VLLM_32, {"error": "Unauthorized"}, 401)
    with pytest.raises(openai.AuthenticationError, match="Unauthorized"):
        await sdk.chat.completions.create(model="tiny", messages=MESSAGES)


async def test_sglang_refuses_in_a_stream(sdk: openai.AsyncOpenAI, engine: FakeEngine) -> None:
    async def script(turn: Turn) -> None:
        error = b'data: {"error": {"object": "error", "message": "The prompt is too long.", "code": 400}}\n\n'
        await turn.send(SGLANG.stream_head(), chunk(error), chunk(DONE), END)

    engine.script = script
    stream = await sdk.chat.completions.create(model="tiny", messages=MESSAGES, stream=True)
    with pytest.raises(openai.APIError, match="too long"):
        async for _ in stream:
            pass


async def stops_with_an_error(turn: Turn, shape: Shape) -> None:
    """The engine's core is killed: vLLM's server says so in the stream, and ends it as if it were complete."""
    error = b'data: {"error": {"message": "EngineCore had an issue.", "type": "InternalServerError", "code": 500}}\n\n'
    await turn.send(chunk(error), chunk(DONE), END)


async def goes_silent(turn: Turn, shape: Shape) -> None:
    """vLLM at SIGTERM, and SGLang 0.5.6 without its scheduler: nothing more comes, not even the end."""
    await turn.until_left()


async def ends(turn: Turn, shape: Shape) -> None:
    """The process is killed, all that it wrote has been sent."""
    turn.close()


async def ends_within_an_event(turn: Turn, shape: Shape) -> None:
    await turn.send(chunk(shape.event({"content": "x"})[:-20]))
    turn.close()


async def resets(turn: Turn, shape: Shape) -> None:
    turn.reset()


@pytest.mark.parametrize(
    ("shape", "dies", "code"),
    [
        (VLLM_12, stops_with_an_error, 500),
        (VLLM_32, stops_with_an_error, 500),
        (VLLM_12, goes_silent, "engine_timeout"),
        (VLLM_32, goes_silent, "engine_timeout"),
        (VLLM_32, ends, "engine_lost"),
        (SGLANG, goes_silent, "engine_timeout"),
        (SGLANG, ends, "engine_lost"),
        (LLAMACPP, ends, "engine_lost"),
        (VLLM_32, ends_within_an_event, None),
        (LLAMACPP, ends_within_an_event, None),
        (LLAMACPP, resets, "engine_lost"),
    ],
    ids=lambda value: getattr(value, "name", getattr(value, "__name__", str(value))),
)
async def test_death_in_a_stream(
    shape: Shape, dies: Any, code: object, sdk: openai.AsyncOpenAI, engine: FakeEngine
) -> None:
    async def script(turn: Turn) -> None:
        await turn.send(*shape.stream()[:3])
        await dies(turn, shape)

    engine.script = script
    seen = []

    async def read() -> None:
        async for part in await sdk.chat.completions.create(model="tiny", messages=MESSAGES, stream=True):
            seen.extend(choice.delta.content for choice in part.choices)

    with pytest.raises(openai.APIError) as died:
        await read()
    assert seen[:2] == ["", "Fo"]
    # Without a code: the stream was cut, for what came last was the middle of an event.
    assert isinstance(died.value, openai.APIConnectionError) == (code is None)
    assert died.value.code == (str(code) if isinstance(code, int) else code) or died.value.body == code


@every_shape
async def test_death_before_the_answer(
    shape: Shape, sdk: openai.AsyncOpenAI, impatient: Roundhouse, engine: FakeEngine
) -> None:
    if shape in (VLLM_12, VLLM_32):
        # The server outlives its core for some seconds, and says so.
        body = {
            "error": {
                "message": "EngineCore had an issue.",
                "type": "Server Error",
                "param": None,
                "code": 500,
            }
        }
        engine.script = answering(shape, body, 500)
        with pytest.raises(openai.InternalServerError, match="EngineCore had an issue"):
            await sdk.chat.completions.create(model="tiny", messages=MESSAGES)

    async def dying(turn: Turn) -> None:
        turn.reset()

    engine.script = dying
    with pytest.raises(openai.InternalServerError) as reset:
        await sdk.chat.completions.create(model="tiny", messages=MESSAGES)
    assert (reset.value.status_code, reset.value.code) == (502, "engine_unreachable")
    await engine.stop()
    for status, code in (
        (502, "engine_unreachable"),
        (502, "engine_unreachable"),
        (503, "engine_unavailable"),
    ):
        with pytest.raises(openai.InternalServerError) as gone:
            await sdk.chat.completions.create(model="tiny", messages=MESSAGES)
        assert (gone.value.status_code, gone.value.code) == (status, code)
    assert impatient.backend().state == "ejected"


@every_shape
async def test_models_are_listed_the_same(shape: Shape, sdk: openai.AsyncOpenAI, engine: FakeEngine) -> None:
    # What the engine itself would list is not asked for: aliases, parents and paths differ from engine to engine.
    assert [(model.id, model.owned_by) async for model in sdk.models.list()] == [("tiny", "fake")]
    assert not engine.turns


def test_shapes_have_what_all_have() -> None:
    for shape in ALL:
        assert shape.chat().keys() >= CHAT.keys()
