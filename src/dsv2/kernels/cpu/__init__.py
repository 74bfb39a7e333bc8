"""The backend ``cpu``: C++ for whole layers, on packed weights, with a thread pool of its own.

The instruction set is chosen when the first executor is made: AMX beside AVX-512 with BF16, that
alone, AVX-512 with VNNI, AVX2, or plain C++. Every output is summed in one order that depends on
its own row alone, so results are the same, bit for bit, whatever else is in the batch and however a
prompt is cut.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from dsv2.kernels.executor import (
    AttentionLayer,
    LayerByLayer,
    LayerHandles,
    Mlp,
    MlpLayer,
    MoeLayer,
)
from dsv2.kernels.formats import SCHEMES, BlockTensor, QuantTensor, Weight, dequantise
from dsv2.kernels.interleaved import (
    InterleavedTensor,
    StoredWeight,
    by_rows,
    interleaved_shapes,
)
from dsv2.kernels.latent import LatentFormat, latent_format
from dsv2.kernels.registry import BackendError, implements
from dsv2.machine import available_threads
from dsv2.ragged import RaggedBatch
from dsv2.shapes import BLOCK_SIZE

try:
    from dsv2.kernels.cpu import _native
except ImportError as error:  # a checkout that was never built
    raise BackendError(f"backend 'cpu' is not built here ({error}); run `make install`") from error

_FORMATS = {torch.float32: 0, torch.bfloat16: 1, "int8": 2, "int4": 3}
"""Codes of types.h's Format."""
_CACHES = {"float32": 0, "bfloat16": 1, "int8": 2, "int6": 4}
"""Likewise, of the latent cache."""
_SCORES = {"softmax": 0, "sigmoid": 1}
_GROUP_SCORES = {"none": 0, "max": 1, "top2_sum": 2}

_SHORT = 64
"""Tokens of a step whose layers run in one call: it lasts less than a second."""

ISA = "DSV2_ISA"
"""The environment variable that names the best instruction set to use, to compare or to find a
fault with; unset, it is the machine's best."""


def supported() -> tuple[str, ...]:
    """The instruction sets that this machine and build have, best first; from :data:`ISA` on.

    Raises:
        BackendError: :data:`ISA` names none of them.
    """
    every, best = tuple(_native.supported()), os.environ.get(ISA)
    if not best:
        return every
    if best not in every:
        raise BackendError(f"{ISA} is {best!r}, this machine has {', '.join(every)}")
    return every[every.index(best) :]


@cache
def _kernels(isa: str, threads: int, process: int) -> _native.Kernels:
    """One pool per process: threads do not survive a fork."""
    return _native.Kernels(isa, threads)


@dataclass(frozen=True)
class _Step:
    """A batch as C++ sees it, with the tensors its addresses belong to."""

    native: _native.Batch
    owned: tuple[Tensor, ...]
    cache: LatentFormat


@dataclass(frozen=True)
class _Stack:
    """Layers in one piece, and one by one."""

    native: _native.Stack
    layers: tuple[LayerHandles, ...]


class CpuExecutor(LayerByLayer):
    """See :class:`dsv2.kernels.executor.Executor`.

    Args:
        threads: that compute; None for one per core.
        isa: an instruction set of :func:`supported`; None for the best.

    Raises:
        BackendError: this machine does not have it.
    """

    def __init__(self, threads: int | None = None, isa: str | None = None) -> None:
        best = supported()[0] if isa is None else isa
        if best not in supported():
            raise BackendError(
                f"instruction set {isa!r}, this machine has {', '.join(supported())}"
            )
        count = available_threads() if threads is None else threads
        if count < 1:
            raise BackendError(f"threads is {count}, allowed is at least 1")
        self._kernels = _kernels(best, count, os.getpid())

    device = torch.device("cpu")
    is_capturable = False

    @property
    def description(self) -> str:
        """The instruction set and the threads."""
        threads = self._kernels.threads
        return f"cpu ({self._kernels.isa}, {threads} thread{'s' if threads > 1 else ''})"

    def plan_decode(
        self, handle: Any, cache: Tensor, cache_format: str, rows: int, width: int
    ) -> None:
        """There is one kernel for it."""

    def check(self, layer: AttentionLayer) -> None:
        """Widths must be even, and the cache at most 4096 wide."""
        latent, shape = layer.kv_norm.shape[0], layer.shape
        if latent % 2 or shape.rope % 2 or shape.nope % 2 or latent + shape.rope > 4096:
            raise BackendError(
                f"backend 'cpu' needs an even kv_lora_rank, even head dims and a cache width of "
                f"at most 4096; got {latent}, {shape.nope} + {shape.rope}"
            )

    def pack_attention(self, layer: AttentionLayer) -> _native.AttentionLayer:
        """Packs W^UK twice, for expanding keys and for absorbing queries; the numbers are one."""
        self.check(layer)
        shape, latent = layer.shape, layer.kv_norm.shape[0]
        w_uk, w_uk_t, w_uv, fold = self._pack_heads(layer.wkv_b, layer)
        floats = [_wide(layer.norm), _wide(layer.kv_norm), _wide(layer.q_norm), fold]
        return _native.attention_layer(
            hidden=layer.norm.shape[0], heads=shape.heads, nope=shape.nope, rope=shape.rope,
            value=shape.value, latent=latent, scale=shape.scale, eps=layer.eps,
            latent_eps=shape.eps, norm=_address(floats[0]), kv_norm=_address(floats[1]),
            q_norm=_address(floats[2]), wq=self._maybe(layer.wq), wq_a=self._maybe(layer.wq_a),
            wq_b=self._maybe(layer.wq_b), wkv_a=self.pack_linear(layer.wkv_a),
            wo=self.pack_linear(layer.wo), w_uk=w_uk, w_uk_t=w_uk_t, w_uv=w_uv,
            fold=_address(floats[3]),
        )  # fmt: skip

    def _pack_heads(
        self, stored: StoredWeight, layer: AttentionLayer
    ) -> tuple[_native.Matrix, _native.Matrix, _native.Matrix, Tensor | None]:
        """W^UK ``[H, N, C]``, its transpose, W^UV ``[H, V, C]``, and the transpose's scales."""
        shape, latent, weight = layer.shape, layer.kv_norm.shape[0], by_rows(stored)
        per_head = shape.nope + shape.value
        item = per_head * latent
        if isinstance(weight, QuantTensor) and shape.nope % SCHEMES[weight.scheme].group:
            weight = dequantise(weight)  # the transpose could not carry the groups
        uk = self._pack(weight, shape.heads, shape.nope, latent, item, latent, 1, per_head, 0)
        uv = self._pack(
            weight, shape.heads, shape.value, latent, item, latent, 1, per_head, shape.nope
        )
        transposed = self._pack(
            weight, shape.heads, latent, shape.nope, item, 1, latent, 0, 0, unscaled=True
        )
        if not isinstance(weight, QuantTensor):
            return uk, transposed, uv, None
        scales = weight.scales.float() * weight.row_scales.unsqueeze(-1)  # H(N+V) groups
        fold = scales.unflatten(0, (shape.heads, per_head))[:, : shape.nope]  # H N groups
        return uk, transposed, uv, fold.transpose(1, 2).contiguous()

    def pack_mlp(self, layer: MlpLayer) -> _native.MlpLayer:
        """The three matrices and the norm."""
        norm = _wide(layer.norm)
        gate, up, down = self._pack_mlp(layer.mlp)
        return _native.mlp_layer(
            hidden=layer.norm.shape[0], width=layer.mlp.w_gate.shape[-2], eps=layer.eps,
            norm=_address(norm), gate=gate, up=up, down=down,
        )  # fmt: skip

    def pack_moe(self, layer: MoeLayer) -> _native.MoeLayer:
        """Stacks of experts, the shared ones, and the router in fp32."""
        norm, bias, routing = _wide(layer.norm), _wide(layer.router_bias), layer.routing
        gate, up, down = self._pack_mlp(layer.experts)
        shared = (None, None, None) if layer.shared is None else self._pack_mlp(layer.shared)
        return _native.moe_layer(
            hidden=layer.norm.shape[0], width=layer.experts.w_gate.shape[-2],
            shared_width=0 if layer.shared is None else layer.shared.w_gate.shape[-2],
            eps=layer.eps, experts=routing.num_experts, chosen=routing.num_experts_per_tok,
            groups=routing.num_groups, chosen_groups=routing.topk_group,
            score=_SCORES[routing.score], group_score=_GROUP_SCORES[routing.group_score],
            normalise=routing.normalise, scale=routing.scale, norm=_address(norm),
            bias=_address(bias), router=self.pack_linear(layer.router.float()),
            gate=gate, up=up, down=down, shared_gate=shared[0], shared_up=shared[1],
            shared_down=shared[2],
        )  # fmt: skip

    def _pack_mlp(
        self, mlp: Mlp[StoredWeight]
    ) -> tuple[_native.Matrix, _native.Matrix, _native.Matrix]:
        return (
            self.pack_linear(mlp.w_gate),
            self.pack_linear(mlp.w_up),
            self.pack_linear(mlp.w_down),
        )

    def pack_linear(self, weight: StoredWeight) -> _native.Matrix:
        """A matrix ``[rows, columns]`` or a stack of them."""
        count = weight.shape[0] if len(weight.shape) == 3 else 1
        rows, columns = weight.shape[-2:]
        if isinstance(weight, InterleavedTensor):
            parts = _checked_parts(weight)
            codes, scales, row_scales = (part.data_ptr() for part in parts)
            return self._kernels.use(
                format=_FORMATS[weight.scheme], count=count, rows=rows, cols=columns, codes=codes,
                scales=scales, row_scales=row_scales, owner=parts,
            )  # fmt: skip
        return self._pack(weight, count, rows, columns, rows * columns, columns, 1, rows, 0)

    def _maybe(self, weight: StoredWeight | None) -> _native.Matrix | None:
        return None if weight is None else self.pack_linear(weight)

    def _pack(
        self, weight: Weight, count: int, rows: int, cols: int, item_stride: int,
        row_stride: int, col_stride: int, item_rows: int, first_row: int,
        unscaled: bool = False,
    ) -> _native.Matrix:  # fmt: skip
        """``count`` matrices by strides in elements, the first ``first_row`` rows in."""
        scales = row_scales = None
        if isinstance(weight, QuantTensor):
            kind = SCHEMES[weight.scheme]
            data, format_code = weight.codes.contiguous(), _FORMATS[weight.scheme]
            offset = first_row * cols * kind.bits // 8
            if not unscaled:
                scales, row_scales = weight.scales.contiguous(), weight.row_scales.contiguous()
        elif isinstance(weight, BlockTensor):
            raise BackendError(
                "backend 'cpu' has no kernel for weights in fp8, allowed are float32, bfloat16, "
                "int8 and int4"
            )
        else:
            if weight.dtype not in _FORMATS:
                weight = weight.float()
            data, format_code = weight.contiguous(), _FORMATS[weight.dtype]
            offset = first_row * cols * data.element_size()
        group = SCHEMES[weight.scheme].group if isinstance(weight, QuantTensor) else 1
        return self._kernels.pack(
            format=format_code, source_format=format_code, count=count, rows=rows, cols=cols,
            data=data.data_ptr() + offset,
            scales=0 if scales is None else scales.data_ptr() + first_row * (cols // group),
            row_scales=0 if row_scales is None else row_scales.data_ptr() + first_row * 4,
            item_stride=item_stride, row_stride=row_stride, col_stride=col_stride,
            item_rows=item_rows,
        )  # fmt: skip

    def begin(
        self, batch: RaggedBatch, cos: Tensor, sin: Tensor, form: str, cache_format: str
    ) -> _Step:
        """Addresses of the batch's tensors, and which sequences attend on the latent itself."""
        if batch.block_table is None or batch.slots is None:
            raise ValueError("backend 'cpu' attends over a latent cache, the batch has none")
        flags = torch.tensor(_absorbed(batch, form), dtype=torch.uint8)
        places = (batch.cu_q, batch.kv_len, batch.block_table, batch.slots)
        if any(tensor.dtype != torch.int32 for tensor in places):
            raise ValueError(
                f"a batch's places are {[str(tensor.dtype) for tensor in places]}, all are int32"
            )
        owned = tuple(tensor.contiguous() for tensor in places)
        owned = (*owned, flags, cos.contiguous(), sin.contiguous())
        native = _native.Batch(
            batch.num_tokens,
            batch.num_sequences,
            batch.block_table.shape[1],
            *(tensor.data_ptr() for tensor in owned),
        )
        kind = latent_format(cache_format)
        if kind.name not in _CACHES:
            raise ValueError(
                f"cache format {kind.name!r} has no kernel in backend 'cpu', allowed are "
                f"{', '.join(_CACHES)}"
            )
        return _Step(native, owned, kind)

    def attention(self, handle: Any, x: Tensor, step: _Step, cache: Tensor) -> None:
        """One call for the whole layer."""
        kind = step.cache
        self._kernels.attention(
            handle, step.native, _CACHES[kind.name], _token_bytes(handle, kind, cache),
            cache.data_ptr(), x.data_ptr(),
        )  # fmt: skip

    def stack(self, layers: Sequence[LayerHandles]) -> Any:
        """Kept by C++ in one list."""
        native = _native.Stack()
        for layer in layers:
            native.add(layer.attention, layer.feed)
        return _Stack(native, tuple(layers))

    def run(self, stack: Any, x: Tensor, step: _Step, caches: Sequence[Tensor]) -> None:
        """One call for all layers of a short step.

        Between the layers of a long one the interpreter sees to signals, such as of Ctrl+C.
        """
        if x.shape[0] > _SHORT:
            super().run(stack.layers, x, step, caches)
            return
        kind, pairs = step.cache, zip(stack.layers, caches, strict=True)
        widths = {_token_bytes(layer.attention, kind, cache) for layer, cache in pairs}
        [token_bytes] = widths
        self._kernels.run(
            stack.native, step.native, _CACHES[kind.name], token_bytes,
            [cache.data_ptr() for cache in caches], x.data_ptr(),
        )  # fmt: skip

    def mlp(self, handle: Any, x: Tensor) -> None:
        """One call for the whole layer."""
        self._kernels.mlp(handle, x.shape[0], x.data_ptr())

    def moe(self, handle: Any, x: Tensor) -> None:
        """One call for the whole layer."""
        self._kernels.moe(handle, x.shape[0], x.data_ptr())

    def linear(self, handle: Any, x: Tensor, norm: Tensor | None, eps: float) -> Tensor:
        """Norm and product in one call."""
        x = x.contiguous()
        out = torch.empty(x.shape[0], handle.rows)
        if x.shape[0]:
            self._kernels.linear(
                handle, _address(norm), eps, x.shape[0], x.data_ptr(), out.data_ptr()
            )
        return out

    def embed(self, handle: Any, ids: Tensor) -> Tensor:
        """Rows of the matrix, dequantised."""
        ids = ids.to(torch.int32).contiguous()
        out = torch.empty(ids.shape[0], handle.cols)
        self._kernels.gather(handle, ids.shape[0], ids.data_ptr(), out.data_ptr())
        return out

    def quantise(self, weight: Tensor, scheme: str) -> tuple[QuantTensor, Tensor]:
        """``weight`` ``[rows, columns]`` quantised, and the squared error of each row, fp64."""
        kind = SCHEMES[scheme]
        source = (weight if weight.dtype in _FORMATS else weight.float()).contiguous()
        rows, columns = source.shape
        if columns % kind.group:
            raise ValueError(f"{columns} columns, {scheme} needs a multiple of {kind.group}")
        done = QuantTensor(
            scheme,
            torch.empty(rows, columns * kind.bits // 8, dtype=torch.uint8),
            torch.empty(rows, columns // kind.group, dtype=torch.int8),
            torch.empty(rows),
        )
        errors = torch.empty(rows, dtype=torch.float64)
        self._kernels.quantise(
            _FORMATS[scheme], rows, columns, _FORMATS[source.dtype], source.data_ptr(),
            done.codes.data_ptr(), done.scales.data_ptr(), done.row_scales.data_ptr(),
            errors.data_ptr(),
        )  # fmt: skip
        return done, errors

    def probe_read(self, size: int = 2 << 30) -> float:
        """Bytes per second that the threads read from memory."""
        return self._kernels.probe_read(size)

    def probe_multiply(self, weights: str) -> float:
        """Operations per second of the dot product for a format, on registers alone."""
        code = _FORMATS[weights if weights in SCHEMES else getattr(torch, weights)]
        return self._kernels.probe_multiply(code, 3_000_000)


def _absorbed(batch: RaggedBatch, form: str) -> list[bool]:
    if form not in ("auto", "absorbed", "expanded"):
        raise ValueError(f"form {form!r} is unknown, allowed are auto, expanded, absorbed")
    lengths = batch.query_lengths()
    if form != "auto":
        return [form == "absorbed"] * len(lengths)
    if batch.generated is not None:
        return list(batch.generated)
    totals = batch.kv_len.tolist()
    return [new == 1 and total > 1 for new, total in zip(lengths, totals, strict=True)]


def _token_bytes(handle: _native.AttentionLayer, kind: LatentFormat, cache: Tensor) -> int:
    """Bytes of a token in a layer's cache, which C++ will index."""
    wanted = (BLOCK_SIZE, kind.width(handle.latent, handle.rope))
    if cache.dtype != kind.dtype or cache.shape[1:] != wanted or not cache.is_contiguous():
        raise ValueError(
            f"cache {cache.dtype} {tuple(cache.shape)}, {kind.name} is {kind.dtype} "
            f"[blocks, {wanted[0]}, {wanted[1]}], contiguous"
        )
    return wanted[1] * cache.element_size()


def _wide(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.float().contiguous()


def _checked_parts(weight: InterleavedTensor) -> tuple[Tensor, ...]:
    """Codes and scales, as C++ will index them."""
    wanted = interleaved_shapes(tuple(weight.shape), SCHEMES[weight.scheme])
    for name, (shape, dtype) in wanted.items():
        part = getattr(weight, name)
        if tuple(part.shape) != shape or part.dtype != dtype or not part.is_contiguous():
            raise ValueError(
                f"{name} of a weight {tuple(weight.shape)} in blocks is {part.dtype} "
                f"{tuple(part.shape)}, {dtype} {shape} is needed, contiguous"
            )
    return weight.codes, weight.scales, weight.row_scales


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


@implements("executor", "cpu", ("cpu",))
def cpu_executor(device: torch.device, threads: int | None, deterministic: bool) -> CpuExecutor:
    """The executor of backend ``cpu``, which is deterministic at no cost."""
    return CpuExecutor(threads)
