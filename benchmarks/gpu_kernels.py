"""Every GPU kernel against the reference, its time, and its share of what the device can do.

    PYTHONPATH=src python benchmarks/gpu_kernels.py --csv gpu_kernels.csv          # three minutes
    PYTHONPATH=src python benchmarks/gpu_kernels.py --tune --csv gpu_tiles.csv     # other tiles too

The roofs are measured first in the same run: a copy of 2 GiB and a bf16 product of side 8192. Times
are those of one call inside a CUDA graph of many, over as many sets of inputs as it takes that none
is still in the L2 cache. A kernel that fails prints its traceback and the rest goes on; the exit
status tells. Without a GPU, ``--tiny`` runs it all in Triton's interpreter, to try the script.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if DEVICE.type == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")

import triton  # noqa: E402

from dsv2.kernels import reference  # noqa: E402
from dsv2.kernels.ops import ExpertWeights  # noqa: E402
from dsv2.kernels.registry import select  # noqa: E402
from dsv2.kernels.triton import grouped_gemm, mla_decode, mla_prefill  # noqa: E402
from dsv2.kernels.triton.expert_order import order_by_expert  # noqa: E402
from dsv2.kernels.triton.launch import bounds  # noqa: E402
from dsv2.shapes import BLOCK_SIZE  # noqa: E402

DTYPE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float16
L2_BYTES = 256 << 20
TOLERANCE = 2e-2
PEER_US = {(16, 1, 8192): 32, (16, 64, 1024): 39, (16, 128, 4096): 158, (16, 16, 65536): 299,
           (128, 64, 4096): 141}  # fmt: skip
"""FlashInfer 0.5.3, fa3, on one H200: heads, sequences, cached tokens."""


@dataclass(frozen=True)
class Result:
    """A line of the output; ``fraction`` is of the nearer of the two roofs."""

    kernel: str
    case: str
    variant: str
    microseconds: float = 0.0
    gigabytes_s: float = 0.0
    teraflops: float = 0.0
    fraction: float = 0.0
    error: float | None = None
    peer: str = ""
    peer_us: float | None = None
    failure: str = ""


@dataclass
class Bench:
    """The roofs and what was measured under them."""

    tiny: bool
    tune: bool
    bytes_s: float = 1e12
    flops_s: float = 1e12

    def __post_init__(self) -> None:
        self.results: list[Result] = []

    def seconds(self, calls: Sequence[Callable[[], object]], budget: float = 0.1) -> float:
        """Mean time of one of ``calls``, which take turns; the median of five rounds."""
        for call in calls[:2]:
            call()
        if DEVICE.type == "cpu":
            began = time.perf_counter()
            calls[0]()
            return time.perf_counter() - began
        torch.cuda.synchronize()
        began = time.perf_counter()
        calls[0]()
        torch.cuda.synchronize()
        once = max(time.perf_counter() - began, 1e-5)
        repeats = max(1, min(20, int(budget / 5 / once / len(calls))))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(repeats):
                for call in calls:
                    call()
        graph.replay()
        rounds = []
        for _ in range(5):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            torch.cuda.synchronize()
            rounds.append(start.elapsed_time(end) / 1e3 / repeats / len(calls))
        return sorted(rounds)[2]

    def measure_roofs(self) -> None:
        big, side = (1 << 16, 256) if self.tiny else (1 << 30, 8192)
        source = torch.empty(big, dtype=torch.int16, device=DEVICE)
        target = torch.empty_like(source)
        self.bytes_s = 2 * source.nbytes / self.seconds([lambda: target.copy_(source)])
        a = torch.randn(side, side, device=DEVICE).to(DTYPE)
        self.flops_s = 2 * side**3 / self.seconds([lambda: a @ a], budget=0.3)
        print(
            f"roofs: copy {self.bytes_s / 1e12:.2f} TB/s, product {self.flops_s / 1e12:.0f} TFLOP/s"
        )

    def record(
        self, kernel: str, case: str, variant: str, calls: Sequence[Callable[[], object]],
        moved: float, flops: float, error: float | None = None, peer: str = "",
        peer_us: float | None = None,
    ) -> float:  # fmt: skip
        """Time ``calls`` and print the line; the seconds."""
        took = self.seconds(calls)
        nearest = max(moved / self.bytes_s, flops / self.flops_s) / took
        self.add(Result(
            kernel, case, variant, took * 1e6, moved / took / 1e9, flops / took / 1e12, nearest,
            error, peer, peer_us,
        ))  # fmt: skip
        return took

    def add(self, result: Result) -> None:
        self.results.append(result)
        if result.failure:
            print(f"{result.kernel:<18} {result.case:<26} {result.variant:<34} {result.failure}")
            return
        error = "" if result.error is None else f" error {result.error:.1e}"
        wrong = "" if result.error is None or result.error < TOLERANCE else " WRONG"
        peer = f" {result.peer} {result.peer_us:.1f} us" if result.peer_us else ""
        print(
            f"{result.kernel:<18} {result.case:<26} {result.variant:<34} "
            f"{result.microseconds:9.1f} us {result.gigabytes_s:7.0f} GB/s "
            f"{result.teraflops:6.1f} TFLOP/s {result.fraction:6.1%} of the roof"
            f"{error}{wrong}{peer}",
            flush=True,
        )

    def attempt(self, kernel: str, case: str, variant: str, run: Callable[[], object]) -> None:
        """Run, or print the traceback and go on."""
        try:
            run()
        except Exception as failure:
            traceback.print_exc()
            text = f"{type(failure).__name__}: {failure}".splitlines()[0][:200]
            self.add(Result(kernel, case, variant, failure=text))
        if DEVICE.type == "cuda":
            torch.cuda.empty_cache()

    def others(self, tiles: Sequence[object]) -> Sequence[object]:
        """The default tiles, and the rest where tiles are to be tuned."""
        return tiles if self.tune else tiles[:1]


def relative(ours: Tensor, expected: Tensor) -> float:
    expected = expected.float()
    return float((ours.float() - expected).abs().max() / expected.abs().max())


def describe(tiles: object) -> str:
    return " ".join(str(value) for value in asdict(tiles).values())  # type: ignore[call-overload]


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, device=DEVICE).to(DTYPE)


# --- decode ------------------------------------------------------------------------------------


def decode_variants(heads: int) -> list[mla_decode.DecodeTiles]:
    default = mla_decode.decode_tiles(heads, DTYPE)
    if heads > 16:
        cuts = [(64, 64, 8, 2), (64, 32, 8, 3), (64, 32, 8, 2), (64, 64, 8, 1), (64, 32, 8, 4)]
        others = [mla_decode.DecodeTiles(*cut) for cut in cuts]
        others += [
            mla_decode.DecodeTiles(*cut, transposed=True)
            for cut in ((64, 64, 8, 2), (64, 64, 8, 1), (64, 32, 8, 3), (32, 64, 4, 2))
        ]
    else:
        cuts = [(64, 4, 2), (64, 4, 3), (64, 8, 2), (64, 8, 3), (32, 4, 3), (32, 4, 4), (32, 4, 5),
                (32, 8, 3)]  # fmt: skip
        others = [mla_decode.DecodeTiles(16, *cut) for cut in cuts]
        others += [
            mla_decode.DecodeTiles(16, *cut, transposed=True)
            for cut in ((64, 4, 2), (64, 8, 2), (32, 4, 3), (32, 4, 4))
        ]
    more = [replace(tiles, waves=waves) for waves, tiles in product((1, 2), others)]
    return [default, *(tiles for tiles in more if tiles != default)]


def bench_decode(bench: Bench, heads: int, sequences: int, cached: int) -> None:
    latent, rope = (64, 16) if bench.tiny else (512, 64)
    width = latent + rope
    blocks = -(-cached // BLOCK_SIZE)
    bytes_read = sequences * cached * width * 2
    sets = 1 if bench.tiny else max(1, min(16, -(-L2_BYTES // bytes_read)))
    cache = normal(sets * sequences * blocks, BLOCK_SIZE, width)
    order = torch.randperm(cache.shape[0], device=DEVICE).to(torch.int32)
    tables = order.view(sets, sequences, blocks)
    kv_len = torch.full((sequences,), cached, dtype=torch.int32, device=DEVICE)
    q_latent, q_rope = normal(sequences, heads, latent), normal(sequences, heads, rope)
    cu_q = bounds((1,) * sequences, DEVICE)
    scale = (128 + rope) ** -0.5
    rows = [0, sequences - 1] if sequences > 1 else [0]
    expected = reference.attend_absorbed(
        q_latent[rows].float(), q_rope[rows].float(), cache, tables[0, rows], kv_len[rows],
        (1,) * len(rows), scale,
    )  # fmt: skip
    case = f"{heads} x {sequences} x {cached}"
    moved = bytes_read + 2 * sequences * heads * (width + latent)
    flops = 2.0 * heads * sequences * cached * (width + latent)

    def run(tiles: mla_decode.DecodeTiles, deterministic: bool, variant: str) -> None:
        def call(table: Tensor) -> Tensor:
            return mla_decode.decode_latent(
                q_latent, q_rope, cache, table, kv_len, cu_q, 1, scale,
                deterministic=deterministic, tiles=tiles,
            )  # fmt: skip

        error = relative(call(tables[0])[rows], expected)
        calls = [lambda table=table: call(table) for table in tables]
        peer = PEER_US.get((heads, sequences, cached))
        bench.record(
            "mla_decode", case, variant, calls, moved, flops, error, "FlashInfer fa3", peer
        )

    default, *others = decode_variants(heads)
    for deterministic in (False, True):
        variant = "deterministic" if deterministic else "default"
        bench.attempt(
            "mla_decode", case, variant, lambda d=deterministic, v=variant: run(default, d, v)
        )
    for tiles in bench.others([default, *others])[1:]:
        name = describe(tiles)
        bench.attempt("mla_decode", case, name, lambda t=tiles, n=name: run(t, False, n))


# --- prefill -----------------------------------------------------------------------------------


def bench_prefill(bench: Bench, sequences: int, new: int, total: int, heads: int) -> None:
    width, value = (48, 16) if bench.tiny else (192, 128)
    q_lens, kv_lens = (new,) * sequences, (total,) * sequences
    q, k = normal(sequences * new, heads, width), normal(sequences * total, heads, width)
    v = normal(sequences * total, heads, value)
    scale = width**-0.5
    cu_q, cu_k = bounds(q_lens, DEVICE), bounds(kv_lens, DEVICE)
    case = f"{sequences} x {new} of {total}, {heads} heads"
    pairs = sequences * heads * (new * (total - new) + new * (new + 1) / 2)
    moved = float(2 * (q.nbytes + k.nbytes + v.nbytes))
    last = slice(-total, None)
    grad = normal(sequences * new, heads, value)
    leaves = [part.float().requires_grad_() for part in (q[-new:, :2], k[last, :2], v[last, :2])]
    expected = reference.attend_expanded(*leaves, (new,), (total,), scale)
    (expected * grad[-new:, :2].float()).sum().backward()

    peer = select("attend_expanded", "torch", DEVICE.type)
    peer_us: list[float] = []

    def run_peer() -> None:
        # Only equal lengths take the library's fused kernel.
        if new == total and DEVICE.type == "cuda":

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
            return mla_prefill.attend_ragged_backward(
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
    for tiles in bench.others(forward):
        name = describe(tiles)
        bench.attempt("mla_prefill", case, name, lambda t=tiles, n=name: run_forward(t, n))
    keys, queries = mla_prefill.BACKWARD_KEYS, mla_prefill.BACKWARD_QUERIES
    make = mla_prefill.PrefillTiles
    backward = [
        (keys, queries),
        *((make(*cut), queries) for cut in ((64, 64, 4, 2), (32, 64, 4, 2), (64, 128, 8, 2))),
        *((keys, make(*cut)) for cut in ((128, 64, 8, 2), (64, 64, 4, 2), (64, 64, 4, 3))),
    ]
    for pair in bench.others(backward):
        name = " / ".join(describe(tiles) for tiles in pair)
        bench.attempt("mla_prefill_grad", case, name, lambda t=pair, n=name: run_backward(t, n))


# --- experts -----------------------------------------------------------------------------------

TILE_CUTS: dict[int, tuple[list[tuple[int, ...]], list[tuple[int, ...]]]] = {
    16: ([(16, 32, 128, 4, 4), (16, 64, 128, 4, 4), (16, 64, 256, 4, 3), (16, 128, 128, 4, 3),
          (16, 64, 64, 4, 6)],
         [(16, 32, 128, 4, 5), (16, 64, 128, 4, 5), (16, 64, 256, 4, 3), (16, 128, 128, 4, 4)]),
    32: ([(32, 64, 128, 4, 4), (32, 64, 64, 4, 5), (32, 128, 64, 4, 4), (32, 128, 128, 8, 3)],
         [(32, 64, 128, 4, 5), (32, 128, 64, 4, 5), (32, 128, 128, 4, 4)]),
    64: ([(64, 64, 128, 4, 3), (64, 128, 64, 4, 4), (64, 128, 64, 8, 4)],
         [(64, 128, 128, 4, 3), (64, 256, 64, 4, 4), (64, 256, 64, 8, 4)]),
    128: ([(128, 128, 64, 8, 4), (128, 64, 64, 4, 4), (128, 64, 128, 8, 3),
           (128, 128, 64, 8, 3, 16), (128, 128, 64, 8, 3, 4)],
          [(128, 256, 64, 8, 4), (128, 128, 64, 8, 4), (128, 128, 64, 4, 4), (256, 128, 64, 8, 3),
           (128, 256, 64, 8, 3, 16), (128, 256, 64, 8, 3, 4)]),
}  # fmt: skip
"""Other tiles to try: rows, columns, depth, warps, stages and perhaps the group."""


def bench_experts(bench: Bench, tokens: int, weights_of: ExpertWeights, repeats: int) -> None:
    experts, inner, width = weights_of.w_gate.shape
    # Few tokens leave most experts out: the choices take turns, or these would stay in the cache.
    sets = 1 if bench.tiny or tokens >= 64 else 8
    generator = torch.Generator().manual_seed(tokens)
    scores = torch.rand(sets, tokens, experts, generator=generator).to(DEVICE)
    choices = list(scores.topk(repeats).indices)
    ids = choices[0]
    mix = torch.rand(tokens, repeats, device=DEVICE)
    x = normal(tokens, width)
    case = f"{tokens} tokens"
    used = sum(int(own.unique().numel()) for own in choices) / sets
    rows = tokens * repeats
    each = inner * width * 2
    flops = 2.0 * rows * inner * width
    rows_checked = slice(0, 16)
    expected = reference.experts(
        x[rows_checked].float(), ids[rows_checked], mix[rows_checked],
        ExpertWeights(*(part.float() for part in vars(weights_of).values())),
    )  # fmt: skip
    peer = select("experts", "torch", DEVICE.type)
    peer_us: list[float] = []

    def run_peer() -> None:
        if DEVICE.type == "cuda":
            peer(x, ids, mix, weights_of)
            torch.cuda.synchronize()
            began = time.perf_counter()
            for place in range(16):
                peer(x, choices[place % sets], mix, weights_of)
            torch.cuda.synchronize()
            peer_us.append((time.perf_counter() - began) * 1e6 / 16)

    def run(call: Callable[[Tensor], Tensor], variant: str) -> None:
        error = relative(call(ids)[rows_checked], expected)
        calls = [lambda own=own: call(own) for own in choices]
        bench.record(
            "experts", case, variant, calls, used * 3 * each + 4 * x.nbytes, 3 * flops, error,
            "torch grouped_mm", peer_us[0] if peer_us else None,
        )  # fmt: skip

    bench.attempt("experts", case, "torch", run_peer)
    for deterministic in (False, True):
        variant = "deterministic" if deterministic else "default"
        bench.attempt(
            "experts", case, variant,
            lambda d=deterministic, v=variant: run(
                lambda own: grouped_gemm.run_experts(x, own, mix, weights_of, deterministic=d), v
            ),
        )  # fmt: skip
    if rows <= grouped_gemm.VECTOR_ROWS:
        cuts = [(2, 2, 4), (8, 4, 4), (4, 2, 4), (8, 8, 8), (2, 2, 2)]
        for cut in cuts if bench.tune else []:
            tiles = grouped_gemm.VectorTiles(*cut)
            name = f"vector {describe(tiles)}"
            bench.attempt(
                "experts", case, name,
                lambda t=tiles, n=name: run(
                    lambda own: grouped_gemm.experts_vector(x, own, mix, weights_of, t), n
                ),
            )  # fmt: skip
    bench_products(bench, case, x, choices, mix, weights_of, used)


def bench_products(
    bench: Bench, case: str, x: Tensor, choices: list[Tensor], mix: Tensor,
    weights_of: ExpertWeights, used: float,
) -> None:  # fmt: skip
    """The steps of the grouped path one by one, and other tiles for its two products."""
    experts, inner, width = weights_of.w_gate.shape
    rows, each = mix.numel(), inner * width * 2
    flops = 2.0 * rows * inner * width
    size = grouped_gemm.expert_tiles(rows, experts, DTYPE).gate_up.rows
    default = grouped_gemm.TILES[size]
    moved_rows = 2 * rows * (width + inner)

    gated = normal(rows, inner)

    def calls(name: str, tiles: grouped_gemm.GroupedTiles) -> list[Callable[[], Tensor]]:
        orders = [order_by_expert(ids, experts, tiles.rows) for ids in choices]
        if name == "down":
            return [
                lambda o=o: grouped_gemm.grouped_product(gated, weights_of.w_down, o, tiles)
                for o in orders
            ]
        return [
            lambda o=o: grouped_gemm.grouped_product(
                x, weights_of.w_up, o, tiles, gate=weights_of.w_gate, repeats=mix.shape[1]
            )
            for o in orders
        ]

    def steps() -> None:
        order = order_by_expert(choices[0], experts, size)
        results = normal(rows, width)
        bench.record(
            "experts: order", case, str(size), [lambda: order_by_expert(choices[0], experts, size)],
            16.0 * rows, 0,
        )  # fmt: skip
        bench.record(
            "experts: combine", case, "", [lambda: grouped_gemm.combine_rows(results, mix, order)],
            2.0 * (rows + mix.shape[0]) * width, 0,
        )  # fmt: skip

    def one(name: str, tiles: grouped_gemm.GroupedTiles) -> None:
        share = 2 if name == "gate_up" else 1
        bench.record(
            f"experts: {name}", case, describe(tiles), calls(name, tiles),
            used * share * each + moved_rows, share * flops,
        )  # fmt: skip

    bench.attempt("experts: steps", case, "", steps)
    for name, own, cuts in zip(
        ("gate_up", "down"), vars(default).values(), TILE_CUTS[size], strict=True
    ):
        for tiles in bench.others([own, *(grouped_gemm.GroupedTiles(*cut) for cut in cuts)]):
            bench.attempt(
                f"experts: {name}", case, describe(tiles), lambda n=name, t=tiles: one(n, t)
            )


# -----------------------------------------------------------------------------------------------


def benches(bench: Bench) -> Iterator[tuple[str, Callable[[], None]]]:
    """Names, and what runs under them."""
    decode = [(4, 2, 100)] if bench.tiny else list(PEER_US)
    for shape in decode:
        yield "decode", lambda s=shape: bench_decode(bench, *s)
    prefill = [(2, 40, 40, 2)] if bench.tiny else [(8, 2048, 2048, 16), (1, 2048, 16384, 16)]
    for shape in prefill:
        yield "prefill", lambda s=shape: bench_prefill(bench, *s)
    experts, width, inner, repeats = (4, 64, 32, 2) if bench.tiny else (64, 2048, 1408, 6)

    def all_experts() -> None:
        own = ExpertWeights(*(
            normal(*shape) / shape[-1] ** 0.5
            for shape in ((experts, inner, width), (experts, inner, width), (experts, width, inner))
        ))  # fmt: skip
        for tokens in (1, 40) if bench.tiny else (1, 16, 64, 256, 8192):
            bench.attempt(
                "experts",
                f"{tokens} tokens",
                "",
                lambda t=tokens: bench_experts(bench, t, own, repeats),
            )

    yield "experts", all_experts


def write_csv(path: Path, bench: Bench) -> None:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "interpreter"
    about = {
        "device": name, "torch": torch.__version__, "triton": triton.__version__,
        "commit": commit.stdout.strip(), "date": time.strftime("%Y-%m-%d"),
        "roof_gigabytes_s": round(bench.bytes_s / 1e9),
        "roof_teraflops": round(bench.flops_s / 1e12, 1),
    }  # fmt: skip
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Result)] + list(about))
        writer.writeheader()
        writer.writerows(asdict(result) | about for result in bench.results)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--csv", type=Path, help="write the results there")
    parser.add_argument("--tune", action="store_true", help="time other tiles as well")
    parser.add_argument("--only", nargs="+", help="decode, prefill, experts")
    parser.add_argument("--tiny", action="store_true", help="shapes for Triton's interpreter")
    chosen = parser.parse_args(arguments)
    if DEVICE.type == "cpu" and not chosen.tiny:
        parser.error("there is no GPU; --tiny tries the script in Triton's interpreter")
    bench = Bench(chosen.tiny, chosen.tune)
    began = time.perf_counter()
    bench.measure_roofs()
    try:
        for name, run in benches(bench):
            if not chosen.only or name in chosen.only:
                bench.attempt(name, "", "", run)
                print(f"[{time.perf_counter() - began:.0f} s]", flush=True)
    finally:
        if chosen.csv:
            write_csv(chosen.csv, bench)
    failed = [one for one in bench.results if one.failure or (one.error or 0) > TOLERANCE]
    for one in failed:
        print("FAILED", one.kernel, one.case, one.variant, one.failure or f"error {one.error:.1e}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
