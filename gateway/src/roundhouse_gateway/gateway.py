"""The state of a running gateway: its settings, its live map, its backends and its clients' connections."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from roundhouse_gateway import routing
from roundhouse_gateway.backend import IDLE_EXPIRY
from roundhouse_gateway.fleet import Fleet
from roundhouse_gateway.health import Prober
from roundhouse_gateway.logs import fields
from roundhouse_gateway.resolver import Resolver
from roundhouse_gateway.routing import MapError, RoutingTable

if TYPE_CHECKING:
    from roundhouse_gateway.relay import GatewayProtocol
    from roundhouse_gateway.settings import Settings

log = logging.getLogger(__name__)

# Seconds between two looks at the map's file.
_LOOK_INTERVAL = 1.0


class Gateway:
    """Everything that the parts of one gateway share. It lives as long as its application."""

    def __init__(self, settings: Settings) -> None:
        """Load the map. Raises MapError."""
        self.settings = settings
        self.fleet = Fleet()
        self.connections: set[GatewayProtocol] = set()
        self.draining = False
        self.loaded_at = datetime.now(UTC)
        self.last_error: str | None = None
        self._prober = Prober()
        self._resolver = Resolver(self._found)
        self._tick: asyncio.TimerHandle | None = None
        # The content of the file which was loaded or refused last, what was seen at the last look, and the
        # inode.
        self._known, self._inode = self._read()
        self._seen = self._known
        self._apply(routing.load(self._known))

    def start(self) -> None:
        """Begin to look up and to probe backends, and to look at the map's file."""
        self._watch()
        self._tick = asyncio.get_running_loop().call_later(_LOOK_INTERVAL, self._look)

    async def stop(self) -> None:
        """End the work in the background, and close the connections to engines."""
        if self._tick is not None:
            self._tick.cancel()
        await self._resolver.stop()
        await self._prober.stop()
        self.fleet.close()

    def reload(self) -> None:
        """Load the map now. If it is bad, the old one keeps serving."""
        try:
            self._seen, self._inode = self._read()
            self._known = self._seen
            table = routing.load(self._known)
        except MapError as error:
            self._refuse(error)
            return
        self.last_error = None
        self._apply(table)
        self._watch()

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
        try:
            content, inode = self._read()
        except MapError as error:
            if self.last_error != str(error):
                self._refuse(error)
            return
        # A file that was put in place of the old one is complete. One that is written in place may be half
        # written, so it has to look the same twice.
        if content != self._known and (inode != self._inode or content == self._seen):
            self.reload()
        self._seen = content

    def _read(self) -> tuple[bytes, int]:
        """Return the content and the inode of the map's file. Raises MapError."""
        try:
            with self.settings.routes.open("rb") as file:
                return file.read(), self.settings.routes.stat().st_ino
        except OSError as error:
            raise MapError([f"The map can't be read: {error.strerror or error}."]) from None

    def _refuse(self, error: MapError) -> None:
        self.last_error = str(error)
        log.error("map refused", extra=fields(path=str(self.settings.routes), problems=error.problems))

    def _apply(self, table: RoutingTable) -> None:
        self.fleet.apply(table)
        self.loaded_at = datetime.now(UTC)
        log.info("map loaded", extra=fields(revision=table.revision, models=len(table.models)))
