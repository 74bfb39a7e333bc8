"""Decode of many heads on the paged latent for Hopper, in Gluon.

From 17 query rows on, products bind (report, appendix C: 2 H (2C + R) operations per cached
token), and what :mod:`dsv2.kernels.triton.mla_decode` spends on moving a tile costs more than the
tile: each thread computes addresses and issues copies, and scores are waited for three times. Here
one thread lets the bulk copy engine bring the next page while this one is multiplied, and both warp
groups share the scores by keys and the output by columns. One page is one tile; two are in shared
memory beside the queries. Gluon says which layout every value has, which Triton does not.

The rest of the contract is that of ``_decode``, whose results those of this kernel are held to.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from dsv2.shapes import BLOCK_SIZE

ROWS = 64
"""Query rows of a program."""
WARPS = 8
_DTYPES = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16}

# Newer versions have other names for both.
_bulk_load = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
_barrier = getattr(gl, "thread_barrier", None) or gl.barrier


@gluon.jit
def decode_rows(
    q_latents, q_ropes, latents, ropes, table, kv_len, cu_q, out, lse,
    qk_scale, table_stride, part_stride, num_splits,
    HEADS: gl.constexpr, PAGE: gl.constexpr, SPLIT_KEYS: gl.constexpr, PARTIAL: gl.constexpr,
):  # fmt: skip
    """64 query rows of one sequence over one split of its keys.

    ``q_latents`` and ``q_ropes`` describe ``[T * H, C]`` and ``[T * H, R]`` in blocks of 64 rows,
    ``latents`` and ``ropes`` the columns of ``[P * 64, C + R]`` in blocks of a page. All else is as
    in ``mla_decode._decode``.
    """
    ROWS: gl.constexpr = q_latents.block_shape[0]
    C: gl.constexpr = q_latents.block_shape[1]
    R: gl.constexpr = q_ropes.block_shape[1]
    DTYPE: gl.constexpr = q_latents.dtype
    BYTES: gl.constexpr = PAGE * (C + R) * 2
    SCORES: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 2], instr_shape=[16, PAGE // 2, 16]
    )
    OUT: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 2], instr_shape=[16, C // 2, 16]
    )
    WEIGHTS: gl.constexpr = gl.NVMMASharedLayout(128, 16, rank=2)

    tile = gl.program_id(0)
    split = gl.program_id(1)
    sequence = gl.program_id(2)
    first = gl.load(cu_q + sequence)
    tokens = gl.load(cu_q + sequence + 1) - first
    total = gl.load(kv_len + sequence)
    if tile * ROWS < tokens * HEADS:
        if SPLIT_KEYS:
            span = SPLIT_KEYS
        else:
            span = gl.cdiv(gl.cdiv(total, PAGE), num_splits) * PAGE
        start = split * span
        end = gl.minimum(start + span, total)
        pages = gl.cdiv(gl.maximum(end - start, 0), PAGE)
        blocks = table + sequence * table_stride + start // PAGE

        q_c = gl.allocate_shared_memory(DTYPE, [ROWS, C], q_latents.layout)
        q_r = gl.allocate_shared_memory(DTYPE, [ROWS, R], q_ropes.layout)
        k_c = gl.allocate_shared_memory(DTYPE, [2, PAGE, C], latents.layout)
        k_r = gl.allocate_shared_memory(DTYPE, [2, PAGE, R], ropes.layout)
        p = gl.allocate_shared_memory(DTYPE, [ROWS, PAGE], WEIGHTS)
        ready = gl.allocate_shared_memory(gl.int64, [3, 1], mbarrier.MBarrierLayout())
        for i in gl.static_range(3):
            mbarrier.init(ready.index(i), count=1)
        _barrier()

        place = first * HEADS + tile * ROWS
        mbarrier.expect(ready.index(2), ROWS * (C + R) * 2)
        _bulk_load(q_latents, [place, 0], ready.index(2), q_c)
        _bulk_load(q_ropes, [place, 0], ready.index(2), q_r)
        for i in gl.static_range(2):
            here = i < pages
            page = gl.load(blocks + i, mask=here, other=0)
            mbarrier.expect(ready.index(i), BYTES, pred=here)
            _bulk_load(ropes, [page * PAGE, C], ready.index(i), k_r.index(i), pred=here)
            _bulk_load(latents, [page * PAGE, 0], ready.index(i), k_c.index(i), pred=here)

        row = tile * ROWS + gl.arange(0, ROWS, layout=gl.SliceLayout(1, SCORES))
        n = gl.arange(0, PAGE, layout=gl.SliceLayout(0, SCORES))
        visible = gl.minimum(total - tokens + 1 + row // HEADS, total)
        top = gl.full([ROWS], float("-inf"), gl.float32, gl.SliceLayout(1, SCORES))
        # Sums of weights stay with their threads until the end.
        masses = gl.zeros([ROWS, PAGE], gl.float32, SCORES)
        acc = gl.zeros([ROWS, C], gl.float32, OUT)
        mbarrier.wait(ready.index(2), 0)

        for i in range(pages):
            at = i % 2
            keys = k_c.index(at)
            following = i + 2 < pages
            page = gl.load(blocks + i + 2, mask=following, other=0)
            mbarrier.wait(ready.index(at), (i // 2) & 1)
            scores = gl.zeros([ROWS, PAGE], gl.float32, SCORES)
            scores = warpgroup_mma(q_r, k_r.index(at).permute((1, 0)), scores, is_async=True)
            scores = warpgroup_mma(q_c, keys.permute((1, 0)), scores, is_async=True)
            scores = warpgroup_mma_wait(0, deps=[scores])
            key = start + i * PAGE + n
            seen = (key < end)[None, :] & (key[None, :] < visible[:, None])
            scores = gl.where(seen, scores * qk_scale, float("-inf"))
            new_top = gl.maximum(top, gl.max(scores, 1))
            # A row that has seen no key yet keeps its maximum of -inf out of the exponent.
            safe = gl.where(new_top == float("-inf"), 0.0, new_top)
            weights = gl.exp2(scores - safe[:, None])
            fade = gl.exp2(top - safe)
            top = new_top
            masses = masses * fade[:, None] + weights
            p.store(weights.to(DTYPE))
            if end - start - i * PAGE < PAGE:
                # What lies past the end may be NaN, and no weight of 0 hides that.
                _clear(keys, end - start - i * PAGE, PAGE, C)
            acc *= gl.convert_layout(fade, gl.SliceLayout(1, OUT))[:, None]
            fence_async_shared()
            _barrier()
            acc = warpgroup_mma(p, keys, acc, is_async=True)
            acc = warpgroup_mma_wait(0, deps=[acc])
            _barrier()  # all have read the page that the next copy overwrites
            mbarrier.expect(ready.index(at), BYTES, pred=following)
            _bulk_load(ropes, [page * PAGE, C], ready.index(at), k_r.index(at), pred=following)
            _bulk_load(latents, [page * PAGE, 0], ready.index(at), keys, pred=following)

        mass = gl.sum(masses, 1)
        some = mass > 0
        inverse = gl.where(some, 1.0 / gl.where(some, mass, 1.0), 0.0)
        keep = row < tokens * HEADS
        spot = first * HEADS + row
        if PARTIAL:
            out += split.to(gl.int64) * part_stride * C
            level = gl.where(some, top + gl.log2(gl.where(some, mass, 1.0)), float("-inf"))
            gl.store(lse + split.to(gl.int64) * part_stride + spot, level, mask=keep)
            keep = keep & some  # a split without keys is never read
        inverse = gl.convert_layout(inverse, gl.SliceLayout(1, OUT))
        keep = gl.convert_layout(keep, gl.SliceLayout(1, OUT))
        spot = gl.convert_layout(spot, gl.SliceLayout(1, OUT))
        c = gl.arange(0, C, layout=gl.SliceLayout(0, OUT))
        gl.store(
            out + spot.to(gl.int64)[:, None] * C + c[None, :],
            (acc * inverse[:, None]).to(out.dtype.element_ty), mask=keep[:, None],
        )  # fmt: skip


@gluon.jit
def _clear(keys, real, PAGE: gl.constexpr, C: gl.constexpr):
    """Zeros in the rows of a page from ``real`` on, a few columns at a time."""
    COLUMNS: gl.constexpr = 64
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [8, 1], [1, 0])
    n = gl.arange(0, PAGE, layout=gl.SliceLayout(1, LAYOUT))
    for start in gl.static_range(0, C, COLUMNS):
        part = keys.slice(start, COLUMNS, dim=1)
        part.store(gl.where((n < real)[:, None], part.load(LAYOUT), 0.0))


@cache
def _layout(columns: int, block: int, dtype: torch.dtype) -> gl.NVMMASharedLayout:
    return gl.NVMMASharedLayout.get_default_for([block, columns], _DTYPES[dtype])


def _described(tensor: Tensor, columns: int, block: int) -> TensorDescriptor:
    """A matrix in blocks of ``block`` rows and ``columns`` columns, for the bulk copy engine."""
    layout = _layout(columns, block, tensor.dtype)
    return TensorDescriptor.from_tensor(tensor, [block, columns], layout)


def launch(
    q_latent: Tensor, q_rope: Tensor, cache: Tensor, block_table: Tensor, kv_len: Tensor,
    cu_q: Tensor, parts: Tensor, lse: Tensor, qk_scale: float, grid: tuple[int, int, int],
    split_keys: int,
) -> None:  # fmt: skip
    """``_decode`` of queries and a cache of 16-bit numbers, grid and outputs as there."""
    tokens, heads, latent = q_latent.shape
    flat = cache.view(-1, cache.shape[-1])
    decode_rows[grid](
        _described(q_latent.view(-1, latent), latent, ROWS),
        _described(q_rope.view(-1, q_rope.shape[-1]), q_rope.shape[-1], ROWS),
        _described(flat, latent, BLOCK_SIZE), _described(flat, q_rope.shape[-1], BLOCK_SIZE),
        block_table, kv_len, cu_q, parts, lse, qk_scale, block_table.stride(0), tokens * heads,
        grid[1], HEADS=heads, PAGE=BLOCK_SIZE, SPLIT_KEYS=split_keys,
        PARTIAL=parts.dtype == torch.float32, num_warps=WARPS,
    )  # fmt: skip
