"""What role container_toolkit reads of drivers and of Docker, and how it merges Docker's configuration."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.roundhouse.llm.plugins.module_utils import daemon_json, docker_engine, gpus
from hypothesis import given
from hypothesis import strategies as st

FILE = "/etc/docker/daemon.json"

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
runtimes = st.dictionaries(st.text() | st.just("nvidia"), values, max_size=3)


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    config: dict[str, Any] = draw(st.dictionaries(st.text(), values, max_size=4))
    config.pop("runtimes", None)
    if draw(st.booleans()):
        config["runtimes"] = draw(st.none() | runtimes)
    if draw(st.booleans()):
        config["default-runtime"] = draw(st.sampled_from(["nvidia", "runc"]))
    return config


# The file


@given(configurations(), st.sampled_from([None, 2, 4, "\t"]))
def test_users_keys_survive(config: dict[str, Any], indent: int | str | None) -> None:
    text = json.dumps(config, indent=indent)
    merged = daemon_json.merged(daemon_json.read(text, FILE))
    written = daemon_json.read(daemon_json.render(merged, text), FILE)
    assert written == merged
    assert {key: value for key, value in written.items() if key != "runtimes"} == {
        key: value for key, value in config.items() if key != "runtimes"
    }
    others = {name: value for name, value in (config.get("runtimes") or {}).items() if name != "nvidia"}
    assert written["runtimes"] == {**others, "nvidia": daemon_json.RUNTIME}


@given(configurations())
def test_order_of_keys_survives(config: dict[str, Any]) -> None:
    merged = list(daemon_json.merged(config))
    assert [key for key in merged if key in config] == list(config)


@given(configurations())
def test_merging_twice_is_merging_once(config: dict[str, Any]) -> None:
    merged = daemon_json.merged(config)
    assert daemon_json.merged(merged) == merged


@given(configurations())
def test_taking_out_leaves_the_rest(config: dict[str, Any]) -> None:
    rest = daemon_json.without(daemon_json.merged(config))
    assert daemon_json.without(rest) == rest
    assert rest.get("default-runtime") != "nvidia"
    assert "nvidia" not in rest.get("runtimes", {})
    ours = ("runtimes", "default-runtime")
    assert {k: v for k, v in rest.items() if k not in ours} == {
        k: v for k, v in config.items() if k not in ours
    }


def test_what_is_written_into_no_file() -> None:
    text = daemon_json.render(daemon_json.merged(daemon_json.read("", FILE)), "")
    assert text == (
        '{\n    "runtimes": {\n        "nvidia": {\n            "args": [],\n'
        '            "path": "nvidia-container-runtime"\n        }\n    }\n}\n'
    )
    assert daemon_json.without(json.loads(text)) == {}


def test_users_indentation_stays() -> None:
    before = '{\n  "debug": true\n}\n'
    assert daemon_json.render({"debug": True, "a": {"b": 1}}, before).splitlines()[1:4] == [
        '  "debug": true,',
        '  "a": {',
        '    "b": 1',
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{\n  "debug": true,\n}', f"{FILE} is no valid JSON (line 3, column 1, at '}}'"),
        ('{\n  "debug": true\n  "x": 1}', "line 3, column 3, at '\"x\": 1}'"),
        ('{"a":', "at its end"),
        ("# a comment\n{}", "line 1, column 1, at '# a comment'"),
        ('{"a": NaN}', "NaN is no JSON"),
        ('{"a": 1e999}', "the number 1e999 is too large"),
        ("[]", "must hold one JSON object {...}, and holds a list"),
        ("null", "holds null"),
        ('{"runtimes": ["nvidia"]}', "The key runtimes in /etc/docker/daemon.json must be an object"),
    ],
)
def test_broken_files_are_told_of(text: str, told: str) -> None:
    with pytest.raises(daemon_json.Unusable) as error:
        daemon_json.read(text, FILE)
    assert told in str(error.value)
    assert "nothing was changed" in str(error.value)


def test_other_encodings_are_told_of() -> None:
    assert daemon_json.decode(b"\xef\xbb\xbf{}", FILE) == "{}"
    with pytest.raises(daemon_json.Unusable, match=r"no UTF-8 text \(byte 8\)"):
        daemon_json.decode('{"a": "é"}'.encode("latin-1"), FILE)


@pytest.mark.skipif(shutil.which("nvidia-ctk") is None, reason="needs nvidia-ctk")
@pytest.mark.parametrize(
    "config",
    [
        None,
        {},
        {"log-driver": "json-file", "log-opts": {"max-size": "10m"}, "debug": True},
        {"default-runtime": "other", "runtimes": {"other": {"path": "/opt/other"}}},
        {"runtimes": {"nvidia": {"path": "/usr/bin/nvidia-container-runtime", "runtimeArgs": ["x"]}}},
        {"default-runtime": "nvidia", "insecure-registries": ["<&>"], "z": 1, "a": 2.5},
    ],
)
def test_the_result_is_that_of_nvidia_ctk(config: dict[str, Any] | None, tmp_path: Path) -> None:
    file = tmp_path / "daemon.json"
    if config is not None:
        file.write_text(json.dumps(config))
    command = ["nvidia-ctk", "runtime", "configure", "--runtime=docker", f"--config={file}"]
    subprocess.run(command, check=True, capture_output=True)
    assert json.loads(file.read_text()) == daemon_json.merged(config or {})


# The driver


def test_gpus_are_read() -> None:
    found, version = gpus.read(
        "0, GPU-1, NVIDIA GeForce RTX 4090, 24564, 575.57.08\n1, GPU-2, NVIDIA GB10, [N/A], 575.57.08\n"
    )
    assert found == [
        gpus.Gpu(0, "GPU-1", "NVIDIA GeForce RTX 4090", 24564),
        gpus.Gpu(1, "GPU-2", "NVIDIA GB10", None),
    ]
    assert version == "575.57.08"


@pytest.mark.parametrize("text", ["", "\n", "No devices were found\n", "x, y, z, 1, 2\n"])
def test_what_is_no_list_of_gpus_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        gpus.read(text)


@pytest.mark.parametrize(
    ("table", "version"),
    [
        ("| NVIDIA-SMI 575.57.08    Driver Version: 575.57.08    CUDA Version: 12.9     |", "12.9"),
        ("| NVIDIA-SMI 590.44       KMD Version: 590.44    CUDA UMD Version: 13.1     |", "13.1"),
        ("CUDA Version: N/A", ""),
    ],
)
def test_the_cuda_version_is_read(table: str, version: str) -> None:
    assert gpus.cuda_version(table) == version


@pytest.mark.parametrize(
    ("driver", "cuda", "told"),
    [
        ("525.60.13", "12.9", None),
        ("535.230.02", "12.9", None),
        ("580.65.06", "13.0", None),
        ("525.60.12", "12.9", "needs 525.60.13 or newer"),
        ("470.256.02", "12.9", "The NVIDIA driver 470.256.02 is too old"),
        ("575.57.08", "13.0", "needs 580.65.06 or newer"),
        ("575.57.08", "10.2", "must be one of 11, 12, 13"),
        ("575.57.08", "latest", 'as in "12.9"'),
        ("575.57.08-custom", "12.9", None),
    ],
)
def test_old_drivers_are_told_of(driver: str, cuda: str, told: str | None) -> None:
    found = gpus.too_old(driver, cuda)
    assert told in found if told and found else found == told


def test_without_a_driver_the_way_without_a_gpu_is_named() -> None:
    found = gpus.survey(gpus.Driver(problem=gpus.missing(wsl=False)), cuda="12.9", choice="all", wsl=False)
    assert len(found.problems) == 1
    assert "-e roundhouse_gpus=none" in found.problems[0]
    assert "inventories/k3d-cpu" in found.problems[0]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Failed to initialize NVML: Driver/library version mismatch\n", "reboot the machine"),
        ("No devices were found", "lspci"),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", "lsmod"),
        ("", "it ended with status 9"),
    ],
)
def test_a_driver_that_does_not_answer(text: str, told: str) -> None:
    assert told in gpus.unanswered(9, text, wsl=False)
    assert "-e roundhouse_gpus=none" in gpus.unanswered(9, text, wsl=False)


def test_all_problems_are_told_at_once() -> None:
    driver = gpus.Driver("470.1", "11.4", (gpus.Gpu(0, "GPU-1", "Old", 8192),))
    found = gpus.survey(driver, cuda="12.9", choice="0,7", wsl=True)
    assert [problem.split(" ")[0] for problem in found.problems] == ["The", "roundhouse_gpus"]
    assert "names the GPU '7', and this machine has 0 (Old)" in found.problems[1]
    assert found.gpus == driver.gpus
    assert found.notes == (gpus.WSL_NOTE,)


def test_a_driver_of_an_older_cuda_is_noted() -> None:
    driver = gpus.Driver("535.1", "12.2", (gpus.Gpu(0, "GPU-1", "A", 8192),))
    found = gpus.survey(driver, cuda="12.9", choice="all", wsl=False)
    assert not found.problems
    assert "minor version compatibility" in found.notes[0]


def test_gpus_are_chosen_by_number_and_uuid() -> None:
    there = [gpus.Gpu(0, "GPU-a", "A", 1), gpus.Gpu(1, "GPU-b", "B", 2)]
    assert gpus.chosen(there, "GPU-b, 1") == ([there[1]], [])
    assert gpus.request("all") == "all"
    assert gpus.request("0, 1") == '"device=0,1"'


def test_wsl_is_known_by_its_kernel() -> None:
    assert gpus.is_wsl("5.15.153.1-microsoft-standard-WSL2")
    assert not gpus.is_wsl("6.8.0-45-generic")


# The packages


def test_packages_are_read() -> None:
    text = (
        "nvidia-container-toolkit 1.18.0-1 hi \nlibnvidia-container1 1.17.8-1 ii \n"
        "libnvidia-container-tools 1.17.8-1 rc \n"
    )
    assert gpus.packages(text) == {
        "nvidia-container-toolkit": gpus.Package("1.18.0-1", held=True),
        "libnvidia-container1": gpus.Package("1.17.8-1", held=False),
    }


def test_the_toolkits_own_version_is_read() -> None:
    told = gpus.toolkit_version("NVIDIA Container Toolkit CLI version 1.18.0\ncommit: f8daa5e\n")
    assert gpus.is_version(told, "1.18.0-1")
    assert not gpus.is_version(told, "1.18.1-1")
    assert not gpus.is_version("", "1.18.0-1")


# Docker


def test_containers_of_others_are_listed() -> None:
    lines = [
        '"/web" "nginx:1" {"a":"b c"}',
        '"/k3d-roundhouse-server-0" "rancher/k3s:v1" {"roundhouse.home":"/srv/roundhouse"}',
        '"/k3d-roundhouse-server-0" "rancher/k3s:v1" {"roundhouse.home":"/home/other"}',
        '"/db" "postgres:17" null',
    ]
    assert docker_engine.foreign(lines, "/srv/roundhouse") == [
        "db (postgres:17)",
        "k3d-roundhouse-server-0 (rancher/k3s:v1)",
        "web (nginx:1)",
    ]


@pytest.mark.parametrize(
    ("info", "arguments", "told"),
    [
        ({}, [], None),
        ({"SecurityOptions": ["name=seccomp,profile=builtin", "name=rootless"]}, [], "rootless"),
        ({"DockerRootDir": "/var/snap/docker/common/var-lib-docker"}, [], "is the snap"),
        ({}, ["/usr/bin/dockerd", "--add-runtime=x=/x"], "--add-runtime"),
        ({}, ["/usr/bin/dockerd", "--add-runtime", "x=/x"], "--add-runtime"),
    ],
)
def test_engines_that_cant_be_configured(
    info: dict[str, Any], arguments: list[str], told: str | None
) -> None:
    problems = docker_engine.read(info, arguments).problems
    assert len(problems) == (told is not None)
    assert told is None or told in problems[0]


def test_what_docker_says_of_itself() -> None:
    info = {"Runtimes": {"runc": {}, "nvidia": {}}, "LiveRestoreEnabled": True, "OperatingSystem": "Debian"}
    engine = docker_engine.read(info)
    assert engine.runtimes == ("nvidia", "runc")
    assert engine.live_restore
    assert not engine.desktop
    assert docker_engine.read({"OperatingSystem": "Docker Desktop"}).desktop


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('docker: could not select device driver "" with capabilities: [[gpu]].', "Restart it"),
        ("nvidia-container-cli: requirement error: unsatisfied condition: cuda>=12.9", "update the driver"),
        ("initialization error: load library failed: libnvidia-ml.so.1: cannot open", "nvidia-container-cli"),
        ("unresolvable CDI devices runtime.nvidia.com/gpu=all", "nvidia-ctk cdi list"),
        ("Failed to initialize NVML: Unknown Error", "daemon-reload"),
        ('exec: "nvidia-smi": executable file not found in $PATH', "container_toolkit_test_image"),
        ("Error response from daemon: manifest for x/y:1 not found", "check its name"),
    ],
)
def test_known_causes(text: str, told: str) -> None:
    assert told in str(gpus.cause(text))


def test_only_a_stale_docker_is_restarted() -> None:
    assert gpus.wants_restart('could not select device driver "" with capabilities: [[gpu]]')
    assert not gpus.wants_restart("unsatisfied condition: cuda>=12.9")
    assert gpus.cause("something else") is None
    assert gpus.listed("GPU 0: A (UUID: GPU-a)\n  MIG 1g.5gb (UUID: MIG-b)\n") == ["GPU 0: A (UUID: GPU-a)"]
