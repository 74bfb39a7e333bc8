"""The safetensors format, read strictly and written tensor by tensor.

The header of a file from elsewhere is checked whole before a byte of weights is touched. What is
converted or copied is read with ordinary file reads: a file that shrinks meanwhile is then an error
and not a killed process. Only files in our own layout, which are used as they are, get mapped.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MAX_HEADER_BYTES = 100_000_000
ALIGNMENT = 64
"""What a header's length in our files is a multiple of, for mapped tensors to start on a line."""
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_STATE_DTYPES = DTYPES | {"I64": torch.int64, "I32": torch.int32}
_STATE_DTYPES |= {"U8": torch.uint8, "I8": torch.int8, "F8_E4M3": torch.float8_e4m3fn}
_NAMES = {dtype: name for name, dtype in _STATE_DTYPES.items()}
_PART = 8 << 20
"""Bytes that a thread reads at once."""
_MOST_READERS = 4
_SIZES = {"F32": 4, "BF16": 2, "F16": 2, "I64": 8, "I32": 4, "U8": 1, "I8": 1, "F8_E4M3": 1}


class ModelLoadError(ValueError):
    """A checkpoint is missing, malformed, truncated or not of the model it claims to be."""


@dataclass(frozen=True)
class TensorEntry:
    """A tensor of a file: its dtype's name, shape and byte range behind the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class SafetensorsFile:
    """A file whose header has been checked.

    Attributes:
        path: the file.
        data_start: offset of the first byte behind the header.
        entries: its tensors by name.
    """

    path: Path
    data_start: int
    entries: dict[str, TensorEntry]

    def dtype_of(self, name: str) -> torch.dtype:
        """The dtype of tensor ``name``."""
        return _STATE_DTYPES[self.entries[name].dtype]

    def read_into(self, name: str, destination: Tensor) -> None:
        """Read tensor ``name`` into ``destination``, converting its dtype where it differs.

        Raises:
            ModelLoadError: the file ends early or cannot be read.
        """
        entry = self.entries[name]
        dtype = _STATE_DTYPES[entry.dtype]
        direct = destination.dtype == dtype and destination.is_contiguous()
        buffer = destination if direct and not destination.is_cuda else torch.empty(
            entry.shape, dtype=dtype, device="cpu"
        )  # fmt: skip
        if entry.end > entry.start:
            view = buffer.detach().view(-1).view(torch.uint8).numpy().data
            try:
                with self.path.open("rb", buffering=0) as file:
                    self._fill(file.fileno(), name, view)
            except OSError as error:
                raise ModelLoadError(f"{self.path}: tensor {name}: {error}") from error
        if buffer is not destination:
            destination.copy_(buffer)

    def _fill(self, file: int, name: str, view: memoryview) -> None:
        """Read a tensor's bytes; several threads copy a large one out of the page cache."""
        start = self.data_start + self.entries[name].start

        def fill(first: int) -> None:
            last = min(first + _PART, len(view))
            while first < last:
                count = os.preadv(file, [view[first:last]], start + first)
                if not count:
                    raise ModelLoadError(
                        f"{self.path}: tensor {name} is cut off after {first} of {len(view)} bytes"
                    )
                first += count

        parts = range(0, len(view), _PART)
        readers = min(len(parts), _MOST_READERS, len(os.sched_getaffinity(0)))
        if readers == 1:
            for part in parts:
                fill(part)
            return
        with ThreadPoolExecutor(readers, "dsv2-read") as pool:
            for _ in pool.map(fill, parts):
                pass

    def read(self, name: str) -> Tensor:
        """Tensor ``name`` on the CPU in its own dtype."""
        entry = self.entries[name]
        tensor = torch.empty(entry.shape, dtype=_STATE_DTYPES[entry.dtype], device="cpu")
        self.read_into(name, tensor)
        return tensor

    def map(self, name: str) -> Tensor:
        """Tensor ``name`` as the file's own pages, all of which are in memory by then.

        Writes to it stay in this process. A tensor that does not start on a multiple of 64 bytes
        is read instead.

        Raises:
            ModelLoadError: the file cannot be mapped.
        """
        entry = self.entries[name]
        start = self.data_start + entry.start
        if start % ALIGNMENT or entry.start == entry.end:
            return self.read(name)
        view = memoryview(self._mapping)[start : start + entry.end - entry.start]
        tensor = torch.frombuffer(view, dtype=_STATE_DTYPES[entry.dtype]).view(entry.shape)
        # Now, rather than in the middle of the first step.
        torch.frombuffer(view, dtype=torch.uint8)[:: mmap.PAGESIZE].amax()
        return tensor

    @cached_property
    def _mapping(self) -> mmap.mmap:
        try:
            with self.path.open("rb") as file:
                mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:
            raise ModelLoadError(f"{self.path}: cannot be mapped: {error}") from error
        if len(mapping) < self.data_start + max(one.end for one in self.entries.values()):
            raise ModelLoadError(f"{self.path}: has become shorter: {len(mapping)} bytes")
        if hasattr(mmap, "MADV_WILLNEED"):
            with suppress(OSError):  # a refusal costs speed only
                mapping.madvise(mmap.MADV_WILLNEED)
        return mapping


def is_finite(tensor: Tensor) -> bool:
    """Whether no number is NaN or infinite, in one pass and without a copy."""
    if not tensor.numel():
        return True
    if tensor.dtype == torch.float8_e4m3fn:  # has no infinity, and one NaN of either sign
        return not bool(((tensor.view(torch.uint8) & 127) == 127).any())
    # NaN is the extreme of everything it is among.
    return all(math.isfinite(float(extreme)) for extreme in tensor.aminmax())


def open_safetensors(path: Path, *, state: bool = False) -> SafetensorsFile:
    """Check the header of ``path`` and return its table of tensors.

    Args:
        path: the file.
        state: allow integers and fp8 besides the dtypes of plain weights.

    Raises:
        ModelLoadError: anything is not as the format demands, naming the file and the tensor.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            word = file.read(8)
            if len(word) < 8:
                raise ModelLoadError(f"{path}: {size} bytes, too short for a safetensors file")
            length = int.from_bytes(word, "little")
            if length > MAX_HEADER_BYTES or length < 2 or 8 + length > size:
                raise ModelLoadError(
                    f"{path}: header of {length} bytes in a file of {size}; allowed are 2 to "
                    f"{MAX_HEADER_BYTES} within the file"
                )
            raw = file.read(length)
    except OSError as error:
        raise ModelLoadError(f"{path}: {error.strerror or error}") from error
    header = _parse(path, raw)
    entries = {
        name: _entry(path, name, value, state)
        for name, value in header.items()
        if name != "__metadata__"
    }
    _check_cover(path, entries, size - 8 - length)
    return SafetensorsFile(path, 8 + length, entries)


def _parse(path: Path, raw: bytes) -> dict[str, Any]:
    if raw[:1] != b"{":
        raise ModelLoadError(f"{path}: the header does not start with '{{'")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise ModelLoadError(f"{path}: the header has {twice!r} twice")
        return table

    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except ModelLoadError:
        raise
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(f"{path}: the header is not valid JSON: {error}") from error
    if not isinstance(header, dict):
        raise ModelLoadError(f"{path}: the header is not an object")
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ModelLoadError(f"{path}: __metadata__ must map strings to strings")
    return header


def _entry(path: Path, name: str, value: Any, state: bool) -> TensorEntry:
    where = f"{path}: tensor {name[:200]!r}"
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise ModelLoadError(f"{where} must have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    allowed = _STATE_DTYPES if state else DTYPES
    if not isinstance(dtype, str) or dtype not in allowed:
        raise ModelLoadError(f"{where} has dtype {dtype!r}, allowed are {', '.join(allowed)}")
    if not _is_sizes(shape) or len(shape) > 8:
        raise ModelLoadError(f"{where} has shape {str(shape)[:80]}, allowed are up to 8 sizes")
    if not _is_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ModelLoadError(
            f"{where} has data_offsets {str(offsets)[:80]}, allowed is [start, end]"
        )
    needed = math.prod(shape) * _SIZES[dtype]
    if offsets[1] - offsets[0] != needed:
        raise ModelLoadError(
            f"{where} spans {offsets[1] - offsets[0]} bytes, {dtype} {shape} needs {needed}"
        )
    return TensorEntry(dtype, tuple(shape), offsets[0], offsets[1])


def _is_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(size, int) and not isinstance(size, bool) and size >= 0 for size in value
    )


def _check_cover(path: Path, entries: dict[str, TensorEntry], size: int) -> None:
    """The tensors cover the data without a hole, an overlap or a rest."""
    place = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != place:
            kind = "overlaps the one before" if entry.start < place else "leaves a hole before it"
            raise ModelLoadError(f"{path}: tensor {name[:200]!r} {kind}")
        place = entry.end
    if place != size:
        word = "is cut off" if place > size else "has bytes that no tensor owns"
        raise ModelLoadError(
            f"{path}: the file {word}: {size} bytes of data, the header tells {place}"
        )


def write_safetensors(
    path: Path,
    shapes: Sequence[tuple[str, tuple[int, ...], torch.dtype]],
    tensors: Iterable[Tensor],
) -> None:
    """Write a file in one pass, holding one tensor at a time; synced to disk on return.

    Args:
        path: the file, which must not exist.
        shapes: name, shape and dtype of every tensor.
        tensors: the tensors in the same order.

    Raises:
        ValueError: a tensor is not as announced.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name, shape, dtype in shapes:
        end = place + math.prod(shape) * _SIZES[_NAMES[dtype]]
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [place, end]}
        place = end
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-(8 + len(raw)) % ALIGNMENT)
    with path.open("xb") as file:
        file.write(len(raw).to_bytes(8, "little"))
        file.write(raw)
        for (name, shape, dtype), tensor in zip(shapes, tensors, strict=True):
            if tuple(tensor.shape) != shape or tensor.dtype != dtype:
                raise ValueError(f"{name}: {tensor.dtype} {tuple(tensor.shape)}, announced {shape}")
            if tensor.numel():
                flat = tensor.detach().cpu().contiguous().view(-1)
                file.write(flat.view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())
