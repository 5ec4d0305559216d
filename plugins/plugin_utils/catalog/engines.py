"""The engine table: one definition per engine, data that every other part reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.roundhouse.llm.plugins.plugin_utils.catalog import shape
from ansible_collections.roundhouse.llm.plugins.plugin_utils.catalog.problems import Problems
from ansible_collections.roundhouse.llm.plugins.plugin_utils.catalog.shape import Key

#: How each platform runs an engine: the key under `runs` of its definition.
RUNS = {"local": "process", "k3d": "container", "kubernetes": "container"}

FORMATS = ("gguf", "safetensors")


def _is_formats(value: Any) -> bool:
    return shape.is_texts(value) and bool(value) and all(item in FORMATS for item in value)


def _is_weight_words(value: Any) -> bool:
    return shape.is_mapping(value) and all(
        key in ("file", "hub") and shape.is_words(words) for key, words in value.items()
    )


def _is_options(value: Any) -> bool:
    return shape.is_mapping(value) and all(
        key in ("context_length", "gpu_memory", "gpus") and shape.is_words(words)
        for key, words in value.items()
    )


ENGINE_KEYS: Mapping[str, Key] = {
    "title": Key("the engine's name as its makers write it", shape.is_text, required=True),
    "owned_by": Key("the word that clients name in owned_by", shape.is_text),
    "formats": Key(f"a list of weight formats out of {', '.join(FORMATS)}", _is_formats, required=True),
    "gpus": Key("the number of GPUs that a deployment takes unless it says", shape.is_count, default=0),
    "gpu_memory_of": Key(
        "'total' or 'free': what its memory flag is a share of", ("total", "free").__contains__
    ),
    "arguments": Key("a list of command line words", shape.is_words, default=[]),
    "weights": Key(
        "command line words that name the weights: as a 'file' (or folder), and of the 'hub' that it loads from",
        _is_weight_words,
        default={},
    ),
    "options": Key(
        "command line words per deployment key (context_length, gpu_memory, gpus)", _is_options, default={}
    ),
    "health": Key("a mapping of path, interval and timeout", shape.is_mapping, default={}),
    "timeouts": Key("a mapping of connect, first_byte and idle", shape.is_mapping, default={}),
    "max_in_flight": Key("a number of requests", shape.is_positive_count, default=256),
    "phases": Key("a mapping of words in its log to what they mean", shape.is_scalars, default={}),
    "stop_timeout": Key("seconds between SIGTERM and SIGKILL", shape.is_seconds, default=30),
    "key_env": Key("the environment variable that it takes its API key from", shape.is_text),
    "runs": Key("a mapping of process and container", shape.is_mapping, required=True),
}
HEALTH_KEYS: Mapping[str, Key] = {
    "path": Key("a path", shape.is_text, default="/health"),
    "interval": Key("seconds", shape.is_seconds, default=5),
    "timeout": Key("seconds", shape.is_seconds, default=5),
}
TIMEOUT_KEYS: Mapping[str, Key] = {
    "connect": Key("seconds", shape.is_seconds, default=5),
    "first_byte": Key("seconds", shape.is_seconds, default=600),
    "idle": Key("seconds", shape.is_seconds, default=120),
}
RUN_KEYS: Mapping[str, Mapping[str, Key]] = {
    "process": {
        "command": Key("a list of command line words", shape.is_words, required=True),
        "env": Key("a mapping of environment variables", shape.is_scalars, default={}),
        "requirements": Key("exact pins, as in a requirements file", shape.is_text, default=""),
        "scarce": Key("a list of pins that not every package index has", shape.is_texts, default=[]),
        "converts": Key(f"a list of formats out of {', '.join(FORMATS)}", _is_formats, default=[]),
        "memory": Key("a mapping of base (bytes) and per_weight_byte", shape.is_mapping, default={}),
    },
    "container": {
        "image": Key("an image with its tag", shape.is_text, required=True),
        "command": Key("a list of command line words", shape.is_words, required=True),
        "env": Key("a mapping of environment variables", shape.is_scalars, default={}),
        "cache": Key("the folder in which it keeps what it compiles", shape.is_text),
        "user": Key(
            "the id of the user it runs as, if it need not be the image's own", shape.is_positive_count
        ),
    },
}


def read_engines(table: Any, problems: Problems) -> dict[str, dict[str, Any]]:
    """All definitions that are whole, by engine, with defaults filled in."""
    if not shape.is_mapping(table):
        problems.at("engines").add(f"must be a mapping of engines, not {shape.describe(table)}.")
        return {}
    engines = {}
    for name, given in table.items():
        before = len(problems.sentences)
        engine = _read_engine(str(name), given, problems.at(f"engines.{name}"))
        if engine is not None and len(problems.sentences) == before:
            engines[str(name)] = engine
    return engines


def _read_engine(name: str, given: Any, problems: Problems) -> dict[str, Any] | None:
    engine = shape.read(given, ENGINE_KEYS, problems)
    if engine is None:
        return None
    engine["name"] = name
    engine["owned_by"] = engine["owned_by"] or name
    for key, keys in (("health", HEALTH_KEYS), ("timeouts", TIMEOUT_KEYS)):
        engine[key] = shape.read(engine[key], keys, problems.at(f"{problems.place}.{key}"))
    runs = engine["runs"] or {}
    shape.read(runs, dict.fromkeys(RUN_KEYS, Key("a mapping", shape.is_mapping)), problems)
    engine["runs"] = {
        kind: shape.read(runs[kind], keys, problems.at(f"{problems.place}.runs.{kind}"))
        for kind, keys in RUN_KEYS.items()
        if shape.is_mapping(runs) and runs.get(kind) is not None
    }
    if "gpu_memory" in engine["options"] and engine["gpu_memory_of"] is None:
        problems.add("'gpu_memory_of' is missing: say whether the flag is a share of 'total' or 'free'.")
    return engine


def loads(engine: Mapping[str, Any], platform: str) -> list[str]:
    """The formats of weights that it takes on the platform, those that are converted for it included."""
    return [*engine["formats"], *engine["runs"][RUNS[platform]].get("converts", [])]


def can_run(engine: Mapping[str, Any], platform: str) -> bool:
    """Whether the engine has a way to run on the platform."""
    return RUNS[platform] in engine["runs"]
