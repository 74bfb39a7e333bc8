"""DeepSeek-V2 in one package: model, inference, training, evaluation.

The public names are resolved on first use, so that importing the package imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dsv2.checkpoint import load_model as load_model
    from dsv2.engine.llm import LLM as LLM
    from dsv2.engine.request import SamplingParams as SamplingParams
    from dsv2.model.config import ModelConfig as ModelConfig

__version__ = "0.1.0"

_HOMES = {
    "LLM": "dsv2.engine.llm",
    "SamplingParams": "dsv2.engine.request",
    "ModelConfig": "dsv2.model.config",
    "load_model": "dsv2.checkpoint",
}
__all__ = ["LLM", "ModelConfig", "SamplingParams", "load_model"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dsv2' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
