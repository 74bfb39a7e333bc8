"""Grouped matrix products of the experts' gradients, in Triton.

The gradient of rows runs over an expert's matrix the other way round; that of a matrix is a product
over the expert's own rows, summed in their order by one program per tile, without atomics. Both
take rows in the experts' order, or gather them by token.

Arithmetic: 6 D F per row for rows, and as much for matrices.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsv2.kernels.triton.expert_order import ExpertOrder
from dsv2.kernels.triton.grouped_gemm import GroupedTiles, _tile_of
from dsv2.kernels.triton.launch import on_device, precision

_ROWS: dict[int, GroupedTiles] = {
    16: GroupedTiles(16, 64, 64, 4, 4),
    32: GroupedTiles(32, 64, 64, 4, 4),
    64: GroupedTiles(64, 128, 64, 4, 4),
    128: GroupedTiles(128, 256, 64, 8, 3),
}
_MATRIX = GroupedTiles(128, 256, 64, 8, 3)
_PAIR = GroupedTiles(128, 128, 64, 8, 3)
_WIDE = 32
"""Columns and depth for fp32, whose products do not use the matrix units."""


def rows_grad_tiles(rows: int, dtype: torch.dtype) -> GroupedTiles:
    """For :func:`grouped_rows_grad`; ``rows`` are those of the order's tiles."""
    return GroupedTiles(rows, _WIDE, _WIDE, 4, 1) if dtype == torch.float32 else _ROWS[rows]


def matrix_grad_tiles(dtype: torch.dtype, pair: bool = False) -> GroupedTiles:
    """For :func:`grouped_matrix_grad`, of two matrices at once with ``pair``.

    Rows and columns are those of the matrix, the depth counts the expert's rows.
    """
    if dtype == torch.float32:
        return GroupedTiles(_WIDE, _WIDE, _WIDE, 4, 1)
    return _PAIR if pair else _MATRIX


@triton.jit
def _add_product(
    acc, x_at, weight_at, column, DEPTH_SIZE: tl.constexpr, WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``acc`` plus rows at ``x_at`` times a matrix whose columns lie side by side.

    Columns beyond the end are masked: a place of their own would break up the others' loads.
    """
    depth = tl.arange(0, DEPTH)
    for start in range(0, DEPTH_SIZE, DEPTH):
        real = (column < WIDTH)[None, :]
        if DEPTH_SIZE % DEPTH == 0:
            a = tl.load(x_at + start)
        else:
            inside = start + depth < DEPTH_SIZE
            a = tl.load(x_at + start, mask=inside[None, :], other=0.0)
            real = real & inside[:, None]
        if DEPTH_SIZE % DEPTH == 0 and WIDTH % COLUMNS == 0:
            b = tl.load(weight_at + start * WIDTH)
        else:
            b = tl.load(weight_at + start * WIDTH, mask=real, other=0.0)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    return acc


@triton.jit
def _grouped_rows_grad(
    x, weight, x_too, weight_too, out, order, tile_expert, tile_first, tile_end, tiles, repeats,
    DEPTH_SIZE: tl.constexpr, WIDTH: tl.constexpr, GATHER: tl.constexpr, PAIR: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """``out[place] = x[row] weight[e]``, with PAIR also ``+ x_too[row] weight_too[e]``."""
    tile, block = _tile_of(tiles, tl.cdiv(WIDTH, COLUMNS), GROUP)
    expert = tl.load(tile_expert + tile)
    if expert >= 0:
        place = tl.load(tile_first + tile) + tl.arange(0, ROWS)
        real = place < tl.load(tile_end + tile)
        # Rows beyond the end repeat the first: they are not stored.
        if GATHER:
            source = tl.load(order + place, mask=real, other=0) // repeats
        else:
            source = tl.where(real, place, 0)
        column = block * COLUMNS + tl.arange(0, COLUMNS)
        depth = tl.arange(0, DEPTH)
        begin = expert.to(tl.int64) * (WIDTH * DEPTH_SIZE)
        rows_at = source.to(tl.int64)[:, None] * DEPTH_SIZE + depth[None, :]
        lines = begin + depth[:, None] * WIDTH + column[None, :]
        acc = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
        acc = _add_product(
            acc, x + rows_at, weight + lines, column, DEPTH_SIZE, WIDTH, COLUMNS, DEPTH, PRECISION
        )
        if PAIR:
            acc = _add_product(
                acc, x_too + rows_at, weight_too + lines, column, DEPTH_SIZE, WIDTH, COLUMNS,
                DEPTH, PRECISION,
            )  # fmt: skip
        where = out + place.to(tl.int64)[:, None] * WIDTH + column[None, :]
        mask = real[:, None] & (column < WIDTH)[None, :]
        tl.store(where, acc.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _grouped_matrix_grad(
    left, left_too, right, out, out_too, order, offsets, repeats,
    M: tl.constexpr, N: tl.constexpr, GATHER_LEFT: tl.constexpr, GATHER_RIGHT: tl.constexpr,
    PAIR: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    GROUP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``out[e] = left[rows of e]^T right[rows of e]``, with PAIR also of ``left_too``."""
    expert = tl.program_id(1)
    block, other = _tile_of(tl.cdiv(M, ROWS), tl.cdiv(N, COLUMNS), GROUP)
    m = block * ROWS + tl.arange(0, ROWS)
    n = other * COLUMNS + tl.arange(0, COLUMNS)
    begin = tl.load(offsets + expert)
    end = tl.load(offsets + expert + 1)
    acc = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    acc_too = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    depth = tl.arange(0, DEPTH)
    for start in range(begin, end, DEPTH):
        place = start + depth
        real = place < end
        token = place
        if GATHER_LEFT or GATHER_RIGHT:
            token = tl.load(order + place, mask=real, other=0) // repeats
        l_row = place
        r_row = place
        if GATHER_LEFT:
            l_row = token
        if GATHER_RIGHT:
            r_row = token
        l_at = l_row.to(tl.int64)[:, None] * M + m[None, :]
        r_at = r_row.to(tl.int64)[:, None] * N + n[None, :]
        l_real = real[:, None]
        if M % ROWS:
            l_real = l_real & (m < M)[None, :]
        r_real = real[:, None]
        if N % COLUMNS:
            r_real = r_real & (n < N)[None, :]
        a = tl.load(left + l_at, mask=l_real, other=0.0)
        b = tl.load(right + r_at, mask=r_real, other=0.0)
        acc = tl.dot(tl.trans(a), b, acc, input_precision=PRECISION)
        if PAIR:
            a = tl.load(left_too + l_at, mask=l_real, other=0.0)
            acc_too = tl.dot(tl.trans(a), b, acc_too, input_precision=PRECISION)
    where = expert.to(tl.int64) * (M * N) + m[:, None] * N + n[None, :]
    mask = (m < M)[:, None] & (n < N)[None, :]
    tl.store(out + where, acc.to(out.dtype.element_ty), mask=mask)
    if PAIR:
        tl.store(out_too + where, acc_too.to(out.dtype.element_ty), mask=mask)


def grouped_rows_grad(
    x: Tensor, weight: Tensor, order: ExpertOrder, tiles: GroupedTiles, *,
    too: tuple[Tensor, Tensor] | None = None, repeats: int = 0,
) -> Tensor:  # fmt: skip
    """Each row times its expert's matrix from the other side, in the experts' order.

    Args:
        x: ``[T, W]`` to gather K rows per token from, else ``[TK, W]`` in the experts' order.
        weight: ``[E, W, A]``.
        order: the rows' order, in tiles of ``tiles.rows``.
        tiles: how to cut the work.
        too: further rows and matrices of the same shapes, whose product is added.
        repeats: K if ``x`` is to be gathered, else 0.

    Returns:
        ``[TK, A]``.
    """
    depth, width = weight.shape[1:]
    rows, count = order.order.shape[0], order.tile_expert.shape[0]
    out = torch.empty((rows, width), dtype=x.dtype, device=x.device)
    x_too, weight_too = (x, weight) if too is None else too
    with on_device(x):
        _grouped_rows_grad[(count * -(-width // tiles.columns),)](
            x, weight, x_too, weight_too, out, order.order, order.tile_expert, order.tile_first,
            order.tile_end, count, max(1, repeats),
            DEPTH_SIZE=depth, WIDTH=width, GATHER=repeats > 0, PAIR=too is not None,
            ROWS=tiles.rows, COLUMNS=tiles.columns, DEPTH=tiles.depth, GROUP=tiles.group,
            PRECISION=precision(x.dtype), num_warps=tiles.warps, num_stages=tiles.stages,
        )  # fmt: skip
    return out


def grouped_matrix_grad(
    left: Tensor, right: Tensor, order: ExpertOrder, experts: int, tiles: GroupedTiles, *,
    left_too: Tensor | None = None, repeats_left: int = 0, repeats_right: int = 0,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """For each expert the sum over its rows of ``left``'s row times ``right``'s: ``[E, M, N]``.

    Args:
        left: ``[TK, M]`` in the experts' order, or ``[T, M]``.
        right: ``[TK, N]`` in the experts' order, or ``[T, N]``.
        order: the rows' order.
        experts: E.
        tiles: how to cut the work; tiles of the order do not matter.
        left_too: a second ``left``, whose sums are taken beside and come second.
        repeats_left: K if ``left`` has a row per token and is to be gathered, else 0.
        repeats_right: likewise.
    """
    m, n = left.shape[1], right.shape[1]
    outs = [
        torch.empty((experts, m, n), dtype=left.dtype, device=left.device)
        for _ in range(1 if left_too is None else 2)
    ]
    with on_device(left):
        _grouped_matrix_grad[(-(-m // tiles.rows) * -(-n // tiles.columns), experts)](
            left, left if left_too is None else left_too, right, outs[0], outs[-1], order.order,
            order.offsets, max(1, repeats_left, repeats_right),
            M=m, N=n, GATHER_LEFT=repeats_left > 0, GATHER_RIGHT=repeats_right > 0,
            PAIR=left_too is not None,
            ROWS=tiles.rows, COLUMNS=tiles.columns, DEPTH=tiles.depth, GROUP=tiles.group,
            PRECISION=precision(left.dtype), num_warps=tiles.warps, num_stages=tiles.stages,
        )  # fmt: skip
    return outs[0], None if left_too is None else outs[1]
