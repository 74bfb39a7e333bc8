"""The comparison with other engines: our side for real, peers as programs that say fixed things."""

from __future__ import annotations

import csv
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import cpu_vs_peers
from benchmarks.peers.llama import IK_LLAMA_CPP, LLAMA_CPP, Llama, batch_speeds
from benchmarks.peers.machine import Machine, cpu_facts
from benchmarks.peers.process import PeerError, run
from benchmarks.peers.random_gguf import tensor_shapes, write_gguf
from benchmarks.peers.report import Line, compare, draw, failures, read_csv, summarise, write_csv
from benchmarks.peers.vocabulary import definition, tokenizer_files
from benchmarks.peers.work import Failure, Measured, Row, Setting, chosen, rows
from dsv2.checkpoint.releases import config_of
from dsv2.model.counts import count
from dsv2.tokenizer import Tokenizer
from tests.tiny import tiny_config

VOCAB = 512


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A folder with the ``config.json`` of a tiny model that our formats fit."""
    config = tiny_config(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=64, moe_intermediate_size=64,
        bos_token_id=VOCAB - 16, eos_token_id=VOCAB - 15,
    )  # fmt: skip
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config.to_published()))
    return folder


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_our_side_end_to_end(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Into the table and the file; a peer whose program is missing is said to have failed."""
    files, target, picture = tmp_path / "files", tmp_path / "out" / "a.csv", tmp_path / "a.png"
    files.mkdir()
    (files / "random-Q4_0.gguf").write_bytes(b"GGUF")
    words = ["--files", str(files), "--model", str(tiny), "--quick", "--threads", "1",
             "--rows", "decode-int4,prefill-512", "--llama-cpp", str(tmp_path / "nowhere"),
             "--only", "llama.cpp=prefill-512",
             "--csv", str(target), "--image", str(picture)]  # fmt: skip
    assert cpu_vs_peers.main(words) == 0
    shown = capsys.readouterr().out
    assert "decode x1 at 0, 4-bit" in shown
    assert shown.count("FAILED") == 1
    assert "llama.cpp, prompt of 32, 4-bit: 1 of 1 rounds" in shown
    lines = read(target)
    assert [(line["row"], line["engine"]) for line in lines] == [
        ("decode-int4", "dsv2"), ("prefill-512", "dsv2"), ("prefill-512", "llama.cpp"),
    ]  # fmt: skip
    for own in lines[:2]:
        assert float(own["median"]) > 0
        assert 0 < float(own["share_of_limit"]) < 2
    assert (lines[2]["median"], lines[2]["rounds"]) == ("", "0")
    assert "llama-bench: No such file" in lines[2]["failure"]
    assert {line["threads"] for line in lines} == {"1"}
    assert all(line[key] for line in lines for key in ("date", "commit", "machine", "cores"))
    assert not picture.exists()  # no peer has a figure
    with pytest.raises(ValueError, match="has weights of another model than v2-lite"):
        cpu_vs_peers.main(["--files", str(files), "--quick"])


def test_new_lines_replace_those_of_the_same_machine(tmp_path: Path) -> None:
    """Row, engine, machine and threads say which; the picture has a bar per ratio."""
    row, other = Row("a", "P1", "decode", "int4", 8), Row("b", "P1", "decode", "int8", 8)
    here = Machine("2026-01-01", "abc", "CPU", "avx2", 2, 2, 40.0)

    def lines(ours: float, *measured: Row) -> list[Line]:
        own = {one.key: [Measured(ours)] for one in measured}
        return compare(measured, {"dsv2": own, "peer": {"a": [Measured(2.0)]}}, "dsv2")

    target = tmp_path / "results" / "a.csv"
    write_csv(target, lines(1.0, row, other), here, "dsv2")
    write_csv(target, lines(3.0, row), replace(here, commit="def"), "dsv2")
    write_csv(target, lines(4.0, row), replace(here, threads=1), "dsv2")
    found = [
        (one["threads"], one["commit"], one["row"], one["engine"], one["median"])
        for one in read(target)
    ]
    assert found == [
        ("2", "abc", "b", "dsv2", "1"), ("2", "def", "a", "dsv2", "3"),
        ("2", "def", "a", "peer", "2"), ("1", "abc", "a", "dsv2", "4"),
        ("1", "abc", "a", "peer", "2"),
    ]  # fmt: skip
    assert [one["to_best_peer"] for one in read(target)] == ["", "1.5", "", "2", ""]
    again = read_csv(target, [row, other], here, "dsv2")
    assert [(one.row.key, one.own.median, one.best, one.ratio) for one in again] == [
        ("a", 3.0, "peer", 1.5), ("b", 1.0, None, None),
    ]  # fmt: skip
    draw(tmp_path / "img" / "a.png", again, here)
    assert (tmp_path / "img" / "a.png").read_bytes().startswith(b"\x89PNG")


BENCH = """#!{python}
import json, sys
words = sys.argv[1:]
def numbers(option):
    return [int(n) for n in words[words.index(option) + 1].split(",")] if option in words else []
depth = (numbers("-d") or [0])[0]
done = [dict(n_prompt=n, n_gen=0, n_depth=depth, avg_ts=n / 2) for n in numbers("-p") if n]
done += [dict(n_prompt=0, n_gen=n, n_depth=depth, avg_ts=n / 4 + depth) for n in numbers("-n") if n]
for place, word in enumerate(words):
    if word == "-gp":
        prompt, new = words[place + 1].split(",")
        done.append(dict(n_prompt=int(prompt), n_gen=int(new), avg_ts=7.0))
assert words[words.index("-r") + 1] == "1"
print(json.dumps(done))
"""
BATCHED = """#!{python}
import sys
words = sys.argv[1:]
print("main: n_kv_max = 1\\n|    PP |     TG |    B |")
for n in words[words.index("-npl") + 1].split(","):
    cells = [128, 64, n, 192, 1.5, 85.33, 2.0, f"{{int(n) * 3}}.50", 3.5, 54.9]
    print("|" + "|".join(f"{{cell:>7}} " for cell in cells) + "|")
"""


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    folder = tmp_path / "programs"
    folder.mkdir()
    for name, text in (("llama-bench", BENCH), ("llama-batched-bench", BATCHED)):
        (folder / name).write_text(text.format(python=sys.executable))
        (folder / name).chmod(0o755)
    return folder


@pytest.mark.parametrize("dialect", [LLAMA_CPP, IK_LLAMA_CPP])
def test_what_the_programs_say_goes_to_its_rows(
    programs: Path, tmp_path: Path, dialect: Any
) -> None:
    for kind in ("Q4_0", "Q8_0"):
        (tmp_path / f"random-{kind}.gguf").write_bytes(b"GGUF")
    found = Llama(programs, dialect)(rows(), Setting(tmp_path, tmp_path, 2))
    ready = {key: one.value for key, one in found.items() if isinstance(one, Measured)}
    # Rows held against another's figures are not computed by peers.
    assert found.keys() == {
        row.key for row in rows() if row.weights != "bfloat16" and row.peers_row is None
    }
    assert (ready["prefill-512"], ready["prefill-2048"]) == (256, 1024)
    assert ready["decode-int4"] == ready["decode-int8"] == 32
    assert ready["decode-4096"] == (4104 if dialect.depth else 7)
    assert [ready[f"batch-{n}"] for n in (1, 4, 32)] == [3.5, 12.5, 96.5]
    assert 0 < ready["first-token"] < 60
    assert 0 < ready["resident"] < 1
    cut = chosen("decode", False, 3)
    assert set(Llama(programs, dialect)(cut, Setting(tmp_path, tmp_path, 2)).values()) == {
        Failure("its file has all layers")
    }


def test_the_better_peer_is_the_one_that_counts() -> None:
    speed, start = Row("a", "P1", "decode", "int4", 8), Row("b", "P6", "seconds", "int4", 1)
    held = Row("c", "P4", "decode", "int4", 8, cache="int8", peers_row="a")
    three = [Measured(9.0), Measured(11.0, 0.5), Measured(30.0)]
    rounds = {
        "dsv2": {"a": three, "b": [Measured(2.0)], "c": [Measured(22.0)]},
        "one": {"a": [Measured(10.0)], "b": [Measured(1.0)]},
        "two": {"a": [Measured(12.0), Failure("killed")], "b": [Measured(3.0)]},
    }
    a, b, c = compare([speed, start, held], rounds, "dsv2")
    assert (a.own.median, a.own.least, a.own.most, a.own.share) == (11, 9, 30, 0.5)
    assert (a.best, a.ratio) == ("one", 1.1)  # a peer that failed once has no median
    assert (b.best, b.ratio) == ("one", 0.5)  # seconds: less is better
    assert (c.best, c.ratio) == ("one", 2.2)
    assert failures([a], "dsv2") == ["two, decode x1 at 0, 4-bit: 1 of 2 rounds: killed"]
    assert summarise([Failure("x")]).median is None


def test_rows_are_chosen_by_name() -> None:
    assert [row.key for row in chosen("batch-4,prefill", False, None)] == [
        "prefill-512", "prefill-2048", "batch-4",
    ]  # fmt: skip
    assert len(chosen(None, True, None)) == len(rows()) == len({row.key for row in rows()})
    with pytest.raises(ValueError, match="row 'prefil' is unknown, allowed are decode-int4, "):
        chosen("prefil", False, None)


def test_an_engine_is_kept_to_some_rows() -> None:
    words, names = ["llama.cpp=prefill,decode-int4", "dsv2=resident"], ["dsv2", "llama.cpp", "vllm"]
    assert cpu_vs_peers.kept_to(words, names) == {
        "llama.cpp": {"prefill-512", "prefill-2048", "decode-int4"}, "dsv2": {"resident"},
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"engine .lama., allowed are dsv2, llama\.cpp, vllm"):
        cpu_vs_peers.kept_to(["lama=prefill"], names)
    with pytest.raises(ValueError, match="row '' is unknown"):
        cpu_vs_peers.kept_to(["vllm"], names)


def test_a_vocabulary_of_any_size() -> None:
    for size in (272, 512, 20_000):
        assert Tokenizer(definition(size), {}).vocab_size == size
    files = tokenizer_files(1024)
    own = Tokenizer(*(json.loads(content) for content in files.values()))
    assert own.bos_id == 1008
    assert (
        own.decode(own.encode("def f(x):\n    return x + 1\n")) == "def f(x):\n    return x + 1\n"
    )
    with pytest.raises(ValueError, match="vocab_size 271, allowed is 272 or more"):
        definition(271)


def test_the_file_for_llama_has_every_parameter() -> None:
    config = config_of("v2-lite")
    sizes = [math.prod(shape) for shape in tensor_shapes(config).values()]
    assert sum(sizes) == count(config).total
    with pytest.raises(ValueError, match="26 or 27 layers; this has q_lora_rank None and 3 layers"):
        write_gguf(Path("never"), tiny_config(), "Q4_0")
    with pytest.raises(ValueError, match="kind 'Q5_0', allowed are Q4_0, Q8_0"):
        write_gguf(Path("never"), config, "Q5_0")


def test_programs_that_fail_say_so(tmp_path: Path) -> None:
    script = "import time; print(input(), flush=True); x = b'x' * 60_000_000; time.sleep(0.3)"
    done = run([sys.executable, "-c", script], text="hello\n")
    assert done.output == "hello\n"
    assert 0 < done.first < done.seconds - 0.3
    assert 60e6 < done.resident < 120e6
    with pytest.raises(PeerError, match=r"ended with 3: last words"):
        run([sys.executable, "-c", "import sys; print('last words', file=sys.stderr); sys.exit(3)"])
    with pytest.raises(PeerError, match="nothing-here: No such file"):
        run([tmp_path / "nothing-here"])


def test_what_a_cpu_is_called() -> None:
    text = "model name\t: Some CPU\ncpu family\t: 25\nmodel\t\t: 1\nflags\t\t: fpu avx2 amx_int8\n"
    assert cpu_facts(text) == ("Some CPU (family 25 model 1)", ["avx2", "amx_int8"])
    assert batch_speeds("| PP | TG |\n|-----|") == {}
