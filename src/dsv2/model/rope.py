"""Rotary frequencies with YaRN's context extension (report, section 3.1.4)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dsv2.model.config import ModelConfig, yarn_mscale


def inverse_frequencies(config: ModelConfig) -> Tensor:
    """Angle per position of each rotated pair, ``[R/2]`` fp32.

    Pairs that turn more than ``beta_fast`` times within the original context keep their
    frequency, those that turn less than ``beta_slow`` times are slowed by ``factor``, and the ones
    between are mixed linearly. YaRN holds at every length, short prompts included.
    """
    width, base = config.qk_rope_head_dim, config.rope_theta
    pair = torch.arange(0, width, 2, dtype=torch.float32)
    fast = 1.0 / base ** (pair / width)  # R/2
    yarn = config.rope_scaling
    if yarn is None:
        return fast

    def pair_with(turns: float) -> float:
        wavelength = yarn.original_max_position_embeddings / (turns * 2 * math.pi)
        return width * math.log(wavelength) / (2 * math.log(base))

    low = max(math.floor(pair_with(yarn.beta_fast)), 0)
    high = min(math.ceil(pair_with(yarn.beta_slow)), width - 1)
    span = high - low if high != low else 0.001
    ramp = ((torch.arange(width // 2, dtype=torch.float32) - low) / span).clamp(0, 1)
    return fast / yarn.factor * ramp + fast * (1 - ramp)


def rotation(config: ModelConfig, frequencies: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """``cos`` and ``sin`` ``[T, R/2]`` fp32 of ``positions`` ``[T]``.

    Both carry the ratio of YaRN's two mscales, which is 1 in every published V2 configuration.
    """
    angles = positions.float().unsqueeze(-1) * frequencies  # T R/2
    yarn, ratio = config.rope_scaling, 1.0
    if yarn is not None:
        ratio = yarn_mscale(yarn.factor, yarn.mscale)
        ratio /= yarn_mscale(yarn.factor, yarn.mscale_all_dim)
    if ratio == 1.0:
        return angles.cos(), angles.sin()
    return angles.cos() * ratio, angles.sin() * ratio
