"""The language-model loss of a packed batch."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dsv2.kernels.registry import select
from dsv2.model.balance import Balance
from dsv2.model.transformer import ForwardStats, Transformer
from dsv2.ragged import RaggedBatch


@dataclass(frozen=True)
class LossParts:
    """What a forward under a loss yields.

    Attributes:
        nll: scalar fp32, sum of the negative log-likelihoods in nats.
        balance: scalar fp32 balance loss summed over layers, or None without a strategy.
        stats: what routing did.
    """

    nll: Tensor
    balance: Tensor | None
    stats: ForwardStats


def next_token_loss(
    model: Transformer, batch: RaggedBatch, targets: Tensor, balance: Balance | None = None
) -> LossParts:
    """Sum of next-token losses over ``targets`` ``[T]``; a negative target is left out."""
    hidden, stats = model.hidden(batch, balance=balance)
    weight = model.embed if model.head is None else model.head
    counted = targets >= 0
    op = select("linear_cross_entropy", model.backend, hidden.device.type)
    nll = op(hidden, weight, targets.clamp_min(0), counted.float())
    return LossParts(nll=nll, balance=stats.balance_loss, stats=stats)
