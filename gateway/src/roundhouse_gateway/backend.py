"""Data plane, the engines' side: the state of a backend, its pool of connections, and the choice among several."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from math import ceil
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from roundhouse_gateway import errors
from roundhouse_gateway.logs import fields
from roundhouse_gateway.metrics import BackendMetrics

if TYPE_CHECKING:
    from roundhouse_gateway.counters import Counters
    from roundhouse_gateway.routing import Backend as Address
    from roundhouse_gateway.routing import Route
    from roundhouse_gateway.upstream import EngineConnection

log = logging.getLogger(__name__)

# Seconds after which a connection that nobody uses is closed. Engines on uvicorn close theirs after 5 s; to
# be first spares most requests the retry.
IDLE_EXPIRY = 4.0

# Failures in a row after which a backend gets no new requests.
_PATIENCE = 3

# What a load gets on top so that it is above any other.
_LAST_RESORT = 1e12


# What makes a backend the same one after a reload: its name, its URL, and what it serves.
Identity = tuple[str, str, str, str]


class Backend:
    """One address behind a route: what is known of its state, its counts, and its idle connections."""

    __slots__ = (
        "ejected",
        "failures",
        "faults",
        "host",
        "idle",
        "in_flight",
        "last_error",
        "max_in_flight",
        "metrics",
        "model",
        "name",
        "own_lines",
        "owned_by",
        "port",
        "removed",
        "suspect",
        "timeouts",
        "url",
        "weight",
    )

    def __init__(self, route: Route, address: Address, counters: Counters, key: bytes = b"") -> None:
        parts = urlsplit(address.url)
        # Those that were looked up come and go: in metrics they are one.
        label = address.name.partition("@")[0] if address.resolve else address.name
        self.metrics = BackendMetrics(counters, route.model, route.owned_by, label)
        self.name = address.name
        self.url = address.url
        self.host = parts.hostname or ""
        self.port = parts.port or 80
        self.idle: list[EngineConnection] = []
        self.in_flight = 0
        # Failures in a row, and in all.
        self.failures = self.faults = 0
        self.ejected = False
        # True from any failure to the next good probe: others are asked first meanwhile.
        self.suspect = False
        self.removed = False
        self.last_error: str | None = None
        self.configure(route, address, key)

    def configure(self, route: Route, address: Address, key: bytes = b"") -> None:
        """Take what the routing map says of this backend now; `key` is what the engine itself wants to see."""
        self.model = route.model
        self.owned_by = route.owned_by
        # The header lines that every request to it has.
        self.own_lines = b"Host: %b\r\n" % urlsplit(address.url).netloc.encode()
        if key:
            self.own_lines += b"Authorization: Bearer %b\r\n" % key
        self.weight = address.weight
        self.max_in_flight = route.max_in_flight
        self.timeouts = route.timeouts

    @property
    def identity(self) -> Identity:
        """Return what makes it the same after a reload."""
        return self.name, self.url, self.model, self.owned_by

    @property
    def state(self) -> str:
        """Return what /routes tells of this backend."""
        if self.removed:
            return "draining"
        return "ejected" if self.ejected else "healthy"

    def succeeded(self) -> None:
        """Note that the backend answered a request. An ejected one comes back by probe only."""
        if not self.ejected:
            self.failures = 0

    def failed(self, why: str) -> None:
        """Note that the backend did not answer a request or a probe."""
        self.failures += 1
        self.faults += 1
        self.suspect = True
        self.last_error = why
        if self.failures >= _PATIENCE and not (self.ejected or self.removed):
            self.ejected = True
            self.metrics.ejections += 1
            log.warning("backend ejected", extra=fields(backend=self.name, error=why))

    def probed(self, error: str | None) -> None:
        """Note the outcome of a probe: an error, or None for a good answer."""
        if error is not None:
            self.failed(error)
            return
        self.failures = 0
        self.suspect = False
        if self.ejected:
            self.ejected = False
            log.info("backend returned", extra=fields(backend=self.name))

    def take_idle(self) -> EngineConnection | None:
        """Return the connection that was used last, if there is one."""
        while self.idle:
            connection = self.idle.pop()
            if connection.is_usable():
                return connection
        return None

    def close_idle(self, before: float | None = None) -> None:
        """Close the idle connections, or those which have been idle since `before` (the loop's time)."""
        for connection in [c for c in self.idle if before is None or c.idle_since < before]:
            self.idle.remove(connection)
            connection.close()


def choose(route: Route, backends: Sequence[Backend], tried: Collection[Backend]) -> Backend | None:
    """Return the backend for a new request, or None if all that could take it have been tried.

    It is the one with the fewest requests in flight for its weight; among equals the first, and the
    caller moves a chosen one behind the others. One that failed and has not been probed since (it may be an
    engine that is just coming up again) is chosen only if there is no other. Raises
    GatewayError: engine_unavailable or engine_busy, if nothing was tried.
    """
    best: Backend | None = None
    least = 0.0
    full = False
    for backend in backends:
        if backend.ejected or not backend.weight or backend in tried:
            continue
        if backend.in_flight >= backend.max_in_flight:
            full = True
            continue
        load = (backend.in_flight + 1) / backend.weight
        if backend.suspect:
            load += _LAST_RESORT
        if best is None or load < least:
            best, least = backend, load
    if best is None and not tried:
        if full:
            raise errors.engine_busy(route.model, route.owned_by, route.max_in_flight)
        raise errors.engine_unavailable(route.model, route.owned_by, ceil(route.health.interval))
    return best
