"""The port that a program listens on, and who else may hold it."""

from __future__ import annotations

from ansible_collections.roundhouse.llm.plugins.module_utils import processes
from ansible_collections.roundhouse.llm.plugins.module_utils.job import JobError
from ansible_collections.roundhouse.llm.plugins.module_utils.supervisor import Program


def address(program: Program | None) -> tuple[str, int] | None:
    """Host and port out of a program's labels; None if it has no port."""
    if program is None or not program.labels.get("port"):
        return None
    return str(program.labels.get("host", "127.0.0.1")), int(program.labels["port"])


def refuse_taken(program: Program) -> None:
    """Raises JobError if the program's port can't be had, naming the process that holds it."""
    wanted = address(program)
    if wanted is None:
        return
    host, port = wanted
    try:
        free = processes.is_free(host, port)
    except OSError as error:
        raise JobError(
            f"{program.name} can't listen on {host}:{port}: {error.strerror or error}. "
            "Choose an address of this machine."
        ) from error
    if not free:
        setting = program.labels.get("port_setting")
        raise JobError(
            f"{program.name} needs port {port} on {host}, and {processes.port_holder(port)} holds it: "
            "stop that process" + (f", or choose another port ({setting})." if setting else ".")
        )
