"""Whether a model fits a card, and what it runs at there: V2-Lite on 12 GB, V2 on one H200.

    PYTHONPATH=src python -m benchmarks.gpu_fit --csv gpu_fit.csv
    PYTHONPATH=src python -m benchmarks.gpu_fit --only v2-lite

A smaller card is made of a larger one: a tensor takes what the smaller would not have. Then
``dsv2 bench latency`` runs in a process of its own on random weights, while this one watches how
much of the card is taken. A model that does not fit is a row that says so.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.peers.machine import commit

GIB = 2**30
COLUMNS = (
    "date", "commit", "card", "model", "weights", "card_gib", "taken_gib", "work",
    "tokens_per_second", "share_of_limit", "failure",
)  # fmt: skip
_EVERY = 0.05
"""Seconds between two looks at the card's free memory."""


@dataclass(frozen=True)
class Case:
    """A model on a card of a size; ``card_gib`` None is the whole of this one."""

    model: str
    weights: str
    card_gib: float | None
    prompts: str
    depths: str


CASES = (
    Case("v2-lite", "int4", 12e9 / GIB, "512,4096", "512,8192,32000"),
    Case("v2-lite", "int8", 24e9 / GIB, "512,4096", "512,8192"),
    Case("v2", "int4", None, "512", "512,4096"),
)
"""12 and 24 GB are what is printed on such cards, in powers of ten."""


@contextmanager
def card_of(gib: float | None) -> Iterator[float]:
    """A card with so much free memory, and what it then has; None leaves it as it is.

    Raises:
        MemoryError: this card has less.
    """
    free = torch.cuda.mem_get_info()[0]
    if gib is not None and free < gib * GIB:
        raise MemoryError(f"{gib:.1f} GiB are wanted, {free / GIB:.1f} are free")
    taken = 0 if gib is None else int(free - gib * GIB)
    ballast = torch.empty(taken, dtype=torch.uint8, device="cuda") if taken else None
    try:
        yield torch.cuda.mem_get_info()[0] / GIB
    finally:
        del ballast
        torch.cuda.empty_cache()


def run(case: Case) -> list[dict[str, object]]:
    """Rows of a case, one for each measured work."""
    row: dict[str, object] = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(), "commit": commit(),
        "card": torch.cuda.get_device_name(), "model": case.model, "weights": case.weights,
    }  # fmt: skip
    command = [
        sys.executable, "-m", "dsv2", "bench", "latency", case.model, "--random", "--weights",
        case.weights, "--device", "cuda", "--prompts", case.prompts, "--depths", case.depths,
        "--json",
    ]  # fmt: skip
    try:
        with card_of(case.card_gib) as size:
            least = size
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            while True:
                try:
                    out, err = process.communicate(timeout=_EVERY)
                    break
                except subprocess.TimeoutExpired:
                    least = min(least, torch.cuda.mem_get_info()[0] / GIB)
            row |= {"card_gib": round(size, 1), "taken_gib": round(size - least, 1)}
    except MemoryError as error:
        return [row | {"failure": str(error)}]
    if process.returncode:
        said = err.strip().rpartition("\n")[2] or f"exit {process.returncode}"
        return [row | {"failure": said[:200]}]
    return [
        row
        | {
            "work": one["work"], "tokens_per_second": round(one["tokens_per_second"], 1),
            "share_of_limit": round(one["share"], 3),
        }
        for one in json.loads(out.splitlines()[-1])["figures"]
    ]  # fmt: skip


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_fit", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--only", help="a model of the cases")
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args(words)
    names = {case.model for case in CASES}
    if options.only not in (None, *names):
        parser.error(f"--only is {options.only!r}, allowed are {', '.join(sorted(names))}")
    if not torch.cuda.is_available():
        parser.error("there is no GPU here")
    rows: list[dict[str, object]] = []
    for case in CASES:
        if options.only in (None, case.model):
            for row in run(case):
                print(json.dumps(row), flush=True)
                rows.append(row)
    if options.csv is not None:
        with options.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
