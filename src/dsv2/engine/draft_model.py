"""Guesses of a smaller model of the same vocabulary, which keeps a latent cache of its own.

The draft model chooses as the target's sampler does: with the same parameters, seed and positions,
so that at any temperature the two take the same token wherever their distributions are alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from collections.abc import Sequence as Rows
from dataclasses import dataclass, replace

from dsv2.engine.batch import build_batch
from dsv2.engine.blocks import BlockPool
from dsv2.engine.runner import Runner
from dsv2.engine.sampler import Choice, sample
from dsv2.engine.scheduler import MAX_ANSWERS_AHEAD
from dsv2.engine.sequence import Sequence, Work, blocks_for, publish
from dsv2.engine.speculate import check_count
from dsv2.engine.structured import follow
from dsv2.shapes import BLOCK_SIZE
from dsv2.tokenizer import Tokenizer


@dataclass(eq=False)
class _Twin:
    """A sequence as the draft model sees it.

    Attributes:
        target: the sequence of the engine.
        own: the same request with the draft model's blocks; its tokens end with the last guesses.
        known: how many of ``own.tokens`` are the target's rather than guesses.
        failed: the draft model has no next token for it, and is not asked again.
    """

    target: Sequence
    own: Sequence
    known: int
    failed: bool = False

    def follow(self) -> None:
        """Take over the target's tokens; what was computed of wrong guesses counts no more."""
        ours, theirs = self.own.tokens, self.target.tokens
        agreed = self.known
        while agreed < min(len(ours), len(theirs)) and ours[agreed] == theirs[agreed]:
            agreed += 1
        del ours[agreed:]
        ours += theirs[agreed:]
        self.known = len(theirs)
        # The last token is always computed: its logits choose the first guess.
        self.own.computed = min(self.own.computed, agreed, len(theirs) - 1)
        matcher = self.target.matcher
        self.own.matcher = None if matcher is None else matcher.copy()

    def works(self, count: int) -> list[Work]:
        """The next ``count`` tokens, cut where the answer begins: the form of attention differs."""
        own = self.own
        of_prompt = min(max(own.num_prompt - own.computed, 0), count)
        works = [Work(own, of_prompt)] if of_prompt else []
        if count > of_prompt:
            # A batch is written to the cache before it is read, so one batch may hold both.
            answer = replace(own, computed=own.computed + of_prompt)
            works.append(Work(answer, count - of_prompt))
        return works


class ModelDrafter:
    """Lets a smaller model go on with each sequence.

    It computes what it has not seen of a sequence, its prompt first, in chunks beside the guesses
    for the others, and then all sequences together, one pass for each guess. Equal beginnings of
    prompts share its cache as they share the target's.

    Where its cache has no room for a sequence, the sequences that rank below give up theirs; one
    that still finds none, or that is longer than the draft model's context, gets no guesses, which
    :attr:`num_undrafted` counts.

    Args:
        runner: the draft model and its cache.
        pool: the blocks of that cache.
        ends: the tokens that end an answer.
        count: most tokens to guess.
        max_step_tokens: most tokens that it computes in one step to catch up, for all sequences
            together.

    Raises:
        ValueError: ``count`` or ``max_step_tokens`` is out of bounds.
    """

    def __init__(
        self,
        runner: Runner,
        pool: BlockPool,
        ends: Collection[int],
        count: int = 4,
        *,
        max_step_tokens: int = 2048,
    ) -> None:
        check_count(count)
        if max_step_tokens < 1:
            raise ValueError(f"max_step_tokens is {max_step_tokens}, allowed is at least 1")
        self.pool = pool
        self._runner, self._ends = runner, frozenset(ends)
        self._count, self._max_step_tokens = count, max_step_tokens
        self._context = runner.model.config.max_position_embeddings
        self._twins: dict[Sequence, _Twin] = {}
        self._undrafted = 0

    @property
    def num_undrafted(self) -> int:
        """See :class:`dsv2.engine.speculate.Drafter`."""
        return self._undrafted

    def draft(self, sequences: Rows[Sequence]) -> None:
        """Set the drafts of sequences in their answers; of others they are empty.

        A sequence gets none either while the draft model reads its prompt.
        """
        rooms: dict[Sequence, int] = {}
        for sequence in sequences:
            sequence.drafts = []
            left = sequence.request.params.max_tokens - sequence.num_generated - 1
            if sequence.in_answer and left > 0:
                rooms[sequence] = min(self._count, left)
        plan = self._catch_up(self._with_room(rooms))
        while plan:
            drafting = [twin for twin, count in plan if count == twin.own.remaining]
            choices = self._compute(plan, drafting)
            plan = [
                (twin, 1)
                for twin, choice in zip(drafting, choices, strict=True)
                if self._take(twin, choice, rooms[twin.target])
            ]

    def forget(self, sequence: Sequence) -> None:
        """Free the sequence's blocks; one that has none is left alone."""
        if sequence in self._twins:
            self._drop(sequence)

    def _with_room(self, rooms: dict[Sequence, int]) -> list[_Twin]:
        """The sequences that have blocks for all tokens and guesses, best rank first."""
        served: dict[Sequence, _Twin] = {}
        for sequence in sorted(rooms, key=lambda s: s.rank):
            twin = self._twins.get(sequence) or self._admit(sequence)
            if not twin.failed:
                twin.follow()
                # The last guess is not computed.
                needed = len(sequence.tokens) + rooms[sequence] - 1
                others = [
                    s
                    for s, other in self._twins.items()
                    if other is not twin and other.own.blocks and s not in served
                ]
                if needed <= self._context and self._grow(twin, needed, others, rooms):
                    served[sequence] = twin
                    continue
                self._drop(sequence)
            self._undrafted += 1
        return list(served.values())

    def _admit(self, sequence: Sequence) -> _Twin:
        request, known = sequence.request, len(sequence.tokens)
        params = replace(request.params, logprobs=None, prompt_logprobs=None)
        own = Sequence(replace(request, params=params), sequence.seed, list(sequence.tokens))
        limit = min(known - 1, sequence.num_prompt) // BLOCK_SIZE
        own.blocks = self.pool.match(request.salt, own.tokens, limit)
        self.pool.hold(own.blocks)
        own.computed = len(own.blocks) * BLOCK_SIZE
        publish(self.pool, own, own.computed)
        twin = self._twins[sequence] = _Twin(sequence, own, known)
        return twin

    def _grow(
        self, twin: _Twin, tokens: int, others: list[Sequence], active: Collection[Sequence]
    ) -> bool:
        """Give a twin blocks for so many tokens, at the cost of ``others`` if that suffices."""
        missing = blocks_for(tokens) - len(twin.own.blocks)
        if missing > self.pool.num_free:
            held = Counter(block for s in others for block in self._twins[s].own.blocks)
            freed = sum(self.pool.holders(block) == count for block, count in held.items())
            if missing > self.pool.num_free + freed:
                return False
            # Those that draft nothing now go first: preempted ones, or ones about to end.
            others.sort(key=lambda s: (s not in active, s.rank))
            while missing > self.pool.num_free:
                self._drop(others.pop())
        if missing > 0:
            twin.own.blocks += self.pool.allocate(missing)
        return True

    def _drop(self, sequence: Sequence) -> None:
        self.pool.release(self._twins.pop(sequence).own.blocks)

    def _catch_up(self, twins: list[_Twin]) -> list[tuple[_Twin, int]]:
        """Who computes how many tokens in the first pass, within the budget."""
        plan: list[tuple[_Twin, int]] = []
        left, ahead = self._max_step_tokens, MAX_ANSWERS_AHEAD
        # Those with little to read first: a long prompt delays nobody's guesses.
        for twin in sorted(twins, key=lambda twin: twin.own.remaining):
            own = twin.own
            # Of answers as many as the target computes at once.
            of_prompt = max(own.num_prompt - own.computed, 0)
            count = min(own.remaining, left, of_prompt + 1 + ahead)
            if count:
                plan.append((twin, count))
                left -= count
                ahead -= max(count - of_prompt - 1, 0)
        return plan

    def _compute(self, plan: list[tuple[_Twin, int]], drafting: list[_Twin]) -> list[Choice]:
        """One pass; the next token of each of ``drafting``, the twins that it completes."""
        works = [work for twin, count in plan for work in twin.works(count)]
        batch = build_batch(works, self._runner.device)
        hidden = self._runner.forward(batch)
        for twin, count in plan:
            own = twin.own
            own.computed += count
            publish(self.pool, own, min(own.computed, own.num_prompt))
        if not drafting:
            return []
        assert batch.logit_rows is not None
        logits = self._runner.logits(hidden[batch.logit_rows.long()])
        return sample(logits, [twin.own for twin in drafting], self._ends)

    def _take(self, twin: _Twin, choice: Choice, room: int) -> bool:
        """Note a guess; whether there is another one to be made."""
        token, own, drafts = choice.token, twin.own, twin.target.drafts
        if token is None:
            # After a guess it may be the guess's fault; before, it would be the same every time.
            if not drafts:
                self._fail(twin)
            return False
        if follow(own.matcher, token) is not None:
            return False  # of the same token the request's own structure will say why
        own.tokens.append(token)
        drafts.append(token)
        if own.matcher is not None and own.matcher.is_complete:
            return False
        params = own.request.params
        ends = token in self._ends and not params.ignore_eos
        return len(drafts) < room and not ends and token not in params.stop_token_ids

    def _fail(self, twin: _Twin) -> None:
        """Guess no more for a sequence whose numbers are not finite, and share none of them."""
        self.pool.forget(twin.own.blocks)
        self.pool.release(twin.own.blocks)
        twin.own.blocks = []
        twin.failed = True


def check_vocabularies(target: Tokenizer, draft: Tokenizer) -> None:
    """Make sure that every id stands for the same token in both.

    Raises:
        ValueError: the vocabularies differ, naming both sizes and the first token that does.
    """
    sizes = f"draft_model has a vocabulary of {draft.vocab_size} tokens, model of "
    sizes += f"{target.vocab_size}"
    if draft.vocab_size != target.vocab_size:
        raise ValueError(f"{sizes}; allowed is a draft model of the same vocabulary")
    for number in range(target.vocab_size):
        ours, theirs = target.token_bytes(number), draft.token_bytes(number)
        if ours != theirs or target.is_special(number) != draft.is_special(number):
            raise ValueError(
                f"{sizes}, but token {number} is {theirs!r} in one and {ours!r} in the other; "
                "allowed is a draft model of the same vocabulary"
            )
