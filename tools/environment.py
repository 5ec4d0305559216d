"""Make the clone's own Python environment, .venv, once per set of pins.

`make` runs it with whatever Python there is, so it must be readable by old ones: it is them that it tells what to do.
"""

import fcntl
import hashlib
import os
import subprocess
import sys

OLDEST = (3, 11)
FOLDER = ".venv"


TOO_OLD = """Roundhouse needs Python 3.11 or newer, and %s is %d.%d.
Install one, or name it: make PYTHON=/path/to/python3.12"""

NO_VENV = """This Python can't make virtual environments: install its venv package
(Debian, Ubuntu: apt install python3-venv), then run the same command again."""

INCOMPLETE = """The environment is not complete. Check the network, or where pip looks (pip config list),
then run the same command again."""


def main(requirements):
    """Install the requirements files into .venv, unless this was done."""
    if sys.version_info < OLDEST:
        sys.exit(TOO_OLD % ((sys.executable,) + sys.version_info[:2]))
    digest = hashlib.sha256(("%s %s" % (sys.base_prefix, sys.version)).encode())
    for name in requirements:
        with open(name, "rb") as file:
            digest.update(file.read())
    mark = os.path.join(FOLDER, "made-of-" + "-".join(name.replace("/", "-") for name in requirements))
    python = os.path.join(FOLDER, "bin", "python")
    with open(FOLDER + ".lock", "w") as lock:
        # Two makes at once: the second waits, then finds the work done.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.path.exists(python) and os.path.exists(mark):
            with open(mark) as file:
                if file.read() == digest.hexdigest():
                    return
        print("Setting up %s from %s (a minute or two, once)" % (FOLDER, ", ".join(requirements)), flush=True)
        run([sys.executable, "-m", "venv", FOLDER], NO_VENV)
        command = [python, "-m", "pip", "--disable-pip-version-check", "--quiet", "--retries", "2", "install"]
        for name in requirements:
            command += ["--requirement", name]
        run(command, INCOMPLETE)
        with open(mark, "w") as file:
            file.write(digest.hexdigest())


def run(command, remedy):
    """Run a command; end with the remedy if it fails."""
    if subprocess.call(command, stdin=subprocess.DEVNULL):
        sys.exit(remedy)


if __name__ == "__main__":
    main(sys.argv[1:])
