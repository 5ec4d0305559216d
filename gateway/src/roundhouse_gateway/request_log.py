"""The log of requests: one line for each, as text or as JSON. No prompt, no answer, no key.

Lines are collected and written a few times a second, for a write costs more than all else that is done for a line.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import sys
import time
from typing import TYPE_CHECKING, Any, Literal, TextIO

from roundhouse_gateway import inference
from roundhouse_gateway.logs import quoted

if TYPE_CHECKING:
    from roundhouse_gateway.backend import Backend
    from roundhouse_gateway.request import Request
    from roundhouse_gateway.routing import Route

# Seconds until what was logged is written, and characters that are not kept longer.
_PAUSE, _MOST = 0.2, 65_536


class RequestLog:
    """Writes lines. `sample` is the share of requests that are logged; those that went wrong always are."""

    def __init__(self, kind: Literal["text", "json"], sample: float, out: TextIO | None = None) -> None:
        self._is_json = kind == "json"
        self._sample = sample
        #: Whether every request is logged.
        self.always = sample >= 1.0
        self._out = out
        self._due = 0.0
        self._lines: list[str] = []
        self._size = 0
        self._timer: asyncio.TimerHandle | None = None
        self._second, self._when = 0, ""

    def wants_next(self) -> bool:
        """Tell whether the next request that ended well is to be logged."""
        self._due += self._sample
        if self._due < 1.0:
            return False
        self._due -= 1.0
        return True

    def add(
        self,
        request: Request,
        route: Route | None,
        key: str,
        backend: Backend | None,
        status: int,
        code: str,
        size: int,
        first_byte: int,
        duration: int,
        tokens: tuple[int, int],
        end: str,
    ) -> None:
        """Log a request. Times are in milliseconds, `size` in bytes.

        `first_byte` is -1 if there was none, and tokens are 0 where they are not known.
        """
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second, self._when = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        # A path that is none of ours might have anything in it.
        path = request.path.decode() if request.path in inference.ENDPOINTS else ""
        model, engine = (route.model, route.owned_by) if route is not None else ("", "")
        name = backend.name if backend is not None else ""
        milliseconds = int((now - second) * 1000)
        if self._is_json:
            first = "null" if first_byte < 0 else str(first_byte)
            used = f'"tokens_in": {tokens[0]}, "tokens_out": {tokens[1]}' if any(tokens) else _UNKNOWN
            text = (
                f'{{"time": "{self._when}.{milliseconds:03d}Z", "level": "info", "event": "request", '
                f'"request_id": {_json(request.id)}{_json_names(path, key, model, engine, name)}, '
                f'"status": {status}, "code": "{code}", "bytes": {size}, "first_byte_ms": {first}, '
                f'"ms": {duration}, {used}, "end": "{end}"}}\n'
            )
        else:
            first = "" if first_byte < 0 else f" first_byte_ms={first_byte}"
            used = f" tokens_in={tokens[0]} tokens_out={tokens[1]}" if any(tokens) else ""
            text = (
                f"{self._when}.{milliseconds:03d}Z INFO request id={quoted(request.id)}"
                f"{_names(path, key, model, engine, name)} status={status}{code and f' code={code}'} bytes={size}"
                f'{first} ms={duration}{used} end="{end}"\n'
            )
        self._lines.append(text)
        self._size += len(text)
        if self._size > _MOST:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_PAUSE, self.flush)

    def flush(self) -> None:
        """Write what was collected."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        lines, self._lines, self._size = self._lines, [], 0
        if lines:
            out = self._out or sys.stderr
            # Nobody's request is to fail because there is no room for its line.
            with contextlib.suppress(OSError, ValueError):
                out.write("".join(lines))
                out.flush()


_json: Any = json.dumps
_UNKNOWN = '"tokens_in": null, "tokens_out": null'
_NAMES = ("path", "key", "model", "engine", "backend")


# Names are the operator's, so they come again and again.
@functools.lru_cache(4096)
def _names(*values: str) -> str:
    return "".join(f" {name}={quoted(value)}" for name, value in zip(_NAMES, values, strict=True) if value)


@functools.lru_cache(4096)
def _json_names(*values: str) -> str:
    return "".join(f', "{name}": {json.dumps(value)}' for name, value in zip(_NAMES, values, strict=True))
