"""What API and platform cost beside the bare engine: latency, CPU, throughput, memory.

    python -m benchmarks.serve_overhead                                 # pocket, some minutes
    python -m benchmarks.serve_overhead --model FOLDER --dtype int4 --only throughput

`dsv2 serve` runs in its processes and the bare engine, `dsv2.LLM`, in this one; they take turns
with the same prompts, and figures are medians over rounds. The client is that of
`dsv2 bench serve` and shares the machine's cores with both.

first-token   what the first token of a request to an idle server takes longer than the bare
              engine's: at most 15 ms, the median of the rounds' differences.
cpu           CPU time of the API process, engine and client apart, over the tokens it streamed to
              64 clients in answers of 512 tokens: at most 60 us. What a request costs whatever
              its length, most of it for money and accounts, is in that and stands by itself too.
cpu-fast      the same over an engine that computes nothing and gives each of the 64 clients 100
              tokens/s, as a GPU does: events are coalesced there.
throughput    tokens/s of 16 streams over those of the bare engine with the same 16 prompts at
              once: at least 0.9.
many          1,000 streams at once: every one gets its whole answer or a plain 429 or 503, and
              API process and growth of the engine take less than 2 GiB.

Weights in 8 and 4 bits are in memory once for both. Lines are added to
benchmarks/results/serve_overhead.csv.
"""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Protocol

from benchmarks.peers.figures import Figure, append_csv, show
from benchmarks.peers.machine import ROOT, look
from benchmarks.peers.server import (
    STEP,
    MemoryWatch,
    Served,
    ServerFailedError,
    cpu_seconds,
    serving,
    settle,
)
from dsv2.service.load.client import Ask, Client
from dsv2.service.load.prompts import Shape, random_prompts
from dsv2.service.load.report import Report, make_report
from dsv2.service.load.run import Run, closed_loop, open_loop, run_fast

CSV = ROOT / "benchmarks" / "results" / "serve_overhead.csv"
REFUSALS = ("HTTP 429", "HTTP 503")
FAST = "cpu-fast"
FIRST_TOKENS = 8
"""Tokens of an answer whose first is timed: some tokens have no text of their own."""


@dataclass(frozen=True)
class Work:
    """How much is asked.

    Attributes:
        rounds: of every figure.
        prompt: tokens of every prompt.
        new: tokens of an answer, where throughput is measured.
        cpu_new: tokens of an answer, where CPU time is.
        cpu_streams: at which CPU time is taken.
        streams: at which throughput is compared.
        many: streams at once, of ``few`` tokens each.
        few: see there.
        vocab_size: random token ids are below it.
        seconds: most that one request may take.
    """

    rounds: int = 5
    prompt: int = 32
    new: int = 128
    cpu_new: int = 512
    cpu_streams: int = 64
    streams: int = 16
    many: int = 1000
    few: int = 16
    vocab_size: int = 4096
    seconds: float = 600.0

    def prompts(self, seed: int) -> Iterator[list[int]]:
        """Of random tokens, no beginning ever the same, so that no cache helps one side."""
        shape = Shape(self.prompt, vocab_size=self.vocab_size, seed=seed)
        return (one["prompt"] for one in random_prompts(shape, "completions"))


class Bare(Protocol):
    """An engine without a server."""

    def first_token(self, prompt: Sequence[int]) -> float:
        """Seconds to the first token that has text."""
        ...

    def throughput(self, prompts: Sequence[Sequence[int]], new: int) -> float:
        """Tokens per second of answers of ``new`` tokens to all prompts at once."""
        ...


class BareEngine:
    """:class:`dsv2.LLM` in this process; its arguments are those of the class."""

    def __init__(self, model: str, **options: Any) -> None:
        from dsv2 import LLM, SamplingParams

        self._llm = LLM(model, **options)
        self._params = SamplingParams

    def first_token(self, prompt: Sequence[int]) -> float:
        params = self._params(max_tokens=FIRST_TOKENS, temperature=0.0, ignore_eos=True)
        start, first = time.perf_counter(), None
        for delta in self._llm.stream(list(prompt), params):
            if delta.text and first is None:
                first = time.perf_counter() - start
        return first or time.perf_counter() - start

    def throughput(self, prompts: Sequence[Sequence[int]], new: int) -> float:
        params = self._params(max_tokens=new, temperature=0.0, ignore_eos=True)
        start = time.perf_counter()
        answers = self._llm.generate([list(prompt) for prompt in prompts], params)
        return sum(len(one.token_ids) for one in answers) / (time.perf_counter() - start)


def stream(
    served: Served,
    prompts: Sequence[Sequence[int]],
    new: int,
    work: Work,
    *,
    at_once: bool = False,
) -> Run:
    """Answers of ``new`` tokens to all prompts, each by a user of its own.

    Args:
        served: by whom.
        prompts: token ids.
        new: tokens of each answer.
        work: how long one request may take.
        at_once: as an open loop, whatever the server does.
    """

    async def main() -> Run:
        client = Client(served.url, timeout=work.seconds)
        ask = Ask(served.model, max_tokens=new)
        asked: Iterator[dict[str, Any]] = ({"prompt": prompt} for prompt in prompts)
        count = len(prompts)
        try:
            await client.models()  # A first connection, as a client that has asked before has one.
            if at_once:
                return await open_loop(client, ask, asked, rate=float("inf"), requests=count)
            return await closed_loop(client, ask, asked, concurrency=count, requests=count)
        finally:
            client.close()

    return run_fast(main, len(prompts))


def _whole(run: Run, new: int) -> Report:
    """The report of a run in which nothing may fail."""
    report = make_report(run)
    expected = new * report.requests
    if report.failures or report.uncounted or report.output_tokens != expected:
        raise ServerFailedError(
            f"{report.failures or 'no failures'}, {report.output_tokens} of {expected} tokens, "
            f"{report.uncounted} answers without a count: {report.messages}"
        )
    return report


def wait_for(served: Served, work: Work, seconds: float) -> None:
    """Wait until the server answers a request.

    Raises:
        ServerFailedError: it does not within ``seconds``.
    """
    deadline = time.monotonic() + seconds
    prompt = next(work.prompts(0))
    while True:
        try:
            report = make_report(stream(served, [prompt], 1, work))
            why = str(report.messages)
        except RuntimeError as error:
            report, why = None, str(error)
        if report is not None and report.successful:
            return
        if time.monotonic() > deadline:
            raise ServerFailedError(f"the server does not answer: {why}")
        time.sleep(0.25)


def first_token(served: Served, bare: Bare, work: Work) -> list[Figure]:
    """Of single requests to an idle server; a first round does not count."""
    ours, theirs = [], []
    for prompt in itertools.islice(work.prompts(1), work.rounds + 1):
        settle()
        (record,) = stream(served, [prompt], FIRST_TOKENS, work).records
        if record.failure is not None or record.ttft is None:
            raise ServerFailedError(f"no first token: {record.failure}: {record.message}")
        ours.append(1e3 * record.ttft)
        settle()
        theirs.append(1e3 * bare.first_token(prompt))
    more = [one - other for one, other in zip(ours[1:], theirs[1:], strict=True)]
    return [
        Figure("first token after the bare engine's", median(more), "ms", 15.0,
               served=median(ours[1:]), bare=median(theirs[1:]))
    ]  # fmt: skip


def cpu_per_token(served: Served, bare: Bare, work: Work, engine: str = "") -> list[Figure]:
    """Of the API process, while it streams to many; a first round does not count."""
    prompts, found, chunks, each = work.prompts(2), [], [], []

    def spent(new: int) -> tuple[float, Report]:
        own = list(itertools.islice(prompts, work.cpu_streams))
        settle()
        before = cpu_seconds(served.pid)
        report = _whole(stream(served, own, new, work), new)
        return cpu_seconds(served.pid) - before, report

    for _ in range(work.rounds + 1):
        seconds, report = spent(work.cpu_new)
        found.append(1e6 * seconds / report.output_tokens)
        chunks.append(report.tokens_per_chunk)
        seconds, report = spent(1)
        each.append(1e3 * seconds / report.requests)
    note = f"{median(chunks[1:]):.2f} tokens per event"
    streams = f"{work.cpu_streams} streams{engine}"
    return [
        Figure(f"CPU of the API per token, {streams}", median(found[1:]), "us", 60.0, note=note),
        Figure(f"CPU of the API per request, {streams}", median(each[1:]), "ms"),
    ]


def throughput(served: Served, bare: Bare, work: Work) -> list[Figure]:
    """Of some streams beside as many sequences; a first round does not count."""
    prompts, ours, theirs = work.prompts(3), [], []
    for _ in range(work.rounds + 1):
        own = list(itertools.islice(prompts, work.streams))
        settle()
        ours.append(_whole(stream(served, own, work.new, work), work.new).output_throughput)
        settle()
        theirs.append(bare.throughput(own, work.new))
    shares = [one / other for one, other in zip(ours[1:], theirs[1:], strict=True)]
    name = f"throughput over the bare engine's, {work.streams} streams"
    return [
        Figure(name, median(shares), "ratio", 0.9, is_least=True, served=median(ours[1:]),
               bare=median(theirs[1:]), note="served and bare in tokens/s")
    ]  # fmt: skip


def many(served: Served, bare: Bare, work: Work) -> list[Figure]:
    """Outcome and memory of a great many streams at once."""
    prompts = list(itertools.islice(work.prompts(4), work.many))
    with MemoryWatch(served.pid) as memory:
        run = stream(served, prompts, work.few, work, at_once=True)
    report = make_report(run)
    refused = sum(report.failures.get(kind, 0) for kind in REFUSALS)
    short = sum(
        record.failure is None and record.completion_tokens != work.few for record in run.records
    )
    lost = report.requests - report.successful - refused + short
    others = {kind: n for kind, n in report.failures.items() if kind not in REFUSALS}
    title = f"of {work.many:,} streams"
    figures = [
        Figure(f"lost {title}", lost, "streams", 0.0, note=str(others or "")),
        Figure(f"refused by 429 or 503 {title}", refused, "streams"),
        Figure(f"most at once {title}", report.peak_concurrency, "streams"),
        Figure("memory of the API process", memory.own / 2**20, "MiB"),
        Figure("memory beside the model", (memory.own + memory.grown) / 2**20, "MiB", 2048.0,
               note="API process and growth of the engine"),
    ]  # fmt: skip
    if report.ttft_ms is not None:
        longest, usual = report.ttft_ms.max / 1e3, report.ttft_ms.median / 1e3
        figures.insert(2, Figure(f"longest wait for a first token {title}", longest, "s",
                                 note=f"median {usual:.2f} s"))  # fmt: skip
    return figures


FIGURES: dict[str, Callable[[Served, Bare, Work], list[Figure]]] = {
    "first-token": first_token,
    "cpu": cpu_per_token,
    FAST: partial(cpu_per_token, engine=" of 100 tokens/s"),
    "throughput": throughput,
    "many": many,
}


def measure(served: Served, bare: Bare, work: Work, only: Sequence[str]) -> list[Figure]:
    """The figures asked for, in order."""
    return [figure for name in only for figure in FIGURES[name](served, bare, work)]


def served_by(
    module: str,
    options: argparse.Namespace,
    same: Mapping[str, Any],
    work: Work,
    bare: Bare,
    only: Sequence[str],
) -> list[Figure]:
    """Figures of a server that a module runs."""
    with tempfile.TemporaryDirectory(prefix="dsv2-serve-") as folder:
        command: list[str | Path] = [
            sys.executable, "-m", module, "serve", f"bench={options.model}", "--port", "0",
            "--data", folder, "--log-level", "warning",
        ]  # fmt: skip
        for name, value in same.items():
            command += [f"--{name.replace('_', '-')}", str(value)]
        with serving(command, "bench", options.start_seconds) as served:
            wait_for(served, work, options.start_seconds)
            return measure(served, bare, work, only)


def parser() -> argparse.ArgumentParser:
    own = argparse.ArgumentParser(
        prog="python -m benchmarks.serve_overhead", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    own.add_argument("--model", default="pocket", help="as for dsv2 serve")
    own.add_argument("--label", help="what the table calls the model")
    own.add_argument("--dtype", default="auto", help="of the weights, on both sides")
    own.add_argument("--cache-tokens", type=int, help="on both sides")
    own.add_argument("--max-sequences", type=int, default=64, help="on both sides")
    own.add_argument("--threads", type=int, help="on both sides; one per core")
    own.add_argument("--only", default=",".join(FIGURES), help="comma-separated")
    for name, kind in Work.__annotations__.items():
        own.add_argument(
            f"--{name.replace('_', '-')}", type=float if kind == "float" else int,
            default=getattr(Work, name),
        )  # fmt: skip
    own.add_argument("--start-seconds", type=float, default=600.0, help="for loading the model")
    own.add_argument("--csv", type=Path, default=CSV)
    return own


def main(words: Sequence[str] | None = None) -> int:
    # As the program `dsv2` has it for the server's engine: with torch's threads spinning between
    # steps the bare engine would be a third slower, and the server look fast beside it.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # A benchmark that is told to end takes its server along.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    options = parser().parse_args(words)
    only = options.only.split(",")
    if unknown := [name for name in only if name not in FIGURES]:
        raise ValueError(f"figure {unknown[0]!r} is unknown, allowed are {', '.join(FIGURES)}")
    work = Work(**{name: getattr(options, name) for name in Work.__annotations__})
    same: dict[str, Any] = {"dtype": options.dtype, "max_sequences": options.max_sequences}
    same |= {
        name: getattr(options, name)
        for name in ("cache_tokens", "threads")
        if getattr(options, name) is not None
    }
    from dsv2.machine import available_threads

    machine = look(options.threads or available_threads())
    needs_bare = {"first-token", "throughput"} & set(only)
    bare: Any = BareEngine(options.model, **same) if needs_bare else None
    figures: list[Figure] = []
    if real := [name for name in only if name != FAST]:
        figures += served_by("dsv2", options, same, work, bare, real)
    if FAST in only:
        os.environ[STEP] = str(1 / 100)
        figures += served_by("benchmarks.peers.no_engine", options, same, work, bare, [FAST])
    label = options.label or options.model
    show(f"{label}: {machine.commit}, {machine.machine}, {machine.date}", figures)
    about = {"model": label, "dtype": options.dtype, "rounds": work.rounds}
    append_csv(options.csv, machine, about, figures)
    return 0 if all(one.is_within is not False for one in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
