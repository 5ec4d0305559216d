"""The routing map: its shape, its rules, and which route a request takes. Pure: nothing here does I/O.

The map is one YAML file that Ansible templates (section 6 of the design). `load` either returns a
`RoutingTable` or raises a `MapError` that names everything which is wrong with the map.
`RoutingTable.pick` costs a few dict look-ups, whether the map holds one model or a thousand.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Annotated
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct

from roundhouse_gateway import errors, limits
from roundhouse_gateway.limits import Limits

Text = Annotated[str, Meta(min_length=1)]
Seconds = Annotated[float, Meta(gt=0)]


class MapError(Exception):
    """The map can't be used; `problems` holds one sentence for each thing that is wrong with it."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__(" ".join(problems))
        self.problems = problems


class Backend(Struct, frozen=True, forbid_unknown_fields=True):
    """One address behind a route. `weight` is its share of new requests; 0 = none.

    With `resolve` every IP address that the host of `url` has is a backend of its own (a headless Service).
    """

    name: Text
    url: Text
    weight: Annotated[int, Meta(ge=0)] = 1
    resolve: bool = False


class Health(Struct, frozen=True, forbid_unknown_fields=True):
    """How the backends of a route are probed; times in seconds."""

    path: Annotated[str, Meta(pattern=r"^/[!-~]*$")] = "/health"
    interval: Seconds = 5.0
    timeout: Seconds = 5.0


class Timeouts(Struct, frozen=True, forbid_unknown_fields=True):
    """How long an engine may be silent, in seconds: until connected, until it answers, while it answers."""

    connect: Seconds = 5.0
    first_byte: Seconds = 600.0
    idle: Seconds = 120.0


class Engine(Struct, frozen=True, forbid_unknown_fields=True):
    """One engine that serves a model. `served_model` is what it calls the model itself, if not the same.

    `key_file` is where the key is that the engine itself wants, if it wants one.
    """

    owned_by: Text
    backends: list[Backend]
    default: bool = False
    served_model: Text | None = None
    health: Health = Health()
    timeouts: Timeouts = Timeouts()
    max_in_flight: Annotated[int, Meta(ge=1)] = 256
    key_file: Annotated[str, Meta(pattern=r"^/.+")] | None = None


class Model(Struct, frozen=True, forbid_unknown_fields=True):
    """One model: the names it is asked by, the engines that serve it, and the limits of all who ask together."""

    model: Text
    engines: list[Engine]
    aliases: list[Text] = []
    limits: Limits = limits.NONE


class RoutingMap(Struct, frozen=True, forbid_unknown_fields=True):
    """The file as it is written. `revision` is opaque."""

    revision: Text
    models: list[Model]


class Route(Struct, frozen=True, eq=False):
    """Where a request goes: one model on one engine. Routes are compared and hashed by identity."""

    model: str
    owned_by: str
    default: bool
    served_model: str
    backends: tuple[Backend, ...]
    health: Health
    timeouts: Timeouts
    max_in_flight: int
    key_file: str | None = None


class Name(Struct, frozen=True, eq=False):
    """What one name of a model (its id or an alias) leads to. The keys of `engines` are lower-case."""

    model: str
    default: Route
    engines: dict[str, Route]


class RoutingTable(Struct, frozen=True, eq=False):
    """A valid map, arranged for looking up."""

    revision: str
    models: tuple[Model, ...]
    routes: tuple[Route, ...]
    names: dict[str, Name]

    def pick(self, model: str | None, owned_by: str | None) -> Route:
        """Return the route of a request which names `model` and perhaps `owned_by`.

        Raises GatewayError: missing_model, model_not_found, engine_not_found or engine_conflict.
        """
        if model is None:
            raise errors.missing_model(self.names)
        name = self.names.get(model)
        if name is None:
            name, owned_by = self._pick_suffixed(model, owned_by)
        if owned_by is None:
            return name.default
        route = name.engines.get(owned_by.lower())
        if route is None:
            raise errors.engine_not_found(name.model, owned_by, (r.owned_by for r in name.engines.values()))
        return route

    def knows(self, model: str) -> bool:
        """Tell whether a model is served by this name, which may be written as MODEL@ENGINE."""
        return model in self.names or model.rpartition("@")[0] in self.names

    def only(self, models: Iterable[str]) -> "RoutingTable":
        """Return the part with these models, given by any of their names."""
        kept = {self.names[name].model for name in models if name in self.names}
        return RoutingTable(
            revision=self.revision,
            models=tuple(model for model in self.models if model.model in kept),
            routes=tuple(route for route in self.routes if route.model in kept),
            names={name: entry for name, entry in self.names.items() if entry.model in kept},
        )

    def _pick_suffixed(self, model: str, owned_by: str | None) -> tuple[Name, str]:
        """Return what a name written as MODEL@ENGINE stands for."""
        base, at, suffix = model.rpartition("@")
        name = self.names.get(base) if at else None
        if name is None:
            raise errors.model_not_found(model, self.names)
        if owned_by is not None and owned_by.lower() != suffix.lower():
            raise errors.engine_conflict(model, suffix, owned_by)
        return name, suffix


EMPTY = RoutingTable(revision="", models=(), routes=(), names={})


def load(content: bytes) -> RoutingTable:
    """Return the table of the map in `content`, which is YAML.

    Raises MapError: one problem if the file is no YAML or has another shape, else all problems of its
    meaning.
    """
    try:
        routing_map = msgspec.yaml.decode(content, type=RoutingMap)
    except msgspec.ValidationError as error:
        hint = ""
        if "`$.revision`" in str(error):
            hint = " Put quotes around it: a revision of digits only is a number to YAML."
        raise MapError([f"The map has not the shape it must have: {error}.{hint}"]) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MapError([f"The map is no YAML: {' '.join(str(error).split())}."]) from None
    problems = list(_problems(routing_map))
    if problems:
        raise MapError(problems)
    return _arrange(routing_map)


def _arrange(routing_map: RoutingMap) -> RoutingTable:
    routes: list[Route] = []
    names: dict[str, Name] = {}
    for model in routing_map.models:
        engines = {engine.owned_by.lower(): _route(model, engine) for engine in model.engines}
        default = next(route for route in engines.values() if route.default)
        routes += engines.values()
        name = Name(model=model.model, default=default, engines=engines)
        names |= dict.fromkeys((model.model, *model.aliases), name)
    return RoutingTable(
        revision=routing_map.revision, models=tuple(routing_map.models), routes=tuple(routes), names=names
    )


def _route(model: Model, engine: Engine) -> Route:
    return Route(
        model=model.model,
        owned_by=engine.owned_by,
        default=engine.default or len(model.engines) == 1,
        served_model=engine.served_model or model.model,
        backends=tuple(engine.backends),
        health=engine.health,
        timeouts=engine.timeouts,
        max_in_flight=engine.max_in_flight,
        key_file=engine.key_file,
    )


def _problems(routing_map: RoutingMap) -> Iterator[str]:
    """Yield a sentence for everything that is wrong with the meaning of the map."""
    models = [model.model for model in routing_map.models]
    for repeated in _repeated(models):
        yield f"The model '{repeated}' is listed twice. List it once, with all its engines."
    known = set(models)
    aliases = [alias for model in routing_map.models for alias in model.aliases]
    for alias in _repeated(aliases):
        yield f"The alias '{alias}' is given twice. An alias leads to one model."
    for alias in dict.fromkeys(aliases):
        if alias in known:
            yield f"The alias '{alias}' is also the name of a model. Take another alias."
    for model in routing_map.models:
        yield from _model_problems(model)
    backends = [b.name for m in routing_map.models for e in m.engines for b in e.backends]
    for name in _repeated(backends):
        yield f"The backend name '{name}' is used twice. Give each backend a name of its own."


def _model_problems(model: Model) -> Iterator[str]:
    if not model.engines:
        yield f"The model '{model.model}' has no engines. Give it one or more."
    for owned_by in _repeated(engine.owned_by.lower() for engine in model.engines):
        yield f"The model '{model.model}' has the engine '{owned_by}' twice. Join the two."
    defaults = [engine.owned_by for engine in model.engines if engine.default]
    if len(defaults) > 1:
        yield (
            f"The model '{model.model}' has {len(defaults)} default engines ({', '.join(defaults)})."
            " Keep `default: true` on one."
        )
    if not defaults and len(model.engines) > 1:
        yield f"The model '{model.model}' has several engines and no default. Set `default: true` on one."
    for engine in model.engines:
        if not engine.backends:
            yield f"The engine '{engine.owned_by}' of '{model.model}' has no backends. Give it one or more."
        for backend in engine.backends:
            if not _is_base_url(backend.url):
                yield (
                    f"The backend '{backend.name}' has the url '{backend.url}', which must be"
                    " http://HOST:PORT and nothing more."
                )


def _is_base_url(url: str) -> bool:
    if not (url.isascii() and url.isprintable()):
        return False
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    return (
        parts.scheme == "http"
        and bool(parts.hostname)
        and port != 0
        and parts.path in ("", "/")
        and not (parts.query or parts.fragment or " " in url)
        and "@" not in parts.netloc
    )


def _repeated(values: Iterable[str]) -> list[str]:
    return [value for value, count in Counter(values).items() if count > 1]
