from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dsv2.tokenizer import Tokenizer, chat_format
from dsv2.tokenizer.special import ASSISTANT, FIM_BEGIN, FIM_END, FIM_HOLE, USER
from dsv2.training.documents import SourceError
from dsv2.training.filters import Duplicates, FilterConfig, quality_problem
from dsv2.training.prepare import PrepareConfig, SourceReport, held_out, prepare, split_text
from dsv2.training.shards import TokenDataset
from tests.text import sources, train_tiny


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tiny(folder)
    return folder


@pytest.fixture
def build(tmp_path: Path, tokenizer_folder: Path) -> Any:
    def run(lines: list[Any], **fields: Any) -> tuple[list[SourceReport], Path]:
        source = tmp_path / "source.jsonl"
        source.write_text("".join(json.dumps(line) + "\n" for line in lines))
        entry = {"path": source, "weight": fields.pop("weight", 1.0)}
        config = PrepareConfig.model_validate(
            {"sources": [entry], "tokenizer": tokenizer_folder} | fields
        )
        out = tmp_path / "out"
        return prepare(config, out, overwrite=True), out

    return run


def texts(folder: Path, tokenizer_folder: Path) -> list[str]:
    """The documents of a split, control tokens included."""
    dataset, tokenizer = TokenDataset(folder), Tokenizer.from_folder(tokenizer_folder)
    return [
        tokenizer.decode(dataset.read(*dataset.bounds(n))[0].tolist(), skip_special_tokens=False)
        for n in range(dataset.num_documents)
    ]


def test_texts_become_documents_between_bos_and_eos(build: Any, tokenizer_folder: Path) -> None:
    lines = [{"text": f"document {n}\nabc <｜User｜> é"} for n in range(5)]
    reports, out = build(lines)
    tokenizer = Tokenizer.from_folder(tokenizer_folder)
    dataset = TokenDataset(out / "train")
    for number, line in enumerate(lines):
        ids = dataset.read(*dataset.bounds(number))[0].tolist()
        assert ids == [tokenizer.bos_id, *tokenizer.encode(line["text"]), tokenizer.eos_id]
    assert dataset.text_bytes == sum(len(line["text"].encode()) for line in lines)
    assert reports[0].read == reports[0].kept == 5
    assert reports[0].tokens["train"] == dataset.num_tokens
    assert json.loads((out / "report.json").read_text())["sources"][0]["kept"] == 5
    assert not (out / "validation").exists()


def test_folders_of_text_files_are_read_in_order(tmp_path: Path, tokenizer_folder: Path) -> None:
    folder = tmp_path / "texts"
    (folder / "b").mkdir(parents=True)
    (folder / "a.py").write_text("first")
    (folder / "b" / "c.md").write_text("second")
    (folder / "b" / "picture.png").write_bytes(b"\x89PNG")
    config = PrepareConfig.model_validate(
        {"sources": [{"path": folder}], "tokenizer": tokenizer_folder}
    )
    prepare(config, tmp_path / "out")
    found = texts(tmp_path / "out" / "train", tokenizer_folder)
    assert ["first" in found[0], "second" in found[1], len(found)] == [True, True, 2]


def test_the_same_input_gives_the_same_fingerprint(build: Any) -> None:
    lines = [{"text": text} for text in list(sources())[::4]]
    _, out = build(lines, fim_rate=0.5, seed=1, validation=0.3)
    first = TokenDataset(out / "train").fingerprint
    _, out = build(lines, fim_rate=0.5, seed=1, validation=0.3)
    assert TokenDataset(out / "train").fingerprint == first
    _, out = build(lines, fim_rate=0.5, seed=2, validation=0.3)
    assert TokenDataset(out / "train").fingerprint != first


def test_validation_is_chosen_by_hash_alone(build: Any, tokenizer_folder: Path) -> None:
    lines = [{"text": f"number {n}"} for n in range(400)]
    _, out = build(lines, validation=0.25)
    held = [line["text"] for line in lines if held_out(line["text"], 0.25)]
    assert 60 < len(held) < 140
    found = [text.split("｜>", 1)[1].split("<｜")[0] for text in texts(
        out / "validation", tokenizer_folder)]  # fmt: skip
    assert found == held


def test_exact_and_near_duplicates_are_dropped(build: Any) -> None:
    base = " ".join(f"word{n}" for n in range(200))
    lines = [
        {"text": base},
        {"text": base.replace(" ", "\n")},
        {"text": base.replace("word50 ", "changed ")},
        {"text": " ".join(f"other{n}" for n in range(200))},
    ]
    reports, out = build(lines, filters={"near_duplicate": 0.8})
    assert dict(reports[0].dropped) == {"exact_duplicate": 1, "near_duplicate": 1}
    assert reports[0].examples["near_duplicate"][0].endswith("source.jsonl:3")
    assert TokenDataset(out / "train").num_documents == 2
    reports, _ = build(lines, filters={"near_duplicate": 0.0})
    assert dict(reports[0].dropped) == {"exact_duplicate": 1}


def test_near_duplicates_follow_the_threshold() -> None:
    words = [f"w{n}" for n in range(400)]
    half = [*words[:300], *(f"x{n}" for n in range(100))]
    seen = Duplicates(0.9)
    assert seen.problem(" ".join(words)) is None
    assert seen.problem(" ".join(half)) is None
    seen = Duplicates(0.4)
    assert seen.problem(" ".join(words)) is None
    assert seen.problem(" ".join(half)) == "near_duplicate"


@pytest.mark.parametrize(
    ("text", "bounds", "reason"),
    [
        ("", {}, "too_short"),
        ("   \n", {}, "too_short"),
        ("abc", {"min_chars": 4}, "too_short"),
        ("abcde", {"max_chars": 4}, "too_long"),
        ("x" * 300, {"max_line_chars": 200}, "long_lines"),
        ("same\n" * 10, {"max_repeated_lines": 0.5}, "repeated_lines"),
        ("#%&/()=" * 9, {"min_letters": 0.5}, "few_letters"),
        ("Dies ist ein deutscher Satz und noch einer dazu.", {"languages": ("en",)}, "language"),
        ("This is an English sentence and another one.", {"languages": ("en",)}, None),
        ("plain\ntext", {"max_line_chars": 200, "max_repeated_lines": 0.5}, None),
    ],
)
def test_each_filter_has_its_reason(text: str, bounds: dict[str, Any], reason: str | None) -> None:
    assert quality_problem(text, FilterConfig(**bounds)) == reason


def test_weights_repeat_documents_and_fractions_follow_the_hash(build: Any) -> None:
    lines = [{"text": f"number {n}"} for n in range(200)]
    _, out = build(lines, weight=2.5)
    assert 470 < TokenDataset(out / "train").num_documents < 530
    reports, out = build(lines, weight=0.25)
    kept = TokenDataset(out / "train").num_documents
    assert 25 < kept < 80
    assert reports[0].dropped["weight"] == 200 - kept


def test_fim_keeps_all_text_in_psm_order(build: Any, tokenizer_folder: Path) -> None:
    lines = [{"text": f"def function_{n}(x):\n    return x + {n}\n"} for n in range(60)]
    _, out = build(lines, fim_rate=0.5)
    tokenizer = Tokenizer.from_folder(tokenizer_folder)
    dataset = TokenDataset(out / "train")
    marks = [tokenizer.control(name) for name in (FIM_BEGIN, FIM_HOLE, FIM_END)]
    turned = 0
    for number, line in enumerate(lines):
        ids = dataset.read(*dataset.bounds(number))[0].tolist()
        if marks[0] not in ids:
            assert tokenizer.decode(ids) == line["text"]
            continue
        turned += 1
        begin, hole, end = (ids.index(mark) for mark in marks)
        assert (ids[0], begin, ids[-1]) == (tokenizer.bos_id, 1, tokenizer.eos_id)
        parts = [ids[begin + 1 : hole], ids[hole + 1 : end], ids[end + 1 : -1]]
        prefix, suffix, middle = (tokenizer.decode(part) for part in parts)
        assert prefix + middle + suffix == line["text"]
    assert 15 < turned < 45


def test_long_texts_are_cut_at_line_ends() -> None:
    text = "".join(f"line {n}\n" for n in range(100)) + "x" * 300
    pieces = list(split_text(text, 100))
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= 100
    assert all(piece.endswith("\n") for piece in pieces[:-4])
    assert list(split_text(text, None)) == [text]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"text": "a"', "not valid JSON"),
        ("[1]", "must be an object"),
        ('{"content": "a"}', "text must be a string"),
        ('{"text": 5}', "text must be a string, got 5"),
        ('{"text": "\\ud800"}', "surrogate"),
    ],
)
def test_a_malformed_line_is_named_and_stops_or_is_counted(
    tmp_path: Path, tokenizer_folder: Path, line: str, problem: str
) -> None:
    source = tmp_path / "s.jsonl"
    source.write_text('{"text": "fine"}\n' + line + "\n")
    config = PrepareConfig.model_validate(
        {"sources": [{"path": source}], "tokenizer": tokenizer_folder}
    )
    with pytest.raises(SourceError, match=rf"s\.jsonl:2: .*{problem}"):
        prepare(config, tmp_path / "out")
    assert list(tmp_path.glob("*out*")) == []
    skipping = config.model_copy(update={"malformed": "skip"})
    reports = prepare(skipping, tmp_path / "out")
    assert (reports[0].kept, dict(reports[0].dropped)) == (1, {"malformed": 1})


CHAT = {
    "messages": [
        {"role": "user", "content": f"say {USER} please"},
        {"role": "assistant", "content": "words"},
    ]
}


GAP = {"prefix": f"def f(x):\n    return {FIM_END}", "middle": "x + 1", "suffix": "\n"}


def test_conversations_carry_the_mask_of_the_assistant(build: Any, tokenizer_folder: Path) -> None:
    _, out = build([CHAT], stage="sft")
    tokenizer = Tokenizer.from_folder(tokenizer_folder)
    tokens, mask = TokenDataset(out / "train").read(0, TokenDataset(out / "train").num_tokens)
    assert mask is not None
    assert tokenizer.decode(tokens[mask].tolist(), skip_special_tokens=False).startswith("words<")
    assert tokens.tolist().count(tokenizer.control(USER)) == 1
    assert tokens.tolist().count(tokenizer.control(ASSISTANT)) == 1


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ({"messages": []}, "not empty"),
        ({"text": "x"}, "messages must be a list"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "robot"),
        ({"messages": [{"role": "user", "content": 5}]}, "content"),
        ({"messages": [{"role": "user", "content": "x"}]}, "nothing to learn"),
        ({"middle": "x", "suffix": "y"}, "prefix must be a string, got None"),
        (GAP | {"messages": [{"role": "user", "content": "x"}]}, "messages and a middle"),
    ],
)
def test_a_malformed_conversation_names_its_line(
    build: Any, record: dict[str, Any], problem: str
) -> None:
    with pytest.raises(SourceError, match=rf"source\.jsonl:2: .*{problem}"):
        build([CHAT, record], stage="sft")
    reports, _ = build([CHAT, record], stage="sft", malformed="skip")
    assert reports[0].dropped["malformed"] == 1


def test_a_gap_is_learnt_to_its_end_and_nothing_around_it(
    build: Any, tokenizer_folder: Path
) -> None:
    _, out = build([GAP, CHAT, GAP | {"middle": ""}], stage="sft")
    tokenizer = Tokenizer.from_folder(tokenizer_folder)
    dataset = TokenDataset(out / "train")
    assert dataset.num_documents == 3
    tokens, mask = dataset.read(*dataset.bounds(0))
    assert mask is not None
    shown = chat_format("v2.5", tokenizer).fim(GAP["prefix"], GAP["suffix"])
    assert tokens[~mask].tolist() == shown
    assert tokens[mask].tolist() == [*tokenizer.encode("x + 1"), tokenizer.eos_id]
    tokens, mask = dataset.read(*dataset.bounds(2))
    assert mask is not None
    assert tokens[mask].tolist() == [tokenizer.eos_id]
    reports, _ = build([GAP, GAP | {"suffix": "word " * 200}], stage="sft", max_tokens=100)
    assert dict(reports[0].dropped) == {"too_many_tokens": 1}


def test_conversations_that_are_too_long_are_counted(build: Any) -> None:
    long = {"messages": [*CHAT["messages"], {"role": "assistant", "content": "more " * 500}]}
    reports, out = build([CHAT, long], stage="sft", max_tokens=100)
    assert dict(reports[0].dropped) == {"too_many_tokens": 1}
    assert TokenDataset(out / "train").num_documents == 1


def test_nothing_left_and_outputs_that_exist_are_errors(
    tmp_path: Path, tokenizer_folder: Path
) -> None:
    source = tmp_path / "s.jsonl"
    source.write_text('{"text": " "}\n')
    config = PrepareConfig.model_validate(
        {"sources": [{"path": source}], "tokenizer": tokenizer_folder}
    )
    with pytest.raises(SourceError, match=r"no document came through.*too_short"):
        prepare(config, tmp_path / "out")
    (tmp_path / "out").mkdir()
    with pytest.raises(SourceError, match="exists"):
        prepare(config, tmp_path / "out")
    missing = config.model_copy(
        update={"sources": (config.sources[0].model_copy(update={"path": tmp_path / "no"}),)}
    )
    with pytest.raises(SourceError, match="no such file"):
        prepare(missing, tmp_path / "new")
