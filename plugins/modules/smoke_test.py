#!/usr/bin/python
"""Module smoke_test: a real question for every engine, through the gateway."""

from __future__ import annotations

DOCUMENTATION = r"""
module: smoke_test
short_description: Ask every (model, engine) pair a question through the gateway
version_added: 0.1.0
author: Roundhouse maintainers (@roundhouse)
description:
  - Asks each pair once not streamed and once streamed, and checks that the right engine answered, and to the end.
options:
  url:
    description: The gateway's address, without a path.
    type: str
    required: true
  questions:
    description: Per pair its model, owned_by, task (chat, completion, embedding) and the names of its backends.
    type: list
    elements: dict
    required: true
  timeout:
    description: Seconds that an answer may stay silent.
    type: float
    default: 300
  pod_of:
    description: Name of the gateway's Deployment, if it is to be reached through its cluster's API and not by its url.
    type: str
    default: ''
  key_file:
    description: A file on the host with a key of the gateway's, if it asks for keys. None is fine, too.
    type: path
  key_secret:
    description: Name of the Secret in O(namespace) that has such a key, if it is in a cluster. None is fine, too.
    type: str
    default: ''
  kubeconfig:
    description: The cluster's kubeconfig.
    type: path
  context:
    description: The context in it.
    type: str
  namespace:
    description: The gateway's namespace.
    type: str
  job:
    description: Set by the action plugin.
    type: path
attributes:
  check_mode:
    description: Asks nothing.
    support: none
"""

EXAMPLES = r"""
- name: Ask
  roundhouse.llm.smoke_test:
    url: http://127.0.0.1:8080
    questions:
      - {model: google/gemma-3-270m, owned_by: llamacpp, task: completion, backends: [gemma-3-270m]}
"""

RETURN = r"""
rows:
  description: Per pair what came back.
  type: list
  elements: dict
  returned: always
with_key:
  description: Whether it asked with a key.
  type: bool
  returned: always
problems:
  description: What was wrong, one sentence each.
  type: list
  elements: str
  returned: always
"""

import http.client
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.roundhouse.llm.plugins.module_utils import (
    cluster_api,
    job,
    keys_store,
    questions,
    rollouts,
)

Connect = Callable[[], http.client.HTTPConnection]


def operators_key(given: dict[str, Any]) -> str | None:
    """The key to ask with; None if the gateway asks for none."""
    if given["key_file"]:
        return keys_store.key_of(Path(given["key_file"]))
    if not given["key_secret"]:
        return None
    with cluster_api.connected(cluster_api.access(given)) as cluster:
        return keys_store.operator_in(cluster.secret(given["key_secret"]))


@contextmanager
def way(given: dict[str, Any]) -> Iterator[Connect]:
    """How connections to the gateway are made."""
    if not given["pod_of"]:
        yield lambda: questions.direct(given["url"], given["timeout"])
        return
    access = cluster_api.Access(given["kubeconfig"], given["context"], given["namespace"])
    with cluster_api.connected(access) as cluster:
        deployment = cluster.deployment(given["pod_of"])
        if deployment is None:
            raise job.JobError(f"There is no Deployment {given['pod_of']} in namespace {given['namespace']}.")
        port = deployment["spec"]["template"]["spec"]["containers"][0]["ports"][0]["containerPort"]
        pods = cluster.pods(rollouts.selector(deployment))
        ready = [pod for pod in pods if rollouts.is_ready(pod) and not rollouts.is_ending(pod)]
        if not ready:
            raise job.JobError(f"No pod of {given['pod_of']} is ready: make logs ONLY={given['pod_of']}.")
        name = ready[0]["metadata"]["name"]
        yield lambda: cluster.tunnel(name, port, given["timeout"])


def examined(
    question: dict[str, Any], connect: Connect, key: str | None, progress: job.Progress
) -> tuple[dict[str, Any], list[str]]:
    """One line of the table, and what was wrong."""
    row, problems = {"model": question["model"], "engine": question["owned_by"]}, []
    for stream in (False, True) if question["task"] != "embedding" else (False,):
        how = "streamed" if stream else "whole"
        progress.say(f"asking {question['model']} on {question['owned_by']}, {how}")
        wrong: str | None
        try:
            answer = questions.ask(connect(), question, stream=stream, key=key)
        except (OSError, http.client.HTTPException, ValueError) as error:
            wrong = f"did not come: {error}"
        else:
            row = questions.row(question, answer)
            wrong = questions.examine(question, answer)
        if wrong:
            problems.append(f"{row['model']} on {row['engine']}: the {how} answer {wrong}.")
    return row, problems


def main() -> None:
    """Read the arguments, ask, tell Ansible."""
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "questions": {"type": "list", "elements": "dict", "required": True},
            "timeout": {"type": "float", "default": 300},
            "pod_of": {"type": "str", "default": ""},
            "key_file": {"type": "path", "no_log": False},
            "key_secret": {"type": "str", "default": "", "no_log": False},
            "kubeconfig": {"type": "path"},
            "context": {"type": "str"},
            "namespace": {"type": "str"},
            "job": {"type": "path"},
        },
        supports_check_mode=False,
    )
    given = module.params

    def work(progress: job.Progress) -> dict[str, Any]:
        key = operators_key(given)
        with way(given) as connect:
            rows, problems = [], []
            for question in given["questions"]:
                row, wrong = examined(question, connect, key, progress)
                rows.append(row)
                problems += wrong
        return {"changed": False, "rows": rows, "problems": problems, "with_key": key is not None}

    module.exit_json(**job.run(work, given["job"]))


if __name__ == "__main__":
    main()
