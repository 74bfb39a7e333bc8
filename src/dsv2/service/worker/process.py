"""What the supervisor and the engine process say to each other about the process itself.

Options go to the process as one line of JSON, and its reports come back on its standard output, a
line each. Its standard input stays open for as long as the supervisor lives: a line there asks it
to drain, and the end of it means that nobody is left to serve.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Literal

import msgspec

BEAT_SECONDS = 0.2
"""Between two heartbeats of an engine process."""
MAX_TO_ENGINE = 8 * 2**20
"""Bytes of a message to the engine: a prompt of a million tokens is a part of it."""
MAX_FROM_ENGINE = 256 * 2**20
"""Bytes of a message of the engine: 20 logprobs for each of 128k tokens of a prompt are 50 MB."""
_MAX_SOCKET_PATH = 100
"""Characters that a path to a Unix socket may have, with some to spare."""

EXIT_CLEAN = 0
"""Asked to stop, and every request had its end."""
EXIT_BROKEN = 1
"""The engine cannot go on, or the parent is gone."""
EXIT_REFUSED = 2
"""The model or the options are at fault: starting once more would not help."""
EXIT_UNFINISHED = 3
"""Asked to stop, and requests were cut off when the time to drain was over."""


class WorkerOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an engine process is to run.

    Attributes:
        folder: of its sockets; nobody but its owner may look into it.
        name: of its sockets in it.
        drain_seconds: how long requests may go on after SIGTERM.
        max_waiting: most requests in line.
        log_level: lowest that is written to standard error.
        log_format: of it: like the parent's, which knows whether a terminal is there.
        memory: most bytes of the machine's memory to plan with on a CPU; None for all that is free.
        model: a folder, ``pocket``, a release or ``owner/model``, as for
            :func:`dsv2.engine.loading.prepare`; the others are as there and as for
            :class:`dsv2.engine.llm.LLM`.
    """

    model: str
    folder: str
    name: str = "engine"
    drain_seconds: float = 30.0
    max_waiting: int = 1024
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "text"] = "text"
    device: str = "auto"
    dtype: str = "auto"
    cache_dtype: str = "auto"
    cache_tokens: int | None = None
    memory: int | None = None
    max_sequences: int = 16
    max_step_tokens: int = 2048
    threads: int | None = None
    prefix_cache: bool = True
    deterministic: bool | None = None
    speculate: int = 0
    draft_model: str | None = None
    pull: bool = True
    hub: str = "huggingface"


class Report(msgspec.Struct, frozen=True, omit_defaults=True):
    """How far an engine process has come.

    Attributes:
        phase: ``converting`` comes with what is ``done`` of the ``total`` of files; ``failed`` is
            the last report of a process that cannot start, with the reason.
        seconds: since the process began.
        text: for people.
    """

    phase: Literal["importing", "preparing", "converting", "loading", "ready", "failed"]
    seconds: float
    text: str = ""
    done: int = 0
    total: int = 0


class Drain(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Take no more requests, and exit when those under way are done, or after ``drain`` seconds."""

    drain: float


class Addresses(msgspec.Struct, frozen=True):
    """Where an engine process is reached: requests and answers, and its heartbeat."""

    requests: str
    heartbeat: str


def addresses(folder: str | Path, name: str) -> Addresses:
    """The addresses of the engine ``name`` whose sockets lie in ``folder``.

    Raises:
        ValueError: the name is no plain one, or the path is too long for a Unix socket.
    """
    if not name or not all(one.isalnum() or one in "-_." for one in name) or name[0] == ".":
        raise ValueError(f"name is {name!r:.80}, allowed are letters, digits, - and _ and .")
    base = Path(folder).absolute() / name
    if len(os.fsencode(base)) > _MAX_SOCKET_PATH:
        raise ValueError(
            f"folder and name are {len(os.fsencode(base))} bytes long, a Unix socket allows "
            f"{_MAX_SOCKET_PATH}: {base}"
        )
    return Addresses(f"ipc://{base}.sock", f"ipc://{base}.beat")


def check_private(folder: str | Path) -> None:
    """Make sure that a folder for sockets is ours alone.

    Raises:
        ValueError: it is no folder, belongs to somebody else, or others may look into it.
    """
    try:
        found = os.lstat(folder)
    except OSError as error:
        raise ValueError(f"folder {folder} of the sockets: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode):
        raise ValueError(f"folder {folder} of the sockets is not a folder")
    if found.st_uid != os.geteuid() or found.st_mode & 0o077:
        mode = stat.S_IMODE(found.st_mode)
        raise ValueError(
            f"folder {folder} of the sockets has mode {mode:o} and owner {found.st_uid}, "
            f"allowed are 700 and {os.geteuid()}"
        )
