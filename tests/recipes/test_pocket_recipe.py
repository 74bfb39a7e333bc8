from __future__ import annotations

import importlib.metadata
import json
import math
import re
from pathlib import Path

import pytest
import torch

from dsv2 import LLM
from dsv2.checkpoint.hub import ModelNotFoundError, pocket_folder
from dsv2.model.transformer import Transformer
from dsv2.ragged import RaggedBatch
from dsv2.recipes.pocket import __main__ as steps
from dsv2.recipes.pocket import basics, corpus
from dsv2.recipes.pocket.arithmetic import Problem, problems
from dsv2.recipes.pocket.card import run_figures, write_card
from dsv2.recipes.pocket.conversations import Builder, conversations, third_person
from dsv2.recipes.pocket.corpus import (
    SourceFile,
    arithmetic_texts,
    digests_of,
    docstrings,
    is_permissive,
    texts_of,
    write_corpus,
)
from dsv2.recipes.pocket.functions import Function, functions_of, parses
from dsv2.recipes.pocket.score import bits_per_byte, function_body, xz_bits_per_byte
from dsv2.tokenizer import chat_format
from dsv2.training.config import load_recipe
from tests.text import train_tiny

FUNCTIONS: list[Function] = list(functions_of(Path(str(basics.__file__)).read_text()))
SUM = re.compile(r"(\d+) ([+-]) (\d+)")


def test_a_tenth_of_the_sums_is_held_out_with_its_mirror_image() -> None:
    everything = list(problems())
    held = [problem for problem in everything if problem.held_out]
    assert len(everything) == 2 * 90 * 90
    assert 0.08 < len(held) / len(everything) < 0.12
    for problem in held:
        if problem.sign == "+":
            assert Problem(problem.right, "+", problem.left).held_out


def test_no_training_text_holds_a_held_out_sum() -> None:
    held = {(p.left, p.sign, p.right) for p in problems() if p.held_out}
    texts = list(arithmetic_texts(pages=300))
    texts += [json.dumps(one, ensure_ascii=False) for one in conversations(FUNCTIONS)]
    found = {(int(a), sign, int(b)) for text in texts for a, sign, b in SUM.findall(text)}
    assert len(found) > 5000
    assert not found & held


def test_sums_in_texts_are_right() -> None:
    for text in arithmetic_texts(pages=6):
        for line in text.splitlines():
            if " = " in line:
                question, answer = line.split(" = ")
                a, sign, b = question.split()
                assert int(answer) == (int(a) + int(b) if sign == "+" else int(a) - int(b))


def test_functions_are_taken_apart_and_put_together() -> None:
    assert len(FUNCTIONS) > 40
    for function in FUNCTIONS:
        assert parses(function.short)
        assert function.opening in function.short
        assert function.purpose in function.opening
    found = next(f for f in FUNCTIONS if f.name == "gcd")
    assert found.parameters == ("a", "b")
    assert found.signature == "def gcd(a: int, b: int) -> int:\n"


@pytest.mark.parametrize(
    "source",
    [
        "def f(:",
        "def no_docstring(x):\n    return x\n",
        'def only_docstring(x):\n    """Say what it is for."""\n',
        'def test_something(x):\n    """Say what it is for."""\n    return x\n',
        'def many_lines(x):\n    """Say what it is for."""\n' + "    x += 1\n" * 30,
    ],
)
def test_what_is_no_small_documented_function_is_left(source: str) -> None:
    assert list(functions_of(source)) == []


def test_every_conversation_renders_and_has_something_to_learn(tmp_path: Path) -> None:
    tokenizer = train_tiny(tmp_path)
    formatted = chat_format("v2.5", tokenizer)
    builder = Builder(FUNCTIONS, 1)
    makers = [builder.number, builder.function, builder.fact, builder.echo, builder.memory,
              builder.several]  # fmt: skip
    talks = [{"messages": make()} for make in makers for _ in range(40)]
    talks += [builder.tools() for _ in range(80)]
    roles = set()
    for talk in talks:
        rendered = formatted.render(
            talk["messages"], tools=talk.get("tools", ()), add_generation_prompt=False
        )
        assert any(rendered.loss_mask)
        roles |= {message["role"] for message in talk["messages"]}
    assert roles == {"system", "user", "assistant", "tool"}
    assert any(len(talk["messages"]) > 6 for talk in talks)


def test_the_same_seed_builds_the_same_conversations() -> None:
    first = [Builder(FUNCTIONS, 3).several() for _ in range(5)]
    assert first == [Builder(FUNCTIONS, 3).several() for _ in range(5)]


def test_verbs_in_the_third_person() -> None:
    pairs = {"Return the sum": "returns the sum", "Copy a": "copies a", "Fetch": "fetches",
             "Returns it": "returns it", "Play": "plays", "Compress": "compresses"}  # fmt: skip
    assert {text: third_person(text) for text in pairs} == pairs


def test_licences_are_read_from_the_packages_own_metadata() -> None:
    assert is_permissive(importlib.metadata.distribution("numpy").metadata)
    assert is_permissive(importlib.metadata.distribution("pydantic").metadata)
    assert not is_permissive(importlib.metadata.distribution("hypothesis").metadata)  # MPL


def test_longer_docstrings_are_prose() -> None:
    text = f'"""Short."""\ndef f():\n    """{"Words and more words. " * 30}"""\n'
    assert [found[:9] for found in docstrings(text)] == ["Words and"]
    assert list(docstrings("def f(:")) == []


def test_a_completion_ends_where_the_function_does() -> None:
    assert function_body("    a = 1\n\n    return a\nprint(1)\n    x") == (
        "    a = 1\n\n    return a\n"
    )


def test_bits_per_byte_are_those_of_the_models_own_probabilities(tiny_folder: Path) -> None:
    llm = LLM(tiny_folder, device="cpu", dtype="float32", backend="torch")
    assert isinstance(llm.model, Transformer)
    text = "def f(x):\n    return x\n" * 4
    found, loads = bits_per_byte(llm.model, llm.tokenizer, [text], 512)
    ids = [llm.tokenizer.bos_id, *llm.tokenizer.encode(text)]
    with torch.inference_mode():
        logits, _ = llm.model(RaggedBatch.packed(torch.tensor(ids), [len(ids)]))
    logs = logits.log_softmax(-1)
    nll = -sum(float(logs[i, ids[i + 1]]) for i in range(len(ids) - 1))
    assert found == pytest.approx(nll / math.log(2) / len(text), rel=1e-4)
    assert loads is not None
    assert int(loads[0].sum()) == (len(ids) - 1) * 3
    windowed, _ = bits_per_byte(llm.model, llm.tokenizer, [text], 16)
    assert windowed != found


def test_xz_is_measured_on_the_whole() -> None:
    assert xz_bits_per_byte(["abc" * 1000]) < 0.5
    assert xz_bits_per_byte(["abc" * 500, "abc" * 500]) == xz_bits_per_byte(["abc" * 1000])


@pytest.mark.parametrize("name", ["pretrain", "dense", "sft", "fill"])
def test_the_recipes_are_valid(name: str) -> None:
    config = load_recipe(Path(str(basics.__file__)).with_name(f"{name}.yaml"))
    assert config.tokens > 10**7


def test_a_corpus_can_be_bounded_by_the_list_of_an_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [SourceFile("own", f"{n}.py", f"{n}" * 64, "train", f"x = {n}\n") for n in range(4)]
    monkeypatch.setattr(corpus, "source_files", lambda: iter(files))
    monkeypatch.setattr(corpus, "topics", lambda: iter(()))
    monkeypatch.setattr(corpus, "arithmetic_texts", lambda: iter(()))
    listing = write_corpus(tmp_path / "whole")
    assert digests_of(listing) == {f"{n}" * 16 for n in range(4)}
    files.append(SourceFile("own", "new.py", "f" * 64, "train", "x = 5\n"))
    again = write_corpus(tmp_path / "again", listing)
    assert again.read_text() == listing.read_text()
    assert len(list(texts_of(tmp_path / "again" / "train" / "code.jsonl"))) == 4


def test_the_card_is_written_from_the_scores_alone(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(pocket_folder() / name)
    scores = json.loads((pocket_folder() / "scores.json").read_text(encoding="utf-8"))
    gaps = {"asked": 9, "exact": 0.123, "parse": 0.456, "ended": 0.789}
    run = tmp_path / "run"
    run.mkdir()
    lines = [{"tokens": 5, "step": 1, "loss": 2.0}, {"tokens": 77_777, "step": 2, "loss": 1.0,
             "validation_loss": 0.321, "learning_rate": 0.0}]  # fmt: skip
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "machine.txt").write_text("on a machine of the test\n")
    scores["runs"]["fill"] = run_figures(run)
    scores["sft"]["fill"] = {"single": gaps, "multi": gaps}
    scores["fill"] = scores["sft"] | {"measured": "2026-12-24"}
    write_card(tmp_path, scores)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "| gaps and conversations | 77,777 | 2 | 1.000 | 0.321 |" in card
    day = f"measured on {scores['bases']['measured']}"
    for words in ("on a machine of the test", "12.3%", "45.6%", "78.9%", "2026-12-24", day):
        assert words in card
    assert "{" not in card
    assert json.loads((tmp_path / "scores.json").read_text(encoding="utf-8")) == scores


def test_the_last_steps_go_on_from_a_finished_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gaps = {"asked": 2, "exact": 0.5, "parse": 0.5, "ended": 1.0}
    task = {"asked": 2, "share": 0.5}
    found = {"completions": task, "requests": task, "arithmetic": task,
             "fill": {"single": gaps, "multi": gaps}}  # fmt: skip
    monkeypatch.setattr(steps, "LLM", lambda folder, **options: folder.parent.name)
    monkeypatch.setattr(steps, "score_tuned", lambda corpus, llm: found | {"model": llm})
    (tmp_path / "fill" / "model").mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "fill" / "model" / name).symlink_to(pocket_folder() / name)
    line = {"tokens": 9, "step": 1, "loss": 1.0, "validation_loss": 2.0}
    (tmp_path / "fill" / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    build = steps.Build(tmp_path, "cpu", pocket_folder())
    build.before()
    build.scores()
    build.card()
    earlier = json.loads((pocket_folder() / "scores.json").read_text(encoding="utf-8"))
    scores = json.loads((tmp_path / "card" / "scores.json").read_text(encoding="utf-8"))
    assert scores["bases"] == earlier["bases"]
    assert scores["runs"]["pretrain"] == earlier["runs"]["pretrain"]
    assert scores["runs"]["fill"] == line
    assert [scores[name]["model"] for name in ("sft", "fill")] == ["sft", "fill"]
    assert (tmp_path / "card" / "files.tsv").read_bytes() == (
        pocket_folder() / "files.tsv"
    ).read_bytes()
    with pytest.raises(ModelNotFoundError, match="pretrain"):
        steps.Build(tmp_path, "cpu").scores()
