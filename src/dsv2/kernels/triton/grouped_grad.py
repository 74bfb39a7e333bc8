"""Grouped matrix products of the experts' gradients, in Triton.

The gradient of rows runs over an expert's matrix the other way round; that of a matrix is a product
over the expert's own rows, summed in their order by one program per tile, without atomics. Both
take rows in the experts' order, so that whole tiles come by the bulk copies of Hopper: gathering
rows of x one by one took half as long again for the matrices (H200: 845 us to 514).

Arithmetic: 6 D F per row for rows, and as much for matrices.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from dsv2.kernels.triton.expert_order import ExpertOrder
from dsv2.kernels.triton.grouped_gemm import GroupedTiles, _tile_of
from dsv2.kernels.triton.launch import multiprocessors, on_device, precision

ALIGNMENT = 16
"""Bytes to which a bulk copy wants the rows of what it copies aligned."""
_ROWS: dict[int, GroupedTiles] = {
    16: GroupedTiles(16, 64, 64, 4, 4),
    32: GroupedTiles(32, 64, 64, 4, 4),
    64: GroupedTiles(64, 128, 64, 4, 4),
    128: GroupedTiles(128, 256, 64, 8, 3),
}
_MATRIX = GroupedTiles(128, 128, 64, 4, 3)
_PROGRAMS = 2
"""Programs of the matrices' gradient per multiprocessor: one stores while another multiplies."""
_WIDE = 32
"""Columns and depth for fp32, whose products do not use the matrix units."""


def rows_grad_tiles(rows: int, dtype: torch.dtype) -> GroupedTiles:
    """For :func:`grouped_rows_grad`; ``rows`` are those of the order's tiles."""
    return GroupedTiles(rows, _WIDE, _WIDE, 4, 1) if dtype == torch.float32 else _ROWS[rows]


def matrix_grad_tiles(dtype: torch.dtype) -> GroupedTiles:
    """For :func:`grouped_matrix_grad`: rows and columns are the matrix's, the depth its rows'."""
    return GroupedTiles(_WIDE, _WIDE, _WIDE, 4, 1) if dtype == torch.float32 else _MATRIX


@triton.jit
def _add_product(
    acc, x, weight, first, line, column, DEPTH_SIZE: tl.constexpr, DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """``acc`` plus rows of ``x`` from ``first`` on times columns of ``weight`` from ``line`` on."""
    for start in range(0, DEPTH_SIZE, DEPTH):
        a = x.load([first, start])
        b = weight.load([line + start, column])
        if DEPTH_SIZE % DEPTH:
            # Further lines are the next expert's: they meet zeros, but a NaN would stay one.
            inside = (start + tl.arange(0, DEPTH) < DEPTH_SIZE)[:, None]
            b = tl.where(inside, b, 0.0).to(b.dtype)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    return acc


@triton.jit
def _grouped_rows_grad(
    x, weight, x_too, weight_too, out, tile_expert, tile_first, tile_end, tiles,
    DEPTH_SIZE: tl.constexpr, WIDTH: tl.constexpr, PAIR: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """``out[place] = x[place] weight[e]``, with PAIR also ``+ x_too[place] weight_too[e]``."""
    tile, block = _tile_of(tl.program_id(0), tiles, tl.cdiv(WIDTH, COLUMNS), GROUP)
    expert = tl.load(tile_expert + tile)
    if expert >= 0:
        first = tl.load(tile_first + tile)
        line = expert * DEPTH_SIZE
        begin = block * COLUMNS
        acc = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
        acc = _add_product(acc, x, weight, first, line, begin, DEPTH_SIZE, DEPTH, PRECISION)
        if PAIR:
            acc = _add_product(
                acc, x_too, weight_too, first, line, begin, DEPTH_SIZE, DEPTH, PRECISION
            )
        place = first + tl.arange(0, ROWS)
        column = block * COLUMNS + tl.arange(0, COLUMNS)
        # A tile's last rows may belong to the next expert.
        mask = (place < tl.load(tile_end + tile))[:, None] & (column < WIDTH)[None, :]
        where = out + place.to(tl.int64)[:, None] * WIDTH + column[None, :]
        tl.store(where, acc.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _grouped_matrix_grad(
    left, right, out, offsets, experts, M: tl.constexpr, N: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
    PROGRAMS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``out[e] = left[rows of e]^T right[rows of e]``; programs take tiles in turn."""
    tiles = tl.cdiv(M, ROWS)
    blocks = tl.cdiv(N, COLUMNS)
    each = tiles * blocks
    for program in range(tl.program_id(0), experts * each, PROGRAMS):
        expert = program // each
        tile, block = _tile_of(program % each, tiles, blocks, GROUP)
        m_first = tile * ROWS
        n_first = block * COLUMNS
        begin = tl.load(offsets + expert)
        end = tl.load(offsets + expert + 1)
        whole = begin + (end - begin) // DEPTH * DEPTH
        acc = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
        for place in range(begin, whole, DEPTH):
            a = left.load([place, m_first])
            b = right.load([place, n_first])
            acc = tl.dot(tl.trans(a), b, acc, input_precision=PRECISION)
        kind = out.dtype.element_ty
        if whole < end:
            # Further rows are the next expert's.
            real = (whole + tl.arange(0, DEPTH) < end)[:, None]
            a = tl.where(real, left.load([whole, m_first]), 0.0).to(kind)
            b = tl.where(real, right.load([whole, n_first]), 0.0).to(kind)
            acc = tl.dot(tl.trans(a), b, acc, input_precision=PRECISION)
        m = m_first + tl.arange(0, ROWS)
        n = n_first + tl.arange(0, COLUMNS)
        where = out + expert.to(tl.int64) * (M * N) + m[:, None] * N + n[None, :]
        tl.store(where, acc.to(kind), mask=(m < M)[:, None] & (n < N)[None, :])


def _tiles_of(x: Tensor, rows: int, columns: int) -> TensorDescriptor:
    """``x`` as a matrix to be copied in tiles, zero beyond its end."""
    flat = x.view(-1, x.shape[-1])
    return TensorDescriptor(flat, list(flat.shape), list(flat.stride()), [rows, columns])


def grouped_rows_grad(
    x: Tensor, weight: Tensor, order: ExpertOrder, tiles: GroupedTiles, *,
    too: tuple[Tensor, Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """Each row times its expert's matrix from the other side, in the experts' order.

    Args:
        x: ``[TK, W]`` in the experts' order, rows aligned to :data:`ALIGNMENT` bytes.
        weight: ``[E, W, A]``, likewise.
        order: the rows' order, in tiles of ``tiles.rows``.
        tiles: how to cut the work.
        too: further rows and matrices of the same shapes, whose product is added.

    Returns:
        ``[TK, A]``.
    """
    depth, width = weight.shape[1:]
    count = order.tile_expert.shape[0]
    out = torch.empty((x.shape[0], width), dtype=x.dtype, device=x.device)
    pairs = [(x, weight), (x, weight) if too is None else too]
    operands = [
        part
        for rows, matrix in pairs
        for part in (
            _tiles_of(rows, tiles.rows, tiles.depth),
            _tiles_of(matrix, tiles.depth, tiles.columns),
        )
    ]
    with on_device(x):
        _grouped_rows_grad[(count * -(-width // tiles.columns),)](
            *operands, out, order.tile_expert, order.tile_first, order.tile_end, count,
            DEPTH_SIZE=depth, WIDTH=width, PAIR=too is not None,
            ROWS=tiles.rows, COLUMNS=tiles.columns, DEPTH=tiles.depth, GROUP=tiles.group,
            PRECISION=precision(x.dtype), num_warps=tiles.warps, num_stages=tiles.stages,
        )  # fmt: skip
    return out


def grouped_matrix_grad(
    left: Tensor, right: Tensor, order: ExpertOrder, experts: int, tiles: GroupedTiles
) -> Tensor:
    """For each expert the sum over its rows of ``left``'s row times ``right``'s: ``[E, M, N]``.

    Args:
        left: ``[TK, M]`` in the experts' order, rows aligned to :data:`ALIGNMENT` bytes.
        right: ``[TK, N]``, likewise.
        order: the rows' order; its tiles do not matter.
        experts: E.
        tiles: how to cut the work.
    """
    m, n = left.shape[1], right.shape[1]
    out = torch.empty((experts, m, n), dtype=left.dtype, device=left.device)
    every = experts * -(-m // tiles.rows) * -(-n // tiles.columns)
    programs = min(every, _PROGRAMS * multiprocessors(left.device))
    with on_device(left):
        _grouped_matrix_grad[(programs,)](
            _tiles_of(left, tiles.depth, tiles.rows), _tiles_of(right, tiles.depth, tiles.columns),
            out, order.offsets, experts, M=m, N=n,
            ROWS=tiles.rows, COLUMNS=tiles.columns, DEPTH=tiles.depth, GROUP=tiles.group,
            PROGRAMS=programs, PRECISION=precision(left.dtype), num_warps=tiles.warps,
            num_stages=tiles.stages,
        )  # fmt: skip
    return out
