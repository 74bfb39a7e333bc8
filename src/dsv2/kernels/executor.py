"""THE CONTRACT for inference: whole layers on weights that were packed once.

An executor packs portable weights into whatever its kernels read fastest and then runs layers on
them, each in one call: norm, layer and residual, in place on the fp32 residual stream. Letters as
in :mod:`dsv2.kernels.ops`. ``reference`` composes the readable ops; ``cpu`` is C++.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from dsv2.kernels.formats import QuantTensor
from dsv2.kernels.interleaved import StoredWeight
from dsv2.kernels.ops import AttentionShape
from dsv2.kernels.registry import select
from dsv2.ragged import PlannedDecode, RaggedBatch

W = TypeVar("W", bound=StoredWeight, covariant=True)


@dataclass(frozen=True)
class AttentionLayer:
    """An attention layer with its outer norm; fields as :class:`dsv2.kernels.ops.AttentionWeights`.

    Attributes:
        norm: ``[D]`` weight of the norm before the layer.
        eps: of that norm.
        shape: sizes and constants.
    """

    norm: Tensor
    eps: float
    shape: AttentionShape
    wkv_a: StoredWeight
    kv_norm: Tensor
    wkv_b: StoredWeight
    wo: StoredWeight
    wq: StoredWeight | None = None
    wq_a: StoredWeight | None = None
    q_norm: Tensor | None = None
    wq_b: StoredWeight | None = None


@dataclass(frozen=True)
class Mlp(Generic[W]):
    """SwiGLU matrices ``[F, D]``, ``[F, D]``, ``[D, F]``, or a stack of E of them."""

    w_gate: W
    w_up: W
    w_down: W


@dataclass(frozen=True)
class MlpLayer:
    """A dense feed-forward layer with its outer norm ``[D]``."""

    norm: Tensor
    eps: float
    mlp: Mlp[StoredWeight]


@dataclass(frozen=True)
class RoutingShape:
    """The choices of a router; see :class:`dsv2.model.config.RouterConfig`."""

    num_experts: int
    num_experts_per_tok: int
    num_groups: int
    topk_group: int
    score: str
    group_score: str
    normalise: bool
    scale: float


@dataclass(frozen=True)
class MoeLayer:
    """A DeepSeekMoE layer with its outer norm.

    Attributes:
        norm: ``[D]``.
        eps: of the norm.
        routing: how experts are chosen.
        router: ``[E, D]``.
        router_bias: ``[E]`` fp32, added for selection only, or None.
        experts: stacks of E.
        shared: the shared experts as one, or None.
    """

    norm: Tensor
    eps: float
    routing: RoutingShape
    router: Tensor
    router_bias: Tensor | None
    experts: Mlp[StoredWeight]
    shared: Mlp[StoredWeight] | None


class LayerHandles(NamedTuple):
    """A layer of a model: its attention, its feed-forward, and whether that is DeepSeekMoE."""

    attention: Any
    feed: Any
    is_moe: bool


class Executor(Protocol):
    """Packs and runs layers; ``x`` is ``[T, D]`` fp32, contiguous, and changed in place."""

    @property
    def description(self) -> str:
        """What computes, for people: the backend and what it chose for this machine."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it computes; every tensor of a step lies there."""
        ...

    @property
    def is_capturable(self) -> bool:
        """Whether a CUDA graph may hold a step of generated tokens."""
        ...

    def plan_decode(
        self, handle: Any, cache: Tensor, cache_format: str, rows: int, width: int
    ) -> PlannedDecode | None:
        """What attends faster than the executor's own kernel in captured steps of one shape.

        Args:
            handle: of an attention layer, which speaks for all of them.
            cache: of a layer, ``[P, 64, width]``.
            cache_format: a name of :data:`dsv2.kernels.latent.LATENT_FORMATS`.
            rows: sequences of a step.
            width: of its block table.

        Returns:
            For :attr:`dsv2.ragged.RaggedBatch.decode`; None where the own kernel is the best.
        """
        ...

    def check(self, layer: AttentionLayer) -> None:
        """Raise ValueError where the layer's sizes are beyond this executor."""
        ...

    def pack_attention(self, layer: AttentionLayer) -> Any:
        """An attention layer's handle."""
        ...

    def pack_mlp(self, layer: MlpLayer) -> Any:
        """A dense layer's handle."""
        ...

    def pack_moe(self, layer: MoeLayer) -> Any:
        """A DeepSeekMoE layer's handle."""
        ...

    def pack_linear(self, weight: StoredWeight) -> Any:
        """The handle of a matrix ``[rows, D]``, for :meth:`linear` and :meth:`embed`."""
        ...

    def quantise(self, weight: Tensor, scheme: str) -> tuple[QuantTensor, Tensor]:
        """``weight`` ``[rows, columns]`` in a scheme, and each row's squared error ``[rows]``."""
        ...

    def begin(
        self, batch: RaggedBatch, cos: Tensor, sin: Tensor, form: str, cache_format: str
    ) -> Any:
        """What all layers of a step share.

        Args:
            batch: the tokens and where their latents lie.
            cos: ``[T, R/2]`` fp32, and ``sin`` alike.
            sin: see ``cos``.
            form: ``auto``, ``absorbed`` or ``expanded`` attention.
            cache_format: a name of :data:`dsv2.kernels.latent.LATENT_FORMATS`.
        """
        ...

    def attention(self, handle: Any, x: Tensor, step: Any, cache: Tensor) -> None:
        """``x += attention(norm(x))``; the new latents go to ``cache`` ``[P, 64, width]``.

        ``width`` and the dtype are those of the step's cache format. What attention reads is what
        the cache holds, also for the tokens of this batch.
        """
        ...

    def mlp(self, handle: Any, x: Tensor) -> None:
        """``x += mlp(norm(x))``."""
        ...

    def moe(self, handle: Any, x: Tensor) -> None:
        """``x += moe(norm(x))``."""
        ...

    def stack(self, layers: Sequence[LayerHandles]) -> Any:
        """A model's layers in order as one handle, for :meth:`run`."""
        ...

    def run(self, stack: Any, x: Tensor, step: Any, caches: Sequence[Tensor]) -> None:
        """All layers of a stack in turn; ``caches`` has each one's."""
        ...

    def linear(self, handle: Any, x: Tensor, norm: Tensor | None, eps: float) -> Tensor:
        """``norm(x) w^T`` ``[T, rows]`` fp32, without the norm when it is None."""
        ...

    def embed(self, handle: Any, ids: Tensor) -> Tensor:
        """Rows of the matrix by ``ids`` ``[T]`` int32, ``[T, D]`` fp32."""
        ...


class LayerByLayer:
    """:meth:`Executor.stack` and :meth:`Executor.run` from the calls of single layers."""

    def stack(self, layers: Sequence[LayerHandles]) -> tuple[LayerHandles, ...]:
        """The layers as they are."""
        return tuple(layers)

    def run(
        self: Executor, stack: Sequence[LayerHandles], x: Tensor, step: Any,
        caches: Sequence[Tensor],
    ) -> None:  # fmt: skip
        """Attention and feed-forward of each."""
        for layer, cache in zip(stack, caches, strict=True):
            self.attention(layer.attention, x, step, cache)
            if layer.is_moe:
                self.moe(layer.feed, x)
            else:
                self.mlp(layer.feed, x)


def make_executor(
    backend: str, device: torch.device | str, threads: int | None = None,
    *, deterministic: bool = True,
) -> Executor:  # fmt: skip
    """The executor of a backend.

    Args:
        backend: a name of the registry, or ``auto``.
        device: that computes.
        threads: that compute on a CPU; None for one per core this process may use.
        deterministic: a row's bits depend on its own tokens alone, whatever is computed with it.
            ``cpu`` and ``reference`` always are; on a GPU it costs speed.

    Raises:
        BackendError: the backend is unknown or has no executor for the device.
    """
    place = torch.device(device)
    made: Executor = select("executor", backend, place.type)(place, threads, deterministic)
    return made
