"""The readable version of every fine op, in plain PyTorch; shapes as in :mod:`dsv2.kernels.ops`.

These are the definitions. They loop where a loop reads best; every other backend is held to them
by ``tests/kernels``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dsv2.kernels.ops import AdamWFactors, ExpertWeights, MlpWeights
from dsv2.kernels.registry import implements
from dsv2.shapes import BLOCK_SIZE, check


@implements("rms_norm", "reference")
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm over the last axis; the cast comes before the weight, as published."""
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return normed.to(x.dtype) * weight


@implements("greedy_tokens", "reference")
def greedy_tokens(logits: Tensor) -> Tensor:
    """The first largest of each row; NaN is the extreme of every row it is in."""
    finite = logits.amin(-1).isfinite() & logits.amax(-1).isfinite()
    return logits.argmax(-1).masked_fill(~finite, -1)


@implements("rope", "reference")
def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate neighbouring pairs (x0, y0, x1, y1, ..): the published weights' layout."""
    check((cos, "T r"), (sin, "T r"))
    pairs = x.float().unflatten(-1, (-1, 2))  # T .. R/2 2
    even, odd = pairs.unbind(-1)
    between = (1,) * (even.ndim - 2)
    cos = cos.reshape(cos.shape[0], *between, cos.shape[1])
    sin = sin.reshape(cos.shape)
    rotated = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    return rotated.flatten(-2).to(x.dtype)


@implements("write_latent", "reference")
def write_latent(cache: Tensor, slots: Tensor, latent: Tensor) -> None:
    """Store the latents of the batch's tokens at their cache slots."""
    check((cache, f"P {BLOCK_SIZE} W"), (slots, "T"), (latent, "T W"))
    cache.view(-1, cache.shape[-1]).index_copy_(0, slots.long(), latent.to(cache.dtype))


def gather_latent(cache: Tensor, blocks: Tensor, length: int) -> Tensor:
    """The first ``length`` latents of one sequence, ``[S, C+R]``, from its ``blocks`` ``[M]``."""
    used = -(-length // BLOCK_SIZE)
    return cache[blocks[:used].long()].flatten(0, 1)[:length]  # S C+R


def _causal(queries: int, keys: int, device: torch.device) -> Tensor:
    """``[Q, S]``, true where a key may not be seen: the last query sees the last key."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).triu(keys - queries + 1)


@implements("attend_expanded", "reference")
def attend_expanded(
    q: Tensor, k: Tensor, v: Tensor, q_lens: tuple[int, ...], kv_lens: tuple[int, ...], scale: float
) -> Tensor:
    """Softmax attention, sequence by sequence (equation 18)."""
    check((q, "T H A"), (k, "S H A"), (v, "S H V"))
    outputs = []
    for q_seq, k_seq, v_seq in zip(
        q.split(q_lens), k.split(kv_lens), v.split(kv_lens), strict=True
    ):
        scores = torch.einsum("qha,sha->hqs", q_seq, k_seq).float() * scale
        hidden = _causal(q_seq.shape[0], k_seq.shape[0], q.device)
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1).to(v.dtype)
        outputs.append(torch.einsum("hqs,shv->qhv", weights, v_seq))
    return torch.cat(outputs)  # T H V


@implements("attend_absorbed", "reference")
def attend_absorbed(
    q_latent: Tensor, q_rope: Tensor, cache: Tensor, block_table: Tensor, kv_len: Tensor,
    q_lens: tuple[int, ...], scale: float,
) -> Tensor:  # fmt: skip
    """Softmax attention whose key is the cached latent and whose value is its first C numbers."""
    check((q_latent, "T H C"), (q_rope, "T H R"), (block_table, "B M"), (kv_len, "B"))
    width = q_latent.shape[-1]
    query = torch.cat((q_latent, q_rope), -1)  # T H C+R
    outputs = []
    for q_seq, blocks, length in zip(
        query.split(q_lens), block_table, kv_len.tolist(), strict=True
    ):
        latent = gather_latent(cache, blocks, length).to(q_seq.dtype)  # S C+R
        scores = torch.einsum("qhw,sw->hqs", q_seq, latent).float() * scale
        hidden = _causal(q_seq.shape[0], length, query.device)
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1).to(latent.dtype)
        outputs.append(torch.einsum("hqs,sc->qhc", weights, latent[:, :width]))
    return torch.cat(outputs)  # T H C


@implements("mlp", "reference")
def mlp(x: Tensor, weights: MlpWeights) -> Tensor:
    """SwiGLU feed-forward."""
    gated = F.silu(F.linear(x, weights.w_gate)) * F.linear(x, weights.w_up)  # T F
    return F.linear(gated, weights.w_down)  # T D


@implements("experts", "reference")
def experts(x: Tensor, ids: Tensor, weights: Tensor, experts: ExpertWeights) -> Tensor:
    """One expert after another; each token's K results are then summed in K's order."""
    check((x, "T D"), (ids, "T K"), (weights, "T K"))
    results = x.new_zeros(*ids.shape, x.shape[1])  # T K D
    for expert in range(experts.w_gate.shape[0]):
        rows, places = torch.where(ids == expert)
        own = MlpWeights(experts.w_gate[expert], experts.w_up[expert], experts.w_down[expert])
        results = results.index_put((rows, places), mlp(x[rows], own))
    return (results.float() * weights.unsqueeze(-1)).sum(1).to(x.dtype)


@implements("linear_cross_entropy", "reference")
def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor
) -> Tensor:
    """All logits at once."""
    check((hidden, "T D"), (weight, "W D"), (targets, "T"), (weights, "T"))
    losses = F.cross_entropy(F.linear(hidden, weight).float(), targets.long(), reduction="none")
    return (losses * weights).sum()


@implements("adamw", "reference")
def adamw(
    weight: Tensor, master: Tensor, gradient: Tensor, mean: Tensor, square: Tensor,
    factors: AdamWFactors, step: int, scale: Tensor,
) -> None:  # fmt: skip
    """Adam's moments without their bias, and weight decay beside them (Loshchilov and Hutter)."""
    scaled = gradient.float() * scale
    mean.lerp_(scaled, 1 - factors.beta1)
    square.lerp_(scaled.square(), 1 - factors.beta2)
    first = mean / (1 - factors.beta1**step)
    second = square / (1 - factors.beta2**step)
    master.mul_(1 - factors.rate * factors.decay)
    master.sub_(factors.rate * first / (second.sqrt() + factors.eps))
    weight.copy_(master)
