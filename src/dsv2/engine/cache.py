"""The memory of the latent cache: one paged tensor per layer."""

from __future__ import annotations

import torch
from torch import Tensor

from dsv2.model.config import ModelConfig
from dsv2.shapes import BLOCK_SIZE


def block_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes of one block in all layers."""
    elements = BLOCK_SIZE * config.cache_width * config.num_hidden_layers
    return elements * torch.empty((), dtype=dtype).element_size()


def allocate_cache(
    config: ModelConfig, num_blocks: int, dtype: torch.dtype, device: torch.device
) -> list[Tensor]:
    """For each layer ``[num_blocks, 64, C+R]``; the system commits CPU pages on first use."""
    shape = (num_blocks, BLOCK_SIZE, config.cache_width)
    return [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_hidden_layers)]
