"""Weight formats: what 4 and 8 bits mean, portably, and the readable way there and back.

A quantised matrix ``[.., rows, columns]`` is split along its columns into groups. A weight is

    row_scale[row] * scale[row, group] * level[code]

with an int8 scale per group and an fp32 scale per row. ``int8`` has groups of 32 and codes that are
their own levels: 8.25 bits and 32 per row. ``int4`` has groups of 64 and the 16 levels of
:data:`CODEBOOK`, denser near zero as weights are: 4.125 bits and 32 per row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CODEBOOK = (-127, -99, -78, -61, -47, -33, -21, -10, 2, 13, 24, 36, 50, 65, 83, 108)
"""Levels of the 4-bit codes, fitted to groups of 64 normal numbers (``benchmarks/codebook.py``)."""


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


Weight = Tensor | QuantTensor


def stack(tensors: Sequence[Weight]) -> Weight:
    """Matrices of one shape and format as ``[count, rows, columns]``."""
    first = tensors[0]
    if isinstance(first, Tensor):
        return torch.stack([tensor for tensor in tensors if isinstance(tensor, Tensor)])
    parts = [tensor for tensor in tensors if isinstance(tensor, QuantTensor)]
    return QuantTensor(
        first.scheme,
        torch.stack([part.codes for part in parts]),
        torch.stack([part.scales for part in parts]),
        torch.stack([part.row_scales for part in parts]),
    )


def _levels(scheme: Scheme) -> Tensor:
    if scheme.bits == 4:
        return torch.tensor(CODEBOOK, dtype=torch.float32)
    return torch.arange(-128, 128, dtype=torch.float32)


def dequantise(weight: Weight) -> Tensor:
    """The weight in fp32 (a plain tensor: itself, converted)."""
    if isinstance(weight, Tensor):
        return weight.float()
    scheme = SCHEMES[weight.scheme]
    if scheme.bits == 4:
        codes = torch.stack((weight.codes & 15, weight.codes >> 4), -1).flatten(-2)
        levels = _levels(scheme).to(codes.device)[codes.long()]
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
    levels = _levels(kind)
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
