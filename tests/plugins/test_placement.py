"""Which GPU each deployment gets, and what it and its pods are told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from ansible_collections.roundhouse.llm.plugins.module_utils.gpus import numbered
from ansible_collections.roundhouse.llm.plugins.plugin_utils.catalog.resolve import resolve
from hypothesis import given
from hypothesis import strategies as st

Thing = dict[str, Any]

TWO = [{"index": 0, "uuid": "GPU-a"}, {"index": 1, "uuid": "GPU-b"}]


def user(name: str, share: float | None = None, **more: Any) -> Thing:
    found = {"name": name, "model": f"org/{name}", "engine": "vllm", **more}
    return found if share is None else {**found, "gpu_memory": share}


def place(
    entries: Sequence[Thing], engines: Thing, gpus: Sequence[Thing] | None = TWO, platform: str = "k3d"
) -> dict[str, Thing]:
    found = resolve({"s": list(entries)}, "s", platform, engines, gpus)
    assert found["problems"] == []
    return {d["name"]: d for d in found["deployments"]}


def where(entries: Sequence[Thing], engines: Thing, gpus: Sequence[Thing] | None = TWO) -> dict[str, str]:
    return {name: ",".join(d["gpu_ids"]) for name, d in place(entries, engines, gpus).items()}


def problem(
    entries: Sequence[Thing], engines: Thing, gpus: Sequence[Thing] | None = TWO, platform: str = "k3d"
) -> str:
    [found] = resolve({"s": list(entries)}, "s", platform, engines, gpus)["problems"]
    return str(found)


class TestFirstFit:
    def test_the_first_with_room(self, engines: Thing) -> None:
        entries = [user("a", 0.6), user("b", 0.6), user("c", 0.35), user("d", 0.3)]
        assert where(entries, engines) == {"a": "GPU-a", "b": "GPU-b", "c": "GPU-a", "d": "GPU-b"}

    def test_without_a_share_it_has_one_for_itself(self, engines: Thing) -> None:
        found = place([user("a"), user("b", 0.1), user("c", 0.5)], engines)
        assert [d["gpu_ids"] for d in found.values()] == [["GPU-a"], ["GPU-b"], ["GPU-b"]]
        assert found["a"]["gpu_memory"] == 0.9
        assert [d["gpu_sharers"] for d in found.values()] == [1, 2, 2]
        assert [d["after"] for d in found.values()] == [[], [], ["b"]]

    def test_the_user_chooses(self, engines: Thing) -> None:
        entries = [user("a", 0.6), user("b", 0.6, gpu=0), user("c", gpu=1)]
        assert "(a): its share of 0.6 is left on no GPU (GPU 0: b 0.6; GPU 1: c;" in problem(entries, engines)
        assert where(entries[1:], engines) == {"b": "GPU-a", "c": "GPU-b"}

    def test_start_order_is_per_gpu_and_the_catalogs(self, engines: Thing) -> None:
        entries = [user("a", 0.3), user("b", 0.3, gpu=1), user("c", 0.3, gpu=0), user("d", 0.3, gpu=1)]
        found = place(entries, engines)
        assert {name: d["after"] for name, d in found.items()} == {"a": [], "b": [], "c": ["a"], "d": ["b"]}

    def test_several_whole_ones(self, engines: Thing) -> None:
        three = [*TWO, {"index": 2, "uuid": "GPU-c"}]
        entries = [user("a", 0.4), user("big", gpus=2), user("b", 0.4)]
        assert where(entries, engines, three) == {"a": "GPU-a", "big": "GPU-b,GPU-c", "b": "GPU-a"}

    def test_free_memory_is_what_is_free_on_its_own_gpu(self, engines: Thing) -> None:
        entries = [user("a", 0.5), user("b", 0.5, engine="sglang")]
        command = place(entries, engines)["b"]["command"]
        assert command[command.index("--mem-fraction-static") + 1] == "0.5"

    def test_it_says_where(self, engines: Thing) -> None:
        entries = [user("a", 0.4), user("b"), user("c", 0.1, replicas=2)]
        found = resolve({"s": entries}, "s", "k3d", engines, TWO)
        assert found["placement"] == "GPU 0: a 0.4 + c 0.1 x 2; GPU 1: b"
        assert resolve({"s": entries[:1]}, "s", "k3d", engines, TWO[:1])["placement"] == ""

    def test_one_gpu_is_told_to_nobody(self, engines: Thing) -> None:
        entries = [user("a", 0.4), user("b", 0.4)]
        assert where(entries, engines, TWO[:1]) == where(entries, engines, None) == {"a": "", "b": ""}

    @given(st.lists(st.integers(1, 95), max_size=8))
    def test_no_gpu_is_given_out_twice(self, engines: Thing, shares: list[int]) -> None:
        entries = [user(f"d{i}", share / 100) for i, share in enumerate(shares)] or [user("one")]
        found = resolve({"s": entries}, "s", "k3d", engines, TWO)
        for gpu in TWO:
            on_it = [d for d in found.get("deployments", []) if gpu["uuid"] in d["gpu_ids"]]
            assert round(sum(d["gpu_memory"] for d in on_it), 6) <= 0.95
        assert found["problems"] or all(len(d["gpu_ids"]) == 1 for d in found["deployments"])


class TestRefused:
    @pytest.mark.parametrize(
        ("entries", "says"),
        [
            ([user("a", gpu=2)], "(a): 'gpu' is 2, and the cluster has GPU 0, 1 (roundhouse_gpus,"),
            ([user("a", gpu=1, gpus=2)], "(a): 'gpu' names one GPU, and 'gpus' is 2: drop one of the two."),
            ([user("a", gpus=3)], "(a): 'gpus' is 3, and the cluster has 2"),
            (
                [user("a", replicas=2)],
                "(a): its replicas would need GPUs of their own: write one deployment per",
            ),
            (
                [user("a"), user("b"), user("c")],
                "(c): without 'gpu_memory' it takes a whole GPU, and too few are left (GPU 0: a; GPU 1: b).",
            ),
            (
                [user("a", 0.1), user("b", gpus=2)],
                "(b): it takes 2 whole, and too few are left (GPU 0: a 0.1;",
            ),
            (
                [user("a", 0.9, gpu=1), user("b", 0.2, gpu=1)],
                "stack s: the GPU memory shares on GPU 1 add up to 1.1 (a 0.9 + b 0.2)",
            ),
            (
                [user("a", gpu=1), user("b", 0.2, gpu=1)],
                "(a): 'gpu_memory' is missing, and the GPU is shared with b",
            ),
        ],
    )
    def test_on_two_gpus(self, engines: Thing, entries: list[Thing], says: str) -> None:
        assert says in problem(entries, engines)

    def test_a_choice_in_a_cluster_that_is_not_ours(self, engines: Thing) -> None:
        assert "(a): 'gpu' is for platform k3d" in problem([user("a", gpu=0)], engines, None, "kubernetes")

    def test_a_choice_without_a_gpu(self, engines: Thing) -> None:
        assert "(a): 'gpu' names a GPU, and it gets none here" in problem([user("a", gpu=0, gpus=0)], engines)


class TestTheirCluster:
    def test_who_names_no_share_has_a_gpu(self, engines: Thing) -> None:
        entries = [user("a", replicas=2), user("b"), user("c", 0.4), user("d", 0.4)]
        found = place(entries, engines, None, "kubernetes")
        assert [d["gpu_sharers"] for d in found.values()] == [1, 1, 2, 2]
        assert [d["after"] for d in found.values()] == [[], [], [], ["c"]]
        assert [d["gpu_memory"] for d in found.values()] == [0.9, 0.9, 0.4, 0.4]
        assert all(d["gpu_ids"] == [] for d in found.values())

    def test_replicas_that_take_what_is_free(self, engines: Thing) -> None:
        assert place([user("a", engine="sglang", replicas=2)], engines, None, "kubernetes")
        shared = [user("a", 0.4, engine="sglang", replicas=2)]
        assert "its replicas can't share a GPU" in problem(shared, engines, None, "kubernetes")


def test_what_nvidia_smi_lists() -> None:
    text = (
        "GPU 0: NVIDIA A100 (x) (UUID: GPU-1-2)\n"
        "  MIG 1g.5gb     Device  0: (UUID: MIG-1)\n"
        "GPU 1: NVIDIA H100 (UUID: GPU-3)\n"
    )
    both = [{"index": 0, "uuid": "GPU-1-2"}, {"index": 1, "uuid": "GPU-3"}]
    assert numbered(text, "all") == both
    assert numbered(text, "1, 7") == numbered(text, "GPU-3") == both[1:]
    assert numbered(text, "none") == numbered("", "all") == []
