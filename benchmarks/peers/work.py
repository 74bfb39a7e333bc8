"""What is measured: the rows of the table, and what one engine says about a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

SPEED, SECONDS, GIB = "tok/s", "s", "GiB"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        key: its name in files and on the command line.
        target: the project's name for what it owes here.
        kind: ``decode``, ``batch``, ``prefill``, ``seconds`` or ``memory``; the last two are of a
            fresh process up to its first token.
        weights: ``int4``, ``int8`` or ``bfloat16``.
        tokens: that are timed, of each sequence.
        sequences: computed together.
        depth: tokens of each that are in the cache before.
        layers: of the model, None for all of them.
        cache: dtype of our latent cache; peers keep the one they have by default.
        peers_row: key of the row whose figures of the peers this one is held against, where they
            have no such case themselves.
    """

    key: str
    target: str
    kind: str
    weights: str
    tokens: int
    sequences: int = 1
    depth: int = 0
    layers: int | None = None
    cache: str = "bfloat16"
    peers_row: str | None = None

    @property
    def unit(self) -> str:
        """Of the figures: ``tok/s``, or where less is better ``s`` or ``GiB``."""
        return {"seconds": SECONDS, "memory": GIB}.get(self.kind, SPEED)

    @property
    def work(self) -> str:
        """For people."""
        layers = "" if self.layers is None else f", {self.layers} layers"
        bits = {"int4": "4-bit", "int8": "8-bit", "bfloat16": "bf16"}[self.weights] + layers
        if self.kind == "prefill":
            return f"prompt of {self.tokens}, {bits}"
        if self.kind == "seconds":
            return f"start to first token, {bits}"
        if self.kind == "memory":
            return f"resident after it, {bits}"
        cache = "" if self.cache == "bfloat16" else f", our {self.cache} cache"
        return f"decode x{self.sequences} at {self.depth}, {bits}{cache}"


def rows() -> list[Row]:
    """All rows, in the table's order."""
    found = [
        Row("decode-int4", "P1", "decode", "int4", 128),
        Row("decode-int8", "P2", "decode", "int8", 128),
        Row("prefill-512", "P3", "prefill", "int4", 512),
        Row("prefill-2048", "P3", "prefill", "int4", 2048),
        Row("decode-4096", "P4", "decode", "int4", 32, depth=4096),
        Row(
            "decode-4096-int8", "P4", "decode", "int4", 32, depth=4096, cache="int8",
            peers_row="decode-4096",
        ),
    ]  # fmt: skip
    found += [
        Row(f"batch-{count}", "P5", "batch", "int4", 64, sequences=count, depth=128)
        for count in (1, 4, 8, 16, 32)
    ]
    found += [
        Row("first-token", "P6", "seconds", "int4", 1),
        Row("resident", "P6", "memory", "int4", 1),
        Row("bf16-prefill-512", "P5b", "prefill", "bfloat16", 512, layers=6),
    ]
    found += [
        Row(f"bf16-batch-{count}", "P5b", "batch", "bfloat16", 64, count, 128, layers=6)
        for count in (1, 8, 32)
    ]
    return found


def chosen(keys: str | None, quick: bool, layers: int | None) -> list[Row]:
    """The rows whose keys, or the parts before a ``-``, stand in a comma-separated list.

    Args:
        keys: None for all.
        quick: a sixteenth of every length: for trying the script, not for figures.
        layers: of the model, in place of the rows' own, where no file is read.

    Raises:
        ValueError: a name is none.
    """
    found = rows()
    if keys is not None:
        names = keys.split(",")
        for name in names:
            if not any(_named(row, name) for row in found):
                allowed = ", ".join(row.key for row in found)
                raise ValueError(f"row {name!r} is unknown, allowed are {allowed}")
        named = {row.key for row in found if any(_named(row, name) for name in names)}
        needed = {row.peers_row for row in found if row.key in named}
        found = [row for row in found if row.key in named | needed]
    if quick:
        found = [
            replace(row, tokens=max(1, row.tokens // 16), depth=row.depth // 16) for row in found
        ]
    if layers is not None:
        # Files have all layers.
        found = [
            row if row.kind in ("seconds", "memory") else replace(row, layers=layers)
            for row in found
        ]
    return found


def _named(row: Row, name: str) -> bool:
    return row.key == name or row.key.startswith(f"{name}-")


@dataclass(frozen=True)
class Measured:
    """One figure.

    Attributes:
        value: in the unit of its row.
        share: of what the machine could do at most, where that is known.
    """

    value: float
    share: float | None = None


@dataclass(frozen=True)
class Failure:
    """A row that an engine was to compute and did not.

    Attributes:
        reason: its last words.
    """

    reason: str


Outcomes = dict[str, Measured | Failure]
"""What an engine says about rows, by their keys; rows that it has no case of are absent."""


@dataclass(frozen=True)
class Setting:
    """What every engine is told.

    Attributes:
        shape: a folder whose ``config.json`` is the model's.
        files: a folder for the weights that are written once and kept.
        threads: to compute with.
    """

    shape: Path
    files: Path
    threads: int


Measure = Callable[[Sequence[Row], Setting], Outcomes]
"""An engine: computes the rows that it has a case of, once, in processes of its own."""
