"""Filters that make Kubernetes objects of the catalog."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible_collections.roundhouse.llm.plugins.plugin_utils.cluster.engine_objects import (
    cluster_addresses,
    engine_objects,
)
from ansible_collections.roundhouse.llm.plugins.plugin_utils.cluster.gateway_objects import (
    gateway_objects,
    routes_object,
)


class FilterModule:
    """What the collection loader looks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """The filters, by the name that playbooks use."""
        return {
            "cluster_addresses": cluster_addresses,
            "engine_objects": engine_objects,
            "gateway_objects": gateway_objects,
            "routes_object": routes_object,
        }
