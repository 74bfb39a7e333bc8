"""The routed experts with their gradient, in Triton (equation 20).

Rows are sorted by expert once, in the forward pass, which keeps that order and both products of the
first layer. Let a = silu(g) u of a row, w its weight and y its token's gradient. Then

    da = y W_down,  dw = da . a,  dW_down = (w a) y,  dg, du = w da through SiLU and product,
    dx = dg W_gate + du W_up summed over K,  dW_gate = dg x,  dW_up = du x,

so that results of the second product need not be kept. Everything is summed in a fixed order.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsv2.kernels import reference
from dsv2.kernels.composites import compose_moe
from dsv2.kernels.ops import ExpertWeights, MlpWeights
from dsv2.kernels.registry import implements
from dsv2.kernels.triton.expert_order import ExpertOrder, order_by_expert
from dsv2.kernels.triton.grouped_gemm import (
    combine_rows,
    expert_tiles,
    grouped_product,
    run_experts,
)
from dsv2.kernels.triton.grouped_grad import (
    ALIGNMENT,
    grouped_matrix_grad,
    grouped_rows_grad,
    matrix_grad_tiles,
    rows_grad_tiles,
)
from dsv2.kernels.triton.launch import on_device, padded
from dsv2.shapes import check


@triton.jit
def _experts_swiglu_grad(
    grad, gate, up, weights, order, gated, grad_gate, grad_up, grad_weights,
    F: tl.constexpr, F_PAD: tl.constexpr,
):  # fmt: skip
    """One row; a weight of zero takes it out."""
    place = tl.program_id(0).to(tl.int64)
    row = tl.load(order + place)
    weight = tl.load(weights + row)
    column = tl.arange(0, F_PAD)
    inside = column < F
    at = place * F + column
    g = tl.load(gate + at, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + at, mask=inside, other=0.0).to(tl.float32)
    d = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
    s = tl.sigmoid(g)
    silu = g * s
    tl.store(grad_weights + row, tl.sum(d * silu * u, 0))
    out = weight != 0
    d = tl.where(out, d * weight, 0.0)
    kind = gated.dtype.element_ty
    tl.store(gated + at, tl.where(out, silu * u * weight, 0.0).to(kind), mask=inside)
    g_gate = tl.where(out, d * u * (s + silu * (1 - s)), 0.0)
    tl.store(grad_gate + at, g_gate.to(kind), mask=inside)
    tl.store(grad_up + at, tl.where(out, d * silu, 0.0).to(kind), mask=inside)


def swiglu_rows_grad(
    grad: Tensor, gate: Tensor, up: Tensor, weights: Tensor, order: ExpertOrder
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Through the rows' weights, the product and SiLU; rows lie in the experts' order.

    Args:
        grad: ``[TK, F]`` of the second product's input, without the rows' weights; overwritten.
        gate: ``[TK, F]`` before SiLU.
        up: ``[TK, F]``.
        weights: ``[T, K]`` fp32.
        order: the rows' order.

    Returns:
        ``[TK, F]`` the weighted input of the second product, the gradients of ``gate`` and ``up``,
        and ``[T, K]`` that of the weights.
    """
    rows, width = gate.shape
    grad_gate, grad_up = torch.empty_like(gate), torch.empty_like(up)
    grad_weights = torch.empty_like(weights)
    with on_device(gate):
        _experts_swiglu_grad[(rows,)](
            grad, gate, up, weights, order.order, grad, grad_gate, grad_up, grad_weights, F=width,
            F_PAD=padded(width), num_warps=8,
        )  # fmt: skip
    return grad, grad_gate, grad_up, grad_weights


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, ids: Tensor, weights: Tensor, w_gate: Tensor, w_up: Tensor,
        w_down: Tensor,
    ) -> Tensor:  # fmt: skip
        count, inner = w_gate.shape[:2]
        tiles = expert_tiles(ids.numel(), count, x.dtype)
        order = order_by_expert(ids, count, tiles.gate_up.rows)
        keep = (x.new_empty(ids.numel(), inner), x.new_empty(ids.numel(), inner))
        gated = grouped_product(
            x, w_up, order, tiles.gate_up, gate=w_gate, repeats=ids.shape[1], keep=keep
        )
        results = grouped_product(gated, w_down, order, tiles.down)
        ctx.save_for_backward(x, weights, w_gate, w_up, w_down, *keep, *vars(order).values())
        ctx.rows = tiles.gate_up.rows
        return combine_rows(results, weights, order)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weights, w_gate, w_up, w_down, gate, up, *parts = ctx.saved_tensors
        order, count, dtype = ExpertOrder(*parts), w_gate.shape[0], x.dtype
        token = order.order.long() // weights.shape[1]
        rows, matrix = rows_grad_tiles(ctx.rows, dtype), matrix_grad_tiles(dtype)
        y = grads[0][token]  # TK D
        inner = grouped_rows_grad(y, w_down, order, rows)
        gated, g_gate, g_up, g_weights = swiglu_rows_grad(inner, gate, up, weights, order)
        grad_down = grouped_matrix_grad(y, gated, order, count, matrix)
        del y, gated
        own = x[token]  # TK D
        grad_gate = grouped_matrix_grad(g_gate, own, order, count, matrix)
        grad_up = grouped_matrix_grad(g_up, own, order, count, matrix)
        del own
        by_row = grouped_rows_grad(g_gate, w_gate, order, rows, too=(g_up, w_up))
        grad_x = combine_rows(by_row, weights, order, scaled=False)
        return grad_x, None, g_weights, grad_gate, grad_up, grad_down


@implements("experts", "triton", ("cuda",))
def experts(x: Tensor, ids: Tensor, weights: Tensor, experts: ExpertWeights) -> Tensor:
    """Grouped products, with a gradient where one is wanted; nothing is read from the device.

    Widths whose rows are not aligned, which no published model has, take the loop for gradients.
    """
    check((x, "T D"), (ids, "T K"), (weights, "T K"))
    check((experts.w_gate, "E F D"), (experts.w_up, "E F D"), (experts.w_down, "E D F"))
    parts = (experts.w_gate, experts.w_up, experts.w_down)
    if not torch.is_grad_enabled() or not any(t.requires_grad for t in (x, weights, *parts)):
        return run_experts(x, ids, weights, experts)
    widths = experts.w_gate.shape[1:]
    if not ids.numel() or any(size * x.element_size() % ALIGNMENT for size in widths):
        return reference.experts(x, ids, weights, experts)
    own = (part.contiguous() for part in parts)
    out: Tensor = _Experts.apply(x.contiguous(), ids.contiguous(), weights.contiguous(), *own)
    return out


@implements("moe_block", "triton", ("cuda",))
def moe_block(
    x: Tensor, ids: Tensor, weights: Tensor, experts: ExpertWeights, shared: MlpWeights | None
) -> Tensor:
    """:func:`compose_moe` from this backend's ops."""
    return compose_moe(x, ids, weights, experts, shared, "triton")
