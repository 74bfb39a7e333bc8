"""Routed experts in Triton: the order of the rows, both paths, and their independence."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dsv2.kernels import reference
from dsv2.kernels.ops import ExpertWeights
from dsv2.kernels.triton.vector_experts import VectorTiles, experts_vector
from tests.kernels.triton.place import DEVICE, HALF, draw

pytest.importorskip("triton")

from dsv2.kernels.triton.expert_order import order_by_expert
from dsv2.kernels.triton.grouped_gemm import (
    TILES,
    expert_tiles,
    experts_grouped,
    run_experts,
)


def choices(tokens: int, repeats: int, experts: int) -> Tensor:
    """Different experts per token; the last two experts are never chosen."""
    generator = torch.Generator().manual_seed(tokens)
    scores = torch.rand(tokens, experts - 2, generator=generator)
    return scores.topk(repeats).indices.to(DEVICE)


def layer(experts: int, width: int, inner: int) -> ExpertWeights:
    return ExpertWeights(
        draw(experts, inner, width) / width**0.5, draw(experts, inner, width, seed=1) / width**0.5,
        draw(experts, width, inner, seed=2) / inner**0.5,
    )  # fmt: skip


@pytest.mark.parametrize(("tokens", "experts", "rows"), [(300, 9, 16), (5, 70, 64), (1, 4, 16)])
def test_rows_are_sorted_by_expert_and_cut_into_tiles(tokens: int, experts: int, rows: int) -> None:
    ids = choices(tokens, 2, experts)
    flat = ids.flatten()
    own = order_by_expert(ids, experts, rows)
    expected = flat.argsort(stable=True)
    assert torch.equal(own.order.long(), expected)
    assert torch.equal(own.inverse.long()[expected], torch.arange(2 * tokens, device=DEVICE))
    counts = torch.bincount(flat, minlength=experts)
    assert own.offsets.tolist() == [0, *counts.cumsum(0).tolist()]
    covered = []
    tiles = zip(
        own.tile_expert.tolist(), own.tile_first.tolist(), own.tile_end.tolist(), strict=True
    )
    for expert, first, end in tiles:
        if expert >= 0:
            assert 0 < end - first <= rows
            assert all(flat[row] == expert for row in own.order[first:end].tolist())
            covered += range(first, end)
    assert covered == list(range(2 * tokens))


@pytest.mark.parametrize(("width", "inner"), [(32, 64), (40, 24)])
def test_both_paths_equal_the_reference(width: int, inner: int) -> None:
    ids, experts = choices(21, 3, 8), layer(8, width, inner)
    x, weights = draw(21, width), draw(21, 3).abs()
    weights[::2, 1] = 0
    expected = reference.experts(x, ids, weights, experts)
    tiles = expert_tiles(ids.numel(), 8, torch.float32)
    for ours in (
        experts_grouped(x, ids, weights, experts, tiles),
        run_experts(x, ids, weights, experts),
    ):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)
    few = experts_vector(x[:2], ids[:2], weights[:2], experts, VectorTiles(gate_up=16, down=8))
    torch.testing.assert_close(few, expected[:2], atol=1e-5, rtol=1e-4)
    assert run_experts(x[:0], ids[:0], weights[:0], experts).shape == (0, width)


@pytest.mark.parametrize(
    "rows",
    [
        rows if rows == min(TILES) else pytest.param(rows, marks=pytest.mark.slow)
        for rows in sorted(TILES)
    ],
)
def test_every_tile_in_half_precision(rows: int) -> None:
    ids, experts = choices(150, 2, 5), layer(5, 80, 72)
    x, weights = draw(150, 80), draw(150, 2).abs()
    expected = reference.experts(x, ids, weights, experts)
    halves = ExpertWeights(*(part.to(HALF) for part in vars(experts).values()))
    ours = experts_grouped(x.to(HALF), ids, weights, halves, TILES[rows])
    torch.testing.assert_close(ours.float(), expected, atol=3e-2, rtol=3e-2)


def test_an_expert_that_a_weight_of_zero_takes_out_may_be_broken() -> None:
    ids, experts = choices(9, 2, 6), layer(6, 32, 32)
    weights = draw(9, 2).abs()
    broken = int(ids[0, 0])
    weights[ids == broken] = 0
    expected = reference.experts(draw(9, 32), ids, weights, experts)
    experts.w_down[broken] = torch.nan
    for rows in (slice(0, 1), slice(0, 9)):  # one expert per choice, and grouped
        ours = run_experts(draw(9, 32)[rows], ids[rows], weights[rows], experts)
        torch.testing.assert_close(ours, expected[rows], atol=1e-5, rtol=1e-4)


def test_tiles_follow_the_rows_per_expert() -> None:
    assert [expert_tiles(rows * 64, 64, HALF).gate_up.rows for rows in (1, 16, 24, 64, 768)] == [
        16,
        16,
        32,
        64,
        128,
    ]


def test_deterministic_rows_do_not_depend_on_the_batch() -> None:
    ids, experts = choices(40, 2, 5), layer(5, 64, 32)
    halves = ExpertWeights(*(part.to(HALF) for part in vars(experts).values()))
    x, weights = draw(40, 64).to(HALF), draw(40, 2).abs()
    together = run_experts(x, ids, weights, halves, deterministic=True)
    again = run_experts(x, ids, weights, halves, deterministic=True)
    assert torch.equal(together, again)
    part = run_experts(x[:7], ids[:7], weights[:7], halves, deterministic=True)
    if DEVICE.type == "cuda":
        assert torch.equal(part, together[:7])
    # NumPy's product, unlike a GPU's, depends on the place of a row in its tile.
    torch.testing.assert_close(part, together[:7], atol=2e-3, rtol=2e-3)
