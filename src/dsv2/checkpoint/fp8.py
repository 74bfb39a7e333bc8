"""Checkpoints in fp8 as they are published: e4m3 matrices, and beside each its blocks' scales.

``NAME.weight`` is then e4m3 and ``NAME.weight_scale_inv`` the fp32 scale of every block of 128 by
128, by which codes are multiplied. Embedding, head, routers and norms stay as they were.
``config.json`` says so in ``quantization_config``, in the words that other engines read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsv2.checkpoint.buffers import Buffers
from dsv2.checkpoint.names import (
    Place,
    place_of,
    published_name,
    published_shapes,
    stored_names,
)
from dsv2.checkpoint.safetensors import DTYPES, ModelLoadError, SafetensorsFile
from dsv2.checkpoint.weights import locate_files, parameter_shapes, read_stacked
from dsv2.kernels.formats import FP8_BLOCK, BlockTensor, Weight, dequantise
from dsv2.model.config import FP8_METHOD, ModelConfig

FP8 = "fp8"
"""The format's name, as users write it."""
FP8_SETTINGS = {
    "quant_method": FP8_METHOD,
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "weight_block_size": [FP8_BLOCK, FP8_BLOCK],
}
"""The ``quantization_config`` of such a checkpoint."""
_PLAIN = ("embed", "head")


def check_fp8_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Raise ModelLoadError where a ``quantization_config`` is of another kind of fp8."""
    for name in ("fmt", "weight_block_size"):
        if settings.get(name) != FP8_SETTINGS[name]:
            raise ModelLoadError(
                f"{folder}: {name} of quantization_config is {settings.get(name)!r}, allowed is "
                f"{FP8_SETTINGS[name]!r}"
            )


def is_fp8(parameter: str, shape: tuple[int, ...]) -> bool:
    """Whether a parameter of the model is stored in fp8."""
    return len(shape) >= 2 and parameter not in _PLAIN and not parameter.endswith("router")


def fp8_shapes(config: ModelConfig) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Stored tensors with shapes and dtypes, in file order."""
    found: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    for name, shape in published_shapes(config).items():
        place = place_of(name)
        assert place is not None
        if not is_fp8(place.parameter, shape):
            wide = name.endswith("e_score_correction_bias")
            found[name] = (shape, torch.float32 if wide else torch.bfloat16)
            continue
        found[name] = (shape, torch.float8_e4m3fn)
        blocks = tuple(-(-size // FP8_BLOCK) for size in shape)
        found[f"{name}_scale_inv"] = (blocks, torch.float32)
    return found


def fp8_tensors(parameter: str, weight: Weight) -> list[tuple[str, Tensor]]:
    """A parameter's tensors under the published names, experts one by one."""
    if ".experts." in parameter:
        return [
            part
            for expert in range(weight.shape[0])
            for part in _named(published_name(Place(parameter, expert)), weight[expert])
        ]
    return _named(published_name(Place(parameter)), weight)


def _named(name: str, weight: Weight) -> list[tuple[str, Tensor]]:
    if isinstance(weight, BlockTensor):
        return [(name, weight.codes), (f"{name}_scale_inv", weight.scales)]
    if isinstance(weight, Tensor):
        return [(name, weight)]
    raise ValueError(f"{name}: weights of {weight.scheme} have no place in a checkpoint of fp8")


class Fp8Files:
    """The weights of a folder in published fp8, by the model's parameter names.

    Raises:
        ModelLoadError: files are missing, damaged or not of the configuration.
    """

    def __init__(self, folder: Path, config: ModelConfig) -> None:
        stored = fp8_shapes(config)
        wanted = {name: shape for name, (shape, _) in stored.items()}
        ignored = ("lm_head.weight",) if config.tie_word_embeddings else ()
        self._files: dict[str, SafetensorsFile] = locate_files(
            folder, wanted, ignored=ignored, state=True
        )
        self._shapes = parameter_shapes(config)
        self._buffers = Buffers()
        for name, (_, dtype) in stored.items():
            entry = self._files[name].entries[name]
            fits = self._files[name].dtype_of(name) == dtype
            # What is not quantised keeps the dtype it had.
            if not (fits or (dtype == torch.bfloat16 and entry.dtype in DTYPES)):
                raise ModelLoadError(f"{folder}: tensor {name} is {entry.dtype}, {dtype} is needed")

    def fetch(self, parameter: str) -> Weight:
        """A parameter as it is stored; experts are stacked.

        Raises:
            ModelLoadError: it cannot be read, or holds NaN or infinity.
        """
        shape = self._shapes[parameter]
        names = stored_names(parameter, shape)
        weight: Weight
        if is_fp8(parameter, shape):
            weight = self._blocks(names)
        else:
            weight = read_stacked(self._files, names, self._buffers)
        return weight if ".experts." in parameter else weight[0]

    def fetch_wide(self, parameter: str) -> Tensor:
        """A parameter in bf16 where it is stored in fp8, else as it is stored.

        Of experts one after the other is in fp8 and fp32 beside the stack.

        Raises:
            ModelLoadError: it cannot be read, or holds NaN or infinity.
        """
        shape = self._shapes[parameter]
        if not is_fp8(parameter, shape):
            plain = self.fetch(parameter)
            assert isinstance(plain, Tensor)
            return plain
        names = stored_names(parameter, shape)
        whole = self._buffers.take((len(names), *shape[-2:]), torch.bfloat16)
        for place, name in zip(whole, names, strict=True):
            place.copy_(dequantise(self._blocks([name])[0]))
        return whole if ".experts." in parameter else whole[0]

    def _blocks(self, names: Sequence[str]) -> BlockTensor:
        scales = [f"{name}_scale_inv" for name in names]
        return BlockTensor(
            read_stacked(self._files, names, self._buffers),
            read_stacked(self._files, scales, self._buffers),
        )
