"""Which kernels are measured, and at which shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from dsv2.kernels.ops import ExpertWeights
from dsv2.kernels.triton.bench import KernelBench
from dsv2.kernels.triton.bench_attention import PEER_US, bench_decode, bench_prefill
from dsv2.kernels.triton.bench_cached import FORMATS as CACHE_FORMATS
from dsv2.kernels.triton.bench_cached import bench_cached
from dsv2.kernels.triton.bench_coded import FORMATS, bench_coded, random_experts
from dsv2.kernels.triton.bench_experts import bench_experts
from dsv2.kernels.triton.bench_experts_grad import bench_experts_grad
from dsv2.kernels.triton.bench_rows import bench_rows
from dsv2.kernels.triton.bench_training import bench_training

GROUPS = (
    "decode", "cached", "prefill", "rows", "experts", "coded", "experts_grad", "attention_grad",
    "training",
)  # fmt: skip
"""What may be measured on its own."""


def kernel_benches(bench: KernelBench) -> Iterator[tuple[str, Callable[[], None]]]:
    """Names of :data:`GROUPS`, and what runs under them; each tells ``bench`` its results."""
    decode = [(4, 2, 100)] if bench.tiny else list(PEER_US)
    for shape in decode:
        yield "decode", partial(bench_decode, bench, *shape)
    for name in CACHE_FORMATS:
        yield "cached", partial(bench_cached, bench, name)
    prefill = [(2, 40, 40, 2)] if bench.tiny else [(8, 2048, 2048, 16), (1, 2048, 16384, 16)]
    for own in prefill:
        yield "prefill", partial(bench_prefill, bench, *own)
    yield "rows", lambda: bench_rows(bench)
    yield "experts", lambda: _all_experts(bench)
    for name in FORMATS:
        yield "coded", partial(_coded_experts, bench, name)
    yield "experts_grad", lambda: _experts_grad(bench)
    trained = (2, 40, 40, 2) if bench.tiny else (8, 1024, 1024, 16)
    yield "attention_grad", partial(bench_prefill, bench, *trained, with_forward=False)
    yield "training", lambda: bench_training(bench)


def _sizes(bench: KernelBench) -> tuple[int, int, int, int]:
    """V2-Lite's experts, their input and inner width, and the experts of a token."""
    return (4, 64, 32, 2) if bench.tiny else (64, 2048, 1408, 6)


def _experts_of(bench: KernelBench) -> tuple[ExpertWeights, int]:
    """V2-Lite's stacks, and the experts of a token."""
    experts, width, inner, repeats = _sizes(bench)
    shapes = ((experts, inner, width), (experts, inner, width), (experts, width, inner))
    own = ExpertWeights(*(bench.normal(*shape) / shape[-1] ** 0.5 for shape in shapes))
    return own, repeats


def _all_experts(bench: KernelBench) -> None:
    own, repeats = _experts_of(bench)
    for tokens in (1, 40) if bench.tiny else (1, 16, 64, 256, 8192):
        bench.attempt(
            "experts",
            f"{tokens} tokens",
            "",
            partial(bench_experts, bench, tokens, own, repeats),
        )


def _coded_experts(bench: KernelBench, name: str) -> None:
    experts, width, inner, repeats = _sizes(bench)
    inner = max(inner, 64)  # a group of 4-bit codes
    own = random_experts(bench, name, experts, inner, width)
    for tokens in (1, 8) if bench.tiny else (1, 4, 16, 64, 256, 8192):
        bench.attempt(
            f"experts_{name}", f"{tokens} tokens", "",
            partial(bench_coded, bench, name, tokens, own, repeats),
        )  # fmt: skip


def _experts_grad(bench: KernelBench) -> None:
    own, repeats = _experts_of(bench)
    tokens = 40 if bench.tiny else 8192
    bench.attempt(
        "experts_grad", f"{tokens} tokens", "",
        partial(bench_experts_grad, bench, tokens, own, repeats),
    )  # fmt: skip


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
