"""Filters that make Kubernetes objects of the catalog."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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


def object_names(objects: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of each object its kind and name, and both as a title: without what may be secret."""
    return [
        {
            "kind": thing["kind"],
            "metadata": {"name": thing["metadata"]["name"]},
            "title": f"{thing['kind']} {thing['metadata']['name']}",
        }
        for thing in objects
    ]


class FilterModule:
    """What the collection loader looks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """The filters, by the name that playbooks use."""
        return {
            "cluster_addresses": cluster_addresses,
            "engine_objects": _explained(engine_objects),
            "shared_objects": shared_objects,
            "gateway_objects": _explained(gateway_objects),
            "object_names": object_names,
            "routes_object": routes_object,
        }
