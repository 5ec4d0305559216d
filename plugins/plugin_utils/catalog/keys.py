"""The keys that engines themselves want: whose there are, and whether they can be given. No sentence names a key."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.roundhouse.llm.plugins.plugin_utils.catalog import shape
from ansible_collections.roundhouse.llm.plugins.plugin_utils.catalog.problems import Problems, or_known

#: Where the sentences say that they are.
_PLACE = "engines_api_keys"

_SHORTEST = 16


def read_keys(given: Any, stacks: Any, problems: Problems) -> dict[str, str]:
    """The keys that are of use, by deployment. They may be of deployments of any stack."""
    on_keys = problems.at(_PLACE)
    if given is None:
        return {}
    if not shape.is_mapping(given):
        on_keys.add("must be a mapping of deployments to their keys.")
        return {}
    names = _names(stacks)
    found = {}
    for name, key in given.items():
        if name not in names:
            on_keys.add(f"there is no deployment '{name}' in any stack{or_known(str(name), names)}")
        elif not _is_key(key):
            on_keys.add(
                f"the key of '{name}' must be text of {_SHORTEST} or more printable ASCII characters without blanks."
            )
        else:
            found[str(name)] = str(key)
    return found


def _names(stacks: Any) -> set[str]:
    entries = [
        entry
        for stack in (stacks.values() if shape.is_mapping(stacks) else ())
        for entry in (stack if isinstance(stack, list) else ())
    ]
    return {
        entry["name"] for entry in entries if shape.is_mapping(entry) and shape.is_text(entry.get("name"))
    }


def _is_key(value: Any) -> bool:
    return (
        isinstance(value, str)
        and len(value) >= _SHORTEST
        and value.isascii()
        and value.isprintable()
        and " " not in value
    )


def check_keys(
    deployments: Sequence[Mapping[str, Any]],
    keys: Mapping[str, str],
    engines: Mapping[str, Any],
    problems: Problems,
) -> None:
    """Note it if a key can't be given, or if the gateway would need two for one route."""
    for entry in deployments:
        if entry["name"] in keys and not engines[entry["engine"]]["key_env"]:
            problems.at(entry["place"]).add(
                f"{_PLACE} has a key for it, and {entry['engine']} takes none from its environment ('key_env'); on a "
                "command line everyone would see it. Take the key out."
            )
    routes: dict[tuple[str, str], list[str]] = {}
    for entry in deployments:
        routes.setdefault((entry["model"], entry["owned_by"].lower()), []).append(entry["name"])
    for (model, owned_by), names in routes.items():
        if len({keys.get(name) for name in names}) > 1:
            problems.at(_PLACE).add(
                f"{' and '.join(names)} are behind one route ({model} on {owned_by}), which has one key: give all of "
                "them the same."
            )


def mark(name: str, key: str) -> str:
    """A mark that changes when a key does, for where the key itself must not be. It is slow to guess a key by it."""
    salt = f"roundhouse engine {name}".encode()
    return hashlib.scrypt(key.encode(), salt=salt, n=2**14, r=8, p=1, dklen=4).hex()
