"""Results of a GPU's run: kept one by one in a CSV file, then a table with limits and targets."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.peers.gpu_work import (
    ENGINES,
    OURS,
    GpuRow,
    Verdict,
    judge,
    judge_kernel,
    least_seconds,
    tokens_of,
)
from dsv2.kernels.timing import Roof
from dsv2.model.config import ModelConfig

COLUMNS = (
    "date", "commit", "machine", "driver", "torch", "triton", "transformers", "roof_gb_per_s",
    "roof_tflop_per_s", "row", "engine", "work", "seconds", "tokens_per_second", "limit",
    "share_of_limit", "gb_per_s", "tflop_per_s", "error", "peer", "peer_seconds", "failure",
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What one engine said about a row.

    Attributes:
        rate: tokens per second, None where it failed.
        share: of the row's limit.
        failure: why there is no figure.
    """

    rate: float | None
    share: float | None = None
    failure: str = ""


@dataclass
class Record:
    """The run so far; each result is in the file before the next is measured.

    Attributes:
        path: of the CSV, which is begun anew; None for no file.
        config: the model's shape.
        facts: date, commit, machine and versions.
        roof: None until it was measured.
        outcomes: by row and engine.
        kernels: results of kernels, as they came.
    """

    path: Path | None
    config: ModelConfig
    facts: dict[str, str]
    roof: Roof | None = None
    outcomes: dict[tuple[str, str], Outcome] = field(default_factory=dict)
    kernels: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("w", encoding="utf-8", newline="") as file:
                csv.DictWriter(file, COLUMNS, lineterminator="\n").writeheader()

    def set_roof(self, result: Mapping[str, Any]) -> None:
        """Take the first part's result: the roof, and what was measured on."""
        names = ("machine", "driver", "torch", "triton", "transformers")
        self.facts |= {name: result[name] for name in names}
        self.roof = Roof(result["read"], result["multiply"])
        self.facts["roof_gb_per_s"] = f"{self.roof.read / 1e9:.0f}"
        self.facts["roof_tflop_per_s"] = f"{self.roof.multiply / 1e12:.1f}"

    def limit(self, row: GpuRow) -> float | None:
        """Tokens per second that the roof allows; None without one."""
        if self.roof is None:
            return None
        return tokens_of(row) / least_seconds(row, self.config, self.roof)

    def add(self, row: GpuRow, engine: str, result: Mapping[str, Any]) -> Outcome:
        """Keep what an engine said about a row."""
        limit = self.limit(row)
        line: dict[str, Any] = {"row": row.key, "engine": engine, "work": row.work, "limit": limit}
        if "failure" in result:
            outcome = Outcome(None, failure=result["failure"])
        else:
            rate = result["tokens"] / result["seconds"]
            outcome = Outcome(rate, None if limit is None else rate / limit)
            line |= {"seconds": result["seconds"], "tokens_per_second": rate,
                     "share_of_limit": outcome.share}  # fmt: skip
        self.outcomes[row.key, engine] = outcome
        self._write(line | {"failure": outcome.failure})
        return outcome

    def add_kernel(self, result: Mapping[str, Any]) -> None:
        """Keep a kernel's result, or why there are none."""
        if "kernel" not in result:
            line = {"row": "kernels", "engine": OURS, "failure": result.get("failure", "")}
            if not line["failure"]:
                return
            self.kernels.append(line | {"kernel": "kernels", "case": "", "variant": ""})
        else:
            self.kernels.append(dict(result))
            peer = result["peer_us"]
            line = {
                "row": f"{result['kernel']}: {result['case']}", "engine": OURS,
                "work": result["variant"], "failure": result["failure"],
            }  # fmt: skip
            if not result["failure"]:
                line |= {
                    "seconds": result["microseconds"] / 1e6, "gb_per_s": result["gigabytes_s"],
                    "tflop_per_s": result["teraflops"], "share_of_limit": result["fraction"],
                    "error": result["error"], "peer": result["peer"] if peer else "",
                    "peer_seconds": peer / 1e6 if peer else None,
                }  # fmt: skip
        self._write(line)

    def _write(self, line: Mapping[str, Any]) -> None:
        if self.path is None:
            return
        text = {key: _text(value) for key, value in {**self.facts, **line}.items()}
        with self.path.open("a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, COLUMNS, lineterminator="\n").writerow(text)

    def ratio(self, row: GpuRow, peer: str) -> float | None:
        """Ours over a peer's; None where one is missing."""
        own, other = (self.outcomes.get((row.key, name)) for name in (OURS, peer))
        if own is None or other is None or own.rate is None or other.rate is None:
            return None
        return own.rate / other.rate

    def verdict(self, row: GpuRow) -> Verdict | None:
        """Of the row's target; None where nothing is owed."""
        own = self.outcomes.get((row.key, OURS))
        if row.target is None:
            return None
        share = None if own is None else own.share
        return judge(row.target, share, self.ratio(row, row.target.peer))


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def table(record: Record, rows: Sequence[GpuRow]) -> str:
    """The figures in tokens per second, each of ours beside its limit and the peers."""
    facts = record.facts
    head = ", ".join(f"{name} {facts.get(name, '?')}" for name in ("torch", "triton", "driver"))
    lines = [
        f"{facts.get('machine', 'unknown device')}, {head}, transformers "
        f"{facts.get('transformers', '?')}; copy {facts.get('roof_gb_per_s', '?')} GB/s, product "
        f"{facts.get('roof_tflop_per_s', '?')} TFLOP/s; {facts['commit']}, {facts['date']}",
        "",
    ]
    cells = [["work", *ENGINES, "limit", "of it", "to plain", "to compiled", "target"]]
    for row in rows:
        limit = record.limit(row)
        own = record.outcomes.get((row.key, OURS))
        ratios = [record.ratio(row, peer) for peer in ENGINES[1:]]
        verdict = record.verdict(row)
        cells.append([
            row.work,
            *(_cell(record.outcomes.get((row.key, engine))) for engine in ENGINES),
            "?" if limit is None else f"{limit:,.4g}",
            "" if own is None or own.share is None else f"{own.share:.0%}",
            *("" if one is None else f"{one:.2f}x" for one in ratios),
            "" if verdict is None else _verdict(verdict),
        ])  # fmt: skip
    lines += _aligned(cells)
    if record.kernels:
        lines += ["", *_kernel_lines(record.kernels)]
    failed = [
        f"{engine}, {key}: {one.failure}"
        for (key, engine), one in record.outcomes.items()
        if one.failure
    ]
    return "\n".join([*lines, *(["", *failed] if failed else [])])


def _verdict(verdict: Verdict) -> str:
    word = {True: "PASS", False: "FAIL", None: "OPEN"}[verdict.met]
    return f"{verdict.target} {word}: {verdict.said}"


def _cell(outcome: Outcome | None) -> str:
    if outcome is None:
        return ""
    if outcome.rate is not None:
        return f"{outcome.rate:,.4g}"
    short = {"out of memory": "OOM", "unmeasured: no time": "no time"}
    return short.get(outcome.failure, "FAILED")


def _kernel_lines(kernels: Sequence[Mapping[str, Any]]) -> list[str]:
    cells = [
        [
            "kernel",
            "case",
            "variant",
            "us",
            "GB/s",
            "TFLOP/s",
            "of the roof",
            "error",
            "peer",
            "target",
        ]
    ]
    for one in kernels:
        names = [one["kernel"], one["case"], one["variant"]]
        if one["failure"]:
            cells.append([*names, one["failure"], *[""] * 6])
            continue
        peer, verdict = one["peer_us"], judge_kernel(one)
        cells.append([
            *names, f"{one['microseconds']:,.1f}", f"{one['gigabytes_s']:,.0f}",
            f"{one['teraflops']:,.1f}", f"{one['fraction']:.0%}",
            "" if one["error"] is None else f"{one['error']:.1e}",
            f"{peer / one['microseconds']:.2f}x {one['peer']}" if peer else "",
            "" if verdict is None else _verdict(verdict),
        ])  # fmt: skip
    return _aligned(cells)


def _aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[place]) for row in cells) for place in range(len(cells[0]))]
    return [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
