"""A process that has imported everything once, and forks a life whenever it is told to.

    python -m benchmarks.soak.nursery < orders > answers

A process started afresh would import for seconds; a fork is there at once. Each line is an order in
JSON and gets a line back: ``{"kind": ..., "life": ...}`` begins a life and gets its ``pid``,
``{"kill": pid}`` ends one by SIGKILL and gets the ``status`` with which it ended. At the end of the
orders everything is killed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).parents[2]


def main() -> None:
    """Follow orders to their end."""
    # Imported here and not in every life: the engine and what its model needs, and the driver of
    # PostgreSQL, which took longer than all else that a life begins with.
    import psycopg  # noqa: F401
    import sqlalchemy.dialects.postgresql.psycopg  # noqa: F401

    import dsv2.engine.llm
    import dsv2.service.worker.step_loop  # noqa: F401
    from benchmarks.soak.life import begin

    held: dict[int, int] = {}
    try:
        for line in sys.stdin:
            order = json.loads(line)
            if (pid := order.get("kill")) is None:
                pid, held[pid] = begin(order)
                answer = {"pid": pid}
            else:
                answer = {"status": _end(pid)}
                os.close(held.pop(pid))
            print(json.dumps(answer), flush=True)
    finally:
        for pid in held:
            _end(pid)


def _end(pid: int) -> int:
    """Kill a child that is there still, and say how it ended."""
    os.kill(pid, signal.SIGKILL)  # no harm to one that has ended: it was not waited for yet
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class Nursery:
    """The other side of it, in ``with``.

    Args:
        log: file that everything is written to which the processes say.
    """

    def __init__(self, log: Path) -> None:
        self._log = log

    def __enter__(self) -> Nursery:
        with self._log.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.soak.nursery"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT,
                env=os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
            )  # fmt: skip
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def begin(self, order: dict[str, Any]) -> int:
        """Begin a life; the process's id."""
        return int(self._ask(order)["pid"])

    def kill(self, pid: int) -> int:
        """End a process by SIGKILL; how it ended, which is -9 unless it had ended before."""
        return int(self._ask({"kill": pid})["status"])

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the nursery has ended; see {self._log}")
        answer: dict[str, Any] = json.loads(line)
        return answer


if __name__ == "__main__":
    main()
