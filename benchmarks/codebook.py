"""Fits the 16 levels of the 4-bit format to groups of 64 normal numbers.

    python benchmarks/codebook.py

Lloyd's algorithm with a scale per group: given the levels, each group takes the scale of either
sign that leaves the least squared error; given scales and codes, each level is the least-squares
value of its weights. At the end they become integers that span less than SPAN: those of all widths
whose error is least.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dsv2.kernels.formats import CODEBOOK

GROUPS, ROUNDS, SPAN = 20_000, 40, 64
FACTORS = [0.78 + 0.02 * step for step in range(20)]


def best_scales(x: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """For groups ``[n, 64]`` their scales ``[n, 1]`` and the root mean squared error."""
    middles = (levels[1:] + levels[:-1]) / 2
    extreme = x.gather(1, x.abs().argmax(1, keepdim=True)) / levels[0]
    scales = extreme
    least = torch.full_like(extreme, torch.inf)
    for factor in FACTORS:
        for scale in (extreme * factor, -extreme * factor):
            off = levels[torch.bucketize(x / scale, middles)] * scale - x
            error = off.square().sum(1, keepdim=True)
            scales = torch.where(error < least, scale, scales)
            least = torch.minimum(error, least)
    return scales, (least.mean() / x.shape[1]).sqrt()


def rounded(x: Tensor, levels: Tensor) -> Tensor:
    """The levels as integers that span less than SPAN, each width tried on groups ``[n, 64]``."""
    width = float(levels[-1] - levels[0])
    tried = [(levels * (span / 4 / width)).round() for span in range(3 * SPAN, 4 * SPAN + 4)]
    allowed = [own for own in tried if own[-1] - own[0] < SPAN and len(own.unique()) == 16]
    return min(allowed, key=lambda own: float(best_scales(x, own)[1]))


def fit() -> tuple[Tensor, float]:
    """The levels, and their relative RMSE on the numbers they were fitted to."""
    x = torch.randn(GROUPS, 64, generator=torch.Generator().manual_seed(0))
    levels = torch.linspace(-127, 113, 16)
    error = torch.tensor(0.0)
    for _ in range(ROUNDS):
        scales, error = best_scales(x, levels)
        codes = torch.bucketize(x / scales, (levels[1:] + levels[:-1]) / 2).flatten()
        power = torch.zeros(16).index_add_(0, codes, scales.square().expand_as(x).flatten())
        levels = torch.zeros(16).index_add_(0, codes, (x * scales).flatten()) / power
        levels = levels * (127 / levels.abs().max())
        if levels[0].abs() < levels[-1].abs():
            levels = -levels.flip(0)
    print(f"before rounding: relative RMSE {float(error):.4f}")
    levels = rounded(x, levels)
    return levels, float(best_scales(x, levels)[1])


def main() -> None:
    levels, error = fit()
    print("fitted", levels.int().tolist(), f"relative RMSE {error:.4f}")
    x = torch.randn(GROUPS, 64, generator=torch.Generator().manual_seed(1))
    for name, own in (
        ("shipped", torch.tensor(CODEBOOK, dtype=torch.float32)),
        ("uniform", torch.arange(-8.0, 8.0)),
    ):
        print(f"{name}: relative RMSE {float(best_scales(x, own)[1]):.4f} on other numbers")


if __name__ == "__main__":
    main()
