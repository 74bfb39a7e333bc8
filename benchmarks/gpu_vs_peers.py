"""Speed on one GPU beside transformers: one table from one run, within a given time.

    PYTHONPATH=src python -m benchmarks.gpu_vs_peers --minutes 9 --csv gpu_vs_peers.csv

V2-Lite at full size with random bf16 weights. Ours runs on its Triton executor through the engine's
runner; transformers runs an eager loop with a DynamicCache, and ``generate`` with a StaticCache,
which compiles the decode step. Both have SDPA attention and grouped_mm experts. Every figure stands
beside its limit: bytes over the bandwidth of a copy, operations over the rate of a product, both
measured at the start of the same run.

Parts run in processes of their own and take turns, ours and the peer's on the same work one after
the other. They are ordered by importance: what no longer fits the time is said to be unmeasured.
Each result is in the CSV file before the next is measured.
``--formats`` measures our rows of 4 and 8 bits instead, which no peer here has. The exit status is
1 where one of our own rows has no figure for another reason than memory or time, or a kernel is
wrong.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.peers.gpu_report import Record, table
from benchmarks.peers.gpu_work import (
    COMPILED,
    OURS,
    PLAIN,
    GpuRow,
    format_rows,
    rows,
    tiny,
    trained,
)
from benchmarks.peers.machine import commit
from benchmarks.peers.sections import NO_TIME, Section, run_section
from dsv2.checkpoint.releases import config_of
from dsv2.kernels.triton.bench import TOLERANCE
from dsv2.model.config import ModelConfig

OWN_PART = "benchmarks.peers.gpu_ours"
PEER_PART = "benchmarks.peers.gpu_transformers"
KERNEL_PART = "benchmarks.peers.gpu_kernels_part"
EXCUSED = ("out of memory", NO_TIME)


def parser() -> argparse.ArgumentParser:
    own = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_vs_peers", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    own.add_argument("--minutes", type=float, default=9.0, help="for everything together")
    own.add_argument("--csv", type=Path, help="begun anew, a line per result")
    own.add_argument("--only", help="comma-separated names of parts, see --list")
    own.add_argument("--list", action="store_true", help="print the parts and end")
    own.add_argument(
        "--compile-seconds", type=float, default=150, help="for each part of the compiled peer"
    )
    own.add_argument(
        "--deterministic", action="store_true", help="our rows with one order of sums, for a --csv"
    )
    own.add_argument(
        "--formats", action="store_true", help="our rows with other weights, for a --csv"
    )
    own.add_argument("--commit", help="where the checkout has no history")
    own.add_argument("--config", type=Path, help="a config.json in place of V2-Lite's")
    own.add_argument("--tiny", action="store_true", help="small rows on the CPU, to try the script")
    return own


def plan(
    every: Sequence[GpuRow], base: Mapping[str, Any], compile_seconds: float
) -> list[tuple[str, Section]]:
    """Engine and part, the most important first; the roof is not among them.

    Args:
        every: rows of plain weights.
        base: what is the same in all requests; see :func:`requested`.
        compile_seconds: for each part of the compiled peer.
    """
    steps = [row for row in every if row.kind == "decode"]
    prompts = [row for row in every if row.kind == "prefill"]
    training = [row for row in every if row.kind == "train"]
    whole = [row for row in every if row.kind == "engine"]
    # The compiled peer takes half a minute or more for each; the target is held against the first.
    first = [row for row in steps if row.key in ("decode-1-512", "decode-64-512")]
    rest = [row for row in steps if row not in first]
    part = partial(_section, base)
    layers = {"config": trained(ModelConfig.from_published(base["config"])).to_published()}
    attention, experts = ["decode"], ["experts", "prefill"]
    return [
        (OURS, part("decode", OWN_PART, "steps", steps, 150)),
        (PLAIN, part("decode-plain", PEER_PART, "plain", steps, 100)),
        (OURS, part("prefill", OWN_PART, "steps", prompts, 90)),
        (PLAIN, part("prefill-plain", PEER_PART, "plain", prompts, 60)),
        (OURS, part("train", OWN_PART, "train", training, 60)),
        (PLAIN, part("train-plain", PEER_PART, "train", training, 60, **layers)),
        (OURS, _kernels(part("kernels-decode", KERNEL_PART, "", [], 60, groups=attention))),
        (COMPILED, part("decode-compiled", PEER_PART, "compiled", first, compile_seconds)),
        (OURS, _kernels(part("kernels-rest", KERNEL_PART, "", [], 90, groups=experts))),
        (OURS, part("engine", OWN_PART, "engine", whole, 90)),
        (COMPILED, part("compiled-rest", PEER_PART, "compiled", rest, compile_seconds)),
    ]


def plan_formats(every: Sequence[GpuRow], base: Mapping[str, Any]) -> list[tuple[str, Section]]:
    """A part of ours for each format of weights."""
    formats = dict.fromkeys(row.weights for row in every)
    rows = {one: [row for row in every if row.weights == one] for one in formats}
    return [(OURS, _section(base, one, OWN_PART, "steps", rows[one], 200)) for one in formats]


def requested(
    config: ModelConfig, device: str, backend: str, *, deterministic: bool = False
) -> dict[str, Any]:
    """What all parts are asked for."""
    return {
        "device": device, "backend": backend, "deterministic": deterministic,
        "config": config.to_published(),
    }  # fmt: skip


def _section(
    base: Mapping[str, Any], name: str, module: str, part: str, own: Sequence[GpuRow],
    seconds: float, **more: Any,
) -> Section:  # fmt: skip
    request = {**base, "part": part, "rows": [asdict(row) for row in own], **more}
    return Section(name, module, request, tuple(row.key for row in own), seconds)


def _kernels(section: Section) -> Section:
    return Section(section.name, section.module, section.request, ("kernels",), section.seconds)


def measure(
    record: Record, parts: Sequence[tuple[str, Section]], every: Sequence[GpuRow], deadline: float
) -> None:
    """Run the parts in order, saying each result as it comes."""
    by_key = {row.key: row for row in every}
    for engine, section in parts:
        start = time.monotonic()
        request = dict(section.request)
        if record.roof is not None:
            request["roof"] = asdict(record.roof)

        def take(result: dict[str, Any], engine: str = engine) -> None:
            if result["row"] in by_key:
                outcome = record.add(by_key[result["row"]], engine, result)
                said = outcome.failure or f"{outcome.rate:,.5g} tok/s"
                print(f"  {engine}, {result['row']}: {said}", flush=True)
            else:
                record.add_kernel(result)

        own = Section(section.name, section.module, request, section.keys, section.seconds)
        ended = run_section(own, deadline, take)
        print(f"{section.name}: {ended}, {time.monotonic() - start:.0f} s", flush=True)


def measure_roof(record: Record, device: str, deadline: float) -> str:
    """Measure what the device can do; why that failed, empty where it did not."""
    found: list[dict[str, Any]] = []
    section = Section("roof", OWN_PART, {"part": "roof", "device": device}, ("roof",), 90)
    run_section(section, deadline, found.append)
    if "failure" in found[0]:
        return str(found[0]["failure"])
    record.set_roof(found[0])
    return ""


def unfit(record: Record) -> list[str]:
    """Our own rows that have no figure without an excuse, and kernels that failed or are wrong."""
    bad = [
        f"{key}: {one.failure}"
        for (key, engine), one in record.outcomes.items()
        if engine == OURS and one.failure and one.failure not in EXCUSED
    ]
    bad += [
        f"{one['kernel']} {one['case']} {one['variant']}: {one['failure'] or 'wrong'}"
        for one in record.kernels
        if (one["failure"] and one["failure"] not in EXCUSED) or (one.get("error") or 0) > TOLERANCE
    ]
    return bad


def main(words: Sequence[str] | None = None) -> int:
    options = parser().parse_args(words)
    deadline = time.monotonic() + 60 * options.minutes
    device, backend = ("cpu", "cpu") if options.tiny else ("cuda", "triton")
    config = config_of("v2-lite")
    if options.config is not None:
        config = ModelConfig.from_file(options.config)
    every = format_rows() if options.formats else rows()
    if options.tiny:
        every = tiny(every)
    base = requested(config, device, backend, deterministic=options.deterministic)
    if options.formats:
        parts = plan_formats(every, base)
    else:
        parts = plan(every, base, options.compile_seconds)
    names = [section.name for _, section in parts]
    if options.list:
        print("\n".join(names))
        return 0
    if options.only is not None:
        asked = options.only.split(",")
        unknown = [name for name in asked if name not in names]
        if unknown:
            raise ValueError(f"part {unknown[0]!r}, allowed are {', '.join(names)}")
        parts = [one for one in parts if one[1].name in asked]
    facts = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": options.commit or commit(),
    }
    record = Record(options.csv, config, facts)
    reason = measure_roof(record, device, deadline)
    if reason:
        print(f"the roof could not be measured: {reason}", file=sys.stderr)
        return 1
    measure(record, parts, every, deadline)
    measured = {key for key, _ in record.outcomes}
    print("\n" + table(record, [row for row in every if row.key in measured]))
    return int(bool(unfit(record)))


if __name__ == "__main__":
    sys.exit(main())
