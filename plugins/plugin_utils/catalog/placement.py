"""Which GPU each deployment gets.

Where the GPUs are known (platform k3d), they are given out here, and the pods are told theirs. Where they are not
(somebody else's cluster), Kubernetes chooses: what names no share is taken to have its GPUs for itself, the rest to
share one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from ansible_collections.roundhouse.llm.plugins.plugin_utils.catalog.problems import Problems

#: What engines may take of a GPU; the rest is the CUDA contexts' and the driver's.
MOST = Decimal("0.95")


@dataclass
class Card:
    """A GPU and the deployments on it. `index` is None where no number is known; `own`: each pod gets one like it."""

    index: int | None = None
    uuid: str = ""
    own: bool = False
    users: list[dict[str, Any]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """What to call it in a sentence."""
        return "the GPU" if self.index is None else f"GPU {self.index}"

    @property
    def taken(self) -> Decimal:
        """The shares given away."""
        return sum((_share(user) for user in self.users), Decimal(0))

    def describe(self) -> str:
        """Who has what of it."""
        users = [
            d["name"]
            + (f" {d['gpu_memory']}" if d["gpu_memory"] is not None else "")
            + (f" x {d['replicas']}" if d["replicas"] > 1 else "")
            for d in self.users
        ]
        return " + ".join(users) or "free"


def place(
    deployments: Sequence[dict[str, Any]],
    gpus: Sequence[Mapping[str, Any]] | None,
    platform: str,
    problems: Problems,
) -> list[Card]:
    """The GPUs with the deployments on each, in start order.

    `gpus` are those of the cluster, each with `index` and `uuid`; None: not known. Each deployment has `place`, `gpus`,
    `gpu`, `replicas` and `gpu_memory`; it gets `gpu_ids`, what its pods are to be told (empty: Kubernetes chooses).
    """
    users = [d for d in deployments if d["gpus"] > 0]
    for user in users:
        user["gpu_ids"] = []
    if platform == "kubernetes":
        return _theirs(users, problems)
    cards = [Card(int(gpu["index"]), str(gpu["uuid"])) for gpu in gpus or []] or [Card()]
    # The user's own choices first: what is left is for the others.
    for user in sorted(users, key=lambda d: d["gpu"] is None):
        chosen = _choose(user, cards, problems)
        for card in chosen:
            card.users.append(user)
        if len(cards) > 1:
            user["gpu_ids"] = [card.uuid for card in chosen]
    order = [d["name"] for d in users]
    for card in cards:
        card.users.sort(key=lambda d: order.index(d["name"]))
    return cards


def _theirs(users: Sequence[dict[str, Any]], problems: Problems) -> list[Card]:
    shared, own = Card(), []
    for user in users:
        if user["gpu"] is not None:
            problems.at(user["place"]).add(
                "'gpu' is for platform k3d; in a cluster that is not ours, Kubernetes chooses the GPU: drop it."
            )
        if user["gpu_memory"] is None or user["gpus"] > 1:
            own.append(Card(own=True, users=[user]))
        else:
            shared.users.append(user)
    return [shared, *own]


def _choose(user: dict[str, Any], cards: Sequence[Card], problems: Problems) -> list[Card]:
    """The cards for one deployment; empty, with a problem, if there are none."""
    place = problems.at(user["place"])
    if user["gpu"] is not None:
        found = [card for card in cards if user["gpu"] == (card.index or 0)]
        if user["gpus"] > 1:
            place.add(f"'gpu' names one GPU, and 'gpus' is {user['gpus']}: drop one of the two.")
        elif not found:
            there = ", ".join(str(card.index or 0) for card in cards)
            place.add(
                f"'gpu' is {user['gpu']}, and the cluster has GPU {there} (roundhouse_gpus, nvidia-smi -L)."
            )
        return found[:1]
    if user["gpus"] > len(cards):
        place.add(
            f"'gpus' is {user['gpus']}, and the cluster has {len(cards)} (roundhouse_gpus, nvidia-smi -L)."
        )
        return []
    if len(cards) == 1:
        return list(cards)
    whole = user["gpu_memory"] is None or user["gpus"] > 1
    if whole and user["replicas"] > 1:
        place.add(
            "its replicas would need GPUs of their own: write one deployment per replica (they may serve the same "
            "model), or say which share of one GPU each gets, e.g. gpu_memory: 0.40."
        )
        return []
    if whole:
        free = [card for card in cards if not card.users][: user["gpus"]]
        if len(free) == user["gpus"]:
            return free
        what = (
            f"it takes {user['gpus']} whole"
            if user["gpus"] > 1
            else "without 'gpu_memory' it takes a whole GPU"
        )
        place.add(f"{what}, and too few are left ({describe(cards)}).")
        return []
    fits = next((c for c in cards if _is_shared(c) and c.taken + _share(user) <= MOST), None)
    if fits is None:
        place.add(
            f"its share of {_share(user)} is left on no GPU ({describe(cards)}; engines may take {MOST} of each): "
            "lower 'gpu_memory' of some."
        )
        return []
    return [fits]


def _is_shared(card: Card) -> bool:
    """Whether nobody on it has it for himself."""
    return all(user["gpu_memory"] is not None and user["gpus"] == 1 for user in card.users)


def _share(user: Mapping[str, Any]) -> Decimal:
    return Decimal(str(user["gpu_memory"] or 0)) * int(user["replicas"])


def describe(cards: Sequence[Card]) -> str:
    """Who is on which GPU, in words."""
    return "; ".join(f"{card.name}: {card.describe()}" for card in cards)
