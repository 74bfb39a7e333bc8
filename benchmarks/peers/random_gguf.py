"""A model of random weights in llama.cpp's file format, block by block, never in fp32.

The layout is the one that llama.cpp's own converter writes today: architecture ``deepseek2``, the
up-projection of the latent split into keys and values by head. Every matrix is quantised, the
embedding and the output included; norms and routers are fp32.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.vocabulary import definition
from dsv2.model.config import ModelConfig
from dsv2.tokenizer import special

BLOCK = 32
CODE_BYTES = {"Q4_0": BLOCK // 2, "Q8_0": BLOCK}
"""Bytes of a block's codes, behind its fp16 scale."""
CODE_SPREAD = {"Q4_0": 4.6, "Q8_0": 73.9}
"""Standard deviation of evenly drawn codes."""
CHUNK = 1 << 21
"""Blocks that are drawn at a time."""


def import_gguf() -> Any:
    """The package ``gguf``, which only this benchmark needs.

    Raises:
        RuntimeError: it is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise RuntimeError(
            "the package gguf writes llama.cpp's files: pip install 'dsv2[bench]'"
        ) from error
    return gguf


def write_gguf(path: Path, config: ModelConfig, kind: str, *, seed: int = 0) -> None:
    """Write ``path``, which appears whole or not at all.

    Args:
        path: the file.
        config: the shape, with queries that are not compressed.
        kind: ``Q4_0`` or ``Q8_0``.
        seed: of the numbers.

    Raises:
        ValueError: the kind is unknown, or the shape is none that llama.cpp reads as this.
        RuntimeError: the package ``gguf`` is not installed.
    """
    if kind not in CODE_BYTES:
        raise ValueError(f"kind {kind!r}, allowed are {', '.join(CODE_BYTES)}")
    if config.q_lora_rank is not None or config.num_hidden_layers not in (26, 27):
        raise ValueError(
            "llama.cpp reads a model without q_lora_rank as V2-Lite if it has 26 or 27 layers; "
            f"this has q_lora_rank {config.q_lora_rank} and {config.num_hidden_layers} layers"
        )
    gguf = import_gguf()
    partial = path.with_name(path.name + ".partial")
    writer = gguf.GGUFWriter(partial, "deepseek2")
    _describe(writer, gguf, config, kind)
    _tokenizer(writer, gguf, config)
    raw = gguf.GGMLQuantizationType[kind]
    shapes = tensor_shapes(config)
    for name, shape in shapes.items():
        if _plain(name):
            size = 4 * int(np.prod(shape))
            writer.add_tensor_info(name, shape, np.dtype(np.float32), size)
        else:
            stored = gguf.quant_shape_to_byte_shape(shape, raw)
            writer.add_tensor_info(name, stored, np.dtype(np.uint8), int(np.prod(stored)), raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    dice = np.random.default_rng(seed)
    for name, shape in shapes.items():
        writer.write_tensor_data(_tensor(name, shape, kind, dice))
    writer.close()
    partial.rename(path)


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors, the slowest axis first."""
    d, heads, latent = config.hidden_size, config.num_attention_heads, config.kv_lora_rank
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (config.vocab_size, d),
        "output_norm.weight": (d,),
        "output.weight": (config.vocab_size, d),
    }

    def mlp(prefix: str, suffix: str, width: int, *stack: int) -> None:
        shapes[f"{prefix}ffn_gate{suffix}.weight"] = (*stack, width, d)
        shapes[f"{prefix}ffn_up{suffix}.weight"] = (*stack, width, d)
        shapes[f"{prefix}ffn_down{suffix}.weight"] = (*stack, d, width)

    for layer in range(config.num_hidden_layers):
        own = f"blk.{layer}."
        shapes[own + "attn_norm.weight"] = (d,)
        shapes[own + "attn_q.weight"] = (heads * config.qk_head_dim, d)
        shapes[own + "attn_kv_a_mqa.weight"] = (config.cache_width, d)
        shapes[own + "attn_kv_a_norm.weight"] = (latent,)
        shapes[own + "attn_k_b.weight"] = (heads, latent, config.qk_nope_head_dim)
        shapes[own + "attn_v_b.weight"] = (heads, config.v_head_dim, latent)
        shapes[own + "attn_output.weight"] = (d, heads * config.v_head_dim)
        shapes[own + "ffn_norm.weight"] = (d,)
        if not config.is_moe_layer(layer):
            mlp(own, "", config.intermediate_size)
            continue
        experts, width = config.n_routed_experts or 0, config.moe_intermediate_size or 0
        shapes[own + "ffn_gate_inp.weight"] = (experts, d)
        mlp(own, "_exps", width, experts)
        mlp(own, "_shexp", config.num_shared_experts * width)
    return shapes


def _plain(name: str) -> bool:
    return "norm" in name or "ffn_gate_inp" in name


def _describe(writer: Any, gguf: Any, config: ModelConfig, kind: str) -> None:
    router = config.router
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind}"])
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(1)  # all heads share the latent
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_leading_dense_block_count(config.first_k_dense_replace)
    writer.add_vocab_size(config.vocab_size)
    writer.add_kv_lora_rank(config.kv_lora_rank)
    writer.add_key_length(config.cache_width)
    writer.add_value_length(config.kv_lora_rank)
    writer.add_key_length_mla(config.qk_head_dim)
    writer.add_value_length_mla(config.v_head_dim)
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    writer.add_expert_count(router.num_experts)
    writer.add_expert_used_count(router.num_experts_per_tok)
    writer.add_expert_shared_count(config.num_shared_experts)
    writer.add_expert_weights_scale(router.scale)
    writer.add_expert_weights_norm(router.normalise)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType[router.score.upper()])
    writer.add_rope_dimension_count(config.qk_rope_head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    scaling = config.rope_scaling
    if scaling is not None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(scaling.factor)
        writer.add_rope_scaling_orig_ctx_len(scaling.original_max_position_embeddings)
        writer.add_rope_scaling_yarn_log_mul(0.1 * scaling.mscale_all_dim)


def _tokenizer(writer: Any, gguf: Any, config: ModelConfig) -> None:
    content = definition(config.vocab_size)
    learned = list(content["model"]["vocab"])
    control = [entry["content"] for entry in content["added_tokens"]]
    normal, own = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("deepseek-llm")
    writer.add_token_list(learned + control)
    writer.add_token_types([normal] * len(learned) + [own] * len(control))
    writer.add_token_merges([" ".join(pair) for pair in content["model"]["merges"]])
    writer.add_bos_token_id(len(learned) + control.index(special.BOS))
    writer.add_eos_token_id(len(learned) + control.index(special.EOS))


def _tensor(
    name: str, shape: tuple[int, ...], kind: str, dice: np.random.Generator
) -> NDArray[Any]:
    spread = shape[-1] ** -0.5
    if "norm" in name:
        return np.ones(shape, np.float32)
    if _plain(name):
        return dice.standard_normal(shape, np.float32) * np.float32(spread)
    blocks = np.empty((int(np.prod(shape)) // BLOCK, 2 + CODE_BYTES[kind]), np.uint8)
    for part in _chunks(blocks):
        part[:] = dice.integers(0, 256, part.shape, np.uint8)
        scales = dice.uniform(0.8, 1.2, len(part)) * spread / CODE_SPREAD[kind]
        # The mean of the codes is not quite zero: of one sign it would add up in every layer, and
        # all tokens would take the same experts.
        scales *= dice.choice((-1, 1), len(part))
        part[:, :2] = scales.astype("<f2").view(np.uint8).reshape(-1, 2)
    return blocks


def _chunks(blocks: NDArray[Any]) -> Iterator[NDArray[Any]]:
    for start in range(0, len(blocks), CHUNK):
        yield blocks[start : start + CHUNK]
