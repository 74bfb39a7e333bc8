"""Rows sorted by expert on the device, without asking it anything (Triton).

A counting sort in three launches: chunks of rows count their experts, one program turns the counts
into places, the chunks put their rows there. It is stable: rows of one expert keep their order, so
what is summed over them is summed in one order. The same program cuts each expert's rows into tiles
for the matrix products; their number is bounded by sizes that the host knows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsv2.kernels.triton.launch import on_device, padded

_ELEMENTS = 8192
"""Entries of the table rows x experts that one program holds."""


@dataclass(frozen=True)
class ExpertOrder:
    """TK rows (token t's k-th choice is row t K + k) in the order of their experts; all int32.

    Attributes:
        order: ``[TK]`` the row at each place.
        inverse: ``[TK]`` the place of each row.
        offsets: ``[E+1]`` expert e owns the places ``offsets[e]:offsets[e+1]``.
        tile_expert: ``[tiles]`` the expert of each tile, -1 where there is none.
        tile_first: ``[tiles]`` the tile's first place.
        tile_end: ``[tiles]`` the end of its places.
    """

    order: Tensor
    inverse: Tensor
    offsets: Tensor
    tile_expert: Tensor
    tile_first: Tensor
    tile_end: Tensor


@triton.jit
def _hits(ids, rows, CHUNK: tl.constexpr, E_PAD: tl.constexpr):
    """``[CHUNK, E_PAD]``: 1 where the row takes the expert."""
    row = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    expert = tl.load(ids + row, mask=row < rows, other=-1).to(tl.int32)
    return (expert[:, None] == tl.arange(0, E_PAD)[None, :]).to(tl.int32)


@triton.jit
def _count(ids, counts, rows, CHUNK: tl.constexpr, E_PAD: tl.constexpr):
    hits = _hits(ids, rows, CHUNK, E_PAD)
    where = counts + tl.program_id(0) * E_PAD + tl.arange(0, E_PAD)
    tl.store(where, tl.sum(hits, 0))


@triton.jit
def _scan(
    counts, bases, offsets, tile_expert, tile_first, tile_end, chunks, tiles, experts,
    E_PAD: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """From each chunk's counts the first place of each chunk's rows per expert, and the tiles."""
    e = tl.arange(0, E_PAD)
    g = tl.arange(0, GROUP)
    total = tl.zeros([E_PAD], dtype=tl.int32)
    for start in range(0, chunks, GROUP):
        where = (start + g)[:, None] * E_PAD + e[None, :]
        own = tl.load(counts + where, mask=(start + g < chunks)[:, None], other=0)
        total += tl.sum(own, 0)
    ends = tl.cumsum(total, 0)
    firsts = ends - total
    tl.store(offsets + e, firsts, mask=e < experts)
    tl.store(offsets + 1 + e, ends, mask=e == experts - 1)
    running = firsts
    for start in range(0, chunks, GROUP):
        where = (start + g)[:, None] * E_PAD + e[None, :]
        mask = (start + g < chunks)[:, None]
        own = tl.load(counts + where, mask=mask, other=0)
        tl.store(bases + where, running[None, :] + tl.cumsum(own, 0) - own, mask=mask)
        running += tl.sum(own, 0)
    tile_counts = (total + ROWS - 1) // ROWS
    tile_ends = tl.cumsum(tile_counts, 0)
    tile_starts = tile_ends - tile_counts
    for start in range(0, tiles, TILES):
        tile = start + tl.arange(0, TILES)
        expert = tl.sum((tile_ends[None, :] <= tile[:, None]).to(tl.int32), 1)
        mine = (e[None, :] == expert[:, None]).to(tl.int32)  # TILES E_PAD
        first = tl.sum(mine * (firsts - tile_starts * ROWS)[None, :], 1) + tile * ROWS
        end = tl.minimum(first + ROWS, tl.sum(mine * ends[None, :], 1))
        mask = tile < tiles
        tl.store(tile_expert + tile, tl.where(expert < experts, expert, -1), mask=mask)
        tl.store(tile_first + tile, first, mask=mask)
        tl.store(tile_end + tile, end, mask=mask)


@triton.jit
def _place(ids, bases, order, inverse, rows, CHUNK: tl.constexpr, E_PAD: tl.constexpr):
    hits = _hits(ids, rows, CHUNK, E_PAD)
    base = tl.load(bases + tl.program_id(0) * E_PAD + tl.arange(0, E_PAD))
    place = tl.sum(hits * (base[None, :] + tl.cumsum(hits, 0) - 1), 1)
    row = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    tl.store(inverse + row, place, mask=row < rows)
    tl.store(order + place, row, mask=row < rows)


def order_by_expert(ids: Tensor, experts: int, tile_rows: int) -> ExpertOrder:
    """Sort the choices ``ids`` ``[T, K]``, each below ``experts``, and cut tiles of ``tile_rows``.

    Raises:
        ValueError: there are no choices.
    """
    rows = ids.numel()
    if not rows:
        raise ValueError(f"ids must hold at least one choice, got shape {tuple(ids.shape)}")
    flat = ids.reshape(-1)
    width = padded(experts)
    chunk = max(16, min(256, _ELEMENTS // width))
    chunks = -(-rows // chunk)
    tiles = rows // tile_rows + min(experts, rows)

    def make(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.int32, device=ids.device)

    counts, bases = make(chunks, width), make(chunks, width)
    result = ExpertOrder(
        make(rows), make(rows), make(experts + 1), make(tiles), make(tiles), make(tiles)
    )
    with on_device(ids):
        _count[(chunks,)](flat, counts, rows, CHUNK=chunk, E_PAD=width)
        _scan[(1,)](
            counts, bases, result.offsets, result.tile_expert, result.tile_first, result.tile_end,
            chunks, tiles, experts, E_PAD=width, GROUP=max(16, _ELEMENTS // width), ROWS=tile_rows,
            TILES=max(16, _ELEMENTS // width), num_warps=8,
        )  # fmt: skip
        _place[(chunks,)](flat, bases, result.order, result.inverse, rows, CHUNK=chunk, E_PAD=width)
    return result
