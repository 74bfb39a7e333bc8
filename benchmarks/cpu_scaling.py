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
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from benchmarks.peers.machine import look
from dsv2.checkpoint.packed import load_packed
from dsv2.checkpoint.releases import config_of
from dsv2.checkpoint.synthetic import synthetic_checkpoint
from dsv2.engine.bench import Figure, ModelBench, measure_roof
from dsv2.kernels.cpu import CpuExecutor, available_threads

BATCHES = ((1, 128), (16, 128), (32, 128))
"""Sequences, and tokens in the cache of each."""


def turn(folder: Path, threads: int, prompts: Sequence[int]) -> list[tuple[Figure, float, float]]:
    """Every kind of work once, with the bytes and the products per second of the probes."""
    executor = CpuExecutor(threads)
    model = load_packed(folder, executor)
    roof = measure_roof(executor, model.weights)
    bench = ModelBench(model, roof, max(*prompts, *(n * (past + 1) for n, past in BATCHES)) + 64)
    figures = [bench.prefill(tokens, repeats=1) for tokens in prompts]
    figures += [bench.decode(count, past, repeats=5) for count, past in BATCHES]
    return [(one, roof.read, roof.multiply) for one in figures]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", default="1,2", help="comma-separated")
    parser.add_argument("--prompts", default="512,2048", help="tokens, comma-separated")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--files", type=Path, default=Path("build/scaling"))
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--commit", help="where there is no git")
    options = parser.parse_args()
    numbers = [int(part) for part in options.threads.split(",")]
    prompts = [int(part) for part in options.prompts.split(",")]
    if options.rounds < 1 or min(*numbers, *prompts) < 1:
        parser.error("rounds, threads and prompts must be at least 1")
    if max(numbers) > available_threads():
        parser.error(f"threads are {max(numbers)}, this process may use {available_threads()}")
    folder = options.files / "v2-lite-int4"
    if not folder.exists():
        partial = folder.with_name(folder.name + ".partial")
        synthetic_checkpoint(partial, config_of("v2-lite"), "int4", {})
        partial.rename(folder)
    found: dict[tuple[int, str], list[tuple[Figure, float, float]]] = defaultdict(list)
    for round_ in range(options.rounds):
        for threads in numbers:
            for measured in turn(folder, threads, prompts):
                found[threads, measured[0].work].append(measured)
            print(f"round {round_ + 1} of {options.rounds}: {threads} threads", flush=True)
    machine = look(max(numbers))
    if options.commit:
        machine = replace(machine, commit=options.commit)
    table = Table(
        title=f"{machine.machine}, {machine.cores} cores, {machine.commit}, {machine.date}"
    )
    for name in (
        "threads",
        "work",
        "tokens/s",
        "by one thread",
        "GB/s read",
        "TOP/s",
        "of the limit",
    ):
        table.add_column(name, justify="left" if name == "work" else "right")
    lines = []
    for (threads, work), all_of_it in found.items():
        speed = median(one.tokens_per_second for one, _, _ in all_of_it)
        first = found.get((1, work))
        alone = median(one.tokens_per_second for one, _, _ in first) if first else None
        line = {
            "threads": threads, "work": work, "tokens_per_s": speed,
            "to_one_thread": speed / alone if alone else None,
            "probe_gb_per_s": median(read for _, read, _ in all_of_it) / 1e9,
            "probe_top_per_s": median(products for _, _, products in all_of_it) / 1e12,
            "share_of_limit": median(one.share for one, _, _ in all_of_it),
        }  # fmt: skip
        lines.append(line)
        table.add_row(
            str(threads), work, f"{speed:,.1f}", f"{line['to_one_thread']:.2f}x" if alone else "",
            f"{line['probe_gb_per_s']:.1f}", f"{line['probe_top_per_s']:.2f}",
            f"{line['share_of_limit']:.0%}",
        )  # fmt: skip
    Console().print(table)
    if options.csv:
        facts = asdict(machine)
        del facts["threads"], facts["read_gb_per_s"]
        options.csv.parent.mkdir(parents=True, exist_ok=True)
        with options.csv.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, [*facts, "rounds", *lines[0]], lineterminator="\n")
            writer.writeheader()
            writer.writerows(facts | {"rounds": options.rounds} | line for line in lines)


if __name__ == "__main__":
    main()
