#!/usr/bin/python
"""Module access_keys: the keys that the gateway takes, on a host or in a cluster."""

from __future__ import annotations

DOCUMENTATION = r"""
module: access_keys
short_description: Make, revoke and list the keys that the gateway takes
version_added: 0.1.0
author: Roundhouse maintainers (@roundhouse)
description:
  - Keeps a file of keys, or the Secret C(gateway-keys) of a cluster, which the gateway reads again when it changes. It
    has the SHA-256 of each key, and never the key itself. Where there is none yet, anyone may ask (V(open)).
  - As soon as there are keys there is also the key C(operator), by which the smoke test and the status ask. Its plain
    text is in C(operator.key) beside the others. It is made anew if it is lost.
  - Keys that were written by hand stay.
requirements:
  - PyYAML (Python package) on the host
  - kubernetes (Python package) on the host, for a cluster
options:
  state:
    description:
      - V(merged) has the keys of O(keys) in the place of those that came from the inventory before, and keeps the
        others.
      - V(created) makes one more key, V(revoked) takes one away.
      - V(opened) takes all of them away, so that anyone may ask.
      - V(listed) only reads.
    type: str
    choices: [merged, created, revoked, opened, listed]
    default: listed
  path:
    description: The file. Without it, the Secret of O(namespace) is meant.
    type: path
  kubeconfig:
    description: The kubeconfig of the cluster.
    type: path
  context:
    description: Which of its contexts.
    type: str
  namespace:
    description: Our namespace.
    type: str
  keys:
    description: With O(state=merged), the keys of the inventory; name and sha256 of each, and what it may.
    type: list
    elements: raw
    default: []
  name:
    description: With O(state=created) and O(state=revoked), which key.
    type: str
  models:
    description: The models or aliases that the new key may ask; V(all), or a list.
    type: list
    elements: str
    default: [all]
  requests_per_minute:
    description: How many requests per minute it may send.
    type: int
  tokens_per_minute:
    description: How many tokens per minute it may use.
    type: int
  max_in_flight:
    description: How many requests of it may be in flight.
    type: int
  admin:
    description: Whether it may also look at C(/routes) and C(/metrics).
    type: bool
    default: false
attributes:
  check_mode:
    description: Makes no key, and says what would be changed.
    support: full
  diff_mode:
    description: Shows names and rights, and nothing of the keys or their hashes.
    support: full
"""

EXAMPLES = r"""
- name: Make a key
  roundhouse.llm.access_keys:
    path: /srv/roundhouse/etc/keys.yml
    state: created
    name: anna
    models: [smollm2-135m]
    requests_per_minute: 60
  register: made
  no_log: true
"""

RETURN = r"""
key:
  description: The new key. It is nowhere else, and can't be had again.
  type: str
  returned: with O(state=created), but in check mode
open:
  description: Whether anyone may ask.
  type: bool
  returned: success
was_open:
  description: Whether anyone might before.
  type: bool
  returned: success
keys:
  description: Per key its name, its rights and where it comes from.
  type: list
  elements: dict
  returned: success
access:
  description: What C(/readyz) of the gateway says when it goes by these keys.
  type: str
  returned: success
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.roundhouse.llm.plugins.module_utils import access_keys, cluster_api, job, keys_store


def wanted(given: dict[str, Any], old: access_keys.Keys, plain: str) -> access_keys.Keys:
    """The keys as they are to be, without our own; `plain` is a key that may be given away. Raises JobError."""
    match given["state"]:
        case "merged":
            inventory = access_keys.read(given["keys"], "gateway_keys", ours=True)
            return access_keys.merged(old, inventory)
        case "created":
            return access_keys.created(old, asked_for(given, access_keys.digest(plain)))
        case "revoked":
            return access_keys.revoked(old, given["name"])
        case "opened":
            return None
        case _:
            return old


def asked_for(given: dict[str, Any], digest: str) -> access_keys.Key:
    """The key that is to be made."""
    models = [name.strip() for name in given["models"] if name.strip()]
    return access_keys.Key(
        given["name"],
        digest,
        models=None if models == ["all"] else tuple(models),
        **{name: given[name] for name in access_keys.LIMITS},
        admin=given["admin"],
        origin=access_keys.PLAYBOOK,
    )


def converge(store: keys_store.Store, given: dict[str, Any], *, dry: bool) -> dict[str, Any]:
    """The result. Raises JobError."""
    kept = store.load()
    old = None if kept.keys is None else access_keys.parse(kept.keys, store.title)
    if given["state"] == "listed":
        return {"changed": False, **facts(old, old, kept.keys or "")}
    plain = access_keys.new_key()
    operator = kept.operator or access_keys.new_key()
    new = access_keys.with_operator(wanted(given, old, plain), operator)
    # What means the same stays as it was written.
    text = kept.keys if kept.keys is not None and new == old else access_keys.render(new)
    target = keys_store.Kept(text, None if new is None else operator)
    result: dict[str, Any] = {"changed": target != kept, **facts(old, new, text)}
    if result["changed"]:
        result["diff"] = access_keys.difference(old, new)
        if not dry:
            store.save(target)
    if isinstance(store, keys_store.Files) and not store.are_private():
        result["changed"] = True
        if not dry:
            store.make_private()
    if given["state"] == "created" and not dry:
        result["key"] = plain
    return result


def facts(old: access_keys.Keys, new: access_keys.Keys, text: str) -> dict[str, Any]:
    """What can be told of the keys."""
    return {
        "open": new is None,
        "was_open": old is None,
        "keys": access_keys.rows(new),
        "access": access_keys.access(text) if text else "",
    }


def main() -> None:
    """Read the arguments, converge, tell Ansible."""
    module = AnsibleModule(
        argument_spec={
            "state": {
                "type": "str",
                "choices": ["merged", "created", "revoked", "opened", "listed"],
                "default": "listed",
            },
            "path": {"type": "path"},
            "kubeconfig": {"type": "path"},
            "context": {"type": "str"},
            "namespace": {"type": "str"},
            "keys": {"type": "list", "elements": "raw", "default": [], "no_log": False},
            "name": {"type": "str"},
            "models": {"type": "list", "elements": "str", "default": ["all"]},
            "requests_per_minute": {"type": "int"},
            "tokens_per_minute": {"type": "int", "no_log": False},
            "max_in_flight": {"type": "int"},
            "admin": {"type": "bool", "default": False},
        },
        required_if=[("state", "created", ["name"]), ("state", "revoked", ["name"])],
        required_one_of=[("path", "kubeconfig")],
        required_together=[("kubeconfig", "context", "namespace")],
        supports_check_mode=True,
    )
    given = module.params

    def work(_: job.Progress) -> dict[str, Any]:
        if given["path"]:
            return converge(keys_store.Files(Path(given["path"])), given, dry=module.check_mode)
        with cluster_api.connected(cluster_api.access(given)) as cluster:
            store = keys_store.Secret(cluster, given["namespace"])
            return converge(store, given, dry=module.check_mode)

    module.exit_json(**job.outcome(work, job.Progress()))


if __name__ == "__main__":
    main()
