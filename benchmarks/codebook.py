"""Fits the 16 levels of the 4-bit format to groups of 64 normal numbers.

    python benchmarks/codebook.py

Lloyd's algorithm with a scale per group: given the levels, each group takes the scale of either
sign that leaves the least squared error; given scales and codes, each level is the least-squares
value of its weights. The levels end in -127 and are rounded to integers at the end. The optimum is
flat: levels one or two units apart leave the same error.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dsv2.kernels.formats import CODEBOOK

GROUPS, ROUNDS = 20_000, 40
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
    return levels, float(error)


def main() -> None:
    levels, error = fit()
    print("fitted", [round(level) for level in levels.tolist()], f"relative RMSE {error:.4f}")
    x = torch.randn(GROUPS, 64, generator=torch.Generator().manual_seed(1))
    for name, own in (
        ("shipped", torch.tensor(CODEBOOK, dtype=torch.float32)),
        ("uniform", torch.arange(-8.0, 8.0)),
    ):
        print(f"{name}: relative RMSE {float(best_scales(x, own)[1]):.4f} on other numbers")


if __name__ == "__main__":
    main()
