"""Metrics as Prometheus reads them, made of the counts when somebody asks."""

from __future__ import annotations

import operator
import platform
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from roundhouse_gateway import __version__
from roundhouse_gateway.metrics import (
    BOUNDS,
    EJECTED,
    KEYS_REFUSED,
    MAP_REFUSED,
    METRICS,
    STATE,
    WIDTH,
    WORST,
)
from roundhouse_gateway.metrics import Metric as About

if TYPE_CHECKING:
    from roundhouse_gateway.counters import Slab
    from roundhouse_gateway.gateway import Gateway

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

#: Labels -> numbers, and that by name.
Series = dict[tuple[str, ...], Sequence[float]]
Sums = dict[str, Series]


def render(slabs: Sequence[Slab], state: Sums) -> bytes:
    """Return all metrics, of all workers together, as of their last `publish`; `state` is what `now` told."""
    registry = CollectorRegistry()
    registry.register(_Collector(slabs, state))
    return generate_latest(registry)


class _Collector:
    """What a registry asks for its metrics."""

    def __init__(self, slabs: Sequence[Slab], state: Sums) -> None:
        self._slabs = slabs
        self._state = state

    def collect(self) -> Iterable[Metric]:
        """Yield the metrics."""
        counted = sums(self._slabs)
        for name, about in (METRICS | STATE).items():
            yield _family(name, about, counted.get(name) or self._state.get(name, {}))

    def describe(self) -> Iterable[Metric]:
        """Yield nothing: the registry need not ask for the metrics when it is made."""
        return ()


def sums(slabs: Iterable[Slab]) -> Sums:
    """Return the numbers of all workers, summed up by name and labels."""
    return _joined(slabs, METRICS, operator.add)


def worst(slabs: Iterable[Slab]) -> Sums:
    """Return of what every worker knows the most that any has."""
    return _joined(slabs, WORST, max)


def _joined(slabs: Iterable[Slab], names: Container[str], join: Callable[[float, float], float]) -> Sums:
    found: Sums = {}
    for slab in slabs:
        for series in slab.series():
            if series.name not in names:
                continue
            numbers: Sequence[float] = slab.cells[series.first : series.first + series.width].tolist()
            before = found.setdefault(series.name, {}).get(series.labels)
            if before is not None:
                numbers = list(map(join, before, numbers))
            found[series.name][series.labels] = numbers
    return found


def _family(name: str, about: About, series: Mapping[tuple[str, ...], Sequence[float]]) -> Metric:
    if about.kind == "histogram":
        histogram = HistogramMetricFamily(name, about.text, labels=about.labels)
        for labels, numbers in series.items():
            histogram.add_metric(labels, _buckets(numbers), numbers[WIDTH - 1])
        return histogram
    kind = GaugeMetricFamily if about.kind == "gauge" else CounterMetricFamily
    family = kind(name, about.text, labels=about.labels)
    for labels, numbers in series.items():
        family.add_metric(labels, numbers[0])
    return family


def _buckets(numbers: Sequence[float]) -> list[tuple[str, float]]:
    """Return the buckets as Prometheus counts: each with all that are smaller."""
    return list(zip([*map(str, BOUNDS), "+Inf"], accumulate(numbers), strict=False))


def now(gateway: Gateway) -> Sums:
    """Return what is known without adding up. It looks at what requests change, so it is called on the event loop."""
    of_all = worst(gateway.counters.slabs)
    ejected = of_all.get(EJECTED, {})

    def loaded(refused: str) -> Series:
        return {(): [1.0 - of_all[refused][()][0]]}

    healthy: Series = {}
    for route, backends in gateway.fleet.all():
        labels = {backend.metrics.labels for backend in backends} or {(route.model, route.owned_by, "")}
        # Replicas have one series: it is healthy if any of them is.
        healthy |= {
            each: [float(sum(b.metrics.labels == each for b in backends) > ejected.get(each, [0.0])[0])]
            for each in labels
        }
    told = {name: series for name, series in of_all.items() if name in STATE}
    return told | {
        "roundhouse_backend_healthy": healthy,
        "roundhouse_map_info": {(gateway.fleet.table.revision,): [1.0]},
        "roundhouse_map_loaded_timestamp_seconds": {(): [gateway.map_loads.at.timestamp()]},
        "roundhouse_map_last_load_successful": loaded(MAP_REFUSED),
        "roundhouse_keys_last_load_successful": loaded(KEYS_REFUSED),
        "roundhouse_build_info": {(__version__, platform.python_version()): [1.0]},
        "roundhouse_workers": {(): [float(len(gateway.counters.slabs))]},
    }
