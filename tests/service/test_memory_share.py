"""How the models of one server divide the memory of their machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsv2.engine import loading
from dsv2.service import server
from dsv2.service.server import Server, _worker_options
from dsv2.service.settings import ModelSettings, ServeSettings
from tests.service.workers import launched, make_options, socket_folder

GB = 10**9


def shares(
    monkeypatch: pytest.MonkeyPatch, *models: ModelSettings
) -> tuple[list[int | None], list[str]]:
    """What each model's engine may plan with, and what the operator is told."""
    monkeypatch.setattr(server, "available_bytes", lambda: 24 * GB)
    said: list[str] = []
    settings = ServeSettings(models=models)
    memory = Server(settings, said.append)._memory_share()
    options = [_worker_options(one, settings, Path(), "engine", memory) for one in models]
    return [one.memory for one in options], said


def test_one_model_has_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shares(monkeypatch, ModelSettings()) == ([None], [])


def test_several_have_equal_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    models = [ModelSettings(name=name) for name in ("a", "b", "c")]
    found, [line] = shares(monkeypatch, *models)
    assert found == [8 * GB] * 3
    assert "3 models" in line and "8.00 GB" in line


def test_one_whose_cache_is_given_takes_what_it_needs_and_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found, _ = shares(monkeypatch, ModelSettings(name="a", cache_tokens=64), ModelSettings())
    assert found == [None, 12 * GB]
    both = [ModelSettings(name=name, cache_tokens=64) for name in ("a", "b")]
    assert shares(monkeypatch, *both) == ([None, None], [])


def test_one_on_a_gpu_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = shares(monkeypatch, ModelSettings(name="a", device="cuda"), ModelSettings())
    assert found == [None, None]


def test_a_part_bounds_the_plan_and_no_more_than_is_free(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "free_bytes", lambda device: 2 * GB)
    for memory, free in ((None, 2 * GB), (GB, GB), (3 * GB, 2 * GB)):
        prepared = loading.prepare(str(tiny_folder), device="cpu", memory=memory)
        assert prepared.plan.free_bytes == free


def test_the_engine_process_plans_with_its_part(tiny_folder: Path) -> None:
    with (
        socket_folder() as folder,
        launched(make_options(tiny_folder, folder, cache_tokens=None, memory=GB)) as worker,
    ):
        phases = {report["phase"]: report["text"] for report in worker.reports if "text" in report}
    assert phases["loading"].endswith("of the 1.00 GB planned with")
