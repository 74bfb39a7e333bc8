"""The training loop that every stage shares, and the run around it: start, resume, save, export."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsv2.checkpoint import load_model, save_model
from dsv2.checkpoint.state import load_latest, save_state
from dsv2.model.balance import Balance, step_bias
from dsv2.model.init import init_weights
from dsv2.model.moe import MoE
from dsv2.model.transformer import Transformer
from dsv2.ragged import RaggedBatch
from dsv2.training.config import TrainConfig
from dsv2.training.data import Batch, PackedLoader
from dsv2.training.losses import next_token_loss
from dsv2.training.metrics import Metrics
from dsv2.training.optim import MasterAdamW
from dsv2.training.shards import TokenDataset

STATE_FOLDER = "state"
MODEL_FOLDER = "model"
CONFIG_FILE = "config.resolved.json"


class TrainingError(ValueError):
    """A run cannot go on: non-finite numbers in a row, or a resume that does not fit."""


@dataclass
class Progress:
    """Where a run is; saved with every state.

    Attributes:
        step: optimiser steps attempted.
        tokens: tokens consumed.
        cursor: rows consumed, the one integer that the data resumes from.
        skipped: steps in a row skipped for non-finite numbers.
        total_skipped: all of them.
    """

    step: int = 0
    tokens: int = 0
    cursor: int = 0
    skipped: int = 0
    total_skipped: int = 0


@dataclass(frozen=True)
class StepResult:
    """One optimiser step: mean loss in nats per token, gradient norm before clipping, and so on."""

    loss: float
    balance: float | None
    norm: float
    rate: float
    rows: int
    applied: bool
    expert_counts: Tensor | None
    dropped: int


class Trainer:
    """A model, its optimiser and its place in the data."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.device = _device(config)
        self.model = _start(config, self.device)
        self.optimizer = MasterAdamW(self.model, config.optimizer, config.backend)
        self.loader = self.open_rows(config.data.train, seed=config.data.shuffle_seed)
        self.dataset = self.loader.dataset
        self.progress = Progress()
        self._ahead = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batch")
        self._next: tuple[tuple[int, int], Any] | None = None

    def open_rows(self, folder: Path, *, seed: int) -> PackedLoader:
        """The rows of a folder, of the kind that the stage learns from."""
        dataset = TokenDataset(folder)
        if dataset.vocab_size > self.model.config.vocab_size:
            raise TrainingError(
                f"{folder}: vocab_size {dataset.vocab_size} is above the model's "
                f"{self.model.config.vocab_size}"
            )
        sft = self.config.stage == "sft"
        if dataset.masked != sft:
            needed, found = ("a", "no") if sft else ("no", "a")
            raise TrainingError(
                f"{folder}: stage {self.config.stage} needs data with {needed} loss mask, "
                f"this has {found} mask"
            )
        return PackedLoader(dataset, self.config.batch.sequence_length, seed=seed, whole=sft)

    def close(self) -> None:
        """Stop the thread that reads ahead."""
        self._ahead.shutdown(wait=True, cancel_futures=True)

    @property
    def done(self) -> bool:
        """Whether the run's tokens are spent."""
        return self.progress.tokens >= self.config.tokens

    def step(self) -> StepResult:
        """One optimiser step over one batch of rows, in micro-batches.

        Raises:
            TrainingError: ``max_skipped`` steps in a row had a non-finite loss or gradient.
        """
        config, progress = self.config, self.progress
        rows = config.batch.rows_at(progress.tokens)
        rate = config.optimizer.rate_at(progress.step, progress.tokens / config.tokens)
        micros = self._micro_batches(progress.cursor, rows)
        targets = sum(int((micro.targets >= 0).sum()) for micro in micros)
        loss = torch.zeros((), device=self.device)
        balance = torch.zeros((), device=self.device)
        counts: Tensor | None = None
        dropped = torch.zeros((), dtype=torch.int64)
        for micro in micros:
            parts = self._forward(micro)
            share = micro.rows / rows
            total = parts.nll / max(targets, 1)
            if parts.balance is not None:
                total = total + parts.balance * share
                balance += parts.balance.detach() * share
            total.backward()
            self.optimizer.accumulate()
            loss += parts.nll.detach() / max(targets, 1)
            if parts.stats.layers:
                found = parts.stats.expert_counts
                counts = found if counts is None else counts + found
                for stats in parts.stats.layers.values():
                    if stats.dropped is not None:
                        dropped = dropped + stats.dropped.cpu()
        norm = self.optimizer.gradient_norm()
        applied = bool(torch.isfinite(loss + norm))
        if applied:
            self.optimizer.step(rate, norm)
            if config.balance.strategy == "bias" and counts is not None:
                self._move_bias(counts)
        else:
            self.optimizer.drop_gradients()
        self._advance(rows, applied)
        return StepResult(
            loss=float(loss),
            balance=float(balance) if config.balance.strategy in ("expert", "device") else None,
            norm=float(norm),
            rate=rate,
            rows=rows,
            applied=applied,
            expert_counts=None if counts is None else counts.cpu(),
            dropped=int(dropped),
        )

    def _advance(self, rows: int, applied: bool) -> None:
        progress = self.progress
        progress.step += 1
        progress.cursor += rows
        progress.tokens += rows * self.config.batch.sequence_length
        progress.skipped = 0 if applied else progress.skipped + 1
        progress.total_skipped += not applied
        if progress.skipped >= self.config.max_skipped:
            raise TrainingError(
                f"loss or gradient was not finite in {progress.skipped} steps in a row, up to step "
                f"{progress.step}; the weights are those of the last good step"
            )

    def _forward(self, micro: Batch) -> Any:
        batch = RaggedBatch.packed(micro.tokens, micro.lengths).to(self.device)
        targets = micro.targets.to(self.device)
        balance = None
        if self.model.config.n_routed_experts is not None:
            row = self.config.batch.sequence_length
            balance = Balance.for_rows(self.config.balance, [row] * micro.rows, self.device)
        return next_token_loss(self.model, batch, targets, balance)

    def _micro_batches(self, cursor: int, rows: int) -> list[Batch]:
        """This step's batches; the next step's are read meanwhile."""
        wanted = (cursor, rows)
        if self._next is not None and self._next[0] == wanted:
            micros: list[Batch] = self._next[1].result()
        else:
            micros = self._read(cursor, rows)
        tokens = self.progress.tokens + rows * self.config.batch.sequence_length
        following = (cursor + rows, self.config.batch.rows_at(tokens))
        self._next = (following, self._ahead.submit(self._read, *following))
        return micros

    def _read(self, cursor: int, rows: int) -> list[Batch]:
        size = self.config.batch.micro_rows
        return [
            self.loader.batch_at(cursor + start, min(size, rows - start))
            for start in range(0, rows, size)
        ]

    @torch.no_grad()
    def _move_bias(self, counts: Tensor) -> None:
        layers = [layer.ffn for layer in self.model.layers if isinstance(layer.ffn, MoE)]
        for layer, load in zip(layers, counts, strict=True):
            if layer.router_bias is not None:
                layer.router_bias.copy_(
                    step_bias(layer.router_bias, load, self.config.balance.bias_speed)
                )

    def tensors(self) -> dict[str, Tensor]:
        """Everything that changes while training."""
        saved = self.optimizer.tensors()
        for name, parameter in self.model.named_parameters():
            if not parameter.requires_grad:
                saved[f"fixed/{name}"] = parameter.detach()
        return saved

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            TrainingError: the data or a setting that shapes the run has changed.
        """
        if meta["data"] != self.dataset.fingerprint:
            raise TrainingError(
                f"the state was trained on data {meta['data']}, {self.config.data.train} is "
                f"{self.dataset.fingerprint}; a run resumes on its own data only"
            )
        ours, theirs = _shaping(self.config), meta["config"]
        changed = sorted(key for key in ours if ours[key] != theirs.get(key))
        if changed:
            raise TrainingError(
                f"the state was trained with other settings: {', '.join(changed)}; "
                "give them back their values or start a new run"
            )
        self.optimizer.load(tensors)
        for name, parameter in self.model.named_parameters():
            if not parameter.requires_grad:
                parameter.copy_(tensors[f"fixed/{name}"])
        self.progress = Progress(**meta["progress"])

    def meta(self) -> dict[str, Any]:
        """What :meth:`restore` checks and takes besides tensors."""
        return {
            "progress": vars(self.progress).copy(),
            "data": self.dataset.fingerprint,
            "config": _shaping(self.config),
        }

    @torch.no_grad()
    def validate(self, loader: PackedLoader, rows: int) -> float:
        """Mean loss in nats per token over the first ``rows`` rows, without balance."""
        total, count = 0.0, 0
        size = self.config.batch.micro_rows
        for start in range(0, rows, size):
            micro = loader.batch_at(start, min(size, rows - start))
            batch = RaggedBatch.packed(micro.tokens, micro.lengths).to(self.device)
            targets = micro.targets.to(self.device)
            total += float(next_token_loss(self.model, batch, targets).nll)
            count += int((targets >= 0).sum())
        return total / max(count, 1)


def run(
    config: TrainConfig,
    folder: Path,
    *,
    quiet: bool = False,
    stop_after: int | None = None,
    on_step: Callable[[Trainer, StepResult], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Trainer:
    """Train into ``folder``: resume what is there, save states, export the model at the end.

    Args:
        config: the resolved recipe; written to ``folder`` as JSON.
        folder: holds ``state/`` (resumable), ``model/`` (published layout) and ``metrics.jsonl``.
        quiet: no progress display.
        stop_after: leave after this many steps of this call, with a state saved.
        on_step: called after every step.
        should_stop: asked after every step; True leaves as ``stop_after`` does.

    Returns:
        The trainer, at the end of its run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(config)
    state = load_latest(folder / STATE_FOLDER)
    if state is not None:
        trainer.restore(dict(state.tensors), dict(state.meta))
    (folder / CONFIG_FILE).write_text(config.model_dump_json(indent=2) + "\n", encoding="utf-8")
    try:
        with Metrics(folder, config.tokens, trainer.progress.step, quiet) as metrics:
            if state is not None:
                metrics.say(f"resumed at step {trainer.progress.step} from {state.path}")
            _train(trainer, folder, metrics, stop_after, on_step, should_stop)
    finally:
        trainer.close()
    if trainer.done:
        export(trainer, folder / MODEL_FOLDER)
    return trainer


def _train(
    trainer: Trainer,
    folder: Path,
    metrics: Metrics,
    stop_after: int | None,
    on_step: Callable[[Trainer, StepResult], None] | None,
    should_stop: Callable[[], bool],
) -> None:
    config, progress = trainer.config, trainer.progress
    held_out = config.data.validation
    validation = None if held_out is None else trainer.open_rows(held_out, seed=0)
    since, spent = time.monotonic(), progress.tokens
    last_step = None if stop_after is None else progress.step + stop_after
    saved = progress.step
    stopping = False
    while not trainer.done and not stopping:
        result = trainer.step()
        stopping = progress.step == last_step or should_stop()
        if on_step is not None:
            on_step(trainer, result)
        if not result.applied:
            metrics.say(
                f"step {progress.step}: skipped, loss {result.loss} and gradient norm "
                f"{result.norm} are not both finite"
            )
        ends = trainer.done or stopping
        validated = validation is not None and (progress.step % config.validate_every == 0 or ends)
        if progress.step % config.log_every == 0 or ends or validated or not result.applied:
            now = time.monotonic()
            line = _line(result, progress)
            line["tokens_per_second"] = (progress.tokens - spent) / max(now - since, 1e-9)
            if validated and validation is not None:
                line["validation_loss"] = trainer.validate(validation, config.validation_rows)
            metrics.log(line)
            since, spent = time.monotonic(), progress.tokens
        else:
            metrics.advance(progress.tokens)
        if progress.step % config.save.every_steps == 0:
            _save(trainer, folder)
            saved = progress.step
    if saved != progress.step:
        _save(trainer, folder)


def _save(trainer: Trainer, folder: Path) -> None:
    save_state(
        folder / STATE_FOLDER,
        trainer.progress.step,
        trainer.tensors(),
        trainer.meta(),
        keep=trainer.config.save.keep,
    )


def _line(result: StepResult, progress: Progress) -> dict[str, Any]:
    line: dict[str, Any] = {
        "step": progress.step,
        "tokens": progress.tokens,
        "loss": result.loss,
        "learning_rate": result.rate,
        "gradient_norm": result.norm,
        "rows": result.rows,
        "skipped": progress.total_skipped,
    }
    if result.balance is not None:
        line["balance_loss"] = result.balance
        line["dropped"] = result.dropped
    if result.expert_counts is not None:
        load = result.expert_counts.float()
        load = load / load.mean(1, keepdim=True)
        line["expert_load_max"] = float(load.max())
        line["expert_load_min"] = float(load.min())
        line["expert_load"] = [[round(value, 4) for value in layer] for layer in load.tolist()]
    return line


def export(trainer: Trainer, folder: Path) -> None:
    """Write the model in the published layout, bf16, with its tokenizer where one is configured."""
    files: dict[str, bytes] = {}
    if trainer.config.tokenizer is not None:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            files[name] = (trainer.config.tokenizer / name).read_bytes()
    dtype = torch.bfloat16 if trainer.config.precision == "bf16" else torch.float32
    save_model(trainer.model, folder, dtype=dtype, tokenizer_files=files, overwrite=True)


def _device(config: TrainConfig) -> torch.device:
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise TrainingError("device is 'cuda', but torch sees no GPU; allowed here is 'cpu'")
    return torch.device(config.device)


def _start(config: TrainConfig, device: torch.device) -> Transformer:
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    if config.start_from is not None:
        return load_model(config.start_from, dtype=dtype, device=device)
    assert config.model is not None
    model = Transformer(config.model, backend=config.backend)
    init_weights(model, torch.Generator().manual_seed(config.seed), config.init_std)
    return model.to(device=device, dtype=dtype)


def _shaping(config: TrainConfig) -> dict[str, Any]:
    """The settings that a resumed run must share with its state, as plain JSON."""
    shaping = config.model_dump(mode="json", include={
        "stage", "model", "batch", "optimizer", "balance", "precision", "tokens", "seed",
    })  # fmt: skip
    shaping["shuffle_seed"] = config.data.shuffle_seed
    return json.loads(json.dumps(shaping))
