"""The published models of this architecture: one entry each, nothing else is keyed to a name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dsv2.model.config import ModelConfig

_YARN: dict[str, Any] = {
    "type": "yarn",
    "factor": 40.0,
    "original_max_position_embeddings": 4096,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 0.707,
    "mscale_all_dim": 0.707,
}
_COMMON: dict[str, Any] = {
    "vocab_size": 102400,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_shared_experts": 2,
    "num_experts_per_tok": 6,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "norm_topk_prob": False,
    "scoring_func": "softmax",
    "rope_theta": 10000.0,
    "rope_scaling": _YARN,
    "max_position_embeddings": 163840,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 100000,
    "eos_token_id": 100001,
    "aux_loss_alpha": 0.001,
}
V2: dict[str, Any] = _COMMON | {
    "hidden_size": 5120,
    "intermediate_size": 12288,
    "num_hidden_layers": 60,
    "num_attention_heads": 128,
    "q_lora_rank": 1536,
    "n_routed_experts": 160,
    "moe_intermediate_size": 1536,
    "topk_method": "group_limited_greedy",
    "n_group": 8,
    "topk_group": 3,
    "routed_scaling_factor": 16.0,
}
"""Report, section 3.1.2, with what the published file adds."""

V2_LITE: dict[str, Any] = _COMMON | {
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "q_lora_rank": None,
    "n_routed_experts": 64,
    "moe_intermediate_size": 1408,
    "topk_method": "greedy",
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 1.0,
}
"""Report, appendix B, with what the published file adds."""


@dataclass(frozen=True)
class Release:
    """A published model.

    Attributes:
        repository: its name on Hugging Face and ModelScope.
        architecture: the published hyper-parameters; the checkpoint's own file has the last word.
        chat: name of its chat format, None for a base model.
        fim: whether it was trained to fill in the middle.
    """

    repository: str
    architecture: dict[str, Any]
    chat: str | None = None
    fim: bool = False


RELEASES: dict[str, Release] = {
    "v2": Release("deepseek-ai/DeepSeek-V2", V2),
    "v2-chat": Release("deepseek-ai/DeepSeek-V2-Chat", V2, chat="v2"),
    "v2-chat-0628": Release("deepseek-ai/DeepSeek-V2-Chat-0628", V2, chat="v2"),
    "v2.5": Release("deepseek-ai/DeepSeek-V2.5", V2, chat="v2.5"),
    "v2.5-1210": Release("deepseek-ai/DeepSeek-V2.5-1210", V2, chat="v2.5", fim=True),
    "v2-lite": Release("deepseek-ai/DeepSeek-V2-Lite", V2_LITE),
    "v2-lite-chat": Release("deepseek-ai/DeepSeek-V2-Lite-Chat", V2_LITE, chat="v2"),
    "coder-v2-base": Release("deepseek-ai/DeepSeek-Coder-V2-Base", V2),
    "coder-v2-instruct": Release("deepseek-ai/DeepSeek-Coder-V2-Instruct", V2, chat="v2"),
    "coder-v2-lite-base": Release("deepseek-ai/DeepSeek-Coder-V2-Lite-Base", V2_LITE, fim=True),
    "coder-v2-lite-instruct": Release(
        "deepseek-ai/DeepSeek-Coder-V2-Lite-Instruct", V2_LITE, chat="v2"
    ),
}
"""Every published model by its short name."""


def config_of(name: str) -> ModelConfig:
    """The architecture of a release, without its weights.

    Raises:
        ValueError: no such release, naming those there are.
    """
    if name not in RELEASES:
        raise ValueError(f"release {name!r} is unknown, allowed are {', '.join(RELEASES)}")
    return ModelConfig.from_published(RELEASES[name].architecture)
