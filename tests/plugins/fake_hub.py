"""A small hub, as the hub's real client wants it. `python fake_hub.py PORT` serves it on 127.0.0.1."""

from __future__ import annotations

import hashlib
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "c" * 40
FILES = {
    "config.json": b'{"max_position_embeddings": 131072}',
    "model.safetensors": b"weights",
    "original/consolidated.pth": b"the same again",
    "model-Q8_0.gguf": b"GGUF",
}
TOKEN = "hf_of_a_user_with_access"


# Whose repositories there are; those of the second kind want TOKEN.
OPEN, GATED = ("org/open", "microsoft/"), ("org/gated", "meta-llama/")


class Hub(BaseHTTPRequestHandler):
    """Any repository of these has the same files."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        repository = path.removeprefix("/api/models").removeprefix("/")
        if repository.startswith(GATED) and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer(401, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."})
        elif not repository.startswith(OPEN + GATED):
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


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Hub).serve_forever()
