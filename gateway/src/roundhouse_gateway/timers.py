"""A deadline that is cheap to move."""

from asyncio import AbstractEventLoop, TimerHandle
from collections.abc import Callable
from math import inf

# The event loop's clock has milliseconds; a timer may come that much early.
_RESOLUTION = 0.001


class Deadline:
    """The one deadline of its owner. It is moved with every piece of data, so moving it only writes a number.

    The event loop's timer behind it runs on; when it ends too early it is started again for what is left.
    `close` has to be called at last: it ends the timer, which refers to the owner.
    """

    __slots__ = ("_armed", "_due", "_expired", "_handle", "_loop")

    def __init__(self, loop: AbstractEventLoop, expired: Callable[[], None]) -> None:
        self._loop = loop
        self._expired: Callable[[], None] | None = expired
        self._handle: TimerHandle | None = None
        self._armed = inf
        self._due = inf

    def set(self, seconds: float) -> float:
        """Let `expired` be called in `seconds`, unless the deadline is moved before that. Returns the time now."""
        now = self._loop.time()
        due = self._due = now + seconds
        if due < self._armed:
            if self._handle is not None:
                self._handle.cancel()
            self._armed = due
            self._handle = self._loop.call_later(seconds, self._fire)
        return now

    def clear(self) -> None:
        """Let nothing be called."""
        self._due = inf

    def close(self) -> None:
        """End the timer for good."""
        self._due = inf
        self._expired = None
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _fire(self) -> None:
        self._handle = None
        self._armed = inf
        due = self._due
        if due == inf or self._expired is None:
            return
        left = due - self._loop.time()
        if left > _RESOLUTION:
            self._armed = due
            self._handle = self._loop.call_later(left, self._fire)
        else:
            self._due = inf
            self._expired()
