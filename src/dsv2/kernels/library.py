"""The backend ``torch``: the ops on PyTorch's own fused attention and grouped matmul.

It trains: every op here has a gradient, and the expert path has no Python loop over experts. The
permutation by expert and its inverse are gathers in both directions, so the combine and its
gradient are deterministic, which a scatter-add is not.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.adamw import adamw as torch_adamw

from dsv2.kernels import reference
from dsv2.kernels.composites import compose_attention, compose_moe
from dsv2.kernels.ops import (
    AdamWFactors,
    AttentionShape,
    AttentionWeights,
    ExpertWeights,
    MlpWeights,
)
from dsv2.kernels.registry import implements
from dsv2.ragged import RaggedBatch
from dsv2.shapes import BLOCK_SIZE, check

_DEVICES = ("cpu", "cuda")
_CHUNK = 8192
"""Rows whose logits are alive at once in the loss: 8192 rows of 102,400 fp32 are 3.4 GB."""
_ALIGNMENT = 16
"""Bytes to which grouped_mm wants the rows of its operands aligned."""

implements("rope", "torch", _DEVICES)(reference.rope)
implements("write_latent", "torch", _DEVICES)(reference.write_latent)
implements("mlp", "torch", _DEVICES)(reference.mlp)


@implements("rms_norm", "torch", _DEVICES)
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The library's norm in fp32, cast before the weight as the reference does."""
    if x.dtype == torch.float32:
        return F.rms_norm(x, weight.shape, weight, eps)
    return F.rms_norm(x.float(), weight.shape, None, eps).to(x.dtype) * weight


@implements("attend_expanded", "torch", _DEVICES)
def attend_expanded(
    q: Tensor, k: Tensor, v: Tensor, q_lens: tuple[int, ...], kv_lens: tuple[int, ...], scale: float
) -> Tensor:
    """Fused attention: variable-length on the GPU in half precision, else per sequence.

    The library's fused kernels want one head width, so values are padded to the queries'; without
    that it would build the whole matrix of scores, five times slower at 2048 tokens on a CPU.
    """
    check((q, "T H A"), (k, "S H A"), (v, "S H V"))
    width = v.shape[-1]
    if max(q_lens, default=0) > 1 and width < q.shape[-1]:
        v = F.pad(v, (0, q.shape[-1] - width))
    if q.is_cuda and q.dtype in (torch.bfloat16, torch.float16) and q_lens == kv_lens:
        return _attend_varlen(q, k, v, q_lens, scale)[..., :width]
    outputs = []
    for q_seq, k_seq, v_seq in zip(
        q.split(q_lens), k.split(kv_lens), v.split(kv_lens), strict=True
    ):
        heads = (part.transpose(0, 1).unsqueeze(0) for part in (q_seq, k_seq, v_seq))
        query, key, value = heads  # 1 H T A
        new, total = q_seq.shape[0], k_seq.shape[0]
        mask = None
        if 1 < new < total:
            mask = torch.ones(new, total, dtype=torch.bool, device=q.device).tril(total - new)
        out = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=1 < new == total, scale=scale
        )
        outputs.append(out.squeeze(0).transpose(0, 1))
    return torch.cat(outputs)[..., :width]  # T H V


def _attend_varlen(
    q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...], scale: float
) -> Tensor:
    """Flash attention over packed sequences; q, k and v ``[T, H, A]`` of one width."""
    from torch.nn.attention.varlen import varlen_attn

    bounds = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    bounds = bounds.pin_memory().to(q.device, non_blocking=True)
    longest = max(lengths)
    options: dict[str, Any] = {"scale": scale, "window_size": (-1, 0)}
    out = varlen_attn(q, k, v, bounds, bounds, longest, longest, **options)
    assert isinstance(out, Tensor)
    return out


@implements("attend_absorbed", "torch", _DEVICES)
def attend_absorbed(
    q_latent: Tensor, q_rope: Tensor, cache: Tensor, block_table: Tensor, kv_len: Tensor,
    q_lens: tuple[int, ...], scale: float,
) -> Tensor:  # fmt: skip
    """All decoding sequences at once over a gathered, masked view of their blocks."""
    if any(length != 1 for length in q_lens):
        return reference.attend_absorbed(
            q_latent, q_rope, cache, block_table, kv_len, q_lens, scale
        )
    check((q_latent, "B H C"), (q_rope, "B H R"), (block_table, "B M"), (kv_len, "B"))
    used = -(-int(kv_len.max()) // BLOCK_SIZE)
    query = torch.cat((q_latent, q_rope), -1)  # B H C+R
    latent = cache[block_table[:, :used].long()].flatten(1, 2).to(query.dtype)  # B S C+R
    scores = torch.einsum("bhw,bsw->bhs", query, latent).float() * scale
    places = torch.arange(latent.shape[1], device=query.device)
    hidden = (places >= kv_len.unsqueeze(1)).unsqueeze(1)  # B 1 S
    # Slots past the end hold what an earlier owner left, NaN included: a weight of zero would
    # carry that on, so the values there are cleared as well.
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1).to(latent.dtype)
    values = latent[..., : q_latent.shape[-1]].masked_fill(hidden.transpose(1, 2), 0)
    return torch.einsum("bhs,bsc->bhc", weights, values)  # B H C


class _Permute(torch.autograd.Function):
    """Rows of ``x`` ``[T, D]`` repeated K times and put in expert order ``[TK, D]``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor, repeats: int) -> Tensor:
        ctx.save_for_backward(inverse)
        ctx.repeats = repeats
        return x[order // repeats]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (inverse,) = ctx.saved_tensors
        unsorted = grads[0][inverse].unflatten(0, (-1, ctx.repeats))  # T K D
        return unsorted.float().sum(1).to(grads[0].dtype), None, None, None


class _Unpermute(torch.autograd.Function):
    """Rows in expert order back in token order; the gradient is the permutation itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(order)
        return x[inverse]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (order,) = ctx.saved_tensors
        return grads[0][order], None, None


def _grouped(x: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    """``x`` ``[TK, D]`` in expert order times its expert's ``weights`` ``[E, F, D]``."""
    return F.grouped_mm(x, weights.transpose(1, 2), offs=ends)


@implements("experts", "torch", _DEVICES)
def experts(x: Tensor, ids: Tensor, weights: Tensor, experts: ExpertWeights) -> Tensor:
    """Sort rows by expert, three grouped matmuls, unpermute, then a sum over K.

    Widths whose rows are not aligned to 16 bytes, which no published model has, take the loop.
    """
    check((x, "T D"), (ids, "T K"), (weights, "T K"), (experts.w_gate, "E F D"))
    count, width = experts.w_gate.shape[:2]
    if x.shape[0] == 0 or any(size * x.element_size() % _ALIGNMENT for size in (width, x.shape[1])):
        return reference.experts(x, ids, weights, experts)
    flat = ids.reshape(-1).long()
    order = flat.argsort(stable=True)
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(order.shape[0], device=order.device)
    ends = torch.bincount(flat, minlength=count).cumsum(0).to(torch.int32)  # E
    rows = _Permute.apply(x, order, inverse, ids.shape[1])
    gated = F.silu(_grouped(rows, experts.w_gate, ends)) * _grouped(rows, experts.w_up, ends)
    results = _Unpermute.apply(_grouped(gated, experts.w_down, ends), order, inverse)
    mixed = results.unflatten(0, ids.shape).float() * weights.unsqueeze(-1)  # T K D
    return mixed.sum(1).to(x.dtype)


@implements("attention_block", "torch", _DEVICES)
def attention_block(
    x: Tensor, weights: AttentionWeights, shape: AttentionShape, cos: Tensor, sin: Tensor,
    batch: RaggedBatch, cache: Tensor | None,
) -> Tensor:  # fmt: skip
    """:func:`compose_attention` from this backend's ops."""
    return compose_attention(x, weights, shape, cos, sin, batch, cache, "torch")


@implements("moe_block", "torch", _DEVICES)
def moe_block(
    x: Tensor, ids: Tensor, weights: Tensor, experts: ExpertWeights, shared: MlpWeights | None
) -> Tensor:
    """:func:`compose_moe` from this backend's ops."""
    return compose_moe(x, ids, weights, experts, shared, "torch")


class _LinearCrossEntropy(torch.autograd.Function):
    """Loss and gradients chunk by chunk, so that ``[T, vocab]`` logits never exist at once."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor
    ) -> Tensor:
        wanted = hidden.requires_grad or weight.requires_grad
        total = hidden.new_zeros((), dtype=torch.float32)
        grad_hidden = torch.empty_like(hidden) if wanted else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if wanted else None
        for start in range(0, hidden.shape[0], _CHUNK):
            rows = slice(start, start + _CHUNK)
            logits = F.linear(hidden[rows], weight).float()  # chunk vocab
            logprobs = logits.log_softmax(-1)
            chosen = targets[rows].long().unsqueeze(1)
            total -= (logprobs.gather(1, chosen).squeeze(1) * weights[rows]).sum()
            if grad_hidden is None or grad_weight is None:
                continue
            grad = logprobs.exp_()
            grad.scatter_add_(1, chosen, grad.new_full(chosen.shape, -1.0))
            grad = (grad * weights[rows].unsqueeze(1)).to(hidden.dtype)
            grad_hidden[rows] = grad @ weight
            grad_weight += (grad.T @ hidden[rows]).float()
        if grad_hidden is not None and grad_weight is not None:
            ctx.save_for_backward(grad_hidden, grad_weight.to(weight.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = grads[0]
        return (
            grad_hidden * scale.to(grad_hidden.dtype),
            grad_weight * scale.to(grad_weight.dtype),
            None,
            None,
        )


@implements("linear_cross_entropy", "torch", _DEVICES)
def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor
) -> Tensor:
    """Chunked, with the gradients computed in the forward pass."""
    check((hidden, "T D"), (weight, "W D"), (targets, "T"), (weights, "T"))
    total: Tensor = _LinearCrossEntropy.apply(hidden, weight, targets, weights)
    return total


@implements("adamw", "torch", _DEVICES)
def adamw(
    weight: Tensor, master: Tensor, gradient: Tensor, mean: Tensor, square: Tensor,
    factors: AdamWFactors, step: int, scale: Tensor,
) -> None:  # fmt: skip
    """The library's fused update."""
    before = torch.tensor(step - 1.0, device=master.device)  # the library counts it up
    torch_adamw(
        [master], [gradient.float() * scale], [mean], [square], [], [before], fused=True,
        amsgrad=False, beta1=factors.beta1, beta2=factors.beta2, lr=factors.rate,
        weight_decay=factors.decay, eps=factors.eps, maximize=False,
    )  # fmt: skip
    weight.copy_(master)
