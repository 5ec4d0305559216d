"""The account of one inference request: who asks, what was used, how long it took, how it ended.

It is opened when the request has been read, and closed once, whatever happens; then limits, metrics and the log get to
know.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from roundhouse_gateway import limits, usage
from roundhouse_gateway.metrics import refused

if TYPE_CHECKING:
    from roundhouse_gateway.access import Caller
    from roundhouse_gateway.backend import Backend
    from roundhouse_gateway.errors import GatewayError
    from roundhouse_gateway.gateway import Gateway
    from roundhouse_gateway.limits import Meter
    from roundhouse_gateway.request import Request
    from roundhouse_gateway.routing import Route
    from roundhouse_gateway.tracing import Span
    from roundhouse_gateway.usage import Usage

#: How a request may end, by the code of the error that ended it; any other error is a refusal.
_ENDS = {
    "engine_lost": "engine lost",
    "engine_unreachable": "engine lost",
    "engine_timeout": "timed out",
    "request_timeout": "timed out",
    "draining": "gateway stopped",
}

#: How others end.
_COMPLETE, _CLIENT_LEFT = "complete", "client left"

# An engine tells nothing of a stream unless its client asks for that, nor of an answer that broke off. Limits count
# events then, and a token for so many bytes of the request (up to that many: an image is no text) and of an answer that
# is none of events.
_BYTES_OF_TOKEN, _MOST_OF_PROMPT = 4, 32_768

#: Status of requests whose clients left before there was one; nginx has it, too.
_LEFT = 499


class Account:
    """One request. Times are those of the event loop's clock, in seconds."""

    __slots__ = (
        "_began",
        "_closed",
        "_first_byte",
        "_gateway",
        "_last",
        "_request",
        "_size",
        "events",
        "key",
        "meters",
        "route",
        "span",
        "usage",
    )

    def __init__(self, gateway: Gateway, request: Request, now: float) -> None:
        self._gateway = gateway
        self._request = request
        self._began = now
        self.meters: tuple[Meter, ...] = ()
        self._first_byte = self._last = 0.0
        self._closed = False
        # What becomes known: the name of the key that asks, where the request goes, and the tokens of an answer that
        # comes in pieces.
        self.key = ""
        self.route: Route | None = None
        self.usage: Usage | None = None
        self.span: Span | None = None

    def enter(self, caller: Caller, route: Route, size: int) -> None:
        """Count it on all limits, and begin its span; `size` is that of its body, in bytes.

        Raises GatewayError: rate_limited.
        """
        gateway = self._gateway
        meters = gateway.access.meters(caller, route)
        if meters:
            self._request.limits = limits.admit(meters, self._began)
            self.meters = meters
            # For the case that nobody tells the tokens: what was sent, and the events of a stream that came.
            self._size, self.events = size, 0
        if gateway.tracer is not None:
            self.span = gateway.tracer.begin(self._request, route)

    def answered(self, now: float) -> None:
        """Note the first byte of the answer."""
        self._first_byte = now

    def chunk(self, now: float, backend: Backend) -> None:
        """Note a piece of a stream."""
        if not self._first_byte:
            self._first_byte = now
        elif self._last:
            gaps, gap = backend.metrics.gaps, int((now - self._last) * 1000 + 0.5)
            gaps[gap] = gaps.get(gap, 0) + 1
        self._last = now

    def complete(self, now: float, backend: Backend, status: int, size: int) -> None:
        """Close it: the answer is complete."""
        if self.usage is not None:
            self.usage.end()
        self._close(now, backend, status, "", size, _COMPLETE, self._tokens())

    def complete_at_once(self, now: float, backend: Backend, body: bytes, *, json: bool) -> None:
        """Close it: a whole answer came in one piece."""
        self._first_byte = now
        self._close(now, backend, 200, "", len(body), _COMPLETE, usage.of(body) if json else usage.NO_TOKENS)

    def failed(
        self, now: float, error: GatewayError, backend: Backend | None = None, status: int = 0, size: int = 0
    ) -> None:
        """Close it with an error; `status` is that of the answer, if it had begun."""
        end = _ENDS.get(error.code, "refused")
        self._close(now, backend, status or error.status, error.code, size, end, self._tokens())

    def left(self, now: float, backend: Backend | None, size: int) -> None:
        """Close it: the client has left, or does not read any more."""
        if backend is not None and not self._closed:
            backend.metrics.left += 1
        self._close(now, backend, _LEFT, "client_left", size, _CLIENT_LEFT, self._tokens())

    def _tokens(self) -> tuple[int, int]:
        told = self.usage
        return (told.read, told.written) if told is not None else usage.NO_TOKENS

    def _close(
        self,
        now: float,
        backend: Backend | None,
        status: int,
        code: str,
        size: int,
        end: str,
        tokens: tuple[int, int],
    ) -> None:
        if self._closed:
            return
        self._closed = True
        gateway, key, began = self._gateway, self.key, self._began
        duration = int((now - began) * 1000 + 0.5)
        first = duration
        if self._first_byte != now:
            first = int((self._first_byte - began) * 1000 + 0.5) if self._first_byte else -1
        for meter in self.meters:
            meter.leave(self._used(tokens, backend, size, end))
        if backend is not None:
            metrics = backend.metrics
            how = (key, status, code, first, duration)
            sums = metrics.ended.get(how)
            if sums is None:
                metrics.ended[how] = [1, *tokens]
            else:
                sums[0] += 1
                sums[1] += tokens[0]
                sums[2] += tokens[1]
        else:
            route = self.route
            labels = (route.model, route.owned_by) if route is not None else ("", "")
            refused(gateway.counters, *labels, key, status, code)
        log = gateway.request_log
        if log.always or status >= 400 or code or log.wants_next():
            log.add(self._request, self.route, key, backend, status, code, size, first, duration, tokens, end)
        if self.span is not None:
            self.span.end(backend.name if backend is not None else "", status, code, tokens)

    def _used(self, tokens: tuple[int, int], backend: Backend | None, size: int, end: str) -> int:
        """Return how many tokens count: what the engine tells in the end, or else an estimate, if it worked at all."""
        told = sum(tokens)
        is_complete = end == _COMPLETE
        if told and is_complete:
            return told
        if backend is None or not (self._first_byte or end == _CLIENT_LEFT):
            return told
        prompt = min(self._size // _BYTES_OF_TOKEN, _MOST_OF_PROMPT)
        return max(told, prompt + (self.events or size // _BYTES_OF_TOKEN))
