"""Limits: how many requests and tokens a minute, and how many requests at a time. Pure: the time is given.

A minute's allowance is a bucket that fills evenly: after a pause all of it can be used at once, and then as much as has
come in meanwhile. Tokens are known when an answer ends, so a bucket of tokens may go below zero; who is there waits
until it is above again. Counts are those of one process, and gone when it ends.
"""

from __future__ import annotations

from math import ceil
from typing import Annotated

from msgspec import Meta, Struct

from roundhouse_gateway import errors

Count = Annotated[int, Meta(ge=1)]

_MINUTE = 60.0


class Limits(Struct, frozen=True, forbid_unknown_fields=True):
    """What somebody may; None: as much as he likes."""

    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    max_in_flight: Count | None = None

    def __bool__(self) -> bool:
        return self != NONE


NONE = Limits()


class Bucket:
    """An allowance of `limit` a minute; `now` is in seconds of a clock that never goes back."""

    __slots__ = ("_at", "_level", "limit")

    def __init__(self, limit: int, now: float) -> None:
        self.limit = limit
        self._level = float(limit)
        self._at = now

    def level(self, now: float) -> float:
        """Return what is left."""
        self._level = min(self.limit, self._level + (now - self._at) * self.limit / _MINUTE)
        self._at = now
        return self._level

    def take(self, amount: float) -> None:
        """Use some of it, as of the last look."""
        self._level -= amount

    def wait(self, now: float, amount: float) -> float:
        """Return the seconds until `amount` is there; 0 if it is."""
        return max(amount - self.level(now), 0.0) * _MINUTE / self.limit

    def change(self, limit: int, now: float) -> None:
        """Take another limit. What was used stays used."""
        used = self.limit - self.level(now)
        self.limit = limit
        self._level = limit - used


class Meter:
    """The limits of a key or of a model, and what is used of them. `title` says whose."""

    __slots__ = ("_limits", "_requests", "_tokens", "in_flight", "title")

    def __init__(self, title: str, limits: Limits, now: float) -> None:
        self.title = title
        self.in_flight = 0
        self._requests: Bucket | None = None
        self._tokens: Bucket | None = None
        self.change(limits, now)

    def change(self, limits: Limits, now: float) -> None:
        """Take other limits. What was used stays used."""
        self._limits = limits
        self._requests = _changed(self._requests, limits.requests_per_minute, now)
        self._tokens = _changed(self._tokens, limits.tokens_per_minute, now)

    def refusal(self, now: float) -> tuple[str, float] | None:
        """Return which limit is reached, and for how many seconds; None if none is."""
        limits = self._limits
        if limits.max_in_flight is not None and self.in_flight >= limits.max_in_flight:
            return f"{limits.max_in_flight} requests in flight", 1.0
        if self._requests is not None and (wait := self._requests.wait(now, 1.0)):
            return f"{limits.requests_per_minute} requests per minute", wait
        if self._tokens is not None and (wait := self._tokens.wait(now, 1.0)):
            return f"{limits.tokens_per_minute} tokens per minute", wait
        return None

    def enter(self) -> None:
        """Begin a request that was not refused."""
        self.in_flight += 1
        if self._requests is not None:
            self._requests.take(1.0)

    def leave(self, tokens: int) -> None:
        """End it; it used that many tokens."""
        self.in_flight -= 1
        if self._tokens is not None:
            self._tokens.take(tokens)

    def headers(self, now: float) -> dict[str, tuple[Bucket, float]]:
        """Return the buckets and their levels, by what OpenAI's headers call them."""
        found = {"requests": self._requests, "tokens": self._tokens}
        return {name: (bucket, bucket.level(now)) for name, bucket in found.items() if bucket is not None}


def _changed(bucket: Bucket | None, limit: int | None, now: float) -> Bucket | None:
    if limit is None:
        return None
    if bucket is None:
        return Bucket(limit, now)
    if bucket.limit != limit:
        bucket.change(limit, now)
    return bucket


def admit(meters: tuple[Meter, ...], now: float) -> bytes:
    """Begin a request under all `meters`, and return the header lines that tell its client what is left.

    Raises GatewayError: rate_limited; then nothing is counted.
    """
    for meter in meters:
        refusal = meter.refusal(now)
        if refusal is not None:
            limit, wait = refusal
            raise errors.rate_limited(meter.title, limit, max(ceil(wait), 1), _lines(meters, now))
    for meter in meters:
        meter.enter()
    return _lines(meters, now)


def _lines(meters: tuple[Meter, ...], now: float) -> bytes:
    """Return the headers of OpenAI's API: of each kind the bucket that has the least left."""
    least: dict[str, tuple[Bucket, float]] = {}
    for meter in meters:
        for name, (bucket, level) in meter.headers(now).items():
            if name not in least or level < least[name][1]:
                least[name] = (bucket, level)
    return "".join([_line(name, *found) for name, found in least.items()]).encode()


def _line(name: str, bucket: Bucket, level: float) -> str:
    reset = duration((bucket.limit - level) * _MINUTE / bucket.limit)
    return (
        f"x-ratelimit-limit-{name}: {bucket.limit}\r\n"
        f"x-ratelimit-remaining-{name}: {max(int(level), 0)}\r\n"
        f"x-ratelimit-reset-{name}: {reset}\r\n"
    )


def duration(seconds: float) -> str:
    """Return a time as OpenAI's headers have it: 20ms, 1.5s, 6m0s."""
    if seconds < 1:
        return f"{ceil(seconds * 1000)}ms"
    minutes, rest = divmod(seconds, _MINUTE)
    if not minutes:
        return f"{rest:.3g}s"
    return f"{int(minutes)}m{int(rest)}s"
