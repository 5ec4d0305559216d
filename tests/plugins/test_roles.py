"""Every role says the same thing in its defaults and in its argument specs, and documents itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

ROLES = sorted(path for path in (Path(__file__).parents[2] / "roles").iterdir() if path.is_dir())


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_defaults_and_argument_specs_agree(role: Path) -> None:
    specs = yaml.safe_load((role / "meta/argument_specs.yml").read_text())
    defaults = yaml.safe_load((role / "defaults/main.yml").read_text())
    assert set(specs["argument_specs"]["main"]["options"]) == set(defaults)
    assert all(name.startswith(f"{role.name}_") for name in defaults)


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_every_role_has_a_readme(role: Path) -> None:
    assert (role / "README.md").read_text().startswith(f"# Role {role.name}\n")
