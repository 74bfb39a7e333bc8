"""Published checkpoints into the model and back: sharded safetensors, expert by expert."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsv2.checkpoint.buffers import Buffers
from dsv2.checkpoint.hub import resolve
from dsv2.checkpoint.names import Place, place_of, published_shapes, stored_names
from dsv2.checkpoint.safetensors import (
    DTYPES,
    ModelLoadError,
    SafetensorsFile,
    is_finite,
    open_safetensors,
    write_safetensors,
)
from dsv2.machine import available_bytes
from dsv2.model.config import ConfigError, ModelConfig
from dsv2.model.transformer import Transformer

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_INDEX_BYTES = 64 << 20
MAX_SHARD_BYTES = 5_000_000_000
NAMED_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
}
"""The dtypes that weights may have in memory, by the names users give."""
_DTYPE_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def load_model(
    source: str | Path,
    *,
    dtype: torch.dtype | str = "auto",
    device: torch.device | str = "cpu",
    backend: str = "auto",
    check_finite: bool = True,
) -> Transformer:
    """Load a checkpoint in the published layout.

    Tensors stream one by one into a model whose memory is allocated once; at most one tensor
    exists besides it. The model is returned whole or not at all.

    Args:
        source: a folder, ``pocket`` or the name of a pulled model.
        dtype: of the weights in memory; ``auto`` for the first tensor's own.
        device: where the weights go.
        backend: of the model's ops.
        check_finite: refuse weights that hold NaN or infinity.

    Raises:
        ModelLoadError: a file or tensor is missing, surplus, misshapen, cut off or not finite, or
            the memory does not suffice.
        ConfigError: the configuration is not one of this architecture.
        ModelNotFoundError: there is no such model here.
    """
    folder = resolve(source)
    config = ModelConfig.from_file(folder / "config.json")
    files = _locate(folder, config)
    kind = _memory_dtype(dtype, next(iter(files.items())))
    _check_memory(folder, config, kind, torch.device(device))
    with torch.device("meta"):
        model = Transformer(config, backend=backend).to(kind)
        for name, parameter in model.named_parameters():
            if name.endswith("router_bias"):  # it orders scores that are fp32, so it stays so too
                parameter.data = parameter.data.float()
    model = model.to_empty(device=device)
    parameters = dict(model.named_parameters())
    for name, file in files.items():
        place = place_of(name)
        assert place is not None
        target = parameters[place.parameter].detach()
        target = target if place.expert is None else target[place.expert]
        file.read_into(name, target)
        if check_finite and not is_finite(target):
            raise ModelLoadError(f"{file.path}: tensor {name} holds NaN or infinity")
    return model.eval()


def _locate(folder: Path, config: ModelConfig) -> dict[str, SafetensorsFile]:
    """Every tensor of the model and the checked file that holds it, in file order."""
    # Some writers store the tied head as well; it must be the embedding then.
    ignored = ("lm_head.weight",) if config.tie_word_embeddings else ()
    return locate_files(folder, published_shapes(config), ignored=ignored)


def locate_files(
    folder: Path, wanted: dict[str, tuple[int, ...]], *, ignored: Collection[str] = (),
    state: bool = False,
) -> dict[str, SafetensorsFile]:  # fmt: skip
    """The checked file of each wanted tensor, in file order.

    Args:
        folder: with one file, or several and an index.
        wanted: name and shape of every tensor there must be.
        ignored: names that may be there too.
        state: allow integers and fp8 too.

    Raises:
        ModelLoadError: a file or tensor is missing, surplus or misshapen.
    """
    paths = _shards(folder)
    found: dict[str, SafetensorsFile] = {}
    for path, promised in paths.items():
        file = open_safetensors(path, state=state)
        if promised is not None and promised != set(file.entries):
            missing = sorted(promised - set(file.entries)) or sorted(set(file.entries) - promised)
            raise ModelLoadError(f"{path}: the index disagrees on {_some(missing)}")
        for name in sorted(file.entries, key=lambda name: file.entries[name].start):
            if name in found:
                raise ModelLoadError(f"{path}: tensor {name} is also in {found[name].path.name}")
            found[name] = file
    for name in ignored:
        found.pop(name, None)
    problems = []
    if missing := [name for name in wanted if name not in found]:
        problems.append(f"missing {_some(missing)}")
    if surplus := [name for name in found if name not in wanted]:
        problems.append(f"surplus {_some(surplus)}")
    wrong = [
        f"{name} {list(found[name].entries[name].shape)} instead of {list(shape)}"
        for name, shape in wanted.items()
        if name in found and found[name].entries[name].shape != shape
    ]
    if wrong:
        problems.append(f"misshapen {_some(wrong)}")
    if problems:
        raise ModelLoadError(f"{folder}: the weights do not fit config.json: {'; '.join(problems)}")
    return found


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"


def _shards(folder: Path) -> dict[Path, set[str] | None]:
    """The weight files of a folder, with the tensors that an index promises in each."""
    index = folder / INDEX
    if not index.exists():
        single = folder / SINGLE
        if single.exists():
            return {single: None}
        other = sorted(p.name for p in folder.glob("*") if p.suffix in (".bin", ".pt", ".pth"))
        if other:
            raise ModelLoadError(
                f"{folder}: {_some(other)}: pickled weights can run code and are never loaded; "
                "allowed is safetensors"
            )
        raise ModelLoadError(f"{folder}: neither {SINGLE} nor {INDEX} is there")
    if index.stat().st_size > MAX_INDEX_BYTES:
        raise ModelLoadError(f"{index}: {index.stat().st_size} bytes, allowed {MAX_INDEX_BYTES}")
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelLoadError(f"{index}: no valid weight_map: {error}") from error
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelLoadError(f"{index}: weight_map must be an object with entries")
    shards: dict[Path, set[str] | None] = {}
    for name, file in weight_map.items():
        if (
            not isinstance(file, str)
            or Path(file).name != file
            or Path(file).suffix != ".safetensors"
        ):
            raise ModelLoadError(
                f"{index}: tensor {name[:200]!r} is in {str(file)[:200]!r}; allowed is the plain "
                "name of a .safetensors file beside the index"
            )
        promised = shards.setdefault(folder / file, set())
        assert promised is not None
        promised.add(name)
    for path in shards:
        if not path.is_file():
            raise ModelLoadError(f"{path}: the shard that the index names is missing")
    return shards


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter of the model, experts stacked."""
    return dict(_parameter_shapes(config))


@lru_cache(maxsize=16)
def _parameter_shapes(config: ModelConfig) -> Mapping[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in published_shapes(config).items():
        place = place_of(name)
        assert place is not None
        experts = () if place.expert is None else (config.n_routed_experts or 0,)
        shapes[place.parameter] = (*experts, *shape)
    return shapes


class PublishedFiles:
    """The weights of a folder in the published layout, by the model's parameter names.

    Raises:
        ModelLoadError: files are missing, damaged or not of the configuration.
    """

    def __init__(self, folder: Path, config: ModelConfig) -> None:
        self._files = _locate(folder, config)
        self._shapes = parameter_shapes(config)
        self._buffers = Buffers()

    def fetch(self, parameter: str) -> Tensor:
        """A parameter in the dtype it is stored in; experts are stacked.

        Raises:
            ModelLoadError: it cannot be read, or holds NaN or infinity.
        """
        names = stored_names(parameter, self._shapes[parameter])
        whole = read_stacked(self._files, names, self._buffers)
        return whole if ".experts." in parameter else whole[0]


def read_stacked(
    files: Mapping[str, SafetensorsFile], names: Sequence[str], buffers: Buffers
) -> Tensor:
    """Tensors of one shape and dtype as ``[len(names), *shape]``, in memory of ``buffers``.

    Raises:
        ModelLoadError: one cannot be read, or holds NaN or infinity.
    """
    first = files[names[0]]
    shape = first.entries[names[0]].shape
    whole = buffers.take((len(names), *shape), first.dtype_of(names[0]))
    for place, name in enumerate(names):
        files[name].read_into(name, whole[place])
        if not is_finite(whole[place]):
            raise ModelLoadError(f"{files[name].path}: tensor {name} holds NaN or infinity")
    return whole


def _memory_dtype(dtype: torch.dtype | str, first: tuple[str, SafetensorsFile]) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        name, file = first
        return DTYPES[file.entries[name].dtype]
    if dtype not in NAMED_DTYPES:
        raise ModelLoadError(
            f"dtype {dtype!r} is unknown, allowed are auto, {', '.join(NAMED_DTYPES)}"
        )
    return NAMED_DTYPES[dtype]


def _check_memory(
    folder: Path, config: ModelConfig, dtype: torch.dtype, device: torch.device
) -> None:
    from dsv2.model.counts import count

    needed = count(config).total * dtype.itemsize
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    elif device.type == "cpu":
        free = available_bytes()
    else:
        return
    if needed > free:
        raise ModelLoadError(
            f"{folder}: the weights need {needed / 1e9:.1f} GB as {dtype}, "
            f"{free / 1e9:.1f} GB are free on {device}"
        )


def save_model(
    model: Transformer,
    folder: Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    generation_config: dict[str, Any] | None = None,
    tokenizer_files: dict[str, bytes] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a checkpoint in the published layout, readable by transformers and vLLM.

    The folder appears whole or not at all: it is written beside its place and then renamed.

    Args:
        model: what to write.
        folder: must not exist or be empty, unless ``overwrite``.
        dtype: of the stored weights; the selection bias of a router stays fp32.
        max_shard_bytes: largest shard.
        generation_config: the content of ``generation_config.json``; greedy with the model's ids
            when None.
        tokenizer_files: further files by name, such as the tokenizer's.
        overwrite: replace the folder.

    Raises:
        ModelLoadError: the folder has content, or the dtype is not one of the layout's.
    """
    if dtype not in _DTYPE_NAMES:
        raise ModelLoadError(f"dtype {dtype} cannot be stored, allowed: {', '.join(DTYPES)}")
    if folder.exists() and any(folder.iterdir()) and not overwrite:
        raise ModelLoadError(f"{folder}: the folder is not empty")
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = folder.with_name(f"{folder.name}.tmp-{uuid.uuid4().hex[:8]}")
    fresh.mkdir()
    try:
        _write_weights(model, fresh, dtype, max_shard_bytes)
        config = model.config
        texts: dict[str, Any] = {
            "config.json": config.to_published(_DTYPE_NAMES[dtype]),
            "generation_config.json": generation_config
            or {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id},
        }
        for name, content in texts.items():
            (fresh / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        for name, raw in (tokenizer_files or {}).items():
            (fresh / name).write_bytes(raw)
        if folder.exists():
            shutil.rmtree(folder)
        fresh.rename(folder)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def _write_weights(model: Transformer, folder: Path, dtype: torch.dtype, limit: int) -> None:
    parameters = dict(model.named_parameters())
    shards: list[list[tuple[str, tuple[int, ...], torch.dtype]]] = [[]]
    filled = total = 0
    for name, shape in published_shapes(model.config).items():
        stored = torch.float32 if name.endswith("e_score_correction_bias") else dtype
        size = torch.Size(shape).numel() * stored.itemsize
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append((name, shape, stored))
        filled += size
        total += size

    def tensors(names: list[tuple[str, tuple[int, ...], torch.dtype]]) -> Iterator[Tensor]:
        for name, _, stored in names:
            place = place_of(name)
            assert place is not None
            yield _of(parameters, place).to(stored)

    if len(shards) == 1:
        write_safetensors(folder / SINGLE, shards[0], tensors(shards[0]))
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(folder / file, names, tensors(names))
        weight_map |= {name: file for name, _, _ in names}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _of(parameters: dict[str, torch.nn.Parameter], place: Place) -> Tensor:
    parameter = parameters[place.parameter].detach()
    return parameter if place.expert is None else parameter[place.expert]


__all__ = ["ConfigError", "load_model", "save_model"]
