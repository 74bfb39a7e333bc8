"""This project's own side, each model in a process of its own: one is in memory at a time.

    python -m benchmarks.peers.ours < request.json

The request has ``shape``, ``threads`` and ``rows`` of one format of weights, and ``checkpoint``,
a folder of it or null for weights that are drawn.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

from benchmarks.peers.process import GIB, PeerError, read_through, run
from benchmarks.peers.stored import stored
from benchmarks.peers.vocabulary import tokenizer_files
from benchmarks.peers.work import Failure, Measured, Outcomes, Row, Setting
from dsv2.checkpoint.packed import load_packed
from dsv2.checkpoint.synthetic import synthetic_model
from dsv2.engine.bench import ModelBench, measure_roof
from dsv2.kernels.cpu import CpuExecutor
from dsv2.kernels.formats import SCHEMES
from dsv2.model.config import ModelConfig

ROOT = Path(__file__).parents[2]
STEPS = 32
"""Steps whose median a row of generated tokens is."""


def measure(rows: Sequence[Row], setting: Setting) -> Outcomes:
    """See :data:`benchmarks.peers.work.Measure`."""
    found: Outcomes = {}
    fresh = [row for row in rows if row.kind in ("seconds", "memory")]
    steps = [row for row in rows if row not in fresh]
    for _, group in groupby(sorted(steps, key=_model_of), _model_of):
        own = list(group)
        try:
            found |= _in_a_process(own, setting)
        except PeerError as error:
            found |= {row.key: Failure(str(error)) for row in own}
    if fresh:
        found |= _start(fresh, setting)
    return found


def _model_of(row: Row) -> tuple[str, int]:
    return row.weights, row.layers or 0


def _in_a_process(rows: Sequence[Row], setting: Setting) -> Outcomes:
    # As they are used: codes from a file, which is mapped, and in the page cache like the peers'.
    first = rows[0]
    checkpoint = None
    if first.weights in SCHEMES and first.layers is None:
        checkpoint = checkpoint_of(setting, first.weights)
        _warm(checkpoint)
    request = {
        "shape": str(setting.shape), "threads": setting.threads,
        "checkpoint": None if checkpoint is None else str(checkpoint),
        "rows": [asdict(row) for row in rows],
    }  # fmt: skip
    # The roof is measured by the kernels; torch's own threads would only stand in their way.
    ran = run(
        [sys.executable, "-m", "benchmarks.peers.ours"],
        text=json.dumps(request),
        environment={"OMP_NUM_THREADS": "1"},
        folder=ROOT,
    )
    return {key: Measured(*parts) for key, parts in json.loads(ran.output).items()}


def _warm(folder: Path) -> None:
    read_through(*sorted(folder.glob("*.safetensors")))


def _start(rows: Sequence[Row], setting: Setting) -> Outcomes:
    """A stored checkpoint in the page cache, from the start of ``dsv2 run`` to its first byte."""
    found: Outcomes = {}
    for weights, group in groupby(rows, lambda row: row.weights):
        folder = checkpoint_of(setting, weights)
        _warm(folder)
        command = [sys.executable, "-m", "dsv2", "run", "--raw", "--device", "cpu",
                   "--max-tokens", "1", folder, "def"]  # fmt: skip
        try:
            ran = run(command, folder=ROOT)
        except PeerError as error:
            found |= {row.key: Failure(str(error)) for row in group}
            continue
        figures = {"seconds": ran.first, "memory": ran.resident / GIB}
        found |= {row.key: Measured(figures[row.kind]) for row in group}
    return found


def checkpoint_of(setting: Setting, weights: str) -> Path:
    """The folder of a checkpoint of random weights, with a tokenizer."""
    config = ModelConfig.from_file(setting.shape / "config.json")
    special = {"bos_token_id": config.vocab_size - 16, "eos_token_id": config.vocab_size - 15}
    config = config.model_copy(update=special)
    return stored(setting.files, "dsv2", config, weights, tokenizer_files(config.vocab_size))


def compute(
    rows: Sequence[Row], config: ModelConfig, threads: int, checkpoint: Path | None
) -> dict[str, list[float]]:
    """Tokens per second and share of the limit by row; all rows have the same weights."""
    first = rows[0]
    if first.layers is not None:
        config = config.model_copy(update={"num_hidden_layers": first.layers})
    executor = CpuExecutor(threads)
    if checkpoint is None:
        model = synthetic_model(config, executor, first.weights)
    else:
        model = load_packed(checkpoint, executor)
    roof = measure_roof(executor, first.weights)
    longest = max(row.sequences * (row.depth + row.tokens + 64) for row in rows)
    benches: dict[str, ModelBench] = {}
    found = {}
    for row in rows:
        if row.cache not in benches:
            benches.clear()  # one cache is in memory at a time
            benches[row.cache] = ModelBench(model.with_cache(row.cache), roof, longest)
        bench = benches[row.cache]
        if row.kind == "prefill":
            figure = bench.prefill(row.tokens, repeats=1)
        else:
            # Peers generate `tokens` of them one after another: this is the middle of theirs.
            middle = row.depth + row.tokens // 2
            figure = bench.decode(row.sequences, middle, min(row.tokens, STEPS))
        found[row.key] = [figure.tokens_per_second, figure.share]
    return found


def main() -> None:
    request = json.load(sys.stdin)
    rows = [Row(**fields) for fields in request["rows"]]
    config = ModelConfig.from_file(Path(request["shape"]) / "config.json")
    checkpoint = request["checkpoint"]
    where = None if checkpoint is None else Path(checkpoint)
    print(json.dumps(compute(rows, config, request["threads"], where)))


if __name__ == "__main__":
    main()
