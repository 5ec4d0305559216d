#!/usr/bin/python
"""Module k3d_cluster: a k3d cluster, there and running, stopped, or gone."""

from __future__ import annotations

DOCUMENTATION = r"""
module: k3d_cluster
short_description: Make, start, stop or delete a k3d cluster
version_added: 0.1.0
author: Roundhouse maintainers (@roundhouse)
description:
  - Drives the commands docker and k3d. Progress is shown at least every 5 seconds.
  - The cluster carries labels that tell which installation it belongs to and what it was made from. A cluster
    without them, or of another installation, is never touched.
  - One that was made from another configuration is told about, with the differences, and made anew only on request.
  - One whose creation broke off is made anew.
  - A port that is taken is told before anything is changed.
  - The user's own kubeconfig is left alone.
options:
  name:
    description: Name of the cluster.
    type: str
    required: true
  state:
    description:
      - C(present) makes it at need, starts it, and waits until its node takes pods.
      - C(started) does so with a cluster that is there, as it is.
    type: str
    choices: [present, started, stopped, absent]
    default: present
  home:
    description: The installation's folder. What the cluster was made from is written to C(etc/k3d.yml) in it.
    type: path
    required: true
  config:
    description:
      - What it is made from, as in a k3d config file (C(k3d.io/v1alpha5), kind Simple), without its name.
      - Needed for C(present). The module adds the name, its labels and the options of kubeconfig.
    type: dict
  binary:
    description: The k3d to use.
    type: path
    required: true
  kubeconfig:
    description: The file that gets the cluster's kubeconfig, and nothing else.
    type: path
    required: true
  timeout:
    description: Seconds within which the cluster must be ready, pulling images included.
    type: int
    default: 600
  recreate:
    description: Whether a cluster that was made from another configuration is deleted and made anew.
    type: bool
    default: false
  port_settings:
    description: For each port of the host, the variable to change if the port is taken.
    type: dict
    default: {}
  job:
    description: Set by the action plugin.
    type: path
attributes:
  check_mode:
    description: Says whether it would be made, started, stopped or deleted; fails where a run would refuse.
    support: full
  diff_mode:
    description: Shows the configurations when it is made or made anew.
    support: full
"""

EXAMPLES = r"""
- name: Have a cluster
  roundhouse.llm.k3d_cluster:
    name: roundhouse
    home: /srv/roundhouse
    binary: /srv/roundhouse/bin/k3d
    kubeconfig: /srv/roundhouse/kubeconfig
    config:
      servers: 1
      agents: 0
      image: rancher/k3s:v1.34.2-k3s1
      kubeAPI: {hostIP: 127.0.0.1, hostPort: "6550"}
"""

RETURN = r"""
done:
  description: What was done to the cluster, in order.
  type: list
  elements: str
  returned: always
"""

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.roundhouse.llm.plugins.module_utils import child, job, k3d, locks
from ansible_collections.roundhouse.llm.plugins.module_utils.k3d import Standing

#: Seconds between two looks at a node.
_LOOK = 1.0

#: A node that Docker has started anew so often, or that has been without k3s for so many seconds, won't come up.
_RESTARTS = 3
_LOST = 8.0


class Vigil:
    """Looks after a cluster that is to come up."""

    def __init__(self, cluster: str, timeout: int) -> None:
        self._cluster = cluster
        self._timeout = timeout
        self._until = time.monotonic() + timeout
        self._restarts = k3d.restarts(cluster)
        self._alive = time.monotonic()

    def look(self, missing: str | None) -> None:
        """Raises JobError if it takes too long, with what is `missing`, or has died."""
        now = time.monotonic()
        if now > self._until:
            reason = f" ({missing})" if missing else ""
            raise job.JobError(
                f"it was not ready within {self._timeout} s{reason}; k3d_cluster_timeout is the limit"
            )
        if not k3d.has_lost_k3s(self._cluster):
            self._alive = now
        if now - self._alive > _LOST or k3d.restarts(self._cluster) - self._restarts >= _RESTARTS:
            raise job.JobError("k3s died in its node")


@dataclass
class Keeper:
    """Brings one cluster into the wanted state, and notes what it did."""

    name: str
    home: Path
    binary: str
    kubeconfig: Path
    timeout: int
    settings: dict[str, str]
    check: bool
    progress: job.Progress
    done: list[str] = field(default_factory=list)
    begun: float = field(default_factory=time.time)

    @property
    def config_file(self) -> Path:
        """What the cluster was made from."""
        return self.home / "etc" / "k3d.yml"

    def present(self, cluster: k3d.Cluster, config: dict[str, Any], *, recreate: bool) -> dict[str, str]:
        """Have it as wanted, and running; returns Ansible's diff."""
        standing = self._ours(cluster)
        self._refuse_foreign_kubeconfig()
        different = k3d.differences(cluster.made_from, config) if standing is Standing.WHOLE else []
        if different and not recreate:
            raise job.JobError(self._refusal(different, config))
        if standing is Standing.WHOLE and not different:
            self.start(cluster)
            return {}
        mine = frozenset(node.name for node in cluster.nodes)
        k3d.refuse_taken(config, self.settings, mine)
        if not self.check:
            k3d.refuse_absent_folders(config)
        if cluster.nodes:
            self._delete(
                "deleted, for it was to be made anew" if different else "deleted, for it was half-made"
            )
        self._create(config)
        before = k3d.render(cluster.made_from) if different else ""
        return {"before": before, "after": k3d.render(config)}

    def start(self, cluster: k3d.Cluster) -> None:
        """Let it run, and wait until its node takes pods."""
        standing = self._ours(cluster)
        self._refuse_foreign_kubeconfig()
        if standing is not Standing.WHOLE:
            what = "is half-made" if cluster.nodes else "is not there"
            raise job.JobError(
                f"The cluster {self.name} {what}: serve a stack first, e.g. with make multi-models."
            )
        if not cluster.runs:
            k3d.refuse_taken(cluster.made_from, self.settings, frozenset())
            self.done.append("started")
        if not self.check:
            self._get_ready(cluster)
        if not self.check or Path(self.binary).exists():
            self._write_kubeconfig()

    def _get_ready(self, cluster: k3d.Cluster) -> None:
        try:
            if cluster.runs:
                self._await_node(Vigil(self.name, self.timeout))
            else:
                self._await_node(self._bring_up("cluster", "start", self.name))
        except job.JobError as error:
            verb = "use" if cluster.runs else "start"
            raise self._explained(error, verb, halt=not cluster.runs) from error

    def stop(self, cluster: k3d.Cluster) -> None:
        """Stop it; what is in it stays."""
        if any(node.running for node in cluster.nodes):
            self.done.append("stopped")
            if not self.check:
                self._k3d("cluster", "stop", self.name)

    def delete(self, cluster: k3d.Cluster) -> None:
        """Delete it and its kubeconfig."""
        if cluster.nodes:
            self._delete("deleted")
        elif not self.check:
            k3d.sweep(self.name)
        for file in (self.kubeconfig, self.config_file):
            if file.exists() and not (file == self.kubeconfig and self._others()):
                self.done.append(f"deleted {file}")
                if not self.check:
                    file.unlink()

    def _ours(self, cluster: k3d.Cluster) -> Standing:
        standing = cluster.standing(str(self.home))
        if standing is Standing.FOREIGN:
            raise job.JobError(
                f"There is a k3d cluster {self.name} that Roundhouse did not make, so it is left alone: choose another "
                f"name (roundhouse_cluster), or delete it yourself (k3d cluster delete {self.name})."
            )
        if standing is Standing.OTHER:
            raise job.JobError(
                f"The k3d cluster {self.name} belongs to another installation, {cluster.owner()}: choose another name "
                f"(roundhouse_cluster), or work with that one (-e roundhouse_home={cluster.owner()})."
            )
        return standing

    def _others(self) -> set[str]:
        file = self.kubeconfig
        return k3d.others(file.read_text(encoding="utf-8"), self.name) if file.exists() else set()

    def _refuse_foreign_kubeconfig(self) -> None:
        if others := self._others():
            raise job.JobError(
                f"{self.kubeconfig} is to become the kubeconfig of the cluster {self.name} alone, and has others "
                f"({', '.join(sorted(others))}): name another file (roundhouse_kubeconfig)."
            )

    def _refusal(self, different: Sequence[str], config: dict[str, Any]) -> str:
        kept = ", ".join(str(folder) for folder in k3d.host_folders(config))
        stays = f", and what is in {kept} on the host stays" if kept else ""
        return (
            f"The cluster {self.name} is not what is wanted now: {'; '.join(different)}. Either go back to its "
            "settings, or delete it and make it anew with -e k3d_cluster_recreate=true: what runs in it is then "
            f"deployed again{stays}."
        )

    def _create(self, config: dict[str, Any]) -> None:
        self.done.append("created")
        if self.check:
            return
        k3d.sweep(self.name)
        job.write_whole(self.config_file, k3d.render(k3d.complete(config, self.name, str(self.home))))
        try:
            self._await_node(self._bring_up("cluster", "create", "--config", str(self.config_file)))
        except job.JobError as error:
            raise self._explained(error, "make", halt=True) from error
        self._write_kubeconfig()
        k3d.mark(self.name, self.config_file.parent)

    def _delete(self, words: str) -> None:
        self.done.append(words)
        if self.check:
            return
        self._k3d("cluster", "delete", self.name)
        if k3d.find(self.name).nodes:
            raise job.JobError(
                f"k3d could not delete all of the cluster {self.name}: see docker ps --all --filter "
                f"label=k3d.cluster={self.name}, remove what is left, and run the same command again."
            )
        k3d.sweep(self.name)

    def _bring_up(self, *arguments: str) -> Vigil:
        vigil = Vigil(self.name, self.timeout)
        self._k3d(*arguments, vigil=vigil)
        return vigil

    def _k3d(self, *arguments: str, vigil: Vigil | None = None) -> None:
        """Run k3d to its end. Raises JobError with its errors, or as the vigil does."""

        def watch(lines: list[str]) -> None:
            words = k3d.doing(lines)
            self.progress.say(f"{self.name}: {words or ' '.join(arguments[:2])}")
            if vigil:
                vigil.look(words)

        # Deleting takes the cluster out of the kubeconfig that it finds: let it be ours.
        environment = {**os.environ, "KUBECONFIG": str(self.kubeconfig)}
        try:
            status, lines = child.run([self.binary, *arguments], environment, watch)
        except FileNotFoundError as error:
            raise job.JobError(
                f"k3d is needed for the cluster {self.name}, and there is none at {self.binary}: serve a stack first, "
                "which brings it, or put it there."
            ) from error
        if status:
            raise job.JobError(k3d.errors(lines), lines=lines)

    def _await_node(self, vigil: Vigil) -> None:
        """Wait until the node takes pods: k3d is content before."""
        while missing := k3d.node_condition(self.name):
            self.progress.say(f"{self.name}: {missing}")
            vigil.look(missing)
            time.sleep(_LOOK)

    def _explained(self, error: job.JobError, verb: str, *, halt: bool) -> job.JobError:
        """The failure with the node's log and what helps; `halt` stops the node, which stays for a look."""
        server = k3d.server_name(self.name)
        tail = k3d.log_tail(server, self.begun)
        if halt:
            k3d.halt(k3d.find(self.name))
        help_ = k3d.remedy([str(error), *error.facts.get("lines", []), *tail])
        advice = f"{help_}; then run" if help_ else "Find the cause in what it says, mend it, and run"
        told = f"Could not {verb} the cluster {self.name}: {error}. {advice} the same command again."
        if tail:
            shown = "\n".join(f"  {line}" for line in tail)
            told += (
                f"\nThe last {len(tail)} log lines of its node:\n{shown}\nThe whole log: docker logs {server}"
            )
        return job.JobError(told)

    def _write_kubeconfig(self) -> None:
        text = k3d.kubeconfig(self.binary, self.name)
        file = self.kubeconfig
        if (
            file.exists()
            and file.read_text(encoding="utf-8") == text
            and file.stat().st_mode & 0o777 == 0o600
        ):
            return
        if "created" not in self.done:
            self.done.append(f"wrote {file}")
        if not self.check:
            job.write_whole(file, text)


def look(name: str, *, needed: bool) -> k3d.Cluster:
    """The cluster as it is. Without Docker there is none; raises JobError if one is needed."""
    engine = k3d.engine()
    if engine.state == "missing" and not needed:
        return k3d.Cluster(name)
    if engine.state != "ready":
        raise job.JobError(engine.message)
    return k3d.find(name)


def main() -> None:
    """Read the arguments, converge, tell Ansible."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "state": {
                "type": "str",
                "choices": ["present", "started", "stopped", "absent"],
                "default": "present",
            },
            "home": {"type": "path", "required": True},
            "config": {"type": "dict"},
            "binary": {"type": "path", "required": True},
            "kubeconfig": {"type": "path", "required": True},
            "timeout": {"type": "int", "default": 600},
            "recreate": {"type": "bool", "default": False},
            "port_settings": {"type": "dict", "default": {}},
            "job": {"type": "path"},
        },
        supports_check_mode=True,
        required_if=[("state", "present", ("config",))],
    )
    given = module.params
    state, name = given["state"], given["name"]

    def work(progress: job.Progress) -> dict[str, Any]:
        keeper = Keeper(
            name=name,
            home=Path(given["home"]),
            binary=given["binary"],
            kubeconfig=Path(given["kubeconfig"]),
            timeout=given["timeout"],
            settings=given["port_settings"],
            check=module.check_mode,
            progress=progress,
        )
        result: dict[str, Any] = {}
        with ExitStack() as held:
            if not module.check_mode and keeper.config_file.parent.is_dir():
                held.enter_context(locks.locked(keeper.config_file, progress))
            cluster = look(name, needed=state in ("present", "started") and not module.check_mode)
            if state == "present":
                k3d.refuse_unusable(given["config"], name)
                if diff := keeper.present(cluster, given["config"], recreate=given["recreate"]):
                    result["diff"] = diff
            elif state == "started":
                keeper.start(cluster)
            elif cluster.standing(given["home"]) in (Standing.FOREIGN, Standing.OTHER):
                result["warnings"] = [
                    f"The k3d cluster {name} is not of this installation, so it was left alone."
                ]
            elif state == "stopped":
                keeper.stop(cluster)
            else:
                keeper.delete(cluster)
        return {"changed": bool(keeper.done), "done": keeper.done, **result}

    module.exit_json(**job.run(work, given["job"]))


if __name__ == "__main__":
    main()
