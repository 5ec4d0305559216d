"""The state of a running gateway: its settings, its live map and keys, its backends and its clients' connections."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from roundhouse_gateway import access, routing, tracing
from roundhouse_gateway.access import Access, KeysError
from roundhouse_gateway.backend import IDLE_EXPIRY
from roundhouse_gateway.counters import Counters, Slab
from roundhouse_gateway.fleet import Fleet
from roundhouse_gateway.health import Prober
from roundhouse_gateway.loads import Loads, watched
from roundhouse_gateway.logs import fields
from roundhouse_gateway.metrics import KEYS_REFUSED, MAP_REFUSED
from roundhouse_gateway.request_log import RequestLog
from roundhouse_gateway.resolver import Resolver
from roundhouse_gateway.routing import MapError, RoutingTable

if TYPE_CHECKING:
    from roundhouse_gateway.relay import GatewayProtocol
    from roundhouse_gateway.settings import Settings
    from roundhouse_gateway.tracing import Tracer

log = logging.getLogger(__name__)

# Seconds between two looks at the files.
_LOOK_INTERVAL = 1.0


class Gateway:
    """Everything that the parts of one gateway share. It lives as long as its application."""

    def __init__(self, settings: Settings, slabs: Sequence[Slab] | None = None) -> None:
        """Load the map and the keys. Raises MapError or KeysError.

        `slabs` is the memory for the counts of each worker.
        """
        self.settings = settings
        self.counters = Counters(slabs or [Slab()])
        self.request_log = RequestLog(settings.log, settings.log_sample)
        self.tracer: Tracer | None = None
        # Whether requests have more to do than to be passed on, whoever asks.
        self.limits_or_traces = False
        self.fleet = Fleet(self.counters)
        self.access = Access()
        self.connections: set[GatewayProtocol] = set()
        self.draining = False
        map_file = watched(settings.routes, "map", MapError)
        keys_file = watched(settings.keys, "keys", KeysError) if settings.keys is not None else None
        self.map_loads = Loads("map", map_file, self.counters, MAP_REFUSED)
        self.keys_loads = Loads("keys", keys_file, self.counters, KEYS_REFUSED)
        self._prober = Prober()
        self._resolver = Resolver(self._found)
        self._tick: asyncio.TimerHandle | None = None
        keys = access.load(keys_file.content) if keys_file is not None else access.OPEN
        self._apply(routing.load(map_file.content), keys)

    def start(self) -> None:
        """Begin to look up and to probe backends, and to look at the files."""
        self.tracer = tracing.from_environment()
        self.limits_or_traces = self.access.has_model_limits or self.tracer is not None
        self._watch()
        self._tick = asyncio.get_running_loop().call_later(_LOOK_INTERVAL, self._look)

    async def stop(self) -> None:
        """End the work in the background, and close the connections to engines."""
        if self._tick is not None:
            self._tick.cancel()
        await self._resolver.stop()
        await self._prober.stop()
        self.fleet.close()
        self.fleet.publish()
        self.request_log.flush()
        if self.tracer is not None:
            self.tracer.stop()

    def reload(self) -> None:
        """Load both files now. If one is bad, what was loaded before goes on."""
        self._try(look=False)

    def _watch(self) -> None:
        self._resolver.watch(self.fleet.names())
        self._prober.watch(self.fleet)

    def _found(self, url: str, addresses: tuple[str, ...]) -> None:
        self.fleet.found(url, addresses)
        self._prober.watch(self.fleet)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        self._tick = loop.call_later(_LOOK_INTERVAL, self._look)
        self.fleet.sweep(loop.time() - IDLE_EXPIRY)
        self._try(look=True)

    def _try(self, *, look: bool) -> None:
        if self.map_loads.attempt(
            lambda content: self._apply(routing.load(content), self.access.keys), look=look
        ):
            self._watch()
        self.keys_loads.attempt(lambda content: self._apply_keys(access.load(content)), look=look)

    def _apply(self, table: RoutingTable, keys: access.Keys) -> None:
        """Make a map the live one. Raises MapError."""
        self.fleet.apply(table, _engine_keys(table))
        log.info("map loaded", extra=fields(revision=table.revision, models=len(table.models)))
        self._apply_keys(keys)

    def _apply_keys(self, keys: access.Keys) -> None:
        is_new = keys != self.access.keys
        self.access.apply(keys, self.fleet.table, asyncio_time())
        self.limits_or_traces = self.access.has_model_limits or self.tracer is not None
        if not is_new:
            return
        count = "open" if keys.keys is None else len(keys.keys)
        log.info("keys loaded", extra=fields(revision=keys.revision, keys=count))
        for key in keys.keys or ():
            unknown = (
                [] if key.models == "all" else [m for m in key.models if m not in self.fleet.table.names]
            )
            if unknown:
                # Not refused: the model may come with the next map.
                log.warning("key for models that are not served", extra=fields(key=key.name, models=unknown))


def asyncio_time() -> float:
    """Return the time of the loop's clock, also where no loop runs yet."""
    try:
        return asyncio.get_running_loop().time()
    except RuntimeError:
        return 0.0


def _engine_keys(table: RoutingTable) -> dict[str, bytes]:
    """Return the keys that engines themselves want, by the paths of their files. Raises MapError."""
    found: dict[str, bytes] = {}
    problems = []
    for path in {route.key_file for route in table.routes if route.key_file is not None}:
        try:
            key = Path(path).read_bytes().strip()
        except OSError as error:
            problems.append(f"The engine's key {path} can't be read: {error.strerror or error}.")
            continue
        if not key or not key.isascii() or not key.decode().isprintable():
            problems.append(f"The engine's key {path} must be one line of printable ASCII characters.")
        found[path] = key
    if problems:
        raise MapError(sorted(problems))
    return found
