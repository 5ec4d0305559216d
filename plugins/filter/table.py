"""Filters that make output readable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible_collections.roundhouse.llm.plugins.plugin_utils.table import status_rows, table


class FilterModule:
    """What the collection loader looks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """The filters, by the name that playbooks use."""
        return {"table": table, "status_rows": status_rows}
