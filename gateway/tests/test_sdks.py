"""The official Python clients, against a fake engine behind the gateway."""

import asyncio
import json
from typing import Any

import anthropic
import openai
import pytest

from .conftest import Roundhouse
from .engine import CHAT, DONE, END, STREAM_HEAD, FakeEngine, Turn, answer, chunk, event

MESSAGES: Any = [{"role": "user", "content": "2+2?"}]


def openai_client(roundhouse: Roundhouse) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{roundhouse.url}/v1", api_key="none", max_retries=0)


async def test_chat(roundhouse: Roundhouse, engine: FakeEngine) -> None:
    tools: Any = [
        {"type": "function", "function": {"name": "f", "parameters": {"properties": {"model": {}}}}}
    ]
    async with openai_client(roundhouse) as client:
        got = await client.chat.completions.with_raw_response.create(
            model="tiny", messages=MESSAGES, tools=tools, logprobs=True, extra_body={"owned_by": "fake"}
        )
    assert got.headers["x-roundhouse-backend"] == "one"
    assert got.parse().model_dump(exclude_unset=True) == CHAT
    assert engine.turns[0].json == {"model": "tiny", "messages": MESSAGES, "tools": tools, "logprobs": True}
    assert "authorization" not in engine.turns[0].headers


async def test_streamed_chat(roundhouse: Roundhouse, engine: FakeEngine) -> None:
    usage = b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}\n\n'  # noqa: E501 - one event

    async def script(turn: Turn) -> None:
        await turn.send(STREAM_HEAD, chunk(event("Fo")), chunk(event("ur")), chunk(usage), chunk(DONE) + END)

    engine.script = script
    async with openai_client(roundhouse) as client:
        stream = await client.chat.completions.create(
            model="tiny@fake", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
        chunks = [part async for part in stream]
    assert "".join(part.choices[0].delta.content or "" for part in chunks if part.choices) == "Four"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 3
    assert engine.turns[0].json["model"] == "tiny"


async def test_sync_clients(roundhouse: Roundhouse, engine: FakeEngine) -> None:
    async def script(turn: Turn) -> None:
        if turn.json.get("stream"):
            await turn.send(STREAM_HEAD, chunk(event("Four")), chunk(DONE) + END)
        else:
            await turn.send(answer(CHAT))

    engine.script = script

    def ask() -> tuple[Any, str]:
        with openai.OpenAI(base_url=f"{roundhouse.url}/v1", api_key="none", max_retries=0) as client:
            models = [model.id for model in client.models.list()]
            assert models == ["tiny"]
            assert client.models.retrieve("tiny").owned_by == "fake"
            whole = client.chat.completions.create(model="tiny", messages=MESSAGES)
            stream = client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True)
            return whole.choices[0].message.content, "".join(p.choices[0].delta.content or "" for p in stream)

    assert await asyncio.to_thread(ask) == ("Four.", "Four")


async def test_errors(roundhouse: Roundhouse, engine: FakeEngine) -> None:
    async with openai_client(roundhouse) as client:
        with pytest.raises(openai.NotFoundError) as missing:
            await client.chat.completions.create(model="nope", messages=MESSAGES)
        assert (missing.value.code, missing.value.param) == ("model_not_found", "model")

        async def flat(turn: Turn) -> None:
            await turn.send(answer({"object": "error", "message": "too long", "type": "t", "code": 400}, 400))

        engine.script = flat
        with pytest.raises(openai.BadRequestError, match="too long"):
            await client.chat.completions.create(model="tiny", messages=MESSAGES)


async def test_stream_that_breaks_raises(roundhouse: Roundhouse, engine: FakeEngine) -> None:
    async def between(turn: Turn) -> None:
        await turn.send(STREAM_HEAD + chunk(event("a")))
        turn.close()

    async def within(turn: Turn) -> None:
        await turn.send(STREAM_HEAD + chunk(event("a")) + chunk(b"data: {"))
        turn.close()

    async with openai_client(roundhouse) as client:
        engine.script = between
        stream = await client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True)
        with pytest.raises(openai.APIError, match="'one' ended the connection"):
            async for _ in stream:
                pass
        engine.script = within
        stream = await client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True)
        with pytest.raises(openai.APIConnectionError):
            async for _ in stream:
                pass


async def test_embeddings_and_speech(roundhouse: Roundhouse, engine: FakeEngine) -> None:
    async def script(turn: Turn) -> None:
        if "embeddings" in turn.line:
            data = [{"object": "embedding", "index": 0, "embedding": [0.5]}]
            usage = {"prompt_tokens": 1, "total_tokens": 1}
            await turn.send(answer({"object": "list", "data": data, "model": "tiny", "usage": usage}))
        else:
            await turn.send(answer({"text": "hello"}))

    engine.script = script
    async with openai_client(roundhouse) as client:
        got = await client.embeddings.create(model="tiny", input="x", encoding_format="float")
        assert got.data[0].embedding == [0.5]
        said = await client.audio.transcriptions.create(model="tiny@fake", file=("a.wav", b"RIFF"))
    assert said.text == "hello"
    assert b'name="model"\r\n\r\ntiny\r\n' in engine.turns[1].body


async def test_anthropic(roundhouse: Roundhouse, engine: FakeEngine) -> None:
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "tiny",
        "content": [{"type": "text", "text": "Four."}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 5, "output_tokens": 2},
    }

    async def script(turn: Turn) -> None:
        if turn.json.get("stream"):
            start = b'event: message_start\ndata: {"type":"message_start","message":{"id":"m","type":"message","role":"assistant","model":"tiny","content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":1,"output_tokens":1}}}\n\n'  # noqa: E501 - one event
            await turn.send(STREAM_HEAD + chunk(start))
            turn.close()
        else:
            await turn.send(answer(message))

    engine.script = script
    async with anthropic.AsyncAnthropic(base_url=roundhouse.url, api_key="none", max_retries=0) as client:
        got = await client.messages.create(model="tiny", max_tokens=9, messages=MESSAGES)
        assert got.content[0].model_dump()["text"] == "Four."
        with pytest.raises(anthropic.NotFoundError, match="No model 'nope'"):
            await client.messages.create(model="nope", max_tokens=9, messages=MESSAGES)
        stream = await client.messages.create(model="tiny", max_tokens=9, messages=MESSAGES, stream=True)
        with pytest.raises(anthropic.APIError, match="'one' ended the connection"):
            async for _ in stream:
                pass
    assert "x-api-key" not in engine.turns[0].headers


async def test_anthropic_streams(roundhouse: Roundhouse, engine: FakeEngine) -> None:
    start = {
        "id": "m",
        "type": "message",
        "role": "assistant",
        "model": "tiny",
        "content": [],
        "stop_reason": None,
    }
    start |= {"stop_sequence": None, "usage": {"input_tokens": 5, "output_tokens": 1}}
    call = {"type": "tool_use", "id": "t", "name": "model", "input": {}}
    events = [
        {"type": "message_start", "message": start},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Four."}},
        {"type": "content_block_stop", "index": 0},
        {"type": "content_block_start", "index": 1, "content_block": call},
        {
            "type": "content_block_delta",
            "index": 1,
            "delta": {"type": "input_json_delta", "partial_json": '{"a":1}'},
        },
        {"type": "content_block_stop", "index": 1},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "tool_use", "stop_sequence": None},
            "usage": {"output_tokens": 2},
        },
        {"type": "message_stop"},
    ]

    async def script(turn: Turn) -> None:
        pieces = [f"event: {one['type']}\ndata: {json.dumps(one)}\n\n".encode() for one in events]
        await turn.send(STREAM_HEAD, *map(chunk, pieces), END)

    engine.script = script

    def ask() -> Any:
        with (
            anthropic.Anthropic(base_url=roundhouse.url, api_key="none", max_retries=0) as client,
            client.messages.stream(model="tiny@fake", max_tokens=9, messages=MESSAGES) as stream,
        ):
            return stream.get_final_message()

    got = await asyncio.to_thread(ask)
    assert [block.type for block in got.content] == ["text", "tool_use"]
    assert (got.content[0].text, got.content[1].input) == ("Four.", {"a": 1})
    assert (got.usage.input_tokens, got.usage.output_tokens) == (5, 2)
    assert engine.turns[0].json["model"] == "tiny"
