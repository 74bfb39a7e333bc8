"""Speed by threads, on the shape of the shipped model."""

from __future__ import annotations

import csv
from functools import partialmethod
from pathlib import Path

import pytest

from benchmarks.cpu_scaling import BATCHES, main
from benchmarks.peers.stored import stored
from dsv2.cli.info import find_config
from dsv2.kernels.cpu import CpuExecutor
from dsv2.machine import available_threads


def test_every_number_of_threads_has_every_kind_of_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Reading two gigabytes thirty times would take longer than all the rest.
    monkeypatch.setattr(CpuExecutor, "probe_read", partialmethod(CpuExecutor.probe_read, 64 << 20))
    counts = [1, available_threads()] if available_threads() > 1 else [1]
    command = ["--model", "pocket", "--threads", ",".join(map(str, counts)), "--prompts", "8,16"]
    command += ["--rounds", "2", "--files", str(tmp_path), "--csv", str(tmp_path / "x.csv")]
    main([*command, "--commit", "abc"])
    with (tmp_path / "x.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    works = ["prefill 8", "prefill 16", *(f"decode x{n} at {past}" for n, past in BATCHES)]
    assert [(int(line["threads"]), line["work"]) for line in lines] == [
        (count, work) for count in counts for work in works
    ]
    for line in lines:
        assert (line["model"], line["commit"], line["rounds"]) == ("pocket", "abc", "2")
        assert float(line["tokens_per_s"]) > 0
        assert float(line["probe_gb_per_s"]) > 0
        assert float(line["probe_top_per_s"]) > 0
        assert 0 < float(line["share_of_limit"]) < 10
    first = [line for line in lines if line["threads"] == "1"]
    assert {float(line["to_one_thread"]) for line in first} == {1.0}
    assert "pocket in 4 bits" in capsys.readouterr().out
    # The weights are made once.
    [folder] = [path for path in tmp_path.iterdir() if path.is_dir()]
    made = folder.stat().st_mtime_ns
    main([*command[:-2], "--rounds", "1"])
    assert folder.stat().st_mtime_ns == made
    with pytest.raises(ValueError, match="another shape: remove it"):
        stored(tmp_path, "pocket", find_config("v2-lite"), "int4", {})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threads", "0"], "--threads"),
        (["--threads", "two"], "--threads"),
        (["--threads", "4096"], "4096, this process may use"),
        (["--prompts", "-8"], "--prompts"),
        (["--rounds", "0"], "--rounds is 0, allowed is at least 1"),
    ],
)
def test_bad_options_are_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err
