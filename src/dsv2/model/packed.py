"""The model for inference: weights packed once for one backend, layers run in one call each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor

from dsv2.kernels.executor import (
    AttentionLayer,
    Executor,
    LayerHandles,
    Mlp,
    MlpLayer,
    MoeLayer,
    RoutingShape,
)
from dsv2.kernels.interleaved import StoredWeight
from dsv2.kernels.latent import latent_format
from dsv2.model.config import ModelConfig
from dsv2.model.mla import attention_shape
from dsv2.model.rope import inverse_frequencies, rotation
from dsv2.model.transformer import ForwardStats
from dsv2.ragged import PlannedDecode, RaggedBatch

Fetch = Callable[[str], StoredWeight]
"""Gives a parameter by its name in the model, such as ``layers.3.attn.wq``."""


class PackedModel:
    """What :class:`dsv2.model.transformer.Transformer` computes, without gradients.

    Parameters are fetched layer by layer and packed, so that besides the packed ones at most one
    layer's exist.

    Args:
        config: the model's.
        executor: packs and computes.
        fetch: gives the parameters; routed experts come stacked ``[E, F, D]``.
        weights: name of the weights' format, for people.
        cache_format: of the latent cache that the engine is to allocate, a name of
            :data:`dsv2.kernels.latent.LATENT_FORMATS`.
        progress: called with the layers done and their number.
    """

    def __init__(
        self,
        config: ModelConfig,
        executor: Executor,
        fetch: Fetch,
        *,
        weights: str,
        cache_format: str,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.config, self.executor, self.weights = config, executor, weights
        self.cache_format = latent_format(cache_format).name
        self.device = executor.device
        self._embed = executor.pack_linear(fetch("embed"))
        self._layers: list[LayerHandles] = []
        for index in range(config.num_hidden_layers):
            attention = executor.pack_attention(_attention(config, fetch, f"layers.{index}."))
            is_moe = config.is_moe_layer(index)
            if is_moe:
                feed = executor.pack_moe(_moe(config, fetch, f"layers.{index}."))
            else:
                feed = executor.pack_mlp(_mlp(config, fetch, f"layers.{index}."))
            self._layers.append(LayerHandles(attention, feed, is_moe))
            if progress is not None:
                progress(index + 1, config.num_hidden_layers)
        self._stack = executor.stack(self._layers)
        self._norm = _tensor(fetch("norm")).float().to(self.device)
        self._head = (
            self._embed if config.tie_word_embeddings else executor.pack_linear(fetch("head"))
        )
        self._frequencies = inverse_frequencies(config).to(self.device)

    def with_cache(self, cache_format: str) -> PackedModel:
        """The same packed weights, for a latent cache of another format.

        Raises:
            ValueError: the format is unknown.
        """
        other = copy(self)
        other.cache_format = latent_format(cache_format).name
        return other

    @property
    def description(self) -> str:
        """Format of the weights and what computes."""
        return f"{self.weights}, ops of {self.executor.description}"

    @torch.inference_mode()
    def hidden(self, batch: RaggedBatch, cache: Sequence[Tensor], *, form: str = "auto") -> Tensor:
        """The last hidden state ``[T, D]`` fp32 before the final norm.

        Raises:
            ValueError: the cache does not have one tensor per layer.
        """
        if len(cache) != len(self._layers):
            raise ValueError(f"cache has {len(cache)} layers, the model has {len(self._layers)}")
        step = self.begin(batch, form)
        x = self.executor.embed(self._embed, batch.tokens)  # T D
        self.executor.run(self._stack, x, step, cache)
        return x

    def begin(self, batch: RaggedBatch, form: str = "auto") -> Any:
        """What the layers share of a batch, for :meth:`attend`."""
        cos, sin = rotation(self.config, self._frequencies, batch.positions)
        return self.executor.begin(batch, cos, sin, form, self.cache_format)

    def plan_decode(self, cache: Sequence[Tensor], rows: int, width: int) -> PlannedDecode | None:
        """For captured steps of a shape; see :meth:`dsv2.kernels.executor.Executor.plan_decode`."""
        return self.executor.plan_decode(
            self._layers[0].attention, cache[0], self.cache_format, rows, width
        )

    def attend(self, index: int, x: Tensor, step: Any, cache: Tensor) -> None:
        """Layer ``index``'s attention, its norm and residual, in place on ``x`` ``[T, D]``."""
        self.executor.attention(self._layers[index].attention, x, step, cache)

    def feed(self, index: int, x: Tensor) -> None:
        """Layer ``index``'s feed-forward, its norm and residual, in place on ``x`` ``[T, D]``."""
        layer = self._layers[index]
        if layer.is_moe:
            self.executor.moe(layer.feed, x)
        else:
            self.executor.mlp(layer.feed, x)

    def project(self, hidden: Tensor) -> Tensor:
        """:meth:`logits` as an ordinary tensor, which autograd may keep."""
        return self.executor.linear(self._head, hidden, self._norm, self.config.rms_norm_eps)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """fp32 logits ``[.., vocab]`` of :meth:`hidden`'s rows."""
        return self.project(hidden)

    def __call__(
        self, batch: RaggedBatch, cache: Sequence[Tensor], *, form: str = "auto"
    ) -> tuple[Tensor, ForwardStats]:
        """fp32 logits ``[L, vocab]`` of ``batch.logit_rows`` (all T when None); no statistics."""
        hidden = self.hidden(batch, cache, form=form)
        if batch.logit_rows is not None:
            hidden = hidden[batch.logit_rows.long()]
        return self.logits(hidden), ForwardStats({})


def _tensor(weight: StoredWeight) -> Tensor:
    assert isinstance(weight, Tensor)
    return weight


def _attention(config: ModelConfig, fetch: Fetch, prefix: str) -> AttentionLayer:
    own = prefix + "attn."
    compressed = config.q_lora_rank is not None
    return AttentionLayer(
        norm=_tensor(fetch(prefix + "attn_norm")),
        eps=config.rms_norm_eps,
        shape=attention_shape(config, "auto"),
        wkv_a=fetch(own + "wkv_a"),
        kv_norm=_tensor(fetch(own + "kv_norm")),
        wkv_b=fetch(own + "wkv_b"),
        wo=fetch(own + "wo"),
        wq=None if compressed else fetch(own + "wq"),
        wq_a=fetch(own + "wq_a") if compressed else None,
        q_norm=_tensor(fetch(own + "q_norm")) if compressed else None,
        wq_b=fetch(own + "wq_b") if compressed else None,
    )


def _matrices(fetch: Fetch, prefix: str) -> Mlp[StoredWeight]:
    return Mlp(fetch(prefix + "w_gate"), fetch(prefix + "w_up"), fetch(prefix + "w_down"))


def _mlp(config: ModelConfig, fetch: Fetch, prefix: str) -> MlpLayer:
    norm = _tensor(fetch(prefix + "ffn_norm"))
    return MlpLayer(norm, config.rms_norm_eps, _matrices(fetch, prefix + "ffn."))


def _moe(config: ModelConfig, fetch: Fetch, prefix: str) -> MoeLayer:
    router, own = config.router, prefix + "ffn."
    return MoeLayer(
        norm=_tensor(fetch(prefix + "ffn_norm")),
        eps=config.rms_norm_eps,
        routing=RoutingShape(**router.model_dump(exclude={"selection_bias"})),
        router=_tensor(fetch(own + "router")),
        router_bias=_tensor(fetch(own + "router_bias")) if router.selection_bias else None,
        experts=_matrices(fetch, own + "experts."),
        shared=_matrices(fetch, own + "shared.") if config.num_shared_experts else None,
    )
