"""Filters around the catalog: resolve it, fill in a command, make the routing map of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible_collections.roundhouse.llm.plugins.module_utils.checksums import sha256
from ansible_collections.roundhouse.llm.plugins.module_utils.gpus import numbered
from ansible_collections.roundhouse.llm.plugins.plugin_utils.catalog.deployments import fill
from ansible_collections.roundhouse.llm.plugins.plugin_utils.catalog.gpu import misfits
from ansible_collections.roundhouse.llm.plugins.plugin_utils.catalog.resolve import resolve
from ansible_collections.roundhouse.llm.plugins.plugin_utils.catalog.routes import (
    local_addresses,
    routing_map,
    smoke_questions,
)


class FilterModule:
    """What the collection loader looks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """The filters, by the name that playbooks use."""
        return {
            "file_checksum": lambda path: sha256(Path(path)),
            "resolve_catalog": resolve,
            "fill_command": fill,
            "gpu_misfits": misfits,
            "listed_gpus": numbered,
            "routing_map": routing_map,
            "local_addresses": local_addresses,
            "smoke_questions": smoke_questions,
        }
