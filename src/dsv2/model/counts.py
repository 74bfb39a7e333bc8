"""Parameters, operations and cache bytes of a model, from its configuration alone."""

from __future__ import annotations

from dataclasses import dataclass

from dsv2.model.config import ModelConfig

CACHE_BITS = {"fp32": 32.0, "bf16": 16.0, "int8": 8.0, "6-bit": 6.0}
"""Bits per cached element; the report caches in 6 bits on average (section 3.2.3)."""

PUBLISHED_GPU_HOURS = {"DeepSeek 67B": 300.6e3, "DeepSeek-V2": 172.8e3}
"""H800 GPU hours per trillion training tokens, as measured and published (section 3.2.3)."""


@dataclass(frozen=True)
class DenseConfig:
    """A dense model with grouped-query attention, to compare with."""

    name: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int


DENSE_67B = DenseConfig(
    name="DeepSeek 67B",
    vocab_size=102400,
    hidden_size=8192,
    intermediate_size=22016,
    num_hidden_layers=95,
    num_attention_heads=64,
    num_key_value_heads=8,
    head_dim=128,
)
"""The dense model that the report measures V2 against."""


@dataclass(frozen=True)
class Counts:
    """The size of a model.

    Attributes:
        total: parameters.
        active: parameters used for a token, input embedding and head included.
        active_without_embedding: the same without the input embedding, which is a look-up.
        cache_elements: elements cached per token over all layers.
        score_width: multiply-adds per head pair of query and key token and layer, times heads.
        layers: layers.
    """

    total: int
    active: int
    active_without_embedding: int
    cache_elements: int
    score_width: int
    layers: int

    def forward_flops(self, context: int) -> int:
        """Floating-point operations of one token behind ``context`` others: two per parameter
        that multiplies, and two per score and per weighted value of each head."""
        return 2 * self.active_without_embedding + 2 * self.layers * self.score_width * context

    def training_flops(self, sequence: int) -> int:
        """Operations per trained token: forward and twice that backward, at the mean context of a
        causal sequence of ``sequence`` tokens."""
        return 3 * self.forward_flops(sequence // 2)

    def cache_bytes(self, kind: str) -> float:
        """Cached bytes per token at a dtype of :data:`CACHE_BITS`."""
        return self.cache_elements * CACHE_BITS[kind] / 8


def count(config: ModelConfig) -> Counts:
    """Count a model of this architecture (report, table 1 and section 3.1.2)."""
    d, heads = config.hidden_size, config.num_attention_heads
    latent, queries = config.kv_lora_rank, heads * config.qk_head_dim
    if config.q_lora_rank is None:
        attention = queries * d
    else:
        attention = config.q_lora_rank * (d + 1 + queries)
    attention += config.cache_width * d + latent
    attention += heads * (config.qk_nope_head_dim + config.v_head_dim) * latent
    attention += d * heads * config.v_head_dim
    total = active = 0
    for layer in range(config.num_hidden_layers):
        if config.is_moe_layer(layer):
            expert = 3 * d * (config.moe_intermediate_size or 0)
            routed, chosen = config.n_routed_experts or 0, config.num_experts_per_tok or 0
            every = config.num_shared_experts * expert + routed * d
            every += routed if config.router.selection_bias else 0
            total += every + routed * expert
            active += every + chosen * expert
        else:
            total += 3 * d * config.intermediate_size
            active += 3 * d * config.intermediate_size
    shared = config.num_hidden_layers * (attention + 2 * d) + d
    head = config.vocab_size * d
    tied = config.tie_word_embeddings
    return Counts(
        total=total + shared + head * (1 if tied else 2),
        active=active + shared + head * (1 if tied else 2),
        active_without_embedding=active + shared + head,
        cache_elements=config.cache_width * config.num_hidden_layers,
        score_width=heads * (config.qk_head_dim + config.v_head_dim),
        layers=config.num_hidden_layers,
    )


def count_dense(config: DenseConfig) -> Counts:
    """Count a dense model with grouped-query attention and SwiGLU."""
    d, width = config.hidden_size, config.head_dim
    attention = 2 * d * width * (config.num_attention_heads + config.num_key_value_heads)
    layer = attention + 3 * d * config.intermediate_size + 2 * d
    head = config.vocab_size * d
    total = config.num_hidden_layers * layer + d + 2 * head
    return Counts(
        total=total,
        active=total,
        active_without_embedding=total - head,
        cache_elements=2 * config.num_key_value_heads * width * config.num_hidden_layers,
        score_width=2 * config.num_attention_heads * width,
        layers=config.num_hidden_layers,
    )


def saving(new: float, old: float) -> float:
    """The share of ``old`` that ``new`` spares, e.g. 0.933."""
    return 1 - new / old
