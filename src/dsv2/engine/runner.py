"""Runs the model over a step's batch, with the cache it owns, and chooses the next tokens."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from dsv2.engine.batch import build_batch, feed, sources
from dsv2.engine.cache import allocate_cache
from dsv2.engine.graphs import Capture, CudaCapture, DecodeGraphs
from dsv2.engine.sampler import Picks, is_plain, pick
from dsv2.engine.sequence import Sequence, Work
from dsv2.engine.transfer import Arrival, to_device
from dsv2.kernels.registry import select
from dsv2.model.packed import PackedModel
from dsv2.model.transformer import Transformer
from dsv2.ragged import RaggedBatch


@dataclass(frozen=True)
class Launch:
    """A step that computes, or has computed.

    Attributes:
        counts: for each work of the plan at how many positions a token is to be chosen.
        picks: the first choice of each sequence that has one, in the plan's order.
        hidden: ``[T, D]`` last hidden states, or None of a captured step.
        logits: ``[L, vocabulary]`` fp32 of all those positions, until the next step is launched.
        is_decode: of the plan; see :func:`is_decode`.
        chunks: for each work without a choice whether its last hidden state, of a token that has
            attended to all before it, is finite; None where there is no such work.
    """

    counts: tuple[int, ...]
    picks: Picks
    hidden: Tensor | None
    logits: Tensor
    is_decode: bool
    chunks: Arrival | None = None

    def broken(self) -> list[int]:
        """The works without a choice that left numbers in the cache that are not finite."""
        if self.chunks is None:
            return []
        silent = [place for place, count in enumerate(self.counts) if not count]
        finite = self.chunks.take().tolist()
        return [place for place, good in zip(silent, finite, strict=True) if not good]


def is_decode(works: Rows[Work]) -> bool:
    """Whether a plan is nothing but single generated tokens, each followed by a choice."""
    return all(
        work.count == 1 and work.num_choices == 1 and work.sequence.in_answer for work in works
    )


class Runner:
    """A model and ``num_blocks`` blocks of latent cache in the format that it asks for.

    Args:
        model: on one device.
        num_blocks: that sequences may use.
        capture: captures the steps of single generated tokens; None for CUDA graphs where the
            model is packed and on a GPU, and for no captures elsewhere.

    Attributes:
        is_asynchronous: whether :meth:`launch` returns before the step is computed.
    """

    def __init__(
        self, model: Transformer | PackedModel, num_blocks: int, capture: Capture | None = None
    ) -> None:
        self.model = model
        self.device = model.device
        self.is_asynchronous = self.device.type == "cuda"
        if isinstance(model, Transformer):
            select("attention_block", model.backend, self.device.type)  # Unavailable? Say so now.
        elif capture is None and model.executor.is_capturable:
            capture = CudaCapture(self.device)
        # The rows that pad a captured step write to a block of their own.
        spare = 0 if capture is None else 1
        self._cache = allocate_cache(
            model.config, num_blocks + spare, model.cache_format, self.device
        )
        self._graphs: DecodeGraphs | None = None
        if capture is not None:
            plan: dict[str, Any] = {}
            if isinstance(model, PackedModel):
                plan = {"plan_decode": partial(model.plan_decode, self._cache)}
                # Another kernel may have to be compiled: now, before anybody waits for a step.
                model.plan_decode(self._cache, 8, 8)
            self._graphs = DecodeGraphs(self._decode, self.device, num_blocks, capture, **plan)

    @property
    def num_captures(self) -> int:
        """Steps captured since the start."""
        return 0 if self._graphs is None else self._graphs.num_captures

    @torch.inference_mode()
    def forward(self, batch: RaggedBatch) -> Tensor:
        """Write the batch's latents and return the last hidden states ``[T, D]``."""
        if isinstance(self.model, Transformer):
            return self.model.hidden(batch, self._cache)[0]
        return self.model.hidden(batch, self._cache)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """fp32 logits ``[L, vocabulary]`` of rows of :meth:`forward`'s result."""
        return self.model.logits(hidden)

    @torch.inference_mode()
    def launch(
        self, works: Rows[Work], ends: frozenset[int], unknown: dict[Sequence, int],
        before: Picks | None,
    ) -> Launch:  # fmt: skip
        """Start a step.

        Args:
            works: its plan.
            ends: tokens that end an answer.
            unknown: the row of ``before`` of each sequence whose last token is still unknown.
            before: the choices of the step before, or None.
        """
        origins = sources(works, unknown) if unknown else None
        chosen = None if before is None else before.tokens
        decode = is_decode(works)
        if self._graphs is not None and decode:
            return self._launch_captured(self._graphs, works, ends, origins, chosen)
        batch = build_batch(works, self.device)
        if origins is not None and chosen is not None:
            rows = to_device(origins, torch.int32, self.device)
            batch = replace(batch, tokens=feed(batch.tokens, rows, chosen))
        hidden = self.forward(batch)
        assert batch.logit_rows is not None
        logits = self.logits(hidden[batch.logit_rows.long()])
        counts = tuple(work.num_choices for work in works)
        first = logits
        if max(counts) > 1:
            starts = list(accumulate(counts, initial=0))
            taken = [start for start, count in zip(starts, counts, strict=False) if count]
            first = logits[to_device(taken, torch.int64, self.device)]
        choosing = [work.sequence for work, count in zip(works, counts, strict=True) if count]
        picks = pick(first, choosing, ends)
        return Launch(counts, picks, hidden, logits, decode, self._chunks(works, counts, hidden))

    def _chunks(self, works: Rows[Work], counts: Rows[int], hidden: Tensor) -> Arrival | None:
        lasts = accumulate(work.count for work in works)
        rows = [last - 1 for last, count in zip(lasts, counts, strict=True) if not count]
        if not rows:
            return None
        return Arrival(hidden[to_device(rows, torch.int64, self.device)].isfinite().all(-1))

    def _launch_captured(
        self, graphs: DecodeGraphs, works: Rows[Work], ends: frozenset[int],
        origins: list[int] | None, chosen: Tensor | None,
    ) -> Launch:  # fmt: skip
        sequences = [work.sequence for work in works]
        plain = all(is_plain(one) for one in sequences)
        drawn = plain and any(one.request.params.temperature > 0 for one in sequences)
        logits, tokens = graphs.launch(works, origins, chosen, drawn=drawn)
        # The tokens must outlive the next step, which writes to the same memory.
        picks = Picks(tokens.clone()) if plain else pick(logits, sequences, ends)
        return Launch((1,) * len(works), picks, None, logits, True)

    def _decode(self, batch: RaggedBatch) -> Tensor:
        return self.logits(self.forward(batch))
