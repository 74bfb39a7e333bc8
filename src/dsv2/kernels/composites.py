"""The two composites the model calls, as compositions of fine ops of the best backend there is."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dsv2.kernels import reference
from dsv2.kernels.ops import AttentionShape, AttentionWeights, ExpertWeights, MlpWeights
from dsv2.kernels.registry import implements, select
from dsv2.ragged import RaggedBatch


def compose_attention(
    x: Tensor, weights: AttentionWeights, shape: AttentionShape, cos: Tensor, sin: Tensor,
    batch: RaggedBatch, cache: Tensor | None, backend: str,
    write: Callable[[Tensor, Tensor, Tensor], None] | None = None,
) -> Tensor:  # fmt: skip
    """Multi-head latent attention (equations 9-19), see :meth:`Ops.attention_block`.

    ``write`` stands in for the backend's ``write_latent``.
    """
    device = x.device.type
    rope, norm = select("rope", backend, device), select("rms_norm", backend, device)
    if weights.wq is not None:
        q = F.linear(x, weights.wq)
    else:
        assert weights.wq_a is not None and weights.q_norm is not None and weights.wq_b is not None
        q = F.linear(norm(F.linear(x, weights.wq_a), weights.q_norm, shape.eps), weights.wq_b)
    q = q.unflatten(-1, (shape.heads, shape.nope + shape.rope))  # T H N+R
    q_nope, q_rope = q.split((shape.nope, shape.rope), -1)
    q_rope = rope(q_rope, cos, sin)  # T H R

    c_kv, k_rope = F.linear(x, weights.wkv_a).split((weights.kv_norm.shape[0], shape.rope), -1)
    c_kv = norm(c_kv, weights.kv_norm, shape.eps)  # T C
    latent = torch.cat((c_kv, rope(k_rope, cos, sin)), -1)  # T C+R
    if cache is not None:
        assert batch.slots is not None
        write = write or select("write_latent", backend, device)
        write(cache, batch.slots, latent)

    q_lens = batch.query_lengths()
    absorbed = _absorbed_sequences(shape.form, q_lens, batch, cache)
    if not any(absorbed):
        out = _expanded(q_nope, q_rope, latent, weights, shape, batch, cache, backend)
    elif all(absorbed):
        out = _absorbed(q_nope, q_rope, weights, shape, batch, cache, backend)
    else:
        out = q.new_empty(x.shape[0], shape.heads, shape.value)
        part, rows = _subset(batch, q_lens, [not flag for flag in absorbed])
        out[rows] = _expanded(
            q_nope[rows], q_rope[rows], latent[rows], weights, shape, part, cache, backend
        )
        part, rows = _subset(batch, q_lens, absorbed)
        out[rows] = _absorbed(q_nope[rows], q_rope[rows], weights, shape, part, cache, backend)
    return F.linear(out.flatten(1), weights.wo)  # T D


def _absorbed_sequences(
    form: str, q_lens: tuple[int, ...], batch: RaggedBatch, cache: Tensor | None
) -> list[bool]:
    if form == "expanded" or (form == "auto" and cache is None):
        return [False] * len(q_lens)
    if cache is None:
        raise ValueError("form 'absorbed' needs a latent cache, none was given")
    if form == "absorbed":
        return [True] * len(q_lens)
    if form != "auto":
        raise ValueError(f"form {form!r} is unknown, allowed are auto, expanded, absorbed")
    if batch.generated is not None:
        return list(batch.generated)
    lengths = batch.kv_len.tolist()
    return [new == 1 and total > 1 for new, total in zip(q_lens, lengths, strict=True)]


def _subset(
    batch: RaggedBatch, q_lens: tuple[int, ...], chosen: list[bool]
) -> tuple[RaggedBatch, Tensor]:
    """The chosen sequences as a batch of their own, and the rows ``[T']`` they come from."""
    device = batch.tokens.device
    flags = torch.tensor(chosen, device=device)
    lengths = torch.tensor(q_lens, device=device)
    rows = torch.repeat_interleave(flags, lengths).nonzero().squeeze(1)
    kept = tuple(length for length, flag in zip(q_lens, chosen, strict=True) if flag)
    bounds = torch.tensor([0, *kept], device=device).cumsum(0).to(torch.int32)
    assert batch.block_table is not None and batch.slots is not None
    part = RaggedBatch(
        tokens=batch.tokens[rows],
        positions=batch.positions[rows],
        cu_q=bounds,
        kv_len=batch.kv_len[flags],
        block_table=batch.block_table[flags],
        slots=batch.slots[rows],
        host_lengths=kept,
    )
    return part, rows


def _expanded(
    q_nope: Tensor, q_rope: Tensor, latent: Tensor, weights: AttentionWeights,
    shape: AttentionShape, batch: RaggedBatch, cache: Tensor | None, backend: str,
) -> Tensor:  # fmt: skip
    q_lens = kv_lens = batch.query_lengths()
    if cache is not None and batch.block_table is not None:
        kv_lens = tuple(batch.kv_len.tolist())
        latent = torch.cat(
            [
                reference.gather_latent(cache, blocks, length).to(q_nope.dtype)
                for blocks, length in zip(batch.block_table, kv_lens, strict=True)
            ]
        )  # S C+R
    c_kv, k_rope = latent.split((latent.shape[-1] - shape.rope, shape.rope), -1)
    kv = F.linear(c_kv, weights.wkv_b).unflatten(-1, (shape.heads, -1))  # S H N+V
    k_nope, v = kv.split((shape.nope, shape.value), -1)
    k = torch.cat((k_nope, k_rope.unsqueeze(1).expand(-1, shape.heads, -1)), -1)  # S H N+R
    q = torch.cat((q_nope, q_rope), -1)  # T H N+R
    attend = select("attend_expanded", backend, q.device.type)
    out: Tensor = attend(q, k, v, q_lens, kv_lens, shape.scale)
    return out  # T H V


def _absorbed(
    q_nope: Tensor, q_rope: Tensor, weights: AttentionWeights, shape: AttentionShape,
    batch: RaggedBatch, cache: Tensor | None, backend: str,
) -> Tensor:  # fmt: skip
    assert cache is not None and batch.block_table is not None
    wkv_b = weights.wkv_b.unflatten(0, (shape.heads, -1))  # H N+V C
    w_uk, w_uv = wkv_b.split((shape.nope, shape.value), 1)
    q_latent = torch.einsum("thn,hnc->thc", q_nope, w_uk)  # T H C
    attend = select("attend_absorbed", backend, q_nope.device.type)
    out = attend(
        q_latent, q_rope, cache, batch.block_table, batch.kv_len, batch.query_lengths(), shape.scale
    )
    return torch.einsum("thc,hvc->thv", out, w_uv)  # T H V


@implements("attention_block", "reference")
def attention_block(
    x: Tensor, weights: AttentionWeights, shape: AttentionShape, cos: Tensor, sin: Tensor,
    batch: RaggedBatch, cache: Tensor | None,
) -> Tensor:  # fmt: skip
    """:func:`compose_attention` from the reference ops."""
    return compose_attention(x, weights, shape, cos, sin, batch, cache, "reference")


def compose_moe(
    x: Tensor, ids: Tensor, weights: Tensor, experts: ExpertWeights, shared: MlpWeights | None,
    backend: str,
) -> Tensor:  # fmt: skip
    """DeepSeekMoE without the residual (equation 20)."""
    device = x.device.type
    out: Tensor = select("experts", backend, device)(x, ids, weights, experts)
    if shared is not None:
        out = out + select("mlp", backend, device)(x, shared)
    return out


@implements("moe_block", "reference")
def moe_block(
    x: Tensor, ids: Tensor, weights: Tensor, experts: ExpertWeights, shared: MlpWeights | None
) -> Tensor:
    """:func:`compose_moe` from the reference ops."""
    return compose_moe(x, ids, weights, experts, shared, "reference")
