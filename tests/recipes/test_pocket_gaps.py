from __future__ import annotations

import ast
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from dsv2 import LLM
from dsv2.recipes.pocket import basics
from dsv2.recipes.pocket.functions import parses
from dsv2.recipes.pocket.gaps import (
    LINES,
    SHOWN,
    Gap,
    GapMaker,
    gaps_of,
    is_copy,
    long_lines,
    write_gaps,
)
from dsv2.recipes.pocket.idioms import IDIOMS
from dsv2.recipes.pocket.python_code import Code, code_of
from dsv2.recipes.pocket.score import gaps_filled, held_out_gaps
from dsv2.recipes.pocket.snippets import basic_snippets, plain, snippets_of
from dsv2.tokenizer import Tokenizer, chat_format
from dsv2.training.prepare import PrepareConfig, Source, prepare
from dsv2.training.shards import TokenDataset
from tests.text import sources, train_tiny

BASICS = Path(str(basics.__file__)).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    texts = sources()
    for split, some in (("train", texts[:40]), ("validation", texts[40:52])):
        (folder / split).mkdir()
        lines = "".join(json.dumps({"text": text}) + "\n" for text in some)
        (folder / split / "code.jsonl").write_text(lines, encoding="utf-8")
    return folder


def drawn(code: Code, count: int) -> list[Gap]:
    maker = GapMaker(5)
    return [gap for gap in (maker.draw(code) for _ in range(count)) if gap is not None]


def test_gaps_are_parts_of_their_text_with_some_of_it_around_them() -> None:
    code = Code(BASICS)
    found = drawn(code, 600)
    assert len(found) > 500
    for gap in found:
        assert gap.prefix + gap.middle + gap.suffix in BASICS
        assert gap.filled(gap.middle) == BASICS
        assert gap.middle.strip()
        assert len(gap.prefix) <= SHOWN
        assert len(gap.suffix) <= SHOWN + 1
    assert sum("\n" not in gap.middle for gap in found) > 300
    assert sum(2 <= gap.middle.count("\n") <= LINES for gap in found) > 50
    assert sum(gap.first == 0 for gap in found) < 300
    assert sum(gap.suffix in ("", "\n") for gap in found) > 30
    assert sum(len(gap.prefix) < 60 for gap in found) > 50


def test_lines_that_say_what_code_is_for_are_not_asked_for() -> None:
    code = Code('"""About\nit."""\n# A note.\nx = 1\n\n\ndef f():\n    """Say."""\n    return 2\n')
    assert [code.lines[number].strip() for number in code.code] == ["x = 1", "def f():", "return 2"]


def test_the_body_of_a_function_is_all_of_it() -> None:
    text = (
        'def f(\n    x,\n):\n    """Say\n    more."""\n\n    y = x\n\n    return y\n\n\nz = f(1)\n'
    )
    code, maker = Code(text), GapMaker(0)
    found = {text[slice(*span)].strip() for _ in range(40) if (span := maker.body(code))}
    body = "y = x\n\n    return y"
    assert found == {body, f'"""Say\n    more."""\n\n    {body}'}
    assert GapMaker(0).body(Code("x = 1\n")) is None
    assert GapMaker(0).body(Code("def f(): return 1\nx = 2\n")) is None


def test_lines_of_a_gap_leave_no_block_that_they_did_not_enter() -> None:
    text = "if a:\n    b = 1\n    if c:\n        d = 2\ne = 3\n"
    code, maker = Code(text), GapMaker(1)
    for _ in range(100):
        middle = text[slice(*maker.lines(code))]
        assert "e = 3" not in middle or middle.strip().startswith(("if a", "e"))


def test_a_part_of_a_line_stays_in_it() -> None:
    code, maker = Code(BASICS), GapMaker(2)
    for _ in range(200):
        for span in (maker.rest_of_line(code), maker.within_line(code), maker.one_line(code)):
            assert span is not None
            assert "\n" not in BASICS[slice(*span)].lstrip("\n")
    found = {code.text[slice(*span)] for _ in range(300) if (span := maker.within_line(code))}
    assert "a.lower()" in found


def test_snippets_stand_alone() -> None:
    text = "class A:\n    def f(self):\n        x = 1\n        return x\n"
    assert snippets_of(Code(text)) == [text, "def f(self):\n    x = 1\n    return x\n"]
    for snippet in basic_snippets(random.Random(0)):
        assert parses(snippet)


def test_plain_functions_do_the_same_under_other_names() -> None:
    source = 'def add(a: float, b: float) -> float:\n    """Add."""\n    return a + b\n'
    seen = set()
    for seed in range(20):
        text = plain(source, random.Random(seed))
        seen.add(text)
        scope: dict[str, object] = {}
        exec(text, scope)
        assert scope["add"](2, 3) == 5  # type: ignore[operator]
    assert "def add(a, b):\n    return a + b\n" in seen
    assert len(seen) > 5


def test_idioms_are_python_and_none_is_there_twice() -> None:
    assert len(set(IDIOMS)) == len(IDIOMS)
    for text in IDIOMS:
        ast.parse(text)


def test_what_is_no_python_has_no_gaps() -> None:
    assert code_of("def f(:") is None
    assert code_of("a = 1\0") is None
    assert GapMaker(0).draw(Code("# Nothing.\n")) is None


def test_copies_of_held_out_files_have_no_gaps(corpus: Path, tmp_path: Path) -> None:
    texts = list(sources())
    assert is_copy(texts[41] + "\nx = 1\n", long_lines(texts[41]))
    assert not is_copy(texts[0], long_lines(texts[41]))
    some = (corpus / "validation" / "code.jsonl").read_text().splitlines(keepends=True)[:4]
    for split in ("train", "validation"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "code.jsonl").write_text("".join(some))
    known = {gap.text for gap in gaps_of(tmp_path, "train")}
    assert not known & set(texts)
    assert {gap.text for gap in gaps_of(tmp_path, "validation")} & set(texts)


def test_gaps_become_shards_whose_mask_is_the_middle(corpus: Path, tmp_path: Path) -> None:
    written = tmp_path / "gaps.jsonl"
    count = write_gaps(corpus, "validation", written)
    assert count > 10
    assert write_gaps(corpus, "validation", tmp_path / "again.jsonl") == count
    assert written.read_bytes() == (tmp_path / "again.jsonl").read_bytes()
    tokenizer = train_tiny(tmp_path / "tokenizer")
    config = PrepareConfig(
        sources=(Source(path=written),), tokenizer=tmp_path / "tokenizer", stage="sft"
    )
    prepare(config, tmp_path / "shards")
    dataset = TokenDataset(tmp_path / "shards" / "train")
    first = json.loads(written.read_text().splitlines()[0])
    tokens, mask = dataset.read(*dataset.bounds(0))
    assert mask is not None
    assert Tokenizer.decode(tokenizer, tokens[mask].tolist()) == first["middle"]
    assert tokens[-1] == tokenizer.eos_id


def test_held_out_gaps_are_the_same_each_time_and_scored(corpus: Path, tiny_folder: Path) -> None:
    llm = LLM(tiny_folder, device="cpu", dtype="float32", backend="torch")
    chat = chat_format("v2.5", llm.tokenizer)
    found = held_out_gaps(corpus, chat, 10_000)
    assert found == held_out_gaps(corpus, chat, 10_000)
    assert all("\n" not in gap.middle.strip() for gap in found["single"])
    assert all("\n" in gap.middle.strip() for gap in found["multi"])
    for gap in (*found["single"], *found["multi"]):
        assert parses(gap.filled(gap.middle))
        assert max(len(gap.prefix), len(gap.suffix)) <= SHOWN
    fewer = held_out_gaps(corpus, chat, 1400)["single"]
    assert 0 < len(fewer) < len(found["single"])
    few = {
        name: [replace(gap, first=gap.start, last=gap.stop) for gap in gaps[:2]]
        for name, gaps in found.items()
    }
    for figures in gaps_filled(llm, chat, few).values():
        assert figures["asked"] == 2
        assert all(0 <= figures[name] <= 1 for name in ("exact", "parse", "ended"))
