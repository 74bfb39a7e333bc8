"""The grouped products of the experts' gradients at the shapes of V2-Lite: right, and how fast."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from dsv2.kernels import reference
from dsv2.kernels.ops import ExpertWeights
from dsv2.kernels.triton.bench import KernelBench, describe, relative
from dsv2.kernels.triton.expert_order import ExpertOrder, order_by_expert
from dsv2.kernels.triton.experts_train import experts, swiglu_rows_grad
from dsv2.kernels.triton.grouped_gemm import GroupedTiles, expert_tiles
from dsv2.kernels.triton.grouped_grad import (
    grouped_matrix_grad,
    grouped_rows_grad,
    matrix_grad_tiles,
    rows_grad_tiles,
)

Step = Callable[[ExpertOrder, GroupedTiles], Tensor]
Cuts = list[tuple[int, ...]]
ROWS_CUTS: Cuts = [
    (128, 256, 64, 8, 4), (128, 128, 64, 8, 4), (128, 128, 64, 4, 3), (128, 256, 64, 8, 3, 16),
    (128, 256, 64, 8, 3, 4), (128, 256, 32, 8, 4),
]  # fmt: skip
MATRIX_CUTS: Cuts = [
    (128, 128, 64, 4, 4), (128, 128, 64, 4, 3, 16), (128, 128, 64, 4, 3, 4), (128, 128, 32, 4, 4),
    (128, 128, 64, 8, 3), (128, 256, 64, 8, 3), (64, 256, 64, 4, 3), (256, 64, 64, 4, 3),
]  # fmt: skip
"""Other tiles to try: rows, columns, depth, warps, stages and perhaps the group."""


def bench_experts_grad(
    bench: KernelBench, tokens: int, weights_of: ExpertWeights, repeats: int
) -> None:
    """All gradients together, then each step on its own with other tiles."""
    count, inner, width = weights_of.w_gate.shape
    generator = torch.Generator().manual_seed(tokens)
    ids = torch.rand(tokens, count, generator=generator).topk(repeats).indices.to(bench.device)
    mix = torch.rand(tokens, repeats, device=bench.device)
    x, y = bench.normal(tokens, width), bench.normal(tokens, width)
    case = f"{tokens} tokens"
    rows = tokens * repeats
    flops = 2.0 * rows * inner * width
    tile = expert_tiles(rows, count, bench.dtype).gate_up.rows
    order = order_by_expert(ids, count, tile)
    bench.attempt(
        "experts_grad", case, "", partial(_whole, bench, case, x, y, ids, mix, weights_of)
    )
    g_gate, g_up, gated = (bench.normal(rows, inner) for _ in range(3))
    moved_rows = 2.0 * rows * (width + inner)
    matrix = 2.0 * count * inner * width

    def swiglu() -> None:
        bench.record(
            "experts_grad: swiglu", case, "",
            [lambda: swiglu_rows_grad(gated, g_gate, g_up, mix, order)], 12.0 * rows * inner, 0,
        )  # fmt: skip

    bench.attempt("experts_grad: swiglu", case, "", swiglu)

    y_rows, x_rows = bench.normal(rows, width), bench.normal(rows, width)

    def first(order: ExpertOrder, tiles: GroupedTiles) -> Tensor:
        return grouped_rows_grad(y_rows, weights_of.w_down, order, tiles)

    def last(order: ExpertOrder, tiles: GroupedTiles) -> Tensor:
        return grouped_rows_grad(
            g_gate, weights_of.w_gate, order, tiles, too=(g_up, weights_of.w_up)
        )

    def down(order: ExpertOrder, tiles: GroupedTiles) -> Tensor:
        return grouped_matrix_grad(y_rows, gated, order, count, tiles)

    def gate(order: ExpertOrder, tiles: GroupedTiles) -> Tensor:
        return grouped_matrix_grad(g_gate, x_rows, order, count, tiles)

    own_rows, own_matrix = rows_grad_tiles(tile, bench.dtype), matrix_grad_tiles(bench.dtype)
    steps: list[tuple[str, Step, GroupedTiles, Cuts, int, float]] = [
        ("rows of down", first, own_rows, ROWS_CUTS, 1, matrix + moved_rows),
        ("rows of gate, up", last, own_rows, ROWS_CUTS, 2, 2 * (matrix + moved_rows)),
        ("down", down, own_matrix, MATRIX_CUTS, 1, matrix + moved_rows),
        ("gate", gate, own_matrix, MATRIX_CUTS, 1, matrix + moved_rows),
    ]

    def one(name: str, step: Step, tiles: GroupedTiles, share: int, moved: float) -> None:
        own = order if tiles.rows == tile else order_by_expert(ids, count, tiles.rows)
        calls = [partial(step, own, tiles)]
        bench.record(f"experts_grad: {name}", case, describe(tiles), calls, moved, share * flops)

    for name, step, own, cuts, share, moved in steps:
        for tiles in bench.others([own, *(GroupedTiles(*cut) for cut in cuts)]):
            bench.attempt(
                f"experts_grad: {name}", case, describe(tiles),
                partial(one, name, step, tiles, share, moved),
            )  # fmt: skip
    if bench.tune and bench.device.type == "cuda":
        ends = order.offsets[1:]
        for name, left, right in (
            ("rows of down", y_rows, weights_of.w_down), ("down", y_rows.T, gated),
            ("gate", g_gate.T, x_rows),
        ):  # fmt: skip
            calls = [partial(F.grouped_mm, left, right, offs=ends)]
            bench.attempt(
                f"experts_grad: {name}", case, "torch",
                partial(
                    bench.record, f"experts_grad: {name}", case, "torch", calls,
                    matrix + moved_rows, flops,
                ),
            )  # fmt: skip


def _whole(
    bench: KernelBench, case: str, x: Tensor, y: Tensor, ids: Tensor, mix: Tensor,
    weights_of: ExpertWeights,
) -> None:  # fmt: skip
    """Forward and gradients together; right for a few tokens."""
    few = slice(0, 24)
    parts = list(vars(weights_of).values())
    leaves = [one.detach().requires_grad_() for one in (x[few], mix[few], *parts)]
    wide = [one.detach().float().requires_grad_() for one in leaves]
    for own, op in ((leaves, experts), (wide, reference.experts)):
        out = op(own[0], ids[few], own[1], ExpertWeights(*own[2:]))
        (out * y[few].to(out.dtype)).sum().backward()
    error = max(relative(a.grad, b.grad) for a, b in zip(leaves, wide, strict=True))
    whole = [one.detach().requires_grad_() for one in (x, mix, *parts)]

    def call() -> object:
        out = experts(whole[0], ids, whole[1], ExpertWeights(*whole[2:]))
        return torch.autograd.grad(out, whole, y)

    rows, matrix = ids.numel(), parts[0].numel()
    moved = 2.0 * (3 * 3 * matrix + 8 * x.numel())
    flops = 18.0 * rows * matrix / parts[0].shape[0]
    bench.record("experts_grad", case, "default", [call], moved, flops, error)
