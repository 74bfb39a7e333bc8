"""Parts of a benchmark in processes of their own, which say each result as soon as they have it.

A part that crashes, hangs or runs out of memory takes nothing with it but what it had not said.
A child writes results with :func:`say`; what libraries print beside them is passed over.
"""

from __future__ import annotations

import gc
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[2]
MARK = "@result "
NO_TIME = "unmeasured: no time"


def say(**fields: Any) -> None:
    """In a child: give one result to the parent."""
    print(MARK + json.dumps(fields), flush=True)


def attempt(key: str, compute: Callable[[], Mapping[str, Any]]) -> None:
    """In a child: say what ``compute`` gives for a row, or why it gave nothing."""
    import torch

    try:
        say(row=key, **compute())
    except torch.OutOfMemoryError:
        say(row=key, failure="out of memory")
    except Exception as error:
        said = (str(error).strip().splitlines() or [""])[0]
        say(row=key, failure=f"{type(error).__name__}: {said}"[:200])
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def serve(parts: Mapping[str, Callable[[Mapping[str, Any]], None]]) -> None:
    """In a child: run the part that the request on standard input names."""
    request = json.load(sys.stdin)
    parts[request["part"]](request)


@dataclass(frozen=True)
class Section:
    """A part.

    Attributes:
        name: for people.
        module: run as a program, with the request on its standard input.
        request: plain data.
        keys: of the rows that it is to give, in its order.
        seconds: it may take.
    """

    name: str
    module: str
    request: Mapping[str, Any]
    keys: tuple[str, ...]
    seconds: float


def run_section(
    section: Section, deadline: float, on_result: Callable[[dict[str, Any]], None]
) -> str:
    """Run a part until it ends, its own time is up or the deadline of all has come.

    Args:
        section: to run.
        deadline: a value of ``time.monotonic()``.
        on_result: called with every result when it comes, and for each row that none came of with
            one that says why.

    Returns:
        How it ended, for people.
    """
    start = time.monotonic()
    missing = list(section.keys)
    if deadline <= start:
        reason = NO_TIME
    else:
        end = min(deadline, start + section.seconds)
        reason = _watch(section, end, missing, on_result)
        if reason.startswith("timeout"):
            own = end < deadline
            reason = f"stopped after its {section.seconds:.0f} s" if own else NO_TIME
    for key in missing:
        on_result({"row": key, "failure": reason or "ended without a word about it"})
    return reason or "done"


def _watch(
    section: Section, end: float, missing: list[str], on_result: Callable[[dict[str, Any]], None]
) -> str:
    """Why the child did not end well; empty where it did."""
    paths = [os.path.abspath(path) for path in sys.path if path]
    environment = {
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",  # rows of many sizes, one after another
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "HF_HUB_OFFLINE": "1",
    }
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(
            [sys.executable, "-m", section.module], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=log, text=True, cwd=ROOT, env=environment, start_new_session=True,
        )  # fmt: skip
        assert child.stdin is not None and child.stdout is not None
        lines: queue.Queue[str | None] = queue.Queue()
        reader = threading.Thread(target=_read, args=(child.stdout, lines), daemon=True)
        reader.start()
        timed_out = False
        try:
            with child.stdin as stream:
                stream.write(json.dumps(section.request))
        except BrokenPipeError:
            pass  # It has ended; its exit code and last words tell why.
        try:
            while (line := lines.get(timeout=max(0.0, end - time.monotonic()))) is not None:
                if line.startswith(MARK):
                    result = json.loads(line[len(MARK) :])
                    if result["row"] in missing:
                        missing.remove(result["row"])
                    on_result(result)
        except queue.Empty:
            timed_out = True
        finally:
            if timed_out or child.poll() is None:
                _end(child, grace=0.0 if timed_out else 10.0)
            reader.join()
            child.stdout.close()
        if timed_out:
            return "timeout"
        code = child.returncode
        log.seek(0)
        words = log.read().decode(errors="replace").strip().splitlines() or ["no message"]
        return f"ended with {code}: {words[-1][:160]}" if code else ""


def _read(stream: IO[str], lines: queue.Queue[str | None]) -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def _end(child: subprocess.Popen[str], grace: float) -> None:
    """Let the child end by itself, then end it and all that it has started."""
    try:
        child.wait(grace)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
