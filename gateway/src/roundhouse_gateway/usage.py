"""Tokens that an answer says were used. Pure: nothing here does I/O.

Engines tell in `usage`: of chats `prompt_tokens` and `completion_tokens`, of messages and responses `input_tokens` and
`output_tokens`. The bytes `"usage"` followed by a colon can't come from a text in an answer, whose quotes are escaped.
What is told more than once, as in streams, grows; the most counts.
"""

from __future__ import annotations

import re

_NAME = b'"usage"'
_OBJECT = re.compile(rb'"usage"[ \t\r\n]*:[ \t\r\n]*\{')
_COUNT = re.compile(rb'"(prompt|input|completion|output)_tokens"[ \t\r\n]*:[ \t\r\n]*(\d{1,12})(?!\d)')
_READ = (b"prompt", b"input")

# As vLLM, SGLang and OpenAI write it: found with half the work.
_USUAL = re.compile(
    rb'"usage": ?\{"prompt_tokens": ?(\d{1,12}),(?: ?"total_tokens": ?\d+,)? ?"completion_tokens": ?(\d{1,12})[,}]'
)

# Bytes of a usage that are looked at; and kept of a piece, in case that it ends in the middle of one.
_SIZE = 1024


def of(data: bytes) -> tuple[int, int]:
    """Return the tokens of the prompt and of the answer that the last usage in `data` tells; 0 where it does not."""
    start = data.rfind(_NAME)
    if start < 0:
        return 0, 0
    usual = _USUAL.match(data, start)
    if usual is not None:
        return int(usual[1]), int(usual[2])
    read = written = 0
    if _OBJECT.match(data, start):
        for what, digits in _COUNT.findall(data, start, start + _SIZE):
            if what in _READ:
                read = int(digits)
            else:
                written = int(digits)
    return read, written


class Usage:
    """What an answer that comes in pieces has told so far: tokens of the prompt, and of the answer."""

    __slots__ = ("_kept", "read", "written")

    def __init__(self) -> None:
        self.read = 0
        self.written = 0
        self._kept = b""

    def feed(self, piece: bytes) -> None:
        """Look through the next piece, which may be cut anywhere."""
        window = self._kept + piece
        if _NAME in window:
            self.find(window)
        self._kept = window[-_SIZE:]

    def find(self, data: bytes) -> None:
        """Look through a piece in which nothing is cut."""
        read, written = of(data)
        self.read, self.written = max(self.read, read), max(self.written, written)
