"""Filters that make Kubernetes objects of the catalog."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.roundhouse.llm.plugins.plugin_utils.cluster.engine_objects import (
    cluster_addresses,
    engine_objects,
    shared_objects,
)
from ansible_collections.roundhouse.llm.plugins.plugin_utils.cluster.gateway_objects import (
    gateway_objects,
    routes_object,
)


def _explained(make: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose ValueErrors are sentences for the user."""

    @wraps(make)
    def filtered(*arguments: Any) -> Any:
        try:
            return make(*arguments)
        except ValueError as error:
            raise AnsibleFilterError(str(error)) from error

    return filtered


class FilterModule:
    """What the collection loader looks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """The filters, by the name that playbooks use."""
        return {
            "cluster_addresses": cluster_addresses,
            "engine_objects": _explained(engine_objects),
            "shared_objects": shared_objects,
            "gateway_objects": _explained(gateway_objects),
            "routes_object": routes_object,
        }
