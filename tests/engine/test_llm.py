from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dsv2 import LLM, SamplingParams, load_model
from dsv2.engine.request import Request, RequestError
from dsv2.engine.runner import Runner
from dsv2.model.transformer import Transformer
from dsv2.ragged import RaggedBatch
from dsv2.tokenizer import ChatError, StreamDecoder
from dsv2.tokenizer.special import (
    CALL_BEGIN,
    CALL_END,
    CALLS_BEGIN,
    CALLS_END,
    TOOL_SEP,
)

# The random model may say its end-of-sequence token anywhere, so it does not count.
GREEDY = SamplingParams(max_tokens=20, temperature=0.0, ignore_eos=True)
PROMPTS = ["def f(x):", "import", "a b c d e " * 30, "class A:\n    pass\n" * 9, "x"]


@pytest.fixture(scope="module", params=["cpu", "torch"])
def llm(tiny_folder: Path, request: pytest.FixtureRequest) -> LLM:
    return LLM(tiny_folder, device="cpu", dtype="float32", backend=request.param)


@pytest.fixture(scope="module")
def plain(tiny_folder: Path) -> Transformer:
    return load_model(tiny_folder, dtype="float32", backend="reference")


def greedy_by_hand(model: Transformer, llm: LLM, prompt: str, count: int) -> list[int]:
    """The whole sequence through the model again for every token, without any cache."""
    ids = [llm.tokenizer.bos_id, *llm.tokenizer.encode(prompt)]
    start = len(ids)
    with torch.inference_mode():
        for _ in range(count):
            logits, _ = model(RaggedBatch.packed(torch.tensor(ids), [len(ids)]))
            ids.append(int(logits[-1].argmax()))
    return ids[start:]


def test_cached_batched_chunked_generation_equals_the_plain_loop(
    llm: LLM, plain: Transformer
) -> None:
    expected = [greedy_by_hand(plain, llm, prompt, GREEDY.max_tokens) for prompt in PROMPTS]
    assert len({tuple(tokens) for tokens in expected}) == len(PROMPTS)
    backend = llm.description.split()[-1] if "torch" in llm.description else "cpu"
    chunked = LLM(
        llm.folder, device="cpu", dtype="float32", backend=backend,
        max_sequences=3, max_step_tokens=7,
    )  # fmt: skip
    for one in (llm, chunked):
        assert [list(done.token_ids) for done in one.generate(PROMPTS, GREEDY)] == expected


def test_a_seed_gives_the_same_answer_alone_and_in_any_company(llm: LLM) -> None:
    params = [replace(GREEDY, max_tokens=16, temperature=1.5, seed=n) for n in range(len(PROMPTS))]
    together = [done.token_ids for done in llm.generate(PROMPTS, params)]
    alone = [llm.generate(p, q)[0].token_ids for p, q in zip(PROMPTS, params, strict=True)]
    backwards = [done.token_ids for done in llm.generate(PROMPTS[::-1], params[::-1])][::-1]
    assert together == alone == backwards
    other = llm.generate(PROMPTS[0], replace(params[0], seed=99))[0].token_ids
    assert other != together[0]


def test_without_a_seed_answers_differ(llm: LLM) -> None:
    params = SamplingParams(max_tokens=12, temperature=2.0)
    assert len({done.token_ids for done in llm.generate(["a"] * 8, params)}) > 1


def test_completions_say_why_they_ended(llm: LLM) -> None:
    done = llm.generate("x", GREEDY)[0]
    assert done.finish_reason == "length"
    assert len(done.token_ids) == GREEDY.max_tokens
    assert done.text == llm.tokenizer.decode(done.token_ids)
    third = done.token_ids[2]
    stopped = llm.generate("x", replace(GREEDY, stop_token_ids=[third]))[0]
    assert stopped.finish_reason == "stop"
    assert stopped.token_ids == done.token_ids[: done.token_ids.index(third) + 1]
    ending = replace(GREEDY, logit_bias={llm.tokenizer.eos_id: 100.0})
    assert llm.generate("x", ending)[0].finish_reason == "length"
    at_eos = llm.generate("x", replace(ending, ignore_eos=False))[0]
    assert (at_eos.finish_reason, at_eos.text) == ("stop", "")


def test_a_stop_string_ends_the_answer_and_frees_the_cache(llm: LLM) -> None:
    whole = llm.generate("x", GREEDY)[0].text
    stop = whole[len(whole) // 2 :][:2]
    done = llm.generate("x", replace(GREEDY, stop=stop))[0]
    assert done.finish_reason == "stop"
    assert done.text == whole[: whole.index(stop)]
    assert not llm.engine.has_work
    pool = llm.engine._scheduler.pool
    assert pool.num_free == pool.total


def test_the_stream_is_the_completion_in_pieces(llm: LLM) -> None:
    whole = llm.generate("x", GREEDY)[0]
    deltas = list(llm.stream("x", GREEDY))
    assert "".join(delta.text for delta in deltas) == whole.text
    assert [delta.completion is not None for delta in deltas] == [False] * (len(deltas) - 1) + [
        True
    ]
    last = deltas[-1].completion
    assert last is not None
    assert last.token_ids == whole.token_ids
    assert last.timings.total >= last.timings.time_to_first_token > 0


def test_closing_a_stream_frees_its_cache(llm: LLM) -> None:
    stream = llm.stream("x", replace(GREEDY, max_tokens=400))
    next(stream)
    pool = llm.engine._scheduler.pool
    assert pool.num_free < pool.total
    stream.close()
    assert pool.num_free == pool.total
    assert not llm.engine.has_work


def test_two_streams_at_once_do_not_lose_each_others_tokens(llm: LLM) -> None:
    expected = [llm.generate(prompt, GREEDY)[0].text for prompt in ("x", "import")]
    streams = [llm.stream("x", GREEDY), llm.stream("import", GREEDY)]
    texts = ["", ""]
    open_streams = {0, 1}
    while open_streams:
        for place in sorted(open_streams):
            delta = next(streams[place], None)
            if delta is None:
                open_streams.discard(place)
            else:
                texts[place] += delta.text
    assert texts == expected


def test_logprobs_are_those_of_a_forward_over_the_answer(llm: LLM, plain: Transformer) -> None:
    done = llm.generate("import", replace(GREEDY, logprobs=2))[0]
    assert done.logprobs is not None
    ids = torch.tensor([*done.prompt_ids, *done.token_ids])
    with torch.inference_mode():
        logits, _ = plain(RaggedBatch.packed(ids, [len(ids)]))
    logs = logits.log_softmax(-1)[len(done.prompt_ids) - 1 : -1]
    for step, (token, found) in enumerate(zip(done.token_ids, done.logprobs, strict=True)):
        assert found.chosen == pytest.approx(float(logs[step, token]), abs=1e-4)
        assert found.top[0][0] == token
        assert len(found.top) == 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "torch"])
def test_a_sequence_with_bad_numbers_fails_alone(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    backend, dtype = ("torch", "float32") if dtype == "torch" else ("cpu", dtype)
    llm, broken = (LLM(tiny_folder, device="cpu", dtype=dtype, backend=backend) for _ in range(2))
    clean = [prompt for prompt in PROMPTS if prompt != "import"]
    expected = [done.token_ids for done in llm.generate(clean, GREEDY)]
    # A token that nobody else reads or says.
    said = {token for answer in expected for token in answer}
    said.update(*(llm.tokenizer.encode(prompt) for prompt in clean), [llm.tokenizer.bos_id])
    token = next(number for number in range(100, 500) if number not in said)
    if isinstance(broken.model, Transformer):
        with torch.no_grad():
            broken.model.embed[token] = float("nan")
    else:
        embed = broken.model.executor.embed

        def poisoned(handle: Any, ids: torch.Tensor) -> torch.Tensor:
            return embed(handle, ids).masked_fill((ids == token).unsqueeze(1), float("nan"))

        monkeypatch.setattr(broken.model.executor, "embed", poisoned)
    found = broken.generate([*clean[:2], [llm.tokenizer.bos_id, token], *clean[2:]], GREEDY)
    assert found[2].finish_reason == "error"
    assert [done.token_ids for done in (*found[:2], *found[3:])] == expected
    # The failed sequence's blocks hold NaN; who gets them next must not see it.
    again = broken.generate(clean, GREEDY)
    assert [done.token_ids for done in again] == expected


@pytest.mark.parametrize("place", [100, 150])
def test_bad_numbers_of_a_prompt_are_shared_with_nobody(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    """Neither those of a chunk that nothing is chosen after, nor those of the last (F36)."""
    llm = LLM(tiny_folder, device="cpu", dtype="float32", max_step_tokens=128)
    assert not isinstance(llm.model, Transformer)
    prompt = [1 + (7 * n) % 400 for n in range(200)]
    expected = LLM(tiny_folder, device="cpu", dtype="float32").generate([prompt], GREEDY)
    executor, bad = llm.model.executor, prompt[place]
    embed = executor.embed

    def poisoned(handle: Any, ids: torch.Tensor) -> torch.Tensor:
        return embed(handle, ids).masked_fill((ids == bad).unsqueeze(1), float("nan"))

    monkeypatch.setattr(executor, "embed", poisoned)
    steps, outputs = 0, []
    llm.engine.add(Request("bad", tuple(prompt), GREEDY))
    while llm.engine.has_work:
        outputs += llm.engine.step()
        steps += 1
    assert [one.finish_reason for one in outputs] == ["error"]
    assert outputs[0].error == "the model's numbers are not finite"
    assert steps == (1 if place < 128 else 2)  # not a step after the one that shows it
    monkeypatch.setattr(executor, "embed", embed)
    done = llm.generate([prompt], GREEDY)
    assert done[0].cached_tokens == 0
    assert done[0].token_ids == expected[0].token_ids


def test_nothing_runs_when_one_request_is_malformed(llm: LLM) -> None:
    with pytest.raises(RequestError, match="temperature"):
        llm.generate(["a", "b"], [GREEDY, replace(GREEDY, temperature=-1.0)])
    with pytest.raises(RequestError, match="maximum context length"):
        llm.generate("word " * 600, GREEDY)
    with pytest.raises(RequestError, match="params"):
        llm.generate(["a", "b"], [GREEDY])
    for nothing in ([], ""):
        with pytest.raises((RequestError, ChatError)):
            list(llm.stream(nothing, GREEDY) if nothing == [] else llm.chat([], GREEDY))
    assert not llm.engine.has_work


def test_request_ids_are_unique(llm: LLM) -> None:
    request = Request("twice", (1,), GREEDY)
    llm.engine.add(request)
    with pytest.raises(ValueError, match="in use"):
        llm.engine.add(request)
    llm.engine.abort("twice")
    llm.engine.abort("twice")
    assert not llm.engine.has_work


def test_chat_renders_the_format_and_generates_from_it(llm: LLM) -> None:
    messages = [{"role": "user", "content": "hello"}]
    ids = llm.chat_format.render(messages, add_generation_prompt=True).ids
    done = llm.chat(messages, GREEDY)[0]
    assert list(done.prompt_ids) == ids
    assert done.token_ids == llm.generate(ids, GREEDY)[0].token_ids  # type: ignore[arg-type]
    both = llm.chat([messages, messages], GREEDY)
    assert [one.token_ids for one in both] == [done.token_ids] * 2
    with pytest.raises(ChatError, match="role"):
        llm.chat([{"role": "robot", "content": "x"}], GREEDY)


def test_tool_calls_are_read_from_tokens(llm: LLM) -> None:
    tokens = llm.tokenizer
    call = [
        tokens.control(CALLS_BEGIN), tokens.control(CALL_BEGIN), *tokens.encode("function"),
        tokens.control(TOOL_SEP), *tokens.encode('add\n```json\n{"a": 1}\n```'),
        tokens.control(CALL_END), tokens.control(CALLS_END), tokens.eos_id,
    ]  # fmt: skip
    done = replace(llm.generate("x", GREEDY)[0], token_ids=tuple(call))
    found = llm._with_tools(done)
    assert [(one.name, json.loads(one.arguments)) for one in found.tool_calls] == [
        ("add", {"a": 1})
    ]
    cut = llm._with_tools(replace(done, token_ids=tuple(call[:-4])))
    assert cut.tool_calls == ()


def test_options_out_of_bounds_are_refused(tiny_folder: Path) -> None:
    for options, words in (
        ({"device": "tpu9"}, "device"),
        ({"dtype": "int3"}, "dtype"),
        ({"cache_tokens": 5}, "cache_tokens"),
        ({"backend": "nosuch"}, "nosuch"),
    ):
        with pytest.raises(ValueError, match=words):
            LLM(tiny_folder, **options)  # type: ignore[arg-type]


def test_a_small_cache_bounds_the_context_and_still_serves_all(tiny_folder: Path, llm: LLM) -> None:
    small = LLM(tiny_folder, device="cpu", dtype="float32", cache_tokens=128)
    assert small.limits.max_context == 128
    short = [prompt for prompt in PROMPTS if len(prompt) < 50]
    expected = [done.token_ids for done in llm.generate(short, GREEDY)]
    assert [done.token_ids for done in small.generate(short, GREEDY)] == expected


def test_stream_decoder_and_output_agree(llm: LLM) -> None:
    done = llm.generate("x", GREEDY)[0]
    decoder = StreamDecoder(llm.tokenizer)
    text = "".join(decoder.push(token) for token in done.token_ids) + decoder.finish()
    assert text == done.text


def test_the_logprobs_of_long_prompts_take_little_memory(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault F15: fifty prompts at once have the logits of a few of their tokens at a time."""
    llm = LLM(tiny_folder, device="cpu", dtype="float32", max_sequences=50, max_step_tokens=4000)
    rows: list[int] = []
    logits = Runner.logits

    def count(self: Runner, hidden: torch.Tensor) -> torch.Tensor:
        rows.append(len(hidden))
        return logits(self, hidden)

    monkeypatch.setattr(Runner, "logits", count)
    params = SamplingParams(max_tokens=1, logprobs=1, prompt_logprobs=1, ignore_eos=True)
    prompts = [[3 + (n * k) % 180 for k in range(400)] for n in range(50)]
    answers = llm.generate(prompts, params)
    assert [len(one.prompt_logprobs or ()) for one in answers] == [400] * 50
    assert sum(rows) >= 50 * 399
    assert max(rows) <= 64
