"""The cache in 8 and 6 bits: read by decode, written and gathered: right, and how fast."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from dsv2.kernels import reference
from dsv2.kernels.latent import latent_format, pack_latent, unpack_latent
from dsv2.kernels.triton import latent_cache, mla_decode
from dsv2.kernels.triton.bench import KernelBench, relative
from dsv2.kernels.triton.launch import bounds
from dsv2.shapes import BLOCK_SIZE

FORMATS = ("fp8", "int8", "int6")


def bench_cached(bench: KernelBench, name: str) -> None:
    """A cache of that format: decode over it, and a prompt's way into it and out of it."""
    latent, rope = (64, 16) if bench.tiny else (512, 64)
    shapes = [(4, 2, 100)] if bench.tiny else [(16, 64, 1024), (16, 128, 4096), (128, 64, 4096)]
    most = max(sequences * -(-cached // BLOCK_SIZE) for _, sequences, cached in shapes)
    cache = _random_cache(bench, most, latent, rope, name)
    for heads, sequences, cached in shapes:
        case = f"{heads} x {sequences} x {cached}"
        run = partial(_decode, bench, name, cache, (heads, sequences, cached), latent, rope)
        bench.attempt(f"mla_decode_{name}", case, "", run)
    for kernel, measure, few in (("write", _write, 8), ("gather", _gather, BLOCK_SIZE)):
        tokens = few if bench.tiny else 8192
        run = partial(measure, bench, name, cache, tokens, latent, rope)
        bench.attempt(f"{kernel}_{name}", f"{tokens} tokens", "", run)


def _random_cache(bench: KernelBench, blocks: int, latent: int, rope: int, name: str) -> Tensor:
    """``[P, 64, width]``: random tokens of some blocks, over and over."""
    some = min(blocks, 64)
    packed = pack_latent(torch.randn(some * BLOCK_SIZE, latent + rope), latent, name)
    own = packed.view(some, BLOCK_SIZE, -1).to(bench.device)
    return own.repeat(-(-blocks // some), 1, 1)[:blocks].contiguous()


def _decode(
    bench: KernelBench, name: str, cache: Tensor, shape: tuple[int, int, int], latent: int,
    rope: int,
) -> None:  # fmt: skip
    """A query token of each sequence; enough cached tokens that none is still in the L2 cache."""
    heads, sequences, cached = shape
    blocks = -(-cached // BLOCK_SIZE)
    sets = max(1, cache.shape[0] // (sequences * blocks))
    order = torch.randperm(sets * sequences * blocks).to(torch.int32)
    tables = order.view(sets, sequences, blocks).to(bench.device)
    kv_len = torch.full((sequences,), cached, dtype=torch.int32, device=bench.device)
    q_latent, q_rope = bench.normal(sequences, heads, latent), bench.normal(sequences, heads, rope)
    cu_q, scale = bounds((1,) * sequences, bench.device), (128 + rope) ** -0.5
    rows = [0, sequences - 1]
    own = cache[tables[0, rows].long().flatten()].cpu().flatten(0, 1)
    plain = unpack_latent(own, latent, rope, name).view(-1, BLOCK_SIZE, latent + rope)
    expected = reference.attend_absorbed(
        q_latent[rows].float().cpu(), q_rope[rows].float().cpu(), plain,
        torch.arange(len(plain), dtype=torch.int32).view(2, -1), kv_len[rows].cpu(), (1, 1), scale,
    )  # fmt: skip
    width = latent_format(name).token_bytes(latent, rope)
    moved = sequences * cached * width + 2 * sequences * heads * (2 * latent + rope)
    flops = 2.0 * heads * sequences * cached * (2 * latent + rope)

    def call(table: Tensor, deterministic: bool) -> Tensor:
        return mla_decode.decode_latent(
            q_latent, q_rope, cache, table, kv_len, cu_q, 1, scale, cache_format=name,
            deterministic=deterministic,
        )  # fmt: skip

    for deterministic in (False, True):
        bench.record(
            f"mla_decode_{name}", f"{heads} x {sequences} x {cached}",
            "deterministic" if deterministic else "default",
            [partial(call, table, deterministic) for table in tables], moved, flops,
            relative(call(tables[0], deterministic)[rows].cpu(), expected),
        )  # fmt: skip


def _write(
    bench: KernelBench, name: str, cache: Tensor, tokens: int, latent: int, rope: int
) -> None:
    latents = bench.normal(tokens, latent + rope)
    slots = torch.randperm(cache.shape[0] * BLOCK_SIZE)[:tokens].to(torch.int32).to(bench.device)

    def call() -> None:
        latent_cache.write_latents(cache, slots, latents, latent, name)

    call()
    written = cache.flatten(0, 1)[slots.long()].cpu()
    error = relative(unpack_latent(written, latent, rope, name), _as_coded(latents, latent, name))
    moved = float(latents.nbytes + written.nbytes)
    bench.record(f"write_{name}", f"{tokens} tokens", "default", [call], moved, 0.0, error)


def _as_coded(latents: Tensor, latent: int, name: str) -> Tensor:
    """The numbers that the reference's codes stand for."""
    rope = latents.shape[1] - latent
    return unpack_latent(pack_latent(latents.cpu(), latent, name), latent, rope, name)


def _gather(
    bench: KernelBench, name: str, cache: Tensor, tokens: int, latent: int, rope: int
) -> None:
    """As a prompt's later parts read the earlier ones."""
    blocks = tokens // BLOCK_SIZE
    table = torch.randperm(cache.shape[0])[:blocks].to(torch.int32).view(1, -1).to(bench.device)
    cu_k = bounds((tokens,), bench.device)

    def call() -> Tensor:
        return latent_cache.gather_latents(
            cache, table, cu_k, tokens, tokens, latent, rope, name, bench.dtype
        )

    packed = cache[table[0].long()].cpu().flatten(0, 1)
    error = relative(call().cpu(), unpack_latent(packed, latent, rope, name))
    moved = float(packed.nbytes + call().nbytes)
    bench.record(f"gather_{name}", f"{tokens} tokens", "default", [call], moved, 0.0, error)
