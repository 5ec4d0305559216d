"""The shape of what a user writes: which keys a mapping may have, and of which type their values are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ansible_collections.roundhouse.llm.plugins.plugin_utils.catalog.problems import Problems, or_known

Check = Callable[[Any], bool]


def is_text(value: Any) -> bool:
    """A string with something in it."""
    return isinstance(value, str) and bool(value.strip())


def is_bool(value: Any) -> bool:
    """A boolean."""
    return isinstance(value, bool)


def is_count(value: Any) -> bool:
    """A whole number from 0; `true` is no number."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def is_positive_count(value: Any) -> bool:
    """A whole number from 1."""
    return is_count(value) and value > 0


def is_seconds(value: Any) -> bool:
    """A number above 0."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def is_share(value: Any) -> bool:
    """A number above 0, up to 1."""
    return is_seconds(value) and value <= 1


def is_mapping(value: Any) -> bool:
    """A mapping of any keys and values."""
    return isinstance(value, Mapping)


def is_scalars(value: Any) -> bool:
    """A mapping of names to strings, numbers or booleans."""
    return is_mapping(value) and all(
        isinstance(k, str) and isinstance(v, str | int | float) for k, v in value.items()
    )


def is_texts(value: Any) -> bool:
    """A list of non-empty strings."""
    return isinstance(value, list) and all(is_text(item) for item in value)


def is_words(value: Any) -> bool:
    """A list of strings or numbers, as a command line has them."""
    return isinstance(value, list) and all(
        isinstance(item, str | int | float) and not isinstance(item, bool) for item in value
    )


@dataclass(frozen=True)
class Key:
    """One key: what its value must be, in words and as a predicate, and its default."""

    wanted: str
    check: Check
    required: bool = False
    default: Any = None


def read(value: Any, keys: Mapping[str, Key], problems: Problems) -> dict[str, Any] | None:
    """The mapping with its defaults filled in; None if it is no mapping.

    A key whose value is wrong is noted and gets its default, so that later checks can go on.
    An explicit null means the same as an absent key.
    """
    if not is_mapping(value):
        problems.add(f"must be a mapping of {', '.join(keys)}, not {describe(value)}.")
        return None
    for unknown in [key for key in value if key not in keys]:
        problems.add(f"unknown key '{unknown}'{or_known(str(unknown), keys)}")
    result = {}
    for name, key in keys.items():
        given = value.get(name)
        result[name] = key.default
        if given is None:
            if key.required:
                problems.add(f"'{name}' is missing: give it {key.wanted}.")
        elif not key.check(given):
            problems.add(f"'{name}' must be {key.wanted}, not {describe(given)}.")
        else:
            result[name] = given
    return result


def describe(value: Any) -> str:
    """A value as a person would write it, cut to a length that fits a sentence."""
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
