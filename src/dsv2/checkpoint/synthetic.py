"""Weights of a shape without a checkpoint, for measuring speed and memory."""

from __future__ import annotations

import torch

from dsv2.checkpoint.packed import cache_format_for
from dsv2.checkpoint.quantised import is_quantised
from dsv2.checkpoint.weights import NAMED_DTYPES, parameter_shapes
from dsv2.kernels.executor import Executor
from dsv2.kernels.formats import SCHEMES, QuantTensor, Weight
from dsv2.model.config import ModelConfig
from dsv2.model.packed import PackedModel


def synthetic_model(
    config: ModelConfig, executor: Executor, weights: str, *, cache_format: str = "auto",
    seed: int = 0,
) -> PackedModel:  # fmt: skip
    """A packed model of random weights: the memory traffic and arithmetic of a real one.

    Args:
        config: the shape.
        executor: packs and computes.
        weights: ``float32``, ``bfloat16``, ``int8`` or ``int4``; codes are drawn, not fitted.
        cache_format: of the latent cache, as for :func:`dsv2.checkpoint.packed.load_packed`.
        seed: of the numbers.

    Raises:
        ValueError: the format is unknown.
    """
    if weights not in SCHEMES and weights not in NAMED_DTYPES:
        allowed = ", ".join(("float32", "bfloat16", *SCHEMES))
        raise ValueError(f"weights {weights!r}, allowed are {allowed}")
    shapes = parameter_shapes(config)
    generator = torch.Generator().manual_seed(seed)

    def fetch(name: str) -> Weight:
        shape = shapes[name]
        if len(shape) == 1:
            return torch.ones(shape)
        if name.endswith("router"):
            return synthetic_matrix(shape, "float32", generator)
        fits = weights not in SCHEMES or is_quantised(name, shape, SCHEMES[weights])
        return synthetic_matrix(shape, weights if fits else "bfloat16", generator)

    kind = cache_format_for(weights, cache_format)
    return PackedModel(config, executor, fetch, weights=weights, cache_format=kind)


def synthetic_matrix(shape: tuple[int, ...], weights: str, generator: torch.Generator) -> Weight:
    """A matrix ``[.., rows, columns]`` whose numbers spread as real ones do."""
    spread = shape[-1] ** -0.5
    if weights not in SCHEMES:
        # A stack shares one draw: what matters is that each has memory of its own.
        one = (torch.randn(shape[-2:], generator=generator) * spread).to(NAMED_DTYPES[weights])
        return one.expand(shape).contiguous()
    kind = SCHEMES[weights]
    *rows, columns = shape
    codes = torch.randint(
        256, (*rows, columns * kind.bits // 8), dtype=torch.uint8, generator=generator
    )
    scales = torch.randint(
        70, 127, (*rows, columns // kind.group), dtype=torch.int8, generator=generator
    )
    return QuantTensor(weights, codes, scales, torch.full(rows, spread / 65 / 100))
