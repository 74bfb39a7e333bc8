"""Routed experts of a few tokens with weights in 4 and 8 bits, in Triton.

Every choice reads its own expert, as in :mod:`dsv2.kernels.triton.vector_experts`, and codes are
multiplied as in :mod:`dsv2.kernels.triton.quant_vector`; shared experts come along as further
choices.

Bytes: 3 D F weights of 4.125 or 8.25 bits per choice.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsv2.kernels.executor import Mlp
from dsv2.kernels.formats import SCHEMES, QuantTensor, Weight
from dsv2.kernels.triton.launch import on_device, overlaps, padded, wait
from dsv2.kernels.triton.quant_vector import (
    _UNIT,
    Cut,
    _codes,
    _scaled,
    is_native,
    split_inputs,
)

CODED_TOKENS = 4
"""Up to this many tokens: few of their choices are of the same experts."""
GATE_UP, DOWN = Cut(8, 2, 16), Cut(8, 4, 32)
"""Of some 30 each that were tried on an H200, at the widths of V2-Lite and of V2."""


@triton.jit
def _gate_up(
    x, x_scales, ids, gate_codes, gate_scales, gate_rows, up_codes, up_scales, up_rows,
    s_gate_codes, s_gate_scales, s_gate_rows, s_up_codes, s_up_scales, s_up_rows, out,
    F: tl.constexpr, K: tl.constexpr, SHARED: tl.constexpr, ALL: tl.constexpr, BITS: tl.constexpr,
    COLUMNS: tl.constexpr, GROUPS: tl.constexpr, NATIVE: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """``out[t, k] = silu(w_gate x) * (w_up x)`` of one choice and a few columns of its expert.

    The last SHARED choices of every token are the shared experts, F columns each.
    """
    token = (tl.program_id(0) // (K + SHARED)).to(tl.int64)
    k = tl.program_id(0) % (K + SHARED)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    real = column < F
    if EARLY:
        wait()
    if k < K:
        expert = tl.load(ids + token * K + k).to(tl.int64)
    else:
        expert = (k - K).to(tl.int64)
        gate_codes, gate_scales, gate_rows = s_gate_codes, s_gate_scales, s_gate_rows
        up_codes, up_scales, up_rows = s_up_codes, s_up_scales, s_up_rows
    line = expert * F + column
    x += token * (ALL * _UNIT * 16 // BITS)
    x_scales += token * ALL
    gate = tl.zeros([COLUMNS], dtype=tl.float32)
    up = tl.zeros([COLUMNS], dtype=tl.float32)
    for first in range(0, ALL, GROUPS):
        one = _codes(gate_codes, line, real, first, ALL, GROUPS, ALL, NATIVE)
        two = _codes(up_codes, line, real, first, ALL, GROUPS, ALL, NATIVE)
        gate += _scaled(
            one, gate_scales, line, real, x, x_scales, first, ALL, GROUPS, BITS, ALL, NATIVE
        )
        up += _scaled(
            two, up_scales, line, real, x, x_scales, first, ALL, GROUPS, BITS, ALL, NATIVE
        )
    gate *= tl.load(gate_rows + line, mask=real, other=0.0)
    up *= tl.load(up_rows + line, mask=real, other=0.0)
    target = out + tl.program_id(0).to(tl.int64) * F + column
    tl.store(target, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), mask=real)


@triton.jit
def _down(
    gated, gated_scales, ids, weights, codes, scales, rows, s_codes, s_scales, s_rows, out,
    D: tl.constexpr, F: tl.constexpr, K: tl.constexpr, SHARED: tl.constexpr, ALL: tl.constexpr,
    BITS: tl.constexpr, COLUMNS: tl.constexpr, GROUPS: tl.constexpr, NATIVE: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """Adds a few columns of one token's result: its experts one after another, in fp32.

    A shared expert is a stretch of ALL groups in lines of SHARED times as many.
    """
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    real = column < D
    if EARLY:
        wait()
    acc = tl.zeros([COLUMNS], dtype=tl.float32)
    for k in tl.static_range(K + SHARED):
        choice = token * (K + SHARED) + k
        at = gated + choice * (2 * F)
        own = gated_scales + choice * ALL
        weight = 1.0
        if k < K:
            weight = tl.load(weights + token * K + k)
            line = tl.load(ids + token * K + k).to(tl.int64) * D + column
            part = _line(codes, scales, line, real, at, own, 0, ALL, GROUPS, BITS, ALL, NATIVE)
            part *= tl.load(rows + line, mask=real, other=0.0)
            part = tl.where(weight == 0, 0.0, part * weight)  # what is taken out may be NaN
        else:
            line = column.to(tl.int64)
            part = _line(
                s_codes, s_scales, line, real, at, own, (k - K) * ALL, ALL * SHARED,
                GROUPS, BITS, ALL, NATIVE,
            )  # fmt: skip
            part *= tl.load(s_rows + line, mask=real, other=0.0)
        acc += part
    target = out + token * D + column
    acc += tl.load(target, mask=real, other=0.0)
    tl.store(target, acc, mask=real)


@triton.jit
def _line(
    codes, scales, line, real, x, x_scales, offset, row_groups,
    GROUPS: tl.constexpr, BITS: tl.constexpr, ALL: tl.constexpr, NATIVE: tl.constexpr,
):  # fmt: skip
    """Products of ALL groups from ``offset`` on of some lines with ``x``, ``[COLUMNS]``."""
    codes += offset * _UNIT
    scales += offset
    acc = tl.zeros_like(real).to(tl.float32)
    for first in range(0, ALL, GROUPS):
        code = _codes(codes, line, real, first, row_groups, GROUPS, ALL, NATIVE)
        acc += _scaled(
            code, scales, line, real, x, x_scales, first, row_groups, GROUPS, BITS, ALL, NATIVE
        )
    return acc


def add_experts(
    into: Tensor, x: Tensor, ids: Tensor, weights: Tensor, experts: Mlp[Weight],
    shared: Mlp[Weight] | None, gate_up: Cut = GATE_UP, down: Cut = DOWN,
) -> None:  # fmt: skip
    """``into`` plus :meth:`Ops.experts` of a few tokens, and the shared experts, in four launches.

    Args:
        into: ``[T, D]`` fp32.
        x: ``[T, D]``.
        ids: ``[T, K]``.
        weights: ``[T, K]`` fp32.
        experts: coded stacks of E.
        shared: coded matrices of some experts' width, that every token takes, or None.
        gate_up: how the first product is cut.
        down: how the second is.
    """
    gate, up, last = _codes_of(experts)
    beside = experts if shared is None else shared
    s_gate, s_up, s_last = _codes_of(beside)
    (tokens, width), inner, repeats = x.shape, up.shape[-2], ids.shape[1]
    extra = 0 if shared is None else s_up.shape[-2] // inner
    pairs = tokens * (repeats + extra)
    gated = torch.empty((pairs, inner), dtype=x.dtype, device=x.device)
    bits, native = SCHEMES[up.scheme].bits, is_native(x)
    wide, narrow = up.scales.shape[-1], last.scales.shape[-1]
    halves, x_scales = split_inputs(x, up.scheme)
    with on_device(x):
        _gate_up[(pairs, -(-inner // gate_up.columns))](
            halves, x_scales, ids,
            gate.codes, gate.scales, gate.row_scales, up.codes, up.scales, up.row_scales,
            s_gate.codes, s_gate.scales, s_gate.row_scales, s_up.codes, s_up.scales,
            s_up.row_scales, gated,
            F=inner, K=repeats, SHARED=extra, ALL=wide, BITS=bits, COLUMNS=gate_up.columns,
            GROUPS=min(gate_up.groups, padded(wide)), NATIVE=native, num_warps=gate_up.warps,
            **overlaps(x),
        )  # fmt: skip
    halves, x_scales = split_inputs(gated, last.scheme)
    with on_device(x):
        _down[(tokens, -(-width // down.columns))](
            halves, x_scales, ids, weights, last.codes, last.scales, last.row_scales,
            s_last.codes, s_last.scales, s_last.row_scales, into,
            D=width, F=inner, K=repeats, SHARED=extra, ALL=narrow, BITS=bits,
            COLUMNS=down.columns, GROUPS=min(down.groups, padded(narrow)), NATIVE=native,
            num_warps=down.warps, **overlaps(x),
        )  # fmt: skip


def _codes_of(mlp: Mlp[Weight]) -> tuple[QuantTensor, QuantTensor, QuantTensor]:
    gate, up, down = mlp.w_gate, mlp.w_up, mlp.w_down
    if not (
        isinstance(gate, QuantTensor)
        and isinstance(up, QuantTensor)
        and isinstance(down, QuantTensor)
    ):
        kinds = ", ".join(type(one).__name__ for one in (gate, up, down))
        raise TypeError(f"weights of 4 or 8 bits are needed, got {kinds}")
    return gate, up, down


def common_scheme(mlp: Mlp[Weight]) -> str | None:
    """The scheme of all three matrices; None where these kernels do not know their formats."""
    parts = (mlp.w_gate, mlp.w_up, mlp.w_down)
    schemes = {one.scheme if isinstance(one, QuantTensor) else None for one in parts}
    return schemes.pop() if len(schemes) == 1 else None


def takes_shared(experts: Mlp[Weight], shared: Mlp[Weight]) -> bool:
    """Whether shared experts are whole experts of the same format, to come along."""
    scheme = common_scheme(experts)
    is_whole = shared.w_up.shape[-2] % experts.w_up.shape[-2] == 0
    return scheme is not None and scheme == common_scheme(shared) and is_whole
