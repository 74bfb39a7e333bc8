"""Files in and out: published checkpoints, hubs, training state.

The names are resolved on first use: the API's process finds models and imports no torch for it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dsv2.checkpoint.hub import HubError as HubError
    from dsv2.checkpoint.hub import ModelNotFoundError as ModelNotFoundError
    from dsv2.checkpoint.hub import pull as pull
    from dsv2.checkpoint.hub import resolve as resolve
    from dsv2.checkpoint.packed import load_packed as load_packed
    from dsv2.checkpoint.safetensors import ModelLoadError as ModelLoadError
    from dsv2.checkpoint.weights import load_model as load_model
    from dsv2.checkpoint.weights import save_model as save_model

_HOMES = {
    "HubError": "hub",
    "ModelLoadError": "safetensors",
    "ModelNotFoundError": "hub",
    "load_model": "weights",
    "load_packed": "packed",
    "pull": "hub",
    "resolve": "hub",
    "save_model": "weights",
}
__all__ = [
    "HubError",
    "ModelLoadError",
    "ModelNotFoundError",
    "load_model",
    "load_packed",
    "pull",
    "resolve",
    "save_model",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dsv2.checkpoint' has no attribute {name!r}")
    return getattr(importlib.import_module(f"dsv2.checkpoint.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
