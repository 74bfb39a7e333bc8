"""Runs ``torch_engines.py`` in an environment of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

from benchmarks.peers.process import PeerError, run
from benchmarks.peers.work import Failure, Measured, Outcomes, Row, Setting
from dsv2.model.config import ModelConfig

SCRIPT = Path(__file__).with_name("torch_engines.py")


@dataclass(frozen=True)
class TorchPeer:
    """An engine on bf16 weights: see :data:`benchmarks.peers.work.Measure`.

    Attributes:
        engine: ``transformers`` or ``vllm``.
        python: the interpreter of the environment that has it.
    """

    engine: str
    python: Path

    def __call__(self, rows: Sequence[Row], setting: Setting) -> Outcomes:
        """Compute the bf16 rows, one model after the other."""
        config = ModelConfig.from_file(setting.shape / "config.json")
        own = [row for row in rows if row.weights == "bfloat16" and row.peers_row is None]
        found: Outcomes = {}
        for layers, group in groupby(own, lambda row: row.layers):
            shape = config if layers is None else config.model_copy(
                update={"num_hidden_layers": layers}
            )  # fmt: skip
            found |= self._model(list(group), shape, setting.threads)
        return found

    def _model(self, rows: Sequence[Row], config: ModelConfig, threads: int) -> Outcomes:
        request = {
            "config": config.to_published(), "threads": threads,
            "rows": [asdict(row) for row in rows],
        }  # fmt: skip
        try:
            ran = run(
                [self.python, SCRIPT, self.engine],
                text=json.dumps(request),
                environment={"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"},
            )
        except PeerError as error:
            return {row.key: Failure(str(error)) for row in rows}
        # vLLM writes its log to the same place, before the answer.
        speeds = json.loads(ran.output.strip().splitlines()[-1])
        return {key: Measured(speed) for key, speed in speeds.items()}
