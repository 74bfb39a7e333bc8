"""The whole model: embedding, layers of attention and feed-forward, norm, head.

State goes in as an argument and by-products come out as return values; the model allocates
nothing that outlives a call and knows no device but its parameters'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsv2.kernels.registry import chosen, select
from dsv2.model.balance import Balance
from dsv2.model.config import ModelConfig
from dsv2.model.mla import Attention, parameter
from dsv2.model.moe import LayerStats, Mlp, MoE
from dsv2.model.rope import inverse_frequencies, rotation
from dsv2.ragged import RaggedBatch


@dataclass(frozen=True)
class ForwardStats:
    """By-products of a forward.

    Attributes:
        layers: routing of each MoE layer, by layer index.
    """

    layers: dict[int, LayerStats]

    @property
    def balance_loss(self) -> Tensor | None:
        """Sum of the layers' balance losses, or None when no strategy was given."""
        losses = [stats.loss for stats in self.layers.values() if stats.loss is not None]
        return torch.stack(losses).sum() if losses else None

    @property
    def expert_counts(self) -> Tensor:
        """``[layers, E]`` int64 tokens of each expert; the model must have MoE layers."""
        return torch.stack([stats.counts for stats in self.layers.values()])


class Layer(nn.Module):
    """Pre-norm attention and feed-forward with residuals."""

    def __init__(self, config: ModelConfig, index: int, backend: str) -> None:
        super().__init__()
        self.eps, self.backend = config.rms_norm_eps, backend
        self.attn_norm = parameter(config.hidden_size)
        self.attn = Attention(config, backend)
        self.ffn_norm = parameter(config.hidden_size)
        self.ffn: MoE | Mlp
        if config.is_moe_layer(index):
            self.ffn = MoE(config, backend)
        else:
            self.ffn = Mlp(config.hidden_size, config.intermediate_size, backend)

    def forward(
        self, x: Tensor, turn: tuple[Tensor, Tensor], batch: RaggedBatch, cache: Tensor | None,
        form: str, balance: Balance | None,
    ) -> tuple[Tensor, LayerStats | None]:  # fmt: skip
        """``x`` ``[T, D]`` -> ``[T, D]``, with routing stats from a MoE layer."""
        return self.feed(self.attend(x, turn, batch, cache, form), balance)

    def attend(
        self, x: Tensor, turn: tuple[Tensor, Tensor], batch: RaggedBatch, cache: Tensor | None,
        form: str,
    ) -> Tensor:  # fmt: skip
        """Attention, its norm and residual: ``x`` ``[T, D]`` -> ``[T, D]``."""
        norm = select("rms_norm", self.backend, x.device.type)
        return x + self.attn(norm(x, self.attn_norm, self.eps), turn, batch, cache, form)

    def feed(self, x: Tensor, balance: Balance | None) -> tuple[Tensor, LayerStats | None]:
        """Feed-forward, its norm and residual: ``x`` ``[T, D]`` -> ``[T, D]``, and its stats."""
        norm = select("rms_norm", self.backend, x.device.type)
        normed = norm(x, self.ffn_norm, self.eps)
        if isinstance(self.ffn, MoE):
            out, stats = self.ffn(normed, balance)
            return x + out, stats
        return x + self.ffn(normed), None


class Transformer(nn.Module):
    """A model of the DeepSeek-V2 architecture, on one device.

    Parameters are made uninitialised, on the current default device and in the default dtype; see
    :func:`dsv2.model.init.init_weights` and :func:`dsv2.checkpoint.load_model`.
    """

    head: nn.Parameter | None

    def __init__(self, config: ModelConfig, *, backend: str = "auto") -> None:
        super().__init__()
        self.config = config
        self.backend = backend
        self.embed = parameter(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            Layer(config, index, backend) for index in range(config.num_hidden_layers)
        )
        self.norm = parameter(config.hidden_size)
        self.head = (
            None if config.tie_word_embeddings else parameter(config.vocab_size, config.hidden_size)
        )
        self._frequencies: Tensor | None = None

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.embed.device

    @property
    def cache_format(self) -> str:
        """The format of a latent cache for this model: the dtype of its weights."""
        return str(self.embed.dtype).removeprefix("torch.")

    @property
    def description(self) -> str:
        """Format of the weights and what computes."""
        backend = chosen("attention_block", self.backend, self.device.type)
        return f"{str(self.embed.dtype).removeprefix('torch.')}, ops of {backend}"

    def frequencies(self, device: torch.device) -> Tensor:
        """The rotary frequencies ``[R/2]`` fp32 on ``device``; they belong to no checkpoint."""
        if self._frequencies is None or self._frequencies.device != device:
            with torch.device("cpu"):
                self._frequencies = inverse_frequencies(self.config)
            self._frequencies = self._frequencies.to(device)
        return self._frequencies

    def hidden(
        self, batch: RaggedBatch, cache: Sequence[Tensor] | None = None, *, form: str = "auto",
        balance: Balance | None = None,
    ) -> tuple[Tensor, ForwardStats]:  # fmt: skip
        """The normed last hidden state ``[T, D]`` of every token.

        Args:
            batch: the tokens; with ``cache`` also their block tables and slots.
            cache: for each layer the paged latent ``[P, 64, C+R]``, written in place.
            form: ``auto``, ``expanded`` or ``absorbed`` attention.
            balance: the training strategy to apply in MoE layers.

        Raises:
            ValueError: the cache does not have one tensor per layer.
        """
        if cache is not None and len(cache) != len(self.layers):
            raise ValueError(f"cache has {len(cache)} layers, the model has {len(self.layers)}")
        x = F.embedding(batch.tokens, self.embed)  # T D
        turn = rotation(self.config, self.frequencies(x.device), batch.positions)
        stats: dict[int, LayerStats] = {}
        for index, layer in enumerate(self.layers):
            own_cache = None if cache is None else cache[index]
            x, layer_stats = layer(x, turn, batch, own_cache, form, balance)
            if layer_stats is not None:
                stats[index] = layer_stats
        norm = select("rms_norm", self.backend, x.device.type)
        return norm(x, self.norm, self.config.rms_norm_eps), ForwardStats(stats)

    def logits(self, hidden: Tensor) -> Tensor:
        """fp32 logits ``[.., vocab]`` of hidden states ``[.., D]``."""
        return F.linear(hidden, self.embed if self.head is None else self.head).float()

    def forward(
        self, batch: RaggedBatch, cache: Sequence[Tensor] | None = None, *, form: str = "auto",
        balance: Balance | None = None,
    ) -> tuple[Tensor, ForwardStats]:  # fmt: skip
        """fp32 logits ``[L, vocab]`` of ``batch.logit_rows`` (all T when None), and stats."""
        hidden, stats = self.hidden(batch, cache, form=form, balance=balance)
        if batch.logit_rows is not None:
            hidden = hidden[batch.logit_rows.long()]
        return self.logits(hidden), stats
