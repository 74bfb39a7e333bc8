"""This project's own side on a GPU, one part per process.

    python -m benchmarks.peers.gpu_ours < request.json

The request has ``part``, ``config`` (the content of a ``config.json``), ``device``, ``backend``,
``deterministic``, ``rows`` and, but for the part ``roof``, the measured ``roof``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from benchmarks.peers.gpu_work import GpuRow, Target, trained
from benchmarks.peers.sections import attempt, say, serve
from dsv2.checkpoint.synthetic import synthetic_model, synthetic_weights
from dsv2.engine.bench import ModelBench, engine_seconds
from dsv2.engine.sequence import blocks_for
from dsv2.kernels.executor import make_executor
from dsv2.kernels.timing import Roof, measure_device, step_seconds
from dsv2.model.config import ModelConfig
from dsv2.model.packed import PackedModel
from dsv2.model.transformer import Transformer
from dsv2.ragged import RaggedBatch
from dsv2.shapes import BLOCK_SIZE
from dsv2.training.config import OptimizerConfig
from dsv2.training.losses import next_token_loss
from dsv2.training.optim import MasterAdamW

DECODE_STEPS, PREFILLS, TRAINING_STEPS = 20, 3, 5


def load_rows(request: Mapping[str, Any]) -> list[GpuRow]:
    """The rows of a request."""
    found = []
    for fields in request["rows"]:
        target = fields["target"]
        found.append(GpuRow(**fields | {"target": target and Target(**target)}))
    return found


def measure_roof(request: Mapping[str, Any]) -> None:
    """What the device can do, and what it and its programs are called."""
    device = torch.device(request["device"])
    tiny = device.type == "cpu"
    roof = measure_device(device, torch.float32 if tiny else torch.bfloat16, tiny=tiny)
    say(row="roof", read=roof.read, multiply=roof.multiply, **versions(device))


def versions(device: torch.device) -> dict[str, str]:
    """Card, driver and versions of the libraries, "none" for what is not here."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"machine": "CPU", "driver": "none"}
    if device.type == "cuda":
        found = {"machine": torch.cuda.get_device_name(device), "driver": _driver()}
    for name in ("torch", "triton", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found


def _driver() -> str:
    import subprocess

    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip().splitlines()[0]


def _packed(request: Mapping[str, Any]) -> PackedModel:
    (weights,) = {row.weights for row in load_rows(request)}
    device = torch.device(request["device"])
    executor = make_executor(
        request["backend"], device.type, deterministic=request["deterministic"]
    )
    return synthetic_model(
        ModelConfig.from_published(request["config"]), executor, weights, device=device
    )


def measure_steps(request: Mapping[str, Any]) -> None:
    """Decode steps and prompts of a packed model through the engine's runner."""
    roof = Roof(**request["roof"])
    model = _packed(request)
    for row in load_rows(request):

        def compute(row: GpuRow = row) -> dict[str, Any]:
            # A cache of its own size for each row: the largest may not fit, the others do.
            longest = row.sequences * (blocks_for(row.tokens + 1) * BLOCK_SIZE)
            bench = ModelBench(model, roof, longest)
            if row.kind == "decode":
                figure = bench.decode(row.sequences, row.tokens, DECODE_STEPS)
            else:
                figure = bench.prefill(row.tokens, PREFILLS, sequences=row.sequences)
            return {"seconds": figure.seconds, "tokens": row.sequences * (
                1 if row.kind == "decode" else row.tokens
            )}  # fmt: skip

        attempt(row.key, compute)


def measure_engine(request: Mapping[str, Any]) -> None:
    """Whole requests through the engine: scheduler, batches, sampler."""
    model = _packed(request)
    for row in load_rows(request):

        def compute(row: GpuRow = row) -> dict[str, Any]:
            seconds = engine_seconds(model, row.sequences, row.tokens, row.new)
            return {"seconds": seconds, "tokens": row.sequences * row.new}

        attempt(row.key, compute)


def measure_training(request: Mapping[str, Any]) -> None:
    """Forward, backward and AdamW on fp32 copies of bf16 weights, as the trainer does it."""
    device = torch.device(request["device"])
    config = trained(ModelConfig.from_published(request["config"]))
    for row in load_rows(request):

        def compute(row: GpuRow = row) -> dict[str, Any]:
            phases = training_phases(config, device, torch.bfloat16, row.sequences, row.tokens)

            def step(turn: int) -> None:
                for _, run in phases:
                    run()

            seconds = step_seconds(step, TRAINING_STEPS, device)
            return {"seconds": seconds, "tokens": row.sequences * row.tokens}

        attempt(row.key, compute)


def training_phases(
    config: ModelConfig, device: torch.device, dtype: torch.dtype, sequences: int, tokens: int,
    backend: str = "auto",
) -> list[tuple[str, Callable[[], None]]]:  # fmt: skip
    """The phases of a training step on random weights and tokens, in their order."""
    model = random_transformer(config, device, dtype, backend)
    optimizer = MasterAdamW(model, OptimizerConfig(), backend)
    generator = torch.Generator(device).manual_seed(0)
    ids = torch.randint(
        config.vocab_size, (sequences * tokens,), generator=generator, device=device
    )
    batch = RaggedBatch.packed(ids, (tokens,) * sequences)
    targets = ids.roll(-1)
    losses: list[torch.Tensor] = []

    def forward() -> None:
        losses.append(next_token_loss(model, batch, targets).nll / targets.numel())

    def backward() -> None:
        losses.pop().backward()
        optimizer.accumulate()

    def update() -> None:
        optimizer.step(1e-5, optimizer.gradient_norm())

    return [("forward", forward), ("backward", backward), ("update", update)]


def random_transformer(
    config: ModelConfig, device: torch.device, dtype: torch.dtype, backend: str = "auto"
) -> Transformer:
    """A trainable model whose weights are drawn on its device."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = Transformer(config, backend=backend)
    finally:
        torch.set_default_dtype(default)
    fetch = synthetic_weights(config, str(dtype).removeprefix("torch."), 0, device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = fetch(name)
            assert isinstance(drawn, torch.Tensor)
            parameter.copy_(drawn)
    return model


PARTS: dict[str, Callable[[Mapping[str, Any]], None]] = {
    "roof": measure_roof,
    "steps": measure_steps,
    "engine": measure_engine,
    "train": measure_training,
}


if __name__ == "__main__":
    serve(PARTS)
