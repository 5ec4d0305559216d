"""Tokens that an answer says were used. Pure: nothing here does I/O.

Engines tell in `usage`: of chats `prompt_tokens` and `completion_tokens`, of messages and responses `input_tokens` and
`output_tokens`. Only the `usage` of the answer itself counts, or that of its `response` or `message` in streams: what
stands deeper may be an echo of what the client sent (tools, metadata), who would decide then how much he used. What is
told more than once, as in streams, grows; the most counts.
"""

from __future__ import annotations

import json
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

_NAME = b'"usage"'

# Bytes of an answer that are kept until it is complete, to be read then; of a longer one nothing is known, but where
# engines echo nothing, its end.
_MOST, _END = 1 << 20, 1024

Count = Annotated[int, Meta(ge=0, le=1_000_000_000)]


class _Told(Struct, gc=False):
    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    input_tokens: Count | None = None
    output_tokens: Count | None = None


class _Part(Struct, gc=False):
    usage: _Told | None = None


class _Answer(Struct, gc=False):
    usage: _Told | None = None
    response: _Part | None = None
    message: _Part | None = None


_decode_whole = msgspec.json.Decoder(_Part).decode
_decode_event = msgspec.json.Decoder(_Answer).decode

NO_TOKENS = (0, 0)


def of(body: bytes) -> tuple[int, int]:
    """Return the tokens of the prompt and of the answer that a whole answer in JSON tells; 0 where it does not."""
    try:
        told = _decode_whole(body).usage
    except (msgspec.DecodeError, RecursionError):
        return NO_TOKENS
    return NO_TOKENS if told is None else _tokens(told)


def _tokens(told: _Told) -> tuple[int, int]:
    return told.prompt_tokens or told.input_tokens or 0, told.completion_tokens or told.output_tokens or 0


def _at_end(end: bytes) -> tuple[int, int]:
    """Return the tokens of the last usage in the end of an answer."""
    start = end.find(b"{", end.rfind(_NAME))
    try:
        told, _ = json.JSONDecoder().raw_decode(end[start:].decode(errors="replace"))
        return _tokens(msgspec.convert(told, _Told))
    except ValueError:  # msgspec's is one, too
        return NO_TOKENS


class Usage:
    """What an answer that comes in pieces has told so far. `echoes`: the engine may repeat what the client sent."""

    __slots__ = ("_echoes", "_is_stream", "_kept", "_size", "read", "written")

    def __init__(self, *, is_stream: bool, echoes: bool) -> None:
        self.read = 0
        self.written = 0
        self._is_stream = is_stream
        self._echoes = echoes
        self._kept = bytearray()
        self._size = 0

    def feed(self, piece: bytes) -> None:
        """Take the next piece, which may be cut anywhere."""
        self._size += len(piece)
        kept = self._kept
        kept += piece
        if self._is_stream:
            lines, newline, rest = kept.rpartition(b"\n")
            if newline:
                self.events(bytes(lines))
                self._kept = rest
        if len(self._kept) > _MOST:
            self._kept = self._kept[-_END:] if not self._is_stream else bytearray()

    def events(self, data: bytes) -> None:
        """Take events of a stream in which no line is cut."""
        if _NAME not in data:
            return
        for line in data.splitlines():
            if line.startswith(b"data:") and _NAME in line:
                try:
                    answer = _decode_event(line[5:])
                except (msgspec.DecodeError, RecursionError):
                    continue
                for part in (answer, answer.response, answer.message):
                    if part is not None and part.usage is not None:
                        self._add(*_tokens(part.usage))

    def end(self) -> None:
        """Take note that the answer is complete."""
        if self._is_stream:
            self.events(bytes(self._kept))
        elif self._size == len(self._kept):
            self._add(*of(bytes(self._kept)))
        elif not self._echoes:
            self._add(*_at_end(bytes(self._kept)))

    def _add(self, read: int, written: int) -> None:
        self.read, self.written = max(self.read, read), max(self.written, written)
