"""Weight formats: what 4 and 8 bits mean, portably, and the readable way there and back.

A quantised matrix ``[.., rows, columns]`` is split along its columns into groups. A weight is

    row_scale[row] * scale[row, group] * level[code]

with an int8 scale per group and an fp32 scale per row. ``int8`` has groups of 32 and codes that are
their own levels: 8.25 bits and 32 per row. ``int4`` has groups of 64 and the 16 levels of
:data:`CODEBOOK`, denser near zero as weights are: 4.125 bits and 32 per row.

``fp8`` is what the published fp8 checkpoints hold: e4m3 numbers and an fp32 scale per block of 128
by 128, the last blocks of rows and columns cut short. A weight is ``scale[block] * code``: 8.002
bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import Tensor

FP8_BLOCK = 128
"""Rows and columns of a block of fp8 that share a scale."""
FP8_TOP = 448.0
"""The largest number of e4m3."""
CODEBOOK = (-34, -27, -21, -16, -12, -9, -6, -3, 0, 3, 6, 10, 13, 17, 22, 29)
"""Levels of the 4-bit codes, fitted to groups of 64 normal numbers (``benchmarks/codebook.py``).

They span less than 64, which costs 1 % of the error and lets CPUs without instructions for dot
products of bytes add four products in 16 bits.
"""


@dataclass(frozen=True)
class Scheme:
    """A quantised format.

    Attributes:
        name: as users write it.
        bits: of a code.
        group: columns that share a scale.
        search: the range of scales that is tried, as multiples of the one that maps the extreme of
            a group to the first level.
    """

    name: str
    bits: int
    group: int
    search: tuple[float, float]

    def bits_per_weight(self, columns: int) -> float:
        """Bits that a weight takes in rows of ``columns``, all scales included."""
        return self.bits + 8 / self.group + 32 / columns


SCHEMES = {
    "int8": Scheme("int8", bits=8, group=32, search=(0.99, 1.12)),
    "int4": Scheme("int4", bits=4, group=64, search=(0.80, 1.12)),
}
"""The quantised formats by name. kernels/cpu/csrc/quantise.h tries the same scales."""


@dataclass(frozen=True)
class QuantTensor:
    """A quantised weight ``[.., rows, columns]``.

    Attributes:
        scheme: a name of :data:`SCHEMES`.
        codes: uint8 ``[.., rows, columns * bits / 8]``; of two 4-bit codes in a byte the even
            column's is the low one; 8-bit codes are int8 stored as bytes.
        scales: int8 ``[.., rows, columns / group]``.
        row_scales: fp32 ``[.., rows]``.
    """

    scheme: str
    codes: Tensor
    scales: Tensor
    row_scales: Tensor

    @property
    def shape(self) -> torch.Size:
        """Of the weight."""
        group = SCHEMES[self.scheme].group
        return torch.Size((*self.scales.shape[:-1], self.scales.shape[-1] * group))

    @property
    def nbytes(self) -> int:
        """Of codes and scales."""
        return self.codes.nbytes + self.scales.nbytes + self.row_scales.nbytes

    def __getitem__(self, index: int) -> QuantTensor:
        """One matrix of a stack."""
        return QuantTensor(
            self.scheme, self.codes[index], self.scales[index], self.row_scales[index]
        )


@dataclass(frozen=True)
class BlockTensor:
    """A weight ``[.., rows, columns]`` in fp8 with a scale per block.

    Attributes:
        codes: float8_e4m3fn ``[.., rows, columns]``.
        scales: fp32 ``[.., ceil(rows / 128), ceil(columns / 128)]``, the published
            ``weight_scale_inv``: what a code is multiplied by.
    """

    codes: Tensor
    scales: Tensor

    @property
    def shape(self) -> torch.Size:
        """Of the weight."""
        return self.codes.shape

    @property
    def nbytes(self) -> int:
        """Of codes and scales."""
        return self.codes.nbytes + self.scales.nbytes

    def __getitem__(self, index: int) -> BlockTensor:
        """One matrix of a stack."""
        return BlockTensor(self.codes[index], self.scales[index])


Coded = QuantTensor | BlockTensor
Weight = Tensor | QuantTensor | BlockTensor


def stack(tensors: Sequence[Weight]) -> Weight:
    """Matrices of one shape and format as ``[count, rows, columns]``."""
    first = tensors[0]
    if isinstance(first, Tensor):
        return torch.stack([tensor for tensor in tensors if isinstance(tensor, Tensor)])
    if isinstance(first, BlockTensor):
        blocks = [tensor for tensor in tensors if isinstance(tensor, BlockTensor)]
        return BlockTensor(
            torch.stack([part.codes for part in blocks]),
            torch.stack([part.scales for part in blocks]),
        )
    parts = [tensor for tensor in tensors if isinstance(tensor, QuantTensor)]
    return QuantTensor(
        first.scheme,
        torch.stack([part.codes for part in parts]),
        torch.stack([part.scales for part in parts]),
        torch.stack([part.row_scales for part in parts]),
    )


@cache
def _levels(bits: int, device: torch.device) -> Tensor:
    """Made once for a device: a CUDA graph may not hold a copy from the host."""
    with torch.inference_mode(False):
        if bits == 4:
            return torch.tensor(CODEBOOK, dtype=torch.float32, device=device)
        return torch.arange(-128, 128, dtype=torch.float32, device=device)


def dequantise(weight: Weight) -> Tensor:
    """The weight in fp32 (a plain tensor: itself, converted)."""
    if isinstance(weight, Tensor):
        return weight.float()
    if isinstance(weight, BlockTensor):
        rows, columns = weight.shape[-2:]
        scales = weight.scales.repeat_interleave(FP8_BLOCK, -2)[..., :rows, :]
        return weight.codes.float() * scales.repeat_interleave(FP8_BLOCK, -1)[..., :columns]
    scheme = SCHEMES[weight.scheme]
    if scheme.bits == 4:
        codes = torch.stack((weight.codes & 15, weight.codes >> 4), -1).flatten(-2)
        levels = _levels(scheme.bits, codes.device)[codes.long()]
    else:
        levels = weight.codes.view(torch.int8).float()
    grouped = levels.unflatten(-1, (-1, scheme.group))
    scales = weight.scales.float() * weight.row_scales.unsqueeze(-1)  # .. rows groups
    return (grouped * scales.unsqueeze(-1)).flatten(-2)


def quantise(weight: Tensor, scheme: str) -> QuantTensor:
    """The readable quantiser: every scale code in the scheme's range, with either sign.

    Args:
        weight: ``[rows, columns]``, columns a multiple of the scheme's group.
        scheme: ``int8`` or ``int4``.

    Raises:
        ValueError: the scheme is unknown or the columns do not fit it.
    """
    kind = scheme_of(scheme)
    columns = weight.shape[-1]
    if columns % kind.group:
        raise ValueError(f"{columns} columns, {scheme} needs a multiple of {kind.group}")
    levels = _levels(kind.bits, weight.device)
    middles = (levels[1:] + levels[:-1]) / 2
    wide = weight.float().unflatten(-1, (-1, kind.group))  # rows groups G
    extreme = wide.gather(-1, wide.abs().argmax(-1, keepdim=True))
    low, high = kind.search
    unit = wide.abs().amax((-1, -2)) * high / -levels[0] / 127  # rows
    base = extreme / levels[0] / unit.clamp_min(1e-38).reshape(-1, 1, 1)
    best = torch.zeros_like(base)
    least = wide.square().sum(-1, keepdim=True)
    for magnitude in range(1, 128):
        inside = (magnitude >= (base.abs() * low).floor()) & (
            magnitude <= (base.abs() * high).ceil()
        )
        for sign in (1, -1):
            scale = sign * magnitude * unit.reshape(-1, 1, 1).expand_as(base)
            rounded = levels[torch.bucketize(wide / scale.where(scale != 0, 1), middles)]
            error = (rounded * scale - wide).square().sum(-1, keepdim=True)
            better = inside & (error < least)
            best = torch.where(better, sign * magnitude, best)
            least = torch.where(better, error, least)
    scale = best * unit.reshape(-1, 1, 1)
    codes = torch.bucketize(wide / scale.where(scale != 0, 1), middles).flatten(1)
    codes = codes.where((scale != 0).expand_as(wide).flatten(1), 128 if kind.bits == 8 else 8)
    if kind.bits == 4:
        packed = (codes[:, 0::2] | codes[:, 1::2] << 4).to(torch.uint8)
    else:
        packed = (codes - 128).to(torch.int8).view(torch.uint8)
    return QuantTensor(scheme, packed, best.squeeze(-1).to(torch.int8), unit)


def quantise_blocks(weight: Tensor) -> BlockTensor:
    """A matrix ``[rows, columns]`` in fp8: the largest number of each block becomes 448."""
    rows, columns = weight.shape
    down, across = -(-rows // FP8_BLOCK), -(-columns // FP8_BLOCK)
    wide = F.pad(
        weight.float(), (0, across * FP8_BLOCK - columns, 0, down * FP8_BLOCK - rows)
    ).view(down, FP8_BLOCK, across, FP8_BLOCK)
    largest = wide.abs().amax((1, 3))
    scales = torch.where(largest > 0, largest / FP8_TOP, 1.0)
    # The quotient of the largest number may round past the top, where the conversion yields NaN.
    scaled = (wide / scales[:, None, :, None]).clamp(-FP8_TOP, FP8_TOP)
    codes = scaled.reshape(down * FP8_BLOCK, across * FP8_BLOCK)[:rows, :columns]
    return BlockTensor(codes.to(torch.float8_e4m3fn).contiguous(), scales)


def weight_rows(weight: Weight, ids: Tensor) -> Tensor:
    """Rows ``ids`` ``[T]`` of a matrix ``[rows, columns]`` in fp32 ``[T, columns]``."""
    if isinstance(weight, Tensor):
        return F.embedding(ids, weight).float()
    index = ids.long()
    if isinstance(weight, QuantTensor):
        return dequantise(
            QuantTensor(
                weight.scheme, weight.codes[index], weight.scales[index], weight.row_scales[index]
            )
        )
    scales = weight.scales[index // FP8_BLOCK].repeat_interleave(FP8_BLOCK, -1)
    # Indexing takes bytes, since not every device gathers fp8.
    codes = weight.codes.view(torch.uint8)[index].view(torch.float8_e4m3fn)
    return codes.float() * scales[:, : weight.shape[-1]]


def scheme_of(name: str) -> Scheme:
    """The scheme of a name.

    Raises:
        ValueError: there is none.
    """
    if name not in SCHEMES:
        raise ValueError(f"scheme {name!r} is unknown, allowed are {', '.join(SCHEMES)}")
    return SCHEMES[name]


def relative_rmse(weight: Tensor, other: Tensor) -> float:
    """Root of the mean squared difference over the root mean square of ``weight``."""
    wide = weight.double()
    return float(((other.double() - wide).square().sum() / wide.square().sum()).sqrt())


def random_codes(shape: Sequence[int], scheme: str, generator: torch.Generator) -> QuantTensor:
    """A matrix ``[.., rows, columns]`` of drawn codes and scales, on the generator's device.

    Numbers have a mean of zero and a spread of ``columns ** -0.5``.
    """
    kind, device = SCHEMES[scheme], generator.device
    *rows, columns = shape
    codes = torch.randint(
        256, (*rows, columns * kind.bits // 8), dtype=torch.uint8, generator=generator,
        device=device,
    )  # fmt: skip
    groups = (*rows, columns // kind.group)
    scales = torch.randint(70, 127, groups, dtype=torch.int8, generator=generator, device=device)
    # Levels of 4 bits have a mean, which adds up in every layer until all tokens take the same
    # experts; with either sign it does not. Weights that are too small have the same effect.
    signs = torch.randint(0, 2, groups, dtype=torch.int8, generator=generator, device=device)
    scales *= 2 * signs - 1
    levels = CODEBOOK if kind.bits == 4 else range(-128, 128)
    size = _root_mean_square(levels) * _root_mean_square(range(70, 127))
    row_scales = torch.full(rows, columns**-0.5 / size, device=device)
    return QuantTensor(scheme, codes, scales, row_scales)


def _root_mean_square(numbers: Sequence[int]) -> float:
    return fmean(number * number for number in numbers) ** 0.5
