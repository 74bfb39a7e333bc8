"""Routed experts with their gradient in Triton, against the reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dsv2.kernels import reference
from dsv2.kernels.ops import ExpertWeights
from tests.kernels.triton.place import DEVICE, HALF, draw

pytest.importorskip("triton")

from dsv2.kernels.triton.experts_train import experts


def layer(count: int, width: int, inner: int) -> list[Tensor]:
    return [
        draw(count, inner, width) / width**0.5, draw(count, inner, width, seed=1) / width**0.5,
        draw(count, width, inner, seed=2) / inner**0.5,
    ]  # fmt: skip


def choices(tokens: int, repeats: int, count: int) -> Tensor:
    """Different experts per token; the last two experts are never chosen."""
    generator = torch.Generator().manual_seed(tokens)
    scores = torch.rand(tokens, count - 2, generator=generator)
    return scores.topk(repeats).indices.to(DEVICE)


def run(op, ids: Tensor, tensors: list[Tensor]) -> list[Tensor]:  # type: ignore[no-untyped-def]
    leaves = [one.clone().requires_grad_() for one in tensors]
    out = op(leaves[0], ids, leaves[1], ExpertWeights(*leaves[2:]))
    (out * draw(*out.shape, seed=9).to(out.dtype)).sum().backward()
    return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


@pytest.mark.parametrize(("tokens", "repeats", "width", "inner"), [(21, 3, 40, 24), (9, 1, 32, 64)])
def test_values_and_gradients_equal_the_reference(
    tokens: int, repeats: int, width: int, inner: int
) -> None:
    ids = choices(tokens, repeats, 7)
    weights = draw(tokens, repeats).abs()
    weights[::2, -1] = 0
    tensors = [draw(tokens, width), weights, *layer(7, width, inner)]
    ours, expected = (run(op, ids, tensors) for op in (experts, reference.experts))
    assert len(ours) == len(expected) == 6
    for one, theirs in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, theirs, atol=1e-5, rtol=1e-4)


def test_half_precision_takes_the_large_tiles() -> None:
    ids, tensors = choices(40, 2, 5), [draw(40, 80), draw(40, 2).abs(), *layer(5, 80, 72)]
    halves = [one if place == 1 else one.to(HALF) for place, one in enumerate(tensors)]
    expected = run(reference.experts, ids, [one.float() for one in halves])
    for one, theirs in zip(run(experts, ids, halves), expected, strict=True):
        assert one.dtype == (torch.float32 if one.shape == ids.shape else HALF)
        scale = float(theirs.abs().max())
        torch.testing.assert_close(one.float() / scale, theirs / scale, atol=1e-2, rtol=1e-2)


def test_an_expert_that_a_weight_of_zero_takes_out_may_be_broken() -> None:
    ids = choices(9, 2, 6)
    tensors = [draw(9, 32), draw(9, 2).abs(), *layer(6, 32, 32)]
    broken = int(ids[0, 0])
    tensors[1][ids == broken] = 0
    expected = run(reference.experts, ids, tensors)
    tensors[4][broken] = torch.nan
    ours = run(experts, ids, tensors)
    for place in (0, 1, 3, 4, 5):  # the weights' own gradient is that expert's result
        torch.testing.assert_close(ours[place], expected[place], atol=1e-5, rtol=1e-4)
