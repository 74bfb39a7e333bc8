"""DeepSeekMoE (report, section 2.2) and the dense feed-forward layers beside it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsv2.kernels.ops import ExpertWeights, MlpWeights
from dsv2.kernels.registry import select
from dsv2.model.balance import Balance
from dsv2.model.config import ModelConfig, RouterConfig
from dsv2.model.mla import parameter
from dsv2.model.router import Routing, route


@dataclass(frozen=True)
class LayerStats:
    """What routing did in one MoE layer.

    Attributes:
        counts: ``[E]`` int64 tokens each expert was chosen for, dropped ones included.
        loss: scalar balance loss, or None when no strategy was given.
        terms: the loss's parts by name.
        dropped: scalar int64, assignments dropped.
    """

    counts: Tensor
    loss: Tensor | None = None
    terms: dict[str, Tensor] | None = None
    dropped: Tensor | None = None


class Mlp(nn.Module):
    """SwiGLU of one width: a dense layer, or the shared experts as one."""

    def __init__(self, hidden: int, width: int, backend: str) -> None:
        super().__init__()
        self.backend = backend
        self.w_gate = parameter(width, hidden)
        self.w_up = parameter(width, hidden)
        self.w_down = parameter(hidden, width)

    def weights(self) -> MlpWeights:
        """The parameters as the ops take them."""
        return MlpWeights(self.w_gate, self.w_up, self.w_down)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` ``[T, D]`` -> ``[T, D]``."""
        out: Tensor = select("mlp", self.backend, x.device.type)(x, self.weights())
        return out


class Experts(nn.Module):
    """The routed experts of a layer, stacked: ``[E, F, D]``, ``[E, F, D]``, ``[E, D, F]``."""

    def __init__(self, count: int, hidden: int, width: int) -> None:
        super().__init__()
        self.w_gate = parameter(count, width, hidden)
        self.w_up = parameter(count, width, hidden)
        self.w_down = parameter(count, hidden, width)

    def weights(self) -> ExpertWeights:
        """The parameters as the ops take them."""
        return ExpertWeights(self.w_gate, self.w_up, self.w_down)


class MoE(nn.Module):
    """Shared experts that every token meets and routed ones of which it meets K."""

    shared: Mlp | None
    router_bias: nn.Parameter | None

    def __init__(self, config: ModelConfig, backend: str) -> None:
        super().__init__()
        assert config.n_routed_experts is not None and config.moe_intermediate_size is not None
        self.routing: RouterConfig = config.router
        self.backend = backend
        hidden, width = config.hidden_size, config.moe_intermediate_size
        self.router = parameter(config.n_routed_experts, hidden)
        self.router_bias = (
            nn.Parameter(torch.empty(config.n_routed_experts), requires_grad=False)
            if self.routing.selection_bias
            else None
        )
        self.experts = Experts(config.n_routed_experts, hidden, width)
        self.shared = (
            Mlp(hidden, config.num_shared_experts * width, backend)
            if config.num_shared_experts
            else None
        )

    def route(self, x: Tensor, balance: Balance | None) -> tuple[Routing, LayerStats]:
        """Where the tokens of the normed ``x`` ``[T, D]`` go, computed in fp32, and the stats."""
        routing = route(F.linear(x.float(), self.router.float()), self.routing, self.router_bias)
        # Not bincount, which waits for a GPU.
        every = torch.arange(self.routing.num_experts, device=x.device)
        counts = (routing.ids.flatten().unsqueeze(1) == every).sum(0)
        if balance is None:
            return routing, LayerStats(counts=counts)
        balanced = balance(routing)
        stats = LayerStats(counts, balanced.loss, balanced.terms, balanced.dropped)
        return balanced.routing, stats

    def forward(self, x: Tensor, balance: Balance | None) -> tuple[Tensor, LayerStats]:
        """``x`` ``[T, D]`` -> ``[T, D]`` and what routing did; routing and mixing are in fp32."""
        routing, stats = self.route(x, balance)
        block = select("moe_block", self.backend, x.device.type)
        shared = None if self.shared is None else self.shared.weights()
        out: Tensor = block(x, routing.ids, routing.weights, self.experts.weights(), shared)
        return out, stats
