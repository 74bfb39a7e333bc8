"""Ragged attention in Triton: values, log-sum-exp and gradients against the reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dsv2.kernels import reference
from tests.kernels.triton.place import DEVICE, HALF, draw

pytest.importorskip("triton")

from dsv2.kernels.triton.launch import bounds
from dsv2.kernels.triton.mla_prefill import attend_ragged, merge_attention
from dsv2.kernels.triton.mla_prefill_grad import attend_expanded

SCALE = 0.3


def make(
    q_lens: tuple[int, ...], kv_lens: tuple[int, ...], heads: int, width: int, value: int
) -> list[Tensor]:
    return [
        draw(sum(q_lens), heads, width), draw(sum(kv_lens), heads, width, seed=1),
        draw(sum(kv_lens), heads, value, seed=2),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("q_lens", "kv_lens", "width", "value"),
    [
        ((5, 1, 70), (5, 1, 70), 48, 16),  # 48 columns are 32 and 16
        ((1, 40), (6, 100), 24, 16),  # keys longer than queries; 24 are 16 and a padded 8
        ((33,), (64,), 12, 8),  # both padded
    ],
)
def test_values_and_gradients_equal_the_reference(
    q_lens: tuple[int, ...], kv_lens: tuple[int, ...], width: int, value: int
) -> None:
    tensors = make(q_lens, kv_lens, 2, width, value)
    grads = []
    for op in (attend_expanded, reference.attend_expanded):
        leaves = [one.clone().requires_grad_() for one in tensors]
        out = op(*leaves, q_lens, kv_lens, SCALE)
        (out * draw(*out.shape, seed=3)).sum().backward()
        grads.append([out.detach(), *(leaf.grad for leaf in leaves)])
    for ours, expected in zip(*grads, strict=True):
        torch.testing.assert_close(ours, expected, atol=2e-5, rtol=1e-4)


def test_half_precision_takes_the_large_tiles() -> None:
    lens = (150, 20)
    q, k, v = make(lens, lens, 2, 24, 16)
    expected = reference.attend_expanded(q, k, v, lens, lens, SCALE)
    halves = [one.to(HALF).requires_grad_() for one in (q, k, v)]
    out = attend_expanded(*halves, lens, lens, SCALE)
    torch.testing.assert_close(out.float(), expected, atol=3e-2, rtol=3e-2)
    leaves = [one.clone().requires_grad_() for one in (q, k, v)]
    reference.attend_expanded(*leaves, lens, lens, SCALE).sum().backward()
    out.sum().backward()
    for ours, theirs in zip(halves, leaves, strict=True):
        assert ours.grad is not None and theirs.grad is not None
        torch.testing.assert_close(ours.grad.float(), theirs.grad, atol=5e-2, rtol=5e-2)


def test_the_log_sum_exp_merges_disjoint_keys() -> None:
    q, k, v = make((6,), (40,), 3, 32, 16)
    whole, lse = attend_ragged(q, k, v, bounds((6,), DEVICE), bounds((40,), DEVICE), 6, SCALE)
    scores = torch.einsum("qha,sha->hqs", q, k) * SCALE
    hidden = torch.ones(6, 40, dtype=torch.bool, device=DEVICE).triu(35)
    expected = scores.masked_fill(hidden, -torch.inf).logsumexp(-1)
    torch.testing.assert_close(lse, expected, atol=1e-5, rtol=1e-5)
    # All queries see the first 34 keys; the rest is causal of its own.
    past, past_lse = (scores[..., :34].softmax(-1), scores[..., :34].logsumexp(-1))
    past = torch.einsum("hqs,shv->qhv", past, v[:34])
    new, new_lse = attend_ragged(
        q, k[34:], v[34:], bounds((6,), DEVICE), bounds((6,), DEVICE), 6, SCALE
    )
    merged, merged_lse = merge_attention(past, past_lse, new, new_lse)
    torch.testing.assert_close(merged, whole, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(merged_lse, lse, atol=1e-5, rtol=1e-5)


def test_strided_values_need_no_copy() -> None:
    kv = draw(20, 2, 48)
    q, k, v = draw(20, 2, 32, seed=1), kv[..., :32], kv[..., 32:]
    out, _ = attend_ragged(q, k, v, bounds((20,), DEVICE), bounds((20,), DEVICE), 20, SCALE)
    expected = reference.attend_expanded(q, k, v, (20,), (20,), SCALE)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)
