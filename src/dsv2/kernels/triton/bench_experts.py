"""The kernels of routed experts at the shapes of V2-Lite: right, and how fast."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from dsv2.kernels import reference
from dsv2.kernels.ops import ExpertWeights
from dsv2.kernels.registry import select
from dsv2.kernels.triton import grouped_gemm, vector_experts
from dsv2.kernels.triton.bench import KernelBench, describe, relative
from dsv2.kernels.triton.expert_order import order_by_expert

TILE_CUTS: dict[int, tuple[list[tuple[int, ...]], list[tuple[int, ...]]]] = {
    16: ([(16, 32, 128, 4, 4), (16, 64, 128, 4, 4), (16, 64, 256, 4, 3), (16, 128, 128, 4, 3),
          (16, 64, 64, 4, 6)],
         [(16, 32, 128, 4, 5), (16, 64, 128, 4, 5), (16, 64, 256, 4, 3), (16, 128, 128, 4, 4)]),
    32: ([(32, 64, 128, 4, 4), (32, 64, 64, 4, 5), (32, 128, 64, 4, 4), (32, 128, 128, 8, 3)],
         [(32, 64, 128, 4, 5), (32, 128, 64, 4, 5), (32, 128, 128, 4, 4)]),
    64: ([(64, 64, 128, 4, 3), (64, 128, 64, 4, 4), (64, 128, 64, 8, 4)],
         [(64, 128, 128, 4, 3), (64, 256, 64, 4, 4), (64, 256, 64, 8, 4)]),
    128: ([(128, 128, 64, 8, 4), (128, 64, 64, 4, 4), (128, 64, 128, 8, 3),
           (128, 128, 64, 8, 3, 16), (128, 128, 64, 8, 3, 4)],
          [(128, 256, 64, 8, 4), (128, 128, 64, 8, 4), (128, 128, 64, 4, 4), (256, 128, 64, 8, 3),
           (128, 256, 64, 8, 3, 16), (128, 256, 64, 8, 3, 4)]),
}  # fmt: skip
"""Other tiles to try: rows, columns, depth, warps, stages and perhaps the group."""


def bench_experts(bench: KernelBench, tokens: int, weights_of: ExpertWeights, repeats: int) -> None:
    """All experts of so many tokens that choose ``repeats`` each, and every step on its own."""
    experts, inner, width = weights_of.w_gate.shape
    # Few tokens leave most experts out: the choices take turns, or these would stay in the cache.
    sets = 1 if bench.tiny or tokens >= 64 else 8
    generator = torch.Generator().manual_seed(tokens)
    scores = torch.rand(sets, tokens, experts, generator=generator).to(bench.device)
    choices = list(scores.topk(repeats).indices)
    ids = choices[0]
    mix = torch.rand(tokens, repeats, device=bench.device)
    x = bench.normal(tokens, width)
    case = f"{tokens} tokens"
    used = sum(int(own.unique().numel()) for own in choices) / sets
    rows = tokens * repeats
    each = inner * width * 2
    flops = 2.0 * rows * inner * width
    rows_checked = slice(0, 16)
    expected = reference.experts(
        x[rows_checked].float(), ids[rows_checked], mix[rows_checked],
        ExpertWeights(*(part.float() for part in vars(weights_of).values())),
    )  # fmt: skip
    peer = select("experts", "torch", bench.device.type)
    peer_us: list[float] = []

    def run_peer() -> None:
        if bench.device.type == "cuda":
            peer(x, ids, mix, weights_of)
            torch.cuda.synchronize()
            began = time.perf_counter()
            for place in range(16):
                peer(x, choices[place % sets], mix, weights_of)
            torch.cuda.synchronize()
            peer_us.append((time.perf_counter() - began) * 1e6 / 16)

    def run(call: Callable[[Tensor], Tensor], variant: str) -> None:
        error = relative(call(ids)[rows_checked], expected)
        calls = [partial(call, own) for own in choices]
        bench.record(
            "experts", case, variant, calls, used * 3 * each + 4 * x.nbytes, 3 * flops, error,
            "torch grouped_mm", peer_us[0] if peer_us else None,
        )  # fmt: skip

    bench.attempt("experts", case, "torch", run_peer)
    for deterministic in (False, True):
        variant = "deterministic" if deterministic else "default"
        whole = partial(_run_experts, x, mix, weights_of, deterministic)
        bench.attempt("experts", case, variant, partial(run, whole, variant))
    if rows <= grouped_gemm.VECTOR_ROWS:
        cuts = [(1, 2, 2, 8), (2, 4, 2, 8), (1, 4, 2, 8), (2, 2, 1, 2), (2, 4, 2, 4), (8, 4, 8, 4)]
        for cut in cuts if bench.tune else []:
            tiles = vector_experts.VectorTiles(*cut)
            name = f"vector {describe(tiles)}"
            vector = partial(_run_vector, x, mix, weights_of, tiles)
            bench.attempt("experts", case, name, partial(run, vector, name))
    bench_products(bench, case, x, choices, mix, weights_of, used)


def _run_experts(
    x: Tensor, mix: Tensor, weights: ExpertWeights, deterministic: bool, ids: Tensor
) -> Tensor:
    return grouped_gemm.run_experts(x, ids, mix, weights, deterministic=deterministic)


def _run_vector(
    x: Tensor, mix: Tensor, weights: ExpertWeights, tiles: vector_experts.VectorTiles, ids: Tensor
) -> Tensor:
    return vector_experts.experts_vector(x, ids, mix, weights, tiles)


def bench_products(
    bench: KernelBench, case: str, x: Tensor, choices: list[Tensor], mix: Tensor,
    weights_of: ExpertWeights, used: float,
) -> None:  # fmt: skip
    """The steps of the grouped path one by one, and other tiles for its two products."""
    experts, inner, width = weights_of.w_gate.shape
    rows, each = mix.numel(), inner * width * 2
    flops = 2.0 * rows * inner * width
    size = grouped_gemm.expert_tiles(rows, experts, bench.dtype).gate_up.rows
    default = grouped_gemm.TILES[size]
    moved_rows = 2 * rows * (width + inner)

    gated = bench.normal(rows, inner)

    def calls(name: str, tiles: grouped_gemm.GroupedTiles) -> list[Callable[[], Tensor]]:
        orders = [order_by_expert(ids, experts, tiles.rows) for ids in choices]
        if name == "down":
            return [
                partial(grouped_gemm.grouped_product, gated, weights_of.w_down, o, tiles)
                for o in orders
            ]
        return [
            partial(
                grouped_gemm.grouped_product,
                x,
                weights_of.w_up,
                o,
                tiles,
                gate=weights_of.w_gate,
                repeats=mix.shape[1],
            )
            for o in orders
        ]

    def steps() -> None:
        order = order_by_expert(choices[0], experts, size)
        results = bench.normal(rows, width)
        bench.record(
            "experts: order", case, str(size), [lambda: order_by_expert(choices[0], experts, size)],
            16.0 * rows, 0,
        )  # fmt: skip
        bench.record(
            "experts: combine", case, "", [lambda: grouped_gemm.combine_rows(results, mix, order)],
            2.0 * (rows + mix.shape[0]) * width, 0,
        )  # fmt: skip

    def one(name: str, tiles: grouped_gemm.GroupedTiles) -> None:
        share = 2 if name == "gate_up" else 1
        bench.record(
            f"experts: {name}", case, describe(tiles), calls(name, tiles),
            used * share * each + moved_rows, share * flops,
        )  # fmt: skip

    bench.attempt("experts: steps", case, "", steps)
    for name, own, cuts in zip(
        ("gate_up", "down"), vars(default).values(), TILE_CUTS[size], strict=True
    ):
        for tiles in bench.others([own, *(grouped_gemm.GroupedTiles(*cut) for cut in cuts)]):
            bench.attempt(f"experts: {name}", case, describe(tiles), partial(one, name, tiles))
