"""Quantised weights as files hold them and backend ``cpu`` multiplies them, without a copy.

Rows lie in blocks of 16 (the last one padded with zeros), a word of 4 bytes of each in turn, so
that a vector holds the same columns of 16 rows. Other backends turn them into
:class:`dsv2.kernels.formats.QuantTensor`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dsv2.kernels.formats import SCHEMES, QuantTensor, Scheme, Weight

LANES = 16
"""Rows of a block."""
_WORD = 4
"""Bytes of a word: 4 codes of 8 bits or 8 of 4."""


@dataclass(frozen=True)
class InterleavedTensor:
    """A quantised weight ``[.., rows, columns]`` in blocks of interleaved rows.

    Attributes:
        scheme: a name of :data:`dsv2.kernels.formats.SCHEMES`.
        rows: of the weight, those that fill the last block not counted.
        codes: uint8 ``[.., blocks, words, 16, 4]``. 8-bit codes are unsigned, 128 above their
            levels; of 8 codes of 4 bits in a word the first 4 are the low ones of its bytes.
        scales: int8 ``[.., blocks, groups, 16]``.
        row_scales: fp32 ``[.., blocks, 16]``.
    """

    scheme: str
    rows: int
    codes: Tensor
    scales: Tensor
    row_scales: Tensor

    @property
    def shape(self) -> torch.Size:
        """Of the weight."""
        *stack, _, groups, _ = self.scales.shape
        return torch.Size((*stack, self.rows, groups * SCHEMES[self.scheme].group))


StoredWeight = Weight | InterleavedTensor
"""What executors pack."""


def interleaved_shapes(
    shape: tuple[int, ...], scheme: Scheme
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shapes and dtypes of the three parts of a weight ``[.., rows, columns]`` in a scheme."""
    *stack, rows, columns = shape
    blocks = -(-rows // LANES)
    words = columns * scheme.bits // 8 // _WORD
    return {
        "codes": ((*stack, blocks, words, LANES, _WORD), torch.uint8),
        "scales": ((*stack, blocks, columns // scheme.group, LANES), torch.int8),
        "row_scales": ((*stack, blocks, LANES), torch.float32),
    }


def interleave(weight: QuantTensor) -> InterleavedTensor:
    """The same weight in blocks."""
    kind, rows = SCHEMES[weight.scheme], weight.shape[-2]
    codes = weight.codes
    if kind.bits == 4:
        eight = torch.stack((codes & 15, codes >> 4), -1).flatten(-2).unflatten(-1, (-1, 2, _WORD))
        words = eight[..., 0, :] | eight[..., 1, :] << 4  # .. rows words 4
    else:
        words = (codes ^ 128).unflatten(-1, (-1, _WORD))
    missing = -rows % LANES
    words = F.pad(words, (0, 0, 0, 0, 0, missing))
    scales = F.pad(weight.scales, (0, 0, 0, missing))
    return InterleavedTensor(
        weight.scheme,
        rows,
        words.unflatten(-3, (-1, LANES)).transpose(-3, -2).contiguous(),
        scales.unflatten(-2, (-1, LANES)).transpose(-2, -1).contiguous(),
        F.pad(weight.row_scales, (0, missing)).unflatten(-1, (-1, LANES)).contiguous(),
    )


def deinterleave(weight: InterleavedTensor) -> QuantTensor:
    """The inverse of :func:`interleave`, on the device where the weight lies.

    Codes are turned matrix by matrix: what that takes is small beside a stack of experts.
    """
    kind, rows = SCHEMES[weight.scheme], weight.rows
    *stack, columns = weight.shape
    codes = weight.codes.new_empty((*stack, columns * kind.bits // 8))
    matrices = weight.codes.view(-1, *weight.codes.shape[-4:])
    for own, blocks in zip(codes.view(-1, *codes.shape[-2:]), matrices, strict=True):
        words = blocks.transpose(1, 2).flatten(0, 1)[:rows]  # rows words 4
        if kind.bits == 4:
            eight = torch.cat((words & 15, words >> 4), -1).flatten(-2)  # rows columns
            own.copy_(eight[:, 0::2] | eight[:, 1::2] << 4)
        else:
            own.copy_(words.flatten(1) ^ 128)
    return QuantTensor(
        weight.scheme,
        codes,
        weight.scales.transpose(-2, -1).flatten(-3, -2)[..., :rows, :].contiguous(),
        weight.row_scales.flatten(-2)[..., :rows].contiguous(),
    )


def by_rows(weight: StoredWeight, device: torch.device | str = "cpu") -> Weight:
    """The weight with its rows one after the other; a move to ``device`` comes before turning."""
    if not isinstance(weight, InterleavedTensor):
        return weight
    parts = (weight.codes, weight.scales, weight.row_scales)
    moved = (part.to(device) for part in parts)
    return deinterleave(InterleavedTensor(weight.scheme, weight.rows, *moved))
