"""Whole layers on a GPU: :class:`dsv2.kernels.executor.Executor` on Triton's kernels and cuBLAS.

Plain weights and activations share one dtype, beside weights of 8 or 4 bits activations are bf16;
the residual stream is fp32. No layer asks the device
anything, and a step of generated tokens alone can be held by a CUDA graph, from ``begin`` on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dsv2.kernels.executor import (
    AttentionLayer,
    LayerByLayer,
    Mlp,
    MlpLayer,
    MoeLayer,
    RoutingShape,
    make_executor,
)
from dsv2.kernels.formats import QuantTensor, Weight, dequantise, weight_rows
from dsv2.kernels.interleaved import StoredWeight, by_rows
from dsv2.kernels.latent import latent_format
from dsv2.kernels.ops import AttentionShape, ExpertWeights
from dsv2.kernels.registry import BackendError, implements
from dsv2.kernels.triton.attention import Parts, attend_absorbed, attend_expanded, split
from dsv2.kernels.triton.first_products import write_and_rotate
from dsv2.kernels.triton.grouped_gemm import run_experts
from dsv2.kernels.triton.latent_cache import write_latents
from dsv2.kernels.triton.linear import (
    VECTOR_TOKENS,
    add_product,
    gated_product,
    normed_vector_product,
    product,
    wide_product,
)
from dsv2.kernels.triton.norm_rows import norm_rows
from dsv2.kernels.triton.planned_decode import planned_decode
from dsv2.kernels.triton.quant_experts import (
    CODED_TOKENS,
    add_experts,
    common_scheme,
    takes_shared,
)
from dsv2.kernels.triton.quant_product import run_quant_experts
from dsv2.kernels.triton.router import choose_experts
from dsv2.kernels.triton.vector_experts import experts_vector
from dsv2.ragged import PlannedDecode, RaggedBatch


@dataclass(frozen=True)
class _Attention:
    """A packed attention layer.

    Attributes:
        w_in: ``[H(N+R) or C', D]`` and ``[C+R, D]``, what is multiplied with the normed input; one
            above the other where their formats allow it.
        queries: rows of the first.
        dtype: of activations.
        w_uk: ``[H, C, N]``, transposed for the product with queries.
        w_uv: ``[H, V, C]``.
    """

    norm: Tensor
    eps: float
    shape: AttentionShape
    w_in: tuple[Weight, ...]
    queries: int
    dtype: torch.dtype
    q_norm: Tensor | None
    wq_b: Weight | None
    kv_norm: Tensor
    wkv_b: Tensor
    w_uk: Tensor
    w_uv: Tensor
    wo: Weight


Feed = ExpertWeights | Mlp[Weight]
"""SwiGLU matrices: plain ones as stacks of experts, coded ones as they are."""


@dataclass(frozen=True)
class _Mlp:
    norm: Tensor
    eps: float
    mlp: Feed
    dtype: torch.dtype


@dataclass(frozen=True)
class _Moe:
    norm: Tensor
    eps: float
    routing: RoutingShape
    router: Tensor
    bias: Tensor | None
    experts: Feed
    shared: Feed | None
    dtype: torch.dtype


@dataclass(frozen=True)
class _Step:
    """A batch; ``rows`` ``[T]`` counts its tokens, where latents are coded before they are kept."""

    batch: RaggedBatch
    cos: Tensor
    sin: Tensor
    parts: Parts
    cache_format: str
    rows: Tensor | None


class TritonExecutor(LayerByLayer):
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
    def is_capturable(self) -> bool:
        """On a GPU: no layer asks the device anything."""
        return self.device.type == "cuda"

    @property
    def description(self) -> str:
        """The device's name."""
        name = "interpreter"
        if self.device.type == "cuda":
            name = torch.cuda.get_device_name(self.device)
        return f"triton ({name}{', deterministic' if self.deterministic else ''})"

    def plan_decode(
        self, handle: _Attention, cache: Tensor, cache_format: str, rows: int, width: int
    ) -> PlannedDecode | None:
        """FlashInfer's kernel, where it is installed and turns out to be the faster one here.

        Its sums have other orders in other batches, so not where bits are to be fixed.
        """
        plain = latent_format(cache_format).bits is None
        if self.deterministic or not plain or self.device.type != "cuda":
            return None
        shape = handle.shape
        return planned_decode(
            cache, rows, width, heads=shape.heads, scale=shape.scale, dtype=handle.dtype
        )

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
        wq, wkv_a = self._take(first), self._take(layer.wkv_a)
        dtype = self._activations(layer.wo)
        # Small, and needed both ways round: it is kept in the activations' dtype.
        wkv_b = dequantise(self._take(layer.wkv_b)).to(dtype)
        w_uk, w_uv = wkv_b.unflatten(0, (shape.heads, -1)).split((shape.nope, shape.value), 1)
        return _Attention(
            norm=self._wide(layer.norm), eps=layer.eps, shape=shape,
            w_in=_stacked(wq, wkv_a),
            queries=first.shape[0], dtype=dtype,
            q_norm=None if layer.q_norm is None else self._wide(layer.q_norm),
            wq_b=None if layer.wq_b is None else self._take(layer.wq_b),
            kv_norm=self._wide(layer.kv_norm), wkv_b=wkv_b,
            w_uk=w_uk.transpose(1, 2).contiguous(), w_uv=w_uv.contiguous(),
            wo=self._take(layer.wo),
        )  # fmt: skip

    def pack_mlp(self, layer: MlpLayer) -> _Mlp:
        """The three matrices, as an expert that everybody takes."""
        dtype = self._activations(layer.mlp.w_up)
        return _Mlp(self._wide(layer.norm), layer.eps, self._feed(layer.mlp), dtype)

    def pack_moe(self, layer: MoeLayer) -> _Moe:
        """The stacks, and the router in fp32."""
        return _Moe(
            norm=self._wide(layer.norm), eps=layer.eps, routing=layer.routing,
            router=self._wide(layer.router),
            bias=None if layer.router_bias is None else self._wide(layer.router_bias),
            experts=self._feed(layer.experts),
            shared=None if layer.shared is None else self._feed(layer.shared),
            dtype=self._activations(layer.experts.w_up),
        )  # fmt: skip

    def pack_linear(self, weight: StoredWeight) -> Weight:
        """The matrix on the device."""
        return self._take(weight)

    def quantise(self, weight: Tensor, scheme: str) -> tuple[QuantTensor, Tensor]:
        """By backend ``cpu``, which has the quantiser."""
        return make_executor("cpu", "cpu").quantise(weight.cpu(), scheme)

    def _take(self, weight: StoredWeight) -> Weight:
        weight = by_rows(weight, self.device)
        if isinstance(weight, Tensor):
            return weight.to(self.device).contiguous()
        parts = {
            name: part.to(self.device) for name, part in vars(weight).items() if name != "scheme"
        }
        return replace(weight, **parts)

    def _activations(self, weight: StoredWeight) -> torch.dtype:
        """The dtype of what a weight is multiplied with; Triton's interpreter has no bf16."""
        if isinstance(weight, Tensor):
            return weight.dtype
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    def _wide(self, weight: Tensor) -> Tensor:
        return weight.to(self.device, torch.float32).contiguous()

    def _feed(self, mlp: Mlp[StoredWeight]) -> Feed:
        parts = [self._take(part) for part in (mlp.w_gate, mlp.w_up, mlp.w_down)]
        if all(not isinstance(part, Tensor) for part in parts):
            return Mlp(*parts)
        # Where a width is no whole number of groups one matrix was left plain: they all are, then.
        dtype = self._activations(mlp.w_up)
        plain = [
            (part if isinstance(part, Tensor) else dequantise(part)).to(dtype) for part in parts
        ]
        return ExpertWeights(*(one if one.ndim == 3 else one.unsqueeze(0) for one in plain))

    def begin(
        self, batch: RaggedBatch, cos: Tensor, sin: Tensor, form: str, cache_format: str
    ) -> _Step:
        """Sequences by the form of their attention, decided without asking the device."""
        kind = latent_format(cache_format)
        rows = None
        if kind.bits is not None:
            rows = torch.arange(batch.num_tokens, dtype=torch.int32, device=self.device)
        return _Step(batch, cos, sin, split(batch, form, self.deterministic), kind.name, rows)

    def attention(self, handle: _Attention, x: Tensor, step: _Step, cache: Tensor) -> None:
        """Norm, projections, cache write, attention in either form, output, residual."""
        layer, shape = handle, handle.shape
        dtype, fixed = layer.dtype, self.deterministic
        few = self._is_few(x)
        if few and len(layer.w_in) == 1 and isinstance(layer.w_in[0], Tensor):
            products = [normed_vector_product(x, layer.norm, layer.eps, layer.w_in[0])]
        else:
            normed = norm_rows(x, layer.norm, layer.eps, dtype)
            products = [product(normed, weight, deterministic=fixed) for weight in layer.w_in]
        q, kv = products if len(products) == 2 else products[0].tensor_split((layer.queries,), 1)
        if layer.wq_b is not None:
            assert layer.q_norm is not None
            q = norm_rows(q.contiguous(), layer.q_norm, shape.eps, dtype)
            q = product(q, layer.wq_b, deterministic=fixed)
        absorbed, expanded = step.parts.absorbed, step.parts.expanded
        w_uk = layer.w_uk if few and expanded is None else None
        q_rope, q_latent = self._write(layer, q, kv, step, cache, w_uk)
        q = q.unflatten(1, (shape.heads, -1))  # T H N+R
        kind = step.cache_format
        out = None
        if absorbed is not None:
            some = (
                (q, q_rope) if absorbed.rows is None else (q[absorbed.rows], q_rope[absorbed.rows])
            )
            mixed = attend_absorbed(
                *some, absorbed, cache, kind, layer.w_uk, layer.w_uv, shape, fixed, q_latent
            )
            out = self._place(mixed, absorbed.rows, x.shape[0], out)
        if expanded is not None:
            turned = torch.cat((q[..., : shape.nope], q_rope), -1)
            if expanded.rows is not None:
                turned = turned[expanded.rows]
            mixed = attend_expanded(turned, expanded, cache, kind, layer.wkv_b, shape, fixed)
            out = self._place(mixed, expanded.rows, x.shape[0], out)
        assert out is not None
        add_product(x, out.flatten(1), layer.wo, deterministic=fixed)

    def _is_few(self, x: Tensor, most: int = VECTOR_TOKENS) -> bool:
        """Whether launches cost as much as bytes, and sums may have any order."""
        return 0 < x.shape[0] <= most and not self.deterministic

    def _write(
        self, layer: _Attention, q: Tensor, kv: Tensor, step: _Step, cache: Tensor,
        w_uk: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """Put the latents into the cache; see :func:`write_and_rotate` for what comes back."""
        shape, slots, target = layer.shape, step.batch.slots, cache
        assert slots is not None
        places = slots
        if step.rows is not None:
            # The kernel leaves plain numbers beside the cache, and another one codes them.
            width = layer.kv_norm.shape[0] + shape.rope
            target = torch.empty((q.shape[0], 1, width), device=q.device)
            places = step.rows
        queries = write_and_rotate(
            q, kv, layer.kv_norm, step.cos, step.sin, places, target, shape.heads, shape.nope,
            shape.rope, shape.eps, w_uk,
        )  # fmt: skip
        if step.rows is not None:
            latent = layer.kv_norm.shape[0]
            write_latents(cache, slots, target.squeeze(1), latent, step.cache_format)
        return queries

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
        self._add_swiglu(x, norm_rows(x, handle.norm, handle.eps, handle.dtype), handle.mlp)

    def moe(self, handle: _Moe, x: Tensor) -> None:
        """Norm, routing, experts, residual."""
        fixed, experts, shared = self.deterministic, handle.experts, handle.shared
        if self._is_few(x):
            normed = torch.empty(x.shape, dtype=handle.dtype, device=x.device)
            logits = normed_vector_product(x, handle.norm, handle.eps, handle.router, normed)
        else:
            normed = norm_rows(x, handle.norm, handle.eps, handle.dtype)
            logits = wide_product(normed, handle.router, deterministic=fixed)
        ids, gates = choose_experts(logits, handle.routing, handle.bias)
        if isinstance(experts, Mlp) and self._is_few(x, CODED_TOKENS) and common_scheme(experts):
            beside = shared if isinstance(shared, Mlp) and takes_shared(experts, shared) else None
            add_experts(x, normed, ids, gates, experts, beside)
            if beside is not None:
                return
        elif isinstance(experts, Mlp):
            x += run_quant_experts(normed, ids, gates, experts, deterministic=fixed)
        elif isinstance(shared, ExpertWeights) and self._takes_all(x, experts, shared):
            experts_vector(normed, ids, gates, experts, shared=shared, into=x)
            return
        else:
            x += run_experts(normed, ids, gates, experts, deterministic=fixed)
        if shared is not None:
            self._add_swiglu(x, normed, shared)

    def _takes_all(self, x: Tensor, experts: ExpertWeights, shared: ExpertWeights) -> bool:
        """Whether the kernels of a few tokens take shared experts beside the routed ones."""
        whole = shared.w_up.shape[1] % experts.w_up.shape[1] == 0
        return whole and self._is_few(x)

    def _add_swiglu(self, into: Tensor, x: Tensor, weights: Feed) -> None:
        """``into`` plus one expert that every token takes."""
        fixed = self.deterministic
        up, gate, down = weights.w_up, weights.w_gate, weights.w_down
        if self._is_few(x):
            ids, gates = (part[: x.shape[0]] for part in self._everybody)
            if isinstance(weights, ExpertWeights):
                experts_vector(x, ids, gates, weights, into=into)
                return
            if common_scheme(weights):
                add_experts(into, x, ids, gates, weights, None)
                return
        if isinstance(weights, ExpertWeights):
            up, gate, down = (part[0] for part in (up, gate, down))
        add_product(
            into, gated_product(x, up, gate, deterministic=fixed), down, deterministic=fixed
        )

    def linear(self, handle: Weight, x: Tensor, norm: Tensor | None, eps: float) -> Tensor:
        """Norm and product, in fp32."""
        dtype = self._activations(handle)
        if norm is None:
            normed = x.to(dtype).contiguous()
        else:
            normed = norm_rows(x.contiguous(), self._wide(norm), eps, dtype)
        return wide_product(normed, handle, deterministic=self.deterministic)

    def embed(self, handle: Weight, ids: Tensor) -> Tensor:
        """Rows of the matrix."""
        return weight_rows(handle, ids)


def _stacked(first: Weight, second: Weight) -> tuple[Weight, ...]:
    """Two matrices as one, which takes one launch; those of fp8 share scales across rows."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return (torch.cat((first, second)),)
    if (
        isinstance(first, QuantTensor)
        and isinstance(second, QuantTensor)
        and first.scheme == second.scheme
    ):
        parts = zip(
            (first.codes, first.scales, first.row_scales),
            (second.codes, second.scales, second.row_scales),
            strict=True,
        )
        return (QuantTensor(first.scheme, *(torch.cat(pair) for pair in parts)),)
    return (first, second)


@implements("executor", "triton", ("cuda",))
def triton_executor(
    device: torch.device, threads: int | None, deterministic: bool
) -> TritonExecutor:
    """The executor of backend ``triton``; ``threads`` are a CPU's."""
    return TritonExecutor(device, deterministic)
