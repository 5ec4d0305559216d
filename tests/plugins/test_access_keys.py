"""The gateway's keys: what their file says, who changes it, and that nothing of a key is where it must not be."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import kubernetes_validate
import pytest
import yaml
from ansible.module_utils.testing import patch_module_args
from ansible_collections.roundhouse.llm.plugins.module_utils import (
    access_keys,
    cluster_api,
    cluster_programs,
    job,
    keys_store,
    local_http,
    questions,
    supervisor,
)
from ansible_collections.roundhouse.llm.plugins.module_utils.access_keys import Key
from ansible_collections.roundhouse.llm.plugins.modules import access_keys as module
from ansible_collections.roundhouse.llm.plugins.modules import (
    access_served,
    cluster_status,
    program_status,
    routes_served,
    smoke_test,
)
from ansible_collections.roundhouse.llm.plugins.plugin_utils.cluster import objects
from hypothesis import given
from hypothesis import strategies as st

from roundhouse_gateway import access

ROOT = Path(__file__).parents[2]
Thing = dict[str, Any]

names = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=20).filter(str.isprintable)
counts = st.none() | st.integers(1, 10**9)


@st.composite
def keys(draw: st.DrawFn) -> tuple[Key, ...]:
    """Any keys that a file may have, with no two of one name or hash; one of them may be our own."""
    found = []
    for index, name in enumerate(draw(st.lists(names, max_size=4, unique=True))):
        if name == access_keys.OPERATOR:
            continue
        found.append(
            Key(
                name,
                hashlib.sha256(str(index).encode()).hexdigest(),
                models=draw(st.none() | st.lists(names, min_size=1, max_size=3).map(tuple)),
                requests_per_minute=draw(counts),
                tokens_per_minute=draw(counts),
                max_in_flight=draw(counts),
                admin=draw(st.booleans()),
                origin=draw(st.sampled_from([None, "inventory", "playbook"])),
            )
        )
    whole: tuple[Key, ...] = tuple(found)
    return access_keys.with_operator(whole, "rh-x") or () if draw(st.booleans()) else whole


def entry(name: str = "anna", **changes: Any) -> Thing:
    return {"name": name, "sha256": access_keys.digest(name), **changes}


def key(name: str, origin: str | None = None) -> Key:
    return Key(name, access_keys.digest(name), origin=origin)


# The file


@given(keys())
def test_what_is_written_is_read_back_the_same(given: tuple[Key, ...]) -> None:
    assert access_keys.parse(access_keys.render(given), "keys.yml") == given


@given(keys())
def test_the_gateway_reads_it_as_it_is_meant(given: tuple[Key, ...]) -> None:
    text = access_keys.render(given)
    found = access.load(text.encode())
    assert found.revision == access_keys.access(text)
    assert found.keys is not None
    for theirs, ours in zip(found.keys, given, strict=True):
        for name in ("name", "sha256", "admin", "origin", *access_keys.LIMITS):
            assert getattr(theirs, name) == getattr(ours, name)
        assert theirs.models == ("all" if ours.models is None else list(ours.models))


def test_open() -> None:
    assert access_keys.render(None) == "open\n"
    assert [access_keys.parse(text, "x") for text in ("open", "open\n", '"open"', "# all\nopen\n")] == [
        None
    ] * 4
    assert access.load(b"open\n").keys is None
    assert access.load(b"open\n").revision == access_keys.access("open\n")


WRONG = {
    "no list": ("name: x", "keys.yml must be a list of keys, or the word open, and is {'name': 'x'}"),
    "no YAML": ("- [", "keys.yml is no YAML, nothing was changed: "),
    "nothing": ("", "keys.yml must be a list of keys, or the word open, and is None"),
    "no mapping": ("- x", "keys.yml, key 1: must be a mapping of name, sha256, models"),
    "unknown key": (
        [entry(model=["x"])],
        "keys.yml, key 1 (anna): unknown key 'model'; did you mean 'models'?",
    ),
    "no name": ([{"sha256": "0" * 64}], "keys.yml, key 1: 'name' is missing: give it a name."),
    "no hash": (
        [{"name": "x"}],
        "key 1 (x): 'sha256' is missing: give it the SHA-256 of the key, 64 hex digits",
    ),
    "no models": ([entry(models=[])], "'models' must be all, or a list of models or aliases, not []."),
    "a model": ([entry(models="x")], "'models' must be all, or a list of models or aliases, not 'x'."),
    "no number": ([entry(max_in_flight=0)], "'max_in_flight' must be a whole number from 1, not 0."),
    "a truth": (
        [entry(tokens_per_minute=True)],
        "'tokens_per_minute' must be a whole number from 1, not True.",
    ),
    "yes": ([entry(admin="yes")], "'admin' must be true or false, not 'yes'."),
    "origin": ([entry(origin="x")], "'origin' must be one of inventory, playbook, operator, not 'x'."),
    "twice": (
        [entry(), {"name": "anna", "sha256": "0" * 64}],
        "keys.yml: there are two keys 'anna': give each a name of its own.",
    ),
    "the same": (
        [entry(), {"name": "bob", "sha256": access_keys.digest("anna")}],
        "'anna' and 'bob' are the same key: make one for each",
    ),
    "ours": ([entry("operator")], "the name operator is that of our own key"),
    "not ours": ([entry(origin="operator")], "the origin operator is that of the key operator"),
}


@pytest.mark.parametrize(("text", "sentence"), WRONG.values(), ids=WRONG)
def test_a_bad_file_has_its_sentence(text: Any, sentence: str) -> None:
    with pytest.raises(job.JobError) as caught:
        access_keys.parse(text if isinstance(text, str) else yaml.safe_dump(text), "keys.yml")
    assert sentence in str(caught.value)
    assert "othing was changed" in str(caught.value) or "nothing was changed" in str(caught.value)


def test_all_that_is_wrong_at_once_and_no_key_in_it() -> None:
    with pytest.raises(job.JobError) as caught:
        access_keys.read([{"name": "a b", "sha256": "rh-plain", "x": 1}, 7], "gateway_keys", ours=True)
    assert str(caught.value).splitlines() == [
        "The keys can't be used, nothing was changed:",
        "  - gateway_keys, key 1 (a b): unknown key 'x'; there are: admin, max_in_flight, models, name, "
        "requests_per_minute, sha256, tokens_per_minute.",
        "  - gateway_keys, key 1 (a b): 'name' must be 1 to 63 of letters, digits, '.', '_', '-' and '@', not 'a b'.",
        "  - gateway_keys, key 1 (a b): 'sha256' must be the SHA-256 of the key, 64 hex digits in lower case and in "
        "quotes, not what it is.",
        "  - gateway_keys, key 2: must be a mapping of name, sha256, models, requests_per_minute, tokens_per_minute, "
        "max_in_flight, admin, not 7.",
    ]


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*access_keys.FIELDS, "x"]), inner, max_size=4)
    ),
    max_leaves=15,
)


@given(anything, st.booleans())
def test_anything_at_all_gives_sentences_and_no_traceback(given: Any, ours: bool) -> None:
    try:
        found = access_keys.read(given, "keys", ours=ours)
    except job.JobError:
        return
    assert access_keys.parse(access_keys.render(found), "keys") == found


# Changes


@given(keys(), keys())
def test_the_inventory_replaces_its_own_and_nothing_else(
    there: tuple[Key, ...], wanted: tuple[Key, ...]
) -> None:
    inventory = [one for one in wanted if one.name != access_keys.OPERATOR]
    others = [one for one in there if one.origin != "inventory"]
    try:
        found = access_keys.merged(there, inventory)
    except job.JobError:
        assert {one.name for one in others} & {one.name for one in inventory} or {
            one.sha256 for one in others
        } & {one.sha256 for one in inventory}
        return
    assert found is not None
    assert [one for one in found if one.origin != "inventory"] == others
    assert [one.name for one in found if one.origin == "inventory"] == [one.name for one in inventory]
    assert access_keys.merged(found, inventory) == found


def test_open_stays_open_until_there_is_a_key() -> None:
    assert access_keys.merged(None, []) is None
    assert access_keys.merged(None, [key("ci")]) == (key("ci", "inventory"),)
    # Keys that leave the inventory do not leave the door open.
    assert access_keys.merged((key("ci", "inventory"),), []) == ()


def test_one_name_in_two_places() -> None:
    with pytest.raises(job.JobError) as caught:
        access_keys.merged((key("ci", "playbook"), key("x")), [key("ci"), key("x")])
    assert "the key 'ci' is in gateway_keys of the inventory, and made by playbooks/keys.yml, too" in str(
        caught.value
    )
    assert "the key 'x' is in gateway_keys of the inventory, and written into the file by hand" in str(
        caught.value
    )
    assert 'make keys ARGS="-e keys_revoke=ci"' in str(caught.value)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("anna", "There is a key 'anna' already (made by playbooks/keys.yml)"),
        ("operator", "the name operator is that of our own key"),
        ("a b", "'name' must be 1 to 63 of letters"),
        ("x" * 64, "'name' must be 1 to 63 of letters"),
    ],
)
def test_keys_that_can_not_be_made(name: str, sentence: str) -> None:
    with pytest.raises(job.JobError) as caught:
        access_keys.created((key("anna", "playbook"),), key(name))
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("ana", "There is no key 'ana'; did you mean 'Anna'?"),
        ("zzz", "There is no key 'zzz'; there are: Anna, ci."),
        ("operator", "The key operator is our own"),
        ("ci", "The key 'ci' is in gateway_keys of the inventory"),
    ],
)
def test_keys_that_can_not_be_revoked(name: str, sentence: str) -> None:
    there = access_keys.with_operator((key("Anna", "playbook"), key("ci", "inventory")), "rh-x")
    with pytest.raises(job.JobError) as caught:
        access_keys.revoked(there, name)
    assert str(caught.value).startswith(sentence)


def test_nothing_to_revoke() -> None:
    with pytest.raises(job.JobError, match="There is no key 'anna'; there are none"):
        access_keys.revoked(None, "anna")


@given(keys(), names)
def test_no_hash_in_a_diff(given: tuple[Key, ...], name: str) -> None:
    shown = str(access_keys.difference(None, given)) + str(access_keys.difference(given, ()))
    assert not re.search("[0-9a-f]{64}", shown)


def test_a_diff_tells_of_another_key() -> None:
    there = access_keys.with_operator((), "rh-x")
    after = access_keys.difference(there, access_keys.with_operator(there, "rh-y"))["after"]
    assert after == "operator: models all; admin; another key\n"


def test_new_keys_can_not_be_guessed() -> None:
    assert re.fullmatch(r"rh-[A-Za-z0-9_-]{43}", access_keys.new_key())
    assert access_keys.new_key() != access_keys.new_key()


# The module, on files


class Module:
    """The module as Ansible runs it, on one file."""

    def __init__(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.path = path
        self._capsys = capsys
        self.output = ""

    def __call__(self, state: str, *, check: bool = False, **arguments: Any) -> Thing:
        with (
            patch_module_args(
                {"path": str(self.path), "state": state, "_ansible_check_mode": check, **arguments}
            ),
            pytest.raises(SystemExit),
        ):
            module.main()
        self.output = self._capsys.readouterr().out
        found: Thing = json.loads(self.output)
        return found

    @property
    def operator(self) -> Path:
        return self.path.with_name("operator.key")

    def kept(self) -> dict[str, str | None]:
        found = access_keys.parse(self.path.read_text(), "keys.yml")
        return {one.name: one.origin for one in found or ()}


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Module:
    return Module(tmp_path / "etc" / "keys.yml", capsys)


class TestModule:
    def test_at_first_anyone_may_ask(self, run: Module) -> None:
        assert run("listed") == {
            "changed": False,
            "open": True,
            "was_open": True,
            "keys": [],
            "access": "",
            "invocation": run("listed")["invocation"],
        }
        assert not run.path.exists()
        assert run("merged", check=True)["changed"] is True
        assert not run.path.exists()
        made = run("merged")
        assert (made["changed"], made["open"], run.path.read_text()) == (True, True, "open\n")
        assert run("merged")["changed"] is False
        assert not run.operator.exists()

    def test_the_life_of_a_key(self, run: Module) -> None:
        made = run("created", name="anna", models=["a", "b"], max_in_flight=2)
        assert (made["changed"], made["open"], made["was_open"]) == (True, False, True)
        live = access.load(run.path.read_bytes())
        assert live.revision == made["access"]
        assert live.keys is not None
        assert live.keys[0].sha256 == access_keys.digest(made["key"])
        assert (live.keys[0].models, live.keys[0].max_in_flight) == (["a", "b"], 2)
        assert live.keys[1].sha256 == access_keys.digest(run.operator.read_text().strip())
        assert live.keys[1].admin
        assert {file.stat().st_mode & 0o777 for file in (run.path, run.operator)} == {0o600}
        assert run.path.parent.stat().st_mode & 0o777 == 0o700
        operator = run.operator.read_text()
        assert run("merged")["changed"] is False
        assert run("created", name="bob", models=["all"])["was_open"] is False
        assert run("revoked", name="anna")["keys"][0]["name"] == "operator"
        assert run.kept() == {"operator": "operator", "bob": "playbook"}
        assert run("revoked", name="bob")["open"] is False
        assert run.kept() == {"operator": "operator"}
        assert run.operator.read_text() == operator
        assert run("opened")["open"] is True
        assert run.path.read_text() == "open\n"
        assert not run.operator.exists()

    def test_check_mode_makes_no_key(self, run: Module) -> None:
        run("merged")
        found = run("created", check=True, name="anna")
        assert found["changed"] is True
        assert "key" not in found
        assert found["diff"]["after"] == "anna: models all\noperator: models all; admin\n"
        assert run.path.read_text() == "open\n"
        assert not run.operator.exists()
        run("created", name="anna")
        assert run("revoked", check=True, name="anna")["diff"]["after"] == "operator: models all; admin\n"
        assert "anna" in run.kept()

    def test_neither_key_nor_hash_is_told(self, run: Module) -> None:
        run("created", name="anna")
        operator = run.operator.read_text().strip()
        asked: list[tuple[str, Thing]] = [
            ("merged", {"keys": [entry("ci")]}),
            ("listed", {}),
            ("revoked", {"name": "anna"}),
        ]
        for state, arguments in asked:
            found = run(state, **arguments)
            # Arguments are taken out by the action plugin.
            found.pop("invocation")
            assert operator not in run.output
            assert not re.search("[0-9a-f]{64}", json.dumps(found))
            assert "rh-" not in run.output

    def test_what_was_written_by_hand_stays(self, run: Module) -> None:
        run("created", name="anna")
        mine = "# mine\n- {name: mine, sha256: '" + "a" * 64 + "', models: [x]}\n"
        run.path.write_text(run.path.read_text() + mine)
        before = run.path.read_text()
        assert run("merged")["changed"] is False
        assert run.path.read_text() == before
        run("merged", keys=[entry("ci")])
        run("revoked", name="anna")
        assert run.kept() == {"operator": "operator", "mine": None, "ci": "inventory"}
        run("merged", keys=[])
        assert run.kept() == {"operator": "operator", "mine": None}

    def test_our_key_is_made_anew_if_it_is_lost(self, run: Module) -> None:
        run("created", name="anna")
        lost = run.operator.read_text()
        run.operator.unlink()
        found = run("merged")
        assert found["changed"] is True
        assert "operator: models all; admin; another key" in found["diff"]["after"]
        assert run.operator.read_text() != lost
        live = access.load(run.path.read_bytes()).keys
        assert live is not None
        assert access_keys.digest(run.operator.read_text().strip()) in {one.sha256 for one in live}

    def test_our_key_is_put_back_if_it_was_taken_out(self, run: Module) -> None:
        run("created", name="anna")
        operator = run.operator.read_text()
        run.path.write_text(yaml.safe_dump([entry("mine")]))
        run("merged")
        assert run.kept() == {"mine": None, "operator": "operator"}
        assert run.operator.read_text() == operator

    def test_others_may_not_read_it(self, run: Module) -> None:
        run("created", name="anna")
        run.path.chmod(0o644)
        assert run("merged", check=True)["changed"] is True
        assert run("merged")["changed"] is True
        assert run.path.stat().st_mode & 0o777 == 0o600
        assert run("merged")["changed"] is False

    def test_a_bad_file_is_left_alone(self, run: Module) -> None:
        run.path.parent.mkdir()
        run.path.write_text("- name: x\n")
        for state in ("merged", "created", "listed"):
            found = run(state, name="a")
            assert found["failed"]
            assert f"{run.path}, key 1 (x): 'sha256' is missing" in found["msg"]
        assert run.path.read_text() == "- name: x\n"
        assert not run.operator.exists()

    def test_what_is_missing(self, run: Module) -> None:
        assert "name" in run("created")["msg"]


# In a cluster


def test_the_same_keys_make_the_same_file() -> None:
    """Whatever the order in which they came: a second run changes nothing."""

    def ours(*names: str) -> list[access_keys.Key]:
        return [access_keys.Key(name, access_keys.digest(name)) for name in names]

    first = access_keys.with_operator(access_keys.merged(None, ours("ci", "cd")), "rh-plain")
    assert access_keys.merged(first, ours("ci", "cd")) == first
    more = access_keys.created(
        first, access_keys.Key("a", access_keys.digest("a"), origin=access_keys.PLAYBOOK)
    )
    assert access_keys.merged(more, ours("cd", "ci")) == more
    assert [key.name for key in access_keys.merged(more, ours("ci", "new")) or ()] == [
        "ci",
        "operator",
        "a",
        "new",
    ]


class FakeCluster:
    """A cluster with one Secret, as the API keeps it."""

    def __init__(self, secret: Thing | None = None) -> None:
        self.kept = secret
        self.asked: list[tuple[str, str | None]] = []
        self.answers: dict[str, Thing] = {}
        self.notes: list[tuple[str, Thing]] = []

    def secret(self, name: str) -> Thing | None:
        assert name == "gateway-keys"
        return json.loads(json.dumps(self.kept)) if self.kept else None

    def create_secret(self, secret: Thing) -> None:
        assert self.kept is None
        kubernetes_validate.validate(secret, "1.34", strict=True)
        self.kept = secret | {"metadata": secret["metadata"] | {"resourceVersion": "1"}}

    def patch_secret(self, _name: str, patch: Thing) -> None:
        assert self.kept is not None
        if patch["metadata"]["resourceVersion"] != self.kept["metadata"]["resourceVersion"]:
            raise job.JobError("The cluster refused to change the Secret gateway-keys: 409 Conflict")
        self.kept["data"] |= patch["data"]
        self.kept["data"] = {name: value for name, value in self.kept["data"].items() if value is not None}
        self.kept["metadata"]["resourceVersion"] += "1"

    def pods(self, _selector: str) -> list[Thing]:
        spec = {"containers": [{"ports": [{"containerPort": 8080}]}]}
        return [{"metadata": {"name": name}, "spec": spec, "status": {}} for name in self.answers]

    def get_from_pod(self, name: str, port: int, path: str, key: str | None = None) -> bytes:
        assert port == 8080
        self.asked.append((path, key))
        return json.dumps(self.answers[name]).encode()

    def annotate_pod(self, name: str, annotations: Thing) -> None:
        self.notes.append((name, annotations))
        self.answers[name] = {"revision": "2", "access": "abc"}


def in_cluster(cluster: Any, state: str, *, dry: bool = False, **arguments: Any) -> Thing:
    given = {"keys": [], "name": None, "models": ["all"], "admin": False} | dict.fromkeys(access_keys.LIMITS)
    return module.converge(keys_store.Secret(cluster, "ns"), given | {"state": state, **arguments}, dry=dry)


class TestSecret:
    def test_the_life_of_a_key(self) -> None:
        cluster = FakeCluster()
        assert in_cluster(cluster, "merged", dry=True)["changed"] is True
        assert cluster.secret("gateway-keys") is None
        in_cluster(cluster, "merged")
        assert cluster.kept is not None
        assert cluster.kept["data"] == {"keys.yml": base64.b64encode(b"open\n").decode()}
        assert cluster.kept["metadata"]["labels"] == objects.labels(
            "gateway", "gateway", "roundhouse-gateway"
        )
        assert in_cluster(cluster, "merged")["changed"] is False
        made = in_cluster(cluster, "created", name="anna")
        text = base64.b64decode(cluster.kept["data"]["keys.yml"]).decode()
        assert access_keys.digest(made["key"]) in text
        assert made["access"] == access_keys.access(text)
        assert made["key"] not in str(cluster.kept)
        operator = keys_store.operator_of_cluster(cluster)  # type: ignore[arg-type]  # a stand-in
        assert operator is not None
        assert access_keys.digest(operator) in text
        in_cluster(cluster, "opened")
        assert list(cluster.kept["data"]) == ["keys.yml"]

    def test_what_somebody_else_changed_meanwhile_is_not_overwritten(self) -> None:
        cluster = FakeCluster()
        in_cluster(cluster, "merged")
        store = keys_store.Secret(cluster, "ns")  # type: ignore[arg-type]  # a stand-in
        store.load()
        in_cluster(cluster, "created", name="anna")
        with pytest.raises(job.JobError, match="409"):
            store.save(keys_store.Kept("open\n"))

    def test_it_is_somebody_elses(self) -> None:
        theirs = {"metadata": {"labels": {"app": "x"}}, "data": {}}
        with pytest.raises(
            job.JobError, match="Namespace ns has Secret gateway-keys already, and not from us"
        ):
            in_cluster(FakeCluster(theirs), "merged")

    def test_who_may_not_read_secrets_may_still_look(self) -> None:
        class Refusing(FakeCluster):
            def secret(self, name: str) -> Thing | None:
                raise job.JobError("does not let this user read the Secret")

        assert keys_store.operator_of_cluster(Refusing()) is None  # type: ignore[arg-type]  # a stand-in


class Api(BaseHTTPRequestHandler):
    """Of Kubernetes' API the Secrets of namespace ns; of what it forbids and merges as much as we need."""

    kept: ClassVar[dict[str, Thing]] = {}
    forbidden: ClassVar[bool] = False

    def do_GET(self) -> None:
        found = self.kept.get(self.path.rpartition("/")[2])
        self.answer(200 if found else 404, found or {"message": "not found"})

    def do_POST(self) -> None:
        secret = self.body()
        assert self.path == "/api/v1/namespaces/ns/secrets"
        self.kept[secret["metadata"]["name"]] = secret | {
            "metadata": secret["metadata"] | {"resourceVersion": "1"}
        }
        self.answer(201, secret)

    def do_PATCH(self) -> None:
        patch, found = self.body(), self.kept[self.path.rpartition("/")[2]]
        assert self.headers["Content-Type"] in (
            "application/merge-patch+json",
            "application/strategic-merge-patch+json",
        )
        if patch["metadata"]["resourceVersion"] != found["metadata"]["resourceVersion"]:
            self.answer(409, {"message": "the object has been modified"})
            return
        merged = found["data"] | patch["data"]
        found["data"] = {name: value for name, value in merged.items() if value is not None}
        found["metadata"]["resourceVersion"] += "1"
        self.answer(200, found)

    def body(self) -> Thing:
        found: Thing = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        return found

    def answer(self, status: int, body: Thing) -> None:
        if self.forbidden:
            status, body = 403, {"message": "secrets is forbidden"}
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.mark.filterwarnings("ignore:HTTPResponse.getheaders:DeprecationWarning")  # the library's own
class TestRealClient:
    """The module with the real client library, against an API of our own."""

    @pytest.fixture
    def api(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Thing]:
        pytest.importorskip("kubernetes")
        monkeypatch.setattr(Api, "kept", {})
        with ThreadingHTTPServer(("127.0.0.1", 0), Api) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            cluster = {"server": f"http://127.0.0.1:{server.server_port}"}
            config = {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "c", "cluster": cluster}],
                "users": [{"name": "u", "user": {}}],
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            }
            file = tmp_path / "kubeconfig"
            file.write_text(yaml.safe_dump(config))
            yield {"kubeconfig": str(file), "context": "c", "namespace": "ns"}
            server.shutdown()
            thread.join()

    def run(self, api: Thing, capsys: pytest.CaptureFixture[str], state: str, **arguments: Any) -> Thing:
        with patch_module_args({**api, "state": state, **arguments}), pytest.raises(SystemExit):
            module.main()
        found: Thing = json.loads(capsys.readouterr().out)
        return found

    def test_the_life_of_a_key(self, api: Thing, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.run(api, capsys, "listed")["open"] is True
        assert self.run(api, capsys, "merged")["changed"] is True
        assert self.run(api, capsys, "merged")["changed"] is False
        made = self.run(api, capsys, "created", name="anna")
        data = Api.kept["gateway-keys"]["data"]
        assert access_keys.digest(made["key"]) in base64.b64decode(data["keys.yml"]).decode()
        given: Thing = {**api, "key_file": None, "key_secret": "gateway-keys"}
        assert smoke_test.operators_key(given) == base64.b64decode(data["operator.key"]).decode().strip()
        assert [one["name"] for one in self.run(api, capsys, "revoked", name="anna")["keys"]] == ["operator"]
        assert self.run(api, capsys, "opened")["open"] is True
        assert list(Api.kept["gateway-keys"]["data"]) == ["keys.yml"]

    def test_who_may_not(
        self, api: Thing, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Api, "forbidden", True)
        said = self.run(api, capsys, "created", name="anna")["msg"]
        assert "does not let this user read the Secret gateway-keys in namespace ns" in said


class TestPods:
    def wait(self, cluster: Any, **wanted: str) -> Thing:
        return routes_served.wait(cluster, wanted, 5, job.Progress())

    def test_those_that_are_behind_get_a_note(self) -> None:
        cluster = FakeCluster()
        cluster.answers = {"a": {"revision": "2", "access": "abc"}, "b": {"revision": "2", "access": "old"}}
        assert self.wait(cluster, revision="2", access="abc")["pods"] == ["a", "b"]
        assert cluster.notes == [("b", {cluster_programs.REVISION: "2", cluster_programs.ACCESS: "abc"})]
        assert {path for path, _ in cluster.asked} == {"readyz"}

    def test_only_the_keys(self) -> None:
        cluster = FakeCluster()
        cluster.answers = {"a": {"revision": "1", "access": "abc"}}
        self.wait(cluster, access="abc")
        assert cluster.notes == []

    def test_too_late(self) -> None:
        cluster = FakeCluster()
        cluster.answers = {"a": {"revision": "1", "access": "old"}}
        with pytest.raises(job.JobError) as caught:
            routes_served.wait(cluster, {"access": "abc"}, -1, job.Progress())  # type: ignore[arg-type]  # a stand-in
        assert str(caught.value) == (
            "After -1 s not every pod of the gateway serves the keys abc: a serves the keys old. "
            "Its log says why: make logs ONLY=gateway."
        )

    def test_notes_are_those_that_objects_have(self) -> None:
        assert cluster_programs.ACCESS == objects.ACCESS

    def test_the_status_asks_with_our_key(self) -> None:
        cluster = FakeCluster()
        cluster.answers = {"a": {"revision": "7"}}
        gateway = {"serving": ["a"], "labels": {"port": 8080}}
        assert cluster_status.note(cluster, gateway) == "revision 7"  # type: ignore[arg-type]  # a stand-in
        in_cluster(cluster, "created", name="anna")
        cluster_status.note(cluster, gateway)  # type: ignore[arg-type]  # a stand-in
        operator = keys_store.operator_of_cluster(cluster)  # type: ignore[arg-type]  # a stand-in
        assert cluster.asked == [("routes", None), ("routes", operator)]


def test_a_key_goes_to_a_pod_beside_what_is_for_the_api() -> None:
    """Authorization is for the API; what is for the pod is not kept for the next question."""
    kubernetes = pytest.importorskip("kubernetes")
    client = kubernetes.client.ApiClient(kubernetes.client.Configuration(host="http://127.0.0.1:1"))
    cluster = cluster_api.Cluster(cluster_api.Access("/k", "c", "ns"), client)
    sent = []

    def call(**_: Any) -> Any:
        sent.append(client.default_headers.get("x-api-key"))
        return type("Answer", (), {"data": b"{}"})

    cluster._core.connect_get_namespaced_pod_proxy_with_path = call
    cluster.get_from_pod("a", 8080, "routes", "rh-x")
    cluster.get_from_pod("a", 8080, "routes")
    assert sent == ["rh-x", None]
    client.close()


# On a host


class Gateway(BaseHTTPRequestHandler):
    """A gateway that takes one key, and goes by the keys that are in its file."""

    file: ClassVar[Path]
    asked: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        given = self.headers.get("Authorization")
        self.asked.append(given)
        if self.path == "/readyz":
            self.answer(200, {"revision": "7", "access": access_keys.access(self.file.read_text())})
        else:
            operator = self.file.with_name("operator.key").read_text().strip()
            self.answer(200 if given == f"Bearer {operator}" else 401, {"revision": "7"})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def answer(self, status: int, body: Thing) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class TestHost:
    @pytest.fixture
    def home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[supervisor.Home]:
        """An installation whose gateway runs."""
        home = supervisor.Home(tmp_path)
        Gateway.file, Gateway.asked = tmp_path / "etc/keys.yml", []
        server = ThreadingHTTPServer(("127.0.0.1", 0), Gateway)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        labels = {"kind": "gateway", "host": "127.0.0.1", "port": server.server_port}
        program = supervisor.Program("gateway", ["x"], {"ROUNDHOUSE_KEYS": str(Gateway.file)}, labels)
        supervisor.write_program(home, program, "python")
        monkeypatch.setattr(supervisor.Supervisord, "is_running", lambda *_: True)
        yield home
        server.shutdown()
        thread.join()
        server.server_close()

    def test_it_waits_until_the_keys_are_in_force(self, home: supervisor.Home, run: Module) -> None:
        run("merged")
        found = run("created", name="anna")
        assert access_served.wait(home, found["access"], 5, job.Progress()) == {
            "changed": False,
            "running": True,
        }
        with pytest.raises(job.JobError, match=r"after -1 s the gateway does not go by them .*gateway\.log"):
            access_served.wait(home, "other", -1, job.Progress())

    def test_a_gateway_that_does_not_run(
        self, home: supervisor.Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        stopped = {"changed": False, "running": False}
        assert access_served.wait(supervisor.Home(tmp_path / "none"), "x", 5, job.Progress()) == stopped
        monkeypatch.setattr(supervisor.Supervisord, "is_running", lambda *_: False)
        assert access_served.wait(home, "x", 5, job.Progress()) == stopped

    def test_a_gateway_of_an_earlier_release(self, home: supervisor.Home) -> None:
        spec = supervisor.read_specs(home)["gateway"]
        supervisor.write_program(home, supervisor.Program("gateway", ["x"], {}, spec.labels), "python")
        with pytest.raises(job.JobError, match="does not ask for any yet"):
            access_served.wait(home, "x", 5, job.Progress())

    def test_the_status_asks_with_our_key(self, home: supervisor.Home, run: Module) -> None:
        run("created", name="anna")
        spec = supervisor.read_specs(home)["gateway"]
        assert program_status.note(home, spec) == "revision 7"
        run.operator.write_text("rh-other\n")
        with pytest.raises(OSError, match="answers 401"):
            local_http.get_json(f"http://127.0.0.1:{spec.labels['port']}/routes", 5)

    def test_the_smoke_test_asks_with_our_key(self, home: supervisor.Home, run: Module) -> None:
        given: Thing = {"key_file": str(run.operator), "key_secret": ""}
        assert smoke_test.operators_key(given) is None
        run("created", name="anna")
        found = smoke_test.operators_key(given)
        assert found == run.operator.read_text().strip()
        question = {"model": "m", "owned_by": "e", "task": "chat", "backends": ["b"]}
        url = f"http://127.0.0.1:{supervisor.read_specs(home)['gateway'].labels['port']}"
        assert questions.ask(questions.direct(url, 5), question, stream=False, key=found).status == 200
        assert questions.ask(questions.direct(url, 5), question, stream=False).status == 401
        assert Gateway.asked == [f"Bearer {found}", None]


# What is shown


def played(*arguments: str) -> str:
    """All that ansible-playbook prints."""
    command = [str(Path(sys.executable).with_name("ansible-playbook")), *arguments]
    environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_key_is_shown_once_however_verbose(tmp_path: Path) -> None:
    settings = ["-e", f"roundhouse_home={tmp_path}/home", "-e", "roundhouse_platform=local", "-vvv", "--diff"]
    create = ["playbooks/keys.yml", *settings, "-e", "keys_create=anna"]
    # Not the gateway's own environment, which would have to be downloaded: a Python that is here.
    foretold = re.search(r"python: (\S+/gateway-[0-9a-f]{12})/bin/python", played(*create, "--check"))
    assert foretold is not None
    python = Path(foretold[1]) / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o700)
    (python.parents[1] / "roundhouse.json").write_text("{}")

    output = played(*create)
    [shown] = re.findall(r"rh-[A-Za-z0-9_-]{43}", output)
    assert "It is the first one: from now on every request needs a key." in output
    assert "The gateway does not run here" in output
    assert "+anna: models all" in output
    file = tmp_path / "home/etc/keys.yml"
    live = access.load(file.read_bytes()).keys
    assert live is not None
    assert live[0].sha256 == access_keys.digest(shown)
    operator = file.with_name("operator.key").read_text().strip()
    assert operator not in output

    serve = tmp_path / "serve.yml"
    tasks = [{"ansible.builtin.include_role": {"name": "roundhouse.llm.gateway", "tasks_from": "keys"}}]
    facts = {"catalog_resolved": {"platform": "local"}, "gateway_python": str(python)}
    inventory = {"gateway_keys": [entry("ci", models=["x"])]}
    serve.write_text(
        yaml.safe_dump(
            [{"hosts": "localhost", "gather_facts": True, "vars": facts | inventory, "tasks": tasks}]
        )
    )
    output = played(str(serve), *settings)
    assert "+ci: models x" in output
    output += played("playbooks/keys.yml", *settings)
    assert re.search(r"ci +x +- +- +- +- +inventory", output)
    output += played("playbooks/keys.yml", *settings, "-e", "keys_revoke=anna")
    assert "The key of anna is revoked." in output
    for secret in (shown, operator, access_keys.digest("ci"), access_keys.digest(shown)):
        assert secret not in output
