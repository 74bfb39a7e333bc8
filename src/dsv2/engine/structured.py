"""Answers that follow a JSON schema, a regular expression or a grammar.

A structure is compiled by llguidance in a thread beside the step loop, under limits of size and
time; its sequence waits meanwhile and nobody else does. Every step then asks the compiled matcher
which tokens may come next.
"""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Protocol

import torch
from torch import Tensor

from dsv2.engine.request import Structure

MAX_COMPILED = 64
"""Compiled structures that are kept for the next request with the same one."""

QUEUE_SECONDS = 60.0
"""How long a structure waits at most for those before it."""


class Matcher(Protocol):
    """Follows one answer."""

    def allowed(self) -> Tensor:
        """``[vocabulary]`` bool: the tokens that may come next."""
        ...

    def take(self, token: int) -> None:
        """Note the token that came; ValueError when it was not allowed."""
        ...

    @property
    def is_complete(self) -> bool:
        """Whether nothing may follow."""
        ...

    def copy(self) -> Matcher:
        """Another one in the same place, for guesses at how the answer goes on."""
        ...


class StructureError(ValueError):
    """A structure cannot be compiled, with the reason."""


class _Matcher:
    def __init__(self, native: Any, vocab_size: int) -> None:
        self._native, self._vocab_size = native, vocab_size

    def allowed(self) -> Tensor:
        mask = torch.frombuffer(bytearray(self._native.compute_bitmask()), dtype=torch.uint8)
        if self._native.is_error():
            raise ValueError(self._native.get_error())
        bits = mask.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8) & 1
        return bits.flatten()[: self._vocab_size].bool()

    def take(self, token: int) -> None:
        if not self._native.consume_token(token):
            raise ValueError(self._native.get_error() or f"token {token} is not allowed here")

    @property
    def is_complete(self) -> bool:
        return bool(self._native.is_stopped())

    def copy(self) -> Matcher:
        return _Matcher(self._native.deep_copy(), self._vocab_size)


def follow(matcher: Matcher | None, token: int | None) -> str | None:
    """Let an answer's structure take its token; why it cannot go on, or None.

    The sampler chose among what the structure allows; its library may still give up, at a limit of
    its own.
    """
    if matcher is None or token is None:
        return None
    try:
        matcher.take(token)
    except Exception as error:  # the library's own: the request's problem, nobody else's
        return f"the structure of the answer failed: {error!s:.500}"
    return None


class StructureCompiler:
    """Compiles structures for one tokenizer.

    Args:
        tokenizer_json: gives the content of ``tokenizer.json`` once a structure wants it, since it
            takes a second to write a large vocabulary.
        vocab_size: width of the model's logits.
        end: the end-of-sequence token.
        seconds: how long one structure may take.
    """

    def __init__(
        self, tokenizer_json: Callable[[], str], vocab_size: int, end: int, *, seconds: float = 5.0
    ) -> None:
        import llguidance

        self._library = llguidance
        self._source = (tokenizer_json, vocab_size, end)
        self._tokenizer: Any = None
        self._seconds = seconds
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="dsv2-grammar")
        self._compiled: OrderedDict[Structure, Any] = OrderedDict()

    def submit(self, structure: Structure) -> Pending:
        """Compile it when its turn comes, under a limit of time."""
        return Pending(self._threads.submit(self._compile, structure), self._seconds)

    def _compile(self, structure: Structure) -> Matcher:
        known = self._compiled.pop(structure, None)
        if known is None:
            known = self._make(structure)
        self._compiled[structure] = known  # the newest: what is asked for again stays
        while len(self._compiled) > MAX_COMPILED:
            self._compiled.popitem(last=False)
        return _Matcher(known.deep_copy(), self._source[1])

    def _make(self, structure: Structure) -> Any:
        library, (text_of, vocab_size, end) = self._library.LLMatcher, self._source
        if self._tokenizer is None:
            self._tokenizer = self._library.LLTokenizer(
                text_of(), n_vocab=vocab_size, eos_token=end
            )
        if structure.kind == "regex":
            grammar = library.grammar_from_regex(structure.text)
        elif structure.kind == "grammar":
            grammar = library.grammar_from_lark(structure.text)
        else:
            schema = structure.text if structure.kind == "json_schema" else '{"type": "object"}'
            # Free whitespace lets a model that has lost the thread fill its answer with it.
            options: Any = {"whitespace_flexible": False}
            grammar = library.grammar_from_json_schema(json.loads(schema), overrides=options)
        matcher = library(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise StructureError(f"{structure.kind} is not valid: {matcher.get_error():.500}")
        return matcher

    def close(self) -> None:
        """Let the threads end."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class Pending:
    """A structure that is being compiled, or waits for its turn.

    Args:
        future: of the matcher.
        seconds: that it may take once its turn has come.
    """

    def __init__(self, future: Future[Matcher], seconds: float) -> None:
        self._future, self._seconds = future, seconds
        self._asked = time.monotonic()
        self._since: float | None = None

    def result(self) -> Matcher | None:
        """The matcher once it is there, None until then.

        Raises:
            StructureError: it is not valid, takes too long, or those before it do.
        """
        if not self._future.done():
            now = time.monotonic()
            if not self._future.running():
                if now < self._asked + QUEUE_SECONDS:
                    return None
                self.cancel()
                raise StructureError(
                    f"structures of others took {QUEUE_SECONDS:.0f} s to compile; try again later"
                )
            # Counted from when it is seen to have begun: the engine looks at every step.
            self._since = self._since or now
            if now < self._since + self._seconds:
                return None
            raise StructureError("the structure takes too long to compile; make it smaller")
        try:
            return self._future.result()
        except StructureError:
            raise
        except Exception as error:  # the library's own: the request's problem, nobody else's
            raise StructureError(f"the structure cannot be compiled: {error!s:.500}") from error

    def cancel(self) -> None:
        """Nobody wants it any more: it is not begun where it has not been."""
        self._future.cancel()

    def wait(self, seconds: float) -> None:
        """Wait for it a little."""
        wait([self._future], timeout=seconds)
