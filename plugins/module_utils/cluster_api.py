"""A Kubernetes cluster, through the client library `kubernetes`. What comes back are the API's own dicts.

The library is imported where it is used: only the Python that talks to a cluster has it.
"""

from __future__ import annotations

import functools
import http.client
import importlib
import ipaddress
import json
import os
import re
import socket
import tempfile
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.roundhouse.llm.plugins.module_utils import job

Thing = dict[str, Any]

#: Seconds for one question to the API: to connect, and between two pieces of the answer.
_TIMEOUT = (10, 10)

#: Answers that may be others in a moment: too many requests, and what goes wrong within the server.
_PASSING = (429, 500, 502, 503, 504)


#: urllib3 begins with its own objects: "<...HTTPSConnection object at 0x7f...>: Failed to ...".
_PREAMBLE = re.compile(
    r"^.*>: |^\w+\(host=[^)]*\): |Failed to establish a new connection: (\[Errno \d+\] )?", re.DOTALL
)


#: Kinds of objects that may be ours: the group of the API, and the word that its calls have for them.
KINDS = {
    "ConfigMap": ("core", "config_map"),
    "CronJob": ("batch", "cron_job"),
    "DaemonSet": ("apps", "daemon_set"),
    "Deployment": ("apps", "deployment"),
    "Ingress": ("networking", "ingress"),
    "Job": ("batch", "job"),
    "NetworkPolicy": ("networking", "network_policy"),
    "PersistentVolumeClaim": ("core", "persistent_volume_claim"),
    "Pod": ("core", "pod"),
    "PodMonitor": ("monitoring", "podmonitors"),
    "PodDisruptionBudget": ("policy", "pod_disruption_budget"),
    "ResourceQuota": ("core", "resource_quota"),
    "Secret": ("core", "secret"),
    "Service": ("core", "service"),
    "ServiceAccount": ("core", "service_account"),
    "ServiceMonitor": ("monitoring", "servicemonitors"),
    "StatefulSet": ("apps", "stateful_set"),
}

#: The group and version of the Prometheus operator's kinds. Where it is not, or may not be seen, there are none.
_MONITORING = ("monitoring.coreos.com", "v1")
_NO_MONITORING = (403, 404)


class UnavailableError(Exception):
    """The API does not answer now; in a moment it may. The message says how it failed, in a few words."""


@dataclass(frozen=True)
class Access:
    """Where a cluster is reached, and which of its namespaces is meant."""

    kubeconfig: str
    context: str | None
    namespace: str

    def options(self) -> list[str]:
        """The same for kubectl."""
        context = ["--context", self.context] if self.context else []
        return ["--kubeconfig", self.kubeconfig, *context, "--namespace", self.namespace]


#: The arguments of a module that say which cluster, and where in it.
ARGUMENTS: dict[str, Thing] = {
    "kubeconfig": {"type": "path", "required": True},
    "context": {"type": "str", "required": True},
    "namespace": {"type": "str", "required": True},
}


def access(given: Thing) -> Access:
    """What the arguments of a module say."""
    return Access(given["kubeconfig"], given["context"], given["namespace"])


class Cluster:
    """Questions to the API. Each raises UnavailableError, or JobError if it is no use to ask again."""

    def __init__(self, access: Access, client: Any) -> None:
        kubernetes = importlib.import_module("kubernetes.client")
        self._failures = (kubernetes.ApiException, importlib.import_module("urllib3").exceptions.HTTPError)
        self._apps = kubernetes.AppsV1Api(client)
        self._core = kubernetes.CoreV1Api(client)
        others = {
            "batch": kubernetes.BatchV1Api(client),
            "networking": kubernetes.NetworkingV1Api(client),
            "policy": kubernetes.PolicyV1Api(client),
        }
        self._groups = {"apps": self._apps, "core": self._core} | others
        self._custom = kubernetes.CustomObjectsApi(client)
        self._version = kubernetes.VersionApi(client)
        self._access = access
        self._client = client
        self.address: str = client.configuration.host

    def version(self) -> str:
        """The release of Kubernetes, as in 1.34."""
        text = self._ask("tell its version", without_namespace(self._version.get_code))
        found = json.loads(text or b"{}")
        return f"{found.get('major')}.{str(found.get('minor')).rstrip('+')}"

    def deployment(self, name: str) -> Thing | None:
        """A Deployment; None if there is none of that name."""
        text = self._ask(
            f"get the Deployment {name}", self._apps.read_namespaced_deployment, name=name, absent=(404,)
        )
        return None if text is None else json.loads(text)

    def deployments(self, selector: str = "") -> list[Thing]:
        """The Deployments with these labels."""
        return self._items("list Deployments", self._apps.list_namespaced_deployment, selector)

    def daemon_set(self, name: str) -> Thing | None:
        """A DaemonSet; None if there is none of that name."""
        call = self._apps.read_namespaced_daemon_set
        text = self._ask(f"get the DaemonSet {name}", call, name=name, absent=(404,))
        return None if text is None else json.loads(text)

    def nodes(self) -> list[Thing] | None:
        """The cluster's nodes; None if this user may not see them."""
        text = self._ask("list nodes", without_namespace(self._core.list_node), absent=(403,))
        return None if text is None else list(json.loads(text)["items"])

    def replica_sets(self, selector: str = "") -> list[Thing]:
        """The ReplicaSets with these labels."""
        return self._items("list ReplicaSets", self._apps.list_namespaced_replica_set, selector)

    def pods(self, selector: str = "") -> list[Thing]:
        """The pods with these labels."""
        return self._items("list pods", self._core.list_namespaced_pod, selector)

    def events(self, uid: str) -> list[Thing]:
        """What happened to one object, the newest last; nothing if this user may not see events."""
        text = self._ask(
            "list events",
            self._core.list_namespaced_event,
            field_selector=f"involvedObject.uid={uid}",
            absent=(403, 404),
        )
        return [] if text is None else sorted(json.loads(text)["items"], key=_event_order)

    def log(self, pod: str, container: str, lines: int, previous: bool = False) -> list[str]:
        """A container's last log lines, or those of its run before this one; empty if there are none to be had."""
        text = self._ask(
            f"read the log of {pod}",
            self._core.read_namespaced_pod_log,
            name=pod,
            container=container,
            tail_lines=lines,
            previous=previous,
            # 400: no such run of it, or it has not started yet. 500: its node does not answer.
            absent=(400, 403, 404, 500),
        )
        shown = [line.rstrip() for line in (text or b"").decode(errors="replace").splitlines()]
        return [line for line in shown if line][-lines:]

    def things(self, kind: str, selector: str) -> list[Thing]:
        """The objects of a kind (of KINDS) with these labels."""
        call = self._call("list", kind)
        text = self._ask(f"list {kind} objects", call, label_selector=selector, absent=self._missing(kind))
        return list(json.loads(text or b"{}").get("items", []))

    def foreign(self, objects: Sequence[Thing], selector: str) -> list[str]:
        """Those of the wanted objects (`KIND NAME`) that are there already, and do not have these labels."""
        found = []
        for kind in dict.fromkeys(thing["kind"] for thing in objects):
            wanted = {thing["metadata"]["name"] for thing in objects if thing["kind"] == kind}
            there = {thing["metadata"]["name"] for thing in self.things(kind, "")}
            ours = {thing["metadata"]["name"] for thing in self.things(kind, selector)}
            found += [f"{kind} {name}" for name in sorted(wanted & there - ours)]
        return found

    def is_namespace(self, selector: str) -> bool:
        """Whether our namespace is there, and has these labels."""
        call = without_namespace(self._core.list_namespace)
        field = f"metadata.name={self._access.namespace}"
        # Who may not see namespaces has none that is ours to delete.
        text = self._ask(
            "list namespaces", call, label_selector=selector, field_selector=field, absent=(403,)
        )
        return bool(json.loads(text or b"{}").get("items"))

    def patch_deployment(self, name: str, patch: Thing) -> None:
        """Change a Deployment."""
        call = self._apps.patch_namespaced_deployment
        self._ask(f"change the Deployment {name}", call, name=name, body=patch)

    def annotate_pod(self, name: str, annotations: dict[str, str]) -> None:
        """Put annotations on a pod, if it is still there."""
        patch = {"metadata": {"annotations": annotations}}
        self._ask(f"annotate {name}", self._core.patch_namespaced_pod, name=name, body=patch, absent=(404,))

    def secret(self, name: str) -> Thing | None:
        """A Secret; None if there is none of that name."""
        call = self._core.read_namespaced_secret
        text = self._ask(f"read the Secret {name}", call, name=name, absent=(404,))
        return None if text is None else json.loads(text)

    def create_secret(self, secret: Thing) -> None:
        """Make a Secret that is not there yet."""
        call = self._core.create_namespaced_secret
        self._ask(f"make the Secret {secret['metadata']['name']}", call, body=secret)

    def patch_secret(self, name: str, patch: Thing) -> None:
        """Change a Secret. With a `resourceVersion` it is refused if somebody else changed it meanwhile."""
        self._ask(f"change the Secret {name}", self._core.patch_namespaced_secret, name=name, body=patch)

    def delete(self, kind: str, name: str) -> None:
        """Delete an object of a kind (of KINDS) and what belongs to it, or the namespace; none is fine, too."""
        is_namespace = kind == "Namespace"
        call = without_namespace(self._core.delete_namespace) if is_namespace else self._call("delete", kind)
        self._ask(f"delete {kind} {name}", call, name=name, propagation_policy="Foreground", absent=(404,))

    def _call(self, verb: str, kind: str) -> Callable[..., Any]:
        """The call of the client's that does something with objects of a kind."""
        group, word = KINDS[kind]
        if group != "monitoring":
            return getattr(self._groups[group], f"{verb}_namespaced_{word}")  # type: ignore[no-any-return] # of no type
        call = getattr(self._custom, f"{verb}_namespaced_custom_object")
        return functools.partial(call, *_MONITORING, plural=word)

    @staticmethod
    def _missing(kind: str) -> tuple[int, ...]:
        """Statuses that say that there is no such kind."""
        return _NO_MONITORING if KINDS[kind][0] == "monitoring" else ()

    def get_from_pod(self, name: str, port: int, path: str, key: str | None = None) -> bytes:
        """What a pod answers to a GET of `path` (without the first slash), by way of the API.

        `key` is one of the gateway's. The header Authorization is for the API itself, so it goes in another.
        """
        call = self._core.connect_get_namespaced_pod_proxy_with_path
        if key:
            self._client.set_default_header("x-api-key", key)
        try:
            return (
                self._ask(f"ask pod {name} for /{path}", call, name=f"http:{name}:{port}", path=path) or b""
            )
        finally:
            self._client.default_headers.pop("x-api-key", None)

    def tunnel(self, pod: str, port: int, timeout: float) -> http.client.HTTPConnection:
        """A connection to a port of a pod, by way of the API; `timeout` is how many seconds it may be silent."""
        forward = importlib.import_module("kubernetes.stream").portforward
        call = self._core.connect_get_namespaced_pod_portforward
        try:
            ports = forward(call, pod, self._access.namespace, ports=str(port))
            connection = _Tunnel(ports.socket(port), timeout)
        except (*self._failures, OSError, ValueError) as error:
            raise ConnectionError(f"pod {pod} is not reached through the API: {reason_of(error)}") from error
        return connection

    def _items(self, what: str, call: Callable[..., Any], selector: str) -> list[Thing]:
        items: list[Thing] = json.loads(self._ask(what, call, label_selector=selector) or b"{}").get(
            "items", []
        )
        return items

    def _ask(
        self, what: str, call: Callable[..., Any], absent: tuple[int, ...] = (), **arguments: Any
    ) -> bytes | None:
        """The body of the answer; None if its status is one of `absent`."""
        try:
            body: bytes = call(
                namespace=self._access.namespace,
                _preload_content=False,
                _request_timeout=_TIMEOUT,
                **arguments,
            ).data
        except (*self._failures, OSError) as error:
            status = getattr(error, "status", None)
            if status in absent:
                return None
            raise self._explained(what, status, error) from error
        return body

    def _explained(self, what: str, status: int | None, error: Exception) -> Exception:
        reason = reason_of(error)
        if "CERTIFICATE_VERIFY_FAILED" in reason:
            return job.JobError(
                f"What answers at {self.address} is not the cluster of the kubeconfig {self._access.kubeconfig} "
                f"(its certificate does not match: {reason}). Fetch that cluster's kubeconfig anew."
            )
        if not status or status in _PASSING:
            return UnavailableError(reason)
        if status in (401, 403):
            return job.JobError(
                f"The cluster at {self.address} does not let this user {what} in namespace "
                f"{self._access.namespace}: {reason}. Use a kubeconfig or context with that right."
            )
        return job.JobError(f"The cluster at {self.address} refused to {what}: {status} {reason}")


class _Tunnel(http.client.HTTPConnection):
    """An HTTP connection over a socket that is there already."""

    def __init__(self, tunnel: socket.socket, timeout: float) -> None:
        super().__init__("localhost")
        tunnel.settimeout(timeout)
        self.sock = tunnel


def without_namespace(call: Callable[..., Any]) -> Callable[..., Any]:
    """A call about what is in no namespace, which takes ours and leaves it."""

    def called(namespace: str, **arguments: Any) -> Any:  # noqa: ARG001 - that is the point
        return call(**arguments)

    return called


@contextmanager
def connected(access: Access, scratch: str | None = None) -> Iterator[Cluster]:
    """A cluster to ask. `scratch` is a folder for the kubeconfig's keys while it lasts: the library wants files."""
    try:
        kubernetes = importlib.import_module("kubernetes")
        yaml = importlib.import_module("yaml")
    except ImportError as error:
        raise job.JobError(
            f"This Python has no client for Kubernetes ({error}): set ansible_python_interpreter to one that has "
            "the package kubernetes, or install it there (pip install kubernetes)."
        ) from error
    if not Path(access.kubeconfig).is_file():
        raise job.JobError(
            f"There is no kubeconfig {access.kubeconfig}: name the one of the cluster you mean."
        )
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        configuration = kubernetes.client.Configuration()
        try:
            kubernetes.config.load_kube_config(
                access.kubeconfig,
                access.context,
                configuration,
                persist_config=False,
                temp_file_path=folder,
            )
        except (kubernetes.config.ConfigException, yaml.YAMLError, ValueError, TypeError) as error:
            raise job.JobError(
                f"The kubeconfig {access.kubeconfig} is of no use"
                f"{f' for context {access.context}' if access.context else ''}: {error}"
            ) from error
        configuration.retries = False
        _choose_way(configuration)
        with kubernetes.client.ApiClient(configuration) as client:
            cluster = Cluster(access, client)
            try:
                yield cluster
            except UnavailableError as error:
                context = f" of context {access.context}" if access.context else ""
                raise job.JobError(
                    f"The cluster{context} does not answer at {cluster.address} ({error}). "
                    "Does it run (on platform k3d: make start), and is it reached from this host?"
                ) from error


def _choose_way(configuration: Any) -> None:
    """No proxy to this machine itself, nor to what NO_PROXY names (which release 34 of the library forgets)."""
    configuration.no_proxy = os.environ.get("NO_PROXY") or os.environ.get("no_proxy")
    if is_loopback(configuration.host):
        configuration.proxy = None


def is_loopback(url: str) -> bool:
    """Whether an address is on this machine itself. Docker's 0.0.0.0 is, too."""
    host = urllib.parse.urlsplit(url).hostname or ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return address.is_loopback or address.is_unspecified


def reason_of(error: Exception) -> str:
    """Why a question failed, in a few words: the API's own message if it sent one."""
    try:
        return str(json.loads(getattr(error, "body", None) or "")["message"])
    except (ValueError, KeyError, TypeError):
        reason = str(getattr(error, "reason", None) or error)
    return " ".join(_PREAMBLE.sub("", reason).split())


def _event_order(event: Thing) -> tuple[str, int]:
    """When it happened last, to the second; within one second the order in which the API stored it."""
    when = (
        (event.get("series") or {}).get("lastObservedTime")
        or event.get("lastTimestamp")
        or event.get("eventTime")
        or event["metadata"].get("creationTimestamp")
        or ""
    )
    version = str(event["metadata"].get("resourceVersion", ""))
    return when[:19], int(version) if version.isdigit() else 0
