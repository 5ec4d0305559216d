"""Metrics as Prometheus reads them, made of the counts when somebody asks."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from roundhouse_gateway import __version__
from roundhouse_gateway.metrics import BOUNDS, METRICS, WIDTH

if TYPE_CHECKING:
    from roundhouse_gateway.counters import Slab
    from roundhouse_gateway.gateway import Gateway

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# name -> labels -> numbers
_Sums = dict[str, dict[tuple[str, ...], list[float]]]


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
        gateway = self._gateway
        yield from _counted(sums(gateway.counters.slabs))
        yield _healthy(gateway)
        yield _map_info(gateway)
        maps, keys = gateway.map_loads, gateway.keys_loads
        yield GaugeMetricFamily(
            "roundhouse_map_loaded_timestamp_seconds", "When the live map was loaded.", maps.at.timestamp()
        )
        # Every worker loads the same files, so these are not summed up.
        for name, text, value in (
            ("roundhouse_map_reloads", "Times that a new map was taken.", maps.reloads),
            ("roundhouse_map_refusals", "Times that a new map was bad, and refused.", maps.refusals),
            ("roundhouse_keys_reloads", "Times that new keys were taken.", keys.reloads),
            ("roundhouse_keys_refusals", "Times that new keys were bad, and refused.", keys.refusals),
        ):
            yield CounterMetricFamily(name, text, value)
        build = GaugeMetricFamily("roundhouse_build_info", "What runs here.", labels=("version", "python"))
        build.add_metric((__version__, platform.python_version()), 1)
        yield build
        yield GaugeMetricFamily("roundhouse_workers", "Processes that serve.", len(gateway.counters.slabs))

    def describe(self) -> Iterable[Metric]:
        """Yield nothing: the registry need not ask for the metrics when it is made."""
        return ()


def sums(slabs: Iterable[Slab]) -> _Sums:
    """Return the numbers of all workers, summed up by name and labels."""
    found: _Sums = {}
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


def _counted(found: _Sums) -> Iterator[Metric]:
    for name, metric in METRICS.items():
        series = found.get(name, {})
        match metric.kind:
            case "histogram":
                histogram = HistogramMetricFamily(name, metric.text, labels=metric.labels)
                for labels, numbers in series.items():
                    histogram.add_metric(labels, _buckets(numbers), numbers[WIDTH - 1])
                yield histogram
            case "gauge":
                gauge = GaugeMetricFamily(name, metric.text, labels=metric.labels)
                for labels, numbers in series.items():
                    gauge.add_metric(labels, numbers[0])
                yield gauge
            case _:
                counter = CounterMetricFamily(name, metric.text, labels=metric.labels)
                for labels, numbers in series.items():
                    counter.add_metric(labels, numbers[0])
                yield counter


def _buckets(numbers: list[float]) -> list[tuple[str, float]]:
    """Return the buckets as Prometheus counts: each with all that are smaller."""
    found, total = [], 0.0
    for bound, number in zip([*map(str, BOUNDS), "+Inf"], numbers, strict=False):
        total += number
        found.append((bound, total))
    return found


def _healthy(gateway: Gateway) -> Metric:
    family = GaugeMetricFamily(
        "roundhouse_backend_healthy",
        "Whether a backend gets requests.",
        labels=("model", "engine", "backend"),
    )
    for route, backends in gateway.fleet.all():
        for backend in backends:
            family.add_metric((route.model, route.owned_by, backend.name), float(not backend.ejected))
    return family


def _map_info(gateway: Gateway) -> Metric:
    family = GaugeMetricFamily("roundhouse_map_info", "The live map.", labels=("revision",))
    family.add_metric((gateway.fleet.table.revision,), 1)
    return family
