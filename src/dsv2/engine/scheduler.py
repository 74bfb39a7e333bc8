"""Which sequence computes how many tokens in this step. Plain data, no tensors.

The one question a scheduler answers is ``{sequence: tokens}``: a prompt, a chunk of one, a
generated token and drafts to verify are the same case. Sequences get blocks as they grow. When
there are none left, the one that ranks last gives up its blocks and is computed again later, at
most ``max_preemptions`` times: after that it is admitted with all the blocks of its life and keeps
them.
"""

from __future__ import annotations

from collections import Counter, OrderedDict

from dsv2.engine.blocks import BlockPool
from dsv2.engine.request import OverloadedError, RequestError
from dsv2.engine.sequence import Sequence, Work, blocks_for, publish
from dsv2.shapes import BLOCK_SIZE

MAX_TENANTS = 10_000
"""Tenants whose share is remembered."""

MAX_ANSWERS_AHEAD = 512
"""Tokens of answers in a step beyond the next one of each: guesses, and what is computed again
after a preemption. They attend on the latents themselves, which takes memory for every token."""


class Scheduler:
    """Admission and the plan of each step.

    Higher priorities go first and may take a lower one's place. Within a priority the tenant that
    has been served least goes first; a tenant that comes back after a pause starts level with the
    least served of those at work, so that nobody saves up claims.

    When the line is full, the tenant that has most in it gives way to who has less: the one that
    came last of its requests that never ran is refused in place of the newcomer. So one tenant
    alone may fill the line, and the more others come, the less of it is left to that one.

    Args:
        pool: the cache's blocks.
        max_step_tokens: most tokens of a step; longer prompts come in chunks.
        max_sequences: most sequences under way at once.
        max_waiting: most sequences in line; None for no bound.
        prefix_cache: whether sequences share blocks of equal content.
        share_answers: whether blocks with generated tokens are shared too. They were computed in
            another form than a prompt's, so a hit on them may change the last bits of a result.
        max_preemptions: how often one sequence may lose its blocks.
    """

    def __init__(
        self,
        pool: BlockPool,
        *,
        max_step_tokens: int,
        max_sequences: int,
        max_waiting: int | None = None,
        prefix_cache: bool = True,
        share_answers: bool = False,
        max_preemptions: int = 3,
    ) -> None:
        if max_step_tokens < max_sequences:
            raise ValueError(
                f"max_step_tokens {max_step_tokens} is below max_sequences {max_sequences}: "
                "every sequence needs room for a token"
            )
        self.pool = pool
        self.max_step_tokens, self.max_sequences = max_step_tokens, max_sequences
        self._max_waiting, self._max_preemptions = max_waiting, max_preemptions
        self._prefix_cache, self._share_answers = prefix_cache, share_answers
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        self._served: OrderedDict[str, int] = OrderedDict()
        self._arrivals = 0

    def add(self, sequence: Sequence) -> Sequence | None:
        """Put a sequence in line.

        Returns:
            The one that has lost its place to it, if any, and is in line no longer.

        Raises:
            RequestError: it could not run even alone.
            OverloadedError: the line is full, and nobody has more in it.
        """
        if sequence.blocks_needed > self.pool.total:
            room = self.pool.total * BLOCK_SIZE
            raise RequestError(
                "max_tokens",
                f"{sequence.request.params.max_tokens} and a prompt of {sequence.num_prompt} "
                f"tokens need more than the cache's {room} tokens. Please reduce the length of "
                "either.",
            )
        gives_way = None
        if self._max_waiting is not None and len(self.waiting) >= self._max_waiting:
            gives_way = self._gives_way(sequence)
            if gives_way is None:
                raise OverloadedError(
                    f"{len(self.waiting)} requests are waiting, allowed are {self._max_waiting}; "
                    "try again later"
                )
            self.waiting.remove(gives_way)
        self._arrivals += 1
        sequence.arrival = self._arrivals
        self._welcome(sequence.request.tenant)
        self.waiting.append(sequence)
        return gives_way

    def _gives_way(self, newcomer: Sequence) -> Sequence | None:
        """Who is to leave a full line for a newcomer; nobody who ranks higher or has begun."""
        priority, tenant = newcomer.request.priority, newcomer.request.tenant
        weaker = [s for s in self.waiting if not s.preemptions and s.request.priority <= priority]
        counts = Counter(s.request.tenant for s in weaker)
        if not counts:
            return None
        fullest = max(counts, key=lambda name: counts[name])
        if counts[fullest] < counts[tenant] + 2:  # else the two would but change places
            return None
        theirs = (s for s in weaker if s.request.tenant == fullest)
        return max(theirs, key=lambda s: s.rank)

    def _welcome(self, tenant: str) -> None:
        active = {s.request.tenant for s in (*self.running, *self.waiting)}
        if tenant not in active:
            level = min((self._served[name] for name in active), default=0)
            self._served[tenant] = max(self._served.get(tenant, 0), level)
        self._served.move_to_end(tenant)
        if len(self._served) > MAX_TENANTS:
            oldest = next(name for name in self._served if name not in active and name != tenant)
            del self._served[oldest]

    def plan(self) -> list[Work]:
        """The work of the next step; empty when there is none. Admits what fits."""
        self._admit()
        left, works = self.max_step_tokens, []
        # Generated tokens first: a long prompt delays nobody's answer by more than a chunk.
        answering = sorted(
            (s for s in self.running if s.in_answer and not s.is_full), key=lambda s: s.rank
        )
        drafts_left = min(left - len(answering), MAX_ANSWERS_AHEAD)
        for sequence in answering:
            if sequence not in self.running:
                continue  # it was preempted for one before it
            drafts = min(sequence.remaining - 1, drafts_left)
            if self._grow(sequence, sequence.computed + 1 + drafts):
                works.append(Work(sequence, 1 + drafts))
                left -= 1 + drafts
                drafts_left -= drafts
        for sequence in sorted((s for s in self.running if not s.in_answer), key=self._turn):
            # A chunk ends where the answer begins: the two are computed in different forms.
            whole = min(sequence.num_prompt, len(sequence.tokens)) - sequence.computed
            count = min(whole, left)
            if count:
                works.append(Work(sequence, count))
                left -= count
        return works

    def advance(self, work: Work, accepted: int | None = None) -> None:
        """Note that a work was computed.

        Args:
            work: of the last plan.
            accepted: how many of its tokens stand; fewer than all when drafts were wrong.
        """
        work.sequence.computed += work.count if accepted is None else accepted
        self.settle(work)

    def foresee(self, work: Work) -> None:
        """Take a work for done while it is being computed, so that the next step can be planned.

        :meth:`settle` follows once its results are known: until then nobody else finds them.
        """
        work.sequence.computed += work.count

    def settle(self, work: Work) -> None:
        """Count a computed work for its tenant and publish the blocks that it filled."""
        sequence = work.sequence
        tenant = sequence.request.tenant
        self._served[tenant] = self._served.get(tenant, 0) + work.count
        self._publish(sequence)

    def _publish(self, sequence: Sequence) -> None:
        if not self._prefix_cache:
            return
        certain = min(sequence.computed, len(sequence.tokens))
        if not self._share_answers:
            certain = min(certain, sequence.num_prompt)
        publish(self.pool, sequence, certain)

    def finish(self, sequence: Sequence, *, forget: bool = False) -> None:
        """Take a sequence out, wherever it is, and free its blocks.

        Args:
            sequence: one that was added.
            forget: its blocks hold numbers that nobody else is to find.
        """
        if sequence in self.running:
            self.running.remove(sequence)
            if forget:
                self.pool.forget(sequence.blocks)
            self.pool.release(sequence.blocks)
            sequence.blocks = []
        else:
            self.waiting.remove(sequence)

    def _turn(self, sequence: Sequence) -> tuple[int, int, int]:
        """Lower goes first among those that wait or read their prompt."""
        served = self._served.get(sequence.request.tenant, 0)
        return (-sequence.request.priority, served, sequence.arrival)

    def _admit(self) -> None:
        while self.waiting:
            ready = [s for s in self.waiting if not s.waits and not s.is_full]
            if not ready:
                return
            sequence = min(ready, key=self._turn)
            if not self._make_room(sequence):
                return  # nobody overtakes: what is large would wait for ever
            self.waiting.remove(sequence)
            self.running.append(sequence)

    def _make_room(self, sequence: Sequence) -> bool:
        """Give a waiting sequence its first blocks, at the cost of lower priorities if need be."""
        while True:
            if len(self.running) < self.max_sequences and self._take_blocks(sequence):
                return True
            lower = [
                s
                for s in self.running
                if s.request.priority < sequence.request.priority and not self._keeps(s)
            ]
            taken = sum(len(s.blocks) for s in lower) + self.pool.num_free
            if not lower or taken < blocks_for(len(sequence.tokens) + 1):
                return False
            self._preempt(max(lower, key=lambda s: s.rank))

    def _take_blocks(self, sequence: Sequence) -> bool:
        known = len(sequence.tokens)
        # The last token is always computed: its logits choose the next one.
        limit = known - 1 if self._share_answers else min(known - 1, sequence.num_prompt)
        wants_all = sequence.request.params.prompt_logprobs is not None
        found: list[int] = []
        if self._prefix_cache and not wants_all:
            found = self.pool.match(sequence.request.salt, sequence.tokens, limit // BLOCK_SIZE)
        if self._keeps(sequence):
            needed, spare = sequence.blocks_needed, 0
        else:
            # Room for the next token, and for one block that each of the others may need soon.
            needed = blocks_for(known + 1)
            spare = sum(not self._keeps(s) for s in self.running)
        if needed - len(found) + spare > self.pool.num_free - self.pool.idle(found):
            return False
        self.pool.hold(found)
        sequence.blocks = found + self.pool.allocate(needed - len(found))
        sequence.computed = len(found) * BLOCK_SIZE
        sequence.published, sequence.prefix = 0, ""
        if not sequence.preemptions:
            sequence.cached_tokens = sequence.computed
        self._publish(sequence)
        return True

    def _keeps(self, sequence: Sequence) -> bool:
        """Whether a sequence has, or is to have, all the blocks of its life."""
        return sequence.preemptions >= self._max_preemptions

    def _grow(self, sequence: Sequence, tokens: int) -> bool:
        """Give a running sequence blocks for so many tokens; false when it was preempted itself."""
        missing = blocks_for(tokens) - len(sequence.blocks)
        while missing > self.pool.num_free:
            victim = max((s for s in self.running if not self._keeps(s)), key=lambda s: s.rank)
            self._preempt(victim)
            if victim is sequence:
                return False
        if missing > 0:
            sequence.blocks += self.pool.allocate(missing)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.pool.release(sequence.blocks)
        sequence.blocks, sequence.computed, sequence.drafts = [], 0, []
        sequence.preemptions += 1
        self.num_preemptions += 1
        self.waiting.append(sequence)
