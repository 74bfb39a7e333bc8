"""The comparison on a GPU: our side for real on the CPU, the rest as arithmetic."""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

from benchmarks import gpu_vs_peers
from benchmarks.peers import sections
from benchmarks.peers.gpu_report import Record, table
from benchmarks.peers.gpu_work import (
    COMPILED,
    H200,
    OURS,
    PLAIN,
    Target,
    format_rows,
    judge,
    judge_kernel,
    least_seconds,
    rows,
    tiny,
    tokens_of,
)
from benchmarks.peers.sections import NO_TIME, Section, run_section
from dsv2.checkpoint.releases import config_of
from dsv2.kernels.timing import Roof
from dsv2.kernels.triton.bench import ELSEWHERE, HERE
from tests.tiny import tiny_config

ROWS = {row.key: row for row in rows()}
FACTS = {"date": "2026-01-01", "commit": "abc"}
ROOF = {"machine": "GPU", "driver": "1", "torch": "2", "triton": "3", "transformers": "5",
        "read": 4.24e12, "multiply": 776e12}  # fmt: skip


def rate_limit(key: str, roof: Roof = H200) -> float:
    return tokens_of(ROWS[key]) / least_seconds(ROWS[key], config_of("v2-lite"), roof)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_limits_are_those_of_the_published_arithmetic() -> None:
    """One sequence reads 4.9 GB of weights, 256 nearly all 31 GB and 4 GB of cache."""
    assert rate_limit("decode-1-512") == pytest.approx(860, rel=0.02)
    assert rate_limit("decode-256-512") == pytest.approx(30_500, rel=0.03)
    # The targets of 500, 18,000 and 80,000 tokens a second as shares.
    assert 500 / rate_limit("decode-1-512") == pytest.approx(0.58, abs=0.01)
    assert 18_000 / rate_limit("decode-256-512") == pytest.approx(0.60, abs=0.02)
    assert 80_000 / rate_limit("prefill-8x2048") == pytest.approx(0.49, abs=0.01)
    # Arithmetic is what binds prompts and training, memory what binds decode.
    slower = Roof(H200.read, H200.multiply / 2)
    assert rate_limit("prefill-8x2048") == pytest.approx(2 * rate_limit("prefill-8x2048", slower))
    assert rate_limit("train-8x1024") == pytest.approx(2 * rate_limit("train-8x1024", slower))
    assert rate_limit("decode-64-8192") == rate_limit("decode-64-8192", slower)
    # Whole requests cannot be faster than their steps alone.
    assert rate_limit("engine-256") < rate_limit("decode-256-512")


@pytest.mark.parametrize(
    ("share", "ratio", "met"),
    [(0.6, 4.0, True), (0.5, 4.0, False), (0.6, 3.0, False), (0.6, None, None), (0.5, None, False)],
)
def test_a_target_is_met_by_share_and_ratio(
    share: float, ratio: float | None, met: bool | None
) -> None:
    verdict = judge(Target("P7", 0.58, 3.5, COMPILED), share, ratio)
    assert verdict.met is met
    assert "of 58% of the limit" in verdict.said and COMPILED in verdict.said


def kernel(**fields: Any) -> dict[str, Any]:
    base = {"kernel": "mla_decode", "case": "16 x 16 x 65536", "variant": "default",
            "microseconds": 299.0, "gigabytes_s": 4034.0, "teraflops": 120.0, "fraction": 0.95,
            "error": 1e-3, "peer": ELSEWHERE, "peer_us": 299.0, "failure": ""}  # fmt: skip
    return base | fields


def test_kernels_are_held_against_the_peer_or_its_share_of_the_limit() -> None:
    def met(**fields: Any) -> bool | None:
        verdict = judge_kernel(kernel(**fields))
        return None if verdict is None else verdict.met

    assert met(peer=HERE, microseconds=330.0) is True
    assert met(peer=HERE, microseconds=340.0) is False
    assert met(peer=HERE, microseconds=400.0, case="128 x 64 x 4096") is True
    # Another card with two thirds of the bandwidth takes longer and may still do its share.
    slower = {"microseconds": 448.5, "gigabytes_s": 4034.0 / 1.5, "teraflops": 80.0}
    assert met(**slower, fraction=0.90) is True
    assert met(**slower, fraction=0.80) is False
    assert met(kernel="experts", case="8192 tokens", fraction=0.56) is True
    assert met(kernel="experts", case="8192 tokens", fraction=0.54) is False
    assert judge_kernel(kernel(kernel="experts", case="64 tokens")) is None
    assert judge_kernel(kernel(variant="deterministic")) is None


def test_results_are_in_the_file_as_they_come(tmp_path: Path) -> None:
    path = tmp_path / "new" / "out.csv"
    record = Record(path, config_of("v2-lite"), dict(FACTS))
    record.set_roof(ROOF)
    first, second = ROWS["decode-1-512"], ROWS["decode-256-8192"]
    record.add(first, OURS, {"row": first.key, "seconds": 0.002, "tokens": 1})
    assert [line["row"] for line in read(path)] == [first.key]
    record.add(first, COMPILED, {"row": first.key, "seconds": 0.01, "tokens": 1})
    record.add(second, OURS, {"row": second.key, "failure": "out of memory"})
    record.add(second, PLAIN, {"row": second.key, "failure": NO_TIME})
    record.add_kernel({"row": "kernel"} | kernel())
    record.add_kernel({"row": "kernels", "failed": 0})
    lines = read(path)
    assert [line["failure"] for line in lines] == ["", "", "out of memory", NO_TIME, ""]
    assert float(lines[0]["tokens_per_second"]) == 500
    assert float(lines[0]["share_of_limit"]) == pytest.approx(0.58, abs=0.01)
    assert lines[4]["row"] == "mla_decode: 16 x 16 x 65536"
    for line in lines:
        assert (line["machine"], line["commit"], line["roof_gb_per_s"]) == ("GPU", "abc", "4240")
    assert record.ratio(first, COMPILED) == pytest.approx(5)
    shown = table(record, [first, second]).splitlines()
    assert "P7 PASS" in next(line for line in shown if line.startswith(first.work))
    row = next(line for line in shown if line.startswith(second.work))
    assert "OOM" in row and "no time" in row
    assert any("P10 PASS" in line for line in shown)
    assert gpu_vs_peers.unfit(record) == []
    record.add(second, OURS, {"row": second.key, "failure": "ValueError: no"})
    record.add_kernel({"row": "kernel"} | kernel(error=0.5))
    assert len(gpu_vs_peers.unfit(record)) == 2


CHILD = """
import json, os, sys, time
from benchmarks.peers.sections import attempt, say
request = json.load(sys.stdin)
print("a library's own words")
say(row="a", seconds=1.0, tokens=2)
if request["then"] == "crash":
    print("the last words", file=sys.stderr)
    os._exit(3)
if request["then"] == "hang":
    time.sleep(60)
def memory():
    import torch
    raise torch.OutOfMemoryError("too much")
def fail():
    raise ValueError("no such thing\\nmore")
attempt("b", memory)
attempt("c", fail)
"""


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "gpu_child_of_test.py").write_text(CHILD)
    monkeypatch.syspath_prepend(str(sections.ROOT))
    monkeypatch.syspath_prepend(str(tmp_path))
    return "gpu_child_of_test"


def results(module: str, then: str, own: float, all_: float) -> tuple[str, dict[str, str]]:
    found: list[dict[str, Any]] = []
    section = Section("part", module, {"then": then}, ("a", "b", "c"), own)
    ended = run_section(section, time.monotonic() + all_, found.append)
    return ended, {one["row"]: one.get("failure", "") for one in found}


@pytest.mark.slow
def test_a_part_that_fails_takes_nothing_else_with_it(child: str) -> None:
    ended, said = results(child, "go on", 60, 60)
    assert (ended, said) == (
        "done", {"a": "", "b": "out of memory", "c": "ValueError: no such thing"},
    )  # fmt: skip
    ended, said = results(child, "crash", 60, 60)
    assert ended == "ended with 3: the last words"
    assert said == {"a": "", "b": ended, "c": ended}


def test_time_is_kept(child: str) -> None:
    start = time.monotonic()
    ended, said = results(child, "hang", 4, 60)
    assert (ended, said["a"], said["b"]) == ("stopped after its 4 s", "", ended)
    assert time.monotonic() - start < 20
    assert results(child, "go on", 60, -1) == (NO_TIME, dict.fromkeys("abc", NO_TIME))


def test_parts_cover_every_row_and_take_turns(capsys: pytest.CaptureFixture[str]) -> None:
    every = rows()
    base = gpu_vs_peers.requested(config_of("v2-lite"), "cuda", "triton")
    parts = gpu_vs_peers.plan(every, base, 100)
    own = {key for engine, part in parts if engine == OURS for key in part.keys}
    plain = {key for engine, part in parts if engine == PLAIN for key in part.keys}
    assert own == {*ROWS, "kernels"}
    assert plain == set(ROWS) - {"engine-256"}
    for (engine, part), (other, after) in zip(parts[:6:2], parts[1:6:2], strict=True):
        assert (engine, other, part.keys) == (OURS, PLAIN, after.keys)
    layers = {part.name: part.request["config"]["num_hidden_layers"] for _, part in parts}
    assert (layers["train-plain"], layers["decode-plain"]) == (4, 27)
    json.dumps([dict(part.request) for _, part in parts])
    assert gpu_vs_peers.main(["--list"]) == 0
    assert capsys.readouterr().out.split() == [part.name for _, part in parts]
    with pytest.raises(ValueError, match="part 'nosuch', allowed are decode, "):
        gpu_vs_peers.main(["--tiny", "--only", "nosuch"])


def _config(tmp_path: Path) -> Path:
    shape = tiny_config(
        vocab_size=512, hidden_size=64, intermediate_size=64, moe_intermediate_size=64,
        bos_token_id=496, eos_token_id=497,
    )  # fmt: skip
    path = tmp_path / "config.json"
    path.write_text(json.dumps(shape.to_published()))
    return path


@pytest.mark.slow
def test_our_decode_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "out.csv"
    words = ["--tiny", "--config", str(_config(tmp_path)), "--csv", str(target)]
    assert gpu_vs_peers.main([*words, "--only", "decode", "--commit", "abc"]) == 0
    lines = read(target)
    assert [line["row"] for line in lines] == [
        row.key for row in tiny(rows()) if row.kind == "decode"
    ]
    assert all(float(line["tokens_per_second"]) > 0 and line["commit"] == "abc" for line in lines)
    assert "P7 FAIL: " in capsys.readouterr().out
    assert gpu_vs_peers.main([*words, "--minutes", "0"]) == 1


@pytest.mark.slow
def test_other_weights_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each in a process of its own, against the limit of its own bytes."""
    target = tmp_path / "out.csv"
    words = ["--tiny", "--formats", "--config", str(_config(tmp_path)), "--csv", str(target)]
    assert gpu_vs_peers.main([*words, "--list"]) == 0
    assert capsys.readouterr().out.split() == ["int4", "int8"]
    assert gpu_vs_peers.main(words) == 0
    lines = {line["row"]: line for line in read(target)}
    assert list(lines) == [row.key for row in format_rows()]
    four, eight = (lines[f"decode-1-512-{one}"] for one in ("int4", "int8"))
    assert four["work"] == "decode x1 at 8, int4"
    assert float(four["limit"]) > 1.2 * float(eight["limit"])


@pytest.mark.slow
@pytest.mark.timeout(900)  # eight processes, and one that compiles
def test_every_part_from_end_to_end(tmp_path: Path) -> None:
    """But the kernels, which have a test of their own, and more of the compiled peer."""
    target = tmp_path / "out.csv"
    parts = "decode,decode-plain,prefill,train,train-plain,decode-compiled,engine"
    words = ["--tiny", "--config", str(_config(tmp_path)), "--csv", str(target), "--only", parts]
    assert gpu_vs_peers.main(words) == 0
    lines = read(target)
    assert not [line for line in lines if line["failure"]]
    assert {line["engine"] for line in lines} == {OURS, PLAIN, COMPILED}
