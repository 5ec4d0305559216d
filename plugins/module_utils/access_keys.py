"""The gateway's keys, as their file has them: read, changed, written again. Nothing here touches a disk or a cluster.

The file is YAML: the word `open` (anyone may ask), or a list of keys. It has the SHA-256 of each, never the key itself.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from typing import Any

from ansible_collections.roundhouse.llm.plugins.module_utils.job import JobError

#: The Secret in a cluster, and the entries of it; on a host the same are files in one folder.
SECRET, KEYS_FILE, OPERATOR_FILE = "gateway-keys", "keys.yml", "operator.key"

#: The key by which we ask ourselves: its name, and so nobody else's.
OPERATOR = "operator"

#: Where a key comes from; without any it was written by hand.
INVENTORY, PLAYBOOK = "inventory", "playbook"
_ORIGINS = (INVENTORY, PLAYBOOK, OPERATOR)

_OPEN = "open"
_ALL = "all"

_HEADER = """\
# The keys that the gateway takes: names, hashes and rights; it reads them again when they change. Written by
# playbooks/keys.yml and playbooks/serve.yml. Keys that are added by hand stay, comments do not.
"""

# What might be a key, ours or somebody's.
_SECRET = re.compile(r"rh-|sk-|[A-Za-z0-9_+/=-]{24}")

_NAME = re.compile(r"[A-Za-z0-9._@-]{1,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")

LIMITS = ("requests_per_minute", "tokens_per_minute", "max_in_flight")


@dataclass(frozen=True)
class Key:
    """One key: who has it, and what it may. `models` is None for all of them."""

    name: str
    sha256: str
    models: tuple[str, ...] | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_in_flight: int | None = None
    admin: bool = False
    origin: str | None = None

    def rights(self) -> str:
        """What it may, in words."""
        words = [f"models {_ALL if self.models is None else ', '.join(self.models)}"]
        words += [f"{name} {value}" for name in LIMITS if (value := getattr(self, name)) is not None]
        return "; ".join([*words, *(["admin"] if self.admin else [])])


#: All keys; None if anyone may ask.
Keys = tuple[Key, ...] | None

FIELDS = tuple(field.name for field in fields(Key))


def digest(key: str) -> str:
    """What the file has of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def new_key() -> str:
    """A key that nobody can guess."""
    return f"rh-{secrets.token_urlsafe(32)}"


def access(text: str) -> str:
    """What the gateway's /readyz says when this is the content of the file that it goes by."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def parse(text: str, place: str) -> Keys:
    """The keys of a file. Raises JobError with all that is wrong."""
    if text.strip() == _OPEN:
        return None
    try:
        yaml = importlib.import_module("yaml")
    except ImportError as error:
        raise JobError(
            f"This Python has no YAML ({error}): set ansible_python_interpreter to one that has the package PyYAML."
        ) from error
    try:
        given = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise JobError(f"{place} is no YAML, nothing was changed: {' '.join(str(error).split())}.") from error
    if given == _OPEN:
        return None
    return read(given, place, ours=False)


def read(given: Any, place: str, *, ours: bool) -> tuple[Key, ...]:
    """The keys of a list, as YAML has it. Raises JobError with all that is wrong.

    `ours`: they are of the inventory, so they have no origin yet, and names as we want them.
    """
    if not isinstance(given, list):
        kind = f"a list of keys{'' if ours else ', or the word open'}"
        raise JobError(f"{place} must be {kind}, and is {_shown(given)}. Nothing was changed.")
    problems: list[str] = []
    found = [_read(entry, f"{place}, key {index + 1}", ours, problems) for index, entry in enumerate(given)]
    whole = [key for key in found if key is not None]
    problems += _twice(whole, place)
    if problems:
        raise JobError("\n  - ".join(["The keys can't be used, nothing was changed:", *problems]))
    return tuple(whole)


def _read(entry: Any, place: str, ours: bool, problems: list[str]) -> Key | None:
    known = [name for name in FIELDS if not (ours and name == "origin")]
    if not isinstance(entry, Mapping):
        problems.append(f"{place}: must be a mapping of {', '.join(known)}, not {_shown(entry)}.")
        return None
    before = len(problems)
    if isinstance(entry.get("name"), str):
        place = f"{place} ({entry['name']})"
    for unknown in [str(key) for key in entry if key not in known]:
        shown = "that may be a key itself" if _SECRET.search(unknown) else f"'{unknown}'"
        problems.append(f"{place}: unknown key {shown}{did_you_mean(unknown, known)}")
    checks = dict(_CHECKS) | ({"name": _OUR_NAME} if ours else {})
    for name in known:
        value = entry.get(name)
        wanted, check = checks[name]
        if value is None and name in ("name", "sha256"):
            problems.append(f"{place}: '{name}' is missing: give it {wanted}.")
        elif value is not None and not check(value):
            # What was written in the place of a hash may be the key itself.
            shown = "what it is" if name == "sha256" else _shown(value)
            problems.append(f"{place}: '{name}' must be {wanted}, not {shown}.")
    if len(problems) > before:
        return None
    given = {name: entry[name] for name in known if entry.get(name) is not None}
    models = given.pop("models", _ALL)
    key = Key(**given, models=None if models == _ALL else tuple(models))
    problem = _reserved(key, place)
    problems += [problem] if problem else []
    return None if problem else key


def _reserved(key: Key, place: str) -> str | None:
    if (key.name == OPERATOR) == (key.origin == OPERATOR):
        return None
    if key.name == OPERATOR:
        return f"{place}: {_RESERVED}"
    return f"{place}: the origin {OPERATOR} is that of the key {OPERATOR}: take 'origin' out."


_RESERVED = f"the name {OPERATOR} is that of our own key, by which the smoke test and make status ask: choose another."


def _twice(keys: Sequence[Key], place: str) -> list[str]:
    """Sentences about names and hashes that several keys have."""
    problems = []
    hashes: dict[str, str] = {}
    names: set[str] = set()
    for key in keys:
        if key.name in names:
            problems.append(f"{place}: there are two keys '{key.name}': give each a name of its own.")
        elif key.sha256 in hashes:
            other = hashes[key.sha256]
            problems.append(
                f"{place}: '{other}' and '{key.name}' are the same key: make one for each, so that each can be revoked."
            )
        names.add(key.name)
        hashes.setdefault(key.sha256, key.name)
    return problems


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value) and value.isprintable()


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_models(value: Any) -> bool:
    return value == _ALL or (isinstance(value, list) and bool(value) and all(map(_is_text, value)))


_Check = tuple[str, Callable[[Any], bool]]
_COUNT: _Check = ("a whole number from 1", _is_count)
_CHECKS: Mapping[str, _Check] = {
    "name": ("a name", _is_text),
    "sha256": (
        "the SHA-256 of the key, 64 hex digits in lower case and in quotes",
        lambda value: isinstance(value, str) and _SHA256.fullmatch(value) is not None,
    ),
    "models": ("all, or a list of models or aliases", _is_models),
    **dict.fromkeys(LIMITS, _COUNT),
    "admin": ("true or false", lambda value: isinstance(value, bool)),
    "origin": (f"one of {', '.join(_ORIGINS)}", _ORIGINS.__contains__),
}
_OUR_NAME: _Check = (
    "1 to 63 of letters, digits, '.', '_', '-' and '@'",
    lambda value: isinstance(value, str) and _NAME.fullmatch(value) is not None,
)


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    if _SECRET.search(text):
        return "what it is"  # which may be a key
    return text if len(text) <= 60 else f"{text[:57]}..."


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the closest known word, else the list of them."""
    words = {name.lower(): name for name in sorted(known)}
    close = get_close_matches(word.lower(), words, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{words[close[0]]}'?"
    return f"; there are: {', '.join(words.values())}." if words else "; there are none."


def merged(keys: Keys, inventory: Sequence[Key]) -> Keys:
    """The keys with those of the inventory in the place of what came from it before. Raises JobError."""
    others = [key for key in keys or () if key.origin != INVENTORY]
    problems = [
        f"the key '{key.name}' is in gateway_keys of the inventory, and {_from(other)}, too: rename yours, or "
        f'revoke the other (make keys ARGS="-e keys_revoke={key.name}").'
        for key in inventory
        for other in others
        if other.name == key.name
    ]
    problems += [
        f"the keys '{key.name}' of gateway_keys and '{other.name}' ({_from(other)}) are the same: make one for each."
        for key in inventory
        for other in others
        if other.sha256 == key.sha256 and other.name != key.name
    ]
    if problems:
        raise JobError("\n  - ".join(["The keys can't be used, nothing was changed:", *problems]))
    if keys is None and not inventory:
        return None
    # Each in its place, so that the same keys make the same file.
    ours = {key.name: replace(key, origin=INVENTORY) for key in inventory}
    there = [ours.pop(key.name, None) if key.origin == INVENTORY else key for key in keys or ()]
    return (*(key for key in there if key is not None), *ours.values())


def _from(key: Key) -> str:
    if key.origin == INVENTORY:
        return "of the inventory"
    return "made by playbooks/keys.yml" if key.origin == PLAYBOOK else "written into the file by hand"


def created(keys: Keys, key: Key) -> tuple[Key, ...]:
    """The keys and one more. Raises JobError."""
    problems = []
    for name, (wanted, check) in ({**_CHECKS, "name": _OUR_NAME}).items():
        value = getattr(key, name)
        value = list(value) if isinstance(value, tuple) else value
        if value is not None and not check(value):
            problems.append(f"'{name}' must be {wanted}, not {_shown(value)}.")
    if key.name == OPERATOR:
        problems.append(_RESERVED)
    if problems:
        raise JobError("\n  - ".join([f"The key '{key.name}' can't be made:", *problems]))
    others = keys or ()
    same = next((other for other in others if other.name == key.name), None)
    if same is not None:
        raise JobError(
            f"There is a key '{key.name}' already ({_from(same)}): choose another name, or revoke that one first."
        )
    return (*others, key)


def revoked(keys: Keys, name: str) -> tuple[Key, ...]:
    """The keys without one of them. Raises JobError."""
    if name == OPERATOR:
        raise JobError(
            f"The key {OPERATOR} is our own, by which the smoke test and make status ask: it stays as long as there "
            f"are keys. To have it made anew, delete {OPERATOR_FILE} beside the keys, and serve again."
        )
    names = [key.name for key in keys or () if key.name != OPERATOR]
    found = next((key for key in keys or () if key.name == name), None)
    if found is None:
        raise JobError(f"There is no key '{name}'{did_you_mean(name, names)}")
    if found.origin == INVENTORY:
        raise JobError(
            f"The key '{name}' is in gateway_keys of the inventory, and would be back with the next run: take it out "
            "there, and serve again."
        )
    return tuple(key for key in keys or () if key is not found)


def with_operator(keys: Keys, plain: str) -> Keys:
    """The keys with our own among them; it is in its place already if there was one. None stays None."""
    if keys is None:
        return None
    ours = Key(OPERATOR, digest(plain), admin=True, origin=OPERATOR)
    if any(key.name == OPERATOR for key in keys):
        return tuple(ours if key.name == OPERATOR else key for key in keys)
    return (*keys, ours)


def render(keys: Keys) -> str:
    """The content of the file."""
    if keys is None:
        return f"{_OPEN}\n"
    if not keys:
        return f"{_HEADER}[]\n"
    return _HEADER + "".join(_entry(key) for key in keys)


def _entry(key: Key) -> str:
    """A key in YAML: what JSON has for a text is one in YAML, too."""
    values: dict[str, Any] = {
        "name": key.name,
        "sha256": key.sha256,
        "models": None if key.models is None else list(key.models),
        **{name: getattr(key, name) for name in LIMITS},
        "admin": key.admin or None,
        "origin": key.origin,
    }
    lines = [
        f"{name}: {json.dumps(value, ensure_ascii=False)}"
        for name, value in values.items()
        if value is not None
    ]
    return "- " + "\n  ".join(lines) + "\n"


def rows(keys: Keys) -> list[dict[str, Any]]:
    """One flat row per key, for a table."""
    return [
        {
            "name": key.name,
            "models": _ALL if key.models is None else ", ".join(key.models),
            **{name: getattr(key, name) for name in LIMITS},
            "admin": "yes" if key.admin else None,
            "from": key.origin or "by hand",
        }
        for key in keys or ()
    ]


def difference(old: Keys, new: Keys) -> dict[str, str]:
    """Ansible's diff: names and rights, and nothing of the keys or their hashes."""
    before = {key.name: key.sha256 for key in old or ()}

    def shown(keys: Keys) -> str:
        if keys is None:
            return f"{_OPEN}\n"
        lines = []
        for key in keys:
            another = keys is new and before.get(key.name, key.sha256) != key.sha256
            lines.append(f"{key.name}: {key.rights()}{'; another key' if another else ''}\n")
        return "".join(lines)

    return {"before": shown(old), "after": shown(new), "before_header": "keys", "after_header": "keys"}
