"""Routed experts in the host's memory, for models larger than the device's.

Two executors share a model: one has everything on a device, the other computes the routed experts
of some layers where they lie. Per such layer ``[T, D]`` fp32 cross each way, 8 D bytes per token
against the 6 D F bytes of one bf16 expert. The device multiplies the shared experts meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dsv2.kernels.executor import AttentionLayer, Executor, LayerByLayer, MlpLayer, MoeLayer
from dsv2.kernels.formats import QuantTensor
from dsv2.kernels.interleaved import StoredWeight
from dsv2.ragged import PlannedDecode, RaggedBatch


@dataclass(frozen=True)
class _Split:
    """A DeepSeekMoE layer: norm, router and experts on the host, shared experts on the device."""

    routed: Any
    shared: Any | None


@dataclass(frozen=True)
class _Whole:
    handle: Any


class OffloadExecutor(LayerByLayer):
    """See :class:`dsv2.kernels.executor.Executor`.

    Args:
        device: has all layers but the experts of some.
        host: computes those, on CPU tensors.
        host_layers: so many DeepSeekMoE layers, the first to be packed, have their experts there.

    Raises:
        ValueError: ``host_layers`` is negative.
    """

    def __init__(self, device: Executor, host: Executor, host_layers: int) -> None:
        if host_layers < 0:
            raise ValueError(f"host_layers is {host_layers}, allowed is at least 0")
        self._device, self._host = device, host
        self._wanted, self._left = host_layers, host_layers

    @property
    def device(self) -> torch.device:
        """The device's, where every tensor of a step lies."""
        return self._device.device

    @property
    def is_capturable(self) -> bool:
        """Only with nothing on the host, which is waited for."""
        return self._device.is_capturable and not self._wanted

    @property
    def description(self) -> str:
        """Both executors."""
        layers = f"{self._wanted} layers' experts on {self._host.description}"
        return f"{self._device.description}, {layers}"

    def plan_decode(
        self, handle: Any, cache: Tensor, cache_format: str, rows: int, width: int
    ) -> PlannedDecode | None:
        """The device's."""
        return self._device.plan_decode(handle, cache, cache_format, rows, width)

    def check(self, layer: AttentionLayer) -> None:
        """The device's limits."""
        self._device.check(layer)

    def pack_attention(self, layer: AttentionLayer) -> Any:
        """On the device."""
        return self._device.pack_attention(layer)

    def pack_mlp(self, layer: MlpLayer) -> Any:
        """On the device."""
        return self._device.pack_mlp(layer)

    def pack_moe(self, layer: MoeLayer) -> _Split | _Whole:
        """On the host until it has its layers."""
        if not self._left:
            return _Whole(self._device.pack_moe(layer))
        self._left -= 1
        shared = None
        if layer.shared is not None:
            shared = self._device.pack_mlp(MlpLayer(layer.norm, layer.eps, layer.shared))
        return _Split(self._host.pack_moe(replace(layer, shared=None)), shared)

    def pack_linear(self, weight: StoredWeight) -> Any:
        """On the device."""
        return self._device.pack_linear(weight)

    def quantise(self, weight: Tensor, scheme: str) -> tuple[QuantTensor, Tensor]:
        """On the host, where checkpoints are read to."""
        return self._host.quantise(weight, scheme)

    def begin(
        self, batch: RaggedBatch, cos: Tensor, sin: Tensor, form: str, cache_format: str
    ) -> Any:
        """The device's step."""
        return self._device.begin(batch, cos, sin, form, cache_format)

    def attention(self, handle: Any, x: Tensor, step: Any, cache: Tensor) -> None:
        """On the device."""
        self._device.attention(handle, x, step, cache)

    def mlp(self, handle: Any, x: Tensor) -> None:
        """On the device."""
        self._device.mlp(handle, x)

    def moe(self, handle: _Split | _Whole, x: Tensor) -> None:
        """Routed experts on the host, while the device has the shared ones.

        The host is waited for, so a CUDA graph cannot hold a split layer.
        """
        if isinstance(handle, _Whole):
            self._device.moe(handle.handle, x)
            return
        host, ready = _to_host(x)
        shared = None
        if handle.shared is not None:
            shared = x.clone()
            self._device.mlp(handle.shared, shared)
            shared -= x
        if ready is not None:
            ready.synchronize()  # of the copy alone: the shared experts are still under way
        self._host.moe(handle.routed, host)
        x.copy_(host, non_blocking=True)
        if shared is not None:
            x += shared

    def linear(self, handle: Any, x: Tensor, norm: Tensor | None, eps: float) -> Tensor:
        """On the device."""
        return self._device.linear(handle, x, norm, eps)

    def embed(self, handle: Any, ids: Tensor) -> Tensor:
        """On the device."""
        return self._device.embed(handle, ids)


def _to_host(x: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """A copy of ``x`` in the host's memory, and what says that it is there."""
    if not x.is_cuda:
        return x.clone(), None
    # Pinned memory is kept by torch's allocator: this asks the system only the first time.
    host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    host.copy_(x, non_blocking=True)
    with torch.cuda.device(x.device):
        ready = torch.cuda.Event()
        ready.record()
    return host, ready
