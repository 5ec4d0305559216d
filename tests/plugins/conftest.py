"""What several tests of the plugins share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def engines() -> dict[str, Any]:
    """The engine table as the collection ships it."""
    table: dict[str, Any] = {}
    for file in sorted((ROOT / "roles/catalog/files/engines").glob("*.yml")):
        table |= yaml.safe_load(file.read_text())
    return table


@pytest.fixture(scope="session")
def shipped_stacks() -> dict[str, dict[str, Any]]:
    """The stacks that the default inventory ships, by platform."""
    return {
        platform: yaml.safe_load(
            (ROOT / f"inventories/default/group_vars/{platform}/stacks.yml").read_text()
        )["roundhouse_stacks"]
        for platform in ("local", "k3d")
    }
