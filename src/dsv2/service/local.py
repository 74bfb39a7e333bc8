"""An engine in this very process, for tests and for a server of one user.

It computes in a thread of its own; a process that serves many has the engine in another process.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from dsv2.engine.async_engine import AsyncEngine, EngineDeadError
from dsv2.engine.llm import LLM
from dsv2.engine.request import Limits, Request
from dsv2.engine.sampler import TokenLogprobs
from dsv2.service.serving import EngineGoneError, ServedModel
from dsv2.service.wire import Logprobs, Stats, Tokens

_MAX_SILENCE = 10.0
"""Seconds without a step after which the engine counts as hung."""


class LocalEngine:
    """An ``Engine`` over a model in this process.

    Args:
        llm: not to be used by anybody else from now on.
    """

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        self._engine = AsyncEngine(llm.engine)

    @property
    def limits(self) -> Limits:
        """What it can take."""
        return self._llm.limits

    @property
    def description(self) -> str:
        """What runs where, for people."""
        return self._llm.description

    @property
    def is_healthy(self) -> bool:
        """Whether its steps go on."""
        return self._engine.is_alive and self._engine.seconds_since_heartbeat < _MAX_SILENCE

    @property
    def stats(self) -> Stats:
        """As of the last step; totals that the engine does not count are 0."""
        now = self._engine.stats
        return Stats(
            running=now.running,
            waiting=now.waiting,
            free_blocks=now.free_blocks,
            total_blocks=now.total_blocks,
            preemptions=now.preemptions,
            prompt_tokens=now.prompt_tokens,
            cached_tokens=now.cached_tokens,
        )

    async def stream(self, request: Request) -> AsyncGenerator[Tokens, None]:
        """Submit a request; see :class:`dsv2.service.serving.Engine`."""
        try:
            async with aclosing(self._engine.stream(request)) as outputs:
                async for output in outputs:
                    scored = output.prompt_logprobs
                    yield Tokens(
                        output.request_id,
                        [] if output.token is None else [output.token],
                        None if output.logprobs is None else [_logprobs(output.logprobs)],
                        output.finish_reason,
                        output.error,
                        cached_tokens=output.cached_tokens,
                        prompt_logprobs=None
                        if scored is None
                        else [None if one is None else _logprobs(one) for one in scored],
                    )
        except EngineDeadError as error:
            raise EngineGoneError("the engine has stopped") from error

    def close(self) -> None:
        """Stop after the step under way."""
        self._engine.close()


def _logprobs(found: TokenLogprobs) -> Logprobs:
    return Logprobs(found.chosen, list(found.top))


def served(
    llm: LLM, name: str, *, aliases: tuple[str, ...] = ()
) -> tuple[ServedModel, LocalEngine]:
    """A model in this process under a name, and its engine, which is to be closed."""
    engine = LocalEngine(llm)
    return ServedModel(name, engine, llm.tokenizer, llm.chat_format, aliases), engine
