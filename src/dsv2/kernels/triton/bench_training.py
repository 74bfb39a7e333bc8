"""The kernels of a training step beside attention and experts: right, and how fast."""

from __future__ import annotations

import torch
from torch import Tensor

from dsv2.kernels import reference
from dsv2.kernels.ops import AdamWFactors
from dsv2.kernels.triton.adamw import adamw
from dsv2.kernels.triton.bench import KernelBench, relative
from dsv2.kernels.triton.cross_entropy import linear_cross_entropy
from dsv2.kernels.triton.rms_norm import rms_norm

EPS = 1e-6


def bench_training(bench: KernelBench) -> None:
    """Norm, loss and update at the sizes of V2-Lite."""
    bench.attempt("rms_norm", "", "", lambda: _norm(bench))
    bench.attempt("linear_cross_entropy", "", "", lambda: _loss(bench))
    bench.attempt("adamw", "", "", lambda: _adamw(bench))


def _norm(bench: KernelBench) -> None:
    tokens, width = (40, 96) if bench.tiny else (8192, 2048)
    x, grad = bench.normal(tokens, width).requires_grad_(), bench.normal(tokens, width)
    weight = torch.rand(width, device=bench.device).to(bench.dtype).requires_grad_()

    def call() -> tuple[Tensor, ...]:
        return torch.autograd.grad(rms_norm(x, weight, EPS), (x, weight), grad)

    row, gain = (part.detach().float().requires_grad_() for part in (x, weight))
    expected = torch.autograd.grad(reference.rms_norm(row, gain, EPS), (row, gain), grad.float())
    error = max(relative(own, true) for own, true in zip(call(), expected, strict=True))
    # Forward reads and writes a row; backward reads two and writes one.
    moved = 5.0 * x.nbytes
    bench.record("rms_norm", f"{tokens} tokens", "forward and backward", [call], moved, 0.0, error)


def _loss(bench: KernelBench) -> None:
    tokens, width, vocabulary = (40, 64, 500) if bench.tiny else (8192, 2048, 102_400)
    hidden = bench.normal(tokens, width).requires_grad_()
    weight = (bench.normal(vocabulary, width) / width**0.5).requires_grad_()
    targets = torch.randint(vocabulary, (tokens,), device=bench.device)
    weights = torch.full((tokens,), 1 / tokens, device=bench.device)

    def call() -> tuple[Tensor, ...]:
        loss = linear_cross_entropy(hidden, weight, targets, weights)
        return loss.detach(), *torch.autograd.grad(loss, (hidden, weight))

    some = slice(0, 64)
    leaf = hidden[some].detach().float().requires_grad_()
    part = reference.linear_cross_entropy(
        leaf, weight.detach().float(), targets[some], weights[some]
    )
    (expected,) = torch.autograd.grad(part, leaf)
    error = relative(call()[1][some], expected)
    flops = 6.0 * tokens * width * vocabulary
    bench.record(
        "linear_cross_entropy", f"{tokens} tokens", "forward and backward", [call],
        3.0 * (hidden.nbytes + weight.nbytes), flops, error,
    )  # fmt: skip


def _adamw(bench: KernelBench) -> None:
    numbers = 4096 if bench.tiny else 64 << 20
    master = torch.randn(numbers, device=bench.device)
    gradient, weight = bench.normal(numbers), master.to(bench.dtype)
    mean, square = torch.zeros_like(master), torch.zeros_like(master)
    factors = AdamWFactors(1e-3, 0.9, 0.95, 1e-8, 0.1)
    scale = torch.ones((), device=bench.device)
    some = slice(0, 1024)
    own = [part[some].clone() for part in (weight, master, gradient, mean, square)]
    reference.adamw(own[0], own[1], own[2], own[3], own[4], factors, 1, scale)

    def call() -> None:
        adamw(weight, master, gradient, mean, square, factors, 1, scale)

    call()
    error = relative(master[some], own[1])
    # Read: gradient, master, both moments; written: weight, master, both moments.
    moved = gradient.nbytes + weight.nbytes + 2.0 * (master.nbytes + mean.nbytes + square.nbytes)
    bench.record("adamw", f"{numbers} numbers", "default", [call], moved, 0.0, error)
