"""Training on the very numbers that generation computed, for reinforcement learning.

A policy gradient weighs each token by the ratio of its probability under the weights that are
trained and the weights that drew it. Two implementations of one model differ in the last bits, so
that the ratio is never quite 1 even where the weights are the same. :class:`ExactModel` removes the
difference: its values are those of the executor that generated, bit for bit.

It is a chain of functions, two for each layer and one for the head. Forward, a function lets the
executor compute and keeps its input alone. Backward, it computes the same thing again from that
input with the training model's own code and differentiates this, as activation checkpointing does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dsv2.kernels.executor import Executor
from dsv2.kernels.registry import select
from dsv2.model.balance import Balance
from dsv2.model.moe import LayerStats, MoE
from dsv2.model.packed import PackedModel
from dsv2.model.rope import rotation
from dsv2.model.transformer import ForwardStats, Layer, Transformer
from dsv2.ragged import RaggedBatch
from dsv2.shapes import BLOCK_SIZE

HEAD_ROWS = 256
"""Rows whose logits are alive at once: 256 rows of 102,400 fp32 are 105 MB."""


@dataclass(frozen=True)
class Document:
    """A prompt and what was generated after it, as token ids; both have at least one.

    A conversation is one document for each answer: the engine took the earlier answers of the
    later prompt for a prompt's tokens too.
    """

    prompt: Sequence[int]
    answer: Sequence[int]

    @property
    def num_computed(self) -> int:
        """Tokens that the model reads: all but the last, after which nothing was chosen."""
        return len(self.prompt) + len(self.answer) - 1


class ExactModel:
    """The log-probabilities that the engine reports, bit for bit, with gradients.

    **What is exact.** With an executor of the kind that generates (the same backend and instruction
    set, any number of threads), fp32 weights and an fp32 cache, the values equal those of
    ``SamplingParams.logprobs`` from an engine with equal weights and ``deterministic=True``, to the
    last bit, however the engine batched, chunked, cached or preempted: prompts are computed in the
    expanded form and answers in the absorbed one, each token as the engine computes it. They are
    log-probabilities of the model itself, before temperature, penalties and truncation.

    **What the gradient is.** That of the training model's own layers, recomputed in PyTorch at the
    exact activations that the executor left before each layer, all in the expanded form. It differs
    from the gradient of :class:`dsv2.model.transformer.Transformer` by rounding alone, except where
    two experts are so close to a tie that rounding chooses between them.

    **What it costs.** One pass of the executor forward; one forward and one backward of every layer
    in PyTorch backward. Two fp32 rows of width D are kept for each token and layer, and a latent
    cache of one layer while the forward runs. Packing reads and writes every weight once.

    Args:
        model: holds the parameters that are trained, in fp32 on a CPU; it is not changed.
        executor: computes the values.

    Raises:
        ValueError: a parameter is not in fp32 on a CPU, or a size is beyond the executor.
    """

    def __init__(self, model: Transformer, executor: Executor) -> None:
        for name, parameter in model.named_parameters():
            if parameter.dtype != torch.float32 or parameter.device.type != "cpu":
                raise ValueError(
                    f"parameter {name} is {parameter.dtype} on {parameter.device}, allowed is "
                    "torch.float32 on cpu"
                )
        self.model, self._executor = model, executor
        self.pack()

    def pack(self) -> None:
        """Take over the model's weights; to be called after every change of them."""
        self._packed = PackedModel(
            self.model.config,
            self._executor,
            # Copies: an executor may keep what it is given, and the optimiser writes in place.
            lambda name: self.model.get_parameter(name).detach().clone(),
            weights="float32",
            cache_format="float32",
        )
        self._versions = self._present_versions()

    def _present_versions(self) -> list[int]:
        return [parameter._version for parameter in self.model.parameters()]

    def logprobs(
        self, documents: Sequence[Document], balance: Balance | None = None
    ) -> tuple[Tensor, ForwardStats]:
        """Of every token of the answers, one document after another.

        The stats count where the training model's router sends each token at the exact
        activations.

        Args:
            documents: at least one.
            balance: a strategy over sequences of ``num_computed`` tokens each, whose loss comes
                back in the stats, with gradients; it may not drop tokens.

        Returns:
            ``[sum of the answers' lengths]`` fp32 natural logarithms, and the stats.

        Raises:
            RuntimeError: the model's weights changed after they were packed.
            ValueError: a document is empty or longer than the model's context, or the strategy
                drops tokens.
        """
        hidden, stats = self._hidden(documents, balance)
        answers = torch.tensor([token for one in documents for token in one.answer])
        pieces = zip(hidden.split(HEAD_ROWS), answers.split(HEAD_ROWS), strict=True)
        return torch.cat([self._score(rows, tokens) for rows, tokens in pieces]), stats

    def logits(self, documents: Sequence[Document]) -> Tensor:
        """fp32 logits ``[L, vocab]`` that the tokens of the answers were chosen from.

        See :meth:`logprobs`, which does not keep them.
        """
        hidden, _ = self._hidden(documents, None)
        return _exact(self._packed.project, self._project, hidden, self._head_parameters())

    def _head_parameters(self) -> list[nn.Parameter]:
        model = self.model
        return [model.norm, model.embed if model.head is None else model.head]

    def _project(self, hidden: Tensor) -> Tensor:
        norm = select("rms_norm", self.model.backend, "cpu")
        return self.model.logits(norm(hidden, self.model.norm, self.model.config.rms_norm_eps))

    def _score(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Log-probabilities ``[L]`` of ``tokens`` after the rows of ``hidden`` ``[L, D]``."""

        def chosen(logits: Tensor) -> Tensor:
            return logits.log_softmax(-1).gather(1, tokens.unsqueeze(1)).squeeze(1)

        return _exact(
            lambda rows: chosen(self._packed.project(rows)),
            lambda rows: chosen(self._project(rows)),
            hidden,
            self._head_parameters(),
        )

    def _hidden(
        self, documents: Sequence[Document], balance: Balance | None
    ) -> tuple[Tensor, ForwardStats]:
        """The last hidden state of the rows after which the answers' tokens were chosen."""
        self._check(documents, balance)
        model, packed = self.model, self._packed
        tokens = torch.tensor([t for one in documents for t in (*one.prompt, *one.answer[:-1])])
        batch = RaggedBatch.packed(tokens, [one.num_computed for one in documents])
        turn = rotation(model.config, model.frequencies(batch.tokens.device), batch.positions)
        paged, num_blocks = _paged(batch, documents)
        step = packed.begin(paged)
        # One for all layers: each writes all tokens before it reads any.
        cache = torch.empty(num_blocks, BLOCK_SIZE, model.config.cache_width)

        x = F.embedding(batch.tokens, model.embed)  # T D; a copy has no rounding
        stats: dict[int, LayerStats] = {}
        for index, layer in enumerate(model.layers):
            assert isinstance(layer, Layer)

            def attend(x: Tensor, index: int = index) -> Tensor:
                own = x.clone()
                packed.attend(index, own, step, cache)
                return own

            def attend_again(x: Tensor, layer: Layer = layer) -> Tensor:
                return layer.attend(x, turn, batch, None, "expanded")

            def feed(x: Tensor, index: int = index) -> Tensor:
                own = x.clone()
                packed.feed(index, own)
                return own

            def feed_again(x: Tensor, layer: Layer = layer) -> Tensor:
                return layer.feed(x, None)[0]

            x = _exact(attend, attend_again, x, [layer.attn_norm, *layer.attn.parameters()])
            if isinstance(layer.ffn, MoE):
                stats[index] = self._route(layer, layer.ffn, x, balance)
            x = _exact(feed, feed_again, x, [layer.ffn_norm, *layer.ffn.parameters()])
        return x[_choosing_rows(documents)], ForwardStats(stats)

    def _route(self, layer: Layer, moe: MoE, x: Tensor, balance: Balance | None) -> LayerStats:
        norm = select("rms_norm", self.model.backend, "cpu")
        with torch.set_grad_enabled(torch.is_grad_enabled() and balance is not None):
            return moe.route(norm(x, layer.ffn_norm, layer.eps), balance)[1]

    def _check(self, documents: Sequence[Document], balance: Balance | None) -> None:
        if self._versions != self._present_versions():
            raise RuntimeError("the model's weights changed after they were packed; call pack()")
        longest = self.model.config.max_position_embeddings
        if not documents:
            raise ValueError("documents is empty, allowed is at least one")
        for place, one in enumerate(documents):
            lengths = len(one.prompt), len(one.answer)
            if not min(lengths) or sum(lengths) > longest:
                raise ValueError(
                    f"documents[{place}] has a prompt of {lengths[0]} and an answer of "
                    f"{lengths[1]} tokens; allowed is at least 1 each and {longest} together"
                )
        if balance is not None and balance.config.capacity_factor is not None:
            raise ValueError(
                f"capacity_factor is {balance.config.capacity_factor}: an engine drops no tokens, "
                "so neither can a forward that equals it; allowed is None"
            )


def _exact(
    compute: Callable[[Tensor], Tensor],
    recompute: Callable[[Tensor], Tensor],
    x: Tensor,
    parameters: Sequence[Tensor],
) -> Tensor:
    out: Tensor = _Exact.apply(compute, recompute, x, *parameters)
    return out


class _Exact(torch.autograd.Function):
    """The value of ``compute(x)`` with the gradients of ``recompute(x)``."""

    @staticmethod
    def forward(
        ctx: Any, compute: Callable[[Tensor], Tensor], recompute: Callable[[Tensor], Tensor],
        x: Tensor, *parameters: Tensor,
    ) -> Tensor:  # fmt: skip
        # Saved so that autograd notices when they change before they are used again.
        ctx.save_for_backward(x, *parameters)
        ctx.recompute, ctx.parameters = recompute, parameters
        return compute(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        own = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            again = ctx.recompute(own)
        inputs = (own, *ctx.parameters)
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad[2:]) if needed]
        # A routed expert that no token met has no part in it.
        found = torch.autograd.grad(again, [inputs[i] for i in wanted], grad, allow_unused=True)
        grads: list[Tensor | None] = [None] * len(inputs)
        for i, one in zip(wanted, found, strict=True):
            grads[i] = one
        return (None, None, *grads)


def _paged(batch: RaggedBatch, documents: Sequence[Document]) -> tuple[RaggedBatch, int]:
    """The packed batch as an engine sees it, and the cache blocks that it takes.

    A document is two sequences on the same blocks, its prompt and its answer, which attend in the
    two forms. All tokens of a batch are written to the cache before any is read, so the answer
    finds its prompt there.
    """
    lengths: list[int] = []
    kv_len: list[int] = []
    generated: list[bool] = []
    tables: list[range] = []
    first = 0
    for one in documents:
        blocks = range(first, first - (-one.num_computed // BLOCK_SIZE))
        first = blocks.stop
        for count, total, is_answer in (
            (len(one.prompt), len(one.prompt), False),
            (len(one.answer) - 1, one.num_computed, True),
        ):
            if count:
                lengths.append(count)
                kv_len.append(total)
                generated.append(is_answer)
                tables.append(blocks)
    table = torch.zeros(len(tables), max(len(blocks) for blocks in tables), dtype=torch.int32)
    for row, blocks in enumerate(tables):
        table[row, : len(blocks)] = torch.arange(blocks.start, blocks.stop)
    starts = table[:, 0].repeat_interleave(torch.tensor(lengths))  # blocks of one follow each other
    paged = RaggedBatch(
        tokens=batch.tokens,
        positions=batch.positions,
        cu_q=torch.tensor([0, *accumulate(lengths)], dtype=torch.int32),
        kv_len=torch.tensor(kv_len, dtype=torch.int32),
        block_table=table,
        slots=starts * BLOCK_SIZE + batch.positions,
        host_lengths=tuple(lengths),
        generated=tuple(generated),
    )
    return paged, first


def _choosing_rows(documents: Sequence[Document]) -> Tensor:
    """The rows after which a token of an answer was chosen: the prompt's last, and the answer's."""
    ends = list(accumulate(one.num_computed for one in documents))
    return torch.cat(
        [torch.arange(end - len(one.answer), end) for one, end in zip(documents, ends, strict=True)]
    )
