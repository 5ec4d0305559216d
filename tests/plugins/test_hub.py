"""The hub's real client against a small hub of our own."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from ansible_collections.roundhouse.llm.plugins.module_utils import hub, job

from .fake_hub import FILES, TOKEN, Hub

CLIENT = Path(sys.executable).with_name("hf")


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
    repository: str,
    target: Path,
    *,
    file: str | None = None,
    revision: str = "main",
    token: str = "",
    only_ask: bool = False,
) -> None:
    hub.fetch(CLIENT, repository, revision, file, target, token, job.Progress(), only_ask=only_ask)


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


@pytest.mark.parametrize("only_ask", [False, True])
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
    repository: str,
    file: str | None,
    revision: str,
    token: str,
    sentence: str,
    tmp_path: Path,
    *,
    only_ask: bool,
) -> None:
    with pytest.raises(job.JobError) as caught:
        fetch(repository, tmp_path, file=file, revision=revision, token=token, only_ask=only_ask)
    assert str(caught.value).startswith(sentence)


def test_to_ask_downloads_nothing(tmp_path: Path) -> None:
    fetch("org/open", tmp_path, only_ask=True)
    fetch("org/gated", tmp_path, token=TOKEN, only_ask=True)
    assert contents(tmp_path) == {}


def test_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(job.JobError, match="The hub can't be reached"):
        fetch("org/open", tmp_path)
