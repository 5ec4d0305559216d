"""Say which molecule scenarios this machine can run, as arguments; the others are named, with what they need."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request

_DOCKER = "a Docker engine, and none answers here (docker version)"
_TORCH = "torch==2.13.0+cpu"
_TOOLKIT = (
    os.environ.get("ROUNDHOUSE_TEST_TOOLKIT_REPOSITORY") or "https://nvidia.github.io/libnvidia-container"
)


def answers(*command: str) -> bool:
    """Whether a command is there and ends well."""
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def reached(url: str) -> bool:
    """Whether there is something at an address."""
    try:
        with urllib.request.urlopen(url, timeout=10):  # noqa: S310 - the repository's, by http where a mirror is
            return True
    except OSError:
        return False


def main() -> None:
    """Look, print."""
    torch = answers(
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--dry-run",
        "--no-deps",
        "--ignore-installed",
        _TORCH,
    )
    docker = answers("docker", "version")
    lacks: dict[str, list[str]] = {
        "catalog": [],
        "default": [],
        "multi_engines": [] if torch else [f"{_TORCH}, which pip does not find here"],
        "k3d": [] if docker else [_DOCKER],
        "container_toolkit": [
            *([] if docker else [_DOCKER]),
            *([] if reached(f"{_TOOLKIT}/gpgkey") else [f"NVIDIA's packages, and {_TOOLKIT} is not reached"]),
        ],
        "gpu": [
            *([] if docker else [_DOCKER]),
            *(
                []
                if answers("nvidia-smi", "-L")
                else ["an NVIDIA driver, and none answers here (nvidia-smi -L)"]
            ),
            *([] if os.environ.get("HF_TOKEN") else ["a token for Llama's gated repository in HF_TOKEN"]),
        ],
    }
    for scenario, needs in lacks.items():
        if needs:
            print(f"SKIPPED: molecule scenario {scenario}. It needs {'; '.join(needs)}.", file=sys.stderr)
    print(*(f"-s {scenario}" for scenario, needs in lacks.items() if not needs))


if __name__ == "__main__":
    main()
