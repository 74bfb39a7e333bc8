"""Runs the model over a step's batch, with the cache it owns."""

from __future__ import annotations

import torch
from torch import Tensor

from dsv2.engine.cache import allocate_cache
from dsv2.engine.graphs import DecodeGraphs, is_decode
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
        # On a GPU there is one block more, which the rows that pad a graph write to.
        graphs = isinstance(model, PackedModel) and self.device.type == "cuda"
        self._cache = allocate_cache(
            model.config, num_blocks + graphs, model.cache_format, self.device
        )
        self._graphs: DecodeGraphs | None = None
        if isinstance(model, PackedModel) and graphs:
            self._graphs = DecodeGraphs(model, self._cache, num_blocks)

    @torch.inference_mode()
    def forward(self, batch: RaggedBatch) -> Tensor:
        """Write the batch's latents and return the last hidden states ``[T, D]``.

        On a GPU those of generated tokens are valid until the next call.
        """
        if isinstance(self.model, Transformer):
            return self.model.hidden(batch, self._cache)[0]
        if self._graphs is not None and is_decode(batch):
            return self._graphs.hidden(batch)
        return self.model.hidden(batch, self._cache)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """fp32 logits ``[L, vocabulary]`` of rows of :meth:`forward`'s result."""
        return self.model.logits(hidden)
