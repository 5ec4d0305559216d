"""What is counted: the metrics, and how a request changes them. Rendered in `exposition`, when somebody asks.

Labels are what the operator named (models, engines, backends, keys), never what a client wrote.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from roundhouse_gateway.counters import Counters


class Metric(NamedTuple):
    """One metric, as Prometheus has it."""

    kind: str  # counter, gauge or histogram
    labels: tuple[str, ...]
    text: str


_MODEL = ("model", "engine")
_BACKEND = (*_MODEL, "backend")

#: All that is counted, by name without the ending that Prometheus wants (_total, _bucket).
METRICS: dict[str, Metric] = {
    "roundhouse_requests": Metric(
        "counter", (*_BACKEND, "key", "status", "code"), "Requests by how they were answered."
    ),
    "roundhouse_requests_in_flight": Metric("gauge", _BACKEND, "Requests that a backend is answering."),
    "roundhouse_request_duration_seconds": Metric(
        "histogram", _MODEL, "From the whole request to the last byte of the answer."
    ),
    "roundhouse_time_to_first_byte_seconds": Metric(
        "histogram", _MODEL, "From the whole request to the first byte of the answer."
    ),
    "roundhouse_time_between_chunks_seconds": Metric(
        "histogram", _MODEL, "From one piece of a streamed answer to the next."
    ),
    "roundhouse_tokens": Metric(
        "counter", (*_MODEL, "key", "direction"), "Tokens that engines say they read and wrote."
    ),
    "roundhouse_upstream_connections": Metric(
        "gauge", _BACKEND, "Connections to a backend, idle ones included."
    ),
    "roundhouse_backend_ejections": Metric(
        "counter", _BACKEND, "Times that a backend got no more requests, because it failed."
    ),
    "roundhouse_retries": Metric(
        "counter", _MODEL, "Requests that were sent once more, or to another backend."
    ),
    "roundhouse_client_cancellations": Metric(
        "counter", _MODEL, "Requests whose clients left before the end of the answer."
    ),
}

#: What is known when somebody asks, and needs no adding up. Every worker loads the same files: of `WORST` the most that
#: any of them has counts.
STATE: dict[str, Metric] = {
    "roundhouse_backend_healthy": Metric("gauge", _BACKEND, "Whether a backend gets requests."),
    "roundhouse_map_info": Metric("gauge", ("revision",), "The live routing map."),
    "roundhouse_map_loaded_timestamp_seconds": Metric("gauge", (), "When the live map was loaded."),
    "roundhouse_map_last_load_successful": Metric("gauge", (), "Whether the map's file is the live map."),
    "roundhouse_map_reloads": Metric("counter", (), "Times that a new map was taken."),
    "roundhouse_map_refusals": Metric("counter", (), "Times that a new map was bad, and refused."),
    "roundhouse_keys_last_load_successful": Metric("gauge", (), "Whether the keys' file is what counts."),
    "roundhouse_keys_reloads": Metric("counter", (), "Times that new keys were taken."),
    "roundhouse_keys_refusals": Metric("counter", (), "Times that new keys were bad, and refused."),
    "roundhouse_build_info": Metric("gauge", ("version", "python"), "What runs here."),
    "roundhouse_workers": Metric("gauge", (), "Processes that serve."),
}

#: Of a backend, whether a worker sends it no requests; and of a file whether it was refused the last time.
EJECTED, MAP_REFUSED, KEYS_REFUSED = "ejected", "map refused", "keys refused"
WORST: dict[str, Metric] = {
    EJECTED: Metric("gauge", _BACKEND, ""),
    MAP_REFUSED: Metric("gauge", (), ""),
    KEYS_REFUSED: Metric("gauge", (), ""),
    **{name: STATE[name] for name in STATE if name.endswith(("_reloads", "_refusals"))},
}

#: Upper bounds of the histograms, in seconds: from a token to a long answer.
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
#: Cells of a histogram: how many were in each bucket, how many above all, and their sum.
WIDTH = len(BOUNDS) + 2
_SUM = WIDTH - 1


#: How a request ended that a backend had: key, status, code, and how long it took to the first byte (-1: nothing was
#: answered) and in all, in milliseconds as of the event loop's clock. Of many requests most are the same.
Ended: TypeAlias = tuple[str, int, str, int, int]


@dataclass
class State:
    """What there is now of all backends that share labels."""

    in_flight: int = 0
    connections: int = 0
    ejected: int = 0


class BackendMetrics:
    """The numbers of one backend: where they are, and what is to be added to them.

    To note something changes one entry of a dict. `publish` adds them up and puts them where others read them, once a
    second and before the metrics are read. (A list of what happened would be longer, and the garbage collector's work.)
    """

    __slots__ = (
        "_between",
        "_connections",
        "_counters",
        "_duration",
        "_ejected",
        "_ejections",
        "_first_byte",
        "_in_flight",
        "_left",
        "_retries",
        "connections",
        "ejections",
        "ended",
        "gaps",
        "labels",
        "left",
        "retries",
    )

    def __init__(self, counters: Counters, model: str, owned_by: str, backend: str) -> None:
        series, of_route, of_backend = counters.series, (model, owned_by), (model, owned_by, backend)
        self._counters = counters
        self.labels = of_backend
        self._in_flight = series("roundhouse_requests_in_flight", of_backend)
        self._connections = series("roundhouse_upstream_connections", of_backend)
        self._ejections = series("roundhouse_backend_ejections", of_backend)
        self._ejected = series(EJECTED, of_backend)
        self._duration = series("roundhouse_request_duration_seconds", of_route, WIDTH)
        self._first_byte = series("roundhouse_time_to_first_byte_seconds", of_route, WIDTH)
        self._between = series("roundhouse_time_between_chunks_seconds", of_route, WIDTH)
        self._retries = series("roundhouse_retries", of_route)
        self._left = series("roundhouse_client_cancellations", of_route)
        # What is not published yet: how many requests ended in each way, with their tokens read and written; how many
        # gaps of so many milliseconds there were between pieces of streams; and counts.
        self.ended: dict[Ended, list[int]] = {}
        self.gaps: dict[int, int] = {}
        self.ejections = self.retries = self.left = 0
        # Connections that are open now.
        self.connections = 0

    def publish(self, state: State) -> None:
        """Add up what was noted since the last time, and put it where all workers read it, with the state now."""
        cells = self._counters.cells
        cells[self._in_flight] = state.in_flight
        cells[self._connections] = state.connections
        cells[self._ejected] = state.ejected
        cells[self._ejections] += self.ejections
        cells[self._retries] += self.retries
        cells[self._left] += self.left
        self.ejections = self.retries = self.left = 0
        ended, self.ended = self.ended, {}
        for (key, status, code, first_byte, duration), (count, read, written) in ended.items():
            cells[self._counters.series("roundhouse_requests", (*self.labels, key, str(status), code))] += (
                count
            )
            if first_byte >= 0:
                self._observe(self._first_byte, first_byte, count)
                self._observe(self._duration, duration, count)
            if read or written:
                model, owned_by, _ = self.labels
                cells[self._counters.series("roundhouse_tokens", (model, owned_by, key, "input"))] += read
                cells[self._counters.series("roundhouse_tokens", (model, owned_by, key, "output"))] += written
        gaps, self.gaps = self.gaps, {}
        for gap, count in gaps.items():
            self._observe(self._between, gap, count)

    def _observe(self, histogram: int, milliseconds: int, count: int) -> None:
        cells, seconds = self._counters.cells, milliseconds / 1000
        cells[histogram + bisect_left(BOUNDS, seconds)] += count
        cells[histogram + _SUM] += seconds * count


def refused(counters: Counters, model: str, owned_by: str, key: str, status: int, code: str) -> None:
    """Count a request that reached no backend."""
    labels = (model, owned_by, "", key, str(status), code)
    counters.cells[counters.series("roundhouse_requests", labels)] += 1.0


def begin(counters: Counters, place: int) -> None:
    """Count for the worker at this place from now on. What the one before it had open is closed."""
    counters.use(place)
    for series in counters.slabs[place].series():
        metric = (METRICS | WORST).get(series.name)
        if metric is not None and metric.kind == "gauge":
            counters.cells[series.first] = 0.0
