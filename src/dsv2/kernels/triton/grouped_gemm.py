"""The routed experts as grouped matrix products, in Triton (equation 20).

The rows, sorted by expert, are multiplied tile by tile. The first product gathers its rows from
``x``, takes gate and up together and leaves silu(gate) * up; the second leaves each row's result;
the combine puts them back in token order and sums over K in fp32, in K's order and without atomics.

Bytes where rows are few: 3 D F numbers per expert in use. Arithmetic: 6 D F per row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsv2.kernels.ops import ExpertWeights
from dsv2.kernels.triton.expert_order import ExpertOrder, order_by_expert
from dsv2.kernels.triton.launch import on_device, padded, precision
from dsv2.kernels.triton.vector_experts import experts_vector
from dsv2.shapes import check


@dataclass(frozen=True)
class GroupedTiles:
    """How a grouped product is cut; none of it changes what is computed.

    Attributes:
        rows: rows of a tile, all of one expert.
        columns: columns of a tile.
        depth: numbers multiplied per step.
        warps: warps per program.
        stages: steps in flight.
        group: tiles that walk over the columns together, so that weights come from the L2 cache.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    group: int = 8


@dataclass(frozen=True)
class ExpertTiles:
    """Tiles of the product with gate and up, and of the product with down, of the same rows."""

    gate_up: GroupedTiles
    down: GroupedTiles


TILES: dict[int, ExpertTiles] = {
    16: ExpertTiles(GroupedTiles(16, 64, 128, 4, 3), GroupedTiles(16, 64, 128, 4, 4)),
    32: ExpertTiles(GroupedTiles(32, 64, 128, 4, 3), GroupedTiles(32, 64, 128, 4, 4)),
    64: ExpertTiles(GroupedTiles(64, 64, 64, 4, 4), GroupedTiles(64, 128, 64, 4, 4)),
    128: ExpertTiles(GroupedTiles(128, 128, 64, 8, 3), GroupedTiles(128, 256, 64, 8, 3)),
}
"""By the rows of a tile."""
_WIDE = ExpertTiles(GroupedTiles(16, 32, 32, 4, 1), GroupedTiles(16, 32, 32, 4, 1))
"""For fp32, whose products do not use the matrix units."""
FIXED_ROWS = 64
"""Rows of a tile where results may not depend on the rest of the batch."""
VECTOR_ROWS = 16
"""Up to this many choices TK every one reads its own expert: that many are in use or nearly."""


def expert_tiles(rows: int, experts: int, dtype: torch.dtype) -> ExpertTiles:
    """The tiles for ``rows`` choices over ``experts``: as many rows as an expert has on average."""
    if dtype == torch.float32:
        return _WIDE
    return TILES[next((size for size in TILES if size * experts >= rows), max(TILES))]


@triton.jit
def _tile_of(program, tiles, columns, GROUP: tl.constexpr):
    """The tile and the block of columns of a program: GROUP tiles share a block in turn."""
    first = program // (GROUP * columns) * GROUP
    size = tl.minimum(tiles - first, GROUP)
    within = program % (GROUP * columns)
    return first + within % size, within // size


@triton.jit
def _grouped(
    x, weight, other, out, kept, kept_up, order, tile_expert, tile_first, tile_end, tiles, repeats,
    each, DEPTH_SIZE: tl.constexpr, WIDTH: tl.constexpr, GATHER: tl.constexpr, GATED: tl.constexpr,
    KEEP: tl.constexpr, UNIFORM: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr, GROUP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``out[place] = x[row] weight[e]^T``, or, GATED, silu of that times ``x[row] other[e]^T``.

    ``weight`` and ``other`` ``[E, WIDTH, DEPTH_SIZE]``. GATHER takes the token of the row at each
    place, else ``x`` lies in the experts' order already. KEEP also leaves both products, before
    the SiLU, for the gradient. UNIFORM: every matrix has ``each`` rows, one after another.
    """
    tile, block = _tile_of(tl.program_id(0), tiles, tl.cdiv(WIDTH, COLUMNS), GROUP)
    if UNIFORM:
        per = tl.cdiv(each, ROWS)
        expert = tile // per
        first = expert * each + tile % per * ROWS
        end = (expert + 1) * each
    else:
        expert = tl.load(tile_expert + tile)
        first = tl.load(tile_first + tile)
        end = tl.load(tile_end + tile)
    if expert >= 0:
        place = first + tl.arange(0, ROWS)
        real = place < end
        # Rows and columns beyond the end repeat the first and last: they are not stored.
        if GATHER:
            source = tl.load(order + place, mask=real, other=0) // repeats
        else:
            source = tl.where(real, place, 0)
        column = block * COLUMNS + tl.arange(0, COLUMNS)
        depth = tl.arange(0, DEPTH)
        begin = expert.to(tl.int64) * (WIDTH * DEPTH_SIZE)
        lines = tl.minimum(column, WIDTH - 1)[:, None] * DEPTH_SIZE + depth[None, :]
        x_at = x + source.to(tl.int64)[:, None] * DEPTH_SIZE + depth[None, :]
        weight_at = weight + begin + lines
        other_at = other + begin + lines
        acc = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
        up = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
        for start in range(0, DEPTH_SIZE, DEPTH):
            if DEPTH_SIZE % DEPTH == 0:
                a = tl.load(x_at + start)
                b = tl.load(weight_at + start)
            else:
                inside = (start + depth < DEPTH_SIZE)[None, :]
                a = tl.load(x_at + start, mask=inside, other=0.0)
                b = tl.load(weight_at + start, mask=inside, other=0.0)
            acc = tl.dot(a, tl.trans(b), acc, input_precision=PRECISION)
            if GATED:
                if DEPTH_SIZE % DEPTH == 0:
                    b = tl.load(other_at + start)
                else:
                    inside = (start + depth < DEPTH_SIZE)[None, :]
                    b = tl.load(other_at + start, mask=inside, other=0.0)
                up = tl.dot(a, tl.trans(b), up, input_precision=PRECISION)
        where = place.to(tl.int64)[:, None] * WIDTH + column[None, :]
        mask = real[:, None] & (column < WIDTH)[None, :]
        if KEEP:
            tl.store(kept + where, acc.to(out.dtype.element_ty), mask=mask)
            tl.store(kept_up + where, up.to(out.dtype.element_ty), mask=mask)
        if GATED:
            acc = acc * tl.sigmoid(acc) * up
        tl.store(out + where, acc.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _combine(
    rows, inverse, weights, out, D: tl.constexpr, K: tl.constexpr, SCALED: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """``out[t] = sum_k weights[t, k] rows[place of (t, k)]`` in fp32, in K's order.

    Without SCALED the rows carry their weights already; those of zero are left out all the same.
    """
    token = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    acc = tl.zeros([COLUMNS], dtype=tl.float32)
    for k in tl.static_range(K):
        place = tl.load(inverse + token * K + k).to(tl.int64)
        weight = tl.load(weights + token * K + k)
        row = tl.load(rows + place * D + column, mask=column < D, other=0.0)
        row = row.to(tl.float32)
        if SCALED:
            row *= weight
        acc += tl.where(weight == 0, 0.0, row)
    where = out + token.to(tl.int64) * D + column
    tl.store(where, acc.to(out.dtype.element_ty), mask=column < D)


def grouped_product(
    x: Tensor, weight: Tensor, order: ExpertOrder | int, tiles: GroupedTiles, *,
    gate: Tensor | None = None, repeats: int = 0, keep: tuple[Tensor, Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """Each row times its expert's matrix, in the experts' order.

    Args:
        x: ``[T, A]`` to gather K rows per token from, else ``[TK, A]`` in the experts' order.
        weight: ``[E, W, A]``.
        order: the rows' order, in tiles of ``tiles.rows``; or how many rows each matrix has, which
            then lie one matrix's after another's.
        tiles: how to cut the work.
        gate: ``[E, W, A]``; the product with it goes through SiLU and is multiplied in.
        repeats: K if ``x`` is to be gathered, else 0.
        keep: beside ``gate`` takes both products ``[TK, W]``, that with ``gate`` first.

    Returns:
        ``[TK, W]``.
    """
    width, depth = weight.shape[1:]
    if isinstance(order, int):
        rows, count = x.shape[0], weight.shape[0] * -(-order // tiles.rows)
        places, each = (x, x, x, x), order
    else:
        rows, count = order.order.shape[0], order.tile_expert.shape[0]
        places, each = (order.order, order.tile_expert, order.tile_first, order.tile_end), 0
    out = torch.empty((rows, width), dtype=x.dtype, device=x.device)
    kept, kept_up = (out, out) if keep is None else keep
    with on_device(x):
        _grouped[(count * -(-width // tiles.columns),)](
            x, weight if gate is None else gate, weight, out, kept, kept_up, *places, count,
            max(1, repeats), each, UNIFORM=each > 0,
            DEPTH_SIZE=depth, WIDTH=width, GATHER=repeats > 0, GATED=gate is not None,
            KEEP=keep is not None, ROWS=tiles.rows, COLUMNS=tiles.columns, DEPTH=tiles.depth,
            GROUP=tiles.group, PRECISION=precision(x.dtype), num_warps=tiles.warps,
            num_stages=tiles.stages,
        )  # fmt: skip
    return out


def combine_rows(
    rows: Tensor, weights: Tensor, order: ExpertOrder, *, scaled: bool = True
) -> Tensor:
    """``rows`` ``[TK, D]`` in the experts' order, weighted ``[T, K]`` and summed: ``[T, D]``.

    With ``scaled`` false the rows carry their weights already, and rows of weight zero are still
    left out, whatever they hold.
    """
    tokens, repeats = weights.shape
    width = rows.shape[1]
    out = torch.empty((tokens, width), dtype=rows.dtype, device=rows.device)
    columns = min(1024, padded(width))
    with on_device(rows):
        _combine[(tokens, -(-width // columns))](
            rows, order.inverse, weights, out, D=width, K=repeats, SCALED=scaled,
            COLUMNS=columns,
        )  # fmt: skip
    return out


def experts_grouped(
    x: Tensor, ids: Tensor, weights: Tensor, experts: ExpertWeights, tiles: ExpertTiles
) -> Tensor:
    """:meth:`Ops.experts` as two grouped products."""
    order = order_by_expert(ids, experts.w_gate.shape[0], tiles.gate_up.rows)
    gated = grouped_product(
        x, experts.w_up, order, tiles.gate_up, gate=experts.w_gate, repeats=ids.shape[1]
    )
    results = grouped_product(gated, experts.w_down, order, tiles.down)
    return combine_rows(results, weights, order)


def run_experts(
    x: Tensor, ids: Tensor, weights: Tensor, experts: ExpertWeights, *, deterministic: bool = False
) -> Tensor:
    """:meth:`Ops.experts` without a gradient; nothing is read from the device.

    ``deterministic`` fixes the tiles, so that a row's bits depend on its own numbers alone.
    """
    check((x, "T D"), (ids, "T K"), (weights, "T K"), (experts.w_gate, "E F D"))
    check((experts.w_gate, "E F D"), (experts.w_up, "E F D"), (experts.w_down, "E D F"))
    if not ids.numel():
        return torch.zeros_like(x)
    x, ids, weights = x.contiguous(), ids.contiguous(), weights.contiguous()
    own = ExpertWeights(
        experts.w_gate.contiguous(), experts.w_up.contiguous(), experts.w_down.contiguous()
    )
    if ids.numel() <= VECTOR_ROWS and not deterministic:
        return experts_vector(x, ids, weights, own)
    rows = FIXED_ROWS * own.w_gate.shape[0] if deterministic else ids.numel()
    return experts_grouped(x, ids, weights, own, expert_tiles(rows, own.w_gate.shape[0], x.dtype))
