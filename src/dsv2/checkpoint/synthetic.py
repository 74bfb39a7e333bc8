"""Weights of a shape without a checkpoint, for measuring speed and memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from dsv2.checkpoint.packed import cache_format_for
from dsv2.checkpoint.quantised import is_quantised, write_quantised
from dsv2.checkpoint.weights import NAMED_DTYPES, parameter_shapes
from dsv2.kernels.executor import Executor
from dsv2.kernels.formats import SCHEMES, Weight, random_codes, scheme_of
from dsv2.model.config import ModelConfig
from dsv2.model.packed import Fetch, PackedModel


def synthetic_model(
    config: ModelConfig, executor: Executor, weights: str, *, cache_format: str = "auto",
    seed: int = 0, device: torch.device | str = "cpu",
) -> PackedModel:  # fmt: skip
    """A packed model of random weights: the memory traffic and arithmetic of a real one.

    Args:
        config: the shape.
        executor: packs and computes.
        weights: ``float32``, ``bfloat16``, ``int8`` or ``int4``; codes are drawn, not fitted.
        cache_format: of the latent cache, as for :func:`dsv2.checkpoint.packed.load_packed`.
        seed: of the numbers.
        device: that draws them; another one draws other numbers.

    Raises:
        ValueError: the format is unknown.
    """
    fetch = synthetic_weights(config, weights, seed, device)
    kind = cache_format_for(weights, cache_format)
    return PackedModel(config, executor, fetch, weights=weights, cache_format=kind)


def synthetic_checkpoint(
    folder: Path, config: ModelConfig, scheme: str, files: Mapping[str, bytes], *, seed: int = 0
) -> None:
    """The same weights as a quantised checkpoint on disk, one layer in memory at a time.

    Args:
        folder: must not exist.
        config: the shape.
        scheme: ``int8`` or ``int4``.
        files: what belongs beside the weights, a tokenizer for one, by name.
        seed: of the numbers.

    Raises:
        ValueError: the scheme is unknown.
        FileExistsError: the folder exists.
    """
    scheme_of(scheme)
    folder.mkdir(parents=True)
    write_quantised(
        folder, config, synthetic_weights(config, scheme, seed), scheme, config.to_published()
    )
    for name, content in files.items():
        (folder / name).write_bytes(content)


def synthetic_weights(
    config: ModelConfig, weights: str, seed: int, device: torch.device | str = "cpu"
) -> Fetch:
    """Random parameters of a shape by name, drawn in the order in which they are asked for.

    Raises:
        ValueError: the format is unknown.
    """
    if weights not in SCHEMES and weights not in NAMED_DTYPES:
        allowed = ", ".join(("float32", "bfloat16", *SCHEMES))
        raise ValueError(f"weights {weights!r}, allowed are {allowed}")
    shapes = parameter_shapes(config)
    generator = torch.Generator(device).manual_seed(seed)

    def fetch(name: str) -> Weight:
        shape = shapes[name]
        quantised = weights in SCHEMES
        # What a scheme leaves alone is stored, and comes, in bfloat16.
        rest = "bfloat16" if quantised else weights
        if len(shape) == 1:
            wide = name.endswith("router_bias")
            dtype = torch.float32 if wide else NAMED_DTYPES[rest]
            return torch.ones(shape, dtype=dtype, device=device)
        fits = quantised and is_quantised(name, shape, SCHEMES[weights])
        return synthetic_matrix(shape, weights if fits else rest, generator)

    return fetch


def synthetic_matrix(shape: tuple[int, ...], weights: str, generator: torch.Generator) -> Weight:
    """A matrix ``[.., rows, columns]`` whose numbers spread as real ones do.

    It lies on the device of ``generator``.
    """
    spread, device = shape[-1] ** -0.5, generator.device
    if weights not in SCHEMES:
        # A stack shares one draw: what matters is that each has memory of its own.
        one = torch.randn(shape[-2:], generator=generator, device=device) * spread
        return one.to(NAMED_DTYPES[weights]).expand(shape).contiguous()
    return random_codes(shape, weights, generator)
