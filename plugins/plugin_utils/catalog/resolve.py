"""From stacks and the engine table to one resolved structure, or to all the problems there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.roundhouse.llm.plugins.plugin_utils.catalog import shape
from ansible_collections.roundhouse.llm.plugins.plugin_utils.catalog.deployments import (
    command,
    instances,
    read_deployment,
)
from ansible_collections.roundhouse.llm.plugins.plugin_utils.catalog.engines import RUNS, read_engines
from ansible_collections.roundhouse.llm.plugins.plugin_utils.catalog.gpu import share_out
from ansible_collections.roundhouse.llm.plugins.plugin_utils.catalog.keys import check_keys, mark, read_keys
from ansible_collections.roundhouse.llm.plugins.plugin_utils.catalog.placement import describe, place
from ansible_collections.roundhouse.llm.plugins.plugin_utils.catalog.problems import (
    Problems,
    did_you_mean,
    or_known,
)

#: What a label of DNS may have, in characters.
_LONGEST_NAME = 63


def resolve(
    stacks: Any,
    stack: str,
    platform: str,
    engines: Any,
    gpus: Sequence[Mapping[str, Any]] | None = None,
    api_keys: Any = None,
) -> dict[str, Any]:
    """The catalog of one stack on one platform, whose GPUs are `gpus` (None: not known; each with `index`, `uuid`).

    `api_keys` are those that engines want, by deployment. Nothing of them is in the result but marks.

    Returns `problems` (sentences; empty if all is well), and if it is empty also `stack`, `platform`, `placement` (who
    is on which GPU, in words; empty if Kubernetes chooses), `deployments` (in start order), `engines` (what each of
    them needs installed) and `models` (what the routing map is made of).
    """
    problems = Problems()
    table = read_engines(engines, problems)
    broken = {str(name) for name in engines} - set(table) if shape.is_mapping(engines) else set()
    entries = _entries(stacks, stack, problems)
    if platform not in RUNS:
        problems.add(f"there is no platform '{platform}'{or_known(platform, RUNS)}")
        return {"problems": problems.sentences}
    deployments: list[dict[str, Any]] = []
    for index, given in enumerate(entries):
        # An engine whose definition is broken is already a problem of its own.
        if shape.is_mapping(given) and str(given.get("engine")) in broken:
            continue
        entry = read_deployment(given, platform, table, problems.at(_place(stack, index, given)))
        if entry is not None:
            deployments.append(entry)
    _check_names(deployments, problems)
    _check_gpus(deployments, platform, problems, has_gpus=gpus is None or len(gpus) > 0)
    on_stack = problems.at(f"stack {stack}")
    cards = place(deployments, gpus, platform, on_stack)
    placement = describe(cards) if any(entry["gpu_ids"] for entry in deployments) else ""
    share_out(cards, on_stack)
    keys = read_keys(api_keys, stacks, problems)
    check_keys(deployments, keys, table, problems)
    marks = {
        entry["name"]: mark(entry["name"], keys[entry["name"]])
        for entry in deployments
        if entry["name"] in keys
    }
    models = _models(deployments, table, marks, problems)
    if problems.sentences:
        return {"problems": problems.sentences}
    return {
        "problems": [],
        "stack": stack,
        "platform": platform,
        "placement": placement,
        "deployments": [_deployment(entry, table[entry["engine"]], platform, marks) for entry in deployments],
        "engines": {
            entry["engine"]: {
                "phases": table[entry["engine"]]["phases"],
                **{
                    key: table[entry["engine"]]["runs"][RUNS[platform]].get(key)
                    for key in ("requirements", "scarce", "memory")
                },
            }
            for entry in deployments
        },
        "models": models,
    }


def _entries(stacks: Any, stack: str, problems: Problems) -> Sequence[Any]:
    if not shape.is_mapping(stacks) or not stacks:
        problems.add("there are no stacks: write some into roundhouse_stacks.")
        return []
    if stack not in stacks:
        names = [str(name) for name in stacks]
        problems.add(
            f"there is no stack '{stack}'{did_you_mean(stack, names)} The stacks are: {', '.join(names)}."
        )
        return []
    entries = stacks[stack]
    if not isinstance(entries, list):
        problems.at(f"stack {stack}").add(
            f"must be a list of deployments, not {shape.describe(entries)}: start each one with '- name:'."
        )
        return []
    if not entries:
        problems.at(f"stack {stack}").add(
            "is empty: write at least one deployment (name, model, engine), or stop what runs with stop.yml."
        )
    return entries


def _place(stack: str, index: int, given: Any) -> str:
    name = given.get("name") if shape.is_mapping(given) else None
    return f"stack {stack}, deployment {index + 1}" + (f" ({name})" if shape.is_text(name) else "")


def _check_names(deployments: Sequence[dict[str, Any]], problems: Problems) -> None:
    owners: dict[str, str] = {}
    for entry in deployments:
        replicas = f"{entry['name']}-replicas"
        if entry["replicas"] > 1 and len(replicas) > _LONGEST_NAME:
            problems.at(entry["place"]).add(
                f"with replicas, a name may have {_LONGEST_NAME - len('-replicas')} characters, "
                f"and '{entry['name']}' has {len(entry['name'])}: choose a shorter one."
            )
        more = (replicas,) if entry["replicas"] > 1 else ()
        for name in {entry["name"], *instances(entry), *more}:
            if name in owners:
                problems.at(entry["place"]).add(
                    f"the name '{name}' is already that of {owners[name]}: choose another."
                )
            owners.setdefault(name, entry["place"])


def _check_gpus(
    deployments: Sequence[dict[str, Any]], platform: str, problems: Problems, *, has_gpus: bool
) -> None:
    for entry in deployments:
        if entry["gpus"] and platform == "k3d" and not has_gpus:
            problems.at(entry["place"]).add(
                f"{entry['engine']} wants a GPU here, and roundhouse_gpus is none: choose an engine that serves on "
                "the CPU, or use a machine with an NVIDIA GPU (docs/gpu.md)."
            )


def _models(
    deployments: Sequence[dict[str, Any]],
    table: Mapping[str, Any],
    marks: Mapping[str, str],
    problems: Problems,
) -> list[dict[str, Any]]:
    """Per model its aliases and engines, each with its deployments; checks what holds across deployments."""
    by_model: dict[str, list[dict[str, Any]]] = {}
    for entry in deployments:
        by_model.setdefault(entry["model"], []).append(entry)
    _check_aliases(by_model, problems)
    models: list[dict[str, Any]] = []
    for model, entries in by_model.items():
        by_owner: dict[str, list[dict[str, Any]]] = {}
        for entry in entries:
            by_owner.setdefault(entry["owned_by"].lower(), []).append(entry)
        defaults = [o for o, es in by_owner.items() if any(e["default"] for e in es)]
        _check_default(model, by_owner, defaults, problems)
        _check_limits(model, entries, problems)
        models.append(
            {
                "model": model,
                "aliases": list(dict.fromkeys(alias for entry in entries for alias in entry["aliases"])),
                "limits": next((entry["limits"] for entry in entries if entry["limits"]), {}),
                "engines": [
                    _route(es, table[es[0]["engine"]], marks, default=len(by_owner) == 1 or owner in defaults)
                    for owner, es in by_owner.items()
                ],
            }
        )
    return models


def _check_default(
    model: str, by_owner: Mapping[str, Sequence[dict[str, Any]]], defaults: Sequence[str], problems: Problems
) -> None:
    if len(by_owner) < 2 or len(defaults) == 1:
        return
    names = {o: " and ".join(e["name"] for e in es) for o, es in by_owner.items()}
    if not defaults:
        problems.add(
            f"model {model} has several engines ({', '.join(by_owner)}) and no default: "
            f"set default: true on one of {', '.join(names.values())}."
        )
    else:
        problems.add(
            f"model {model} has {len(defaults)} defaults ({', '.join(names[o] for o in defaults)}): "
            "leave default: true on one engine only."
        )


def _check_limits(model: str, entries: Sequence[dict[str, Any]], problems: Problems) -> None:
    saying = [entry for entry in entries if entry["limits"]]
    if any(entry["limits"] != saying[0]["limits"] for entry in saying):
        problems.add(
            f"model {model} has different limits ({', '.join(entry['name'] for entry in saying)}), and they are of the "
            "model, whichever engine serves it: write them once, or the same."
        )


def _check_aliases(by_model: Mapping[str, Sequence[dict[str, Any]]], problems: Problems) -> None:
    owners: dict[str, str] = {}
    for model, entries in by_model.items():
        for entry in entries:
            for alias in dict.fromkeys(entry["aliases"]):
                if alias in by_model:
                    problems.at(entry["place"]).add(
                        f"the alias '{alias}' is a model of this stack itself: choose another alias."
                    )
                elif owners.setdefault(alias, model) != model:
                    problems.at(entry["place"]).add(
                        f"the alias '{alias}' is already one of {owners[alias]}: choose another."
                    )


def _route(
    entries: Sequence[dict[str, Any]], engine: Mapping[str, Any], marks: Mapping[str, str], *, default: bool
) -> dict[str, Any]:
    name = entries[0]["name"]
    return {
        "owned_by": engine["owned_by"],
        "default": default,
        "served_model": entries[0]["model"],
        "deployments": [entry["name"] for entry in entries],
        "health": engine["health"],
        "timeouts": engine["timeouts"],
        "max_in_flight": engine["max_in_flight"],
        **({"key": {"of": name, "mark": marks[name]}} if name in marks else {}),
    }


def _deployment(
    entry: Mapping[str, Any], engine: Mapping[str, Any], platform: str, marks: Mapping[str, str]
) -> dict[str, Any]:
    run = engine["runs"][RUNS[platform]]
    kept = ("name", "model", "engine", "owned_by", "weights", "task", "gpus", "gpu_ids", "gpu_memory",
            "gpu_sharers", "context_length", "replicas", "args", "resources", "startup_timeout")  # fmt: skip
    return {
        **{key: entry[key] for key in kept},
        "instances": instances(entry),
        "after": entry["after"],
        "converted": entry["weights"]["format"] not in engine["formats"],
        "command": command(entry, engine, platform),
        "env": {**{key: str(value) for key, value in run["env"].items()}, **entry["env"]},
        # None if it has no key.
        "key_env": engine["key_env"] if entry["name"] in marks else None,
        "key_mark": marks.get(entry["name"]),
        "image": run.get("image"),
        "cache": run.get("cache"),
        "user": run.get("user"),
        "health": engine["health"],
        "stop_timeout": engine["stop_timeout"],
    }
