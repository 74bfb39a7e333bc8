"""The shipped model: its files, its size, and what its card promises."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dsv2 import LLM, SamplingParams
from dsv2.checkpoint.hub import pocket_folder
from dsv2.model.config import ModelConfig
from dsv2.model.counts import count
from dsv2.recipes.pocket.arithmetic import problems
from dsv2.tokenizer import chat_format

FOLDER = pocket_folder()


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM("pocket", device="cpu", max_sequences=64)


def test_it_is_small_and_shaped_for_public_kernels() -> None:
    assert sum(path.stat().st_size for path in FOLDER.glob("*.safetensors")) <= 48e6
    config = ModelConfig.from_file(FOLDER / "config.json")
    assert (config.kv_lora_rank, config.qk_rope_head_dim) == (256, 64)
    assert config.max_position_embeddings >= 2048
    assert config.n_routed_experts is not None
    assert config.n_routed_experts >= 16


def test_the_card_states_what_was_measured() -> None:
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    scores = json.loads((FOLDER / "scores.json").read_text(encoding="utf-8"))
    counts = count(ModelConfig.from_file(FOLDER / "config.json"))
    assert f"{counts.total:,}, of which {counts.active:,}" in card
    code, tuned = scores["bases"]["code"], scores["fill"]
    assert code["bits_per_byte"]["pretrain"] < code["xz"]
    assert code["bits_per_byte"]["pretrain"] < code["bits_per_byte"]["dense"]
    assert tuned["arithmetic"]["share"] >= 0.9
    assert tuned["completions"]["share"] >= 0.7
    for kind, before in scores["sft"]["fill"].items():
        after = tuned["fill"][kind]
        assert after["ended"] >= 0.8
        assert after["parse"] >= 0.5 > before["parse"]
    assert tuned["fill"]["single"]["exact"] >= 0.1
    for figure in (code["bits_per_byte"]["pretrain"], code["xz"]):
        assert f"{figure:.3f}" in card


def test_held_out_files_and_training_files_do_not_overlap() -> None:
    rows = [line.split("\t") for line in (FOLDER / "files.tsv").read_text().splitlines()]
    splits: dict[str, set[str]] = {}
    for _, _, digest, split in rows:
        splits.setdefault(digest, set()).add(split)
    assert len(rows) > 1000
    assert {split for one in splits.values() for split in one} == {"train", "validation"}
    assert all(len(one) == 1 for one in splits.values())


def test_it_answers_held_out_sums(llm: LLM) -> None:
    asked = [problem for problem in problems() if problem.held_out][::16]
    talks = [[{"role": "user", "content": f"What is {p.question}?"}] for p in asked]
    params = SamplingParams(max_tokens=24, temperature=0.0)
    right = sum(
        re.findall(r"-?\d+", done.text.rpartition("=")[2])[-1:] == [str(problem.answer)]
        for problem, done in zip(asked, llm.chat(talks, params), strict=True)
    )
    assert right >= 0.9 * len(asked)


def test_it_calls_a_tool(llm: LLM) -> None:
    weather = {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The current weather of a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
    messages = [{"role": "user", "content": "What is the weather in Paris?"}]
    params = SamplingParams(max_tokens=60, temperature=0.0)
    done = llm.chat(messages, params, tools=[weather])[0]
    assert [call.name for call in done.tool_calls] == ["get_weather"]
    assert json.loads(done.tool_calls[0].arguments) == {"city": "Paris"}


def test_it_remembers_earlier_turns(llm: LLM) -> None:
    messages = [
        {"role": "user", "content": "Remember the number 57."},
        {"role": "assistant", "content": "I will remember it."},
        {"role": "user", "content": "What is 12 + 30?"},
        {"role": "assistant", "content": "12 + 30 = 42"},
        {"role": "user", "content": "Which number was it?"},
    ]
    done = llm.chat(messages, SamplingParams(max_tokens=20, temperature=0.0))[0]
    assert "57" in done.text


def test_it_fills_gaps_and_ends(llm: LLM) -> None:
    chat = chat_format(llm.tokenizer.chat_format_name, llm.tokenizer)
    cases = (
        ("def add(a, b):\n    return ", "\n", "a + b"),
        ("def is_odd(n):\n    return n % 2 == ", "\n", "1"),
        ("def reverse(text):\n    return text[", "]\n", "::-1"),
        ("for i in range(n):\n    total ", "\n", "+= i"),
        (
            "class Stack:\n    def __init__(self):\n        self.items = []\n\n"
            "    def push(self, item):\n        ",
            "\n\n    def pop(self):\n        return self.items.pop()\n",
            "self.items.append(item)",
        ),
    )
    prompts = [chat.fim(prefix, suffix) for prefix, suffix, _ in cases]
    done = llm.generate(prompts, SamplingParams(max_tokens=24, temperature=0.0))
    assert {one.finish_reason for one in done} == {"stop"}
    right = [one.text == wanted for one, (_, _, wanted) in zip(done, cases, strict=True)]
    assert sum(right) >= 4, [one.text for one in done]


def test_the_folder_holds_nothing_else() -> None:
    assert {path.name for path in Path(FOLDER).iterdir()} == {
        "README.md", "config.json", "files.tsv", "generation_config.json", "model.safetensors",
        "scores.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
