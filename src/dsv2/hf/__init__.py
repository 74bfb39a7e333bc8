"""``import dsv2.hf`` makes transformers' Auto classes load our model and tokenizer.

Programs written for the published models run as they are: ``AutoTokenizer``,
``AutoModelForCausalLM`` and ``GenerationConfig``, from transformers or from modelscope. No code
from a checkpoint is ever executed, whatever ``trust_remote_code`` says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import cached_file

from dsv2.checkpoint.hub import pocket_folder
from dsv2.hf.model import HUB_OPTIONS, DeepseekV2Config, DeepseekV2ForCausalLM
from dsv2.hf.tokenizer import DeepseekTokenizer

__all__ = [
    "POCKET", "DeepseekTokenizer", "DeepseekV2Config", "DeepseekV2ForCausalLM", "register",
]  # fmt: skip

MODEL_TYPE = "deepseek_v2"
POCKET = str(pocket_folder())
"""The folder of the model that the package ships, as ``from_pretrained`` takes it."""


def _is_ours(name: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether a folder or repository holds a model of this architecture."""
    hub = {key: kwargs[key] for key in HUB_OPTIONS if key in kwargs}
    path = cached_file(
        name, "config.json", _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False, _raise_exceptions_for_gated_repo=False,
        **hub,
    )  # fmt: skip
    if path is None:
        return False
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    return isinstance(content, dict) and content.get("model_type") == MODEL_TYPE


def register() -> None:
    """Enter our classes into transformers' Auto classes; importing this module does it."""
    AutoConfig.register(MODEL_TYPE, DeepseekV2Config, exist_ok=True)
    AutoModelForCausalLM.register(DeepseekV2Config, DeepseekV2ForCausalLM, exist_ok=True)
    if getattr(AutoTokenizer.from_pretrained, "__name__", "") == "tokenizer_from_pretrained":
        return
    usual = AutoTokenizer.from_pretrained

    # The Auto class follows the class name in a checkpoint's tokenizer_config.json before anything
    # registered, and published checkpoints name the wrong one; so its entry is wrapped.
    def tokenizer_from_pretrained(name: Any, *inputs: Any, **kwargs: Any) -> Any:
        if _is_ours(name, kwargs):
            return DeepseekTokenizer.from_pretrained(name, *inputs, **kwargs)
        return usual(name, *inputs, **kwargs)

    AutoTokenizer.from_pretrained = staticmethod(tokenizer_from_pretrained)


register()
