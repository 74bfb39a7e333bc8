"""V2-Lite in 4 bits by threads: prompts, one sequence and batches, each beside its limit.

    python -m benchmarks.cpu_scaling --threads 1,2,4,8 --files FOLDER
    taskset -c 0,2 python -m benchmarks.cpu_scaling --threads 2     # on two cores of one's choice

Weights are random, made once in ``FOLDER`` (8 GB) and mapped by every executor. Numbers of threads
take turns, and figures are medians of the rounds. Each has the bandwidth and the products that as
many threads reach in the probes of the same turn. ``--csv`` writes one line for each number of
threads and kind of work.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.peers.machine import Machine, look
from benchmarks.peers.stored import stored
from dsv2.checkpoint.packed import load_packed
from dsv2.cli.info import find_config
from dsv2.engine.bench import Figure, ModelBench, measure_roof
from dsv2.kernels.cpu import CpuExecutor
from dsv2.kernels.timing import Roof
from dsv2.machine import available_threads

BATCHES = ((1, 128), (16, 128), (32, 128))
"""Sequences, and tokens in the cache of each."""


@dataclass(frozen=True)
class Measured:
    """One kind of work by some threads, and what these could do in the same turn."""

    figure: Figure
    roof: Roof


def turn(folder: Path, threads: int, prompts: Sequence[int]) -> list[Measured]:
    """Every kind of work once."""
    executor = CpuExecutor(threads)
    model = load_packed(folder, executor)
    roof = measure_roof(executor, model.weights)
    longest = max(*prompts, *(count * (past + 1) for count, past in BATCHES)) + 64
    bench = ModelBench(model, roof, longest)
    figures = [bench.prefill(tokens, repeats=1) for tokens in prompts]
    figures += [bench.decode(count, past, repeats=5) for count, past in BATCHES]
    return [Measured(figure, roof) for figure in figures]


def summary(found: Mapping[tuple[int, str], Sequence[Measured]]) -> list[dict[str, Any]]:
    """A line for each number of threads and kind of work, medians of its turns."""
    speeds = {
        key: median(one.figure.tokens_per_second for one in turns) for key, turns in found.items()
    }
    return [
        {
            "threads": threads, "work": work, "tokens_per_s": speeds[threads, work],
            "to_one_thread": (
                speeds[threads, work] / speeds[1, work] if (1, work) in speeds else None
            ),
            "probe_gb_per_s": median(one.roof.read for one in turns) / 1e9,
            "probe_top_per_s": median(one.roof.multiply for one in turns) / 1e12,
            "share_of_limit": median(one.figure.share for one in turns),
        }
        for (threads, work), turns in found.items()
    ]  # fmt: skip


def table(lines: Sequence[Mapping[str, Any]], model: str, machine: Machine) -> Table:
    """For people."""
    shown = Table(
        title=f"{model} in 4 bits, {machine.machine}, {machine.cores} cores, {machine.commit}, "
        f"{machine.date}"
    )
    for name in ("threads", "work", "tok/s", "to one", "GB/s", "TOP/s", "of the limit"):
        shown.add_column(name, justify="left" if name == "work" else "right")
    for line in lines:
        ratio = line["to_one_thread"]
        shown.add_row(
            str(line["threads"]), line["work"], f"{line['tokens_per_s']:,.1f}",
            "" if ratio is None else f"{ratio:.2f}x", f"{line['probe_gb_per_s']:.1f}",
            f"{line['probe_top_per_s']:.2f}", f"{line['share_of_limit']:.0%}",
        )  # fmt: skip
    return shown


def write(path: Path, lines: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> None:
    """All lines, each with what they were measured on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*facts, *lines[0]], lineterminator="\n")
        writer.writeheader()
        writer.writerows({**facts, **line} for line in lines)


def numbers(text: str) -> list[int]:
    """Positive numbers between commas."""
    found = [int(part) for part in text.split(",")]
    if min(found) < 1:
        raise ValueError(text)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="v2-lite", help="a release, or a folder")
    parser.add_argument("--threads", type=numbers, default=[1, 2], help="comma-separated")
    parser.add_argument("--prompts", type=numbers, default=[512, 2048], help="tokens")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--files", type=Path, default=Path("build/scaling"))
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--commit", help="where there is no git")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds is {options.rounds}, allowed is at least 1")
    most = available_threads()
    if max(options.threads) > most:
        parser.error(f"--threads has {max(options.threads)}, this process may use {most}")
    try:
        config = find_config(options.model)
        folder = stored(options.files, Path(options.model).name, config, "int4", {})
    except ValueError as error:
        parser.error(str(error))
    found: dict[tuple[int, str], list[Measured]] = defaultdict(list)
    for round_ in range(options.rounds):
        for threads in options.threads:
            for measured in turn(folder, threads, options.prompts):
                found[threads, measured.figure.work].append(measured)
            print(f"round {round_ + 1} of {options.rounds}: {threads} threads", flush=True)
    machine = look(max(options.threads))
    if options.commit:
        machine = replace(machine, commit=options.commit)
    lines = summary(found)
    Console().print(table(lines, options.model, machine))
    if options.csv:
        facts = asdict(machine) | {"model": options.model, "rounds": options.rounds}
        del facts["threads"], facts["read_gb_per_s"]
        write(options.csv, lines, facts)


if __name__ == "__main__":
    main()
