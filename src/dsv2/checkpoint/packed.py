"""A folder's weights into a packed model, in the format that is asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from dsv2.checkpoint.fp8 import FP8, Fp8Files
from dsv2.checkpoint.hub import resolve
from dsv2.checkpoint.quantised import QuantisedFiles, Quantiser, stored_bytes, stored_scheme
from dsv2.checkpoint.safetensors import ModelLoadError
from dsv2.checkpoint.weights import NAMED_DTYPES, PublishedFiles
from dsv2.kernels.executor import Executor
from dsv2.kernels.formats import SCHEMES, Weight
from dsv2.kernels.interleaved import StoredWeight
from dsv2.kernels.latent import latent_format
from dsv2.machine import available_bytes
from dsv2.model.config import ModelConfig
from dsv2.model.packed import PackedModel

WEIGHTS = ("float32", "bfloat16", *SCHEMES)
"""Formats that packed weights may have."""


def load_packed(
    source: str | Path,
    executor: Executor,
    *,
    weights: str = "auto",
    cache_format: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> PackedModel:
    """Load a checkpoint, published or quantised, packed for an executor.

    Args:
        source: a folder, ``pocket`` or the name of a pulled model.
        executor: packs and computes.
        weights: ``float32``, ``bfloat16``, ``int8`` or ``int4``: a published checkpoint is
            converted while it is read. ``fp8`` is for a checkpoint that is published so and an
            executor that has kernels for it. ``auto`` keeps what is stored, and makes bfloat16
            of fp8, which every executor has.
        cache_format: of the latent cache (:data:`dsv2.kernels.latent.LATENT_FORMATS`); ``auto``
            for float32 with float32 weights, else bfloat16.
        progress: called with the layers done and their number.

    Raises:
        ModelLoadError: the files are damaged, the format is unknown or the stored one cannot be
            turned into it, or the memory does not suffice.
        ModelNotFoundError: there is no such model here.
    """
    folder = resolve(source)
    config = ModelConfig.from_file(folder / "config.json")
    stored = stored_scheme(folder)
    fetch: Callable[[str], StoredWeight]
    if stored == FP8 and weights == FP8:
        kind, fetch = FP8, Fp8Files(folder, config).fetch
    elif stored == FP8:
        wanted = "bfloat16" if weights == "auto" else weights
        kind, fetch = _converted(Fp8Files(folder, config).fetch_wide, executor, wanted)
    elif stored is not None:
        if weights not in ("auto", stored):
            raise ModelLoadError(
                f"{folder}: weights are {stored}, {weights!r} was asked for; allowed is {stored}"
            )
        kind, fetch = stored, QuantisedFiles(folder, config, stored).fetch
    else:
        kind, fetch = _converted(PublishedFiles(folder, config).fetch, executor, weights)
    needed, free = stored_bytes(config, kind), available_bytes()
    # A GPU's memory is planned by who chose the GPU.
    if executor.device.type == "cpu" and needed > free:
        raise ModelLoadError(
            f"{folder}: the weights need {needed / 1e9:.1f} GB as {kind}, {free / 1e9:.1f} GB are "
            "free; ask for fewer bits"
        )
    return PackedModel(
        config, executor, fetch, weights=kind, cache_format=cache_format_for(kind, cache_format),
        progress=progress,
    )  # fmt: skip


def cache_format_for(weights: str, cache_format: str = "auto") -> str:
    """The format of a latent cache beside weights of a format; ``auto`` follows the weights.

    Raises:
        ValueError: the format is unknown.
    """
    if cache_format == "auto":
        return "float32" if weights == "float32" else "bfloat16"
    return latent_format(cache_format).name


def _converted(
    published: Callable[[str], Tensor], executor: Executor, weights: str
) -> tuple[str, Callable[[str], Weight]]:
    """The format's full name, and how to get a parameter in it."""
    if weights in SCHEMES:
        quantiser = Quantiser(executor, weights)
        return weights, lambda name: quantiser.parameter(name, published(name))
    if weights == "auto":
        dtype = published("norm").dtype
        dtype = torch.float32 if dtype == torch.float16 else dtype
    elif weights in NAMED_DTYPES:
        dtype = NAMED_DTYPES[weights]
    else:
        raise ModelLoadError(f"weights {weights!r}, allowed are auto, {', '.join(WEIGHTS)}")

    def fetch(name: str) -> Tensor:
        tensor = published(name)
        # Routers and norms are computed with in fp32, whatever the rest has.
        return tensor if name.endswith("router_bias") else tensor.to(dtype)

    return str(dtype).removeprefix("torch."), fetch
