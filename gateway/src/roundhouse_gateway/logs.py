"""What the gateway logs of itself: one line for each event, as text or as JSON. Never a prompt, never a key."""

import json
import logging
import sys
import time
from typing import Any, Literal


def fields(**values: object) -> dict[str, Any]:
    """Return the `extra` of a log call that adds `values` to the line."""
    return {"fields": values}


class _TextFormatter(logging.Formatter):
    """TIME LEVEL EVENT key=value ..."""

    def format(self, record: logging.LogRecord) -> str:
        values = getattr(record, "fields", {})
        pairs = "".join(f" {key}={quoted(value)}" for key, value in values.items())
        line = f"{_when(record)} {record.levelname} {record.getMessage()}{pairs}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class _JsonFormatter(logging.Formatter):
    """One object with time, level, event and the values."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": _when(record),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure(kind: Literal["text", "json"]) -> None:
    """Let everything that is logged in this process go to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if kind == "json" else _TextFormatter())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("roundhouse_gateway").setLevel(logging.INFO)
    # Sanic warns a person at a terminal that it is not in debug mode, which is none of the user's business.
    logging.getLogger("sanic").setLevel(logging.ERROR)


def _when(record: logging.LogRecord) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"


def quoted(value: object) -> str:
    """Return a value as it stands in a line: in quotes if it would not be one word otherwise."""
    text = str(value)
    return text if text and text.isprintable() and not set(text) & set(' "=') else json.dumps(text)
