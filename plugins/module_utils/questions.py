"""One real question to a model through the gateway, not streamed and streamed, and what came of it."""

from __future__ import annotations

import http.client
import json
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_QUESTION = "In one sentence: what is a railway roundhouse?"
_BEGINNING = "A railway roundhouse is"
_TOKENS = 32


@dataclass(frozen=True)
class Answer:
    """What came back: HTTP status, the backend that the gateway names, text, seconds and tokens."""

    status: int
    backend: str
    text: str
    first: float
    seconds: float
    tokens: int
    complete: bool


def request(question: Mapping[str, Any], *, stream: bool) -> tuple[str, dict[str, Any]]:
    """Path and body of the request for one question (`model`, `owned_by`, `task`)."""
    body = {"model": question["model"], "owned_by": question["owned_by"]}
    if question["task"] == "embedding":
        return "/v1/embeddings", {**body, "input": _QUESTION}
    body |= {"max_tokens": _TOKENS, "temperature": 0}
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    if question["task"] == "completion":
        return "/v1/completions", {**body, "prompt": _BEGINNING}
    return "/v1/chat/completions", {**body, "messages": [{"role": "user", "content": _QUESTION}]}


def direct(url: str, timeout: float) -> http.client.HTTPConnection:
    """A connection to the gateway at `url`; `timeout` is how many seconds it may be silent."""
    parts = urllib.parse.urlsplit(url)
    return http.client.HTTPConnection(parts.hostname or "127.0.0.1", parts.port, timeout=timeout)


def ask(
    connection: http.client.HTTPConnection,
    question: Mapping[str, Any],
    *,
    stream: bool,
    key: str | None = None,
) -> Answer:
    """Ask once, and close the connection. Raises OSError or http.client.HTTPException if there is no answer."""
    path, body = request(question, stream=stream)
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    begun = time.monotonic()
    try:
        connection.request("POST", path, json.dumps(body), headers)
        answer = connection.getresponse()
        backend = answer.headers.get("X-Roundhouse-Backend", "")
        if stream and answer.status == 200:
            return _read_stream(answer, backend, begun)
        whole = answer.read()
        seconds = time.monotonic() - begun
        text, tokens = _read_whole(whole, answer.status)
        return Answer(answer.status, backend, text, seconds, seconds, tokens, complete=True)
    finally:
        connection.close()


def _read_whole(whole: bytes, status: int) -> tuple[str, int]:
    try:
        found = json.loads(whole)
        if status != 200:
            return str(found["error"]["message"]), 0
        if "choices" not in found:
            return f"{len(found['data'][0]['embedding'])} dimensions", 0
        return _text(found["choices"]), int(found.get("usage", {}).get("completion_tokens", 0))
    except (ValueError, KeyError, IndexError, TypeError):
        return whole[:200].decode(errors="replace"), 0


def _read_stream(answer: http.client.HTTPResponse, backend: str, begun: float) -> Answer:
    first = last = None
    pieces, chunks, tokens, complete = [], 0, 0, False
    for line in answer:
        if not line.startswith(b"data:"):
            continue
        data = line.removeprefix(b"data:").strip()
        if data == b"[DONE]":
            complete = True
            break
        event = json.loads(data)
        if "error" in event:
            pieces.append(str(event["error"].get("message")))
            break
        piece = _text(event.get("choices", []))
        if piece:
            last = time.monotonic()
            first = first or last
            chunks += 1
            pieces.append(piece)
        tokens = int((event.get("usage") or {}).get("completion_tokens", 0)) or tokens
    first, last = first or time.monotonic(), last or time.monotonic()
    return Answer(
        answer.status, backend, "".join(pieces), first - begun, last - first, tokens or chunks, complete
    )


def _text(choices: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    for choice in choices:
        message = choice.get("message") or choice.get("delta") or choice
        parts.append(message.get("content") or message.get("reasoning_content") or message.get("text") or "")
    return "".join(parts)


def examine(question: Mapping[str, Any], answer: Answer) -> str | None:
    """What is wrong with an answer; None if it is good."""
    if answer.status != 200:
        return f"answered {answer.status}: {answer.text[:200]}"
    # Of a deployment with replicas in a cluster, the gateway names which one: NAME@ADDRESS.
    if answer.backend.partition("@")[0] not in question["backends"]:
        named = answer.backend or "no backend"
        return f"came from {named} and not from {' or '.join(question['backends'])}"
    if not answer.text.strip():
        return "is empty"
    if not answer.complete:
        return f"broke off after: {answer.text[-100:]}"
    return None


def row(question: Mapping[str, Any], streamed: Answer) -> dict[str, Any]:
    """One line of the table."""
    rate = (streamed.tokens - 1) / streamed.seconds if streamed.seconds > 0 and streamed.tokens > 1 else None
    words = " ".join(streamed.text.split())
    return {
        "model": question["model"],
        "engine": question["owned_by"],
        "backend": streamed.backend,
        "status": streamed.status,
        "first_token": f"{streamed.first * 1000:.0f} ms",
        "rate": f"{rate:.0f}" if rate else None,
        "answer": words if len(words) <= 48 else f"{words[:45]}...",
    }
