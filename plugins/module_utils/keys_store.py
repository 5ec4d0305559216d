"""Where the gateway's keys are kept: files of one folder on a host, or the entries of a Secret in a cluster."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ansible_collections.roundhouse.llm.plugins.module_utils import access_keys, cluster_api, cluster_programs
from ansible_collections.roundhouse.llm.plugins.module_utils.job import JobError, write_whole

#: The labels of the Secret, those of everything that belongs to the gateway (plugin_utils/cluster/objects.py).
LABELS = {
    "app.kubernetes.io/name": "roundhouse-gateway",
    "app.kubernetes.io/instance": "gateway",
    "app.kubernetes.io/component": "gateway",
    "app.kubernetes.io/part-of": "roundhouse",
    "app.kubernetes.io/managed-by": "roundhouse",
}


@dataclass(frozen=True)
class Kept:
    """What is there: the content of the file, and the operator's key in plain text; None for what is not."""

    keys: str | None = None
    operator: str | None = None


class Store(Protocol):
    """A place that keeps them."""

    @property
    def title(self) -> str:
        """What to call it."""

    def load(self) -> Kept:
        """What is there."""

    def save(self, wanted: Kept) -> None:
        """Put it there."""


class Files:
    """`path` and the operator's key beside it. Each is whole, and only its user's, from its first byte."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._operator = path.with_name(access_keys.OPERATOR_FILE)

    @property
    def title(self) -> str:
        """The file."""
        return str(self.path)

    def load(self) -> Kept:
        """What is there."""
        return Kept(_text(self.path), operator_of(self.path))

    def save(self, wanted: Kept) -> None:
        """The operator's key first: the gateway is to know no key of ours that we do not have."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if wanted.operator is not None and operator_of(self.path) != wanted.operator:
            write_whole(self._operator, f"{wanted.operator}\n")
        if wanted.keys is not None and _text(self.path) != wanted.keys:
            write_whole(self.path, wanted.keys)
        if wanted.operator is None:
            self._operator.unlink(missing_ok=True)

    def are_private(self) -> bool:
        """Whether nobody else may read them."""
        return not any(file.exists() and file.stat().st_mode & 0o077 for file in (self.path, self._operator))

    def make_private(self) -> None:
        """Take others' right to read them."""
        for file in (self.path, self._operator):
            if file.exists():
                file.chmod(0o600)


def operator_of(keys: Path) -> str | None:
    """The operator's key on a host, from the path of the keys; None if there is none."""
    return key_of(keys.with_name(access_keys.OPERATOR_FILE))


def key_of(file: Path) -> str | None:
    """The key in a file; None if there is none."""
    return (_text(file) or "").strip() or None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise JobError(f"{path} is no UTF-8 text (byte {error.start}), nothing was changed.") from error


class Secret:
    """A Secret of the cluster. A change that somebody else made meanwhile is not overwritten."""

    def __init__(self, cluster: cluster_api.Cluster, namespace: str) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._found: dict[str, Any] | None = None

    @property
    def title(self) -> str:
        """The entry."""
        return f"{access_keys.KEYS_FILE} of the Secret {access_keys.SECRET}"

    def load(self) -> Kept:
        """What is there. Raises JobError if it is somebody else's."""
        self._found = self._cluster.secret(access_keys.SECRET)
        if self._found is None:
            return Kept()
        has = (self._found["metadata"].get("labels") or {}).items()
        if not all(tuple(pair.split("=")) in has for pair in cluster_programs.OURS.split(",")):
            raise JobError(
                f"Namespace {self._namespace} has Secret {access_keys.SECRET} already, and not from us: choose another "
                "namespace (roundhouse_namespace)."
            )
        return Kept(entry(self._found, access_keys.KEYS_FILE), operator_in(self._found))

    def save(self, wanted: Kept) -> None:
        """Put it there."""
        data = {
            access_keys.KEYS_FILE: _encoded(wanted.keys),
            access_keys.OPERATOR_FILE: _encoded(f"{wanted.operator}\n" if wanted.operator else None),
        }
        if self._found is None:
            self._cluster.create_secret(
                {
                    "apiVersion": "v1",
                    "kind": "Secret",
                    "metadata": {
                        "name": access_keys.SECRET,
                        "namespace": self._namespace,
                        "labels": LABELS,
                    },
                    "type": "Opaque",
                    "data": {name: value for name, value in data.items() if value is not None},
                }
            )
            return
        version = self._found["metadata"]["resourceVersion"]
        self._cluster.patch_secret(
            access_keys.SECRET, {"metadata": {"resourceVersion": version}, "data": data}
        )


def _encoded(text: str | None) -> str | None:
    return None if text is None else base64.b64encode(text.encode()).decode()


def entry(secret: dict[str, Any], name: str) -> str | None:
    """The text of one entry of a Secret; None if it has none of that name. Raises JobError."""
    value = (secret.get("data") or {}).get(name)
    try:
        return None if value is None else base64.b64decode(value).decode()
    except (binascii.Error, UnicodeDecodeError) as error:
        raise JobError(f"The entry {name} of the Secret {access_keys.SECRET} is no UTF-8 text.") from error


def operator_in(secret: dict[str, Any] | None) -> str | None:
    """The operator's key in a cluster; None if there is none."""
    return (entry(secret or {}, access_keys.OPERATOR_FILE) or "").strip() or None


def operator_of_cluster(cluster: cluster_api.Cluster) -> str | None:
    """The operator's key, for who only wants to look; None also for who may not read Secrets."""
    try:
        return operator_in(cluster.secret(access_keys.SECRET))
    except JobError:
        return None
