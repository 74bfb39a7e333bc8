"""Whole layers on a GPU: :class:`dsv2.kernels.executor.Executor` on Triton's kernels and cuBLAS.

Weights and activations share one dtype; the residual stream is fp32. No layer asks the device
anything, and a step of generated tokens alone can be held by a CUDA graph, from ``begin`` on.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dsv2.kernels.executor import AttentionLayer, Mlp, MlpLayer, MoeLayer, RoutingShape
from dsv2.kernels.formats import QuantTensor, Weight
from dsv2.kernels.latent import latent_format
from dsv2.kernels.ops import AttentionShape, ExpertWeights
from dsv2.kernels.registry import BackendError, implements
from dsv2.kernels.triton.attention import Parts, attend_absorbed, attend_expanded, split
from dsv2.kernels.triton.grouped_gemm import experts_vector, run_experts
from dsv2.kernels.triton.latent_cache import write_and_rotate
from dsv2.kernels.triton.linear import (
    VECTOR_TOKENS,
    add_product,
    product,
    stacked_product,
    wide_product,
)
from dsv2.kernels.triton.norm_rows import norm_rows
from dsv2.kernels.triton.router import choose_experts
from dsv2.ragged import RaggedBatch

_CACHES = ("float32", "bfloat16")


@dataclass(frozen=True)
class _Attention:
    """A packed attention layer.

    Attributes:
        w_in: ``[H(N+R) or C', D]`` above ``[C+R, D]``: what is multiplied with the normed input.
        queries: rows of ``w_in`` that are the queries' or their compression's.
        w_uk: ``[H, C, N]``, transposed for the product with queries.
        w_uv: ``[H, V, C]``.
    """

    norm: Tensor
    eps: float
    shape: AttentionShape
    w_in: Tensor
    queries: int
    q_norm: Tensor | None
    wq_b: Tensor | None
    kv_norm: Tensor
    wkv_b: Tensor
    w_uk: Tensor
    w_uv: Tensor
    wo: Tensor


@dataclass(frozen=True)
class _Mlp:
    norm: Tensor
    eps: float
    mlp: ExpertWeights


@dataclass(frozen=True)
class _Moe:
    norm: Tensor
    eps: float
    routing: RoutingShape
    router: Tensor
    bias: Tensor | None
    experts: ExpertWeights
    shared: ExpertWeights | None


@dataclass(frozen=True)
class _Step:
    batch: RaggedBatch
    cos: Tensor
    sin: Tensor
    parts: Parts


class TritonExecutor:
    """See :class:`dsv2.kernels.executor.Executor`.

    Args:
        device: a GPU; a CPU where Triton runs in its interpreter.
        deterministic: a row's bits depend on its own tokens alone, whatever else is in the batch
            and however a prompt is cut. Products then have fixed tiles, which costs speed.
    """

    def __init__(self, device: torch.device, deterministic: bool = False) -> None:
        self.device, self.deterministic = device, deterministic
        # Routing of what every token takes: expert 0, with a weight of one.
        self._everybody = (
            torch.zeros((VECTOR_TOKENS, 1), dtype=torch.int32, device=device),
            torch.ones((VECTOR_TOKENS, 1), dtype=torch.float32, device=device),
        )

    @property
    def description(self) -> str:
        """The device's name."""
        name = "interpreter"
        if self.device.type == "cuda":
            name = torch.cuda.get_device_name(self.device)
        return f"triton ({name}{', deterministic' if self.deterministic else ''})"

    def check(self, layer: AttentionLayer) -> None:
        """The rotated part must have pairs."""
        if layer.shape.rope % 2:
            raise BackendError(f"qk_rope_head_dim is {layer.shape.rope}, allowed are even ones")

    def pack_attention(self, layer: AttentionLayer) -> _Attention:
        """Stacks what shares its input, and transposes W^UK for the absorbed queries."""
        self.check(layer)
        shape = layer.shape
        first = layer.wq if layer.wq is not None else layer.wq_a
        assert first is not None
        wq, wkv_a, wkv_b = self._take(first), self._take(layer.wkv_a), self._take(layer.wkv_b)
        w_uk, w_uv = wkv_b.unflatten(0, (shape.heads, -1)).split((shape.nope, shape.value), 1)
        return _Attention(
            norm=self._wide(layer.norm), eps=layer.eps, shape=shape,
            w_in=torch.cat((wq, wkv_a)), queries=wq.shape[0],
            q_norm=None if layer.q_norm is None else self._wide(layer.q_norm),
            wq_b=None if layer.wq_b is None else self._take(layer.wq_b),
            kv_norm=self._wide(layer.kv_norm), wkv_b=wkv_b,
            w_uk=w_uk.transpose(1, 2).contiguous(), w_uv=w_uv.contiguous(),
            wo=self._take(layer.wo),
        )  # fmt: skip

    def pack_mlp(self, layer: MlpLayer) -> _Mlp:
        """The three matrices, as an expert that everybody takes."""
        return _Mlp(self._wide(layer.norm), layer.eps, self._experts(layer.mlp))

    def pack_moe(self, layer: MoeLayer) -> _Moe:
        """The stacks, and the router in fp32."""
        return _Moe(
            norm=self._wide(layer.norm), eps=layer.eps, routing=layer.routing,
            router=self._wide(layer.router),
            bias=None if layer.router_bias is None else self._wide(layer.router_bias),
            experts=self._experts(layer.experts),
            shared=None if layer.shared is None else self._experts(layer.shared),
        )  # fmt: skip

    def pack_linear(self, weight: Weight) -> Tensor:
        """The matrix on the device."""
        return self._take(weight)

    def quantise(self, weight: Tensor, scheme: str) -> tuple[QuantTensor, Tensor]:
        """Not here.

        Raises:
            BackendError: always; backend ``cpu`` quantises.
        """
        raise BackendError(f"backend 'triton' does not quantise to {scheme!r}, backend 'cpu' does")

    def _take(self, weight: Weight) -> Tensor:
        if isinstance(weight, QuantTensor):
            raise BackendError(
                f"weights in {weight.scheme}, backend 'triton' takes float32 and bfloat16"
            )
        return weight.to(self.device).contiguous()

    def _wide(self, weight: Tensor) -> Tensor:
        return weight.to(self.device, torch.float32).contiguous()

    def _experts(self, mlp: Mlp) -> ExpertWeights:
        parts = [self._take(part) for part in (mlp.w_gate, mlp.w_up, mlp.w_down)]
        return ExpertWeights(*(part if part.ndim == 3 else part.unsqueeze(0) for part in parts))

    def begin(
        self, batch: RaggedBatch, cos: Tensor, sin: Tensor, form: str, cache_format: str
    ) -> _Step:
        """Sequences by the form of their attention, decided without asking the device."""
        if latent_format(cache_format).name not in _CACHES:
            raise BackendError(
                f"cache format {cache_format!r}, backend 'triton' takes {', '.join(_CACHES)}"
            )
        return _Step(batch, cos, sin, split(batch, form, self.deterministic))

    def attention(self, handle: _Attention, x: Tensor, step: _Step, cache: Tensor) -> None:
        """Norm, projections, cache write, attention in either form, output, residual."""
        layer, shape = handle, handle.shape
        dtype, fixed = layer.wo.dtype, self.deterministic
        first = product(norm_rows(x, layer.norm, layer.eps, dtype), layer.w_in, deterministic=fixed)
        q, kv = first.split((layer.queries, first.shape[1] - layer.queries), 1)
        if layer.wq_b is not None:
            assert layer.q_norm is not None
            q = norm_rows(q.contiguous(), layer.q_norm, shape.eps, dtype)
            q = product(q, layer.wq_b, deterministic=fixed)
        assert step.batch.slots is not None
        q_rope = write_and_rotate(
            q, kv, layer.kv_norm, step.cos, step.sin, step.batch.slots, cache, shape.heads,
            shape.nope, shape.rope, shape.eps,
        )  # fmt: skip
        q = q.unflatten(1, (shape.heads, -1))  # T H N+R
        absorbed, expanded = step.parts.absorbed, step.parts.expanded
        out = None
        if absorbed is not None:
            some = (
                (q, q_rope) if absorbed.rows is None else (q[absorbed.rows], q_rope[absorbed.rows])
            )
            mixed = attend_absorbed(*some, absorbed, cache, layer.w_uk, layer.w_uv, shape, fixed)
            out = self._place(mixed, absorbed.rows, x.shape[0], out)
        if expanded is not None:
            turned = torch.cat((q[..., : shape.nope], q_rope), -1)
            if expanded.rows is not None:
                turned = turned[expanded.rows]
            mixed = attend_expanded(turned, expanded, cache, layer.wkv_b, shape, fixed)
            out = self._place(mixed, expanded.rows, x.shape[0], out)
        assert out is not None
        add_product(x, out.flatten(1), layer.wo, deterministic=fixed)

    @staticmethod
    def _place(mixed: Tensor, rows: Tensor | None, tokens: int, out: Tensor | None) -> Tensor:
        """``mixed`` at its rows of the whole batch."""
        if rows is None:
            return mixed
        if out is None:
            out = mixed.new_empty(tokens, *mixed.shape[1:])
        out[rows] = mixed
        return out

    def mlp(self, handle: _Mlp, x: Tensor) -> None:
        """Norm, SwiGLU, residual."""
        self._add_swiglu(
            x, norm_rows(x, handle.norm, handle.eps, handle.mlp.w_up.dtype), handle.mlp
        )

    def moe(self, handle: _Moe, x: Tensor) -> None:
        """Norm, routing, experts, residual."""
        fixed, experts, shared = self.deterministic, handle.experts, handle.shared
        normed = norm_rows(x, handle.norm, handle.eps, experts.w_up.dtype)
        logits = wide_product(normed, handle.router, deterministic=fixed)
        ids, gates = choose_experts(logits, handle.routing, handle.bias)
        fits = shared is not None and shared.w_up.shape[1] % experts.w_up.shape[1] == 0
        if 0 < x.shape[0] <= VECTOR_TOKENS and fits and not fixed:
            experts_vector(normed, ids, gates, experts, shared=shared, into=x)
            return
        x += run_experts(normed, ids, gates, experts, deterministic=fixed)
        if shared is not None:
            self._add_swiglu(x, normed, shared)

    def _add_swiglu(self, into: Tensor, x: Tensor, weights: ExpertWeights) -> None:
        """``into`` plus one expert that every token takes."""
        if 0 < x.shape[0] <= VECTOR_TOKENS and not self.deterministic:
            ids, gates = (part[: x.shape[0]] for part in self._everybody)
            experts_vector(x, ids, gates, weights, into=into)
            return
        gated = stacked_product(
            x.unsqueeze(0), weights.w_up, weights.w_gate, deterministic=self.deterministic
        )[0]
        add_product(into, gated, weights.w_down[0], deterministic=self.deterministic)

    def linear(self, handle: Tensor, x: Tensor, norm: Tensor | None, eps: float) -> Tensor:
        """Norm and product, in fp32."""
        if norm is None:
            normed = x.to(handle.dtype).contiguous()
        else:
            normed = norm_rows(x.contiguous(), self._wide(norm), eps, handle.dtype)
        return wide_product(normed, handle, deterministic=self.deterministic)

    def embed(self, handle: Tensor, ids: Tensor) -> Tensor:
        """Rows of the matrix."""
        return handle.index_select(0, ids).float()


@implements("executor", "triton", ("cuda",))
def triton_executor(
    device: torch.device, threads: int | None, deterministic: bool
) -> TritonExecutor:
    """The executor of backend ``triton``; ``threads`` are a CPU's."""
    return TritonExecutor(device, deterministic)
