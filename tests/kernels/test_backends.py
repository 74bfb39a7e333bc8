"""Every backend against the reference: values and gradients of every op."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from dsv2.kernels.ops import AdamWFactors, ExpertWeights, MlpWeights
from dsv2.kernels.registry import BackendError, backends, has, implements, select
from dsv2.shapes import BLOCK_SIZE, ShapeError

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
FINE = [name for name in backends() if name != "triton" and (name == "auto" or has("mlp", name))]
"""Backends of fine ops on the CPU; ``cpu`` runs whole layers, see test_executor.py."""
OTHERS = [name for name in FINE if name not in ("auto", "reference")]


def draw(*shape: int, seed: int = 0, device: str = "cpu") -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator).to(device)


def cases(device: str) -> Iterator[tuple[str, Callable[[Any], tuple[Any, ...]], list[Tensor]]]:
    """Op, a function from the tensors to its arguments, and the tensors that get gradients."""
    x = [draw(9, 32, device=device), draw(32, seed=1, device=device)]
    yield "rms_norm", lambda t: (t[0], t[1], 1e-6), x
    angles = draw(7, 4, seed=2, device=device)
    yield "rope", lambda t: (t[0], angles.cos(), angles.sin()), [draw(7, 3, 8, device=device)]
    yield "rope", lambda t: (t[0], angles.cos(), angles.sin()), [draw(7, 8, device=device)]
    for q_lens, kv_lens in (((5, 1, 9), (5, 1, 9)), ((1, 4), (6, 9))):
        new, total = sum(q_lens), sum(kv_lens)
        tensors = [
            draw(new, 2, 12, device=device), draw(total, 2, 12, seed=1, device=device),
            draw(total, 2, 8, seed=2, device=device),
        ]  # fmt: skip
        yield (
            "attend_expanded",
            lambda t, q=q_lens, kv=kv_lens: (*t, q, kv, 0.3),
            tensors,
        )
    table = torch.tensor([[3, 1], [2, 0]], dtype=torch.int32, device=device)
    cache = draw(4, BLOCK_SIZE, 24, seed=5, device=device)
    for kv_len, lengths in (((70, 3), (1, 1)), ((70, 64), (4, 2))):
        sizes = torch.tensor(kv_len, dtype=torch.int32, device=device)
        new = sum(lengths)
        yield (
            "attend_absorbed",
            lambda t, s=sizes, n=lengths: (t[0], t[1], cache, table, s, n, 0.2),
            [draw(new, 3, 16, device=device), draw(new, 3, 8, seed=1, device=device)],
        )
    mlp = [draw(6, 16, device=device), *(draw(24, 16, seed=s, device=device) for s in (1, 2)),
           draw(16, 24, seed=3, device=device)]  # fmt: skip
    yield "mlp", lambda t: (t[0], MlpWeights(*t[1:])), mlp
    for width in (16, 10):  # aligned to 16 bytes, and not
        ids = torch.tensor([[0, 3], [3, 1], [0, 1], [1, 0], [3, 0]], device=device)
        tensors = [
            draw(5, 16, device=device), draw(5, 2, seed=1, device=device).abs(),
            draw(4, width, 16, seed=2, device=device), draw(4, width, 16, seed=3, device=device),
            draw(4, 16, width, seed=4, device=device),
        ]  # fmt: skip
        yield (
            "experts",
            lambda t, i=ids: (t[0], i, t[1], ExpertWeights(*t[2:])),
            tensors,
        )
    targets = torch.tensor([3, 0, 19, 7], device=device)
    weights = torch.tensor([1.0, 0.0, 2.0, 1.0], device=device)
    yield (
        "linear_cross_entropy",
        lambda t: (t[0], t[1], targets, weights),
        [draw(4, 16, device=device), draw(20, 16, seed=1, device=device)],
    )


def run(
    op: str, backend: str, device: str, arguments: Callable[[Any], tuple[Any, ...]], t: list[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    leaves = [one.clone().requires_grad_(True) for one in t]
    out = select(op, backend, device)(*arguments(leaves))
    (out * draw(*out.shape, seed=9, device=device) if out.ndim else out).sum().backward()
    return out.detach(), [leaf.grad for leaf in leaves if leaf.grad is not None]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", OTHERS)
def test_values_and_gradients_equal_the_reference(backend: str, device: str) -> None:
    seen = set()
    for op, arguments, tensors in cases(device):
        if not has(op, backend):
            continue
        seen.add(op)
        ours, our_grads = run(op, backend, device, arguments, tensors)
        expected, grads = run(op, "reference", device, arguments, tensors)
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)
        assert len(our_grads) == len(grads) == len(tensors)
        for ours_, theirs in zip(our_grads, grads, strict=True):
            torch.testing.assert_close(ours_, theirs, atol=1e-5, rtol=1e-4)
    assert {"rms_norm", "attend_expanded", "attend_absorbed", "experts"} <= seen


@pytest.mark.parametrize("backend", FINE)
def test_experts_are_deterministic_and_skip_weights_of_zero(backend: str) -> None:
    ids = torch.randint(0, 8, (64, 3), generator=torch.Generator().manual_seed(0))
    weights = draw(64, 3).abs()
    weights[::2, 1] = 0
    own = ExpertWeights(draw(8, 16, 32), draw(8, 16, 32, seed=1), draw(8, 32, 16, seed=2))
    op = select("experts", backend)
    first = op(draw(64, 32), ids, weights, own)
    assert torch.equal(first, op(draw(64, 32), ids, weights, own))
    other = ids.clone()
    other[::2, 1] = (other[::2, 1] + 1) % 8
    torch.testing.assert_close(first, op(draw(64, 32), other, weights, own), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("backend", FINE)
def test_latents_are_written_at_their_slots_alone(backend: str) -> None:
    cache = torch.zeros(3, BLOCK_SIZE, 4)
    slots = torch.tensor([0, 130, 64], dtype=torch.int32)
    latent = draw(3, 4)
    select("write_latent", backend)(cache, slots, latent)
    flat = cache.view(-1, 4)
    assert torch.equal(flat[slots.long()], latent)
    assert int((flat != 0).any(1).sum()) == 3


def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ShapeError, match="axis"):
        select("attend_expanded", "reference")(
            draw(3, 2, 8), draw(3, 2, 7), draw(3, 2, 4), (3,), (3,), 1.0
        )


def test_a_backend_asked_for_by_name_runs_or_raises() -> None:
    with pytest.raises(BackendError, match="nosuch"):
        select("mlp", "nosuch")
    with pytest.raises(BackendError, match="no_such_op"):
        select("no_such_op", "reference")
    with pytest.raises(BackendError, match="already"):
        implements("mlp", "reference")(lambda: None)


@pytest.mark.parametrize("device", DEVICES)
def test_the_optimiser_equals_the_reference(device: str) -> None:
    factors = AdamWFactors(rate=0.01, beta1=0.9, beta2=0.95, eps=1e-8, decay=0.1)
    scale = torch.tensor(0.7, device=device)
    for backend in ("torch", "auto"):
        states = []
        for name in (backend, "reference"):
            weight = draw(20, 30, device=device).bfloat16()
            master, mean, square = weight.float(), *torch.zeros(2, 20, 30, device=device)
            for step in (1, 2, 3):
                gradient = draw(20, 30, seed=step, device=device).bfloat16()
                select("adamw", name, device)(
                    weight, master, gradient, mean, square, factors, step, scale
                )
            assert torch.equal(weight, master.bfloat16())
            states.append((master, mean, square))
        for ours, theirs in zip(*states, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
