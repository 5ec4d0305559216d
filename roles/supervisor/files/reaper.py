"""Kill what a dead program leaves behind.

A supervisord event listener (protocol: https://supervisord.org/events.html). Engines of several processes
(vLLM: API server, EngineCore, Worker) orphan the others when the first is killed; they would keep their memory
and a core each. Whenever a program ends, processes of ours whose group has lost its leader are killed.
"""

import os
import sys

from processes import kill_leaderless


def main(home: str) -> None:
    """Answer supervisord's events until it goes."""
    while True:
        sys.stdout.write("READY\n")
        sys.stdout.flush()
        header = sys.stdin.readline()
        if not header:
            return
        fields = dict(field.split(":", 1) for field in header.split())
        sys.stdin.read(int(fields["len"]))
        # supervisord and all that it starts are one session.
        for process in kill_leaderless(home, os.getsid(0)):
            sys.stderr.write(f"killed {process.pid}, left behind by {process.program}\n")
            sys.stderr.flush()
        sys.stdout.write("RESULT 2\nOK")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
