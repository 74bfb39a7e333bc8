"""Multi-head latent attention (report, section 2.1): the parameters of one layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dsv2.kernels.ops import AttentionShape, AttentionWeights
from dsv2.kernels.registry import select
from dsv2.model.config import ModelConfig
from dsv2.ragged import RaggedBatch


def parameter(*shape: int) -> nn.Parameter:
    """An uninitialised parameter on the default device, in the default dtype."""
    return nn.Parameter(torch.empty(*shape))


def attention_shape(config: ModelConfig, form: str) -> AttentionShape:
    """The sizes and constants of a model's attention."""
    return AttentionShape(
        heads=config.num_attention_heads,
        nope=config.qk_nope_head_dim,
        rope=config.qk_rope_head_dim,
        value=config.v_head_dim,
        scale=config.softmax_scale,
        # The published code builds both latent norms with the class default, not with
        # rms_norm_eps; every published file has the same number in both places.
        eps=1e-6,
        form=form,
    )


class Attention(nn.Module):
    """One MLA layer, with or without query compression; see :class:`AttentionWeights`."""

    wq: nn.Parameter | None
    wq_a: nn.Parameter | None
    q_norm: nn.Parameter | None
    wq_b: nn.Parameter | None

    def __init__(self, config: ModelConfig, backend: str) -> None:
        super().__init__()
        self.config = config
        self.backend = backend
        hidden, heads, latent = config.hidden_size, config.num_attention_heads, config.kv_lora_rank
        queries = heads * config.qk_head_dim
        if config.q_lora_rank is None:
            self.wq = parameter(queries, hidden)
            self.wq_a = self.q_norm = self.wq_b = None
        else:
            self.wq = None
            self.wq_a = parameter(config.q_lora_rank, hidden)
            self.q_norm = parameter(config.q_lora_rank)
            self.wq_b = parameter(queries, config.q_lora_rank)
        self.wkv_a = parameter(config.cache_width, hidden)
        self.kv_norm = parameter(latent)
        self.wkv_b = parameter(heads * (config.qk_nope_head_dim + config.v_head_dim), latent)
        self.wo = parameter(hidden, heads * config.v_head_dim)

    def weights(self) -> AttentionWeights:
        """The parameters as the ops take them."""
        return AttentionWeights(
            wkv_a=self.wkv_a, kv_norm=self.kv_norm, wkv_b=self.wkv_b, wo=self.wo,
            wq=self.wq, wq_a=self.wq_a, q_norm=self.q_norm, wq_b=self.wq_b,
        )  # fmt: skip

    def forward(
        self, x: Tensor, rotation: tuple[Tensor, Tensor], batch: RaggedBatch,
        cache: Tensor | None, form: str,
    ) -> Tensor:  # fmt: skip
        """``x`` ``[T, D]`` -> ``[T, D]``; the latent is written to ``cache`` when there is one."""
        shape = attention_shape(self.config, form)
        block = select("attention_block", self.backend, x.device.type)
        out: Tensor = block(x, self.weights(), shape, *rotation, batch, cache)
        return out
