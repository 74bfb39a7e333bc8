"""The one table between published tensor names and the model's parameters, both ways."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dsv2.model.config import ModelConfig

_TOP = {
    "model.embed_tokens.weight": "embed",
    "model.norm.weight": "norm",
    "lm_head.weight": "head",
}
_LAYER = {
    "input_layernorm.weight": "attn_norm",
    "post_attention_layernorm.weight": "ffn_norm",
    "self_attn.q_proj.weight": "attn.wq",
    "self_attn.q_a_proj.weight": "attn.wq_a",
    "self_attn.q_a_layernorm.weight": "attn.q_norm",
    "self_attn.q_b_proj.weight": "attn.wq_b",
    "self_attn.kv_a_proj_with_mqa.weight": "attn.wkv_a",
    "self_attn.kv_a_layernorm.weight": "attn.kv_norm",
    "self_attn.kv_b_proj.weight": "attn.wkv_b",
    "self_attn.o_proj.weight": "attn.wo",
    "mlp.gate_proj.weight": "ffn.w_gate",
    "mlp.up_proj.weight": "ffn.w_up",
    "mlp.down_proj.weight": "ffn.w_down",
    "mlp.gate.weight": "ffn.router",
    "mlp.gate.e_score_correction_bias": "ffn.router_bias",
    "mlp.shared_experts.gate_proj.weight": "ffn.shared.w_gate",
    "mlp.shared_experts.up_proj.weight": "ffn.shared.w_up",
    "mlp.shared_experts.down_proj.weight": "ffn.shared.w_down",
}
_EXPERT = {"gate_proj": "w_gate", "up_proj": "w_up", "down_proj": "w_down"}

_TOP_BACK = {own: published for published, own in _TOP.items()}
_LAYER_BACK = {own: published for published, own in _LAYER.items()}
_EXPERT_BACK = {own: published for published, own in _EXPERT.items()}
_LAYER_NAME = re.compile(r"model\.layers\.(\d+)\.(.+)")
_EXPERT_NAME = re.compile(r"mlp\.experts\.(\d+)\.(gate_proj|up_proj|down_proj)\.weight")
_OWN_EXPERT = re.compile(r"ffn\.experts\.(w_gate|w_up|w_down)")


@dataclass(frozen=True)
class Place:
    """Where a published tensor lives in the model.

    Attributes:
        parameter: name of the parameter.
        expert: index into the parameter's first axis, or None for the whole of it.
    """

    parameter: str
    expert: int | None = None


def place_of(published: str) -> Place | None:
    """The place of a published tensor, or None for a name that the layout does not have."""
    if published in _TOP:
        return Place(_TOP[published])
    match = _LAYER_NAME.fullmatch(published)
    if match is None:
        return None
    layer, rest = f"layers.{int(match[1])}.", match[2]
    if rest in _LAYER:
        return Place(layer + _LAYER[rest])
    expert = _EXPERT_NAME.fullmatch(rest)
    if expert is None:
        return None
    return Place(f"{layer}ffn.experts.{_EXPERT[expert[2]]}", int(expert[1]))


def published_name(place: Place) -> str:
    """The published name of a place: the inverse of :func:`place_of`.

    Raises:
        KeyError: the model has no such parameter.
    """
    if place.parameter in _TOP_BACK:
        return _TOP_BACK[place.parameter]
    _, layer, own = place.parameter.split(".", 2)
    prefix = f"model.layers.{layer}."
    match = _OWN_EXPERT.fullmatch(own)
    if match is not None:
        return f"{prefix}mlp.experts.{place.expert}.{_EXPERT_BACK[match[1]]}.weight"
    return prefix + _LAYER_BACK[own]


def stored_names(parameter: str, shape: tuple[int, ...]) -> list[str]:
    """The published names of what makes up a parameter: one, or one for each stacked expert."""
    if ".experts." not in parameter:
        return [published_name(Place(parameter))]
    return [published_name(Place(parameter, expert)) for expert in range(shape[0])]


def published_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a published checkpoint, in the order it is written."""
    d, heads, latent = config.hidden_size, config.num_attention_heads, config.kv_lora_rank
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, d)}

    def mlp(prefix: str, width: int) -> None:
        shapes[f"{prefix}.gate_proj.weight"] = (width, d)
        shapes[f"{prefix}.up_proj.weight"] = (width, d)
        shapes[f"{prefix}.down_proj.weight"] = (d, width)

    for layer in range(config.num_hidden_layers):
        base = f"model.layers.{layer}."
        attn = base + "self_attn."
        shapes[base + "input_layernorm.weight"] = (d,)
        queries = heads * config.qk_head_dim
        if config.q_lora_rank is None:
            shapes[attn + "q_proj.weight"] = (queries, d)
        else:
            shapes[attn + "q_a_proj.weight"] = (config.q_lora_rank, d)
            shapes[attn + "q_a_layernorm.weight"] = (config.q_lora_rank,)
            shapes[attn + "q_b_proj.weight"] = (queries, config.q_lora_rank)
        shapes[attn + "kv_a_proj_with_mqa.weight"] = (config.cache_width, d)
        shapes[attn + "kv_a_layernorm.weight"] = (latent,)
        expanded = heads * (config.qk_nope_head_dim + config.v_head_dim)
        shapes[attn + "kv_b_proj.weight"] = (expanded, latent)
        shapes[attn + "o_proj.weight"] = (d, heads * config.v_head_dim)
        shapes[base + "post_attention_layernorm.weight"] = (d,)
        if not config.is_moe_layer(layer):
            mlp(base + "mlp", config.intermediate_size)
            continue
        experts, width = config.n_routed_experts or 0, config.moe_intermediate_size or 0
        shapes[base + "mlp.gate.weight"] = (experts, d)
        if config.router.selection_bias:
            shapes[base + "mlp.gate.e_score_correction_bias"] = (experts,)
        for expert in range(experts):
            mlp(f"{base}mlp.experts.{expert}", width)
        if config.num_shared_experts:
            mlp(base + "mlp.shared_experts", config.num_shared_experts * width)
    shapes["model.norm.weight"] = (d,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, d)
    return shapes
