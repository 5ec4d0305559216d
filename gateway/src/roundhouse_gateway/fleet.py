"""The backends of the live routing map: what stays, comes and goes when the map changes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from roundhouse_gateway import routing
from roundhouse_gateway.backend import Backend, Identity
from roundhouse_gateway.metrics import State
from roundhouse_gateway.routing import Backend as Address
from roundhouse_gateway.routing import Route, RoutingTable

if TYPE_CHECKING:
    from roundhouse_gateway.counters import Counters


class Fleet:
    """All backends, by route. Replacing the map keeps the counts and connections of backends that stay."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._keys: Mapping[str, bytes] = {}
        self.table: RoutingTable = routing.EMPTY
        self.leaving: list[Backend] = []
        self._by_address: dict[Identity, Backend] = {}
        self._by_route: dict[Route, list[Backend]] = {}
        # Base URLs by address, of URLs whose host is to be looked up.
        self._found: dict[str, tuple[str, ...]] = {}

    def backends_of(self, route: Route) -> list[Backend]:
        """Return the backends of a route of the live map."""
        return self._by_route[route]

    def apply(self, table: RoutingTable, keys: Mapping[str, bytes] | None = None) -> None:
        """Make `table` the live map.

        `keys` are those that engines want, by the paths of their files; None: as before.
        """
        if keys is not None:
            self._keys = keys
        known = {b.identity: b for b in (*self.leaving, *self._by_address.values())}
        by_address: dict[Identity, Backend] = {}
        by_route: dict[Route, list[Backend]] = {}
        for route in table.routes:
            backends = []
            key = self._keys.get(route.key_file or "", b"")
            for address in self._addresses(route):
                # Another model at the same place is another backend: requests in flight end as the old one.
                place = (address.name, address.url, route.model, route.owned_by)
                backend = known.pop(place, None)
                if backend is None:
                    backend = Backend(route, address, self._counters, key)
                else:
                    backend.removed = False
                    backend.configure(route, address, key)
                by_address[place] = backend
                backends.append(backend)
            by_route[route] = backends
        for backend in known.values():
            backend.removed = True
            backend.close_idle()
        gone = {*self._by_address.values(), *self.leaving} - set(by_address.values())
        self.leaving = [backend for backend in gone if backend.in_flight]
        self.table, self._by_address, self._by_route = table, by_address, by_route
        self.publish(gone)

    def names(self) -> set[str]:
        """Return the URLs of the live map whose hosts are to be looked up."""
        return {address.url for route in self.table.routes for address in route.backends if address.resolve}

    def found(self, url: str, addresses: tuple[str, ...]) -> None:
        """Take what a look-up of the host of `url` found: one base URL per IP address."""
        self._found[url] = addresses
        self.apply(self.table)

    def _addresses(self, route: Route) -> Iterable[Address]:
        """Yield the addresses behind a route, those found by looking up among them."""
        for address in route.backends:
            if not address.resolve:
                yield address
                continue
            for url in self._found.get(address.url, ()):
                name = f"{address.name}@{urlsplit(url).hostname}"
                yield msgspec.structs.replace(address, name=name, url=url)

    def publish(self, gone: Iterable[Backend] = ()) -> None:
        """Put what was counted where all workers read it, that of backends which have `gone` for the last time."""
        live = [*self._by_address.values(), *self.leaving]
        # Several backends may share labels: the replicas of a deployment, or one that leaves and the one in its place.
        states: dict[tuple[str, str, str], State] = {b.metrics.labels: State() for b in gone}
        for backend in live:
            state = states.setdefault(backend.metrics.labels, State())
            state.in_flight += backend.in_flight
            state.connections += backend.metrics.connections
            state.ejected += not backend.removed and backend.ejected
        for backend in {*live, *gone}:
            backend.metrics.publish(states[backend.metrics.labels])

    def sweep(self, before: float) -> None:
        """Close connections idle since `before` (the loop's time), and forget backends that have left."""
        for backend in self._by_address.values():
            if backend.idle:
                backend.close_idle(before)
        self.publish()
        over = [backend for backend in self.leaving if not backend.in_flight]
        if over:
            self.leaving = [backend for backend in self.leaving if backend.in_flight]
            self.publish(over)

    def close(self) -> None:
        """Close all idle connections."""
        for backend in self._by_address.values():
            backend.close_idle()

    def is_ready(self, route: Route) -> bool:
        """Tell whether a route has a backend that takes requests."""
        return any(not backend.ejected and backend.weight for backend in self._by_route[route])

    def describe(self) -> list[dict[str, Any]]:
        """Return the models, engines and backends as /routes shows them, with those that are leaving."""
        shown: dict[str, dict[str, Any]] = {}
        for route in self.table.routes:
            engine = _engine(shown, route.model, route.owned_by, default=route.default)
            engine["backends"] += map(_described, self._by_route[route])
        for model in self.table.models:
            shown[model.model]["aliases"] = list(model.aliases)
        for backend in self.leaving:
            if backend.in_flight:
                engine = _engine(shown, backend.model, backend.owned_by, default=False)
                engine["backends"].append(_described(backend))
        return list(shown.values())

    def all(self) -> list[tuple[Route, list[Backend]]]:
        """Return all routes of the live map with their backends."""
        return list(self._by_route.items())


def _engine(shown: dict[str, dict[str, Any]], model: str, owned_by: str, *, default: bool) -> dict[str, Any]:
    """Return what is shown of one engine of a model, which is added if it is not there yet."""
    engines: list[dict[str, Any]] = shown.setdefault(model, {"model": model, "aliases": [], "engines": []})[
        "engines"
    ]
    for engine in engines:
        if engine["owned_by"] == owned_by:
            return engine
    engines.append({"owned_by": owned_by, "default": default, "backends": []})
    return engines[-1]


def _described(backend: Backend) -> dict[str, Any]:
    return {
        "name": backend.name,
        "url": backend.url,
        "weight": backend.weight,
        "state": backend.state,
        "in_flight": backend.in_flight,
        "last_error": backend.last_error,
    }
