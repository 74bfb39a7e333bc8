"""Logits and gradients against transformers' own DeepSeek-V2, over a grid of tiny models."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dsv2.model.config import ModelConfig
from dsv2.model.init import init_weights
from dsv2.model.transformer import Transformer
from dsv2.ragged import RaggedBatch
from tests.oracle import stock_model
from tests.tiny import YARN, tiny_config

GROUPS = {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}
GRID: dict[str, dict[str, Any]] = {
    "lite": {},
    "query compression": {"q_lora_rank": 24},
    "yarn": {"rope_scaling": YARN, "max_position_embeddings": 128},
    "yarn with unequal mscales": {
        "rope_scaling": YARN | {"mscale": 1.0, "mscale_all_dim": 0.5},
        "max_position_embeddings": 128,
    },
    "groups": GROUPS,
    "groups of one": GROUPS | {"n_group": 8, "topk_group": 3},
    "scaled gates": {"routed_scaling_factor": 16.0},
    "two dense layers": {"first_k_dense_replace": 2},
    "no dense layer": {"first_k_dense_replace": 0},
    "dense only": {"first_k_dense_replace": 3},
    "one expert per token": {"num_experts_per_tok": 1},
    "all experts": {"num_experts_per_tok": 8},
    "one shared expert": {"n_shared_experts": 1},
    "one head": {"num_attention_heads": 1},
    "wide values": {"v_head_dim": 24},
    "wide rope": {"qk_rope_head_dim": 16},
    "tied": {"tie_word_embeddings": True},
    "epsilon": {"rms_norm_eps": 1e-5},
    "theta": {"rope_theta": 500.0},
    "everything": {
        "q_lora_rank": 20, "rope_scaling": YARN, "max_position_embeddings": 128, **GROUPS,
        "routed_scaling_factor": 2.5, "n_shared_experts": 1, "num_hidden_layers": 4,
    },
}  # fmt: skip


def build(config: ModelConfig, backend: str = "auto") -> Transformer:
    """A tiny fp32 model with weights large enough that every path matters."""
    return init_weights(
        Transformer(config, backend=backend), torch.Generator().manual_seed(7), std=0.15
    )


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("name", GRID)
def test_logits_equal_transformers(name: str, backend: str) -> None:
    model = build(tiny_config(**GRID[name]), backend)
    tokens = torch.randint(0, 160, (2, 70), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs = stock_model(model)(input_ids=tokens).logits.flatten(0, 1)
        ours, _ = model(RaggedBatch.packed(tokens.flatten(), (70, 70)))
    assert theirs.abs().max() > 0.5
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["lite", "everything"])
def test_gradients_equal_transformers(name: str) -> None:
    model = build(tiny_config(**GRID[name]))
    tokens = torch.randint(0, 160, (33,), generator=torch.Generator().manual_seed(2))
    stock = stock_model(model)
    stock(input_ids=tokens.unsqueeze(0)).logits.square().mean().backward()
    logits, _ = model(RaggedBatch.packed(tokens, (33,)))
    logits.square().mean().backward()
    for layer, own in zip(stock.model.layers, model.layers, strict=True):
        pairs = [
            (layer.self_attn.kv_b_proj.weight.grad, own.attn.wkv_b.grad),
            (layer.self_attn.kv_a_proj_with_mqa.weight.grad, own.attn.wkv_a.grad),
            (layer.input_layernorm.weight.grad, own.attn_norm.grad),
        ]
        if hasattr(layer.mlp, "gate"):
            pairs.append((layer.mlp.gate.weight.grad, own.ffn.router.grad))
            pairs.append((layer.mlp.experts.down_proj.grad, own.ffn.experts.w_down.grad))
        for theirs, ours in pairs:
            assert theirs.abs().max() > 0
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", GRID)
def test_gradients_equal_the_reference(name: str) -> None:
    config = tiny_config(**GRID[name])
    fast, plain = build(config, "torch"), build(config, "reference")
    tokens = torch.randint(0, 160, (41,), generator=torch.Generator().manual_seed(3))
    for model in (fast, plain):
        logits, _ = model(RaggedBatch.packed(tokens, (20, 21)))
        logits.square().mean().backward()
    wanted = dict(plain.named_parameters())
    for label, parameter in fast.named_parameters():
        assert parameter.grad is not None, label
        torch.testing.assert_close(parameter.grad, wanted[label].grad, atol=1e-6, rtol=1e-4)
