from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from dsv2.engine.request import (
    Limits,
    Request,
    RequestError,
    SamplingParams,
    Structure,
    validate,
)

LIMITS = Limits(vocab_size=100, max_context=64)


def ask(prompt: Any = (1, 2), **params: Any) -> None:
    validate(Request("a", prompt, SamplingParams(**{"max_tokens": 8} | params)), LIMITS)


def test_what_is_allowed_passes() -> None:
    ask(
        temperature=0, top_p=0.5, top_k=3, min_p=0.1, presence_penalty=-2, frequency_penalty=2,
        repetition_penalty=1.3, logit_bias={5: -100}, seed=2**63 - 1, stop=["a", "b"],
        stop_token_ids=[3], logprobs=20, min_tokens=8,
    )  # fmt: skip
    ask(stop="one string")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0), ("max_tokens", -1), ("max_tokens", 2**31), ("max_tokens", 1.5),
        ("max_tokens", True), ("max_tokens", "3"), ("max_tokens", None),
        ("min_tokens", 9), ("min_tokens", -1),
        ("temperature", math.nan), ("temperature", math.inf), ("temperature", -0.1),
        ("temperature", "0.5"), ("temperature", True), ("temperature", None),
        ("top_p", 1.1), ("top_p", -0.1), ("top_p", math.nan),
        ("top_k", -1), ("top_k", 1.0), ("min_p", 2), ("min_p", -math.inf),
        ("presence_penalty", 2.1), ("frequency_penalty", -2.1),
        ("repetition_penalty", 0), ("repetition_penalty", math.inf),
        ("logit_bias", {100: 1.0}), ("logit_bias", {-1: 1.0}), ("logit_bias", [1]),
        ("logit_bias", {str(n): 1.0 for n in range(3)}),
        ("logit_bias", dict.fromkeys(range(5000), 0.0)),
        ("seed", -1), ("seed", 2**63), ("seed", 0.0),
        ("stop", [""]), ("stop", [1]), ("stop", ["a"] * 65), ("stop", ["a" * 1001]), ("stop", 5),
        ("stop_token_ids", [100]), ("stop_token_ids", [-1]), ("stop_token_ids", [0] * 65),
        ("stop_token_ids", None), ("stop_token_ids", 5), ("stop_token_ids", "ab"),
        ("structure", 5), ("logprobs", -1), ("logprobs", 21), ("logprobs", True), ("ignore_eos", 1),
    ],
)  # fmt: skip
def test_what_is_not_allowed_names_its_field(field: str, value: Any) -> None:
    with pytest.raises(RequestError, match=field) as caught:
        ask(**{field: value})
    assert caught.value.field.startswith(field)


def test_a_structure_ends_its_answer_itself() -> None:
    with pytest.raises(RequestError, match="min_tokens is 5 beside a structure"):
        ask(min_tokens=5, structure=Structure("regex", "ab"))
    ask(structure=Structure("regex", "ab"))


@pytest.mark.parametrize("prompt", [(), (100,), (-1,), (1, 2.0), "ab", (True,)])
def test_prompts_are_tokens_of_the_vocabulary(prompt: Any) -> None:
    with pytest.raises(RequestError, match="prompt"):
        ask(prompt)


def test_a_prompt_and_answer_beyond_the_context_say_so_in_the_words_clients_parse() -> None:
    ask(tuple(range(56)))
    with pytest.raises(RequestError) as caught:
        ask(tuple(range(57)))
    assert "maximum context length is 64" in str(caught.value)
    assert "Please reduce the length" in str(caught.value)


def test_replacing_a_parameter_leaves_the_original() -> None:
    params = SamplingParams()
    assert replace(params, top_k=5).top_k == 5
    assert params.top_k == 0


@pytest.mark.parametrize("module", ["request", "blocks", "scheduler"])
def test_admission_loads_no_torch(module: str) -> None:
    code = f"import sys, dsv2.engine.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
