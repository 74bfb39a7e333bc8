"""A training run as data: a YAML recipe, typed, with ``--set a.b=c`` on top."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dsv2.model.balance import BalanceConfig
from dsv2.model.config import ModelConfig

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


class RecipeError(ValueError):
    """A recipe is malformed, or a ``--set`` does not fit it."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataConfig(_Part):
    """Where the tokens are.

    Attributes:
        train: folder written by ``dsv2 prepare``.
        validation: such a folder, or None for no validation.
        shuffle_seed: order of the documents.
    """

    train: Path
    validation: Path | None = None
    shuffle_seed: int = 0


class BatchConfig(_Part):
    """Rows per step.

    Attributes:
        sequence_length: tokens per packed row.
        rows: rows per step once the ramp is over.
        start_rows: rows per step at the start; None for no ramp.
        ramp_tokens: tokens over which the rows grow linearly (report: 225B from 2304 to 9216).
        micro_rows: rows per forward and backward; the step's gradient does not depend on it.
    """

    sequence_length: Annotated[int, Field(ge=8)]
    rows: Annotated[int, Field(ge=1)]
    start_rows: Annotated[int, Field(ge=1)] | None = None
    ramp_tokens: Annotated[int, Field(ge=0)] = 0
    micro_rows: Annotated[int, Field(ge=1)]

    def rows_at(self, tokens: int) -> int:
        """Rows of the step that starts after ``tokens`` tokens."""
        if self.start_rows is None or tokens >= self.ramp_tokens:
            return self.rows
        grown = (self.rows - self.start_rows) * tokens // self.ramp_tokens
        return self.start_rows + grown


class OptimizerConfig(_Part):
    """AdamW and its schedule; the defaults are V2's (report, section 3.1.2).

    Attributes:
        learning_rate: the maximum, reached after ``warmup_steps``.
        decay_at: shares of the run's tokens at which the rate is multiplied by ``decay_factor``.
        final_decay: share of the run over which the rate falls linearly to zero at the end; 0, as
            published, for none.
        weight_decay: on matrices alone, norms and biases have none.
        clip: largest norm of the whole gradient.
    """

    learning_rate: Positive = 2.4e-4
    warmup_steps: Annotated[int, Field(ge=0)] = 2000
    decay_at: tuple[Share, ...] = (0.6, 0.9)
    decay_factor: Positive = 0.316
    final_decay: Share = 0.0
    beta1: Share = 0.9
    beta2: Share = 0.95
    epsilon: Positive = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    clip: Positive = 1.0

    def rate_at(self, step: int, progress: float) -> float:
        """Learning rate of step ``step`` (from 0) that starts at ``progress`` in [0, 1)."""
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        passed = sum(progress >= point for point in self.decay_at)
        cooled = min(1.0, (1.0 - progress) / self.final_decay) if self.final_decay else 1.0
        return self.learning_rate * warm * self.decay_factor**passed * cooled


class SaveConfig(_Part):
    """When state is saved, and how much of it is kept."""

    every_steps: Annotated[int, Field(ge=1)] = 500
    keep: Annotated[int, Field(ge=1)] = 2


class TrainConfig(_Part):
    """A whole run.

    Attributes:
        stage: ``pretrain`` learns from every token, ``sft`` from the masked ones (the assistant's).
        model: the architecture, for a fresh start; exactly one of ``model`` and ``start_from``.
        start_from: a checkpoint folder in the published layout to go on from.
        tokenizer: folder whose tokenizer is exported beside the weights.
        tokens: tokens to train on; the run ends with the first step that reaches them.
        precision: dtype of weights and activations; the optimiser's copy is fp32.
        seed: of the initial weights.
        init_std: standard deviation of the initial weights; None for the model's own.
        max_skipped: steps in a row that may be skipped for a non-finite loss or gradient.
        log_every: steps between lines of metrics.
        validate_every: steps between validations.
        validation_rows: rows of each validation.
    """

    stage: Literal["pretrain", "sft"]
    model: ModelConfig | None = None
    start_from: Path | None = None
    tokenizer: Path | None = None
    data: DataConfig
    batch: BatchConfig
    tokens: Annotated[int, Field(ge=1)]
    optimizer: OptimizerConfig = OptimizerConfig()
    balance: BalanceConfig = BalanceConfig()
    save: SaveConfig = SaveConfig()
    precision: Literal["bf16", "fp32"] = "bf16"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    backend: str = "auto"
    seed: int = 0
    init_std: Positive | None = None
    max_skipped: Annotated[int, Field(ge=1)] = 5
    log_every: Annotated[int, Field(ge=1)] = 10
    validate_every: Annotated[int, Field(ge=1)] = 500
    validation_rows: Annotated[int, Field(ge=1)] = 32

    @model_validator(mode="after")
    def _one_start(self) -> TrainConfig:
        if (self.model is None) == (self.start_from is None):
            raise ValueError("give exactly one of model (fresh weights) and start_from (a folder)")
        return self


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a YAML recipe and apply ``a.b=value`` overrides, whose values are YAML.

    Relative paths in a recipe are relative to the working directory.

    Raises:
        RecipeError: naming the file, the field, the value and what is allowed.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: must be a mapping, got {type(content).__name__}")
    for override in overrides:
        _apply(content, override)
    try:
        return TrainConfig.model_validate(content)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc'])) or 'recipe'}: {problem['msg']}"
            + (f", got {problem['input']!r}"[:120] if problem["loc"] else "")
            for problem in error.errors()
        )
        raise RecipeError(f"{path}: {problems}") from error


def _apply(content: dict[str, Any], override: str) -> None:
    name, separator, value = override.partition("=")
    if not separator or not name:
        raise RecipeError(f"--set {override!r}: allowed is field.subfield=value")
    *parents, last = name.split(".")
    place = content
    for parent in parents:
        below = place.setdefault(parent, {})
        if not isinstance(below, dict):
            raise RecipeError(f"--set {override!r}: {parent} is {below!r}, not a mapping")
        place = below
    try:
        place[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {override!r}: value is not valid YAML") from error
