"""Stock transformers' DeepSeek-V2 with the weights of one of our models."""

from __future__ import annotations

from typing import Any

import torch

from dsv2.model.config import ModelConfig
from dsv2.model.transformer import Transformer


def stock_config(config: ModelConfig) -> Any:
    """transformers' own configuration of the same architecture, with eager attention."""
    from transformers import DeepseekV2Config

    published = config.to_published("float32")
    for key in ("architectures", "model_type", "torch_dtype"):
        published.pop(key)
    return DeepseekV2Config(**published, attn_implementation="eager")


def stock_model(model: Transformer) -> Any:
    """A stock fp32 ``DeepseekV2ForCausalLM`` (eager attention) holding ``model``'s weights."""
    from transformers import DeepseekV2ForCausalLM

    theirs = DeepseekV2ForCausalLM(stock_config(model.config)).eval()
    state = theirs.state_dict()
    ours = dict(model.named_parameters())
    moved = set()

    def put(name: str, value: torch.Tensor) -> None:
        assert state[name].shape == value.shape, (name, state[name].shape, value.shape)
        state[name].copy_(value.detach())
        moved.add(name)

    put("model.embed_tokens.weight", ours["embed"])
    put("model.norm.weight", ours["norm"])
    put("lm_head.weight", ours.get("head", ours["embed"]))
    attention = {
        "q_proj.weight": "wq", "q_a_proj.weight": "wq_a", "q_a_layernorm.weight": "q_norm",
        "q_b_proj.weight": "wq_b", "kv_a_proj_with_mqa.weight": "wkv_a",
        "kv_a_layernorm.weight": "kv_norm", "kv_b_proj.weight": "wkv_b", "o_proj.weight": "wo",
    }  # fmt: skip
    mlp = {"gate_proj": "w_gate", "up_proj": "w_up", "down_proj": "w_down"}
    for index in range(model.config.num_hidden_layers):
        published_layer, own = f"model.layers.{index}.", f"layers.{index}."
        put(published_layer + "input_layernorm.weight", ours[own + "attn_norm"])
        put(published_layer + "post_attention_layernorm.weight", ours[own + "ffn_norm"])
        for theirs_name, name in attention.items():
            if own + "attn." + name in ours:
                put(published_layer + "self_attn." + theirs_name, ours[own + "attn." + name])
        if not model.config.is_moe_layer(index):
            for theirs_name, name in mlp.items():
                put(f"{published_layer}mlp.{theirs_name}.weight", ours[f"{own}ffn.{name}"])
            continue
        put(published_layer + "mlp.gate.weight", ours[own + "ffn.router"])
        for theirs_name, name in mlp.items():
            if own + "ffn.shared." + name in ours:
                put(
                    f"{published_layer}mlp.shared_experts.{theirs_name}.weight",
                    ours[f"{own}ffn.shared.{name}"],
                )
        experts = f"{own}ffn.experts."
        put(
            published_layer + "mlp.experts.gate_up_proj",
            torch.cat((ours[experts + "w_gate"], ours[experts + "w_up"]), 1),
        )
        put(published_layer + "mlp.experts.down_proj", ours[experts + "w_down"])
    assert moved == set(state), set(state) - moved
    theirs.load_state_dict(state)
    return theirs
