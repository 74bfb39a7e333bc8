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
    for _ in range(_ROUNDS):
        # int64 products wrap around, which leaves the bits of the unsigned product.
        first, second = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((second >> 32) & MASK) ^ c1 ^ k0,
            second & MASK,
            ((first >> 32) & MASK) ^ c3 ^ k1,
            first & MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & MASK, (k1 + _WEYL[1]) & MASK
    return torch.stack((c0, c1, c2, c3), -1)


def gumbel_noise(
    seeds: list[int], positions: list[int], width: int, device: torch.device
) -> Tensor:
    """Gumbel noise ``[L, width]`` fp64 of token ``positions`` under ``seeds``.

    Token ``v`` of a row takes word ``v % 4`` of the counter ``(v // 4, position, 0, 0)`` under the
    key ``(seed mod 2**32, seed >> 32)``; a word x stands for the uniform ``(x + 0.5) / 2**32``.
    """
    quads = -(-width // 4)
    key = torch.tensor([[seed & MASK, seed >> 32] for seed in seeds], device=device)  # L 2
    counter = torch.zeros(len(seeds), quads, 4, dtype=torch.int64, device=device)
    counter[..., 0] = torch.arange(quads, device=device)
    counter[..., 1] = torch.tensor(positions, device=device).unsqueeze(1)
    words = philox(key.unsqueeze(1).expand(-1, quads, -1), counter).flatten(1)[:, :width]
    uniform = (words.double() + 0.5) * 2.0**-32
    return -torch.log(-torch.log(uniform))
