"""The settings of the process, read from the environment.

Every key starts with ROUNDHOUSE_. Other tools share that prefix, so keys that are not listed here are
left alone.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, TypeVar, cast

import msgspec

T = TypeVar("T")


class SettingsError(Exception):
    """The environment can't be used; `problems` holds one sentence for each thing that is wrong."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator can set. Sizes are in bytes, times in seconds."""

    routes: Path
    keys: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8080
    max_body: int = 33_554_432
    max_header: int = 65_536
    body_timeout: float = 60.0
    keep_alive: float = 75.0
    drain_timeout: float = 30.0
    drain_delay: float = 0.0
    workers: int = 1
    log: Literal["text", "json"] = "text"
    log_sample: float = 1.0


def from_environment(environment: Mapping[str, str]) -> Settings:
    """Return the settings which `environment` describes.

    Raises SettingsError with a sentence for every key that is wrong.
    """
    problems: list[str] = []

    def read(key: str, convert: Callable[[str], T], wanted: str, default: T) -> T:
        text = environment.get(f"ROUNDHOUSE_{key}")
        if text is None:
            return default
        try:
            return convert(text)
        except ValueError:
            problems.append(f"ROUNDHOUSE_{key} is {text!r}, but must be {wanted}.")
            return default

    routes = environment.get("ROUNDHOUSE_ROUTES", "")
    if not routes:
        problems.append(
            "ROUNDHOUSE_ROUTES is not set, but must be the path of the routing map (a YAML file)."
        )
    keys = environment.get("ROUNDHOUSE_KEYS")
    if keys == "":
        problems.append(
            "ROUNDHOUSE_KEYS is empty, but must be the path of the keys file (docs/operations.md)."
            " Unset it to let anyone ask."
        )
    settings = Settings(
        routes=Path(routes),
        keys=Path(keys) if keys else None,
        host=read("HOST", _name, "an address or a host name to listen on", "127.0.0.1"),
        port=read("PORT", _whole(0, 65_535), "a whole number from 0 (any free port) to 65535", 8080),
        max_body=read("MAX_BODY", _whole(1), "a number of bytes, 1 or more", 33_554_432),
        max_header=read("MAX_HEADER", _whole(1024), "a number of bytes, 1024 or more", 65_536),
        body_timeout=read("BODY_TIMEOUT", _seconds(above_zero=True), "a number of seconds above 0", 60.0),
        keep_alive=read("KEEP_ALIVE", _seconds(above_zero=True), "a number of seconds above 0", 75.0),
        drain_timeout=read("DRAIN_TIMEOUT", _seconds(), "a number of seconds, 0 or more", 30.0),
        drain_delay=read("DRAIN_DELAY", _seconds(), "a number of seconds, 0 or more", 0.0),
        workers=read("WORKERS", _whole(1, 64), "a whole number of processes from 1 to 64", 1),
        log=read("LOG", _log, "text or json", "text"),
        log_sample=read("LOG_SAMPLE", _share, "a share of the requests, from 0 to 1", 1.0),
    )
    if problems:
        raise SettingsError(problems)
    return settings


def _name(text: str) -> str:
    if not text or text != text.strip():
        raise ValueError
    return text


def _log(text: str) -> Literal["text", "json"]:
    if text not in ("text", "json"):
        raise ValueError
    return cast("Literal['text', 'json']", text)


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise ValueError
    return value


def _whole(low: int, high: int | None = None) -> Callable[[str], int]:
    def convert(text: str) -> int:
        # int() takes signs, blanks, underscores and other scripts' digits as well; a setting does not.
        if not (text.isascii() and text.isdigit()):
            raise ValueError
        value = int(text)
        if value < low or (high is not None and value > high):
            raise ValueError
        return value

    return convert


def _seconds(*, above_zero: bool = False) -> Callable[[str], float]:
    def convert(text: str) -> float:
        value = float(text)
        # A day is longer than any sensible time-out; the bound refuses inf and nan as well.
        if not 0 <= value <= 86_400 or (above_zero and value == 0):
            raise ValueError
        return value

    return convert
