"""The hub's real client against a small hub of our own."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from ansible_collections.roundhouse.llm.plugins.module_utils import hub, job

CLIENT = Path(sys.executable).with_name("hf")
COMMIT = "c" * 40
FILES = {
    "config.json": b"{}",
    "model.safetensors": b"weights",
    "original/consolidated.pth": b"the same again",
    "model-Q8_0.gguf": b"GGUF",
}
TOKEN = "hf_of_a_user_with_access"


class Hub(BaseHTTPRequestHandler):
    """org/open is everybody's, org/gated wants TOKEN."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if "org/gated" in path and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer(401, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."})
        elif not path.removeprefix("/api/models").startswith(("/org/open", "/org/gated")):
            self.answer(
                404, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
            )
        elif "/revision/nope" in path or "/resolve/nope" in path:
            self.answer(
                404, b"{}", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Revision not found"}
            )
        elif "/tree/" in path:
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": "0"} for name, data in FILES.items()
            ]
            self.answer(200, json.dumps(tree).encode(), {})
        elif path.startswith("/api/models/"):
            siblings = [{"rfilename": name} for name in FILES]
            info = {"id": "org/open", "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}
            self.answer(200, json.dumps(info).encode(), {})
        else:
            data = FILES.get(path.split("/", 5)[5])
            headers = {"X-Repo-Commit": COMMIT}
            if data is None:
                self.answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"})
            else:
                self.answer(200, data, {**headers, "ETag": f'"{hashlib.sha256(data).hexdigest()}"'})

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(autouse=True)
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield
    server.shutdown()
    thread.join()
    server.server_close()


def fetch(
    repository: str, target: Path, *, file: str | None = None, revision: str = "main", token: str = ""
) -> None:
    hub.fetch(CLIENT, repository, revision, file, target, token, job.Progress())


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".cache" not in path.parts
    }


def test_a_repository_without_its_duplicates(tmp_path: Path) -> None:
    fetch("org/open", tmp_path)
    assert contents(tmp_path) == {name: FILES[name] for name in ("config.json", "model.safetensors")}


def test_one_file(tmp_path: Path) -> None:
    fetch("org/open", tmp_path, file="model-Q8_0.gguf")
    assert contents(tmp_path) == {"model-Q8_0.gguf": b"GGUF"}


def test_a_token_opens_a_gated_repository_and_is_left_nowhere(tmp_path: Path) -> None:
    fetch("org/gated", tmp_path, token=TOKEN)
    assert contents(tmp_path)["model.safetensors"] == b"weights"
    assert not any(TOKEN.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("repository", "file", "revision", "token", "sentence"),
    [
        ("org/gated", None, "main", "", "org/gated is gated, and HF_TOKEN is not set: accept its terms at"),
        ("org/gated", None, "main", "wrong", "org/gated is gated, and this HF_TOKEN has no access to it"),
        ("org/none", None, "main", "", "There is no repository org/none at the hub, or it is private"),
        ("org/open", None, "nope", "", "org/open has no revision 'nope'"),
        ("org/open", "none.gguf", "main", "", "org/open has no file 'none.gguf'"),
    ],
)
def test_refusals_are_sentences(
    repository: str, file: str | None, revision: str, token: str, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(job.JobError) as caught:
        fetch(repository, tmp_path, file=file, revision=revision, token=token)
    assert str(caught.value).startswith(sentence)


def test_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(job.JobError, match="The hub can't be reached"):
        fetch("org/open", tmp_path)
