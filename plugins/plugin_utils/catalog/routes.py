"""From the catalog to the routing map that the gateway serves by."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any


def routing_map(
    models: Sequence[Mapping[str, Any]], addresses: Mapping[str, Sequence[Any]], key_folder: str = ""
) -> dict[str, Any]:
    """The routing map of the catalog's `models`; `key_folder` is where the gateway finds the keys that engines want.

    `addresses` gives, per deployment, its backends as `{name, url}` (and `resolve`). The revision is the hash of the
    rest: the same routes have the same revision, on every run and on every machine. It changes with engines' keys, too,
    for the gateway reads them with the map.
    """
    routes = [
        {
            "model": model["model"],
            "aliases": list(model["aliases"]),
            **({"limits": dict(model["limits"])} if model["limits"] else {}),
            "engines": [_engine(engine, addresses, key_folder) for engine in model["engines"]],
        }
        for model in models
    ]
    marks = [engine["key"]["mark"] for model in models for engine in model["engines"] if "key" in engine]
    canonical = json.dumps(
        [routes, marks] if marks else routes, sort_keys=True, separators=(",", ":"), default=str
    )
    return {"revision": hashlib.sha256(canonical.encode()).hexdigest()[:8], "models": routes}


def _engine(
    engine: Mapping[str, Any], addresses: Mapping[str, Sequence[Any]], key_folder: str
) -> dict[str, Any]:
    backends = [
        {**backend, "weight": 1} for deployment in engine["deployments"] for backend in addresses[deployment]
    ]
    routed = {key: value for key, value in engine.items() if key not in ("deployments", "key")}
    key_file = {"key_file": f"{key_folder}/{engine['key']['of']}"} if "key" in engine else {}
    return {**routed, **key_file, "backends": backends}


def local_addresses(
    deployments: Sequence[Mapping[str, Any]], ports: Mapping[str, int]
) -> dict[str, list[dict[str, str]]]:
    """Per deployment its backends on platform local, from the port of each replica."""
    return {
        deployment["name"]: [
            {"name": name, "url": f"http://127.0.0.1:{ports[name]}"} for name in deployment["instances"]
        ]
        for deployment in deployments
    }


def smoke_questions(
    models: Sequence[Mapping[str, Any]],
    deployments: Sequence[Mapping[str, Any]],
    addresses: Mapping[str, Sequence[Any]],
) -> list[dict[str, Any]]:
    """Per (model, engine) pair what a smoke test must know to ask it and to judge who answered.

    `addresses` are those that the routing map is made of.
    """
    by_name = {deployment["name"]: deployment for deployment in deployments}
    return [
        {
            "model": model["model"],
            "owned_by": engine["owned_by"],
            "task": by_name[engine["deployments"][0]]["task"],
            "backends": [backend["name"] for d in engine["deployments"] for backend in addresses[d]],
        }
        for model in models
        for engine in model["engines"]
    ]
