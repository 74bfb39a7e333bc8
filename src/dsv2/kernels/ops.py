"""THE CONTRACT: what each op of the model takes and returns, whoever computes it.

Letters: B batch, T tokens, S cached tokens, H heads, D hidden, N nope dim, R rope dim,
C latent dim, V value dim, E experts, K experts per token, F expert width, G groups,
M cache blocks per sequence, P blocks of the cache.

Each name of :class:`Ops` has one readable version in :mod:`dsv2.kernels.reference`; a backend adds
its own with ``@implements(name, backend)``. The model calls the two composites,
``attention_block`` and ``moe_block``; their reference is a composition of the fine ops.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from dsv2.ragged import RaggedBatch


@dataclass(frozen=True)
class AttentionWeights:
    """The parameters of one attention layer, stored ``[out, in]`` as published.

    Queries come either from ``wq`` ``[H(N+R), D]`` or, compressed (equations 12-13), from ``wq_a``
    ``[C', D]``, ``q_norm`` ``[C']`` and ``wq_b`` ``[H(N+R), C']``.

    Attributes:
        wkv_a: ``[C+R, D]``, W^DKV above W^KR (equations 9 and 15).
        kv_norm: ``[C]``.
        wkv_b: ``[H(N+V), C]``, per head W^UK above W^UV (equations 10 and 11).
        wo: ``[D, HV]`` (equation 19).
    """

    wkv_a: Tensor
    kv_norm: Tensor
    wkv_b: Tensor
    wo: Tensor
    wq: Tensor | None = None
    wq_a: Tensor | None = None
    q_norm: Tensor | None = None
    wq_b: Tensor | None = None


@dataclass(frozen=True)
class AttentionShape:
    """The sizes and constants that the weights alone do not tell.

    Attributes:
        heads: H.
        nope: N, width of the position-free part of a query or key.
        rope: R, width of the rotated part.
        value: V.
        scale: softmax scale, 1/sqrt(N+R) times YaRN's mscale squared.
        eps: epsilon of the latent norms.
        form: ``expanded``, ``absorbed`` or ``auto``: see :func:`Ops.attention_block`.
    """

    heads: int
    nope: int
    rope: int
    value: int
    scale: float
    eps: float
    form: str = "auto"


@dataclass(frozen=True)
class MlpWeights:
    """SwiGLU: ``w_gate`` and ``w_up`` ``[F, D]``, ``w_down`` ``[D, F]``."""

    w_gate: Tensor
    w_up: Tensor
    w_down: Tensor


@dataclass(frozen=True)
class ExpertWeights:
    """Routed experts: ``w_gate`` and ``w_up`` ``[E, F, D]``, ``w_down`` ``[E, D, F]``."""

    w_gate: Tensor
    w_up: Tensor
    w_down: Tensor


@dataclass(frozen=True)
class AdamWFactors:
    """The constants of an update: learning rate, decays of both moments, epsilon, weight decay."""

    rate: float
    beta1: float
    beta2: float
    eps: float
    decay: float


class Ops(Protocol):
    """Every op with its shapes. dtypes: activations and weights share one dtype, norms, softmax
    and mixing compute in fp32 and return the activations' dtype."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """``x`` ``[.., D]``, ``weight`` ``[D]``: x / sqrt(mean(x^2) + eps), cast, times weight."""
        ...

    def greedy_tokens(self, logits: Tensor) -> Tensor:
        """The first largest of each row of ``logits`` ``[L, V]`` fp32: ``[L]`` int64; -1 for a row
        with a number that is not finite."""
        ...

    def rope(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotate neighbouring pairs of ``x`` ``[T, .., R]`` by ``cos``/``sin`` ``[T, R/2]``."""
        ...

    def write_latent(self, cache: Tensor, slots: Tensor, latent: Tensor) -> None:
        """Write ``latent`` ``[T, C+R]`` at ``slots`` ``[T]`` of ``cache`` ``[P, 64, C+R]``."""
        ...

    def attend_expanded(
        self, q: Tensor, k: Tensor, v: Tensor, q_lens: tuple[int, ...], kv_lens: tuple[int, ...],
        scale: float,
    ) -> Tensor:  # fmt: skip
        """Causal attention within each sequence (equation 18).

        ``q`` ``[T, H, N+R]``, ``k`` ``[S, H, N+R]``, ``v`` ``[S, H, V]`` -> ``[T, H, V]``. The last
        query of a sequence sees all its keys, the one before all but the last, and so on.
        """
        ...

    def attend_absorbed(
        self, q_latent: Tensor, q_rope: Tensor, cache: Tensor, block_table: Tensor,
        kv_len: Tensor, q_lens: tuple[int, ...], scale: float,
    ) -> Tensor:  # fmt: skip
        """Attention on the paged latent itself (report, appendix C).

        ``q_latent`` ``[T, H, C]``, ``q_rope`` ``[T, H, R]``, ``cache`` ``[P, 64, C+R]``,
        ``block_table`` ``[B, M]``, ``kv_len`` ``[B]`` -> ``[T, H, C]``.
        """
        ...

    def mlp(self, x: Tensor, weights: MlpWeights) -> Tensor:
        """SwiGLU on ``x`` ``[T, D]``: down(silu(gate(x)) * up(x))."""
        ...

    def experts(self, x: Tensor, ids: Tensor, weights: Tensor, experts: ExpertWeights) -> Tensor:
        """Sum of the chosen experts (equation 20).

        ``x`` ``[T, D]``, ``ids`` ``[T, K]`` integer, ``weights`` ``[T, K]`` fp32 -> ``[T, D]``.
        A weight of zero takes the expert out. The sum over K is in fp32 and in K's order.
        """
        ...

    def linear_cross_entropy(
        self, hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor
    ) -> Tensor:
        """Weighted sum of negative log-likelihoods in fp32, a scalar.

        ``hidden`` ``[T, D]``, ``weight`` ``[vocabulary, D]``, ``targets`` ``[T]`` integer,
        ``weights`` ``[T]`` fp32; a weight of zero leaves its row out.
        """
        ...

    def adamw(
        self, weight: Tensor, master: Tensor, gradient: Tensor, mean: Tensor, square: Tensor,
        factors: AdamWFactors, step: int, scale: Tensor,
    ) -> None:  # fmt: skip
        """One update of AdamW with decoupled decay, in place.

        ``master``, ``mean`` and ``square`` are fp32 and of ``weight``'s shape; ``gradient`` of any
        floating dtype is multiplied by the fp32 scalar ``scale`` first. ``weight`` becomes
        ``master`` in its own dtype. ``step`` counts this update, from 1.
        """
        ...

    def attention_block(
        self, x: Tensor, weights: AttentionWeights, shape: AttentionShape, cos: Tensor,
        sin: Tensor, batch: RaggedBatch, cache: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """One attention layer without its outer norm: ``x`` ``[T, D]`` -> ``[T, D]``.

        ``expanded`` builds keys and values from the latent: fit for many queries over few keys.
        ``absorbed`` folds W^UK into the query and W^UV into the output, and reads only the latent:
        fit for decode. ``auto`` takes absorbed for generated tokens and expanded for prompts,
        however they are batched; see :class:`RaggedBatch`.
        """
        ...

    def moe_block(
        self, x: Tensor, ids: Tensor, weights: Tensor, experts: ExpertWeights,
        shared: MlpWeights | None,
    ) -> Tensor:  # fmt: skip
        """Routed experts plus shared experts on ``x`` ``[T, D]`` -> ``[T, D]``."""
        ...
