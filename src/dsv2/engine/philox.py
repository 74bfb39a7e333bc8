"""Philox4x32-10, a random function of (seed, counter): the same numbers on every backend.

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011).
"""

from __future__ import annotations

import torch
from torch import Tensor

MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def philox(key: Tensor, counter: Tensor) -> Tensor:
    """Random 32-bit words.

    Args:
        key: ``[.., 2]`` int64 words below 2**32.
        counter: ``[.., 4]`` int64 words below 2**32.

    Returns:
        ``[.., 4]`` int64 words below 2**32.
    """
    k0, k1 = key.unbind(-1)
    c0, c1, c2, c3 = counter.unbind(-1)
    return torch.stack(_rounds(k0, k1, c0, c1, c2, c3), -1)


def _rounds(
    k0: Tensor, k1: Tensor, c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The words of shapes that broadcast; narrow ones stay so as long as they can."""
    for _ in range(_ROUNDS):
        # int64 products wrap around, which leaves the bits of the unsigned product.
        first, second = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((second >> 32) & MASK) ^ (c1 ^ k0),
            second & MASK,
            ((first >> 32) & MASK) ^ (c3 ^ k1),
            first & MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & MASK, (k1 + _WEYL[1]) & MASK
    return c0, c1, c2, c3


def gumbel_noise(seeds: Tensor, positions: Tensor, width: int) -> Tensor:
    """Gumbel noise of the tokens at ``positions`` under ``seeds``.

    Token ``v`` of a row takes word ``v % 4`` of the counter ``(v // 4, position, 0, 0)`` under the
    key ``(seed mod 2**32, seed >> 32)``; a word x stands for the uniform ``(x + 0.5) / 2**32``.

    Args:
        seeds: ``[L]`` int64, not negative.
        positions: ``[L]`` int64.
        width: of the vocabulary.

    Returns:
        ``[L, width]`` fp64 on the device of the arguments, which a CUDA graph may compute.
    """
    quads = torch.arange(-(-width // 4), device=seeds.device)
    zero = torch.zeros(1, dtype=torch.int64, device=seeds.device)
    rows = seeds.unsqueeze(1)  # L 1
    words = _rounds(rows & MASK, rows >> 32, quads, positions.unsqueeze(1), zero, zero)
    uniform = torch.stack(words, -1).flatten(1)[:, :width].double().add_(0.5).mul_(2.0**-32)
    return uniform.log_().neg_().log_().neg_()
