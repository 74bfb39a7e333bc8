"""The kernels of experts with weights in 4 and 8 bits and in fp8: right, and how fast."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from dsv2.kernels import reference
from dsv2.kernels.executor import Mlp
from dsv2.kernels.formats import (
    FP8_BLOCK,
    BlockTensor,
    Coded,
    QuantTensor,
    Weight,
    dequantise,
    random_codes,
)
from dsv2.kernels.ops import ExpertWeights
from dsv2.kernels.triton.bench import KernelBench, relative
from dsv2.kernels.triton.quant_experts import CODED_TOKENS, add_experts, common_scheme
from dsv2.kernels.triton.quant_product import coded, run_quant_experts

FORMATS = ("int4", "int8", "fp8")


def random_experts(
    bench: KernelBench, name: str, experts: int, inner: int, width: int
) -> Mlp[Weight]:
    """Stacks of any codes and scales."""
    shapes = ((experts, inner, width), (experts, inner, width), (experts, width, inner))
    return Mlp(*(_random(bench, name, shape) for shape in shapes))


def _random(bench: KernelBench, name: str, shape: tuple[int, int, int]) -> Coded:
    device, (experts, rows, columns) = bench.device, shape
    spread = columns**-0.5
    if name == "fp8":
        blocks = (experts, -(-rows // FP8_BLOCK), -(-columns // FP8_BLOCK))
        codes = bench.normal(*shape).to(torch.float8_e4m3fn)
        return BlockTensor(codes, torch.full(blocks, spread, device=device))
    return random_codes(shape, name, torch.Generator(device).manual_seed(0))


def bench_coded(
    bench: KernelBench, name: str, tokens: int, experts: Mlp[Weight], repeats: int
) -> None:
    """All experts of so many tokens that choose ``repeats`` each, as the executor runs them.

    Args:
        bench: takes the results.
        name: of the weights' format.
        tokens: T.
        experts: coded stacks of E.
        repeats: K.
    """
    count, inner, width = experts.w_up.shape
    # Few tokens leave most experts out: the choices take turns, or these would stay in the cache.
    sets = 1 if bench.tiny or tokens >= 64 else 8
    generator = torch.Generator().manual_seed(tokens)
    scores = torch.rand(sets, tokens, count, generator=generator).to(bench.device)
    choices = [own.to(torch.int32) for own in scores.topk(repeats).indices]
    mix = torch.rand(tokens, repeats, device=bench.device)
    x = bench.normal(tokens, width)
    checked = slice(0, 4)
    ids, plain = _plain(experts, choices[0][checked])
    expected = reference.experts(x[checked].float(), ids, mix[checked], plain)
    used = sum(int(own.unique().numel()) for own in choices) / sets
    moved = used / count * sum(_bytes(coded(part)) for part in vars(experts).values())
    flops = 6.0 * tokens * repeats * inner * width
    is_few = tokens <= CODED_TOKENS and common_scheme(experts) is not None

    def run(ids: Tensor, deterministic: bool) -> Tensor:
        if deterministic or not is_few:
            return run_quant_experts(x, ids, mix, experts, deterministic=deterministic)
        into = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        add_experts(into, x, ids, mix, experts, None)
        return into

    for deterministic in (False, True):
        error = relative(run(choices[0], deterministic)[checked], expected)
        bench.record(
            f"experts_{name}", f"{tokens} tokens", "deterministic" if deterministic else "default",
            [partial(run, ids, deterministic) for ids in choices], moved + 4 * x.nbytes, flops,
            error,
        )  # fmt: skip


def _plain(experts: Mlp[Weight], ids: Tensor) -> tuple[Tensor, ExpertWeights]:
    """Choices among the experts that some choices take, and those experts' plain weights."""
    found, places = ids.unique(return_inverse=True)
    parts = (_rows(coded(part), found.long()) for part in vars(experts).values())
    return places, ExpertWeights(*parts)


def _rows(weight: Coded, which: Tensor) -> Tensor:
    if isinstance(weight, BlockTensor):
        return dequantise(BlockTensor(weight.codes[which], weight.scales[which]))
    return dequantise(
        QuantTensor(
            weight.scheme, weight.codes[which], weight.scales[which], weight.row_scales[which]
        )
    )


def _bytes(weight: Coded) -> int:
    parts = [weight.codes, weight.scales]
    if isinstance(weight, QuantTensor):
        parts.append(weight.row_scales)
    return sum(part.nbytes for part in parts)
