"""The latent cache's formats in Triton: what writes tokens, reads tiles and gathers prefixes.

``load_latents`` is what kernels read the cache with: codes become numbers between memory and the
matrix units. Bytes per token are the format's (:mod:`dsv2.kernels.latent`).
"""

from __future__ import annotations

from functools import cache as cached
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsv2.kernels.formats import FP8_TOP
from dsv2.kernels.latent import GROUP, LatentFormat, latent_format, scale_steps
from dsv2.kernels.triton.launch import bounds, on_device, padded
from dsv2.shapes import BLOCK_SIZE, ShapeError, check

_GROUP = tl.constexpr(GROUP)
_BLOCK = tl.constexpr(64)
_TOP = tl.constexpr(FP8_TOP)
_ROUND = tl.constexpr(1.5 * 2.0**23)
"""Added to a number below 2^22 and taken away again it rounds to the nearest integer, ties to the
even one, as torch does."""


@triton.jit
def columns_of(WIDTH: tl.constexpr, FORMAT: tl.constexpr):
    """The columns ``[WIDTH]`` in the order in which :func:`load_latents` has them.

    Four 6-bit codes that are unpacked together stay neighbours: nothing is moved in the cache's
    tile, and queries and outputs take their columns in this order instead.
    """
    column = tl.arange(0, WIDTH)
    if FORMAT == "int6":
        quarter = column % 4 // 2 + column % 2 * 2
        column = column // 64 * 64 + quarter * 16 + column % 64 // 4
    return column


@triton.jit
def _six(codes, where, mask):
    """6-bit codes ``[KEYS, 4 n]`` from the first bytes ``[KEYS, n]`` of each four."""
    first = tl.load(codes + where, mask=mask, other=0)
    second = tl.load(codes + where + 16, mask=mask, other=0)
    third = tl.load(codes + where + 32, mask=mask, other=0)
    last = (first >> 6) | (second >> 6) << 2 | (third >> 6) << 4
    left = tl.join(first & 63, second & 63)
    right = tl.join(third & 63, last)
    return tl.reshape(tl.join(left, right), (where.shape[0], where.shape[1] * 4))


@triton.jit
def _scaled(numbers, codes, first, at, inside, WIDTH: tl.constexpr, PAD: tl.constexpr):
    """``numbers`` ``[KEYS, PAD]`` times the scale of their groups, whose bytes begin at ``at``."""
    groups: tl.constexpr = (PAD + _GROUP - 1) // _GROUP
    real: tl.constexpr = (WIDTH + _GROUP - 1) // _GROUP
    g = tl.arange(0, groups)
    mask = inside[:, None] & (g < real)[None, :]
    code = tl.load(codes + first[:, None] + at + g[None, :], mask=mask, other=0).to(tl.float32)
    scale = tl.exp2((code - 176.0) * 0.125)
    scale = tl.where(code == 0, 0.0, tl.where(code == 255, float("nan"), scale))
    return _times(numbers, scale, PAD)


@triton.jit
def _times(numbers, scale, PAD: tl.constexpr):
    groups: tl.constexpr = (PAD + _GROUP - 1) // _GROUP
    split = tl.reshape(numbers, (numbers.shape[0], groups, PAD // groups))
    return tl.reshape(split * scale[:, :, None], (numbers.shape[0], PAD))


@triton.jit
def load_latents(
    cache, scales, rotated, token, inside, C: tl.constexpr, R: tl.constexpr,
    C_PAD: tl.constexpr, R_PAD: tl.constexpr, FORMAT: tl.constexpr,
):  # fmt: skip
    """Latents ``[KEYS, C_PAD]`` and rotated keys ``[KEYS, R_PAD]`` of the places ``token``.

    Args:
        cache: ``[P * 64, width]``, of e4m3 for ``fp8``.
        scales: the same memory as fp32 for ``fp8``.
        rotated: the same memory as bf16 for ``fp8``.
        token: ``[KEYS]`` int64.
        inside: ``[KEYS]``; other places are not read and yield zeros.
        FORMAT: ``plain`` or the name of a coded format.

    Returns:
        In the cache's dtype, or fp32 where there are codes; zeros from C and R on for ``plain`` and
        ``fp8``, else any finite number. Columns lie as :func:`columns_of` says.
    """
    c = tl.arange(0, C_PAD)
    r = tl.arange(0, R_PAD)
    c_mask = inside[:, None]
    r_mask = inside[:, None]
    if FORMAT == "plain" or FORMAT == "fp8":
        if C_PAD != C:
            c_mask = c_mask & (c < C)[None, :]
        if R_PAD != R:
            r_mask = r_mask & (r < R)[None, :]
    if FORMAT == "plain":
        base = token[:, None] * (C + R)
        k_c = tl.load(cache + base + c[None, :], mask=c_mask, other=0.0)
        k_r = tl.load(cache + base + C + r[None, :], mask=r_mask, other=0.0)
    elif FORMAT == "fp8":
        real: tl.constexpr = (C + _GROUP - 1) // _GROUP
        groups: tl.constexpr = (C_PAD + _GROUP - 1) // _GROUP
        width: tl.constexpr = C + 4 * real + 2 * R
        g = tl.arange(0, groups)
        k_c = tl.load(cache + token[:, None] * width + c[None, :], mask=c_mask, other=0.0)
        at = token[:, None] * (width // 4) + C // 4 + g[None, :]
        scale = tl.load(scales + at, mask=inside[:, None] & (g < real)[None, :], other=0.0)
        k_c = _times(k_c.to(tl.float32), scale, C_PAD)
        turned = token[:, None] * (width // 2) + (C + 4 * real) // 2 + r[None, :]
        k_r = tl.load(rotated + turned, mask=r_mask, other=0.0).to(tl.float32)
    else:
        own: tl.constexpr = (C + _BLOCK - 1) // _BLOCK  # blocks of 64 codes
        turns: tl.constexpr = (R + _BLOCK - 1) // _BLOCK
        size: tl.constexpr = 64 if FORMAT == "int8" else 48
        all_groups: tl.constexpr = (C + _GROUP - 1) // _GROUP + (R + _GROUP - 1) // _GROUP
        codes: tl.constexpr = (own + turns) * size
        first = token * (codes + all_groups)
        if FORMAT == "int8":
            c_mask = c_mask & (c < own * 64)[None, :]
            r_mask = r_mask & (r < turns * 64)[None, :]
            where = first[:, None]
            k_c = tl.load(cache + where + c[None, :], mask=c_mask, other=128)
            k_r = tl.load(cache + where + own * size + r[None, :], mask=r_mask, other=128)
            k_c = k_c.to(tl.float32) - 128.0
            k_r = k_r.to(tl.float32) - 128.0
        else:
            c = tl.arange(0, C_PAD // 4)
            r = tl.arange(0, R_PAD // 4)
            c_mask = c_mask & (c < own * 16)[None, :]
            r_mask = r_mask & (r < turns * 16)[None, :]
            where = first[:, None] + (c // 16 * 48 + c % 16)[None, :]
            k_c = _six(cache, where, c_mask).to(tl.float32) - 32.0
            where = first[:, None] + own * size + (r // 16 * 48 + r % 16)[None, :]
            k_r = _six(cache, where, r_mask).to(tl.float32) - 32.0
        k_c = _scaled(k_c, cache, first, codes, inside, C, C_PAD)
        k_r = _scaled(k_r, cache, first, codes + (C + _GROUP - 1) // _GROUP, inside, R, R_PAD)
    return k_c, k_r


@triton.jit
def _gather(
    cache, scales, rotated, table, cu_k, out, table_stride,
    C: tl.constexpr, R: tl.constexpr, C_PAD: tl.constexpr, R_PAD: tl.constexpr,
    FORMAT: tl.constexpr, PAGE: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """KEYS tokens of one sequence into its place in ``[S, C+R]``."""
    sequence = tl.program_id(1)
    begin = tl.program_id(0) * KEYS
    first = tl.load(cu_k + sequence)
    length = tl.load(cu_k + sequence + 1) - first
    if begin < length:
        n = begin + tl.arange(0, KEYS)
        page = tl.load(table + sequence * table_stride + begin // PAGE).to(tl.int64)
        token = page * PAGE + n % PAGE
        inside = n < length
        k_c, k_r = load_latents(cache, scales, rotated, token, inside, C, R, C_PAD, R_PAD, FORMAT)
        c = columns_of(C_PAD, FORMAT)
        r = columns_of(R_PAD, FORMAT)
        row = out + (first + n).to(tl.int64)[:, None] * (C + R)
        kind = out.dtype.element_ty
        tl.store(row + c[None, :], k_c.to(kind), mask=inside[:, None] & (c < C)[None, :])
        tl.store(row + C + r[None, :], k_r.to(kind), mask=inside[:, None] & (r < R)[None, :])


@triton.jit
def _code(x, inverse, TOP: tl.constexpr):
    steps = x * inverse
    steps = tl.minimum(tl.maximum(steps, -TOP), TOP)
    return ((steps + _ROUND) - _ROUND).to(tl.int32) + TOP + 1


@triton.jit
def _write_codes(
    latents, cache, slots, thresholds, inverses, C: tl.constexpr, R: tl.constexpr,
    BITS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One block of 64 columns of one token; the first block of a group also writes its scale."""
    token = tl.program_id(0)
    block = tl.program_id(1)
    own: tl.constexpr = (C + 63) // 64
    size: tl.constexpr = 8 * BITS
    codes: tl.constexpr = (own + (R + 63) // 64) * size
    turned = block >= own
    begin = tl.where(turned, C, 0)
    width = tl.where(turned, R, C)
    within = tl.where(turned, block - own, block)
    group = within // 2
    x = latents + token.to(tl.int64) * (C + R) + begin
    g = group * _GROUP + tl.arange(0, _GROUP)
    numbers = tl.load(x + g, mask=g < width, other=0.0).to(tl.float32)
    # NaN compares with nothing: such numbers are counted apart.
    finite = tl.sum((tl.abs(numbers) < float("inf")).to(tl.int32), 0) == _GROUP
    largest = tl.max(tl.where(numbers == numbers, tl.abs(numbers), 0.0), 0)
    e = tl.arange(0, 256)
    bound = tl.load(thresholds + e, mask=e < 255, other=float("inf"))
    scale = tl.sum((bound < largest).to(tl.int32), 0)
    scale = tl.where(finite & (scale < 255), scale, 255)
    inverse = tl.load(inverses + scale)
    slot = tl.load(slots + token).to(tl.int64)
    row = cache + slot * WIDTH
    j = tl.arange(0, 64)
    column = within * 64 + j
    top: tl.constexpr = 2 ** (BITS - 1) - 1
    number = tl.load(x + column, mask=column < width, other=0.0).to(tl.float32)
    number = tl.where(inverse > 0, number, 0.0)
    code = _code(number, inverse, top)
    mask = j < size
    if BITS == 6:
        column = within * 64 + 48 + j % 16
        number = tl.load(x + column, mask=column < width, other=0.0).to(tl.float32)
        number = tl.where(inverse > 0, number, 0.0)
        last = _code(number, inverse, top)
        code = code | ((last >> (j // 16 * 2)) & 3) << 6
    tl.store(row + block * size + j, code.to(tl.uint8), mask=mask)
    at = codes + group + tl.where(turned, (C + _GROUP - 1) // _GROUP, 0)
    tl.store(row + at, scale.to(tl.uint8), mask=within % 2 == 0)


@triton.jit
def _four_bits(x):
    """``x`` rounded to what e4m3 holds, ties to even, so that the conversion changes nothing."""
    bits = x.to(tl.int32, bitcast=True)
    bits = (bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000
    small = (x + _ROUND * 2.0**-9) - _ROUND * 2.0**-9  # below 2^-6 the numbers are 2^-9 apart
    return tl.where(tl.abs(x) < 2.0**-6, small, bits.to(tl.float32, bitcast=True))


@triton.jit
def _write_floating(
    latents, cache, scales, rotated, slots, C: tl.constexpr, R: tl.constexpr,
    R_PAD: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One group of 128 columns of one token; the last program writes the rotated key."""
    token = tl.program_id(0)
    group = tl.program_id(1)
    groups: tl.constexpr = (C + _GROUP - 1) // _GROUP
    slot = tl.load(slots + token).to(tl.int64)
    x = latents + token.to(tl.int64) * (C + R)
    if group < groups:
        column = group * _GROUP + tl.arange(0, _GROUP)
        number = tl.load(x + column, mask=column < C, other=0.0).to(tl.float32)
        finite = tl.sum((tl.abs(number) < float("inf")).to(tl.int32), 0) == _GROUP
        largest = tl.max(tl.where(finite, tl.abs(number), 0.0), 0)
        # As the reference divides: another last bit here and there would be another code.
        scale = tl.where(largest > 0, tl.div_rn(largest, _TOP * 1.0), 1.0)
        scale = tl.where(finite, scale, float("nan"))
        code = tl.where(finite, tl.div_rn(number, scale), 0.0)
        code = _four_bits(tl.minimum(tl.maximum(code, -_TOP), _TOP)).to(tl.float8e4nv)
        tl.store(cache + slot * WIDTH + column, code, mask=column < C)
        tl.store(scales + slot * (WIDTH // 4) + C // 4 + group, scale)
    else:
        r = tl.arange(0, R_PAD)
        turned = tl.load(x + C + r, mask=r < R, other=0.0).to(tl.bfloat16)
        at = slot * (WIDTH // 2) + (C + 4 * groups) // 2 + r
        tl.store(rotated + at, turned, mask=r < R)


@triton.jit
def _write_plain(latents, cache, slots, W: tl.constexpr, W_PAD: tl.constexpr):
    token = tl.program_id(0)
    w = tl.arange(0, W_PAD)
    slot = tl.load(slots + token).to(tl.int64)
    number = tl.load(latents + token.to(tl.int64) * W + w, mask=w < W, other=0.0)
    tl.store(cache + slot * W + w, number.to(cache.dtype.element_ty), mask=w < W)


def kernel_format(kind: LatentFormat) -> str:
    """The format's name as kernels take it."""
    return "plain" if kind.bits is None else kind.name


def cache_views(cache: Tensor, kind: LatentFormat) -> tuple[Tensor, Tensor, Tensor]:
    """The cache as :func:`load_latents` takes it: codes, scales, rotated keys."""
    if not kind.floating:
        return cache, cache, cache
    kinds = (torch.float8_e4m3fn, torch.float32, torch.bfloat16)
    codes, scales, rotated = (cache.view(dtype) for dtype in kinds)
    return codes, scales, rotated


def kernel_widths(latent: int, rope: int, kind: LatentFormat) -> dict[str, Any]:
    """The constants of :func:`load_latents`; 6-bit codes come in whole blocks of 64."""
    least = 64 if kind.name == "int6" else 0
    return {
        "C": latent, "R": rope, "C_PAD": max(least, padded(latent)),
        "R_PAD": max(least, padded(rope)), "FORMAT": kernel_format(kind),
    }  # fmt: skip


def check_cache(cache: Tensor, latent: int, rope: int, kind: LatentFormat) -> None:
    """Raise ShapeError where a cache is not of the format."""
    check((cache, f"P {BLOCK_SIZE} W"))
    width = kind.width(latent, rope)
    fits = cache.dtype == kind.dtype or kind.bits is None
    if cache.shape[2] != width or not fits or not cache.is_contiguous():
        raise ShapeError(
            f"cache {cache.dtype} {tuple(cache.shape)}, {kind.name} is {kind.dtype} "
            f"[blocks, {BLOCK_SIZE}, {width}], contiguous"
        )


@cached
def _tables(bits: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The largest number of each scale, and the inverse of each; 0 where all codes are 0."""
    steps = scale_steps()
    thresholds = steps * (2 ** (bits - 1) - 1)
    inverses = torch.where(steps > 0, 1 / steps, 0.0)
    return thresholds.to(device), inverses.to(device)


def write_latents(cache: Tensor, slots: Tensor, latents: Tensor, latent: int, name: str) -> None:
    """Put tokens into the cache in its format.

    Args:
        cache: ``[P, 64, width]``, changed in place.
        slots: ``[T]`` int32, each token's place in ``[P * 64]``.
        latents: ``[T, C+R]`` of a floating dtype.
        latent: C.
        name: of the format; plain formats are written in the cache's dtype.

    Raises:
        ShapeError: the shapes do not fit.
    """
    kind, rope = latent_format(name), latents.shape[1] - latent
    check((latents, "T W"), (slots, "T"))
    check_cache(cache, latent, rope, kind)
    tokens, latents = latents.shape[0], latents.contiguous()
    if not tokens:
        return
    with on_device(cache):
        if kind.bits is None:
            width = latent + rope
            _write_plain[(tokens,)](latents, cache, slots, W=width, W_PAD=padded(width))
        elif kind.floating:
            groups = -(-latent // GROUP)
            _write_floating[(tokens, groups + 1)](
                latents, *cache_views(cache, kind), slots, C=latent, R=rope,
                R_PAD=padded(rope), WIDTH=cache.shape[2], num_warps=1,
            )  # fmt: skip
        else:
            blocks = -(-latent // 64) + -(-rope // 64)
            _write_codes[(tokens, blocks)](
                latents, cache, slots, *_tables(kind.bits, cache.device), C=latent, R=rope,
                BITS=kind.bits, WIDTH=cache.shape[2], num_warps=1,
            )  # fmt: skip


def gather_latents(
    cache: Tensor, block_table: Tensor, cu_k: Tensor, tokens: int, max_kv: int, latent: int,
    rope: int, name: str, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """All cached tokens of B sequences behind one another.

    Args:
        cache: ``[P, 64, width]``.
        block_table: ``[B, M]`` int32.
        cu_k: ``[B+1]`` int32, bounds of the sequences in the result.
        tokens: S, their sum.
        max_kv: at least the longest.
        latent: C.
        rope: R.
        name: of the cache's format.
        dtype: of the result.

    Returns:
        ``[S, C+R]``.

    Raises:
        ShapeError: the shapes do not fit.
    """
    kind = latent_format(name)
    check((block_table, "B M"))
    check_cache(cache, latent, rope, kind)
    out = torch.empty((tokens, latent + rope), dtype=dtype, device=cache.device)
    if not tokens:
        return out
    keys = 16
    with on_device(cache):
        _gather[(-(-max_kv // keys), block_table.shape[0])](
            *cache_views(cache, kind), block_table, cu_k, out, block_table.stride(0),
            **kernel_widths(latent, rope, kind), PAGE=BLOCK_SIZE, KEYS=keys, num_warps=4,
        )  # fmt: skip
    return out


def read_latents(
    cache: Tensor, slots: Tensor, latent: int, rope: int, name: str, dtype: torch.dtype
) -> Tensor:
    """The tokens at ``slots`` ``[S]`` of a cache as ``[S, C+R]``; arguments as above."""
    rows = cache.flatten(0, 1).index_select(0, slots)  # S width
    if latent_format(name).bits is None:
        return rows.to(dtype)
    count = len(slots)
    blocks = -(-count // BLOCK_SIZE)
    paged = rows.new_zeros(blocks * BLOCK_SIZE, rows.shape[1])
    paged[:count] = rows
    table = torch.arange(blocks, dtype=torch.int32, device=cache.device).unsqueeze(0)
    return gather_latents(
        paged.view(blocks, BLOCK_SIZE, -1), table, bounds((count,), cache.device), count, count,
        latent, rope, name, dtype,
    )  # fmt: skip
