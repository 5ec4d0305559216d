"""Keys: who may ask, for which models, and how much.

The keys file is YAML: the word `open`, or a list of keys with the SHA-256 of each, never the key itself. A key that a
client presents is hashed, and looked up by its hash: how long that takes tells nothing about the keys there are.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from roundhouse_gateway import errors, limits
from roundhouse_gateway.errors import GatewayError
from roundhouse_gateway.heads import Headers
from roundhouse_gateway.limits import Count, Limits, Meter
from roundhouse_gateway.routing import Route, RoutingTable, Text

_OPEN = "open"
_BEARER = b"bearer "


class KeysError(Exception):
    """The keys can't be used; `problems` holds one sentence for each thing that is wrong with them."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__(" ".join(problems))
        self.problems = problems


class Key(Struct, frozen=True, forbid_unknown_fields=True):
    """One key as the file has it. `sha256` is in hexadecimal digits; `origin` is for those who write the file."""

    name: Text
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
    models: list[Text] | Literal["all"] = "all"
    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    max_in_flight: Count | None = None
    admin: bool = False
    origin: str | None = None

    @property
    def limits(self) -> Limits:
        """What it may."""
        return Limits(self.requests_per_minute, self.tokens_per_minute, self.max_in_flight)


class Keys(Struct, frozen=True):
    """A keys file that is good. `keys` is None if it is open; `revision` changes with every byte of it."""

    keys: tuple[Key, ...] | None = None
    revision: str = ""


#: Anyone may ask.
OPEN = Keys()


def load(content: bytes) -> Keys:
    """Return the keys in `content`. Raises KeysError; no sentence of it has anything of a key in it but its name."""
    revision = hashlib.sha256(content).hexdigest()[:12]
    try:
        keys = msgspec.yaml.decode(content, type=list[Key] | Literal["open"])
    except msgspec.ValidationError as error:
        raise KeysError(
            [f"The keys have not the shape they must have: {_without_values(str(error))}."]
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise KeysError(["The keys are no YAML."]) from None
    if keys == _OPEN:
        return Keys(None, revision)
    problems = list(_problems(keys))
    if problems:
        raise KeysError(problems)
    return Keys(tuple(keys), revision)


def _without_values(message: str) -> str:
    """Return what msgspec says without what stands in the file, which may be a key: names and places are ours."""
    known = {*Key.__struct_fields__, "array", "object", "str", "int", "bool", "null", "float"}

    def shown(found: re.Match[str]) -> str:
        return (
            found[0] if found[1].startswith("$") or found[1] in known or found[1].startswith("^") else "'...'"
        )

    return re.sub(r"[`']([^`']*)[`']", shown, message)


def _problems(keys: list[Key]) -> Iterator[str]:
    for name, count in Counter(key.name for key in keys).items():
        if count > 1:
            yield f"The name '{name}' is that of {count} keys. Give each its own."
    names: dict[str, list[str]] = {}
    for key in keys:
        names.setdefault(key.sha256, []).append(key.name)
    for same in names.values():
        if len(same) > 1:
            yield f"The keys {', '.join(same)} are the same. Make one for each."


def digest(headers: Headers) -> bytes:
    """Return the hash of the key that a request presents; empty if it presents none.

    `Authorization: Bearer KEY` counts before `x-api-key: KEY`, which Anthropic's clients send.
    """
    other = b""
    for name, value in headers:
        match name.lower():
            case b"authorization" if value[:7].lower() == _BEARER and value[7:].strip():
                return hashlib.sha256(value[7:].strip()).digest()
            case b"x-api-key":
                other = other or value.strip()
    return hashlib.sha256(other).digest() if other else b""


class Caller:
    """Who asks: the name of the key, and what of the map it may use."""

    __slots__ = ("_whole", "admin", "meter", "name", "pick", "table")

    def __init__(self, name: str, whole: RoutingTable, key: Key | None, meter: Meter | None) -> None:
        self.name = name
        self.admin = key is None or key.admin
        self.meter = meter
        self._whole = whole
        self.table = whole
        #: Returns the route, as `RoutingTable.pick` does. Raises GatewayError: also model_not_allowed.
        self.pick: Callable[[str | None, str | None], Route] = whole.pick
        if key is not None and key.models != "all":
            self.table = whole.only(key.models)
            self.pick = self._pick

    def _pick(self, model: str | None, owned_by: str | None) -> Route:
        try:
            return self.table.pick(model, owned_by)
        except GatewayError as error:
            if error.code == "model_not_found" and model is not None and self._whole.knows(model):
                raise errors.model_not_allowed(self.name, model, self.table.names) from None
            raise


class Access:
    """Who may ask now: the live keys on the live map. What was used of a limit outlives both."""

    def __init__(self) -> None:
        self.keys = OPEN
        self.anyone: Caller | None = None
        self.has_model_limits = False
        self._callers: dict[bytes, Caller] = {}
        self._of_keys: dict[str, Meter] = {}
        self._of_models: dict[str, Meter] = {}

    def apply(self, keys: Keys, table: RoutingTable, now: float) -> None:
        """Make `keys` and `table` the live ones."""
        self.keys = keys
        given = {key.name: (f"the key '{key.name}'", key.limits) for key in keys.keys or ()}
        self._of_keys = _meters(self._of_keys, given, now)
        models = {m.model: (f"the model '{m.model}' (all keys together)", m.limits) for m in table.models}
        self._of_models = _meters(self._of_models, models, now)
        self.has_model_limits = bool(self._of_models)
        self._callers = {
            bytes.fromhex(key.sha256): Caller(key.name, table, key, self._of_keys.get(key.name))
            for key in keys.keys or ()
        }
        self.anyone = Caller("", table, None, None) if keys.keys is None else None

    def caller(self, presented: bytes) -> Caller:
        """Return who presents a key with this hash (empty: none).

        Raises GatewayError: missing_api_key or invalid_api_key.
        """
        if self.anyone is not None:
            return self.anyone
        found = self._callers.get(presented)
        if found is None:
            raise errors.invalid_api_key() if presented else errors.missing_api_key()
        return found

    def meters(self, caller: Caller, route: Route) -> tuple[Meter, ...]:
        """Return the meters that a request counts on; mostly none."""
        model = self._of_models.get(route.model)
        if model is None:
            return () if caller.meter is None else (caller.meter,)
        return (model,) if caller.meter is None else (caller.meter, model)


def _meters(known: dict[str, Meter], given: dict[str, tuple[str, Limits]], now: float) -> dict[str, Meter]:
    found = {}
    for name, (title, wanted) in given.items():
        if wanted == limits.NONE:
            continue
        meter = known.get(name)
        if meter is None:
            meter = Meter(title, wanted, now)
        else:
            meter.change(wanted, now)
        found[name] = meter
    return found
