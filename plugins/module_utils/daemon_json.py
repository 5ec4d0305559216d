"""Docker's configuration file, daemon.json: one runtime in it is ours, all the rest is the user's."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, NoReturn

#: The runtime, just as `nvidia-ctk runtime configure --runtime=docker` writes it.
NAME = "nvidia"
RUNTIME: Mapping[str, Any] = {"args": [], "path": "nvidia-container-runtime"}

_INDENT = 4


class Unusable(Exception):  # noqa: N818 - it says what the file is
    """The file can't be merged with. The message is for the user."""


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON")


def _number(word: str) -> float:
    number = float(word)
    if math.isinf(number):
        raise ValueError(f"the number {word} is too large")
    return number


def decode(content: bytes, path: str) -> str:
    """The text of a file. Raises Unusable."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unusable(f"{path} is no UTF-8 text (byte {error.start + 1}), so {_LEFT}") from error


def read(text: str, path: str) -> dict[str, Any]:
    """The configuration in a file's text; an empty file is one without any. Raises Unusable."""
    if not text.strip():
        return {}
    try:
        config = json.loads(text, parse_constant=_refuse_constant, parse_float=_number)
    except json.JSONDecodeError as error:
        raise Unusable(_broken(text, path, error)) from error
    except ValueError as error:
        raise Unusable(f"{path} is no valid JSON ({error}), so {_LEFT}") from error
    except RecursionError as error:
        raise Unusable(f"{path} is nested too deeply to be read, so {_LEFT}") from error
    if not isinstance(config, dict):
        raise Unusable(f"{path} must hold one JSON object {{...}}, and holds {_called(config)}, so {_LEFT}")
    runtimes = config.get("runtimes")
    if runtimes is not None and not isinstance(runtimes, dict):
        raise Unusable(
            f"The key runtimes in {path} must be an object {{...}}, and is {_called(runtimes)}, so {_LEFT}"
        )
    return config


_LEFT = "nothing was changed: correct the file (Docker itself would not start with it), and run the same command again."


def _broken(text: str, path: str, error: json.JSONDecodeError) -> str:
    lines = text.splitlines()
    shown = lines[error.lineno - 1].strip() if error.pos < len(text.rstrip()) else ""
    near = f", at '{shown[:80]}'" if shown else ", at its end"
    return (
        f"{path} is no valid JSON (line {error.lineno}, column {error.colno}{near}: {error.msg}), so {_LEFT}"
    )


def _called(value: Any) -> str:
    names = {list: "a list", str: "a string", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null")


def merged(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with our runtime in it; all else stays as it is, in its order."""
    return {**config, "runtimes": {**(config.get("runtimes") or {}), NAME: dict(RUNTIME)}}


def without(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without our runtime: nor is it the default then, and Docker's own is."""
    rest = dict(config)
    if NAME in (rest.get("runtimes") or {}):
        left = {name: runtime for name, runtime in rest["runtimes"].items() if name != NAME}
        rest["runtimes"] = left
        if not left:
            del rest["runtimes"]
    if rest.get("default-runtime") == NAME:
        del rest["default-runtime"]
    return rest


def render(config: Mapping[str, Any], before: str) -> str:
    """The text of a configuration, indented as the text `before` is."""
    found = re.search(r"^\{[^\S\n]*\r?\n([ \t]+)\S", before.lstrip())
    indent = found[1] if found else _INDENT
    text = json.dumps(config, indent=indent, ensure_ascii=False) + "\n"
    try:
        text.encode()
    except UnicodeEncodeError:  # half a character, which only an escape can write
        return json.dumps(config, indent=indent) + "\n"
    return text
