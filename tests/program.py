"""The program ``dsv2`` as a process of its own, without the two seconds that torch's import takes.

It is forked from one that has imported torch (:mod:`tests.forking`); the package itself and
huggingface_hub are imported in the child, after its environment is set, as in a shell.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.forking import PROCESSES

STREAMS = ("stdin", "stdout", "stderr")


class Program:
    """A call under way, with the parts of :class:`subprocess.Popen` that tests use."""

    def __init__(
        self, *arguments: str, stdin: str = "", environment: Mapping[str, str] | None = None
    ) -> None:
        self.arguments = arguments
        self._folder = tempfile.TemporaryDirectory(prefix="dsv2-program-")
        files = [str(Path(self._folder.name, name)) for name in STREAMS]
        Path(files[0]).write_text(stdin, encoding="utf-8")
        variables = dict(os.environ if environment is None else environment)
        self._process = PROCESSES.Process(
            target=_main, args=(arguments, files, variables, os.getcwd()), daemon=True
        )
        self._process.start()

    @property
    def returncode(self) -> int | None:
        """As :class:`subprocess.Popen` has it: a signal's number is negative."""
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def communicate(self, timeout: float) -> tuple[str, str]:
        self._process.join(timeout)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
            raise subprocess.TimeoutExpired(["dsv2", *self.arguments], timeout)
        out, err = (
            Path(self._folder.name, name).read_text(encoding="utf-8") for name in STREAMS[1:]
        )
        self._folder.cleanup()
        return out, err


def dsv2(
    *arguments: str, stdin: str = "", environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    program = Program(*arguments, stdin=stdin, environment=environment)
    out, err = program.communicate(timeout=100)
    assert program.returncode is not None
    return subprocess.CompletedProcess(["dsv2", *arguments], program.returncode, out, err)


def _main(
    arguments: tuple[str, ...], files: list[str], environment: dict[str, str], folder: str
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, name in enumerate(files):
        flags = os.O_WRONLY | os.O_CREAT if number else os.O_RDONLY
        os.dup2(os.open(name, flags, 0o600), number)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False, buffering=1)
    sys.argv = ["dsv2", *arguments]
    from dsv2.cli.main import main

    main()  # SystemExit becomes the process's exit code
