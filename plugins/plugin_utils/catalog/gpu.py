"""GPU memory: from a share of one GPU to the number that each engine's own flag wants.

vLLM's --gpu-memory-utilization is a share of the TOTAL memory, SGLang's --mem-fraction-static one of what is
FREE when it starts. Engines that share a GPU start in catalog order, each ready before the next, so what is
free for one is what the shares before it left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import ROUND_DOWN, Decimal
from typing import Any

from ansible_collections.roundhouse.llm.plugins.plugin_utils.catalog.placement import MOST, Card
from ansible_collections.roundhouse.llm.plugins.plugin_utils.catalog.problems import Problems

#: The share of a deployment that has its GPU for itself and names none: vLLM's own default.
ALONE = Decimal("0.90")

_STEP = Decimal("0.001")


def flag_value(share: Decimal, taken: Decimal, of: str) -> Decimal:
    """The engine's own number for `share` of a GPU of which `taken` is in use when it starts.

    `of` is what the flag is a share of: 'total' or 'free'. Rounded down to 0.001: never more than was given.
    """
    value = share if of == "total" else share / (1 - taken)
    return value.quantize(_STEP, rounding=ROUND_DOWN)


def share_out(cards: Sequence[Card], problems: Problems) -> None:
    """Give every deployment on a GPU its `gpu_memory`, `gpu_memory_flag`, `gpu_sharers` and `after`, in start order.

    `gpu_sharers` is the number of pods that share its GPU, itself included. `after` are the names of those that must be
    ready before it starts, for it sizes itself by what they left.
    """
    for card in cards:
        _share_out(card, problems)


def _share_out(card: Card, problems: Problems) -> None:
    users = card.users
    shared = not card.own and (len(users) > 1 or any(d["replicas"] > 1 for d in users))
    taken = Decimal(0)
    described = card.describe()
    for index, user in enumerate(users):
        user["after"] += [e["name"] for e in users[:index] if e["name"] not in user["after"]]
        user["gpu_sharers"] = sum(d["replicas"] for d in users) if shared else 1
        if user["gpu_memory"] is None and shared:
            others = ", ".join(d["name"] for d in users if d is not user) or "its own replicas"
            problems.at(user["place"]).add(
                f"'gpu_memory' is missing, and the GPU is shared with {others}: "
                "say which share of the GPU's memory it gets, e.g. gpu_memory: 0.40."
            )
            continue
        share = ALONE if user["gpu_memory"] is None else Decimal(str(user["gpu_memory"]))
        if user["gpu_memory_of"] == "free" and user["replicas"] > 1 and shared:
            problems.at(user["place"]).add(
                f"{user['engine']} sizes itself by the memory that is free when it starts, so its replicas "
                "can't share a GPU: set replicas: 1, or write one deployment per replica."
            )
        if user["gpu_memory_of"] is not None and taken < 1:
            user["gpu_memory_flag"] = float(flag_value(share, taken, user["gpu_memory_of"]))
        user["gpu_memory"] = float(share)
        taken += share * (user["replicas"] if shared else 1)
    if taken > MOST:
        where = "" if card.index is None else f" on {card.name}"
        problems.add(
            f"the GPU memory shares{where} add up to {taken} ({described}), and engines may take {MOST} of a GPU: "
            "lower 'gpu_memory' of some."
        )


def misfits(
    deployments: Sequence[Mapping[str, Any]],
    weights: Sequence[Mapping[str, Any]],
    gpus: Sequence[Mapping[str, Any]],
) -> list[str]:
    """What can't fit into its GPU: a sentence for each deployment whose weights alone take its share.

    `weights` are the results of the module weights, in the order of the deployments; `bytes` is their size. `gpus` are
    the cluster's, each with `uuid` and `memory_mib` (None where it is not known).
    """
    sentences = []
    for deployment, fetched in zip(deployments, weights, strict=True):
        if not deployment["gpus"]:
            continue
        own = [gpu for gpu in gpus if gpu["uuid"] in deployment["gpu_ids"]] or gpus
        known = [gpu["memory_mib"] for gpu in own if gpu["memory_mib"]]
        if not known:
            continue
        memory = min(known) * 1024 * 1024
        size, share = fetched.get("bytes") or 0, deployment["gpu_memory"]
        room = share * memory * deployment["gpus"]
        if size > room:
            sentences.append(
                f"{deployment['name']}: its weights take {size / 1e9:.1f} GB, and {share:g} of a GPU with "
                f"{memory / 1e9:.1f} GB is {room / 1e9:.1f} GB: raise its gpu_memory, or choose a smaller or quantized "
                "model."
            )
    return sentences
