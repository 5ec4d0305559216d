"""How Prometheus finds the gateway's metrics and the engines': annotations of pods, or objects of its operator.

Engines' metrics get the labels that the gateway's have: `model`, `engine` and `backend`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.roundhouse.llm.plugins.plugin_utils.cluster.objects import (
    GATEWAY,
    MODEL,
    OURS,
    OWNED_BY,
    Object,
    labels,
    metadata,
)

#: The ways: none, annotations, the operator.
WAYS = ("", "annotations", "operator")

_API = "monitoring.coreos.com/v1"

#: The entry of the user's Secret that has the key for /metrics.
_ENTRY = "key"

#: Where the operator's Prometheus finds what the labels of a series are to be.
_PODS = "__meta_kubernetes_pod_"


def pod_annotations(way: str, port: int) -> dict[str, str]:
    """Annotations of a pod whose metrics are at /metrics of `port`. Raises ValueError if there is no such way."""
    if way not in WAYS:
        raise ValueError(f"gateway_scrape is '{way}': make it annotations, operator, or leave it empty.")
    if way != "annotations":
        return {}
    return {"prometheus.io/scrape": "true", "prometheus.io/port": str(port), "prometheus.io/path": "/metrics"}


def engine_annotations(way: str, port: int, model: str, owned_by: str) -> dict[str, str]:
    """The same for a pod of an engine, and what its metrics' labels are made of."""
    return {**pod_annotations(way, port), MODEL: model, OWNED_BY: owned_by} if way else {}


def monitors(settings: Mapping[str, Any]) -> list[Object]:
    """The operator's objects; none if it is not the way.

    `settings`: `namespace`, `scrape`, `scrape_labels` (by which the operator takes notice of them) and `scrape_secret`
    (the Secret with the key for the gateway's /metrics; empty if it needs none).
    """
    if settings["scrape"] != "operator":
        return []
    endpoint: Object = {"port": "http", "path": "/metrics"}
    if settings["scrape_secret"]:
        credentials = {"name": settings["scrape_secret"], "key": _ENTRY}
        endpoint["authorization"] = {"type": "Bearer", "credentials": credentials}
    more = {str(name): str(value) for name, value in settings["scrape_labels"].items()}
    of = labels(GATEWAY, "gateway", "roundhouse-gateway")
    gateway = {
        "apiVersion": _API,
        "kind": "ServiceMonitor",
        "metadata": metadata(GATEWAY, settings, {**more, **of}),
        "spec": {
            # The rules and the dashboard know the gateway by this job.
            "endpoints": [{**endpoint, "relabelings": [{"targetLabel": "job", "replacement": "roundhouse"}]}],
            "selector": {"matchLabels": {"app.kubernetes.io/component": "gateway", **OURS}},
        },
    }
    engines = {
        "apiVersion": _API,
        "kind": "PodMonitor",
        "metadata": metadata("engines", settings, {**more, **of}),
        "spec": {
            "podMetricsEndpoints": [{"port": "http", "path": "/metrics", "relabelings": _relabelings()}],
            "selector": {"matchLabels": {"app.kubernetes.io/component": "engine", **OURS}},
        },
    }
    return [gateway, engines]


def _relabelings() -> list[Object]:
    sources = {
        "model": f"{_PODS}annotation_{_meta(MODEL)}",
        "engine": f"{_PODS}annotation_{_meta(OWNED_BY)}",
        "backend": f"{_PODS}label_app_kubernetes_io_instance",
    }
    return [{"sourceLabels": [source], "targetLabel": label} for label, source in sources.items()]


def _meta(name: str) -> str:
    """A name as Prometheus' discovery has it."""
    return "".join(letter if letter.isalnum() else "_" for letter in name)
