"""The kernels of attention at the shapes of the published models: right, and how fast."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product

import torch
from torch import Tensor

from dsv2.kernels import flashinfer, reference
from dsv2.kernels.registry import available, select
from dsv2.kernels.triton import mla_decode, mla_prefill, mla_prefill_grad
from dsv2.kernels.triton.bench import ELSEWHERE, HERE, KernelBench, describe, relative
from dsv2.kernels.triton.launch import bounds
from dsv2.shapes import BLOCK_SIZE

L2_BYTES = 256 << 20
PEER_US: dict[tuple[int, int, int], float] = {
    (16, 1, 8192): 32, (16, 64, 1024): 39, (16, 128, 4096): 158, (16, 16, 65536): 299,
           (128, 64, 4096): 141}  # fmt: skip
"""FlashInfer 0.5.3, fa3, on one H200: heads, sequences, cached tokens;
where it is installed it is measured instead."""


BACKWARD_KEYS_CUTS = [
    (32, 64, 4, 3), (32, 64, 4, 1), (32, 128, 8, 3), (64, 128, 8, 2), (16, 64, 4, 3),
    (32, 64, 8, 2), (32, 128, 4, 2), (64, 64, 4, 3), (64, 64, 8, 2),
]  # fmt: skip
BACKWARD_QUERIES_CUTS = [
    (64, 32, 4, 3), (64, 32, 4, 4), (64, 64, 4, 4), (128, 32, 8, 4), (128, 32, 8, 3),
    (128, 128, 8, 2), (128, 64, 8, 2),
]  # fmt: skip
"""Other tiles of the gradients to try: queries, keys, warps and stages."""


def decode_variants(heads: int, dtype: torch.dtype) -> list[mla_decode.DecodeTiles]:
    """The default tiles, then others to try."""
    default = mla_decode.decode_tiles(heads, dtype)
    if heads > 16:
        cuts = [(64, 8, 2), (32, 8, 3), (32, 8, 2), (64, 8, 1), (32, 8, 4)]
        others = [mla_decode.DecodeTiles(64, *cut) for cut in cuts]
    else:
        cuts = [(64, 4, 2), (64, 4, 3), (64, 8, 2), (64, 8, 3), (32, 4, 3), (32, 4, 4), (32, 4, 5),
                (32, 4, 2), (32, 8, 3)]  # fmt: skip
        others = [mla_decode.DecodeTiles(16, *cut) for cut in cuts]
    more = [replace(tiles, waves=waves) for waves, tiles in product((1, 2), others)]
    return [default, *(tiles for tiles in more if tiles != default)]


def bench_decode(bench: KernelBench, heads: int, sequences: int, cached: int) -> None:
    """One query token of each sequence over as many cached ones."""
    latent, rope = (64, 16) if bench.tiny else (512, 64)
    width = latent + rope
    blocks = -(-cached // BLOCK_SIZE)
    bytes_read = sequences * cached * width * 2
    sets = 1 if bench.tiny else max(1, min(16, -(-L2_BYTES // bytes_read)))
    cache = bench.normal(sets * sequences * blocks, BLOCK_SIZE, width)
    order = torch.randperm(cache.shape[0], device=bench.device).to(torch.int32)
    tables = order.view(sets, sequences, blocks)
    kv_len = torch.full((sequences,), cached, dtype=torch.int32, device=bench.device)
    q_latent, q_rope = bench.normal(sequences, heads, latent), bench.normal(sequences, heads, rope)
    cu_q = bounds((1,) * sequences, bench.device)
    scale = (128 + rope) ** -0.5
    rows = [0, sequences - 1] if sequences > 1 else [0]
    expected = reference.attend_absorbed(
        q_latent[rows].float(), q_rope[rows].float(), cache, tables[0, rows], kv_len[rows],
        (1,) * len(rows), scale,
    )  # fmt: skip
    case = f"{heads} x {sequences} x {cached}"
    moved = bytes_read + 2 * sequences * heads * (width + latent)
    flops = 2.0 * heads * sequences * cached * (width + latent)

    def run(tiles: mla_decode.DecodeTiles | None, deterministic: bool, variant: str) -> None:
        def call(table: Tensor) -> Tensor:
            return mla_decode.decode_latent(
                q_latent, q_rope, cache, table, kv_len, cu_q, 1, scale,
                deterministic=deterministic, tiles=tiles,
            )  # fmt: skip

        timed(call, variant)

    def timed(call: Callable[[Tensor], Tensor], variant: str) -> None:
        error = relative(call(tables[0])[rows], expected)
        calls = [partial(call, table) for table in tables]
        bench.record("mla_decode", case, variant, calls, moved, flops, error, peer_name, peer)

    def run_flashinfer() -> None:
        # A plan holds one table: it is made outside of what is timed, as for all layers of a step.
        plans = [
            flashinfer.MlaDecode(bench.device, heads=heads, scale=scale, dtype=bench.dtype)
            for _ in tables
        ]
        for plan, table in zip(plans, tables, strict=True):
            plan.plan(table, kv_len, (1,) * sequences)
        own = {table.data_ptr(): plan for table, plan in zip(tables, plans, strict=True)}
        timed(lambda table: own[table.data_ptr()].run(q_latent, q_rope, cache), "flashinfer")

    peer, peer_name = PEER_US.get((heads, sequences, cached)), ELSEWHERE
    if available("flashinfer"):
        bench.attempt("mla_decode", case, "flashinfer", run_flashinfer)
        beside = bench.microseconds("mla_decode", case, "flashinfer")
        if beside is not None:
            peer, peer_name = beside, HERE
    for deterministic in (False, True):
        variant = "deterministic" if deterministic else "default"
        bench.attempt("mla_decode", case, variant, partial(run, None, deterministic, variant))
    for tiles in bench.others(decode_variants(heads, bench.dtype))[1:]:
        name = describe(tiles)
        bench.attempt("mla_decode", case, name, partial(run, tiles, False, name))


def faster_decode(bench: KernelBench) -> dict[str, str]:
    """For each measured case of the decode the backend that its times speak for."""
    found = {}
    for case in dict.fromkeys(one.case for one in bench.results if one.kernel == "mla_decode"):
        times = {
            backend: one / 1e6
            for backend, variant in (("triton", "default"), ("flashinfer", "flashinfer"))
            if (one := bench.microseconds("mla_decode", case, variant)) is not None
        }
        found[case] = flashinfer.faster(times)
    return found


def bench_prefill(
    bench: KernelBench,
    sequences: int,
    new: int,
    total: int,
    heads: int,
    *,
    with_forward: bool = True,
) -> None:
    """The last ``new`` of ``total`` tokens of each sequence, and the gradients.

    Without ``with_forward`` the gradients alone.
    """
    width, value = (48, 16) if bench.tiny else (192, 128)
    q_lens, kv_lens = (new,) * sequences, (total,) * sequences
    q, k = (
        bench.normal(sequences * new, heads, width),
        bench.normal(sequences * total, heads, width),
    )
    v = bench.normal(sequences * total, heads, value)
    scale = width**-0.5
    cu_q, cu_k = bounds(q_lens, bench.device), bounds(kv_lens, bench.device)
    case = f"{sequences} x {new} of {total}, {heads} heads"
    pairs = sequences * heads * (new * (total - new) + new * (new + 1) / 2)
    moved = float(2 * (q.nbytes + k.nbytes + v.nbytes))
    last = slice(-total, None)
    grad = bench.normal(sequences * new, heads, value)
    leaves = [part.float().requires_grad_() for part in (q[-new:, :2], k[last, :2], v[last, :2])]
    expected = reference.attend_expanded(leaves[0], leaves[1], leaves[2], (new,), (total,), scale)
    (expected * grad[-new:, :2].float()).sum().backward()

    peer = select("attend_expanded", "torch", bench.device.type)
    peer_us: list[float] = []

    def run_peer() -> None:
        # Only equal lengths take the library's fused kernel.
        if new == total and bench.device.type == "cuda":

            def call() -> Tensor:
                return peer(q, k, v, q_lens, kv_lens, scale)

            call()
            torch.cuda.synchronize()
            began = time.perf_counter()
            for _ in range(10):
                call()
            torch.cuda.synchronize()
            peer_us.append((time.perf_counter() - began) * 1e5)

    def run_forward(tiles: mla_prefill.PrefillTiles, variant: str) -> None:
        def call() -> tuple[Tensor, Tensor]:
            return mla_prefill.attend_ragged(q, k, v, cu_q, cu_k, new, scale, tiles)

        error = relative(call()[0][-new:, :2], expected.detach())
        bench.record(
            "mla_prefill", case, variant, [call], moved, 2 * pairs * (width + value), error,
            "torch varlen", peer_us[0] if peer_us else None,
        )  # fmt: skip

    def run_backward(
        tiles: tuple[mla_prefill.PrefillTiles, mla_prefill.PrefillTiles], variant: str
    ) -> None:
        out, lse = mla_prefill.attend_ragged(q, k, v, cu_q, cu_k, new, scale)

        def call() -> tuple[Tensor, ...]:
            return mla_prefill_grad.attend_ragged_backward(
                grad, q, k, v, out, lse, cu_q, cu_k, new, total, scale, tiles
            )

        own = [part[-leaf.shape[0] :, :2] for part, leaf in zip(call(), leaves, strict=True)]
        error = max(relative(x, leaf.grad) for x, leaf in zip(own, leaves, strict=True))  # type: ignore[arg-type]
        bench.record(
            "mla_prefill_grad", case, variant, [call], 2 * moved,
            2 * pairs * (3 * width + 2 * value), error,
        )  # fmt: skip

    bench.attempt("mla_prefill", case, "torch", run_peer)
    cuts = [(128, 64, 8, 2), (128, 64, 4, 3), (64, 64, 4, 3), (64, 64, 4, 2), (128, 32, 8, 3),
            (128, 128, 8, 2)]  # fmt: skip
    forward = [mla_prefill.FORWARD, *(mla_prefill.PrefillTiles(*cut) for cut in cuts)]
    for tiles in bench.others(forward) if with_forward else ():
        name = describe(tiles)
        bench.attempt("mla_prefill", case, name, partial(run_forward, tiles, name))
    keys, queries = mla_prefill_grad.BACKWARD_KEYS, mla_prefill_grad.BACKWARD_QUERIES
    make = mla_prefill.PrefillTiles
    backward = [
        (keys, queries),
        *((make(*cut), queries) for cut in BACKWARD_KEYS_CUTS),
        *((keys, make(*cut)) for cut in BACKWARD_QUERIES_CUTS),
    ]
    for pair in bench.others(backward):
        name = " / ".join(describe(tiles) for tiles in pair)
        bench.attempt("mla_prefill_grad", case, name, partial(run_backward, pair, name))
