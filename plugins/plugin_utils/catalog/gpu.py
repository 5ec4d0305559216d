"""GPU memory: from a share of one GPU to the number that each engine's own flag wants.

vLLM's --gpu-memory-utilization is a share of the TOTAL memory, SGLang's --mem-fraction-static one of what is
FREE when it starts. Engines that share a GPU start in catalog order, each ready before the next, so what is
free for one is what the shares before it left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import ROUND_DOWN, Decimal
from typing import Any

from ansible_collections.roundhouse.llm.plugins.plugin_utils.catalog.problems import Problems

#: What engines may take of a GPU; the rest is the CUDA contexts' and the driver's.
MOST = Decimal("0.95")

#: The share of a deployment that has its GPU for itself and names none: vLLM's own default.
ALONE = Decimal("0.90")

_STEP = Decimal("0.001")


def flag_value(share: Decimal, taken: Decimal, of: str) -> Decimal:
    """The engine's own number for `share` of a GPU of which `taken` is in use when it starts.

    `of` is what the flag is a share of: 'total' or 'free'. Rounded down to 0.001: never more than was given.
    """
    value = share if of == "total" else share / (1 - taken)
    return value.quantize(_STEP, rounding=ROUND_DOWN)


def share_out(deployments: Sequence[dict[str, Any]], problems: Problems) -> None:
    """Give every deployment on the GPU its `gpu_memory`, `gpu_memory_flag` and `after`, in start order.

    `after` are the names of those that must be ready before it starts, for it sizes itself by what they left.
    Each deployment has `place`, `gpus`, `replicas`, `gpu_memory` (a share or None) and `gpu_memory_of`.
    """
    users = [d for d in deployments if d["gpus"] > 0]
    shared = len(users) > 1 or any(d["replicas"] > 1 for d in users)
    taken = Decimal(0)
    for index, user in enumerate(users):
        user["after"] = [earlier["name"] for earlier in users[:index]]
        if user["gpu_memory"] is None and shared:
            others = ", ".join(d["name"] for d in users if d is not user) or "its own replicas"
            problems.at(user["place"]).add(
                f"'gpu_memory' is missing, and the GPU is shared with {others}: "
                "say which share of the GPU's memory it gets, e.g. gpu_memory: 0.40."
            )
            continue
        share = ALONE if user["gpu_memory"] is None else Decimal(str(user["gpu_memory"]))
        if user["gpu_memory_of"] == "free" and user["replicas"] > 1:
            problems.at(user["place"]).add(
                f"{user['engine']} sizes itself by the memory that is free when it starts, so its replicas "
                "can't share a GPU: set replicas: 1, or write one deployment per replica."
            )
        if user["gpu_memory_of"] is not None and taken < 1:
            user["gpu_memory_flag"] = float(flag_value(share, taken, user["gpu_memory_of"]))
        user["gpu_memory"] = float(share)
        taken += share * user["replicas"]
    if taken > MOST:
        shares = " + ".join(
            f"{d['name']} {d['gpu_memory']}" + (f" x {d['replicas']}" if d["replicas"] > 1 else "")
            for d in users
            if d["gpu_memory"] is not None
        )
        problems.add(
            f"the GPU memory shares add up to {taken} ({shares}), and engines may take {MOST} of a GPU: "
            "lower 'gpu_memory' of some."
        )


def misfits(
    deployments: Sequence[Mapping[str, Any]], weights: Sequence[Mapping[str, Any]], memory: int
) -> list[str]:
    """What can't fit into a GPU of `memory` bytes: a sentence for each deployment whose weights alone take its share.

    `weights` are the results of the module weights, in the order of the deployments; `bytes` is their size.
    """
    sentences = []
    for deployment, fetched in zip(deployments, weights, strict=True):
        if not deployment["gpus"]:
            continue
        size, share = fetched.get("bytes") or 0, deployment["gpu_memory"]
        room = share * memory * deployment["gpus"]
        if size > room:
            sentences.append(
                f"{deployment['name']}: its weights take {size / 1e9:.1f} GB, and {share:g} of a GPU with "
                f"{memory / 1e9:.1f} GB is {room / 1e9:.1f} GB: raise its gpu_memory, or choose a smaller or quantized "
                "model."
            )
    return sentences
