"""A model in this process: prompts in, completions out."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from dsv2.checkpoint import resolve
from dsv2.engine.blocks import BlockPool
from dsv2.engine.completion import Completion, Delta, Timings
from dsv2.engine.draft_model import ModelDrafter
from dsv2.engine.engine import Engine, TokenOutput
from dsv2.engine.loading import find_draft, load, pick_device, plan_folder, structures
from dsv2.engine.output import OutputText
from dsv2.engine.plan import MemoryPlan
from dsv2.engine.request import (
    Limits,
    Request,
    RequestError,
    SamplingParams,
    validate,
    validate_params,
)
from dsv2.engine.runner import Runner
from dsv2.engine.sampler import TokenLogprobs
from dsv2.engine.scheduler import Scheduler
from dsv2.engine.speculate import Drafter, NgramDrafter
from dsv2.shapes import BLOCK_SIZE
from dsv2.tokenizer import ChatError, ChatFormat, Message, Tokenizer, chat_format

Prompt = str | Sequence[int]
Messages = Sequence[Message | Mapping[str, Any]]


@dataclass
class _Answer:
    """A request under way in this process."""

    request: Request
    output: OutputText
    started: float
    first: float | None = None
    tokens: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    deltas: deque[Delta] = field(default_factory=deque)
    cached_tokens: int = 0
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    error: str | None = None


class LLM:
    """A model, its tokenizer and an engine.

    Args:
        model: a folder, a pulled release or ``pocket``.
        device: ``auto``, ``cpu``, ``cuda`` or a torch device.
        dtype: of the weights: ``auto``, ``float32``, ``bfloat16``, ``int8`` or ``int4``; to the
            last two a checkpoint is converted while it is read. ``fp8`` is for a GPU and a
            checkpoint published so. ``auto`` is what is stored if that is quantised (on a CPU
            fp8 is converted); else bfloat16 on a GPU, and on a CPU float32 for a small model and
            the widest of the others that fits (see :func:`dsv2.engine.plan.plan_memory`).
        backend: of the model's ops; ``auto`` takes the fastest there is.
        threads: that backend ``cpu`` computes with; None for one per core.
        max_sequences: most sequences computed at once.
        max_step_tokens: most tokens per step; longer prompts are computed in chunks.
        max_waiting: most requests in line; None for no bound.
        cache_tokens: tokens that the cache holds for all sequences together; None for what
            ``max_sequences`` of full length need, within the memory that the weights leave.
        cache_dtype: of the latent cache: ``auto``, ``float32``, ``bfloat16``, ``int8``, ``int6``,
            and on a GPU ``fp8``; see :mod:`dsv2.kernels.latent`. ``auto`` is float32 beside
            weights in float32, else bfloat16.
        prefix_cache: share the cache of equal beginnings.
        deterministic: an answer's bits depend on its own request alone: never reuse the cache of
            generated tokens for a prompt, which was computed in another form, and on a GPU fix the
            order of every sum. False makes the next turn of a chat start faster, and a GPU run
            faster throughout. None is True on a CPU, where sums are in order anyway.
        speculate: tokens to guess and verify in one step; 0 is off. The guesses come from earlier
            text, or from ``draft_model``.
        draft_model: a smaller model of the same vocabulary, as a folder or name like ``model``,
            with the same device, dtype and backend. It keeps a cache of as many tokens.
        plan: of :func:`dsv2.engine.loading.prepare`, in place of ``dtype``,
            ``cache_tokens`` and ``cache_dtype``.
        max_memory: for a model larger than the GPU: sizes such as ``"10GiB"`` by ``cuda`` and
            ``cpu``, each at most what is free. The routed experts of as many layers as must are
            kept in the host's memory and computed there.

    Attributes:
        plan: what lies in memory, and what to change for more.

    Raises:
        ModelNotFoundError, ModelLoadError: the model is not here, or damaged.
        DoesNotFitError: the weights or the cache asked for do not fit into the free memory.
        ValueError: an argument is out of bounds.
    """

    def __init__(
        self,
        model: str | Path = "pocket",
        *,
        device: str | torch.device = "auto",
        dtype: str = "auto",
        backend: str = "auto",
        threads: int | None = None,
        max_sequences: int = 16,
        max_step_tokens: int = 2048,
        max_waiting: int | None = None,
        cache_tokens: int | None = None,
        cache_dtype: str = "auto",
        prefix_cache: bool = True,
        deterministic: bool | None = None,
        speculate: int = 0,
        draft_model: str | Path | None = None,
        plan: MemoryPlan | None = None,
        max_memory: Mapping[str, str | int] | None = None,
    ) -> None:
        if plan is not None and (dtype, cache_dtype, cache_tokens) != ("auto", "auto", None):
            raise ValueError("plan stands for dtype, cache_dtype and cache_tokens; give it or them")
        self.folder = resolve(model)
        self.device = pick_device(device)
        if deterministic is None:
            deterministic = self.device.type == "cpu"
        self.tokenizer = Tokenizer.from_folder(self.folder)
        draft_folder = find_draft(draft_model, speculate, self.folder, self.tokenizer)
        self.plan = plan or plan_folder(
            self.folder, self.device, backend, dtype=dtype, cache_dtype=cache_dtype,
            cache_tokens=cache_tokens, max_sequences=max_sequences,
            max_step_tokens=max_step_tokens, max_memory=max_memory,
        )  # fmt: skip
        self.model = load(self.folder, self.plan, self.device, backend, threads, deterministic)
        self.config = self.model.config
        self.chat_format: ChatFormat = chat_format(self.tokenizer.chat_format_name, self.tokenizer)
        blocks = self.plan.cache_tokens // BLOCK_SIZE
        self.limits = Limits(vocab_size=self.config.vocab_size, max_context=self.plan.context)
        step_tokens = max(max_step_tokens, max_sequences)
        scheduler = Scheduler(
            BlockPool(blocks),
            max_step_tokens=step_tokens,
            max_sequences=max_sequences,
            max_waiting=max_waiting,
            prefix_cache=prefix_cache,
            share_answers=not deterministic,
        )
        ends = [self.tokenizer.eos_id]
        drafter: Drafter | None = NgramDrafter(speculate) if speculate else None
        if draft_folder is not None:
            own = plan_folder(
                draft_folder, self.device, backend, dtype=dtype, cache_dtype=cache_dtype,
                cache_tokens=self.plan.cache_tokens, max_sequences=max_sequences,
                max_step_tokens=max_step_tokens, promised=self.plan.cache_bytes,
            )  # fmt: skip
            drafter = ModelDrafter(
                Runner(
                    load(draft_folder, own, self.device, backend, threads, deterministic), blocks
                ),
                BlockPool(blocks),
                ends,
                speculate,
                max_step_tokens=step_tokens,
            )
        self.engine = Engine(
            Runner(self.model, blocks),
            scheduler,
            self.limits,
            ends,
            drafter,
            structures(self.tokenizer, self.config.vocab_size),
        )
        self._answers: dict[str, _Answer] = {}
        self._count = 0

    @property
    def description(self) -> str:
        """What runs where: model, device, format of the weights, and the backend of the ops."""
        return f"{self.folder.name} on {self.device} in {self.model.description}"

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[Completion]:
        """Continue one prompt or several, computed together.

        Args:
            prompts: text, which gets one BOS before it, or token ids as they are; or a list.
            params: one for all or one for each prompt.

        Returns:
            A completion per prompt, in order.

        Raises:
            RequestError: a request is malformed or too long; nothing was run.
        """
        listed = _as_list(prompts)
        each = self._spread(params, len(listed))
        return self._complete([self._prompt_ids(prompt) for prompt in listed], each)

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> list[Completion]:
        """Answer one conversation or several; see :meth:`generate`.

        Args:
            messages: in OpenAI's form; the assistant is to speak next.
            params: one for all or one for each conversation.
            tools: functions that the assistant may call.

        Raises:
            ChatError: a message is malformed.
            RequestError: a request is malformed or too long; nothing was run.
        """
        one = bool(messages) and isinstance(messages[0], (Message, Mapping))
        conversations: Any = [messages] if one or not messages else messages
        each = self._spread(params, len(conversations))
        ids = [self.chat_ids(conversation, tools) for conversation in conversations]
        return [self._with_tools(completion) for completion in self._complete(ids, each)]

    def stream(
        self,
        prompt: Prompt | Messages,
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> Generator[Delta, None, None]:
        """One answer piece by piece; closing the iterator stops it and frees its cache.

        Args:
            prompt: text, token ids, or the messages of a chat.
        """
        talk = not isinstance(prompt, str) and isinstance(next(iter(prompt), 0), (Message, Mapping))
        ids = self.chat_ids(prompt, tools) if talk else self._prompt_ids(prompt)  # type: ignore[arg-type]
        answer = self._start(ids, params or SamplingParams())
        name = answer.request.id
        try:
            while name in self._answers or answer.deltas:
                if not answer.deltas:
                    # A step serves every open stream; the others find their pieces later.
                    for output in self.engine.step():
                        self._take(output)
                while answer.deltas:
                    delta = answer.deltas.popleft()
                    if talk and delta.completion is not None:
                        delta = replace(delta, completion=self._with_tools(delta.completion))
                    yield delta
        finally:
            self._drop(name)

    def check(self, params: SamplingParams) -> None:
        """Raise RequestError when ``params`` are out of bounds."""
        validate_params(params, self.limits)

    def chat_ids(self, messages: Messages, tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """The tokens of a conversation up to where the assistant speaks."""
        return self.chat_format.render(messages, tools=tools, add_generation_prompt=True).ids

    def _prompt_ids(self, prompt: Any) -> list[int]:
        if isinstance(prompt, str):
            return [self.tokenizer.bos_id, *self.tokenizer.encode(prompt)]
        return list(prompt)

    @staticmethod
    def _spread(
        params: SamplingParams | Sequence[SamplingParams] | None, count: int
    ) -> list[SamplingParams]:
        if params is None or isinstance(params, SamplingParams):
            return [params or SamplingParams()] * count
        if len(params) != count:
            raise RequestError("params", f"has {len(params)} entries for {count} prompts")
        return list(params)

    def _complete(self, ids: list[list[int]], params: list[SamplingParams]) -> list[Completion]:
        for prompt, each in zip(ids, params, strict=True):
            validate(Request("", tuple(prompt), each), self.limits)
        answers: list[_Answer] = []
        try:
            for prompt, each in zip(ids, params, strict=True):
                answers.append(self._start(prompt, each))
            while any(answer.request.id in self._answers for answer in answers):
                for output in self.engine.step():
                    self._take(output)
        finally:
            for answer in answers:
                self._drop(answer.request.id)
        completions = [answer.deltas[-1].completion for answer in answers]
        return [completion for completion in completions if completion is not None]

    def _start(self, ids: list[int], params: SamplingParams) -> _Answer:
        self._count += 1
        request = Request(f"r{self._count}", tuple(ids), params)
        self.engine.add(request)
        answer = _Answer(request, OutputText(self.tokenizer, params), time.perf_counter())
        self._answers[request.id] = answer
        return answer

    def _drop(self, name: str) -> None:
        self.engine.abort(name)
        self._answers.pop(name, None)

    def _take(self, output: TokenOutput) -> None:
        """Turn a token into text and keep it with its answer."""
        answer = self._answers.get(output.request_id)
        if answer is None:
            return  # a stop string ended it with an earlier token of this step
        reason, text = output.finish_reason, ""
        if answer.first is None:
            answer.first = time.perf_counter()
            answer.cached_tokens = output.cached_tokens
            answer.prompt_logprobs = output.prompt_logprobs
        answer.error = output.error
        if output.token is not None:
            answer.tokens.append(output.token)
            if output.logprobs is not None:
                answer.logprobs.append(output.logprobs)
            text, stopped = answer.output.push(output.token)
            if stopped:
                reason = "stop"
                self.engine.abort(output.request_id)
        if reason is not None:
            text += answer.output.finish()
        answer.pieces.append(text)
        completion = None
        if reason is not None:
            del self._answers[output.request_id]
            completion = self._completion(answer, reason)
        if text or completion is not None:
            answer.deltas.append(Delta(text, completion))

    def _completion(self, answer: _Answer, reason: str) -> Completion:
        assert answer.first is not None
        prompt, params = answer.request.prompt_ids, answer.request.params
        return Completion(
            prompt_ids=prompt,
            token_ids=tuple(answer.tokens),
            text="".join(answer.pieces),
            finish_reason=reason,
            timings=Timings(
                time_to_first_token=answer.first - answer.started,
                total=time.perf_counter() - answer.started,
                prompt_tokens=len(prompt),
                new_tokens=len(answer.tokens),
            ),
            logprobs=None if params.logprobs is None else tuple(answer.logprobs),
            cached_tokens=answer.cached_tokens,
            prompt_logprobs=answer.prompt_logprobs,
            error=answer.error,
        )

    def _with_tools(self, completion: Completion) -> Completion:
        """The completion of a chat, with its tool calls read; a malformed call stays text."""
        ids = [token for token in completion.token_ids if token != self.tokenizer.eos_id]
        try:
            text, calls = self.chat_format.parse_tool_calls(ids)
        except ChatError:
            return completion
        return replace(completion, text=text, tool_calls=calls) if calls else completion


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Any]:
    if isinstance(prompts, str):
        return [prompts]
    listed = list(prompts)
    return [listed] if listed and isinstance(listed[0], int) else listed
