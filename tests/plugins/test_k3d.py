"""Platform k3d: what a cluster is to us, how it differs from the wanted one, and what failures say."""

from __future__ import annotations

import copy
import json
import socket
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.roundhouse.llm.plugins.module_utils import job, k3d
from ansible_collections.roundhouse.llm.plugins.module_utils.k3d import Standing

CONFIG: dict[str, Any] = {
    "servers": 1,
    "agents": 0,
    "image": "rancher/k3s:v1.34.2-k3s1",
    "kubeAPI": {"hostIP": "127.0.0.1", "hostPort": "6550"},
    "ports": [{"port": "127.0.0.1:8080:30080", "nodeFilters": ["server:0:direct"]}],
    "volumes": [{"volume": "/cache/weights:/roundhouse/weights", "nodeFilters": ["server:*"]}],
    "options": {
        "k3d": {"disableLoadbalancer": True},
        "k3s": {"extraArgs": [{"arg": "--disable=traefik", "nodeFilters": ["server:*"]}]},
    },
}


def config(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(CONFIG), **changes}


def node(role: str = "server", labels: dict[str, str] | None = None, *, running: bool = True) -> k3d.Node:
    name = k3d.server_name("rh") if role == "server" else f"k3d-rh-{role}"
    return k3d.Node("id", name, role, running, labels or {})


def ours(home: str = "/srv/rh") -> dict[str, str]:
    return {k3d.LABEL_HOME: home, k3d.LABEL_CONFIG: json.dumps(CONFIG)}


class TestStanding:
    @pytest.mark.parametrize(
        ("cluster", "standing"),
        [
            (k3d.Cluster("rh"), Standing.NONE),
            (k3d.Cluster("rh", (node("noRole"),)), Standing.LEFTOVER),
            (k3d.Cluster("rh", (node(),)), Standing.FOREIGN),
            (k3d.Cluster("rh", (node("registry"),)), Standing.FOREIGN),
            (k3d.Cluster("rh", (node(labels=ours("/else")),), marked=True), Standing.OTHER),
            (k3d.Cluster("rh", (node(labels=ours()), node("noRole"))), Standing.HALF_MADE),
            (k3d.Cluster("rh", (node(labels=ours()),), marked=True), Standing.WHOLE),
        ],
    )
    def test_whose_it_is_and_whether_it_is_whole(self, cluster: k3d.Cluster, standing: Standing) -> None:
        assert cluster.standing("/srv/rh") is standing

    def test_helpers_of_k3d_need_not_run(self) -> None:
        assert k3d.Cluster("rh", (node(), node("noRole", running=False))).runs
        assert not k3d.Cluster("rh", (node(running=False),)).runs


class TestConfig:
    def test_what_it_was_made_from_is_in_its_labels(self) -> None:
        whole = k3d.complete(CONFIG, "rh", "/srv/my rh")
        assert whole["metadata"] == {"name": "rh"}
        assert whole["options"]["k3d"] == {"wait": True, "disableRollback": True, "disableLoadbalancer": True}
        assert not any(whole["options"]["kubeconfig"].values())
        labels = dict(entry["label"].split("=", 1) for entry in whole["options"]["runtime"]["labels"])
        cluster = k3d.Cluster("rh", (node(labels=labels),), marked=True)
        assert cluster.standing("/srv/my rh") is Standing.WHOLE
        assert cluster.made_from == CONFIG
        assert k3d.differences(cluster.made_from, CONFIG) == []

    def test_labels_of_the_config_stay(self) -> None:
        wanted = config(options={"runtime": {"labels": [{"label": "a=b"}], "gpuRequest": "all"}})
        runtime = k3d.complete(wanted, "rh", "/srv/rh")["options"]["runtime"]
        assert runtime["gpuRequest"] == "all"
        assert [entry["label"].partition("=")[0] for entry in runtime["labels"]] == [
            "a",
            k3d.LABEL_HOME,
            k3d.LABEL_CONFIG,
        ]

    def test_the_file_is_a_comment_and_json(self) -> None:
        comment, _, rest = k3d.render(CONFIG).partition("\n")
        assert comment.startswith("# ")
        assert json.loads(rest) == CONFIG

    @pytest.mark.parametrize("name", ["Roundhouse", "a_b", "-a", "a" * 33, ""])
    def test_bad_names(self, name: str) -> None:
        with pytest.raises(job.JobError, match=r"can't be the name of a k3d cluster.*roundhouse_cluster"):
            k3d.refuse_unusable(CONFIG, name)

    @pytest.mark.parametrize(
        ("changes", "sentence"),
        [
            ({"image": "x:$TAG"}, r"'x:\$TAG' \(image\) has a \$"),
            ({"volumes": [{"volume": "/a$b:/c"}]}, r"'/a\$b:/c' \(volumes\.volume\) has a \$"),
            ({"volumes": [{"volume": "/a:b:/c:ro"}]}, "have no colon"),
            ({"volumes": [{"volume": "a:/c"}]}, "absolute paths"),
        ],
    )
    def test_what_k3d_would_misread(self, changes: dict[str, Any], sentence: str) -> None:
        with pytest.raises(job.JobError, match=sentence):
            k3d.refuse_unusable(config(**changes), "rh")

    def test_good_ones_pass(self) -> None:
        k3d.refuse_unusable(config(volumes=[{"volume": "/a b:/c:ro"}]), "rh-1")

    def test_absent_folders(self, tmp_path: Path) -> None:
        k3d.refuse_absent_folders(config(volumes=[{"volume": f"{tmp_path}:/c"}]))
        with pytest.raises(job.JobError, match=r"/nowhere is to be mounted.*k3d_cluster_folders"):
            k3d.refuse_absent_folders(config(volumes=[{"volume": "/nowhere:/c"}]))


class TestPorts:
    def test_all_forms(self) -> None:
        wanted = config(ports=[{"port": "127.0.0.1:8080:30080/tcp"}, {"port": "81:80"}, {"port": "80"}])
        assert k3d.published(wanted) == [("127.0.0.1", 6550), ("127.0.0.1", 8080), ("0.0.0.0", 81)]
        assert k3d.published({"servers": 1}) == []

    @pytest.fixture
    def containers(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """The containers that Docker says publish any port."""
        names: list[str] = []
        monkeypatch.setattr(k3d, "docker", lambda *_: "\n".join(names))
        return names

    def test_a_process_and_the_variable_are_named(self, containers: list[str]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            wanted = config(kubeAPI={}, ports=[{"port": f"127.0.0.1:{port}:30080"}])
            with pytest.raises(
                job.JobError, match=rf"port {port} on 127.0.0.1, and process \d+ .*\(gateway_port\)"
            ):
                k3d.refuse_taken(wanted, {str(port): "gateway_port"}, frozenset())
            containers.append("k3d-rh-server-0")
            k3d.refuse_taken(wanted, {}, frozenset({"k3d-rh-server-0"}))
            with pytest.raises(job.JobError, match="the container k3d-rh-server-0 holds it"):
                k3d.refuse_taken(wanted, {}, frozenset())

    def test_one_port_for_two_things(self, containers: list[str]) -> None:
        wanted = config(ports=[{"port": "127.0.0.1:6550:30080"}])
        with pytest.raises(job.JobError, match="6550 is wanted twice"):
            k3d.refuse_taken(wanted, {}, frozenset())

    def test_an_address_of_another_machine(self, containers: list[str]) -> None:
        with pytest.raises(job.JobError, match=r"can't listen on 192\.0\.2\.1:8080.*address of this machine"):
            k3d.refuse_taken(config(kubeAPI={}, ports=[{"port": "192.0.2.1:8080:80"}]), {}, frozenset())


class TestDifferences:
    @pytest.mark.parametrize(
        ("changes", "told"),
        [
            (
                {"image": "rancher/k3s:v1.35.5-k3s1"},
                ["its image is rancher/k3s:v1.34.2-k3s1, and rancher/k3s:v1.35.5-k3s1 is wanted"],
            ),
            ({"kubeAPI": {"hostPort": "6551"}},
             ["its port of the Kubernetes API is 6550, and 6551 is wanted",
              "its address of the Kubernetes API is 127.0.0.1, and not set is wanted"]),
            (
                {"ports": [{"port": "127.0.0.1:8081:30080", "nodeFilters": ["server:0:direct"]}]},
                ["it lacks the published port 127.0.0.1:8081:30080 on server:0:direct",
                 "it has the published port 127.0.0.1:8080:30080 on server:0:direct, which is not wanted"],
            ),
            (
                {"volumes": [*CONFIG["volumes"], {"volume": "/a:/a:ro", "nodeFilters": ["server:*"]}]},
                ["it lacks the mounted folder /a:/a:ro"],
            ),
            (
                {"options": {"k3d": {"disableLoadbalancer": True}, "runtime": {"gpuRequest": "all"}}},
                ["its GPU request is not set, and all is wanted",
                 "it has the k3s argument --disable=traefik, which is not wanted"],
            ),
            ({"agents": 1}, ["its number of agents is 0, and 1 is wanted"]),
            ({"hostAliases": [{"ip": "1.2.3.4"}]}, ['it lacks the hostAliases {"ip": "1.2.3.4"}']),
        ],
    )  # fmt: skip
    def test_in_words(self, changes: dict[str, Any], told: list[str]) -> None:
        assert k3d.differences(CONFIG, config(**changes)) == told

    def test_the_order_of_a_list_is_no_difference(self) -> None:
        two = [{"volume": "/a:/a"}, {"volume": "/b:/b"}]
        assert k3d.differences(config(volumes=two), config(volumes=two[::-1])) == []


class TestNode:
    STARTED = "2026-01-31T12:00:00.123456789Z"

    def ready(self, status: str = "True", beat: str = "2026-01-31T12:00:03Z", **spec: Any) -> dict[str, Any]:
        condition = {"type": "Ready", "status": status, "lastHeartbeatTime": beat, "message": "no network"}
        return {"metadata": {"name": "n"}, "spec": spec, "status": {"conditions": [condition]}}

    @pytest.mark.parametrize(
        ("found", "words"),
        [
            ({}, None),
            ({"status": "False"}, "its node is not ready: no network"),
            ({"beat": "2026-01-31T11:59:59Z"}, "its node has not reported yet"),
            ({"unschedulable": True}, "its node is cordoned, so kubectl uncordon n"),
        ],
    )
    def test_what_keeps_it_from_taking_pods(self, found: dict[str, Any], words: str | None) -> None:
        assert k3d.unready(self.ready(**found), self.STARTED) == words

    def test_one_without_conditions(self) -> None:
        assert k3d.unready({"metadata": {"name": "n"}}, self.STARTED) == "its node has not reported yet"

    def test_dead_k3s_under_the_entrypoint(self) -> None:
        entrypoint = "PID COMMAND\n9 /bin/sh /bin/k3d-entrypoint.sh server --tls-san k3s\n"
        assert not k3d.runs_k3s(f"{entrypoint}10 kubectl uncordon k3s\n")
        assert k3d.runs_k3s(f"{entrypoint}11 /bin/k3s server\n")

    def test_its_log_without_the_noise(self) -> None:
        noise = [
            'E1125 08:38:05 29 memcache.go:265] "Unhandled Error" err="dial tcp 127.0.0.1:8080: connection refused"',
            "The connection to the server localhost:8080 was refused - did you specify the right host or port?",
        ]
        told = [f"line {number}" for number in range(30)]
        assert k3d.telling([*told, *noise * 50, "", "x" * 1000]) == [*told[11:], "x" * 240]


class TestEngine:
    def test_ready(self) -> None:
        assert k3d.judge(0, "", None) == k3d.Engine("ready")

    @pytest.mark.parametrize(
        ("stderr", "host", "state", "words"),
        [
            ("Got permission denied while trying to connect to the Docker daemon socket at unix:///x", None,
             "denied", "sudo usermod -aG docker"),
            ("Cannot connect to the Docker daemon at unix:///x.\nIs the docker daemon running?", None,
             "down", "(Cannot connect to the Docker daemon at unix:///x. Is the docker daemon running?): start it"),
            ("no such host", "tcp://far:1", "down", "correct or unset DOCKER_HOST, which is tcp://far:1, or start"),
            ("", None, "down", "(docker version ended with status 1)"),
        ],
    )  # fmt: skip
    def test_what_is_wrong_and_what_to_do(
        self, stderr: str, host: str | None, state: str, words: str
    ) -> None:
        engine = k3d.judge(1, stderr, host)
        assert engine.state == state
        assert words in engine.message

    def test_not_installed(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        assert k3d.engine().state == "missing"
        assert "k3d_cluster_install_docker=true" in k3d.engine().message
        with pytest.raises(job.JobError, match="Docker is not installed"):
            k3d.docker("ps")
        k3d.sweep("rh")


class TestWhatK3dSays:
    LINES = (
        "\x1b[36mINFO\x1b[0m[0000] Prep: Network                     ",
        "\x1b[36mINFO\x1b[0m[0001] Starting servers...                ",
        "\x1b[31mERRO\x1b[0m[0002] Failed Cluster Start: docker failed to pull image 'x': no such host",
        "\x1b[31mFATA\x1b[0m[0002] Cluster creation FAILED, rollback deactivated.",
    )

    def test_progress(self) -> None:
        assert k3d.doing(self.LINES[:2]) == "Starting servers..."
        assert k3d.doing(["export KUBECONFIG=x"]) is None

    def test_errors(self) -> None:
        assert k3d.errors(self.LINES) == "Failed Cluster Start: docker failed to pull image 'x': no such host"
        assert k3d.errors(["panic: x"]) == "panic: x"
        assert k3d.errors([]) == "k3d printed nothing"

    @pytest.mark.parametrize(
        ("line", "words"),
        [
            (LINES[2], "k3d_cluster_image"),
            ("failed to create fsnotify watcher: too many open files", "max_user_instances"),
            ("write /x: no space left on device", "docker system df"),
            ("flag provided but not defined: -x", "k3d_cluster_arguments"),
            ("Bind for 127.0.0.1:8080 failed: port is already allocated", "roundhouse_gateway_port"),
        ],
    )
    def test_remedies(self, line: str, words: str) -> None:
        assert words in (k3d.remedy(["first", line]) or "")

    def test_no_remedy(self) -> None:
        assert k3d.remedy(["something else"]) is None

    def test_version(self) -> None:
        assert k3d.version("k3d version v5.9.0\nk3s version v1.35.5-k3s1 (default)\n") == "v5.9.0"
        assert k3d.version("command not found") is None

    def test_version_of_what_can_not_be_run(self, tmp_path: Path) -> None:
        (tmp_path / "k3d").write_text("x")
        assert k3d.version_of(str(tmp_path / "k3d")) is None
        assert k3d.version_of(str(tmp_path / "none")) is None

    def test_kubeconfig_names_an_address_that_can_be_reached(self) -> None:
        text = "    server: https://0.0.0.0:6550\n  name: k3d-rh\n"
        assert k3d.reachable(text) == "    server: https://127.0.0.1:6550\n  name: k3d-rh\n"
        assert k3d.reachable(k3d.reachable(text)) == k3d.reachable(text)

    def test_a_kubeconfig_with_other_clusters_is_not_ours(self) -> None:
        ours, foreign = (
            f"- cluster:\n    certificate-authority-data: x\n    server: https://127.0.0.1:1\n  name: {name}\n"
            for name in ("k3d-rh", "prod")
        )
        rest = "contexts:\n- context:\n    cluster: k3d-rh\n  name: other\n"
        assert k3d.others(f"clusters:\n{ours}{rest}", "rh") == set()
        assert k3d.others(f"clusters: null\n{rest}", "rh") == set()
        assert k3d.others(f"clusters:\n{ours}{foreign}{rest}", "rh") == {"prod"}
