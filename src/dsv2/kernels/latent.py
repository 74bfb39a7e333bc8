"""Formats of the latent cache: what a token's latent and rotated key become in memory.

``float32`` and ``bfloat16`` keep the C+R numbers as they are. ``int8`` and ``int6`` split the
latent and the rotated key into groups of 128 columns; a number is

    2^((scale - 176) / 8) * code

with one byte of scale per group and codes of 8 or 6 bits. For the published widths that is 581 and
437 bytes per token and layer, 8.07 and 6.07 bits per number, against 1152 bytes of bf16.

A token's bytes are its latent codes, padded to a multiple of 64, the codes of its rotated key,
padded likewise, and the scales. 8-bit codes are stored with 128 added. 64 codes of 6 bits, with 32
added, take 48 bytes: the low 6 bits of byte j are code j, and the high 2 bits of bytes k, 16+k and
32+k are, from low to high, code 48+k. A scale of 255 marks a group that was not finite.

``fp8`` is the layout of the published decode kernels: the latent in e4m3, an fp32 scale per 128 of
its columns, and the rotated key in bf16; 656 bytes for the published widths. A number is
``scale * code``, and the largest of a group has the code 448.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dsv2.kernels.formats import FP8_TOP

GROUP = 128
"""Columns that share a scale."""

_PACK = 64
_NOT_FINITE = 255
_SCALES = torch.tensor([0.0] + [2.0 ** ((code - 176) / 8) for code in range(1, 255)] + [torch.nan])
"""Scale of each byte; 0 is a group of zeros."""


@dataclass(frozen=True)
class LatentFormat:
    """How a token lies in the latent cache.

    Attributes:
        name: as users write it.
        dtype: of the cache's elements.
        bits: of a code, or None where the numbers are stored as they are.
        floating: codes are e4m3 with fp32 scales, and the rotated key is bf16.
    """

    name: str
    dtype: torch.dtype
    bits: int | None = None
    floating: bool = False

    def width(self, latent: int, rope: int) -> int:
        """Elements of a token, for C = ``latent`` and R = ``rope``.

        Raises:
            ValueError: the format needs a C that is a multiple of 4 and an even R.
        """
        if self.bits is None:
            return latent + rope
        if self.floating:
            if latent % 4 or rope % 2:
                raise ValueError(
                    f"cache format {self.name!r} needs a kv_lora_rank that is a multiple of 4 and "
                    f"an even qk_rope_head_dim, got {latent} and {rope}"
                )
            return latent + 4 * _groups(latent) + 2 * rope
        codes = (_padded(latent) + _padded(rope)) * self.bits // 8
        return codes + _groups(latent) + _groups(rope)

    def token_bytes(self, latent: int, rope: int) -> int:
        """Bytes of a token in one layer."""
        return self.width(latent, rope) * self.dtype.itemsize


LATENT_FORMATS = {
    one.name: one
    for one in (
        LatentFormat("float32", torch.float32),
        LatentFormat("bfloat16", torch.bfloat16),
        LatentFormat("int8", torch.uint8, bits=8),
        LatentFormat("int6", torch.uint8, bits=6),
        LatentFormat("fp8", torch.uint8, bits=8, floating=True),
    )
}
"""The formats by name."""


def latent_format(name: str) -> LatentFormat:
    """The format of a name.

    Raises:
        ValueError: there is none.
    """
    if name not in LATENT_FORMATS:
        raise ValueError(f"cache format {name!r}, allowed are {', '.join(LATENT_FORMATS)}")
    return LATENT_FORMATS[name]


def scale_steps() -> Tensor:
    """What each byte of scale stands for, fp32 ``[256]``; NaN for what was not finite."""
    return _SCALES.clone()


def pack_latent(latents: Tensor, latent: int, name: str) -> Tensor:
    """``latents`` ``[T, C+R]`` as they lie in the cache, ``[T, width]``.

    Args:
        latents: of any float dtype.
        latent: C.
        name: of the format.
    """
    kind = latent_format(name)
    if kind.bits is None:
        return latents.to(kind.dtype)
    if kind.floating:
        return _encode_floating(latents.float(), latent)
    parts = [_encode(part, kind.bits) for part in latents.float().tensor_split((latent,), 1)]
    return torch.cat([codes for codes, _ in parts] + [scales for _, scales in parts], 1)


def unpack_latent(packed: Tensor, latent: int, rope: int, name: str) -> Tensor:
    """The inverse of :func:`pack_latent`: ``[.., width]`` to fp32 ``[.., C+R]``."""
    kind = latent_format(name)
    if kind.bits is None:
        return packed.float()
    if kind.floating:
        return _decode_floating(packed, latent)
    sizes = [_padded(width) * kind.bits // 8 for width in (latent, rope)]
    first, second, scales = packed.tensor_split((sizes[0], sum(sizes)), -1)
    own, turned = scales.tensor_split((_groups(latent),), -1)
    return torch.cat(
        [
            _decode(first, own, latent, kind.bits),
            _decode(second, turned, rope, kind.bits),
        ],
        -1,
    )


def _padded(width: int) -> int:
    return -(-width // _PACK) * _PACK


def _groups(width: int) -> int:
    return -(-width // GROUP)


def _encode(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Codes and scales of ``x`` ``[T, width]``."""
    width, top = x.shape[1], 2 ** (bits - 1) - 1
    wide = torch.zeros(x.shape[0], _groups(width) * GROUP)
    wide[:, :width] = x
    grouped = wide.unflatten(1, (-1, GROUP))  # T groups 128
    largest = grouped.abs().amax(-1)
    scales = torch.searchsorted(_SCALES[:_NOT_FINITE] * top, largest)
    finite = torch.isfinite(grouped).all(-1) & (scales < _NOT_FINITE)
    scales = torch.where(finite, scales, _NOT_FINITE)
    step = _SCALES[scales]
    inverse = torch.where(finite & (step > 0), 1 / step, 0.0)
    steps = (grouped.nan_to_num() * inverse.unsqueeze(-1)).round().clamp(-top, top)
    codes = (steps.to(torch.int16) + 2 ** (bits - 1)).to(torch.uint8).flatten(1)
    codes = codes[:, : _padded(width)]
    return codes if bits == 8 else _pack_six(codes), scales.to(torch.uint8)


def _decode(codes: Tensor, scales: Tensor, width: int, bits: int) -> Tensor:
    plain = codes if bits == 8 else _unpack_six(codes)
    steps = (plain.float() - 2 ** (bits - 1))[..., :width]
    return steps * _SCALES[scales.long()].repeat_interleave(GROUP, -1)[..., :width]


def _encode_floating(x: Tensor, latent: int) -> Tensor:
    """A group that is not finite gets a scale that makes all its numbers NaN."""
    grouped = F.pad(x[:, :latent], (0, -latent % GROUP)).unflatten(1, (-1, GROUP))
    largest = grouped.abs().amax(-1)
    scales = torch.where(largest > 0, largest / FP8_TOP, 1.0)  # T groups; 1 for NaN as well
    scales = torch.where(torch.isfinite(largest), scales, torch.nan)
    codes = (grouped / scales.unsqueeze(-1)).clamp(-FP8_TOP, FP8_TOP).flatten(1)[:, :latent]
    parts = (codes.to(torch.float8_e4m3fn), scales, x[:, latent:].bfloat16())
    return torch.cat([part.contiguous().view(torch.uint8) for part in parts], 1)


def _decode_floating(packed: Tensor, latent: int) -> Tensor:
    codes, scales, turned = packed.tensor_split((latent, latent + 4 * _groups(latent)), -1)
    wide = codes.contiguous().view(torch.float8_e4m3fn).float()
    each = scales.contiguous().view(torch.float32).repeat_interleave(GROUP, -1)[..., :latent]
    return torch.cat([wide * each, turned.contiguous().view(torch.bfloat16).float()], -1)


def _pack_six(codes: Tensor) -> Tensor:
    blocks = codes.unflatten(-1, (-1, _PACK))
    low, last = blocks[..., :48], blocks[..., 48:]
    high = torch.cat([last & 3, last >> 2 & 3, last >> 4], -1)
    return (low | high << 6).flatten(-2)


def _unpack_six(packed: Tensor) -> Tensor:
    blocks = packed.unflatten(-1, (-1, 48))
    first, second, third = (blocks >> 6).split(16, -1)
    return torch.cat([blocks & 63, first | second << 2 | third << 4], -1).flatten(-2)
