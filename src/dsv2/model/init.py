"""Fresh weights for training from scratch."""

from __future__ import annotations

import torch
from torch import nn

from dsv2.model.transformer import Transformer

_NORMS = ("attn_norm", "ffn_norm", "q_norm", "kv_norm", "norm")


@torch.no_grad()
def init_weights(
    model: Transformer, generator: torch.Generator, std: float | None = None
) -> Transformer:
    """Draw every parameter in place, in a fixed order on the CPU, whatever the model's device.

    Norms start at one, the selection bias at zero and everything else at a normal distribution of
    standard deviation ``std``, by default the config's ``initializer_range`` (the report trains V2
    with 0.006, section 3.1.2).
    """
    spread = model.config.initializer_range if std is None else std
    for name, parameter in model.named_parameters():
        kind = name.rsplit(".", 1)[-1]
        if kind in _NORMS:
            nn.init.ones_(parameter)
        elif kind == "router_bias":
            nn.init.zeros_(parameter)
        else:
            drawn = torch.empty(parameter.shape, device="cpu").normal_(
                0.0, spread, generator=generator
            )
            parameter.copy_(drawn)
    return model
