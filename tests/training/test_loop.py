from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from dsv2.checkpoint import load_model
from dsv2.ragged import RaggedBatch
from dsv2.training.config import RecipeError, load_recipe
from dsv2.training.loop import Trainer, TrainingError, run
from dsv2.training.metrics import read_metrics
from dsv2.training.plot import draw
from tests.training.make import recipe, write_shards

LENGTHS = [40, 7, 90, 33, 61, 12, 150, 28] * 4


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "data", LENGTHS)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.tensors().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(folder / "metrics.jsonl")]


@pytest.mark.parametrize(
    "strategy",
    ["bias", *(pytest.param(name, marks=pytest.mark.slow) for name in ("expert", "device"))],
)
def test_twenty_and_twenty_steps_equal_forty_bit_for_bit(
    tmp_path: Path, data: Path, strategy: str
) -> None:
    overrides: dict[str, Any] = {
        "balance": {"strategy": strategy, "num_devices": 4, "device_limit": 2}
        | ({"capacity_factor": 1.0} if strategy == "device" else {}),
        "batch": {"sequence_length": 32, "rows": 4, "start_rows": 2, "ramp_tokens": 1000,
                  "micro_rows": 2},
    }  # fmt: skip
    if strategy == "bias":
        model = recipe(data).model
        assert model is not None
        overrides["model"] = model.model_dump() | {
            "scoring_func": "sigmoid", "topk_method": "noaux_tc", "n_group": 4, "topk_group": 2,
        }  # fmt: skip
    config = recipe(data, **overrides)
    straight = run(config, tmp_path / "straight", quiet=True)
    assert straight.progress.step >= 40
    run(config, tmp_path / "halves", quiet=True, stop_after=20)
    resumed = run(config, tmp_path / "halves", quiet=True)
    assert straight.progress == resumed.progress
    assert same(weights(straight), weights(resumed))
    assert losses(tmp_path / "straight") == losses(tmp_path / "halves")
    assert losses(tmp_path / "straight")[-1] < losses(tmp_path / "straight")[0] - 0.5


def test_training_passes_epochs_and_resumes_in_the_middle_of_one(tmp_path: Path) -> None:
    data = write_shards(tmp_path / "few", [50, 60, 70])
    config = recipe(data, tokens=12 * 4 * 32)
    straight = run(config, tmp_path / "a", quiet=True)
    for _ in range(12):
        resumed = run(config, tmp_path / "b", quiet=True, stop_after=1)
    assert same(weights(straight), weights(resumed))


def test_gradient_accumulation_does_not_change_the_step(data: Path) -> None:
    found = []
    for micro in (1, 2, 4):
        batch = {"sequence_length": 32, "rows": 4, "micro_rows": micro}
        trainer = Trainer(recipe(data, batch=batch))
        result = trainer.step()
        trainer.close()
        found.append((result.loss, result.norm))
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert found[0] == pytest.approx(found[2], rel=1e-5)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_numbers_that_are_not_finite_never_reach_the_weights(
    data: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    trainer = Trainer(recipe(data, max_skipped=2))
    trainer.step()
    before = weights(trainer)
    if where == "loss":
        forward = trainer._forward

        def broken(micro: Any) -> Any:
            parts = forward(micro)
            return type(parts)(parts.nll * math.nan, parts.balance, parts.stats)

        monkeypatch.setattr(trainer, "_forward", broken)
    else:
        trainer.model.head.register_hook(lambda grad: grad.fill_(math.inf))  # type: ignore[union-attr]
    result = trainer.step()
    assert not result.applied
    assert same(before, weights(trainer))
    assert trainer.progress.skipped == 1
    with pytest.raises(TrainingError, match="2 steps in a row"):
        trainer.step()
    assert same(before, weights(trainer))
    trainer.close()


def test_a_good_step_after_a_skipped_one_resets_the_count(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(recipe(data, max_skipped=2))
    forward = trainer._forward
    calls = iter([math.nan, math.nan, 1.0, 1.0, math.nan, math.nan, 1.0, 1.0])

    def flaky(micro: Any) -> Any:
        parts = forward(micro)
        return type(parts)(parts.nll * next(calls), parts.balance, parts.stats)

    monkeypatch.setattr(trainer, "_forward", flaky)
    assert [trainer.step().applied for _ in range(4)] == [False, True, False, True]
    assert (trainer.progress.skipped, trainer.progress.total_skipped) == (0, 2)
    assert all(bool(torch.isfinite(t).all()) for t in weights(trainer).values())
    trainer.close()


def test_a_resume_on_other_data_or_settings_is_refused(tmp_path: Path, data: Path) -> None:
    config = recipe(data)
    run(config, tmp_path / "run", quiet=True, stop_after=2)
    other = write_shards(tmp_path / "other", LENGTHS, seed=5)
    with pytest.raises(TrainingError, match="resumes on its own data"):
        run(recipe(other), tmp_path / "run", quiet=True)
    with pytest.raises(TrainingError, match="optimizer"):
        run(
            recipe(data, optimizer={"learning_rate": 1.0, "warmup_steps": 5}),
            tmp_path / "run", quiet=True,
        )  # fmt: skip
    run(config, tmp_path / "run", quiet=True, stop_after=2)


def test_the_export_is_a_checkpoint_and_sft_goes_on_from_it(tmp_path: Path, data: Path) -> None:
    config = recipe(data, tokens=6 * 4 * 32)
    trained = run(config, tmp_path / "run", quiet=True)
    loaded = load_model(tmp_path / "run" / "model")
    for (name, ours), theirs in zip(
        trained.model.named_parameters(), loaded.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs), name
    masked = write_shards(tmp_path / "chats", [30, 20, 25, 31] * 6, masked=True)
    tuning = recipe(
        masked, stage="sft", model=None, start_from=str(tmp_path / "run" / "model"),
        data={"train": str(masked), "validation": str(masked)}, tokens=5 * 4 * 32,
        validate_every=2, validation_rows=4,
    )  # fmt: skip
    tuned = run(tuning, tmp_path / "sft", quiet=True)
    assert tuned.progress.step == 5
    lines = list(read_metrics(tmp_path / "sft" / "metrics.jsonl"))
    assert [("validation_loss" in line) for line in lines] == [False, True, False, True, True]


def test_sft_learns_masked_targets_alone(tmp_path: Path) -> None:
    masked = write_shards(tmp_path / "chats", [32] * 8, masked=True)
    trainer = Trainer(recipe(masked, stage="sft"))
    micro = trainer.loader.batch_at(0, 2)
    nll = float(trainer._forward(micro).nll.detach())
    shown = micro.targets >= 0
    assert 0 < int(shown.sum()) < 64
    with torch.no_grad():
        logits, _ = trainer.model(RaggedBatch.packed(micro.tokens, micro.lengths))
    logs = logits.log_softmax(-1)
    expected = -sum(float(logs[i, micro.targets[i]]) for i in range(64) if shown[i])
    assert nll == pytest.approx(expected, rel=1e-4)
    trainer.close()


def test_the_stage_and_the_data_must_fit(tmp_path: Path, data: Path) -> None:
    with pytest.raises(TrainingError, match="needs data with a loss mask"):
        Trainer(recipe(data, stage="sft"))
    masked = write_shards(tmp_path / "chats", [32] * 8, masked=True)
    with pytest.raises(TrainingError, match="needs data with no loss mask"):
        Trainer(recipe(masked))
    model = recipe(data).model
    assert model is not None
    with pytest.raises(TrainingError, match="vocab_size 160 is above"):
        Trainer(recipe(data, model=model.model_dump() | {"vocab_size": 100}))


def test_bf16_keeps_small_updates_in_its_fp32_copy(data: Path) -> None:
    trainer = Trainer(
        recipe(data, precision="bf16", optimizer={"learning_rate": 1e-6, "warmup_steps": 0})
    )
    before = weights(trainer)
    trainer.step()
    name = "weight/layers.0.attn.wo"
    assert not torch.equal(before[name], trainer.tensors()[name])
    assert trainer.model.embed.dtype == torch.bfloat16
    trainer.close()


def test_the_schedule_is_the_published_one(data: Path) -> None:
    optimizer = recipe(data, optimizer={}).optimizer
    assert (optimizer.beta1, optimizer.beta2, optimizer.weight_decay) == (0.9, 0.95, 0.1)
    assert optimizer.rate_at(0, 0.0) == pytest.approx(2.4e-4 / 2000)
    assert optimizer.rate_at(1999, 0.1) == pytest.approx(2.4e-4)
    assert optimizer.rate_at(10**5, 0.5999) == pytest.approx(2.4e-4)
    assert optimizer.rate_at(10**5, 0.6) == pytest.approx(2.4e-4 * 0.316)
    assert optimizer.rate_at(10**5, 0.9) == pytest.approx(2.4e-4 * 0.316**2)
    batch = recipe(
        data,
        batch={"sequence_length": 8, "rows": 9216, "start_rows": 2304, "ramp_tokens": 1000,
               "micro_rows": 1},
    ).batch  # fmt: skip
    assert [batch.rows_at(tokens) for tokens in (0, 500, 1000, 5000)] == [2304, 5760, 9216, 9216]


RECIPE = """\
stage: pretrain
start_from: somewhere
data: {train: folder}
batch: {sequence_length: 32, rows: 4, micro_rows: 2}
tokens: 100
"""


def test_overrides_are_typed(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE)
    config = load_recipe(path, ["optimizer.learning_rate=1e-3", "batch.rows=8", "backend=torch"])
    assert (config.optimizer.learning_rate, config.batch.rows) == (1e-3, 8)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["optimizer.learning_rat=1"], "optimizer.learning_rat"),
        (["batch.rows=none"], "batch.rows"),
        (["batch.rows=0"], "batch.rows"),
        (["tokens"], "allowed is"),
        (["tokens.x=1"], "not a mapping"),
        (["stage=grpo"], "stage"),
        (["balance.alpha_expert=0"], "alpha_expert is 0"),
        (["start_from=null"], "exactly one of model"),
        (["optimizer.clip=.nan"], "optimizer.clip"),
    ],
)
def test_recipe_errors_name_field_and_value(
    tmp_path: Path, overrides: list[str], words: str
) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE)
    with pytest.raises(RecipeError, match=words):
        load_recipe(path, overrides)


@pytest.mark.parametrize("content", ["[1]", "a: [", ""])
def test_files_that_are_no_recipes_are_errors(tmp_path: Path, content: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(content)
    with pytest.raises(RecipeError, match=r"r\.yaml"):
        load_recipe(path)


def test_metrics_and_plots_of_a_run(tmp_path: Path, data: Path) -> None:
    run(recipe(data, tokens=6 * 4 * 32), tmp_path / "run", quiet=True)
    lines = list(read_metrics(tmp_path / "run" / "metrics.jsonl"))
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert {"loss", "learning_rate", "gradient_norm", "tokens_per_second", "expert_load"} <= set(
        lines[0]
    )
    resolved = json.loads((tmp_path / "run" / "config.resolved.json").read_text())
    assert resolved["optimizer"]["beta2"] == 0.95
    picture = draw(tmp_path / "run", tmp_path / "run.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 10_000


def test_a_metrics_line_cut_short_by_a_kill_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    assert list(read_metrics(path)) == [{"step": 1}]
