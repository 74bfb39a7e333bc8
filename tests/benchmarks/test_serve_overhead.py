"""What a server costs beside a bare engine, with a scripted server and a scripted engine."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks import serve_overhead
from benchmarks.peers.figures import Figure
from benchmarks.peers.machine import Machine
from benchmarks.peers.server import (
    MemoryWatch,
    Served,
    ServerFailedError,
    children,
    cpu_seconds,
    resident_bytes,
    serving,
)
from benchmarks.serve_overhead import BareEngine, Work, measure, wait_for
from tests.service.fake_openai import (
    DONE,
    FakeServer,
    Script,
    Seen,
    Until,
    event,
    piece,
    refusal,
    whole,
)

WORK = Work(rounds=2, prompt=5, new=6, cpu_new=6, cpu_streams=3, streams=4, many=20, few=2)


class FakeBare:
    """Takes so many seconds for a first token, and gives 1000 tokens/s."""

    def __init__(self, seconds: float = 0.001) -> None:
        self._seconds = seconds
        self.prompts: list[Sequence[int]] = []

    def first_token(self, prompt: Sequence[int]) -> float:
        self.prompts.append(prompt)
        return self._seconds

    def throughput(self, prompts: Sequence[Sequence[int]], new: int) -> float:
        assert (len(prompts), new) == (WORK.streams, WORK.new)
        self.prompts += prompts
        return 1000.0


def answer(number: int, seen: Seen) -> Script:
    count = seen.body["max_tokens"]
    return whole(0.03, piece("a"), 0.02, piece("b"), completion=count, prompt=WORK.prompt)


@pytest.fixture(autouse=True)
def _no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_overhead, "settle", lambda: None)


def figures(
    script: Callable[[int, Seen], Script], only: str, bare: Any = None, work: Work = WORK
) -> tuple[list[Figure], list[Seen]]:
    with FakeServer(script) as server:
        served = Served(server.url, os.getpid(), "fake")
        found = measure(served, bare or FakeBare(), work, [only])
        return found, [seen for seen in server.seen if seen.method == "POST"]


def test_the_first_tokens_delay() -> None:
    bare = FakeBare(0.01)
    (found,), seen = figures(answer, "first-token", bare)
    assert found.served is not None and found.bare == pytest.approx(10)
    assert 30 <= found.served < 500
    assert found.value == pytest.approx(found.served - 10)
    assert found.is_within is False
    # A round more than counted, both sides with the same prompts, no two alike.
    assert [one.body["prompt"] for one in seen] == bare.prompts
    assert len({tuple(prompt) for prompt in bare.prompts}) == 3


def test_cpu_over_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    spent = [9.0, 8.0, 0.009, 0.006, 0.018, 0.012]
    clock = iter([time for seconds in spent for time in (0.0, seconds)])
    monkeypatch.setattr(serve_overhead, "cpu_seconds", lambda pid: next(clock))
    (found, each), seen = figures(answer, "cpu")
    # 9 and 18 ms over 3 streams of 6 tokens; the first round does not count.
    assert (found.value, found.unit) == (pytest.approx(750), "us")
    assert found.note == "3.00 tokens per event"
    assert found.name.endswith("3 streams")
    # 6 and 12 ms for 3 streams of one.
    assert (each.value, each.unit, each.limit) == (pytest.approx(3), "ms", None)
    assert [one.body["max_tokens"] for one in seen] == ([6] * 3 + [1] * 3) * 3


def test_throughput_beside_the_bare_engines() -> None:
    bare = FakeBare()
    (found,), seen = figures(answer, "throughput", bare)
    assert found.served is not None and found.bare == 1000
    assert 4 * 6 / 0.5 < found.served <= 4 * 6 / 0.05
    assert found.value == pytest.approx(found.served / 1000)
    assert (found.limit, found.is_least, found.is_within) == (0.9, True, False)
    assert sorted(one.body["prompt"] for one in seen) == sorted(bare.prompts)


@pytest.mark.parametrize("only", ["cpu", "throughput"])
def test_an_answer_that_is_not_whole_is_no_figure(only: str) -> None:
    short = whole(piece("a"), completion=5)
    with pytest.raises(ServerFailedError, match="tokens"):
        figures(lambda number, seen: short, only)


def test_the_outcome_of_a_great_many() -> None:
    def script(number: int, seen: Seen) -> Script:
        if number % 5 == 0:
            return refusal(503, "the line is full")
        if number == 7:
            return Script((piece("a"), None))
        return whole(Until(20), piece("a"), piece("b"), completion=1 if number == 8 else 2)

    found, _ = figures(script, "many")
    by_name = {one.name.split(" of ")[0].split(",")[0]: one for one in found}
    lost, refused = by_name["lost"], by_name["refused by 429 or 503"]
    assert (lost.value, lost.is_within, lost.note) == (2, False, "{'cut off': 1}")
    assert (refused.value, refused.is_within) == (4, None)
    # Two hundredths of a second may lie between the first's end and the last's start.
    assert 15 <= by_name["most at once"].value <= 20
    assert by_name["longest wait for a first token"].value > 0
    memory = next(one for one in found if one.name == "memory beside the model")
    assert memory.value == pytest.approx(resident_bytes(os.getpid()) / 2**20, rel=0.2)
    assert memory.limit == 2048


@pytest.mark.slow
def test_the_bare_engine(tiny_folder: Path) -> None:
    bare = BareEngine(str(tiny_folder), max_sequences=4, threads=1, cache_tokens=1024)
    assert 0 < bare.first_token([5, 6, 7]) < 60
    assert 0 < bare.throughput([[5, 6], [7, 8]], 4) < 1e6


# --- a process ---

_SERVER = """
import time
print("loading", flush=True)
print("listening on http://127.0.0.1:4321 now", flush=True)
print("x" * 200_000, flush=True)
spent = sum(range(3_000_000))
time.sleep(30)
"""


def test_a_server_is_found_by_what_it_prints_and_ended() -> None:
    with serving([sys.executable, "-c", _SERVER], "m", 30) as served:
        assert (served.url, served.model) == ("http://127.0.0.1:4321", "m")
        deadline = time.monotonic() + 20
        while cpu_seconds(served.pid) < 0.05 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert 0.05 <= cpu_seconds(served.pid) < 20
        assert 1e6 < resident_bytes(served.pid) < 1e9
        assert served.pid in children(os.getpid())
    assert resident_bytes(served.pid) == 0
    assert children(served.pid) == []


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys; sys.exit('no such model')", "ended: no such model"),
        ("import time; time.sleep(20)", "is silent after 0.3 s"),
    ],
)
def test_a_server_that_does_not_start(code: str, message: str) -> None:
    seconds = 0.3 if "silent" in message else 30
    with (
        pytest.raises(ServerFailedError, match=message),
        serving([sys.executable, "-c", code], "m", seconds),
    ):
        pass


def test_memory_of_a_process_and_of_its_children() -> None:
    code = "import time; time.sleep(0.2); block = bytearray(b'x' * 50_000_000); time.sleep(1)"
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        with MemoryWatch(os.getpid()) as memory:
            time.sleep(0.7)
        assert memory.own >= 1e7
        assert 40e6 < memory.grown < 150e6
    finally:
        process.kill()
        process.wait()


def test_a_server_is_waited_for() -> None:
    with FakeServer(
        lambda number, seen: answer(number, seen) if number else refusal(503, "loading")
    ) as server:
        wait_for(Served(server.url, 1, "fake"), WORK, 20)
        assert sum(seen.method == "POST" for seen in server.seen) == 2
    with pytest.raises(ServerFailedError, match=r"does not answer: .*cannot be reached"):
        wait_for(Served(server.url, 1, "fake"), WORK, 0.1)
    failing = Script((event({"error": {"message": "engine gone"}}), DONE))
    with FakeServer(lambda number, seen: failing) as server:  # noqa: SIM117
        with pytest.raises(ServerFailedError, match="engine gone"):
            wait_for(Served(server.url, 1, "fake"), WORK, 0.1)


# --- all together ---


def test_from_the_command_line_to_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands: list[Sequence[str | Path]] = []
    made: list[tuple[str, dict[str, Any]]] = []

    @contextmanager
    def fake_serving(command: Sequence[str | Path], model: str, seconds: float) -> Iterator[Served]:
        commands.append(command)
        with FakeServer(answer, [model]) as server:
            yield Served(server.url, os.getpid(), model)

    def engine(model: str, **options: Any) -> FakeBare:
        made.append((model, options))
        return FakeBare(10.0)

    machine = Machine("2026-01-01", "abc", "CPU", "avx2", 2, 2, 40.0)
    monkeypatch.setattr(serve_overhead, "serving", fake_serving)
    monkeypatch.setattr(serve_overhead, "BareEngine", engine)
    monkeypatch.setattr(serve_overhead, "look", lambda threads: machine)
    monkeypatch.setenv("COLUMNS", "200")
    target = tmp_path / "results" / "a.csv"
    words = ["--rounds", "1", "--prompt", "5", "--new", "6", "--streams", "4", "--many", "5",
             "--few", "2", "--dtype", "int4", "--threads", "1", "--csv", str(target)]  # fmt: skip
    assert serve_overhead.main([*words, "--only", "first-token,many"]) == 0
    assert serve_overhead.main([*words, "--only", "throughput", "--label", "named"]) == 1
    shown = capsys.readouterr().out
    assert "named: abc, CPU" in shown and "pocket: abc, CPU" in shown
    assert "first token after the bare engine's" in shown
    assert "NO" in shown  # 24 tokens in 50 ms are not 1000 tokens/s
    same = {"dtype": "int4", "max_sequences": 64, "threads": 1}
    assert made == [("pocket", same)] * 2
    assert [str(word) for word in commands[0][1:7]] == [
        "-m", "dsv2", "serve", "bench=pocket", "--port", "0",
    ]  # fmt: skip
    assert [str(word) for word in commands[0][-6:]] == [
        "--dtype", "int4", "--max-sequences", "64", "--threads", "1",
    ]  # fmt: skip
    with target.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["figure"] for line in lines[:2]] == [
        "first token after the bare engine's", "lost of 5 streams",
    ]  # fmt: skip
    assert lines[0]["within"] == "yes"  # ten seconds before the bare engine's
    assert float(lines[0]["bare"]) == 10_000
    assert (lines[1]["value"], lines[1]["limit"], lines[1]["within"]) == ("0", "0", "yes")
    assert lines[-1]["within"] == "no"
    assert {(line["commit"], line["machine"], line["date"], line["dtype"]) for line in lines} == {
        ("abc", "CPU", "2026-01-01", "int4")
    }
    with pytest.raises(ValueError, match="figure 'x' is unknown, allowed are first-token, cpu"):
        serve_overhead.main(["--only", "x"])


@pytest.mark.slow
def test_a_server_over_an_engine_that_computes_nothing(tmp_path: Path) -> None:
    words = ["--rounds", "1", "--only", "cpu-fast", "--cpu-streams", "4", "--cpu-new", "20"]
    assert serve_overhead.main([*words, "--csv", str(tmp_path / "found.csv")]) in (0, 1)
    with (tmp_path / "found.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["figure"] for row in rows] == [
        "CPU of the API per token, 4 streams of 100 tokens/s",
        "CPU of the API per request, 4 streams of 100 tokens/s",
    ]
    assert all(float(row["value"]) > 0 for row in rows)


def test_torch_is_not_there_before_its_threads_are_told_to_sleep() -> None:
    """``OMP_WAIT_POLICY`` is read when torch is loaded, and decides who is faster."""
    program = "import sys, benchmarks.serve_overhead; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
