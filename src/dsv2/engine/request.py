"""What may be asked of the engine, and the gate that every request passes. No tensors here."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dsv2.engine.schema_bounds import problem_of, problem_of_grammar

MAX_SEED = 2**63 - 1
MAX_PRIORITY = 1000
MAX_NAME_CHARS = 256


class RequestError(ValueError):
    """A request is malformed.

    Attributes:
        field: names what is wrong with it.
        problem: the message without the name.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field} {message}")
        self.field, self.problem = field, message


class ContextLengthError(RequestError):
    """Prompt and answer together are longer than the model's context."""


class OverloadedError(RuntimeError):
    """The line is full; the same request may be taken later."""


STRUCTURES = ("json_object", "json_schema", "regex", "grammar")
MAX_STRUCTURE_CHARS = 65_536


@dataclass(frozen=True)
class Structure:
    """What an answer must look like.

    Attributes:
        kind: ``json_object``, ``json_schema``, ``regex``, or ``grammar`` in Lark's form.
        text: the schema as JSON, the expression or the grammar; empty for ``json_object``.
    """

    kind: str
    text: str = ""


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen and when to stop.

    Attributes:
        max_tokens: most tokens to generate.
        min_tokens: no end before so many tokens.
        temperature: divides the logits; 0 is greedy.
        top_p: smallest set of tokens whose probabilities reach it; 1 is off.
        top_k: that many best tokens; 0 is off.
        min_p: tokens at least so probable relative to the best; 0 is off.
        presence_penalty: subtracted from the logits of generated tokens, once each.
        frequency_penalty: subtracted for each time a token was generated.
        repetition_penalty: divides positive and multiplies negative logits of tokens in the prompt
            or the answer; 1 is off.
        logit_bias: added to the logits of tokens by id.
        seed: makes the choice repeatable, whatever else is in the batch; None for a random one.
        stop: texts that end the answer; they are not part of it.
        stop_token_ids: tokens that end the answer, besides the model's own.
        ignore_eos: go on behind the end-of-sequence token.
        logprobs: natural logarithms of that many best tokens' probabilities for each step, beside
            the chosen token's; None for none. They are the model's own, before any penalty.
        prompt_logprobs: the same for the tokens of the prompt, whose first has none.
        structure: what the answer must look like; None for free text.
    """

    max_tokens: int = 256
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    structure: Structure | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


@dataclass(frozen=True)
class Limits:
    """What one engine can take.

    Attributes:
        vocab_size: token ids are below it.
        max_context: most tokens of prompt and answer together.
        max_logprobs: largest ``logprobs``.
        max_stops: most stop strings, and most stop tokens.
        max_stop_chars: longest stop string.
        max_biases: most entries of ``logit_bias``.
    """

    vocab_size: int
    max_context: int
    max_logprobs: int = 20
    max_stops: int = 64
    max_stop_chars: int = 1000
    max_biases: int = 1024


@dataclass(frozen=True)
class Request:
    """A prompt to be continued.

    Attributes:
        id: unique among the requests under way.
        prompt_ids: its tokens.
        params: how to go on.
        priority: higher ones go first and may take a lower one's place.
        tenant: who asks; within a priority tenants share alike.
        salt: only requests of equal salt share cached prefixes, so that nobody can find out by the
            clock what others have asked.
    """

    id: str
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    priority: int = 0
    tenant: str = ""
    salt: str = ""


def _integer(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise RequestError(name, f"is {value!r:.60}, allowed is an integer from {low} to {high}")


def _number(name: str, value: Any, low: float, high: float) -> None:
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not good or not math.isfinite(value) or not low <= value <= high:
        raise RequestError(name, f"is {value!r:.60}, allowed is a number from {low} to {high}")


def _tokens(name: str, values: Any, limits: Limits, most: int | None = None) -> None:
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
        raise RequestError(name, f"is a {type(values).__name__}, allowed is a list of token ids")
    if most is not None and len(values) > most:
        raise RequestError(name, f"has {len(values)} entries, allowed are {most}")
    for place, token in enumerate(values):
        _integer(f"{name}[{place}]", token, 0, limits.vocab_size - 1)


def validate_params(params: SamplingParams, limits: Limits) -> None:
    """Check everything but the prompt.

    Raises:
        RequestError: naming the first field that is out of bounds, its value and what is allowed.
    """
    _integer("max_tokens", params.max_tokens, 1, 2**31 - 1)
    _integer("min_tokens", params.min_tokens, 0, params.max_tokens)
    _number("temperature", params.temperature, 0.0, 2.0)
    _number("top_p", params.top_p, 0.0, 1.0)
    _integer("top_k", params.top_k, 0, 2**31 - 1)
    _number("min_p", params.min_p, 0.0, 1.0)
    _number("presence_penalty", params.presence_penalty, -2.0, 2.0)
    _number("frequency_penalty", params.frequency_penalty, -2.0, 2.0)
    _number("repetition_penalty", params.repetition_penalty, 0.01, 100.0)
    if params.seed is not None:
        _integer("seed", params.seed, 0, MAX_SEED)
    for name in ("logprobs", "prompt_logprobs"):
        if (wanted := getattr(params, name)) is not None:
            _integer(name, wanted, 0, min(limits.max_logprobs, limits.vocab_size))
    if not isinstance(params.ignore_eos, bool):
        raise RequestError("ignore_eos", f"is {params.ignore_eos!r:.60}, allowed is a bool")
    _check_structure(params.structure)
    if params.structure is not None and params.min_tokens:
        raise RequestError(
            "min_tokens",
            f"is {params.min_tokens} beside a structure, where an answer ends when it is "
            "complete; allowed is 0",
        )
    _check_bias(params.logit_bias, limits)
    _check_stops(params, limits)


def _check_structure(structure: Any) -> None:
    if structure is None:
        return
    if not isinstance(structure, Structure) or structure.kind not in STRUCTURES:
        kind = getattr(structure, "kind", structure)
        raise RequestError("structure", f"is {kind!r:.60}, allowed are {', '.join(STRUCTURES)}")
    text = structure.text
    if not isinstance(text, str) or len(text) > MAX_STRUCTURE_CHARS:
        raise RequestError("structure", f"must be a text of up to {MAX_STRUCTURE_CHARS} characters")
    if (structure.kind == "json_object") != (text == ""):
        raise RequestError("structure", f"of kind {structure.kind} has text {text!r:.60}")
    if structure.kind == "json_schema":
        try:
            schema = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise RequestError("structure", f"is not valid JSON: {error}") from error
        problem = problem_of(schema)
    else:
        problem = problem_of_grammar(text) if structure.kind == "grammar" else None
    if problem is not None:
        raise RequestError("structure", problem)


def _check_bias(bias: Any, limits: Limits) -> None:
    if not isinstance(bias, Mapping) or len(bias) > limits.max_biases:
        raise RequestError(
            "logit_bias", f"must be a mapping of at most {limits.max_biases} token ids"
        )
    for token, value in bias.items():
        _integer("logit_bias", token, 0, limits.vocab_size - 1)
        _number(f"logit_bias[{token}]", value, -100.0, 100.0)


def _check_stops(params: SamplingParams, limits: Limits) -> None:
    if not isinstance(params.stop, (str, Sequence)):
        raise RequestError(
            "stop", f"is a {type(params.stop).__name__}, allowed is a string or a list"
        )
    stops = params.stops
    if len(stops) > limits.max_stops:
        raise RequestError("stop", f"has {len(stops)} strings, allowed are {limits.max_stops}")
    for place, stop in enumerate(stops):
        if not isinstance(stop, str) or not 0 < len(stop) <= limits.max_stop_chars:
            raise RequestError(
                f"stop[{place}]",
                f"is {stop!r:.60}, allowed is a string of 1 to {limits.max_stop_chars} characters",
            )
    _tokens("stop_token_ids", params.stop_token_ids, limits, limits.max_stops)


def validate(request: Request, limits: Limits) -> None:
    """The gate: a request that passes can be run.

    Raises:
        RequestError: naming the field, its value and what is allowed.
    """
    validate_params(request.params, limits)
    _tokens("prompt", request.prompt_ids, limits)
    if not request.prompt_ids:
        raise RequestError("prompt", "is empty, allowed is at least one token")
    _integer("priority", request.priority, -MAX_PRIORITY, MAX_PRIORITY)
    for name in ("tenant", "salt"):
        value = getattr(request, name)
        if not isinstance(value, str) or len(value) > MAX_NAME_CHARS:
            raise RequestError(
                name, f"is {value!r:.60}, allowed is a string of up to {MAX_NAME_CHARS} characters"
            )
    prompt, answer = len(request.prompt_ids), request.params.max_tokens
    if prompt + answer > limits.max_context:
        raise ContextLengthError(
            "max_tokens",
            f"does not fit: this model's maximum context length is {limits.max_context} tokens, "
            f"but {prompt + answer} were asked for ({prompt} in the prompt, {answer} for the "
            "answer). Please reduce the length of the messages or completion.",
        )
