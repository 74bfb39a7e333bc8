"""The small kernels of a step, which read rows of activations: right, and how fast."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

from dsv2.kernels import reference
from dsv2.kernels.executor import RoutingShape
from dsv2.kernels.reference_executor import choose_experts as choose_by_reference
from dsv2.kernels.triton.bench import KernelBench, relative
from dsv2.kernels.triton.first_products import write_and_rotate
from dsv2.kernels.triton.greedy import greedy_tokens
from dsv2.kernels.triton.linear import VECTOR_TOKENS, wide_product
from dsv2.kernels.triton.norm_rows import norm_rows
from dsv2.kernels.triton.router import choose_experts
from dsv2.shapes import BLOCK_SIZE

EPS = 1e-6
LITE = RoutingShape(64, 6, 1, 1, "softmax", "none", False, 1.0)
V2 = RoutingShape(160, 6, 8, 3, "softmax", "max", False, 16.0)
V3 = RoutingShape(256, 8, 8, 4, "sigmoid", "top2_sum", True, 2.5)
"""The routers of the published models."""


def bench_rows(bench: KernelBench) -> None:
    """Every small kernel, for the tokens of one sequence's step, of a batch's and of a prompt's."""
    for tokens in (2, 8) if bench.tiny else (1, 256, 8192):
        case = f"{tokens} tokens"
        bench.attempt("norm_rows", case, "", partial(_norm, bench, tokens))
        bench.attempt("write_and_rotate", case, "", partial(_write, bench, tokens))
        for name, routing in (("V2-Lite", LITE), ("V2", V2), ("V3", V3)):
            run = partial(_route, bench, tokens, name, routing)
            bench.attempt("choose_experts", case, name, run)
    for tokens in (2,) if bench.tiny else (1, 256):
        bench.attempt("greedy_tokens", f"{tokens} rows", "", partial(_greedy, bench, tokens))
    bench.attempt("lm_head", "1 token", "", partial(_logits, bench))


def _norm(bench: KernelBench, tokens: int) -> None:
    width = 96 if bench.tiny else 2048
    x, weight = bench.normal(tokens, width), torch.rand(width, device=bench.device)

    def call() -> torch.Tensor:
        return norm_rows(x, weight, EPS, bench.dtype)

    error = relative(call(), reference.rms_norm(x.float(), weight, EPS))
    bench.record("norm_rows", f"{tokens} tokens", "default", [call], 2.0 * x.nbytes, 0.0, error)


def _write(bench: KernelBench, tokens: int) -> None:
    """V2-Lite's queries turned and its latents written; absorbed for few tokens, as a step does."""
    heads, nope, rope, latent = (2, 16, 16, 64) if bench.tiny else (16, 128, 64, 512)
    q, kv = bench.normal(tokens, heads * (nope + rope)), bench.normal(tokens, latent + rope)
    gain = torch.rand(latent, device=bench.device)
    angles = torch.rand(tokens, rope // 2, device=bench.device)
    cos, sin = angles.cos(), angles.sin()
    cache = torch.zeros(
        -(-tokens // BLOCK_SIZE), BLOCK_SIZE, latent + rope, dtype=bench.dtype, device=bench.device
    )
    slots = torch.randperm(cache.shape[0] * BLOCK_SIZE, device=bench.device)[:tokens]
    slots = slots.to(torch.int32)
    w_uk = bench.normal(heads, latent, nope) / nope**0.5 if tokens <= VECTOR_TOKENS else None

    def call() -> tuple[torch.Tensor, torch.Tensor | None]:
        return write_and_rotate(q, kv, gain, cos, sin, slots, cache, heads, nope, rope, EPS, w_uk)

    q_rope, q_latent = call()
    parts = q.float().view(tokens, heads, -1)
    errors = [relative(q_rope, reference.rope(parts[..., nope:], cos, sin))]
    c, k = kv.float().split((latent, rope), 1)
    own = torch.cat((reference.rms_norm(c, gain, EPS), reference.rope(k, cos, sin)), 1)
    errors.append(relative(cache.flatten(0, 1)[slots.long()], own))
    moved, flops = 2.0 * (q.nbytes + kv.nbytes), 0.0
    if w_uk is not None and q_latent is not None:
        absorbed = torch.einsum("thn,hcn->thc", parts[..., :nope], w_uk.float())
        errors.append(relative(q_latent, absorbed))
        moved += w_uk.nbytes + q_latent.nbytes
        flops = 2.0 * tokens * w_uk.numel()
    variant = "with W^UK absorbed" if w_uk is not None else "default"
    bench.record("write_and_rotate", f"{tokens} tokens", variant, [call], moved, flops, max(errors))


def _route(bench: KernelBench, tokens: int, name: str, routing: RoutingShape) -> None:
    logits = torch.randn(tokens, routing.num_experts, device=bench.device)
    bias = torch.randn(routing.num_experts, device=bench.device) if name == "V3" else None

    def call() -> tuple[torch.Tensor, torch.Tensor]:
        return choose_experts(logits, routing, bias)

    ids, gates = call()
    chosen, weights = choose_by_reference(logits, routing, bias)
    dense = [
        torch.zeros_like(logits).scatter_(1, where.long(), values)
        for where, values in ((ids, gates), (chosen, weights))
    ]
    moved = float(logits.nbytes + ids.nbytes + gates.nbytes)
    bench.record("choose_experts", f"{tokens} tokens", name, [call], moved, 0.0, relative(*dense))


def _greedy(bench: KernelBench, rows: int) -> None:
    logits = torch.randn(rows, 500 if bench.tiny else 102_400, device=bench.device)

    def call() -> torch.Tensor:
        return greedy_tokens(logits)

    error = float((call() != reference.greedy_tokens(logits)).any())
    moved = float(logits.nbytes)
    bench.record("greedy_tokens", f"{rows} rows", "default", [call], moved, 0.0, error)


def _logits(bench: KernelBench) -> None:
    vocabulary, width = (500, 64) if bench.tiny else (102_400, 2048)
    x, weight = bench.normal(1, width), bench.normal(vocabulary, width)

    def call() -> torch.Tensor:
        return wide_product(x, weight)

    error = relative(call(), F.linear(x.float(), weight.float()))
    moved, flops = float(weight.nbytes + 4 * vocabulary), 2.0 * weight.numel()
    bench.record("lm_head", "1 token", "default", [call], moved, flops, error)
