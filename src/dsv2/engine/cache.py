"""The memory of the latent cache: one paged tensor per layer."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dsv2.kernels.latent import latent_format
from dsv2.model.config import ModelConfig
from dsv2.shapes import BLOCK_SIZE


def token_bytes(config: ModelConfig, cache_format: str) -> int:
    """Bytes that a token takes in the cache of all layers.

    Raises:
        ValueError: the format is unknown.
    """
    kind = latent_format(cache_format)
    each = kind.token_bytes(config.kv_lora_rank, config.qk_rope_head_dim)
    return each * config.num_hidden_layers


def block_bytes(config: ModelConfig, cache_format: str) -> int:
    """Bytes of one block in all layers."""
    return BLOCK_SIZE * token_bytes(config, cache_format)


def allocate_cache(
    config: ModelConfig, num_blocks: int, cache_format: str, device: torch.device
) -> list[Tensor]:
    """For each layer ``[num_blocks, 64, width]``; the system commits CPU pages on first use.

    Raises:
        ValueError: the format is unknown.
    """
    kind = latent_format(cache_format)
    width = kind.width(config.kv_lora_rank, config.qk_rope_head_dim)
    shape = (num_blocks, BLOCK_SIZE, width)
    return [_zeros(shape, kind.dtype, device) for _ in range(config.num_hidden_layers)]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # torch writes its zeros; numpy's come from the system, which hands out pages when they are
    # first touched. A cache for 160,000 tokens then costs what is in use.
    bare = np.zeros((*shape[:-1], shape[-1] * dtype.itemsize), dtype=np.uint8)
    return torch.from_numpy(bare).view(dtype)
