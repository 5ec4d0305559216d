"""One entry of a stack: read, checked by itself, and filled in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ansible_collections.roundhouse.llm.plugins.plugin_utils.catalog import shape
from ansible_collections.roundhouse.llm.plugins.plugin_utils.catalog.engines import RUNS, can_run
from ansible_collections.roundhouse.llm.plugins.plugin_utils.catalog.problems import Problems, or_known
from ansible_collections.roundhouse.llm.plugins.plugin_utils.catalog.shape import Key
from ansible_collections.roundhouse.llm.plugins.plugin_utils.catalog.weights import (
    check_format,
    check_place,
    loads_from_hub,
    read_weights,
)

_DNS_LABEL = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")

#: Names that parts of Roundhouse itself have.
RESERVED = ("gateway", "reaper")

TASKS = ("chat", "completion", "embedding")


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and _DNS_LABEL.fullmatch(value) is not None and value not in RESERVED


DEPLOYMENT_KEYS: Mapping[str, Key] = {
    "name": Key(
        "1 to 63 of a-z, 0-9 and '-', from a letter to a letter or digit, "
        f"and none of {', '.join(RESERVED)} (e.g. vllm-llama-32-1b)",
        _is_name,
        required=True,
    ),
    "model": Key("the model's id, as clients name it", shape.is_text, required=True),
    "engine": Key("an engine's name", shape.is_text, required=True),
    "default": Key("true or false", shape.is_bool, default=False),
    "aliases": Key("a list of names", shape.is_texts, default=[]),
    "weights": Key("a mapping", lambda _: True),  # read_weights says what is wrong with it
    "task": Key(f"one of {', '.join(TASKS)}", TASKS.__contains__, default="chat"),
    "gpus": Key("a number of GPUs from 0", shape.is_count),
    "gpu": Key("a GPU's number from 0, as nvidia-smi -L counts them", shape.is_count),
    "gpu_memory": Key("a share of one GPU above 0, up to 1", shape.is_share),
    "context_length": Key("a number of tokens", shape.is_positive_count),
    "replicas": Key("a number from 1", shape.is_positive_count, default=1),
    "limits": Key("a mapping of requests_per_minute, tokens_per_minute and max_in_flight", shape.is_mapping),
    "args": Key("a list of command line words", shape.is_words, default=[]),
    "env": Key("a mapping of environment variables", shape.is_scalars, default={}),
    "resources": Key("a mapping of Kubernetes requests and limits", shape.is_mapping, default={}),
    "startup_timeout": Key("a number of seconds", shape.is_seconds, default=1800),
}

#: What all keys together may use of the model.
LIMIT_KEYS: Mapping[str, Key] = {
    name: Key("a whole number from 1", shape.is_positive_count)
    for name in ("requests_per_minute", "tokens_per_minute", "max_in_flight")
}


def read_deployment(
    given: Any, platform: str, engines: Mapping[str, Any], problems: Problems
) -> dict[str, Any] | None:
    """The entry with defaults, its engine's facts and its weights; None if it can't be used further."""
    entry = shape.read(given, DEPLOYMENT_KEYS, problems)
    if entry is None or not all(entry[key] for key in ("name", "model", "engine")):
        return None
    entry["place"] = problems.place
    entry["limits"] = _read_limits(entry["limits"], problems)
    weights = read_weights(entry["weights"], entry["model"], problems)
    engine = engines.get(entry["engine"])
    if engine is None:
        problems.add(f"there is no engine '{entry['engine']}'{or_known(entry['engine'], engines)}")
        return None
    if not can_run(engine, platform):
        able = ", ".join(sorted(name for name, e in engines.items() if can_run(e, platform))) or "none"
        problems.add(f"{engine['name']} does not run on platform {platform}; engines that do: {able}.")
        return None
    if weights is None:
        return None
    check_format(weights, engine, platform, problems)
    check_place(weights, platform, problems)
    entry["weights"] = weights
    _read_gpus(entry, engine, platform, problems)
    entry["owned_by"] = engine["owned_by"]
    entry["gpu_memory_of"] = engine["gpu_memory_of"]
    entry["gpu_memory_flag"] = None
    entry["gpu_ids"] = []
    entry["gpu_sharers"] = 0
    entry["after"] = []
    entry["env"] = {key: _word(value) for key, value in entry["env"].items()}
    entry["args"] = [_word(word) for word in entry["args"]]
    return entry


def _read_limits(given: Any, problems: Problems) -> dict[str, int]:
    limits = shape.read(given or {}, LIMIT_KEYS, problems.at(f"{problems.place}, limits")) or {}
    return {name: value for name, value in limits.items() if value is not None}


def _read_gpus(entry: dict[str, Any], engine: Mapping[str, Any], platform: str, problems: Problems) -> None:
    if platform == "local":
        if entry["gpus"]:
            problems.add("platform local serves on the CPU: set gpus: 0, or run on platform k3d.")
        entry["gpus"] = 0
    elif entry["gpus"] is None:
        entry["gpus"] = engine["gpus"]
    if entry["gpu_memory"] is not None and entry["gpus"] == 0 and platform != "local":
        problems.add("'gpu_memory' is a share of a GPU, and 'gpus' is 0: drop one of the two.")
    if entry["gpu"] is not None and entry["gpus"] == 0:
        problems.add("'gpu' names a GPU, and it gets none here: drop 'gpu'.")


def instances(entry: Mapping[str, Any]) -> list[str]:
    """The names of a deployment's replicas: its own name, or NAME-0, NAME-1, ... if there are several."""
    if entry["replicas"] == 1:
        return [entry["name"]]
    return [f"{entry['name']}-{index}" for index in range(entry["replicas"])]


def command(entry: Mapping[str, Any], engine: Mapping[str, Any], platform: str) -> list[str]:
    """The engine's command line for this deployment, without the user's own `args`.

    What only the place where it runs can tell ({python}, {files}, {weights}, {host}, {port}) is left to `fill`.
    """
    facts = {"served_model": entry["model"]}
    weights = entry["weights"]
    from_hub = loads_from_hub(weights, platform)
    if from_hub:
        facts |= {
            "weights": weights["hf"],
            "repository": weights["hf"],
            "revision": weights["revision"],
            "file": weights["file"] or "",
        }
    words = [
        *engine["runs"][RUNS[platform]]["command"],
        *engine["weights"].get("hub" if from_hub else "file", []),
        *engine["arguments"],
    ]
    settings = {
        "context_length": entry["context_length"],
        "gpu_memory": entry["gpu_memory_flag"],
        "gpus": entry["gpus"] if entry["gpus"] > 1 else None,
    }
    for key, option in engine["options"].items():
        if settings[key] is not None:
            facts[key] = _word(settings[key])
            words += option
    return fill(words, facts)


def fill(words: list[Any], facts: Mapping[str, Any]) -> list[str]:
    """Each word with the `{fact}`s that are known put in; other braces stay as they are."""
    pattern = re.compile("|".join(re.escape(f"{{{name}}}") for name in facts) or "(?!)")
    return [pattern.sub(lambda match: str(facts[match.group()[1:-1]]), _word(word)) for word in words]


def _word(value: Any) -> str:
    """A YAML scalar as a command line or an environment has it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
