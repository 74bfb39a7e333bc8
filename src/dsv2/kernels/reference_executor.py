"""The readable executor: the reference ops on dequantised fp32 weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dsv2.kernels.composites import compose_attention, compose_moe
from dsv2.kernels.executor import (
    AttentionLayer,
    LayerByLayer,
    Mlp,
    MlpLayer,
    MoeLayer,
    RoutingShape,
)
from dsv2.kernels.formats import QuantTensor, dequantise, quantise
from dsv2.kernels.interleaved import StoredWeight, by_rows
from dsv2.kernels.latent import latent_format, pack_latent, unpack_latent
from dsv2.kernels.ops import AttentionWeights, ExpertWeights, MlpWeights
from dsv2.kernels.reference import mlp, rms_norm, write_latent
from dsv2.kernels.registry import implements
from dsv2.ragged import RaggedBatch


@dataclass(frozen=True)
class _Step:
    batch: RaggedBatch
    cos: Tensor
    sin: Tensor
    form: str
    cache_format: str


@dataclass(frozen=True)
class _Coded:
    """A cache of codes, beside the same in fp32 for one call."""

    packed: Tensor
    latent: int
    rope: int
    name: str

    @classmethod
    def unpack(cls, packed: Tensor, layer: AttentionLayer, name: str) -> tuple[Tensor, _Coded]:
        """The cache ``[P, 64, C+R]`` fp32, and what writes to both."""
        latent, rope = layer.kv_norm.shape[0], layer.shape.rope
        return unpack_latent(packed, latent, rope, name), cls(packed, latent, rope, name)

    def __call__(self, cache: Tensor, slots: Tensor, latents: Tensor) -> None:
        """Attention must see the numbers that the codes stand for."""
        codes = pack_latent(latents, self.latent, self.name)
        write_latent(self.packed, slots, codes)
        write_latent(cache, slots, unpack_latent(codes, self.latent, self.rope, self.name))


def choose_experts(
    logits: Tensor, routing: RoutingShape, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """``ids`` ``[T, K]`` and gate values ``[T, K]`` from ``logits`` ``[T, E]``.

    :func:`dsv2.model.router.route` without what training needs; a test holds the two together.
    """
    scores = logits.softmax(-1) if routing.score == "softmax" else logits.sigmoid()
    choice = scores if bias is None else scores + bias
    if routing.group_score != "none":
        grouped = choice.unflatten(-1, (routing.num_groups, -1))  # T G E/G
        if routing.group_score == "max":
            group_scores = grouped.amax(-1)
        else:
            group_scores = grouped.topk(2, dim=-1).values.sum(-1)
        best = group_scores.topk(routing.topk_group, dim=-1).indices
        inside = torch.zeros_like(group_scores, dtype=torch.bool).scatter(1, best, True)
        choice = grouped.masked_fill(~inside.unsqueeze(-1), -torch.inf).flatten(1)
    ids = choice.topk(routing.num_experts_per_tok, dim=-1).indices
    weights = scores.gather(1, ids)
    if routing.normalise:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return ids, weights * routing.scale


class ReferenceExecutor(LayerByLayer):
    """See :class:`dsv2.kernels.executor.Executor`; handles are the layers in fp32."""

    description = "reference"
    device = torch.device("cpu")
    is_capturable = False

    def plan_decode(
        self, handle: Any, cache: Tensor, cache_format: str, rows: int, width: int
    ) -> None:
        """There is one kernel for it."""

    def check(self, layer: AttentionLayer) -> None:
        """Every size is fine."""

    def pack_attention(self, layer: AttentionLayer) -> AttentionLayer:
        """The layer in fp32."""
        names = ("wkv_a", "wkv_b", "wo", "wq", "wq_a", "wq_b")
        wide: dict[str, Any] = {
            name: dequantise(by_rows(value))
            for name in names
            if (value := getattr(layer, name)) is not None
        }
        return replace(layer, **wide)

    def pack_mlp(self, layer: MlpLayer) -> MlpLayer:
        """The layer in fp32."""
        return replace(layer, mlp=_wide(layer.mlp))

    def pack_moe(self, layer: MoeLayer) -> MoeLayer:
        """The layer in fp32."""
        shared = None if layer.shared is None else _wide(layer.shared)
        return replace(
            layer, router=layer.router.float(), experts=_wide(layer.experts), shared=shared
        )

    def pack_linear(self, weight: StoredWeight) -> Tensor:
        """The matrix in fp32."""
        return dequantise(by_rows(weight))

    def quantise(self, weight: Tensor, scheme: str) -> tuple[QuantTensor, Tensor]:
        """:func:`dsv2.kernels.formats.quantise`."""
        done = quantise(weight, scheme)
        return done, (dequantise(done) - weight.float()).double().square().sum(-1)

    def begin(
        self, batch: RaggedBatch, cos: Tensor, sin: Tensor, form: str, cache_format: str
    ) -> _Step:
        """The arguments."""
        return _Step(batch, cos, sin, form, latent_format(cache_format).name)

    def attention(self, handle: AttentionLayer, x: Tensor, step: _Step, cache: Tensor) -> None:
        """Norm, :func:`compose_attention`, residual."""
        layer = handle
        weights = AttentionWeights(
            wkv_a=_plain(layer.wkv_a), kv_norm=layer.kv_norm.float(), wkv_b=_plain(layer.wkv_b),
            wo=_plain(layer.wo), wq=_maybe(layer.wq), wq_a=_maybe(layer.wq_a),
            q_norm=None if layer.q_norm is None else layer.q_norm.float(),
            wq_b=_maybe(layer.wq_b),
        )  # fmt: skip
        shape = replace(layer.shape, form=step.form)
        normed = rms_norm(x, layer.norm.float(), layer.eps)
        write = None
        if latent_format(step.cache_format).bits is not None:
            cache, write = _Coded.unpack(cache, layer, step.cache_format)
        x += compose_attention(
            normed, weights, shape, step.cos, step.sin, step.batch, cache, "reference", write
        )

    def mlp(self, handle: MlpLayer, x: Tensor) -> None:
        """Norm, SwiGLU, residual."""
        x += mlp(rms_norm(x, handle.norm.float(), handle.eps), _weights(handle.mlp))

    def moe(self, handle: MoeLayer, x: Tensor) -> None:
        """Norm, routing, :func:`compose_moe`, residual."""
        normed = rms_norm(x, handle.norm.float(), handle.eps)
        logits = F.linear(normed, handle.router)
        ids, gates = choose_experts(logits, handle.routing, handle.router_bias)
        stacked = handle.experts
        experts = ExpertWeights(
            _plain(stacked.w_gate), _plain(stacked.w_up), _plain(stacked.w_down)
        )
        shared = None if handle.shared is None else _weights(handle.shared)
        x += compose_moe(normed, ids, gates, experts, shared, "reference")

    def linear(self, handle: Tensor, x: Tensor, norm: Tensor | None, eps: float) -> Tensor:
        """Norm and product."""
        return F.linear(x if norm is None else rms_norm(x, norm.float(), eps), handle)

    def embed(self, handle: Tensor, ids: Tensor) -> Tensor:
        """Rows of the matrix."""
        return handle[ids.long()]


def _wide(mlp: Mlp[StoredWeight]) -> Mlp[StoredWeight]:
    return Mlp(*(dequantise(by_rows(one)) for one in (mlp.w_gate, mlp.w_up, mlp.w_down)))


def _plain(weight: StoredWeight) -> Tensor:
    assert isinstance(weight, Tensor)
    return weight


def _maybe(weight: StoredWeight | None) -> Tensor | None:
    return None if weight is None else _plain(weight)


def _weights(mlp: Mlp[StoredWeight]) -> MlpWeights:
    return MlpWeights(_plain(mlp.w_gate), _plain(mlp.w_up), _plain(mlp.w_down))


@implements("executor", "reference", ("cpu",))
def reference_executor(
    device: torch.device, threads: int | None, deterministic: bool
) -> ReferenceExecutor:
    """The executor of backend ``reference``; torch has its own number of threads."""
    return ReferenceExecutor()
