"""Keeping experts and devices evenly busy (report, sections 2.2.3 and 2.2.4).

A strategy turns the routing of a layer into a loss and, where it drops tokens, new weights. The
losses are means over sequences of the paper's per-sequence sums, so each equals its alpha when the
load is perfectly even. A strategy that is asked for and has nothing to weigh is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from dsv2.model.router import Routing
from dsv2.shapes import check

Alpha = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class BalanceConfig(BaseModel):
    """Which strategy, and its coefficients; the defaults of ``device`` are V2's.

    Attributes:
        strategy: a key of :data:`BALANCE`.
        alpha_expert: alpha 1 of equation 23; V2 0.003, V2-Lite 0.001.
        alpha_device: alpha 2 of equation 26; V2 0.05.
        alpha_comm: alpha 3 of equation 29; V2 0.02.
        num_devices: D, devices that share the experts of a layer in equal, contiguous parts.
        device_limit: M, devices a token may be sent to.
        capacity_factor: budget of a device relative to the mean load; None drops nothing.
        protected_fraction: share of sequences whose tokens are never dropped.
        bias_speed: step of the selection bias, for ``bias``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    strategy: Literal["none", "expert", "device", "bias"] = "expert"
    alpha_expert: Alpha = 0.003
    alpha_device: Alpha = 0.05
    alpha_comm: Alpha = 0.02
    num_devices: Annotated[int, Field(ge=1)] = 8
    device_limit: Annotated[int, Field(ge=1)] = 3
    capacity_factor: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    protected_fraction: Annotated[float, Field(ge=0, le=1)] = 0.1
    bias_speed: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.001

    @model_validator(mode="after")
    def _promised(self) -> BalanceConfig:
        needed: dict[str, tuple[str, ...]] = {
            "expert": ("alpha_expert",),
            "device": ("alpha_expert", "alpha_device", "alpha_comm"),
        }
        for name in needed.get(self.strategy, ()):
            if getattr(self, name) == 0:
                raise ValueError(
                    f"{name} is 0, but strategy {self.strategy!r} balances by it; "
                    "allowed is a positive number, or strategy 'none'"
                )
        return self


@dataclass(frozen=True)
class Segments:
    """The sequences that balance is measured over, as rows of the batch.

    Attributes:
        index: ``[T]`` int64, the sequence of each token.
        lengths: ``[B]`` fp32, tokens of each sequence.
    """

    index: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device | str = "cpu") -> Segments:
        """Sequences of these lengths, one after another."""
        sizes = torch.tensor(list(lengths))
        index = torch.repeat_interleave(torch.arange(len(lengths)), sizes)
        return cls(index=index.to(device), lengths=sizes.float().to(device))


@dataclass(frozen=True)
class Balanced:
    """What a strategy makes of a layer's routing.

    Attributes:
        loss: scalar fp32 to add to the language-model loss.
        terms: the loss's parts by name, detached.
        routing: the routing with dropped assignments at weight zero.
        dropped: scalar int64, assignments dropped.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    routing: Routing
    dropped: Tensor


def _frequencies(routing: Routing, segments: Segments) -> tuple[Tensor, Tensor]:
    """f ``[B, E]`` (equation 24) and P ``[B, E]`` (equation 25) of each sequence."""
    check((routing.scores, "T E"), (routing.ids, "T K"), (segments.index, "T"))
    experts, per_token = routing.scores.shape[1], routing.ids.shape[1]
    shape = (segments.lengths.shape[0], experts)
    lengths = segments.lengths.unsqueeze(1)
    where = segments.index.unsqueeze(1) * experts + routing.ids  # T K
    counts = torch.bincount(where.flatten(), minlength=shape[0] * experts).view(shape)
    sums = routing.scores.new_zeros(shape).index_add(0, segments.index, routing.scores)
    return counts.float() * experts / (per_token * lengths), sums / lengths


def expert_loss(routing: Routing, segments: Segments, alpha: float) -> Tensor:
    """Expert-level balance, alpha * sum_i f_i P_i (equation 23), mean over sequences."""
    f, p = _frequencies(routing, segments)
    return alpha * (f * p).sum(1).mean()


def device_loss(routing: Routing, segments: Segments, alpha: float, num_devices: int) -> Tensor:
    """Device-level balance, alpha * sum_i f'_i P'_i (equations 26-28), mean over sequences."""
    f, p = _frequencies(routing, segments)
    f_device = f.unflatten(1, (num_devices, -1)).mean(2)  # B devices
    p_device = p.unflatten(1, (num_devices, -1)).sum(2)
    return alpha * (f_device * p_device).sum(1).mean()


def communication_loss(
    routing: Routing, segments: Segments, alpha: float, num_devices: int, device_limit: int
) -> Tensor:
    """Communication balance, alpha * sum_i f''_i P''_i (equations 29-31), mean over sequences."""
    _, p = _frequencies(routing, segments)
    p_device = p.unflatten(1, (num_devices, -1)).sum(2)  # B devices
    per_device = routing.scores.shape[1] // num_devices
    sent = torch.zeros(routing.ids.shape[0], num_devices, device=routing.ids.device)
    sent.scatter_(1, routing.ids // per_device, 1.0)  # T devices: 1 where the token is sent
    counts = torch.zeros_like(p_device).index_add(0, segments.index, sent)
    f_device = counts * num_devices / (device_limit * segments.lengths.unsqueeze(1))
    return alpha * (f_device * p_device).sum(1).mean()


def keep_within_capacity(
    routing: Routing, segments: Segments, num_devices: int, capacity_factor: float,
    protected: Tensor,
) -> Tensor:  # fmt: skip
    """Device-level token dropping (section 2.2.4): ``[T, K]`` bool, which assignments stay.

    Each device may compute ``capacity_factor`` times the mean number of assignments. On a device
    over that budget those with the lowest affinity go first. Assignments of the ``protected``
    ``[B]`` sequences always stay and count towards the budget.
    """
    tokens, per_token = routing.ids.shape
    per_device = routing.scores.shape[1] // num_devices
    budget = int(capacity_factor * tokens * per_token / num_devices)
    device = (routing.ids // per_device).flatten()  # TK
    affinity = routing.scores.detach().gather(1, routing.ids)
    safe = protected[segments.index].unsqueeze(1).expand_as(affinity).flatten()
    rank = affinity.flatten().masked_fill(safe, torch.inf)
    order = rank.argsort(descending=True, stable=True)
    order = order[device[order].argsort(stable=True)]  # by device, then by falling affinity
    counts = torch.bincount(device, minlength=num_devices)
    starts = counts.cumsum(0) - counts
    place = torch.arange(order.shape[0], device=order.device) - starts[device[order]]
    keep = torch.empty_like(safe)
    keep[order] = place < budget
    return (keep | safe).view(tokens, per_token)


Strategy = Callable[[Routing, Segments, BalanceConfig, Tensor], Balanced]


def _plain(routing: Routing, loss: Tensor, terms: dict[str, Tensor]) -> Balanced:
    detached = {name: value.detach() for name, value in terms.items()}
    return Balanced(loss, detached, routing, torch.zeros((), dtype=torch.int64))


def balance_none(
    routing: Routing, segments: Segments, config: BalanceConfig, protected: Tensor
) -> Balanced:
    """No loss and no dropping; also the loss-free half of ``bias``."""
    return _plain(routing, routing.scores.new_zeros(()), {})


def balance_expert(
    routing: Routing, segments: Segments, config: BalanceConfig, protected: Tensor
) -> Balanced:
    """V2-Lite: the expert-level loss alone (report, appendix B)."""
    loss = expert_loss(routing, segments, config.alpha_expert)
    return _plain(routing, loss, {"expert": loss})


def balance_device(
    routing: Routing, segments: Segments, config: BalanceConfig, protected: Tensor
) -> Balanced:
    """V2: the three losses, and token dropping where a capacity is set."""
    devices = config.num_devices
    if routing.scores.shape[1] % devices:
        raise ValueError(
            f"num_devices {devices} must divide the {routing.scores.shape[1]} routed experts"
        )
    terms = {
        "expert": expert_loss(routing, segments, config.alpha_expert),
        "device": device_loss(routing, segments, config.alpha_device, devices),
        "comm": communication_loss(
            routing, segments, config.alpha_comm, devices, config.device_limit
        ),
    }
    balanced = _plain(routing, torch.stack(list(terms.values())).sum(), terms)
    if config.capacity_factor is None:
        return balanced
    keep = keep_within_capacity(routing, segments, devices, config.capacity_factor, protected)
    kept = replace(routing, weights=routing.weights * keep)
    return replace(balanced, routing=kept, dropped=(~keep).sum())


BALANCE: dict[str, Strategy] = {
    "none": balance_none,
    "expert": balance_expert,
    "device": balance_device,
    "bias": balance_none,
}
"""Every strategy by name. ``bias`` has no loss: :func:`step_bias` moves the selection bias."""


@dataclass(frozen=True)
class Balance:
    """A strategy ready for a batch: passed to the model, applied in each MoE layer.

    Attributes:
        config: the strategy and its coefficients.
        segments: the sequences of the batch.
        protected: ``[B]`` bool, sequences that dropping leaves whole.
    """

    config: BalanceConfig
    segments: Segments
    protected: Tensor

    @classmethod
    def for_rows(
        cls, config: BalanceConfig, lengths: Sequence[int], device: torch.device | str = "cpu"
    ) -> Balance:
        """Balance over sequences of these lengths; evenly spread ones are protected."""
        share = config.protected_fraction
        # Sequence b is protected when the running count floor((b+1)*share) grows: exact for
        # every prefix, and the same whenever the batch is computed again.
        flags = [int((b + 1) * share) > int(b * share) for b in range(len(lengths))]
        return cls(config, Segments.of(lengths, device), torch.tensor(flags, device=device))

    def __call__(self, routing: Routing) -> Balanced:
        """Apply the strategy to one layer's routing."""
        return BALANCE[self.config.strategy](routing, self.segments, self.config, self.protected)


def step_bias(bias: Tensor, counts: Tensor, speed: float) -> Tensor:
    """The next selection bias ``[E]``: up for experts under the mean load, down for those over."""
    check((bias, "E"), (counts, "E"))
    load = counts.float()
    return bias + speed * torch.sign(load.mean() - load).to(bias.dtype)
