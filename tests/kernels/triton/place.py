"""Where Triton's kernels are tested: on the GPU, else in the interpreter on CPU tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HALF = torch.bfloat16 if DEVICE.type == "cuda" else torch.float16
"""The interpreter multiplies no bf16."""


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers that depend on shape and seed alone."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator).to(DEVICE)


def lengths_to(lengths: Sequence[int]) -> Tensor:
    """Lengths as the int32 tensor that kernels take."""
    return torch.tensor(list(lengths), dtype=torch.int32, device=DEVICE)
