"""Training state that survives anything: a state is on disk whole, or it is not there.

The protocol: measure the free space; write every file of ``step-N.tmp-<id>`` and sync it; write the
manifest, with sizes and SHA-256, last; sync the folder; rename it to ``step-N``; sync the parent;
point ``latest`` at it the same way; and only then remove old states. A kill or a full disk at any
point leaves the last whole state loadable. Loading trusts nothing but a manifest that verifies.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dsv2.checkpoint.safetensors import ModelLoadError, open_safetensors, write_safetensors

TENSORS = "tensors.safetensors"
META = "meta.json"
MANIFEST = "manifest.json"
LATEST = "latest"
SPACE_MARGIN = 1.1
_STEP = re.compile(r"step-(\d+)")
_PARTIAL = re.compile(r"step-\d+\.tmp-[0-9a-f]+|latest\.tmp-[0-9a-f]+")
_CHUNK = 1 << 22


class StateError(OSError):
    """A state could not be written; the one before is untouched."""


@dataclass(frozen=True)
class State:
    """A state read back.

    Attributes:
        step: the optimiser step it was saved after.
        tensors: by name, on the CPU.
        meta: the JSON that was saved with them.
        path: its folder.
    """

    step: int
    tensors: dict[str, Tensor]
    meta: dict[str, Any]
    path: Path


def save_state(
    root: Path, step: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], *, keep: int = 3
) -> Path:
    """Save a state under ``root`` and return its folder; prune to the ``keep`` newest whole ones.

    Args:
        root: folder of all states of a run.
        step: number of the state; a whole state of the same step is kept as it is.
        tensors: floating-point, integer or byte tensors by name, on any device.
        meta: JSON-compatible settings and counters.
        keep: how many whole states to leave, the new one included.

    Raises:
        StateError: the disk is too full or fails; partial files are removed.
    """
    if keep < 1:
        raise ValueError(f"keep is {keep}, allowed is at least 1")
    root.mkdir(parents=True, exist_ok=True)
    final = root / f"step-{step}"
    if final.exists():
        if _verify(final, deep=False) is not None:
            _point_latest(root, final.name)
            return final
        shutil.rmtree(final)
    _check_space(root, tensors)
    fresh = root / f"step-{step}.tmp-{uuid.uuid4().hex[:12]}"
    try:
        fresh.mkdir()
        shapes = [(name, tuple(value.shape), value.dtype) for name, value in tensors.items()]
        write_safetensors(fresh / TENSORS, shapes, iter(tensors.values()))
        _write(fresh / META, json.dumps(meta, indent=1).encode())
        files = {name: _describe(fresh / name) for name in (TENSORS, META)}
        _write(fresh / MANIFEST, json.dumps({"step": step, "files": files}, indent=1).encode())
        sync(fresh)
        fresh.rename(final)
        sync(root)
        _point_latest(root, final.name)
    except OSError as error:
        shutil.rmtree(fresh, ignore_errors=True)
        raise StateError(
            error.errno, f"{final}: state not saved: {error.strerror or error}"
        ) from error
    _prune(root, final.name, keep)
    return final


def load_latest(root: Path, *, deep: bool = False) -> State | None:
    """The newest whole state under ``root``, or None.

    Partial folders of an interrupted save are removed. A state whose manifest does not verify is
    passed over for the one before it.

    Args:
        root: folder of all states of a run.
        deep: verify SHA-256 besides sizes.

    Raises:
        ModelLoadError: states are there, and none of them is whole.
    """
    if not root.is_dir():
        return None
    for name in os.listdir(root):
        if _PARTIAL.fullmatch(name):
            path = root / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    broken = []
    for step, path in _states(root):
        manifest = _verify(path, deep=deep)
        if manifest is None:
            broken.append(path.name)
            continue
        file = open_safetensors(path / TENSORS, state=True)
        tensors = {name: file.read(name) for name in file.entries}
        meta = json.loads((path / META).read_text(encoding="utf-8"))
        return State(step, tensors, meta, path)
    if broken:
        raise ModelLoadError(f"{root}: no state is whole; damaged are {', '.join(broken)}")
    return None


def _states(root: Path) -> Iterator[tuple[int, Path]]:
    """Folders named like states, newest first: what ``latest`` names is the newest whole one."""
    found = [
        (int(match[1]), root / name)
        for name in os.listdir(root)
        if (match := _STEP.fullmatch(name)) and (root / name).is_dir()
    ]
    yield from sorted(found, reverse=True)


def _verify(path: Path, *, deep: bool) -> dict[str, Any] | None:
    """The manifest of a whole state, or None if anything is missing or of the wrong size."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        for name, facts in manifest["files"].items():
            if (path / name).stat().st_size != facts["bytes"]:
                return None
            if deep and _describe(path / name)["sha256"] != facts["sha256"]:
                return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        # Whatever is wrong with it, it is not a whole state; the caller goes on to the one before.
        return None
    return manifest


def _check_space(root: Path, tensors: Mapping[str, Tensor]) -> None:
    needed = int(sum(t.numel() * t.element_size() for t in tensors.values()) * SPACE_MARGIN)
    free = shutil.disk_usage(root).free
    if needed > free:
        raise StateError(
            f"{root}: a state needs {needed:,} bytes with {SPACE_MARGIN - 1:.0%} to spare, "
            f"{free:,} are free"
        )


def _point_latest(root: Path, name: str) -> None:
    fresh = root / f"{LATEST}.tmp-{uuid.uuid4().hex[:12]}"
    try:
        _write(fresh, f"{name}\n".encode())
        fresh.replace(root / LATEST)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
    sync(root)


def _prune(root: Path, current: str, keep: int) -> None:
    whole = [path for _, path in _states(root) if _verify(path, deep=False) is not None]
    for path in whole[keep:]:
        if path.name != current:
            # Renamed first, so that a kill half-way leaves a partial folder and no broken state.
            doomed = root / f"{path.name}.tmp-{uuid.uuid4().hex[:12]}"
            path.rename(doomed)
            shutil.rmtree(doomed)


def _write(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _describe(path: Path) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return {"bytes": size, "sha256": digest.hexdigest()}


def sync(path: Path) -> None:
    """Return once a file's content, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
