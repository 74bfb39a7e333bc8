"""llama.cpp and ik_llama.cpp, by their own ``llama-bench`` and ``llama-batched-bench``.

Both read one file of random weights. Points of their benchmarks that matter:

- for tokens behind a long prompt llama.cpp has ``-d``, ik_llama.cpp ``-gp``;
- ik_llama.cpp gets the options that make it fastest here: flash attention, MLA with expanded
  prompts and absorbed generation, fused experts, weights repacked at load;
- sequences of a batch share their prompt in both (``-pps``): it is computed once, so that a round
  takes minutes less, and its cache, a hundredth of what a step reads, is read once;
- ik_llama.cpp's batch benchmark feeds the same token to every sequence, so that all choose the same
  experts and it reads far fewer than llama.cpp's and ours, which draw tokens. Its figures on those
  rows are of less work, unless its ``batched-bench.cpp`` draws them too: ``std::rand() %
  llama_n_vocab(model)`` for the 0 that ``common_batch_add`` is given in its two loops.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers.process import GIB, PeerError, read_through, run
from benchmarks.peers.random_gguf import write_gguf
from benchmarks.peers.work import Failure, Measured, Outcomes, Row, Setting
from dsv2.model.config import ModelConfig

KINDS = {"int4": "Q4_0", "int8": "Q8_0"}
_LINE = re.compile(r"^\|((?:\s*[\d.]+\s*\|){10})", re.M)


@dataclass(frozen=True)
class Dialect:
    """How a build is spoken to.

    Attributes:
        bench: options of ``llama-bench``.
        batched: options of ``llama-batched-bench``.
        cold: option of ``llama-bench`` that leaves the warm-up out.
        depth: whether ``-d`` puts tokens into the cache first; else ``-gp`` does.
    """

    bench: tuple[str, ...]
    batched: tuple[str, ...]
    cold: tuple[str, ...]
    depth: bool


LLAMA_CPP = Dialect((), ("-pps",), ("--no-warmup",), depth=True)
IK_LLAMA_CPP = Dialect(
    ("-fa", "1", "-mla", "3", "-fmoe", "1", "-rtr", "1"),
    ("-fa", "on", "-mla", "3", "-rtr", "-pps"),
    ("-w", "0"),
    depth=False,
)


@dataclass(frozen=True)
class Llama:
    """A build: see :data:`benchmarks.peers.work.Measure`.

    Attributes:
        folder: where its programs are.
        dialect: how they are spoken to.
    """

    folder: Path
    dialect: Dialect

    def __call__(self, rows: Sequence[Row], setting: Setting) -> Outcomes:
        """Compute the rows, one format after the other."""
        mine = [row for row in rows if row.weights in KINDS and row.peers_row is None]
        cut = [row for row in mine if row.layers is not None]
        found: Outcomes = {row.key: Failure("its file has all layers") for row in cut}
        for weights in KINDS:
            own = [row for row in mine if row.weights == weights and row not in cut]
            if own:
                path = gguf_file(setting, KINDS[weights])
                read_through(path)
                found |= self._file(own, path, setting.threads)
        return found

    def _file(self, rows: Sequence[Row], path: Path, threads: int) -> Outcomes:
        found: Outcomes = {}
        common = ["-m", path, "-t", str(threads)]
        for kinds, compute in self._parts().items():
            own = [row for row in rows if row.kind in kinds]
            if not own:
                continue
            try:
                found |= compute(own, common)
            except PeerError as error:
                found |= {row.key: Failure(str(error)) for row in own}
        return found

    def _parts(
        self,
    ) -> dict[tuple[str, ...], Callable[[Sequence[Row], list[str | Path]], Outcomes]]:
        return {
            ("prefill", "decode"): self._steps,
            ("batch",): self._batches,
            ("seconds", "memory"): self._start,
        }

    def _bench(self, common: list[str | Path], *words: str) -> list[dict[str, Any]]:
        command = [self.folder / "llama-bench", *common, *self.dialect.bench, *words]
        return json.loads(run([*command, "-r", "1", "-o", "json"]).output)

    def _steps(self, rows: Sequence[Row], common: list[str | Path]) -> Outcomes:
        """Prompts and one sequence's tokens; one process for each depth llama.cpp has to reach."""
        prompts = [row for row in rows if row.kind == "prefill"]
        shallow = [row for row in rows if row.kind == "decode" and not row.depth]
        deep = [row for row in rows if row.kind == "decode" and row.depth]
        words = ["-p", _list(row.tokens for row in prompts)]
        words += ["-n", _list(row.tokens for row in shallow)]
        if not self.dialect.depth:
            for row in deep:
                words += ["-gp", f"{row.depth},{row.tokens}"]
        done = self._bench(common, *words) if prompts or shallow or "-gp" in words else []
        if self.dialect.depth:
            for row in deep:
                done += self._bench(common, "-p", "0", "-n", str(row.tokens), "-d", str(row.depth))
        speeds = {
            (one["n_prompt"], one["n_gen"], one.get("n_depth", 0)): float(one["avg_ts"])
            for one in done
        }
        found: Outcomes = {}
        for row in rows:
            if row.kind == "prefill":
                case = (row.tokens, 0, 0)
            elif self.dialect.depth:
                case = (0, row.tokens, row.depth)
            else:
                case = (row.depth, row.tokens, 0)
            said = f"llama-bench reports {sorted(speeds)}, not {case}"
            found[row.key] = Measured(speeds[case]) if case in speeds else Failure(said)
        return found

    def _batches(self, rows: Sequence[Row], common: list[str | Path]) -> Outcomes:
        found: Outcomes = {}
        for (depth, tokens), own in _grouped(rows).items():
            most = max(row.sequences for row in own) * (depth + tokens)
            command = [
                self.folder / "llama-batched-bench", *common, *self.dialect.batched,
                "-c", str(most), "-npp", str(depth), "-ntg", str(tokens),
                "-npl", _list(row.sequences for row in own),
            ]  # fmt: skip
            # One build prints its table, the other logs it, and leaves a file where it runs.
            with tempfile.TemporaryDirectory() as folder:
                ran = run(command, folder=Path(folder))
            speeds = batch_speeds(ran.output + ran.errors)
            for row in own:
                speed = speeds.get(row.sequences)
                said = f"llama-batched-bench reports {sorted(speeds)} sequences"
                found[row.key] = Failure(said) if speed is None else Measured(speed)
        return found

    def _start(self, rows: Sequence[Row], common: list[str | Path]) -> Outcomes:
        """From the start of a process that generates one token to its end, and its memory."""
        words = ["-p", "0", "-n", "1", "-r", "1", *self.dialect.bench, *self.dialect.cold]
        ran = run([self.folder / "llama-bench", *common, *words])
        figures = {"seconds": ran.seconds, "memory": ran.resident / GIB}
        return {row.key: Measured(figures[row.kind]) for row in rows}


def batch_speeds(output: str) -> dict[int, float]:
    """Tokens per second of generation by sequences, from the table that both builds print."""
    found = {}
    for line in _LINE.finditer(output):
        cells = [cell.strip() for cell in line[1].split("|")]
        found[int(cells[2])] = float(cells[7])
    return found


def gguf_file(setting: Setting, kind: str) -> Path:
    """The file of random weights, written where there is none yet."""
    path = setting.files / f"random-{kind}.gguf"
    if not path.exists():
        write_gguf(path, ModelConfig.from_file(setting.shape / "config.json"), kind)
    return path


def _list(numbers: Any) -> str:
    """Options as the programs take them; nothing is asked for by a zero."""
    return ",".join(str(number) for number in numbers) or "0"


def _grouped(rows: Sequence[Row]) -> dict[tuple[int, int], list[Row]]:
    found: dict[tuple[int, int], list[Row]] = {}
    for row in rows:
        found.setdefault((row.depth, row.tokens), []).append(row)
    return found
