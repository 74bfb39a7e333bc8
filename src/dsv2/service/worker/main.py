"""The engine process: ``python -m dsv2.service.worker``, started by the supervisor alone.

It takes its options (:class:`dsv2.service.worker.process.WorkerOptions`) as JSON, as its one
argument or as the first line of its standard input, loads the model, and serves it on Unix sockets
in a folder that nobody else may look into.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NoReturn

import msgspec
import zmq

from dsv2.service.web.logs import set_up
from dsv2.service.worker.heartbeat import Beats
from dsv2.service.worker.process import (
    EXIT_BROKEN,
    EXIT_CLEAN,
    EXIT_REFUSED,
    MAX_TO_ENGINE,
    Addresses,
    Drain,
    Report,
    WorkerOptions,
    addresses,
    check_private,
)
from dsv2.service.worker.wire import Welcome

if TYPE_CHECKING:
    from dsv2.engine.llm import LLM

log = logging.getLogger("dsv2.service.worker")

_PR_SET_PDEATHSIG = 1
_MAX_LINE = 1 << 20
"""Bytes of a line of the standard input."""
_LINGER = 2000
"""Milliseconds for the last answers to leave."""


class Reports:
    """Tells the supervisor how far this process has come.

    Args:
        out: file descriptor that the lines go to.
    """

    def __init__(self, out: int) -> None:
        self._out, self._start = out, time.monotonic()

    def __call__(
        self,
        phase: Literal["importing", "preparing", "converting", "loading", "ready", "failed"],
        text: str = "",
        done: int = 0,
        total: int = 0,
    ) -> None:
        """Write one report; nobody there to read it is no error."""
        seconds = round(time.monotonic() - self._start, 3)
        line = msgspec.json.encode(Report(phase, seconds, text, done, total)) + b"\n"
        try:
            os.write(self._out, line)
        except OSError:
            log.warning("nobody reads the reports")


class Lifeline:
    """The standard input: options, orders, and at its end the news that the parent is gone.

    Args:
        source: file descriptor of the pipe.
    """

    def __init__(self, source: int) -> None:
        self._source, self._rest = source, b""

    def line(self) -> bytes | None:
        """The next line, or None at the end or when it is too long."""
        while b"\n" not in self._rest:
            more = os.read(self._source, 65536)
            if not more or len(self._rest) > _MAX_LINE:
                return None
            self._rest += more
        line, self._rest = self._rest.split(b"\n", 1)
        return line

    def watch(self, stop: Callable[[float], None]) -> None:
        """Follow it in a thread: pass on what is asked, and end the process with the parent."""
        threading.Thread(
            target=self._follow, args=(stop,), name="dsv2-lifeline", daemon=True
        ).start()

    def _follow(self, stop: Callable[[float], None]) -> None:
        while (line := self.line()) is not None:
            try:
                stop(msgspec.json.decode(line, type=Drain).drain)
            except msgspec.MsgspecError as error:
                log.warning("an order cannot be read: %s", error)
        os._exit(EXIT_BROKEN)  # whatever the other threads are in: nobody is left to serve


class _Stop:
    """What SIGTERM and the lifeline ask for, before and after there is a loop to be stopped."""

    def __init__(self) -> None:
        self.act: Callable[[float], None] | None = None

    def __call__(self, drain_seconds: float) -> None:
        if self.act is None:
            os._exit(EXIT_CLEAN)  # nothing has been taken in
        self.act(drain_seconds)


def load(options: WorkerOptions, report: Reports) -> LLM:
    """The model, pulled and converted where that is needed."""
    report("importing")
    from dsv2.engine.llm import LLM
    from dsv2.engine.loading import prepare
    from dsv2.engine.plan import size_text

    report("preparing", options.model)
    prepared = prepare(
        options.model, device=options.device, dtype=options.dtype,
        cache_dtype=options.cache_dtype, cache_tokens=options.cache_tokens, memory=options.memory,
        max_sequences=options.max_sequences, max_step_tokens=options.max_step_tokens,
        threads=options.threads, pull=options.pull, hub=options.hub,
        say=lambda line: report("preparing", line),
        progress=lambda done, total: report("converting", "", done, total),
    )  # fmt: skip
    plan = prepared.plan
    report(
        "loading",
        f"{prepared.folder}: weights in {plan.weights}, {plan.cache_tokens:,} tokens of cache, "
        f"{size_text(plan.total_bytes)} of the {size_text(plan.free_bytes)} planned with",
    )
    return LLM(
        prepared.folder, device=options.device, threads=options.threads,
        max_sequences=options.max_sequences, max_step_tokens=options.max_step_tokens,
        max_waiting=options.max_waiting, prefix_cache=options.prefix_cache,
        deterministic=options.deterministic, speculate=options.speculate,
        draft_model=options.draft_model, plan=plan,
    )  # fmt: skip


def serve(options: WorkerOptions, where: Addresses, report: Reports, stop: _Stop) -> int:
    """Load the model and serve it until stopped; the exit status."""
    llm = load(options, report)
    import torch

    from dsv2.service.worker.step_loop import StepLoop

    welcome = Welcome(
        llm.description,
        llm.limits.vocab_size,
        llm.limits.max_context,
        llm.limits.max_logprobs,
        os.getpid(),
    )
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    try:
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_TO_ENGINE)
        socket.setsockopt(zmq.LINGER, _LINGER)
        socket.bind(where.requests)
        loop = StepLoop(llm.engine, socket, welcome, fatal=(torch.AcceleratorError,))
        stop.act = loop.stop
        with Beats(context, where.heartbeat, loop):
            report("ready", llm.description)
            return loop.run()
    finally:
        socket.close()
        context.term()


def main(arguments: list[str] | None = None) -> int:
    """Run the process; the exit status."""
    given = sys.argv[1:] if arguments is None else arguments
    # What libraries print must not come between the reports.
    report = Reports(os.dup(1))
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the supervisor's to handle
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    lifeline, stop = Lifeline(0), _Stop()
    try:
        line = given[0].encode() if given else lifeline.line()
        if line is None:
            raise ValueError("there are no options")
        options = msgspec.json.decode(line, type=WorkerOptions)
        where = addresses(options.folder, options.name)
        set_up(options.log_level, options.log_format)
        check_private(options.folder)
    except (msgspec.MsgspecError, ValueError) as error:
        report("failed", str(error))
        return EXIT_REFUSED
    signal.signal(signal.SIGTERM, lambda number, frame: stop(options.drain_seconds))
    lifeline.watch(stop)
    try:
        return serve(options, where, report, stop)
    except Exception as error:
        # An error of our own says what is wrong and what to do; its trace would only hide that.
        trace = None if type(error).__module__.startswith("dsv2.") else error
        log.error("the engine process ends: %s", _one_line(error), exc_info=trace)
        report("failed", _one_line(error))
        return EXIT_REFUSED if _is_final(error) else EXIT_BROKEN


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return f"{text:.1000}"


def _is_final(error: Exception) -> bool:
    """Whether the options or the model are at fault, so that the next start would fail alike."""
    from dsv2.checkpoint.hub import HubError
    from dsv2.engine.plan import DoesNotFitError

    # The network may come back, and memory may be freed.
    passing = isinstance(error, (HubError, DoesNotFitError))
    return isinstance(error, (ValueError, TypeError)) and not passing


def run() -> NoReturn:
    """Run the process and end it, whatever threads of libraries still do."""
    status = main()
    logging.shutdown()
    os._exit(status)
