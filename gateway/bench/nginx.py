"""nginx in its two parts: as the fixed upstream, and as a proxy to compare with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from bench.processes import BenchError, Running

# 330 bytes, the size of a short chat completion.
_COMPLETION = {
    "id": "chatcmpl-7b1c5c0f4e1d4c4fa2b0c7f2a9e3d111",
    "object": "chat.completion",
    "created": 1,
    "model": "tiny",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": ""}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 21, "completion_tokens": 12, "total_tokens": 33},
}
COMPLETION_SIZE = 330

# One worker each, as one gateway is one process. Connections are kept on both sides; nothing is logged.
_MAIN = """
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 8192; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 300s; client_max_body_size 64m;
  client_body_buffer_size 32m; default_type application/json; client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u;
  scgi_temp_path {folder}/s;
  {http}
}}
"""
_UPSTREAM = """
  server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ return 200 '{body}'; }} }}
"""
_PROXY = """
  upstream engine {{ server 127.0.0.1:{to}; keepalive 2048; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering {buffering};
    }}
  }}
"""


def upstream(folder: Path, port: int) -> Running:
    """Start the upstream, which answers every request with the same completion."""
    body = json.dumps(_COMPLETION, separators=(",", ":"))
    filler = "x" * (COMPLETION_SIZE - len(body))
    return _start(folder, _UPSTREAM.format(port=port, body=body.replace('t":""', f't":"{filler}"')))


def proxy(folder: Path, port: int, to: int, *, streams: bool) -> Running:
    """Start a proxy from `port` to `to`. It has to be told not to hold streams back."""
    return _start(folder, _PROXY.format(port=port, to=to, buffering="off" if streams else "on"))


def _start(folder: Path, http: str) -> Running:
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        raise BenchError("nginx is not installed (Debian: apt-get install nginx-light)")
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "nginx.conf"
    config.write_text(_MAIN.format(folder=folder, http=http))
    return Running([program, "-p", folder, "-e", folder / "error.log", "-c", config], folder / "log")
