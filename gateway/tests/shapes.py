"""What the four engines write: their answers, streams and errors, in the shapes measured on real ones.

The bodies are the tests' own. A shape differs from another in what the engine adds, leaves out, and calls things.
"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from .engine import CHAT, DONE, END, answer, chunk

CREATED = 1_700_000_000


class Shape(NamedTuple):
    """One engine: its headers, and the keys with which it fills out what all have in common."""

    name: str
    headers: Sequence[str]
    stream_kind: str
    of_answer: dict[str, Any]
    of_choice: dict[str, Any]
    of_message: dict[str, Any]
    of_chunk: dict[str, Any]
    of_delta: dict[str, Any]
    of_usage: dict[str, Any]
    #: Status and body of: a prompt that is too long; embeddings of a chat model; too many requests.
    too_long: tuple[int, dict[str, Any]]
    no_embeddings: tuple[int, dict[str, Any]]
    busy: tuple[int, dict[str, Any]] | None

    def chat(
        self, logprobs: dict[str, Any] | None = None, tool_calls: list[Any] | None = None
    ) -> dict[str, Any]:
        """Return a chat completion."""
        message = self.of_message | {"role": "assistant", "content": None if tool_calls else "Four."}
        if tool_calls:
            message["tool_calls"] = tool_calls
        choice = {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": "stop"}
        return {
            "id": "chatcmpl-7",
            "object": "chat.completion",
            "created": CREATED,
            "model": CHAT["model"],
            "choices": [choice | self.of_choice],
            "usage": CHAT["usage"] | self.of_usage,
        } | self.of_answer

    def whole(self, body: dict[str, Any], status: int = 200) -> bytes:
        """Return an answer that is not streamed."""
        return answer(body, status, *self.headers)

    def stream_head(self) -> bytes:
        """Return the head of a stream."""
        lines = [
            "HTTP/1.1 200 OK",
            *self.headers,
            f"content-type: {self.stream_kind}",
            "transfer-encoding: chunked",
        ]
        return "\r\n".join([*lines, "", ""]).encode()

    def event(self, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        """Return one event with a choice."""
        choice = {"index": 0, "delta": self.of_delta | delta, "finish_reason": finish_reason}
        return self._event([choice | self.of_choice])

    def usage(self) -> bytes:
        """Return the last event of a stream whose client asked for the usage."""
        return self._event([], usage=CHAT["usage"] | self.of_usage)

    def _event(self, choices: list[Any], **rest: Any) -> bytes:
        about = {
            "id": "chatcmpl-7",
            "object": "chat.completion.chunk",
            "created": CREATED,
            "model": CHAT["model"],
        }
        return b"data: " + json.dumps(about | {"choices": choices} | self.of_chunk | rest).encode() + b"\n\n"

    def stream(self) -> list[bytes]:
        """Return the pieces of a whole stream."""
        deltas = [self.event({"role": "assistant", "content": ""})]
        deltas += [self.event({"content": word}) for word in ("Fo", "ur", ".")]
        deltas += [self.event({}, "stop"), self.usage(), DONE]
        return [self.stream_head(), *map(chunk, deltas), END]


def _enveloped(message: str, kind: str, code: int, **rest: Any) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code} | rest}


def _flat(message: str, kind: str, code: int) -> dict[str, Any]:
    return {"object": "error", "message": message, "type": kind, "param": None, "code": code}


_PLACE = '\n\n  File "/opt/engine/lib/entrypoints/http_server.py", line 99, in create\n    POST /v1/chat/completions'
_UVICORN = ("date: Wed, 25 Nov 2026 00:00:00 GMT", "server: uvicorn")

VLLM_12 = Shape(
    name="vllm-0.12.0",
    headers=_UVICORN,
    stream_kind="text/event-stream; charset=utf-8",
    of_answer={
        "service_tier": None,
        "system_fingerprint": None,
        "prompt_logprobs": None,
        "kv_transfer_params": None,
    },
    of_choice={"stop_reason": None, "token_ids": None},
    of_message={
        "refusal": None,
        "annotations": None,
        "audio": None,
        "tool_calls": [],
        "reasoning_content": None,
    },
    of_chunk={},
    of_delta={"reasoning_content": None},
    of_usage={"prompt_tokens_details": None},
    too_long=(400, _enveloped(f"The prompt is longer than 2048 tokens.{_PLACE}", "BadRequestError", 400)),
    no_embeddings=(200, _enveloped("The model has no embeddings", "BadRequestError", 400)),
    busy=None,
)
VLLM_32 = Shape(
    name="vllm-0.32.0",
    headers=(*_UVICORN, "vary: Origin"),
    stream_kind="text/event-stream; charset=utf-8",
    of_answer={"system_fingerprint": "vllm-0.32.0-0", "prompt_text": None, "metrics": None},
    of_choice={"stop_reason": None, "token_ids": None, "routed_experts": None},
    of_message={"refusal": None, "annotations": None, "audio": None, "reasoning": None},
    of_chunk={"system_fingerprint": "vllm-0.32.0-0"},
    of_delta={},
    of_usage={"prompt_tokens_details": None, "completion_tokens_details": None},
    too_long=(
        400,
        _enveloped("The prompt is longer than 2048 tokens.", "BadRequestError", 400, param="input_tokens"),
    ),
    no_embeddings=(404, {"detail": "Not Found"}),
    busy=(503, _enveloped("The engine is busy.", "Service Unavailable", 503)),
)
SGLANG = Shape(
    name="sglang-0.5.6",
    headers=_UVICORN,
    stream_kind="text/event-stream; charset=utf-8",
    of_answer={"metadata": {"weight_version": "default"}},
    of_choice={"matched_stop": None},
    of_message={"reasoning_content": None, "tool_calls": None},
    of_chunk={"usage": None},
    of_delta={"role": None, "content": None, "reasoning_content": None, "tool_calls": None},
    of_usage={"prompt_tokens_details": None, "reasoning_tokens": 0},
    too_long=(400, _flat(f"The prompt is longer than 2048 tokens.{_PLACE}", "BadRequestError", 400)),
    no_embeddings=(400, _flat("This is no embedding model.", "BadRequestError", 400)),
    busy=(503, _flat("The request queue is full.", "503", 503)),
)
LLAMACPP = Shape(
    name="llama.cpp",
    headers=("Server: llama.cpp", "Keep-Alive: timeout=5, max=100"),
    stream_kind="text/event-stream",
    of_answer={"system_fingerprint": "b0-unknown", "timings": {"prompt_n": 5, "predicted_n": 2}},
    of_choice={},
    of_message={},
    of_chunk={"system_fingerprint": "b0-unknown"},
    of_delta={},
    of_usage={"prompt_tokens_details": {"cached_tokens": 0}},
    too_long=(
        400,
        {
            "error": {
                "code": 400,
                "message": "The prompt is too long.",
                "type": "exceed_context_size_error",
                "n_ctx": 9,
            }
        },
    ),
    no_embeddings=(
        501,
        {"error": {"code": 501, "message": "No embeddings here.", "type": "not_supported_error"}},
    ),
    busy=None,
)
ALL = (VLLM_12, VLLM_32, SGLANG, LLAMACPP)
