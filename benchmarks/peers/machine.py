"""What a figure was measured on, and of what."""

from __future__ import annotations

import datetime
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SETS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "i8mm")
"""Instruction sets that matter to dot products, as Linux names them."""


@dataclass(frozen=True)
class Machine:
    """Stands before every figure.

    Attributes:
        date: of the run.
        commit: of this repository, with ``-dirty`` behind it where files differ from it.
        machine: the CPU's own name, with family and model where several share a name.
        instruction_sets: of :data:`SETS`, those it has.
        cores: that this process may use.
        threads: that computed.
        read_gb_per_s: from memory, by as many threads.
    """

    date: str
    commit: str
    machine: str
    instruction_sets: str
    cores: int
    threads: int
    read_gb_per_s: float


def look(threads: int) -> Machine:
    """Measure and read all of it."""
    from dsv2.kernels.cpu import CpuExecutor  # Not at import: a GPU's machine need not build it.

    facts = cpu_facts(Path("/proc/cpuinfo").read_text("utf-8"))
    executor = CpuExecutor(threads)
    read = max(executor.probe_read() for _ in range(5))
    return Machine(
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        commit=commit(),
        machine=facts[0],
        instruction_sets=" ".join(facts[1]),
        cores=len(os.sched_getaffinity(0)),
        threads=threads,
        read_gb_per_s=round(read / 1e9, 1),
    )


def cpu_facts(cpuinfo: str) -> tuple[str, list[str]]:
    """Name and instruction sets from the text of ``/proc/cpuinfo``."""
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    name = fields.get("model name", "unknown CPU")
    if "cpu family" in fields:
        name += f" (family {fields['cpu family']} model {fields['model']})"
    flags = set((fields.get("flags") or fields.get("Features", "")).split())
    return name, [one for one in SETS if one in flags]


def commit() -> str:
    """The checkout's commit, or ``unknown`` outside of one."""
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
