"""The ops of a training step in Triton: values and gradients against the reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from dsv2.kernels import reference
from dsv2.kernels.ops import AdamWFactors, AttentionShape, AttentionWeights, MlpWeights
from tests.kernels.triton.place import DEVICE, HALF, draw

pytest.importorskip("triton")

from dsv2.kernels.composites import attention_block as readable_attention
from dsv2.kernels.triton import cross_entropy
from dsv2.kernels.triton.adamw import adamw
from dsv2.kernels.triton.mla_train import attention_block
from dsv2.kernels.triton.rms_norm import rms_norm
from dsv2.kernels.triton.swiglu import mlp
from dsv2.ragged import RaggedBatch


def both(
    ours: Callable[..., Tensor], expected: Callable[..., Tensor], tensors: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Value and gradients of two functions of the tensors."""
    found = []
    for op in (ours, expected):
        leaves = [one.clone().requires_grad_() for one in tensors]
        out = op(*leaves)
        out = out * draw(*out.shape, seed=9).to(out.dtype) if out.ndim else out * 0.3
        out.sum().backward()
        assert all(leaf.grad is not None for leaf in leaves)
        found.append([out.detach(), *(leaf.grad for leaf in leaves)])
    return found[0], found[1]  # type: ignore[return-value]


def close(ours: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float = 1e-5) -> None:
    for one, theirs in zip(ours, expected, strict=True):
        assert one.dtype == theirs.dtype
        torch.testing.assert_close(one, theirs, atol=tolerance, rtol=10 * tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_rms_norm(dtype: torch.dtype) -> None:
    tensors = [draw(20, 40).to(dtype), (1 + draw(40) / 10).to(dtype)]
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2

    def own(x: Tensor, weight: Tensor) -> Tensor:
        return rms_norm(x, weight, 1e-6)

    close(*both(own, lambda x, w: reference.rms_norm(x, w, 1e-6), tensors), tolerance)
    # A slice, and more axes than two.
    close(*both(
        lambda x, w: rms_norm(x[:, 8:].unflatten(0, (1, -1)), w[8:], 1e-6),
        lambda x, w: reference.rms_norm(x[:, 8:].unflatten(0, (1, -1)), w[8:], 1e-6), tensors,
    ), tolerance)  # fmt: skip
    assert rms_norm(draw(0, 8), draw(8), 1e-6).shape == (0, 8)


def test_swiglu() -> None:
    tensors = [draw(9, 16), draw(24, 16, seed=1), draw(24, 16, seed=2), draw(16, 24, seed=3)]
    close(*both(
        lambda x, *w: mlp(x, MlpWeights(*w)), lambda x, *w: reference.mlp(x, MlpWeights(*w)),
        tensors,
    ), 2e-5)  # fmt: skip


@pytest.mark.parametrize("chunk", [8192, 4])
def test_cross_entropy(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "CHUNK", chunk)
    targets = torch.tensor([3, 0, 69, 7, 12, 3], device=DEVICE)
    weights = torch.tensor([1.0, 0.0, 2.0, 1.0, 1.0, 0.5], device=DEVICE)
    tensors = [draw(6, 16), 3 * draw(70, 16, seed=1)]
    close(*both(
        lambda h, w: cross_entropy.linear_cross_entropy(h, w, targets, weights),
        lambda h, w: reference.linear_cross_entropy(h, w, targets, weights), tensors,
    ), 2e-5)  # fmt: skip
    with torch.no_grad():
        alone = cross_entropy.linear_cross_entropy(*tensors, targets, weights)
    torch.testing.assert_close(
        alone, reference.linear_cross_entropy(*tensors, targets, weights), atol=1e-5, rtol=1e-5
    )


def test_a_vocabulary_of_several_blocks_and_large_logits() -> None:
    logits = 40 * draw(3, 9000)
    logits[1, 8999] = 3e4
    targets, weights = torch.tensor([8999, 8999, 0], device=DEVICE), torch.ones(3, device=DEVICE)
    leaf = logits.clone().requires_grad_()
    expected = torch.nn.functional.cross_entropy(leaf, targets, reduction="none")
    expected.sum().backward()
    losses = cross_entropy.loss_rows(logits, targets, weights, gradient=True)
    torch.testing.assert_close(losses, expected.detach(), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(logits, leaf.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("q_lora", [None, pytest.param(24, marks=pytest.mark.slow)])
def test_attention_of_whole_sequences(q_lora: int | None) -> None:
    heads, nope, rope, value, latent, hidden = 3, 24, 8, 16, 32, 40
    lengths = (9, 1, 17)
    batch = RaggedBatch.packed(torch.zeros(27, dtype=torch.int64, device=DEVICE), lengths)
    angles = batch.positions.float().unsqueeze(1) * 0.7 ** torch.arange(rope // 2, device=DEVICE)
    shape = AttentionShape(heads, nope, rope, value, scale=0.3, eps=1e-6)
    queries = heads * (nope + rope)
    tensors = [
        draw(27, hidden), draw(latent + rope, hidden, seed=1) / 6, 1 + draw(latent) / 10,
        draw(heads * (nope + value), latent, seed=2) / 6, draw(hidden, heads * value, seed=3) / 6,
    ]  # fmt: skip
    if q_lora is None:
        tensors += [draw(queries, hidden, seed=4) / 6]
    else:
        tensors += [
            draw(q_lora, hidden, seed=4) / 6, 1 + draw(q_lora, seed=5) / 10,
            draw(queries, q_lora, seed=6) / 5,
        ]  # fmt: skip

    def call(op: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(x: Tensor, *t: Tensor) -> Tensor:
            names = ("wq",) if q_lora is None else ("wq_a", "q_norm", "wq_b")
            own: dict[str, Any] = dict(zip(names, t[4:], strict=True))
            weights = AttentionWeights(*t[:4], **own)
            return op(x, weights, shape, angles.cos(), angles.sin(), batch, None)

        return run

    close(*both(call(attention_block), call(readable_attention), tensors), 2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_adamw(dtype: torch.dtype) -> None:
    factors = AdamWFactors(rate=0.01, beta1=0.9, beta2=0.95, eps=1e-8, decay=0.1)
    scale = torch.tensor(0.7, device=DEVICE)
    states = []
    for op in (adamw, reference.adamw):
        weight, master = draw(50, 45).to(dtype), draw(50, 45)
        mean, square = torch.zeros(50, 45, device=DEVICE), torch.zeros(50, 45, device=DEVICE)
        for step in (1, 2):
            op(weight, master, draw(50, 45, seed=step).to(dtype), mean, square, factors, step,
               scale)  # fmt: skip
        states.append([weight, master, mean, square])
    close(states[0][1:], states[1][1:], 1e-6)
    assert torch.equal(states[0][0], states[0][1].to(dtype))
