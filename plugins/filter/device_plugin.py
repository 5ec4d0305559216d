"""Filters that make the objects of NVIDIA's device plugin of the catalog."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.roundhouse.llm.plugins.plugin_utils.cluster import device_plugin_objects as objects


def device_plugin_objects(deployments: Any, settings: Any) -> Any:
    """The objects; a ValueError is a sentence for the user."""
    try:
        return objects.device_plugin_objects(deployments, settings)
    except ValueError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """What the collection loader looks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """The filters, by the name that playbooks use."""
        return {"device_plugin_objects": device_plugin_objects, "gpus_wanted": objects.gpus_wanted}
