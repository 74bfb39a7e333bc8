"""Rounds into medians, and medians into a table, a CSV file and a picture."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from rich.table import Table

from benchmarks.peers.machine import Machine
from benchmarks.peers.work import SPEED, Failure, Measured, Row

Rounds = Mapping[str, Mapping[str, Sequence[Measured | Failure]]]
"""By engine and row: what each round gave."""
SAME = ("machine", "cores", "threads", "row", "engine")
"""Columns in which a new line replaces an old one."""


@dataclass(frozen=True)
class Summary:
    """All rounds of one engine on one row.

    Attributes:
        rounds: that gave a figure.
        median: of them, None where a round failed.
        least: of them.
        most: of them.
        share: of the machine's limit, None where it is not known.
        failure: what a round said that failed.
    """

    rounds: int
    median: float | None
    least: float | None = None
    most: float | None = None
    share: float | None = None
    failure: str = ""


def summarise(outcomes: Sequence[Measured | Failure]) -> Summary:
    """A single failure makes the row a failure: a median of what is left would flatter."""
    good = [one for one in outcomes if isinstance(one, Measured)]
    bad = [one for one in outcomes if isinstance(one, Failure)]
    if bad:
        return Summary(
            len(good), None, failure=f"{len(bad)} of {len(outcomes)} rounds: {bad[0].reason}"
        )
    values = [one.value for one in good]
    shares = [one.share for one in good if one.share is not None]
    share = median(shares) if shares else None
    return Summary(len(good), median(values), min(values), max(values), share)


@dataclass(frozen=True)
class Line:
    """A row of the table.

    Attributes:
        row: what was measured.
        own: our figure.
        peers: those of the others, by name.
        best: name of the best of them, None where there is none.
        ratio: ours over the best peer's, above 1 where we are better; None where one is missing.
    """

    row: Row
    own: Summary
    peers: dict[str, Summary]
    best: str | None
    ratio: float | None


def compare(rows: Sequence[Row], rounds: Rounds, own: str) -> list[Line]:
    """One line per row that we have an outcome of."""
    lines = []
    for row in rows:
        if row.key not in rounds[own]:
            continue
        mine = summarise(rounds[own][row.key])
        key = row.peers_row or row.key
        peers = {
            name: summarise(found[key])
            for name, found in rounds.items()
            if name != own and key in found
        }
        lines.append(_line(row, mine, peers))
    return lines


def _line(row: Row, mine: Summary, peers: dict[str, Summary]) -> Line:
    known = {name: one.median for name, one in peers.items() if one.median is not None}
    best, ratio = None, None
    if known:
        better = max if row.unit == SPEED else min
        best = better(known, key=known.__getitem__)
        if mine.median is not None:
            ratio = mine.median / known[best]
            ratio = ratio if row.unit == SPEED else 1 / ratio
    return Line(row, mine, peers, best, ratio)


def table(lines: Sequence[Line], machine: Machine, engines: Sequence[str]) -> Table:
    """For people; the first engine is ours."""
    title = (
        f"{machine.machine}, {machine.instruction_sets}, {machine.threads} of {machine.cores} "
        f"cores, {machine.read_gb_per_s} GB/s read; {machine.commit}, {machine.date}"
    )
    shown = Table(title=title)
    names = ("", "work", "unit", *engines, "of the limit", "to the best peer")
    for name in names:
        shown.add_column(name, justify="left" if name in ("", "work", "unit") else "right")
    for line in lines:
        figures = [line.own, *(line.peers.get(name) for name in engines[1:])]
        share = "" if line.own.share is None else f"{line.own.share:.0%}"
        ratio = "" if line.ratio is None else f"{line.ratio:.2f}x"
        cells = [_cell(one) for one in figures]
        shown.add_row(line.row.target, line.row.work, line.row.unit, *cells, share, ratio)
    return shown


def _cell(summary: Summary | None) -> str:
    if summary is None:
        return ""
    return "FAILED" if summary.median is None else f"{summary.median:,.3g}"


def failures(lines: Sequence[Line], own: str) -> list[str]:
    """A sentence for every failed cell."""
    return [
        f"{name}, {line.row.work}: {one.failure}"
        for line in lines
        for name, one in {own: line.own, **line.peers}.items()
        if one.failure
    ]


def write_csv(path: Path, lines: Sequence[Line], machine: Machine, own: str) -> None:
    """Add the lines; those of the same machine, threads, row and engine are replaced."""
    fresh = [
        asdict(machine)
        | {
            "row": line.row.key, "target": line.row.target, "work": line.row.work,
            "unit": line.row.unit, "engine": name, "rounds": one.rounds,
            "median": one.median, "least": one.least, "most": one.most,
            "share_of_limit": one.share, "to_best_peer": line.ratio if name == own else None,
            "failure": one.failure,
        }
        for line in lines
        for name, one in {own: line.own, **line.peers}.items()
    ]  # fmt: skip
    text = [{key: _text(value) for key, value in one.items()} for one in fresh]
    if not text:
        return
    replaced = {tuple(one[key] for key in SAME) for one in text}
    kept: list[dict[str, str]] = []
    if path.exists():
        with path.open(encoding="utf-8", newline="") as file:
            kept = [
                one
                for one in csv.DictReader(file)
                if tuple(one[key] for key in SAME) not in replaced
            ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(text[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows([*kept, *text])


def read_csv(path: Path, rows: Sequence[Row], machine: Machine, own: str) -> list[Line]:
    """What :func:`write_csv` has added of such a machine, in how many runs so ever."""
    here = {name: str(getattr(machine, name)) for name in ("machine", "cores", "threads")}
    found: dict[str, dict[str, Summary]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for one in csv.DictReader(file):
            if all(one[name] == value for name, value in here.items()):
                median, least, most, share = (
                    float(one[name]) if one[name] else None
                    for name in ("median", "least", "most", "share_of_limit")
                )
                found.setdefault(one["row"], {})[one["engine"]] = Summary(
                    int(one["rounds"]), median, least, most, share, one["failure"]
                )
    known = [(row, found[row.key]) for row in rows if own in found.get(row.key, {})]
    return [
        _line(row, all_of_it[own], {name: one for name, one in all_of_it.items() if name != own})
        for row, all_of_it in known
    ]


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def draw(path: Path, lines: Sequence[Line], machine: Machine) -> None:
    """A bar per row: our figure over the best peer's."""
    from matplotlib.figure import Figure

    found = [(line, line.ratio) for line in lines if line.ratio is not None]
    if not found:
        return
    figure = Figure(figsize=(9, 1.4 + 0.38 * len(found)), layout="constrained")
    axes = figure.add_subplot()
    places = range(len(found))
    ratios = [ratio for _, ratio in found]
    colours = ["#2a78b5" if ratio >= 1 else "#c0504d" for ratio in ratios]
    axes.barh(places, ratios, color=colours, height=0.62)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(places, [line.row.work for line, _ in found])
    axes.invert_yaxis()
    axes.set_xlim(0, max(*ratios, 1) * 1.6)  # room for the longest note
    for place, (line, ratio) in enumerate(found):
        assert line.best is not None and line.own.median is not None
        theirs = line.peers[line.best].median
        note = f"{ratio:.2f}x   {line.own.median:,.3g} / {theirs:,.3g} {line.row.unit} {line.best}"
        axes.text(max(ratio, 1), place, f" {note}", va="center", fontsize=8)
    axes.set_xlabel("dsv2 over the best peer; right of the line dsv2 is better")
    figure.suptitle(  # over the whole width, where names of machines have room
        f"DeepSeek-V2-Lite's shape on {machine.machine}, {machine.threads} threads, {machine.date}",
        fontsize=10,
    )
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
