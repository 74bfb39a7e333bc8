"""Training state under kills, full disks and damage (faults F38 to F40)."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from dsv2.checkpoint import ModelLoadError, state
from dsv2.checkpoint.state import LATEST, MANIFEST, TENSORS, StateError, load_latest, save_state


def content(step: int) -> dict[str, torch.Tensor]:
    return {
        "weight": torch.full((64, 8), float(step)),
        "half": torch.full((7,), step, dtype=torch.bfloat16),
        "count": torch.tensor(step),
        "rng": torch.full((16,), step % 256, dtype=torch.uint8),
    }


def save(root: Path, step: int, keep: int = 2) -> Path:
    return save_state(root, step, content(step), {"step": step}, keep=keep)


def check_whole(root: Path) -> int | None:
    """Load, and check that every tensor and the meta are of one and the same step."""
    found = load_latest(root, deep=True)
    if found is None:
        return None
    assert found.meta == {"step": found.step}
    for name, tensor in content(found.step).items():
        assert torch.equal(found.tensors[name], tensor)
        assert found.tensors[name].dtype == tensor.dtype
    assert not [name for name in os.listdir(root) if ".tmp-" in name]
    return found.step


def test_states_come_back_and_old_ones_go(tmp_path: Path) -> None:
    assert load_latest(tmp_path / "none") is None
    for step in (1, 2, 3):
        assert save(tmp_path, step) == tmp_path / f"step-{step}"
        assert check_whole(tmp_path) == step
        assert (tmp_path / LATEST).read_text() == f"step-{step}\n"
    assert sorted(os.listdir(tmp_path)) == [LATEST, "step-2", "step-3"]


@pytest.mark.slow
def test_fifty_kills_at_random_moments(tmp_path: Path) -> None:
    """Fault F40. Children of this process, so that none imports torch anew.

    At least 50 kills, and as many more as it takes until kills have fallen into saves and
    between them and 15 saves have survived: where a kill falls is the machine's matter.
    """
    dice = random.Random(4)
    # Disks and machines differ: how long a child lives is counted in saves.
    start, step, survived = time.perf_counter(), 5, set()
    for number in range(1, step + 1):
        save(tmp_path, number)
    one = (time.perf_counter() - start) / step
    kills = 0
    while kills < 50 or step < 20 or survived != {True, False}:
        assert kills < 1000, (step, survived)
        child = os.fork()
        if child == 0:
            try:
                for number in range(step + 1, step + 10_000):
                    save(tmp_path, number)
            finally:
                os._exit(1)
        time.sleep(dice.uniform(0.5, 6) * one)
        os.kill(child, signal.SIGKILL)
        kills += 1
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "the child ended by itself"
        survived.add(any(".tmp-" in name for name in os.listdir(tmp_path)))
        found = check_whole(tmp_path) or 0
        assert found >= step
        # A disk that others use too takes its time: children that save nothing live longer.
        one *= 1.2 if found == step else 0.95
        step = found


def test_a_kill_at_every_call_of_a_save(tmp_path: Path) -> None:
    """The same, exhaustively: the k-th system call of a save never comes back."""
    base = tmp_path / "run"
    save(base, 1, keep=1)
    ended = False
    kills = 0
    while not ended:
        child = os.fork()
        if child == 0:
            _die_at_call(kills)
            save(base, 2, keep=1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        ended = os.waitstatus_to_exitcode(status) == 0
        assert check_whole(base) in ((2,) if ended else (1, 2))
        kills += 1
        for name in os.listdir(base):  # back to where only step 1 is there
            if name == "step-2":
                shutil.rmtree(base / name)
        if not (base / "step-1").exists():
            save(base, 1, keep=1)
    assert kills > 12


def _die_at_call(number: int) -> None:
    calls = 0

    def dying(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > number:
                os._exit(9)
            return function(*args, **kwargs)

        return call

    for name in ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir"):
        setattr(os, name, dying(getattr(os, name)))
    state.write_safetensors = dying(state.write_safetensors)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_a_full_or_failing_disk_leaves_the_last_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    """Fault F39: every sync of a save fails in turn."""
    save(tmp_path, 1)
    real, failures = os.fsync, 0
    while _fails_at(tmp_path, monkeypatch, failures, error):
        monkeypatch.setattr(os, "fsync", real)
        failures += 1
        assert check_whole(tmp_path) in (1, 2)
        shutil.rmtree(tmp_path / "step-2", ignore_errors=True)
    assert failures >= 5
    assert check_whole(tmp_path) == 2


def _fails_at(root: Path, monkeypatch: pytest.MonkeyPatch, place: int, error: int) -> bool:
    """Save step 2 with its ``place``-th sync failing; whether it came to that."""
    real, calls = os.fsync, 0

    def failing(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls == place + 1:
            raise OSError(error, os.strerror(error))
        real(handle)

    monkeypatch.setattr(os, "fsync", failing)
    try:
        save(root, 2)
    except StateError as caught:
        return os.strerror(error) in str(caught)
    return False


def test_too_little_space_is_seen_before_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    usage = type("Usage", (), {"free": 100})()
    monkeypatch.setattr(state.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(StateError, match=r"needs 2,\d+ bytes .* 100 are free"):
        save(tmp_path, 2)
    assert check_whole(tmp_path) == 1


@pytest.mark.parametrize("damage", ["cut", "flip", "no manifest", "bad manifest", "no tensors"])
def test_a_damaged_state_is_passed_over(tmp_path: Path, damage: str) -> None:
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    raw = bytearray((newest / TENSORS).read_bytes())
    if damage == "cut":
        (newest / TENSORS).write_bytes(raw[:-1])
    elif damage == "flip":
        raw[-1] ^= 1
        (newest / TENSORS).write_bytes(raw)
    elif damage == "no manifest":
        (newest / MANIFEST).unlink()
    elif damage == "bad manifest":
        (newest / MANIFEST).write_text("{")
    else:
        (newest / TENSORS).unlink()
    assert check_whole(tmp_path) == 1
    # A damaged state counts for nothing: with it there, both whole ones stay.
    save(tmp_path, 3)
    assert check_whole(tmp_path) == 3
    assert (tmp_path / "step-1").exists() or damage == "flip"


def test_nothing_but_damage_is_an_error(tmp_path: Path) -> None:
    (save(tmp_path, 1) / MANIFEST).write_text(json.dumps({"files": {"x": {}}}))
    with pytest.raises(ModelLoadError, match="damaged are step-1"):
        load_latest(tmp_path)


def test_a_step_saved_twice_stays_as_it_was(tmp_path: Path) -> None:
    before = (save(tmp_path, 5) / MANIFEST).read_bytes()
    assert (save(tmp_path, 5) / MANIFEST).read_bytes() == before
    with pytest.raises(ValueError, match="keep is 0"):
        save(tmp_path, 6, keep=0)
