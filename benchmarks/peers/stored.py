"""Checkpoints of random weights, made once and kept."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from dsv2.checkpoint.quantised import VERSION
from dsv2.checkpoint.synthetic import synthetic_checkpoint
from dsv2.model.config import ModelConfig


def stored(
    files: Path, name: str, config: ModelConfig, scheme: str, extra: Mapping[str, bytes]
) -> Path:
    """The folder in ``files`` of weights of a shape and scheme, written where there is none yet.

    Args:
        files: holds such folders.
        name: of the model, for the folder's.
        config: the shape.
        scheme: ``int8`` or ``int4``.
        extra: what belongs beside the weights, by name.

    Raises:
        ValueError: the folder has weights of another shape.
    """
    folder = files / f"{name}-{scheme}-{VERSION}"
    if not folder.exists():
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)  # of a run that was stopped
        synthetic_checkpoint(partial, config, scheme, extra)
        partial.rename(folder)
    if ModelConfig.from_file(folder / "config.json") != config:
        raise ValueError(f"{folder} has weights of another shape: remove it")
    return folder
