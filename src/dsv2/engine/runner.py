"""Runs the model over a step's batch, with the cache it owns."""

from __future__ import annotations

import torch
from torch import Tensor

from dsv2.engine.cache import allocate_cache
from dsv2.kernels.registry import select
from dsv2.model.packed import PackedModel
from dsv2.model.transformer import Transformer
from dsv2.ragged import RaggedBatch


class Runner:
    """A model and ``num_blocks`` blocks of latent cache in the format that it asks for."""

    def __init__(self, model: Transformer | PackedModel, num_blocks: int) -> None:
        self.model = model
        self.device = model.device
        if isinstance(model, Transformer):
            select("attention_block", model.backend, self.device.type)  # Unavailable? Say so now.
        self._cache = allocate_cache(model.config, num_blocks, model.cache_format, self.device)

    @torch.inference_mode()
    def forward(self, batch: RaggedBatch) -> Tensor:
        """Write the batch's latents and return the last hidden states ``[T, D]``."""
        if isinstance(self.model, Transformer):
            return self.model.hidden(batch, self._cache)[0]
        return self.model.hidden(batch, self._cache)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """fp32 logits ``[L, vocabulary]`` of rows of :meth:`forward`'s result."""
        return self.model.logits(hidden)
