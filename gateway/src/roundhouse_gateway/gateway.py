"""The state of a running gateway: its settings, its live map and keys, its backends and its clients' connections."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from roundhouse_gateway import access, routing, tracing
from roundhouse_gateway.access import Access, KeysError
from roundhouse_gateway.backend import IDLE_EXPIRY
from roundhouse_gateway.counters import Counters, Slab
from roundhouse_gateway.fleet import Fleet
from roundhouse_gateway.health import Prober
from roundhouse_gateway.logs import fields
from roundhouse_gateway.metrics import KEYS_REFUSED, MAP_REFUSED
from roundhouse_gateway.request_log import RequestLog
from roundhouse_gateway.resolver import Resolver
from roundhouse_gateway.routing import MapError, RoutingTable
from roundhouse_gateway.watched_file import WatchedFile

if TYPE_CHECKING:
    from roundhouse_gateway.relay import GatewayProtocol
    from roundhouse_gateway.settings import Settings
    from roundhouse_gateway.tracing import Tracer

log = logging.getLogger(__name__)

# Seconds between two looks at the files.
_LOOK_INTERVAL = 1.0


class Loads:
    """How often a file was loaded or refused since the start, and why it was refused last."""

    def __init__(self, counters: Counters, name: str, refused: str) -> None:
        self.at = datetime.now(UTC)
        self.last_error: str | None = None
        # Whether that may pass by itself: the file could not be read.
        self._passes = False
        self._counters = counters
        self._reloads = counters.series(f"roundhouse_{name}_reloads", ())
        self._refusals = counters.series(f"roundhouse_{name}_refusals", ())
        self._refused = counters.series(refused, ())

    def loaded(self) -> None:
        """Note that it was loaded."""
        self.at = datetime.now(UTC)
        self._counters.cells[self._reloads] += 1.0
        self._recovered()

    def refused(self, error: Exception, *, passes: bool = False) -> bool:
        """Note that it was refused. Returns False if that is known already."""
        is_new = self.last_error != str(error)
        self._counters.cells[self._refusals] += is_new
        self._counters.cells[self._refused] = 1.0
        self.last_error, self._passes = str(error), passes
        return is_new

    def unchanged(self) -> None:
        """Note that it can be read, and is what was loaded."""
        if self._passes:
            self._recovered()

    def _recovered(self) -> None:
        self.last_error, self._passes = None, False
        self._counters.cells[self._refused] = 0.0


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
        self.map_loads = Loads(self.counters, "map", MAP_REFUSED)
        self.keys_loads = Loads(self.counters, "keys", KEYS_REFUSED)
        self._prober = Prober()
        self._resolver = Resolver(self._found)
        self._tick: asyncio.TimerHandle | None = None
        self._map = _watched_map(settings.routes)
        self._keys = _watched_keys(settings.keys) if settings.keys is not None else None
        keys = access.load(self._keys.content) if self._keys is not None else access.OPEN
        self._apply(routing.load(self._map.content), keys)

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
        self._try_map(look=False)
        self._try_keys(look=False)

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
        self._try_map(look=True)
        self._try_keys(look=True)

    def _try_map(self, *, look: bool) -> None:
        try:
            if not _is_new(self._map, look=look):
                self.map_loads.unchanged()
                return
            table = routing.load(self._map.content)
            self._apply(table, self.access.keys)
        except OSError as error:
            unread = MapError([f"The map can't be read: {error.strerror or error}."])
            self._refuse_map(unread, again=not look, passes=True)
        except MapError as error:
            self._refuse_map(error, again=True)
        else:
            self.map_loads.loaded()
            self._watch()

    def _refuse_map(self, error: MapError, *, again: bool, passes: bool = False) -> None:
        if self.map_loads.refused(error, passes=passes) or again:
            log.error("map refused", extra=fields(path=str(self.settings.routes), problems=error.problems))

    def _try_keys(self, *, look: bool) -> None:
        if self._keys is None:
            return
        try:
            if not _is_new(self._keys, look=look):
                self.keys_loads.unchanged()
                return
            keys = access.load(self._keys.content)
        except OSError as error:
            unread = KeysError([f"The keys can't be read: {error.strerror or error}."])
            self._refuse_keys(unread, again=not look, passes=True)
        except KeysError as error:
            self._refuse_keys(error, again=True)
        else:
            self.keys_loads.loaded()
            self._apply_keys(keys)

    def _refuse_keys(self, error: KeysError, *, again: bool, passes: bool = False) -> None:
        if self.keys_loads.refused(error, passes=passes) or again:
            log.error("keys refused", extra=fields(path=str(self.settings.keys), problems=error.problems))

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


def _is_new(file: WatchedFile, *, look: bool) -> bool:
    if look:
        return file.look()
    file.read()
    return True


def _watched_map(path: Path) -> WatchedFile:
    try:
        return WatchedFile(path)
    except OSError as error:
        raise MapError([f"The map can't be read: {error.strerror or error}."]) from None


def _watched_keys(path: Path) -> WatchedFile:
    try:
        return WatchedFile(path)
    except OSError as error:
        raise KeysError([f"The keys can't be read: {error.strerror or error}."]) from None


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
