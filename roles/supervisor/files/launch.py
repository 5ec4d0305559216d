"""Become the program that a .json describes: its environment, then its command line.

supervisord starts `python launch.py PROGRAM.json`. The process id stays the same, so supervisord supervises the
program itself, and its process group is the program's.
"""

import json
import os
import sys
from pathlib import Path

#: Inherited from the machine. All else comes from the .json: the same program on every run.
KEPT = ("HOME", "USER", "LOGNAME", "PATH", "LANG", "TZ", "TMPDIR", "OPENBLAS_CORETYPE")


def main(file: str) -> None:
    """Replace this process by the program."""
    path = Path(file)
    program = json.loads(path.read_text(encoding="utf-8"))
    environment = {key: os.environ[key] for key in KEPT if key in os.environ}
    environment |= program["environment"]
    environment |= {"ROUNDHOUSE_HOME": str(path.parents[2]), "ROUNDHOUSE_PROGRAM": program["name"]}
    command = program["command"]
    try:
        os.execvpe(command[0], command, environment)  # noqa: S606 - no shell is the point
    except OSError as error:
        sys.exit(f"{program['name']} can't be started: {command[0]}: {error.strerror}")


if __name__ == "__main__":
    main(sys.argv[1])
