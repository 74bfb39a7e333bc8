"""Files in and out: published checkpoints, hubs, training state."""

from dsv2.checkpoint.hub import HubError, ModelNotFoundError, pull, resolve
from dsv2.checkpoint.packed import load_packed
from dsv2.checkpoint.safetensors import ModelLoadError
from dsv2.checkpoint.weights import load_model, save_model

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
