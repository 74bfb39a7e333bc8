"""Where the time of a training step goes on a GPU: by phase, by kind of kernel, by kernel.

    PYTHONPATH=src python -m benchmarks.train_profile

The step is that of ``gpu_vs_peers``: the first layers of V2-Lite on random bf16 weights, with AdamW
on fp32 copies. Phases are timed by the host, which waits for the device after each. What the device
does is taken from torch's profiler over whole steps that follow each other without a wait.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.peers.gpu_ours import training_phases
from benchmarks.peers.gpu_work import GpuRow, least_seconds, rows, tiny, trained
from dsv2.checkpoint.releases import config_of
from dsv2.kernels.timing import measure_device, wait

Phases = Sequence[tuple[str, Callable[[], None]]]

KINDS = (
    ("experts", r"^_grouped|^_expert|^_combine|^_count$|^_scan$|^_place$|GroupProblem|GroupGEMM|"
                r"grouped"),
    ("attention", r"flash|fmha|attention|^_forward|^_backward_|^_delta|^_join|^_part"),
    ("loss", r"^_loss|softmax"),
    ("optimiser", r"adamw|Adam|multi_tensor"),
    ("norms", r"^_norm|rms_norm|layer_norm"),
    ("SwiGLU", r"^_swiglu|silu"),
    ("products", r"gemm|nvjet|cutlass|splitK"),
    ("copies", r"Memcpy|Memset|copy_kernel|CatArray"),
    ("sorts and gathers", r"sort|Sort|radix|topk|TopK|gather|scatter|index|embedding"),
)  # fmt: skip
"""Kinds of kernels by what their names hold; the first that fits."""


def kind_of(kernel: str) -> str:
    """The kind that a kernel counts under."""
    return next((kind for kind, words in KINDS if re.search(words, kernel)), "elementwise and rest")


def phase_seconds(phases: Phases, repeats: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each phase, with a wait for the device after each."""
    found: dict[str, list[float]] = {name: [] for name, _ in phases}
    for _ in range(repeats):
        for name, run in phases:
            wait(device)
            start = time.perf_counter()
            run()
            wait(device)
            found[name].append(time.perf_counter() - start)
    return {name: median(times) for name, times in found.items()}


def profiled(phases: Phases, repeats: int, device: torch.device) -> tuple[float, Any]:
    """Seconds of a step of several in a row, and the profile of as many more."""

    def steps() -> None:
        for _ in range(repeats):
            for _, run in phases:
                run()
        wait(device)

    wait(device)
    start = time.perf_counter()
    steps()
    seconds = (time.perf_counter() - start) / repeats
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities, record_shapes=True, acc_events=True) as found:
        steps()
    return seconds, found


def print_kernels(found: Any, repeats: int, most: int) -> None:
    """Kinds of kernels, then the longest kernels, in milliseconds of a step."""
    kernels = [one for one in found.key_averages() if one.device_type == DeviceType.CUDA]
    times = {one.key: one.self_device_time_total / 1e3 / repeats for one in kernels}
    counts = {one.key: one.count / repeats for one in kernels}
    whole = sum(times.values())
    if not whole:
        print("no kernel ran on a GPU")
        return
    kinds: dict[str, float] = {}
    for name, took in times.items():
        kinds[kind_of(name)] = kinds.get(kind_of(name), 0.0) + took
    print(f"\nkernels: {whole:.1f} ms a step, {sum(counts.values()):.0f} launches")
    for name, took in sorted(kinds.items(), key=lambda item: -item[1]):
        print(f"  {took:8.2f} ms {took / whole:6.1%}  {name}")
    print("\nthe longest kernels")
    for name in sorted(times, key=lambda name: -times[name])[:most]:
        print(
            f"  {times[name]:8.2f} ms {times[name] / whole:6.1%} {counts[name]:6.1f}x  {name[:90]}"
        )


def print_ops(found: Any, repeats: int, most: int) -> None:
    """The ops of torch that kept the device longest, by the shapes of their operands."""
    ops = [
        one
        for one in found.key_averages(group_by_input_shape=True)
        if one.device_type == DeviceType.CPU and one.self_device_time_total > 0
    ]
    print("\nops of torch by shape")
    for one in sorted(ops, key=lambda one: -one.self_device_time_total)[:most]:
        took = one.self_device_time_total / 1e3 / repeats
        shapes = " ".join("x".join(map(str, shape)) for shape in one.input_shapes if shape)
        print(f"  {took:8.2f} ms {one.count / repeats:5.1f}x  {one.key} {shapes[:80]}")


def main(words: Sequence[str] | None = None) -> int:
    own = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    own.add_argument("--steps", type=int, default=5, help="measured, and as many more profiled")
    own.add_argument("--most", type=int, default=40, help="lines of each table")
    own.add_argument("--backend", default="auto", help="of the ops, such as torch")
    own.add_argument("--tiny", action="store_true", help="a small model on the CPU")
    chosen = own.parse_args(words)
    device = torch.device("cpu" if chosen.tiny else "cuda")
    row: GpuRow = next(
        one for one in (tiny(rows()) if chosen.tiny else rows()) if one.kind == "train"
    )
    config = config_of("v2-lite")
    if chosen.tiny:
        config = config.model_copy(update={
            "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32,
            "vocab_size": 256, "num_attention_heads": 2,
        })  # fmt: skip
    dtype = torch.float32 if chosen.tiny else torch.bfloat16
    roof = measure_device(device, dtype, tiny=chosen.tiny)
    phases = training_phases(
        trained(config), device, dtype, row.sequences, row.tokens, chosen.backend
    )
    phase_seconds(phases, 2, device)  # compiles what is compiled
    for name, seconds in phase_seconds(phases, chosen.steps, device).items():
        print(f"{name:<10} {seconds * 1e3:8.2f} ms")
    seconds, found = profiled(phases, chosen.steps, device)
    least = least_seconds(row, config, roof)
    print(
        f"{'step':<10} {seconds * 1e3:8.2f} ms, {least / seconds:.1%} of the limit of "
        f"{least * 1e3:.1f} ms by {roof.read / 1e12:.2f} TB/s and "
        f"{roof.multiply / 1e12:.0f} TFLOP/s"
    )
    print_kernels(found, chosen.steps, chosen.most)
    print_ops(found, chosen.steps, chosen.most)
    return 0


if __name__ == "__main__":
    sys.exit(main())
