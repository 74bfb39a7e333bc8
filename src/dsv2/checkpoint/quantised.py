"""Checkpoints in 4 and 8 bits: our own layout, written layer by layer and mapped into memory.

A quantised matrix is three tensors, ``NAME.codes``, ``NAME.scales`` and ``NAME.row_scales``, with
its rows interleaved as :mod:`dsv2.kernels.interleaved` says; the routed experts of a layer are
stacked under the name of the published layout without the expert's number. Norms, routers and
matrices whose columns do not fill the groups stay as they were. ``config.json`` is the published
one with a ``quantization_config``.
"""

from __future__ import annotations

import json
import re
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from dsv2.checkpoint.fp8 import (
    FP8,
    FP8_SETTINGS,
    check_fp8_settings,
    fp8_shapes,
    fp8_tensors,
    is_fp8,
)
from dsv2.checkpoint.names import Place, published_name, published_shapes
from dsv2.checkpoint.safetensors import (
    ALIGNMENT,
    DTYPES,
    ModelLoadError,
    SafetensorsFile,
    is_finite,
    write_safetensors,
)
from dsv2.checkpoint.state import sync
from dsv2.checkpoint.weights import INDEX, PublishedFiles, locate_files, parameter_shapes
from dsv2.kernels.executor import Executor
from dsv2.kernels.formats import (
    SCHEMES,
    BlockTensor,
    QuantTensor,
    Scheme,
    Weight,
    dequantise,
    quantise_blocks,
    scheme_of,
    stack,
)
from dsv2.kernels.interleaved import InterleavedTensor, StoredWeight, interleave, interleaved_shapes
from dsv2.model.config import FP8_METHOD, QUANT_METHOD, ModelConfig

VERSION = 3
_SETTINGS = "quantization_config"
_PARTS = ("codes", "scales", "row_scales")
_COPIED = (".json", ".md", ".txt", ".model")
"""Files beside the weights that go with them: tokenizer, generation settings, card."""
_KIND = re.compile(r"layers\.\d+\.")
_ROWS = 4096


def stored_scheme(folder: Path) -> str | None:
    """The scheme of a folder's weights or ``fp8``, or None where they are not quantised.

    Raises:
        ModelLoadError: a scheme or version that this version does not know.
    """
    try:
        settings = json.loads((folder / "config.json").read_text("utf-8")).get(
            "quantization_config"
        )
    except (OSError, ValueError, AttributeError):
        return None  # whoever reads the configuration says what is wrong with it
    if isinstance(settings, dict) and settings.get("quant_method") == FP8_METHOD:
        check_fp8_settings(folder, settings)
        return FP8
    if not isinstance(settings, dict) or settings.get("quant_method") != QUANT_METHOD:
        return None
    scheme, version = settings.get("scheme"), settings.get("version")
    if scheme not in SCHEMES or version != VERSION:
        raise ModelLoadError(
            f"{folder}: weights of scheme {scheme!r} version {version!r}, allowed are "
            f"{', '.join(SCHEMES)} of version {VERSION}"
        )
    return str(scheme)


def is_quantised(name: str, shape: tuple[int, ...], scheme: Scheme) -> bool:
    """Whether a parameter of this name and shape is stored in a scheme."""
    return len(shape) >= 2 and not name.endswith("router") and shape[-1] % scheme.group == 0


def stored_name(parameter: str) -> str:
    """The name under which a parameter, or a whole stack of experts, is stored."""
    if ".experts." in parameter:
        return published_name(Place(parameter, 0)).replace(".experts.0.", ".experts.")
    return published_name(Place(parameter))


def stored_shapes(
    config: ModelConfig, scheme: Scheme
) -> dict[str, dict[str, tuple[tuple[int, ...], torch.dtype]]]:
    """For each parameter its stored tensors with shapes and dtypes, in file order."""
    found: dict[str, dict[str, tuple[tuple[int, ...], torch.dtype]]] = {}
    for name, shape in parameter_shapes(config).items():
        stored = stored_name(name)
        if not is_quantised(name, shape, scheme):
            wide = name.endswith("router_bias")
            found[name] = {stored: (shape, torch.float32 if wide else torch.bfloat16)}
            continue
        parts = interleaved_shapes(shape, scheme)
        found[name] = {f"{stored}.{part}": parts[part] for part in _PARTS}
    return found


class QuantisedFiles:
    """The weights of a quantised folder, by the model's parameter names.

    Codes and scales are the files themselves, mapped: what is loaded takes no memory beside the
    page cache, which processes share. Whoever replaces a folder's files must rename new ones into
    place, as :func:`quantise_checkpoint` does; to cut a mapped file short kills its readers.

    Raises:
        ModelLoadError: files are missing, damaged or not of the configuration.
    """

    def __init__(self, folder: Path, config: ModelConfig, scheme: str) -> None:
        self._scheme = scheme_of(scheme)
        self._parameters = parameter_shapes(config)
        self._shapes = stored_shapes(config, self._scheme)
        wanted = {
            name: shape for parts in self._shapes.values() for name, (shape, _) in parts.items()
        }
        self._files: dict[str, SafetensorsFile] = locate_files(folder, wanted, state=True)
        for parts in self._shapes.values():
            for name, (_, dtype) in parts.items():
                own = self._files[name].entries[name].dtype
                # What is not quantised keeps the dtype it had.
                if dtype != torch.bfloat16 and self._files[name].dtype_of(name) != dtype:
                    raise ModelLoadError(f"{folder}: tensor {name} is {own}, {dtype} is needed")
                if dtype == torch.bfloat16 and own not in DTYPES:
                    raise ModelLoadError(f"{folder}: tensor {name} is {own}, not a float")

    def fetch(self, parameter: str) -> StoredWeight:
        """A parameter as it is stored."""
        parts = self._shapes[parameter]
        if len(parts) == 1:
            (name,) = parts
            return _finite(self._files[name].read(name), parameter)
        codes, scales, row_scales = (self._files[name].map(name) for name in parts)
        rows = self._parameters[parameter][-2]
        return InterleavedTensor(
            self._scheme.name, rows, codes, scales, _finite(row_scales, parameter)
        )


def _finite(tensor: Tensor, name: str) -> Tensor:
    if not is_finite(tensor):
        raise ModelLoadError(f"parameter {name} holds NaN or infinity")
    return tensor


@dataclass(frozen=True)
class KindReport:
    """What quantisation did to one kind of tensor, over all layers.

    Attributes:
        kind: the parameter's name without its layer.
        weights: numbers in them.
        bits: per weight, scales included.
        relative_rmse: root of the squared error over the squared weights.
    """

    kind: str
    weights: int
    bits: float
    relative_rmse: float


@dataclass
class _Sum:
    weights: int = 0
    stored_bits: float = 0.0
    error: float = 0.0
    power: float = 0.0


class Quantiser:
    """Quantises parameter by parameter and keeps account by kind."""

    def __init__(self, executor: Executor, scheme: str) -> None:
        self._executor = executor
        self._scheme = None if scheme == FP8 else scheme_of(scheme)
        self._sums: dict[str, _Sum] = {}

    def matrix(self, name: str, weight: Tensor) -> QuantTensor | BlockTensor:
        """One matrix ``[rows, columns]``.

        Raises:
            ModelLoadError: it holds NaN or infinity.
        """
        _finite(weight, name)
        done: QuantTensor | BlockTensor
        if self._scheme is None:
            done = quantise_blocks(weight)
            errors = (dequantise(done) - weight.float()).square().sum(-1, dtype=torch.float64)
        else:
            done, errors = self._executor.quantise(weight, self._scheme.name)
        kind = self._sums.setdefault(_KIND.sub("", name), _Sum())
        kind.weights += weight.numel()
        kind.stored_bits += 8.0 * done.nbytes
        kind.error += float(errors.sum())
        # In pieces: an embedding in fp64 would take more than all the rest of a conversion.
        kind.power += sum(float(rows.double().square().sum()) for rows in weight.split(_ROWS))
        return done

    def parameter(self, name: str, weight: Tensor) -> Weight:
        """A parameter or a stack; what the scheme leaves alone comes back as it is."""
        shape = tuple(weight.shape)
        if not (
            is_fp8(name, shape) if self._scheme is None else is_quantised(name, shape, self._scheme)
        ):
            return weight
        if weight.ndim == 3:
            return stack([self.matrix(name, one) for one in weight])
        return self.matrix(name, weight)

    @property
    def report(self) -> list[KindReport]:
        """Per kind, in the order they came."""
        return [
            KindReport(
                kind, s.weights, s.stored_bits / s.weights, (s.error / max(s.power, 1e-300)) ** 0.5
            )
            for kind, s in self._sums.items()
        ]


def quantise_checkpoint(
    folder: Path,
    target: Path,
    scheme: str,
    executor: Executor,
    progress: Callable[[int, int], None] | None = None,
    extra: Mapping[str, str] = MappingProxyType({}),
) -> list[KindReport]:
    """Write ``folder``'s checkpoint in a scheme to ``target``, one layer in memory at a time.

    Args:
        folder: a checkpoint in the published layout.
        target: must not exist; it appears whole and synced to disk, or not at all.
        scheme: ``int8``, ``int4``, or ``fp8`` in the layout that is published.
        executor: quantises.
        progress: called with the shards written and their number.
        extra: text files by name that go with them.

    Raises:
        ModelLoadError: the source is damaged or quantised already, or the target exists.
    """
    if stored_scheme(folder) is not None:
        raise ModelLoadError(f"{folder}: is quantised already; quantise the original instead")
    if target.exists():
        raise ModelLoadError(f"{target}: exists already")
    config = ModelConfig.from_file(folder / "config.json")
    source = PublishedFiles(folder, config)
    quantiser = Quantiser(executor, scheme)
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f"{target.name}.tmp-{uuid.uuid4().hex[:8]}")
    fresh.mkdir()
    try:
        published = json.loads((folder / "config.json").read_text("utf-8"))
        write = write_fp8 if scheme == FP8 else partial(write_quantised, scheme=scheme)
        write(
            fresh, config, lambda name: quantiser.parameter(name, source.fetch(name)),
            published=published, progress=progress,
        )  # fmt: skip
        for path in sorted(folder.iterdir()):
            if path.suffix in _COPIED and path.name not in ("config.json", INDEX):
                shutil.copyfile(path, fresh / path.name)
        for name, text in extra.items():
            (fresh / name).write_text(text, "utf-8")
        # What is there is trusted: it must not appear before all of it would outlive a crash.
        for path in (*fresh.iterdir(), fresh):
            sync(path)
        fresh.rename(target)
        sync(target.parent)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    return quantiser.report


def write_quantised(
    folder: Path, config: ModelConfig, fetch: Callable[[str], StoredWeight], scheme: str,
    published: Mapping[str, Any], progress: Callable[[int, int], None] | None = None,
) -> None:  # fmt: skip
    """Write weights and ``config.json``: one file per layer and one for the rest, with an index.

    Args:
        folder: exists, and holds no checkpoint yet.
        config: the shape.
        fetch: gives each parameter as it is to be stored, whole stacks of experts at once.
        scheme: ``int8`` or ``int4``.
        published: the content of ``config.json`` without what is said here about the scheme.
        progress: called with the shards written and their number.
    """
    shapes = stored_shapes(config, scheme_of(scheme))

    def tensors(name: str) -> list[tuple[str, Tensor]]:
        done = fetch(name)
        if isinstance(done, QuantTensor):
            done = interleave(done)
        if isinstance(done, InterleavedTensor):
            parts = [getattr(done, part) for part in _PARTS]
        else:
            assert isinstance(done, Tensor)
            parts = [done]
        return list(zip(shapes[name], parts, strict=True))

    settings = {"quant_method": QUANT_METHOD, "version": VERSION, "scheme": scheme}
    _write_layers(folder, list(shapes), tensors, {**published, _SETTINGS: settings}, progress)


def write_fp8(
    folder: Path, config: ModelConfig, fetch: Callable[[str], Weight],
    published: Mapping[str, Any], progress: Callable[[int, int], None] | None = None,
) -> None:  # fmt: skip
    """:func:`write_quantised` in the published layout of fp8, which other engines load."""
    _write_layers(
        folder, list(parameter_shapes(config)), lambda name: fp8_tensors(name, fetch(name)),
        {**published, _SETTINGS: FP8_SETTINGS}, progress,
    )  # fmt: skip


def _write_layers(
    folder: Path, parameters: Sequence[str], tensors: Callable[[str], list[tuple[str, Tensor]]],
    content: Mapping[str, Any], progress: Callable[[int, int], None] | None,
) -> None:  # fmt: skip
    """One file per layer and one for the rest, from each parameter's named tensors."""
    groups: dict[str, list[str]] = {}
    for name in parameters:
        match = re.match(r"layers\.(\d+)\.", name)
        groups.setdefault(f"{int(match[1]):05d}" if match else "rest", []).append(name)
    weight_map: dict[str, str] = {}
    total = 0
    for number, names in enumerate(groups.values(), start=1):
        file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        ready = [pair for name in names for pair in tensors(name)]
        # Those that fill cache lines come first, so that they begin on one.
        ready.sort(key=lambda pair: pair[1].nbytes % ALIGNMENT != 0)
        entries = [(part, tuple(tensor.shape), tensor.dtype) for part, tensor in ready]
        write_safetensors(folder / file, entries, (tensor for _, tensor in ready))
        weight_map |= dict.fromkeys((part for part, _ in ready), file)
        total += sum(tensor.nbytes for _, tensor in ready)
        if progress is not None:
            progress(number, len(groups))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def stored_bytes(config: ModelConfig, weights: str) -> int:
    """Bytes that the weights take in a format: a scheme, ``fp8``, ``bfloat16``, ``float32``."""
    if weights == FP8:
        return sum(
            torch.Size(shape).numel() * dtype.itemsize
            for shape, dtype in fp8_shapes(config).values()
        )
    if weights not in SCHEMES:
        size = {"bfloat16": 2, "float32": 4}[weights]
        return sum(torch.Size(s).numel() for s in published_shapes(config).values()) * size
    parts = stored_shapes(config, SCHEMES[weights]).values()
    return sum(
        torch.Size(shape).numel() * dtype.itemsize
        for tensors in parts
        for shape, dtype in tensors.values()
    )


__all__ = [
    "KindReport",
    "QuantisedFiles",
    "Quantiser",
    "quantise_checkpoint",
    "stored_bytes",
    "stored_scheme",
    "write_fp8",
    "write_quantised",
]
