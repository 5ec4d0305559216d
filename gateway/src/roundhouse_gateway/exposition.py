"""Metrics as Prometheus reads them, made of the counts when somebody asks."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from roundhouse_gateway import __version__
from roundhouse_gateway.metrics import BOUNDS, METRICS, STATE, WIDTH
from roundhouse_gateway.metrics import Metric as About

if TYPE_CHECKING:
    from roundhouse_gateway.counters import Slab
    from roundhouse_gateway.gateway import Gateway

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

#: name -> labels -> numbers
Sums = dict[str, dict[tuple[str, ...], list[float]]]


def render(gateway: Gateway) -> bytes:
    """Return all metrics of a gateway, of all its workers together, as of their last `publish`."""
    registry = CollectorRegistry()
    registry.register(_Collector(gateway))
    return generate_latest(registry)


class _Collector:
    """What a registry asks for its metrics."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def collect(self) -> Iterable[Metric]:
        """Yield the metrics."""
        counted, state = sums(self._gateway.counters.slabs), _state(self._gateway)
        for name, about in (METRICS | STATE).items():
            yield _family(name, about, counted.get(name) or state.get(name, {}))

    def describe(self) -> Iterable[Metric]:
        """Yield nothing: the registry need not ask for the metrics when it is made."""
        return ()


def sums(slabs: Iterable[Slab]) -> Sums:
    """Return the numbers of all workers, summed up by name and labels."""
    found: Sums = {}
    for slab in slabs:
        for series in slab.series():
            if series.name not in METRICS:
                continue
            numbers = list(map(float, slab.cells[series.first : series.first + series.width]))
            before = found.setdefault(series.name, {}).get(series.labels)
            if before is not None:
                numbers = [a + b for a, b in zip(before, numbers, strict=True)]
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
    found, total = [], 0.0
    for bound, number in zip([*map(str, BOUNDS), "+Inf"], numbers, strict=False):
        total += number
        found.append((bound, total))
    return found


def _state(gateway: Gateway) -> Sums:
    """Return what is known without counting."""
    maps, keys = gateway.map_loads, gateway.keys_loads
    return {
        "roundhouse_backend_healthy": {
            (route.model, route.owned_by, backend.name): [float(not backend.ejected)]
            for route, backends in gateway.fleet.all()
            for backend in backends
        },
        "roundhouse_map_info": {(gateway.fleet.table.revision,): [1.0]},
        "roundhouse_map_loaded_timestamp_seconds": {(): [maps.at.timestamp()]},
        "roundhouse_map_last_load_successful": {(): [float(maps.last_error is None)]},
        "roundhouse_map_reloads": {(): [float(maps.reloads)]},
        "roundhouse_map_refusals": {(): [float(maps.refusals)]},
        "roundhouse_keys_last_load_successful": {(): [float(keys.last_error is None)]},
        "roundhouse_keys_reloads": {(): [float(keys.reloads)]},
        "roundhouse_keys_refusals": {(): [float(keys.refusals)]},
        "roundhouse_build_info": {(__version__, platform.python_version()): [1.0]},
        "roundhouse_workers": {(): [float(len(gateway.counters.slabs))]},
    }
