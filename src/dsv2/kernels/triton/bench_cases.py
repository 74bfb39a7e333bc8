"""Which kernels are measured, and at which shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from dsv2.kernels.ops import ExpertWeights
from dsv2.kernels.triton.bench import KernelBench
from dsv2.kernels.triton.bench_attention import PEER_US, bench_decode, bench_prefill
from dsv2.kernels.triton.bench_experts import bench_experts

GROUPS = ("decode", "prefill", "experts")
"""What may be measured on its own."""


def kernel_benches(bench: KernelBench) -> Iterator[tuple[str, Callable[[], None]]]:
    """Names of :data:`GROUPS`, and what runs under them; each tells ``bench`` its results."""
    decode = [(4, 2, 100)] if bench.tiny else list(PEER_US)
    for shape in decode:
        yield "decode", partial(bench_decode, bench, *shape)
    prefill = [(2, 40, 40, 2)] if bench.tiny else [(8, 2048, 2048, 16), (1, 2048, 16384, 16)]
    for own in prefill:
        yield "prefill", partial(bench_prefill, bench, *own)
    yield "experts", lambda: _all_experts(bench)


def _all_experts(bench: KernelBench) -> None:
    experts, width, inner, repeats = (4, 64, 32, 2) if bench.tiny else (64, 2048, 1408, 6)
    shapes = ((experts, inner, width), (experts, inner, width), (experts, width, inner))
    own = ExpertWeights(*(bench.normal(*shape) / shape[-1] ** 0.5 for shape in shapes))
    for tokens in (1, 40) if bench.tiny else (1, 16, 64, 256, 8192):
        bench.attempt(
            "experts",
            f"{tokens} tokens",
            "",
            partial(bench_experts, bench, tokens, own, repeats),
        )


def run_kernel_benches(bench: KernelBench, groups: tuple[str, ...] = GROUPS) -> None:
    """Measure the groups; a kernel that fails is a result that says so, and the rest goes on.

    Raises:
        ValueError: a group is unknown.
    """
    unknown = set(groups) - set(GROUPS)
    if unknown:
        raise ValueError(f"group {sorted(unknown)[0]!r}, allowed are {', '.join(GROUPS)}")
    for name, run in kernel_benches(bench):
        if name in groups:
            bench.attempt(name, "", "", run)
