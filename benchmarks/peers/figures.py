"""Figures beside their limits, as a table and as lines of a file."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.peers.machine import Machine


@dataclass(frozen=True)
class Figure:
    """One line of the result.

    Attributes:
        name: what was measured.
        value: its median.
        unit: of all values.
        limit: what the value must not be above, or below where ``is_least``.
        is_least: whether the limit is a lower one.
        served: the server's own value, where there are two.
        bare: the bare engine's.
        note: of what went on besides.
    """

    name: str
    value: float
    unit: str
    limit: float | None = None
    is_least: bool = False
    served: float | None = None
    bare: float | None = None
    note: str = ""

    @property
    def is_within(self) -> bool | None:
        """Whether it is within its limit; None without one."""
        if self.limit is None:
            return None
        return self.value >= self.limit if self.is_least else self.value <= self.limit


def show(title: str, figures: Sequence[Figure]) -> None:
    table = Table("figure", title=title)
    for column in ("value", "limit", "within", "served", "bare"):
        table.add_column(column, justify="right")
    table.add_column("note")
    for one in figures:
        least = ">=" if one.is_least else "<="
        table.add_row(
            one.name, f"{one.value:,.2f} {one.unit}",
            "" if one.limit is None else f"{least} {one.limit:g}",
            {None: "", True: "yes", False: "NO"}[one.is_within],
            *("" if side is None else f"{side:,.2f}" for side in (one.served, one.bare)),
            escape(one.note),
        )  # fmt: skip
    Console().print(table)


def append_csv(
    path: Path, machine: Machine, about: Mapping[str, Any], figures: Sequence[Figure]
) -> None:
    """Add a line per figure, ``about`` in each; a file that is not there is begun."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    with path.open("a", encoding="utf-8", newline="") as file:
        own = ["figure", "value", "unit", "limit", "within", "served", "bare", "note"]
        names = [*asdict(machine), *about, *own]
        writer = csv.DictWriter(file, names, lineterminator="\n")
        if is_new:
            writer.writeheader()
        for one in figures:
            numbers = {"value": one.value, "served": one.served, "bare": one.bare}
            writer.writerow(
                {**asdict(machine), **about}
                | {name: "" if n is None else f"{n:.5g}" for name, n in numbers.items()}
                | {"figure": one.name, "unit": one.unit,
                   "limit": "" if one.limit is None else f"{one.limit:g}",
                   "within": {None: "", True: "yes", False: "no"}[one.is_within],
                   "note": one.note}
            )  # fmt: skip
