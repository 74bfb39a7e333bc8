"""Logs as lines of JSON, or as text for people; never prompts, answers or secrets."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

_MAX_CHARS = 8192
"""Longest message or trace that is written; what a caller sent may be in it."""


class JsonFormatter(logging.Formatter):
    """One object per line: time, level, logger, message, and the record's ``fields``."""

    def format(self, record: logging.LogRecord) -> str:
        """The line. Line breaks in what a caller sent are escaped, so it stays one."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage()[:_MAX_CHARS],
        }
        entry |= getattr(record, "fields", {})
        if record.exc_info:
            entry["trace"] = self.formatException(record.exc_info)[-_MAX_CHARS:]
        return json.dumps(entry, ensure_ascii=True, default=str)


class TextFormatter(logging.Formatter):
    """Time, level, message and fields on one line; a trace below it."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The line without a trace."""
        record.message = record.message.replace("\n", "\\n").replace("\r", "\\r")[:_MAX_CHARS]
        fields = getattr(record, "fields", {})
        return " ".join(
            [super().formatMessage(record), *(f"{name}={value}" for name, value in fields.items())]
        )


def resolve_format(form: str, stream: TextIO | None = None) -> Literal["json", "text"]:
    """``json`` or ``text`` for a format that may be ``auto``; see :func:`set_up`."""
    if form == "auto":
        return "text" if (stream or sys.stderr).isatty() else "json"
    return "text" if form == "text" else "json"


def set_up(level: str, form: str, stream: TextIO | None = None) -> None:
    """Send all logs of the process to ``stream``, by default standard error.

    Args:
        level: lowest that is written.
        form: ``json``, ``text``, or ``auto`` for text on a terminal and JSON elsewhere.
        stream: where to.
    """
    stream = stream or sys.stderr
    handler = logging.StreamHandler(stream)
    is_text = resolve_format(form, stream) == "text"
    handler.setFormatter(TextFormatter() if is_text else JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # These repeat what the access log says, or say what nobody asked for.
    for name in ("uvicorn.access", "uvicorn.error", "httpx", "asyncio", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
