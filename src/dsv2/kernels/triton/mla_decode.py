"""Decode on the paged latent (report, appendix C), in Triton.

Every head shares one key, the cached latent, whose first C numbers are also the value: a tile of 64
tokens is read once and multiplied twice. Query tokens and heads are the rows of one matrix, so the
work per byte grows with H: from 17 rows on :mod:`dsv2.kernels.triton.mla_decode_hopper` has a
kernel for GPUs with its instructions. The keys of a sequence are split over programs; each leaves a
normalised output and the base-2 logarithm of its softmax sum, and a second kernel mixes them. A
cache of codes is unpacked on its way to the matrix units (:mod:`dsv2.kernels.triton.latent_cache`).

Bytes: (C+R) numbers per cached token and block of rows. Arithmetic: 2 H (2C + R) per cached token.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsv2.kernels.latent import LatentFormat, latent_format
from dsv2.kernels.registry import implements
from dsv2.kernels.triton.latent_cache import (
    cache_views,
    check_cache,
    columns_of,
    kernel_format,
    kernel_widths,
    load_latents,
)
from dsv2.kernels.triton.launch import (
    LOG2_E,
    bounds,
    hopper,
    multiprocessors,
    on_device,
    overlaps,
    padded,
    precision,
    wait,
)
from dsv2.kernels.triton.mla_mix import combine_splits
from dsv2.shapes import BLOCK_SIZE, check

_PLAIN = LatentFormat("plain", torch.float32)
_FEW_BLOCKS = 16
FIXED_SPLIT = 256
"""Keys per split where results may not depend on the rest of the batch."""


@dataclass(frozen=True)
class DecodeTiles:
    """How the work is cut; none of it changes what is computed.

    Attributes:
        rows: query rows (tokens times heads) of a program, at least 16.
        keys: keys per tile, at most a cache block and dividing it.
        warps: warps per program.
        stages: tiles in flight.
        waves: programs per multiprocessor that the number of splits aims at.
    """

    rows: int
    keys: int
    warps: int
    stages: int
    waves: int = 1


def decode_tiles(rows: int, dtype: torch.dtype) -> DecodeTiles:
    """The tiles for ``rows`` query rows (tokens times heads) per sequence."""
    if dtype == torch.float32:
        return DecodeTiles(rows=16, keys=16, warps=4, stages=1)
    if rows <= 16:
        return DecodeTiles(rows=16, keys=32, warps=4, stages=3, waves=2)
    return DecodeTiles(rows=64, keys=64, warps=8, stages=2)


def few_tiles(rows: int, dtype: torch.dtype) -> DecodeTiles:
    """The tiles where one sequence or two leave a program a block or two of keys."""
    usual = decode_tiles(rows, dtype)
    few = dtype != torch.float32 and rows <= 16
    return replace(usual, keys=64, stages=2, waves=1) if few else usual


@triton.jit
def _decode(
    q_latent, q_rope, cache, scales, rotated, table, kv_len, cu_q, out, lse,
    qk_scale, table_stride, part_stride, num_splits,
    HEADS: tl.constexpr, C: tl.constexpr, R: tl.constexpr,
    C_PAD: tl.constexpr, R_PAD: tl.constexpr, FORMAT: tl.constexpr, PAGE: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, SPLIT_KEYS: tl.constexpr, HALVES: tl.constexpr,
    PRECISION: tl.constexpr, PARTIAL: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One block of query rows of one sequence over one split of its keys.

    ``out`` is ``[splits, T, H, C]`` fp32 with ``lse`` ``[splits, T, H]``, or, not PARTIAL, the
    result itself. SPLIT_KEYS of 0 cuts every sequence in ``num_splits`` parts of whole pages.

    Few rows wait for products, which follow each other, and for warps, which exchange their sums:
    the products of the latent's HALVES and of the rotated part are apart until they are scaled
    (added before, the compiler makes one chain of them), and sums of weights are taken at the end.
    """
    tile = tl.program_id(0)
    split = tl.program_id(1)
    sequence = tl.program_id(2)
    if EARLY:
        wait()
    first = tl.load(cu_q + sequence)
    tokens = tl.load(cu_q + sequence + 1) - first
    total = tl.load(kv_len + sequence)
    row = tile * ROWS + tl.arange(0, ROWS)
    real = row < tokens * HEADS
    if tile * ROWS < tokens * HEADS:
        visible = tl.minimum(total - tokens + 1 + row // HEADS, total)  # ROWS
        if SPLIT_KEYS:
            span = SPLIT_KEYS
        else:
            span = tl.cdiv(tl.cdiv(total, PAGE), num_splits) * PAGE
        start = split * span
        end = tl.minimum(start + span, total)

        WIDTH: tl.constexpr = C_PAD // HALVES
        FEW: tl.constexpr = ROWS <= 16
        place = first * HEADS + row  # of the row in [T, H]
        c = columns_of(WIDTH, FORMAT)
        r = columns_of(R_PAD, FORMAT)
        wide_c: tl.constexpr = C_PAD != C
        wide_r: tl.constexpr = R_PAD != R
        q_c_mask = real[:, None]
        q_r_mask = real[:, None]
        if wide_c:
            q_c_mask = q_c_mask & (c < C)[None, :]
        if wide_r:
            q_r_mask = q_r_mask & (r < R)[None, :]
        where = place.to(tl.int64)[:, None]
        q_c = tl.load(q_latent + where * C + c[None, :], mask=q_c_mask, other=0.0)
        q_r = tl.load(q_rope + where * R + r[None, :], mask=q_r_mask, other=0.0)
        acc = tl.zeros([ROWS, WIDTH], dtype=tl.float32)
        if HALVES == 2:
            q_d = tl.load(q_latent + where * C + WIDTH + c[None, :], mask=q_c_mask, other=0.0)
            acc_d = tl.zeros([ROWS, WIDTH], dtype=tl.float32)
        top = tl.full([ROWS], float("-inf"), dtype=tl.float32)
        if FEW:
            mass = tl.zeros([ROWS, KEYS], dtype=tl.float32)
        else:
            mass = tl.zeros([ROWS], dtype=tl.float32)

        n = tl.arange(0, KEYS)
        blocks = table + sequence * table_stride
        page = tl.load(blocks + start // PAGE, mask=start < end, other=0)
        for begin in range(start, end, KEYS):
            at = page.to(tl.int64) * PAGE + begin % PAGE
            # The next page's number is on its way while this page is multiplied.
            following = begin + KEYS
            page = tl.load(blocks + following // PAGE, mask=following < end, other=0)
            # What lies past the end may be NaN: it is not read.
            inside = begin + n < end
            if FORMAT == "plain":
                # One address for the tile and narrow offsets: the path that is measured.
                base = cache + at * (C + R)
                c_mask = inside[:, None]
                r_mask = inside[:, None]
                if wide_c:
                    c_mask = c_mask & (c < C)[None, :]
                if wide_r:
                    r_mask = r_mask & (r < R)[None, :]
                spot = n[:, None] * (C + R) + c[None, :]
                k_c = tl.load(base + spot, mask=c_mask, other=0.0)
                if HALVES == 2:
                    k_d = tl.load(base + spot + WIDTH, mask=c_mask, other=0.0).to(q_c.dtype)
                k_r = tl.load(base + n[:, None] * (C + R) + C + r[None, :], mask=r_mask, other=0.0)
            else:
                k_c, k_r = load_latents(
                    cache, scales, rotated, at + n, inside, C, R, C_PAD, R_PAD, FORMAT
                )
            k_c = k_c.to(q_c.dtype)
            k_r = k_r.to(q_c.dtype)
            scores = tl.dot(q_r, tl.trans(k_r), input_precision=PRECISION)  # ROWS KEYS
            if FEW:
                scores *= qk_scale
                scores += tl.dot(q_c, tl.trans(k_c), input_precision=PRECISION) * qk_scale
                if HALVES == 2:
                    scores += tl.dot(q_d, tl.trans(k_d), input_precision=PRECISION) * qk_scale
            else:
                scores = tl.dot(q_c, tl.trans(k_c), scores, input_precision=PRECISION)
                if HALVES == 2:
                    scores = tl.dot(q_d, tl.trans(k_d), scores, input_precision=PRECISION)
                scores *= qk_scale
            seen = inside[None, :] & ((begin + n)[None, :] < visible[:, None])
            scores = tl.where(seen, scores, float("-inf"))
            new_top = tl.maximum(top, tl.max(scores, 1))
            # A row that has seen no key yet keeps its maximum of -inf out of the exponent.
            safe = tl.where(new_top == float("-inf"), 0.0, new_top)
            weights = tl.exp2(scores - safe[:, None])
            fade = tl.exp2(top - safe)
            if FEW:
                mass = mass * fade[:, None] + weights
            else:
                mass = mass * fade + tl.sum(weights, 1)
            weights = weights.to(k_c.dtype)
            acc = tl.dot(weights, k_c, acc * fade[:, None], input_precision=PRECISION)
            if HALVES == 2:
                acc_d = tl.dot(weights, k_d, acc_d * fade[:, None], input_precision=PRECISION)
            top = new_top

        if FEW:
            mass = tl.sum(mass, 1)
        some = mass > 0
        inverse = tl.where(some, 1.0 / tl.where(some, mass, 1.0), 0.0)
        if PARTIAL:
            out += split.to(tl.int64) * part_stride * C
            level = tl.where(some, top + tl.log2(tl.where(some, mass, 1.0)), float("-inf"))
            tl.store(lse + split.to(tl.int64) * part_stride + place, level, mask=real)
        keep = real
        if PARTIAL:
            keep = keep & some  # a split without keys is never read
        o_mask = keep[:, None]
        if wide_c:
            o_mask = o_mask & (c < C)[None, :]
        spot = out + where * C + c[None, :]
        tl.store(spot, (acc * inverse[:, None]).to(out.dtype.element_ty), mask=o_mask)
        if HALVES == 2:
            acc_d *= inverse[:, None]
            tl.store(spot + WIDTH, acc_d.to(out.dtype.element_ty), mask=o_mask)


def num_splits(
    sequences: int, row_blocks: int, max_kv: int, tiles: DecodeTiles, processors: int
) -> int:
    """Splits per sequence that fill the device, from sizes that the host knows.

    A split costs a write and a read of its output, so it has two cache blocks at least; but one
    where few blocks are all there is and the time is that of the longest split.
    """
    wanted = tiles.waves * processors // max(1, sequences * row_blocks)
    blocks = -(-max_kv // BLOCK_SIZE)
    return max(1, min(wanted, blocks if blocks <= _FEW_BLOCKS else -(-blocks // 2)))


def bulk_copies(
    q_latent: Tensor, q_rope: Tensor, cache: Tensor, kind: LatentFormat, rows: int
) -> bool:
    """Whether :mod:`dsv2.kernels.triton.mla_decode_hopper` computes ``rows`` rows per sequence.

    It is for more rows than one tile of 16, 16-bit numbers, the widths of the releases, and GPUs of
    compute capability 9.
    """
    return (
        rows > 16
        and q_latent.is_cuda
        and q_latent.dtype in (torch.bfloat16, torch.float16)
        and cache.dtype == q_latent.dtype
        and kernel_format(kind) == "plain"
        and (q_latent.shape[-1], q_rope.shape[-1]) == (512, 64)
        and cache.is_contiguous()
        and hopper(q_latent.device)
    )


def _halves(latent: int, kind: LatentFormat) -> int:
    """Parts in which a tile's latents are read: two where plain numbers make two whole tiles."""
    return 2 if kernel_format(kind) == "plain" and latent == padded(latent) >= 32 else 1


@dataclass(frozen=True)
class Splits:
    """Attention over the splits of every sequence's keys, not yet mixed.

    Attributes:
        parts: ``[S, T, H, C]`` fp32, each normalised, or ``[T, H, C]`` of the queries' dtype, the
            result itself.
        lse: ``[S, T, H]`` fp32, base-2 logarithms of the splits' softmax sums, or None.
    """

    parts: Tensor
    lse: Tensor | None


def decode_splits(
    q_latent: Tensor, q_rope: Tensor, cache: Tensor, block_table: Tensor, kv_len: Tensor,
    cu_q: Tensor, max_q: int, scale: float, *, cache_format: str | None = None,
    max_kv: int | None = None, deterministic: bool = False, tiles: DecodeTiles | None = None,
) -> Splits:  # fmt: skip
    """Attention on the paged latent; reads nothing from the device, so a CUDA graph may hold it.

    Args:
        q_latent: ``[T, H, C]``.
        q_rope: ``[T, H, R]``.
        cache: ``[P, 64, C+R]``, of the queries' dtype or another floating one, or
            ``[P, 64, width]`` of a format with codes.
        block_table: ``[B, M]`` int32.
        kv_len: ``[B]`` int32; a sequence of length 0 yields zeros.
        cu_q: ``[B+1]`` int32, bounds of the sequences' query tokens.
        max_q: at least the largest number of query tokens of a sequence.
        scale: of the scores.
        cache_format: a name of :data:`dsv2.kernels.latent.LATENT_FORMATS`; None for a cache of
            plain numbers, whatever their dtype.
        max_kv: at least the largest length; the block table's reach by default.
        deterministic: fixed tiles and splits: a row's bits depend on its own tokens alone.
        tiles: how to cut the work, chosen by default.

    Returns:
        The last query of a sequence sees all its keys, the one before all but one.

    Raises:
        ShapeError: the shapes do not fit.
    """
    sizes = check(
        (q_latent, "T H C"), (q_rope, "T H R"), (cache, f"P {BLOCK_SIZE} W"),
        (block_table, "B M"), (kv_len, "B"),
    )  # fmt: skip
    tokens, heads, latent, rope = (sizes[letter] for letter in "THCR")
    check((cu_q, str(sizes["B"] + 1)))
    kind = _PLAIN if cache_format is None else latent_format(cache_format)
    check_cache(cache, latent, rope, kind)
    q_latent, q_rope = q_latent.contiguous(), q_rope.contiguous()
    max_kv = min(max_kv or sizes["M"] * BLOCK_SIZE, sizes["M"] * BLOCK_SIZE)
    rows = heads if deterministic else heads * max_q
    bulk = tiles is None and bulk_copies(q_latent, q_rope, cache, kind, rows)
    if tiles is None:
        tiles = decode_tiles(rows, q_latent.dtype)
    row_blocks = -(-heads * max_q // tiles.rows)
    if deterministic:
        splits = max(1, -(-max_kv // FIXED_SPLIT))
    else:
        splits = num_splits(sizes["B"], row_blocks, max_kv, tiles, multiprocessors(q_latent.device))
    if splits == 1 or not tokens:
        parts, lse = torch.empty_like(q_latent), None
    else:
        shape = (splits, tokens, heads)
        parts = torch.empty((*shape, latent), dtype=torch.float32, device=q_latent.device)
        lse = torch.empty(shape, dtype=torch.float32, device=q_latent.device)
    grid = (row_blocks, splits, sizes["B"])
    split_keys = FIXED_SPLIT if deterministic else 0
    if tokens and bulk:
        # The one module in Gluon, which older versions of Triton do not have.
        from dsv2.kernels.triton.mla_decode_hopper import launch

        with on_device(parts):
            launch(
                q_latent, q_rope, cache, block_table, kv_len, cu_q, parts,
                parts if lse is None else lse, scale * LOG2_E, grid, split_keys,
            )  # fmt: skip
    elif tokens:
        with on_device(parts):
            _decode[grid](
                q_latent, q_rope, *cache_views(cache, kind), block_table, kv_len, cu_q, parts,
                parts if lse is None else lse,
                scale * LOG2_E, block_table.stride(0), tokens * heads, splits,
                HEADS=heads, **kernel_widths(latent, rope, kind),
                PAGE=BLOCK_SIZE, ROWS=tiles.rows, KEYS=tiles.keys,
                SPLIT_KEYS=split_keys, HALVES=_halves(latent, kind),
                PRECISION=precision(q_latent.dtype), PARTIAL=lse is not None,
                num_warps=tiles.warps, num_stages=tiles.stages, **overlaps(parts),
            )  # fmt: skip
    return Splits(parts, lse)


def decode_latent(
    q_latent: Tensor, q_rope: Tensor, cache: Tensor, block_table: Tensor, kv_len: Tensor,
    cu_q: Tensor, max_q: int, scale: float, *, deterministic: bool = False, **options: Any,
) -> Tensor:  # fmt: skip
    """:func:`decode_splits`, mixed: ``[T, H, C]`` of the queries' dtype."""
    found = decode_splits(
        q_latent, q_rope, cache, block_table, kv_len, cu_q, max_q, scale,
        deterministic=deterministic, **options,
    )  # fmt: skip
    if found.lse is None:
        return found.parts
    splits, tokens, heads, latent = found.parts.shape
    out = torch.empty_like(q_latent, memory_format=torch.contiguous_format)
    columns = min(512, padded(latent))
    # How many are mixed at once is a matter of the last bit.
    group = 16 if deterministic else min(16, 1 << (splits - 1).bit_length())
    with on_device(out):
        combine_splits[(tokens * heads, -(-latent // columns))](
            found.parts, found.lse, out, tokens * heads, splits,
            C=latent, COLUMNS=columns, GROUP=group, num_warps=4, num_stages=1, **overlaps(out),
        )  # fmt: skip
    return out


@implements("attend_absorbed", "triton", ("cuda",))
def attend_absorbed(
    q_latent: Tensor, q_rope: Tensor, cache: Tensor, block_table: Tensor, kv_len: Tensor,
    q_lens: tuple[int, ...], scale: float,
) -> Tensor:  # fmt: skip
    """Split over the keys; without a gradient, since training reads no cache.

    Raises:
        ValueError: a query wants a gradient.
    """
    if torch.is_grad_enabled() and (q_latent.requires_grad or q_rope.requires_grad):
        raise ValueError("attend_absorbed of backend 'triton' has no gradient, use backend 'torch'")
    cu_q = bounds(q_lens, q_latent.device)
    return decode_latent(
        q_latent, q_rope, cache, block_table, kv_len, cu_q, max(q_lens, default=0), scale
    )
